/* prompt.h: from the words of a command line to token rows; generation and tokenizing as commands.
 * Floor 3. */
#ifndef REFSAE_PROMPT_H
#define REFSAE_PROMPT_H

#include "adapter.h"

typedef struct Prompt {
    const char *llm, *ids, *text, *prompt; /* one of ids, text, prompt with llm */
    const char *vision, *image, *adapter;
    int bos; /* --bos: 1 yes, 0 no, -1 what the tokenizer's post-processor adds */
    bool chat;
    ImageText image_text;
} Prompt;

/* Messages of `--prompt` in chat form: a JSON list of {"role", "content"} (or LLaVA's "from",
 * "value"), or text that is the user's one turn. trim: as Gemma's template, contents trimmed and
 * roles that do not alternate refused. */
Turn *chat_turns(Arena *arena, const char *prompt, bool trim, size_t *count);
/* "2,15,7"; option stands in messages. */
int32_t *token_ids_parse(Arena *arena, const char *text, const char *option, size_t *count);

/* Opens what the prompt names; then its rows (at least one). With an image the prompt is a
 * conversation, and "<image>\n" is put before the first user's turn if no turn has the literal. */
void prompt_open(Vlm *vlm, Arena *arena, const Compute *compute, const Prompt *prompt);
Sequence prompt_sequence(const Vlm *vlm, const Prompt *prompt, Arena *arena);

void generate_command(const Compute *compute, const Prompt *prompt, const GenerateOptions *options,
                      bool json, FILE *out);

typedef struct TokenizeOptions {
    bool special, jsonl, decode;
} TokenizeOptions;

void tokenize_command(const char *path, const TokenizeOptions *options, FILE *in, FILE *out);

#endif

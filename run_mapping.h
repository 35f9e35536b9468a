/* run_mapping.h: what the Mapping commands open and pass over: training, visual questions, the
 * layer analysis; and prompts of a command line, with or without an image. Floor 11. */
#ifndef REFSAE_RUN_MAPPING_H
#define REFSAE_RUN_MAPPING_H

#include "adapter.h"

/* ---- models ---- */

typedef struct VlmPaths { /* each may be NULL: not opened */
    const char *llm, *vision, *adapter;
    bool without_tokenizer;
} VlmPaths;

/* All that it opens lives in the arena. */
void vlm_open(Vlm *vlm, Arena *arena, const Compute *compute, const VlmPaths *paths);
/* Decodes, preprocesses and runs the tower (hooks may be NULL): the adapter's input, [n_patches,
 * d_vit], in vlm->features. */
void vlm_image(Vlm *vlm, const char *path, const Hooks *hooks);

/* ---- prompts of a command line ---- */

typedef struct Prompt {
    const char *llm, *ids, *text, *prompt; /* one of ids, text, prompt with llm */
    const char *vision, *image, *adapter;
    int bos; /* --bos: 1 yes, 0 no, -1 what the tokenizer's post-processor adds */
    bool chat;
    ImageText image_text;
} Prompt;

/* "2,15,7"; option stands in messages. */
int32_t *token_ids_parse(Arena *arena, const char *text, const char *option, size_t *count);
/* Opens what the prompt names; then its rows (at least one). With an image the prompt is a
 * conversation, and "<image>\n" is put before the first user's turn if no turn has the literal. */
void prompt_open(Vlm *vlm, Arena *arena, const Compute *compute, const Prompt *prompt);
Sequence prompt_sequence(const Vlm *vlm, const Prompt *prompt, Arena *arena);

/* ---- commands: results in the arena, for report.h ---- */

/* Prints what continues the prompt; json: {"text", "ids"}. */
void generate_command(const Compute *compute, const Prompt *prompt, const GenerateOptions *options,
                      bool json, FILE *out);
/* adapter.safetensors, checkpoint.safetensors, train.csv and timing.csv in options->out. */
TrainResult run_train(Arena *arena, const Compute *compute, const TrainOptions *options,
                      const Console *console);
/* answers.jsonl and scores.json in options->out. */
void run_eval(const Compute *compute, const EvalOptions *options, const Console *console);
/* features.jsonl in options->out and, if they are asked for, the questions for a judge. */
AnalyzeResult run_analyze(Arena *arena, const Compute *compute, const AnalyzeOptions *options,
                          const Console *console);

#endif

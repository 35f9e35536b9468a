/* tokenizer.h: text to token ids and back, as Hugging Face `tokenizers` does it from
 * tokenizer.json: byte-level BPE (GPT-2, GPT-NeoX) and Gemma's BPE with byte fallback. Floor 5. */
#ifndef REFSAE_TOKENIZER_H
#define REFSAE_TOKENIZER_H

#include "base.h"

typedef struct Tokenizer Tokenizer;

typedef struct Tokens {
    int32_t *id;
    size_t *begin; /* the byte of the text where its first character begins; 0 for <bos> ... */
    size_t count;
} Tokens;

/* path: tokenizer.json, or a directory that holds it. What the files of those models do not ask for
 * (another model, normalizer, pre-tokenizer, decoder; a vocabulary that lacks a byte) is refused by
 * name. Of a directory, add_prefix_space is what transformers makes of tokenizer_config.json. */
Tokenizer *tokenizer_open(Arena *arena, const char *path);

/* Ids of `text` (valid UTF-8, else STATUS_INPUT), in the arena. special: what the post-processor
 * adds (<bos> ...). A text is at most 2 GiB long, and what is made of it. */
Tokens tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t length, bool special,
                        Arena *arena);

/* The same, and then what the file's `truncation` and `padding` blocks ask for. Only `tokenize`
 * does: models are fed what transformers feeds them, which resets both. */
Tokens tokenizer_encode_fit(const Tokenizer *tokenizer, const char *text, size_t length,
                            bool special, Arena *arena);

/* What tokenizers' decode(ids, skip_special_tokens=skip_special) gives, and a 0 byte after it. */
char *tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count,
                       bool skip_special, Arena *arena, size_t *length);

int32_t tokenizer_id(const Tokenizer *tokenizer, const char *token); /* -1: no such token */
int32_t tokenizer_size(const Tokenizer *tokenizer);                  /* largest id + 1 */

#endif

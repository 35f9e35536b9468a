/* generate.h: generation and tokenizing as commands. Floor 15. */
#ifndef REFSAE_GENERATE_H
#define REFSAE_GENERATE_H

#include "run_mapping.h"

/* Prints what continues the prompt; json: {"text", "ids"}. */
void generate_command(const Compute *compute, const Prompt *prompt, const GenerateOptions *options,
                      bool json, FILE *out);

typedef struct TokenizeOptions {
    bool special, jsonl, decode;
} TokenizeOptions;

/* Text on `in` to ids on `out`, or with decode the other way; jsonl: a JSON string (array of ids) a
 * line. */
void tokenize_command(const char *path, const TokenizeOptions *options, FILE *in, FILE *out);

#endif

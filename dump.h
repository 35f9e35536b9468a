/* dump.h: taking ids and activations out of the program, and comparing with another's. Floor 15. */
#ifndef REFSAE_DUMP_H
#define REFSAE_DUMP_H

#include "run_mapping.h"

typedef struct DumpOptions {
    VlmOptions vlm;
    const char *sae, *input, *tensor;
    const char *hooks; /* globs, separated by commas outside of braces */
    const char *grad;  /* "A" or "A,B": token ids of the metric logits[T-1, A] - logits[T-1, B] */
    const char *out, *trace;     /* NULL: not written */
    SaeCentre fold_value_biases; /* of a hook_z SAE whose file does not say */
} DumpOptions;

void dump_run(const Compute *compute, const DumpOptions *options, const Console *console);

/* Every hook point with its shape, T standing for the number of tokens, * for the layer. Either
 * directory may be NULL. */
void hooks_list(const char *llm, const char *vision, bool json, FILE *out);

typedef struct DiffOptions {
    const char *a, *b;
    uint64_t ulp;
    double atol, rtol; /* allowed: ulp apart, or |a - b| <= atol + rtol |b| */
    bool histogram;    /* of distances in ulp, with each tensor that differs */
    bool bad_only;     /* say nothing of tensors that are as allowed */
    bool common;       /* leave out tensors that only one file has */
    bool json;
} DiffOptions;

/* Tensors in the order of the pass, others behind them; at last the first that differs by more than
 * allowed, with its inputs. A leading dimension of 1 counts as none; other dtypes are widened.
 * STATUS_CHECK if a tensor is missing, has another shape, or differs by more than allowed. */
void diff_run(const DiffOptions *options, FILE *out);

typedef struct TokenizeOptions {
    bool special, jsonl, decode;
} TokenizeOptions;

/* Text on `in` to ids on `out`, or with decode the other way; jsonl: a JSON string (array of ids) a
 * line. */
void tokenize_command(const char *path, const TokenizeOptions *options, FILE *in, FILE *out);

#endif

/* dump.h: taking activations out of the program and comparing them with another's. Floor 14. */
#ifndef REFSAE_DUMP_H
#define REFSAE_DUMP_H

#include "run_mapping.h"

typedef struct DumpOptions {
    Prompt prompt;
    const char *sae, *input, *tensor;
    const char *hooks; /* globs, separated by commas outside of braces */
    const char *grad;  /* "A" or "A,B": token ids of the metric logits[T-1, A] - logits[T-1, B] */
    const char *out;
    SaeOptions sae_options;
    SaeCentre fold_value_biases; /* of a hook_z SAE whose file does not say */
} DumpOptions;

void dump_run(const Compute *compute, const DumpOptions *options, const Console *console);

typedef struct DiffOptions {
    const char *a, *b;
    uint64_t ulp;
    double atol, rtol; /* allowed: ulp apart, or |a - b| <= atol + rtol |b| */
    bool json;
} DiffOptions;

/* STATUS_CHECK if a tensor is missing, has another shape, or differs by more than allowed. */
void diff_run(const DiffOptions *options, FILE *out);

#endif

/* bench.h: `refsae bench`: how fast this machine computes, beside its own limits. Floor 17. */
#ifndef REFSAE_BENCH_H
#define REFSAE_BENCH_H

#include "selftest.h"

/* The kernels on 1 thread and on all of `compute`, interleaved, best of ten, with the multiply-add
 * and memory limits measured in the same rounds. json: one object, else a table. */
void bench_kernels(const Compute *compute, bool json, FILE *out);

/* Whole commands on a model (vision, saes: NULL, or also what needs them): what their stages take
 * of the same limits, on what, and the memory held beside what `info` predicts. */
typedef struct BenchModel {
    const char *llm, *vision, *saes, *task;
    size_t rows; /* the most of passes over 64, 128, 256 .. rows; 0: none */
    CommandRun *run;
} BenchModel;
void bench_model(const Compute *compute, const BenchModel *model, bool json, FILE *out);

#endif

/* selftest.h: what this machine does: `refsae selftest`, whether its bits are right, and `refsae
 * bench`, how fast. Floor 16. */
#ifndef REFSAE_SELFTEST_H
#define REFSAE_SELFTEST_H

#include "base.h"
#include "kernels.h"

/* Makes a small world of random models, SAEs, pictures and conversations in a folder of its own
 * below TMPDIR (or /tmp), runs every command on it and removes it. STATUS_CHECK: some output has
 * other bytes than it should. */
void selftest_run(const Compute *compute, bool json, FILE *out);

/* Inside the folder, where every path is the same on every machine: writes a world of random
 * numbers, works on it, and goes back whatever happens. */
void selftest_inside(const char *path, void (*work)(void *user), void *user);

/* The kernels on 1 thread and on all of `compute`, interleaved, best of ten, with the multiply-add
 * and memory limits measured in the same rounds. json: one object, else a table. */
void bench_kernels(const Compute *compute, bool json, FILE *out);

/* Whole commands on a model (vision, saes: NULL, or also what needs them): what their stages take
 * of the same limits, on what, and the memory held beside what `info` predicts. */
typedef struct BenchModel {
    const char *llm, *vision, *saes, *task;
    size_t rows; /* the most of passes over 64, 128, 256 .. rows; 0: none */
} BenchModel;
void bench_model(const Compute *compute, const BenchModel *model, bool json, FILE *out);

/* A file, or a folder with all that is in it, eight deep; fine if it is not there. */
void remove_tree(const char *path, int depth);

#endif

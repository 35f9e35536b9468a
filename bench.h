/* bench.h: `refsae bench`: the kernels against this machine's own limits. Floor 15. */
#ifndef REFSAE_BENCH_H
#define REFSAE_BENCH_H

#include "kernels.h"

/* Everything on 1 thread and on all of `compute`, interleaved, best of ten, with the multiply-add
 * and memory limits measured in the same rounds. json: one object, else a table. */
void bench_kernels(const Compute *compute, bool json, FILE *out);

#endif

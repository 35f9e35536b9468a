/* bench.h: `refsae bench`: the kernels against this machine's own limits. Floor 14. */
#ifndef REFSAE_BENCH_H
#define REFSAE_BENCH_H

#include "base.h"

/* Everything on 1 thread and on `threads` (0: as many as there are cores), interleaved, best of
 * ten, with the multiply-add and memory limits measured in the same rounds. json: one object, else
 * a table. */
void bench_kernels(FILE *out, bool json, int threads);

#endif

/* selftest.h: `refsae selftest`: whether this machine's bits are right. Floor 16. */
#ifndef REFSAE_SELFTEST_H
#define REFSAE_SELFTEST_H

#include "kernels.h"

/* Runs a command, quietly: its words between spaces, each % the next of `paths`. */
typedef void CommandRun(const Compute *compute, const char *words, const char *const *paths);

/* Makes a small world of random models, SAEs, pictures and conversations in a folder below TMPDIR
 * (or /tmp), runs every command on it and removes it. STATUS_CHECK: some output has wrong bytes. */
void selftest_run(const Compute *compute, CommandRun *run, bool json, FILE *out);

/* Inside the folder, where every path is the same on every machine: writes a world of random
 * numbers, works on it, and goes back whatever happens. */
void selftest_inside(const char *path, void (*work)(void *user), void *user);

/* The same, in a folder that is gone afterwards. */
void selftest_world(void (*work)(void *user), void *user);

/* Small runs of commands on that world, or on models of one's own: --llm, --vision, --saes, --task
 * are the paths. */
#define SELFTEST_TRAIN                                                                             \
    "train --llm % --vision % --data data.json --images images --out train --lr 1e-2 "             \
    "--warmup 0.3 --batch 2 --accumulate 2 --epochs 3 --tokens 60"
#define SELFTEST_ANALYZE                                                                           \
    "analyze --llm % --vision % --saes % --adapter train/adapter.safetensors --data data.json "    \
    "--images images --out analyze --examples 2 --loss-examples 1 --max-frequency 1"
#define SELFTEST_SAGE                                                                              \
    "sage --llm % --saes % --task % --out sage --nodes q,k,v,z,mlp_out --train 8 --test 4 "      \
    "--max-nodes 2 --f1 0.5 --bos yes"

/* A file, or a folder with all that is in it, eight deep; fine if it is not there. */
void remove_tree(const char *path, int depth);

#endif

/* selftest.h: `refsae selftest`: whether this machine's bits are right. Floor 16. */
#ifndef REFSAE_SELFTEST_H
#define REFSAE_SELFTEST_H

#include "run_mapping.h"
#include "run_sage.h"

/* Makes a small world of random models, SAEs, pictures and conversations in a folder below TMPDIR
 * (or /tmp), runs every command on it and removes it. STATUS_CHECK: some output has wrong bytes. */
void selftest_run(const Compute *compute, bool json, FILE *out);

/* Inside the folder, where every path is the same on every machine: writes a world of random
 * numbers, works on it, and goes back whatever happens. */
void selftest_inside(const char *path, void (*work)(void *user), void *user);

/* The same, in a folder that is gone afterwards. */
void selftest_world(void (*work)(void *user), void *user);

/* Small runs of commands on that world, or on another of its kind. */
VlmOptions selftest_train(const char *llm, const char *vision);
VlmOptions selftest_analyze(const char *llm, const char *vision, const char *saes);
SageOptions selftest_sage(const char *llm, const char *saes, const char *task);

/* A file, or a folder with all that is in it, eight deep; fine if it is not there. */
void remove_tree(const char *path, int depth);

#endif

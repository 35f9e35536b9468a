/* selftest.h: `refsae selftest`: every stage on this machine against the digests that the program
 * carries. Floor 16. */
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

/* A file, or a folder with all that is in it, eight deep; fine if it is not there. */
void remove_tree(const char *path, int depth);

#endif

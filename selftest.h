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

#endif

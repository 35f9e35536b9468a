/* info.h: what a file or folder is, as refsae understands it, and the memory that commands need on
 * it. Floor 15. */
#ifndef REFSAE_INFO_H
#define REFSAE_INFO_H

#include "kernels.h"

/* Every path in turn; a path that cannot be understood fails after the others were told. */
void info_run(const Compute *compute, char *const *paths, size_t count, bool json, FILE *out);

#endif

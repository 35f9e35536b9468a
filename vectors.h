/* vectors.h: conformance vectors, by which other implementations are checked. Floor 17. */
#ifndef REFSAE_VECTORS_H
#define REFSAE_VECTORS_H

#include "kernels.h"

/* index.json and the files that it names, into the folder `out`, which is new or holds vectors. */
void vectors_write(const Compute *compute, const char *out);

#endif

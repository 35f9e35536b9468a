/* info.h: what a file or folder is, as refsae understands it, and the memory that commands need on
 * it. Floor 15. */
#ifndef REFSAE_INFO_H
#define REFSAE_INFO_H

#include "llm.h"

/* Every path in turn; a path that cannot be understood fails after the others were told. */
void info_run(const Compute *compute, char *const *paths, size_t count, bool json, FILE *out);
/* Bytes of a run by such a plan, with its logits. */
size_t llm_memory(const Llm *llm, const Compute *compute, const LlmPlan *plan);

#endif

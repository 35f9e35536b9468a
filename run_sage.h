/* run_sage.h: SAGE from files to a result: models and SAEs opened, batches run, activations
 * captured and patched. Floor 11. */
#ifndef REFSAE_RUN_SAGE_H
#define REFSAE_RUN_SAGE_H

#include "sage.h"

/* Bytes of the block that the passes run in, for prompts of up to `longest` tokens. */
size_t sage_memory(const Compute *compute, const Llm *llm, size_t longest);
/* Writes prompts.jsonl into options->out; the result lives in the arena. */
SageResult sage_run(Arena *arena, const Compute *compute, const SageOptions *options,
                    const Console *console);

#endif

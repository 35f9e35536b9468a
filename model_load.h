/* model_load.h: opens language models and vision towers from unmodified Hugging Face directories:
 * config.json in the spellings of transformers 4 and 5, and the checkpoint's tensors under their
 * names. Weights stay where the file is mapped. Floor 8. */
#ifndef REFSAE_MODEL_LOAD_H
#define REFSAE_MODEL_LOAD_H

#include "llm.h"
#include "vit.h"

/* model_type gemma2, gpt2 or gpt_neox. Fails, with the file and the setting or tensor, where a
 * setting changes the computation in a way that llm.c has not, or a tensor is not as configured. */
void llm_open(Llm *llm, Arena *arena, const char *directory);
/* model_type clip_vision_model, or clip (its vision_config; the text tower's tensors are left). */
void vit_open(Vit *vit, Arena *arena, const char *directory);

#endif

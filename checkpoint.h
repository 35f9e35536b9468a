/* checkpoint.h: opens a file of tensors by what it holds. Floor 5. */
#ifndef REFSAE_CHECKPOINT_H
#define REFSAE_CHECKPOINT_H

#include "tensor.h"

/* path: a safetensors file, an index of its shards, an npz, torch.save's zip, or a directory with
 * model.safetensors or model.safetensors.index.json. By content. Errors name file and tensor. */
void tensors_open(TensorStore *store, Arena *arena, const char *path);

/* Fails if the directory holds weights in a form that is not read. */
void checkpoint_refuse(const char *directory);

#endif

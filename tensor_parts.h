/* tensor_parts.h: what tensor.c and the readers beside it share. */
#ifndef REFSAE_TENSOR_PARTS_H
#define REFSAE_TENSOR_PARTS_H

#include "tensor.h"

/* The list that readers fill; tensors_open sorts it by name and refuses names that are there twice.
 */
typedef struct TensorList {
    Arena *arena;
    Tensor *items;
    size_t count, room;
} TensorList;

void tensor_list_add(TensorList *list, const Tensor *tensor);

/* Makes the data a row-major copy in the arena: element (i, j, ...) is the one at i strides[0] +
 * j strides[1] + ... of what it was, all of which must be readable. Not for empty tensors. */
void tensor_gather(Tensor *tensor, const size_t *strides, size_t element, Arena *arena);

/* count = product of shape, and the bytes of that many elements; false on overflow. */
bool tensor_shape_bytes(const size_t *shape, int rank, unsigned bits, size_t *count, size_t *bytes);

#endif

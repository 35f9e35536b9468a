/* tensor.h: safetensors and npz read to a list of named tensors, safetensors written. Floor 4. */
#ifndef REFSAE_TENSOR_H
#define REFSAE_TENSOR_H

#include "zip.h"

typedef enum Dtype {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F64, /* from here on: can be held and reported, but no kernel reads them */
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_I16,
    DTYPE_I8,
    DTYPE_U64,
    DTYPE_U32,
    DTYPE_U16,
    DTYPE_U8,
    DTYPE_BOOL,
    DTYPE_OTHER /* any other (F8_E4M3, C64, big-endian, objects): held by name, never read */
} Dtype;

size_t dtype_size(Dtype dtype); /* bytes an element; 0 for DTYPE_OTHER */
const char *dtype_name(Dtype dtype);

enum {
    TENSOR_MAX_RANK = 8
};

typedef struct Tensor {
    const char *name; /* first, for compare_names */
    const char *file;
    const void *data; /* row-major, in the order of bytes of the machine; any alignment */
    Dtype dtype;
    const char *type; /* the dtype as the file spells it */
    int rank;
    size_t shape[TENSOR_MAX_RANK];
    size_t count; /* product of shape */
} Tensor;

/* Every tensor of a checkpoint. Data stays in the mapped file where bytes lie as in memory. */
typedef struct TensorStore {
    Tensor *tensors; /* sorted by name (strcmp) */
    size_t count, room;
    FileMap *maps;
    size_t map_count, map_room;
    Arena *arena; /* the caller's: maps, names, unpacked members */
    const char *path;
    const char *settings; /* the file that states the sizes needed, for messages; NULL: none */
} TensorStore;

const Tensor *tensors_find(const TensorStore *store, const char *name); /* NULL: none */

/* The tensor `name`, which must be there, with this shape and F32, BF16 or F16:
 * "FILE: tensor 'x': expected [64, 16], found [64, 8]". */
const Tensor *tensors_need(const TensorStore *store, const char *name, int rank,
                           const size_t *shape);

/* ---- reading: for checkpoint.c ---- */

/* A header whose length fits and which starts as an object. */
bool safetensors_is(const FileMap *map);
/* Adds the tensors of a safetensors file, and sorts. Fails, naming file and tensor, on what is
 * truncated, overlapping, duplicated, or leaves holes. */
void safetensors_read(TensorStore *store, const FileMap *map, const char *path);
/* Adds the members NAME.npy. */
void npz_read(TensorStore *store, const Zip *zip, const char *path);

void tensors_add(TensorStore *store, const Tensor *tensor);
void tensors_sort(TensorStore *store); /* refuses names that are there twice */
/* Sets the count of elements from the shape; returns their bytes. Fails on overflow. */
size_t tensor_measure(Tensor *tensor);
/* Makes the data a row-major copy in the arena: element (i, j, ...) is the one at i strides[0] +
 * j strides[1] + ... of what it was, all of which must be readable. Not for empty tensors. */
void tensor_gather(Tensor *tensor, const size_t *strides, Arena *arena);
/* "FILE: tensor 'NAME': " and what is wrong. */
REFSAE_NORETURN void tensor_fail(const Tensor *tensor, const char *format, ...) REFSAE_PRINTF(2, 3);

/* ---- writing safetensors: names in the order given ----
 * Two passes, so that large dumps need not be held: first declare every tensor, then give its data
 * in that order, in any pieces. As with OutFile, what is not committed leaves nothing. */
typedef struct TensorWriter TensorWriter;

TensorWriter *tensor_writer_open(const char *path);
void tensor_writer_declare(TensorWriter *writer, const char *name, Dtype dtype, int rank,
                           const size_t *shape);
/* `count` elements of `size` bytes, as the machine has them. */
void tensor_writer_data(TensorWriter *writer, const void *data, size_t size, size_t count);
/* All declared bytes must be there. The writer is gone afterwards. */
void tensor_writer_commit(TensorWriter *writer);

#endif

/* tensor.h: named arrays in files: safetensors (one file, or index + shards), npz; and inflate,
 * which npz shares with PNG. Floor 0. */
#ifndef REFSAE_TENSOR_H
#define REFSAE_TENSOR_H

#include "base.h"

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
    DTYPE_OTHER /* a dtype of the format that refsae has no name for (F8_E4M3 ...) */
} Dtype;

size_t dtype_size(Dtype dtype); /* bytes an element; 0 for DTYPE_OTHER */
const char *dtype_name(Dtype dtype);

enum {
    TENSOR_MAX_RANK = 8
};

typedef struct Tensor {
    const char *name;
    const char *file;
    const void *data; /* row-major; any alignment: read with memcpy or unaligned loads */
    Dtype dtype;
    const char *type; /* the dtype as the file spells it */
    int rank;
    size_t shape[TENSOR_MAX_RANK];
    size_t count; /* product of shape */
} Tensor;

/* Every tensor of a checkpoint. Data stays in the mapped file; all of it goes with the arena. */
typedef struct TensorStore {
    Tensor *tensors; /* sorted by name (strcmp) */
    size_t count;
    FileMap *maps;
    size_t map_count;
    Arena *arena; /* the caller's: maps, names, unpacked members */
    const char *path;
} TensorStore;

/* path: a .safetensors file, a .safetensors.index.json, an .npz, or a directory that holds
 * model.safetensors or model.safetensors.index.json. Chosen by content, not by name.
 * Errors name file and tensor: truncated, overlapping, duplicated, headers beyond the end. */
void tensors_open(TensorStore *store, Arena *arena, const char *path);

const Tensor *tensors_find(const TensorStore *store, const char *name); /* NULL: none */

/* The tensor `name`, which must be there, with this shape and F32, BF16 or F16:
 * "FILE: tensor 'x': expected [64, 16], found [64, 8]". */
const Tensor *tensors_need(const TensorStore *store, const char *name, int rank,
                           const size_t *shape);

/* ---- writing safetensors: names in the order given, data F32 (or as `dtype` says) ---- */
typedef struct TensorWriter TensorWriter;

/* Two passes, so that large dumps need not be held: first declare every tensor, then give its data
 * in the same order, in as many pieces as is convenient. As with OutFile, what is not committed
 * leaves nothing. */
TensorWriter *tensor_writer_open(const char *path);
void tensor_writer_declare(TensorWriter *writer, const char *name, Dtype dtype, int rank,
                           const size_t *shape);
void tensor_writer_metadata(TensorWriter *writer, const char *key, const char *value);
void tensor_writer_data(TensorWriter *writer, const void *data, size_t bytes);
/* All declared bytes must be there. The writer is gone afterwards. */
void tensor_writer_commit(TensorWriter *writer);

/* ---- inflate (RFC 1951; zlib's frame RFC 1950 with its Adler-32) ----
 * Decodes into out[capacity] and returns the bytes that came; more than fit are an error (no
 * bombs). `used` (may be NULL): bytes of input consumed. Messages start with `name`. */
size_t inflate_raw(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                   size_t *used, const char *name);
size_t inflate_zlib(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                    size_t *used, const char *name);
/* The first bytes of a raw stream, at most capacity; 0 if it is broken. */
size_t inflate_prefix(unsigned char *out, size_t capacity, const unsigned char *in, size_t size);
uint32_t crc32_of(uint32_t crc, const unsigned char *data, size_t size); /* start with 0 */

#endif

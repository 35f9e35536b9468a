/* tensor.c: reads safetensors and npz, writes safetensors. See tensor.h.
 *
 *   safetensors   u64 n | n bytes of JSON {name: {dtype, shape, data_offsets}} | data
 *   npz           zip of NAME.npy: "\x93NUMPY" version, u16 or u32 n | n bytes of a dict | data */
#include "tensor.h"

#include "json.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- dtypes ---- */

static const struct {
    const char *name; /* in safetensors */
    const char *npy;  /* after the byte order */
    size_t bytes;
} dtypes[] = {[DTYPE_F32] = {"F32", "f4", 4},   [DTYPE_BF16] = {"BF16", NULL, 2},
              [DTYPE_F16] = {"F16", "f2", 2},   [DTYPE_F64] = {"F64", "f8", 8},
              [DTYPE_I64] = {"I64", "i8", 8},   [DTYPE_I32] = {"I32", "i4", 4},
              [DTYPE_I16] = {"I16", "i2", 2},   [DTYPE_I8] = {"I8", "i1", 1},
              [DTYPE_U64] = {"U64", "u8", 8},   [DTYPE_U32] = {"U32", "u4", 4},
              [DTYPE_U16] = {"U16", "u2", 2},   [DTYPE_U8] = {"U8", "u1", 1},
              [DTYPE_BOOL] = {"BOOL", "b1", 1}, [DTYPE_OTHER] = {"another type", NULL, 0}};

size_t dtype_size(Dtype dtype) {
    return dtypes[dtype].bytes;
}

const char *dtype_name(Dtype dtype) {
    return dtypes[dtype].name;
}

/* ---- the list ---- */

void tensor_fail(const Tensor *tensor, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail(STATUS_INPUT, "%s: tensor '%s': %s", tensor->file, tensor->name, text);
}

void tensors_add(TensorStore *store, const Tensor *tensor) {
    store->tensors = arena_grow(store->arena, store->tensors, &store->room, store->count + 1,
                                sizeof *store->tensors);
    store->tensors[store->count++] = *tensor;
}

void tensors_sort(TensorStore *store) {
    if (store->count > 1) {
        qsort(store->tensors, store->count, sizeof *store->tensors, compare_names);
    }
    for (size_t i = 1; i < store->count; i++) {
        if (strcmp(store->tensors[i - 1].name, store->tensors[i].name) == 0) {
            tensor_fail(&store->tensors[i], "is there twice");
        }
    }
}

const Tensor *tensors_find(const TensorStore *store, const char *name) {
    Tensor key = {.name = name};
    return store->count == 0
               ? NULL
               : bsearch(&key, store->tensors, store->count, sizeof key, compare_names);
}

/* "[64, 16]" */
static void shape_format(char text[24 * TENSOR_MAX_RANK], int rank, const size_t *shape) {
    size_t used = 1;
    text[0] = '[';
    for (int i = 0; i < rank; i++) {
        used += (size_t)snprintf(text + used, 24, "%s%zu", i == 0 ? "" : ", ", shape[i]);
    }
    memcpy(text + used, "]", 2);
}

const Tensor *tensors_need(const TensorStore *store, const char *name, int rank,
                           const size_t *shape) {
    char expected[24 * TENSOR_MAX_RANK], found[24 * TENSOR_MAX_RANK];
    const Tensor *t = tensors_find(store, name);
    const char *from = store->settings != NULL ? "; the sizes are from " : "";
    const char *settings = store->settings != NULL ? store->settings : "";
    shape_format(expected, rank, shape);
    if (t == NULL) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected %s, not found%s%s", store->path, name,
             expected, from, settings);
    }
    if (t->rank != rank ||
        (rank != 0 && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) != 0)) {
        shape_format(found, t->rank, t->shape);
        fail(STATUS_INPUT, "%s: tensor '%s': expected %s, found %s%s%s", t->file, name, expected,
             found, from, settings);
    }
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F16) {
        tensor_fail(t, "expected F32, BF16 or F16, found %s", t->type);
    }
    return t;
}

size_t tensor_measure(Tensor *tensor) {
    size_t bytes;
    tensor->count = 1;
    bool fits = true;
    for (int d = 0; d < tensor->rank; d++) {
        fits = fits && size_mul(&tensor->count, tensor->count, tensor->shape[d]);
    }
    if (!fits || !size_mul(&bytes, tensor->count, dtype_size(tensor->dtype))) {
        tensor_fail(tensor, "its shape overflows");
    }
    return bytes;
}

void tensor_gather(Tensor *tensor, const size_t *strides, Arena *arena) {
    size_t index[TENSOR_MAX_RANK] = {0}, from = 0, element = dtype_size(tensor->dtype);
    unsigned char *copy = arena_alloc(arena, tensor->count, element);
    for (size_t i = 0; i < tensor->count; i++) {
        memcpy(copy + i * element, (const unsigned char *)tensor->data + from * element, element);
        for (int d = tensor->rank; d-- > 0;) {
            from += strides[d];
            if (++index[d] < tensor->shape[d]) {
                break;
            }
            from -= strides[d] * tensor->shape[d];
            index[d] = 0;
        }
    }
    tensor->data = copy;
}

/* Adds the tensor, whose elements are data[size], by these strides (NULL: row-major). */
static void tensor_take(TensorStore *store, Tensor *tensor, const unsigned char *data, size_t size,
                        const size_t *strides) {
    size_t bytes = tensor_measure(tensor), element = dtype_size(tensor->dtype);
    if (tensor->dtype != DTYPE_OTHER) {
        if (size != bytes) {
            tensor_fail(tensor, "its shape takes %zu byte%s, but the file gives it %zu", bytes,
                        plural(bytes), size);
        }
        tensor->data = data;
        if (strides != NULL && tensor->count > 0) {
            tensor_gather(tensor, strides, store->arena);
        }
        tensor->data = little_elements(store->arena, tensor->data, element, tensor->count);
    }
    tensors_add(store, tensor);
}

/* A size is written in plain digits: neither -1 nor 1.0 nor 1e3 is one. */
static bool size_parse(const Json *value, size_t *out) {
    int64_t number;
    if (!json_is(value, JSON_NUMBER) || strspn(value->text, "0123456789") != value->length ||
        !json_int64(value, &number) || (uint64_t)number > SIZE_MAX) {
        return false;
    }
    *out = (size_t)number;
    return true;
}

static void shape_parse(Tensor *tensor, const Json *shape) {
    if (shape->length > TENSOR_MAX_RANK) {
        tensor_fail(tensor, "%zu dimensions; at most %d are read", shape->length, TENSOR_MAX_RANK);
    }
    for (const Json *c = shape->child; c != NULL; c = c->next) {
        if (!size_parse(c, &tensor->shape[tensor->rank++])) {
            tensor_fail(tensor, "its shape is not made of sizes");
        }
    }
}

/* ---- safetensors ---- */

enum {
    HEADER_LIMIT = 100000000, /* bytes, as the safetensors crate has it */
    NPY_HEADER_MOST = 10000   /* as numpy has it */
};

/* A part of the data, and whose it is. */
typedef struct Extent {
    size_t begin, end;
    const char *name;
} Extent;

static int compare_extents(const void *a, const void *b) {
    const Extent *x = a, *y = b;
    return x->begin != y->begin ? (x->begin < y->begin ? -1 : 1)
                                : (x->end > y->end) - (x->end < y->end);
}

static const Json *header_field(const Tensor *tensor, const Json *entry, const char *key,
                                JsonKind kind) {
    const Json *found = NULL;
    for (const Json *c = entry->child; c != NULL; c = c->next) {
        if (strcmp(c->key, key) == 0 && found != NULL) {
            tensor_fail(tensor, "%s is there twice", key);
        }
        found = strcmp(c->key, key) == 0 ? c : found;
    }
    if (!json_is(found, kind)) {
        tensor_fail(tensor, "%s is missing or no %s", key,
                    kind == JSON_STRING ? "string" : "array");
    }
    return found;
}

/* Adds the tensor of one entry of the header; data[size] is what the header describes. */
static Extent safetensors_tensor(TensorStore *store, const Json *entry, const unsigned char *data,
                                 size_t size, const char *path) {
    Tensor tensor = {.file = path, .name = entry->key};
    if (entry->kind != JSON_OBJECT || strlen(entry->key) != entry->key_length) {
        tensor_fail(&tensor, "is not described by an object");
    }
    const Json *dtype = header_field(&tensor, entry, "dtype", JSON_STRING);
    const Json *offsets = header_field(&tensor, entry, "data_offsets", JSON_ARRAY);
    shape_parse(&tensor, header_field(&tensor, entry, "shape", JSON_ARRAY));
    while (tensor.dtype < DTYPE_OTHER && !json_text_is(dtype, dtypes[tensor.dtype].name)) {
        tensor.dtype++;
    }
    tensor.type = arena_copy(store->arena, dtype->text, dtype->length);
    tensor_measure(&tensor);
    Extent extent;
    if (offsets->length != 2 || !size_parse(offsets->child, &extent.begin) ||
        !size_parse(offsets->child->next, &extent.end)) {
        tensor_fail(&tensor, "data_offsets are not two sizes");
    }
    if (extent.begin > extent.end || extent.end > size) {
        tensor_fail(&tensor,
                    "its bytes %zu to %zu are not in the file, which holds %zu bytes of data",
                    extent.begin, extent.end, size);
    }
    extent.name = tensor.name = arena_copy(store->arena, entry->key, entry->key_length);
    tensor_take(store, &tensor, data + extent.begin, extent.end - extent.begin, NULL);
    return extent;
}

/* __metadata__ is an object of strings, and there once. */
static void metadata_check(const Json *header, const char *path) {
    size_t found = 0;
    for (const Json *m = header->child; m != NULL; m = m->next) {
        if (strcmp(m->key, "__metadata__") != 0) {
            continue;
        }
        bool good = m->kind == JSON_OBJECT || m->kind == JSON_NULL;
        for (const Json *c = m->child; c != NULL; c = c->next) {
            good = good && c->kind == JSON_STRING;
        }
        if (!good || found++ > 0) {
            fail(STATUS_INPUT, "%s: __metadata__ %s", path,
                 good ? "is there twice" : "is not an object of strings");
        }
    }
}

/* The tensors must fill the data without holes or overlaps, as the safetensors crate demands: a
 * hole could carry something else along, an overlap is a decompression bomb. */
static void extents_check(Extent *extents, size_t count, size_t size, const char *path) {
    size_t end = 0;
    qsort(extents, count, sizeof *extents, compare_extents);
    for (size_t i = 0; i < count; i++) {
        bool overlap = extents[i].begin < end;
        if (extents[i].begin != end) {
            fail(STATUS_INPUT, "%s: tensor '%s': %s at byte %zu of the data", path, extents[i].name,
                 overlap ? "overlaps another" : "follows a hole", overlap ? extents[i].begin : end);
        }
        end = extents[i].end;
    }
    if (end != size) {
        fail(STATUS_INPUT, "%s: %zu byte%s after the last tensor", path, size - end,
             plural(size - end));
    }
}

bool safetensors_is(const FileMap *map) {
    uint64_t header = map->size >= 9 ? read_little(map->data, 8) : 0;
    return header != 0 && header <= HEADER_LIMIT && header <= map->size - 8 && map->data[8] != 0 &&
           strchr("{ \n\r\t", map->data[8]) != NULL;
}

void safetensors_read(TensorStore *store, const FileMap *map, const char *path) {
    if (map->size < 8) {
        fail(STATUS_INPUT, "%s: not a safetensors file: %zu byte%s", path, map->size,
             plural(map->size));
    }
    uint64_t length = read_little(map->data, 8);
    if (length > map->size - 8 || length > HEADER_LIMIT) {
        fail(STATUS_INPUT,
             "%s: not a whole safetensors file: its header would take %llu bytes of %zu", path,
             (unsigned long long)length, map->size);
    }
    Arena *scratch = arena_new();
    const unsigned char *data = map->data + 8 + length;
    size_t size = map->size - 8 - (size_t)length, count = 0;
    const Json *header = json_parse(scratch, (const char *)map->data + 8, (size_t)length,
                                    arena_format(scratch, "%s: header", path));
    if (header->kind != JSON_OBJECT) {
        fail(STATUS_INPUT, "%s: not a safetensors file: its header is no object", path);
    }
    metadata_check(header, path);
    Extent *extents = arena_alloc(scratch, header->length, sizeof *extents);
    for (const Json *c = header->child; c != NULL; c = c->next) {
        if (strcmp(c->key, "__metadata__") != 0) {
            extents[count++] = safetensors_tensor(store, c, data, size, path);
        }
    }
    tensors_sort(store);
    extents_check(extents, count, size, path);
    arena_free(scratch);
}

/* ---- npz ---- */

/* The header of an npy file is a Python dict, {'descr': '<f4', 'fortran_order': False, 'shape':
 * (3, 4), }. As JSON it has other quotes and brackets, no capitals, no L after a number, and no
 * comma before a closing bracket. */
static const Json *npy_header(Arena *scratch, const char *text, size_t length, const char *name) {
    char *json = arena_alloc(scratch, length + 1, 1), quote = 0;
    size_t used = 0, comma = SIZE_MAX; /* place of a comma after which only white space came */
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (quote != 0 || c == '\'' || c == '"') {
            bool ends = quote == c;
            json[used++] = quote == 0 || ends ? '"' : c;
            quote = quote == 0 ? c : ends ? 0 : quote;
            comma = SIZE_MAX;
            continue;
        }
        if ((c == ')' || c == '}') && comma != SIZE_MAX) {
            json[comma] = ' ';
        }
        comma = c == ',' ? used : strchr(" \n\r\t", c) == NULL ? SIZE_MAX : comma;
        json[used++] = (char)(c == '('   ? '['
                              : c == ')' ? ']'
                              : c == 'T' ? 't'
                              : c == 'F' ? 'f'
                              : c == 'L' ? ' '
                                         : c);
    }
    return json_parse(scratch, json, used, name);
}

/* Adds the tensor of one member "NAME.npy"; a deflated one is unpacked into the arena. */
static void npz_member(TensorStore *store, const ZipMember *member, const char *path) {
    Arena *scratch = arena_new();
    Tensor tensor = {.file = path};
    tensor.name = arena_copy(store->arena, member->name, strlen(member->name) - 4);
    if (!utf8_valid(tensor.name, strlen(tensor.name))) {
        tensor_fail(&tensor, "a name that is no text");
    }
    char *what = arena_format(scratch, "%s: tensor '%s'", path, tensor.name);
    const unsigned char *data = zip_unpack(store->arena, member, what);
    size_t size = (size_t)member->size;
    if (size < 12 || memcmp(data, "\x93NUMPY", 6) != 0 || data[6] < 1 || data[6] > 3) {
        tensor_fail(&tensor, "not an npy file");
    }
    size_t text = data[6] == 1 ? 10 : 12,
           start = text + (size_t)read_little(data + 8, data[6] == 1 ? 2 : 4);
    if (start > size) {
        tensor_fail(&tensor, "not an npy file");
    }
    if (start - text > NPY_HEADER_MOST) {
        tensor_fail(&tensor, "an npy header of %zu bytes; at most %d are read", start - text,
                    NPY_HEADER_MOST);
    }
    what = arena_format(scratch, "%s: npy header", what);
    const Json *header = npy_header(scratch, (const char *)data + text, start - text, what);
    const Json *order = json_get(header, "fortran_order"), *shape = json_get(header, "shape");
    const char *descr = json_text(header, "descr", NULL);
    if (descr == NULL || !json_is(shape, JSON_ARRAY) || header->length != 3 ||
        (!json_is(order, JSON_TRUE) && !json_is(order, JSON_FALSE))) {
        tensor_fail(&tensor, "its npy header is none that refsae understands (plain dtypes)");
    }
    shape_parse(&tensor, shape);
    tensor.type = arena_copy(store->arena, descr, strlen(descr));
    bool little = descr[0] != 0 && strchr("<|=", descr[0]) != NULL;
    while (tensor.dtype < DTYPE_OTHER && !(little && dtypes[tensor.dtype].npy != NULL &&
                                           strcmp(descr + 1, dtypes[tensor.dtype].npy) == 0)) {
        tensor.dtype++;
    }
    size_t strides[TENSOR_MAX_RANK] = {1};
    tensor_measure(&tensor);
    for (int d = 1; d < tensor.rank; d++) {
        strides[d] = strides[d - 1] * tensor.shape[d - 1];
    }
    if (tensor.dtype != DTYPE_OTHER) {
        tensor.type = dtype_name(tensor.dtype);
    }
    tensor_take(store, &tensor, data + start, size - start,
                json_is(order, JSON_TRUE) ? strides : NULL);
    arena_free(scratch);
}

void npz_read(TensorStore *store, const Zip *zip, const char *path) {
    size_t arrays = 0;
    for (size_t i = 0; i < zip->count; i++) {
        size_t length = strlen(zip->members[i].name);
        if (length > 4 && strcmp(zip->members[i].name + length - 4, ".npy") == 0) {
            npz_member(store, &zip->members[i], path);
            arrays++;
        }
    }
    if (arrays == 0 && zip->count != 0) {
        fail(STATUS_INPUT, "%s: a zip without any .npy member", path);
    }
}

/* ---- writing ---- */

struct TensorWriter {
    OutFile *out;
    Arena *scratch;
    const char *path;
    TensorStore declared;
    uint64_t total, written;
    bool header_done;
};

TensorWriter *tensor_writer_open(const char *path) {
    OutFile *out = out_open(path);
    TensorWriter *w = arena_alloc(out->arena, 1, sizeof *w);
    w->out = out;
    w->scratch = arena_within(out->arena);
    w->path = arena_copy(out->arena, path, strlen(path));
    w->declared.arena = out->arena;
    return w;
}

void tensor_writer_declare(TensorWriter *w, const char *name, Dtype dtype, int rank,
                           const size_t *shape) {
    Tensor tensor = {.file = w->path, .dtype = dtype, .type = dtype_name(dtype), .rank = rank};
    tensor.name = arena_copy(w->out->arena, name, strlen(name));
    if (rank > TENSOR_MAX_RANK || dtype == DTYPE_OTHER || w->header_done ||
        strcmp(name, "__metadata__") == 0 || !utf8_valid(name, strlen(name))) {
        tensor_fail(&tensor, "cannot be written");
    }
    for (int i = 0; i < rank; i++) {
        tensor.shape[i] = shape[i];
    }
    w->total += tensor_measure(&tensor);
    tensors_add(&w->declared, &tensor);
}

/* The header is padded with spaces so that the data begins at a multiple of 8. */
static void header_write(TensorWriter *w) {
    MemoryStream *header = memory_open(w->out->arena);
    size_t at = 0;
    putc('{', header->stream);
    for (size_t i = 0; i < w->declared.count; i++) {
        const Tensor *t = &w->declared.tensors[i];
        size_t end = at + t->count * dtype_size(t->dtype);
        fputs(i == 0 ? "" : ",", header->stream);
        json_write_string(header->stream, t->name, strlen(t->name));
        fprintf(header->stream, ":{\"dtype\":\"%s\",\"shape\":[", t->type);
        for (int d = 0; d < t->rank; d++) {
            fprintf(header->stream, "%s%zu", d == 0 ? "" : ",", t->shape[d]);
        }
        fprintf(header->stream, "],\"data_offsets\":[%zu,%zu]}", at, end);
        at = end;
    }
    putc('}', header->stream);
    tensors_sort(&w->declared); /* names no tensor twice */
    const char *text = memory_text(header);
    uint64_t padded = ((uint64_t)header->length + 7) / 8 * 8;
    unsigned char length[8];
    little_copy(length, &padded, 8, 1);
    fwrite(length, 8, 1, w->out->stream);
    fprintf(w->out->stream, "%-*s", (int)padded, text);
    w->header_done = true;
}

void tensor_writer_data(TensorWriter *w, const void *data, size_t size, size_t count) {
    size_t bytes = size_product(size, count);
    if (!w->header_done) {
        header_write(w);
    }
    if (bytes > w->total - w->written) {
        fail(STATUS_INPUT, "%s: more data than was declared", w->path);
    }
    arena_reset(w->scratch);
    data = little_elements(w->scratch, data, size, count);
    if (bytes != 0 && fwrite(data, 1, bytes, w->out->stream) != bytes) {
        fail(STATUS_RESOURCE, "%s: cannot write: %s", w->path, strerror(errno));
    }
    w->written += bytes;
}

void tensor_writer_commit(TensorWriter *w) {
    if (!w->header_done) {
        header_write(w);
    }
    if (w->written != w->total) {
        fail(STATUS_INPUT, "%s: less data than was declared", w->path);
    }
    out_commit(w->out);
}

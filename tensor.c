/* tensor.c: reads safetensors and npz, writes safetensors. See tensor.h.
 *
 *   safetensors   u64 n | n bytes of JSON {name: {dtype, shape, data_offsets}} | data
 *   index         JSON {"weight_map": {name: shard}}
 *   npz           zip of NAME.npy: "\x93NUMPY" version, u16 or u32 n | n bytes of a Python dict |
 * data
 *   pth           torch.save's zip: pth.c
 *
 * Every reader fills a list of tensors whose data stays in the map; tensors_open sorts it by name.
 */
#include "tensor.h"

#include "json.h"
#include "pth.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- dtypes ---- */

typedef struct DtypeEntry {
    const char *name; /* in safetensors */
    const char *npy;  /* after the byte order */
    unsigned bits;
    Dtype dtype;
} DtypeEntry;

static const DtypeEntry dtypes[] = {
    {"F32", "f4", 32, DTYPE_F32},          {"BF16", NULL, 16, DTYPE_BF16},
    {"F16", "f2", 16, DTYPE_F16},          {"F64", "f8", 64, DTYPE_F64},
    {"I64", "i8", 64, DTYPE_I64},          {"I32", "i4", 32, DTYPE_I32},
    {"I16", "i2", 16, DTYPE_I16},          {"I8", "i1", 8, DTYPE_I8},
    {"U64", "u8", 64, DTYPE_U64},          {"U32", "u4", 32, DTYPE_U32},
    {"U16", "u2", 16, DTYPE_U16},          {"U8", "u1", 8, DTYPE_U8},
    {"BOOL", "b1", 8, DTYPE_BOOL},         {"F8_E4M3", NULL, 8, DTYPE_OTHER},
    {"F8_E5M2", NULL, 8, DTYPE_OTHER},     {"F8_E8M0", NULL, 8, DTYPE_OTHER},
    {"F8_E4M3FNUZ", NULL, 8, DTYPE_OTHER}, {"F8_E5M2FNUZ", NULL, 8, DTYPE_OTHER},
    {"C64", NULL, 64, DTYPE_OTHER},        {"F4", NULL, 4, DTYPE_OTHER},
    {"F6_E2M3", NULL, 6, DTYPE_OTHER},     {"F6_E3M2", NULL, 6, DTYPE_OTHER}};

enum {
    DTYPE_ENTRIES = sizeof dtypes / sizeof *dtypes
};

size_t dtype_size(Dtype dtype) {
    return dtype == DTYPE_OTHER ? 0 : dtypes[dtype].bits / 8; /* the table begins in enum order */
}

const char *dtype_name(Dtype dtype) {
    return dtype == DTYPE_OTHER ? "another type" : dtypes[dtype].name;
}

/* ---- the list that readers fill ---- */

void tensor_list_add(TensorList *list, const Tensor *tensor) {
    list->items =
        arena_grow(list->arena, list->items, &list->room, list->count + 1, sizeof *list->items);
    list->items[list->count++] = *tensor;
}

static int compare_tensors(const void *a, const void *b) {
    return strcmp(((const Tensor *)a)->name, ((const Tensor *)b)->name);
}

static void list_sort(TensorList *list) {
    if (list->count > 1) {
        qsort(list->items, list->count, sizeof *list->items, compare_tensors);
    }
    for (size_t i = 1; i < list->count; i++) {
        if (strcmp(list->items[i - 1].name, list->items[i].name) == 0) {
            fail(STATUS_INPUT, "%s: tensor '%s': is there twice", list->items[i].file,
                 list->items[i].name);
        }
    }
}

static const Tensor *list_find(const Tensor *items, size_t count, const char *name) {
    Tensor key = {.name = name};
    return count == 0 ? NULL : bsearch(&key, items, count, sizeof *items, compare_tensors);
}

/* A part of a file that belongs to one tensor or member. */
typedef struct Span {
    uint64_t begin, end;
    const char *name;
} Span;

static int compare_spans(const void *a, const void *b) {
    const Span *x = a, *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return x->end < y->end ? -1 : x->end > y->end;
}

void tensor_gather(Tensor *tensor, const size_t *strides, size_t element, Arena *arena) {
    size_t index[TENSOR_MAX_RANK] = {0}, from = 0;
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

bool tensor_shape_bytes(const size_t *shape, int rank, unsigned bits, size_t *count,
                        size_t *bytes) {
    size_t product = 1;
    for (int i = 0; i < rank; i++) {
        if (!size_mul(&product, product, shape[i])) {
            return false;
        }
    }
    *count = product;
    if (!size_mul(bytes, product, bits)) {
        return size_mul(bytes, product, bits / 8) && bits % 8 == 0;
    }
    bool whole = *bytes % 8 == 0;
    *bytes /= 8;
    return whole;
}

/* ---- safetensors ---- */

enum {
    HEADER_LIMIT = 100000000
}; /* bytes, as the safetensors crate has it */

/* A number that is written as plain digits: neither -1 nor 1.0 nor 1e3 is a size. */
static bool json_u64(const Json *value, uint64_t *out) {
    int64_t number;
    if (!json_is(value, JSON_NUMBER) || strspn(value->text, "0123456789") != value->length ||
        !json_int64(value, &number)) {
        return false;
    }
    *out = (uint64_t)number;
    return true;
}

/* Adds the tensor of one entry of the header; returns its place in the data. */
static Span safetensors_tensor(const Json *entry, const FileMap *map, uint64_t data_start,
                               const char *path, Arena *arena, TensorList *list) {
    Tensor tensor = {.file = path};
    Span span;
    const char *name = entry->key;
    const Json *dtype = NULL, *shape = NULL, *offsets = NULL;
    if (entry->kind != JSON_OBJECT || strlen(name) != entry->key_length) {
        fail(STATUS_INPUT, "%s: tensor '%s': is not described by an object", path, name);
    }
    for (const Json *c = entry->child; c != NULL; c = c->next) {
        const Json **field = strcmp(c->key, "dtype") == 0          ? &dtype
                             : strcmp(c->key, "shape") == 0        ? &shape
                             : strcmp(c->key, "data_offsets") == 0 ? &offsets
                                                                   : NULL;
        if (field != NULL && *field != NULL) {
            fail(STATUS_INPUT, "%s: tensor '%s': %s is there twice", path, name, c->key);
        }
        if (field != NULL) {
            *field = c;
        }
    }
    int known = 0;
    while (known < DTYPE_ENTRIES && !json_text_is(dtype, dtypes[known].name)) {
        known++;
    }
    if (known == DTYPE_ENTRIES) {
        fail(STATUS_INPUT, "%s: tensor '%s': unknown dtype '%s'", path, name,
             json_is(dtype, JSON_STRING) ? dtype->text : "");
    }
    tensor.dtype = dtypes[known].dtype;
    tensor.type = dtypes[known].name;
    if (!json_is(shape, JSON_ARRAY)) {
        fail(STATUS_INPUT, "%s: tensor '%s': shape is missing", path, name);
    }
    if (shape->length > TENSOR_MAX_RANK) {
        fail(STATUS_INPUT, "%s: tensor '%s': %zu dimensions; at most %d are read", path, name,
             shape->length, TENSOR_MAX_RANK);
    }
    for (const Json *c = shape->child; c != NULL; c = c->next) {
        uint64_t size;
        if (!json_u64(c, &size) || size > SIZE_MAX) {
            fail(STATUS_INPUT, "%s: tensor '%s': its shape is not made of sizes", path, name);
        }
        tensor.shape[tensor.rank++] = (size_t)size;
    }
    size_t bytes;
    if (!tensor_shape_bytes(tensor.shape, tensor.rank, dtypes[known].bits, &tensor.count, &bytes)) {
        fail(STATUS_INPUT, "%s: tensor '%s': its shape overflows", path, name);
    }
    if (!json_is(offsets, JSON_ARRAY) || offsets->length != 2 ||
        !json_u64(offsets->child, &span.begin) || !json_u64(offsets->child->next, &span.end)) {
        fail(STATUS_INPUT, "%s: tensor '%s': data_offsets are not two sizes", path, name);
    }
    if (span.begin > span.end || span.end > map->size - data_start) {
        fail(STATUS_INPUT,
             "%s: tensor '%s': its bytes %llu to %llu are not in the file, which holds %llu "
             "bytes of data",
             path, name, (unsigned long long)span.begin, (unsigned long long)span.end,
             (unsigned long long)(map->size - data_start));
    }
    if (span.end - span.begin != bytes) {
        fail(STATUS_INPUT, "%s: tensor '%s': its shape takes %zu bytes, but the file gives it %llu",
             path, name, bytes, (unsigned long long)(span.end - span.begin));
    }
    tensor.data = map->data + data_start + span.begin;
    tensor.name = arena_copy(arena, name, entry->key_length);
    span.name = tensor.name;
    tensor_list_add(list, &tensor);
    return span;
}

static void metadata_check(const Json *metadata, const char *path) {
    bool good = metadata->kind == JSON_OBJECT || metadata->kind == JSON_NULL;
    for (const Json *c = metadata->child; c != NULL && good; c = c->next) {
        good = c->kind == JSON_STRING;
    }
    if (!good) {
        fail(STATUS_INPUT, "%s: __metadata__ is not an object of strings", path);
    }
}

/* The tensors must fill the data without holes or overlaps, as the safetensors crate demands: a
 * hole could carry something else along, an overlap is a decompression bomb. */
static void spans_check(Span *spans, size_t count, uint64_t size, const char *path) {
    uint64_t end = 0;
    if (count > 1) {
        qsort(spans, count, sizeof *spans, compare_spans);
    }
    for (size_t i = 0; i < count; i++) {
        if (spans[i].begin != end) {
            fail(STATUS_INPUT, "%s: tensor '%s': %s at byte %llu of the data", path, spans[i].name,
                 spans[i].begin < end ? "overlaps another" : "follows a hole",
                 (unsigned long long)(spans[i].begin < end ? spans[i].begin : end));
        }
        end = spans[i].end;
    }
    if (end != size) {
        fail(STATUS_INPUT, "%s: %llu bytes after the last tensor", path,
             (unsigned long long)(size - end));
    }
}

static void safetensors_read(const FileMap *map, const char *path, Arena *arena, Arena *scratch,
                             TensorList *list) {
    if (map->size < 8) {
        fail(STATUS_INPUT, "%s: not a safetensors file: %zu bytes", path, map->size);
    }
    if (map->size < 1024 && memcmp(map->data, "version ", 8) == 0) {
        fail(STATUS_INPUT, "%s: is a Git LFS pointer; fetch the file itself", path);
    }
    uint64_t size = read_u64(map->data);
    if (size > map->size - 8 || size > HEADER_LIMIT) {
        fail(STATUS_INPUT,
             "%s: not a whole safetensors file: its header would take %llu bytes of %zu", path,
             (unsigned long long)size, map->size);
    }
    char *name = arena_format(scratch, "%s: header", path);
    const Json *header = json_parse(scratch, (const char *)map->data + 8, (size_t)size, name);
    if (header->kind != JSON_OBJECT) {
        fail(STATUS_INPUT, "%s: not a safetensors file: its header is no object", path);
    }
    Span *spans = arena_alloc(scratch, header->length, sizeof *spans);
    size_t count = 0;
    bool metadata = false;
    for (const Json *c = header->child; c != NULL; c = c->next) {
        if (strcmp(c->key, "__metadata__") == 0) {
            metadata_check(c, path);
            if (metadata) {
                fail(STATUS_INPUT, "%s: __metadata__ is there twice", path);
            }
            metadata = true;
            continue;
        }
        spans[count++] = safetensors_tensor(c, map, 8 + size, path, arena, list);
    }
    list_sort(list);
    spans_check(spans, count, map->size - 8 - size, path);
}

/* ---- index and shards ---- */

typedef struct Placement {
    const char *shard, *name;
} Placement;

static int compare_placements(const void *a, const void *b) {
    const Placement *x = a, *y = b;
    int order = strcmp(x->shard, y->shard);
    return order != 0 ? order : strcmp(x->name, y->name);
}

/* A shard lies beside its index; a name that leads elsewhere is not followed. */
static bool shard_name_is_plain(const Json *value) {
    return json_is(value, JSON_STRING) && value->length != 0 &&
           strlen(value->text) == value->length && strpbrk(value->text, "/\\") == NULL &&
           strcmp(value->text, ".") != 0 && strcmp(value->text, "..") != 0;
}

/* Reads one shard and takes those of its tensors that the index places there. */
static void shard_read(TensorStore *store, const char *path, const Placement *places, size_t count,
                       const char *index_path, TensorList *list) {
    Arena *scratch = arena_new();
    TensorList found = {.arena = scratch};
    FileMap *map = &store->maps[store->map_count++];
    *map = file_map(store->arena, path);
    safetensors_read(map, path, store->arena, scratch, &found);
    for (size_t i = 0; i < count; i++) {
        const Tensor *tensor = list_find(found.items, found.count, places[i].name);
        if (tensor == NULL) {
            fail(STATUS_INPUT, "%s: tensor '%s': is not in its shard %s", index_path,
                 places[i].name, places[i].shard);
        }
        tensor_list_add(list, tensor);
    }
    arena_free(scratch);
}

static void index_read(TensorStore *store, const FileMap *map, const char *path, Arena *scratch,
                       TensorList *list) {
    const Json *root = json_parse(scratch, (const char *)map->data, map->size, path);
    const Json *weights = json_get(root, "weight_map");
    if (!json_is(weights, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: neither safetensors nor an index with a weight_map", path);
    }
    size_t count = 0, shards = 0;
    Placement *places = arena_alloc(scratch, weights->length, sizeof *places);
    for (const Json *c = weights->child; c != NULL; c = c->next) {
        if (!shard_name_is_plain(c) || strlen(c->key) != c->key_length) {
            fail(STATUS_INPUT, "%s: tensor '%s': '%s' is no name of a shard beside it", path,
                 c->key, json_is(c, JSON_STRING) ? c->text : "");
        }
        places[count++] = (Placement){.shard = c->text, .name = c->key};
    }
    if (count > 1) {
        qsort(places, count, sizeof *places, compare_placements);
    }
    for (size_t i = 0; i < count; i++) {
        shards += i == 0 || strcmp(places[i - 1].shard, places[i].shard) != 0;
    }
    store->maps = arena_alloc(store->arena, shards, sizeof *store->maps);
    const char *slash = strrchr(path, '/');
    int directory = slash == NULL ? 0 : (int)(slash - path) + 1;
    for (size_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && strcmp(places[i].shard, places[end].shard) == 0; end++) {
        }
        const char *shard = arena_format(store->arena, "%.*s%s", directory, path, places[i].shard);
        shard_read(store, shard, places + i, end - i, path, list);
    }
}

/* ---- npy ---- */

/* The header is a Python dict of three entries; this reads just that form of Python. */
typedef struct NpyHeader {
    char descr[16];
    bool has_descr, has_order, has_shape, fortran;
    size_t shape[TENSOR_MAX_RANK];
    int rank;
} NpyHeader;

static void npy_space(const char **s, const char *end) {
    while (*s < end && (**s == ' ' || **s == '\n' || **s == '\t' || **s == '\r')) {
        (*s)++;
    }
}

static bool npy_char(const char **s, const char *end, char c) {
    npy_space(s, end);
    bool same = *s < end && **s == c;
    *s += same;
    return same;
}

static bool npy_word(const char **s, const char *end, const char *word) {
    size_t n = strlen(word);
    npy_space(s, end);
    bool same = (size_t)(end - *s) >= n && memcmp(*s, word, n) == 0;
    *s += same ? n : 0;
    return same;
}

/* A quoted string without escapes. */
static bool npy_string(const char **s, const char *end, char *out, size_t room) {
    npy_space(s, end);
    if (*s == end || (**s != '\'' && **s != '"')) {
        return false;
    }
    const char *start = *s + 1, *close = memchr(start, **s, (size_t)(end - start));
    if (close == NULL || (size_t)(close - start) >= room) {
        return false;
    }
    memcpy(out, start, (size_t)(close - start));
    out[close - start] = 0;
    *s = close + 1;
    return true;
}

static bool npy_shape(const char **s, const char *end, NpyHeader *header) {
    if (!npy_char(s, end, '(')) {
        return false;
    }
    while (!npy_char(s, end, ')')) {
        size_t value = 0;
        const char *start = *s;
        for (; *s < end && **s >= '0' && **s <= '9'; (*s)++) {
            if (!size_mul(&value, value, 10) || !size_add(&value, value, (size_t)(**s - '0'))) {
                return false;
            }
        }
        if (*s == start || header->rank == TENSOR_MAX_RANK) {
            return false;
        }
        header->shape[header->rank++] = value;
        npy_char(s, end, 'L'); /* Python 2's long */
        if (!npy_char(s, end, ',')) {
            return npy_char(s, end, ')');
        }
    }
    return true;
}

static bool npy_dict(const char *s, const char *end, NpyHeader *header) {
    if (!npy_char(&s, end, '{')) {
        return false;
    }
    while (!npy_char(&s, end, '}')) {
        char key[16];
        if (!npy_string(&s, end, key, sizeof key) || !npy_char(&s, end, ':')) {
            return false;
        }
        if (strcmp(key, "descr") == 0 && !header->has_descr) {
            header->has_descr = npy_string(&s, end, header->descr, sizeof header->descr);
        } else if (strcmp(key, "shape") == 0 && !header->has_shape) {
            header->has_shape = npy_shape(&s, end, header);
        } else if (strcmp(key, "fortran_order") == 0 && !header->has_order) {
            header->fortran = npy_word(&s, end, "True");
            header->has_order = header->fortran || npy_word(&s, end, "False");
        } else {
            return false;
        }
        if (!npy_char(&s, end, ',')) {
            if (!npy_char(&s, end, '}')) {
                return false;
            }
            break;
        }
    }
    npy_space(&s, end);
    return s == end && header->has_descr && header->has_shape && header->has_order;
}

/* Bytes before the data, from the first 12 bytes; 0 if this is no npy file. */
static size_t npy_data_start(const unsigned char *data, size_t size) {
    if (size < 12 || memcmp(data, "\x93NUMPY", 6) != 0 || data[6] < 1 || data[6] > 3) {
        return 0;
    }
    return data[6] == 1 ? 10 + (size_t)read_u16(data + 8) : 12 + (size_t)read_u32(data + 8);
}

/* Understands the header in data[0 .. start) and sets all of `tensor` but its data. `size` is that
 * of the whole member. Whether the data is in Fortran's order. */
static bool npy_header(Tensor *tensor, const unsigned char *data, size_t start, size_t size,
                       Arena *arena) {
    NpyHeader header = {.rank = 0};
    const char *text = (const char *)data + (data[6] == 1 ? 10 : 12);
    if (!npy_dict(text, (const char *)data + start, &header)) {
        fail(STATUS_INPUT,
             "%s: tensor '%s': its npy header is none that refsae understands (plain dtypes, at "
             "most %d dimensions)",
             tensor->file, tensor->name, TENSOR_MAX_RANK);
    }
    int known = 0;
    const char *descr = header.descr;
    while (known < DTYPE_ENTRIES &&
           (dtypes[known].npy == NULL || strcmp(descr + 1, dtypes[known].npy) != 0)) {
        known++;
    }
    if (known < DTYPE_ENTRIES && descr[0] == '>' && dtypes[known].bits > 8) {
        fail(STATUS_INPUT, "%s: tensor '%s': big-endian dtype '%s'", tensor->file, tensor->name,
             descr);
    }
    if (known < DTYPE_ENTRIES && strchr("<=|>", descr[0]) == NULL) {
        known = DTYPE_ENTRIES;
    }
    tensor->rank = header.rank;
    memcpy(tensor->shape, header.shape, sizeof tensor->shape);
    size_t bytes;
    unsigned bits = known < DTYPE_ENTRIES ? dtypes[known].bits : 0;
    if (!tensor_shape_bytes(tensor->shape, tensor->rank, bits, &tensor->count, &bytes)) {
        fail(STATUS_INPUT, "%s: tensor '%s': its shape overflows", tensor->file, tensor->name);
    }
    if (known == DTYPE_ENTRIES) { /* strings, objects: held by name, never read */
        tensor->dtype = DTYPE_OTHER;
        tensor->type = arena_copy(arena, descr, strlen(descr));
        return header.fortran;
    }
    tensor->dtype = dtypes[known].dtype;
    tensor->type = dtypes[known].name;
    if (size - start != bytes) {
        fail(STATUS_INPUT, "%s: tensor '%s': its shape takes %zu bytes, but the file gives it %zu",
             tensor->file, tensor->name, bytes, size - start);
    }
    return header.fortran;
}

/* ---- npz ---- */

/* Adds the tensor of one member "NAME.npy". A stored member stays in the map; a deflated one is
 * unpacked into the arena, after its first bytes have shown that the shape agrees with the declared
 * size. */
static void npz_member(const ZipMember *member, const char *name, const char *path, Arena *arena,
                       TensorList *list) {
    Tensor tensor = {.file = path, .name = name};
    bool fortran;
    size_t size = (size_t)member->size;
    const unsigned char *data = member->data;
    unsigned char head[12];
    size_t have = size;
    if (member->method == 8) {
        have = inflate_prefix(head, sizeof head, member->data, (size_t)member->packed);
        data = head;
    }
    size_t start = npy_data_start(data, have);
    if (start == 0 || start > size) {
        fail(STATUS_INPUT, "%s: tensor '%s': not an npy file", path, name);
    }
    if (member->method == 8) {
        Arena *scratch = arena_new();
        unsigned char *prefix = arena_alloc(scratch, start, 1);
        if (inflate_prefix(prefix, start, member->data, (size_t)member->packed) != start) {
            fail(STATUS_INPUT, "%s: tensor '%s': broken deflate data", path, name);
        }
        fortran = npy_header(&tensor, prefix, start, size, arena);
        arena_free(scratch);
        if (tensor.dtype == DTYPE_OTHER) {
            tensor_list_add(list, &tensor);
            return;
        }
        char *what = arena_format(arena, "%s: tensor '%s'", path, name);
        data = zip_unpack(arena, member, what);
    } else {
        fortran = npy_header(&tensor, data, start, size, arena);
    }
    tensor.data = data + start;
    if (fortran && tensor.rank > 1 && tensor.count > 1 && tensor.dtype != DTYPE_OTHER) {
        size_t strides[TENSOR_MAX_RANK] = {1};
        for (int d = 1; d < tensor.rank; d++) {
            strides[d] = strides[d - 1] * tensor.shape[d - 1];
        }
        tensor_gather(&tensor, strides, dtype_size(tensor.dtype), arena);
    }
    tensor_list_add(list, &tensor);
}

static void npz_read(const Zip *zip, const char *path, Arena *arena, TensorList *list) {
    bool arrays = false;
    for (size_t i = 0; i < zip->count; i++) {
        const char *name = zip->members[i].name;
        size_t length = strlen(name);
        if (length <= 4 || strcmp(name + length - 4, ".npy") != 0) {
            continue;
        }
        if (!utf8_valid(name, length)) {
            fail(STATUS_INPUT, "%s: tensor '%s': a name that is no text", path, name);
        }
        const char *stem = arena_copy(arena, name, length - 4);
        arrays = true;
        npz_member(&zip->members[i], stem, path, arena, list);
    }
    if (!arrays && zip->count != 0) {
        fail(STATUS_INPUT, "%s: a zip without any .npy member", path);
    }
}

/* ---- opening ---- */

/* By content: a safetensors header is one whose length fits and which starts as an object; the
 * length may begin with any bytes, so this is asked before "PK" (a zip) and '{' (an index). */
static void store_read(TensorStore *store, const char *path, Arena *scratch, TensorList *list) {
    FileMap map = file_map(store->arena, path);
    const unsigned char *data = map.data;
    uint64_t header = map.size >= 9 ? read_u64(data) : 0;
    bool safetensors = header != 0 && header <= HEADER_LIMIT && header <= map.size - 8 &&
                       strchr("{ \n\r\t", data[8]) != NULL && data[8] != 0;
    bool zip = zip_is(&map);
    size_t text = 0;
    while (text < map.size && text < 64 && strchr(" \n\r\t\xEF\xBB\xBF", data[text]) != NULL &&
           data[text] != 0) {
        text++;
    }
    if (!safetensors && !zip && map.size > text && data[text] == '{' &&
        memchr(data, 0, map.size) == NULL) {
        index_read(store, &map, path, scratch, list);
        return;
    }
    store->maps = arena_alloc(store->arena, 1, sizeof *store->maps);
    store->maps[store->map_count++] = map;
    if (safetensors || !zip) {
        if (!safetensors) {
            pth_refuse_legacy(&map, path);
        }
        safetensors_read(&map, path, store->arena, scratch, list);
        return;
    }
    Zip archive = zip_open(scratch, &map, path);
    if (pth_is(&archive)) {
        pth_read(&archive, &map, path, store->arena, scratch, list);
    } else {
        npz_read(&archive, path, store->arena, list);
    }
}

static void store_resolve(TensorStore *store, const char *path) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    store->path = arena_copy(store->arena, path, strlen(path));
    for (size_t i = 0; i < 2 && path_is_directory(path); i++) {
        const char *file = path_join(store->arena, path, names[i]);
        if (path_exists(file)) {
            store->path = file;
            return;
        }
    }
    if (path_is_directory(path)) {
        fail(STATUS_INPUT, "%s: holds neither %s nor %s", path, names[0], names[1]);
    }
}

void tensors_open(TensorStore *store, Arena *arena, const char *path) {
    Arena *scratch = arena_new();
    TensorList list = {.arena = scratch};
    *store = (TensorStore){.arena = arena};
    store_resolve(store, path);
    store_read(store, store->path, scratch, &list);
    list_sort(&list);
    store->tensors = arena_alloc(arena, list.count, sizeof *store->tensors);
    store->count = list.count;
    if (list.count != 0) {
        memcpy(store->tensors, list.items, list.count * sizeof *list.items);
    }
    arena_free(scratch);
}

const Tensor *tensors_find(const TensorStore *store, const char *name) {
    return list_find(store->tensors, store->count, name);
}

/* "[64, 16]" */
static void shape_format(char text[24 * TENSOR_MAX_RANK], int rank, const size_t *shape) {
    size_t used = 1;
    text[0] = '[';
    for (int i = 0; i < rank && i < TENSOR_MAX_RANK; i++) {
        used += (size_t)snprintf(text + used, 24, "%s%zu", i == 0 ? "" : ", ", shape[i]);
    }
    memcpy(text + used, "]", 2);
}

const Tensor *tensors_need(const TensorStore *store, const char *name, int rank,
                           const size_t *shape) {
    char expected[24 * TENSOR_MAX_RANK], found[24 * TENSOR_MAX_RANK];
    const Tensor *t = tensors_find(store, name);
    shape_format(expected, rank, shape);
    if (t == NULL) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected %s, not found", store->path, name, expected);
    }
    if (t->rank != rank ||
        (rank != 0 && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) != 0)) {
        shape_format(found, t->rank, t->shape);
        fail(STATUS_INPUT, "%s: tensor '%s': expected %s, found %s", t->file, name, expected,
             found);
    }
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F16) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected F32, BF16 or F16, found %s", t->file, name,
             t->type);
    }
    return t;
}

/* ---- writing ---- */

struct TensorWriter {
    OutFile *out;
    const char *path;
    TensorList declared;
    MemoryStream *metadata; /* members of __metadata__; NULL: none */
    uint64_t total, written;
    bool header_done;
};

TensorWriter *tensor_writer_open(const char *path) {
    OutFile *out = out_open(path);
    TensorWriter *w = arena_alloc(out->arena, 1, sizeof *w);
    w->out = out;
    w->path = arena_copy(out->arena, path, strlen(path));
    w->declared.arena = out->arena;
    return w;
}

void tensor_writer_declare(TensorWriter *w, const char *name, Dtype dtype, int rank,
                           const size_t *shape) {
    Tensor tensor = {.file = w->path, .dtype = dtype, .type = dtype_name(dtype), .rank = rank};
    size_t bytes;
    if (rank < 0 || rank > TENSOR_MAX_RANK || dtype == DTYPE_OTHER || w->header_done ||
        strcmp(name, "__metadata__") == 0 || !utf8_valid(name, strlen(name)) ||
        !tensor_shape_bytes(shape, rank, dtypes[dtype].bits, &tensor.count, &bytes) ||
        bytes > UINT64_MAX - w->total) {
        fail(STATUS_INPUT, "%s: tensor '%s': cannot be written", w->path, name);
    }
    for (int i = 0; i < rank; i++) {
        tensor.shape[i] = shape[i];
    }
    tensor.name = arena_copy(w->out->arena, name, strlen(name));
    w->total += bytes;
    tensor_list_add(&w->declared, &tensor);
}

void tensor_writer_metadata(TensorWriter *w, const char *key, const char *value) {
    if (w->metadata == NULL) {
        w->metadata = memory_open(w->out->arena);
    } else {
        putc(',', w->metadata->stream);
    }
    json_write_string(w->metadata->stream, key, strlen(key));
    putc(':', w->metadata->stream);
    json_write_string(w->metadata->stream, value, strlen(value));
}

static void header_print(TensorWriter *w, FILE *stream) {
    uint64_t at = 0;
    putc('{', stream);
    if (w->metadata != NULL) {
        fprintf(stream, "\"__metadata__\":{%s}%s", memory_text(w->metadata),
                w->declared.count == 0 ? "" : ",");
    }
    for (size_t i = 0; i < w->declared.count; i++) {
        const Tensor *t = &w->declared.items[i];
        fputs(i == 0 ? "" : ",", stream);
        json_write_string(stream, t->name, strlen(t->name));
        fprintf(stream, ":{\"dtype\":\"%s\",\"shape\":[", t->type);
        for (int d = 0; d < t->rank; d++) {
            fprintf(stream, "%s%zu", d == 0 ? "" : ",", t->shape[d]);
        }
        uint64_t end = at + (uint64_t)t->count * dtype_size(t->dtype);
        fprintf(stream, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                (unsigned long long)end);
        at = end;
    }
    putc('}', stream);
}

/* The header is padded with spaces so that the data begins at a multiple of 8. */
static void header_write(TensorWriter *w) {
    MemoryStream *header = memory_open(w->out->arena);
    header_print(w, header->stream);
    list_sort(&w->declared); /* names no tensor twice */
    const char *text = memory_text(header);
    uint64_t padded = ((uint64_t)header->length + 7) / 8 * 8;
    fwrite(&padded, 8, 1, w->out->stream);
    fprintf(w->out->stream, "%s%*s", text, (int)(padded - header->length), "");
    w->header_done = true;
}

void tensor_writer_data(TensorWriter *w, const void *data, size_t bytes) {
    if (!w->header_done) {
        header_write(w);
    }
    if (bytes > w->total - w->written) {
        fail(STATUS_INPUT, "%s: more data than was declared", w->path);
    }
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

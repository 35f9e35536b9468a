/* checkpoint.c: see checkpoint.h. An index is JSON {"weight_map": {name of a tensor: shard}}. */
#include "checkpoint.h"

#include "hooks.h"
#include "json.h"

#include <stdlib.h>
#include <string.h>

static const FileMap *add_map(TensorStore *store, FileMap map) {
    store->maps = arena_grow(store->arena, store->maps, &store->map_room, store->map_count + 1,
                             sizeof *store->maps);
    store->maps[store->map_count] = map;
    return &store->maps[store->map_count++];
}

/* ==== index and shards ==== */

/* A shard lies beside its index; a name that leads elsewhere is not followed. */
static bool shard_name_is_plain(const Json *value) {
    return json_is(value, JSON_STRING) && value->length != 0 &&
           strlen(value->text) == value->length && strpbrk(value->text, "/\\") == NULL &&
           strcmp(value->text, ".") != 0 && strcmp(value->text, "..") != 0;
}

/* Takes from each shard the tensors that the index places there. */
static void index_read(TensorStore *store, const FileMap *map, const char *path) {
    Arena *scratch = arena_new();
    const Json *root = json_parse(scratch, (const char *)map->data, map->size, path);
    const Json *weights = json_get(root, "weight_map");
    if (!json_is(weights, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: neither safetensors nor an index with a weight_map", path);
    }
    struct Place {
        const char *shard, *name;
    } *places = arena_alloc(scratch, weights->length, sizeof *places);
    size_t count = 0;
    for (const Json *c = weights->child; c != NULL; c = c->next) {
        if (!shard_name_is_plain(c) || strlen(c->key) != c->key_length) {
            fail(STATUS_INPUT, "%s: tensor '%s': '%s' is no name of a shard beside it", path,
                 c->key, json_is(c, JSON_STRING) ? c->text : "");
        }
        places[count++] = (struct Place){c->text, c->key};
    }
    qsort(places, count, sizeof *places, compare_names);
    const char *slash = strrchr(path, '/');
    int directory = slash == NULL ? 0 : (int)(slash - path) + 1;
    TensorStore shard = {.arena = store->arena};
    for (size_t i = 0; i < count; i++) {
        const char *name = places[i].name, *in = places[i].shard;
        if (i == 0 || strcmp(places[i - 1].shard, in) != 0) {
            const char *file = arena_format(store->arena, "%.*s%s", directory, path, in);
            shard.count = 0;
            safetensors_read(&shard, add_map(store, file_map(store->arena, file)), file);
        }
        const Tensor *tensor = tensors_find(&shard, name);
        if (tensor == NULL) {
            fail(STATUS_INPUT, "%s: tensor '%s': is not in its shard %s", path, name, in);
        }
        tensors_add(store, tensor);
    }
    arena_free(scratch);
}

/* ==== torch.save ====
 *
 * What it writes since PyTorch 1.6: a zip with one pickle and a member for each storage. The pickle
 * is read, never executed.
 *
 *   NAME/data.pkl    the object, a pickle whose tensors refer to storages by key
 *   NAME/data/KEY    the bytes of a storage
 *   NAME/byteorder   "little"; NAME/version   "3"
 *
 *   pickle           a program for a stack machine that builds objects
 *   storage          persistent id ('storage', torch.FloatStorage, KEY, location, count)
 *   tensor           _rebuild_tensor_v2(storage, offset, size, stride, ...), counted in elements
 *
 * A pickle can name any function of any Python module and call it. Here a name is looked up in the
 * table below and nothing else happens; what is not in the table is refused by name, and so is
 * every opcode that state dicts do not need. Pickled objects may refer to each other at will
 * (cycles, exponentially many paths), so the machine counts what it makes and the walk over the
 * result has a depth and a number of steps that it does not exceed. */

enum {
    OPCODES_MOST = 1 << 24,
    VALUES_MOST = 1 << 21,
    MEMO_MOST = 1 << 22,
    VISITS_MOST = 4,         /* of the walk, to each object on average */
    DEPTH_MOST = 32,         /* of dicts in dicts */
    NAME_MOST = 1024,        /* bytes of a tensor's name */
    PICKLE_MOST = 256 << 20, /* bytes, */
    DEFLATED_MOST = 8,       /* and times the file's size */
    TENSORS_MOST = 16        /* times the file's size, and MiB, of tensors and their names */
};

typedef enum ValueKind {
    VALUE_OTHER, /* None, booleans, floats, integers beyond 64 bits: not needed, so not kept */
    VALUE_INTEGER,
    VALUE_STRING,
    VALUE_TUPLE,
    VALUE_LIST,
    VALUE_DICT,    /* items: key, value, key, value ... */
    VALUE_STORAGE, /* items: its persistent id */
    VALUE_TENSOR,  /* items: the arguments of its function */
    VALUE_CLASS,   /* of a storage; this and what follows are looked up by name */
    VALUE_DTYPE,
    VALUE_DICT_CLASS,
    VALUE_FIRST, /* a function that gives back what it is given first */
    VALUE_TENSOR_V2,
    VALUE_TENSOR_V3
} ValueKind;

typedef struct Value {
    ValueKind kind;
    Dtype dtype;      /* of a class or dtype */
    const char *text; /* string: in the pickle, without a 0 after it; else the name looked up */
    struct Value **items;
    size_t count, room; /* bytes of a string, items */
    int64_t number;
} Value;

static const Value globals[] = {
    {VALUE_DICT_CLASS, DTYPE_OTHER, .text = "collections.OrderedDict"},
    {VALUE_FIRST, DTYPE_OTHER, .text = "torch.Size"},
    {VALUE_TENSOR_V2, DTYPE_OTHER, .text = "torch._utils._rebuild_tensor_v2"},
    {VALUE_TENSOR_V3, DTYPE_OTHER, .text = "torch._utils._rebuild_tensor_v3"},
    {VALUE_FIRST, DTYPE_OTHER, .text = "torch._utils._rebuild_parameter"},
    {VALUE_FIRST, DTYPE_OTHER, .text = "torch._utils._rebuild_parameter_with_state"},
    {VALUE_CLASS, DTYPE_F32, .text = "torch.FloatStorage"},
    {VALUE_CLASS, DTYPE_BF16, .text = "torch.BFloat16Storage"},
    {VALUE_CLASS, DTYPE_F16, .text = "torch.HalfStorage"},
    {VALUE_CLASS, DTYPE_F64, .text = "torch.DoubleStorage"},
    {VALUE_CLASS, DTYPE_I64, .text = "torch.LongStorage"},
    {VALUE_CLASS, DTYPE_I32, .text = "torch.IntStorage"},
    {VALUE_CLASS, DTYPE_I16, .text = "torch.ShortStorage"},
    {VALUE_CLASS, DTYPE_I8, .text = "torch.CharStorage"},
    {VALUE_CLASS, DTYPE_U8, .text = "torch.ByteStorage"},
    {VALUE_CLASS, DTYPE_BOOL, .text = "torch.BoolStorage"},
    {VALUE_CLASS, DTYPE_OTHER, .text = "torch.ComplexFloatStorage"},
    {VALUE_CLASS, DTYPE_OTHER, .text = "torch.ComplexDoubleStorage"},
    {VALUE_CLASS, DTYPE_U8, .text = "torch.storage.UntypedStorage"},
    {VALUE_DTYPE, DTYPE_U16, .text = "torch.uint16"},
    {VALUE_DTYPE, DTYPE_U32, .text = "torch.uint32"},
    {VALUE_DTYPE, DTYPE_U64, .text = "torch.uint64"},
    {VALUE_DTYPE, DTYPE_OTHER, .text = "torch.float8_e4m3fn"},
    {VALUE_DTYPE, DTYPE_OTHER, .text = "torch.float8_e5m2"},
    {VALUE_DTYPE, DTYPE_OTHER, .text = "torch.float8_e4m3fnuz"},
    {VALUE_DTYPE, DTYPE_OTHER, .text = "torch.float8_e5m2fnuz"},
    {VALUE_DTYPE, DTYPE_OTHER, .text = "torch.float8_e8m0fnu"}};

typedef struct Pickle {
    TensorStore *store;
    const Zip *zip;
    const char *path, *folder; /* of the members */
    Arena *scratch, *one;      /* one: of one tensor */
    /* The machine. */
    const unsigned char *at, *end;
    Value **stack, **memo; /* NULL on the stack: a mark */
    size_t stack_count, stack_room, memo_count, memo_room, values;
    Value *slab; /* of the latest values */
    /* The walk. */
    const unsigned char **unpacked; /* of each member of the zip; NULL: not yet */
    uint64_t file_size, spent;      /* bytes of copies */
    uint64_t named;                 /* bytes of tensors and their names */
    size_t steps;                   /* that it may still take */
    char name[NAME_MOST + 1];
} Pickle;

static void pickle_fail_if(bool bad, const Pickle *p, const char *what) {
    if (bad) {
        fail(STATUS_INPUT, "%s: data.pkl: %s", p->path, what);
    }
}

static bool value_is(const Value *value, const char *word) {
    return value->kind == VALUE_STRING && strlen(word) == value->count &&
           memcmp(value->text, word, value->count) == 0;
}

/* Whether the first items are of these kinds; VALUE_OTHER: any. */
static bool items_are(const Value *value, const ValueKind *kinds, size_t count) {
    bool good = value->count >= count;
    for (size_t i = 0; good && i < count; i++) {
        good = kinds[i] == VALUE_OTHER || value->items[i]->kind == kinds[i];
    }
    return good;
}

static bool is_container(const Value *value) {
    return value->kind == VALUE_TUPLE || value->kind == VALUE_LIST || value->kind == VALUE_DICT;
}

/* ---- the stack ---- */

static void push(Pickle *p, Value *value) {
    p->stack =
        arena_grow(p->scratch, p->stack, &p->stack_room, p->stack_count + 1, sizeof *p->stack);
    p->stack[p->stack_count++] = value;
}

static void push_new(Pickle *p, Value value) {
    enum {
        SLAB = 256
    };
    size_t place = p->values % SLAB;
    pickle_fail_if(p->values++ == VALUES_MOST, p, "more than 2^21 objects");
    p->slab = place == 0 ? arena_alloc(p->scratch, SLAB, sizeof value) : p->slab;
    p->slab[place] = value;
    push(p, &p->slab[place]);
}

#define MARKED SIZE_MAX

/* The top *count values, or, if MARKED, those above the last mark, and it; there until a push. */
static Value **take_items(Pickle *p, size_t *count) {
    size_t taken = 0, height = p->stack_count;
    while (taken < *count && height > 0 && p->stack[height - 1] != NULL) {
        taken++;
        height--;
    }
    pickle_fail_if(*count == MARKED ? height == 0 : taken < *count, p,
                   *count == MARKED ? "an opcode finds no mark"
                                    : "an opcode finds the stack empty");
    p->stack_count = height - (*count == MARKED);
    *count = taken;
    return taken > 0 ? p->stack + height : p->stack; /* a stack of nothing has no place */
}

static Value **take(Pickle *p, size_t count) {
    return take_items(p, &count);
}

static Value *top(Pickle *p) {
    Value *value = *take(p, 1);
    p->stack_count++;
    return value;
}

/* `count` items are put into the container. */
static void extend(Pickle *p, Value *into, Value **items, size_t count) {
    into->items =
        arena_grow(p->scratch, into->items, &into->room, into->count + count, sizeof *items);
    for (size_t i = 0; i < count; i++) {
        into->items[into->count++] = items[i];
    }
}

/* ---- what opcodes do ---- */

static const unsigned char *operand(Pickle *p, uint64_t count, const char *what) {
    pickle_fail_if(count > (uint64_t)(p->end - p->at), p, what);
    p->at += count;
    return p->at - count;
}

/* A string up to a newline, without it. */
static Value operand_line(Pickle *p) {
    const unsigned char *newline = memchr(p->at, '\n', (size_t)(p->end - p->at));
    pickle_fail_if(newline == NULL, p, "ends within an opcode");
    size_t length = (size_t)(newline - p->at);
    Value line = {.kind = VALUE_STRING, .text = (const char *)p->at, .count = length};
    p->at = newline + 1;
    return line;
}

/* Two's complement of up to 8 bytes; of more it is not kept. */
static void push_signed(Pickle *p, const unsigned char *bytes, uint64_t width) {
    uint64_t bits = width <= 8 ? read_little(bytes, (int)width) : 0;
    if (width > 0 && width < 8 && bytes[width - 1] >= 0x80) {
        bits |= UINT64_MAX << (8 * width);
    }
    Value value = {.kind = width <= 8 ? VALUE_INTEGER : VALUE_OTHER};
    memcpy(&value.number, &bits, sizeof bits);
    push_new(p, value);
}

static void push_string(Pickle *p, uint64_t length) {
    const void *text = operand(p, length, "a string that ends after the file");
    push_new(p, (Value){.kind = VALUE_STRING, .text = text, .count = (size_t)length});
}

static void push_tuple(Pickle *p, size_t count) {
    Value **items = take_items(p, &count), tuple = {.kind = VALUE_TUPLE};
    extend(p, &tuple, items, count);
    push_new(p, tuple);
}

/* `count` items go into the container below them. */
static void fill(Pickle *p, ValueKind kind, size_t count) {
    Value **items = take_items(p, &count), *into = top(p);
    pickle_fail_if(into->kind != kind || (kind == VALUE_DICT && count % 2 != 0), p,
                   "items are put into what is no list or dict");
    extend(p, into, items, count);
}

static void push_global(Pickle *p, const Value *module, const Value *name) {
    char text[404];
    pickle_fail_if(module->kind != VALUE_STRING || name->kind != VALUE_STRING, p,
                   "a global whose name is no string");
    snprintf(text, sizeof text, "%.*s.%.*s", (int)(module->count < 200 ? module->count : 200),
             module->text, (int)(name->count < 200 ? name->count : 200), name->text);
    bool whole = strlen(text) == module->count + 1 + name->count; /* no 0 in it */
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (whole && strcmp(text, globals[i].text) == 0) {
            push_new(p, globals[i]);
            return;
        }
    }
    fail(STATUS_INPUT,
         "%s: data.pkl asks for '%s'; nothing is executed, only tensors, dicts, "
         "lists, numbers and strings are read: save the state_dict alone",
         p->path, text);
}

/* The arguments of _rebuild_tensor: storage, offset, size, stride, requires_grad, hooks, then for
 * v3 the dtype, then metadata, which says whether the values are to be negated or conjugated. */
enum {
    TENSOR_STORAGE,
    TENSOR_OFFSET,
    TENSOR_SIZE,
    TENSOR_STRIDE,
    TENSOR_DTYPE = 6
};

static void push_tensor(Pickle *p, bool v3, Value args) {
    static const ValueKind kinds[] = {VALUE_STORAGE, VALUE_INTEGER, VALUE_TUPLE, VALUE_TUPLE,
                                      VALUE_OTHER,   VALUE_OTHER,   VALUE_DTYPE};
    size_t known = v3 ? 7 : 6;
    pickle_fail_if(args.count > known + 1 || !items_are(&args, kinds, known), p,
                   "a tensor whose parts are not those of a tensor");
    pickle_fail_if(args.count > known &&
                       (args.items[known]->kind != VALUE_DICT || args.items[known]->count != 0),
                   p, "a tensor that is to be negated or conjugated");
    args.kind = VALUE_TENSOR;
    push_new(p, args);
}

static void reduce(Pickle *p) {
    Value **pair = take(p, 2), *args = pair[1];
    ValueKind function = pair[0]->kind;
    pickle_fail_if(function < VALUE_CLASS || args->kind != VALUE_TUPLE, p,
                   "a call of what is no function");
    Value *first = args->count > 0 ? args->items[0] : NULL;
    if (function >= VALUE_TENSOR_V2) {
        push_tensor(p, function == VALUE_TENSOR_V3, *args);
    } else if (function == VALUE_DICT_CLASS && first == NULL) {
        push_new(p, (Value){.kind = VALUE_DICT});
    } else if (function == VALUE_FIRST && first != NULL &&
               (first->kind == VALUE_TENSOR || first->kind == VALUE_TUPLE)) {
        push(p, first);
    } else {
        fail(STATUS_INPUT, "%s: data.pkl: a call of '%s' in a form not known", p->path,
             pair[0]->text);
    }
}

/* A persistent id becomes the storage that it names; its count is in elements of the class. */
enum {
    STORAGE_WORD,
    STORAGE_CLASS,
    STORAGE_KEY,
    STORAGE_COUNT = 4,
    STORAGE_PARTS
};

static void push_storage(Pickle *p, Value id) {
    static const ValueKind kinds[STORAGE_PARTS] = {VALUE_STRING, VALUE_CLASS, VALUE_STRING,
                                                   VALUE_OTHER, VALUE_INTEGER};
    pickle_fail_if(id.kind != VALUE_TUPLE || id.count != STORAGE_PARTS ||
                       !items_are(&id, kinds, STORAGE_PARTS) ||
                       !value_is(id.items[STORAGE_WORD], "storage") ||
                       id.items[STORAGE_COUNT]->number < 0,
                   p, "a persistent id that is no storage");
    id.kind = VALUE_STORAGE;
    push_new(p, id);
}

static void memo_set(Pickle *p, uint64_t index) {
    Value *value = top(p);
    pickle_fail_if(index >= MEMO_MOST, p, "a memo of more than 2^22 objects");
    p->memo = arena_grow(p->scratch, p->memo, &p->memo_room, (size_t)index + 1, sizeof *p->memo);
    p->memo_count += p->memo[index] == NULL;
    p->memo[index] = value;
}

/* Runs one opcode, named as in Python's pickletools: those that state dicts need. */
static void opcode_run(Pickle *p, unsigned char code) {
    static const unsigned char widths[256] = {
        [0x80] = 1, [0x95] = 8, ['J'] = 4,  ['K'] = 1, ['M'] = 2, [0x8A] = 1, [0x8B] = 4, ['G'] = 8,
        [0x8C] = 1, ['X'] = 4,  [0x8D] = 8, ['q'] = 1, ['r'] = 4, ['h'] = 1,  ['j'] = 4};
    const unsigned char *bytes = operand(p, widths[code], "ends within an opcode");
    uint64_t number = read_little(bytes, widths[code]);
    if (code == 0x80) { /* PROTO */
        pickle_fail_if(number > 5, p, "a protocol after 5");
    } else if (code == '(') { /* MARK */
        push(p, NULL);
    } else if (code == 'N' || code == 0x88 || code == 0x89 || code == 'G') {
        push_new(p, (Value){.kind = VALUE_OTHER}); /* NONE, NEWTRUE, NEWFALSE, BINFLOAT */
    } else if (code == 'J') {                      /* BININT */
        push_signed(p, bytes, 4);
    } else if (code == 'K' || code == 'M') { /* BININT1, BININT2 */
        push_new(p, (Value){.kind = VALUE_INTEGER, .number = (int64_t)number});
    } else if (code == 0x8A || code == 0x8B) { /* LONG1, LONG4 */
        push_signed(p, operand(p, number, "a number that ends after the file"), number);
    } else if (code == 0x8C || code == 'X' || code == 0x8D) { /* BINUNICODE, short and long */
        push_string(p, number);
    } else if (code == ')') { /* EMPTY_TUPLE */
        push_tuple(p, 0);
    } else if (code >= 0x85 && code <= 0x87) { /* TUPLE1, TUPLE2, TUPLE3 */
        push_tuple(p, code - 0x84U);
    } else if (code == 't') { /* TUPLE */
        push_tuple(p, MARKED);
    } else if (code == ']' || code == '}') { /* EMPTY_LIST, EMPTY_DICT */
        push_new(p, (Value){.kind = code == ']' ? VALUE_LIST : VALUE_DICT});
    } else if (code == 'a' || code == 'e') { /* APPEND, APPENDS */
        fill(p, VALUE_LIST, code == 'a' ? 1 : MARKED);
    } else if (code == 's' || code == 'u') { /* SETITEM, SETITEMS */
        fill(p, VALUE_DICT, code == 's' ? 2 : MARKED);
    } else if (code == 'c') { /* GLOBAL */
        Value module = operand_line(p), name = operand_line(p);
        push_global(p, &module, &name);
    } else if (code == 0x93) { /* STACK_GLOBAL */
        Value **names = take(p, 2);
        push_global(p, names[0], names[1]);
    } else if (code == 'R') { /* REDUCE */
        reduce(p);
    } else if (code == 'b') { /* BUILD: attributes (a state dict has _metadata), not needed */
        take(p, 1);
        pickle_fail_if(top(p)->kind != VALUE_DICT, p, "attributes of what is no OrderedDict");
    } else if (code == 'Q') { /* BINPERSID */
        push_storage(p, **take(p, 1));
    } else if (code == 'q' || code == 'r') { /* BINPUT, LONG_BINPUT */
        memo_set(p, number);
    } else if (code == 0x94) { /* MEMOIZE */
        memo_set(p, p->memo_count);
    } else if (code == 'h' || code == 'j') { /* BINGET, LONG_BINGET */
        pickle_fail_if(number >= p->memo_room || p->memo[number] == NULL, p,
                       "an object is taken from the memo before it is there");
        push(p, p->memo[number]);
    } else if (code != 0x95) { /* FRAME only says how much to read at once */
        fail(STATUS_INPUT,
             "%s: data.pkl has the opcode 0x%02X; only what tensors, dicts, lists, numbers and "
             "strings need is read: save the state_dict alone",
             p->path, code);
    }
}

static Value *pickle_run(Pickle *p) {
    for (size_t steps = 0;; steps++) {
        pickle_fail_if(p->at == p->end, p, "ends before its STOP");
        pickle_fail_if(steps == OPCODES_MOST, p, "more than 2^24 opcodes");
        unsigned char code = *p->at++;
        if (code == '.') { /* STOP */
            return *take(p, 1);
        }
        opcode_run(p, code);
    }
}

/* ---- from values to tensors ---- */

/* Of all copies (strides, deflated storages): a state dict stays far below, a bomb does not. */
static void spend(Pickle *p, const Tensor *tensor, uint64_t bytes) {
    p->spent = bytes < UINT64_MAX - p->spent ? p->spent + bytes : UINT64_MAX;
    if (inflates_too_far(p->spent, p->file_size)) {
        tensor_fail(tensor,
                    "unpacking it would take %llu bytes, far more than the file (see --unpack)",
                    (unsigned long long)bytes);
    }
}

/* torch.load asks no CRC-32 of what is stored; torch.save may leave it out (set_crc32_options). */
static const unsigned char *member_bytes(Arena *arena, const ZipMember *member, const char *what) {
    return member->method == 0 ? member->data : zip_unpack(arena, member, what);
}

/* The bytes of the storage, which holds as many elements of `unit` bytes as it says. */
static const unsigned char *storage_bytes(Pickle *p, const Tensor *tensor, const Value *storage,
                                          size_t unit) {
    const Value *key = storage->items[STORAGE_KEY];
    uint64_t count = (uint64_t)storage->items[STORAGE_COUNT]->number;
    char *name = arena_format(p->one, "%s/data/%.*s", p->folder,
                              key->count <= 100 ? (int)key->count : 0, key->text);
    const ZipMember *member = zip_find(p->zip, name);
    if (member == NULL) {
        tensor_fail(tensor, "its storage '%s' is missing", name);
    }
    if (member->size / unit != count) {
        tensor_fail(tensor, "its storage of %llu element%s holds %llu byte%s",
                    (unsigned long long)count, plural(count), (unsigned long long)member->size,
                    plural(member->size));
    }
    const unsigned char **unpacked = &p->unpacked[member - p->zip->members];
    if (*unpacked == NULL) {
        spend(p, tensor, member->method != 0 ? member->size : 0);
        name = arena_format(p->one, "%s: tensor '%s'", p->path, tensor->name);
        *unpacked = member_bytes(p->store->arena, member, name);
    }
    return *unpacked;
}

static bool value_size(const Value *value, size_t *size) {
    *size = (size_t)value->number;
    return value->kind == VALUE_INTEGER && value->number >= 0 &&
           (uint64_t)value->number <= SIZE_MAX;
}

/* Sets shape, count and strides; returns the highest element of the storage that is reached. */
static size_t tensor_shape(Tensor *tensor, Value *const *args, size_t *strides) {
    const Value *size = args[TENSOR_SIZE], *stride = args[TENSOR_STRIDE];
    size_t reach, step;
    if (size->count > TENSOR_MAX_RANK) {
        tensor_fail(tensor, "%zu dimensions; at most %d are read", size->count, TENSOR_MAX_RANK);
    }
    bool good = value_size(args[TENSOR_OFFSET], &reach) && stride->count == size->count;
    for (size_t d = 0; d < size->count && good; d++) {
        good = value_size(size->items[d], &tensor->shape[d]) &&
               value_size(stride->items[d], &strides[d]);
    }
    if (!good) {
        tensor_fail(tensor, "its size and strides are not made of sizes");
    }
    tensor->rank = (int)size->count;
    tensor_measure(tensor);
    for (size_t d = 0; d < size->count && good && tensor->count > 0; d++) {
        good = size_mul(&step, tensor->shape[d] - 1, strides[d]) && size_add(&reach, reach, step);
    }
    if (!good) {
        tensor_fail(tensor, "its shape overflows");
    }
    return reach;
}

static bool is_row_major(const Tensor *tensor, const size_t *strides) {
    size_t step = 1;
    for (int d = tensor->rank; d-- > 0;) {
        if (tensor->shape[d] != 1 && strides[d] != step) {
            return false;
        }
        step *= tensor->shape[d];
    }
    return true;
}

/* Adds the tensor by the name p->name. */
static void add_tensor(Pickle *p, const Value *rebuild) {
    const Value *storage = rebuild->items[TENSOR_STORAGE];
    const Value *stored = storage->items[STORAGE_CLASS], *type = stored;
    if (rebuild->count > TENSOR_DTYPE && rebuild->items[TENSOR_DTYPE]->kind == VALUE_DTYPE) {
        type = rebuild->items[TENSOR_DTYPE];
    }
    bool other = stored->dtype == DTYPE_OTHER || type->dtype == DTYPE_OTHER;
    p->named += sizeof(Tensor) + strlen(p->name);
    pickle_fail_if(p->named / TENSORS_MOST > p->file_size + (1u << 20), p,
                   "more tensors than a file of its size holds");
    arena_reset(p->one);
    Tensor tensor = {.file = p->path,
                     .name = arena_copy(p->store->arena, p->name, strlen(p->name)),
                     .dtype = other ? DTYPE_OTHER : type->dtype,
                     .type = other ? strrchr(type->text, '.') + 1 : dtype_name(type->dtype)};
    size_t strides[TENSOR_MAX_RANK] = {0}, last = tensor_shape(&tensor, rebuild->items, strides);
    if (!other) {
        size_t unit = dtype_size(stored->dtype), element = dtype_size(type->dtype);
        const unsigned char *data = storage_bytes(p, &tensor, storage, unit);
        uint64_t held = (uint64_t)storage->items[STORAGE_COUNT]->number * unit / element;
        if (tensor.count > 0 && last >= held) {
            tensor_fail(&tensor, "reaches element %zu of a storage of %llu", last,
                        (unsigned long long)held);
        }
        size_t offset = tensor.count > 0 ? (size_t)rebuild->items[TENSOR_OFFSET]->number : 0;
        tensor.data = data + offset * element;
        if (tensor.count > 0 && !is_row_major(&tensor, strides)) {
            spend(p, &tensor, (uint64_t)tensor.count * element);
            tensor_gather(&tensor, strides, p->store->arena);
        }
        tensor.data = little_elements(p->store->arena, tensor.data, element, tensor.count);
    }
    tensors_add(p->store, &tensor);
}

/* Appends ".key" to the name[length]; returns its new length. */
static size_t name_extend(Pickle *p, size_t length, const Value *key) {
    char digits[24];
    const char *text = key->kind == VALUE_STRING ? key->text : digits;
    int size = snprintf(digits, sizeof digits, "%lld", (long long)key->number);
    size_t count = key->kind == VALUE_STRING ? key->count : (size_t)size, dot = length > 0;
    if ((key->kind != VALUE_STRING && key->kind != VALUE_INTEGER) || count > NAME_MOST ||
        length + dot + count > NAME_MOST) {
        fail(STATUS_INPUT,
             "%s: '%s' has a key that is longer than %d bytes or neither string nor integer",
             p->path, p->name, NAME_MOST);
    }
    memcpy(p->name + length, ".", dot);
    memcpy(p->name + length + dot, text, count);
    length += dot + count;
    p->name[length] = 0;
    if (strlen(p->name) != length || !utf8_valid(p->name, length)) {
        fail(STATUS_INPUT, "%s: tensor '%s': a name that is no text", p->path, p->name);
    }
    return length;
}

/* Adds the tensors below `value`, whose name is p->name[0 .. length). Of a checkpoint, the
 * state_dict of the outermost dict keeps its own names. */
static void walk(Pickle *p, const Value *value, size_t length, int depth) {
    pickle_fail_if(p->steps-- == 0 || depth == DEPTH_MOST, p,
                   "objects nested too deep or too often");
    if (value->kind == VALUE_TENSOR) {
        add_tensor(p, value);
    }
    size_t dict = value->kind == VALUE_DICT, count = is_container(value) ? value->count : 0;
    for (size_t i = 0; i < count; i += 1 + dict) {
        Value index = {.kind = VALUE_INTEGER, .number = (int64_t)i};
        const Value *key = dict ? value->items[i] : &index, *item = value->items[i + dict];
        bool names = depth == 0 && item->kind == VALUE_DICT &&
                     (value_is(key, "state_dict") || value_is(key, "model_state_dict"));
        p->name[length] = 0;
        if (item->kind == VALUE_TENSOR || is_container(item)) {
            walk(p, item, names ? length : name_extend(p, length, key), depth + 1);
        }
    }
}

/* ---- the file ---- */

/* The member "FOLDER/NAME"; NULL: there is none. */
static const ZipMember *beside(const Pickle *p, const char *name) {
    return zip_find(p->zip, arena_format(p->scratch, "%s/%s", p->folder, name));
}

/* The member `name` beside data.pkl, if there is one, holds this word. */
static void check_word(const Pickle *p, const char *name, const char *word) {
    const ZipMember *member = beside(p, name);
    char *what = arena_format(p->scratch, "%s: %s", p->path, name);
    if (member == NULL) {
        return;
    }
    if (member->size > 16) {
        fail(STATUS_INPUT, "%s: %llu bytes, expected a word", what,
             (unsigned long long)member->size);
    }
    const unsigned char *data = member_bytes(p->scratch, member, what);
    char *text = arena_copy(p->scratch, (const char *)data, (size_t)member->size);
    text[strcspn(text, "\n")] = 0;
    if (strcmp(text, word) != 0) {
        fail(STATUS_INPUT, "%s is '%s', expected '%s'", what, text, word);
    }
}

/* The first member "NAME/data.pkl"; NULL: there is none where torch.save puts it. */
static const ZipMember *find_pickle(const Zip *zip) {
    for (size_t i = 0; i < zip->count; i++) {
        const char *name = zip->members[i].name, *slash = strchr(name, '/');
        if (slash != NULL && slash != name && strcmp(slash, "/data.pkl") == 0) {
            return &zip->members[i];
        }
    }
    return NULL;
}

/* Adds every tensor that is reachable from the pickled object through dicts, lists and tuples. Its
 * name is its path of keys and indices, joined with dots. Data stays in the map; where strides
 * leave gaps, repeat or reorder, it is a row-major copy in the arena. */
static void pickle_read(TensorStore *store, const Zip *zip, const ZipMember *member,
                        size_t file_size, const char *path) {
    Arena *scratch = arena_new();
    Pickle *p = arena_alloc(scratch, 1, sizeof *p);
    *p = (Pickle){.store = store, .zip = zip, .path = path, .scratch = scratch};
    p->one = arena_within(scratch);
    p->folder = arena_copy(scratch, member->name, strcspn(member->name, "/"));
    p->unpacked = arena_alloc(scratch, zip->count, sizeof *p->unpacked);
    p->file_size = file_size;
    if (beside(p, "constants.pkl") != NULL) {
        fail(STATUS_INPUT,
             "%s: a TorchScript archive holds a program: save its tensors with "
             "torch.save(torch.jit.load(FILE).state_dict(), FILE)",
             path);
    }
    check_word(p, "byteorder", "little");
    check_word(p, "version", "3");
    char *what = arena_format(scratch, "%s: data.pkl", path);
    if (member->size > PICKLE_MOST || member->size / DEFLATED_MOST > file_size) {
        fail(STATUS_INPUT, "%s: takes %llu bytes, too many for a pickle in a file of %zu", what,
             (unsigned long long)member->size, file_size);
    }
    p->at = member_bytes(scratch, member, what);
    p->end = p->at + member->size;
    Value *object = pickle_run(p);
    if (object->kind == VALUE_TENSOR) {
        strcpy(p->name, "tensor");
    }
    p->steps = VISITS_MOST * p->values;
    walk(p, object, strlen(p->name), 0);
    arena_free(scratch);
}

/* Fails if the file begins like a pickle: torch.save's form before zip files, or any other. */
static void pickle_refuse(const FileMap *map, const char *path) {
    static const unsigned char magic[] = {0x80, 0x02, 0x8A, 0x0A, 0x6C, 0xFC, 0x9C,
                                          0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19};
    bool legacy = map->size >= sizeof magic && memcmp(map->data, magic, sizeof magic) == 0;
    bool tar = map->size > 512 && memcmp(map->data + 257, "ustar", 5) == 0;
    if (legacy || tar) {
        fail(STATUS_INPUT,
             "%s: torch.save's form of before PyTorch 1.6 (no zip): write it anew with "
             "torch.save(torch.load(FILE), FILE)",
             path);
    }
    if (map->size >= 4 && map->data[0] == 0x80 && map->data[1] >= 2 && map->data[1] <= 5 &&
        map->data[2] != 0) { /* 0: rather the length of a safetensors header */
        fail(STATUS_INPUT,
             "%s: a bare pickle, not torch.save's zip: write its tensors with torch.save or "
             "as safetensors",
             path);
    }
}

/* ==== opening ==== */

/* A text that begins with '{', after a byte order mark and white space. */
static bool is_object(const FileMap *map) {
    size_t at = 0;
    while (at < map->size && at < 64 && map->data[at] != 0 &&
           strchr(" \n\r\t\xEF\xBB\xBF", map->data[at]) != NULL) {
        at++;
    }
    return at < map->size && map->data[at] == '{' && memchr(map->data, 0, map->size) == NULL;
}

void checkpoint_refuse(const char *directory) {
    static const char *const kinds[][2] = {
        {"*.gguf", "is for other programs: take the safetensors files it was made from"},
        {"pytorch_model*.bin", "is a pickle: load it with transformers and save it anew with "
                               "save_pretrained(DIR, safe_serialization=True)"},
    };
    Arena *arena = arena_new();
    size_t count;
    char **names = path_list(arena, directory, &count);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            if (glob_match(kinds[k][0], names[i])) {
                fail(STATUS_INPUT, "%s: holds no safetensors, and %s %s", directory, names[i],
                     kinds[k][1]);
            }
        }
    }
    arena_free(arena);
}

/* The file itself, or what a directory holds. */
static const char *resolve(Arena *arena, const char *path) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    if (!path_is_directory(path)) {
        return arena_copy(arena, path, strlen(path));
    }
    for (int i = 0; i < 2; i++) {
        const char *file = path_join(arena, path, names[i]);
        if (path_exists(file)) {
            return file;
        }
    }
    checkpoint_refuse(path);
    fail(STATUS_INPUT, "%s: holds neither %s nor %s", path, names[0], names[1]);
}

void tensors_open(TensorStore *store, Arena *arena, const char *path) {
    *store = (TensorStore){.arena = arena, .path = resolve(arena, path)};
    path = store->path;
    FileMap map = file_map(arena, path);
    /* A safetensors header's length may begin with any bytes: it is asked before "PK" and '{'. */
    if (safetensors_is(&map)) {
        safetensors_read(store, add_map(store, map), path);
    } else if (zip_is(&map)) {
        Arena *scratch = arena_new();
        Zip zip = zip_open(scratch, add_map(store, map), path);
        const ZipMember *pickle = find_pickle(&zip);
        if (pickle != NULL) {
            pickle_read(store, &zip, pickle, map.size, path);
        } else {
            npz_read(store, &zip, path);
        }
        arena_free(scratch);
    } else if (is_object(&map)) {
        index_read(store, &map, path);
    } else {
        pickle_refuse(&map, path);
        safetensors_read(store, &map, path); /* says what is wrong with it */
    }
    tensors_sort(store);
}

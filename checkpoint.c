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

static int compare_shards(const void *a, const void *b) {
    return strcmp((*(const Json *const *)a)->text, (*(const Json *const *)b)->text);
}

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
    const Json **places = arena_alloc(scratch, weights->length, sizeof(const Json *));
    size_t count = 0;
    for (const Json *c = weights->child; c != NULL; c = c->next) {
        if (!shard_name_is_plain(c) || strlen(c->key) != c->key_length) {
            fail(STATUS_INPUT, "%s: tensor '%s': '%s' is no name of a shard beside it", path,
                 c->key, json_is(c, JSON_STRING) ? c->text : "");
        }
        places[count++] = c;
    }
    qsort(places, count, sizeof *places, compare_shards);
    const char *slash = strrchr(path, '/');
    int directory = slash == NULL ? 0 : (int)(slash - path) + 1;
    TensorStore shard = {.arena = store->arena};
    for (size_t i = 0; i < count; i++) {
        const char *name = places[i]->text;
        if (i == 0 || strcmp(places[i - 1]->text, name) != 0) {
            const char *file = arena_format(store->arena, "%.*s%s", directory, path, name);
            shard.count = 0;
            safetensors_read(&shard, add_map(store, file_map(store->arena, file)), file);
        }
        const Tensor *tensor = tensors_find(&shard, places[i]->key);
        if (tensor == NULL) {
            fail(STATUS_INPUT, "%s: tensor '%s': is not in its shard %s", path, places[i]->key,
                 name);
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
    VISITS_MOST = 4,        /* of the walk, to each object on average */
    DEPTH_MOST = 32,        /* of dicts in dicts */
    NAME_MOST = 1024,       /* bytes of a tensor's name */
    PICKLE_MOST = 256 << 20 /* bytes */
};

/* ---- what a pickle may name ---- */

typedef enum GlobalKind {
    GLOBAL_DICT,
    GLOBAL_FIRST, /* a function that gives back what it is given first */
    GLOBAL_TENSOR_V2,
    GLOBAL_TENSOR_V3,
    GLOBAL_STORAGE,
    GLOBAL_DTYPE
} GlobalKind;

typedef struct Global {
    const char *module, *name;
    GlobalKind kind;
    Dtype dtype;
} Global;

static const Global globals[] = {
    {"collections", "OrderedDict", GLOBAL_DICT, DTYPE_OTHER},
    {"torch", "Size", GLOBAL_FIRST, DTYPE_OTHER},
    {"torch._utils", "_rebuild_tensor_v2", GLOBAL_TENSOR_V2, DTYPE_OTHER},
    {"torch._utils", "_rebuild_tensor_v3", GLOBAL_TENSOR_V3, DTYPE_OTHER},
    {"torch._utils", "_rebuild_parameter", GLOBAL_FIRST, DTYPE_OTHER},
    {"torch._utils", "_rebuild_parameter_with_state", GLOBAL_FIRST, DTYPE_OTHER},
    {"torch", "FloatStorage", GLOBAL_STORAGE, DTYPE_F32},
    {"torch", "BFloat16Storage", GLOBAL_STORAGE, DTYPE_BF16},
    {"torch", "HalfStorage", GLOBAL_STORAGE, DTYPE_F16},
    {"torch", "DoubleStorage", GLOBAL_STORAGE, DTYPE_F64},
    {"torch", "LongStorage", GLOBAL_STORAGE, DTYPE_I64},
    {"torch", "IntStorage", GLOBAL_STORAGE, DTYPE_I32},
    {"torch", "ShortStorage", GLOBAL_STORAGE, DTYPE_I16},
    {"torch", "CharStorage", GLOBAL_STORAGE, DTYPE_I8},
    {"torch", "ByteStorage", GLOBAL_STORAGE, DTYPE_U8},
    {"torch", "BoolStorage", GLOBAL_STORAGE, DTYPE_BOOL},
    {"torch", "ComplexFloatStorage", GLOBAL_STORAGE, DTYPE_OTHER},
    {"torch", "ComplexDoubleStorage", GLOBAL_STORAGE, DTYPE_OTHER},
    {"torch.storage", "UntypedStorage", GLOBAL_STORAGE, DTYPE_U8},
    {"torch", "uint16", GLOBAL_DTYPE, DTYPE_U16},
    {"torch", "uint32", GLOBAL_DTYPE, DTYPE_U32},
    {"torch", "uint64", GLOBAL_DTYPE, DTYPE_U64},
    {"torch", "float8_e4m3fn", GLOBAL_DTYPE, DTYPE_OTHER},
    {"torch", "float8_e5m2", GLOBAL_DTYPE, DTYPE_OTHER},
    {"torch", "float8_e4m3fnuz", GLOBAL_DTYPE, DTYPE_OTHER},
    {"torch", "float8_e5m2fnuz", GLOBAL_DTYPE, DTYPE_OTHER},
    {"torch", "float8_e8m0fnu", GLOBAL_DTYPE, DTYPE_OTHER}};

/* ---- values ---- */

typedef enum ValueKind {
    VALUE_OTHER, /* None, booleans, floats, integers beyond 64 bits: not needed, so not kept */
    VALUE_INTEGER,
    VALUE_STRING,
    VALUE_TUPLE,
    VALUE_LIST,
    VALUE_DICT, /* items: key, value, key, value ... */
    VALUE_GLOBAL,
    VALUE_STORAGE, /* items: its persistent id */
    VALUE_TENSOR   /* items: the arguments of its function */
} ValueKind;

typedef struct PickleText {
    const char *text; /* in the pickle, without a 0 after it */
    size_t length;
} PickleText;

typedef struct Value {
    ValueKind kind;
    union {
        int64_t integer;
        PickleText string;
        struct {
            struct Value **items;
            size_t count, room;
        } list;
        const Global *global;
    } as;
} Value;

typedef struct Pickle {
    const char *path;
    const unsigned char *at, *end;
    Arena *scratch;
    Value **stack, **memo; /* NULL on the stack: a mark */
    size_t stack_count, stack_room, memo_count, memo_room;
    size_t values, slab_left;
    Value *slab;
} Pickle;

REFSAE_NORETURN static void pickle_fail(const Pickle *p, const char *what) {
    fail(STATUS_INPUT, "%s: data.pkl: %s", p->path, what);
}

static bool text_is(PickleText text, const char *word) {
    return strlen(word) == text.length && memcmp(text.text, word, text.length) == 0;
}

static void push(Pickle *p, Value *value) {
    p->stack =
        arena_grow(p->scratch, p->stack, &p->stack_room, p->stack_count + 1, sizeof *p->stack);
    p->stack[p->stack_count++] = value;
}

static void push_new(Pickle *p, Value value) {
    enum {
        SLAB = 256
    };
    if (p->values++ == VALUES_MOST) {
        pickle_fail(p, "more than 2^21 objects");
    }
    if (p->slab_left == 0) {
        p->slab = arena_alloc(p->scratch, SLAB, sizeof *p->slab);
        p->slab_left = SLAB;
    }
    Value *made = &p->slab[--p->slab_left];
    *made = value;
    push(p, made);
}

#define MARKED SIZE_MAX

/* Takes the top *count values, or, if MARKED, those above the last mark, and the mark. They stay
 * where they are until the next push. */
static Value **take_items(Pickle *p, size_t *count) {
    size_t taken = 0, height = p->stack_count;
    while (taken < *count && height > 0 && p->stack[height - 1] != NULL) {
        taken++;
        height--;
    }
    if (*count == MARKED ? height == 0 : taken < *count) {
        pickle_fail(p, *count == MARKED ? "an opcode finds no mark"
                                        : "an opcode finds the stack empty");
    }
    p->stack_count = height - (*count == MARKED);
    *count = taken;
    return p->stack + height;
}

static Value **operand_take(Pickle *p, size_t count) {
    return take_items(p, &count);
}

static Value *top(Pickle *p) {
    Value *value = *operand_take(p, 1);
    p->stack_count++;
    return value;
}

/* ---- operands ---- */

static const unsigned char *operand(Pickle *p, uint64_t count, const char *what) {
    if (count > (uint64_t)(p->end - p->at)) {
        pickle_fail(p, what);
    }
    p->at += count;
    return p->at - count;
}

/* An unsigned number of 1, 2, 4 or 8 bytes. */
static uint64_t operand_number(Pickle *p, size_t width) {
    return read_little(operand(p, width, "ends within an opcode"), (int)width);
}

/* Up to a newline, without it. */
static PickleText operand_line(Pickle *p) {
    PickleText line = {.text = (const char *)p->at};
    const unsigned char *newline = memchr(p->at, '\n', (size_t)(p->end - p->at));
    if (newline == NULL) {
        pickle_fail(p, "ends within an opcode");
    }
    line.length = (size_t)(newline - p->at);
    p->at = newline + 1;
    return line;
}

/* ---- opcodes: each takes a width of its operand, or what else tells it from its kin ---- */

static void protocol(Pickle *p, size_t width) {
    if (operand_number(p, width) > 5) {
        pickle_fail(p, "a protocol after 5");
    }
}

/* FRAME: only says how much to read at once. */
static void skip(Pickle *p, size_t width) {
    operand_number(p, width);
}

static void push_mark(Pickle *p, size_t unused) {
    (void)unused;
    push(p, NULL);
}

static void push_empty(Pickle *p, size_t kind) {
    push_new(p, (Value){.kind = (ValueKind)kind});
}

static void push_float(Pickle *p, size_t width) {
    operand_number(p, width);
    push_empty(p, VALUE_OTHER);
}

static void push_unsigned(Pickle *p, size_t width) {
    push_new(p, (Value){.kind = VALUE_INTEGER, .as.integer = (int64_t)operand_number(p, width)});
}

/* Two's complement of up to 8 bytes. */
static void push_signed(Pickle *p, const unsigned char *bytes, size_t width) {
    uint64_t bits = read_little(bytes, (int)width);
    if (width > 0 && width < 8 && bytes[width - 1] >= 0x80) {
        bits |= UINT64_MAX << (8 * width);
    }
    Value value = {.kind = VALUE_INTEGER};
    memcpy(&value.as.integer, &bits, sizeof bits);
    push_new(p, value);
}

static void push_int(Pickle *p, size_t width) {
    push_signed(p, operand(p, width, "ends within an opcode"), width);
}

/* A length and so many bytes. */
static void push_long(Pickle *p, size_t width) {
    uint64_t length = operand_number(p, width);
    const unsigned char *bytes = operand(p, length, "a number that ends after the file");
    if (length > 8) {
        push_empty(p, VALUE_OTHER);
    } else {
        push_signed(p, bytes, (size_t)length);
    }
}

static void push_string(Pickle *p, size_t width) {
    uint64_t length = operand_number(p, width);
    const void *text = operand(p, length, "a string that ends after the file");
    push_new(p, (Value){.kind = VALUE_STRING, .as.string = {text, (size_t)length}});
}

static void push_tuple(Pickle *p, size_t count) {
    Value **items = take_items(p, &count), tuple = {.kind = VALUE_TUPLE};
    tuple.as.list.items = arena_alloc(p->scratch, count, sizeof *items);
    tuple.as.list.count = count;
    for (size_t i = 0; i < count; i++) {
        tuple.as.list.items[i] = items[i];
    }
    push_new(p, tuple);
}

/* `count` items go into the container below them. */
static void fill(Pickle *p, ValueKind kind, size_t count) {
    Value **items = take_items(p, &count), *into = top(p);
    if (into->kind != kind || (kind == VALUE_DICT && count % 2 != 0)) {
        pickle_fail(p, "items are put into what is no list or dict");
    }
    into->as.list.items = arena_grow(p->scratch, into->as.list.items, &into->as.list.room,
                                     into->as.list.count + count, sizeof *items);
    for (size_t i = 0; i < count; i++) {
        into->as.list.items[into->as.list.count++] = items[i];
    }
}

static void list_append(Pickle *p, size_t count) {
    fill(p, VALUE_LIST, count);
}

static void set_items(Pickle *p, size_t count) {
    fill(p, VALUE_DICT, count);
}

static void push_global(Pickle *p, PickleText module, PickleText name) {
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (text_is(module, globals[i].module) && text_is(name, globals[i].name)) {
            push_new(p, (Value){.kind = VALUE_GLOBAL, .as.global = &globals[i]});
            return;
        }
    }
    fail(STATUS_INPUT,
         "%s: data.pkl asks for '%.*s.%.*s'; nothing is executed, only tensors, dicts, "
         "lists, numbers and strings are read: save the state_dict alone",
         p->path, (int)(module.length < 200 ? module.length : 200), module.text,
         (int)(name.length < 200 ? name.length : 200), name.text);
}

static void global(Pickle *p, size_t unused) {
    (void)unused;
    PickleText module = operand_line(p), name = operand_line(p);
    push_global(p, module, name);
}

static void stack_global(Pickle *p, size_t two) {
    Value **pair = operand_take(p, two);
    if (pair[0]->kind != VALUE_STRING || pair[1]->kind != VALUE_STRING) {
        pickle_fail(p, "a global whose name is no string");
    }
    push_global(p, pair[0]->as.string, pair[1]->as.string);
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

static void push_tensor(Pickle *p, bool v3, const Value *args) {
    size_t count = args->as.list.count, known = v3 ? 7 : 6;
    Value **items = args->as.list.items;
    if (count < known || count > known + 1 || items[TENSOR_STORAGE]->kind != VALUE_STORAGE ||
        items[TENSOR_OFFSET]->kind != VALUE_INTEGER || items[TENSOR_SIZE]->kind != VALUE_TUPLE ||
        items[TENSOR_STRIDE]->kind != VALUE_TUPLE ||
        (v3 && (items[TENSOR_DTYPE]->kind != VALUE_GLOBAL ||
                items[TENSOR_DTYPE]->as.global->kind != GLOBAL_DTYPE))) {
        pickle_fail(p, "a tensor whose parts are not those of a tensor");
    }
    if (count > known && (items[known]->kind != VALUE_DICT || items[known]->as.list.count != 0)) {
        pickle_fail(p, "a tensor that is to be negated or conjugated");
    }
    push_new(p, (Value){.kind = VALUE_TENSOR, .as.list = args->as.list});
}

static void reduce(Pickle *p, size_t two) {
    Value **pair = operand_take(p, two), *args = pair[1];
    if (pair[0]->kind != VALUE_GLOBAL || args->kind != VALUE_TUPLE) {
        pickle_fail(p, "a call of what is no function");
    }
    const Global *function = pair[0]->as.global;
    size_t count = args->as.list.count;
    Value *first = count > 0 ? args->as.list.items[0] : NULL;
    if (function->kind == GLOBAL_TENSOR_V2 || function->kind == GLOBAL_TENSOR_V3) {
        push_tensor(p, function->kind == GLOBAL_TENSOR_V3, args);
    } else if (function->kind == GLOBAL_DICT && count == 0) {
        push_empty(p, VALUE_DICT);
    } else if (function->kind == GLOBAL_FIRST && count > 0 &&
               (first->kind == VALUE_TENSOR || first->kind == VALUE_TUPLE)) {
        push(p, first);
    } else {
        fail(STATUS_INPUT, "%s: data.pkl: a call of '%s.%s' in a form not known", p->path,
             function->module, function->name);
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

static void persistent(Pickle *p, size_t one) {
    Value *id = *operand_take(p, one), **items = id->as.list.items;
    if (id->kind != VALUE_TUPLE || id->as.list.count != STORAGE_PARTS ||
        items[STORAGE_WORD]->kind != VALUE_STRING ||
        !text_is(items[STORAGE_WORD]->as.string, "storage") ||
        items[STORAGE_CLASS]->kind != VALUE_GLOBAL ||
        items[STORAGE_CLASS]->as.global->kind != GLOBAL_STORAGE ||
        items[STORAGE_KEY]->kind != VALUE_STRING || items[STORAGE_COUNT]->kind != VALUE_INTEGER ||
        items[STORAGE_COUNT]->as.integer < 0) {
        pickle_fail(p, "a persistent id that is no storage");
    }
    push_new(p, (Value){.kind = VALUE_STORAGE, .as.list = id->as.list});
}

/* An OrderedDict's attributes (a state dict has _metadata): not needed. */
static void build(Pickle *p, size_t one) {
    operand_take(p, one);
    if (top(p)->kind != VALUE_DICT) {
        pickle_fail(p, "attributes of what is no OrderedDict");
    }
}

static void memo_set(Pickle *p, uint64_t index) {
    Value *value = top(p);
    if (index >= MEMO_MOST) {
        pickle_fail(p, "a memo of more than 2^22 objects");
    }
    p->memo = arena_grow(p->scratch, p->memo, &p->memo_room, (size_t)index + 1, sizeof *p->memo);
    p->memo_count += p->memo[index] == NULL;
    p->memo[index] = value;
}

static void memo_put(Pickle *p, size_t width) {
    memo_set(p, operand_number(p, width));
}

static void memoize(Pickle *p, size_t unused) {
    (void)unused;
    memo_set(p, p->memo_count);
}

static void memo_get(Pickle *p, size_t width) {
    uint64_t index = operand_number(p, width);
    if (index >= p->memo_room || p->memo[index] == NULL) {
        pickle_fail(p, "an object is taken from the memo before it is there");
    }
    push(p, p->memo[index]);
}

/* ---- the machine ---- */

/* What state dicts need, named as in Python's pickletools. */
static const struct {
    void (*run)(Pickle *p, size_t argument);
    size_t argument;
} opcodes[256] = {
    [0x80] = {protocol, 1},             /* PROTO */
    [0x95] = {skip, 8},                 /* FRAME */
    ['('] = {push_mark, 0},             /* MARK */
    ['N'] = {push_empty, VALUE_OTHER},  /* NONE */
    [0x88] = {push_empty, VALUE_OTHER}, /* NEWTRUE */
    [0x89] = {push_empty, VALUE_OTHER}, /* NEWFALSE */
    ['J'] = {push_int, 4},              /* BININT */
    ['K'] = {push_unsigned, 1},         /* BININT1 */
    ['M'] = {push_unsigned, 2},         /* BININT2 */
    [0x8A] = {push_long, 1},            /* LONG1 */
    [0x8B] = {push_long, 4},            /* LONG4 */
    ['G'] = {push_float, 8},            /* BINFLOAT */
    [0x8C] = {push_string, 1},          /* SHORT_BINUNICODE */
    ['X'] = {push_string, 4},           /* BINUNICODE */
    [0x8D] = {push_string, 8},          /* BINUNICODE8 */
    [')'] = {push_empty, VALUE_TUPLE},  /* EMPTY_TUPLE */
    [0x85] = {push_tuple, 1},           /* TUPLE1 */
    [0x86] = {push_tuple, 2},           /* TUPLE2 */
    [0x87] = {push_tuple, 3},           /* TUPLE3 */
    ['t'] = {push_tuple, MARKED},       /* TUPLE */
    [']'] = {push_empty, VALUE_LIST},   /* EMPTY_LIST */
    ['a'] = {list_append, 1},           /* APPEND */
    ['e'] = {list_append, MARKED},      /* APPENDS */
    ['}'] = {push_empty, VALUE_DICT},   /* EMPTY_DICT */
    ['s'] = {set_items, 2},             /* SETITEM */
    ['u'] = {set_items, MARKED},        /* SETITEMS */
    ['c'] = {global, 0},                /* GLOBAL */
    [0x93] = {stack_global, 2},         /* STACK_GLOBAL */
    ['R'] = {reduce, 2},                /* REDUCE */
    ['b'] = {build, 1},                 /* BUILD */
    ['Q'] = {persistent, 1},            /* BINPERSID */
    ['q'] = {memo_put, 1},              /* BINPUT */
    ['r'] = {memo_put, 4},              /* LONG_BINPUT */
    [0x94] = {memoize, 0},              /* MEMOIZE */
    ['h'] = {memo_get, 1},              /* BINGET */
    ['j'] = {memo_get, 4},              /* LONG_BINGET */
};

static Value *pickle_run(Pickle *p) {
    for (size_t steps = 0; p->at < p->end; steps++) {
        unsigned char code = *p->at++;
        if (steps == OPCODES_MOST) {
            pickle_fail(p, "more than 2^24 opcodes");
        }
        if (code == '.') { /* STOP */
            return *operand_take(p, 1);
        }
        if (opcodes[code].run == NULL) {
            fail(STATUS_INPUT,
                 "%s: data.pkl has the opcode 0x%02X; only what tensors, dicts, lists, numbers and "
                 "strings need is read: save the state_dict alone",
                 p->path, code);
        }
        opcodes[code].run(p, opcodes[code].argument);
    }
    pickle_fail(p, "ends before its STOP");
}

/* ---- from values to tensors ---- */

typedef struct Walk {
    TensorStore *store;
    const Zip *zip;
    const char *path, *folder; /* of the members */
    Arena *scratch;
    const unsigned char **unpacked; /* of each member of the zip; NULL: not yet */
    uint64_t file_size, spent;      /* bytes of copies */
    size_t steps;                   /* that the walk may still take */
    char name[NAME_MOST + 1];
} Walk;

/* Of copies (strides, deflated storages) together: a state dict stays far below, a few numbers
 * expanded to a terabyte do not. */
static void spend(Walk *w, const Tensor *tensor, uint64_t bytes) {
    w->spent = bytes < UINT64_MAX - w->spent ? w->spent + bytes : UINT64_MAX;
    if (inflates_too_far(w->spent, w->file_size)) {
        tensor_fail(tensor,
                    "unpacking it would take %llu bytes, far more than the file (see --unpack)",
                    (unsigned long long)bytes);
    }
}

/* torch.load asks no CRC-32 of what is stored, and torch.save may leave it out (set_crc32_options).
 */
static const unsigned char *member_bytes(Arena *arena, const ZipMember *member, const char *what) {
    return member->method == 0 ? member->data : zip_unpack(arena, member, what);
}

/* The bytes of the storage, which holds as many elements of `unit` bytes as it says. */
static const unsigned char *storage_bytes(Walk *w, const Tensor *tensor, Value *const *storage,
                                          size_t unit) {
    PickleText key = storage[STORAGE_KEY]->as.string;
    uint64_t count = (uint64_t)storage[STORAGE_COUNT]->as.integer;
    char *name = arena_format(w->scratch, "%s/data/%.*s", w->folder,
                              key.length <= 100 ? (int)key.length : 0, key.text);
    const ZipMember *member = zip_find(w->zip, name);
    if (member == NULL) {
        tensor_fail(tensor, "its storage '%s' is missing", name);
    }
    if (member->size / unit != count) {
        tensor_fail(tensor, "its storage of %llu elements holds %llu bytes",
                    (unsigned long long)count, (unsigned long long)member->size);
    }
    const unsigned char **unpacked = &w->unpacked[member - w->zip->members];
    if (*unpacked == NULL) {
        spend(w, tensor, member->method != 0 ? member->size : 0);
        *unpacked =
            member_bytes(w->store->arena, member,
                         arena_format(w->scratch, "%s: tensor '%s'", w->path, tensor->name));
    }
    return *unpacked;
}

static bool value_size(const Value *value, size_t *size) {
    bool good = value->kind == VALUE_INTEGER && value->as.integer >= 0 &&
                (uint64_t)value->as.integer <= SIZE_MAX;
    *size = good ? (size_t)value->as.integer : 0;
    return good;
}

/* Sets shape, count and strides; returns the highest element of the storage that is reached. */
static size_t tensor_shape(Tensor *tensor, Value *const *args, size_t *strides) {
    const Value *size = args[TENSOR_SIZE], *stride = args[TENSOR_STRIDE];
    size_t rank = size->as.list.count, reach, step;
    if (rank > TENSOR_MAX_RANK) {
        tensor_fail(tensor, "%zu dimensions; at most %d are read", rank, TENSOR_MAX_RANK);
    }
    bool good = value_size(args[TENSOR_OFFSET], &reach) && stride->as.list.count == rank;
    for (size_t d = 0; d < rank && good; d++) {
        good = value_size(size->as.list.items[d], &tensor->shape[d]) &&
               value_size(stride->as.list.items[d], &strides[d]);
    }
    if (!good) {
        tensor_fail(tensor, "its size and strides are not made of sizes");
    }
    tensor->rank = (int)rank;
    tensor_measure(tensor);
    for (size_t d = 0; d < rank && good && tensor->count > 0; d++) {
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

/* Adds the tensor by the name w->name. */
static void add_tensor(Walk *w, const Value *rebuild) {
    Value *const *args = rebuild->as.list.items;
    Value *const *storage = args[TENSOR_STORAGE]->as.list.items;
    const Global *stored = storage[STORAGE_CLASS]->as.global, *type = stored;
    if (rebuild->as.list.count > TENSOR_DTYPE && args[TENSOR_DTYPE]->kind == VALUE_GLOBAL) {
        type = args[TENSOR_DTYPE]->as.global;
    }
    bool other = stored->dtype == DTYPE_OTHER || type->dtype == DTYPE_OTHER;
    Tensor tensor = {.file = w->path,
                     .name = arena_copy(w->store->arena, w->name, strlen(w->name))};
    tensor.dtype = other ? DTYPE_OTHER : type->dtype;
    tensor.type = other ? type->name : dtype_name(type->dtype);
    size_t strides[TENSOR_MAX_RANK] = {0}, last = tensor_shape(&tensor, args, strides);
    if (!other) {
        size_t unit = dtype_size(stored->dtype), element = dtype_size(type->dtype);
        const unsigned char *data = storage_bytes(w, &tensor, storage, unit);
        uint64_t held = (uint64_t)storage[STORAGE_COUNT]->as.integer * unit / element;
        if (tensor.count > 0 && last >= held) {
            tensor_fail(&tensor, "reaches element %zu of a storage of %llu", last,
                        (unsigned long long)held);
        }
        size_t offset = tensor.count > 0 ? (size_t)args[TENSOR_OFFSET]->as.integer : 0;
        tensor.data = data + offset * element;
        if (tensor.count > 0 && !is_row_major(&tensor, strides)) {
            spend(w, &tensor, (uint64_t)tensor.count * element);
            tensor_gather(&tensor, strides, w->store->arena);
        }
        tensor.data = little_elements(w->store->arena, tensor.data, element, tensor.count);
    }
    tensors_add(w->store, &tensor);
}

/* Appends ".key", or of a list ".index", to the name[length]; returns its new length. */
static size_t name_extend(Walk *w, size_t length, const Value *key, size_t index) {
    char digits[24];
    PickleText text = {.text = digits};
    if (key != NULL && key->kind == VALUE_STRING) {
        text = key->as.string;
    } else if (key == NULL || key->kind == VALUE_INTEGER) {
        text.length = (size_t)snprintf(digits, sizeof digits, "%lld",
                                       key == NULL ? (long long)index : (long long)key->as.integer);
    }
    size_t dot = length > 0, room = NAME_MOST - length;
    if ((key != NULL && key->kind != VALUE_STRING && key->kind != VALUE_INTEGER) ||
        text.length > room || text.length + dot > room) {
        fail(STATUS_INPUT,
             "%s: '%s' has a key that is longer than %d bytes or neither string nor integer",
             w->path, w->name, NAME_MOST);
    }
    memcpy(w->name + length, ".", dot);
    memcpy(w->name + length + dot, text.text, text.length);
    length += dot + text.length;
    w->name[length] = 0;
    if (strlen(w->name) != length || !utf8_valid(w->name, length)) {
        fail(STATUS_INPUT, "%s: tensor '%s': a name that is no text", w->path, w->name);
    }
    return length;
}

static bool is_container(const Value *value) {
    return value->kind == VALUE_DICT || value->kind == VALUE_LIST || value->kind == VALUE_TUPLE;
}

static bool is_state_dict(const Value *key, const Value *value) {
    return value->kind == VALUE_DICT && key->kind == VALUE_STRING &&
           (text_is(key->as.string, "state_dict") || text_is(key->as.string, "model_state_dict"));
}

/* Adds the tensors below `value`, whose name is w->name[0 .. length). */
static void walk(Walk *w, const Value *value, size_t length, int depth) {
    if (w->steps-- == 0 || depth == DEPTH_MOST) {
        fail(STATUS_INPUT, "%s: data.pkl: objects nested too deep or too often", w->path);
    }
    if (value->kind == VALUE_TENSOR) {
        add_tensor(w, value);
    }
    if (!is_container(value)) {
        return;
    }
    bool dict = value->kind == VALUE_DICT;
    size_t stride = dict ? 2 : 1;
    for (size_t i = 0; i < value->as.list.count; i += stride) {
        const Value *key = dict ? value->as.list.items[i] : NULL;
        const Value *item = value->as.list.items[i + stride - 1];
        bool outermost = depth == 0 && dict && is_state_dict(key, item);
        w->name[length] = 0;
        if (item->kind == VALUE_TENSOR || is_container(item)) {
            walk(w, item, outermost ? length : name_extend(w, length, key, i), depth + 1);
        }
    }
}

/* ---- the file ---- */

/* The first member "NAME/data.pkl"; *folder: length of NAME. */
static const ZipMember *find_pickle(const Zip *zip, size_t *folder) {
    for (size_t i = 0; i < zip->count; i++) {
        const char *name = zip->members[i].name, *slash = strchr(name, '/');
        if (slash != NULL && slash != name && strcmp(slash, "/data.pkl") == 0) {
            *folder = (size_t)(slash - name);
            return &zip->members[i];
        }
    }
    return NULL;
}

/* The member `name` beside data.pkl, if there is one, holds this word. */
static void check_word(const Walk *w, const char *name, const char *word) {
    const ZipMember *member = zip_find(w->zip, arena_format(w->scratch, "%s/%s", w->folder, name));
    char *what = arena_format(w->scratch, "%s: %s", w->path, name);
    if (member == NULL) {
        return;
    }
    if (member->size > 16) {
        fail(STATUS_INPUT, "%s: %llu bytes, expected a word", what,
             (unsigned long long)member->size);
    }
    const unsigned char *data = member_bytes(w->scratch, member, what);
    char *text = arena_copy(w->scratch, (const char *)data, (size_t)member->size);
    text[strcspn(text, "\n")] = 0;
    if (strcmp(text, word) != 0) {
        fail(STATUS_INPUT, "%s is '%s', expected '%s'", what, text, word);
    }
}

static void check_archive(const Walk *w) {
    if (zip_find(w->zip, arena_format(w->scratch, "%s/constants.pkl", w->folder)) != NULL) {
        fail(STATUS_INPUT,
             "%s: a TorchScript archive holds a program: save its tensors with "
             "torch.save(torch.jit.load(FILE).state_dict(), FILE)",
             w->path);
    }
    check_word(w, "byteorder", "little");
    check_word(w, "version", "3");
}

/* False: the zip holds no data.pkl where torch.save puts it. Adds every tensor that is reachable
 * from the pickled object through dicts, lists and tuples. Its name is its path of keys and
 * indices, joined with dots; of a checkpoint, the state_dict or model_state_dict of the outermost
 * dict keeps its own names. Data stays in the map; where strides leave gaps, repeat or reorder, it
 * is a row-major copy in the arena. */
static bool pickle_read(TensorStore *store, const Zip *zip, size_t file_size, const char *path) {
    size_t folder = 0, alone = 0;
    const ZipMember *member = find_pickle(zip, &folder);
    if (member == NULL) {
        return false;
    }
    Arena *scratch = arena_new();
    char *what = arena_format(scratch, "%s: data.pkl", path);
    Walk *w = arena_alloc(scratch, 1, sizeof *w);
    *w = (Walk){.store = store, .zip = zip, .path = path, .scratch = scratch};
    w->folder = arena_copy(scratch, member->name, folder);
    w->unpacked = arena_alloc(scratch, zip->count, sizeof *w->unpacked);
    w->file_size = file_size;
    check_archive(w);
    if (member->size > PICKLE_MOST) {
        fail(STATUS_INPUT, "%s: %llu bytes are too many for a pickle", what,
             (unsigned long long)member->size);
    }
    const unsigned char *data = member_bytes(scratch, member, what);
    Pickle pickle = {.path = path, .scratch = scratch, .at = data, .end = data + member->size};
    Value *object = pickle_run(&pickle);
    if (object->kind == VALUE_TENSOR) {
        alone = (size_t)snprintf(w->name, sizeof w->name, "tensor");
    }
    w->steps = VISITS_MOST * pickle.values;
    walk(w, object, alone, 0);
    arena_free(scratch);
    return true;
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
    /* The length of a safetensors header may begin with any bytes, so it is asked for before "PK"
     * (a zip) and '{'. */
    if (safetensors_is(&map)) {
        safetensors_read(store, add_map(store, map), path);
    } else if (zip_is(&map)) {
        Arena *scratch = arena_new();
        Zip zip = zip_open(scratch, add_map(store, map), path);
        if (!pickle_read(store, &zip, map.size, path)) {
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

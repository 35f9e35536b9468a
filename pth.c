/* pth.c: reads torch.save's zip. See pth.h.
 *
 *   NAME/data.pkl    the object, a pickle whose tensors refer to storages by key
 *   NAME/data/KEY    the bytes of a storage
 *   NAME/byteorder   "little"; NAME/version   "3"
 *
 *   pickle           a program for a stack machine that builds objects
 *   tensor           _rebuild_tensor_v2(storage, offset, size, stride, ...), all counted in
 * elements storage          persistent id ('storage', torch.FloatStorage, KEY, location, count)
 *
 * A pickle can name any function of any Python module and call it. Here a name is looked up in the
 * table below and nothing else happens; what is not in the table is refused by name, and so is
 * every opcode that state dicts do not need. Pickled objects may refer to each other at will
 * (cycles, exponentially many paths), so the machine counts what it makes and the walk over the
 * result has a depth and a number of steps that it does not exceed. */
#include "pth.h"

#include <stdlib.h>
#include <string.h>

enum {
    FORMAT_VERSION = 3,
    OPCODES_MOST = 1 << 24,
    VALUES_MOST = 1 << 21,
    MEMO_MOST = 1 << 22,
    STEPS_MOST = 1 << 22,    /* of the walk */
    DEPTH_MOST = 32,         /* of dicts in dicts */
    NAME_MOST = 1024,        /* bytes of a tensor's name */
    PICKLE_MOST = 256 << 20, /* bytes */
    UNPACKED_FREE = 64 << 20 /* bytes; see spend */
};

/* ---- what a pickle may name ---- */

typedef enum GlobalKind {
    GLOBAL_DICT,
    GLOBAL_SIZE,
    GLOBAL_TENSOR_V2,
    GLOBAL_TENSOR_V3,
    GLOBAL_PARAMETER,
    GLOBAL_STORAGE,
    GLOBAL_UNTYPED,
    GLOBAL_DTYPE
} GlobalKind;

typedef struct Global {
    const char *module, *name;
    GlobalKind kind;
    Dtype dtype;
    const char *type; /* of DTYPE_OTHER */
    size_t element;   /* of DTYPE_OTHER: bytes */
} Global;

static const Global globals[] = {
    {"collections", "OrderedDict", GLOBAL_DICT, DTYPE_OTHER, NULL, 0},
    {"torch", "Size", GLOBAL_SIZE, DTYPE_OTHER, NULL, 0},
    {"torch._utils", "_rebuild_tensor_v2", GLOBAL_TENSOR_V2, DTYPE_OTHER, NULL, 0},
    {"torch._utils", "_rebuild_tensor_v3", GLOBAL_TENSOR_V3, DTYPE_OTHER, NULL, 0},
    {"torch._utils", "_rebuild_parameter", GLOBAL_PARAMETER, DTYPE_OTHER, NULL, 0},
    {"torch._utils", "_rebuild_parameter_with_state", GLOBAL_PARAMETER, DTYPE_OTHER, NULL, 0},
    {"torch", "FloatStorage", GLOBAL_STORAGE, DTYPE_F32, NULL, 0},
    {"torch", "BFloat16Storage", GLOBAL_STORAGE, DTYPE_BF16, NULL, 0},
    {"torch", "HalfStorage", GLOBAL_STORAGE, DTYPE_F16, NULL, 0},
    {"torch", "DoubleStorage", GLOBAL_STORAGE, DTYPE_F64, NULL, 0},
    {"torch", "LongStorage", GLOBAL_STORAGE, DTYPE_I64, NULL, 0},
    {"torch", "IntStorage", GLOBAL_STORAGE, DTYPE_I32, NULL, 0},
    {"torch", "ShortStorage", GLOBAL_STORAGE, DTYPE_I16, NULL, 0},
    {"torch", "CharStorage", GLOBAL_STORAGE, DTYPE_I8, NULL, 0},
    {"torch", "ByteStorage", GLOBAL_STORAGE, DTYPE_U8, NULL, 0},
    {"torch", "BoolStorage", GLOBAL_STORAGE, DTYPE_BOOL, NULL, 0},
    {"torch", "ComplexFloatStorage", GLOBAL_STORAGE, DTYPE_OTHER, "C64", 8},
    {"torch", "ComplexDoubleStorage", GLOBAL_STORAGE, DTYPE_OTHER, "C128", 16},
    {"torch.storage", "UntypedStorage", GLOBAL_UNTYPED, DTYPE_U8, NULL, 0},
    {"torch", "uint16", GLOBAL_DTYPE, DTYPE_U16, NULL, 0},
    {"torch", "uint32", GLOBAL_DTYPE, DTYPE_U32, NULL, 0},
    {"torch", "uint64", GLOBAL_DTYPE, DTYPE_U64, NULL, 0},
    {"torch", "float8_e4m3fn", GLOBAL_DTYPE, DTYPE_OTHER, "F8_E4M3", 1},
    {"torch", "float8_e5m2", GLOBAL_DTYPE, DTYPE_OTHER, "F8_E5M2", 1},
    {"torch", "float8_e4m3fnuz", GLOBAL_DTYPE, DTYPE_OTHER, "F8_E4M3FNUZ", 1},
    {"torch", "float8_e5m2fnuz", GLOBAL_DTYPE, DTYPE_OTHER, "F8_E5M2FNUZ", 1},
    {"torch", "float8_e8m0fnu", GLOBAL_DTYPE, DTYPE_OTHER, "F8_E8M0", 1}};

/* ---- values ---- */

typedef enum ValueKind {
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INTEGER,
    VALUE_NUMBER, /* a float, or an integer beyond 64 bits: never needed, so not kept */
    VALUE_STRING,
    VALUE_TUPLE,
    VALUE_LIST,
    VALUE_DICT, /* items: key, value, key, value ... */
    VALUE_GLOBAL,
    VALUE_STORAGE,
    VALUE_TENSOR
} ValueKind;

typedef struct Value {
    ValueKind kind;
    union {
        int64_t integer;
        struct {
            const char *text; /* in the pickle, without a 0 after it */
            size_t length;
        } string;
        struct {
            struct Value **items;
            size_t count, room;
        } list;
        const Global *global;
        struct Storage *storage;
        struct Rebuild *rebuild;
    } as;
} Value;

typedef struct Storage {
    const Global *type;
    const Value *key; /* a string */
    uint64_t count;   /* elements of type */
} Storage;

typedef struct Rebuild {
    const Storage *storage;
    const Global *type;
    const Value *offset, *size, *stride;
    const Tensor *made; /* by the walk, so that a tensor with two names is copied once */
} Rebuild;

typedef struct Pickle {
    const char *path;
    const unsigned char *at, *end;
    Arena *scratch;
    Value **stack, **memo;
    size_t *marks; /* heights of the stack */
    size_t stack_count, stack_room, memo_count, memo_room, mark_count, mark_room;
    size_t values, slab_left;
    Value *slab;
} Pickle;

REFSAE_NORETURN static void broken(Pickle *p, const char *what) {
    fail(STATUS_INPUT, "%s: data.pkl: %s", p->path, what);
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
        broken(p, "more than 2^21 objects");
    }
    if (p->slab_left == 0) {
        p->slab = arena_alloc(p->scratch, SLAB, sizeof *p->slab);
        p->slab_left = SLAB;
    }
    Value *made = &p->slab[--p->slab_left];
    *made = value;
    push(p, made);
}

/* Height of the stack below which the running opcode may not reach. */
static size_t stack_floor(const Pickle *p) {
    return p->mark_count > 0 ? p->marks[p->mark_count - 1] : 0;
}

static Value *pop(Pickle *p) {
    if (p->stack_count == stack_floor(p)) {
        broken(p, "an opcode finds the stack empty");
    }
    return p->stack[--p->stack_count];
}

static void mark(Pickle *p) {
    p->marks = arena_grow(p->scratch, p->marks, &p->mark_room, p->mark_count + 1, sizeof *p->marks);
    p->marks[p->mark_count++] = p->stack_count;
}

/* Takes what lies above the last mark, or the last *count values, off the stack; the items stay
 * good until the next push. */
static Value **take(Pickle *p, bool marked, size_t *count) {
    size_t low = stack_floor(p);
    if (marked && p->mark_count == 0) {
        broken(p, "an opcode finds no mark");
    }
    if (marked) {
        p->mark_count--;
        *count = p->stack_count - low;
    } else if (*count > p->stack_count - low) {
        broken(p, "an opcode finds the stack empty");
    }
    p->stack_count -= *count;
    return *count > 0 ? p->stack + p->stack_count : NULL;
}

/* APPEND(S) and SETITEM(S): the items above the mark, or the last `count`, into what is below. */
static void fill_container(Pickle *p, ValueKind kind, bool marked, size_t count) {
    Value **items = take(p, marked, &count);
    if (p->stack_count == stack_floor(p) || p->stack[p->stack_count - 1]->kind != kind ||
        (kind == VALUE_DICT && count % 2 != 0)) {
        broken(p, "items are put into what is no list or dict");
    }
    Value *container = p->stack[p->stack_count - 1];
    container->as.list.items =
        arena_grow(p->scratch, container->as.list.items, &container->as.list.room,
                   container->as.list.count + count, sizeof *items);
    for (size_t i = 0; i < count; i++) {
        container->as.list.items[container->as.list.count++] = items[i];
    }
}

static void make_tuple(Pickle *p, bool marked, size_t count) {
    Value **items = take(p, marked, &count), tuple = {.kind = VALUE_TUPLE};
    if (count > 0) {
        tuple.as.list.items = arena_alloc(p->scratch, count, sizeof *items);
        tuple.as.list.count = count;
        memcpy(tuple.as.list.items, items, count * sizeof *items);
    }
    push_new(p, tuple);
}

/* ---- operands ---- */

static const unsigned char *operand(Pickle *p, size_t count) {
    if (count > (size_t)(p->end - p->at)) {
        broken(p, "ends within an opcode");
    }
    p->at += count;
    return p->at - count;
}

/* An unsigned number of 1, 2, 4 or 8 bytes. */
static uint64_t operand_size(Pickle *p, size_t count) {
    uint64_t value = 0;
    memcpy(&value, operand(p, count), count);
    return value;
}

static void operand_string(Pickle *p, size_t width) {
    uint64_t length = operand_size(p, width);
    if (length > (uint64_t)(p->end - p->at)) {
        broken(p, "a string that ends after the file");
    }
    const char *text = (const char *)operand(p, (size_t)length);
    push_new(p, (Value){.kind = VALUE_STRING, .as.string = {text, (size_t)length}});
}

/* LONG1, LONG4: two's complement of any length. */
static void operand_long(Pickle *p, size_t width) {
    uint64_t length = operand_size(p, width), bits = 0;
    if (length > (uint64_t)(p->end - p->at)) {
        broken(p, "a number that ends after the file");
    }
    const unsigned char *bytes = operand(p, (size_t)length);
    if (length > 8) {
        push_new(p, (Value){.kind = VALUE_NUMBER});
        return;
    }
    if (length > 0) {
        memcpy(&bits, bytes, (size_t)length);
        if (length < 8 && bytes[length - 1] >= 0x80) {
            bits |= UINT64_MAX << (8 * length);
        }
    }
    Value value = {.kind = VALUE_INTEGER};
    memcpy(&value.as.integer, &bits, sizeof bits);
    push_new(p, value);
}

/* Up to a newline, without it. */
static const char *operand_line(Pickle *p, size_t *length) {
    const unsigned char *line = memchr(p->at, '\n', (size_t)(p->end - p->at));
    if (line == NULL) {
        broken(p, "ends within an opcode");
    }
    const char *text = (const char *)p->at;
    *length = (size_t)(line - p->at);
    p->at = line + 1;
    return text;
}

/* ---- calls ---- */

static bool text_is(const char *text, size_t length, const char *word) {
    return strlen(word) == length && memcmp(text, word, length) == 0;
}

static void push_global(Pickle *p, const char *module, size_t module_length, const char *name,
                        size_t length) {
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (text_is(module, module_length, globals[i].module) &&
            text_is(name, length, globals[i].name)) {
            push_new(p, (Value){.kind = VALUE_GLOBAL, .as.global = &globals[i]});
            return;
        }
    }
    fail(STATUS_INPUT,
         "%s: data.pkl asks for '%.*s.%.*s'; nothing is executed, only tensors, dicts, "
         "lists, numbers and strings are read: save the state_dict alone",
         p->path, (int)(module_length < 200 ? module_length : 200), module,
         (int)(length < 200 ? length : 200), name);
}

static void stack_global(Pickle *p) {
    size_t two = 2;
    Value **pair = take(p, false, &two);
    if (pair[0]->kind != VALUE_STRING || pair[1]->kind != VALUE_STRING) {
        broken(p, "a global whose name is no string");
    }
    push_global(p, pair[0]->as.string.text, pair[0]->as.string.length, pair[1]->as.string.text,
                pair[1]->as.string.length);
}

/* args: storage, offset, size, stride, requires_grad, hooks, then for v3 the dtype, then metadata,
 * which says whether the values are to be negated or conjugated. */
static void make_tensor(Pickle *p, const Global *function, const Value *args) {
    size_t count = args->as.list.count, known = function->kind == GLOBAL_TENSOR_V3 ? 7 : 6;
    Value **items = args->as.list.items;
    bool good = count >= known && count <= known + 1 && items[0]->kind == VALUE_STORAGE &&
                items[1]->kind == VALUE_INTEGER && items[2]->kind == VALUE_TUPLE &&
                items[3]->kind == VALUE_TUPLE;
    const Global *type = good ? items[0]->as.storage->type : NULL;
    if (good && known == 7) {
        good = items[6]->kind == VALUE_GLOBAL && items[6]->as.global->kind == GLOBAL_DTYPE;
        type = items[6]->as.global;
    } else if (good) {
        good = type->kind == GLOBAL_STORAGE;
    }
    if (!good) {
        broken(p, "a tensor whose parts are not those of a tensor");
    }
    if (count > known && (items[known]->kind != VALUE_DICT || items[known]->as.list.count != 0)) {
        broken(p, "a tensor that is to be negated or conjugated");
    }
    Rebuild *rebuild = arena_alloc(p->scratch, 1, sizeof *rebuild);
    *rebuild = (Rebuild){items[0]->as.storage, type, items[1], items[2], items[3], NULL};
    push_new(p, (Value){.kind = VALUE_TENSOR, .as.rebuild = rebuild});
}

static void reduce(Pickle *p) {
    size_t two = 2;
    Value **pair = take(p, false, &two), *args = pair[1];
    if (pair[0]->kind != VALUE_GLOBAL || args->kind != VALUE_TUPLE) {
        broken(p, "a call of what is no function");
    }
    const Global *function = pair[0]->as.global;
    size_t count = args->as.list.count;
    Value *first = count > 0 ? args->as.list.items[0] : NULL;
    switch (function->kind) {
    case GLOBAL_DICT:
        if (count == 0) {
            push_new(p, (Value){.kind = VALUE_DICT});
            return;
        }
        break;
    case GLOBAL_SIZE:
        if (count == 1 && (first->kind == VALUE_TUPLE || first->kind == VALUE_LIST)) {
            push(p, first);
            return;
        }
        break;
    case GLOBAL_PARAMETER: /* (tensor, requires_grad, hooks[, state]) */
        if (count >= 3 && first->kind == VALUE_TENSOR) {
            push(p, first);
            return;
        }
        break;
    case GLOBAL_TENSOR_V2:
    case GLOBAL_TENSOR_V3:
        make_tensor(p, function, args);
        return;
    case GLOBAL_STORAGE:
    case GLOBAL_UNTYPED:
    case GLOBAL_DTYPE:
        break;
    }
    fail(STATUS_INPUT, "%s: data.pkl: a call of '%s.%s' in a form not known", p->path,
         function->module, function->name);
}

/* ('storage', class, key, location, count): count in elements of the class. */
static void persistent(Pickle *p) {
    Value *id = pop(p);
    Value **items = id->as.list.items;
    bool good = id->kind == VALUE_TUPLE && id->as.list.count == 5 &&
                items[0]->kind == VALUE_STRING &&
                text_is(items[0]->as.string.text, items[0]->as.string.length, "storage") &&
                items[1]->kind == VALUE_GLOBAL &&
                (items[1]->as.global->kind == GLOBAL_STORAGE ||
                 items[1]->as.global->kind == GLOBAL_UNTYPED) &&
                items[2]->kind == VALUE_STRING && items[4]->kind == VALUE_INTEGER &&
                items[4]->as.integer >= 0;
    if (!good) {
        broken(p, "a persistent id that is no storage");
    }
    Storage *storage = arena_alloc(p->scratch, 1, sizeof *storage);
    *storage = (Storage){items[1]->as.global, items[2], (uint64_t)items[4]->as.integer};
    push_new(p, (Value){.kind = VALUE_STORAGE, .as.storage = storage});
}

/* An OrderedDict's attributes (a state dict has _metadata): not needed. */
static void build(Pickle *p) {
    pop(p);
    if (p->stack_count == stack_floor(p) || p->stack[p->stack_count - 1]->kind != VALUE_DICT) {
        broken(p, "attributes of what is no OrderedDict");
    }
}

/* ---- the memo ---- */

static void memo_put(Pickle *p, uint64_t index) {
    if (p->stack_count == stack_floor(p)) {
        broken(p, "an opcode finds the stack empty");
    }
    if (index >= MEMO_MOST) {
        broken(p, "a memo of more than 2^22 objects");
    }
    p->memo = arena_grow(p->scratch, p->memo, &p->memo_room, (size_t)index + 1, sizeof *p->memo);
    p->memo_count += p->memo[index] == NULL;
    p->memo[index] = p->stack[p->stack_count - 1];
}

static void memo_get(Pickle *p, uint64_t index) {
    if (index >= p->memo_room || p->memo[index] == NULL) {
        broken(p, "an object is taken from the memo before it is there");
    }
    push(p, p->memo[index]);
}

/* ---- the machine ---- */

REFSAE_NORETURN static void refuse_opcode(Pickle *p, unsigned char code) {
    static const struct {
        unsigned char code;
        const char *name;
    } known[] = {{'0', "POP"},
                 {'1', "POP_MARK"},
                 {'2', "DUP"},
                 {'B', "BINBYTES"},
                 {'C', "SHORT_BINBYTES"},
                 {'F', "FLOAT"},
                 {'I', "INT"},
                 {'L', "LONG"},
                 {'P', "PERSID"},
                 {'S', "STRING"},
                 {'T', "BINSTRING"},
                 {'U', "SHORT_BINSTRING"},
                 {'V', "UNICODE"},
                 {'d', "DICT"},
                 {'g', "GET"},
                 {'i', "INST"},
                 {'l', "LIST"},
                 {'o', "OBJ"},
                 {'p', "PUT"},
                 {0x81, "NEWOBJ"},
                 {0x82, "EXT1"},
                 {0x83, "EXT2"},
                 {0x84, "EXT4"},
                 {0x8E, "BINBYTES8"},
                 {0x8F, "EMPTY_SET"},
                 {0x90, "ADDITEMS"},
                 {0x91, "FROZENSET"},
                 {0x92, "NEWOBJ_EX"},
                 {0x96, "BYTEARRAY8"},
                 {0x97, "NEXT_BUFFER"},
                 {0x98, "READONLY_BUFFER"}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].code == code) {
            fail(STATUS_INPUT,
                 "%s: data.pkl has the opcode %s; only what tensors, dicts, lists, numbers "
                 "and strings need is read: save the state_dict alone",
                 p->path, known[i].name);
        }
    }
    fail(STATUS_INPUT, "%s: data.pkl: byte 0x%02X is no opcode of a pickle", p->path, code);
}

/* One opcode, named as in Python's pickle module. */
static void step(Pickle *p, unsigned char code) {
    uint64_t number;
    const char *module, *name;
    size_t module_length, length;
    switch (code) {
    case 0x80: /* PROTO */
        if (operand_size(p, 1) > 5) {
            broken(p, "a protocol after 5");
        }
        return;
    case 0x95: /* FRAME: only says how much to read at once */
        operand(p, 8);
        return;
    case '(':
        mark(p);
        return;
    case 'N':
        push_new(p, (Value){.kind = VALUE_NONE});
        return;
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        push_new(p, (Value){.kind = VALUE_BOOL});
        return;
    case 'J': /* BININT */
        number = operand_size(p, 4);
        push_new(
            p, (Value){.kind = VALUE_INTEGER,
                       .as.integer = (int64_t)number - (number >> 31 != 0 ? (int64_t)1 << 32 : 0)});
        return;
    case 'K': /* BININT1 */
    case 'M': /* BININT2 */
        number = operand_size(p, code == 'K' ? 1 : 2);
        push_new(p, (Value){.kind = VALUE_INTEGER, .as.integer = (int64_t)number});
        return;
    case 0x8A: /* LONG1 */
        operand_long(p, 1);
        return;
    case 0x8B: /* LONG4 */
        operand_long(p, 4);
        return;
    case 'G': /* BINFLOAT */
        operand(p, 8);
        push_new(p, (Value){.kind = VALUE_NUMBER});
        return;
    case 0x8C: /* SHORT_BINUNICODE */
        operand_string(p, 1);
        return;
    case 'X': /* BINUNICODE */
        operand_string(p, 4);
        return;
    case 0x8D: /* BINUNICODE8 */
        operand_string(p, 8);
        return;
    case ')': /* EMPTY_TUPLE */
        push_new(p, (Value){.kind = VALUE_TUPLE});
        return;
    case 0x85: /* TUPLE1 */
    case 0x86:
    case 0x87:
        make_tuple(p, false, (size_t)(code - 0x84));
        return;
    case 't':
        make_tuple(p, true, 0);
        return;
    case ']':
        push_new(p, (Value){.kind = VALUE_LIST});
        return;
    case 'a': /* APPEND */
        fill_container(p, VALUE_LIST, false, 1);
        return;
    case 'e': /* APPENDS */
        fill_container(p, VALUE_LIST, true, 0);
        return;
    case '}':
        push_new(p, (Value){.kind = VALUE_DICT});
        return;
    case 's': /* SETITEM */
        fill_container(p, VALUE_DICT, false, 2);
        return;
    case 'u': /* SETITEMS */
        fill_container(p, VALUE_DICT, true, 0);
        return;
    case 'c': /* GLOBAL */
        module = operand_line(p, &module_length);
        name = operand_line(p, &length);
        push_global(p, module, module_length, name, length);
        return;
    case 0x93:
        stack_global(p);
        return;
    case 'R':
        reduce(p);
        return;
    case 'b':
        build(p);
        return;
    case 'Q': /* BINPERSID */
        persistent(p);
        return;
    case 'q': /* BINPUT */
    case 'r': /* LONG_BINPUT */
        memo_put(p, operand_size(p, code == 'q' ? 1 : 4));
        return;
    case 0x94: /* MEMOIZE */
        memo_put(p, p->memo_count);
        return;
    case 'h': /* BINGET */
    case 'j': /* LONG_BINGET */
        memo_get(p, operand_size(p, code == 'h' ? 1 : 4));
        return;
    default:
        refuse_opcode(p, code);
    }
}

static Value *pickle_run(Pickle *p) {
    for (size_t opcodes = 0; p->at < p->end; opcodes++) {
        unsigned char code = *p->at++;
        if (opcodes == OPCODES_MOST) {
            broken(p, "more than 2^24 opcodes");
        }
        if (code == '.') {
            return pop(p);
        }
        step(p, code);
    }
    broken(p, "ends before its STOP");
}

/* ---- from values to tensors ---- */

typedef struct Walk {
    const Zip *zip;
    const char *path, *folder; /* of the members */
    Arena *arena, *scratch;
    TensorList *list;
    const unsigned char **unpacked; /* of each member of the zip; NULL: not yet */
    uint64_t budget;                /* bytes that copies may still take */
    size_t steps;
    char name[NAME_MOST + 1];
} Walk;

/* Copies (strides, deflated storages) together may take 16 times the file and 64 MiB: a state dict
 * stays far below, a few numbers expanded to a terabyte do not. */
static void spend(Walk *w, uint64_t bytes) {
    if (bytes > w->budget) {
        fail(STATUS_INPUT,
             "%s: tensor '%s': unpacking it would take %llu bytes, far more than the file", w->path,
             w->name, (unsigned long long)bytes);
    }
    w->budget -= bytes;
}

static const unsigned char *storage_bytes(Walk *w, const Storage *storage, size_t element) {
    const Value *key = storage->key;
    int length = key->as.string.length <= 100 ? (int)key->as.string.length : 0;
    char *name = arena_format(w->scratch, "%s/data/%.*s", w->folder, length, key->as.string.text);
    const ZipMember *member = zip_find(w->zip, name);
    if (member == NULL) {
        fail(STATUS_INPUT, "%s: tensor '%s': its storage '%s' is missing", w->path, w->name, name);
    }
    if (member->size / element != storage->count) {
        fail(STATUS_INPUT, "%s: tensor '%s': its storage of %llu elements holds %llu bytes",
             w->path, w->name, (unsigned long long)storage->count,
             (unsigned long long)member->size);
    }
    size_t index = (size_t)(member - w->zip->members);
    if (w->unpacked[index] == NULL) {
        char *what = arena_format(w->scratch, "%s: tensor '%s'", w->path, w->name);
        if (member->method != 0) {
            spend(w, member->size);
        }
        w->unpacked[index] = zip_unpack(w->arena, member, what);
    }
    return w->unpacked[index];
}

/* Sets shape and strides; returns the highest element of the storage that is reached. */
static uint64_t tensor_shape(Walk *w, const Rebuild *r, Tensor *tensor, size_t *strides) {
    size_t rank = r->size->as.list.count, bytes;
    if (rank > TENSOR_MAX_RANK) {
        fail(STATUS_INPUT, "%s: tensor '%s': %zu dimensions; at most %d are read", w->path, w->name,
             rank, TENSOR_MAX_RANK);
    }
    bool good = r->stride->as.list.count == rank && r->offset->as.integer >= 0;
    tensor->rank = (int)rank;
    for (size_t d = 0; d < rank && good; d++) {
        const Value *size = r->size->as.list.items[d], *stride = r->stride->as.list.items[d];
        good = size->kind == VALUE_INTEGER && stride->kind == VALUE_INTEGER &&
               size->as.integer >= 0 && stride->as.integer >= 0 &&
               (uint64_t)size->as.integer <= SIZE_MAX && (uint64_t)stride->as.integer <= SIZE_MAX;
        tensor->shape[d] = good ? (size_t)size->as.integer : 0;
        strides[d] = good ? (size_t)stride->as.integer : 0;
    }
    if (!good) {
        fail(STATUS_INPUT, "%s: tensor '%s': its size and strides are not made of sizes", w->path,
             w->name);
    }
    good = tensor_shape_bytes(tensor->shape, tensor->rank, 128, &tensor->count, &bytes);
    size_t reach = (size_t)r->offset->as.integer, step = 0;
    for (size_t d = 0; d < rank && good && tensor->count > 0; d++) {
        good = size_mul(&step, tensor->shape[d] - 1, strides[d]) && size_add(&reach, reach, step);
    }
    if (!good) {
        fail(STATUS_INPUT, "%s: tensor '%s': its shape overflows", w->path, w->name);
    }
    return reach;
}

static bool row_major(const Tensor *tensor, const size_t *strides) {
    size_t step = 1;
    for (int d = tensor->rank; d-- > 0;) {
        if (tensor->shape[d] != 1 && strides[d] != step) {
            return false;
        }
        step *= tensor->shape[d];
    }
    return true;
}

static void tensor_make(Walk *w, Rebuild *r, Tensor *tensor) {
    size_t strides[TENSOR_MAX_RANK] = {0};
    size_t element = r->type->dtype == DTYPE_OTHER ? r->type->element : dtype_size(r->type->dtype);
    const Global *stored = r->storage->type;
    size_t unit = stored->dtype == DTYPE_OTHER ? stored->element : dtype_size(stored->dtype);
    tensor->file = w->path;
    tensor->dtype = r->type->dtype;
    tensor->type = r->type->dtype == DTYPE_OTHER ? r->type->type : dtype_name(r->type->dtype);
    uint64_t last = tensor_shape(w, r, tensor, strides);
    const unsigned char *data = storage_bytes(w, r->storage, unit);
    uint64_t held = r->storage->count * unit / element;
    if (tensor->count > 0 && last >= held) {
        fail(STATUS_INPUT, "%s: tensor '%s': reaches element %llu of a storage of %llu", w->path,
             w->name, (unsigned long long)last, (unsigned long long)held);
    }
    tensor->data = tensor->count > 0 ? data + (size_t)r->offset->as.integer * element : data;
    if (tensor->count == 0 || row_major(tensor, strides)) {
        return;
    }
    spend(w, (uint64_t)tensor->count * element);
    tensor_gather(tensor, strides, element, w->arena);
}

static void add_tensor(Walk *w, Rebuild *r, size_t length) {
    Tensor *tensor = arena_alloc(w->scratch, 1, sizeof *tensor);
    char *name = arena_copy(w->arena, w->name, length);
    if (strlen(name) != length || !utf8_valid(name, length)) {
        fail(STATUS_INPUT, "%s: tensor '%s': a name that is no text", w->path, name);
    }
    if (r->made != NULL) {
        *tensor = *r->made;
    } else {
        tensor_make(w, r, tensor);
        r->made = tensor;
    }
    Tensor named = *tensor;
    named.name = name;
    tensor_list_add(w->list, &named);
}

/* Appends ".key" to the name[length]; 0: too long, or a key that is neither string nor integer. */
static size_t name_extend(Walk *w, size_t length, const Value *key, size_t index) {
    char digits[24];
    const char *text = digits;
    size_t more;
    if (key != NULL && key->kind == VALUE_STRING) {
        text = key->as.string.text;
        more = key->as.string.length;
    } else if (key != NULL && key->kind == VALUE_INTEGER) {
        more = (size_t)snprintf(digits, sizeof digits, "%lld", (long long)key->as.integer);
    } else if (key == NULL) {
        more = (size_t)snprintf(digits, sizeof digits, "%zu", index);
    } else {
        return SIZE_MAX;
    }
    size_t dot = length > 0;
    if (more > NAME_MOST - length || length + dot + more > NAME_MOST) {
        return SIZE_MAX;
    }
    memcpy(w->name + length, ".", dot);
    memcpy(w->name + length + dot, text, more);
    w->name[length + dot + more] = 0;
    return length + dot + more;
}

static bool is_state_dict(const Value *key, const Value *value) {
    return value->kind == VALUE_DICT && key->kind == VALUE_STRING &&
           (text_is(key->as.string.text, key->as.string.length, "state_dict") ||
            text_is(key->as.string.text, key->as.string.length, "model_state_dict"));
}

/* Adds the tensors below `value`, whose name is w->name[0 .. length). */
static void walk(Walk *w, Value *value, size_t length, int depth) {
    w->name[length] = 0;
    if (w->steps++ == STEPS_MOST || depth == DEPTH_MOST) {
        fail(STATUS_INPUT, "%s: data.pkl: objects nested too deep or too often", w->path);
    }
    if (value->kind == VALUE_TENSOR) {
        add_tensor(w, value->as.rebuild, length);
        return;
    }
    bool dict = value->kind == VALUE_DICT;
    if (!dict && value->kind != VALUE_LIST && value->kind != VALUE_TUPLE) {
        return;
    }
    size_t stride = dict ? 2 : 1;
    for (size_t i = 0; i < value->as.list.count; i += stride) {
        const Value *key = dict ? value->as.list.items[i] : NULL;
        Value *item = value->as.list.items[i + stride - 1];
        if (item->kind != VALUE_TENSOR && item->kind != VALUE_DICT && item->kind != VALUE_LIST &&
            item->kind != VALUE_TUPLE) {
            continue;
        }
        size_t longer = length;
        if (depth > 0 || !dict || !is_state_dict(key, item)) {
            longer = name_extend(w, length, key, i);
        }
        if (longer == SIZE_MAX) {
            w->name[length] = 0;
            fail(STATUS_INPUT,
                 "%s: '%s' has a key that is longer than %d bytes or neither string nor "
                 "integer",
                 w->path, w->name, NAME_MOST);
        }
        walk(w, item, longer, depth + 1);
    }
}

/* ---- the file ---- */

/* "NAME" of the first member "NAME/data.pkl"; length 0: none. */
static const ZipMember *find_pickle(const Zip *zip, size_t *folder) {
    static const char tail[] = "/data.pkl";
    for (size_t i = 0; i < zip->count; i++) {
        const char *slash = strchr(zip->members[i].name, '/');
        if (slash != NULL && slash != zip->members[i].name && strcmp(slash, tail) == 0) {
            *folder = (size_t)(slash - zip->members[i].name);
            return &zip->members[i];
        }
    }
    return NULL;
}

bool pth_is(const Zip *zip) {
    size_t folder;
    return find_pickle(zip, &folder) != NULL;
}

/* The text of the small member `name` beside data.pkl; "" if there is none. */
static const char *beside(const Walk *w, const char *name) {
    char *full = arena_format(w->scratch, "%s/%s", w->folder, name);
    char *what = arena_format(w->scratch, "%s: %s", w->path, name);
    const ZipMember *member = zip_find(w->zip, full);
    if (member == NULL) {
        return "";
    }
    if (member->size > 16) {
        fail(STATUS_INPUT, "%s: %llu bytes, expected a word", what,
             (unsigned long long)member->size);
    }
    const unsigned char *data = zip_unpack(w->scratch, member, what);
    return arena_copy(w->scratch, (const char *)data, (size_t)member->size);
}

static void check_archive(const Walk *w) {
    const char *order = beside(w, "byteorder"), *version = beside(w, "version");
    char *script = arena_format(w->scratch, "%s/constants.pkl", w->folder);
    if (zip_find(w->zip, script) != NULL) {
        fail(STATUS_INPUT,
             "%s: a TorchScript archive holds a program: save its tensors with "
             "torch.save(torch.jit.load(FILE).state_dict(), FILE)",
             w->path);
    }
    if (order[0] != 0 && strcmp(order, "little") != 0) {
        fail(STATUS_INPUT, "%s: byteorder is '%s', expected 'little'", w->path, order);
    }
    if (version[0] != 0 && strtol(version, NULL, 10) != FORMAT_VERSION) {
        fail(STATUS_INPUT, "%s: version '%s' of torch.save's zip, expected %d", w->path, version,
             FORMAT_VERSION);
    }
}

void pth_read(const Zip *zip, const FileMap *map, const char *path, Arena *arena, Arena *scratch,
              TensorList *list) {
    size_t folder = 0;
    const ZipMember *member = find_pickle(zip, &folder);
    Pickle pickle = {.path = path, .scratch = scratch};
    Walk *w = arena_alloc(scratch, 1, sizeof *w);
    *w = (Walk){.zip = zip,
                .path = path,
                .folder = arena_copy(scratch, member->name, folder),
                .arena = arena,
                .scratch = scratch,
                .list = list,
                .unpacked = arena_alloc(scratch, zip->count, sizeof *w->unpacked),
                .budget = 16 * (uint64_t)map->size + UNPACKED_FREE};
    char *what = arena_format(scratch, "%s: data.pkl", path);
    check_archive(w);
    if (member->size > PICKLE_MOST) {
        fail(STATUS_INPUT, "%s: %llu bytes are too many for a pickle", what,
             (unsigned long long)member->size);
    }
    pickle.at = zip_unpack(scratch, member, what);
    pickle.end = pickle.at + member->size;
    Value *object = pickle_run(&pickle);
    if (object->kind == VALUE_TENSOR) {
        memcpy(w->name, "tensor", sizeof "tensor");
        add_tensor(w, object->as.rebuild, strlen("tensor"));
        return;
    }
    walk(w, object, 0, 0);
}

void pth_refuse_legacy(const FileMap *map, const char *path) {
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

/* torch.save's zip: against what torch wrote (tests/reference/make_pth_golden.py), and pickles that
 * torch would never write. */
#define _XOPEN_SOURCE 700
#include "data.h"
#include "tensors.h"
#include "zip.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN "tests/golden/pth/"

static char file[] = "/tmp/refsae-pth-XXXXXX";

static void file_remove(void) {
    unlink(file);
}

static void file_new(void) {
    int descriptor = mkstemp(file);
    cr_assert(descriptor >= 0);
    close(descriptor);
    atexit(file_remove);
}

static void file_write(const void *data, size_t size) {
    write_file(file, data, size);
}

/* ---- what torch writes ---- */

static void assert_same(const Tensor *a, const Tensor *b) {
    cr_assert_eq(a->dtype, b->dtype, "%s", b->name);
    cr_assert_eq(a->rank, b->rank, "%s", b->name);
    cr_assert_arr_eq(a->shape, b->shape, sizeof a->shape, "%s", b->name);
    if (a->count > 0 && a->dtype != DTYPE_OTHER) {
        cr_assert_arr_eq(a->data, b->data, a->count * dtype_size(a->dtype), "%s", b->name);
    }
}

Test(pickle, every_dtype_view_and_nesting_equals_torch) {
    static const char *const paths[] = {GOLDEN "all_2.pt", GOLDEN "all_4.pt", GOLDEN "deflated.pt"};
    TensorStore expected, found;
    open_good(&expected, GOLDEN "expected.safetensors");
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        open_good(&found, paths[i]);
        cr_assert_eq(found.count, expected.count, "%s", paths[i]);
        for (size_t k = 0; k < found.count; k++) {
            cr_assert_str_eq(found.tensors[k].name, expected.tensors[k].name);
            assert_same(&found.tensors[k], &expected.tensors[k]);
        }
    }
}

Test(pickle, a_contiguous_tensor_stays_in_the_map) {
    TensorStore store;
    open_good(&store, GOLDEN "all_2.pt");
    const unsigned char *at = tensors_find(&store, "parameter")->data;
    cr_assert(at >= store.maps[0].data && at < store.maps[0].data + store.maps[0].size);
    cr_assert_eq(tensors_find(&store, "nested.list.0")->data, (const void *)at, "shared storage");
}

Test(pickle, a_checkpoint_and_a_tensor_alone) {
    TensorStore store;
    open_good(&store, GOLDEN "checkpoint.pt");
    cr_assert_not_null(tensors_find(&store, "weight"));
    cr_assert_not_null(tensors_find(&store, "optimizer.state.0.exp_avg"));
    open_good(&store, GOLDEN "tensor.pt");
    cr_assert_eq(store.count, 1);
    cr_assert_eq(tensors_find(&store, "tensor")->count, 6);
    assert_refused(GOLDEN "legacy.pth", "before PyTorch 1.6");
}

Test(pickle, adapters_with_and_without_module) {
    static const char *const paths[] = {GOLDEN "projector.safetensors",
                                        GOLDEN "projector_plain.pth", GOLDEN "projector_module.pth",
                                        GOLDEN "checkpoint.pt"};
    float weight[4][6], bias[4][3];
    Error error;
    for (size_t i = 0; i < 4; i++) {
        adapter_read(&(Adapter){weight[i], bias[i], 2, 3}, paths[i], "L and V");
        if (i < 3) { /* the checkpoint has taken a step */
            cr_assert_arr_eq(weight[i], weight[0], sizeof weight[0]);
            cr_assert_arr_eq(bias[i], bias[0], 2 * sizeof(float));
        }
    }
    Adapter turned = {weight[0], bias[0], 3, 2};
    ATTEMPT(&error, adapter_read(&turned, paths[2], "L and V"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "'module.weight': expected [3, 2], found [2, 3]; the "
                                          "sizes are from L and V"),
                       "%s", error.text);
}

/* ---- what it never writes ---- */

/* A zip of stored members, as small as the format allows. */
typedef struct Archive {
    unsigned char *data;
    size_t size, members;
    unsigned char directory[2048];
    size_t directory_size;
} Archive;

static void put(unsigned char **at, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        *(*at)++ = (unsigned char)(i < 8 ? value >> 8 * i : 0);
    }
}

static void archive_add(Archive *a, const char *name, const void *data, size_t packed,
                        size_t size) {
    size_t length = strlen(name);
    a->data = realloc(a->data, a->size + 30 + length + packed + 4096);
    unsigned char *p = a->data + a->size, *d = a->directory + a->directory_size;
    unsigned method = packed == size ? 0 : 8;
    put(&d, 0x02014B50, 4), put(&d, 0, 6), put(&d, method, 2), put(&d, 0, 8);
    put(&d, packed, 4), put(&d, size, 4), put(&d, length, 2), put(&d, 0, 8), put(&d, 0, 4);
    put(&d, a->size, 4);
    memcpy(d, name, length);
    a->directory_size = (size_t)(d + length - a->directory);
    put(&p, 0x04034B50, 4), put(&p, 0, 22), put(&p, length, 2), put(&p, 0, 2);
    memcpy(p, name, length);
    if (packed > 0) {
        memcpy(p + length, data, packed);
    }
    a->size += 30 + length + packed;
    a->members++;
}

static void archive_write(Archive *a) {
    unsigned char *p = a->data + a->size;
    memcpy(p, a->directory, a->directory_size);
    p += a->directory_size;
    put(&p, 0x06054B50, 4), put(&p, 0, 4), put(&p, a->members, 2), put(&p, a->members, 2);
    put(&p, a->directory_size, 4), put(&p, a->size, 4), put(&p, 0, 2);
    file_write(a->data, (size_t)(p - a->data));
    free(a->data);
}

/* A file with this pickle and two storages: 0 of 24 bytes, 1 of none. */
static void write_pickle(const void *pickle, size_t size) {
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    Archive a = {.size = 0};
    archive_add(&a, "x/data.pkl", pickle, size, size);
    archive_add(&a, "x/data/0", values, sizeof values, sizeof values);
    archive_add(&a, "x/data/1", "", 0, 0);
    archive_write(&a);
}

/* Text of pickles. I: the four bytes of a number below 64; a name's length stands before it. */
#define I(n) "J" n "\0\0\0"
#define S(length, text) "X" length "\0\0\0" text
#define FLOATS(key, count)                                                                         \
    "(" S("\7", "storage") "ctorch\nFloatStorage\n" S("\1", key) S("\3", "cpu") count "tQ"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
#define REST "\x89}tR"
#define TENSOR(key, count, offset, size, stride)                                                   \
    REBUILD "(" FLOATS(key, count) offset size stride REST
#define NAMED(tensor) "}" S("\1", "a") tensor "s."
#define PAIR(a, b) a b "\x86"

Test(pickle, hostile_pickles_are_refused_by_name) {
    static const struct {
        const char *pickle;
        size_t size;
        const char *says; /* NULL: read */
    } cases[] = {
#define CASE(pickle, says) {pickle, sizeof pickle - 1, says}
        /* nothing is executed */
        CASE("cos\nsystem\n" S("\2", "ls") "\x85R.", "'os.system'"),
        CASE("cposix\nsystem\n" S("\2", "ls") "\x85R.", "'posix.system'"),
        CASE("\x80\4\x8C\10builtins\x8C\4eval\x93.", "'builtins.eval'"),
        CASE("ctorch\nload\n.", "'torch.load'"),
        CASE("ctorch.nn.modules.linear\nLinear\n.", "save the state_dict alone"),
        CASE("c\n\n.", "'.'"),
        CASE("(ios\nsystem\n.", "opcode 0x69;"),
        CASE("(cos\nsystem\no.", "'os.system'"),
        CASE("ccollections\nOrderedDict\n)\x81.", "opcode 0x81;"),
        CASE("\x82\1.", "opcode 0x82;"),
        CASE("B\0\0\0\0.", "opcode 0x42;"),
        CASE("\x8F.", "opcode 0x8F;"),
        CASE("\xFF.", "opcode 0xFF;"),
        CASE("K\1)R.", "no function"),
        CASE("ctorch\nFloatStorage\n)R.", "'torch.FloatStorage'"),
        CASE("ccollections\nOrderedDict\n]\x85R.", "'collections.OrderedDict'"),
        CASE("ccollections\nOrderedDict\nK\1R.", "no function"),
        CASE("K\1K\1\x93.", "no string"),
        CASE("}K\1b.", NULL), /* attributes of a dict: passed over */
        CASE("]K\1b.", "no OrderedDict"),
        /* a broken machine */
        CASE("", "ends before its STOP"),
        CASE("}", "ends before its STOP"),
        CASE(".", "the stack empty"),
        CASE("(.", "the stack empty"),
        CASE("\x80\6N.", "protocol after 5"),
        CASE("t.", "no mark"),
        CASE("(t.", NULL),                   /* nothing on the stack so far */
        CASE("N(N\x86.", "the stack empty"), /* TUPLE2 across the mark */
        CASE("N(a.", "the stack empty"),
        CASE("(NN.", NULL),
        CASE("}Ns.", "the stack empty"),
        CASE("](NNu.", "no list or dict"),
        CASE("}(Nu.", "no list or dict"),
        CASE("}Na.", "no list or dict"),
        CASE("X\xFF\xFF\xFF\xFF.", "a string that ends after the file"),
        CASE("\x8D\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF.", "a string that ends after the file"),
        CASE("\x8B\xFF\xFF\xFF\xFF.", "a number that ends after the file"),
        CASE("J\1\2.", "ends within an opcode"),
        CASE("cos", "ends within an opcode"),
        CASE("\x95\1", "ends within an opcode"),
        CASE("h\0.", "before it is there"),
        CASE("Nj\xFF\xFF\xFF\xFF.", "before it is there"),
        CASE("Nr\xFF\xFF\xFF\xFF.", "a memo of more than"),
        CASE("q\0.", "the stack empty"),
        CASE("]q\0h\0a.", "too deep or too often"), /* contains itself */
        CASE("}q\0K\1h\0s.", "too deep or too often"),
        /* storages */
        CASE("K\1Q.", "no storage"),
        CASE("(tQ.", "no storage"),
        CASE("(" S("\7", "storagE") "ctorch\nFloatStorage\n" S("\1", "0") S("\3", "cpu")
                 I("\6") "tQ.",
             "no storage"),
        CASE("(" S("\7", "storage") "ctorch\nSize\n" S("\1", "0") S("\3", "cpu") I("\6") "tQ.",
             "no storage"),
        CASE(FLOATS("0", "J\xFF\xFF\xFF\xFF") ".", "no storage"),
        CASE(NAMED(TENSOR("0", I("\5"), I("\0"), PAIR(I("\2"), I("\2")), PAIR(I("\2"), I("\1")))),
             "tensor 'a': its storage of 5 elements holds 24 bytes"),
        CASE(NAMED(
                 TENSOR("0", "\x8A\x8\1\0\0\0\0\0\0\x40", I("\0"), I("\1") "\x85", I("\1") "\x85")),
             "holds 24 bytes"), /* the count times 4 overflows to 4 */
        CASE(NAMED(TENSOR("7", I("\6"), I("\0"), I("\1") "\x85", I("\1") "\x85")),
             "'x/data/7' is missing"),
        CASE(NAMED(REBUILD "((" S("\7", "storage") "ctorch\nFloatStorage\n" S("\4", "../0")
                       S("\3", "cpu") I("\6") "tQ" I("\0") "))" REST),
             "'x/data/../0' is missing"),
        /* tensors */
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), PAIR(I("\2"), I("\3")), PAIR(I("\3"), I("\1")))),
             NULL),
        CASE(NAMED(TENSOR("0", I("\6"), I("\1"), PAIR(I("\2"), I("\3")), PAIR(I("\3"), I("\1")))),
             "reaches element 6 of a storage of 6"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), PAIR(I("\2"), I("\3")), PAIR(I("\4"), I("\1")))),
             "reaches element 6 of a storage of 6"),
        CASE(NAMED(TENSOR("0", I("\6"), "J\xFF\xFF\xFF\xFF", I("\1") "\x85", I("\1") "\x85")),
             "not made of sizes"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), "J\xFF\xFF\xFF\xFF\x85", I("\1") "\x85")),
             "not made of sizes"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\5"), I("\2") "\x85", "J\xFF\xFF\xFF\xFF\x85")),
             "not made of sizes"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), "N\x85", I("\1") "\x85")), "not made of sizes"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), PAIR(I("\2"), I("\3")), I("\1") "\x85")),
             "not made of sizes"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), I("\5") "\x85", "\x8A\x8\0\0\0\0\0\0\0\x7F\x85")),
             "overflows"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), "\x8A\x8\0\0\0\0\0\0\0\x7F\x85", ")")),
             "not made of sizes"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), PAIR("\x8A\5\0\0\0\0\1", "\x8A\5\0\0\0\0\1"),
                          PAIR(I("\0"), I("\0")))),
             "overflows"),
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), "\x8A\6\0\0\0\0\0\1\x85", I("\0") "\x85")),
             "far more than the file"), /* a number expanded to 4 TiB */
        CASE(NAMED(TENSOR("0", I("\6"), I("\0"), "(KKKKKKKKKKKKKKKKKKt", "(KKKKKKKKKKKKKKKKKKt")),
             "at most 8"), /* nine dimensions of 'K' */
        CASE(NAMED(TENSOR("1", I("\0"), I("\0"), I("\0") "\x85", I("\1") "\x85")), NULL),
        CASE(NAMED(TENSOR("1", I("\0"), I("\0"), ")", ")")), "reaches element 0 of a storage of 0"),
        CASE(NAMED(REBUILD "(N" I("\0") "))" REST), "not those of a tensor"),
        CASE(NAMED(REBUILD "(" FLOATS("0", I("\6")) "tR"), "not those of a tensor"),
        CASE(NAMED(REBUILD "(" FLOATS("0", I("\6")) I("\0") "))\x89}}" S("\3", "neg") "\x88stR"),
             "negated"),
        CASE("}N" TENSOR("0", I("\6"), I("\0"), ")", ")") "s.", "neither string nor integer"),
        CASE("}" S("\1", "\0") TENSOR("0", I("\6"), I("\0"), ")", ")") "s.", "no text"),
        CASE("}" S("\1", "\xFF") TENSOR("0", I("\6"), I("\0"), ")", ")") "s.", "no text"),
        CASE("}(" S("\1", "a") TENSOR("0", I("\6"), I("\0"), ")", ")") "q\0" S("\1", "a") "h\0u.",
             "is there twice"),
        CASE("ctorch._utils\n_rebuild_parameter\n(N\x89}tR.", "'torch._utils._rebuild_parameter'"),
    };
    file_new();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        TensorStore store;
        write_pickle(cases[i].pickle, cases[i].size);
        if (cases[i].says != NULL) {
            assert_refused(file, cases[i].says);
        } else {
            open_good(&store, file);
        }
    }
}

/* Bombs: each small file asks for far more than its size, and none takes long or much memory. */
Test(pickle, bombs_are_refused) {
    enum {
        SIZE = 1 << 24
    };
    file_new();
    char *pickle = malloc(SIZE), *p = pickle;
    /* 30 lists, each of twice the one before: 2^30 paths to nothing. */
    memcpy(p, "]q\0", 3), p += 3;
    for (int i = 0; i < 30; i++) {
        const char level[] = {']', '(', 'h', (char)i, 'h', (char)i, 'e', 'q', (char)(i + 1)};
        memcpy(p, level, sizeof level), p += sizeof level;
    }
    *p++ = '.';
    write_pickle(pickle, (size_t)(p - pickle));
    assert_refused(file, "too deep or too often");
    memset(pickle, ']', 3000000); /* objects */
    write_pickle(pickle, 3000000);
    assert_refused(file, "more than 2^21 objects");
    memset(pickle, '(', 3000000); /* marks */
    write_pickle(pickle, 3000000);
    assert_refused(file, "ends before its STOP");
    memcpy(pickle, "}X\0\10\0\0", 6); /* a name of 2048 bytes */
    memset(pickle + 6, 'n', 2048);
    memcpy(pickle + 2054, "}s.", 3);
    write_pickle(pickle, 2057);
    assert_refused(file, "longer than 1024 bytes");
    free(pickle);
}

Test(pickle, archives_that_torch_did_not_write) {
    static const char pickle[] =
        NAMED(TENSOR("0", I("\6"), I("\0"), I("\6") "\x85", I("\1") "\x85"));
    static const struct {
        const char *name, *text, *says;
    } members[] = {{"x/constants.pkl", ".", "TorchScript"},
                   {"x/byteorder", "big", "byteorder is 'big'"},
                   {"x/byteorder", "0123456789abcdef!", "x/byteorder"},
                   {"x/version", "99\n", "version is '99', expected '3'"},
                   {"x/data.pkl", ".", "'x/data.pkl' is there twice"},
                   {"x/data/0", "", "'x/data/0' is there twice"},
                   {"x/version", "3\n", NULL},
                   {"../../etc/passwd", "", NULL}}; /* names lead nowhere */
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    file_new();
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        Archive a = {.size = 0};
        TensorStore store;
        archive_add(&a, "x/data.pkl", pickle, sizeof pickle - 1, sizeof pickle - 1);
        archive_add(&a, "x/data/0", values, sizeof values, sizeof values);
        archive_add(&a, members[i].name, members[i].text, strlen(members[i].text),
                    strlen(members[i].text));
        archive_write(&a);
        if (members[i].says != NULL) {
            const char *slash = strrchr(members[i].says, '/');
            bool name_only = strcmp(members[i].says, "x/byteorder") == 0;
            assert_refused(file, name_only ? slash + 1 : members[i].says);
        } else {
            open_good(&store, file);
            cr_assert_eq(tensors_find(&store, "a")->count, 6);
        }
    }
    /* A storage that says it unpacks to 144 MiB is not even tried, unless that is asked for. */
    static unsigned char packed[1 << 17];
    static const char bomb[] =
        NAMED(TENSOR("0", "J\0\0\x40\2", I("\0"), "J\0\0\x40\2\x85", I("\1") "\x85"));
    Archive a = {.size = 0};
    archive_add(&a, "x/data.pkl", bomb, sizeof bomb - 1, sizeof bomb - 1);
    archive_add(&a, "x/data/0", packed, sizeof packed, (size_t)9 << 24);
    archive_write(&a);
    assert_refused(file, "too many for 131");
    inflate_most(128);
    assert_refused(file, "a stored block with a wrong length");
    inflate_most(100);
    a = (Archive){.size = 0}; /* nor are two that together say 144 MiB, whoever reads them */
    archive_add(&a, "a.npy", packed, sizeof packed, (size_t)9 << 23);
    archive_add(&a, "b.npy", packed, sizeof packed, (size_t)9 << 23);
    archive_write(&a);
    assert_refused(file, "zip member 'b.npy': unpacks to 75497472 bytes, too many");
    file_write("\x80\4\x95\0\0\0\0\0\0\0\0N.", 13);
    assert_refused(file, "a bare pickle");
}

/* Every byte of every tensor must be readable: the sanitizers watch. */
static uint32_t touch(const TensorStore *store) {
    uint32_t sum = 0;
    for (size_t i = 0; i < store->count; i++) {
        const Tensor *t = &store->tensors[i];
        sum ^= t->count > 0 ? crc32_of(0, t->data, t->count * dtype_size(t->dtype)) : 0;
    }
    return sum;
}

Test(pickle, files_cut_and_changed_at_random) {
    static const char *const seeds[] = {GOLDEN "all_2.pt", GOLDEN "all_4.pt", GOLDEN "deflated.pt",
                                        GOLDEN "checkpoint.pt"};
    Random random = random_start(13, RANDOM_TEST);
    size_t size;
    int refused = 0, read = 0;
    file_new();
    unsigned char *whole = read_all(GOLDEN "projector_plain.pth", &size);
    for (size_t cut = 1; cut < size; cut += 7) {
        file_write(whole, cut);
        TensorStore store;
        cr_assert_eq(try_open(&store, file).status, STATUS_INPUT, "%zu bytes", cut);
    }
    free(whole);
    for (int i = 0; i < 3000; i++) {
        unsigned char *data = read_all(seeds[i % 4], &size);
        for (uint64_t n = 1 + random_below(&random, 4); n-- > 0;) {
            /* mostly the pickle, which comes first */
            size_t at = (size_t)random_below(&random, random_below(&random, 4) ? 2600 : size);
            at = at < size ? at : size - 1;
            unsigned char flipped = (unsigned char)(data[at] ^ (1U << random_below(&random, 8)));
            data[at] = random_below(&random, 2) == 0 ? flipped : data[random_below(&random, size)];
        }
        file_write(data, size);
        free(data);
        TensorStore store;
        Error error = try_open(&store, file);
        if (error.status == STATUS_OK) {
            touch(&store);
            arena_free(store.arena);
            read++;
        } else {
            cr_assert(error.status == STATUS_INPUT || error.status == STATUS_RESOURCE);
            refused++;
        }
    }
    cr_assert(refused > 300 && read > 300, "%d refused, %d read", refused, read);
}

/* Tensors in files, inflate and CRC-32: against files that the formats' own libraries wrote
 * (tests/reference/make_tensor_golden.py), and against files that nobody should have written. */
#define _XOPEN_SOURCE 700
#include "scratch.h"
#include "tensors.h"
#include "zip.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN "tests/golden/tensor/"

/* Element i of every golden array, as the script made it. */
static double element(const Tensor *t, size_t i) {
    const unsigned char *p = (const unsigned char *)t->data + i * dtype_size(t->dtype);
    uint32_t bits = 0;
    float f;
    double d;
    int64_t n = 0;
    switch (t->dtype) {
    case DTYPE_F32:
        memcpy(&f, p, 4);
        return (double)f;
    case DTYPE_F64:
        memcpy(&d, p, 8);
        return d;
    case DTYPE_BF16:
        bits = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
        memcpy(&f, &bits, 4);
        return (double)f;
    case DTYPE_F16: /* normal numbers only */
        bits = (uint32_t)p[0] | (uint32_t)p[1] << 8;
        bits = (bits & 0x8000) << 16 |
               ((bits & 0x7FFF) == 0 ? 0 : ((bits & 0x7FFF) << 13) + (112U << 23));
        memcpy(&f, &bits, 4);
        return (double)f;
    case DTYPE_U64:
    case DTYPE_U32:
    case DTYPE_U16:
    case DTYPE_U8:
    case DTYPE_BOOL:
        memcpy(&n, p, dtype_size(t->dtype));
        return (double)n;
    case DTYPE_I64:
    case DTYPE_I32:
    case DTYPE_I16:
    case DTYPE_I8: /* little-endian: sign of the last byte */
        n = p[dtype_size(t->dtype) - 1] >= 0x80 ? -1 : 0;
        memcpy(&n, p, dtype_size(t->dtype));
        return (double)n;
    case DTYPE_OTHER:
        break;
    }
    return 0;
}

static void assert_golden(const TensorStore *store) {
    for (size_t k = 0; k < store->count; k++) {
        const Tensor *t = &store->tensors[k];
        bool is_unsigned = t->dtype >= DTYPE_U64 && t->dtype <= DTYPE_U8;
        cr_assert(k == 0 || strcmp(store->tensors[k - 1].name, t->name) < 0);
        for (size_t i = 0; i < t->count && t->dtype != DTYPE_OTHER; i++) {
            double expected = t->dtype == DTYPE_BOOL ? (double)(i % 2)
                              : is_unsigned          ? (double)i
                                                     : (double)i - 3;
            cr_assert_eq(element(t, i), expected, "%s[%zu]: %g", t->name, i, element(t, i));
        }
    }
}

static const Tensor *assert_tensor(const TensorStore *store, const char *name, Dtype dtype,
                                   int rank, size_t a, size_t b, size_t c, size_t d) {
    const Tensor *t = tensors_find(store, name);
    size_t shape[4] = {a, b, c, d}, count = 1;
    cr_assert_not_null(t, "%s", name);
    cr_assert_eq(t->dtype, dtype, "%s", name);
    cr_assert_eq(t->rank, rank, "%s", name);
    for (int i = 0; i < rank; i++) {
        cr_assert_eq(t->shape[i], shape[i], "%s", name);
        count *= shape[i];
    }
    cr_assert_eq(t->count, count);
    return t;
}

/* ---- what the libraries wrote ---- */

Test(tensor, safetensors_of_every_dtype) {
    TensorStore store;
    open_good(&store, GOLDEN "all.safetensors");
    cr_assert_eq(store.count, 18);
    for (Dtype d = DTYPE_F32; d < DTYPE_OTHER; d++) {
        const Tensor *t = assert_tensor(&store, dtype_name(d), d, 2, 2, 3, 0, 0);
        cr_assert_str_eq(t->file, GOLDEN "all.safetensors");
        cr_assert_str_eq(t->type, dtype_name(d));
    }
    assert_tensor(&store, "rank0", DTYPE_F32, 0, 0, 0, 0, 0);
    assert_tensor(&store, "empty", DTYPE_F32, 2, 0, 4, 0, 0);
    assert_tensor(&store, "rank4", DTYPE_F32, 4, 2, 1, 3, 2);
    assert_tensor(&store, "名前 \"quoted\"", DTYPE_F32, 1, 5, 0, 0, 0);
    cr_assert_str_eq(assert_tensor(&store, "F8_E4M3", DTYPE_OTHER, 1, 4, 0, 0, 0)->type, "F8_E4M3");
    cr_assert_null(tensors_find(&store, "nothing"));
    assert_golden(&store);
}

Test(tensor, shards) {
    static const char *const paths[] = {GOLDEN "shards",
                                        GOLDEN "shards/model.safetensors.index.json"};
    for (int i = 0; i < 2; i++) {
        TensorStore store;
        open_good(&store, paths[i]);
        cr_assert_eq(store.count, 3, "what the index does not name is not there");
        cr_assert_eq(store.map_count, 2);
        assert_tensor(&store, "a", DTYPE_F32, 1, 4, 0, 0, 0);
        assert_tensor(&store, "b", DTYPE_BF16, 2, 2, 2, 0, 0);
        const Tensor *c = assert_tensor(&store, "c", DTYPE_F16, 1, 3, 0, 0, 0);
        cr_assert_str_eq(c->file, GOLDEN "shards/model-00002-of-00002.safetensors");
        assert_golden(&store);
    }
}

Test(tensor, unaligned_data_and_padded_header) {
    TensorStore store;
    open_good(&store, GOLDEN "unaligned.safetensors");
    cr_assert((uintptr_t)store.tensors[0].data % 4 != 0);
    assert_golden(&store);
}

Test(tensor, npz) {
    static const char *const paths[] = {GOLDEN "stored.npz", GOLDEN "deflated.npz"};
    for (int i = 0; i < 2; i++) {
        TensorStore store;
        open_good(&store, paths[i]);
        cr_assert_eq(store.count, 12);
        const Tensor *w = assert_tensor(&store, "W_enc", DTYPE_F32, 2, 16, 24, 0, 0);
        const unsigned char *start = store.maps[0].data;
        bool in_map = (const unsigned char *)w->data >= start &&
                      (const unsigned char *)w->data < start + store.maps[0].size;
        cr_assert_eq(in_map, i == 0, "stored members are not copied");
        assert_tensor(&store, "fortran", DTYPE_F32, 3, 2, 3, 4, 0);
        assert_tensor(&store, "fortran1", DTYPE_F32, 1, 3, 0, 0, 0);
        assert_tensor(&store, "half", DTYPE_F16, 1, 5, 0, 0, 0);
        assert_tensor(&store, "double", DTYPE_F64, 2, 2, 2, 0, 0);
        assert_tensor(&store, "scalar", DTYPE_F32, 0, 0, 0, 0, 0);
        assert_tensor(&store, "empty", DTYPE_F32, 2, 0, 3, 0, 0);
        assert_tensor(&store, "bool", DTYPE_BOOL, 1, 4, 0, 0, 0);
        cr_assert_str_eq(tensors_find(&store, "text")->type, "<U1");
        assert_golden(&store);
    }
}

Test(tensor, npz_with_data_descriptors_zip64_and_all_versions) {
    TensorStore store;
    open_good(&store, GOLDEN "streamed.npz");
    cr_assert_eq(store.count, 3);
    for (int version = 1; version <= 3; version++) {
        char name[16];
        sprintf(name, "v%d", version);
        assert_tensor(&store, name, DTYPE_F32, 2, 2, 3, 0, 0);
    }
    assert_golden(&store);
}

/* numpy refuses both, the stored one too. */
Test(tensor, a_changed_byte_of_an_npz_is_refused) {
    static const char *const paths[] = {GOLDEN "stored.npz", GOLDEN "deflated.npz"};
    const char *path = in(directory_new(), "x.npz");
    for (int i = 0; i < 2; i++) {
        size_t size;
        unsigned char *data = read_all(paths[i], &size);
        data[300] ^= 1; /* in the data of the first member */
        write_file(path, data, size);
        assert_refused(path, i == 0 ? "its CRC-32 differs from what the zip states" : "");
        free(data);
    }
}

Test(tensor, npz_that_cannot_be_used) {
    TensorStore store;
    size_t shape[1] = {1};
    Error error;
    open_good(&store, GOLDEN "big_endian.npz");
    shape[0] = store.tensors[0].shape[0];
    ATTEMPT(&error, tensors_need(&store, "x", 1, shape));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_str_eq(error.text,
                     GOLDEN "big_endian.npz: tensor 'x': expected F32, BF16 or F16, found >f4");
    shape[0] = 1;
    open_good(&store, GOLDEN "object.npz");
    ATTEMPT(&error, tensors_need(&store, "x", 1, shape));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_str_eq(error.text,
                     GOLDEN "object.npz: tensor 'x': expected F32, BF16 or F16, found |O");
}

#define NPY "\x93NUMPY\1"

/* A zip of one stored member x.npy with this magic and header and so many bytes after it. */
static void write_npz(const char *path, const char *magic, const char *header, size_t data) {
    unsigned char file[512] = {0}, *p = file;
    size_t length = strlen(header), npy = 10 + length + data, head = 30 + 5;
    const struct {
        size_t at, value, bytes;
    } numbers[] = {{0, 0x04034B50, 4},        {26, 5, 2},
                   {head + 8, length, 2},     {head + npy, 0x02014B50, 4},
                   {head + npy + 20, npy, 4}, {head + npy + 24, npy, 4},
                   {head + npy + 28, 5, 2},   {head + npy + 51, 0x06054B50, 4},
                   {head + npy + 59, 1, 2},   {head + npy + 61, 1, 2},
                   {head + npy + 63, 51, 4},  {head + npy + 67, head + npy, 4}};
    memcpy(p + 30, "x.npy", 5);
    memcpy(p + head, magic, 7);
    memcpy(p + head + 10, header, length);
    memcpy(p + head + npy + 46, "x.npy", 5);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        for (size_t k = 0; k < numbers[i].bytes; k++) {
            p[numbers[i].at + k] = (unsigned char)(numbers[i].value >> 8 * k);
        }
    }
    uint32_t crc = crc32_of(0, p + head, npy);
    for (size_t k = 0; k < 4; k++) {
        p[head + npy + 16 + k] = (unsigned char)(crc >> 8 * k);
    }
    write_file(path, file, head + npy + 73);
}

Test(tensor, npy_headers) {
    static const struct {
        const char *header, *says; /* NULL: read, as [2, 1] of F32 */
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }  \n", NULL},
        {"{\"shape\":(2L,1L ,\n),\"descr\":\"<f4\",\"fortran_order\":True}", NULL},
        {"{'descr': '=f4', 'fortran_order': False, 'shape': (2, 1)}", NULL},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 1)}",
         "'descr': expected a string, found an array"},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 1)}", "its npy header is none"},
        {"{'descr': '<f4', 'fortran_order': False}", "its npy header is none"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': 2}", "its npy header is none"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), 'more': 1}",
         "its npy header is none"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1)", "expected ',' or '}'"},
        {"{'descr': '<f4, 'fortran_order': False, 'shape': (2, 1)}", "expected"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, -1)}", "not made of sizes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1.0)}", "not made of sizes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,2,1)}",
         "9 dimensions; at most 8"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 3)}",
         "its shape overflows"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}",
         "its shape takes 16 bytes, but the file gives it 8"},
        {"os.system('ls')", "expected a value"},
    };
    const char *path = in(directory_new(), "x.npz");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_npz(path, NPY, cases[i].header, 8);
        if (cases[i].says != NULL) {
            assert_refused(path, cases[i].says);
            continue;
        }
        TensorStore store;
        open_good(&store, path);
        const float *data = assert_tensor(&store, "x", DTYPE_F32, 2, 2, 1, 0, 0)->data;
        cr_assert_eq(memcmp(data, "\0\0\0\0\0\0\0", 8), 0);
    }
    TensorStore store; /* no dtype: BF16 and others have no name in npy */
    write_npz(path, NPY, "{'descr': '<', 'fortran_order': False, 'shape': (2, 1)}", 8);
    open_good(&store, path);
    cr_assert_eq(tensors_find(&store, "x")->dtype, DTYPE_OTHER);
    write_npz(path, NPY, "{'descr': '|O', 'fortran_order': True, 'shape': (2, 1)}", 8);
    open_good(&store, path);
    cr_assert_null(tensors_find(&store, "x")->data);
    write_npz(path, NPY, "{'descr': '<f4', 'fortran_order': True, 'shape': (2,)}", 8);
    open_good(&store, path);
    assert_tensor(&store, "x", DTYPE_F32, 1, 2, 0, 0, 0);
    write_npz(path, NPY, "{'descr': '<f4', 'fortran_order': True, 'shape': (0, 2)}", 0);
    open_good(&store, path);
    assert_tensor(&store, "x", DTYPE_F32, 2, 0, 2, 0, 0);
    static const char *const magics[] = {"\x93NUMPX\1", "\x93NUMPY\0", "\x93NUMPY\4",
                                         "\x93NUMPY\2" /* its header would be longer */};
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        write_npz(path, magics[i], "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1)}", 8);
        assert_refused(path, "tensor 'x': not an npy file");
    }
    write_npz(path, NPY, "", 0);
    assert_refused(path, "tensor 'x': not an npy file");
}

Test(tensor, need_says_what_it_expected_and_found) {
    TensorStore store;
    size_t shape[4] = {2, 3, 3, 2};
    open_good(&store, GOLDEN "all.safetensors");
    static const struct {
        const char *name;
        int rank;
        const char *message; /* NULL: fine */
    } cases[] = {{"F32", 2, NULL},
                 {"BF16", 2, NULL},
                 {"F16", 2, NULL},
                 {"rank0", 0, NULL},
                 {"x", 2, "tensor 'x': expected [2, 3], not found"},
                 {"F32", 1, "tensor 'F32': expected [2], found [2, 3]"},
                 {"F32", 3, "tensor 'F32': expected [2, 3, 3], found [2, 3]"},
                 {"empty", 2, "tensor 'empty': expected [2, 3], found [0, 4]"},
                 {"rank4", 4, "tensor 'rank4': expected [2, 3, 3, 2], found [2, 1, 3, 2]"},
                 {"F32", 0, "tensor 'F32': expected [], found [2, 3]"},
                 {"I64", 2, "tensor 'I64': expected F32, BF16 or F16, found I64"},
                 {"F64", 2, "tensor 'F64': expected F32, BF16 or F16, found F64"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].message != NULL) {
            Error error;
            ATTEMPT(&error, tensors_need(&store, cases[i].name, cases[i].rank, shape));
            cr_assert_eq(error.status, STATUS_INPUT);
            cr_assert_eq(strstr(error.text, GOLDEN "all.safetensors: "), error.text);
            cr_assert_str_eq(error.text + strlen(GOLDEN "all.safetensors: "), cases[i].message);
        } else {
            const Tensor *tensor = tensors_need(&store, cases[i].name, cases[i].rank, shape);
            cr_assert_str_eq(tensor->name, cases[i].name);
        }
    }
}

/* ---- safetensors that nobody should have written ---- */

static size_t make_safetensors(char *out, const char *header, size_t data) {
    uint64_t length = strlen(header);
    memcpy(out, &length, 8);
    memcpy(out + 8, header, (size_t)length);
    memset(out + 8 + length, 0, data);
    return 8 + (size_t)length + data;
}

Test(tensor, broken_safetensors) {
    static const struct {
        const char *header;
        size_t data;
        const char *message; /* NULL: fine, as for the safetensors crate */
    } cases[] = {
        {"{}", 0, NULL},
        {"{\"__metadata__\":{\"a\":\"b\"}}", 0, NULL},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"more\":1}}  ", 8, NULL},
        {"{\"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[8,8]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         8, NULL},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[6],\"data_offsets\":[0,3]}}", 3, NULL},
        {"[]", 0, "its header is no object"},
        {"{\"a\":1}", 0, "tensor 'a': is not described by an object"},
        {"{\"a\\u0000\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "no"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype is missing"},
        {"{\"a\":{\"dtype\":\"Q7\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, NULL},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "shape is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8,
         "not made of sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8,
         "not made of sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,8]}}", 8,
         "not made of sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         "shape is there twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "9 dimensions; at most 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "data_offsets is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "are not two sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "bytes 8 to 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7,
         "its bytes 0 to 8 are not in the file, which holds 7"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775800,"
         "9223372036854775807]}}",
         8, "are not in the file"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8,
         "its shape takes 12 bytes, but the file gives it 8"},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,3]}}", 3, "dtype is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "its shape overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 4,
         "its shape overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "'a': is there twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "tensor 'b': overlaps another at byte 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
         12, "tensor 'b': follows a hole at byte 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 12,
         "8 bytes after the last tensor"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ is not an object of strings"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ is there twice"},
        {"{\"__metadata__\":null}", 0, NULL},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object of strings"},
        {"{\"__metadata__\":{\"a\":1,\"b\":\"c\"}}", 0, "__metadata__ is not an object of strings"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-1,8]}}", 8,
         "are not two sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,\"8\"]}}", 8,
         "are not two sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,2],\"data_offsets\":[0,0]}}",
         0, "its shape overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}", 4,
         "header: line 1, column 54"}};
    const char *parent = directory_new();
    char *path = in(parent, "x.safetensors"), file[1024];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t size = make_safetensors(file, cases[i].header, cases[i].data), two = 2;
        write_file(path, file, size);
        if (cases[i].message != NULL) {
            assert_refused(path, cases[i].message);
            continue;
        }
        TensorStore store;
        open_good(&store, path);
        if (strstr(cases[i].header, "Q7") != NULL) { /* may be there, but not be used */
            Error error;
            ATTEMPT(&error, tensors_need(&store, "a", 1, &two));
            cr_assert_not_null(strstr(error.text, "expected F32, BF16 or F16, found Q7"));
        }
        if (cases[i].data != 0) { /* cut anywhere, it is no longer whole */
            for (size_t cut = 0; cut < size; cut++) {
                write_file(path, file, cut);
                assert_refused(path, "");
            }
        }
    }
    uint64_t lengths[] = {UINT64_MAX, (uint64_t)1 << 63, 200, 100000001};
    for (int i = 0; i < 4; i++) {
        size_t size = make_safetensors(file, "{}", 0);
        memcpy(file, &lengths[i], 8);
        write_file(path, file, size);
        assert_refused(path, "its header would take");
    }
    write_file(path, "\x01\xE1\xF5\x05\0\0\0\0", 8); /* a header of 100,000,001 bytes, all there */
    cr_assert_eq(truncate(path, 100000020), 0);
    assert_refused(path, "its header would take 100000001 bytes");
    write_file(path, "", 0);
    assert_refused(path, "not a safetensors file: 0 bytes");
    write_file(path, "hello, world", 12);
    assert_refused(path, "not a whole safetensors file");
    write_file(path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", 68);
    assert_refused(path, "is a Git LFS pointer; fetch the file itself");
    assert_refused(parent, "holds neither model.safetensors nor model.safetensors.index.json");
    assert_refused("/nonexistent", "cannot open");
}

Test(tensor, broken_index) {
    const char *parent = directory_new();
    char *index = in(parent, "model.safetensors.index.json"), file[512];
    static const char *const cases[][2] = {
        {"{}", "neither safetensors nor an index with a weight_map"},
        {"{\"weight_map\":[]}", "an index with a weight_map"},
        {"{\"weight_map\":{\"a\":1}}", "tensor 'a': '' is no name of a shard"},
        {"{\"weight_map\":{\"a\":\"../s\"}}", "tensor 'a': '../s' is no name of a shard"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "is no name of a shard"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "is no name of a shard"},
        {"{\"weight_map\":{\"a\":\"s\\u0000\"}}", "is no name of a shard"},
        {"{\"weight_map\":{\"a\":\"\"}}", "is no name of a shard"},
        {"{\"weight_map\":{\"a\":\"s\",\"x\":\"s\"}}", "tensor 'x': is not in its shard s"},
        {"{\"weight_map\":{\"a\":\"s\",\"a\":\"s\"}}", "tensor 'a': is there twice"},
        {"{\"weight_map\":{\"a\":\"s\"", "line 1, column 23"}};
    write_file(in(parent, "s"), file,
               make_safetensors(
                   file, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        TensorStore store;
        write_file(index, cases[i][0], strlen(cases[i][0]));
        Error error = try_open(&store, parent);
        cr_assert_eq(error.status, STATUS_INPUT);
        cr_assert_not_null(strstr(error.text, cases[i][1]), "%s: %s", cases[i][1], error.text);
    }
    TensorStore store;
    const char *missing = "{\"weight_map\":{\"a\":\"t\"}}";
    write_file(index, missing, strlen(missing));
    Error error = try_open(&store, index);
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "/t: cannot open"));
}

/* ---- writing ---- */

Test(tensor, written_file_reads_back) {
    const char *parent = directory_new();
    char *path = in(parent, "out.safetensors");
    TensorStore store;
    size_t shape[2] = {2, 3}, none[1] = {0};
    float data[6] = {-3, -2, -1, 0, 1, 2};
    uint8_t bytes[2] = {0, 1};
    TensorWriter *writer = tensor_writer_open(path);
    tensor_writer_declare(writer, "名 \"x\"\n", DTYPE_F32, 2, shape);
    tensor_writer_declare(writer, "bytes", DTYPE_U8, 1, shape);
    tensor_writer_declare(writer, "none", DTYPE_F32, 1, none);
    tensor_writer_declare(writer, "scalar", DTYPE_F32, 0, NULL);
    tensor_writer_data(writer, data, sizeof *data, 2);
    cr_assert(!(path_exists(path)));
    tensor_writer_data(writer, data + 2, sizeof *data, 4);
    tensor_writer_data(writer, bytes, 1, 2);
    tensor_writer_data(writer, data, sizeof *data, 1);
    tensor_writer_commit(writer);
    open_good(&store, path);
    cr_assert_eq(store.count, 4);
    assert_tensor(&store, "名 \"x\"\n", DTYPE_F32, 2, 2, 3, 0, 0);
    cr_assert_eq(((uintptr_t)tensors_find(&store, "名 \"x\"\n")->data) % 8, 0);
    assert_golden(&store);
}

/* Commits `bytes` bytes for tensors of these names and one number each, the second name may be
 * NULL.
 */
static void write_tensors(const char *path, const char *a, const char *b, size_t bytes) {
    size_t one[1] = {1};
    TensorWriter *writer = tensor_writer_open(path);
    tensor_writer_declare(writer, a, DTYPE_F32, 1, one);
    if (b != NULL) {
        tensor_writer_declare(writer, b, DTYPE_F32, 1, one);
    }
    tensor_writer_data(writer, "123456789", 1, bytes);
    tensor_writer_commit(writer);
}

static Error try_write(const char *path, const char *a, const char *b, size_t bytes) {
    Error error;
    ATTEMPT(&error, write_tensors(path, a, b, bytes));
    return error;
}

static void declare_too_much(const char *path) {
    size_t shape[2] = {(size_t)1 << 63, 4};
    tensor_writer_declare(tensor_writer_open(path), "a", DTYPE_F32, 2, shape);
}

/* More dimensions than there are, a dtype without values, a tensor after the data. */
static void declare_what_cannot_be(const char *path, int what) {
    size_t shape[TENSOR_MAX_RANK + 1] = {0};
    TensorWriter *writer = tensor_writer_open(path);
    tensor_writer_declare(writer, "a", DTYPE_F32, 1, shape);
    if (what == 2) {
        tensor_writer_data(writer, "", 1, 0);
    }
    tensor_writer_declare(writer, "b", what == 1 ? DTYPE_OTHER : DTYPE_F32,
                          what == 0 ? TENSOR_MAX_RANK + 1 : 1, shape);
}

static Error try_declare(const char *path, int what) {
    Error error;
    ATTEMPT(&error, declare_what_cannot_be(path, what));
    return error;
}

Test(tensor, a_file_of_no_tensors) {
    const char *parent = directory_new();
    char *path = in(parent, "out.safetensors");
    TensorStore store;
    tensor_writer_commit(tensor_writer_open(path));
    open_good(&store, path);
    cr_assert_eq(store.count, 0);
    cr_assert_null(tensors_find(&store, "a"));
}

/* One's own folder has no name. */
Test(tensor, shards_beside_an_index_in_this_folder) {
    TensorStore store;
    cr_assert_eq(chdir("tests/golden/tensor/shards"), 0);
    open_good(&store, "model.safetensors.index.json");
    cr_assert_eq(store.count, 3);
}

Test(tensor, writer_errors) {
    const char *parent = directory_new();
    char *path = in(parent, "out.safetensors");
    static const struct {
        const char *a, *b;
        size_t bytes;
        const char *message;
    } cases[] = {{"__metadata__", NULL, 4, "tensor '__metadata__': cannot be written"},
                 {"\xFF", NULL, 4, "tensor '\\xFF': cannot be written"},
                 {"a", NULL, 5, "more data than was declared"},
                 {"a", NULL, 3, "less data than was declared"},
                 {"a", NULL, 0, "less data than was declared"},
                 {"a", "a", 8, "tensor 'a': is there twice"},
                 {"a", "a", 0, "tensor 'a': is there twice"}};
    Error error;
    ATTEMPT(&error, tensor_writer_open("/nonexistent/x"));
    cr_assert_eq(error.status, STATUS_INPUT);
    ATTEMPT(&error, declare_too_much(path));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "tensor 'a': its shape overflows"), "%s", error.text);
    for (int what = 0; what < 3; what++) {
        error = try_declare(path, what);
        cr_assert_not_null(strstr(error.text, "tensor 'b': cannot be written"), "%s", error.text);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error = try_write(path, cases[i].a, cases[i].b, cases[i].bytes);
        cr_assert_eq(error.status, STATUS_INPUT);
        cr_assert_not_null(strstr(error.text, cases[i].message), "%s", error.text);
    }
    cr_assert(!(path_exists(path)));
    cr_assert_eq(rmdir(parent), 0, "nothing is left");
}

/* ---- inflate ---- */

static Error try_zlib(const unsigned char *in_data, size_t size) {
    unsigned char out[8];
    Error error;
    ATTEMPT(&error, (void)inflate_zlib(out, sizeof out, in_data, size, "Z"));
    return error;
}

Test(tensor, headers_of_zlib) {
    static const struct {
        const char *bytes;
        size_t size;
    } cases[] = {{"\x78", 1},
                 {"\x79\x01\3\0", 4},
                 {"\x88\x1c\3\0", 4},
                 {"\x78\x02\3\0", 4},
                 {"\x78\x20\3\0", 4} /* needs a dictionary */};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = try_zlib((const unsigned char *)cases[i].bytes, cases[i].size);
        cr_assert_eq(error.status, STATUS_INPUT, "%zu", i);
    }
    Error error = try_zlib((const unsigned char *)"\x78\1\3\0\0\0\0\1", 8);
    cr_assert_eq(error.status, STATUS_OK, "%s", error.text);
}

static Error try_inflate(unsigned char *out, size_t capacity, size_t *length,
                         const unsigned char *in_data, size_t size) {
    Error error;
    ATTEMPT(&error, *length = inflate_raw(out, capacity, in_data, size, NULL, "Z"));
    return error;
}

Test(tensor, crc32_known_answers) {
    cr_assert_eq(crc32_of(0, (const unsigned char *)"123456789", 9), 0xCBF43926);
    cr_assert_eq(crc32_of(0, (const unsigned char *)"", 0), 0);
    size_t size;
    unsigned char *data = read_all(GOLDEN "streams.bin", &size);
    uint32_t bitwise = 0xFFFFFFFF;
    for (size_t i = 0; i < size; i++) {
        bitwise ^= data[i];
        for (int k = 0; k < 8; k++) {
            bitwise = bitwise >> 1 ^ (bitwise & 1 ? 0xEDB88320 : 0);
        }
    }
    cr_assert_eq(crc32_of(0, data, size), ~bitwise);
    cr_assert_eq(crc32_of(crc32_of(0, data, 5001), data + 5001, size - 5001), ~bitwise);
    free(data);
}

Test(tensor, inflate_what_zlib_wrote) {
    size_t size, records = 0;
    unsigned char *data = read_all(GOLDEN "streams.bin", &size);
    for (size_t at = 0; at < size; records++) {
        uint32_t packed, length, crc;
        size_t got = 0, used = 0;
        memcpy(&packed, data + at, 4);
        memcpy(&length, data + at + 4, 4);
        memcpy(&crc, data + at + 8, 4);
        unsigned char *in_copy = malloc(packed),
                      *out = malloc(length + 1); /* exact, for the sanitizer */
        memcpy(in_copy, data + at + 12, packed);
        got = inflate_zlib(out, length, in_copy, packed, "Z");
        cr_assert(got == length && crc32_of(0, out, got) == crc);
        got = inflate_raw(out, length, data + at + 14, size - at - 14, &used, "Z");
        cr_assert(got == length && used == packed - 6, "what follows is not read");
        unsigned char *part = malloc(length + 1);
        if (length != 0) {
            Error error = try_inflate(out, length - 1, &got, in_copy + 2, packed - 6);
            cr_assert_eq(error.status, STATUS_INPUT);
            cr_assert_not_null(strstr(error.text, "Z: holds more than the"));
            cr_assert_eq(inflate_zlib(part, length - 1, in_copy, packed, "Z"), length - 1);
            cr_assert_arr_eq(part, out, length - 1);
        }
        for (size_t cut = 2, last = 0; cut < packed; cut += 1 + packed / 60) {
            unsigned char *less = malloc(cut);
            memcpy(less, in_copy, cut);
            if (cut < packed - 4) {
                Error error = try_inflate(part, length, &got, less + 2, cut - 2);
                cr_assert_eq(error.status, STATUS_INPUT);
            }
            got = inflate_zlib(part, length, less, cut, "Z");
            cr_assert(got >= last && got <= length);
            cr_assert_arr_eq(part, out, got);
            last = got;
            free(less);
        }
        free(part);
        free(in_copy);
        free(out);
        at += 12 + packed;
    }
    cr_assert_eq(records, 47);
    free(data);
}

/* Blocks with odd sets of codes, and changed or cut streams: zlib's own verdict on each is in the
 * file. */
Test(tensor, inflate_judges_as_zlib) {
    size_t size;
    int good = 0, bad = 0;
    unsigned char *data = read_all(GOLDEN "judged.bin", &size), out[65536];
    for (size_t at = 0; at < size;) {
        uint32_t packed, crc;
        int32_t expected;
        size_t length = 0;
        memcpy(&packed, data + at, 4);
        memcpy(&expected, data + at + 4, 4);
        memcpy(&crc, data + at + 8, 4);
        unsigned char *copy = malloc(packed);
        memcpy(copy, data + at + 12, packed);
        Error error = try_inflate(out, sizeof out, &length, copy, packed);
        cr_assert_eq(error.status == STATUS_OK, expected >= 0, "record at %zu: %s", at, error.text);
        cr_assert(expected < 0 || ((size_t)expected == length && crc32_of(0, out, length) == crc));
        good += expected >= 0;
        bad += expected < 0;
        free(copy);
        at += 12 + packed;
    }
    cr_assert(good > 100 && bad > 100, "%d good, %d bad", good, bad);
    free(data);
}

/* ---- files changed at random ---- */

/* Every byte that a store hands out must be readable: the sanitizers watch. */
static uint32_t touch(const TensorStore *store) {
    uint32_t sum = 0;
    for (size_t i = 0; i < store->count; i++) {
        const Tensor *t = &store->tensors[i];
        size_t count = 1;
        for (int d = 0; d < t->rank; d++) {
            count *= t->shape[d];
        }
        cr_assert_eq(count, t->count);
        if (t->dtype != DTYPE_OTHER) {
            sum ^= crc32_of(0, t->data, t->count * dtype_size(t->dtype));
        }
    }
    return sum;
}

Test(tensor, mutated_files_are_read_or_refused) {
    static const char *const seeds[] = {GOLDEN "all.safetensors", GOLDEN "stored.npz",
                                        GOLDEN "deflated.npz", GOLDEN "streamed.npz",
                                        GOLDEN "unaligned.safetensors"};
    const char *parent = directory_new();
    char *path = in(parent, "x");
    Random random = random_start(5, RANDOM_TEST);
    int refused = 0, read = 0;
    for (int i = 0; i < 5000; i++) {
        size_t size;
        unsigned char *data = read_all(seeds[i % 5], &size);
        for (uint64_t n = 1 + random_below(&random, 4); n-- > 0;) {
            size_t at =
                (size_t)random_below(&random, random_below(&random, 2) ? size : size / 8 + 1);
            switch (random_below(&random, 5)) {
            case 0:
                data[at] ^= (unsigned char)(1U << random_below(&random, 8));
                break;
            case 1:
                data[at] = (unsigned char)random_word(&random);
                break;
            case 2:
                data[at] = random_below(&random, 2) ? 0xFF : 0;
                break;
            case 3: /* digits are where sizes are */
                data[at] = data[at] >= '0' && data[at] <= '9'
                               ? (unsigned char)('0' + random_below(&random, 10))
                               : data[at];
                break;
            default:
                size = random_below(&random, 6) == 0 ? at : size;
            }
            if (size == 0) {
                break;
            }
        }
        write_file(path, data, size);
        free(data);
        TensorStore store;
        Error error = try_open(&store, path);
        if (error.status == STATUS_OK) {
            touch(&store);
            arena_free(store.arena);
            read++;
        } else {
            cr_assert(error.status == STATUS_INPUT || error.status == STATUS_RESOURCE);
            cr_assert_eq(strncmp(error.text, path, strlen(path)), 0, "%s", error.text);
            refused++;
        }
    }
    cr_assert(refused > 500 && read > 500, "%d refused, %d read", refused, read);
}

Test(tensor, mutated_streams_end) {
    size_t size;
    unsigned char *data = read_all(GOLDEN "streams.bin", &size), *out = malloc(80000);
    Random random = random_start(6, RANDOM_TEST);
    for (int i = 0; i < 4000; i++) {
        size_t start = (size_t)random_below(&random, size - 1), left = size - start, length;
        size_t take = 1 + (size_t)random_below(&random, left < 3000 ? left : 3000);
        unsigned char *copy = malloc(take);
        memcpy(copy, data + start, take);
        copy[random_below(&random, take)] ^= (unsigned char)(1U << random_below(&random, 8));
        copy[0] = (unsigned char)(copy[0] & 0xF8) | (unsigned char)(2 * random_below(&random, 4));
        Error error = try_inflate(out, 80000, &length, copy, take);
        cr_assert(error.status == STATUS_OK ? length <= 80000 : error.text[0] == 'Z');
        free(copy);
    }
    free(data);
    free(out);
}

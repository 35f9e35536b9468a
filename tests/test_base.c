/* Errors, arenas, random numbers, SHA-256, UTF-8 and files. */
#define _XOPEN_SOURCE 700
#include "base.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- errors ---- */

Test(base, error_keeps_the_first_cause) {
    Error error = {0};
    cr_assert_eq(fail(&error, STATUS_INPUT, "%s: cause %d", "FILE", 1), STATUS_INPUT);
    cr_assert_eq(fail(&error, STATUS_RESOURCE, "consequence"), STATUS_RESOURCE);
    cr_assert_str_eq(error.text, "FILE: cause 1");
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_eq(fail(NULL, STATUS_CHECK, "nobody listens"), STATUS_CHECK);
}

Test(base, error_shows_what_a_terminal_would_obey) {
    Error error = {0};
    fail(&error, STATUS_INPUT, "%s", "a\x1b[31m\xff\n\xc2\x9b\xe2\x80\xae 名é😀");
    cr_assert_str_eq(error.text, "a\\x1B[31m\\xFF\\x0A\\xC2\\x9B\\xE2\\x80\\xAE 名é😀");
}

Test(base, error_of_any_length_is_cut_at_a_character) {
    for (size_t length = 990; length < 3000; length += 7) {
        Error error = {0};
        char *text = malloc(length + 1);
        for (size_t i = 0; i < length; i++) {
            text[i] = "\xC3\xA9"[i % 2];
        }
        text[length] = 0;
        fail(&error, STATUS_INPUT, "%s", text);
        cr_assert_lt(strlen(error.text), sizeof error.text);
        cr_assert(utf8_valid(error.text, strlen(error.text)));
        if (length > 1020) {
            cr_assert_str_eq(error.text + strlen(error.text) - 3, "...");
        }
        free(text);
    }
}

/* ---- sizes and arenas ---- */

Test(base, sizes_overflow) {
    size_t out;
    cr_assert(size_mul(&out, SIZE_MAX, 1) && out == SIZE_MAX);
    cr_assert(size_mul(&out, 0, SIZE_MAX) && out == 0);
    cr_assert_not(size_mul(&out, SIZE_MAX / 2 + 1, 2));
    cr_assert_not(size_mul(&out, (size_t)1 << 32, (size_t)1 << 32));
    cr_assert(size_add(&out, SIZE_MAX - 1, 1) && out == SIZE_MAX);
    cr_assert_not(size_add(&out, SIZE_MAX, 1));
}

/* The same allocations in any arena. */
static void layout(Arena *arena, void *places[4]) {
    places[0] = arena_alloc(arena, 3, 5);
    places[1] = arena_alloc(arena, 0, 8);
    places[2] = arena_alloc(arena, 1000, 4);
    places[3] = arena_alloc(arena, 1, 64);
}

Test(base, measured_arena_fits_exactly) {
    Arena *measure, *fixed;
    Error error = {0};
    void *places[4];
    arena_init_measuring(measure);
    layout(measure, places);
    cr_assert_null(places[0]);
    cr_assert_not(measure.failed);
    arena_init_fixed(fixed, measure.used);
    layout(fixed, places);
    cr_assert_eq(fixed.used, measure.used);
    for (int i = 0; i < 4; i++) {
        cr_assert_not_null(places[i]);
        cr_assert_eq((uintptr_t)places[i] % 64, 0);
    }
    cr_assert_null(arena_alloc(fixed, 1, 1));
    cr_assert(fixed.failed);
    memset(places[2], 7, 4000);
    arena_reset(fixed);
    layout(fixed, places);
    for (int i = 0; i < 4000; i++) {
        cr_assert_eq(((char *)places[2])[i], 0, "memory is zeroed again after a reset");
    }
    arena_free(fixed);
}

Test(base, growing_arena_gives_zeroed_memory_of_any_size) {
    Arena *arena;
    arena = arena_new();
    Random random = random_start(1, RANDOM_TEST);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 400; i++) {
            size_t size = (size_t)random_below(&random, i % 40 == 0 ? 3000000 : 5000);
            unsigned char *p = arena_alloc(arena, size, 1);
            cr_assert_not_null(p);
            cr_assert_eq((uintptr_t)p % 64, 0);
            for (size_t j = 0; j < size; j++) {
                cr_assert(p[j] == 0);
            }
            memset(p, 0xAA, size);
            cr_assert_str_eq(arena_copy(arena, "text and more", 4), "text");
        }
        arena_reset(arena);
        cr_assert_eq(arena.used, 0);
    }
    cr_assert_str_eq(arena_format(arena, "%s/%d", "x", 5), "x/5");
    cr_assert_null(arena_alloc(arena, SIZE_MAX / 2, 3));
    cr_assert(arena.failed);
    arena_free(arena);
}

Test(base, arena_that_cannot_be_had_is_an_error) {
    Arena *arena;
    Error error = {0};
    ATTEMPT(&error, arena_init_fixed(arena, SIZE_MAX - 10));
    cr_assert_eq(error.status, STATUS_RESOURCE);
    cr_assert(strstr(error.text, "out of memory") != NULL);
    arena_free(arena);
}

/* ---- random numbers ---- */

/* Written anew from the paper, and held to Random123's known answers, three of which the interface
 * cannot reach because its counter has 62 bits. */
static void philox_reference(const uint32_t in[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4], k[2] = {key[0], key[1]};
    memcpy(c, in, sizeof c);
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xD2511F53ULL * c[0], b = 0xCD9E8D57ULL * c[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b,
                            (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
        memcpy(c, next, sizeof c);
        k[0] += 0x9E3779B9;
        k[1] += 0xBB67AE85;
    }
    memcpy(out, c, sizeof c);
}

Test(base, philox_known_answers) {
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
         0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1}};
    uint32_t out[4];
    for (int i = 0; i < 3; i++) {
        philox_reference(known[i], known[i] + 4, out);
        cr_assert_arr_eq(out, known[i] + 6, sizeof out);
    }
    Random zero = random_start(0, 0), random = random_start(0xFEDCBA9876543210, 0x123456789ABCDEF0);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(random_word(&zero), known[0][6 + i]);
    }
    random.position = 0x3FFFFFFFFFFFFFF1;
    for (int i = 0; i < 100; i++) {
        uint64_t block = random.position / 4;
        uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0x9ABCDEF0, 0x12345678};
        uint32_t key[2] = {0x76543210, 0xFEDCBA98};
        philox_reference(counter, key, out);
        uint32_t expected = out[random.position % 4];
        cr_assert_eq(random_word(&random), expected);
    }
}

Test(base, random_numbers_have_their_ranges) {
    Random random = random_start(475, RANDOM_TEST);
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        float u = random_uniform(&random);
        cr_assert(u >= 0 && u < 1);
        sum += (double)u;
    }
    /* The mean of 1e5 uniforms has a deviation of 0.0009; five of them. */
    cr_assert_float_eq(sum / 100000, 0.5, 0.005);
    int count[7] = {0};
    for (int i = 0; i < 70000; i++) {
        count[random_below(&random, 7)]++;
    }
    for (int i = 0; i < 7; i++) {
        cr_assert(abs(count[i] - 10000) < 500, "5 deviations of a binomial of 70000 and 1/7");
    }
    cr_assert_eq(random_below(&random, 1), 0);
    cr_assert_eq(random_below(&random, 0), 0);
    for (int i = 0; i < 1000; i++) { /* a bound that rejects nearly half of all words */
        cr_assert_lt(random_below(&random, 0x8000000000000001), 0x8000000000000001);
    }
}

Test(base, permutation_holds_everything_once) {
    uint64_t order[1000], again[1000];
    bool seen[1000] = {false};
    Random a = random_start(475, RANDOM_SHUFFLE), b = a,
           c = random_start(475, RANDOM_SHUFFLE + (1LL << 32));
    random_permutation(&a, order, 1000);
    random_permutation(&b, again, 1000);
    cr_assert_arr_eq(order, again, sizeof order);
    for (int i = 0; i < 1000; i++) {
        cr_assert(order[i] < 1000 && !seen[order[i]]);
        seen[order[i]] = true;
    }
    random_permutation(&c, again, 1000);
    cr_assert_arr_neq(order, again, sizeof order);
    random_permutation(&c, again, 0);
}

/* ---- SHA-256 ---- */

static void digest(const void *data, size_t size, size_t piece, char hex[65]) {
    Sha256 sha;
    sha256_start(&sha);
    for (size_t i = 0; i < size; i += piece) {
        sha256_add(&sha, (const char *)data + i, size - i < piece ? size - i : piece);
    }
    sha256_end(&sha, hex);
}

Test(base, sha256_known_answers) {
    char hex[65], whole[65];
    digest("", 0, 1, hex);
    cr_assert_str_eq(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    digest("abc", 3, 1, hex);
    cr_assert_str_eq(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, 13, hex);
    cr_assert_str_eq(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    memset(million, 'a', 1000000);
    digest(million, 1000000, 997, hex);
    cr_assert_str_eq(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    for (size_t size = 0; size < 300; size++) {
        digest(million, size, 7, hex);
        digest(million, size, 1000, whole);
        cr_assert_str_eq(hex, whole);
    }
    free(million);
}

/* ---- UTF-8 ---- */

Test(base, utf8_every_code_point) {
    for (uint32_t code = 0; code < 0x110000; code++) {
        char text[4];
        uint32_t back = 0;
        size_t length = utf8_encode(code, text), read = utf8_decode(text, length, &back);
        bool surrogate = code >= 0xD800 && code < 0xE000;
        cr_assert(surrogate ? read == 0 : read == length && back == code);
        for (size_t cut = 0; cut < length; cut++) {
            cr_assert(utf8_decode(text, cut, &back) == 0);
        }
    }
}

Test(base, utf8_refuses_what_is_none) {
    static const char *const bad[] = {"\x80",
                                      "\xC0\x80",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFF",
                                      "\xC3(",
                                      "\xE2\x82(",
                                      "\xED\xA0\x80"};
    uint32_t code;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(utf8_decode(bad[i], strlen(bad[i]), &code), 0, "%zu", i);
        cr_assert_not(utf8_valid(bad[i], strlen(bad[i])));
    }
    cr_assert(utf8_valid("añ名😀", strlen("añ名😀")));
    cr_assert(utf8_valid("", 0));
}

/* ---- files ---- */

/* A text that lives as long as the test; each test is a process of its own. */
static char *scratch(void) {
    static char text[16][256];
    static int next;
    return text[next++ % 16];
}

static char directory[] = "/tmp/refsae-base-XXXXXX";

static void directory_remove(void) {
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    cr_assert_eq(system(command), 0);
}

static const char *directory_new(void) {
    cr_assert_not_null(mkdtemp(directory));
    atexit(directory_remove);
    return directory;
}

static char *in(const char *parent, const char *name) {
    char *path = scratch();
    snprintf(path, 256, "%s/%s", parent, name);
    return path;
}

static void write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f);
    fputs(text, f);
    fclose(f);
}

static void assert_file_is(const char *path, const char *text) {
    FileMap map;
    Error error = {0};
    map = file_map(arena, path);
    cr_assert_eq(map.size, strlen(text));
    cr_assert_arr_eq(map.data, text, map.size);
}

static size_t names_in(const char *parent) {
    Arena *arena;
    Error error = {0};
    char **names;
    size_t count;
    arena = arena_new();
    names = path_list(arena, parent, &count);
    arena_free(arena);
    return count;
}

Test(base, file_map_reads_files_and_nothing_else) {
    const char *parent = directory_new();
    char *file = in(parent, "file"), *empty = in(parent, "empty");
    char *fifo = in(parent, "fifo"), hex[65];
    FileMap map;
    Error error = {0};
    write_file(file, "abc");
    write_file(empty, "");
    assert_file_is(file, "abc");
    sha256_file(file, hex);
    cr_assert_eq(strncmp(hex, "ba7816bf", 8), 0);
    map = file_map(arena, empty);
    cr_assert_not_null(map.data);
    cr_assert_eq(map.size, 0);
    ATTEMPT(&error, map = file_map(arena, "/nonexistent/x"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_str_eq(error.text, "/nonexistent/x: cannot open: No such file or directory");
    error.status = STATUS_OK;
    ATTEMPT(&error, map = file_map(arena, "/tmp"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_str_eq(error.text, "/tmp: is a directory, not a regular file");
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    ATTEMPT(&error, map = file_map(arena, fifo));
    cr_assert_eq(error.status, STATUS_INPUT, "a FIFO must not be waited for");
    ATTEMPT(&error, map = file_map(arena, "/dev/zero"));
    cr_assert_eq(error.status, STATUS_INPUT);
}

Test(base, output_appears_whole_or_not_at_all) {
    const char *parent = directory_new();
    char *path = in(parent, "out.csv");
    OutFile out, other;
    Error error = {0};
    write_file(path, "before");
    out = out_open(path);
    other = out_open(path);
    fputs("after", out.stream);
    fflush(out.stream);
    fputs("other", other.stream);
    assert_file_is(path, "before");
    out_abandon(&other);
    out_commit(&out);
    assert_file_is(path, "after");
    out_abandon(&out);
    assert_file_is(path, "after");
    cr_assert_eq(names_in(parent), 1, "no temporary is left");
}

Test(base, output_keeps_symbolic_links) {
    const char *parent = directory_new();
    char *target = in(parent, "target"), *link = in(parent, "link");
    struct stat info;
    OutFile out;
    Error error = {0};
    write_file(target, "before");
    cr_assert_eq(symlink("target", link), 0);
    out = out_open(link);
    fputs("after", out.stream);
    out_commit(&out);
    cr_assert(lstat(link, &info) == 0 && S_ISLNK(info.st_mode));
    assert_file_is(target, "after");
}

Test(base, output_errors) {
    const char *parent = directory_new();
    char *path = in(parent, "out");
    OutFile out;
    Error error = {0};
    ATTEMPT(&error, out = out_open("/nonexistent/x"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_str_eq(error.text, "/nonexistent/x: cannot write: No such file or directory");
    out_abandon(&out);
    ATTEMPT(&error, out = out_open(parent));
    cr_assert_eq(error.status, STATUS_INPUT);
    ATTEMPT(&error, out = out_open(""));
    cr_assert_eq(error.status, STATUS_INPUT);
    error.status = STATUS_OK;
    out = out_open("/dev/full");
    fputs("x", out.stream);
    ATTEMPT(&error, out_commit(&out));
    cr_assert_eq(error.status, STATUS_RESOURCE);
    cr_assert_str_eq(error.text, "/dev/full: cannot write: No space left on device");
    cr_assert(path_exists("/dev/full"));

    /* A disk that is full half-way: a limit on file sizes fails in the same way. */
    struct rlimit limit = {.rlim_cur = 8192, .rlim_max = RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    write_file(path, "before");
    error.status = STATUS_OK;
    out = out_open(path);
    for (int i = 0; i < 100000; i++) {
        putc('x', out.stream);
    }
    ATTEMPT(&error, out_commit(&out));
    cr_assert_eq(error.status, STATUS_RESOURCE);
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    assert_file_is(path, "before");
    cr_assert_eq(names_in(parent), 1);
}

Test(base, directories) {
    const char *parent = directory_new();
    char *deep = in(parent, "a/b//c/"), *file = in(parent, "file");
    Error error = {0};
    Arena *arena;
    char **names;
    size_t count;
    arena = arena_new();
    path_make_directory(deep);
    cr_assert(path_is_directory(deep));
    path_make_directory(deep);
    write_file(file, "x");
    cr_assert_not(path_is_directory(file));
    ATTEMPT(&error, path_make_directory(in(parent, "file/d")));
    cr_assert_eq(error.status, STATUS_INPUT);
    ATTEMPT(&error, path_make_directory(""));
    cr_assert_eq(error.status, STATUS_INPUT);
    names = path_list(arena, parent, &count);
    cr_assert_eq(count, 2);
    cr_assert_str_eq(names[0], "a");
    cr_assert_str_eq(names[1], "file");
    ATTEMPT(&error, names = path_list(arena, "/nonexistent", &count));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_str_eq(path_join(arena, "d", "n"), "d/n");
    cr_assert_str_eq(path_join(arena, "d/", "n"), "d/n");
    cr_assert_str_eq(path_join(arena, "d", "/n"), "/n");
    cr_assert_str_eq(path_join(arena, "", "n"), "n");
    arena_free(arena);
}

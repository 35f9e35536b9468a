/* base.c: see base.h. */
#define _XOPEN_SOURCE 700 /* realpath */
#define _GNU_SOURCE       /* fopencookie, madvise */
#define _DARWIN_C_SOURCE  /* flock */
#include "base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#ifndef REFSAE_NO_MMAP
#include <sys/mman.h>
#endif
#if defined(KERNELS_X86_64) && defined(KERNELS_SIMD)
#include <cpuid.h>
#include <immintrin.h>
#endif
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- errors ---- */

static uint64_t next_serial = 1; /* of arenas */

/* Characters that a terminal obeys instead of showing them: C0, DEL, C1, line and paragraph
 * separators, and the controls of writing direction. */
static bool code_is_control(uint32_t code) {
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x61C ||
           (code >= 0x200B && code <= 0x200F) || (code >= 0x2028 && code <= 0x202E) ||
           (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
}

enum {
    SHOWN_MOST = 17 /* bytes of a character as \xNN, and a 0 */
};

/* The first character of a text as it may be shown; its bytes there. */
static size_t show_character(char shown[SHOWN_MOST], const char *text, size_t length) {
    uint32_t code;
    size_t step = utf8_decode(text, length, &code), used = 0;
    bool plain = step != 0 && !code_is_control(code);
    step = step == 0 ? 1 : step;
    for (size_t i = 0; i < step; i++) {
        used += (size_t)snprintf(shown + used, 5, plain ? "%c" : "\\x%02X", (unsigned char)text[i]);
    }
    return step;
}

void print_shown(FILE *out, const char *text) {
    char shown[SHOWN_MOST];
    for (size_t length = strlen(text), i = 0; i < length;) {
        i += show_character(shown, text + i, length - i);
        fputs(shown, out);
    }
}

/* The sentence as it may be shown, names in it may be hostile; "..." where it does not fit. */
static void sentence(char *out, size_t size, const char *format, va_list arguments) {
    char shown[SHOWN_MOST];
    char raw[8192] = "";
    int written = vsnprintf(raw, sizeof raw, format, arguments);
    bool cut = (size_t)written >= sizeof raw;
    size_t length = strlen(raw), room = size - 4, used = 0; /* "..." and the 0 byte */
    for (size_t i = 0; i < length;) {
        size_t step = show_character(shown, raw + i, length - i), bytes = strlen(shown);
        if (used + bytes > room) {
            cut = true;
            break;
        }
        memcpy(out + used, shown, bytes);
        used += bytes;
        i += step;
    }
    memcpy(out + used, cut ? "..." : "", cut ? 4 : 1);
}

static Attempt *innermost;
static void arenas_free_from(uint64_t serial);

void attempt_begin(Attempt *attempt) {
    attempt->outer = innermost;
    attempt->first_arena = next_serial;
    attempt->error.status = STATUS_OK;
    attempt->error.text[0] = 0;
    innermost = attempt;
}

Error attempt_end(Attempt *attempt) {
    innermost = attempt->outer;
    return attempt->error;
}

void fail(Status status, const char *format, ...) {
    Error alone, *error = innermost != NULL ? &innermost->error : &alone;
    va_list arguments;
    va_start(arguments, format);
    sentence(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    error->status = status;
    arenas_free_from(innermost != NULL ? innermost->first_arena : 0);
    if (innermost == NULL) {
        fprintf(stderr, "refsae: %s\n", error->text);
        exit((int)status);
    }
    longjmp(innermost->jump, 1);
}

void fail_for_resources(const Error *error) {
    if (error->status == STATUS_RESOURCE) {
        fail(error->status, "%s", error->text);
    }
}

void fail_errno(int code, const char *path, const char *what) {
    bool resource = code == ENOSPC || code == EDQUOT || code == ENOMEM || code == EMFILE ||
                    code == ENFILE || code == EIO || code == EFBIG;
    fail(resource ? STATUS_RESOURCE : STATUS_INPUT, "%s: %s: %s", path, what, strerror(code));
}

/* ---- sizes ---- */

bool size_mul(size_t *product, size_t a, size_t b) {
    *product = a * b;
    return a == 0 || b <= SIZE_MAX / a;
}

bool size_add(size_t *sum, size_t a, size_t b) {
    *sum = a + b;
    return *sum >= a;
}

int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int compare_natural(const void *a, const void *b) {
    static const char digits[] = "0123456789";
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    size_t i = 0;
    while (x[i] != '\0' && x[i] == y[i]) {
        i++;
    }
    while (i > 0 && strchr(digits, x[i - 1]) != NULL) {
        i--;
    }
    size_t m = strspn(x + i, digits), n = strspn(y + i, digits);
    return m > 0 && n > 0 && m != n ? (m < n ? -1 : 1) : strcmp(x + i, y + i);
}

size_t size_larger(size_t a, size_t b) {
    return a > b ? a : b;
}

size_t size_product(size_t a, size_t b) {
    size_t product;
    if (!size_mul(&product, a, b)) {
        fail(STATUS_RESOURCE, "out of memory: sizes beyond this machine's addresses are needed");
    }
    return product;
}

/* ---- the order of bytes ---- */

const void *little_elements(Arena *arena, const void *data, size_t size, size_t count) {
    const uint16_t one = 1;
    if (*(const unsigned char *)&one == 1 || size < 2 || count == 0) {
        return data;
    }
    void *copy = arena_alloc(arena, count, size);
    little_copy(copy, data, size, count);
    return copy;
}

/* ---- arenas ---- */

enum {
    ARENA_ALIGN = 64,
    ARENA_FIRST_BLOCK = 1 << 11,
    ARENA_LARGEST_STEP = 1 << 24
};

/* What was handed out is zeroed at a reset; the rest is as calloc gave it: no page is touched. */
typedef struct ArenaBlock {
    struct ArenaBlock *next;
    unsigned char *data; /* aligned to ARENA_ALIGN */
    size_t size, used;
} ArenaBlock;

typedef struct Deferred {
    struct Deferred *next;
    void (*release)(void *what);
    void *what;
} Deferred;

struct Arena {
    ArenaBlock *blocks; /* newest first */
    Deferred *deferred; /* newest first */
    size_t used;        /* bytes handed out, with their alignment */
    bool measuring;
    uint64_t serial;
    Deferred *within; /* what frees it with its parent; NULL: no parent */
    Arena *older;     /* all arenas, so that a failure finds them */
};

static Arena *newest;

/* A hint: large pages, where the system has them, are touched and looked up less often. */
static void prefer_large_pages(void *data, size_t size) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)1 << 21, first = ((uintptr_t)data + page - 1) / page;
    const uintptr_t last = ((uintptr_t)data + size) / page;
    if (last > first) {
        madvise((void *)(first * page), (last - first) * page, MADV_HUGEPAGE);
    }
#else
    (void)data;
    (void)size;
#endif
}

static ArenaBlock *block_new(size_t size) {
    size_t total;
    bool fits = size_add(&total, size, sizeof(ArenaBlock) + ARENA_ALIGN);
    ArenaBlock *block = fits ? calloc(1, total) : NULL;
    if (block == NULL) {
        fail(STATUS_RESOURCE, "out of memory: %.1f MiB are needed", (double)size / 1048576.0);
    }
    prefer_large_pages(block, total);
    unsigned char *start = (unsigned char *)(block + 1);
    block->data = start + (ARENA_ALIGN - (uintptr_t)start % ARENA_ALIGN) % ARENA_ALIGN;
    block->size = size;
    return block;
}

Arena *arena_new(void) {
    Arena *arena = calloc(1, sizeof *arena);
    if (arena == NULL) {
        fail(STATUS_RESOURCE, "out of memory");
    }
    arena->serial = next_serial++;
    arena->older = newest;
    newest = arena;
    return arena;
}

static void release_arena(void *arena) {
    arena_free(arena);
}

Arena *arena_within(Arena *parent) {
    Arena *arena = arena_new();
    arena_defer(parent, release_arena, arena);
    arena->within = parent->deferred;
    return arena;
}

static size_t round_up(size_t bytes, size_t align) {
    return (bytes + align - 1) / align * align;
}

/* Bytes from a block, or NULL if they do not fit there. */
static void *block_take(ArenaBlock *block, size_t bytes, size_t align) {
    size_t start = block == NULL ? 0 : round_up(block->used, align);
    if (block == NULL || start > block->size || bytes > block->size - start) {
        return NULL;
    }
    block->used = start + bytes;
    return block->data + start;
}

static void *arena_take(Arena *arena, size_t bytes, size_t align) {
    const size_t most = SIZE_MAX - ARENA_ALIGN;
    bytes += bytes == 0; /* so that no two arrays have one address */
    if (arena->used > most || bytes > most - arena->used) {
        fail(STATUS_RESOURCE, "out of memory: sizes beyond this machine's addresses are needed");
    }
    arena->used = round_up(arena->used, align) + bytes;
    void *place = arena->measuring ? NULL : block_take(arena->blocks, bytes, align);
    if (place == NULL && !arena->measuring) {
        size_t size = arena->blocks == NULL ? ARENA_FIRST_BLOCK : arena->blocks->size;
        size = size < ARENA_LARGEST_STEP / 2 ? 2 * size : ARENA_LARGEST_STEP;
        bool large = bytes > size / 4;
        ArenaBlock *block = block_new(large ? bytes : size);
        /* A large one goes behind the newest, whose room stays in use. */
        ArenaBlock **at = large && arena->blocks != NULL ? &arena->blocks->next : &arena->blocks;
        block->next = *at;
        *at = block;
        place = block_take(block, bytes, align);
    }
    return place;
}

void *arena_alloc(Arena *arena, size_t count, size_t size) {
    return arena_take(arena, size_product(count, size), ARENA_ALIGN);
}

float *arena_floats(Arena *arena, size_t rows, size_t cols) {
    return arena_alloc(arena, size_product(rows, cols), sizeof(float));
}

void *arena_grow(Arena *arena, void *old, size_t *capacity, size_t needed, size_t size) {
    if (needed <= *capacity) {
        return old;
    }
    size_t room = *capacity < 8 ? 16 : 2 * *capacity;
    room = room < needed ? needed : room;
    void *larger = arena_alloc(arena, room, size);
    if (*capacity != 0) {
        memcpy(larger, old, *capacity * size);
    }
    *capacity = room;
    return larger;
}

char *arena_copy(Arena *arena, const char *text, size_t length) {
    char *copy = arena_take(arena, length + 1, 1);
    if (copy != NULL && length != 0) {
        memcpy(copy, text, length);
    }
    return copy;
}

char *arena_format(Arena *arena, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) {
        fail(STATUS_RESOURCE, "out of memory");
    }
    char *text = arena_take(arena, (size_t)length + 1, 1);
    if (text != NULL) {
        va_start(arguments, format);
        vsnprintf(text, (size_t)length + 1, format, arguments);
        va_end(arguments);
    }
    return text;
}

char *arena_sizes(Arena *arena, const size_t *sizes, int count, const char *zero) {
    char *text = arena_copy(arena, "", 0);
    for (int i = 0; i < count; i++) {
        const char *comma = i > 0 ? ", " : "";
        text = sizes[i] == 0 ? arena_format(arena, "%s%s%s", text, comma, zero)
                             : arena_format(arena, "%s%s%zu", text, comma, sizes[i]);
    }
    return text;
}

void arena_defer(Arena *arena, void (*release)(void *what), void *what) {
    Deferred *volatile deferred = NULL;
    Error error;
    ATTEMPT(&error, deferred = arena_alloc(arena, 1, sizeof *deferred));
    if (error.status != STATUS_OK) { /* else nobody would own it */
        release(what);
        fail(error.status, "%s", error.text);
    }
    *deferred = (Deferred){arena->deferred, release, what};
    arena->deferred = deferred;
}

void arena_reset(Arena *arena) {
    for (Deferred *d = arena->deferred; d != NULL; d = arena->deferred) {
        arena->deferred = d->next;
        d->release(d->what);
    }
    while (arena->blocks != NULL && arena->blocks->next != NULL) {
        ArenaBlock *block = arena->blocks->next;
        arena->blocks->next = block->next;
        free(block);
    }
    if (arena->blocks != NULL) {
        memset(arena->blocks->data, 0, arena->blocks->used);
        arena->blocks->used = 0;
    }
    arena->used = 0;
}

void arena_free(Arena *arena) {
    if (arena == NULL) {
        return;
    }
    if (arena->within != NULL) {
        arena->within->what = NULL;
    }
    if (arena->blocks != NULL) {
        arena->blocks->used = 0; /* so that it is not zeroed */
    }
    arena_reset(arena);
    free(arena->blocks);
    Arena **at = &newest;
    while (*at != arena) {
        at = &(*at)->older;
    }
    *at = arena->older;
    free(arena);
}

static void arenas_free_from(uint64_t serial) {
    while (newest != NULL && newest->serial >= serial) { /* freeing one may free others within it */
        arena_free(newest);
    }
}

size_t arena_measure(ArenaLayout *layout, void *user) {
    Arena *arena = arena_new();
    arena->measuring = true;
    layout(arena, user);
    size_t used = arena->used;
    arena_free(arena);
    return used;
}

size_t arena_fit(ArenaLayout *layout, void *user, size_t *count, size_t most) {
    size_t bytes = arena_measure(layout, user);
    while (bytes > most && *count > 1) {
        *count = (*count + 1) / 2;
        bytes = arena_measure(layout, user);
    }
    return bytes;
}

Arena *arena_plan(ArenaLayout *layout, void *user) {
    size_t bytes = arena_measure(layout, user);
    Arena *arena = arena_new();
    arena->blocks = block_new(bytes);
    layout(arena, user);
    return arena;
}

/* ---- random numbers ---- */

/* Ten rounds of Philox4x32; constants from Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as
 * easy as 1, 2, 3" (2011). */
static void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53U * c[0], p1 = (uint64_t)0xCD9E8D57U * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[0] = n0;
        c[1] = (uint32_t)p1;
        c[2] = n2;
        c[3] = (uint32_t)p0;
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
}

Random random_start(uint64_t seed, uint64_t stream) {
    return (Random){.seed = seed, .stream = stream, .position = 0};
}

uint32_t random_word(Random *random) {
    uint64_t block = random->position / 4;
    uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)random->stream,
                           (uint32_t)(random->stream >> 32)};
    philox(counter, (uint32_t)random->seed, (uint32_t)(random->seed >> 32));
    return counter[random->position++ % 4];
}

float random_uniform(Random *random) {
    return (float)(random_word(random) >> 8) * 0x1p-24F;
}

/* The lowest 2^64 mod bound values are rejected: the rest has every remainder equally often. */
uint64_t random_below(Random *random, uint64_t bound) {
    if (bound == 0) {
        return 0;
    }
    uint64_t reject = (0 - bound) % bound, value;
    do {
        value = random_word(random);
        value |= (uint64_t)random_word(random) << 32;
    } while (value < reject);
    return value % bound;
}

void random_permutation(Random *random, uint64_t *order, size_t n) {
    for (size_t i = 0; i < n; i++) {
        order[i] = i;
    }
    for (size_t i = n; i-- > 1;) {
        size_t j = (size_t)random_below(random, (uint64_t)i + 1);
        uint64_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

/* ---- SHA-256 ---- */

static const uint32_t sha_constants[64] = {
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2};

static uint32_t rotate_right(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

static void sha_block(uint32_t state[8], const unsigned char *block) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    }
    for (int i = 16; i < 64; i++) {
        const uint32_t x = w[i - 15], y = w[i - 2];
        w[i] = w[i - 16] + (rotate_right(x, 7) ^ rotate_right(x, 18) ^ x >> 3) + w[i - 7] +
               (rotate_right(y, 17) ^ rotate_right(y, 19) ^ y >> 10);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        const uint32_t t1 = h + (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) +
                            ((e & f) ^ (~e & g)) + sha_constants[i] + w[i];
        const uint32_t t2 = (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) +
                            ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    const uint32_t s[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) {
        state[i] += s[i];
    }
}

#if defined(KERNELS_X86_64) && defined(KERNELS_SIMD)
/* The same by the processor's own instructions: four rounds a step, their words in w[step % 4]. */
__attribute__((target("sha,sse4.1"))) static void sha_block_x86(uint32_t state[8],
                                                                const unsigned char *block) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i w[4], abcd = _mm_loadu_si128((const __m128i *)state),
                  efgh = _mm_loadu_si128((const __m128i *)state + 1);
    const __m128i cdab = _mm_shuffle_epi32(abcd, 0xb1), hgfe = _mm_shuffle_epi32(efgh, 0x1b);
    const __m128i abef0 = _mm_alignr_epi8(cdab, hgfe, 8), cdgh0 = _mm_blend_epi16(hgfe, cdab, 0xf0);
    __m128i abef = abef0, cdgh = cdgh0;
    for (int i = 0; i < 4; i++) {
        w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)block + i), swap);
    }
    for (int i = 0; i < 16; i++) {
        const __m128i now = w[i % 4], last = w[(i + 3) % 4];
        const __m128i k = _mm_add_epi32(now, _mm_loadu_si128((const __m128i *)sha_constants + i));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0e));
        const __m128i older = _mm_alignr_epi8(last, w[(i + 2) % 4], 4);
        w[i % 4] = _mm_sha256msg2_epu32(
            _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) % 4]), older), last);
    }
    abef = _mm_shuffle_epi32(_mm_add_epi32(abef, abef0), 0x1b);
    cdgh = _mm_shuffle_epi32(_mm_add_epi32(cdgh, cdgh0), 0xb1);
    abcd = _mm_blend_epi16(abef, cdgh, 0xf0);
    efgh = _mm_alignr_epi8(cdgh, abef, 8);
    _mm_storeu_si128((__m128i *)state, abcd);
    _mm_storeu_si128((__m128i *)state + 1, efgh);
}

#endif

static void sha_blocks(uint32_t state[8], const unsigned char *bytes, size_t count) {
    static void (*block)(uint32_t state[8], const unsigned char *block); /* asking takes long */
    if (block == NULL) {
        block = sha_block;
#if defined(KERNELS_X86_64) && defined(KERNELS_SIMD)
        unsigned a, b = 0, c, d;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29) != 0) {
            block = sha_block_x86;
        }
#endif
    }
    for (size_t i = 0; i < count; i++) {
        block(state, bytes + 64 * i);
    }
}

void sha256_start(Sha256 *sha) {
    static const uint32_t start[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                      0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
    memset(sha, 0, sizeof *sha);
    memcpy(sha->state, start, sizeof start);
}

void sha256_add(Sha256 *sha, const void *data, size_t length) {
    const unsigned char *bytes = data;
    while (length > 0) {
        size_t fill = (size_t)(sha->length % 64), take = 64 - fill < length ? 64 - fill : length;
        if (fill == 0 && length >= 64) {
            take = length / 64 * 64;
            sha_blocks(sha->state, bytes, length / 64);
        } else {
            memcpy(sha->block + fill, bytes, take);
            sha_blocks(sha->state, sha->block, fill + take == 64 ? 1 : 0);
        }
        sha->length += take;
        bytes += take;
        length -= take;
    }
}

void sha256_end(Sha256 *sha, char hex[65]) {
    static const unsigned char padding[64] = {0x80};
    uint64_t bits = sha->length * 8;
    unsigned char tail[8];
    for (int i = 0; i < 8; i++) {
        tail[i] = (unsigned char)(bits >> (56 - 8 * i));
    }
    sha256_add(sha, padding, 1 + (size_t)((119 - sha->length % 64) % 64));
    sha256_add(sha, tail, 8);
    for (int i = 0; i < 8; i++) {
        snprintf(hex + 8 * i, 9, "%08x", (unsigned)sha->state[i]);
    }
}

/* ---- UTF-8 ---- */

size_t utf8_decode(const char *text, size_t length, uint32_t *code) {
    static const uint32_t lowest[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (length == 0) {
        return 0;
    }
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    size_t n = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || n > length) {
        return 0;
    }
    uint32_t value = s[0] & (0x7FU >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
        value = value << 6 | (s[i] & 0x3FU);
    }
    if (value < lowest[n] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
        return 0;
    }
    *code = value;
    return n;
}

size_t utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; code >>= 6) {
        out[i] = (char)(0x80 | (code & 0x3F));
    }
    out[0] = (char)((0xF00U >> n & 0xF0) | code);
    return n;
}

bool utf8_valid(const char *text, size_t length) {
    uint32_t code;
    for (size_t i = 0; i < length;) {
        size_t step = utf8_decode(text + i, length - i, &code);
        if (step == 0) {
            return false;
        }
        i += step;
    }
    return true;
}

/* ---- names that there are not ---- */

enum {
    NEAREST_LISTED = 3,
    NEAREST_LENGTH = 128
};

static size_t name_distance(const char *text, const char *name, bool within) {
    size_t rows[3][NEAREST_LENGTH], n = strlen(name), least = SIZE_MAX, i = 0;
    for (size_t j = 0; j <= n; j++) {
        rows[0][j] = within ? 0 : j;
    }
    for (; text[i] != '\0'; i++) {
        size_t *row = rows[(i + 1) % 3], *last = rows[i % 3], *before = rows[(i + 2) % 3];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t change = last[j] + (text[i] == name[j] ? 0 : 1);
            size_t other = (row[j] < last[j + 1] ? row[j] : last[j + 1]) + 1;
            bool swapped = i > 0 && j > 0 && text[i] == name[j - 1] && text[i - 1] == name[j];
            other = swapped && before[j - 1] + 1 < other ? before[j - 1] + 1 : other;
            row[j + 1] = change < other ? change : other;
        }
    }
    for (size_t j = within ? 0 : n; j <= n; j++) {
        least = rows[i % 3][j] < least ? rows[i % 3][j] : least;
    }
    return least;
}

Nearest nearest_start(Arena *arena, const char *text) {
    return (Nearest){.arena = arena, .text = text, .most = 1 + strlen(text) / 8};
}

void nearest_add(Nearest *nearest, const char *name) {
    size_t distance = strlen(name) < NEAREST_LENGTH
                          ? name_distance(nearest->text, name, nearest->within)
                          : SIZE_MAX;
    if (distance > nearest->most) {
        return;
    }
    nearest->count = distance < nearest->most ? 1 : nearest->count + 1;
    nearest->most = distance;
    if (nearest->count <= NEAREST_LISTED) {
        nearest->list = nearest->count == 1
                            ? name
                            : arena_format(nearest->arena, "%s, %s", nearest->list, name);
    }
}

const char *nearest_hint(const Nearest *nearest) {
    return nearest->list == NULL
               ? ""
               : arena_format(nearest->arena, ": did you mean %s?", nearest->list);
}

/* ---- files ---- */

void secure_standard_streams(void) {
    for (int file = STDIN_FILENO; file <= STDERR_FILENO; file++) {
        if (fcntl(file, F_GETFD) < 0 &&
            open("/dev/null", file == STDIN_FILENO ? O_WRONLY : O_RDONLY) != file) {
            exit(STATUS_RESOURCE);
        }
    }
}

/* What no file that is read here begins with, unless it is called .html, and what it then is. */
static void refuse_foreign(int file, const char *path) {
    static const struct {
        const char *begin, *is; /* begin in lower case */
    } kinds[] = {
        {"gguf", "a GGUF file, for other programs: take the safetensors files it was made from"},
        {"<!doctype html", "a web page: the download gave an error or log-in page, not the file"},
        {"<html", "a web page: the download gave an error or log-in page, not the file"},
        {"\xFF\xFE{", "UTF-16, as PowerShell writes it by itself: save it as UTF-8"},
        {"\xFF\xFE[", "UTF-16, as PowerShell writes it by itself: save it as UTF-8"},
        {"version https://git-lfs", "a Git LFS pointer; fetch the file itself: git lfs pull"},
    };
    const char *ending = strrchr(path, '.');
    if (ending != NULL && strcmp(ending, ".html") == 0) {
        return;
    }
    char head[64];
    ssize_t got = pread(file, head, sizeof head - 1, 0);
    head[got > 0 ? got : 0] = '\0';
    const char *text = head + strspn(head, " \t\r\n\xEF\xBB\xBF");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strncasecmp(text, kinds[i].begin, strlen(kinds[i].begin)) == 0) {
            close(file);
            fail(STATUS_INPUT, "%s: is %s", path, kinds[i].is);
        }
    }
}

/* False: there is no such file. */
static bool path_look(const char *path, struct stat *info) {
    if (stat(path, info) == 0) {
        return true;
    }
    if (errno != ENOENT && errno != ENOTDIR) {
        fail_errno(errno, path, "cannot look at this path");
    }
    return false;
}

static struct Notes {
    Arena *arena; /* NULL: nothing is noted */
    PathNode *root;
    FileNote *first, **end;
} notes;

static void release_notes(void *what) {
    (void)what;
    notes = (struct Notes){.arena = NULL};
}

void files_note(Arena *arena) {
    notes = (struct Notes){.arena = arena, .end = &notes.first};
    arena_defer(arena, release_notes, NULL);
}

const FileNote *files_noted(void) {
    return notes.first;
}

/* Speed: a data set has many images. The hash is FNV-1a. */
PathNode **path_place(PathNode **root, const char *path) {
    PathNode **at = root;
    uint64_t hash = 14695981039346656037U;
    for (const char *c = path; *c != '\0'; c++) {
        hash = (hash ^ (unsigned char)*c) * 1099511628211U;
    }
    for (; *at != NULL && strcmp((*at)->path, path) != 0; hash >>= 1) {
        at = &(*at)->branch[hash & 1];
    }
    return at;
}

void file_note(const char *path, bool written) {
    if (notes.arena == NULL) {
        return;
    }
    PathNode **at = path_place(&notes.root, path);
    FileNote *note = (FileNote *)*at;
    if (note == NULL) {
        note = *notes.end = arena_alloc(notes.arena, 1, sizeof *note);
        note->at.path = arena_copy(notes.arena, path, strlen(path));
        notes.end = &note->next;
        *at = &note->at;
    }
    note->written |= written;
    note->read |= !written;
}

/* Opens a regular file to read; its size. O_NONBLOCK: a FIFO must be refused, not waited for. */
static int open_regular(const char *path, size_t *size) {
    struct stat info;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
        fail_errno(errno, path, "cannot open");
    }
    int code = fstat(file, &info) != 0 ? errno : 0;
    bool regular = code == 0 && S_ISREG(info.st_mode);
    if (!regular || (uintmax_t)info.st_size > SIZE_MAX) {
        close(file);
    }
    if (code != 0) {
        fail_errno(code, path, "cannot open");
    }
    if (!regular) {
        fail(STATUS_INPUT, "%s: is %s, not a regular file", path,
             S_ISDIR(info.st_mode) ? "a directory" : "a device or pipe");
    }
    if ((uintmax_t)info.st_size > SIZE_MAX) {
        fail(STATUS_RESOURCE, "%s: too large for this machine's addresses", path);
    }
    refuse_foreign(file, path);
    file_note(path, false);
    *size = (size_t)info.st_size;
    return file;
}

static void release_stream(void *stream) {
    fclose(stream);
}

static FILE *open_stream(Arena *arena, const char *path, size_t *size) {
    int file = open_regular(path, size);
    FILE *stream = fdopen(file, "rb");
    if (stream == NULL) {
        int code = errno;
        close(file);
        fail_errno(code, path, "cannot open");
    }
    arena_defer(arena, release_stream, stream);
    return stream;
}

#ifdef REFSAE_NO_MMAP
FileMap file_map(Arena *arena, const char *path) {
    Arena *scratch = arena_new();
    size_t size;
    FILE *stream = open_stream(scratch, path, &size);
    unsigned char *data = arena_alloc(arena, size, 1);
    if (fread(data, 1, size, stream) != size) {
        if (ferror(stream)) {
            fail_errno(errno, path, "cannot read");
        }
        fail(STATUS_INPUT, "%s: cannot be read whole", path);
    }
    arena_free(scratch);
    return (FileMap){data, size};
}
#else
static void release_map(void *what) {
    const FileMap *map = what;
    munmap((void *)(uintptr_t)map->data, map->size);
}

FileMap file_map(Arena *arena, const char *path) {
    FileMap *map = arena_alloc(arena, 1, sizeof *map);
    int file = open_regular(path, &map->size);
    void *data = map->size == 0 ? NULL : mmap(NULL, map->size, PROT_READ, MAP_PRIVATE, file, 0);
    int code = errno;
    close(file);
    if (data == MAP_FAILED) {
        fail_errno(code, path, "cannot map");
    }
    map->data = data;
    prefer_large_pages(data, map->size);
    if (map->size == 0) {
        map->data = (const unsigned char *)"";
    } else {
        arena_defer(arena, release_map, map);
    }
    return *map;
}
#endif

FileMap file_map_unnoted(Arena *arena, const char *path) {
    const struct Notes kept = notes;
    notes.arena = NULL;
    FileMap map = file_map(arena, path);
    notes = kept;
    return map;
}

static void release_memory(void *what) {
    MemoryStream *memory = what;
    fclose(memory->stream);
    free(memory->text);
}

#ifdef __linux__
/* open_memstream of glibc and musl leaves out what there was no memory for, without an error. */
static ssize_t write_memory(void *what, const char *bytes, size_t size) {
    MemoryStream *memory = what;
    if (size >= memory->room - memory->length) {
        size_t room = memory->length + memory->length / 2 + size + 128;
        char *text = realloc(memory->text, room);
        if (text == NULL) {
            return 0;
        }
        memory->text = text;
        memory->room = room;
    }
    memcpy(memory->text + memory->length, bytes, size);
    memory->length += size;
    memory->text[memory->length] = '\0';
    return (ssize_t)size;
}

static FILE *memory_stream(MemoryStream *memory) {
    cookie_io_functions_t functions = {.write = write_memory};
    (void)write_memory(memory, "", 0);
    return memory->text == NULL ? NULL : fopencookie(memory, "w", functions);
}
#else
static FILE *memory_stream(MemoryStream *memory) {
    return open_memstream(&memory->text, &memory->length);
}
#endif

MemoryStream *memory_open(Arena *arena) {
    MemoryStream *memory = arena_alloc(arena, 1, sizeof *memory);
    memory->stream = memory_stream(memory);
    if (memory->stream == NULL) {
        free(memory->text);
        fail(STATUS_RESOURCE, "out of memory");
    }
    arena_defer(arena, release_memory, memory);
    return memory;
}

char *memory_text(MemoryStream *memory) {
    if (fflush(memory->stream) != 0 || ferror(memory->stream)) {
        fail(STATUS_RESOURCE, "out of memory");
    }
    return memory->text;
}

/* Through a buffer, not a map: the pages of a large file would count as this program's memory. */
uint64_t sha256_file(const char *path, char hex[65]) {
    Arena *arena = arena_new();
    size_t length, size = 32768, got;
    FILE *stream = open_stream(arena, path, &length);
    unsigned char *buffer = arena_alloc(arena, size, 1);
    Sha256 sha;
    sha256_start(&sha);
    while ((got = fread(buffer, 1, size, stream)) != 0) {
        sha256_add(&sha, buffer, got);
    }
    if (ferror(stream)) {
        fail_errno(errno, path, "cannot read");
    }
    sha256_end(&sha, hex);
    arena_free(arena);
    return length;
}

static OutFile *volatile unfinished; /* newest first; the handler of signals walks it */
static char interrupt_hint[256];

static void interrupted(int number) {
    for (const OutFile *out = unfinished; out != NULL; out = out->next) {
        if (out->temporary != NULL) {
            unlink(out->temporary);
        }
    }
    signal(number, SIG_DFL);
    ssize_t written = write(STDERR_FILENO, interrupt_hint, strlen(interrupt_hint));
    (void)written;
    raise(number); /* whoever waits sees what ended us */
}

void interrupts_catch(const char *hint) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    snprintf(interrupt_hint, sizeof interrupt_hint, "%srefsae: %s\n",
             isatty(STDERR_FILENO) ? "\n" : "", hint);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (signal(numbers[i], interrupted) == SIG_IGN) {
            signal(numbers[i], SIG_IGN);
        }
    }
}

/* Where a commit has not emptied these: the temporary file is unlinked, the stream closed. */
static void release_out(void *what) {
    OutFile *out = what;
    OutFile *volatile *at = &unfinished;
    while (*at != out) {
        at = &(*at)->next;
    }
    *at = out->next;
    if (out->temporary != NULL) { /* as long as it is locked */
        unlink(out->temporary);
    }
    if (out->stream != NULL) {
        fclose(out->stream);
    }
}

/* A lock of the kernel, which leaves no file, and goes with the process however that ends. File
 * systems without locks go without. */
static bool is_in_use(int file) {
#ifdef __wasi__
    (void)file;
    return false;
#else
    return flock(file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
#endif
}

/* Opens the temporary file, empty; -1 with errno. What a killed run left there is as nothing. */
static int open_temporary(OutFile *out) {
    struct stat opened, named;
    out->temporary = arena_format(out->arena, "%s.refsae.tmp", out->path);
    int file = open(out->temporary, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    bool busy = file >= 0 && is_in_use(file);
    if (file >= 0 && !busy && fstat(file, &opened) == 0) {
        bool found = stat(out->temporary, &named) == 0;
        busy = found ? opened.st_ino != named.st_ino : errno == ENOENT; /* gone from below it */
        if (found && !busy && ftruncate(file, 0) == 0) {
            return file;
        }
    }
    int code = errno;
    if (busy || file < 0) {
        out->temporary = NULL; /* is not ours to remove */
    }
    if (file >= 0) {
        close(file);
    }
    if (busy) {
        fail(STATUS_INPUT, "%s: another run is writing this file", out->path);
    }
    errno = code;
    return -1;
}

OutFile *out_open(const char *path) {
    struct stat info;
    int file = -1;
    if (path[0] == 0) {
        fail(STATUS_INPUT, "the name of the file to write is empty");
    }
    bool there = path_look(path, &info);
    if (there && S_ISDIR(info.st_mode)) {
        fail(STATUS_INPUT, "%s: is a directory, not a file to write", path);
    }
    Arena *arena = arena_new();
    OutFile *out = arena_alloc(arena, 1, sizeof *out);
    out->arena = arena;
    out->next = unfinished;
    unfinished = out;
    arena_defer(arena, release_out, out);
    if (there && !S_ISREG(info.st_mode)) { /* /dev/stdout, /dev/full: as it is */
        out->path = arena_copy(arena, path, strlen(path));
        file = open(path, O_WRONLY | O_CLOEXEC);
    } else {
        /* A symbolic link stays one: its target is what gets replaced. */
        const char *target = path_real(arena, path);
        if (target == NULL && errno != ENOENT) {
            fail_errno(errno, path, "cannot write");
        }
        out->path = arena_format(arena, "%s", target != NULL ? target : path);
        file_note(path, true);
        file = open_temporary(out);
    }
    if (file < 0) {
        fail_errno(errno, path, "cannot write");
    }
    out->stream = fdopen(file, "w");
    if (out->stream == NULL) {
        int code = errno;
        close(file);
        fail_errno(code, path, "cannot write");
    }
    return out;
}

/* After a rename the directory entry itself must reach the disk. Some file systems refuse to sync a
 * directory; the data is safe by then, so this failure is not one. */
static void sync_directory(OutFile *out) {
    int file = open(path_parent(out->arena, out->path), O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        fsync(file);
        close(file);
    }
}

void out_commit(OutFile *out) {
    bool replaces = out->temporary != NULL;
    errno = 0;
    bool done = fflush(out->stream) == 0 && ferror(out->stream) == 0 &&
                (!replaces || fsync(fileno(out->stream)) == 0 || errno == EINVAL) &&
                (!replaces || rename(out->temporary, out->path) == 0);
    if (done) { /* the name is free, and fclose gives the lock back */
        out->temporary = NULL;
        done = fclose(out->stream) == 0;
        out->stream = NULL;
    }
    if (!done) {
        fail(STATUS_RESOURCE, "%s: cannot write: %s", out->path,
             errno == 0 ? "the disk refused part of it" : strerror(errno));
    }
    if (replaces) {
        sync_directory(out);
    }
    arena_free(out->arena);
}

void files_spare(const char *path) {
    Arena *arena = arena_new();
    const char *target = path_real(arena, path);
    for (const FileNote *n = files_noted(); n != NULL && target != NULL; n = n->next) {
        const char *read = n->read ? path_real(arena, n->at.path) : NULL;
        if (read != NULL && strcmp(read, target) == 0) {
            fail(STATUS_INPUT, "%s: is read by this run, expected another file to write", path);
        }
    }
    arena_free(arena);
}

bool path_is_directory(const char *path) {
    struct stat info;
    return path_look(path, &info) && S_ISDIR(info.st_mode);
}

void path_need_directory(const char *path) {
    struct stat info;
    size_t size;
    if (!path_look(path, &info)) {
        fail(STATUS_INPUT, "%s: no such folder", path);
    }
    if (!S_ISDIR(info.st_mode)) {
        close(open_regular(path, &size));
        fail(STATUS_INPUT, "%s: is a file, not a folder", path);
    }
}

bool path_exists(const char *path) {
    struct stat info;
    return path_look(path, &info);
}

void path_make_directory(const char *path) {
    if (path[0] == 0) {
        fail(STATUS_INPUT, "the name of the directory to make is empty");
    }
    Arena *arena = arena_new();
    char *part = arena_copy(arena, path, strlen(path));
    for (size_t i = 1, length = strlen(path); i <= length; i++) {
        if (path[i] == '/' || path[i] == 0) {
            part[i] = 0;
            int code = mkdir(part, 0777) != 0 ? errno : 0;
            if (code != 0 && !path_is_directory(part)) {
                fail_errno(code, part, "cannot make this directory");
            }
            part[i] = path[i];
        }
    }
    arena_free(arena);
}

static void release_folder(void *what) {
    close(*(int *)what);
}

void out_folder(Arena *arena, const char *path) {
    path_make_directory(path);
    int *file = arena_alloc(arena, 1, sizeof *file);
    *file = open(path, O_RDONLY | O_CLOEXEC);
    if (*file < 0) {
        fail_errno(errno, path, "cannot open");
    }
    arena_defer(arena, release_folder, file);
    if (is_in_use(*file)) {
        fail(STATUS_INPUT, "%s: another run is writing into this folder", path);
    }
}

char *path_join(Arena *arena, const char *directory, const char *name) {
    size_t length = strlen(directory);
    if (name[0] == '/' || length == 0) {
        return arena_copy(arena, name, strlen(name));
    }
    return arena_format(arena, "%s%s%s", directory, directory[length - 1] == '/' ? "" : "/", name);
}

char *path_parent(Arena *arena, const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? arena_copy(arena, ".", 1)
                         : arena_copy(arena, path, (size_t)(slash - path) + (slash == path));
}

char *path_real(Arena *arena, const char *path) {
    char *real = realpath(path, NULL);
    if (real != NULL) {
        arena_defer(arena, free, real);
    }
    return real;
}

static void release_directory(void *stream) {
    closedir(stream);
}

char **path_list(Arena *arena, const char *directory, size_t *count) {
    Arena *scratch = arena_new();
    char **names = NULL;
    size_t capacity = 0;
    DIR *stream = opendir(directory);
    if (stream != NULL) {
        arena_defer(scratch, release_directory, stream);
    }
    *count = 0;
    for (const struct dirent *entry;
         stream != NULL && (errno = 0, entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            names = arena_grow(arena, names, &capacity, *count + 1, sizeof *names);
            names[(*count)++] = arena_copy(arena, entry->d_name, strlen(entry->d_name));
        }
    }
    if (errno != 0) {
        fail_errno(errno, directory, "cannot read this directory");
    }
    if (*count > 0) {
        qsort(names, *count, sizeof *names, compare_names);
    }
    arena_free(scratch);
    return names;
}

/* ---- progress ---- */

double progress_now(void) {
    struct timespec t = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* "12 s", "3 min 20 s", "5 h 02 min" */
static void format_seconds(char text[48], double seconds) {
    unsigned long long s = seconds > 1e9 ? 1000000000 : (unsigned long long)(seconds + 0.5);
    if (s < 60) {
        snprintf(text, 48, "%llu s", s);
    } else if (s < 3600) {
        snprintf(text, 48, "%llu min %02llu s", s / 60, s % 60);
    } else {
        snprintf(text, 48, "%llu h %02llu min", s / 3600, s / 60 % 60);
    }
}

static void (*progress_watcher)(void *user, const Progress *progress);
static void *progress_user;

void progress_watch(void (*watch)(void *user, const Progress *progress), void *user) {
    progress_watcher = watch;
    progress_user = user;
}

static void progress_tell(const Progress *progress) {
    if (progress_watcher != NULL) {
        progress_watcher(progress_user, progress);
    }
}

Progress progress_start(const char *what, const char *unit, uint64_t first, uint64_t total,
                        bool quiet) {
    Progress progress = {.what = what, .unit = unit, .total = total, .done = first, .first = first};
    progress.started = progress.printed = progress_now();
    progress.terminal = isatty(STDERR_FILENO) != 0;
    progress.quiet = quiet;
    progress_tell(&progress);
    return progress;
}

/* How much of a unit's name stands after a count. */
static int unit_length(const Progress *progress, uint64_t count) {
    return (int)strlen(progress->unit) - (count == 1);
}

static void progress_print(Progress *progress, double now, const char *note) {
    char line[320], share[80], time[48], left[64] = "";
    double rate = (double)(progress->done - progress->first) / fmax(now - progress->started, 1e-9);
    uint64_t done = progress->done, total = progress->total;
    snprintf(share, sizeof share, " %.*s", unit_length(progress, done), progress->unit);
    if (total != 0) {
        snprintf(share, sizeof share, "/%llu %.*s, %.0f %%", (unsigned long long)total,
                 unit_length(progress, total), progress->unit, 100 * (double)done / (double)total);
    }
    if (total > done && rate > 0) {
        format_seconds(time, (double)(total - done) / rate);
        snprintf(left, sizeof left, ", %s left", time);
    }
    snprintf(line, sizeof line, "%.40s: %llu%s, %.1f/%s%s%s%.80s", progress->what,
             (unsigned long long)done, share, rate < 1 ? 60 * rate : rate, rate < 1 ? "min" : "s",
             left, note != NULL ? ", " : "", note != NULL ? note : "");
    fprintf(stderr, progress->terminal ? "\r\033[K%.79s" : "%s\n", line);
    fflush(stderr);
    progress->printed = now;
}

void progress_set(Progress *progress, uint64_t done, const char *note) {
    progress->done = done;
    progress_tell(progress);
    if (progress->quiet) {
        return;
    }
    double now = progress_now();
    if (now - progress->printed >= (progress->terminal ? 0.1 : 30)) {
        progress_print(progress, now, note);
    }
}

void progress_end(Progress *progress) {
    char took[48];
    double seconds = progress_now() - progress->started;
    uint64_t done = progress->done - progress->first;
    if (progress->quiet || done == 0) {
        return;
    }
    format_seconds(took, seconds);
    fprintf(stderr, "%s%.40s: %llu %.*s in %s\n", progress->terminal ? "\r\033[K" : "",
            progress->what, (unsigned long long)done, unit_length(progress, done), progress->unit,
            took);
    progress->quiet = true;
}

static void print_line(FILE *stream, const char *format, va_list arguments) {
    char line[8192];
    sentence(line, sizeof line, format, arguments);
    fprintf(stream, "%s\n", line);
}

void console_line(const Console *console, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (!console->quiet) {
        print_line(stderr, format, arguments);
    }
    va_end(arguments);
}

void console_result(const Console *console, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (!console->quiet && !console->json) {
        print_line(stdout, format, arguments);
    }
    va_end(arguments);
}

/* base.h: errors, arenas, random numbers, SHA-256, UTF-8, files. Floor 1: includes no other. */
#ifndef REFSAE_BASE_H
#define REFSAE_BASE_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define REFSAE_VERSION "0.1.0"

/* ---- errors ---- */

/* The value is the exit code of the program. */
typedef enum Status {
    STATUS_OK = 0,
    STATUS_CHECK = 1,   /* a check failed: tensors differ, a digest mismatch */
    STATUS_INPUT = 2,   /* bad input or usage */
    STATUS_RESOURCE = 3 /* out of memory or disk */
} Status;

/* One sentence for the user, without "refsae: " before it and without a full stop after it. */
typedef struct Error {
    Status status;
    char text[1024];
} Error;

#if defined(__GNUC__)
#define REFSAE_PRINTF(string, first) __attribute__((format(printf, string, first)))
#define REFSAE_NORETURN __attribute__((noreturn))
#else
#define REFSAE_PRINTF(string, first)
#define REFSAE_NORETURN
#endif

/* Leaves for the innermost ATTEMPT (without one: says it on stderr and exits), so that functions
 * return what they compute. Before the jump all arenas made since that ATTEMPT began are freed, and
 * with them what they own: memory, maps, streams, temporary files. Never called inside a parallel
 * loop. Bytes that are not printable ASCII or valid UTF-8 are shown as \xNN, so that a hostile name
 * in a file cannot drive a terminal. */
REFSAE_NORETURN void fail(Status status, const char *format, ...) REFSAE_PRINTF(2, 3);
/* Once more, if it was for memory or disk, which say nothing about the input; else returns. */
void fail_for_resources(const Error *error);
/* By errno: a full disk or memory is STATUS_RESOURCE, a wrong path or permission STATUS_INPUT. */
REFSAE_NORETURN void fail_errno(int code, const char *path, const char *what);

/* Runs the statements; *error is then why they were left (status STATUS_OK: they were not). After a
 * failure nothing that they assigned may be read. They may not return, break or goto outwards. */
#define ATTEMPT(error, ...)                                                                        \
    do {                                                                                           \
        Attempt attempt_;                                                                          \
        attempt_begin(&attempt_);                                                                  \
        if (setjmp(attempt_.jump) == 0) {                                                          \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
        *(error) = attempt_end(&attempt_);                                                         \
    } while (0)

typedef struct Attempt {
    jmp_buf jump;
    struct Attempt *outer;
    uint64_t first_arena; /* serial number of the first arena made inside */
    Error error;
} Attempt;

void attempt_begin(Attempt *attempt);
Error attempt_end(Attempt *attempt);

/* ---- sizes: every size read from a file goes through these before it is used ---- */

bool size_mul(size_t *product, size_t a, size_t b); /* false on overflow */
bool size_add(size_t *sum, size_t a, size_t b);     /* false on overflow */
size_t size_larger(size_t a, size_t b);
size_t size_product(size_t a, size_t b); /* STATUS_RESOURCE on overflow */
/* For qsort: rising. Names and natural: texts (char *), or what begins with one; in natural numbers
 * count by their value: layer.2 before layer.10. */
int compare_doubles(const void *a, const void *b);
int compare_names(const void *a, const void *b);
int compare_natural(const void *a, const void *b);

/* ---- the order of bytes ----
 * Every file is little-endian; memory is as the machine has it, from the moment a reader hands it
 * on to the moment a writer takes it. Both ways are the same: the bytes of each element turned
 * around where the machine is big-endian, else left alone. */

/* `count` elements of `size` bytes; out and in may not overlap. */
static inline void little_copy(void *out, const void *in, size_t size, size_t count) {
    const uint16_t one = 1;
    if (*(const unsigned char *)&one == 1) {
        memcpy(out, in, size * count);
        return;
    }
    for (size_t i = 0; i < size * count; i++) {
        ((unsigned char *)out)[i - i % size + size - 1 - i % size] = ((const unsigned char *)in)[i];
    }
}

struct Arena;
/* The elements where they lie, if they need not be turned around; else copies in the arena. */
const void *little_elements(struct Arena *arena, const void *data, size_t size, size_t count);

/* ---- arenas: the one owner of memory and of what must be closed ----
 * Memory is zeroed and aligned to 64 bytes; none to be had is STATUS_RESOURCE, never NULL. What is
 * deferred to an arena is released when it is reset or freed, the latest first. */
typedef struct Arena Arena;

Arena *arena_new(void);
Arena *arena_within(Arena *parent); /* freed with its parent, unless before */
void arena_reset(Arena *arena);     /* gives back everything but one block */
void arena_free(Arena *arena);      /* NULL: nothing */
void *arena_alloc(Arena *arena, size_t count, size_t size);
/* Room for `needed` elements of `size` bytes; *capacity (0 at first) grows by doubling. Returns
 * `old`, or a larger copy of it (`old` stays until the arena goes). */
void *arena_grow(Arena *arena, void *old, size_t *capacity, size_t needed, size_t size);
float *arena_floats(Arena *arena, size_t rows, size_t cols);
char *arena_copy(Arena *arena, const char *text, size_t length); /* with a 0 byte after it */
char *arena_format(Arena *arena, const char *format, ...) REFSAE_PRINTF(2, 3);
/* "3, 4"; `zero` stands for a 0. */
char *arena_sizes(Arena *arena, const size_t *sizes, int count, const char *zero);
/* The arena owns `what` from here on; where that fails, it is released at once. */
void arena_defer(Arena *arena, void (*release)(void *what), void *what);

/* The memory of a run is one block. layout() only takes pointers: it is called on an arena that
 * counts and gives NULL, then on one whose block has room for that. */
typedef void ArenaLayout(Arena *arena, void *user);
size_t arena_measure(ArenaLayout *layout, void *user);
/* Halves *count, on which the layout depends, down to 1 or until it takes at most so much. */
size_t arena_fit(ArenaLayout *layout, void *user, size_t *count, size_t most);
Arena *arena_plan(ArenaLayout *layout, void *user);

/* ---- random numbers: Philox4x32-10 (Salmon et al. 2011), a counter-based generator ----
 * Key = seed (low word first). Counter = {index low, index high, stream low, stream high}. Word i
 * of a stream is word i % 4 of block i / 4. State is one number, so a checkpoint stores it. */
typedef enum RandomStream { /* a stream of its own for each purpose; values are part of the spec */
    RANDOM_ADAPTER_INIT = 1,
    RANDOM_SHUFFLE = 2, /* + epoch << 32 */
    RANDOM_SAMPLE = 3,
    RANDOM_CONTROL = 4,
    RANDOM_SAGE_PROMPTS = 5,
    RANDOM_SAGE_OTHERS = 6,
    RANDOM_SAGE_DECODER = 7,
    RANDOM_GAUSSIAN = 8, /* + example << 32 */
    RANDOM_SAGE_PERMUTE = 9,
    RANDOM_SAGE_RESAMPLE = 10,
    RANDOM_TEST = 100
} RandomStream;

typedef struct Random {
    uint64_t seed, stream, position;
} Random;

Random random_start(uint64_t seed, uint64_t stream);
uint32_t random_word(Random *random);
float random_uniform(Random *random); /* [0, 1): (word >> 8) * 2^-24, exact */
/* Below bound: two words, low first; rejection, no bias. */
uint64_t random_below(Random *random, uint64_t bound);
void random_permutation(Random *random, uint64_t *order, size_t n); /* Fisher-Yates from the end */

/* ---- SHA-256 (FIPS 180-4) ---- */
typedef struct Sha256 {
    uint32_t state[8];
    uint64_t length;
    unsigned char block[64];
} Sha256;

void sha256_start(Sha256 *sha);
void sha256_add(Sha256 *sha, const void *data, size_t length);
void sha256_end(Sha256 *sha, char hex[65]);
uint64_t sha256_file(const char *path, char hex[65]); /* how many bytes it has */

/* ---- UTF-8 ---- */
/* Bytes of the well-formed sequence at `text` (1 to 4) and its code point; 0 if it is none
 * (overlong, surrogate, above U+10FFFF, truncated) or length is 0. */
size_t utf8_decode(const char *text, size_t length, uint32_t *code);
size_t utf8_encode(uint32_t code, char out[4]);
bool utf8_valid(const char *text, size_t length);

/* ---- names that there are not ---- */
/* Of the names added (below 128 bytes each) the nearest to `text`: the fewest letters to insert,
 * delete, change or swap until text is the name, or with `within` stands somewhere in it. */
typedef struct Nearest {
    Arena *arena;
    const char *text;
    bool within;
    size_t most; /* farther ones are not listed */
    size_t count;
    const char *list; /* "a, b": up to three of them; NULL while there are none */
} Nearest;

Nearest nearest_start(Arena *arena, const char *text); /* as near as a slip of the hand */
void nearest_add(Nearest *nearest, const char *name);
const char *nearest_hint(const Nearest *nearest); /* ": did you mean --a?", or nothing */

/* ---- files ---- */
/* A whole file, read-only: mapped, or with -DREFSAE_NO_MMAP read into memory; it goes with the
 * arena. Refuses what is not a regular file, and what a failed download or another program leaves
 * in place of one (a web page, Git LFS's pointer, GGUF). Data of an empty file is not NULL. */
typedef struct FileMap {
    const unsigned char *data;
    size_t size;
} FileMap;

FileMap file_map(Arena *arena, const char *path);

/* What is looked up by a path begins with this: a tree by the bits of a hash. */
typedef struct PathNode {
    const char *path;
    struct PathNode *branch[2];
} PathNode;

PathNode **path_place(PathNode **root, const char *path); /* where it stands, or would */

/* From here until the arena goes every regular file is noted, once, that is opened to be read or
 * (out_open) written, so that what a run depends on is listed by nobody and forgotten by nobody. */
typedef struct FileNote {
    PathNode at; /* as it was opened */
    bool written, read;
    struct FileNote *next; /* in the order of opening */
} FileNote;

void files_note(Arena *arena);
const FileNote *files_noted(void); /* the first; NULL: none */
void file_note(const char *path, bool written);
/* file_map of what lies between processes, which is neither input nor output of a run. */
FileMap file_map_unnoted(Arena *arena, const char *path);
/* Before a file named by itself, not by its folder, is written: refuses one that was read. */
void files_spare(const char *path);

/* Text gathered by stdio; it goes with the arena. */
typedef struct MemoryStream {
    FILE *stream;
    char *text;
    size_t length, room;
} MemoryStream;

MemoryStream *memory_open(Arena *arena);
char *memory_text(MemoryStream *memory); /* what was written so far, `length` bytes and a 0 */

/* A file that appears whole or not at all: written beside its name, synced, renamed. One that is
 * not committed when a failure passes leaves nothing, and what a killed run left goes with the
 * next; one that another run is writing is STATUS_INPUT. */
typedef struct OutFile {
    FILE *stream; /* write to it with stdio; errors are collected by out_commit */
    char *path, *temporary;
    Arena *arena;                  /* its own */
    struct OutFile *volatile next; /* of those that are not committed */
} OutFile;

OutFile *out_open(const char *path);
void out_commit(OutFile *out); /* STATUS_RESOURCE when the disk refused something */

/* First of all in a program: a standard stream that is closed would be the next file opened, and
 * what is said would be written into it. Reading or writing one still fails. */
void secure_standard_streams(void);

/* Only "no such file" is false: that it cannot be told is an error. */
bool path_is_directory(const char *path);
void path_need_directory(const char *path); /* to read; a file's sentence says what it is */
bool path_exists(const char *path);
void path_make_directory(const char *path); /* with its parents; fine if it is there */
/* Makes the folder that a command writes its results into and keeps it from other runs until the
 * arena goes, so that no two mix their files. */
void out_folder(Arena *arena, const char *path);
/* "directory/name" in the arena, or name itself if it is absolute. */
char *path_join(Arena *arena, const char *directory, const char *name);
char *path_parent(Arena *arena, const char *path); /* the folder that a file is in */
char *path_real(Arena *arena, const char *path);   /* without links; NULL, errno: cannot be told */
/* Names in a directory in strcmp order, without . and .. */
char **path_list(Arena *arena, const char *directory, size_t *count);

/* From here on SIGINT, SIGTERM and SIGHUP leave nothing half-written and say the hint on stderr
 * before they end the program; what was ignored stays ignored. */
void interrupts_catch(const char *hint);

/* ---- what the program says while it works ---- */
typedef struct Console { /* what a command may say beside its files */
    bool quiet;
    const char *command; /* the exact command line, for reports */
    bool json;           /* results on standard output are one JSON value */
} Console;

/* What a noun has after this count. */
static inline const char *plural(uint64_t count) {
    return count == 1 ? "" : "s";
}

/* A line on stderr, unless quiet. */
void console_line(const Console *console, const char *format, ...) REFSAE_PRINTF(2, 3);

/* A line of what was found, on stdout, unless quiet or replaced by JSON. */
void console_result(const Console *console, const char *format, ...) REFSAE_PRINTF(2, 3);

/* What stands in a file, as fail() shows it. */
void print_shown(FILE *out, const char *text);

/* ---- progress on stderr ----
 * On a terminal one line that is rewritten, with rate and time left; elsewhere a plain line at most
 * every 30 seconds. progress_end leaves a last line with the whole time, if anything was done. */
typedef struct Progress {
    const char *what, *unit;
    uint64_t total, done, first; /* total 0: unknown */
    double started, printed;     /* seconds */
    bool terminal, quiet;
} Progress;

/* first: what a resumed run had done before; it does not count for the rate. */
Progress progress_start(const char *what, const char *unit, uint64_t first, uint64_t total,
                        bool quiet);
/* note: NULL or what else to say, such as "loss 2.31". */
void progress_set(Progress *progress, uint64_t done, const char *note);
void progress_end(Progress *progress);
/* Each start of a progress and each further unit, quiet or not, is told to watch until the next
 * call; NULL: to nobody. For `bench`. */
void progress_watch(void (*watch)(void *user, const Progress *progress), void *user);
double progress_now(void); /* seconds of a clock that only goes forward */

#endif

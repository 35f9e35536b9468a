/* shard.c: see shard.h. */
#include "shard.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* In this byte order. Then follow I and N, blocks and values, and the SHA-256 of all as text. */
static const uint64_t journal_mark = 0x72656673616510 | sizeof(size_t);

enum {
    DIGEST_SIZE = 64
};

typedef struct Journal {
    const char *path;
    const unsigned char *next;
    size_t left;
} Journal;

static const unsigned char *journal_take(Journal *j, size_t size) {
    if (size > j->left) {
        fail(STATUS_INPUT, "%s: ends early: not what this run would have left", j->path);
    }
    j->next += size;
    j->left -= size;
    return j->next - size;
}

static const void *journal_block(Journal *j, size_t *size) {
    uint64_t stored;
    memcpy(&stored, journal_take(j, sizeof stored), sizeof stored);
    *size = stored < SIZE_MAX ? (size_t)stored : SIZE_MAX;
    return journal_take(j, *size);
}

static void journal_put(Shard *s, const void *data, size_t size) {
    sha256_add(&s->sha, data, size);
    fwrite(data, 1, size, s->own->stream);
}

static void journal_write(Shard *s, const void *data, size_t size) {
    uint64_t stored = size;
    journal_put(s, &stored, sizeof stored);
    journal_put(s, data, size);
}

static char *shard_folder(Arena *arena, const Shard *s, size_t k) {
    return path_join(arena, s->out, arena_format(arena, "shard-%zu-of-%zu", k, s->count));
}

static Journal journal_open(const Shard *s, Arena *arena, size_t k, const char *name) {
    Journal j = {.path = path_join(arena, shard_folder(arena, s, k), name)};
    double until = progress_now() + s->wait;
    struct timespec pause = {0, 1000000};
    for (; !path_exists(j.path); pause.tv_nsec *= pause.tv_nsec < 250000000 ? 2 : 1) {
        if (progress_now() >= until) {
            const char *within = s->wait > 0 ? arena_format(arena, " within %g s", s->wait) : "";
            fail(STATUS_INPUT,
                 "%s: shard %zu of %zu left no such file%s: if it runs no more, start it again",
                 j.path, k, s->count, within);
        }
        nanosleep(&pause, NULL);
    }
    FileMap map = file_map_unnoted(arena, j.path);
    j.next = map.data;
    j.left = map.size;
    if (memcmp(journal_take(&j, sizeof journal_mark), &journal_mark, sizeof journal_mark) != 0) {
        fail(STATUS_INPUT, "%s: not a journal of this program on such a machine", j.path);
    }
    const uint64_t self[2] = {k, s->count};
    if (memcmp(journal_take(&j, sizeof self), self, sizeof self) != 0) {
        fail(STATUS_INPUT, "%s: is not of shard %zu of %zu", j.path, k, s->count);
    }
    Sha256 sha;
    char hex[DIGEST_SIZE + 1];
    (void)journal_take(&j, DIGEST_SIZE);
    j.next -= DIGEST_SIZE;
    sha256_start(&sha);
    sha256_add(&sha, map.data, map.size - DIGEST_SIZE);
    sha256_end(&sha, hex);
    if (memcmp(map.data + map.size - DIGEST_SIZE, hex, DIGEST_SIZE) != 0) {
        fail(STATUS_INPUT, "%s: is damaged: its SHA-256 is not the one at its end", j.path);
    }
    return j;
}

Shard *shard_open(Arena *arena, const char *out, size_t index, size_t count) {
    Shard *s = arena_alloc(arena, 1, sizeof *s);
    *s = (Shard){.arena = arena, .out = out, .index = index, .count = count};
    if (index > 0) {
        s->folder = shard_folder(arena, s, index);
        path_make_directory(s->folder);
        return s;
    }
    char **names = path_list(arena, out, &count);
    for (size_t i = 0; i < count; i++) {
        size_t k, n;
        int end = 0;
        if (sscanf(names[i], "shard-%5zu-of-%5zu%n", &k, &n, &end) == 2 && names[i][end] == '\0' &&
            n > 0) {
            if (s->count != 0 && n != s->count) {
                fail(STATUS_INPUT, "%s: holds shards of %zu and of %zu: remove those of one", out,
                     s->count, n);
            }
            s->count = n;
        }
    }
    if (s->count == 0) {
        fail(STATUS_INPUT, "%s: holds no shard-1-of-N, as --shard 1/N --out %s leaves it", out,
             out);
    }
    return s;
}

char **shard_command(Arena *arena, const Shard *s, int *count) {
    size_t size;
    Journal j = journal_open(s, arena, 1, "journal");
    (void)journal_block(&j, &size);
    char *words = (char *)journal_block(&j, &size), *all = arena_copy(arena, words, size);
    char **argv = arena_alloc(arena, size + 2, sizeof *argv);
    *count = 0;
    for (char *word = all; word < all + size; word += strlen(word) + 1) {
        argv[(*count)++] = word;
    }
    return argv;
}

bool shard_is_part(const Shard *s) {
    return s != NULL && s->index > 0;
}

bool shard_is_merge(const Shard *s) {
    return s != NULL && s->index == 0;
}

void shard_write(Shard *s, const char *name) {
    const uint64_t self[2] = {s->index, s->count};
    s->own = out_open(path_join(s->arena, s->folder, name));
    sha256_start(&s->sha);
    journal_put(s, &journal_mark, sizeof journal_mark);
    journal_put(s, self, sizeof self);
    journal_write(s, s->settings, strlen(s->settings));
    journal_write(s, s->command, s->command_size);
}

void shard_read(Shard *s, const char *name) {
    s->reading = arena_within(s->arena);
    Journal *journals = arena_alloc(s->reading, s->count, sizeof *journals);
    for (size_t k = 0; k < s->count; k++) {
        size_t size;
        int theirs, ours;
        journals[k] = journal_open(s, s->reading, k + 1, name);
        const char *settings = journal_block(&journals[k], &size), *now = s->settings;
        settings = arena_copy(s->reading, settings, size);
        if (lines_differ(&settings, &now, &theirs, &ours)) {
            fail(STATUS_INPUT, "%s: was made with '%.*s', this run has '%.*s'", journals[k].path,
                 theirs, settings, ours, now);
        }
        (void)journal_block(&journals[k], &size);
    }
    s->journals = journals;
}

void shard_start(Shard *s) {
    if (s != NULL) {
        s->whole = true;
        shard_is_part(s) ? shard_write(s, "journal") : shard_read(s, "journal");
    }
}

/* Behind the values of a whole run stand the names of its inputs. */
static void shard_end_writing(Shard *s) {
    char hex[DIGEST_SIZE + 1];
    for (const FileNote *n = files_noted(); n != NULL && s->whole; n = n->next) {
        if (!n->written) {
            journal_write(s, n->at.path, strlen(n->at.path));
        }
    }
    sha256_end(&s->sha, hex);
    fwrite(hex, 1, DIGEST_SIZE, s->own->stream);
    out_commit(s->own);
}

static void shard_end_reading(Shard *s) {
    for (Journal *j = s->journals; j < s->journals + s->count; j++) {
        while (s->whole && j->left > 0) {
            size_t size;
            const char *path = journal_block(j, &size);
            file_note(arena_copy(s->arena, path, size), false);
        }
        if (j->left > 0) {
            fail(STATUS_INPUT, "%s: goes on where this run ends", j->path);
        }
    }
    s->journals = NULL;
    arena_free(s->reading);
}

void shard_end(Shard *s) {
    if (s != NULL) {
        s->journals != NULL ? shard_end_reading(s) : shard_end_writing(s);
    }
}

/* Shard k has the units n (k - 1) / N .. n k / N. */
static size_t shard_of(const Shard *s, size_t i, size_t n) {
    return ((i + 1) * s->count + n - 1) / n;
}

ShardTurn shard_turn(const Shard *s, size_t i, size_t n) {
    return s == NULL                       ? SHARD_COMPUTE
           : s->journals != NULL           ? SHARD_READ
           : shard_of(s, i, n) == s->index ? SHARD_COMPUTE
                                           : SHARD_SKIP;
}

void shard_value(Shard *s, size_t i, size_t n, void *data, size_t size) {
    ShardTurn turn = shard_turn(s, i, n);
    if (turn == SHARD_READ) {
        memcpy(data, journal_take(&s->journals[shard_of(s, i, n) - 1], size), size);
    } else if (turn == SHARD_COMPUTE && s != NULL) {
        journal_put(s, data, size);
    }
}

const void *shard_bytes(Shard *s, size_t i, size_t n, const void *data, size_t *size) {
    ShardTurn turn = shard_turn(s, i, n);
    if (turn == SHARD_READ) {
        return journal_block(&s->journals[shard_of(s, i, n) - 1], size);
    }
    if (turn == SHARD_COMPUTE && s != NULL) {
        journal_write(s, data, *size);
    }
    return data;
}

void shard_error(Shard *s, size_t i, size_t n, Error *error) {
    Error told; /* without what lies behind the text */
    memset(&told, 0, sizeof told);
    told.status = error->status;
    if (told.status != STATUS_OK) {
        snprintf(told.text, sizeof told.text, "%s", error->text);
    }
    shard_value(s, i, n, &told, sizeof told);
    told.text[sizeof told.text - 1] = '\0';
    *error = told;
}

void shard_range(const Shard *s, size_t n, size_t *begin, size_t *end) {
    *begin = shard_is_part(s) ? n * (s->index - 1) / s->count : 0;
    *end = shard_is_part(s) ? n * s->index / s->count : s == NULL ? n : 0;
}

void shard_rows(Shard *s, void *rows, size_t n, size_t size) {
    for (size_t i = 0; i < n; i++) {
        shard_value(s, i, n, (char *)rows + i * size, size);
    }
}

void shard_copy(const Shard *s, const char *name, bool same) {
    Arena *arena = arena_new();
    const char *first = path_join(arena, shard_folder(arena, s, 1), name);
    FileMap map = file_map_unnoted(arena, first);
    for (size_t k = 2; k <= s->count && same; k++) {
        const char *path = path_join(arena, shard_folder(arena, s, k), name);
        FileMap other = file_map_unnoted(arena, path);
        if (other.size != map.size || memcmp(other.data, map.data, map.size) != 0) {
            fail(STATUS_INPUT, "%s: is not the same as %s", path, first);
        }
    }
    OutFile *out = out_open(path_join(arena, s->out, name));
    fwrite(map.data, 1, map.size, out->stream);
    out_commit(out);
    arena_free(arena);
}

/* Links to folders are not followed: they may lead in circles. What is nowhere alone is nothing. */
static void digest_below(Sha256 *sha, const char *path) {
    Arena *arena = arena_new();
    struct stat info;
    char tail[4096];
    if (path_exists(path) && lstat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        size_t count;
        char **names = path_list(arena, path, &count);
        for (size_t i = 0; i < count; i++) {
            sha256_add(sha, names[i], strlen(names[i]) + 1);
            digest_below(sha, path_join(arena, path, names[i]));
        }
    } else if (stat(path, &info) == 0 && S_ISREG(info.st_mode)) {
        FILE *file = fopen(path, "rb");
        off_t from = info.st_size > (off_t)sizeof tail ? info.st_size - (off_t)sizeof tail : 0;
        uint64_t size = (uint64_t)info.st_size;
        const bool found = file != NULL && fseeko(file, from, SEEK_SET) == 0;
        const size_t got = found ? fread(tail, 1, sizeof tail, file) : 0;
        const int code = found && !ferror(file) ? 0 : errno;
        if (file != NULL) {
            fclose(file);
        }
        if (code != 0) {
            fail_errno(code, path, "cannot read");
        }
        sha256_add(sha, &size, sizeof size);
        sha256_add(sha, tail, got);
    }
    arena_free(arena);
}

void path_digest(const char *path, char hex[65]) {
    if (!path_is_directory(path)) {
        sha256_file(path, hex);
        return;
    }
    Sha256 sha;
    Arena *arena = arena_new();
    sha256_start(&sha);
    digest_below(&sha, path_join(arena, path, "")); /* "DIR/": even where DIR is a link */
    sha256_end(&sha, hex);
    arena_free(arena);
}

bool lines_differ(const char **a, const char **b, int *a_length, int *b_length) {
    while (**a != '\0' || **b != '\0') {
        size_t n = strcspn(*a, "\n"), m = strcspn(*b, "\n");
        if (n != m || memcmp(*a, *b, n) != 0) {
            *a_length = (int)n;
            *b_length = (int)m;
            return true;
        }
        *a += n + ((*a)[n] == '\n');
        *b += m + ((*b)[m] == '\n');
    }
    return false;
}

/* What tests of tensor files share: opening one that is good, and seeing one refused in
 * words. */
#ifndef REFSAE_TESTS_TENSORS_H
#define REFSAE_TESTS_TENSORS_H

#include "checkpoint.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A new file each time: file systems that truncate a file wait for the disk. */
static void write_file(const char *path, const void *data, size_t size) {
    unlink(path);
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f);
    fwrite(data, 1, size, f);
    fclose(f);
}

static void open_good(TensorStore *store, const char *path) {
    tensors_open(store, arena_new(), path);
}

static Error try_open(TensorStore *store, const char *path) {
    Error error;
    ATTEMPT(&error, open_good(store, path));
    return error;
}

static void assert_refused(const char *path, const char *says) {
    TensorStore store;
    Error error = try_open(&store, path);
    cr_assert_eq(error.status, STATUS_INPUT, "not refused: %s", says);
    cr_assert_eq(strncmp(error.text, path, strlen(path)), 0, "names the file: %s", error.text);
    cr_assert_not_null(strstr(error.text, says), "'%s' is not in '%s'", says, error.text);
}

/* A copy of the file, to be freed. */
static unsigned char *read_all(const char *path, size_t *size) {
    Arena *arena = arena_new();
    FileMap map = file_map(arena, path);
    unsigned char *copy = malloc(map.size + 1);
    memcpy(copy, map.data, map.size);
    *size = map.size;
    arena_free(arena);
    return copy;
}

#endif

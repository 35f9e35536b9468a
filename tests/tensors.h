/* What tests of tensor files share: opening one that is good, and seeing one refused in words. */
#ifndef REFSAE_TESTS_TENSORS_H
#define REFSAE_TESTS_TENSORS_H

#include "tensor.h"

#include <criterion/criterion.h>
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
    Error error = {0};
    tensors_open(store, arena, path);
}

static void assert_refused(const char *path, const char *says) {
    TensorStore store;
    Error error = {0};
    ATTEMPT(&error, tensors_open(&store, arena, path));
    cr_assert_eq(error.status, STATUS_INPUT, "not refused: %s", says);
    cr_assert_eq(strncmp(error.text, path, strlen(path)), 0, "names the file: %s", error.text);
    cr_assert_not_null(strstr(error.text, says), "'%s' is not in '%s'", says, error.text);
}

#endif

/* What tests share that write files or read texts: a folder of the test's own, a file as a text,
 * how often a text has a part. */
#ifndef REFSAE_TESTS_SCRATCH_H
#define REFSAE_TESTS_SCRATCH_H

#include "base.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static char folder[64]; /* from folder_new to folder_remove */

static inline void folder_new(void) {
    strcpy(folder, "/tmp/refsae-test-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
}

static inline void folder_remove(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

/* The same, removed at the test's end. */
static inline const char *directory_new(void) {
    folder_new();
    atexit(folder_remove);
    return folder;
}

/* A text that lives as long as the test; each test is a process of its own. */
static inline char *scratch(void) {
    static char text[16][256];
    static int next;
    return text[next++ % 16];
}

static inline char *in(const char *parent, const char *name) {
    char *path = scratch();
    snprintf(path, 256, "%s/%s", parent, name);
    return path;
}

static inline char *read_text(Arena *arena, const char *path) {
    FileMap map = file_map(arena, path);
    return arena_copy(arena, (const char *)map.data, map.size);
}

static inline int count_of(const char *text, const char *part) {
    int count = 0;
    for (; (text = strstr(text, part)) != NULL; text++) {
        count++;
    }
    return count;
}

/* n parts, each with how often it is there. */
static inline void assert_counts(const char *text, int n, ...) {
    va_list list;
    va_start(list, n);
    for (int i = 0; i < n; i++) {
        const char *part = va_arg(list, const char *);
        int expected = va_arg(list, int);
        cr_assert_eq(count_of(text, part), expected, "%s: %d", part, count_of(text, part));
    }
    va_end(list);
}

#endif

/* What the readers take of base.c, as far as a proof needs it: a failure leaves, memory is given. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"

void fail(Status status, const char *format, ...) {
    (void)status, (void)format;
    __CPROVER_assume(0);
    abort();
}

void fail_errno(int code, const char *path, const char *what) {
    (void)code, (void)path, (void)what;
    fail(STATUS_INPUT, "");
}

bool size_mul(size_t *product, size_t a, size_t b) {
    *product = a * b;
    return a == 0 || b <= SIZE_MAX / a;
}

void *arena_alloc(Arena *arena, size_t count, size_t size) {
    (void)arena;
    void *memory = calloc(count == 0 ? 1 : count, size);
    __CPROVER_assume(memory != NULL);
    return memory;
}

char *arena_copy(Arena *arena, const char *text, size_t length) {
    char *copy = arena_alloc(arena, length + 1, 1);
    memcpy(copy, text, length);
    return copy;
}

char *arena_format(Arena *arena, const char *format, ...) {
    (void)format;
    return arena_alloc(arena, 1, 1);
}

Arena *arena_new(void) {
    return NULL;
}

void arena_free(Arena *arena) {
    (void)arena;
}

/* A file of BYTES bytes, any of them. */
#ifdef BYTES
static FileMap any_file(void) {
    unsigned char *data = malloc(BYTES);
    __CPROVER_assume(data != NULL);
    return (FileMap){data, BYTES};
}
#endif

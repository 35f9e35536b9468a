/* Proof: of tensors whose places and sizes are any numbers, those that the reader keeps fill the data
 * without hole or overlap, each within it and of the size that its shape and type take. */
#include "stubs.h"

#include "../../tensor.c"

enum {
    TENSORS = 3
};

void qsort(void *items, size_t count, size_t size, int (*compare)(const void *, const void *)) {
    Extent *e = items;
    (void)size;
    for (size_t i = 1; i < count; i++) {
        for (size_t k = i; k > 0 && compare(&e[k - 1], &e[k]) > 0; k--) {
            Extent swap = e[k];
            e[k] = e[k - 1];
            e[k - 1] = swap;
        }
    }
}

void places(void) {
    Extent extents[TENSORS];
    size_t size, count;
    __CPROVER_assume(count <= TENSORS);
    for (size_t i = 0; i < count; i++) { /* as safetensors_tensor lets them through */
        __CPROVER_assume(extents[i].begin <= extents[i].end && extents[i].end <= size);
    }
    extents_check(extents, count, size, "");
    size_t filled = 0;
    for (size_t i = 0; i < count; i++) {
        assert(extents[i].begin == filled);
        filled = extents[i].end;
    }
    assert(filled == size);
}

/* The reader's own numbers, wherever a size stands. */
bool json_int64(const Json *number, int64_t *out) {
    (void)number;
    int64_t any;
    *out = any;
    return any >= 0;
}

bool json_is(const Json *value, JsonKind kind) {
    return value != NULL && value->kind == kind;
}

bool json_text_is(const Json *value, const char *text) {
    bool any;
    (void)value, (void)text;
    return any;
}


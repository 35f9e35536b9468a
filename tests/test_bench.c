/* Behaviour: what `bench` says of the kernels: names, units and shares, by a set of kernels that do
 * nothing, so that nothing is measured. Whole commands: tests/test_program.c. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "json.h"
#include "kernelset.h"
#include "scratch.h"

/* So that nothing takes no time at all, whatever the clock. */
static void tick(void) {
    for (const double now = progress_now(); progress_now() == now;) {
    }
}

static void no_range(const Task *task, size_t first, size_t last) {
    (void)task;
    (void)first;
    (void)last;
    tick();
}

static void no_product(const Product *p, size_t m0, size_t m1, size_t n0, size_t n1, void *room,
                       double *packing) {
    (void)p;
    (void)m0;
    (void)m1;
    (void)n0;
    (void)n1;
    (void)room;
    (void)packing;
    tick();
}

static void no_sparse(const SparseList *list, size_t c0, size_t c1, void *room) {
    (void)list;
    (void)c0;
    (void)c1;
    (void)room;
    tick();
}

static float no_multiply(size_t rounds, size_t *operations) {
    *operations = rounds;
    tick();
    return 0.0f;
}

static float no_read(const void *data, size_t size) {
    (void)data;
    tick();
    return (float)size;
}

/* What bench writes with these kernels on so many threads. */
static const char *benched(Arena *arena, int threads, bool json) {
    KernelSet set = {"nothing", 16, {NULL}, no_product, no_sparse, no_multiply, no_read};
    Compute compute;
    MemoryStream *text = memory_open(arena);
    for (int i = 0; i < OP_COUNT; i++) {
        set.run[i] = no_range;
    }
    compute_open_isa(&compute, arena, threads, NULL);
    compute.threads = threads; /* without OpenMP the same pieces, one after another */
    compute.set = &set;
    bench_kernels(&compute, json, text->stream);
    return memory_text(text);
}

TestSuite(bench, .timeout = 600);

Test(bench, kernels_beside_their_limits) {
    Arena *arena = arena_new();
    const char *text = benched(arena, 2, true);
    const Json *said = json_parse(arena, text, strlen(text), "bench");
    int rows = 0, shared = 0;
    cr_assert(json_text_is(json_get(said, "isa"), "nothing"));
    cr_assert_eq(json_get(said, "caches")->length, 3);
    cr_assert_not_null(json_get(said, "processor"));
    for (const Json *row = json_get(said, "kernels")->child; row != NULL; row = row->next) {
        const Json *share = json_get(row, "of_limit"), *unit = json_get(row, "unit");
        const char *name = json_string(json_get(row, "name"));
        cr_assert(json_double(json_get(row, "best")) > 0.0, "%s", name);
        cr_assert_eq(share != NULL, !json_text_is(unit, "M/s"), "%s", name);
        if (strncmp(name, "limit, ", 7) == 0) {
            cr_assert_eq(json_double(share), 1.0, "%s", name);
        }
        shared += json_double(json_get(row, "threads")) == 2.0;
        rows++;
    }
    cr_assert_eq(shared, rows / 2, "each on one thread, then on both");
    assert_counts(text, 4, "\"limit, multiply-add\"", 2, "\"limit, read\"", 2,
                  "\"Gemma-2-2B MLP, 4x2304 by 9216x2304, BF16, [out, in]\"", 2, "\"exp\"", 2);
    arena_free(arena);
}

/* One line a kernel on one thread, the limits that of a set which has them. */
Test(bench, kernels_in_a_table) {
    Arena *arena = arena_new();
    const char *text = benched(arena, 1, false);
    assert_counts(text, 5, "; best of ten rounds\n", 1, "GFLOP/s", 19, "GB/s", 4, " M/s", 6, "\n",
                  30);
    arena_free(arena);
}

/* bench.c: how near the kernels come to what this machine can do. Shapes are Gemma-2-2B's MLP at
 * 512 tokens. Noise on shared machines is 10 % within minutes, so every figure is the best of ten
 * rounds, and a round measures everything once, the limits included. Floor 15. */
#include "bench.h"

#include <string.h>

#include "kernelset.h"

enum {
    ROUNDS = 10,
    TOKENS = 512,
    D_MODEL = 2304,
    D_MLP = 9216,
    HEADS = 16,
    D_HEAD = 256,
    MAX_ITEMS = 64,
    LIMIT_ROUNDS = 1000000
};

typedef struct Bench {
    const Compute *compute;
    float *x, *y;           /* [TOKENS, D_MLP] each */
    unsigned char *weights; /* four matrices [D_MLP, D_MODEL] of 16 bits, two of 32 */
    size_t weight_bytes;
    volatile float sink;
} Bench;

typedef struct Item {
    char name[48];
    double (*measure)(Bench *bench, const struct Item *item); /* runs it once; the work done */
    const char *unit;
    char limit; /* 'm': multiply-adds, 'r': reads, 0: none */
    Dtype dtype;
    int variant; /* PRODUCT: W stored [in, out]; FUNCTION: which */
    int threads;
    double best; /* GFLOP/s, GB/s or million elements a second */
} Item;

/* The set that can measure this machine's limits: the plain one cannot. NULL: none. */
static const KernelSet *limits(const Bench *bench) {
    const KernelSet *set = bench->compute->set;
    bool usable = true;
    for (size_t i = 0; set != NULL && (!usable || set->limit_multiply == NULL); i++) {
        set = kernel_set_at(i, &usable);
    }
    return set;
}

static void multiply_body(void *user, size_t i, int thread) {
    Bench *bench = user;
    size_t operations;
    (void)i;
    (void)thread;
    bench->sink = limits(bench)->limit_multiply(LIMIT_ROUNDS, &operations);
}

static double limit_multiply(Bench *bench, const Item *item) {
    size_t operations;
    compute_parallel(bench->compute, (size_t)item->threads, multiply_body, bench);
    bench->sink = limits(bench)->limit_multiply(1, &operations);
    return (double)LIMIT_ROUNDS * (double)operations * item->threads;
}

static void read_body(void *user, size_t i, int thread) {
    Bench *bench = user;
    (void)thread;
    bench->sink = limits(bench)->limit_read(bench->weights + (i << 20), 1 << 20);
}

static double limit_read(Bench *bench, const Item *item) {
    (void)item;
    compute_parallel(bench->compute, bench->weight_bytes >> 20, read_body, bench);
    return (double)(bench->weight_bytes >> 20 << 20);
}

/* `rows` rows through W [D_MLP, D_MODEL], stored so or (in_out) the other way round. */
static void multiply(Bench *bench, const unsigned char *weights, Dtype dtype, bool in_out,
                     size_t rows) {
    const Matrix w = {.w = {weights, dtype},
                      .row = in_out ? 1 : D_MODEL,
                      .col = in_out ? D_MLP : 1,
                      .out = D_MLP,
                      .in = D_MODEL};
    product_run_one(bench->compute, product_nt(bench->y, bench->x, &w, rows));
}

static double product(Bench *bench, const Item *item) {
    multiply(bench, bench->weights, item->dtype, item->variant != 0, TOKENS);
    return 2.0 * (double)((size_t)TOKENS * D_MLP * D_MODEL);
}

/* One token through all of the weights; the bytes that had to be read. */
static double decoding(Bench *bench, const Item *item) {
    const size_t matrix = (size_t)D_MLP * D_MODEL * dtype_size(item->dtype);
    for (size_t at = 0; at + matrix <= bench->weight_bytes; at += matrix) {
        multiply(bench, bench->weights + at, item->dtype, false, 1);
    }
    return (double)bench->weight_bytes;
}

/* scores = q k^T of every head: [TOKENS, HEADS, D_HEAD] twice into [HEADS, TOKENS, TOKENS]. */
static double attention_scores(Bench *bench, const Item *item) {
    Product p[HEADS];
    (void)item;
    for (size_t h = 0; h < HEADS; h++) {
        const Matrix keys = {.w = {bench->x + h * D_HEAD, DTYPE_F32},
                             .row = HEADS * D_HEAD,
                             .col = 1,
                             .out = TOKENS,
                             .in = D_HEAD};
        p[h] = product_nt(bench->y + h * TOKENS * TOKENS, bench->x + h * D_HEAD, &keys, TOKENS);
        p[h].a_row = HEADS * D_HEAD;
    }
    product_run(bench->compute, p, HEADS);
    return 2.0 * (double)((size_t)HEADS * TOKENS * TOKENS * D_HEAD);
}

typedef struct FunctionRun {
    const KernelSet *set;
    Task task;
} FunctionRun;

static void function_body(void *user, size_t i, int thread) {
    const FunctionRun *job = user;
    (void)thread;
    job->set->run[OP_ELEMENTARY](&job->task, i * 8192, (i + 1) * 8192);
}

static double function(Bench *bench, const Item *item) {
    FunctionRun job = {bench->compute->set, {.y = bench->y, .a = bench->x, .kind = item->variant}};
    compute_parallel(bench->compute, TOKENS * D_MODEL / 8192, function_body, &job);
    return 1e3 * (TOKENS * D_MODEL / 8192 * 8192);
}

static size_t bench_items(Item *items, const Bench *bench) {
    static const char *const functions[] = {"exp", "log", "tanh", "erf", "sin", "cos"};
    static const Dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    size_t n = 0;
    for (int t = 1;; t = bench->compute->threads) {
        size_t first = n;
        if (limits(bench) != NULL) {
            items[n++] = (Item){"limit, multiply-add", limit_multiply, "GFLOP/s", 'm', 0, 0, 0, 0};
            items[n++] = (Item){"limit, read", limit_read, "GB/s", 'r', 0, 0, 0, 0};
        }
        for (int i = 0; i < 6; i++) {
            items[n] = (Item){"", product, "GFLOP/s", 'm', dtypes[i / 2], i % 2, 0, 0};
            snprintf(items[n++].name, sizeof items->name, "product 512x2304 by 9216x2304, %s, %s",
                     dtype_name(dtypes[i / 2]), i % 2 != 0 ? "[in, out]" : "[out, in]");
        }
        items[n++] =
            (Item){"scores of 16 heads, 512x512x256", attention_scores, "GFLOP/s", 'm', 0, 0, 0, 0};
        for (int i = 0; i < 3; i++) {
            items[n] = (Item){"", decoding, "GB/s", 'r', dtypes[i], 0, 0, 0};
            snprintf(items[n++].name, sizeof items->name, "decoding, 1x2304 by 9216x2304, %s",
                     dtype_name(dtypes[i]));
        }
        for (int i = 0; i < FN_COUNT; i++) {
            items[n] = (Item){"", function, "M/s", 0, 0, i, 0, 0};
            strcpy(items[n++].name, functions[i]);
        }
        while (first < n) {
            items[first++].threads = t;
        }
        if (t == bench->compute->threads) {
            return n;
        }
    }
}

static void bench_print(FILE *out, bool json, const Compute *compute, const Item *items, size_t n) {
    fprintf(out, json ? "{\"isa\": \"%s\", \"kernels\": [" : "%-48s  threads  best of ten\n",
            compute_isa(compute));
    double multiply_limit = 0.0, read_limit = 0.0;
    for (size_t i = 0; i < n; i++) {
        const Item *item = &items[i];
        multiply_limit = item->measure == limit_multiply ? item->best : multiply_limit;
        read_limit = item->measure == limit_read ? item->best : read_limit;
        double limit = item->limit == 'm' ? multiply_limit : item->limit == 'r' ? read_limit : 0.0;
        const char *row = json ? "%s{\"name\": \"%s\", \"threads\": %d, \"best\": %.1f, "
                                 "\"unit\": \"%s\""
                               : "%s%-48s %8d %9.1f %-8s";
        fprintf(out, row, json && i > 0 ? ", " : "", item->name, item->threads, item->best,
                item->unit);
        if (limit > 0.0) {
            fprintf(out, json ? ", \"of_limit\": %.3f" : "%4.0f %%",
                    (json ? 1.0 : 100.0) * item->best / limit);
        }
        fputs(json ? "}" : "\n", out);
    }
    fputs(json ? "]}\n" : "", out);
}

void bench_kernels(const Compute *compute, bool json, FILE *out) {
    Arena *arena = arena_new();
    Compute one = *compute;
    one.threads = 1;
    Bench bench = {.compute = compute, .weight_bytes = (size_t)D_MLP * D_MODEL * 8};
    bench.x = arena_floats(arena, TOKENS, D_MLP);
    bench.y = arena_floats(arena, TOKENS, D_MLP);
    bench.weights = arena_alloc(arena, bench.weight_bytes, 1);
    Item *items = arena_alloc(arena, MAX_ITEMS, sizeof *items);
    for (size_t i = 0; i < (size_t)TOKENS * D_MLP; i++) {
        bench.x[i] = 0.25f + (float)(i * 2654435761u % 4096) / 1024.0f;
    }
    for (size_t i = 0; i < bench.weight_bytes / 2; i++) { /* small and positive in every dtype */
        const uint16_t bits = (uint16_t)(0x3c00 + i * 2654435761u % 256);
        memcpy(bench.weights + 2 * i, &bits, sizeof bits);
    }
    const size_t n = bench_items(items, &bench);
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < n; i++) {
            bench.compute = items[i].threads == 1 ? &one : compute;
            const double start = progress_now(), work = items[i].measure(&bench, &items[i]);
            const double speed = 1e-9 * work / (progress_now() - start);
            items[i].best = speed > items[i].best ? speed : items[i].best;
        }
    }
    bench_print(out, json, compute, items, n);
    arena_free(arena);
}

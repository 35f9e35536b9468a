/* bench.c: how near the kernels come to what this machine can do. Shapes are Gemma-2-2B's MLP at
 * 512 tokens. Noise on shared machines is 10 % within minutes, so every figure is the best of ten
 * rounds, and a round measures everything once, the limits included. Floor 1. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

typedef enum Kind {
    LIMIT_MULTIPLY,
    LIMIT_READ,
    PRODUCT,
    ATTENTION,
    DECODE,
    FUNCTION
} Kind;

typedef struct Item {
    char name[48];
    Kind kind;
    int threads, function;
    Dtype dtype;
    bool in_out; /* W stored [in, out] */
    double best; /* GFLOP/s, GB/s or million elements a second */
} Item;

typedef struct Bench {
    Compute *compute;
    float *x, *y;           /* [TOKENS, D_MLP] each */
    unsigned char *weights; /* four matrices [D_MLP, D_MODEL] of 16 bits, two of 32 */
    size_t weight_bytes;
    volatile float sink;
} Bench;

static const char *const UNITS[] = {"GFLOP/s", "GB/s", "GFLOP/s", "GFLOP/s", "GB/s", "M/s"};

/* The set that can measure this machine's limits: the plain one cannot. NULL: none. */
static const KernelSet *limits(const Bench *bench) {
    const KernelSet *set = bench->compute->set;
    bool usable = true;
    for (size_t i = 0; set != NULL && (!usable || set->limit_multiply == NULL); i++) {
        set = kernel_set_at(i, &usable);
    }
    return set;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void multiply_body(void *user, size_t i, int thread) {
    Bench *bench = user;
    size_t operations;
    (void)i;
    (void)thread;
    bench->sink = limits(bench)->limit_multiply(LIMIT_ROUNDS, &operations);
}

static void read_body(void *user, size_t i, int thread) {
    Bench *bench = user;
    const size_t piece = 1 << 20;
    (void)thread;
    bench->sink = limits(bench)->limit_read(bench->weights + i * piece, piece);
}

static void bench_limit_multiply(Bench *bench, double *work) {
    size_t operations;
    compute_parallel(bench->compute, (size_t)bench->compute->threads, multiply_body, bench);
    bench->sink = limits(bench)->limit_multiply(1, &operations);
    *work = LIMIT_ROUNDS * (double)operations * bench->compute->threads;
}

static void bench_product(Bench *bench, const Item *item, double *work) {
    const Product p = {.c = bench->y,
                       .ldc = D_MLP,
                       .a = bench->x,
                       .a_row = D_MODEL,
                       .a_col = 1,
                       .b = {bench->weights, item->dtype},
                       .b_row = item->in_out ? 1 : D_MODEL,
                       .b_col = item->in_out ? D_MLP : 1,
                       .m = TOKENS,
                       .n = D_MLP,
                       .k = D_MODEL};
    product_run(bench->compute, &p, 1);
    *work = 2.0 * TOKENS * D_MLP * D_MODEL;
}

/* scores = q k^T of every head: [TOKENS, HEADS, D_HEAD] twice into [HEADS, TOKENS, TOKENS]. */
static void bench_attention(Bench *bench, double *work) {
    Product p[HEADS];
    for (size_t h = 0; h < HEADS; h++) {
        p[h] = (Product){.c = bench->y + h * TOKENS * TOKENS,
                         .ldc = TOKENS,
                         .a = bench->x + h * D_HEAD,
                         .a_row = HEADS * D_HEAD,
                         .a_col = 1,
                         .b = {bench->x + h * D_HEAD, DTYPE_F32},
                         .b_row = HEADS * D_HEAD,
                         .b_col = 1,
                         .m = TOKENS,
                         .n = TOKENS,
                         .k = D_HEAD};
    }
    product_run(bench->compute, p, HEADS);
    *work = 2.0 * HEADS * TOKENS * TOKENS * D_HEAD;
}

/* One token through all of the weights; the bytes that had to be read. */
static void bench_decode(Bench *bench, const Item *item, double *work) {
    const size_t matrix = (size_t)D_MLP * D_MODEL * dtype_size(item->dtype);
    for (size_t at = 0; at + matrix <= bench->weight_bytes; at += matrix) {
        const Product p = {.c = bench->y,
                           .ldc = D_MLP,
                           .a = bench->x,
                           .a_row = D_MODEL,
                           .a_col = 1,
                           .b = {bench->weights + at, item->dtype},
                           .b_row = D_MODEL,
                           .b_col = 1,
                           .m = 1,
                           .n = D_MLP,
                           .k = D_MODEL};
        product_run(bench->compute, &p, 1);
    }
    *work = (double)bench->weight_bytes;
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

static void bench_once(Bench *bench, Item *item) {
    double work = 0.0;
    const double start = seconds();
    if (item->kind <= LIMIT_READ && limits(bench) == NULL) {
        return;
    }
    switch (item->kind) {
    case LIMIT_MULTIPLY:
        bench_limit_multiply(bench, &work);
        break;
    case LIMIT_READ:
        compute_parallel(bench->compute, bench->weight_bytes >> 20, read_body, bench);
        work = (double)(bench->weight_bytes >> 20 << 20);
        break;
    case PRODUCT:
        bench_product(bench, item, &work);
        break;
    case ATTENTION:
        bench_attention(bench, &work);
        break;
    case DECODE:
        bench_decode(bench, item, &work);
        break;
    case FUNCTION: {
        FunctionRun job = {bench->compute->set,
                           {.y = bench->y, .a = bench->x, .kind = item->function}};
        compute_parallel(bench->compute, TOKENS * D_MODEL / 8192, function_body, &job);
        work = 1e3 * (TOKENS * D_MODEL / 8192 * 8192);
        break;
    }
    }
    const double speed = 1e-9 * work / (seconds() - start);
    item->best = speed > item->best ? speed : item->best;
}

static size_t bench_items(Item *items, int threads) {
    static const char *const functions[] = {"exp", "log", "tanh", "erf", "sin", "cos"};
    static const Dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    size_t n = 0;
    for (int t = 1;; t = threads) {
        Item base = {.threads = t};
        items[n] = base;
        strcpy(items[n++].name, "limit, multiply-add");
        items[n] = base;
        items[n].kind = LIMIT_READ;
        strcpy(items[n++].name, "limit, read");
        for (int i = 0; i < 6; i++) {
            items[n] = base;
            items[n].kind = PRODUCT;
            items[n].dtype = dtypes[i / 2];
            items[n].in_out = i % 2 != 0;
            snprintf(items[n].name, sizeof items[n].name, "product 512x2304 by 9216x2304, %s, %s",
                     dtype_name(dtypes[i / 2]), i % 2 != 0 ? "[in, out]" : "[out, in]");
            n++;
        }
        items[n] = base;
        items[n].kind = ATTENTION;
        strcpy(items[n++].name, "scores of 16 heads, 512x512x256");
        for (int i = 0; i < 3; i++) {
            items[n] = base;
            items[n].kind = DECODE;
            items[n].dtype = dtypes[i];
            snprintf(items[n].name, sizeof items[n].name, "decoding, 1x2304 by 9216x2304, %s",
                     dtype_name(dtypes[i]));
            n++;
        }
        for (int i = 0; i < FN_COUNT; i++) {
            items[n] = base;
            items[n].kind = FUNCTION;
            items[n].function = i;
            snprintf(items[n++].name, sizeof items->name, "%s", functions[i]);
        }
        if (t == threads) {
            return n;
        }
    }
}

static void bench_print(FILE *out, bool json, const Compute *compute, const Item *items, size_t n) {
    if (json) {
        fprintf(out, "{\"isa\": \"%s\", \"kernels\": [", compute_isa(compute));
    } else {
        fprintf(out, "%-48s %8s %12s\n", compute_isa(compute), "threads", "best of ten");
    }
    double multiply = 1.0, read = 1.0;
    for (size_t i = 0; i < n; i++) {
        const Item *item = &items[i];
        multiply = item->kind == LIMIT_MULTIPLY ? item->best : multiply;
        read = item->kind == LIMIT_READ ? item->best : read;
        const double limit = item->kind == FUNCTION                             ? 0.0
                             : item->kind == LIMIT_READ || item->kind == DECODE ? read
                                                                                : multiply;
        if (json) {
            fprintf(out, "%s{\"name\": \"%s\", \"threads\": %d, \"best\": %.1f, \"unit\": \"%s\"",
                    i > 0 ? ", " : "", item->name, item->threads, item->best, UNITS[item->kind]);
            if (limit > 0.0) {
                fprintf(out, ", \"of_limit\": %.3f", item->best / limit);
            }
            fprintf(out, "}");
        } else {
            fprintf(out, "%-48s %8d %9.1f %-8s", item->name, item->threads, item->best,
                    UNITS[item->kind]);
            if (limit > 0.0) {
                fprintf(out, "%4.0f %%", 100.0 * item->best / limit);
            }
            fprintf(out, "\n");
        }
    }
    fprintf(out, json ? "]}\n" : "");
}

void bench_kernels(FILE *out, bool json, int threads) {
    Arena *arena = arena_new();
    Compute compute, one;
    compute_open(&compute, arena, threads);
    one = compute;
    one.threads = 1;
    Bench bench = {.weight_bytes = (size_t)D_MLP * D_MODEL * 8};
    bench.x = arena_floats(arena, TOKENS, D_MLP);
    bench.y = arena_floats(arena, TOKENS, D_MLP);
    bench.weights = arena_alloc(arena, bench.weight_bytes, 1);
    Item *items = arena_alloc(arena, MAX_ITEMS, sizeof *items);
    for (size_t i = 0; i < (size_t)TOKENS * D_MLP; i++) {
        bench.x[i] = 0.25f + (float)(i * 2654435761u % 4096) / 1024.0f;
    }
    for (size_t i = 0; i < bench.weight_bytes / 2;
         i++) { /* small positive numbers in every dtype */
        const uint16_t bits = (uint16_t)(0x3c00 + i * 2654435761u % 256);
        memcpy(bench.weights + 2 * i, &bits, sizeof bits);
    }
    const size_t n = bench_items(items, compute.threads);
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < n; i++) {
            bench.compute = items[i].threads == 1 ? &one : &compute;
            bench_once(&bench, &items[i]);
        }
    }
    bench_print(out, json, &compute, items, n);
    arena_free(arena);
}

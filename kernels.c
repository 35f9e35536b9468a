/* kernels.c: what every number of refsae rests on. The loops stand in kernels_simd.c, the
 * elementary functions in elementary.h; here is the contract, the choice of the instruction set and
 * the threads.
 *
 * The arithmetic contract. Whoever keeps it gets the same bits on any hardware:
 *
 * 1. Activations, gradients and optimiser state are IEEE binary32, round to nearest even,
 * subnormals kept. Weights stay as stored (F32, BF16, F16) and widen exactly when they are used.
 * 2. An element of a matrix product is the chain acc = fma(a[k], b[k], acc), k ascending from 0,
 * acc starting at +0 (`resume`: at the value in C). A bias is added to the finished chain.
 * 3. Every other sum (norms, softmax, losses, means, statistics) is taken in binary64, ascending,
 * in one chain, and rounded to binary32 once, after the division by a count if there is one.
 * 4. exp, log, tanh, erf (all inputs), sin, cos (|x| <= 2^20) are the correctly rounded binary32
 * value.
 * 5. A composite (norm, softmax, GELU, RoPE, AdamW) is the sequence of binary32 operations that its
 *    comment writes down; nothing is contracted or reassociated, and division is division.
 * 6. Any NaN equals any NaN.
 *
 * From which follows the one rule for speed: SIMD and threads go across outputs, never along a sum.
 * Blocks, panels, thread counts and instruction sets then change nothing. Floor 0. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernelset.h"
#include "simd.h"

/* ==== the instruction set ==== */

extern const KernelSet kernel_set_scalar;
#if defined(__x86_64__)
extern const KernelSet kernel_set_scalar_fma, kernel_set_avx2, kernel_set_avx512;
#elif defined(__aarch64__)
extern const KernelSet kernel_set_neon;
#endif

const KernelSet *kernel_set_at(size_t index, bool *usable) {
#if defined(__x86_64__)
    const KernelSet *const sets[] = {&kernel_set_avx512, &kernel_set_avx2, &kernel_set_scalar_fma,
                                     &kernel_set_scalar};
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has[] = {
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"),
        avx2, avx2, true};
#elif defined(__aarch64__)
    const KernelSet *const sets[] = {&kernel_set_neon, &kernel_set_scalar};
    const bool has[] = {true, true};
#else
    const KernelSet *const sets[] = {&kernel_set_scalar};
    const bool has[] = {true};
#endif
    if (index >= sizeof has / sizeof *has) {
        return NULL;
    }
    *usable = has[index];
    return sets[index];
}

void compute_open_isa(Compute *compute, Arena *arena, int threads, const char *isa) {
    *compute = (Compute){.threads = 1};
    bool usable, known = false;
    const KernelSet *set;
    for (size_t i = 0; compute->set == NULL && (set = kernel_set_at(i, &usable)) != NULL; i++) {
        const bool named = isa == NULL || strcmp(isa, set->name) == 0;
        known = known || named;
        compute->set = named && usable ? set : NULL;
    }
    if (!known) {
        fail(STATUS_INPUT,
                    "REFSAE_ISA: '%s' is none of the instruction sets of this build", isa);
    }
    if (compute->set == NULL) {
        fail(STATUS_INPUT, "REFSAE_ISA: this processor has no %s", isa);
    }
#ifdef _OPENMP
    compute->threads = threads > 0 ? threads : omp_get_num_procs();
#endif
    if (threads > 1024 || threads < 0) {
        fail(STATUS_INPUT, "threads: expected 0 to 1024, found %d", threads);
    }
    compute->scratch = arena_alloc(arena, (size_t)compute->threads, SCRATCH_SIZE);
}

void compute_open(Compute *compute, Arena *arena, int threads) {
    const char *isa = getenv("REFSAE_ISA");
    compute_open_isa(compute, arena, threads, isa != NULL && *isa != '\0' ? isa : NULL);
}

const char *compute_isa(const Compute *compute) {
    return compute->set->name;
}

/* ==== threads ==== */

/* Work below these stays on the calling thread: waking and waiting for others costs 5 to 50
 * microseconds, and far more where other programs hold the processors while OpenMP's threads spin.
 */
enum {
    WORTH_PRODUCTS = 1 << 21,
    WORTH_ELEMENTS = 1 << 16
}; /* multiply-adds; elements */

static void run_pieces(const Compute *compute, bool worth, size_t count,
                       void (*body)(void *user, size_t i, int thread), void *user) {
#ifdef _OPENMP
    if (worth && compute->threads > 1 && count > 1) {
        size_t next = 0;
#pragma omp parallel num_threads(compute->threads)
        for (;;) {
            size_t i;
#pragma omp atomic capture
            i = next++;
            if (i >= count) {
                break;
            }
            body(user, i, omp_get_thread_num());
        }
        return;
    }
#endif
    (void)compute;
    (void)worth;
    for (size_t i = 0; i < count; i++) {
        body(user, i, 0);
    }
}

void compute_parallel(const Compute *compute, size_t count,
                      void (*body)(void *user, size_t i, int thread), void *user) {
    run_pieces(compute, true, count, body, user);
}

typedef struct Range {
    const Task *task;
    void (*run)(const Task *task, size_t first, size_t last);
    size_t count, grain;
} Range;

static void range_body(void *user, size_t i, int thread) {
    const Range *range = user;
    const size_t first = i * range->grain, left = range->count - first;
    (void)thread;
    range->run(range->task, first, first + (left < range->grain ? left : range->grain));
}

/* Elements: pieces of 8192. Rows: pieces of 4 to 64, as many as make 8192 elements. */
static void run(const Compute *compute, Operation operation, const Task *task, size_t count) {
    size_t grain = 8192, elements = count;
    if (operation < OP_ACTIVATE) {
        const size_t cols = task->cols * (task->heads > 0 ? task->heads : 1),
                     rows = grain / (cols + 1);
        elements = count * cols;
        grain = rows < 4 ? 4 : rows > 64 ? 64 : rows / 4 * 4;
        if (task->cols >= 8192 && count < 4 * (size_t)compute->threads) {
            grain = 1;
        }
    }
    Range range = {task, compute->set->run[operation], count, grain};
    run_pieces(compute, elements >= WORTH_ELEMENTS, (count + grain - 1) / grain, range_body,
               &range);
}

/* ==== random normals ==== */

void random_normals(Random *random, float draw[2]) {
    float radius = sqrtf(-2.0f * log_f32(1.0f - random_uniform(random)));
    float angle = 6.28318530717958647692f * random_uniform(random);
    draw[0] = radius * cos_f32(angle);
    draw[1] = radius * sin_f32(angle);
}

/* ==== weights ==== */

float weight_at(Weight weight, size_t index) {
    float x;
    weight_widen(&x, weight, index, 1);
    return x;
}

void weight_widen(float *out, Weight weight, size_t first, size_t count) {
    const unsigned char *p = weight.data;
    if (weight.dtype == DTYPE_F32) {
        memcpy(out, p + 4 * first, count * sizeof *out);
        return;
    }
    p += 2 * first;
    for (size_t i = 0; i < count; i++, p += 2) {
        uint16_t bits;
        memcpy(&bits, p, sizeof bits);
        out[i] = weight.dtype == DTYPE_BF16 ? widen_bf16(bits) : widen_f16(bits);
    }
}

/* ==== products ==== */

typedef struct ProductRun {
    const Compute *compute;
    const Product *products;
    size_t pieces; /* jobs a product, at most: its blocks of rows times `splits` column blocks */
    size_t splits;
} ProductRun;

static size_t row_blocks(const Product *product) {
    return product->m == 0 ? 1 : (product->m + BLOCK_M - 1) / BLOCK_M;
}

static void product_body(void *user, size_t i, int thread) {
    const ProductRun *job = user;
    const Product *p = &job->products[i / job->pieces];
    const KernelSet *set = job->compute->set;
    const size_t blocks = row_blocks(p), piece = i % job->splits;
    const size_t even =
        (p->m + blocks - 1) / blocks; /* at most BLOCK_M, a multiple of BLOCK_STEP */
    const size_t height = (even + BLOCK_STEP - 1) / BLOCK_STEP * BLOCK_STEP;
    const size_t m0 = i % job->pieces / job->splits * height;
    size_t width = (p->n + job->splits - 1) / job->splits;
    if (width < 192) {
        width = 192;
    }
    width = (width + set->panel - 1) / set->panel * set->panel;
    const size_t n0 = piece * width;
    if (m0 >= p->m || n0 >= p->n) {
        return;
    }
    const size_t m1 = p->m - m0 < height ? p->m : m0 + height;
    const size_t n1 = p->n - n0 < width ? p->n : n0 + width;
    set->product(p, m0, m1, n0, n1,
                 (unsigned char *)job->compute->scratch + (size_t)thread * SCRATCH_SIZE);
}

void product_run(const Compute *compute, const Product *products, size_t count) {
    const size_t wanted = compute->threads == 1 ? 1 : 16 * (size_t)compute->threads;
    size_t blocks = 1;
    double work = 0.0;
    for (size_t i = 0; i < count; i++) {
        work += (double)products[i].m * (double)products[i].n * (double)products[i].k;
        blocks = row_blocks(&products[i]) > blocks ? row_blocks(&products[i]) : blocks;
    }
    const size_t splits = count == 0 || count * blocks >= wanted
                              ? 1
                              : (wanted + count * blocks - 1) / (count * blocks);
    ProductRun job = {compute, products, blocks * splits, splits};
    run_pieces(compute, work >= WORTH_PRODUCTS, count * job.pieces, product_body, &job);
}

Product product_nt(float *y, const float *x, const Matrix *matrix, size_t rows) {
    return (Product){.c = y,
                     .ldc = matrix->out,
                     .a = x,
                     .a_row = (ptrdiff_t)matrix->in,
                     .a_col = 1,
                     .b = matrix->w,
                     .b_row = matrix->row,
                     .b_col = matrix->col,
                     .bias = matrix->bias,
                     .m = rows,
                     .n = matrix->out,
                     .k = matrix->in};
}

Product product_nn(float *dx, const float *dy, const Matrix *matrix, size_t rows,
                             bool resume) {
    return (Product){.c = dx,
                     .ldc = matrix->in,
                     .a = dy,
                     .a_row = (ptrdiff_t)matrix->out,
                     .a_col = 1,
                     .b = matrix->w,
                     .b_row = matrix->col,
                     .b_col = matrix->row,
                     .m = rows,
                     .n = matrix->in,
                     .k = matrix->out,
                     .resume = resume};
}

Product product_tn(float *dw, const float *dy, const float *x, size_t rows, size_t out, size_t in) {
    return (Product){.c = dw,
                     .ldc = in,
                     .a = dy,
                     .a_row = 1,
                     .a_col = (ptrdiff_t)out,
                     .b = {x, DTYPE_F32},
                     .b_row = 1,
                     .b_col = (ptrdiff_t)in,
                     .m = out,
                     .n = in,
                     .k = rows,
                     .resume = true};
}

/* ==== rows ==== */

void norm_scale(const Compute *compute, float *mean, float *scale, const float *x, float eps,
                size_t rows, size_t cols) {
    const Task task = {.y = mean, .y2 = scale, .a = x, .cols = cols, .s = {eps}};
    run(compute, OP_NORM_SCALE, &task, rows);
}

void norm_normalize(const Compute *compute, float *y, const float *x, const float *mean,
                    const float *scale, size_t rows, size_t cols) {
    const Task task = {.y = y, .a = x, .mean = mean, .scale = scale, .cols = cols};
    run(compute, OP_NORM_NORMALIZE, &task, rows);
}

void norm_weight(const Compute *compute, float *y, const float *x, Weight w, Weight b,
                 bool plus_one, size_t rows, size_t cols) {
    const Task task = {.y = y, .a = x, .w = w, .bias = b, .flag = plus_one, .cols = cols};
    run(compute, OP_NORM_WEIGHT, &task, rows);
}

void norm_weight_backward(const Compute *compute, float *dnormalized, const float *dy, Weight w,
                          bool plus_one, size_t rows, size_t cols) {
    norm_weight(compute, dnormalized, dy, w, (Weight){NULL, DTYPE_F32}, plus_one, rows, cols);
}

void norm_scale_backward(const Compute *compute, float *dscale, const float *dnormalized,
                         const float *x, const float *mean, const float *scale, size_t rows,
                         size_t cols) {
    const Task task = {
        .y = dscale, .a = dnormalized, .b = x, .mean = mean, .scale = scale, .cols = cols};
    run(compute, OP_NORM_SCALE_BACKWARD, &task, rows);
}

void norm_input_backward(const Compute *compute, float *dx, const float *dnormalized,
                         const float *dscale, const float *x, const float *mean, const float *scale,
                         size_t rows, size_t cols) {
    const Task task = {.y = dx,
                       .a = dnormalized,
                       .b = x,
                       .mean = mean,
                       .scale = scale,
                       .dscale = dscale,
                       .cols = cols};
    run(compute, OP_NORM_INPUT_BACKWARD, &task, rows);
}

void softmax_rows(const Compute *compute, float *y, const float *x, size_t rows, size_t cols) {
    const Task task = {.y = y, .a = x, .cols = cols};
    run(compute, OP_SOFTMAX, &task, rows);
}

void softmax_rows_backward(const Compute *compute, float *dx, const float *dy, const float *y,
                           size_t rows, size_t cols) {
    const Task task = {.y = dx, .a = dy, .b = y, .cols = cols};
    run(compute, OP_SOFTMAX_BACKWARD, &task, rows);
}

void cross_entropy_rows(const Compute *compute, double *loss, float *dlogits, const float *logits,
                        const int32_t *target, const float *weight, size_t rows, size_t cols) {
    const Task task = {
        .loss = loss, .y = dlogits, .a = logits, .target = target, .b = weight, .cols = cols};
    run(compute, OP_CROSS_ENTROPY, &task, rows);
}

/* ==== elements ==== */

void activate(const Compute *compute, Activation kind, float *y, const float *x, size_t n) {
    const Task task = {.y = y, .a = x, .kind = (int)kind};
    run(compute, OP_ACTIVATE, &task, n);
}

void activate_backward(const Compute *compute, Activation kind, float *dx, const float *dy,
                       const float *x, size_t n) {
    const Task task = {.y = dx, .a = dy, .b = x, .kind = (int)kind};
    run(compute, OP_ACTIVATE_BACKWARD, &task, n);
}

void softcap(const Compute *compute, float *y, const float *x, float cap, size_t n) {
    const Task task = {.y = y, .a = x, .s = {cap}};
    run(compute, OP_SOFTCAP, &task, n);
}

void softcap_backward(const Compute *compute, float *dx, const float *dy, const float *y, float cap,
                      size_t n) {
    const Task task = {.y = dx, .a = dy, .b = y, .s = {cap}};
    run(compute, OP_SOFTCAP_BACKWARD, &task, n);
}

void vector_add(const Compute *compute, float *y, const float *x, size_t n) {
    const Task task = {.y = y, .a = x};
    run(compute, OP_ADD, &task, n);
}

void vector_multiply(const Compute *compute, float *y, const float *a, const float *b, size_t n) {
    const Task task = {.y = y, .a = a, .b = b};
    run(compute, OP_MULTIPLY, &task, n);
}

void vector_scale(const Compute *compute, float *y, const float *x, float factor, size_t n) {
    const Task task = {.y = y, .a = x, .s = {factor}};
    run(compute, OP_SCALE, &task, n);
}

/* inv_freq = 1 / theta^(2 i / dim) and angle = position inv_freq, each operation in binary32. */
void rope_tables(float *cosine, float *sine, float theta, size_t dim, size_t first,
                 size_t positions) {
    for (size_t i = 0; i < dim / 2; i++) {
        const float inv_freq = 1.0f / pow_f32(theta, (float)(2 * i) / (float)dim);
        for (size_t r = 0; r < positions; r++) {
            const float angle = (float)(first + r) * inv_freq;
            cosine[r * (dim / 2) + i] = cos_f32(angle);
            sine[r * (dim / 2) + i] = sin_f32(angle);
        }
    }
}

void rope_rotate(const Compute *compute, float *y, const float *x, const float *cosine,
                 const float *sine, const uint32_t *table_row, size_t rows, size_t heads,
                 size_t d_head, size_t dim, bool backward) {
    const Task task = {.y = y,
                       .a = x,
                       .mean = cosine,
                       .scale = sine,
                       .table_row = table_row,
                       .heads = heads,
                       .cols = d_head,
                       .dim = dim,
                       .flag = backward};
    run(compute, OP_ROPE, &task, rows);
}

static double power(double base, uint64_t exponent) {
    double result = 1.0;
    for (; exponent != 0; exponent >>= 1, base *= base) {
        result = (exponent & 1) != 0 ? result * base : result;
    }
    return result;
}

void adamw_step(const Compute *compute, float *p, const float *g, float *m, float *v, size_t n,
                double lr, double beta1, double beta2, double eps, double weight_decay,
                uint64_t t) {
    const double step = lr / (1.0 - power(beta1, t)), root = sqrt(1.0 - power(beta2, t));
    const Task task = {.y = p,
                       .y2 = m,
                       .y3 = v,
                       .a = g,
                       .s = {(float)(1.0 - lr * weight_decay), (float)(1.0 - beta1), (float)beta2,
                             (float)(1.0 - beta2), (float)step, (float)root, (float)eps}};
    run(compute, OP_ADAMW, &task, n);
}

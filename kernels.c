/* kernels.c: what every number of refsae rests on. The
 * contract, every loop in plain C, then the choice of the instruction set and the threads. The
 * elementary functions stand in elementary.h.
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
 * Blocks, panels, thread counts and instruction sets then change nothing. Floor 5. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernelset.h"

/* ==== the loops, plain ====
 * What each operation is, one value after another. kernels_simd.c does the same side by side and
 * may be left out (make SIMD=no); a set that differs from this one in a bit is wrong. */

#if !defined(KERNEL_SET)
#define KERNEL_SET kernel_set_scalar
#define KERNEL_CHOICE /* the second half of this file too */
#endif

enum {
    CHAINS = 8
};

/* C(m, n) = the chain over k of fma(A(m, k), B(n, k), .), then + bias(n). A row of B is widened
 * BLOCK_K values at a time, and a chain that is cut there goes on through C; CHAINS rows of A have
 * theirs beside each other. */
static void product_block(const Product *p, size_t m0, size_t m1, size_t n0, size_t n1,
                          void *scratch, double *packing) {
    float *b = scratch;
    size_t k0 = 0;
    (void)packing; /* nothing is packed */
    do {           /* once for k = 0 too */
        const size_t depth = p->k - k0 < BLOCK_K ? p->k - k0 : BLOCK_K;
        for (size_t n = n0; n < n1; n++) {
            for (size_t k = 0; k < depth; k++) {
                b[k] = weight_read(p->b, (ptrdiff_t)n * p->b_row + (ptrdiff_t)(k0 + k) * p->b_col);
            }
            for (size_t m = m0; m < m1; m += CHAINS) {
                const size_t rows = m1 - m < CHAINS ? m1 - m : CHAINS;
                float acc[CHAINS] = {0};
                const float *a[CHAINS];
                for (size_t r = 0; r < CHAINS; r++) {
                    const size_t row = r < rows ? m + r : m; /* one that is not there: the first */
                    a[r] = p->a + (ptrdiff_t)row * p->a_row + (ptrdiff_t)k0 * p->a_col;
                    acc[r] = k0 == 0 && !p->resume ? 0.0f : p->c[row * p->ldc + n];
                }
                for (size_t k = 0; k < depth; k++) {
                    for (size_t r = 0; r < CHAINS; r++) {
                        acc[r] = fmaf(a[r][(ptrdiff_t)k * p->a_col], b[k], acc[r]);
                    }
                }
                for (size_t r = 0; r < rows; r++) {
                    p->c[(m + r) * p->ldc + n] = acc[r];
                }
            }
        }
        k0 += BLOCK_K;
    } while (k0 < p->k);
    for (size_t n = n0; p->bias.data != NULL && n < n1; n++) {
        const float bias = weight_read(p->bias, (ptrdiff_t)n);
        for (size_t m = m0; m < m1; m++) {
            p->c[m * p->ldc + n] += bias;
        }
    }
}

/* mean = sum x / n (LayerNorm; RMSNorm has none and centres by 0), binary64 for the variance;
 * scale = sqrt(sum (x - mean)^2 / n + eps) */
static void norm_scale_rows(const Task *t, size_t first, size_t last) {
    const size_t n = t->cols;
    for (size_t row = first; row < last; row++) {
        const float *x = t->a + row * n;
        double mean = 0.0, sum = 0.0;
        for (size_t i = 0; t->y != NULL && i < n; i++) {
            mean += (double)x[i];
        }
        mean /= (double)n;
        for (size_t i = 0; i < n; i++) {
            const double d = (double)x[i] - mean;
            sum += d * d;
        }
        if (t->y != NULL) {
            t->y[row] = (float)mean;
        }
        t->y2[row] = sqrtf((float)(sum / (double)n) + t->scalar);
    }
}

/* y = (x - mean) / scale */
static void norm_normalize_rows(const Task *t, size_t first, size_t last) {
    for (size_t row = first; row < last; row++) {
        const float mean = t->mean != NULL ? t->mean[row] : 0.0f;
        for (size_t i = row * t->cols; i < (row + 1) * t->cols; i++) {
            t->y[i] = (t->a[i] - mean) / t->scale[row];
        }
    }
}

/* y = x w + b; plus_one (Gemma): x (1 + w) */
static void norm_weight_rows(const Task *t, size_t first, size_t last) {
    for (size_t i = 0; i < t->cols; i++) {
        const float w = weight_read(t->w, (ptrdiff_t)i) + (t->flag ? 1.0f : 0.0f);
        const float b = t->bias.data != NULL ? weight_read(t->bias, (ptrdiff_t)i) : -0.0f;
        for (size_t row = first; row < last; row++) {
            t->y[row * t->cols + i] = t->a[row * t->cols + i] * w + b; /* x + -0 is x */
        }
    }
}

/* dscale = -sum dnormalized (x - mean) / scale^2 */
static void norm_scale_backward_rows(const Task *t, size_t first, size_t last) {
    for (size_t row = first; row < last; row++) {
        const float *dnormalized = t->a + row * t->cols, *x = t->b + row * t->cols;
        const double mean = t->mean != NULL ? (double)t->mean[row] : 0.0;
        const double scale = (double)t->scale[row];
        double sum = 0.0;
        for (size_t i = 0; i < t->cols; i++) {
            sum += (double)dnormalized[i] * ((double)x[i] - mean);
        }
        t->y[row] = (float)(-sum / (scale * scale));
    }
}

/* d = dnormalized / scale + (x - mean) (dscale / (n scale)); dx += d - mean(d), d if no mean */
static void norm_input_backward_rows(const Task *t, size_t first, size_t last) {
    const size_t n = t->cols;
    for (size_t row = first; row < last; row++) {
        const float *dnormalized = t->a + row * n, *x = t->b + row * n;
        float *dx = t->y + row * n;
        const float mean = t->mean != NULL ? t->mean[row] : 0.0f, scale = t->scale[row];
        const float factor = t->dscale[row] / ((float)n * scale);
        double sum = 0.0;
        for (size_t i = 0; t->mean != NULL && i < n; i++) {
            sum += (double)(dnormalized[i] / scale + (x[i] - mean) * factor);
        }
        const float centre = (float)(sum / (double)n);
        for (size_t i = 0; i < n; i++) {
            dx[i] += dnormalized[i] / scale + (x[i] - mean) * factor - centre;
        }
    }
}

/* The largest of n; NaN is passed over (it comes back through the exponentials). */
static float row_max(const float *x, size_t n) {
    float max = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

/* y = exp(x - max) / sum, the sum rounded to binary32 */
static void softmax_range(const Task *t, size_t first, size_t last) {
    for (size_t row = first; row < last; row++) {
        const float *x = t->a + row * t->cols, max = row_max(x, t->cols);
        float *y = t->y + row * t->cols;
        double sum = 0.0;
        for (size_t i = 0; i < t->cols; i++) {
            y[i] = exp_one(x[i] - max);
            sum += (double)y[i];
        }
        for (size_t i = 0; i < t->cols; i++) {
            y[i] = y[i] / (float)sum;
        }
    }
}

/* dx = y (dy - sum dy y), the sum rounded to binary32 */
static void softmax_backward_range(const Task *t, size_t first, size_t last) {
    for (size_t row = first; row < last; row++) {
        const float *dy = t->a + row * t->cols, *y = t->b + row * t->cols;
        double sum = 0.0;
        for (size_t i = 0; i < t->cols; i++) {
            sum += (double)dy[i] * (double)y[i];
        }
        for (size_t i = 0; i < t->cols; i++) {
            t->y[row * t->cols + i] = y[i] * (dy[i] - (float)sum);
        }
    }
}

/* loss = log(sum exp(x - max)) - (x[target] - max), in binary64 after the exponentials;
 * dlogits = weight (exp(x - max) / sum - [i = target]) */
static void cross_entropy_range(const Task *t, size_t first, size_t last) {
    for (size_t row = first; row < last; row++) {
        const float *x = t->a + row * t->cols, max = row_max(x, t->cols);
        const size_t target = (size_t)t->target[row];
        const double logit = (double)x[target] - (double)max;
        double sum = 0.0;
        for (size_t i = 0; i < t->cols; i++) {
            const float e = exp_one(x[i] - max);
            sum += (double)e;
            if (t->y != NULL) { /* which may be where x is */
                t->y[row * t->cols + i] = e;
            }
        }
        t->loss[row] = log_binary64(sum) - logit;
        for (size_t i = 0; t->y != NULL && i < t->cols; i++) {
            float *y = t->y + row * t->cols + i;
            *y = t->b[row] * (*y / (float)sum - (i == target ? 1.0f : 0.0f));
        }
    }
}

/* (a, b) turned by the angle: a cos - b sin, b cos + a sin, where a is a value of the first half of
 * the rotated dimensions and b the one `half` behind it; backward: by minus the angle. What is not
 * rotated is copied. */
static void rope_range(const Task *t, size_t first, size_t last) {
    const size_t half = t->dim / 2, d_head = t->cols, n = t->heads * d_head;
    for (size_t row = first; row < last; row++) {
        const size_t at = (t->table_row != NULL ? t->table_row[row] : row) * half;
        for (size_t head = 0; head < t->heads; head++) {
            const float *x = t->a + row * n + head * d_head;
            float *y = t->y + row * n + head * d_head;
            for (size_t i = 0; i < half; i++) {
                const float a = x[i], b = x[i + half], cosine = t->mean[at + i];
                const float sine = t->flag ? -t->scale[at + i] : t->scale[at + i];
                y[i] = a * cosine - b * sine;
                y[i + half] = b * cosine + a * sine;
            }
            for (size_t i = 2 * half; i < d_head; i++) {
                y[i] = x[i];
            }
        }
    }
}

static void activate_range(const Task *t, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        t->y[i] = activation(t->kind, t->a[i]);
    }
}

static void activate_backward_range(const Task *t, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        t->y[i] = activation_backward(t->kind, t->a[i], t->b[i]);
    }
}

/* y = cap tanh(x / cap) */
static void softcap_range(const Task *t, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        t->y[i] = t->scalar * tanh_one(t->a[i] / t->scalar);
    }
}

/* dx = dy (1 - (y / cap)^2) */
static void softcap_backward_range(const Task *t, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        const float th = t->b[i] / t->scalar;
        t->y[i] = t->a[i] * (1.0f - th * th);
    }
}

static void add_range(const Task *t, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        t->y[i] += t->a[i];
    }
}

static void multiply_range(const Task *t, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        t->y[i] = t->a[i] * t->b[i];
    }
}

static void scale_range(const Task *t, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        t->y[i] = t->a[i] * t->scalar;
    }
}

static void sparse_block(const SparseList *list, size_t c0, size_t c1, void *scratch) {
    (void)scratch;
    sparse_columns(list, c0, c1);
}

/* torch.optim.AdamW, one element: p <- p (1 - lr lambda); m <- m + (1 - beta1)(g - m);
 * v <- v beta2 + (1 - beta2) g^2; p <- p - lr m_hat / (sqrt(v_hat) + eps), where m_hat = m / (1 -
 * beta1^t) is formed by way of the step size and sqrt(v_hat) = sqrt(v) / sqrt(1 - beta2^t). */
static void adamw_range(const Task *t, size_t first, size_t last) {
    const AdamW *s = &t->adamw;
    float *p = t->y, *m = t->y2, *v = t->y3;
    for (size_t i = first; i < last; i++) {
        const float g = t->a[i], decayed = p[i] * s->decay;
        m[i] = m[i] + s->one_minus_beta1 * (g - m[i]);
        v[i] = v[i] * s->beta2 + s->one_minus_beta2 * g * g;
        const float sqrt_v_hat = sqrtf(v[i]) / s->sqrt_correction2;
        p[i] = decayed - s->lr_over_correction1 * m[i] / (sqrt_v_hat + s->eps);
    }
}

static void elementary_range(const Task *t, size_t first, size_t last) {
    static float (*const functions[FN_COUNT])(float) = {exp_one, log_one, tanh_one,
                                                        erf_one, sin_one, cos_one};
    for (size_t i = first; i < last; i++) {
        t->y[i] = functions[t->kind](t->a[i]);
    }
}

extern const KernelSet KERNEL_SET;
const KernelSet KERNEL_SET = {
    .name = "scalar",
    .panel = 1,
    .product = product_block,
    .sparse = sparse_block,
    .run = KERNEL_RUNS,
};

#ifdef KERNEL_CHOICE

/* ==== the instruction set ==== */

/* KERNELS_*: which sets the Makefile compiles beside this one. */
#if defined(KERNELS_X86_64)
extern const KernelSet kernel_set_scalar_fma;
#endif
#if defined(KERNELS_X86_64) && defined(KERNELS_SIMD)
extern const KernelSet kernel_set_avx2, kernel_set_avx512;
#endif
#if defined(KERNELS_AARCH64) && defined(KERNELS_SIMD)
extern const KernelSet kernel_set_neon;
#endif

const KernelSet *kernel_set_at(size_t index, bool *usable) {
    struct {
        const KernelSet *set;
        bool usable;
    } sets[4];
    size_t count = 0;
#if defined(KERNELS_X86_64)
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("fma");
#if defined(KERNELS_SIMD)
    const bool avx2 = fma && __builtin_cpu_supports("avx2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl");
    sets[count].usable = avx512;
    sets[count++].set = &kernel_set_avx512;
    sets[count].usable = avx2;
    sets[count++].set = &kernel_set_avx2;
#endif
    sets[count].usable = fma;
    sets[count++].set = &kernel_set_scalar_fma;
#elif defined(KERNELS_AARCH64) && defined(KERNELS_SIMD)
    sets[count].usable = true;
    sets[count++].set = &kernel_set_neon;
#endif
    sets[count].usable = true;
    sets[count++].set = &kernel_set_scalar;
    if (index >= count) {
        return NULL;
    }
    *usable = sets[index].usable;
    return sets[index].set;
}

size_t cache_size(int level) {
    long size = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    static const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE,
                                _SC_LEVEL3_CACHE_SIZE};
    size = sysconf(names[level - 1]);
#endif
    (void)level;
    return size > 0 ? (size_t)size : 0;
}

/* Rows of A whose block of BLOCK_K values lies in the second cache beside the packed panels of B,
 * if the machine says how large that is; else in 1 MiB. They change no bit. */
static size_t block_rows(void) {
    const size_t cache = cache_size(2), row = BLOCK_K * sizeof(float);
    const size_t whole = (cache > 0 ? cache : 1 << 20) / row;
    const size_t rows = whole / 8 * 7, beside = rows < BLOCK_N ? 0 : rows - BLOCK_N;
    const size_t even = beside / BLOCK_STEP * BLOCK_STEP;
    return even < 2 * BLOCK_STEP ? 2 * BLOCK_STEP : even > BLOCK_M ? BLOCK_M : even;
}

void compute_open_isa(Compute *compute, Arena *arena, int threads, const char *isa) {
    *compute = (Compute){.threads = 1};
    volatile double near_one = 1.0 + 0x1p-52;
    if (fma(near_one, near_one, -(1.0 + 0x1p-51)) != 0x1p-104) { /* as a libm without it may */
        fail(STATUS_RESOURCE, "this machine's fma rounds the product: build with make FMA=own");
    }
    bool usable, known = false;
    const KernelSet *set;
    for (size_t i = 0; compute->set == NULL && (set = kernel_set_at(i, &usable)) != NULL; i++) {
        const bool named = isa == NULL || strcmp(isa, set->name) == 0;
        known |= named;
        compute->set = named && usable ? set : NULL;
    }
    if (!known) {
        fail(STATUS_INPUT, "REFSAE_ISA: '%s' is none of the instruction sets of this build", isa);
    }
    if (compute->set == NULL) {
        fail(STATUS_INPUT, "REFSAE_ISA: this processor has no %s", isa);
    }
#ifdef _OPENMP
    compute->threads = threads > 0 ? threads : omp_get_max_threads();
#endif
    if (threads > 1024 || threads < 0) {
        fail(STATUS_INPUT, "threads: expected 0 to 1024, found %d", threads);
    }
    compute->block_rows = block_rows();
    compute->scratch = arena_alloc(arena, (size_t)compute->threads, SCRATCH_SIZE);
    compute->list = arena_alloc(arena, 1, sizeof *compute->list);
}

void compute_open(Compute *compute, Arena *arena, int threads) {
    const char *isa = getenv("REFSAE_ISA");
    compute_open_isa(compute, arena, threads, isa != NULL && *isa != '\0' ? isa : NULL);
}

const char *compute_isa(const Compute *compute) {
    return compute->set->name;
}

/* ==== threads ==== */

/* Work below these stays on the calling thread: waking and waiting for others takes 5 to 50
 * microseconds, and far more where other programs hold the processors while OpenMP spins. */
enum {
    WORTH_PRODUCTS = 1 << 21, /* multiply-adds */
    WORTH_ELEMENTS = 1 << 16
};

static void share_pieces(const Compute *compute, bool worth, size_t count,
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

static void run_pieces(const Compute *compute, Meter meter, bool worth, size_t count,
                       void (*body)(void *user, size_t i, int thread), void *user) {
    const double before = compute->meter != NULL ? progress_now() : 0.0;
    share_pieces(compute, worth, count, body, user);
    if (compute->meter != NULL) {
        compute->meter[meter] += progress_now() - before;
    }
}

static void count_product(const Compute *compute, double work, double bytes) {
    if (compute->meter != NULL) {
        compute->meter[METER_OPERATIONS] += 2.0 * work;
        compute->meter[METER_BYTES] += bytes;
    }
}

void compute_parallel(const Compute *compute, size_t count,
                      void (*body)(void *user, size_t i, int thread), void *user) {
    run_pieces(compute, METER_OTHER, true, count, body, user);
}

typedef struct RangeRun {
    const Task *task;
    void (*run)(const Task *task, size_t first, size_t last);
    size_t count, grain;
} RangeRun;

static void range_body(void *user, size_t i, int thread) {
    const RangeRun *range = user;
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
    RangeRun range = {task, compute->set->run[operation], count, grain};
    run_pieces(compute, METER_ELEMENTS, elements >= WORTH_ELEMENTS, (count + grain - 1) / grain,
               range_body, &range);
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
    return weight_read(weight, (ptrdiff_t)index);
}

void weight_widen(float *out, Weight weight, size_t first, size_t count) {
    for (size_t i = 0; i < count; i++) {
        out[i] = weight_read(weight, (ptrdiff_t)(first + i));
    }
}

/* ==== products ==== */

typedef struct ProductRun {
    const Compute *compute;
    double *packing; /* NULL: nobody asks */
    const Product *products;
    size_t pieces; /* jobs a product, at most: its blocks of rows times `splits` column blocks */
    size_t splits;
} ProductRun;

static size_t row_blocks(const Compute *compute, const Product *product) {
    const size_t rows = compute->block_rows;
    return product->m == 0 ? 1 : (product->m + rows - 1) / rows;
}

static void product_body(void *user, size_t i, int thread) {
    const ProductRun *job = user;
    const Product *p = &job->products[i / job->pieces];
    const KernelSet *set = job->compute->set;
    const size_t blocks = row_blocks(job->compute, p), piece = i % job->splits;
    const size_t even =
        (p->m + blocks - 1) / blocks; /* at most block_rows, a multiple of BLOCK_STEP */
    const size_t height = (even + BLOCK_STEP - 1) / BLOCK_STEP * BLOCK_STEP;
    const size_t m0 = i % job->pieces / job->splits * height;
    const size_t share = (p->n + job->splits - 1) / job->splits;
    const size_t width = (share + set->panel - 1) / set->panel * set->panel;
    const size_t n0 = piece * width;
    if (m0 >= p->m || n0 >= p->n) {
        return;
    }
    const size_t m1 = p->m - m0 < height ? p->m : m0 + height;
    const size_t n1 = p->n - n0 < width ? p->n : n0 + width;
    double packing = 0.0;
    set->product(p, m0, m1, n0, n1,
                 (unsigned char *)job->compute->scratch + (size_t)thread * SCRATCH_SIZE,
                 job->packing != NULL ? &packing : NULL);
    if (job->packing != NULL) {
#ifdef _OPENMP
#pragma omp atomic
#endif
        *job->packing += packing;
    }
}

/* Blocks of rows and of columns of all products, handed out to the threads: eight pieces a thread,
 * so that one which is held up does not hold up all; but where each thread has one, none narrower
 * than PIECE_WIDTH columns, or packing A, which each piece does for itself, would show. */
static void run_products(const Compute *compute, Meter meter, const Product *products,
                         size_t count) {
    enum {
        PIECE_WIDTH = 2304
    };
    const size_t threads = (size_t)compute->threads;
    size_t blocks = 1, widest = 0;
    double work = 0.0, bytes = 0.0;
    for (size_t i = 0; i < count; i++) {
        const double weights = (double)products[i].n * (double)products[i].k;
        work += (double)products[i].m * weights;
        bytes += weights * (double)dtype_size(products[i].b.dtype);
        blocks = size_larger(row_blocks(compute, &products[i]), blocks);
        widest = size_larger(products[i].n, widest);
    }
    const size_t jobs = size_larger(count * blocks, 1), most = widest / PIECE_WIDTH;
    size_t splits = threads == 1 ? 1 : (8 * threads + jobs - 1) / jobs;
    if (splits > most) {
        splits = size_larger(most / threads * threads, (threads + jobs - 1) / jobs);
    }
    double *packing = compute->meter != NULL ? &compute->meter[METER_PACKING] : NULL;
    ProductRun job = {compute, packing, products, blocks * splits, splits};
    count_product(compute, work, bytes);
    run_pieces(compute, meter, work >= (double)WORTH_PRODUCTS, count * job.pieces, product_body,
               &job);
}

/* Each element is one chain (product_block); which thread forms it is no matter. */
void product_run(const Compute *compute, const Product *products, size_t count) {
    run_products(compute, METER_PRODUCTS, products, count);
}

void product_run_heads(const Compute *compute, const Product *products, size_t count) {
    run_products(compute, METER_ATTENTION, products, count);
}

void product_run_one(const Compute *compute, Product product) {
    product_run(compute, &product, 1);
}

/* The active features of a row. */
static void list_row(void *user, size_t row, int thread) {
    SparseList *list = user;
    const float *f = list->part.f + row * list->f_row, *divide = list->part.divide;
    uint32_t *column = list->column + row * list->slot;
    float *value = list->value + row * list->slot;
    size_t n = 0;
    (void)thread;
    for (size_t j = 0; j < list->part.k; j++) { /* what is 0 the next one overwrites */
        column[n] = (uint32_t)j;
        value[n] = f[j];
        n += f[j] != 0.0f;
    }
    for (size_t i = 0; divide != NULL && i < n; i++) {
        value[i] /= divide[column[i]];
    }
    list->count[row] = n;
}

static void sparse_body(void *user, size_t i, int thread) {
    const Compute *compute = *(const Compute **)user;
    const size_t c0 = i * SPARSE_COLUMNS, left = compute->list->part.n - c0;
    compute->set->sparse(compute->list, c0, c0 + (left < SPARSE_COLUMNS ? left : SPARSE_COLUMNS),
                         (unsigned char *)compute->scratch + (size_t)thread * SCRATCH_SIZE);
}

void sparse_run(const Compute *compute, Sparse s) {
    SparseList *list = compute->list;
    for (size_t r0 = 0, rows; r0 < s.rows; r0 += rows) {
        rows = s.rows - r0 < LIST_ROWS ? s.rows - r0 : LIST_ROWS;
        list->slot = LIST_ENTRIES / rows < s.k ? LIST_ENTRIES / rows : s.k;
        list->f_row = s.k;
        for (size_t j0 = 0, k; j0 < s.k; j0 += k) {
            k = s.k - j0 < list->slot ? s.k - j0 : list->slot;
            list->part = (Sparse){.y = s.y + r0 * s.n,
                                  .f = s.f + r0 * s.k + j0,
                                  .divide = s.divide != NULL ? s.divide + j0 : NULL,
                                  .w = {weight_address(s.w, (ptrdiff_t)j0 * s.w_row), s.w.dtype},
                                  .w_row = s.w_row,
                                  .w_col = s.w_col,
                                  .rows = rows,
                                  .k = k,
                                  .n = s.n};
            run_pieces(compute, METER_SPARSE, rows * k >= WORTH_ELEMENTS, rows, list_row, list);
            list->entries = 0;
            for (size_t r = 0; r < rows; r++) {
                list->entries += list->count[r];
            }
            count_product(compute, (double)list->entries * (double)s.n, 0.0);
            run_pieces(compute, METER_SPARSE, list->entries * s.n >= WORTH_PRODUCTS,
                       (s.n + SPARSE_COLUMNS - 1) / SPARSE_COLUMNS, sparse_body, &compute);
        }
    }
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

Product product_nn(float *dx, const float *dy, const Matrix *matrix, size_t rows, bool resume) {
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

Product product_strided(Product product, size_t y_stride, size_t x_stride) {
    product.ldc = y_stride;
    product.a_row = (ptrdiff_t)x_stride;
    return product;
}

static Weight weight_from(Weight weight, size_t element) {
    if (weight.data != NULL) {
        weight.data = (const unsigned char *)weight.data + element * dtype_size(weight.dtype);
    }
    return weight;
}

Matrix matrix_rows(const Matrix *matrix, size_t first, size_t count) {
    Matrix part = *matrix;
    part.w = weight_from(matrix->w, first * (size_t)matrix->row);
    part.bias = weight_from(matrix->bias, first);
    part.out = count;
    return part;
}

Matrix matrix_cols(const Matrix *matrix, size_t first, size_t count) {
    Matrix part = *matrix;
    part.w = weight_from(matrix->w, first * (size_t)matrix->col);
    part.bias = (Weight){NULL, DTYPE_F32};
    part.in = count;
    return part;
}

static Matrix matrix_of(View view) {
    return (Matrix){.w = {view.data, DTYPE_F32},
                    .row = (ptrdiff_t)view.stride,
                    .col = 1,
                    .out = view.rows,
                    .in = view.cols};
}

Product view_nt(View y, View a, View b) {
    const Matrix matrix = matrix_of(b);
    return product_strided(product_nt(y.data, a.data, &matrix, y.rows), y.stride, a.stride);
}

Product view_nn(View y, View a, View b) {
    const Matrix matrix = matrix_of(b);
    return product_strided(product_nn(y.data, a.data, &matrix, y.rows, false), y.stride, a.stride);
}

Product view_tn(View y, View a, View b) {
    Product product = product_tn(y.data, a.data, b.data, a.rows, a.cols, b.cols);
    product.ldc = y.stride;
    product.a_col = (ptrdiff_t)a.stride;
    product.b_col = (ptrdiff_t)b.stride;
    return product;
}

/* ==== rows ==== */

void norm_scale(const Compute *compute, float *mean, float *scale, const float *x, float eps,
                size_t rows, size_t cols) {
    run(compute, OP_NORM_SCALE,
        &(Task){.y = mean, .y2 = scale, .a = x, .cols = cols, .scalar = eps}, rows);
}

void norm_normalize(const Compute *compute, float *y, const float *x, const float *mean,
                    const float *scale, size_t rows, size_t cols) {
    run(compute, OP_NORM_NORMALIZE,
        &(Task){.y = y, .a = x, .mean = mean, .scale = scale, .cols = cols}, rows);
}

void norm_weight(const Compute *compute, float *y, const float *x, Weight w, Weight b,
                 bool plus_one, size_t rows, size_t cols) {
    run(compute, OP_NORM_WEIGHT,
        &(Task){.y = y, .a = x, .w = w, .bias = b, .flag = plus_one, .cols = cols}, rows);
}

void norm_weight_backward(const Compute *compute, float *dnormalized, const float *dy, Weight w,
                          bool plus_one, size_t rows, size_t cols) {
    norm_weight(compute, dnormalized, dy, w, (Weight){NULL, DTYPE_F32}, plus_one, rows, cols);
}

void norm_scale_backward(const Compute *compute, float *dscale, const float *dnormalized,
                         const float *x, const float *mean, const float *scale, size_t rows,
                         size_t cols) {
    run(compute, OP_NORM_SCALE_BACKWARD,
        &(Task){.y = dscale, .a = dnormalized, .b = x, .mean = mean, .scale = scale, .cols = cols},
        rows);
}

void norm_input_backward(const Compute *compute, float *dx, const float *dnormalized,
                         const float *dscale, const float *x, const float *mean, const float *scale,
                         size_t rows, size_t cols) {
    run(compute, OP_NORM_INPUT_BACKWARD,
        &(Task){.y = dx,
                .a = dnormalized,
                .b = x,
                .mean = mean,
                .scale = scale,
                .dscale = dscale,
                .cols = cols},
        rows);
}

/* exp(x - max) / sum exp(x - max): softmax_range. */
void softmax_rows(const Compute *compute, float *y, const float *x, size_t rows, size_t cols) {
    run(compute, OP_SOFTMAX, &(Task){.y = y, .a = x, .cols = cols}, rows);
}

void softmax_rows_backward(const Compute *compute, float *dx, const float *dy, const float *y,
                           size_t rows, size_t cols) {
    run(compute, OP_SOFTMAX_BACKWARD, &(Task){.y = dx, .a = dy, .b = y, .cols = cols}, rows);
}

/* -log softmax(logits)[target] and its gradient: cross_entropy_range. */
void cross_entropy_rows(const Compute *compute, double *loss, float *dlogits, const float *logits,
                        const int32_t *target, const float *weight, size_t rows, size_t cols) {
    run(compute, OP_CROSS_ENTROPY,
        &(Task){
            .loss = loss, .y = dlogits, .a = logits, .target = target, .b = weight, .cols = cols},
        rows);
}

/* ==== elements ==== */

void activate(const Compute *compute, Activation kind, float *y, const float *x, size_t n) {
    run(compute, OP_ACTIVATE, &(Task){.y = y, .a = x, .kind = (int)kind}, n);
}

void activate_backward(const Compute *compute, Activation kind, float *dx, const float *dy,
                       const float *x, size_t n) {
    run(compute, OP_ACTIVATE_BACKWARD, &(Task){.y = dx, .a = dy, .b = x, .kind = (int)kind}, n);
}

void softcap(const Compute *compute, float *y, const float *x, float cap, size_t n) {
    run(compute, OP_SOFTCAP, &(Task){.y = y, .a = x, .scalar = cap}, n);
}

void softcap_backward(const Compute *compute, float *dx, const float *dy, const float *y, float cap,
                      size_t n) {
    run(compute, OP_SOFTCAP_BACKWARD, &(Task){.y = dx, .a = dy, .b = y, .scalar = cap}, n);
}

void vector_add(const Compute *compute, float *y, const float *x, size_t n) {
    run(compute, OP_ADD, &(Task){.y = y, .a = x}, n);
}

void vector_multiply(const Compute *compute, float *y, const float *a, const float *b, size_t n) {
    run(compute, OP_MULTIPLY, &(Task){.y = y, .a = a, .b = b}, n);
}

void vector_scale(const Compute *compute, float *y, const float *x, float factor, size_t n) {
    run(compute, OP_SCALE, &(Task){.y = y, .a = x, .scalar = factor}, n);
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
    run(compute, OP_ROPE,
        &(Task){.y = y,
                .a = x,
                .mean = cosine,
                .scale = sine,
                .table_row = table_row,
                .heads = heads,
                .cols = d_head,
                .dim = dim,
                .flag = backward},
        rows);
}

static double power(double base, uint64_t exponent) {
    double result = 1.0;
    for (; exponent != 0; exponent >>= 1, base *= base) {
        result = (exponent & 1) != 0 ? result * base : result;
    }
    return result;
}

/* Step t of torch.optim.AdamW, element by element: adamw_range. */
void adamw_step(const Compute *compute, float *p, const float *g, float *m, float *v, size_t n,
                double lr, double beta1, double beta2, double eps, double weight_decay,
                uint64_t t) {
    const AdamW scalars = {.decay = (float)(1.0 - lr * weight_decay),
                           .one_minus_beta1 = (float)(1.0 - beta1),
                           .beta2 = (float)beta2,
                           .one_minus_beta2 = (float)(1.0 - beta2),
                           .lr_over_correction1 = (float)(lr / (1.0 - power(beta1, t))),
                           .sqrt_correction2 = (float)sqrt(1.0 - power(beta2, t)),
                           .eps = (float)eps};
    run(compute, OP_ADAMW, &(Task){.y = p, .y2 = m, .y3 = v, .a = g, .adamw = scalars}, n);
}

bool all_finite(const float *x, size_t n) {
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
    }
    return finite;
}

#endif

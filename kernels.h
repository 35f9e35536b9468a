/* kernels.h: all arithmetic. The contract that fixes every bit stands at the top of kernels.c; what
 * is declared here is called, never repeated, elsewhere. Floor 5. */
#ifndef REFSAE_KERNELS_H
#define REFSAE_KERNELS_H

#include "base.h"
#include "tensor.h"

/* What kernels did, for `bench`: the operations of products (a multiply-add is two) and the bytes
 * of B that they read at least; seconds in products with weights, in attention's, in products by
 * active features, in loops over elements and rows, and in what else is shared by threads; and, of
 * products, all threads' seconds of packing. */
typedef enum Meter {
    METER_OPERATIONS,
    METER_BYTES,
    METER_PRODUCTS,
    METER_ATTENTION,
    METER_SPARSE,
    METER_ELEMENTS,
    METER_OTHER,
    METER_PACKING,
    METERS
} Meter;

/* How this run computes: instruction set, threads, scratch; results do not depend on it. */
typedef struct Compute {
    int threads;
    const struct KernelSet
        *set; /* chosen once from the processor; REFSAE_ISA=scalar|avx2|avx512|neon overrides */
    size_t block_rows;       /* of a product's A, packed at a time: what the second cache holds */
    void *scratch;           /* packing buffers, a fixed size a thread */
    struct SparseList *list; /* of a sparse product */
    double *meter;           /* [METERS], added to; NULL: nobody asks */
} Compute;

/* threads 0: as many as cores (1 without OpenMP). Unknown or missing ISA: STATUS_INPUT. */
void compute_open(Compute *compute, Arena *arena, int threads);
const char *compute_isa(const Compute *compute);
/* Bytes of the data cache of level 1, 2 or 3; 0: the system does not say. */
size_t cache_size(int level);
/* Calls body(user, i, thread) for i in [0, count), handed out by a counter; none share output. */
void compute_parallel(const Compute *compute, size_t count,
                      void (*body)(void *user, size_t i, int thread), void *user);

/* Two standard normals from two uniforms (Box and Muller): radius sqrt(-2 ln(1 - u1)) times the
 * cosine and the sine of 2 pi u2, in binary32. */
void random_normals(Random *random, float draw[2]);

/* ---- weights as stored ---- */
typedef struct Weight {
    const void *data; /* any alignment; NULL: absent (a bias that the model has not) */
    Dtype dtype;      /* F32, BF16, F16 */
} Weight;

float weight_at(Weight weight, size_t index);
void weight_widen(float *out, Weight weight, size_t first, size_t count); /* exact */

/* ---- products ----
 * C[m * ldc + n] = sum_k A(m, k) B(n, k) (+ bias[n]) with A(m, k) = a[m * a_row + k * a_col] and
 * B(n, k) = b[n * b_row + k * b_col], strides in elements. W stored [out, in]: b_row = in, b_col =
 * 1; stored [in, out] (Conv1D): b_row = 1, b_col = out; backward dX = dY W swaps the two. resume:
 * the chain starts at the value in C, not at +0 (gradients summed over examples). */
typedef struct Product {
    float *c;
    size_t ldc;
    const float *a;
    ptrdiff_t a_row, a_col;
    Weight b;
    ptrdiff_t b_row, b_col;
    Weight bias;
    size_t m, n, k;
    bool resume;
} Product;

/* Runs `count` products, which write to different places. Threads share blocks of all of them. The
 * second is attention's, for bench to tell apart; the third runs one alone. */
void product_run(const Compute *compute, const Product *products, size_t count);
void product_run_heads(const Compute *compute, const Product *products, size_t count);
void product_run_one(const Compute *compute, Product product);

/* y[rows, n] += F W over what is not 0 in F [rows, k]: an element is the chain of fmaf over that,
 * in rising order. divide [k]: F(r, j) / divide(j) stands for F(r, j); or NULL.
 * W(j, c) = w[j * w_row + c * w_col]. */
typedef struct Sparse {
    float *y;
    const float *f, *divide;
    Weight w;
    ptrdiff_t w_row, w_col;
    size_t rows, k, n;
} Sparse;

void sparse_run(const Compute *compute, Sparse sparse);

/* W [out, in] where it lies: W(o, i) = w[o * row + i * col], strides in elements. Both Linear's
 * [out, in] and Conv1D's [in, out] are read as they are. bias [out] may be absent. */
typedef struct Matrix {
    Weight w, bias;
    ptrdiff_t row, col;
    size_t out, in;
} Matrix;

/* y[rows, out] = x[rows, in] W^T + bias */
Product product_nt(float *y, const float *x, const Matrix *matrix, size_t rows);
/* dx[rows, in] = dy[rows, out] W (resume: added to dx) */
Product product_nn(float *dx, const float *dy, const Matrix *matrix, size_t rows, bool resume);
/* dw[out, in] += dy[rows, out]^T x[rows, in] */
Product product_tn(float *dw, const float *dy, const float *x, size_t rows, size_t out, size_t in);

/* y's and x's rows lie so many elements apart: one head's among those of all heads. */
Product product_strided(Product product, size_t y_stride, size_t x_stride);

/* Outputs first .. first + count - 1 of a matrix; and its inputs, without the bias. */
Matrix matrix_rows(const Matrix *matrix, size_t first, size_t count);
Matrix matrix_cols(const Matrix *matrix, size_t first, size_t count);

/* A matrix of activations in memory: element (r, c) is data[r * stride + c]. */
typedef struct View {
    float *data;
    size_t rows, cols, stride;
} View;

Product view_nt(View y, View a, View b); /* y = a b^T */
Product view_nn(View y, View a, View b); /* y = a b */
Product view_tn(View y, View a, View b); /* y += a^T b */

/* ---- rows: x[rows, cols] contiguous. Sums in binary64, ascending, rounded once ---- */

/* LayerNorm's w and b; RMSNorm has no b. */
typedef struct Norm {
    Weight w, b;
} Norm;

/* mean[rows] (NULL: RMSNorm, no centring) and scale[rows] = sqrt(variance + eps). */
void norm_scale(const Compute *compute, float *mean, float *scale, const float *x, float eps,
                size_t rows, size_t cols);
/* y = (x - mean) / scale; mean NULL: x / scale. */
void norm_normalize(const Compute *compute, float *y, const float *x, const float *mean,
                    const float *scale, size_t rows, size_t cols);
/* y = x * w + b; plus_one: x * (1 + w) (Gemma). b absent: no bias. */
void norm_weight(const Compute *compute, float *y, const float *x, Weight w, Weight b,
                 bool plus_one, size_t rows, size_t cols);
/* dnormalized = dy * w (or (1 + w)). */
void norm_weight_backward(const Compute *compute, float *dnormalized, const float *dy, Weight w,
                          bool plus_one, size_t rows, size_t cols);
/* dscale[rows] = -sum dnormalized * (x - mean) / scale^2. */
void norm_scale_backward(const Compute *compute, float *dscale, const float *dnormalized,
                         const float *x, const float *mean, const float *scale, size_t rows,
                         size_t cols);
/* dx += through x / scale, through scale, and (mean not NULL) through the centring. */
void norm_input_backward(const Compute *compute, float *dx, const float *dnormalized,
                         const float *dscale, const float *x, const float *mean, const float *scale,
                         size_t rows, size_t cols);

void softmax_rows(const Compute *compute, float *y, const float *x, size_t rows,
                  size_t cols); /* y may be x; -inf gives +0 */
void softmax_rows_backward(const Compute *compute, float *dx, const float *dy, const float *y,
                           size_t rows, size_t cols); /* dx = y (dy - sum dy y); dx may be dy */

/* Cross-entropy of row r against target[r]: loss[r] (binary64: log sum exp - logit); and, dlogits
 * not NULL (may be logits), dlogits = weight[r] (softmax - one-hot). */
void cross_entropy_rows(const Compute *compute, double *loss, float *dlogits, const float *logits,
                        const int32_t *target, const float *weight, size_t rows, size_t cols);

/* ---- elements ---- */
typedef enum Activation {
    ACT_GELU_TANH,
    ACT_GELU_ERF,
    ACT_QUICK_GELU,
    ACT_RELU,
    ACT_SILU
} Activation;

void activate(const Compute *compute, Activation kind, float *y, const float *x, size_t n);
void activate_backward(const Compute *compute, Activation kind, float *dx, const float *dy,
                       const float *x, size_t n); /* dx = dy act'(x); dx may be dy */
void softcap(const Compute *compute, float *y, const float *x, float cap,
             size_t n); /* cap tanh(x / cap) */
void softcap_backward(const Compute *compute, float *dx, const float *dy, const float *y, float cap,
                      size_t n); /* dy (1 - (y / cap)^2), y the capped value */
void vector_add(const Compute *compute, float *y, const float *x, size_t n); /* y += x */
void vector_multiply(const Compute *compute, float *y, const float *a, const float *b,
                     size_t n); /* y = a b */
void vector_scale(const Compute *compute, float *y, const float *x, float factor, size_t n);

/* RoPE, halves layout, on the first `dim` of each head. Tables cosine/sine [positions, dim / 2] for
 * positions first .. first + positions - 1, with angles formed in binary32 as Hugging Face forms
 * them: inv_freq = 1 / theta^(2i / dim); angle = position * inv_freq. */
void rope_tables(float *cosine, float *sine, float theta, size_t dim, size_t first,
                 size_t positions);
/* y[rows, heads, d_head] from x, row r at table row `table_row[r]` (NULL: r); backward: the
 * transposed rotation. y may be x. */
void rope_rotate(const Compute *compute, float *y, const float *x, const float *cosine,
                 const float *sine, const uint32_t *table_row, size_t rows, size_t heads,
                 size_t d_head, size_t dim, bool backward);

/* torch.optim.AdamW's step t (from 1), element by element in binary32 with the scalars formed in
 * binary64. */
void adamw_step(const Compute *compute, float *p, const float *g, float *m, float *v, size_t n,
                double lr, double beta1, double beta2, double eps, double weight_decay, uint64_t t);

bool all_finite(const float *x, size_t n);

#endif

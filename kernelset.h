/* kernelset.h: what kernels.c and kernels_simd.c agree on; beside them only `bench` looks at it.
 * kernels_simd.c is compiled once for each instruction set and exports one KernelSet from each.
 * Floor 5. */
#ifndef REFSAE_KERNELSET_H
#define REFSAE_KERNELSET_H

#include "elementary.h"
#include "kernels.h"

/* Operations over a range [first, last) of rows or of elements; Task names their operands. */
typedef enum Operation {
    OP_NORM_SCALE,
    OP_NORM_NORMALIZE,
    OP_NORM_WEIGHT,
    OP_NORM_SCALE_BACKWARD,
    OP_NORM_INPUT_BACKWARD,
    OP_SOFTMAX,
    OP_SOFTMAX_BACKWARD,
    OP_CROSS_ENTROPY,
    OP_ROPE,
    OP_ACTIVATE, /* from here on: elements */
    OP_ACTIVATE_BACKWARD,
    OP_SOFTCAP,
    OP_SOFTCAP_BACKWARD,
    OP_ADD,
    OP_MULTIPLY,
    OP_SCALE,
    OP_ADAMW,
    OP_ELEMENTARY, /* y = f(a), f by `kind`: for `make prove`, tests and bench */
    OP_COUNT
} Operation;

typedef enum Elementary {
    FN_EXP,
    FN_LOG,
    FN_TANH,
    FN_ERF,
    FN_SIN,
    FN_COS,
    FN_COUNT
} Elementary;

/* torch.optim.AdamW's scalars, formed in binary64 and rounded. */
typedef struct AdamW {
    float decay, one_minus_beta1, beta2, one_minus_beta2; /* decay: 1 - lr lambda */
    float lr_over_correction1, sqrt_correction2, eps;     /* corrections: 1 - beta^t */
} AdamW;

typedef struct Task {
    float *y, *y2, *y3;
    double *loss;
    const float *a, *b, *mean, *scale, *dscale;
    const uint32_t *table_row;
    ptrdiff_t w_row, w_col;
    size_t rows;
    const int32_t *target;
    Weight w, bias;
    size_t cols, heads, dim;
    int kind;     /* Activation, Elementary */
    bool flag;    /* plus_one, backward */
    float scalar; /* eps, cap, factor */
    AdamW adamw;
} Task;

/* Rows (at most: see block_rows) and k of A that are packed at a time; rows are split evenly in
 * multiples of BLOCK_STEP, which every tile divides. A longer k would spare passes over C; then
 * panels and block leave the caches. BLOCK_N columns of B (at most) are packed together, so that
 * what is read of a row is several lines of memory. */
enum {
    BLOCK_M = 560,
    BLOCK_K = 384,
    BLOCK_N = 192,
    BLOCK_STEP = 56
};

/* A sparse product's features are taken few at a time, as many as the list has room for in all
 * rows, and of their W SPARSE_COLUMNS columns at a time, so that these stay in a cache. */
enum {
    SPARSE_COLUMNS = 64,
    LIST_ROWS = 1024,
    LIST_ENTRIES = 1 << 18
};

typedef struct SparseList {
    Sparse part;  /* f and w from its first feature on; k: its features */
    size_t f_row; /* from one row of f to the next */
    size_t slot;  /* row r has count[r] entries from column[r * slot], value[r * slot] on */
    size_t entries;
    size_t count[LIST_ROWS];
    uint32_t column[LIST_ENTRIES];
    float value[LIST_ENTRIES];
} SparseList;

typedef struct KernelSet {
    const char *name;
    size_t panel; /* columns of one packed panel of B */
    void (*run[OP_COUNT])(const Task *task, size_t first, size_t last);
    /* C[m0:m1, n0:n1]; n0 a multiple of `panel`; scratch of SCRATCH_SIZE bytes, 64-byte aligned;
     * seconds of packing are added to *packing, unless NULL. */
    void (*product)(const Product *product, size_t m0, size_t m1, size_t n0, size_t n1,
                    void *scratch, double *packing);
    void (*sparse)(const SparseList *list, size_t c0, size_t c1, void *scratch); /* c0 <= c < c1 */
    /* For bench: multiply-adds in registers and reads of memory, as fast as they go. The result is
     * of no use. NULL in the plain set. */
    float (*limit_multiply)(size_t rounds, size_t *operations);
    float (*limit_read)(const void *data, size_t size);
} KernelSet;

/* Exact. A subnormal half is a subnormal float times 2^112; the multiplication makes both right. */
INLINE float widen_f16(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    const float magnitude = float_of(rest << 13) * 0x1p112f;
    return float_of(sign | (rest >= 0x7c00u ? rest << 13 | 0x7f800000u : bits_of(magnitude)));
}

INLINE float widen_bf16(uint32_t bits) {
    return float_of(bits << 16);
}

INLINE const unsigned char *weight_address(Weight w, ptrdiff_t index) {
    return (const unsigned char *)w.data + index * (w.dtype == DTYPE_F32 ? 4 : 2);
}

INLINE float weight_read(Weight w, ptrdiff_t index) {
    const unsigned char *p = weight_address(w, index);
    if (w.dtype == DTYPE_F32) {
        float x;
        memcpy(&x, p, sizeof x);
        return x;
    }
    uint16_t x;
    memcpy(&x, p, sizeof x);
    return w.dtype == DTYPE_BF16 ? widen_bf16(x) : widen_f16(x);
}

INLINE void sparse_columns(const SparseList *list, size_t c0, size_t c1) {
    const Sparse *s = &list->part;
    for (size_t row = 0; row < s->rows; row++) {
        const size_t first = row * list->slot;
        for (size_t c = c0; c < c1; c++) {
            float *y = s->y + row * s->n + c;
            for (size_t i = first; i < first + list->count[row]; i++) {
                const ptrdiff_t j = (ptrdiff_t)list->column[i] * s->w_row;
                *y = fmaf(list->value[i], weight_read(s->w, j + (ptrdiff_t)c * s->w_col), *y);
            }
        }
    }
}

/* tests/bits.sh spoils a bit here, which selftest must find. */
#ifndef REFSAE_WRONG_BIT
#define REFSAE_WRONG_BIT
#endif

/* ---- activations: constants and order of operations as in Hugging Face's modules ---- */
static const float GELU_BETA = 0.79788456f; /* sqrt(2 / pi) */
static const float GELU_KAPPA = 0.044715f;
static const float ROOT_TWO = 1.41421356f REFSAE_WRONG_BIT;
static const float ROOT_TWO_PI = 2.50662827f;

INLINE float sigmoid(float x) {
    return 1.0f / (1.0f + exp_one(-x));
}

INLINE float activation(int kind, float x) {
    switch (kind) {
    case ACT_GELU_TANH: /* 0.5 x (1 + tanh(beta (x + kappa x^3))) */
        return 0.5f * x * (1.0f + tanh_one(GELU_BETA * (x + GELU_KAPPA * (x * x * x))));
    case ACT_GELU_ERF: /* x 0.5 (1 + erf(x / sqrt 2)) */
        return x * 0.5f * (1.0f + erf_one(x / ROOT_TWO));
    case ACT_QUICK_GELU: /* x sigmoid(1.702 x) */
        return x * sigmoid(1.702f * x);
    case ACT_SILU: /* x / (1 + exp(-x)) */
        return x / (1.0f + exp_one(-x));
    default: /* ReLU; NaN stays */
        return x < 0.0f ? 0.0f : x;
    }
}

/* dy act'(x) */
INLINE float activation_backward(int kind, float dy, float x) {
    float th, s;
    switch (kind) {
    case ACT_GELU_TANH: /* 0.5 (1 + th) + 0.5 x (1 - th^2) beta (1 + 3 kappa x^2) */
        th = tanh_one(GELU_BETA * (x + GELU_KAPPA * (x * x * x)));
        return dy * (0.5f * (1.0f + th) + 0.5f * x * (1.0f - th * th) *
                                              (GELU_BETA * (1.0f + 3.0f * GELU_KAPPA * (x * x))));
    case ACT_GELU_ERF: /* 0.5 (1 + erf(x / sqrt 2)) + x exp(-x^2 / 2) / sqrt(2 pi) */
        return dy * (0.5f * (1.0f + erf_one(x / ROOT_TWO)) +
                     x * (exp_one(-0.5f * (x * x)) / ROOT_TWO_PI));
    case ACT_QUICK_GELU: /* s + x 1.702 s (1 - s) */
        s = sigmoid(1.702f * x);
        return dy * (s + x * (1.702f * (s * (1.0f - s))));
    case ACT_SILU: /* s (1 + x (1 - s)) */
        s = sigmoid(x);
        return dy * (s * (1.0f + x * (1.0f - s)));
    default: /* ReLU */
        return x > 0.0f ? dy : 0.0f;
    }
}

/* The operations of a set, which kernels.c and kernels_simd.c define under the same names. */
#define KERNEL_RUNS                                                                                \
    {[OP_NORM_SCALE] = norm_scale_rows,                                                            \
     [OP_NORM_NORMALIZE] = norm_normalize_rows,                                                    \
     [OP_NORM_WEIGHT] = norm_weight_rows,                                                          \
     [OP_NORM_SCALE_BACKWARD] = norm_scale_backward_rows,                                          \
     [OP_NORM_INPUT_BACKWARD] = norm_input_backward_rows,                                          \
     [OP_SOFTMAX] = softmax_range,                                                                 \
     [OP_SOFTMAX_BACKWARD] = softmax_backward_range,                                               \
     [OP_CROSS_ENTROPY] = cross_entropy_range,                                                     \
     [OP_ROPE] = rope_range,                                                                       \
     [OP_ACTIVATE] = activate_range,                                                               \
     [OP_ACTIVATE_BACKWARD] = activate_backward_range,                                             \
     [OP_SOFTCAP] = softcap_range,                                                                 \
     [OP_SOFTCAP_BACKWARD] = softcap_backward_range,                                               \
     [OP_ADD] = add_range,                                                                         \
     [OP_MULTIPLY] = multiply_range,                                                               \
     [OP_SCALE] = scale_range,                                                                     \
     [OP_ADAMW] = adamw_range,                                                                     \
     [OP_ELEMENTARY] = elementary_range}

#ifdef KERNELS_SIMD
enum {
    SCRATCH_SIZE = 64 + (BLOCK_M + BLOCK_N) * BLOCK_K * 4
};
#else
enum {
    SCRATCH_SIZE = BLOCK_K * 4 /* a row of B */
};
#endif

/* Every set of this build, best first; `usable`: this processor has it. */
const KernelSet *kernel_set_at(size_t index, bool *usable); /* NULL: no more */
void compute_open_isa(Compute *compute, Arena *arena, int threads,
                      const char *isa); /* NULL: the best */

#endif

/* kernelset.h: what kernels.c and kernels_simd.c agree on; nobody else includes it. kernels_simd.c
 * is compiled once for each instruction set and exports one KernelSet from each. Floor 0. */
#ifndef REFSAE_KERNELSET_H
#define REFSAE_KERNELSET_H

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

typedef struct Task {
    float *y, *y2, *y3;
    double *loss;
    const float *a, *b, *mean, *scale, *dscale;
    const uint32_t *table_row;
    const int32_t *target;
    Weight w, bias;
    size_t cols, heads, dim;
    int kind;  /* Activation, Elementary */
    bool flag; /* plus_one, backward */
    float s[7];
} Task;

/* Rows and k of A that are packed at a time; rows are split evenly in multiples of BLOCK_STEP,
 * which every tile divides. Measured with C = [512, 9216] on Zen 4: a shorter k costs more in
 * passes over C than a panel gains by staying in the first cache. */
enum {
    BLOCK_M = 560,
    BLOCK_K = 1152,
    BLOCK_STEP = 56
};

typedef struct KernelSet {
    const char *name;
    size_t panel; /* columns of one packed panel of B */
    void (*run[OP_COUNT])(const Task *task, size_t first, size_t last);
    /* C[m0:m1, n0:n1]; n0 a multiple of `panel`; scratch of SCRATCH_SIZE bytes, 64-byte aligned. */
    void (*product)(const Product *product, size_t m0, size_t m1, size_t n0, size_t n1,
                    void *scratch);
    /* For bench: multiply-adds in registers and reads of memory, as fast as they go. The result is
     * of no use. */
    float (*limit_multiply)(size_t rounds, size_t *operations);
    float (*limit_read)(const void *data, size_t size);
} KernelSet;

enum {
    SCRATCH_SIZE = 64 + (BLOCK_M * BLOCK_K + BLOCK_K * 64) * 4
};

/* Every set of this build, best first; `usable`: this processor has it. */
const KernelSet *kernel_set_at(size_t index, bool *usable); /* NULL: no more */
void compute_open_isa(Compute *compute, Arena *arena, int threads, const char *isa); /* NULL: the best */

#endif

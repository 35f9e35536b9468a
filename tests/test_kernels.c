/* The arithmetic contract: every instruction set of this machine and every thread count gives the
 * bits of the plain loop; and the formulas: against binary64, central differences and torch. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernelset.h"

static Random random_state;

static float uniform(float low, float high) {
    return low + (high - low) * random_uniform(&random_state);
}

static size_t below(size_t bound) {
    return (size_t)random_below(&random_state, bound);
}

/* Mostly ordinary numbers; one in `rare` is a zero, subnormal, huge, infinite or NaN (0: none). */
static float value(size_t rare) {
    static const float odd[] = {0.0f,   -0.0f,    1e-45f,    -1e-40f, 3e38f,
                                -3e38f, INFINITY, -INFINITY, NAN};
    if (rare != 0 && below(rare) == 0) {
        return odd[below(sizeof odd / sizeof *odd)];
    }
    return uniform(-3.0f, 3.0f);
}

static float *values(size_t n, size_t rare) {
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = value(rare);
    }
    return x;
}

static bool same(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) {
            return false;
        }
    }
    return true;
}

/* Every usable set on 1, 2 and 3 threads; the first is the plain scalar form. false: no more. */
static bool next_compute(Compute *compute, size_t *at) {
    const KernelSet *set;
    bool usable;
    size_t sets = 0;
    while (kernel_set_at(sets, &usable) != NULL) {
        sets++;
    }
    for (;; (*at)++) {
        if (*at / 3 == sets) {
            return false;
        }
        set = kernel_set_at(sets - 1 - *at / 3, &usable);
        if (usable) {
            break;
        }
    }
    compute_open_isa(compute, arena_new(), (int)(*at % 3) + 1, "scalar");
    compute->threads = (int)(*at % 3) + 1; /* without OpenMP the same pieces, one after another */
    compute->set = set; /* "scalar" names two sets where it comes with and without fma */
    (*at)++;
    return true;
}

/* ==== products ==== */

typedef struct Case {
    Product p;
    float *a, *c, *right, *before;
    unsigned char *b, *bias;
} Case;

static unsigned char *weights(size_t n, Dtype dtype, size_t rare) {
    unsigned char *bytes = malloc(4 * n + 8), *p = bytes + 1; /* never aligned */
    for (size_t i = 0; i < n; i++) {
        const float x = value(rare);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        if (dtype == DTYPE_F32) {
            memcpy(p + 4 * i, &bits, 4);
            continue;
        }
        uint16_t half = (uint16_t)(bits >> 16);
        if (dtype == DTYPE_F16) { /* any half but, unless asked for, infinities and NaN */
            half = (uint16_t)below(65536);
            half = rare == 0 && (half & 0x7c00) == 0x7c00 ? (uint16_t)(half & 0xbfff) : half;
        }
        memcpy(p + 2 * i, &half, 2);
    }
    return bytes;
}

static void strides(ptrdiff_t *row, ptrdiff_t *col, size_t rows, size_t cols, size_t layout) {
    const ptrdiff_t gap = (ptrdiff_t)below(3);
    *row = layout == 0 ? (ptrdiff_t)cols + gap : layout == 1 ? 1 : 2 * (ptrdiff_t)cols + gap;
    *col = layout == 0 ? 1 : layout == 1 ? (ptrdiff_t)rows + gap : 2;
}

static size_t span(ptrdiff_t row, ptrdiff_t col, size_t rows, size_t cols) {
    return (size_t)row * rows + (size_t)col * cols + 1;
}

static Case make_case(size_t m, size_t n, size_t k, size_t rare) {
    Case c;
    Product p = {.m = m,
                 .n = n,
                 .k = k,
                 .ldc = n + below(3),
                 .resume = below(3) == 0,
                 .b = {.dtype = (Dtype)below(3)}};
    strides(&p.a_row, &p.a_col, m, k, below(3));
    strides(&p.b_row, &p.b_col, n, k, below(3));
    c.a = values(span(p.a_row, p.a_col, m, k), rare);
    c.b = weights(span(p.b_row, p.b_col, n, k), p.b.dtype, rare);
    p.bias.dtype = (Dtype)below(3);
    c.bias = weights(n, p.bias.dtype, rare);
    p.bias.data = below(2) == 0 ? c.bias + 1 : NULL;
    p.b.data = c.b + 1;
    p.a = c.a;
    c.before = values(m * p.ldc, rare);
    c.c = malloc((m * p.ldc + 1) * sizeof(float));
    c.right = malloc((m * p.ldc + 1) * sizeof(float));
    memcpy(c.right, c.before, m * p.ldc * sizeof(float));
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            float acc = p.resume ? c.before[i * p.ldc + j] : 0.0f;
            for (size_t q = 0; q < k; q++) {
                const size_t at_b = j * (size_t)p.b_row + q * (size_t)p.b_col;
                acc =
                    fmaf(p.a[i * (size_t)p.a_row + q * (size_t)p.a_col], weight_at(p.b, at_b), acc);
            }
            c.right[i * p.ldc + j] = p.bias.data != NULL ? acc + weight_at(p.bias, j) : acc;
        }
    }
    p.c = c.c;
    c.p = p;
    return c;
}

static void free_case(Case *c) {
    free(c->a);
    free(c->b);
    free(c->bias);
    free(c->before);
    free(c->c);
    free(c->right);
}

/* `count` products in one call. */
static void check_products(Case *cases, size_t count) {
    Compute compute;
    Product *products = malloc(count * sizeof *products);
    for (size_t at = 0; next_compute(&compute, &at);) {
        for (size_t i = 0; i < count; i++) {
            products[i] = cases[i].p;
            memcpy(cases[i].c, cases[i].before, products[i].m * products[i].ldc * sizeof(float));
        }
        product_run(&compute, products, count);
        for (size_t i = 0; i < count; i++) { /* what lies between n and ldc must stay, too */
            const Product *p = &products[i];
            cr_assert(
                same(cases[i].c, cases[i].right, p->m * p->ldc),
                "%s, %d threads: m %zu n %zu k %zu, dtype %d, a %td %td, b %td %td, resume %d",
                compute_isa(&compute), compute.threads, p->m, p->n, p->k, (int)p->b.dtype, p->a_row,
                p->a_col, p->b_row, p->b_col, p->resume);
        }
    }
    free(products);
}

Test(kernels, products_are_the_chain) {
    random_state = random_start(1, RANDOM_TEST);
    for (int i = 0; i < 150; i++) {
        Case c = make_case(1 + below(i % 3 == 0 ? 5 : 40), 1 + below(i % 5 == 0 ? 400 : 70),
                           below(i % 7 == 0 ? 300 : 70), i % 4 == 0 ? 50 : 0);
        check_products(&c, 1);
        free_case(&c);
    }
}

Test(kernels, products_larger_than_a_block) {
    random_state = random_start(2, RANDOM_TEST);
    const size_t shapes[][3] = {
        {3 * BLOCK_M, 5, 7},   {BLOCK_M + 1, 33, 9}, {3, 20, 2 * BLOCK_K + 3},
        {17, 37, BLOCK_K + 1}, {9, 1000, 40},        {2, 37000, 3}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int again = 0; again < 4; again++) {
            Case c = make_case(shapes[i][0], shapes[i][1], shapes[i][2], 0);
            check_products(&c, 1);
            free_case(&c);
        }
    }
}

Test(kernels, many_products_in_one_call) {
    random_state = random_start(3, RANDOM_TEST);
    Case cases[24];
    for (size_t i = 0; i < 24; i++) {
        cases[i] = make_case(below(30), below(30), below(30), 0);
    }
    check_products(cases, 24);
    check_products(cases, 0);
    for (size_t i = 0; i < 24; i++) {
        free_case(&cases[i]);
    }
}

/* Rows of W in any dtype and layout, columns that end within a block, rows without entries; few
 * rows, whose W is not worth packing, and more rows and features than are listed at once. */
Test(kernels, sparse_products_are_the_chain_of_their_entries) {
    static const size_t widths[] = {1, SPARSE_COLUMNS, 2 * SPARSE_COLUMNS + 13, 300};
    random_state = random_start(4, RANDOM_TEST);
    for (int i = 0; i < 37; i++) {
        const bool large = i == 36, across = i % 9 >= 6; /* columns of W are far apart */
        const size_t rows = large   ? LIST_ROWS + 30
                            : i % 2 ? 9
                                    : 3,
                     k = large ? 300 : 40, n = large ? SPARSE_COLUMNS + 1 : widths[i % 4];
        const Dtype dtype = (Dtype[]){DTYPE_F32, DTYPE_BF16, DTYPE_F16}[i % 3];
        float *w = values(k * n, 30), *y = values(rows * n, 0), *right = values(rows * n, 0),
              *found = values(rows * n, 0), *f = values(rows * k, 60), *divide = values(k, 0);
        for (size_t at = 0; at < rows * k; at++) {
            f[at] = below(at / k + 1) != 0 ? f[at] : 0.0f;
        }
        const Weight weight = {w, dtype}; /* halves of the floats serve as such numbers */
        const Sparse sparse = {.y = found,
                               .f = f,
                               .divide = i % 5 == 0 ? divide : NULL,
                               .w = weight,
                               .w_row = across ? 1 : (ptrdiff_t)n,
                               .w_col = across ? (ptrdiff_t)k : 1,
                               .rows = rows,
                               .k = k,
                               .n = n};
        for (size_t at = 0; at < rows * n; at++) {
            right[at] = y[at];
            for (size_t j = 0; j < k; j++) {
                float value = f[at / n * k + j];
                size_t place = across ? j + at % n * k : j * n + at % n;
                if (value != 0) {
                    value = sparse.divide != NULL ? value / divide[j] : value;
                    right[at] = fmaf(value, weight_at(weight, place), right[at]);
                }
            }
        }
        Compute compute;
        for (size_t at = 0; next_compute(&compute, &at);) {
            memcpy(found, y, rows * n * sizeof *y);
            sparse_run(&compute, sparse);
            cr_assert(same(found, right, rows * n), "%s, %d threads: n %zu, dtype %d",
                      compute_isa(&compute), compute.threads, n, (int)dtype);
        }
        free(w);
        free(y);
        free(right);
        free(found);
        free(f);
        free(divide);
    }
}

Test(kernels, halves_widen_exactly) {
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const uint16_t half = (uint16_t)bits;
        const uint32_t wide = bits << 16;
        const int exponent = (int)(bits >> 10 & 31);
        const float fraction = (float)(bits & 1023);
        float right =
            exponent == 0 ? ldexpf(fraction, -24) : ldexpf(1024.0f + fraction, exponent - 25);
        right = exponent == 31 ? (fraction == 0.0f ? INFINITY : NAN) : right;
        right = (bits & 0x8000) != 0 ? -right : right;
        const float f16 = weight_at((Weight){&half, DTYPE_F16}, 0);
        cr_assert(same(&f16, &right, 1), "half %04x", bits);
        memcpy(&right, &wide, sizeof right);
        const float bf16 = weight_at((Weight){&half, DTYPE_BF16}, 0);
        cr_assert(same(&bf16, &right, 1), "bfloat %04x", bits);
    }
}

/* ==== rows and elements: the same bits in every set and on every thread count ==== */

enum {
    OUTPUTS = 3
};

typedef struct Inputs {
    float *x, *y, *z, *row1, *row2, *row3;
    unsigned char *w, *b;
    int32_t *target;
    uint32_t *table_row;
    size_t rows, cols;
} Inputs;

/* Runs kernel `which`; out[OUTPUTS] hold rows * cols each. false: no such kernel. */
static bool run_kernel(const Compute *c, int which, const Inputs *in, float *out[OUTPUTS]) {
    const size_t rows = in->rows, cols = in->cols, n = rows * cols;
    const Weight w = {in->w + 1, DTYPE_BF16}, b = {in->b + 1, DTYPE_F16}, none = {NULL, DTYPE_F32};
    double *loss = calloc(rows, sizeof *loss);
    switch (which) {
    case 0:
        norm_scale(c, out[0], out[1], in->x, 1e-5f, rows, cols);
        norm_scale(c, NULL, out[2], in->x, 1e-5f, rows, cols);
        break;
    case 1:
        norm_normalize(c, out[0], in->x, in->row1, in->row2, rows, cols);
        norm_normalize(c, out[1], in->x, NULL, in->row2, rows, cols);
        break;
    case 2:
        norm_weight(c, out[0], in->x, w, b, false, rows, cols);
        norm_weight(c, out[1], in->x, w, none, true, rows, cols);
        norm_weight_backward(c, out[2], in->x, w, true, rows, cols);
        break;
    case 3:
        norm_scale_backward(c, out[0], in->y, in->x, in->row1, in->row2, rows, cols);
        norm_scale_backward(c, out[1], in->y, in->x, NULL, in->row2, rows, cols);
        break;
    case 4:
        norm_input_backward(c, out[0], in->y, in->row3, in->x, in->row1, in->row2, rows, cols);
        norm_input_backward(c, out[1], in->y, in->row3, in->x, NULL, in->row2, rows, cols);
        break;
    case 5:
        softmax_rows(c, out[0], in->x, rows, cols);
        memcpy(out[1], in->x, n * sizeof(float));
        softmax_rows(c, out[1], out[1], rows, cols); /* in place */
        softmax_rows_backward(c, out[2], in->y, out[0], rows, cols);
        break;
    case 6:
        cross_entropy_rows(c, loss, out[0], in->x, in->target, in->row1, rows, cols);
        for (size_t r = 0; r < rows; r++) {
            memcpy(out[1] + r * cols, &loss[r], (cols > 1 ? 2 : 1) * sizeof(float));
        }
        cross_entropy_rows(c, loss, NULL, in->x, in->target, in->row1, rows, cols);
        for (size_t r = 0; r < rows; r++) {
            memcpy(out[2] + r * cols, &loss[r], (cols > 1 ? 2 : 1) * sizeof(float));
        }
        break;
    case 7:
        rope_rotate(c, out[0], in->x, in->y, in->z, in->table_row, rows, 1, cols, cols / 4 * 2,
                    false);
        rope_rotate(c, out[1], in->x, in->y, in->z, NULL, rows, 1, cols, cols / 2 * 2, true);
        break;
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
        activate(c, (Activation)(which - 8), out[0], in->x, n);
        activate_backward(c, (Activation)(which - 8), out[1], in->y, in->x, n);
        memcpy(out[2], in->y, n * sizeof(float));
        activate_backward(c, (Activation)(which - 8), out[2], out[2], in->x, n); /* in place */
        break;
    case 13:
        softcap(c, out[0], in->x, 30.0f, n);
        softcap_backward(c, out[1], in->y, out[0], 30.0f, n);
        break;
    case 14:
        vector_add(c, out[0], in->x, n);
        vector_multiply(c, out[1], in->x, in->y, n);
        vector_scale(c, out[2], in->x, 0.1f, n);
        break;
    case 15:
        adamw_step(c, out[0], in->x, out[1], out[2], n, 1e-3, 0.9, 0.999, 1e-8, 0.01, 3);
        break;
    default:
        free(loss);
        return false;
    }
    free(loss);
    return true;
}

static void check_rows(size_t rows, size_t cols, size_t rare) {
    const size_t n = rows * cols;
    Inputs in = {.x = values(n, rare),
                 .y = values(n, rare),
                 .z = values(n, rare),
                 .row1 = values(rows, rare),
                 .row2 = values(rows, 0),
                 .row3 = values(rows, 0),
                 .w = weights(cols, DTYPE_BF16, rare),
                 .b = weights(cols, DTYPE_F16, rare),
                 .target = calloc(rows, 4),
                 .table_row = calloc(rows, 4),
                 .rows = rows,
                 .cols = cols};
    for (size_t r = 0; r < rows; r++) {
        in.target[r] = (int32_t)below(cols);
        in.table_row[r] = (uint32_t)below(rows);
    }
    float *out[OUTPUTS], *right[OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) {
        out[o] = malloc((n + 1) * sizeof(float));
        right[o] = malloc((n + 1) * sizeof(float));
    }
    for (int which = 0;; which++) {
        Compute compute;
        bool first = true;
        for (size_t at = 0; next_compute(&compute, &at);) {
            for (int o = 0; o < OUTPUTS; o++) {
                for (size_t i = 0; i < n; i++) {
                    out[o][i] = (float)(i % 13) * 0.25f; /* some kernels add to what is there */
                }
            }
            if (!run_kernel(&compute, which, &in, out)) {
                goto done;
            }
            for (int o = 0; o < OUTPUTS; o++) {
                if (first) {
                    memcpy(right[o], out[o], n * sizeof(float));
                }
                cr_assert(same(out[o], right[o], n),
                          "kernel %d, output %d, %zu x %zu: %s, %d threads", which, o, rows, cols,
                          compute_isa(&compute), compute.threads);
            }
            first = false;
        }
    }
done:
    for (int o = 0; o < OUTPUTS; o++) {
        free(out[o]);
        free(right[o]);
    }
    void *const all[] = {in.x,    in.y, in.z, in.row1,   in.row2,
                         in.row3, in.w, in.b, in.target, in.table_row};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
}

Test(kernels, rows_and_elements_are_the_same_everywhere) {
    random_state = random_start(4, RANDOM_TEST);
    const size_t shapes[][2] = {{1, 1},   {1, 2},    {2, 3},    {3, 17},    {5, 64},  {7, 129},
                                {70, 33}, {1, 9000}, {9, 2304}, {2, 10007}, {5, 8193}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_rows(shapes[i][0], shapes[i][1], 0);
        check_rows(shapes[i][0], shapes[i][1], 30);
    }
}

/* ==== fma ==== */

/* Random bits, or with an exponent near that of 1, none (subnormal) or few bits; or the ends. */
static double draw_f64(Random *random) {
    static const uint64_t ends[] = {0, 1, 0x7ff0000000000000, 0x7fefffffffffffff,
                                    0x8000000000000000};
    uint64_t bits = random_below(random, UINT64_MAX), sign_and_fraction = bits & 0x800fffffffffffff;
    switch (random_word(random) % 8) {
    case 0:
        return double_of(ends[bits % 5]);
    case 1:
        return double_of(sign_and_fraction);
    case 2:
        return double_of(sign_and_fraction | bits % 60 << 52); /* near the smallest */
    case 3:
        return double_of(bits & 0xffffffff00000000);
    case 4:
        return double_of(bits);
    default:
        return double_of(sign_and_fraction | (1019 + bits % 8) << 52);
    }
}

/* As libm's, which on this machine may be the processor's; sums that cancel and ties among them. */
Test(kernels, own_fma_is_the_library_s) {
    Random random = random_start(1, RANDOM_TEST);
    for (int i = 0; i < 400000; i++) {
        double x = draw_f64(&random), y = draw_f64(&random), z = draw_f64(&random);
        z = i % 2 == 0 ? z : double_of(bits_of_double(-(x * y)) ^ random_word(&random) % 4);
        const double found = fma_f64(x, y, z), right = (fma)(x, y, z);
        cr_assert(bits_of_double(found) == bits_of_double(right) || (isnan(found) && isnan(right)),
                  "fma(%a, %a, %a) = %a, not %a", x, y, z, found, right);
        float a = float_of(random_word(&random)), b = float_of(random_word(&random)), c;
        if (i % 3 != 0) { /* small sums */
            a = ldexpf(a, -64 - ilogbf(a)), b = ldexpf(b, -72 - ilogbf(b));
        }
        c = i % 2 == 0 ? ldexpf(1 + random_uniform(&random), -130 - i % 24)
                       : float_of(bits_of(-(a * b)) ^ random_word(&random) % 4);
        const float one = fma_f32(a, b, c), other = (fmaf)(a, b, c);
        cr_assert(bits_of(one) == bits_of(other) || (isnan(one) && isnan(other)),
                  "fmaf(%a, %a, %a) = %a, not %a", (double)a, (double)b, (double)c, (double)one,
                  (double)other);
    }
    /* Sums a little below the middle of two floats, of which binary64 keeps the middle. */
    cr_assert_eq(fma_f32(0x1.000002p-24f, 0x1.fffffcp-1f, 0x1.000002p0f), 0x1.000002p0f);
    cr_assert_eq(fma_f32(0x1.000002p-75f, 0x1.fffffcp-76f, 0x1.00001p-129f), 0x1.00001p-129f);
}

/* ==== elementary functions (make prove takes all inputs) ==== */

static const char *const FUNCTION_NAMES[] = {"exp", "log", "tanh", "erf", "sin", "cos"};

static float function_f32(int f, float x) {
    float (*const functions[])(float) = {exp_f32, log_f32, tanh_f32, erf_f32, sin_f32, cos_f32};
    return functions[f](x);
}

Test(kernels, functions_round_correctly_on_a_sample) {
    long double (*const reference[])(long double) = {expl, logl, tanhl, erfl, sinl, cosl};
    enum {
        N = 4096
    };
    float x[N], y[N];
    for (int f = 0; f < FN_COUNT; f++) {
        for (uint64_t start = 0; start < (uint64_t)1 << 32; start += (uint64_t)N * 3571) {
            for (size_t i = 0; i < N; i++) {
                const uint32_t bits = (uint32_t)(start + i * 3571);
                memcpy(&x[i], &bits, sizeof bits);
            }
            bool usable;
            const KernelSet *set;
            for (size_t s = 0; (set = kernel_set_at(s, &usable)) != NULL; s++) {
                if (!usable) {
                    continue;
                }
                const Task task = {.y = y, .a = x, .kind = f};
                set->run[OP_ELEMENTARY](&task, 0, N);
                for (size_t i = 0; i < N; i++) {
                    const bool far = f >= FN_SIN && !(fabsf(x[i]) <= 0x1p20f);
                    const float right = far ? NAN : (float)reference[f]((long double)x[i]);
                    cr_assert(same(&y[i], &right, 1), "%s %s(%a) = %a, not %a", set->name,
                              FUNCTION_NAMES[f], (double)x[i], (double)y[i], (double)right);
                }
            }
        }
    }
}

Test(kernels, functions_at_their_edges) {
    static const struct {
        int f;
        float x, y;
    } cases[] = {{FN_EXP, 0.0f, 1.0f},
                 {FN_EXP, -INFINITY, 0.0f},
                 {FN_EXP, INFINITY, INFINITY},
                 {FN_EXP, NAN, NAN},
                 {FN_EXP, 0x1.62e42ep+6f, 0x1.ffff08p+127f},
                 {FN_EXP, 0x1.62e430p+6f, INFINITY},
                 {FN_EXP, -103.9f, 0x1p-149f},
                 {FN_EXP, -104.0f, 0.0f},
                 {FN_LOG, 0.0f, -INFINITY},
                 {FN_LOG, -0.0f, -INFINITY},
                 {FN_LOG, 1.0f, 0.0f},
                 {FN_LOG, -1.0f, NAN},
                 {FN_LOG, INFINITY, INFINITY},
                 {FN_LOG, 0x1p-149f, -0x1.9d1da0p+6f},
                 {FN_LOG, 0x1.827a74p-7f, -0x1.1c2b1ep+2f}, /* nearly between two floats */
                 {FN_LOG, 0x1.2f1fd6p+3f, 0x1.1fcbcep+1f},
                 {FN_LOG, 0x1.bacb4ap+25f, 0x1.1e0696p+4f},
                 {FN_LOG, 0x1.b121a6p+76f, 0x1.a9a3f2p+5f},
                 {FN_LOG, 0x1.6351d8p+95f, 0x1.08b512p+6f},
                 {FN_TANH, -0.0f, -0.0f},
                 {FN_TANH, INFINITY, 1.0f},
                 {FN_TANH, -1e-40f, -1e-40f},
                 {FN_ERF, -0.0f, -0.0f},
                 {FN_ERF, 0.0f, 0.0f},
                 {FN_ERF, -INFINITY, -1.0f},
                 {FN_SIN, -0.0f, -0.0f},
                 {FN_SIN, INFINITY, NAN},
                 {FN_SIN, 0x1.000002p20f, NAN},
                 {FN_COS, -0.0f, 1.0f},
                 {FN_SIN, 0x1.33333p+13f, -0x1.63f4bap-2f},
                 {FN_SIN, -0x1.33333p+13f, 0x1.63f4bap-2f},
                 {FN_COS, 0x1p20f, 0x1.e33adap-1f},
                 {FN_COS, NAN, NAN}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const float y = function_f32(cases[i].f, cases[i].x);
        cr_expect(same(&y, &cases[i].y, 1), "%s(%a) = %a, not %a", FUNCTION_NAMES[cases[i].f],
                  (double)cases[i].x, (double)y, (double)cases[i].y);
    }
}

Test(kernels, pow_rounds_correctly_where_rope_asks) {
    const float bases[] = {10000.0f, 500000.0f, 10.0f, 1e6f, 2.0f, 9.0f};
    for (size_t b = 0; b < 6; b++) {
        for (int i = 0; i <= 256; i++) {
            const float y = (float)(2 * i) / 256.0f,
                        right = (float)powl((long double)bases[b], (long double)y);
            cr_assert_eq(pow_f32(bases[b], y), right, "%a^%a", (double)bases[b], (double)y);
        }
    }
    cr_assert_eq(pow_f32(4097.0f, 2.0f), 4097.0f * 4097.0f); /* exactly between two floats */
    cr_assert_eq(pow_f32(10.0f, 39.0f), INFINITY);
    cr_assert_eq(pow_f32(10.0f, -60.0f), 0.0f);
}

/* ==== formulas ==== */

static Compute best;

static void open_best(void) {
    random_state = random_start(5, RANDOM_TEST);
    compute_open(&best, arena_new(), 2);
}

static double reference_activation(Activation kind, double x) {
    switch (kind) {
    case ACT_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case ACT_GELU_ERF:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case ACT_QUICK_GELU:
        return x / (1.0 + exp(-1.702 * x));
    case ACT_RELU:
        return x > 0.0 ? x : 0.0;
    default:
        return x / (1.0 + exp(-x));
    }
}

/* Tolerance 1e-6 absolute on values below 6: a few roundings of 2^-24 each. Slopes: the same, and
 * the central difference errs by h^2 = 1e-10. */
Test(kernels, activations_and_their_slopes, .init = open_best) {
    enum {
        N = 2001
    };
    float x[N], y[N], dy[N], dx[N];
    const double h = 1e-5;
    for (size_t i = 0; i < N; i++) {
        x[i] = ((float)i - 1000.5f) / 170.0f;
        dy[i] = 1.0f;
    }
    for (int kind = 0; kind <= (int)ACT_SILU; kind++) {
        activate(&best, (Activation)kind, y, x, N);
        activate_backward(&best, (Activation)kind, dx, dy, x, N);
        for (size_t i = 0; i < N; i++) {
            const double v = (double)x[i];
            cr_assert_float_eq(y[i], reference_activation((Activation)kind, v), 1e-6,
                               "activation %d at %g", kind, v);
            const double slope = (reference_activation((Activation)kind, v + h) -
                                  reference_activation((Activation)kind, v - h)) /
                                 (2 * h);
            cr_assert_float_eq(dx[i], slope, 1e-6, "slope of activation %d at %g", kind, v);
        }
    }
    softcap(&best, y, x, 2.5f, N);
    softcap_backward(&best, dx, dy, y, 2.5f, N);
    for (size_t i = 0; i < N; i++) {
        const double th = tanh((double)x[i] / 2.5);
        cr_assert_float_eq(y[i], 2.5 * th, 1e-6);
        cr_assert_float_eq(dx[i], 1.0 - th * th, 1e-6);
    }
}

/* f(x) = sum g * f(x) in binary64, for central differences. mode 0: LayerNorm, 1: RMSNorm, 2:
 * softmax. */
static double weighted_sum(int mode, const double *x, const float *g, size_t n) {
    double mean = 0.0, square = 0.0, sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        mean += mode == 0 ? x[i] / (double)n : 0.0;
    }
    for (size_t i = 0; i < n; i++) {
        square += mode == 2 ? exp(x[i]) : (x[i] - mean) * (x[i] - mean) / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        sum +=
            (double)g[i] * (mode == 2 ? exp(x[i]) / square : (x[i] - mean) / sqrt(square + 1e-5));
    }
    return sum;
}

/* Tolerance: gradients here are of order 1, each a few dozen binary32 roundings deep at most. */
Test(kernels, gradients_of_rows, .init = open_best) {
    enum {
        ROWS = 5,
        COLS = 37
    };
    float *x = values(ROWS * COLS, 0), *g = values(ROWS * COLS, 0), y[ROWS * COLS], dx[ROWS * COLS];
    float mean[ROWS], scale[ROWS], dscale[ROWS];
    const double h = 1e-5;
    for (int mode = 0; mode < 3; mode++) {
        if (mode == 2) {
            softmax_rows(&best, y, x, ROWS, COLS);
            softmax_rows_backward(&best, dx, g, y, ROWS, COLS);
        } else {
            float *m = mode == 0 ? mean : NULL;
            memset(dx, 0, sizeof dx);
            norm_scale(&best, m, scale, x, 1e-5f, ROWS, COLS);
            norm_normalize(&best, y, x, m, scale, ROWS, COLS);
            norm_scale_backward(&best, dscale, g, x, m, scale, ROWS, COLS);
            norm_input_backward(&best, dx, g, dscale, x, m, scale, ROWS, COLS);
        }
        for (size_t r = 0; r < ROWS; r++) {
            double wide[COLS], forward = 0.0;
            for (size_t i = 0; i < COLS; i++) {
                wide[i] = (double)x[r * COLS + i];
                forward += (double)g[r * COLS + i] * (double)y[r * COLS + i];
            }
            cr_assert_float_eq(forward, weighted_sum(mode, wide, g + r * COLS, COLS), 1e-5,
                               "mode %d", mode);
            for (size_t i = 0; i < COLS; i++) {
                double side[2];
                for (int s = 0; s < 2; s++) {
                    wide[i] = (double)x[r * COLS + i] + (s == 0 ? h : -h);
                    side[s] = weighted_sum(mode, wide, g + r * COLS, COLS);
                }
                wide[i] = (double)x[r * COLS + i];
                cr_assert_float_eq(dx[r * COLS + i], (side[0] - side[1]) / (2 * h), 2e-6, "mode %d",
                                   mode);
            }
        }
    }
    free(x);
    free(g);
}

Test(kernels, cross_entropy_and_its_gradient, .init = open_best) {
    enum {
        ROWS = 3,
        COLS = 1500
    };
    float *x = values(ROWS * COLS, 0), *d = malloc(sizeof(float) * ROWS * COLS);
    const int32_t target[ROWS] = {0, 700, COLS - 1};
    const float weight[ROWS] = {1.0f, 0.25f, 2.0f};
    double loss[ROWS];
    x[5] = -INFINITY;
    cross_entropy_rows(&best, loss, d, x, target, weight, ROWS, COLS);
    for (size_t r = 0; r < ROWS; r++) {
        double sum = 0.0;
        for (size_t i = 0; i < COLS; i++) {
            sum += exp((double)x[r * COLS + i]);
        }
        /* the exponentials are rounded to 2^-24, and average out */
        cr_assert_float_eq(loss[r], log(sum) - (double)x[r * COLS + (size_t)target[r]], 1e-7);
        for (size_t i = 0; i < COLS; i++) {
            const double p =
                exp((double)x[r * COLS + i]) / sum - (i == (size_t)target[r] ? 1.0 : 0.0);
            cr_assert_float_eq(d[r * COLS + i], (double)weight[r] * p, 3e-7);
        }
    }
    float masked[4] = {1.0f, -INFINITY, 2.0f, -INFINITY};
    softmax_rows(&best, masked, masked, 1, 4);
    cr_assert(masked[1] == 0.0f && masked[3] == 0.0f && !signbit(masked[1]));
    free(x);
    free(d);
}

Test(kernels, rope_turns_and_turns_back, .init = open_best) {
    enum {
        ROWS = 9,
        HEADS = 3,
        D_HEAD = 14,
        DIM = 10
    };
    float cosine[ROWS * DIM / 2], sine[ROWS * DIM / 2], y[ROWS * HEADS * D_HEAD],
        back[ROWS * HEADS * D_HEAD];
    float *x = values(ROWS * HEADS * D_HEAD, 0);
    rope_tables(cosine, sine, 10000.0f, DIM, 100, ROWS);
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t i = 0; i < DIM / 2; i++) { /* an angle of 108 errs by 2^-18 in binary32 */
            const double angle = (double)(100 + r) * pow(10000.0, -2.0 * (double)i / (double)DIM);
            cr_assert_float_eq(cosine[r * DIM / 2 + i], cos(angle), 1e-5);
            cr_assert_float_eq(sine[r * DIM / 2 + i], sin(angle), 1e-5);
        }
    }
    rope_rotate(&best, y, x, cosine, sine, NULL, ROWS, HEADS, D_HEAD, DIM, false);
    const size_t at = (4 * HEADS + 1) * D_HEAD + 2, turn = 4 * DIM / 2 + 2;
    cr_assert_float_eq(y[at], x[at] * cosine[turn] - x[at + DIM / 2] * sine[turn], 1e-6);
    cr_assert_float_eq(y[at + DIM / 2], x[at + DIM / 2] * cosine[turn] + x[at] * sine[turn], 1e-6);
    cr_assert(same(y + DIM, x + DIM, D_HEAD - DIM));
    rope_rotate(&best, back, y, cosine, sine, NULL, ROWS, HEADS, D_HEAD, DIM, true);
    for (size_t i = 0; i < ROWS * HEADS * D_HEAD; i++) {
        cr_assert_float_eq(back[i], x[i], 2e-6);
    }
    free(x);
}

/* torch's own steps. Its vectorised kernels fuse multiply-adds, ours never: one ulp a step of the
 * largest value that the element has had. */
Test(kernels, adamw_steps_like_torch, .init = open_best) {
    FILE *file = fopen("tests/golden/kernels/adamw.txt", "r");
    cr_assert_not_null(file);
    float p[8], g[8], m[8], v[8], right[8][4], largest[8][4] = {{0}};
    double lr;
    for (uint64_t t = 0; fscanf(file, "%la", &lr) == 1; t++) {
        for (int i = 0; i < 8; i++) {
            for (int j = 0; j < 4; j++) {
                cr_assert_eq(fscanf(file, "%a", &right[i][j]), 1);
            }
            g[i] = right[i][1];
            if (t == 0) {
                p[i] = right[i][0];
                m[i] = v[i] = 0.0f;
            }
        }
        if (t > 0) {
            adamw_step(&best, p, g, m, v, 8, lr, 0.9, 0.999, 1e-8, 0.01, t);
        }
        for (int i = 0; i < 8; i++) {
            const float ours[4] = {p[i], g[i], m[i], v[i]};
            for (int j = 0; j < 4; j++) {
                largest[i][j] = fmaxf(largest[i][j], fabsf(right[i][j]));
                cr_assert(fabs((double)ours[j] - (double)right[i][j]) <=
                              (double)t * 0x1p-23 * (double)largest[i][j],
                          "step %d, element %d, %c: %a, not %a", (int)t, i, "pgmv"[j],
                          (double)ours[j], (double)right[i][j]);
            }
        }
    }
    fclose(file);
}

Test(kernels, instruction_sets_are_asked_for_by_name) {
    Compute compute;
    Error error;
    Arena *arena = arena_new();
    ATTEMPT(&error, compute_open_isa(&compute, arena, 1, "mmx"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "mmx"));
    compute_open_isa(&compute, arena, 1, NULL);
    const char *chosen = compute_isa(&compute);
    compute_open_isa(&compute, arena, 1, "scalar");
    cr_assert_str_eq(compute_isa(&compute), "scalar");
    ATTEMPT(&error, compute_open_isa(&compute, arena, -1, NULL));
    cr_assert_eq(error.status, STATUS_INPUT);
    ATTEMPT(&error, compute_open_isa(&compute, arena, 1025, NULL));
    cr_assert_str_eq(error.text, "threads: expected 0 to 1024, found 1025");
    cr_assert_eq(setenv("REFSAE_ISA", "", 1), 0); /* as if it were not set */
    compute_open(&compute, arena, 1);
    cr_assert_str_eq(compute_isa(&compute), chosen);
}

/* sae.c: what a sparse autoencoder computes, and statistics of it. The formats are in sae_load.c.
 *
 *   x' = norm(x) - [b_dec]     z = x' W_enc + b_enc     f = act(z)
 *   x^ = norm^-1(f W_dec + b_dec)
 *
 * Easy to get wrong: layer's way back has no 1e-5; among equals topk takes the lowest index; with
 * rescale_acts_by_decoder_norm f holds z |W_dec row| and decoding divides; pre is z before all
 * that. */
#include "sae.h"

#include <math.h>
#include <string.h>

/* ---- the memory of a run ---- */

typedef struct HeapItem {
    float value;
    uint32_t feature;
} HeapItem;

struct SaeRun {
    const Compute *compute;
    size_t d_in, d_sae, max_rows, rows; /* rows: of the last sae_encode */
    float *x;                           /* [max_rows, d_in]: x' */
    float *mean, *factor;               /* [max_rows]: layer: mean and std; constant: c */
    bool *bad;                          /* [max_rows]: not finite */
    HeapItem *heap;                     /* [threads, d_sae] */
};

SaeRun *sae_run_layout(const Compute *compute, size_t d_in, size_t d_sae, size_t max_rows,
                       Arena *arena) {
    SaeRun r = {.compute = compute, .d_in = d_in, .d_sae = d_sae, .max_rows = max_rows};
    SaeRun *run = arena_alloc(arena, 1, sizeof *run);
    r.x = arena_floats(arena, max_rows, d_in);
    r.mean = arena_floats(arena, max_rows, 1);
    r.factor = arena_floats(arena, max_rows, 1);
    r.bad = arena_alloc(arena, max_rows, sizeof *r.bad);
    r.heap = arena_alloc(arena, size_product((size_t)compute->threads, d_sae), sizeof *r.heap);
    if (run != NULL) {
        *run = r;
    }
    return run;
}

void sae_norm_check(const Sae *sae) {
    if (sae->norm == SAE_NORM_EXPECTED && !(sae->norm_factor > 0)) {
        fail(STATUS_INPUT,
             "%s: normalize_activations is expected_average_only_in and its factor is not in the "
             "files: give --norm-factor X",
             sae->path);
    }
}

static void check_run(const Sae *sae, const SaeRun *run, size_t rows) {
    if (sae->d_in > run->d_in || sae->d_sae > run->d_sae || rows > run->max_rows) {
        fail(STATUS_INPUT,
             "%s: %zu rows of an SAE [%zu, %zu] exceed what was planned: %zu of [%zu, %zu]",
             sae->path, rows, sae->d_in, sae->d_sae, run->max_rows, run->d_in, run->d_sae);
    }
    sae_norm_check(sae);
}

static void check_finite(const Sae *sae, const SaeRun *run, size_t rows, const char *what) {
    for (size_t r = 0; r < rows; r++) {
        if (run->bad[r]) {
            fail(STATUS_INPUT,
                 "%s: %s of row %zu is not finite: the weights or the input hold NaN, infinity or "
                 "numbers too large",
                 sae->path, what, r);
        }
    }
}

/* A call's operands for compute_parallel, which hands out rows. */
typedef struct RowCall {
    const Sae *sae;
    SaeRun *run;
    const float *x;    /* [rows, d_in] */
    float *pre, *acts; /* [rows, d_sae]; pre may be acts */
    float *y;          /* [rows, d_in] */
} RowCall;

/* ---- the input ---- */

static float row_mean(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i];
    }
    return (float)(sum / (double)n);
}

static void row_subtract(float *y, const float *x, float value, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] = x[i] - value;
    }
}

static void target_row(void *user, size_t row, int thread) {
    RowCall *call = user;
    size_t d = call->sae->d_in;
    const float *x = call->x + row * d;
    (void)thread;
    row_subtract(call->y + row * d, x, call->sae->centre == SAE_CENTRE_YES ? row_mean(x, d) : 0.0f,
                 d);
}

/* x, less its mean if the SAE was trained on a centred stream */
void sae_target(const Sae *sae, const Compute *compute, float *target, const float *x,
                size_t rows) {
    compute_parallel(compute, rows, target_row, &(RowCall){.sae = sae, .x = x, .y = target});
}

/*   norm       x'                                          norm^-1
 *   constant   x c, c = sqrt(d) / |x|                      x / c
 *   expected   x c, c given                                x / c
 *   layer      (x - mean) / (std + 1e-5), std with n - 1   x std + mean
 * (SAELens, run_time_activation_norm_fn_in and _out) */
static void row_norm(const Sae *sae, SaeRun *run, size_t row, float *y) {
    size_t d = sae->d_in;
    double sum = 0, mean = 0;
    switch (sae->norm) {
    case SAE_NORM_NONE:
        break;
    case SAE_NORM_CONSTANT:
        for (size_t i = 0; i < d; i++) {
            sum += (double)y[i] * (double)y[i];
        }
        run->factor[row] = (float)sqrt((double)d) / (float)sqrt(sum);
        for (size_t i = 0; i < d; i++) {
            y[i] *= run->factor[row];
        }
        break;
    case SAE_NORM_EXPECTED:
        for (size_t i = 0; i < d; i++) {
            y[i] *= sae->norm_factor;
        }
        break;
    case SAE_NORM_LAYER:
        run->mean[row] = row_mean(y, d);
        row_subtract(y, y, run->mean[row], d);
        for (size_t i = 0; i < d; i++) {
            mean += (double)y[i];
        }
        mean /= (double)d; /* not 0: what rounding left */
        for (size_t i = 0; i < d; i++) {
            sum += ((double)y[i] - mean) * ((double)y[i] - mean);
        }
        run->factor[row] = (float)sqrt(sum / ((double)d - 1));
        for (size_t i = 0; i < d; i++) {
            y[i] /= run->factor[row] + 1e-5f;
        }
        break;
    }
}

static float norm_back(const Sae *sae, const SaeRun *run, size_t row, float value) {
    switch (sae->norm) {
    case SAE_NORM_NONE:
        break;
    case SAE_NORM_CONSTANT:
        return value / run->factor[row];
    case SAE_NORM_EXPECTED:
        return value / sae->norm_factor;
    case SAE_NORM_LAYER:
        return value * run->factor[row] + run->mean[row];
    }
    return value;
}

/* norm^-1(y) = factor y + shift, as sae_encode left it for this row */
void sae_row_back(const Sae *sae, const SaeRun *run, size_t row, double *factor, double *shift) {
    *factor = 1.0;
    *shift = 0.0;
    if (sae->norm == SAE_NORM_LAYER) {
        *factor = (double)run->factor[row];
        *shift = (double)run->mean[row];
    } else if (sae->norm == SAE_NORM_CONSTANT) {
        *factor = 1.0 / (double)run->factor[row];
    } else if (sae->norm == SAE_NORM_EXPECTED) {
        *factor = 1.0 / (double)sae->norm_factor;
    }
}

/* x' = norm(x) - [b_dec], of the centred x where the SAE saw a centred stream. */
static void input_row(void *user, size_t row, int thread) {
    RowCall *call = user;
    const Sae *sae = call->sae;
    const float *b_dec = sae->b_dec.data;
    float *y = call->y + row * sae->d_in;
    target_row(call, row, thread);
    row_norm(sae, call->run, row, y);
    for (size_t i = 0; sae->subtract_b_dec && i < sae->d_in; i++) {
        y[i] -= b_dec[i];
    }
}

/* ---- activations: z [d_sae] -> f [d_sae] ---- */

/* ReLU(z) (SAELens standard, AutoEncoder) */
static void relu(float *f, const float *z, size_t n) {
    for (size_t j = 0; j < n; j++) {
        f[j] = z[j] > 0 ? z[j] : 0.0f;
    }
}

/* ReLU(z) [z > threshold] (JumpReLU, 2407.14435; GemmaScope, SAELens). BatchTopK
 * (2412.06410) asks ReLU(z) > threshold: where the two differ, the product is 0 anyway. The &
 * spares a branch that would be guessed wrong as often as not. */
static void jumprelu(float *f, const float *z, const float *threshold, size_t n) {
    for (size_t j = 0; j < n; j++) {
        const bool active = (z[j] > 0) & (z[j] > threshold[j]);
        f[j] = active ? z[j] : 0.0f;
    }
}

/* [u + b_gate > 0] ReLU(e^r_mag u + b_mag), u = x' W_enc (gated, 2404.16014); what
 * pre holds afterwards is the magnitude. */
static void gated(float *f, float *u, const float *b_gate, const float *gain, const float *b_mag,
                  size_t n) {
    for (size_t j = 0; j < n; j++) {
        bool open = u[j] + b_gate[j] > 0;
        float magnitude = gain[j] * u[j] + b_mag[j];
        u[j] = magnitude; /* f may be u */
        f[j] = open && magnitude > 0 ? magnitude : 0.0f;
    }
}

/* The root of the heap is the item that gives way: the smallest, among equals the highest index. */
static bool heap_yields(HeapItem a, HeapItem b) {
    return a.value < b.value || (a.value == b.value && a.feature > b.feature);
}

static void heap_replace_root(HeapItem *heap, size_t count, HeapItem item) {
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap_yields(heap[child + 1], heap[child])) {
            child++;
        }
        if (!heap_yields(heap[child], item)) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = item;
}

/* The k largest of z, then ReLU (TopK, 2406.04093, 2.3): so the k largest positive ones. gain
 * [d_sae], or NULL: they are chosen by, and f holds, z |W_dec row|. */
static void topk(float *f, const float *z, const float *gain, HeapItem *heap, size_t k, size_t n) {
    memset(heap, 0, k * sizeof *heap); /* k free places: value 0, below all that may enter */
    for (size_t j = 0; j < n; j++) {
        HeapItem item = {gain != NULL ? z[j] * gain[j] : z[j], (uint32_t)j};
        if (item.value > heap[0].value) { /* an equal one of a lower index stays */
            heap_replace_root(heap, k, item);
        }
    }
    memset(f, 0, n * sizeof *f); /* f may be z */
    for (size_t i = 0; i < k; i++) {
        if (heap[i].value > 0) {
            f[heap[i].feature] = heap[i].value;
        }
    }
}

/* f = act(z) of one row */
static void activate_row(void *user, size_t row, int thread) {
    RowCall *call = user;
    const Sae *sae = call->sae;
    SaeRun *run = call->run;
    size_t n = sae->d_sae;
    float *z = call->pre + row * n, *f = call->acts + row * n;
    run->bad[row] = !all_finite(z, n);
    switch (sae->act) {
    case SAE_RELU:
        relu(f, z, n);
        break;
    case SAE_JUMPRELU:
    case SAE_BATCHTOPK:
        jumprelu(f, z, sae->threshold.data, n);
        break;
    case SAE_TOPK:
        topk(f, z, sae->rescale_by_decoder_norm ? sae->dec_norm : NULL,
             run->heap + (size_t)thread * run->d_sae, sae->k, n);
        break;
    case SAE_GATED:
        gated(f, z, sae->b_gate.data, sae->mag_gain, sae->b_mag.data, n);
        break;
    }
}

/* ---- encoding: f = act(x' W_enc + b_enc) ---- */

void sae_encode(const Sae *sae, SaeRun *run, const float *x, float *pre, float *acts, size_t rows) {
    check_run(sae, run, rows);
    Matrix w_enc = {sae->w_enc,     sae->b_enc, sae->enc_feature,
                    sae->enc_input, sae->d_sae, sae->d_in};
    RowCall call = {
        .sae = sae, .run = run, .x = x, .pre = pre != NULL ? pre : acts, .acts = acts, .y = run->x};
    run->rows = rows;
    compute_parallel(run->compute, rows, input_row, &call);
    product_run_one(run->compute, product_nt(call.pre, run->x, &w_enc, rows));
    compute_parallel(run->compute, rows, activate_row, &call);
    check_finite(sae, run, rows, "the encoding");
}

/* ---- decoding: x^ = norm^-1(f W_dec + b_dec) ---- */

/* x^ = norm^-1(f W_dec + b_dec) of one row, whose f W_dec is there */
static void finish_row(void *user, size_t row, int thread) {
    RowCall *call = user;
    const Sae *sae = call->sae;
    float *y = call->y + row * sae->d_in;
    const float *b_dec = sae->b_dec.data;
    (void)thread;
    for (size_t i = 0; i < sae->d_in; i++) {
        y[i] = norm_back(sae, call->run, row, y[i] + b_dec[i]);
    }
    call->run->bad[row] = !all_finite(y, sae->d_in);
}

/* x^ = norm^-1(f W_dec + b_dec), visiting active features alone: an element is the chain of fmaf
 * over them, in rising order. */
void sae_decode(const Sae *sae, SaeRun *run, const float *acts, float *recon, size_t rows) {
    check_run(sae, run, rows);
    if (rows > run->rows && (sae->norm == SAE_NORM_LAYER || sae->norm == SAE_NORM_CONSTANT)) {
        fail(STATUS_INPUT, "%s: decoding needs the norms of rows that were encoded", sae->path);
    }
    RowCall call = {.sae = sae, .run = run, .y = recon};
    memset(recon, 0, rows * sae->d_in * sizeof *recon);
    sparse_run(run->compute, (Sparse){.y = recon,
                                      .f = acts,
                                      .divide = sae->rescale_by_decoder_norm ? sae->dec_norm : NULL,
                                      .w = sae->w_dec,
                                      .w_row = sae->dec_feature,
                                      .w_col = sae->dec_input,
                                      .rows = rows,
                                      .k = sae->d_sae,
                                      .n = sae->d_in});
    compute_parallel(run->compute, rows, finish_row, &call);
    check_finite(sae, run, rows, "the reconstruction");
}

/* ---- statistics ---- */

/* sum_r |x_r - mean|^2, a column at a time. */
static double scatter(const float *x, size_t rows, size_t d_in) {
    double total = 0;
    for (size_t i = 0; i < d_in; i++) {
        double mean = 0;
        for (size_t r = 0; r < rows; r++) {
            mean += (double)x[r * d_in + i];
        }
        mean /= (double)rows;
        for (size_t r = 0; r < rows; r++) {
            double away = (double)x[r * d_in + i] - mean;
            total += away * away;
        }
    }
    return total;
}

/*   mse = mean (x - x^)^2                 fvu = sum |x - x^|^2 / sum |x - mean|^2
 *   cosine = mean x . x^ / (|x| |x^|)     l0 = mean over rows of the count of f_j that are not 0 */
SaeStats sae_stats(const float *x, const float *recon, const float *acts, size_t rows, size_t d_in,
                   size_t d_sae) {
    double error = 0, cosine = 0, norm = 0;
    size_t active = 0;
    for (size_t r = 0; r < rows; r++) {
        double xx = 0, yy = 0, xy = 0;
        for (size_t i = r * d_in; i < (r + 1) * d_in; i++) {
            double a = (double)x[i], b = (double)recon[i];
            error += (a - b) * (a - b);
            xx += a * a;
            yy += b * b;
            xy += a * b;
        }
        norm += sqrt(xx);
        cosine += xx > 0 && yy > 0 ? xy / (sqrt(xx) * sqrt(yy)) : 0;
        for (size_t j = r * d_sae; j < (r + 1) * d_sae; j++) {
            active += acts[j] != 0;
        }
    }
    double n = (double)rows, spread = scatter(x, rows, d_in);
    return (SaeStats){.mse = error / (n * (double)d_in),
                      .fvu = spread > 0 ? error / spread : (double)NAN,
                      .cosine = cosine / n,
                      .norm = norm / n,
                      .l0 = (double)active / n,
                      .sparsity = (double)active / n / (double)d_sae,
                      .rows = rows};
}

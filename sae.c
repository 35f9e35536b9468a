/* sae.c: what a sparse autoencoder computes, and statistics of it. The formats are in sae_load.c.
 *
 *   x' = norm(x) - [b_dec]     z = x' W_enc + b_enc     f = act(z)
 *   x^ = norm^-1(f W_dec + b_dec)
 *
 *   act        f_j                                                        source
 *   relu       ReLU(z)                                                    SAELens standard
 *   jumprelu   ReLU(z) [z > threshold]                                    GemmaScope, SAELens
 *   batchtopk  ReLU(z) [ReLU(z) > threshold]                              dictionary_learning
 *   topk       the k largest of z (or of z |W_dec row|), then ReLU        SAELens, sparsify
 *   gated      [u + b_gate > 0] ReLU(e^r_mag u + b_mag), u = x' W_enc     SAELens; pre: the second
 *
 *   norm       x'                                          back
 *   layer      (x - mean) / (std + 1e-5), std with n - 1   times std, plus mean
 *   constant   x c, c = sqrt(d) / |x|                      divided by c
 *   expected   x c, c given                                divided by c
 *
 * Easy to get wrong: layer's way back has no 1e-5; among equals topk takes the lowest index; with
 * rescale_acts_by_decoder_norm f holds z |W_dec row| and decoding divides; pre is z before all
 * that. */
#include "sae.h"

#include <math.h>
#include <string.h>

/* Decoder rows that wait for one call of product_run: 8 MB of them, within these limits. */
enum {
    GATHER_VALUES = 1 << 21,
    GATHER_LEAST = 64,
    GATHER_MOST = 4096
};

typedef struct HeapItem {
    float value;
    uint32_t feature;
} HeapItem;

struct SaeRun {
    const Compute *compute;
    size_t d_in, d_sae, max_rows, rows; /* rows: of the last sae_encode */
    size_t gather_rows;
    float *x;             /* [max_rows, d_in]: x' */
    float *mean, *factor; /* [max_rows]: layer: mean and std; constant: c */
    bool *bad;            /* [max_rows] */
    HeapItem *heap;       /* [threads, d_sae] */
    float *gathered;      /* [gather_rows, d_in] */
    float *coefficient;   /* [gather_rows] */
    uint32_t *feature;    /* [gather_rows] */
    Product *products;    /* [gather_rows] */
};

SaeRun *sae_run_layout(const Compute *compute, size_t d_in, size_t d_sae, size_t max_rows,
                       Arena *arena) {
    SaeRun r = {.compute = compute, .d_in = d_in, .d_sae = d_sae, .max_rows = max_rows};
    size_t threads = compute->threads > 0 ? (size_t)compute->threads : 1;
    size_t values, items, gathered;
    r.gather_rows = d_in > 0 ? GATHER_VALUES / d_in : GATHER_LEAST;
    r.gather_rows = r.gather_rows < GATHER_LEAST ? GATHER_LEAST : r.gather_rows;
    r.gather_rows = r.gather_rows > GATHER_MOST ? GATHER_MOST : r.gather_rows;
    if (!size_mul(&values, d_in, max_rows) || !size_mul(&items, threads, d_sae) ||
        !size_mul(&gathered, d_in, r.gather_rows)) {
        fail(STATUS_RESOURCE, "an SAE [%zu, %zu] is too large for this machine", d_in, d_sae);
    }
    SaeRun *run = arena_alloc(arena, 1, sizeof *run);
    r.x = arena_alloc(arena, values, sizeof *r.x);
    r.mean = arena_alloc(arena, max_rows, sizeof *r.mean);
    r.factor = arena_alloc(arena, max_rows, sizeof *r.factor);
    r.bad = arena_alloc(arena, max_rows, sizeof *r.bad);
    r.heap = arena_alloc(arena, items, sizeof *r.heap);
    r.gathered = arena_alloc(arena, gathered, sizeof *r.gathered);
    r.coefficient = arena_alloc(arena, r.gather_rows, sizeof *r.coefficient);
    r.feature = arena_alloc(arena, r.gather_rows, sizeof *r.feature);
    r.products = arena_alloc(arena, r.gather_rows, sizeof *r.products);
    if (run != NULL) {
        *run = r;
    }
    return run;
}

static void check_run(const Sae *sae, const SaeRun *run, size_t rows) {
    if (sae->d_in > run->d_in || sae->d_sae > run->d_sae || rows > run->max_rows) {
        fail(STATUS_INPUT,
             "%s: %zu rows of an SAE [%zu, %zu] exceed what was planned: %zu of [%zu, %zu]",
             sae->path, rows, sae->d_in, sae->d_sae, run->max_rows, run->d_in, run->d_sae);
    }
    if (sae->norm == SAE_NORM_EXPECTED && !(sae->norm_factor > 0)) {
        fail(STATUS_INPUT,
             "%s: normalize_activations is expected_average_only_in and its factor is not in the "
             "files: give --norm-factor X",
             sae->path);
    }
}

static void first_bad(const Sae *sae, const SaeRun *run, size_t rows, const char *what) {
    for (size_t r = 0; r < rows; r++) {
        if (run->bad[r]) {
            fail(STATUS_INPUT,
                 "%s: %s of row %zu is not finite: the weights or the input hold NaN, infinity or "
                 "numbers too large",
                 sae->path, what, r);
        }
    }
}

/* ---- encoding ---- */

typedef struct EncodeCall {
    const Sae *sae;
    SaeRun *run;
    const float *x;    /* [rows, d_in] */
    float *pre, *acts; /* [rows, d_sae]; pre may be acts */
} EncodeCall;

static float row_mean(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i];
    }
    return (float)(sum / (double)n);
}

static void subtract(float *y, const float *x, float value, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] = x[i] - value;
    }
}

/* y = norm(x) of one row, keeping what the way back needs. */
static void row_normalize(const Sae *sae, SaeRun *run, size_t row, float *y) {
    size_t d = sae->d_in;
    double sum = 0;
    switch (sae->norm) {
    case SAE_NORM_NONE:
        break;
    case SAE_NORM_EXPECTED:
        for (size_t i = 0; i < d; i++) {
            y[i] *= sae->norm_factor;
        }
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
    case SAE_NORM_LAYER:
        run->mean[row] = row_mean(y, d);
        subtract(y, y, run->mean[row], d);
        double mean = 0;
        for (size_t i = 0; i < d; i++) {
            mean += (double)y[i];
        }
        mean /= (double)d;
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

static void prepare_row(void *user, size_t row, int thread) {
    EncodeCall *e = user;
    const Sae *sae = e->sae;
    size_t d = sae->d_in;
    float *y = e->run->x + row * d;
    const float *b_dec = sae->b_dec.data;
    (void)thread;
    memcpy(y, e->x + row * d, d * sizeof *y);
    if (sae->centre == SAE_CENTRE_YES) {
        subtract(y, y, row_mean(y, d), d);
    }
    row_normalize(sae, e->run, row, y);
    if (sae->subtract_b_dec) {
        for (size_t i = 0; i < d; i++) {
            y[i] -= b_dec[i];
        }
    }
}

/* ---- topk: the k largest positive values, in a heap whose root is the one to give way: the
 * smallest, among equals the highest index. Values that are not positive are 0 after ReLU. ---- */

static bool heap_yields(HeapItem a, HeapItem b) {
    return a.value < b.value || (a.value == b.value && a.feature > b.feature);
}

static void heap_sink(HeapItem *heap, size_t count, size_t at) {
    HeapItem item = heap[at];
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

static void heap_rise(HeapItem *heap, size_t at) {
    HeapItem item = heap[at];
    for (; at > 0 && heap_yields(item, heap[(at - 1) / 2]); at = (at - 1) / 2) {
        heap[at] = heap[(at - 1) / 2];
    }
    heap[at] = item;
}

static void row_topk(const Sae *sae, HeapItem *heap, const float *pre, float *acts) {
    size_t count = 0;
    for (size_t j = 0; j < sae->d_sae; j++) {
        HeapItem item = {pre[j], (uint32_t)j};
        if (sae->rescale_by_decoder_norm) {
            item.value *= sae->dec_norm[j];
        }
        if (!(item.value > 0)) {
            continue;
        }
        if (count < sae->k) {
            heap[count] = item;
            heap_rise(heap, count++);
        } else if (item.value > heap[0].value) {
            heap[0] = item;
            heap_sink(heap, count, 0);
        }
    }
    memset(acts, 0, sae->d_sae * sizeof *acts);
    for (size_t i = 0; i < count; i++) {
        acts[heap[i].feature] = heap[i].value;
    }
}

static void activate_row(void *user, size_t row, int thread) {
    EncodeCall *e = user;
    const Sae *sae = e->sae;
    size_t n = sae->d_sae;
    float *pre = e->pre + row * n, *acts = e->acts + row * n;
    const float *threshold = sae->threshold.data;
    const float *b_gate = sae->b_gate.data, *b_mag = sae->b_mag.data;
    bool bad = false;
    for (size_t j = 0; j < n; j++) {
        bad = bad || !isfinite(pre[j]);
    }
    e->run->bad[row] = bad;
    switch (sae->act) {
    case SAE_RELU:
        for (size_t j = 0; j < n; j++) {
            acts[j] = pre[j] > 0 ? pre[j] : 0.0f;
        }
        break;
    case SAE_JUMPRELU:
    case SAE_BATCHTOPK: /* the same: where z and ReLU(z) differ, the product is 0 either way */
        for (size_t j = 0; j < n; j++) {
            acts[j] = pre[j] > 0 && pre[j] > threshold[j] ? pre[j] : 0.0f;
        }
        break;
    case SAE_TOPK:
        row_topk(sae, e->run->heap + (size_t)thread * e->run->d_sae, pre, acts);
        break;
    case SAE_GATED:
        for (size_t j = 0; j < n; j++) {
            bool open = pre[j] + b_gate[j] > 0;
            float magnitude = sae->mag_gain[j] * pre[j] + b_mag[j];
            pre[j] = magnitude;
            acts[j] = open && magnitude > 0 ? magnitude : 0.0f;
        }
        break;
    }
}

void sae_encode(const Sae *sae, SaeRun *run, const float *x, float *pre, float *acts, size_t rows) {
    check_run(sae, run, rows);
    EncodeCall e = {.sae = sae, .run = run, .x = x, .pre = pre != NULL ? pre : acts, .acts = acts};
    compute_parallel(run->compute, rows, prepare_row, &e);
    run->rows = rows;
    Product product = {.c = e.pre,
                       .ldc = sae->d_sae,
                       .a = run->x,
                       .a_row = (ptrdiff_t)sae->d_in,
                       .a_col = 1,
                       .b = sae->w_enc,
                       .b_row = sae->enc_feature,
                       .b_col = sae->enc_input,
                       .bias = sae->b_enc,
                       .m = rows,
                       .n = sae->d_sae,
                       .k = sae->d_in};
    product_run(run->compute, &product, 1);
    compute_parallel(run->compute, rows, activate_row, &e);
    first_bad(sae, run, rows, "the encoding");
}

/* ---- decoding ----
 * An element is the chain of fmaf over the row's active features, ascending. So that product_run
 * can run it, the decoder rows that are active are gathered, a batch at a time; a chain that
 * such a batch cuts continues from memory. */

typedef struct DecodeCall {
    const Sae *sae;
    SaeRun *run;
    float *recon; /* [rows, d_in] */
    size_t gathered, pieces;
} DecodeCall;

static void gather_row(void *user, size_t i, int thread) {
    DecodeCall *d = user;
    const Sae *sae = d->sae;
    float *out = d->run->gathered + i * sae->d_in;
    size_t first = d->run->feature[i] * (size_t)sae->dec_feature;
    (void)thread;
    if (sae->dec_input == 1) {
        weight_widen(out, sae->w_dec, first, sae->d_in);
        return;
    }
    for (size_t c = 0; c < sae->d_in; c++) {
        out[c] = weight_at(sae->w_dec, first + c * (size_t)sae->dec_input);
    }
}

static void decode_flush(DecodeCall *d) {
    if (d->gathered == 0) {
        return;
    }
    compute_parallel(d->run->compute, d->gathered, gather_row, d);
    product_run(d->run->compute, d->run->products, d->pieces);
    d->gathered = d->pieces = 0;
}

/* Queues the features from `first` on of one row while there is room; returns where it stopped. */
static size_t decode_queue(DecodeCall *d, const float *acts, float *recon, size_t first,
                           bool resume) {
    const Sae *sae = d->sae;
    SaeRun *run = d->run;
    size_t start = d->gathered, j = first;
    for (; j < sae->d_sae; j++) {
        if (acts[j] == 0) {
            continue;
        }
        if (d->gathered == run->gather_rows) {
            break;
        }
        run->feature[d->gathered] = (uint32_t)j;
        run->coefficient[d->gathered++] =
            sae->rescale_by_decoder_norm ? acts[j] / sae->dec_norm[j] : acts[j];
    }
    if (d->gathered > start) {
        run->products[d->pieces++] =
            (Product){.c = recon,
                      .ldc = sae->d_in,
                      .a = run->coefficient + start,
                      .a_row = 0, /* one row */
                      .a_col = 1,
                      .b = {.data = run->gathered + start * sae->d_in, .dtype = DTYPE_F32},
                      .b_row = 1,
                      .b_col = (ptrdiff_t)sae->d_in,
                      .m = 1,
                      .n = sae->d_in,
                      .k = d->gathered - start,
                      .resume = resume};
    }
    return j;
}

static void finish_row(void *user, size_t row, int thread) {
    DecodeCall *d = user;
    const Sae *sae = d->sae;
    const SaeRun *run = d->run;
    float *y = d->recon + row * sae->d_in;
    const float *b_dec = sae->b_dec.data;
    bool bad = false;
    (void)thread;
    for (size_t i = 0; i < sae->d_in; i++) {
        float value = y[i] + b_dec[i];
        switch (sae->norm) {
        case SAE_NORM_NONE:
            break;
        case SAE_NORM_EXPECTED:
            value /= sae->norm_factor;
            break;
        case SAE_NORM_CONSTANT:
            value /= run->factor[row];
            break;
        case SAE_NORM_LAYER:
            value = value * run->factor[row] + run->mean[row];
            break;
        }
        bad = bad || !isfinite(value);
        y[i] = value;
    }
    run->bad[row] = bad;
}

void sae_decode(const Sae *sae, SaeRun *run, const float *acts, float *recon, size_t rows) {
    check_run(sae, run, rows);
    if (rows > run->rows && (sae->norm == SAE_NORM_LAYER || sae->norm == SAE_NORM_CONSTANT)) {
        fail(STATUS_INPUT, "%s: decoding needs the norms of rows that were encoded", sae->path);
    }
    DecodeCall d = {.sae = sae, .run = run, .recon = recon};
    memset(recon, 0, rows * sae->d_in * sizeof *recon);
    for (size_t r = 0; r < rows; r++) {
        const float *row = acts + r * sae->d_sae;
        size_t next = decode_queue(&d, row, recon + r * sae->d_in, 0, false);
        while (next < sae->d_sae) {
            bool resume = d.pieces > 0 && d.run->products[d.pieces - 1].c == recon + r * sae->d_in;
            decode_flush(&d);
            next = decode_queue(&d, row, recon + r * sae->d_in, next, resume);
        }
    }
    decode_flush(&d);
    compute_parallel(run->compute, rows, finish_row, &d);
    first_bad(sae, run, rows, "the reconstruction");
}

/* ---- centring and statistics ---- */

typedef struct TargetCall {
    const Sae *sae;
    const float *x;
    float *target;
} TargetCall;

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

static void target_row(void *user, size_t row, int thread) {
    TargetCall *t = user;
    size_t d = t->sae->d_in;
    const float *x = t->x + row * d;
    (void)thread;
    subtract(t->target + row * d, x, t->sae->centre == SAE_CENTRE_YES ? row_mean(x, d) : 0.0f, d);
}

void sae_target(const Sae *sae, const Compute *compute, float *target, const float *x,
                size_t rows) {
    TargetCall t = {.sae = sae, .x = x, .target = target};
    compute_parallel(compute, rows, target_row, &t);
}

/* sum |x - mean|^2 over rows and columns, a column at a time. */
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

void sae_stats(SaeStats *stats, const float *x, const float *recon, const float *acts, size_t rows,
               size_t d_in, size_t d_sae) {
    double error_sum = 0, cosine = 0, norm = 0, active = 0;
    for (size_t r = 0; r < rows; r++) {
        double xx = 0, yy = 0, xy = 0;
        for (size_t i = r * d_in; i < (r + 1) * d_in; i++) {
            double a = (double)x[i], b = (double)recon[i];
            error_sum += (a - b) * (a - b);
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
    *stats = (SaeStats){.mse = error_sum / (n * (double)d_in),
                        .fvu = spread > 0 ? error_sum / spread : (double)NAN,
                        .cosine = cosine / n,
                        .norm = norm / n,
                        .l0 = active / n,
                        .sparsity = active / n / (double)d_sae,
                        .rows = rows};
}

const char *sae_source_name(SaeSource source) {
    switch (source) {
    case SAE_GEMMASCOPE:
        return "GemmaScope";
    case SAE_SAELENS:
        return "SAELens";
    case SAE_SAELENS_OLD:
        return "SAELens before 6";
    case SAE_SPARSIFY:
        return "EleutherAI sparsify";
    case SAE_DICTIONARY_LEARNING:
        return "dictionary_learning";
    }
    return "";
}

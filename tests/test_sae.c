/* Golden: every format and convention against the libraries that define them. Contract: threads and
 * blocks change no bit. Behaviour: hook points, searching, refusals. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint.h"
#include "sae_load.h"

#define GOLDEN "tests/golden/sae/"
#define DICTIONARY GOLDEN "dictionary/"
#define SCOPE GOLDEN "gemma-scope-2b-pt-"

typedef struct Fixture {
    Error error;
    Compute compute;
    size_t d_in, d_sae, rows;
    Arena *arena, *block;
    SaeRun *run;
} Fixture;

static void layout(Arena *arena, void *user) {
    Fixture *f = user;
    f->run = sae_run_layout(&f->compute, f->d_in, f->d_sae, f->rows, arena);
}

static void start(Fixture *f, int threads, size_t d_in, size_t d_sae, size_t rows) {
    *f = (Fixture){.d_in = d_in, .d_sae = d_sae, .rows = rows, .arena = arena_new()};
    compute_open(&f->compute, f->arena, threads);
    f->block = arena_plan(layout, f);
    cr_assert_not_null(f->run);
}

static void stop(Fixture *f) {
    arena_free(f->block);
    arena_free(f->arena);
}

static float *values(const TensorStore *store, const char *name) {
    const Tensor *t = tensors_find(store, name);
    cr_assert_not_null(t, "%s", name);
    cr_assert_eq(t->dtype, DTYPE_F32);
    float *copy = malloc(t->count * sizeof *copy);
    memcpy(copy, t->data, t->count * sizeof *copy);
    return copy;
}

static double distance(const float *a, const float *b, size_t n) {
    double far = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        far = fmax(far, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    return far / largest;
}

/* ---- golden ---- */

typedef struct Case {
    const char *path;
    SaeSource source;
    SaeAct act;
    SaeNorm norm;
    const char *hook;
    double norm_factor;
    bool unit_decoder;
} Case;

static const Case cases[] = {
    {GOLDEN "saelens/standard", SAE_SAELENS, SAE_RELU, SAE_NORM_NONE, "blocks.0.hook_resid_post", 0,
     false},
    {GOLDEN "saelens/standard_raw_input", SAE_SAELENS, SAE_RELU, SAE_NORM_NONE,
     "blocks.1.hook_resid_post", 0, false},
    {GOLDEN "saelens/jumprelu", SAE_SAELENS, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.2.hook_resid_post", 0, false},
    {GOLDEN "saelens/topk", SAE_SAELENS, SAE_TOPK, SAE_NORM_NONE, "blocks.3.hook_resid_post", 0,
     false},
    {GOLDEN "saelens/topk_rescale", SAE_SAELENS, SAE_TOPK, SAE_NORM_NONE,
     "blocks.4.hook_resid_post", 0, false},
    {GOLDEN "saelens/gated", SAE_SAELENS, SAE_GATED, SAE_NORM_NONE, "blocks.5.hook_resid_post", 0,
     false},
    {GOLDEN "saelens/gated_raw_input", SAE_SAELENS, SAE_GATED, SAE_NORM_NONE,
     "blocks.6.hook_resid_post", 0, false},
    {GOLDEN "saelens/layer_norm", SAE_SAELENS, SAE_RELU, SAE_NORM_LAYER, "blocks.7.hook_resid_post",
     0, false},
    {GOLDEN "saelens/layer_norm_topk", SAE_SAELENS, SAE_TOPK, SAE_NORM_LAYER,
     "blocks.8.hook_resid_post", 0, false},
    {GOLDEN "saelens/constant_norm", SAE_SAELENS, SAE_JUMPRELU, SAE_NORM_CONSTANT,
     "blocks.9.hook_resid_post", 0, false},
    {GOLDEN "saelens/expected_average", SAE_SAELENS, SAE_RELU, SAE_NORM_EXPECTED,
     "blocks.10.hook_resid_post", 0.3125, false},
    {GOLDEN "saelens/expected_average_jumprelu", SAE_SAELENS, SAE_JUMPRELU, SAE_NORM_EXPECTED,
     "blocks.11.hook_resid_post", 0.3125, false},
    {GOLDEN "saelens/hook_z", SAE_SAELENS, SAE_RELU, SAE_NORM_NONE, "blocks.0.attn.hook_z", 0,
     false},
    {GOLDEN "saelens/bfloat16", SAE_SAELENS, SAE_RELU, SAE_NORM_NONE, "blocks.12.hook_resid_post",
     0, false},
    {GOLDEN "saelens/float16", SAE_SAELENS, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.13.hook_resid_post", 0, false},
    {GOLDEN "saelens/b_dec_absent", SAE_SAELENS, SAE_RELU, SAE_NORM_NONE,
     "blocks.14.hook_resid_post", 0, false},
    {GOLDEN "saelens/old_hook_point", SAE_SAELENS_OLD, SAE_RELU, SAE_NORM_NONE,
     "blocks.3.hook_resid_pre", 0, false},
    {GOLDEN "saelens/old_topk_str", SAE_SAELENS_OLD, SAE_TOPK, SAE_NORM_NONE,
     "blocks.4.hook_resid_pre", 0, false},
    {GOLDEN "saelens/old_topk", SAE_SAELENS_OLD, SAE_TOPK, SAE_NORM_LAYER,
     "blocks.5.hook_resid_pre", 0, false},
    {GOLDEN "saelens/old_flag", SAE_SAELENS_OLD, SAE_RELU, SAE_NORM_EXPECTED,
     "blocks.6.hook_resid_pre", 0.75, false},
    {GOLDEN "saelens/old_scaling_ones", SAE_SAELENS_OLD, SAE_RELU, SAE_NORM_NONE,
     "blocks.7.hook_resid_pre", 0, false},
    {GOLDEN "saelens/old_hook_z", SAE_SAELENS_OLD, SAE_RELU, SAE_NORM_NONE, "blocks.5.attn.hook_z",
     0, false},
    {GOLDEN "saelens/old_jumprelu", SAE_SAELENS_OLD, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.8.hook_resid_pre", 0, false},
    {GOLDEN "saelens/old_gated", SAE_SAELENS_OLD, SAE_GATED, SAE_NORM_NONE,
     "blocks.9.hook_resid_pre", 0, false},
    {GOLDEN "saelens/old_centred", SAE_SAELENS_OLD, SAE_RELU, SAE_NORM_NONE,
     "blocks.10.hook_resid_pre", 0, false},
    {GOLDEN "saelens/layer_norm_jumprelu", SAE_SAELENS, SAE_JUMPRELU, SAE_NORM_LAYER,
     "blocks.15.hook_resid_post", 0, false},
    {GOLDEN "saelens/layer_norm_gated", SAE_SAELENS, SAE_GATED, SAE_NORM_LAYER,
     "blocks.16.hook_resid_post", 0, false},
    {GOLDEN "saelens/constant_norm_topk", SAE_SAELENS, SAE_TOPK, SAE_NORM_CONSTANT,
     "blocks.17.hook_resid_post", 0, false},
    {GOLDEN "saelens/expected_average_topk", SAE_SAELENS, SAE_TOPK, SAE_NORM_EXPECTED,
     "blocks.18.hook_resid_post", 0.4, false},
    {GOLDEN "saelens/expected_average_topk_rescale", SAE_SAELENS, SAE_TOPK, SAE_NORM_EXPECTED,
     "blocks.22.hook_resid_post", 0.25, false},
    {GOLDEN "saelens/expected_average_gated", SAE_SAELENS, SAE_GATED, SAE_NORM_EXPECTED,
     "blocks.19.hook_resid_post", 2.5, false},
    {GOLDEN "saelens/trained_batchtopk", SAE_SAELENS, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.20.hook_resid_post", 0, false},
    {GOLDEN "saelens/trained_topk", SAE_SAELENS, SAE_TOPK, SAE_NORM_NONE,
     "blocks.21.hook_resid_post", 0, false},
    {GOLDEN "saelens/hook_z_topk", SAE_SAELENS, SAE_TOPK, SAE_NORM_NONE, "blocks.1.attn.hook_z", 0,
     false},
    {GOLDEN "saelens/old_constant_norm", SAE_SAELENS_OLD, SAE_RELU, SAE_NORM_CONSTANT,
     "blocks.11.hook_resid_pre", 0, false},
    {GOLDEN "saelens/old_expected", SAE_SAELENS_OLD, SAE_RELU, SAE_NORM_EXPECTED,
     "blocks.2.hook_mlp_out", 0.6, false},
    {SCOPE "res/layer_3/width_16k/average_l0_59", SAE_GEMMASCOPE, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.3.hook_resid_post", 0, false},
    {SCOPE "res/layer_3/width_16k/average_l0_108", SAE_GEMMASCOPE, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.3.hook_resid_post", 0, false},
    {SCOPE "res/layer_4/width_16k/average_l0_124", SAE_GEMMASCOPE, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.4.hook_resid_post", 0, false},
    {SCOPE "res/embedding/width_4k/average_l0_6", SAE_GEMMASCOPE, SAE_JUMPRELU, SAE_NORM_NONE,
     "hook_embed", 0, false},
    {SCOPE "mlp/layer_3/width_16k/average_l0_40", SAE_GEMMASCOPE, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.3.hook_mlp_out", 0, false},
    {SCOPE "att/layer_3/width_16k/average_l0_40", SAE_GEMMASCOPE, SAE_JUMPRELU, SAE_NORM_NONE,
     "blocks.3.attn.hook_z", 0, false},
    {GOLDEN "sparsify/layers.0", SAE_SPARSIFY, SAE_TOPK, SAE_NORM_NONE, "blocks.0.hook_resid_post",
     0, false},
    {GOLDEN "sparsify/layers.1", SAE_SPARSIFY, SAE_TOPK, SAE_NORM_NONE, "blocks.1.hook_resid_post",
     0, false},
    {GOLDEN "sparsify/layers.1.mlp", SAE_SPARSIFY, SAE_TOPK, SAE_NORM_NONE, "blocks.1.hook_mlp_out",
     0, false},
    {GOLDEN "sparsify/embed_tokens", SAE_SPARSIFY, SAE_TOPK, SAE_NORM_NONE, "hook_embed", 0, false},
    {DICTIONARY "Standard_pythia-70m-deduped__0108/resid_post_layer_3/trainer_0",
     SAE_DICTIONARY_LEARNING, SAE_RELU, SAE_NORM_NONE, "blocks.3.hook_resid_post", 0, false},
    {DICTIONARY "Standard_pythia-70m-deduped__0108/resid_post_layer_3/trainer_0",
     SAE_DICTIONARY_LEARNING, SAE_RELU, SAE_NORM_NONE, "blocks.3.hook_resid_post", 0, true},
    {DICTIONARY "TopK_pythia-70m-deduped__0108/resid_post_layer_3/trainer_1",
     SAE_DICTIONARY_LEARNING, SAE_TOPK, SAE_NORM_NONE, "blocks.3.hook_resid_post", 0, false},
    {DICTIONARY "BatchTopK_pythia-70m-deduped__0108/resid_post_layer_3/trainer_2",
     SAE_DICTIONARY_LEARNING, SAE_BATCHTOPK, SAE_NORM_NONE, "blocks.3.hook_resid_post", 0, false},
    {DICTIONARY "JumpRelu_pythia-70m-deduped__0108/resid_post_layer_3/trainer_3",
     SAE_DICTIONARY_LEARNING, SAE_JUMPRELU, SAE_NORM_NONE, "blocks.3.hook_resid_post", 0, false},
    {DICTIONARY "Gated_pythia-70m-deduped__0108/mlp_out_layer_4/trainer_4", SAE_DICTIONARY_LEARNING,
     SAE_GATED, SAE_NORM_NONE, "blocks.4.hook_mlp_out", 0, false},
    {DICTIONARY "pythia-70m-deduped/resid_out_layer3/10_32768", SAE_DICTIONARY_LEARNING, SAE_RELU,
     SAE_NORM_NONE, "blocks.3.hook_resid_post", 0, false},
    {DICTIONARY "pythia-70m-deduped/attn_out_layer0/10_32768", SAE_DICTIONARY_LEARNING, SAE_RELU,
     SAE_NORM_NONE, "blocks.0.hook_attn_out", 0, false},
    {DICTIONARY "pythia-70m-deduped/embed/10_32768", SAE_DICTIONARY_LEARNING, SAE_RELU,
     SAE_NORM_NONE, "hook_embed", 0, false},
    {DICTIONARY "topk_ctx128_0730/resid_post_layer_2/trainer_0", SAE_DICTIONARY_LEARNING, SAE_TOPK,
     SAE_NORM_NONE, "blocks.2.hook_resid_post", 0, false},
};

static void golden_case(const Case *c) {
    Fixture f;
    start(&f, 2, 24, 96, 7);
    Sae sae;
    SaeOptions options = {.norm_factor = c->norm_factor, .unit_decoder = c->unit_decoder};
    sae_open(&sae, f.arena, c->path, &options);
    char hook[HOOK_NAME_MAX], path[256];
    cr_assert(sae.hook_known, "%s", c->path);
    hook_name(hook, sae.hook, sae.layer, false, false);
    cr_assert_str_eq(hook, c->hook, "%s", c->path);
    cr_assert_eq(sae.source, c->source, "%s", c->path);
    cr_assert_eq(sae.act, c->act, "%s", c->path);
    cr_assert_eq(sae.norm, c->norm, "%s", c->path);

    TensorStore golden;
    snprintf(path, sizeof path, "%s/expected%s.safetensors", c->path,
             c->unit_decoder ? "_unit" : "");
    tensors_open(&golden, f.arena, path);
    float *x = values(&golden, "x"), *pre = values(&golden, "pre"), *acts = values(&golden, "acts"),
          *recon = values(&golden, "recon");
    size_t rows = tensors_find(&golden, "x")->shape[0], n = rows * sae.d_sae;
    cr_assert_eq(tensors_find(&golden, "pre")->count, n);
    cr_assert_eq(tensors_find(&golden, "recon")->count, rows * sae.d_in);
    float *my_pre = malloc(n * sizeof(float)), *my_acts = malloc(n * sizeof(float)),
          *alone = malloc(n * sizeof(float)), *my_recon = malloc(rows * sae.d_in * sizeof(float));
    sae_encode(&sae, f.run, x, NULL, alone, rows);
    sae_encode(&sae, f.run, x, my_pre, my_acts, rows);
    sae_decode(&sae, f.run, my_acts, my_recon, rows);
    cr_assert_arr_eq(alone, my_acts, n * sizeof(float), "%s: pre changes acts", c->path);
    /* Sums of at most 24 products of about unit size in another order: 1e-6; the margin of choices
     * in the goldens is 1e-4, so no feature may differ in being active. */
    cr_assert(distance(my_pre, pre, n) < 1e-5, "%s: pre %g", c->path, distance(my_pre, pre, n));
    cr_assert(distance(my_acts, acts, n) < 1e-5, "%s: acts %g", c->path,
              distance(my_acts, acts, n));
    for (size_t i = 0; i < n; i++) {
        cr_assert_eq(my_acts[i] != 0, acts[i] != 0, "%s: feature %zu", c->path, i);
    }
    double far = distance(my_recon, recon, rows * sae.d_in);
    cr_assert(far < 1e-5, "%s: recon %g", c->path, far);
    free(x), free(pre), free(acts), free(recon);
    free(my_pre), free(my_acts), free(alone), free(my_recon);
    stop(&f);
}

Test(sae, every_convention_equals_its_library) {
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        golden_case(&cases[i]);
    }
}

Test(sae, what_the_settings_say_about_the_model) {
    Sae sae;
    Arena *arena = arena_new();
    SaeOptions centre = {.centre = SAE_CENTRE_YES};
    sae_open(&sae, arena, GOLDEN "saelens/old_centred", NULL);
    cr_assert_eq(sae.centre, SAE_CENTRE_YES);
    cr_assert_str_eq(sae.model_name, "gpt2-small");
    cr_assert(sae.prepend_bos);
    /* The files say no: an option settles only what they leave open. */
    sae_open(&sae, arena, GOLDEN "saelens/old_gated", NULL);
    cr_assert_eq(sae.centre, SAE_CENTRE_NO);
    Error error;
    ATTEMPT(&error, sae_open(&sae, arena_new(), GOLDEN "saelens/old_gated", &centre));
    cr_assert_str_eq(error.text,
                     GOLDEN "saelens/old_gated: --centre has no effect on what is read here");
    sae_open(&sae, arena, GOLDEN "saelens/old_jumprelu", NULL);
    cr_assert_eq(sae.centre, SAE_CENTRE_UNKNOWN);
    sae_open(&sae, arena, GOLDEN "saelens/old_jumprelu", &centre);
    cr_assert_eq(sae.centre, SAE_CENTRE_YES);
    sae_open(&sae, arena, SCOPE "res/layer_3/width_16k/average_l0_59/params.npz", NULL);
    cr_assert(sae.average_l0 == 59 && sae.width_16k);
    arena_free(arena);
}

/* ---- contract: a large SAE in memory, against the formula in the contract's own words ---- */

typedef struct Made {
    Sae sae;
    float *w_enc, *w_dec, *b_enc, *b_dec, *threshold, *norm;
} Made;

static float *noise(Random *random, size_t n, float factor) {
    float *out = malloc(n * sizeof *out);
    for (size_t i = 0; i < n; i++) {
        out[i] = factor * (2 * random_uniform(random) - 1);
    }
    return out;
}

static void make(Made *m, size_t d_in, size_t d_sae, size_t k) {
    Random random = random_start(475, RANDOM_TEST);
    m->w_enc = noise(&random, d_in * d_sae, 0.3f);
    m->w_dec = noise(&random, d_in * d_sae, 0.3f);
    m->b_enc = noise(&random, d_sae, 0.5f);
    m->b_dec = noise(&random, d_in, 0.5f);
    m->threshold = noise(&random, d_sae, 0.5f);
    m->norm = noise(&random, d_sae, 1);
    for (size_t j = 0; j < d_sae; j++) {
        m->norm[j] = fabsf(m->norm[j]) + 0.1f;
    }
    m->sae = (Sae){.act = k > 0 ? SAE_TOPK : SAE_JUMPRELU,
                   .d_in = d_in,
                   .d_sae = d_sae,
                   .k = k,
                   .subtract_b_dec = true,
                   .path = "made",
                   .w_enc = {m->w_enc, DTYPE_F32},
                   .enc_feature = 1,
                   .enc_input = (ptrdiff_t)d_sae,
                   .w_dec = {m->w_dec, DTYPE_F32},
                   .dec_feature = (ptrdiff_t)d_in,
                   .dec_input = 1,
                   .b_enc = {m->b_enc, DTYPE_F32},
                   .b_dec = {m->b_dec, DTYPE_F32},
                   .threshold = {m->threshold, DTYPE_F32},
                   .dec_norm = m->norm};
}

static void made_free(Made *m) {
    free(m->w_enc), free(m->w_dec), free(m->b_enc), free(m->b_dec), free(m->threshold),
        free(m->norm);
}

Test(sae, decoding_is_the_chain_over_active_features) {
    /* More rows and features than the decoder lists at once, rows without any, rows of all. */
    enum {
        D_IN = 37,
        D_SAE = 700,
        ROWS = 1030
    };
    Made m;
    make(&m, D_IN, D_SAE, 0);
    Random random = random_start(7, RANDOM_TEST);
    float *acts = noise(&random, ROWS * D_SAE, 1), *want = calloc(ROWS * D_IN, sizeof *want);
    for (size_t i = 0; i < ROWS * D_SAE; i++) {
        size_t row = i / D_SAE % 9;
        acts[i] = row == 3 || (row != 5 && acts[i] < 0.9f - 0.2f * (float)row) ? 0 : acts[i];
    }
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t i = 0; i < D_IN; i++) {
            float sum = 0;
            for (size_t j = 0; j < D_SAE; j++) {
                if (acts[r * D_SAE + j] != 0) {
                    sum = fmaf(acts[r * D_SAE + j], m.w_dec[j * D_IN + i], sum);
                }
            }
            want[r * D_IN + i] = sum + m.b_dec[i];
        }
    }
    float *transposed = malloc(D_IN * D_SAE * sizeof *transposed);
    for (size_t j = 0; j < D_SAE; j++) {
        for (size_t i = 0; i < D_IN; i++) {
            transposed[i * D_SAE + j] = m.w_dec[j * D_IN + i];
        }
    }
    for (int threads = 1; threads <= 3; threads++) {
        Fixture f;
        start(&f, threads, D_IN, D_SAE, ROWS);
        float got[ROWS * D_IN];
        sae_decode(&m.sae, f.run, acts, got, ROWS);
        cr_assert_arr_eq(got, want, sizeof got);
        Sae other = m.sae; /* the decoder stored [d_in, d_sae] */
        other.w_dec.data = transposed;
        other.dec_feature = 1;
        other.dec_input = D_SAE;
        memset(got, 0, sizeof got);
        sae_decode(&other, f.run, acts, got, ROWS);
        cr_assert_arr_eq(got, want, sizeof got);
        stop(&f);
    }
    free(acts), free(want), free(transposed);
    made_free(&m);
}

Test(sae, topk_takes_the_lowest_index_among_equals) {
    enum {
        D_IN = 3,
        D_SAE = 50,
        ROWS = 40
    };
    for (size_t k = 1; k <= D_SAE; k += 7) {
        Made m;
        make(&m, D_IN, D_SAE, k);
        m.sae.rescale_by_decoder_norm = k % 2 == 0;
        Random random = random_start(k, RANDOM_TEST);
        for (size_t i = 0; i < D_IN * D_SAE; i++) { /* few values, so that many are equal */
            m.w_enc[i] = (float)random_below(&random, 3) - 1;
        }
        memset(m.b_enc, 0, D_SAE * sizeof *m.b_enc);
        memset(m.b_dec, 0, D_IN * sizeof *m.b_dec);
        for (size_t j = 0; j < D_SAE; j++) {
            m.norm[j] = 2;
        }
        float x[ROWS * D_IN], pre[ROWS * D_SAE], acts[ROWS * D_SAE];
        for (size_t i = 0; i < ROWS * D_IN; i++) {
            x[i] = (float)random_below(&random, 3) - 1;
        }
        Fixture f;
        start(&f, 2, D_IN, D_SAE, ROWS);
        sae_encode(&m.sae, f.run, x, pre, acts, ROWS);
        for (size_t r = 0; r < ROWS; r++) {
            const float *z = pre + r * D_SAE;
            for (size_t j = 0; j < D_SAE; j++) {
                size_t before = 0; /* features that come before j in the order of the choice */
                for (size_t i = 0; i < D_SAE; i++) {
                    before += z[i] > z[j] || (z[i] == z[j] && i < j);
                }
                float value = before < k && z[j] > 0 ? z[j] : 0;
                cr_assert_eq(acts[r * D_SAE + j],
                             m.sae.rescale_by_decoder_norm ? 2 * value : value);
            }
        }
        stop(&f);
        made_free(&m);
    }
}

Test(sae, threads_and_rows_together_change_no_bit) {
    enum {
        D_IN = 65,
        D_SAE = 700,
        ROWS = 33
    };
    for (size_t k = 0; k < 20; k += 19) {
        Made m;
        make(&m, D_IN, D_SAE, k);
        m.sae.norm = SAE_NORM_LAYER;
        Random random = random_start(3, RANDOM_TEST);
        float *x = noise(&random, ROWS * D_IN, 2);
        float *one = malloc(ROWS * D_SAE * sizeof *one), *all = malloc(ROWS * D_SAE * sizeof *all);
        float recon_one[ROWS * D_IN], recon_all[ROWS * D_IN];
        Fixture f;
        start(&f, 1, D_IN, D_SAE, ROWS);
        for (size_t r = 0; r < ROWS; r++) {
            sae_encode(&m.sae, f.run, x + r * D_IN, NULL, one + r * D_SAE, 1);
            sae_decode(&m.sae, f.run, one + r * D_SAE, recon_one + r * D_IN, 1);
        }
        stop(&f);
        for (int threads = 1; threads <= 3; threads++) {
            start(&f, threads, D_IN, D_SAE, ROWS);
            sae_encode(&m.sae, f.run, x, NULL, all, ROWS);
            sae_decode(&m.sae, f.run, all, recon_all, ROWS);
            cr_assert_arr_eq(all, one, ROWS * D_SAE * sizeof *all);
            cr_assert_arr_eq(recon_all, recon_one, sizeof recon_all);
            stop(&f);
        }
        free(x), free(one), free(all);
        made_free(&m);
    }
}

Test(sae, statistics) {
    const float x[] = {1, 2, 3, 6}, recon[] = {1, 0, 3, 8}, acts[] = {0, 1, 2, 0, 0, 3};
    SaeStats stats;
    stats = sae_stats(x, recon, acts, 2, 2, 3);
    /* By hand: errors 4 + 4; means (2, 4): 1 + 4 + 1 + 4 = 10; cosines 1/sqrt 5, 57/sqrt(45 73). */
    cr_assert_float_eq(stats.mse, 2, 1e-12);
    cr_assert_float_eq(stats.fvu, 0.8, 1e-12);
    cr_assert_float_eq(stats.cosine, (1 / sqrt(5) + 57 / sqrt(45.0 * 73)) / 2, 1e-12);
    cr_assert_float_eq(stats.norm, (sqrt(5) + sqrt(45)) / 2, 1e-12);
    cr_assert_float_eq(stats.l0, 1.5, 1e-12);
    cr_assert_float_eq(stats.sparsity, 0.5, 1e-12);
    const float equal[] = {1, 2, 1, 2};
    stats = sae_stats(equal, recon, acts, 2, 2, 3);
    cr_assert(isnan(stats.fvu));
    const float none[] = {0, 0, 3, 4}, back[] = {1, 0, 0, 0};
    cr_assert_eq(sae_stats(none, back, acts, 2, 2, 3).cosine, 0); /* of nothing it is 0 */
}

Test(sae, what_is_not_finite_is_an_error) {
    Made m;
    make(&m, 4, 8, 0);
    Fixture f;
    start(&f, 1, 4, 8, 2);
    float x[8] = {1, 2, 3, 4, 1, (float)NAN, 3, 4}, acts[16], recon[8];
    ATTEMPT(&f.error, sae_encode(&m.sae, f.run, x, NULL, acts, 2));
    cr_assert_eq(f.error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(f.error.text, "made: the encoding of row 1"), "%s", f.error.text);
    m.w_dec[0] = (float)INFINITY;
    x[5] = 2;
    sae_encode(&m.sae, f.run, x, NULL, acts, 2);
    acts[8] = 1;
    acts[0] = 0;
    ATTEMPT(&f.error, sae_decode(&m.sae, f.run, acts, recon, 2));
    cr_assert_eq(f.error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(f.error.text, "reconstruction of row 1"), "%s", f.error.text);
    ATTEMPT(&f.error, sae_encode(&m.sae, f.run, x, NULL, acts, 3));
    cr_assert_eq(f.error.status, STATUS_INPUT); /* too many rows */
    m.sae.norm = SAE_NORM_CONSTANT;
    sae_encode(&m.sae, f.run, x, NULL, acts, 1);
    ATTEMPT(&f.error, sae_decode(&m.sae, f.run, acts, recon, 2));
    cr_assert_not_null(strstr(f.error.text, "rows that were encoded"), "%s", f.error.text);
    stop(&f);
    start(&f, 1, 3, 8, 2);
    ATTEMPT(&f.error, sae_encode(&m.sae, f.run, x, NULL, acts, 1));
    cr_assert_not_null(strstr(f.error.text, "planned: 2 of [3, 8]"), "%s", f.error.text);
    stop(&f);
    start(&f, 1, 4, 7, 2);
    ATTEMPT(&f.error, sae_encode(&m.sae, f.run, x, NULL, acts, 1));
    cr_assert_not_null(strstr(f.error.text, "planned: 2 of [4, 7]"), "%s", f.error.text);
    stop(&f);
    made_free(&m);
}

/* ---- refusals and searching: small directories under /tmp ---- */

static void put(const char *root, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = strchr(path + 6, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0777);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file, "%s", path);
    fputs(text, file);
    fclose(file);
}

/* root/name -> a file of this repository. */
static void put_link(const char *root, const char *name, const char *target) {
    char path[512], full[1024], here[512];
    cr_assert_not_null(getcwd(here, sizeof here));
    snprintf(full, sizeof full, "%s/%s", here, target);
    put(root, name, "");
    snprintf(path, sizeof path, "%s/%s", root, name);
    unlink(path);
    cr_assert_eq(symlink(target[0] == '/' ? target : full, path), 0);
}

static void remove_tree(const char *root) {
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    cr_assert_eq(system(command), 0);
}

static Error open_one(Sae *sae, Arena *arena, const char *path, const SaeOptions *options) {
    Error error;
    ATTEMPT(&error, sae_open(sae, arena, path, options));
    return error;
}

static Error open_error(const char *path) {
    Sae sae;
    return open_one(&sae, arena_new(), path, NULL);
}

static Status search_for(SaeSet *set, Arena *arena, const char *root, HookKind kind, bool canonical,
                         const SaeOptions *options, Error *error) {
    ATTEMPT(error, sae_set_open(set, arena, root, kind, NULL, 0, canonical, options));
    return error->status;
}

#define STANDARD GOLDEN "saelens/standard/sae_weights.safetensors"
#define V6 "\"d_in\":12,\"d_sae\":40,\"metadata\":{\"sae_lens_version\":\"6.1.0\"}"
#define OLD "\"d_in\":12,\"d_sae\":40,\"hook_name\":\"blocks.1.hook_resid_pre\""

Test(sae, refusals_name_what_is_wrong) {
    static const struct {
        const char *cfg, *weights, *says;
    } bad[] = {
        {"{" V6 ",\"architecture\":\"batchtopk\"}", STANDARD, "batchtopk"},
        {"{" V6 ",\"architecture\":\"matryoshka_batchtopk\"}", STANDARD, "matryoshka_batchtopk"},
        {"{" V6 ",\"architecture\":\"transcoder\"}", STANDARD, "transcoder"},
        {"{" V6 ",\"architecture\":\"matching_pursuit\"}", STANDARD, "matching_pursuit"},
        {"{" V6 ",\"architecture\":\"temporal\"}", STANDARD, "temporal"},
        {"{" V6 ",\"architecture\":\"abstopk\"}", STANDARD, "abstopk"},
        {"{" V6 "}", STANDARD, "'architecture': expected a string, found nothing"},
        {"{" V6 ",\"architecture\":7}", STANDARD, "architecture"},
        {"{" V6
         ",\"architecture\":\"standard\",\"normalize_activations\":\"covariance_whitening\"}",
         STANDARD, "covariance_whitening"},
        {"{" V6 ",\"architecture\":\"standard\",\"reshape_activations\":\"x\"}", STANDARD,
         "reshape_activations"},
        {"{" V6 ",\"architecture\":\"standard\",\"apply_b_dec_to_input\":1}", STANDARD,
         "apply_b_dec_to_input"},
        {"{" V6 ",\"architecture\":\"topk\",\"k\":41}", STANDARD, "'k' is 41"},
        {"{" V6 ",\"architecture\":\"topk\",\"k\":0}", STANDARD, "'k' is 0"},
        {"{" V6 ",\"architecture\":\"topk\",\"k\":1.5}", STANDARD, "'k'"},
        {"{" V6 ",\"architecture\":\"topk\"}", STANDARD, "'k' is 100"},
        {"{" V6 ",\"architecture\":\"gated\"}", STANDARD, "b_gate"},
        {"{" V6 ",\"architecture\":\"jumprelu\"}", STANDARD, "threshold"},
        {"{\"d_in\":12,\"d_sae\":41,\"architecture\":\"standard\"}", STANDARD, "W_enc"},
        {"{\"d_in\":12,\"d_sae\":-1,\"architecture\":\"standard\"}", STANDARD, "d_sae"},
        {"{\"d_in\":4294967296,\"architecture\":\"standard\"}", STANDARD, "d_in"},
        {"{" OLD ",\"activation_fn_str\":\"tanh-relu\"}", STANDARD, "tanh-relu"},
        {"{" OLD ",\"activation_fn\":\"topk\"}", STANDARD, "activation_fn_kwargs"},
        {"{" OLD ",\"architecture\":\"topk\"}", STANDARD, "'k' is 100"},
        {"{" OLD ",\"architecture\":\"topk\",\"activation_fn_kwargs\":{}}", STANDARD,
         "activation_fn_kwargs: 'k': expected a number, found nothing"},
        {"{" OLD ",\"activation_fn\":\"topk\",\"activation_fn_str\":\"relu\"}", STANDARD,
         "'activation_fn' is 'topk', but 'activation_fn_str' is 'relu'"},
        {"{" OLD ",\"hook_point\":\"blocks.2.hook_resid_pre\"}", STANDARD,
         "'hook_name' is 'blocks.1.hook_resid_pre', but 'hook_point' is 'blocks.2.hook_resid_pre'"},
        {"{" OLD ",\"reshape_activations\":\"hook_z\"}", STANDARD,
         "'reshape_activations' is 'hook_z', but the hook point is 'blocks.1.hook_resid_pre'"},
        {"{" OLD "}", GOLDEN "saelens/jumprelu/sae_weights.safetensors", "tensor 'threshold'"},
        {"{" V6 ",\"architecture\":\"standard\",\"normalize_activations\":true}", STANDARD,
         "normalize_activations"},
        {"{}", STANDARD, "'d_in': expected a number, found nothing"},
        {"{\"d_in\":12}", STANDARD, "'d_sae': expected a number, found nothing"},
        {"{" OLD ",\"hook_point_head_index\":3}", STANDARD, "single head"},
        {"{" OLD ",\"hook_head_index\":0}", STANDARD, "single head"},
        {"{" OLD ",\"hook_name_out\":\"blocks.1.hook_mlp_out\"}", STANDARD, "transcoder"},
        {"{" OLD ",\"model_from_pretrained_kwargs\":{\"center_writing_weights\":3}}", STANDARD,
         "center_writing_weights"},
        {"[1]", STANDARD, "object"},
        {"{", STANDARD, "cfg.json"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char root[] = "/tmp/refsae_sae_XXXXXX";
        cr_assert_not_null(mkdtemp(root));
        put(root, "cfg.json", bad[i].cfg);
        put_link(root, "sae_weights.safetensors", bad[i].weights);
        Error error = open_error(root);
        cr_assert_eq(error.status, STATUS_INPUT, "%s", bad[i].cfg);
        cr_assert_not_null(strstr(error.text, bad[i].says), "%s: %s", bad[i].cfg, error.text);
        cr_assert_not_null(strstr(error.text, root), "%s", error.text);
        remove_tree(root);
    }
    static const struct {
        const char *cfg, *says;
    } sparse[] = {{"{\"d_in\":12,\"activation\":\"groupmax\"}", "groupmax"},
                  {"{\"d_in\":12,\"signed\":true}", "signed"},
                  {"{\"d_in\":12,\"skip_connection\":true}", "skip_connection"},
                  {"{\"d_in\":12,\"transcode\":true}", "transcode"},
                  {"{\"num_latents\":40}", "d_in"},
                  {"{\"d_in\":12,\"num_latents\":40,\"k\":41}", "'k'"},
                  {"{\"d_in\":12,\"num_latents\":39,\"k\":4}", "encoder.weight"}};
    for (size_t i = 0; i < sizeof sparse / sizeof sparse[0]; i++) {
        char root[] = "/tmp/refsae_sae_XXXXXX";
        cr_assert_not_null(mkdtemp(root));
        put(root, "cfg.json", sparse[i].cfg);
        put_link(root, "sae.safetensors", GOLDEN "sparsify/layers.0/sae.safetensors");
        Error error = open_error(root);
        cr_assert_eq(error.status, STATUS_INPUT, "%s", sparse[i].cfg);
        cr_assert_not_null(strstr(error.text, sparse[i].says), "%s: %s", sparse[i].cfg, error.text);
        remove_tree(root);
    }
}

/* "NAME[ROWS,COLS] NAME[COUNT]": a file of such tensors, all of one value, F32 but where "of DTYPE"
 * (I32, I64 or U8) follows. */
static void put_tensors(const char *root, const char *name, const char *tensors, double value) {
    char path[512], tensor[32];
    snprintf(path, sizeof path, "%s/%s", root, name);
    TensorWriter *writer = tensor_writer_open(path);
    for (int pass = 0; pass < 2; pass++) {
        int length;
        for (const char *at = tensors; sscanf(at, " %31[^[][%n", tensor, &length) == 1;) {
            size_t shape[2] = {0}, count;
            char *end;
            int rank = 0;
            do {
                at += rank == 0 ? length : 1;
                shape[rank++] = strtoul(at, &end, 10);
                at = end;
            } while (*at == ',');
            count = shape[0] * (rank == 2 ? shape[1] : 1);
            at++;
            Dtype dtype = strncmp(at, "I32", 3) == 0   ? DTYPE_I32
                          : strncmp(at, "I64", 3) == 0 ? DTYPE_I64
                          : strncmp(at, "U8", 2) == 0  ? DTYPE_U8
                                                       : DTYPE_F32;
            at += strcspn(at, " ");
            if (pass == 0) {
                tensor_writer_declare(writer, tensor, dtype, rank, shape);
                continue;
            }
            for (size_t i = 0; i < count; i++) {
                float real = (float)value;
                int32_t whole = (int32_t)value;
                int64_t wide = (int64_t)value;
                unsigned char byte = (unsigned char)wide;
                tensor_writer_data(writer,
                                   dtype == DTYPE_F32   ? (void *)&real
                                   : dtype == DTYPE_I32 ? (void *)&whole
                                   : dtype == DTYPE_I64 ? (void *)&wide
                                                        : &byte,
                                   dtype_size(dtype), 1);
            }
        }
    }
    tensor_writer_commit(writer);
}

#define ENC "encoder.weight[3,2] encoder.bias[3] "
#define DEC "decoder.weight[2,3] "
#define GATED ENC DEC "r_mag[3] gate_bias[3] mag_bias[3] decoder_bias[2] "
#define BOTH "W_enc[2,3] W_dec[3,2] b_enc[3] b_dec[2] "
#define TOP "{\"trainer\":{\"dict_class\":\"AutoEncoderTopK\"}}"

/* What the tensors say where the settings do not, and what is wrong with them. */
Test(sae, what_its_tensors_say) {
    static const struct {
        const char *file, *cfg, *tensors;
        double value;
        const char *says; /* its architecture, or what the refusal says */
        size_t k;
    } given[] = {
        {"ae.pt", NULL, GATED, 1, "GatedAutoEncoder", 0},
        {"ae.pt", NULL, ENC DEC "bias[2]", 1, "AutoEncoder", 0},
        {"ae.pt", NULL, BOTH "threshold[3]", 1, "JumpReluAutoEncoder", 0},
        {"ae.pt", NULL, BOTH, 1, "not those of an SAE of dictionary_learning", 0},
        {"ae.pt", NULL, ENC DEC, 1, "not those of an SAE of dictionary_learning", 0},
        {"ae.pt", NULL, ENC "b_dec[2]", 1, "not those of an SAE of dictionary_learning", 0},
        {"ae.pt", NULL, "ae.W_enc[2,3]", 1, "of a training that was not finished", 0},
        {"ae.pt", NULL, "ae.encoder.weight[3,2]", 1, "of a training that was not finished", 0},
        {"ae.pt", NULL, ENC DEC "b_dec[2] group_sizes[2]", 1, "'MatryoshkaBatchTopKSAE'", 0},
        {"ae.pt", NULL, ENC DEC "decoder.bias[2]", 1, "'AutoEncoderNew'", 0},
        {"ae.pt", NULL, "encoder.weight[6] bias[2] " DEC, 1, "[d_sae, d_in], found rank 1", 0},
        {"ae.pt", NULL, "encoder.weight[3,0] bias[0] " DEC, 1, "ae.pt: d_in is 0 and d_sae 3", 0},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[1]I32", 2, "AutoEncoderTopK", 2},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[1]I64", 3, "AutoEncoderTopK", 3},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[1]", 1, "AutoEncoderTopK", 1},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[1]U8", 1, "'k': expected F32, BF16, F16, I64 or I32", 0},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[2]", 1, "expected a single number, found several", 0},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[1]", -1, "a whole number from 1 to 3, found -1", 0},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[1]", 3e9, "from 1 to 3, found 3e+09", 0},
        {"ae.pt", TOP, ENC DEC "b_dec[2] k[1]", 1.5, "from 1 to 3, found 1.5", 0},
        {"params.npz", NULL, BOTH "threshold[3]", 1, "jumprelu", 0},
        {"params.npz", NULL, "W[2,3]", 1, "tensor 'W_enc' is missing", 0},
        {"sae_weights.safetensors", "{\"d_in\":2,\"d_sae\":3}", BOTH "scaling_factor[3]", 1,
         "standard", 100}, /* its default, not used */
        {"sae_weights.safetensors", "{\"d_in\":2,\"d_sae\":3}", BOTH "scaling_factor[3]", 2,
         "'scaling_factor' is not 1 everywhere", 0},
        {"sae.safetensors", "{\"d_in\":2}", ENC "W_dec[3,2] b_dec[2] W_skip[2,2]", 1,
         "tensor 'W_skip': skip_connection is not supported", 0}};
    for (size_t i = 0; i < sizeof given / sizeof given[0]; i++) {
        char root[] = "/tmp/refsae_sae_XXXXXX";
        cr_assert_not_null(mkdtemp(root));
        put_tensors(root, given[i].file, given[i].tensors, given[i].value);
        if (given[i].cfg != NULL) {
            put(root, strcmp(given[i].file, "ae.pt") == 0 ? "config.json" : "cfg.json",
                given[i].cfg);
        }
        Sae sae = {.k = 0};
        Arena *arena = arena_new();
        Error error = open_one(&sae, arena, root, NULL);
        const char *says = error.status == STATUS_OK ? sae.architecture : error.text;
        cr_assert(error.status == STATUS_OK ? strcmp(says, given[i].says) == 0
                                            : strstr(says, given[i].says) != NULL,
                  "case %zu: %s", i, says);
        cr_assert_eq(sae.k, given[i].k, "case %zu", i);
        arena_free(arena);
        remove_tree(root);
    }
}

/* --unit-decoder: columns that already have length 1 stay; those without a length are refused. */
Test(sae, a_unit_decoder_stays) {
    const SaeOptions options = {.unit_decoder = true};
    for (int i = 0; i < 3; i++) {
        char root[] = "/tmp/refsae_sae_XXXXXX";
        cr_assert_not_null(mkdtemp(root));
        put_tensors(root, "ae.pt", ENC DEC "bias[2]", (double[]){sqrt(0.5), 2, 0}[i]);
        Sae sae;
        Arena *arena = arena_new();
        Error error = open_one(&sae, arena, root, &options);
        cr_assert_eq(error.status, i == 2 ? STATUS_INPUT : STATUS_OK, "%s", error.text);
        if (i == 2) {
            cr_assert_not_null(strstr(error.text, "column 0 has length 0"), "%s", error.text);
        } else {
            cr_assert_eq(sae.dec_input, i == 0 ? 3 : 1);
            cr_assert_float_eq(weight_at(sae.w_dec, 0), sqrt(0.5), 1e-6);
        }
        arena_free(arena);
        remove_tree(root);
    }
}

Test(sae, an_open_norm_factor_names_its_option) {
    Sae sae;
    SaeSet set;
    Error error;
    Arena *arena = arena_new();
    sae_open(&sae, arena, GOLDEN "saelens/expected_average", NULL);
    Fixture f;
    start(&f, 1, sae.d_in, sae.d_sae, 1);
    float x[12] = {1}, acts[40];
    ATTEMPT(&f.error, sae_encode(&sae, f.run, x, NULL, acts, 1));
    cr_assert_eq(f.error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(f.error.text, "--norm-factor"), "%s", f.error.text);
    stop(&f);
    cr_assert_eq(
        search_for(&set, arena, GOLDEN "saelens/expected_average", HOOK_KINDS, false, NULL, &error),
        STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "--norm-factor"), "%s", error.text);
    arena_free(arena);
}

Test(sae, a_checkpoint_states_its_norm_factor) {
    static const char cfg[] = "{" OLD ",\"normalize_activations\":\"expected_average_only_in\"}";
    SaeOptions same = {.norm_factor = 0.37}, other = {.norm_factor = 0.5};
    char root[] = "/tmp/refsae_sae_XXXXXX";
    Arena *arena = arena_new();
    Error error;
    Sae sae;
    cr_assert_not_null(mkdtemp(root));
    put(root, "cfg.json", cfg);
    put_link(root, "sae_weights.safetensors", STANDARD);
    put(root, "activation_scaler.json", "{\"scaling_factor\": 0.37, \"has_whitening\": false}");
    sae_open(&sae, arena, root, NULL);
    cr_assert_eq(sae.norm_factor, 0.37f);
    sae_open(&sae, arena, root, &same);
    cr_assert_eq(sae.norm_factor, 0.37f);
    ATTEMPT(&error, sae_open(&sae, arena_new(), root, &other));
    cr_assert_not_null(strstr(error.text, "activation_scaler.json: 'scaling_factor' is 0.37"), "%s",
                       error.text);
    cr_assert_not_null(strstr(error.text, "--norm-factor is 0.5"), "%s", error.text);
    put(root, "activation_scaler.json", "{\"scaling_factor\": null}"); /* folded, or never taken */
    sae_open(&sae, arena, root, &other);
    cr_assert_eq(sae.norm_factor, 0.5f);
    put(root, "activation_scaler.json", "{\"scaling_factor\": -1}");
    error = open_error(root);
    cr_assert_not_null(strstr(error.text, "activation_scaler.json"), "%s", error.text);
    remove_tree(root);
    arena_free(arena);
}

/* SAELens 6.54: before 6.0 an absent prepend_bos is true and null is none; since, it is in
 * `metadata` and absent is none. */
Test(sae, prepend_bos_by_the_age_of_the_file) {
    static const struct {
        const char *cfg;
        bool bos;
    } each[] = {
        {"{" OLD "}", true},
        {"{" OLD ",\"prepend_bos\":null}", false},
        {"{" OLD ",\"prepend_bos\":false}", false},
        {"{" OLD ",\"metadata\":{\"prepend_bos\":false}}", true},
        {"{" V6 ",\"architecture\":\"standard\"}", false},
        {"{" V6 ",\"architecture\":\"standard\",\"prepend_bos\":true}", false},
    };
    for (size_t i = 0; i < sizeof each / sizeof each[0]; i++) {
        char root[] = "/tmp/refsae_sae_XXXXXX";
        Arena *arena = arena_new();
        Sae sae;
        cr_assert_not_null(mkdtemp(root));
        put(root, "cfg.json", each[i].cfg);
        put_link(root, "sae_weights.safetensors", STANDARD);
        sae_open(&sae, arena, root, NULL);
        cr_assert_eq(sae.prepend_bos, each[i].bos, "%s", each[i].cfg);
        remove_tree(root);
        arena_free(arena);
    }
}

#define NPZ SCOPE "res/layer_3/width_16k/average_l0_59/params.npz"

static Status search(SaeSet *set, Arena *arena, const char *root, HookKind kind, bool canonical,
                     const char *pick, const char *hook, Error *error) {
    SaeOptions options = {.pick = pick, .hook = hook};
    return search_for(set, arena, root, kind, canonical, &options, error);
}

Test(sae, search_finds_picks_and_asks) {
    char root[] = "/tmp/refsae_sae_XXXXXX";
    cr_assert_not_null(mkdtemp(root));
    put_link(root, "layer_0/width_16k/average_l0_105/params.npz", NPZ);
    put_link(root, "layer_0/width_16k/average_l0_200/params.npz", NPZ);
    put_link(root, "layer_0/width_65k/average_l0_105/params.npz", NPZ);
    put_link(root, "deep/down/under/layer_10/width_16k/average_l0_77/params.npz", NPZ);
    put_link(root, "layer_2/sae_weights.safetensors", STANDARD);
    put(root, "layer_2/cfg.json", "{" V6 ",\"architecture\":\"standard\"}");
    put(root, "layer_2/cfg.txt", "ignored");
    put(root, "config.json", "not even JSON");
    put(root, "layer_1/params.npz/x", "a folder");
    put_link(root, "layer_2/loop", root); /* a loop, and each SAE a second time */
    SaeSet set;
    Error error;
    Arena *arena = arena_new();
    cr_assert_eq(search(&set, arena, root, HOOK_RESID_POST, false, NULL, NULL, &error),
                 STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "blocks.0.hook_resid_post"), "%s", error.text);
    cr_assert_not_null(strstr(error.text, "average_l0_105"), "%s", error.text);
    cr_assert_not_null(strstr(error.text, "--pick"), "%s", error.text);
    cr_assert_not_null(strstr(error.text, "--canonical"), "%s", error.text);

    cr_assert_eq(search(&set, arena, root, HOOK_RESID_POST, true, NULL, NULL, &error), STATUS_OK,
                 "%s", error.text);
    cr_assert_eq(set.count, 3);
    cr_assert(set.saes[0].layer == 0 && set.saes[1].layer == 2 && set.saes[2].layer == 10);
    cr_assert(set.saes[0].average_l0 == 105 && set.saes[0].width_16k);
    cr_assert_eq(sae_set_find(&set, HOOK_RESID_POST, 10), &set.saes[2]);
    cr_assert_null(sae_set_find(&set, HOOK_RESID_POST, 1));
    cr_assert_null(sae_set_find(&set, HOOK_RESID_PRE, 0));

    cr_assert_eq(search(&set, arena, root, HOOK_KINDS, false, "*l0_[27]0*", NULL, &error),
                 STATUS_OK, "%s", error.text);
    cr_assert_eq(set.count, 1);
    cr_assert(set.saes[0].average_l0 == 200);

    cr_assert_eq(search(&set, arena, root, HOOK_Z, false, NULL, NULL, &error), STATUS_INPUT);
    cr_assert_eq(search(&set, arena, root, HOOK_KINDS, false, "nothing", NULL, &error),
                 STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "--pick"), "%s", error.text);

    bool layers[11] = {false};
    layers[2] = true;
    sae_set_open(&set, arena, root, HOOK_RESID_POST, layers, 11, false, NULL);
    cr_assert_eq(set.count, 1);
    cr_assert_eq(set.saes[0].source, SAE_SAELENS);
    ATTEMPT(&error, sae_set_open(&set, arena, root, HOOK_RESID_POST, layers, 2, false, NULL));
    cr_assert_not_null(strstr(error.text, "none of 5 SAEs"), "%s", error.text);

    static const char *const both[] = {"mlp/layer_3", "layer_30", "layer_2"};
    for (size_t i = 0; i < 3; i++) { /* two of one hook point, neither of them canonical */
        for (const char *name = "ab"; *name != 0; name++) {
            char path[64], cfg[64];
            snprintf(path, sizeof path, "%s/%c/%s", both[i], *name,
                     i < 2 ? "params.npz" : "sae_weights.safetensors");
            snprintf(cfg, sizeof cfg, "%s/%c/cfg.json", both[i], *name);
            put_link(root, path, i < 2 ? NPZ : STANDARD);
            put(root, cfg, "{" V6 ",\"architecture\":\"standard\"}");
        }
        char glob[32];
        snprintf(glob, sizeof glob, "%s/?", both[i]);
        cr_assert_eq(search(&set, arena, root, HOOK_KINDS, true, glob, NULL, &error), STATUS_INPUT);
        cr_assert_not_null(strstr(error.text, "--pick GLOB"), "%s", error.text);
        cr_assert_null(strstr(error.text, "--canonical"), "%s", error.text);
    }
    arena_free(arena);
    remove_tree(root);
}

Test(sae, hook_points_from_paths_and_options) {
    static const struct {
        const char *file, *target, *option, *hook; /* hook NULL: refused, naming --hook */
    } paths[] = {
        {"gemma-scope-9b-it-mlp-canonical/layer_7/width_16k/params.npz", NPZ, NULL,
         "blocks.7.hook_mlp_out"},
        {"att/layer_21/params.npz", NPZ, NULL, "blocks.21.attn.hook_z"},
        {"blocks.4.hook_resid_mid/params.npz", NPZ, NULL, "blocks.4.hook_resid_mid"},
        {"gemma-scope-2b-pt-mlp-res/layer_7/params.npz", NPZ, NULL, "blocks.7.hook_resid_post"},
        {"att/layer7/params.npz", NPZ, NULL, NULL}, /* SAELens asks for layer_(\d+) */
        {"att/layer_10000012/params.npz", NPZ, NULL, NULL},
        {"some/params.npz", NPZ, NULL, NULL},
        {"vision.blocks.1.hook_resid_post/params.npz", NPZ, NULL, NULL},
        {"some/params.npz", NPZ, "blocks.2.hook_mlp_out", "blocks.2.hook_mlp_out"},
        {"some/params.npz", NPZ, "blocks.2.hook_nothing", NULL},
        {"gpt2/h.3/sae.safetensors", GOLDEN "sparsify/layers.0/sae.safetensors", NULL,
         "blocks.3.hook_resid_post"},
        {"layers.12.attention/sae.safetensors", GOLDEN "sparsify/layers.0/sae.safetensors", NULL,
         "blocks.12.hook_attn_out"},
        {"layers.12.norm/sae.safetensors", GOLDEN "sparsify/layers.0/sae.safetensors", NULL, NULL},
        {"layers.12.norm/sae.safetensors", GOLDEN "sparsify/layers.0/sae.safetensors",
         "blocks.L.ln2.hook_normalized", "blocks.12.ln2.hook_normalized"},
    };
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        char root[] = "/tmp/refsae_sae_XXXXXX", cfg[128];
        cr_assert_not_null(mkdtemp(root));
        put_link(root, paths[i].file, paths[i].target);
        snprintf(cfg, sizeof cfg, "%.*scfg.json",
                 (int)(strrchr(paths[i].file, '/') + 1 - paths[i].file), paths[i].file);
        put(root, cfg, "{\"d_in\":12,\"num_latents\":40,\"k\":5}");
        SaeSet set;
        Error error;
        Arena *arena = arena_new();
        Status status = search(&set, arena, root, HOOK_KINDS, false, NULL, paths[i].option, &error);
        if (paths[i].hook == NULL) {
            cr_assert_eq(status, STATUS_INPUT, "%s", paths[i].file);
            cr_assert_not_null(strstr(error.text, "--hook"), "%s", error.text);
        } else {
            cr_assert_eq(status, STATUS_OK, "%s: %s", paths[i].file, error.text);
            char name[HOOK_NAME_MAX];
            hook_name(name, set.saes[0].hook, set.saes[0].layer, false, false);
            cr_assert_str_eq(name, paths[i].hook, "%s", paths[i].file);
        }
        arena_free(arena);
        remove_tree(root);
    }
    SaeSet set;
    Error error;
    Arena *arena = arena_new();
    char root[] = "/tmp/refsae_sae_XXXXXX";
    cr_assert_not_null(mkdtemp(root));
    put_link(root, "gemma-scope-2b-pt-transcoders/layer_1/params.npz", NPZ);
    cr_assert_eq(search(&set, arena, root, HOOK_KINDS, false, NULL, NULL, &error), STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "transcoder"), "%s", error.text);
    arena_free(arena);
    remove_tree(root);
}

#define LINEAR DICTIONARY "Standard_pythia-70m-deduped__0108/resid_post_layer_3/trainer_0/ae.pt"
#define TOPK DICTIONARY "TopK_pythia-70m-deduped__0108/resid_post_layer_3/trainer_1/ae.pt"
#define TOPK_OLD DICTIONARY "topk_ctx128_0730/resid_post_layer_2/trainer_0/ae.pt"
#define CHECKPOINT "tests/golden/pth/checkpoint.pt"

/* dictionary_learning leaves much open; each case is an ae.pt in a folder of its own, with a
 * config.json or without. */
Test(sae, dictionary_learning_settings_paths_and_options) {
    static const struct {
        const char *weights, *folder, *config, *hook, *dict_class;
        const char *is; /* its hook point, or what the refusal says */
    } given[] = {
        {LINEAR, "mlp_out_layer1/10_32768", NULL, NULL, NULL, "blocks.1.hook_mlp_out"},
        {LINEAR, "a/resid_post_layer_12_checkpoints/trainer_0_step_97", NULL, NULL, NULL,
         "blocks.12.hook_resid_post"},
        {LINEAR, "embed", NULL, NULL, NULL, "hook_embed"},
        {LINEAR, "blocks.7.attn.hook_z", NULL, NULL, NULL, "blocks.7.attn.hook_z"},
        {LINEAR, "x", NULL, NULL, NULL, "--hook"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":4}}", NULL, NULL, "blocks.4.hook_resid_post"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":4}}", "blocks.L.hook_mlp_out", NULL,
         "blocks.4.hook_mlp_out"},
        {LINEAR, "attn_out_layer9", "{\"trainer\":{\"layer\":4}}", NULL, NULL,
         "blocks.4.hook_attn_out"},
        {LINEAR, "mlp_out_layer9", "{\"trainer\":{\"layer\":4,\"submodule_name\":\"resid_pre\"}}",
         NULL, NULL, "blocks.4.hook_resid_pre"},
        {LINEAR, "x", "{\"trainer\":{\"submodule_name\":\"gpt_neox.layers.5.mlp\"}}", NULL, NULL,
         "blocks.5.hook_mlp_out"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1,\"submodule_name\":\"blocks.2.hook_mlp_out\"}}",
         NULL, NULL, "blocks.2.hook_mlp_out"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1,\"submodule_name\":\"mine\"}}", NULL, NULL,
         "'mine' is not known: give --hook"},
        {LINEAR, "x", "{\"trainer\":{\"submodule_name\":\"embed_in\"}}", NULL, NULL,
         "'embed_in' is not known: give --hook"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1},\"buffer\":{\"io\":\"in\"}}", NULL, NULL,
         "'the input of a module' is not known: give --hook"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1},\"buffer\":{\"io\":\"in_to_out\"}}", NULL, NULL,
         "transcoders"},
        {LINEAR, "x", "[]", NULL, NULL, "expected a JSON object"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":7}}", NULL, NULL, "'dict_class'"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":\"AutoEncoderNew\"}}", NULL, NULL,
         "dict_class 'AutoEncoderNew'"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":\"JumpReluAutoEncoder\"}}", NULL,
         NULL, "'W_enc' is missing"},
        {LINEAR, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":\"GatedAutoEncoder\"}}", NULL, NULL,
         "'decoder_bias'"},
        {CHECKPOINT, "layer_1", NULL, NULL, NULL, "not those of an SAE"},
        {TOPK, "layer_1", NULL, NULL, NULL, "give --dict-class"},
        {TOPK, "layer_1", NULL, NULL, "BatchTopKSAE", "blocks.1.hook_resid_post"},
        {TOPK, "layer_1", NULL, NULL, "TopK", "dict_class 'TopK'"},
        {TOPK, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":\"AutoEncoderTopK\",\"k\":6}}", NULL,
         NULL, "tensor 'k' is 5, but 'k' is 6"},
        {TOPK_OLD, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":\"AutoEncoderTopK\"}}", NULL,
         NULL, "neither a tensor 'k'"},
        {TOPK_OLD, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":\"AutoEncoderTopK\",\"k\":41}}",
         NULL, NULL, "from 1 to d_sae"},
        {TOPK_OLD, "x", "{\"trainer\":{\"layer\":1,\"dict_class\":\"BatchTopKSAE\",\"k\":5}}", NULL,
         NULL, "tensor 'threshold': expected a single number"},
    };
    for (size_t i = 0; i < sizeof given / sizeof given[0]; i++) {
        char root[] = "/tmp/refsae_sae_XXXXXX", name[HOOK_NAME_MAX], path[160];
        cr_assert_not_null(mkdtemp(root));
        snprintf(path, sizeof path, "%s/ae.pt", given[i].folder);
        put_link(root, path, given[i].weights);
        if (given[i].config != NULL) {
            snprintf(path, sizeof path, "%s/config.json", given[i].folder);
            put(root, path, given[i].config);
        }
        SaeSet set;
        Error error;
        Arena *arena = arena_new();
        SaeOptions options = {.hook = given[i].hook, .dict_class = given[i].dict_class};
        Status status = search_for(&set, arena, root, HOOK_KINDS, false, &options, &error);
        if (status == STATUS_OK) {
            hook_name(name, set.saes[0].hook, set.saes[0].layer, false, false);
            cr_assert_str_eq(name, given[i].is, "case %zu", i);
        } else {
            cr_assert_eq(status, STATUS_INPUT);
            cr_assert_not_null(strstr(error.text, given[i].is), "case %zu: %s", i, error.text);
        }
        arena_free(arena);
        remove_tree(root);
    }
}

Test(sae, a_path_may_be_a_file_a_directory_or_above_it) {
    static const char *const good[] = {SCOPE "res/layer_4",
                                       GOLDEN "saelens/topk/cfg.json",
                                       GOLDEN "saelens/topk/sae_weights.safetensors",
                                       GOLDEN "sparsify/layers.0/",
                                       NPZ,
                                       LINEAR};
    Sae sae;
    Arena *arena = arena_new();
    char root[] = "/tmp/refsae_sae_XXXXXX", path[128];
    cr_assert_not_null(mkdtemp(root));
    put(root, "config.json", "{\"trainer\":{\"layer\":5,\"dict_class\":\"BatchTopKSAE\"}}");
    put_link(root, "checkpoints/ae_1000.pt", TOPK); /* its settings are one folder above */
    snprintf(path, sizeof path, "%s/checkpoints/ae_1000.pt", root);
    sae_open(&sae, arena, path, NULL);
    cr_assert(sae.act == SAE_BATCHTOPK && sae.hook_known && sae.layer == 5);
    remove_tree(root);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        sae_open(&sae, arena, good[i], NULL);
        cr_assert(sae.hook_known, "%s", good[i]);
    }
    static const char *const bad[] = {GOLDEN, "tests/golden/no_such",
                                      GOLDEN "saelens/topk/expected.safetensors", "tests/reference",
                                      "Makefile"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        Error error = open_error(bad[i]);
        cr_assert_eq(error.status, STATUS_INPUT, "%s", bad[i]);
        cr_assert(strlen(error.text) > 10);
    }
    arena_free(arena);
}

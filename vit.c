/* vit.c: the CLIP vision tower, forward.
 *
 *   pixel_values [3, S, S] --patches of P x P, no bias--> [n, d]   n = (S / P)^2
 *   class token first, + positions                         [1 + n, d]
 *   pre_layrnorm (so spelt in the checkpoints)             resid_pre of block 0
 *   each block:  x += attention(ln1(x));  x += mlp(ln2(x))
 *   features: the last block's output before post_layernorm, class token dropped
 *
 * Easy to get wrong: the patch convolution has no bias, the four attention projections have; scores
 * are q k^T times d_head^-1/2, without a mask; pixels beyond the last whole patch are not read;
 * post_layernorm acts on the pooled class token alone, so nothing here uses it.
 *
 * T is 1 + n rows, H heads, E d_head. */
#include "vit.h"

#include <math.h>
#include <string.h>

struct VitRun {
    const Vit *vit;
    const Compute *compute;
    const Hooks *hooks;       /* of the call that runs */
    size_t rows;              /* T */
    Product *products;        /* [H] */
    float *pixels, *patches;  /* [3, S, S], [n, 3 P P] */
    float *resid, *out, *pos; /* [T, d]: the stream, what joins it next, positions */
    float *mean, *scale;      /* [T] */
    float *normalized, *x;    /* [T, d]: what a norm gives */
    float *q, *k, *v, *z;     /* [T, H, E] */
    float *scores;            /* [H, T, T] */
    float *result;            /* [T, H, d] */
    float *pre, *post;        /* [T, d_mlp] */
};

VitRun *vit_run_layout(const Vit *vit, const Compute *compute, Arena *arena) {
    const VitConfig *c = &vit->config;
    size_t d = c->d_model, rows = c->n_patches + 1, side = c->patch_size * c->patch_size;
    VitRun *run = arena_alloc(arena, 1, sizeof *run);
    VitRun r = {.vit = vit, .compute = compute, .rows = rows};
    r.products = arena_alloc(arena, c->n_heads, sizeof *r.products);
    r.pixels = arena_floats(arena, VIT_CHANNELS, size_product(c->image_size, c->image_size));
    r.patches = arena_floats(arena, c->n_patches, size_product(VIT_CHANNELS, side));
    r.resid = arena_floats(arena, rows, d);
    r.out = arena_floats(arena, rows, d);
    r.pos = arena_floats(arena, rows, d);
    r.mean = arena_floats(arena, rows, 1);
    r.scale = arena_floats(arena, rows, 1);
    r.normalized = arena_floats(arena, rows, d);
    r.x = arena_floats(arena, rows, d);
    r.q = arena_floats(arena, rows, d);
    r.k = arena_floats(arena, rows, d);
    r.v = arena_floats(arena, rows, d);
    r.z = arena_floats(arena, rows, d);
    r.scores = arena_floats(arena, c->n_heads, size_product(rows, rows));
    r.result = arena_floats(arena, rows, size_product(c->n_heads, d));
    r.pre = arena_floats(arena, rows, c->d_mlp);
    r.post = arena_floats(arena, rows, c->d_mlp);
    if (run != NULL) {
        *run = r;
    }
    return run;
}

static HookPoint vision_point(HookKind kind, int layer, size_t a, size_t b, size_t c) {
    return (HookPoint){
        .kind = kind, .layer = layer, .vision = true, .rank = c > 0 ? 3 : 2, .shape = {a, b, c}};
}

/* Shows an activation: data[a, b] or, c > 0, [a, b, c]. */
static void hook_vision(const VitRun *run, HookKind kind, int layer, float *data, size_t a,
                        size_t b, size_t c) {
    hooks_show(run->hooks, vision_point(kind, layer, a, b, c), data);
}

/* input[T, d] -> x[T, d] = (input - mean) / scale * w + b, scale = sqrt(variance + eps). */
static void norm(const VitRun *run, const float *input, const Norm *norm, HookKind scale,
                 int layer) {
    size_t rows = run->rows, d = run->vit->config.d_model;
    norm_scale(run->compute, run->mean, run->scale, input, run->vit->config.norm_eps, rows, d);
    hook_vision(run, scale, layer, run->scale, rows, 1, 0);
    norm_normalize(run->compute, run->normalized, input, run->mean, run->scale, rows, d);
    hook_vision(run, (HookKind)(scale + 1), layer, run->normalized, rows, d, 0);
    norm_weight(run->compute, run->x, run->normalized, norm->w, norm->b, false, rows, d);
}

/* Where one head's rows lie among those of q, k, v or z. */
static View head_of(const VitRun *run, float *q, size_t head) {
    const VitConfig *c = &run->vit->config;
    return (View){q + head * c->d_head, run->rows, c->d_head, c->d_model};
}

/* x[T, d] -> z[T, H, E] = softmax(q k^T / sqrt(E)) v, q, k, v = x W^T + b. */
static void attention(const VitRun *run, const VitLayer *l, int layer) {
    const VitConfig *c = &run->vit->config;
    size_t rows = run->rows, heads = c->n_heads, e = c->d_head;
    Product projections[3] = {product_nt(run->q, run->x, &l->q, rows),
                              product_nt(run->k, run->x, &l->k, rows),
                              product_nt(run->v, run->x, &l->v, rows)};
    product_run(run->compute, projections, 3);
    hook_vision(run, HOOK_Q, layer, run->q, rows, heads, e);
    hook_vision(run, HOOK_K, layer, run->k, rows, heads, e);
    hook_vision(run, HOOK_V, layer, run->v, rows, heads, e);

    for (size_t h = 0; h < heads; h++) { /* scores = q k^T */
        View scores = {run->scores + h * rows * rows, rows, rows, rows};
        run->products[h] = view_nt(scores, head_of(run, run->q, h), head_of(run, run->k, h));
    }
    product_run_heads(run->compute, run->products, heads);
    float factor = (float)(1.0 / sqrt((double)e));
    vector_scale(run->compute, run->scores, run->scores, factor, heads * rows * rows);
    hook_vision(run, HOOK_ATTN_SCORES, layer, run->scores, heads, rows, rows);
    softmax_rows(run->compute, run->scores, run->scores, heads * rows, rows);
    hook_vision(run, HOOK_PATTERN, layer, run->scores, heads, rows, rows);
    for (size_t h = 0; h < heads; h++) { /* z = pattern v */
        View pattern = {run->scores + h * rows * rows, rows, rows, rows};
        run->products[h] = view_nn(head_of(run, run->z, h), pattern, head_of(run, run->v, h));
    }
    product_run_heads(run->compute, run->products, heads);
    hook_vision(run, HOOK_Z, layer, run->z, rows, heads, e);
}

/* hook_result[T, H, d] = z W_O^T per head, only where a hook wants it. If the hook changes it, out
 * [T, d] = its sum over heads + b; true. Otherwise the one product over all heads stays, so that
 * reading a point changes no bit elsewhere. */
static bool result_replaced(const VitRun *run, const VitLayer *l, int layer) {
    const VitConfig *c = &run->vit->config;
    size_t rows = run->rows, heads = c->n_heads, d = c->d_model;
    if (!hooks_want(run->hooks, HOOK_RESULT, layer, false)) {
        return false;
    }
    for (size_t h = 0; h < heads; h++) {
        Matrix w = matrix_cols(&l->o, h * c->d_head, c->d_head);
        Product product = product_nt(run->result + h * d, run->z + h * c->d_head, &w, rows);
        run->products[h] = product_strided(product, heads * d, d);
    }
    product_run(run->compute, run->products, heads);
    bool replaced =
        hooks_change(run->hooks, vision_point(HOOK_RESULT, layer, rows, heads, d), run->result);
    for (size_t i = 0; replaced && i < rows * d; i++) {
        double sum = 0;
        for (size_t h = 0; h < heads; h++) {
            sum += (double)run->result[(i / d * heads + h) * d + i % d];
        }
        run->out[i] = (float)sum + weight_at(l->o.bias, i % d);
    }
    return replaced;
}

/* z[T, H, E] -> out[T, d] = z W_O^T + b. */
static void output(const VitRun *run, const VitLayer *l, int layer) {
    if (!result_replaced(run, l, layer)) {
        product_run_one(run->compute, product_nt(run->out, run->z, &l->o, run->rows));
    }
    hook_vision(run, HOOK_ATTN_OUT, layer, run->out, run->rows, run->vit->config.d_model, 0);
}

/* x[T, d] -> out[T, d] = act(x W_in^T + b) W_out^T + b. */
static void mlp(const VitRun *run, const VitLayer *l, int layer) {
    const VitConfig *c = &run->vit->config;
    size_t rows = run->rows;
    product_run_one(run->compute, product_nt(run->pre, run->x, &l->in, rows));
    hook_vision(run, HOOK_PRE, layer, run->pre, rows, c->d_mlp, 0);
    activate(run->compute, c->activation, run->post, run->pre, rows * c->d_mlp);
    hook_vision(run, HOOK_POST, layer, run->post, rows, c->d_mlp, 0);
    product_run_one(run->compute, product_nt(run->out, run->post, &l->out, rows));
    hook_vision(run, HOOK_MLP_OUT, layer, run->out, rows, c->d_model, 0);
}

/* x += attention(ln1(x));  x += mlp(ln2(x)), x = resid[T, d]. */
static void block(const VitRun *run, int layer) {
    const VitLayer *l = &run->vit->layers[layer];
    size_t rows = run->rows, d = run->vit->config.d_model;
    hook_vision(run, HOOK_RESID_PRE, layer, run->resid, rows, d, 0);
    norm(run, run->resid, &l->ln1, HOOK_LN1_SCALE, layer);
    attention(run, l, layer);
    output(run, l, layer);
    vector_add(run->compute, run->resid, run->out, rows * d);
    hook_vision(run, HOOK_RESID_MID, layer, run->resid, rows, d, 0);
    norm(run, run->resid, &l->ln2, HOOK_LN2_SCALE, layer);
    mlp(run, l, layer);
    vector_add(run->compute, run->resid, run->out, rows * d);
    hook_vision(run, HOOK_RESID_POST, layer, run->resid, rows, d, 0);
}

/* patches[n, (channel, y, x)]: the order in which the convolution's weight is stored. */
static void gather_patches(const VitConfig *c, float *patches, const float *pixels) {
    size_t side = c->image_size / c->patch_size, p = c->patch_size, s = c->image_size;
    for (size_t patch = 0; patch < c->n_patches; patch++) {
        size_t top = patch / side * p, left = patch % side * p;
        for (size_t channel = 0; channel < VIT_CHANNELS; channel++) {
            for (size_t y = 0; y < p; y++) {
                memcpy(patches, pixels + (channel * s + top + y) * s + left, p * sizeof(float));
                patches += p;
            }
        }
    }
}

/* pixel_values[3, S, S] -> resid[T, d] = ln_pre([class; patches W^T] + positions). */
static void embed(const VitRun *run, const float *pixel_values) {
    const Vit *vit = run->vit;
    const VitConfig *c = &vit->config;
    size_t rows = run->rows, d = c->d_model, s = c->image_size;
    memcpy(run->pixels, pixel_values, VIT_CHANNELS * s * s * sizeof(float));
    hook_vision(run, HOOK_PIXEL_VALUES, -1, run->pixels, VIT_CHANNELS, s, s);
    gather_patches(c, run->patches, run->pixels);
    weight_widen(run->out, vit->class_embed, 0, d);
    product_run_one(run->compute,
                    product_nt(run->out + d, run->patches, &vit->patch, c->n_patches));
    hook_vision(run, HOOK_EMBED, -1, run->out, rows, d, 0);
    weight_widen(run->pos, vit->pos_embed, 0, rows * d);
    hook_vision(run, HOOK_POS_EMBED, -1, run->pos, rows, d, 0);
    vector_add(run->compute, run->out, run->pos, rows * d);
    norm(run, run->out, &vit->ln_pre, HOOK_LN_PRE_SCALE, -1);
    memcpy(run->resid, run->x, rows * d * sizeof(float));
}

/* pixel_values -> embed -> blocks -> features [n, d], the class token dropped. */
void vit_forward(VitRun *run, const float *pixel_values, float *features, const Hooks *hooks) {
    const VitConfig *c = &run->vit->config;
    size_t count = c->n_patches * c->d_model;
    const float *out = run->resid + c->d_model; /* behind the class token */
    run->hooks = hooks;
    embed(run, pixel_values);
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        block(run, (int)layer);
    }
    if (!all_finite(out, count)) {
        fail(STATUS_INPUT,
             "%s: the vision tower's output is not finite: its weights or the pixel values hold "
             "NaN, infinity or numbers too large",
             run->vit->path);
    }
    if (features != NULL) {
        memcpy(features, out, count * sizeof(float));
    }
}

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
 * post_layernorm acts on the pooled class token alone, so nothing here uses it. A `clip` config
 * that has vision_config_dict means that and not vision_config (Hugging Face lets it win, defaults
 * included). */
#include "vit.h"

#include <math.h>
#include <string.h>

#include "checkpoint.h"
#include "json.h"

typedef struct VitLayer {
    Weight ln1_w, ln1_b, ln2_w, ln2_b;
    Weight w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o; /* [d, d], [d] */
    Weight w_in, b_in, w_out, b_out;               /* [d_mlp, d], [d_mlp], [d, d_mlp], [d] */
} VitLayer;

struct VitRun {
    const Vit *vit;
    const Compute *compute;
    Product *products;          /* [n_heads] */
    float *pixels;              /* [3, S, S] */
    float *patches;             /* [n, 3 P P] */
    float *resid, *out, *pos;   /* [T, d] */
    float *mean, *scale;        /* [T] */
    float *normalized, *normed; /* [T, d] */
    float *q, *k, *v, *z;       /* [T, heads, d_head] */
    float *scores;              /* [heads, T, T] */
    float *result;              /* [T, heads, d] */
    float *pre, *post;          /* [T, d_mlp] */
};

/* ---- opening ---- */

static const struct {
    const char *name;
    Activation activation;
} vit_activations[] = {
    {"quick_gelu", ACT_QUICK_GELU},
    {"gelu", ACT_GELU_ERF},
    {"gelu_python", ACT_GELU_ERF},
    {"gelu_new", ACT_GELU_TANH},
    {"gelu_fast", ACT_GELU_TANH},
    {"gelu_pytorch_tanh", ACT_GELU_TANH},
    {"relu", ACT_RELU},
    {"silu", ACT_SILU},
    {"swish", ACT_SILU},
};

static void config_size(size_t *out, const Json *config, const char *key, size_t absent,
                          const char *file) {
    const Json *value = json_get(config, key);
    int64_t number = (int64_t)absent;
    if (value != NULL && (!json_int64(value, &number) || number < 1 || number > INT32_MAX)) {
        fail(STATUS_INPUT, "%s: '%s' must be a whole number of at least 1", file,
                    key);
    }
    *out = (size_t)number;
}

static void config_read(VitConfig *c, Arena *arena, const char *file) {
    const Json *config;
    config = json_read_file(arena, file);
    if (!json_is(config, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: expected a JSON object", file);
    }
    const Json *type = json_get(config, "model_type");
    if (json_text_is(type, "clip")) {
        const Json *nested = json_get(config, "vision_config_dict");
        if (nested == NULL || json_is(nested, JSON_NULL)) {
            nested = json_get(config, "vision_config");
        }
        if (nested != NULL && !json_is(nested, JSON_OBJECT) && !json_is(nested, JSON_NULL)) {
            fail(STATUS_INPUT, "%s: 'vision_config' must be an object", file);
        }
        config = nested; /* NULL: every default */
    } else if (!json_text_is(type, "clip_vision_model")) {
        fail(STATUS_INPUT,
                    "%s: model_type '%s' is not a CLIP vision tower (clip_vision_model or clip)",
                    file, json_is(type, JSON_STRING) ? type->text : "");
    }

    config_size(&c->d_model, config, "hidden_size", 768, file);
    config_size(&c->d_mlp, config, "intermediate_size", 3072, file);
    config_size(&c->n_layers, config, "num_hidden_layers", 12, file);
    config_size(&c->n_heads, config, "num_attention_heads", 12, file);
    config_size(&c->n_channels, config, "num_channels", 3, file);
    config_size(&c->image_size, config, "image_size", 224, file);
    config_size(&c->patch_size, config, "patch_size", 32, file);
    if (c->n_channels != 3) {
        fail(STATUS_INPUT, "%s: 'num_channels' is %zu: only 3 is implemented", file,
                    c->n_channels);
    }
    if (c->d_model % c->n_heads != 0) {
        fail(STATUS_INPUT,
                    "%s: 'hidden_size' %zu is not a multiple of 'num_attention_heads' %zu", file,
                    c->d_model, c->n_heads);
    }
    c->d_head = c->d_model / c->n_heads;
    if (c->patch_size > c->image_size) {
        fail(STATUS_INPUT, "%s: 'patch_size' %zu is larger than 'image_size' %zu",
                    file, c->patch_size, c->image_size);
    }
    size_t side = c->image_size / c->patch_size;
    if (!size_mul(&c->n_patches, side, side)) {
        fail(STATUS_INPUT, "%s: 'image_size' %zu is too large", file, c->image_size);
    }

    const Json *eps = json_get(config, "layer_norm_eps");
    if (eps != NULL &&
        (!json_is(eps, JSON_NUMBER) || !(json_double(eps) >= 0) || !(json_double(eps) < 1))) {
        fail(STATUS_INPUT, "%s: 'layer_norm_eps' must be a number from 0 to 1", file);
    }
    c->norm_eps = eps != NULL ? (float)json_double(eps) : 1e-5f;

    const Json *act = json_get(config, "hidden_act");
    const char *name = "quick_gelu";
    if (act != NULL) {
        if (!json_is(act, JSON_STRING)) {
            fail(STATUS_INPUT, "%s: 'hidden_act' must be a string", file);
        }
        name = act->text;
    }
    for (size_t i = 0; i < sizeof vit_activations / sizeof vit_activations[0]; i++) {
        if (strcmp(name, vit_activations[i].name) == 0) {
            c->activation = vit_activations[i].activation;
            return;
        }
    }
    fail(STATUS_INPUT, "%s: 'hidden_act' is '%s', which is not supported", file,
                name);
}

/* One tensor as a Weight; b 0: a vector [a]. */
static void need(Vit *vit, Weight *weight, const char *name, size_t a, size_t b) {
    const Tensor *tensor;
    size_t shape[2] = {a, b};
    tensor = tensors_need(&vit->store, name, b == 0 ? 1 : 2, shape);
    weight->data = tensor->data;
    weight->dtype = tensor->dtype;
}

static void need_pair(Vit *vit, Weight *w, Weight *b, const char *module, size_t out, size_t in) {
    char name[200];
    snprintf(name, sizeof name, "%s.weight", module);
    need(vit, w, name, out, in);
    snprintf(name, sizeof name, "%s.bias", module);
    need(vit, b, name, out, 0);
}

static void layer_open(Vit *vit, const char *prefix, size_t index) {
    VitLayer *l = &vit->layers[index];
    size_t d = vit->config.d_model, d_mlp = vit->config.d_mlp;
    const struct {
        const char *module;
        Weight *w, *b;
        size_t out, in;
    } parts[] = {
        {"layer_norm1", &l->ln1_w, &l->ln1_b, d, 0},
        {"self_attn.q_proj", &l->w_q, &l->b_q, d, d},
        {"self_attn.k_proj", &l->w_k, &l->b_k, d, d},
        {"self_attn.v_proj", &l->w_v, &l->b_v, d, d},
        {"self_attn.out_proj", &l->w_o, &l->b_o, d, d},
        {"layer_norm2", &l->ln2_w, &l->ln2_b, d, 0},
        {"mlp.fc1", &l->w_in, &l->b_in, d_mlp, d},
        {"mlp.fc2", &l->w_out, &l->b_out, d, d_mlp},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char module[120];
        snprintf(module, sizeof module, "%sencoder.layers.%zu.%s", prefix, index, parts[i].module);
        need_pair(vit, parts[i].w, parts[i].b, module, parts[i].out, parts[i].in);
    }
}

static void vit_read(Vit *vit, const char *directory) {
    VitConfig *c = &vit->config;
    vit->path = arena_copy(vit->arena, directory, strlen(directory));
    const char *file = path_join(vit->arena, directory, "config.json");
    config_read(c, vit->arena, file);
    tensors_open(&vit->store, vit->arena, directory);
    /* A layer has 16 tensors: a count that the file cannot hold must not size an allocation. */
    if (c->n_layers > vit->store.count) {
        fail(STATUS_INPUT,
                    "%s: 'num_hidden_layers' is %zu, but there are %zu tensors", file, c->n_layers,
                    vit->store.count);
    }
    vit->layers = arena_alloc(vit->arena, c->n_layers, sizeof *vit->layers);

    const char *prefix = "vision_model.";
    if (tensors_find(&vit->store, "vision_model.embeddings.class_embedding") == NULL &&
        tensors_find(&vit->store, "embeddings.class_embedding") != NULL) {
        prefix = "";
    }
    char name[160];
    snprintf(name, sizeof name, "%sembeddings.class_embedding", prefix);
    need(vit, &vit->class_embed, name, c->d_model, 0);
    snprintf(name, sizeof name, "%sembeddings.position_embedding.weight", prefix);
    need(vit, &vit->pos_embed, name, c->n_patches + 1, c->d_model);
    snprintf(name, sizeof name, "%sembeddings.patch_embedding.weight", prefix);
    const Tensor *patch;
    size_t shape[4] = {c->d_model, c->n_channels, c->patch_size, c->patch_size};
    patch = tensors_need(&vit->store, name, 4, shape);
    vit->patch.data = patch->data;
    vit->patch.dtype = patch->dtype;
    snprintf(name, sizeof name, "%spre_layrnorm", prefix);
    need_pair(vit, &vit->pre_w, &vit->pre_b, name, c->d_model, 0);
    for (size_t i = 0; i < c->n_layers; i++) {
        layer_open(vit, prefix, i);
    }
}

void vit_open(Vit *vit, Arena *arena, const char *directory) {
    *vit = (Vit){.arena = arena};
    vit_read(vit, directory);
}

/* ---- running ---- */

VitRun *vit_run_layout(const Vit *vit, const Compute *compute, Arena *arena) {
    const VitConfig *c = &vit->config;
    size_t d = c->d_model, rows = c->n_patches + 1, side = c->patch_size * c->patch_size;
    VitRun r = {.vit = vit, .compute = compute};
    VitRun *run = arena_alloc(arena, 1, sizeof *run);
    r.products = arena_alloc(arena, c->n_heads, sizeof *r.products);
    r.pixels = arena_floats(arena, c->n_channels, size_product(c->image_size, c->image_size));
    r.patches = arena_floats(arena, c->n_patches, size_product(c->n_channels, side));
    r.resid = arena_floats(arena, rows, d);
    r.out = arena_floats(arena, rows, d);
    r.pos = arena_floats(arena, rows, d);
    r.mean = arena_floats(arena, rows, 1);
    r.scale = arena_floats(arena, rows, 1);
    r.normalized = arena_floats(arena, rows, d);
    r.normed = arena_floats(arena, rows, d);
    r.q = arena_floats(arena, rows, d);
    r.k = arena_floats(arena, rows, d);
    r.v = arena_floats(arena, rows, d);
    r.z = arena_floats(arena, rows, d);
    r.scores = arena_floats(arena, c->n_heads, size_product(rows, rows));
    r.result = arena_floats(arena, rows, size_product(c->n_heads, d));
    r.pre = arena_floats(arena, rows, c->d_mlp);
    r.post = arena_floats(arena, rows, c->d_mlp);
    if (run == NULL) {
        return NULL;
    }
    *run = r;
    return run;
}

static void call(const Hooks *hooks, HookKind kind, int layer, float *data, int rank, size_t a,
                   size_t b, size_t c) {
    if (!hooks_want(hooks, kind, layer, false)) {
        return;
    }
    HookPoint point = {
        .kind = kind, .layer = layer, .vision = true, .rank = rank, .shape = {a, b, c}};
    hooks->call(hooks->user, &point, data);
}

/* run->normed[T, d] = LayerNorm(x) with its two hook points. */
static void layer_norm(VitRun *run, const float *x, Weight w, Weight b, HookKind scale_kind,
                         int layer, const Hooks *hooks) {
    size_t rows = run->vit->config.n_patches + 1, d = run->vit->config.d_model;
    norm_scale(run->compute, run->mean, run->scale, x, run->vit->config.norm_eps, rows, d);
    call(hooks, scale_kind, layer, run->scale, 2, rows, 1, 0);
    norm_normalize(run->compute, run->normalized, x, run->mean, run->scale, rows, d);
    call(hooks, (HookKind)(scale_kind + 1), layer, run->normalized, 2, rows, d, 0);
    norm_weight(run->compute, run->normed, run->normalized, w, b, false, rows, d);
}

/* y[rows, out] = x[rows, in] W^T + b, W stored [out, in]. */
static Product linear(float *y, const float *x, Weight w, Weight b, size_t rows, size_t out,
                      size_t in) {
    return (Product){.c = y,
                     .ldc = out,
                     .a = x,
                     .a_row = (ptrdiff_t)in,
                     .a_col = 1,
                     .b = w,
                     .b_row = (ptrdiff_t)in,
                     .b_col = 1,
                     .bias = b,
                     .m = rows,
                     .n = out,
                     .k = in};
}

static Weight plain(const float *data) {
    return (Weight){.data = data, .dtype = DTYPE_F32};
}

/* Product of head h: result[:, h, :] = z[:, h, :] W_O[:, h, :]^T into c, rows ldc apart. */
static Product head_result(const VitRun *run, const VitLayer *l, size_t h, float *c, size_t ldc) {
    const VitConfig *g = &run->vit->config;
    Weight w = l->w_o;
    w.data = (const char *)w.data + h * g->d_head * dtype_size(w.dtype);
    return (Product){.c = c,
                     .ldc = ldc,
                     .a = run->z + h * g->d_head,
                     .a_row = (ptrdiff_t)g->d_model,
                     .a_col = 1,
                     .b = w,
                     .b_row = (ptrdiff_t)g->d_model,
                     .b_col = 1,
                     .m = g->n_patches + 1,
                     .n = g->d_model,
                     .k = g->d_head};
}

/* hook_result, and whether the hook replaced it (then attn_out is the sum of what it left;
 * otherwise the one product over all heads, so that reading a point changes no bit elsewhere). */
static void result_hook(VitRun *run, const VitLayer *l, int layer, bool *replaced,
                          const Hooks *hooks) {
    const VitConfig *c = &run->vit->config;
    size_t rows = c->n_patches + 1, d = c->d_model;
    *replaced = false;
    if (!hooks_want(hooks, HOOK_RESULT, layer, false)) {
        return;
    }
    for (size_t h = 0; h < c->n_heads; h++) {
        run->products[h] = head_result(run, l, h, run->result + h * d, c->n_heads * d);
    }
    product_run(run->compute, run->products, c->n_heads);
    call(hooks, HOOK_RESULT, layer, run->result, 3, rows, c->n_heads, d);
    for (size_t h = 0; h < c->n_heads && !*replaced; h++) {
        Product again = head_result(run, l, h, run->out, d);
        product_run(run->compute, &again, 1);
        for (size_t t = 0; t < rows && !*replaced; t++) {
            *replaced = memcmp(run->out + t * d, run->result + (t * c->n_heads + h) * d,
                               d * sizeof(float)) != 0;
        }
    }
    if (*replaced) {
        for (size_t t = 0; t < rows; t++) {
            for (size_t i = 0; i < d; i++) {
                double sum = 0;
                for (size_t h = 0; h < c->n_heads; h++) {
                    sum += (double)run->result[(t * c->n_heads + h) * d + i];
                }
                run->out[t * d + i] = (float)sum + weight_at(l->b_o, i);
            }
        }
    }
}

/* run->out[T, d] = attention(run->normed). */
static void attention(VitRun *run, const VitLayer *l, int layer, const Hooks *hooks) {
    const VitConfig *c = &run->vit->config;
    size_t rows = c->n_patches + 1, d = c->d_model, heads = c->n_heads, d_head = c->d_head;
    Product qkv[3] = {linear(run->q, run->normed, l->w_q, l->b_q, rows, d, d),
                      linear(run->k, run->normed, l->w_k, l->b_k, rows, d, d),
                      linear(run->v, run->normed, l->w_v, l->b_v, rows, d, d)};
    product_run(run->compute, qkv, 3);
    call(hooks, HOOK_Q, layer, run->q, 3, rows, heads, d_head);
    call(hooks, HOOK_K, layer, run->k, 3, rows, heads, d_head);
    call(hooks, HOOK_V, layer, run->v, 3, rows, heads, d_head);

    for (size_t h = 0; h < heads; h++) {
        run->products[h] = (Product){.c = run->scores + h * rows * rows,
                                     .ldc = rows,
                                     .a = run->q + h * d_head,
                                     .a_row = (ptrdiff_t)d,
                                     .a_col = 1,
                                     .b = plain(run->k + h * d_head),
                                     .b_row = (ptrdiff_t)d,
                                     .b_col = 1,
                                     .m = rows,
                                     .n = rows,
                                     .k = d_head};
    }
    product_run(run->compute, run->products, heads);
    float factor = (float)(1.0 / sqrt((double)d_head));
    vector_scale(run->compute, run->scores, run->scores, factor, heads * rows * rows);
    call(hooks, HOOK_ATTN_SCORES, layer, run->scores, 3, heads, rows, rows);
    softmax_rows(run->compute, run->scores, run->scores, heads * rows, rows);
    call(hooks, HOOK_PATTERN, layer, run->scores, 3, heads, rows, rows);

    for (size_t h = 0; h < heads; h++) {
        run->products[h] = (Product){.c = run->z + h * d_head,
                                     .ldc = d,
                                     .a = run->scores + h * rows * rows,
                                     .a_row = (ptrdiff_t)rows,
                                     .a_col = 1,
                                     .b = plain(run->v + h * d_head),
                                     .b_row = 1,
                                     .b_col = (ptrdiff_t)d,
                                     .m = rows,
                                     .n = d_head,
                                     .k = rows};
    }
    product_run(run->compute, run->products, heads);
    call(hooks, HOOK_Z, layer, run->z, 3, rows, heads, d_head);

    bool replaced;
    result_hook(run, l, layer, &replaced, hooks);
    if (!replaced) {
        Product out = linear(run->out, run->z, l->w_o, l->b_o, rows, d, d);
        product_run(run->compute, &out, 1);
    }
    call(hooks, HOOK_ATTN_OUT, layer, run->out, 2, rows, d, 0);
}

/* run->out[T, d] = mlp(run->normed). */
static void mlp(VitRun *run, const VitLayer *l, int layer, const Hooks *hooks) {
    const VitConfig *c = &run->vit->config;
    size_t rows = c->n_patches + 1, d = c->d_model, d_mlp = c->d_mlp;
    Product in = linear(run->pre, run->normed, l->w_in, l->b_in, rows, d_mlp, d);
    product_run(run->compute, &in, 1);
    call(hooks, HOOK_PRE, layer, run->pre, 2, rows, d_mlp, 0);
    activate(run->compute, c->activation, run->post, run->pre, rows * d_mlp);
    call(hooks, HOOK_POST, layer, run->post, 2, rows, d_mlp, 0);
    Product out = linear(run->out, run->post, l->w_out, l->b_out, rows, d, d_mlp);
    product_run(run->compute, &out, 1);
    call(hooks, HOOK_MLP_OUT, layer, run->out, 2, rows, d, 0);
}

static void block(VitRun *run, size_t index, const Hooks *hooks) {
    const VitLayer *l = &run->vit->layers[index];
    size_t rows = run->vit->config.n_patches + 1, d = run->vit->config.d_model;
    int layer = (int)index;
    call(hooks, HOOK_RESID_PRE, layer, run->resid, 2, rows, d, 0);
    layer_norm(run, run->resid, l->ln1_w, l->ln1_b, HOOK_LN1_SCALE, layer, hooks);
    attention(run, l, layer, hooks);
    vector_add(run->compute, run->resid, run->out, rows * d);
    call(hooks, HOOK_RESID_MID, layer, run->resid, 2, rows, d, 0);
    layer_norm(run, run->resid, l->ln2_w, l->ln2_b, HOOK_LN2_SCALE, layer, hooks);
    mlp(run, l, layer, hooks);
    vector_add(run->compute, run->resid, run->out, rows * d);
    call(hooks, HOOK_RESID_POST, layer, run->resid, 2, rows, d, 0);
}

/* patches[n, (channel, y, x)]: the order in which the convolution's weight is stored. */
static void gather_patches(const VitConfig *c, float *patches, const float *pixels) {
    size_t side = c->image_size / c->patch_size, p = c->patch_size, s = c->image_size;
    for (size_t patch = 0; patch < c->n_patches; patch++) {
        size_t top = patch / side * p, left = patch % side * p;
        for (size_t channel = 0; channel < c->n_channels; channel++) {
            for (size_t y = 0; y < p; y++) {
                memcpy(patches, pixels + (channel * s + top + y) * s + left, p * sizeof(float));
                patches += p;
            }
        }
    }
}

static void embed(VitRun *run, const float *pixel_values, const Hooks *hooks) {
    const Vit *vit = run->vit;
    const VitConfig *c = &vit->config;
    size_t rows = c->n_patches + 1, d = c->d_model, s = c->image_size;
    memcpy(run->pixels, pixel_values, c->n_channels * s * s * sizeof(float));
    call(hooks, HOOK_PIXEL_VALUES, -1, run->pixels, 3, c->n_channels, s, s);
    gather_patches(c, run->patches, run->pixels);
    weight_widen(run->out, vit->class_embed, 0, d);
    Product conv = linear(run->out + d, run->patches, vit->patch, (Weight){.data = NULL},
                          c->n_patches, d, c->n_channels * c->patch_size * c->patch_size);
    product_run(run->compute, &conv, 1);
    call(hooks, HOOK_EMBED, -1, run->out, 2, rows, d, 0);
    weight_widen(run->pos, vit->pos_embed, 0, rows * d);
    call(hooks, HOOK_POS_EMBED, -1, run->pos, 2, rows, d, 0);
    vector_add(run->compute, run->out, run->pos, rows * d);
    layer_norm(run, run->out, vit->pre_w, vit->pre_b, HOOK_LN_PRE_SCALE, -1, hooks);
    memcpy(run->resid, run->normed, rows * d * sizeof(float));
}

void vit_forward(VitRun *run, const float *pixel_values, float *features, const Hooks *hooks) {
    const VitConfig *c = &run->vit->config;
    embed(run, pixel_values, hooks);
    for (size_t i = 0; i < c->n_layers; i++) {
        block(run, i, hooks);
    }
    size_t count = c->n_patches * c->d_model;
    const float *out = run->resid + c->d_model;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(out[i])) {
            fail(STATUS_INPUT,
                "%s: the vision tower's output is not finite: its weights or the pixel values "
                "hold NaN, infinity or numbers too large",
                run->vit->path);
        }
    }
    if (features != NULL) {
        memcpy(features, out, count * sizeof(float));
    }
}

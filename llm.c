/* llm.c: one transformer, three configurations: forward, backward to any activation, KV cache.
 *
 *   ids -> embed (x sqrt(d_model): Gemma-2) (+ pos_embed: GPT-2) -> resid_pre of block 0
 *
 *   block:  resid_pre -> ln1 -> q, k, v -> rotate -> scores -> pattern -> z -> W_O -> (ln1_post)
 *                                                                        attn_out -+
 *           resid_pre ------------------------------------------------------------(+)- resid_mid
 *           resid_mid -> ln2 -> pre (, pre_linear) -> post -> W_out -> (ln2_post) -> mlp_out -+
 *           resid_mid ----------------------------------------------------------------------(+)-
 *                                                                                    resid_post
 *   (parallel GPT-NeoX: ln2 reads resid_pre too, resid_post = (mlp_out + attn_out) + resid_pre)
 *
 *   resid_post of the last block -> ln_final -> head -> (soft-cap) -> logits
 *
 * Details that are easy to get wrong:
 *   the soft-cap of scores comes after the scale and before the mask;
 *   the window counts the query itself: i - W < j <= i;
 *   the gradient of a pattern is not zero where the mask is, only that of the scores is;
 *   a key-value head's gradient sums over its query heads (here: heads ascending, then queries);
 *   a hook that replaces an activation is seen by everything after it, and in backward the slopes
 *   are those at the replaced value.
 *
 * T is the number of rows (tokens of all sequences), H heads, G key-value heads, E d_head, D
 * d_model, M d_mlp, V d_vocab. */
#include "elementary.h"
#include "llm_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ATTENTION_PIECE = 1 << 22
}; /* floats of one buffer of scores, unless hooks want more */

/* ---- a run ---- */

static void layer_layout(LayerState *state, const LlmConfig *c, const LlmPlan *plan, Arena *arena) {
    size_t rows = plan->max_rows, d = c->d_model, key = c->n_kv_heads * c->d_head;
    bool gemma = c->kind == LLM_GEMMA2;
    state->resid_pre = arena_floats(arena, rows, d);
    state->resid_mid = plan->backward && !c->parallel ? arena_floats(arena, rows, d) : state->resid_pre;
    state->q = arena_floats(arena, rows, c->n_heads * c->d_head);
    if (!plan->cache) {
        state->k = arena_floats(arena, rows, key);
        state->v = arena_floats(arena, rows, key);
    }
    if (gemma) {
        state->attn_raw = arena_floats(arena, rows, d);
        state->mlp_raw = arena_floats(arena, rows, d);
    }
    state->pre = arena_floats(arena, rows, c->d_mlp);
    state->linear = c->gated ? arena_floats(arena, rows, c->d_mlp) : NULL;
    for (int n = 0; n < 4; n++) {
        state->mean[n] = c->rms_norm ? NULL : arena_floats(arena, rows, 1);
        state->scale[n] = arena_floats(arena, rows, 1);
    }
    if (plan->backward && plan->attention_replaced) {
        size_t room = size_product(plan->max_sequence, c->n_heads);
        state->kept_scores = arena_floats(arena, rows, room);
        state->kept_pattern = arena_floats(arena, rows, room);
    }
}

/* Room for one buffer of scores (also used for hook_result): everything at once if it is small or
 * hooks want it, else as many queries as fit, at least one. */
static size_t scores_room(const LlmConfig *c, const LlmPlan *plan) {
    size_t most = plan->cache ? plan->max_rows : plan->max_sequence;
    size_t row = size_product(c->n_heads, plan->max_sequence), whole = size_product(row, most);
    size_t result = size_product(plan->max_rows, c->n_heads * c->d_model);
    if (plan->max_sequences > 1) { /* many short sequences in one call: what a piece may hold */
        size_t batch = 0;
        batch = size_mul(&batch, row, plan->max_rows) && batch < ATTENTION_PIECE ? batch
                                                                                 : ATTENTION_PIECE;
        whole = whole > batch ? whole : batch;
    }
    whole = whole > result ? whole : result;
    if (!plan->attention_hooks && whole > ATTENTION_PIECE) {
        whole = ATTENTION_PIECE;
    }
    return whole > row ? whole : row;
}

LlmRun *llm_run_layout(const Llm *llm, const Compute *compute, const LlmPlan *plan, Arena *arena) {
    const LlmConfig *c = &llm->config;
    size_t rows = plan->max_rows, d = c->d_model;
    size_t query = c->n_heads * c->d_head, key = c->n_kv_heads * c->d_head;
    LlmRun *run = arena_alloc(arena, 1, sizeof *run);
    LlmRun r = {.llm = llm, .compute = compute, .plan = *plan};

    r.layers = arena_alloc(arena, c->n_layers, sizeof *r.layers);
    r.checked = arena_alloc(arena, c->n_layers + 1, sizeof *r.checked);
    r.position = arena_alloc(arena, rows, sizeof *r.position);
    r.start = arena_alloc(arena, plan->max_sequences + 1, sizeof *r.start);
    r.past = arena_alloc(arena, plan->max_sequences, sizeof *r.past);
    r.kv_start = arena_alloc(arena, plan->max_sequences, sizeof *r.kv_start);
    r.new_start = arena_alloc(arena, plan->max_sequences + 1, sizeof *r.new_start);
    r.new_past = arena_alloc(arena, plan->max_sequences, sizeof *r.new_past);
    if (plan->tails) {
        r.tail_k = arena_floats(arena, rows, key);
        r.tail_v = arena_floats(arena, rows, key);
    }
    r.blocks = arena_alloc(arena, plan->max_sequences, sizeof *r.blocks);
    size_t jobs = size_product(plan->max_sequences, c->n_heads);
    r.products = arena_alloc(arena, jobs < 4 ? 4 : jobs, sizeof *r.products);

    LayerState shared = {0};
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        LayerState own = {0};
        if (layer == 0 || plan->backward) {
            layer_layout(&shared, c, plan, arena);
        }
        own = shared;
        if (plan->cache) {
            own.k = arena_floats(arena, plan->max_sequence, key);
            own.v = arena_floats(arena, plan->max_sequence, key);
        }
        if (r.layers != NULL) {
            r.layers[layer] = own;
        }
    }
    r.resid = plan->backward ? arena_floats(arena, rows, d) : shared.resid_pre;
    r.x = arena_floats(arena, rows, d);
    r.qkv = c->kind == LLM_GPT_NEOX ? arena_floats(arena, rows, 3 * query) : NULL;
    r.z = arena_floats(arena, rows, query);
    r.post = arena_floats(arena, rows, c->d_mlp);
    if (c->kind != LLM_GEMMA2) { /* nothing reads these in backward: shared by the layers */
        float *attn = arena_floats(arena, rows, d), *mlp = arena_floats(arena, rows, d);
        for (size_t layer = 0; layer < c->n_layers && r.layers != NULL; layer++) {
            r.layers[layer].attn_raw = attn;
            r.layers[layer].mlp_raw = mlp;
        }
    }
    r.final_mean = c->rms_norm ? NULL : arena_floats(arena, rows, 1);
    r.final_scale = arena_floats(arena, rows, 1);
    r.final_x = arena_floats(arena, rows, d);
    r.gather = arena_floats(arena, plan->max_logits, d);
    r.scores_size = scores_room(c, plan);
    r.scores = arena_floats(arena, r.scores_size, 1);
    if (plan->backward) {
        r.pattern = arena_floats(arena, r.scores_size, 1);
        r.dpattern = arena_floats(arena, r.scores_size, 1);
        r.dresid = arena_floats(arena, rows, d);
        r.dfinal = arena_floats(arena, rows, d);
        r.dbranch = arena_floats(arena, rows, d);
        r.dx = arena_floats(arena, rows, d);
        r.dq = arena_floats(arena, rows, query);
        r.dz = arena_floats(arena, rows, query);
        r.dk = arena_floats(arena, rows, key);
        r.dv = arena_floats(arena, rows, key);
        r.dpre = arena_floats(arena, rows, c->d_mlp);
        r.dlinear = c->gated ? arena_floats(arena, rows, c->d_mlp) : NULL;
        r.dscale = arena_floats(arena, rows, 1);
    }
    if (c->rotary_dim > 0) {
        r.cosine = arena_floats(arena, plan->max_sequence, c->rotary_dim / 2);
        r.sine = arena_floats(arena, plan->max_sequence, c->rotary_dim / 2);
    }
    if (run == NULL) {
        return NULL;
    }
    if (c->rotary_dim > 0) {
        rope_tables(r.cosine, r.sine, c->rope_theta, c->rotary_dim, 0, plan->max_sequence);
    }
    *run = r;
    return run;
}

const float *llm_resid(const LlmRun *run) {
    return run->resid;
}

size_t llm_run_past(const LlmRun *run) {
    return run->cached;
}

void llm_run_rewind(LlmRun *run, size_t past) {
    run->cached = past < run->cached ? past : run->cached;
}

/* ---- small things ---- */

void llm_hook(const Hooks *hooks, HookKind kind, int layer, bool gradient, float *data,
                size_t rows, size_t a, size_t b) {
    if (!hooks_want(hooks, kind, layer, gradient)) {
        return;
    }
    HookPoint point = {.kind = kind,
                       .layer = layer,
                       .gradient = gradient,
                       .rank = b > 0 ? 3 : 2,
                       .shape = {rows, a, b}};
    hooks->call(hooks->user, &point, data);
}

uint64_t llm_fingerprint(const float *x, size_t n) {
    uint64_t hash = 14695981039346656037U;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = 0;
        memcpy(&bits, x + i, sizeof bits);
        hash = (hash ^ bits) * 1099511628211U;
    }
    return hash;
}

static void run_one(const LlmRun *run, Product product) {
    product_run(run->compute, &product, 1);
}

static bool all_finite(const float *x, size_t n) {
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
    }
    return finite;
}

/* ---- norm ---- */

typedef struct NormPoint {
    HookKind scale, normalized;
    int layer;
} NormPoint;

/* x[T, D] -> y[T, D] = normalized * w + b (Gemma-2: normalized * (1 + w)); mean and scale [T] are
 * kept for backward. y is not x. */
static void norm_forward(const LlmRun *run, const LlmNorm *norm, NormPoint point, const float *x,
                           float *mean, float *scale, float *y, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    norm_scale(run->compute, mean, scale, x, c->norm_eps, run->rows, c->d_model);
    llm_hook(hooks, point.scale, point.layer, false, scale, run->rows, 1, 0);
    norm_normalize(run->compute, y, x, mean, scale, run->rows, c->d_model);
    llm_hook(hooks, point.normalized, point.layer, false, y, run->rows, c->d_model, 0);
    norm_weight(run->compute, y, y, norm->w, norm->b, c->rms_norm, run->rows, c->d_model);
}

/* dy[T, D] (overwritten) -> dx[T, D] += through x / scale and through the scale. */
static void norm_backward(const LlmRun *run, const LlmNorm *norm, NormPoint point, const float *x,
                            const float *mean, const float *scale, float *dy, float *dx,
                            const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, d = c->d_model;
    norm_weight_backward(run->compute, dy, dy, norm->w, c->rms_norm, rows, d);
    llm_hook(hooks, point.normalized, point.layer, true, dy, rows, d, 0);
    norm_scale_backward(run->compute, run->dscale, dy, x, mean, scale, rows, d);
    llm_hook(hooks, point.scale, point.layer, true, run->dscale, rows, 1, 0);
    norm_input_backward(run->compute, dx, dy, run->dscale, x, mean, scale, rows, d);
}

/* ---- the attention half of a block ---- */

/* x[T, D] W_QKV -> q [T, H, E], k, v [T, G, E], rotated, with their hooks. */
static void project_forward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LlmLayer *l = &run->llm->layers[layer];
    const LayerState *state = &run->layers[layer];
    size_t rows = run->rows, e = c->d_head, heads = c->n_heads, keys = c->n_kv_heads;
    size_t behind = run->plan.cache ? run->past[0] * keys * e : 0;
    float *q = state->q;
    float *k = run->tail ? run->tail_k : state->k + behind;
    float *v = run->tail ? run->tail_v : state->v + behind;
    int at = (int)layer;
    if (l->qkv.w.data != NULL) {
        run_one(run, product_nt(run->qkv, run->x, &l->qkv, rows));
        for (size_t i = 0; i < rows * heads; i++) {
            memcpy(q + i * e, run->qkv + (3 * i + 0) * e, e * sizeof *q);
            memcpy(k + i * e, run->qkv + (3 * i + 1) * e, e * sizeof *k);
            memcpy(v + i * e, run->qkv + (3 * i + 2) * e, e * sizeof *v);
        }
    } else {
        Product products[3] = {product_nt(q, run->x, &l->q, rows),
                               product_nt(k, run->x, &l->k, rows),
                               product_nt(v, run->x, &l->v, rows)};
        product_run(run->compute, products, 3);
    }
    llm_hook(hooks, HOOK_Q, at, false, q, rows, heads, e);
    llm_hook(hooks, HOOK_K, at, false, k, rows, keys, e);
    llm_hook(hooks, HOOK_V, at, false, v, rows, keys, e);
    if (c->rotary_dim > 0) {
        rope_rotate(run->compute, q, q, run->cosine, run->sine, run->position, rows, heads, e,
                    c->rotary_dim, false);
        rope_rotate(run->compute, k, k, run->cosine, run->sine, run->position, rows, keys, e,
                    c->rotary_dim, false);
        llm_hook(hooks, HOOK_ROT_Q, at, false, q, rows, heads, e);
        llm_hook(hooks, HOOK_ROT_K, at, false, k, rows, keys, e);
    }
}

/* dq, dk, dv -> run->dx [T, D]. */
static void project_backward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LlmLayer *l = &run->llm->layers[layer];
    float *dq = run->dq, *dk = run->dk, *dv = run->dv;
    size_t rows = run->rows, e = c->d_head, heads = c->n_heads, keys = c->n_kv_heads;
    int at = (int)layer;
    if (c->rotary_dim > 0) {
        llm_hook(hooks, HOOK_ROT_K, at, true, dk, rows, keys, e);
        llm_hook(hooks, HOOK_ROT_Q, at, true, dq, rows, heads, e);
        rope_rotate(run->compute, dq, dq, run->cosine, run->sine, run->position, rows, heads, e,
                    c->rotary_dim, true);
        rope_rotate(run->compute, dk, dk, run->cosine, run->sine, run->position, rows, keys, e,
                    c->rotary_dim, true);
    }
    llm_hook(hooks, HOOK_V, at, true, dv, rows, keys, e);
    llm_hook(hooks, HOOK_K, at, true, dk, rows, keys, e);
    llm_hook(hooks, HOOK_Q, at, true, dq, rows, heads, e);
    if (l->qkv.w.data != NULL) {
        for (size_t i = 0; i < rows * heads; i++) {
            memcpy(run->qkv + (3 * i + 0) * e, dq + i * e, e * sizeof *dq);
            memcpy(run->qkv + (3 * i + 1) * e, dk + i * e, e * sizeof *dk);
            memcpy(run->qkv + (3 * i + 2) * e, dv + i * e, e * sizeof *dv);
        }
        run_one(run, product_nn(run->dx, run->qkv, &l->qkv, rows, false));
    } else {
        run_one(run, product_nn(run->dx, dq, &l->q, rows, false));
        run_one(run, product_nn(run->dx, dk, &l->k, rows, true));
        run_one(run, product_nn(run->dx, dv, &l->v, rows, true));
    }
}

static void result_room(const LlmRun *run) {
    const LlmConfig *c = &run->llm->config;
    if (run->rows * c->n_heads * c->d_model > run->scores_size) {
        fail(STATUS_RESOURCE,
                    "attn.hook_result of %zu tokens is larger than this run has room for",
                    run->rows);
    }
}

/* z[T, H, E] -> result[T, H, D] = z W_O per head, only where a hook wants it. If the hook changes
 * it, attn_raw[T, D] = its sum over heads (+ bias). */
static void result_forward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, heads = c->n_heads, d = c->d_model, size = rows * heads * d;
    float *result = run->scores, *out = run->layers[layer].attn_raw;
    if (!hooks_want(hooks, HOOK_RESULT, (int)layer, false)) {
        return;
    }
    result_room(run);
    for (size_t h = 0; h < heads; h++) {
        Matrix w = llm_head_matrix(run->llm, layer, HOOK_Z, h);
        run->products[h] = product_nt(result + h * d, run->z + h * c->d_head, &w, rows);
        run->products[h].ldc = heads * d;
        run->products[h].a_row = (ptrdiff_t)(heads * c->d_head);
    }
    product_run(run->compute, run->products, heads);
    uint64_t before = llm_fingerprint(result, size);
    llm_hook(hooks, HOOK_RESULT, (int)layer, false, result, rows, heads, d);
    if (llm_fingerprint(result, size) == before) {
        return;
    }
    Weight bias = run->llm->layers[layer].o.bias;
    for (size_t i = 0; i < rows * d; i++) {
        double sum = 0;
        for (size_t h = 0; h < heads; h++) {
            sum += (double)result[(i / d * heads + h) * d + i % d];
        }
        out[i] = (float)sum + (bias.data != NULL ? weight_at(bias, i % d) : 0);
    }
}

/* draw[T, D] -> run->dz [T, H, E]. Each head's result has the gradient of their sum. */
static void result_backward(const LlmRun *run, size_t layer, const float *draw,
                              const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, heads = c->n_heads, d = c->d_model, size = rows * heads * d;
    float *dresult = run->scores;
    run_one(run, product_nn(run->dz, draw, &run->llm->layers[layer].o, rows, false));
    if (!hooks_want(hooks, HOOK_RESULT, (int)layer, true)) {
        return;
    }
    result_room(run);
    for (size_t i = 0; i < rows * heads; i++) {
        memcpy(dresult + i * d, draw + i / heads * d, d * sizeof *draw);
    }
    uint64_t before = llm_fingerprint(dresult, size);
    llm_hook(hooks, HOOK_RESULT, (int)layer, true, dresult, rows, heads, d);
    if (llm_fingerprint(dresult, size) == before) {
        return;
    }
    for (size_t h = 0; h < heads; h++) {
        Matrix w = llm_head_matrix(run->llm, layer, HOOK_Z, h);
        run->products[h] =
            product_nn(run->dz + h * c->d_head, dresult + h * d, &w, rows, false);
        run->products[h].ldc = heads * c->d_head;
        run->products[h].a_row = (ptrdiff_t)(heads * d);
    }
    product_run(run->compute, run->products, heads);
}

/* q and resid_pre of each sequence's last row move to the front, and T is the number of sequences. */
static void keep_last_rows(LlmRun *run, const LayerState *state) {
    const LlmConfig *c = &run->llm->config;
    size_t query = c->n_heads * c->d_head, d = c->d_model;
    for (size_t s = 0; s < run->n_sequences; s++) {
        size_t last = run->start[s + 1] - 1;
        memmove(state->q + s * query, state->q + last * query, query * sizeof(float));
        memmove(state->resid_pre + s * d, state->resid_pre + last * d, d * sizeof(float));
        run->past[s] += last - run->start[s];
        run->start[s] = s;
        run->position[s] = (uint32_t)run->past[s];
    }
    run->rows = run->start[run->n_sequences] = run->n_sequences;
}

/* resid_pre [T, D] -> *out = attn_out [T, D]. */
static void attn_forward(LlmRun *run, size_t layer, float **out, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LlmLayer *l = &run->llm->layers[layer];
    const LayerState *state = &run->layers[layer];
    NormPoint ln1 = {HOOK_LN1_SCALE, HOOK_LN1_NORMALIZED, (int)layer};
    NormPoint post = {HOOK_LN1_POST_SCALE, HOOK_LN1_POST_NORMALIZED, (int)layer};
    norm_forward(run, &l->ln1, ln1, state->resid_pre, state->mean[LN1], state->scale[LN1],
                     run->x, hooks);
    project_forward(run, layer, hooks);
    if (run->ends && layer + 1 == c->n_layers) {
        keep_last_rows(run, state);
    }
    llm_attention_forward(run, layer, hooks);
    llm_hook(hooks, HOOK_Z, (int)layer, false, run->z, run->rows, c->n_heads, c->d_head);
    run_one(run, product_nt(state->attn_raw, run->z, &l->o, run->rows));
    result_forward(run, layer, hooks);
    *out = state->attn_raw;
    if (l->ln1_post.w.data != NULL) {
        norm_forward(run, &l->ln1_post, post, state->attn_raw, state->mean[LN1_POST],
                         state->scale[LN1_POST], run->x, hooks);
        *out = run->x;
    }
    llm_hook(hooks, HOOK_ATTN_OUT, (int)layer, false, *out, run->rows, c->d_model, 0);
}

/* run->dbranch = d attn_out (overwritten) -> run->dresid += through the attention. */
static void attn_backward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LlmLayer *l = &run->llm->layers[layer];
    const LayerState *state = &run->layers[layer];
    NormPoint ln1 = {HOOK_LN1_SCALE, HOOK_LN1_NORMALIZED, (int)layer};
    NormPoint post = {HOOK_LN1_POST_SCALE, HOOK_LN1_POST_NORMALIZED, (int)layer};
    float *draw = run->dbranch;
    size_t rows = run->rows, d = c->d_model;
    llm_hook(hooks, HOOK_ATTN_OUT, (int)layer, true, draw, rows, d, 0);
    if (l->ln1_post.w.data != NULL) {
        memset(run->dx, 0, rows * d * sizeof *run->dx);
        norm_backward(run, &l->ln1_post, post, state->attn_raw, state->mean[LN1_POST],
                          state->scale[LN1_POST], draw, run->dx, hooks);
        draw = run->dx;
    }
    result_backward(run, layer, draw, hooks);
    llm_hook(hooks, HOOK_Z, (int)layer, true, run->dz, rows, c->n_heads, c->d_head);
    llm_attention_backward(run, layer, hooks);
    project_backward(run, layer, hooks);
    norm_backward(run, &l->ln1, ln1, state->resid_pre, state->mean[LN1], state->scale[LN1],
                         run->dx, run->dresid, hooks);
}

/* ---- the MLP half ---- */

/* resid_mid (parallel: resid_pre) [T, D] -> *out = mlp_out [T, D]. */
static void mlp_forward(const LlmRun *run, size_t layer, float **out, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LlmLayer *l = &run->llm->layers[layer];
    const LayerState *state = &run->layers[layer];
    NormPoint ln2 = {HOOK_LN2_SCALE, HOOK_LN2_NORMALIZED, (int)layer};
    NormPoint after = {HOOK_LN2_POST_SCALE, HOOK_LN2_POST_NORMALIZED, (int)layer};
    size_t rows = run->rows, m = c->d_mlp;
    int at = (int)layer;
    norm_forward(run, &l->ln2, ln2, state->resid_mid, state->mean[LN2], state->scale[LN2],
                     run->x, hooks);
    Product products[2] = {product_nt(state->pre, run->x, &l->pre, rows)};
    if (c->gated) {
        products[1] = product_nt(state->linear, run->x, &l->linear, rows);
    }
    product_run(run->compute, products, c->gated ? 2 : 1);
    llm_hook(hooks, HOOK_PRE, at, false, state->pre, rows, m, 0);
    activate(run->compute, c->activation, run->post, state->pre, rows * m);
    if (c->gated) {
        llm_hook(hooks, HOOK_PRE_LINEAR, at, false, state->linear, rows, m, 0);
        vector_multiply(run->compute, run->post, run->post, state->linear, rows * m);
    }
    llm_hook(hooks, HOOK_POST, at, false, run->post, rows, m, 0);
    run_one(run, product_nt(state->mlp_raw, run->post, &l->out, rows));
    *out = state->mlp_raw;
    if (l->ln2_post.w.data != NULL) {
        norm_forward(run, &l->ln2_post, after, state->mlp_raw, state->mean[LN2_POST],
                         state->scale[LN2_POST], run->x, hooks);
        *out = run->x;
    }
    llm_hook(hooks, HOOK_MLP_OUT, at, false, *out, rows, c->d_model, 0);
}

/* run->dresid = d resid_post -> run->dresid += through the MLP, now d resid_mid (before its hook).
 */
static void mlp_backward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LlmLayer *l = &run->llm->layers[layer];
    const LayerState *state = &run->layers[layer];
    NormPoint ln2 = {HOOK_LN2_SCALE, HOOK_LN2_NORMALIZED, (int)layer};
    NormPoint after = {HOOK_LN2_POST_SCALE, HOOK_LN2_POST_NORMALIZED, (int)layer};
    size_t rows = run->rows, d = c->d_model, m = c->d_mlp;
    float *draw = run->dx, *dpost = run->dpre;
    int at = (int)layer;
    memcpy(draw, run->dresid, rows * d * sizeof *draw);
    llm_hook(hooks, HOOK_MLP_OUT, at, true, draw, rows, d, 0);
    if (l->ln2_post.w.data != NULL) {
        float *dout = draw;
        draw = run->dfinal; /* free once ln_final is passed */
        memset(draw, 0, rows * d * sizeof *draw);
        norm_backward(run, &l->ln2_post, after, state->mlp_raw, state->mean[LN2_POST],
                          state->scale[LN2_POST], dout, draw, hooks);
    }
    run_one(run, product_nn(dpost, draw, &l->out, rows, false));
    llm_hook(hooks, HOOK_POST, at, true, dpost, rows, m, 0);
    if (c->gated) { /* post = act(pre) linear */
        activate(run->compute, c->activation, run->dlinear, state->pre, rows * m);
        vector_multiply(run->compute, run->dlinear, run->dlinear, dpost, rows * m);
        llm_hook(hooks, HOOK_PRE_LINEAR, at, true, run->dlinear, rows, m, 0);
        vector_multiply(run->compute, dpost, dpost, state->linear, rows * m);
    }
    activate_backward(run->compute, c->activation, run->dpre, dpost, state->pre, rows * m);
    llm_hook(hooks, HOOK_PRE, at, true, run->dpre, rows, m, 0);
    run_one(run, product_nn(run->dx, run->dpre, &l->pre, rows, false));
    if (c->gated) {
        run_one(run, product_nn(run->dx, run->dlinear, &l->linear, rows, true));
    }
    norm_backward(run, &l->ln2, ln2, state->resid_mid, state->mean[LN2], state->scale[LN2],
                         run->dx, run->dresid, hooks);
}

/* ---- a block ---- */

/* resid_pre of the layer [T, D] -> next [T, D] = resid_post. next may be where resid_pre lies. */
static void block_forward(LlmRun *run, size_t layer, float *next, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LayerState *state = &run->layers[layer];
    float *pre = state->resid_pre, *mid = state->resid_mid, *attn_out = NULL, *mlp_out = NULL;
    size_t d = c->d_model;
    int at = (int)layer;
    llm_check_layer(run, layer);
    llm_hook(hooks, HOOK_RESID_PRE, at, false, pre, run->rows, d, 0);
    attn_forward(run, layer, &attn_out, hooks);
    size_t rows = run->rows, bytes = rows * d * sizeof *pre; /* with `ends` the last layer's are fewer now */
    if (!c->parallel) {
        if (mid != pre) {
            memcpy(mid, pre, bytes);
        }
        vector_add(run->compute, mid, attn_out, rows * d);
        llm_hook(hooks, HOOK_RESID_MID, at, false, mid, rows, d, 0);
    }
    mlp_forward(run, layer, &mlp_out, hooks);
    if (c->parallel) {
        vector_add(run->compute, mlp_out, attn_out, rows * d);
    }
    if (next != mid) {
        memcpy(next, mid, bytes);
    }
    vector_add(run->compute, next, mlp_out, rows * d);
    llm_hook(hooks, HOOK_RESID_POST, at, false, next, rows, d, 0);
}

/* run->dresid: d resid_post -> d resid_pre. */
static void block_backward(LlmRun *run, size_t layer, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, d = c->d_model, bytes = rows * d * sizeof *run->dresid;
    int at = (int)layer;
    llm_hook(hooks, HOOK_RESID_POST, at, true, run->dresid, rows, d, 0);
    if (c->parallel) { /* both halves read resid_pre */
        memcpy(run->dbranch, run->dresid, bytes);
    }
    mlp_backward(run, layer, hooks);
    if (!c->parallel) {
        llm_hook(hooks, HOOK_RESID_MID, at, true, run->dresid, rows, d, 0);
        memcpy(run->dbranch, run->dresid, bytes);
    }
    attn_backward(run, layer, hooks);
    llm_hook(hooks, HOOK_RESID_PRE, at, true, run->dresid, rows, d, 0);
}

/* ---- the whole model ---- */

static void batch_check(const LlmRun *run, const LlmBatch *batch, size_t first, size_t last,
                          const float *resid) {
    const LlmConfig *c = &run->llm->config;
    const LlmPlan *plan = &run->plan;
    bool whole = batch->n_sequences > 0 && batch->start[0] == 0 && first <= last &&
                 last <= c->n_layers && (first == 0) == (resid == NULL) &&
                 (!plan->cache || batch->n_sequences == 1) &&
                 (batch->past == NULL ||
                  (plan->tails && batch->n_sequences == run->n_sequences));
    for (size_t s = 0; whole && s < batch->n_sequences; s++) {
        whole = batch->start[s] < batch->start[s + 1];
    }
    if (!whole) {
        fail(STATUS_INPUT, "an empty sequence, or layers %zu to %zu of %zu", first,
                    last, c->n_layers);
    }
    for (size_t s = 0; s < batch->n_sequences; s++) {
        size_t past = plan->cache ? run->cached : batch->past != NULL ? batch->past[s] : 0;
        size_t end = past + batch->start[s + 1] - batch->start[s];
        if (c->rotary_dim == 0 && end > c->n_ctx) {
            fail(STATUS_INPUT,
                        "%s: a sequence of %zu tokens, but the model has %zu positions",
                        run->llm->path, end, c->n_ctx);
        }
        if (end > plan->max_sequence || batch->n_sequences > plan->max_sequences ||
            batch->start[s + 1] > plan->max_rows) {
            fail(STATUS_RESOURCE,
                "%zu sequences, one of %zu tokens: this run has room for %zu of %zu, %zu in all",
                batch->n_sequences, end, plan->max_sequences, plan->max_sequence, plan->max_rows);
        }
    }
    size_t rows = batch->start[batch->n_sequences];
    for (size_t r = 0; first == 0 && r < rows; r++) {
        if (batch->ids[r] < -1 || (batch->ids[r] >= 0 && (size_t)batch->ids[r] >= c->d_vocab)) {
            fail(STATUS_INPUT, "%s: token id %d is outside the vocabulary of %zu",
                        run->llm->path, (int)batch->ids[r], c->d_vocab);
        }
    }
}

/* Row `row` of a table of D columns, widened; a table that holds NaN there is named. */
static void embed_row(const LlmRun *run, float *out, Weight table, size_t row) {
    size_t d = run->llm->config.d_model;
    weight_widen(out, table, row * d, d);
    if (!all_finite(out, d)) {
        llm_check_weight(run, table);
    }
}

/* ids[T] -> x[T, D] = hook_embed + hook_pos_embed; an id of -1 has no embedding. */
static void embed_forward(const LlmRun *run, const int32_t *ids, float *x, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, d = c->d_model;
    for (size_t r = 0; r < rows; r++) {
        if (ids[r] >= 0) {
            embed_row(run, x + r * d, run->llm->embed, (size_t)ids[r]);
        } else {
            memset(x + r * d, 0, d * sizeof *x);
        }
    }
    if (c->embed_scale != 1) {
        vector_scale(run->compute, x, x, c->embed_scale, rows * d);
    }
    llm_hook(hooks, HOOK_EMBED, -1, false, x, rows, d, 0);
    if (run->llm->pos_embed.data != NULL) {
        for (size_t r = 0; r < rows; r++) {
            embed_row(run, run->x + r * d, run->llm->pos_embed, run->position[r]);
        }
        llm_hook(hooks, HOOK_POS_EMBED, -1, false, run->x, rows, d, 0);
        vector_add(run->compute, x, run->x, rows * d);
    }
}

static void embed_backward(const LlmRun *run, const Hooks *hooks) {
    size_t rows = run->rows, d = run->llm->config.d_model;
    memcpy(run->dx, run->dresid, rows * d * sizeof *run->dx);
    if (run->llm->pos_embed.data != NULL) {
        llm_hook(hooks, HOOK_POS_EMBED, -1, true, run->dx, rows, d, 0);
    }
    llm_hook(hooks, HOOK_EMBED, -1, true, run->dresid, rows, d, 0);
}

void llm_forward(LlmRun *run, const LlmBatch *batch, size_t first, size_t last,
                   const float *resid, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    NormPoint final = {HOOK_LN_FINAL_SCALE, HOOK_LN_FINAL_NORMALIZED, -1};
    batch_check(run, batch, first, last, resid);
    run->n_sequences = batch->n_sequences;
    run->rows = batch->start[batch->n_sequences];
    run->first = first;
    run->last = 0; /* until this pass is through */
    run->tail = batch->past != NULL;
    run->ends = batch->ends;
    memcpy(run->start, batch->start, (batch->n_sequences + 1) * sizeof *run->start);
    memcpy(run->new_start, batch->start, (batch->n_sequences + 1) * sizeof *run->start);
    for (size_t s = 0; s < run->n_sequences; s++) {
        run->past[s] = run->plan.cache ? run->cached : run->tail ? batch->past[s] : 0;
        run->new_past[s] = run->past[s];
        run->kv_start[s] = run->tail ? run->kv_start[s] : run->start[s];
        for (size_t r = run->start[s]; r < run->start[s + 1]; r++) {
            run->position[r] = (uint32_t)(run->past[s] + r - run->start[s]);
        }
    }

    float *x = first < last ? run->layers[first].resid_pre : run->resid;
    if (resid != NULL) {
        memmove(x, resid, run->rows * c->d_model * sizeof *x);
    } else {
        embed_forward(run, batch->ids, x, hooks);
    }
    for (size_t layer = first; layer < last; layer++) {
        float *next = layer + 1 < last ? run->layers[layer + 1].resid_pre : run->resid;
        block_forward(run, layer, next, hooks);
    }
    if (last == c->n_layers) {
        llm_check_layer(run, last);
        norm_forward(run, &run->llm->ln_final, final, run->resid, run->final_mean,
                         run->final_scale, run->final_x, hooks);
        run->cached = run->past[0] + run->rows; /* with a cache there is one sequence */
    }
    run->last = last;
}

static void rows_check(const LlmRun *run, const size_t *rows, size_t count) {
    bool good = run->last == run->llm->config.n_layers && count <= run->plan.max_logits;
    for (size_t i = 0; good && i < count; i++) {
        good = rows[i] < run->rows;
    }
    if (!good) {
        fail(STATUS_INPUT, "logits of %zu rows that this pass has not computed", count);
    }
}

void llm_logits(LlmRun *run, const size_t *rows, size_t count, bool softcapped, float *logits,
                  const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t d = c->d_model, v = c->d_vocab;
    rows_check(run, rows, count);
    for (size_t i = 0; i < count; i++) {
        memcpy(run->gather + i * d, run->final_x + rows[i] * d, d * sizeof *run->gather);
    }
    Matrix head = {.w = run->llm->head, .row = (ptrdiff_t)d, .col = 1, .out = v, .in = d};
    run_one(run, product_nt(logits, run->gather, &head, count));
    if (count > 0 && !all_finite(logits, v)) { /* a weight that is not finite shows in every row */
        llm_check_weight(run, run->llm->head);
    }
    if (softcapped && c->final_softcap > 0) {
        softcap(run->compute, logits, logits, c->final_softcap, count * v);
    }
    llm_hook(hooks, HOOK_LOGITS, -1, false, logits, count, v, 0);
}

void llm_logits_at(LlmRun *run, size_t row, const int32_t *ids, size_t count, bool softcapped,
                     float *logits) {
    const LlmConfig *c = &run->llm->config;
    Weight w = run->llm->head;
    size_t d = c->d_model, bytes = d * dtype_size(w.dtype);
    rows_check(run, &row, 1);
    for (size_t i = 0; i < count; i++) {
        w.data = (const char *)run->llm->head.data + (size_t)ids[i] * bytes;
        Matrix head = {.w = w, .row = (ptrdiff_t)d, .col = 1, .out = 1, .in = d};
        run_one(run, product_nt(logits + i, run->final_x + row * d, &head, 1));
    }
    if (softcapped && c->final_softcap > 0) {
        softcap(run->compute, logits, logits, c->final_softcap, count);
    }
}

void llm_backward_start(LlmRun *run) {
    memset(run->dfinal, 0, run->rows * run->llm->config.d_model * sizeof *run->dfinal);
}

/* dlogits[count, V] -> dfinal[T, D] += at the rows. */
void llm_logits_backward(LlmRun *run, const size_t *rows, size_t count, bool softcapped,
                           const float *logits, float *dlogits, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t d = c->d_model, v = c->d_vocab;
    rows_check(run, rows, count);
    llm_hook(hooks, HOOK_LOGITS, -1, true, dlogits, count, v, 0);
    if (softcapped && c->final_softcap > 0) {
        softcap_backward(run->compute, dlogits, dlogits, logits, c->final_softcap, count * v);
    }
    Matrix head = {.w = run->llm->head, .row = (ptrdiff_t)d, .col = 1, .out = v, .in = d};
    run_one(run, product_nn(run->gather, dlogits, &head, count, false));
    for (size_t i = 0; i < count; i++) {
        vector_add(run->compute, run->dfinal + rows[i] * d, run->gather + i * d, d);
    }
}

void llm_backward(LlmRun *run, size_t first, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    NormPoint final = {HOOK_LN_FINAL_SCALE, HOOK_LN_FINAL_NORMALIZED, -1};
    if (!run->plan.backward || run->last != c->n_layers || first < run->first ||
        run->tail || run->ends || run->past[0] > 0) {
        fail(STATUS_INPUT, "backward to layer %zu without a forward that kept it",
                    first);
    }
    memset(run->dresid, 0, run->rows * c->d_model * sizeof *run->dresid);
    norm_backward(run, &run->llm->ln_final, final, run->resid, run->final_mean,
                      run->final_scale, run->dfinal, run->dresid, hooks);
    for (size_t layer = c->n_layers; layer-- > first;) {
        block_backward(run, layer, hooks);
    }
    if (first == 0) {
        embed_backward(run, hooks);
    }
}

/* ---- sampling ---- */

typedef struct Candidate {
    float logit;
    int32_t id;
} Candidate;

/* Falling logit, and among equals rising id. */
static int by_logit(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit) {
        return x->logit > y->logit ? -1 : 1;
    }
    return (x->id > y->id) - (x->id < y->id);
}

static int by_id(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* How many of n candidates in falling order top-p keeps: going up from the least probable, those
 * are dropped whose sum of probabilities stays within 1 - p; never all. */
static size_t top_p_count(const Candidate *candidates, size_t n, float top_p) {
    double total = 0, tail = 0;
    for (size_t i = 0; i < n; i++) {
        total += (double)exp_f32(candidates[i].logit - candidates[0].logit);
    }
    while (n > 1) {
        tail += (double)exp_f32(candidates[n - 1].logit - candidates[0].logit) / total;
        if (tail > 1 - (double)top_p) {
            break;
        }
        n--;
    }
    return n;
}

int32_t llm_sample(const float *logits, size_t d_vocab, const Sampling *sampling, Random *random,
                  Arena *arena) {
    size_t best = 0, n = d_vocab;
    for (size_t i = 0; i < d_vocab; i++) {
        if (isnan(logits[i])) {
            fail(STATUS_INPUT, "the logit of token %zu is not a number", i);
        }
        best = logits[i] > logits[best] ? i : best;
    }
    int32_t id = (int32_t)best;
    if (!(sampling->temperature > 0) || !isfinite(logits[best])) {
        return id;
    }
    Candidate *candidates = arena_alloc(arena, n, sizeof *candidates);
    for (size_t i = 0; i < n; i++) {
        candidates[i] = (Candidate){logits[i] / sampling->temperature, (int32_t)i};
    }
    bool chosen = (sampling->top_k > 0 && sampling->top_k < n) || sampling->top_p < 1;
    if (chosen) {
        qsort(candidates, n, sizeof *candidates, by_logit);
    }
    if (sampling->top_k > 0 && sampling->top_k < n) { /* equals of the last one stay */
        float least = candidates[sampling->top_k - 1].logit;
        for (n = sampling->top_k; n < d_vocab && candidates[n].logit == least; n++) {
        }
    }
    if (sampling->top_p < 1) {
        n = top_p_count(candidates, n, sampling->top_p);
    }
    if (chosen) {
        qsort(candidates, n, sizeof *candidates, by_id);
    }

    float top = logits[best] / sampling->temperature;
    double total = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        total += (double)exp_f32(candidates[i].logit - top);
    }
    double point = (double)random_uniform(random) * total;
    for (size_t i = 0; i < n; i++) {
        double p = (double)exp_f32(candidates[i].logit - top);
        sum += p;
        id = p > 0 ? candidates[i].id : id;
        if (sum > point) {
            break;
        }
    }
    return id;
}

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
 * d_model, M d_mlp, V d_vocab. dX is the gradient of X. Each backward stands below its forward. */
#include "llm.h"

#include <math.h>
#include <string.h>

/* ---- a run: all its memory ---- */

/* Floats of one buffer of scores, unless hooks want more: near the second cache, and short pieces
 * form few scores that the mask then hides. */
enum {
    SCORES_ROOM = 1 << 19
};

/* One norm of the model, and what it keeps for its backward: [T] each; RMSNorm has no mean. */
typedef struct NormPlace {
    const Norm *w;
    HookKind hook; /* its scale; what is normalized is the next kind */
    int layer;
    float *mean, *scale;
} NormPlace;

/* A layer's weights, and what it keeps for its backward. Without plan.backward all layers share
 * one memory. */
typedef struct Layer {
    const LlmLayer *w;
    int index;
    float *resid_pre, *resid_mid; /* [T, D]; parallel: the same, but in the last layer with
                                     plan.backward */
    float *q, *k, *v;             /* [T, H, E], [T, G, E]: rotated; with a cache k and v hold every
                                     position and the new rows are written behind the past ones */
    float *attn_raw, *mlp_raw;    /* [T, D]: before the post-norms */
    float *pre, *linear;          /* [T, M] */
    NormPlace ln1, ln1_post, ln2, ln2_post;
} Layer;

/* Queries of one sequence whose scores are formed together. */
typedef struct Piece {
    size_t sequence, row, queries; /* row: of the first query, in the batch */
    size_t position, keys;         /* of the first query; all that its queries may see */
    size_t offset;                 /* in the buffers of scores: [heads, queries, keys] */
} Piece;

struct LlmRun {
    const Llm *llm;
    const Compute *compute;
    LlmPlan plan;
    const Hooks *hooks;    /* of the call that runs */
    const LlmBatch *batch; /* of the forward that runs */
    Layer *layers;
    bool *checked; /* [n_layers + 1]: weights known to be finite; last: ln_final */
    float *cosine, *sine;
    uint32_t *position; /* [T] */
    size_t *start;      /* [sequences + 1] */
    size_t *past;       /* [sequences]: positions before the rows of this forward */
    size_t *kv_start;   /* [sequences]: where its keys and values begin in a layer's k and v */
    size_t *whole;      /* [n_whole + 1]: `start` of the last pass without a past */
    size_t rows, n_sequences, n_whole, first, last;
    size_t cached;          /* with a cache: positions before the next forward's rows */
    bool tail;              /* this forward's batch has a past */
    float *tail_k, *tail_v; /* [T, G, E]: its keys and values */
    float *resid;           /* [T, D]: the stream behind layer `last` */
    float *x;               /* [T, D]: what a norm gives */
    float *qkv;             /* [T, H, 3, E]: GPT-NeoX */
    float *z, *post;        /* [T, H, E], [T, M] */
    NormPlace final;
    float *final_x; /* [T, D] */
    float *gather;  /* [max_logits, D] */
    float *scores;  /* [scores_size], and backward two more */
    float *pattern, *dpattern;
    size_t scores_size;
    Piece *pieces;                         /* [sequences] */
    Product *products;                     /* [sequences * H] */
    float *dresid, *dfinal, *dbranch, *dx; /* [T, D] */
    float *dq, *dk, *dv, *dz;              /* as q, k, v, z */
    float *dpre, *dlinear;                 /* [T, M] */
    float *dscale;                         /* [T] */
};

static NormPlace norm_layout(Arena *arena, const LlmConfig *c, size_t rows) {
    float *mean = c->rms_norm ? NULL : arena_floats(arena, rows, 1);
    return (NormPlace){.mean = mean, .scale = arena_floats(arena, rows, 1)};
}

static void norm_place(NormPlace *place, const Norm *w, HookKind hook, int layer) {
    place->w = w;
    place->hook = hook;
    place->layer = layer;
}

static Layer layer_layout(Arena *arena, const LlmConfig *c, const LlmPlan *plan, bool last) {
    size_t rows = plan->max_rows, d = c->d_model, key = c->n_kv_heads * c->d_head;
    bool own_mid = plan->backward && (!c->parallel || last), gemma = c->kind == LLM_GEMMA2;
    Layer l = {.resid_pre = arena_floats(arena, rows, d)};
    l.resid_mid = own_mid ? arena_floats(arena, rows, d) : l.resid_pre;
    l.q = arena_floats(arena, rows, c->n_heads * c->d_head);
    l.k = plan->cache ? NULL : arena_floats(arena, rows, key);
    l.v = plan->cache ? NULL : arena_floats(arena, rows, key);
    l.attn_raw = gemma ? arena_floats(arena, rows, d) : NULL;
    l.mlp_raw = gemma ? arena_floats(arena, rows, d) : NULL;
    l.pre = arena_floats(arena, rows, c->d_mlp);
    l.linear = c->gated ? arena_floats(arena, rows, c->d_mlp) : NULL;
    l.ln1 = norm_layout(arena, c, rows);
    l.ln1_post = norm_layout(arena, c, rows);
    l.ln2 = norm_layout(arena, c, rows);
    l.ln2_post = norm_layout(arena, c, rows);
    return l;
}

static void layer_place(Layer *l, const LlmLayer *w, int index) {
    l->w = w;
    l->index = index;
    norm_place(&l->ln1, &w->ln1, HOOK_LN1_SCALE, index);
    norm_place(&l->ln1_post, &w->ln1_post, HOOK_LN1_POST_SCALE, index);
    norm_place(&l->ln2, &w->ln2, HOOK_LN2_SCALE, index);
    norm_place(&l->ln2_post, &w->ln2_post, HOOK_LN2_POST_SCALE, index);
}

/* Room for one buffer of scores (also used for hook_result): everything at once if it is small or
 * hooks want it, else as many queries as fit, at least one. */
static size_t scores_room(const LlmConfig *c, const LlmPlan *plan) {
    size_t most = plan->cache ? plan->max_rows : plan->max_sequence;
    size_t row = size_product(c->n_heads, plan->max_sequence), whole = size_product(row, most);
    size_t result = size_product(plan->max_rows, c->n_heads * c->d_model);
    if (plan->max_sequences > 1) { /* many short sequences together */
        size_t batch = 0;
        bool small = size_mul(&batch, row, plan->max_rows) && batch < SCORES_ROOM;
        batch = small ? batch : SCORES_ROOM;
        whole = size_larger(whole, batch);
    }
    whole = size_larger(whole, result);
    whole = !plan->attention_hooks && whole > SCORES_ROOM ? SCORES_ROOM : whole;
    return size_larger(whole, row);
}

LlmRun *llm_run_layout(const Llm *llm, const Compute *compute, const LlmPlan *plan, Arena *arena) {
    const LlmConfig *c = &llm->config;
    size_t rows = plan->max_rows, sequences = plan->max_sequences, d = c->d_model;
    size_t query = c->n_heads * c->d_head, key = c->n_kv_heads * c->d_head;
    LlmRun *run = arena_alloc(arena, 1, sizeof *run);
    LlmRun r = {.llm = llm, .compute = compute, .plan = *plan};

    r.layers = arena_alloc(arena, c->n_layers, sizeof *r.layers);
    r.checked = arena_alloc(arena, c->n_layers + 1, sizeof *r.checked);
    r.position = arena_alloc(arena, rows, sizeof *r.position);
    r.start = arena_alloc(arena, sequences + 1, sizeof *r.start);
    r.past = arena_alloc(arena, sequences, sizeof *r.past);
    r.kv_start = arena_alloc(arena, sequences, sizeof *r.kv_start);
    r.whole = arena_alloc(arena, sequences + 1, sizeof *r.whole);
    r.tail_k = plan->tails ? arena_floats(arena, rows, key) : NULL;
    r.tail_v = plan->tails ? arena_floats(arena, rows, key) : NULL;
    r.pieces = arena_alloc(arena, sequences, sizeof *r.pieces);
    r.products = arena_alloc(arena, size_product(sequences, c->n_heads), sizeof *r.products);

    Layer l = {0};
    bool gemma = c->kind == LLM_GEMMA2; /* else one buffer for all layers: no post-norm reads it */
    float *attn_raw = gemma ? NULL : arena_floats(arena, rows, d);
    float *mlp_raw = gemma ? NULL : arena_floats(arena, rows, d);
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        if (layer == 0 || plan->backward) {
            l = layer_layout(arena, c, plan, layer + 1 == c->n_layers);
        }
        l.attn_raw = gemma ? l.attn_raw : attn_raw;
        l.mlp_raw = gemma ? l.mlp_raw : mlp_raw;
        l.k = plan->cache ? arena_floats(arena, plan->max_sequence, key) : l.k;
        l.v = plan->cache ? arena_floats(arena, plan->max_sequence, key) : l.v;
        if (run != NULL) {
            layer_place(&l, &llm->layers[layer], (int)layer);
            r.layers[layer] = l;
        }
    }
    r.resid = plan->backward ? arena_floats(arena, rows, d) : l.resid_pre;
    r.x = arena_floats(arena, rows, d);
    r.qkv = c->kind == LLM_GPT_NEOX ? arena_floats(arena, rows, 3 * query) : NULL;
    r.z = arena_floats(arena, rows, query);
    r.post = arena_floats(arena, rows, c->d_mlp);
    r.final = norm_layout(arena, c, rows);
    norm_place(&r.final, &llm->ln_final, HOOK_LN_FINAL_SCALE, -1);
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

/* ---- hooks ---- */

static HookPoint point_of(HookKind kind, int layer, bool gradient, size_t rows, size_t a,
                          size_t b) {
    return (HookPoint){.kind = kind,
                       .layer = layer,
                       .gradient = gradient,
                       .rank = b > 0 ? 3 : 2,
                       .shape = {rows, a, b}};
}

/* Shows an activation, or its gradient: data[T, a] or, b > 0, [T, a, b]. */
static void hook(const LlmRun *run, HookKind kind, int layer, float *data, size_t a, size_t b) {
    hooks_show(run->hooks, point_of(kind, layer, false, run->rows, a, b), data);
}

static void hook_d(const LlmRun *run, HookKind kind, int layer, float *data, size_t a, size_t b) {
    hooks_show(run->hooks, point_of(kind, layer, true, run->rows, a, b), data);
}

/* ---- weights that are not finite, looked for once a run ----
 * An infinity in W_K could hide behind the soft-cap, so the activations are not enough to go by. */

enum {
    SCAN_PARTS = 64
};

typedef struct Scan {
    const Tensor *tensor;
    bool finite[SCAN_PARTS];
} Scan;

static void scan_part(void *user, size_t part, int thread) {
    Scan *scan = user;
    const Weight weight = {scan->tensor->data, scan->tensor->dtype};
    size_t count = scan->tensor->count, step = count / SCAN_PARTS + 1;
    size_t end = (part + 1) * step < count ? (part + 1) * step : count;
    float wide[1024];
    (void)thread;
    scan->finite[part] = true;
    for (size_t i = part * step; i < end; i += 1024) {
        size_t n = end - i < 1024 ? end - i : 1024;
        weight_widen(wide, weight, i, n);
        scan->finite[part] &= all_finite(wide, n);
    }
}

static void check_tensor(const LlmRun *run, const Tensor *tensor) {
    Scan scan = {.tensor = tensor};
    compute_parallel(run->compute, SCAN_PARTS, scan_part, &scan);
    for (size_t part = 0; part < SCAN_PARTS; part++) {
        if (!scan.finite[part]) {
            fail(STATUS_INPUT, "%s: tensor '%s': holds NaN or infinity", tensor->file,
                 tensor->name);
        }
    }
}

/* The tensor that a weight lies in. */
static void check_weight(const LlmRun *run, Weight weight) {
    const TensorStore *store = &run->llm->store;
    for (size_t i = 0; i < store->count && weight.data != NULL; i++) {
        if (store->tensors[i].data == weight.data && store->tensors[i].count > 0) {
            check_tensor(run, &store->tensors[i]);
            return;
        }
    }
}

static void check_layer(const LlmRun *run, const Layer *l) {
    bool *checked = &run->checked[l->index];
    for (size_t i = 0; i < l->w->tensor_count && !*checked; i++) {
        check_tensor(run, l->w->tensors[i]);
    }
    *checked = true;
}

/* ---- norms ---- */

/* x[T, D] -> y[T, D] = normalized * w + b (Gemma-2: normalized * (1 + w)), normalized = (x - mean)
 * / scale, scale = sqrt(variance + eps). y is not x. */
static void norm_forward(const LlmRun *run, float *y, const float *x, const NormPlace *n) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, d = c->d_model;
    norm_scale(run->compute, n->mean, n->scale, x, c->norm_eps, rows, d);
    hook(run, n->hook, n->layer, n->scale, 1, 0);
    norm_normalize(run->compute, y, x, n->mean, n->scale, rows, d);
    hook(run, (HookKind)(n->hook + 1), n->layer, y, d, 0);
    norm_weight(run->compute, y, y, n->w->w, n->w->b, c->rms_norm, rows, d);
}

/* y = norm(x). dy[T, D] (overwritten) -> dx[T, D] += through x / scale and through the scale. */
static void norm_backward(const LlmRun *run, float *dx, float *dy, const float *x,
                          const NormPlace *n) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, d = c->d_model;
    norm_weight_backward(run->compute, dy, dy, n->w->w, c->rms_norm, rows, d);
    hook_d(run, (HookKind)(n->hook + 1), n->layer, dy, d, 0);
    norm_scale_backward(run->compute, run->dscale, dy, x, n->mean, n->scale, rows, d);
    hook_d(run, n->hook, n->layer, run->dscale, 1, 0);
    norm_input_backward(run->compute, dx, dy, run->dscale, x, n->mean, n->scale, rows, d);
}

/* Gemma-2 norms what a half gives once more before it joins the stream: raw -> run->x. Without
 * such a norm raw is it. */
static float *post_norm_forward(const LlmRun *run, float *raw, const NormPlace *n) {
    if (n->w->w.data == NULL) {
        return raw;
    }
    norm_forward(run, run->x, raw, n);
    return run->x;
}

/* dy -> draw, in `room` if there is such a norm. */
static float *post_norm_backward(const LlmRun *run, float *room, float *dy, const float *raw,
                                 const NormPlace *n) {
    if (n->w->w.data == NULL) {
        return dy;
    }
    memset(room, 0, run->rows * run->llm->config.d_model * sizeof *room);
    norm_backward(run, room, dy, raw, n);
    return room;
}

/* ---- queries, keys, values ---- */

Matrix llm_head_matrix(const Llm *llm, size_t layer, HookKind kind, size_t head) {
    const LlmLayer *l = &llm->layers[layer];
    size_t e = llm->config.d_head;
    if (kind == HOOK_Z) {
        return matrix_cols(&l->o, head * e, e);
    }
    if (l->qkv.w.data != NULL) {
        size_t which = kind == HOOK_Q ? 0 : kind == HOOK_K ? 1 : 2;
        return matrix_rows(&l->qkv, (head * 3 + which) * e, e);
    }
    return matrix_rows(kind == HOOK_Q ? &l->q : kind == HOOK_K ? &l->k : &l->v, head * e, e);
}

void llm_value_bias(const Llm *llm, size_t layer, float *b_v) {
    const LlmConfig *c = &llm->config;
    memset(b_v, 0, c->n_heads * c->d_head * sizeof *b_v);
    for (size_t head = 0; head < c->n_heads; head++) {
        Matrix v = llm_head_matrix(llm, layer, HOOK_V, head / (c->n_heads / c->n_kv_heads));
        if (v.bias.data != NULL) {
            weight_widen(b_v + head * c->d_head, v.bias, 0, c->d_head);
        }
    }
}

static void rotate(const LlmRun *run, float *x, size_t heads, bool backward) {
    const LlmConfig *c = &run->llm->config;
    rope_rotate(run->compute, x, x, run->cosine, run->sine, run->position, run->rows, heads,
                c->d_head, c->rotary_dim, backward);
}

/* x[T, D] -> q[T, H, E], k, v[T, G, E] = x W^T + b, q and k rotated. */
static void project_forward(const LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, e = c->d_head, heads = c->n_heads, keys = c->n_kv_heads;
    size_t behind = run->plan.cache ? run->past[0] * keys * e : 0;
    float *q = l->q;
    float *k = run->tail ? run->tail_k : l->k + behind;
    float *v = run->tail ? run->tail_v : l->v + behind;
    if (l->w->qkv.w.data != NULL) {
        product_run_one(run->compute, product_nt(run->qkv, run->x, &l->w->qkv, rows));
        for (size_t i = 0; i < rows * heads; i++) {
            memcpy(q + i * e, run->qkv + (3 * i + 0) * e, e * sizeof *q);
            memcpy(k + i * e, run->qkv + (3 * i + 1) * e, e * sizeof *k);
            memcpy(v + i * e, run->qkv + (3 * i + 2) * e, e * sizeof *v);
        }
    } else {
        Product products[3] = {product_nt(q, run->x, &l->w->q, rows),
                               product_nt(k, run->x, &l->w->k, rows),
                               product_nt(v, run->x, &l->w->v, rows)};
        product_run(run->compute, products, 3);
    }
    hook(run, HOOK_Q, l->index, q, heads, e);
    hook(run, HOOK_K, l->index, k, keys, e);
    hook(run, HOOK_V, l->index, v, keys, e);
    if (c->rotary_dim > 0) {
        rotate(run, q, heads, false);
        rotate(run, k, keys, false);
        hook(run, HOOK_ROT_Q, l->index, q, heads, e);
        hook(run, HOOK_ROT_K, l->index, k, keys, e);
    }
}

/* dq, dk, dv -> dx[T, D] = dq W_Q + dk W_K + dv W_V, dq and dk rotated back first. */
static void project_backward(const LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    float *dq = run->dq, *dk = run->dk, *dv = run->dv;
    size_t rows = run->rows, e = c->d_head, heads = c->n_heads, keys = c->n_kv_heads;
    if (c->rotary_dim > 0) {
        hook_d(run, HOOK_ROT_K, l->index, dk, keys, e);
        hook_d(run, HOOK_ROT_Q, l->index, dq, heads, e);
        rotate(run, dq, heads, true);
        rotate(run, dk, keys, true);
    }
    hook_d(run, HOOK_V, l->index, dv, keys, e);
    hook_d(run, HOOK_K, l->index, dk, keys, e);
    hook_d(run, HOOK_Q, l->index, dq, heads, e);
    if (l->w->qkv.w.data != NULL) {
        for (size_t i = 0; i < rows * heads; i++) {
            memcpy(run->qkv + (3 * i + 0) * e, dq + i * e, e * sizeof *dq);
            memcpy(run->qkv + (3 * i + 1) * e, dk + i * e, e * sizeof *dk);
            memcpy(run->qkv + (3 * i + 2) * e, dv + i * e, e * sizeof *dv);
        }
        product_run_one(run->compute, product_nn(run->dx, run->qkv, &l->w->qkv, rows, false));
    } else {
        product_run_one(run->compute, product_nn(run->dx, dq, &l->w->q, rows, false));
        product_run_one(run->compute, product_nn(run->dx, dk, &l->w->k, rows, true));
        product_run_one(run->compute, product_nn(run->dx, dv, &l->w->v, rows, true));
    }
}

/* ---- attention ----
 * Scores of all sequences seldom fit in memory, so they are formed for some pieces at a time:
 * sequences with all their heads or, where one does not fit, some of its queries and one head of
 * each key-value head. Every value is the same chain either way. */

/* Pieces whose scores are in memory together, and of each key-value head's query heads the `step`
 * from the `member`-th on. */
typedef struct Pieces {
    const Piece *list;
    size_t count, heads, member, step; /* heads: n_kv_heads * step */
    size_t size;                       /* of the buffers of scores, filled from 0 */
} Pieces;

/* S is a buffer of scores, Q one like q (or z), K one like k (or v). */
typedef enum HeadProduct {
    S_IS_Q_KT,  /* S[queries, keys] = Q[queries, E] K[keys, E]^T */
    Q_IS_S_K,   /* Q[queries, E] = S[queries, keys] K[keys, E] */
    K_ADDS_ST_Q /* K[keys, E] += S[queries, keys]^T Q[queries, E] */
} HeadProduct;

/* One product for each piece and head. */
static void head_products(const LlmRun *run, const Pieces *pieces, HeadProduct form, float *s,
                          float *q, float *k) {
    const LlmConfig *c = &run->llm->config;
    size_t e = c->d_head, heads = c->n_heads, kv_heads = c->n_kv_heads, n = 0;
    for (size_t g = 0; g < pieces->step; g++) {
        for (size_t i = 0; i < pieces->count * kv_heads; i++) {
            const Piece *p = &pieces->list[i / kv_heads];
            size_t kv = i % kv_heads, h = kv * pieces->step + g;
            size_t head = kv * (heads / kv_heads) + pieces->member + g;
            size_t key_row = run->kv_start[p->sequence];
            View S = {s + p->offset + h * p->queries * p->keys, p->queries, p->keys, p->keys};
            View Q = {q + (p->row * heads + head) * e, p->queries, e, heads * e};
            View K = {k + (key_row * kv_heads + kv) * e, p->keys, e, kv_heads * e};
            run->products[n++] = form == S_IS_Q_KT  ? view_nt(S, Q, K)
                                 : form == Q_IS_S_K ? view_nn(Q, S, K)
                                                    : view_tn(K, S, Q);
        }
        if (form == K_ADDS_ST_Q || g + 1 == pieces->step) { /* a group's heads add to one K */
            product_run_heads(run->compute, run->products, n);
            n = 0;
        }
    }
}

/* What query i does not see becomes `value`: keys before its window, and keys behind it. */
static void mask_scores(const LlmRun *run, const Layer *l, const Pieces *pieces, float *scores,
                        float value) {
    size_t window = l->w->sliding ? run->llm->config.window : 0;
    for (const Piece *p = pieces->list; p < pieces->list + pieces->count; p++) {
        for (size_t r = 0; r < pieces->heads * p->queries; r++) {
            float *row = scores + p->offset + r * p->keys;
            size_t i = p->position + r % p->queries;
            for (size_t j = 0; window > 0 && j + window <= i; j++) {
                row[j] = value;
            }
            for (size_t j = i + 1; j < p->keys; j++) {
                row[j] = value;
            }
        }
    }
}

/* scores = softcap(q k^T scale), and -inf behind the mask. */
static void scores_forward(const LlmRun *run, const Layer *l, const Pieces *pieces, float *scores) {
    const LlmConfig *c = &run->llm->config;
    head_products(run, pieces, S_IS_Q_KT, scores, l->q, l->k);
    vector_scale(run->compute, scores, scores, c->attn_scale, pieces->size);
    if (c->attn_softcap > 0) {
        softcap(run->compute, scores, scores, c->attn_softcap, pieces->size);
    }
    mask_scores(run, l, pieces, scores, -INFINITY);
}

/* attn_scores or pattern of a whole sequence. */
static HookPoint square_point(const LlmRun *run, HookKind kind, const Layer *l, bool gradient,
                              const Piece *p) {
    HookPoint point =
        point_of(kind, l->index, gradient, run->llm->config.n_heads, p->queries, p->keys);
    point.sequence = p->sequence;
    return point;
}

static bool wants_squares(const LlmRun *run, const Layer *l, bool gradient) {
    return hooks_want(run->hooks, HOOK_ATTN_SCORES, l->index, gradient) ||
           hooks_want(run->hooks, HOOK_PATTERN, l->index, gradient);
}

/* Shows scores or pattern. Backward forms them again, so that a hook may not have changed them. */
static void hook_square(const LlmRun *run, HookKind kind, const Layer *l, const Piece *p,
                        float *square) {
    HookPoint point = square_point(run, kind, l, false, p);
    if (!run->plan.backward || !hooks_want(run->hooks, kind, l->index, false)) {
        hooks_show(run->hooks, point, square);
    } else if (hooks_change(run->hooks, point, square)) {
        fail(STATUS_INPUT,
             "attn_scores or pattern of layer %d was replaced in a run that forms them again for "
             "backward",
             l->index);
    }
}

/* q, k, v -> z[queries, H, E] of some pieces. */
static void pieces_forward(const LlmRun *run, const Layer *l, const Pieces *pieces) {
    scores_forward(run, l, pieces, run->scores); /* scores = softcap(q k^T scale), masked */
    for (const Piece *p = pieces->list; p < pieces->list + pieces->count; p++) {
        float *square = run->scores + p->offset;
        hook_square(run, HOOK_ATTN_SCORES, l, p, square);
        softmax_rows(run->compute, square, square, pieces->heads * p->queries, p->keys);
        hook_square(run, HOOK_PATTERN, l, p, square);
    }
    head_products(run, pieces, Q_IS_S_K, run->scores, run->z, l->v); /* z = pattern v */
}

/* dz -> dq, and added to dk and dv. */
static void pieces_backward(const LlmRun *run, const Layer *l, const Pieces *pieces) {
    const LlmConfig *c = &run->llm->config;
    const Piece *end = pieces->list + pieces->count;
    float *pattern = run->pattern, *d = run->dpattern;
    scores_forward(run, l, pieces, run->scores); /* once more: they were not kept */
    for (const Piece *p = pieces->list; p < end; p++) {
        softmax_rows(run->compute, pattern + p->offset, run->scores + p->offset,
                     pieces->heads * p->queries, p->keys);
    }
    /* z = pattern v: dpattern = dz v^T, dv += pattern^T dz */
    head_products(run, pieces, S_IS_Q_KT, d, run->dz, l->v);
    for (const Piece *p = pieces->list; p < end; p++) {
        hooks_show(run->hooks, square_point(run, HOOK_PATTERN, l, true, p), d + p->offset);
    }
    head_products(run, pieces, K_ADDS_ST_Q, pattern, run->dz, run->dv);
    /* pattern = softmax(scores); behind the mask lies a constant: no gradient */
    for (const Piece *p = pieces->list; p < end; p++) {
        float *at = d + p->offset;
        softmax_rows_backward(run->compute, at, at, pattern + p->offset, pieces->heads * p->queries,
                              p->keys);
        hooks_show(run->hooks, square_point(run, HOOK_ATTN_SCORES, l, true, p), at);
    }
    mask_scores(run, l, pieces, d, 0);
    mask_scores(run, l, pieces, run->scores, 0); /* no infinity to take a slope at */
    /* scores = softcap(q k^T scale): dq = dscores k, dk += dscores^T q */
    if (c->attn_softcap > 0) {
        softcap_backward(run->compute, d, d, run->scores, c->attn_softcap, pieces->size);
    }
    vector_scale(run->compute, d, d, c->attn_scale, pieces->size);
    head_products(run, pieces, Q_IS_S_K, d, run->dq, l->k);
    head_products(run, pieces, K_ADDS_ST_Q, d, l->q, run->dk);
}

/* `queries` queries of sequence s from its `first`-th new one on. */
static Piece piece_of(const LlmRun *run, size_t s, size_t first, size_t queries, size_t offset) {
    size_t position = run->past[s] + first;
    return (Piece){s, run->start[s] + first, queries, position, position + queries, offset};
}

/* As many whole sequences from *s on, below end, as fit the buffer, and moves *s behind them. */
static Pieces whole_pieces(const LlmRun *run, size_t *s, size_t end) {
    size_t heads = run->llm->config.n_heads;
    Pieces pieces = {.list = run->pieces, .heads = heads};
    pieces.step = heads / run->llm->config.n_kv_heads;
    for (; *s < end; ++*s) {
        size_t tokens = run->start[*s + 1] - run->start[*s], size = 0;
        Piece p = piece_of(run, *s, 0, tokens, pieces.size);
        if (!size_mul(&size, heads * tokens, p.keys) || size > run->scores_size - pieces.size) {
            break;
        }
        pieces.size += size;
        run->pieces[pieces.count++] = p;
    }
    return pieces;
}

/* Calls body for all pieces of sequences s .. end - 1. A chain of dk or dv runs over the query
 * heads of its group in order, and within each over the queries, whether or not they come in
 * pieces. */
static void for_pieces(const LlmRun *run, const Layer *l, bool gradient, size_t s, size_t end,
                       void (*body)(const LlmRun *, const Layer *, const Pieces *)) {
    const LlmConfig *c = &run->llm->config;
    while (s < end) {
        Pieces whole = whole_pieces(run, &s, end);
        if (whole.count > 0) {
            body(run, l, &whole);
            continue;
        }
        size_t tokens = run->start[s + 1] - run->start[s];
        if (wants_squares(run, l, gradient)) {
            fail(STATUS_RESOURCE,
                 "attn_scores and pattern of %zu tokens are larger than this run has room for",
                 tokens);
        }
        size_t kv = c->n_kv_heads, fit = run->scores_size / (kv * (run->past[s] + tokens));
        for (size_t member = 0; member < c->n_heads / kv; member++) {
            for (size_t first = 0; first < tokens; first += fit) {
                size_t queries = tokens - first < fit ? tokens - first : fit;
                Piece p = piece_of(run, s, first, queries, 0);
                body(run, l, &(Pieces){&p, 1, kv, member, 1, kv * queries * p.keys});
            }
        }
        s++;
    }
}

/* With a past: the keys and values of the new rows change places with those rows of the whole pass
 * that they stand for, and after the attention back. It saves running the rows before a patch. Of
 * sequences s .. end - 1. */
static void swap_tail(const LlmRun *run, const Layer *l, size_t s, size_t end) {
    const LlmBatch *batch = run->batch;
    size_t key = run->llm->config.n_kv_heads * run->llm->config.d_head;
    for (; run->tail && s < end; s++) {
        size_t from = batch->start[s] * key, to = (run->kv_start[s] + batch->past[s]) * key;
        float *k = l->k + to, *v = l->v + to;
        for (size_t i = 0; i < (batch->start[s + 1] - batch->start[s]) * key; i++) {
            float swap_k = k[i], swap_v = v[i];
            k[i] = run->tail_k[from + i];
            v[i] = run->tail_v[from + i];
            run->tail_k[from + i] = swap_k;
            run->tail_v[from + i] = swap_v;
        }
    }
}

/* In the last layer: q and the stream, which moves to resid_mid, of the rows that are read come to
 * the front, and T is their number. It saves the last layer's other rows, which no logit reads. */
static void keep_read_rows(LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    const LlmBatch *batch = run->batch;
    size_t query = c->n_heads * c->d_head, d = c->d_model, to = 0;
    for (size_t s = 0; s < run->n_sequences; s++) {
        size_t from = batch->read_from != NULL ? batch->read_from[s] : batch->start[s];
        size_t count = batch->start[s + 1] - from;
        memmove(l->q + to * query, l->q + from * query, count * query * sizeof *l->q);
        memmove(l->resid_mid + to * d, l->resid_pre + from * d, count * d * sizeof *l->q);
        run->past[s] += from - batch->start[s];
        run->start[s] = to;
        to += count;
    }
    run->rows = run->start[run->n_sequences] = to;
}

/* x[T, width] of the rows that were read -> x[T', width] of all, 0 in the others. */
static void spread_rows(const LlmRun *run, float *x, size_t width) {
    for (size_t s = run->n_sequences; s-- > 0;) {
        size_t at = run->start[s], count = run->start[s + 1] - at;
        size_t first = run->whole[s], skipped = run->past[s];
        memmove(x + (first + skipped) * width, x + at * width, count * width * sizeof *x);
        memset(x + first * width, 0, skipped * width * sizeof *x);
    }
}

/* The way back of keep_read_rows. */
static void spread_read_rows(LlmRun *run) {
    const LlmConfig *c = &run->llm->config;
    size_t n = run->n_sequences, rows = run->whole[n];
    spread_rows(run, run->dq, c->n_heads * c->d_head);
    spread_rows(run, run->dresid, c->d_model);
    memcpy(run->start, run->whole, (n + 1) * sizeof *run->start);
    memset(run->past, 0, n * sizeof *run->past);
    run->last = run->rows < rows ? 0 : run->last; /* ln_final's rows are of this pass no longer */
    run->rows = rows;
}

/* The sequences from s on that go on different sequences of the whole pass; the first behind. */
static size_t different_end(const LlmRun *run, size_t s) {
    const size_t *of = run->batch->of;
    size_t end = of == NULL ? run->n_sequences : s + 1;
    while (end < run->n_sequences && of[end - 1] < of[end]) {
        end++;
    }
    return end;
}

/* q[T, H, E], k, v[T, G, E] -> z[T, H, E]. */
static void attention_forward(const LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    for (size_t s = 0, end; s < run->n_sequences; s = end) {
        end = different_end(run, s);
        swap_tail(run, l, s, end);
        for_pieces(run, l, false, s, end, pieces_forward);
        swap_tail(run, l, s, end);
    }
    hook(run, HOOK_Z, l->index, run->z, c->n_heads, c->d_head);
}

/* dz[T, H, E] -> dq[T, H, E], dk, dv[T, G, E]. */
static void attention_backward(const LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->whole[run->n_sequences]; /* not those alone that are read */
    size_t bytes = rows * c->n_kv_heads * c->d_head * sizeof *run->dk;
    hook_d(run, HOOK_Z, l->index, run->dz, c->n_heads, c->d_head);
    memset(run->dk, 0, bytes);
    memset(run->dv, 0, bytes);
    for_pieces(run, l, true, 0, run->n_sequences, pieces_backward);
}

/* ---- the attention's output ---- */

/* Room for hook_result [T, H, D], in the buffer of scores. */
static float *result_room(const LlmRun *run) {
    const LlmConfig *c = &run->llm->config;
    if (run->rows * c->n_heads * c->d_model > run->scores_size) {
        fail(STATUS_RESOURCE, "attn.hook_result of %zu tokens is larger than this run has room for",
             run->rows);
    }
    return run->scores;
}

/* result[T, H, D] = z W_O per head, only where a hook wants it. If the hook changes it,
 * attn_raw[T, D] = its sum over heads (+ b). */
static void result_forward(const LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, heads = c->n_heads, d = c->d_model, e = c->d_head;
    if (!hooks_want(run->hooks, HOOK_RESULT, l->index, false)) {
        return;
    }
    float *result = result_room(run), *out = l->attn_raw;
    for (size_t h = 0; h < heads; h++) {
        Matrix w = llm_head_matrix(run->llm, (size_t)l->index, HOOK_Z, h);
        Product product = product_nt(result + h * d, run->z + h * e, &w, rows);
        run->products[h] = product_strided(product, heads * d, heads * e);
    }
    product_run(run->compute, run->products, heads);
    if (!hooks_change(run->hooks, point_of(HOOK_RESULT, l->index, false, rows, heads, d), result)) {
        return;
    }
    Weight bias = l->w->o.bias;
    for (size_t i = 0; i < rows * d; i++) {
        double sum = 0;
        for (size_t h = 0; h < heads; h++) {
            sum += (double)result[(i / d * heads + h) * d + i % d];
        }
        out[i] = (float)sum + (bias.data != NULL ? weight_at(bias, i % d) : 0);
    }
}

/* attn_raw = sum over heads of result: dresult of each head is draw[T, D]. If the hook changes it,
 * dz = dresult W_O per head. */
static void result_backward(const LlmRun *run, const Layer *l, const float *draw) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, heads = c->n_heads, d = c->d_model, e = c->d_head;
    if (!hooks_want(run->hooks, HOOK_RESULT, l->index, true)) {
        return;
    }
    float *dresult = result_room(run);
    for (size_t i = 0; i < rows * heads; i++) {
        memcpy(dresult + i * d, draw + i / heads * d, d * sizeof *draw);
    }
    if (!hooks_change(run->hooks, point_of(HOOK_RESULT, l->index, true, rows, heads, d), dresult)) {
        return;
    }
    for (size_t h = 0; h < heads; h++) {
        Matrix w = llm_head_matrix(run->llm, (size_t)l->index, HOOK_Z, h);
        Product product = product_nn(run->dz + h * e, dresult + h * d, &w, rows, false);
        run->products[h] = product_strided(product, heads * e, heads * d);
    }
    product_run(run->compute, run->products, heads);
}

/* z[T, H, E] -> attn_out[T, D] = z W_O^T + b, (ln1_post). */
static float *output_forward(const LlmRun *run, const Layer *l) {
    product_run_one(run->compute, product_nt(l->attn_raw, run->z, &l->w->o, run->rows));
    result_forward(run, l);
    float *attn_out = post_norm_forward(run, l->attn_raw, &l->ln1_post);
    hook(run, HOOK_ATTN_OUT, l->index, attn_out, run->llm->config.d_model, 0);
    return attn_out;
}

/* dattn_out[T, D] (overwritten) -> dz[T, H, E] = draw W_O. */
static void output_backward(const LlmRun *run, const Layer *l, float *dattn_out) {
    hook_d(run, HOOK_ATTN_OUT, l->index, dattn_out, run->llm->config.d_model, 0);
    float *draw = post_norm_backward(run, run->dx, dattn_out, l->attn_raw, &l->ln1_post);
    product_run_one(run->compute, product_nn(run->dz, draw, &l->w->o, run->rows, false));
    result_backward(run, l, draw);
}

/* ---- the MLP ---- */

/* x[T, D] -> pre[T, M] = x W_in^T + b; post = act(pre) (gated: times pre_linear = x W_linear^T);
 * mlp_out[T, D] = post W_out^T + b, (ln2_post). */
static float *mlp_forward(const LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, m = c->d_mlp;
    Product products[2] = {product_nt(l->pre, run->x, &l->w->pre, rows),
                           product_nt(l->linear, run->x, &l->w->linear, rows)};
    product_run(run->compute, products, c->gated ? 2 : 1);
    hook(run, HOOK_PRE, l->index, l->pre, m, 0);
    activate(run->compute, c->activation, run->post, l->pre, rows * m);
    if (c->gated) {
        hook(run, HOOK_PRE_LINEAR, l->index, l->linear, m, 0);
        vector_multiply(run->compute, run->post, run->post, l->linear, rows * m);
    }
    hook(run, HOOK_POST, l->index, run->post, m, 0);
    product_run_one(run->compute, product_nt(l->mlp_raw, run->post, &l->w->out, rows));
    float *mlp_out = post_norm_forward(run, l->mlp_raw, &l->ln2_post);
    hook(run, HOOK_MLP_OUT, l->index, mlp_out, c->d_model, 0);
    return mlp_out;
}

/* dmlp_out[T, D] in dx (overwritten) -> dx[T, D], of what ln2 gave. */
static void mlp_backward(const LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    size_t rows = run->rows, m = c->d_mlp;
    float *dpost = run->dpre;
    hook_d(run, HOOK_MLP_OUT, l->index, run->dx, c->d_model, 0);
    /* dfinal is free once ln_final is passed */
    float *draw = post_norm_backward(run, run->dfinal, run->dx, l->mlp_raw, &l->ln2_post);
    product_run_one(run->compute, product_nn(dpost, draw, &l->w->out, rows, false));
    hook_d(run, HOOK_POST, l->index, dpost, m, 0);
    if (c->gated) { /* post = act(pre) pre_linear */
        activate(run->compute, c->activation, run->dlinear, l->pre, rows * m);
        vector_multiply(run->compute, run->dlinear, run->dlinear, dpost, rows * m);
        hook_d(run, HOOK_PRE_LINEAR, l->index, run->dlinear, m, 0);
        vector_multiply(run->compute, dpost, dpost, l->linear, rows * m);
    }
    activate_backward(run->compute, c->activation, run->dpre, dpost, l->pre, rows * m);
    hook_d(run, HOOK_PRE, l->index, run->dpre, m, 0);
    product_run_one(run->compute, product_nn(run->dx, run->dpre, &l->w->pre, rows, false));
    if (c->gated) {
        product_run_one(run->compute, product_nn(run->dx, run->dlinear, &l->w->linear, rows, true));
    }
}

/* ---- a block ---- */

/* out[T, D] = stream + branch; out may be where the stream lies. */
static void join(const LlmRun *run, float *out, const float *stream, const float *branch) {
    size_t size = run->rows * run->llm->config.d_model;
    if (out != stream) {
        memcpy(out, stream, size * sizeof *out);
    }
    vector_add(run->compute, out, branch, size);
}

/* resid_pre of the layer [T, D] -> next[T, D] = resid_post. next may be where resid_pre lies. */
static void block_forward(LlmRun *run, const Layer *l, float *next) {
    const LlmConfig *c = &run->llm->config;
    float *pre = l->resid_pre, *mid = l->resid_mid;
    size_t d = c->d_model;
    check_layer(run, l);
    hook(run, HOOK_RESID_PRE, l->index, pre, d, 0);
    norm_forward(run, run->x, pre, &l->ln1);
    project_forward(run, l);
    bool last = (size_t)l->index + 1 == c->n_layers;
    if (last) {
        keep_read_rows(run, l);
    }
    attention_forward(run, l);
    float *attn_out = output_forward(run, l);
    if (!c->parallel) {
        join(run, mid, last ? mid : pre, attn_out);
        hook(run, HOOK_RESID_MID, l->index, mid, d, 0);
    }
    norm_forward(run, run->x, mid, &l->ln2);
    float *mlp_out = mlp_forward(run, l);
    if (c->parallel) {
        join(run, mlp_out, mlp_out, attn_out);
    }
    join(run, next, mid, mlp_out);
    hook(run, HOOK_RESID_POST, l->index, next, d, 0);
}

/* dresid: dresid_post -> dresid_pre. */
static void block_backward(LlmRun *run, const Layer *l) {
    const LlmConfig *c = &run->llm->config;
    float *dresid = run->dresid, *dx = run->dx;
    size_t d = c->d_model, bytes = run->rows * d * sizeof *dresid;
    hook_d(run, HOOK_RESID_POST, l->index, dresid, d, 0);
    if (c->parallel) { /* both halves read resid_pre: their outputs have the same gradient */
        memcpy(run->dbranch, dresid, bytes);
    }
    memcpy(dx, dresid, bytes);
    mlp_backward(run, l);
    norm_backward(run, dresid, dx, l->resid_mid, &l->ln2);
    if (!c->parallel) {
        hook_d(run, HOOK_RESID_MID, l->index, dresid, d, 0);
        memcpy(run->dbranch, dresid, bytes);
    }
    output_backward(run, l, run->dbranch);
    attention_backward(run, l);
    if ((size_t)l->index + 1 == c->n_layers) {
        spread_read_rows(run);
    }
    project_backward(run, l);
    norm_backward(run, dresid, dx, l->resid_pre, &l->ln1);
    hook_d(run, HOOK_RESID_PRE, l->index, dresid, d, 0);
}

/* ---- the whole model ---- */

static void batch_check(const LlmRun *run, const LlmBatch *batch, size_t first, size_t last,
                        const float *resid) {
    const LlmConfig *c = &run->llm->config;
    const LlmPlan *plan = &run->plan;
    size_t sequences = batch->n_sequences;
    bool good =
        sequences > 0 && batch->start[0] == 0 && first <= last && last <= c->n_layers &&
        (first == 0) == (resid == NULL) && (!plan->cache || sequences == 1) &&
        (batch->past == NULL || (plan->tails && (batch->of != NULL || sequences <= run->n_whole)));
    for (size_t s = 0; good && s < sequences; s++) {
        size_t begin = batch->start[s], end = batch->start[s + 1];
        size_t read = batch->read_from != NULL ? batch->read_from[s] : begin;
        good = begin <= read && read < end && (batch->of == NULL || batch->of[s] < run->n_whole);
    }
    if (!good) {
        fail(STATUS_INPUT, "an empty sequence or one not read, or layers %zu to %zu of %zu", first,
             last, c->n_layers);
    }
    for (size_t s = 0; s < sequences; s++) {
        size_t past = plan->cache ? run->cached : batch->past != NULL ? batch->past[s] : 0;
        size_t end = past + batch->start[s + 1] - batch->start[s];
        if (c->rotary_dim == 0 && end > c->n_ctx) {
            fail(STATUS_INPUT, "%s: a sequence of %zu tokens, but the model has %zu positions",
                 run->llm->path, end, c->n_ctx);
        }
        if (end > plan->max_sequence || sequences > plan->max_sequences ||
            batch->start[s + 1] > plan->max_rows) {
            fail(STATUS_RESOURCE,
                 "%zu sequences, one of %zu tokens: this run has room for %zu of %zu, %zu in all",
                 sequences, end, plan->max_sequences, plan->max_sequence, plan->max_rows);
        }
    }
    for (size_t r = 0; first == 0 && r < batch->start[sequences]; r++) {
        if (batch->ids[r] < -1 || (batch->ids[r] >= 0 && (size_t)batch->ids[r] >= c->d_vocab)) {
            fail(STATUS_INPUT, "%s: token id %d is outside the vocabulary of %zu", run->llm->path,
                 (int)batch->ids[r], c->d_vocab);
        }
    }
}

/* Where each sequence's rows, positions and keys begin. */
static void batch_start(LlmRun *run, const LlmBatch *batch) {
    run->batch = batch;
    run->n_sequences = batch->n_sequences;
    run->rows = batch->start[batch->n_sequences];
    run->tail = batch->past != NULL;
    memcpy(run->start, batch->start, (batch->n_sequences + 1) * sizeof *run->start);
    for (size_t s = 0; s < run->n_sequences; s++) {
        run->past[s] = run->plan.cache ? run->cached : run->tail ? batch->past[s] : 0;
        run->kv_start[s] =
            run->tail ? run->whole[batch->of != NULL ? batch->of[s] : s] : run->start[s];
        for (size_t r = run->start[s]; r < run->start[s + 1]; r++) {
            run->position[r] = (uint32_t)(run->past[s] + r - run->start[s]);
        }
    }
    if (!run->tail) {
        run->n_whole = run->n_sequences;
        memcpy(run->whole, run->start, (run->n_whole + 1) * sizeof *run->whole);
    }
}

/* Row `row` of a table of D columns, widened; a table that holds NaN there is named. */
static void embed_row(const LlmRun *run, float *out, Weight table, size_t row) {
    size_t d = run->llm->config.d_model;
    weight_widen(out, table, row * d, d);
    if (!all_finite(out, d)) {
        check_weight(run, table);
    }
}

/* ids[T] -> x[T, D] = hook_embed + hook_pos_embed; an id of -1 has no embedding. */
static void embed_forward(const LlmRun *run, const int32_t *ids, float *x) {
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
    hook(run, HOOK_EMBED, -1, x, d, 0);
    if (run->llm->pos_embed.data != NULL) {
        for (size_t r = 0; r < rows; r++) {
            embed_row(run, run->x + r * d, run->llm->pos_embed, run->position[r]);
        }
        hook(run, HOOK_POS_EMBED, -1, run->x, d, 0);
        vector_add(run->compute, x, run->x, rows * d);
    }
}

/* x = hook_embed + hook_pos_embed: dresid is the gradient of both. */
static void embed_backward(const LlmRun *run) {
    size_t d = run->llm->config.d_model;
    memcpy(run->dx, run->dresid, run->rows * d * sizeof *run->dx);
    if (run->llm->pos_embed.data != NULL) {
        hook_d(run, HOOK_POS_EMBED, -1, run->dx, d, 0);
    }
    hook_d(run, HOOK_EMBED, -1, run->dresid, d, 0);
}

static void final_forward(LlmRun *run) {
    const Norm *norm = &run->llm->ln_final;
    bool *checked = &run->checked[run->llm->config.n_layers];
    if (!*checked) {
        check_weight(run, norm->w);
        check_weight(run, norm->b);
        *checked = true;
    }
    norm_forward(run, run->final_x, run->resid, &run->final);
}

/* ids (or resid) -> embed -> blocks first .. last - 1 -> ln_final. */
void llm_forward(LlmRun *run, const LlmBatch *batch, size_t first, size_t last, const float *resid,
                 const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    batch_check(run, batch, first, last, resid);
    batch_start(run, batch);
    run->hooks = hooks;
    run->first = first;
    run->last = 0; /* until this pass is through */
    float *x = first < last ? run->layers[first].resid_pre : run->resid;
    if (resid != NULL) {
        memmove(x, resid, run->rows * c->d_model * sizeof *x);
    } else {
        embed_forward(run, batch->ids, x);
    }
    for (size_t layer = first; layer < last; layer++) {
        float *next = layer + 1 < last ? run->layers[layer + 1].resid_pre : run->resid;
        block_forward(run, &run->layers[layer], next);
    }
    if (last == c->n_layers) {
        final_forward(run);
        run->cached = run->past[0] + run->rows; /* with a cache there is one sequence */
    }
    run->last = last;
}

/* dfinal -> ln_final -> blocks, the last first -> embed: all in dresid. */
void llm_backward(LlmRun *run, size_t first, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    if (!run->plan.backward || run->last != c->n_layers || first < run->first || run->tail ||
        (run->plan.cache && run->cached > run->whole[1])) {
        fail(STATUS_INPUT, "backward to layer %zu without a forward that kept it", first);
    }
    run->hooks = hooks;
    memset(run->dresid, 0, run->rows * c->d_model * sizeof *run->dresid);
    norm_backward(run, run->dresid, run->dfinal, run->resid, &run->final);
    for (size_t layer = c->n_layers; layer-- > first;) {
        block_backward(run, &run->layers[layer]);
    }
    if (first == 0) {
        embed_backward(run);
    }
}

/* ---- logits ---- */

static void rows_check(const LlmRun *run, const size_t *rows, size_t count) {
    bool good = run->last == run->llm->config.n_layers && count <= run->plan.max_logits;
    for (size_t i = 0; good && i < count; i++) {
        good = rows[i] < run->rows;
    }
    if (!good) {
        fail(STATUS_INPUT, "logits of %zu rows that this pass has not computed", count);
    }
}

/* final_x[T, D] -> logits[count, V] = softcap(final_x W_head^T) at the rows. */
void llm_logits(LlmRun *run, const size_t *rows, size_t count, bool softcapped, float *logits,
                const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t d = c->d_model, v = c->d_vocab;
    rows_check(run, rows, count);
    run->hooks = hooks;
    for (size_t i = 0; i < count; i++) {
        memcpy(run->gather + i * d, run->final_x + rows[i] * d, d * sizeof *run->gather);
    }
    product_run_one(run->compute, product_nt(logits, run->gather, &run->llm->head, count));
    if (count > 0 && !all_finite(logits, v)) { /* a weight that is not finite shows in every row */
        check_weight(run, run->llm->head.w);
    }
    if (softcapped && c->final_softcap > 0) {
        softcap(run->compute, logits, logits, c->final_softcap, count * v);
    }
    hooks_show(run->hooks, point_of(HOOK_LOGITS, -1, false, count, v, 0), logits);
}

void llm_logits_at(LlmRun *run, size_t row, const int32_t *ids, size_t count, float *logits) {
    const LlmConfig *c = &run->llm->config;
    rows_check(run, &row, 1);
    for (size_t i = 0; i < count; i++) {
        Matrix one = matrix_rows(&run->llm->head, (size_t)ids[i], 1);
        product_run_one(run->compute,
                        product_nt(logits + i, run->final_x + row * c->d_model, &one, 1));
    }
    if (c->final_softcap > 0) {
        softcap(run->compute, logits, logits, c->final_softcap, count);
    }
}

void llm_backward_start(LlmRun *run) {
    memset(run->dfinal, 0, run->rows * run->llm->config.d_model * sizeof *run->dfinal);
}

/* dlogits[count, V] -> dfinal[T, D] += dlogits W_head at the rows. */
void llm_logits_backward(LlmRun *run, const size_t *rows, size_t count, bool softcapped,
                         const float *logits, float *dlogits, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t d = c->d_model, v = c->d_vocab;
    rows_check(run, rows, count);
    run->hooks = hooks;
    hooks_show(run->hooks, point_of(HOOK_LOGITS, -1, true, count, v, 0), dlogits);
    if (softcapped && c->final_softcap > 0) {
        softcap_backward(run->compute, dlogits, dlogits, logits, c->final_softcap, count * v);
    }
    product_run_one(run->compute, product_nn(run->gather, dlogits, &run->llm->head, count, false));
    for (size_t i = 0; i < count; i++) {
        vector_add(run->compute, run->dfinal + rows[i] * d, run->gather + i * d, d);
    }
}

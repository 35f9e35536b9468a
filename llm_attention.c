/* llm_attention.c: scores, pattern and z, and their way back, for batches of whole sequences or,
 * where the scores would not fit, in pieces of some queries. Both give the same bits. */
#include "llm_run.h"

#include <math.h>
#include <string.h>

/* A block of `queries` queries of sequence s from its `first`-th new one on. Keys that no query of
 * it sees are left out, but of a whole sequence, so that hooks see the full square. */
static Block block_of(const LlmRun *run, size_t layer, size_t s, size_t first, size_t queries) {
    size_t window = run->llm->layers[layer].sliding ? run->llm->config.window : 0;
    Block b = {.sequence = s, .row = run->start[s] + first, .queries = queries};
    b.position = run->past[s] + first;
    b.whole = first == 0 && queries == run->start[s + 1] - run->start[s];
    b.first_key = !b.whole && window > 0 && b.position >= window ? b.position - window + 1 : 0;
    b.keys = b.position + queries - b.first_key;
    b.key_row = run->kv_start[s] + b.first_key;
    return b;
}

/* Fills run->blocks with as many whole sequences from *s on as fit the buffer, and moves *s behind
 * them. 0: sequence *s alone does not fit. */
static size_t whole_blocks(const LlmRun *run, size_t layer, size_t *s) {
    size_t heads = run->llm->config.n_heads, used = 0, count = 0;
    for (; *s < run->n_sequences; ++*s) {
        size_t tokens = run->start[*s + 1] - run->start[*s], size = 0;
        Block b = block_of(run, layer, *s, 0, tokens);
        if (!size_mul(&size, heads * tokens, b.keys) || size > run->scores_size - used) {
            break;
        }
        b.offset = used;
        used += size;
        run->blocks[count++] = b;
    }
    return count;
}

/* The next piece of a sequence that does not fit whole: as many queries as the buffer holds. */
static Block piece_of(const LlmRun *run, size_t layer, size_t s, size_t first, size_t heads) {
    size_t tokens = run->start[s + 1] - run->start[s];
    size_t fit = run->scores_size / (heads * (run->past[s] + tokens));
    Block b = block_of(run, layer, s, first, tokens - first < fit ? tokens - first : fit);
    b.whole = false;
    return b;
}

/* The query head at index i of a unit: `step` heads of each key-value head, from its `member`-th
 * on. */
static size_t query_head(const LlmConfig *c, size_t i, size_t member, size_t step) {
    return i / step * (c->n_heads / c->n_kv_heads) + member + i % step;
}

static bool wants_attention(const Hooks *hooks, size_t layer, bool gradient) {
    return hooks_want(hooks, HOOK_ATTN_SCORES, (int)layer, gradient) ||
           hooks_want(hooks, HOOK_PATTERN, (int)layer, gradient);
}

static void fail_room(const LlmRun *run, size_t s) {
    fail(STATUS_RESOURCE,
                "attn_scores and pattern of %zu tokens are larger than this run has room for",
                run->start[s + 1] - run->start[s]);
}

/* scores[heads, queries, keys] of a block: what each query does not see becomes `value`. */
static void mask_scores(const LlmRun *run, size_t layer, const Block *b, size_t heads,
                        float *scores, float value) {
    size_t window = run->llm->layers[layer].sliding ? run->llm->config.window : 0;
    for (size_t r = 0; r < heads * b->queries; r++) {
        float *row = scores + r * b->keys;
        size_t i = b->position + r % b->queries;
        size_t low = window > 0 && i >= window ? i - window + 1 : 0;
        low = low > b->first_key ? low - b->first_key : 0;
        for (size_t j = 0; j < low; j++) {
            row[j] = value;
        }
        for (size_t j = i + 1 - b->first_key; j < b->keys; j++) {
            row[j] = value;
        }
    }
}

/* scores[heads, queries, keys] = softcap(q k^T * scale), not yet masked, of every block. */
static void attention_scores(const LlmRun *run, const LayerState *state, const Block *blocks,
                             size_t count, size_t member, size_t step, float *scores) {
    const LlmConfig *c = &run->llm->config;
    size_t heads = c->n_kv_heads * step, n = 0, total = 0;
    size_t d_head = c->d_head, query = c->n_heads * d_head, key = c->n_kv_heads * d_head;
    for (size_t i = 0; i < count; i++) {
        const Block *b = &blocks[i];
        bool decoding = b->queries == 1; /* heads of a group are then rows of one product */
        for (size_t h = 0; h < heads; h += decoding ? step : 1) {
            size_t head = query_head(c, h, member, step);
            run->products[n++] =
                (Product){.c = scores + b->offset + h * b->queries * b->keys,
                          .ldc = b->keys,
                          .a = state->q + b->row * query + head * d_head,
                          .a_row = (ptrdiff_t)(decoding ? d_head : query),
                          .a_col = 1,
                          .b = {state->k + b->key_row * key + h / step * d_head, DTYPE_F32},
                          .b_row = (ptrdiff_t)key,
                          .b_col = 1,
                          .m = decoding ? step : b->queries,
                          .n = b->keys,
                          .k = d_head};
        }
        total += heads * b->queries * b->keys;
    }
    product_run(run->compute, run->products, n);
    if (c->attn_scale != 1) {
        vector_scale(run->compute, scores, scores, c->attn_scale, total);
    }
    if (c->attn_softcap > 0) {
        softcap(run->compute, scores, scores, c->attn_softcap, total);
    }
}

/* Calls the hooks of one block's scores or pattern, which are whole. */
static void hook_attention(const Hooks *hooks, HookKind kind, size_t layer, bool gradient,
                             const Block *b, size_t heads, float *data) {
    HookPoint point = {.kind = kind,
                       .layer = (int)layer,
                       .gradient = gradient,
                       .sequence = b->sequence,
                       .rank = 3,
                       .shape = {heads, b->queries, b->keys}};
    if (hooks_want(hooks, kind, (int)layer, gradient)) {
        hooks->call(hooks->user, &point, data);
    }
}

/* Where the kept scores and pattern of sequence s begin. */
static size_t kept_offset(const LlmRun *run, size_t s) {
    size_t offset = 0;
    for (size_t i = 0; i < s; i++) {
        size_t tokens = run->start[i + 1] - run->start[i];
        offset += run->llm->config.n_heads * tokens * tokens;
    }
    return offset;
}

/* z[queries, H, E] of the blocks = pattern v, pattern = softmax over keys of the masked scores. */
static void attention_blocks(const LlmRun *run, size_t layer, const Block *blocks, size_t count,
                               const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LayerState *state = &run->layers[layer];
    size_t heads = c->n_heads, group = heads / c->n_kv_heads;
    size_t d_head = c->d_head, query = heads * d_head, key = c->n_kv_heads * d_head, n = 0;
    attention_scores(run, state, blocks, count, 0, group, run->scores);

    for (size_t i = 0; i < count; i++) {
        const Block *b = &blocks[i];
        float *scores = run->scores + b->offset;
        size_t size = heads * b->queries * b->keys;
        bool wanted = b->whole && wants_attention(hooks, layer, false);
        bool watch = wanted && run->plan.backward && !run->plan.attention_replaced;
        mask_scores(run, layer, b, heads, scores, -INFINITY);
        uint64_t before = watch ? llm_fingerprint(scores, size) : 0;
        hook_attention(hooks, HOOK_ATTN_SCORES, layer, false, b, heads, scores);
        bool replaced = watch && llm_fingerprint(scores, size) != before;
        if (state->kept_scores != NULL) {
            memcpy(state->kept_scores + kept_offset(run, b->sequence), scores,
                   size * sizeof *scores);
        }
        softmax_rows(run->compute, scores, scores, heads * b->queries, b->keys);
        before = watch ? llm_fingerprint(scores, size) : 0;
        hook_attention(hooks, HOOK_PATTERN, layer, false, b, heads, scores);
        replaced = replaced || (watch && llm_fingerprint(scores, size) != before);
        if (state->kept_pattern != NULL) {
            memcpy(state->kept_pattern + kept_offset(run, b->sequence), scores,
                   size * sizeof *scores);
        }
        if (replaced) {
            fail(STATUS_INPUT,
                "attn_scores or pattern of layer %zu was replaced in a run that does not keep "
                "them for backward",
                layer);
        }
    }
    for (size_t i = 0; i < count; i++) {
        const Block *b = &blocks[i];
        bool decoding = b->queries == 1;
        for (size_t h = 0; h < heads; h += decoding ? group : 1) {
            run->products[n++] =
                (Product){.c = run->z + b->row * query + h * d_head,
                          .ldc = decoding ? d_head : query,
                          .a = run->scores + b->offset + h * b->queries * b->keys,
                          .a_row = (ptrdiff_t)b->keys,
                          .a_col = 1,
                          .b = {state->v + b->key_row * key + h / group * d_head, DTYPE_F32},
                          .b_row = 1,
                          .b_col = (ptrdiff_t)key,
                          .m = decoding ? group : b->queries,
                          .n = d_head,
                          .k = b->keys};
        }
    }
    product_run(run->compute, run->products, n);
}

/* A tail's keys and values change places with the rows that they stand for. */
static void swap_tail(const LlmRun *run, size_t layer) {
    size_t key = run->llm->config.n_kv_heads * run->llm->config.d_head;
    for (size_t s = 0; s < run->n_sequences; s++) {
        size_t from = run->new_start[s] * key, to = (run->kv_start[s] + run->new_past[s]) * key;
        float *k = run->layers[layer].k + to, *v = run->layers[layer].v + to;
        for (size_t i = 0; i < (run->new_start[s + 1] - run->new_start[s]) * key; i++) {
            float swap_k = k[i], swap_v = v[i];
            k[i] = run->tail_k[from + i];
            v[i] = run->tail_v[from + i];
            run->tail_k[from + i] = swap_k;
            run->tail_v[from + i] = swap_v;
        }
    }
}

static void attention_forward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    for (size_t s = 0; s < run->n_sequences;) {
        size_t count = whole_blocks(run, layer, &s);
        if (count > 0) {
            attention_blocks(run, layer, run->blocks, count, hooks);
            continue;
        }
        size_t tokens = run->start[s + 1] - run->start[s];
        if (wants_attention(hooks, layer, false) || run->layers[layer].kept_scores != NULL) {
            fail_room(run, s);
            return;
        }
        for (size_t first = 0; first < tokens;) {
            Block b = piece_of(run, layer, s, first, run->llm->config.n_heads);
            attention_blocks(run, layer, &b, 1, NULL);
            first += b.queries;
        }
        s++;
    }
}

/* q, k, v [T, heads, E] -> z [T, H, E], all sequences. */
void llm_attention_forward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    if (run->tail) {
        swap_tail(run, layer);
    }
    attention_forward(run, layer, hooks);
    if (run->tail) {
        swap_tail(run, layer);
    }
}

/* dz -> dq, and added to dk and dv: heads member .. member + step - 1 of every key-value head. */
static void attention_blocks_backward(const LlmRun *run, size_t layer, const Block *blocks,
                                        size_t count, size_t member, size_t step,
                                        const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    const LayerState *state = &run->layers[layer];
    size_t heads = c->n_kv_heads * step, n = 0, total = 0;
    size_t d_head = c->d_head, query = c->n_heads * d_head, key = c->n_kv_heads * d_head;
    float *scores = run->scores, *pattern = run->pattern, *dpattern = run->dpattern;

    attention_scores(run, state, blocks, count, member, step, scores);
    for (size_t i = 0; i < count; i++) {
        const Block *b = &blocks[i];
        size_t size = heads * b->queries * b->keys;
        if (state->kept_scores != NULL) {
            size_t kept = kept_offset(run, b->sequence);
            memcpy(scores + b->offset, state->kept_scores + kept, size * sizeof *scores);
            memcpy(pattern + b->offset, state->kept_pattern + kept, size * sizeof *scores);
            for (size_t j = b->offset; j < b->offset + size; j++) { /* a hook's own mask */
                scores[j] = isfinite(scores[j]) ? scores[j] : 0;
            }
        } else {
            mask_scores(run, layer, b, heads, scores + b->offset, -INFINITY);
            softmax_rows(run->compute, pattern + b->offset, scores + b->offset, heads * b->queries,
                         b->keys);
        }
        for (size_t h = 0; h < heads; h++) { /* dpattern[i, j] = dz[i] . v[j] */
            size_t head = query_head(c, h, member, step);
            run->products[n++] =
                (Product){.c = dpattern + b->offset + h * b->queries * b->keys,
                          .ldc = b->keys,
                          .a = run->dz + b->row * query + head * d_head,
                          .a_row = (ptrdiff_t)query,
                          .a_col = 1,
                          .b = {state->v + b->key_row * key + h / step * d_head, DTYPE_F32},
                          .b_row = (ptrdiff_t)key,
                          .b_col = 1,
                          .m = b->queries,
                          .n = b->keys,
                          .k = d_head};
        }
        total += size;
    }
    product_run(run->compute, run->products, n);

    for (size_t i = 0; i < count; i++) {
        const Block *b = &blocks[i];
        float *d = dpattern + b->offset;
        hook_attention(hooks, HOOK_PATTERN, layer, true, b, heads, d);
    }
    for (size_t g = 0; g < step; g++) { /* dv[j] += sum_i pattern[i, j] dz[i] */
        n = 0;
        for (size_t i = 0; i < count; i++) {
            const Block *b = &blocks[i];
            for (size_t kv = 0; kv < c->n_kv_heads; kv++) {
                size_t h = kv * step + g, head = query_head(c, h, member, step);
                run->products[n++] =
                    (Product){.c = run->dv + b->key_row * key + kv * d_head,
                              .ldc = key,
                              .a = pattern + b->offset + h * b->queries * b->keys,
                              .a_row = 1,
                              .a_col = (ptrdiff_t)b->keys,
                              .b = {run->dz + b->row * query + head * d_head, DTYPE_F32},
                              .b_row = 1,
                              .b_col = (ptrdiff_t)query,
                              .m = b->keys,
                              .n = d_head,
                              .k = b->queries,
                              .resume = true};
            }
        }
        product_run(run->compute, run->products, n);
    }

    for (size_t i = 0; i < count; i++) {
        const Block *b = &blocks[i];
        float *d = dpattern + b->offset;
        softmax_rows_backward(run->compute, d, d, pattern + b->offset, heads * b->queries, b->keys);
        hook_attention(hooks, HOOK_ATTN_SCORES, layer, true, b, heads, d);
        /* Behind the mask lies a constant: no gradient, and no infinity to take a slope at. */
        mask_scores(run, layer, b, heads, d, 0);
        mask_scores(run, layer, b, heads, scores + b->offset, 0);
    }
    if (c->attn_softcap > 0) {
        softcap_backward(run->compute, dpattern, dpattern, scores, c->attn_softcap, total);
    }
    if (c->attn_scale != 1) {
        vector_scale(run->compute, dpattern, dpattern, c->attn_scale, total);
    }

    n = 0;
    for (size_t i = 0; i < count; i++) { /* dq[i] = sum_j dscores[i, j] k[j] */
        const Block *b = &blocks[i];
        for (size_t h = 0; h < heads; h++) {
            size_t head = query_head(c, h, member, step);
            run->products[n++] =
                (Product){.c = run->dq + b->row * query + head * d_head,
                          .ldc = query,
                          .a = dpattern + b->offset + h * b->queries * b->keys,
                          .a_row = (ptrdiff_t)b->keys,
                          .a_col = 1,
                          .b = {state->k + b->key_row * key + h / step * d_head, DTYPE_F32},
                          .b_row = 1,
                          .b_col = (ptrdiff_t)key,
                          .m = b->queries,
                          .n = d_head,
                          .k = b->keys};
        }
    }
    product_run(run->compute, run->products, n);
    for (size_t g = 0; g < step; g++) { /* dk[j] += sum_i dscores[i, j] q[i] */
        n = 0;
        for (size_t i = 0; i < count; i++) {
            const Block *b = &blocks[i];
            for (size_t kv = 0; kv < c->n_kv_heads; kv++) {
                size_t h = kv * step + g, head = query_head(c, h, member, step);
                run->products[n++] =
                    (Product){.c = run->dk + b->key_row * key + kv * d_head,
                              .ldc = key,
                              .a = dpattern + b->offset + h * b->queries * b->keys,
                              .a_row = 1,
                              .a_col = (ptrdiff_t)b->keys,
                              .b = {state->q + b->row * query + head * d_head, DTYPE_F32},
                              .b_row = 1,
                              .b_col = (ptrdiff_t)query,
                              .m = b->keys,
                              .n = d_head,
                              .k = b->queries,
                              .resume = true};
            }
        }
        product_run(run->compute, run->products, n);
    }
}

/* dz [T, H, E] -> dq [T, H, E], dk, dv [T, G, E]. A chain of dk or dv runs over the query heads of
 * its group in order, and within each over the queries, whether or not they come in pieces. */
void llm_attention_backward(const LlmRun *run, size_t layer, const Hooks *hooks) {
    const LlmConfig *c = &run->llm->config;
    size_t group = c->n_heads / c->n_kv_heads, key = c->n_kv_heads * c->d_head;
    memset(run->dk, 0, run->rows * key * sizeof *run->dk);
    memset(run->dv, 0, run->rows * key * sizeof *run->dv);
    for (size_t s = 0; s < run->n_sequences;) {
        size_t count = whole_blocks(run, layer, &s);
        if (count > 0) {
            attention_blocks_backward(run, layer, run->blocks, count, 0, group, hooks);
            continue;
        }
        size_t tokens = run->start[s + 1] - run->start[s];
        if (wants_attention(hooks, layer, true)) {
            fail_room(run, s);
            return;
        }
        for (size_t member = 0; member < group; member++) {
            for (size_t first = 0; first < tokens;) {
                Block b = piece_of(run, layer, s, first, c->n_kv_heads);
                attention_blocks_backward(run, layer, &b, 1, member, 1, NULL);
                first += b.queries;
            }
        }
        s++;
    }
}

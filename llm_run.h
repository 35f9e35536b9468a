/* llm_run.h: what llm.c, llm_attention.c and llm_load.c share and nobody else sees: the memory of a run.
 * Floor 2. */
#ifndef REFSAE_LLM_RUN_H
#define REFSAE_LLM_RUN_H

#include "llm.h"

/* What a layer leaves for its backward. Without plan.backward all layers share one. */
typedef struct LayerState {
    float *resid_pre, *resid_mid;      /* [T, D]; parallel: the same */
    float *q, *k, *v;                  /* [T, H, E], [T, G, E]: rotated; with a cache k and v hold every
                                          position and the new rows are written behind the past ones */
    float *attn_raw, *mlp_raw;         /* [T, D]: before the post-norms */
    float *pre, *linear;               /* [T, M] */
    float *mean[4], *scale[4];         /* [T]: ln1, ln1_post, ln2, ln2_post; RMSNorm has no mean */
    float *kept_scores, *kept_pattern; /* plan.attention_replaced: [H, T_s, T_s] of each sequence s */
} LayerState;

enum { LN1, LN1_POST, LN2, LN2_POST };

/* Queries of one sequence whose scores are formed together. */
typedef struct Block {
    size_t sequence, row, queries; /* rows of the batch */
    size_t position;               /* of the first query */
    size_t first_key, keys;        /* positions that its queries see */
    size_t key_row;                /* row of first_key in the layer's k and v */
    size_t offset;                 /* in the buffers of scores: [heads, queries, keys] */
    bool whole;                    /* a whole sequence with all its heads and keys */
} Block;

struct LlmRun {
    const Llm *llm;
    const Compute *compute;
    LlmPlan plan;
    LayerState *layers;
    bool *checked; /* [n_layers + 1]: weights known to be finite; last: ln_final */
    float *cosine, *sine;
    uint32_t *position; /* [T] */
    size_t *start;      /* [sequences + 1] */
    size_t *past;       /* [sequences]: positions before the rows of this forward */
    size_t *kv_start;   /* [sequences]: where a sequence's keys and values begin in its layer's k and v */
    size_t *new_start, *new_past; /* start and past of the keys and values that this forward makes */
    size_t rows, n_sequences, first, last;
    size_t cached;      /* with a cache: positions before the next forward's rows */
    bool tail, ends;    /* this forward's batch has a past, or goes on with last rows alone */
    float *tail_k, *tail_v; /* [T, G, E]: its keys and values */
    float *resid;       /* [T, D]: the stream behind layer `last` */
    float *x;           /* [T, D]: what a norm gives */
    float *qkv;         /* [T, H, 3, E]: GPT-NeoX */
    float *z, *post;    /* [T, H, E], [T, M] */
    float *final_mean, *final_scale, *final_x; /* [T], [T], [T, D] */
    float *gather;                             /* [max_logits, D] */
    float *scores;                             /* [scores_size], and backward two more */
    float *pattern, *dpattern;
    size_t scores_size;
    Block *blocks;     /* [sequences] */
    Product *products; /* [sequences * H], at least 4 */
    /* backward */
    float *dresid, *dfinal, *dbranch, *dx; /* [T, D] */
    float *dq, *dk, *dv, *dz;              /* as q, k, v, z */
    float *dpre, *dlinear;                 /* [T, M] */
    float *dscale;                         /* [T] */
};

/* Calls a hook if it is wanted, with data [rows, a] or [rows, a, b] (b > 0). */
void llm_hook(const Hooks *hooks, HookKind kind, int layer, bool gradient, float *data, size_t rows,
                size_t a, size_t b);
/* Whether a hook left a buffer as it was: FNV-1a over the words. */
uint64_t llm_fingerprint(const float *x, size_t n);
/* q, k, v of the layer -> run->z; and run->dz -> run->dq, dk, dv. See llm_attention.c. */
void llm_attention_forward(const LlmRun *run, size_t layer, const Hooks *hooks);
void llm_attention_backward(const LlmRun *run, size_t layer, const Hooks *hooks);

/* NaN or infinity in what layer `layer` reads (n_layers: ln_final), looked for once a run. An infinity
 * in W_K could hide behind the soft-cap, so the activations are not enough to go by. */
void llm_check_layer(LlmRun *run, size_t layer);
void llm_check_weight(const LlmRun *run, Weight weight);

#endif

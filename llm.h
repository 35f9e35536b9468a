/* llm.h: one transformer, three configurations (Gemma-2, GPT-2, GPT-NeoX): forward, backward to any
 * activation, KV cache. model_load.h opens one. Floor 7. */
#ifndef REFSAE_LLM_H
#define REFSAE_LLM_H

#include "base.h"
#include "hooks.h"
#include "kernels.h"
#include "tensor.h"

typedef enum LlmKind {
    LLM_GEMMA2,
    LLM_GPT2,
    LLM_GPT_NEOX
} LlmKind;

typedef struct LlmConfig {
    LlmKind kind;
    size_t n_layers, d_model, n_heads, n_kv_heads, d_head, d_mlp, d_vocab, n_ctx;
    size_t rotary_dim; /* 0: learned positions */
    size_t window;     /* sliding window W: query i sees i - W < j <= i; 0: none */
    float norm_eps, rope_theta, attn_scale, attn_softcap, final_softcap; /* softcap 0: none */
    float embed_scale; /* Gemma-2: sqrt(d_model), rounded as Hugging Face does for this dtype */
    Activation activation;
    bool rms_norm, parallel, gated;
    int32_t bos;  /* -1: none */
    int32_t *eos; /* generation_config.json first, then config.json */
    size_t eos_count;
} LlmConfig;

typedef struct LlmLayer {
    Norm ln1, ln2, ln1_post, ln2_post; /* *_post: Gemma-2 */
    Matrix q, k, v;                    /* [heads * d_head, d_model]; absent where qkv is there */
    Matrix qkv;                        /* GPT-NeoX: rows [heads, 3, d_head] */
    Matrix o, pre, linear, out;        /* linear: the gated MLP's other half */
    bool sliding;
    const Tensor *tensors[16]; /* what this layer reads, for the check on NaN */
    size_t tensor_count;
} LlmLayer;

typedef struct Llm {
    LlmConfig config;
    LlmLayer *layers;
    Weight embed, pos_embed; /* [d_vocab, d_model], [n_ctx, d_model] */
    Norm ln_final;
    Matrix head; /* [d_vocab, d_model] */
    TensorStore store;
    const char *path;
} Llm;

/* One head's part of a projection: kind HOOK_Q, HOOK_K, HOOK_V: [d_head, d_model] with its bias
 * (k, v: a key-value head); HOOK_Z: W_O's columns, [d_model, d_head], without bias. */
Matrix llm_head_matrix(const Llm *llm, size_t layer, HookKind kind, size_t head);

/* b_V [n_heads * d_head] as z has it: a pattern's rows sum to 1, so that it reaches z unchanged. 0
 * without one. */
void llm_value_bias(const Llm *llm, size_t layer, float *b_v);

/* Rows of a batch: sequences one after another, without padding. Results of a sequence do not
 * depend on what else is in the batch. */
typedef struct LlmBatch {
    size_t n_sequences;
    const size_t *start; /* [n_sequences + 1]: sequence s is rows start[s] .. start[s + 1] - 1 */
    const int32_t *ids;  /* [rows]; -1: no token, hook_embed is 0 there (image positions) */
    /* With plan.tails, [n_sequences]: as many rows of each sequence stand as the last pass without
     * `past` left them (a patch changes no row before it), and `start`, `ids` and what hooks see
     * hold only those that follow. Layers that it had not run have nothing to stand on. NULL: whole
     * sequences. */
    const size_t *past;
    /* [n_sequences]: which sequence of that pass each goes on, several on one as they like; NULL:
     * the same one. */
    const size_t *of;
    /* [n_sequences]: of each sequence the first row whose logits are read. Behind the last layer's
     * q, k and v only it and those after it go on: hooks there, llm_resid and llm_logits have these
     * rows alone, of all sequences side by side, and backward, once, ends this pass. NULL: all. */
    const size_t *read_from;
} LlmBatch;

/* What a run has room for; decides its memory before it starts. */
typedef struct LlmPlan {
    size_t max_rows;      /* rows of a batch */
    size_t max_sequence;  /* longest sequence (with a cache: past + new) */
    size_t max_sequences; /* sequences of a batch */
    size_t max_logits;    /* rows that llm_logits computes at once */
    bool backward;        /* keep what backward needs */
    bool cache;           /* one sequence, continued over several llm_forward calls */
    bool tails;           /* with backward (each layer keeps its keys): batches may have a past */
    /* attn_scores, pattern and result are formed in pieces of a bounded size (2^19 values), unless
     * hooks want them whole; small ones always fit, larger ones only with this flag. In a run with
     * backward hooks may not replace attn_scores or pattern. */
    bool attention_hooks;
} LlmPlan;

typedef struct LlmRun LlmRun;

/* All memory of a run from one arena (call with a measuring arena first). NULL while measuring. */
LlmRun *llm_run_layout(const Llm *llm, const Compute *compute, const LlmPlan *plan, Arena *arena);

/* Runs layers first .. last - 1 (llm->config.n_layers for all; then ln_final is run too).
 * first > 0: resid[rows, d_model] is hook_resid_pre of layer `first`; first == 0: resid NULL.
 * With a cache, rows continue where the last call ended. Fails on ids outside the vocabulary,
 * more rows than planned, positions beyond learned ones, and weights that are not finite. */
void llm_forward(LlmRun *run, const LlmBatch *batch, size_t first, size_t last, const float *resid,
                 const Hooks *hooks);
/* hook_resid_pre of layer `last` after llm_forward ([rows, d_model]): the input of a later one. */
const float *llm_resid(const LlmRun *run);

/* logits[count, d_vocab] at the given rows of the last full llm_forward (rows ascending; the LOGITS
 * hook sees them). softcap: the model's own final soft-cap, if it has one. */
void llm_logits(LlmRun *run, const size_t *rows, size_t count, bool softcap, float *logits,
                const Hooks *hooks);
/* The logits of some tokens alone, at one row: logits[count] at ids. The same values as with
 * softcap, no hook. */
void llm_logits_at(LlmRun *run, size_t row, const int32_t *ids, size_t count, float *logits);
/* The way back, block by block: before the first, llm_backward_start. logits as llm_logits left
 * them (used for the soft-cap's slope); dlogits[count, d_vocab] is overwritten. */
void llm_backward_start(LlmRun *run);
void llm_logits_backward(LlmRun *run, const size_t *rows, size_t count, bool softcap,
                         const float *logits, float *dlogits, const Hooks *hooks);
/* From ln_final down to hook_resid_pre of layer `first`, and for first == 0 to hook_embed and
 * hook_pos_embed. Gradients reach hooks with point->gradient set; where a hook replaced an
 * activation in forward, its gradient is as if the value had been computed (straight through). */
void llm_backward(LlmRun *run, size_t first, const Hooks *hooks);

#endif

/* adapter.h: how image tokens enter a frozen language model, how their adapter is trained, and how
 * far they have become language, layer by layer (Mapping, arXiv 2506.11976). Floor 10. */
#ifndef REFSAE_ADAPTER_H
#define REFSAE_ADAPTER_H

#include "data.h"
#include "image.h"
#include "kernels.h"
#include "llm.h"
#include "sae_load.h"
#include "shard.h"
#include "tokenizer.h"
#include "vit.h"

/* ---- the adapter (struct Adapter: data.h) and the models around it ---- */

/* The bias stands behind the weight. */
void adapter_layout(Adapter *adapter, size_t d_llm, size_t d_vit, Arena *arena);
/* U(-1/sqrt(d_vit), 1/sqrt(d_vit)), weight then bias. */
void adapter_init(Adapter *adapter, uint64_t seed);
/* y[rows, d_llm] = x[rows, d_vit] W^T + b */
void adapter_forward(const Compute *compute, const Adapter *adapter, const float *x, float *y,
                     size_t rows);

typedef struct Vlm { /* opened by run_mapping.c */
    const Compute *compute;
    Llm llm;
    Vit vit;
    Tokenizer *tokenizer;
    Preprocess preprocess;
    Adapter adapter;
    VitRun *vit_run;
    float *features; /* [n_patches, d_vit]: the tower's of one image */
    int image_text;  /* ImageText */
} Vlm;

/* ---- sequences: [bos] [n_image rows of the adapter, id -1] [text] ---- */

typedef struct Range {
    size_t begin, end; /* [begin, end) */
} Range;

typedef struct Sequence {
    int32_t *ids;
    size_t rows;
    size_t n_image; /* image rows are 1 .. n_image */
    Range *answers; /* rows to predict, each by the one before, of each model turn that keeps one */
    size_t n_answers;
    size_t prompt_rows; /* rows before the first answer's first token */
} Sequence;

/* Renders the turns in Gemma's chat form and tokenizes the whole. Where the last turn is the user's
 * it ends in "<start_of_turn>model\n", ready for an answer. limit: text tokens kept, <bos> counted
 * (0: all). image: room for the image rows after <bos>. */
Sequence vlm_sequence(const Vlm *vlm, const Turn *turns, size_t count, bool image, size_t limit,
                      Arena *arena);

/* A hook that sets the image rows at blocks.0.hook_resid_pre, calls `next` (may be NULL) and, in
 * backward, copies their gradient out. */
typedef struct ImageHook {
    const LlmBatch *batch;
    size_t n_image, d_model;
    const float *images; /* [n_sequences, n_image, d_model]; NULL: none */
    float *gradient;     /* the same shape, or NULL */
    const Hooks *next;
} ImageHook;

Hooks image_hooks(ImageHook *hook);

/* ---- training ---- */

typedef struct TrainLoss { /* of an example, and the tokens that it predicts */
    double loss;
    uint64_t tokens;
} TrainLoss;

typedef struct TrainRun { /* what a step computes with */
    const VlmOptions *options;
    Vlm *vlm;
    size_t micro;            /* examples at once */
    Adapter grad, m, v;      /* gradient and AdamW's moments, shaped like the adapter */
    double *sum;             /* [adapter_size] of the gradients of a step's examples */
    TrainLoss *found;        /* [micro] */
    Sequence *sequence;      /* [micro] */
    float *features;         /* [micro, P, d_vit] */
    float *images, *dimages; /* [micro, P, d_llm] */
    LlmRun *run;
    int32_t *ids;              /* [rows] of all sequences */
    size_t *start, *read_from; /* as LlmBatch has them: read from the first row that predicts */
    /* [rows]: the rows that predict a token, the token, its share of the loss, -log p */
    size_t *head_rows;
    int32_t *targets;
    float *weights;
    double *losses;
    float *logits, *dlogits; /* [LOGIT_ROWS, d_vocab]; one place where no soft-cap needs both */
} TrainRun;

/* Chooses t->micro, the most examples whose memory stays within a bound (results do not depend on
 * it): bytes of the block that train_layout takes. Of the models it reads the configs. */
size_t train_plan(TrainRun *t);
void train_layout(Arena *arena, void *run);

/* Forward and backward of `count` examples, at least one, whose sequences and features are in
 * place; then found[e], and the gradient of each in t->grad, which train_add adds to the step's. */
void train_micro(TrainRun *t, size_t count);
void train_gradient(TrainRun *t, size_t e);
void train_add(TrainRun *t);
/* AdamW's step (from 1) with the mean gradient of `count` examples. */
void train_update(TrainRun *t, size_t count, double lr, uint64_t step);
/* The rate of step s (from 0) of `steps`. */
double train_lr(const VlmOptions *options, uint64_t s, uint64_t steps);

typedef struct TrainResult {
    const VlmOptions *options;
    const double *loss; /* [steps] */
    size_t steps;
} TrainResult;

/* ---- generation and visual questions ---- */

/* Temperature, then top-k, then top-p, as transformers' logits warpers; the tokens' probabilities
 * are added in ascending order of ids until they pass one uniform. arena: room for d_vocab pairs,
 * which the caller gives back (arena_reset). */
int32_t token_sample(const float *logits, size_t d_vocab, const Sampling *sampling, Random *random,
                     Arena *arena);

/* ---- the layer analysis: SAEs of the language model on groups of positions ---- */

typedef enum Group {
    GROUP_IMG,     /* rows 1 .. P of a prompt with its image */
    GROUP_IMGTEXT, /* its rows from P + 1 on */
    GROUP_TEXT,    /* rows from 1 on of the control, which states the answer and has no image */
    GROUPS
} Group;
typedef enum Variant { /* of the image rows */
    VARIANT_CLEAN,
    VARIANT_PERMUTED,
    VARIANT_GAUSSIAN,
    VARIANTS
} Variant;

typedef enum Metric { /* of a layer's rows */
    METRIC_MSE,
    METRIC_SPARSITY,
    METRIC_MATCH, /* share of the judged features that match the answer; of the clean rows alone */
    METRICS
} Metric;

extern const char *const group_names[GROUPS];     /* vlm_img, vlm_imgtext, llm_text */
extern const char *const variant_names[VARIANTS]; /* "", permuted, gaussian */

typedef struct Sums { /* over examples, in their order; counts as numbers beside the rest */
    double mse, sparsity, l0, cosine, norm, fvu, n, n_fvu;
} Sums;

/* Mean cross-entropy of the first answer's tokens, summed over examples. */
typedef struct LossSums {
    double clean, sae, zero, mean, n;
} LossSums;

typedef struct LayerResult {
    int layer;
    const Sae *sae;
    Descriptions descriptions; /* NULLs: none were given */
    Sums sums[VARIANTS][GROUPS];
    LossSums loss[GROUPS];
    uint32_t *active[GROUPS]; /* [d_sae]: examples in which a feature is active in the group */
    size_t matched[GROUPS], judged[GROUPS];
} LayerResult;

typedef struct AnalyzeResult {
    const VlmOptions *options;
    const Console *console;
    LayerResult *layers;
    size_t n_layers, examples;
    const char *const *failures; /* why examples were left out */
    size_t n_failures;
    size_t judged;                  /* examples that have verdicts: the first of them all */
    size_t verdicts, verdicts_used; /* of a judge outside: lines, and those that say something */
    size_t verdicts_missing;        /* questions that it left open */
} AnalyzeResult;

typedef struct TopFeature {
    uint32_t feature, row;
    float activation;
} TopFeature;

typedef struct AnalyzeRun { /* what the passes compute with */
    const Llm *llm;
    const Compute *compute;
    AnalyzeResult *result;
    LayerResult **of_layer; /* [n_layers of the model]; NULL: none */
    size_t longest, widest; /* rows of a sequence; features of an SAE */
    LlmRun *run;
    SaeRun *sae_run;
    float *target, *recon, *stream, *edited; /* [longest, d_model] */
    float *acts;                             /* [longest, widest] */
    float *logits;                           /* [LOGIT_ROWS, d_vocab] */
    TopFeature *peaks;                       /* [widest] */
} AnalyzeRun;

void analyze_layout(Arena *arena, void *run);

/* A turn of the control: every <image> becomes "Consider the following information: ANSWER ". */
Turn control_turn(Arena *arena, const Turn *turn, const Turn *answer);
/* The group's rows among the first `end` of a sequence; those that it does not have are empty. */
Range group_rows(const Sequence *sequence, Group group, size_t end);
/* All groups' rows x [rows, d_model] of a sequence at the layer's hook_resid_post through its SAE,
 * in one go: a->acts and, with decode, a->recon and a->target. */
void encode_layer(AnalyzeRun *a, const LayerResult *layer, const float *x, size_t rows,
                  bool decode);
/* Adds the statistics of one example's group, `rows` of those from `first` on. */
void measure_group(AnalyzeRun *a, LayerResult *layer, Variant variant, Group group, size_t first,
                   size_t rows);

/* Sum and sum of squares of image tokens, dimension by dimension [d_model]. */
typedef struct Moments {
    double *sum, *squares;
    size_t rows, d_model;
} Moments;

void moments_add(Moments *moments, const float *x, size_t rows);
/* The Gaussian control: out[rows, d_model] of the tokens' mean and variance. */
void gaussian_images(const Moments *moments, Random random, float *out, size_t rows);
/* The permuted control: position p of out[rows, d_model] holds position p of another image, drawn
 * anew for each position from `others` of them; called with each, `rows_of_other` its k-th. */
void permuted_images(Random random, size_t others, size_t k, const float *rows_of_other, float *out,
                     size_t rows, size_t d_model);

/* Adds the losses of one example, up to its first answer, for every layer with an SAE.
 * images [n_image, d_model]; NULL without. */
void loss_sequence(AnalyzeRun *a, const Sequence *sequence, const float *images);
/* Of the sums; zero: rows set to 0, else to their mean. NaN when nothing was lost. */
double loss_recovered(const LossSums *sums, bool zero);

/* The features of the encoded rows, `rows` from `first` on, that are rare enough as far as
 * result->active says, each where it is strongest: how many of a->peaks. */
size_t peak_features(AnalyzeRun *a, const LayerResult *layer, Group g, size_t first, size_t rows);
/* The strongest of a->peaks[n] that are rare enough come first: how many. */
size_t top_features(AnalyzeRun *a, const LayerResult *layer, Group group, size_t n);

double mean_of(double sum, double n); /* NaN of none */
/* The mean over examples; NaN where none was measured. */
double layer_metric(const LayerResult *layer, Metric metric, Group group, Variant variant);

/* Curves over layers: one's own, or those of a published table. */
typedef struct LayerTable {
    size_t n;
    double *layer;                  /* [n], rising */
    double *value[METRICS][GROUPS]; /* [n], NaN where there is none; NULL: no such curve */
} LayerTable;

LayerTable layer_table(Arena *arena, const AnalyzeResult *result);
/* Of the table's curve at a layer; NaN: none. */
double table_value(const LayerTable *table, Metric metric, Group group, double layer);
/* How far apart two tables are where both have the curve; NaN: nowhere. */
double curve_distance(const LayerTable *ours, const LayerTable *theirs, Metric metric, Group group);
/* The layer from which on MSE, sparsity or both of vlm_img are within the factor c; NaN: none. */
double convergence_layer(const LayerTable *table, bool mse, bool sparsity, double c);

#endif

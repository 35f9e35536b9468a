/* sae.h: what a sparse autoencoder computes: encoding, decoding, statistics. sae_load.h opens them.
 * Floor 7. */
#ifndef REFSAE_SAE_H
#define REFSAE_SAE_H

#include "base.h"
#include "hooks.h"
#include "kernels.h"
#include "tensor.h"

typedef enum SaeSource {
    SAE_GEMMASCOPE,
    SAE_SAELENS,
    SAE_SAELENS_OLD,
    SAE_SPARSIFY,
    SAE_DICTIONARY_LEARNING
} SaeSource;
typedef enum SaeAct {
    SAE_RELU,
    SAE_JUMPRELU,
    SAE_TOPK,
    SAE_BATCHTOPK,
    SAE_GATED
} SaeAct;
typedef enum SaeNorm {
    SAE_NORM_NONE,
    SAE_NORM_LAYER,
    SAE_NORM_CONSTANT,
    SAE_NORM_EXPECTED
} SaeNorm;
typedef enum SaeCentre {
    SAE_CENTRE_UNKNOWN,
    SAE_CENTRE_NO,
    SAE_CENTRE_YES
} SaeCentre;

typedef struct Sae {
    SaeSource source;
    SaeAct act;
    SaeNorm norm;
    SaeCentre centre; /* was the residual stream centred for training? */
    /* hook_z: was b_V folded away for training (the SAE sees z - b_V)? */
    SaeCentre fold_value_biases;
    float norm_factor; /* SAE_NORM_EXPECTED: x' = x * norm_factor; 0: open, encoding is refused */
    bool subtract_b_dec;
    bool rescale_by_decoder_norm; /* topk: choice and f by z * |W_dec row| */
    bool prepend_bos;
    size_t d_in, d_sae, k;
    Weight w_enc;
    ptrdiff_t enc_feature, enc_input; /* W_enc(i, j) = data[j * enc_feature + i * enc_input] */
    Weight w_dec;
    ptrdiff_t dec_feature, dec_input; /* W_dec(j, i) = data[j * dec_feature + i * dec_input] */
    /* Vectors are widened when opened (F32, aligned); absent: NULL data. A threshold is [d_sae],
     * of one number too. */
    Weight b_enc, b_dec, threshold;
    Weight b_gate, b_mag;  /* gated */
    const float *mag_gain; /* gated: exp(r_mag) */
    const float *dec_norm; /* [d_sae]: L2 norms of decoder rows, when rescale_by_decoder_norm */
    HookKind hook;
    int layer;
    bool hook_known;
    double average_l0; /* GemmaScope, from the path; NaN: unknown */
    bool width_16k;    /* GemmaScope, from the path */
    const char *path, *architecture, *model_name;
    TensorStore store;
    Arena *arena; /* the caller's: widened vectors, texts */
} Sae;

/* Scratch for rows of up to max_rows; from the run's arena. */
typedef struct SaeRun SaeRun;
SaeRun *sae_run_layout(const Compute *compute, size_t d_in, size_t d_sae, size_t max_rows,
                       Arena *arena);

/* x[rows, d_in] -> pre[rows, d_sae] (may be NULL), acts[rows, d_sae]. Centres the rows first if
 * sae->centre says yes, and keeps their normalisation in run for sae_decode. x must not overlap the
 * outputs. A run serves any SAE of at most its d_in and d_sae. Results that are not finite are
 * STATUS_INPUT naming the SAE. */
void sae_encode(const Sae *sae, SaeRun *run, const float *x, float *pre, float *acts, size_t rows);
/* acts -> recon[rows, d_in], visiting active features only (feature index ascending: an element is
 * the chain of fmaf over active features, then b_dec, then the normalisation undone). */
void sae_decode(const Sae *sae, SaeRun *run, const float *acts, float *recon, size_t rows);

/* Fails where the factor of SAE_NORM_EXPECTED is open, naming its option; sae_encode does too. */
void sae_norm_check(const Sae *sae);

/* After sae_encode: how the normalisation of `row` is undone, x^ = factor * (f W_dec + b_dec) +
 * shift. */
void sae_row_back(const Sae *sae, const SaeRun *run, size_t row, double *factor, double *shift);

/* What recon is to be compared with: x, without each row's mean if the SAE saw a centred stream. */
void sae_target(const Sae *sae, const Compute *compute, float *target, const float *x, size_t rows);

/* ---- statistics over rows: sums in binary64, rows then columns ascending ---- */
typedef struct SaeStats {
    double mse;          /* mean over rows and dimensions of (x - recon)^2 */
    double fvu;          /* sum |x - recon|^2 / sum |x - mean|^2; NaN when all rows are equal */
    double cosine;       /* mean over rows */
    double norm;         /* mean |x| */
    double l0, sparsity; /* mean count of active features; / d_sae */
    size_t rows;
} SaeStats;
SaeStats sae_stats(const float *x, const float *recon, const float *acts, size_t rows, size_t d_in,
                   size_t d_sae);

#endif

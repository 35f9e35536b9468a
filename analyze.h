/* analyze.h: the layer analysis of image tokens through the language model's SAEs. Floor 3
 * (Mapping, arXiv 2506.11976, the sections on sparse-autoencoder probing and their three figures).
 */
#ifndef REFSAE_ANALYZE_H
#define REFSAE_ANALYZE_H

#include "adapter.h"
#include "sae_load.h"

typedef struct AnalyzeOptions {
    const char *llm, *vision, *adapter, *saes, *data, *images, *out;
    const char *layers;       /* "0,4-9"; NULL: every layer that has an SAE */
    const char *descriptions; /* NULL: features are reported by number */
    const char
        *judge; /* "lexical", a file of verdicts, or NULL: lexical if there are descriptions */
    const char *compare; /* a table like weights/mapping_published.csv */
    const char *compare_name;
    size_t examples, loss_examples;
    double max_frequency, max_density, converge;
    bool canonical, strict;
    ImageText image_text;
    SaeOptions sae;
    uint64_t seed;
} AnalyzeOptions;

/* Bytes of a run's one block for sequences of `longest` rows and SAEs of up to `widest` features.
 */
size_t analyze_memory(const Compute *compute, const Llm *llm, size_t longest, size_t widest);
void analyze_run(const Compute *compute, const AnalyzeOptions *options, const Console *console);

/* ---- what the passes leave for the report (report.c writes it) ----
 */

typedef enum Group {
    GROUP_IMG,
    GROUP_IMGTEXT,
    GROUP_TEXT,
    GROUPS
} Group;
typedef enum Variant {
    VARIANT_CLEAN,
    VARIANT_PERMUTED,
    VARIANT_GAUSSIAN,
    VARIANTS
} Variant;

extern const char *const group_names[GROUPS];     /* vlm_img, vlm_imgtext, llm_text */
extern const char *const variant_names[VARIANTS]; /* "", permuted, gaussian */

typedef struct Sums { /* over examples, in their order */
    double mse, sparsity, l0, cosine, norm, fvu;
    size_t n, n_fvu;
} Sums;

typedef struct LossSums { /* mean cross-entropy of the first answer's tokens, summed over examples
                           */
    double clean, sae, zero, mean;
    size_t n;
} LossSums;

typedef struct LayerResult {
    int layer;
    const Sae *sae;
    Sums sums[VARIANTS][GROUPS];
    LossSums loss[GROUPS];
    size_t matched[GROUPS], judged[GROUPS];
} LayerResult;

typedef struct AnalyzeResult {
    const AnalyzeOptions *options;
    const Console *console;
    LayerResult *layers;
    size_t n_layers, examples;
    const char *const *failures; /* why examples were left out */
    size_t n_failures;
    bool judged;
} AnalyzeResult;

/* loss recovered = (L_abl - L_sae) / (L_abl - L_clean) of the sums; NaN when nothing was lost. */
double loss_recovered(const LossSums *sums, bool zero);
/* The first layer from which MSE and sparsity of vlm_img stay within the factor of llm_text's; -1:
 * none. */
int convergence_layer(const AnalyzeResult *result, bool mse, bool sparsity);

#endif

/* adapter.c: how image tokens enter a frozen language model, are trained to be read there, and how
 * far they have become language (Mapping, arXiv 2506.11976).
 *
 *   image -> CLIP -> features [P, d_vit] -> adapter -> [P, d_model]
 *                                                          |
 *   row 0           <bos>                                  |
 *   rows 1 .. P     the image: set at blocks.0.hook_resid_pre, after the embedding scale
 *   rows P + 1 ..   <start_of_turn>user\n<image>\n...<end_of_turn>\n<start_of_turn>model\n...
 *
 * Easy to get wrong: the adapter's output is not multiplied by sqrt(d_model); the literal text
 * <image> stays in the human turn; a row is predicted by the row before it; an answer's tokens are
 * those that begin at or after its first byte, its <end_of_turn> included. */
#include "adapter.h"
#include "elementary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const group_names[GROUPS] = {"vlm_img", "vlm_imgtext", "llm_text"};
const char *const variant_names[VARIANTS] = {"", "permuted", "gaussian"};

enum {
    LOGIT_ROWS = 256 /* rows of logits that are held at once: fewer read the head more often */
};

/* ---- the sequence ---- */

typedef struct Rendered {
    char *text;
    size_t length;
    Range *answers; /* bytes, from the first of a model turn to the end of its <end_of_turn> */
    size_t n_answers;
} Rendered;

static void render_bytes(Rendered *out, const char *bytes, size_t length) {
    memcpy(out->text + out->length, bytes, length);
    out->length += length;
}

/* Gemma's chat form, contents as they stand. */
static Rendered render_turns(const Turn *turns, size_t count, int image_text, Arena *arena) {
    static const char user[] = "<start_of_turn>user\n", model[] = "<start_of_turn>model\n",
                      end[] = "<end_of_turn>\n";
    size_t size = sizeof model;
    for (size_t i = 0; i < count; i++) {
        size += sizeof model + turns[i].length + sizeof end;
    }
    Rendered out = {.text = arena_alloc(arena, size, 1),
                    .answers = arena_alloc(arena, count + 1, sizeof(Range))};
    for (size_t i = 0; i < count; i++) {
        Turn turn =
            image_text == IMAGE_TEXT_DROP ? turn_replace_image(arena, &turns[i], "", 0) : turns[i];
        render_bytes(&out, turn.model ? model : user,
                     turn.model ? sizeof model - 1 : sizeof user - 1);
        size_t begin = out.length;
        render_bytes(&out, turn.text, turn.length);
        render_bytes(&out, end, sizeof end - 1);
        if (turn.model) {
            out.answers[out.n_answers++] = (Range){begin, out.length - 1};
        }
    }
    if (count > 0 && !turns[count - 1].model) {
        render_bytes(&out, model, sizeof model - 1);
    }
    return out;
}

/* ids = [bos] [-1, n_image times] [the rendered text, tokenized whole, once]; an answer's rows are
 * those of the tokens that begin at or after its first byte and before its end. */
Sequence vlm_sequence(const Vlm *vlm, const Turn *turns, size_t count, bool image, size_t limit,
                      Arena *arena) {
    if (vlm->llm.config.bos < 0) {
        fail(STATUS_INPUT, "%s: config.json names no bos_token_id", vlm->llm.path);
    }
    Arena *scratch = arena_new();
    Rendered text = render_turns(turns, count, vlm->image_text, scratch);
    Tokens tokens = tokenizer_encode(vlm->tokenizer, text.text, text.length, false, scratch);
    size_t kept = limit > 0 && tokens.count + 1 > limit ? limit - 1 : tokens.count;
    Sequence s = {.n_image = image ? vlm->vit.config.n_patches : 0};
    size_t first = 1 + s.n_image, token = 0;
    s.rows = s.prompt_rows = first + kept;
    s.ids = arena_alloc(arena, s.rows, sizeof(int32_t));
    s.answers = arena_alloc(arena, text.n_answers + 1, sizeof(Range));
    s.ids[0] = vlm->llm.config.bos;
    for (size_t r = 1; r < s.rows; r++) {
        s.ids[r] = r < first ? -1 : tokens.id[r - first];
    }
    for (size_t a = 0; a < text.n_answers; a++) { /* from bytes to rows */
        while (token < kept && tokens.begin[token] < text.answers[a].begin) {
            token++;
        }
        size_t begin = token;
        while (token < kept && tokens.begin[token] < text.answers[a].end) {
            token++;
        }
        s.prompt_rows = a == 0 ? first + begin : s.prompt_rows;
        if (token > begin) {
            s.answers[s.n_answers++] = (Range){first + begin, first + token};
        }
    }
    arena_free(scratch);
    return s;
}

/* ---- image insertion: blocks.0.hook_resid_pre[1 .. P] = x W^T + b ---- */

static bool image_hook_wants(void *user, HookKind kind, int layer, bool gradient) {
    const ImageHook *hook = user;
    const float *mine = gradient ? hook->gradient : hook->images;
    return (mine != NULL && kind == HOOK_RESID_PRE && layer == 0) ||
           hooks_want(hook->next, kind, layer, gradient);
}

/* Forward: rows 1 .. P of each sequence become y = x W^T + b. Backward: their gradient is dL/dy. */
static void image_hook_call(void *user, const HookPoint *point, float *data) {
    const ImageHook *hook = user;
    size_t block = hook->n_image * hook->d_model;
    if (point->kind == HOOK_RESID_PRE && point->layer == 0) {
        for (size_t s = 0; s < hook->batch->n_sequences; s++) {
            float *rows = data + (hook->batch->start[s] + 1) * hook->d_model;
            if (point->gradient && hook->gradient != NULL) {
                memcpy(hook->gradient + s * block, rows, block * sizeof(float));
            } else if (!point->gradient && hook->images != NULL) {
                memcpy(rows, hook->images + s * block, block * sizeof(float));
            }
        }
    }
    hooks_show(hook->next, *point, data);
}

/* Insertion before what `next` sees or changes. */
Hooks image_hooks(ImageHook *hook) {
    return (Hooks){image_hook_call, image_hook_wants, hook};
}

/* ---- the adapter ---- */

void adapter_layout(Adapter *adapter, size_t d_llm, size_t d_vit, Arena *arena) {
    float *all = arena_floats(arena, d_llm, d_vit + 1);
    *adapter = (Adapter){all, all != NULL ? all + d_llm * d_vit : NULL, d_llm, d_vit};
}

/* W, b ~ U(-1/sqrt(d_vit), 1/sqrt(d_vit)), as torch.nn.Linear begins. */
void adapter_init(Adapter *adapter, uint64_t seed) {
    Random random = random_start(seed, RANDOM_ADAPTER_INIT);
    float bound = 1.0f / sqrtf((float)adapter->d_vit);
    for (size_t i = 0; i < adapter_size(adapter); i++) {
        adapter->weight[i] = (2.0f * random_uniform(&random) - 1.0f) * bound;
    }
}

/* y = x W^T + b */
void adapter_forward(const Compute *compute, const Adapter *adapter, const float *x, float *y,
                     size_t rows) {
    Matrix w = {.w = {adapter->weight, DTYPE_F32},
                .bias = {adapter->bias, DTYPE_F32},
                .row = (ptrdiff_t)adapter->d_vit,
                .col = 1,
                .out = adapter->d_llm,
                .in = adapter->d_vit};
    product_run_one(compute, product_nt(y, x, &w, rows));
}

/* ---- loss over turns and its gradient ---- */

/* losses[r] = -log softmax(logits[head_rows[r]])[targets[r]] and, weighted, its gradient back
 * through the head; so many rows at once as their logits have room for. */
static void head_losses(TrainRun *t, size_t n) {
    bool cap = t->options->softcap;
    llm_backward_start(t->run);
    for (size_t from = 0; from < n; from += LOGIT_ROWS) {
        size_t rows = n - from < LOGIT_ROWS ? n - from : LOGIT_ROWS;
        llm_logits(t->run, t->head_rows + from, rows, cap, t->logits, NULL);
        cross_entropy_rows(t->vlm->compute, t->losses + from, t->dlogits, t->logits,
                           t->targets + from, t->weights + from, rows, t->vlm->llm.config.d_vocab);
        llm_logits_backward(t->run, t->head_rows + from, rows, cap, t->logits, t->dlogits, NULL);
    }
}

/* Of one example with T model turns, |t| the tokens of turn t, each predicted by the row before it:
 *   L = 1/T sum_t 1/|t| sum_{r in t} -log softmax(logits[r - 1])[id_r]
 *   dL/dlogits[r - 1] = 1/(T |t|) (softmax(logits[r - 1]) - one-hot(id_r))
 * An example without a turn has loss 0. */
static void train_head(TrainRun *t, size_t count) {
    size_t n = 0, at = 0; /* at: its first row among those that are read */
    for (size_t e = 0; e < count; e++) {
        const Sequence *s = &t->sequence[e];
        size_t skipped = s->prompt_rows - 1; /* see read_from */
        for (size_t a = 0; a < s->n_answers; a++) {
            Range turn = s->answers[a];
            double share = 1.0 / ((double)s->n_answers * (double)(turn.end - turn.begin));
            for (size_t r = turn.begin; r < turn.end; r++, n++) {
                t->head_rows[n] = at + r - 1 - skipped;
                t->targets[n] = s->ids[r];
                t->weights[n] = (float)share;
            }
        }
        at += s->rows - skipped;
    }
    head_losses(t, n);
    const double *row_loss = t->losses;
    for (size_t e = 0; e < count; e++) {
        const Sequence *s = &t->sequence[e];
        double turns = 0.0;
        t->found[e] = (TrainLoss){0.0, 0};
        for (size_t a = 0; a < s->n_answers; a++) {
            Range turn = s->answers[a];
            double sum = 0.0;
            for (size_t r = turn.begin; r < turn.end; r++) {
                sum += *row_loss++;
            }
            turns += sum / (double)(turn.end - turn.begin);
            t->found[e].tokens += turn.end - turn.begin;
        }
        t->found[e].loss = s->n_answers > 0 ? turns / (double)s->n_answers : 0.0;
    }
}

/* Only the adapter moves; the language model is run backward to its image rows y = x W^T + b. */
void train_micro(TrainRun *t, size_t count) {
    const Vlm *vlm = t->vlm;
    size_t patches = vlm->vit.config.n_patches, rows = 0;
    for (size_t e = 0; e < count; e++) {
        t->start[e] = rows;
        t->read_from[e] = rows + t->sequence[e].prompt_rows - 1;
        memcpy(t->ids + rows, t->sequence[e].ids, t->sequence[e].rows * sizeof(int32_t));
        rows += t->sequence[e].rows;
    }
    t->start[count] = rows;
    LlmBatch batch = {
        .n_sequences = count, .start = t->start, .ids = t->ids, .read_from = t->read_from};
    ImageHook image = {&batch, patches, vlm->llm.config.d_model, t->images, t->dimages, NULL};
    Hooks hooks = image_hooks(&image);
    adapter_forward(vlm->compute, &vlm->adapter, t->features, t->images, count * patches);
    llm_forward(t->run, &batch, 0, vlm->llm.config.n_layers, NULL, &hooks);
    train_head(t, count);
    llm_backward(t->run, 0, &hooks);
}

/* Of one example:   dW[d_llm, d_vit] = dy^T x     db = sum of dy     over its image rows */
void train_gradient(TrainRun *t, size_t e) {
    Adapter *g = &t->grad;
    size_t patches = t->vlm->vit.config.n_patches, d = g->d_llm;
    const float *dy = t->dimages + e * patches * d, *x = t->features + e * patches * g->d_vit;
    memset(g->weight, 0, d * g->d_vit * sizeof(float));
    product_run_one(t->vlm->compute, product_tn(g->weight, dy, x, patches, d, g->d_vit));
    for (size_t i = 0; i < d; i++) {
        double sum = 0.0;
        for (size_t r = 0; r < patches; r++) {
            sum += (double)dy[r * d + i];
        }
        g->bias[i] = (float)sum;
    }
}

/* ---- schedule and step ---- */

/* Linear warm-up over w = floor(ratio S) of S steps, then half a cosine from lr to min:
 *   lr_s = lr (s + 1) / w                                          for s < w
 *   lr_s = min + (lr - min) (1 + cos pi (s - w + 1) / (S - w)) / 2   from there on */
double train_lr(const VlmOptions *options, uint64_t s, uint64_t steps) {
    double w = floor(options->warmup * (double)steps);
    if ((double)s < w) {
        return options->lr * ((double)s + 1.0) / w;
    }
    double turn = ((double)s - w + 1.0) / ((double)steps - w);
    return options->min_lr + (options->lr - options->min_lr) * (1.0 + cos_pi_f64(turn)) / 2.0;
}

/* In the order of the examples: neither where they run, nor how many at once, changes a bit. */
void train_add(TrainRun *t) {
    for (size_t i = 0; i < adapter_size(&t->grad); i++) {
        t->sum[i] += (double)t->grad.weight[i];
    }
}

/* g = sum of the examples' gradients / n, then AdamW as torch has it by default. */
void train_update(TrainRun *t, size_t count, double lr, uint64_t step) {
    static const double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
    size_t n = adapter_size(&t->grad);
    for (size_t i = 0; i < n; i++) {
        t->grad.weight[i] = (float)(t->sum[i] / (double)count);
        t->sum[i] = 0.0;
    }
    adamw_step(t->vlm->compute, t->vlm->adapter.weight, t->grad.weight, t->m.weight, t->v.weight, n,
               lr, beta1, beta2, eps, weight_decay, step);
}

void train_layout(Arena *arena, void *run) {
    TrainRun *t = run;
    size_t d_llm = t->vlm->llm.config.d_model, vocab = t->vlm->llm.config.d_vocab,
           d_vit = t->vlm->vit.config.d_model, patches = t->vlm->vit.config.n_patches;
    size_t longest = patches + t->options->tokens, rows = t->micro * longest;
    LlmPlan plan = {.max_rows = rows,
                    .max_sequence = longest,
                    .max_sequences = t->micro,
                    .max_logits = LOGIT_ROWS,
                    .backward = true};
    t->run = llm_run_layout(&t->vlm->llm, t->vlm->compute, &plan, arena);
    adapter_layout(&t->vlm->adapter, d_llm, d_vit, arena);
    adapter_layout(&t->grad, d_llm, d_vit, arena);
    adapter_layout(&t->m, d_llm, d_vit, arena);
    adapter_layout(&t->v, d_llm, d_vit, arena);
    t->sum = arena_alloc(arena, adapter_size(&t->grad), sizeof(double));
    t->found = arena_alloc(arena, t->micro, sizeof(TrainLoss));
    t->sequence = arena_alloc(arena, t->micro, sizeof(Sequence));
    t->features = arena_floats(arena, t->micro * patches, d_vit);
    t->images = arena_floats(arena, t->micro * patches, d_llm);
    t->dimages = arena_floats(arena, t->micro * patches, d_llm);
    t->ids = arena_alloc(arena, rows, sizeof(int32_t));
    t->start = arena_alloc(arena, t->micro + 1, sizeof(size_t));
    t->read_from = arena_alloc(arena, t->micro, sizeof(size_t));
    t->head_rows = arena_alloc(arena, rows, sizeof(size_t));
    t->targets = arena_alloc(arena, rows, sizeof(int32_t));
    t->weights = arena_floats(arena, rows, 1);
    t->losses = arena_alloc(arena, rows, sizeof(double));
    t->logits = arena_floats(arena, LOGIT_ROWS, vocab);
    t->dlogits = t->options->softcap ? arena_floats(arena, LOGIT_ROWS, vocab) : t->logits;
}

size_t train_plan(TrainRun *t) {
    static const size_t most = (size_t)1 << 30;
    t->micro = t->options->batch;
    return arena_fit(train_layout, t, &t->micro, most);
}

/* ---- sampling ---- */

typedef struct Ranked {
    float logit;
    int32_t id;
} Ranked;

/* Falling logit, and among equals rising id. */
static int by_logit(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->logit != y->logit) {
        return x->logit > y->logit ? -1 : 1;
    }
    return (x->id > y->id) - (x->id < y->id);
}

static int by_id(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* How many of n tokens in falling order top-p keeps: going up from the least probable, those
 * are dropped whose sum of probabilities stays within 1 - p; never all. */
static size_t top_p_count(const Ranked *ranked, size_t n, float top_p) {
    double total = 0, tail = 0;
    for (size_t i = 0; i < n; i++) {
        total += (double)exp_f32(ranked[i].logit - ranked[0].logit);
    }
    while (n > 1) {
        tail += (double)exp_f32(ranked[n - 1].logit - ranked[0].logit) / total;
        if (tail > 1 - (double)top_p) {
            break;
        }
        n--;
    }
    return n;
}

int32_t token_sample(const float *logits, size_t d_vocab, const Sampling *sampling, Random *random,
                     Arena *arena) {
    size_t best = 0, n = d_vocab;
    for (size_t i = 0; i < d_vocab; i++) {
        if (isnan(logits[i])) {
            fail(STATUS_INPUT, "the logit of token %zu is not a number", i);
        }
        best = logits[i] > logits[best] ? i : best;
    }
    int32_t id = (int32_t)best;
    float temperature = (float)sampling->temperature;
    if (!(temperature > 0) || !isfinite(logits[best])) {
        return id;
    }
    Ranked *ranked = arena_alloc(arena, n, sizeof *ranked);
    for (size_t i = 0; i < n; i++) {
        ranked[i] = (Ranked){logits[i] / temperature, (int32_t)i};
    }
    bool chosen = (sampling->top_k > 0 && sampling->top_k < n) || sampling->top_p < 1;
    if (chosen) {
        qsort(ranked, n, sizeof *ranked, by_logit);
    }
    if (sampling->top_k > 0 && sampling->top_k < n) { /* equals of the last one stay */
        float least = ranked[sampling->top_k - 1].logit;
        for (n = sampling->top_k; n < d_vocab && ranked[n].logit == least; n++) {
        }
    }
    if (sampling->top_p < 1) {
        n = top_p_count(ranked, n, (float)sampling->top_p);
    }
    if (chosen) {
        qsort(ranked, n, sizeof *ranked, by_id);
    }

    float top = logits[best] / temperature;
    double total = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        total += (double)exp_f32(ranked[i].logit - top);
    }
    double point = (double)random_uniform(random) * total;
    for (size_t i = 0; i < n; i++) {
        double p = (double)exp_f32(ranked[i].logit - top);
        sum += p;
        id = p > 0 ? ranked[i].id : id;
        if (sum > point) {
            break;
        }
    }
    return id;
}

/* ---- the layer analysis: groups of positions ----
 * For each example two prompts, both up to the model's turn:
 *   image    <bos> [image rows = vlm_img] [chat text = vlm_imgtext]
 *   control  <bos> [chat text, <image> replaced by the answer = llm_text]
 * and at blocks.L.hook_resid_post the layer's own SAE on each group's rows. */

/* <image> -> "Consider the following information: ANSWER " */
Turn control_turn(Arena *arena, const Turn *turn, const Turn *answer) {
    static const char lead[] = "Consider the following information: ";
    size_t length = sizeof lead + answer->length; /* a space in place of lead's 0 */
    char *text = arena_alloc(arena, length, 1);
    memcpy(text, lead, sizeof lead - 1);
    memcpy(text + sizeof lead - 1, answer->text, answer->length);
    text[length - 1] = ' ';
    return turn_replace_image(arena, turn, text, length);
}

/* vlm_img: rows 1 .. P; vlm_imgtext: from P + 1; llm_text: from 1 of a sequence without image */
Range group_rows(const Sequence *sequence, Group group, size_t end) {
    size_t after = 1 + sequence->n_image;
    bool control = sequence->n_image == 0;
    if (group == GROUP_IMG) {
        return (Range){1, after};
    }
    return control == (group == GROUP_TEXT) && end > after ? (Range){after, end} : (Range){0, 0};
}

/* f = encode(x) and x^ = decode(f), of all groups' rows in one go: W is read once. */
void encode_layer(AnalyzeRun *a, const LayerResult *layer, const float *x, size_t rows,
                  bool decode) {
    sae_encode(layer->sae, a->sae_run, x, NULL, a->acts, rows);
    if (decode) {
        sae_decode(layer->sae, a->sae_run, a->acts, a->recon, rows);
        sae_target(layer->sae, a->compute, a->target, x, rows);
    }
}

/* Of the rows x of one example:
 *   MSE = mean over rows and dimensions of (x - x^)^2       sparsity = L0 / d_sae
 *   FVU = sum |x - x^|^2 / sum |x - mean(x)|^2              cosine = mean of x.x^ / (|x| |x^|)
 *   norm = mean |x|
 * (sae.c: sae_stats); the groups' figures are means over examples. A feature is active in an
 * example if it is anywhere in the group. */
void measure_group(AnalyzeRun *a, LayerResult *layer, Variant variant, Group group, size_t first,
                   size_t rows) {
    const Sae *sae = layer->sae;
    const float *acts = a->acts + first * sae->d_sae;
    Sums *sums = &layer->sums[variant][group];
    SaeStats stats = sae_stats(a->target + first * sae->d_in, a->recon + first * sae->d_in, acts,
                               rows, sae->d_in, sae->d_sae);
    sums->mse += stats.mse;
    sums->sparsity += stats.sparsity;
    sums->l0 += stats.l0;
    sums->cosine += stats.cosine;
    sums->norm += stats.norm;
    sums->n++;
    if (isfinite(stats.fvu)) { /* one row alone has no variance */
        sums->fvu += stats.fvu;
        sums->n_fvu++;
    }
    for (size_t j = 0; j < sae->d_sae && variant == VARIANT_CLEAN; j++) {
        bool active = false;
        for (size_t r = 0; r < rows && !active; r++) {
            active = acts[r * sae->d_sae + j] > 0.0f;
        }
        layer->active[group][j] += active;
    }
}

/* ---- controls: image rows that no longer belong together, and noise ---- */

/* Each position p draws one of the `others`; where that is the k-th, out[p] is its row p. */
void permuted_images(Random random, size_t others, size_t k, const float *rows_of_other, float *out,
                     size_t rows, size_t d_model) {
    for (size_t p = 0; p < rows; p++) {
        if (random_below(&random, others) == k) {
            memcpy(out + p * d_model, rows_of_other + p * d_model, d_model * sizeof(float));
        }
    }
}

/* sum_i += x[r, i],   squares_i += x[r, i]^2 */
void moments_add(Moments *moments, const float *x, size_t rows) {
    size_t d = moments->d_model;
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < d; i++) {
            double value = (double)x[r * d + i];
            moments->sum[i] += value;
            moments->squares[i] += value * value;
        }
    }
    moments->rows += rows;
}

/* out[r, i] = mean_i + sqrt(var_i) z,   z standard normal,   var_i = mean of x_i^2 - mean_i^2 */
void gaussian_images(const Moments *moments, Random random, float *out, size_t rows) {
    size_t d = moments->d_model;
    double count = (double)moments->rows;
    float z[2];
    for (size_t k = 0; k < rows * d; k++) {
        double mean = moments->sum[k % d] / count;
        double variance = moments->squares[k % d] / count - mean * mean;
        if (k % 2 == 0) {
            random_normals(&random, z);
        }
        out[k] = (float)(mean + sqrt(variance > 0.0 ? variance : 0.0) * (double)z[k % 2]);
    }
}

/* ---- loss recovered ---- */

/* Mean cross-entropy of the first answer's tokens, from the stream entering layer `first`. */
static double answer_loss(AnalyzeRun *a, const Sequence *s, const LlmBatch *batch, size_t first,
                          const float *stream) {
    Range answer = s->answers[0];
    double sum = 0.0;
    llm_forward(a->run, batch, first, a->llm->config.n_layers, stream, NULL);
    for (size_t from = answer.begin; from < answer.end; from += LOGIT_ROWS) {
        size_t n = answer.end - from < LOGIT_ROWS ? answer.end - from : LOGIT_ROWS;
        size_t rows[LOGIT_ROWS];
        double losses[LOGIT_ROWS];
        for (size_t i = 0; i < n; i++) {
            rows[i] = from + i - 1;
        }
        llm_logits(a->run, rows, n, true, a->logits, NULL);
        cross_entropy_rows(a->compute, losses, NULL, a->logits, s->ids + from, NULL, n,
                           a->llm->config.d_vocab);
        for (size_t i = 0; i < n; i++) {
            sum += losses[i];
        }
    }
    return sum / (double)(answer.end - answer.begin);
}

/* L_sae, L_zero, L_mean: the loss when the group's rows x of the stream behind the layer's block
 * become decode(encode(x)), 0, or their mean over the rows. */
static void loss_group(AnalyzeRun *a, LayerResult *layer, LossSums *sums, const Sequence *s,
                       const LlmBatch *batch, Range rows) {
    size_t d = a->llm->config.d_model, n = rows.end - rows.begin, next = (size_t)layer->layer + 1;
    const float *x = a->stream + rows.begin * d;
    float *edit = a->edited + rows.begin * d;
    memcpy(a->edited, a->stream, s->rows * d * sizeof(float));
    sae_encode(layer->sae, a->sae_run, x, NULL, a->acts, n);
    sae_decode(layer->sae, a->sae_run, a->acts, edit, n);
    sums->sae += answer_loss(a, s, batch, next, a->edited);
    memset(edit, 0, n * d * sizeof(float));
    sums->zero += answer_loss(a, s, batch, next, a->edited);
    for (size_t i = 0; i < d; i++) {
        double sum = 0.0;
        for (size_t r = 0; r < n; r++) {
            sum += (double)x[r * d + i];
        }
        for (size_t r = 0; r < n; r++) {
            edit[r * d + i] = (float)(sum / (double)n);
        }
    }
    sums->mean += answer_loss(a, s, batch, next, a->edited);
}

/* The stream runs on block by block, so that each layer's losses begin behind its own block:
 * L_clean is the loss without any edit. */
void loss_sequence(AnalyzeRun *a, const Sequence *s, const float *images) {
    LlmBatch batch = {.n_sequences = 1, .start = (size_t[]){0, s->rows}, .ids = s->ids};
    size_t layers = a->llm->config.n_layers, d = a->llm->config.d_model;
    ImageHook image = {&batch, s->n_image, d, images, NULL, NULL};
    Hooks hooks = image_hooks(&image);
    double clean = 0.0;
    if (s->n_answers == 0) {
        return;
    }
    llm_forward(a->run, &batch, 0, 1, NULL, &hooks);
    for (size_t l = 0; l < layers; l++) {
        LayerResult *layer = a->of_layer[l];
        memcpy(a->stream, llm_resid(a->run), s->rows * d * sizeof(float)); /* behind block l */
        clean = l == 0 ? answer_loss(a, s, &batch, 1, a->stream) : clean;
        for (Group g = 0; g < GROUPS && layer != NULL; g++) {
            Range rows = group_rows(s, g, s->prompt_rows);
            if (rows.end > rows.begin) {
                layer->loss[g].clean += clean;
                layer->loss[g].n++;
                loss_group(a, layer, &layer->loss[g], s, &batch, rows);
            }
        }
        if (l + 1 < layers) {
            llm_forward(a->run, &batch, l + 1, l + 2, a->stream, NULL);
        }
    }
}

/* (L_abl - L_sae) / (L_abl - L_clean), of sums over examples */
double loss_recovered(const LossSums *sums, bool zero) {
    double ablated = zero ? sums->zero : sums->mean;
    return sums->n > 0 && ablated != sums->clean ? (ablated - sums->sae) / (ablated - sums->clean)
                                                 : NAN;
}

/* ---- features that are rare enough, the strongest first ---- */

/* Left out: features active in the group in a larger share of the examples than max_frequency,
 * features that Neuronpedia found active in a larger share of tokens than max_density, and where
 * there are descriptions those that have none. */
static bool left_out(const AnalyzeResult *result, const LayerResult *layer, Group group, size_t j) {
    const Descriptions *d = &layer->descriptions;
    return (double)layer->active[group][j] / (double)result->examples >
               result->options->max_frequency ||
           (d->text != NULL &&
            (d->text[j] == NULL || (double)d->density[j] > result->options->max_density));
}

/* Each feature that is rare enough where it is strongest: peaks[0 .. n), by rising number. */
size_t peak_features(AnalyzeRun *a, const LayerResult *layer, Group g, size_t first, size_t rows) {
    size_t d_sae = layer->sae->d_sae, n = 0;
    const float *acts = a->acts + first * d_sae;
    for (size_t j = 0; j < d_sae; j++) {
        a->peaks[j] = (TopFeature){(uint32_t)j, 0, 0.0f};
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t j = 0; j < d_sae; j++) {
            float f = acts[r * d_sae + j];
            if (f > a->peaks[j].activation) {
                a->peaks[j] = (TopFeature){(uint32_t)j, (uint32_t)r, f};
            }
        }
    }
    for (size_t j = 0; j < d_sae; j++) {
        a->peaks[n] = a->peaks[j];
        n += a->peaks[j].activation > 0.0f && !left_out(a->result, layer, g, j);
    }
    return n;
}

static int by_activation(const void *a, const void *b) {
    const TopFeature *x = a, *y = b;
    int order = (x->activation < y->activation) - (x->activation > y->activation);
    order = order != 0 ? order : (x->row > y->row) - (x->row < y->row);
    return order != 0 ? order : (x->feature > y->feature) - (x->feature < y->feature);
}

/* The first --features distinct features, walking down all activations f[r, j] of the rows; of
 * equal activations the earlier row, then the lower j. */
size_t top_features(AnalyzeRun *a, const LayerResult *layer, Group group, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        a->peaks[kept] = a->peaks[i];
        kept += !left_out(a->result, layer, group, a->peaks[i].feature);
    }
    qsort(a->peaks, kept, sizeof *a->peaks, by_activation);
    return kept < a->result->options->features ? kept : a->result->options->features;
}

/* ---- curves over layers ---- */

double mean_of(double sum, double n) {
    return n > 0.0 ? sum / n : NAN;
}

double layer_metric(const LayerResult *layer, Metric metric, Group group, Variant variant) {
    const Sums *sums = &layer->sums[variant][group];
    return metric == METRIC_MSE        ? mean_of(sums->mse, sums->n)
           : metric == METRIC_SPARSITY ? mean_of(sums->sparsity, sums->n)
           : variant != VARIANT_CLEAN
               ? NAN
               : mean_of((double)layer->matched[group], (double)layer->judged[group]);
}

LayerTable layer_table(Arena *arena, const AnalyzeResult *result) {
    LayerTable table = {.n = result->n_layers};
    table.layer = arena_alloc(arena, table.n, sizeof(double));
    for (Metric m = 0; m < METRICS; m++) {
        for (Group g = 0; g < GROUPS; g++) {
            table.value[m][g] = arena_alloc(arena, table.n, sizeof(double));
            for (size_t i = 0; i < table.n; i++) {
                table.layer[i] = result->layers[i].layer;
                table.value[m][g][i] = layer_metric(&result->layers[i], m, g, VARIANT_CLEAN);
            }
        }
    }
    return table;
}

double table_value(const LayerTable *table, Metric metric, Group group, double layer) {
    const double *values = table->value[metric][group];
    for (size_t i = 0; i < table->n && values != NULL; i++) {
        if (table->layer[i] == layer) {
            return values[i];
        }
    }
    return NAN;
}

/* Mean over layers of |log10(ours / theirs)|; for the match rate of |ours - theirs|. */
double curve_distance(const LayerTable *ours, const LayerTable *theirs, Metric metric,
                      Group group) {
    double sum = 0.0, n = 0.0;
    bool ratio = metric != METRIC_MATCH;
    for (size_t i = 0; i < ours->n; i++) {
        double a = table_value(ours, metric, group, ours->layer[i]);
        double b = table_value(theirs, metric, group, ours->layer[i]);
        if (isfinite(a) && isfinite(b) && (!ratio || (a > 0.0 && b > 0.0))) {
            sum += ratio ? fabs((double)log_f32((float)(a / b))) / 2.302585092994046 : fabs(a - b);
            n++;
        }
    }
    return mean_of(sum, n);
}

/* vlm_img <= c llm_text   and   llm_text <= c vlm_img */
static bool within_factor(const LayerTable *table, Metric metric, double layer, double c) {
    double image = table_value(table, metric, GROUP_IMG, layer);
    double text = table_value(table, metric, GROUP_TEXT, layer);
    return image <= c * text && text <= c * image;
}

/* The convergence layer: the first from which, to the last, image tokens stay within a factor c of
 * the control in MSE, in sparsity, or in both. */
double convergence_layer(const LayerTable *table, bool mse, bool sparsity, double c) {
    double found = NAN;
    for (size_t i = table->n; i-- > 0;) {
        double layer = table->layer[i];
        if ((mse && !within_factor(table, METRIC_MSE, layer, c)) ||
            (sparsity && !within_factor(table, METRIC_SPARSITY, layer, c))) {
            break;
        }
        found = layer;
    }
    return found;
}

void analyze_layout(Arena *arena, void *run) {
    AnalyzeRun *a = run;
    size_t d = a->llm->config.d_model;
    LlmPlan plan = {.max_rows = a->longest,
                    .max_sequence = a->longest,
                    .max_sequences = 1,
                    .max_logits = LOGIT_ROWS};
    a->run = llm_run_layout(a->llm, a->compute, &plan, arena);
    a->sae_run = sae_run_layout(a->compute, d, a->widest, a->longest, arena);
    a->target = arena_floats(arena, a->longest, d);
    a->recon = arena_floats(arena, a->longest, d);
    a->stream = arena_floats(arena, a->longest, d);
    a->edited = arena_floats(arena, a->longest, d);
    a->acts = arena_floats(arena, a->longest, a->widest);
    a->logits = arena_floats(arena, LOGIT_ROWS, a->llm->config.d_vocab);
    a->peaks = arena_alloc(arena, a->widest, sizeof(TopFeature));
}

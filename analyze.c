/* analyze.c: how far image tokens have become language, layer by layer.
 *
 * For each example two prompts, both up to the model's turn:
 *   image    <bos> [image rows = vlm_img] [chat text = vlm_imgtext]
 *   control  <bos> [chat text, <image> replaced by the answer = llm_text]
 * and at blocks.L.hook_resid_post the layer's own SAE on each group's rows. Three passes over the
 * examples, so that nothing but counts grows with their number:
 *   scan      sizes, which images can be read, mean and variance of image tokens
 *   measure   statistics of each group, of the two controls, and how often each feature is active
 *   features  the strongest features that are rare enough, their descriptions and the verdict
 * and for the first few examples the loss recovered when the SAE's output replaces the stream. */
#include "analyze.h"
#include "lexical.h"
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const group_names[GROUPS] = {"vlm_img", "vlm_imgtext", "llm_text"};
const char *const variant_names[VARIANTS] = {"", "permuted", "gaussian"};

enum {
    TOP_FEATURES = 3,
    FEATURES_A_FILE = 128
};

typedef struct Example {
    const char *id, *question, *answer, *image;
    Sequence prompt, control;           /* up to the model's turn */
    Sequence prompt_full, control_full; /* up to the first answer's <end_of_turn>, for the loss */
} Example;

typedef struct Used {    /* an example that is not left out */
    size_t index, image; /* in the file; in the pool */
} Used;

typedef struct LayerState {
    uint32_t *active[GROUPS]; /* [d_sae]: examples in which a feature is active in the group */
    const char **description; /* [d_sae], NULL where there is none */
    float *density;           /* [d_sae] */
} LayerState;

typedef struct Analysis {
    const AnalyzeOptions *options;
    const Compute *compute;
    AnalyzeResult result;
    Vlm vlm;
    ImagePool pool;
    JsonArrayFile data;
    SaeSet saes;
    Arena *arena, *example; /* the whole analysis; one example */
    Used *used;
    const char **failures;
    LayerState *state;
    int *slot_of_layer; /* [n_layers of the model]: place in result.layers, or -1 */
    size_t longest, widest;
    double *moment[2]; /* sum and sum of squares by dimension over image tokens */
    /* the run */
    LlmRun *run;
    SaeRun *sae_run;
    float *images, *target, *acts, *recon, *stream, *edited, *logits;
    float *best;
    size_t *best_row;
    /* what the hook is doing */
    const Sequence *sequence;
    Variant variant;
    bool control, features;
    size_t example_number;
    const Example *current;
    FILE *features_out, *questions_out;
    signed char *verdicts; /* [examples, layers, groups]: 1, 0; NULL: lexical */
} Analysis;

/* ---- examples ---- */

/* Every <image> of `turn` becomes "Consider the following information: ANSWER ". */
static Turn control_turn(const Turn *turn, const Turn *answer, Arena *arena) {
    static const char lead[] = "Consider the following information: ", literal[] = "<image>";
    size_t n = 0, length = 0, mark = sizeof literal - 1;
    for (size_t i = 0; i + mark <= turn->length; i++) {
        n += memcmp(turn->text + i, literal, mark) == 0 ? 1 : 0;
    }
    char *text = arena_alloc(arena, turn->length + n * (sizeof lead + answer->length) + 1, 1);
    for (size_t i = 0; i < turn->length;) {
        if (i + mark <= turn->length && memcmp(turn->text + i, literal, mark) == 0) {
            memcpy(text + length, lead, sizeof lead - 1);
            length += sizeof lead - 1;
            memcpy(text + length, answer->text, answer->length);
            length += answer->length;
            text[length++] = ' ';
            i += mark;
        } else {
            text[length++] = turn->text[i++];
        }
    }
    return (Turn){text, length, false};
}

/* It stands in a->example, until the next is read. */
static Example example_read(Analysis *a, size_t index) {
    Arena *arena = a->example;
    arena_reset(arena);
    Conversation c =
        conversation_parse(arena, json_array_read(&a->data, index, arena), a->options->data);
    size_t first = 0;
    while (first < c.count && !c.turns[first].model) {
        first++;
    }
    if (c.n_images != 1 || first == 0 || first == c.count) {
        fail(STATUS_INPUT, "%s: example %zu '%s': %s", a->options->data, index, c.id,
             c.n_images == 0  ? "has no image"
             : c.n_images > 1 ? "has several images"
                              : "is no question followed by an answer");
    }
    const Turn *question = &c.turns[first - 1], *answer = &c.turns[first];
    Turn *control = arena_alloc(arena, first + 1, sizeof *control);
    for (size_t i = 0; i < first; i++) {
        control[i] = control_turn(&c.turns[i], answer, arena);
    }
    control[first] = *answer;
    Example example = {.id = c.id};
    example.question = arena_copy(arena, question->text, question->length);
    example.answer = arena_copy(arena, answer->text, answer->length);
    example.image = path_join(arena, a->options->images, c.image);
    example.prompt = vlm_sequence(&a->vlm, c.turns, first, true, 0, arena);
    example.control = vlm_sequence(&a->vlm, control, first, false, 0, arena);
    example.prompt_full = vlm_sequence(&a->vlm, c.turns, first + 1, true, 0, arena);
    example.control_full = vlm_sequence(&a->vlm, control, first + 1, false, 0, arena);
    return example;
}

/* ---- scan ---- */

static void scan_moments(Analysis *a, size_t image) {
    size_t d = a->vlm.llm.config.d_model, n = a->vlm.vit.config.n_patches;
    image_pool_rows(&a->pool, image, a->images);
    for (size_t r = 0; r < n; r++) {
        for (size_t i = 0; i < d; i++) {
            double x = (double)a->images[r * d + i];
            a->moment[0][i] += x;
            a->moment[1][i] += x * x;
        }
    }
}

/* The next of the examples used, if it and its image can be read. */
static Example scan_read(Analysis *a, size_t index) {
    Example example = example_read(a, index);
    size_t image = image_pool_add(&a->pool, example.image);
    a->used[a->result.examples++] = (Used){index, image};
    return example;
}

static void scan(Analysis *a) {
    size_t n = a->options->examples < a->data.count ? a->options->examples : a->data.count;
    size_t d = a->vlm.llm.config.d_model;
    a->used = arena_alloc(a->arena, n + 1, sizeof(Used));
    a->failures = arena_alloc(a->arena, n + 1, sizeof(char *));
    a->images = arena_alloc(a->arena, a->vlm.vit.config.n_patches * d, sizeof(float));
    a->moment[0] = arena_alloc(a->arena, d, sizeof(double));
    a->moment[1] = arena_alloc(a->arena, d, sizeof(double));
    Progress progress = progress_start("reading", "examples", 0, n, a->result.console->quiet);
    for (size_t i = 0; i < n; i++) {
        Example example;
        Error cause;
        ATTEMPT(&cause, example = scan_read(a, i));
        if (cause.status != STATUS_OK) {
            if (a->options->strict || cause.status == STATUS_RESOURCE) {
                fail(cause.status, "%s", cause.text);
            }
            a->failures[a->result.n_failures++] =
                arena_copy(a->arena, cause.text, strlen(cause.text));
            continue;
        }
        scan_moments(a, a->used[a->result.examples - 1].image);
        const Sequence *full[] = {&example.prompt_full, &example.control_full, &example.prompt,
                                  &example.control};
        for (size_t k = 0; k < 4; k++) {
            a->longest = full[k]->rows > a->longest ? full[k]->rows : a->longest;
        }
        progress_set(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    if (a->result.examples == 0) {
        fail(STATUS_INPUT, "%s: none of the first %zu examples can be used%s%s", a->options->data,
             n, a->result.n_failures > 0 ? ": " : "",
             a->result.n_failures > 0 ? a->failures[0] : "");
    }
}

/* ---- features ---- */

typedef struct Found {
    size_t feature, row;
    float activation;
} Found;

/* The first TOP_FEATURES distinct features, walking down all activations of the rows (ties:
 * position, then feature), that have a description (where there are any) and are not left out. */
static size_t top_features(Analysis *a, size_t slot, Group group, const float *acts, size_t rows,
                           Found *found) {
    const Sae *sae = a->result.layers[slot].sae;
    const LayerState *state = &a->state[slot];
    size_t n = 0;
    for (size_t j = 0; j < sae->d_sae; j++) {
        double frequency = (double)state->active[group][j] / (double)a->result.examples;
        bool out =
            frequency > a->options->max_frequency ||
            (state->density != NULL && (double)state->density[j] > a->options->max_density) ||
            (state->description != NULL && state->description[j] == NULL);
        a->best[j] = 0.0f;
        a->best_row[j] = 0;
        for (size_t r = 0; r < rows && !out; r++) {
            if (acts[r * sae->d_sae + j] > a->best[j]) {
                a->best[j] = acts[r * sae->d_sae + j];
                a->best_row[j] = r;
            }
        }
    }
    for (; n < TOP_FEATURES; n++) {
        size_t top = 0;
        for (size_t j = 1; j < sae->d_sae; j++) {
            bool higher = a->best[j] > a->best[top];
            bool earlier = a->best[j] == a->best[top] && a->best_row[j] < a->best_row[top];
            top = higher || earlier ? j : top;
        }
        if (!(a->best[top] > 0.0f)) {
            break;
        }
        found[n] = (Found){top, a->best_row[top], a->best[top]};
        a->best[top] = 0.0f;
    }
    return n;
}

static void write_features(Analysis *a, size_t slot, Group group, size_t first_row,
                           const Found *found, size_t n) {
    LayerResult *layer = &a->result.layers[slot];
    const LayerState *state = &a->state[slot];
    size_t at = (a->example_number * a->result.n_layers + slot) * GROUPS + (size_t)group;
    bool match = a->verdicts != NULL && a->verdicts[at] == 1;
    JsonOut json = json_out_start(a->features_out, 0);
    json_out_object(&json, NULL);
    json_out_int(&json, "example", (int64_t)a->used[a->example_number].index);
    json_out_text(&json, "id", a->current->id);
    json_out_int(&json, "layer", layer->layer);
    json_out_text(&json, "group", group_names[group]);
    json_out_array(&json, "features");
    for (size_t i = 0; i < n; i++) {
        const char *description =
            state->description != NULL ? state->description[found[i].feature] : NULL;
        json_out_object(&json, NULL);
        json_out_int(&json, "feature", (int64_t)found[i].feature);
        json_out_int(&json, "position", (int64_t)(first_row + found[i].row));
        json_out_float(&json, "activation", found[i].activation);
        if (description != NULL) {
            json_out_text(&json, "description", description);
            match |= a->verdicts == NULL && lexical_match(description, a->current->answer);
        } else {
            json_out_null(&json, "description");
        }
        json_out_end(&json);
    }
    json_out_end(&json);
    if (a->result.judged) {
        json_out_bool(&json, "match", match);
        layer->matched[group] += match ? 1 : 0;
        layer->judged[group]++;
    }
    json_out_end(&json);
    if (a->questions_out == NULL) {
        return;
    }
    json = json_out_start(a->questions_out, 0);
    json_out_object(&json, NULL);
    json_out_int(&json, "example", (int64_t)a->used[a->example_number].index);
    json_out_int(&json, "layer", layer->layer);
    json_out_text(&json, "group", group_names[group]);
    json_out_text(&json, "image", a->current->image);
    json_out_text(&json, "question", a->current->question);
    json_out_text(&json, "answer", a->current->answer);
    json_out_array(&json, "descriptions");
    for (size_t i = 0; i < n && state->description != NULL; i++) {
        json_out_text(&json, NULL, state->description[found[i].feature]);
    }
    json_out_end(&json);
    json_out_end(&json);
}

/* ---- measuring at hook_resid_post ---- */

static void measure_group(Analysis *a, size_t slot, Group group, const float *x, size_t first,
                          size_t rows) {
    LayerResult *layer = &a->result.layers[slot];
    const Sae *sae = layer->sae;
    size_t d = a->vlm.llm.config.d_model;
    SaeStats stats;
    if (rows == 0) {
        return;
    }
    x += first * d;
    sae_encode(sae, a->sae_run, x, NULL, a->acts, rows);
    if (a->features) {
        Found found[TOP_FEATURES];
        size_t n = top_features(a, slot, group, a->acts, rows, found);
        write_features(a, slot, group, first, found, n);
        return;
    }
    sae_decode(sae, a->sae_run, a->acts, a->recon, rows);
    sae_target(sae, a->compute, a->target, x, rows);
    stats = sae_stats(a->target, a->recon, a->acts, rows, d, sae->d_sae);
    Sums *sums = &layer->sums[a->variant][group];
    sums->mse += stats.mse;
    sums->sparsity += stats.sparsity;
    sums->l0 += stats.l0;
    sums->cosine += stats.cosine;
    sums->norm += stats.norm;
    sums->n++;
    if (isfinite(stats.fvu)) {
        sums->fvu += stats.fvu;
        sums->n_fvu++;
    }
    for (size_t j = 0; j < sae->d_sae && a->variant == VARIANT_CLEAN; j++) {
        for (size_t r = 0; r < rows; r++) {
            if (a->acts[r * sae->d_sae + j] > 0.0f) {
                a->state[slot].active[group][j]++;
                break;
            }
        }
    }
}

static bool analysis_wants(void *user, HookKind kind, int layer, bool gradient) {
    const Analysis *a = user;
    return kind == HOOK_RESID_POST && !gradient && a->slot_of_layer[layer] >= 0;
}

static void analysis_call(void *user, const HookPoint *point, float *data) {
    Analysis *a = user;
    size_t slot = (size_t)a->slot_of_layer[point->layer], after = 1 + a->sequence->n_image;
    if (a->control) {
        measure_group(a, slot, GROUP_TEXT, data, 1, a->sequence->rows - 1);
        return;
    }
    measure_group(a, slot, GROUP_IMG, data, 1, a->sequence->n_image);
    measure_group(a, slot, GROUP_IMGTEXT, data, after, a->sequence->rows - after);
}

/* One forward pass of a prompt with the current images (control: without). */
static void analysis_forward(Analysis *a, const Sequence *sequence, bool control) {
    LlmBatch batch = {1, (size_t[]){0, sequence->rows}, sequence->ids, NULL, false};
    Hooks measure = {analysis_call, analysis_wants, a};
    ImageHook image = {&batch, sequence->n_image, a->vlm.llm.config.d_model, a->images,
                       NULL,   &measure};
    Hooks hooks = control ? measure : image_hooks(&image);
    a->sequence = sequence;
    a->control = control;
    llm_forward(a->run, &batch, 0, a->vlm.llm.config.n_layers, NULL, &hooks);
}

/* Vectors of the image tokens' mean and variance. */
static void gaussian_images(Analysis *a, size_t example) {
    size_t d = a->vlm.llm.config.d_model, n = a->vlm.vit.config.n_patches;
    double count = (double)a->result.examples * (double)n;
    Random random = random_start(a->options->seed, RANDOM_GAUSSIAN + ((uint64_t)example << 32));
    for (size_t i = 0; i < n * d; i += 2) {
        float draw[2];
        random_normals(&random, draw);
        for (size_t k = 0; k < 2 && i + k < n * d; k++) {
            double mean = a->moment[0][(i + k) % d] / count;
            double variance = a->moment[1][(i + k) % d] / count - mean * mean;
            a->images[i + k] =
                (float)(mean + sqrt(variance > 0.0 ? variance : 0.0) * (double)draw[k]);
        }
    }
}

static void measure(Analysis *a) {
    Progress progress =
        progress_start("measuring", "examples", 0, a->result.examples, a->result.console->quiet);
    for (size_t e = 0; e < a->result.examples; e++) {
        Example example = example_read(a, a->used[e].index);
        a->example_number = e;
        a->current = &example;
        a->variant = VARIANT_CLEAN;
        image_pool_rows(&a->pool, a->used[e].image, a->images);
        analysis_forward(a, &example.prompt, false);
        analysis_forward(a, &example.control, true);
        if (a->pool.count > 1) {
            a->variant = VARIANT_PERMUTED;
            image_pool_permuted(&a->pool, a->used[e].image, a->options->seed, a->images);
            analysis_forward(a, &example.prompt, false);
        }
        a->variant = VARIANT_GAUSSIAN;
        gaussian_images(a, e);
        analysis_forward(a, &example.prompt, false);
        progress_set(&progress, e + 1, NULL);
    }
    progress_end(&progress);
}

/* ---- loss recovered ---- */

/* Mean cross-entropy of the first answer's tokens, from the stream entering layer `first`. */
static double answer_loss(Analysis *a, const Sequence *s, const LlmBatch *batch, size_t first,
                          const float *stream) {
    Span answer = s->answers[0];
    double sum = 0.0;
    llm_forward(a->run, batch, first, a->vlm.llm.config.n_layers, stream, NULL);
    for (size_t r = answer.begin; r < answer.end; r++) {
        size_t row = r - 1;
        double one;
        llm_logits(a->run, &row, 1, true, a->logits, NULL);
        cross_entropy_rows(a->compute, &one, NULL, a->logits, &s->ids[r], NULL, 1,
                           a->vlm.llm.config.d_vocab);
        sum += one;
    }
    return sum / (double)(answer.end - answer.begin);
}

/* Replaces rows of the stream after layer slot's block by the SAE's output, by 0 and by their mean.
 */
static void loss_group(Analysis *a, size_t slot, Group group, const Sequence *s,
                       const LlmBatch *batch, Span rows, double clean) {
    LayerResult *layer = &a->result.layers[slot];
    size_t d = a->vlm.llm.config.d_model, n = rows.end - rows.begin,
           next = (size_t)layer->layer + 1;
    const float *x = a->stream + rows.begin * d;
    float *edit = a->edited + rows.begin * d;
    double loss[3];
    if (rows.end <= rows.begin) {
        return;
    }
    memcpy(a->edited, a->stream, s->rows * d * sizeof(float));
    sae_encode(layer->sae, a->sae_run, x, NULL, a->acts, n);
    sae_decode(layer->sae, a->sae_run, a->acts, edit, n);
    loss[0] = answer_loss(a, s, batch, next, a->edited);
    memset(edit, 0, n * d * sizeof(float));
    loss[1] = answer_loss(a, s, batch, next, a->edited);
    for (size_t i = 0; i < d; i++) {
        double sum = 0.0;
        for (size_t r = 0; r < n; r++) {
            sum += (double)x[r * d + i];
        }
        for (size_t r = 0; r < n; r++) {
            edit[r * d + i] = (float)(sum / (double)n);
        }
    }
    loss[2] = answer_loss(a, s, batch, next, a->edited);
    LossSums *sums = &layer->loss[group];
    sums->clean += clean;
    sums->sae += loss[0];
    sums->zero += loss[1];
    sums->mean += loss[2];
    sums->n++;
}

static void loss_sequence(Analysis *a, const Sequence *s, bool control) {
    LlmBatch batch = {1, (size_t[]){0, s->rows}, s->ids, NULL, false};
    size_t layers = a->vlm.llm.config.n_layers,
           bytes = s->rows * a->vlm.llm.config.d_model * sizeof(float);
    ImageHook image = {&batch, s->n_image, a->vlm.llm.config.d_model, a->images, NULL, NULL};
    Hooks hooks = image_hooks(&image);
    double clean = 0.0;
    size_t after = 1 + s->n_image;
    if (s->n_answers == 0) {
        return;
    }
    llm_forward(a->run, &batch, 0, 1, NULL, control ? NULL : &hooks);
    for (size_t layer = 0; layer < layers; layer++) {
        memcpy(a->stream, llm_resid(a->run), bytes); /* after layer's block */
        if (layer == 0) {
            clean = answer_loss(a, s, &batch, 1, a->stream);
        }
        if (a->slot_of_layer[layer] >= 0) {
            size_t slot = (size_t)a->slot_of_layer[layer];
            if (control) {
                loss_group(a, slot, GROUP_TEXT, s, &batch, (Span){1, s->prompt_rows}, clean);
            } else {
                loss_group(a, slot, GROUP_IMG, s, &batch, (Span){1, after}, clean);
                loss_group(a, slot, GROUP_IMGTEXT, s, &batch, (Span){after, s->prompt_rows}, clean);
            }
        }
        if (layer + 1 < layers) {
            memcpy(a->edited, a->stream, bytes);
            llm_forward(a->run, &batch, layer + 1, layer + 2, a->edited, NULL);
        }
    }
}

static void loss_pass(Analysis *a) {
    size_t n = a->options->loss_examples < a->result.examples ? a->options->loss_examples
                                                              : a->result.examples;
    Progress progress =
        progress_start("loss recovered", "examples", 0, n, a->result.console->quiet);
    for (size_t e = 0; e < n; e++) {
        Example example = example_read(a, a->used[e].index);
        image_pool_rows(&a->pool, a->used[e].image, a->images);
        loss_sequence(a, &example.prompt_full, false);
        loss_sequence(a, &example.control_full, true);
        progress_set(&progress, e + 1, NULL);
    }
    progress_end(&progress);
}

double loss_recovered(const LossSums *sums, bool zero) {
    double ablated = zero ? sums->zero : sums->mean;
    return sums->n > 0 && ablated != sums->clean ? (ablated - sums->sae) / (ablated - sums->clean)
                                                 : NAN;
}

/* ---- features pass and judges ---- */

static bool verdict_is_yes(const Json *verdict) {
    double number = json_is(verdict, JSON_NUMBER) ? json_double(verdict) : 0.0;
    const char *text = json_is(verdict, JSON_STRING) ? verdict->text : "";
    return json_is(verdict, JSON_TRUE) || number == 1.0 || strcmp(text, "1") == 0 ||
           strcmp(text, "yes") == 0 || strcmp(text, "Yes") == 0 || strcmp(text, "YES") == 0 ||
           strcmp(text, "true") == 0 || strcmp(text, "True") == 0;
}

/* A line of the verdicts: {"example", "layer", "group", "verdict"}. What cannot be read leaves a 0.
 */
static void verdict_take(Analysis *a, const Json *line) {
    int64_t example, layer;
    const Json *group = json_get(line, "group");
    if (!json_int64(json_get(line, "example"), &example) ||
        !json_int64(json_get(line, "layer"), &layer) || layer < 0 ||
        layer >= (int64_t)a->vlm.llm.config.n_layers || a->slot_of_layer[layer] < 0) {
        return;
    }
    for (size_t e = 0; e < a->result.examples; e++) {
        for (size_t g = 0; g < GROUPS; g++) {
            if (a->used[e].index == (uint64_t)example && json_text_is(group, group_names[g])) {
                size_t slot = (size_t)a->slot_of_layer[layer];
                a->verdicts[(e * a->result.n_layers + slot) * GROUPS + g] =
                    verdict_is_yes(json_get(line, "verdict"));
            }
        }
    }
}

/* A line that is no JSON is as one that is not there. */
static void verdict_line(Analysis *a, const char *line, size_t length, const char *path) {
    Error ignored;
    arena_reset(a->example);
    ATTEMPT(&ignored, verdict_take(a, json_parse(a->example, line, length, path)));
}

static void verdicts_read(Analysis *a, const char *path) {
    Arena *scratch = arena_new();
    FileMap file = file_map(scratch, path);
    a->verdicts = arena_alloc(a->arena, a->result.examples * a->result.n_layers * GROUPS, 1);
    for (size_t at = 0; at < file.size;) {
        const char *line = (const char *)file.data + at;
        const char *end = memchr(line, '\n', file.size - at);
        size_t length = end != NULL ? (size_t)(end - line) : file.size - at;
        verdict_line(a, line, length, path);
        at += length + 1;
    }
    arena_free(scratch);
}

static void features_loop(Analysis *a) {
    Progress progress =
        progress_start("features", "examples", 0, a->result.examples, a->result.console->quiet);
    a->features = true;
    a->variant = VARIANT_CLEAN;
    for (size_t e = 0; e < a->result.examples; e++) {
        Example example = example_read(a, a->used[e].index);
        a->example_number = e;
        a->current = &example;
        image_pool_rows(&a->pool, a->used[e].image, a->images);
        analysis_forward(a, &example.prompt, false);
        analysis_forward(a, &example.control, true);
        progress_set(&progress, e + 1, NULL);
    }
    progress_end(&progress);
}

static void features_pass(Analysis *a) {
    const AnalyzeOptions *o = a->options;
    bool lexical = o->judge == NULL || strcmp(o->judge, "lexical") == 0,
         have = o->descriptions != NULL;
    bool verdicts = !lexical && path_exists(o->judge);
    char *path = path_join(a->arena, o->out, "features.jsonl");
    char *questions_path = path_join(a->arena, o->out, "judge_questions.jsonl");
    if (o->judge != NULL && !have) {
        fail(STATUS_INPUT, "--judge needs --descriptions DIR");
    }
    a->result.judged = have && (lexical || verdicts);
    if (verdicts) {
        verdicts_read(a, o->judge);
    }
    OutFile *features = out_open(path), *questions = lexical ? NULL : out_open(questions_path);
    a->features_out = features->stream;
    a->questions_out = lexical ? NULL : questions->stream;
    features_loop(a);
    if (!lexical) {
        out_commit(questions);
        if (!verdicts) {
            console_line(a->result.console, "%s: not there yet; the questions are in %s", o->judge,
                         questions_path);
        }
    }
    out_commit(features);
}

/* ---- descriptions: Neuronpedia exports, DIRECTORY/LAYER-.../START-END.json ---- */

static void description_file(Analysis *a, size_t slot, const char *path, size_t start) {
    Arena *scratch = arena_new();
    const Json *list = json_read_file(scratch, path);
    LayerState *state = &a->state[slot];
    size_t d_sae = a->result.layers[slot].sae->d_sae;
    if (!json_is(list, JSON_ARRAY)) {
        fail(STATUS_INPUT, "%s: expected a list of features", path);
    }
    size_t place = start;
    for (const Json *f = list->child; f != NULL; f = f->next) {
        const Json *index = json_get(f, "index"), *density = json_get(f, "frac_nonzero");
        const Json *explanations = json_get(f, "explanations");
        int64_t j = (int64_t)place++;
        if (json_is(index, JSON_STRING) && index->length > 0 && index->length < 10) {
            j = strtol(index->text, NULL, 10);
        } else if (json_is(index, JSON_NUMBER) && !json_int64(index, &j)) {
            j = -1;
        }
        if (j < 0 || (uint64_t)j >= d_sae) {
            fail(STATUS_INPUT, "%s: feature %lld is outside the SAE's %zu", path, (long long)j,
                 d_sae);
        }
        state->density[j] = json_is(density, JSON_NUMBER) ? (float)json_double(density) : 0.0f;
        const Json *text =
            json_is(explanations, JSON_ARRAY) ? json_get(explanations->child, "description") : NULL;
        if (json_is(text, JSON_STRING) && text->length > 0) {
            state->description[j] = arena_copy(a->arena, text->text, text->length);
        }
    }
    arena_free(scratch);
}

static void description_directory(Analysis *a, size_t slot, const char *directory) {
    size_t count;
    char **names = path_list(a->arena, directory, &count);
    for (size_t i = 0; i < count; i++) {
        char *dash, *dot;
        unsigned long start = strtoul(names[i], &dash, 10);
        if (names[i][0] < '0' || names[i][0] > '9' || *dash != '-' ||
            (dot = strchr(dash, '.')) == NULL || strcmp(dot, ".json") != 0) {
            continue;
        }
        char *path = path_join(a->arena, directory, names[i]);
        description_file(a, slot, path, start);
    }
}

static void descriptions_read(Analysis *a) {
    size_t count;
    char **names = path_list(a->arena, a->options->descriptions, &count);
    for (size_t slot = 0; slot < a->result.n_layers; slot++) {
        const char *taken = NULL;
        LayerState *state = &a->state[slot];
        size_t d_sae = a->result.layers[slot].sae->d_sae;
        for (size_t i = 0; i < count; i++) {
            char *end;
            unsigned long layer = strtoul(names[i], &end, 10);
            char *path = path_join(a->arena, a->options->descriptions, names[i]);
            if (names[i][0] < '0' || names[i][0] > '9' || (*end != '-' && *end != '\0') ||
                layer != (unsigned long)a->result.layers[slot].layer || !path_is_directory(path)) {
                continue;
            }
            if (taken != NULL) {
                fail(STATUS_INPUT, "%s: layer %lu has descriptions in '%s' and in '%s'; leave one",
                     a->options->descriptions, layer, taken, names[i]);
            }
            taken = names[i];
            state->description = arena_alloc(a->arena, d_sae, sizeof(char *));
            state->density = arena_alloc(a->arena, d_sae, sizeof(float));
            description_directory(a, slot, path);
        }
        if (taken == NULL) {
            fail(STATUS_INPUT, "%s: no folder '%d-...' with descriptions of layer %d",
                 a->options->descriptions, a->result.layers[slot].layer,
                 a->result.layers[slot].layer);
        }
    }
}

/* ---- opening ---- */

/* "0,4-9" as flags. */
static void layers_parse(const char *text, bool *wanted, size_t n_layers) {
    for (const char *p = text;;) {
        char *end;
        unsigned long first = strtoul(p, &end, 10), last = first;
        bool bad = *p < '0' || *p > '9';
        if (!bad && *end == '-') {
            p = end + 1;
            bad = *p < '0' || *p > '9';
            last = strtoul(p, &end, 10);
        }
        if (bad || (*end != ',' && *end != '\0') || last < first || last >= n_layers) {
            fail(STATUS_INPUT, "--layers %s: expected layers below %zu, as in 0,4-9", text,
                 n_layers);
        }
        for (unsigned long i = first; i <= last; i++) {
            wanted[i] = true;
        }
        if (*end == '\0') {
            return;
        }
        p = end + 1;
    }
}

static void open_layers(Analysis *a) {
    size_t n = a->vlm.llm.config.n_layers;
    bool *wanted = arena_alloc(a->arena, n, sizeof(bool));
    a->slot_of_layer = arena_alloc(a->arena, n, sizeof(int));
    a->result.layers = arena_alloc(a->arena, n, sizeof(LayerResult));
    a->state = arena_alloc(a->arena, n, sizeof(LayerState));
    if (a->options->layers != NULL) {
        layers_parse(a->options->layers, wanted, n);
    }
    sae_set_open(&a->saes, a->arena, a->options->saes, HOOK_RESID_POST,
                 a->options->layers != NULL ? wanted : NULL, n, a->options->canonical,
                 &a->options->sae);
    for (size_t layer = 0; layer < n; layer++) {
        const Sae *sae = sae_set_find(&a->saes, HOOK_RESID_POST, (int)layer);
        a->slot_of_layer[layer] = -1;
        if (sae == NULL && wanted[layer]) {
            fail(STATUS_INPUT, "%s: no SAE for blocks.%zu.hook_resid_post", a->options->saes,
                 layer);
        }
        if (sae == NULL) {
            continue;
        }
        if (sae->d_in != a->vlm.llm.config.d_model) {
            fail(STATUS_INPUT, "%s: reads %zu dimensions, the model's stream has %zu", sae->path,
                 sae->d_in, a->vlm.llm.config.d_model);
        }
        size_t slot = a->result.n_layers++;
        a->slot_of_layer[layer] = (int)slot;
        a->result.layers[slot].layer = (int)layer;
        a->result.layers[slot].sae = sae;
        a->widest = sae->d_sae > a->widest ? sae->d_sae : a->widest;
        for (size_t g = 0; g < GROUPS; g++) {
            a->state[slot].active[g] = arena_alloc(a->arena, sae->d_sae, sizeof(uint32_t));
        }
    }
    if (a->result.n_layers == 0) {
        fail(STATUS_INPUT, "%s: no SAE for a hook_resid_post of this model", a->options->saes);
    }
}

static void analysis_layout(Arena *arena, void *user) {
    Analysis *a = user;
    const LlmConfig *llm = &a->vlm.llm.config;
    LlmPlan plan = {
        .max_rows = a->longest, .max_sequence = a->longest, .max_sequences = 1, .max_logits = 1};
    a->run = llm_run_layout(&a->vlm.llm, a->compute, &plan, arena);
    a->sae_run = sae_run_layout(a->compute, llm->d_model, a->widest, a->longest, arena);
    a->target = arena_alloc(arena, a->longest * llm->d_model, sizeof(float));
    a->recon = arena_alloc(arena, a->longest * llm->d_model, sizeof(float));
    a->stream = arena_alloc(arena, a->longest * llm->d_model, sizeof(float));
    a->edited = arena_alloc(arena, a->longest * llm->d_model, sizeof(float));
    a->acts = arena_alloc(arena, a->longest * a->widest, sizeof(float));
    a->logits = arena_alloc(arena, llm->d_vocab, sizeof(float));
    a->best = arena_alloc(arena, a->widest, sizeof(float));
    a->best_row = arena_alloc(arena, a->widest, sizeof(size_t));
}

size_t analyze_memory(const Compute *compute, const Llm *llm, size_t longest, size_t widest) {
    Analysis a = {.compute = compute, .vlm = {.llm = *llm}, .longest = longest, .widest = widest};
    return arena_measure(analysis_layout, &a);
}

void analyze_run(const Compute *compute, const AnalyzeOptions *options, const Console *console) {
    Analysis a = {.options = options,
                  .compute = compute,
                  .result = {.options = options, .console = console},
                  .arena = arena_new(),
                  .example = arena_new()};
    path_make_directory(options->out);
    vlm_open(&a.vlm, a.arena, compute,
             &(VlmPaths){options->llm, options->vision, options->adapter, false});
    a.vlm.image_text = options->image_text;
    open_layers(&a);
    if (options->descriptions != NULL) {
        descriptions_read(&a);
    }
    json_array_open(&a.data, a.arena, options->data);
    image_pool_open(&a.pool, a.arena, &a.vlm);
    scan(&a);
    Arena *block = arena_plan(analysis_layout, &a);
    measure(&a);
    loss_pass(&a);
    features_pass(&a);
    a.result.failures = a.failures;
    report_analyze(&a.result);
    arena_free(block);
    arena_free(a.example);
    arena_free(a.arena);
}

/* sage.c: attribute cross-sections (SAGE, step 1): which nodes carry an attribute, found by
 * attribution patching with one forward and one backward a prompt, and checked against real
 * patching.
 *
 *   score(node) = mean over prompts of (a(x') - a(x)) . dm/da (x)
 *   effect(node) = mean over prompts of m(x with a(x') patched in) - m(x)
 *
 * x' is the prompt with one attribute changed; m = log p(answer) - log p(wrong) at the last
 * position. */
#include "elementary.h"
#include "report.h"
#include "sage_run.h"

#include <math.h>
#include <string.h>

const size_t sage_ks[SAGE_KS] = {1, 2, 4, 8, 16, 32};
const char *const sage_method_names[SAGE_METHODS] = {"none",     "mean", "mse",
                                                     "weighted", "sae",  "random"};

/* A run's memory stays within this where a batch of several prompts would take more. */
static const size_t batch_bytes = (size_t)768 << 20;
enum {
    BATCH_ROWS = 512
};

/* ---- passes ---- */

size_t sage_width(const Sage *sage, HookKind kind) {
    return kind == HOOK_Q || kind == HOOK_K || kind == HOOK_V || kind == HOOK_Z
               ? sage->llm.config.d_head
           : kind == HOOK_LN1_SCALE || kind == HOOK_LN1_POST_SCALE || kind == HOOK_LN2_POST_SCALE
               ? 1
               : sage->llm.config.d_model;
}

static bool sage_wants(void *user, HookKind kind, int layer, bool gradient) {
    const Sage *sage = user;
    for (size_t i = 0; i < sage->n_slices; i++) {
        const Slice *slice = &sage->slices[i];
        if (slice->kind == kind && slice->layer == layer && slice->gradient == gradient) {
            return true;
        }
    }
    return false;
}

/* Slices of one point are taken in their order: where two names are one token the later write
 * stands. */
static void sage_call(void *user, const HookPoint *point, float *data) {
    Sage *sage = user;
    size_t row_size = 1;
    for (int i = 1; i < point->rank; i++) {
        row_size *= point->shape[i];
    }
    for (size_t i = 0; i < sage->n_slices; i++) {
        Slice *slice = &sage->slices[i];
        if (slice->kind != point->kind || slice->layer != point->layer ||
            slice->gradient != point->gradient) {
            continue;
        }
        size_t offset = slice->head < 0 ? 0 : (size_t)slice->head * slice->width;
        for (size_t s = 0; s < sage->current.n_sequences; s++) {
            size_t past = sage->current.past != NULL ? sage->current.past[s] : 0;
            size_t row = sage->current.start[s] + sage->forms[s]->positions[slice->position] - past;
            float *at = data + row * row_size + offset;
            float *values = slice->values + (sage->first_prompt + s) * slice->width;
            memcpy(slice->write ? at : values, slice->write ? values : at,
                   slice->width * sizeof(float));
        }
    }
}

void sage_batch(Sage *sage, SageSplit split, int attribute, size_t first, size_t n) {
    size_t rows = 0;
    sage->first_prompt = first;
    for (size_t s = 0; s < n; s++) {
        const SagePrompt *prompt = &sage->task.prompts[split][first + s];
        const SageForm *form = attribute < 0 ? &prompt->clean : &prompt->counterfactual[attribute];
        sage->forms[s] = form;
        sage->start[s] = rows;
        memcpy(sage->ids + rows, form->ids, form->rows * sizeof(int32_t));
        rows += form->rows;
    }
    sage->start[n] = rows;
    sage->whole = sage->current = (LlmBatch){n, sage->start, sage->ids, NULL, false};
}

/* log of the summed probability of a list x[n] of logits, up to the log of the normaliser; one
 * token: its logit. share[n] (may be NULL, may be x): its derivatives. */
static double list_logit(const float *x, size_t n, float *share) {
    float highest = x[0];
    double sum = 0.0;
    for (size_t i = 1; i < n; i++) {
        highest = x[i] > highest ? x[i] : highest;
    }
    for (size_t i = 0; i < n; i++) {
        sum += (double)exp_f32(x[i] - highest);
    }
    for (size_t i = 0; share != NULL && i < n; i++) {
        share[i] = (float)((double)exp_f32(x[i] - highest) / sum);
    }
    return (double)highest + (n > 1 ? (double)log_f32((float)sum) : 0.0);
}

static const float *listed(Sage *sage, const float *logits, const int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sage->listed[i] = logits[ids[i]];
    }
    return sage->listed;
}

/* m of one prompt from its logits[vocab]. */
static double metric(Sage *sage, const float *logits, const SageForm *form) {
    double answer =
        list_logit(listed(sage, logits, form->answer, form->n_answer), form->n_answer, NULL);
    return answer -
           list_logit(listed(sage, logits, form->wrong, form->n_wrong), form->n_wrong, NULL);
}

/* gradient[vocab] += d m / d logits. */
static void metric_gradient(Sage *sage, const float *logits, const SageForm *form,
                            float *gradient) {
    for (int side = 0; side < 2; side++) {
        const int32_t *ids = side == 0 ? form->answer : form->wrong;
        size_t n = side == 0 ? form->n_answer : form->n_wrong;
        (void)list_logit(listed(sage, logits, ids, n), n, sage->listed);
        for (size_t i = 0; i < n; i++) {
            gradient[ids[i]] += side == 0 ? sage->listed[i] : -sage->listed[i];
        }
    }
}

/* m of the prompts after a pass. Where no prediction is asked for, only the lists' own logits are
 * computed. */
static void read_logits(Sage *sage, double *m, int32_t *predicted) {
    size_t n = sage->current.n_sequences, vocab = sage->llm.config.d_vocab;
    for (size_t s = 0; s < n; s++) {
        sage->last_row[s] = sage->current.ends ? s : sage->current.start[s + 1] - 1;
    }
    if (predicted == NULL) {
        for (size_t s = 0; s < n; s++) {
            const SageForm *form = sage->forms[s];
            size_t row = sage->last_row[s];
            llm_logits_at(sage->run, row, form->answer, form->n_answer, true, sage->listed);
            m[s] = list_logit(sage->listed, form->n_answer, NULL);
            llm_logits_at(sage->run, row, form->wrong, form->n_wrong, true, sage->listed);
            m[s] -= list_logit(sage->listed, form->n_wrong, NULL);
        }
        return;
    }
    llm_logits(sage->run, sage->last_row, n, true, sage->logits, NULL);
    for (size_t s = 0; s < n; s++) {
        const float *logits = sage->logits + s * vocab;
        size_t top = 0;
        for (size_t i = 1; i < vocab; i++) {
            top = logits[i] > logits[top] ? i : top;
        }
        m[s] = metric(sage, logits, sage->forms[s]);
        predicted[s] = (int32_t)top;
    }
}

void sage_forward(Sage *sage, Slice *slices, size_t n_slices, double *m, int32_t *predicted) {
    Hooks hooks = {sage_call, sage_wants, sage};
    size_t last = m != NULL ? sage->llm.config.n_layers : 0;
    for (size_t i = 0; i < n_slices; i++) {
        last = slices[i].layer >= (int)last ? (size_t)slices[i].layer + 1 : last;
    }
    sage->current = sage->whole;
    sage->slices = slices;
    sage->n_slices = n_slices;
    llm_forward(sage->run, &sage->current, 0, last, NULL, n_slices > 0 ? &hooks : NULL);
    if (m != NULL) {
        read_logits(sage, m, predicted);
    }
}

void sage_streams(Sage *sage, double *m, int32_t *predicted) {
    size_t n = sage->llm.config.n_layers, rows = sage->start[sage->whole.n_sequences];
    sage->current = sage->whole;
    sage->current.ends = true;
    for (size_t layer = 0; layer < n; layer++) {
        llm_forward(sage->run, &sage->current, layer, layer + 1,
                    layer > 0 ? sage->streams[layer] : NULL, NULL);
        if (layer + 1 < n) {
            memcpy(sage->streams[layer + 1], llm_resid(sage->run),
                   rows * sage->llm.config.d_model * sizeof(float));
        }
    }
    read_logits(sage, m, predicted);
}

void sage_patch(Sage *sage, Slice *slices, size_t n_slices, double *m, int32_t *predicted) {
    Hooks hooks = {sage_call, sage_wants, sage};
    size_t last = sage->llm.config.n_layers - 1, first = last, rows = 0,
           d = sage->llm.config.d_model;
    bool ends = true; /* unless a patch needs the last layer's other rows */
    for (size_t i = 0; i < n_slices; i++) {
        HookKind kind = slices[i].kind;
        first = (size_t)slices[i].layer < first ? (size_t)slices[i].layer : first;
        ends &=
            (size_t)slices[i].layer < last || kind == HOOK_Q || kind == HOOK_K || kind == HOOK_V;
    }
    for (size_t s = 0; s < sage->whole.n_sequences; s++) {
        const SageForm *form = sage->forms[s];
        size_t past = form->rows - 1;
        for (size_t i = 0; i < n_slices; i++) {
            size_t position = form->positions[slices[i].position];
            past = position < past ? position : past;
        }
        size_t from = sage->start[s] + past, n = form->rows - past;
        sage->past[s] = past;
        sage->tail_start[s] = rows;
        memcpy(sage->tail_ids + rows, sage->ids + from, n * sizeof(int32_t));
        if (first > 0) {
            memcpy(sage->tail_stream + rows * d, sage->streams[first] + from * d,
                   n * d * sizeof(float));
        }
        rows += n;
    }
    sage->tail_start[sage->whole.n_sequences] = rows;
    sage->current =
        (LlmBatch){sage->whole.n_sequences, sage->tail_start, sage->tail_ids, sage->past, ends};
    sage->slices = slices;
    sage->n_slices = n_slices;
    llm_forward(sage->run, &sage->current, first, sage->llm.config.n_layers,
                first > 0 ? sage->tail_stream : NULL, &hooks);
    read_logits(sage, m, predicted);
}

void sage_capture(Sage *sage, SageSplit split, int attribute, Slice *slices, size_t n_slices) {
    for (size_t first = 0; first < sage->task.n_prompts[split]; first += sage->batch) {
        size_t left = sage->task.n_prompts[split] - first;
        sage_batch(sage, split, attribute, first, left < sage->batch ? left : sage->batch);
        sage_forward(sage, slices, n_slices, NULL, NULL);
    }
}

/* ---- nodes ---- */

static const HookKind component_kinds[] = {HOOK_Q, HOOK_K,        HOOK_V,
                                           HOOK_Z, HOOK_ATTN_OUT, HOOK_MLP_OUT};
static const char *const component_names[] = {"q", "k", "v", "z", "attn_out", "mlp_out"};
enum {
    N_COMPONENTS = 6
};

static size_t component_heads(const Sage *sage, HookKind kind) {
    return kind == HOOK_Q || kind == HOOK_Z   ? sage->llm.config.n_heads
           : kind == HOOK_K || kind == HOOK_V ? sage->llm.config.n_kv_heads
                                              : 1;
}

size_t sage_list_next(const char **list, const char *const *names, size_t n) {
    size_t length = strcspn(*list, ","), i = 0;
    while (i < n && (strlen(names[i]) != length || memcmp(names[i], *list, length) != 0)) {
        i++;
    }
    *list = (*list)[length] == ',' ? *list + length + 1 : NULL;
    return i;
}

/* All nodes, in the order that settles ties: layer, component, head, position. */
static void list_nodes(Sage *sage) {
    bool wanted[N_COMPONENTS] = {false};
    size_t per_layer = 0;
    SageResult *r = &sage->result;
    for (const char *list = sage->options->nodes; list != NULL;) {
        size_t c = sage_list_next(&list, component_names, N_COMPONENTS);
        if (c == N_COMPONENTS) {
            fail(STATUS_INPUT, "--nodes %s: expected some of q,k,v,z,attn_out,mlp_out",
                 sage->options->nodes);
        }
        wanted[c] = true;
    }
    for (size_t c = 0; c < N_COMPONENTS; c++) {
        per_layer +=
            wanted[c] ? component_heads(sage, component_kinds[c]) * sage->task.n_positions : 0;
    }
    size_t n = per_layer * sage->llm.config.n_layers, all = n * sage->task.n_attributes;
    r->nodes = arena_alloc(sage->arena, n, sizeof(SageNode));
    r->score = arena_alloc(sage->arena, all, sizeof(double));
    r->effect = arena_alloc(sage->arena, all, sizeof(double));
    r->chosen = arena_alloc(sage->arena, all, sizeof(bool));
    r->cross = arena_alloc(sage->arena, sage->task.n_attributes, sizeof(SageCross));
    for (size_t layer = 0; layer < sage->llm.config.n_layers; layer++) {
        for (size_t c = 0; c < N_COMPONENTS; c++) {
            size_t heads = wanted[c] ? component_heads(sage, component_kinds[c]) : 0;
            for (size_t h = 0; h < heads; h++) {
                for (size_t p = 0; p < sage->task.n_positions; p++) {
                    bool whole =
                        component_kinds[c] == HOOK_ATTN_OUT || component_kinds[c] == HOOK_MLP_OUT;
                    r->nodes[r->n_nodes++] =
                        (SageNode){component_kinds[c], (int)layer, whole ? -1 : (int)h, p};
                }
            }
        }
    }
    for (size_t i = 0; i < all; i++) {
        r->effect[i] = NAN;
    }
}

Slice sage_slice(const Sage *sage, const SageNode *node, float *values, bool write) {
    size_t width = sage_width(sage, node->kind);
    return (Slice){node->kind, node->layer, node->head, node->position,
                   width,      false,       write,      values};
}

/* ---- scores ---- */

/* One batch: clean with gradients, then each counterfactual. Slices hold batch values only
 * (first_prompt 0). */
static void score_batch(Sage *sage, size_t first, size_t n, Slice *clean, Slice *gradient,
                        Slice *other) {
    SageResult *r = &sage->result;
    size_t vocab = sage->llm.config.d_vocab;
    Hooks hooks = {sage_call, sage_wants, sage};
    sage_batch(sage, SAGE_TRAIN, -1, first, n);
    sage->first_prompt = 0;
    double *m = sage->m;
    sage_forward(sage, clean, r->n_nodes, m, sage->predicted);
    memset(sage->dlogits, 0, n * vocab * sizeof(float));
    for (size_t s = 0; s < n; s++) {
        metric_gradient(sage, sage->logits + s * vocab, sage->forms[s], sage->dlogits + s * vocab);
    }
    sage->slices = gradient;
    llm_backward_start(sage->run);
    llm_logits_backward(sage->run, sage->last_row, n, true, sage->logits, sage->dlogits, NULL);
    llm_backward(sage->run, 0, &hooks);
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        sage_batch(sage, SAGE_TRAIN, (int)a, first, n);
        sage->first_prompt = 0;
        sage_forward(sage, other, r->n_nodes, NULL, NULL);
        for (size_t i = 0; i < r->n_nodes; i++) {
            size_t width = clean[i].width;
            for (size_t s = 0; s < n; s++) {
                double dot = 0.0;
                for (size_t k = s * width; k < (s + 1) * width; k++) {
                    dot += ((double)other[i].values[k] - (double)clean[i].values[k]) *
                           (double)gradient[i].values[k];
                }
                r->score[a * r->n_nodes + i] += dot;
            }
        }
    }
}

static void score_nodes(Sage *sage) {
    SageResult *r = &sage->result;
    size_t n_train = sage->task.n_prompts[SAGE_TRAIN];
    Slice *slices[3]; /* clean, gradient, counterfactual */
    Arena *scratch = arena_new();
    for (int k = 0; k < 3; k++) {
        slices[k] = arena_alloc(scratch, r->n_nodes, sizeof(Slice));
        for (size_t i = 0; i < r->n_nodes; i++) {
            size_t width = sage_width(sage, r->nodes[i].kind);
            float *values = arena_alloc(scratch, sage->batch * width, sizeof(float));
            slices[k][i] = sage_slice(sage, &r->nodes[i], values, false);
            slices[k][i].gradient = k == 1;
        }
    }
    Progress progress = progress_start("attribution", "prompts", 0, n_train, sage->console->quiet);
    for (size_t first = 0; first < n_train; first += sage->batch) {
        size_t n = n_train - first < sage->batch ? n_train - first : sage->batch;
        score_batch(sage, first, n, slices[0], slices[1], slices[2]);
        progress_set(&progress, first + n, NULL);
    }
    progress_end(&progress);
    for (size_t i = 0; i < r->n_nodes * sage->task.n_attributes; i++) {
        r->score[i] /= (double)n_train;
    }
    arena_free(scratch);
}

/* ---- the walk ---- */

/* Is node a left out because b, which was walked too, carries it on? */
static bool screens_off(const SageNode *a, const SageNode *b) {
    if (a->layer != b->layer || a->position != b->position) {
        return false;
    }
    return (a->kind == HOOK_Q && b->kind == HOOK_Z && a->head == b->head) ||
           ((a->kind == HOOK_Q || a->kind == HOOK_Z) && b->kind == HOOK_ATTN_OUT);
}

static void walk(Sage *sage, size_t attribute) {
    SageResult *r = &sage->result;
    SageCross *cross = &r->cross[attribute];
    const double *score = r->score + attribute * r->n_nodes;
    bool *chosen = r->chosen + attribute * r->n_nodes;
    size_t max = sage->options->max_nodes < r->n_nodes ? sage->options->max_nodes : r->n_nodes,
           walked = 0;
    size_t *order = arena_alloc(sage->arena, max, sizeof(size_t));
    cross->nodes = arena_alloc(sage->arena, max, sizeof(size_t));
    cross->others = arena_alloc(sage->arena, max, sizeof(size_t));
    double total = 0.0, carried = 0.0;
    for (size_t i = 0; i < r->n_nodes; i++) {
        total += fabs(score[i]);
    }
    while (walked < max && carried < sage->options->share * total) {
        size_t top = r->n_nodes;
        for (size_t i = 0; i < r->n_nodes; i++) {
            if (!chosen[i] && (top == r->n_nodes || fabs(score[i]) > fabs(score[top]))) {
                top = i;
            }
        }
        chosen[top] = true;
        carried += fabs(score[top]);
        order[walked++] = top;
    }
    cross->share = total > 0.0 ? carried / total : 0.0;
    for (size_t i = 0; i < walked; i++) {
        bool out = false;
        for (size_t j = 0; j < walked; j++) {
            out |= screens_off(&r->nodes[order[i]], &r->nodes[order[j]]);
        }
        if (!out) {
            cross->nodes[cross->n_nodes++] = order[i];
        }
    }
    memset(chosen, 0, r->n_nodes * sizeof(bool));
    for (size_t i = 0; i < cross->n_nodes; i++) {
        chosen[cross->nodes[i]] = true;
    }
    if (cross->n_nodes == 0) {
        fail(STATUS_INPUT, "attribute '%s' moves no node of this model",
             sage->task.attributes[attribute].name);
    }
    /* as many others, drawn without replacement from what was not walked, in the order of the nodes
     */
    Random random =
        random_start(sage->options->seed, RANDOM_SAGE_OTHERS + ((uint64_t)attribute << 32));
    size_t left = r->n_nodes - walked, need = left < cross->n_nodes ? left : cross->n_nodes;
    for (size_t i = 0; i < r->n_nodes && need > 0; i++) {
        bool was_walked = false;
        for (size_t j = 0; j < walked; j++) {
            was_walked |= order[j] == i;
        }
        if (!was_walked && random_below(&random, left--) < need) {
            cross->others[cross->n_others++] = i;
            need--;
        }
    }
}

/* ---- true effects ---- */

static double mean_rank(const double *x, size_t n, size_t i) {
    double below = 0.0, equal = 0.0;
    for (size_t j = 0; j < n; j++) {
        below += x[j] < x[i] ? 1.0 : 0.0;
        equal += x[j] == x[i] ? 1.0 : 0.0;
    }
    return below + (equal + 1.0) / 2.0;
}

/* Rank correlation, ties at their mean rank. */
static double spearman(const double *x, const double *y, size_t n) {
    double mean = ((double)n + 1.0) / 2.0, xy = 0.0, xx = 0.0, yy = 0.0;
    for (size_t i = 0; i < n; i++) {
        double a = mean_rank(x, n, i) - mean, b = mean_rank(y, n, i) - mean;
        xy += a * b;
        xx += a * a;
        yy += b * b;
    }
    return xx > 0.0 && yy > 0.0 ? xy / sqrt(xx * yy) : NAN;
}

typedef struct Effects { /* of one attribute: the nodes to patch, and sums over prompts */
    size_t count, *nodes;
    Slice *slices;
    double *sums;
} Effects;

static Effects effects_open(const Sage *sage, const SageCross *cross, Arena *arena) {
    Effects e = {.count = cross->n_nodes + cross->n_others};
    e.nodes = arena_alloc(arena, e.count, sizeof(size_t));
    e.slices = arena_alloc(arena, e.count, sizeof(Slice));
    e.sums = arena_alloc(arena, 2 * e.count, sizeof(double));
    for (size_t i = 0; i < e.count; i++) {
        e.nodes[i] = i < cross->n_nodes ? cross->nodes[i] : cross->others[i - cross->n_nodes];
        const SageNode *node = &sage->result.nodes[e.nodes[i]];
        float *values =
            arena_alloc(arena, sage->batch * sage_width(sage, node->kind), sizeof(float));
        e.slices[i] = sage_slice(sage, node, values, false);
    }
    return e;
}

/* The counterfactuals come first, so that the keys and values that patches stand on are the clean
 * ones. */
static void effects_batch(Sage *sage, Effects *all, size_t first, size_t n, double *m) {
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        for (size_t i = 0; i < all[a].count; i++) {
            all[a].slices[i].write = false;
        }
        sage_batch(sage, SAGE_TRAIN, (int)a, first, n);
        sage->first_prompt = 0;
        sage_forward(sage, all[a].slices, all[a].count, NULL, NULL);
    }
    double *patched = m + sage->batch;
    sage_batch(sage, SAGE_TRAIN, -1, first, n);
    sage->first_prompt = 0;
    sage_streams(sage, m, NULL);
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        for (size_t i = 0; i < all[a].count; i++) {
            all[a].slices[i].write = true;
            sage_patch(sage, &all[a].slices[i], 1, patched, NULL);
            for (size_t s = 0; s < n; s++) {
                all[a].sums[i] += patched[s] - m[s];
            }
        }
    }
}

static void effects(Sage *sage) {
    SageResult *r = &sage->result;
    size_t n_train = sage->task.n_prompts[SAGE_TRAIN];
    Arena *scratch = arena_new();
    Effects *all = arena_alloc(scratch, sage->task.n_attributes, sizeof *all);
    double *m = arena_alloc(scratch, 2 * sage->batch, sizeof(double));
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        all[a] = effects_open(sage, &r->cross[a], scratch);
    }
    Progress progress = progress_start("patching", "prompts", 0, n_train, sage->console->quiet);
    for (size_t first = 0; first < n_train; first += sage->batch) {
        size_t n = n_train - first < sage->batch ? n_train - first : sage->batch;
        effects_batch(sage, all, first, n, m);
        progress_set(&progress, first + n, NULL);
    }
    progress_end(&progress);
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        Effects *e = &all[a];
        for (size_t i = 0; i < e->count; i++) {
            e->sums[i] /= (double)n_train;
            e->sums[e->count + i] = r->score[a * r->n_nodes + e->nodes[i]];
            r->effect[a * r->n_nodes + e->nodes[i]] = e->sums[i];
        }
        r->cross[a].spearman = spearman(e->sums + e->count, e->sums, e->count);
    }
    arena_free(scratch);
}

/* ---- baseline ---- */

static void baseline(Sage *sage) {
    size_t n_test = sage->task.n_prompts[SAGE_TEST], right = 0;
    double *m = sage->m, sum = 0.0;
    int32_t *predicted = sage->predicted;
    for (size_t first = 0; first < n_test; first += sage->batch) {
        size_t n = n_test - first < sage->batch ? n_test - first : sage->batch;
        sage_batch(sage, SAGE_TEST, -1, first, n);
        sage_forward(sage, NULL, 0, m, predicted);
        for (size_t s = 0; s < n; s++) {
            bool hit = false;
            for (size_t i = 0; i < sage->forms[s]->n_answer; i++) {
                hit |= sage->forms[s]->answer[i] == predicted[s];
            }
            right += hit ? 1 : 0;
            sum += m[s];
        }
    }
    sage->result.accuracy = (double)right / (double)n_test;
    sage->result.m_clean = sum / (double)n_test;
}

/* ---- centring of SAEs on LayerNorm models ---- */

/* Where no file says whether the stream was centred for training, both are tried on the first
 * training prompts; centring is taken if its FVU is lower by a factor of 1.5. */
static void settle_centring(Sage *sage, Sae *sae) {
    size_t n = sage->task.n_prompts[SAGE_TRAIN] < 16 ? sage->task.n_prompts[SAGE_TRAIN] : 16;
    size_t rows = n * sage->task.n_positions, d = sae->d_in;
    double fvu[2];
    char name[HOOK_NAME_MAX];
    Arena *scratch = arena_new();
    Slice *slices = arena_alloc(scratch, sage->task.n_positions, sizeof(Slice));
    float *x = arena_alloc(scratch, rows * d, sizeof(float));
    float *target = arena_alloc(scratch, rows * d, sizeof(float));
    float *recon = arena_alloc(scratch, rows * d, sizeof(float));
    float *acts = arena_alloc(scratch, rows * sae->d_sae, sizeof(float));
    SaeRun *run = sae_run_layout(sage->compute, d, sae->d_sae, rows, scratch);
    for (size_t p = 0; p < sage->task.n_positions; p++) {
        slices[p] = (Slice){sae->hook, sae->layer, -1, p, d, false, false, x + p * n * d};
    }
    for (size_t first = 0; first < n; first += sage->batch) {
        sage_batch(sage, SAGE_TRAIN, -1, first, n - first < sage->batch ? n - first : sage->batch);
        sage_forward(sage, slices, sage->task.n_positions, NULL, NULL);
    }
    for (int k = 0; k < 2; k++) {
        SaeStats stats;
        sae->centre = k == 0 ? SAE_CENTRE_NO : SAE_CENTRE_YES;
        sae_encode(sae, run, x, NULL, acts, rows);
        sae_decode(sae, run, acts, recon, rows);
        sae_target(sae, sage->compute, target, x, rows);
        sae_stats(&stats, target, recon, acts, rows, d, sae->d_sae);
        fvu[k] = stats.fvu;
    }
    arena_free(scratch);
    sae->centre = fvu[1] * 1.5 < fvu[0] ? SAE_CENTRE_YES : SAE_CENTRE_NO;
    hook_name(name, sae->hook, sae->layer, false, false);
    console_line(sage->console,
                 "%s: stream %scentred for its SAE (FVU %.4f as it is, %.4f centred)", name,
                 sae->centre == SAE_CENTRE_YES ? "" : "not ", fvu[0], fvu[1]);
}

/* ---- the run ---- */

static void run_layout(Arena *arena, void *user) {
    Sage *sage = user;
    const LlmConfig *c = &sage->llm.config;
    size_t rows = sage->batch * sage->longest;
    LlmPlan plan = {.max_rows = rows,
                    .max_sequence = sage->longest,
                    .max_sequences = sage->batch,
                    .max_logits = sage->batch,
                    .backward = true,
                    .tails = true};
    sage->run = llm_run_layout(&sage->llm, sage->compute, &plan, arena);
    sage->ids = arena_alloc(arena, rows, sizeof(int32_t));
    sage->tail_ids = arena_alloc(arena, rows, sizeof(int32_t));
    sage->start = arena_alloc(arena, sage->batch + 1, sizeof(size_t));
    sage->tail_start = arena_alloc(arena, sage->batch + 1, sizeof(size_t));
    sage->past = arena_alloc(arena, sage->batch, sizeof(size_t));
    sage->last_row = arena_alloc(arena, sage->batch, sizeof(size_t));
    sage->forms = arena_alloc(arena, sage->batch, sizeof(SageForm *));
    sage->logits = arena_alloc(arena, sage->batch * c->d_vocab, sizeof(float));
    sage->dlogits = arena_alloc(arena, sage->batch * c->d_vocab, sizeof(float));
    sage->listed = arena_alloc(arena, sage->longest_list, sizeof(float));
    sage->m = arena_alloc(arena, sage->batch, sizeof(double));
    sage->predicted = arena_alloc(arena, sage->batch, sizeof(int32_t));
    sage->tail_stream = arena_alloc(arena, rows * c->d_model, sizeof(float));
    sage->streams = arena_alloc(arena, c->n_layers, sizeof(float *));
    for (size_t layer = 1; layer < c->n_layers; layer++) {
        float *stream = arena_alloc(arena, rows * c->d_model, sizeof(float));
        if (sage->streams != NULL) {
            sage->streams[layer] = stream;
        }
    }
}

static void note_longest(Sage *sage, const SageForm *form) {
    sage->longest = form->rows > sage->longest ? form->rows : sage->longest;
    sage->longest_list = form->n_answer > sage->longest_list ? form->n_answer : sage->longest_list;
    sage->longest_list = form->n_wrong > sage->longest_list ? form->n_wrong : sage->longest_list;
}

/* Settles how many prompts run at once; the bytes of their run. */
static size_t run_measure(Sage *sage) {
    for (sage->batch = BATCH_ROWS / sage->longest + 1;; sage->batch = (sage->batch + 1) / 2) {
        size_t bytes = arena_measure(run_layout, sage);
        if (sage->batch == 1 || bytes <= batch_bytes) {
            return bytes;
        }
    }
}

size_t sage_memory(const Compute *compute, const Llm *llm, size_t longest) {
    Sage sage = {.compute = compute, .llm = *llm, .longest = longest, .longest_list = 1};
    return run_measure(&sage);
}

static void run_open(Sage *sage) {
    for (int s = 0; s < SAGE_SPLITS; s++) {
        for (size_t i = 0; i < sage->task.n_prompts[s]; i++) {
            const SagePrompt *prompt = &sage->task.prompts[s][i];
            note_longest(sage, &prompt->clean);
            for (size_t a = 0; a < sage->task.n_attributes; a++) {
                note_longest(sage, &prompt->counterfactual[a]);
            }
        }
    }
    run_measure(sage);
    sage->block = arena_plan(run_layout, sage);
}

static void open_saes(Sage *sage) {
    const SageOptions *o = sage->options;
    SaeOptions options = o->sae;
    options.stream = true;
    sae_set_open(&sage->saes, sage->arena, o->saes, HOOK_KINDS, NULL, 0, o->canonical, &options);
    for (size_t i = 0; i < sage->saes.count; i++) {
        const Sae *sae = &sage->saes.saes[i];
        if (sae->d_in != sage->llm.config.d_model) {
            fail(STATUS_INPUT, "%s: reads %zu dimensions, the model's stream has %zu", sae->path,
                 sae->d_in, sage->llm.config.d_model);
        }
    }
}

static void open_prompts(Sage *sage) {
    const SageOptions *o = sage->options;
    bool bos = o->bos == 1 || (o->bos < 0 && sage->llm.config.kind == LLM_GEMMA2);
    for (size_t i = 0; i < sage->saes.count; i++) {
        bos |= o->bos < 0 && sage->saes.saes[i].prepend_bos;
    }
    if (bos && sage->llm.config.bos < 0 && o->prompts == NULL) {
        fail(STATUS_INPUT, "%s: config.json names no bos_token_id", o->llm);
    }
    sage_task_open(&sage->task, sage->arena, o->task, sage->tokenizer);
    for (size_t i = 0; i < sage->task.n_dropped; i++) {
        console_line(sage->console, "dropped: %s=%s is not one token in this tokenizer",
                     sage->task.dropped[i].attribute, sage->task.dropped[i].value);
    }
    if (o->prompts != NULL) {
        sage_prompts_read(&sage->task, o->prompts, sage->llm.config.d_vocab);
    } else {
        sage_prompts_draw(&sage->task, sage->tokenizer, bos ? sage->llm.config.bos : -1, o->n,
                          o->seed);
    }
    sage_prompts_write(&sage->task, path_join(sage->arena, o->out, "prompts.jsonl"));
}

static void sage_all(Sage *sage) {
    const SageOptions *o = sage->options;
    if (o->n[SAGE_TRAIN] == 0 || o->n[SAGE_TEST] == 0 || o->max_nodes == 0 ||
        !(o->share > 0.0 && o->share <= 1.0)) {
        fail(STATUS_INPUT, "--train, --test and --max-nodes must be at least 1, --share in (0, 1]");
    }
    sage_test_options(o); /* a mistake is told before the work */
    path_make_directory(o->out);
    llm_open(&sage->llm, sage->arena, o->llm);
    sage->tokenizer = tokenizer_open(sage->arena, o->llm);
    open_saes(sage);
    open_prompts(sage);
    run_open(sage);
    list_nodes(sage);
    for (size_t i = 0; i < sage->saes.count; i++) {
        Sae *sae = &sage->saes.saes[i];
        bool here = sae->layer < (int)sage->llm.config.n_layers &&
                    !(sae->hook == HOOK_RESID_MID && sage->llm.config.parallel);
        if (here && sae->centre == SAE_CENTRE_UNKNOWN && !sage->llm.config.rms_norm) {
            settle_centring(sage, sae);
        }
    }
    baseline(sage);
    score_nodes(sage);
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        walk(sage, a);
        sage_test_check(sage, a);
    }
    effects(sage);
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        sage_test_attribute(sage, a);
        console_line(sage->console, "%s: %zu nodes, Spearman of score and effect %.3f",
                     sage->task.attributes[a].name, sage->result.cross[a].n_nodes,
                     sage->result.cross[a].spearman);
    }
    report_sage(&sage->result);
}

void sage_run(const Compute *compute, const SageOptions *options, const Console *console) {
    Sage sage = {.compute = compute, .options = options, .console = console};
    sage.result.options = options;
    sage.result.console = console;
    sage.result.task = &sage.task;
    sage.arena = arena_new();
    sage_all(&sage);
    arena_free(sage.block);
    arena_free(sage.arena);
}

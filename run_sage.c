/* run_sage.c: SAGE from files to a result. The formulas are in sage.c; here prompts run in batches,
 * activations are captured and patched, and cross-sections follow one another. */
#include "run_sage.h"
#include "model_load.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A run's memory stays within this where a batch of several prompts would take more. */
#ifdef REFSAE_SMALL
static const size_t batch_bytes = (size_t)1 << 20;
#else
static const size_t batch_bytes = (size_t)768 << 20;
#endif
enum {
    BATCH_ROWS = 512,
    ENCODED_ROWS = 32,    /* prompts that an SAE encodes at once */
    CENTRING_PROMPTS = 16 /* on which centring is tried */
};

/* Part of an activation at a named position of every prompt, copied out of the pass or (write) into
 * it: values[prompts, width], of the batch or of the whole split. head -1: the whole row. */
typedef struct Slice {
    HookKind kind;
    int layer, head;
    size_t position, width;
    bool gradient, write;
    float *values;
} Slice;

/* Slices that are read or written together, and what the model says then of each prompt of the
 * split. Of slices for one token, which names may share, the last stands. */
typedef struct Patch {
    Slice *slices;
    size_t n;
    double *m;          /* NULL: not asked, so that the pass ends where the slices do */
    int32_t *predicted; /* the most probable token; NULL: not asked */
} Patch;

typedef struct SageRun {
    SageSection section; /* what all cross-sections have */
    const SageOptions *options;
    const Console *console;
    Llm llm;
    Tokenizer *tokenizer;
    SaeSet saes;
    SageTask *task;
    SageResult result;
    Arena *arena; /* of the caller: task and result */
    LlmRun *run;
    size_t longest, longest_list;
    size_t *order; /* [n_attributes, n_nodes]: of the walks */
    /* The current batch: prompts first .. first + n_forms - 1 of a split, which of a slice's values
     * are the first's, and every layer's hook_resid_pre, a clean prompt from stream_row on. */
    const SageForm **forms; /* [batch] */
    size_t n_forms, first, first_value, *stream_row;
    float **streams; /* [n_layers] */
    bool keeps;      /* the current pass leaves the streams */
    /* Sequences of the current pass, or that wait for the next: a prompt of the batch from token
     * `past` on, under a patch. */
    size_t n, *of, *past, *start, *end_row; /* end_row: the last of each */
    const Patch **patch;                    /* [rows] */
    int32_t *ids;
    float *stream;
    size_t *last_row;                 /* [batch] */
    float *logits, *dlogits, *listed; /* [batch, d_vocab] twice, [longest_list] */
    size_t interpretations_room, nodes_room;
} SageRun;

/* ---- hooks ---- */

static bool slice_at(const Slice *slice, HookKind kind, int layer, bool gradient) {
    return slice->kind == kind && slice->layer == layer && slice->gradient == gradient;
}

static bool wants_slices(void *user, HookKind kind, int layer, bool gradient) {
    const SageRun *r = user;
    bool wanted = r->keeps && kind == HOOK_RESID_PRE && layer > 0;
    for (size_t s = 0; s < r->n && !wanted; s++) {
        for (size_t i = 0; i < r->patch[s]->n && (s == 0 || r->patch[s] != r->patch[s - 1]); i++) {
            wanted |= slice_at(&r->patch[s]->slices[i], kind, layer, gradient);
        }
    }
    return wanted;
}

/* Reads or writes the slices of each sequence in their order. */
static void call_slices(void *user, const HookPoint *point, float *data) {
    const SageRun *r = user;
    size_t row_size = 1;
    for (int i = 1; i < point->rank; i++) {
        row_size *= point->shape[i];
    }
    if (r->keeps && point->kind == HOOK_RESID_PRE && point->layer > 0) {
        memcpy(r->streams[point->layer], data, point->shape[0] * row_size * sizeof(float));
    }
    for (size_t s = 0; s < r->n; s++) {
        const size_t *positions = r->forms[r->of[s]]->positions;
        for (size_t i = 0; i < r->patch[s]->n; i++) {
            const Slice *slice = &r->patch[s]->slices[i];
            if (slice_at(slice, point->kind, point->layer, point->gradient)) {
                size_t row = r->start[s] + positions[slice->position] - r->past[s],
                       head = slice->head < 0 ? 0 : (size_t)slice->head, width = slice->width;
                float *at = data + row * row_size + head * width,
                      *values = slice->values + (r->first_value + r->of[s]) * width;
                memcpy(slice->write ? at : values, slice->write ? values : at,
                       width * sizeof(float));
            }
        }
    }
}

/* ---- batches ---- */

/* How many of `count` prompts run at once from `first` on; 0: none is left. */
static size_t batch_size(const SageRun *r, size_t count, size_t first) {
    return count - first < r->section.batch ? count - first : r->section.batch;
}

/* Takes prompts first .. first + n - 1 of a split as the current batch: as they are (attribute -1),
 * or their counterfactuals. alone: slices have values of the batch, not of the whole split. */
static void batch_take(SageRun *r, SageSplit split, int attribute, size_t first, size_t n,
                       bool alone) {
    r->first = first;
    r->first_value = alone ? 0 : first;
    r->n_forms = n;
    for (size_t s = 0; s < n; s++) {
        const SagePrompt *prompt = &r->task->prompts[split][first + s];
        r->forms[s] = attribute < 0 ? &prompt->clean : &prompt->counterfactual[attribute];
    }
}

static void sequence_add(SageRun *r, const Patch *patch, size_t s, size_t past) {
    const SageForm *form = r->forms[s];
    size_t n = r->n++, count = form->rows - past;
    r->patch[n] = patch;
    r->of[n] = s;
    r->past[n] = past;
    r->start[n + 1] = r->start[n] + count;
    r->end_row[n] = r->start[n + 1] - 1;
    memcpy(r->ids + r->start[n], form->ids + past, count * sizeof(int32_t));
}

/* The logits that m reads, alone, in their places among all. */
static void read_list(SageRun *r, size_t row, const int32_t *ids, size_t n, float *logits) {
    llm_logits_at(r->run, row, ids, n, r->listed);
    for (size_t i = 0; i < n; i++) {
        logits[ids[i]] = r->listed[i];
    }
}

/* After a pass: m of every sequence, and where it is asked the most probable token; else only the
 * logits that m needs are computed. ends: each sequence has its last row alone. */
static void outcomes_read(SageRun *r, bool ends) {
    size_t vocab = r->llm.config.d_vocab;
    for (size_t s = 0, n; s < r->n; s += n) {
        bool asked = r->patch[s]->predicted != NULL;
        for (n = 0; n < r->section.batch && s + n < r->n; n++) {
            if ((r->patch[s + n]->predicted != NULL) != asked) {
                break;
            }
            r->last_row[n] = ends ? s + n : r->end_row[s + n];
        }
        if (asked) {
            llm_logits(r->run, r->last_row, n, true, r->logits, NULL);
        }
        for (size_t i = 0; i < n; i++) {
            const Patch *patch = r->patch[s + i];
            const SageForm *form = r->forms[r->of[s + i]];
            size_t prompt = r->first + r->of[s + i], top = 0;
            float *logits = r->logits + i * vocab;
            for (size_t k = 1; k < vocab && asked; k++) {
                top = logits[k] > logits[top] ? k : top;
            }
            if (asked) {
                patch->predicted[prompt] = (int32_t)top;
            } else {
                read_list(r, r->last_row[i], form->answer, form->n_answer, logits);
                read_list(r, r->last_row[i], form->wrong, form->n_wrong, logits);
            }
            patch->m[prompt] = sage_metric(logits, form);
        }
    }
}

/* ---- passes ---- */

/* Runs the whole batch under a patch. keep: its streams are left for tails, and no slice stands
 * behind the last layer's q, k and v. */
static void pass_whole(SageRun *r, const Patch *patch, bool keep) {
    Hooks hooks = {call_slices, wants_slices, r};
    size_t last = patch->m != NULL ? r->llm.config.n_layers : 0;
    for (size_t i = 0; i < patch->n; i++) {
        int layer = patch->slices[i].layer;
        last = layer >= (int)last ? (size_t)layer + 1 : last;
    }
    r->n = 0;
    for (size_t s = 0; s < r->n_forms; s++) {
        sequence_add(r, patch, s, 0);
        r->stream_row[s] = r->start[s];
    }
    LlmBatch batch = {r->n, r->start, r->ids, NULL, NULL, keep ? r->end_row : NULL};
    r->keeps = keep;
    llm_forward(r->run, &batch, 0, last, NULL, &hooks);
    r->keeps = false;
    if (patch->m != NULL) {
        outcomes_read(r, keep);
    }
}

/* Captures slices over the first `count` prompts of a split (attribute as in batch_take). */
static void capture(SageRun *r, SageSplit split, int attribute, size_t count, Slice *slices,
                    size_t n_slices) {
    for (size_t first = 0, n; (n = batch_size(r, count, first)) > 0; first += n) {
        batch_take(r, split, attribute, first, n, false);
        pass_whole(r, &(Patch){.slices = slices, .n = n_slices}, false);
    }
}

/* ---- patches ----
 * Speed: what no patch reaches, the layers before the first patched one and the rows before the
 * first patched position, is taken from the last pass that kept its streams; of the last layer only
 * the last rows run, unless a patch stands behind its q, k and v; and prompts under different
 * patches wait for one another, so that a pass has many rows. Of ioi on the toy GPT-2, 400 + 200
 * prompts, a whole run takes 9.4 s of processor time with the first two and 16.9 s without. */

/* From which layer a patch runs, and whether last rows alone leave the last. */
static size_t patch_first(const SageRun *r, const Patch *patch, bool *ends) {
    size_t last = r->llm.config.n_layers - 1, first = last;
    *ends = true;
    for (size_t i = 0; i < patch->n; i++) {
        HookKind kind = patch->slices[i].kind;
        size_t layer = (size_t)patch->slices[i].layer;
        first = layer < first ? layer : first;
        *ends &= layer < last || kind == HOOK_Q || kind == HOOK_K || kind == HOOK_V;
    }
    return first;
}

/* Runs all that wait. */
static void patches_run(SageRun *r) {
    bool ends;
    Hooks hooks = {call_slices, wants_slices, r};
    if (r->n > 0) {
        size_t first = patch_first(r, r->patch[0], &ends);
        LlmBatch batch = {r->n, r->start, r->ids, r->past, r->of, ends ? r->end_row : NULL};
        llm_forward(r->run, &batch, first, r->llm.config.n_layers, first > 0 ? r->stream : NULL,
                    &hooks);
        outcomes_read(r, ends);
    }
    r->n = 0;
}

/* Lets prompt s of the batch wait for a pass with the patch; what it says is known behind
 * patches_run. The patch stays until then. */
static void patch_add(SageRun *r, const Patch *patch, size_t s) {
    const SageForm *form = r->forms[s];
    size_t past = form->rows - 1, d = r->llm.config.d_model;
    bool ends, ends_before;
    size_t first = patch_first(r, patch, &ends);
    for (size_t i = 0; i < patch->n; i++) {
        size_t position = form->positions[patch->slices[i].position];
        past = position < past ? position : past;
    }
    size_t count = form->rows - past;
    if (r->n > 0 && (r->start[r->n] + count > r->section.batch * r->longest ||
                     patch_first(r, r->patch[0], &ends_before) != first || ends_before != ends)) {
        patches_run(r);
    }
    if (first > 0) {
        memcpy(r->stream + r->start[r->n] * d, r->streams[first] + (r->stream_row[s] + past) * d,
               count * d * sizeof(float));
    }
    sequence_add(r, patch, s, past);
}

/* An earlier patch that does the same to prompt s of the batch; NULL: none. Speed: features that no
 * threshold parts, or edits that end before k, come to the same. */
static const Patch *patch_twin(const Patch *patches, const Patch *patch, size_t s) {
    for (const Patch *other = patches + 1; other < patch; other++) {
        bool same = other->n == patch->n && (patch->predicted == NULL || other->predicted != NULL);
        for (size_t i = 0; i < patch->n && same; i++) {
            const Slice *a = &patch->slices[i], *b = &other->slices[i];
            same = slice_at(a, b->kind, b->layer, false) && a->head == b->head &&
                   a->position == b->position &&
                   memcmp(a->values + s * a->width, b->values + s * a->width,
                          a->width * sizeof(float)) == 0;
        }
        if (same) {
            return other;
        }
    }
    return NULL;
}

/* What the model says of the current batch, whose streams are kept, under every patch. */
static void batch_patch(SageRun *r, const Patch *patches, size_t n_patches, const Patch **twins) {
    size_t n = r->n_forms;
    r->n = 0;
    for (size_t i = n; i < n_patches * n; i++) {
        twins[i] = patch_twin(patches, &patches[i / n], i % n);
        if (twins[i] == NULL) {
            patch_add(r, &patches[i / n], i % n);
        }
    }
    patches_run(r);
    for (size_t i = n; i < n_patches * n; i++) {
        size_t prompt = r->first + i % n;
        if (twins[i] != NULL) {
            patches[i / n].m[prompt] = twins[i]->m[prompt];
        }
        if (twins[i] != NULL && patches[i / n].predicted != NULL) {
            patches[i / n].predicted[prompt] = twins[i]->predicted[prompt];
        }
    }
}

/* What the model says of all prompts of a split: as they are (patches[0], without slices), and
 * under every other patch. Before a batch its values are formed: others[n_attributes] read them in
 * the counterfactuals, or they are edits of the section. */
static void patches_measure(SageRun *r, const char *what, SageSplit split, const Patch *patches,
                            size_t n_patches, const Patch *others, SageSection *section) {
    size_t n_prompts = r->task->n_prompts[split], begin, end;
    Arena *scratch = arena_new();
    const Patch **twins = arena_alloc(scratch, n_patches * r->section.batch, sizeof *twins);
    shard_range(r->options->vlm.shard, n_prompts, &begin, &end);
    Progress progress = progress_start(what, "prompts", begin, end, r->console->quiet);
    for (size_t first = begin, n; (n = batch_size(r, end, first)) > 0; first += n) {
        for (size_t a = 0; a < r->task->n_attributes && others != NULL; a++) {
            batch_take(r, split, (int)a, first, n, true);
            pass_whole(r, &others[a], false);
        }
        batch_take(r, split, -1, first, n, true); /* last: tails stand on its keys and values */
        pass_whole(r, &patches[0], true);
        if (section != NULL) {
            sage_edit(section, first, n);
        }
        batch_patch(r, patches, n_patches, twins);
        progress_set(&progress, first + n, NULL);
    }
    progress_end(&progress);
    for (const Patch *patch = patches; patch < patches + n_patches; patch++) {
        shard_rows(r->options->vlm.shard, patch->m, n_prompts, sizeof *patch->m);
        if (patch->predicted != NULL) {
            shard_rows(r->options->vlm.shard, patch->predicted, n_prompts,
                       sizeof *patch->predicted);
        }
    }
    arena_free(scratch);
}

/* ---- nodes ---- */

static const JsonName components[] = {{"q", HOOK_Q},
                                      {"k", HOOK_K},
                                      {"v", HOOK_V},
                                      {"z", HOOK_Z},
                                      {"attn_out", HOOK_ATTN_OUT},
                                      {"mlp_out", HOOK_MLP_OUT},
                                      {NULL, HOOK_KINDS}};

static bool is_component(HookKind kind) {
    const JsonName *c = components;
    while (c->name != NULL && c->value != (int)kind) {
        c++;
    }
    return c->name != NULL;
}

/* What the first name of *list, "a,b,c", stands for, or what ends the table; *list goes on to the
 * next, NULL behind the last. */
static int list_next(const char **list, const JsonName *names) {
    size_t length = strcspn(*list, ",");
    while (names->name != NULL &&
           (strlen(names->name) != length || memcmp(names->name, *list, length) != 0)) {
        names++;
    }
    *list = (*list)[length] == ',' ? *list + length + 1 : NULL;
    return names->value;
}

/* A block's output, of all heads together. */
static bool is_whole(HookKind kind) {
    return kind == HOOK_ATTN_OUT || kind == HOOK_MLP_OUT;
}

static size_t node_width(const SageRun *r, HookKind kind) {
    return is_whole(kind) ? r->llm.config.d_model : r->llm.config.d_head;
}

/* Heads of a component; 1 of a whole block. */
static size_t node_heads(const SageRun *r, HookKind kind) {
    const LlmConfig *config = &r->llm.config;
    return is_whole(kind)                     ? 1
           : kind == HOOK_K || kind == HOOK_V ? config->n_kv_heads
                                              : config->n_heads;
}

/* All nodes, in the order that settles ties: layer, component, head, position. */
static void list_nodes(SageRun *r) {
    const LlmConfig *config = &r->llm.config;
    SageResult *result = &r->result;
    bool wanted[HOOK_KINDS] = {false};
    for (const char *list = r->options->nodes; list != NULL;) {
        int kind = list_next(&list, components);
        if (kind == HOOK_KINDS) {
            fail(STATUS_INPUT, "--nodes %s: expected some of q,k,v,z,attn_out,mlp_out",
                 r->options->nodes);
        }
        wanted[kind] = true;
    }
    size_t most = config->n_layers * 6 * config->n_heads * r->task->n_positions;
    result->nodes = arena_alloc(r->arena, most, sizeof(SageNode));
    for (size_t layer = 0; layer < config->n_layers; layer++) {
        for (const JsonName *c = components; c->name != NULL; c++) {
            HookKind kind = (HookKind)c->value;
            size_t count = node_heads(r, kind) * r->task->n_positions;
            for (size_t i = 0; wanted[kind] && i < count; i++) {
                int head = is_whole(kind) ? -1 : (int)(i / r->task->n_positions);
                result->nodes[result->n_nodes++] =
                    (SageNode){kind, (int)layer, head, i % r->task->n_positions};
            }
        }
    }
    result->n_cross = r->task->n_attributes;
    result->cross = arena_alloc(r->arena, result->n_cross, sizeof(SageCross));
    for (size_t a = 0; a < result->n_cross; a++) {
        result->cross[a] = (SageCross){.name = r->task->attributes[a].name, .attribute = (int)a};
    }
}

/* A node of --cross-sections, by its place among all; it is added if it is new. */
static size_t read_node(SageRun *r, const Json *json) {
    SageResult *result = &r->result;
    const char *name = json_need(json, "node", JSON_STRING)->text,
               *position = json_need(json, "position", JSON_STRING)->text;
    SageNode node = {.head = -1};
    bool vision;
    size_t i = 0;
    bool found = hook_parse(name, &node.kind, &node.layer, &vision) && !vision && node.layer >= 0 &&
                 (size_t)node.layer < r->llm.config.n_layers;
    if (!found || !is_component(node.kind)) {
        json_refuse(json, "node", "q, k, v, z, attn_out or mlp_out of a layer of the model");
    }
    if (is_whole(node.kind) && json_set(json, "head") != NULL) {
        json_refuse(json, "head", "null: a block's output has no heads");
    }
    if (!is_whole(node.kind)) {
        (void)json_need(json, "head", JSON_NUMBER);
        node.head = (int)json_size(json, "head", 0, 0, node_heads(r, node.kind) - 1);
    }
    while (node.position < r->task->n_positions &&
           strcmp(r->task->positions[node.position], position) != 0) {
        node.position++;
    }
    if (node.position == r->task->n_positions) {
        json_refuse(json, "position", "a position of the task");
    }
    while (i < result->n_nodes &&
           (result->nodes[i].kind != node.kind || result->nodes[i].layer != node.layer ||
            result->nodes[i].head != node.head || result->nodes[i].position != node.position)) {
        i++;
    }
    if (i == result->n_nodes) {
        result->nodes =
            arena_grow(r->arena, result->nodes, &r->nodes_room, i + 1, sizeof(SageNode));
        result->nodes[result->n_nodes++] = node;
    }
    return i;
}

static void read_cross(SageRun *r, SageCross *cross, const Json *nodes) {
    const char *path = r->options->cross_sections;
    cross->nodes = arena_alloc(r->arena, nodes->length, sizeof(size_t));
    for (const Json *node = nodes->child; node != NULL; node = node->next) {
        if (node->kind != JSON_OBJECT) {
            fail(STATUS_INPUT, "%s: '%s' has a node that is no object", path, cross->name);
        }
        size_t place = read_node(r, node);
        for (size_t i = 0; i < cross->n_nodes; i++) {
            if (cross->nodes[i] == place) {
                fail(STATUS_INPUT, "%s: '%s' has a node twice", path, cross->name);
            }
        }
        cross->nodes[cross->n_nodes++] = place;
    }
    if (cross->n_nodes == 0) {
        fail(STATUS_INPUT, "%s: '%s' has no nodes", path, cross->name);
    }
}

enum {
    CROSS_MOST = 1024
};

/* --cross-sections: NAME: {"nodes": [...]}, as sage.json has them too. */
static void read_cross_sections(SageRun *r) {
    SageResult *result = &r->result;
    const char *path = r->options->cross_sections;
    const Json *file = json_read_file(r->arena, path),
               *list = json_member(file, "cross_sections", JSON_OBJECT);
    list = list != NULL ? list : file;
    if (!json_is(list, JSON_OBJECT) || list->length == 0 || list->length > CROSS_MOST) {
        fail(STATUS_INPUT, "%s: expected 1 to %d cross-sections by name", path, CROSS_MOST);
    }
    result->cross = arena_alloc(r->arena, list->length, sizeof(SageCross));
    for (const Json *member = list->child; member != NULL; member = member->next) {
        const Json *nodes = json_need(list, member->key, JSON_OBJECT);
        nodes = json_need(nodes, "nodes", JSON_ARRAY);
        for (size_t c = 0; c < result->n_cross; c++) {
            if (strcmp(result->cross[c].name, member->key) == 0) {
                fail(STATUS_INPUT, "%s: '%s' stands twice", path, member->key);
            }
        }
        SageCross *cross = &result->cross[result->n_cross++];
        *cross = (SageCross){.name = member->key, .attribute = -1, .share = NAN, .spearman = NAN};
        read_cross(r, cross, nodes);
    }
}

/* What is found of each node in each cross-section; NaN until it is. */
static void open_nodes(SageRun *r) {
    SageResult *result = &r->result;
    if (r->options->cross_sections != NULL) {
        read_cross_sections(r);
    } else {
        list_nodes(r);
    }
    size_t all = result->n_nodes * result->n_cross;
    result->score = arena_alloc(r->arena, all, sizeof(double));
    result->effect = arena_alloc(r->arena, all, sizeof(double));
    result->chosen = arena_alloc(r->arena, all, sizeof(bool));
    for (size_t i = 0; i < all; i++) {
        result->effect[i] = NAN;
        result->score[i] = r->options->cross_sections != NULL ? NAN : 0.0;
    }
    for (size_t c = 0; c < result->n_cross; c++) {
        for (size_t i = 0; i < result->cross[c].n_nodes; i++) {
            result->chosen[c * result->n_nodes + result->cross[c].nodes[i]] = true;
        }
    }
}

/* A patch of n slices that asks for m in the prompts of a split. */
static Patch patch_new(const SageRun *r, size_t n, SageSplit split, Arena *arena) {
    return (Patch){arena_alloc(arena, n, sizeof(Slice)), n,
                   arena_alloc(arena, r->task->n_prompts[split], sizeof(double)), NULL};
}

/* Puts a patch in the order of the task's positions: of two names for one token the later wins. */
static void sort_slices(const SageRun *r, const Patch *patch, Arena *arena) {
    Slice *sorted = arena_alloc(arena, patch->n, sizeof(Slice)), *next = sorted;
    for (size_t p = 0; p < r->task->n_positions; p++) {
        for (size_t i = 0; i < patch->n; i++) {
            if (patch->slices[i].position == p) {
                *next++ = patch->slices[i];
            }
        }
    }
    memcpy(patch->slices, sorted, patch->n * sizeof(Slice));
}

static Slice node_slice(const SageRun *r, const SageNode *node, float *values, bool write) {
    size_t width = node_width(r, node->kind);
    return (Slice){node->kind, node->layer, node->head, node->position,
                   width,      false,       write,      values};
}

/* Reads all nodes, or (effect not NULL) those to be measured, in a batch. */
static Patch batch_reader(const SageRun *r, const double *effect, Arena *arena) {
    Patch patch = {.slices = arena_alloc(arena, r->result.n_nodes, sizeof(Slice))};
    for (size_t i = 0; i < r->result.n_nodes; i++) {
        if (effect == NULL || !isnan(effect[i])) {
            const SageNode *node = &r->result.nodes[i];
            float *values = arena_floats(arena, r->section.batch, node_width(r, node->kind));
            patch.slices[patch.n++] = node_slice(r, node, values, false);
        }
    }
    return patch;
}

/* ---- step 1 ---- */

/* One batch: clean with gradients, then each counterfactual. */
static void score_batch(SageRun *r, size_t first, size_t n, const Patch *clean,
                        const Patch *gradient, const Patch *other) {
    SageResult *result = &r->result;
    size_t vocab = r->llm.config.d_vocab, n_nodes = result->n_nodes;
    Hooks hooks = {call_slices, wants_slices, r};
    batch_take(r, SAGE_TRAIN, -1, first, n, true);
    pass_whole(r, clean, false);
    memset(r->dlogits, 0, n * vocab * sizeof(float));
    for (size_t s = 0; s < n; s++) {
        sage_metric_gradient(r->dlogits + s * vocab, r->logits + s * vocab, r->forms[s]);
        r->patch[s] = gradient;
    }
    llm_backward_start(r->run);
    llm_logits_backward(r->run, r->last_row, n, true, r->logits, r->dlogits, NULL);
    llm_backward(r->run, 0, &hooks);
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        batch_take(r, SAGE_TRAIN, (int)a, first, n, true);
        pass_whole(r, other, false);
        for (size_t i = 0; i < n_nodes; i++) {
            sage_score_add(&result->score[a * n_nodes + i], other->slices[i].values,
                           clean->slices[i].values, gradient->slices[i].values, n,
                           clean->slices[i].width);
        }
    }
}

static void score_nodes(SageRun *r) {
    size_t n_train = r->task->n_prompts[SAGE_TRAIN];
    Arena *scratch = arena_new();
    Patch clean = batch_reader(r, NULL, scratch), gradient = batch_reader(r, NULL, scratch),
          other = batch_reader(r, NULL, scratch);
    clean.m = arena_alloc(scratch, n_train, sizeof(double));
    clean.predicted = arena_alloc(scratch, n_train, sizeof(int32_t)); /* needs all logits */
    for (size_t i = 0; i < gradient.n; i++) {
        gradient.slices[i].gradient = true;
    }
    Progress progress = progress_start("attribution", "prompts", 0, n_train, r->console->quiet);
    for (size_t first = 0, n; (n = batch_size(r, n_train, first)) > 0; first += n) {
        score_batch(r, first, n, &clean, &gradient, &other);
        progress_set(&progress, first + n, NULL);
    }
    progress_end(&progress);
    for (size_t i = 0; i < r->result.n_nodes * r->task->n_attributes; i++) {
        r->result.score[i] /= (double)n_train;
    }
    arena_free(scratch);
}

/* The cross-section of an attribute: walked, screened, and as many random others. */
static void find_cross(SageRun *r, size_t attribute) {
    SageResult *result = &r->result;
    SageCross *cross = &result->cross[attribute];
    size_t n = result->n_nodes, *order = r->order + attribute * n;
    bool *chosen = result->chosen + attribute * n;
    const double *score = result->score + attribute * n;
    double *effect = result->effect + attribute * n;
    Random random =
        random_start(r->options->vlm.seed, RANDOM_SAGE_OTHERS + ((uint64_t)attribute << 32));
    sage_order(score, n, order);
    size_t walked =
        sage_walk(score, order, n, r->options->share, r->options->max_nodes, &cross->share);
    cross->nodes = arena_alloc(r->arena, walked, sizeof(size_t));
    cross->others = arena_alloc(r->arena, walked, sizeof(size_t));
    cross->n_nodes = sage_screen(result->nodes, order, walked, cross->nodes);
    if (cross->n_nodes == 0) {
        fail(STATUS_INPUT, "%s: attribute '%s' moves no node of this model", r->task->file,
             r->task->attributes[attribute].name);
    }
    for (size_t i = 0; i < walked; i++) {
        chosen[order[i]] = true;
    }
    cross->n_others = sage_others(&random, chosen, n, cross->n_nodes, cross->others);
    memset(chosen, 0, n * sizeof(bool));
    for (size_t i = 0; i < cross->n_nodes; i++) {
        chosen[cross->nodes[i]] = true;
        effect[cross->nodes[i]] = 0.0; /* to be measured */
    }
    for (size_t i = 0; i < cross->n_others; i++) {
        effect[cross->others[i]] = 0.0;
    }
}

/* Refuses a cross-section with a node that no SAE serves. */
static void check_cross(const SageRun *r, const SageCross *cross) {
    for (size_t i = 0; i < cross->n_nodes; i++) {
        const SageNode *node = &r->result.nodes[cross->nodes[i]];
        SagePoint points[3];
        char wanted[3 * (HOOK_NAME_MAX + 4)] = "";
        if (sage_node_sae(&r->saes, &r->llm.config, node) != NULL) {
            continue;
        }
        for (size_t k = 0, n = sage_points(&r->llm.config, node, points); k < n; k++) {
            strcat(strcat(wanted, k == 0      ? ""
                                  : k + 1 < n ? ", "
                                              : " or "),
                   HOOK_NAME(points[k].kind, points[k].layer));
        }
        fail(STATUS_INPUT,
             "%s: no SAE of %s, which %s at '%s' in the cross-section of '%s' needs: add one, or "
             "search other nodes (--nodes %s)",
             r->options->vlm.saes, wanted, HOOK_NAME(node->kind, node->layer),
             r->task->positions[node->position], cross->name,
             sage_node_reads(node) ? "z" : "q,k,v");
    }
}

static void measure_effects(SageRun *r) {
    size_t n_train = r->task->n_prompts[SAGE_TRAIN], n_attributes = r->task->n_attributes,
           n_nodes = r->result.n_nodes, n = 1;
    Arena *scratch = arena_new();
    Patch *others = arena_alloc(scratch, n_attributes, sizeof(Patch)),
          *patches = arena_alloc(scratch, 1 + n_attributes * n_nodes, sizeof(Patch));
    size_t *taken = arena_alloc(scratch, n_attributes, sizeof(size_t));
    for (size_t a = 0; a < n_attributes; a++) {
        others[a] = batch_reader(r, r->result.effect + a * n_nodes, scratch);
    }
    patches[0] = patch_new(r, 0, SAGE_TRAIN, scratch);
    for (size_t i = 0; i < n_nodes * n_attributes; i++) { /* by rising layer */
        size_t a = i % n_attributes;
        if (!isnan(r->result.effect[a * n_nodes + i / n_attributes])) {
            patches[n] = patch_new(r, 1, SAGE_TRAIN, scratch);
            patches[n].slices[0] = others[a].slices[taken[a]++];
            patches[n++].slices[0].write = true;
        }
    }
    patches_measure(r, "patching", SAGE_TRAIN, patches, n, others, NULL);
    n = 1;
    for (size_t i = 0; i < n_nodes * n_attributes; i++) {
        double *effect = &r->result.effect[i % n_attributes * n_nodes + i / n_attributes];
        *effect = isnan(*effect) ? NAN : sage_effect(patches[n++].m, patches[0].m, n_train);
    }
    for (size_t a = 0; a < n_attributes; a++) {
        r->result.cross[a].spearman =
            sage_spearman(r->result.score + a * n_nodes, r->result.effect + a * n_nodes, n_nodes);
    }
    arena_free(scratch);
}

static double test_sum(const SageRun *r, const Patch *patch) {
    double sum = 0.0;
    for (size_t p = 0; p < r->task->n_prompts[SAGE_TEST]; p++) {
        sum += patch->m[p];
    }
    return sum;
}

/* How many nodes carry an attribute, whatever --share says: the first 1, 2, 4 .. nodes of every
 * walk patched together, and all of them. */
static void measure_curves(SageRun *r) {
    SageResult *result = &r->result;
    size_t points = 1, n_nodes = result->n_nodes;
    Arena *scratch = arena_new();
    while ((size_t)1 << (points - 1) < n_nodes) {
        points++;
    }
    Patch *others = arena_alloc(scratch, result->n_cross, sizeof(Patch)),
          *patches = arena_alloc(scratch, 1 + result->n_cross * points, sizeof(Patch));
    patches[0] = patch_new(r, 0, SAGE_TEST, scratch);
    for (size_t a = 0; a < result->n_cross; a++) {
        SageCross *cross = &result->cross[a];
        others[a] = batch_reader(r, NULL, scratch);
        cross->n_curve = points;
        cross->curve = arena_alloc(r->arena, points, sizeof(SageCurve));
        for (size_t k = 0; k < points; k++) {
            size_t count = cross->curve[k].nodes = k + 1 < points ? (size_t)1 << k : n_nodes;
            Patch *patch = &patches[1 + a * points + k];
            *patch = patch_new(r, count, SAGE_TEST, scratch);
            for (size_t i = 0; i < count; i++) {
                patch->slices[i] = others[a].slices[r->order[a * n_nodes + i]];
                patch->slices[i].write = true;
            }
            sort_slices(r, patch, scratch);
        }
    }
    patches_measure(r, "curve", SAGE_TEST, patches, 1 + result->n_cross * points, others, NULL);
    double clean = test_sum(r, &patches[0]);
    for (size_t a = 0; a < result->n_cross; a++) {
        double all = test_sum(r, &patches[(a + 1) * points]);
        for (size_t k = 0; k < points; k++) {
            result->cross[a].curve[k].share =
                sage_curve_share(test_sum(r, &patches[1 + a * points + k]), all, clean);
        }
    }
    arena_free(scratch);
}

/* ---- steps 2 to 4: a cross-section under test ---- */

/* What an SAE reads at a position of every prompt of a side (0: as they are, 1 + a: their
 * counterfactuals in attribute a), x[prompts, d_in], as the features that are active; by their
 * number in the SAE until site_union. */
static void site_encode(const SageRun *r, SageSite *site, size_t side, float *x, Arena *arena) {
    size_t n_test = r->task->n_prompts[SAGE_TEST], n = site->start[side * n_test];
    const Sae *sae = site->sae;
    Arena *scratch = arena_new();
    SaeRun *run = sae_run_layout(r->section.compute, sae->d_in, sae->d_sae, ENCODED_ROWS, scratch);
    float *acts = arena_floats(scratch, ENCODED_ROWS, sae->d_sae);
    for (size_t i = 0; i < n_test * sae->d_in && site->b_v != NULL; i++) {
        x[i] -= site->b_v[i % sae->d_in];
    }
    for (size_t p = 0; p < n_test; p++) {
        size_t row = side * n_test + p, encoded = p % ENCODED_ROWS, left = n_test - p;
        if (encoded == 0) {
            sae_encode(sae, run, x + p * sae->d_in, NULL, acts,
                       left < ENCODED_ROWS ? left : ENCODED_ROWS);
        }
        sae_row_back(sae, run, encoded, &site->factor[row], &site->shift[row]);
        for (size_t j = 0; j < sae->d_sae; j++) {
            float value = acts[encoded * sae->d_sae + j];
            if (value != 0.0f) {
                site->codes =
                    arena_grow(arena, site->codes, &site->codes_room, n + 1, sizeof(SageCode));
                site->codes[n++] = (SageCode){(uint32_t)j, value};
            }
        }
        site->start[row + 1] = n;
        site->most = size_larger(n - site->start[row], site->most);
    }
    arena_free(scratch);
}

/* The features that are active in some row, and codes by their place among them. */
static void site_union(const SageRun *r, SageSite *site, Arena *arena) {
    size_t n = site->start[r->task->n_prompts[SAGE_TEST] * (1 + r->task->n_attributes)];
    Arena *scratch = arena_new();
    uint32_t *place = arena_alloc(scratch, site->sae->d_sae, sizeof *place);
    for (size_t i = 0; i < n; i++) {
        site->n_union += place[site->codes[i].feature] == 0 ? 1 : 0;
        place[site->codes[i].feature] = 1;
    }
    site->feature = arena_alloc(arena, site->n_union, sizeof(uint32_t));
    for (size_t j = 0, u = 0; j < site->sae->d_sae; j++) {
        if (place[j] != 0) {
            site->feature[u] = (uint32_t)j;
            place[j] = (uint32_t)u++;
        }
    }
    for (size_t i = 0; i < n; i++) {
        site->codes[i].feature = place[site->codes[i].feature];
    }
    arena_free(scratch);
}

/* "A=x & FORM=y", or "A in {x, y} & FORM=z" of a union. */
static const char *predicate_text(const SageRun *r, const SagePredicate *p) {
    const SageKind *kind = p->kind;
    char *text = arena_format(r->arena, "%s%s%s", kind->subject, p->n > 1 ? " in {" : "=",
                              kind->values[p->values[0]]);
    for (size_t i = 1; i < p->n; i++) {
        text = arena_format(r->arena, "%s, %s%s", text, kind->values[p->values[i]],
                            i + 1 == p->n ? "}" : "");
    }
    return arena_format(r->arena, "%s%s", text, kind->also);
}

/* Interpretations of a site's features; those that other cross-sections had stand already. */
static void site_interpret(SageRun *r, const SageSite *site) {
    SageResult *result = &r->result;
    const Sae *sae = site->sae;
    for (size_t i = 0; i < result->n_interpretations; i++) {
        const SageInterpretation *in = &result->interpretations[i];
        if (in->kind == sae->hook && in->layer == sae->layer && in->position == site->position) {
            return;
        }
    }
    for (size_t u = 0; u < site->n_union; u++) {
        const SagePredicate *best = &site->best[u];
        if (best->f1 >= 0.0) {
            result->interpretations =
                arena_grow(r->arena, result->interpretations, &r->interpretations_room,
                           result->n_interpretations + 1, sizeof(SageInterpretation));
            result->interpretations[result->n_interpretations++] = (SageInterpretation){
                sae->hook, sae->layer,        site->position, site->feature[u],
                best->f1,  site->permuted[u], best->support,  predicate_text(r, best)};
        }
    }
}

/* The section's site of an SAE at a position; NULL: there is no SAE. */
static SageSite *section_site(const SageRun *r, SageSection *section, const Sae *sae,
                              size_t position, bool native, Arena *arena) {
    SageSite *site = section->sites, *end = section->sites + section->n_sites;
    size_t rows = section->n_test * (1 + r->task->n_attributes);
    while (sae != NULL && site < end && (site->sae != sae || site->position != position)) {
        site++;
    }
    if (sae != NULL && site == end) {
        section->n_sites++;
        *site = (SageSite){.sae = sae,
                           .position = position,
                           .native = native,
                           .start = arena_alloc(arena, rows + 1, sizeof(size_t)),
                           .factor = arena_alloc(arena, rows, sizeof(double)),
                           .shift = arena_alloc(arena, rows, sizeof(double))};
        if (sae->hook == HOOK_Z && sae->fold_value_biases == SAE_CENTRE_YES) {
            float *b_v = arena_floats(arena, 1, sae->d_in);
            llm_value_bias(&r->llm, (size_t)sae->layer, b_v);
            site->b_v = b_v;
        }
    }
    return sae != NULL ? site : NULL;
}

static void section_open(SageRun *r, SageSection *section, SageCross *cross, Arena *arena) {
    size_t rows = section->n_test * (1 + r->task->n_attributes) + section->n_train;
    section->n_subjects = cross->n_nodes;
    section->subjects = arena_alloc(arena, cross->n_nodes, sizeof(SageSubject));
    section->sites = arena_alloc(arena, 2 * cross->n_nodes, sizeof(SageSite));
    section->native = true;
    cross->fits = arena_alloc(r->arena, cross->n_nodes, sizeof(SageFit));
    for (size_t i = 0; i < cross->n_nodes; i++) {
        const SageNode *node = &r->result.nodes[cross->nodes[i]];
        const Sae *sae = sage_node_sae(&r->saes, &r->llm.config, node),
                  *native = sae_set_find(&r->saes, node->kind, node->layer);
        size_t width = node_width(r, node->kind);
        cross->fits[i].w = arena_alloc(r->arena, r->task->n_attributes, sizeof(double));
        SageSubject *subject = &section->subjects[i];
        section->native &= native != NULL;
        subject->node = node;
        subject->site = section_site(r, section, sae, node->position, false, arena);
        subject->native = section_site(r, section, native, node->position, true, arena);
        subject->width = width;
        subject->a = arena_floats(arena, rows, width);
        subject->scale = arena_floats(arena, rows, 1);
        subject->w = cross->fits[i].w;
        for (size_t row = 0; row < rows; row++) {
            subject->scale[row] = 1.0f;
        }
    }
}

/* Activations of all subjects on a side, and what their SAEs read there; the side behind the last
 * are the training prompts, of which SAEs read nothing. */
static void section_capture(SageRun *r, SageSection *section, size_t side, Arena *arena) {
    Arena *scratch = arena_new();
    bool train = side > r->task->n_attributes, post = r->llm.config.kind == LLM_GEMMA2;
    size_t n = 0, row = side * section->n_test, count = train ? section->n_train : section->n_test;
    Slice *slices = arena_alloc(scratch, 2 * section->n_subjects + section->n_sites, sizeof(Slice));
    for (size_t i = 0; i < section->n_subjects; i++) {
        const SageSubject *subject = &section->subjects[i];
        const SageNode *node = subject->node;
        bool reads = sage_node_reads(node);
        HookKind kind = reads ? HOOK_LN1_SCALE : HOOK_LN1_POST_SCALE;
        slices[n++] = node_slice(r, node, subject->a + row * subject->width, false);
        if (reads || (post && node->kind == HOOK_Z)) {
            slices[n++] = (Slice){kind, node->layer, -1,    node->position,
                                  1,    false,       false, subject->scale + row};
        }
    }
    Slice *read = slices + n;
    for (size_t i = 0; i < section->n_sites && !train; i++) {
        const Sae *sae = section->sites[i].sae;
        float *x = arena_floats(scratch, count, sae->d_in);
        slices[n++] = (Slice){sae->hook, sae->layer, -1,    section->sites[i].position,
                              sae->d_in, false,      false, x};
    }
    capture(r, train ? SAGE_TRAIN : SAGE_TEST, train ? -1 : (int)side - 1, count, slices, n);
    for (size_t i = 0; i < section->n_sites && !train; i++) {
        site_encode(r, &section->sites[i], side, read[i].values, arena);
    }
    arena_free(scratch);
}

/* What the model says of the test prompts under every edit. */
static void section_run(SageRun *r, SageSection *section) {
    Arena *scratch = arena_new();
    size_t n_test = section->n_test, n = section->n_subjects;
    Patch *patches = arena_alloc(scratch, section->n_edits, sizeof(Patch));
    for (size_t i = 0; i < section->n_edits; i++) {
        const SageTrial *trial = &section->trials[i];
        patches[i] = (Patch){arena_alloc(scratch, n, sizeof(Slice)), i > 0 ? n : 0, trial->m,
                             trial->predicted};
        for (size_t k = 0; k < patches[i].n; k++) {
            patches[i].slices[k] = node_slice(r, section->subjects[k].node, trial->values[k], true);
        }
        sort_slices(r, &patches[i], scratch);
    }
    patches_measure(r, "testing", SAGE_TEST, patches, section->n_edits, NULL, section);
    for (size_t i = 0; i < section->n_edits; i++) {
        double *magnitudes = section->trials[i].magnitudes;
        for (size_t k = 0; k < n && magnitudes != NULL; k++) {
            shard_rows(r->options->vlm.shard, magnitudes + k * n_test, n_test, sizeof *magnitudes);
        }
    }
    arena_free(scratch);
}

/* --projection: the first of its names that is span (auto) or encoder: for nodes that write. */
static SageWay writes_by(const SageOptions *options) {
    static const JsonName names[] = {{"auto", SAGE_BY_SPAN},
                                     {"span", SAGE_BY_SPAN},
                                     {"encoder", SAGE_BY_ENCODER},
                                     {"weights", SAGE_BY_WEIGHTS},
                                     {NULL, SAGE_WAYS}};
    int first = SAGE_BY_WEIGHTS;
    for (const char *list = options->projection; list != NULL;) {
        int way = list_next(&list, names);
        if (way == SAGE_WAYS) {
            fail(STATUS_INPUT, "--projection %s: expected auto, or some of weights,span,encoder",
                 options->projection);
        }
        first = first == SAGE_BY_WEIGHTS ? way : first;
    }
    return first == SAGE_BY_ENCODER ? SAGE_BY_ENCODER : SAGE_BY_SPAN;
}

static void test_cross(SageRun *r, SageCross *cross) {
    SageResult *result = &r->result;
    Arena *arena = arena_new();
    SageSection section = r->section;
    section_open(r, &section, cross, arena);
    for (size_t side = 0; side < 2 + r->task->n_attributes; side++) {
        section_capture(r, &section, side, arena);
    }
    for (size_t i = 0; i < section.n_sites; i++) {
        site_union(r, &section.sites[i], arena);
    }
    sage_layout(&section, arena);
    for (size_t i = 0; i < section.n_sites; i++) {
        sage_site_open(&section, &section.sites[i]);
        site_interpret(r, &section.sites[i]);
    }
    sage_prepare(&section, cross->fits);
    section_run(r, &section);
    if (shard_is_part(r->options->vlm.shard)) {
        arena_free(arena);
        return;
    }
    sage_judge(&section, cross);
    cross->edits = arena_alloc(r->arena, section.n_edits, sizeof(SageEdit));
    memcpy(cross->edits, section.edits, section.n_edits * sizeof(SageEdit));
    result->accuracy = sage_accuracy(&section); /* the same in every cross-section */
    result->m_positive = sage_positive(&section);
    result->m_clean = section.edits[0].figure;
    if (cross->attribute >= 0) {
        console_result(r->console, "%s: %zu node%s, Spearman of score and effect %.3f", cross->name,
                       cross->n_nodes, plural(cross->n_nodes), cross->spearman);
    }
    arena_free(arena);
}

/* ---- the run ---- */

/* Where no file says whether the stream of a LayerNorm model was centred for an SAE's training,
 * both are tried on the first training prompts; centring needs an FVU lower by a factor of 1.5. */
static void settle_centring(SageRun *r, Sae *sae) {
    size_t n = r->task->n_prompts[SAGE_TRAIN], d = sae->d_in, n_positions = r->task->n_positions;
    if (sae->layer >= (int)r->llm.config.n_layers || is_component(sae->hook) ||
        (sae->hook == HOOK_RESID_MID && r->llm.config.parallel) ||
        sae->centre != SAE_CENTRE_UNKNOWN || r->llm.config.rms_norm) {
        return;
    }
    n = n < CENTRING_PROMPTS ? n : CENTRING_PROMPTS;
    size_t rows = n * n_positions;
    double fvu[2];
    Arena *scratch = arena_new();
    Slice *slices = arena_alloc(scratch, n_positions, sizeof(Slice));
    float *x = arena_floats(scratch, rows, d), *target = arena_floats(scratch, rows, d);
    float *recon = arena_floats(scratch, rows, d), *acts = arena_floats(scratch, rows, sae->d_sae);
    SaeRun *run = sae_run_layout(r->section.compute, d, sae->d_sae, rows, scratch);
    for (size_t p = 0; p < n_positions; p++) {
        slices[p] = (Slice){sae->hook, sae->layer, -1, p, d, false, false, x + p * n * d};
    }
    capture(r, SAGE_TRAIN, -1, n, slices, n_positions);
    for (int k = 0; k < 2; k++) {
        sae->centre = k == 0 ? SAE_CENTRE_NO : SAE_CENTRE_YES;
        sae_encode(sae, run, x, NULL, acts, rows);
        sae_decode(sae, run, acts, recon, rows);
        sae_target(sae, r->section.compute, target, x, rows);
        fvu[k] = sae_stats(target, recon, acts, rows, d, sae->d_sae).fvu;
    }
    arena_free(scratch);
    sae->centre = fvu[1] * 1.5 < fvu[0] ? SAE_CENTRE_YES : SAE_CENTRE_NO;
    console_line(r->console, "%s: stream %scentred for its SAE (FVU %.4f as it is, %.4f centred)",
                 HOOK_NAME(sae->hook, sae->layer), sae->centre == SAE_CENTRE_YES ? "" : "not ",
                 fvu[0], fvu[1]);
}

static void run_layout(Arena *arena, void *user) {
    SageRun *r = user;
    const LlmConfig *c = &r->llm.config;
    size_t batch = r->section.batch, rows = batch * r->longest;
    LlmPlan plan = {.max_rows = rows,
                    .max_sequence = r->longest,
                    .max_sequences = rows,
                    .max_logits = batch,
                    .backward = true,
                    .tails = true};
    r->run = llm_run_layout(&r->llm, r->section.compute, &plan, arena);
    r->forms = arena_alloc(arena, batch, sizeof(SageForm *));
    r->stream_row = arena_alloc(arena, batch, sizeof(size_t));
    r->streams = arena_alloc(arena, c->n_layers, sizeof(float *));
    for (size_t layer = 1; layer < c->n_layers; layer++) {
        float *stream = arena_floats(arena, rows, c->d_model);
        if (r->streams != NULL) {
            r->streams[layer] = stream;
        }
    }
    r->of = arena_alloc(arena, rows, sizeof(size_t));
    r->past = arena_alloc(arena, rows, sizeof(size_t));
    r->start = arena_alloc(arena, rows + 1, sizeof(size_t));
    r->end_row = arena_alloc(arena, rows, sizeof(size_t));
    r->patch = arena_alloc(arena, rows, sizeof(Patch *));
    r->ids = arena_alloc(arena, rows, sizeof(int32_t));
    r->stream = arena_floats(arena, rows, c->d_model);
    r->last_row = arena_alloc(arena, batch, sizeof(size_t));
    r->logits = arena_floats(arena, batch, c->d_vocab);
    r->dlogits = arena_floats(arena, batch, c->d_vocab);
    r->listed = arena_floats(arena, 1, r->longest_list);
}

/* Settles how many prompts run at once; the bytes of their run. */
static size_t run_measure(SageRun *r) {
    r->section.batch = BATCH_ROWS / r->longest + 1;
    return arena_fit(run_layout, r, &r->section.batch, batch_bytes);
}

size_t sage_memory(const Compute *compute, const Llm *llm, size_t longest) {
    SageRun r = {.section.compute = compute, .llm = *llm, .longest = longest, .longest_list = 1};
    return run_measure(&r);
}

static Arena *run_open(SageRun *r) {
    for (int s = 0; s < SAGE_SPLITS; s++) {
        for (size_t i = 0; i < r->task->n_prompts[s]; i++) {
            const SagePrompt *prompt = &r->task->prompts[s][i];
            for (size_t a = 0; a <= r->task->n_attributes; a++) {
                const SageForm *form = a > 0 ? &prompt->counterfactual[a - 1] : &prompt->clean;
                r->longest = size_larger(form->rows, r->longest);
                r->longest_list =
                    size_larger(form->n_answer, size_larger(form->n_wrong, r->longest_list));
            }
        }
    }
    run_measure(r);
    return arena_plan(run_layout, r);
}

/* 0, 0.1 .. 1 for the figure, and those of --f1, each once, rising. */
static void list_thresholds(SageResult *result) {
    const SageOptions *o = result->options;
    double *t = result->thresholds;
    for (size_t i = 0; i < 11 + o->n_f1; i++) {
        double next = i < 11 ? (double)i / 10.0 : o->f1[i - 11];
        size_t at = 0, n = result->n_thresholds;
        while (at < n && t[at] < next) {
            at++;
        }
        if (at == n || t[at] > next) {
            memmove(t + at + 1, t + at, (n - at) * sizeof *t);
            t[at] = next;
            result->n_thresholds++;
        }
    }
}

static void open_saes(SageRun *r, Arena *arena) {
    SaeOptions options = r->options->vlm.sae;
    options.sage = true;
    sae_set_open(&r->saes, arena, r->options->vlm.saes, HOOK_KINDS, NULL, 0,
                 r->options->vlm.canonical, &options);
    for (size_t i = 0; i < r->saes.count; i++) {
        const Sae *sae = &r->saes.saes[i];
        size_t d = is_component(sae->hook) ? node_heads(r, sae->hook) * node_width(r, sae->hook)
                                           : r->llm.config.d_model;
        if (sae->d_in != d) {
            fail(STATUS_INPUT, "%s: reads %zu dimensions, %s of %s has %zu", sae->path, sae->d_in,
                 HOOK_NAME(sae->hook, sae->layer), r->options->vlm.llm, d);
        }
    }
}

static void open_prompts(SageRun *r) {
    const SageOptions *o = r->options;
    bool bos = o->vlm.bos == 1 || (o->vlm.bos < 0 && r->llm.config.kind == LLM_GEMMA2);
    for (size_t i = 0; i < r->saes.count; i++) {
        bos |= o->vlm.bos < 0 && r->saes.saes[i].prepend_bos;
    }
    if (bos && r->llm.config.bos < 0 && o->prompts == NULL) {
        fail(STATUS_INPUT, "%s: config.json names no bos_token_id", o->vlm.llm);
    }
    sage_task_open(r->task, r->arena, o->task, r->tokenizer);
    for (size_t i = 0; i < r->task->n_dropped; i++) {
        console_line(r->console, "dropped: %s=%s is not one token in this tokenizer",
                     r->task->dropped[i].attribute, r->task->dropped[i].value);
    }
    if (o->prompts != NULL) {
        sage_prompts_read(r->task, o->prompts, r->tokenizer, r->llm.config.d_vocab);
    } else {
        sage_prompts_draw(r->task, r->tokenizer, bos ? r->llm.config.bos : -1, o->n, o->vlm.seed);
    }
    if (r->task->n_unmatched > 0) {
        console_line(r->console,
                     "%s: no template of the task gives the text of %zu of %zu test prompt%s: no "
                     "predicate of places holds in them",
                     o->prompts, r->task->n_unmatched, r->task->n_prompts[SAGE_TEST],
                     plural(r->task->n_prompts[SAGE_TEST]));
    }
}

/* example.json: the first test prompt's tokens, and which of them have names. */
static void write_example(const SageRun *r, const char *path) {
    const SageForm *form = &r->task->prompts[SAGE_TEST][0].clean;
    OutFile *out = out_open(path);
    JsonOut json = json_out_start(out->stream, 2);
    json_out(&json, "{ tokens [");
    for (size_t i = 0, length; i < form->rows; i++) {
        json_out(&json, "%s",
                 tokenizer_decode(r->tokenizer, &form->ids[i], 1, false, out->arena, &length));
    }
    json_out(&json, "] positions {");
    for (size_t i = 0; i < r->task->n_positions; i++) {
        json_out(&json, "%s %zu", r->task->positions[i], form->positions[i]);
    }
    json_out(&json, "} }");
    out_commit(out);
}

SageResult sage_run(Arena *arena, const Compute *compute, const SageOptions *options,
                    const Console *console) {
    SageTask *task = arena_alloc(arena, 1, sizeof(SageTask));
    SageRun r = {.section = {.compute = compute, .llm = &r.llm, .task = task, .result = &r.result},
                 .options = options,
                 .console = console,
                 .task = task,
                 .result = {.options = options, .console = console, .task = task},
                 .arena = arena};
    Arena *files = arena_new(); /* what is not of the caller */
    if (options->n[SAGE_TRAIN] == 0 || options->n[SAGE_TEST] == 0 || options->max_nodes == 0 ||
        !(options->share > 0.0 && options->share <= 1.0)) {
        fail(STATUS_INPUT, "--train, --test and --max-nodes must be at least 1, --share in (0, 1]");
    }
    r.section.writes = writes_by(options); /* a mistake is told before the work */
    out_folder(arena, options->vlm.out);
    llm_open(&r.llm, files, options->vlm.llm);
    r.tokenizer = tokenizer_open(files, options->vlm.llm);
    open_saes(&r, files);
    open_prompts(&r);
    r.section.n_train = task->n_prompts[SAGE_TRAIN];
    r.section.n_test = task->n_prompts[SAGE_TEST];
    Arena *block = run_open(&r);
    open_nodes(&r);
    list_thresholds(&r.result);
    for (size_t i = 0; i < r.saes.count; i++) {
        settle_centring(&r, &r.saes.saes[i]);
    }
    r.section.kinds = sage_kinds(task, options->vlm.seed, files);
    if (options->cross_sections == NULL) {
        r.order = arena_alloc(files, task->n_attributes * r.result.n_nodes, sizeof(size_t));
        score_nodes(&r);
        for (size_t a = 0; a < task->n_attributes; a++) {
            find_cross(&r, a);
        }
    }
    for (size_t c = 0; c < r.result.n_cross; c++) {
        check_cross(&r, &r.result.cross[c]);
    }
    if (options->cross_sections == NULL) {
        measure_effects(&r);
        measure_curves(&r);
    }
    for (size_t c = 0; c < r.result.n_cross; c++) {
        test_cross(&r, &r.result.cross[c]);
    }
    shard_end(options->vlm.shard);
    sage_prompts_write(task, path_join(arena, options->vlm.out, "prompts.jsonl"));
    write_example(&r, path_join(arena, options->vlm.out, "example.json"));
    arena_free(block);
    arena_free(files);
    return r.result;
}

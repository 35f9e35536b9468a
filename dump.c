/* dump.c: the hook points of a model; one forward (and backward) pass with every wanted one written
 * to safetensors; the comparison of two such files; and texts as a tokenizer has them. */
#include "dump.h"
#include "model_load.h"

#include "checkpoint.h"
#include "json.h"
#include "zip.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char image_rgb[] = "image.rgb";

/* ---- collecting ---- */

typedef struct Collector {
    Arena *arena;
    const char **globs;
    size_t n_globs, globs_room;
    bool vision;
    Tensor *kept;
    size_t count, capacity;
} Collector;

static void collector_globs(Collector *c, const char *hooks) {
    for (const char *at = hooks;; at++) {
        size_t length = glob_length(at);
        c->globs = arena_grow(c->arena, c->globs, &c->globs_room, c->n_globs + 1, sizeof *c->globs);
        c->globs[c->n_globs++] = arena_copy(c->arena, at, length);
        at += length;
        if (*at == '\0') {
            return;
        }
    }
}

static bool collector_matches(const Collector *c, const char *name) {
    bool matches = false;
    for (size_t i = 0; i < c->n_globs && !matches; i++) {
        matches = glob_match(c->globs[i], name);
    }
    return matches;
}

static bool collector_wants(void *user, HookKind kind, int layer, bool gradient) {
    const Collector *c = user;
    char name[HOOK_NAME_MAX];
    hook_name(name, kind, layer, c->vision, false);
    if (collector_matches(c, name)) {
        return true;
    }
    hook_name(name, kind, layer, c->vision, gradient);
    return gradient && collector_matches(c, name);
}

static Tensor *collector_add(Collector *c, const char *name, Dtype dtype, int rank,
                             const size_t *shape) {
    c->kept = arena_grow(c->arena, c->kept, &c->capacity, c->count + 1, sizeof *c->kept);
    Tensor *t = &c->kept[c->count++];
    *t = (Tensor){.dtype = dtype, .rank = rank, .count = 1};
    t->name = arena_copy(c->arena, name, strlen(name));
    for (int i = 0; i < rank; i++) {
        t->shape[i] = shape[i];
        t->count *= shape[i];
    }
    return t;
}

static void collector_keep(Collector *c, const char *name, int rank, const size_t *shape,
                           const float *data) {
    Tensor *t = collector_add(c, name, DTYPE_F32, rank, shape);
    float *values = arena_alloc(c->arena, t->count + 1, sizeof *values);
    for (size_t i = 0; i < t->count; i++) {
        values[i] = isnan(data[i]) ? NAN : data[i]; /* files hold the one quiet NaN */
    }
    t->data = values;
}

static void collector_call(void *user, const HookPoint *point, float *data) {
    char name[HOOK_NAME_MAX];
    hook_name(name, point->kind, point->layer, point->vision, point->gradient);
    collector_keep(user, name, point->rank, point->shape, data);
}

static void collector_write(const Collector *c, const char *path) {
    files_spare(path);
    TensorWriter *writer = tensor_writer_open(path);
    for (size_t i = 0; i < c->count; i++) {
        const Tensor *t = &c->kept[i];
        tensor_writer_declare(writer, t->name, t->dtype, t->rank, t->shape);
    }
    for (size_t i = 0; i < c->count; i++) {
        const Tensor *t = &c->kept[i];
        tensor_writer_data(writer, t->data, dtype_size(t->dtype), t->count);
    }
    tensor_writer_commit(writer);
}

static void collector_list(const Collector *c, const char *path) {
    JsonOut json = json_out_start(stdout, 2);
    json_out(&json, "{ out %s tensors {", path);
    for (const Tensor *t = c->kept; t < c->kept + c->count; t++) {
        json_out(&json, "%s [", t->name);
        for (int d = 0; d < t->rank; d++) {
            json_out(&json, "%zu", t->shape[d]);
        }
        json_out(&json, "]");
    }
    json_out(&json, "} }");
}

/* ---- the hook points that there are ---- */

/* Sizes of a model; rows 0: as many as there are tokens. */
typedef struct ModelShape {
    bool vision, absent[HOOK_KINDS];
    size_t n_layers, rows, d, heads, kv_heads, d_head, d_mlp, d_vocab, image_size;
} ModelShape;

static ModelShape llm_shape(const LlmConfig *c) {
    ModelShape x = {.n_layers = c->n_layers,
                    .d = c->d_model,
                    .heads = c->n_heads,
                    .kv_heads = c->n_kv_heads,
                    .d_head = c->d_head,
                    .d_mlp = c->d_mlp,
                    .d_vocab = c->d_vocab};
    bool rotates = c->rotary_dim > 0, post_norms = c->kind == LLM_GEMMA2;
    x.absent[HOOK_POS_EMBED] = rotates;
    x.absent[HOOK_ROT_Q] = x.absent[HOOK_ROT_K] = !rotates;
    x.absent[HOOK_LN1_POST_SCALE] = x.absent[HOOK_LN1_POST_NORMALIZED] = !post_norms;
    x.absent[HOOK_LN2_POST_SCALE] = x.absent[HOOK_LN2_POST_NORMALIZED] = !post_norms;
    x.absent[HOOK_RESID_MID] = c->parallel;
    x.absent[HOOK_PRE_LINEAR] = !c->gated;
    return x;
}

static ModelShape vit_shape(const VitConfig *c) {
    return (ModelShape){.vision = true,
                        .n_layers = c->n_layers,
                        .rows = c->n_patches + 1,
                        .d = c->d_model,
                        .heads = c->n_heads,
                        .kv_heads = c->n_heads,
                        .d_head = c->d_head,
                        .d_mlp = c->d_mlp,
                        .image_size = c->image_size};
}

static HookPoint shaped(HookPoint p, int rank, size_t a, size_t b, size_t c) {
    p.rank = rank;
    p.shape[0] = a;
    p.shape[1] = b;
    p.shape[2] = c;
    return p;
}

/* As the forward pass shows it. */
static HookPoint point_of_model(const ModelShape *x, HookKind kind, int layer) {
    HookPoint p = {.kind = kind, .layer = layer, .vision = x->vision};
    switch (kind) {
    case HOOK_PIXEL_VALUES:
        return shaped(p, 3, VIT_CHANNELS, x->image_size, x->image_size);
    case HOOK_Q:
    case HOOK_ROT_Q:
    case HOOK_Z:
        return shaped(p, 3, x->rows, x->heads, x->d_head);
    case HOOK_K:
    case HOOK_V:
    case HOOK_ROT_K:
        return shaped(p, 3, x->rows, x->kv_heads, x->d_head);
    case HOOK_ATTN_SCORES:
    case HOOK_PATTERN:
        return shaped(p, 3, x->heads, x->rows, x->rows);
    case HOOK_RESULT:
        return shaped(p, 3, x->rows, x->heads, x->d);
    case HOOK_LN_PRE_SCALE:
    case HOOK_LN1_SCALE:
    case HOOK_LN1_POST_SCALE:
    case HOOK_LN2_SCALE:
    case HOOK_LN2_POST_SCALE:
    case HOOK_LN_FINAL_SCALE:
        return shaped(p, 2, x->rows, 1, 0);
    case HOOK_PRE:
    case HOOK_PRE_LINEAR:
    case HOOK_POST:
        return shaped(p, 2, x->rows, x->d_mlp, 0);
    case HOOK_LOGITS:
        return shaped(p, 2, x->rows, x->d_vocab, 0);
    default:
        return shaped(p, 2, x->rows, x->d, 0);
    }
}

typedef struct Points {
    Arena *arena;
    HookPoint *list;
    size_t count, room;
} Points;

static void points_add(Points *points, HookPoint point) {
    points->list = arena_grow(points->arena, points->list, &points->room, points->count + 1,
                              sizeof *points->list);
    points->list[points->count++] = point;
}

static int compare_points(const void *a, const void *b) {
    int64_t x = hook_place(a), y = hook_place(b);
    return (x > y) - (x < y);
}

static void points_sort(Points *points) {
    if (points->count > 0) {
        qsort(points->list, points->count, sizeof *points->list, compare_points);
    }
}

/* Adds every point of a model, in the order of the pass. */
static void points_add_model(Points *points, const ModelShape *x) {
    char name[HOOK_NAME_MAX];
    for (size_t i = 0; i < x->n_layers; i++) {
        for (int k = 0; k < HOOK_KINDS; k++) {
            HookKind kind;
            int layer;
            bool vision;
            hook_name(name, (HookKind)k, (int)i, x->vision, false);
            bool has = hook_parse(name, &kind, &layer, &vision) && !x->absent[k];
            if (has && (layer >= 0 || i == 0)) {
                points_add(points, point_of_model(x, kind, layer));
            }
        }
    }
    points_sort(points);
}

/* For --hooks; with `any` a * for layer 0. */
static char *point_name(Arena *arena, const HookPoint *p, bool any) {
    char name[HOOK_NAME_MAX];
    hook_name(name, p->kind, p->layer, p->vision, p->gradient);
    char *at = any ? strstr(name, "blocks.0.") : NULL;
    if (at != NULL) {
        at[strlen("blocks.")] = '*';
    }
    return arena_copy(arena, name, strlen(name));
}

/* [T, 4, 24]; `zero` stands for a 0. */
static void print_shape(FILE *out, const size_t *shape, int rank, const char *zero) {
    fputc('[', out);
    for (int i = 0; i < rank; i++) {
        fputs(i > 0 ? ", " : "", out);
        if (shape[i] == 0) {
            fputs(zero, out);
        } else {
            fprintf(out, "%zu", shape[i]);
        }
    }
    fputc(']', out);
}

/* A line each: name, shape, SHA-256 of the values as a file holds them, little-endian. */
static void collector_trace(const Collector *c, const char *path) {
    files_spare(path);
    OutFile *file = out_open(path);
    for (const Tensor *t = c->kept; t < c->kept + c->count; t++) {
        const unsigned char *at = t->data;
        unsigned char bytes[4];
        char digest[65];
        Sha256 sha;
        sha256_start(&sha);
        for (size_t i = 0, size = dtype_size(t->dtype); i < t->count; i++, at += size) {
            little_copy(bytes, at, size, 1);
            sha256_add(&sha, bytes, size);
        }
        sha256_end(&sha, digest);
        fprintf(file->stream, "%s ", t->name);
        print_shape(file->stream, t->shape, t->rank, "0");
        fprintf(file->stream, " %s\n", digest);
    }
    out_commit(file);
}

void hooks_list(const char *llm_path, const char *vision_path, bool json, FILE *out) {
    Arena *arena = arena_new();
    Points points = {.arena = arena};
    ModelShape x[2] = {{0}, {0}};
    if (vision_path != NULL) {
        Vit vit;
        vit_open(&vit, arena, vision_path);
        x[1] = vit_shape(&vit.config);
    }
    if (llm_path != NULL) {
        Llm llm;
        llm_open(&llm, arena, llm_path);
        x[0] = llm_shape(&llm.config);
    }
    points_add_model(&points, &x[1]);
    points_add_model(&points, &x[0]);
    if (json) {
        fprintf(out, "{\"layers\": %zu, \"vision_layers\": %zu, \"points\": [", x[0].n_layers,
                x[1].n_layers);
    }
    const char *separator = "";
    for (const HookPoint *p = points.list; p < points.list + points.count; p++) {
        const char *name = point_name(arena, p, true);
        if (p->layer > 0) {
            continue; /* as layer 0 */
        }
        fprintf(out, json ? "%s\n  {\"name\": \"%s\", \"shape\": " : "%s%-38s ", separator, name);
        print_shape(out, p->shape, p->rank, json ? "\"T\"" : "T");
        fputs(json ? "}" : "\n", out);
        separator = json ? "," : "";
    }
    if (json) {
        fputs("]}\n", out);
    }
    for (int v = 1; v >= 0 && !json; v--) {
        if (x[v].n_layers > 0) {
            fprintf(out, "%sblocks.*: layers 0 to %zu\n", v == 1 ? "vision." : "",
                    x[v].n_layers - 1);
        }
    }
    arena_free(arena);
}

/* ---- names that there are not ---- */

REFSAE_NORETURN static void refuse_glob(const char *glob, const Points *points, bool image) {
    bool any = strpbrk(glob, "*?[{") != NULL;
    Nearest nearest = {.arena = points->arena, .text = glob, .within = true, .most = SIZE_MAX};
    for (size_t i = 0; i < points->count; i++) {
        if (!any || points->list[i].layer <= 0) {
            nearest_add(&nearest, point_name(points->arena, &points->list[i], any));
        }
    }
    if (image) {
        nearest_add(&nearest, image_rgb);
    }
    fail(STATUS_INPUT, "--hooks %s: no hook point here has such a name; nearest: %s", glob,
         nearest.list);
}

/* Each glob must choose one of the points, or with `gradients` the gradient of one. */
static void check_globs(const Collector *c, Points *points, bool image, bool gradients) {
    for (size_t i = 0, n = points->count; i < n && gradients; i++) {
        HookPoint p = points->list[i];
        p.gradient = true;
        if (!p.vision) {
            points_add(points, p);
        }
    }
    for (size_t i = 0; i < c->n_globs; i++) {
        bool found = image && glob_match(c->globs[i], image_rgb);
        for (size_t k = 0; k < points->count && !found; k++) {
            found = glob_match(c->globs[i], point_name(points->arena, &points->list[k], false));
        }
        if (!found) {
            refuse_glob(c->globs[i], points, image);
        }
    }
}

/* ---- images and models ---- */

static void dump_image(Collector *c, const char *path) {
    Image image = image_read(c->arena, path);
    if (collector_matches(c, image_rgb)) {
        size_t shape[] = {image.height, image.width, 3};
        collector_add(c, image_rgb, DTYPE_U8, 3, shape)->data = image.rgb;
    }
}

/* From the metric logits[T-1, A] - logits[T-1, B] down to the first layer. */
static void dump_backward(const Llm *llm, LlmRun *run, const size_t *rows, size_t count,
                          const float *logits, const char *grad, const Hooks *hooks) {
    Arena *arena = arena_new();
    size_t vocab = llm->config.d_vocab, tokens;
    const int32_t *ids = token_ids_parse(arena, grad, "--grad", &tokens);
    float *dlogits = arena_floats(arena, count, vocab);
    if (tokens > 2) {
        fail(STATUS_INPUT, "--grad %s: expected A or A,B", grad);
    }
    for (size_t i = 0; i < tokens; i++) {
        if ((size_t)ids[i] >= vocab) {
            fail(STATUS_INPUT, "--grad %s: token id %d is outside the vocabulary of %zu", grad,
                 ids[i], vocab);
        }
        dlogits[(count - 1) * vocab + (size_t)ids[i]] += i == 0 ? 1.0f : -1.0f;
    }
    llm_backward_start(run);
    llm_logits_backward(run, rows, count, true, logits, dlogits, hooks);
    llm_backward(run, 0, hooks);
    arena_free(arena);
}

static void dump_passes(const Vlm *vlm, const Sequence *sequence, const float *images,
                        const char *grad, const Hooks *collect) {
    const Llm *llm = &vlm->llm;
    size_t count = sequence->rows;
    LlmPlan plan = {.max_rows = count,
                    .max_sequence = count,
                    .max_sequences = 1,
                    .max_logits = count,
                    .backward = grad != NULL,
                    .attention_hooks = true};
    Arena *arena = arena_new();
    LlmRun *run = llm_run_layout(llm, vlm->compute, &plan, arena);
    float *logits = arena_floats(arena, count, llm->config.d_vocab);
    size_t *rows = arena_alloc(arena, count, sizeof *rows);
    for (size_t i = 0; i < count; i++) {
        rows[i] = i;
    }
    LlmBatch batch = {.n_sequences = 1, .start = (size_t[]){0, count}, .ids = sequence->ids};
    ImageHook image = {&batch, sequence->n_image, llm->config.d_model, images, NULL, collect};
    Hooks hooks = images != NULL ? image_hooks(&image) : *collect;
    llm_forward(run, &batch, 0, llm->config.n_layers, NULL, &hooks);
    if (grad != NULL || hooks_want(&hooks, HOOK_LOGITS, -1, false)) {
        llm_logits(run, rows, count, true, logits, &hooks);
    }
    if (grad != NULL) {
        dump_backward(llm, run, rows, count, logits, grad, &hooks);
    }
    arena_free(arena);
}

/* The tower where there is an image, then the language model if one is given. */
static void dump_models(Collector *c, const Compute *compute, const DumpOptions *o) {
    Vlm vlm;
    const Prompt *p = &o->prompt;
    Arena *arena = arena_new();
    Hooks hooks = {collector_call, collector_wants, c};
    Sequence sequence = {0};
    float *images = NULL;
    if (p->llm != NULL) {
        prompt_open(&vlm, arena, compute, p);
        sequence = prompt_sequence(&vlm, p, arena);
    } else {
        vlm_open(&vlm, arena, compute, &(VlmPaths){.vision = p->vision});
    }
    Points points = {.arena = arena};
    const ModelShape llm = llm_shape(&vlm.llm.config), vit = vit_shape(&vlm.vit.config);
    points_add_model(&points, &vit);
    points_add_model(&points, &llm);
    check_globs(c, &points, p->image != NULL, o->grad != NULL);
    if (p->image != NULL) {
        c->vision = true;
        vlm_image(&vlm, p->image, &hooks);
        c->vision = false;
    }
    if (p->llm != NULL && p->image != NULL) {
        images = arena_floats(arena, sequence.n_image, vlm.llm.config.d_model);
        adapter_forward(compute, &vlm.adapter, vlm.features, images, sequence.n_image);
    }
    if (p->llm != NULL) {
        dump_passes(&vlm, &sequence, images, o->grad, &hooks);
    }
    arena_free(arena);
}

/* ---- an SAE on rows from a file ---- */

static const Tensor *sae_input(const TensorStore *store, const DumpOptions *o, const Sae *sae) {
    char name[HOOK_NAME_MAX] = "";
    if (sae->hook_known) {
        hook_name(name, sae->hook, sae->layer, false, false);
    }
    const Tensor *t = tensors_find(store, o->tensor != NULL ? o->tensor : name);
    if (t == NULL && o->tensor != NULL) {
        fail(STATUS_INPUT, "%s: no tensor '%s'", o->input, o->tensor);
    }
    if (t == NULL && store->count != 1) {
        fail(STATUS_INPUT,
             "%s: holds several tensors and none has the SAE's hook point; say which with "
             "--tensor NAME",
             o->input);
    }
    t = t != NULL ? t : &store->tensors[0];
    if (t->dtype > DTYPE_F16) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected F32, BF16 or F16, found %s", o->input,
             t->name, t->type);
    }
    size_t width = 1;
    int dims = 0;
    while (dims < t->rank &&
           width < sae->d_in) { /* trailing dimensions that make up d_in: [T, heads, d_head] */
        dims++;
        width *= t->shape[t->rank - dims];
    }
    if (width != sae->d_in || t->count == 0) {
        fail(STATUS_INPUT,
             "%s: tensor '%s': its last dimensions do not make up the SAE's d_in of %zu", o->input,
             t->name, sae->d_in);
    }
    return t;
}

/* hook_z under TransformerLens' fold_value_biases: folding b_V into b_O leaves z - b_V. b_V from
 * the model of --llm; NULL: the input is what the SAE saw already. */
static const float *value_bias(const Sae *sae, const DumpOptions *o, const Console *console,
                               Arena *arena) {
    Llm llm;
    SaeCentre folded = sae->fold_value_biases != SAE_CENTRE_UNKNOWN ? sae->fold_value_biases
                                                                    : o->fold_value_biases;
    if (folded != SAE_CENTRE_YES || !sae->hook_known || sae->hook != HOOK_Z) {
        return NULL;
    }
    if (o->prompt.llm == NULL) {
        console_line(console,
                     "%s: trained under fold_value_biases; --input is read as z - b_V (--llm DIR "
                     "subtracts b_V)",
                     sae->path);
        return NULL;
    }
    llm_open(&llm, arena, o->prompt.llm);
    const LlmConfig *m = &llm.config;
    if (sae->layer < 0 || (size_t)sae->layer >= m->n_layers ||
        sae->d_in != m->n_heads * m->d_head) {
        fail(STATUS_INPUT,
             "%s: an SAE of layer %d with d_in %zu does not fit %s: %zu layers, z of %zu",
             sae->path, sae->layer, sae->d_in, o->prompt.llm, m->n_layers, m->n_heads * m->d_head);
    }
    float *b_v = arena_alloc(arena, sae->d_in, sizeof *b_v);
    llm_value_bias(&llm, (size_t)sae->layer, b_v);
    return b_v;
}

static void dump_sae(Collector *c, const Compute *compute, const DumpOptions *o,
                     const Console *console) {
    Sae sae;
    TensorStore store;
    if (o->input == NULL) {
        fail(STATUS_INPUT, "dump --sae needs --input FILE.safetensors");
    }
    Arena *arena = arena_new();
    sae_open(&sae, arena, o->sae, &o->sae_options);
    tensors_open(&store, arena, o->input);
    const Tensor *input = sae_input(&store, o, &sae);
    const float *b_v = value_bias(&sae, o, console, arena);
    size_t in = sae.d_in, latent = sae.d_sae, rows = input->count / in;
    SaeRun *run = sae_run_layout(compute, in, latent, rows, arena);
    float *x = arena_floats(arena, rows, in), *recon = arena_floats(arena, rows, in);
    float *pre = arena_floats(arena, rows, latent), *acts = arena_floats(arena, rows, latent);
    weight_widen(x, (Weight){input->data, input->dtype}, 0, input->count);
    for (size_t i = 0; b_v != NULL && i < input->count; i++) {
        x[i] -= b_v[i % in];
    }
    sae_encode(&sae, run, x, pre, acts, rows);
    sae_decode(&sae, run, acts, recon, rows);
    collector_keep(c, "pre", 2, (size_t[]){rows, latent}, pre);
    collector_keep(c, "acts", 2, (size_t[]){rows, latent}, acts);
    collector_keep(c, "recon", 2, (size_t[]){rows, in}, recon);
    arena_free(arena);
}

void dump_run(const Compute *compute, const DumpOptions *o, const Console *console) {
    Arena *arena = arena_new();
    Collector c = {.arena = arena};
    if (o->sae != NULL) {
        dump_sae(&c, compute, o, console);
    } else {
        collector_globs(&c, o->hooks);
        if (o->prompt.image != NULL) {
            dump_image(&c, o->prompt.image);
        }
        if (o->prompt.llm != NULL || (o->prompt.image != NULL && o->prompt.vision != NULL)) {
            dump_models(&c, compute, o);
        } else if (o->prompt.image != NULL) {
            check_globs(&c, &(Points){.arena = arena}, true, false);
        } else {
            fail(STATUS_INPUT, "dump needs --llm, --image or --sae");
        }
    }
    if (o->trace != NULL) {
        collector_trace(&c, o->trace);
    }
    if (o->out != NULL) {
        collector_write(&c, o->out);
    }
    if (console->json) {
        collector_list(&c, o->out != NULL ? o->out : o->trace);
    }
    arena_free(arena);
}

/* ---- diff: two tensors ---- */

/* On its format's number line, where neighbours are 1 ulp apart. */
typedef struct Element {
    double value;
    bool negative;
    uint64_t magnitude;
} Element;

/* Integers are their own place, so that those beyond 2^53, which binary64 cannot tell apart, still
 * differ; the place of floats (and of integers beside floats) is by their bits as `wide`. */
static Element element_at(const Tensor *t, size_t i, Dtype wide) {
    size_t size = dtype_size(t->dtype);
    unsigned char bytes[8];
    little_copy(bytes, (const unsigned char *)t->data + i * size, size, 1);
    uint64_t bits = read_little(bytes, (int)size);
    Element e = {.magnitude = bits};
    if (t->dtype == DTYPE_F64) {
        memcpy(&e.value, &bits, sizeof e.value);
    } else if (t->dtype < DTYPE_F64) {
        e.value = (double)weight_at((Weight){t->data, t->dtype}, i);
    } else {
        e.negative = t->dtype <= DTYPE_I8 && (bits >> (8 * size - 1) & 1) != 0;
        e.magnitude = e.negative ? ((UINT64_MAX >> (64 - 8 * size)) - bits) + 1 : bits;
        e.value = e.negative ? -(double)e.magnitude : (double)e.magnitude;
    }
    if (wide == DTYPE_F64) {
        memcpy(&bits, &e.value, sizeof bits);
        e.negative = bits >> 63 != 0;
        e.magnitude = bits & UINT64_MAX >> 1;
    } else if (wide == DTYPE_F32) {
        float value = (float)e.value;
        uint32_t half;
        memcpy(&half, &value, sizeof half);
        e.negative = half >> 31 != 0;
        e.magnitude = half & UINT32_MAX >> 1;
    }
    return e;
}

/* What both are compared as; integers (of any width): DTYPE_I64. */
static Dtype wide_dtype(Dtype a, Dtype b) {
    bool whole = a > DTYPE_F64 && b > DTYPE_F64;
    return whole ? DTYPE_I64 : a < DTYPE_F64 && b < DTYPE_F64 ? DTYPE_F32 : DTYPE_F64;
}

typedef struct Gap {
    bool number; /* neither is NaN */
    uint64_t ulp;
    double absolute, relative, excess; /* over what is allowed */
    bool beyond;
} Gap;

/* False: they are equal. */
static bool gap_between(Gap *gap, Element x, Element y, Dtype wide, const DiffOptions *o) {
    uint64_t p = x.magnitude, q = y.magnitude;
    uint64_t sum = p > UINT64_MAX - q ? UINT64_MAX : p + q;
    uint64_t ulp = x.negative != y.negative ? sum : p > q ? p - q : q - p;
    if (ulp == 0 || (isnan(x.value) && isnan(y.value))) {
        return false;
    }
    double tolerance = o->atol + o->rtol * fabs(y.value);
    *gap = (Gap){.number = !isnan(x.value) && !isnan(y.value), .ulp = ulp};
    gap->absolute = !gap->number        ? INFINITY
                    : wide == DTYPE_I64 ? (double)ulp
                                        : fabs(x.value - y.value);
    gap->relative = y.value != 0.0 && gap->number ? gap->absolute / fabs(y.value) : INFINITY;
    gap->ulp = gap->number ? ulp : UINT64_MAX;
    bool within = isfinite(gap->absolute) && gap->absolute <= tolerance;
    gap->beyond = !within && (!gap->number || ulp > o->ulp);
    gap->excess = o->atol + o->rtol == 0.0  ? (double)gap->ulp - (double)o->ulp
                  : isfinite(gap->absolute) ? gap->absolute - tolerance
                                            : INFINITY;
    return true;
}

enum {
    ULP_BUCKETS = 66 /* equal, 1, 2-3, 4-7 ... up to 2^64 - 1, no number */
};

typedef struct Worst {
    size_t differing, beyond;
    size_t first, at; /* of the first that differs, and of the largest excess */
    Gap gap;          /* there */
    uint64_t ulp;     /* the largest of each */
    double absolute, relative;
    size_t histogram[ULP_BUCKETS];
} Worst;

static size_t ulp_bucket(const Gap *gap) {
    size_t bucket = gap->number ? 0 : ULP_BUCKETS - 1;
    for (uint64_t ulp = gap->ulp; gap->number && ulp > 0; ulp >>= 1) {
        bucket++;
    }
    return bucket;
}

static Worst diff_tensor(const Tensor *a, const Tensor *b, Dtype wide, const DiffOptions *o) {
    Worst worst = {0};
    for (size_t i = 0; i < a->count; i++) {
        Gap gap;
        if (!gap_between(&gap, element_at(a, i, wide), element_at(b, i, wide), wide, o)) {
            continue;
        }
        worst.first = worst.differing == 0 ? i : worst.first;
        bool worse = gap.beyond != worst.gap.beyond ? gap.beyond : gap.excess > worst.gap.excess;
        if (worst.differing == 0 || worse) {
            worst.gap = gap;
            worst.at = i;
        }
        worst.ulp = gap.ulp > worst.ulp ? gap.ulp : worst.ulp;
        worst.absolute = gap.absolute > worst.absolute ? gap.absolute : worst.absolute;
        worst.relative = gap.relative > worst.relative ? gap.relative : worst.relative;
        worst.histogram[ulp_bucket(&gap)]++;
        worst.differing++;
        worst.beyond += gap.beyond ? 1 : 0;
    }
    worst.histogram[0] = a->count - worst.differing;
    return worst;
}

/* ---- diff: two files ---- */

typedef struct DiffPair {
    const char *name;
    Tensor a, b; /* leading dimensions of 1 that the other has not are dropped */
    bool in_a, in_b, compared, bad;
    bool known; /* a hook point, or its gradient */
    HookPoint point;
} DiffPair;

typedef struct Diff {
    const DiffOptions *options;
    FILE *out;
    Arena *arena;
    DiffPair *pairs; /* in the order of the pass */
    size_t count, room;
    int n_layers[2]; /* of the language model and the tower, as the names have them */
} Diff;

static void print_index(FILE *out, const Tensor *t, size_t flat) {
    size_t index[TENSOR_MAX_RANK];
    for (int i = t->rank; i-- > 0; flat /= t->shape[i]) {
        index[i] = flat % t->shape[i];
    }
    print_shape(out, index, t->rank, "0");
}

/* Integers whole. */
static void print_element(FILE *out, const Tensor *t, size_t i, bool json) {
    Element e = element_at(t, i, DTYPE_I64);
    if (t->dtype > DTYPE_F64) {
        fprintf(out, "%s%" PRIu64, e.negative ? "-" : "", e.magnitude);
    } else if (json) {
        json_write_double(out, e.value);
    } else {
        fprintf(out, "%.*g", t->dtype == DTYPE_F64 ? 17 : 9, e.value);
    }
}

/* `, "first": [0, 3], "first_values": [0.5, 0.25]`; nothing where none differs. */
static void place_json(FILE *out, const char *key, const DiffPair *p, size_t flat, bool differs) {
    if (differs) {
        fprintf(out, ", \"%s\": ", key);
        print_index(out, &p->a, flat);
        fprintf(out, ", \"%s_values\": [", key);
        print_element(out, &p->a, flat, true);
        fputs(", ", out);
        print_element(out, &p->b, flat, true);
        fputc(']', out);
    }
}

/* [0, 3] 0.5 0.25: an index and what both have there. */
static void place_text(FILE *out, const DiffPair *p, size_t flat) {
    print_index(out, &p->a, flat);
    fputc(' ', out);
    print_element(out, &p->a, flat, false);
    fputc(' ', out);
    print_element(out, &p->b, flat, false);
}

/* How many elements are how far apart: 0: 180, 1: 7, 2-3: 5; as JSON by the least of each. */
static void print_histogram(FILE *out, const size_t *histogram, bool json) {
    const char *separator = "";
    for (int i = 0; i < ULP_BUCKETS; i++) {
        uint64_t low = i == 0 ? 0 : UINT64_C(1) << (i - 1) % 64;
        if (histogram[i] == 0) {
            continue;
        }
        fputs(separator, out);
        if (i == ULP_BUCKETS - 1) {
            fputs(json ? "\"no number\"" : "no number", out);
        } else if (json) {
            fprintf(out, "\"%" PRIu64 "\"", low);
        } else if (i < 2) {
            fprintf(out, "%" PRIu64, low);
        } else {
            fprintf(out, "%" PRIu64 "-%" PRIu64, low, low + (low - 1));
        }
        fprintf(out, ": %zu", histogram[i]);
        separator = ", ";
    }
}

static void pair_json(const Diff *d, const DiffPair *p, const char *problem, const Worst *w) {
    FILE *out = d->out;
    fputs("\n  {\"name\": ", out);
    json_write_string(out, p->name, strlen(p->name));
    if (problem != NULL) {
        fputs(", \"problem\": ", out);
        json_write_string(out, problem, strlen(problem));
        fputc('}', out);
        return;
    }
    fprintf(out, ", \"dtypes\": [\"%s\", \"%s\"]", dtype_name(p->a.dtype), dtype_name(p->b.dtype));
    fprintf(out, ", \"elements\": %zu, \"differing\": %zu, \"beyond\": %zu, \"ulp\": %" PRIu64,
            p->a.count, w->differing, w->beyond, w->ulp);
    fputs(", \"absolute\": ", out);
    json_write_double(out, w->absolute);
    fputs(", \"relative\": ", out);
    json_write_double(out, w->relative);
    place_json(out, "first", p, w->first, w->differing > 0);
    place_json(out, "worst", p, w->at, w->differing > 0);
    fputs(", \"histogram\": {", out);
    print_histogram(out, w->histogram, true);
    fputs("}}", out);
}

static void pair_text(const Diff *d, const DiffPair *p, const char *problem, const Worst *w) {
    FILE *out = d->out;
    Dtype wide = wide_dtype(p->a.dtype, p->b.dtype);
    const char *as = wide == DTYPE_I64 ? "integers" : dtype_name(wide), *note = "";
    if (problem != NULL) {
        fprintf(out, "%s: %s\n", p->name, problem);
        return;
    }
    if (p->a.dtype != p->b.dtype) {
        note = arena_format(d->arena, " (%s and %s, compared as %s)", dtype_name(p->a.dtype),
                            dtype_name(p->b.dtype), as);
    }
    if (w->differing == 0) {
        fprintf(out, "%s: equal%s\n", p->name, note);
        return;
    }
    fprintf(out, "%s: %zu of %zu differ%s, %zu beyond what is allowed; first ", p->name,
            w->differing, p->a.count, note, w->beyond);
    place_text(out, p, w->first);
    fputs("; worst ", out);
    place_text(out, p, w->at);
    if (w->gap.number) {
        fprintf(out, ": %" PRIu64 " ulp; absolute %.3g, relative %.3g\n", w->gap.ulp,
                w->gap.absolute, w->gap.relative);
    } else {
        fputs(": one of them is no number\n", out);
    }
    if (d->options->histogram) {
        fputs("  ulp ", out);
        print_histogram(out, w->histogram, false);
        fputc('\n', out);
    }
}

static void drop_ones(Tensor *t, int rank) {
    while (t->rank > rank && t->shape[0] == 1) {
        memmove(t->shape, t->shape + 1, (size_t)--t->rank * sizeof *t->shape);
    }
}

/* Why two tensors cannot be compared; NULL: they can. */
static const char *pair_problem(const Diff *d, const DiffPair *p) {
    if (!p->in_a || !p->in_b) {
        return p->in_a ? "only in A" : "only in B";
    }
    if (p->a.dtype == DTYPE_OTHER || p->b.dtype == DTYPE_OTHER) {
        return arena_format(d->arena, "not compared: %s in A, %s in B", p->a.type, p->b.type);
    }
    if (p->a.rank == p->b.rank &&
        memcmp(p->a.shape, p->b.shape, (size_t)p->a.rank * sizeof *p->a.shape) == 0) {
        return NULL;
    }
    MemoryStream *text = memory_open(d->arena);
    fputs("other shape: ", text->stream);
    print_shape(text->stream, p->a.shape, p->a.rank, "0");
    fputs(" in A, ", text->stream);
    print_shape(text->stream, p->b.shape, p->b.rank, "0");
    fputs(" in B", text->stream);
    return memory_text(text);
}

/* One line (or JSON object) a tensor, unless only bad ones are wanted; whether it was printed. */
static bool diff_pair(const Diff *d, DiffPair *p, bool first_line) {
    const DiffOptions *o = d->options;
    const char *problem = pair_problem(d, p);
    Worst worst = {0};
    if (problem == NULL) {
        worst = diff_tensor(&p->a, &p->b, wide_dtype(p->a.dtype, p->b.dtype), o);
    }
    p->compared = problem == NULL;
    p->bad = problem != NULL || worst.beyond > 0;
    if (o->bad_only && !p->bad) {
        return false;
    }
    if (o->json) {
        fputs(first_line ? "" : ",", d->out);
        pair_json(d, p, problem, &worst);
    } else {
        pair_text(d, p, problem, &worst);
    }
    return true;
}

/* ---- diff: where it began ---- */

static int compare_pairs(const void *a, const void *b) {
    const DiffPair *x = a, *y = b;
    if (x->known != y->known) {
        return x->known ? -1 : 1;
    }
    return x->known ? compare_points(&x->point, &y->point) : compare_natural(&x->name, &y->name);
}

static bool parse_point(HookPoint *point, const char *name) {
    static const char grad[] = ".grad";
    char bare[HOOK_NAME_MAX];
    size_t length = strlen(name), tail = sizeof grad - 1;
    if (length >= sizeof bare) {
        return false;
    }
    memcpy(bare, name, length + 1);
    point->gradient = length > tail && strcmp(bare + length - tail, grad) == 0;
    bare[length - (point->gradient ? tail : 0)] = '\0';
    return hook_parse(bare, &point->kind, &point->layer, &point->vision);
}

static void diff_add(Diff *d, const Tensor *a, const Tensor *b) {
    DiffPair p = {.name = a != NULL ? a->name : b->name, .in_a = a != NULL, .in_b = b != NULL};
    p.known = parse_point(&p.point, p.name);
    if (p.known && p.point.layer >= d->n_layers[p.point.vision]) {
        d->n_layers[p.point.vision] = p.point.layer + 1;
    }
    if (a != NULL) {
        p.a = *a;
    }
    if (b != NULL) {
        p.b = *b;
    }
    if (a != NULL && b != NULL) {
        drop_ones(&p.a, b->rank);
        drop_ones(&p.b, a->rank);
    }
    d->pairs = arena_grow(d->arena, d->pairs, &d->room, d->count + 1, sizeof *d->pairs);
    d->pairs[d->count++] = p;
}

static const DiffPair *pair_of(const Diff *d, const HookPoint *point) {
    const DiffPair *found = NULL;
    for (size_t i = 0; i < d->count && found == NULL; i++) {
        const DiffPair *p = &d->pairs[i];
        found = p->known && compare_points(&p->point, point) == 0 ? p : NULL;
    }
    return found;
}

/* Whether the model has such points, as far as the files tell. */
static bool kind_there(const Diff *d, const HookPoint *point) {
    bool there = !hook_optional(point->kind);
    for (size_t i = 0; i < d->count && !there; i++) {
        const HookPoint *p = &d->pairs[i].point;
        there = d->pairs[i].known && p->kind == point->kind && p->vision == point->vision;
    }
    return there;
}

enum {
    TRACE_MOST = 1024 /* points looked at: the blocks that are near */
};

static bool points_have(const Points *points, const HookPoint *p) {
    bool has = false;
    for (size_t i = 0; i < points->count && !has; i++) {
        has = compare_points(&points->list[i], p) == 0;
    }
    return has;
}

/* From `points` up the pass: `found` are the first that were compared, `lost` those that a model
 * has but were not; without `lost` the way goes on through them. */
static void trace(const Diff *d, Points *points, Points *seen, Points *found, Points *lost) {
    for (size_t i = 0; i < points->count && seen->count < TRACE_MOST; i++) {
        HookPoint inputs[HOOK_INPUTS_MAX], at = points->list[i];
        size_t n = hook_inputs(&at, d->n_layers, inputs);
        for (size_t k = 0; k < n; k++) {
            const DiffPair *pair = pair_of(d, &inputs[k]);
            bool compared = pair != NULL && pair->compared;
            if (points_have(seen, &inputs[k])) {
                continue;
            }
            points_add(seen, inputs[k]);
            points_add(compared                                    ? found
                       : lost != NULL && kind_there(d, &inputs[k]) ? lost
                                                                   : points,
                       inputs[k]);
        }
    }
    points_sort(found);
}

/* Without the groups that both names begin with: hook_q beside blocks.0.attn.hook_rot_q. */
static const char *name_beside(Arena *arena, const HookPoint *p, const DiffPair *first) {
    const char *name = point_name(arena, p, false);
    size_t shared = 0;
    bool near = p->layer == first->point.layer && p->vision == first->point.vision;
    for (size_t i = 0; near && name[i] != '\0' && name[i] == first->name[i]; i++) {
        shared = name[i] == '.' ? i + 1 : shared;
    }
    return name + shared;
}

/* "; its inputs hook_q, hook_k agree"; nothing where there are none. */
static void print_names(const Diff *d, const char *before, const Points *points,
                        const DiffPair *first, const char *after) {
    if (points->count == 0) {
        return;
    }
    fputs(before, d->out);
    for (size_t i = 0; i < points->count; i++) {
        const HookPoint *p = &points->list[i];
        const DiffPair *pair = pair_of(d, p);
        const char *why = pair == NULL     ? " (in neither file)"
                          : pair->compared ? ""
                          : !pair->in_b    ? " (only in A)"
                          : !pair->in_a    ? " (only in B)"
                                           : " (of other shape or dtype)";
        fprintf(d->out, "%s %s%s", i > 0 ? "," : "", name_beside(d->arena, p, first), why);
    }
    fputs(after, d->out);
}

static void print_name_list(const Diff *d, const char *key, const Points *points) {
    fprintf(d->out, ", \"%s\": [", key);
    for (size_t i = 0; i < points->count; i++) {
        fprintf(d->out, "%s\"%s\"", i > 0 ? ", " : "",
                point_name(d->arena, &points->list[i], false));
    }
    fputc(']', d->out);
}

/* The first tensor beyond what is allowed, and how what it was computed from compares. */
static void print_first(const Diff *d, const DiffPair *first) {
    Points start = {.arena = d->arena}, seen = start, agree = start, lost = start, before = start;
    FILE *out = d->out;
    if (first->known) {
        points_add(&start, first->point);
        trace(d, &start, &seen, &agree, &lost);
        Points behind = lost; /* its list grows behind what `lost` has of it */
        trace(d, &behind, &seen, &before, NULL);
    }
    if (d->options->json) {
        fputs("{\"name\": ", out);
        json_write_string(out, first->name, strlen(first->name));
        print_name_list(d, "inputs_that_agree", &agree);
        print_name_list(d, "inputs_not_compared", &lost);
        print_name_list(d, "before_them_agree", &before);
        fputc('}', out);
        return;
    }
    fprintf(out, "first beyond: %s", first->name);
    if (first->known && agree.count + lost.count == 0) {
        fputs("; no hook point comes before it", out);
    }
    print_names(d, "; its inputs", &agree, first, " agree");
    print_names(d, agree.count > 0 ? "," : "; its inputs", &lost, first, " were not compared");
    print_names(d, "; before them", &before, first, " agree");
    fputc('\n', out);
}

/* Returns how many tensors are in both. */
static size_t diff_open(Diff *d) {
    TensorStore a, b;
    size_t shared = 0;
    tensors_open(&a, d->arena, d->options->a);
    tensors_open(&b, d->arena, d->options->b);
    for (size_t i = 0, j = 0; i < a.count || j < b.count;) {
        int order = i == a.count   ? 1
                    : j == b.count ? -1
                                   : strcmp(a.tensors[i].name, b.tensors[j].name);
        shared += order == 0 ? 1 : 0;
        diff_add(d, order <= 0 ? &a.tensors[i++] : NULL, order >= 0 ? &b.tensors[j++] : NULL);
    }
    if (d->count > 0) {
        qsort(d->pairs, d->count, sizeof *d->pairs, compare_pairs);
    }
    return shared;
}

void diff_run(const DiffOptions *o, FILE *out) {
    Arena *arena = arena_new();
    Diff d = {.options = o, .out = out, .arena = arena};
    const DiffPair *bad = NULL, *beyond = NULL; /* the first of each */
    size_t n_bad = 0, total = 0, lines = 0;
    if (diff_open(&d) == 0 && o->common) {
        fail(STATUS_INPUT, "%s and %s: no tensor is in both", o->a, o->b);
    }
    fputs(o->json ? "{\"tensors\": [" : "", out);
    for (DiffPair *p = d.pairs; p < d.pairs + d.count; p++) {
        if (o->common && !(p->in_a && p->in_b)) {
            continue;
        }
        lines += diff_pair(&d, p, lines == 0) ? 1 : 0;
        bad = bad == NULL && p->bad ? p : bad;
        beyond = beyond == NULL && p->bad && p->compared ? p : beyond;
        n_bad += p->bad ? 1 : 0;
        total++;
    }
    if (o->json) {
        fprintf(out, "],\n \"total\": %zu, \"allowed\": %zu, \"first_beyond\": ", total,
                total - n_bad);
        fputs(beyond == NULL ? "null" : "", out);
    } else {
        fprintf(out, "%zu of %zu tensors as allowed", total - n_bad, total);
        fprintf(out, total < d.count ? "; %zu in one file only\n" : "\n", d.count - total);
    }
    if (beyond != NULL) {
        print_first(&d, beyond);
    } else if (bad != NULL && !o->json) {
        fprintf(out, "nothing beyond in what could be compared, which %s could not\n", bad->name);
    }
    if (o->json) {
        fprintf(out, ",\n \"equal\": %s}\n", bad == NULL ? "true" : "false");
    }
    if (bad != NULL) {
        fail(STATUS_CHECK, "%zu of %zu tensors differ by more than allowed, first %s", n_bad, total,
             beyond != NULL ? beyond->name : bad->name);
    }
    arena_free(arena);
}

/* ---- tokenize: the command ---- */

/* All of a stream (line false) or its next line without the newline. *end: nothing was left. */
static char *read_input(Arena *arena, FILE *in, bool line, size_t *length, bool *end) {
    size_t capacity = 0;
    int c = 0;
    char *text = arena_grow(arena, NULL, &capacity, 1, 1);
    *length = 0;
    while ((c = getc_unlocked(in)) != EOF && !(line && c == '\n')) {
        text = arena_grow(arena, text, &capacity, *length + 2, 1);
        text[(*length)++] = (char)c;
    }
    *end = c == EOF && *length == 0;
    if (ferror(in)) {
        fail(STATUS_RESOURCE, "standard input cannot be read");
    }
    return text;
}

/* Separated by a space, or by a comma and a space. fprintf would take a third of the whole
 * tokenizing. */
static void print_ids(FILE *out, const int32_t *ids, size_t count, bool comma) {
    char buffer[4096];
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        char digits[10]; /* from the last to the first */
        size_t n = 0;
        for (uint32_t id = (uint32_t)ids[i]; n == 0 || id > 0; id /= 10) {
            digits[n++] = (char)('0' + id % 10);
        }
        if (i > 0 && comma) {
            buffer[used++] = ',';
        }
        if (i > 0) {
            buffer[used++] = ' ';
        }
        while (n > 0) {
            buffer[used++] = digits[--n];
        }
        if (used + 12 > sizeof buffer || i + 1 == count) {
            fwrite(buffer, 1, used, out);
            used = 0;
        }
    }
}

/* Ids in any of the forms that people paste: separated by white space, commas, brackets. Unlike
 * `tokenizers`, which passes over ids from `size` on. */
static int32_t *ids_from_text(Arena *arena, const char *text, size_t length, int32_t size,
                              size_t *count) {
    int32_t *ids = arena_alloc(arena, length / 2 + 1, sizeof(int32_t));
    *count = 0;
    for (size_t i = 0; i < length;) {
        uint64_t id = 0;
        size_t digits = 0;
        for (; i < length && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
            id = id <= INT32_MAX ? id * 10 + (uint64_t)(text[i] - '0') : id;
        }
        if (digits > 0 && id >= (uint64_t)size) {
            fail(STATUS_INPUT, "standard input: the tokenizer has no id %.*s", (int)digits,
                 text + i - digits);
        }
        if (digits > 0) {
            ids[(*count)++] = (int32_t)id;
        } else if (text[i] == '\0' || strchr(" \t\r\n,[]", text[i]) == NULL) {
            fail(STATUS_INPUT, "standard input: expected token ids");
        } else {
            i++;
        }
    }
    return ids;
}

static void tokenize_unit(const Tokenizer *tokenizer, const char *text, size_t length,
                          const TokenizeOptions *o, size_t number, FILE *out, Arena *arena) {
    size_t count, text_length;
    if (o->jsonl) {
        char name[48];
        snprintf(name, sizeof name, "standard input, line %zu", number);
        const Json *value = json_parse(arena, text, length, name);
        if (!json_is(value, o->decode ? JSON_ARRAY : JSON_STRING)) {
            fail(STATUS_INPUT, "%s: expected a JSON %s", name,
                 o->decode ? "array of ids" : "string");
        }
        text = o->decode ? text : value->text;
        length = o->decode ? length : value->length;
    }
    if (!o->decode) {
        Tokens tokens = tokenizer_encode_fit(tokenizer, text, length, o->special, arena);
        fputs(o->jsonl ? "[" : "", out);
        print_ids(out, tokens.id, tokens.count, o->jsonl);
        fputs(o->jsonl ? "]\n" : "\n", out);
        return;
    }
    int32_t *ids = ids_from_text(arena, text, length, tokenizer_size(tokenizer), &count);
    char *decoded = tokenizer_decode(tokenizer, ids, count, !o->special, arena, &text_length);
    if (o->jsonl) {
        json_write_string(out, decoded, text_length);
        fputc('\n', out);
    } else {
        fwrite(decoded, 1, text_length, out);
    }
}

void tokenize_command(const char *path, const TokenizeOptions *o, FILE *in, FILE *out) {
    Arena *arena = arena_new(), *unit = arena_within(arena);
    Tokenizer *tokenizer = tokenizer_open(arena, path);
    bool end = false;
    for (size_t number = 1; !end && (o->jsonl || number == 1); number++) {
        arena_reset(unit);
        size_t length;
        char *text = read_input(unit, in, o->jsonl, &length, &end);
        bool blank = length == 0 || strspn(text, " \t\r") >= length;
        if (!(o->jsonl && (end || blank))) {
            tokenize_unit(tokenizer, text, length, o, number, out, unit);
        }
    }
    arena_free(arena);
}

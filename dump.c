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
    const char **globs; /* NULL behind the last */
    bool vision;
    Tensor *kept;
    size_t count, capacity;
} Collector;

static bool collector_matches(const Collector *c, const char *name) {
    bool matches = false;
    for (const char **glob = c->globs; *glob != NULL && !matches; glob++) {
        matches = glob_match(*glob, name);
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

static void collector_add(Collector *c, const char *name, Dtype dtype, int rank,
                          const size_t *shape, const void *data) {
    Tensor t = {.dtype = dtype, .rank = rank, .data = data};
    t.name = arena_copy(c->arena, name, strlen(name));
    memcpy(t.shape, shape, (size_t)rank * sizeof *shape);
    tensor_measure(&t);
    c->kept = arena_grow(c->arena, c->kept, &c->capacity, c->count + 1, sizeof *c->kept);
    c->kept[c->count++] = t;
}

static void collector_keep(Collector *c, const char *name, int rank, const size_t *shape,
                           const float *data) {
    size_t count = 1;
    for (int i = 0; i < rank; i++) {
        count *= shape[i];
    }
    float *values = arena_floats(c->arena, 1, count);
    for (size_t i = 0; i < count; i++) {
        values[i] = isnan(data[i]) ? NAN : data[i]; /* files hold the one quiet NaN */
    }
    collector_add(c, name, DTYPE_F32, rank, shape, values);
}

static void collector_call(void *user, const HookPoint *point, float *data) {
    char name[HOOK_NAME_MAX];
    hook_name(name, point->kind, point->layer, point->vision, point->gradient);
    collector_keep(user, name, point->rank, point->shape, data);
}

static void collector_write(const Collector *c, const char *path) {
    files_spare(path);
    TensorWriter *writer = tensor_writer_open(path);
    for (const Tensor *t = c->kept; t < c->kept + c->count; t++) {
        tensor_writer_declare(writer, t->name, t->dtype, t->rank, t->shape);
    }
    for (const Tensor *t = c->kept; t < c->kept + c->count; t++) {
        tensor_writer_data(writer, t->data, dtype_size(t->dtype), t->count);
    }
    tensor_writer_commit(writer);
}

static void collector_list(const Collector *c, const char *path) {
    JsonOut json = json_out_start(stdout, 2);
    json_out(&json, "{ out %s tensors {", path);
    for (const Tensor *t = c->kept; t < c->kept + c->count; t++) {
        json_out(&json, "%s [", t->name);
        json_out_sizes(&json, t->shape, t->rank);
        json_out(&json, "]");
    }
    json_out(&json, "} }");
}

/* A line each: name, shape, SHA-256 of the values as a file holds them, little-endian. */
static void collector_trace(const Collector *c, const char *path) {
    files_spare(path);
    OutFile *file = out_open(path);
    for (const Tensor *t = c->kept; t < c->kept + c->count; t++) {
        size_t size = dtype_size(t->dtype);
        char digest[65];
        Sha256 sha;
        sha256_start(&sha);
        sha256_add(&sha, little_elements(c->arena, t->data, size, t->count), size * t->count);
        sha256_end(&sha, digest);
        fprintf(file->stream, "%s [%s] %s\n", t->name,
                arena_sizes(c->arena, t->shape, t->rank, "0"), digest);
    }
    out_commit(file);
}

/* ---- the hook points that there are ---- */

static HookModel llm_points(const LlmConfig *c) {
    HookModel m = {.n_layers = c->n_layers,
                   .size = {['1'] = 1,
                            ['d'] = c->d_model,
                            ['h'] = c->n_heads,
                            ['g'] = c->n_kv_heads,
                            ['k'] = c->d_head,
                            ['m'] = c->d_mlp,
                            ['v'] = c->d_vocab}};
    bool rotates = c->rotary_dim > 0, post_norms = c->kind == LLM_GEMMA2;
    m.absent[HOOK_POS_EMBED] = rotates;
    m.absent[HOOK_ROT_Q] = m.absent[HOOK_ROT_K] = !rotates;
    m.absent[HOOK_LN1_POST_SCALE] = m.absent[HOOK_LN1_POST_NORMALIZED] = !post_norms;
    m.absent[HOOK_LN2_POST_SCALE] = m.absent[HOOK_LN2_POST_NORMALIZED] = !post_norms;
    m.absent[HOOK_RESID_MID] = c->parallel;
    m.absent[HOOK_PRE_LINEAR] = !c->gated;
    return m;
}

static HookModel vit_points(const VitConfig *c) {
    return (HookModel){.vision = true,
                       .n_layers = c->n_layers,
                       .size = {['1'] = 1,
                                ['T'] = c->n_patches + 1,
                                ['d'] = c->d_model,
                                ['h'] = c->n_heads,
                                ['g'] = c->n_heads,
                                ['k'] = c->d_head,
                                ['m'] = c->d_mlp,
                                ['c'] = VIT_CHANNELS,
                                ['s'] = c->image_size}};
}

static char *point_name(Arena *arena, const HookPoint *p, bool any_layer) {
    char name[HOOK_NAME_MAX];
    hook_name(name, p->kind, any_layer ? -1 : p->layer, p->vision, p->gradient);
    return arena_copy(arena, name, strlen(name));
}

void hooks_list(const char *llm_path, const char *vision_path, bool json, FILE *out) {
    Arena *arena = arena_new();
    HookModel models[2] = {{.vision = true}};
    HookPoint *points;
    if (vision_path != NULL) {
        Vit vit;
        vit_open(&vit, arena, vision_path);
        models[0] = vit_points(&vit.config);
    }
    if (llm_path != NULL) {
        Llm llm;
        llm_open(&llm, arena, llm_path);
        models[1] = llm_points(&llm.config);
    }
    JsonOut object = json_out_start(out, 2);
    if (json) {
        json_out(&object, "{ layers %zu vision_layers %zu points [", models[1].n_layers,
                 models[0].n_layers);
    }
    for (const HookModel *m = models; m < models + 2; m++) {
        size_t count = hook_points(arena, m, &points);
        for (const HookPoint *p = points; p < points + count; p++) {
            const char *name = point_name(arena, p, true);
            if (p->layer > 0) {
                continue; /* as layer 0 */
            }
            if (!json) {
                fprintf(out, "%-38s [%s]\n", name, arena_sizes(arena, p->shape, p->rank, "T"));
                continue;
            }
            json_out(&object, "{ name %s shape [", name);
            for (int i = 0; i < p->rank; i++) {
                if (p->shape[i] == 0) {
                    json_out(&object, "\"T\"");
                } else {
                    json_out_sizes(&object, &p->shape[i], 1);
                }
            }
            json_out(&object, "] }");
        }
    }
    if (json) {
        json_out(&object, "] }");
    }
    for (const HookModel *m = models; m < models + 2 && !json; m++) {
        if (m->n_layers > 0) {
            fprintf(out, "%sblocks.*: layers 0 to %zu\n", m->vision ? "vision." : "",
                    m->n_layers - 1);
        }
    }
    arena_free(arena);
}

/* ---- names that there are not ---- */

/* What --hooks chooses from, NULL behind the last; with `any_layer` once for all layers. */
static const char **hook_names(Arena *arena, const HookModel models[2], const DumpOptions *o,
                               bool any_layer) {
    HookPoint *points[2];
    const size_t n[2] = {hook_points(arena, &models[0], &points[0]),
                         hook_points(arena, &models[1], &points[1])};
    const char **names = arena_alloc(arena, 2 * (n[0] + n[1]) + 2, sizeof *names);
    size_t count = 0;
    for (int pass = 0; pass < (o->grad != NULL ? 2 : 1); pass++) {
        for (int m = pass; m < 2; m++) { /* the tower has no gradients */
            for (HookPoint *p = points[m]; p < points[m] + n[m]; p++) {
                p->gradient = pass > 0;
                if (!any_layer || p->layer <= 0) {
                    names[count++] = point_name(arena, p, any_layer);
                }
            }
        }
    }
    if (o->vlm.image != NULL) {
        names[count] = image_rgb;
    }
    return names;
}

/* Each glob must choose one of the points of tower and language model. */
static void check_globs(const Collector *c, const HookModel models[2], const DumpOptions *o) {
    const char **names = hook_names(c->arena, models, o, false);
    for (const char **glob = c->globs; *glob != NULL; glob++) {
        const char **name = names;
        while (*name != NULL && !glob_match(*glob, *name)) {
            name++;
        }
        if (*name != NULL) {
            continue;
        }
        Nearest nearest = {.arena = c->arena, .text = *glob, .within = true, .most = SIZE_MAX};
        name = hook_names(c->arena, models, o, strpbrk(*glob, "*?[{") != NULL);
        for (; *name != NULL; name++) {
            nearest_add(&nearest, *name);
        }
        fail(STATUS_INPUT, "--hooks %s: no hook point here has such a name; nearest: %s", *glob,
             nearest.list);
    }
}

/* ---- images and models ---- */

static void dump_image(Collector *c, const char *path) {
    Image image = image_read(c->arena, path);
    if (collector_matches(c, image_rgb)) {
        size_t shape[] = {image.height, image.width, 3};
        collector_add(c, image_rgb, DTYPE_U8, 3, shape, image.rgb);
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
                 (int)ids[i], vocab);
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
    const VlmOptions *p = &o->vlm;
    Arena *arena = arena_new();
    Hooks hooks = {collector_call, collector_wants, c};
    Sequence sequence = {0};
    float *images = NULL;
    if (p->llm != NULL) {
        prompt_open(&vlm, arena, compute, p);
        sequence = prompt_sequence(&vlm, p, arena);
    } else {
        vlm_open(&vlm, arena, compute, p);
    }
    const HookModel models[2] = {vit_points(&vlm.vit.config), llm_points(&vlm.llm.config)};
    check_globs(c, models, o);
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
    bool z = sae->hook_known && sae->hook == HOOK_Z;
    if (o->fold_value_biases != SAE_CENTRE_UNKNOWN &&
        (!z || sae->fold_value_biases != SAE_CENTRE_UNKNOWN)) {
        fail(STATUS_INPUT, "%s: --fold-value-biases has no effect on what is read here", o->sae);
    }
    if (!z || folded != SAE_CENTRE_YES) {
        if (o->vlm.llm != NULL) {
            fail(STATUS_INPUT, "%s: --llm has no effect on an SAE without folded value biases",
                 o->sae);
        }
        return NULL;
    }
    if (o->vlm.llm == NULL) {
        console_line(console,
                     "%s: trained under fold_value_biases; --input is read as z - b_V (--llm DIR "
                     "subtracts b_V)",
                     sae->path);
        return NULL;
    }
    llm_open(&llm, arena, o->vlm.llm);
    const LlmConfig *m = &llm.config;
    if ((size_t)sae->layer >= m->n_layers || sae->d_in != m->n_heads * m->d_head) {
        fail(STATUS_INPUT,
             "%s: an SAE of layer %d with d_in %zu does not fit %s: %zu layers, z of %zu",
             sae->path, sae->layer, sae->d_in, o->vlm.llm, m->n_layers, m->n_heads * m->d_head);
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
    sae_open(&sae, arena, o->sae, &o->vlm.sae);
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
        c.globs = glob_list(arena, o->hooks);
        if (o->vlm.image != NULL) {
            dump_image(&c, o->vlm.image);
        }
        if (o->vlm.llm != NULL || (o->vlm.image != NULL && o->vlm.vision != NULL)) {
            dump_models(&c, compute, o);
        } else if (o->vlm.image != NULL) {
            check_globs(&c, (const HookModel[2]){{0}}, o);
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
    bool in_a, in_b, bad;
    const char *problem; /* why they are not compared; NULL: they are */
    bool known;          /* a hook point, or its gradient */
    HookPoint point;
} DiffPair;

/* What was looked at on the way up the pass from the first tensor beyond what is allowed. */
typedef enum StepKind {
    STEP_THROUGH, /* not compared, and not every model has it: the way goes on */
    STEP_AGREES,
    STEP_LOST,  /* a model has it, but it was not compared */
    STEP_BEFORE /* agrees, behind one that is lost */
} StepKind;

typedef struct Step {
    HookPoint point;
    const DiffPair *pair; /* NULL: in neither file */
    StepKind kind;
} Step;

typedef struct Diff {
    const DiffOptions *options;
    FILE *out;
    JsonOut json;
    Arena *arena;
    DiffPair *pairs; /* in the order of the pass */
    size_t count, room;
    int n_layers[2]; /* of the language model and the tower, as the names have them */
    Step *steps;
    size_t n_steps, steps_room;
} Diff;

/* Integers whole; in JSON enough digits for what lies between the numbers of binary32. */
static const char *element_text(const Diff *d, const Tensor *t, size_t i) {
    Element e = element_at(t, i, DTYPE_I64);
    int digits = t->dtype == DTYPE_F64 || d->options->json ? 17 : 9;
    return t->dtype > DTYPE_F64
               ? arena_format(d->arena, "%s%" PRIu64, e.negative ? "-" : "", e.magnitude)
               : arena_format(d->arena, "%.*g", digits, e.value);
}

/* "[0, 3] 0.5 0.25": an index and what both have there; in JSON "KEY" and "KEY_values". */
static const char *tell_place(Diff *d, const DiffPair *p, size_t flat, const char *key) {
    size_t index[TENSOR_MAX_RANK], rest = flat;
    for (int i = p->a.rank; i-- > 0; rest /= p->a.shape[i]) {
        index[i] = rest % p->a.shape[i];
    }
    const char *a = element_text(d, &p->a, flat), *b = element_text(d, &p->b, flat);
    if (!d->options->json) {
        return arena_format(d->arena, "[%s] %s %s", arena_sizes(d->arena, index, p->a.rank, "0"), a,
                            b);
    }
    json_out(&d->json, "%s [", key);
    json_out_sizes(&d->json, index, p->a.rank);
    json_out(&d->json, "] %s [", arena_format(d->arena, "%s_values", key));
    json_out_value(&d->json, NULL, &(Json){.kind = JSON_NUMBER, .text = a});
    json_out_value(&d->json, NULL, &(Json){.kind = JSON_NUMBER, .text = b});
    json_out(&d->json, "]");
    return NULL;
}

/* How many elements are how far apart: "0: 180, 1: 7, 2-3: 5"; in JSON by the least of each. */
static void tell_histogram(Diff *d, const size_t *histogram) {
    const char *separator = "";
    for (int i = 0; i < ULP_BUCKETS; i++) {
        uint64_t low = i == 0 ? 0 : UINT64_C(1) << (i - 1) % 64;
        const char *range = arena_format(d->arena, "%" PRIu64, low);
        if (histogram[i] == 0) {
            continue;
        }
        if (i == ULP_BUCKETS - 1) {
            range = "no number";
        } else if (!d->options->json && i > 1) {
            range = arena_format(d->arena, "%s-%" PRIu64, range, low + (low - 1));
        }
        if (d->options->json) {
            json_out(&d->json, "%s %zu", range, histogram[i]);
        } else {
            fprintf(d->out, "%s%s: %zu", separator, range, histogram[i]);
            separator = ", ";
        }
    }
}

static void pair_json(Diff *d, const DiffPair *p, const Worst *w) {
    JsonOut *json = &d->json;
    json_out(json, "{ name %s", p->name);
    if (p->problem != NULL) {
        json_out(json, "problem %s }", p->problem);
        return;
    }
    json_out(json, "dtypes [ %s %s ] elements %zu differing %zu beyond %zu", dtype_name(p->a.dtype),
             dtype_name(p->b.dtype), p->a.count, w->differing, w->beyond);
    json_out(json, w->histogram[ULP_BUCKETS - 1] > 0 ? "ulp null" : "ulp %llu",
             (unsigned long long)w->ulp);
    json_out(json, "absolute %g relative %g", w->absolute, w->relative);
    if (w->differing > 0) {
        tell_place(d, p, w->first, "first");
        tell_place(d, p, w->at, "worst");
    }
    json_out(json, "histogram {");
    tell_histogram(d, w->histogram);
    json_out(json, "} }");
}

static void pair_text(Diff *d, const DiffPair *p, const Worst *w) {
    const char *a = dtype_name(p->a.dtype), *b = dtype_name(p->b.dtype), *note = "";
    print_shown(d->out, p->name);
    fputs(": ", d->out);
    if (p->problem != NULL) {
        print_shown(d->out, p->problem);
        fputc('\n', d->out);
        return;
    }
    if (p->a.dtype != p->b.dtype) {
        Dtype wide = wide_dtype(p->a.dtype, p->b.dtype);
        note = arena_format(d->arena, " (%s and %s, compared as %s)", a, b,
                            wide == DTYPE_I64 ? "integers" : dtype_name(wide));
    }
    if (w->differing == 0) {
        fprintf(d->out, "equal%s\n", note);
        return;
    }
    fprintf(d->out,
            "%zu of %zu differ%s, %zu beyond what is allowed; first %s; worst %s: ", w->differing,
            p->a.count, note, w->beyond, tell_place(d, p, w->first, NULL),
            tell_place(d, p, w->at, NULL));
    if (w->gap.number) {
        fprintf(d->out, "%" PRIu64 " ulp; absolute %.3g, relative %.3g\n", w->gap.ulp,
                w->gap.absolute, w->gap.relative);
    } else {
        fputs("one of them is no number\n", d->out);
    }
    if (d->options->histogram) {
        fputs("  ulp ", d->out);
        tell_histogram(d, w->histogram);
        fputc('\n', d->out);
    }
}

static void drop_ones(Tensor *t, int rank) {
    while (t->rank > rank && t->shape[0] == 1) {
        memmove(t->shape, t->shape + 1, (size_t)--t->rank * sizeof *t->shape);
    }
}

/* Why two tensors cannot be compared; NULL: they can. */
static const char *pair_problem(const Diff *d, const DiffPair *p) {
    const Tensor *a = &p->a, *b = &p->b;
    if (!p->in_a || !p->in_b) {
        return p->in_a ? "only in A" : "only in B";
    }
    if (a->dtype == DTYPE_OTHER || b->dtype == DTYPE_OTHER) {
        return arena_format(d->arena, "not compared: %s in A, %s in B", a->type, b->type);
    }
    if (a->rank == b->rank && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0) {
        return NULL;
    }
    return arena_format(d->arena, "other shape: [%s] in A, [%s] in B",
                        arena_sizes(d->arena, a->shape, a->rank, "0"),
                        arena_sizes(d->arena, b->shape, b->rank, "0"));
}

/* One line (or JSON object) a tensor, unless only bad ones are wanted. */
static void diff_pair(Diff *d, DiffPair *p) {
    Worst worst = {0};
    if (p->problem == NULL) {
        worst = diff_tensor(&p->a, &p->b, wide_dtype(p->a.dtype, p->b.dtype), d->options);
    }
    p->bad = p->problem != NULL || worst.beyond > 0;
    if (p->bad || !d->options->bad_only) {
        (d->options->json ? pair_json : pair_text)(d, p, &worst);
    }
}

/* ---- diff: where it began ---- */

static int compare_points(const void *a, const void *b) {
    int64_t x = hook_place(a), y = hook_place(b);
    return (x > y) - (x < y);
}

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
    p.problem = pair_problem(d, &p);
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

static void step_add(Diff *d, const HookPoint *point, StepKind found, bool behind) {
    const DiffPair *pair = pair_of(d, point);
    for (size_t i = 0; i < d->n_steps; i++) {
        if (compare_points(&d->steps[i].point, point) == 0) {
            return;
        }
    }
    StepKind kind = pair != NULL && pair->problem == NULL ? found
                    : !behind && kind_there(d, point)     ? STEP_LOST
                                                          : STEP_THROUGH;
    d->steps = arena_grow(d->arena, d->steps, &d->steps_room, d->n_steps + 1, sizeof *d->steps);
    d->steps[d->n_steps++] = (Step){*point, pair, kind};
}

/* Up the pass from the steps of kind `from`: the first points that were compared are `found`. */
static void trace(Diff *d, StepKind from, StepKind found) {
    for (size_t i = 0, begin = d->n_steps; i < d->n_steps && d->n_steps < TRACE_MOST; i++) {
        HookPoint inputs[HOOK_INPUTS_MAX], at = d->steps[i].point;
        bool open = d->steps[i].kind == (i < begin ? from : STEP_THROUGH);
        size_t n = open ? hook_inputs(&at, d->n_layers, inputs) : 0;
        for (size_t k = 0; k < n; k++) {
            step_add(d, &inputs[k], found, from == STEP_LOST);
        }
    }
}

static int compare_steps(const void *a, const void *b) {
    const Step *x = a, *y = b;
    return compare_points(&x->point, &y->point);
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

/* " hook_q, hook_k", and why they were not compared; nothing where there are none. In JSON a list
 * of whole names. */
static const char *tell_steps(Diff *d, const DiffPair *first, StepKind kind, const char *key) {
    MemoryStream *text = memory_open(d->arena);
    const char *separator = "";
    if (d->options->json) {
        json_out(&d->json, "%s [", key);
    }
    for (size_t i = 0; i < d->n_steps; i++) {
        const Step *s = &d->steps[i];
        const char *why = s->pair == NULL            ? " (in neither file)"
                          : s->pair->problem == NULL ? ""
                          : !s->pair->in_b           ? " (only in A)"
                          : !s->pair->in_a           ? " (only in B)"
                                                     : " (of other shape or dtype)";
        if (s->kind == kind && d->options->json) {
            json_out(&d->json, "%s", point_name(d->arena, &s->point, false));
        } else if (s->kind == kind) {
            fprintf(text->stream, "%s %s%s", separator, name_beside(d->arena, &s->point, first),
                    why);
            separator = ",";
        }
    }
    if (d->options->json) {
        json_out(&d->json, "]");
    }
    return memory_text(text);
}

/* The first tensor beyond what is allowed, and how what it was computed from compares. */
static void tell_first(Diff *d, const DiffPair *first) {
    if (first->known) {
        step_add(d, &first->point, STEP_THROUGH, true);
        trace(d, STEP_THROUGH, STEP_AGREES);
        trace(d, STEP_LOST, STEP_BEFORE);
        qsort(d->steps, d->n_steps, sizeof *d->steps, compare_steps);
    }
    if (d->options->json) {
        json_out(&d->json, "{ name %s", first->name);
    }
    const char *agree = tell_steps(d, first, STEP_AGREES, "inputs_that_agree");
    const char *lost = tell_steps(d, first, STEP_LOST, "inputs_not_compared");
    const char *before = tell_steps(d, first, STEP_BEFORE, "before_them_agree");
    if (d->options->json) {
        json_out(&d->json, "}");
        return;
    }
    fputs("first beyond: ", d->out);
    print_shown(d->out, first->name);
    if (first->known && agree[0] == 0 && lost[0] == 0) {
        fputs("; no hook point comes before it", d->out);
    }
    if (agree[0] != 0) {
        fprintf(d->out, "; its inputs%s agree", agree);
    }
    if (lost[0] != 0) {
        fprintf(d->out, "%s%s were not compared", agree[0] != 0 ? "," : "; its inputs", lost);
    }
    if (before[0] != 0) {
        fprintf(d->out, "; before them%s agree", before);
    }
    fputc('\n', d->out);
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
    Diff d = {.options = o, .out = out, .json = json_out_start(out, 2), .arena = arena};
    const DiffPair *bad = NULL, *beyond = NULL; /* the first of each */
    size_t n_bad = 0, total = 0;
    if (diff_open(&d) == 0 && (o->common || d.count > 0)) {
        fail(STATUS_INPUT, "%s and %s: no tensor is in both", o->a, o->b);
    }
    if (o->json) {
        json_out(&d.json, "{ tensors [");
    }
    for (size_t i = 0; i < d.count; i++) {
        DiffPair *p = &d.pairs[i];
        if (o->common && !(p->in_a && p->in_b)) {
            continue;
        }
        diff_pair(&d, p);
        bad = bad == NULL && p->bad ? p : bad;
        beyond = beyond == NULL && p->bad && p->problem == NULL ? p : beyond;
        n_bad += p->bad ? 1 : 0;
        total++;
    }
    if (o->json) {
        json_out(&d.json, "] total %zu allowed %zu first_beyond", total, total - n_bad);
    } else {
        fprintf(out, "%zu of %zu tensor%s as allowed", total - n_bad, total, plural(total));
        fprintf(out, total < d.count ? "; %zu in one file only\n" : "\n", d.count - total);
    }
    if (beyond != NULL) {
        tell_first(&d, beyond);
    } else if (o->json) {
        json_out(&d.json, "null");
    } else if (bad != NULL) {
        fputs("nothing beyond in what could be compared, which ", out);
        print_shown(out, bad->name);
        fputs(" could not\n", out);
    }
    if (o->json) {
        json_out(&d.json, bad == NULL ? "equal true }" : "equal false }");
    }
    if (bad != NULL) {
        fail(STATUS_CHECK, "%zu of %zu tensor%s beyond what is allowed, first %s", n_bad, total,
             plural(total), beyond != NULL ? beyond->name : bad->name);
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

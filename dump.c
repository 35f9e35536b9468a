/* dump.c: one forward (and backward) pass with every wanted hook point written to safetensors; and
 * the comparison of two such files. */
#include "dump.h"
#include "model_load.h"

#include "checkpoint.h"
#include "json.h"
#include "zip.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* ---- collecting ---- */

typedef struct Collector {
    Arena *arena;
    const char *pattern; /* all that is given, as one glob */
    bool vision;
    Tensor *kept;
    size_t count, capacity;
} Collector;

static bool collector_wants(void *user, HookKind kind, int layer, bool gradient) {
    const Collector *c = user;
    char name[HOOK_NAME_MAX];
    hook_name(name, kind, layer, c->vision, false);
    if (glob_match(c->pattern, name)) {
        return true;
    }
    hook_name(name, kind, layer, c->vision, gradient);
    return gradient && glob_match(c->pattern, name);
}

static void collector_keep(Collector *c, const char *name, Dtype dtype, int rank,
                           const size_t *shape, const void *data) {
    Tensor t = {.dtype = dtype, .rank = rank, .count = 1};
    for (int i = 0; i < rank; i++) {
        t.shape[i] = shape[i];
        t.count *= shape[i];
    }
    t.name = arena_copy(c->arena, name, strlen(name));
    float *values = arena_alloc(c->arena, t.count + 1, dtype_size(dtype));
    memcpy(values, data, t.count * dtype_size(dtype));
    for (size_t i = 0; dtype == DTYPE_F32 && i < t.count; i++) {
        values[i] = isnan(values[i]) ? NAN : values[i]; /* files hold the one quiet NaN */
    }
    t.data = values;
    c->kept = arena_grow(c->arena, c->kept, &c->capacity, c->count + 1, sizeof *c->kept);
    c->kept[c->count++] = t;
}

static void collector_call(void *user, const HookPoint *point, float *data) {
    char name[HOOK_NAME_MAX];
    hook_name(name, point->kind, point->layer, point->vision, point->gradient);
    collector_keep(user, name, DTYPE_F32, point->rank, point->shape, data);
}

/* Each of the globs names something: one that does not is a mistake, whatever the others name. */
static void collector_check(const Collector *c) {
    for (size_t at = 0, next; c->pattern[at] == '{' || c->pattern[at] == ','; at = next) {
        next = brace_next(c->pattern, at, ",}");
        const char *glob = arena_copy(c->arena, c->pattern + at + 1, next - at - 1);
        bool names = false;
        for (size_t i = 0; i < c->count; i++) {
            names |= glob_match(glob, c->kept[i].name);
        }
        if (!names) {
            fail(STATUS_INPUT, "--hooks %s: no hook point of this model has such a name", glob);
        }
    }
}

static void collector_write(const Collector *c, const char *path) {
    TensorWriter *writer = tensor_writer_open(path);
    for (size_t i = 0; i < c->count; i++) {
        const Tensor *t = &c->kept[i];
        tensor_writer_declare(writer, t->name, t->dtype, t->rank, t->shape);
    }
    for (size_t i = 0; i < c->count; i++) {
        const Tensor *t = &c->kept[i];
        tensor_writer_data(writer, t->data, t->count * dtype_size(t->dtype));
    }
    tensor_writer_commit(writer);
}

/* ---- images and models ---- */

static void dump_image(Collector *c, const char *path) {
    Arena *arena = arena_new();
    Image image = image_read(arena, path);
    if (glob_match(c->pattern, "image.rgb")) {
        collector_keep(c, "image.rgb", DTYPE_U8, 3, (size_t[]){image.height, image.width, 3},
                       image.rgb);
    }
    arena_free(arena);
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
    collector_keep(c, "pre", DTYPE_F32, 2, (size_t[]){rows, latent}, pre);
    collector_keep(c, "acts", DTYPE_F32, 2, (size_t[]){rows, latent}, acts);
    collector_keep(c, "recon", DTYPE_F32, 2, (size_t[]){rows, in}, recon);
    arena_free(arena);
}

void dump_run(const Compute *compute, const DumpOptions *o, const Console *console) {
    if (o->out == NULL || (o->sae == NULL && o->hooks == NULL)) {
        fail(STATUS_INPUT, "dump needs --out and%s --hooks", o->sae == NULL ? "" : " maybe");
    }
    Arena *arena = arena_new();
    Collector c = {.arena = arena,
                   .pattern = arena_format(arena, "{%s}", o->hooks != NULL ? o->hooks : "")};
    if (o->sae != NULL) {
        dump_sae(&c, compute, o, console);
    } else {
        if (o->prompt.image != NULL) {
            dump_image(&c, o->prompt.image);
        }
        if (o->prompt.llm != NULL || (o->prompt.image != NULL && o->prompt.vision != NULL)) {
            dump_models(&c, compute, o);
        } else if (o->prompt.image == NULL) {
            fail(STATUS_INPUT, "dump needs --llm, --image or --sae");
        }
        collector_check(&c);
    }
    collector_write(&c, o->out);
    arena_free(arena);
}

/* ---- diff ---- */

typedef struct Element {
    double value;
    uint64_t place; /* on the format's own number line: a difference of places is in ulp */
} Element;

/* Of floats the place is by their bits (of BF16 and F16, too, as binary32), with -0 at +0; integers
 * are their own, so that those beyond 2^53, which binary64 cannot tell apart, still differ. */
static Element element_at(const Tensor *t, size_t i) {
    const uint64_t zero = UINT64_C(1) << 63;
    size_t size = dtype_size(t->dtype);
    uint64_t bits = read_little((const unsigned char *)t->data + i * size, (int)size);
    Element e = {.place = bits};
    if (t->dtype <= DTYPE_F64) {
        uint64_t sign = t->dtype == DTYPE_F64 ? zero : UINT64_C(1) << 31;
        if (t->dtype == DTYPE_F64) {
            memcpy(&e.value, &bits, sizeof e.value);
        } else {
            float value = weight_at((Weight){t->data, t->dtype}, i);
            uint32_t half;
            memcpy(&half, &value, sizeof half);
            e.value = (double)value;
            bits = half;
        }
        uint64_t magnitude = bits & (sign - 1);
        e.place = (bits & sign) != 0 ? zero - magnitude : zero + magnitude;
    } else if (t->dtype <= DTYPE_I8) {
        uint64_t sign = UINT64_C(1) << (8 * size - 1), extended = (bits ^ sign) - sign;
        e.value = (double)(int64_t)extended;
        e.place = extended + zero;
    } else {
        e.value = (double)bits;
    }
    return e;
}

/* As text: integers whole. */
static void print_element(FILE *out, const Tensor *t, size_t i) {
    Element e = element_at(t, i);
    if (t->dtype <= DTYPE_F64) {
        fprintf(out, " %.9g", e.value);
    } else if (t->dtype <= DTYPE_I8) {
        fprintf(out, " %" PRId64, (int64_t)(e.place - (UINT64_C(1) << 63)));
    } else {
        fprintf(out, " %" PRIu64, e.place);
    }
}

typedef struct Worst {
    size_t first, differing, beyond; /* first: index of the first element that differs */
    uint64_t ulp;
    double absolute, relative;
    size_t at; /* index of the largest distance in ulp */
} Worst;

static Worst diff_tensor(const Tensor *a, const Tensor *b, const DiffOptions *o) {
    Worst worst = {.first = a->count};
    for (size_t i = 0; i < a->count; i++) {
        Element x = element_at(a, i), y = element_at(b, i);
        bool x_nan = isnan(x.value), y_nan = isnan(y.value);
        if ((x_nan && y_nan) || x.place == y.place) {
            continue;
        }
        uint64_t ulp = x.place > y.place ? x.place - y.place : y.place - x.place;
        double absolute = a->dtype > DTYPE_F64 ? (double)ulp : fabs(x.value - y.value);
        if (x_nan || y_nan) {
            ulp = UINT64_MAX;
            absolute = INFINITY;
        }
        double relative = y.value != 0.0 ? absolute / fabs(y.value) : INFINITY;
        worst.first = worst.differing++ == 0 ? i : worst.first;
        if (ulp > worst.ulp) {
            worst.ulp = ulp;
            worst.at = i;
        }
        worst.absolute = absolute > worst.absolute ? absolute : worst.absolute;
        worst.relative = relative > worst.relative ? relative : worst.relative;
        worst.beyond += ulp <= o->ulp || absolute <= o->atol + o->rtol * fabs(y.value) ? 0 : 1;
    }
    return worst;
}

static void print_index(FILE *out, const Tensor *t, size_t flat) {
    size_t stride = t->count;
    fputc('[', out);
    for (int i = 0; i < t->rank; i++) {
        stride /= t->shape[i];
        fprintf(out, "%s%zu", i > 0 ? ", " : "", flat / stride);
        flat %= stride;
    }
    fputc(']', out);
}

/* `, "first": [0, 3]`, or null where nothing differs. */
static void index_json(FILE *out, const char *key, const Tensor *t, size_t flat, bool differs) {
    fprintf(out, ", \"%s\": ", key);
    if (differs) {
        print_index(out, t, flat);
    } else {
        fputs("null", out);
    }
}

static void diff_json(FILE *out, const Tensor *a, const char *name, const char *problem,
                      const Worst *w) {
    fputs("\n  {\"name\": ", out);
    json_write_string(out, name, strlen(name));
    if (problem != NULL) {
        fprintf(out, ", \"problem\": \"%s\"}", problem);
        return;
    }
    fprintf(out, ", \"elements\": %zu, \"differing\": %zu, \"beyond\": %zu, \"ulp\": %" PRIu64,
            a->count, w->differing, w->beyond, w->ulp);
    fputs(", \"absolute\": ", out);
    json_write_double(out, w->absolute);
    fputs(", \"relative\": ", out);
    json_write_double(out, w->relative);
    index_json(out, "first", a, w->first, w->differing > 0);
    index_json(out, "worst", a, w->at, w->differing > 0);
    fputc('}', out);
}

static void diff_text(FILE *out, const Tensor *a, const Tensor *b, const char *name,
                      const char *problem, const Worst *w) {
    if (problem != NULL || w->differing == 0) {
        fprintf(out, "%s: %s\n", name, problem != NULL ? problem : "equal");
        return;
    }
    fprintf(out, "%s: %zu of %zu differ, %zu beyond what is allowed; first ", name, w->differing,
            a->count, w->beyond);
    print_index(out, a, w->first);
    print_element(out, a, w->first);
    print_element(out, b, w->first);
    fputs("; worst ", out);
    print_index(out, a, w->at);
    print_element(out, a, w->at);
    print_element(out, b, w->at);
    if (w->ulp == UINT64_MAX) {
        fputs(": one of them is no number\n", out);
    } else {
        fprintf(out, ": %" PRIu64 " ulp; absolute %.3g, relative %.3g\n", w->ulp, w->absolute,
                w->relative);
    }
}

static bool same_shape(const Tensor *a, const Tensor *b) {
    return a->dtype == b->dtype && a->rank == b->rank && a->dtype != DTYPE_OTHER &&
           memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}

/* One line (or JSON object) a tensor. Returns whether it is as allowed. */
static bool diff_pair(const Tensor *a, const Tensor *b, const DiffOptions *o, FILE *out) {
    const char *problem = a == NULL           ? "only in B"
                          : b == NULL         ? "only in A"
                          : !same_shape(a, b) ? "other shape or dtype"
                                              : NULL;
    const char *name = a != NULL ? a->name : b->name;
    Worst worst = {0};
    if (problem == NULL) {
        worst = diff_tensor(a, b, o);
    }
    if (o->json) {
        diff_json(out, a, name, problem, &worst);
    } else {
        diff_text(out, a, b, name, problem, &worst);
    }
    return problem == NULL && worst.beyond == 0;
}

void diff_run(const DiffOptions *o, FILE *out) {
    TensorStore a, b;
    Arena *arena = arena_new();
    tensors_open(&a, arena, o->a);
    tensors_open(&b, arena, o->b);
    size_t i = 0, j = 0, bad = 0, total = 0;
    if (o->json) {
        fputs("{\"tensors\": [", out);
    }
    while (i < a.count || j < b.count) {
        int order = i == a.count   ? 1
                    : j == b.count ? -1
                                   : strcmp(a.tensors[i].name, b.tensors[j].name);
        const Tensor *left = order <= 0 ? &a.tensors[i++] : NULL,
                     *right = order >= 0 ? &b.tensors[j++] : NULL;
        if (o->json && total > 0) {
            fputc(',', out);
        }
        bad += diff_pair(left, right, o, out) ? 0 : 1;
        total++;
    }
    if (o->json) {
        fprintf(out, "],\n \"equal\": %s}\n", bad == 0 ? "true" : "false");
    } else {
        fprintf(out, "%zu of %zu tensors as allowed\n", total - bad, total);
    }
    if (bad != 0) {
        fail(STATUS_CHECK, "%zu of %zu tensors differ by more than allowed", bad, total);
    }
    arena_free(arena);
}

/* dump.c: one forward (and backward) pass with every wanted hook point written to safetensors; and
 * the comparison of two such files. */
#include "dump.h"
#include "model_load.h"

#include "checkpoint.h"

#include <math.h>
#include <string.h>

/* ---- collecting ---- */

typedef struct Kept {
    char *name;
    void *data;
    Dtype dtype;
    int rank;
    size_t shape[3];
    struct Kept *next;
} Kept;

typedef struct Collector {
    char **globs;
    size_t n_globs;
    bool vision;
    Arena *arena;
    Kept *first, *last;
} Collector;

static Collector collector_open(Arena *arena, const char *hooks) {
    Collector c = {.arena = arena};
    int depth = 0;
    size_t from = 0, length = strlen(hooks);
    c.globs = arena_alloc(arena, length + 1, sizeof *c.globs);
    for (size_t i = 0; i <= length; i++) {
        depth += hooks[i] == '{' ? 1 : hooks[i] == '}' ? -1 : 0;
        if (i == length || (hooks[i] == ',' && depth <= 0)) {
            if (i > from) {
                c.globs[c.n_globs++] = arena_copy(arena, hooks + from, i - from);
            }
            from = i + 1;
        }
    }
    return c;
}

static bool collector_matches(const Collector *c, const char *name) {
    for (size_t i = 0; i < c->n_globs; i++) {
        if (glob_match(c->globs[i], name)) {
            return true;
        }
    }
    return false;
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

static void collector_keep(Collector *c, const char *name, Dtype dtype, int rank,
                           const size_t *shape, const void *data) {
    size_t count = 1;
    Kept *kept = arena_alloc(c->arena, 1, sizeof *kept);
    for (int i = 0; i < rank; i++) {
        count *= shape[i];
    }
    kept->name = arena_copy(c->arena, name, strlen(name));
    kept->data = arena_alloc(c->arena, count + 1, dtype_size(dtype));
    kept->dtype = dtype;
    kept->rank = rank;
    memcpy(kept->shape, shape, (size_t)rank * sizeof *shape);
    memcpy(kept->data, data, count * dtype_size(dtype));
    if (dtype == DTYPE_F32) {
        float *values = kept->data;
        for (size_t i = 0; i < count; i++) { /* files hold the one quiet NaN */
            values[i] = isnan(values[i]) ? NAN : values[i];
        }
    }
    *(c->last != NULL ? &c->last->next : &c->first) = kept;
    c->last = kept;
}

static void collector_call(void *user, const HookPoint *point, float *data) {
    char name[HOOK_NAME_MAX];
    hook_name(name, point->kind, point->layer, point->vision, point->gradient);
    collector_keep(user, name, DTYPE_F32, point->rank, point->shape, data);
}

static void collector_write(const Collector *c, const char *path, const char *hooks) {
    if (c->first == NULL) {
        fail(STATUS_INPUT, "--hooks %s: no hook point of this model has such a name", hooks);
    }
    TensorWriter *writer = tensor_writer_open(path);
    for (const Kept *k = c->first; k != NULL; k = k->next) {
        tensor_writer_declare(writer, k->name, k->dtype, k->rank, k->shape);
    }
    for (const Kept *k = c->first; k != NULL; k = k->next) {
        size_t bytes = dtype_size(k->dtype);
        for (int i = 0; i < k->rank; i++) {
            bytes *= k->shape[i];
        }
        tensor_writer_data(writer, k->data, bytes);
    }
    tensor_writer_commit(writer);
}

/* ---- images and the vision tower ---- */

static void dump_image(Collector *c, const char *path) {
    Arena *arena = arena_new();
    Image image = image_read(arena, path);
    if (collector_matches(c, "image.rgb")) {
        collector_keep(c, "image.rgb", DTYPE_U8, 3, (size_t[]){image.height, image.width, 3},
                       image.rgb);
    }
    arena_free(arena);
}

static void dump_vision(Collector *c, const Compute *compute, const DumpOptions *o) {
    Vlm vlm;
    Arena *arena = arena_new();
    vlm_open(&vlm, arena, compute, &(VlmPaths){.vision = o->prompt.vision});
    Hooks hooks = {collector_call, collector_wants, c};
    c->vision = true;
    vlm_image(&vlm, o->prompt.image, &hooks);
    arena_free(arena);
}

/* ---- the language model ---- */

typedef struct DumpRun {
    const Vlm *vlm;
    size_t count; /* rows of the one sequence */
    bool grad;
    LlmRun *run;
    float *logits, *dlogits;
    size_t *rows;
} DumpRun;

static void dump_layout(Arena *arena, void *user) {
    DumpRun *d = user;
    LlmPlan plan = {.max_rows = d->count,
                    .max_sequence = d->count,
                    .max_sequences = 1,
                    .max_logits = d->count,
                    .backward = d->grad,
                    .attention_hooks = true};
    size_t vocab = d->vlm->llm.config.d_vocab;
    d->run = llm_run_layout(&d->vlm->llm, d->vlm->compute, &plan, arena);
    d->logits = arena_alloc(arena, d->count * vocab, sizeof(float));
    d->dlogits = d->grad ? arena_alloc(arena, d->count * vocab, sizeof(float)) : NULL;
    d->rows = arena_alloc(arena, d->count, sizeof(size_t));
}

static void dump_backward(DumpRun *d, const DumpOptions *o, const Hooks *hooks) {
    Arena *arena = arena_new();
    size_t vocab = d->vlm->llm.config.d_vocab, count;
    const int32_t *ids = token_ids_parse(arena, o->grad, "--grad", &count);
    if (count > 2) {
        fail(STATUS_INPUT, "--grad %s: expected A or A,B", o->grad);
    }
    memset(d->dlogits, 0, d->count * vocab * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        if ((size_t)ids[i] >= vocab) {
            fail(STATUS_INPUT, "--grad %s: token id %d is outside the vocabulary of %zu", o->grad,
                 ids[i], vocab);
        }
        d->dlogits[(d->count - 1) * vocab + (size_t)ids[i]] += i == 0 ? 1.0f : -1.0f;
    }
    llm_backward_start(d->run);
    llm_logits_backward(d->run, d->rows, d->count, true, d->logits, d->dlogits, hooks);
    llm_backward(d->run, 0, hooks);
    arena_free(arena);
}

static void dump_passes(Collector *c, const Vlm *vlm, const Sequence *sequence, const float *images,
                        const DumpOptions *o) {
    DumpRun d = {.vlm = vlm, .count = sequence->rows, .grad = o->grad != NULL};
    Arena *block = arena_plan(dump_layout, &d);
    for (size_t i = 0; i < d.count; i++) {
        d.rows[i] = i;
    }
    LlmBatch batch = {1, (size_t[]){0, d.count}, sequence->ids, NULL, false};
    Hooks collect = {collector_call, collector_wants, c};
    ImageHook image = {&batch, sequence->n_image, vlm->llm.config.d_model, images, NULL, &collect};
    Hooks hooks = images != NULL ? image_hooks(&image) : collect;
    c->vision = false;
    llm_forward(d.run, &batch, 0, vlm->llm.config.n_layers, NULL, &hooks);
    if (d.grad || hooks_want(&hooks, HOOK_LOGITS, -1, false)) {
        llm_logits(d.run, d.rows, d.count, true, d.logits, &hooks);
    }
    if (d.grad) {
        dump_backward(&d, o, &hooks);
    }
    arena_free(block);
}

static void dump_llm(Collector *c, const Compute *compute, const DumpOptions *o) {
    Vlm vlm;
    Arena *arena = arena_new();
    float *images = NULL;
    prompt_open(&vlm, arena, compute, &o->prompt);
    Sequence sequence = prompt_sequence(&vlm, &o->prompt, arena);
    if (o->prompt.image != NULL) {
        Hooks hooks = {collector_call, collector_wants, c};
        c->vision = true;
        images = arena_alloc(arena, sequence.n_image * vlm.llm.config.d_model, sizeof(float));
        vlm_image(&vlm, o->prompt.image, &hooks);
        adapter_forward(compute, &vlm.adapter, vlm.features, images, sequence.n_image);
    }
    dump_passes(c, &vlm, &sequence, images, o);
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

typedef struct SaeRows {
    const Compute *compute;
    const Sae *sae;
    size_t rows;
    SaeRun *run;
    float *x, *pre, *acts, *recon;
} SaeRows;

static void sae_rows_layout(Arena *arena, void *user) {
    SaeRows *r = user;
    size_t in = r->rows * r->sae->d_in, latent = r->rows * r->sae->d_sae;
    r->run = sae_run_layout(r->compute, r->sae->d_in, r->sae->d_sae, r->rows, arena);
    r->x = arena_alloc(arena, in, sizeof(float));
    r->pre = arena_alloc(arena, latent, sizeof(float));
    r->acts = arena_alloc(arena, latent, sizeof(float));
    r->recon = arena_alloc(arena, in, sizeof(float));
}

static void dump_sae_rows(Collector *c, const Compute *compute, const Sae *sae, const Tensor *input,
                          const float *b_v) {
    SaeRows r = {.compute = compute, .sae = sae, .rows = input->count / sae->d_in};
    Arena *block = arena_plan(sae_rows_layout, &r);
    weight_widen(r.x, (Weight){input->data, input->dtype}, 0, input->count);
    for (size_t i = 0; b_v != NULL && i < input->count; i++) {
        r.x[i] -= b_v[i % sae->d_in];
    }
    sae_encode(sae, r.run, r.x, r.pre, r.acts, r.rows);
    sae_decode(sae, r.run, r.acts, r.recon, r.rows);
    size_t latent[2] = {r.rows, sae->d_sae}, in[2] = {r.rows, sae->d_in};
    collector_keep(c, "pre", DTYPE_F32, 2, latent, r.pre);
    collector_keep(c, "acts", DTYPE_F32, 2, latent, r.acts);
    collector_keep(c, "recon", DTYPE_F32, 2, in, r.recon);
    arena_free(block);
}

/* hook_z under TransformerLens' fold_value_biases: a pattern's rows sum to 1, so b_V reaches z
 * unchanged, and folding it into b_O leaves z - b_V. b_V [heads, d_head] as z has it, from the
 * model of --llm; NULL: the input is what the SAE saw already. */
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
    for (size_t head = 0; head < m->n_heads; head++) {
        Matrix v =
            llm_head_matrix(&llm, (size_t)sae->layer, HOOK_V, head / (m->n_heads / m->n_kv_heads));
        if (v.bias.data != NULL) {
            weight_widen(b_v + head * m->d_head, v.bias, 0, m->d_head);
        }
    }
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
    dump_sae_rows(c, compute, &sae, input, value_bias(&sae, o, console, arena));
    arena_free(arena);
}

void dump_run(const Compute *compute, const DumpOptions *o, const Console *console) {
    const char *hooks = o->hooks != NULL ? o->hooks : "";
    if (o->out == NULL || (o->sae == NULL && o->hooks == NULL)) {
        fail(STATUS_INPUT, "dump needs --out and%s --hooks", o->sae == NULL ? "" : " maybe");
    }
    Arena *arena = arena_new();
    Collector c = collector_open(arena, hooks);
    if (o->sae != NULL) {
        dump_sae(&c, compute, o, console);
    } else {
        if (o->prompt.image != NULL) {
            dump_image(&c, o->prompt.image);
        }
        if (o->prompt.llm != NULL) {
            dump_llm(&c, compute, o);
        } else if (o->prompt.image == NULL) {
            fail(STATUS_INPUT, "dump needs --llm, --image or --sae");
        } else if (o->prompt.vision != NULL) {
            dump_vision(&c, compute, o);
        }
    }
    collector_write(&c, o->out, hooks);
    arena_free(arena);
}

/* ---- diff ---- */

typedef struct Worst {
    size_t first, differing, beyond; /* first: index of the first element that differs */
    uint64_t ulp;
    double absolute, relative;
    size_t at; /* index of the largest distance in ulp */
} Worst;

/* Binary64 of an element; integers beyond 2^53 are compared as integers by ulp_between. */
static double element_value(const Tensor *t, size_t i) {
    const unsigned char *p = (const unsigned char *)t->data + i * dtype_size(t->dtype);
    if (t->dtype <= DTYPE_F16) {
        return (double)weight_at((Weight){t->data, t->dtype}, i);
    }
    if (t->dtype == DTYPE_F64) {
        double value;
        memcpy(&value, p, sizeof value);
        return value;
    }
    uint64_t bits = 0;
    size_t size = dtype_size(t->dtype);
    memcpy(&bits, p, size);
    bool is_signed = t->dtype == DTYPE_I64 || t->dtype == DTYPE_I32 || t->dtype == DTYPE_I16 ||
                     t->dtype == DTYPE_I8;
    if (is_signed && size < 8 && (bits >> (8 * size - 1)) != 0) {
        bits |= ~(uint64_t)0 << (8 * size);
    }
    return is_signed ? (double)(int64_t)bits : (double)bits;
}

/* Numbers between two values on the format's own number line (binary32 for F32, BF16 and F16). */
static uint64_t ulp_between(double a, double b, Dtype dtype) {
    if (dtype > DTYPE_F64) {
        double d = fabs(a - b);
        return d >= 18446744073709551615.0 ? UINT64_MAX : (uint64_t)d;
    }
    int64_t place[2];
    double values[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (dtype == DTYPE_F64) {
            int64_t bits;
            memcpy(&bits, &values[i], sizeof bits);
            place[i] = bits < 0 ? -(bits & INT64_MAX) : bits;
        } else {
            int32_t bits;
            float value = (float)values[i];
            memcpy(&bits, &value, sizeof bits);
            place[i] = bits < 0 ? -(int64_t)(bits & INT32_MAX) : bits;
        }
    }
    return place[0] > place[1] ? (uint64_t)place[0] - (uint64_t)place[1]
                               : (uint64_t)place[1] - (uint64_t)place[0];
}

static Worst diff_tensor(const Tensor *a, const Tensor *b, const DiffOptions *o) {
    Worst worst = {.first = a->count};
    for (size_t i = 0; i < a->count; i++) {
        double x = element_value(a, i), y = element_value(b, i);
        if (x == y || (isnan(x) && isnan(y))) {
            continue;
        }
        uint64_t ulp = isnan(x) || isnan(y) ? UINT64_MAX : ulp_between(x, y, a->dtype);
        double absolute = isnan(x) || isnan(y) ? INFINITY : fabs(x - y);
        double relative = y != 0.0 ? absolute / fabs(y) : INFINITY;
        worst.first = worst.differing++ == 0 ? i : worst.first;
        if (ulp > worst.ulp) {
            worst.ulp = ulp;
            worst.at = i;
        }
        worst.absolute = absolute > worst.absolute ? absolute : worst.absolute;
        worst.relative = relative > worst.relative ? relative : worst.relative;
        worst.beyond += ulp <= o->ulp || absolute <= o->atol + o->rtol * fabs(y) ? 0 : 1;
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

static bool same_shape(const Tensor *a, const Tensor *b) {
    return a->dtype == b->dtype && a->rank == b->rank && a->dtype != DTYPE_OTHER &&
           memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}

/* One line (or JSON object) a tensor. Returns whether it is as allowed. */
static bool diff_report(const Tensor *a, const Tensor *b, const DiffOptions *o, FILE *out,
                        bool first_line) {
    const char *problem = a == NULL           ? "only in B"
                          : b == NULL         ? "only in A"
                          : !same_shape(a, b) ? "other shape or dtype"
                                              : NULL;
    const char *name = a != NULL ? a->name : b->name;
    Worst w = {0};
    if (problem == NULL) {
        w = diff_tensor(a, b, o);
    }
    if (o->json) {
        fputs(first_line ? "\n  {\"name\": " : ",\n  {\"name\": ", out);
        json_write_string(out, name, strlen(name));
        if (problem != NULL) {
            fprintf(out, ", \"problem\": \"%s\"}", problem);
            return false;
        }
        fprintf(out,
                ", \"elements\": %zu, \"differing\": %zu, \"beyond\": %zu, \"ulp\": %llu, "
                "\"absolute\": ",
                a->count, w.differing, w.beyond, (unsigned long long)w.ulp);
        json_write_double(out, w.absolute);
        fputs(", \"relative\": ", out);
        json_write_double(out, w.relative);
        fputs(", \"first\": ", out);
        w.differing > 0 ? print_index(out, a, w.first) : (void)fputs("null", out);
        fputs(", \"worst\": ", out);
        w.differing > 0 ? print_index(out, a, w.at) : (void)fputs("null", out);
        fputc('}', out);
        return w.beyond == 0;
    }
    if (problem != NULL) {
        fprintf(out, "%s: %s\n", name, problem);
        return false;
    }
    if (w.differing == 0) {
        fprintf(out, "%s: equal\n", name);
        return true;
    }
    fprintf(out, "%s: %zu of %zu differ, %zu beyond what is allowed; first ", name, w.differing,
            a->count, w.beyond);
    print_index(out, a, w.first);
    fprintf(out, " %.9g %.9g; worst ", element_value(a, w.first), element_value(b, w.first));
    print_index(out, a, w.at);
    fprintf(out, " %.9g %.9g: ", element_value(a, w.at), element_value(b, w.at));
    if (w.ulp == UINT64_MAX) {
        fprintf(out, "one of them is no number\n");
    } else {
        fprintf(out, "%llu ulp; absolute %.3g, relative %.3g\n", (unsigned long long)w.ulp,
                w.absolute, w.relative);
    }
    return w.beyond == 0;
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
        bad += diff_report(left, right, o, out, total++ == 0) ? 0 : 1;
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

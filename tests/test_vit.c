/* Golden: every hook point of the vision tower against Hugging Face. Behaviour: configurations. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint.h"
#include "model_load.h"

static const char odd[] = "tests/golden/models/clip_odd";
static const char odd_golden[] = "tests/golden/models/clip_odd.safetensors";

typedef struct Fixture {
    Arena *arena;
    Compute compute;
    Vit vit;
    Arena *memory;
    VitRun *run;
} Fixture;

static void fixture_layout(Arena *arena, void *user) {
    Fixture *f = user;
    f->run = vit_run_layout(&f->vit, &f->compute, arena);
}

static void start(Fixture *f, const char *directory, int threads) {
    *f = (Fixture){.arena = arena_new()};
    compute_open(&f->compute, f->arena, threads);
    vit_open(&f->vit, f->arena, directory);
    f->memory = arena_plan(fixture_layout, f);
    cr_assert_not_null(f->run);
}

static void stop(Fixture *f) {
    arena_free(f->memory);
    arena_free(f->arena);
}

static const float *values(const TensorStore *store, const char *name, size_t *count) {
    const Tensor *t = tensors_find(store, name);
    cr_assert_not_null(t, "%s", name);
    cr_assert_eq(t->dtype, DTYPE_F32);
    float *copy = malloc(t->count * sizeof *copy);
    memcpy(copy, t->data, t->count * sizeof *copy);
    *count = t->count;
    return copy;
}

typedef struct Comparison {
    const TensorStore *golden;
    size_t compared;
    double worst;
    char worst_name[HOOK_NAME_MAX];
    HookKind replace; /* HOOK_KINDS: none */
} Comparison;

static bool wants_all(void *user, HookKind kind, int layer, bool gradient) {
    (void)user;
    (void)kind;
    (void)layer;
    return !gradient;
}

static void compare(void *user, const HookPoint *point, float *data) {
    Comparison *c = user;
    char name[HOOK_NAME_MAX];
    hook_name(name, point->kind, point->layer, point->vision, point->gradient);
    if (tensors_find(c->golden, name) == NULL) {
        return; /* that every golden tensor is met is checked at the end */
    }
    size_t count, mine = 1;
    const Tensor *t = tensors_find(c->golden, name);
    cr_assert_eq(t->rank, point->rank, "%s", name);
    for (int i = 0; i < point->rank; i++) {
        cr_assert_eq(t->shape[i], point->shape[i], "%s", name);
        mine *= point->shape[i];
    }
    const float *want = values(c->golden, name, &count);
    cr_assert_eq(mine, count);
    double largest = 0, far = 0;
    for (size_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs((double)want[i]));
        far = fmax(far, fabs((double)want[i] - (double)data[i]));
    }
    if (far / largest > c->worst) {
        c->worst = far / largest;
        strcpy(c->worst_name, name);
    }
    c->compared++;
    free((void *)(size_t)want);
}

static void against_golden(const char *directory, const char *golden, int threads) {
    Fixture f;
    start(&f, directory, threads);
    TensorStore store;
    tensors_open(&store, f.arena, golden);
    size_t count;
    const float *pixels = values(&store, "vision.pixel_values", &count);
    Comparison c = {.golden = &store};
    Hooks hooks = {compare, wants_all, &c};
    const VitConfig *g = &f.vit.config;
    float *features = malloc(g->n_patches * g->d_model * sizeof *features);
    vit_forward(f.run, pixels, features, &hooks);
    cr_assert_eq(c.compared, store.count);
    /* The bar of the project: float32 noise of this graph is at most 4e-6 of the largest value. */
    cr_assert(c.worst < 2e-5, "%s: %g", c.worst_name, c.worst);

    char last[HOOK_NAME_MAX];
    hook_name(last, HOOK_RESID_POST, (int)g->n_layers - 1, true, false);
    const float *want = values(&store, last, &count);
    for (size_t i = 0; i < g->n_patches * g->d_model; i++) {
        cr_assert_float_eq(features[i], want[g->d_model + i], 1e-3f);
    }
    free((void *)(size_t)want);

    /* Without hooks, and without reading `result`, not a bit may change. */
    float *again = malloc(g->n_patches * g->d_model * sizeof *again);
    vit_forward(f.run, pixels, again, NULL);
    cr_assert_arr_eq(again, features, g->n_patches * g->d_model * sizeof *again);
    free(again);
    free(features);
    free((void *)(size_t)pixels);
    stop(&f);
}

Test(vit, every_hook_point_equals_hugging_face) {
    against_golden(odd, odd_golden, 1);
    against_golden(odd, odd_golden, 2);
}

Test(vit, toy_tower_equals_hugging_face) {
    against_golden("weights/clip", "tests/golden/models/toy_clip.safetensors", 2);
}

/* ---- replacing: what follows must use what the hook left ---- */

typedef struct Replacement {
    HookKind kind;
    float factor, out[26 * 20];
    bool keep;
} Replacement;

static bool wants_replacement(void *user, HookKind kind, int layer, bool gradient) {
    const Replacement *r = user;
    return !gradient && ((kind == r->kind && layer == 2) || (kind == HOOK_ATTN_OUT && layer == 2));
}

static void replace(void *user, const HookPoint *point, float *data) {
    Replacement *r = user;
    size_t count = point->shape[0] * point->shape[1] * (point->rank == 3 ? point->shape[2] : 1);
    if (point->kind == r->kind) {
        for (size_t i = 0; i < count; i++) {
            data[i] *= r->factor;
        }
    }
    if (point->kind == HOOK_ATTN_OUT) {
        memcpy(r->out, data, sizeof r->out);
    }
}

Test(vit, replaced_result_and_z_reach_attn_out) {
    Fixture f;
    start(&f, odd, 1);
    TensorStore store;
    tensors_open(&store, f.arena, odd_golden);
    size_t count;
    const float *pixels = values(&store, "vision.pixel_values", &count);
    static Replacement plain, z, result;
    plain = (Replacement){.kind = HOOK_Z, .factor = 1};
    z = (Replacement){.kind = HOOK_Z, .factor = 2};
    result = (Replacement){.kind = HOOK_RESULT, .factor = 2};
    Replacement *each[] = {&plain, &z, &result};
    for (size_t i = 0; i < 3; i++) {
        Hooks hooks = {replace, wants_replacement, each[i]};
        vit_forward(f.run, pixels, NULL, &hooks);
    }
    double moved = 0;
    for (size_t i = 0; i < 26 * 20; i++) {
        /* Doubling z and doubling every head's result are the same, but for rounding. */
        cr_assert_float_eq(z.out[i], result.out[i], 1e-4f);
        moved = fmax(moved, fabs((double)z.out[i] - (double)plain.out[i]));
    }
    cr_assert(moved > 0.1);
    free((void *)(size_t)pixels);
    stop(&f);
}

/* ---- configurations ---- */

static Error try_open(const char *directory) {
    Error error;
    Arena *arena = arena_new();
    ATTEMPT(&error, vit_open(&(Vit){0}, arena, directory));
    arena_free(arena);
    return error;
}

static void write_text(const char *directory, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
}

/* The vision tensors of clip_odd without their prefix, `skip` left out. */
static void write_weights(const char *directory, const char *skip) {
    Arena *arena = arena_new();
    TensorStore store;
    tensors_open(&store, arena, odd);
    TensorWriter *writer = tensor_writer_open(path_join(arena, directory, "model.safetensors"));
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < store.count; i++) {
            const Tensor *t = &store.tensors[i];
            if (strncmp(t->name, "vision_model.", 13) != 0 ||
                (skip != NULL && strcmp(t->name + 13, skip) == 0)) {
                continue;
            }
            if (pass == 0) {
                tensor_writer_declare(writer, t->name + 13, t->dtype, t->rank, t->shape);
            } else {
                tensor_writer_data(writer, t->data, dtype_size(t->dtype), t->count);
            }
        }
    }
    tensor_writer_commit(writer);
    arena_free(arena);
}

static void remove_directory(const char *directory) {
    static const char *const names[] = {"config.json", "model.safetensors"};
    char path[256];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
}

#define ODD_SIZES                                                                                  \
    "\"hidden_size\":20,\"intermediate_size\":33,\"num_hidden_layers\":3,"                         \
    "\"num_attention_heads\":2,\"image_size\":30,\"patch_size\":6,\"layer_norm_eps\":0.004"

Test(vit, flat_config_and_no_prefix) {
    char directory[] = "/tmp/refsae_vit_XXXXXX";
    cr_assert_not_null(mkdtemp(directory));
    write_text(directory, "config.json", "{\"model_type\":\"clip_vision_model\"," ODD_SIZES "}");
    write_weights(directory, NULL);
    against_golden(directory, odd_golden, 1);
    /* vision_config_dict wins over vision_config. */
    write_text(directory, "config.json",
               "{\"model_type\":\"clip\",\"vision_config\":{\"hidden_size\":24},"
               "\"vision_config_dict\":{" ODD_SIZES "}}");
    against_golden(directory, odd_golden, 1);
    remove_directory(directory);
}

Test(vit, refusals_name_what_is_wrong) {
    static const struct {
        const char *config, *says, *skip;
    } cases[] = {
        {"{\"model_type\":\"siglip_vision_model\"}", "siglip_vision_model", NULL},
        {"[]", "object", NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"hidden_act\":\"mish\"}", "mish",
         NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"num_channels\":4}", "num_channels",
         NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"num_attention_heads\":3}",
         "num_attention_heads", NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"num_hidden_layers\":900000000}",
         "num_hidden_layers", NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"num_hidden_layers\":4}",
         "encoder.layers.3", NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"image_size\":[30,30]}",
         "image_size", NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"patch_size\":0}", "patch_size",
         NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"image_size\":36}",
         "position_embedding", NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES ",\"hidden_size\":1e300}",
         "hidden_size", NULL},
        {"{\"model_type\":\"clip_vision_model\"," ODD_SIZES "}", "pre_layrnorm.bias",
         "pre_layrnorm.bias"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char directory[] = "/tmp/refsae_vit_XXXXXX";
        cr_assert_not_null(mkdtemp(directory));
        write_text(directory, "config.json", cases[i].config);
        write_weights(directory, cases[i].skip);
        Error error = try_open(directory);
        cr_assert_eq(error.status, STATUS_INPUT, "%s", cases[i].config);
        cr_assert_not_null(strstr(error.text, cases[i].says), "%s: %s", cases[i].config,
                           error.text);
        cr_assert_not_null(strstr(error.text, directory), "%s", error.text);
        remove_directory(directory);
    }
    cr_assert(try_open("/tmp/refsae_no_such_directory").status != STATUS_OK);
}

Test(vit, pixels_that_are_not_finite_are_an_error) {
    Fixture f;
    start(&f, odd, 1);
    float *pixels = calloc(3 * 30 * 30, sizeof *pixels);
    pixels[100] = NAN;
    Error error;
    ATTEMPT(&error, vit_forward(f.run, pixels, NULL, NULL));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "not finite"), "%s", error.text);
    free(pixels);
    stop(&f);
}

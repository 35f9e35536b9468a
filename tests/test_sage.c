/* SAGE where the answer is known: SAEs of the stream or of a node that reconstruct exactly or span
 * half of it, rows and patches that must be exact, folded against unfolded scaling, cross-sections
 * given back, and the sentence that each missing thing earns. Whole runs use the built program
 * (REFSAE, else ./refsae). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "checkpoint.h"
#include "sage.h"
#include "scratch.h"

/* ---- runs ---- */

TestSuite(sage, .init = folder_new, .fini = folder_remove, .timeout = 600);

/* '@' in words stands for the folder. */
static void expand(char *out, const char *words) {
    for (; *words != '\0'; words++) {
        out += *words == '@' ? sprintf(out, "%s", folder) : sprintf(out, "%c", *words);
    }
    *out = '\0';
}

/* Runs "refsae sage ..."; the exit code. Remarks and errors are in @/stderr. */
static int run_aloud(const char *words) {
    char options[4096], line[8192];
    const char *program = getenv("REFSAE");
    expand(options, words);
    snprintf(line, sizeof line, "%s sage %s >%s/stdout 2>%s/stderr",
             program != NULL ? program : "./refsae", options, folder, folder);
    int status = system(line);
    cr_assert(WIFEXITED(status), "%s", line);
    return WEXITSTATUS(status);
}

/* The same without remarks. */
static int run(const char *format, ...) {
    char words[2048] = "--quiet ";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(words + strlen(words), sizeof words - strlen(words), format, arguments);
    va_end(arguments);
    return run_aloud(words);
}

static char *slurp(const char *name) {
    char path[256];
    Arena *arena = arena_new();
    expand(path, name);
    FileMap map = file_map(arena, path);
    char *text = calloc(1, map.size + 1);
    memcpy(text, map.data, map.size);
    arena_free(arena);
    return text;
}

static void assert_done(int code) {
    char *text = slurp("@/stderr");
    cr_assert_eq(code, 0, "%s", text);
    free(text);
}

/* Exit 2 and one line that holds the words. */
static void assert_refused(int code, const char *words) {
    char *text = slurp("@/stderr");
    cr_assert_eq(code, 2, "%s", text);
    cr_assert_eq(strncmp(text, "refsae: ", 8), 0, "%s", text);
    cr_assert_eq(strchr(text, '\n'), text + strlen(text) - 1, "one line: %s", text);
    cr_assert_not_null(strstr(text, words), "'%s' is not in: %s", words, text);
    free(text);
}

static void put(const char *name, const char *text) {
    char path[256];
    expand(path, name);
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file, "%s", path);
    fputs(text, file);
    cr_assert_eq(fclose(file), 0);
}

static const Json *read_json(Arena *arena, const char *name) {
    char path[256];
    expand(path, name);
    return json_read_file(arena, path);
}

static double number(const Json *object, const char *key) {
    const Json *value = json_get(object, key);
    cr_assert(json_is(value, JSON_NUMBER), "%s", key);
    return json_double(value);
}

static void assert_null(const Json *object, const char *key) {
    cr_assert(json_is(json_get(object, key), JSON_NULL), "%s", key);
}

/* X is x exactly, and so is its interval. */
static void assert_exactly(const Json *object, const char *key, double x) {
    char ci[32];
    snprintf(ci, sizeof ci, "%s_ci", key);
    const Json *interval = json_get(object, ci);
    cr_assert_eq(number(object, key), x, "%s", key);
    cr_assert(json_is(interval, JSON_ARRAY), "%s", ci);
    cr_assert_eq(json_double(interval->child), x, "%s", ci);
    cr_assert_eq(json_double(interval->child->next), x, "%s", ci);
}

/* Every member, its place and value. */
static void assert_same(const Json *a, const Json *b, const char *what) {
    cr_assert_eq(a->kind, b->kind, "%s", what);
    if (json_is(a, JSON_NUMBER) || json_is(a, JSON_STRING)) {
        cr_assert_str_eq(a->text, b->text, "%s", what);
    }
    if (json_is(a, JSON_OBJECT) || json_is(a, JSON_ARRAY)) {
        cr_assert_eq(a->length, b->length, "%s", what);
        b = b->child;
        for (a = a->child; a != NULL; a = a->next, b = b->next) {
            if (a->key != NULL) {
                cr_assert_str_eq(a->key, b->key, "%s", what);
            }
            assert_same(a, b, a->key != NULL ? a->key : what);
        }
    }
}

static void assert_near(double a, double b, double tolerance, const char *what) {
    cr_assert(fabs(a - b) <= tolerance * fmax(fmax(fabs(a), fabs(b)), 0.01), "%s: %.12g, %.12g",
              what, a, b);
}

/* ---- SAEs made here ---- */

/* W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in] or NULL: a SAELens directory @/NAME/HOOK.
 */
static void write_sae(const char *name, const char *hook, const char *settings, size_t d_in,
                      size_t d_sae, const float *enc, const float *dec, const float *b_enc,
                      const float *b_dec) {
    char directory[256], path[512], cfg[1024];
    snprintf(path, sizeof path, "@/%s/%s", name, hook);
    expand(directory, path);
    path_make_directory(directory);
    snprintf(cfg, sizeof cfg,
             "{\"d_in\": %zu, \"d_sae\": %zu, \"apply_b_dec_to_input\": true, "
             "\"reshape_activations\": \"none\", %s, "
             "\"metadata\": {\"sae_lens_version\": \"6.54.12\", \"hook_name\": \"%s\", "
             "\"prepend_bos\": true, "
             "\"model_from_pretrained_kwargs\": {\"center_writing_weights\": false}}}",
             d_in, d_sae, settings, hook);
    snprintf(path, sizeof path, "@/%s/%s/cfg.json", name, hook);
    put(path, cfg);
    snprintf(path, sizeof path, "%s/sae_weights.safetensors", directory);
    float *zeros = calloc(d_in + d_sae, sizeof *zeros);
    const struct {
        const char *name;
        const float *data;
        int rank;
        size_t shape[2];
    } parts[4] = {{"W_enc", enc, 2, {d_in, d_sae}},
                  {"W_dec", dec, 2, {d_sae, d_in}},
                  {"b_enc", b_enc != NULL ? b_enc : zeros, 1, {d_sae}},
                  {"b_dec", b_dec != NULL ? b_dec : zeros, 1, {d_in}}};
    TensorWriter *w = tensor_writer_open(path);
    for (size_t i = 0; i < 4; i++) {
        tensor_writer_declare(w, parts[i].name, DTYPE_F32, parts[i].rank, parts[i].shape);
    }
    for (size_t i = 0; i < 4; i++) {
        size_t count = parts[i].shape[0] * (parts[i].rank > 1 ? parts[i].shape[1] : 1);
        tensor_writer_data(w, parts[i].data, sizeof(float), count);
    }
    tensor_writer_commit(w);
    free(zeros);
}

/* Features 2 j and 2 j + 1 along plus and minus row j of an orthogonal matrix (the reflection that
 * takes no axis to itself), j < pairs; their stored lengths by `length`, coefficients against it.
 * With all d pairs and without biases ReLU gives back every row exactly. */
static void write_pairs(const char *name, const char *hook, const char *settings, size_t d,
                        size_t pairs, bool reflect, float (*length)(size_t)) {
    size_t d_sae = 2 * pairs;
    float *enc = calloc(d * d_sae, sizeof *enc), *dec = calloc(d * d_sae, sizeof *dec);
    for (size_t j = 0; j < d_sae; j++) {
        for (size_t i = 0; i < d; i++) {
            double v = (i == j / 2 ? 1.0 : 0.0) -
                       (reflect ? 2.0 * (double)(i + 1) * (double)(j / 2 + 1) : 0.0) /
                           ((double)(d * (d + 1) * (2 * d + 1)) / 6.0);
            float value = (float)(j % 2 == 0 ? v : -v);
            dec[j * d + i] = value * length(j);
            enc[i * d_sae + j] = value / length(j);
        }
    }
    write_sae(name, hook, settings, d, d_sae, enc, dec, NULL, NULL);
    free(enc);
    free(dec);
}

static float unit(size_t feature) {
    (void)feature;
    return 1.0f;
}

static float uneven(size_t feature) { /* powers of two: scaling is exact */
    return feature % 3 == 0 ? 4.0f : feature % 3 == 1 ? 1.0f : 0.5f;
}

#define STANDARD "\"architecture\": \"standard\", \"normalize_activations\": "

static void write_pairs_everywhere(const char *name, const char *const *hooks, size_t n,
                                   const char *settings, size_t d, size_t pairs) {
    for (size_t i = 0; i < n; i++) {
        write_pairs(name, hooks[i], settings, d, pairs, true, unit);
    }
}

static const char *const gpt2_hooks[] = {"blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre",
                                         "blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre",
                                         "blocks.3.hook_resid_post"};
static const char *const rotary_hooks[] = {"hook_embed", "blocks.0.hook_resid_post",
                                           "blocks.1.hook_resid_post", "blocks.2.hook_resid_post",
                                           "blocks.3.hook_resid_post"};
enum {
    HOOKS = 5
};

/* ---- projections with known answers ---- */

/* Every node's r2 in sage.json; counts those of layer 0 that read and those that write. */
static void assert_exact(const Json *json, size_t *reads0, size_t *writes) {
    for (const Json *attribute = json_get(json, "dictionaries")->child; attribute != NULL;
         attribute = attribute->next) {
        for (const Json *node = attribute->child; node != NULL; node = node->next) {
            const Json *r2 = json_get(node, "r2");
            const char *name = json_get(node, "node")->text;
            /* x^ is x to 1e-7 of its length and the node's variance is not small beside that: 1e-6.
             * layer_norm's way back leaves out 1e-5 of its scale: squared, 1e-10. */
            assert_near(number(r2, "sae"), 1.0, 1e-6, name);
            if (json_get(r2, "weights") != NULL) {
                assert_near(number(r2, "weights"), 1.0, 1e-6, name);
                *reads0 += strncmp(name, "blocks.0.", 9) == 0;
            } else {
                assert_near(number(r2, "span"), 1.0, 1e-6, name);
                assert_near(number(r2, "encoder"), 1.0, 1e-6, name);
                assert_near(number(json_get(node, "r2_stream"), "sae"), 1.0, 1e-6, name);
                ++*writes;
            }
        }
    }
    for (const Json *attribute = json_get(json, "tests")->child; attribute != NULL;
         attribute = attribute->next) {
        const Json *sae = json_get(attribute, "sae");
        assert_near(number(sae, "sufficiency"), 1.0, 1e-4, "a^ = a");
        if (number(attribute, "resolution") >= 0.1) {
            assert_near(number(sae, "recovered"), 1.0, 1e-3, "a^ = a");
            assert_near(number(sae, "necessity"), 1.0, 1e-3, "a - a^ = 0");
        }
    }
}

static void exact(const char *model, const char *task, const char *const *hooks, const char *norm,
                  const char *options, size_t d) {
    size_t reads0 = 0, writes = 0;
    char settings[128], name[32];
    snprintf(settings, sizeof settings, STANDARD "\"%s\"", norm);
    snprintf(name, sizeof name, "exact-%s", norm);
    write_pairs_everywhere(name, hooks, HOOKS, settings, d, d);
    assert_done(run("--llm weights/%s --saes @/%s --task %s --out @/out --train 12 --test 4 "
                    "--share 0.8 --max-nodes 16 %s",
                    model, name, task, options));
    Arena *arena = arena_new();
    assert_exact(read_json(arena, "@/out/sage.json"), &reads0, &writes);
    cr_assert(reads0 > 0, "%s: layer 0 reads", model);
    cr_assert(writes > 0);
    arena_free(arena);
}

Test(sage, what_reconstructs_exactly_does_so_at_every_node) {
    exact("gpt2", "ioi", gpt2_hooks, "none", "--nodes q,k,v,z,attn_out,mlp_out", 64);
    exact("gpt2", "ioi", gpt2_hooks, "layer_norm", "--projection weights,encoder", 64);
    exact("gpt2", "ioi", gpt2_hooks, "constant_norm_rescale", "", 64);
    exact("gpt2", "ioi", gpt2_hooks, "expected_average_only_in",
          "--norm-factor 3.7 --projection weights,encoder", 64);
}

Test(sage, layer_0_reads_the_embedding_where_positions_are_rotary) {
    exact("gpt_neox", "agreement", rotary_hooks, "none", "--nodes q,k,v,z", 64);
    exact("gemma2", "induction", rotary_hooks, "layer_norm", "", 80);
}

/* SAEs of nodes' own points, which read all heads: exact in each head's part of a row. A
 * cross-section where one node has none is not tested by them. */
static void exact_native(const char *model, const char *task, size_t d, const char *const *hooks,
                         const size_t *widths, size_t n, const char *norm) {
    static const char *const streams[] = {"blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre",
                                          "blocks.2.hook_resid_post"};
    char settings[128], nodes[2048] = "";
    size_t natives = 0;
    snprintf(settings, sizeof settings, STANDARD "\"%s\"", norm);
    write_pairs_everywhere("native", streams, 3, STANDARD "\"none\"", d, d / 2);
    for (size_t i = 0; i < n; i++) {
        write_pairs("native", hooks[i], settings, widths[i], widths[i], true, unit);
        sprintf(nodes + strlen(nodes), "%s{\"node\": \"%s\", \"head\": %s, \"position\": \"END\"}",
                i == 0 ? "" : ", ", hooks[i], strstr(hooks[i], "_out") != NULL ? "null" : "1");
    }
    char file[8192];
    snprintf(file, sizeof file,
             "{\"every\": {\"nodes\": [%s]}, \"some\": {\"nodes\": [%s, {\"node\": "
             "\"blocks.1.attn.hook_q\", \"head\": 0, \"position\": \"END\"}]}}",
             nodes, nodes);
    put("@/given.json", file);
    assert_done(run("--llm weights/%s --saes @/native --task %s --out @/out --train 16 --test 8 "
                    "--cross-sections @/given.json",
                    model, task));
    Arena *arena = arena_new();
    const Json *json = read_json(arena, "@/out/sage.json"), *tests = json_get(json, "tests"),
               *every = json_get(json_get(tests, "every"), "native");
    assert_near(number(every, "sufficiency"), 1.0, 1e-4, "a^ = a");
    assert_near(number(every, "recovered"), 1.0, 1e-3, "a^ = a");
    assert_near(number(every, "necessity"), 1.0, 1e-3, "a - a^ = 0");
    cr_assert(number(json_get(json_get(tests, "every"), "sae"), "sufficiency") < 0.999, "half");
    cr_assert_null(json_get(json_get(tests, "some"), "native"));
    for (const Json *c = json_get(json, "dictionaries")->child; c != NULL; c = c->next) {
        for (const Json *node = c->child; node != NULL; node = node->next) {
            const char *name = json_get(node, "node")->text;
            if (strcmp(name, "blocks.1.attn.hook_q") == 0) {
                cr_assert_null(json_get(json_get(node, "r2"), "native"));
                continue;
            }
            assert_near(number(json_get(node, "r2"), "native"), 1.0, 1e-6, name);
            if (json_get(node, "r2_stream") != NULL) {
                assert_near(number(json_get(node, "r2_stream"), "native"), 1.0, 1e-6, name);
            }
        }
    }
    for (const Json *i = json_get(json, "interpretations")->child; i != NULL; i = i->next) {
        natives += strcmp(json_get(i, "hook")->text, hooks[0]) == 0;
    }
    cr_assert(natives > 0, "%s has interpretations", hooks[0]);
    arena_free(arena);
}

Test(sage, saes_of_the_nodes_own_points) {
    static const char *const hooks[] = {"blocks.2.attn.hook_z", "blocks.2.hook_attn_out",
                                        "blocks.2.hook_mlp_out", "blocks.2.attn.hook_q",
                                        "blocks.2.attn.hook_k"};
    exact_native("gpt2", "ioi", 64, hooks, (size_t[]){64, 64, 64, 64, 64}, 5, "none");
    exact_native("gpt2", "ioi", 64, hooks, (size_t[]){64, 64, 64, 64, 64}, 3, "layer_norm");
    /* 4 heads of 24, 2 of keys and values */
    exact_native("gemma2", "induction", 80, hooks, (size_t[]){96, 80, 80, 96, 48}, 5, "none");
}

Test(sage, an_sae_of_another_width_than_its_point_is_refused) {
    write_pairs("narrow", "blocks.1.attn.hook_z", STANDARD "\"none\"", 16, 16, true, unit);
    write_pairs_everywhere("narrow", gpt2_hooks, HOOKS, STANDARD "\"none\"", 64, 64);
    assert_refused(run("--llm weights/gpt2 --saes @/narrow --task ioi --out @/out"),
                   "reads 16 dimensions, blocks.1.attn.hook_z of weights/gpt2 has 64");
}

/* Half of the directions: what is orthonormal and tied projects by its encoder as onto its span. */
Test(sage, tied_orthonormal_encoders_project_onto_their_span) {
    size_t nodes = 0, partial = 0;
    write_pairs_everywhere("half", gpt2_hooks, HOOKS, STANDARD "\"none\"", 64, 32);
    assert_done(run("--llm weights/gpt2 --saes @/half --task ioi --out @/out --train 24 --test 12 "
                    "--nodes z,attn_out,mlp_out"));
    Arena *arena = arena_new();
    const Json *json = json_get(read_json(arena, "@/out/sage.json"), "dictionaries");
    for (const Json *attribute = json->child; attribute != NULL; attribute = attribute->next) {
        for (const Json *node = attribute->child; node != NULL; node = node->next) {
            const Json *r2 = json_get(node, "r2");
            assert_near(number(r2, "encoder"), number(r2, "span"), 1e-5, "orthonormal to binary32");
            partial += number(r2, "span") < 0.9;
            nodes++;
        }
    }
    cr_assert(nodes > 5);
    cr_assert(partial > 0);
    arena_free(arena);
}

/* ---- scaling, folded into the weights or not ---- */

static void assert_same_file(const char *a, const char *b) {
    char *x = slurp(a), *y = slurp(b);
    cr_assert_str_eq(x, y, "%s, %s", a, b);
    free(x);
    free(y);
}

/* The toy SAEs as they are, and as expected_average_only_in with a factor of 4 that is not folded:
 * a power of two changes no bit of what comes out, so that every figure must be the same. */
Test(sage, a_factor_that_is_folded_changes_nothing) {
    for (size_t h = 0; h < HOOKS; h++) {
        char path[128];
        TensorStore store;
        Arena *arena = arena_new();
        float *data[4], scale[4] = {0.25f, 4.0f, 1.0f, 4.0f};
        static const char *const names[4] = {"W_enc", "W_dec", "b_enc", "b_dec"};
        snprintf(path, sizeof path, "weights/saes/gpt2/%s/sae_weights.safetensors", gpt2_hooks[h]);
        tensors_open(&store, arena, path);
        for (size_t i = 0; i < 4; i++) {
            const Tensor *tensor = tensors_find(&store, names[i]);
            data[i] = calloc(tensor->count, sizeof(float));
            memcpy(data[i], tensor->data, tensor->count * sizeof(float));
            for (size_t k = 0; k < tensor->count; k++) {
                data[i][k] *= scale[i];
            }
        }
        size_t d_sae = tensors_find(&store, "b_enc")->count;
        write_sae("unfolded", gpt2_hooks[h], STANDARD "\"expected_average_only_in\"", 64, d_sae,
                  data[0], data[1], data[2], data[3]);
        for (size_t i = 0; i < 4; i++) {
            free(data[i]);
        }
        arena_free(arena);
    }
    static const char common[] =
        "--llm weights/gpt2 --task ioi --train 16 --test 6 --nodes q,k,v,z,attn_out,mlp_out";
    for (int encoder = 0; encoder < 2; encoder++) {
        const char *projection = encoder != 0 ? "weights,encoder" : "auto";
        assert_done(
            run("%s --projection %s --saes weights/saes/gpt2 --out @/folded", common, projection));
        assert_done(run("%s --projection %s --saes @/unfolded --norm-factor 4 --out @/factor",
                        common, projection));
        assert_same_file("@/folded/sage.csv", "@/factor/sage.csv");
        assert_same_file("@/folded/sage.json", "@/factor/sage.json");
    }
}

/* TopK by decoder norm against the same SAE with unit rows: lengths are powers of two again. */
Test(sage, a_decoder_norm_that_is_folded_changes_nothing) {
    for (size_t h = 0; h < HOOKS; h++) {
        static const char topk[] =
            "\"architecture\": \"topk\", \"k\": 20, \"normalize_activations\": \"none\", "
            "\"rescale_acts_by_decoder_norm\": ";
        char settings[192];
        snprintf(settings, sizeof settings, "%sfalse", topk);
        write_pairs("plain", gpt2_hooks[h], settings, 64, 64, false, unit);
        snprintf(settings, sizeof settings, "%strue", topk);
        write_pairs("rescaled", gpt2_hooks[h], settings, 64, 64, false, uneven);
    }
    static const char common[] = "--llm weights/gpt2 --task ioi --train 16 --test 6 --nodes "
                                 "q,k,v,z --projection weights,encoder";
    assert_done(run("%s --saes @/plain --out @/a", common));
    assert_done(run("%s --saes @/rescaled --out @/b", common));
    assert_same_file("@/a/sage.json", "@/b/sage.json");
}

/* ---- what is exact ---- */

/* B stands after A, so that a counterfactual in B leaves A's position as it is. */
static const char own_task[] =
    "{\"name\": \"own\", \"attributes\": {\"A\": [\"Mary\", \"John\", \"Tom\"], \"B\": [\"Anna\", "
    "\"Paul\", \"Luke\"]}, "
    "\"templates\": {\"train\": [\"Then, {A} and {B} went to the store. {B} gave a ring to\"], "
    "\"test\": [\"Then, {A} and {B} went to the park. {B} gave a ring to\"]}, "
    "\"answer\": \"A\", \"wrong\": \"B\", \"positions\": {\"A\": \"A#1\", \"B1\": \"B#1\", \"B2\": "
    "\"B#2\", \"END\": \"end\"}}";

#define OWN "--llm weights/gpt2 --saes weights/saes/gpt2 --task @/task.json --out @/out "

/* At A's position the counterfactual in B has the clean activations: to patch them in changes no
 * bit of m. Nor does it where no feature is taken away, as at t = 0. And the model as it is has
 * sufficiency 1, necessity 0 and magnitude 0, exactly. */
Test(sage, clean_patches_and_rows_of_none_are_exact) {
    put("@/task.json", own_task);
    assert_done(run(OWN "--train 18 --test 9 --share 1 --max-nodes 100"));
    char *text = slurp("@/out/cross_sections.csv");
    size_t scores = 0, effects = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        char node[64], head[8], position[8], score[64], effect[64] = "";
        int chosen;
        if (sscanf(line, "B,%63[^,],%7[^,],%7[^,],%63[^,],%d,%63s", node, head, position, score,
                   &chosen, effect) < 5 ||
            strcmp(position, "A") != 0) {
            continue;
        }
        scores++;
        cr_assert_eq(strtod(score, NULL), 0.0, "%s", line);
        cr_assert_eq(chosen, 0);
        if (effect[0] != '\0') {
            cr_assert_eq(strtod(effect, NULL), 0.0, "%s", line);
            effects++;
        }
    }
    free(text);
    cr_assert_eq(scores, 64, "16 heads, 4 components: %zu", scores);
    cr_assert(effects > 10, "%zu", effects);
    Arena *arena = arena_new();
    const Json *json = read_json(arena, "@/out/sage.json");
    for (const Json *cross = json_get(json, "tests")->child; cross != NULL; cross = cross->next) {
        const Json *none = json_get(cross, "none"), *sae = json_get(cross, "sae");
        assert_exactly(none, "sufficiency", 1.0);
        assert_exactly(none, "recovered", 1.0);
        assert_exactly(none, "necessity", 0.0);
        assert_exactly(json_get(json_get(sae, "f1"), "0"), "sufficiency", 1.0);
        for (const Json *a = json_get(none, "control")->child; a != NULL; a = a->next) {
            const Json *other = json_get(json_get(sae, "control"), a->key);
            cr_assert_not_null(json_get(a, "1"));
            for (const Json *k = json_get(a, "1"); k != NULL; k = k->next) {
                cr_assert_eq(number(k, "magnitude"), 0.0);
                cr_assert_eq(number(k, "score"), number(a, "none"));
            }
            cr_assert_eq(number(other, "none"), number(a, "none"));
            assert_same(json_get(other, "supervised"), json_get(a, "supervised"), "mean's");
            other = json_get(json_get(json_get(cross, "mean"), "control"), a->key);
            assert_same(json_get(other, "supervised"), json_get(a, "supervised"), "mean's");
            cr_assert_null(json_get(other, "1"));
        }
    }
    for (const Json *cross = json_get(json, "cross_sections")->child; cross != NULL;
         cross = cross->next) {
        size_t nodes = 1;
        for (const Json *n = json_get(cross, "curve")->child; n != NULL; n = n->next, nodes *= 2) {
            cr_assert_eq(number(n, "nodes"), n->next != NULL ? (double)nodes : 256.0);
            if (n->next == NULL && !json_is(json_get(n, "share"), JSON_NULL)) {
                cr_assert_eq(number(n, "share"), 1.0);
            }
        }
    }
    arena_free(arena);
}

/* Each pair of values once: the attributes' one-hot columns are then orthogonal but for their
 * means. */
Test(sage, mean_and_mse_agree_on_balanced_prompts) {
    char path[128];
    put("@/task.json", own_task);
    assert_done(run(OWN "--train 120 --test 40"));
    char *text = slurp("@/out/prompts.jsonl"), *balanced = calloc(strlen(text) + 1, 1);
    bool seen[2][3][3] = {{{false}}};
    size_t kept = 0;
    Arena *arena = arena_new();
    for (char *line = text, *end; *line != '\0'; line = end + 1) {
        static const char *const values[2][3] = {{"Mary", "John", "Tom"}, {"Anna", "Paul", "Luke"}};
        size_t place[2] = {0, 0};
        end = strchr(line, '\n');
        *end = '\0';
        const Json *row = json_parse(arena, line, strlen(line), "prompts");
        for (size_t a = 0; a < 2; a++) {
            const char *value = json_get(json_get(row, "values"), a == 0 ? "A" : "B")->text;
            while (strcmp(values[a][place[a]], value) != 0) {
                place[a]++;
            }
        }
        bool *mark = &seen[strcmp(json_get(row, "split")->text, "test") == 0][place[0]][place[1]];
        if (!*mark) {
            *mark = true;
            strcat(strcat(balanced, line), "\n");
            kept++;
        }
    }
    cr_assert_eq(kept, 18, "nine pairs in each split");
    put("@/balanced.jsonl", balanced);
    free(text);
    free(balanced);
    assert_done(run(OWN "--prompts @/balanced.jsonl"));
    expand(path, "@/out/sage.json");
    const Json *json = read_json(arena, "@/out/sage.json");
    for (const Json *attribute = json_get(json, "dictionaries")->child; attribute != NULL;
         attribute = attribute->next) {
        cr_assert_not_null(attribute->child);
        for (const Json *node = attribute->child; node != NULL; node = node->next) {
            const Json *r2 = json_get(node, "r2");
            /* equal in binary64 to 1e-12; what is patched is rounded to binary32: 1e-6 */
            assert_near(number(r2, "mse"), number(r2, "mean"), 1e-6, "r2");
        }
    }
    for (const Json *attribute = json_get(json, "tests")->child; attribute != NULL;
         attribute = attribute->next) {
        const Json *mean = json_get(attribute, "mean"), *mse = json_get(attribute, "mse");
        assert_near(number(mse, "sufficiency"), number(mean, "sufficiency"), 1e-5, "sufficiency");
        if (number(attribute, "resolution") >= 0.1) {
            assert_near(number(mse, "necessity"), number(mean, "necessity"), 1e-5, "necessity");
        }
        for (const Json *a = json_get(mean, "control")->child; a != NULL; a = a->next) {
            const Json *edit = json_get(json_get(json_get(mse, "control"), a->key), "supervised");
            const Json *other = json_get(a, "supervised");
            cr_assert_eq(number(edit, "score"), number(other, "score"));
            assert_near(number(edit, "magnitude"), number(other, "magnitude"), 1e-6, "magnitude");
        }
    }
    arena_free(arena);
}

/* Twelve prompts: at some node the features of a test prompt cancel, IO's being Pos's turned round.
 * What is taken away has then no share in a sum that is rounding alone (it was 1e13). */
Test(sage, features_that_cancel_have_no_magnitude) {
    assert_done(run(
        "--llm weights/gemma2 --saes weights/saes/gemma2 --task ioi --train 12 --test 8 --nodes "
        "q,k,v,z,attn_out,mlp_out --max-nodes 24 --share 0.9 --out @/out"));
    Arena *arena = arena_new();
    const Json *tests = json_get(read_json(arena, "@/out/sage.json"), "tests");
    for (const Json *attribute = tests->child; attribute != NULL; attribute = attribute->next) {
        static const char *const methods[] = {"mean", "mse", "weighted"};
        for (size_t m = 0; m < 3; m++) {
            const Json *control = json_get(json_get(attribute, methods[m]), "control");
            for (const Json *a = control->child; a != NULL; a = a->next) {
                cr_assert(fabs(number(json_get(a, "supervised"), "magnitude")) < 100.0, "%s",
                          methods[m]);
            }
        }
    }
    arena_free(arena);
}

/* A predicate longer than any buffer, in a language of its own: whole, and valid JSON. */
Test(sage, predicates_of_any_length) {
    static const char *const shapes[2] = {"\xC3\xA4", "\xE4\xBA\x8C"};
    char form[2][1600], task[16384];
    for (int f = 0; f < 2; f++) {
        form[f][0] = '\0';
        for (int i = 0; i < 500; i++) {
            strcat(form[f], shapes[f]);
        }
    }
    snprintf(
        task, sizeof task,
        "{\"attributes\": {\"A\": [\"Mary\", \"John\", \"Tom\"], \"Form\": [\"%s\", \"%s\"]}, "
        "\"form\": \"Form\", \"templates\": {\"train\": [{\"%s\": \"Then {A} gave the ring to\", "
        "\"%s\": "
        "\"When {A} gave the ring to\"}], \"test\": [{\"%s\": \"Then {A} gave a ring to\", \"%s\": "
        "\"When {A} "
        "gave a ring to\"}]}, \"answer\": \"A\", \"wrong\": {\"of\": \"A\", \"map\": {\"Mary\": \" "
        "John\", \"John\": \" Tom\", \"Tom\": \" Mary\"}}, \"positions\": {\"A\": \"A#1\", "
        "\"END\": "
        "\"end\"}}",
        form[0], form[1], form[0], form[1], form[0], form[1]);
    put("@/task.json", task);
    assert_done(run(OWN "--train 12 --test 12 --nodes z --projection encoder,weights,span"));
    Arena *arena = arena_new();
    size_t longest = 0;
    for (const Json *i = json_get(read_json(arena, "@/out/sage.json"), "interpretations")->child;
         i != NULL; i = i->next) {
        const Json *predicate = json_get(i, "predicate");
        longest = predicate->length > longest ? predicate->length : longest;
    }
    cr_assert(longest >= strlen("A=Tom & Form=") + 1000);
    arena_free(arena);
}

/* ---- given cross-sections ---- */

#define TOY "--llm weights/gpt2 --saes weights/saes/gpt2 --task ioi "

/* What a run found, given back in its own file or in all of sage.json: nothing is searched, and
 * every test says the same. */
Test(sage, a_cross_section_given_back_is_tested_the_same) {
    static const char *const files[] = {"cross_sections.json", "sage.json"};
    assert_done(run(TOY "--train 24 --test 12 --out @/out"));
    Arena *arena = arena_new();
    const Json *found = read_json(arena, "@/out/sage.json");
    for (size_t i = 0; i < 2; i++) {
        assert_done(
            run(TOY "--train 24 --test 12 --out @/again --cross-sections @/out/%s", files[i]));
        const Json *given = read_json(arena, "@/again/sage.json");
        static const char *const same[] = {"prompts",         "baseline",
                                           "dictionaries",    "tests",
                                           "interpretations", "interpretations_by_chance"};
        for (size_t k = 0; k < sizeof same / sizeof *same; k++) {
            assert_same(json_get(given, same[k]), json_get(found, same[k]), same[k]);
        }
        assert_same_file("@/again/cross_sections.json", "@/out/cross_sections.json");
        for (const Json *c = json_get(given, "cross_sections")->child; c != NULL; c = c->next) {
            assert_null(c, "share");
            assert_null(c, "spearman");
            cr_assert_eq(json_get(c, "others")->length, 0);
            cr_assert_eq(json_get(c, "curve")->length, 0);
            assert_null(json_get(c, "nodes")->child, "score");
            assert_null(json_get(c, "nodes")->child, "effect");
        }
    }
    arena_free(arena);
}

#define NODE(node, head, position)                                                                 \
    "{\"node\": \"" node "\", \"head\": " head ", \"position\": \"" position "\"}"
#define Z1 NODE("blocks.1.attn.hook_z", "3", "END")

/* A query of the last layer moves nothing but its own position: ablation cannot tell there. */
Test(sage, where_ablation_moves_nothing_necessity_is_null) {
    put("@/given.json", "{\"idle\": {\"nodes\": [" NODE("blocks.3.attn.hook_q", "3", "S1") "]}}");
    assert_done(run(TOY "--train 12 --test 6 --out @/out --cross-sections @/given.json"));
    Arena *arena = arena_new();
    const Json *json = read_json(arena, "@/out/sage.json"),
               *tests = json_get(json_get(json, "tests"), "idle");
    cr_assert_eq(number(tests, "resolution"), 0.0);
    cr_assert_eq(number(tests, "m_ablated"), number(json_get(json, "baseline"), "m_clean"));
    cr_assert_not_null(json_get(tests, "random"));
    for (const Json *method = json_get(tests, "none")->next; method != NULL;
         method = method->next) {
        static const char *const keys[] = {"recovered", "recovered_ci", "necessity",
                                           "necessity_ci"};
        assert_exactly(method, "sufficiency", 1.0);
        for (size_t k = 0; k < 4; k++) {
            assert_null(method, keys[k]);
        }
        const Json *f1 = json_get(method, "f1");
        for (const Json *t = f1 != NULL ? f1->child : NULL; t != NULL; t = t->next) {
            assert_exactly(t, "sufficiency", 1.0);
            assert_null(t, "necessity");
            assert_null(t, "necessity_ci");
        }
    }
    assert_exactly(json_get(tests, "none"), "recovered", 1.0);
    assert_exactly(json_get(tests, "none"), "necessity", 0.0);
    arena_free(arena);
}

/* With one cross-section all interpretations are its own: three ways to count them, at the tenths
 * and at those of --f1, each once. */
Test(sage, features_are_counted_alike_and_fewer_by_chance) {
    put("@/given.json",
        "{\"one\": {\"nodes\": [" Z1 ", " NODE("blocks.2.attn.hook_v", "0", "IO") "]}}");
    assert_done(run(TOY "--train 24 --test 60 --f1 0.85,0.5 --out @/out --cross-sections "
                        "@/given.json"));
    static const char *const keys[] = {"0",   "0.1", "0.2", "0.3",  "0.4", "0.5",
                                       "0.6", "0.7", "0.8", "0.85", "0.9", "1"};
    Arena *arena = arena_new();
    const Json *json = read_json(arena, "@/out/sage.json"),
               *f1 = json_get(json_get(json_get(json_get(json, "tests"), "one"), "sae"), "f1"),
               *chance = json_get(json, "interpretations_by_chance");
    cr_assert_eq(f1->length, sizeof keys / sizeof *keys);
    cr_assert_eq(chance->length, f1->length);
    const Json *t = f1->child, *c = chance->child;
    for (size_t k = 0; t != NULL; k++, t = t->next, c = c->next) {
        double features = 0.0, at = strtod(keys[k], NULL);
        for (const Json *i = json_get(json, "interpretations")->child; i != NULL; i = i->next) {
            features += number(i, "f1") >= at ? 1.0 : 0.0;
        }
        cr_assert_str_eq(t->key, keys[k]);
        cr_assert_str_eq(c->key, keys[k]);
        cr_assert_eq(number(t, "features"), features, "%s", keys[k]);
        cr_assert_eq(number(c, "features"), features, "%s", keys[k]);
        cr_assert(number(c, "permuted") <= number(chance->child, "permuted"));
        chance = k == 0 ? json_get(json, "interpretations_by_chance") : chance;
    }
    cr_assert_eq(number(chance->child, "permuted"), number(chance->child, "features"), "t = 0");
    c = json_get(chance, "0.8");
    cr_assert(number(c, "features") > 2.0 * number(c, "permuted"), "chance reaches 0.8 rarely");
    arena_free(arena);
}

/* Resamples are drawn from --seed alone. */
Test(sage, intervals_are_the_same_for_a_seed_and_others_for_another) {
    static const char common[] = "--prompts @/out/prompts.jsonl --cross-sections @/given.json";
    put("@/given.json", "{\"one\": {\"nodes\": [" Z1 "]}}");
    assert_done(run(TOY "--train 12 --test 20 --out @/out"));
    assert_done(run(TOY "%s --out @/a", common));
    assert_done(run(TOY "%s --out @/b", common));
    assert_done(run(TOY "%s --out @/c --seed 1", common));
    assert_same_file("@/a/sage.json", "@/b/sage.json");
    Arena *arena = arena_new();
    const Json *a = read_json(arena, "@/a/sage.json"), *c = read_json(arena, "@/c/sage.json");
    for (int method = 0; method < 2; method++) {
        const Json *figures[2] = {json_get(a, "baseline"), json_get(c, "baseline")};
        const char *key = method ? "sufficiency" : "m_clean",
                   *ci = method ? "sufficiency_ci" : "m_clean_ci";
        for (int i = 0; i < 2 && method; i++) {
            figures[i] = json_get(json_get(json_get(i ? c : a, "tests"), "one"), "weighted");
        }
        double x = number(figures[0], key), low = json_double(json_get(figures[0], ci)->child),
               high = json_double(json_get(figures[0], ci)->child->next);
        cr_assert_eq(number(figures[1], key), x);
        cr_assert(low < x && x < high, "%s: %g, %g, %g", key, low, x, high);
        cr_assert(json_double(json_get(figures[1], ci)->child) != low);
    }
    arena_free(arena);
}

Test(sage, a_file_of_cross_sections_is_refused_with_a_sentence) {
    static const struct {
        const char *file, *says;
    } cases[] = {{"{\"C\": {\"nodes\": [" NODE("blocks.9.attn.hook_z", "0", "END") "]}}",
                  "'node': expected q, k, v, z, attn_out or mlp_out of a layer of the model, found "
                  "'blocks.9.attn.hook_z'"},
                 {"{\"C\": {\"nodes\": [" NODE("blocks.1.hook_resid_pre", "0", "END") "]}}",
                  "'node': expected q, k, v, z, attn_out or mlp_out"},
                 {"{\"C\": {\"nodes\": [" NODE("hook_nothing", "0", "END") "]}}",
                  "'node': expected q, k, v, z, attn_out or mlp_out"},
                 {"{\"C\": {\"nodes\": [{\"head\": 0, \"position\": \"END\"}]}}",
                  "'node': expected a string, found nothing"},
                 {"{\"C\": {\"nodes\": [" NODE("blocks.1.attn.hook_z", "4", "END") "]}}",
                  "'head': expected a whole number from 0 to 3, found 4"},
                 {"{\"C\": {\"nodes\": [" NODE("blocks.1.attn.hook_z", "null", "END") "]}}",
                  "'head': expected a number, found null"},
                 {"{\"C\": {\"nodes\": [" NODE("blocks.1.attn.hook_z", "0", "S3") "]}}",
                  "'position': expected a position of the task, found 'S3'"},
                 {"{\"C\": {\"nodes\": [" Z1 ", " Z1 "]}}", "given.json: 'C' has a node twice"},
                 {"{\"C\": {\"nodes\": [" Z1 "]}, \"C\": {\"nodes\": [" Z1 "]}}",
                  "given.json: 'C' stands twice"},
                 {"{\"C\": {\"nodes\": [" NODE("blocks.1.hook_attn_out", "0", "END") "]}}",
                  "'head': expected null: a block's output has no heads, found 0"},
                 {"{\"C\": {\"nodes\": []}}", "given.json: 'C' has no nodes"},
                 {"{\"C\": {}}", "'nodes': expected an array, found nothing"},
                 {"{\"C\": []}", "'C': expected an object, found an array"},
                 {"{}", "given.json: expected 1 to 1024 cross-sections by name"},
                 {"[]", "given.json: expected 1 to 1024 cross-sections by name"},
                 {"{\"cross_sections\": []}", "'cross_sections': expected an object"},
                 {"{\"C\": ", "given.json: "}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put("@/given.json", cases[i].file);
        assert_refused(run(TOY "--train 4 --test 4 --out @/out --cross-sections @/given.json"),
                       cases[i].says);
    }
    assert_refused(run(TOY "--out @/out --cross-sections @/none.json"), "none.json");
}

/* ---- what is missing ---- */

#define FORM                                                                                       \
    "\"ids\": [11, 12, 13], \"positions\": {\"A\": 0, \"B1\": 1, \"B2\": 1, \"END\": 2}, "         \
    "\"answer\": [4], \"wrong\": [5]"
#define ROW(split, other)                                                                          \
    "{\"split\": \"" split "\", \"text\": \",-.\", " FORM                                          \
    ", \"values\": {\"A\": \"Mary\", \"B\": \"Anna\"}, "                                           \
    "\"counterfactual\": {\"A\": {\"value\": \"Tom\", " FORM                                       \
    "}, \"B\": {\"value\": \"Luke\", " other "}}}\n"
#define LONGER                                                                                     \
    "\"ids\": [11, 12, 13, 14], \"positions\": {\"A\": 0, \"B1\": 1, \"B2\": 1, \"END\": 3}, "     \
    "\"answer\": [4], \"wrong\": [5]"

static void put_changed(const char *from, const char *to) {
    char text[2048];
    const char *at = strstr(own_task, from);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - own_task), own_task, to, at + strlen(from));
    put("@/task.json", text);
}

Test(sage, each_missing_thing_has_its_sentence_and_exit_2) {
    put_changed("\"Mary\", \"John\", \"Tom\"", "\"Mary\"");
    assert_refused(run(OWN), "attribute 'A'");
    put_changed("\"Mary\", \"John\", \"Tom\"", "\"Mary\", \"Rumpelstiltskin\"");
    assert_refused(run(OWN), "attribute 'A' has 1 value of one token");
    put_changed("\"answer\": \"A\"", "\"answer\": {\"of\": \"A\", \"map\": {\"Mary\": \" "
                                     "Rumpelstiltskin\", \"John\": \" is\", \"Tom\": \" is\"}}");
    assert_refused(run(OWN), "the answer ' Rumpelstiltskin' is not one token");
    put("@/task.json", own_task);
    put("@/prompts.jsonl", ROW("train", FORM) ROW("train", LONGER) ROW("test", FORM));
    assert_refused(run(OWN "--prompts @/prompts.jsonl"), "differ in length in attribute 'B'");
    assert_refused(run(OWN "--nodes q,x"), "--nodes q,x");
    assert_refused(run(OWN "--projection both"), "--projection both");
    assert_refused(run(OWN "--projection span,"), "--projection span,");
    assert_refused(run(OWN "--prompts @/none.jsonl"), "none.jsonl");
}

/* Prompts of another task's text are run all the same, and their number is said. */
Test(sage, prompts_of_no_template_are_counted) {
    static const char said[] = "no template of the task gives the text of 5 of 5 test prompts";
    put("@/task.json", own_task);
    assert_done(run(OWN "--train 8 --test 5"));
    for (int other = 0; other < 2; other++) {
        assert_done(run_aloud("--llm weights/gpt2 --saes weights/saes/gpt2 --task @/task.json "
                              "--prompts @/out/prompts.jsonl --out @/again"));
        char *text = slurp("@/stderr");
        cr_assert_eq(strstr(text, said) != NULL, other == 1, "%s", text);
        free(text);
        put_changed("the park", "the store");
    }
}

/* Several SAEs of what is no node beside those of the stream: nobody asks which, but alone they are
 * too few. */
Test(sage, saes_of_other_places_are_passed_over) {
    static const char other[] = "blocks.1.ln2.hook_normalized";
    write_pairs("mixed/a", other, STANDARD "\"none\"", 64, 64, true, unit);
    write_pairs("mixed/b", other, STANDARD "\"none\"", 64, 64, true, unit);
    assert_refused(
        run("--llm weights/gpt2 --saes @/mixed --task ioi --train 8 --test 4 --out @/out"),
        "none of 2 SAEs below it is of the residual stream or a node");
    write_pairs_everywhere("mixed", gpt2_hooks, HOOKS, STANDARD "\"none\"", 64, 64);
    assert_done(run("--llm weights/gpt2 --saes @/mixed --task ioi --train 8 --test 4 --out @/out"));
}

Test(sage, nodes_that_no_sae_serves_are_named) {
    assert_refused(run("--llm weights/gpt2 --saes weights/saes/gpt2/blocks.3.hook_resid_post "
                       "--task ioi --out @/out --train 8 "
                       "--test 4"),
                   "no SAE of blocks.");
    static const char *const last = "blocks.3.hook_resid_post";
    write_pairs("embed", "hook_embed", STANDARD "\"none\"", 64, 64, true, unit);
    write_pairs("embed", last, STANDARD "\"none\"", 64, 64, true, unit);
    static const char gpt2[] =
        "--llm weights/gpt2 --task ioi --train 8 --test 4 --out @/out --share 1 --max-nodes 200 ";
    assert_refused(run("%s --nodes v --saes @/embed", gpt2),
                   "needs: add one, or search other nodes (--nodes z)");
    write_pairs("wide", "hook_embed", STANDARD "\"none\"", 80, 80, true, unit);
    write_pairs("wide", last, STANDARD "\"none\"", 64, 64, true, unit);
    assert_refused(run("%s --saes @/wide", gpt2),
                   "reads 80 dimensions, hook_embed of weights/gpt2 has 64");
    assert_refused(run("%s --saes @", gpt2), "SAEs for ");
}

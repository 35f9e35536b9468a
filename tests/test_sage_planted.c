/* SAGE on planted truth (weights/planted, tests/reference/make_planted.py): the circuit, its
 * activations and its features are written down, so that every figure has a value that it must
 * have. Whole runs use the built program (REFSAE, else ./refsae). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "checkpoint.h"
#include "sage.h"

#define PLANTED "weights/planted/"

enum {
    WIDTH = 16, /* of a head */
    NAMES = 8
};

/* sage.json of a run with these SAEs on the planted prompts, all pairs of values once a split. */
static const Json *run(Arena *arena, const char *saes, const char *format, ...) {
    char out[] = "/tmp/refsae-planted-XXXXXX", options[256], command[1024], path[64];
    const char *program = getenv("REFSAE");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(options, sizeof options, format, arguments);
    va_end(arguments);
    cr_assert_not_null(mkdtemp(out));
    snprintf(command, sizeof command,
             "%s sage --quiet --llm " PLANTED "gpt2 --saes " PLANTED "saes/%s --task " PLANTED
             "task.json --prompts " PLANTED "prompts.jsonl --out %s %s",
             program != NULL ? program : "./refsae", saes, out, options);
    int status = system(command);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", command);
    snprintf(path, sizeof path, "%s/sage.json", out);
    const Json *json = json_read_file(arena, path);
    snprintf(command, sizeof command, "rm -r %s", out);
    cr_assert_eq(system(command), 0);
    return json;
}

/* The value at a path of keys, "a/b/c". */
static const Json *at(const Json *json, const char *path) {
    char keys[128], *rest = keys;
    snprintf(keys, sizeof keys, "%s", path);
    for (char *key; (key = strtok_r(rest, "/", &rest)) != NULL;) {
        json = json_get(json, key);
        cr_assert_not_null(json, "%s: no '%s'", path, key);
    }
    return json;
}

static double number(const Json *json, const char *path) {
    const Json *value = at(json, path);
    cr_assert(json_is(value, JSON_NUMBER), "%s", path);
    return json_double(value);
}

static void assert_near(double found, double expected, double tolerance, const char *what) {
    cr_assert(fabs(found - expected) <= tolerance, "%s: expected %.9g, found %.9g", what, expected,
              found);
}

TestSuite(planted, .timeout = 600);

/* ---- dictionaries ---- */

/* [values, WIDTH]: the node's features of an attribute; NULL: it has none. */
static const float *features_of(const TensorStore *truth, const char *node, const char *attribute,
                                Arena *arena) {
    const Tensor *tensor = tensors_find(truth, arena_format(arena, "%s.%s", node, attribute));
    return tensor != NULL ? (const float *)tensor->data : NULL;
}

/* On activations that are base + one feature for each attribute, mse and weighted return the
 * features. A mean over prompts with IO = v holds all names but v as S: the mean dictionary returns
 * the feature less a seventh of the other attribute's, as features of one attribute add up to 0. */
static void assert_dictionaries(SageSection *section, const TensorStore *truth, const char *node,
                                Arena *arena) {
    const SageTask *task = section->task;
    SageSubject *subject = section->subjects;
    SageFit fit;
    static const char *const others[] = {"S", "IO", "none"};
    const float *base = features_of(truth, node, "base", arena);
    for (size_t p = 0; p < section->n_train; p++) {
        float *a = subject->a + p * WIDTH;
        memcpy(a, base, WIDTH * sizeof(float));
        for (size_t i = 0; i < task->n_attributes; i++) {
            const float *rows = features_of(truth, node, task->attributes[i].name, arena);
            size_t value = task->prompts[SAGE_TRAIN][p].values[i];
            for (size_t k = 0; rows != NULL && k < WIDTH; k++) {
                a[k] += rows[value * WIDTH + k];
            }
        }
    }
    section->n_values = 0;
    sage_layout(section, arena);
    sage_prepare(section, &fit);
    for (size_t i = 0; i < task->n_attributes; i++) {
        const float *rows = features_of(truth, node, task->attributes[i].name, arena);
        const float *other = features_of(truth, node, others[i], arena);
        for (size_t k = 0; k < task->attributes[i].count * WIDTH; k++) {
            double u = rows != NULL ? (double)rows[k] : 0.0;
            double mixed = u - (other != NULL ? (double)other[k] : 0.0) / (NAMES - 1);
            size_t place = section->first_value[i] * WIDTH + k;
            assert_near(subject->dictionary[SAGE_MEAN].rows[place], mixed, 1e-5, node);
            assert_near(subject->dictionary[SAGE_MSE].rows[place], u, 1e-5, node);
            assert_near(subject->dictionary[SAGE_WEIGHTED].rows[place], u, 1e-5, node);
        }
    }
}

Test(planted, dictionaries_return_the_planted_vectors) {
    Arena *arena = arena_new();
    Compute compute;
    Tokenizer *tokenizer = tokenizer_open(arena, PLANTED "gpt2");
    TensorStore truth;
    SageTask task;
    Sae sae = {.centre = SAE_CENTRE_NO};
    SageNode node = {.kind = HOOK_ATTN_OUT}; /* what stands for itself in a stream of its width */
    SageSite site = {.sae = &sae};
    Llm llm = {.config = {.d_model = WIDTH, .d_head = WIDTH}};
    SageOptions options = {0};
    SageResult result = {.options = &options};
    size_t nodes = 0;
    compute_open(&compute, arena, 1);
    tensors_open(&truth, arena, PLANTED "truth.safetensors");
    sage_task_open(&task, arena, PLANTED "task.json", tokenizer);
    sage_prompts_read(&task, PLANTED "prompts.jsonl", tokenizer, 1000);
    size_t n_train = task.n_prompts[SAGE_TRAIN];
    float *train = arena_floats(arena, n_train, WIDTH), *scale = arena_floats(arena, 1, n_train);
    for (size_t p = 0; p < n_train; p++) {
        scale[p] = 1.0f;
    }
    for (size_t i = 0; i < truth.count; i++) {
        char *name = arena_format(arena, "%s", truth.tensors[i].name), *end = strstr(name, ".base");
        if (end == NULL) {
            continue;
        }
        *end = '\0';
        SageSubject subject = {
            .node = &node, .site = &site, .width = WIDTH, .a = train, .scale = scale};
        subject.w = arena_alloc(arena, task.n_attributes, sizeof(double));
        SageSection section = {.compute = &compute,
                               .llm = &llm,
                               .task = &task,
                               .result = &result,
                               .kinds = sage_kinds(&task, 0, arena),
                               .n_train = n_train,
                               .subjects = &subject,
                               .n_subjects = 1};
        assert_dictionaries(&section, &truth, name, arena);
        nodes++;
    }
    cr_assert_eq(nodes, 18);
    arena_free(arena);
}

/* ---- the walk ---- */

static bool same_node(const Json *a, const Json *b) {
    return strcmp(json_get(a, "node")->text, json_get(b, "node")->text) == 0 &&
           json_double(json_get(a, "head")) == json_double(json_get(b, "head")) &&
           strcmp(json_get(a, "position")->text, json_get(b, "position")->text) == 0;
}

static bool is_among(const Json *node, const Json *nodes) {
    const Json *other = nodes->child;
    while (other != NULL && !same_node(node, other)) {
        other = other->next;
    }
    return other != NULL;
}

/* How many nodes of a are among those of b. */
static size_t common(const Json *a, const Json *b) {
    size_t n = 0;
    for (const Json *node = a->child; node != NULL; node = node->next) {
        n += is_among(node, b) ? 1 : 0;
    }
    return n;
}

/* What is found is planted; all of it is found at 0.99, and half of all |score| is less than all of
 * it. */
Test(planted, the_walk_finds_the_planted_nodes_and_no_other) {
    static const char *const shares[] = {"0.5", "0.8", "0.99"};
    Arena *arena = arena_new();
    const Json *truth = json_read_file(arena, PLANTED "truth.json");
    for (size_t i = 0; i < 3; i++) {
        const Json *json = run(arena, "perfect", "--share %s", shares[i]);
        cr_assert_eq(at(json, "cross_sections")->length, 3);
        for (const Json *c = at(json, "cross_sections")->child; c != NULL; c = c->next) {
            const Json *found = json_get(c, "nodes"),
                       *planted = at(json_get(truth, c->key), "nodes");
            size_t right = common(found, planted);
            cr_assert_eq(right, found->length, "%s at %s: precision", c->key, shares[i]);
            cr_assert_eq(right == planted->length, i == 2, "%s at %s: %zu of %zu", c->key,
                         shares[i], right, planted->length);
        }
    }
    arena_free(arena);
}

/* A norm's gradient gives the decoy, 1.1, a score. Its effect is none; that of a planted node is
 * not. */
Test(planted, what_is_found_beyond_has_no_effect) {
    Arena *arena = arena_new();
    const Json *truth = json_read_file(arena, PLANTED "truth.json");
    const Json *json = run(arena, "perfect", "--share 0.9999 --max-nodes 40");
    size_t beyond = 0;
    for (const Json *c = at(json, "cross_sections")->child; c != NULL; c = c->next) {
        const Json *planted = at(json_get(truth, c->key), "nodes");
        cr_assert_eq(common(planted, json_get(c, "nodes")), planted->length, "%s", c->key);
        for (const Json *node = json_get(c, "nodes")->child; node != NULL; node = node->next) {
            double effect = fabs(number(node, "effect"));
            if (is_among(node, planted)) {
                cr_assert(effect > 0.2, "%s: %g", json_get(node, "node")->text, effect);
            } else {
                cr_assert(effect < 1e-4, "%s: %g", json_get(node, "node")->text, effect);
                beyond++;
            }
        }
    }
    cr_assert(beyond > 0);
    arena_free(arena);
}

/* Of m = 4, that is 2 for IO and 2 for S: a query turned round takes all that its head says, 2, and
 * as much again; what both heads are told takes 8. Another name for IO takes 0.9 / 0.8 of IO's 2 by
 * the one head, and gives 0.1 / 0.8 back by the other. Within a hundredth: norms change a little.
 */
Test(planted, effects_are_what_the_circuit_says) {
    static const struct {
        const char *attribute, *node, *position;
        double head, effect;
    } expected[] = {
        {"IO", "blocks.2.attn.hook_z", "END", 0, -2.25},
        {"IO", "blocks.2.attn.hook_z", "END", 1, 0.25},
        {"IO", "blocks.2.attn.hook_v", "IO", 0, -2.25},
        {"S", "blocks.2.attn.hook_z", "END", 1, -2.25},
        {"S", "blocks.0.attn.hook_q", "S2", 0, -4.0},
        {"S", "blocks.0.attn.hook_k", "S1", 0, -4.0},
        {"Pos", "blocks.0.attn.hook_z", "S2", 0, -8.0},
        {"Pos", "blocks.1.attn.hook_z", "END", 0, -8.0},
        {"Pos", "blocks.2.attn.hook_q", "END", 0, -4.0},
        {"Pos", "blocks.2.attn.hook_k", "IO", 1, -2.0},
    };
    Arena *arena = arena_new();
    const Json *sections = at(run(arena, "perfect", "--share 0.99"), "cross_sections");
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const Json *node = at(json_get(sections, expected[i].attribute), "nodes")->child;
        while (node != NULL && (strcmp(at(node, "node")->text, expected[i].node) != 0 ||
                                strcmp(at(node, "position")->text, expected[i].position) != 0 ||
                                number(node, "head") != expected[i].head)) {
            node = node->next;
        }
        cr_assert_not_null(node, "%s", expected[i].node);
        assert_near(number(node, "effect"), expected[i].effect, 0.01, expected[i].node);
    }
    arena_free(arena);
}

/* What all nodes do together, the planted ones do, the first of the walk. With everything of Pos
 * turned round the head finds IO as before, so that there is nothing to be a share of. */
Test(planted, curves_reach_all_at_the_planted_nodes) {
    Arena *arena = arena_new();
    const Json *sections = at(run(arena, "perfect", ""), "cross_sections");
    size_t reached = 0;
    for (const Json *c = sections->child; c != NULL; c = c->next) {
        size_t planted = strcmp(c->key, "IO") == 0 ? 4 : 6;
        for (const Json *point = json_get(c, "curve")->child; point != NULL; point = point->next) {
            const Json *share = json_get(point, "share");
            cr_assert_eq(json_is(share, JSON_NUMBER), strcmp(c->key, "Pos") != 0, "%s", c->key);
            if (json_is(share, JSON_NUMBER) && number(point, "nodes") >= (double)planted) {
                assert_near(json_double(share), 1.0, 1e-4, c->key);
                reached++;
            }
        }
    }
    cr_assert(reached > 2, "%zu", reached);
    arena_free(arena);
}

/* ---- figures ---- */

/* What a role of roles.json steers, and how many features that takes. */
static const struct {
    const char *section, *attribute;
    int k;
} steers[] = {{"duplicate queries", "S", 1},   {"duplicate outputs", "Pos", 2},
              {"inhibition values", "Pos", 2}, {"inhibition outputs", "Pos", 2},
              {"mover queries", "Pos", 2},     {"mover values", "IO", 2},
              {"mover outputs", "IO", 2}};

#define ROLES "--cross-sections " PLANTED "roles.json"

Test(planted, the_perfect_sae_scores_1_where_definitions_say_1) {
    Arena *arena = arena_new();
    const Json *json = run(arena, "perfect", ROLES);
    static const char *const methods[] = {"mse", "weighted", "sae"};
    static const char *const figures[] = {"sufficiency", "recovered", "necessity"};
    cr_assert_eq(number(json, "baseline/accuracy"), 1.0);
    assert_near(number(json, "baseline/m_clean"), 4.0, 1e-4, "m_clean");
    for (size_t i = 0; i < sizeof steers / sizeof *steers; i++) {
        const Json *tests = at(at(json, "tests"), steers[i].section);
        assert_near(number(tests, "resolution"), 1.0, 1e-3, "ablation leaves nothing of m");
        for (size_t m = 0; m < 3; m++) {
            for (size_t f = 0; f < 3; f++) {
                assert_near(number(json_get(tests, methods[m]), figures[f]), 1.0, 1e-3,
                            steers[i].section);
            }
        }
        const Json *control = at(at(tests, "sae/control"), steers[i].attribute);
        cr_assert_eq(number(control, "none"), 0.0);
        cr_assert_eq(number(control, "supervised/score"), 1.0);
        cr_assert_eq(number(control, "2/score"), 1.0, "%s", steers[i].section);
        cr_assert_eq(number(control, "2/score_rescaled"), 1.0);
        cr_assert_eq(number(control, "1/score") == 1.0, steers[i].k == 1, "%s", steers[i].section);
        control = at(at(tests, "sae/control_aware"), steers[i].attribute);
        cr_assert_eq(number(control, "1/score"), 1.0, "one removed, one added");
        assert_near(number(tests, "sae/f1/0.9/sufficiency"), 1.0, 1e-3, "the others are constant");
        assert_near(number(tests, "sae/f1/0.9/necessity"), 1.0, 1e-3, "the others are constant");
    }
    arena_free(arena);
}

/* Nodes are known mixtures, and the weights that undo what IO != S does to means too: 0.9 and 0.1
 * of the one and of the other head, each less a seventh of the other in the mean features. */
Test(planted, every_node_is_reconstructed) {
    static const double w[2] = {0.9 / (0.9 - 0.1 / 7.0), 0.1 / (0.1 - 0.9 / 7.0)};
    Arena *arena = arena_new();
    const Json *sections = at(run(arena, "perfect", ROLES), "dictionaries");
    cr_assert_eq(sections->length, sizeof steers / sizeof *steers);
    for (const Json *c = sections->child; c != NULL; c = c->next) {
        cr_assert(c->length > 0, "%s", c->key);
        for (const Json *node = c->child; node != NULL; node = node->next) {
            static const char *const methods[] = {"mse", "weighted", "sae"};
            for (size_t m = 0; m < 3; m++) {
                assert_near(number(json_get(node, "r2"), methods[m]), 1.0, 1e-9, c->key);
            }
        }
    }
    for (const Json *node = at(sections, "mover outputs")->child; node != NULL; node = node->next) {
        bool opposite = number(node, "head") == 1.0;
        assert_near(number(node, "weights/IO"), w[opposite ? 1 : 0], 1e-3, "weight of IO");
        assert_near(number(node, "weights/S"), w[opposite ? 0 : 1], 1e-3, "weight of S");
        assert_near(number(node, "weights/Pos"), 0.0, 1e-9, "weight of Pos");
    }
    arena_free(arena);
}

/* A feature of the perfect SAE stands for one value (F1 1), or is always active, for which "Pos is
 * ABB" says most: 2 / 3. By chance there is nothing above 0.8. */
Test(planted, every_feature_has_its_meaning) {
    Arena *arena = arena_new();
    const Json *json = run(arena, "perfect", ROLES);
    size_t meant = 0, constant = 0;
    for (const Json *i = at(json, "interpretations")->child; i != NULL; i = i->next) {
        double f1 = number(i, "f1");
        cr_assert(f1 == 1.0 || fabs(f1 - 2.0 / 3.0) < 1e-12, "%s", at(i, "predicate")->text);
        meant += f1 == 1.0 ? 1 : 0;
        constant += f1 == 1.0 ? 0 : 1;
    }
    assert_near(number(json, "interpretations_by_chance/0.8/features"), (double)meant, 0.0,
                "above");
    cr_assert_eq(number(json, "interpretations_by_chance/0.8/permuted"), 0.0);
    cr_assert_eq(constant, 7);
    cr_assert(meant > 0);
    arena_free(arena);
}

/* Each spoiling against the perfect SAE, where names are said: reconstruction (sufficiency and
 * necessity) falls if the features are wrong, control of IO by two if no two features do it, and
 * the share of features with a meaning if they have none; the others stay. */
Test(planted, each_spoiling_lowers_its_figure_and_leaves_the_others) {
    static const struct {
        const char *saes;
        bool reconstruction, control, meaning; /* lower */
    } spoilt[] = {{"perfect", false, false, false}, {"merged", true, true, false},
                  {"split", false, false, true},    {"missing", true, true, false},
                  {"noisy", true, false, false},    {"rotated", false, true, true}};
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
        const Json *sae = at(run(arena, spoilt[i].saes, ROLES), "tests/mover outputs/sae");
        double figures[] = {number(sae, "sufficiency"), number(sae, "necessity"),
                            number(sae, "control/IO/2/score"),
                            number(sae, "f1/0.8/features") / number(sae, "f1/0/features")};
        bool lower[] = {spoilt[i].reconstruction, spoilt[i].reconstruction, spoilt[i].control,
                        spoilt[i].meaning};
        for (size_t f = 0; f < 4; f++) {
            double least = f == 3 ? 0.85 : 0.999, most = f == 3 ? 0.6 : 0.9;
            cr_assert(lower[f] ? figures[f] < most : figures[f] > least, "%s: figure %zu: %g",
                      spoilt[i].saes, f, figures[f]);
        }
    }
    arena_free(arena);
}

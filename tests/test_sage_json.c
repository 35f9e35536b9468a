/* SAGE's files from a result made up here: every key of sage.json, a CSV row for every node, heat
 * maps that are XML, a report that hostile names cannot break. */
#include "report.h"
#include "sage.h"
#include "scratch.h"
#include "xml.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 4,
    HEADS = 4,
    POSITIONS = 5,
    ATTRIBUTES = 3,
    THRESHOLDS = 3,
    CURVE = 3,
    NODES = LAYERS * (4 * HEADS + 2) * POSITIONS,
    FOUND = 40,
    EDITS = SAGE_METHODS * (SAGE_AWARE + 1) * ATTRIBUTES * SAGE_KS /* at most */
};

typedef struct World {
    Arena *arena;
    SageOptions options;
    Console console;
    SageTask task;
    SageResult result;
    SageAttribute attributes[ATTRIBUTES];
    const char *positions[POSITIONS];
    SageDropped dropped[3];
    SageNode nodes[NODES];
    double score[ATTRIBUTES * NODES], effect[ATTRIBUTES * NODES], weights[ATTRIBUTES];
    bool chosen[ATTRIBUTES * NODES];
    size_t places[ATTRIBUTES][16];
    SageFit fits[ATTRIBUTES][8];
    SageCross cross[ATTRIBUTES];
    SageCurve curve[CURVE];
    SageInterpretation found[FOUND];
    Random random;
} World;

static double uniform(World *w) {
    return (double)random_uniform(&w->random);
}

static SageFigure make_figure(World *w, double level) {
    return (SageFigure){level + 0.1 * uniform(w), level - 0.25, level + 0.25};
}

/* Every edit, at a level of its method; features fall with the threshold. */
static SageEdit *make_edits(World *w) {
    static const double level[SAGE_METHODS] = {0.2, 0.93, 0.95, 0.94, 0.7, 0.8, 0.1};
    static const size_t places[] = {[SAGE_F1_SUFFICIENCY] = THRESHOLDS,
                                    [SAGE_F1_NECESSITY] = THRESHOLDS,
                                    [SAGE_GREEDY] = SAGE_KS,
                                    [SAGE_AWARE] = SAGE_KS};
    size_t n = 0;
    SageEdit *edits = arena_alloc(w->arena, EDITS, sizeof *edits);
    for (SageMethod m = SAGE_NONE; m < SAGE_METHODS; m++) {
        for (SageTest test = SAGE_UNTOUCHED; test <= SAGE_AWARE; test++) {
            size_t each = places[test] == 0 ? 1 : places[test];
            for (size_t i = 0; i < ATTRIBUTES * each; i++) {
                edits[n++] = (SageEdit){.method = m,
                                        .test = test,
                                        .attribute = i / each,
                                        .at = i % each,
                                        .figure = make_figure(w, level[m]),
                                        .recovered = make_figure(w, level[m]),
                                        .features = 7 - i % each,
                                        .magnitude = uniform(w),
                                        .score_rescaled = 0.125,
                                        .magnitude_rescaled = 0.75};
            }
        }
    }
    return edits;
}

/* Ways that lead to the node have a value; poor: but none that its SAE gives, and no native one. */
static void make_fit(World *w, const SageNode *node, SageFit *fit, bool poor) {
    bool reads = sage_node_reads(node);
    *fit = (SageFit){.sae = reads ? SAGE_BY_WEIGHTS : SAGE_BY_SPAN, .w = w->weights};
    for (int way = 0; way < SAGE_WAYS; way++) {
        bool leads = way == SAGE_BY_WEIGHTS                          ? reads && !poor
                     : way == SAGE_BY_SPAN || way == SAGE_BY_ENCODER ? !reads
                     : way == SAGE_BY_NATIVE                         ? !poor
                                                                     : true;
        fit->r2[way] = leads ? 0.5 + 0.0625 * way : (double)NAN;
        fit->r2_stream[way] = leads && !reads ? 0.25 + 0.0625 * way : (double)NAN;
    }
}

static void make_cross(World *w, size_t a) {
    SageCross *cross = &w->cross[a];
    size_t order[NODES];
    for (size_t i = 0; i < NODES; i++) {
        order[i] = i;
        w->score[a * NODES + i] = (uniform(w) < 0.1 ? 2.5 : 0.15) * (uniform(w) - 0.55);
        w->effect[a * NODES + i] = (double)NAN;
    }
    for (size_t i = 0; i < 14; i++) { /* the first 14 of falling |score| */
        for (size_t j = i + 1; j < NODES; j++) {
            if (fabs(w->score[a * NODES + order[j]]) > fabs(w->score[a * NODES + order[i]])) {
                size_t swap = order[i];
                order[i] = order[j];
                order[j] = swap;
            }
        }
        w->places[a][i] = order[i];
        w->effect[a * NODES + order[i]] = w->score[a * NODES + order[i]] * 0.9 + 0.02 * uniform(w);
        w->chosen[a * NODES + order[i]] = i < 8;
    }
    *cross = (SageCross){.name = w->attributes[a].name,
                         .attribute = (int)a,
                         .nodes = w->places[a],
                         .n_nodes = 8,
                         .others = w->places[a] + 8,
                         .n_others = 6,
                         .fits = w->fits[a],
                         .share = 0.51,
                         .spearman = 0.93,
                         .curve = w->curve,
                         .n_curve = CURVE,
                         .m_ablated = {0.5, 0.25, 0.75},
                         .resolution = 0.84,
                         .native = a == 1,
                         .edits = make_edits(w)};
    for (size_t i = 0; i < 8; i++) {
        make_fit(w, &w->nodes[cross->nodes[i]], &cross->fits[i], i % 2 == 1);
    }
}

static void make_nodes(World *w) {
    static const HookKind kinds[6] = {HOOK_Q, HOOK_K, HOOK_V, HOOK_Z, HOOK_ATTN_OUT, HOOK_MLP_OUT};
    SageNode *node = w->nodes;
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int kind = 0; kind < 6; kind++) {
            for (int head = kind < 4 ? 0 : -1; head < (kind < 4 ? HEADS : 0); head++) {
                for (size_t p = 0; p < POSITIONS; p++) {
                    *node++ = (SageNode){kinds[kind], layer, head, p};
                }
            }
        }
    }
    cr_assert_eq(node - w->nodes, NODES);
}

/* odd: a name that XML, JSON, CSV and file systems each dislike; NULL: none. */
static World *world_make(const char *odd) {
    static const char *const names[ATTRIBUTES] = {"IO", "S", "Pos"};
    static const char *const positions[POSITIONS] = {"IO", "S1", "S1+1", "S2", "END"};
    World *w = calloc(1, sizeof *w);
    cr_assert_not_null(w);
    w->arena = arena_new();
    w->random = random_start(3, RANDOM_TEST);
    folder_new();
    for (size_t i = 0; i < ATTRIBUTES; i++) {
        w->attributes[i].name = odd != NULL && i == 1 ? odd : names[i];
        w->weights[i] = 0.5 * (double)i;
    }
    for (size_t i = 0; i < POSITIONS; i++) {
        w->positions[i] = odd != NULL && i == 2 ? odd : positions[i];
    }
    w->dropped[0] = w->dropped[1] = (SageDropped){"IO", odd != NULL ? odd : "Zebulon"};
    w->dropped[1].attribute = "S";
    w->dropped[2] = (SageDropped){"S", "Hezekiah"};
    make_nodes(w);
    for (size_t i = 0; i < CURVE; i++) {
        w->curve[i] = (SageCurve){(size_t)1 << i, i == 0 ? (double)NAN : 0.5 * (double)i};
    }
    for (size_t i = 0; i < FOUND; i++) {
        w->found[i] = (SageInterpretation){HOOK_RESID_PRE,
                                           2,
                                           i % POSITIONS,
                                           i,
                                           0.01 * (double)(i % 37),
                                           i < 10 ? 0.2 : 0.0,
                                           i + 2,
                                           odd != NULL ? odd : "IO=Mary & Pos=ABB"};
    }
    w->options = (SageOptions){
        .vlm = {.llm = odd != NULL ? odd : "weights/gpt2", .out = folder, .seed = 475},
        .task = "ioi",
        .nodes = "q,k,v,z",
        .projection = "auto",
        .share = 0.5,
        .f1 = {0.25},
        .max_nodes = 16,
        .n_f1 = 1};
    w->console = (Console){.quiet = true, .command = "refsae sage --task ioi"};
    w->task = (SageTask){.name = odd != NULL ? odd : "ioi",
                         .file = "ioi",
                         .attributes = w->attributes,
                         .n_attributes = ATTRIBUTES,
                         .positions = w->positions,
                         .n_positions = POSITIONS,
                         .n_prompts = {100, 50},
                         .dropped = w->dropped,
                         .n_dropped = 3};
    for (size_t a = 0; a < ATTRIBUTES; a++) {
        make_cross(w, a);
    }
    w->result = (SageResult){.options = &w->options,
                             .console = &w->console,
                             .task = &w->task,
                             .accuracy = 0.97,
                             .m_positive = 0.98,
                             .m_clean = {3.25, 3, 3.5},
                             .thresholds = {0, 0.1, 0.25},
                             .n_thresholds = THRESHOLDS,
                             .nodes = w->nodes,
                             .n_nodes = NODES,
                             .score = w->score,
                             .effect = w->effect,
                             .chosen = w->chosen,
                             .cross = w->cross,
                             .n_cross = ATTRIBUTES,
                             .interpretations = w->found,
                             .n_interpretations = FOUND};
    return w;
}

static void world_end(World *w) {
    if (getenv("REFSAE_KEEP") == NULL) {
        folder_remove();
    }
    arena_free(w->arena);
    free(w);
}

static char *slurp(World *w, const char *name) {
    return read_text(w->arena, path_join(w->arena, folder, name));
}

static const Json *read_json(World *w) {
    return json_read_file(w->arena, path_join(w->arena, folder, "sage.json"));
}

/* The value at "a/b/0/c". */
static const Json *at(const Json *value, const char *path) {
    char key[64];
    while (*path != '\0') {
        size_t length = strcspn(path, "/");
        snprintf(key, sizeof key, "%.*s", (int)length, path);
        if (json_is(value, JSON_ARRAY)) {
            const Json *child = value->child;
            for (long i = strtol(key, NULL, 10); i > 0 && child != NULL; i--) {
                child = child->next;
            }
            value = child;
        } else {
            value = json_get(value, key);
        }
        cr_assert_not_null(value, "no '%s'", path);
        path += length + (path[length] == '/');
    }
    return value;
}

static double number_at(const Json *value, const char *path) {
    const Json *found = at(value, path);
    cr_assert(json_is(found, JSON_NUMBER), "%s", path);
    return json_double(found);
}

static const SageEdit *edit_of(const World *w, SageTest test, SageMethod method, size_t a,
                               size_t at) {
    return sage_edit_find(w->cross[1].edits, test, method, a, at);
}

/* Keys in their order, separated by spaces. */
static void assert_keys(const Json *object, const char *path, const char *keys) {
    char text[256] = "";
    for (const Json *c = at(object, path)->child; c != NULL; c = c->next) {
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", *text != 0 ? " " : "",
                 c->key);
    }
    cr_assert_str_eq(text, keys, "%s: %s", path, text);
}

Test(sage_json, json_has_the_form_that_others_read) {
    World *w = world_make(NULL);
    report_sage(&w->result);
    const Json *json = read_json(w);
    assert_keys(json, "",
                "task model prompts baseline cross_sections dictionaries tests interpretations "
                "interpretations_by_chance");
    assert_keys(json, "prompts", "train test dropped");
    cr_assert_eq(at(json, "prompts/dropped")->length, 2, "each value once");
    cr_assert(json_text_is(at(json, "prompts/dropped/0"), "Zebulon"));
    cr_assert(json_text_is(at(json, "prompts/dropped/1"), "Hezekiah"));
    assert_keys(json, "baseline", "accuracy m_clean m_clean_ci m_positive");
    assert_keys(json, "cross_sections", "IO S Pos");
    assert_keys(json, "cross_sections/IO", "nodes others share spearman curve");
    assert_keys(json, "cross_sections/S/nodes/0", "node head position score effect");
    assert_keys(json, "cross_sections/S/others/0", "node head position score effect");
    assert_keys(json, "cross_sections/S/curve/2", "nodes share");
    assert_keys(json, "dictionaries/IO/0/weights", "IO S Pos");
    assert_keys(json, "tests/IO",
                "m_ablated m_ablated_ci resolution none mean mse weighted sae random");
    assert_keys(json, "tests/S",
                "m_ablated m_ablated_ci resolution none mean mse weighted sae native random");
#define FIGURES "sufficiency sufficiency_ci recovered recovered_ci necessity necessity_ci"
    assert_keys(json, "tests/IO/none", FIGURES " control");
    assert_keys(json, "tests/IO/mean", FIGURES " control");
    assert_keys(json, "tests/IO/sae", FIGURES " control control_aware f1");
    assert_keys(json, "tests/S/native", FIGURES " control control_aware f1");
    assert_keys(json, "tests/IO/random/control", "IO S Pos");
    assert_keys(json, "tests/IO/none/control/S", "none none_ci supervised 1 2 4 8 16 32");
    assert_keys(json, "tests/IO/sae/control/S", "none none_ci supervised 1 2 4 8 16 32");
    assert_keys(json, "tests/IO/mse/control/S", "none none_ci supervised");
    assert_keys(json, "tests/IO/mse/control/S/supervised", "score score_ci magnitude");
    assert_keys(json, "tests/IO/random/control_aware/Pos", "1 2 4 8 16 32");
    assert_keys(json, "tests/IO/sae/control/S/32",
                "score score_ci magnitude score_rescaled magnitude_rescaled");
    assert_keys(json, "tests/IO/sae/f1", "0 0.1 0.25");
    assert_keys(json, "tests/IO/random/f1", "0.25");
    assert_keys(json, "tests/IO/sae/f1/0.25",
                "sufficiency sufficiency_ci necessity necessity_ci features");
    assert_keys(json, "interpretations/0", "hook position feature f1 support predicate");
    cr_assert_eq(number_at(json, "interpretations/3/support"), 5);
    assert_keys(json, "interpretations_by_chance", "0 0.1 0.25");
    cr_assert_eq(number_at(json, "prompts/train"), 100);
    cr_assert_eq(number_at(json, "baseline/accuracy"), 0.97);
    cr_assert_eq(number_at(json, "baseline/m_clean"), 3.25);
    cr_assert_eq(number_at(json, "baseline/m_clean_ci/0"), 3);
    cr_assert_eq(number_at(json, "baseline/m_clean_ci/1"), 3.5);
    cr_assert(json_is(at(json, "cross_sections/Pos/curve/0/share"), JSON_NULL), "NaN is null");
    cr_assert_eq(number_at(json, "cross_sections/Pos/curve/2/nodes"), 4);
    cr_assert_eq(number_at(json, "cross_sections/Pos/curve/2/share"), 1);
    const SageEdit *suffices = edit_of(w, SAGE_SUFFICIENCY, SAGE_SAE, 0, 0),
                   *needed = edit_of(w, SAGE_NECESSITY, SAGE_SAE, 0, 0);
    cr_assert_eq(number_at(json, "tests/S/sae/sufficiency"), suffices->figure.value);
    cr_assert_eq(number_at(json, "tests/S/sae/recovered"), suffices->recovered.value);
    cr_assert_eq(number_at(json, "tests/S/sae/necessity"), needed->figure.value);
    cr_assert_eq(number_at(json, "tests/S/sae/necessity_ci/1"), needed->figure.high);
    cr_assert_eq(number_at(json, "tests/S/none/sufficiency"), 1.0, "by definition");
    cr_assert_eq(number_at(json, "tests/S/none/recovered_ci/0"), 1.0);
    cr_assert_eq(number_at(json, "tests/S/none/necessity"), 0.0);
    cr_assert_eq(number_at(json, "tests/S/none/necessity_ci/1"), 0.0);
    cr_assert_eq(number_at(json, "tests/S/random/control/Pos/4/magnitude"),
                 edit_of(w, SAGE_GREEDY, SAGE_RANDOM, 2, 2)->magnitude, "[attribute][k]");
    cr_assert_eq(number_at(json, "tests/S/random/control_aware/Pos/4/score"),
                 edit_of(w, SAGE_AWARE, SAGE_RANDOM, 2, 2)->figure.value);
    cr_assert_eq(number_at(json, "tests/S/random/control_aware/Pos/4/score_rescaled"), 0.125);
    cr_assert_eq(number_at(json, "tests/S/random/control_aware/Pos/4/magnitude_rescaled"), 0.75);
    const SageEdit *none = edit_of(w, SAGE_TARGET, SAGE_NONE, 2, 0);
    cr_assert_eq(number_at(json, "tests/S/random/control/Pos/none"), none->figure.value);
    cr_assert_eq(number_at(json, "tests/S/none/control/Pos/8/score"), none->figure.value);
    cr_assert_eq(number_at(json, "tests/S/random/control/Pos/supervised/score"),
                 edit_of(w, SAGE_SUPERVISED, SAGE_MEAN, 2, 0)->figure.value,
                 "the mean dictionary's");
    cr_assert_eq(number_at(json, "tests/S/mse/control/Pos/supervised/score"),
                 edit_of(w, SAGE_SUPERVISED, SAGE_MSE, 2, 0)->figure.value, "its own");
    cr_assert_eq(number_at(json, "tests/S/sae/f1/0.1/necessity"),
                 edit_of(w, SAGE_F1_NECESSITY, SAGE_SAE, 0, 1)->figure.value);
    cr_assert_eq(number_at(json, "tests/S/sae/f1/0.1/features"), 6);
    cr_assert_eq(number_at(json, "interpretations_by_chance/0/permuted"), (double)FOUND);
    cr_assert_eq(number_at(json, "interpretations_by_chance/0.1/permuted"), 10);
    cr_assert_eq(number_at(json, "interpretations_by_chance/0.25/features"), 37 - 25);
    cr_assert_eq(number_at(json, "interpretations_by_chance/0.25/permuted"), 0);
    for (size_t a = 0; a < ATTRIBUTES; a++) { /* q, k, v: weights; the rest: span and encoder */
        const Json *fit = at(json, "dictionaries")->child;
        for (size_t i = 0; i < a; i++) {
            fit = fit->next;
        }
        cr_assert_eq(fit->length, w->cross[a].n_nodes);
        fit = fit->child;
        for (size_t i = 0; i < w->cross[a].n_nodes; i++, fit = fit->next) {
            const SageNode *node = &w->nodes[w->cross[a].nodes[i]];
            bool reads = sage_node_reads(node), poor = i % 2 == 1;
            assert_keys(fit, "",
                        reads ? "node head position r2 weights"
                              : "node head position r2 r2_stream weights");
            const char *keys = reads ? (poor ? "mean mse weighted sae weights"
                                             : "mean mse weighted sae weights native")
                                     : (poor ? "mean mse weighted sae span encoder"
                                             : "mean mse weighted sae span encoder native");
            assert_keys(fit, "r2", keys);
            cr_assert(json_is(at(fit, "head"), node->head < 0 ? JSON_NULL : JSON_NUMBER));
            if (!reads) {
                assert_keys(fit, "r2_stream", keys);
                cr_assert_eq(number_at(fit, "r2_stream/sae"), 0.25 + 0.0625 * (double)SAGE_BY_SPAN);
                cr_assert_eq(number_at(fit, "r2/sae"), 0.5 + 0.0625 * (double)SAGE_BY_SPAN);
            } else if (poor) {
                cr_assert(json_is(at(fit, "r2/weights"), JSON_NULL), "NaN is null");
                cr_assert(json_is(at(fit, "r2/sae"), JSON_NULL), "NaN is null");
            }
        }
    }
    world_end(w);
}

/* The nodes alone, as --cross-sections takes them. */
Test(sage_json, cross_sections_stand_in_a_file_of_their_own) {
    World *w = world_make(NULL);
    report_sage(&w->result);
    const Json *json = json_read_file(w->arena, path_join(w->arena, folder, "cross_sections.json"));
    const Json *all = at(read_json(w), "cross_sections");
    assert_keys(json, "", "IO S Pos");
    for (const Json *c = json->child; c != NULL; c = c->next) {
        const Json *same = at(all, c->key)->child->child;
        assert_keys(c, "", "nodes");
        cr_assert_eq(at(c, "nodes")->length, 8);
        for (const Json *n = at(c, "nodes")->child; n != NULL; n = n->next, same = same->next) {
            assert_keys(n, "", "node head position");
            cr_assert_str_eq(at(n, "node")->text, at(same, "node")->text);
            cr_assert_str_eq(at(n, "position")->text, at(same, "position")->text);
            cr_assert_eq(at(n, "head")->kind, at(same, "head")->kind);
        }
    }
    world_end(w);
}

Test(sage_json, every_node_has_a_row) {
    World *w = world_make(NULL);
    report_sage(&w->result);
    const char *line = slurp(w, "cross_sections.csv");
    size_t rows = 0, chosen = 0, with_effect = 0;
    static const char header[] = "cross_section,node,head,position,score,chosen,effect\n";
    cr_assert_eq(strncmp(line, header, strlen(header)), 0);
    while ((line = strchr(line, '\n') + 1)[0] != '\0') {
        char expected[128], name[HOOK_NAME_MAX], head[16] = "";
        const SageNode *node = &w->nodes[rows % NODES];
        hook_name(name, node->kind, node->layer, false, false);
        if (node->head >= 0) {
            snprintf(head, sizeof head, "%d", node->head);
        }
        snprintf(expected, sizeof expected, "%s,%s,%s,%s,", w->attributes[rows / NODES].name, name,
                 head, w->positions[node->position]);
        cr_assert_eq(strncmp(line, expected, strlen(expected)), 0, "%.80s: %s", line, expected);
        char *end;
        cr_assert_eq(strtod(line + strlen(expected), &end), w->score[rows]);
        cr_assert_eq(end[0], ',');
        chosen += end[1] == '1';
        with_effect += end[3] != '\n';
        rows++;
    }
    cr_assert_eq(rows, ATTRIBUTES * NODES);
    cr_assert_eq(chosen, ATTRIBUTES * 8);
    cr_assert_eq(with_effect, ATTRIBUTES * 14);
    world_end(w);
}

/* Everything between <body> and </body> nests; void elements and entities are HTML's. */
static void assert_report(World *w) {
    char *html = slurp(w, "report.html");
    cr_assert_eq(count_of(html, "<script"), 0);
    for (char *svg = html; (svg = strstr(svg, "<svg")) != NULL;) {
        char *end = strstr(svg, "</svg>") + 6, kept = *end;
        *end = '\0';
        assert_xml(svg, "svg");
        *end = kept;
        svg = end;
    }
    static const char *const paired[] = {"div", "tr",    "td",     "th", "p",
                                         "h2",  "table", "figure", "dl"};
    for (size_t i = 0; i < sizeof paired / sizeof *paired; i++) {
        char open[16], with[16], end[16];
        snprintf(open, sizeof open, "<%s>", paired[i]);
        snprintf(with, sizeof with, "<%s ", paired[i]);
        snprintf(end, sizeof end, "</%s>", paired[i]);
        cr_assert_eq(count_of(html, open) + count_of(html, with), count_of(html, end), "%s", open);
    }
    cr_assert_eq(count_of(html, "How this was made</h2>"), 1);
}

Test(sage_json, report_and_heat_maps) {
    World *w = world_make(NULL);
    report_sage(&w->result);
    static const char *const figures[] = {"heat_IO.svg",     "heat_S.svg",    "heat_Pos.svg",
                                          "sufficiency.svg", "control_S.svg", "nodes.svg"};
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        cr_assert_eq(assert_xml(slurp(w, figures[i]), "svg"), 1);
    }
    char *html = slurp(w, "report.html");
    static const char *const parts[] = {"refsae sage <span>--task</span> ioi",
                                        "97.0 %",
                                        "475",
                                        "Zebulon",
                                        "SAGE: ioi, weights/gpt2",
                                        "mean m (nats) [3.00,\xC2\xA0"
                                        "3.50]",
                                        "<b>100 + 50</b>",
                                        "carries 51.0 % of all |score|; of the nodes walked, 8 ",
                                        "correlation of 0.93 (",
                                        "mean m is 0.5 [0.250,\xC2\xA0"
                                        "0.750]: a resolution",
                                        "The best 30 of 40 interpretations"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        cr_assert_not_null(strstr(html, parts[i]), "%s", parts[i]);
    }
    assert_report(w);
    world_end(w);
}

Test(sage_json, hostile_names) {
    World *w = world_make("../<b>&\"'|,</svg><script>\x01\xFF\n{}%s\xF0\x9F\x98\x80");
    report_sage(&w->result);
    cr_assert_eq(assert_xml(slurp(w, "heat_.1.svg"), "svg"), 1, "a safe name with its number");
    cr_assert(json_is(read_json(w), JSON_OBJECT));
    assert_report(w);
    world_end(w);
}

/* What a run on a model that cannot do the task leaves: nothing found, nothing defined. */
Test(sage_json, nothing_found) {
    World *w = world_make(NULL);
    for (size_t i = 0; i < ATTRIBUTES * NODES; i++) {
        w->score[i] = i % 2 == 0 ? (double)NAN : 0;
        w->chosen[i] = false;
    }
    for (size_t a = 0; a < ATTRIBUTES; a++) {
        w->cross[a].n_nodes = w->cross[a].n_others = 0;
        w->cross[a].spearman = (double)NAN;
        for (SageEdit *e = w->cross[a].edits; e < w->cross[a].edits + EDITS; e++) {
            double x = e->test == SAGE_NECESSITY ? (double)INFINITY
                       : e->method == SAGE_MEAN  ? (double)NAN
                                                 : -1e30;
            if (e->test == SAGE_NECESSITY || e->test == SAGE_SUFFICIENCY) {
                e->figure = (SageFigure){x, x, x};
            }
        }
        w->cross[a].n_curve = 0;
    }
    w->result.n_interpretations = 0;
    w->task.n_dropped = 0;
    report_sage(&w->result);
    cr_assert(json_is(at(read_json(w), "tests/S/mean/sufficiency"), JSON_NULL));
    cr_assert(json_is(at(read_json(w), "tests/S/mean/sufficiency_ci"), JSON_NULL));
    cr_assert(json_is(at(read_json(w), "tests/S/sae/necessity"), JSON_NULL));
    cr_assert(json_is(at(read_json(w), "cross_sections/S/spearman"), JSON_NULL));
    assert_report(w);
    world_end(w);
}

Test(sage_json, a_folder_that_cannot_be_made) {
    World *w = world_make(NULL);
    Error error;
    w->options.vlm.out = "/dev/null/out";
    ATTEMPT(&error, report_sage(&w->result));
    cr_assert(error.status != STATUS_OK);
    cr_assert_not_null(strstr(error.text, "/dev/null"));
    world_end(w);
}

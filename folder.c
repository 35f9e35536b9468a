/* folder.c: one page from the files of folders. See folder.h. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "folder.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- what reports and their page share ---- */

const LayerMetric layer_metrics[METRICS] = {
    {"mse", "Reconstruction error by layer", "MSE (log)"},
    {"sparsity", "SAE sparsity by layer", "share of features active (log)"},
    {"match", "Features that match the answer, by layer", "match rate"}};

char *figure_name(Arena *arena, const char *what, const char *name, size_t attribute) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t length = strlen(name), plain = strspn(name, safe);
    return length == plain && length > 0 && length <= 40
               ? arena_format(arena, "%s_%s.svg", what, name)
               : arena_format(arena, "%s_%.*s.%zu.svg", what, plain < 40 ? (int)plain : 40, name,
                              attribute);
}

const char *untold(const Json *cross, const char *attribute, Arena *arena) {
    bool edits = attribute != NULL;
    double value =
        json_double(edits ? json_below(json_below(cross, "none", "control"), attribute, "none")
                          : json_get(cross, "resolution"));
    if (edits ? value > 0.9 : value < 0.1) {
        return arena_format(arena, "%s %.2g: methods look alike", edits ? "none" : "resolution",
                            value);
    }
    return NULL;
}

char *convergence_text(Arena *arena, const Json *convergence, const char *key) {
    const Json *published = json_get(convergence, "published");
    double layer = json_double(json_get(convergence, key));
    char *text = arena_format(arena, isnan(layer) ? "none" : "%.0f", layer);
    return published == NULL ? text
                             : arena_format(arena, "%s (published: %s)", text,
                                            convergence_text(arena, published, key));
}

bool figure_is_interval(const Json *value) {
    size_t length = strlen(value->key);
    return length > 3 && strcmp(value->key + length - 3, "_ci") == 0;
}

/* ---- tables ---- */

typedef struct Line {    /* of a table */
    const char *keys[3]; /* what it is of */
    const Json *values;  /* an object */
} Line;

typedef struct Lines {
    Arena *arena;
    Line *list;
    size_t count, capacity;
} Lines;

static void lines_add(Lines *lines, const char *a, const char *b, const char *c,
                      const Json *values) {
    if (json_is(values, JSON_OBJECT)) {
        lines->list =
            arena_grow(lines->arena, lines->list, &lines->capacity, lines->count + 1, sizeof(Line));
        lines->list[lines->count++] = (Line){{a, b, c}, values};
    }
}

/* All objects of an array. */
static void lines_add_all(Lines *lines, const char *key, const Json *list) {
    for (const Json *v = json_first(list); v != NULL; v = v->next) {
        lines_add(lines, key, NULL, NULL, v);
    }
}

static bool is_control(const Json *value) {
    return json_get(value, "score") != NULL;
}

/* ---- what lies in a folder ---- */

typedef struct Folder {
    Page *page;
    const char *path;
    Arena *arena;
    const char *name;
    const Json *scores, *layers, *sage; /* NULL: none */
} Folder;

/* A file of the folder, or NULL: only what is not there is left out. */
static const char *folder_file(const Folder *f, const char *name) {
    const char *path = path_join(f->arena, f->path, name);
    return path_exists(path) ? path : NULL;
}

/* A file of the folder; one that is missing is as an empty one. */
static const char *folder_text(const Folder *f, const char *name) {
    const char *path = folder_file(f, name);
    if (path == NULL) {
        return "";
    }
    FileMap map = file_map(f->arena, path);
    if (strnlen((const char *)map.data, map.size) < map.size ||
        !utf8_valid((const char *)map.data, map.size)) {
        fail(STATUS_INPUT, "%s: is not UTF-8 text", path);
    }
    return arena_copy(f->arena, (const char *)map.data, map.size);
}

/* From the first `open` up to the next `close`, both left out; empty if either is missing. */
static char *text_between(Arena *arena, const char *text, const char *open, const char *close) {
    const char *begin = strstr(text, open);
    const char *end = begin == NULL ? NULL : strstr(begin + strlen(open), close);
    return end == NULL
               ? arena_copy(arena, "", 0)
               : arena_copy(arena, begin + strlen(open), (size_t)(end - begin) - strlen(open));
}

static const Json *folder_json(const Folder *f, const char *name) {
    const char *path = folder_file(f, name);
    const Json *json = path != NULL ? json_read_file(f->arena, path) : NULL;
    if (json != NULL && !json_is(json, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: expected an object", path);
    }
    return json;
}

/* Only what refsae drew. */
static void show_figure(const Folder *f, const char *name, const char *caption) {
    static const char begin[] = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rf\"";
    const char *text = folder_text(f, name);
    if (strncmp(text, begin, strlen(begin)) != 0) {
        return;
    }
    char *inside = text_between(f->arena, text, begin, "</svg>");
    if (*inside == '\0') {
        fail(STATUS_INPUT, "%s: the figure ends too early", path_join(f->arena, f->path, name));
    }
    page_figure(f->page, caption, arena_format(f->arena, "%s%s</svg>\n", begin, inside));
}

/* " [0.71, 0.83]"; nothing where there is none */
static const char *interval_text(const Json *object, const char *figure, Arena *arena) {
    const Json *ends = json_first(json_get(object, arena_format(arena, "%s_ci", figure)));
    char low[TEXT_NUMBER_SIZE], high[TEXT_NUMBER_SIZE];
    text_number(low, json_double(ends), 3);
    text_number(high, json_double(ends == NULL ? NULL : ends->next), 3);
    return ends == NULL ? "" : arena_format(arena, " [%s, %s]", low, high);
}

/* A member with its interval. Numbers keep a column's points in line; a control is its score and
 * (magnitude). */
static void show_cell(const Folder *f, const Json *object, const char *key) {
    const Json *value = json_get(object, key);
    bool is_text = value == NULL || json_is(value, JSON_STRING);
    char text[TEXT_NUMBER_SIZE];
    double number = json_double(value), size = fabs(number);
    text_number(text, number, 4);
    if (size >= 1e-4 && size < 1e3 && floor(size) != size) {
        snprintf(text, sizeof text, "%s%#.4g", number < 0 ? "−" : "", size);
    }
    const char *cell =
        is_control(value)
            ? arena_format(f->arena, "%.2f%s (%.2f)", json_double(json_get(value, "score")),
                           interval_text(value, "score", f->arena),
                           json_double(json_get(value, "magnitude")))
            : arena_format(f->arena, "%s%s", text, interval_text(object, key, f->arena));
    page_cell(f->page, !is_text, is_text ? json_string(value) : cell);
}

typedef struct Columns {
    const char *outer[64], *name[64]; /* outer "": a member of the line itself */
    const char *titles[64];
    bool number[64];
    size_t count;
} Columns;

/* Adds what can be a cell, unless it is there; intervals stand in the cell of their figure. */
static void column_add(Columns *c, const char *outer, const Json *value, Arena *arena) {
    size_t i = 0, most = sizeof c->name / sizeof *c->name;
    while (i < c->count &&
           (strcmp(c->name[i], value->key) != 0 || strcmp(c->outer[i], outer) != 0)) {
        i++;
    }
    bool cell = !figure_is_interval(value) && (!json_is(value, JSON_OBJECT) || is_control(value));
    if (i == c->count && i < most && cell) {
        c->outer[i] = outer;
        c->name[i] = value->key;
        c->titles[i] = arena_format(arena, "%s%s%s", outer, *outer == '\0' ? "" : " ", value->key);
        c->number[i] = !json_is(value, JSON_STRING);
        c->count++;
    }
}

/* Columns are the keys, with these titles ("attribute|method", or NULL), and all members of all
 * lines in the order in which they come; of a member that is an object its own. No lines: no
 * table. */
static void show_table(const Folder *f, const char *caption, const char *keys, const Lines *lines) {
    Columns columns = {.count = 0};
    for (size_t i = 0; i < lines->count; i++) {
        for (const Json *v = json_first(lines->list[i].values); v != NULL; v = v->next) {
            column_add(&columns, "", v, f->arena);
            for (const Json *w = v->child; json_is(v, JSON_OBJECT) && w != NULL; w = w->next) {
                if (!is_control(v)) {
                    column_add(&columns, v->key, w, f->arena);
                }
            }
        }
    }
    if (lines->count > 0) {
        page_table(f->page, caption, keys, columns.titles, columns.number, columns.count);
    }
    for (size_t i = 0; i < lines->count; i++) {
        const Line *line = &lines->list[i];
        for (size_t k = 0; k < 3 && line->keys[k] != NULL; k++) {
            page_cell(f->page, false, line->keys[k]);
        }
        for (size_t c = 0; c < columns.count; c++) {
            const Json *object =
                *columns.outer[c] == '\0' ? line->values : json_get(line->values, columns.outer[c]);
            show_cell(f, object, columns.name[c]);
        }
    }
}

/* ---- the page: training, questions, the layer analysis ---- */

/* train.csv: steps, first and last loss. */
static void show_training(const Folder *f) {
    const char *path = folder_file(f, "train.csv"), *line = folder_text(f, "train.csv");
    int column = csv_column(line, "loss");
    double begin = 0, end = 0;
    size_t steps = 0;
    if (path != NULL && column < 0) {
        fail(STATUS_INPUT, "%s: no column 'loss'", path);
    }
    while (column >= 0 && *(line = csv_line_next(line)) != '\0') {
        if (!csv_number(line, column, &end)) {
            fail(STATUS_INPUT, "%s: step %zu: no loss", path, steps + 1);
        }
        begin = steps++ == 0 ? end : begin;
    }
    if (steps > 0) {
        page_section(f->page, "Training of the adapter");
        page_value(f->page, "training steps", "%zu", steps);
        page_value(f->page, "loss of the first step (nats)", "%.3f", begin);
        page_value(f->page, "loss of the last step (nats)", "%.3f", end);
    }
    show_figure(f, "loss.svg", "Loss of the adapter's training");
}

/* Numbers of scores.json, those of an object inside under both names: "yes no f1". All but the
 * counts are shares. */
static void show_scores(const Folder *f, const Json *object, const char *outer) {
    static const char counts[] = " questions skipped scored ";
    for (const Json *v = object->child; v != NULL; v = v->next) {
        char *label = arena_format(f->arena, "%s%s%s", outer, *outer != '\0' ? " " : "", v->key);
        bool is_count = strstr(counts, arena_format(f->arena, " %s ", v->key)) != NULL;
        for (char *c = label; *c != '\0'; c++) {
            *c = *c == '_' ? ' ' : *c;
        }
        if (json_is(v, JSON_NUMBER)) {
            page_value(f->page, label, is_count ? "%.0f" : "%.1f %%",
                       json_double(v) * (is_count ? 1 : 100));
        } else if (json_is(v, JSON_OBJECT) && *outer == '\0') {
            show_scores(f, v, v->key);
        }
    }
}

static void show_layers(const Folder *f, const Json *result) {
    static const char *const captions[METRICS] = {
        "Mean squared error of the SAE's reconstruction; 0: perfect. Image tokens have become "
        "language where their curve meets the control's.",
        "Share of the SAE's features that are active; 0: none, 1: all. Read as the error above.",
        "Share of the judged examples in which one of the strongest features that are rare enough "
        "has a description that matches the answer; 0: in none, 1: in all."};
    const Json *convergence = json_get(result, "convergence"), *layers = json_get(result, "layers"),
               *distance = json_get(result, "distance"), *left_out = json_get(result, "left_out"),
               *verdicts = json_get(result, "verdicts");
    Lines lines = {.arena = f->arena};
    page_section(f->page, "Image tokens through the layers");
    page_value(f->page, "examples", "%.0f", json_double(json_get(result, "examples")));
    page_value(f->page, "of them judged", "%.0f", json_double(json_get(result, "judged")));
    if (verdicts != NULL) {
        page_value(f->page, "verdicts used", "%.0f of %.0f",
                   json_double(json_get(verdicts, "used")),
                   json_double(json_get(verdicts, "given")));
        page_value(f->page, "questions without one: no", "%.0f",
                   json_double(json_get(verdicts, "missing")));
    }
    page_value(f->page, "layers with an SAE", "%zu", layers == NULL ? 0 : layers->length / GROUPS);
    page_paragraph(
        f->page,
        "Image tokens (vlm_img), the text after them (vlm_imgtext) and a text-only control that "
        "states the answer (llm_text), each read at hook_resid_post through the SAE of the same "
        "layer. The convergence layer of MSE or sparsity is the first from which that of image "
        "tokens stays within a factor of %.3g of the control's.",
        json_double(json_get(convergence, "factor")));
    const char *published =
        json_get(convergence, "published") == NULL ? "" : " Dashed: 2506.11976, by its own layers.";
    for (Metric m = 0; m < METRICS; m++) {
        show_figure(f, arena_format(f->arena, "%s.svg", layer_metrics[m].name),
                    arena_format(f->arena, "%s%s", captions[m], published));
    }
    lines_add_all(&lines, NULL, layers);
    show_table(f,
               "Means over examples. permuted and gaussian are controls that replace the image "
               "tokens. Loss is of the first answer's tokens when the SAE's output replaces the "
               "group's stream; recovered 1: as untouched, 0: as with the stream ablated, below 0: "
               "worse. Where ablation itself moves the loss by little, it is a ratio of two "
               "small numbers and can be anything. –: cannot be computed.",
               NULL, &lines);
    if (distance != NULL) {
        page_section(f->page, "Compared with the published curves");
        page_paragraph(f->page, "Mean over layers of |log10(ours / published)|, for the match rate "
                                "of |ours − published|:");
        for (const Json *v = json_first_member(distance); v != NULL; v = v->next) {
            page_fact(f->page, v->key, "%.3f", json_double(v));
        }
    }
    for (const Json *v = json_first(left_out); v != NULL; v = v->next) {
        page_fact(f->page, "left out", "%s", json_string(v));
    }
}

/* ---- the page: SAGE ---- */

static void show_cross_section(const Folder *f, const Json *cross, const Json *tests, size_t a) {
    const char *name = cross->key;
    char spearman[TEXT_NUMBER_SIZE];
    const Json *nodes = json_get(cross, "nodes"), *share = json_get(cross, "share");
    Lines lines = {.arena = f->arena};
    page_section(f->page, arena_format(f->arena, "Cross-section of %s", name));
    show_figure(f, figure_name(f->arena, "heat", name, a),
                "Attribution score of each node: by how much m is expected to change if this node "
                "alone took its value from a prompt with another value of the attribute. Outlined: "
                "the cross-section. Of many components those with the largest scores; all are in "
                "cross_sections.csv.");
    text_number(spearman, json_double(json_get(cross, "spearman")), 3);
    if (json_is(share, JSON_NUMBER)) {
        page_paragraph(
            f->page,
            "The walk down these scores carries %.1f %% of all |score|; of the nodes walked, %zu "
            "remain once those are left out whose output another one already holds. A score is a "
            "first-order estimate, so the true effect on m of patching one node at a time was "
            "measured for them and for random others. The two orders agree with a Spearman "
            "correlation of %s (1: the same order, 0: unrelated).",
            100 * json_double(share), nodes == NULL ? 0 : nodes->length, spearman);
    }
    page_paragraph(f->page,
                   "With all its nodes at their training means the mean m is %.3g%s: a resolution "
                   "(share of m that goes) of %.3g.",
                   json_double(json_get(tests, "m_ablated")),
                   interval_text(tests, "m_ablated", f->arena),
                   json_double(json_get(tests, "resolution")));
    lines_add_all(&lines, "yes", nodes);
    lines_add_all(&lines, "random other", json_get(cross, "others"));
    show_table(f, "Scores, and what patching the node really does to m", "chosen", &lines);
}

static void show_fits(const Folder *f, const Json *dictionaries) {
    Lines lines = {.arena = f->arena};
    page_section(f->page, "How well dictionaries rebuild the nodes");
    page_paragraph(
        f->page,
        "r2 on the test prompts: 1 is a perfect rebuild, 0 no better than the mean activation, "
        "below 0 worse; r2_stream is the same of what the node writes to the residual stream. "
        "mean, mse and weighted are supervised: they know every attribute's value and add one "
        "vector for each. sae is the projection that the tests use; weights, span and encoder are "
        "the ways to carry a residual-stream SAE to a node; native is an SAE of the node's own. "
        "The weight of an attribute is the share of its mean feature that the weighted dictionary "
        "keeps at this node: 0 where the attribute does not move it.");
    for (const Json *c = json_first_member(dictionaries); c != NULL; c = c->next) {
        lines_add_all(&lines, c->key, c);
    }
    show_table(f, "Nodes of each cross-section", "cross-section", &lines);
}

static double feature_f1(const Json *interpretation) {
    return json_double(json_get(interpretation, "f1"));
}

/* The best by F1, equal ones in their order. */
static void show_interpretations(const Folder *f, const Json *sage) {
    const size_t most = 30;
    const Json *interpretations = json_get(sage, "interpretations"),
               *chance = json_get(sage, "interpretations_by_chance");
    size_t all = interpretations == NULL ? 0 : interpretations->length;
    Lines best = {.arena = f->arena}, counts = best, sweep = best;
    for (const Json *v = json_first(interpretations); v != NULL; v = v->next) {
        lines_add(&best, NULL, NULL, NULL, v);
        for (size_t i = best.count; i > 1 && feature_f1(v) > feature_f1(best.list[i - 2].values);
             i--) {
            best.list[i - 1] = best.list[i - 2];
            best.list[i - 2] = (Line){.values = v};
        }
        best.count = best.count < most ? best.count : most;
    }
    page_section(f->page, "What SAE features stand for");
    page_paragraph(
        f->page,
        "A feature's interpretation is the predicate (a value of an attribute, one in one form, a "
        "name at a place of the text, a label of a value, or a union of values) that best predicts "
        "on which test prompts the feature is active. F1 is the harmonic mean of how often the "
        "predicate holds when the feature is active and how often the feature is active when the "
        "predicate holds; 1: they are the same. Support: in how many test prompts it holds.");
    show_figure(f, "kinds.svg",
                "Figure 5 of 2405.08366: which kinds of predicate the features of each node have. "
                "A number counts features; an empty row has none that reaches the F1.");
    for (const Json *t = json_first_member(chance); t != NULL; t = t->next) {
        lines_add(&counts, t->key, NULL, NULL, t);
    }
    show_table(f,
               "Features whose interpretation reaches F1 ≥ t, and how many do by chance: with "
               "the prompts' values permuted",
               "t", &counts);
    char *caption = arena_format(
        f->arena, "The best %zu of %zu interpretations; all are in sage.json", best.count, all);
    show_table(f, caption, NULL, &best);
    page_paragraph(
        f->page,
        "Do the features that stand for something carry the task? Over t: sufficiency once the "
        "features of F1 < t are subtracted (1: they were not needed), and necessity once those of "
        "F1 ≥ t are (1: this hurts as much as replacing the nodes by their mean; 0: it does no "
        "harm). What the SAE does not explain stays.");
    show_figure(f, "f1_sufficiency.svg",
                "Figure 30 of 2405.08366. At t = 0 nothing is subtracted.");
    show_figure(f, "f1_necessity.svg",
                "Figure 31 of 2405.08366. At t = 0 every feature is subtracted.");
    for (const Json *c = json_first_member(json_get(sage, "tests")); c != NULL; c = c->next) {
        for (const Json *m = json_first_member(c); m != NULL; m = m->next) {
            for (const Json *t = json_first_member(json_get(m, "f1")); t != NULL; t = t->next) {
                lines_add(&sweep, c->key, m->key, t->key, t);
            }
        }
    }
    show_table(f, "The same in numbers, with the features of F1 ≥ t", "cross-section|method|t",
               &sweep);
}

static void show_methods(const Folder *f, const Json *tests) {
    Lines lines = {.arena = f->arena};
    page_section(f->page, "Sufficiency and necessity");
    page_paragraph(f->page,
                   "Sufficiency asks whether a dictionary holds all that matters: the activations "
                   "of a cross-section are replaced by what the dictionary makes of them, and m is "
                   "divided by that of the untouched model. 1: nothing was lost; 0: the model no "
                   "longer prefers the right answer. recovered is the same on a scale from the "
                   "ablated cross-section (0) to the untouched model (1).");
    show_figure(f, "sufficiency.svg",
                "Figure 2 of 2405.08366. The dashed line, 1, is the untouched model (none). What "
                "leaves the range from −1 to 2 is drawn at its end; whiskers: 95 % intervals.");
    page_paragraph(f->page,
                   "Necessity asks whether what matters is in the dictionary and nowhere else: the "
                   "dictionary's part is taken away and its error left in place. 1: this hurts as "
                   "much as replacing the activations by their mean; 0: the model does as well as "
                   "before, so what it used was in the error.");
    show_figure(f, "necessity.svg",
                "Figure 2 of 2405.08366. The dashed line, 1, is mean ablation; none is 0.");
    for (const Json *c = json_first_member(tests); c != NULL; c = c->next) {
        const char *why = untold(c, NULL, f->arena);
        if (why != NULL) {
            page_fact(f->page, c->key, "%s", why);
        }
        for (const Json *m = json_first_member(c); m != NULL; m = m->next) {
            lines_add(&lines, c->key, m->key, NULL, m);
        }
    }
    show_table(
        f,
        "mean, mse and weighted are the supervised references, sae what is judged, native an "
        "SAE of the nodes' own (how much the projection loses), random the same SAE with "
        "random decoder directions, none the model without an edit. Closer to 1 is better "
        "everywhere.",
        "cross-section|method", &lines);
}

static void show_edits(const Folder *f, const Json *tests) {
    static const char *const edits[2] = {"control", "control_aware"};
    static const char *const captions[2] = {
        "score [interval] (magnitude) of the edit that ignores interpretations, by k",
        "The same of the edit that is aware of interpretations, by k"};
    Lines lines[2] = {{.arena = f->arena}, {.arena = f->arena}};
    size_t i = 0;
    page_section(f->page, "Sparse control");
    page_paragraph(
        f->page,
        "Control asks whether an attribute can be changed with few features: the nodes are edited "
        "towards the activations of a prompt with another value, and the score is the share of "
        "test prompts whose predicted token is the one that those activations themselves bring "
        "about. 1: the edit does the whole job. A supervised edit swaps one vector; an SAE edit "
        "moves at most k features at each node, chosen greedily whatever they mean, or (aware) by "
        "the F1 of what they stand for. The magnitude says how much of the reconstruction was "
        "taken away: near 1 all of it was replaced, so a good edit has a high score at a low "
        "magnitude.");
    show_figure(
        f, "edits.svg",
        "Figure 3 of 2405.08366: the score of editing an attribute (row) in a cross-section "
        "(column), for features ignoring interpretations.");
    for (const Json *c = json_first_member(tests); c != NULL; c = c->next) {
        show_figure(f, figure_name(f->arena, "control", c->key, i++),
                    "Figure 4 of 2405.08366: score against magnitude as k grows. Left and high is "
                    "good. Solid: whatever features mean; dashed: aware of it. What leaves the "
                    "axes is drawn at their end.");
    }
    for (const Json *c = json_first_member(tests); c != NULL; c = c->next) {
        const Json *attributes = json_below(c, "none", "control");
        for (const Json *a = json_first_member(attributes); a != NULL; a = a->next) {
            const char *why = untold(c, a->key, f->arena);
            if (why != NULL) {
                page_fact(f->page, arena_format(f->arena, "%s in %s", a->key, c->key), "%s", why);
            }
            for (const Json *m = json_first_member(c); m != NULL; m = m->next) {
                for (int e = 0; e < 2; e++) {
                    lines_add(&lines[e], c->key, a->key, m->key, json_below(m, edits[e], a->key));
                }
            }
        }
    }
    show_table(f, captions[0], "cross-section|attribute|method", &lines[0]);
    show_table(f, captions[1], "cross-section|attribute|method", &lines[1]);
}

static void show_sage(const Folder *f, const Json *sage) {
    const Json *baseline = json_get(sage, "baseline"), *prompts = json_get(sage, "prompts"),
               *crosses = json_get(sage, "cross_sections"), *tests = json_get(sage, "tests");
    const char *name = json_string(json_get(sage, "task")),
               *model = json_string(json_get(sage, "model"));
    size_t a = 0;
    page_section(f->page, arena_format(f->arena, "SAGE: %s, %s", name, model));
    page_value(f->page, "answers right", "%.1f %%",
               100 * json_double(json_get(baseline, "accuracy")));
    page_value(f->page, "prompts with m above 0", "%.1f %%",
               100 * json_double(json_get(baseline, "m_positive")));
    page_value(
        f->page,
        arena_format(f->arena, "mean m (nats)%s", interval_text(baseline, "m_clean", f->arena)),
        "%.3g", json_double(json_get(baseline, "m_clean")));
    page_value(f->page, "training and test prompts", "%.0f + %.0f",
               json_double(json_get(prompts, "train")), json_double(json_get(prompts, "test")));
    page_paragraph(
        f->page,
        "The task “%s” has attributes that a person can name. SAGE takes the parts of the "
        "model that carry each of them (cross-sections), builds the best dictionary that knowledge "
        "of the attribute allows, and holds sparse autoencoders against it. m is log p(right "
        "answer) − log p(wrong answer) at the last token: above 0 the model prefers the right "
        "one. Every test runs in every cross-section and for every attribute; intervals [low, "
        "high] are 95 %% of resampled test prompts. Where ablating a cross-section moves m by "
        "less than 0.1 of it (resolution), or the model without an edit (none) already answers "
        "as with the counterfactual in more than 0.9 of the prompts, figures cannot tell "
        "methods apart: they say so, and what cannot be computed is left out.",
        name);
    for (const Json *v = json_first(json_get(prompts, "dropped")); v != NULL; v = v->next) {
        page_fact(f->page, "dropped: not one token", "%s", json_string(v));
    }
    for (const Json *c = json_first_member(crosses); c != NULL; c = c->next) {
        show_cross_section(f, c, json_get(tests, c->key), a++);
    }
    show_figure(f, "nodes.svg",
                "How many nodes carry an attribute: m with the first nodes of the walk patched "
                "from the counterfactual prompt, as a share of what patching all nodes does. No "
                "curve: all together they move m by less than 0.1 of it.");
    show_methods(f, tests);
    show_edits(f, tests);
    show_fits(f, json_get(sage, "dictionaries"));
    show_interpretations(f, sage);
}

/* ---- the page: what was found, in words, before all figures ---- */

static bool is_permuted(const Folder *f) {
    return json_text_is(json_get(f->scores, "image_tokens"), "permuted");
}

static bool same_text(const Json *a, const Json *b, const char *key) {
    return strcmp(json_string(json_get(a, key)), json_string(json_get(b, key))) == 0;
}

/* Of one adapter and as many questions, one with the pictures' own tokens and one without. */
static bool are_partners(const Json *a, const Json *b) {
    return json_get(a, "adapter_sha256") != NULL && same_text(a, b, "adapter_sha256") &&
           !same_text(a, b, "image_tokens") &&
           json_double(json_get(a, "questions")) == json_double(json_get(b, "questions"));
}

static void find_answers(const Folder *f, const Folder *all, size_t count) {
    const Json *questions = json_get(f->scores, "questions");
    double exact = 100 * json_double(json_get(f->scores, "exact_match"));
    if (isnan(exact) || is_permuted(f)) {
        return;
    }
    page_paragraph(
        f->page,
        "<b>Seeing</b> (%s). Of %.0f questions about pictures, %.1f %% are answered in the "
        "reference's own words with the picture's own image tokens.",
        f->name, json_double(questions), exact);
    for (size_t i = 0; i < count; i++) {
        if (are_partners(f->scores, all[i].scores)) {
            page_paragraph(f->page,
                           "Control: with image tokens of other pictures in their place (%s) it is "
                           "%.1f %%. Words alone reach that much; what lies above was seen.",
                           all[i].name, 100 * json_double(json_get(all[i].scores, "exact_match")));
        }
    }
}

enum {
    EXAMPLES = 3
};

typedef struct Examples { /* the first pictures of features.jsonl */
    Arena *arena;
    double layer;
    size_t count;
    const char *image[EXAMPLES] /* paths */, *features[EXAMPLES], *question[EXAMPLES],
        *answer[EXAMPLES];
} Examples;

/* Which of them a path, or the end of one, names. */
static size_t example_of(const Examples *e, const char *image) {
    size_t i = 0;
    for (; i < e->count; i++) {
        size_t whole = strlen(e->image[i]), end = strlen(image);
        const char *path = e->image[i];
        if (end <= whole && strcmp(path + whole - end, image) == 0 &&
            (end == whole || path[whole - end - 1] == '/')) {
            break;
        }
    }
    return i;
}

static bool take_features(Examples *e, const Json *line) {
    const char *image = json_string(json_get(line, "image"));
    size_t i = example_of(e, image);
    bool wanted = json_text_is(json_get(line, "group"), group_names[GROUP_IMG]) &&
                  json_double(json_get(line, "layer")) == e->layer && i < EXAMPLES;
    if (wanted && i == e->count && *image != '\0') {
        const char *all = "";
        for (const Json *v = json_first(json_get(line, "features")); v != NULL; v = v->next) {
            const Json *number = json_get(v, "feature"), *words = json_get(v, "description");
            all =
                arena_format(e->arena, "%s%s%s %s", all, *all == '\0' ? "" : "; ",
                             json_is(number, JSON_NUMBER) ? number->text : "", json_string(words));
        }
        e->image[i] = arena_format(e->arena, "%s", image);
        e->features[i] = all;
        e->count++;
    }
    return e->count < EXAMPLES;
}

/* The first answer about each picture. */
static bool take_answer(Examples *e, const Json *line) {
    size_t i = example_of(e, json_string(json_get(line, "image"))), open = 0;
    if (i < e->count && e->question[i] == NULL) {
        bool right = json_is(json_get(line, "exact"), JSON_TRUE);
        e->question[i] = arena_format(e->arena, "%s", json_string(json_get(line, "prompt")));
        e->answer[i] = arena_format(e->arena, "%s (%s)", json_string(json_get(line, "text")),
                                    right ? "right" : "wrong");
    }
    for (i = 0; i < e->count; i++) {
        open += e->question[i] == NULL;
    }
    return open > 0;
}

typedef bool TakeLine(Examples *examples, const Json *line);

/* The lines of a file, if there is one, as long as `take` asks for more. */
static void take_lines(const Folder *f, const char *name, Examples *e, TakeLine *take) {
    const char *path = folder_file(f, name);
    if (path == NULL) {
        return;
    }
    Arena *scratch = arena_new(), *one = arena_within(scratch);
    FILE *file = file_open(scratch, path);
    size_t number = 0;
    const Json *line = json_line(one, file, path, &number);
    while (line != NULL && take(e, line)) {
        arena_reset(one);
        line = json_line(one, file, path, &number);
    }
    arena_free(scratch);
}

/* A number of a group in the layers that have one: where it is largest, or the first or last. */
typedef struct LayerValue {
    double layer, value;
} LayerValue;

static LayerValue layer_pick(const Json *layers, Group g, const char *key, int pick) {
    LayerValue found = {NAN, NAN};
    for (const Json *v = json_first(layers); v != NULL; v = v->next) {
        double value = json_double(json_get(v, key));
        bool of_group = json_text_is(json_get(v, "group"), group_names[g]);
        if (of_group && !isnan(value) &&
            (isnan(found.value) || pick > 0 || (pick == 0 && value > found.value))) {
            found = (LayerValue){json_double(json_get(v, "layer")), value};
        }
    }
    return found;
}

/* How image tokens' curve runs, and where it meets the text control's. */
static void find_meeting(const Folder *f, Metric m) {
    const Json *layers = json_get(f->layers, "layers"),
               *convergence = json_get(f->layers, "convergence");
    const char *key = layer_metrics[m].name;
    char *name = arena_format(f->arena, "%s_layer", key);
    double met = json_double(json_get(convergence, name));
    LayerValue begin = layer_pick(layers, GROUP_IMG, key, -1),
               end = layer_pick(layers, GROUP_IMG, key, 1);
    if (isnan(end.value)) {
        return;
    }
    page_paragraph(
        f->page,
        "<b>%s</b> (%s). Image tokens: %.3g in layer %.0f, %.3g in layer %.0f; the text-only "
        "control "
        "there: %.3g. Layer of %zu from which on the two are within a factor of %.3g: %s.%s",
        layer_metrics[m].title, f->name, begin.value, begin.layer, end.value, end.layer,
        layer_pick(layers, GROUP_TEXT, key, 1).value, layers->length / GROUPS,
        json_double(json_get(convergence, "factor")), convergence_text(f->arena, convergence, name),
        isnan(met) ? " In these layers image tokens do not come to look like text." : "");
}

/* Are the answers of `other` those of the adapter that f was analysed with? */
static bool is_answered_by(const Folder *f, const Folder *other) {
    const char *adapter = json_string(json_get(other->scores, "adapter_sha256"));
    return !is_permuted(other) &&
           (f == other ||
            (*adapter != '\0' && strstr(folder_text(f, "manifest.json"), adapter) != NULL));
}

static void find_layers(const Folder *f, const Folder *all, size_t count) {
    const Json *layers = json_get(f->layers, "layers");
    LayerValue match = layer_pick(layers, GROUP_IMG, "match", 0),
               text = layer_pick(layers, GROUP_TEXT, "match", 0);
    Examples e = {.arena = f->arena, .layer = match.layer};
    static const char *const titles[] = {"picture", "question", "answer",
                                         "strongest features on its image tokens"};
    static const bool number[4] = {false};
    find_meeting(f, METRIC_MSE);
    find_meeting(f, METRIC_SPARSITY);
    if (isnan(match.value)) {
        return;
    }
    page_paragraph(
        f->page,
        "<b>Meaning</b> (%s). A strong feature on image tokens is described by the answer in "
        "at most %.1f %% of the examples (layer %.0f); on the text that states the "
        "answer in at most %.1f %% (layer %.0f).",
        f->name, 100 * match.value, match.layer, 100 * text.value, text.layer);
    take_lines(f, "features.jsonl", &e, take_features);
    for (size_t i = 0; i < count; i++) {
        if (is_answered_by(f, &all[i])) {
            take_lines(&all[i], "answers.jsonl", &e, take_answer);
        }
    }
    if (e.count > 0) {
        page_table(f->page,
                   arena_format(f->arena,
                                "The first pictures, unselected, with a question, what the model "
                                "answers, and features in layer %.0f",
                                match.layer),
                   NULL, titles, number, 4);
    }
    for (size_t i = 0; i < e.count; i++) {
        page_cell_picture(f->page, e.image[i]);
        page_cell(f->page, false, e.question[i] == NULL ? "" : e.question[i]);
        page_cell(f->page, false, e.answer[i] == NULL ? "" : e.answer[i]);
        page_cell(f->page, false, e.features[i]);
    }
}

/* "After Alice [IO] and Tom [S1] went …" */
static const char *example_text(const Folder *f) {
    const Json *example = folder_json(f, "example.json");
    const char *text = "";
    int place = 0;
    for (const Json *v = json_first(json_get(example, "tokens")); v != NULL; v = v->next, place++) {
        text = arena_format(f->arena, "%s%s", text, json_string(v));
        for (const Json *p = json_first_member(json_get(example, "positions")); p != NULL;
             p = p->next) {
            if (json_double(p) == place) {
                text = arena_format(f->arena, "%s [%s]", text, p->key);
            }
        }
    }
    return text;
}

/* The edit by at most k features that gains most over none, of the attribute that the cross-section
 * was found for, or where it bears no attribute's name, of any: "0.42 (none 0.15, supervised 0.98;
 * S, k = 1)". A dash where edits cannot tell methods apart. */
static const char *best_edit(const Json *cross, Arena *arena) {
    const Json *attributes = json_below(cross, "sae", "control"),
               *own = cross == NULL ? NULL : json_get(attributes, cross->key);
    const char *text = "–";
    double best = -INFINITY;
    for (const Json *a = json_first_member(attributes); a != NULL; a = a->next) {
        if ((own != NULL && a != own) || untold(cross, a->key, arena) != NULL) {
            continue;
        }
        double none = json_double(json_get(a, "none")),
               supervised = json_double(json_below(a, "supervised", "score"));
        for (const Json *k = json_first_member(a); k != NULL; k = k->next) {
            double score = json_double(json_get(k, "score"));
            if (strcmp(k->key, "supervised") != 0 && score - none > best) {
                best = score - none;
                text = arena_format(arena, "%.2f (none %.2f, supervised %.2f; %s, k = %s)", score,
                                    none, supervised, a->key, k->key);
            }
        }
    }
    return text;
}

/* "L2.H0 z at END −1.70": with what patching it does to m, where that was measured. */
static const char *node_text(const Json *node, Arena *arena) {
    const char *name = json_string(json_get(node, "node")), *hook = strstr(name, "hook_"),
               *layer = name + strcspn(name, "0123456789");
    const Json *head = json_get(node, "head"), *effect = json_get(node, "effect");
    bool of_head = json_is(head, JSON_NUMBER), measured = json_is(effect, JSON_NUMBER);
    char moves[TEXT_NUMBER_SIZE];
    text_number(moves, json_double(effect), 3);
    return arena_format(arena, "L%.*s%s%s %s at %s%s%s", (int)strspn(layer, "0123456789"), layer,
                        of_head ? ".H" : "", of_head ? head->text : "",
                        hook == NULL ? name : hook + strlen("hook_"),
                        json_string(json_get(node, "position")), measured ? " " : "",
                        measured ? moves : "");
}

/* The tests of a folder, if its SAEs can be compared with those of f: one model, one task. */
static const Json *rival_tests(const Folder *f, const Folder *other) {
    bool rivals =
        same_text(f->sage, other->sage, "task") && same_text(f->sage, other->sage, "model");
    return rivals ? json_get(other->sage, "tests") : NULL;
}

/* compared: with all that tells SAEs apart. */
static void find_cross_section(const Folder *f, const Json *cross, bool compared) {
    static const char *const figures[] = {"sufficiency", "necessity", "recovered"};
    const Json *sae = json_get(cross, "sae"),
               *nodes = json_below(json_get(f->sage, "cross_sections"), cross->key, "nodes");
    const char *strongest = "";
    int n = 0;
    for (const Json *v = json_first(nodes); v != NULL && n < 3; v = v->next, n++) {
        strongest =
            arena_format(f->arena, "%s%s%s", strongest, n == 0 ? "" : "; ", node_text(v, f->arena));
    }
    page_cell(f->page, false, cross->key);
    if (compared) {
        page_cell(f->page, false, f->name);
    }
    page_cell(f->page, false, strongest);
    page_cell(f->page, true, best_edit(cross, f->arena));
    for (int i = 0; i < (compared ? 3 : 2); i++) {
        show_cell(f, sae, figures[i]);
    }
    if (compared) {
        show_cell(f, json_below(sae, "f1", "0.8"), "features");
    }
}

/* A table for all folders of one task and model, at the first of them: each cross-section with its
 * folders one below the other. */
static void find_sage(const Folder *all, size_t count, size_t at) {
    static const char *const titles[] = {"strongest nodes (effect on m)",
                                         "SAE's best edit",
                                         "SAE's sufficiency",
                                         "necessity",
                                         "recovered",
                                         "features of F1 ≥ 0.8"};
    static const bool number[6] = {false, true, true, true, true, true};
    const Folder *f = &all[at];
    const char *text = example_text(f);
    size_t rivals = 0, first = count;
    for (size_t i = count; i-- > 0;) {
        if (json_first_member(rival_tests(f, &all[i])) != NULL) {
            first = i;
            rivals++;
        }
    }
    if (first != at) {
        return;
    }
    page_paragraph(f->page,
                   "<b>%s in %s</b> (%s): %.1f %% of the test prompts are answered right. %s%s",
                   json_string(json_get(f->sage, "task")), json_string(json_get(f->sage, "model")),
                   f->name, 100 * json_double(json_below(f->sage, "baseline", "accuracy")),
                   *text == '\0' ? "" : "A prompt, its positions named: ", text);
    page_table(f->page,
               "What carries each attribute, and what the SAE makes of it. Edit: of prompts the "
               "share that then answer as with the other value, by the SAE's best k features, by "
               "nothing and by the best that knowledge of the attribute allows; sufficiency, "
               "necessity, recovered: 1 is all, 0 is nothing; –: cannot be told there.",
               rivals > 1 ? "cross-section|folder" : "cross-section", titles, number,
               rivals > 1 ? 6 : 4);
    for (size_t i = at; i < count; i++) {
        for (const Json *c = json_first_member(rival_tests(f, &all[i])); c != NULL; c = c->next) {
            for (size_t j = at; j < count; j++) {
                const Json *cross = json_get(rival_tests(f, &all[j]), c->key);
                if (cross != NULL && j < i) {
                    break; /* it came with that folder */
                }
                if (cross != NULL) {
                    find_cross_section(&all[j], cross, rivals > 1);
                }
            }
        }
    }
}

static void show_findings(const Folder *all, size_t count) {
    for (size_t i = 0; i < count; i++) {
        find_answers(&all[i], all, count);
        find_layers(&all[i], all, count);
        find_sage(all, count, i);
    }
}

/* ---- manifest.json: what runs read and wrote ---- */

/* Named without a digest: a machine's times; and what shows or is the manifest itself. */
static bool is_undigested(const char *name) {
    return strcmp(name, "timing.csv") == 0 || strcmp(name, "report.html") == 0 ||
           strcmp(name, "manifest.json") == 0;
}

static int compare_notes(const void *a, const void *b) {
    return strcmp((*(const FileNote *const *)a)->path, (*(const FileNote *const *)b)->path);
}

/* The name of an output: in the folder its last part, elsewhere a path, which has a slash. */
static const char *output_name(const char *out, const char *path, Arena *arena) {
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    return strcmp(path_join(arena, out, name), path) == 0 ? name
           : slash == NULL                                ? path_join(arena, ".", path)
                                                          : path;
}

/* Where it is now. */
static const char *output_path(const Folder *f, const char *name) {
    return strchr(name, '/') == NULL ? path_join(f->arena, f->path, name) : name;
}

/* The run of each command; NULL: none. */
static const Json *manifest_runs(const Folder *f) {
    return json_get(folder_json(f, "manifest.json"), "runs");
}

static void manifest_file(JsonOut *json, const char *path, int64_t bytes, const char *sha256) {
    json_out_object(json, NULL);
    json_out_text(json, "path", path);
    if (*sha256 != '\0') {
        json_out_int(json, "bytes", bytes);
        json_out_text(json, "sha256", sha256);
    }
    json_out_end(json);
}

static void manifest_files(JsonOut *json, const Folder *f, bool written, const FileNote **notes,
                           size_t count, Progress *progress) {
    json_out_array(json, written ? "outputs" : "inputs");
    for (size_t i = 0; i < count; i++) {
        const char *path = notes[i]->path;
        if (notes[i]->written == written) {
            const char *name = written ? output_name(f->path, path, f->arena) : path;
            bool digested = !written || !is_undigested(name);
            char hex[65] = "";
            int64_t bytes = digested ? (int64_t)sha256_file(path, hex) : 0;
            manifest_file(json, name, bytes, hex);
            progress_set(progress, progress->done + 1, NULL);
        }
    }
    json_out_end(json);
}

/* Another command's, as it stands. */
static void copy_run(JsonOut *json, const Json *run) {
    json_out_object(json, run->key);
    for (const Json *v = json_first_member(run); v != NULL; v = v->next) {
        if (json_is(v, JSON_STRING)) {
            json_out_text(json, v->key, v->text);
            continue;
        }
        json_out_array(json, v->key);
        for (const Json *e = json_first(v); e != NULL; e = e->next) {
            int64_t bytes = 0;
            (void)json_int64(json_get(e, "bytes"), &bytes);
            manifest_file(json, json_string(json_get(e, "path")), bytes,
                          json_string(json_get(e, "sha256")));
        }
        json_out_end(json);
    }
    json_out_end(json);
}

/* NULL: it is as it was written. */
static const char *file_change(const char *path, const Json *file) {
    const char *sha256 = json_string(json_get(file, "sha256"));
    char hex[65];
    if (!path_exists(path)) {
        return "is missing";
    }
    if (*sha256 == '\0') {
        return NULL;
    }
    sha256_file(path, hex);
    return strcmp(hex, sha256) == 0 ? NULL : "has changed";
}

/* Figures that the last run of this command drew and this one did not would pass for its own. */
static void remove_stale(const Folder *f, const Json *before) {
    for (const Json *v = json_first(json_get(before, "outputs")); v != NULL; v = v->next) {
        const char *name = json_string(json_get(v, "path")), *path = output_path(f, name),
                   *ending = strrchr(name, '.');
        const FileNote *note = files_noted();
        while (note != NULL && strcmp(note->path, path) != 0) {
            note = note->next;
        }
        if (note == NULL && strchr(name, '/') == NULL && ending != NULL &&
            strcmp(ending, ".svg") == 0 && file_change(path, v) == NULL) {
            remove(path);
        }
    }
}

/* "analyze" */
static const char *run_name(const Console *console, Arena *arena) {
    const char *word = strchr(console->command, ' ') + 1;
    return arena_copy(arena, word, strcspn(word, " "));
}

void manifest_write(const char *out, uint64_t seed, const Console *console) {
    Arena *arena = arena_new();
    Folder f = {.path = out, .arena = arena};
    const Json *volatile before = NULL; /* what cannot be read is replaced */
    Error unread;
    ATTEMPT(&unread, before = manifest_runs(&f));
    fail_for_resources(&unread);
    OutFile *file = out_open(path_join(arena, out, "manifest.json"));
    const char *name = run_name(console, arena);
    size_t count = 0, room = 0;
    const FileNote **notes = NULL;
    for (const FileNote *n = files_noted(); n != NULL; n = n->next) {
        notes = arena_grow(arena, notes, &room, count + 1, sizeof *notes);
        notes[count++] = n;
    }
    if (count > 0) {
        qsort(notes, count, sizeof *notes, compare_notes);
    }
    remove_stale(&f, json_get(before, name));
    Progress progress = progress_start("digests", "files", 0, count, console->quiet);
    JsonOut json = json_out_start(file->stream, 4);
    json_out_object(&json, NULL);
    json_out_object(&json, "runs");
    for (const Json *run = json_first_member(before); run != NULL; run = run->next) {
        if (strcmp(run->key, name) != 0) {
            copy_run(&json, run);
        }
    }
    json_out_object(&json, name);
    json_out_text(&json, "command", console->command);
    json_out_text(&json, "version", REFSAE_VERSION);
    json_out_text(&json, "seed", arena_format(arena, "%llu", (unsigned long long)seed));
    manifest_files(&json, &f, false, notes, count, &progress);
    manifest_files(&json, &f, true, notes, count, &progress);
    json_out_end(&json);
    json_out_end(&json);
    json_out_end(&json);
    progress_end(&progress);
    out_commit(file);
    arena_free(arena);
}

/* Of files from v up to end, those with a digest, as sha256sum lists them. */
static void list_digest(const Json *v, const Json *end, char hex[65]) {
    Sha256 sha;
    sha256_start(&sha);
    for (; v != end; v = v->next) {
        const char *path = json_string(json_get(v, "path")), *slash = strrchr(path, '/'),
                   *name = slash == NULL ? path : slash + 1,
                   *digest = json_string(json_get(v, "sha256"));
        if (*digest != '\0') {
            sha256_add(&sha, digest, strlen(digest));
            sha256_add(&sha, "  ", 2);
            sha256_add(&sha, name, strlen(name));
            sha256_add(&sha, "\n", 1);
        }
    }
    sha256_end(&sha, hex);
}

/* How many files of a run are not as it read or wrote them. */
static size_t verify_run(const Folder *f, const Json *run, JsonOut *json, const Console *console) {
    static const char *const keys[2] = {"inputs", "outputs"}, *const names[2] = {"input", "output"};
    size_t count[2] = {0}, bad[2] = {0};
    char hex[65];
    json_out_object(json, run->key);
    json_out_array(json, "problems");
    for (int k = 0; k < 2; k++) {
        for (const Json *v = json_first(json_get(run, keys[k])); v != NULL; v = v->next) {
            const char *path = json_string(json_get(v, "path")),
                       *change = file_change(k == 0 ? path : output_path(f, path), v);
            count[k]++;
            if (change != NULL) {
                const char *problem = arena_format(f->arena, "%s %s %s", names[k], path, change);
                console_result(console, "%s: %s", run->key, problem);
                json_out_text(json, NULL, problem);
                bad[k]++;
            }
        }
    }
    json_out_end(json);
    json_out_int(json, "inputs", (int64_t)count[0]);
    json_out_int(json, "outputs", (int64_t)count[1]);
    if (bad[0] + bad[1] == 0) {
        console_result(console, "%s: %zu inputs and %zu outputs as written", run->key, count[0],
                       count[1]);
    }
    if (bad[1] == 0) {
        list_digest(json_first(json_get(run, "outputs")), NULL, hex);
        console_result(console, "%s: outputs: sha256 %s", run->key, hex);
        json_out_text(json, "outputs_sha256", hex);
    }
    json_out_end(json);
    return bad[0] + bad[1];
}

/* What lies in the folder and is no run's. */
static void verify_others(const Folder *f, const Json *runs, JsonOut *json,
                          const Console *console) {
    size_t count;
    char **names = path_list(f->arena, f->path, &count);
    json_out_array(json, "others");
    for (size_t i = 0; i < count; i++) {
        bool known = path_is_directory(path_join(f->arena, f->path, names[i]));
        for (const Json *run = json_first_member(runs); run != NULL; run = run->next) {
            for (const Json *v = json_first(json_get(run, "outputs")); v != NULL; v = v->next) {
                known |= json_text_is(json_get(v, "path"), names[i]);
            }
        }
        if (!known) {
            console_result(console, "%s: written by none of these runs", names[i]);
            json_out_text(json, NULL, names[i]);
        }
    }
    json_out_end(json);
}

void folder_verify(const char *directory, const Console *console) {
    Arena *arena = arena_new();
    Folder f = {.path = directory, .arena = arena};
    MemoryStream *memory = memory_open(arena);
    JsonOut json = json_out_start(memory->stream, 3);
    size_t bad = 0;
    path_need_directory(directory);
    const Json *runs = manifest_runs(&f);
    if (json_first_member(runs) == NULL) {
        fail(STATUS_INPUT, "%s: no manifest.json of a run", directory);
    }
    json_out_object(&json, NULL);
    json_out_object(&json, "runs");
    for (const Json *run = json_first_member(runs); run != NULL; run = run->next) {
        bad += verify_run(&f, run, &json, console);
    }
    json_out_end(&json);
    verify_others(&f, runs, &json, console);
    json_out_end(&json);
    fputs(console->json ? memory_text(memory) : "", stdout);
    if (bad > 0) {
        fail(STATUS_CHECK, "%s: files that are not as the runs left them: %zu", directory, bad);
    }
    arena_free(arena);
}

/* ---- the page: how results came about ---- */

/* Of a folder with more than a reader would look at, one line. */
static void show_inputs(const Folder *f, const Json *inputs) {
    const size_t most = 8;
    const char *title = "inputs";
    for (const Json *v = json_first(inputs), *next; v != NULL; v = next, title = "") {
        const char *path = json_string(json_get(v, "path")), *parent = path_parent(f->arena, path);
        size_t n = 0;
        for (next = v; next != NULL; next = next->next, n++) {
            const char *other = json_string(json_get(next, "path"));
            if (strcmp(path_parent(f->arena, other), parent) != 0) {
                break;
            }
        }
        if (n > most) {
            char hex[65];
            list_digest(v, next, hex);
            page_fact(f->page, title, "%s: %zu files  sha256 of all %s", parent, n, hex);
        } else {
            next = v->next;
            page_fact(f->page, title, "%s  sha256 %s", path, json_string(json_get(v, "sha256")));
        }
    }
}

static void show_made(const Folder *f) {
    const Json *run = json_first_member(manifest_runs(f));
    char hex[65];
    if (run != NULL) {
        page_section(f->page, "How this was made");
    }
    for (; run != NULL; run = run->next) {
        page_fact(f->page, "command", "%s", json_string(json_get(run, "command")));
        page_fact(f->page, "version", "%s", json_string(json_get(run, "version")));
        page_fact(f->page, "seed", "%s", json_string(json_get(run, "seed")));
        show_inputs(f, json_get(run, "inputs"));
        list_digest(json_first(json_get(run, "outputs")), NULL, hex);
        page_fact(f->page, "outputs", "sha256 of all %s", hex);
    }
}

static const char nothing[] = "holds neither train.csv, scores.json, layers.json nor sage.json";

/* All that the folder holds; whether that is anything. */
static bool show_folder(const Folder *f) {
    int before = f->page->sections;
    show_training(f);
    if (f->scores != NULL) {
        page_section(f->page, is_permuted(f) ? "Control: questions asked with the image tokens of "
                                               "other pictures"
                                             : "Questions about images, answered and scored");
        show_scores(f, f->scores, "");
    }
    if (f->layers != NULL) {
        show_layers(f, f->layers);
    }
    if (f->sage != NULL) {
        show_sage(f, f->sage);
    }
    bool any = f->page->sections > before;
    if (!any) {
        page_paragraph(f->page, "This folder %s.", nothing);
    }
    return any;
}

/* The last component of a path: "demo/permuted/" is "permuted", "." the name of where one is. */
static const char *folder_name(Arena *arena, const char *directory) {
    char *real = realpath(directory, NULL);
    if (real == NULL) {
        fail_errno(errno, directory, "cannot look at this path");
    }
    arena_defer(arena, free, real);
    const char *slash = strrchr(real, '/');
    return slash[1] != '\0' ? slash + 1 : real;
}

static Folder folder_open(Page *page, const char *path, Arena *arena) {
    Folder f = {.page = page, .path = path, .arena = arena, .name = folder_name(arena, path)};
    f.scores = folder_json(&f, "scores.json");
    f.layers = folder_json(&f, "layers.json");
    f.sage = folder_json(&f, "sage.json");
    return f;
}

void folder_page(const char *out, uint64_t seed, const Console *console) {
    Page page;
    Arena *arena = arena_new();
    page_open(&page, path_join(arena, out, "report.html"),
              arena_format(arena, "refsae %s", run_name(console, arena)));
    manifest_write(out, seed, console);
    Folder folder = folder_open(&page, out, arena);
    page_section(&page, "What was found");
    show_findings(&folder, 1);
    (void)show_folder(&folder);
    show_made(&folder);
    page_commit(&page);
    arena_free(arena);
}

void folders_merge(const char *out, const char *title, char *const *directories, size_t count) {
    Page page;
    page_open(&page, out, title);
    Arena *arena = page.out->arena;
    Folder *folders = arena_alloc(arena, count, sizeof *folders);
    for (size_t i = 0; i < count; i++) {
        path_need_directory(directories[i]);
        folders[i] = folder_open(&page, directories[i], arena);
    }
    bool any = false;
    page_chapter(&page, "What was found");
    show_findings(folders, count);
    for (size_t i = 0; i < count; i++) {
        page_chapter(&page, folders[i].name);
        any |= show_folder(&folders[i]);
        show_made(&folders[i]);
    }
    if (!any) {
        fail(STATUS_INPUT, "%s: %s", directories[0], nothing);
    }
    page_commit(&page);
}

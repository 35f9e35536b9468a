/* sage_report.c: what SAGE found as files: cross_sections.csv, sage.json, sage.csv, figures and the
 * report. The words beside each number are for a reader who has not seen the papers. */
#include "report.h"
#include "sage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEAT_ROWS = 40,
    TABLE_INTERPRETATIONS = 30
};

static const char *node_name(char name[HOOK_NAME_MAX], const SageNode *node) {
    hook_name(name, node->kind, node->layer, false, false);
    return name;
}

/* "L3.H1 z", "L3 mlp_out", with a space that does not break */
static const char *short_name(char name[HOOK_NAME_MAX], const SageNode *node) {
    char full[HOOK_NAME_MAX];
    const char *part = strstr(node_name(full, node), "hook_") + strlen("hook_");
    if (node->head < 0) {
        snprintf(name, HOOK_NAME_MAX, "L%d\xC2\xA0%.40s", node->layer, part);
    } else {
        snprintf(name, HOOK_NAME_MAX, "L%d.H%d\xC2\xA0%.40s", node->layer, node->head, part);
    }
    return name;
}

static const char *position_name(const SageResult *r, const SageNode *node) {
    return r->task->positions[node->position];
}

static bool is_supervised(int method) {
    return method == SAGE_MEAN || method == SAGE_MSE || method == SAGE_WEIGHTED;
}

static bool is_sae(int method) {
    return method == SAGE_SAE || method == SAGE_RANDOM;
}

/* ---- tables ---- */

static void write_nodes(const SageResult *r, FILE *out) {
    char name[HOOK_NAME_MAX];
    Csv csv = csv_start(out, "attribute,node,head,position,score,chosen,effect");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        for (size_t i = 0; i < r->n_nodes; i++) {
            const SageNode *node = &r->nodes[i];
            csv_text(&csv, r->task->attributes[a].name);
            csv_text(&csv, node_name(name, node));
            if (node->head >= 0) {
                csv_int(&csv, node->head);
            } else {
                csv_text(&csv, "");
            }
            csv_text(&csv, position_name(r, node));
            csv_double(&csv, r->score[a * r->n_nodes + i]);
            csv_int(&csv, r->chosen[a * r->n_nodes + i] ? 1 : 0);
            csv_double(&csv, r->effect[a * r->n_nodes + i]);
            csv_end(&csv);
        }
    }
}

/* One row a number; test: sufficiency, necessity, control. k is empty where it does not apply. */
typedef struct Tidy {
    Csv csv;
    const char *attribute, *method, *subset;
} Tidy;

static void tidy_row(Tidy *t, const char *test, size_t k, const SageControl *control) {
    csv_text(&t->csv, t->attribute);
    csv_text(&t->csv, t->method);
    csv_text(&t->csv, t->subset);
    csv_text(&t->csv, test);
    if (k > 0) {
        csv_int(&t->csv, (int64_t)k);
    } else {
        csv_text(&t->csv, "");
    }
    csv_double(&t->csv, control->score);
    csv_double(&t->csv, control->magnitude);
    csv_double(&t->csv, control->rescaled);
    csv_end(&t->csv);
}

static void tidy_tests(Tidy *t, const SageTests *tests, bool supervised) {
    tidy_row(t, "sufficiency", 0, &(SageControl){tests->sufficiency, NAN, NAN});
    tidy_row(t, "necessity", 0, &(SageControl){tests->necessity, NAN, NAN});
    if (supervised) {
        tidy_row(t, "control", 0, &tests->supervised);
    }
    for (size_t k = 0; k < SAGE_KS && !supervised; k++) {
        tidy_row(t, "control", sage_ks[k], &tests->control[k]);
    }
}

/* "f1>=0.5", "f1<0.5" */
enum {
    SUBSET_SIZE = 24 + JSON_NUMBER_SIZE
};

static const char *subset_name(char text[SUBSET_SIZE], const char *more, const char *less,
                               double threshold, int below) {
    char number[JSON_NUMBER_SIZE];
    json_format_double(number, threshold);
    snprintf(text, SUBSET_SIZE, "%s%s", below != 0 ? less : more, number);
    return text;
}

static void write_tidy(const SageResult *r, FILE *out) {
    Tidy t = {
        .csv = csv_start(out, "attribute,method,subset,test,k,score,magnitude,rescaled_magnitude")};
    char subset[SUBSET_SIZE];
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        t.attribute = r->task->attributes[a].name;
        for (int m = 0; m < SAGE_METHODS; m++) {
            t.method = sage_method_names[m];
            t.subset = "all";
            tidy_tests(&t, &r->cross[a].tests[m], is_supervised(m));
            for (size_t f = 0; f < r->options->n_f1 && is_sae(m); f++) {
                for (int below = 0; below < 2; below++) {
                    t.subset = subset_name(subset, "f1>=", "f1<", r->options->f1[f], below);
                    tidy_tests(&t, &r->cross[a].f1[f][m == SAGE_RANDOM][below], false);
                }
            }
        }
    }
}

/* ---- sage.json ---- */

static void json_place(JsonOut *json, const SageResult *r, size_t place) {
    const SageNode *node = &r->nodes[place];
    char name[HOOK_NAME_MAX];
    json_out_text(json, "node", node_name(name, node));
    if (node->head >= 0) {
        json_out_int(json, "head", node->head);
    } else {
        json_out_null(json, "head");
    }
    json_out_text(json, "position", position_name(r, node));
}

static void json_nodes(JsonOut *json, const char *key, const SageResult *r, size_t attribute,
                       const size_t *places, size_t count) {
    json_out_array(json, key);
    for (size_t i = 0; i < count; i++) {
        json_out_object(json, NULL);
        json_place(json, r, places[i]);
        json_out_double(json, "score", r->score[attribute * r->n_nodes + places[i]]);
        json_out_double(json, "effect", r->effect[attribute * r->n_nodes + places[i]]);
        json_out_end(json);
    }
    json_out_end(json);
}

static void json_cross_sections(JsonOut *json, const SageResult *r) {
    json_out_object(json, "cross_sections");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        const SageCross *cross = &r->cross[a];
        json_out_object(json, r->task->attributes[a].name);
        json_nodes(json, "nodes", r, a, cross->nodes, cross->n_nodes);
        json_nodes(json, "others", r, a, cross->others, cross->n_others);
        json_out_double(json, "share", cross->share);
        json_out_double(json, "spearman", cross->spearman);
        json_out_end(json);
    }
    json_out_end(json);
}

static void json_fit(JsonOut *json, const SageResult *r, size_t place, const SageFit *fit) {
    json_out_object(json, NULL);
    json_place(json, r, place);
    json_out_object(json, "r2");
    json_out_double(json, "mean", fit->mean);
    json_out_double(json, "mse", fit->mse);
    json_out_double(json, "weighted", fit->weighted);
    json_out_double(json, "sae", fit->sae);
    if (sage_node_reads(&r->nodes[place])) {
        json_out_double(json, "weights", fit->weights);
    } else {
        json_out_double(json, "span", fit->span);
        json_out_double(json, "encoder", fit->encoder);
    }
    json_out_end(json);
    json_out_object(json, "weights");
    for (size_t i = 0; i < r->task->n_attributes; i++) {
        json_out_double(json, r->task->attributes[i].name, fit->w[i]);
    }
    json_out_end(json);
    json_out_end(json);
}

static void json_dictionaries(JsonOut *json, const SageResult *r) {
    json_out_object(json, "dictionaries");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        json_out_array(json, r->task->attributes[a].name);
        for (size_t i = 0; i < r->cross[a].n_nodes; i++) {
            json_fit(json, r, r->cross[a].nodes[i], &r->cross[a].fits[i]);
        }
        json_out_end(json);
    }
    json_out_end(json);
}

static void json_control(JsonOut *json, const char *key, const SageControl *control) {
    json_out_object(json, key);
    json_out_double(json, "score", control->score);
    json_out_double(json, "magnitude", control->magnitude);
    json_out_double(json, "rescaled_magnitude", control->rescaled);
    json_out_end(json);
}

static void json_tests(JsonOut *json, const SageTests *tests, bool supervised) {
    json_out_double(json, "sufficiency", tests->sufficiency);
    json_out_double(json, "necessity", tests->necessity);
    if (supervised) {
        json_control(json, "control_supervised", &tests->supervised);
        return;
    }
    json_out_object(json, "control");
    for (size_t k = 0; k < SAGE_KS; k++) {
        char key[24];
        snprintf(key, sizeof key, "%zu", sage_ks[k]);
        json_control(json, key, &tests->control[k]);
    }
    json_out_end(json);
}

static void json_method(JsonOut *json, const SageResult *r, const SageCross *cross, int method) {
    json_out_object(json, sage_method_names[method]);
    json_tests(json, &cross->tests[method], is_supervised(method));
    if (is_sae(method)) {
        json_out_object(json, "f1");
        for (size_t f = 0; f < r->options->n_f1; f++) {
            char key[JSON_NUMBER_SIZE];
            json_format_double(key, r->options->f1[f]);
            json_out_object(json, key);
            for (int below = 0; below < 2; below++) {
                json_out_object(json, below != 0 ? "below" : "above");
                json_tests(json, &cross->f1[f][method == SAGE_RANDOM][below], false);
                json_out_end(json);
            }
            json_out_end(json);
        }
        json_out_end(json);
    }
    json_out_end(json);
}

static void json_interpretations(JsonOut *json, const SageResult *r) {
    json_out_array(json, "interpretations");
    for (size_t i = 0; i < r->n_interpretations; i++) {
        const SageInterpretation *found = &r->interpretations[i];
        char name[HOOK_NAME_MAX];
        hook_name(name, found->kind, found->layer, false, false);
        json_out_object(json, NULL);
        json_out_text(json, "hook", name);
        json_out_text(json, "position", r->task->positions[found->position]);
        json_out_int(json, "feature", (int64_t)found->feature);
        json_out_double(json, "f1", found->f1);
        json_out_text(json, "predicate", found->predicate);
        json_out_end(json);
    }
    json_out_end(json);
}

/* Each value once, though several attributes may have lost it. */
static void json_dropped(JsonOut *json, const SageTask *task) {
    json_out_array(json, "dropped");
    for (size_t i = 0; i < task->n_dropped; i++) {
        bool again = false;
        for (size_t k = 0; k < i; k++) {
            again |= strcmp(task->dropped[k].value, task->dropped[i].value) == 0;
        }
        if (!again) {
            json_out_text(json, NULL, task->dropped[i].value);
        }
    }
    json_out_end(json);
}

static void write_json(const SageResult *r, FILE *out) {
    JsonOut json = json_out_start(out, 4);
    json_out_object(&json, NULL);
    json_out_text(&json, "task", r->task->name);
    json_out_text(&json, "model", r->options->llm);
    json_out_object(&json, "prompts");
    json_out_int(&json, "train", (int64_t)r->task->n_prompts[SAGE_TRAIN]);
    json_out_int(&json, "test", (int64_t)r->task->n_prompts[SAGE_TEST]);
    json_dropped(&json, r->task);
    json_out_end(&json);
    json_out_object(&json, "baseline");
    json_out_double(&json, "accuracy", r->accuracy);
    json_out_double(&json, "m_clean", r->m_clean);
    json_out_end(&json);
    json_cross_sections(&json, r);
    json_dictionaries(&json, r);
    json_out_object(&json, "tests");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        json_out_object(&json, r->task->attributes[a].name);
        for (int m = 0; m < SAGE_METHODS; m++) {
            json_method(&json, r, &r->cross[a], m);
        }
        json_out_end(&json);
    }
    json_out_end(&json);
    json_interpretations(&json, r);
    json_out_end(&json);
}

/* ---- figure 1: a cross-section as a heat map, components by positions ---- */

typedef struct HeatRow {
    const SageNode *node; /* at any position */
    double peak;          /* largest |score| over positions */
} HeatRow;

typedef struct Heat {
    HeatMap map;
    HeatRow *rows;  /* [components] */
    size_t *row_of; /* [n_nodes]: the place of a node's component in rows */
    size_t n_rows;
    const char **names;
    double *values;
    bool *marked;
    char title[160], caption[640];
} Heat;

static bool same_component(const SageNode *a, const SageNode *b) {
    return a->kind == b->kind && a->layer == b->layer && a->head == b->head;
}

static int compare_components(const void *a, const void *b) {
    const SageNode *x = ((const HeatRow *)a)->node, *y = ((const HeatRow *)b)->node;
    int order = x->layer - y->layer;
    order = order != 0 ? order : (int)x->kind - (int)y->kind;
    return order != 0 ? order : x->head - y->head;
}

static int compare_falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Finds the components; the same for every attribute. */
static void heat_layout(Heat *h, const SageResult *r, Arena *arena) {
    h->rows = arena_alloc(arena, r->n_nodes + 1, sizeof(HeatRow));
    h->row_of = arena_alloc(arena, r->n_nodes + 1, sizeof(size_t));
    h->names = arena_alloc(arena, HEAT_ROWS, sizeof(char *));
    h->values = arena_alloc(arena, HEAT_ROWS * r->task->n_positions, sizeof(double));
    h->marked = arena_alloc(arena, HEAT_ROWS * r->task->n_positions, sizeof(bool));
    h->n_rows = 0;
    for (size_t i = 0; i < r->n_nodes; i++) {
        size_t row = h->n_rows;
        while (row > 0 && !same_component(h->rows[row - 1].node, &r->nodes[i])) {
            row--; /* nodes of a component usually follow one another */
        }
        if (row == 0) {
            h->rows[h->n_rows++].node = &r->nodes[i];
        }
    }
    qsort(h->rows, h->n_rows, sizeof(HeatRow), compare_components);
    for (size_t i = 0; i < r->n_nodes; i++) {
        const HeatRow key = {.node = &r->nodes[i]};
        const HeatRow *row = bsearch(&key, h->rows, h->n_rows, sizeof(HeatRow), compare_components);
        h->row_of[i] = (size_t)(row - h->rows);
    }
}

/* The least peak that gets a row: a fiftieth of the largest, and HEAT_ROWS rows at most. */
static double heat_threshold(const Heat *h, double *peaks) {
    for (size_t i = 0; i < h->n_rows; i++) {
        peaks[i] = h->rows[i].peak;
    }
    qsort(peaks, h->n_rows, sizeof(double), compare_falling);
    if (h->n_rows <= HEAT_ROWS) {
        return 0;
    }
    return fmax(peaks[HEAT_ROWS - 1], peaks[0] / 50);
}

static void heat_make(Heat *h, const SageResult *r, size_t attribute, Arena *arena) {
    const double *score = r->score + attribute * r->n_nodes;
    const bool *chosen = r->chosen + attribute * r->n_nodes;
    const char *what = r->task->attributes[attribute].name;
    char name[HOOK_NAME_MAX];
    size_t columns = r->task->n_positions, shown = 0;
    size_t *place = arena_alloc(arena, h->n_rows + 1, sizeof(size_t));
    double *peaks = arena_alloc(arena, h->n_rows + 1, sizeof(double));
    for (size_t i = 0; i < h->n_rows; i++) {
        h->rows[i].peak = 0;
    }
    for (size_t i = 0; i < r->n_nodes; i++) {
        HeatRow *row = &h->rows[h->row_of[i]];
        row->peak = fabs(score[i]) > row->peak ? fabs(score[i]) : row->peak;
    }
    double least = heat_threshold(h, peaks);
    for (size_t i = 0; i < h->n_rows; i++) {
        place[i] = SIZE_MAX;
        if (h->rows[i].peak >= least && shown < HEAT_ROWS) {
            place[i] = shown;
            short_name(name, h->rows[i].node);
            h->names[shown++] = arena_copy(arena, name, strlen(name));
        }
    }
    for (size_t i = 0; i < shown * columns; i++) {
        h->values[i] = NAN;
        h->marked[i] = false;
    }
    for (size_t i = 0; i < r->n_nodes; i++) {
        size_t row = place[h->row_of[i]];
        if (row != SIZE_MAX) {
            h->values[row * columns + r->nodes[i].position] = score[i];
            h->marked[row * columns + r->nodes[i].position] = chosen[i];
        }
    }
    snprintf(h->title, sizeof h->title, "Where %.60s is carried", what);
    int used = snprintf(h->caption, sizeof h->caption,
                        "Attribution score of each node for %.60s: by how much m is expected to "
                        "change if this node alone took its value from a prompt with another "
                        "%.60s. Outlined: the cross-section.",
                        what, what);
    if (shown < h->n_rows) {
        snprintf(h->caption + used, sizeof h->caption - (size_t)used,
                 " The %zu components of %zu whose score is largest; all are in "
                 "cross_sections.csv.",
                 shown, h->n_rows);
    }
    h->map = (HeatMap){.title = h->title,
                       .subtitle = "attribution patching, mean over the training prompts",
                       .x_label = "position",
                       .value_label = "score",
                       .rows = h->names,
                       .row_count = shown,
                       .columns = r->task->positions,
                       .column_count = columns,
                       .values = h->values,
                       .marked = h->marked};
}

/* ---- figures 2 and 3: sufficiency and necessity by method ---- */

enum {
    BARS_MOST = SAGE_METHODS - 1 + 2 /* all but none, and the SAE's two F1 subsets */
};

typedef struct Bars {
    BarChart chart;
    const char **groups;
    const char *series[BARS_MOST];
    char subset[2][SUBSET_SIZE];
    double *values, one;
    bool cut; /* a bar leaves the drawn range */
} Bars;

static void bars_make(Bars *b, const SageResult *r, bool necessity, Arena *arena) {
    const double low = -1, high = 2;
    size_t n = r->task->n_attributes, count = 0;
    bool subsets = r->options->n_f1 > 0;
    *b = (Bars){.one = 1};
    b->groups = arena_alloc(arena, n, sizeof(char *));
    b->values = arena_alloc(arena, n * BARS_MOST, sizeof(double));
    for (int m = SAGE_MEAN; m < SAGE_METHODS; m++) {
        b->series[count++] = sage_method_names[m];
    }
    for (int below = 0; below < 2 && subsets; below++) {
        b->series[count++] = subset_name(b->subset[below], "sae, F1 \xE2\x89\xA5 ", "sae, F1 < ",
                                         r->options->f1[0], below);
    }
    for (size_t a = 0; a < n; a++) {
        const SageCross *cross = &r->cross[a];
        b->groups[a] = r->task->attributes[a].name;
        for (size_t k = 0; k < count; k++) {
            const SageTests *tests = k < SAGE_METHODS - 1
                                         ? &cross->tests[k + 1]
                                         : &cross->f1[0][0][k - (SAGE_METHODS - 1)];
            double value = necessity ? tests->necessity : tests->sufficiency;
            b->cut = b->cut || value < low || value > high;
            b->values[a * count + k] = value < low ? low : value > high ? high : value;
        }
    }
    b->chart = (BarChart){.title = necessity ? "Necessity by method" : "Sufficiency by method",
                          .subtitle = b->cut ? "bars that leave the range from \xE2\x88\x92"
                                               "1 to 2 are cut; the table has their values"
                                             : NULL,
                          .y_label = necessity ? "share of the ablation's harm that is reproduced"
                                               : "metric m on reconstructions / m of the model",
                          .groups = b->groups,
                          .group_count = n,
                          .series = b->series,
                          .series_count = count,
                          .values = b->values,
                          .reference = &b->one};
}

/* ---- figure 4: control over k ---- */

enum {
    CURVES = SAGE_METHODS + 1 /* and the SAE's features with F1 at or above the threshold */
};

typedef struct Curves {
    LineChart chart;
    Series series[CURVES];
    double x[SAGE_KS], y[CURVES][SAGE_KS];
    char title[160], subset[SUBSET_SIZE];
} Curves;

/* Solid: what k changes. Dashed: the supervised edits, which change one feature for another, and
 * the model without any. Colours as in the bars. */
static void curves_make(Curves *c, const SageResult *r, size_t attribute) {
    static const struct {
        SageMethod method;
        int colour;
        const char *name;
    } order[SAGE_METHODS] = {{SAGE_SAE, 4, "sae"},
                             {SAGE_RANDOM, 5, "random"},
                             {SAGE_MEAN, 1, "mean (supervised)"},
                             {SAGE_MSE, 2, "mse (supervised)"},
                             {SAGE_WEIGHTED, 3, "weighted (supervised)"},
                             {SAGE_NONE, 7, "no intervention"}};
    const SageCross *cross = &r->cross[attribute];
    size_t count = 0;
    for (size_t s = 0; s < SAGE_METHODS; s++) {
        SageMethod method = order[s].method;
        for (size_t k = 0; k < SAGE_KS; k++) {
            const SageTests *tests = &cross->tests[method];
            c->x[k] = (double)sage_ks[k];
            c->y[count][k] =
                is_supervised((int)method) ? tests->supervised.score : tests->control[k].score;
        }
        c->series[count] = (Series){order[s].name,        c->x,           c->y[count], SAGE_KS,
                                    !is_sae((int)method), order[s].colour};
        count++;
        if (s == 0 && r->options->n_f1 > 0) {
            for (size_t k = 0; k < SAGE_KS; k++) {
                c->y[count][k] = cross->f1[0][0][0].control[k].score;
            }
            subset_name(c->subset, "sae, F1 \xE2\x89\xA5 ", "", r->options->f1[0], 0);
            c->series[count] = (Series){c->subset, c->x, c->y[count], SAGE_KS, false, 6};
            count++;
        }
    }
    snprintf(c->title, sizeof c->title, "Control of %.60s by editing k features",
             r->task->attributes[attribute].name);
    c->chart =
        (LineChart){.title = c->title,
                    .x_label = "features changed, at most",
                    .y_label = "share of prompts that answer as with the true counterfactual",
                    .series = c->series,
                    .series_count = count,
                    .y_from_zero = true,
                    .log_x = true};
}

/* ---- the report ---- */

static void say_result(Report *report, const SageResult *r) {
    const SageTask *task = r->task;
    report_section(report, "Result");
    report_value(report, "answers right", "%.1f %%", 100 * r->accuracy);
    report_value(report, "mean m (nats)", "%.3g", r->m_clean);
    report_value(report, "training and test prompts", "%zu + %zu", task->n_prompts[SAGE_TRAIN],
                 task->n_prompts[SAGE_TEST]);
    report_value(report, "nodes scored", "%zu", r->n_nodes);
    report_paragraph(
        report,
        "The task \xE2\x80\x9C%s\xE2\x80\x9D has attributes that a person can name. SAGE finds "
        "where the "
        "model carries each of them, builds the best dictionary that knowledge of the "
        "attribute allows, and holds sparse autoencoders against it. m is log p(right "
        "answer) \xE2\x88\x92 log p(wrong answer) at the last token: above 0 the model prefers the "
        "right one.",
        task->name);
    static const SageMethod shown[] = {SAGE_WEIGHTED, SAGE_SAE, SAGE_RANDOM};
    report_table(report,
                 "weighted is the supervised reference, sae what is judged, random the same SAE "
                 "with random decoder directions. Closer to 1 is better everywhere.",
                 "attribute|#nodes|method|#sufficiency|#necessity|#control|#without an edit");
    for (size_t a = 0; a < task->n_attributes; a++) {
        for (size_t m = 0; m < sizeof shown / sizeof *shown; m++) {
            const SageTests *t = &r->cross[a].tests[shown[m]];
            bool single = is_supervised((int)shown[m]);
            report_cell(report, "%s", task->attributes[a].name);
            report_cell(report, "%zu", r->cross[a].n_nodes);
            report_cell(report, "%s", sage_method_names[shown[m]]);
            report_cell_number(report, t->sufficiency);
            report_cell_number(report, t->necessity);
            report_cell_number(report,
                               single ? t->supervised.score : t->control[SAGE_KS - 1].score);
            report_cell_number(report, r->cross[a].tests[SAGE_NONE].control[0].score);
        }
    }
}

static void say_nodes(Report *report, const SageResult *r, size_t attribute, const char *why,
                      const size_t *places, size_t count) {
    char name[HOOK_NAME_MAX];
    for (size_t i = 0; i < count; i++) {
        const SageNode *node = &r->nodes[places[i]];
        report_cell(report, "%s", why);
        report_cell(report, "%s", node_name(name, node));
        report_cell(report, node->head >= 0 ? "%d" : "all", node->head);
        report_cell(report, "%s", position_name(r, node));
        report_cell_number(report, r->score[attribute * r->n_nodes + places[i]]);
        report_cell_number(report, r->effect[attribute * r->n_nodes + places[i]]);
    }
}

static void say_cross_section(Report *report, const SageResult *r, size_t attribute,
                              const Heat *heat) {
    const SageCross *cross = &r->cross[attribute];
    char spearman[TEXT_NUMBER_SIZE];
    text_number(spearman, cross->spearman, 3);
    svg_heat(report_figure(report, heat->caption), &heat->map);
    report_paragraph(
        report,
        "The walk down these scores carries %.1f %% of all |score|; of the nodes walked, %zu "
        "remain once those are left out whose output another one already holds. A "
        "score is a first-order estimate, so the true effect on m of patching one node "
        "at a time was measured for them and for random others. The two orders agree "
        "with a Spearman correlation of %s (1: the same order, 0: unrelated).",
        100 * cross->share, cross->n_nodes, spearman);
    report_table(report, "Scores, and what patching the node really does to m",
                 "chosen|node|#head|position|#score|#effect");
    say_nodes(report, r, attribute, "yes", cross->nodes, cross->n_nodes);
    say_nodes(report, r, attribute, "random other", cross->others, cross->n_others);
}

static void say_fits(Report *report, const SageResult *r) {
    char name[HOOK_NAME_MAX];
    report_section(report, "How well dictionaries rebuild the nodes");
    report_paragraph(
        report,
        "R\xC2\xB2 on the test prompts: 1 is a perfect rebuild, 0 no better than the mean "
        "activation, below 0 "
        "worse. mean, mse and weighted are supervised: they know every attribute's value and add "
        "one "
        "vector for each. sae is the projection that the tests use; weights, span and encoder are "
        "the "
        "ways to carry a residual-stream SAE to a node. w is the share of an attribute's mean "
        "feature "
        "that the weighted dictionary keeps at this node: 0 where the attribute does not move it.");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        char caption[160],
            columns[1024] = "node|position|#mean|#mse|#weighted|#sae|#weights|#span|#encoder";
        size_t used = strlen(columns), weights = 0, n = r->cross[a].n_nodes;
        for (; weights < r->task->n_attributes && used < sizeof columns - 64; weights++) {
            size_t begin = used + strlen("|#w ");
            used += (size_t)snprintf(columns + used, sizeof columns - used, "|#w %.40s",
                                     r->task->attributes[weights].name);
            for (size_t i = begin; i < used; i++) {
                columns[i] = columns[i] == '|' ? '/' : columns[i];
            }
        }
        snprintf(caption, sizeof caption, "Cross-section of %.100s", r->task->attributes[a].name);
        report_table(report, caption, columns);
        for (size_t i = 0; i < n; i++) {
            const SageFit *fit = &r->cross[a].fits[i];
            const SageNode *node = &r->nodes[r->cross[a].nodes[i]];
            const double values[] = {fit->mean,    fit->mse,  fit->weighted, fit->sae,
                                     fit->weights, fit->span, fit->encoder};
            report_cell(report, "%s", short_name(name, node));
            report_cell(report, "%s", position_name(r, node));
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                report_cell_number(report, values[v]);
            }
            for (size_t w = 0; w < weights; w++) {
                report_cell_number(report, fit->w[w]);
            }
        }
    }
}

static void say_test(Report *report, const char *attribute, const char *method, const char *subset,
                     const SageTests *tests, bool supervised) {
    report_cell(report, "%s", attribute);
    report_cell(report, "%s", method);
    report_cell(report, "%s", subset);
    report_cell_number(report, tests->sufficiency);
    report_cell_number(report, tests->necessity);
    for (size_t k = 0; k <= SAGE_KS; k++) {
        bool single = k == SAGE_KS;
        const SageControl *control = single ? &tests->supervised : &tests->control[k];
        if (single == supervised) {
            report_cell(report, "%.2f (%.2f)", control->score, control->magnitude);
        } else {
            report_cell(report, "%s", "");
        }
    }
}

static void say_all_tests(Report *report, const SageResult *r) {
    char columns[256] = "attribute|method|features|#sufficiency|#necessity", subset[SUBSET_SIZE];
    size_t used = strlen(columns);
    for (size_t k = 0; k < SAGE_KS; k++) {
        used += (size_t)snprintf(columns + used, sizeof columns - used, "|#k = %zu", sage_ks[k]);
    }
    snprintf(columns + used, sizeof columns - used, "|#supervised");
    report_paragraph(
        report, "All tests together, control as score (magnitude). none is the model as it is. "
                "Rows with an F1 use only the features whose best interpretation reaches it, or "
                "only the others.");
    report_table(report, NULL, columns);
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        const char *name = r->task->attributes[a].name;
        for (int m = 0; m < SAGE_METHODS; m++) {
            say_test(report, name, sage_method_names[m], is_sae(m) ? "all" : "\xE2\x80\x93",
                     &r->cross[a].tests[m], is_supervised(m));
            for (size_t f = 0; f < 2 * r->options->n_f1 && is_sae(m); f++) {
                subset_name(subset, "F1 \xE2\x89\xA5 ", "F1 < ", r->options->f1[f / 2], f % 2);
                say_test(report, name, sage_method_names[m], subset,
                         &r->cross[a].f1[f / 2][m == SAGE_RANDOM][f % 2], false);
            }
        }
    }
}

static void say_tests(Report *report, const Bars bars[2]) {
    report_section(report, "Sufficiency and necessity");
    report_paragraph(
        report, "Sufficiency asks whether a dictionary holds all that matters: the activations of "
                "a cross-section are replaced by what the dictionary makes of them, and m is "
                "divided by that of the untouched model. 1: nothing was lost; 0: the model no "
                "longer prefers the right answer.");
    svg_bars(report_figure(report,
                           "Sufficiency: the model runs on reconstructions. The dashed line "
                           "is the untouched model."),
             &bars[0].chart);
    report_paragraph(
        report, "Necessity asks whether what matters is in the dictionary and nowhere else: the "
                "dictionary's part is taken away and its error left in place. 1: this hurts as "
                "much as replacing the activations by their mean; 0: the model does as well "
                "as before, so what it used was in the error.");
    svg_bars(report_figure(report,
                           "Necessity: the model runs on what the dictionary leaves out. The "
                           "dashed line is mean ablation."),
             &bars[1].chart);
}

static void say_controls(Report *report, const SageResult *r, const Curves *curves) {
    report_section(report, "Sparse control");
    report_paragraph(
        report,
        "Control asks whether an attribute can be changed with few features: the nodes "
        "are edited towards the activations of a prompt with another value, and the score is "
        "the share of test prompts whose predicted token is the one that those "
        "activations themselves bring about. 1: the edit does the whole job. A "
        "supervised edit swaps one vector; an SAE edit adds or removes at most k features at "
        "each node, chosen greedily. The magnitude (in brackets in the table) says how "
        "much of the reconstruction was taken away: near 1 all of it was replaced, so a good "
        "edit has a high score at a low magnitude.");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        char caption[256];
        snprintf(
            caption, sizeof caption,
            "Control of %.60s. Dashed: edits that do not depend on k, and the model without any "
            "edit.",
            r->task->attributes[a].name);
        svg_lines(report_figure(report, caption), &curves[a].chart);
    }
    say_all_tests(report, r);
}

static void say_interpretations(Report *report, const SageResult *r, const size_t *best) {
    report_section(report, "What SAE features stand for");
    report_paragraph(
        report, "A feature's interpretation is the predicate on attribute values (a value, a value "
                "in one form, or a union of values) that best predicts on which test prompts "
                "the feature is active. F1 is the harmonic mean of how often the predicate holds "
                "when the feature is active and how often the feature is active when the predicate "
                "holds; 1: they are the same.");
    size_t count =
        r->n_interpretations < TABLE_INTERPRETATIONS ? r->n_interpretations : TABLE_INTERPRETATIONS;
    char caption[160];
    snprintf(caption, sizeof caption, "The best %zu of %zu interpretations; all are in sage.json",
             count, r->n_interpretations);
    report_table(report, caption, "SAE at|position|#feature|#F1|active when");
    for (size_t i = 0; i < count; i++) {
        const SageInterpretation *found = &r->interpretations[best[i]];
        char name[HOOK_NAME_MAX];
        hook_name(name, found->kind, found->layer, false, false);
        report_cell(report, "%s", name);
        report_cell(report, "%s", r->task->positions[found->position]);
        report_cell(report, "%zu", found->feature);
        report_cell_number(report, found->f1);
        report_cell(report, "%s", found->predicate);
    }
}

static void say_making(Report *report, const SageResult *r, const char *prompts) {
    const SageOptions *o = r->options;
    report_section(report, "How this was made");
    report_fact(report, "command", "%s", r->console->command);
    report_digest(report, "model", o->llm);
    report_fact(report, "task", "%s", r->task->file);
    report_fact(report, "seed", "%llu", (unsigned long long)o->seed);
    report_fact(report, "nodes", "%s, share %g, at most %zu", o->nodes, o->share, o->max_nodes);
    report_fact(report, "projection", "%s", o->projection);
    if (o->prompts != NULL) {
        report_digest(report, "prompts from", o->prompts);
    }
    report_digest(report, "prompts", path_exists(prompts) ? prompts : NULL);
    for (size_t i = 0; i < r->task->n_dropped; i++) {
        report_fact(report, i == 0 ? "dropped: not one token" : "", "%s=%s",
                    r->task->dropped[i].attribute, r->task->dropped[i].value);
    }
    for (size_t i = 0; i < r->n_saes; i++) {
        report_fact(report, i == 0 ? "SAEs" : "", "%s", r->sae_names[i]);
    }
}

/* ---- all files ---- */

/* "heat_IO.svg" in the folder; a name that no file should bear is made safe and gets its number. */
static char *figure_path(const SageResult *r, const char *what, size_t attribute, Arena *arena) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    const char *name = r->task->attributes[attribute].name;
    char text[128];
    size_t length = strlen(name), plain = strspn(name, safe);
    if (length == plain && length > 0 && length <= 40) {
        snprintf(text, sizeof text, "%s_%s.svg", what, name);
    } else {
        snprintf(text, sizeof text, "%s_%.*s.%zu.svg", what, (int)(plain < 40 ? plain : 40), name,
                 attribute);
    }
    return path_join(arena, r->options->out, text);
}

typedef struct SageFile {
    const char *name;
    void (*write)(const SageResult *, FILE *);
} SageFile;

static void write_tables(const SageResult *r, Arena *arena) {
    static const SageFile files[] = {
        {"cross_sections.csv", write_nodes}, {"sage.csv", write_tidy}, {"sage.json", write_json}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        OutFile *out = out_open(path_join(arena, r->options->out, files[i].name));
        files[i].write(r, out->stream);
        out_commit(out);
    }
}

/* Exactly one of the charts is given. */
static void write_figure(const char *path, const HeatMap *heat, const BarChart *bars,
                         const LineChart *lines) {
    OutFile *out = out_open(path);
    if (heat != NULL) {
        svg_heat(out->stream, heat);
    } else if (bars != NULL) {
        svg_bars(out->stream, bars);
    } else {
        svg_lines(out->stream, lines);
    }
    out_commit(out);
}

/* Places of interpretations by falling F1; equal ones stay in their order. */
static size_t *sort_interpretations(const SageResult *r, Arena *arena) {
    size_t n = r->n_interpretations;
    size_t most = n < TABLE_INTERPRETATIONS ? n : TABLE_INTERPRETATIONS, found = 0;
    size_t *best = arena_alloc(arena, most + 1, sizeof(size_t));
    for (size_t i = 0; i < n; i++) {
        size_t at = found;
        while (at > 0 && r->interpretations[i].f1 > r->interpretations[best[at - 1]].f1) {
            at--;
        }
        if (at < most) {
            found += found < most ? 1 : 0;
            memmove(best + at + 1, best + at, (found - 1 - at) * sizeof(size_t));
            best[at] = i;
        }
    }
    return best;
}

static void write_report(const SageResult *r, Report *report, Arena *arena) {
    size_t n = r->task->n_attributes;
    Heat heat;
    Bars bars[2];
    Curves *curves = arena_alloc(arena, n, sizeof(Curves));
    char *prompts = path_join(arena, r->options->out, "prompts.jsonl");
    say_result(report, r);
    heat_layout(&heat, r, arena);
    for (size_t a = 0; a < n; a++) {
        char heading[160];
        snprintf(heading, sizeof heading, "Cross-section of %.100s", r->task->attributes[a].name);
        heat_make(&heat, r, a, arena);
        write_figure(figure_path(r, "heat", a, arena), &heat.map, NULL, NULL);
        report_section(report, heading);
        say_cross_section(report, r, a, &heat);
        curves_make(&curves[a], r, a);
        write_figure(figure_path(r, "control", a, arena), NULL, NULL, &curves[a].chart);
    }
    for (int i = 0; i < 2; i++) {
        bars_make(&bars[i], r, i == 1, arena);
        char *path =
            path_join(arena, r->options->out, i == 1 ? "necessity.svg" : "sufficiency.svg");
        write_figure(path, NULL, &bars[i].chart, NULL);
    }
    say_tests(report, bars);
    say_controls(report, r, curves);
    say_fits(report, r);
    say_interpretations(report, r, sort_interpretations(r, arena));
    say_making(report, r, prompts);
    report_commit(report);
}

void sage_write(const SageResult *result) {
    Report report;
    Arena *scratch = arena_new();
    char *path = path_join(scratch, result->options->out, "report.html");
    char *title = arena_format(scratch, "SAGE: %s", result->task->name);
    path_make_directory(result->options->out);
    write_tables(result, scratch);
    report_open(&report, path, title, result->options->llm);
    write_report(result, &report, scratch);
    arena_free(scratch);
    for (size_t a = 0; a < result->task->n_attributes; a++) {
        const SageTests *t = result->cross[a].tests;
        console_line(
            result->console,
            "%s: sufficiency weighted %.3f, sae %.3f, random %.3f; necessity %.3f, %.3f, %.3f",
            result->task->attributes[a].name, t[SAGE_WEIGHTED].sufficiency, t[SAGE_SAE].sufficiency,
            t[SAGE_RANDOM].sufficiency, t[SAGE_WEIGHTED].necessity, t[SAGE_SAE].necessity,
            t[SAGE_RANDOM].necessity);
    }
}

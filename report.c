/* report.c: results as CSV and JSON, as figures, and as a page made from those. See report.h. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "report.h"

#include "elementary.h"
#include "figure.h"
#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- JSON read again: what CSV files and pages are made from ---- */

/* The list of a value's children; nothing of what is missing. */
static const Json *first(const Json *value) {
    return value == NULL ? NULL : value->child;
}

/* The same of an object's, which have keys; a folder's file may hold anything. */
static const Json *first_member(const Json *value) {
    return json_is(value, JSON_OBJECT) ? value->child : NULL;
}

static const char *text_of(const Json *value) {
    return json_is(value, JSON_STRING) ? value->text : "";
}

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
    for (const Json *v = first(list); v != NULL; v = v->next) {
        lines_add(lines, key, NULL, NULL, v);
    }
}

/* A text, or a number as it is written; null and what is missing: an empty cell. */
static void csv_value(Csv *csv, const Json *value) {
    csv_text(csv, json_is(value, JSON_NUMBER) ? value->text : text_of(value));
}

/* An array's objects as rows. "loss.recovered_zero" is a member of the member loss; the head calls
 * it loss_recovered_zero. */
static void write_csv(const char *path, const Json *rows, const char *columns) {
    OutFile *out = out_open(path);
    char *head = arena_copy(out->arena, columns, strlen(columns)), name[64];
    for (char *dot = head; (dot = strchr(dot, '.')) != NULL;) {
        *dot = '_';
    }
    Csv csv = csv_start(out->stream, head);
    for (const Json *row = first(rows); row != NULL; row = row->next) {
        for (const char *c = columns; *c != '\0'; c += strspn(c, ",")) {
            size_t length = strcspn(c, ","), outer = strcspn(c, ".,");
            snprintf(name, sizeof name, "%.*s", (int)outer, c);
            const Json *value = json_get(row, name);
            if (outer < length) {
                snprintf(name, sizeof name, "%.*s", (int)(length - outer - 1), c + outer + 1);
                value = json_get(value, name);
            }
            csv_value(&csv, value);
            c += length;
        }
        csv_end(&csv);
    }
    out_commit(out);
}

/* ---- figures ---- */

static void write_figure(Arena *arena, const char *directory, const char *name, const char *svg) {
    OutFile *out = out_open(path_join(arena, directory, name));
    fputs(svg, out->stream);
    out_commit(out);
}

enum {
    CURVES_MOST = 12
};

typedef struct Curves { /* series over one x */
    Arena *arena;
    Series series[CURVES_MOST];
    size_t count, n;
    const double *x; /* [n] */
} Curves;

/* The y of a new curve, [n]. */
static double *curve_add(Curves *curves, const char *name, int colour, bool dashed) {
    double *y = arena_alloc(curves->arena, curves->n, sizeof *y);
    curves->series[curves->count++] = (Series){name, curves->x, y, curves->n, dashed, colour};
    return y;
}

/* ---- CSV read again: lines without quotes, in a text that ends with a 0 byte ---- */

static const char *next_line(const char *line) {
    line += strcspn(line, "\n");
    return *line == '\0' ? line : line + 1;
}

/* Which cell of a line is `name`; -1: none. */
static int csv_column(const char *line, const char *name) {
    for (int column = 0;; column++) {
        size_t length = strcspn(line, ",\r\n");
        if (length == strlen(name) && memcmp(line, name, length) == 0) {
            return column;
        }
        if (line[length] != ',') {
            return -1;
        }
        line += length + 1;
    }
}

/* The number in a cell; false if there is none. */
static bool csv_number(const char *line, int column, double *value) {
    char *end;
    for (; column > 0; column--) {
        line += strcspn(line, ",\r\n");
        if (*line++ != ',') {
            return false;
        }
    }
    size_t length = strcspn(line, ",\r\n");
    double number = strtod(line, &end);
    *value = length > 0 && end == line + length ? number : *value;
    return length > 0 && end == line + length;
}

/* ---- the layer analysis (Mapping) ---- */

static const struct {
    const char *name, *file, *title, *label;
} metrics[METRICS] = {
    {"mse", "mse.svg", "Reconstruction error by layer", "MSE (log)"},
    {"sparsity", "sparsity.svg", "SAE sparsity by layer", "share of features active (log)"},
    {"match", "match.svg", "Features that match the answer, by layer", "match rate"}};

static void json_sums(JsonOut *json, const Sums *s) {
    json_out_double(json, "mse", mean_of(s->mse, s->n));
    json_out_double(json, "sparsity", mean_of(s->sparsity, s->n));
    json_out_double(json, "l0", mean_of(s->l0, s->n));
    json_out_double(json, "fvu", mean_of(s->fvu, s->n_fvu));
    json_out_double(json, "cosine", mean_of(s->cosine, s->n));
    json_out_double(json, "norm", mean_of(s->norm, s->n));
}

static void json_layer(JsonOut *json, const LayerResult *layer, Group g) {
    const LossSums *loss = &layer->loss[g];
    json_out_object(json, NULL);
    json_out_int(json, "layer", layer->layer);
    json_out_text(json, "group", group_names[g]);
    json_sums(json, &layer->sums[VARIANT_CLEAN][g]);
    if (loss->n > 0) {
        json_out_object(json, "loss");
        json_out_double(json, "clean", mean_of(loss->clean, loss->n));
        json_out_double(json, "sae", mean_of(loss->sae, loss->n));
        json_out_double(json, "zero_ablation", mean_of(loss->zero, loss->n));
        json_out_double(json, "mean_ablation", mean_of(loss->mean, loss->n));
        json_out_double(json, "recovered_zero", loss_recovered(loss, true));
        json_out_double(json, "recovered_mean", loss_recovered(loss, false));
        json_out_end(json);
    }
    json_out_double(json, "match", layer_metric(layer, METRIC_MATCH, g, VARIANT_CLEAN));
    for (Variant v = VARIANT_PERMUTED; v < VARIANTS; v++) {
        if (layer->sums[v][g].n > 0) {
            json_out_object(json, variant_names[v]);
            json_sums(json, &layer->sums[v][g]);
            json_out_end(json);
        }
    }
    json_out_end(json);
}

/* "mse_vlm_img" */
static char *curve_name(Arena *arena, Metric m, Group g) {
    return arena_format(arena, "%s_%s", metrics[m].name, group_names[g]);
}

/* The table of --compare, with all layers that it has. */
static LayerTable published_read(const char *path, Arena *arena) {
    FileMap file = file_map(arena, path);
    const char *head = arena_copy(arena, (const char *)file.data, file.size);
    LayerTable table = {.n = 0};
    size_t lines = 0, number = 1, curves = 0;
    for (const char *line = head; *line != '\0'; line = next_line(line)) {
        lines++;
    }
    const char **rows = arena_alloc(arena, lines, sizeof *rows);
    table.layer = arena_alloc(arena, lines, sizeof(double));
    for (const char *line = next_line(head); *line != '\0'; line = next_line(line)) {
        double *layer = &table.layer[table.n];
        number++;
        if (strcspn(line, "\r\n") == 0) {
            continue;
        }
        if (!csv_number(line, 0, layer) || (table.n > 0 && !(*layer > layer[-1]))) {
            fail(STATUS_INPUT, "%s:%zu: the first column is no layer number, or does not rise",
                 path, number);
        }
        rows[table.n++] = line;
    }
    for (Metric m = 0; m < METRICS; m++) {
        for (Group g = 0; g < GROUPS; g++) {
            int column = csv_column(head, curve_name(arena, m, g));
            if (column < 0) {
                continue;
            }
            double *values = table.value[m][g] = arena_alloc(arena, table.n, sizeof *values);
            for (size_t i = 0; i < table.n; i++) {
                values[i] = NAN;
                csv_number(rows[i], column, &values[i]);
            }
            curves++;
        }
    }
    if (curves == 0) {
        fail(STATUS_INPUT, "%s: no column named as mse_vlm_img, sparsity_llm_text or match_vlm_img",
             path);
    }
    return table;
}

/* A layer, or a head; null for none. */
static void json_place(JsonOut *json, const char *key, int place) {
    json_out_double(json, key, place < 0 ? (double)NAN : place);
}

static void json_convergence(JsonOut *json, const LayerTable *table, double c) {
    json_out_double(json, "layer", convergence_layer(table, true, true, c));
    json_out_double(json, "mse_layer", convergence_layer(table, true, false, c));
    json_out_double(json, "sparsity_layer", convergence_layer(table, false, true, c));
}

static void json_distances(JsonOut *json, const LayerTable *ours, const LayerTable *published,
                           Arena *arena) {
    json_out_object(json, "distance");
    for (Metric m = 0; m < METRICS; m++) {
        for (Group g = 0; g < GROUPS; g++) {
            if (published->value[m][g] != NULL) {
                json_out_double(json, curve_name(arena, m, g),
                                curve_distance(ours, published, m, g));
            }
        }
    }
    json_out_end(json);
}

static void write_layers(const AnalyzeResult *result, const LayerTable *ours,
                         const LayerTable *published, const char *path) {
    OutFile *out = out_open(path);
    double factor = result->options->converge;
    JsonOut json = json_out_start(out->stream, 2);
    json_out_object(&json, NULL);
    json_out_int(&json, "examples", (int64_t)result->examples);
    json_out_int(&json, "judged", (int64_t)result->judged);
    json_out_array(&json, "left_out");
    for (size_t i = 0; i < result->n_failures; i++) {
        json_out_text(&json, NULL, result->failures[i]);
    }
    json_out_end(&json);
    json_out_object(&json, "convergence");
    json_out_double(&json, "factor", factor);
    json_convergence(&json, ours, factor);
    if (published->n > 0) {
        json_out_object(&json, "published");
        json_convergence(&json, published, factor);
        json_out_end(&json);
    }
    json_out_end(&json);
    if (published->n > 0) {
        json_distances(&json, ours, published, out->arena);
    }
    json_out_array(&json, "layers");
    for (size_t i = 0; i < result->n_layers; i++) {
        for (Group g = 0; g < GROUPS; g++) {
            json_layer(&json, &result->layers[i], g);
        }
    }
    json_out_end(&json);
    json_out_end(&json);
    out_commit(out);
}

/* "3", or with a published table "none (published: 22)". */
static char *convergence_text(Arena *arena, const Json *convergence, const char *key) {
    const Json *published = json_get(convergence, "published");
    double layer = json_double(json_get(convergence, key));
    char *text = arena_format(arena, isnan(layer) ? "none" : "%.0f", layer);
    return published == NULL ? text
                             : arena_format(arena, "%s (published: %s)", text,
                                            convergence_text(arena, published, key));
}

/* A curve of our own; none if no layer has a value. */
static void curve_measured(Curves *curves, const AnalyzeResult *result, const char *name,
                           int colour, Metric m, Group g, Variant v) {
    double *y = curve_add(curves, name, colour, false);
    bool any = false;
    for (size_t i = 0; i < curves->n; i++) {
        y[i] = layer_metric(&result->layers[i], m, g, v);
        any = any || !isnan(y[i]);
    }
    curves->count -= any ? 0 : 1;
}

/* Each group solid, the published curve of the same colour dashed; then the controls. */
static char *layer_figure(const AnalyzeResult *result, const LayerTable *ours,
                          const LayerTable *published, const Json *convergence, Metric m,
                          Arena *arena) {
    static const char *const names[GROUPS] = {"image tokens", "text after the image",
                                              "text-only control"};
    static const char *const controls[VARIANTS] = {"", "permuted image tokens",
                                                   "Gaussian image tokens"};
    Curves curves = {.arena = arena, .n = ours->n, .x = ours->layer};
    for (Group g = 0; g < GROUPS; g++) {
        curve_measured(&curves, result, names[g], (int)g + 1, m, g, VARIANT_CLEAN);
        if (published->value[m][g] != NULL) {
            const char *name = arena_format(arena, "%s, published", names[g]);
            double *y = curve_add(&curves, name, (int)g + 1, true);
            for (size_t i = 0; i < curves.n; i++) {
                y[i] = table_value(published, m, g, ours->layer[i]);
            }
        }
    }
    for (Variant v = VARIANT_PERMUTED; v < VARIANTS; v++) {
        curve_measured(&curves, result, controls[v], (int)v + GROUPS, m, GROUP_IMG, v);
    }
    char *key = arena_format(arena, "%s_layer", metrics[m].name);
    LineChart chart = {.title = metrics[m].title,
                       .x_label = "layer",
                       .y_label = metrics[m].label,
                       .series = curves.series,
                       .series_count = curves.count,
                       .log_y = m != METRIC_MATCH,
                       .marker_x = json_double(json_get(convergence, key))};
    if (!isnan(chart.marker_x)) {
        chart.marker_label =
            arena_format(arena, "within %.3gx from layer %s", result->options->converge,
                         convergence_text(arena, convergence, key));
    }
    return svg_lines(arena, &chart);
}

/* ---- SAGE: sage.json ---- */

/* Each value once, though several attributes may have lost it. */
static void json_dropped(JsonOut *json, const SageTask *task) {
    json_out_array(json, "dropped");
    for (size_t i = 0; i < task->n_dropped; i++) {
        size_t earlier = 0;
        while (strcmp(task->dropped[earlier].value, task->dropped[i].value) != 0) {
            earlier++;
        }
        if (earlier == i) {
            json_out_text(json, NULL, task->dropped[i].value);
        }
    }
    json_out_end(json);
}

static void json_node(JsonOut *json, const SageResult *r, const SageNode *node) {
    char name[HOOK_NAME_MAX];
    hook_name(name, node->kind, node->layer, false, false);
    json_out_text(json, "node", name);
    json_place(json, "head", node->head);
    json_out_text(json, "position", r->task->positions[node->position]);
}

/* The nodes of a cross-section; scored: with their scores and effects in it. */
static void json_nodes(JsonOut *json, const char *key, const SageResult *r, size_t cross,
                       const size_t *places, size_t count, bool scored) {
    json_out_array(json, key);
    for (size_t i = 0; i < count; i++) {
        json_out_object(json, NULL);
        json_node(json, r, &r->nodes[places[i]]);
        if (scored) {
            json_out_double(json, "score", r->score[cross * r->n_nodes + places[i]]);
            json_out_double(json, "effect", r->effect[cross * r->n_nodes + places[i]]);
        }
        json_out_end(json);
    }
    json_out_end(json);
}

static void json_cross(JsonOut *json, const SageResult *r, size_t c) {
    const SageCross *cross = &r->cross[c];
    json_out_object(json, cross->name);
    json_nodes(json, "nodes", r, c, cross->nodes, cross->n_nodes, true);
    json_nodes(json, "others", r, c, cross->others, cross->n_others, true);
    json_out_double(json, "share", cross->share);
    json_out_double(json, "spearman", cross->spearman);
    json_out_array(json, "curve");
    for (size_t i = 0; i < cross->n_curve; i++) {
        json_out_object(json, NULL);
        json_out_int(json, "nodes", (int64_t)cross->curve[i].nodes);
        json_out_double(json, "share", cross->curve[i].share);
        json_out_end(json);
    }
    json_out_end(json);
    json_out_end(json);
}

/* A member for each way that leads to the node; sae is one of them. */
static void json_r2(JsonOut *json, const char *key, const double r2[SAGE_WAYS], SageWay sae) {
    static const char *const names[SAGE_WAYS] = {"mean", "mse",     "weighted", "weights",
                                                 "span", "encoder", "native"};
    json_out_object(json, key);
    for (SageWay way = 0; way < SAGE_WAYS; way++) {
        if (way == sae) {
            json_out_double(json, "sae", r2[way]);
        }
        if (!isnan(r2[way]) || way == sae || way <= SAGE_BY_WEIGHTED) {
            json_out_double(json, names[way], r2[way]);
        }
    }
    json_out_end(json);
}

static void json_fit(JsonOut *json, const SageResult *r, const SageNode *node, const SageFit *fit) {
    json_out_object(json, NULL);
    json_node(json, r, node);
    json_r2(json, "r2", fit->r2, fit->sae);
    if (!sage_node_reads(node)) {
        json_r2(json, "r2_stream", fit->r2_stream, fit->sae);
    }
    json_out_object(json, "weights");
    for (size_t i = 0; i < r->task->n_attributes; i++) {
        json_out_double(json, r->task->attributes[i].name, fit->w[i]);
    }
    json_out_end(json);
    json_out_end(json);
}

/* X, and X_ci: [low, high]; null beside null. */
static void json_figure(JsonOut *json, const char *key, SageFigure figure) {
    char name[32];
    json_out_double(json, key, figure.value);
    snprintf(name, sizeof name, "%s_ci", key);
    if (isnan(figure.low)) {
        json_out_double(json, name, NAN);
        return;
    }
    json_out_array(json, name);
    json_out_double(json, NULL, figure.low);
    json_out_double(json, NULL, figure.high);
    json_out_end(json);
}

static void json_control(JsonOut *json, const char *key, const SageControl *control, bool of_k) {
    json_out_object(json, key);
    json_figure(json, "score", control->score);
    json_out_double(json, "magnitude", control->magnitude);
    if (of_k) {
        json_out_double(json, "score_rescaled", control->score_rescaled);
        json_out_double(json, "magnitude_rescaled", control->magnitude_rescaled);
    }
    json_out_end(json);
}

/* Control in every attribute; aware: by what features stand for. */
static void json_controls(JsonOut *json, const SageResult *r, const SageCross *cross,
                          SageMethod method, bool aware) {
    const SageTests *tests = &cross->tests[method];
    json_out_object(json, aware ? "control_aware" : "control");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        json_out_object(json, r->task->attributes[a].name);
        if (!aware) {
            const SageTests *edit = &cross->tests[sage_supervised(method) ? method : SAGE_MEAN];
            json_figure(json, "none", cross->none[a]);
            json_control(json, "supervised", &edit->supervised[a], false);
        }
        for (size_t k = 0; k < SAGE_KS && !sage_supervised(method); k++) {
            char key[24];
            snprintf(key, sizeof key, "%zu", sage_ks[k]);
            json_control(json, key, &tests->control[aware][a * SAGE_KS + k], true);
        }
        json_out_end(json);
    }
    json_out_end(json);
}

/* A member for each threshold. */
static void json_thresholds(JsonOut *json, const SageResult *r, const SageF1 *f1) {
    json_out_object(json, "f1");
    for (size_t t = 0; t < r->n_thresholds; t++) {
        char key[JSON_NUMBER_SIZE];
        json_format_double(key, r->thresholds[t]);
        json_out_object(json, key);
        json_figure(json, "sufficiency", f1[t].sufficiency);
        json_figure(json, "necessity", f1[t].necessity);
        json_out_int(json, "features", (int64_t)f1[t].features);
        json_out_end(json);
    }
    json_out_end(json);
}

static void json_tests(JsonOut *json, const SageResult *r, const SageCross *cross) {
    json_out_object(json, cross->name);
    json_figure(json, "m_ablated", cross->m_ablated);
    json_out_double(json, "resolution", cross->resolution);
    for (SageMethod m = 0; m < SAGE_METHODS; m++) {
        const SageTests *tests = &cross->tests[m];
        if (m == SAGE_NATIVE && !cross->native) {
            continue;
        }
        json_out_object(json, sage_method_names[m]);
        json_figure(json, "sufficiency", tests->sufficiency);
        json_figure(json, "recovered", tests->recovered);
        json_figure(json, "necessity", tests->necessity);
        json_controls(json, r, cross, m, false);
        if (sage_of_features(m)) {
            json_controls(json, r, cross, m, true);
            json_thresholds(json, r, tests->f1);
        }
        json_out_end(json);
    }
    json_out_end(json);
}

static void json_interpretation(JsonOut *json, const SageResult *r, const SageInterpretation *f) {
    char name[HOOK_NAME_MAX];
    hook_name(name, f->kind, f->layer, false, false);
    json_out_object(json, NULL);
    json_out_text(json, "hook", name);
    json_out_text(json, "position", r->task->positions[f->position]);
    json_out_int(json, "feature", (int64_t)f->feature);
    json_out_double(json, "f1", f->f1);
    json_out_text(json, "predicate", f->predicate);
    json_out_end(json);
}

/* How many features reach each threshold, and how many would if prompts had other prompts' values.
 */
static void json_chance(JsonOut *json, const SageResult *r) {
    json_out_object(json, "interpretations_by_chance");
    for (size_t t = 0; t < r->n_thresholds; t++) {
        char key[JSON_NUMBER_SIZE];
        int64_t features = 0, permuted = 0;
        for (size_t i = 0; i < r->n_interpretations; i++) {
            features += r->interpretations[i].f1 >= r->thresholds[t];
            permuted += r->interpretations[i].permuted >= r->thresholds[t];
        }
        json_format_double(key, r->thresholds[t]);
        json_out_object(json, key);
        json_out_int(json, "features", features);
        json_out_int(json, "permuted", permuted);
        json_out_end(json);
    }
    json_out_end(json);
}

static void write_sage(const SageResult *r, const char *path) {
    OutFile *out = out_open(path);
    JsonOut json = json_out_start(out->stream, 4);
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
    json_figure(&json, "m_clean", r->m_clean);
    json_out_double(&json, "m_positive", r->m_positive);
    json_out_end(&json);
    json_out_object(&json, "cross_sections");
    for (size_t c = 0; c < r->n_cross; c++) {
        json_cross(&json, r, c);
    }
    json_out_end(&json);
    json_out_object(&json, "dictionaries");
    for (size_t c = 0; c < r->n_cross; c++) {
        const SageCross *cross = &r->cross[c];
        json_out_array(&json, cross->name);
        for (size_t i = 0; i < cross->n_nodes; i++) {
            json_fit(&json, r, &r->nodes[cross->nodes[i]], &cross->fits[i]);
        }
        json_out_end(&json);
    }
    json_out_end(&json);
    json_out_object(&json, "tests");
    for (size_t c = 0; c < r->n_cross; c++) {
        json_tests(&json, r, &r->cross[c]);
    }
    json_out_end(&json);
    json_out_array(&json, "interpretations");
    for (size_t i = 0; i < r->n_interpretations; i++) {
        json_interpretation(&json, r, &r->interpretations[i]);
    }
    json_out_end(&json);
    json_chance(&json, r);
    json_out_end(&json);
    out_commit(out);
}

/* cross_sections.json, as --cross-sections takes it. */
static void write_cross_sections(const SageResult *r, const char *path) {
    OutFile *out = out_open(path);
    JsonOut json = json_out_start(out->stream, 3);
    json_out_object(&json, NULL);
    for (size_t c = 0; c < r->n_cross; c++) {
        json_out_object(&json, r->cross[c].name);
        json_nodes(&json, "nodes", r, c, r->cross[c].nodes, r->cross[c].n_nodes, false);
        json_out_end(&json);
    }
    json_out_end(&json);
    out_commit(out);
}

/* ---- SAGE: tables ---- */

/* All nodes of all cross-sections. */
static void write_nodes(const SageResult *r, const char *path) {
    OutFile *out = out_open(path);
    Csv csv = csv_start(out->stream, "cross_section,node,head,position,score,chosen,effect");
    for (size_t i = 0; i < r->n_cross * r->n_nodes; i++) {
        const SageNode *node = &r->nodes[i % r->n_nodes];
        char name[HOOK_NAME_MAX];
        hook_name(name, node->kind, node->layer, false, false);
        csv_text(&csv, r->cross[i / r->n_nodes].name);
        csv_text(&csv, name);
        csv_double(&csv, node->head < 0 ? (double)NAN : node->head);
        csv_text(&csv, r->task->positions[node->position]);
        csv_double(&csv, r->score[i]);
        csv_int(&csv, r->chosen[i] ? 1 : 0);
        csv_double(&csv, r->effect[i]);
        csv_end(&csv);
    }
    out_commit(out);
}

/* The tests of all attributes and methods, and of parts (subset) of their features. */
static Lines tested_lines(const Json *attributes, Arena *arena) {
    Lines lines = {.arena = arena};
    for (const Json *a = first_member(attributes); a != NULL; a = a->next) {
        for (const Json *m = first_member(a); m != NULL; m = m->next) {
            lines_add(&lines, a->key, m->key, "all", m);
            for (const Json *f1 = first_member(json_get(m, "f1")); f1 != NULL; f1 = f1->next) {
                lines_add(&lines, a->key, m->key, arena_format(arena, "f1>=%s", f1->key),
                          json_get(f1, "above"));
                lines_add(&lines, a->key, m->key, arena_format(arena, "f1<%s", f1->key),
                          json_get(f1, "below"));
            }
        }
    }
    return lines;
}

/* score: a number, or what a control is made of. */
static void csv_test(Csv *csv, const Line *t, const char *test, const char *k, const Json *score) {
    bool control = json_is(score, JSON_OBJECT);
    for (size_t i = 0; i < 3; i++) {
        csv_text(csv, t->keys[i]);
    }
    csv_text(csv, test);
    csv_text(csv, k);
    csv_value(csv, control ? json_get(score, "score") : score);
    csv_value(csv, json_get(score, "magnitude"));
    csv_value(csv, json_get(score, "rescaled_magnitude"));
    csv_end(csv);
}

/* A row for each figure; k is empty where it does not apply. */
static void write_tests(const Lines *tested, const char *path) {
    OutFile *out = out_open(path);
    Csv csv =
        csv_start(out->stream, "attribute,method,subset,test,k,score,magnitude,rescaled_magnitude");
    for (size_t i = 0; i < tested->count; i++) {
        const Line *t = &tested->list[i];
        const Json *single = json_get(t->values, "control_supervised");
        csv_test(&csv, t, "sufficiency", "", json_get(t->values, "sufficiency"));
        csv_test(&csv, t, "necessity", "", json_get(t->values, "necessity"));
        for (const Json *k = first_member(json_get(t->values, "control")); k != NULL; k = k->next) {
            csv_test(&csv, t, "control", k->key, k);
        }
        if (single != NULL) {
            csv_test(&csv, t, "control", "", single);
        }
    }
    out_commit(out);
}

/* ---- SAGE: figures ---- */

static bool same_component(const SageNode *a, const SageNode *b) {
    return a->kind == b->kind && a->layer == b->layer && a->head == b->head;
}

static int compare_falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* "L3.H1 z", "L3 mlp_out", with a space that does not break */
static char *short_name(Arena *arena, const SageNode *node) {
    char full[HOOK_NAME_MAX], head[16] = "";
    hook_name(full, node->kind, node->layer, false, false);
    if (node->head >= 0) {
        snprintf(head, sizeof head, ".H%d", node->head);
    }
    return arena_format(arena, "L%d%s\xC2\xA0%s", node->layer, head,
                        strstr(full, "hook_") + strlen("hook_"));
}

/* A cross-section as a heat map, components by positions: nodes stand component by component. Of
 * many components those are shown whose largest |score| is a fiftieth of the largest of all or
 * more, and HEAT_ROWS at most. */
static char *heat_figure(const SageResult *r, size_t attribute, Arena *arena) {
    enum {
        HEAT_ROWS = 40
    };
    const double *score = r->score + attribute * r->n_nodes;
    const char *names[HEAT_ROWS];
    size_t columns = r->task->n_positions, n = 0, shown = 0;
    size_t *row = arena_alloc(arena, r->n_nodes, sizeof *row);
    double *peak = arena_alloc(arena, r->n_nodes, sizeof *peak),
           *falling = arena_alloc(arena, r->n_nodes, sizeof *falling), least = 0;
    double *values = arena_alloc(arena, HEAT_ROWS * columns, sizeof *values);
    bool *marked = arena_alloc(arena, HEAT_ROWS * columns, sizeof *marked);
    for (size_t i = 0; i < r->n_nodes; i++) {
        n += i == 0 || !same_component(&r->nodes[i - 1], &r->nodes[i]) ? 1 : 0;
        row[i] = n - 1;
        peak[n - 1] = fmax(peak[n - 1], fabs(score[i]));
    }
    if (n > HEAT_ROWS) {
        memcpy(falling, peak, n * sizeof *falling);
        qsort(falling, n, sizeof *falling, compare_falling);
        least = fmax(falling[HEAT_ROWS - 1], falling[0] / 50);
    }
    for (size_t i = 0; i < HEAT_ROWS * columns; i++) {
        values[i] = NAN;
    }
    for (size_t i = 0, last = SIZE_MAX; i < r->n_nodes; i++) {
        if (peak[row[i]] < least || (row[i] != last && shown == HEAT_ROWS)) {
            continue;
        }
        if (row[i] != last) {
            names[shown++] = short_name(arena, &r->nodes[i]);
            last = row[i];
        }
        size_t cell = (shown - 1) * columns + r->nodes[i].position;
        values[cell] = score[i];
        marked[cell] = r->chosen[attribute * r->n_nodes + i];
    }
    HeatMap map = {.title = arena_format(arena, "Where %.60s is carried", r->cross[attribute].name),
                   .subtitle = "attribution patching, mean over the training prompts",
                   .x_label = "position",
                   .value_label = "score",
                   .rows = names,
                   .row_count = shown,
                   .columns = r->task->positions,
                   .column_count = columns,
                   .values = values,
                   .marked = marked};
    return svg_heat(arena, &map);
}

/* "heat_IO.svg"; a name that no file should bear is made safe and gets its number. */
static char *figure_name(Arena *arena, const char *what, const char *name, size_t attribute) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t length = strlen(name), plain = strspn(name, safe);
    return length == plain && length > 0 && length <= 40
               ? arena_format(arena, "%s_%s.svg", what, name)
               : arena_format(arena, "%s_%.*s.%zu.svg", what, plain < 40 ? (int)plain : 40, name,
                              attribute);
}

static void write_sage_figures(const SageResult *r, Arena *arena) {
    const char *out = r->options->out;
    for (size_t a = 0; a < r->n_cross; a++) {
        const char *name = r->cross[a].name;
        write_figure(arena, out, figure_name(arena, "heat", name, a), heat_figure(r, a, arena));
    }
}

/* ---- the page: what the files of folders say ----
 * A page is made from files alone, so that one of several folders is made as that of one. Only how
 * the files came about stands nowhere else: it is copied from page to page, between marks. */

#define MADE "<!--refsae made-->\n"
#define MADE_END "<!--/refsae made-->\n"

typedef struct Folder {
    Page *page;
    const char *path;
    Arena *arena;
} Folder;

/* A file of the folder; one that is missing, cannot be read or is no UTF-8 is as an empty one. */
static const char *folder_text(const Folder *f, const char *name) {
    FileMap map;
    Error unread;
    ATTEMPT(&unread, map = file_map(f->arena, path_join(f->arena, f->path, name)));
    if (unread.status != STATUS_OK || !utf8_valid((const char *)map.data, map.size)) {
        return "";
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
    const Json *volatile json = NULL;
    Error unread;
    ATTEMPT(&unread, json = json_read_file(f->arena, path_join(f->arena, f->path, name)));
    return json_is(json, JSON_OBJECT) ? json : NULL;
}

/* Only what refsae drew. */
static void show_figure(const Folder *f, const char *name, const char *caption) {
    static const char begin[] = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rf\"";
    const char *text = folder_text(f, name);
    char *inside = text_between(f->arena, text, begin, "</svg>");
    if (strncmp(text, begin, strlen(begin)) == 0 && *inside != '\0') {
        page_figure(f->page, caption, arena_format(f->arena, "%s%s</svg>\n", begin, inside));
    }
}

static bool is_control(const Json *value) {
    return json_get(value, "score") != NULL;
}

/* Numbers keep a column's points in line; a control is its score (magnitude). */
static void show_cell(Page *page, const Json *value) {
    char text[TEXT_NUMBER_SIZE];
    double number = json_double(value), size = fabs(number);
    text_number(text, number, 4);
    if (is_control(value)) {
        snprintf(text, sizeof text, "%.2f (%.2f)", json_double(json_get(value, "score")),
                 json_double(json_get(value, "magnitude")));
    } else if (size >= 1e-4 && size < 1e3 && floor(size) != size) {
        snprintf(text, sizeof text, "%s%#.4g", number < 0 ? "−" : "", size);
    }
    bool is_text = value == NULL || json_is(value, JSON_STRING);
    page_cell(page, !is_text, is_text ? text_of(value) : text);
}

typedef struct Columns {
    const char *outer[64], *name[64]; /* outer "": a member of the line itself */
    const char *titles[64];
    bool number[64];
    size_t count;
} Columns;

/* Adds what can be a cell, unless it is there. */
static void column_add(Columns *c, const char *outer, const Json *value, Arena *arena) {
    size_t i = 0, most = sizeof c->name / sizeof *c->name;
    while (i < c->count &&
           (strcmp(c->name[i], value->key) != 0 || strcmp(c->outer[i], outer) != 0)) {
        i++;
    }
    if (i == c->count && i < most && (!json_is(value, JSON_OBJECT) || is_control(value))) {
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
        for (const Json *v = first(lines->list[i].values); v != NULL; v = v->next) {
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
            bool inner = *columns.outer[c] != '\0';
            show_cell(f->page,
                      json_get(inner ? json_get(line->values, columns.outer[c]) : line->values,
                               columns.name[c]));
        }
    }
}

/* ---- the page: training, questions, the layer analysis ---- */

/* train.csv: steps, first and last loss. */
static void show_training(const Folder *f) {
    const char *line = folder_text(f, "train.csv");
    int column = csv_column(line, "loss");
    double begin = 0, end = 0;
    size_t steps = 0;
    while (column >= 0 && *(line = next_line(line)) != '\0') {
        if (csv_number(line, column, &end)) {
            begin = steps++ == 0 ? end : begin;
        }
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
    const Json *convergence = json_get(result, "convergence"), *layers = json_get(result, "layers"),
               *distance = json_get(result, "distance"), *left_out = json_get(result, "left_out");
    Lines lines = {.arena = f->arena};
    page_section(f->page, "Image tokens through the layers");
    page_value(f->page, "examples", "%.0f", json_double(json_get(result, "examples")));
    page_value(f->page, "of them judged", "%.0f", json_double(json_get(result, "judged")));
    page_value(f->page, "layers with an SAE", "%zu", layers == NULL ? 0 : layers->length / GROUPS);
    page_value(f->page, "convergence layer, MSE", "%s",
               convergence_text(f->arena, convergence, "mse_layer"));
    page_value(f->page, "convergence layer, sparsity", "%s",
               convergence_text(f->arena, convergence, "sparsity_layer"));
    page_paragraph(
        f->page,
        "Image tokens (vlm_img), the text after them (vlm_imgtext) and a text-only control that "
        "states the answer (llm_text), each read at hook_resid_post through the SAE of the same "
        "layer. The convergence layer of MSE or sparsity is the first from which that of image "
        "tokens stays within a factor of %.3g of the control's.",
        json_double(json_get(convergence, "factor")));
    show_figure(f, "mse.svg", "Mean squared error of the SAE's reconstruction");
    show_figure(f, "sparsity.svg", "Share of the SAE's features that are active");
    show_figure(f, "match.svg",
                "Share of the judged examples in which one of the strongest features that are "
                "rare enough has a description that matches the answer");
    lines_add_all(&lines, NULL, layers);
    show_table(f,
               "Means over examples. The controls replace the image tokens; loss recovered is of "
               "the first answer's tokens when the SAE's output replaces the group's stream.",
               NULL, &lines);
    if (distance != NULL) {
        page_section(f->page, "Compared with the published curves");
        page_paragraph(f->page, "Mean over layers of |log10(ours / published)|, for the match rate "
                                "of |ours − published|:");
        for (const Json *v = first_member(distance); v != NULL; v = v->next) {
            page_fact(f->page, v->key, "%.3f", json_double(v));
        }
    }
    for (const Json *v = first(left_out); v != NULL; v = v->next) {
        page_fact(f->page, "left out", "%s", text_of(v));
    }
}

/* ---- the page: SAGE ---- */

static void show_cross_section(const Folder *f, const Json *cross, size_t a) {
    const char *name = cross->key;
    char spearman[TEXT_NUMBER_SIZE];
    const Json *nodes = json_get(cross, "nodes");
    Lines lines = {.arena = f->arena};
    page_section(f->page, arena_format(f->arena, "Cross-section of %s", name));
    show_figure(f, figure_name(f->arena, "heat", name, a),
                "Attribution score of each node: by how much m is expected to change if this node "
                "alone took its value from a prompt with another value of the attribute. Outlined: "
                "the cross-section. Of many components those with the largest scores; all are in "
                "cross_sections.csv.");
    text_number(spearman, json_double(json_get(cross, "spearman")), 3);
    page_paragraph(
        f->page,
        "The walk down these scores carries %.1f %% of all |score|; of the nodes walked, %zu "
        "remain once those are left out whose output another one already holds. A score is a "
        "first-order estimate, so the true effect on m of patching one node at a time was measured "
        "for them and for random others. The two orders agree with a Spearman correlation of %s "
        "(1: the same order, 0: unrelated).",
        100 * json_double(json_get(cross, "share")), nodes == NULL ? 0 : nodes->length, spearman);
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
        "below 0 worse. mean, mse and weighted are supervised: they know every attribute's value "
        "and add one vector for each. sae is the projection that the tests use; weights, span and "
        "encoder are the ways to carry a residual-stream SAE to a node. The weight of an attribute "
        "is the share of its mean feature that the weighted dictionary keeps at this node: 0 where "
        "the attribute does not move it.");
    for (const Json *a = first_member(dictionaries); a != NULL; a = a->next) {
        lines_add_all(&lines, a->key, a);
    }
    show_table(f, "Nodes of each cross-section", "cross-section", &lines);
}

static double feature_f1(const Json *interpretation) {
    return json_double(json_get(interpretation, "f1"));
}

/* The best by F1, equal ones in their order. */
static void show_interpretations(const Folder *f, const Json *interpretations) {
    const size_t most = 30;
    size_t all = interpretations == NULL ? 0 : interpretations->length;
    Lines best = {.arena = f->arena};
    for (const Json *v = first(interpretations); v != NULL; v = v->next) {
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
        "A feature's interpretation is the predicate on attribute values (a value, a value in one "
        "form, or a union of values) that best predicts on which test prompts the feature is "
        "active. F1 is the harmonic mean of how often the predicate holds when the feature is "
        "active and how often the feature is active when the predicate holds; 1: they are the "
        "same.");
    char *caption = arena_format(
        f->arena, "The best %zu of %zu interpretations; all are in sage.json", best.count, all);
    show_table(f, caption, NULL, &best);
}

static void show_methods(const Folder *f, const Json *attributes) {
    size_t a = 0;
    page_section(f->page, "Sufficiency and necessity");
    page_paragraph(f->page,
                   "Sufficiency asks whether a dictionary holds all that matters: the activations "
                   "of a cross-section are replaced by what the dictionary makes of them, and m is "
                   "divided by that of the untouched model. 1: nothing was lost; 0: the model no "
                   "longer prefers the right answer.");
    show_figure(f, "sufficiency.svg",
                "Sufficiency: the model runs on reconstructions. The dashed line is the untouched "
                "model.");
    page_paragraph(f->page,
                   "Necessity asks whether what matters is in the dictionary and nowhere else: the "
                   "dictionary's part is taken away and its error left in place. 1: this hurts as "
                   "much as replacing the activations by their mean; 0: the model does as well as "
                   "before, so what it used was in the error.");
    show_figure(f, "necessity.svg",
                "Necessity: the model runs on what the dictionary leaves out. The dashed line is "
                "mean ablation.");
    page_section(f->page, "Sparse control");
    page_paragraph(
        f->page,
        "Control asks whether an attribute can be changed with few features: the nodes are edited "
        "towards the activations of a prompt with another value, and the score is the share of "
        "test prompts whose predicted token is the one that those activations themselves bring "
        "about. 1: the edit does the whole job. A supervised edit swaps one vector; an SAE edit "
        "adds or removes at most k features at each node, chosen greedily. The magnitude (in "
        "brackets in the table) says how much of the reconstruction was taken away: near 1 all of "
        "it was replaced, so a good edit has a high score at a low magnitude.");
    for (const Json *v = first_member(attributes); v != NULL; v = v->next) {
        show_figure(f, figure_name(f->arena, "control", v->key, a++),
                    "Dashed: edits that do not depend on k, and the model without any edit.");
    }
}

static void show_sage(const Folder *f, const Json *result) {
    const Json *baseline = json_get(result, "baseline"), *prompts = json_get(result, "prompts"),
               *crosses = json_get(result, "cross_sections");
    const char *name = text_of(json_get(result, "task")),
               *model = text_of(json_get(result, "model"));
    Lines tested = tested_lines(json_get(result, "tests"), f->arena);
    size_t a = 0;
    page_section(f->page, arena_format(f->arena, "SAGE: %s, %s", name, model));
    page_value(f->page, "answers right", "%.1f %%",
               100 * json_double(json_get(baseline, "accuracy")));
    page_value(f->page, "mean m (nats)", "%.3g", json_double(json_get(baseline, "m_clean")));
    page_value(f->page, "training and test prompts", "%.0f + %.0f",
               json_double(json_get(prompts, "train")), json_double(json_get(prompts, "test")));
    page_paragraph(
        f->page,
        "The task “%s” has attributes that a person can name. SAGE finds where the model "
        "carries each of them, builds the best dictionary that knowledge of the attribute allows, "
        "and holds sparse autoencoders against it. m is log p(right answer) − log p(wrong "
        "answer) at the last token: above 0 the model prefers the right one.",
        name);
    show_table(f,
               "All tests together, control with k features as score (magnitude). weighted is the "
               "supervised reference, sae what is judged, random the same SAE with random decoder "
               "directions, none the model without an edit. Closer to 1 is better everywhere. f1 "
               "rows use only the features whose best interpretation reaches that F1, or only the "
               "others.",
               "attribute|method|features", &tested);
    for (const Json *cross = first_member(crosses); cross != NULL; cross = cross->next) {
        show_cross_section(f, cross, a++);
    }
    show_methods(f, crosses);
    show_fits(f, json_get(result, "dictionaries"));
    show_interpretations(f, json_get(result, "interpretations"));
}

/* ---- the page: how results came about ---- */

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* From the folder's own page. If that is the one that will be replaced, the marks stay, so that
 * the next page finds them. */
static void show_made(const Folder *f, const char *out) {
    char *made = text_between(f->arena, folder_text(f, "report.html"), MADE, MADE_END);
    bool own = same_file(path_join(f->arena, f->path, "report.html"), out);
    if (*made != '\0') {
        page_section(f->page, "How this was made");
        page_raw(f->page, own ? arena_format(f->arena, MADE "%s" MADE_END, made) : made);
    }
}

/* All that the folder holds. */
static void show_folder(const Folder *f) {
    const Json *scores = folder_json(f, "scores.json"), *layers = folder_json(f, "layers.json"),
               *sage = folder_json(f, "sage.json");
    int before = f->page->sections;
    show_training(f);
    if (scores != NULL) {
        page_section(f->page, "Questions about images, answered and scored");
        show_scores(f, scores, "");
    }
    if (layers != NULL) {
        show_layers(f, layers);
    }
    if (sage != NULL) {
        show_sage(f, sage);
    }
    if (f->page->sections == before) {
        page_paragraph(f->page, "This folder holds neither train.csv, scores.json, layers.json nor "
                                "sage.json.");
    }
}

/* ---- reports ---- */

/* The page of the folder `out`, up to how it came about: that follows, up to MADE_END. */
static Page page_of(const char *out, const char *title, const char *command, Arena *arena) {
    Page page;
    page_open(&page, path_join(arena, out, "report.html"), title);
    show_folder(&(Folder){&page, out, arena});
    page_section(&page, "How this was made");
    page_raw(&page, MADE);
    page_fact(&page, "command", "%s", command);
    return page;
}

void report_analyze(const AnalyzeResult *result) {
    Arena *arena = arena_new();
    const AnalyzeOptions *o = result->options;
    LayerTable ours = layer_table(arena, result), published = {.n = 0};
    char *path = path_join(arena, o->out, "layers.json");
    if (o->compare != NULL) {
        published = published_read(o->compare, arena);
    }
    write_layers(result, &ours, &published, path);
    const Json *json = json_read_file(arena, path), *convergence = json_get(json, "convergence");
    write_csv(path_join(arena, o->out, "layers.csv"), json_get(json, "layers"),
              "layer,group,mse,sparsity,l0,fvu,cosine,norm,loss.recovered_zero,loss.recovered_mean,"
              "match,permuted.mse,permuted.sparsity,permuted.fvu,permuted.cosine,permuted.norm,"
              "gaussian.mse,gaussian.sparsity,gaussian.fvu,gaussian.cosine,gaussian.norm");
    for (Metric m = 0; m < METRICS; m++) {
        write_figure(arena, o->out, metrics[m].file,
                     layer_figure(result, &ours, &published, convergence, m, arena));
    }
    Page page = page_of(o->out, "refsae analyze", result->console->command, arena);
    page_fact(&page, "seed", "%llu", (unsigned long long)o->seed);
    page_digest(&page, "language model", o->llm);
    page_digest(&page, "vision tower", o->vision);
    page_digest(&page, "adapter", o->adapter);
    page_digest(&page, "data", o->data);
    for (size_t i = 0; i < result->n_layers; i++) {
        const Sae *sae = result->layers[i].sae;
        page_fact(&page, arena_format(arena, "SAE of layer %d", result->layers[i].layer),
                  "%s, %zu features", sae_source_name(sae->source), sae->d_sae);
        page_digest(&page, "", sae->store.count > 0 ? sae->store.tensors[0].file : sae->path);
    }
    page_raw(&page, MADE_END);
    page_commit(&page);
    for (const Json *v = first(json_get(json, "distance")); v != NULL; v = v->next) {
        console_line(result->console, "distance to the published %s: %.3f", v->key, json_double(v));
    }
    console_line(result->console, "convergence layer: MSE %s, sparsity %s",
                 convergence_text(arena, convergence, "mse_layer"),
                 convergence_text(arena, convergence, "sparsity_layer"));
    console_line(result->console, "%zu examples, %zu of them judged, %zu left out",
                 result->examples, result->judged, result->n_failures);
    arena_free(arena);
}

void report_sage(const SageResult *result) {
    Arena *arena = arena_new();
    const SageOptions *o = result->options;
    const SageTask *task = result->task;
    char *json = path_join(arena, o->out, "sage.json");
    write_sage(result, json);
    Lines tested = tested_lines(json_get(json_read_file(arena, json), "tests"), arena);
    write_tests(&tested, path_join(arena, o->out, "sage.csv"));
    write_nodes(result, path_join(arena, o->out, "cross_sections.csv"));
    write_cross_sections(result, path_join(arena, o->out, "cross_sections.json"));
    write_sage_figures(result, arena);
    Page page = page_of(o->out, "refsae sage", result->console->command, arena);
    page_digest(&page, "model", o->llm);
    page_fact(&page, "task", "%s", task->file);
    page_fact(&page, "seed", "%llu", (unsigned long long)o->seed);
    page_fact(&page, "nodes", "%zu of %s, share %g, at most %zu", result->n_nodes, o->nodes,
              o->share, o->max_nodes);
    page_fact(&page, "projection", "%s", o->projection);
    page_digest(&page, "prompts from", o->prompts);
    page_digest(&page, "prompts", path_join(arena, o->out, "prompts.jsonl"));
    for (size_t i = 0; i < task->n_dropped; i++) {
        page_fact(&page, i == 0 ? "dropped: not one token" : "", "%s=%s",
                  task->dropped[i].attribute, task->dropped[i].value);
    }
    for (size_t i = 0; i < result->n_saes; i++) {
        page_fact(&page, i == 0 ? "SAEs" : "", "%s", result->sae_names[i]);
    }
    page_raw(&page, MADE_END);
    page_commit(&page);
    for (size_t a = 0; a < result->n_cross; a++) {
        const SageTests *t = result->cross[a].tests;
        console_line(
            result->console,
            "%s: sufficiency weighted %.3f, sae %.3f, random %.3f; necessity %.3f, %.3f, %.3f",
            result->cross[a].name, t[SAGE_WEIGHTED].sufficiency.value,
            t[SAGE_SAE].sufficiency.value, t[SAGE_RANDOM].sufficiency.value,
            t[SAGE_WEIGHTED].necessity.value, t[SAGE_SAE].necessity.value,
            t[SAGE_RANDOM].necessity.value);
    }
    arena_free(arena);
}

void report_train(const TrainResult *result) {
    Arena *arena = arena_new();
    double *x = arena_alloc(arena, result->steps, sizeof *x);
    for (size_t i = 0; i < result->steps; i++) {
        x[i] = (double)(i + 1);
    }
    Series series = {.name = "loss", .x = x, .y = result->loss, .count = result->steps};
    LineChart chart = {.title = "Adapter training",
                       .x_label = "step",
                       .y_label = "cross-entropy of the answers (nats)",
                       .series = &series,
                       .series_count = 1};
    write_figure(arena, result->options->out, "loss.svg", svg_lines(arena, &chart));
    arena_free(arena);
}

/* The last component of a path: "demo/permuted/" is "permuted", "." the name of where one is. */
static char *folder_name(Arena *arena, const char *directory) {
    char *real = realpath(directory, NULL);
    const char *path = real != NULL ? real : directory, *slash = strrchr(path, '/');
    const char *name = slash != NULL && slash[1] != '\0' ? slash + 1 : path;
    char *copy = arena_copy(arena, name, strlen(name));
    free(real);
    return copy;
}

void report_merge(const char *out, const char *title, char *const *directories, size_t count) {
    Page page;
    page_open(&page, out, title);
    for (size_t i = 0; i < count; i++) {
        Folder folder = {&page, directories[i], arena_new()};
        if (!path_is_directory(directories[i])) {
            fail(STATUS_INPUT, "%s: no such folder", directories[i]);
        }
        page_chapter(&page, folder_name(folder.arena, directories[i]));
        show_folder(&folder);
        show_made(&folder, out);
        arena_free(folder.arena);
    }
    page_commit(&page);
}

/* report.c: results as CSV and JSON, as figures, and as a page made from those. See report.h. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "report.h"

#include "elementary.h"
#include "figure.h"
#include "json.h"

#include <errno.h>
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

typedef struct Curves {
    Arena *arena;
    Series *series;
    size_t count, capacity, n;
    const double *x; /* [n]: what those of curve_add are over */
} Curves;

static void curve_take(Curves *curves, Series series) {
    curves->series = arena_grow(curves->arena, curves->series, &curves->capacity, curves->count + 1,
                                sizeof series);
    curves->series[curves->count++] = series;
}

/* The y of a new curve, [n]. */
static double *curve_add(Curves *curves, const char *name, int colour, bool dashed) {
    double *y = arena_alloc(curves->arena, curves->n, sizeof *y);
    curve_take(curves, (Series){name, curves->x, y, curves->n, dashed, colour, NULL, NULL});
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

LayerTable published_read(Arena *arena, const char *path) {
    LayerTable table = {.n = 0};
    if (path == NULL) {
        return table;
    }
    FileMap file = file_map(arena, path);
    const char *head = arena_copy(arena, (const char *)file.data, file.size);
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
    if (table.n == 0) {
        fail(STATUS_INPUT, "%s: a head without layers below it", path);
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
    if (result->verdicts > 0) {
        json_out_object(&json, "verdicts");
        json_out_int(&json, "given", (int64_t)result->verdicts);
        json_out_int(&json, "used", (int64_t)result->verdicts_used);
        json_out_end(&json);
    }
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
static void json_r2(JsonOut *json, const char *key, const double r2[SAGE_WAYS], bool reads,
                    SageWay sae) {
    static const char *const names[SAGE_WAYS] = {"mean", "mse",     "weighted", "weights",
                                                 "span", "encoder", "native"};
    json_out_object(json, key);
    for (SageWay way = 0; way < SAGE_WAYS; way++) {
        if (way == sae) {
            json_out_double(json, "sae", r2[way]);
        }
        bool leads = way == SAGE_BY_NATIVE                           ? !isnan(r2[way])
                     : way == SAGE_BY_WEIGHTS                        ? reads
                     : way == SAGE_BY_SPAN || way == SAGE_BY_ENCODER ? !reads
                                                                     : true;
        if (leads) {
            json_out_double(json, names[way], r2[way]);
        }
    }
    json_out_end(json);
}

static void json_fit(JsonOut *json, const SageResult *r, const SageNode *node, const SageFit *fit) {
    json_out_object(json, NULL);
    json_node(json, r, node);
    bool reads = sage_node_reads(node);
    json_r2(json, "r2", fit->r2, reads, fit->sae);
    if (!reads) {
        json_r2(json, "r2_stream", fit->r2_stream, false, fit->sae);
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
static void json_thresholds(JsonOut *json, const SageResult *r, SageMethod method,
                            const SageF1 *f1) {
    json_out_object(json, "f1");
    for (size_t t = 0; t < r->n_thresholds; t++) {
        char key[JSON_NUMBER_SIZE];
        if (!sage_threshold_tested(r->options, method, r->thresholds[t])) {
            continue;
        }
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
            json_thresholds(json, r, m, tests->f1);
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
    json_out_int(json, "support", (int64_t)f->support);
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

/* example.json: the first test prompt's tokens, and which of them have names. */
static void write_example(const SageResult *r, const char *path) {
    const SageForm *form = &r->task->prompts[SAGE_TEST][0].clean;
    OutFile *out = out_open(path);
    JsonOut json = json_out_start(out->stream, 2);
    json_out_object(&json, NULL);
    json_out_array(&json, "tokens");
    for (size_t i = 0; i < form->rows; i++) {
        json_out_text(&json, NULL, r->example[i]);
    }
    json_out_end(&json);
    json_out_object(&json, "positions");
    for (size_t i = 0; i < r->task->n_positions; i++) {
        json_out_int(&json, r->task->positions[i], (int64_t)form->positions[i]);
    }
    json_out_end(&json);
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

/* "X_ci" stands beside the figure X. */
static bool is_interval(const Json *value) {
    size_t length = strlen(value->key);
    return length > 3 && strcmp(value->key + length - 3, "_ci") == 0;
}

/* Where a figure stands in sage.json, and it with its interval. */
static void csv_figure(Csv *csv, const char *const path[5], const Json *object,
                       const Json *figure) {
    char name[64];
    snprintf(name, sizeof name, "%s_ci", figure->key);
    const Json *low = first(json_get(object, name));
    for (size_t i = 0; i < 5; i++) {
        csv_text(csv, path[i]);
    }
    csv_text(csv, figure->key);
    csv_value(csv, figure);
    csv_value(csv, low);
    csv_value(csv, low == NULL ? NULL : low->next);
    csv_end(csv);
}

/* All figures below an object at `depth`. Those of f1 have no attribute. */
static void csv_figures(Csv *csv, const char *path[5], size_t depth, const Json *object) {
    for (const Json *v = first_member(object); v != NULL; v = v->next) {
        if (json_is(v, JSON_OBJECT) && depth < 5) {
            path[depth] = v->key;
            csv_figures(csv, path, depth + (depth == 2 && strcmp(v->key, "f1") == 0 ? 2 : 1), v);
            path[depth] = "";
        } else if (!is_interval(v)) {
            csv_figure(csv, path, object, v);
        }
    }
}

static void write_tests(const Json *tests, const char *path) {
    OutFile *out = out_open(path);
    const char *place[5] = {"", "", "", "", ""};
    Csv csv =
        csv_start(out->stream, "cross_section,method,test,attribute,k_or_t,figure,value,low,high");
    csv_figures(&csv, place, 0, tests);
    out_commit(out);
}

/* ---- SAGE: figures ---- */

static bool same_component(const SageNode *a, const SageNode *b) {
    return a->kind == b->kind && a->layer == b->layer && a->head == b->head;
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
           *rising = arena_alloc(arena, r->n_nodes, sizeof *rising), least = 0;
    double *values = arena_alloc(arena, HEAT_ROWS * columns, sizeof *values);
    bool *marked = arena_alloc(arena, HEAT_ROWS * columns, sizeof *marked);
    for (size_t i = 0; i < r->n_nodes; i++) {
        n += i == 0 || !same_component(&r->nodes[i - 1], &r->nodes[i]) ? 1 : 0;
        row[i] = n - 1;
        peak[n - 1] = fmax(peak[n - 1], fabs(score[i]));
    }
    if (n > HEAT_ROWS) {
        memcpy(rising, peak, n * sizeof *rising);
        qsort(rising, n, sizeof *rising, compare_doubles);
        least = fmax(rising[n - HEAT_ROWS], rising[n - 1] / 50);
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

/* What is compared with none, in the order and the colours of every figure; the last three have
 * features. */
static const struct {
    const char *name;
    int colour;
} methods[] = {{"mean", 1}, {"mse", 2}, {"weighted", 3}, {"sae", 4}, {"native", 7}, {"random", 5}};

enum {
    METHODS = sizeof methods / sizeof *methods,
    FEATURED = METHODS - 3
};

static const Json *member_of(const Json *value, const char *a, const char *b) {
    return json_get(json_get(value, a), b);
}

/* A curve of a figure: a point for each child of the list, or for what it has of the method, over
 * the number `over` or, for NULL, over the child's own name. */
static void curve_read(Curves *curves, Series series, const Json *list, const char *method,
                       const char *over, const char *figure) {
    size_t n = list == NULL ? 0 : list->length;
    double *x = arena_alloc(curves->arena, 4 * n, sizeof *x), *y = x + n, *low = y + n,
           *high = low + n;
    const char *interval = arena_format(curves->arena, "%s_ci", figure);
    for (const Json *v = first(list); v != NULL; v = v->next, series.count++) {
        const Json *object = method == NULL ? v : json_get(v, method);
        const Json *ends = first(json_get(object, interval));
        x[series.count] = over == NULL ? strtod(v->key, NULL) : json_double(json_get(object, over));
        y[series.count] = json_double(json_get(object, figure));
        low[series.count] = json_double(ends);
        high[series.count] = json_double(ends == NULL ? NULL : ends->next);
    }
    series.x = x;
    series.y = y;
    series.low = low;
    series.high = high;
    curve_take(curves, series);
}

/* Does a cross-section have it? native is not always there. */
static bool method_stands(const Json *tests, const char *method) {
    const Json *cross = first_member(tests);
    while (cross != NULL && json_get(cross, method) == NULL) {
        cross = cross->next;
    }
    return cross != NULL;
}

/* Why sufficiency and necessity in a cross-section, or (attribute not NULL) edits of an attribute
 * there, cannot tell methods apart; NULL if they can. */
static const char *untold(const Json *cross, const char *attribute, Arena *arena) {
    bool edits = attribute != NULL;
    double value =
        json_double(edits ? member_of(member_of(cross, "none", "control"), attribute, "none")
                          : json_get(cross, "resolution"));
    if (edits ? value > 0.9 : value < 0.1) {
        return arena_format(arena, "%s %.2g: methods look alike", edits ? "none" : "resolution",
                            value);
    }
    return NULL;
}

static const char sufficiency_label[] =
    "0: no answer is preferred, 1: m as in the model as it is (none)",
                  necessity_label[] =
                      "0: m as in the model as it is (none), 1: as with all nodes ablated";

/* Figure 2: sufficiency or necessity by cross-section and method. */
static char *method_figure(const Json *tests, bool necessity, Arena *arena) {
    Curves bars = {.arena = arena};
    const char **groups = arena_alloc(arena, tests->length, sizeof *groups);
    BarChart chart = {.title =
                          necessity ? "Necessity by cross-section" : "Sufficiency by cross-section",
                      .y_label = necessity ? necessity_label : sufficiency_label,
                      .groups = groups};
    for (const Json *c = first(tests); c != NULL; c = c->next) {
        groups[chart.group_count] = c->key;
        if (untold(c, NULL, arena) != NULL) {
            groups[chart.group_count] = arena_format(arena, "%s †", c->key);
            chart.subtitle = "†: resolution below 0.1, which cannot tell methods apart";
        }
        chart.group_count++;
    }
    for (size_t m = 0; m < METHODS; m++) {
        if (method_stands(tests, methods[m].name)) {
            curve_read(&bars, (Series){.name = methods[m].name, .colour = methods[m].colour}, tests,
                       methods[m].name, NULL, necessity ? "necessity" : "sufficiency");
        }
    }
    chart.series = bars.series;
    chart.series_count = bars.count;
    return svg_bars(arena, &chart);
}

#define EDIT_K "8" /* of Figure 3 */

static bool is_control(const Json *value) {
    return json_get(value, "score") != NULL;
}

/* Figure 3: edits by attribute and cross-section. */
static char *edit_figure(const Json *tests, const Json *attributes, Arena *arena) {
    static const struct {
        const char *method, *edit, *name;
    } edits[] = {{"none", "none", "none"},
                 {"mean", "supervised", "supervised (mean)"},
                 {"sae", EDIT_K, "sae"},
                 {"native", EDIT_K, "native"},
                 {"random", EDIT_K, "random"}};
    size_t most = attributes->length * sizeof edits / sizeof *edits, n = 0;
    const char **rows = arena_alloc(arena, most, sizeof *rows),
               **crosses = arena_alloc(arena, tests->length, sizeof *crosses);
    double *values = arena_alloc(arena, most * tests->length, sizeof *values);
    bool *marked = arena_alloc(arena, most * tests->length, sizeof *marked);
    HeatMap map = {.title = "Edits by attribute and cross-section, k = " EDIT_K,
                   .x_label = "cross-section",
                   .value_label = "share of prompts that answer as with the counterfactual",
                   .rows = rows,
                   .columns = crosses,
                   .column_count = tests->length,
                   .values = values,
                   .marked = marked,
                   .largest = 1,
                   .numbers = true};
    for (const Json *a = first(attributes); a != NULL; a = a->next) {
        for (size_t e = 0; e < sizeof edits / sizeof *edits; e++) {
            bool stands = method_stands(tests, edits[e].method);
            size_t column = 0;
            for (const Json *c = first(tests); c != NULL && stands; c = c->next) {
                const Json *edit =
                    member_of(member_of(c, edits[e].method, "control"), a->key, edits[e].edit);
                crosses[column++] = c->key;
                values[n] = json_double(is_control(edit) ? json_get(edit, "score") : edit);
                marked[n] = untold(c, a->key, arena) != NULL;
                if (marked[n++]) {
                    map.subtitle = "outlined: none is above 0.9, which cannot tell methods apart";
                }
            }
            if (stands) {
                rows[map.row_count++] = arena_format(arena, "%s · %s", a->key, edits[e].name);
            }
        }
    }
    return svg_heat(arena, &map);
}

/* Figure 4: a panel for each attribute; both edits along k. */
static char *control_figure(const Json *tests, const Json *cross, const Json *attributes,
                            Arena *arena) {
    static const char *const edits[2] = {"control", "control_aware"};
    LineChart *panels = arena_alloc(arena, attributes->length, sizeof *panels), *panel = panels;
    for (const Json *a = first(attributes); a != NULL; a = a->next) {
        Curves curves = {.arena = arena};
        for (size_t c = 0; c < 2 * (METHODS - FEATURED); c++) {
            const char *name = methods[FEATURED + c / 2].name;
            bool aware = c % 2 == 1;
            if (method_stands(tests, name)) {
                curve_read(&curves,
                           (Series){.name = aware ? arena_format(arena, "%s, aware", name) : name,
                                    .dashed = aware,
                                    .colour = methods[FEATURED + c / 2].colour},
                           json_get(member_of(cross, name, edits[aware]), a->key), NULL,
                           "magnitude_rescaled", "score_rescaled");
            }
        }
        *panel++ = (LineChart){
            .title = a->key,
            .subtitle = untold(cross, a->key, arena),
            .x_label = "magnitude, k = 1, 2, 4 …; 0: the supervised edit's, 1: all of the node",
            .y_label = "score; 0: no intervention, 1: the supervised edit (mean dictionary)",
            .series = curves.series,
            .series_count = curves.count,
            .shares = true};
    }
    return svg_panels(arena, arena_format(arena, "Editing the cross-section of %.60s", cross->key),
                      panels, attributes->length);
}

/* Figure 5: of how many features, at least t, a predicate of each kind is the best one. */
static char *kinds_figure(const Json *interpretations, double t, Arena *arena) {
    static const char *const kinds[] = {"value", "value & form", "place", "label", "union"};
    enum {
        KINDS = sizeof kinds / sizeof *kinds
    };
    char number[JSON_NUMBER_SIZE];
    const char **rows = arena_alloc(arena, interpretations->length, sizeof *rows);
    double *values = arena_alloc(arena, interpretations->length * KINDS, sizeof *values);
    json_format_double(number, t);
    HeatMap map = {.title = arena_format(arena, "What the features of F1 ≥ %s stand for", number),
                   .x_label = "kind of the best predicate",
                   .value_label = "features",
                   .rows = rows,
                   .columns = kinds,
                   .column_count = KINDS,
                   .values = values,
                   .numbers = true};
    for (const Json *v = first(interpretations); v != NULL; v = v->next) {
        const char *predicate = text_of(json_get(v, "predicate"));
        size_t name = strcspn(predicate, "="), row = 0;
        size_t kind = strstr(predicate, " in {") != NULL     ? 4
                      : strstr(predicate, " & ") != NULL     ? 1
                      : memchr(predicate, '#', name) != NULL ? 2
                      : memchr(predicate, '(', name) != NULL ? 3
                                                             : 0;
        const char *site = arena_format(arena, "%s · %s", text_of(json_get(v, "hook")),
                                        text_of(json_get(v, "position")));
        while (row < map.row_count && strcmp(rows[row], site) != 0) {
            row++;
        }
        rows[row] = site;
        map.row_count += row == map.row_count ? 1 : 0;
        values[row * KINDS + kind] += json_double(json_get(v, "f1")) >= t ? 1 : 0;
    }
    return svg_heat(arena, &map);
}

/* Figures 30 and 31: a panel for each cross-section, over t. */
static char *sweep_figure(const Json *tests, bool necessity, Arena *arena) {
    LineChart *panels = arena_alloc(arena, tests->length, sizeof *panels), *panel = panels;
    for (const Json *c = first(tests); c != NULL; c = c->next) {
        Curves curves = {.arena = arena};
        for (size_t m = FEATURED; m < METHODS; m++) {
            if (method_stands(tests, methods[m].name)) {
                curve_read(&curves, (Series){.name = methods[m].name, .colour = methods[m].colour},
                           member_of(c, methods[m].name, "f1"), NULL, NULL,
                           necessity ? "necessity" : "sufficiency");
            }
        }
        *panel++ = (LineChart){.title = c->key,
                               .subtitle = untold(c, NULL, arena),
                               .x_label = "t (F1 of a feature's best predicate)",
                               .y_label = necessity ? necessity_label : sufficiency_label,
                               .series = curves.series,
                               .series_count = curves.count,
                               .shares = true};
    }
    return svg_panels(arena,
                      necessity ? "Necessity of the features of F1 ≥ t"
                                : "Sufficiency without the features of F1 < t",
                      panels, tests->length);
}

/* How many nodes carry what a cross-section was found for. */
static char *nodes_figure(const Json *crosses, Arena *arena) {
    Curves curves = {.arena = arena};
    for (const Json *c = first(crosses); c != NULL; c = c->next) {
        curve_read(&curves, (Series){.name = c->key}, json_get(c, "curve"), NULL, "nodes", "share");
    }
    LineChart chart = {.title = "Patching the first nodes of the walk",
                       .x_label = "nodes",
                       .y_label = "change of m; 0: none, 1: that of patching all nodes",
                       .series = curves.series,
                       .series_count = curves.count,
                       .shares = true,
                       .log_x = true};
    return svg_lines(arena, &chart);
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

void report_sage_figures(const char *out, double t) {
    Arena *arena = arena_new();
    const Json *sage = json_read_file(arena, path_join(arena, out, "sage.json")),
               *tests = json_get(sage, "tests"), *crosses = json_get(sage, "cross_sections"),
               *interpretations = json_get(sage, "interpretations"),
               *attributes = member_of(first_member(tests), "none", "control");
    size_t i = 0;
    write_tests(tests, path_join(arena, out, "sage.csv"));
    for (const Json *c = first_member(tests); c != NULL; c = c->next) {
        write_figure(arena, out, figure_name(arena, "control", c->key, i++),
                     control_figure(tests, c, attributes, arena));
    }
    write_figure(arena, out, "sufficiency.svg", method_figure(tests, false, arena));
    write_figure(arena, out, "necessity.svg", method_figure(tests, true, arena));
    write_figure(arena, out, "edits.svg", edit_figure(tests, attributes, arena));
    write_figure(arena, out, "kinds.svg", kinds_figure(interpretations, t, arena));
    write_figure(arena, out, "f1_sufficiency.svg", sweep_figure(tests, false, arena));
    write_figure(arena, out, "f1_necessity.svg", sweep_figure(tests, true, arena));
    if (first(json_get(first_member(crosses), "curve")) != NULL) { /* found, not given */
        write_figure(arena, out, "nodes.svg", nodes_figure(crosses, arena));
    }
    arena_free(arena);
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
    char *inside = text_between(f->arena, text, begin, "</svg>");
    bool ours = strncmp(text, begin, strlen(begin)) == 0;
    if (ours && *inside == '\0') {
        fail(STATUS_INPUT, "%s: the figure ends too early", path_join(f->arena, f->path, name));
    }
    if (ours) {
        page_figure(f->page, caption, arena_format(f->arena, "%s%s</svg>\n", begin, inside));
    }
}

/* " [0.71, 0.83]"; nothing where there is none */
static const char *interval_text(const Json *object, const char *figure, Arena *arena) {
    const Json *ends = first(json_get(object, arena_format(arena, "%s_ci", figure)));
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
    page_cell(f->page, !is_text, is_text ? text_of(value) : cell);
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
    bool cell = !is_interval(value) && (!json_is(value, JSON_OBJECT) || is_control(value));
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
    while (column >= 0 && *(line = next_line(line)) != '\0') {
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
    show_figure(f, "mse.svg",
                arena_format(f->arena,
                             "Mean squared error of the SAE's reconstruction; 0: perfect. Image "
                             "tokens have become language where their curve meets the control's.%s",
                             published));
    show_figure(f, "sparsity.svg",
                arena_format(f->arena,
                             "Share of the SAE's features that are active; 0: none, 1: all. Read "
                             "as the error above.%s",
                             published));
    show_figure(f, "match.svg",
                arena_format(f->arena,
                             "Share of the judged examples in which one of the strongest features "
                             "that are rare enough has a description that matches the answer; 0: "
                             "in none, 1: in all.%s",
                             published));
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
        for (const Json *v = first_member(distance); v != NULL; v = v->next) {
            page_fact(f->page, v->key, "%.3f", json_double(v));
        }
    }
    for (const Json *v = first(left_out); v != NULL; v = v->next) {
        page_fact(f->page, "left out", "%s", text_of(v));
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
    for (const Json *c = first_member(dictionaries); c != NULL; c = c->next) {
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
        "A feature's interpretation is the predicate (a value of an attribute, one in one form, a "
        "name at a place of the text, a label of a value, or a union of values) that best predicts "
        "on which test prompts the feature is active. F1 is the harmonic mean of how often the "
        "predicate holds when the feature is active and how often the feature is active when the "
        "predicate holds; 1: they are the same. Support: in how many test prompts it holds.");
    show_figure(f, "kinds.svg",
                "Figure 5 of 2405.08366: which kinds of predicate the features of each node have. "
                "A number counts features; an empty row has none that reaches the F1.");
    for (const Json *t = first_member(chance); t != NULL; t = t->next) {
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
    for (const Json *c = first_member(json_get(sage, "tests")); c != NULL; c = c->next) {
        for (const Json *m = first_member(c); m != NULL; m = m->next) {
            for (const Json *t = first_member(json_get(m, "f1")); t != NULL; t = t->next) {
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
    for (const Json *c = first_member(tests); c != NULL; c = c->next) {
        const char *why = untold(c, NULL, f->arena);
        if (why != NULL) {
            page_fact(f->page, c->key, "%s", why);
        }
        for (const Json *m = first_member(c); m != NULL; m = m->next) {
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
    for (const Json *c = first_member(tests); c != NULL; c = c->next) {
        show_figure(f, figure_name(f->arena, "control", c->key, i++),
                    "Figure 4 of 2405.08366: score against magnitude as k grows. Left and high is "
                    "good. Solid: whatever features mean; dashed: aware of it. What leaves the "
                    "axes is drawn at their end.");
    }
    for (const Json *c = first_member(tests); c != NULL; c = c->next) {
        const Json *attributes = member_of(c, "none", "control");
        for (const Json *a = first_member(attributes); a != NULL; a = a->next) {
            const char *why = untold(c, a->key, f->arena);
            if (why != NULL) {
                page_fact(f->page, arena_format(f->arena, "%s in %s", a->key, c->key), "%s", why);
            }
            for (const Json *m = first_member(c); m != NULL; m = m->next) {
                for (int e = 0; e < 2; e++) {
                    lines_add(&lines[e], c->key, a->key, m->key, member_of(m, edits[e], a->key));
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
    const char *name = text_of(json_get(sage, "task")), *model = text_of(json_get(sage, "model"));
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
    for (const Json *c = first_member(crosses); c != NULL; c = c->next) {
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
    return strcmp(text_of(json_get(f->scores, "image_tokens")), "permuted") == 0;
}

static bool same_text(const Json *a, const Json *b, const char *key) {
    return strcmp(text_of(json_get(a, key)), text_of(json_get(b, key))) == 0;
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
    page_paragraph(f->page,
                   "<b>Seeing.</b> Of %.0f questions about pictures, %.1f %% are answered in the "
                   "reference's own words with the picture's own image tokens.",
                   json_double(questions), exact);
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
    const char *image = text_of(json_get(line, "image"));
    size_t i = example_of(e, image);
    bool wanted = strcmp(text_of(json_get(line, "group")), group_names[GROUP_IMG]) == 0 &&
                  json_double(json_get(line, "layer")) == e->layer && i < EXAMPLES;
    if (wanted && i == e->count && *image != '\0') {
        const char *all = "";
        for (const Json *v = first(json_get(line, "features")); v != NULL; v = v->next) {
            const Json *number = json_get(v, "feature"), *words = json_get(v, "description");
            all = arena_format(e->arena, "%s%s%s %s", all, *all == '\0' ? "" : "; ",
                               json_is(number, JSON_NUMBER) ? number->text : "", text_of(words));
        }
        e->image[i] = arena_format(e->arena, "%s", image);
        e->features[i] = all;
        e->count++;
    }
    return e->count < EXAMPLES;
}

/* The first answer about each picture. */
static bool take_answer(Examples *e, const Json *line) {
    size_t i = example_of(e, text_of(json_get(line, "image"))), open = 0;
    if (i < e->count && e->question[i] == NULL) {
        bool right = json_is(json_get(line, "exact"), JSON_TRUE);
        e->question[i] = arena_format(e->arena, "%s", text_of(json_get(line, "prompt")));
        e->answer[i] = arena_format(e->arena, "%s (%s)", text_of(json_get(line, "text")),
                                    right ? "right" : "wrong");
    }
    for (i = 0; i < e->count; i++) {
        open += e->question[i] == NULL;
    }
    return open > 0;
}

typedef bool TakeLine(Examples *examples, const Json *line);

static void read_lines(const char *path, Examples *e, TakeLine *take) {
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

/* The lines of a file, as far as it can be read and `take` asks for more. */
static void take_lines(const Folder *f, const char *name, Examples *e, TakeLine *take) {
    Error unread;
    ATTEMPT(&unread, read_lines(path_join(f->arena, f->path, name), e, take));
}

/* A number of a group in the layers that have one: where it is largest, or the first or last. */
typedef struct LayerValue {
    double layer, value;
} LayerValue;

static LayerValue layer_pick(const Json *layers, Group g, const char *key, int pick) {
    LayerValue found = {NAN, NAN};
    for (const Json *v = first(layers); v != NULL; v = v->next) {
        double value = json_double(json_get(v, key));
        bool of_group = strcmp(text_of(json_get(v, "group")), group_names[g]) == 0;
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
    const char *key = metrics[m].name;
    char *name = arena_format(f->arena, "%s_layer", key);
    double met = json_double(json_get(convergence, name));
    LayerValue begin = layer_pick(layers, GROUP_IMG, key, -1),
               end = layer_pick(layers, GROUP_IMG, key, 1);
    if (isnan(end.value)) {
        return;
    }
    page_paragraph(
        f->page,
        "<b>%s.</b> Image tokens: %.3g in layer %.0f, %.3g in layer %.0f; the text-only control "
        "there: %.3g. Layer of %zu from which on the two are within a factor of %.3g: %s.%s",
        metrics[m].title, begin.value, begin.layer, end.value, end.layer,
        layer_pick(layers, GROUP_TEXT, key, 1).value, layers->length / GROUPS,
        json_double(json_get(convergence, "factor")), convergence_text(f->arena, convergence, name),
        isnan(met) ? " In these layers image tokens do not come to look like text." : "");
}

static void find_layers(const Folder *f) {
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
    page_paragraph(f->page,
                   "<b>Meaning.</b> A strong feature on image tokens is described by the answer in "
                   "at most %.1f %% of the examples (layer %.0f); on the text that states the "
                   "answer in at most %.1f %% (layer %.0f).",
                   100 * match.value, match.layer, 100 * text.value, text.layer);
    take_lines(f, "features.jsonl", &e, take_features);
    take_lines(f, "answers.jsonl", &e, take_answer);
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
    for (const Json *v = first(json_get(example, "tokens")); v != NULL; v = v->next, place++) {
        text = arena_format(f->arena, "%s%s", text, text_of(v));
        for (const Json *p = first_member(json_get(example, "positions")); p != NULL; p = p->next) {
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
    const Json *attributes = member_of(cross, "sae", "control"),
               *own = cross == NULL ? NULL : json_get(attributes, cross->key);
    const char *text = "–";
    double best = -INFINITY;
    for (const Json *a = own != NULL ? own : first_member(attributes); a != NULL;
         a = own != NULL ? NULL : a->next) {
        double none = json_double(json_get(a, "none")),
               supervised = json_double(member_of(a, "supervised", "score"));
        for (const Json *k = first_member(a); k != NULL && untold(cross, a->key, arena) == NULL;
             k = k->next) {
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
    const char *name = text_of(json_get(node, "node")), *hook = strstr(name, "hook_"),
               *layer = name + strcspn(name, "0123456789");
    const Json *head = json_get(node, "head"), *effect = json_get(node, "effect");
    bool of_head = json_is(head, JSON_NUMBER), measured = json_is(effect, JSON_NUMBER);
    char moves[TEXT_NUMBER_SIZE];
    text_number(moves, json_double(effect), 3);
    return arena_format(arena, "L%.*s%s%s %s at %s%s%s", (int)strspn(layer, "0123456789"), layer,
                        of_head ? ".H" : "", of_head ? head->text : "",
                        hook == NULL ? name : hook + strlen("hook_"),
                        text_of(json_get(node, "position")), measured ? " " : "",
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
               *nodes = member_of(json_get(f->sage, "cross_sections"), cross->key, "nodes");
    const char *strongest = "";
    int n = 0;
    for (const Json *v = first(nodes); v != NULL && n < 3; v = v->next, n++) {
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
        show_cell(f, member_of(sae, "f1", "0.8"), "features");
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
    size_t rivals = 0;
    for (size_t i = 0; i < count; i++) {
        rivals += first_member(rival_tests(f, &all[i])) != NULL;
        if (rivals > 0 && i < at) {
            return;
        }
    }
    if (first_member(json_get(f->sage, "tests")) == NULL) {
        return;
    }
    page_paragraph(f->page,
                   "<b>%s in %s</b> (%s): %.1f %% of the test prompts are answered right. %s%s",
                   text_of(json_get(f->sage, "task")), text_of(json_get(f->sage, "model")), f->name,
                   100 * json_double(member_of(f->sage, "baseline", "accuracy")),
                   *text == '\0' ? "" : "A prompt, its positions named: ", text);
    page_table(f->page,
               "What carries each attribute, and what the SAE makes of it. Edit: of prompts the "
               "share that then answer as with the other value, by the SAE's best k features, by "
               "nothing and by the best that knowledge of the attribute allows; sufficiency, "
               "necessity, recovered: 1 is all, 0 is nothing; –: cannot be told there.",
               rivals > 1 ? "cross-section|folder" : "cross-section", titles, number,
               rivals > 1 ? 6 : 4);
    for (size_t i = at; i < count; i++) {
        for (const Json *c = first_member(rival_tests(f, &all[i])); c != NULL; c = c->next) {
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
        find_layers(&all[i]);
        find_sage(all, count, i);
    }
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
    if (f->page->sections == before) {
        page_paragraph(f->page, "This folder holds neither train.csv, scores.json, layers.json nor "
                                "sage.json.");
    }
}

/* ---- reports ---- */

/* The last component of a path: "demo/permuted/" is "permuted", "." the name of where one is. */
static char *folder_name(Arena *arena, const char *directory) {
    char *real = realpath(directory, NULL);
    if (real == NULL) {
        fail_errno(errno, directory, "cannot look at this path");
    }
    const char *slash = strrchr(real, '/');
    const char *name = slash[1] != '\0' ? slash + 1 : real;
    char *copy = arena_copy(arena, name, strlen(name));
    free(real);
    return copy;
}

static Folder folder_open(Page *page, const char *path, Arena *arena) {
    Folder f = {.page = page, .path = path, .arena = arena, .name = folder_name(arena, path)};
    f.scores = folder_json(&f, "scores.json");
    f.layers = folder_json(&f, "layers.json");
    f.sage = folder_json(&f, "sage.json");
    return f;
}

/* The page of the folder `out`, up to how it came about: that follows, up to MADE_END. */
static Page page_of(const char *out, const char *title, const char *command, Arena *arena) {
    Page page;
    page_open(&page, path_join(arena, out, "report.html"), title);
    Folder folder = folder_open(&page, out, arena);
    page_section(&page, "What was found");
    show_findings(&folder, 1);
    show_folder(&folder);
    page_section(&page, "How this was made");
    page_raw(&page, MADE);
    page_fact(&page, "command", "%s", command);
    return page;
}

/* --json: the file of results, on stdout. */
static void tell_file(const Console *console, const char *path, Arena *arena) {
    if (console->json) {
        FileMap file = file_map(arena, path);
        fwrite(file.data, 1, file.size, stdout);
    }
}

void report_analyze(const AnalyzeResult *result, const LayerTable *published) {
    Arena *arena = arena_new();
    const AnalyzeOptions *o = result->options;
    LayerTable ours = layer_table(arena, result);
    char *path = path_join(arena, o->out, "layers.json");
    write_layers(result, &ours, published, path);
    const Json *json = json_read_file(arena, path), *convergence = json_get(json, "convergence");
    write_csv(path_join(arena, o->out, "layers.csv"), json_get(json, "layers"),
              "layer,group,mse,sparsity,l0,fvu,cosine,norm,loss.recovered_zero,loss.recovered_mean,"
              "match,permuted.mse,permuted.sparsity,permuted.fvu,permuted.cosine,permuted.norm,"
              "gaussian.mse,gaussian.sparsity,gaussian.fvu,gaussian.cosine,gaussian.norm");
    for (Metric m = 0; m < METRICS; m++) {
        write_figure(arena, o->out, metrics[m].file,
                     layer_figure(result, &ours, published, convergence, m, arena));
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
        console_result(result->console, "distance to the published %s: %.3f", v->key,
                       json_double(v));
    }
    console_result(result->console, "convergence layer: MSE %s, sparsity %s",
                   convergence_text(arena, convergence, "mse_layer"),
                   convergence_text(arena, convergence, "sparsity_layer"));
    if (result->verdicts > 0) {
        console_line(result->console, "%zu of %zu verdicts used", result->verdicts_used,
                     result->verdicts);
    }
    console_result(result->console, "%zu examples, %zu of them judged, %zu left out",
                   result->examples, result->judged, result->n_failures);
    tell_file(result->console, path, arena);
    arena_free(arena);
}

/* Whether the model does the task, and the figures of each cross-section in words. */
static void tell_tests(const SageResult *r, const Json *tests, Arena *arena) {
    const SageFigure *m = &r->m_clean;
    console_result(r->console, "answers right %.3f, m %.3f [%.3f, %.3f]%s", r->accuracy, m->value,
                   m->low, m->high,
                   m->low > 0.0 ? "" : ": the model does not do the task, no figure says much");
    for (const Json *c = first(tests); c != NULL; c = c->next) {
        static const char *const shown[] = {"weighted", "sae", "random"};
        const char *why = untold(c, NULL, arena);
        double v[2][3];
        for (int i = 0; i < 6; i++) {
            v[i / 3][i % 3] =
                json_double(member_of(c, shown[i % 3], i < 3 ? "sufficiency" : "necessity"));
        }
        console_result(r->console, "%s: sufficiency weighted %.3f, sae %.3f, random %.3f; %s",
                       c->key, v[0][0], v[0][1], v[0][2],
                       why != NULL ? why
                                   : arena_format(arena, "necessity %.3f, %.3f, %.3f", v[1][0],
                                                  v[1][1], v[1][2]));
    }
}

void report_sage(const SageResult *result) {
    Arena *arena = arena_new();
    const SageOptions *o = result->options;
    const SageTask *task = result->task;
    char *json = path_join(arena, o->out, "sage.json");
    write_sage(result, json);
    write_nodes(result, path_join(arena, o->out, "cross_sections.csv"));
    write_cross_sections(result, path_join(arena, o->out, "cross_sections.json"));
    if (result->example != NULL) {
        write_example(result, path_join(arena, o->out, "example.json"));
    }
    for (size_t c = 0; c < result->n_cross && o->cross_sections == NULL; c++) {
        char *name = figure_name(arena, "heat", result->cross[c].name, c);
        write_figure(arena, o->out, name, heat_figure(result, c, arena));
    }
    report_sage_figures(o->out, o->f1[0]);
    const Json *tests = json_get(json_read_file(arena, json), "tests");
    Page page = page_of(o->out, "refsae sage", result->console->command, arena);
    page_digest(&page, "model", o->llm);
    page_fact(&page, "task", "%s", task->file);
    page_fact(&page, "seed", "%llu", (unsigned long long)o->seed);
    page_fact(&page, "nodes", "%zu of %s, share %g, at most %zu", result->n_nodes, o->nodes,
              o->share, o->max_nodes);
    page_fact(&page, "projection", "%s", o->projection);
    page_digest(&page, "prompts from", o->prompts);
    page_digest(&page, "cross-sections from", o->cross_sections);
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
    tell_tests(result, tests, arena);
    tell_file(result->console, json, arena);
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
                       .subtitle = "0: certain of every right token",
                       .series = &series,
                       .series_count = 1};
    write_figure(arena, result->options->out, "loss.svg", svg_lines(arena, &chart));
    arena_free(arena);
}

void report_merge(const char *out, const char *title, char *const *directories, size_t count) {
    Page page;
    page_open(&page, out, title);
    Arena *arena = page.out->arena;
    Folder *folders = arena_alloc(arena, count, sizeof *folders);
    for (size_t i = 0; i < count; i++) {
        path_need_directory(directories[i]);
        folders[i] = folder_open(&page, directories[i], arena);
    }
    page_chapter(&page, "What was found");
    show_findings(folders, count);
    for (size_t i = 0; i < count; i++) {
        page_chapter(&page, folders[i].name);
        show_folder(&folders[i]);
        show_made(&folders[i], out);
    }
    page_commit(&page);
}

/* report.c: results as CSV and JSON, and as figures made from those. See report.h. */
#include "report.h"

#include "elementary.h"
#include "figure.h"
#include "folder.h"
#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A text, or a number as it is written; null and what is missing: an empty cell. */
static void csv_value(Csv *csv, const Json *value) {
    csv_text(csv, json_is(value, JSON_NUMBER) ? value->text : json_string(value));
}

/* An array's objects as rows. A column "loss_recovered_zero" is a member of the member loss. */
static void write_csv(const char *path, const Json *rows, const char *columns) {
    OutFile *out = out_open(path);
    Csv csv = csv_start(out->stream, columns);
    for (const Json *row = json_first(rows); row != NULL; row = row->next) {
        for (const char *c = columns; *c != '\0'; c += strspn(c, ",")) {
            size_t length = strcspn(c, ",");
            char *name = arena_copy(out->arena, c, length), *inner = strchr(name, '_');
            *(inner == NULL ? name + length : inner) = '\0';
            const Json *value = json_get(row, name);
            csv_value(&csv, inner == NULL ? value : json_get(value, inner + 1));
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

/* ---- the layer analysis (Mapping) ---- */

static void json_sums(JsonOut *json, const Sums *s) {
    json_out(json, "mse %g sparsity %g l0 %g fvu %g cosine %g norm %g", mean_of(s->mse, s->n),
             mean_of(s->sparsity, s->n), mean_of(s->l0, s->n), mean_of(s->fvu, s->n_fvu),
             mean_of(s->cosine, s->n), mean_of(s->norm, s->n));
}

static void json_layer(JsonOut *json, const LayerResult *layer, Group g) {
    const LossSums *loss = &layer->loss[g];
    json_out(json, "{ layer %d group %s", layer->layer, group_names[g]);
    json_sums(json, &layer->sums[VARIANT_CLEAN][g]);
    if (loss->n > 0) {
        json_out(json, "loss { clean %g sae %g zero_ablation %g mean_ablation %g",
                 mean_of(loss->clean, loss->n), mean_of(loss->sae, loss->n),
                 mean_of(loss->zero, loss->n), mean_of(loss->mean, loss->n));
        json_out(json, "recovered_zero %g recovered_mean %g }", loss_recovered(loss, true),
                 loss_recovered(loss, false));
    }
    json_out(json, "match %g", layer_metric(layer, METRIC_MATCH, g, VARIANT_CLEAN));
    for (Variant v = VARIANT_PERMUTED; v < VARIANTS; v++) {
        if (layer->sums[v][g].n > 0) {
            json_out(json, "%s {", variant_names[v]);
            json_sums(json, &layer->sums[v][g]);
            json_out(json, "}");
        }
    }
    json_out(json, "}");
}

/* "mse_vlm_img" */
static char *curve_name(Arena *arena, Metric m, Group g) {
    return arena_format(arena, "%s_%s", layer_metrics[m].name, group_names[g]);
}

LayerTable published_read(Arena *arena, const char *path) {
    LayerTable table = {.n = 0};
    if (path == NULL) {
        return table;
    }
    FileMap file = file_map(arena, path);
    const char *text = arena_copy(arena, (const char *)file.data, file.size);
    bool any = false;
    table.layer = csv_numbers(arena, text, NULL, &table.n);
    for (Metric m = 0; m < METRICS; m++) {
        for (Group g = 0; g < GROUPS; g++) {
            table.value[m][g] = csv_numbers(arena, text, curve_name(arena, m, g), &table.n);
            any |= table.value[m][g] != NULL;
        }
    }
    if (!any) {
        fail(STATUS_INPUT, "%s: no column named as mse_vlm_img, sparsity_llm_text or match_vlm_img",
             path);
    }
    for (size_t i = 0; i < table.n; i++) {
        if (isnan(table.layer[i]) || (i > 0 && !(table.layer[i] > table.layer[i - 1]))) {
            fail(STATUS_INPUT, "%s: row %zu: the first column is no layer number, or does not rise",
                 path, i + 1);
        }
    }
    if (table.n == 0) {
        fail(STATUS_INPUT, "%s: a head without layers below it", path);
    }
    return table;
}

static void json_convergence(JsonOut *json, const LayerTable *table, double c) {
    json_out(json, "layer %g mse_layer %g sparsity_layer %g",
             convergence_layer(table, true, true, c), convergence_layer(table, true, false, c),
             convergence_layer(table, false, true, c));
}

static void write_layers(const AnalyzeResult *result, const LayerTable *ours,
                         const LayerTable *published, const char *path) {
    OutFile *out = out_open(path);
    double factor = result->options->converge;
    JsonOut json = json_out_start(out->stream, 2);
    json_out(&json, "{ examples %zu judged %zu", result->examples, result->judged);
    if (result->verdicts > 0) {
        json_out(&json, "verdicts { given %zu used %zu missing %zu }", result->verdicts,
                 result->verdicts_used, result->verdicts_missing);
    }
    json_out(&json, "left_out [");
    for (size_t i = 0; i < result->n_failures; i++) {
        json_out(&json, "%s", result->failures[i]);
    }
    json_out(&json, "] convergence { factor %g", factor);
    json_convergence(&json, ours, factor);
    if (published->n > 0) {
        json_out(&json, "published {");
        json_convergence(&json, published, factor);
        json_out(&json, "} } distance {");
        for (int i = 0; i < (int)METRICS * (int)GROUPS; i++) {
            Metric m = (Metric)(i / GROUPS);
            Group g = (Group)(i % GROUPS);
            if (published->value[m][g] != NULL) {
                json_out(&json, "%s %g", curve_name(out->arena, m, g),
                         curve_distance(ours, published, m, g));
            }
        }
    }
    json_out(&json, "} layers [");
    for (size_t i = 0; i < result->n_layers; i++) {
        for (Group g = 0; g < GROUPS; g++) {
            json_layer(&json, &result->layers[i], g);
        }
    }
    json_out(&json, "] }");
    out_commit(out);
}

/* Each group solid, the published curve of the same colour dashed; then the controls. A curve that
 * no layer has a value of is left out. */
static const char *layer_figure(const AnalyzeResult *result, const LayerTable *ours,
                                const LayerTable *published, const Json *convergence, Metric m,
                                Arena *arena) {
    static const char *const names[] = {"image tokens",          "image tokens, published",
                                        "text after the image",  "text after the image, published",
                                        "text-only control",     "text-only control, published",
                                        "permuted image tokens", "Gaussian image tokens"};
    Chart chart = {.title = layer_metrics[m].title,
                   .x_label = "layer",
                   .y_label = layer_metrics[m].label,
                   .log_y = m != METRIC_MATCH};
    for (int i = 0; i < 2 * GROUPS + 2; i++) {
        bool control = i >= 2 * GROUPS, theirs = !control && i % 2 == 1, any = false;
        Group g = control ? GROUP_IMG : (Group)(i / 2);
        Variant v = control ? (Variant)(VARIANT_PERMUTED + i % 2) : VARIANT_CLEAN;
        Series series = {names[i], NULL, ours->n, theirs, control ? i - GROUPS + 1 : (int)g + 1};
        Point *points = chart_add(arena, &chart, series);
        for (size_t n = 0; n < ours->n; n++) {
            points[n].x = ours->layer[n];
            points[n].y = theirs ? table_value(published, m, g, ours->layer[n])
                                 : layer_metric(&result->layers[n], m, g, v);
            any = any || !isnan(points[n].y);
        }
        chart.series_count -= any ? 0 : 1;
    }
    char *key = arena_format(arena, "%s_layer", layer_metrics[m].name);
    chart.marker_x = json_double(json_get(convergence, key));
    if (!isnan(chart.marker_x)) {
        chart.marker_label =
            arena_format(arena, "within %.3gx from layer %s", result->options->converge,
                         convergence_text(arena, convergence, key));
    }
    return svg_chart(arena, NULL, &chart, 1);
}

/* ---- SAGE: sage.json ---- */

/* Each value once, though several attributes may have lost it. */
static void json_dropped(JsonOut *json, const SageTask *task) {
    json_out(json, "dropped [");
    for (size_t i = 0; i < task->n_dropped; i++) {
        size_t earlier = 0;
        while (strcmp(task->dropped[earlier].value, task->dropped[i].value) != 0) {
            earlier++;
        }
        if (earlier == i) {
            json_out(json, "%s", task->dropped[i].value);
        }
    }
    json_out(json, "]");
}

/* Of a head; NaN, which is null, of a whole block. */
static double node_head(const SageNode *node) {
    return node->head < 0 ? (double)NAN : node->head;
}

static void json_node(JsonOut *json, const SageResult *r, const SageNode *node) {
    json_out(json, "{ node %s head %g position %s", HOOK_NAME(node->kind, node->layer),
             node_head(node), r->task->positions[node->position]);
}

/* The nodes of a cross-section; scored: with their scores and effects in it. */
static void json_nodes(JsonOut *json, const char *key, const SageResult *r, size_t cross,
                       const size_t *places, size_t count, bool scored) {
    json_out(json, "%s [", key);
    for (size_t i = 0; i < count; i++) {
        size_t at = cross * r->n_nodes + places[i];
        json_node(json, r, &r->nodes[places[i]]);
        if (scored) {
            json_out(json, "score %g effect %g", r->score[at], r->effect[at]);
        }
        json_out(json, "}");
    }
    json_out(json, "]");
}

static void json_cross(JsonOut *json, const SageResult *r, size_t c) {
    const SageCross *cross = &r->cross[c];
    json_out(json, "%s {", cross->name);
    json_nodes(json, "nodes", r, c, cross->nodes, cross->n_nodes, true);
    json_nodes(json, "others", r, c, cross->others, cross->n_others, true);
    json_out(json, "share %g spearman %g curve [", cross->share, cross->spearman);
    for (size_t i = 0; i < cross->n_curve; i++) {
        json_out(json, "{ nodes %zu share %g }", cross->curve[i].nodes, cross->curve[i].share);
    }
    json_out(json, "] }");
}

/* A member for each way that leads to the node; sae is one of them. */
static void json_r2(JsonOut *json, const char *key, const double r2[SAGE_WAYS], bool reads,
                    SageWay sae) {
    static const char *const names[SAGE_WAYS] = {"mean", "mse",     "weighted", "weights",
                                                 "span", "encoder", "native"};
    json_out(json, "%s {", key);
    for (SageWay way = 0; way < SAGE_WAYS; way++) {
        if (way == sae) {
            json_out(json, "sae %g", r2[way]);
        }
        bool leads = way == SAGE_BY_NATIVE                           ? !isnan(r2[way])
                     : way == SAGE_BY_WEIGHTS                        ? reads
                     : way == SAGE_BY_SPAN || way == SAGE_BY_ENCODER ? !reads
                                                                     : true;
        if (leads) {
            json_out(json, "%s %g", names[way], r2[way]);
        }
    }
    json_out(json, "}");
}

static void json_fit(JsonOut *json, const SageResult *r, const SageNode *node, const SageFit *fit) {
    bool reads = sage_node_reads(node);
    json_node(json, r, node);
    json_r2(json, "r2", fit->r2, reads, fit->sae);
    if (!reads) {
        json_r2(json, "r2_stream", fit->r2_stream, false, fit->sae);
    }
    json_out(json, "weights {");
    for (size_t i = 0; i < r->task->n_attributes; i++) {
        json_out(json, "%s %g", r->task->attributes[i].name, fit->w[i]);
    }
    json_out(json, "} }");
}

/* X, and X_ci: [low, high]; null beside null. */
static void json_figure(JsonOut *json, const char *key, SageFigure figure) {
    char name[32];
    snprintf(name, sizeof name, "%s_ci", key);
    json_out(json, "%s %g", key, figure.value);
    if (isnan(figure.low)) {
        json_out(json, "%s %g", name, figure.low);
    } else {
        json_out(json, "%s [ %g %g ]", name, figure.low, figure.high);
    }
}

/* Control in every attribute, greedy or aware of what features stand for. */
static void json_controls(JsonOut *json, const SageResult *r, const SageEdit *edits,
                          SageMethod method, SageTest test) {
    SageMethod supervised = sage_supervised(method) ? method : SAGE_MEAN;
    json_out(json, "%s {", test == SAGE_AWARE ? "control_aware" : "control");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        const SageEdit *none = sage_edit_find(edits, SAGE_TARGET, SAGE_NONE, a, 0),
                       *own = sage_edit_find(edits, SAGE_SUPERVISED, supervised, a, 0);
        json_out(json, "%s {", r->task->attributes[a].name);
        if (test == SAGE_GREEDY) {
            json_figure(json, "none", none->figure);
            json_out(json, "supervised {");
            json_figure(json, "score", own->figure);
            json_out(json, "magnitude %g }", own->magnitude);
        }
        for (size_t k = 0; k < SAGE_KS && !sage_supervised(method); k++) {
            const SageEdit *e =
                method == SAGE_NONE ? none : sage_edit_find(edits, test, method, a, k);
            char key[24];
            snprintf(key, sizeof key, "%zu", sage_ks[k]);
            json_out(json, "%s {", key);
            json_figure(json, "score", e->figure);
            json_out(json, "magnitude %g score_rescaled %g magnitude_rescaled %g }", e->magnitude,
                     e->score_rescaled, e->magnitude_rescaled);
        }
        json_out(json, "}");
    }
    json_out(json, "}");
}

/* A member for each threshold. */
static void json_thresholds(JsonOut *json, const SageResult *r, const SageEdit *edits,
                            SageMethod method) {
    json_out(json, "f1 {");
    for (size_t t = 0; t < r->n_thresholds; t++) {
        if (sage_threshold_tested(r->options, method, r->thresholds[t])) {
            const SageEdit *kept = sage_edit_find(edits, SAGE_F1_SUFFICIENCY, method, 0, t);
            json_out(json, "%s {", JSON_DOUBLE(r->thresholds[t]));
            json_figure(json, "sufficiency", kept->figure);
            json_figure(json, "necessity",
                        sage_edit_find(edits, SAGE_F1_NECESSITY, method, 0, t)->figure);
            json_out(json, "features %zu }", kept->features);
        }
    }
    json_out(json, "}");
}

static void json_tests(JsonOut *json, const SageResult *r, const SageCross *cross) {
    /* none is the model as it is: 1, 1 and 0 by definition */
    static const SageEdit all = {.figure = {1, 1, 1}, .recovered = {1, 1, 1}}, nothing = {0};
    const SageEdit *edits = cross->edits;
    json_out(json, "%s {", cross->name);
    json_figure(json, "m_ablated", cross->m_ablated);
    json_out(json, "resolution %g", cross->resolution);
    for (SageMethod m = 0; m < SAGE_METHODS; m++) {
        if (m == SAGE_NATIVE && !cross->native) {
            continue;
        }
        bool none = m == SAGE_NONE;
        const SageEdit *kept = none ? &all : sage_edit_find(edits, SAGE_SUFFICIENCY, m, 0, 0),
                       *lost = none ? &nothing : sage_edit_find(edits, SAGE_NECESSITY, m, 0, 0);
        json_out(json, "%s {", sage_method_names[m]);
        json_figure(json, "sufficiency", kept->figure);
        json_figure(json, "recovered", kept->recovered);
        json_figure(json, "necessity", lost->figure);
        json_controls(json, r, edits, m, SAGE_GREEDY);
        if (sage_of_features(m)) {
            json_controls(json, r, edits, m, SAGE_AWARE);
            json_thresholds(json, r, edits, m);
        }
        json_out(json, "}");
    }
    json_out(json, "}");
}

/* How many features reach each threshold, and how many if prompts had other prompts' values. */
static void json_chance(JsonOut *json, const SageResult *r) {
    json_out(json, "interpretations_by_chance {");
    for (size_t t = 0; t < r->n_thresholds; t++) {
        size_t features = 0, permuted = 0;
        for (size_t i = 0; i < r->n_interpretations; i++) {
            features += r->interpretations[i].f1 >= r->thresholds[t];
            permuted += r->interpretations[i].permuted >= r->thresholds[t];
        }
        json_out(json, "%s { features %zu permuted %zu }", JSON_DOUBLE(r->thresholds[t]), features,
                 permuted);
    }
    json_out(json, "}");
}

static void write_sage(const SageResult *r, const char *path) {
    const SageTask *task = r->task;
    OutFile *out = out_open(path);
    JsonOut json = json_out_start(out->stream, 4);
    json_out(&json, "{ task %s model %s prompts { train %zu test %zu", task->name,
             r->options->vlm.llm, task->n_prompts[SAGE_TRAIN], task->n_prompts[SAGE_TEST]);
    json_dropped(&json, task);
    json_out(&json, "} baseline { accuracy %g", r->accuracy);
    json_figure(&json, "m_clean", r->m_clean);
    json_out(&json, "m_positive %g } cross_sections {", r->m_positive);
    for (size_t c = 0; c < r->n_cross; c++) {
        json_cross(&json, r, c);
    }
    json_out(&json, "} dictionaries {");
    for (size_t c = 0; c < r->n_cross; c++) {
        const SageCross *cross = &r->cross[c];
        json_out(&json, "%s [", cross->name);
        for (size_t i = 0; i < cross->n_nodes; i++) {
            json_fit(&json, r, &r->nodes[cross->nodes[i]], &cross->fits[i]);
        }
        json_out(&json, "]");
    }
    json_out(&json, "} tests {");
    for (size_t c = 0; c < r->n_cross; c++) {
        json_tests(&json, r, &r->cross[c]);
    }
    json_out(&json, "} interpretations [");
    for (size_t i = 0; i < r->n_interpretations; i++) {
        const SageInterpretation *f = &r->interpretations[i];
        json_out(&json, "{ hook %s position %s feature %zu f1 %g support %zu predicate %s }",
                 HOOK_NAME(f->kind, f->layer), task->positions[f->position], f->feature, f->f1,
                 f->support, f->predicate);
    }
    json_out(&json, "]");
    json_chance(&json, r);
    json_out(&json, "}");
    out_commit(out);
}

/* cross_sections.json, as --cross-sections takes it. */
static void write_cross_sections(const SageResult *r, const char *path) {
    OutFile *out = out_open(path);
    JsonOut json = json_out_start(out->stream, 3);
    json_out(&json, "{");
    for (size_t c = 0; c < r->n_cross; c++) {
        json_out(&json, "%s {", r->cross[c].name);
        json_nodes(&json, "nodes", r, c, r->cross[c].nodes, r->cross[c].n_nodes, false);
        json_out(&json, "}");
    }
    json_out(&json, "}");
    out_commit(out);
}

/* ---- SAGE: tables ---- */

/* All nodes of all cross-sections. */
static void write_nodes(const SageResult *r, const char *path) {
    OutFile *out = out_open(path);
    Csv csv = csv_start(out->stream, "cross_section,node,head,position,score,chosen,effect");
    for (size_t i = 0; i < r->n_cross * r->n_nodes; i++) {
        const SageNode *node = &r->nodes[i % r->n_nodes];
        csv_text(&csv, r->cross[i / r->n_nodes].name);
        csv_text(&csv, HOOK_NAME(node->kind, node->layer));
        csv_double(&csv, node_head(node));
        csv_text(&csv, r->task->positions[node->position]);
        csv_double(&csv, r->score[i]);
        csv_double(&csv, r->chosen[i]);
        csv_double(&csv, r->effect[i]);
        csv_end(&csv);
    }
    out_commit(out);
}

/* All figures below an object at `depth`, with their intervals, behind where they stand in
 * sage.json. Those of f1 have no attribute. */
static void csv_figures(Csv *csv, const char *path[5], size_t depth, const Json *object,
                        Arena *arena) {
    for (const Json *v = json_first_member(object); v != NULL; v = v->next) {
        if (json_is(v, JSON_OBJECT) && depth < 5) {
            size_t below = depth + (depth == 2 && strcmp(v->key, "f1") == 0 ? 2 : 1);
            path[depth] = v->key;
            csv_figures(csv, path, below, v, arena);
            path[depth] = "";
        } else if (!figure_is_interval(v)) {
            const Json *low = json_first(json_get(object, arena_format(arena, "%s_ci", v->key)));
            for (size_t i = 0; i < 5; i++) {
                csv_text(csv, path[i]);
            }
            csv_text(csv, v->key);
            csv_value(csv, v);
            csv_value(csv, low);
            csv_value(csv, low == NULL ? NULL : low->next);
            csv_end(csv);
        }
    }
}

static void write_tests(const Json *tests, const char *path) {
    OutFile *out = out_open(path);
    const char *place[5] = {"", "", "", "", ""};
    Csv csv =
        csv_start(out->stream, "cross_section,method,test,attribute,k_or_t,figure,value,low,high");
    csv_figures(&csv, place, 0, tests, out->arena);
    out_commit(out);
}

/* ---- SAGE: figures ---- */

static double row_peak(const HeatRow *row, size_t columns) {
    double peak = 0;
    for (size_t c = 0; c < columns; c++) {
        peak = fmax(peak, fabs(row->cells[c].value));
    }
    return peak;
}

/* A cross-section as a heat map, components by positions. Of many components those are shown whose
 * largest |score| is a fiftieth of the largest of all or more, and HEAT_ROWS at most. */
static char *heat_figure(const SageResult *r, size_t attribute, Arena *arena) {
    enum {
        HEAT_ROWS = 40
    };
    size_t columns = r->task->n_positions, first = attribute * r->n_nodes;
    HeatMap map = {.title = arena_format(arena, "Where %.60s is carried", r->cross[attribute].name),
                   .subtitle = "attribution patching, mean over the training prompts",
                   .x_label = "position",
                   .value_label = "score",
                   .columns = r->task->positions,
                   .column_count = columns};
    for (size_t i = 0; i < r->n_nodes; i++) {
        const SageNode *node = &r->nodes[i];
        const char *name = HOOK_NAME(node->kind, node->layer);
        HeatCell *cells = heat_row(arena, &map, node_label(arena, name, node_head(node)));
        cells[node->position] = (HeatCell){r->score[first + i], r->chosen[first + i]};
    }
    size_t n = map.row_count;
    if (n > HEAT_ROWS) {
        double *rising = arena_alloc(arena, n, sizeof *rising);
        for (size_t i = 0; i < n; i++) {
            rising[i] = row_peak(&map.rows[i], columns);
        }
        qsort(rising, n, sizeof *rising, compare_doubles);
        double least = fmax(rising[n - HEAT_ROWS], rising[n - 1] / 50);
        map.row_count = 0;
        for (size_t i = 0; i < n && map.row_count < HEAT_ROWS; i++) {
            if (!(row_peak(&map.rows[i], columns) < least)) {
                map.rows[map.row_count++] = map.rows[i];
            }
        }
    }
    return svg_heat(arena, &map);
}

/* What is compared with none, in the order and colours of all figures; the last three: features. */
static const struct {
    const char *name;
    int colour;
} methods[] = {{"mean", 1}, {"mse", 2}, {"weighted", 3}, {"sae", 4}, {"native", 7}, {"random", 5}};

enum {
    METHODS = sizeof methods / sizeof *methods,
    FEATURED = METHODS - 3
};

/* A curve of the object that each point of a list is, or that it has of a method: a figure with its
 * interval over a number, or for NULL over the point's own name. */
static void add_curve(Arena *arena, Chart *chart, Series series, const Json *list,
                      const char *method, const char *over, const char *figure) {
    const char *interval = arena_format(arena, "%s_ci", figure);
    series.count = list == NULL ? 0 : list->length;
    Point *point = chart_add(arena, chart, series);
    size_t i = 0;
    for (const Json *v = json_first(list); v != NULL; v = v->next, i++, point++) {
        const Json *object = method == NULL ? v : json_get(v, method);
        const Json *ends = json_first(json_get(object, interval));
        point->x = chart->groups != NULL ? (double)i
                   : over == NULL        ? strtod(v->key, NULL)
                                         : json_double(json_get(object, over));
        point->y = json_double(json_get(object, figure));
        point->low = json_double(ends);
        point->high = json_double(ends == NULL ? NULL : ends->next);
    }
}

/* Does a cross-section have it? native is not always there. */
static bool method_stands(const Json *tests, const char *method) {
    const Json *cross = json_first_member(tests);
    while (cross != NULL && json_get(cross, method) == NULL) {
        cross = cross->next;
    }
    return cross != NULL;
}

static const struct {
    const char *name, *label, *by_method, *by_threshold;
} merits[2] = {{"sufficiency", "0: no answer is preferred, 1: m as in the model as it is (none)",
                "Sufficiency by cross-section", "Sufficiency without the features of F1 < t"},
               {"necessity", "0: m as in the model as it is (none), 1: as with all nodes ablated",
                "Necessity by cross-section", "Necessity of the features of F1 ≥ t"}};

/* Figure 2: sufficiency or necessity by cross-section and method. */
static char *method_figure(const Json *tests, size_t merit, Arena *arena) {
    const char **groups = arena_alloc(arena, tests->length, sizeof *groups);
    Chart chart = {.title = merits[merit].by_method,
                   .y_label = merits[merit].label,
                   .groups = groups,
                   .shares = true};
    for (const Json *c = json_first(tests); c != NULL; c = c->next) {
        bool told = untold(c, NULL, arena) == NULL;
        groups[chart.group_count++] = told ? c->key : arena_format(arena, "%s †", c->key);
        chart.subtitle =
            told ? chart.subtitle : "†: resolution below 0.1, which cannot tell methods apart";
    }
    for (size_t m = 0; m < METHODS; m++) {
        Series series = {.name = methods[m].name, .colour = methods[m].colour};
        if (method_stands(tests, series.name)) {
            add_curve(arena, &chart, series, tests, series.name, NULL, merits[merit].name);
        }
    }
    return svg_chart(arena, NULL, &chart, 1);
}

#define EDIT_K "8" /* of Figure 3 */

/* Figure 3: edits by attribute and cross-section. */
static char *edit_figure(const Json *tests, const Json *attributes, Arena *arena) {
    static const struct {
        const char *method, *edit, *name;
    } edits[] = {{"none", "none", "none"},
                 {"mean", "supervised", "supervised (mean)"},
                 {"sae", EDIT_K, "sae"},
                 {"native", EDIT_K, "native"},
                 {"random", EDIT_K, "random"}};
    const char **crosses = arena_alloc(arena, tests->length, sizeof *crosses);
    HeatMap map = {.title = "Edits by attribute and cross-section, k = " EDIT_K,
                   .x_label = "cross-section",
                   .value_label = "share of prompts that answer as with the counterfactual",
                   .columns = crosses,
                   .column_count = tests->length,
                   .largest = 1,
                   .numbers = true};
    for (const Json *a = json_first(attributes); a != NULL; a = a->next) {
        for (size_t e = 0; e < sizeof edits / sizeof *edits; e++) {
            const char *name = arena_format(arena, "%s · %s", a->key, edits[e].name),
                       **title = crosses;
            if (!method_stands(tests, edits[e].method)) {
                continue;
            }
            HeatCell *cell = heat_row(arena, &map, name);
            for (const Json *c = json_first(tests); c != NULL; c = c->next, cell++) {
                const Json *edit =
                    json_below(json_below(c, edits[e].method, "control"), a->key, edits[e].edit);
                *title++ = c->key;
                cell->value =
                    json_double(json_is(edit, JSON_OBJECT) ? json_get(edit, "score") : edit);
                cell->marked = untold(c, a->key, arena) != NULL;
                if (cell->marked) {
                    map.subtitle = "outlined: none is above 0.9, which cannot tell methods apart";
                }
            }
        }
    }
    return svg_heat(arena, &map);
}

/* Figure 4: a panel for each attribute; both edits along k. */
static char *control_figure(const Json *tests, const Json *cross, const Json *attributes,
                            Arena *arena) {
    Chart *panels = arena_alloc(arena, attributes->length, sizeof *panels), *panel = panels;
    for (const Json *a = json_first(attributes); a != NULL; a = a->next, panel++) {
        *panel = (Chart){
            .title = a->key,
            .subtitle = untold(cross, a->key, arena),
            .x_label = "magnitude, k = 1, 2, 4 …; 0: the supervised edit's, 1: all of the node",
            .y_label = "score; 0: no intervention, 1: the supervised edit (mean dictionary)",
            .shares = true};
        for (size_t m = FEATURED; m < METHODS; m++) {
            const char *name = methods[m].name;
            const Json *method = json_get(cross, name);
            Series plain = {.name = name, .colour = methods[m].colour}, aware = plain;
            aware.name = arena_format(arena, "%s, aware", name);
            aware.dashed = true;
            if (method_stands(tests, name)) {
                add_curve(arena, panel, plain, json_below(method, "control", a->key), NULL,
                          "magnitude_rescaled", "score_rescaled");
                add_curve(arena, panel, aware, json_below(method, "control_aware", a->key), NULL,
                          "magnitude_rescaled", "score_rescaled");
            }
        }
    }
    return svg_chart(arena, arena_format(arena, "Editing the cross-section of %.60s", cross->key),
                     panels, attributes->length);
}

/* Figure 5: of how many features, at least t, a predicate of each kind is the best one. */
static char *kinds_figure(const Json *interpretations, double t, Arena *arena) {
    static const char *const kinds[] = {"value", "value & form", "place", "label", "union"};
    enum {
        KINDS = sizeof kinds / sizeof *kinds
    };
    HeatMap map = {
        .title = arena_format(arena, "What the features of F1 ≥ %s stand for", JSON_DOUBLE(t)),
        .x_label = "kind of the best predicate",
        .value_label = "features",
        .columns = kinds,
        .column_count = KINDS,
        .numbers = true};
    for (const Json *v = json_first(interpretations); v != NULL; v = v->next) {
        const char *predicate = json_string(json_get(v, "predicate"));
        size_t name = strcspn(predicate, "=");
        size_t kind = strstr(predicate, " in {") != NULL     ? 4
                      : strstr(predicate, " & ") != NULL     ? 1
                      : memchr(predicate, '#', name) != NULL ? 2
                      : memchr(predicate, '(', name) != NULL ? 3
                                                             : 0;
        HeatCell *cells = heat_row(arena, &map,
                                   arena_format(arena, "%s · %s", json_string(json_get(v, "hook")),
                                                json_string(json_get(v, "position"))));
        for (size_t k = 0; k < KINDS; k++) { /* a row has a number in each cell */
            cells[k].value = isnan(cells[k].value) ? 0 : cells[k].value;
        }
        cells[kind].value += json_double(json_get(v, "f1")) >= t ? 1 : 0;
    }
    return svg_heat(arena, &map);
}

/* Figures 30 and 31: a panel for each cross-section, over t. */
static char *sweep_figure(const Json *tests, size_t merit, Arena *arena) {
    Chart *panels = arena_alloc(arena, tests->length, sizeof *panels), *panel = panels;
    for (const Json *c = json_first(tests); c != NULL; c = c->next, panel++) {
        *panel = (Chart){.title = c->key,
                         .subtitle = untold(c, NULL, arena),
                         .x_label = "t (F1 of a feature's best predicate)",
                         .y_label = merits[merit].label,
                         .shares = true};
        for (size_t m = FEATURED; m < METHODS; m++) {
            Series series = {.name = methods[m].name, .colour = methods[m].colour};
            if (method_stands(tests, series.name)) {
                add_curve(arena, panel, series, json_below(c, series.name, "f1"), NULL, NULL,
                          merits[merit].name);
            }
        }
    }
    return svg_chart(arena, merits[merit].by_threshold, panels, tests->length);
}

/* How many nodes carry what a cross-section was found for. */
static char *nodes_figure(const Json *crosses, Arena *arena) {
    Chart chart = {.title = "Patching the first nodes of the walk",
                   .x_label = "nodes",
                   .y_label = "change of m; 0: none, 1: that of patching all nodes",
                   .shares = true,
                   .log_x = true};
    for (const Json *c = json_first(crosses); c != NULL; c = c->next) {
        add_curve(arena, &chart, (Series){.name = c->key}, json_get(c, "curve"), NULL, "nodes",
                  "share");
    }
    return svg_chart(arena, NULL, &chart, 1);
}

void report_sage_figures(const char *out, double t) {
    Arena *arena = arena_new();
    const Json *sage = json_read_file(arena, path_join(arena, out, "sage.json")),
               *tests = json_get(sage, "tests"), *crosses = json_get(sage, "cross_sections"),
               *interpretations = json_get(sage, "interpretations"),
               *attributes = json_below(json_first_member(tests), "none", "control");
    size_t i = 0;
    write_tests(tests, path_join(arena, out, "sage.csv"));
    for (const Json *c = json_first_member(tests); c != NULL; c = c->next) {
        write_figure(arena, out, figure_name(arena, "control", c->key, i++),
                     control_figure(tests, c, attributes, arena));
    }
    for (size_t merit = 0; merit < 2; merit++) {
        const char *name = merits[merit].name;
        write_figure(arena, out, arena_format(arena, "%s.svg", name),
                     method_figure(tests, merit, arena));
        write_figure(arena, out, arena_format(arena, "f1_%s.svg", name),
                     sweep_figure(tests, merit, arena));
    }
    write_figure(arena, out, "edits.svg", edit_figure(tests, attributes, arena));
    write_figure(arena, out, "kinds.svg", kinds_figure(interpretations, t, arena));
    if (json_first(json_get(json_first_member(crosses), "curve")) != NULL) { /* found, not given */
        write_figure(arena, out, "nodes.svg", nodes_figure(crosses, arena));
    }
    arena_free(arena);
}

/* ---- reports ---- */

/* --json: the file of results, on stdout. */
static void tell_file(const Console *console, const char *path, Arena *arena) {
    if (console->json) {
        FileMap file = file_map(arena, path);
        fwrite(file.data, 1, file.size, stdout);
    }
}

void report_analyze(const AnalyzeResult *result, const LayerTable *published) {
    Arena *arena = arena_new();
    const VlmOptions *o = result->options;
    LayerTable ours = layer_table(arena, result);
    char *path = path_join(arena, o->out, "layers.json");
    write_layers(result, &ours, published, path);
    const Json *json = json_read_file(arena, path), *convergence = json_get(json, "convergence");
    write_csv(path_join(arena, o->out, "layers.csv"), json_get(json, "layers"),
              "layer,group,mse,sparsity,l0,fvu,cosine,norm,loss_recovered_zero,loss_recovered_mean,"
              "match,permuted_mse,permuted_sparsity,permuted_fvu,permuted_cosine,permuted_norm,"
              "gaussian_mse,gaussian_sparsity,gaussian_fvu,gaussian_cosine,gaussian_norm");
    for (Metric m = 0; m < METRICS; m++) {
        write_figure(arena, o->out, arena_format(arena, "%s.svg", layer_metrics[m].name),
                     layer_figure(result, &ours, published, convergence, m, arena));
    }
    folder_page(o->out, o->seed, result->console);
    for (const Json *v = json_first(json_get(json, "distance")); v != NULL; v = v->next) {
        if (json_is(v, JSON_NUMBER)) { /* null: not measured here */
            console_result(result->console, "distance to the published %s: %.3f", v->key,
                           json_double(v));
        }
    }
    console_result(result->console, "convergence layer: MSE %s, sparsity %s",
                   convergence_text(arena, convergence, "mse_layer"),
                   convergence_text(arena, convergence, "sparsity_layer"));
    if (result->verdicts > 0) {
        console_line(result->console,
                     "%zu of %zu verdict%s used; questions without one, which count as no: %zu",
                     result->verdicts_used, result->verdicts, plural(result->verdicts),
                     result->verdicts_missing);
    }
    console_result(result->console, "%zu example%s, %zu of them judged, %zu left out",
                   result->examples, plural(result->examples), result->judged, result->n_failures);
    tell_file(result->console, path, arena);
    arena_free(arena);
}

/* Whether the model does the task, and the figures of each cross-section in words. */
static void tell_tests(const SageResult *r, const Json *tests, Arena *arena) {
    const SageFigure *m = &r->m_clean;
    console_result(r->console, "answers right %.3f, m %.3f [%.3f, %.3f]%s", r->accuracy, m->value,
                   m->low, m->high,
                   m->low > 0.0 ? "" : ": the model does not do the task, no figure says much");
    for (const Json *c = json_first(tests); c != NULL; c = c->next) {
        const char *told[2], *why = untold(c, NULL, arena);
        for (size_t i = 0; i < 2; i++) {
            told[i] = arena_format(
                arena, i == 0 ? "weighted %.3f, sae %.3f, random %.3f" : "%.3f, %.3f, %.3f",
                json_double(json_below(c, "weighted", merits[i].name)),
                json_double(json_below(c, "sae", merits[i].name)),
                json_double(json_below(c, "random", merits[i].name)));
        }
        console_result(r->console, "%s: sufficiency %s; %s%s", c->key, told[0],
                       why != NULL ? "" : "necessity ", why != NULL ? why : told[1]);
    }
}

void report_sage(const SageResult *result) {
    Arena *arena = arena_new();
    const SageOptions *o = result->options;
    char *json = path_join(arena, o->vlm.out, "sage.json");
    write_sage(result, json);
    write_nodes(result, path_join(arena, o->vlm.out, "cross_sections.csv"));
    write_cross_sections(result, path_join(arena, o->vlm.out, "cross_sections.json"));
    for (size_t c = 0; c < result->n_cross && o->cross_sections == NULL; c++) {
        char *name = figure_name(arena, "heat", result->cross[c].name, c);
        write_figure(arena, o->vlm.out, name, heat_figure(result, c, arena));
    }
    report_sage_figures(o->vlm.out, o->f1[0]);
    const Json *tests = json_get(json_read_file(arena, json), "tests");
    folder_page(o->vlm.out, o->vlm.seed, result->console);
    tell_tests(result, tests, arena);
    tell_file(result->console, json, arena);
    arena_free(arena);
}

void report_train(const TrainResult *result) {
    Arena *arena = arena_new();
    Chart chart = {.title = "Adapter training",
                   .x_label = "step",
                   .y_label = "cross-entropy of the answers (nats)",
                   .subtitle = "0: certain of every right token"};
    Point *points = chart_add(arena, &chart, (Series){.name = "loss", .count = result->steps});
    for (size_t i = 0; i < result->steps; i++) {
        points[i].x = (double)(i + 1);
        points[i].y = result->loss[i];
    }
    write_figure(arena, result->options->out, "loss.svg", svg_chart(arena, NULL, &chart, 1));
    arena_free(arena);
}

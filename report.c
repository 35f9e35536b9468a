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

/* ---- rows: one description of a row's fields, two ways to write it ----
 * A function says each field's name beside its value, and in which files it stands. In CSV the
 * names of the first row become the head, so all rows of a file have the same fields; in JSON a row
 * is an object. */

enum {
    CSV = 1,
    JSON = 2,
    BOTH = CSV | JSON
};

typedef struct Rows {
    int kind; /* CSV or JSON */
    Csv head, row;
    MemoryStream *first; /* the first row of a CSV, until the head is whole */
    JsonOut json;
    const char *group; /* "permuted": fields are called permuted_mse, in JSON permuted: {mse: */
} Rows;

static Rows rows_csv(OutFile *out) {
    MemoryStream *first = memory_open(out->arena);
    return (Rows){CSV, .head = {out->stream}, .row = {first->stream}, .first = first};
}

static Rows rows_json(OutFile *out, int pretty) {
    return (Rows){JSON, .json = json_out_start(out->stream, pretty)};
}

/* In JSON an object around what follows; NULL: an element of an array. */
static void nest(Rows *rows, const char *key) {
    if (rows->kind == JSON) {
        json_out_object(&rows->json, key);
    }
}

static void unnest(Rows *rows) {
    if (rows->kind == JSON) {
        json_out_end(&rows->json);
    }
}

static void row_end(Rows *rows) {
    unnest(rows);
    if (rows->kind == CSV) {
        csv_end(&rows->row);
    }
    if (rows->first != NULL) {
        csv_end(&rows->head);
        fputs(memory_text(rows->first), rows->head.stream);
        rows->row.stream = rows->head.stream;
        rows->first = NULL;
    }
}

/* Does the field stand in this kind of file? Its name goes into the head. */
static bool field(Rows *rows, int where, const char *name) {
    char whole[96];
    bool grouped = rows->group != NULL;
    if ((where & rows->kind) == CSV && rows->first != NULL) {
        snprintf(whole, sizeof whole, "%s%s%s", grouped ? rows->group : "", grouped ? "_" : "",
                 name);
        csv_text(&rows->head, whole);
    }
    return (where & rows->kind) != 0;
}

static void field_text(Rows *rows, int where, const char *name, const char *text) {
    if (!field(rows, where, name)) {
        return;
    }
    if (rows->kind == CSV) {
        csv_text(&rows->row, text);
    } else {
        json_out_text(&rows->json, name, text);
    }
}

static void field_number(Rows *rows, int where, const char *name, double value) {
    if (!field(rows, where, name)) {
        return;
    }
    if (rows->kind == CSV) {
        csv_double(&rows->row, value);
    } else {
        json_out_double(&rows->json, name, value);
    }
}

/* A whole number; below 0: none. */
static void field_count(Rows *rows, int where, const char *name, int64_t value) {
    field_number(rows, where, name, value < 0 ? (double)NAN : (double)value);
}

/* ---- figures ---- */

static void write_text(const char *path, const char *text) {
    OutFile *out = out_open(path);
    fputs(text, out->stream);
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

/* ---- pieces of files that are read: lines, cells, HTML ---- */

typedef struct Piece { /* bytes of a mapped file */
    const char *data;
    size_t length;
} Piece;

/* Where `what` begins; the length if nowhere. */
static size_t find(Piece piece, const char *what) {
    size_t n = strlen(what);
    for (size_t i = 0; i + n <= piece.length; i++) {
        if (memcmp(piece.data + i, what, n) == 0) {
            return i;
        }
    }
    return piece.length;
}

/* What stands before the next `end`; *rest goes on behind it. */
static Piece cut(Piece *rest, const char *end) {
    Piece piece = {rest->data, find(*rest, end)};
    size_t skip = piece.length < rest->length ? piece.length + strlen(end) : piece.length;
    *rest = (Piece){rest->data + skip, rest->length - skip};
    return piece;
}

/* Between the first `open` and the next `close`; empty if either is missing. */
static Piece between(Piece piece, const char *open, const char *close) {
    cut(&piece, open);
    size_t end = find(piece, close);
    return (Piece){piece.data, end < piece.length ? end : 0};
}

static bool piece_is(Piece piece, const char *text) {
    return piece.length == strlen(text) && memcmp(piece.data, text, piece.length) == 0;
}

static Piece cut_line(Piece *rest) {
    Piece line = cut(rest, "\n");
    line.length -= line.length > 0 && line.data[line.length - 1] == '\r' ? 1 : 0;
    return line;
}

/* Which cell of a CSV line without quotes is `name`; SIZE_MAX: none. */
static size_t csv_column(Piece line, const char *name) {
    for (size_t column = 0; line.length > 0; column++) {
        if (piece_is(cut(&line, ","), name)) {
            return column;
        }
    }
    return SIZE_MAX;
}

/* The number in a cell of such a line; false if there is none. */
static bool csv_number(Piece line, size_t column, double *value) {
    char text[64], *end;
    Piece cell = cut(&line, ",");
    for (; column > 0 && line.length > 0; column--) {
        cell = cut(&line, ",");
    }
    if (column > 0 || cell.length == 0 || cell.length >= sizeof text) {
        return false;
    }
    memcpy(text, cell.data, cell.length);
    text[cell.length] = '\0';
    *value = strtod(text, &end);
    return *end == '\0';
}

/* ---- the layer analysis (Mapping) ---- */

typedef enum Metric {
    METRIC_MSE,
    METRIC_SPARSITY,
    METRIC_MATCH,
    METRICS
} Metric;

static const struct {
    const char *name, *file, *title, *label;
} metrics[METRICS] = {
    {"mse", "mse.svg", "Reconstruction error by layer", "MSE (log)"},
    {"sparsity", "sparsity.svg", "SAE sparsity by layer", "share of features active (log)"},
    {"match", "match.svg", "Features that match the answer, by layer", "match rate"}};

static double mean_of(double sum, size_t n) {
    return n > 0 ? sum / (double)n : NAN;
}

static double metric(const LayerResult *layer, Metric which, Group group, Variant variant) {
    const Sums *sums = &layer->sums[variant][group];
    return which == METRIC_MSE        ? mean_of(sums->mse, sums->n)
           : which == METRIC_SPARSITY ? mean_of(sums->sparsity, sums->n)
           : variant == VARIANT_CLEAN ? mean_of((double)layer->matched[group], layer->judged[group])
                                      : NAN;
}

static bool within(const LayerResult *layer, Metric which, double factor) {
    double image = metric(layer, which, GROUP_IMG, VARIANT_CLEAN),
           text = metric(layer, which, GROUP_TEXT, VARIANT_CLEAN);
    return image <= text * factor && text <= image * factor;
}

int convergence_layer(const AnalyzeResult *result, bool mse, bool sparsity) {
    int found = -1;
    for (size_t i = result->n_layers; i-- > 0;) {
        const LayerResult *layer = &result->layers[i];
        double factor = result->options->converge;
        if ((mse && !within(layer, METRIC_MSE, factor)) ||
            (sparsity && !within(layer, METRIC_SPARSITY, factor))) {
            break;
        }
        found = layer->layer;
    }
    return found;
}

static void loss_fields(Rows *rows, const LossSums *loss) {
    if (rows->kind == JSON && loss->n == 0) {
        return;
    }
    nest(rows, rows->group = "loss");
    field_number(rows, JSON, "clean", mean_of(loss->clean, loss->n));
    field_number(rows, JSON, "sae", mean_of(loss->sae, loss->n));
    field_number(rows, JSON, "zero_ablation", mean_of(loss->zero, loss->n));
    field_number(rows, JSON, "mean_ablation", mean_of(loss->mean, loss->n));
    field_number(rows, BOTH, "recovered_zero", loss_recovered(loss, true));
    field_number(rows, BOTH, "recovered_mean", loss_recovered(loss, false));
    unnest(rows);
    rows->group = NULL;
}

static void sums_fields(Rows *rows, const Sums *s, int where_l0) {
    field_number(rows, BOTH, "mse", mean_of(s->mse, s->n));
    field_number(rows, BOTH, "sparsity", mean_of(s->sparsity, s->n));
    field_number(rows, where_l0, "l0", mean_of(s->l0, s->n));
    field_number(rows, BOTH, "fvu", mean_of(s->fvu, s->n_fvu));
    field_number(rows, BOTH, "cosine", mean_of(s->cosine, s->n));
    field_number(rows, BOTH, "norm", mean_of(s->norm, s->n));
}

static void put_layer(Rows *rows, const LayerResult *layer, Group g) {
    nest(rows, NULL);
    field_count(rows, BOTH, "layer", layer->layer);
    field_text(rows, BOTH, "group", group_names[g]);
    sums_fields(rows, &layer->sums[VARIANT_CLEAN][g], BOTH);
    loss_fields(rows, &layer->loss[g]);
    field_number(rows, BOTH, "match", metric(layer, METRIC_MATCH, g, VARIANT_CLEAN));
    for (Variant v = VARIANT_PERMUTED; v < VARIANTS; v++) {
        if (rows->kind == CSV || layer->sums[v][g].n > 0) {
            nest(rows, rows->group = variant_names[v]);
            sums_fields(rows, &layer->sums[v][g], JSON);
            unnest(rows);
        }
    }
    rows->group = NULL;
    row_end(rows);
}

static void put_layers(Rows *rows, const AnalyzeResult *result) {
    for (size_t i = 0; i < result->n_layers; i++) {
        for (Group g = 0; g < GROUPS; g++) {
            put_layer(rows, &result->layers[i], g);
        }
    }
}

/* A column of --compare. */
typedef struct Published {
    char name[48]; /* "mse_vlm_img" */
    Metric metric;
    Group group;
    double *values; /* [n_layers] by layer of the result; NaN where the table has none */
    double distance;
} Published;

typedef struct Comparison {
    Published curves[METRICS * GROUPS];
    size_t count; /* of those that the table has */
} Comparison;

/* False if the table has no such column. */
static bool published_read(Published *p, const AnalyzeResult *result, Piece rest) {
    size_t column = csv_column(cut_line(&rest), p->name);
    double value;
    for (size_t i = 0; i < result->n_layers; i++) {
        p->values[i] = NAN;
    }
    for (size_t number = 2; column != SIZE_MAX && rest.length > 0; number++) {
        Piece line = cut_line(&rest);
        if (line.length > 0 && !csv_number(line, 0, &value)) {
            fail(STATUS_INPUT, "%s:%zu: the first column is no layer number",
                 result->options->compare, number);
        }
        for (size_t i = 0; i < result->n_layers && line.length > 0; i++) {
            if ((double)result->layers[i].layer == value) {
                csv_number(line, column, &p->values[i]);
            }
        }
    }
    return column != SIZE_MAX;
}

/* Mean over layers of |log10(ours / published)|; for the match rate of |ours - published|. */
static double published_distance(const AnalyzeResult *result, const Published *published) {
    double sum = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < result->n_layers; i++) {
        double theirs = published->values[i], ours = metric(&result->layers[i], published->metric,
                                                            published->group, VARIANT_CLEAN);
        bool ratio = published->metric != METRIC_MATCH;
        if (isfinite(ours) && isfinite(theirs) && (!ratio || (ours > 0.0 && theirs > 0.0))) {
            sum += ratio ? fabs((double)log_f32((float)(ours / theirs))) / 2.302585092994046
                         : fabs(ours - theirs);
            n++;
        }
    }
    return mean_of(sum, n);
}

static Comparison comparison_read(const AnalyzeResult *result, Arena *arena) {
    Comparison c = {.count = 0};
    FileMap file = file_map(arena, result->options->compare);
    for (int k = 0; k < METRICS * GROUPS; k++) {
        Published *p = &c.curves[c.count];
        *p = (Published){.metric = k / GROUPS, .group = k % GROUPS};
        snprintf(p->name, sizeof p->name, "%s_%s", metrics[p->metric].name, group_names[p->group]);
        p->values = arena_alloc(arena, result->n_layers, sizeof(double));
        if (published_read(p, result, (Piece){(const char *)file.data, file.size})) {
            p->distance = published_distance(result, p);
            c.count++;
        }
    }
    if (c.count == 0) {
        fail(STATUS_INPUT, "%s: no column named as mse_vlm_img, sparsity_llm_text or match_vlm_img",
             result->options->compare);
    }
    return c;
}

static void write_layers_json(const AnalyzeResult *result, const Comparison *comparison,
                              OutFile *out) {
    Rows rows = rows_json(out, 2);
    JsonOut *json = &rows.json;
    json_out_object(json, NULL);
    json_out_int(json, "examples", (int64_t)result->examples);
    json_out_array(json, "left_out");
    for (size_t i = 0; i < result->n_failures; i++) {
        json_out_text(json, NULL, result->failures[i]);
    }
    json_out_end(json);
    json_out_object(json, "convergence");
    json_out_double(json, "factor", result->options->converge);
    field_count(&rows, JSON, "layer", convergence_layer(result, true, true));
    field_count(&rows, JSON, "mse_layer", convergence_layer(result, true, false));
    field_count(&rows, JSON, "sparsity_layer", convergence_layer(result, false, true));
    json_out_end(json);
    if (comparison->count > 0) {
        json_out_object(json, "distance");
        for (size_t k = 0; k < comparison->count; k++) {
            json_out_double(json, comparison->curves[k].name, comparison->curves[k].distance);
        }
        json_out_end(json);
    }
    json_out_array(json, "layers");
    put_layers(&rows, result);
    json_out_end(json);
    json_out_end(json);
}

/* A curve of our own; none if no layer has a value. */
static void curve_measured(Curves *curves, const AnalyzeResult *result, const char *name,
                           int colour, Metric m, Group g, Variant v) {
    double *y = curve_add(curves, name, colour, false);
    bool any = false;
    for (size_t i = 0; i < curves->n; i++) {
        y[i] = metric(&result->layers[i], m, g, v);
        any = any || !isnan(y[i]);
    }
    curves->count -= any ? 0 : 1;
}

/* Each group solid, the published curve of the same colour dashed; then the controls. */
static char *layer_figure(const AnalyzeResult *result, const Comparison *comparison, Metric m,
                          Arena *arena) {
    static const char *const names[GROUPS] = {"image tokens", "text after the image",
                                              "text-only control"};
    static const char *const controls[VARIANTS] = {"", "permuted image tokens",
                                                   "Gaussian image tokens"};
    double *x = arena_alloc(arena, result->n_layers, sizeof(double));
    Curves curves = {.arena = arena, .n = result->n_layers, .x = x};
    for (size_t i = 0; i < curves.n; i++) {
        x[i] = (double)result->layers[i].layer;
    }
    for (Group g = 0; g < GROUPS; g++) {
        curve_measured(&curves, result, names[g], (int)g + 1, m, g, VARIANT_CLEAN);
        for (size_t k = 0; k < comparison->count; k++) {
            const Published *p = &comparison->curves[k];
            if (p->metric == m && p->group == g) {
                const char *name = arena_format(arena, "%s, published", names[g]);
                memcpy(curve_add(&curves, name, (int)g + 1, true), p->values,
                       curves.n * sizeof(double));
            }
        }
    }
    for (Variant v = VARIANT_PERMUTED; v < VARIANTS; v++) {
        curve_measured(&curves, result, controls[v], (int)v + GROUPS, m, GROUP_IMG, v);
    }
    bool mse = m == METRIC_MSE, sparsity = m == METRIC_SPARSITY;
    int layer = mse || sparsity ? convergence_layer(result, mse, sparsity) : -1;
    LineChart chart = {.title = metrics[m].title,
                       .x_label = "layer",
                       .y_label = metrics[m].label,
                       .series = curves.series,
                       .series_count = curves.count,
                       .log_y = m != METRIC_MATCH,
                       .marker_x = (double)layer};
    if (layer >= 0) {
        chart.marker_label =
            arena_format(arena, "within %.3gx from layer %d", result->options->converge, layer);
    }
    return svg_lines(arena, &chart);
}

static void write_analysis(const AnalyzeResult *result, const Comparison *comparison,
                           Arena *arena) {
    const char *directory = result->options->out;
    OutFile *out = out_open(path_join(arena, directory, "layers.csv"));
    Rows rows = rows_csv(out);
    put_layers(&rows, result);
    out_commit(out);
    out = out_open(path_join(arena, directory, "layers.json"));
    write_layers_json(result, comparison, out);
    out_commit(out);
    for (Metric m = 0; m < METRICS; m++) {
        write_text(path_join(arena, directory, metrics[m].file),
                   layer_figure(result, comparison, m, arena));
    }
}

/* ---- SAGE: what it found, as rows ---- */

static bool is_supervised(int method) {
    return method == SAGE_MEAN || method == SAGE_MSE || method == SAGE_WEIGHTED;
}

static bool is_sae(int method) {
    return method == SAGE_SAE || method == SAGE_RANDOM;
}

/* "f1>=0.5" */
static char *f1_name(Arena *arena, const char *relation, double threshold) {
    char number[JSON_NUMBER_SIZE];
    json_format_double(number, threshold);
    return arena_format(arena, "%s%s", relation, number);
}

static void place_fields(Rows *rows, const SageResult *r, size_t place) {
    const SageNode *node = &r->nodes[place];
    char name[HOOK_NAME_MAX];
    hook_name(name, node->kind, node->layer, false, false);
    field_text(rows, BOTH, "node", name);
    field_count(rows, BOTH, "head", node->head);
    field_text(rows, BOTH, "position", r->task->positions[node->position]);
}

static void put_node(Rows *rows, const SageResult *r, size_t attribute, size_t place) {
    size_t at = attribute * r->n_nodes + place;
    nest(rows, NULL);
    field_text(rows, CSV, "attribute", r->task->attributes[attribute].name);
    place_fields(rows, r, place);
    field_number(rows, BOTH, "score", r->score[at]);
    field_count(rows, CSV, "chosen", r->chosen[at]);
    field_number(rows, BOTH, "effect", r->effect[at]);
    row_end(rows);
}

/* Tests of a method, or (subset) of some of its features. */
typedef struct Tested {
    const char *attribute, *method, *subset;
    const SageTests *tests;
    bool supervised;
} Tested;

/* A row of sage.csv, an object of sage.json. k 0: does not apply. */
static void put_test(Rows *rows, const Tested *t, const char *test, size_t k, SageControl control) {
    char key[24];
    snprintf(key, sizeof key, k == 0 ? "control_supervised" : "%zu", k);
    nest(rows, key);
    field_text(rows, CSV, "attribute", t->attribute);
    field_text(rows, CSV, "method", t->method);
    field_text(rows, CSV, "subset", t->subset);
    field_text(rows, CSV, "test", test);
    field_count(rows, CSV, "k", k == 0 ? -1 : (int64_t)k);
    field_number(rows, BOTH, "score", control.score);
    field_number(rows, BOTH, "magnitude", control.magnitude);
    field_number(rows, BOTH, "rescaled_magnitude", control.rescaled);
    row_end(rows);
}

static void put_tests(Rows *rows, const Tested *t) {
    const SageTests *tests = t->tests;
    if (rows->kind == CSV) {
        put_test(rows, t, "sufficiency", 0, (SageControl){tests->sufficiency, NAN, NAN});
        put_test(rows, t, "necessity", 0, (SageControl){tests->necessity, NAN, NAN});
    }
    field_number(rows, JSON, "sufficiency", tests->sufficiency);
    field_number(rows, JSON, "necessity", tests->necessity);
    if (t->supervised) {
        put_test(rows, t, "control", 0, tests->supervised);
        return;
    }
    nest(rows, "control");
    for (size_t k = 0; k < SAGE_KS; k++) {
        put_test(rows, t, "control", sage_ks[k], tests->control[k]);
    }
    unnest(rows);
}

/* All tests of one method on one attribute's cross-section. */
static void put_method(Rows *rows, const SageResult *r, size_t attribute, int method) {
    const SageCross *cross = &r->cross[attribute];
    Tested tested = {r->task->attributes[attribute].name, sage_method_names[method], "all",
                     &cross->tests[method], is_supervised(method)};
    nest(rows, tested.method);
    put_tests(rows, &tested);
    if (is_sae(method)) {
        nest(rows, "f1");
        for (size_t f = 0; f < r->options->n_f1; f++) {
            char threshold[JSON_NUMBER_SIZE], subset[JSON_NUMBER_SIZE + 8];
            json_format_double(threshold, r->options->f1[f]);
            nest(rows, threshold);
            for (int below = 0; below < 2; below++) {
                snprintf(subset, sizeof subset, "%s%s", below != 0 ? "f1<" : "f1>=", threshold);
                tested.subset = subset;
                tested.tests = &cross->f1[f][method == SAGE_RANDOM][below];
                nest(rows, below != 0 ? "below" : "above");
                put_tests(rows, &tested);
                unnest(rows);
            }
            unnest(rows);
        }
        unnest(rows);
    }
    unnest(rows);
}

static void put_methods(Rows *rows, const SageResult *r) {
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        nest(rows, r->task->attributes[a].name);
        for (int m = 0; m < SAGE_METHODS; m++) {
            put_method(rows, r, a, m);
        }
        unnest(rows);
    }
}

/* ---- sage.json ---- */

/* Each value once, though several attributes may have lost it. */
static void json_dropped(JsonOut *json, const SageTask *task) {
    json_out_array(json, "dropped");
    for (size_t i = 0; i < task->n_dropped; i++) {
        size_t first = 0;
        while (strcmp(task->dropped[first].value, task->dropped[i].value) != 0) {
            first++;
        }
        if (first == i) {
            json_out_text(json, NULL, task->dropped[i].value);
        }
    }
    json_out_end(json);
}

static void json_nodes(Rows *rows, const SageResult *r, size_t attribute, const char *key,
                       const size_t *places, size_t count) {
    json_out_array(&rows->json, key);
    for (size_t i = 0; i < count; i++) {
        put_node(rows, r, attribute, places[i]);
    }
    json_out_end(&rows->json);
}

static void json_fit(Rows *rows, const SageResult *r, size_t place, const SageFit *fit) {
    bool reads = sage_node_reads(&r->nodes[place]);
    nest(rows, NULL);
    place_fields(rows, r, place);
    nest(rows, "r2");
    field_number(rows, JSON, "mean", fit->mean);
    field_number(rows, JSON, "mse", fit->mse);
    field_number(rows, JSON, "weighted", fit->weighted);
    field_number(rows, JSON, "sae", fit->sae);
    if (reads) {
        field_number(rows, JSON, "weights", fit->weights);
    } else {
        field_number(rows, JSON, "span", fit->span);
        field_number(rows, JSON, "encoder", fit->encoder);
    }
    unnest(rows);
    nest(rows, "weights");
    for (size_t i = 0; i < r->task->n_attributes; i++) {
        field_number(rows, JSON, r->task->attributes[i].name, fit->w[i]);
    }
    unnest(rows);
    row_end(rows);
}

static void json_interpretation(Rows *rows, const SageResult *r, size_t i) {
    const SageInterpretation *found = &r->interpretations[i];
    char name[HOOK_NAME_MAX];
    hook_name(name, found->kind, found->layer, false, false);
    nest(rows, NULL);
    field_text(rows, JSON, "hook", name);
    field_text(rows, JSON, "position", r->task->positions[found->position]);
    field_count(rows, JSON, "feature", (int64_t)found->feature);
    field_number(rows, JSON, "f1", found->f1);
    field_text(rows, JSON, "predicate", found->predicate);
    row_end(rows);
}

static void json_crosses(Rows *rows, const SageResult *r) {
    nest(rows, "cross_sections");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        const SageCross *cross = &r->cross[a];
        nest(rows, r->task->attributes[a].name);
        json_nodes(rows, r, a, "nodes", cross->nodes, cross->n_nodes);
        json_nodes(rows, r, a, "others", cross->others, cross->n_others);
        field_number(rows, JSON, "share", cross->share);
        field_number(rows, JSON, "spearman", cross->spearman);
        unnest(rows);
    }
    unnest(rows);
    nest(rows, "dictionaries");
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        const SageCross *cross = &r->cross[a];
        json_out_array(&rows->json, r->task->attributes[a].name);
        for (size_t i = 0; i < cross->n_nodes; i++) {
            json_fit(rows, r, cross->nodes[i], &cross->fits[i]);
        }
        json_out_end(&rows->json);
    }
    unnest(rows);
}

static void write_sage_json(const SageResult *r, OutFile *out) {
    Rows rows = rows_json(out, 4);
    JsonOut *json = &rows.json;
    json_out_object(json, NULL);
    json_out_text(json, "task", r->task->name);
    json_out_text(json, "model", r->options->llm);
    json_out_object(json, "prompts");
    json_out_int(json, "train", (int64_t)r->task->n_prompts[SAGE_TRAIN]);
    json_out_int(json, "test", (int64_t)r->task->n_prompts[SAGE_TEST]);
    json_dropped(json, r->task);
    json_out_end(json);
    json_out_object(json, "baseline");
    json_out_double(json, "accuracy", r->accuracy);
    json_out_double(json, "m_clean", r->m_clean);
    json_out_end(json);
    json_crosses(&rows, r);
    json_out_object(json, "tests");
    put_methods(&rows, r);
    json_out_end(json);
    json_out_array(json, "interpretations");
    for (size_t i = 0; i < r->n_interpretations; i++) {
        json_interpretation(&rows, r, i);
    }
    json_out_end(json);
    json_out_end(json);
}

static void write_sage_files(const SageResult *r, Arena *arena) {
    const char *directory = r->options->out;
    OutFile *out = out_open(path_join(arena, directory, "cross_sections.csv"));
    Rows rows = rows_csv(out);
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        for (size_t i = 0; i < r->n_nodes; i++) {
            put_node(&rows, r, a, i);
        }
    }
    out_commit(out);
    out = out_open(path_join(arena, directory, "sage.csv"));
    rows = rows_csv(out);
    put_methods(&rows, r);
    out_commit(out);
    out = out_open(path_join(arena, directory, "sage.json"));
    write_sage_json(r, out);
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
    HeatMap map = {
        .title = arena_format(arena, "Where %.60s is carried", r->task->attributes[attribute].name),
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

/* Sufficiency or necessity of all methods but none, and of the SAE's two F1 subsets. */
static char *method_figure(const SageResult *r, bool necessity, Arena *arena) {
    static const char *const subsets[2] = {"sae, F1 ≥ ", "sae, F1 < "};
    enum {
        METHODS = SAGE_METHODS - 1
    };
    const double low = -1, high = 2;
    bool leaves = false; /* a bar leaves the drawn range */
    const char **groups = arena_alloc(arena, r->task->n_attributes, sizeof *groups);
    Curves bars = {.arena = arena, .n = r->task->n_attributes};
    for (size_t k = 0; k < (r->options->n_f1 > 0 ? METHODS + 2 : METHODS); k++) {
        bool whole = k < METHODS;
        double *y = curve_add(&bars,
                              whole ? sage_method_names[k + 1]
                                    : f1_name(arena, subsets[k - METHODS], r->options->f1[0]),
                              0, false);
        for (size_t a = 0; a < bars.n; a++) {
            const SageCross *cross = &r->cross[a];
            const SageTests *tests = whole ? &cross->tests[k + 1] : &cross->f1[0][0][k - METHODS];
            double value = necessity ? tests->necessity : tests->sufficiency;
            groups[a] = r->task->attributes[a].name;
            leaves = leaves || value < low || value > high;
            y[a] = value < low ? low : value > high ? high : value;
        }
    }
    BarChart chart = {
        .title = necessity ? "Necessity by method" : "Sufficiency by method",
        .subtitle = leaves ? "bars that leave the range from −1 to 2 are cut; the table has their "
                             "values"
                           : NULL,
        .y_label = necessity ? "share of the ablation's harm that is reproduced"
                             : "metric m on reconstructions / m of the model",
        .groups = groups,
        .group_count = bars.n,
        .series = bars.series,
        .series_count = bars.count,
        .reference = 1};
    return svg_bars(arena, &chart);
}

/* Control over k. Solid: what k changes. Dashed: the supervised edits, which change one feature for
 * another, and the model without any. Colours as in the bars. */
static char *control_figure(const SageResult *r, size_t attribute, Arena *arena) {
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
    double x[SAGE_KS];
    Curves curves = {.arena = arena, .n = SAGE_KS, .x = x};
    for (size_t s = 0; s < SAGE_METHODS; s++) {
        int method = (int)order[s].method;
        const SageTests *tests = &cross->tests[method];
        double *y = curve_add(&curves, order[s].name, order[s].colour, !is_sae(method));
        for (size_t k = 0; k < SAGE_KS; k++) {
            x[k] = (double)sage_ks[k];
            y[k] = is_supervised(method) ? tests->supervised.score : tests->control[k].score;
        }
        if (method == SAGE_SAE && r->options->n_f1 > 0) {
            y = curve_add(&curves, f1_name(arena, "sae, F1 ≥ ", r->options->f1[0]), 6, false);
            for (size_t k = 0; k < SAGE_KS; k++) {
                y[k] = cross->f1[0][0][0].control[k].score;
            }
        }
    }
    LineChart chart = {.title = arena_format(arena, "Control of %.60s by editing k features",
                                             r->task->attributes[attribute].name),
                       .x_label = "features changed, at most",
                       .y_label = "share of prompts that answer as with the true counterfactual",
                       .series = curves.series,
                       .series_count = curves.count,
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

static void write_sage_figures(const SageResult *r, Arena *arena) {
    const char *directory = r->options->out;
    for (size_t a = 0; a < r->task->n_attributes; a++) {
        const char *name = r->task->attributes[a].name;
        write_text(path_join(arena, directory, figure_name(arena, "heat", name, a)),
                   heat_figure(r, a, arena));
        write_text(path_join(arena, directory, figure_name(arena, "control", name, a)),
                   control_figure(r, a, arena));
    }
    write_text(path_join(arena, directory, "sufficiency.svg"), method_figure(r, false, arena));
    write_text(path_join(arena, directory, "necessity.svg"), method_figure(r, true, arena));
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
static Piece folder_file(const Folder *f, const char *name) {
    FileMap map;
    Error unread;
    ATTEMPT(&unread, map = file_map(f->arena, path_join(f->arena, f->path, name)));
    if (unread.status != STATUS_OK || !utf8_valid((const char *)map.data, map.size)) {
        return (Piece){"", 0};
    }
    return (Piece){(const char *)map.data, map.size};
}

static const Json *folder_json(const Folder *f, const char *name) {
    const Json *volatile json = NULL;
    Error unread;
    ATTEMPT(&unread, json = json_read_file(f->arena, path_join(f->arena, f->path, name)));
    return json_is(json, JSON_OBJECT) ? json : NULL;
}

/* The list of a value's children; nothing of what is missing. */
static const Json *first(const Json *value) {
    return value == NULL ? NULL : value->child;
}

static const char *text_of(const Json *value) {
    return json_is(value, JSON_STRING) ? value->text : "";
}

/* Only what refsae drew. */
static void show_figure(const Folder *f, const char *name, const char *caption) {
    Piece svg = folder_file(f, name);
    size_t end = find(svg, "</svg>");
    if (find(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rf\"") == 0 &&
        end < svg.length) {
        page_figure(f->page, caption, arena_copy(f->arena, svg.data, end + strlen("</svg>")));
    }
}

/* Numbers keep a column's points in line; a control is its score (magnitude). */
static void show_cell(Page *page, const Json *value) {
    char text[TEXT_NUMBER_SIZE];
    const Json *score = json_get(value, "score");
    double number = json_double(value), size = fabs(number);
    if (json_is(value, JSON_STRING) || value == NULL) {
        page_cell(page, false, value == NULL ? "" : value->text);
        return;
    }
    text_number(text, number, 4);
    if (score != NULL) {
        snprintf(text, sizeof text, "%.2f (%.2f)", json_double(score),
                 json_double(json_get(value, "magnitude")));
    } else if (size >= 1e-4 && size < 1e3 && floor(size) != size) {
        snprintf(text, sizeof text, "%s%#.4g", number < 0 ? "−" : "", size);
    }
    page_cell(page, true, text);
}

typedef struct Line { /* of a table */
    const char *label;
    const Json *values; /* an object; members that are objects have a column for each of theirs */
} Line;

typedef struct Columns {
    const char *outer[64], *name[64]; /* outer "": a member of the line itself */
    const char *titles[64];
    bool number[64];
    size_t count;
} Columns;

/* Adds what can be a cell, unless it is there. */
static void column_add(Columns *c, const char *outer, const Json *value, Arena *arena) {
    size_t i = 0;
    while (i < c->count &&
           (strcmp(c->name[i], value->key) != 0 || strcmp(c->outer[i], outer) != 0)) {
        i++;
    }
    bool cell = !json_is(value, JSON_OBJECT) || json_get(value, "score") != NULL;
    if (cell && i == c->count && i < sizeof c->name / sizeof *c->name) {
        c->outer[i] = outer;
        c->name[i] = value->key;
        c->titles[i] = arena_format(arena, "%s%s%s", outer, *outer == '\0' ? "" : " ", value->key);
        c->number[i] = !json_is(value, JSON_STRING);
        c->count++;
    }
}

/* All members of all lines are columns, in the order in which they come. No lines: no table. */
static void show_table(const Folder *f, const char *caption, const char *label, const Line *lines,
                       size_t count) {
    Columns columns = {.count = 0};
    for (size_t i = 0; i < count; i++) {
        for (const Json *v = lines[i].values->child; v != NULL; v = v->next) {
            bool inner = json_is(v, JSON_OBJECT) && json_get(v, "score") == NULL;
            column_add(&columns, "", v, f->arena);
            for (const Json *w = v->child; inner && w != NULL; w = w->next) {
                column_add(&columns, v->key, w, f->arena);
            }
        }
    }
    if (count > 0) {
        page_table(f->page, caption, label, columns.titles, columns.number, columns.count);
    }
    for (size_t i = 0; i < count; i++) {
        if (label != NULL) {
            page_cell(f->page, false, lines[i].label);
        }
        for (size_t c = 0; c < columns.count; c++) {
            const Json *line = lines[i].values;
            const Json *holder =
                *columns.outer[c] == '\0' ? line : json_get(line, columns.outer[c]);
            show_cell(f->page, json_get(holder, columns.name[c]));
        }
    }
}

typedef struct Lines {
    Line *list;
    size_t count, capacity;
} Lines;

static void lines_add(const Folder *f, Lines *lines, const char *label, const Json *values) {
    if (json_is(values, JSON_OBJECT)) {
        lines->list =
            arena_grow(f->arena, lines->list, &lines->capacity, lines->count + 1, sizeof(Line));
        lines->list[lines->count++] = (Line){label, values};
    }
}

static void lines_add_all(const Folder *f, Lines *lines, const char *label, const Json *list) {
    for (const Json *v = first(list); v != NULL; v = v->next) {
        lines_add(f, lines, label, v);
    }
}

/* ---- the page: training, questions, the layer analysis ---- */

/* train.csv: steps, first and last loss. */
static void show_training(const Folder *f) {
    Piece rest = folder_file(f, "train.csv");
    size_t column = csv_column(cut_line(&rest), "loss"), steps = 0;
    double first = 0, last = 0;
    while (column != SIZE_MAX && rest.length > 0) {
        if (csv_number(cut_line(&rest), column, &last)) {
            first = steps++ == 0 ? last : first;
        }
    }
    if (steps > 0) {
        page_section(f->page, "Training of the adapter");
        page_value(f->page, "training steps", "%zu", steps);
        page_value(f->page, "loss of the first step (nats)", "%.3f", first);
        page_value(f->page, "loss of the last step (nats)", "%.3f", last);
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
    double layer = json_double(json_get(convergence, "layer"));
    Lines lines = {.count = 0};
    page_section(f->page, "Image tokens through the layers");
    page_value(f->page, "examples", "%.0f", json_double(json_get(result, "examples")));
    page_value(f->page, "layers with an SAE", "%zu", layers == NULL ? 0 : layers->length / GROUPS);
    page_value(f->page, "convergence layer", isnan(layer) ? "none" : "%.0f", layer);
    page_paragraph(
        f->page,
        "Image tokens (vlm_img), the text after them (vlm_imgtext) and a text-only control that "
        "states the answer (llm_text), each read at hook_resid_post through the SAE of the same "
        "layer. The convergence layer is the first from which both the MSE and the sparsity of "
        "image tokens stay within a factor of %.3g of the control's.",
        json_double(json_get(convergence, "factor")));
    show_figure(f, "mse.svg", "Mean squared error of the SAE's reconstruction");
    show_figure(f, "sparsity.svg", "Share of the SAE's features that are active");
    show_figure(f, "match.svg",
                "Share of examples in which one of the three strongest features that are rare "
                "enough has a description that matches the answer");
    lines_add_all(f, &lines, NULL, layers);
    show_table(f,
               "Means over examples. The controls replace the image tokens; loss recovered is of "
               "the first answer's tokens when the SAE's output replaces the group's stream.",
               NULL, lines.list, lines.count);
    if (distance != NULL) {
        page_section(f->page, "Compared with the published curves");
        page_paragraph(f->page, "Mean over layers of |log10(ours / published)|, for the match rate "
                                "of |ours − published|:");
        for (const Json *v = first(distance); v != NULL; v = v->next) {
            page_fact(f->page, v->key, "%.3f", json_double(v));
        }
    }
    for (const Json *v = first(left_out); v != NULL; v = v->next) {
        page_fact(f->page, "left out", "%s", text_of(v));
    }
}

/* ---- the page: SAGE ---- */

/* The methods of each attribute, and the parts of their features by F1. */
static void show_tests(const Folder *f, const Json *tests) {
    Lines lines = {.count = 0};
    for (const Json *a = first(tests); a != NULL; a = a->next) {
        for (const Json *m = a->child; m != NULL; m = m->next) {
            lines_add(f, &lines, arena_format(f->arena, "%s, %s", a->key, m->key), m);
            for (const Json *t = first(json_get(m, "f1")); t != NULL; t = t->next) {
                for (const Json *part = t->child; part != NULL; part = part->next) {
                    lines_add(f, &lines,
                              arena_format(f->arena, "%s, %s, F1 %s %s", a->key, m->key, part->key,
                                           t->key),
                              part);
                }
            }
        }
    }
    show_table(f,
               "All tests together, control with k features as score (magnitude). weighted is the "
               "supervised reference, sae what is judged, random the same SAE with random decoder "
               "directions, none the model without an edit. Closer to 1 is better everywhere. Rows "
               "with an F1 use only the features whose best interpretation reaches it (above), or "
               "only the others.",
               "attribute, method", lines.list, lines.count);
}

static void show_cross_section(const Folder *f, const Json *cross, size_t a) {
    const char *name = cross->key;
    char spearman[TEXT_NUMBER_SIZE];
    const Json *nodes = json_get(cross, "nodes");
    Lines lines = {.count = 0};
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
    lines_add_all(f, &lines, "yes", nodes);
    lines_add_all(f, &lines, "random other", json_get(cross, "others"));
    show_table(f, "Scores, and what patching the node really does to m", "chosen", lines.list,
               lines.count);
}

static void show_fits(const Folder *f, const Json *dictionaries) {
    Lines lines = {.count = 0};
    page_section(f->page, "How well dictionaries rebuild the nodes");
    page_paragraph(
        f->page,
        "r2 on the test prompts: 1 is a perfect rebuild, 0 no better than the mean activation, "
        "below 0 worse. mean, mse and weighted are supervised: they know every attribute's value "
        "and add one vector for each. sae is the projection that the tests use; weights, span and "
        "encoder are the ways to carry a residual-stream SAE to a node. The weight of an attribute "
        "is the share of its mean feature that the weighted dictionary keeps at this node: 0 where "
        "the attribute does not move it.");
    for (const Json *a = first(dictionaries); a != NULL; a = a->next) {
        lines_add_all(f, &lines, a->key, a);
    }
    show_table(f, "Nodes of each cross-section", "cross-section", lines.list, lines.count);
}

static double f1_of(const Line *line) {
    return json_double(json_get(line->values, "f1"));
}

/* The best by F1, equal ones in their order. */
static void show_interpretations(const Folder *f, const Json *interpretations) {
    size_t most = 30;
    Lines lines = {.count = 0};
    lines_add_all(f, &lines, NULL, interpretations);
    most = lines.count < most ? lines.count : most;
    for (size_t i = 0; i < most; i++) {
        size_t best = i;
        for (size_t k = i + 1; k < lines.count; k++) {
            best = f1_of(&lines.list[k]) > f1_of(&lines.list[best]) ? k : best;
        }
        Line line = lines.list[best];
        memmove(lines.list + i + 1, lines.list + i, (best - i) * sizeof line);
        lines.list[i] = line;
    }
    page_section(f->page, "What SAE features stand for");
    page_paragraph(
        f->page,
        "A feature's interpretation is the predicate on attribute values (a value, a value in one "
        "form, or a union of values) that best predicts on which test prompts the feature is "
        "active. F1 is the harmonic mean of how often the predicate holds when the feature is "
        "active and how often the feature is active when the predicate holds; 1: they are the "
        "same.");
    show_table(f,
               arena_format(f->arena, "The best %zu of %zu interpretations; all are in sage.json",
                            most, lines.count),
               NULL, lines.list, most);
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
    for (const Json *v = first(attributes); v != NULL; v = v->next) {
        show_figure(f, figure_name(f->arena, "control", v->key, a++),
                    "Dashed: edits that do not depend on k, and the model without any edit.");
    }
}

static void show_sage(const Folder *f, const Json *result) {
    const Json *baseline = json_get(result, "baseline"), *prompts = json_get(result, "prompts"),
               *crosses = json_get(result, "cross_sections");
    const char *name = text_of(json_get(result, "task")),
               *model = text_of(json_get(result, "model"));
    size_t a = 0;
    page_section(f->page, arena_format(f->arena, "SAGE: %s, %s", name, model));
    page_value(f->page, "answers right", "%.1f %%",
               100 * json_double(json_get(baseline, "accuracy")));
    page_value(f->page, "mean m (nats)", "%.3g", json_double(json_get(baseline, "m_clean")));
    page_value(f->page, "training and test prompts", "%.0f + %.0f",
               json_double(json_get(prompts, "train")), json_double(json_get(prompts, "test")));
    page_paragraph(
        f->page,
        "The task “%s” has attributes that a person can name. SAGE finds where the model carries "
        "each of them, builds the best dictionary that knowledge of the attribute allows, and "
        "holds sparse autoencoders against it. m is log p(right answer) − log p(wrong answer) at "
        "the last token: above 0 the model prefers the right one.",
        name);
    show_tests(f, json_get(result, "tests"));
    for (const Json *cross = first(crosses); cross != NULL; cross = cross->next) {
        show_cross_section(f, cross, a++);
    }
    show_methods(f, crosses);
    show_fits(f, json_get(result, "dictionaries"));
    show_interpretations(f, json_get(result, "interpretations"));
}

/* ---- the page: how results came about ---- */

/* What stands between made_begin and made_end is copied into later pages. */
static void made_begin(Page *page) {
    page_section(page, "How this was made");
    page_raw(page, MADE, strlen(MADE));
}

static void made_end(Page *page) {
    page_raw(page, MADE_END, strlen(MADE_END));
}

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* From the folder's own page. If that is the one that will be replaced, the marks stay, so that
 * the next page finds them. */
static void show_made(const Folder *f, const char *out) {
    Piece made = between(folder_file(f, "report.html"), MADE, MADE_END);
    bool own = same_file(path_join(f->arena, f->path, "report.html"), out);
    if (made.length > 0) {
        page_section(f->page, "How this was made");
        page_raw(f->page, MADE, own ? strlen(MADE) : 0);
        page_raw(f->page, made.data, made.length);
        page_raw(f->page, MADE_END, own ? strlen(MADE_END) : 0);
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

void report_analyze(const AnalyzeResult *result) {
    Arena *arena = arena_new();
    const AnalyzeOptions *o = result->options;
    Comparison comparison = {.count = 0};
    int layer = convergence_layer(result, true, true);
    Page page;
    if (o->compare != NULL) {
        comparison = comparison_read(result, arena);
    }
    write_analysis(result, &comparison, arena);
    page_open(&page, path_join(arena, o->out, "report.html"), "refsae analyze");
    show_folder(&(Folder){&page, o->out, arena});
    made_begin(&page);
    page_fact(&page, "command", "%s", result->console->command);
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
    made_end(&page);
    page_commit(&page);
    for (size_t k = 0; k < comparison.count; k++) {
        console_line(result->console, "distance to the published %s: %.3f",
                     comparison.curves[k].name, comparison.curves[k].distance);
    }
    console_line(result->console, "%zu examples, %zu left out; convergence layer %s",
                 result->examples, result->n_failures,
                 layer < 0 ? "none" : arena_format(arena, "%d", layer));
    arena_free(arena);
}

void report_sage(const SageResult *result) {
    Arena *arena = arena_new();
    const SageOptions *o = result->options;
    const SageTask *task = result->task;
    Page page;
    path_make_directory(o->out);
    write_sage_files(result, arena);
    write_sage_figures(result, arena);
    page_open(&page, path_join(arena, o->out, "report.html"), "refsae sage");
    show_folder(&(Folder){&page, o->out, arena});
    made_begin(&page);
    page_fact(&page, "command", "%s", result->console->command);
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
    made_end(&page);
    page_commit(&page);
    for (size_t a = 0; a < task->n_attributes; a++) {
        const SageTests *t = result->cross[a].tests;
        console_line(
            result->console,
            "%s: sufficiency weighted %.3f, sae %.3f, random %.3f; necessity %.3f, %.3f, %.3f",
            task->attributes[a].name, t[SAGE_WEIGHTED].sufficiency, t[SAGE_SAE].sufficiency,
            t[SAGE_RANDOM].sufficiency, t[SAGE_WEIGHTED].necessity, t[SAGE_SAE].necessity,
            t[SAGE_RANDOM].necessity);
    }
    arena_free(arena);
}

void report_train(const char *directory, const double *loss, size_t steps) {
    Arena *arena = arena_new();
    double *x = arena_alloc(arena, steps, sizeof *x);
    for (size_t i = 0; i < steps; i++) {
        x[i] = (double)(i + 1);
    }
    Series series = {.name = "loss", .x = x, .y = loss, .count = steps};
    LineChart chart = {.title = "Adapter training",
                       .x_label = "step",
                       .y_label = "cross-entropy of the answers (nats)",
                       .series = &series,
                       .series_count = 1};
    write_text(path_join(arena, directory, "loss.svg"), svg_lines(arena, &chart));
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
    page_open(&page, out, title != NULL ? title : "refsae");
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

/* analyze_report.c: the layer analysis as files: layers.csv, layers.json, three figures and the
 * report. */
#include "elementary.h"
#include "analyze.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum Metric {
    METRIC_MSE,
    METRIC_SPARSITY,
    METRIC_MATCH,
    METRICS
} Metric;

static const char *const metric_names[METRICS] = {"mse", "sparsity", "match"};

/* A column of --compare by layer of the result; NaN where the table has none. */
typedef struct Published {
    double *values[METRICS][GROUPS]; /* NULL: no such column */
    double distance[METRICS][GROUPS];
    bool any;
} Published;

static double mean_of(double sum, size_t n) {
    return n > 0 ? sum / (double)n : NAN;
}

static double metric(const LayerResult *layer, Metric which, Group group, Variant variant) {
    const Sums *sums = &layer->sums[variant][group];
    switch (which) {
    case METRIC_MSE:
        return mean_of(sums->mse, sums->n);
    case METRIC_SPARSITY:
        return mean_of(sums->sparsity, sums->n);
    default:
        return variant == VARIANT_CLEAN
                   ? mean_of((double)layer->matched[group], layer->judged[group])
                   : NAN;
    }
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

/* ---- tables ---- */

static void csv_statistics(Csv *csv, const Sums *s) {
    csv_double(csv, mean_of(s->fvu, s->n_fvu));
    csv_double(csv, mean_of(s->cosine, s->n));
    csv_double(csv, mean_of(s->norm, s->n));
}

static void write_csv(const AnalyzeResult *result, const char *path) {
    OutFile *out = out_open(path);
    Csv csv = csv_start(
        out->stream,
        "layer,group,mse,sparsity,l0,fvu,cosine,norm,loss_recovered_zero,loss_recovered_mean,match,"
        "permuted_mse,permuted_sparsity,permuted_fvu,permuted_cosine,permuted_norm,"
        "gaussian_mse,gaussian_sparsity,gaussian_fvu,gaussian_cosine,gaussian_norm");
    for (size_t i = 0; i < result->n_layers; i++) {
        const LayerResult *layer = &result->layers[i];
        for (Group g = 0; g < GROUPS; g++) {
            const Sums *s = &layer->sums[VARIANT_CLEAN][g];
            csv_int(&csv, layer->layer);
            csv_text(&csv, group_names[g]);
            csv_double(&csv, metric(layer, METRIC_MSE, g, VARIANT_CLEAN));
            csv_double(&csv, metric(layer, METRIC_SPARSITY, g, VARIANT_CLEAN));
            csv_double(&csv, mean_of(s->l0, s->n));
            csv_statistics(&csv, s);
            csv_double(&csv, loss_recovered(&layer->loss[g], true));
            csv_double(&csv, loss_recovered(&layer->loss[g], false));
            csv_double(&csv, metric(layer, METRIC_MATCH, g, VARIANT_CLEAN));
            for (Variant v = VARIANT_PERMUTED; v < VARIANTS; v++) {
                csv_double(&csv, metric(layer, METRIC_MSE, g, v));
                csv_double(&csv, metric(layer, METRIC_SPARSITY, g, v));
                csv_statistics(&csv, &layer->sums[v][g]);
            }
            csv_end(&csv);
        }
    }
    out_commit(out);
}

static void json_statistics(JsonOut *json, const LayerResult *layer, Group g, Variant v) {
    const Sums *s = &layer->sums[v][g];
    json_out_double(json, "mse", metric(layer, METRIC_MSE, g, v));
    json_out_double(json, "sparsity", metric(layer, METRIC_SPARSITY, g, v));
    json_out_double(json, "l0", mean_of(s->l0, s->n));
    json_out_double(json, "fvu", mean_of(s->fvu, s->n_fvu));
    json_out_double(json, "cosine", mean_of(s->cosine, s->n));
    json_out_double(json, "norm", mean_of(s->norm, s->n));
}

static void json_layer(JsonOut *json, const LayerResult *layer, Group g) {
    json_out_object(json, NULL);
    json_out_int(json, "layer", layer->layer);
    json_out_text(json, "group", group_names[g]);
    json_statistics(json, layer, g, VARIANT_CLEAN);
    if (layer->loss[g].n > 0) {
        const LossSums *loss = &layer->loss[g];
        json_out_object(json, "loss");
        json_out_double(json, "clean", mean_of(loss->clean, loss->n));
        json_out_double(json, "sae", mean_of(loss->sae, loss->n));
        json_out_double(json, "zero_ablation", mean_of(loss->zero, loss->n));
        json_out_double(json, "mean_ablation", mean_of(loss->mean, loss->n));
        json_out_double(json, "recovered_zero", loss_recovered(loss, true));
        json_out_double(json, "recovered_mean", loss_recovered(loss, false));
        json_out_end(json);
    }
    json_out_double(json, "match", metric(layer, METRIC_MATCH, g, VARIANT_CLEAN));
    for (Variant v = VARIANT_PERMUTED; v < VARIANTS; v++) {
        if (layer->sums[v][g].n > 0) {
            json_out_object(json, variant_names[v]);
            json_statistics(json, layer, g, v);
            json_out_end(json);
        }
    }
    json_out_end(json);
}

static void json_layer_or_null(JsonOut *json, const char *key, int layer) {
    if (layer >= 0) {
        json_out_int(json, key, layer);
    } else {
        json_out_null(json, key);
    }
}

static void write_json(const AnalyzeResult *result, const Published *published, const char *path) {
    OutFile *out = out_open(path);
    JsonOut json = json_out_start(out->stream, 2);
    json_out_object(&json, NULL);
    json_out_int(&json, "examples", (int64_t)result->examples);
    json_out_array(&json, "left_out");
    for (size_t i = 0; i < result->n_failures; i++) {
        json_out_text(&json, NULL, result->failures[i]);
    }
    json_out_end(&json);
    json_out_object(&json, "convergence");
    json_out_double(&json, "factor", result->options->converge);
    json_layer_or_null(&json, "layer", convergence_layer(result, true, true));
    json_layer_or_null(&json, "mse_layer", convergence_layer(result, true, false));
    json_layer_or_null(&json, "sparsity_layer", convergence_layer(result, false, true));
    json_out_end(&json);
    if (published->any) {
        json_out_object(&json, "distance");
        for (Metric m = 0; m < METRICS; m++) {
            for (Group g = 0; g < GROUPS; g++) {
                char key[64];
                snprintf(key, sizeof key, "%s_%s", metric_names[m], group_names[g]);
                if (published->values[m][g] != NULL) {
                    json_out_double(&json, key, published->distance[m][g]);
                }
            }
        }
        json_out_end(&json);
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

/* ---- the published table ---- */

/* The next cell of a CSV line without quotes; false at the end of the line. */
static bool next_cell(const char **at, const char *end, const char **cell, size_t *length) {
    if (*at > end) {
        return false;
    }
    const char *comma = memchr(*at, ',', (size_t)(end - *at));
    *cell = *at;
    *length = (size_t)((comma != NULL ? comma : end) - *at);
    *at += *length + 1;
    return true;
}

static bool cell_number(const char *cell, size_t length, double *value) {
    char text[64], *rest;
    if (length == 0 || length >= sizeof text) {
        return false;
    }
    memcpy(text, cell, length);
    text[length] = '\0';
    *value = strtod(text, &rest);
    return *rest == '\0' || *rest == '\r';
}

static void published_row(Published *p, const AnalyzeResult *result, const int *column_of,
                          size_t columns, const char *line, const char *end, size_t number) {
    const char *cell;
    size_t length, slot = result->n_layers;
    double value;
    for (size_t c = 0; next_cell(&line, end, &cell, &length); c++) {
        if (c == 0) {
            if (!cell_number(cell, length, &value)) {
                fail(STATUS_INPUT, "%s:%zu: the first column is no layer number",
                     result->options->compare, number);
            }
            for (slot = 0; slot < result->n_layers && (double)result->layers[slot].layer != value;
                 slot++) {
            }
        } else if (c < columns && column_of[c] >= 0 && slot < result->n_layers &&
                   cell_number(cell, length, &value)) {
            p->values[column_of[c] / GROUPS][column_of[c] % GROUPS][slot] = value;
        }
    }
}

/* Distance: mean over layers of |log10(ours / published)|; for the match rate of |ours -
 * published|. */
static void published_distance(Published *p, const AnalyzeResult *result) {
    for (Metric m = 0; m < METRICS; m++) {
        for (Group g = 0; g < GROUPS; g++) {
            double sum = 0.0;
            size_t n = 0;
            for (size_t i = 0; p->values[m][g] != NULL && i < result->n_layers; i++) {
                double ours = metric(&result->layers[i], m, g, VARIANT_CLEAN),
                       theirs = p->values[m][g][i];
                bool ratio = m != METRIC_MATCH;
                if (isfinite(ours) && isfinite(theirs) &&
                    (!ratio || (ours > 0.0 && theirs > 0.0))) {
                    sum += ratio ? fabs((double)log_f32((float)(ours / theirs))) / 2.302585092994046
                                 : fabs(ours - theirs);
                    n++;
                }
            }
            p->distance[m][g] = mean_of(sum, n);
        }
    }
}

static void published_read(Published *p, const AnalyzeResult *result, Arena *arena) {
    enum {
        COLUMNS = 64
    };
    int column_of[COLUMNS];
    FileMap file = file_map(arena, result->options->compare);
    const char *at = (const char *)file.data, *stop = at + file.size, *cell;
    for (size_t number = 1; at < stop; number++) {
        const char *newline = memchr(at, '\n', (size_t)(stop - at)),
                   *end = newline != NULL ? newline : stop, *line = at;
        size_t length;
        at = end + 1;
        if (number > 1) {
            if (end > line) {
                published_row(p, result, column_of, COLUMNS, line, end, number);
            }
            continue;
        }
        for (size_t c = 0; c < COLUMNS; c++) {
            column_of[c] = -1;
        }
        for (size_t c = 0; c < COLUMNS && next_cell(&line, end, &cell, &length); c++) {
            while (length > 0 && cell[length - 1] == '\r') {
                length--;
            }
            for (int k = 0; k < METRICS * GROUPS; k++) {
                char name[64];
                int n = snprintf(name, sizeof name, "%s_%s", metric_names[k / GROUPS],
                                 group_names[k % GROUPS]);
                if ((size_t)n == length && memcmp(name, cell, length) == 0) {
                    double *values = arena_alloc(arena, result->n_layers, sizeof(double));
                    for (size_t i = 0; i < result->n_layers; i++) {
                        values[i] = NAN;
                    }
                    column_of[c] = k;
                    p->values[k / GROUPS][k % GROUPS] = values;
                    p->any = true;
                }
            }
        }
        if (!p->any) {
            fail(STATUS_INPUT,
                 "%s: no column named as mse_vlm_img, sparsity_llm_text or match_vlm_img",
                 result->options->compare);
        }
    }
    published_distance(p, result);
}

/* ---- figures ---- */

typedef struct Figure {
    Series series[GROUPS * 3];
    double *values; /* [GROUPS * 3, n_layers] */
    double *x;
    LineChart chart;
    char marker[64];
} Figure;

static void figure_add(Figure *f, const AnalyzeResult *result, const char *name, int colour,
                       bool dashed) {
    size_t at = f->chart.series_count++;
    f->series[at] =
        (Series){name, f->x, f->values + at * result->n_layers, result->n_layers, dashed, colour};
}

static void figure_make(Figure *f, const AnalyzeResult *result, const Published *published,
                        Metric m, Arena *arena) {
    static const char *const names[GROUPS] = {"image tokens", "text after the image",
                                              "text-only control"};
    static const char *const theirs[GROUPS] = {"image tokens, published",
                                               "text after the image, published",
                                               "text-only control, published"};
    static const char *const controls[VARIANTS] = {"", "permuted image tokens",
                                                   "Gaussian image tokens"};
    static const char *const titles[METRICS] = {"Reconstruction error by layer",
                                                "SAE sparsity by layer",
                                                "Features that match the answer, by layer"};
    static const char *const labels[METRICS] = {"MSE (log)", "share of features active (log)",
                                                "match rate"};
    memset(f, 0, sizeof *f);
    f->values = arena_alloc(arena, (GROUPS * 3) * result->n_layers, sizeof(double));
    f->x = arena_alloc(arena, result->n_layers, sizeof(double));
    f->chart = (LineChart){.title = titles[m],
                           .x_label = "layer",
                           .y_label = labels[m],
                           .series = f->series,
                           .log_y = m != METRIC_MATCH,
                           .y_from_zero = m == METRIC_MATCH};
    for (Group g = 0; g < GROUPS; g++) {
        bool any = false;
        for (size_t i = 0; i < result->n_layers; i++) {
            f->x[i] = (double)result->layers[i].layer;
            f->values[f->chart.series_count * result->n_layers + i] =
                metric(&result->layers[i], m, g, VARIANT_CLEAN);
            any |= !isnan(f->values[f->chart.series_count * result->n_layers + i]);
        }
        if (any) {
            figure_add(f, result, names[g], (int)g + 1, false);
        }
        if (published->values[m][g] != NULL) {
            memcpy(f->values + f->chart.series_count * result->n_layers, published->values[m][g],
                   result->n_layers * sizeof(double));
            figure_add(f, result, theirs[g], (int)g + 1, true);
        }
    }
    for (Variant v = VARIANT_PERMUTED; v < VARIANTS && m != METRIC_MATCH; v++) {
        for (size_t i = 0; i < result->n_layers; i++) {
            f->values[f->chart.series_count * result->n_layers + i] =
                metric(&result->layers[i], m, GROUP_IMG, v);
        }
        if (result->layers[0].sums[v][GROUP_IMG].n > 0) {
            figure_add(f, result, controls[v], (int)v + GROUPS, false);
        }
    }
    int layer =
        m == METRIC_MATCH ? -1 : convergence_layer(result, m == METRIC_MSE, m == METRIC_SPARSITY);
    if (layer >= 0) {
        snprintf(f->marker, sizeof f->marker, "within %.3gx from layer %d",
                 result->options->converge, layer);
        f->chart.marker_label = f->marker;
        f->chart.marker_x = (double)layer;
    }
}

static void write_figure(const Figure *figure, const char *path) {
    OutFile *out = out_open(path);
    svg_lines(out->stream, &figure->chart);
    out_commit(out);
}

/* ---- the report ---- */

static void report_layers(Report *report, const AnalyzeResult *result) {
    report_table(report,
                 "Means over examples. The controls replace the image tokens; loss recovered is of "
                 "the first "
                 "answer's tokens when the SAE's output replaces the group's stream.",
                 "#layer|group|#MSE|#sparsity|#L0|#FVU|#cosine|#norm|#loss rec. (zero)|#loss rec. "
                 "(mean)|#match|"
                 "#MSE permuted|#MSE Gaussian|#FVU permuted|#FVU Gaussian");
    for (size_t i = 0; i < result->n_layers; i++) {
        const LayerResult *layer = &result->layers[i];
        for (Group g = 0; g < GROUPS; g++) {
            const Sums *s = &layer->sums[VARIANT_CLEAN][g];
            report_cell(report, "%d", layer->layer);
            report_cell(report, "%s", group_names[g]);
            report_cell_number(report, metric(layer, METRIC_MSE, g, VARIANT_CLEAN));
            report_cell_number(report, metric(layer, METRIC_SPARSITY, g, VARIANT_CLEAN));
            report_cell_number(report, mean_of(s->l0, s->n));
            report_cell_number(report, mean_of(s->fvu, s->n_fvu));
            report_cell_number(report, mean_of(s->cosine, s->n));
            report_cell_number(report, mean_of(s->norm, s->n));
            report_cell_number(report, loss_recovered(&layer->loss[g], true));
            report_cell_number(report, loss_recovered(&layer->loss[g], false));
            report_cell_number(report, metric(layer, METRIC_MATCH, g, VARIANT_CLEAN));
            report_cell_number(report, metric(layer, METRIC_MSE, g, VARIANT_PERMUTED));
            report_cell_number(report, metric(layer, METRIC_MSE, g, VARIANT_GAUSSIAN));
            const Sums *permuted = &layer->sums[VARIANT_PERMUTED][g],
                       *gaussian = &layer->sums[VARIANT_GAUSSIAN][g];
            report_cell_number(report, mean_of(permuted->fvu, permuted->n_fvu));
            report_cell_number(report, mean_of(gaussian->fvu, gaussian->n_fvu));
        }
    }
}

static void report_body(Report *report, const AnalyzeResult *result, const Published *published,
                        const Figure figures[METRICS]) {
    const AnalyzeOptions *o = result->options;
    int layer = convergence_layer(result, true, true);
    report_section(report, "Result");
    report_value(report, "examples", "%zu", result->examples);
    report_value(report, "layers with an SAE", "%zu", result->n_layers);
    if (layer >= 0) {
        report_value(report, "convergence layer", "%d", layer);
    } else {
        report_value(report, "convergence layer", "none");
    }
    report_paragraph(
        report,
        "Image tokens (vlm_img), the text after them (vlm_imgtext) and a text-only control that "
        "states the "
        "answer (llm_text), each read at hook_resid_post through the SAE of the same layer. The "
        "convergence layer is the first from which both the MSE and the sparsity of image tokens "
        "stay "
        "within a factor of %.3g of the control's.",
        o->converge);
    svg_lines(report_figure(report, "Mean squared error of the SAE's reconstruction"),
              &figures[METRIC_MSE].chart);
    svg_lines(report_figure(report, "Share of the SAE's features that are active"),
              &figures[METRIC_SPARSITY].chart);
    if (figures[METRIC_MATCH].chart.series_count > 0) {
        svg_lines(
            report_figure(
                report,
                "Share of examples in which one of the three strongest features that are rare "
                "enough has a description that matches the answer"),
            &figures[METRIC_MATCH].chart);
    }
    report_section(report, "Layers");
    report_layers(report, result);
    if (published->any) {
        report_section(report, "Compared with the published curves");
        report_table(report,
                     "Mean over layers of |log10(ours / published)|, for the match rate of |ours - "
                     "published|",
                     "curve|#distance");
        for (int k = 0; k < METRICS * GROUPS; k++) {
            if (published->values[k / GROUPS][k % GROUPS] != NULL) {
                report_cell(report, "%s_%s", metric_names[k / GROUPS], group_names[k % GROUPS]);
                report_cell_number(report, published->distance[k / GROUPS][k % GROUPS]);
            }
        }
    }
    report_section(report, "How this was made");
    report_fact(report, "command", "%s", result->console->command);
    report_fact(report, "seed", "%llu", (unsigned long long)o->seed);
    report_digest(report, "language model", o->llm);
    report_digest(report, "vision tower", o->vision);
    report_digest(report, "adapter", o->adapter);
    report_digest(report, "data", o->data);
    for (size_t i = 0; i < result->n_layers; i++) {
        const Sae *sae = result->layers[i].sae;
        char name[64];
        snprintf(name, sizeof name, "SAE of layer %d", result->layers[i].layer);
        report_fact(report, name, "%s, %zu features", sae_source_name(sae->source), sae->d_sae);
        report_digest(report, "", sae->store.count > 0 ? sae->store.tensors[0].file : sae->path);
    }
    for (size_t i = 0; i < result->n_failures; i++) {
        report_fact(report, "left out", "%s", result->failures[i]);
    }
}

void analyze_write(const AnalyzeResult *result) {
    Arena *arena = arena_new();
    static const char *const svg_names[METRICS] = {"mse.svg", "sparsity.svg", "match.svg"};
    const char *out = result->options->out;
    Published published = {0};
    Figure figures[METRICS];
    Report report;
    if (result->options->compare != NULL) {
        published_read(&published, result, arena);
    }
    write_csv(result, path_join(arena, out, "layers.csv"));
    write_json(result, &published, path_join(arena, out, "layers.json"));
    for (Metric m = 0; m < METRICS; m++) {
        figure_make(&figures[m], result, &published, m, arena);
        write_figure(&figures[m], path_join(arena, out, svg_names[m]));
    }
    report_open(&report, path_join(arena, out, "report.html"), "Image tokens through the layers",
                result->options->llm);
    report_body(&report, result, &published, figures);
    report_commit(&report);
    for (int k = 0; k < METRICS * GROUPS && published.any; k++) {
        if (published.values[k / GROUPS][k % GROUPS] != NULL) {
            console_line(result->console, "distance to the published %s_%s: %.3f",
                         metric_names[k / GROUPS], group_names[k % GROUPS],
                         published.distance[k / GROUPS][k % GROUPS]);
        }
    }
    int layer = convergence_layer(result, true, true);
    console_line(result->console, "%zu examples, %zu left out; convergence layer %s%.0d",
                 result->examples, result->n_failures,
                 layer < 0    ? "none"
                 : layer == 0 ? "0"
                              : "",
                 layer > 0 ? layer : 0);
    arena_free(arena);
}

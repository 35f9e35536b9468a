/* report.h: how results become files a person reads: SVG figures and the one-file HTML report.
 * Floor 13.
 *
 * Everything is written to a FILE, which is an OutFile's stream (the file appears
 * whole), a Report's body or a memory stream; write errors show in out_commit. The same values give
 * the same bytes: numbers are the shortest decimals that read back, nothing depends on locale, time
 * or machine. */
#ifndef REFSAE_REPORT_H
#define REFSAE_REPORT_H

#include "json.h"

/* ---- text for XML and HTML ---- */
/* Escaped; what XML cannot hold becomes U+FFFD; of more than `most` characters the rest an
 * ellipsis. */
void text_put(FILE *stream, const char *text, size_t most);
/* At most `digits` significant digits, powers of ten as books print them: 1.5x10^6. NaN: a dash. */
enum {
    TEXT_NUMBER_SIZE = 48
};
void text_number(char text[TEXT_NUMBER_SIZE], double value, int digits);
#define REPORT_FONT "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"

/* ---- figures: SVG that stands alone and can be set into HTML, light and dark ---- */
typedef struct Series {
    const char *name;
    const double *x; /* NULL: 0, 1, 2 ... */
    const double *y; /* NaN: a gap */
    size_t count;
    bool dashed; /* for curves that are compared with, such as published ones */
    int colour;  /* 1 to 8; a dashed curve takes that of its solid partner; 0: by place */
} Series;

typedef struct LineChart {
    const char *title, *subtitle;  /* subtitle, labels, marker_label may be NULL */
    const char *x_label, *y_label; /* with units: "layer", "MSE (log)" */
    const Series *series;
    size_t series_count;
    bool log_y;               /* values that are not positive become gaps */
    bool y_from_zero;         /* the axis includes 0 */
    const char *marker_label; /* a vertical line at marker_x, "convergence: layer 17" */
    double marker_x;
    bool log_x; /* ticks stand at the first series' points: 1, 2, 4, 8 */
} LineChart;

void svg_lines(FILE *stream, const LineChart *chart);

/* Groups of bars: values[group * series_count + series], NaN: no bar. The axis includes 0. */
typedef struct BarChart {
    const char *title, *subtitle, *y_label;
    const char *const *groups;
    size_t group_count;
    const char *const *series;
    size_t series_count;
    const double *values;
    const double *reference; /* NULL, or a dashed line at *reference with this label */
    const char *reference_label;
} BarChart;

void svg_bars(FILE *stream, const BarChart *chart);

/* values[row * column_count + column], NaN: an empty cell. Colours diverge around 0; if no value is
 * negative they run from 0 to the largest. */
typedef struct HeatMap {
    const char *title, *subtitle;
    const char *x_label, *y_label, *value_label;
    const char *const *rows; /* "L5.H1" */
    size_t row_count;
    const char *const *columns; /* "END" */
    size_t column_count;
    const double *values;
    const bool *marked; /* NULL, or the cells that get an outline */
} HeatMap;

void svg_heat(FILE *stream, const HeatMap *map);

/* ---- the report: one HTML file, no network; all text is escaped ---- */
typedef struct Report {
    OutFile *out;                  /* its arena holds the rest; a failure leaves nothing */
    MemoryStream *body, *contents; /* the contents list before it needs the sections */
    int sections, open;            /* open: what report_* must close first */
    size_t column, columns;
    uint64_t numeric; /* a bit for each column */
} Report;

void report_open(Report *report, const char *path, const char *title, const char *subtitle);
void report_commit(Report *report);

void report_section(Report *report, const char *heading);
void report_paragraph(Report *report, const char *format, ...) REFSAE_PRINTF(2, 3);
/* Figures a reader should see first: report_value(r, "held-out accuracy", "97.5 %"), several in a
 * row. */
void report_value(Report *report, const char *label, const char *format, ...) REFSAE_PRINTF(3, 4);
/* Names and what they are: exact command, seeds, digests. Several in a row make one list. */
void report_fact(Report *report, const char *name, const char *format, ...) REFSAE_PRINTF(3, 4);
/* A fact: the file with its SHA-256, if it can be read; nothing for NULL. Of a model's directory
 * its checkpoint (or the index of its shards). */
void report_digest(Report *report, const char *name, const char *path);
void report_code(Report *report, const char *text);

/* A table: column titles separated by '|', a title that begins with '#' is a column of numbers.
 * Cells follow row by row; the next call that is no cell ends it. */
void report_table(Report *report, const char *caption, const char *columns);
void report_cell(Report *report, const char *format, ...) REFSAE_PRINTF(2, 3);
void report_cell_number(Report *report, double value); /* 4 significant digits; NaN: a dash */

/* svg_lines(report_figure(&report, "caption"), &chart) */
FILE *report_figure(Report *report, const char *caption);
/* HTML that refsae wrote before, as it stands. */
void report_raw(Report *report, const char *html, size_t length);
/* A picture as a data URI; pictures in a row stand side by side. mime: "image/png" ... */
void report_picture(Report *report, const void *data, size_t size, const char *mime,
                    const char *caption);

/* One page from those that lie in `directories`: of each its loss curve (loss.svg, train.csv), its
 * scores.json and the sections of its report.html, whichever are there. `out` may be one of these
 * reports; merging once more gives the same page (report_merge.c). */
void report_merge(const char *out, const char *title, char *const *directories, size_t count);
#define REPORT_BODY "<!--refsae body-->\n" /* around what report_merge takes from a report */
#define REPORT_BODY_END "<!--/refsae body-->\n"

#endif

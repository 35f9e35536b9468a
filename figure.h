/* figure.h: what a person looks at: SVG figures, and the page that holds them with words and
 * tables. Floor 12.
 *
 * The same values give the same bytes: numbers do not depend on locale, time or machine. */
#ifndef REFSAE_FIGURE_H
#define REFSAE_FIGURE_H

#include "base.h"

/* At most `digits` significant digits, powers of ten as in books: 1.5×10⁶. NaN: a dash. */
const char *text_number(Arena *arena, double value, int digits);

/* ---- figures: SVG that stands alone and can be set into HTML, light and dark ----
 * They come back as text, for a file and for a page. NaN, infinities and what is too large for
 * the scales are not drawn. */

typedef struct Point {
    double x, y;      /* a NaN in y breaks the curve; bars stand by group, whatever x is */
    double low, high; /* a whisker, where both are numbers */
} Point;

typedef struct Series {
    const char *name;
    Point *points; /* [count] */
    size_t count;
    bool dashed; /* for curves that are compared with, such as published ones */
    int colour;  /* 1 to 8; a dashed curve takes that of its solid partner; 0: by place */
} Series;

typedef struct Chart {
    const char *title, *subtitle, *x_label, *y_label; /* with units: "layer", "MSE (log)" */
    Series *series; /* x counts something, unless `shares`: whole numbers */
    size_t series_count, capacity;
    bool shares; /* axes include 0 and 1, and what leaves -1 to 2 (x: -10 to 2) stands at the end */
    bool log_y;  /* values that are not positive are gaps; else the axis includes 0 */
    bool log_x;  /* ticks stand at the first series' points: 1, 2, 4, 8 */
    const char *marker_label; /* a vertical line at marker_x; NULL: none */
    double marker_x;
    const char *const *groups; /* of bars, one of each series (`shares`); NULL: lines */
    size_t group_count;
} Chart;

/* Its points, all NaN so far. */
Point *chart_add(Arena *arena, Chart *chart, Series series);
/* Charts in rows of two under one title, each under its own, on the axes, labels and names of
 * series of the first; title NULL: that one alone. */
char *svg_chart(Arena *arena, const char *title, const Chart *charts, size_t count);

typedef struct HeatCell {
    double value; /* NaN: empty */
    bool marked;  /* by an outline */
} HeatCell;

typedef struct HeatRow {
    const char *name; /* "L5.H1" */
    HeatCell *cells;  /* [column_count] */
} HeatRow;

/* Colours diverge around 0; if no value is negative they run from 0 to the largest. */
typedef struct HeatMap {
    const char *title, *subtitle, *x_label, *value_label;
    const char *const *columns; /* "END" */
    size_t column_count;
    HeatRow *rows;
    size_t row_count, capacity;
    double largest; /* the least that the colours reach up to */
    bool numbers;   /* stand in the cells */
} HeatMap;

/* Cells of the row of that name, which is added, empty, if it is not there. */
HeatCell *heat_row(Arena *arena, HeatMap *map, const char *name);
char *svg_heat(Arena *arena, const HeatMap *map);
/* The first place of a figure that none of these has; NULL: there is none. */
const char *svg_strange(const char *svg);

/* ---- the page: one HTML file, no network ---- */

typedef struct Page {
    OutFile *out;                  /* its arena holds the rest; a failure leaves nothing */
    MemoryStream *body, *contents; /* the list of contents stands before the sections */
    int sections, level;
    size_t block, rows; /* what is open, and rows of a table that is */
} Page;

void page_open(Page *page, const char *path, const char *title);
void page_commit(Page *page);
/* All texts are escaped. */
void page_section(Page *page, const char *heading);
/* A section above those that follow it. */
void page_chapter(Page *page, const char *heading);
/* ' ': a paragraph; '*': one with words in bold before it; '=': a figure that a reader should see
 * first, and its name; ':': a fact. Several in a row make one block. */
void page_item(Page *page, char mark, const char *first, const char *second);
void page_figure(Page *page, const char *caption, const char *svg);

/* A table: row by row its cells; titles stand in the first. */
void page_table(Page *page, const char *caption);
void page_row(Page *page);
void page_cell(Page *page, bool number, const char *text);
/* The PNG or JPEG itself, if it can be read and is no larger than a page bears; else its name. */
void page_cell_picture(Page *page, const char *path);

#endif

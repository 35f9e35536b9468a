/* Figures and the page: exact text, escaping, and XML that a strict reader accepts. */
#define _XOPEN_SOURCE 700
#include "figure.h"
#include "scratch.h"
#include "xml.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char hostile[] = "<b>&\"'</svg><script>alert(1)</script>\x01\xFF\xEF\xBF\xBE 名😀";

static Arena *arena; /* of one test */

static void setup(void) {
    arena = arena_new();
}

static void teardown(void) {
    arena_free(arena);
}

TestSuite(report, .init = setup, .fini = teardown);

Test(report, numbers_as_books_print_them) {
    static const struct {
        double value;
        int digits;
        const char *text;
    } cases[] = {{0, 4, "0"},
                 {1, 4, "1"},
                 {-0.25, 4, "−0.25"},
                 {123456, 4, "123456"},
                 {12345.6, 4, "12346"},
                 {1e6, 4, "10⁶"},
                 {1.5e-7, 4, "1.5×10⁻⁷"},
                 {-2e12, 4, "−2×10¹²"},
                 {1234567, 3, "1.23×10⁶"},
                 {0.0001, 4, "0.0001"},
                 {1e-5, 4, "10⁻⁵"},
                 {(double)NAN, 4, "–"},
                 {(double)INFINITY, 4, "∞"},
                 {-(double)INFINITY, 4, "−∞"},
                 {1e300, 6, "10³⁰⁰"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_str_eq(text_number(arena, cases[i].value, cases[i].digits), cases[i].text);
    }
}

/* ---- XML ---- */

typedef enum Kind {
    LINES,
    PANELS,
    BARS,
    HEAT
} Kind;

/* Draws n values, four series or columns of them, under the given name. */
static char *draw(Kind kind, const double *values, size_t n, const char *name, bool log) {
    const char *names[4] = {name, "b", name, "d"}, *rows[200];
    Chart chart = {name,
                   name,
                   name,
                   name,
                   .shares = !log,
                   .log_y = log,
                   .log_x = !log,
                   .marker_label = kind == BARS ? NULL : name,
                   .marker_x = 1e9,
                   .groups = kind == BARS ? rows : NULL,
                   .group_count = kind == BARS ? n / 4 : 0};
    HeatMap heat = {.title = name,
                    .subtitle = name,
                    .x_label = name,
                    .value_label = name,
                    .columns = names,
                    .column_count = 4,
                    .numbers = !log};
    chart.shares = chart.shares || kind == BARS;
    chart.log_x = chart.log_x && kind != BARS;
    chart.log_y = chart.log_y && kind != BARS;
    for (size_t i = 0; i < 200; i++) {
        rows[i] = arena_format(arena, "%s%zu", i % 2 == 0 ? name : "row", i);
    }
    for (size_t i = 0; i < 4; i++) {
        Point *points =
            chart_add(arena, &chart, (Series){names[i], NULL, n / 4, i == 3, i == 3 ? 1 : 0});
        for (size_t k = 0; k < n / 4; k++) {
            points[k].x = (double)k;
            points[k].y = values[i * (n / 4) + k];
            points[k].low = i == 1 ? values[k] : (double)NAN;
            points[k].high = i == 1 ? values[n / 4 + k] : (double)NAN;
        }
    }
    for (size_t i = 0; i < n / 4 * 4; i++) {
        heat_row(arena, &heat, rows[i / 4])[i % 4] = (HeatCell){values[i], i == 0 || i == 2};
    }
    Chart panels[3] = {chart, chart, chart};
    return kind == LINES    ? svg_chart(arena, NULL, &chart, 1)
           : kind == PANELS ? svg_chart(arena, name, panels, 3)
           : kind == BARS   ? svg_chart(arena, NULL, &chart, 1)
                            : svg_heat(arena, &heat);
}

Test(report, figures_of_any_values_are_xml) {
    static const double scales[] = {1, 1e-300, 1e300, 1e-9, 1e99, 5e-324, 0};
    Random random = random_start(7, RANDOM_TEST);
    double values[800];
    for (int i = 0; i < 400; i++) {
        size_t n = (size_t)random_below(&random, i % 10 == 0 ? 800 : 40);
        double scale = scales[i % 7], offset = i % 3 == 0 ? 0 : i % 3 == 1 ? scale : 1e6;
        for (size_t k = 0; k < n; k++) {
            values[k] = offset + scale * ((double)random_uniform(&random) - 0.5);
            switch (random_below(&random, 12)) {
            case 0:
                values[k] = (double)NAN;
                break;
            case 1:
                values[k] = i % 2 ? (double)INFINITY : -(double)INFINITY;
                break;
            case 2:
                values[k] = i % 5 == 0 ? -1.7976931348623157e308 : values[k];
                break;
            default:
                break;
            }
        }
        for (Kind kind = LINES; kind <= HEAT; kind++) {
            char *a = draw(kind, values, n, i % 2 ? hostile : "name", i % 4 < 2);
            char *b = draw(kind, values, n, i % 2 ? hostile : "name", i % 4 < 2);
            assert_xml(a, "svg");
            cr_assert_str_eq(a, b);
            cr_assert_null(svg_strange(a));
            cr_assert_null(strstr(a, "<script"));
            arena_reset(arena);
        }
    }
}

Test(report, line_chart_shows_what_it_is_given) {
    double y[4] = {1, 10, (double)NAN, 1000};
    Chart chart = {.title = "T",
                   .x_label = "layer",
                   .y_label = "MSE",
                   .log_y = true,
                   .marker_label = "convergence: layer 2",
                   .marker_x = 2};
    Point *points[2] = {
        chart_add(arena, &chart, (Series){.name = "measured", .count = 4}),
        chart_add(arena, &chart, (Series){"published", NULL, 4, .dashed = true, .colour = 1})};
    for (size_t i = 0; i < 8; i++) {
        points[i / 4][i % 4].x = (double)(i % 4);
        points[i / 4][i % 4].y = y[i % 4];
    }
    char *svg = svg_chart(arena, NULL, &chart, 1);
    assert_xml(svg, "svg");
    static const char *const parts[] = {">T<",
                                        ">layer<",
                                        ">MSE<",
                                        ">measured<",
                                        ">published<",
                                        ">convergence: layer 2<",
                                        "prefers-color-scheme:dark",
                                        "<title>measured · 3: 1000</title>",
                                        ">100<",
                                        "stroke-dasharray"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        cr_assert_not_null(strstr(svg, parts[i]), "%s", parts[i]);
    }
    /* The NaN breaks both curves: two strokes begin in each, legends aside. */
    int begins = 0;
    for (const char *s = svg; (s = strstr(s, "h0")) != NULL; s++) {
        begins++;
    }
    cr_assert_eq(begins, 4);
}

Test(report, bars_and_cells_are_counted) {
    double values[8] = {0.5, -0.25, (double)NAN, 1, 2, 3, (double)INFINITY, 4};
    char *svg = draw(BARS, values, 8, "n", false);
    cr_assert_eq(assert_xml(svg, "rect"), 1 + 4 + 6, "paper, legend, bars");
    svg = draw(HEAT, values, 8, "n", false);
    cr_assert_eq(assert_xml(svg, "rect"), 1 + 21 + 1 + 6 + 2, "paper, scale, frame, cells, marks");
    cr_assert_not_null(strstr(svg, "fill-opacity=\"0.125\"><title>n0 · n: 0.5<"), "0.5 of 4");
}

/* ---- HTML ---- */

static char *read_file(const char *path) {
    FileMap map = file_map(arena, path);
    return arena_copy(arena, (const char *)map.data, map.size);
}

static void fill(Page *page) {
    static const char *const titles[] = {"name", hostile, "value", "text"};
    Chart chart = {.title = hostile, .x_label = "x", .y_label = "y"};
    chart_add(arena, &chart, (Series){.name = hostile, .count = 4})->y = 1;
    page_section(page, "First");
    page_item(page, '=', hostile, hostile);
    page_item(page, '=', "5 %", "b");
    page_item(page, '*', hostile, "plain");
    page_table(page, hostile);
    for (int i = 0; i < 16; i++) {
        if (i % 4 == 0) {
            page_row(page);
        }
        page_cell(page, i % 4 == 2, i < 4 ? titles[i] : i % 4 == 2 ? "−1.000" : hostile);
    }
    page_figure(page, hostile, svg_chart(arena, NULL, &chart, 1));
    page_section(page, hostile);
    page_item(page, ':', hostile, hostile);
    page_item(page, ':', "seed", "475");
}

Test(report, html_is_whole_and_escaped) {
    char path[64];
    Page page;
    snprintf(path, sizeof path, "/tmp/refsae-report-%ld.html", (long)getpid());
    page_open(&page, path, hostile);
    fill(&page);
    page_commit(&page);
    char *html = read_file(path);
    static const char *const once[] = {"<!doctype html>",
                                       "</html>",
                                       "<table>",
                                       "</table>",
                                       "<figure>",
                                       "</figure>",
                                       "<dl>",
                                       "</dl>",
                                       "<nav aria-label=\"Contents\">",
                                       "<main>",
                                       "</main>",
                                       "<desc>",
                                       "class=\"values\">",
                                       "</b> plain</p>",
                                       "<b>5 %</b>",
                                       "<th scope=\"col\" class=\"n\">value</th>",
                                       "<dd>475</dd>"};
    for (size_t i = 0; i < sizeof once / sizeof *once; i++) {
        cr_assert_eq(count_of(html, once[i]), 1, "%s: %d", once[i], count_of(html, once[i]));
    }
    static const char *const paired[] = {"div", "tr", "td", "th", "section", "span", "p", "h2"};
    for (size_t i = 0; i < sizeof paired / sizeof *paired; i++) {
        char open[16], with[16], close_tag[16];
        sprintf(open, "<%s>", paired[i]);
        sprintf(with, "<%s ", paired[i]);
        sprintf(close_tag, "</%s>", paired[i]);
        cr_assert_eq(count_of(html, open) + count_of(html, with), count_of(html, close_tag), "%s",
                     open);
    }
    cr_assert_eq(count_of(html, "<tr>"), 1 + 3);
    cr_assert_eq(count_of(html, "<td>"), 9);
    cr_assert_eq(count_of(html, "<td class=\"n\">−1.000</td>"), 3);
    cr_assert_eq(count_of(html, "<script"), 0);
    cr_assert_eq(count_of(html, "http-equiv=\"Content-Security-Policy\""), 1);
    cr_assert_eq(count_of(html, "src=\"http"), 0, "nothing is loaded");
    cr_assert_eq(count_of(html, "href=\"http"), 0);
    cr_assert(utf8_valid(html, strlen(html)));
    char *svg = strstr(html, "<svg"), *end = strstr(svg, "</svg>") + 6;
    *end = 0;
    assert_xml(svg, "svg");
    unlink(path);
}

Test(report, failure_leaves_nothing) {
    Page page;
    Error error;
    char path[] = "/tmp/refsae-report-failed.html", temporary[64];
    snprintf(temporary, sizeof temporary, "%s.refsae.tmp", path);
    ATTEMPT(&error, page_open(&page, path, "t"); fill(&page); cr_assert(path_exists(temporary));
            fail(STATUS_INPUT, "no more"));
    cr_assert_str_eq(error.text, "no more");
    cr_assert(!path_exists(path));
    cr_assert(!path_exists(temporary));
    ATTEMPT(&error, page_open(&page, "/nonexistent/r.html", "t"));
    cr_assert_eq(error.status, STATUS_INPUT);
    ATTEMPT(&error, page_open(&page, "/dev/full", "t"); fill(&page); page_commit(&page));
    cr_assert_eq(error.status, STATUS_RESOURCE);
}

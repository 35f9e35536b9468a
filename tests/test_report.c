/* CSV, JSON, figures, the HTML report: exact text, escaping, and XML that a strict reader accepts.
 */
#define _XOPEN_SOURCE 700
#include "report.h"

#include "json.h"
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

/* ---- CSV and JSON ---- */

Test(report, csv) {
    MemoryStream *m = memory_open(arena);
    Csv csv = csv_start(m->stream, "a,b,c,d");
    csv_int(&csv, INT64_MIN);
    csv_double(&csv, 0.1);
    csv_float(&csv, 0.1F);
    csv_text(&csv, "plain");
    csv_end(&csv);
    csv_text(&csv, "");
    csv_text(&csv, "a,\"b\"\n");
    csv_double(&csv, (double)NAN);
    csv_float(&csv, -INFINITY);
    csv_end(&csv);
    cr_assert_str_eq(memory_text(m),
                     "a,b,c,d\n-9223372036854775808,0.1,0.1,plain\n,\"a,\"\"b\"\"\n\",,-inf\n");
}

Test(report, json) {
    MemoryStream *m = memory_open(arena);
    for (int pretty = 0; pretty < 3; pretty += 2) {
        JsonOut json = json_out_start(m->stream, pretty);
        json_out_object(&json, NULL);
        json_out_text(&json, "a\"", "x\n");
        json_out_array(&json, "list");
        json_out_object(&json, NULL);
        json_out_int(&json, "n", -3);
        json_out_double(&json, "d", 0.1);
        json_out_end(&json);
        json_out_array(&json, NULL);
        json_out_end(&json);
        json_out_end(&json);
        json_out_float(&json, "f", 0.1F);
        json_out_double(&json, "nan", (double)NAN);
        json_out_bool(&json, "yes", true);
        json_out_null(&json, "none");
        json_out_bytes(&json, "bytes", "a\0b", 3);
        json_out_end(&json);
    }
    cr_assert_str_eq(
        memory_text(m),
        "{\"a\\\"\": \"x\\n\", \"list\": [{\"n\": -3, \"d\": 0.1}, []], \"f\": 0.1, \"nan\": "
        "null, \"yes\": true, \"none\": null, \"bytes\": \"a\\u0000b\"}\n"
        "{\n  \"a\\\"\": \"x\\n\",\n  \"list\": [\n    {\"n\": -3, \"d\": 0.1},\n    []\n  "
        "],\n  \"f\": 0.1,\n  \"nan\": null,\n  \"yes\": true,\n  \"none\": null,\n  "
        "\"bytes\": \"a\\u0000b\"\n}\n");
}

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
        char text[TEXT_NUMBER_SIZE];
        text_number(text, cases[i].value, cases[i].digits);
        cr_assert_str_eq(text, cases[i].text);
    }
}

/* ---- XML ---- */

typedef enum Kind {
    LINES,
    BARS,
    HEAT
} Kind;

/* Draws n values, four series or columns of them, under the given name. */
static char *draw(Kind kind, const double *values, size_t n, const char *name, bool log_y) {
    MemoryStream *m = memory_open(arena);
    const char *names[4] = {name, "b", name, "d"}, *rows[200];
    static const bool marked[800] = {true, false, true};
    Series series[4];
    double reference = 1;
    for (size_t i = 0; i < 200; i++) {
        rows[i] = i % 2 == 0 ? name : "row";
    }
    for (size_t i = 0; i < 4; i++) {
        series[i] = (Series){.name = names[i],
                             .y = values + i * (n / 4),
                             .count = n / 4,
                             .dashed = i == 3,
                             .colour = i == 3 ? 1 : 0};
    }
    LineChart lines = {name, name, name, name, series, 4, log_y, !log_y, name, 1e9, !log_y};
    BarChart bars = {name, name, name, rows, n / 4, names, 4, values, &reference, name};
    HeatMap heat = {name, name, name, name, name, rows, n / 4, names, 4, values, marked};
    if (kind == LINES) {
        svg_lines(m->stream, &lines);
    } else if (kind == BARS) {
        svg_bars(m->stream, &bars);
    } else {
        svg_heat(m->stream, &heat);
    }
    return memory_text(m);
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
            cr_assert_null(strstr(a, "<script"));
            arena_reset(arena);
        }
    }
}

Test(report, line_chart_shows_what_it_is_given) {
    double y[4] = {1, 10, (double)NAN, 1000}, x[4] = {0, 1, 2, 3};
    Series series[2] = {
        {.name = "measured", .x = x, .y = y, .count = 4},
        {.name = "published", .x = x, .y = y, .count = 4, .dashed = true, .colour = 1}};
    LineChart chart = {.title = "T",
                       .x_label = "layer",
                       .y_label = "MSE",
                       .series = series,
                       .series_count = 2,
                       .log_y = true,
                       .marker_label = "convergence: layer 2",
                       .marker_x = 2};
    MemoryStream *m = memory_open(arena);
    svg_lines(m->stream, &chart);
    char *svg = memory_text(m);
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
    cr_assert_not_null(strstr(svg, "fill-opacity=\"0.125\"><title>n · n: 0.5<"), "0.5 of 4");
}

/* ---- HTML ---- */

static char *read_file(const char *path) {
    FileMap map = file_map(arena, path);
    return arena_copy(arena, (const char *)map.data, map.size);
}

static void fill(Report *report) {
    double values[4] = {1, 2, 3, 4};
    Series series = {.name = hostile, .y = values, .count = 4};
    LineChart chart = {.title = hostile, .series = &series, .series_count = 1};
    report_section(report, "First");
    report_value(report, hostile, "%s", hostile);
    report_value(report, "b", "%d %%", 5);
    report_paragraph(report, "%s", hostile);
    report_table(report, hostile, "name|#value|text");
    for (int i = 0; i < 3; i++) {
        report_cell(report, "%s", hostile);
        report_cell_number(report, i == 1 ? (double)NAN : -0.5 * i);
        report_cell(report, "x");
    }
    report_cell(report, "a row that is left short");
    svg_lines(report_figure(report, hostile), &chart);
    report_section(report, hostile);
    report_fact(report, hostile, "%s", hostile);
    report_fact(report, "seed", "%d", 475);
    report_code(report, hostile);
    report_picture(report, "abcd", 4, "image/png", hostile);
    report_picture(report, "abc", 3, "image/png", "p");
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (; (text = strstr(text, part)) != NULL; text++) {
        count++;
    }
    return count;
}

Test(report, html_is_whole_and_escaped) {
    char path[] = "/tmp/refsae-report-XXXXXX";
    int file = mkstemp(path);
    Report report;
    close(file);
    report_open(&report, path, hostile, hostile);
    fill(&report);
    report_commit(&report);
    char *html = read_file(path);
    static const char *const once[] = {"<!doctype html>",
                                       "</html>",
                                       "<table>",
                                       "</table>",
                                       "<figure>",
                                       "</figure>",
                                       "<dl>",
                                       "</dl>",
                                       "<nav>",
                                       "class=\"values\">",
                                       "class=\"pictures\">",
                                       "YWJjZA==",
                                       "\"data:image/png;base64,YWJj\"",
                                       "<td class=\"n\">−1.000</td>",
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
    cr_assert_eq(count_of(html, "<tr>"), 1 + 4);
    cr_assert_eq(count_of(html, "<td>") + count_of(html, "<td class"), 12,
                 "short rows are filled up");
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
    Report report;
    Error error;
    char path[] = "/tmp/refsae-report-failed.html", temporary[64];
    snprintf(temporary, sizeof temporary, "%s.%ld-0.tmp", path, (long)getpid());
    ATTEMPT(&error, report_open(&report, path, "t", NULL); fill(&report);
            cr_assert(path_exists(temporary)); fail(STATUS_INPUT, "no more"));
    cr_assert_str_eq(error.text, "no more");
    cr_assert_not(path_exists(path));
    cr_assert_not(path_exists(temporary));
    ATTEMPT(&error, report_open(&report, "/nonexistent/r.html", "t", NULL));
    cr_assert_eq(error.status, STATUS_INPUT);
    ATTEMPT(&error, report_open(&report, "/dev/full", "t", NULL); fill(&report);
            report_commit(&report));
    cr_assert_eq(error.status, STATUS_RESOURCE);
}

/* ---- progress ---- */

Test(report, progress_says_how_long_where_there_is_no_terminal) {
    char path[] = "/tmp/refsae-progress-XXXXXX";
    int file = mkstemp(path);
    cr_assert_eq(dup2(file, STDERR_FILENO), STDERR_FILENO);
    Progress progress = progress_start("training", "steps", 100, 200, false);
    cr_assert_not(progress.terminal);
    progress_set(&progress, 101, "loss 2");
    progress.printed -= 31;
    progress.started -= 40;
    progress_set(&progress, 110, "loss 1");
    progress_set(&progress, 200, NULL);
    progress.started -= 4000;
    progress_end(&progress);
    progress_end(&progress);
    Progress quiet = progress_start("quiet", "steps", 0, 200, true);
    quiet.printed -= 100;
    progress_set(&quiet, 50, NULL);
    progress_end(&quiet);
    char *text = read_file(path);
    cr_assert_str_eq(text, "training: 110/200 steps, 55 %, 15.0/min, 6 min 00 s left, loss 1\n"
                           "training: 100 steps in 1 h 07 min\n");
    unlink(path);
}

/* figure.c: line charts, grouped bars and heat maps as SVG, and the HTML page. See figure.h. */
#include "figure.h"
#include "page_style.h" /* page.css, by the Makefile */

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define FONT "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"

/* ---- markup ---- */

/* Escaped; of more than `most` characters the rest an ellipsis. */
static void svg_text(FILE *f, const char *text, size_t most) {
    size_t length = strlen(text), shown = 0;
    for (size_t i = 0; i < length; shown++) {
        uint32_t code;
        size_t step = utf8_decode(text + i, length - i, &code);
        bool broken = step == 0;
        step = broken ? 1 : step;
        if (shown + 1 >= most && i + step < length) {
            fputs("…", f);
            return;
        }
        if (broken || code == 0xFFFE || code == 0xFFFF ||
            (code < 0x20 && code != '\n' && code != '\t' && code != '\r')) {
            fputs("\xEF\xBF\xBD", f); /* U+FFFD */
        } else if (code < 0x80 && strchr("&<>\"'", (int)code) != NULL) {
            fprintf(f, "&#%u;", (unsigned)code);
        } else {
            fwrite(text + i, 1, step, f);
        }
        i += step;
    }
}

/* printf of %s, %d and %f whose format is markup, ' in it standing for ". What %s brings is
 * escaped, what XML cannot hold becomes U+FFFD, and beyond a precision the rest an ellipsis. */
REFSAE_PRINTF(2, 3)
static void markup(FILE *f, const char *format, ...) {
    va_list list;
    va_start(list, format);
    for (; *format != '\0'; format++) {
        if (*format != '%') {
            putc(*format == '\'' ? '"' : *format, f);
            continue;
        }
        char directive[16];
        size_t length = 1 + strspn(format + 1, ".0123456789*");
        snprintf(directive, sizeof directive, "%.*s", (int)length + 1, format);
        format += length;
        if (*format == 's') {
            size_t most = length > 1 ? (size_t)va_arg(list, int) : SIZE_MAX;
            svg_text(f, va_arg(list, const char *), most);
        } else if (*format == 'd') {
            fprintf(f, directive, va_arg(list, int));
        } else {
            fprintf(f, directive, va_arg(list, double));
        }
    }
    va_end(list);
}

const char *text_number(Arena *arena, double value, int digits) {
    static const char up[][4] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
    const char *sign = value < 0 ? "−" : "", *text;
    double size = fabs(value);
    if (!isfinite(value)) {
        return arena_format(arena, "%s%s", sign, isnan(value) ? "–" : "∞");
    }
    char *plain = size >= 1e4 && size < 1e6 ? arena_format(arena, "%.0f", size)
                                            : arena_format(arena, "%.*g", digits, size),
         *e = strchr(plain, 'e');
    if (e == NULL) {
        return arena_format(arena, "%s%s", sign, plain);
    }
    *e = '\0';
    bool one = strcmp(plain, "1") == 0;
    text = arena_format(arena, "%s%s%s10%s", sign, one ? "" : plain, one ? "" : "×",
                        e[1] == '-' ? "⁻" : "");
    for (const char *power = e + 2 + strspn(e + 2, "0"); *power != '\0'; power++) {
        text = arena_format(arena, "%s%s", text, up[*power - '0']);
    }
    return text;
}

/* Width in units of the font size. No font is known here, so this errs on the wide side: a full
 * width for what lies beyond the alphabets (CJK, emoji). */
static double text_width(const char *text) {
    double width = 0;
    size_t length = strlen(text);
    for (size_t i = 0; i < length;) {
        uint32_t code = 0;
        size_t step = utf8_decode(text + i, length - i, &code);
        width += code >= 0x1100 && (code < 0x2000 || code > 0x206F) ? 1.05
                 : code >= 0x80 || code == 0                        ? 0.6
                 : strchr("iljI.,:;|'!", (int)code) != NULL         ? 0.35
                 : strchr("mwMW%@", (int)code) != NULL              ? 0.9
                                                                    : 0.6;
        i += step == 0 ? 1 : step;
    }
    return width;
}

/* Of a label, in pixels, up to the room that it gets. */
static double label_width(const char *text) {
    return fmin(13 * text_width(text), 240);
}

/* How many of a text's characters fit: a precision for markup(). */
static int text_fit(const char *text, double room, double size) {
    return size * text_width(text) <= room ? INT_MAX : (int)fmax(room / (0.6 * size), 2);
}

/* ---- axes ---- */

/* Decimal logarithm to about 1e-15 from exact operations alone, so that figures are the same bytes
 * on any machine: log of the mantissa in [sqrt(1/2), sqrt(2)) by the series of 2 artanh. */
static double log10_portable(double value) {
    int exponent;
    double m = frexp(value, &exponent);
    if (m < 0.70710678118654752) {
        m *= 2;
        exponent--;
    }
    double s = (m - 1) / (m + 1), square = s * s, sum = 0;
    for (int k = 39; k > 0; k -= 2) {
        sum = sum * square + 1.0 / k;
    }
    return (2 * s * sum + exponent * 0.69314718055994531) * 0.43429448190325183;
}

static double power_of_ten(int n) {
    double value = 1;
    for (int i = abs(n); i > 0; i--) {
        value *= 10;
    }
    return n < 0 ? 1 / value : value;
}

/* What figures draw: finite and far from overflow in the arithmetic of scales. */
static bool drawable(double value, bool logarithmic) {
    return fabs(value) < 1e100 && (!logarithmic || value > 1e-100);
}

typedef struct Interval {
    double low, high;
} Interval;
#define NO_INTERVAL {INFINITY, -INFINITY}

static void include(Interval *range, double value) {
    range->low = value < range->low ? value : range->low;
    range->high = value > range->high ? value : range->high;
}

typedef struct Axis {
    double low, high; /* in decades if logarithmic */
    double step;
    bool logarithmic;
    double from, to; /* pixels of low and high */
} Axis;

/* What lies beyond the axis stands at its end. */
static double axis_place(const Axis *axis, double value) {
    double v = axis->logarithmic ? log10_portable(value) : value;
    v = fmin(fmax(v, axis->low), axis->high);
    return axis->from + (v - axis->low) / (axis->high - axis->low) * (axis->to - axis->from);
}

/* 1, 2 or 5 times a power of ten, so that about `ticks` of them fill the range. */
static double nice_step(double range, int ticks) {
    double raw = range / ticks, unit = power_of_ten((int)floor(log10_portable(raw)));
    double f = raw / unit;
    return unit * (f <= 1.0001 ? 1 : f <= 2.0001 ? 2 : f <= 5.0001 ? 5 : 10);
}

/* snap: the axis begins and ends at ticks. */
static Axis axis_make(Interval range, bool logarithmic, bool snap, int ticks) {
    Axis axis = {.logarithmic = logarithmic};
    if (range.low > range.high) {
        range = logarithmic ? (Interval){1, 10} : (Interval){0, 1};
    }
    if (logarithmic) {
        double low = log10_portable(range.low), high = log10_portable(range.high);
        double margin = high - low < 0.3 ? (0.3 - (high - low)) / 2 : (high - low) * 0.04;
        axis.low = low - margin;
        axis.high = high + margin;
        axis.step = fmax(ceil((high - low) / 8), 1);
        return axis;
    }
    double low = range.low, high = range.high, size = fmax(fabs(low), fabs(high));
    if (high - low <= fmax(1e-12 * size, 1e-100)) {
        double margin = !snap ? 0.5 : size < 1e-90 ? 1 : size * 0.1;
        low -= margin;
        high += margin;
    }
    axis.step = nice_step(high - low, ticks);
    axis.low = snap ? floor(low / axis.step + 1e-9) * axis.step : low;
    axis.high = snap ? ceil(high / axis.step - 1e-9) * axis.step : high;
    return axis;
}

enum {
    TICKS_MOST = 40
};

typedef struct Ticks {
    int count;
    double value[TICKS_MOST];
    const char *text[TICKS_MOST];
    double width; /* of the widest text, in pixels */
} Ticks;

static void tick_add(Arena *arena, Ticks *ticks, double value, int digits) {
    if (ticks->count < TICKS_MOST) {
        const char *text = text_number(arena, value, digits);
        ticks->text[ticks->count] = text;
        ticks->width = fmax(ticks->width, 13 * text_width(text));
        ticks->value[ticks->count++] = value;
    }
}

static Ticks axis_ticks(Arena *arena, const Axis *axis) {
    Ticks ticks = {.count = 0};
    double span = axis->high - axis->low;
    if (!axis->logarithmic) {
        for (double i = ceil(axis->low / axis->step - 1e-9);
             i * axis->step <= axis->high + 1e-9 * span; i += 1) {
            tick_add(arena, &ticks, i == 0 ? 0 : i * axis->step, 6);
        }
        return ticks;
    }
    for (double k = floor(axis->low); k <= axis->high; k += 1) {
        for (int m = 1; m <= 9; m++) {
            double value = m * power_of_ten((int)k), place = log10_portable(value);
            bool whole = m == 1 && fmod(k, axis->step) == 0;
            bool wanted = whole || (span < 3 && (m == 2 || m == 5)) || (span < 0.8 && m != 1);
            if (wanted && place >= axis->low && place <= axis->high) {
                tick_add(arena, &ticks, value, 4);
            }
        }
    }
    return ticks;
}

/* ---- parts of figures: light colours stand in the attributes, which every program that shows SVG
 * understands, dark ones in a style that only a screen with a dark scheme applies ---- */

#define INK "#1b1f24"
#define MUTED "#59636e"
#define GRID "#e3e7eb"
#define FRAME "#8b949e"
#define REFERENCE "5 4" /* the dash of what is compared with */

/* Okabe and Ito's colours, which remain apart in all common forms of colour blindness, darkened
 * where white paper asks for it; their light versions are in figure_style. */
static const char *const colours[8] = {"#0072b2", "#d55e00", "#00876c", "#a6478c",
                                       "#8a6d00", "#2f9fd8", "#5b6470", "#7a3fb0"};
static const char figure_style[] =
    "<style>@media screen and (prefers-color-scheme:dark){"
    "svg.rf{fill:#e6e9ed}.rf .p{fill:#14171b}.rf .m{fill:#9da7b3}.rf .g{stroke:#2b3138}"
    ".rf .a{stroke:#77828e}.rf .h{stroke:#14171b}.rf .i{stroke:#e6e9ed}"
    ".rf .s1{stroke:#56b4e9}.rf .f1{fill:#56b4e9}.rf .s2{stroke:#ff9248}.rf .f2{fill:#ff9248}"
    ".rf .s3{stroke:#35d0a5}.rf .f3{fill:#35d0a5}.rf .s4{stroke:#f08fcf}.rf .f4{fill:#f08fcf}"
    ".rf .s5{stroke:#f0d04c}.rf .f5{fill:#f0d04c}.rf .s6{stroke:#8fd3ff}.rf .f6{fill:#8fd3ff}"
    ".rf .s7{stroke:#aab4bf}.rf .f7{fill:#aab4bf}.rf .s8{stroke:#c39bff}.rf .f8{fill:#c39bff}"
    "}</style>\n";

enum {
    FIGURE_WIDTH = 660 /* at least: its text is legible on a phone that shows it whole */
};

typedef struct Figure {
    Arena *arena;
    MemoryStream *drawn; /* all but the head, which waits until the height is known */
    FILE *f;             /* its stream */
    const char *title;
    double width, y; /* y: below what stands at the top */
} Figure;

static Figure figure_begin(Arena *arena, double width, const char *title, const char *subtitle) {
    MemoryStream *drawn = memory_open(arena);
    markup(drawn->stream, "<text x='18' y='29' font-size='17' font-weight='600'>%.*s</text>\n",
           text_fit(title, width - 36, 17), title);
    if (subtitle != NULL) {
        markup(drawn->stream, "<text class='m' x='18' y='49' fill='" MUTED "'>%.*s</text>\n",
               text_fit(subtitle, width - 36, 13), subtitle);
    }
    return (Figure){arena, drawn, drawn->stream, title, width, subtitle == NULL ? 40 : 60};
}

/* The names of series in one sentence. */
static const char *series_names(Arena *arena, const Series *series, size_t count) {
    MemoryStream *names = memory_open(arena);
    for (size_t k = 0; k < count; k++) {
        fprintf(names->stream, "%s%s", k == 0 ? "" : ", ", series[k].name);
    }
    return memory_text(names);
}

/* described: for those who hear a figure. */
static char *figure_end(const Figure *figure, double height, const char *described) {
    MemoryStream *whole = memory_open(figure->arena);
    double width = figure->width;
    markup(whole->stream,
           "<svg xmlns='http://www.w3.org/2000/svg' class='rf' width='%.0f' height='%.0f' "
           "viewBox='0 0 %.0f %.0f' style='min-width:%.0fpx'",
           width, height, width, height, 0.55 * width); /* a phone shows FIGURE_WIDTH of it whole */
    fputs(" font-family=\"" FONT "\"", whole->stream);
    markup(whole->stream,
           " font-size='13' fill='" INK "' role='img'>\n<title>%s</title>\n<desc>%s</desc>\n",
           figure->title, described);
    fputs(figure_style, whole->stream);
    markup(whole->stream, "<rect class='p' width='%.0f' height='%.0f' fill='#ffffff'/>\n", width,
           height);
    fprintf(whole->stream, "%s</svg>\n", memory_text(figure->drawn));
    return memory_text(whole);
}

static void figure_text(const Figure *figure, double x, double y, const char *anchor,
                        const char *text, double room) {
    markup(figure->f,
           "<text class='m' x='%.2f' y='%.2f' text-anchor='%s' fill='" MUTED "'>%.*s</text>\n", x,
           y, anchor, text_fit(text, room, 13), text);
}

/* dash: "" or that of a bolder line */
static void figure_line(const Figure *figure, const char *class, double x1, double y1, double x2,
                        double y2, const char *colour, const char *dash) {
    markup(figure->f, "<line class='%s' x1='%.2f' y1='%.2f' x2='%.2f' y2='%.2f' stroke='%s'", class,
           x1, y1, x2, y2, colour);
    if (*dash != '\0') {
        markup(figure->f, " stroke-width='1.4' stroke-dasharray='%s'", dash);
    }
    fputs("/>\n", figure->f);
}

/* A mark of its own shape for each colour, so that colour is not the only difference. */
static void figure_mark(const Figure *figure, int colour, bool hollow, double x, double y) {
    static const char *const shapes[8] = {
        "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0z",
        "m-3-3h6v6h-6z",
        "m0-4l3.8 6.6h-7.6z",
        "m0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
        "m0 4l3.8-6.6h-7.6z",
        "m-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
        "m-4.2-1.6h8.4v3.2h-8.4z",
        "m-1.6-4.2h3.2v8.4h-3.2z"};
    markup(figure->f, "<path class='%s%d s%d' fill='%s' stroke='%s' d='M%.2f %.2f%s'",
           hollow ? "p f" : "f", hollow ? 0 : colour, colour,
           hollow ? "#ffffff" : colours[colour - 1], colours[colour - 1], x, y, shapes[colour - 1]);
}

/* One wild share must not flatten the others: how far axes reach for it. */
static double share_cut(double value, double least) {
    return fmin(fmax(value, least), 2);
}

static bool has_interval(const Point *point) {
    return drawable(point->low, false) && drawable(point->high, false);
}

/* The interval of a point, if it has one. */
static void figure_whisker(const Figure *figure, const Point *point, int colour, double x,
                           const Axis *axis) {
    if (has_interval(point)) {
        double low = axis_place(axis, point->low), high = axis_place(axis, point->high);
        markup(figure->f,
               "<path class='s%d' fill='none' stroke='%s' d='M%.2f %.2fh6m-3 0V%.2fm-3 0h6'/>\n",
               colour, colours[colour - 1], x - 3, low, high);
    }
}

/* A number over or in what it is of, legible on any colour. */
static void figure_number(const Figure *figure, double x, double y, const char *text) {
    markup(figure->f,
           "<text class='h' x='%.2f' y='%.2f' font-size='11' text-anchor='middle' stroke='#ffffff' "
           "stroke-width='3' paint-order='stroke'>%s</text>\n",
           x, y, text);
}

/* Names of series in rows that wrap. One series alone needs none. */
static void figure_legend(Figure *figure, const Series *series, size_t count, bool lines) {
    double x = 18, y = figure->y + 16;
    for (size_t k = 0; k < count && count > 1; k++) {
        double room = fmin(38 + 13 * text_width(series[k].name), figure->width - 36);
        int c = series[k].colour;
        if (x > 18 && x + room > figure->width - 18) {
            x = 18;
            y += 21;
        }
        if (!lines) {
            markup(
                figure->f,
                "<rect class='f%d' x='%.2f' y='%.2f' width='13' height='13' rx='2' fill='%s'/>\n",
                c, x, y - 11, colours[c - 1]);
        } else {
            markup(figure->f, "<path class='s%d' d='M%.2f %.2fh24' stroke='%s' stroke-width='2.2'",
                   c, x, y - 4.5, colours[c - 1]);
            fputs(series[k].dashed ? " stroke-dasharray=\"5 4\"/>\n" : "/>\n", figure->f);
        }
        figure_mark(figure, c, !lines || series[k].dashed, x + (lines ? 12 : 6.5), y - 4.5);
        fputs("/>\n", figure->f);
        markup(figure->f, "<text x='%.2f' y='%.2f'>%.*s</text>\n", x + (lines ? 30 : 19), y,
               text_fit(series[k].name, figure->width - 60, 13), series[k].name);
        x += room + 14;
        figure->y = y + 8;
    }
}

/* Horizontal grid with labels. */
static void figure_grid(const Figure *figure, const Axis *y_axis, double left, double right) {
    Ticks ticks = axis_ticks(figure->arena, y_axis);
    for (int i = 0; i < ticks.count; i++) {
        double y = axis_place(y_axis, ticks.value[i]);
        figure_line(figure, "g", left, y, right, y, GRID, "");
        figure_text(figure, left - 8, y + 4.5, "end", ticks.text[i], INFINITY);
    }
}

/* ---- lines and bars ---- */

static bool point_drawable(const Chart *chart, const Point *point) {
    return drawable(point->x, chart->log_x) && drawable(point->y, chart->log_y);
}

/* Widens what the axes hold by a chart; whether there is anything to draw. */
static bool chart_ranges(const Chart *chart, Interval *xs, Interval *ys) {
    bool any = false, x_shares = chart->shares && !chart->log_x;
    for (size_t k = 0; k < chart->series_count; k++) {
        const Series *s = &chart->series[k];
        for (size_t i = 0; i < s->count; i++) {
            const Point *p = &s->points[i];
            if (point_drawable(chart, p)) {
                any = true;
                include(xs, x_shares ? share_cut(p->x, -10) : p->x);
                include(ys, chart->shares ? share_cut(p->y, -1) : p->y);
                if (chart->shares && has_interval(p)) {
                    include(ys, share_cut(p->low, -1));
                    include(ys, share_cut(p->high, -1));
                }
            }
        }
    }
    if (!chart->log_y && (chart->shares || any)) {
        include(ys, 0);
    }
    if (chart->shares) {
        include(ys, 1);
    }
    for (int i = 0; i < 2 && x_shares; i++) {
        include(xs, i);
    }
    if (chart->marker_label != NULL) {
        include(xs, chart->marker_x);
    }
    return any;
}

/* Gaps break the curve. */
static void draw_curve(const Figure *figure, const Chart *chart, const Series *s,
                       const Axis *x_axis, const Axis *y_axis) {
    const Point *end = s->points + s->count;
    bool pen = false;
    markup(figure->f,
           "<path class='s%d' fill='none' stroke='%s' stroke-width='%s' stroke-linejoin='round' "
           "stroke-linecap='round'",
           s->colour, colours[s->colour - 1], s->count > 1600 ? "1.2" : "2.2");
    fputs(s->dashed ? " stroke-dasharray=\"5 5\" d=\"" : " d=\"", figure->f);
    for (const Point *p = s->points; p < end; p++) {
        bool drawn = point_drawable(chart, p);
        if (drawn) {
            markup(figure->f, pen ? "L%.2f %.2f" : "M%.2f %.2fh0", axis_place(x_axis, p->x),
                   axis_place(y_axis, p->y));
        }
        pen = drawn;
    }
    fputs("\"/>\n", figure->f);
    for (const Point *p = s->points; p < end && s->count <= 64; p++) {
        if (point_drawable(chart, p)) {
            double x = axis_place(x_axis, p->x);
            figure_whisker(figure, p, s->colour, x, y_axis);
            figure_mark(figure, s->colour, s->dashed, x, axis_place(y_axis, p->y));
            markup(figure->f, "><title>%s · %s: %s</title></path>\n", s->name,
                   text_number(figure->arena, p->x, 6), text_number(figure->arena, p->y, 4));
        }
    }
}

static void draw_x_axis(const Figure *figure, const Chart *chart, const Axis *x_axis, double left,
                        double right, double y) {
    Ticks ticks = {.count = 0};
    double taken = -INFINITY;
    for (size_t i = 0; chart->log_x && chart->series_count > 0 && i < chart->series->count; i++) {
        if (drawable(chart->series->points[i].x, true)) {
            tick_add(figure->arena, &ticks, chart->series->points[i].x, 6);
        }
    }
    ticks = chart->log_x ? ticks : axis_ticks(figure->arena, x_axis);
    figure_line(figure, "a", left, y, right, y, FRAME, "");
    for (int i = 0; i < ticks.count; i++) {
        double x = axis_place(x_axis, ticks.value[i]), half = 6.5 * text_width(ticks.text[i]);
        figure_line(figure, "a", x, y, x, y + 5, FRAME, "");
        if (x - half > taken && x + half < figure->width) {
            figure_text(figure, x, y + 19, "middle", ticks.text[i], INFINITY);
            taken = x + half + 6;
        }
    }
}

static void draw_bar(const Figure *figure, const char *group, const Series *s, const Point *point,
                     double x, double width, const Axis *axis) {
    double value = point->y, middle = x + width / 2;
    double y = axis_place(axis, value), zero = axis_place(axis, 0);
    double end = has_interval(point) ? axis_place(axis, value < 0 ? point->low : point->high) : y;
    const char *text = text_number(figure->arena, value, 2);
    markup(figure->f,
           "<rect class='f%d' x='%.2f' y='%.2f' width='%.2f' height='%.2f' fill='%s' "
           "fill-opacity='0.6'><title>%s · %s: %s</title></rect>\n",
           s->colour, x + 1, fmin(y, zero), fmax(width - 2, 1), fmax(fabs(zero - y), 0.5),
           colours[s->colour - 1], group, s->name, text);
    figure_whisker(figure, point, s->colour, middle, axis);
    figure_mark(figure, s->colour, true, middle, y);
    fputs("/>\n", figure->f);
    if (width >= 30) {
        double below = fmin(fmax(end, y + 4) + 13, axis->from - 7);
        figure_number(figure, middle, value < 0 ? below : fmin(end, y - 4) - 4, text);
    }
}

static void draw_bars(const Figure *figure, const Chart *chart, const Axis *axis, double left,
                      double right) {
    double series = (double)chart->series_count,
           group = (right - left) / (double)chart->group_count;
    double bar = fmin(46, group * 0.8 / fmax(series, 1));
    for (size_t i = 0; i < chart->group_count; i++) {
        double middle = left + group * ((double)i + 0.5);
        for (size_t k = 0; k < chart->series_count; k++) {
            const Series *s = &chart->series[k];
            if (drawable(s->points[i].y, false)) {
                draw_bar(figure, chart->groups[i], s, &s->points[i],
                         middle + bar * ((double)k - series / 2), bar, axis);
            }
        }
        figure_text(figure, middle, axis->from + 21, "middle", chart->groups[i], group);
    }
}

/* The chart between these sides, its numbers left of them and below. */
static void draw_panel(const Figure *figure, const Chart *chart, const Axis *x_axis,
                       const Axis *y_axis, double left, double right) {
    double top = y_axis->to, bottom = y_axis->from;
    Interval xs = NO_INTERVAL, ys = NO_INTERVAL;
    bool bars = chart->groups != NULL;
    figure_grid(figure, y_axis, left, right);
    if (!bars) {
        draw_x_axis(figure, chart, x_axis, left, right, bottom);
    }
    for (int i = 0; i < 2 && chart->shares; i++) {
        bool reference = (i == 1) != bars;
        double y = axis_place(y_axis, reference ? 1 : 0);
        figure_line(figure, "a", left, y, right, y, FRAME, reference ? REFERENCE : "");
    }
    if (chart->marker_label != NULL) {
        double x = axis_place(x_axis, chart->marker_x),
               half = 6.5 * text_width(chart->marker_label);
        const char *anchor = x - half < left ? "start" : x + half > right ? "end" : "middle";
        figure_line(figure, "a", x, top - 2, x, bottom, FRAME, "2 3");
        figure_text(figure, x, top - 7, anchor, chart->marker_label, right - left);
    }
    if (bars) {
        draw_bars(figure, chart, y_axis, left, right);
    }
    for (size_t k = 0; k < chart->series_count && !bars; k++) {
        draw_curve(figure, chart, &chart->series[k], x_axis, y_axis);
    }
    if (!chart_ranges(chart, &xs, &ys)) {
        figure_text(figure, (left + right) / 2, top + (bars ? 0.5 : 0.3) * (bottom - top), "middle",
                    "no values to draw", INFINITY);
    }
}

char *svg_chart(Arena *arena, const char *title, const Chart *charts, size_t count) {
    Interval xs = NO_INTERVAL, ys = NO_INTERVAL;
    const Chart *model = &charts[0];
    bool titled = title != NULL, bars = model->groups != NULL;
    size_t columns = count > 1 ? 2 : 1;
    for (size_t i = 0; i < count; i++) {
        chart_ranges(&charts[i], &xs, &ys);
    }
    Axis y_axis = axis_make(ys, model->log_y, true, 5);
    Axis x_axis = axis_make(xs, model->log_x, false, columns > 1 ? 6 : 10);
    x_axis.step = model->shares ? x_axis.step : fmax(x_axis.step, 1);
    double numbers = fmax(46, 30 + axis_ticks(arena, &y_axis).width), /* left of a panel */
        group = 16 * (double)model->series_count + 16;
    for (size_t i = 0; i < model->group_count; i++) {
        group = fmax(group, fmin(label_width(model->groups[i]) + 14, 240));
    }
    double wide = fmin(numbers + 26 + group * (double)model->group_count, 6000);
    Figure figure = figure_begin(arena, fmax(FIGURE_WIDTH, wide), titled ? title : model->title,
                                 titled ? NULL : model->subtitle);
    figure_legend(&figure, model->series, model->series_count, !bars);
    figure_text(&figure, 18, figure.y + (bars ? 16 : 14), "start", model->y_label,
                figure.width - 44);
    double above = titled ? 44 : bars || model->marker_label != NULL ? 16 : 0;
    double height = columns > 1 ? 200 : bars ? 280 : 300;
    double width = (figure.width - 8) / (double)columns;
    for (size_t i = 0; i < count; i++) {
        double left = width * (double)(i % columns) + numbers;
        double right = width * (double)(i % columns + 1) - 18;
        y_axis.to = figure.y + 26 + above + (height + above + 34) * (double)(i / columns);
        y_axis.from = y_axis.to + height;
        x_axis.from = left + 12;
        x_axis.to = right - 12;
        if (titled) {
            markup(figure.f, "<text x='%.2f' y='%.2f' font-weight='600'>%.*s</text>\n", left,
                   y_axis.to - 26, text_fit(charts[i].title, right - left, 13), charts[i].title);
        }
        if (titled && charts[i].subtitle != NULL) {
            figure_text(&figure, left, y_axis.to - 9, "start", charts[i].subtitle, width - 40);
        }
        draw_panel(&figure, &charts[i], &x_axis, &y_axis, left, right);
    }
    const char *names = series_names(arena, model->series, model->series_count);
    if (bars) {
        return figure_end(&figure, y_axis.from + 36,
                          arena_format(arena, "Bars in %zu group%s, %s: %s.", model->group_count,
                                       plural(model->group_count), model->y_label, names));
    }
    figure_text(&figure, figure.width / 2, y_axis.from + 42, "middle", model->x_label,
                figure.width - 44);
    return figure_end(
        &figure, y_axis.from + 56,
        arena_format(arena, "Curves of %s over %s: %s.", model->y_label, model->x_label, names));
}

Point *chart_add(Arena *arena, Chart *chart, Series series) {
    series.points = arena_alloc(arena, series.count, sizeof *series.points);
    for (size_t i = 0; i < series.count; i++) {
        series.points[i] = (Point){NAN, NAN, NAN, NAN};
    }
    series.colour = series.colour > 0 ? series.colour : (int)(chart->series_count % 8) + 1;
    chart->series =
        arena_grow(arena, chart->series, &chart->capacity, chart->series_count + 1, sizeof series);
    chart->series[chart->series_count++] = series;
    return series.points;
}

/* ---- heat maps ---- */

/* A cell's colour is that of its sign, as opaque as its size: on any paper 0 is the paper. */
static void draw_cell(const Figure *figure, double x, double y, double w, double h, double value,
                      double largest) {
    markup(figure->f,
           "<rect class='f%d' x='%.2f' y='%.2f' width='%.2f' height='%.2f' fill='%s' "
           "fill-opacity='%.3f'",
           value < 0 ? 1 : 2, x, y, w, h, colours[value < 0 ? 0 : 1], fabs(value) / largest);
}

/* What the colours mean: least and greatest value at the ends of a scale. */
static void draw_scale(const Figure *figure, const char *label, bool negative, double largest) {
    double x = 18, y = figure->y + 6;
    const char *text = text_number(figure->arena, negative ? -largest : 0, 3);
    figure_text(figure, x, y + 12, "start", label, figure->width - 36);
    y += 20;
    figure_text(figure, x, y + 12, "start", text, INFINITY);
    x += 13 * text_width(text) + 6;
    for (int i = 0; i < 21; i++) {
        draw_cell(figure, x + 8 * i, y, 8, 15, negative ? (i - 10) / 10.0 : i / 20.0, 1);
        fputs("/>\n", figure->f);
    }
    markup(figure->f,
           "<rect class='g' x='%.2f' y='%.2f' width='168' height='15' fill='none' stroke='" GRID
           "'/>\n",
           x, y);
    figure_text(figure, x + 174, y + 12, "start", text_number(figure->arena, largest, 3), INFINITY);
}

HeatCell *heat_row(Arena *arena, HeatMap *map, const char *name) {
    size_t i = map->row_count;
    while (i > 0 && strcmp(map->rows[i - 1].name, name) != 0) {
        i--;
    }
    if (i > 0) {
        return map->rows[i - 1].cells;
    }
    HeatCell *cells = arena_alloc(arena, map->column_count, sizeof *cells);
    for (size_t c = 0; c < map->column_count; c++) {
        cells[c].value = NAN;
    }
    map->rows = arena_grow(arena, map->rows, &map->capacity, map->row_count + 1, sizeof *map->rows);
    map->rows[map->row_count++] = (HeatRow){name, cells};
    return cells;
}

char *svg_heat(Arena *arena, const HeatMap *map) {
    const double cell_h = 20, columns = (double)map->column_count, rows = (double)map->row_count;
    double largest = map->largest, row_width = 0, column_width = 0;
    bool negative = false;
    for (size_t c = 0; c < map->column_count; c++) {
        column_width = fmax(column_width, label_width(map->columns[c]));
    }
    for (size_t r = 0; r < map->row_count; r++) {
        row_width = fmax(row_width, label_width(map->rows[r].name));
        for (size_t c = 0; c < map->column_count; c++) {
            double value = map->rows[r].cells[c].value;
            largest = drawable(value, false) ? fmax(largest, fabs(value)) : largest;
            negative = negative || (drawable(value, false) && value < 0);
        }
    }
    largest = largest == 0 ? 1 : largest;
    double cell_w = fmin(fmax(460 / fmax(columns, 1), 20), 120);
    bool slanted = column_width + 10 > cell_w;
    double left = fmax(18 + row_width + 10, slanted ? 18 + 0.77 * column_width - cell_w / 2 : 46);
    double right = left + cell_w * columns;
    Figure figure = figure_begin(arena, fmax(FIGURE_WIDTH, right + 26), map->title, map->subtitle);
    double top = figure.y + 72, bottom = top + cell_h * rows;
    double height = bottom + (slanted ? 0.66 * column_width + 26 : 28) + 22;
    draw_scale(&figure, map->value_label, negative, largest);
    for (size_t r = 0; r < map->row_count; r++) {
        double y = top + cell_h * (double)r;
        figure_text(&figure, left - 8, y + 12.5, "end", map->rows[r].name, row_width + 13);
        for (size_t c = 0; c < map->column_count; c++) {
            double x = left + cell_w * (double)c, value = map->rows[r].cells[c].value;
            if (drawable(value, false)) {
                draw_cell(&figure, x, y, cell_w, cell_h, value, largest);
                markup(figure.f, "><title>%s · %s: %s</title></rect>\n", map->rows[r].name,
                       map->columns[c], text_number(arena, value, 4));
            }
            if (drawable(value, false) && map->numbers) {
                figure_number(&figure, left + cell_w * ((double)c + 0.5), y + 14,
                              text_number(arena, value, 3));
            }
        }
    }
    for (size_t c = 0; c < map->column_count; c++) {
        double middle = left + cell_w * ((double)c + 0.5);
        if (!slanted) {
            figure_text(&figure, middle, bottom + 19, "middle", map->columns[c], INFINITY);
            continue;
        }
        markup(figure.f, "<g transform='translate(%.2f %.2f) rotate(-40)'>", middle + 4,
               bottom + 14);
        figure_text(&figure, 0, 0, "end", map->columns[c], column_width + 13);
        fputs("</g>\n", figure.f);
    }
    for (size_t r = 0; r <= map->row_count; r++) {
        double y = top + cell_h * (double)r;
        figure_line(&figure, "g", left, y, right, y, GRID, "");
    }
    for (size_t c = 0; c <= map->column_count; c++) {
        double x = left + cell_w * (double)c;
        figure_line(&figure, "g", x, top, x, bottom, GRID, "");
    }
    for (size_t i = 0; i < map->row_count * map->column_count; i++) {
        size_t row = i / map->column_count, column = i % map->column_count;
        if (map->rows[row].cells[column].marked) {
            markup(figure.f,
                   "<rect class='i' x='%.2f' y='%.2f' width='%.2f' height='%.2f' fill='none' "
                   "stroke='" INK "' stroke-width='2'/>\n",
                   left + cell_w * (double)column + 1, top + cell_h * (double)row + 1, cell_w - 2,
                   cell_h - 2);
        }
    }
    figure_text(&figure, left + cell_w * columns / 2, height - 10, "middle", map->x_label,
                figure.width / 2);
    return figure_end(&figure, height,
                      arena_format(arena, "Heat map of %s: %zu row%s, %zu column%s (%s).",
                                   map->value_label, map->row_count, plural(map->row_count),
                                   map->column_count, plural(map->column_count), map->x_label));
}

/* ---- figures that are read again ---- */

/* Over the first of "A|B" that stands there. */
static bool skip_any(const char **at, const char *words) {
    for (size_t n; *words != '\0'; words += n + (words[n] == '|' ? 1 : 0)) {
        n = strcspn(words, "|");
        if (strncmp(*at, words, n) == 0) {
            *at += n;
            return true;
        }
    }
    return false;
}

/* No value holds what could end it or begin another style; titles hold text alone, for in them a
 * browser reads HTML. */
static bool skip_tag(const char **at) {
    static const char attributes[] =
        " style=\"min-width:| class=\"| d=\"| fill=\"| fill-opacity=\"| font-family=\"|"
        " font-size=\"| font-weight=\"| height=\"| paint-order=\"| role=\"| rx=\"| stroke=\"|"
        " stroke-dasharray=\"| stroke-linecap=\"| stroke-linejoin=\"| stroke-width=\"|"
        " text-anchor=\"| transform=\"| viewBox=\"| width=\"| x=\"| x1=\"| x2=\"| xmlns=\"|"
        " y=\"| y1=\"| y2=\"";
    if (skip_any(at, "<title>")) {
        *at += strcspn(*at, "<");
        return skip_any(at, "</title>");
    } else if (skip_any(at, "<desc>")) {
        *at += strcspn(*at, "<");
        return skip_any(at, "</desc>");
    } else if (skip_any(at, figure_style) || skip_any(at, "</svg>|</g>|</rect>|</path>|</text>")) {
        return true;
    }
    bool known = skip_any(at, "<svg|<g|<rect|<path|<line|<text");
    while (known && skip_any(at, attributes)) {
        *at += strcspn(*at, "\"&;<");
        known = skip_any(at, "\"");
    }
    return known && skip_any(at, ">|/>");
}

const char *svg_strange(const char *svg) {
    do {
        svg = strchr(svg, '<');
    } while (svg != NULL && skip_tag(&svg));
    return svg;
}

/* ---- the page ---- */

/* What stands before and after several of a kind, and each with its texts between. */
static const struct {
    char mark;
    const char *begin, *item, *end;
} blocks[] = {
    {0, "", "", ""},
    {' ', "", "<p>%s</p>\n", ""},
    {'*', "", "<p><b>%s</b> %s</p>\n", ""},
    {'=', "<div class=\"values\">\n", "<div><b>%s</b><span>%s</span></div>\n", "</div>\n"},
    {':', "<dl>\n", "<dt>%s</dt><dd>", "</dl>\n"},
    {'+', "<div class=\"scroll\" role=\"group\" tabindex=\"0\">",
     "<table><caption><span>%s</span></caption>", "</tr>\n</tbody></table></div>\n"}};

/* A line may end between words, but not behind the hyphens of an option. */
static void page_words(const Page *page, const char *text) {
    for (const char *at; (at = strstr(text, " --")) != NULL;) {
        size_t length = strcspn(at + 1, " ");
        markup(page->body->stream, "%s <span>%s</span>",
               arena_copy(page->out->arena, text, (size_t)(at - text)),
               arena_copy(page->out->arena, at + 1, length));
        text = at + 1 + length;
    }
    markup(page->body->stream, "%s</dd>\n", text);
}

void page_item(Page *page, char mark, const char *first, const char *second) {
    FILE *f = page->body->stream;
    size_t next = sizeof blocks / sizeof *blocks - 1;
    while (blocks[next].mark != mark) {
        next--;
    }
    if (next != page->block || mark == '+') {
        fprintf(f, "%s%s", blocks[page->block].end, blocks[next].begin);
        page->block = next;
    }
    markup(f, blocks[next].item, first, second);
    if (mark == ':') {
        page_words(page, second);
    }
}

void page_open(Page *page, const char *path, const char *title) {
    *page = (Page){.out = out_open(path), .level = 2};
    page->body = memory_open(page->out->arena);
    page->contents = memory_open(page->out->arena);
    fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          /* Even a string that slipped through unescaped could load and run nothing. */
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
          "style-src 'unsafe-inline'; img-src data:\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n",
          page->out->stream);
    markup(page->out->stream, "<title>%s</title>\n<style>\n", title);
    fputs((const char *)page_style[0].text, page->out->stream);
    markup(page->out->stream, "</style>\n</head>\n<body>\n<header>\n<h1>%s</h1>\n</header>\n",
           title);
}

void page_commit(Page *page) {
    FILE *f = page->out->stream;
    page_item(page, 0, "", "");
    if (page->sections > 1) {
        fprintf(f, "<nav aria-label=\"Contents\">%s</nav>\n", memory_text(page->contents));
    }
    fputs("<main>\n", f);
    const char *body = memory_text(page->body); /* makes its length known */
    fwrite(body, 1, page->body->length, f);
    fputs("</main>\n<footer>refsae " REFSAE_VERSION "</footer>\n</body>\n</html>\n", f);
    out_commit(page->out);
}

void page_section(Page *page, const char *heading) {
    page_item(page, 0, "", "");
    int number = ++page->sections, level = page->level;
    markup(page->body->stream, "<h%d id='s%d'>%s</h%d>\n", level, number, heading, level);
    if (level == 2) {
        markup(page->contents->stream, "<a href='#s%d'>%s</a> ", number, heading);
    }
}

void page_chapter(Page *page, const char *heading) {
    page->level = 2;
    page_section(page, heading);
    page->level = 3;
}

void page_figure(Page *page, const char *caption, const char *svg) {
    page_item(page, 0, "", "");
    markup(page->body->stream, "<figure><figcaption>%s</figcaption><div>\n", caption);
    fprintf(page->body->stream, "%s</div></figure>\n", svg);
}

void page_table(Page *page, const char *caption) {
    page->rows = 0;
    page_item(page, '+', caption, "");
}

void page_row(Page *page) {
    static const char *const between[] = {"<thead><tr>", "</tr></thead><tbody>\n<tr>"};
    fputs(page->rows < 2 ? between[page->rows] : "</tr>\n<tr>", page->body->stream);
    page->rows++;
}

void page_cell(Page *page, bool number, const char *text) {
    bool head = page->rows == 1;
    fprintf(page->body->stream, "<%s%s>", head ? "th scope=\"col\"" : "td",
            number ? " class=\"n\"" : "");
    markup(page->body->stream, head ? "%s</th>" : "%s</td>", text);
}

/* Three bytes are four letters. */
static void write_base64(FILE *f, const unsigned char *data, size_t size) {
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        uint32_t word = 0;
        for (size_t j = i; j < i + 3; j++) {
            word = word << 8 | (j < size ? data[j] : 0);
        }
        for (size_t j = 0; j < 4; j++) {
            putc(i + j > size ? '=' : letters[word >> (18 - 6 * j) & 63], f);
        }
    }
}

void page_cell_picture(Page *page, const char *path) {
    enum {
        LARGEST = 1 << 20
    };
    FileMap map = {.size = 0};
    Error unread;
    ATTEMPT(&unread, map = file_map(page->out->arena, path));
    fail_for_resources(&unread);
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    bool read = unread.status == STATUS_OK && map.size >= 8 && map.size <= LARGEST;
    bool png = read && memcmp(map.data, "\x89PNG\r\n\x1a\n", 8) == 0,
         jpeg = read && memcmp(map.data, "\xff\xd8\xff", 3) == 0;
    fputs("<td>", page->body->stream);
    if (png || jpeg) {
        markup(page->body->stream, "<img alt='%s' src='data:image/%s;base64,", name,
               png ? "png" : "jpeg");
        write_base64(page->body->stream, map.data, map.size);
        fputs("\">", page->body->stream);
    } else {
        markup(page->body->stream, "%s", name);
    }
    fputs("</td>", page->body->stream);
}

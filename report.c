/* report.c: the HTML report. See report.h. */
#include "report.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- text in XML and HTML ---- */

/* Characters that XML 1.0 cannot hold, and broken UTF-8, become U+FFFD. `most`: characters to show,
 * an ellipsis for the rest. */
void text_put(FILE *stream, const char *text, size_t most) {
    size_t length = strlen(text), shown = 0;
    for (size_t i = 0; i < length; shown++) {
        uint32_t code;
        size_t step = utf8_decode(text + i, length - i, &code);
        if (shown + 1 >= most && i + (step == 0 ? 1 : step) < length) {
            fputs("\xE2\x80\xA6", stream);
            return;
        }
        if (step == 0 || code == 0xFFFE || code == 0xFFFF ||
            (code < 0x20 && code != '\n' && code != '\t' && code != '\r')) {
            fputs("\xEF\xBF\xBD", stream);
            step = step == 0 ? 1 : step;
        } else if (code == '&' || code == '<' || code == '>' || code == '"' || code == '\'') {
            fprintf(stream, "&#%u;", (unsigned)code);
        } else {
            fwrite(text + i, 1, step, stream);
        }
        i += step;
    }
}

static void put_all(FILE *stream, const char *text) {
    text_put(stream, text, SIZE_MAX);
}

/* Escapes what printf makes of the arguments. */
static void put_format(FILE *stream, const char *format, va_list arguments) {
    char small[512];
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(small, sizeof small, format, arguments);
    if (length < (int)sizeof small) {
        put_all(stream, small);
    } else {
        Arena *scratch = arena_new();
        char *text = arena_alloc(scratch, (size_t)length + 1, 1);
        vsnprintf(text, (size_t)length + 1, format, again);
        put_all(stream, text);
        arena_free(scratch);
    }
    va_end(again);
}

void text_number(char text[TEXT_NUMBER_SIZE], double value, int digits) {
    double size = fabs(value);
    if (!isfinite(value)) {
        snprintf(text, TEXT_NUMBER_SIZE, "%s",
                 isnan(value) ? "\xE2\x80\x93"
                 : value > 0  ? "\xE2\x88\x9E"
                              : "\xE2\x88\x92\xE2\x88\x9E");
        return;
    }
    char plain[32];
    snprintf(plain, sizeof plain, "%.*g", digits, value);
    if (size >= 1e4 && size < 1e6) {
        snprintf(plain, sizeof plain, "%.0f", value);
    } else if (strchr(plain, 'e') != NULL) {
        snprintf(plain, sizeof plain, "%.*e", digits - 1, value);
    }
    size_t used = 0;
    char *e = strchr(plain, 'e');
    int power = e == NULL ? 0 : (int)strtol(e + 1, NULL, 10);
    if (e != NULL) {
        *e = 0;
        if (strchr(plain, '.') != NULL) {
            for (char *last = e - 1; *last == '0' || *last == '.'; last--) {
                bool point = *last == '.';
                *last = 0;
                if (point) {
                    break;
                }
            }
        }
    }
    if (value < 0) {
        used = (size_t)snprintf(text, TEXT_NUMBER_SIZE, "\xE2\x88\x92"); /* a true minus */
    }
    const char *mantissa = plain + (plain[0] == '-');
    bool one = e != NULL && strcmp(mantissa, "1") == 0;
    used += (size_t)snprintf(text + used, TEXT_NUMBER_SIZE - used, "%s%s", one ? "" : mantissa,
                             e == NULL ? ""
                             : one     ? "10"
                                       : "\xC3\x97"
                                         "10");
    if (e != NULL) {
        static const char *const raised[10] = {
            "\xE2\x81\xB0", "\xC2\xB9",     "\xC2\xB2",     "\xC2\xB3",     "\xE2\x81\xB4",
            "\xE2\x81\xB5", "\xE2\x81\xB6", "\xE2\x81\xB7", "\xE2\x81\xB8", "\xE2\x81\xB9"};
        char exponent[16];
        snprintf(exponent, sizeof exponent, "%d", abs(power));
        used += (size_t)snprintf(text + used, TEXT_NUMBER_SIZE - used, "%s",
                                 power < 0 ? "\xE2\x81\xBB" : "");
        for (const char *c = exponent; *c != 0; c++) {
            used += (size_t)snprintf(text + used, TEXT_NUMBER_SIZE - used, "%s", raised[*c - '0']);
        }
    }
}

/* ---- the report ---- */

enum {
    OPEN_NOTHING,
    OPEN_VALUES,
    OPEN_FACTS,
    OPEN_TABLE,
    OPEN_FIGURE,
    OPEN_PICTURES
};

static const char report_style[] =
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--muted:#59636e;--line:#d9dee4;"
    "--tint:#f4f6f8;--link:#00609a}\n"
    "@media screen and (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;"
    "--muted:#9da7b3;--line:#30363d;--tint:#1d2228;--link:#79bdf0}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0 auto;max-width:54rem;padding:2rem 1rem 4rem;background:var(--paper);"
    "color:var(--ink);font:16px/1.55 " REPORT_FONT ";overflow-wrap:anywhere}\n"
    "h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.3rem;margin:2.6rem 0 "
    ".6rem;"
    "padding-top:.6rem;border-top:1px solid var(--line)}p{margin:.7rem 0;max-width:44rem}"
    "h3{font-size:1.1rem;margin:2rem 0 .5rem}.lead{color:var(--muted)}.lead b{color:var(--ink)}\n"
    "a{color:var(--link)}header p,figcaption,caption,footer{color:var(--muted)}\n"
    "nav{margin:1.2rem 0;font-size:.95rem}nav a{margin-right:1.1rem;white-space:nowrap}\n"
    ".values{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.7rem;"
    "margin:1.1rem 0}.values div{border:1px solid var(--line);border-radius:.6rem;background:"
    "var(--tint);padding:.7rem .9rem}.values b{display:block;font-size:1.5rem;line-height:1.25;"
    "font-variant-numeric:tabular-nums}.values span{color:var(--muted);font-size:.88rem}\n"
    ".scroll{overflow:auto;max-height:34rem;border:1px solid var(--line);border-radius:.5rem;"
    "margin:1rem 0}table{border-collapse:collapse;width:100%;font-size:.9rem;"
    "font-variant-numeric:tabular-nums;overflow-wrap:normal}caption{text-align:left;padding:.5rem "
    ".75rem}th,td{padding:.32rem .75rem;text-align:left;vertical-align:top}td{border-top:1px solid "
    "var(--line);min-width:4rem;max-width:26rem;overflow-wrap:break-word}th{position:sticky;top:0;"
    "background:var(--tint);white-space:nowrap}td.n,th.n{text-align:right;white-space:nowrap}\n"
    "figure{margin:1.3rem 0}figure>div{overflow-x:auto;border:1px solid var(--line);"
    "border-radius:.5rem}figure svg{display:block;width:100%;height:auto}"
    "caption span{position:sticky;left:.75rem;display:inline-block;max-width:min(48rem,85vw)}\n"
    "figcaption,.pictures span{font-size:.9rem;padding:.4rem .1rem}\n"
    ".pictures{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}.pictures div{width:11rem}"
    ".pictures img{width:100%;height:auto;border-radius:.4rem;display:block}.pictures span{display:"
    "block;color:var(--muted)}\n"
    "dl{display:grid;grid-template-columns:minmax(6rem,max-content) 1fr;gap:.3rem 1.1rem;"
    "font-size:.92rem}dt{color:var(--muted)}dd,pre{margin:0;font-family:ui-monospace,Menlo,"
    "Consolas,"
    "monospace;font-size:.86rem}pre{background:var(--tint);border:1px solid var(--line);"
    "border-radius:.5rem;padding:.8rem;overflow-x:auto;white-space:pre-wrap}\n"
    "footer{margin-top:3rem;font-size:.85rem}\n"
    "@media(max-width:34rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}}\n"
    "@media print{body{max-width:none;padding:0}.scroll{overflow:visible;max-height:none}"
    "figure svg{min-width:0!important}figure,tr,.values "
    "div{break-inside:avoid}nav{display:none}}\n";

void report_open(Report *report, const char *path, const char *title, const char *subtitle) {
    *report = (Report){.out = out_open(path), .open = OPEN_NOTHING};
    report->body = memory_open(report->out->arena);
    report->contents = memory_open(report->out->arena);
    FILE *f = report->out->stream;
    /* The policy: even a string that slipped through unescaped could load and run nothing. */
    fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
          "style-src 'unsafe-inline'; img-src data:\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>",
          f);
    put_all(f, title);
    fprintf(f, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<header>\n<h1>", report_style);
    put_all(f, title);
    fputs("</h1>\n", f);
    if (subtitle != NULL) {
        fputs("<p>", f);
        put_all(f, subtitle);
        fputs("</p>\n", f);
    }
    fputs("</header>\n", f);
}

static void report_close_row(Report *report) {
    for (; report->column != 0 && report->column < report->columns; report->column++) {
        fputs("<td></td>", report->body->stream);
    }
    fputs(report->column == 0 ? "" : "</tr>\n", report->body->stream);
    report->column = 0;
}

/* Ends what the last call left open, unless it is of the kind that the next call continues. */
static void report_turn(Report *report, int next) {
    static const char *const ends[] = {
        "", "</div>\n", "</dl>\n", "</tbody></table></div>\n", "</div></figure>\n", "</div>\n"};
    bool continued = next == report->open &&
                     (next == OPEN_VALUES || next == OPEN_FACTS || next == OPEN_PICTURES);
    if (continued) {
        return;
    }
    if (report->open == OPEN_TABLE) {
        report_close_row(report);
    }
    fputs(ends[report->open], report->body->stream);
    report->open = next;
    fputs(next == OPEN_VALUES     ? "<div class=\"values\">\n"
          : next == OPEN_FACTS    ? "<dl>\n"
          : next == OPEN_PICTURES ? "<div class=\"pictures\">\n"
                                  : "",
          report->body->stream);
}

void report_commit(Report *report) {
    report_turn(report, OPEN_NOTHING);
    FILE *f = report->out->stream;
    if (report->sections > 1) {
        fprintf(f, "<nav>%s</nav>\n", memory_text(report->contents));
    }
    const char *body = memory_text(report->body); /* makes its length known */
    fputs(REPORT_BODY, f);
    fwrite(body, 1, report->body->length, f);
    fputs(REPORT_BODY_END "<footer>refsae " REFSAE_VERSION "</footer>\n</body>\n</html>\n", f);
    out_commit(report->out);
}

void report_section(Report *report, const char *heading) {
    FILE *body = report->body->stream;
    report_turn(report, OPEN_NOTHING);
    report->sections++;
    fprintf(body, "<h2 id=\"s%d\">", report->sections);
    put_all(body, heading);
    fputs("</h2>\n", body);
    fprintf(report->contents->stream, "<a href=\"#s%d\">", report->sections);
    put_all(report->contents->stream, heading);
    fputs("</a> ", report->contents->stream);
}

void report_paragraph(Report *report, const char *format, ...) {
    FILE *body = report->body->stream;
    va_list arguments;
    report_turn(report, OPEN_NOTHING);
    fputs("<p>", body);
    va_start(arguments, format);
    put_format(body, format, arguments);
    va_end(arguments);
    fputs("</p>\n", body);
}

void report_value(Report *report, const char *label, const char *format, ...) {
    FILE *body = report->body->stream;
    va_list arguments;
    report_turn(report, OPEN_VALUES);
    fputs("<div><b>", body);
    va_start(arguments, format);
    put_format(body, format, arguments);
    va_end(arguments);
    fputs("</b><span>", body);
    put_all(body, label);
    fputs("</span></div>\n", body);
}

void report_fact(Report *report, const char *name, const char *format, ...) {
    FILE *body = report->body->stream;
    va_list arguments;
    report_turn(report, OPEN_FACTS);
    fputs("<dt>", body);
    put_all(body, name);
    fputs("</dt><dd>", body);
    va_start(arguments, format);
    put_format(body, format, arguments);
    va_end(arguments);
    fputs("</dd>\n", body);
}

void report_digest(Report *report, const char *name, const char *path) {
    static const char *const checkpoints[] = {"model.safetensors", "model.safetensors.index.json"};
    char hex[65];
    Error unread;
    if (path == NULL) {
        return;
    }
    if (path_is_directory(path)) {
        Arena *scratch = arena_new();
        for (size_t i = 0; i < 2; i++) {
            char *file = path_join(scratch, path, checkpoints[i]);
            if (path_exists(file)) {
                report_digest(report, name, file);
                break;
            }
        }
        arena_free(scratch);
        return;
    }
    ATTEMPT(&unread, sha256_file(path, hex));
    if (unread.status == STATUS_OK) {
        report_fact(report, name, "%s  sha256 %s", path, hex);
    } else {
        report_fact(report, name, "%s", path);
    }
}

void report_code(Report *report, const char *text) {
    FILE *body = report->body->stream;
    report_turn(report, OPEN_NOTHING);
    fputs("<pre>", body);
    put_all(body, text);
    fputs("</pre>\n", body);
}

void report_table(Report *report, const char *caption, const char *columns) {
    FILE *body = report->body->stream;
    report_turn(report, OPEN_TABLE);
    report->column = report->columns = 0;
    report->numeric = 0;
    fputs("<div class=\"scroll\" tabindex=\"0\"><table>", body);
    if (caption != NULL) {
        fputs("<caption><span>", body);
        put_all(body, caption);
        fputs("</span></caption>", body);
    }
    fputs("<thead><tr>", body);
    for (const char *s = columns; report->columns < 64;) {
        size_t length = strcspn(s, "|");
        bool number = *s == '#';
        char title[128];
        snprintf(title, sizeof title, "%.*s", (int)length - number, s + number);
        report->numeric |= (uint64_t)number << report->columns++;
        fputs(number ? "<th class=\"n\">" : "<th>", body);
        put_all(body, title);
        fputs("</th>", body);
        if (s[length] == 0) {
            break;
        }
        s += length + 1;
    }
    fputs("</tr></thead><tbody>\n", body);
}

static void cell_begin(Report *report) {
    if (report->column == report->columns) {
        report_close_row(report);
    }
    fputs(report->column == 0 ? "<tr>" : "", report->body->stream);
    fputs((report->numeric >> report->column & 1) != 0 ? "<td class=\"n\">" : "<td>",
          report->body->stream);
    report->column++;
}

void report_cell(Report *report, const char *format, ...) {
    va_list arguments;
    cell_begin(report);
    va_start(arguments, format);
    put_format(report->body->stream, format, arguments);
    va_end(arguments);
    fputs("</td>", report->body->stream);
}

void report_cell_number(Report *report, double value) {
    char text[TEXT_NUMBER_SIZE];
    text_number(text, value, 4);
    if (fabs(value) >= 1e-4 &&
        fabs(value) < 1e3) { /* trailing zeros keep a column's points in line */
        snprintf(text, sizeof text, "%s%#.4g", value < 0 ? "\xE2\x88\x92" : "", fabs(value));
    }
    cell_begin(report);
    fprintf(report->body->stream, "%s</td>", text);
}

FILE *report_figure(Report *report, const char *caption) {
    report_turn(report, OPEN_FIGURE);
    fputs("<figure><figcaption>", report->body->stream);
    put_all(report->body->stream, caption);
    fputs("</figcaption><div>\n", report->body->stream);
    return report->body->stream;
}

void report_raw(Report *report, const char *html, size_t length) {
    report_turn(report, OPEN_NOTHING);
    fwrite(html, 1, length, report->body->stream);
}

static void put_base64(FILE *stream, const unsigned char *data, size_t size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        size_t n = size - i < 3 ? size - i : 3;
        uint32_t word = (uint32_t)data[i] << 16 | (n > 1 ? (uint32_t)data[i + 1] << 8 : 0) |
                        (n > 2 ? data[i + 2] : 0);
        putc(digits[word >> 18], stream);
        putc(digits[word >> 12 & 63], stream);
        putc(n > 1 ? digits[word >> 6 & 63] : '=', stream);
        putc(n > 2 ? digits[word & 63] : '=', stream);
    }
}

void report_picture(Report *report, const void *data, size_t size, const char *mime,
                    const char *caption) {
    FILE *body = report->body->stream;
    report_turn(report, OPEN_PICTURES);
    fprintf(body, "<div><img alt=\"\" src=\"data:%s;base64,", mime);
    put_base64(body, data, size);
    fputs("\"><span>", body);
    put_all(body, caption);
    fputs("</span></div>\n", body);
}

/* report_merge.c: one page from those of several folders. A report's sections are copied from
 * between the marks that report.c writes around them; the part that stems from the page that is
 * about to be replaced has a mark of its own, so that merging again finds what merging has moved.
 */
#define _XOPEN_SOURCE 700 /* realpath */
#include "json.h"
#include "report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MERGED "<!--refsae merged-->\n"
#define OWN "<!--refsae own-->\n"
#define OWN_END "<!--/refsae own-->\n"
#define TITLE "<p class=\"lead\"><b>"

typedef struct Text { /* bytes of a mapped file */
    const char *data;
    size_t length;
} Text;

typedef struct Part {
    Text title, subtitle, body; /* of report.html; HTML already */
    bool own;                   /* the page that will be replaced */
} Part;

/* Where `what` begins in text; length if nowhere. */
static size_t find(Text text, const char *what) {
    size_t n = strlen(what);
    for (size_t i = 0; i + n <= text.length; i++) {
        const char *at = memchr(text.data + i, what[0], text.length - n + 1 - i);
        if (at == NULL) {
            break;
        }
        i = (size_t)(at - text.data);
        if (memcmp(at, what, n) == 0) {
            return i;
        }
    }
    return text.length;
}

static Text after(Text text, size_t skip) {
    skip = skip < text.length ? skip : text.length;
    return (Text){text.data + skip, text.length - skip};
}

/* Between the first `open` and the next `close`; empty if either is missing. */
static Text between(Text text, const char *open, const char *close) {
    Text rest = after(text, find(text, open) + strlen(open));
    size_t end = find(rest, close);
    return (Text){rest.data, end < rest.length ? end : 0};
}

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* ---- what a folder holds ---- */

/* A file of a folder; one that is missing or cannot be read is as an empty one. */
static Text file_text(Arena *arena, const char *path) {
    FileMap map;
    Error unread;
    ATTEMPT(&unread, map = file_map(arena, path));
    return unread.status == STATUS_OK ? (Text){(const char *)map.data, map.size} : (Text){"", 0};
}

/* The same of one that is JSON: NULL. */
static const Json *file_json(Arena *arena, const char *path) {
    const Json *volatile json = NULL;
    Error unread;
    ATTEMPT(&unread, json = json_read_file(arena, path));
    return json;
}

static Part part_open(Arena *arena, const char *path, const char *out) {
    Part part = {.own = same_file(path, out)};
    Text page = file_text(arena, path);
    if (!utf8_valid(page.data, page.length)) {
        return part;
    }
    part.title = between(page, "<h1>", "</h1>");
    part.subtitle = between(between(page, "</h1>", "</header>"), "<p>", "</p>");
    part.body = between(page, REPORT_BODY, REPORT_BODY_END);
    if (find(part.body, MERGED) < part.body.length) {
        Text own = between(part.body, OWN, OWN_END);
        part.title = between(own, TITLE, "</b>");
        part.subtitle = between(own, "</b> ", "</p>\n");
        part.body = after(own, find(own, "</p>\n") + strlen("</p>\n"));
    }
    return part;
}

/* A curve that refsae drew, as it stands. */
static void say_loss(Report *report, Text svg) {
    static const char begin[] = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rf\"";
    size_t end = find(svg, "</svg>") + strlen("</svg>");
    if (find(svg, begin) == 0 && end <= svg.length && utf8_valid(svg.data, end)) {
        fwrite(svg.data, 1, end, report_figure(report, "Loss of the adapter's training"));
    }
}

/* A cell of a CSV line without quotes, as a number; false if there is none. */
static bool csv_cell(Text line, size_t column, double *value) {
    char text[64], *end;
    for (; column > 0; column--) {
        size_t comma = find(line, ",");
        if (comma == line.length) {
            return false;
        }
        line = after(line, comma + 1);
    }
    size_t length = find(line, ",");
    if (length == 0 || length >= sizeof text) {
        return false;
    }
    memcpy(text, line.data, length);
    text[length] = '\0';
    *value = strtod(text, &end);
    return *end == '\0' || *end == '\r';
}

/* train.csv: steps, first and last loss. */
static void say_training(Report *report, Text rest) {
    Text header = {rest.data, find(rest, "\n")};
    size_t column = 0, steps = 0;
    double first = 0, last = 0, value;
    bool known = false;
    for (Text cell = header; !known && cell.length > 0; column += known ? 0 : 1) {
        size_t comma = find(cell, ",");
        known = comma == strlen("loss") && memcmp(cell.data, "loss", comma) == 0;
        cell = after(cell, comma + 1);
    }
    for (rest = after(rest, header.length + 1); known && rest.length > 0;) {
        Text line = {rest.data, find(rest, "\n")};
        rest = after(rest, line.length + 1);
        if (csv_cell(line, column, &value)) {
            first = steps++ == 0 ? value : first;
            last = value;
        }
    }
    if (steps > 0) {
        report_value(report, "training steps", "%zu", steps);
        report_value(report, "loss of the first step (nats)", "%.3f", first);
        report_value(report, "loss of the last step (nats)", "%.3f", last);
    }
}

/* Numbers of scores.json, those of an object inside under both names: "yes no f1". All but the
 * counts are shares. */
static void say_scores(Report *report, const Json *object, const char *outer) {
    static const char counts[] = " questions skipped scored ";
    for (const Json *v = object->child; v != NULL; v = v->next) {
        char label[96], word[48];
        snprintf(label, sizeof label, "%.40s%s%.40s", outer, *outer != '\0' ? " " : "", v->key);
        snprintf(word, sizeof word, " %.40s ", v->key);
        for (char *c = label; *c != '\0'; c++) {
            *c = *c == '_' ? ' ' : *c;
        }
        if (json_is(v, JSON_NUMBER) && strstr(counts, word) == NULL) {
            report_value(report, label, "%.1f %%", 100 * json_double(v));
        } else if (json_is(v, JSON_NUMBER)) {
            report_value(report, label, "%.0f", json_double(v));
        } else if (json_is(v, JSON_OBJECT) && *outer == '\0') {
            say_scores(report, v, v->key);
        }
    }
}

/* Sections one level down, with ids of their own; and their line of the table of contents. */
static void say_sections(Report *report, Text body) {
    unsigned long id = 0;
    while (body.length > 0) {
        static const char *const open[2] = {"<h2 id=\"", "<h3 id=\""}, *const close[2] = {"</h2>",
                                                                                          "</h3>"};
        size_t level = find(body, open[1]) < find(body, open[0]);
        size_t at = find(body, open[level]);
        report_raw(report, body.data, at);
        body = after(body, at);
        size_t end = find(body, close[level]);
        if (end == body.length) {
            return;
        }
        Text heading = between(body, "\">", close[level]);
        char anchor[64];
        snprintf(anchor, sizeof anchor, "s%d-%lu", report->sections, ++id);
        fprintf(report->body->stream, "<h3 id=\"%s\">%.*s</h3>", anchor, (int)heading.length,
                heading.data);
        fprintf(report->contents->stream, "<a href=\"#%s\">%.*s</a> ", anchor, (int)heading.length,
                heading.data);
        body = after(body, end + strlen(close[level]));
    }
}

static void say_part(Report *report, const Part *part) {
    report_raw(report, OWN, part->own ? strlen(OWN) : 0);
    report_raw(report, TITLE, strlen(TITLE));
    report_raw(report, part->title.data, part->title.length);
    report_raw(report, "</b> ", strlen("</b> "));
    report_raw(report, part->subtitle.data, part->subtitle.length);
    report_raw(report, "</p>\n", strlen("</p>\n"));
    say_sections(report, part->body);
    report_raw(report, OWN_END, part->own ? strlen(OWN_END) : 0);
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

static void say_folder(Report *report, const char *directory, const Part *part) {
    Arena *scratch = arena_new();
    FILE *body = report->body->stream, *contents = report->contents->stream;
    fputs(report->sections > 0 ? "<br><b>" : "<b>", contents);
    report_section(report, folder_name(scratch, directory));
    fputs("</b>", contents);
    long before = ftell(body);
    say_training(report, file_text(scratch, path_join(scratch, directory, "train.csv")));
    say_loss(report, file_text(scratch, path_join(scratch, directory, "loss.svg")));
    const Json *scores = file_json(scratch, path_join(scratch, directory, "scores.json"));
    if (json_is(scores, JSON_OBJECT)) {
        report_paragraph(report, "Questions about images, answered and scored:");
        say_scores(report, scores, "");
    }
    if (part->body.length > 0) {
        say_part(report, part);
    } else if (ftell(body) == before) {
        report_paragraph(report, "This folder holds neither train.csv, scores.json nor a report.");
    }
    arena_free(scratch);
}

/* ---- the page ---- */

void report_merge(const char *out, const char *title, char *const *directories, size_t count) {
    Arena *arena = arena_new();
    Part *parts = arena_alloc(arena, count, sizeof *parts);
    Report report;
    for (size_t i = 0; i < count; i++) { /* all are read before `out` is replaced */
        if (!path_is_directory(directories[i])) {
            fail(STATUS_INPUT, "%s: no such folder", directories[i]);
        }
        parts[i] = part_open(arena, path_join(arena, directories[i], "report.html"), out);
    }
    report_open(&report, out, title != NULL ? title : "refsae", NULL);
    report_raw(&report, MERGED, strlen(MERGED));
    for (size_t i = 0; i < count; i++) {
        say_folder(&report, directories[i], &parts[i]);
    }
    report_commit(&report);
    arena_free(arena);
}

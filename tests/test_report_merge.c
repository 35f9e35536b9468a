/* One page from several folders: whatever is there is shown once, merging again changes nothing,
 * and what is missing, broken or hostile does no harm. */
#define _XOPEN_SOURCE 700 /* mkdtemp */
#include "report.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static char folder[64];
static Arena *arena; /* of one test */

static void setup(void) {
    arena = arena_new();
    strcpy(folder, "/tmp/refsae-merge-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
}

static void teardown(void) {
    arena_free(arena);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(report_merge, .init = setup, .fini = teardown);

/* "FOLDER/name"; four live at a time. */
static char *at(const char *name) {
    static char paths[4][128];
    static int next;
    next = (next + 1) % 4;
    snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
    return paths[next];
}

static void make_folder(const char *name) {
    path_make_directory(at(name));
}

static void put(const char *name, const char *text) {
    FILE *f = fopen(at(name), "wb");
    cr_assert_not_null(f);
    fputs(text, f);
    cr_assert_eq(fclose(f), 0);
}

static char *slurp(const char *name) {
    FileMap map = file_map(arena, at(name));
    return arena_copy(arena, (const char *)map.data, map.size);
}

static void put_report(const char *name, const char *title, const char *mark) {
    Report report;
    report_open(&report, at(name), title, "a <subtitle>");
    report_section(&report, "First & best");
    report_paragraph(&report, "%s one", mark);
    report_section(&report, "Second");
    report_table(&report, "c", "a|#b");
    report_cell(&report, "%s two", mark);
    report_cell_number(&report, 2);
    report_commit(&report);
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (; (text = strstr(text, part)) != NULL; text++) {
        count++;
    }
    return count;
}

static void merge(const char *out, const char *a, const char *b, const char *c) {
    char *directories[3] = {at(a), at(b), at(c)}, *path = at(out);
    report_merge(path, "All <of> it", directories, 3);
}

static void assert_counts(const char *html, int n, ...) {
    va_list list;
    va_start(list, n);
    for (int i = 0; i < n; i++) {
        const char *part = va_arg(list, const char *);
        int expected = va_arg(list, int);
        cr_assert_eq(count_of(html, part), expected, "%s: %d", part, count_of(html, part));
    }
    va_end(list);
}

static void make_demo(void) {
    make_folder("demo/permuted");
    make_folder("demo/sage");
    put("demo/train.csv",
        "step,epoch,loss,lr,tokens\n1,1,3.5,0.001,7\n2,1,2.25,0.001,9\n3,1,0.125,0.001,9\n");
    put("demo/loss.svg",
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rf\"><title>LOSS</title></svg>\n");
    put("demo/scores.json",
        "{\"questions\": 60, \"exact_match\": 1, \"yes_no\": {\"f1\": 0.875, \"questions\": 1}}");
    put("demo/permuted/scores.json", "{\"questions\": 60, \"exact_match\": 0.25}");
    put_report("demo/report.html", "Mapping", "ALPHA");
    put_report("demo/sage/report.html", "SAGE", "BETA");
}

Test(report_merge, shows_every_part_once) {
    make_demo();
    merge("all.html", "demo", "demo/permuted/", "demo/sage");
    char *html = slurp("all.html");
    assert_counts(html, 18, "<title>All &#60;of&#62; it</title>", 1, ">demo</h2>", 1,
                  ">permuted</h2>", 1, ">sage</h2>", 1, "LOSS", 1, "<b>3</b>", 1, "<b>3.500</b>", 1,
                  "<b>0.125</b>", 1, "<b>60</b>", 2, "<b>100.0 %</b>", 1,
                  "<b>87.5 %</b><span>yes no f1<", 1, "<b>25.0 %</b>", 1, "ALPHA one", 1,
                  "ALPHA two", 1, "BETA one", 1, "<b>Mapping</b> a &#60;subtitle&#62;</p>", 1,
                  ">First &#38; best</h3>", 2, "<nav>", 1);
    for (int s = 1; s <= 3; s++) { /* ids: once each, and linked to once */
        for (int k = 0; k <= 2; k++) {
            char id[32], link[32];
            snprintf(id, sizeof id, k == 0 ? "id=\"s%d\"" : "id=\"s%d-%d\"", s, k);
            snprintf(link, sizeof link, k == 0 ? "href=\"#s%d\"" : "href=\"#s%d-%d\"", s, k);
            assert_counts(html, 2, id, k == 0 || s != 2, link, k == 0 || s != 2);
        }
    }
}

Test(report_merge, again_is_the_same) {
    make_demo();
    merge("all.html", "demo", "demo/permuted", "demo/sage");
    merge("demo/report.html", "demo", "demo/permuted", "demo/sage");
    char *first = slurp("demo/report.html");
    assert_counts(first, 3, "ALPHA one", 1, "BETA one", 1, "<!--refsae own-->", 1);
    for (int i = 0; i < 3; i++) {
        merge("demo/report.html", "demo", "demo/permuted", "demo/sage");
        char *next = slurp("demo/report.html");
        cr_assert_str_eq(first, next);
    }
    merge("other.html", "demo/sage", "demo", "demo/permuted");
    char *html = slurp("other.html"); /* of a merged page only what stems from that folder */
    assert_counts(html, 3, "ALPHA one", 1, "BETA one", 1, "<b>Mapping</b>", 1);
}

Test(report_merge, what_is_missing_or_broken) {
#define MERGED "<!--refsae merged-->\n"
#define EMPTY_OWN "<!--refsae own-->\n<!--/refsae own-->\n"
    static const char *const broken[] = {"",
                                         "\xFF",
                                         "<html>",
                                         REPORT_BODY "<h2 id=\"s1\">never closed" REPORT_BODY_END,
                                         REPORT_BODY "<h2 id=\"s1\"></h2>",
                                         REPORT_BODY MERGED REPORT_BODY_END,
                                         REPORT_BODY MERGED EMPTY_OWN REPORT_BODY_END};
    Error error;
    make_folder("a");
    make_folder("b");
    make_folder("c");
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        put("a/report.html", broken[i]);
        put("a/train.csv", i % 2 == 0 ? "loss\n" : "step,lo\"ss\n1,2\n,,\n");
        put("a/scores.json", i % 2 == 0 ? "[1, {}" : "[1]");
        put("a/loss.svg", i % 2 == 0 ? "<svg><script>alert(1)</script></svg>" : broken[i]);
        make_folder("b/report.html");
        merge("all.html", "a", "b", "c");
        char *html = slurp("all.html");
        assert_counts(html, 3, "<script", 0, "neither train.csv", i == 3 ? 2 : 3, "</html>", 1);
    }
    ATTEMPT(&error, merge("all.html", "a", "nowhere", "c"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "nowhere: no such folder"));
    ATTEMPT(&error, merge("nowhere/all.html", "a", "b", "c"));
    cr_assert_eq(error.status, STATUS_INPUT);
}

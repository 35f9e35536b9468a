/* SAGE's figures, sage.csv and page from a sage.json written here: what is null is absent, what
 * cannot tell methods apart says so, and hostile names break nothing. */
#include "folder.h"
#include "report.h"
#include "scratch.h"
#include "xml.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static Arena *arena; /* of one test */

static void setup(void) {
    arena = arena_new();
    folder_new();
}

static void teardown(void) {
    arena_free(arena);
    folder_remove();
}

TestSuite(sage_report, .init = setup, .fini = teardown);

static char *slurp(const char *name) {
    return read_text(arena, path_join(arena, folder, name));
}

/* ---- sage.json ---- */

static void write_share(JsonOut *json, const char *key, double value) {
    json_out(json, "%s %g %s [ %g %g ]", key, value, arena_format(arena, "%s_ci", key),
             value - 0.0625, value + 0.0625);
}

/* k = 1, 2; a score without rescaled ones where none already agrees. */
static void write_edits(JsonOut *json, double score, bool rescaled) {
    for (int k = 1; k <= 8; k *= 2) {
        json_out(json, "%s {", arena_format(arena, "%d", k));
        write_share(json, "score", score);
        json_out(json, "magnitude %g score_rescaled %g magnitude_rescaled %g }", 0.125 * k,
                 rescaled ? score / 2 : (double)NAN, rescaled ? 0.125 * k - 0.25 : (double)NAN);
    }
}

/* Every test of a method in a cross-section; the second of two attributes none already edits. */
static void write_method(JsonOut *json, const char *method, const char *const attributes[2],
                         bool resolved) {
    bool none = strcmp(method, "none") == 0, supervised = strcmp(method, "weighted") == 0;
    json_out(json, "%s {", method);
    write_share(json, "sufficiency", none ? 1 : 0.75);
    if (resolved) {
        write_share(json, "necessity", none ? 0 : 0.5);
    } else {
        json_out(json, "necessity null necessity_ci null");
    }
    for (int aware = 0; aware < (none || supervised ? 1 : 2); aware++) {
        json_out(json, "%s {", aware ? "control_aware" : "control");
        for (int a = 0; a < 2; a++) {
            json_out(json, "%s {", attributes[a]);
            if (!aware) {
                write_share(json, "none", a == 0 ? 0.25 : 0.96875);
                json_out(json, "supervised {");
                write_share(json, "score", 0.875);
                json_out(json, "magnitude %g }", 0.25);
            }
            if (!supervised) {
                write_edits(json, none ? 0.25 : 0.625, a == 0);
            }
            json_out(json, "}");
        }
        json_out(json, "}");
    }
    if (!none && !supervised) {
        json_out(json, "f1 {");
        for (int t = 0; t < 2; t++) {
            json_out(json, "%s {", t == 0 ? "0" : "0.8");
            write_share(json, "sufficiency", 1 - 0.25 * t);
            json_out(json, "necessity %g features %d }", resolved ? 0.5 : (double)NAN, 7 - t);
        }
        json_out(json, "}");
    }
    json_out(json, "}");
}

/* Two cross-sections: ablating the second moves nothing, and only the first has native SAEs. Its
 * attributes bear the same names. */
static void write_json(const char *a, const char *b) {
    const char *const names[2] = {a, b};
    static const char *const methods[] = {"none", "weighted", "sae", "random", "native"};
    static const char *const predicates[] = {"=x", "=x & Pos=ABB", "#1=x", "(IO)=f", " in {x, y}"};
    OutFile *out = out_open(path_join(arena, folder, "sage.json"));
    JsonOut json = json_out_start(out->stream, 4);
    json_out(&json, "{ task %s cross_sections {", a);
    for (int c = 0; c < 2; c++) {
        json_out(&json, "%s { curve [", names[c]);
        for (int n = 1; n <= 4; n *= 2) {
            json_out(&json, "{ nodes %d share %g }", n, c == 0 ? 0.25 * n : (double)NAN);
        }
        json_out(&json, "] }");
    }
    json_out(&json, "} tests {");
    for (int c = 0; c < 2; c++) {
        json_out(&json, "%s { resolution %g", names[c], c == 0 ? 0.5 : 0.0625);
        for (int m = 0; m < (c == 0 ? 5 : 4); m++) {
            write_method(&json, methods[m], names, c == 0);
        }
        json_out(&json, "}");
    }
    json_out(&json, "} interpretations [");
    for (int i = 0; i < 40; i++) { /* 36, 35, 34 are the best; 0.3 is reached by 7 */
        json_out(&json, "{ hook %s position %s", "blocks.2.hook_resid_pre", i % 2 == 0 ? "END" : b);
        json_out(&json, "feature %d f1 %g support %d predicate %s }", i, 0.01 * (i % 37), 100 + i,
                 arena_format(arena, "%s%s", a, predicates[i % 5]));
    }
    json_out(&json, "] interpretations_by_chance { 0.8 { features %d permuted %d } } }", 164, 3);
    out_commit(out);
    report_sage_figures(folder, 0.3);
}

static char *page(void) {
    char *directories[1] = {folder};
    folders_merge(path_join(arena, folder, "page.html"), "t", directories, 1,
                  &(const Console){.quiet = true});
    return slurp("page.html");
}

/* ---- tests ---- */

Test(sage_report, csv_has_a_row_for_every_figure) {
    write_json("IO", "S");
    char *csv = slurp("sage.csv");
    assert_counts(csv, 12, "cross_section,method,test,attribute,k_or_t,figure,value,low,high\n", 1,
                  "\nS,,,,,resolution,0.0625,,\n", 1,
                  "\nIO,sae,,,,sufficiency,0.75,0.6875,0.8125\n", 1, "\nS,sae,,,,necessity,,,\n",
                  1, /* null */
                  "\nIO,none,control,S,,none,0.96875,0.90625,1.03125\n", 1,
                  "\nS,weighted,control,IO,supervised,score,0.875,0.8125,0.9375\n", 1,
                  "\nIO,native,control_aware,IO,8,magnitude_rescaled,0.75,,\n", 1,
                  "\nIO,native,control_aware,S,8,magnitude_rescaled,,,\n", 1,
                  "\nIO,random,f1,,0.8,features,6,,\n", 1, "_ci", 0, ",control_aware,", 5 * 2 * 16,
                  ",f1,", 5 * 6);
    /* none, weighted, and the five with features */
    cr_assert_eq(count_of(csv, "\n"),
                 1 + 2 + 2 * (2 + 2 * 19) + 2 * (2 + 2 * 3) + 5 * (2 + 2 * 19 + 2 * 16 + 6));
}

Test(sage_report, figures_are_xml_and_show_each_value) {
    write_json("IO", "S");
    static const char *const names[] = {"sufficiency.svg",    "necessity.svg",    "edits.svg",
                                        "control_IO.svg",     "control_S.svg",    "kinds.svg",
                                        "f1_sufficiency.svg", "f1_necessity.svg", "nodes.svg"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        cr_assert_eq(assert_xml(slurp(names[i]), "svg"), 1, "%s", names[i]);
    }
    assert_counts(slurp("sufficiency.svg"), 4, "<title>IO · ", 4, "<title>S † · ", 3,
                  "<title>IO · native: 0.75</title>", 1, "m-3 0h6\"/>", 7); /* whiskers */
    assert_counts(slurp("necessity.svg"), 3, "<title>IO · ", 4, "<title>S † · ", 0,
                  "resolution below 0.1", 1); /* null: no bar */
    assert_counts(slurp("edits.svg"), 5, "IO · none · IO: 0.25<", 1, "S · native · IO: 0.625<", 1,
                  "· native · S: ", 0, "IO · supervised", 0, "outlined: none is above 0.9", 1);
    assert_counts(slurp("control_IO.svg"), 5, "<title>sae · 0.75: 0.3125<", 1,
                  "<title>native, aware · -0.125", 0, "<title>native, aware · −0.125: 0.3125<", 1,
                  "none 0.97: methods look alike", 1, "no values to draw", 1);
    assert_counts(slurp("f1_necessity.svg"), 3, "<title>sae · 0.8: 0.5<", 1,
                  "resolution 0.062: methods look alike", 1, "no values to draw", 1);
    assert_counts(slurp("nodes.svg"), 2, "<title>IO · 4: 1<", 1, "<title>S · ", 0);
}

/* Features 30 to 36 reach 0.3; their kinds go round in fives. */
Test(sage_report, kinds_of_predicates) {
    write_json("IO", "S");
    assert_counts(slurp("kinds.svg"), 6, "<title>What the features of F1 ≥ 0.3 stand for<", 1,
                  "resid_pre · END · value: 1<", 1, "resid_pre · S · value: 1<", 1,
                  "resid_pre · S · value &#38; form: 1<", 1, "resid_pre · END · place: 1<", 1,
                  "resid_pre · S · union: 0<", 1);
}

Test(sage_report, page_has_every_test_and_says_what_tells_nothing) {
    write_json("IO", "S");
    char *html = page();
    assert_counts(html, 9, "<svg", 9, "<dt>S</dt><dd>resolution 0.062: methods look", 1,
                  "<dt>S in IO</dt><dd>none 0.97: methods look", 1, "<dt>S in S</dt>", 1,
                  "<td>IO</td><td>native</td><td class=\"n\">0.7500 [0.688,\xC2\xA0"
                  "0.812]</td>"
                  "<td class=\"n\">0.5000 [0.438,\xC2\xA0"
                  "0.562]</td>",
                  1,
                  "<td>S</td><td>sae</td><td class=\"n\">0.7500 [0.688,\xC2\xA0"
                  "0.812]</td>"
                  "<td class=\"n\">–</td>",
                  1,
                  "<td class=\"n\">0.62 [0.562,\xC2\xA0"
                  "0.688] (0.50)</td>",
                  20, "<td>0.8</td><td class=\"n\">164</td><td class=\"n\">3</td>", 1, "_ci<", 0);
    static const int best[] = {36, 35, 34};
    html = strstr(html, "support</th><th scope=\"col\">predicate</th>");
    for (size_t i = 0; i < sizeof best / sizeof *best; i++) {
        html = strstr(html, arena_format(arena,
                                         "<td class=\"n\">%d</td><td class=\"n\">0.%d00</td>"
                                         "<td class=\"n\">%d</td>",
                                         best[i], best[i], 100 + best[i]));
        cr_assert_not_null(html, "%d", best[i]);
    }
}

Test(sage_report, hostile_names) {
    write_json("IO", "../<b>&\"'|,</svg><script>\x01\n{}%s\xF0\x9F\x98\x80");
    static const char *const names[] = {"control_.1.svg", "edits.svg",       "kinds.svg",
                                        "nodes.svg",      "sufficiency.svg", "f1_necessity.svg"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        cr_assert_eq(assert_xml(slurp(names[i]), "svg"), 1, "%s", names[i]);
    }
    char *html = page();
    assert_counts(html, 2, "<script", 0, "<svg", 9);
    cr_assert_eq(count_of(html, "<tr>"), count_of(html, "</tr>"));
}

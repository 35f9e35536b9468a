/* One page from several folders: whatever is there is shown once, merging again changes nothing,
 * and what is missing, broken or hostile does no harm. */
#include "folder.h"
#include "report.h"
#include "scratch.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static Arena *arena; /* of one test */

static void setup(void) {
    arena = arena_new();
    folder_new();
}

static void teardown(void) {
    arena_free(arena);
    folder_remove();
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
    return read_text(arena, at(name));
}

/* How its results came about. */
static void put_manifest(const char *name, const char *mark) {
    char text[256];
    snprintf(text, sizeof text,
             "{\"runs\": {\"a\": {\"command\": \"%s made --it now --so\", \"seed\": \"475\"}}}",
             mark);
    put(name, text);
}

static void merge(const char *out, const char *a, const char *b, const char *c) {
    char *directories[3] = {at(a), at(b), at(c)}, *path = at(out);
    folders_merge(path, "All <of> it", directories, 3, &(const Console){.quiet = true});
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
    put("demo/layers.json",
        "{\"examples\": 5, \"judged\": 4, \"left_out\": [\"no <picture>\"], \"convergence\": "
        "{\"factor\": 1.5, \"mse_layer\": null, \"sparsity_layer\": 7, \"published\": "
        "{\"mse_layer\": 22, \"sparsity_layer\": null}}, \"distance\": {\"mse_vlm_img\": 0.5}, "
        "\"layers\": [{\"layer\": 0, "
        "\"group\": \"g\", \"mse\": 1.25, \"permuted\": {\"mse\": 1000000}}, {\"layer\": 1, "
        "\"group\": \"g\", \"mse\": null, \"loss\": {\"sae\": -0.125}}]}");
    put("demo/sage/sage.json",
        "{\"task\": \"ioi\", \"tests\": {\"IO\": {\"resolution\": 0.5, \"none\": {\"control\": "
        "{\"S\": {\"none\": "
        "0.25}}}, "
        "\"sae\": {\"sufficiency\": 0.75, \"sufficiency_ci\": [0.5, 1], \"control\": {\"S\": "
        "{\"1\": {\"score\": 0.5, \"magnitude\": 0.25}}}}}}}");
    put_manifest("demo/manifest.json", "ALPHA");
    put_manifest("demo/sage/manifest.json", "BETA");
}

Test(report_merge, shows_every_part_once) {
    make_demo();
    merge("all.html", "demo", "demo/permuted/", "demo/sage");
    char *html = slurp("all.html");
    assert_counts(html, 18, "<title>All &#60;of&#62; it</title>", 1, ">demo</h2>", 1,
                  ">permuted</h2>", 1, ">sage</h2>", 1, "LOSS", 1, "<b>3</b>", 1, "<b>3.500</b>", 1,
                  "<b>0.125</b>", 1, "<b>60</b>", 2, "<b>100.0 %</b>", 1,
                  "<b>87.5 %</b><span>F1 of “yes”<", 1, "<b>25.0 %</b>", 1,
                  "ALPHA made <span>--it</span> now <span>--so</span></dd>", 1,
                  "<dt>MSE, image tokens</dt><dd>0.500</dd>", 1, "BETA made", 1,
                  "<b>4</b><span>of them judged", 1, "no &#60;picture&#62;", 1, "<nav ", 1);
    for (int s = 1; s <= 9; s++) { /* ids: once each */
        char id[32];
        snprintf(id, sizeof id, "id=\"s%d\"", s);
        assert_counts(html, 1, id, 1);
    }
    assert_counts(html, 6, "href=\"#", 4, "href=\"#s1\">What was found<", 1, "href=\"#s2\">demo<",
                  1, ">permuted</a>", 1, ">sage</a>", 1, "<main>", 1);
}

/* A column for every member of any line, in their order; what a line lacks is empty. */
Test(report_merge, tables_of_json) {
    make_demo();
    merge("all.html", "demo", "demo/permuted/", "demo/sage");
    char *html = slurp("all.html");
    static const char layers[] =
        "<thead><tr><th scope=\"col\" class=\"n\">layer</th><th scope=\"col\">group</th><th "
        "scope=\"col\" class=\"n\">mse</th>"
        "<th scope=\"col\" class=\"n\">permuted mse</th><th scope=\"col\" class=\"n\">loss "
        "sae</th></tr></thead><tbody>\n"
        "<tr><td class=\"n\">0</td><td>g</td><td class=\"n\">1.250</td><td class=\"n\">10⁶</td>"
        "<td></td></tr>\n"
        "<tr><td class=\"n\">1</td><td>g</td><td class=\"n\">–</td><td></td>"
        "<td class=\"n\">−0.1250</td></tr>\n</tbody>";
    static const char tests[] =
        "<thead><tr><th scope=\"col\">cross-section</th><th scope=\"col\">method</th><th "
        "scope=\"col\" class=\"n\">sufficiency</th></tr>"
        "</thead><tbody>\n<tr><td>IO</td><td>none</td><td></td></tr>\n<tr><td>IO</td><td>sae</td>"
        "<td class=\"n\">0.7500 [0.500,\xC2\xA0"
        "1.00]</td></tr>\n</tbody>";
    static const char edits[] =
        "<th scope=\"col\" class=\"n\">none</th><th scope=\"col\" "
        "class=\"n\">1</th></tr></thead><tbody>\n"
        "<tr><td>IO</td><td>none</td><td>S</td><td class=\"n\">0.2500</td><td></td></tr>\n"
        "<tr><td>IO</td><td>sae</td><td>S</td><td></td><td class=\"n\">0.50 (0.25)</td></tr>\n";
    assert_counts(html, 3, layers, 1, tests, 1, edits, 1);
}

/* What stands before the folders. */
static char *findings(const char *a, const char *b, const char *c) {
    merge("all.html", a, b, c);
    char *html = slurp("all.html"), *end = strstr(html, "<h2 id=\"s2\"");
    cr_assert_not_null(end);
    *end = '\0';
    return strstr(html, "<h2 id=\"s1\">What was found</h2>");
}

static void put_scores(const char *name, const char *tokens, const char *adapter, double exact) {
    put(name, arena_format(arena,
                           "{\"image_tokens\": \"%s\", \"adapter_sha256\": \"%s\", "
                           "\"questions\": 60, \"exact_match\": %g}",
                           tokens, adapter, exact));
}

/* A control stands beside what it controls, and beside nothing else. */
Test(report_merge, control_beside_its_own) {
    make_folder("a");
    make_folder("b");
    make_folder("c");
    put_scores("a/scores.json", "own", "abc", 0.9);
    put_scores("b/scores.json", "permuted", "abc", 0.3);
    put_scores("c/scores.json", "permuted", "other", 0.2);
    assert_counts(findings("a", "b", "c"), 4, "Of 60 questions about pictures, 90.0 %", 1,
                  "(b) it is 30.0 %", 1, "20.0 %", 0, "Control: ", 1);
    assert_counts(slurp("all.html"), 2, ">Control: questions asked with the image tokens of other",
                  2, ">Questions about images, answered", 1);
    put_scores("b/scores.json", "own", "abc", 0.3); /* the same thing twice is no control */
    assert_counts(findings("a", "b", "c"), 2, "Control: ", 0, "90.0 %", 1);
}

/* The first three pictures: the image tokens' features in the layer that matches best, and the
 * first answer; the picture itself where it can be read. */
Test(report_merge, pictures_with_answers_and_features) {
    static const char line[] = "{\"image\": \"%s\", \"layer\": %d, \"group\": \"%s\", "
                               "\"features\": [{\"feature\": %d, \"description\": \"<%s>\"}]}\n";
    const char *features = "";
    make_folder("a");
    make_folder("b");
    make_folder("c");
    put("a/layers.json", "{\"convergence\": {\"factor\": 1.5, \"mse_layer\": 1, \"published\": "
                         "{\"mse_layer\": 22}}, "
                         "\"layers\": ["
                         "{\"layer\": 0, \"group\": \"vlm_img\", \"mse\": 8, \"match\": 0.1}, "
                         "{\"layer\": 0, \"group\": \"vlm_imgtext\"}, "
                         "{\"layer\": 0, \"group\": \"llm_text\", \"mse\": 1, \"match\": 0.8}, "
                         "{\"layer\": 1, \"group\": \"vlm_img\", \"mse\": 4, \"match\": 0.3}, "
                         "{\"layer\": 1, \"group\": \"vlm_imgtext\"}, "
                         "{\"layer\": 1, \"group\": \"llm_text\", \"mse\": 3, \"match\": 0.5}]}");
    for (int i = 0; i < 4; i++) {
        const char *image = arena_format(arena, "%s/p%d.png", folder, i);
        for (int layer = 0; layer < 2; layer++) {
            features = arena_format(
                arena, "%s%s%s", features,
                arena_format(arena, line, image, layer, "vlm_img", 100 * layer + i, "seen"),
                arena_format(arena, line, image, layer, "llm_text", 777, "no"));
        }
    }
    put("a/features.jsonl", features);
    put("a/answers.jsonl", "{\"image\": \"0.png\", \"prompt\": \"no\"}\n"
                           "{\"image\": \"p1.png\", \"prompt\": \"What?\", \"text\": \"star\", "
                           "\"exact\": true}\n"
                           "{\"image\": \"p1.png\", \"prompt\": \"Again?\", \"text\": \"x\"}\n"
                           "{\"image\": \"p0.png\", \"prompt\": \"Who?\", \"text\": \"y\", "
                           "\"exact\": false}\n");
    put("p0.png", "\x89PNG\r\n\x1a\nab");
    put("p1.png", "<script>alert(1)</script>");
    char *html = findings("a", "b", "c");
    assert_counts(
        html, 10, "Image tokens: 8 in layer 0, 4 in layer 1; the text-only control there: 3.", 1,
        "Layer of 2 from which on the two are within a factor of 1.5: 1 (published: 22).<", 1,
        "at most 30.0 % of the examples (layer 1)", 1, "at most 80.0 % (layer 0)", 1,
        "<img alt=\"p0.png\" src=\"data:image/png;base64,iVBORw0KGgphYg==\">", 1,
        "<td>100 &#60;seen&#62;</td><td>Who?</td><td>y (wrong)</td>", 1,
        "<td>p1.png</td><td>101 &#60;seen&#62;</td><td>What?</td><td>star (right)</td>", 1,
        "<td>p2.png</td><td>102 &#60;seen&#62;</td><td></td><td></td>", 1, "103", 0, "777", 0);
    put("b/layers.json", "{\"layers\": [{\"layer\": 0, \"group\": \"vlm_img\", \"match\": 1},"
                         "{\"layer\": 0, \"group\": \"llm_text\", \"match\": 1}]}");
    html = findings("a", "b", "c"); /* each says which it is of */
    assert_counts(html, 3, "<b>Meaning</b> (a).", 1, "<b>Meaning</b> (b).", 1, "(a). Image t", 1);
    rename(at("a/answers.jsonl"), at("c/answers.jsonl")); /* another folder has the answers */
    put_scores("c/scores.json", "own", "5ad", 0.5);
    assert_counts(findings("a", "b", "c"), 1, "<td>What?</td>", 0);
    put("a/manifest.json", "{\"runs\": {\"analyze\": {\"inputs\": [{\"sha256\": \"5ad\"}]}}}");
    assert_counts(findings("c", "a", "b"), 1,
                  "<td>100 &#60;seen&#62;</td><td>Who?</td><td>y (wrong)", 1);
    put_scores("c/scores.json", "permuted", "5ad", 0.5);
    assert_counts(findings("a", "b", "c"), 1, "<td>What?</td>", 0);
    rename(at("c/answers.jsonl"), at("a/answers.jsonl"));
    static const char *const lines[] = {"a/answers.jsonl", "a/features.jsonl"};
    for (size_t i = 0; i < 2; i++) { /* what is there and damaged is not left out */
        Error error;
        put(lines[i], "{\"image\": \"p0.png\"}\nbroken\n");
        ATTEMPT(&error, merge("again.html", "a", "b", "c"));
        cr_assert_eq(error.status, STATUS_INPUT);
        cr_assert_not_null(strstr(error.text, arena_format(arena, "%s:2: ", lines[i])), "%s",
                           error.text);
        cr_assert(!path_exists(at("again.html")));
    }
}

static void put_sage(const char *name, const char *task, double sufficiency, int features) {
    put(name,
        arena_format(
            arena,
            "{\"task\": \"%s\", \"model\": \"m\", \"baseline\": {\"accuracy\": 0.875}, "
            "\"cross_sections\": {\"IO\": {\"nodes\": ["
            "{\"node\": \"blocks.12.attn.hook_z\", \"head\": 3, \"position\": \"END\", \"effect\": "
            "-1.5}, {\"node\": \"blocks.0.hook_mlp_out\", \"head\": null, \"position\": "
            "\"IO\"}]}}, "
            "\"tests\": {\"IO\": {\"resolution\": 0.5, \"none\": {\"control\": {\"IO\": {\"none\": "
            "0.25}}}, \"sae\": {\"sufficiency\": %g, \"recovered\": 0.5, \"necessity\": null, "
            "\"control\": {\"IO\": {\"none\": 0.25, \"supervised\": {\"score\": 0.75}, \"1\": "
            "{\"score\": 0.375}, \"2\": {\"score\": 0.5}, \"4\": {\"score\": 0.5}}, "
            "\"S\": {\"none\": 0, \"1\": {\"score\": 1}}}, "
            "\"f1\": {\"0.8\": {\"features\": %d}}}}}}",
            task, sufficiency, features));
}

/* SAEs are compared where task and model are the same. */
Test(report_merge, saes_side_by_side) {
    static const char cells[] = "<td>L12.H3\xC2\xA0z at END −1.5; L0\xC2\xA0mlp_out at IO</td><td>"
                                "0.50 (none 0.25, supervised 0.75; IO, k = 2)</td>";
    make_folder("x");
    make_folder("y");
    make_folder("z");
    put_sage("x/sage.json", "t", 0.25, 5);
    put_sage("y/sage.json", "t", 0.75, 7);
    put_sage("z/sage.json", "other", 0.125, 9);
    put("x/example.json", "{\"tokens\": [\"<bos>\", \"Ann\", \" to\"], "
                          "\"positions\": {\"IO\": 1, \"END\": 2}}");
    char *html = findings("x", "y", "z");
    assert_counts(
        html, 8, "<b>t in m</b> (x): 87.5 % of the test prompts", 1,
        "<b>other in m</b> (z): 87.5 %", 1,
        "A prompt, its positions named: &#60;bos&#62;Ann [IO] to [END]<", 1, ">recovered</th>", 2,
        ">folder</th>", 2,
        arena_format(
            arena,
            "<tr><td>IO</td><td>x</td>%s<td class=\"n\">0.2500</td><td class=\"n\">0.5000</td>"
            "<td class=\"n\">–</td><td class=\"n\">5</td></tr>\n"
            "<tr><td>IO</td><td>y</td>%s<td class=\"n\">0.7500</td><td class=\"n\">0.5000</td>"
            "<td class=\"n\">–</td><td class=\"n\">7</td></tr>\n</tbody>",
            cells, cells),
        1,
        arena_format(
            arena,
            "<tr><td>IO</td><td>z</td>%s<td class=\"n\">0.1250</td><td class=\"n\">0.5000</td>"
            "<td class=\"n\">–</td><td class=\"n\">9</td></tr>\n</tbody>",
            cells),
        1, "<tr>", 2 + 3);
    put_sage("y/sage.json", "other", 0.75, 7);
    html = findings("x", "y", "z");
    assert_counts(html, 3, "<b>t in m</b> (x)", 1, "<b>other in m</b> (y)", 1,
                  "<td class=\"n\">7</td></tr>\n<tr><td>IO</td><td>z</td>", 1);
}

/* In the order of the tokens, those of one in the file's. */
Test(report_merge, positions_of_any_kind) {
    make_folder("x");
    put_sage("x/sage.json", "t", 0.25, 5);
    put("x/example.json",
        "{\"tokens\": [\"p\", 3, \"q\", \"r\"], \"positions\": {\"S\": 2, \"IO\": 2, "
        "\"A\": 0, \"far\": 4, \"low\": -1, \"part\": 0.5, \"text\": \"1\"}}");
    assert_counts(findings("x", "x", "x"), 1, "named: p [A]q [S] [IO]r<", 1);
    put("x/example.json", "{\"tokens\": [\"p\"]}");
    assert_counts(findings("x", "x", "x"), 1, "named: p<", 1);
}

static char *many(const char *format, int count) {
    MemoryStream *text = memory_open(arena);
    for (int i = 0; i < count; i++) {
        fprintf(text->stream, format, i, i);
    }
    return memory_text(text);
}

/* Of texts in many parts: their size, not its square. */
Test(report_merge, takes_memory_as_its_files) {
    struct rusage used;
    make_folder("x");
    put_sage("x/sage.json", "t", 0.25, 5);
    put("x/layers.json", "{\"layers\": [{\"layer\": 0, \"group\": \"vlm_img\", \"match\": 1},"
                         "{\"layer\": 0, \"group\": \"llm_text\", \"match\": 1}]}");
    put("x/features.jsonl",
        arena_format(
            arena, "{\"image\": \"a\", \"layer\": 0, \"group\": \"vlm_img\", \"features\": [%s0]}",
            many("0,", 40000)));
    put("x/example.json", arena_format(arena, "{\"tokens\": [%s\"\"], \"positions\": {%s\"\": 0}}",
                                       many("\"a\",", 20000), many("\"%d\": %d,", 20000)));
    assert_counts(findings("x", "x", "x"), 1, "named: a [0] []a [1]a [2]a", 1);
    getrusage(RUSAGE_SELF, &used);
    cr_assert(used.ru_maxrss < 1 << 18, "%ld KiB", used.ru_maxrss);
}

Test(report_merge, again_is_the_same) {
    make_demo();
    merge("all.html", "demo", "demo/permuted", "demo/sage");
    merge("demo/report.html", "demo", "demo/permuted", "demo/sage");
    char *first = slurp("demo/report.html");
    assert_counts(first, 2, "ALPHA made", 1, "BETA made", 1);
    for (int i = 0; i < 3; i++) {
        merge("demo/report.html", "demo", "demo/permuted", "demo/sage");
        char *next = slurp("demo/report.html");
        cr_assert_str_eq(first, next);
    }
}

Test(report_merge, what_is_missing_or_broken) {
    static const char *const odd[] = {"{}", "{\"runs\": 1}", "{\"runs\": {\"a\": 1}}",
                                      "{\"runs\": {\"a\": {\"inputs\": [1, {}]}, \"b\": null}}"};
    Error error;
    make_folder("a");
    make_folder("b");
    make_folder("c");
    ATTEMPT(&error, merge("all.html", "a", "b", "c"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "/a: holds neither steps in train.csv"));
    cr_assert(!path_exists(at("all.html")));
    put("a/loss.svg", "<svg><script>alert(1)</script></svg>");
    put("c/scores.json", "{}");
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        put("a/manifest.json", odd[i]);
        merge("all.html", "a", "b", "c");
        char *html = slurp("all.html");
        assert_counts(html, 3, "<script", 0, "neither steps in train.csv", 2, "</html>", 1);
    }
    ATTEMPT(&error, merge("all.html", "a", "nowhere", "c"));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(error.text, "nowhere: no such folder"));
    ATTEMPT(&error, merge("nowhere/all.html", "a", "b", "c"));
    cr_assert_eq(error.status, STATUS_INPUT);
}

#define SVG "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rf\""

/* What is there and cannot be read is no part that is missing. */
Test(report_merge, what_is_damaged_is_refused_by_name) {
    static const struct {
        const char *file, *text, *says;
    } cases[] = {
        {"scores.json", "{\"questions\": 60, \"exact_m", "line 1"},
        {"scores.json", "[1]", "expected an object"},
        {"layers.json", "", "line 1"},
        {"sage.json", "\xFF", "line 1"},
        {"train.csv", "\x8F\x01\xFE noise", "not UTF-8"},
        {"train.csv", "", "no column 'loss'"},
        {"train.csv", "noise\n1\n", "no column 'loss'"},
        {"train.csv", "step,loss\n1,2\n2,", "step 2: no loss"},
        {"train.csv", "step,loss\n1,nan\n", "step 1: no loss"},
        {"manifest.json", "[1]", "expected an object"},
        {"loss.svg", SVG "><path", "ends too early"},
        {"loss.svg", SVG "><script>alert(1)</script></svg>", "no figure of refsae has '<s"},
        {"loss.svg", SVG " onload=\"alert(1)\"></svg>", "has ' onload="},
        {"loss.svg", SVG " style=\"position:fixed\"></svg>", "has ' style=\"position:"},
        {"loss.svg", SVG " style=\"min-width:1px;position:fixed\"></svg>", "has ';posit"},
        {"loss.svg", SVG " style=\"min-width:1px&#59;position:a\"></svg>", "has '&#59;"},
        {"loss.svg", SVG "><style>p{display:none}</style></svg>", "has '<style>p{"},
        {"loss.svg", SVG "><title><g></title></svg>", "has '<g></title></svg>"},
        {"loss.svg", SVG "><desc>a</title></svg>", "has '</title></svg>"},
        {"loss.svg", SVG "><textPath></svg>", "has 'Path></svg>"},
        {"loss.svg", SVG "><!-- --></svg>", "has '<!-- --></svg>"}};
    make_folder("b");
    make_folder("c");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[64], path[192];
        snprintf(name, sizeof name, "case%zu", i);
        make_folder(name);
        snprintf(path, sizeof path, "%s/%s", name, cases[i].file);
        put(path, cases[i].text);
        Error error;
        ATTEMPT(&error, merge("all.html", "b", name, "c"));
        cr_assert_eq(error.status, STATUS_INPUT, "%s: %s", path, cases[i].says);
        cr_assert_not_null(strstr(error.text, path), "%s", error.text);
        cr_assert_not_null(strstr(error.text, cases[i].says), "%s", error.text);
        cr_assert(!path_exists(at("all.html")));
    }
    make_folder("d/manifest.json");
    Error error;
    ATTEMPT(&error, merge("all.html", "b", "d", "c"));
    cr_assert_not_null(strstr(error.text, "d/manifest.json: is a directory"), "%s", error.text);
}

/* JSON of another form than ours is shown as far as it goes. */
Test(report_merge, json_of_any_form) {
    static const char *const odd[] = {
        "{}",
        "{\"layers\": 3, \"convergence\": [1], \"distance\": \"x\", \"left_out\": {\"a\": 1}}",
        "{\"layers\": [1, null, [2], {\"a\": {\"b\": {\"c\": 1}}}, {}]}",
        "{\"tests\": [[1]], \"cross_sections\": {\"x\": 1, \"y\": {\"nodes\": [{}]}}, \"task\": 5}",
        "{\"cross_sections\": [1], \"distance\": [1], \"layers\": [], \"dictionaries\": [1]}",
        "{\"tests\": {\"a\": [1], \"b\": {\"c\": {\"control\": [1], \"f1\": [1]}}}}",
        "{\"tests\": {\"a\": {\"b\": {\"f1\": {\"c\": [{}]}}}}, \"interpretations\": {\"f1\": 1}}",
        "{\"dictionaries\": {\"a\": {\"b\": {\"score\": {}}}}, \"prompts\": [], \"baseline\": 1}"};
    make_folder("a");
    make_folder("b");
    make_folder("c");
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        put("a/layers.json", odd[i]);
        put("b/sage.json", odd[i]);
        put("c/scores.json", odd[i]);
        merge("all.html", "a", "b", "c");
        char *html = slurp("all.html");
        int rows = count_of(html, "<tr>");
        assert_counts(html, 3, "</tr>", rows, "Image tokens (vlm_img)", 1, ">SAGE: ", 1);
        assert_counts(html, 2, "<p>sage.json: no task</p>", strstr(odd[i], "task") == NULL,
                      "<p>scores.json: no questions</p>", 1);
    }
}

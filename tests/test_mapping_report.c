/* The convergence layer of one's own curves and of a table that they are compared with, from a
 * result made up here: the same function reads both, each over its own layers. */
#include "json.h"
#include "report.h"
#include "scratch.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 26
};

static const char published[] = "weights/mapping_published.csv";
static Arena *arena; /* of one test */

static void setup(void) {
    arena = arena_new();
    folder_new();
}

static void teardown(void) {
    folder_remove();
    arena_free(arena);
}

TestSuite(mapping_report, .init = setup, .fini = teardown);

/* Reports the first n layers, whose curves are the published ones times `scale` (image tokens
 * alone), beside those of `compare` (NULL: none); layers.json. */
static const Json *report(size_t n, double scale, double factor, const char *compare) {
    static const Sae sae;
    LayerResult *layers = arena_alloc(arena, LAYERS, sizeof *layers);
    const char *row = read_text(arena, published);
    for (size_t i = 0; i < LAYERS; i++) {
        double v[8];
        int layer;
        row = strchr(row, '\n') + 1;
        cr_assert_eq(sscanf(row, "%d,%lf,%lf,%lf,%lf,%lf,%lf,%lf,%lf", &layer, &v[0], &v[1], &v[2],
                            &v[3], &v[4], &v[5], &v[6], &v[7]),
                     9);
        layers[i] = (LayerResult){.layer = layer, .sae = &sae};
        for (Group g = 0; g < GROUPS; g++) {
            double image = g == GROUP_IMG ? scale : 1;
            layers[i].sums[VARIANT_CLEAN][g] =
                (Sums){.mse = image * v[g], .sparsity = image * v[GROUPS + g], .n = 1};
        }
    }
    Console console = {.quiet = true, .command = "refsae analyze"};
    VlmOptions options = {.out = folder, .converge = factor};
    LayerTable table = published_read(arena, compare);
    AnalyzeResult result = {.options = &options,
                            .console = &console,
                            .layers = layers,
                            .n_layers = n,
                            .examples = 7,
                            .judged = 5};
    report_analyze(&result, &table);
    return json_read_file(arena, path_join(arena, folder, "layers.json"));
}

/* A convergence layer of layers.json; NaN: null. */
static double place(const Json *layers, bool theirs, const char *key) {
    const Json *convergence = json_get(layers, "convergence");
    const Json *value = json_get(theirs ? json_get(convergence, "published") : convergence, key);
    cr_assert_not_null(value, "%s", key);
    return json_double(value);
}

static void assert_places(const Json *layers, bool theirs, double mse, double sparsity) {
    double places[2] = {place(layers, theirs, "mse_layer"),
                        place(layers, theirs, "sparsity_layer")};
    double both = mse > sparsity ? mse : sparsity; /* the later, where there are two */
    cr_assert((isnan(mse) && isnan(places[0])) || places[0] == mse, "MSE %g", places[0]);
    cr_assert((isnan(sparsity) && isnan(places[1])) || places[1] == sparsity, "%g", places[1]);
    cr_assert(isnan(mse) || isnan(sparsity) ? isnan(place(layers, theirs, "layer"))
                                            : place(layers, theirs, "layer") == both);
}

static void assert_says(const char *file, const char *words) {
    cr_assert_not_null(strstr(read_text(arena, path_join(arena, folder, file)), words), "%s: %s",
                       file, words);
}

/* 1.5 reads 22 from the published MSE and 17 from the sparsity, however few layers one's own result
 * has; one's own curves, where they are the same, read the same. */
Test(mapping_report, published_table_is_read_as_ones_own) {
    const Json *layers = report(LAYERS, 1, 1.5, published);
    assert_places(layers, false, 22, 17);
    assert_places(layers, true, 22, 17);
    cr_assert_eq(json_get(layers, "distance")->length, 8);
    for (const Json *v = json_get(layers, "distance")->child; v != NULL; v = v->next) {
        cr_assert(strncmp(v->key, "match", 5) == 0 || json_double(v) == 0, "%s", v->key);
    }
    assert_says("mse.svg", "within 1.5x from layer 22 (published: 22)");
    assert_says("sparsity.svg", "within 1.5x from layer 17 (published: 17)");
    assert_says("report.html", "within a factor of 1.5: 22 (published: 22).</p>");
    assert_says("report.html", "within a factor of 1.5: 17 (published: 17).</p>");
    assert_says("report.html", "<b>5</b><span>of them judged</span>");

    layers = report(4, 1, 1.5, published);
    assert_places(layers, false, (double)NAN, (double)NAN);
    assert_places(layers, true, 22, 17);
    assert_says("report.html", "within a factor of 1.5: none (published: 22). In these layers");
    cr_assert_null(strstr(read_text(arena, path_join(arena, folder, "mse.svg")), "within"));
}

/* Another factor or other curves read other layers, and without a table there is none beside. */
Test(mapping_report, convergence_follows_its_inputs) {
    const Json *layers = report(LAYERS, 1, 2, published);
    assert_places(layers, true, 16, 13);
    layers = report(LAYERS, 1, 1.2, published); /* sparsity at 19: the control is the larger */
    assert_places(layers, true, (double)NAN, 20);
    layers = report(LAYERS, 1.2, 1.5, published); /* out: MSE at 25, sparsity at 17 */
    assert_places(layers, false, (double)NAN, 18);
    assert_places(layers, true, 22, 17);
    layers = report(LAYERS, 1, 1.5, NULL);
    assert_places(layers, false, 22, 17);
    cr_assert_null(json_get(json_get(layers, "convergence"), "published"));
    cr_assert_null(json_get(layers, "distance"));
    assert_says("mse.svg", "within 1.5x from layer 22<");
    assert_says("report.html", "within a factor of 1.5: 17.</p>");
}

static const char *table(const char *text) {
    const char *path = path_join(arena, folder, "table.csv");
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file);
    fputs(text, file);
    cr_assert_eq(fclose(file), 0);
    return path;
}

/* Empty lines, gaps and columns that are missing; a layer that one's own result lacks. */
Test(mapping_report, tables_of_any_form) {
    static const char *const refused[][2] = {
        {"layer,mse_vlm_img\nx,1\n", "table.csv: row 1: the first column"},
        {"layer,mse_vlm_img\n0,1\n\n0,1\n", "table.csv: row 2: the first column"},
        {"layer,mse_vlm_img\n1,1\n0,1\n", "table.csv: row 2: the first column"},
        {"layer,mse\n0,1\n", "no column named as mse_vlm_img"},
        {"layer,mse_vlm_img\n\n", "a head without layers"},
        {"", "no column named as mse_vlm_img"}};
    const Json *layers = report(2, 1, 1.5,
                                table("layer,mse_llm_text,mse_vlm_img\r\n\r\n"
                                      "0,1.252,1154.57\r\n3,1,9\r\n40,1,1.4\r\n"
                                      "41,1.4,1\n"));
    assert_places(layers, true, 40, (double)NAN);
    const Json *distance = json_get(layers, "distance");
    cr_assert_eq(distance->length, 2);
    cr_assert_float_eq(json_double(json_get(distance, "mse_vlm_img")), 1, 1e-6);
    cr_assert_eq(json_double(json_get(distance, "mse_llm_text")), 0);
    layers = report(2, 1, 1.5, table("layer,mse_llm_text,mse_vlm_img\n4,1,1\n5,1,\n6,1,1\n"));
    assert_places(layers, true, 6, (double)NAN);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        Error error;
        ATTEMPT(&error, (void)report(2, 1, 1.5, table(refused[i][0])));
        cr_assert_eq(error.status, STATUS_INPUT);
        cr_assert_not_null(strstr(error.text, refused[i][1]), "%s", error.text);
    }
}

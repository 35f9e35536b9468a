/* Golden: every number of sage.json and every score of cross_sections.csv against the reference in
 * Python (tests/reference/sage_reference.py, a float64 model), on the same prompts, for the three
 * model classes. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "json.h"

/* 1e-4 relative. Below 0.01 absolute: necessities and effects are differences of m, which is about
 * 10 here and known to 1e-7 of itself. Shares of 24 prompts are therefore compared exactly. */
static bool near(double a, double b) {
    return fabs(a - b) <= 1e-4 * fmax(fmax(fabs(a), fabs(b)), 0.01);
}

/* Members that are there and not expected fail too, through the counts. */
static void compare(const Json *expected, const Json *found, const char *path) {
    cr_assert_not_null(found, "%s: missing", path);
    cr_assert_eq(found->kind, expected->kind, "%s: another kind of value", path);
    if (json_is(expected, JSON_NUMBER)) {
        double a = json_double(expected), b = json_double(found);
        cr_assert(near(a, b), "%s: expected %.10g, found %.10g", path, a, b);
    } else if (json_is(expected, JSON_STRING)) {
        cr_assert_str_eq(found->text, expected->text, "%s", path);
    } else if (json_is(expected, JSON_ARRAY) || json_is(expected, JSON_OBJECT)) {
        cr_assert_eq(found->length, expected->length, "%s: expected %zu members, found %zu", path,
                     expected->length, found->length);
        const Json *other = found->child;
        size_t place = 0;
        for (const Json *member = expected->child; member != NULL; member = member->next) {
            char below[1024];
            if (json_is(expected, JSON_OBJECT)) {
                snprintf(below, sizeof below, "%s.%s", path, member->key);
                other = json_get(found, member->key);
            } else {
                snprintf(below, sizeof below, "%s[%zu]", path, place);
            }
            compare(member, other, below);
            other = other->next;
            place++;
        }
    }
}

/* Rows in any order: sorted by what stands before the score. */
typedef struct Row {
    char *key;
    double score;
    int chosen;
} Row;

static int by_key(const void *a, const void *b) {
    return strcmp(((const Row *)a)->key, ((const Row *)b)->key);
}

static size_t read_rows(const char *path, Row *rows, size_t most) {
    FILE *file = fopen(path, "r");
    cr_assert_not_null(file, "%s", path);
    char line[512];
    size_t n = 0;
    cr_assert_not_null(fgets(line, sizeof line, file));
    while (fgets(line, sizeof line, file) != NULL) {
        cr_assert(n < most);
        char *at = line;
        for (int comma = 0; comma < 4; comma++) {
            at = strchr(at, ',');
            cr_assert_not_null(at, "%s: %s", path, line);
            at++;
        }
        char *after;
        rows[n].score = strtod(at, &after);
        cr_assert_eq(*after, ',', "%s: %s", path, line);
        rows[n].chosen = atoi(after + 1);
        rows[n].key = calloc((size_t)(at - line) + 1, 1);
        memcpy(rows[n].key, line, (size_t)(at - line));
        n++;
    }
    fclose(file);
    qsort(rows, n, sizeof *rows, by_key);
    return n;
}

enum {
    MOST_ROWS = 4096
};

static void compare_rows(const char *expected_path, const char *path) {
    Row *expected = calloc(MOST_ROWS, sizeof *expected), *found = calloc(MOST_ROWS, sizeof *found);
    size_t n = read_rows(expected_path, expected, MOST_ROWS);
    cr_assert(n > 0);
    cr_assert_eq(read_rows(path, found, MOST_ROWS), n);
    for (size_t i = 0; i < n; i++) {
        cr_assert_str_eq(found[i].key, expected[i].key);
        cr_assert(near(found[i].score, expected[i].score), "%s: expected %.10g, found %.10g",
                  expected[i].key, expected[i].score, found[i].score);
        cr_assert_eq(found[i].chosen, expected[i].chosen, "%s", expected[i].key);
        free(found[i].key);
        free(expected[i].key);
    }
    free(found);
    free(expected);
}

static void golden(const char *name, const char *model, const char *saes, const char *task,
                   const char *options) {
    char out[] = "/tmp/refsae-sage-XXXXXX", command[2048], path[256], expected_path[256];
    const char *program = getenv("REFSAE");
    cr_assert_not_null(mkdtemp(out));
    snprintf(command, sizeof command,
             "%s sage --quiet --llm weights/%s --saes %s --task %s --out %s "
             "--prompts tests/golden/sage/%s/prompts.jsonl %s",
             program != NULL ? program : "./refsae", model, saes, task, out, name, options);
    int status = system(command);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", command);

    Arena *arena = arena_new();
    snprintf(expected_path, sizeof expected_path, "tests/golden/sage/%s/expected.json", name);
    snprintf(path, sizeof path, "%s/sage.json", out);
    compare(json_read_file(arena, expected_path), json_read_file(arena, path), name);
    arena_free(arena);

    snprintf(expected_path, sizeof expected_path, "tests/golden/sage/%s/expected.csv", name);
    snprintf(path, sizeof path, "%s/cross_sections.csv", out);
    compare_rows(expected_path, path);
    snprintf(command, sizeof command, "rm -r %s", out);
    cr_assert_eq(system(command), 0);
}

TestSuite(sage_reference, .timeout = 600);

Test(sage_reference, gpt2) {
    golden("gpt2", "gpt2", "weights/saes/gpt2", "ioi", "");
}

Test(sage_reference, years) { /* lists of up to 97 answers */
    golden("years", "gpt2", "weights/saes/gpt2", "greater-than", "--nodes z");
}

Test(sage_reference, gpt_neox) { /* lists of answers; whole block outputs; the encoder's projection;
                                    an SAE of the embedding */
    golden("gpt_neox", "gpt_neox", "weights/saes/gpt_neox", "agreement",
           "--nodes q,k,v,z,attn_out,mlp_out --projection weights,encoder");
}

Test(sage_reference, gemma2) { /* z through the post-norm with each prompt's own scale */
    golden("gemma2", "gemma2", "weights/saes/gemma2", "induction", "");
}

Test(sage_reference, native) { /* SAEs of nodes' own hook points; cross-sections from a file */
    golden("native", "gpt2", "tests/golden/sage/native/saes", "ioi",
           "--cross-sections tests/golden/sage/native/cross_sections.json");
}

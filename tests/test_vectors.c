/* Behaviour: vectors/ is what the program writes, names all that it needs, and tells each wrong
 * reading from the right one. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "json.h"
#include "scratch.h"

static Arena *arena;

static void setup(void) {
    folder_new();
    arena = arena_new();
}

static void teardown(void) {
    arena_free(arena);
    folder_remove();
}

TestSuite(vectors, .init = setup, .fini = teardown, .timeout = 600);

static int run(const char *words) {
    const char *program = getenv("REFSAE");
    int status =
        system(arena_format(arena, "%s %s", program != NULL ? program : "./refsae", words));
    return WEXITSTATUS(status);
}

Test(vectors, are_what_is_written) {
    cr_assert_eq(run(arena_format(arena, "vectors --out %s/v", folder)), 0);
    const char *compare = arena_format(arena, "diff -r -x README.md vectors %s/v", folder);
    cr_assert_eq(system(compare), 0);
    const char *again = arena_format(arena, "vectors --out %s/v --threads 1 --json", folder);
    cr_assert_eq(run(arena_format(arena, "%s >%s/said", again, folder)), 0);
    cr_assert_eq(system(compare), 0, "once more, over what is there");
    const Json *said = json_read_file(arena, path_join(arena, folder, "said"));
    cr_assert_str_eq(json_string(json_get(said, "out")), path_join(arena, folder, "v"));
    cr_assert_eq(run("vectors 2>/dev/null"), 2);
    cr_assert_eq(run(arena_format(arena, "vectors --out /dev/null/v 2>%s/said", folder)), 2);
    FileMap refusal = file_map(arena, path_join(arena, folder, "said"));
    cr_assert_str_eq(arena_copy(arena, (const char *)refusal.data, refusal.size),
                     "refsae: /dev/null: cannot make this directory: File exists\n");
    cr_assert_eq(run("vectors --out tests 2>/dev/null"), 2, "a folder of something else");
}

/* The largest difference of all numbers under the same names, over the largest of a. */
static double apart(const Json *a, const Json *b) {
    double largest = 0.0, most = 0.0;
    for (const Json *t = a->child; t != NULL; t = t->next) {
        const Json *x = json_get(t, "values")->child;
        const Json *y = json_need(json_need(b, t->key, JSON_OBJECT), "values", JSON_ARRAY)->child;
        for (; x != NULL && y != NULL; x = x->next, y = y->next) {
            largest = fmax(largest, fabs(json_double(x)));
            most = fmax(most, fabs(json_double(x) - json_double(y)));
        }
        if (x != NULL || y != NULL) {
            return (double)INFINITY;
        }
    }
    return most / largest;
}

Test(vectors, are_complete) {
    const Json *index = json_read_file(arena, "vectors/index.json");
    size_t vectors = 0, conventions = 0, wrong = 0;
    for (const Json *v = index->child; v != NULL; v = v->next, vectors++) {
        const char *name = json_need(v, "name", JSON_STRING)->text;
        const char *convention = json_need(v, "convention", JSON_STRING)->text;
        cr_assert(json_need(v, "sentence", JSON_STRING)->length > 20, "%s", name);
        bool seen = false;
        for (const Json *u = index->child; u != v; u = u->next) {
            cr_assert(!json_text_is(json_get(u, "name"), name), "%s is there twice", name);
            seen |= json_text_is(json_get(u, "convention"), convention);
        }
        conventions += seen ? 0 : 1;
        for (const Json *f = json_need(v, "files", JSON_ARRAY)->child; f != NULL; f = f->next) {
            cr_assert(path_exists(path_join(arena, "vectors", f->text)), "%s: %s", name, f->text);
        }
        const Json *expected = json_need(v, "expected", JSON_OBJECT);
        for (const Json *t = expected->child; t != NULL; t = t->next) {
            double count = 1.0;
            for (const Json *d = json_need(t, "shape", JSON_ARRAY)->child; d != NULL; d = d->next) {
                count *= json_double(d);
            }
            cr_assert_eq((double)json_need(t, "values", JSON_ARRAY)->length, count, "%s", name);
        }
        double tolerance = json_number(v, "tolerance", -1.0, 0.0, 1e-3);
        for (const Json *w = json_need(v, "wrong", JSON_ARRAY)->child; w != NULL; w = w->next) {
            cr_assert(apart(expected, json_need(w, "expected", JSON_OBJECT)) > 100.0 * tolerance,
                      "%s: %s", name, json_text(w, "reading", ""));
            wrong++;
        }
    }
    cr_assert(vectors >= 60 && conventions >= 40 && wrong >= 40, "%zu vectors, %zu, %zu", vectors,
              conventions, wrong);
}

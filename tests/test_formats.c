/* Behaviour: FORMATS.md is what the program does. Its examples are put into a folder, its commands
 * run there, and what it shows of their results must stand in these, every column and key named. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "scratch.h"

static char program[2048];
static Arena *arena;
static const char *document;
static const Json *task; /* of the examples */

static void setup(void) {
    char here[1024];
    const char *name = getenv("REFSAE");
    arena = arena_new();
    document = read_text(arena, "FORMATS.md");
    folder_new();
    cr_assert_not_null(getcwd(here, sizeof here));
    name = name != NULL ? name : "./refsae";
    snprintf(program, sizeof program, "%s%s%s", name[0] == '/' ? "" : here,
             name[0] == '/' ? "" : "/", name);
    cr_assert_eq(symlink(program, path_join(arena, folder, "refsae")), 0);
    cr_assert_eq(symlink(path_join(arena, here, "weights"), path_join(arena, folder, "weights")),
                 0);
}

static void teardown(void) {
    folder_remove();
    arena_free(arena);
}

TestSuite(formats, .init = setup, .fini = teardown, .timeout = 600);

/* In the folder, with the program first in PATH; output to the file `output` there. Whether it
 * ended well. */
static bool shell(const char *command) {
    return system(arena_format(arena, "cd %s && PATH=%s:$PATH && { %s\n} >output 2>errors", folder,
                               folder, command)) == 0;
}

static const char *said(const char *name) {
    return read_text(arena, path_join(arena, folder, name));
}

static const char *text_up_to(const char *begin, const char *mark) {
    const char *end = strstr(begin, mark);
    return arena_copy(arena, begin, end != NULL ? (size_t)(end - begin) : strlen(begin));
}

/* A block below a line that ends with "`PATH`:". */
typedef struct Example {
    const char *path, *text, *section;
} Example;

static bool next_example(const char **at, Example *e) {
    static const char mark[] = "`:\n\n```", heading[] = "\n## ";
    const char *end = strstr(*at, mark), *begin = end, *section = document;
    if (end == NULL) {
        return false;
    }
    while (begin[-1] != '`') {
        begin--;
    }
    for (const char *s = document; (s = strstr(s, heading)) != NULL && s < begin;) {
        s += sizeof heading - 1;
        section = s;
    }
    const char *text = strchr(end + sizeof mark - 1, '\n') + 1;
    *e = (Example){text_up_to(begin, "`"), text_up_to(text, "```"), text_up_to(section, heading)};
    *at = text;
    return true;
}

static bool is_result(const Example *e) {
    return strncmp(e->path, "run/", 4) == 0;
}

/* What an example shows, line after line, and between what it leaves out. */
static void stands_in(const Example *e, const char *file) {
    static const char left_out[] = "…";
    for (const char *line = e->text; *line != '\0'; line += strcspn(line, "\n") + 1) {
        const char *rest = text_up_to(line, "\n");
        while (rest != NULL) {
            const char *part = text_up_to(rest, left_out), *found = strstr(file, part);
            cr_assert_not_null(found, "%s: there is no %s", e->path, part);
            file = found + strlen(part);
            rest = strstr(rest, left_out);
            rest = rest != NULL ? rest + strlen(left_out) : NULL;
        }
    }
}

static void is_named(const Example *e, const char *name) {
    cr_assert(strstr(e->section, arena_format(arena, "`%s`", name)) != NULL,
              "%s: FORMATS.md does not name '%s'", e->path, name);
}

/* Numbers, as thresholds, name themselves; the task names its attributes. */
static void keys_are_named(const Example *e, const Json *value) {
    for (const Json *v = value->child; v != NULL; v = v->next) {
        if (value->kind == JSON_OBJECT && strspn(v->key, "0123456789") == 0 &&
            json_get(json_get(task, "attributes"), v->key) == NULL &&
            json_get(json_get(task, "positions"), v->key) == NULL) {
            is_named(e, v->key);
        }
        if (v->kind == JSON_OBJECT || v->kind == JSON_ARRAY) {
            keys_are_named(e, v);
        }
    }
}

static void columns_are_named(const Example *e, const char *head) {
    while (*head != '\0') {
        size_t length = strcspn(head, ",");
        is_named(e, arena_copy(arena, head, length));
        head += length + (head[length] == ',' ? 1 : 0);
    }
}

Test(formats, examples_are_read_and_results_are_as_shown) {
    Example e;
    size_t inputs = 0, results = 0;
    const char *commands = strstr(document, "```sh\n") + strlen("```sh\n"), *at = document;
    while (next_example(&at, &e)) {
        if (!is_result(&e)) {
            inputs++;
            cr_assert(shell(arena_format(arena, "mkdir -p $(dirname %s)", e.path)));
            OutFile *out = out_open(path_join(arena, folder, e.path));
            fputs(e.text, out->stream);
            out_commit(out);
        }
    }
    commands = arena_format(arena, "set -e\n%s", text_up_to(commands, "```"));
    cr_assert(shell(commands), "%s", said("errors"));
    task = json_read_file(arena, path_join(arena, folder, "pets.json"));
    for (at = document; next_example(&at, &e);) {
        const char *path = path_join(arena, folder, e.path);
        size_t length = strlen(path);
        if (is_result(&e)) {
            stands_in(&e, read_text(arena, path));
            results++;
        }
        if (is_result(&e) && strcmp(path + length - 4, ".csv") == 0) {
            columns_are_named(&e, text_up_to(read_text(arena, path), "\n"));
        } else if (is_result(&e)) {
            JsonArrayFile file;
            json_array_open(&file, arena, path);
            for (size_t i = 0; i < file.count; i++) {
                keys_are_named(&e, json_array_read(&file, i, arena));
            }
        }
        if (strncmp(e.section, "output:", 7) != 0) { /* what was printed is no kind of file */
            cr_assert(shell(arena_format(arena, "refsae info %s", e.path)), "%s", said("errors"));
        }
    }
    cr_assert(inputs > 5 && results > 10, "%zu examples read, %zu written", inputs, results);
}

#ifndef REFSAE_SMALL
Test(formats, help_prints_each) {
    size_t sections = 0;
    cr_assert(shell("refsae help"));
    const char *list = said("output");
    for (const char *at = document; (at = strstr(at, "\n## ")) != NULL; sections++) {
        at += strlen("\n## ");
        const char *section = text_up_to(at, "\n## "), *names = text_up_to(at, ": ");
        cr_assert_not_null(strstr(list, arena_format(arena, "\n  %s\n", text_up_to(at, "\n"))));
        for (const char *name = names; *name != '\0'; name += strspn(name, ", ")) {
            const char *one = text_up_to(name, ",");
            cr_assert(shell(arena_format(arena, "refsae help %s", one)), "%s", one);
            cr_assert_str_eq(said("output"), section, "%s", one);
            name += strlen(one);
        }
    }
    cr_assert(sections > 10);
    cr_assert(!shell("refsae help tas"));
}
#endif

/* Behaviour: selftest finds a wrong bit, and leaves the machine as it was. That it passes, and says
 * so: tests/test_program.c. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernelset.h"
#include "scratch.h"
#include "selftest.h"

static const char *program;

/* The command in a program of its own, quietly; what GPT-2's dump ends with is then another bit. */
static void with_a_wrong_bit(const Compute *compute, const char *words, const char *const *paths) {
    Arena *arena = arena_new();
    MemoryStream *line = memory_open(arena);
    (void)compute;
    fprintf(line->stream, "set -f; %s", program);
    for (char *word = strtok(arena_format(arena, "%s", words), " "); word != NULL;
         word = strtok(NULL, " ")) {
        fprintf(line->stream, " %s", strcmp(word, "%") == 0 ? *paths++ : word);
    }
    fputs(" --quiet", line->stream);
    cr_assert_eq(system(memory_text(line)), 0, "%s", memory_text(line));
    FILE *file = strstr(words, "gpt2.st") != NULL ? fopen("gpt2.st", "r+b") : NULL;
    if (file != NULL) {
        cr_assert_eq(fseek(file, -4, SEEK_END), 0);
        int last = fgetc(file);
        cr_assert_eq(fseek(file, -4, SEEK_END), 0);
        fputc(last ^ 1, file);
        cr_assert_eq(fclose(file), 0);
    }
    arena_free(arena);
}

static void nothing(void *user) {
    (void)user;
}

static void remove_the_way_back(void *user) {
    cr_assert_eq(rmdir(user), 0);
}

static void remove_it_and_fail(void *user) {
    remove_the_way_back(user);
    fail(STATUS_CHECK, "the work failed");
}

static Error inside(const char *path, void (*work)(void *user), void *user) {
    Error error;
    ATTEMPT(&error, selftest_inside(path, work, user));
    return error;
}

/* In its folder alone, with a world of which it leaves nothing. */
static void setup(void) {
    folder_new();
    cr_assert_eq(setenv("TMPDIR", folder, 1), 0);
}

static void teardown(void) {
    cr_assert_eq(chdir("/"), 0);
    folder_remove();
}

TestSuite(selftest, .init = setup, .fini = teardown, .timeout = 600);

Test(selftest, finds_a_wrong_bit) {
    Arena *arena = arena_new();
    Compute compute;
    size_t count;
    compute_open(&compute, arena, 1);
    const char *named = getenv("REFSAE");
    program = path_real(arena, named != NULL ? named : "./refsae");
    cr_assert_not_null(program);
    for (int json = 0; json < 2; json++) {
        Error error;
        MemoryStream *text = memory_open(arena);
        ATTEMPT(&error, selftest_run(&compute, with_a_wrong_bit, json != 0, text->stream));
        cr_assert_eq(error.status, STATUS_CHECK, "%s", error.text);
        cr_assert_str_eq(error.text, "selftest: 1 of 18 outputs have other bytes than they should");
        assert_counts(memory_text(text), json ? 4 : 2, json ? "\"same\": true" : "  ok\n", 17,
                      json ? "\"same\": false" : "  DIFFERS\n", 1, "\"output\": \"gpt2.st\"", 1,
                      "\"functions\"", 1);
    }
    cr_assert_eq((path_list(arena, folder, &count), count), 0, "the world is gone");
    arena_free(arena);
}

/* What is there under the name is somebody else's. */
Test(selftest, makes_a_folder_of_its_own) {
    Arena *arena = arena_new();
    char back[1024];
    size_t count;
    cr_assert_not_null(getcwd(back, sizeof back));
    cr_assert_eq(mkdir(in(folder, "refsae-selftest-0"), 0700), 0);
    selftest_world(nothing, NULL);
    cr_assert_eq((path_list(arena, folder, &count), count), 1);
    cr_assert_str_eq(getcwd(scratch(), 256), back);
    arena_free(arena);
}

Test(selftest, where_no_folder_can_be_made) {
    Arena *arena = arena_new();
    const char *places[] = {in(folder, "none"), arena_format(arena, "%s/%04400d", folder, 0)};
    const char *why[] = {": No such file or directory (see TMPDIR)", "0..."};
    for (size_t i = 0; i < 2; i++) {
        Error error;
        cr_assert_eq(setenv("TMPDIR", places[i], 1), 0);
        ATTEMPT(&error, selftest_world(nothing, NULL));
        cr_assert_eq(error.status, STATUS_RESOURCE);
        cr_assert_eq(strncmp(error.text, "selftest: no folder can be made in /", 36), 0);
        cr_assert_not_null(strstr(error.text, why[i]), "%s", error.text);
    }
    arena_free(arena);
}

/* Without TMPDIR, or with one that is empty: /tmp. */
static void is_below_tmp(void *user) {
    (void)user;
    cr_assert_eq(strncmp(getcwd(scratch(), 256), "/tmp/refsae-selftest-", 21), 0);
}

Test(selftest, works_in_tmp_unless_told) {
    cr_assert_eq(setenv("TMPDIR", "", 1), 0);
    selftest_world(is_below_tmp, NULL);
    cr_assert_eq(unsetenv("TMPDIR"), 0);
    selftest_world(is_below_tmp, NULL);
}

Test(selftest, says_where_it_cannot_go) {
    char *here = in(folder, "here"), *world = in(folder, "world");
    cr_assert_eq(chdir(folder), 0);
    cr_assert_eq(mkdir(world, 0700), 0);
    Error none = inside(in(folder, "none"), nothing, NULL);
    cr_assert_eq(none.status, STATUS_RESOURCE);
    cr_assert_not_null(strstr(none.text, "/none: No such file or directory"), "%s", none.text);
    cr_assert_eq(mkdir(here, 0700), 0);
    cr_assert_eq(chdir(here), 0);
    Error back = inside(world, remove_the_way_back, here);
    cr_assert_eq(back.status, STATUS_RESOURCE);
    cr_assert_not_null(strstr(back.text, "the way back from "), "%s", back.text);
    cr_assert_eq(chdir(folder), 0);
    cr_assert_eq(mkdir(here, 0700), 0);
    cr_assert_eq(chdir(here), 0);
    Error work = inside(world, remove_it_and_fail, here);
    cr_assert_eq(work.status, STATUS_CHECK);
    cr_assert_str_eq(work.text, "the work failed");
    cr_assert_eq(chdir(folder), 0);
    cr_assert_eq(mkdir(here, 0700), 0);
    cr_assert_eq(chdir(here), 0);
    cr_assert_eq(rmdir(here), 0);
    Error gone = inside(world, nothing, NULL);
    cr_assert_eq(gone.status, STATUS_RESOURCE);
    cr_assert_not_null(strstr(gone.text, strerror(ENOENT)), "%s", gone.text);
}

/* A tree eight deep goes whole; one that is deeper stays, as a loop of mounts would. */
Test(selftest, removes_a_tree) {
    char path[256];
    for (int depth = 7; depth <= 8; depth++) {
        int length = snprintf(path, sizeof path, "%s/tree", folder);
        for (int i = 0; i <= depth; i++) {
            cr_assert_eq(mkdir(path, 0700), 0);
            length += snprintf(path + length, sizeof path - (size_t)length, "/%d", i);
        }
        remove_tree(in(folder, "tree"), 0);
        cr_assert_eq(path_exists(in(folder, "tree")), depth == 8);
    }
    remove_tree(in(folder, "nothing"), 0);
}

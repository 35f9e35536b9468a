/* What the tests use of Criterion, for machines that have none (`make check` puts this directory first
 * in line): each test runs in a process of its own, REFSAE_TESTS=suite/name picks some. */
#ifndef REFSAE_CHECK_H
#define REFSAE_CHECK_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
typedef struct Check {
    const char *suite, *name; /* name NULL: what all tests of the suite run within */
    void (*run)(void), (*init)(void), (*fini)(void);
    double timeout; /* Criterion's: whoever runs these sees what hangs */
    struct Check *next;
} Check;

__attribute__((weak)) Check *checks;
__attribute__((weak)) int checks_failed; /* in this process */
#define CHECK_ADD(id, ...)                                                                         \
    static Check id##_check = {.suite = __VA_ARGS__};                                              \
    __attribute__((constructor)) static void id##_add(void) {                                      \
        id##_check.next = checks;                                                                  \
        checks = &id##_check;                                                                      \
    }                                                                                              \
    extern Check *checks
#define TestSuite(s, ...) CHECK_ADD(s, #s, __VA_ARGS__)
#define Test(s, n, ...)                                                                            \
    static void s##_##n(void);                                                                     \
    CHECK_ADD(s##_##n, #s, .name = #n, .run = s##_##n, ##__VA_ARGS__);                             \
    static void s##_##n(void)

#define CHECK_SAY(text, ...)                                                                       \
    (checks_failed++, fprintf(stderr, "%s:%d: %s ", __FILE__, __LINE__, text),                     \
     fprintf(stderr, "" __VA_ARGS__), fputc('\n', stderr))
#define cr_expect(c, ...) ((c) ? 0 : CHECK_SAY(#c, __VA_ARGS__))
#define cr_assert(c, ...) ((c) ? (void)0 : (CHECK_SAY(#c, __VA_ARGS__), exit(1)))
#define cr_assert_fail(...) cr_assert(0, __VA_ARGS__)
#define cr_skip_test(...) exit(0)
#define cr_assert_null(a, ...) cr_assert((a) == NULL, __VA_ARGS__)
#define cr_assert_not_null(a, ...) cr_assert((a) != NULL, __VA_ARGS__)
#define cr_assert_eq(a, b, ...) cr_assert((a) == (b), __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) cr_assert(strcmp(a, b) == 0, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...) cr_assert(memcmp(a, b, n) == 0, __VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...) cr_assert(fabs((a) - (b)) <= (e), __VA_ARGS__)
#define cr_expect_eq(a, b, ...) cr_expect((a) == (b), __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) cr_expect(strcmp(a, b) == 0, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, n, ...) cr_expect(memcmp(a, b, n) == 0, __VA_ARGS__)

__attribute__((weak)) int check_one(const Check *test, const Check *suite) {
    int status = -1;
    fflush(NULL);
    if (fork() == 0) {
        void (*init)(void) = test->init ? test->init : suite ? suite->init : NULL;
        void (*fini)(void) = test->fini ? test->fini : suite ? suite->fini : NULL;
        init != NULL ? init() : (void)0;
        test->run();
        fini != NULL ? fini() : (void)0;
        exit(checks_failed != 0);
    }
    return wait(&status) > 0 && status == 0;
}
__attribute__((weak)) int main(void) {
    const char *pick = getenv("REFSAE_TESTS");
    int results[2] = {0, 0};
    for (const Check *t = checks, *s; t != NULL; t = t->next) {
        char name[256];
        snprintf(name, sizeof name, "%s/%s", t->suite, t->name ? t->name : "");
        for (s = checks; s != NULL && (s->name || strcmp(s->suite, t->suite) != 0); s = s->next) {
        }
        if (t->name != NULL && (pick == NULL || strncmp(name, pick, strlen(pick)) == 0)) {
            int passed = check_one(t, s);
            results[passed]++;
            printf("%s", passed ? "" : strcat(name, " FAILED\n"));
        }
    }
    printf("%d passed, %d failed\n", results[1], results[0]);
    return results[0] != 0;
}
#endif

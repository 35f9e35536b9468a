/* Tasks and prompts: the four shipped ones with the toy models' tokenizers, the round trip through
 * prompts.jsonl, and the sentence that each mistake in a task earns. */
#define _XOPEN_SOURCE 700 /* mkdtemp */
#include "sage.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char *const models[] = {"weights/gpt2", "weights/gpt_neox", "weights/gemma2"};
static const char *const tasks[] = {"ioi", "agreement", "induction", "greater-than"};

static char folder[64], path[80];
static Arena *arena; /* of the test: the tokenizer, tasks and texts */
static Tokenizer *tokenizer;

static void setup(void) {
    strcpy(folder, "/tmp/refsae-task-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/task.json", folder);
    arena = arena_new();
    tokenizer = tokenizer_open(arena, models[0]);
}

static void teardown(void) {
    char command[128];
    arena_free(arena);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(sage_task, .init = setup, .fini = teardown, .timeout = 120);

/* ---- shipped tasks ---- */

static char *decode(const Tokenizer *t, const int32_t *ids, size_t count) {
    size_t length;
    return tokenizer_decode(t, ids, count, false, arena, &length);
}

static void must_open(SageTask *task, const char *name, const Tokenizer *t, int32_t bos, size_t n,
                      uint64_t seed) {
    sage_task_open(task, arena, name, t);
    sage_prompts_draw(task, t, bos, (size_t[]){n, n / 2}, seed);
    cr_assert_eq(task->n_prompts[SAGE_TRAIN], n);
    cr_assert_eq(task->n_prompts[SAGE_TEST], n / 2);
}

static size_t place_of(const char *const *names, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    cr_assert_fail("no %s", name);
    return n;
}

static size_t attribute_of(const SageTask *task, const char *name) {
    for (size_t i = 0; i < task->n_attributes; i++) {
        if (strcmp(task->attributes[i].name, name) == 0) {
            return i;
        }
    }
    cr_assert_fail("no %s", name);
    return 0;
}

/* The token at a named position, without the space before it. */
static void assert_token(const SageTask *task, const Tokenizer *t, const SageForm *form,
                         const char *position, const char *expected) {
    size_t at = form->positions[place_of(task->positions, task->n_positions, position)];
    cr_assert(at < form->rows);
    char *text = decode(t, form->ids + at, 1);
    const char *word = text + (text[0] == ' ');
    cr_assert_str_eq(word, expected, "%s at %zu: '%s'", position, at, text);
}

static const char *value_of(const SageTask *task, const char *attribute, const size_t *values) {
    size_t a = attribute_of(task, attribute);
    return task->attributes[a].values[values[a]];
}

static void check_ioi(const SageTask *task, const Tokenizer *t, const SageForm *form,
                      const size_t *values) {
    const char *io = value_of(task, "IO", values), *s = value_of(task, "S", values);
    cr_assert(strcmp(io, s) != 0, "distinct");
    assert_token(task, t, form, "IO", io);
    assert_token(task, t, form, "S1", s);
    assert_token(task, t, form, "S2", s);
    assert_token(task, t, form, "END", "to");
    const size_t *p = form->positions;
    size_t first = place_of(task->positions, task->n_positions, "IO"),
           s1 = place_of(task->positions, task->n_positions, "S1"),
           after = place_of(task->positions, task->n_positions, "S1+1"),
           s2 = place_of(task->positions, task->n_positions, "S2");
    cr_assert_eq(p[after], p[s1] + 1);
    cr_assert_eq(p[first] < p[s1], strcmp(value_of(task, "Pos", values), "ABB") == 0);
    cr_assert(p[s2] > p[s1]);
    cr_assert(p[s2] > p[first]);
    char *answer = decode(t, form->answer, 1), *wrong = decode(t, form->wrong, 1);
    cr_assert_str_eq(answer + (answer[0] == ' '), io);
    cr_assert_str_eq(wrong + (wrong[0] == ' '), s);
}

/* What holds for every task: lengths, lists, <bos>, and a prompt's ids being those of its text. */
static void check_prompt(const SageTask *task, const Tokenizer *t, int32_t bos,
                         const SagePrompt *prompt) {
    size_t lead = bos >= 0 ? 1 : 0;
    Tokens tokens = tokenizer_encode(t, prompt->text, strlen(prompt->text), false, arena);
    cr_assert_eq(prompt->clean.rows, tokens.count + lead);
    cr_assert_eq(memcmp(prompt->clean.ids + lead, tokens.id, tokens.count * sizeof(int32_t)), 0);
    cr_assert(bos < 0 || prompt->clean.ids[0] == bos);
    for (size_t a = 0; a < task->n_attributes; a++) {
        const SageForm *other = &prompt->counterfactual[a];
        cr_assert(prompt->values[a] < task->attributes[a].count);
        cr_assert(prompt->changed[a] < task->attributes[a].count);
        cr_assert(prompt->values[a] != prompt->changed[a]);
        cr_assert_eq(other->rows, prompt->clean.rows);
        cr_assert(memcmp(other->ids, prompt->clean.ids, other->rows * sizeof(int32_t)) != 0);
        cr_assert(other->n_answer > 0);
        cr_assert(other->n_wrong > 0);
        for (size_t p = 0; p < task->n_positions; p++) {
            cr_assert(other->positions[p] < other->rows);
            cr_assert(other->positions[p] >= lead);
        }
        if ((int)a != task->form) { /* the same template: only tokens of that value differ */
            cr_assert_eq(memcmp(other->positions, prompt->clean.positions,
                                task->n_positions * sizeof(size_t)),
                         0);
            size_t differ = 0;
            for (size_t i = 0; i < other->rows; i++) {
                differ += other->ids[i] != prompt->clean.ids[i];
            }
            cr_assert(differ <= 2, "S stands twice in IOI, nothing stands more often");
        }
    }
}

Test(sage_task, shipped_tasks_with_every_toy_tokenizer) {
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        Tokenizer *t = tokenizer_open(arena, models[m]);
        int32_t bos = tokenizer_id(t, "<bos>");
        cr_assert_eq(bos >= 0, m == 2);
        for (size_t k = 0; k < sizeof tasks / sizeof *tasks; k++) {
            SageTask task;
            must_open(&task, tasks[k], t, bos, 60, 475);
            for (int s = 0; s < SAGE_SPLITS; s++) {
                for (size_t i = 0; i < task.n_prompts[s]; i++) {
                    const SagePrompt *prompt = &task.prompts[s][i];
                    check_prompt(&task, t, bos, prompt);
                    if (k == 0) {
                        check_ioi(&task, t, &prompt->clean, prompt->values);
                        for (size_t a = 0; a < task.n_attributes; a++) {
                            size_t values[3];
                            memcpy(values, prompt->values, sizeof values);
                            values[a] = prompt->changed[a];
                            check_ioi(&task, t, &prompt->counterfactual[a], values);
                        }
                    }
                    if (k == 2) {
                        assert_token(&task, t, &prompt->clean, "Ans",
                                     value_of(&task, "Ans", prompt->values));
                        assert_token(&task, t, &prompt->clean, "Other",
                                     value_of(&task, "Other", prompt->values));
                    }
                    cr_assert_eq(
                        prompt->clean.positions[place_of(task.positions, task.n_positions, "END")],
                        prompt->clean.rows - 1);
                }
            }
        }
    }
}

/* Greater-than: the answers are all later years, the wrong ones that year and earlier ones. */
static void check_years(const int32_t *ids, size_t count, long year, bool later) {
    for (size_t i = 0; i < count; i++) {
        char *text = decode(tokenizer, ids + i, 1);
        long found = strtol(text, NULL, 10);
        cr_assert_eq(strlen(text), 2);
        cr_assert_eq(found > year, later, "%s after %ld", text, year);
    }
}

Test(sage_task, lists_of_answers) {
    SageTask task;
    must_open(&task, "greater-than", tokenizer, -1, 40, 475);
    for (size_t i = 0; i < 40; i++) {
        const SagePrompt *prompt = &task.prompts[SAGE_TRAIN][i];
        long year = strtol(value_of(&task, "YY", prompt->values), NULL, 10);
        check_years(prompt->clean.answer, prompt->clean.n_answer, year, true);
        check_years(prompt->clean.wrong, prompt->clean.n_wrong, year, false);
        cr_assert_eq(prompt->clean.n_answer, (size_t)(99 - year), "all of them");
    }
    must_open(&task, "agreement", tokenizer, -1, 20, 475);
    for (size_t i = 0; i < 20; i++) {
        const SageForm *form = &task.prompts[SAGE_TRAIN][i].clean;
        bool plural =
            strcmp(value_of(&task, "Subject", task.prompts[SAGE_TRAIN][i].values), "plural") == 0;
        char *first = decode(tokenizer, form->answer, 1);
        cr_assert_str_eq(first, plural ? " are" : " is");
        cr_assert_eq(form->n_answer, 3);
        cr_assert_eq(form->n_wrong, 3);
    }
}

/* Each value and each template turns up, evenly enough: of 600 prompts over 16 names, 37.5 each
 * with a standard deviation of 6; 10 is 4.6 of them away. */
Test(sage_task, draws_are_spread_and_seeded) {
    SageTask task, again, other;
    must_open(&task, "ioi", tokenizer, -1, 600, 475);
    must_open(&again, "ioi", tokenizer, -1, 600, 475);
    must_open(&other, "ioi", tokenizer, -1, 600, 476);
    size_t io = attribute_of(&task, "IO"), same = 0;
    size_t *seen = calloc(task.attributes[io].count, sizeof(size_t));
    for (size_t i = 0; i < 600; i++) {
        const SagePrompt *prompt = &task.prompts[SAGE_TRAIN][i];
        seen[prompt->values[io]]++;
        cr_assert_str_eq(prompt->text, again.prompts[SAGE_TRAIN][i].text);
        same += strcmp(prompt->text, other.prompts[SAGE_TRAIN][i].text) == 0;
    }
    cr_assert(same < 10);
    for (size_t v = 0; v < task.attributes[io].count; v++) {
        cr_assert(seen[v] >= 10 && seen[v] <= 600 / task.attributes[io].count + 30, "%zu", seen[v]);
    }
    free(seen);
}

/* ---- prompts.jsonl ---- */

static void assert_same_form(const SageTask *task, const SageForm *a, const SageForm *b) {
    cr_assert_eq(a->rows, b->rows);
    cr_assert_eq(a->n_answer, b->n_answer);
    cr_assert_eq(a->n_wrong, b->n_wrong);
    cr_assert_eq(memcmp(a->ids, b->ids, a->rows * sizeof(int32_t)), 0);
    cr_assert_eq(memcmp(a->answer, b->answer, a->n_answer * sizeof(int32_t)), 0);
    cr_assert_eq(memcmp(a->wrong, b->wrong, a->n_wrong * sizeof(int32_t)), 0);
    cr_assert_eq(memcmp(a->positions, b->positions, task->n_positions * sizeof(size_t)), 0);
}

Test(sage_task, prompts_come_back_as_they_were) {
    size_t vocabulary = (size_t)tokenizer_size(tokenizer);
    for (size_t k = 0; k < 3; k++) {
        SageTask task, read;
        char first[65], second[65];
        must_open(&task, tasks[k], tokenizer, k == 0 ? 0 : -1, 30, 475);
        sage_prompts_write(&task, path);
        sha256_file(path, first);
        sage_task_open(&read, arena, tasks[k], tokenizer);
        sage_prompts_read(&read, path, vocabulary);
        for (int s = 0; s < SAGE_SPLITS; s++) {
            cr_assert_eq(read.n_prompts[s], task.n_prompts[s]);
            for (size_t i = 0; i < task.n_prompts[s]; i++) {
                const SagePrompt *a = &task.prompts[s][i], *b = &read.prompts[s][i];
                cr_assert_str_eq(a->text, b->text);
                cr_assert_eq(memcmp(a->values, b->values, task.n_attributes * sizeof(size_t)), 0);
                cr_assert_eq(memcmp(a->changed, b->changed, task.n_attributes * sizeof(size_t)), 0);
                assert_same_form(&task, &a->clean, &b->clean);
                for (size_t c = 0; c < task.n_attributes; c++) {
                    assert_same_form(&task, &a->counterfactual[c], &b->counterfactual[c]);
                }
            }
        }
        sage_prompts_write(&read, path);
        sha256_file(path, second);
        cr_assert_str_eq(first, second);
    }
}

static void put(const char *text) {
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f);
    fputs(text, f);
    cr_assert_eq(fclose(f), 0);
}

/* ---- mistakes ---- */

/* A task of its own: parts may be replaced. */
typedef struct Parts {
    const char *attributes, *form, *distinct, *fillers, *templates, *answer, *wrong, *positions;
} Parts;

static const Parts good = {
    .attributes = "{\"A\": [\"Mary\", \"John\", \"Tom\"], \"B\": [\"Mary\", \"John\", \"Tom\"]}",
    .distinct = "[[\"A\", \"B\"]]",
    .fillers = "{\"F\": {\"train\": [\"store\"], \"test\": [\"park\"]}}",
    .templates = "{\"train\": [\"Then, {A} and {B} went to the {F}. {B} gave a ring to\"],"
                 " \"test\": [\"Then, {A} and {B} went to the {F}. {B} gave a ring to\"]}",
    .answer = "\"A\"",
    .wrong = "\"B\"",
    .positions = "{\"S2\": \"B#2\", \"END\": \"end\"}"};

static void put_parts(Parts p) {
    char text[4096];
    snprintf(text, sizeof text,
             "{\"name\": \"own\", \"attributes\": %s, %s%s%s \"distinct\": %s, \"fillers\": %s, "
             "\"templates\": %s, "
             "\"answer\": %s, \"wrong\": %s, \"positions\": %s}",
             p.attributes, p.form != NULL ? "\"form\": " : "", p.form != NULL ? p.form : "",
             p.form != NULL ? "," : "", p.distinct, p.fillers, p.templates, p.answer, p.wrong,
             p.positions);
    put(text);
}

/* Opens and draws; the sentence must hold `expected` and, if from a file, its name. */
static void assert_refused(const char *expected) {
    SageTask task;
    Error error;
    Arena *own = arena_new();
    ATTEMPT(&error, sage_task_open(&task, own, path, tokenizer);
            sage_prompts_draw(&task, tokenizer, -1, (size_t[]){20, 20}, 475));
    arena_free(own);
    cr_assert_eq(error.status, STATUS_INPUT, "'%s' was expected", expected);
    cr_assert_not_null(strstr(error.text, expected), "'%s' instead of '%s'", error.text, expected);
    cr_assert_not_null(strstr(error.text, path), "%s", error.text);
}

#define REFUSED(member, value, expected)                                                           \
    do {                                                                                           \
        Parts changed = good;                                                                      \
        changed.member = value;                                                                    \
        put_parts(changed);                                                                        \
        assert_refused(expected);                                                                  \
    } while (0)

Test(sage_task, a_task_of_ones_own) {
    SageTask task;
    put_parts(good);
    must_open(&task, path, tokenizer, -1, 20, 475);
    cr_assert_str_eq(task.name, "own");
    cr_assert_eq(task.form, -1);
}

Test(sage_task, values_that_are_no_token_are_dropped_and_listed) {
    Parts parts = good;
    SageTask task;
    parts.attributes = "{\"A\": [\"Mary\", \"Rumpelstiltskin\", \"John\", \"Tom\"], \"B\": "
                       "[\"Tom\", \"Mary\", \"John\"]}";
    put_parts(parts);
    must_open(&task, path, tokenizer, -1, 40, 475);
    cr_assert_eq(task.attributes[0].count, 3);
    cr_assert_eq(task.n_dropped, 1);
    cr_assert_str_eq(task.dropped[0].attribute, "A");
    cr_assert_str_eq(task.dropped[0].value, "Rumpelstiltskin");
    for (size_t i = 0; i < 40; i++) {
        cr_assert_null(strstr(task.prompts[SAGE_TRAIN][i].text, "Rumpel"));
    }
    REFUSED(attributes, "{\"A\": [\"Mary\", \"Rumpelstiltskin\"], \"B\": [\"Mary\", \"John\"]}",
            "attribute 'A' has 1 values that are one token");
}

/* Of A = Mary or John and another B no counterfactual in B is left: only A = Tom can be drawn. */
Test(sage_task, dead_ends_of_distinct_are_drawn_again) {
    Parts parts = good;
    SageTask task;
    parts.attributes = "{\"A\": [\"Mary\", \"John\", \"Tom\"], \"B\": [\"Mary\", \"John\"]}";
    put_parts(parts);
    must_open(&task, path, tokenizer, -1, 20, 475);
    for (size_t i = 0; i < 20; i++) {
        cr_assert_str_eq(value_of(&task, "A", task.prompts[SAGE_TRAIN][i].values), "Tom");
    }
}

Test(sage_task, values_that_bring_their_space) {
    Parts parts = good;
    SageTask plain, spaced;
    put_parts(parts);
    must_open(&plain, path, tokenizer, -1, 20, 475);
    parts.attributes =
        "{\"A\": [\" Mary\", \" John\", \" Tom\"], \"B\": [\" Mary\", \" John\", \" Tom\"]}";
    parts.templates = "{\"train\": [\"Then,{A} and{B} went to the {F}.{B} gave a ring to\"],"
                      " \"test\": [\"Then,{A} and{B} went to the {F}.{B} gave a ring to\"]}";
    put_parts(parts);
    must_open(&spaced, path, tokenizer, -1, 20, 475);
    for (size_t i = 0; i < 20; i++) {
        const SageForm *a = &plain.prompts[SAGE_TRAIN][i].clean,
                       *b = &spaced.prompts[SAGE_TRAIN][i].clean;
        cr_assert_eq(a->rows, b->rows);
        cr_assert_eq(memcmp(a->ids, b->ids, a->rows * sizeof(int32_t)), 0);
        cr_assert_eq(a->answer[0], b->answer[0]);
        cr_assert_eq(a->positions[0], b->positions[0]);
    }
}

Test(sage_task, a_template_of_many_slots) {
    Parts parts = good;
    SageTask task;
    char text[4096] = "{\"train\": [\"";
    for (int i = 0; i < 100; i++) {
        strcat(text, "{A} {B} ");
    }
    strcat(text, "to\"], \"test\": [\"{A} {B} {B} to\"]}");
    parts.templates = text;
    parts.positions = "{\"B\": \"B#2\"}";
    put_parts(parts);
    must_open(&task, path, tokenizer, -1, 4, 475);
    cr_assert(task.prompts[SAGE_TRAIN][0].clean.rows > 200);
    cr_assert_eq(task.prompts[SAGE_TRAIN][0].clean.positions[0], 3);
}

Test(sage_task, null_is_absent) {
    Parts parts = good;
    SageTask task;
    parts.attributes = "{\"A\": [\"Mary\", \"John\"]}";
    parts.form = parts.distinct = parts.fillers = "null";
    parts.templates = "{\"train\": [\"Then, {A} went to\"], \"test\": [\"{A} went to\"]}";
    parts.wrong = "{\"of\": \"A\", \"map\": {\"Mary\": \" John\", \"John\": [\" Mary\"]}}";
    parts.positions = "{\"A+1\": \"A#1+1\"}";
    put_parts(parts);
    must_open(&task, path, tokenizer, -1, 4, 475);
    cr_assert_eq(task.form, -1);
}

Test(sage_task, mistakes_in_attributes) {
    REFUSED(attributes, "{\"A\": [\"Mary\"], \"B\": [\"Mary\", \"John\"]}", "attribute 'A'");
    REFUSED(attributes, "{\"A\": [\"Mary\", \"Mary\"], \"B\": [\"Mary\", \"John\"]}", "'A'");
    REFUSED(attributes,
            "{\"A\": [\"Mary\", \"John\"], \"A\": [\"Mary\", \"John\"], \"B\": [\"Tom\", \"Dan\"]}",
            "'A'");
    REFUSED(attributes, "{\"A\": [], \"B\": [\"Mary\", \"John\"]}", "'A'");
    REFUSED(attributes, "{\"A\": [1, 2], \"B\": [\"Mary\", \"John\"]}", "'A'");
    REFUSED(attributes, "{\"A\": [\"\", \"Mary\"], \"B\": [\"Mary\", \"John\"]}", "'A'");
    REFUSED(attributes, "{\"A\": [\"Ma\\u0000ry\", \"John\"], \"B\": [\"Mary\", \"John\"]}", "'A'");
    REFUSED(attributes, "{}", "attributes");
    REFUSED(attributes, "[[\"Mary\"]]", "attributes");
    REFUSED(attributes, "{\"A\": [\"Mary\", \"John\"], \"B\": [\"Mary\", \"John\"]}",
            "has no other value to take");
    REFUSED(form, "\"C\"", "form");
    REFUSED(form, "3", "form");
    REFUSED(form, "\"A\"", "form");
    REFUSED(distinct, "[[\"A\", \"C\"]]", "distinct");
    REFUSED(distinct, "[\"A\", \"B\"]", "distinct");
    REFUSED(distinct, "\"A\"", "distinct");
    REFUSED(distinct, "[[\"A\", 1]]", "distinct");
}

Test(sage_task, mistakes_in_templates_and_fillers) {
    REFUSED(templates, "{\"train\": [\"{C} to\"], \"test\": [\"{A} {B} {B} to\"]}", "slot 'C'");
    REFUSED(templates, "{\"train\": [\"{A} {B} {B} to\"]}", "test");
    REFUSED(templates, "{\"train\": [], \"test\": [\"{A} {B} {B} to\"]}", "train");
    REFUSED(templates, "{\"train\": [3], \"test\": [\"{A} {B} {B} to\"]}", "template");
    REFUSED(templates, "[]", "templates");
    REFUSED(templates, "{\"train\": [\"{} to\"], \"test\": [\"{A} {B} {B} to\"]}", "slot ''");
    REFUSED(fillers, "{\"F\": {\"train\": [\"store\"]}}", "'F'");
    REFUSED(fillers, "{\"F\": {\"train\": [], \"test\": [\"store\"]}}", "'F'");
    REFUSED(fillers, "{\"F\": [\"store\"]}", "'F'");
    REFUSED(fillers, "[{\"train\": [\"store\"], \"test\": [\"park\"]}]", "fillers");
    REFUSED(fillers, "{}", "slot 'F'");
    /* a value in the form attribute that makes prompts longer */
    Parts parts = good;
    parts.form = "\"A\"";
    parts.templates =
        "{\"train\": [{\"Mary\": \"{B} and {B} to\", \"John\": \"Then, {B} and {B} to\","
        " \"Tom\": \"{B} {B}\"}],"
        " \"test\": [{\"Mary\": \"{B} {B}\", \"John\": \"{B} {B}\", \"Tom\": \"{B} {B}\"}]}";
    put_parts(parts);
    assert_refused("tokens, with another A it has");
}

Test(sage_task, mistakes_in_answers_and_positions) {
    REFUSED(answer, "\"C\"", "answer");
    REFUSED(answer, "3", "answer");
    REFUSED(wrong, "{\"of\": \"C\", \"map\": {}}", "wrong");
    REFUSED(wrong, "{\"of\": \"A\", \"map\": {\"Mary\": \" is\"}}",
            "'wrong' has no text for the value");
    REFUSED(wrong, "{\"of\": \"A\"}", "'wrong' has no text for the value");
    REFUSED(wrong, "{\"of\": \"A\", \"map\": {\"Mary\": [], \"John\": [], \"Tom\": []}}", "wrong");
    REFUSED(wrong, "{\"of\": \"A\", \"map\": {\"Mary\": 1, \"John\": 1, \"Tom\": 1}}", "'wrong'");
    REFUSED(
        answer,
        "{\"of\": \"A\", \"map\": {\"Mary\": \" Rumpelstiltskin\", \"John\": \" Rumpelstiltskin\", "
        "\"Tom\": \" Rumpelstiltskin\"}}",
        "the answer ' Rumpelstiltskin' is not one token");
    REFUSED(positions, "{}", "positions");
    REFUSED(positions, "{\"X\": 3}", "'X'");
    REFUSED(positions, "{\"X\": \"B\"}", "position 'X': expected SLOT#n, SLOT#n+k or end");
    REFUSED(positions, "{\"X\": \"B#\"}", "position 'X': expected");
    REFUSED(positions, "{\"X\": \"B#0\"}", "position 'X': expected");
    REFUSED(positions, "{\"X\": \"B#1x\"}", "position 'X': expected");
    REFUSED(positions, "{\"X\": \"B#1+\"}", "position 'X': expected");
    REFUSED(positions, "{\"X\": \"B#1+-1\"}", "position 'X': expected");
    REFUSED(positions, "{\"X\": \"B#-1\"}", "position 'X': expected");
    REFUSED(positions, "{\"X\": \"B#3\"}", "position 'X' (B#3) is not in the prompt");
    REFUSED(positions, "{\"X\": \"B#1+99\"}", "position 'X' (B#1+99) is not in the prompt");
    REFUSED(positions, "{\"X\": \"B#1+18446744073709551615\"}", "position 'X'");
    REFUSED(positions, "{\"X\": \"end\", \"X\": \"B#1\"}", "'X'");
    REFUSED(positions, "{\"X\": \"Q#1\"}", "position 'X'");
}

/* What is no task at all, and every prefix of a good one: a sentence each time. */
Test(sage_task, hostile_files) {
    static const char *const hostile[] = {"",
                                          "[]",
                                          "null",
                                          "\"ioi\"",
                                          "{",
                                          "{\"attributes\": {}}",
                                          "\xEF\xBB\xBF{}",
                                          "\xFF",
                                          "[[[[",
                                          "{\"attributes\": {\"A\": [\"\xFF\"]}}"};
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        put(hostile[i]);
        assert_refused("");
    }
    put_parts(good);
    Error error;
    FileMap map = file_map(arena, path);
    char *text = calloc(1, map.size + 1);
    size_t size = map.size;
    memcpy(text, map.data, size);
    for (size_t i = 0; i < size; i += 3) {
        char kept = text[i];
        text[i] = '\0';
        put(text);
        assert_refused("");
        text[i] = kept;
    }
    free(text);
    SageTask task;
    ATTEMPT(&error, sage_task_open(&task, arena, "ioo", tokenizer));
    cr_assert_eq(error.status, STATUS_INPUT);
    cr_assert_not_null(strstr(
        error.text, "--task ioo: neither ioi, agreement, induction, greater-than nor a file"));
    ATTEMPT(&error, sage_task_open(&task, arena, folder, tokenizer));
    cr_assert_eq(error.status, STATUS_INPUT, "a folder");
}

#define FORM                                                                                       \
    "\"ids\": [1, 2, 3], \"positions\": {\"S2\": 1, \"END\": 2}, \"answer\": [4], \"wrong\": [5]"
#define OTHER(value) "{\"value\": \"" value "\", " FORM "}"
#define ROW(split)                                                                                 \
    "{\"split\": \"" split "\", \"text\": \"t\", " FORM                                            \
    ", \"values\": {\"A\": \"Mary\", \"B\": \"John\"}, "                                           \
    "\"counterfactual\": {\"A\": " OTHER("Tom") ", \"B\": " OTHER("Tom") "}}\n"

/* Rows in which one part of a good row is replaced. */
Test(sage_task, mistakes_in_prompts) {
    static const struct {
        const char *part, *by, *expected;
    } cases[] = {
        {"\"t\"", "\"t\"", NULL},
        {"\"train\"", "\"dev\"", "split"},
        {"\"train\"", "\"test\"", "needs prompts of both splits"},
        {"[1, 2, 3]", "[1, 2, 300000]", "an id outside the vocabulary in 'ids'"},
        {"[1, 2, 3]", "[1, -2, 3]", "an id outside the vocabulary in 'ids'"},
        {"[1, 2, 3]", "[1, 2.5, 3]", "an id outside the vocabulary in 'ids'"},
        {"[1, 2, 3]", "[]", "expected token ids in 'ids'"},
        {"[1, 2, 3]", "\"abc\"", "'ids': expected an array"},
        {"[1, 2, 3]", "[1, 2, 3, 4]", "differ in length in attribute 'A'"},
        {"\"END\": 2", "\"END\": 3", "positions: 'END': expected a whole number from 0 to 2"},
        {"\"END\": 2", "\"END\": -1", "positions: 'END': expected a whole number from 0 to 2"},
        {"\"END\": 2", "\"end\": 1", "positions: 'END': expected a number, found nothing"},
        {"[4]", "[]", "expected token ids in 'answer'"},
        {"[5]", "null", "'wrong': expected an array"},
        {"\"Mary\"", "\"Zoe\"",
         "values: 'A': expected a value that the task gives for the attribute"},
        {"\"value\": \"Tom\"", "\"value\": 3",
         "A: 'value': expected a value that the task gives for the attribute"},
        {"\"counterfactual\"", "\"factual\"", "'counterfactual': expected an object"},
        {"\"split\"", "\"split", ""},
        {"{\"split\"", "[{\"split\"", ""},
        {"{\"split\"", "\xFF", ""}};
    static const char rows[] = ROW("train") ROW("test");
    put_parts(good);
    char prompts[96];
    snprintf(prompts, sizeof prompts, "%s/prompts.jsonl", folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        SageTask task;
        Error error;
        const char *at = strstr(rows, cases[i].part);
        FILE *f = fopen(prompts, "wb");
        fwrite(rows, 1, (size_t)(at - rows), f);
        fprintf(f, "%s%s", cases[i].by, at + strlen(cases[i].part));
        fclose(f);
        sage_task_open(&task, arena, path, tokenizer);
        size_t vocabulary = (size_t)tokenizer_size(tokenizer);
        ATTEMPT(&error, sage_prompts_read(&task, prompts, vocabulary));
        cr_assert_eq(error.status, cases[i].expected == NULL ? STATUS_OK : STATUS_INPUT, "%zu: %s",
                     i, error.text);
        if (cases[i].expected != NULL) {
            cr_assert_not_null(strstr(error.text, cases[i].expected), "%s", error.text);
            cr_assert_not_null(strstr(error.text, "prompts.jsonl"), "%s", error.text);
        }
    }
}

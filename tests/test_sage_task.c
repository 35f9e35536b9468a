/* Tasks and prompts: the four shipped ones with the toy models' tokenizers, the round trip through
 * prompts.jsonl, and the sentence that each mistake in a task earns. */
#include "sage.h"
#include "scratch.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char *const models[] = {"weights/gpt2", "weights/gpt_neox", "weights/gemma2"};
static const char *const tasks[] = {"ioi", "agreement", "induction", "greater-than"};

static char path[80];
static Arena *arena; /* of the test: the tokenizer, tasks and texts */
static Tokenizer *tokenizer;

static void setup(void) {
    folder_new();
    snprintf(path, sizeof path, "%s/task.json", folder);
    arena = arena_new();
    tokenizer = tokenizer_open(arena, models[0]);
}

static void teardown(void) {
    arena_free(arena);
    folder_remove();
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

/* The names in the order of the text. */
static void check_ioi_places(const SageTask *task, const SagePrompt *prompt) {
    bool abb = strcmp(value_of(task, "Pos", prompt->values), "ABB") == 0;
    const char *const order[] = {abb ? "IO" : "S", abb ? "S" : "IO", "S"}, *at = prompt->text;
    cr_assert_eq(prompt->n_places, 3);
    for (size_t i = 0; i < 3; i++) {
        size_t a = prompt->places[i];
        cr_assert_str_eq(task->attributes[a].name, order[i]);
        at = strstr(at, task->attributes[a].values[prompt->values[a]]);
        cr_assert_not_null(at++, "%s in '%s'", order[i], prompt->text);
    }
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
                        check_ioi_places(&task, prompt);
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

static void assert_same_places(const SagePrompt *a, const SagePrompt *b) {
    cr_assert(a->n_places > 0);
    cr_assert_eq(a->n_places, b->n_places);
    for (size_t i = 0; i < a->n_places; i++) {
        cr_assert_eq(a->places[i], b->places[i]);
    }
}

Test(sage_task, prompts_come_back_as_they_were) {
    size_t vocabulary = (size_t)tokenizer_size(tokenizer);
    for (size_t k = 0; k < sizeof tasks / sizeof *tasks; k++) {
        SageTask task, read;
        char first[65], second[65];
        must_open(&task, tasks[k], tokenizer, k == 0 ? 0 : -1, 30, 475);
        sage_prompts_write(&task, path);
        sha256_file(path, first);
        sage_task_open(&read, arena, tasks[k], tokenizer);
        sage_prompts_read(&read, path, tokenizer, vocabulary);
        for (int s = 0; s < SAGE_SPLITS; s++) {
            cr_assert_eq(read.n_prompts[s], task.n_prompts[s]);
            for (size_t i = 0; i < task.n_prompts[s]; i++) {
                const SagePrompt *a = &task.prompts[s][i], *b = &read.prompts[s][i];
                cr_assert_str_eq(a->text, b->text);
                cr_assert_eq(memcmp(a->values, b->values, task.n_attributes * sizeof(size_t)), 0);
                cr_assert_eq(memcmp(a->changed, b->changed, task.n_attributes * sizeof(size_t)), 0);
                assert_same_form(&task, &a->clean, &b->clean);
                assert_same_places(a, b);
                for (size_t c = 0; c < task.n_attributes; c++) {
                    assert_same_form(&task, &a->counterfactual[c], &b->counterfactual[c]);
                }
            }
        }
        cr_assert_eq(task.n_unmatched, 0);
        cr_assert_eq(read.n_unmatched, 0);
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
    const char *more; /* members, each with a comma before it */
} Parts;

static const Parts good = {
    .attributes = "{\"A\": [\"Mary\", \"John\", \"Tom\"], \"B\": [\"Mary\", \"John\", \"Tom\"]}",
    .distinct = "[[\"A\", \"B\"]]",
    .fillers = "{\"F\": {\"train\": [\"store\"], \"test\": [\"park\"]}}",
    .templates = "{\"train\": [\"Then, {A} and {B} went to the {F}. {B} gave a ring to\"],"
                 " \"test\": [\"Then, {A} and {B} went to the {F}. {B} gave a ring to\"]}",
    .answer = "\"A\"",
    .wrong = "\"B\"",
    .positions = "{\"S2\": \"B#2\", \"END\": \"end\"}",
    .more = ""};

static void put_parts(Parts p) {
    char text[4096];
    snprintf(text, sizeof text,
             "{\"name\": \"own\", \"attributes\": %s, %s%s%s \"distinct\": %s, \"fillers\": %s, "
             "\"templates\": %s, "
             "\"answer\": %s, \"wrong\": %s, \"positions\": %s%s}",
             p.attributes, p.form != NULL ? "\"form\": " : "", p.form != NULL ? p.form : "",
             p.form != NULL ? "," : "", p.distinct, p.fillers, p.templates, p.answer, p.wrong,
             p.positions, p.more);
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
            "attribute 'A' has 1 value of one token");
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

/* As many values, each with a label's text of its own, and positions as there may be. */
Test(sage_task, the_most_that_a_task_may_have) {
    SageTask task;
    MemoryStream *values = memory_open(arena), *texts = memory_open(arena),
                 *positions = memory_open(arena);
    for (int i = 0; i < 4092; i++) {
        fprintf(values->stream, ", \"%d\"", i);
        fprintf(texts->stream, ", \"%d\": \"%d\"", i, i);
    }
    for (int i = 1; i < 64; i++) {
        fprintf(positions->stream, ", \"%d\": \"end\"", i);
    }
    put(arena_format(
        arena,
        "{\"attributes\": {\"A\": [\"Mary\", \"John\"], \"B\": [\"Tom\"%s, \"Dan\"]}, "
        "\"labels\": {\"L\": {\"Mary\": \"f\"%s}}, \"answer\": \"A\", "
        "\"wrong\": {\"of\": \"A\", \"map\": {\"Mary\": \" John\", \"John\": \" Mary\"}}, "
        "\"templates\": {\"train\": [\"Then, {A} went to\"], \"test\": [\"{A} went to\"]}, "
        "\"positions\": {\"0\": \"A#1\"%s}}",
        memory_text(values), memory_text(texts), memory_text(positions)));
    must_open(&task, path, tokenizer, -1, 4, 475);
    cr_assert_eq(task.attributes[1].count, 4094);
    cr_assert_eq(task.labels[0].count, 4093);
    cr_assert_eq(task.labels[0].of[1][4092], 4092);
    cr_assert_eq(task.n_positions, 64);
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
    REFUSED(fillers, "{\"A\": {\"train\": [\"store\"], \"test\": [\"store\"]}}",
            "'A' is an attribute and a filler");
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
    assert_refused("and its counterfactual differ in length in attribute 'A'");
}

Test(sage_task, mistakes_in_answers_and_positions) {
    REFUSED(answer, "\"C\"", "'answer' names no attribute: expected one, or {\"of\": one");
    REFUSED(answer, "\"C\"", ", found C");
    REFUSED(answer, "3", "'answer' names no attribute");
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

Test(sage_task, keys_that_nobody_reads) {
    REFUSED(more, ", \"distint\": [[\"A\", \"B\"]]", "'distint' is no key of a task");
    REFUSED(more, ", \"labels\\u0000\": {}", "expected a key without U+0000");
    REFUSED(more, ", \"answer\": \"B\"", "'answer' stands twice in 'own'");
    REFUSED(templates,
            "{\"train\": [\"{A} {B} {B} to\"], \"test\": [\"{A} {B} {B} to\"], \"dev\": []}",
            "templates: 'dev' is neither train nor test");
    REFUSED(fillers, "{\"F\": {\"train\": [\"store\"], \"test\": [\"park\"], \"tset\": [\"x\"]}}",
            "F: 'tset' is neither train nor test");
    REFUSED(fillers,
            "{\"F\": {\"train\": [\"store\"], \"test\": [\"park\"]},"
            " \"F\": {\"train\": [\"store\"], \"test\": [\"park\"]}}",
            "'F' stands twice in 'fillers'");
    REFUSED(answer, "{\"off\": \"A\", \"map\": {}}", "answer: 'off' is neither of nor map");
    REFUSED(wrong, "{\"of\": \"A\", \"map\": {\"Mary\": \" is\", \"Mery\": \" is\"}}",
            "map: 'Mery' is no value of the attribute");
    Parts parts = good;
    parts.form = "\"A\"";
    parts.templates = "{\"train\": [{\"Mary\": \"{B} {B}\", \"John\": \"{B} {B}\", \"Tim\": "
                      "\"{B} {B}\"}], \"test\": [{\"Mary\": \"{B} {B}\"}]}";
    put_parts(parts);
    assert_refused("'Tim' is no value of 'form'");
    REFUSED(more, ", \"labels\": {\"gender\": {\"Mary\": \"f\", \"Jon\": \"m\"}}",
            "gender: 'Jon' is no value of any attribute");
    REFUSED(more, ", \"labels\": {\"gender\": {\"Mary\": \"f\", \"Mary\": \"m\"}}",
            "'Mary' stands twice in 'gender'");
    REFUSED(more, ", \"labels\": {\"gender\": {\"Mary\": 3}}", "gender: 'Mary': expected a string");
    REFUSED(more, ", \"labels\": {\"gender\": [\"Mary\"]}", "labels: 'gender': expected an object");
    REFUSED(more, ", \"labels\": []", "'labels': expected an object");
}

Test(sage_task, tokens_that_are_right_and_wrong) {
    REFUSED(wrong, "\"A\"", "as answer and as wrong");
    REFUSED(distinct, "[]", ": the prompt 'Then, ");
    REFUSED(wrong,
            "{\"of\": \"A\", \"map\": {\"Mary\": \" is\", \"John\": [\" is\", \" is\"], "
            "\"Tom\": \" is\"}}",
            "as wrong twice");
    /* what only the counterfactual of some prompts has */
    REFUSED(wrong,
            "{\"of\": \"A\", \"map\": {\"Mary\": [\" was\", \" Tom\"], \"John\": \" is\", "
            "\"Tom\": [\" is\", \" Tom\"]}}",
            "as answer and as wrong");
}

/* ---- labels and places ---- */

Test(sage_task, labels_of_the_shipped_task) {
    SageTask task;
    must_open(&task, "ioi", tokenizer, -1, 2, 475);
    cr_assert_eq(task.n_labels, 1);
    const SageLabel *gender = &task.labels[0];
    cr_assert_str_eq(gender->name, "gender");
    cr_assert_eq(gender->count, 2);
    for (size_t a = 0; a < task.n_attributes; a++) {
        for (size_t v = 0; v < task.attributes[a].count; v++) {
            const char *value = task.attributes[a].values[v];
            int of = gender->of[a][v];
            cr_assert_eq(of < 0, (int)a == task.form);
            cr_assert(of < 0 || (strcmp(gender->texts[of], "f") == 0) ==
                                    (strstr("Mary Sarah Kate Anna Emma Alice Amy", value) != NULL));
        }
    }
    sage_task_open(&task, arena, "agreement", tokenizer);
    cr_assert_eq(task.n_labels, 0);
}

Test(sage_task, labels_of_dropped_values_vanish) {
    Parts parts = good;
    SageTask task;
    parts.attributes = "{\"A\": [\"Mary\", \"Rumpelstiltskin\", \"John\", \"Tom\"], \"B\": "
                       "[\"Tom\", \"Mary\", \"John\"]}";
    parts.more = ", \"labels\": {\"none\": {}, \"gender\": {\"Rumpelstiltskin\": \"odd\", "
                 "\"John\": \"m\", \"Mary\": \"f\"}}";
    put_parts(parts);
    must_open(&task, path, tokenizer, -1, 2, 475);
    cr_assert_eq(task.n_labels, 2);
    cr_assert_eq(task.labels[0].count, 0);
    const SageLabel *gender = &task.labels[1];
    cr_assert_eq(gender->count, 2);
    cr_assert_str_eq(gender->texts[0], "m");
    cr_assert_str_eq(gender->texts[1], "f");
    cr_assert_arr_eq(gender->of[0], ((int[]){1, 0, -1}), 3 * sizeof(int)); /* Mary, John, Tom */
    cr_assert_arr_eq(gender->of[1], ((int[]){-1, 1, 0}), 3 * sizeof(int)); /* Tom, Mary, John */
}

/* A filler may begin as another does, or as the text behind it goes on, or be an attribute's value:
 * it is no place. */
Test(sage_task, places_among_fillers) {
    Parts parts = good;
    SageTask task;
    parts.fillers = "{\"F\": {\"train\": [\"go\", \"go on\"], \"test\": [\"Mary\", \"Mary and\"]}}";
    parts.templates = "{\"train\": [\"{F} {B} too\", \"{F} on {A} {F} on {B} {B} to\"],"
                      " \"test\": [\"{F} and {A} {F} and {B} {B} to\"]}";
    parts.positions = "{\"END\": \"end\"}";
    put_parts(parts);
    must_open(&task, path, tokenizer, -1, 40, 475);
    for (int s = 0; s < SAGE_SPLITS; s++) {
        for (size_t i = 0; i < task.n_prompts[s]; i++) {
            const SagePrompt *prompt = &task.prompts[s][i];
            cr_assert_eq(prompt->n_places, strstr(prompt->text, " too") != NULL ? 1 : 3);
            for (size_t p = 0; p < prompt->n_places; p++) {
                cr_assert_eq(prompt->places[p], p > 0 || prompt->n_places == 1);
            }
        }
    }
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
    "{\"split\": \"" split "\", \"text\": \"\\\"#$\", " FORM                                       \
    ", \"values\": {\"A\": \"Mary\", \"B\": \"John\"}, "                                           \
    "\"counterfactual\": {\"A\": " OTHER("Tom") ", \"B\": " OTHER("Tom") "}}\n"

/* A row like those, with the ids of its text. */
static char *row_of(const char *split, const char *text) {
    Tokens tokens = tokenizer_encode(tokenizer, text, strlen(text), false, arena);
    const char *row = split[1] == 'r' ? ROW("train") : ROW("test"), *at;
    char *ids = "1, 2, 3", *made = "";
    for (size_t i = 0; i < tokens.count; i++) {
        ids = arena_format(arena, i == 0 ? "%.0s%d" : "%s, %d", ids, (int)tokens.id[i]);
    }
    for (; (at = strpbrk(row, "1\\")) != NULL; row = at) {
        bool list = strncmp(at, "1, 2, 3", 7) == 0, quoted = strncmp(at, "\\\"#$", 4) == 0;
        made = arena_format(arena, "%s%.*s%s", made, (int)(at - row), row,
                            list     ? ids
                            : quoted ? text
                                     : "1");
        at += list ? 7 : quoted ? 4 : 1;
    }
    return arena_format(arena, "%s%s", made, row);
}

/* A text has places if the templates and fillers of its split and its values give it, whole. */
Test(sage_task, places_of_texts_that_are_read) {
    static const char *const tests[] = {
        "Then, Mary and John went to the park. John gave a ring to",
        "Then, Mary and John went to the store. John gave a ring to",
        "Then, John and Mary went to the park. Mary gave a ring to",
        "Then, Mary and John went to the park. John gave a ring",
        "Then, Mary and John went to the park. John gave a ring to to",
        ""};
    const char *rows =
        arena_format(arena, "%s%s",
                     row_of("train", "Then, Mary and John went to the store. John gave a ring to"),
                     row_of("train", tests[0]));
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        rows = arena_format(arena, "%s%s", rows, row_of("test", tests[i]));
    }
    char prompts[96];
    SageTask task;
    put(rows);
    snprintf(prompts, sizeof prompts, "%s/prompts.jsonl", folder);
    cr_assert_eq(rename(path, prompts), 0);
    put_parts(good);
    sage_task_open(&task, arena, path, tokenizer);
    sage_prompts_read(&task, prompts, tokenizer, (size_t)tokenizer_size(tokenizer));
    cr_assert_eq(task.prompts[SAGE_TRAIN][0].n_places, 3);
    cr_assert_eq(task.prompts[SAGE_TRAIN][1].n_places, 0);
    cr_assert_eq(task.n_prompts[SAGE_TEST], 6);
    cr_assert_eq(task.n_unmatched, 5);
    const SagePrompt *first = task.prompts[SAGE_TEST];
    static const size_t places[] = {0, 1, 1};
    cr_assert_eq(first->n_places, 3);
    cr_assert_arr_eq(first->places, places, sizeof places);
    for (size_t i = 1; i < 6; i++) {
        cr_assert_eq(first[i].n_places, 0);
    }
}

/* Rows in which one part of a good row is replaced. */
Test(sage_task, mistakes_in_prompts) {
    static const struct {
        const char *part, *by, *expected;
    } cases[] = {
        {"\"t", "\"t", NULL},
        {"[1, 2, 3]", "[1, 2, 4]",
         "prompts.jsonl:1: 'ids' are not those of 'text' in this model's"},
        {"\\\"#$", "#$", NULL}, /* behind <bos> */
        {"\\\"#$", "$", "prompts.jsonl:1: 'ids' are not those of 'text'"},
        {"\\\"#$", "%\\\"#$", "prompts.jsonl:1: 'ids' are not those of 'text'"},
        {"text", "words", NULL},
        {"\"train\"", "\"dev\"", "split"},
        {"\"train\"", "\"test\"", "needs prompts of both splits"},
        {"[1, 2, 3]", "[1, 2, 300000]", "an id outside the vocabulary in 'ids'"},
        {"[1, 2, 3]", "[1, -2, 3]", "an id outside the vocabulary in 'ids'"},
        {"[1, 2, 3]", "[1, 2.5, 3]", "an id outside the vocabulary in 'ids'"},
        {"[1, 2, 3]", "[]", "expected token ids in 'ids'"},
        {"[1, 2, 3]", "\"abc\"", "'ids': expected an array"},
        {"[1, 2, 3]", "[1, 2, 3, 4]", "differ in length in attribute 'A': 4 and 3 tokens"},
        {"[5]", "[6, 4]", "prompts.jsonl:1: the prompt '\"#$' has token 4 as answer and as wrong"},
        {"[5]", "[7, 5, 7]", "prompts.jsonl:1: the prompt '\"#$' has token 7 as wrong twice"},
        {OTHER("Tom"), OTHER("Mary"), "prompts.jsonl:1: the prompt '\"#$' has the same A in its"},
        {OTHER("Tom"), "{\"value\": \"Tom\", " FORM ", \"answer\": [6, 5]}",
         "prompts.jsonl:1: the prompt '\"#$' with another A has token 5 as answer and as wrong"},
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
        ATTEMPT(&error, sage_prompts_read(&task, prompts, tokenizer, vocabulary));
        cr_assert_eq(error.status, cases[i].expected == NULL ? STATUS_OK : STATUS_INPUT, "%zu: %s",
                     i, error.text);
        if (cases[i].expected != NULL) {
            cr_assert_not_null(strstr(error.text, cases[i].expected), "%s", error.text);
            cr_assert_not_null(strstr(error.text, "prompts.jsonl"), "%s", error.text);
        }
    }
}

/* ---- what FORMATS.md shows ---- */

/* The JSON of an example. */
static char *example_of(const char *text, const char *name) {
    const char *begin = arena_format(arena, "`%s`:\n\n```json\n", name);
    text = strstr(text, begin);
    cr_assert_not_null(text, "%s", name);
    text += strlen(begin);
    return arena_copy(arena, text, (size_t)(strstr(text, "```") - text));
}

/* Counts the nodes of each cross-section and checks that they are hook points at positions of the
 * task, none twice. */
static void check_cross_sections(const SageTask *task, const char *text, const char *const *names,
                                 const size_t *counts) {
    const Json *root = json_parse(arena, text, strlen(text), "cross-sections"), *c = root->child;
    for (size_t i = 0; i < root->length; i++, c = c->next) {
        const Json *nodes = json_need(c, "nodes", JSON_ARRAY);
        cr_assert_str_eq(c->key, names[i]);
        cr_assert_eq(nodes->length, counts[i], "%s", names[i]);
        for (const Json *n = nodes->child; n != NULL; n = n->next) {
            const char *name = json_text(n, "node", "");
            HookKind kind;
            int layer;
            bool vision;
            cr_assert(hook_parse(name, &kind, &layer, &vision), "%s", name);
            bool head = kind == HOOK_Q || kind == HOOK_K || kind == HOOK_V || kind == HOOK_Z;
            cr_assert_eq(n->length, 3);
            cr_assert_eq(json_is(json_get(n, "head"), JSON_NUMBER), head, "%s", name);
            (void)place_of(task->positions, task->n_positions, json_text(n, "position", ""));
            for (const Json *m = n->next; m != NULL; m = m->next) {
                cr_assert(strcmp(json_text(m, "node", ""), name) != 0 ||
                          !json_text_is(json_get(m, "position"), json_text(n, "position", "")) ||
                          json_size(m, "head", 99, 0, 99) != json_size(n, "head", 98, 0, 99));
            }
        }
    }
}

Test(sage_task, the_task_of_the_formats) {
    SageTask task;
    FileMap map = file_map(arena, "FORMATS.md");
    const char *text = arena_copy(arena, (const char *)map.data, map.size);
    put(example_of(text, "pets.json"));
    must_open(&task, path, tokenizer, -1, 60, 475);
    cr_assert_str_eq(task.name, "pets");
    cr_assert_eq(task.n_dropped, 0);
    cr_assert_eq(task.n_labels, 1);
    for (size_t i = 0; i < 60; i++) {
        const SagePrompt *prompt = &task.prompts[SAGE_TRAIN][i];
        check_prompt(&task, tokenizer, -1, prompt);
        assert_token(&task, tokenizer, &prompt->clean, "Pet",
                     value_of(&task, "Pet", prompt->values));
        assert_token(&task, tokenizer, &prompt->clean, "END", "the");
        cr_assert_eq(prompt->n_places, 2);
    }
    check_cross_sections(&task, example_of(text, "readers.json"),
                         (const char *[]){"readers", "attention"}, (size_t[]){2, 1});
}

/* 2211.00593 has 3 name movers, 8 backups, 4 S-inhibition, 4 induction, 3 duplicate-token heads. */
Test(sage_task, the_published_circuit_is_no_task) {
    SageTask task;
    Error error;
    FileMap map = file_map(arena, "tasks/ioi-gpt2-circuit.json");
    sage_task_open(&task, arena, "ioi", tokenizer);
    check_cross_sections(&task, arena_copy(arena, (const char *)map.data, map.size),
                         (const char *[]){"name-movers-z", "name-movers-qk", "s-inhibition-z",
                                          "s-inhibition-v", "induction-duplicate-z"},
                         (size_t[]){3 + 8, 3 * (3 + 8), 4, 4, 4 + 3});
    ATTEMPT(&error, sage_task_open(&task, arena, "ioi-gpt2-circuit", tokenizer));
    cr_assert_not_null(strstr(error.text, "nor a file"), "%s", error.text);
    ATTEMPT(&error, sage_task_open(&task, arena, "tasks/ioi-gpt2-circuit.json", tokenizer));
    cr_assert_not_null(strstr(error.text, "'name-movers-z' is no key of a task"), "%s", error.text);
}

/* Behaviour: LLaVA JSON as the published files have it, and where its turns stand in a sequence. */
#include <criterion/criterion.h>
#include <string.h>

#include "json.h"
#include "run_mapping.h"

static Conversation parse(const char *text, Arena *arena) {
    arena_reset(arena);
    const char *element[] = {text, text + strlen(text)};
    return conversation_read(arena, &(JsonArrayFile){"data.json", text, element, 1}, 0);
}

#define TURNS                                                                                      \
    "\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\"}]"

Test(conversation, what_published_files_hold) {
    static const struct {
        const char *text, *id, *image;
        size_t images, turns;
    } cases[] = {
        {"{\"id\":\"004539375\",\"image\":\"00453/004539375.jpg\"," TURNS "}", "004539375",
         "00453/004539375.jpg", 1, 2},
        {"{\"id\":42,\"image\":\"a.jpg\"," TURNS "}", "42", "a.jpg", 1, 2},
        {"{\"image\":\"a.jpg\"," TURNS "}", "", "a.jpg", 1, 2},
        {"{\"id\":\"wgByO4Y_0\",\"model\":\"\"," TURNS "}", "wgByO4Y_0", NULL, 0, 2},
        {"{\"id\":\"1\",\"image\":null," TURNS "}", "1", NULL, 0, 2},
        {"{\"id\":\"1\",\"image\":\"\"," TURNS "}", "1", NULL, 0, 2},
        {"{\"id\":\"1\",\"image\":[]," TURNS "}", "1", NULL, 0, 2},
        {"{\"id\":\"1\",\"image\":[\"a.jpg\"]," TURNS "}", "1", "a.jpg", 1, 2},
        {"{\"id\":\"1\",\"image\":[\"a.jpg\",\"b.jpg\"]," TURNS "}", "1", "a.jpg", 2, 2},
        {"{" TURNS ",\"image\":\"\\u00e9.jpg\",\"id\":\"last\"}", "last", "\xC3\xA9.jpg", 1, 2},
        {"{\"id\":\"1\",\"conversations\":[]}", "1", NULL, 0, 0},
        {"{\"id\":\"1\",\"conversations\":[{\"from\":\"human\",\"value\":\"\"},{\"value\":\"b\","
         "\"from\":\"gpt\"},"
         "{\"from\":\"human\",\"value\":\"c\"}]}",
         "1", NULL, 0, 3},
        {"{\"conversations\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\","
         "\"content\":\"a\"}]}",
         "", NULL, 0, 2},
    };
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Conversation c = parse(cases[i].text, arena);
        cr_assert_str_eq(c.id, cases[i].id);
        cr_assert_eq(c.n_images, cases[i].images, "%s", cases[i].text);
        cr_assert_eq(c.image == NULL, cases[i].image == NULL, "%s", cases[i].text);
        cr_assert(c.image == NULL || strcmp(c.image, cases[i].image) == 0, "%s", cases[i].text);
        cr_assert_eq(c.count, cases[i].turns, "%s", cases[i].text);
        for (size_t k = 0; k < c.count; k++) {
            cr_assert_eq(c.turns[k].model, k % 2 == 1, "%s", cases[i].text);
        }
    }
    arena_free(arena);
}

Test(conversation, what_is_none_is_refused) {
    static const char *const bad[][2] = {
        {"[]", "data.json: element 0: expected an object"},
        {"{\"id\":\"x\"}", "'conversations'"},
        {"{\"id\":\"x\",\"conversations\":\"a\"}", "'conversations'"},
        {"{\"id\":\"x\",\"image\":7," TURNS "}", "'image'"},
        {"{\"id\":\"x\",\"image\":\"a\\u0000b\"," TURNS "}", "'image'"},
        {"{\"id\":\"x\",\"image\":[7]," TURNS "}", "'image'"},
        {"{\"conversations\":[{\"from\":\"system\",\"value\":\"q\"}]}", "'system'"},
        {"{\"conversations\":[{\"from\":\"human\",\"value\":3}]}", "no text"},
        {"{\"conversations\":[{\"from\":\"human\"}]}", "no text"},
        {"{\"conversations\":[3]}", "a turn from human or gpt"},
    };
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        Error error;
        ATTEMPT(&error, (void)parse(bad[i][0], arena));
        cr_assert_eq(error.status, STATUS_INPUT, "%s", bad[i][0]);
        cr_assert_not_null(strstr(error.text, bad[i][1]), "%s: %s", bad[i][0], error.text);
        cr_assert_not_null(strstr(error.text, "data.json"), "%s", error.text);
    }
    arena_free(arena);
}

/* [bos] [image rows] [the whole rendered text, tokenized once]; `<image>` stays where the data has
 * it; a turn's span is its own tokens and its <end_of_turn>. */
/* As Jinja 3.1's trim, which is Python's strip: by Unicode, not by ASCII. */
Test(conversation, a_template_trims_as_python_strips) {
    static const char *const texts[][2] = {
        {" \t\r\n\f\v\x1c\x1d\x1e\x1f\xC2\x85\xC2\xA0\xE1\x9A\x80 a \xE3\x80\x80 b\xE2\x80\xA8 "
         "\xE2\x80\xA9\xE2\x81\x9F\xE3\x80\x80\xE2\x80\xAF\xE2\x80\x8A",
         "a \xE3\x80\x80 b"},
        {"\xE2\x80\x8B a\xEF\xBB\xBF", "\xE2\x80\x8B a\xEF\xBB\xBF"}, /* no white space */
        {"\xE2\x80\x80\xC2\x85", ""},
        {"", ""},
        {"\x80 a \x80", "\x80 a \x80"},
    };
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        Turn turn = conversation_prompt(arena, texts[i][0], true).turns[0];
        cr_assert_eq(turn.length, strlen(texts[i][1]), "%zu", i);
        cr_assert_eq(memcmp(turn.text, texts[i][1], turn.length), 0, "%zu", i);
        turn = conversation_prompt(arena, texts[i][0], false).turns[0];
        cr_assert_eq(turn.length, strlen(texts[i][0]), "untrimmed %zu", i);
    }
    arena_free(arena);
}

Test(conversation, image_rows_and_answers) {
    static const struct {
        const char *question, *rendered;
        int image_text;
    } cases[] = {
        {"<image>\\nwhat is red",
         "<start_of_turn>user\n<image>\nwhat is red<end_of_turn>\n<start_of_turn>model\n",
         IMAGE_TEXT_KEEP},
        {"what is red\\n<image>",
         "<start_of_turn>user\nwhat is red\n<image><end_of_turn>\n<start_of_turn>model\n",
         IMAGE_TEXT_KEEP},
        {"what is red\\n<image>",
         "<start_of_turn>user\nwhat is red\n<end_of_turn>\n<start_of_turn>model\n",
         IMAGE_TEXT_DROP},
    };
    static const char answers[] =
        "a circle<end_of_turn>\n<start_of_turn>user\nand blue<end_of_turn>\n"
        "<start_of_turn>model\na square<end_of_turn>\n";
    Compute compute;
    Vlm vlm;
    Arena *arena = arena_new(), *own = arena_new();
    compute_open(&compute, own, 1);
    vlm_open(&vlm, own, &compute, &(VlmOptions){.llm = "weights/gemma2", .vision = "weights/clip"});
    size_t patches = vlm.vit.config.n_patches;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[1024], whole[1024];
        snprintf(text, sizeof text,
                 "{\"conversations\":[{\"from\":\"human\",\"value\":\"%s\"},{\"from\":\"gpt\","
                 "\"value\":\"a circle\"},"
                 "{\"from\":\"human\",\"value\":\"and blue\"},{\"from\":\"gpt\",\"value\":\"a "
                 "square\"}]}",
                 cases[i].question);
        Conversation c = parse(text, arena);
        vlm.image_text = cases[i].image_text;
        Sequence s = vlm_sequence(&vlm, c.turns, c.count, true, 0, own);
        snprintf(whole, sizeof whole, "%s%s", cases[i].rendered, answers);
        Tokens tokens = tokenizer_encode(vlm.tokenizer, whole, strlen(whole), false, own);
        cr_assert_eq(s.n_image, patches);
        cr_assert_eq(s.rows, 1 + patches + tokens.count);
        cr_assert_eq(s.ids[0], vlm.llm.config.bos);
        for (size_t r = 1; r < s.rows; r++) {
            cr_assert_eq(s.ids[r], r <= patches ? -1 : tokens.id[r - 1 - patches], "row %zu", r);
        }
        cr_assert_eq(s.n_answers, 2);
        int32_t end = tokenizer_id(vlm.tokenizer, "<end_of_turn>");
        for (size_t a = 0; a < 2; a++) {
            size_t length;
            Range span = s.answers[a];
            cr_assert_eq(s.ids[span.end - 1], end);
            char *said = tokenizer_decode(vlm.tokenizer, s.ids + span.begin,
                                          span.end - 1 - span.begin, false, own, &length);
            cr_assert_str_eq(said, a == 0 ? "a circle" : "a square");
        }
        cr_assert_eq(s.prompt_rows, s.answers[0].begin);
    }
    arena_free(arena);
    arena_free(own);
}

/* References that are no strings: as Python's str() writes what json.loads reads. */
Test(question, references_as_python_has_them) {
    static const char *const cases[][2] = {
        /* NULL: none; "": refused */
        {"true", "True"},
        {"false", "False"},
        {"3", "3"},
        {"-12", "-12"},
        {"123456789012345678901234567890", "123456789012345678901234567890"},
        {"2.5", "2.5"},
        {"2.50", "2.5"},
        {"3.0", "3.0"},
        {"1e3", "1000.0"},
        {"-0.0", "-0.0"},
        {"1E15", "1000000000000000.0"},
        {"1e16", "1e+16"},
        {"1e-7", "1e-07"},
        {"0.0001", "0.0001"},
        {"0.1", "0.1"},
        {"\"as it is\"", "as it is"},
        {"[{\"answer\": 2.5}]", "2.5"},
        {"null", NULL},
        {"[]", NULL},
        {"[null]", ""},
        {"NaN", ""},
        {"1e999", ""},
        {"[[1]]", ""},
        {"[\"a\", {}]", ""},
        {"{\"text\": 1}", ""},
    };
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[256];
        const char *expected = cases[i][1];
        snprintf(text, sizeof text, "{\"image\": \"a\", \"text\": \"q\", \"answer\": %s}",
                 cases[i][0]);
        const Json *line = json_parse(arena, text, strlen(text), "q");
        Question q;
        Error error;
        ATTEMPT(&error, q = question_parse(arena, line, "q", 1));
        cr_assert_eq(error.status != STATUS_OK, expected != NULL && *expected == '\0', "%s", text);
        if (error.status != STATUS_OK) {
            cr_assert_str_eq(error.text,
                             "q:1: an answer is neither text nor number, true or false");
            continue;
        }
        const Json *found = q.n_answers > 0 ? q.answers[0] : NULL;
        cr_assert_eq(found == NULL, expected == NULL, "%s", cases[i][0]);
        cr_assert(found == NULL || strcmp(found->text, expected) == 0, "%s: %s", cases[i][0],
                  found->text);
        Scores scores = {0};
        bool exact = expected != NULL && score_answer(&scores, expected, strlen(expected), &q);
        cr_assert_eq(exact, expected != NULL, "%s", cases[i][0]);
        cr_assert_eq(scores.with_answer, expected != NULL ? 1 : 0);
    }
    arena_free(arena);
}

/* The benchmark's own evaluation of marks, articles and number words; the mean over answers left
 * out; POPE's yes and no. */
Test(question, answers_are_scored) {
    static const struct {
        const char *answers, *given;
        double vqa;
        int truth; /* 10 yes, 20 no, and 1 yes, 2 no that was said; 0: no such question */
    } cases[] = {{"[\"red\"]", "Red.", 1, 0},
                 {"[\"2.5 m\"]", "2.5 m", 1, 0},
                 {"[\"a dog\"]", "the dog", 1, 0},
                 {"[\"two\"]", "2", 1, 0},
                 {"[\"x y\"]", "x-y", 1, 0},
                 {"[\"xy\"]", "x- y", 0, 0},
                 {"[\"x y\"]", "x -y", 1, 0},
                 {"[\"1000\"]", "1,000", 1, 0},
                 {"[\"c b\"]", "c\t\r\nb", 1, 0},
                 {"[\"end.9\"]", "end.9", 1, 0},
                 {"[\"end/\"]", "end./", 1, 0},
                 {"[\"r\", \"r\", \"r\", \"r\", \"b\"]", "r", 1, 0},
                 {"[\"r\", \"r\", \"b\"]", "r", (2.0 / 3 + 2.0 / 3) / 3, 0},
                 {"[\"r\", \"b\"]", "g", 0, 0},
                 {"[\"yes\"]", "Yes, it is", 0, 11},
                 {"[\"yes\"]", "It is not. Yes", 0, 12},
                 {"[\"no\"]", "No", 1, 22},
                 {"[\"no\"]", "certainly", 0, 21},
                 {"[\"no\"]", "it isn't so{", 0, 21}};
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text = arena_format(
            arena, "{\"image\": \"a\", \"text\": \"q\", \"answers\": %s}", cases[i].answers);
        Question q = question_parse(arena, json_parse(arena, text, strlen(text), "q"), "q", 1);
        Scores s = {0};
        score_answer(&s, cases[i].given, strlen(cases[i].given), &q);
        cr_expect(s.vqa > cases[i].vqa - 1e-12 && s.vqa < cases[i].vqa + 1e-12, "%s %s: %g",
                  cases[i].answers, cases[i].given, s.vqa);
        size_t truth = s.yes_no == 0
                           ? 0
                           : 11 * s.true_yes + 12 * s.false_no + 22 * s.true_no + 21 * s.false_yes;
        cr_expect_eq(truth, (size_t)cases[i].truth, "%s %s", cases[i].answers, cases[i].given);
    }
    arena_free(arena);
}

/* eval.c: visual questions answered through the adapter, and their scores. */
#include "adapter.h"
#include "lexical.h"

#include <string.h>

typedef struct Question {
    const char *id, *image, *text;
    size_t text_length;
    const Json *answers; /* a string, or a list of strings or of {"answer": string} */
} Question;

typedef struct Scores {
    size_t asked, skipped, with_answer;
    size_t exact;
    double vqa;
    size_t yes_no, true_yes, false_yes, true_no, false_no;
} Scores;

/* ---- questions: one JSON object a line ---- */

static const Json *first_of(const Json *object, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const Json *value = json_get(object, names[i]);
        if (value != NULL && !json_is(value, JSON_NULL)) {
            return value;
        }
    }
    return NULL;
}

static Question question_parse(const Json *line, const char *name, size_t number) {
    static const char *const ids[] = {"question_id", "id"},
                             *const texts[] = {"text", "question", "prompt"},
                             *const answers[] = {"answers", "answer", "label", "ground_truth"};
    const Json *id = first_of(line, ids, 2), *text = first_of(line, texts, 3),
               *image = json_get(line, "image");
    if (!json_is(text, JSON_STRING)) {
        fail(STATUS_INPUT, "%s:%zu: no 'text' (or 'question') that is a string", name, number);
    }
    if (!json_is(image, JSON_STRING) || strlen(image->text) != image->length) {
        fail(STATUS_INPUT, "%s:%zu: no 'image' that is a file name", name, number);
    }
    return (Question){.id = json_is(id, JSON_STRING) || json_is(id, JSON_NUMBER) ? id->text : "",
                      .image = image->text,
                      .text = text->text,
                      .text_length = text->length,
                      .answers = first_of(line, answers, 4)};
}

static const Json *answer_text(const Json *answer) {
    return json_is(answer, JSON_OBJECT) ? json_get(answer, "answer") : answer;
}

/* ---- scores ---- */

/* Exact match after trimming, lower-casing (ASCII) and dropping a final full stop. */
static bool same_answer(const char *a, size_t na, const char *b, size_t nb) {
    const char *ends[2] = {a, b};
    size_t lengths[2] = {na, nb};
    for (int i = 0; i < 2; i++) {
        while (lengths[i] > 0 && strchr(" \t\r\n", ends[i][0]) != NULL && ends[i][0] != '\0') {
            ends[i]++;
            lengths[i]--;
        }
        while (lengths[i] > 0 && ends[i][lengths[i] - 1] != '\0' &&
               strchr(" \t\r\n.", ends[i][lengths[i] - 1]) != NULL) {
            lengths[i]--;
        }
    }
    if (lengths[0] != lengths[1]) {
        return false;
    }
    for (size_t i = 0; i < lengths[0]; i++) {
        int x = (unsigned char)ends[0][i], y = (unsigned char)ends[1][i];
        x += x >= 'A' && x <= 'Z' ? 'a' - 'A' : 0;
        y += y >= 'A' && y <= 'Z' ? 'a' - 'A' : 0;
        if (x != y) {
            return false;
        }
    }
    return true;
}

/* VQA accuracy: over each answer left out, min(1, matches among the others / 3), the mean; a single
 * reference answer counts as all of them. */
static double vqa_accuracy(const char *given, const Json *answers, Arena *arena) {
    size_t n = json_is(answers, JSON_ARRAY) ? answers->length : 1, matches = 0,
           length = strlen(given);
    char *form = arena_alloc(arena, length + 2, 1);
    lexical_vqa_form(form, given, length);
    const Json *answer = json_is(answers, JSON_ARRAY) ? answers->child : answers;
    for (size_t i = 0; i < n && answer != NULL; i++, answer = answer->next) {
        const Json *text = answer_text(answer);
        if (json_is(text, JSON_STRING)) {
            char *other = arena_alloc(arena, text->length + 2, 1);
            lexical_vqa_form(other, text->text, text->length);
            matches += strcmp(form, other) == 0 ? 1 : 0;
        }
    }
    if (n == 1) {
        return matches > 0 ? 1.0 : 0.0;
    }
    double with = (double)matches / 3.0, without = ((double)matches - 1.0) / 3.0;
    with = with < 1.0 ? with : 1.0;
    without = without < 1.0 ? without : 1.0;
    /* leaving out one of the matches, or one of the n - matches others */
    return matches == 0 ? 0.0
                        : ((double)matches * without + (double)(n - matches) * with) / (double)n;
}

/* The yes or no of an answer: of its first sentence, "no" or "not" among the words means no (as
 * POPE's evaluation). */
static bool answer_is_yes(const char *text) {
    char word[8];
    size_t n = 0;
    for (const char *p = text;; p++) {
        char c = *p >= 'A' && *p <= 'Z' ? (char)(*p - 'A' + 'a') : *p;
        if ((c >= 'a' && c <= 'z') || c == '\'') {
            if (n < sizeof word - 1) {
                word[n++] = c;
            }
            continue;
        }
        word[n] = '\0';
        if (strcmp(word, "no") == 0 || strcmp(word, "not") == 0) {
            return false;
        }
        n = 0;
        if (c == '\0' || c == '.') {
            return true;
        }
    }
}

/* Whether it is a reference answer exactly. */
static bool score_answer(Scores *scores, const char *given, const Question *question,
                         Arena *arena) {
    size_t length = strlen(given);
    const Json *answers = question->answers;
    const Json *first = answer_text(json_is(answers, JSON_ARRAY) ? answers->child : answers);
    bool exact = false;
    if (!json_is(first, JSON_STRING)) {
        return false;
    }
    for (const Json *a = json_is(answers, JSON_ARRAY) ? answers->child : answers; a != NULL;
         a = a->next) {
        const Json *text = answer_text(a);
        exact |= json_is(text, JSON_STRING) && same_answer(given, length, text->text, text->length);
        if (!json_is(answers, JSON_ARRAY)) {
            break;
        }
    }
    scores->with_answer++;
    scores->exact += exact ? 1 : 0;
    scores->vqa += vqa_accuracy(given, answers, arena);
    bool yes = same_answer(first->text, first->length, "yes", 3),
         no = same_answer(first->text, first->length, "no", 2);
    if (yes || no) {
        bool said = answer_is_yes(given);
        scores->yes_no++;
        scores->true_yes += yes && said ? 1 : 0;
        scores->false_no += yes && !said ? 1 : 0;
        scores->true_no += no && !said ? 1 : 0;
        scores->false_yes += no && said ? 1 : 0;
    }
    return exact;
}

static double ratio(size_t a, size_t b) {
    return b > 0 ? (double)a / (double)b : 0.0;
}

static void scores_write(FILE *out, const Scores *s) {
    double precision = ratio(s->true_yes, s->true_yes + s->false_yes);
    double recall = ratio(s->true_yes, s->true_yes + s->false_no);
    JsonOut json = json_out_start(out, 2);
    json_out_object(&json, NULL);
    json_out_int(&json, "questions", (int64_t)s->asked);
    json_out_int(&json, "skipped", (int64_t)s->skipped);
    json_out_int(&json, "scored", (int64_t)s->with_answer);
    json_out_double(&json, "exact_match", ratio(s->exact, s->with_answer));
    json_out_double(&json, "vqa_accuracy",
                    s->with_answer > 0 ? s->vqa / (double)s->with_answer : 0.0);
    json_out_object(&json, "yes_no");
    json_out_int(&json, "questions", (int64_t)s->yes_no);
    json_out_double(&json, "accuracy", ratio(s->true_yes + s->true_no, s->yes_no));
    json_out_double(&json, "precision", precision);
    json_out_double(&json, "recall", recall);
    json_out_double(&json, "f1",
                    precision + recall > 0.0 ? 2.0 * precision * recall / (precision + recall)
                                             : 0.0);
    json_out_end(&json);
    json_out_end(&json);
}

/* ---- the run ---- */

typedef struct Evaluation {
    const EvalOptions *options;
    const Console *console;
    Vlm vlm;
    ImagePool pool;
    FileMap file;
    Arena *arena; /* one question at a time */
    float *images;
    Scores scores;
} Evaluation;

/* The next line of the questions that is not blank; false at the end. */
static bool next_line(const FileMap *file, size_t *position, const char **line, size_t *length,
                      size_t *number) {
    while (*position < file->size) {
        const char *start = (const char *)file->data + *position;
        const char *end = memchr(start, '\n', file->size - *position);
        *length = end != NULL ? (size_t)(end - start) : file->size - *position;
        *position += *length + 1;
        (*number)++;
        for (size_t i = 0; i < *length; i++) {
            if (strchr(" \t\r", start[i]) == NULL || start[i] == '\0') {
                *line = start;
                return true;
            }
        }
    }
    return false;
}

static Sequence eval_prompt(Evaluation *e, const Question *question) {
    bool has = strstr(question->text, "<image>") != NULL;
    char *text = arena_format(e->arena, "%s%s", has ? "" : "<image>\n", question->text);
    Turn turn = {text, strlen(text), false};
    return vlm_sequence(&e->vlm, &turn, 1, true, 0, e->arena);
}

static void eval_question(Evaluation *e, const Question *question, FILE *out) {
    Error cause;
    volatile size_t index = 0;
    char *path = path_join(e->arena, e->options->images, question->image);
    ATTEMPT(&cause, index = image_pool_add(&e->pool, path));
    if (cause.status != STATUS_OK) {
        if (e->options->strict || cause.status == STATUS_RESOURCE) {
            fail(cause.status, "%s", cause.text);
        }
        console_line(e->console, "left out: %s", cause.text);
        e->scores.skipped++;
        return;
    }
    if (e->options->permute) {
        image_pool_permuted(&e->pool, index, e->options->seed, e->images);
    } else {
        image_pool_rows(&e->pool, index, e->images);
    }
    Sequence sequence = eval_prompt(e, question);
    Tokens tokens = vlm_generate(&e->vlm, &sequence, e->images, &e->options->generate, e->arena);
    size_t length;
    char *text =
        tokenizer_decode(e->vlm.tokenizer, tokens.id, tokens.count, true, e->arena, &length);
    bool exact = score_answer(&e->scores, text, question, e->arena);
    JsonOut json = json_out_start(out, 0);
    json_out_object(&json, NULL);
    json_out_text(&json, "question_id", question->id);
    json_out_text(&json, "image", question->image);
    json_out_bytes(&json, "prompt", question->text, question->text_length);
    json_out_bytes(&json, "text", text, length);
    json_out_bool(&json, "exact", exact);
    json_out_end(&json);
    e->scores.asked++;
}

/* Only adds its image to the pool, if it can be read: the answering pass names it if not. */
static void eval_add(Evaluation *e, const Question *question) {
    Error cause;
    char *path = path_join(e->arena, e->options->images, question->image);
    ATTEMPT(&cause, (void)image_pool_add(&e->pool, path));
    if (cause.status == STATUS_RESOURCE) {
        fail(STATUS_RESOURCE, "%s", cause.text);
    }
}

/* Visits every question; out NULL: only adds its image to the pool, so that the control knows them
 * all. */
static void eval_pass(Evaluation *e, FILE *out) {
    const char *line;
    size_t position = 0, length, number = 0, done = 0;
    Progress progress = progress_start(out != NULL ? "answering" : "reading images", "bytes", 0,
                                       e->file.size, e->console->quiet);
    while (next_line(&e->file, &position, &line, &length, &number)) {
        arena_reset(e->arena);
        const char *name = arena_format(e->arena, "%s:%zu", e->options->questions, number);
        const Json *value = json_parse(e->arena, line, length, name);
        Question question = question_parse(value, e->options->questions, number);
        if (out != NULL) {
            eval_question(e, &question, out);
        } else {
            eval_add(e, &question);
        }
        done = position < e->file.size ? position : e->file.size;
        progress_set(&progress, done, NULL);
    }
    progress_end(&progress);
    if (number == 0) {
        fail(STATUS_INPUT, "%s: no questions", e->options->questions);
    }
}

static void eval_run(Evaluation *e, const Compute *compute) {
    const EvalOptions *o = e->options;
    Arena *arena = arena_new();
    e->arena = arena_within(arena);
    path_make_directory(o->out);
    vlm_open(&e->vlm, arena, compute,
             &(VlmPaths){.llm = o->llm, .vision = o->vision, .adapter = o->adapter});
    e->vlm.image_text = o->image_text;
    image_pool_open(&e->pool, arena, &e->vlm);
    e->file = file_map(arena, o->questions);
    size_t patches = e->vlm.vit.config.n_patches;
    e->images = arena_floats(arena, patches, e->vlm.llm.config.d_model);
    char *answers_path = path_join(arena, o->out, "answers.jsonl");
    char *scores_path = path_join(arena, o->out, "scores.json");
    if (o->permute) {
        eval_pass(e, NULL);
    }
    OutFile *answers = out_open(answers_path);
    eval_pass(e, answers->stream);
    out_commit(answers);
    OutFile *scores = out_open(scores_path);
    scores_write(scores->stream, &e->scores);
    out_commit(scores);
    console_line(e->console, "%zu questions: exact match %.4f%s", e->scores.asked,
                 ratio(e->scores.exact, e->scores.with_answer),
                 o->permute ? " (image tokens permuted)" : "");
    arena_free(arena);
}

void adapter_eval(const Compute *compute, const EvalOptions *options, const Console *console) {
    Evaluation e = {.options = options, .console = console};
    eval_run(&e, compute);
}

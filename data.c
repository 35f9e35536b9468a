/* data.c: what is handed in about pictures, and how words are compared. */
#include "data.h"

#include "kernels.h"
#include "unicode.h"
#include "zip.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char image_literal[] = "<image>";

/* ---- conversations ---- */

/* found: what stands there instead, or NULL. */
REFSAE_NORETURN static void conversation_fail(const Conversation *conversation, const char *name,
                                              const char *what, const char *found) {
    bool known = conversation->id[0] != '\0', is = found != NULL;
    fail(STATUS_INPUT, "%s: %s%s%s%s%s%s%s", name, known ? "example '" : "", conversation->id,
         known ? "': " : "", what, is ? ", found '" : "", is ? found : "", is ? "'" : "");
}

static void parse_turns(Conversation *conversation, const Json *list, const char *name,
                        Arena *arena) {
    if (!json_is(list, JSON_ARRAY)) {
        conversation_fail(conversation, name, "'conversations' is not a list", NULL);
    }
    conversation->turns = arena_alloc(arena, list->length + 1, sizeof(Turn));
    for (const Json *item = list->child; item != NULL; item = item->next) {
        bool llava = json_get(item, "from") != NULL;
        const Json *from = json_get(item, llava ? "from" : "role"),
                   *value = json_get(item, llava ? "value" : "content");
        bool model = json_text_is(from, "gpt") || json_text_is(from, "model") ||
                     json_text_is(from, "assistant");
        if (!model && !json_text_is(from, "human") && !json_text_is(from, "user")) {
            conversation_fail(conversation, name, "expected a turn from human or gpt",
                              json_is(from, JSON_STRING) ? from->text : NULL);
        }
        if (!json_is(value, JSON_STRING)) {
            conversation_fail(conversation, name, "a turn has no text", NULL);
        }
        conversation->turns[conversation->count++] = (Turn){value->text, value->length, model};
    }
}

static const char *id_text(const Json *id) {
    return json_is(id, JSON_STRING) || json_is(id, JSON_NUMBER) ? id->text : "";
}

static bool is_file_name(const Json *value) {
    return json_is(value, JSON_STRING) && strlen(value->text) == value->length;
}

/* {"id", "image": name or list of names, "conversations": turns} */
Conversation conversation_read(Arena *arena, const JsonArrayFile *file, size_t index) {
    const Json *element = json_array_read(file, index, arena);
    if (!json_is(element, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: element %zu: expected an object", file->name, index);
    }
    const char *name = element->text; /* which element it is */
    Conversation c = {.id = id_text(json_get(element, "id"))};
    const Json *image = json_get(element, "image");
    size_t listed = 1;
    if (json_is(image, JSON_ARRAY)) {
        listed = image->length;
        image = image->child;
    }
    if (image != NULL && !json_is(image, JSON_NULL)) {
        if (!is_file_name(image)) {
            conversation_fail(&c, name, "'image' is not a file name", NULL);
        }
        c.image = image->length > 0 ? image->text : NULL;
    }
    c.n_images = c.image != NULL ? listed : 0;
    parse_turns(&c, json_get(element, "conversations"), name, arena);
    return c;
}

/* As Python's str.strip, a template's `trim`. */
static void turn_strip(Turn *turn) {
    size_t begin = turn->length, end = begin, size;
    uint32_t code;
    for (size_t at = 0; at < turn->length; at += size) {
        size = utf8_decode(turn->text + at, turn->length - at, &code);
        bool space = size > 0 &&
                     ((unicode_class(code) & UNICODE_SPACE) != 0 || (code >= 0x1C && code <= 0x1F));
        size = size > 0 ? size : 1;
        begin = space || begin < at ? begin : at;
        end = space ? end : at + size;
    }
    *turn = (Turn){turn->text + begin, end - begin, turn->model};
}

Conversation conversation_prompt(Arena *arena, const char *prompt, bool trimmed) {
    Conversation c = {.id = ""};
    if (prompt[strspn(prompt, " \t\r\n")] == '[') {
        const Json *list = json_parse(arena, prompt, strlen(prompt), "--prompt");
        if (list->length == 0) {
            fail(STATUS_INPUT, "--prompt: the list has no turn");
        }
        parse_turns(&c, list, "--prompt", arena);
    } else {
        c.turns = arena_alloc(arena, 1, sizeof(Turn));
        c.turns[c.count++] = (Turn){prompt, strlen(prompt), false};
    }
    for (size_t i = 0; trimmed && i < c.count; i++) {
        turn_strip(&c.turns[i]);
        if (c.turns[i].model != (i % 2 == 1)) {
            fail(STATUS_INPUT,
                 "--prompt: conversation roles must alternate user/model/user/model/...");
        }
    }
    return c;
}

/* Where the next literal begins, from `from` on; the length of the turn: nowhere. */
static size_t image_literal_at(const Turn *turn, size_t from) {
    size_t mark = sizeof image_literal - 1;
    while (from + mark <= turn->length && memcmp(turn->text + from, image_literal, mark) != 0) {
        from++;
    }
    return from + mark <= turn->length ? from : turn->length;
}

void conversation_place_image(Arena *arena, Conversation *conversation) {
    Turn *first = NULL;
    for (size_t i = conversation->count; i-- > 0;) {
        Turn *turn = &conversation->turns[i];
        if (image_literal_at(turn, 0) < turn->length) {
            return;
        }
        first = turn->model ? first : turn;
    }
    if (first != NULL) {
        size_t mark = sizeof image_literal; /* with a newline in place of its 0 */
        char *text = arena_alloc(arena, mark + first->length + 1, 1);
        memcpy(text, image_literal, mark);
        text[mark - 1] = '\n';
        memcpy(text + mark, first->text, first->length);
        *first = (Turn){text, mark + first->length, false};
    }
}

Turn turn_replace_image(Arena *arena, const Turn *turn, const char *text, size_t put) {
    size_t mark = sizeof image_literal - 1;
    Arena *scratch = arena_new();
    MemoryStream *out = memory_open(scratch);
    for (size_t from = 0, at; from < turn->length; from = at + mark) {
        at = image_literal_at(turn, from);
        fwrite(turn->text + from, 1, at - from, out->stream);
        fwrite(text, 1, at < turn->length ? put : 0, out->stream);
    }
    text = memory_text(out);
    Turn replaced = {arena_copy(arena, text, out->length), out->length, turn->model};
    arena_free(scratch);
    return replaced;
}

/* ---- questions and scores ---- */

static const Json *first_of(const Json *object, const char *const *names) {
    for (; *names != NULL; names++) {
        const Json *value = json_set(object, *names);
        if (value != NULL) {
            return value;
        }
    }
    return NULL;
}

/* As Python's str(), which the metrics' own code calls: True, 3, 2.5. NULL: it is none of these. */
static const Json *reference_text(Arena *arena, const Json *value) {
    char buffer[JSON_NUMBER_SIZE];
    const char *text = buffer;
    double number = json_double(value);
    if (json_is(value, JSON_STRING)) {
        return value;
    }
    if (json_is(value, JSON_TRUE) || json_is(value, JSON_FALSE)) {
        text = value->kind == JSON_TRUE ? "True" : "False";
    } else if (!isfinite(number)) {
        return NULL;
    } else if (strpbrk(value->text, ".eE") == NULL) {
        text = value->text; /* a whole number of any size */
    } else if (fabs(number) < 1e16 && number == floor(number)) {
        snprintf(buffer, sizeof buffer, "%.1f", number);
    } else {
        json_format_double(buffer, number);
    }
    Json *string = arena_alloc(arena, 1, sizeof *string);
    size_t length = strlen(text);
    *string =
        (Json){.kind = JSON_STRING, .text = arena_copy(arena, text, length), .length = length};
    return string;
}

Question question_parse(Arena *arena, const Json *line, const char *name, size_t number) {
    static const char *const ids[] = {"question_id", "id", NULL},
                             *const texts[] = {"text", "question", "prompt", NULL},
                             *const references[] = {"answers", "answer", "label", "ground_truth",
                                                    NULL};
    const Json *text = first_of(line, texts), *image = json_get(line, "image"),
               *answer = first_of(line, references);
    if (!json_is(text, JSON_STRING)) {
        fail(STATUS_INPUT, "%s:%zu: no 'text' (or 'question') that is a string", name, number);
    }
    if (!is_file_name(image)) {
        fail(STATUS_INPUT, "%s:%zu: no 'image' that is a file name", name, number);
    }
    Question question = {.id = id_text(first_of(line, ids)),
                         .image = image->text,
                         .text = {text->text, text->length, false}};
    bool list = json_is(answer, JSON_ARRAY);
    question.answers = arena_alloc(arena, list ? answer->length + 1 : 1, sizeof(Json *));
    for (const Json *a = list ? answer->child : answer; a != NULL; a = list ? a->next : NULL) {
        const Json *string = json_is(a, JSON_OBJECT) ? json_get(a, "answer") : a;
        const Json *reference = reference_text(arena, string);
        if (reference == NULL) {
            fail(STATUS_INPUT, "%s:%zu: an answer is neither text nor number, true or false", name,
                 number);
        }
        question.answers[question.n_answers++] = reference;
    }
    return question;
}

static char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static void trim(const char **text, size_t *length, const char *front, const char *back) {
    while (*length > 0 && (*text)[0] != '\0' && strchr(front, (*text)[0]) != NULL) {
        (*text)++;
        (*length)--;
    }
    while (*length > 0 && (*text)[*length - 1] != '\0' &&
           strchr(back, (*text)[*length - 1]) != NULL) {
        (*length)--;
    }
}

/* Exact match after trimming, lower-casing (ASCII) and dropping a final full stop. */
static bool same_answer(const char *a, size_t na, const char *b, size_t nb) {
    trim(&a, &na, " \t\r\n", " \t\r\n.");
    trim(&b, &nb, " \t\r\n", " \t\r\n.");
    bool same = na == nb;
    for (size_t i = 0; same && i < na; i++) {
        same = lower(a[i]) == lower(b[i]);
    }
    return same;
}

static bool in_list(const char *word, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(word, list[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* One word at out + start, 0-terminated: number words become digits, articles go. Returns the new
 * end. */
static size_t vqa_word(char *out, size_t start, size_t end) {
    static const char *const forms[][2] = {
        {"none", "0"}, {"zero", "0"}, {"one", "1"}, {"two", "2"},   {"three", "3"},
        {"four", "4"}, {"five", "5"}, {"six", "6"}, {"seven", "7"}, {"eight", "8"},
        {"nine", "9"}, {"ten", "10"}, {"a", ""},    {"an", ""},     {"the", ""}};
    for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
        if (strcmp(out + start, forms[k][0]) == 0) {
            strcpy(out + start, forms[k][1]);
            return start + strlen(forms[k][1]);
        }
    }
    return end;
}

/* VQA's answer form: lower case, number words to digits, articles removed, white space single; and
 * as the benchmark's own evaluation a punctuation mark that stands beside a space anywhere (or any
 * mark, if a comma stands between digits) vanishes, another becomes a space; a period vanishes
 * unless a digit follows; apostrophes and colons stay. out has room for length + 2 bytes. */
static void lexical_vqa_form(char *out, const char *text, size_t length) {
    static const char marks[] = ";/[]\"{}()=+\\_-><@`,?!";
    bool beside_space[sizeof marks] = {false}, comma = false;
    for (size_t i = 0; i < length; i++) {
        const char *mark = text[i] != '\0' ? strchr(marks, text[i]) : NULL;
        char before = i > 0 ? text[i - 1] : 'x', after = i + 1 < length ? text[i + 1] : 'x';
        if (mark != NULL) {
            beside_space[mark - marks] |= before == ' ' || after == ' ';
            comma |=
                text[i] == ',' && before >= '0' && before <= '9' && after >= '0' && after <= '9';
        }
    }
    size_t n = 0, start = 0;
    for (size_t i = 0; i <= length; i++) {
        char c = i < length ? lower(text[i]) : ' ', after = i + 1 < length ? text[i + 1] : 'x';
        const char *mark = c != '\0' ? strchr(marks, c) : NULL;
        if (c == '.' ? after < '0' || after > '9'
                     : mark != NULL && (comma || beside_space[mark - marks])) {
            continue;
        }
        if (mark == NULL && c != ' ' && c != '\t' && c != '\n' && c != '\r') {
            out[n++] = c;
            continue;
        }
        out[n] = '\0';
        n = vqa_word(out, start, n);
        if (n > start) {
            out[n++] = ' ';
        }
        start = n;
    }
    out[n > 0 ? n - 1 : 0] = '\0';
}

static bool same_vqa_form(const char *a, size_t na, const char *b, size_t nb, Arena *scratch) {
    char *x = arena_alloc(scratch, na + 2, 1), *y = arena_alloc(scratch, nb + 2, 1);
    lexical_vqa_form(x, a, na);
    lexical_vqa_form(y, b, nb);
    return strcmp(x, y) == 0;
}

/* VQA accuracy of m matches among n reference answers: the mean, over each answer left out, of
 * min(1, matches among the others / 3):
 *
 *   (m min(1, (m - 1) / 3) + (n - m) min(1, m / 3)) / n
 *
 * A single reference answer counts as all of them. */
static double vqa_accuracy(size_t matches, size_t n) {
    if (matches == 0 || n == 1) {
        return matches > 0 ? 1.0 : 0.0;
    }
    double with = (double)matches / 3.0, without = ((double)matches - 1.0) / 3.0;
    with = with < 1.0 ? with : 1.0;
    without = without < 1.0 ? without : 1.0;
    return ((double)matches * without + (double)(n - matches) * with) / (double)n;
}

/* The yes or no of an answer: of its first sentence, "no" or "not" among the words means no (as
 * POPE's evaluation). */
static bool answer_is_yes(const char *text) {
    char word[8];
    size_t n = 0;
    for (const char *p = text;; p++) {
        char c = lower(*p);
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

/* exact: [given is one of the references]; VQA accuracy; and where the first reference is yes or
 * no, the four counts of accuracy, precision, recall and F1 of yes. */
bool score_answer(Scores *scores, const char *given, size_t length, const Question *question) {
    if (question->n_answers == 0) {
        return false;
    }
    Arena *scratch = arena_new();
    bool exact = false;
    size_t matches = 0;
    for (size_t i = 0; i < question->n_answers; i++) {
        const Json *a = question->answers[i];
        exact |= same_answer(given, length, a->text, a->length);
        matches += same_vqa_form(given, length, a->text, a->length, scratch);
    }
    arena_free(scratch);
    scores->with_answer++;
    scores->exact += exact;
    scores->vqa += vqa_accuracy(matches, question->n_answers);
    const Json *first = question->answers[0];
    bool yes = same_answer(first->text, first->length, "yes", 3),
         no = same_answer(first->text, first->length, "no", 2), said = answer_is_yes(given);
    scores->yes_no += yes || no;
    scores->true_yes += yes && said;
    scores->false_no += yes && !said;
    scores->true_no += no && !said;
    scores->false_yes += no && said;
    return exact;
}

/* a / b; 0 / 0 is 0 */
static double ratio(size_t a, size_t b) {
    return b > 0 ? (double)a / (double)b : 0.0;
}

double exact_match(const Scores *scores) {
    return (double)scores->exact / (double)scores->with_answer;
}

void scores_write(FILE *out, const Scores *s, bool permuted, const char *adapter_sha256) {
    double precision = ratio(s->true_yes, s->true_yes + s->false_yes);
    double recall = ratio(s->true_yes, s->true_yes + s->false_no), both = precision + recall;
    JsonOut json = json_out_start(out, 2);
    json_out(&json, "{ image_tokens %s adapter_sha256 %s questions %zu skipped %zu scored %zu",
             permuted ? "permuted" : "own", adapter_sha256, s->asked, s->skipped, s->with_answer);
    json_out(&json, "exact_match %g vqa_accuracy %g yes_no { questions %zu accuracy %g",
             exact_match(s), s->vqa / (double)s->with_answer, s->yes_no,
             ratio(s->true_yes + s->true_no, s->yes_no));
    json_out(&json, "precision %g recall %g f1 %g } }", precision, recall,
             both > 0.0 ? 2.0 * precision * recall / both : 0.0);
}

/* ---- descriptions and verdicts ---- */

/* What follows the number with which a name begins; NULL: it begins with none. */
static const char *number_prefix(const char *name, unsigned long *number) {
    char *end;
    *number = strtoul(name, &end, 10);
    return name[0] >= '0' && name[0] <= '9' ? end : NULL;
}

/* The descriptions of one layer while its folder is read. */
typedef struct DescriptionReader {
    Descriptions *out;
    size_t d_sae;
    int layer;
    Arena *arena;
    bool understood; /* a feature said what it stands for, or that nothing is known */
} DescriptionReader;

/* One feature: of Neuronpedia's features {"index", "frac_nonzero", "explanations": [{"description"}
 * ...]}, or of its explanations {"index", "description"}, of which the first counts. Without an
 * index it is number `place` (-1: refused). The layer, where it is said, must be the folder's. */
static void description_add(DescriptionReader *r, const Json *f, const char *name, int64_t place) {
    const Json *index = json_get(f, "index"), *density = json_get(f, "frac_nonzero"),
               *layer = json_get(f, "layer"), *list = json_get(f, "explanations"),
               *text = json_get(list != NULL ? list->child : f, "description");
    int64_t j = index == NULL ? place : -1;
    unsigned long number;
    if (json_is(index, JSON_STRING) && index->length > 0 && index->length < 10 &&
        strspn(index->text, "0123456789") == index->length) {
        j = strtol(index->text, NULL, 10);
    } else if (json_is(index, JSON_NUMBER) && !json_int64(index, &j)) {
        j = -1;
    }
    if (index == NULL && place < 0) {
        fail(STATUS_INPUT, "%s: a feature without 'index'", name);
    }
    if (j < 0 || (uint64_t)j >= r->d_sae) {
        fail(STATUS_INPUT, "%s: feature %.20s is outside the SAE's %zu", name,
             index == NULL ? arena_format(r->arena, "%lld", (long long)place)
             : json_is(index, JSON_STRING) || json_is(index, JSON_NUMBER) ? index->text
                                                                          : "index",
             r->d_sae);
    }
    if ((json_is(layer, JSON_STRING) || json_is(layer, JSON_NUMBER)) &&
        number_prefix(layer->text, &number) != NULL && number != (unsigned long)r->layer) {
        fail(STATUS_INPUT, "%s: feature %lld is of layer '%s', but its folder of layer %d", name,
             (long long)j, layer->text, r->layer);
    }
    if (json_is(density, JSON_NUMBER)) {
        r->out->density[j] = (float)json_double(density);
    }
    r->understood |= json_is(list, JSON_ARRAY) || text != NULL;
    if (json_is(text, JSON_STRING) && text->length > 0 && r->out->text[j] == NULL) {
        r->out->text[j] = arena_copy(r->arena, text->text, text->length);
    }
}

/* White space with which text begins. */
static size_t json_blanks(const char *text, size_t length) {
    size_t n = 0;
    while (n < length && memchr(" \t\r\n", text[n], 4) != NULL) {
        n++;
    }
    return n;
}

/* A list of features, from number `place` on if that is not -1, or one on each line; either may be
 * packed by gzip. */
static void description_file(DescriptionReader *r, const char *path, int64_t place) {
    Arena *scratch = arena_new();
    FileMap map = file_map(scratch, path);
    map = gzip_is(&map) ? gzip_unpack(scratch, &map, path) : map;
    const char *text = (const char *)map.data;
    const size_t mark = json_mark(text, map.size);
    size_t begin = mark + json_blanks(text + mark, map.size - mark), line = 1;
    if (begin < map.size && text[begin] == '[') {
        const Json *list = json_parse(scratch, text, map.size, path);
        for (const Json *f = list->child; f != NULL; f = f->next) {
            description_add(r, f, path, place < 0 ? place : place++);
        }
        begin = map.size;
    }
    for (size_t at = mark, n; begin < map.size && at < map.size; at += n + 1, line++) {
        const char *end = memchr(text + at, '\n', map.size - at);
        n = end != NULL ? (size_t)(end - text) - at : map.size - at;
        if (json_blanks(text + at, n) < n) {
            const char *name = arena_format(scratch, "%s:%zu", path, line);
            description_add(r, json_parse(scratch, text + at, n, name), name, -1);
        }
    }
    arena_free(scratch);
}

/* The one folder "LAYER-..." (or "LAYER") of the directory; NULL: there is none. */
static const char *description_folder(Arena *arena, const char *directory, int layer) {
    size_t count;
    unsigned long number;
    const char *taken = NULL;
    char **names = path_list(arena, directory, &count);
    for (size_t i = 0; i < count; i++) {
        const char *rest = number_prefix(names[i], &number);
        if (rest == NULL || (*rest != '-' && *rest != '\0') || number != (unsigned long)layer ||
            !path_is_directory(path_join(arena, directory, names[i]))) {
            continue;
        }
        if (taken != NULL) {
            fail(STATUS_INPUT, "%s: layer %lu has descriptions in '%s' and in '%s'; leave one",
                 directory, number, taken, names[i]);
        }
        taken = names[i];
    }
    return taken != NULL ? path_join(arena, directory, taken) : NULL;
}

Descriptions descriptions_read(Arena *arena, const char *directory, int layer, size_t d_sae) {
    static const char *const suffixes[] = {".json", ".jsonl", ".json.gz", ".jsonl.gz"};
    Descriptions out = {arena_alloc(arena, d_sae, sizeof(char *)), arena_floats(arena, d_sae, 1)};
    const char *folder = description_folder(arena, directory, layer);
    DescriptionReader reader = {.out = &out, .d_sae = d_sae, .layer = layer, .arena = arena};
    size_t count = 0;
    unsigned long start;
    char **names = folder != NULL ? path_list(arena, folder, &count) : NULL;
    for (size_t i = 0; i < count; i++) {
        const char *rest = number_prefix(names[i], &start), *dot = strchr(names[i], '.');
        for (size_t k = 0; dot != NULL && k < sizeof suffixes / sizeof *suffixes; k++) {
            if (strcmp(dot, suffixes[k]) == 0) {
                description_file(&reader, path_join(arena, folder, names[i]),
                                 rest != NULL && *rest == '-' ? (int64_t)start : -1);
            }
        }
    }
    if (folder != NULL && !reader.understood) {
        fail(STATUS_INPUT,
             "%s: no descriptions of features: expected START-END.json or batch-N.jsonl of "
             "Neuronpedia, or a list of {\"index\", \"description\"}",
             folder);
    }
    return out;
}

/* verdict: true, 1, "1", "yes", "true" are yes; false, 0, "0", "no", "false" are no */
Verdict verdict_read(const Json *line) {
    static const char *const words[2][6] = {{"0", "no", "No", "NO", "false", "False"},
                                            {"1", "yes", "Yes", "YES", "true", "True"}};
    const Json *verdict = json_get(line, "verdict");
    for (int yes = 0; yes < 2; yes++) {
        if (json_is(verdict, yes ? JSON_TRUE : JSON_FALSE) ||
            (json_is(verdict, JSON_NUMBER) && json_double(verdict) == (double)yes) ||
            (json_is(verdict, JSON_STRING) && in_list(verdict->text, words[yes], 6))) {
            return yes ? VERDICT_YES : VERDICT_NO;
        }
    }
    return VERDICT_NONE;
}

/* ---- an adapter's file ---- */

size_t adapter_size(const Adapter *adapter) {
    return adapter->d_llm * (adapter->d_vit + 1);
}

const char *adapter_prefix(const TensorStore *store) {
    return tensors_find(store, "module.weight") != NULL ? "module." : "";
}

void adapter_read(Adapter *adapter, const char *path, const char *models) {
    static const char *const names[] = {"weight", "bias"};
    float *to[] = {adapter->weight, adapter->bias};
    TensorStore store;
    Arena *scratch = arena_new();
    tensors_open(&store, scratch, path);
    store.settings = models;
    for (int p = 0; p < 2; p++) {
        char *name = arena_format(scratch, "%s%s", adapter_prefix(&store), names[p]);
        const Tensor *t =
            tensors_need(&store, name, 2 - p, (size_t[]){adapter->d_llm, adapter->d_vit});
        weight_widen(to[p], (Weight){t->data, t->dtype}, 0, t->count);
        for (size_t i = 0; i < t->count; i++) {
            if (!isfinite(to[p][i])) {
                fail(STATUS_INPUT, "%s: tensor '%s': element %zu is not finite", path, name, i);
            }
        }
    }
    arena_free(scratch);
}

void adapter_write(const Adapter *adapter, const char *path) {
    size_t d_llm = adapter->d_llm, d_vit = adapter->d_vit;
    TensorWriter *writer = tensor_writer_open(path);
    tensor_writer_declare(writer, "weight", DTYPE_F32, 2, (size_t[]){d_llm, d_vit});
    tensor_writer_declare(writer, "bias", DTYPE_F32, 1, (size_t[]){d_llm});
    tensor_writer_data(writer, adapter->weight, sizeof(float), d_llm * d_vit);
    tensor_writer_data(writer, adapter->bias, sizeof(float), d_llm);
    tensor_writer_commit(writer);
}

/* ---- Porter's stemmer (M. F. Porter, "An algorithm for suffix stripping", 1980) ----
 * m of a stem [C](VC)^m[V] counts its vowel-consonant turns; a rule "(m > k) S1 -> S2" replaces the
 * suffix S1 when what stands before it has measure above k. */

static bool is_vowel(const char *word, size_t i) {
    return word[i] == 'y' ? i > 0 && !is_vowel(word, i - 1) : strchr("aeiou", word[i]) != NULL;
}

static int measure(const char *word, size_t length) {
    int m = 0;
    for (size_t i = 1; i < length; i++) {
        m += is_vowel(word, i - 1) && !is_vowel(word, i);
    }
    return m;
}

static bool has_vowel(const char *word, size_t length) {
    bool found = false;
    for (size_t i = 0; i < length; i++) {
        found |= is_vowel(word, i);
    }
    return found;
}

static bool ends_double(const char *word, size_t length) {
    return length >= 2 && word[length - 1] == word[length - 2] && !is_vowel(word, length - 1);
}

static bool ends_cvc(const char *word, size_t length) {
    return length >= 3 && !is_vowel(word, length - 1) && is_vowel(word, length - 2) &&
           !is_vowel(word, length - 3) && strchr("wxy", word[length - 1]) == NULL;
}

static bool has_suffix(const char *word, const char *suffix, size_t *stem) {
    size_t length = strlen(word), n = strlen(suffix);
    if (length < n || memcmp(word + length - n, suffix, n) != 0) {
        return false;
    }
    *stem = length - n;
    return true;
}

typedef struct Rule {
    const char *from, *to;
} Rule;

enum { /* beside a measure */
    VOWEL = -2,
    ALWAYS
};

/* Applies the first rule whose suffix fits (the longest stands first), if the measure of what
 * stands before it is above the number, or a vowel is in it; whether it did. */
static bool apply_rules(char *word, const Rule *rules, int above) {
    size_t stem;
    while (rules->from != NULL && !has_suffix(word, rules->from, &stem)) {
        rules++;
    }
    bool fits =
        rules->from != NULL &&
        (strcmp(rules->from, "ion") != 0 || (stem > 0 && strchr("st", word[stem - 1]) != NULL)) &&
        (above == VOWEL ? has_vowel(word, stem) : measure(word, stem) > above);
    if (fits) {
        strcpy(word + stem, rules->to);
    }
    return fits;
}

static void step_1(char *word) {
    static const Rule plural[] = {
        {"sses", "ss"}, {"ies", "i"}, {"ss", "ss"}, {"s", ""}, {NULL, NULL}};
    static const Rule eed[] = {{"eed", "ee"}, {NULL, NULL}}, y[] = {{"y", "i"}, {NULL, NULL}};
    static const Rule past[] = {{"ed", ""}, {"ing", ""}, {NULL, NULL}};
    static const Rule e_lost[] = {{"at", "ate"}, {"bl", "ble"}, {"iz", "ize"}, {NULL, NULL}};
    size_t stem;
    apply_rules(word, plural, ALWAYS);
    if (has_suffix(word, "eed", &stem)) {
        apply_rules(word, eed, 0);
    } else if (apply_rules(word, past, VOWEL) && !apply_rules(word, e_lost, ALWAYS)) {
        size_t length = strlen(word);
        if (ends_double(word, length) && strchr("lsz", word[length - 1]) == NULL) {
            word[length - 1] = '\0';
        } else if (measure(word, length) == 1 && ends_cvc(word, length)) {
            strcat(word, "e");
        }
    }
    apply_rules(word, y, VOWEL);
}

/* Stems `word` (lower-case, 0-terminated) in place. */
static void lexical_stem(char *word) {
    static const Rule step_2[] = {{"ational", "ate"}, {"ization", "ize"}, {"iveness", "ive"},
                                  {"fulness", "ful"}, {"ousness", "ous"}, {"tional", "tion"},
                                  {"biliti", "ble"},  {"entli", "ent"},   {"ousli", "ous"},
                                  {"ation", "ate"},   {"alism", "al"},    {"aliti", "al"},
                                  {"iviti", "ive"},   {"enci", "ence"},   {"anci", "ance"},
                                  {"izer", "ize"},    {"abli", "able"},   {"alli", "al"},
                                  {"ator", "ate"},    {"eli", "e"},       {NULL, NULL}};
    static const Rule step_3[] = {{"icate", "ic"}, {"ative", ""}, {"alize", "al"}, {"iciti", "ic"},
                                  {"ical", "ic"},  {"ness", ""},  {"ful", ""},     {NULL, NULL}};
    static const Rule step_4[] = {{"ement", ""}, {"ance", ""}, {"ence", ""}, {"able", ""},
                                  {"ible", ""},  {"ment", ""}, {"ant", ""},  {"ent", ""},
                                  {"ion", ""},   {"ism", ""},  {"ate", ""},  {"iti", ""},
                                  {"ous", ""},   {"ive", ""},  {"ize", ""},  {"al", ""},
                                  {"er", ""},    {"ic", ""},   {"ou", ""},   {NULL, NULL}};
    size_t stem;
    if (strlen(word) <= 2) {
        return;
    }
    step_1(word);
    apply_rules(word, step_2, 0);
    apply_rules(word, step_3, 0);
    apply_rules(word, step_4, 1); /* "ion" behind s or t alone */
    if (has_suffix(word, "e", &stem)) {
        int m = measure(word, stem);
        if (m > 1 || (m == 1 && !ends_cvc(word, stem))) {
            word[stem] = '\0';
        }
    }
    size_t length = strlen(word);
    if (length > 1 && word[length - 1] == 'l' && ends_double(word, length) &&
        measure(word, length) > 1) {
        word[length - 1] = '\0';
    }
}

/* ---- words ---- */

enum {
    WORD_MAX = 64
};

static bool is_word_byte(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c >= 0x80;
}

/* The next word of *text, lower-case (ASCII), into word; false at the end. Longer words are cut. */
static bool next_word(const char **text, char word[WORD_MAX + 2]) {
    const char *p = *text;
    while (*p != '\0' && !is_word_byte((unsigned char)*p)) {
        p++;
    }
    size_t n = 0;
    for (; *p != '\0' && is_word_byte((unsigned char)*p); p++) {
        if (n < WORD_MAX) {
            word[n++] = lower(*p);
        }
    }
    word[n] = '\0';
    *text = p;
    return n > 0;
}

static bool is_function_word(const char *word) {
    static const char *const list[] = {
        "the", "and", "for", "are", "was", "were", "with", "that", "this", "these", "those", "from",
        "into", "onto", "its", "their", "them", "they", "his", "her", "our", "your", "you", "she",
        "him", "who", "whom", "what", "which", "when", "where", "how", "why", "not", "but", "nor",
        "any", "all", "some", "such", "has", "have", "had", "can", "could", "will", "would", "may",
        "might", "should", "does", "did", "been", "being", "than", "then", "there", "here", "also",
        "very", "more", "most", "other", "others", "about", "after", "before", "over", "under",
        "between", "both", "each", "only", "own", "same", "too", "out", "off", "per", "via",
        /* what descriptions of features are written with */
        "word", "words", "phrase", "phrases", "term", "terms", "token", "tokens", "text", "texts",
        "reference", "references", "referring", "refer", "refers", "mention", "mentions", "related",
        "relating", "associated", "indicating", "indicate", "indicates", "specific", "specifically",
        "particular", "various", "context", "contexts", "content", "instance", "instances",
        "occurrence", "occurrences", "concept", "concepts", "expression", "expressions", "sentence",
        "sentences", "feature", "features", "pattern", "patterns"};
    return in_list(word, list, sizeof list / sizeof *list);
}

static int compare_words(const void *a, const void *b) {
    return strcmp(a, b);
}

/* match = [stem of a content word of the description = stem of a word of the answer] */
bool lexical_match(const char *description, const char *answer) {
    typedef char Word[WORD_MAX + 2];
    Arena *scratch = arena_new();
    Word *wanted = NULL, word;
    size_t count = 0, room = 0;
    bool match = false;
    while (next_word(&description, word)) {
        if (strlen(word) >= 3 && !is_function_word(word)) {
            lexical_stem(word);
            wanted = arena_grow(scratch, wanted, &room, count + 1, sizeof word);
            memcpy(wanted[count++], word, sizeof word);
        }
    }
    if (count > 0) {
        qsort(wanted, count, sizeof word, compare_words);
    }
    while (count > 0 && !match && next_word(&answer, word)) {
        lexical_stem(word);
        match = bsearch(word, wanted, count, sizeof word, compare_words) != NULL;
    }
    arena_free(scratch);
    return match;
}

/* sage_task.c: tasks as data: from a JSON file to prompts with named positions and counterfactuals,
 * and prompts.jsonl, through which another implementation can be run on the same prompts. */
#include "sage.h"
#include "tasks.h"

#include <stdlib.h>
#include <string.h>

typedef struct Slot { /* an inserted value: bytes of the text */
    const char *name;
    size_t name_length, begin, end;
} Slot;

typedef struct Built {
    char *text;
    size_t length;
    Slot *slots;
    size_t n_slots;
} Built;

typedef struct Choice { /* what a prompt is made of */
    const Json *template;
    const size_t *values;  /* [n_attributes] */
    const size_t *fillers; /* [fillers of the task] */
    SageSplit split;
} Choice;

static const char *const split_names[SAGE_SPLITS] = {"train", "test"};

static int attribute_find(const SageTask *task, const char *name, size_t length) {
    for (size_t i = 0; i < task->n_attributes; i++) {
        if (strlen(task->attributes[i].name) == length &&
            memcmp(task->attributes[i].name, name, length) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* ---- the file ---- */

REFSAE_NORETURN static void task_fail(const SageTask *task, const char *what, const char *name) {
    fail(STATUS_INPUT, "%s: %s%s%s%s", task->file, what, name != NULL ? " '" : "",
         name != NULL ? name : "", name != NULL ? "'" : "");
}

static void task_strings(const SageTask *task, const Json *list, const char *what) {
    if (!json_is(list, JSON_ARRAY) || list->length == 0) {
        task_fail(task, "expected a list of texts in", what);
    }
    for (const Json *v = list->child; v != NULL; v = v->next) {
        if (!json_is(v, JSON_STRING) || strlen(v->text) != v->length || v->length == 0) {
            task_fail(task, "expected a list of texts in", what);
        }
    }
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* What names a thing must do so once. */
static void task_once(SageTask *task, const char *const *names, size_t count, const char *what) {
    const char **sorted = arena_alloc(task->arena, count, sizeof(char *));
    memcpy(sorted, names, count * sizeof(char *));
    qsort(sorted, count, sizeof(char *), compare_names);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(sorted[i - 1], sorted[i]) == 0) {
            fail(STATUS_INPUT, "%s: '%s' stands twice in '%s'", task->file, sorted[i], what);
        }
    }
}

static void task_distinct(const SageTask *task, const Json *distinct) {
    if (distinct != NULL && !json_is(distinct, JSON_ARRAY) && !json_is(distinct, JSON_NULL)) {
        task_fail(task, "'distinct' is no list of lists of attributes", NULL);
    }
    for (const Json *group = distinct != NULL ? distinct->child : NULL; group != NULL;
         group = group->next) {
        if (!json_is(group, JSON_ARRAY)) {
            task_fail(task, "'distinct' is no list of lists of attributes", NULL);
        }
        for (const Json *a = group->child; a != NULL; a = a->next) {
            if (!json_is(a, JSON_STRING) || attribute_find(task, a->text, a->length) < 0) {
                task_fail(task, "'distinct' names something that is no attribute", NULL);
            }
        }
    }
}

static void task_attributes(SageTask *task) {
    const Json *attributes = json_get(task->json, "attributes"),
               *form = json_get(task->json, "form");
    if (!json_is(attributes, JSON_OBJECT) || attributes->length == 0) {
        task_fail(task, "no 'attributes'", NULL);
    }
    task->attributes = arena_alloc(task->arena, attributes->length, sizeof(SageAttribute));
    const char **names = arena_alloc(task->arena, attributes->length, sizeof(char *));
    size_t named = 0;
    for (const Json *a = attributes->child; a != NULL; a = a->next) {
        names[named++] = a->key;
    }
    task_once(task, names, named, "attributes");
    for (const Json *a = attributes->child; a != NULL; a = a->next) {
        SageAttribute *attribute = &task->attributes[task->n_attributes++];
        task_strings(task, a, a->key);
        attribute->name = a->key;
        attribute->values = arena_alloc(task->arena, a->length, sizeof(char *));
        for (const Json *v = a->child; v != NULL; v = v->next) {
            attribute->values[attribute->count++] = v->text;
        }
        task_once(task, attribute->values, attribute->count, a->key);
    }
    task->form = -1;
    if (form != NULL && !json_is(form, JSON_NULL) &&
        (!json_is(form, JSON_STRING) ||
         (task->form = attribute_find(task, form->text, form->length)) < 0)) {
        task_fail(task, "'form' names no attribute", NULL);
    }
    task_distinct(task, json_get(task->json, "distinct"));
}

static void task_shape(SageTask *task) {
    const Json *positions = json_get(task->json, "positions"),
               *templates = json_get(task->json, "templates");
    const Json *fillers = json_get(task->json, "fillers");
    if (!json_is(positions, JSON_OBJECT) || positions->length == 0) {
        task_fail(task, "no 'positions'", NULL);
    }
    task->positions = arena_alloc(task->arena, positions->length, sizeof(char *));
    for (const Json *p = positions->child; p != NULL; p = p->next) {
        if (!json_is(p, JSON_STRING)) {
            task_fail(task, "expected a text in position", p->key);
        }
        task->positions[task->n_positions++] = p->key;
    }
    task_once(task, task->positions, task->n_positions, "positions");
    if (fillers != NULL && !json_is(fillers, JSON_OBJECT) && !json_is(fillers, JSON_NULL)) {
        task_fail(task, "'fillers' is no object", NULL);
    }
    for (int s = 0; s < SAGE_SPLITS; s++) {
        const Json *list = json_get(templates, split_names[s]);
        if (!json_is(list, JSON_ARRAY) || list->length == 0) {
            task_fail(task, "no templates for", split_names[s]);
        }
        for (const Json *f = fillers != NULL ? fillers->child : NULL; f != NULL; f = f->next) {
            task_strings(task, json_get(f, split_names[s]), f->key);
        }
    }
    const Json *name = json_get(task->json, "name");
    task->name = json_is(name, JSON_STRING) ? name->text : task->file;
}

/* ---- texts ---- */

static const Json *template_text(const SageTask *task, const Json *template, const size_t *values) {
    const Json *text = template;
    if (task->form >= 0) {
        text = json_get(template, task->attributes[task->form].values[values[task->form]]);
    }
    return json_is(text, JSON_STRING) ? text : NULL;
}

static const char *slot_value(const SageTask *task, const Choice *choice, const char *name,
                              size_t length) {
    int attribute = attribute_find(task, name, length);
    if (attribute >= 0) {
        return task->attributes[attribute].values[choice->values[attribute]];
    }
    const Json *fillers = json_get(task->json, "fillers");
    size_t i = 0;
    for (const Json *f = fillers != NULL ? fillers->child : NULL; f != NULL; f = f->next, i++) {
        if (f->key_length == length && memcmp(f->key, name, length) == 0) {
            const Json *v = json_get(f, split_names[choice->split])->child;
            for (size_t k = 0; k < choice->fillers[i]; k++) {
                v = v->next;
            }
            return v->text;
        }
    }
    return NULL;
}

static Built build_text(const SageTask *task, const Choice *choice, Arena *arena) {
    const Json *template = template_text(task, choice->template, choice->values);
    Built built = {0};
    if (template == NULL) {
        task_fail(task, "a template has no text for a value of 'form'", NULL);
    }
    for (int pass = 0; pass < 2; pass++) { /* to measure, then to write */
        built.length = built.n_slots = 0;
        for (size_t i = 0; i < template->length;) {
            const char *close = template->text[i] == '{'
                                    ? memchr(template->text + i, '}', template->length - i)
                                    : NULL;
            if (close == NULL) {
                if (pass == 1) {
                    built.text[built.length] = template->text[i];
                }
                built.length++;
                i++;
                continue;
            }
            const char *name = template->text + i + 1, *value;
            size_t length = (size_t)(close - name);
            if ((value = slot_value(task, choice, name, length)) == NULL) {
                fail(STATUS_INPUT,
                     "%s: a template has the slot '%.*s', which is no attribute and no filler",
                     task->file, (int)(length < 64 ? length : 64), name);
            }
            size_t bytes = strlen(value);
            if (pass == 1) {
                built.slots[built.n_slots] =
                    (Slot){name, length, built.length, built.length + bytes};
                memcpy(built.text + built.length, value, bytes);
            }
            built.n_slots++;
            built.length += bytes;
            i = (size_t)(close - template->text) + 1;
        }
        if (pass == 0) {
            built.text = arena_alloc(arena, built.length + 1, 1);
            built.slots = arena_alloc(arena, built.n_slots + 1, sizeof(Slot));
        }
    }
    return built;
}

/* The last token that begins at or before `byte`. */
static size_t token_at(const Tokens *tokens, size_t byte) {
    size_t found = 0;
    for (size_t i = 0; i < tokens->count && tokens->begin[i] <= byte; i++) {
        found = i;
    }
    return found;
}

/* The number that `text` begins with, cut off beyond a million; returns how many digits it has. */
static size_t read_count(const char *text, size_t *count) {
    size_t digits = strspn(text, "0123456789");
    for (size_t i = *count = 0; i < digits && *count < 1000000; i++) {
        *count = *count * 10 + (size_t)(text[i] - '0');
    }
    return digits;
}

/* "SLOT#n", "SLOT#n+k" (k after the slot's last token) or "end". */
static size_t position_find(const SageTask *task, const Json *rule, const Built *built,
                            const Tokens *tokens) {
    const char *mark = strrchr(rule->text, '#'), *at = mark != NULL ? mark + 1 : "";
    size_t n = 0, after = 0;
    if (json_text_is(rule, "end")) {
        return tokens->count - 1;
    }
    at += read_count(at, &n);
    if (n > 0 && *at == '+') {
        size_t digits = read_count(at + 1, &after);
        at += digits > 0 ? digits + 1 : 0;
    }
    if (n == 0 || *at != '\0') {
        fail(STATUS_INPUT, "%s: position '%s': expected SLOT#n, SLOT#n+k or end, found '%s'",
             task->file, rule->key, rule->text);
    }
    for (size_t i = 0; i < built->n_slots; i++) {
        const Slot *slot = &built->slots[i];
        if (slot->name_length == (size_t)(mark - rule->text) &&
            memcmp(slot->name, rule->text, slot->name_length) == 0 && --n == 0) {
            size_t position = token_at(tokens, slot->end - 1) + after;
            if (position >= tokens->count) {
                break;
            }
            return position;
        }
    }
    fail(STATUS_INPUT, "%s: position '%s' (%s) is not in the prompt '%.100s'", task->file,
         rule->key, rule->text, built->text);
}

/* -1: the text is no single token. */
static int32_t single_token(const Tokenizer *tokenizer, const char *text, Arena *scratch) {
    Tokens tokens = tokenizer_encode(tokenizer, text, strlen(text), false, scratch);
    return tokens.count == 1 ? tokens.id[0] : -1;
}

/* Token ids of "answer" or "wrong". */
static int32_t *answer_ids(SageTask *task, const Tokenizer *tokenizer, const char *which,
                           const size_t *values, size_t *count, Arena *scratch) {
    const Json *rule = json_get(task->json, which), *of = json_get(rule, "of"), *texts = NULL;
    const Json *name = json_is(rule, JSON_STRING) ? rule : of;
    int attribute =
        json_is(name, JSON_STRING) ? attribute_find(task, name->text, name->length) : -1;
    if (attribute < 0) {
        task_fail(task, "names no attribute:", which);
    }
    const char *value = task->attributes[attribute].values[values[attribute]];
    if (of != NULL) {
        texts = json_get(json_get(rule, "map"), value);
        if (texts == NULL || (!json_is(texts, JSON_STRING) && !json_is(texts, JSON_ARRAY))) {
            fail(STATUS_INPUT, "%s: '%s' has no text for the value '%s'", task->file, which, value);
        }
    }
    const Json *text = json_is(texts, JSON_ARRAY) ? texts->child : texts;
    size_t n = json_is(texts, JSON_ARRAY) ? texts->length : 1;
    int32_t *ids = arena_alloc(task->arena, n, sizeof(int32_t));
    const char *spaced = value[0] == ' ' ? value : arena_format(scratch, " %s", value);
    for (size_t i = 0; i < n; i++, text = text != NULL ? text->next : NULL) {
        const char *string = of == NULL ? spaced : json_is(text, JSON_STRING) ? text->text : "";
        ids[i] = single_token(tokenizer, string, scratch);
        if (ids[i] < 0) {
            fail(STATUS_INPUT, "%s: the %s '%s' is not one token in this model's tokenizer",
                 task->file, which, string);
        }
    }
    if (n == 0) {
        task_fail(task, "an empty list in", which);
    }
    *count = n;
    return ids;
}

/* *text: without <bos>; NULL: not wanted. */
static SageForm form_build(SageTask *task, const Tokenizer *tokenizer, int32_t bos,
                           const Choice *choice, const char **text, Arena *scratch) {
    Built built = build_text(task, choice, scratch);
    Tokens tokens = tokenizer_encode(tokenizer, built.text, built.length, false, scratch);
    size_t lead = bos >= 0 ? 1 : 0, p = 0;
    SageForm form = {.rows = tokens.count + lead};
    form.ids = arena_alloc(task->arena, form.rows, sizeof(int32_t));
    form.positions = arena_alloc(task->arena, task->n_positions, sizeof(size_t));
    if (tokens.count == 0) {
        task_fail(task, "a prompt is empty", NULL);
    }
    form.ids[0] = bos;
    memcpy(form.ids + lead, tokens.id, tokens.count * sizeof(int32_t));
    for (const Json *rule = json_get(task->json, "positions")->child; rule != NULL;
         rule = rule->next) {
        form.positions[p++] = position_find(task, rule, &built, &tokens) + lead;
    }
    if (text != NULL) {
        *text = arena_copy(task->arena, built.text, built.length);
    }
    form.answer = answer_ids(task, tokenizer, "answer", choice->values, &form.n_answer, scratch);
    form.wrong = answer_ids(task, tokenizer, "wrong", choice->values, &form.n_wrong, scratch);
    return form;
}

/* ---- values that are one token ---- */

/* Is the value one token where the template has the slot: after a space, after other text, or
 * first? */
static bool value_fits(const Tokenizer *tokenizer, const char *before, size_t length,
                       const char *value, Arena *scratch) {
    size_t from = length;
    while (from > 0 && before[from - 1] != '}' && before[from - 1] != '{') {
        from--;
    }
    bool space = length > from && before[length - 1] == ' ';
    size_t prefix = length - from - (space ? 1 : 0);
    char *text =
        arena_format(scratch, "%.*s%s%s", (int)prefix, before + from, space ? " " : "", value);
    size_t with = tokenizer_encode(tokenizer, text, strlen(text), false, scratch).count;
    return with == tokenizer_encode(tokenizer, text, prefix, false, scratch).count + 1;
}

static bool value_fits_everywhere(const SageTask *task, const Tokenizer *tokenizer,
                                  size_t attribute, const char *value, Arena *scratch) {
    const char *name = task->attributes[attribute].name;
    size_t name_length = strlen(name);
    bool fits = true;
    for (int s = 0; s < SAGE_SPLITS; s++) {
        const Json *list = json_get(json_get(task->json, "templates"), split_names[s]);
        for (const Json *t = list->child; t != NULL; t = t->next) {
            for (const Json *v = json_is(t, JSON_OBJECT) ? t->child : t; v != NULL;
                 v = json_is(t, JSON_OBJECT) ? v->next : NULL) {
                for (size_t i = 0;
                     json_is(v, JSON_STRING) && i + name_length + 2 <= v->length && fits; i++) {
                    if (v->text[i] == '{' && v->text[i + name_length + 1] == '}' &&
                        memcmp(v->text + i + 1, name, name_length) == 0) {
                        arena_reset(scratch);
                        fits = value_fits(tokenizer, v->text, i, value, scratch);
                    }
                }
            }
        }
    }
    return fits;
}

static void task_drop_values(SageTask *task, const Tokenizer *tokenizer) {
    size_t total = 0;
    Arena *scratch = arena_new();
    for (size_t a = 0; a < task->n_attributes; a++) {
        total += task->attributes[a].count;
    }
    task->dropped = arena_alloc(task->arena, total, sizeof(SageDropped));
    for (size_t a = 0; a < task->n_attributes; a++) {
        SageAttribute *attribute = &task->attributes[a];
        size_t kept = 0;
        for (size_t v = 0; v < attribute->count; v++) {
            if (value_fits_everywhere(task, tokenizer, a, attribute->values[v], scratch)) {
                attribute->values[kept++] = attribute->values[v];
                continue;
            }
            task->dropped[task->n_dropped++] = (SageDropped){attribute->name, attribute->values[v]};
        }
        attribute->count = kept;
        if (kept < 2) {
            fail(STATUS_INPUT,
                 "%s: attribute '%s' has %zu values that are one token in this model's tokenizer, "
                 "it needs two",
                 task->file, attribute->name, kept);
        }
    }
    arena_free(scratch);
}

void sage_task_open(SageTask *task, Arena *arena, const char *name, const Tokenizer *tokenizer) {
    *task = (SageTask){.arena = arena, .file = name};
    for (size_t i = 0; i < sizeof shipped_tasks / sizeof *shipped_tasks && task->json == NULL;
         i++) {
        if (strcmp(shipped_tasks[i].name, name) == 0) {
            task->json =
                json_parse(arena, (const char *)shipped_tasks[i].text, shipped_tasks[i].size, name);
        }
    }
    if (task->json == NULL && !path_exists(name)) {
        fail(STATUS_INPUT, "--task %s: neither ioi, agreement, induction, greater-than nor a file",
             name);
    }
    if (task->json == NULL) {
        task->json = json_read_file(arena, name);
    }
    task_attributes(task);
    task_shape(task);
    task_drop_values(task, tokenizer);
}

/* ---- drawing ---- */

/* May attribute `a` take value `v` beside the others' values? (others: attributes below `known`,
 * not a) */
static bool value_allowed(const SageTask *task, const size_t *values, size_t known, size_t a,
                          size_t v) {
    const Json *distinct = json_get(task->json, "distinct");
    for (const Json *group = distinct != NULL ? distinct->child : NULL; group != NULL;
         group = group->next) {
        bool in_group = false;
        for (const Json *m = group->child; m != NULL; m = m->next) {
            in_group |= strcmp(m->text, task->attributes[a].name) == 0;
        }
        for (const Json *m = in_group ? group->child : NULL; m != NULL; m = m->next) {
            size_t other = (size_t)attribute_find(task, m->text, m->length);
            if (other != a && other < known &&
                strcmp(task->attributes[other].values[values[other]],
                       task->attributes[a].values[v]) == 0) {
                return false;
            }
        }
    }
    return true;
}

/* A value for attribute `a`, uniform among those allowed; except: not this one. False: none is
 * allowed. */
static bool draw_value(const SageTask *task, Random *random, const size_t *values, size_t known,
                       size_t a, size_t except, size_t *value) {
    size_t allowed = 0, n = task->attributes[a].count;
    for (size_t v = 0; v < n; v++) {
        allowed += v != except && value_allowed(task, values, known, a, v) ? 1 : 0;
    }
    size_t draw = allowed > 0 ? (size_t)random_below(random, allowed) : 0;
    for (size_t v = 0; v < n && allowed > 0; v++) {
        if (v != except && value_allowed(task, values, known, a, v) && draw-- == 0) {
            *value = v;
        }
    }
    return allowed > 0;
}

/* Values of a prompt and of its counterfactuals. 'distinct' can leave an attribute without a value
 * to take: then all are drawn again. */
static void draw_values(const SageTask *task, Random *random, SagePrompt *prompt) {
    enum {
        TRIES = 1000
    };
    size_t n = task->n_attributes, stuck = 0;
    for (int try = 0; try < TRIES; try++) {
        bool done = true;
        for (size_t a = 0; a < n && done; a++) {
            done = draw_value(task, random, prompt->values, a, a, SIZE_MAX, &prompt->values[a]);
            stuck = done ? stuck : a;
        }
        for (size_t a = 0; a < n && done; a++) {
            done = draw_value(task, random, prompt->values, n, a, prompt->values[a],
                              &prompt->changed[a]);
            stuck = done ? stuck : a;
        }
        if (done) {
            return;
        }
    }
    fail(STATUS_INPUT, "%s: attribute '%s' has no other value to take", task->file,
         task->attributes[stuck].name);
}

static SagePrompt prompt_draw(SageTask *task, const Tokenizer *tokenizer, int32_t bos,
                              Random *random, SageSplit split, Arena *scratch) {
    const Json *list = json_get(json_get(task->json, "templates"), split_names[split]);
    const Json *filler_list = json_get(task->json, "fillers"), *template = list->child;
    size_t n = task->n_attributes, i = 0;
    size_t *fillers =
        arena_alloc(scratch, filler_list != NULL ? filler_list->length : 0, sizeof(size_t));
    size_t *other = arena_alloc(scratch, n, sizeof(size_t));
    SagePrompt prompt = {.values = arena_alloc(task->arena, n, sizeof(size_t)),
                         .changed = arena_alloc(task->arena, n, sizeof(size_t)),
                         .counterfactual = arena_alloc(task->arena, n, sizeof(SageForm))};
    for (size_t k = (size_t)random_below(random, list->length); k > 0; k--) {
        template = template->next;
    }
    for (const Json *f = filler_list != NULL ? filler_list->child : NULL; f != NULL; f = f->next) {
        fillers[i++] = (size_t)random_below(random, json_get(f, split_names[split])->length);
    }
    draw_values(task, random, &prompt);
    Choice choice = {template, prompt.values, fillers, split};
    prompt.clean = form_build(task, tokenizer, bos, &choice, &prompt.text, scratch);
    for (size_t a = 0; a < n; a++) {
        memcpy(other, prompt.values, n * sizeof(size_t));
        other[a] = prompt.changed[a];
        choice.values = other;
        prompt.counterfactual[a] = form_build(task, tokenizer, bos, &choice, NULL, scratch);
        if (prompt.counterfactual[a].rows != prompt.clean.rows) {
            fail(STATUS_INPUT, "%s: the prompt '%s' has %zu tokens, with another %s it has %zu",
                 task->file, prompt.text, prompt.clean.rows, task->attributes[a].name,
                 prompt.counterfactual[a].rows);
        }
    }
    return prompt;
}

void sage_prompts_draw(SageTask *task, const Tokenizer *tokenizer, int32_t bos,
                       const size_t n[SAGE_SPLITS], uint64_t seed) {
    Arena *scratch = arena_new();
    for (int s = 0; s < SAGE_SPLITS; s++) {
        Random random = random_start(seed, RANDOM_SAGE_PROMPTS + ((uint64_t)s << 32));
        task->prompts[s] = arena_alloc(task->arena, n[s], sizeof(SagePrompt));
        for (size_t i = 0; i < n[s]; i++) {
            arena_reset(scratch);
            task->prompts[s][i] = prompt_draw(task, tokenizer, bos, &random, (SageSplit)s, scratch);
        }
        task->n_prompts[s] = n[s];
    }
    arena_free(scratch);
}

/* ---- prompts.jsonl ---- */

static void write_ids(JsonOut *json, const char *key, const int32_t *ids, size_t count) {
    json_out_array(json, key);
    for (size_t i = 0; i < count; i++) {
        json_out_int(json, NULL, ids[i]);
    }
    json_out_end(json);
}

static void write_positions(const SageTask *task, JsonOut *json, const SageForm *form) {
    json_out_object(json, "positions");
    for (size_t p = 0; p < task->n_positions; p++) {
        json_out_int(json, task->positions[p], (int64_t)form->positions[p]);
    }
    json_out_end(json);
}

static void write_prompt(const SageTask *task, FILE *out, SageSplit split,
                         const SagePrompt *prompt) {
    JsonOut json = json_out_start(out, 0);
    json_out_object(&json, NULL);
    json_out_text(&json, "split", split_names[split]);
    json_out_text(&json, "text", prompt->text);
    write_ids(&json, "ids", prompt->clean.ids, prompt->clean.rows);
    json_out_object(&json, "values");
    for (size_t a = 0; a < task->n_attributes; a++) {
        json_out_text(&json, task->attributes[a].name,
                      task->attributes[a].values[prompt->values[a]]);
    }
    json_out_end(&json);
    write_positions(task, &json, &prompt->clean);
    write_ids(&json, "answer", prompt->clean.answer, prompt->clean.n_answer);
    write_ids(&json, "wrong", prompt->clean.wrong, prompt->clean.n_wrong);
    json_out_object(&json, "counterfactual");
    for (size_t a = 0; a < task->n_attributes; a++) {
        const SageForm *form = &prompt->counterfactual[a];
        json_out_object(&json, task->attributes[a].name);
        json_out_text(&json, "value", task->attributes[a].values[prompt->changed[a]]);
        write_ids(&json, "ids", form->ids, form->rows);
        write_positions(task, &json, form);
        write_ids(&json, "answer", form->answer, form->n_answer);
        write_ids(&json, "wrong", form->wrong, form->n_wrong);
        json_out_end(&json);
    }
    json_out_end(&json);
    json_out_end(&json);
}

void sage_prompts_write(const SageTask *task, const char *path) {
    OutFile *out = out_open(path);
    for (int s = 0; s < SAGE_SPLITS; s++) {
        for (size_t i = 0; i < task->n_prompts[s]; i++) {
            write_prompt(task, out->stream, (SageSplit)s, &task->prompts[s][i]);
        }
    }
    out_commit(out);
}

typedef struct Reader {
    SageTask *task;
    const char *path;
    size_t line, d_vocab;
} Reader;

REFSAE_NORETURN static void read_fail(const Reader *r, const char *what, const char *name) {
    fail(STATUS_INPUT, "%s:%zu: %s '%s'", r->path, r->line, what, name);
}

static int32_t *read_ids(const Reader *r, const Json *row, const char *key, size_t *count) {
    const Json *list = json_get(row, key);
    if (!json_is(list, JSON_ARRAY) || list->length == 0) {
        read_fail(r, "expected token ids in", key);
    }
    int32_t *ids = arena_alloc(r->task->arena, list->length, sizeof(int32_t));
    *count = 0;
    for (const Json *v = list->child; v != NULL; v = v->next) {
        int64_t id;
        if (!json_int64(v, &id) || id < 0 || (uint64_t)id >= r->d_vocab) {
            read_fail(r, "an id outside the vocabulary in", key);
        }
        ids[(*count)++] = (int32_t)id;
    }
    return ids;
}

static SageForm read_form(const Reader *r, const Json *row) {
    const Json *positions = json_get(row, "positions");
    SageForm form;
    form.ids = read_ids(r, row, "ids", &form.rows);
    form.answer = read_ids(r, row, "answer", &form.n_answer);
    form.wrong = read_ids(r, row, "wrong", &form.n_wrong);
    form.positions = arena_alloc(r->task->arena, r->task->n_positions, sizeof(size_t));
    for (size_t p = 0; p < r->task->n_positions; p++) {
        int64_t at;
        if (!json_int64(json_get(positions, r->task->positions[p]), &at) || at < 0 ||
            (uint64_t)at >= form.rows) {
            read_fail(r, "no index into ids for position", r->task->positions[p]);
        }
        form.positions[p] = (size_t)at;
    }
    return form;
}

static size_t read_value(const Reader *r, size_t attribute, const Json *value) {
    const SageAttribute *a = &r->task->attributes[attribute];
    for (size_t place = 0; place < a->count; place++) {
        if (json_text_is(value, a->values[place])) {
            return place;
        }
    }
    read_fail(r, "no value that the task gives for attribute", a->name);
}

static SagePrompt read_prompt(const Reader *r, const Json *row) {
    SageTask *task = r->task;
    const Json *text = json_get(row, "text"), *values = json_get(row, "values");
    size_t n = task->n_attributes;
    SagePrompt prompt = {
        .text = json_is(text, JSON_STRING) ? arena_copy(task->arena, text->text, text->length) : "",
        .values = arena_alloc(task->arena, n, sizeof(size_t)),
        .changed = arena_alloc(task->arena, n, sizeof(size_t)),
        .counterfactual = arena_alloc(task->arena, n, sizeof(SageForm)),
        .clean = read_form(r, row)};
    for (size_t a = 0; a < n; a++) {
        const char *name = task->attributes[a].name;
        const Json *other = json_get(json_get(row, "counterfactual"), name);
        prompt.values[a] = read_value(r, a, json_get(values, name));
        if (!json_is(other, JSON_OBJECT)) {
            read_fail(r, "no counterfactual in attribute", name);
        }
        prompt.changed[a] = read_value(r, a, json_get(other, "value"));
        prompt.counterfactual[a] = read_form(r, other);
        if (prompt.counterfactual[a].rows != prompt.clean.rows) {
            read_fail(r, "the prompt and its counterfactual differ in length in attribute", name);
        }
    }
    return prompt;
}

void sage_prompts_read(SageTask *task, const char *path, size_t d_vocab) {
    JsonArrayFile file;
    Arena *scratch = arena_new(), *line = arena_within(scratch);
    json_array_open(&file, scratch, path); /* JSON lines are objects one after another */
    for (int s = 0; s < SAGE_SPLITS; s++) {
        task->prompts[s] = arena_alloc(task->arena, file.count, sizeof(SagePrompt));
    }
    for (size_t i = 0; i < file.count; i++) {
        arena_reset(line);
        const Json *row = json_array_read(&file, i, line);
        Reader reader = {task, path, i + 1, d_vocab};
        bool train = json_text_is(json_get(row, "split"), "train");
        if (!train && !json_text_is(json_get(row, "split"), "test")) {
            read_fail(&reader, "expected 'train' or 'test' in", "split");
        }
        SageSplit split = train ? SAGE_TRAIN : SAGE_TEST;
        task->prompts[split][task->n_prompts[split]++] = read_prompt(&reader, row);
    }
    if (task->n_prompts[SAGE_TRAIN] == 0 || task->n_prompts[SAGE_TEST] == 0) {
        fail(STATUS_INPUT, "%s: needs prompts of both splits", path);
    }
    arena_free(scratch);
}

/* task.c: tasks as data. The file is checked and laid out; then prompts are drawn, or read. */
#include "task.h"
#include "json.h"
#include "tasks.h"

#include <stdlib.h>
#include <string.h>

static const JsonName split_names[] = {{"train", SAGE_TRAIN}, {"test", SAGE_TEST}, {NULL, 0}};

/* The keys that are read, where keys are not names of the task's own. */
static const SageAttribute task_keys = {
    .values = (const char *[]){"name", "attributes", "form", "distinct", "fillers", "templates",
                               "answer", "wrong", "positions", "labels"},
    .count = 10};
static const SageAttribute split_keys = {.values = (const char *[]){"train", "test"}, .count = 2};
static const SageAttribute answer_keys = {.values = (const char *[]){"of", "map"}, .count = 2};

/* What a task may have. Nothing honest comes near; without them a small file takes hours. */
enum {
    ATTRIBUTES_MOST = 32, /* and labels, and slots for fillers */
    POSITIONS_MOST = 64,
    VALUES_MOST = 4096,  /* of all attributes */
    TEXTS_MOST = 4096,   /* in a list */
    PROMPT_MOST = 4096,  /* bytes */
    TRIED_MOST = 1 << 25 /* bytes: of values in all slots; of templates and fillers in a prompt */
};

/* The place of the attribute (or filler) of that name; -1: none. */
static int attribute_find(const SageAttribute *list, size_t count, const char *name,
                          size_t length) {
    for (size_t i = 0; i < count; i++) {
        if (memchr(list[i].name, 0, length + 1) == list[i].name + length &&
            memcmp(list[i].name, name, length) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* The place of a text among others; -1: it is none of them. */
static int text_find(const char *const *texts, size_t count, const char *text) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(texts[i], text) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static int value_find(const SageAttribute *attribute, const char *value) {
    return text_find(attribute->values, attribute->count, value);
}

/* The attribute that a text of the file names; -1: none, or no text. */
static int attribute_named(const SageTask *task, const Json *name) {
    return json_is(name, JSON_STRING)
               ? attribute_find(task->attributes, task->n_attributes, name->text, name->length)
               : -1;
}

/* ---- the file ---- */

REFSAE_NORETURN static void fail_texts(const SageTask *task, const char *name) {
    fail(STATUS_INPUT, "%s: expected a list of 1 to %d texts in '%s'", task->file, TEXTS_MOST,
         name);
}

/* A list of texts, none empty and none with a 0 byte. */
static SageAttribute read_texts(const SageTask *task, const Json *list, const char *name) {
    SageAttribute out = {.name = name};
    bool good = json_is(list, JSON_ARRAY) && list->length > 0;
    out.values = arena_alloc(task->arena, good ? list->length : 0, sizeof(char *));
    for (const Json *v = good ? list->child : NULL; v != NULL && good; v = v->next) {
        good = json_is(v, JSON_STRING) && v->length > 0 && strlen(v->text) == v->length;
        out.values[out.count++] = v->text;
    }
    if (!good || list->length > TEXTS_MOST) {
        fail_texts(task, name);
    }
    return out;
}

/* What names a thing must do so once. */
static void check_once(const SageTask *task, const char *const *names, size_t count,
                       const char *what) {
    const char **sorted = arena_alloc(task->arena, count, sizeof(char *));
    memcpy(sorted, names, count * sizeof(char *));
    qsort(sorted, count, sizeof(char *), compare_names);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(sorted[i - 1], sorted[i]) == 0) {
            fail(STATUS_INPUT, "%s: '%s' stands twice in '%s'", task->file, sorted[i], what);
        }
    }
}

/* The names of the members of an object; none of what is no object. */
static const char **member_names(const SageTask *task, const Json *object, size_t *count) {
    bool good = json_is(object, JSON_OBJECT);
    const char **names = arena_alloc(task->arena, good ? object->length : 0, sizeof(char *));
    *count = 0;
    for (const Json *member = good ? object->child : NULL; member != NULL; member = member->next) {
        names[(*count)++] = member->key;
        if (strlen(member->key) != member->key_length) {
            json_refuse(object, member->key, "a key without U+0000");
        }
    }
    if (good) {
        check_once(task, names, *count, object->key != NULL ? object->key : task->name);
    }
    return names;
}

/* The names of the members of `what`. */
static const char **read_names(const SageTask *task, const char *what, size_t least, size_t most,
                               size_t *count) {
    const Json *object = json_member(task->json, what, JSON_OBJECT);
    size_t length = object != NULL ? object->length : 0;
    if (length < least || length > most) {
        json_refuse(task->json, what, arena_format(task->arena, "%zu to %zu members", least, most));
    }
    return member_names(task, object, count);
}

/* A member that nobody reads is a slip, such as "distint", which must not pass without effect: each
 * is to be a value of one of the lists. `unknown` says of one that is not what it is. */
static void check_members(const SageTask *task, const Json *object, const SageAttribute *lists,
                          size_t n_lists, const char *unknown) {
    size_t count;
    const char **names = member_names(task, object, &count);
    for (size_t i = 0; i < count; i++) {
        bool known = false;
        for (size_t l = 0; l < n_lists && !known; l++) {
            known = value_find(&lists[l], names[i]) >= 0;
        }
        if (!known) {
            fail(STATUS_INPUT, "%s: %s%s'%s' is %s", task->file,
                 object->key != NULL ? object->key : "", object->key != NULL ? ": " : "", names[i],
                 unknown);
        }
    }
}

static void read_attributes(SageTask *task) {
    const char **names = read_names(task, "attributes", 1, ATTRIBUTES_MOST, &task->n_attributes);
    const char *form = json_text(task->json, "form", NULL);
    const Json *list = json_get(task->json, "attributes")->child;
    size_t values = 0;
    task->attributes = arena_alloc(task->arena, task->n_attributes, sizeof(SageAttribute));
    for (size_t i = 0; i < task->n_attributes; i++, list = list->next) {
        task->attributes[i] = read_texts(task, list, names[i]);
        values += task->attributes[i].count;
        if (values > VALUES_MOST) {
            fail(STATUS_INPUT, "%s: more than %d values in 'attributes'", task->file, VALUES_MOST);
        }
        check_once(task, task->attributes[i].values, task->attributes[i].count, names[i]);
    }
    task->form = attribute_named(task, json_get(task->json, "form"));
    if (form != NULL && task->form < 0) {
        json_refuse(task->json, "form", "an attribute");
    }
}

/* Lists of attributes no two of which ever take the same value. */
static void read_distinct(SageTask *task) {
    const Json *groups = json_member(task->json, "distinct", JSON_ARRAY);
    size_t n = task->n_attributes;
    task->distinct = arena_alloc(task->arena, size_product(n, n), sizeof(bool));
    for (const Json *g = json_first(groups); g != NULL; g = g->next) {
        size_t in[ATTRIBUTES_MOST], count = 0;
        for (const Json *a = json_is(g, JSON_ARRAY) ? g->child : g; a != NULL; a = a->next) {
            int found = attribute_named(task, a);
            if (!json_is(g, JSON_ARRAY) || found < 0) {
                json_refuse(task->json, "distinct", "a list of lists of attributes");
            }
            size_t i = (size_t)found;
            for (size_t k = 0; k < count; k++) {
                if (in[k] == i) {
                    fail(STATUS_INPUT, "%s: '%s' stands twice in 'distinct'", task->file,
                         task->attributes[i].name);
                }
                task->distinct[i * n + in[k]] = task->distinct[in[k] * n + i] = true;
            }
            in[count++] = i;
        }
    }
}

static void read_templates(SageTask *task) {
    const Json *templates = json_need(task->json, "templates", JSON_OBJECT);
    const Json *fillers = json_member(task->json, "fillers", JSON_OBJECT);
    (void)read_names(task, "fillers", 0, ATTRIBUTES_MOST, &task->n_fillers);
    check_members(task, templates, &split_keys, 1, "neither train nor test");
    for (int s = 0; s < SAGE_SPLITS; s++) {
        size_t i = 0;
        if (json_need(templates, split_names[s].name, JSON_ARRAY)->length == 0) {
            json_refuse(templates, split_names[s].name, "at least one");
        }
        task->templates[s] = json_get(templates, split_names[s].name);
        const Json *template = task->form >= 0 ? task->templates[s]->child : NULL;
        for (; template != NULL; template = template->next) {
            check_members(task, template, &task->attributes[task->form], 1, "no value of 'form'");
        }
        task->fillers[s] = arena_alloc(task->arena, task->n_fillers, sizeof(SageAttribute));
        for (const Json *f = json_first(fillers); f != NULL; f = f->next) {
            check_members(task, f, &split_keys, 1, "neither train nor test");
            if (attribute_find(task->attributes, task->n_attributes, f->key, strlen(f->key)) >= 0) {
                fail(STATUS_INPUT, "%s: '%s' is an attribute and a filler", task->file, f->key);
            }
            task->fillers[s][i++] = read_texts(task, json_get(f, split_names[s].name), f->key);
        }
    }
}

/* The attribute whose value settles "answer" or "wrong". */
static int answer_attribute(const SageTask *task, const char *which) {
    const Json *rule = json_get(task->json, which), *of = json_get(rule, "of");
    const Json *named = of != NULL ? of : rule;
    int found = attribute_named(task, named);
    if (found < 0) {
        fail(STATUS_INPUT,
             "%s: '%s' names no attribute: expected one, or {\"of\": one, \"map\": ...}%s%.64s",
             task->file, which, json_is(named, JSON_STRING) ? ", found " : "", json_string(named));
    }
    return found;
}

static void check_answer(const SageTask *task, const char *which) {
    const Json *rule = json_get(task->json, which);
    check_members(task, rule, &answer_keys, 1, "neither of nor map");
    check_members(task, json_get(rule, "map"), &task->attributes[answer_attribute(task, which)], 1,
                  "no value of the attribute");
}

/* Before values are dropped, since labels may be given to those too. */
static void check_labels(const SageTask *task) {
    const Json *labels = json_member(task->json, "labels", JSON_OBJECT);
    size_t count;
    const char **names = read_names(task, "labels", 0, ATTRIBUTES_MOST, &count);
    for (size_t i = 0; i < count; i++) {
        check_members(task, json_need(labels, names[i], JSON_OBJECT), task->attributes,
                      task->n_attributes, "no value of any attribute");
    }
}

/* Values that were dropped, and texts that only they have, vanish. */
static void read_labels(SageTask *task) {
    const Json *labels = json_member(task->json, "labels", JSON_OBJECT);
    const Json *l = json_first(labels);
    task->labels = arena_alloc(task->arena, labels != NULL ? labels->length : 0, sizeof(SageLabel));
    for (; l != NULL; l = l->next) {
        SageLabel *label = &task->labels[task->n_labels++];
        label->name = l->key;
        label->texts = arena_alloc(task->arena, l->length, sizeof(char *));
        label->of = arena_alloc(task->arena, task->n_attributes, sizeof(int *));
        for (size_t a = 0; a < task->n_attributes; a++) {
            label->of[a] = arena_alloc(task->arena, task->attributes[a].count, sizeof(int));
            memset(label->of[a], -1, task->attributes[a].count * sizeof(int));
        }
        for (const Json *m = l->child; m != NULL; m = m->next) {
            if (!json_is(m, JSON_STRING) || strlen(m->text) != m->length) {
                json_refuse(l, m->key, "a string without U+0000");
            }
            const char *text = m->text;
            int place = text_find(label->texts, label->count, text);
            for (size_t a = 0; a < task->n_attributes; a++) {
                int v = value_find(&task->attributes[a], m->key);
                if (v >= 0 && place < 0) {
                    place = (int)label->count++;
                    label->texts[place] = text;
                }
                if (v >= 0) {
                    label->of[a][v] = place;
                }
            }
        }
    }
}

/* ---- texts ---- */

typedef struct Slot {
    const char *name;
    size_t length, end; /* of the name; of the value in the text */
} Slot;

typedef struct TaskText { /* a template with its slots filled */
    char *text;
    Slot *slots;
    size_t length, n_slots, room;
} TaskText;

typedef struct Choice { /* what a prompt is made of */
    const Json *template;
    const size_t *values;         /* [n_attributes] */
    const SageAttribute *fillers; /* [n_fillers]: of each what may stand in its slots */
} Choice;

/* The next "{name}" of a template at or behind `from`, as bytes open .. close; false: none. */
static bool next_slot(const Json *template, size_t from, size_t *open, size_t *close) {
    const char *text = template->text, *a = memchr(text + from, '{', template->length - from);
    const char *b = a != NULL ? memchr(a, '}', template->length - (size_t)(a - text)) : NULL;
    *open = b != NULL ? (size_t)(a - text) : template->length;
    *close = b != NULL ? (size_t)(b - text) : template->length;
    return b != NULL;
}

/* What may stand in a slot: the one value of an attribute, or a filler's. */
static SageAttribute slot_texts(const SageTask *task, const Choice *choice, const char *name,
                                size_t length) {
    int i = attribute_find(task->attributes, task->n_attributes, name, length);
    if (i >= 0) {
        const SageAttribute *a = &task->attributes[i];
        return (SageAttribute){a->name, a->values + choice->values[i], 1};
    }
    i = attribute_find(choice->fillers, task->n_fillers, name, length);
    if (i >= 0) {
        return choice->fillers[i];
    }
    fail(STATUS_INPUT, "%s: a template has the slot '%.*s', which is no attribute and no filler",
         task->file, (int)(length < 64 ? length : 64), name);
}

/* The text of the template that the form attribute's value picks. */
static const Json *template_variant(const SageTask *task, const Choice *choice) {
    const Json *template = choice->template;
    if (task->form >= 0) {
        const SageAttribute *form = &task->attributes[task->form];
        template = json_get(template, form->values[choice->values[task->form]]);
    }
    if (!json_is(template, JSON_STRING)) {
        const SageAttribute *form = task->form >= 0 ? &task->attributes[task->form] : NULL;
        fail(STATUS_INPUT, "%s: a template has no text%s%s%s", task->file,
             form != NULL ? " for the value '" : ": without 'form' it is one itself",
             form != NULL ? form->values[choice->values[task->form]] : "",
             form != NULL ? "' of 'form'" : "");
    }
    return template;
}

static TaskText build_text(const SageTask *task, const Choice *choice, Arena *arena) {
    const Json *template = template_variant(task, choice);
    MemoryStream *stream = memory_open(arena);
    TaskText out = {0};
    for (size_t at = 0, open, close; at < template->length && stream->length <= PROMPT_MOST;
         at = close + 1) {
        bool slot = next_slot(template, at, &open, &close);
        fwrite(template->text + at, 1, open - at, stream->stream);
        if (slot) {
            const char *name = template->text + open + 1;
            size_t length = close - open - 1;
            fputs(slot_texts(task, choice, name, length).values[0], stream->stream);
            (void)memory_text(stream); /* settles its length */
            out.slots = arena_grow(arena, out.slots, &out.room, out.n_slots + 1, sizeof(Slot));
            out.slots[out.n_slots++] = (Slot){name, length, stream->length};
        }
    }
    out.text = memory_text(stream);
    out.length = stream->length;
    if (out.length > PROMPT_MOST) {
        fail(STATUS_INPUT, "%s: the prompt '%.100s' has more than %d bytes", task->file, out.text,
             PROMPT_MOST);
    }
    return out;
}

/* Where a position's rule, "SLOT#n", "SLOT#n+k" (k after the slot's last token) or "end", leads. */
static size_t position_find(const SageTask *task, const char *name, const TaskText *text,
                            const Tokens *tokens) {
    const Json *positions = json_get(task->json, "positions");
    const char *rule = json_text(positions, name, ""), *mark = strrchr(rule, '#');
    char digits[2][20] = {"0", "0"};
    int end = 0;
    if (strcmp(rule, "end") == 0) {
        return tokens->count - 1;
    }
    if (mark != NULL) {
        (void)sscanf(mark, "#%18[0-9]%n+%18[0-9]%n", digits[0], &end, digits[1], &end);
    }
    size_t n = strtoul(digits[0], NULL, 10), after = strtoul(digits[1], NULL, 10);
    if (n == 0 || mark[end] != '\0') {
        fail(STATUS_INPUT, "%s: position '%s': expected SLOT#n, SLOT#n+k or end, found '%s'",
             task->file, name, rule);
    }
    for (size_t i = 0; i < text->n_slots; i++) {
        const Slot *slot = &text->slots[i];
        if (slot->length == (size_t)(mark - rule) && memcmp(slot->name, rule, slot->length) == 0 &&
            --n == 0) {
            size_t last = 0; /* the last token that begins at or before the value's last byte */
            while (last + 1 < tokens->count && tokens->begin[last + 1] < slot->end) {
                last++;
            }
            if (after < tokens->count - last) {
                return last + after;
            }
        }
    }
    fail(STATUS_INPUT, "%s: position '%s' (%s) is not in the prompt '%.100s'", task->file, name,
         rule, text->text);
}

/* Token ids of the texts of "answer" or "wrong": an attribute's value, or what a map has for it. */
static int32_t *answer_ids(const SageTask *task, const Tokenizer *tokenizer, const char *which,
                           const size_t *values, size_t *count, Arena *scratch) {
    const Json *rule = json_get(task->json, which), *of = json_get(rule, "of");
    int found = answer_attribute(task, which);
    const char *value = task->attributes[found].values[values[found]];
    const Json *mapped = of != NULL ? json_get(json_get(rule, "map"), value) : NULL;
    bool list = json_is(mapped, JSON_ARRAY);
    if (of != NULL && !list && !json_is(mapped, JSON_STRING)) {
        fail(STATUS_INPUT, "%s: '%s' has no text for the value '%s'", task->file, which, value);
    }
    *count = list ? mapped->length : 1;
    if (*count == 0 || *count > TEXTS_MOST) {
        fail_texts(task, which);
    }
    int32_t *ids = arena_alloc(task->arena, *count, sizeof(int32_t));
    const Json *text = list ? mapped->child : mapped;
    for (size_t i = 0; i < *count; i++, text = list ? text->next : text) {
        const char *string = of == NULL
                                 ? arena_format(scratch, "%s%s", value[0] == ' ' ? "" : " ", value)
                                 : json_string(text);
        Tokens tokens = tokenizer_encode(tokenizer, string, strlen(string), false, scratch);
        if (tokens.count != 1) {
            fail(STATUS_INPUT, "%s: the %s '%s' is not one token in this model's tokenizer",
                 task->file, which, string);
        }
        ids[i] = tokens.id[0];
    }
    return ids;
}

static SageForm form_build(const SageTask *task, const Tokenizer *tokenizer, int32_t bos,
                           const Choice *choice) {
    Arena *scratch = arena_new();
    TaskText built = build_text(task, choice, scratch);
    Tokens tokens = tokenizer_encode(tokenizer, built.text, built.length, false, scratch);
    size_t lead = bos >= 0 ? 1 : 0;
    SageForm form = {.rows = tokens.count + lead};
    form.ids = arena_alloc(task->arena, form.rows, sizeof(int32_t));
    form.positions = arena_alloc(task->arena, task->n_positions, sizeof(size_t));
    if (tokens.count == 0) {
        fail(STATUS_INPUT, "%s: a prompt is empty", task->file);
    }
    form.ids[0] = bos;
    memcpy(form.ids + lead, tokens.id, tokens.count * sizeof(int32_t));
    for (size_t p = 0; p < task->n_positions; p++) {
        form.positions[p] = position_find(task, task->positions[p], &built, &tokens) + lead;
    }
    form.answer = answer_ids(task, tokenizer, "answer", choice->values, &form.n_answer, scratch);
    form.wrong = answer_ids(task, tokenizer, "wrong", choice->values, &form.n_wrong, scratch);
    arena_free(scratch);
    return form;
}

/* ---- places ---- */

typedef struct Matching { /* of a prompt's text with templates */
    const SageTask *task;
    const char *text;
    size_t length, tried;
    bool *ends; /* [length + 1]: what was matched so far can end before this byte */
} Matching;

/* Matches one of `next` behind what was matched so far. */
static void match_next(Matching *m, const SageAttribute *next) {
    m->tried += m->length;
    for (size_t i = m->length + 1; i-- > 0;) {
        bool begins = m->ends[i];
        m->ends[i] = false;
        for (size_t k = 0; k < next->count && begins; k++) {
            size_t n = strlen(next->values[k]);
            if (n <= m->length - i && memcmp(m->text + i, next->values[k], n) == 0) {
                m->ends[i + n] = true;
            }
            m->tried += n;
        }
        if (m->tried > TRIED_MOST) {
            fail(STATUS_INPUT,
                 "%s: templates and fillers are too many to find in the prompt '%.100s': more than "
                 "2^25 bytes",
                 m->task->file, m->text);
        }
    }
}

/* Does the template give the prompt's text, with any fillers? Then its slots are the places. */
static bool match_template(Matching *m, const Choice *choice, SagePrompt *prompt, Arena *scratch) {
    const SageTask *task = m->task;
    const Json *template = template_variant(task, choice);
    size_t room = 0;
    memset(m->ends, 0, m->length + 1);
    m->ends[0] = true;
    prompt->places = NULL;
    prompt->n_places = 0;
    for (size_t at = 0, open, close; at < template->length; at = close + 1) {
        bool slot = next_slot(template, at, &open, &close);
        const char *text = arena_copy(scratch, template->text + at, open - at);
        match_next(m, &(SageAttribute){.values = &text, .count = 1});
        if (slot) {
            const char *name = template->text + open + 1;
            SageAttribute texts = slot_texts(task, choice, name, close - open - 1);
            int a = attribute_find(task->attributes, task->n_attributes, name, close - open - 1);
            match_next(m, &texts);
            if (a >= 0) {
                prompt->places = arena_grow(task->arena, prompt->places, &room,
                                            prompt->n_places + 1, sizeof(size_t));
                prompt->places[prompt->n_places++] = (size_t)a;
            }
        }
    }
    return m->ends[m->length];
}

/* From the text alone, so that prompts that are read have the places of those that were drawn. */
static void find_places(SageTask *task, SageSplit split, SagePrompt *prompt) {
    Arena *scratch = arena_new();
    Choice choice = {task->templates[split]->child, prompt->values, task->fillers[split]};
    Matching m = {.task = task, .text = prompt->text, .length = strlen(prompt->text)};
    m.ends = arena_alloc(scratch, m.length + 1, sizeof(bool));
    while (choice.template != NULL && !match_template(&m, &choice, prompt, scratch)) {
        choice.template = choice.template->next;
    }
    if (choice.template == NULL) {
        prompt->n_places = 0;
        task->n_unmatched += split == SAGE_TEST ? 1 : 0;
    }
    arena_free(scratch);
}

/* ---- values that are one token ---- */

typedef struct Trial { /* of an attribute's values in its slots */
    const SageTask *task;
    const Tokenizer *tokenizer;
    const SageAttribute *attribute;
    bool *unfit; /* [values] */
    size_t tried;
    Arena *scratch;
} Trial;

/* Which values are one token in the slot at `open`: after a space, after other text, or first? */
static void try_slot(Trial *trial, const char *template, size_t open) {
    size_t from = open;
    while (from > 0 && template[from - 1] != '}') {
        from--;
    }
    const char *lead = template + from;
    arena_reset(trial->scratch);
    size_t before = open - from - (open > from && template[open - 1] == ' ' ? 1 : 0);
    size_t alone = tokenizer_encode(trial->tokenizer, lead, before, false, trial->scratch).count;
    for (size_t v = 0; v < trial->attribute->count; v++) {
        if (!trial->unfit[v]) {
            arena_reset(trial->scratch);
            const char *text = arena_format(trial->scratch, "%.*s%s", (int)(open - from), lead,
                                            trial->attribute->values[v]);
            size_t length = strlen(text);
            trial->tried += 64 + length; /* even an empty text takes its time */
            if (trial->tried > TRIED_MOST) {
                fail(STATUS_INPUT,
                     "%s: the values are too many to try in every slot: more than 2^25 bytes",
                     trial->task->file);
            }
            Tokens with = tokenizer_encode(trial->tokenizer, text, length, false, trial->scratch);
            trial->unfit[v] = with.count != alone + 1;
        }
    }
}

static void try_everywhere(Trial *trial) {
    const char *name = trial->attribute->name;
    for (int s = 0; s < SAGE_SPLITS; s++) {
        const Json *template = trial->task->templates[s]->child;
        for (; template != NULL; template = template->next) {
            bool forms = json_is(template, JSON_OBJECT);
            const Json *text = forms ? template->child : template;
            for (; text != NULL; text = forms ? text->next : NULL) {
                size_t open = 0, close = 0;
                while (json_is(text, JSON_STRING) && next_slot(text, close, &open, &close)) {
                    if (strlen(name) == close - open - 1 &&
                        memcmp(name, text->text + open + 1, close - open - 1) == 0) {
                        try_slot(trial, text->text, open);
                    }
                }
            }
        }
    }
}

static void drop_values(SageTask *task, const Tokenizer *tokenizer) {
    size_t room = 0;
    Trial trial = {.task = task, .tokenizer = tokenizer, .scratch = arena_new()};
    for (size_t a = 0; a < task->n_attributes; a++) {
        SageAttribute *attribute = &task->attributes[a];
        size_t kept = 0;
        trial.attribute = attribute;
        trial.unfit = arena_alloc(task->arena, attribute->count, sizeof(bool));
        try_everywhere(&trial);
        for (size_t v = 0; v < attribute->count; v++) {
            const char *value = attribute->values[v];
            if (!trial.unfit[v]) {
                attribute->values[kept++] = value;
            } else {
                task->dropped = arena_grow(task->arena, task->dropped, &room, task->n_dropped + 1,
                                           sizeof(SageDropped));
                task->dropped[task->n_dropped++] = (SageDropped){attribute->name, value};
            }
        }
        attribute->count = kept;
        if (kept < 2) {
            fail(STATUS_INPUT,
                 "%s: attribute '%s' has %zu value%s of one token in this model's tokenizer, it "
                 "needs two",
                 task->file, attribute->name, kept, plural(kept));
        }
    }
    arena_free(trial.scratch);
}

void sage_task_open(SageTask *task, Arena *arena, const char *name, const Tokenizer *tokenizer) {
    *task = (SageTask){.arena = arena, .file = name};
    Nearest nearest = nearest_start(arena, name);
    for (size_t i = 0; i < sizeof shipped_tasks / sizeof *shipped_tasks; i++) {
        nearest_add(&nearest, shipped_tasks[i].name);
        if (strcmp(shipped_tasks[i].name, name) == 0) {
            task->json =
                json_parse(arena, (const char *)shipped_tasks[i].text, shipped_tasks[i].size, name);
        }
    }
    if (task->json == NULL && !path_exists(name)) {
        fail(STATUS_INPUT,
             "--task %s: neither ioi, agreement, induction, greater-than nor a file%s", name,
             nearest_hint(&nearest));
    }
    if (task->json == NULL) {
        task->json = json_read_file(arena, name);
    }
    if (!json_is(task->json, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: a task is an object", name);
    }
    task->name = json_text(task->json, "name", name);
    check_members(task, task->json, &task_keys, 1, "no key of a task");
    read_attributes(task);
    read_distinct(task);
    task->positions = read_names(task, "positions", 1, POSITIONS_MOST, &task->n_positions);
    read_templates(task);
    check_answer(task, "answer");
    check_answer(task, "wrong");
    check_labels(task);
    drop_values(task, tokenizer);
    read_labels(task);
}

/* ---- prompts ---- */

static int compare_ids(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* A token that is right and wrong at once stands on both sides of the metric, one that is right
 * twice has twice its probability. changed: the attribute of a counterfactual. */
static void check_apart(const char *where, const char *text, const char *changed,
                        const SageForm *form) {
    size_t n = form->n_answer + form->n_wrong;
    Arena *scratch = arena_new();
    int64_t *sorted = arena_alloc(scratch, n, sizeof *sorted); /* 2 id, and 1 more if wrong */
    for (size_t i = 0; i < n; i++) {
        sorted[i] = i < form->n_answer ? 2 * (int64_t)form->answer[i]
                                       : 2 * (int64_t)form->wrong[i - form->n_answer] + 1;
    }
    qsort(sorted, n, sizeof *sorted, compare_ids);
    for (size_t i = 1; i < n; i++) {
        if (sorted[i - 1] / 2 == sorted[i] / 2) {
            fail(STATUS_INPUT, "%s: the prompt '%.100s'%s%s has token %d as %s", where, text,
                 changed != NULL ? " with another " : "", changed != NULL ? changed : "",
                 (int)(sorted[i] / 2),
                 sorted[i - 1] != sorted[i] ? "answer and as wrong"
                 : sorted[i] % 2 != 0       ? "wrong twice"
                                            : "answer twice");
        }
    }
    arena_free(scratch);
}

/* What holds of every prompt, drawn or read; where: the file that it is from. */
static void check_prompt(const SageTask *task, const char *where, const SagePrompt *prompt) {
    check_apart(where, prompt->text, NULL, &prompt->clean);
    for (size_t a = 0; a < task->n_attributes; a++) {
        const char *name = task->attributes[a].name;
        const SageForm *other = &prompt->counterfactual[a];
        if (other->rows != prompt->clean.rows) {
            fail(STATUS_INPUT,
                 "%s: the prompt '%.100s' and its counterfactual differ in length in attribute "
                 "'%s': %zu and %zu tokens",
                 where, prompt->text, name, prompt->clean.rows, other->rows);
        }
        if (prompt->changed[a] == prompt->values[a]) {
            fail(STATUS_INPUT, "%s: the prompt '%.100s' has the same %s in its counterfactual",
                 where, prompt->text, name);
        }
        check_apart(where, prompt->text, name, other);
    }
}

/* ---- drawing ---- */

/* May attribute `a` take value `v` beside the values of the attributes below `known`? */
static bool value_allowed(const SageTask *task, const size_t *values, size_t known, size_t a,
                          size_t v) {
    bool allowed = true;
    for (size_t b = 0; b < known && allowed; b++) {
        allowed = !task->distinct[a * task->n_attributes + b] ||
                  strcmp(task->attributes[b].values[values[b]], task->attributes[a].values[v]) != 0;
    }
    return allowed;
}

/* A value for attribute `a`, uniform among those allowed, but for `except`. False: none is. */
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

/* Values of a prompt and its counterfactuals; all are drawn again where 'distinct' leaves none. */
static void draw_values(const SageTask *task, Random *random, SagePrompt *prompt) {
    enum {
        TRIES = 1000
    };
    size_t n = task->n_attributes, stuck = 0;
    for (int try = 0; try < TRIES; try++) {
        bool done = true;
        for (size_t i = 0; i < 2 * n && done; i++) { /* those of the prompt, then the changed */
            size_t a = stuck = i % n, *values = prompt->values;
            done = i < n ? draw_value(task, random, values, a, a, SIZE_MAX, &values[a])
                         : draw_value(task, random, values, n, a, values[a], &prompt->changed[a]);
        }
        if (done) {
            return;
        }
    }
    fail(STATUS_INPUT, "%s: attribute '%s' has no other value to take", task->file,
         task->attributes[stuck].name);
}

static SagePrompt prompt_draw(const SageTask *task, const Tokenizer *tokenizer, int32_t bos,
                              Random *random, SageSplit split, Arena *scratch) {
    const Json *templates = task->templates[split];
    size_t n = task->n_attributes, *other = arena_alloc(scratch, n, sizeof(size_t));
    SageAttribute *fillers = arena_alloc(scratch, task->n_fillers, sizeof(SageAttribute));
    SagePrompt prompt = {.values = arena_alloc(task->arena, n, sizeof(size_t)),
                         .changed = arena_alloc(task->arena, n, sizeof(size_t)),
                         .counterfactual = arena_alloc(task->arena, n, sizeof(SageForm))};
    Choice choice = {templates->child, prompt.values, fillers};
    for (size_t k = (size_t)random_below(random, templates->length); k > 0; k--) {
        choice.template = choice.template->next;
    }
    for (size_t i = 0; i < task->n_fillers; i++) {
        fillers[i] = task->fillers[split][i];
        fillers[i].values += random_below(random, fillers[i].count);
    }
    draw_values(task, random, &prompt);
    TaskText text = build_text(task, &choice, scratch);
    prompt.text = arena_copy(task->arena, text.text, text.length);
    prompt.clean = form_build(task, tokenizer, bos, &choice);
    choice.values = other;
    for (size_t a = 0; a < n; a++) {
        memcpy(other, prompt.values, n * sizeof(size_t));
        other[a] = prompt.changed[a];
        prompt.counterfactual[a] = form_build(task, tokenizer, bos, &choice);
    }
    check_prompt(task, task->file, &prompt);
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
            find_places(task, (SageSplit)s, &task->prompts[s][i]);
        }
        task->n_prompts[s] = n[s];
    }
    arena_free(scratch);
}

/* ---- prompts.jsonl ---- */

static void write_id_list(JsonOut *json, const char *key, const int32_t *ids, size_t count) {
    json_out(json, "%s [", key);
    for (size_t i = 0; i < count; i++) {
        json_out(json, "%d", (int)ids[i]);
    }
    json_out(json, "]");
}

/* What follows the ids, and in the clean prompt the values. */
static void write_form(JsonOut *json, const SageTask *task, const SageForm *form) {
    json_out(json, "positions {");
    for (size_t p = 0; p < task->n_positions; p++) {
        json_out(json, "%s %zu", task->positions[p], form->positions[p]);
    }
    json_out(json, "}");
    write_id_list(json, "answer", form->answer, form->n_answer);
    write_id_list(json, "wrong", form->wrong, form->n_wrong);
}

static void write_prompt(const SageTask *task, FILE *out, SageSplit split,
                         const SagePrompt *prompt) {
    JsonOut json = json_out_start(out, 0);
    json_out(&json, "{ split %s text %s", split_names[split].name, prompt->text);
    write_id_list(&json, "ids", prompt->clean.ids, prompt->clean.rows);
    json_out(&json, "values {");
    for (size_t a = 0; a < task->n_attributes; a++) {
        const SageAttribute *attribute = &task->attributes[a];
        json_out(&json, "%s %s", attribute->name, attribute->values[prompt->values[a]]);
    }
    json_out(&json, "}");
    write_form(&json, task, &prompt->clean);
    json_out(&json, "counterfactual {");
    for (size_t a = 0; a < task->n_attributes; a++) {
        const SageAttribute *attribute = &task->attributes[a];
        const SageForm *form = &prompt->counterfactual[a];
        json_out(&json, "%s { value %s", attribute->name, attribute->values[prompt->changed[a]]);
        write_id_list(&json, "ids", form->ids, form->rows);
        write_form(&json, task, form);
        json_out(&json, "}");
    }
    json_out(&json, "} }");
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

static int32_t *read_ids(SageTask *task, const Json *row, const char *key, size_t d_vocab,
                         size_t *count) {
    const Json *list = json_need(row, key, JSON_ARRAY);
    int32_t *ids = arena_alloc(task->arena, list->length, sizeof(int32_t));
    *count = 0;
    for (const Json *v = list->child; v != NULL; v = v->next) {
        int64_t id;
        if (!json_int64(v, &id) || id < 0 || (uint64_t)id >= d_vocab) {
            fail(STATUS_INPUT, "%s: an id outside the vocabulary in '%s'", row->text, key);
        }
        ids[(*count)++] = (int32_t)id;
    }
    if (*count == 0) {
        fail(STATUS_INPUT, "%s: expected token ids in '%s'", row->text, key);
    }
    return ids;
}

static SageForm read_form(SageTask *task, const Json *row, size_t d_vocab) {
    const Json *positions = json_need(row, "positions", JSON_OBJECT);
    SageForm form = {.positions = arena_alloc(task->arena, task->n_positions, sizeof(size_t))};
    form.ids = read_ids(task, row, "ids", d_vocab, &form.rows);
    form.answer = read_ids(task, row, "answer", d_vocab, &form.n_answer);
    form.wrong = read_ids(task, row, "wrong", d_vocab, &form.n_wrong);
    for (size_t p = 0; p < task->n_positions; p++) {
        const char *name = task->positions[p];
        (void)json_need(positions, name, JSON_NUMBER);
        form.positions[p] = json_size(positions, name, 0, 0, form.rows - 1);
    }
    return form;
}

static size_t read_value(const SageAttribute *a, const Json *object, const char *key) {
    const Json *value = json_get(object, key);
    const char *text = json_string(value);
    int place = value_find(a, text);
    if (place < 0 || strlen(text) != value->length) {
        json_refuse(object, key, "a value that the task gives for the attribute");
    }
    return (size_t)place;
}

static SagePrompt read_prompt(SageTask *task, const Json *row, size_t d_vocab) {
    const Json *text = json_get(row, "text"), *values = json_need(row, "values", JSON_OBJECT);
    const Json *others = json_need(row, "counterfactual", JSON_OBJECT);
    size_t n = task->n_attributes;
    SagePrompt prompt = {
        .text = json_is(text, JSON_STRING) ? arena_copy(task->arena, text->text, text->length) : "",
        .values = arena_alloc(task->arena, n, sizeof(size_t)),
        .changed = arena_alloc(task->arena, n, sizeof(size_t)),
        .counterfactual = arena_alloc(task->arena, n, sizeof(SageForm)),
        .clean = read_form(task, row, d_vocab)};
    for (size_t i = 0; i < n; i++) {
        const SageAttribute *a = &task->attributes[i];
        const Json *other = json_need(others, a->name, JSON_OBJECT);
        prompt.values[i] = read_value(a, values, a->name);
        prompt.changed[i] = read_value(a, other, "value");
        prompt.counterfactual[i] = read_form(task, other, d_vocab);
    }
    check_prompt(task, row->text, &prompt);
    return prompt;
}

/* The ids are those of the text, if it is there, behind one token (<bos>) or none. */
static void check_text(const SagePrompt *prompt, const char *place, const Tokenizer *tokenizer,
                       Arena *scratch) {
    const SageForm *form = &prompt->clean;
    size_t length = strlen(prompt->text);
    Tokens tokens = tokenizer_encode(tokenizer, prompt->text, length, false, scratch);
    size_t lead = form->rows - tokens.count; /* wraps to many */
    if (length > 0 &&
        (lead > 1 || memcmp(form->ids + lead, tokens.id, tokens.count * sizeof *tokens.id) != 0)) {
        fail(STATUS_INPUT, "%s: 'ids' are not those of 'text' in this model's tokenizer", place);
    }
}

void sage_prompts_read(SageTask *task, const char *path, const Tokenizer *tokenizer,
                       size_t d_vocab) {
    Arena *scratch = arena_new(), *line = arena_within(scratch);
    JsonLines lines = json_lines(scratch, path);
    size_t room[SAGE_SPLITS] = {0};
    for (const Json *row; (row = json_line(line, &lines)) != NULL;) {
        (void)json_need(row, "split", JSON_STRING);
        int s = json_choice(row, "split", 0, split_names);
        task->prompts[s] = arena_grow(task->arena, task->prompts[s], &room[s],
                                      task->n_prompts[s] + 1, sizeof(SagePrompt));
        SagePrompt *prompt = &task->prompts[s][task->n_prompts[s]++];
        *prompt = read_prompt(task, row, d_vocab);
        check_text(prompt, row->text, tokenizer, line);
        find_places(task, (SageSplit)s, prompt);
        arena_reset(line);
    }
    if (task->n_prompts[SAGE_TRAIN] == 0 || task->n_prompts[SAGE_TEST] == 0) {
        fail(STATUS_INPUT, "%s: needs prompts of both splits", path);
    }
    arena_free(scratch);
}

/* ---- what can be said of a prompt ---- */

static SageKind *kind_add(SageKinds *kinds, const char *subject, const char *also,
                          const char *const *values, size_t n, Arena *arena) {
    SageKind *kind = &kinds->list[kinds->count++];
    *kind = (SageKind){subject, also, values, n, NULL};
    kind->holds = arena_alloc(arena, size_product(n, kinds->words), sizeof(uint64_t));
    return kind;
}

static void kind_mark(const SageKinds *kinds, SageKind *kind, size_t value, size_t p) {
    kind->holds[value * kinds->words + p / 64] |= (uint64_t)1 << p % 64;
}

/* Values of attribute a, or (label not NULL) what the label says of them, in all prompts (form
 * SIZE_MAX) or where the form attribute has a value. */
static void value_kind(SageKinds *kinds, const SageTask *task, size_t a, size_t form,
                       const SageLabel *label, Arena *arena) {
    const SageAttribute *attribute = &task->attributes[a],
                        *forms = form < SIZE_MAX ? &task->attributes[task->form] : NULL;
    const char *also =
        forms != NULL ? arena_format(arena, " & %s=%s", forms->name, forms->values[form]) : "";
    SageKind *kind =
        label != NULL
            ? kind_add(kinds, arena_format(arena, "%s(%s)", label->name, attribute->name), also,
                       label->texts, label->count, arena)
            : kind_add(kinds, attribute->name, also, attribute->values, attribute->count, arena);
    for (size_t p = 0; p < task->n_prompts[SAGE_TEST]; p++) {
        const size_t *values = task->prompts[SAGE_TEST][p].values;
        int value = label != NULL ? label->of[a][values[a]] : (int)values[a];
        if (value >= 0 && (forms == NULL || values[task->form] == form)) {
            kind_mark(kinds, kind, (size_t)value, p);
        }
    }
}

/* Places of a set of slots, "IO/S#1=x", "#2", "#any": the value at the first, at the second, at any
 * of them in the text. Attributes of the same values are one set: first[b] is its first. */
static void place_kinds(SageKinds *kinds, const SageTask *task, size_t a, const size_t *first,
                        Arena *arena) {
    static const char *const places[3] = {"1", "2", "any"};
    const SageAttribute *attribute = &task->attributes[a];
    const char *set = attribute->name;
    SageKind *kind[3];
    for (size_t b = a + 1; b < task->n_attributes; b++) {
        set = first[b] == a ? arena_format(arena, "%s/%s", set, task->attributes[b].name) : set;
    }
    for (size_t k = 0; k < 3; k++) {
        kind[k] = kind_add(kinds, arena_format(arena, "%s#%s", set, places[k]), "",
                           attribute->values, attribute->count, arena);
    }
    for (size_t p = 0; p < task->n_prompts[SAGE_TEST]; p++) {
        const SagePrompt *prompt = &task->prompts[SAGE_TEST][p];
        for (size_t i = 0, nth = 0; i < prompt->n_places; i++) {
            size_t b = prompt->places[i];
            if (first[b] == a) {
                const char *text = task->attributes[b].values[prompt->values[b]];
                size_t value = (size_t)value_find(attribute, text);
                kind_mark(kinds, kind[2], value, p);
                if (nth < 2) {
                    kind_mark(kinds, kind[nth++], value, p);
                }
            }
        }
    }
}

static bool same_values(const SageAttribute *a, const SageAttribute *b) {
    bool same = a->count == b->count;
    for (size_t v = 0; v < a->count && same; v++) {
        same = value_find(b, a->values[v]) >= 0;
    }
    return same;
}

/* All kinds of predicates: an attribute's values; with each form; by place in the text; labels. */
SageKinds *sage_kinds(const SageTask *task, uint64_t seed, Arena *arena) {
    size_t n = task->n_attributes, forms = task->form >= 0 ? task->attributes[task->form].count : 0;
    size_t n_test = task->n_prompts[SAGE_TEST], *first = arena_alloc(arena, n, sizeof(size_t));
    SageKinds *kinds = arena_alloc(arena, 1, sizeof *kinds);
    kinds->words = (n_test + 63) / 64;
    kinds->list = arena_alloc(arena, n * (1 + forms + 3 + task->n_labels), sizeof(SageKind));
    for (size_t a = 0; a < n; a++) {
        value_kind(kinds, task, a, SIZE_MAX, NULL, arena);
        while (!same_values(&task->attributes[first[a]], &task->attributes[a])) {
            first[a]++;
        }
    }
    for (size_t a = 0; a < n; a++) {
        for (size_t f = 0; f < forms && (int)a != task->form; f++) {
            value_kind(kinds, task, a, f, NULL, arena);
        }
    }
    for (size_t a = 0; a < n; a++) {
        if (first[a] == a) {
            place_kinds(kinds, task, a, first, arena);
        }
    }
    for (size_t i = 0; i < task->n_labels * n; i++) {
        value_kind(kinds, task, i % n, SIZE_MAX, &task->labels[i / n], arena);
    }
    Random random = random_start(seed, RANDOM_SAGE_PERMUTE);
    kinds->order = arena_alloc(arena, n_test, sizeof(uint64_t));
    random_permutation(&random, kinds->order, n_test);
    return kinds;
}

/* tokenizer_load.c: reads tokenizer.json; see tokenizer.h and tokenizer_parts.h. What it asks for
 * and tokenizer.c does not do is refused by name, with the words that the file uses. */
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "tokenizer_parts.h"

enum {
    PAD_MOST = 1 << 24
}; /* tokens; a hostile file must not fill the memory */

/* GPT-2's expression as files that name it spell it. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- names ---- */

uint64_t hash_bytes(const char *text, size_t length) {
    uint64_t h = length * 0x9E3779B97F4A7C15u;
    for (; length >= 8; length -= 8, text += 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    uint64_t word = 0;
    memcpy(&word, text, length);
    h = (h ^ word) * 0xBF58476D1CE4E5B9u;
    return h ^ h >> 32;
}

/* Index of the name or NONE; *slot is where it is or would be. */
static uint32_t names_slot(const Names *names, const char *text, size_t length, size_t *slot) {
    if (names->slots == NULL) {
        return NONE;
    }
    for (size_t i = hash_bytes(text, length);; i++) {
        i &= names->mask;
        uint32_t index = names->slots[i] - 1;
        if (index == NONE) {
            *slot = i;
            return NONE;
        }
        const Name *name = &names->list[index];
        if (name->length == length && memcmp(name->text, text, length) == 0) {
            *slot = i;
            return index;
        }
    }
}

uint32_t names_find(const Names *names, const char *text, size_t length) {
    size_t slot;
    return names_slot(names, text, length, &slot);
}

uint32_t names_id(const Names *names, const char *text, size_t length) {
    uint32_t index = names_find(names, text, length);
    return index == NONE ? NONE : names->list[index].id;
}

static void names_init(Names *names, Arena *arena, size_t most) {
    size_t slots = 16;
    while (slots / 2 < most) {
        slots *= 2;
    }
    names->list = arena_alloc(arena, most + 1, sizeof(Name));
    names->slots = arena_alloc(arena, slots, sizeof(uint32_t));
    names->mask = slots - 1;
    names->count = 0;
}

/* Adds a name; one that is there gets the new id, as a JSON member that comes twice. */
static void names_add(Names *names, const char *text, size_t length, uint32_t id) {
    size_t slot = 0;
    uint32_t index = names_slot(names, text, length, &slot);
    if (index == NONE) {
        index = (uint32_t)names->count++;
        names->slots[slot] = index + 1;
        names->list[index] = (Name){text, (uint32_t)length, id};
    }
    names->list[index].id = id;
}

const Name *names_by_id(const Names *names, uint32_t id) {
    size_t low = 0, high = names->count;
    if (id < high && names->list[id].id == id) {
        return &names->list[id];
    }
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (names->list[middle].id == id) {
            return &names->list[middle];
        }
        if (names->list[middle].id < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

const AddedToken *added_by_id(const Tokenizer *t, uint32_t id) {
    size_t low = 0, high = t->by_id_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (t->by_id[middle]->id == id) {
            return t->by_id[middle];
        }
        if (t->by_id[middle]->id < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

/* ---- reading JSON ---- */

REFSAE_NORETURN static void load_fail(const Tokenizer *t, const char *where, const char *what) {
    fail(STATUS_INPUT, "%s: %s: %s", t->path, where, what);
}

REFSAE_NORETURN static void unsupported(const Tokenizer *t, const char *where, const char *what) {
    fail(STATUS_INPUT, "%s: %s '%s' is not supported", t->path, where, what);
}

static bool absent(const Json *value) {
    return value == NULL || value->kind == JSON_NULL;
}

/* The member `key`, which must be there and of that kind. */
static const Json *get(const Tokenizer *t, const Json *object, const char *where, const char *key,
                       JsonKind kind) {
    static const char *const names[] = {"null",     "false",    "true",     "a number",
                                        "a string", "an array", "an object"};
    const Json *value = json_get(object, key);
    if (!json_is(value, kind)) {
        fail(STATUS_INPUT, "%s: %s: '%s' must be %s", t->path, where, key, names[kind]);
    }
    return value;
}

/* otherwise: the value where the member is missing or null; -1: it must be there. */
static bool get_bool(const Tokenizer *t, const Json *object, const char *where, const char *key,
                     int otherwise) {
    const Json *value = json_get(object, key);
    if (absent(value) && otherwise >= 0) {
        return otherwise != 0;
    }
    if (!json_is(value, JSON_TRUE) && !json_is(value, JSON_FALSE)) {
        fail(STATUS_INPUT, "%s: %s: '%s' must be true or false", t->path, where, key);
    }
    return value->kind == JSON_TRUE;
}

static size_t get_size(const Tokenizer *t, const Json *object, const char *where, const char *key) {
    const Json *value = json_get(object, key);
    int64_t number;
    if (value == NULL || !json_int64(value, &number) || number < 0 || number > INT32_MAX) {
        fail(STATUS_INPUT, "%s: %s: '%s' must be a whole number from 0 to %ld", t->path, where, key,
             (long)INT32_MAX);
    }
    return (size_t)number;
}

static String get_string(const Tokenizer *t, const Json *object, const char *where,
                         const char *key) {
    const Json *value = get(t, object, where, key, JSON_STRING);
    return (String){arena_copy(t->arena, value->text, value->length), value->length};
}

/* A string of one character. */
static String get_character(const Tokenizer *t, const Json *object, const char *where,
                            const char *key) {
    uint32_t code;
    String text = get_string(t, object, where, key);
    if (text.length == 0 || utf8_decode(text.text, text.length, &code) != text.length) {
        fail(STATUS_INPUT, "%s: %s: '%s' must be one character", t->path, where, key);
    }
    return text;
}

static const char *get_type(const Tokenizer *t, const Json *part, const char *where) {
    if (!json_is(part, JSON_OBJECT)) {
        load_fail(t, where, "must be an object or null");
    }
    return get(t, part, where, "type", JSON_STRING)->text;
}

static bool is(const char *type, const char *name) {
    return strcmp(type, name) == 0;
}

static void add_step(const Tokenizer *t, Steps *steps, Step step) {
    steps->list =
        arena_grow(t->arena, steps->list, &steps->capacity, steps->count + 1, sizeof(*steps->list));
    steps->list[steps->count++] = step;
}

/* "pattern": {"String": ...} or {"Regex": ...} */
static String get_pattern(const Tokenizer *t, const Json *part, const char *where, bool *regex) {
    const Json *value = get(t, part, where, "pattern", JSON_OBJECT);
    *regex = json_get(value, "String") == NULL;
    String pattern = get_string(t, value, where, *regex ? "Regex" : "String");
    if (pattern.length == 0) {
        load_fail(t, where, "an empty pattern is not supported");
    }
    return pattern;
}

static void load_replace(const Tokenizer *t, const Json *part, const char *where, Steps *steps) {
    bool regex;
    Step step = {.kind = STEP_REPLACE, .pattern = get_pattern(t, part, where, &regex)};
    if (regex) {
        unsupported(t, where, step.pattern.text);
    }
    step.content = get_string(t, part, where, "content");
    add_step(t, steps, step);
}

/* The parts of a Sequence, or the one part itself. Depth is bounded by json_parse's. */
typedef void LoadPart(Tokenizer *t, const Json *part, const char *type, Steps *steps);

static void load_parts(Tokenizer *t, const Json *part, const char *where, const char *list,
                       LoadPart *load, Steps *steps) {
    if (absent(part)) {
        return;
    }
    const char *type = get_type(t, part, where);
    if (!is(type, "Sequence")) {
        load(t, part, type, steps);
        return;
    }
    for (const Json *p = get(t, part, where, list, JSON_ARRAY)->child; p != NULL; p = p->next) {
        if (absent(p)) {
            load_fail(t, where, "a part of a sequence is null");
        }
        load_parts(t, p, where, list, load, steps);
    }
}

static void load_normalizer(Tokenizer *t, const Json *part, const char *type, Steps *steps) {
    if (is(type, "NFC")) {
        add_step(t, steps, (Step){.kind = STEP_NFC});
    } else if (is(type, "Replace")) {
        load_replace(t, part, "normalizer Replace", steps);
    } else if (is(type, "Prepend")) {
        String content = get_string(t, part, "normalizer Prepend", "prepend");
        add_step(t, steps,
                 (Step){.kind = STEP_PREPEND, .prepend = PREPEND_ALWAYS, .content = content});
    } else if (is(type, "ByteLevel")) {
        add_step(t, steps, (Step){.kind = STEP_BYTE_LEVEL});
    } else {
        unsupported(t, "normalizer", type);
    }
}

static void load_split(Tokenizer *t, const Json *part, Steps *steps) {
    static const char *const behaviours[] = {"Removed", "Isolated", "MergedWithPrevious",
                                             "MergedWithNext", "Contiguous"};
    const char *where = "pre_tokenizer Split";
    bool regex;
    Step step = {.kind = STEP_SPLIT, .pattern = get_pattern(t, part, where, &regex)};
    step.invert = get_bool(t, part, where, "invert", -1);
    String behaviour = get_string(t, part, where, "behavior");
    size_t i = 0;
    while (i < 5 && !is(behaviour.text, behaviours[i])) {
        i++;
    }
    if (i == 5) {
        unsupported(t, "behavior", behaviour.text);
    }
    step.behaviour = (Behaviour)i;
    if (regex) {
        if (!is(step.pattern.text, gpt2_pattern) || step.behaviour != SPLIT_ISOLATED) {
            unsupported(t, "pre_tokenizer Split with the regular expression", step.pattern.text);
        }
        step.kind = STEP_GPT2_SPLIT;
    }
    add_step(t, steps, step);
}

/* The scheme of a Metaspace: 0 always, 1 first, 2 never (Metaspace's Deserialize). */
static int get_scheme(const Tokenizer *t, const Json *part, const char *where) {
    static const char *const names[] = {"always", "first", "never"};
    const Json *value = json_get(part, "prepend_scheme");
    int scheme = 0;
    while (!absent(value) && scheme < 3 && !json_text_is(value, names[scheme])) {
        scheme++;
    }
    if (scheme == 3 || (json_is(json_get(part, "add_prefix_space"), JSON_FALSE) && scheme != 2)) {
        load_fail(t, where, "'prepend_scheme' is unknown or does not fit 'add_prefix_space'");
    }
    return scheme;
}

static void load_metaspace(Tokenizer *t, const Json *part, Steps *steps) {
    const char *where = "pre_tokenizer Metaspace";
    String mark = get_character(t, part, where, "replacement");
    int scheme = get_scheme(t, part, where);
    bool split = get_bool(t, part, where, "split", 1);
    add_step(t, steps, (Step){.kind = STEP_REPLACE, .pattern = {" ", 1}, .content = mark});
    if (scheme != 2) {
        add_step(t, steps,
                 (Step){.kind = STEP_PREPEND,
                        .content = mark,
                        .prepend = scheme == 0 ? PREPEND_MISSING : PREPEND_MISSING_FIRST});
    }
    if (split) {
        add_step(t, steps,
                 (Step){.kind = STEP_SPLIT, .pattern = mark, .behaviour = SPLIT_WITH_NEXT});
    }
}

static void load_pre_tokenizer(Tokenizer *t, const Json *part, const char *type, Steps *steps) {
    if (is(type, "ByteLevel")) {
        bool prefix = get_bool(t, part, "pre_tokenizer ByteLevel", "add_prefix_space", -1);
        bool regex = get_bool(t, part, "pre_tokenizer ByteLevel", "use_regex", 1);
        if (prefix) {
            add_step(t, steps,
                     (Step){.kind = STEP_PREPEND, .content = {" ", 1}, .prepend = PREPEND_MISSING});
        }
        if (regex) {
            add_step(t, steps, (Step){.kind = STEP_GPT2_SPLIT});
        }
        add_step(t, steps, (Step){.kind = STEP_BYTE_LEVEL});
    } else if (is(type, "Split")) {
        load_split(t, part, steps);
    } else if (is(type, "Metaspace")) {
        load_metaspace(t, part, steps);
    } else {
        unsupported(t, "pre_tokenizer", type);
    }
}

static void load_decoder(Tokenizer *t, const Json *part, const char *type, Steps *steps) {
    if (is(type, "Replace")) {
        load_replace(t, part, "decoder Replace", steps);
    } else if (is(type, "Strip")) {
        Step step = {.kind = STEP_STRIP};
        step.pattern = get_character(t, part, "decoder Strip", "content");
        step.start = get_size(t, part, "decoder Strip", "start");
        step.stop = get_size(t, part, "decoder Strip", "stop");
        add_step(t, steps, step);
    } else if (is(type, "Metaspace")) {
        Step step = {.kind = STEP_METASPACE};
        step.pattern = get_character(t, part, "decoder Metaspace", "replacement");
        step.first = get_scheme(t, part, "decoder Metaspace") != 2;
        add_step(t, steps, step);
    } else if (is(type, "ByteLevel")) {
        add_step(t, steps, (Step){.kind = STEP_BYTE_LEVEL});
    } else if (is(type, "ByteFallback")) {
        add_step(t, steps, (Step){.kind = STEP_BYTE_FALLBACK});
    } else if (is(type, "Fuse")) {
        add_step(t, steps, (Step){.kind = STEP_FUSE});
    } else {
        unsupported(t, "decoder", type);
    }
}

/* ---- post-processor, truncation, padding ---- */

static uint32_t get_id(const Tokenizer *t, const Json *value, const char *where) {
    int64_t number;
    if (value == NULL || !json_int64(value, &number) || number < 0 || number >= INT32_MAX) {
        load_fail(t, where, "an id must be a whole number from 0 to 2147483646");
    }
    return (uint32_t)number;
}

static void add_ids(const Tokenizer *t, Ids *ids, const Json *first, size_t count) {
    uint32_t *list = arena_alloc(t->arena, ids->count + count, sizeof(*list));
    if (ids->count > 0) {
        memcpy(list, ids->list, ids->count * sizeof(*list));
    }
    ids->list = list;
    for (; count > 0; count--, first = first->next) {
        list[ids->count++] = get_id(t, first, "post_processor");
    }
}

static void load_template(Tokenizer *t, const Json *part) {
    const char *where = "post_processor TemplateProcessing";
    size_t sequences = 0;
    const Json *single = get(t, part, where, "single", JSON_ARRAY);
    const Json *specials = get(t, part, where, "special_tokens", JSON_OBJECT);
    for (const Json *piece = single->child; piece != NULL; piece = piece->next) {
        const Json *body = json_get(piece, "Sequence");
        if (json_is(body, JSON_OBJECT)) {
            sequences++;
            if (!json_text_is(json_get(body, "id"), "A")) {
                load_fail(t, where, "'single' may only use the sequence A");
            }
            continue;
        }
        body = get(t, piece, where, "SpecialToken", JSON_OBJECT);
        const Json *id = get(t, body, where, "id", JSON_STRING);
        const Json *special = get(t, specials, where, id->text, JSON_OBJECT);
        const Json *ids = get(t, special, where, "ids", JSON_ARRAY);
        add_ids(t, sequences == 0 ? &t->before : &t->after, ids->child, ids->length);
    }
    if (sequences != 1) {
        load_fail(t, where, "'single' must hold the sequence A exactly once");
    }
}

/* "cls": ["<s>", 0], "sep": ["</s>", 2] of RobertaProcessing and BertProcessing */
static void load_pair(const Tokenizer *t, const Json *part, const char *key, Ids *ids) {
    const Json *pair = get(t, part, "post_processor", key, JSON_ARRAY);
    if (pair->length != 2) {
        load_fail(t, "post_processor", "'cls' and 'sep' are [token, id]");
    }
    add_ids(t, ids, pair->child->next, 1);
}

static void load_post_processor(Tokenizer *t, const Json *part, const char *type, Steps *steps) {
    (void)steps;
    if (is(type, "ByteLevel")) {
        return; /* trims offsets, adds no token */
    }
    if (t->before.count + t->after.count > 0) {
        load_fail(t, "post_processor", "a second one that adds tokens is not supported");
    }
    if (is(type, "RobertaProcessing") || is(type, "BertProcessing")) {
        load_pair(t, part, "cls", &t->before);
        load_pair(t, part, "sep", &t->after);
    } else if (is(type, "TemplateProcessing")) {
        load_template(t, part);
    } else {
        unsupported(t, "post_processor", type);
    }
}

/* One of two words for false and true; false where the member is missing. */
static bool get_choice(const Tokenizer *t, const Json *object, const char *where, const char *key,
                       const char *no, const char *yes, bool required) {
    const Json *value = json_get(object, key);
    bool chosen = json_text_is(value, yes);
    if (!chosen && !json_text_is(value, no) && (value != NULL || required)) {
        fail(STATUS_INPUT, "%s: %s: '%s' must be %s or %s", t->path, where, key, no, yes);
    }
    return chosen;
}

static void load_truncation(Tokenizer *t, const Json *part) {
    const char *where = "truncation";
    if (absent(part)) {
        return;
    }
    t->truncate = true;
    t->truncate_length = get_size(t, part, where, "max_length");
    t->truncate_stride = get_size(t, part, where, "stride");
    t->truncate_left = get_choice(t, part, where, "direction", "Right", "Left", false);
    const char *strategy = get(t, part, where, "strategy", JSON_STRING)->text;
    t->truncate_second = is(strategy, "OnlySecond");
    if (!t->truncate_second && !is(strategy, "OnlyFirst") && !is(strategy, "LongestFirst")) {
        unsupported(t, "truncation strategy", strategy);
    }
}

static void load_padding(Tokenizer *t, const Json *part) {
    const char *where = "padding";
    if (absent(part)) {
        return;
    }
    t->pad = true;
    const Json *strategy = json_get(part, "strategy");
    if (json_is(strategy, JSON_OBJECT)) {
        t->pad_fixed = true;
        t->pad_length = get_size(t, strategy, where, "Fixed");
    } else if (!json_text_is(strategy, "BatchLongest")) {
        load_fail(t, where, "'strategy' must be BatchLongest or Fixed");
    }
    t->pad_left = get_choice(t, part, where, "direction", "Right", "Left", true);
    if (!absent(json_get(part, "pad_to_multiple_of"))) {
        t->pad_multiple = get_size(t, part, where, "pad_to_multiple_of");
    }
    if (t->pad_length > PAD_MOST || t->pad_multiple > PAD_MOST) {
        load_fail(t, where, "more than 16777216 tokens are not supported");
    }
    t->pad_id = get_id(t, json_get(part, "pad_id"), where);
}

/* ---- model ---- */

static int compare_ids(const void *a, const void *b) {
    const Name *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void load_vocabulary(Tokenizer *t, const Json *vocabulary) {
    size_t bytes = 0;
    for (const Json *v = vocabulary->child; v != NULL; v = v->next) {
        bytes += (size_t)v->key_length + 1;
    }
    char *text = arena_alloc(t->arena, bytes + 1, 1);
    Names *names = &t->vocabulary;
    names_init(names, t->arena, vocabulary->length);
    for (const Json *v = vocabulary->child; v != NULL; v = v->next) {
        int64_t id;
        if (!json_int64(v, &id) || id < 0 || id >= INT32_MAX) {
            fail(STATUS_INPUT,
                 "%s: vocabulary: the id of '%s' must be a whole number from 0 to 2147483646",
                 t->path, v->key);
        }
        memcpy(text, v->key, v->key_length);
        names_add(names, text, v->key_length, (uint32_t)id);
        text += (size_t)v->key_length + 1;
    }
    bool sorted = true;
    for (size_t i = 1; i < names->count; i++) {
        sorted = sorted && names->list[i - 1].id < names->list[i].id;
    }
    if (!sorted) {
        qsort(names->list, names->count, sizeof(*names->list), compare_ids);
        memset(names->slots, 0, (names->mask + 1) * sizeof(*names->slots));
        size_t count = names->count;
        for (names->count = 0; names->count < count;) {
            Name name = names->list[names->count];
            names_add(names, name.text, name.length, name.id);
        }
    }
    for (size_t i = 1; i < names->count; i++) {
        if (names->list[i - 1].id == names->list[i].id) {
            fail(STATUS_INPUT, "%s: vocabulary: '%s' and '%s' have the same id %lu", t->path,
                 names->list[i - 1].text, names->list[i].text, (unsigned long)names->list[i].id);
        }
    }
}

/* Ids of single characters and of byte tokens. */
static void index_characters(Tokenizer *t) {
    t->direct = arena_alloc(t->arena, DIRECT_CODES, sizeof(*t->direct));
    memset(t->direct, 0xFF, DIRECT_CODES * sizeof(*t->direct));
    for (size_t i = 0; i < t->vocabulary.count; i++) {
        Name name = t->vocabulary.list[i];
        uint32_t code;
        if (name.length > 0 && name.length < 4 &&
            utf8_decode(name.text, name.length, &code) == name.length) {
            t->direct[code] = name.id;
        }
    }
    for (unsigned i = 0; i < 256; i++) {
        char token[8];
        snprintf(token, sizeof(token), "<0x%02X>", i);
        t->byte_ids[i] = names_id(&t->vocabulary, token, 6);
    }
}

/* The two sides of a merge, ["a", "b"] or "a b". */
static void merge_sides(const Tokenizer *t, const Json *merge, bool pairs, size_t rank, String *a,
                        String *b) {
    if (pairs && json_is(merge, JSON_ARRAY) && merge->length == 2 &&
        json_is(merge->child, JSON_STRING) && json_is(merge->child->next, JSON_STRING)) {
        *a = (String){merge->child->text, merge->child->length};
        *b = (String){merge->child->next->text, merge->child->next->length};
        return;
    }
    if (!pairs && json_is(merge, JSON_STRING)) {
        const char *space = memchr(merge->text, ' ', merge->length);
        size_t left = space == NULL ? 0 : (size_t)(space - merge->text);
        if (space != NULL && memchr(space + 1, ' ', merge->length - left - 1) == NULL) {
            *a = (String){merge->text, left};
            *b = (String){space + 1, merge->length - left - 1};
            return;
        }
    }
    fail(STATUS_INPUT, "%s: merge %zu is not %s", t->path, rank,
         pairs ? "a pair of strings like those before it"
               : "a string of two tokens with one space between");
}

REFSAE_NORETURN static void unknown_in_merge(const Tokenizer *t, size_t rank, String token) {
    fail(STATUS_INPUT, "%s: merge %zu names '%.*s', which is not in the vocabulary", t->path, rank,
         token.length < 200 ? (int)token.length : 200, token.text);
}

/* Notes which characters the merge of `a` and `b` can bring together. */
static void note_join(Tokenizer *t, String a, String b, uint32_t left, uint32_t right) {
    uint32_t last = 0, first = 0;
    size_t i = a.length;
    while (i > 0 && ((unsigned char)a.text[--i] & 0xC0) == 0x80) {
    }
    if (utf8_decode(a.text + i, a.length - i, &last) == 0 ||
        utf8_decode(b.text, b.length, &first) == 0 ||
        (t->has_unk && (left == t->unk_id || right == t->unk_id))) {
        t->cuttable = false;
        return;
    }
    size_t bit = join_bit(t, last, first);
    t->joins[bit >> 6] |= (uint64_t)1 << (bit & 63);
}

static void add_merge(Tokenizer *t, Merge merge) {
    size_t i = merge_slot(t, merge.left, merge.right);
    while (t->merges[i].left != NONE &&
           (t->merges[i].left != merge.left || t->merges[i].right != merge.right)) {
        i = (i + 1) & t->merge_mask;
    }
    t->merges[i] = merge; /* the last of equal ones counts, with its rank */
}

static void load_merges(Tokenizer *t, const Json *merges) {
    unsigned bits = 4, join_bits = 10;
    while (((size_t)1 << bits) / 4 * 3 < merges->length + 1) {
        bits++;
    }
    while (((size_t)1 << join_bits) / 16 < merges->length && join_bits < 23) {
        join_bits++;
    }
    t->merge_shift = 64 - bits;
    t->merge_mask = ((size_t)1 << bits) - 1;
    t->joins_shift = 64 - join_bits;
    t->merges = arena_alloc(t->arena, t->merge_mask + 1, sizeof(*t->merges));
    t->joins = arena_alloc(t->arena, (size_t)1 << (join_bits - 6), sizeof(*t->joins));
    memset(t->merges, 0xFF, (t->merge_mask + 1) * sizeof(*t->merges));
    t->cuttable = true;
    Arena *scratch = arena_new();
    char *joined = NULL;
    size_t capacity = 0;
    bool is_byte_token = false;
    bool pairs = !json_is(merges->child, JSON_STRING);
    size_t rank = 0;
    for (const Json *m = merges->child; m != NULL; m = m->next) {
        String a = {0}, b = {0};
        if (!pairs && json_is(m, JSON_STRING) && strncmp(m->text, "#version", 8) == 0) {
            continue;
        }
        merge_sides(t, m, pairs, rank, &a, &b);
        uint32_t left = names_id(&t->vocabulary, a.text, a.length);
        uint32_t right = names_id(&t->vocabulary, b.text, b.length);
        if (left == NONE || right == NONE) {
            unknown_in_merge(t, rank, left == NONE ? a : b);
        }
        size_t length = a.length + b.length;
        joined = arena_grow(scratch, joined, &capacity, length + 1, 1);
        memcpy(joined, a.text, a.length);
        memcpy(joined + a.length, b.text, b.length);
        uint32_t id = names_id(&t->vocabulary, joined, length);
        if (id == NONE) {
            unknown_in_merge(t, rank, (String){joined, length});
        }
        is_byte_token = is_byte_token || (a.length == 6 && memcmp(a.text, "<0x", 3) == 0) ||
                        (b.length == 6 && memcmp(b.text, "<0x", 3) == 0);
        note_join(t, a, b, left, right);
        add_merge(t, (Merge){left, right, (uint32_t)rank++, id});
    }
    t->cuttable = t->cuttable && !(t->byte_fallback && is_byte_token);
    arena_free(scratch);
}

static void load_model(Tokenizer *t, const Json *model) {
    const char *where = "model";
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const Json *type = json_get(model, "type"), *unk = json_get(model, "unk_token");
    const Json *dropout = json_get(model, "dropout");
    if (type != NULL && !json_text_is(type, "BPE")) {
        unsupported(t, where, json_is(type, JSON_STRING) ? type->text : "type");
    }
    for (size_t i = 0; i < 2; i++) {
        const Json *affix = json_get(model, affixes[i]);
        if (!absent(affix) && !(json_is(affix, JSON_STRING) && affix->length == 0)) {
            unsupported(t, where, affixes[i]);
        }
    }
    if (!absent(dropout) && !(json_is(dropout, JSON_NUMBER) && json_double(dropout) == 0.0)) {
        unsupported(t, where, "dropout");
    }
    t->fuse_unk = get_bool(t, model, where, "fuse_unk", 0);
    t->byte_fallback = get_bool(t, model, where, "byte_fallback", 0);
    t->ignore_merges = get_bool(t, model, where, "ignore_merges", 0);
    const Json *vocabulary = get(t, model, where, "vocab", JSON_OBJECT);
    const Json *merges = get(t, model, where, "merges", JSON_ARRAY);
    load_vocabulary(t, vocabulary);
    index_characters(t);
    if (!absent(unk)) {
        t->unk = get_string(t, model, where, "unk_token");
        t->has_unk = true;
        t->unk_id = names_id(&t->vocabulary, t->unk.text, t->unk.length);
    }
    load_merges(t, merges);
}

/* ---- added tokens ---- */

static AddedToken read_added(const Tokenizer *t, const Json *object) {
    const char *where = "added_tokens";
    AddedToken token = {0};
    if (!json_is(object, JSON_OBJECT)) {
        load_fail(t, where, "each must be an object");
    }
    token.content = get_string(t, object, where, "content");
    token.id = get_id(t, json_get(object, "id"), where);
    token.single_word = get_bool(t, object, where, "single_word", -1);
    token.lstrip = get_bool(t, object, where, "lstrip", -1);
    token.rstrip = get_bool(t, object, where, "rstrip", -1);
    token.normalized = get_bool(t, object, where, "normalized", -1);
    token.special = get_bool(t, object, where, "special", -1);
    return token;
}

static bool same_string(String a, String b) {
    return a.length == b.length && memcmp(a.text, b.text, a.length) == 0;
}

static bool same_token(const AddedToken *a, const AddedToken *b) {
    return same_string(a->content, b->content) && a->single_word == b->single_word &&
           a->lstrip == b->lstrip && a->rstrip == b->rstrip && a->normalized == b->normalized &&
           a->special == b->special;
}

static int compare_patterns(const void *a, const void *b) {
    const AddedToken *x = *(const AddedToken *const *)a, *y = *(const AddedToken *const *)b;
    size_t shorter = x->pattern.length < y->pattern.length ? x->pattern.length : y->pattern.length;
    int order = memcmp(x->pattern.text, y->pattern.text, shorter);
    if (order != 0) {
        return order;
    }
    if (x->pattern.length != y->pattern.length) {
        return x->pattern.length < y->pattern.length ? -1 : 1;
    }
    return x->id < y->id ? -1 : x->id > y->id;
}

static int compare_added_ids(const void *a, const void *b) {
    const AddedToken *x = *(const AddedToken *const *)a, *y = *(const AddedToken *const *)b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Sorts a set's patterns; of equal ones the lowest id stays (`tokenizers` keeps any one). */
static void finish_set(AddedSet *set) {
    size_t kept = 0;
    if (set->count > 0) {
        qsort(set->list, set->count, sizeof(*set->list), compare_patterns);
    }
    for (size_t i = 0; i < set->count; i++) {
        if (kept == 0 || !same_string(set->list[i]->pattern, set->list[kept - 1]->pattern)) {
            set->list[kept++] = set->list[i];
            set->first[(unsigned char)set->list[i]->pattern.text[0]] = true;
        }
    }
    set->count = kept;
}

/* AddedVocabulary::add_tokens and refresh_added_tokens. holders: the latest token of each id. */
static void load_added(Tokenizer *t, const Json *list) {
    Names holders = {0}, specials = {0};
    size_t most = absent(list) ? 0 : list->length, count = 0;
    if (!absent(list) && !json_is(list, JSON_ARRAY)) {
        load_fail(t, "added_tokens", "must be an array");
    }
    names_init(&t->added_names, t->arena, most);
    names_init(&holders, t->arena, most);
    names_init(&specials, t->arena, most);
    t->added = arena_alloc(t->arena, most + 1, sizeof(*t->added));
    t->by_id = arena_alloc(t->arena, most + 1, sizeof(*t->by_id));
    t->plain.list = arena_alloc(t->arena, most + 1, sizeof(*t->plain.list));
    t->normalized.list = arena_alloc(t->arena, most + 1, sizeof(*t->normalized.list));
    uint32_t next_id = (uint32_t)t->vocabulary.count;
    for (const Json *json = most > 0 ? list->child : NULL; json != NULL; json = json->next) {
        AddedToken *token = &t->added[count];
        *token = read_added(t, json);
        String content = token->content;
        if (content.length == 0) {
            continue;
        }
        uint32_t known = names_id(&t->added_names, content.text, content.length);
        uint32_t id = known != NONE ? t->added[known].id
                                    : names_id(&t->vocabulary, content.text, content.length);
        token->id = id != NONE ? id : next_id++;
        uint32_t holder = names_id(&holders, (const char *)&token->id, sizeof(token->id));
        if (known != NONE && holder != NONE && same_token(&t->added[holder], token)) {
            continue;
        }
        if (holder != NONE) {
            token->normal = t->added[holder].normal;
        }
        if (token->normalized && t->normalizer.count > 0) {
            String normal = normalize_string(&t->normalizer, content, t->arena);
            token->normal = same_string(normal, content) ? token->normal : normal;
            if (normal.length == 0) {
                unsupported(t, "an added token that is empty once normalized,", content.text);
            }
        }
        token->decoded = token->normal.text != NULL ? token->normal : content;
        token->pattern = token->normalized ? token->decoded : content;
        if (token->special) {
            names_add(&specials, content.text, content.length, 0);
        }
        names_add(&t->added_names, content.text, content.length, (uint32_t)count);
        names_add(&holders, (const char *)&token->id, sizeof(token->id), (uint32_t)count);
        count++;
    }
    for (size_t i = 0; i < holders.count; i++) {
        AddedToken *token = &t->added[holders.list[i].id];
        AddedSet *set = token->normalized ? &t->normalized : &t->plain;
        token->skipped = names_find(&specials, token->decoded.text, token->decoded.length) != NONE;
        t->by_id[t->by_id_count++] = token;
        set->list[set->count++] = token;
    }
    if (t->by_id_count > 0) {
        qsort(t->by_id, t->by_id_count, sizeof(*t->by_id), compare_added_ids);
    }
    finish_set(&t->plain);
    finish_set(&t->normalized);
}

/* ---- the whole ---- */

static void load(Tokenizer *t, const Json *root) {
    const Json *version = json_get(root, "version");
    Steps none = {0};
    if (!json_is(root, JSON_OBJECT)) {
        load_fail(t, "the file", "must be a JSON object");
    }
    if (version != NULL && !json_text_is(version, "1.0")) {
        load_fail(t, "version", "only 1.0 is supported");
    }
    const Json *model = get(t, root, "the file", "model", JSON_OBJECT);
    load_parts(t, json_get(root, "normalizer"), "normalizer", "normalizers", load_normalizer,
               &t->normalizer);
    load_parts(t, json_get(root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers",
               load_pre_tokenizer, &t->pre_tokenizer);
    load_parts(t, json_get(root, "decoder"), "decoder", "decoders", load_decoder, &t->decoder);
    t->has_decoder = !absent(json_get(root, "decoder"));
    load_parts(t, json_get(root, "post_processor"), "post_processor", "processors",
               load_post_processor, &none);
    load_truncation(t, json_get(root, "truncation"));
    load_padding(t, json_get(root, "padding"));
    load_model(t, model);
    load_added(t, json_get(root, "added_tokens"));
}

Tokenizer *tokenizer_open(Arena *arena, const char *path) {
    Tokenizer *t = arena_alloc(arena, 1, sizeof(*t));
    Arena *scratch = arena_new();
    t->arena = arena;
    t->unk_id = NONE;
    t->path = path_is_directory(path) ? path_join(arena, path, "tokenizer.json")
                                      : arena_copy(arena, path, strlen(path));
    load(t, json_read_file(scratch, t->path));
    arena_free(scratch);
    return t;
}

int32_t tokenizer_id(const Tokenizer *t, const char *token) {
    uint32_t added = names_id(&t->added_names, token, strlen(token));
    uint32_t id =
        added != NONE ? t->added[added].id : names_id(&t->vocabulary, token, strlen(token));
    return id == NONE ? -1 : (int32_t)id;
}

const char *tokenizer_token(const Tokenizer *t, int32_t id, size_t *length) {
    const AddedToken *added = id < 0 ? NULL : added_by_id(t, (uint32_t)id);
    const Name *name = id < 0 ? NULL : names_by_id(&t->vocabulary, (uint32_t)id);
    *length = added != NULL ? added->content.length : name != NULL ? name->length : 0;
    return added != NULL ? added->content.text : name != NULL ? name->text : NULL;
}

int32_t tokenizer_size(const Tokenizer *t) {
    uint32_t size = 0;
    if (t->vocabulary.count > 0) {
        size = t->vocabulary.list[t->vocabulary.count - 1].id + 1;
    }
    if (t->by_id_count > 0 && t->by_id[t->by_id_count - 1]->id >= size) {
        size = t->by_id[t->by_id_count - 1]->id + 1;
    }
    return (int32_t)size;
}

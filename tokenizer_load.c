/* tokenizer_load.c: reads tokenizer.json and the tokenizer_config.json beside it. What they ask for
 * and tokenizer.c does not do is refused by name. */
#include "tokenizer_tables.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

enum {
    REPLACEMENT_MOST = 4,   /* bytes of what a Replace puts: a character */
    SETTING_MOST = 1 << 20, /* tokens that truncation leaves or padding makes */
    SPECIAL_MOST = 64       /* ids that the post-processor adds on either side */
};

/* ---- the parts ---- */

REFSAE_NORETURN static void unsupported(const Tokenizer *t, const char *where, const char *what) {
    fail(STATUS_INPUT, "%s: %s '%s' is not supported", t->path, where, what);
}

static String read_string(const Tokenizer *t, const Json *object, const char *key) {
    const Json *value = json_need(object, key, JSON_STRING);
    return (String){arena_copy(t->arena, value->text, value->length), value->length};
}

static String read_pattern(const Tokenizer *t, const Json *part) {
    const Json *pattern = json_need(part, "pattern", JSON_OBJECT);
    if (json_is(json_get(pattern, "Regex"), JSON_STRING)) {
        unsupported(t, "the regular expression", json_get(pattern, "Regex")->text);
    }
    String text = read_string(t, pattern, "String");
    if (text.length == 0) {
        json_refuse(pattern, "String", "a string that is not empty");
    }
    return text;
}

/* A long one would let a small file ask for any amount of memory. */
static String read_replacement(const Tokenizer *t, const Json *part) {
    String text = read_string(t, part, "content");
    if (text.length > REPLACEMENT_MOST) {
        json_refuse(part, "content", "at most 4 bytes");
    }
    return text;
}

enum {
    MAX_PARTS = 8
};

/* A part of the file: none, one, or the parts of a Sequence, which is the member `list`. */
typedef struct Parts {
    const Json *part[MAX_PARTS];
    const char *type[MAX_PARTS];
    size_t count;
} Parts;

static Parts read_parts(const Json *root, const char *key, const char *list) {
    Parts parts = {.count = 0};
    const Json *part = json_member(root, key, JSON_OBJECT);
    if (part != NULL && json_text_is(json_get(part, "type"), "Sequence")) {
        part = json_need(part, list, JSON_ARRAY)->child;
    }
    for (; part != NULL; part = part->next) {
        if (!json_is(part, JSON_OBJECT) || parts.count == MAX_PARTS) {
            json_refuse(root, key, "a part or a sequence of at most 8 parts");
        }
        parts.part[parts.count] = part;
        parts.type[parts.count++] = json_need(part, "type", JSON_STRING)->text;
        if (part->key != NULL) {
            break; /* the one part itself, a member of the file */
        }
    }
    return parts;
}

static bool part_is(const Parts *parts, size_t i, const char *type) {
    return i < parts->count && strcmp(parts->type[i], type) == 0;
}

static void load_normalizer(Tokenizer *t, const Json *root) {
    Parts parts = read_parts(root, "normalizer", "normalizers");
    for (size_t i = 0; i < parts.count; i++) {
        if (part_is(&parts, i, "NFC") && parts.count == 1) {
            t->nfc = true;
        } else if (part_is(&parts, i, "Replace") && parts.count == 1) {
            t->space = read_pattern(t, parts.part[i]);
            t->mark = read_replacement(t, parts.part[i]);
        } else {
            bool known = part_is(&parts, i, "NFC") || part_is(&parts, i, "Replace");
            unsupported(t, known ? "in a sequence the normalizer" : "normalizer", parts.type[i]);
        }
    }
}

static void load_pre_tokenizer(Tokenizer *t, const Json *root) {
    Parts parts = read_parts(root, "pre_tokenizer", "pretokenizers");
    if (parts.count > 1) {
        unsupported(t, "after another the pre_tokenizer", parts.type[1]);
    } else if (part_is(&parts, 0, "ByteLevel")) {
        t->byte_level = true;
        t->prefix_space = json_bool(parts.part[0], "add_prefix_space", true);
        if (!json_bool(parts.part[0], "use_regex", true)) {
            unsupported(t, "pre_tokenizer ByteLevel with", "use_regex\": false");
        }
    } else if (part_is(&parts, 0, "Split")) {
        t->split = read_pattern(t, parts.part[0]);
        String behaviour = read_string(t, parts.part[0], "behavior");
        if (strcmp(behaviour.text, "MergedWithPrevious") != 0 ||
            json_bool(parts.part[0], "invert", false)) {
            unsupported(t, "pre_tokenizer Split, inverted or with behavior", behaviour.text);
        }
    } else if (parts.count == 1) {
        unsupported(t, "pre_tokenizer", parts.type[0]);
    }
}

static void load_decoder(Tokenizer *t, const Json *root) {
    Parts parts = read_parts(root, "decoder", "decoders");
    if (parts.count == 1 && part_is(&parts, 0, "ByteLevel")) {
        t->decode_byte_level = true;
        return;
    }
    static const char *const gemma[] = {"Replace", "ByteFallback", "Fuse"};
    for (size_t i = 0; i < parts.count; i++) {
        if (i >= 3 || !part_is(&parts, i, gemma[i])) {
            unsupported(t, "here the decoder", parts.type[i]);
        }
    }
    if (parts.count != 3) {
        json_refuse(root, "decoder", "ByteLevel or a sequence of Replace, ByteFallback and Fuse");
    }
    t->decode_mark = read_pattern(t, parts.part[0]);
    t->decode_space = read_replacement(t, parts.part[0]);
}

static void add_ids(const Tokenizer *t, Ids *ids, const Json *special) {
    const Json *list = json_need(special, "ids", JSON_ARRAY);
    if (list->length > SPECIAL_MOST - ids->count) {
        json_refuse(special, "ids", "at most 64 ids before the text and 64 after it");
    }
    uint32_t *longer = arena_alloc(t->arena, ids->count + list->length, sizeof *longer);
    for (size_t i = 0; i < ids->count; i++) {
        longer[i] = ids->list[i];
    }
    ids->list = longer;
    for (const Json *id = list->child; id != NULL; id = id->next) {
        int64_t number;
        if (!json_int64(id, &number) || number < 0 || number >= INT32_MAX) {
            json_refuse(special, "ids", "whole numbers from 0 to 2147483646");
        }
        longer[ids->count++] = (uint32_t)number;
    }
}

/* TemplateProcessing: the sequence A once, special tokens before and after it. ByteLevel trims
 * offsets and adds no token. */
static void load_post_processor(Tokenizer *t, const Json *root) {
    Parts parts = read_parts(root, "post_processor", "processors");
    for (size_t i = 0; i < parts.count; i++) {
        size_t sequences = 0;
        if (part_is(&parts, i, "ByteLevel")) {
            continue;
        }
        if (!part_is(&parts, i, "TemplateProcessing")) {
            unsupported(t, "post_processor", parts.type[i]);
        }
        if (t->before.count + t->after.count > 0) {
            unsupported(t, "a second post_processor", parts.type[i]);
        }
        const Json *single = json_need(parts.part[i], "single", JSON_ARRAY);
        const Json *specials = json_need(parts.part[i], "special_tokens", JSON_OBJECT);
        for (const Json *piece = single->child; piece != NULL; piece = piece->next) {
            const Json *sequence = json_get(piece, "Sequence");
            const Json *token = json_get(piece, "SpecialToken");
            sequences += json_text_is(json_get(sequence, "id"), "A");
            if (json_is(token, JSON_OBJECT)) {
                const char *name = json_need(token, "id", JSON_STRING)->text;
                add_ids(t, sequences == 0 ? &t->before : &t->after,
                        json_need(specials, name, JSON_OBJECT));
            } else if (!json_text_is(json_get(sequence, "id"), "A")) {
                json_refuse(parts.part[i], "single", "special tokens and the sequence A");
            }
        }
        if (sequences != 1) {
            json_refuse(parts.part[i], "single", "the sequence A exactly once");
        }
    }
}

static void load_truncation(Tokenizer *t, const Json *root) {
    const Json *part = json_member(root, "truncation", JSON_OBJECT);
    if (part == NULL) {
        return;
    }
    const char *strategy = json_need(part, "strategy", JSON_STRING)->text;
    t->truncation = (Truncation){.there = true,
                                 .left = strcmp(json_text(part, "direction", "Right"), "Left") == 0,
                                 .only_second = strcmp(strategy, "OnlySecond") == 0,
                                 .length = json_size(part, "max_length", 0, 0, SETTING_MOST),
                                 .stride = json_size(part, "stride", 0, 0, SETTING_MOST)};
    if (!t->truncation.only_second && strcmp(strategy, "OnlyFirst") != 0 &&
        strcmp(strategy, "LongestFirst") != 0) {
        unsupported(t, "truncation strategy", strategy);
    }
}

static void load_padding(Tokenizer *t, const Json *root) {
    const Json *part = json_member(root, "padding", JSON_OBJECT);
    if (part == NULL) {
        return;
    }
    const Json *strategy = json_get(part, "strategy");
    t->padding = (Padding){.there = true,
                           .left = strcmp(json_text(part, "direction", "Right"), "Left") == 0,
                           .id = (int32_t)json_size(part, "pad_id", 0, 0, INT32_MAX)};
    if (json_is(strategy, JSON_OBJECT)) {
        t->padding.length = json_size(strategy, "Fixed", 0, 0, SETTING_MOST);
    } else if (!json_text_is(strategy, "BatchLongest")) {
        unsupported(t, "padding", "strategy that is neither BatchLongest nor Fixed");
    }
    if (json_set(part, "pad_to_multiple_of") != NULL) {
        t->padding.multiple = json_size(part, "pad_to_multiple_of", 0, 0, SETTING_MOST);
    }
}

/* ---- model ---- */

static void add_token(Tokenizer *t, uint32_t id, Token token) {
    t->tokens[id] = token;
    *token_slot(t, token.text.text, token.text.length) = id + 1;
    t->count++;
}

/* Ids are those from 0 on, each once. */
static void load_vocabulary(Tokenizer *t, const Json *vocabulary, size_t most_added) {
    size_t slots = 16, most = vocabulary->length + most_added, bytes = 0;
    while (slots / 2 < most) {
        slots *= 2;
    }
    for (const Json *v = vocabulary->child; v != NULL; v = v->next) {
        bytes += (size_t)v->key_length + 1;
    }
    char *text = arena_alloc(t->arena, bytes, 1);
    t->tokens = arena_alloc(t->arena, most, sizeof *t->tokens);
    t->slots = arena_alloc(t->arena, slots, sizeof *t->slots);
    t->slot_mask = slots - 1;
    for (const Json *v = vocabulary->child; v != NULL; v = v->next) {
        int64_t id;
        if (!json_int64(v, &id) || id < 0 || (uint64_t)id >= vocabulary->length ||
            t->tokens[id].text.text != NULL || token_find(t, v->key, v->key_length) != NONE) {
            fail(STATUS_INPUT,
                 "%s: model: 'vocab': '%s' has no id of its own from 0 to the number of tokens",
                 t->path, v->key);
        }
        memcpy(text, v->key, v->key_length);
        add_token(t, (uint32_t)id, (Token){.text = {text, v->key_length}});
        text += (size_t)v->key_length + 1;
    }
    t->model_count = t->count;
}

/* Ids of single characters and of bytes. */
static void index_characters(Tokenizer *t) {
    t->direct = arena_alloc(t->arena, DIRECT_CODES, sizeof *t->direct);
    memset(t->direct, 0xFF, DIRECT_CODES * sizeof *t->direct);
    for (uint32_t id = 0; id < t->model_count; id++) {
        String s = t->tokens[id].text;
        uint32_t code;
        if (s.length > 0 && s.length < 4 && utf8_decode(s.text, s.length, &code) == s.length) {
            t->direct[code] = id;
        }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char token[8];
        size_t length = 6;
        if (t->byte_level) {
            length = utf8_encode(byte_to_code(byte), token);
        } else {
            snprintf(token, sizeof token, "<0x%02X>", byte);
        }
        t->byte_ids[byte] = token_find(t, token, length);
        /* Gemma's has the tab as a character alone */
        if (t->byte_ids[byte] == NONE &&
            (t->byte_level || byte >= 0x80 || t->direct[byte] == NONE)) {
            fail(STATUS_INPUT,
                 "%s: model: 'vocab': a vocabulary without byte 0x%02X ('%.*s') is "
                 "not supported",
                 t->path, byte, (int)length, token);
        }
    }
}

/* The two sides of a merge, ["a", "b"] or "a b". */
static void merge_sides(const Tokenizer *t, const Json *merge, size_t rank, String side[2]) {
    const Json *a = json_is(merge, JSON_ARRAY) && merge->length == 2 ? merge->child : NULL;
    if (a != NULL && json_is(a, JSON_STRING) && json_is(a->next, JSON_STRING)) {
        side[0] = (String){a->text, a->length};
        side[1] = (String){a->next->text, a->next->length};
        return;
    }
    const char *space =
        json_is(merge, JSON_STRING) ? memchr(merge->text, ' ', merge->length) : NULL;
    size_t left = space == NULL ? 0 : (size_t)(space - merge->text);
    if (space == NULL || memchr(space + 1, ' ', merge->length - left - 1) != NULL) {
        fail(STATUS_INPUT, "%s: merge %zu is not two tokens, as a pair or with a space between",
             t->path, rank);
    }
    side[0] = (String){merge->text, left};
    side[1] = (String){space + 1, merge->length - left - 1};
}

static uint32_t merge_token(const Tokenizer *t, size_t rank, String token) {
    uint32_t id = token_find(t, token.text, token.length);
    if (id == NONE) {
        fail(STATUS_INPUT, "%s: merge %zu names '%.*s', which is not in the vocabulary", t->path,
             rank, token.length < 200 ? (int)token.length : 200, token.text);
    }
    return id;
}

/* Notes which characters the merge of `a` and `b` can bring together. */
static void note_join(Tokenizer *t, String a, String b) {
    uint32_t last = 0, first = 0;
    size_t i = a.length;
    while (i > 0 && ((unsigned char)a.text[--i] & 0xC0) == 0x80) {
    }
    if (utf8_decode(a.text + i, a.length - i, &last) == 0 ||
        utf8_decode(b.text, b.length, &first) == 0 ||
        (!t->byte_level && (fallback_byte(a) >= 0 || fallback_byte(b) >= 0))) {
        t->cuttable = false;
        return;
    }
    size_t bit = join_bit(t, last, first);
    t->joins[bit >> 6] |= (uint64_t)1 << (bit & 63);
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
    t->merges = arena_alloc(t->arena, t->merge_mask + 1, sizeof *t->merges);
    t->joins = arena_alloc(t->arena, (size_t)1 << (join_bits - 6), sizeof *t->joins);
    memset(t->merges, 0xFF, (t->merge_mask + 1) * sizeof *t->merges);
    t->cuttable = true;
    Arena *scratch = arena_new();
    size_t rank = 0;
    for (const Json *m = merges->child; m != NULL; m = m->next, rank++) {
        String side[2];
        merge_sides(t, m, rank, side);
        arena_reset(scratch);
        char *both = arena_alloc(scratch, side[0].length + side[1].length, 1);
        memcpy(both, side[0].text, side[0].length);
        memcpy(both + side[0].length, side[1].text, side[1].length);
        uint32_t left = merge_token(t, rank, side[0]), right = merge_token(t, rank, side[1]);
        uint32_t id = merge_token(t, rank, (String){both, side[0].length + side[1].length});
        note_join(t, side[0], side[1]);
        *merge_find(t, left, right) = (Merge){left, right, (uint32_t)rank, id};
    }
    arena_free(scratch);
}

static void load_model(Tokenizer *t, const Json *model, size_t most_added) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = json_text(model, "type", "BPE");
    if (strcmp(type, "BPE") != 0) {
        unsupported(t, "model", type);
    }
    for (size_t i = 0; i < 2; i++) {
        if (*json_text(model, affixes[i], "") != 0) {
            unsupported(t, "model with", affixes[i]);
        }
    }
    if (json_member(model, "dropout", JSON_NUMBER) != NULL &&
        json_double(json_get(model, "dropout")) != 0.0) {
        unsupported(t, "model with", "dropout");
    }
    if (json_bool(model, "ignore_merges", false)) {
        unsupported(t, "model with", "ignore_merges");
    }
    if (!t->byte_level && !json_bool(model, "byte_fallback", false)) {
        unsupported(t, "without pre_tokenizer ByteLevel a model with", "byte_fallback\": false");
    }
    load_vocabulary(t, json_need(model, "vocab", JSON_OBJECT), most_added);
    const Json *merges = json_need(model, "merges", JSON_ARRAY);
    index_characters(t);
    load_merges(t, merges);
}

/* ---- added tokens ---- */

static int compare_added(const void *a, const void *b) {
    const AddedToken *x = a, *y = b;
    size_t shorter = x->text.length < y->text.length ? x->text.length : y->text.length;
    int order = memcmp(x->text.text, y->text.text, shorter);
    return order != 0                        ? order
           : x->text.length < y->text.length ? -1
                                             : x->text.length > y->text.length;
}

static bool begins_with(String text, String with) {
    return text.length >= with.length && memcmp(text.text, with.text, with.length) == 0;
}

static void sort_added(AddedSet *set) {
    if (set->count > 0) {
        qsort(set->list, set->count, sizeof *set->list, compare_added);
    }
    for (uint32_t i = 0; i < set->count; i++) {
        AddedToken *token = &set->list[i];
        token->shorter = i - 1; /* 0 - 1 is NONE */
        while (token->shorter != NONE &&
               !begins_with(token->text, set->list[token->shorter].text)) {
            token->shorter = set->list[token->shorter].shorter;
        }
        set->first[(unsigned char)token->text.text[0]] = true;
    }
}

static bool read_flag(const Json *token, const char *key, bool needed) {
    if (needed && json_set(token, key) == NULL) {
        json_refuse(token, key, "true or false");
    }
    return json_bool(token, key, false);
}

static bool is_added(const Tokenizer *t, String content) {
    uint32_t id = token_find(t, content.text, content.length);
    return id != NONE && t->tokens[id].added;
}

/* Ids are those of the vocabulary, or count on from its size. flags NULL: a special token. */
static void add_added(Tokenizer *t, String content, const Json *flags, bool all_flags) {
    uint32_t id = token_find(t, content.text, content.length);
    if (id == NONE) {
        id = (uint32_t)t->count;
        add_token(t, id, (Token){.text = content});
    }
    bool normalized = all_flags || json_set(flags, "normalized") != NULL
                          ? read_flag(flags, "normalized", all_flags)
                          : flags != NULL && !json_bool(flags, "special", false);
    if (normalized && !is_normal(t, content)) { /* it would have to be undone in decoding */
        unsupported(t, "an added token that the normalizer changes,", content.text);
    }
    t->tokens[id].added = true;
    t->tokens[id].special = flags == NULL || read_flag(flags, "special", all_flags);
    AddedSet *set = &t->added[normalized];
    set->list[set->count++] =
        (AddedToken){.text = content,
                     .id = id,
                     .single_word = read_flag(flags, "single_word", all_flags),
                     .lstrip = read_flag(flags, "lstrip", all_flags),
                     .rstrip = read_flag(flags, "rstrip", all_flags)};
}

/* What tokenizer_config.json declares, as transformers 5.23 takes it over tokenizer.json: flags of
 * the tokens there, and tokens beside them: first those of added_tokens_decoder, whose order counts
 * and not their ids, then the special ones. */
static const char *const special_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                            "pad_token", "cls_token", "mask_token"};

static size_t declared_most(const Json *config) {
    size_t most = sizeof special_names / sizeof *special_names;
    for (const Json *v = json_first(config); v != NULL; v = v->next) {
        most += json_is(v, JSON_ARRAY) || json_is(v, JSON_OBJECT) ? v->length : 0;
    }
    return most;
}

static void add_special(Tokenizer *t, const Json *token) {
    bool named = json_is(token, JSON_OBJECT);
    if (named || json_is(token, JSON_STRING)) {
        const Json *text = named ? json_need(token, "content", JSON_STRING) : token;
        String content = {arena_copy(t->arena, text->text, text->length), text->length};
        if (content.length > 0 && !is_added(t, content)) {
            add_added(t, content, named ? token : NULL, false);
        }
    }
}

typedef struct Declared { /* of added_tokens_decoder, by id */
    const char *id;
    const Json *token;
    String content;
} Declared;

static void load_declared(Tokenizer *t, const Json *config, const Declared *list, size_t count) {
    const Json *others = json_get(config, "extra_special_tokens");
    others = others != NULL ? others : json_get(config, "additional_special_tokens");
    for (size_t i = 0; i < count; i++) {
        add_special(t, list[i].token);
    }
    for (size_t i = 0; i < sizeof special_names / sizeof *special_names; i++) {
        add_special(t, json_get(config, special_names[i]));
    }
    for (const Json *v = json_first(others); v != NULL; v = v->next) {
        add_special(t, v);
    }
}

static void load_added(Tokenizer *t, const Json *list, const Json *config, Arena *scratch) {
    const Json *decoder = json_member(config, "added_tokens_decoder", JSON_OBJECT);
    size_t most = (list == NULL ? 0 : list->length) + declared_most(config), count = 0;
    t->added[0].list = arena_alloc(t->arena, most, sizeof(AddedToken));
    t->added[1].list = arena_alloc(t->arena, most, sizeof(AddedToken));
    Declared *declared = arena_alloc(scratch, most, sizeof *declared);
    for (const Json *v = json_first(decoder); v != NULL; v = v->next) {
        (void)json_need(decoder, v->key, JSON_OBJECT);
        declared[count++] = (Declared){v->key, v, read_string(t, v, "content")};
    }
    qsort(declared, count, sizeof *declared, compare_natural);
    for (const Json *json = list == NULL ? NULL : list->child; json != NULL; json = json->next) {
        if (!json_is(json, JSON_OBJECT)) {
            fail(STATUS_INPUT, "%s: added_tokens: each must be an object", t->path);
        }
        String content = read_string(t, json, "content");
        uint32_t known = token_find(t, content.text, content.length),
                 id = known != NONE ? known : (uint32_t)t->count;
        (void)json_need(json, "id", JSON_NUMBER);
        if (content.length == 0 || is_added(t, content) ||
            json_size(json, "id", 0, 0, INT32_MAX) != id) {
            fail(STATUS_INPUT,
                 "%s: added_tokens: '%s' is empty, or there twice, or its id is not %lu", t->path,
                 content.text, (unsigned long)id);
        }
        const Json *flags = json;
        for (size_t i = 0; i < count; i++) {
            flags = same_string(declared[i].content, content) ? declared[i].token : flags;
        }
        add_added(t, content, flags, flags == json);
    }
    load_declared(t, config, declared, count);
    sort_added(&t->added[0]);
    sort_added(&t->added[1]);
}

/* tokenizer_config.json beside it: what transformers takes from there over tokenizer.json. The
 * classes of GPT-2 and GPT-NeoX, which are also taken where none is named, set add_prefix_space
 * whether it is there or not; classes that are of no model leave tokenizer.json as it is. */
static void load_config(Tokenizer *t, const char *path, const Json *config) {
    const char *class = json_text(config, "tokenizer_class", "");
    if (json_bool(config, "split_special_tokens", false)) {
        fail(STATUS_INPUT, "%s: 'split_special_tokens' is not supported", path);
    }
    if (t->byte_level && strcmp(class, "TokenizersBackend") != 0 &&
        strcmp(class, "PreTrainedTokenizerFast") != 0) {
        t->prefix_space = json_bool(config, "add_prefix_space", false);
    }
}

Tokenizer *tokenizer_open(Arena *arena, const char *path) {
    Tokenizer *t = arena_alloc(arena, 1, sizeof *t);
    Arena *scratch = arena_new();
    t->arena = arena;
    t->path = path_is_directory(path) ? path_join(arena, path, "tokenizer.json")
                                      : arena_copy(arena, path, strlen(path));
    const Json *root = json_read_file(scratch, t->path);
    if (!json_is(root, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: the file must be a JSON object", t->path);
    }
    const char *version = json_text(root, "version", "1.0");
    if (strcmp(version, "1.0") != 0) {
        unsupported(t, "version", version);
    }
    const Json *added = json_member(root, "added_tokens", JSON_ARRAY);
    load_truncation(t, root);
    load_padding(t, root);
    load_normalizer(t, root);
    load_pre_tokenizer(t, root);
    load_decoder(t, root);
    load_post_processor(t, root);
    const char *beside = path_join(scratch, path, "tokenizer_config.json");
    const Json *config = path_exists(beside) ? json_read_file(scratch, beside) : NULL;
    load_model(t, json_need(root, "model", JSON_OBJECT),
               (added == NULL ? 0 : added->length) + declared_most(config));
    load_added(t, added, config, scratch);
    if (path_is_directory(path)) {
        load_config(t, beside, config);
    }
    arena_free(scratch);
    return t;
}

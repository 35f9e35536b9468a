/* tokenizer.c: see tokenizer.h. The way of a text, as `tokenizers` 0.23 goes it:
 *
 *   text --added tokens, normalized = false--> segments --normalizer--> --added tokens, normalized
 * = true--> segments --pre-tokenizer--> words --BPE--> ids --truncation, template, padding--> ids
 *
 * Easy to get wrong:
 *  - ids of added tokens come from the vocabulary or count on from its size; the file's `id` is
 *    not read. A later token of the same id takes the place of an earlier one.
 *  - An added token that fails single_word is passed over whole; one with rstrip may eat into the
 *    next match, which counts all the same, and text between is then read again.
 *  - Queued merges are checked against the id they would make, not against their rank.
 *  - An unknown character waits (fuse_unk) while byte tokens that follow it go before it.
 *  - A character that is neither known nor falls back vanishes, and offsets shift with it.
 *  - skip_special_tokens compares the normalized form: a special token that the normalizer changes
 * stays.
 */
#include "tokenizer.h"

#include <string.h>

#include "tokenizer_parts.h"
#include "unicode.h"

enum {
    WORD_CUT = 64,    /* bytes; longer words are cut where no merge can reach across */
    CACHE_WORD = 128, /* bytes; longer pieces are not remembered */
    CACHE_MOST = 1 << 16
};

/* ---- text with origins ---- */

/* Bytes and, for each, where its character began in the original text. A view (origin NULL) is the
 * original text itself. Texts only grow during a call, so positions in them stay valid. */
typedef struct Text {
    Arena *arena; /* in which it grows */
    char *own;
    const char *bytes;
    uint32_t *origin;
    size_t length, capacity;
    NfcChar *chars; /* scratch of put_nfc */
    size_t chars_capacity;
} Text;

typedef struct Span {
    size_t begin, end;
} Span;

typedef struct Spans {
    Arena *arena;
    Span *list;
    size_t count, capacity;
} Spans;

static uint32_t origin_of(const Text *text, size_t i) {
    if (text->origin != NULL) {
        return text->origin[i];
    }
    while (i > 0 && ((unsigned char)text->bytes[i] & 0xC0) == 0x80) {
        i--;
    }
    return (uint32_t)i;
}

static void text_reserve(Text *text, size_t more) {
    size_t need;
    if (!size_add(&need, text->length, more) || need >= NONE / 2) {
        fail(STATUS_INPUT, "the text to tokenize is longer than 2 GiB once normalized");
    }
    if (need > text->capacity) {
        size_t same = text->capacity;
        text->origin = arena_grow(text->arena, text->origin, &same, need, sizeof(*text->origin));
        text->own = arena_grow(text->arena, text->own, &text->capacity, need, 1);
        text->bytes = text->own;
    }
}

/* `length` bytes that all come from `origin`; room is reserved. */
static void text_put(Text *text, const char *bytes, size_t length, uint32_t origin) {
    for (size_t i = 0; i < length; i++) {
        text->own[text->length] = bytes[i];
        text->origin[text->length++] = origin;
    }
}

static void text_copy(Text *text, const Text *from, size_t begin, size_t end) {
    if (end <= begin) {
        return;
    }
    text_reserve(text, end - begin);
    memcpy(text->own + text->length, from->bytes + begin, end - begin);
    for (size_t i = begin; i < end; i++) {
        text->origin[text->length++] = origin_of(from, i);
    }
}

/* First occurrence of `pattern` in [from, end), or end. */
static size_t find_bytes(const char *text, size_t from, size_t end, String pattern) {
    while (end - from >= pattern.length) {
        const char *hit = memchr(text + from, pattern.text[0], end - from - pattern.length + 1);
        if (hit == NULL) {
            return end;
        }
        if (memcmp(hit, pattern.text, pattern.length) == 0) {
            return (size_t)(hit - text);
        }
        from = (size_t)(hit - text) + 1;
    }
    return end;
}

/* GPT-2's printable character for a byte (openai/gpt-2, encoder.py, bytes_to_unicode): itself where
 * Latin-1 prints it, else the next free one from U+0100 on. */
static uint32_t byte_to_code(unsigned byte) {
    if (byte < 0x21) {
        return 0x100 + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x121 + (byte - 0x7F);
    }
    return byte == 0xAD ? 0x143 : byte;
}

static int code_to_byte(uint32_t code) {
    if (code < 0x100) {
        return byte_to_code(code) == code ? (int)code : -1;
    }
    return code < 0x121    ? (int)(code - 0x100)
           : code < 0x143  ? (int)(code - 0x121 + 0x7F)
           : code == 0x143 ? 0xAD
                           : -1;
}

static void put_byte_level(Text *out, const Text *in, size_t begin, size_t end) {
    text_reserve(out, 2 * (end - begin));
    for (size_t i = begin; i < end; i++) {
        char code[4];
        size_t length = utf8_encode(byte_to_code((unsigned char)in->bytes[i]), code);
        text_put(out, code, length, origin_of(in, i));
    }
}

static void put_replaced(Text *out, const Text *in, size_t begin, size_t end, String pattern,
                         String content) {
    for (size_t i = begin; i < end;) {
        size_t hit = find_bytes(in->bytes, i, end, pattern);
        text_copy(out, in, i, hit);
        i = hit;
        if (hit < end) {
            i += pattern.length;
            text_reserve(out, content.length);
            text_put(out, content.text, content.length, origin_of(in, i - 1));
        }
    }
}

static void put_nfc(Text *out, const Text *in, size_t begin, size_t end) {
    for (size_t i = begin; i < end;) {
        size_t stop;
        size_t start =
            begin + unicode_nfc_stretch(in->bytes + begin, end - begin, i - begin, &stop);
        stop += begin;
        text_copy(out, in, i, start);
        i = stop;
        if (start == end) {
            break;
        }
        NfcChar *chars = arena_grow(out->arena, out->chars, &out->chars_capacity,
                                    2 * (stop - start), sizeof(*chars));
        out->chars = chars;
        size_t count = unicode_nfc(in->bytes + start, stop - start, chars);
        text_reserve(out, 4 * count);
        size_t at = start; /* next byte of `in` to be consumed */
        for (size_t k = 0; k < count; k++) {
            char code[4];
            size_t length = utf8_encode(chars[k].code, code);
            bool inserted = chars[k].change > 0;
            text_put(out, code, length,
                     !inserted    ? origin_of(in, at)
                     : at > begin ? origin_of(in, at - 1)
                                  : origin_of(in, begin));
            for (int32_t n = chars[k].change; n <= 0 && at < stop; n++) {
                uint32_t ignored;
                at += utf8_decode(in->bytes + at, stop - at, &ignored);
            }
        }
    }
}

/* Appends what a rewriting step makes of [begin, end) of `in`. */
static void rewrite(const Step *step, const Text *in, size_t begin, size_t end, Text *out) {
    String content = step->content;
    switch (step->kind) {
    case STEP_NFC:
        put_nfc(out, in, begin, end);
        return;
    case STEP_REPLACE:
        put_replaced(out, in, begin, end, step->pattern, content);
        return;
    case STEP_PREPEND:
        if (begin < end && (step->prepend == PREPEND_ALWAYS ||
                            ((step->prepend == PREPEND_MISSING || origin_of(in, begin) == 0) &&
                             (end - begin < content.length ||
                              memcmp(in->bytes + begin, content.text, content.length) != 0)))) {
            text_reserve(out, content.length);
            text_put(out, content.text, content.length, origin_of(in, begin));
        }
        text_copy(out, in, begin, end);
        return;
    default:
        put_byte_level(out, in, begin, end);
        return;
    }
}

/* Passes [*begin, *end) of texts[0] through all steps; the result is in texts[steps->count]. */
static void normalize(const Steps *steps, Text *texts, size_t *begin, size_t *end) {
    for (size_t i = 0; i < steps->count; i++) {
        size_t start = texts[i + 1].length;
        rewrite(&steps->list[i], &texts[i], *begin, *end, &texts[i + 1]);
        *begin = start;
        *end = texts[i + 1].length;
    }
}

/* texts[0], a view of what is to be normalized, and one for each of `steps` that rewrite: with room
 * at once for what most texts need, since growth leaves memory behind. */
static Text *texts_new(Arena *arena, size_t steps, const char *bytes, size_t length) {
    Text *texts = arena_alloc(arena, steps + 1, sizeof(*texts));
    texts[0].bytes = bytes;
    texts[0].length = length;
    for (size_t i = 1; i <= steps; i++) {
        size_t room = length + length / 2;
        char *own = arena_alloc(arena, room, 1);
        uint32_t *origin = arena_alloc(arena, room, sizeof(*origin));
        texts[i] =
            (Text){.arena = arena, .own = own, .bytes = own, .origin = origin, .capacity = room};
    }
    return texts;
}

String normalize_string(const Steps *steps, String from, Arena *arena) {
    Arena *scratch = arena_new();
    Text *texts = texts_new(scratch, steps->count, from.text, from.length);
    size_t begin = 0, end = from.length;
    normalize(steps, texts, &begin, &end);
    String to = {arena_copy(arena, texts[steps->count].bytes + begin, end - begin), end - begin};
    arena_free(scratch);
    return to;
}

/* ---- encoding ---- */

typedef struct Symbol {
    uint32_t id, length, previous, next; /* length 0: merged into its left neighbour */
} Symbol;

typedef struct Queued {
    uint32_t rank, place, id;
} Queued;

/* A piece of text and the tokens it became: [start, length) of the words' text, [token, count). */
typedef struct Remembered {
    uint32_t start, length, token, count;
} Remembered;

typedef struct Piece {
    size_t begin, end;
    const AddedToken *token; /* NULL: text */
} Piece;

typedef struct Pieces {
    Arena *arena;
    Piece *list;
    size_t count, capacity;
} Pieces;

typedef struct Emitted {
    uint32_t id, place; /* in the words' text */
    size_t begin;       /* as in Tokens */
} Emitted;

typedef struct Encoder {
    const Tokenizer *t;
    Arena *arena;
    Emitted *tokens;
    size_t count, capacity;
    Text *texts; /* original, then one for each step */
    const Text *words;
    Pieces outer, inner;
    Spans spans, spare;
    Symbol *symbols;
    Queued *heap;
    size_t symbol_capacity, heap_capacity, symbol_count;
    size_t lost; /* bytes of the word so far that vanished: offsets shift by them */
    Remembered *cache;
    size_t cache_mask;
} Encoder;

static void emit(Encoder *e, uint32_t id, const Text *text, size_t at) {
    e->tokens = arena_grow(e->arena, e->tokens, &e->capacity, e->count + 1, sizeof(*e->tokens));
    e->tokens[e->count++] =
        (Emitted){id, (uint32_t)at, at < text->length ? origin_of(text, at) : 0};
}

static uint32_t character_id(const Tokenizer *t, uint32_t code, const char *text, size_t length) {
    return code < DIRECT_CODES ? t->direct[code] : names_id(&t->vocabulary, text, length);
}

static const Merge *merge_find(const Tokenizer *t, uint32_t left, uint32_t right) {
    for (size_t i = merge_slot(t, left, right);; i = (i + 1) & t->merge_mask) {
        const Merge *merge = &t->merges[i];
        if (merge->left == left && merge->right == right) {
            return merge;
        }
        if (merge->left == NONE) {
            return NULL;
        }
    }
}

static void add_symbol(Encoder *e, uint32_t id, size_t length) {
    uint32_t n = (uint32_t)e->symbol_count++;
    e->symbols[n] = (Symbol){id, (uint32_t)length, n - 1, n + 1}; /* 0 - 1 is NONE */
}

/* The characters of [begin, end) as symbols (BPE::merge_word). */
static void read_symbols(Encoder *e, size_t begin, size_t end) {
    const Tokenizer *t = e->t;
    const char *text = e->words->bytes;
    size_t unk_length = 0; /* of unknown characters that wait; 0: none */
    e->symbol_count = 0;
    for (size_t i = begin, step; i < end; i += step) {
        uint32_t code;
        step = utf8_decode(text + i, end - i, &code);
        uint32_t id = character_id(t, code, text + i, step);
        if (id != NONE) {
            if (unk_length > 0) {
                add_symbol(e, t->unk_id, unk_length);
                unk_length = 0;
            }
            add_symbol(e, id, step);
            continue;
        }
        bool bytes = t->byte_fallback;
        for (size_t k = 0; k < step && bytes; k++) {
            bytes = t->byte_ids[(unsigned char)text[i + k]] != NONE;
        }
        if (bytes) {
            for (size_t k = 0; k < step; k++) {
                add_symbol(e, t->byte_ids[(unsigned char)text[i + k]], 1);
            }
        } else if (t->has_unk) {
            if (t->unk_id == NONE) {
                fail(STATUS_INPUT, "%s: the unknown token '%s' is not in the vocabulary", t->path,
                     t->unk.text);
            }
            if (unk_length > 0 && !t->fuse_unk) {
                add_symbol(e, t->unk_id, unk_length);
                unk_length = 0;
            }
            unk_length += step;
        } else {
            e->lost += step;
        }
    }
    if (unk_length > 0) {
        add_symbol(e, t->unk_id, unk_length);
    }
}

static bool queued_before(const Queued *a, const Queued *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static void heap_push(Queued *heap, size_t *count, Queued item) {
    size_t i = (*count)++;
    while (i > 0 && queued_before(&item, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = item;
}

static Queued heap_pop(Queued *heap, size_t *count) {
    Queued top = heap[0], last = heap[--*count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *count; i = child) {
        child += child + 1 < *count && queued_before(&heap[child + 1], &heap[child]);
        if (!queued_before(&heap[child], &last)) {
            break;
        }
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Queues the merge of symbol `place` with the one after it, if there is one. */
static void queue_merge(Encoder *e, size_t *queued, uint32_t place) {
    uint32_t next = e->symbols[place].next;
    if (next < e->symbol_count) {
        const Merge *merge = merge_find(e->t, e->symbols[place].id, e->symbols[next].id);
        if (merge != NULL) {
            heap_push(e->heap, queued, (Queued){merge->rank, place, merge->id});
        }
    }
}

/* Merges by rank, then from the left (Word::merge_all). Each of the n - 1 merges at most takes one
 * from the queue and adds two, so 2n places are enough. */
static void merge_symbols(Encoder *e) {
    size_t queued = 0;
    for (uint32_t i = 0; i + 1 < e->symbol_count; i++) {
        queue_merge(e, &queued, i);
    }
    while (queued > 0) {
        Queued top = heap_pop(e->heap, &queued);
        Symbol *left = &e->symbols[top.place];
        if (left->length == 0 || left->next >= e->symbol_count) {
            continue;
        }
        Symbol *right = &e->symbols[left->next];
        const Merge *merge = merge_find(e->t, left->id, right->id);
        if (merge == NULL || merge->id != top.id) {
            continue; /* one of the two has been merged since */
        }
        left->id = top.id;
        left->length += right->length;
        left->next = right->next;
        right->length = 0;
        if (right->next < e->symbol_count) {
            e->symbols[right->next].previous = top.place;
        }
        if (left->previous != NONE) {
            queue_merge(e, &queued, left->previous);
        }
        queue_merge(e, &queued, top.place);
    }
}

/* Room for the symbols of `length` bytes and their merges. */
static void reserve_symbols(Encoder *e, size_t length) {
    e->symbols = arena_grow(e->arena, e->symbols, &e->symbol_capacity, length, sizeof(*e->symbols));
    e->heap = arena_grow(e->arena, e->heap, &e->heap_capacity, 2 * length, sizeof(*e->heap));
}

/* Tokens of [begin, end) of the words' text: remembered ones or merged anew. */
static void encode_piece(Encoder *e, size_t begin, size_t end) {
    const char *text = e->words->bytes;
    size_t length = end - begin, at = begin - e->lost, lost = e->lost;
    Remembered *slot = NULL;
    if (length == 0) {
        return;
    }
    if (e->cache != NULL && length <= CACHE_WORD) {
        slot = &e->cache[hash_bytes(text + begin, length) & e->cache_mask];
        if (slot->length == length && memcmp(text + slot->start, text + begin, length) == 0) {
            uint32_t start = e->tokens[slot->token].place;
            for (uint32_t i = slot->token; i < slot->token + slot->count; i++) {
                emit(e, e->tokens[i].id, e->words, at + (e->tokens[i].place - start));
            }
            return;
        }
    }
    reserve_symbols(e, length);
    read_symbols(e, begin, end);
    merge_symbols(e);
    size_t first = e->count;
    for (size_t i = 0; i < e->symbol_count; i++) {
        if (e->symbols[i].length > 0) {
            emit(e, e->symbols[i].id, e->words, at);
            at += e->symbols[i].length;
        }
    }
    if (slot != NULL && e->lost == lost && e->count < NONE) {
        *slot = (Remembered){(uint32_t)begin, (uint32_t)length, (uint32_t)first,
                             (uint32_t)(e->count - first)};
    }
}

/* A long word (Gemma's is all text between added tokens) is the sum of its pieces when cut between
 * two known characters over which no merge reaches: no merge then ever sees both sides, and each
 * side merges in the same order as within the whole. */
static void encode_word(Encoder *e, size_t begin, size_t end) {
    const Tokenizer *t = e->t;
    const char *text = e->words->bytes;
    e->lost = 0;
    if (t->ignore_merges) {
        uint32_t id = names_id(&t->vocabulary, text + begin, end - begin);
        if (id != NONE) {
            emit(e, id, e->words, begin);
            return;
        }
    }
    bool cut = end - begin > WORD_CUT && t->cuttable, known = false;
    uint32_t previous = 0;
    for (size_t i = begin, step; cut && i < end; i += step) {
        uint32_t code = (unsigned char)text[i];
        step = code < 0x80 ? 1 : utf8_decode(text + i, end - i, &code);
        bool was_known = known;
        known = character_id(t, code, text + i, step) != NONE;
        if (known && was_known) {
            size_t bit = join_bit(t, previous, code);
            if ((t->joins[bit >> 6] >> (bit & 63) & 1) == 0) {
                encode_piece(e, begin, i);
                begin = i;
            }
        }
        previous = code;
    }
    encode_piece(e, begin, end);
}

/* ---- added tokens ---- */

/* The longest pattern at text[at...end), or NULL: the range of patterns that share its first bytes
 * is narrowed byte by byte. */
static const AddedToken *added_match(const AddedSet *set, const char *text, size_t at, size_t end) {
    size_t low = 0, high = set->count;
    const AddedToken *longest = NULL;
    for (size_t depth = 0; low < high; depth++) {
        if (set->list[low]->pattern.length == depth) {
            longest = set->list[low++];
        }
        if (at + depth == end || low == high) {
            break;
        }
        unsigned char byte = (unsigned char)text[at + depth];
        size_t a = low, b = high;
        while (a < b) { /* first with a byte >= the text's */
            size_t middle = (a + b) / 2;
            if ((unsigned char)set->list[middle]->pattern.text[depth] < byte) {
                a = middle + 1;
            } else {
                b = middle;
            }
        }
        low = a;
        b = high;
        while (a < b) { /* first with a greater one */
            size_t middle = (a + b) / 2;
            if ((unsigned char)set->list[middle]->pattern.text[depth] <= byte) {
                a = middle + 1;
            } else {
                b = middle;
            }
        }
        high = a;
    }
    return longest;
}

/* Class of the character that ends at `at` or begins there. */
static unsigned class_before(const char *text, size_t begin, size_t at, size_t *start) {
    uint32_t code = 0;
    size_t i = at;
    do {
        i--;
    } while (i > begin && ((unsigned char)text[i] & 0xC0) == 0x80);
    utf8_decode(text + i, at - i, &code);
    *start = i;
    return unicode_class(code);
}

static unsigned class_after(const char *text, size_t at, size_t end, size_t *stop) {
    uint32_t code = 0;
    *stop = at + utf8_decode(text + at, end - at, &code);
    return unicode_class(code);
}

/* End of the run of characters whose class and `mask` give `wanted`. */
static size_t run_end(const char *text, size_t i, size_t end, unsigned mask, unsigned wanted) {
    size_t next;
    while (i < end && (class_after(text, i, end, &next) & mask) == wanted) {
        i = next;
    }
    return i;
}

static void add_piece(Pieces *pieces, size_t begin, size_t end, const AddedToken *token) {
    pieces->list = arena_grow(pieces->arena, pieces->list, &pieces->capacity, pieces->count + 1,
                              sizeof(*pieces->list));
    pieces->list[pieces->count++] = (Piece){begin, end, token};
}

/* Splits [begin, end) into added tokens and the text between (AddedVocabulary::find_matches). */
static void split_added(const AddedSet *set, const char *text, size_t begin, size_t end,
                        Pieces *pieces) {
    pieces->count = 0;
    size_t done = begin, blank = end, blank_end = end; /* the last run of white space */
    for (size_t i = begin; i < end && set->count > 0;) {
        const AddedToken *token = NULL;
        if (!set->first[(unsigned char)text[i]] ||
            (token = added_match(set, text, i, end)) == NULL) {
            i++;
            continue;
        }
        size_t start = i, stop = i + token->pattern.length, next;
        i = stop;
        if (token->single_word &&
            ((start > begin && class_before(text, begin, start, &next) & UNICODE_WORD) ||
             (stop < end && class_after(text, stop, end, &next) & UNICODE_WORD))) {
            continue;
        }
        if (token->lstrip) {
            size_t left = start;
            while (left > done && class_before(text, begin, left, &next) & UNICODE_SPACE) {
                left = next;
            }
            start = left > done ? left : done;
        }
        if (token->rstrip) {
            if (stop < blank || stop >= blank_end) { /* not within the run that was read last */
                blank = stop;
                blank_end = run_end(text, stop, end, UNICODE_SPACE, UNICODE_SPACE);
            }
            stop = blank_end;
        }
        if (done < start) {
            add_piece(pieces, done, start, NULL);
        }
        if (start < stop) { /* not all eaten by the one before */
            add_piece(pieces, start, stop, token);
        }
        done = stop;
    }
    if (done < end) {
        add_piece(pieces, done, end, NULL);
    }
}

/* ---- pre-tokenizers ---- */

static void add_span(Spans *spans, size_t begin, size_t end) {
    if (begin < end) {
        spans->list = arena_grow(spans->arena, spans->list, &spans->capacity, spans->count + 1,
                                 sizeof(*spans->list));
        spans->list[spans->count++] = (Span){begin, end};
    }
}

/* End of the match at text[i] of GPT-2's expression
 * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ (encoder.py). */
static size_t gpt2_match(const char *text, size_t i, size_t end) {
    enum {
        MASK = UNICODE_LETTER | UNICODE_NUMBER | UNICODE_SPACE
    };
    if (text[i] == '\'' && i + 1 < end) {
        char a = text[i + 1], b = i + 2 < end ? text[i + 2] : 0;
        if (a == 's' || a == 't' || a == 'm' || a == 'd') {
            return i + 2;
        }
        if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) {
            return i + 3;
        }
    }
    size_t next, at = text[i] == ' ' && i + 1 < end ? i + 1 : i;
    unsigned kind = class_after(text, at, end, &next) & MASK;
    if ((kind & UNICODE_SPACE) == 0) {
        return run_end(text, next, end, MASK, kind);
    }
    size_t last = i; /* start of the last white space of the run */
    for (size_t k = i; k < end && class_after(text, k, end, &next) & UNICODE_SPACE; k = next) {
        last = k;
    }
    size_t stop = run_end(text, last, end, UNICODE_SPACE, UNICODE_SPACE);
    return stop == end || last == i ? stop : last;
}

/* Splits a span at occurrences of the pattern (NormalizedString::split). */
static void split_pattern(const Step *step, const char *text, size_t begin, size_t end,
                          Spans *out) {
    Behaviour how = step->behaviour;
    bool previous = false, pending = false; /* the open span [open, i) is not written yet */
    size_t open = begin;
    for (size_t i = begin; i < end;) {
        size_t hit = find_bytes(text, i, end, step->pattern);
        bool match = hit == i;
        size_t stop = match ? i + step->pattern.length : hit;
        match ^= step->invert;
        bool joins = pending && (how == SPLIT_CONTIGUOUS      ? match == previous
                                 : how == SPLIT_WITH_PREVIOUS ? match && !previous
                                 : how == SPLIT_WITH_NEXT     ? !match && previous
                                                              : false);
        if (pending && !joins) {
            add_span(out, open, i);
        }
        if (how == SPLIT_REMOVED && match) {
            pending = false;
        } else {
            open = joins ? open : i;
            pending = true;
        }
        previous = match;
        i = stop;
    }
    if (pending) {
        add_span(out, open, end);
    }
}

static bool step_splits(const Step *step) {
    return step->kind == STEP_SPLIT || step->kind == STEP_GPT2_SPLIT;
}

/* Passes the spans of `in` through a step; one that rewrites puts them into `fresh`. */
static void pre_tokenize(Encoder *e, const Step *step, const Text *in, Text *fresh) {
    e->spare.count = 0;
    for (size_t s = 0; s < e->spans.count; s++) {
        size_t begin = e->spans.list[s].begin, end = e->spans.list[s].end;
        if (step->kind == STEP_SPLIT) {
            split_pattern(step, in->bytes, begin, end, &e->spare);
        } else if (step->kind == STEP_GPT2_SPLIT) {
            for (size_t i = begin, stop; i < end; i = stop) {
                stop = gpt2_match(in->bytes, i, end);
                add_span(&e->spare, i, stop);
            }
        } else {
            size_t start = fresh->length;
            rewrite(step, in, begin, end, fresh);
            add_span(&e->spare, start, fresh->length);
        }
    }
    Spans result = e->spare;
    e->spare = e->spans;
    e->spans = result;
}

/* Words and tokens of [begin, end) of texts[at], which is normalized and free of added tokens. */
static void encode_segment(Encoder *e, size_t at, size_t begin, size_t end) {
    e->spans.count = 0;
    add_span(&e->spans, begin, end);
    for (size_t i = 0; i < e->t->pre_tokenizer.count; i++) {
        const Step *step = &e->t->pre_tokenizer.list[i];
        pre_tokenize(e, step, &e->texts[at], &e->texts[at + 1]);
        at += !step_splits(step);
    }
    for (size_t i = 0; i < e->spans.count; i++) {
        encode_word(e, e->spans.list[i].begin, e->spans.list[i].end);
    }
}

static void encode_text(Encoder *e, size_t length) {
    const Tokenizer *t = e->t;
    size_t normalized = t->normalizer.count;
    split_added(&t->plain, e->texts[0].bytes, 0, length, &e->outer);
    for (size_t i = 0; i < e->outer.count; i++) {
        Piece piece = e->outer.list[i];
        if (piece.token != NULL) {
            emit(e, piece.token->id, &e->texts[0], piece.begin);
            continue;
        }
        normalize(&t->normalizer, e->texts, &piece.begin, &piece.end);
        const Text *text = &e->texts[normalized];
        split_added(&t->normalized, text->bytes, piece.begin, piece.end, &e->inner);
        for (size_t k = 0; k < e->inner.count; k++) {
            Piece part = e->inner.list[k];
            if (part.token != NULL) {
                emit(e, part.token->id, text, part.begin);
            } else {
                encode_segment(e, normalized, part.begin, part.end);
            }
        }
    }
}

/* Of `count` tokens of the text itself, as many as the file's `truncation` leaves beside `added`
 * ones (truncate_encodings). */
static size_t truncated_count(const Tokenizer *t, size_t count, size_t added) {
    size_t most = t->truncate_length - added; /* wraps, then nothing is cut, as in `tokenizers` */
    if (!t->truncate || count <= most) {
        return count;
    }
    if (t->truncate_second && most > 0) {
        fail(STATUS_INPUT, "%s: truncation 'OnlySecond' needs a second text", t->path);
    }
    if (t->truncate_stride >= most && most > 0) {
        fail(STATUS_INPUT, "%s: truncation stride %zu is not below the length %zu", t->path,
             t->truncate_stride, most);
    }
    return most;
}

/* How many tokens the file's `padding` adds to `count`. */
static size_t padding_count(const Tokenizer *t, size_t count) {
    size_t length = t->pad_fixed ? t->pad_length : count;
    if (t->pad_multiple > 0 && length % t->pad_multiple > 0) {
        length += t->pad_multiple - length % t->pad_multiple;
    }
    return t->pad && length > count ? length - count : 0;
}

/* Appends id[0], id[step], id[2 * step] ... whose `begin` stays 0. */
static void put_ids(Tokens *out, const uint32_t *id, size_t step, size_t count) {
    for (size_t i = 0; i < count; i++) {
        out->id[out->count++] = (int32_t)id[i * step];
    }
}

static Tokens post_process(const Encoder *e, bool special, Arena *arena) {
    const Tokenizer *t = e->t;
    size_t before = special ? t->before.count : 0, after = special ? t->after.count : 0;
    size_t kept = truncated_count(t, e->count, before + after);
    size_t padding = padding_count(t, before + kept + after);
    Tokens out = {.capacity = before + kept + after + padding};
    out.id = arena_alloc(arena, out.capacity, sizeof(*out.id));
    out.begin = arena_alloc(arena, out.capacity, sizeof(*out.begin));
    put_ids(&out, &t->pad_id, 0, t->pad_left ? padding : 0);
    put_ids(&out, t->before.list, 1, before);
    for (size_t i = t->truncate_left ? e->count - kept : 0; kept > 0; i++, kept--) {
        out.begin[out.count] = e->tokens[i].begin;
        out.id[out.count++] = (int32_t)e->tokens[i].id;
    }
    put_ids(&out, t->after.list, 1, after);
    put_ids(&out, &t->pad_id, 0, t->pad_left ? 0 : padding);
    return out;
}

Tokens tokenizer_encode(const Tokenizer *t, const char *text, size_t length, bool special,
                        Arena *arena) {
    if (!utf8_valid(text, length)) {
        fail(STATUS_INPUT, "the text to tokenize is not valid UTF-8");
    }
    if (length >= NONE / 2) {
        fail(STATUS_INPUT, "the text to tokenize is longer than 2 GiB");
    }
    size_t words = t->normalizer.count; /* the text that BPE reads */
    for (size_t i = 0; i < t->pre_tokenizer.count; i++) {
        words += !step_splits(&t->pre_tokenizer.list[i]);
    }
    Arena *scratch = arena_new();
    size_t room = length / 2; /* few texts have more tokens */
    Encoder e = {.t = t,
                 .arena = scratch,
                 .tokens = arena_alloc(scratch, room, sizeof(*e.tokens)),
                 .capacity = room,
                 .outer = {.arena = scratch},
                 .inner = {.arena = scratch},
                 .spans = {.arena = scratch},
                 .spare = {.arena = scratch}};
    e.texts = texts_new(scratch, words, text, length);
    e.words = &e.texts[words];
    if (length >= 256) { /* memory for remembered pieces grows with the text */
        size_t slots = 64;
        while (slots < length / 16 && slots < CACHE_MOST) {
            slots *= 2;
        }
        e.cache = arena_alloc(scratch, slots, sizeof(*e.cache));
        e.cache_mask = slots - 1;
    }
    encode_text(&e, length);
    Tokens tokens = post_process(&e, special, arena);
    arena_free(scratch);
    return tokens;
}

/* ---- decoding ---- */

/* A list of strings: string i is bytes[end[i - 1], end[i]). */
typedef struct Strings {
    Arena *arena;
    char *bytes; /* not NULL once something was put, be it empty */
    size_t *end;
    size_t length, bytes_capacity, count, end_capacity;
} Strings;

static void put_bytes(Strings *out, const char *bytes, size_t length) {
    out->bytes =
        arena_grow(out->arena, out->bytes, &out->bytes_capacity, out->length + length + 1, 1);
    if (length > 0) {
        memcpy(out->bytes + out->length, bytes, length);
    }
    out->length += length;
}

static void end_string(Strings *out) {
    out->end =
        arena_grow(out->arena, out->end, &out->end_capacity, out->count + 1, sizeof(*out->end));
    out->end[out->count++] = out->length;
}

static String string_at(const Strings *strings, size_t i) {
    size_t begin = i == 0 ? 0 : strings->end[i - 1];
    return (String){strings->bytes + begin, strings->end[i] - begin};
}

/* Bytes of the longest prefix of a well-formed sequence, at least 1: what String::from_utf8_lossy
 * replaces by one U+FFFD. */
static size_t broken_prefix(const unsigned char *s, size_t length) {
    unsigned low = 0x80, high = 0xBF;
    size_t need = s[0] >= 0xC2 && s[0] <= 0xDF   ? 2
                  : s[0] >= 0xE0 && s[0] <= 0xEF ? 3
                  : s[0] >= 0xF0 && s[0] <= 0xF4 ? 4
                                                 : 1;
    low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : low;
    high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : high;
    size_t n = 1;
    while (n < need && n < length && s[n] >= low && s[n] <= high) {
        low = 0x80;
        high = 0xBF;
        n++;
    }
    return n;
}

static void put_lossy(Strings *out, const char *bytes, size_t length) {
    for (size_t i = 0, start = 0; i < length || start < i;) {
        uint32_t code;
        size_t step = i < length ? utf8_decode(bytes + i, length - i, &code) : 0;
        if (step > 0) {
            i += step;
            continue;
        }
        put_bytes(out, bytes + start, i - start);
        if (i < length) {
            put_bytes(out, "\xEF\xBF\xBD", 3);
            i += broken_prefix((const unsigned char *)bytes + i, length - i);
        }
        start = i;
    }
}

/* All tokens become one string; one with a character that stands for no byte is taken as it is. */
static void decode_byte_level(const Strings *in, Strings *out) {
    Strings raw = {.arena = out->arena};
    for (size_t i = 0; i < in->count; i++) {
        String token = string_at(in, i);
        size_t before = raw.length;
        for (size_t k = 0, step; k < token.length; k += step) {
            uint32_t code = 0;
            step = utf8_decode(token.text + k, token.length - k, &code);
            int byte = code_to_byte(code);
            char c = (char)byte;
            if (byte < 0) {
                raw.length = before;
                put_bytes(&raw, token.text, token.length);
                break;
            }
            put_bytes(&raw, &c, 1);
        }
    }
    put_lossy(out, raw.bytes, raw.length);
    end_string(out);
}

/* The byte that <0xNN> stands for, or -1. Like Rust's from_str_radix, this takes "+N". */
static int fallback_byte(String token) {
    if (token.length != 6 || memcmp(token.text, "<0x", 3) != 0 || token.text[5] != '>') {
        return -1;
    }
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = token.text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c == '+' && i == 3   ? 0
                                           : -1;
        if (digit < 0) {
            return -1;
        }
        value = value * 16 + digit;
    }
    return value;
}

/* A run of byte tokens becomes one string if it is UTF-8 as a whole, else one U+FFFD a byte. */
static void decode_byte_fallback(const Strings *in, Strings *out) {
    for (size_t i = 0; i < in->count;) {
        size_t start = out->length, run = 0;
        int byte;
        for (; i + run < in->count && (byte = fallback_byte(string_at(in, i + run))) >= 0; run++) {
            char c = (char)byte;
            put_bytes(out, &c, 1);
        }
        if (run == 0) {
            String token = string_at(in, i++);
            put_bytes(out, token.text, token.length);
        } else if (!utf8_valid(out->bytes + start, out->length - start)) {
            out->length = start;
            for (size_t k = 0; k < run; k++) {
                put_bytes(out, "\xEF\xBF\xBD", 3);
                end_string(out);
            }
            i += run;
            continue;
        }
        i += run;
        end_string(out);
    }
}

static void decode_token(const Step *step, String token, bool first, Strings *out) {
    String pattern = step->pattern;
    const char *end = token.text + token.length;
    if (step->kind == STEP_STRIP) {
        for (size_t n = 0; n < step->start && token.length >= pattern.length &&
                           memcmp(token.text, pattern.text, pattern.length) == 0;
             n++) {
            token.text += pattern.length;
            token.length -= pattern.length;
        }
        for (size_t n = 0; n < step->stop && token.length >= pattern.length &&
                           memcmp(end - pattern.length, pattern.text, pattern.length) == 0;
             n++) {
            end -= pattern.length;
            token.length -= pattern.length;
        }
        put_bytes(out, token.text, token.length);
        return;
    }
    String content =
        step->kind == STEP_REPLACE ? step->content : (String){" ", step->first && first ? 0 : 1};
    for (size_t i = 0; i < token.length;) {
        size_t hit = find_bytes(token.text, i, token.length, pattern);
        put_bytes(out, token.text + i, hit - i);
        if (hit < token.length) {
            put_bytes(out, content.text, content.length);
            hit += pattern.length;
        }
        i = hit;
    }
}

static void decode_step(const Step *step, const Strings *in, Strings *out) {
    if (step->kind == STEP_BYTE_LEVEL) {
        decode_byte_level(in, out);
        return;
    }
    if (step->kind == STEP_BYTE_FALLBACK) {
        decode_byte_fallback(in, out);
        return;
    }
    if (step->kind == STEP_FUSE) {
        put_bytes(out, in->bytes, in->length);
        end_string(out);
        return;
    }
    for (size_t i = 0; i < in->count; i++) {
        decode_token(step, string_at(in, i), i == 0, out);
        end_string(out);
    }
}

char *tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, bool skip_special,
                       Arena *arena, size_t *length) {
    Arena *scratch = arena_new();
    Strings now = {.arena = scratch}, next = {.arena = scratch};
    put_bytes(&now, "", 0);
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0) {
            fail(STATUS_INPUT, "token id %ld is negative", (long)ids[i]);
        }
        const AddedToken *added = added_by_id(t, (uint32_t)ids[i]);
        const Name *name = names_by_id(&t->vocabulary, (uint32_t)ids[i]);
        if (added != NULL ? added->skipped && skip_special : name == NULL) {
            continue; /* an unknown id is passed over */
        }
        if (!t->has_decoder && now.count > 0) {
            put_bytes(&now, " ", 1);
        }
        String token = added != NULL ? added->decoded : (String){name->text, name->length};
        put_bytes(&now, token.text, token.length);
        end_string(&now);
    }
    for (size_t i = 0; i < t->decoder.count; i++) {
        next.length = next.count = 0;
        put_bytes(&next, "", 0);
        decode_step(&t->decoder.list[i], &now, &next);
        Strings swap = now;
        now = next;
        next = swap;
    }
    char *text = arena_copy(arena, now.bytes, now.length);
    *length = now.length;
    arena_free(scratch);
    return text;
}

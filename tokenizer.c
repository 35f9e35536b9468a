/* tokenizer.c: see tokenizer.h. The way of a text, as `tokenizers` 0.23 goes it:
 *
 *   text --added tokens, normalized = false--> segments --normalizer--> --added tokens, normalized
 *   = true--> parts --pre-tokenizer--> words --BPE--> ids --template--> ids
 *
 * and what the three kinds of models put there:
 *
 *   GPT-2      no normalizer, GPT-2's regular expression, characters are bytes (ByteLevel)
 *   GPT-NeoX   NFC, then the same; runs of spaces are added tokens
 *   Gemma      every space is U+2581; a part is one word; an unknown character is its bytes, <0xNN>
 *
 * Every byte is thus known to the vocabulary, which is checked: no text needs an unknown token.
 * Easy to get wrong:
 *  - An added token that fails single_word is passed over whole; one with rstrip may eat into the
 *    next match, which counts all the same, and text between is then read again.
 *  - Queued merges are checked against the id they would make, not against their rank.
 *  - The last of equal merges counts, with its rank. */
#include "tokenizer_tables.h"

#include <string.h>

#include "unicode.h"

enum {
    WORD_CUT = 64,    /* bytes; longer words are cut where no merge can reach across */
    CACHE_WORD = 128, /* bytes; longer pieces are not remembered */
    CACHE_MOST = 1 << 16
};

/* ---- strings ---- */

static uint64_t hash_bytes(const char *text, size_t length) {
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

bool same_string(String a, String b) {
    return a.length == b.length && memcmp(a.text, b.text, a.length) == 0;
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

uint32_t *token_slot(const Tokenizer *t, const char *text, size_t length) {
    for (size_t i = (size_t)hash_bytes(text, length);; i++) {
        uint32_t *slot = &t->slots[i & t->slot_mask];
        if (*slot == 0 || same_string(t->tokens[*slot - 1].text, (String){text, length})) {
            return slot;
        }
    }
}

uint32_t token_find(const Tokenizer *t, const char *text, size_t length) {
    return *token_slot(t, text, length) - 1; /* 0 - 1 is NONE */
}

uint32_t byte_to_code(unsigned byte) {
    if (byte < 0x21) {
        return 0x100 + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x121 + (byte - 0x7F);
    }
    return byte == 0xAD ? 0x143 : byte;
}

/* The byte of such a character; -1: it stands for none. */
static int code_to_byte(uint32_t code) {
    if (code < 0x100) {
        return byte_to_code(code) == code ? (int)code : -1;
    }
    return code < 0x121    ? (int)(code - 0x100)
           : code < 0x143  ? (int)(code - 0x121 + 0x7F)
           : code == 0x143 ? 0xAD
                           : -1;
}

int fallback_byte(String token) {
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

/* ---- normalizer: text with origins ---- */

/* Bytes and, for each, where its character began in the original text. The original itself has no
 * origins. */
typedef struct TracedText {
    Arena *arena; /* in which it grows */
    char *own;
    const char *bytes; /* own, or the caller's */
    uint32_t *origin;
    size_t length, capacity;
    NfcChar *chars; /* scratch of put_nfc */
    size_t chars_capacity;
} TracedText;

static uint32_t origin_of(const TracedText *text, size_t i) {
    if (text->origin != NULL) {
        return text->origin[i];
    }
    while (i > 0 && ((unsigned char)text->bytes[i] & 0xC0) == 0x80) {
        i--;
    }
    return (uint32_t)i;
}

static void traced_reserve(TracedText *text, size_t more) {
    size_t need;
    if (!size_add(&need, text->length, more) || need >= NONE / 2) {
        fail(STATUS_INPUT, "the text to tokenize is longer than 2 GiB once normalized");
    }
    size_t same = text->capacity;
    text->origin = arena_grow(text->arena, text->origin, &same, need, sizeof *text->origin);
    text->own = arena_grow(text->arena, text->own, &text->capacity, need, 1);
    text->bytes = text->own;
}

/* Room at once for what most texts need, since growth leaves memory behind; what is not used is not
 * touched. */
static TracedText traced_new(Arena *arena, size_t length) {
    TracedText text = {.arena = arena};
    traced_reserve(&text, length < NONE / 8 ? 2 * length : length);
    return text;
}

/* `length` bytes that all come from `origin`; room is reserved. */
static void traced_put(TracedText *text, const char *bytes, size_t length, uint32_t origin) {
    for (size_t i = 0; i < length; i++) {
        text->own[text->length] = bytes[i];
        text->origin[text->length++] = origin;
    }
}

/* Characters that stay as they are. */
static void traced_copy(TracedText *text, const char *bytes, size_t begin, size_t end) {
    traced_reserve(text, end - begin);
    for (size_t i = begin, start = begin; i < end; i++) {
        start = ((unsigned char)bytes[i] & 0xC0) == 0x80 ? start : i;
        text->own[text->length] = bytes[i];
        text->origin[text->length++] = (uint32_t)start;
    }
}

static void put_replaced(TracedText *out, const TracedText *in, size_t begin, size_t end,
                         String pattern, String content) {
    for (size_t i = begin; i < end;) {
        size_t hit = find_bytes(in->bytes, i, end, pattern);
        traced_copy(out, in->bytes, i, hit);
        i = hit;
        if (hit < end) {
            i += pattern.length;
            traced_reserve(out, content.length);
            traced_put(out, content.text, content.length, origin_of(in, i - 1));
        }
    }
}

static void put_nfc(TracedText *out, const TracedText *in, size_t begin, size_t end) {
    for (size_t i = begin; i < end;) {
        size_t stop;
        size_t start =
            begin + unicode_nfc_stretch(in->bytes + begin, end - begin, i - begin, &stop);
        stop += begin;
        traced_copy(out, in->bytes, i, start);
        i = stop;
        if (start == end) {
            break;
        }
        out->chars = arena_grow(out->arena, out->chars, &out->chars_capacity, 2 * (stop - start),
                                sizeof *out->chars);
        size_t count = unicode_nfc(in->bytes + start, stop - start, out->chars);
        traced_reserve(out, 4 * count);
        size_t at = start; /* next byte of `in` to be consumed */
        for (size_t k = 0; k < count; k++) {
            NfcChar c = out->chars[k];
            char code[4];
            size_t length = utf8_encode(c.code, code);
            bool inserted = c.change > 0 && at > begin; /* it belongs to what precedes */
            traced_put(out, code, length, origin_of(in, inserted ? at - 1 : at));
            for (int32_t n = c.change; n <= 0 && at < stop; n++) {
                uint32_t ignored;
                at += utf8_decode(in->bytes + at, stop - at, &ignored);
            }
        }
    }
}

/* Appends what the normalizer makes of [begin, end). */
static void normalize(const Tokenizer *t, const TracedText *in, size_t begin, size_t end,
                      TracedText *out) {
    if (t->nfc) {
        put_nfc(out, in, begin, end);
    } else {
        put_replaced(out, in, begin, end, t->space, t->mark);
    }
}

static bool normalizes(const Tokenizer *t) {
    return t->nfc || t->space.length > 0;
}

bool is_normal(const Tokenizer *t, String text) {
    if (!normalizes(t)) {
        return true;
    }
    Arena *scratch = arena_new();
    TracedText from = {.bytes = text.text, .length = text.length};
    TracedText to = traced_new(scratch, text.length);
    normalize(t, &from, 0, text.length, &to);
    bool same = same_string((String){to.bytes, to.length}, text);
    arena_free(scratch);
    return same;
}

/* ---- BPE ---- */

typedef struct Symbol {
    uint32_t id, length, previous, next; /* length 0: merged into its left neighbour */
} Symbol;

typedef struct Queued {
    uint32_t rank, place, id;
} Queued;

typedef struct Emitted {
    uint32_t id, place; /* in the words' text */
    uint32_t begin;     /* as in Tokens */
} Emitted;

/* A piece of text and the tokens it became: [start, length) of the words' text, [token, count). */
typedef struct Remembered {
    uint32_t start, length, token, count;
} Remembered;

typedef struct Encoder {
    const Tokenizer *t;
    Arena *arena;
    TracedText original, normal, prefixed;
    const TracedText
        *words; /* the one that BPE reads; texts only grow, so places in them stay valid */
    Emitted *tokens;
    size_t count, capacity;
    Symbol *symbols;
    Queued *heap;
    size_t symbol_capacity, heap_capacity;
    uint32_t symbol_count;
    size_t queued;
    Remembered *cache;
    size_t cache_mask;
} Encoder;

static void emit(Encoder *e, uint32_t id, size_t place, uint32_t begin) {
    e->tokens = arena_grow(e->arena, e->tokens, &e->capacity, e->count + 1, sizeof *e->tokens);
    e->tokens[e->count++] = (Emitted){id, (uint32_t)place, begin};
}

/* Length and code of the character of BPE's vocabulary at text[i]. */
static size_t next_character(const Tokenizer *t, const char *text, size_t i, size_t end,
                             uint32_t *code) {
    if (t->byte_level) {
        *code = byte_to_code((unsigned char)text[i]);
        return 1;
    }
    *code = (unsigned char)text[i];
    return *code < 0x80 ? 1 : utf8_decode(text + i, end - i, code);
}

static uint32_t character_id(const Tokenizer *t, uint32_t code, const char *text, size_t length) {
    if (code < DIRECT_CODES) {
        return t->direct[code];
    }
    uint32_t id = token_find(t, text, length);
    return id < t->model_count ? id : NONE; /* an added token is no character */
}

static size_t merge_slot(const Tokenizer *t, uint32_t left, uint32_t right) {
    return (size_t)((((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u) >> t->merge_shift);
}

size_t join_bit(const Tokenizer *t, uint32_t last, uint32_t first) {
    return (size_t)((((uint64_t)last << 21 | first) * 0x9E3779B97F4A7C15u) >> t->joins_shift);
}

Merge *merge_find(const Tokenizer *t, uint32_t left, uint32_t right) {
    for (size_t i = merge_slot(t, left, right);; i = (i + 1) & t->merge_mask) {
        Merge *merge = &t->merges[i];
        if ((merge->left == left && merge->right == right) || merge->left == NONE) {
            return merge;
        }
    }
}

static void add_symbol(Encoder *e, uint32_t id, size_t length) {
    uint32_t n = e->symbol_count++;
    e->symbols[n] = (Symbol){id, (uint32_t)length, n - 1, n + 1}; /* 0 - 1 is NONE */
}

/* The characters of [begin, end) as symbols; one that is not known as its bytes. */
static void read_symbols(Encoder *e, size_t begin, size_t end) {
    const char *text = e->words->bytes;
    e->symbol_count = 0;
    for (size_t i = begin, step; i < end; i += step) {
        uint32_t code;
        step = next_character(e->t, text, i, end, &code);
        uint32_t id = character_id(e->t, code, text + i, step);
        if (id != NONE) {
            add_symbol(e, id, step);
            continue;
        }
        for (size_t k = 0; k < step; k++) {
            add_symbol(e, e->t->byte_ids[(unsigned char)text[i + k]], 1);
        }
    }
}

static bool queued_before(const Queued *a, const Queued *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static void heap_push(Encoder *e, Queued item) {
    size_t i = e->queued++;
    for (; i > 0 && queued_before(&item, &e->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        e->heap[i] = e->heap[(i - 1) / 2];
    }
    e->heap[i] = item;
}

static Queued heap_pop(Encoder *e) {
    Queued *heap = e->heap, top = heap[0], last = heap[--e->queued];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < e->queued; i = child) {
        child += child + 1 < e->queued && queued_before(&heap[child + 1], &heap[child]);
        if (!queued_before(&heap[child], &last)) {
            break;
        }
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Queues the merge of symbol `place` with the one after it, if there is one. */
static void queue_merge(Encoder *e, uint32_t place) {
    uint32_t next = e->symbols[place].next;
    if (next < e->symbol_count) {
        const Merge *merge = merge_find(e->t, e->symbols[place].id, e->symbols[next].id);
        if (merge->left != NONE) {
            heap_push(e, (Queued){merge->rank, place, merge->id});
        }
    }
}

/* Merges by rank, then from the left (Word::merge_all). Each of the n - 1 merges at most takes one
 * from the queue and adds two, so 2n places are enough. */
static void merge_symbols(Encoder *e) {
    e->queued = 0;
    for (uint32_t i = 0; i + 1 < e->symbol_count; i++) {
        queue_merge(e, i);
    }
    while (e->queued > 0) {
        Queued top = heap_pop(e);
        Symbol *left = &e->symbols[top.place];
        if (left->length == 0 || left->next >= e->symbol_count) {
            continue;
        }
        Symbol *right = &e->symbols[left->next];
        const Merge *merge = merge_find(e->t, left->id, right->id);
        if (merge->left == NONE || merge->id != top.id) {
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
            queue_merge(e, left->previous);
        }
        queue_merge(e, top.place);
    }
}

/* Tokens of [begin, end) of the words' text: remembered ones or merged anew. */
static void encode_piece(Encoder *e, size_t begin, size_t end) {
    const char *text = e->words->bytes;
    size_t length = end - begin, at = begin;
    Remembered *slot = NULL;
    if (e->cache != NULL && length <= CACHE_WORD) {
        slot = &e->cache[hash_bytes(text + begin, length) & e->cache_mask];
        if (slot->length == length && memcmp(text + slot->start, text + begin, length) == 0) {
            for (uint32_t i = slot->token; i < slot->token + slot->count; i++) {
                size_t place = begin + (e->tokens[i].place - slot->start);
                emit(e, e->tokens[i].id, place, origin_of(e->words, place));
            }
            return;
        }
    }
    e->symbols = arena_grow(e->arena, e->symbols, &e->symbol_capacity, length, sizeof(Symbol));
    e->heap = arena_grow(e->arena, e->heap, &e->heap_capacity, 2 * length, sizeof(Queued));
    read_symbols(e, begin, end);
    merge_symbols(e);
    size_t first = e->count;
    for (size_t i = 0; i < e->symbol_count; i++) {
        if (e->symbols[i].length > 0) {
            emit(e, e->symbols[i].id, at, origin_of(e->words, at));
            at += e->symbols[i].length;
        }
    }
    if (slot != NULL && e->count < NONE) {
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
    bool cut = end - begin > WORD_CUT && t->cuttable, known = false;
    uint32_t previous = 0;
    for (size_t i = begin, step; cut && i < end; i += step) {
        uint32_t code;
        step = next_character(t, text, i, end, &code);
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

/* ---- pre-tokenizers ---- */

/* Class of the character that ends at `at`, or of the one that begins there; and its other end. */
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

static const TracedText *normalized(const Encoder *e) {
    return normalizes(e->t) ? &e->normal : &e->original;
}

/* Appends a part to the words' text, a space before it where it begins with none. */
static size_t put_prefixed(Encoder *e, size_t begin, size_t end) {
    const TracedText *in = normalized(e);
    size_t start = e->prefixed.length;
    traced_reserve(&e->prefixed, end - begin + 1);
    if (in->bytes[begin] != ' ') {
        traced_put(&e->prefixed, " ", 1, origin_of(in, begin));
    }
    for (size_t i = begin; i < end; i++) {
        traced_put(&e->prefixed, in->bytes + i, 1, origin_of(in, i));
    }
    return start;
}

/* The words of a part, which is normalized and free of added tokens. */
static void encode_part(Encoder *e, size_t begin, size_t end) {
    const Tokenizer *t = e->t;
    if (t->prefix_space) {
        begin = put_prefixed(e, begin, end);
        end = e->prefixed.length;
    }
    const char *text = e->words->bytes;
    for (size_t i = begin, stop = end; i < end; i = stop) {
        if (t->byte_level) {
            stop = gpt2_match(text, i, end);
        } else if (t->split.length > 0) { /* MergedWithPrevious */
            size_t hit = find_bytes(text, i, end, t->split);
            stop = hit < end ? hit + t->split.length : end;
        }
        encode_word(e, i, stop);
    }
}

/* ---- added tokens ---- */

/* The longest one at text[at...end), or NULL: the last that is not beyond the text, in the order of
 * bytes, begins with it. */
static const AddedToken *added_match(const AddedSet *set, const char *text, size_t at, size_t end) {
    size_t low = 0, high = set->count, length = end - at;
    while (low < high) {
        size_t middle = (low + high) / 2;
        String s = set->list[middle].text;
        int order = memcmp(s.text, text + at, s.length < length ? s.length : length);
        if (order < 0 || (order == 0 && s.length <= length)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    uint32_t i = (uint32_t)low - 1;
    size_t same = 0; /* what begins it and is no longer than this begins the text too */
    while (i != NONE && same < length && same < set->list[i].text.length &&
           set->list[i].text.text[same] == text[at + same]) {
        same++;
    }
    while (i != NONE && set->list[i].text.length > same) {
        i = set->list[i].shorter;
    }
    return i == NONE ? NULL : &set->list[i];
}

/* Emits the added tokens in [begin, end) of a text and hands on what lies between
 * (AddedVocabulary::find_matches). */
static void encode_added(Encoder *e, const AddedSet *set, const TracedText *in, size_t begin,
                         size_t end, void (*between)(Encoder *e, size_t begin, size_t end)) {
    size_t done = begin, blank = end, blank_end = end,
           next; /* blank: the last run of white space */
    for (size_t i = begin; i < end && set->count > 0;) {
        const char *text = in->bytes;
        const AddedToken *token = NULL;
        if (!set->first[(unsigned char)text[i]] ||
            (token = added_match(set, text, i, end)) == NULL) {
            i++;
            continue;
        }
        size_t start = i, stop = i + token->text.length;
        i = stop;
        if (token->single_word &&
            ((start > begin && class_before(text, begin, start, &next) & UNICODE_WORD) ||
             (stop < end && class_after(text, stop, end, &next) & UNICODE_WORD))) {
            continue;
        }
        if (token->lstrip) {
            while (start > done && class_before(text, begin, start, &next) & UNICODE_SPACE) {
                start = next;
            }
            start = start > done ? start : done;
        }
        if (token->rstrip) {
            if (stop < blank || stop >= blank_end) { /* not within the run that was read last */
                blank = stop;
                blank_end = run_end(text, stop, end, UNICODE_SPACE, UNICODE_SPACE);
            }
            stop = blank_end;
        }
        if (done < start) {
            between(e, done, start);
        }
        if (start < stop) { /* not all eaten by the one before */
            emit(e, token->id, 0, origin_of(in, start));
        }
        done = stop;
    }
    if (done < end) {
        between(e, done, end);
    }
}

static void encode_segment(Encoder *e, size_t begin, size_t end) {
    if (normalizes(e->t)) {
        size_t start = e->normal.length;
        normalize(e->t, &e->original, begin, end, &e->normal);
        begin = start;
        end = e->normal.length;
    }
    encode_added(e, &e->t->added[1], normalized(e), begin, end, encode_part);
}

Tokens tokenizer_encode(const Tokenizer *t, const char *text, size_t length, bool special,
                        Arena *arena) {
    if (!utf8_valid(text, length)) {
        fail(STATUS_INPUT, "the text to tokenize is not valid UTF-8");
    }
    if (length >= NONE / 2) {
        fail(STATUS_INPUT, "the text to tokenize is longer than 2 GiB");
    }
    Arena *scratch = arena_new();
    Encoder e = {.t = t, .arena = scratch, .original = {.bytes = text, .length = length}};
    e.normal = traced_new(scratch, normalizes(t) ? length : 0);
    e.prefixed = traced_new(scratch, t->prefix_space ? length : 0);
    e.words = t->prefix_space ? &e.prefixed : normalized(&e);
    e.tokens = arena_grow(scratch, NULL, &e.capacity, length / 2, sizeof *e.tokens);
    if (length >= 256) { /* memory for remembered pieces grows with the text */
        size_t slots = 64;
        while (slots < length / 16 && slots < CACHE_MOST) {
            slots *= 2;
        }
        e.cache = arena_alloc(scratch, slots, sizeof *e.cache);
        e.cache_mask = slots - 1;
    }
    encode_added(&e, &t->added[0], &e.original, 0, length, encode_segment);

    size_t before = special ? t->before.count : 0, after = special ? t->after.count : 0;
    Tokens out = {.count = before + e.count + after, .capacity = before + e.count + after};
    out.id = arena_alloc(arena, out.count, sizeof *out.id);
    out.begin = arena_alloc(arena, out.count, sizeof *out.begin);
    for (size_t i = 0; i < before; i++) {
        out.id[i] = (int32_t)t->before.list[i];
    }
    for (size_t i = 0; i < e.count; i++) {
        out.id[before + i] = (int32_t)e.tokens[i].id;
        out.begin[before + i] = e.tokens[i].begin;
    }
    for (size_t i = 0; i < after; i++) {
        out.id[before + e.count + i] = (int32_t)t->after.list[i];
    }
    arena_free(scratch);
    return out;
}

/* ---- truncation and padding ---- */

/* Of `count` tokens of the text itself, as many as truncation leaves beside `added` ones
 * (truncate_encodings). */
static size_t truncated_count(const Tokenizer *t, size_t count, size_t added) {
    const Truncation *cut = &t->truncation;
    size_t most = cut->length - added; /* wraps, then nothing is cut, as in `tokenizers` */
    if (!cut->there || count <= most) {
        return count;
    }
    if (cut->only_second && most > 0) {
        fail(STATUS_INPUT, "%s: truncation 'OnlySecond' needs a second text", t->path);
    }
    if (cut->stride >= most && most > 0) {
        fail(STATUS_INPUT, "%s: truncation stride %zu is not below the length %zu", t->path,
             cut->stride, most);
    }
    return most;
}

/* How many tokens padding adds to `count`. */
static size_t padding_count(const Padding *pad, size_t count) {
    size_t length = pad->length > 0 ? pad->length : count;
    if (pad->multiple > 0 && length % pad->multiple > 0) {
        length += pad->multiple - length % pad->multiple;
    }
    return pad->there && length > count ? length - count : 0;
}

Tokens tokenizer_fit(const Tokenizer *t, const Tokens *tokens, bool special, Arena *arena) {
    size_t before = special ? t->before.count : 0, after = special ? t->after.count : 0;
    size_t text = tokens->count - before - after, kept = truncated_count(t, text, before + after);
    size_t count = before + kept + after, padding = padding_count(&t->padding, count);
    size_t first = t->truncation.left ? text - kept : 0, at = t->padding.left ? padding : 0;
    Tokens out = {.count = count + padding, .capacity = count + padding};
    out.id = arena_alloc(arena, out.count, sizeof *out.id);
    out.begin = arena_alloc(arena, out.count, sizeof *out.begin);
    for (size_t i = 0; i < out.count; i++) {
        out.id[i] = t->padding.id;
    }
    for (size_t i = 0; i < count; i++) {
        size_t from = i < before ? i : i < before + kept ? i + first : i + text - kept;
        out.id[at + i] = tokens->id[from];
        out.begin[at + i] = tokens->begin[from];
    }
    return out;
}

/* ---- decoding ---- */

typedef struct Bytes {
    Arena *arena;
    char *list; /* not NULL once something was put, be it empty */
    size_t count, capacity;
} Bytes;

static void bytes_put(Bytes *out, const char *bytes, size_t length) {
    out->list = arena_grow(out->arena, out->list, &out->capacity, out->count + length + 1, 1);
    if (length > 0) {
        memcpy(out->list + out->count, bytes, length);
    }
    out->count += length;
}

static void put_broken(Bytes *out, size_t times) {
    for (; times > 0; times--) {
        bytes_put(out, "\xEF\xBF\xBD", 3); /* U+FFFD */
    }
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

static void put_lossy(Bytes *out, const char *bytes, size_t length) {
    for (size_t i = 0; i < length;) {
        uint32_t code;
        size_t step = utf8_decode(bytes + i, length - i, &code);
        if (step > 0) {
            bytes_put(out, bytes + i, step);
            i += step;
        } else {
            put_broken(out, 1);
            i += broken_prefix((const unsigned char *)bytes + i, length - i);
        }
    }
}

/* ByteLevel: the bytes of a token; one with a character that stands for none is taken as it is. */
static void put_byte_level(Bytes *out, String token) {
    size_t before = out->count;
    for (size_t k = 0, step; k < token.length; k += step) {
        uint32_t code = 0;
        step = utf8_decode(token.text + k, token.length - k, &code);
        int byte = code_to_byte(code);
        char c = (char)byte;
        if (byte < 0) {
            out->count = before;
            bytes_put(out, token.text, token.length);
            return;
        }
        bytes_put(out, &c, 1);
    }
}

/* ByteFallback: the run of bytes from `start` on is text if it is UTF-8 as a whole, else one U+FFFD
 * a byte. */
static void end_run(Bytes *out, size_t start) {
    size_t run = out->count - start;
    if (run > 0 && !utf8_valid(out->list + start, run)) {
        out->count = start;
        put_broken(out, run);
    }
}

char *tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, bool skip_special,
                       Arena *arena, size_t *length) {
    Arena *scratch = arena_new();
    Bytes out = {.arena = scratch}, token = {.arena = scratch}, whole = {.arena = scratch};
    size_t run = 0; /* where the open run of bytes begins in `out` */
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0) {
            fail(STATUS_INPUT, "token id %ld is negative", (long)ids[i]);
        }
        if ((size_t)ids[i] >= t->count || (skip_special && t->tokens[ids[i]].special)) {
            continue; /* an unknown id is passed over */
        }
        String text = t->tokens[ids[i]].text;
        if (t->decode_byte_level) {
            put_byte_level(&out, text);
            continue;
        }
        token.count = 0;
        bytes_put(&token, "", 0);
        for (size_t k = 0; k < text.length;) { /* Replace */
            size_t hit = find_bytes(text.text, k, text.length, t->decode_mark);
            bytes_put(&token, text.text + k, hit - k);
            k = hit;
            if (hit < text.length) {
                bytes_put(&token, t->decode_space.text, t->decode_space.length);
                k += t->decode_mark.length;
            }
        }
        int byte = fallback_byte((String){token.list, token.count});
        char c = (char)byte;
        if (byte >= 0) {
            bytes_put(&out, &c, 1);
            continue;
        }
        end_run(&out, run);
        bytes_put(&out, token.list, token.count);
        run = out.count;
    }
    if (t->decode_byte_level) {
        put_lossy(&whole, out.list, out.count);
        out = whole;
    } else {
        end_run(&out, run);
    }
    char *text = arena_copy(arena, out.list, out.count);
    *length = out.count;
    arena_free(scratch);
    return text;
}

int32_t tokenizer_id(const Tokenizer *t, const char *token) {
    uint32_t id = token_find(t, token, strlen(token));
    return id == NONE ? -1 : (int32_t)id;
}

int32_t tokenizer_size(const Tokenizer *t) {
    return (int32_t)t->count;
}

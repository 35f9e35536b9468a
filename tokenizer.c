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
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "unicode.h"

enum {
    DIRECT_CODES = 0x10000, /* characters whose id is looked up in an array */
    REPLACEMENT_MOST = 4,   /* bytes of what a Replace puts: a character */
    SETTING_MOST = 1 << 20, /* tokens that truncation leaves or padding makes */
    WORD_CUT = 64,          /* bytes; longer words are cut where no merge can reach across */
    CACHE_WORD = 128,       /* bytes; longer pieces are not remembered */
    CACHE_MOST = 1 << 16,
    SPECIAL_MOST = 64 /* ids that the post-processor adds on either side */
};
#define NONE 0xFFFFFFFFu /* no id, no position */

typedef struct String {
    const char *text;
    size_t length;
} String;

typedef struct Token {
    String text;
    bool added, special;
} Token;

typedef struct Merge {
    uint32_t left, right, rank, id; /* left NONE: free */
} Merge;

typedef struct AddedToken {
    String text;
    uint32_t id;
    uint32_t shorter; /* the longest other one that begins this one, or NONE */
    bool single_word, lstrip, rstrip;
} AddedToken;

typedef struct AddedSet {
    AddedToken *list; /* in the order of their bytes */
    size_t count;
    bool first[256]; /* bytes with which one begins */
} AddedSet;

typedef struct Ids {
    uint32_t *list;
    size_t count;
} Ids;

typedef struct Truncation {
    bool there, left, only_second;
    size_t length, stride;
} Truncation;

typedef struct Padding {
    bool there, left;
    size_t length, multiple; /* 0: none */
    int32_t id;
} Padding;

struct Tokenizer {
    Arena *arena;
    const char *path;
    Token
        *tokens; /* [count] by id: the model's vocabulary, then added ones that it does not hold */
    uint32_t *slots; /* id + 1 by the hash of the text, 0: free */
    size_t count, model_count, slot_mask;

    AddedSet added[2]; /* looked for before and after the normalizer */
    bool nfc;
    String space, mark; /* the normalizer's Replace: `mark` for each `space` (no text: none) */
    bool byte_level;    /* pre-tokenizer ByteLevel */
    bool prefix_space; /* ByteLevel puts a space before a part that has none; or, not byte level: */
    String split;      /* Split: a word ends behind each (no text: a part is one word) */

    uint32_t *direct; /* [DIRECT_CODES] id of a character, or NONE */
    uint32_t byte_ids[256];
    Merge *merges;
    size_t merge_mask;
    unsigned merge_shift;
    uint64_t *joins; /* a bit for the hash of (last, first character) of every merge */
    unsigned joins_shift;
    bool cuttable; /* merges see known characters alone */

    Ids before, after;     /* what the post-processor adds */
    Truncation truncation; /* of tokenize alone */
    Padding padding;
    bool decode_byte_level; /* decoder ByteLevel, else Replace, ByteFallback and Fuse: */
    String decode_mark, decode_space;
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

static bool begins_with(const char *text, size_t length, String with) {
    return length >= with.length && memcmp(text, with.text, with.length) == 0;
}

static bool same_string(String a, String b) {
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

/* The slot of a text, or the free one where it would be. */
static uint32_t *token_slot(const Tokenizer *t, const char *text, size_t length) {
    for (size_t i = (size_t)hash_bytes(text, length);; i++) {
        uint32_t *slot = &t->slots[i & t->slot_mask];
        if (*slot == 0 || same_string(t->tokens[*slot - 1].text, (String){text, length})) {
            return slot;
        }
    }
}

static uint32_t token_find(const Tokenizer *t, const char *text, size_t length) {
    return *token_slot(t, text, length) - 1; /* 0 - 1 is NONE */
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

/* ... and back; -1: it stands for none. */
static int code_to_byte(uint32_t code) {
    if (code < 0x100) {
        return byte_to_code(code) == code ? (int)code : -1;
    }
    return code < 0x121    ? (int)(code - 0x100)
           : code < 0x143  ? (int)(code - 0x121 + 0x7F)
           : code == 0x143 ? 0xAD
                           : -1;
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

static size_t join_bit(const Tokenizer *t, uint32_t last, uint32_t first) {
    return (size_t)((((uint64_t)last << 21 | first) * 0x9E3779B97F4A7C15u) >> t->joins_shift);
}

/* The merge of two tokens, or the free place where it would be. */
static Merge *merge_find(const Tokenizer *t, uint32_t left, uint32_t right) {
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

/* ---- reading tokenizer.json: what it asks for and is not done here is refused by name ---- */

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
    Bytes joined = {.arena = scratch};
    size_t rank = 0;
    for (const Json *m = merges->child; m != NULL; m = m->next, rank++) {
        String side[2];
        merge_sides(t, m, rank, side);
        joined.count = 0;
        bytes_put(&joined, side[0].text, side[0].length);
        bytes_put(&joined, side[1].text, side[1].length);
        uint32_t left = merge_token(t, rank, side[0]), right = merge_token(t, rank, side[1]);
        uint32_t id = merge_token(t, rank, (String){joined.list, joined.count});
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

static void sort_added(AddedSet *set) {
    if (set->count > 0) {
        qsort(set->list, set->count, sizeof *set->list, compare_added);
    }
    for (uint32_t i = 0; i < set->count; i++) {
        AddedToken *token = &set->list[i];
        token->shorter = i - 1; /* 0 - 1 is NONE */
        while (token->shorter != NONE &&
               !begins_with(token->text.text, token->text.length, set->list[token->shorter].text)) {
            token->shorter = set->list[token->shorter].shorter;
        }
        set->first[(unsigned char)token->text.text[0]] = true;
    }
}

/* The normalizer would have to be undone when such a token is decoded. */
static void refuse_changed(const Tokenizer *t, String content) {
    Arena *scratch = arena_new();
    TracedText from = {.bytes = content.text, .length = content.length};
    TracedText to = traced_new(scratch, content.length);
    if (normalizes(t)) {
        normalize(t, &from, 0, content.length, &to);
        if (!same_string((String){to.bytes, to.length}, content)) {
            unsupported(t, "an added token that the normalizer changes,", content.text);
        }
    }
    arena_free(scratch);
}

static bool may_flag(const Json *token, const char *key) {
    return json_bool(token, key, false);
}

/* Of an added token every flag must be said, as `tokenizers` asks. */
static bool need_flag(const Json *token, const char *key) {
    if (json_set(token, key) == NULL) {
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
    bool (*flag)(const Json *, const char *) = all_flags ? need_flag : may_flag;
    if (id == NONE) {
        id = (uint32_t)t->count;
        add_token(t, id, (Token){.text = content});
    }
    bool said = all_flags || json_set(flags, "normalized") != NULL,
         normalized = said ? flag(flags, "normalized") : flags != NULL && !flag(flags, "special");
    if (normalized) {
        refuse_changed(t, content);
    }
    t->tokens[id].added = true;
    t->tokens[id].special = flags == NULL || flag(flags, "special");
    AddedSet *set = &t->added[normalized];
    set->list[set->count++] =
        (AddedToken){.text = content,
                     .id = id,
                     .single_word = flags != NULL && flag(flags, "single_word"),
                     .lstrip = flags != NULL && flag(flags, "lstrip"),
                     .rstrip = flags != NULL && flag(flags, "rstrip")};
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

/* tokenizer_config.json beside it: what transformers takes from there over tokenizer.json. The
 * classes of GPT-2 and GPT-NeoX, which are also taken where none is named, set add_prefix_space
 * whether it is there or not; classes that are of no model leave tokenizer.json as it is. */
static void load_config(Tokenizer *t, const Json *config) {
    const char *class = json_text(config, "tokenizer_class", "");
    if (json_bool(config, "split_special_tokens", false)) {
        fail(STATUS_INPUT, "%s: 'split_special_tokens' is not supported", config->text);
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
        load_config(t, config);
    }
    arena_free(scratch);
    return t;
}

/* ---- tokenize: the command ---- */

/* All of a stream (line false) or its next line without the newline. *end: nothing was left. */
static char *read_input(Arena *arena, FILE *in, bool line, size_t *length, bool *end) {
    size_t capacity = 0;
    int c = 0;
    char *text = arena_grow(arena, NULL, &capacity, 1, 1);
    *length = 0;
    while ((c = getc_unlocked(in)) != EOF && !(line && c == '\n')) {
        text = arena_grow(arena, text, &capacity, *length + 2, 1);
        text[(*length)++] = (char)c;
    }
    *end = c == EOF && *length == 0;
    if (ferror(in)) {
        fail(STATUS_RESOURCE, "standard input cannot be read");
    }
    return text;
}

/* Separated by a space, or by a comma and a space. fprintf would take a third of the whole
 * tokenizing. */
static void print_ids(FILE *out, const int32_t *ids, size_t count, bool comma) {
    char buffer[4096];
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        char digits[10]; /* from the last to the first */
        size_t n = 0;
        for (uint32_t id = (uint32_t)ids[i]; n == 0 || id > 0; id /= 10) {
            digits[n++] = (char)('0' + id % 10);
        }
        if (i > 0 && comma) {
            buffer[used++] = ',';
        }
        if (i > 0) {
            buffer[used++] = ' ';
        }
        while (n > 0) {
            buffer[used++] = digits[--n];
        }
        if (used + 12 > sizeof buffer || i + 1 == count) {
            fwrite(buffer, 1, used, out);
            used = 0;
        }
    }
}

/* Ids in any of the forms that people paste: separated by white space, commas, brackets. Unlike
 * `tokenizers`, which passes over ids from `size` on. */
static int32_t *ids_from_text(Arena *arena, const char *text, size_t length, int32_t size,
                              size_t *count) {
    int32_t *ids = arena_alloc(arena, length / 2 + 1, sizeof(int32_t));
    *count = 0;
    for (size_t i = 0; i < length;) {
        uint64_t id = 0;
        size_t digits = 0;
        for (; i < length && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
            id = id <= INT32_MAX ? id * 10 + (uint64_t)(text[i] - '0') : id;
        }
        if (digits > 0 && id >= (uint64_t)size) {
            fail(STATUS_INPUT, "standard input: the tokenizer has no id %.*s", (int)digits,
                 text + i - digits);
        }
        if (digits > 0) {
            ids[(*count)++] = (int32_t)id;
        } else if (text[i] == '\0' || strchr(" \t\r\n,[]", text[i]) == NULL) {
            fail(STATUS_INPUT, "standard input: expected token ids");
        } else {
            i++;
        }
    }
    return ids;
}

static void tokenize_unit(const Tokenizer *tokenizer, const char *text, size_t length,
                          const TokenizeOptions *o, size_t number, FILE *out, Arena *arena) {
    size_t count, text_length;
    if (o->jsonl) {
        char name[48];
        snprintf(name, sizeof name, "standard input, line %zu", number);
        const Json *value = json_parse(arena, text, length, name);
        if (!json_is(value, o->decode ? JSON_ARRAY : JSON_STRING)) {
            fail(STATUS_INPUT, "%s: expected a JSON %s", name,
                 o->decode ? "array of ids" : "string");
        }
        text = o->decode ? text : value->text;
        length = o->decode ? length : value->length;
    }
    if (!o->decode) {
        Tokens tokens = tokenizer_encode(tokenizer, text, length, o->special, arena);
        fputs(o->jsonl ? "[" : "", out);
        print_ids(out, tokens.id, tokens.count, o->jsonl);
        fputs(o->jsonl ? "]\n" : "\n", out);
        return;
    }
    int32_t *ids = ids_from_text(arena, text, length, tokenizer_size(tokenizer), &count);
    char *decoded = tokenizer_decode(tokenizer, ids, count, !o->special, arena, &text_length);
    if (o->jsonl) {
        json_write_string(out, decoded, text_length);
        fputc('\n', out);
    } else {
        fwrite(decoded, 1, text_length, out);
    }
}

void tokenize_command(const char *path, const TokenizeOptions *o, FILE *in, FILE *out) {
    Arena *arena = arena_new(), *unit = arena_within(arena);
    Tokenizer *tokenizer = tokenizer_open(arena, path);
    bool end = false;
    for (size_t number = 1; !end && (o->jsonl || number == 1); number++) {
        arena_reset(unit);
        size_t length;
        char *text = read_input(unit, in, o->jsonl, &length, &end);
        bool blank = length == 0 || strspn(text, " \t\r") >= length;
        if (!(o->jsonl && (end || blank))) {
            tokenize_unit(tokenizer, text, length, o, number, out, unit);
        }
    }
    arena_free(arena);
}

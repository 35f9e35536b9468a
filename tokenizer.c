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
    WORD_CUT = 64,    /* bytes; longer words are cut where no merge can reach across */
    CACHE_WORD = 128, /* bytes; longer pieces are not remembered */
    CACHE_MOST = 1 << 16,
    PROBES_MOST = 1024,     /* places of a hash table that are looked at */
    CODED = 0x144,          /* characters that stand for bytes are below */
    REPLACEMENT_MOST = 4,   /* bytes of what a Replace puts: a character */
    PARTS_MOST = 8,         /* of a Sequence */
    SETTING_MOST = 1 << 20, /* tokens that truncation leaves or padding makes */
    SPECIAL_MOST = 64,      /* ids that the post-processor adds on either side */
    PIECES_MOST = 256,      /* of its template */
    ADDED_MOST = 1 << 15,   /* added tokens */
    CONTENT_MOST = 128,     /* bytes of one */
    PATTERN_MOST = 64       /* bytes that a Replace or Split looks for */
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
    bool single_word, lstrip, rstrip;
} AddedToken;

typedef struct AddedSet {
    AddedToken *list; /* in the order of their bytes */
    size_t count;
    bool first[256]; /* bytes with which one begins */
} AddedSet;

typedef struct Ids {
    uint32_t list[SPECIAL_MOST];
    size_t count;
} Ids;

typedef struct Truncation {
    bool left, only_second;
    size_t length, stride;
} Truncation;

typedef struct Padding {
    bool left;
    size_t length, multiple; /* 0: none */
    int32_t id;
} Padding;

struct Tokenizer {
    Arena *arena;
    const char *path;
    Token *tokens;   /* [count] by id: the model's vocabulary, then added ones beside it */
    uint32_t *slots; /* id + 1 by the hash of the text, 0: free */
    size_t count, model_count, slot_mask;

    AddedSet added[2]; /* looked for before and after the normalizer */
    bool nfc;
    String space, mark; /* the normalizer's Replace: `mark` for each `space` (no text: none) */
    bool byte_level;    /* pre-tokenizer ByteLevel */
    bool prefix_space; /* ByteLevel puts a space before a part that has none; or, not byte level: */
    String split;      /* Split: a word ends behind each (no text: a part is one word) */

    uint32_t byte_codes[256]; /* ByteLevel's character for a byte, and back: */
    int code_bytes[CODED];    /* -1: it stands for none */
    uint32_t single_ids[256]; /* of the character that is this byte; NONE: there is none, but: */
    uint32_t byte_ids[256];   /* <0xNN> */
    Merge *merges;
    bool *joins; /* by the hash of (last, first character) of every merge */
    unsigned merge_bits, join_bits;
    bool cuttable; /* no merge sees <0xNN> */

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

/* Entries of a table stand within some hundred places of their hash, unless chosen to collide. */
static REFSAE_NORETURN void refuse_collisions(const Tokenizer *t) {
    fail(STATUS_INPUT, "%s: model: more than %d tokens or merges share one place by their hash",
         t->path, PROBES_MOST);
}

/* The slot of a text, or the free one where it would be. */
static uint32_t *token_slot(const Tokenizer *t, const char *text, size_t length) {
    size_t home = (size_t)hash_bytes(text, length);
    for (size_t i = home; i - home < PROBES_MOST; i++) {
        uint32_t *slot = &t->slots[i & t->slot_mask];
        if (*slot == 0 || same_string(t->tokens[*slot - 1].text, (String){text, length})) {
            return slot;
        }
    }
    refuse_collisions(t);
}

static uint32_t token_find(const Tokenizer *t, const char *text, size_t length) {
    return *token_slot(t, text, length) - 1; /* 0 - 1 is NONE */
}

/* The byte that <0xNN> stands for, or -1. Like Rust's from_str_radix, this takes "+N". */
static int fallback_byte(String token) {
    if (token.length != 6 || memcmp(token.text, "<0x", 3) != 0 || token.text[5] != '>') {
        return -1;
    }
    char digits[3] = {token.text[3], token.text[4], 0}, *end;
    bool sign = digits[0] == '+',
         hex = strspn(digits + sign, "0123456789abcdefABCDEF") == 2u - sign;
    return hex ? (int)strtol(digits, &end, 16) : -1;
}

/* ---- a text on its way ---- */

typedef struct Symbol {
    uint32_t id, length, previous, next; /* length 0: merged into its left neighbour */
} Symbol;

typedef struct Queued {
    uint32_t rank, place, id;
} Queued;

typedef struct Emitted {
    uint32_t id, place; /* the byte with which it begins */
} Emitted;

/* A piece of text and the tokens it became: bytes [start, + length), tokens [token, + count). */
typedef struct Remembered {
    uint32_t start, length, token, count;
} Remembered;

typedef struct Encoder {
    const Tokenizer *t;
    Arena *arena;
    /* The text, behind it what the normalizer makes of each segment, and each part that gets a
     * space: a stage takes a range of bytes and appends what it makes of them. Places stay valid,
     * and pointers for reading. */
    char *bytes;
    uint32_t *origin;           /* of each byte: where its character began in the text */
    size_t given, length, room; /* given: of the text itself */
    NfcChar *chars;             /* scratch of put_nfc */
    size_t chars_room;
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

static void text_reserve(Encoder *e, size_t more) {
    if (more >= NONE / 2 + e->given - e->length) {
        fail(STATUS_INPUT, "the text to tokenize is longer than 2 GiB once normalized");
    }
    size_t same = e->room;
    e->origin = arena_grow(e->arena, e->origin, &same, e->length + more, sizeof *e->origin);
    e->bytes = arena_grow(e->arena, e->bytes, &e->room, e->length + more, 1);
}

/* `length` bytes that all come from `origin`. */
static void text_put(Encoder *e, const char *bytes, size_t length, uint32_t origin) {
    text_reserve(e, length);
    for (size_t i = 0; i < length; i++) {
        e->bytes[e->length] = bytes[i];
        e->origin[e->length++] = origin;
    }
}

/* [begin, end) as it is. */
static void text_copy(Encoder *e, size_t begin, size_t end) {
    size_t n = end - begin;
    text_reserve(e, n);
    memcpy(e->bytes + e->length, e->bytes + begin, n);
    memcpy(e->origin + e->length, e->origin + begin, n * sizeof *e->origin);
    e->length += n;
}

/* Room at once for most texts: growth leaves memory behind, and unused room is not touched. */
static Encoder encoder_start(const Tokenizer *t, const char *text, size_t length, Arena *arena) {
    Encoder e = {.t = t, .arena = arena, .given = length};
    text_reserve(&e, length < NONE / 8 ? 3 * length : length);
    for (size_t i = 0, start = 0; i < length; i++) {
        start = ((unsigned char)text[i] & 0xC0) == 0x80 ? start : i;
        e.bytes[i] = text[i];
        e.origin[i] = (uint32_t)start;
    }
    e.length = length;
    return e;
}

/* ---- normalizers ---- */

static void put_replaced(Encoder *e, size_t begin, size_t end) {
    for (size_t i = begin; i < end;) {
        size_t hit = find_bytes(e->bytes, i, end, e->t->space);
        text_copy(e, i, hit);
        i = hit;
        if (hit < end) {
            i += e->t->space.length;
            text_put(e, e->t->mark.text, e->t->mark.length, e->origin[i - 1]);
        }
    }
}

static void put_nfc(Encoder *e, size_t begin, size_t end) {
    for (size_t i = begin, stop; i < end; i = stop) {
        size_t start = unicode_nfc_stretch(e->bytes, end, i, &stop);
        text_copy(e, i, start);
        e->chars =
            arena_grow(e->arena, e->chars, &e->chars_room, 2 * (stop - start), sizeof *e->chars);
        size_t count = unicode_nfc(e->bytes + start, stop - start, e->chars);
        size_t at = start; /* the next byte to be consumed */
        for (size_t k = 0; k < count; k++) {
            NfcChar c = e->chars[k];
            char code[4];
            bool inserted = c.change > 0 && at > begin; /* it belongs to what precedes */
            text_put(e, code, utf8_encode(c.code, code), e->origin[inserted ? at - 1 : at]);
            for (int32_t n = c.change; n <= 0 && at < stop; n++) {
                uint32_t ignored;
                at += utf8_decode(e->bytes + at, stop - at, &ignored);
            }
        }
    }
}

/* Appends what the normalizer makes of [*begin, *end), if there is one; they move there. */
static void normalize(Encoder *e, size_t *begin, size_t *end) {
    size_t start = e->length;
    if (e->t->nfc) {
        put_nfc(e, *begin, *end);
    } else if (e->t->space.length > 0) {
        put_replaced(e, *begin, *end);
    } else {
        return;
    }
    *begin = start;
    *end = e->length;
}

/* ---- BPE ---- */

static void emit(Encoder *e, uint32_t id, size_t place) {
    e->tokens = arena_grow(e->arena, e->tokens, &e->capacity, e->count + 1, sizeof *e->tokens);
    e->tokens[e->count++] = (Emitted){id, (uint32_t)place};
}

/* The place of two ids, or of two characters, in a table of 2^bits. */
static size_t pair_place(uint32_t left, uint32_t right, unsigned bits) {
    return (size_t)((((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u) >> (64 - bits));
}

/* The merge of two tokens, or the free place where it would be. */
static inline Merge *merge_find(const Tokenizer *t, uint32_t left, uint32_t right) {
    size_t home = pair_place(left, right, t->merge_bits);
    for (size_t i = home; i - home < PROBES_MOST; i++) {
        Merge *merge = &t->merges[i & (((size_t)1 << t->merge_bits) - 1)];
        if ((merge->left == left && merge->right == right) || merge->left == NONE) {
            return merge;
        }
    }
    refuse_collisions(t);
}

/* Length and code of the character of BPE's vocabulary at byte i. */
static size_t next_character(const Encoder *e, size_t i, size_t end, uint32_t *code) {
    *code = (unsigned char)e->bytes[i];
    if (e->t->byte_level) {
        *code = e->t->byte_codes[*code];
        return 1;
    }
    return *code < 0x80 ? 1 : utf8_decode(e->bytes + i, end - i, code);
}

static void add_symbol(Encoder *e, uint32_t id, size_t length) {
    uint32_t n = e->symbol_count++;
    e->symbols[n] = (Symbol){id, (uint32_t)length, n - 1, n + 1}; /* 0 - 1 is NONE */
}

/* The characters of [begin, end) as symbols; one that is not known as its bytes. */
static void read_symbols(Encoder *e, size_t begin, size_t end) {
    const Tokenizer *t = e->t;
    e->symbol_count = 0;
    for (size_t i = begin, stop; i < end; i = stop) {
        uint32_t code;
        stop = i + next_character(e, i, end, &code);
        unsigned char byte = (unsigned char)e->bytes[i];
        uint32_t id = stop == i + 1 ? t->single_ids[byte] : token_find(t, e->bytes + i, stop - i);
        if (id < t->model_count) { /* an added token is no character */
            add_symbol(e, id, stop - i);
            continue;
        }
        for (; i < stop; i++) {
            add_symbol(e, t->byte_ids[(unsigned char)e->bytes[i]], 1);
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

/* Tokens of [begin, end) of the text: remembered ones or merged anew. */
static void encode_piece(Encoder *e, size_t begin, size_t end) {
    const char *text = e->bytes;
    size_t length = end - begin, at = begin;
    Remembered *slot = NULL;
    if (e->cache != NULL && length <= CACHE_WORD) {
        slot = &e->cache[hash_bytes(text + begin, length) & e->cache_mask];
        if (slot->length == length && memcmp(text + slot->start, text + begin, length) == 0) {
            for (uint32_t i = slot->token; i < slot->token + slot->count; i++) {
                emit(e, e->tokens[i].id, begin + (e->tokens[i].place - slot->start));
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
            emit(e, e->symbols[i].id, at);
            at += e->symbols[i].length;
        }
    }
    if (slot != NULL) {
        *slot = (Remembered){(uint32_t)begin, (uint32_t)length, (uint32_t)first,
                             (uint32_t)(e->count - first)};
    }
}

/* A long word (Gemma's is all text between added tokens) is the sum of its pieces when cut where no
 * merge reaches across: none ever sees both sides, and each merges in the same order. */
static void encode_word(Encoder *e, size_t begin, size_t end) {
    const Tokenizer *t = e->t;
    if (end - begin > WORD_CUT && t->cuttable) {
        uint32_t last, first;
        for (size_t i = begin + next_character(e, begin, end, &last); i < end; last = first) {
            size_t step = next_character(e, i, end, &first);
            if (!t->joins[pair_place(last, first, t->join_bits)]) {
                encode_piece(e, begin, i);
                begin = i;
            }
            i += step;
        }
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

/* The words of a part, which is normalized and free of added tokens. */
static void encode_part(Encoder *e, size_t begin, size_t end) {
    const Tokenizer *t = e->t;
    if (t->prefix_space && e->bytes[begin] != ' ') {
        size_t start = e->length;
        text_put(e, " ", 1, e->origin[begin]);
        text_copy(e, begin, end);
        begin = start;
        end = e->length;
    }
    for (size_t i = begin, stop = end; i < end; i = stop) {
        if (t->byte_level) {
            stop = gpt2_match(e->bytes, i, end);
        } else if (t->split.length > 0) { /* MergedWithPrevious */
            size_t hit = find_bytes(e->bytes, i, end, t->split);
            stop = hit < end ? hit + t->split.length : end;
        }
        encode_word(e, i, stop);
    }
}

/* ---- added tokens ---- */

/* Byte i of an added token; -1 behind its end. */
static int added_byte(const AddedToken *token, size_t i) {
    return i < token->text.length ? (unsigned char)token->text.text[i] : -1;
}

/* Of tokens [low, high), alike up to byte i, the first whose byte i is not below `byte`. */
static size_t added_bound(const AddedSet *set, size_t low, size_t high, size_t i, int byte) {
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (added_byte(&set->list[middle], i) < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The longest one at text[at...end), or NULL. Those that begin as the text does lie together. */
static const AddedToken *added_match(const AddedSet *set, const char *text, size_t at, size_t end) {
    const AddedToken *longest = NULL;
    size_t low = 0, high = set->count;
    for (size_t i = 0; at + i < end && low < high; i++) {
        int byte = (unsigned char)text[at + i];
        if (added_byte(&set->list[low], i) != byte || added_byte(&set->list[high - 1], i) != byte) {
            low = added_bound(set, low, high, i, byte);
            high = added_bound(set, low, high, i, byte + 1);
        }
        if (low < high && set->list[low].text.length == i + 1) {
            longest = &set->list[low];
        }
    }
    return longest;
}

/* Emits added tokens in [begin, end), hands on what is between (AddedVocabulary::find_matches). */
static void encode_added(Encoder *e, const AddedSet *set, size_t begin, size_t end,
                         void (*between)(Encoder *e, size_t begin, size_t end)) {
    const char *text = e->bytes;
    size_t done = begin, next;
    size_t blank = end, blank_end = end; /* the last run of white space */
    for (size_t i = begin; i < end && set->count > 0;) {
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
            emit(e, token->id, start);
        }
        done = stop;
    }
    if (done < end) {
        between(e, done, end);
    }
}

static void encode_segment(Encoder *e, size_t begin, size_t end) {
    normalize(e, &begin, &end);
    encode_added(e, &e->t->added[1], begin, end, encode_part);
}

/* ---- truncation, special tokens, padding ---- */

/* Of `count` tokens of the text as many as are left beside `added` ones (truncate_encodings). */
static size_t truncated_count(const Tokenizer *t, size_t count, size_t added) {
    const Truncation *cut = &t->truncation;
    size_t most = cut->length - added; /* wraps, then nothing is cut, as in `tokenizers` */
    if (count <= most) {
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
    return length > count ? length - count : 0;
}

/* fit: truncated and padded. */
static Tokens encode_text(const Tokenizer *t, const char *text, size_t length, bool special,
                          bool fit, Arena *arena) {
    if (!utf8_valid(text, length)) {
        fail(STATUS_INPUT, "the text to tokenize is not valid UTF-8");
    }
    if (length >= NONE / 2) {
        fail(STATUS_INPUT, "the text to tokenize is longer than 2 GiB");
    }
    Arena *scratch = arena_new();
    Encoder e = encoder_start(t, text, length, scratch);
    e.tokens = arena_grow(scratch, NULL, &e.capacity, length / 2 + 1, sizeof *e.tokens);
    if (length >= 256) { /* memory for remembered pieces grows with the text */
        size_t slots = 64;
        while (slots < length / 16 && slots < CACHE_MOST) {
            slots *= 2;
        }
        e.cache = arena_alloc(scratch, slots, sizeof *e.cache);
        e.cache_mask = slots - 1;
    }
    encode_added(&e, &t->added[0], 0, length, encode_segment);

    size_t before = special ? t->before.count : 0, around = before + (special ? t->after.count : 0);
    size_t kept = fit ? truncated_count(t, e.count, around) : e.count;
    size_t padding = fit ? padding_count(&t->padding, kept + around) : 0;
    const Emitted *tokens = e.tokens + (t->truncation.left ? e.count - kept : 0);
    Tokens out = {.count = kept + around + padding};
    out.id = arena_alloc(arena, out.count, sizeof *out.id);
    out.begin = arena_alloc(arena, out.count, sizeof *out.begin);
    for (size_t i = 0; i < out.count; i++) {
        size_t k = i - (t->padding.left ? padding : 0); /* wraps in padding */
        if (k < before) {
            out.id[i] = (int32_t)t->before.list[k];
        } else if (k < before + kept) {
            out.id[i] = (int32_t)tokens[k - before].id;
            out.begin[i] = e.origin[tokens[k - before].place];
        } else {
            out.id[i] =
                k < around + kept ? (int32_t)t->after.list[k - before - kept] : t->padding.id;
        }
    }
    arena_free(scratch);
    return out;
}

Tokens tokenizer_encode(const Tokenizer *t, const char *text, size_t length, bool special,
                        Arena *arena) {
    return encode_text(t, text, length, special, false, arena);
}

Tokens tokenizer_encode_fit(const Tokenizer *t, const char *text, size_t length, bool special,
                            Arena *arena) {
    return encode_text(t, text, length, special, true, arena);
}

/* ---- decoding ---- */

static void put_broken(FILE *out, size_t times) {
    for (; times > 0; times--) {
        fputs("\xEF\xBF\xBD", out); /* U+FFFD */
    }
}

/* Bytes of the longest beginning of a sequence, at least 1: what String::from_utf8_lossy replaces
 * by one U+FFFD. Filled up it is one: what may follow two bytes depends on them alone. */
static size_t broken_prefix(const char *text, size_t length) {
    for (size_t n = length < 3 ? length : 3; n > 1; n--) {
        char filled[] = "\x80\x80\x80\x80";
        uint32_t code;
        memcpy(filled, text, n);
        if (utf8_decode(filled, 4, &code) > n) {
            return n;
        }
    }
    return 1;
}

static void put_lossy(FILE *out, const char *bytes, size_t length) {
    for (size_t i = 0, step; i < length; i += step) {
        uint32_t code;
        step = utf8_decode(bytes + i, length - i, &code);
        if (step > 0) {
            fwrite(bytes + i, 1, step, out);
        } else {
            put_broken(out, 1);
            step = broken_prefix(bytes + i, length - i);
        }
    }
}

/* ByteLevel: a token's bytes[token.length]; one with a character that stands for none as it is. */
static String read_byte_level(const Tokenizer *t, String token, char *bytes) {
    String read = {bytes, 0};
    for (size_t k = 0, step; k < token.length; k += step) {
        uint32_t code = 0;
        step = utf8_decode(token.text + k, token.length - k, &code);
        if (code >= CODED || t->code_bytes[code] < 0) {
            return token;
        }
        bytes[read.length++] = (char)t->code_bytes[code];
    }
    return read;
}

/* Replace. bytes: [REPLACEMENT_MOST * token.length]. */
static String read_marks(const Tokenizer *t, String token, char *bytes) {
    String read = {bytes, 0};
    for (size_t k = 0; k < token.length;) {
        size_t left = token.length - k, mark = t->decode_mark.length;
        bool hit = left >= mark && memcmp(token.text + k, t->decode_mark.text, mark) == 0;
        String from = hit ? t->decode_space : (String){token.text + k, 1};
        memcpy(bytes + read.length, from.text, from.length);
        read.length += from.length;
        k += hit ? mark : 1;
    }
    return read;
}

/* ByteFallback: a run of bytes is text if it is UTF-8 as a whole, else one U+FFFD a byte. */
static void put_run(FILE *out, const char *run, size_t length) {
    if (length > 0 && utf8_valid(run, length)) {
        fwrite(run, 1, length, out);
    } else {
        put_broken(out, length);
    }
}

char *tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, bool skip_special,
                       Arena *arena, size_t *length) {
    Arena *scratch = arena_new();
    MemoryStream *out = memory_open(scratch);
    char *run = NULL, *bytes = NULL; /* the bytes of the open run, of the token */
    size_t in_run = 0, run_room = 0, room = 0;
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0) {
            fail(STATUS_INPUT, "token id %ld is negative", (long)ids[i]);
        }
        if ((size_t)ids[i] >= t->count || (skip_special && t->tokens[ids[i]].special)) {
            continue; /* an unknown id is passed over */
        }
        String token = t->tokens[ids[i]].text;
        bytes = arena_grow(scratch, bytes, &room, REPLACEMENT_MOST * token.length + 1, 1);
        token =
            t->decode_byte_level ? read_byte_level(t, token, bytes) : read_marks(t, token, bytes);
        int byte = t->decode_byte_level ? -1 : fallback_byte(token);
        if (byte >= 0) {
            run = arena_grow(scratch, run, &run_room, in_run + 1, 1);
            run[in_run++] = (char)byte;
            continue;
        }
        put_run(out->stream, run, in_run);
        in_run = 0;
        fwrite(token.text, 1, token.length, out->stream);
    }
    put_run(out->stream, run, in_run);
    const char *whole = memory_text(out);
    if (t->decode_byte_level) {
        MemoryStream *valid = memory_open(scratch);
        put_lossy(valid->stream, whole, out->length);
        whole = memory_text(valid);
        out = valid;
    }
    *length = out->length;
    char *text = arena_copy(arena, whole, *length);
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

/* ---- the file: its parts ---- */

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
    if (text.length == 0 || text.length > PATTERN_MOST) {
        json_refuse(pattern, "String", "a string of 1 to 64 bytes");
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

/* A part of the file: none, one, or the parts of a Sequence, which is the member `list`. */
typedef struct Parts {
    const Json *part[PARTS_MOST];
    const char *type[PARTS_MOST];
    size_t count;
} Parts;

static Parts read_parts(const Json *root, const char *key, const char *list) {
    Parts parts = {.count = 0};
    const Json *part = json_member(root, key, JSON_OBJECT);
    if (part != NULL && json_text_is(json_get(part, "type"), "Sequence")) {
        part = json_need(part, list, JSON_ARRAY)->child;
    }
    for (; part != NULL; part = part->next) {
        if (!json_is(part, JSON_OBJECT) || parts.count == PARTS_MOST) {
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
    bool nfc = part_is(&parts, 0, "NFC"), replace = part_is(&parts, 0, "Replace");
    if (parts.count == 1 && replace) {
        t->space = read_pattern(t, parts.part[0]);
        t->mark = read_replacement(t, parts.part[0]);
    } else if (parts.count > 1 || (parts.count == 1 && !nfc)) {
        unsupported(t, nfc || replace ? "in a sequence the normalizer" : "normalizer",
                    parts.type[0]);
    }
    t->nfc = nfc;
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

static void add_ids(Ids *ids, const Json *special) {
    const Json *list = json_need(special, "ids", JSON_ARRAY);
    if (list->length > SPECIAL_MOST - ids->count) {
        json_refuse(special, "ids", "at most 64 ids before the text and 64 after it");
    }
    for (const Json *id = list->child; id != NULL; id = id->next) {
        int64_t number;
        if (!json_int64(id, &number) || number < 0 || number >= INT32_MAX) {
            json_refuse(special, "ids", "whole numbers from 0 to 2147483646");
        }
        ids->list[ids->count++] = (uint32_t)number;
    }
}

/* TemplateProcessing: the sequence A once, special tokens around it. ByteLevel adds no token. */
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
        if (single->length > PIECES_MOST) {
            json_refuse(parts.part[i], "single", "at most 256 pieces");
        }
        for (const Json *piece = single->child; piece != NULL; piece = piece->next) {
            const Json *sequence = json_get(piece, "Sequence");
            const Json *token = json_get(piece, "SpecialToken");
            sequences += json_text_is(json_get(sequence, "id"), "A");
            if (json_is(token, JSON_OBJECT)) {
                const char *name = json_need(token, "id", JSON_STRING)->text;
                add_ids(sequences == 0 ? &t->before : &t->after,
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
    t->truncation.length = SIZE_MAX;
    if (part == NULL) {
        return;
    }
    const char *strategy = json_need(part, "strategy", JSON_STRING)->text;
    t->truncation = (Truncation){.left = strcmp(json_text(part, "direction", "Right"), "Left") == 0,
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
    t->padding = (Padding){.left = strcmp(json_text(part, "direction", "Right"), "Left") == 0,
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

/* ---- the file: its model ---- */

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

/* Characters for bytes as in openai/gpt-2, encoder.py, bytes_to_unicode: itself where Latin-1
 * prints it, else the next from U+0100 on. Each byte's id: its character's, or <0xNN>'s. */
static void index_bytes(Tokenizer *t) {
    uint32_t next = 0x100;
    memset(t->code_bytes, 0xFF, sizeof t->code_bytes);
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printed = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        t->byte_codes[byte] = printed ? byte : next++;
        t->code_bytes[t->byte_codes[byte]] = (int)byte;
        char token[8], itself = (char)byte;
        size_t length = 6;
        if (t->byte_level) {
            length = utf8_encode(t->byte_codes[byte], token);
        } else {
            snprintf(token, sizeof token, "<0x%02X>", byte);
        }
        t->byte_ids[byte] = token_find(t, token, length);
        t->single_ids[byte] = t->byte_level ? t->byte_ids[byte] : token_find(t, &itself, 1);
        /* Gemma's has the tab as a character alone */
        if (t->byte_ids[byte] == NONE && t->single_ids[byte] == NONE) {
            fail(STATUS_INPUT,
                 "%s: model: 'vocab': a vocabulary without byte 0x%02X ('%.*s') is not supported",
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
    }
    t->joins[pair_place(last, first, t->join_bits)] = true;
}

static void load_merges(Tokenizer *t, const Json *merges) {
    t->merge_bits = 4;
    while (((size_t)1 << t->merge_bits) / 4 * 3 < merges->length + 1) {
        t->merge_bits++;
    }
    t->join_bits = t->merge_bits + 3;
    t->merges = arena_alloc(t->arena, (size_t)1 << t->merge_bits, sizeof *t->merges);
    t->joins = arena_alloc(t->arena, (size_t)1 << t->join_bits, sizeof *t->joins);
    memset(t->merges, 0xFF, sizeof *t->merges << t->merge_bits);
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
    index_bytes(t);
    load_merges(t, merges);
}

/* ---- the file: its added tokens ---- */

static int compare_added(const void *a, const void *b) {
    const AddedToken *x = a, *y = b;
    size_t i = 0;
    while (i < x->text.length && added_byte(x, i) == added_byte(y, i)) {
        i++;
    }
    return added_byte(x, i) - added_byte(y, i);
}

static void sort_added(AddedSet *set) {
    if (set->count > 0) {
        qsort(set->list, set->count, sizeof *set->list, compare_added);
    }
    for (size_t i = 0; i < set->count; i++) {
        set->first[added_byte(&set->list[i], 0)] = true;
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
    if (content.length > CONTENT_MOST) {
        fail(STATUS_INPUT, "%s: an added token of %zu bytes; at most %d are read", t->path,
             content.length, CONTENT_MOST);
    }
    if (id == NONE) {
        id = (uint32_t)t->count;
        add_token(t, id, (Token){.text = content});
    }
    bool normalized = all_flags || json_set(flags, "normalized") != NULL
                          ? read_flag(flags, "normalized", all_flags)
                          : flags != NULL && !json_bool(flags, "special", false);
    Arena *scratch = arena_new();
    Encoder e = encoder_start(t, content.text, content.length, scratch);
    size_t begin = 0, end = content.length;
    normalize(&e, &begin, &end);
    if (normalized && !same_string((String){e.bytes + begin, end - begin}, content)) {
        unsupported(t, "an added token that the normalizer changes,", content.text);
    }
    arena_free(scratch);
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

/* What tokenizer_config.json declares, as transformers 5.23 takes it: flags of the tokens of
 * tokenizer.json, and more tokens: added_tokens_decoder's in their order, then special ones. */
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

static void load_added(Tokenizer *t, const Json *list, const Json *config, size_t most,
                       Arena *scratch) {
    const Json *decoder = json_member(config, "added_tokens_decoder", JSON_OBJECT);
    const Json *others = json_get(config, "extra_special_tokens");
    others = others != NULL ? others : json_get(config, "additional_special_tokens");
    size_t count = 0;
    t->added[0].list = arena_alloc(t->arena, most, sizeof(AddedToken));
    t->added[1].list = arena_alloc(t->arena, most, sizeof(AddedToken));
    Declared *declared = arena_alloc(scratch, most, sizeof *declared);
    for (const Json *v = json_first(decoder); v != NULL; v = v->next) {
        if (!json_is(v, JSON_OBJECT)) {
            json_refuse(decoder, v->key, "an object");
        }
        declared[count++] = (Declared){v->key, v, read_string(t, v, "content")};
    }
    qsort(declared, count, sizeof *declared, compare_natural);
    for (const Json *json = json_first(list); json != NULL; json = json->next) {
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
    for (size_t i = 0; i < count; i++) {
        add_special(t, declared[i].token);
    }
    for (size_t i = 0; i < sizeof special_names / sizeof *special_names; i++) {
        add_special(t, json_get(config, special_names[i]));
    }
    for (const Json *v = json_first(others); v != NULL; v = v->next) {
        add_special(t, v);
    }
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
    size_t most = (added == NULL ? 0 : added->length) + declared_most(config);
    if (most > ADDED_MOST) {
        fail(STATUS_INPUT, "%s: more than %d added tokens", t->path, ADDED_MOST);
    }
    load_model(t, json_need(root, "model", JSON_OBJECT), most);
    load_added(t, added, config, most, scratch);
    if (path_is_directory(path)) {
        load_config(t, beside, config);
    }
    arena_free(scratch);
    return t;
}

/* tokenizer_parts.h: what a tokenizer is made of, shared by tokenizer_load.c, which reads it, and
 * tokenizer.c, which runs it. */
#ifndef REFSAE_TOKENIZER_PARTS_H
#define REFSAE_TOKENIZER_PARTS_H

#include "tokenizer.h"

enum {
    DIRECT_CODES = 0x10000
}; /* characters whose id is looked up in an array */
#define NONE 0xFFFFFFFFu /* no id, no position */

typedef struct String {
    const char *text;
    size_t length;
} String;

/* Strings with ids, found by hash or by index. */
typedef struct Name {
    const char *text;
    uint32_t length, id;
} Name;

typedef struct Names {
    Name *list;
    size_t count;
    uint32_t *slots; /* index + 1, 0: free */
    size_t mask;
} Names;

typedef struct Merge {
    uint32_t left, right, rank, id; /* left NONE: free */
} Merge;

typedef struct AddedToken {
    String content, pattern, decoded; /* as written, as looked for, as decoders see it */
    String normal; /* the id's normalized form where that differs (no text: it does not) */
    uint32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
    bool skipped; /* by skip_special_tokens */
} AddedToken;

/* Patterns of added tokens in the order of their bytes. */
typedef struct AddedSet {
    const AddedToken **list;
    size_t count;
    bool first[256]; /* bytes with which a pattern begins */
} AddedSet;

typedef enum Behaviour {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_WITH_PREVIOUS,
    SPLIT_WITH_NEXT,
    SPLIT_CONTIGUOUS
} Behaviour;

/* Parts of normalizers, pre-tokenizers and decoders; those of the file that do several things
 * become several steps. */
typedef enum StepKind {
    STEP_NFC,        /* rewrites */
    STEP_REPLACE,    /* rewrites: pattern by content */
    STEP_PREPEND,    /* rewrites: content before it, as `prepend` says */
    STEP_BYTE_LEVEL, /* rewrites: bytes as GPT-2's printable characters; decoder: back */
    STEP_SPLIT,      /* splits: pattern, behaviour, invert */
    STEP_GPT2_SPLIT, /* splits: GPT-2's regular expression */
    STEP_METASPACE,  /* decoder: pattern is a space; `first`: none at the beginning of the text */
    STEP_BYTE_FALLBACK, /* decoder */
    STEP_FUSE,          /* decoder */
    STEP_STRIP          /* decoder: pattern, at most `start` and `stop` times */
} StepKind;

typedef enum Prepend {
    PREPEND_ALWAYS,
    PREPEND_MISSING,      /* where it is not there already */
    PREPEND_MISSING_FIRST /* and only to what begins the text */
} Prepend;

typedef struct Step {
    StepKind kind;
    String pattern, content;
    Behaviour behaviour;
    bool invert, first;
    Prepend prepend;
    size_t start, stop;
} Step;

typedef struct Steps {
    Step *list;
    size_t count, capacity;
} Steps;

typedef struct Ids {
    uint32_t *list;
    size_t count;
} Ids;

struct Tokenizer {
    Arena *arena;
    const char *path;
    Names vocabulary;  /* the model's, by id */
    Names added_names; /* id: index in `added` of the latest of that content */
    AddedToken *added;
    const AddedToken **by_id;
    size_t by_id_count;
    AddedSet plain, normalized;
    Merge *merges;
    size_t merge_mask;
    unsigned merge_shift;
    uint32_t *direct;       /* [DIRECT_CODES] id of a character, or NONE */
    uint32_t byte_ids[256]; /* of <0x00> ..., or NONE */
    uint64_t *joins;        /* a bit for the hash of (last, first character) of every merge */
    unsigned joins_shift;
    bool cuttable; /* merges see known characters alone */
    bool byte_fallback, fuse_unk, ignore_merges, has_unk;
    String unk;
    uint32_t unk_id;
    Steps normalizer, pre_tokenizer, decoder;
    bool has_decoder;
    Ids before, after; /* what the post-processor adds */
    bool truncate, truncate_left, truncate_second;
    size_t truncate_length, truncate_stride;
    bool pad, pad_left, pad_fixed;
    size_t pad_length, pad_multiple;
    uint32_t pad_id;
};

/* Index of the name or NONE. */
uint32_t names_find(const Names *names, const char *text, size_t length);
uint32_t names_id(const Names *names, const char *text, size_t length); /* or NONE */
const Name *names_by_id(const Names *names, uint32_t id);               /* names sorted by id */
const AddedToken *added_by_id(const Tokenizer *tokenizer, uint32_t id);
uint64_t hash_bytes(const char *text, size_t length);

/* Bits of the hashed sets of merges and of characters that merges join. */
static inline size_t merge_slot(const Tokenizer *t, uint32_t left, uint32_t right) {
    return (size_t)((((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u) >> t->merge_shift);
}

static inline size_t join_bit(const Tokenizer *t, uint32_t last, uint32_t first) {
    return (size_t)((((uint64_t)last << 21 | first) * 0x9E3779B97F4A7C15u) >> t->joins_shift);
}

/* What the normalizer makes of `from`, in the arena. */
String normalize_string(const Steps *steps, String from, Arena *arena);

#endif

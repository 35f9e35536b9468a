/* tokenizer_tables.h: what tokenizer_load.c reads from tokenizer.json and tokenizer.c goes by;
 * nobody else includes it. Floor 5. */
#ifndef REFSAE_TOKENIZER_TABLES_H
#define REFSAE_TOKENIZER_TABLES_H

#include "tokenizer.h"

enum {
    DIRECT_CODES = 0x10000 /* characters whose id is looked up in an array */
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

bool same_string(String a, String b);
/* The slot of a text, or the free one where it would be; its id, or NONE. */
uint32_t *token_slot(const Tokenizer *t, const char *text, size_t length);
uint32_t token_find(const Tokenizer *t, const char *text, size_t length);
/* GPT-2's printable character for a byte (openai/gpt-2, encoder.py, bytes_to_unicode): itself where
 * Latin-1 prints it, else the next free one from U+0100 on. */
uint32_t byte_to_code(unsigned byte);
/* The byte that <0xNN> stands for, or -1. Like Rust's from_str_radix, this takes "+N". */
int fallback_byte(String token);
/* The bit in `joins` of the characters on either side of a merge. */
size_t join_bit(const Tokenizer *t, uint32_t last, uint32_t first);
/* The merge of two tokens, or the free place where it would be. */
Merge *merge_find(const Tokenizer *t, uint32_t left, uint32_t right);
/* Whether the normalizer leaves the text as it is. */
bool is_normal(const Tokenizer *t, String text);

#endif

/* unicode.h: classes of code points and canonical composition, as the engines inside Hugging Face
 * `tokenizers` see them (three Unicode releases; see unicode_tables.h). Floor 3. */
#ifndef REFSAE_UNICODE_H
#define REFSAE_UNICODE_H

#include "base.h"

enum {
    UNICODE_LETTER = 1,     /* \p{L} of Oniguruma */
    UNICODE_NUMBER = 2,     /* \p{N} */
    UNICODE_SPACE = 4,      /* \s, the same in Oniguruma and in Rust's regex crate */
    UNICODE_WORD = 8,       /* \w of Rust's regex crate */
    UNICODE_NFC_ACTIVE = 16 /* NFC may change it, reorder it, or compose it with what precedes */
};

unsigned unicode_class(uint32_t code);

/* A character of a normal form. change, as unicode-normalization-alignments counts it: 1 = inserted
 * (it belongs to what precedes), -n = stands for 1 + n. */
typedef struct NfcChar {
    uint32_t code;
    int32_t change;
    uint32_t order; /* scratch */
    uint8_t combining;
} NfcChar;

/* The next stretch [start, *end) at or after `from` that NFC may change, from the character before
 * it on; what lies outside of such stretches is its own NFC. start = length: none. */
size_t unicode_nfc_stretch(const char *text, size_t length, size_t from, size_t *end);

/* NFC of valid UTF-8. `out` has room for 2 * length characters; returns how many there are. */
size_t unicode_nfc(const char *text, size_t length, NfcChar *out);

#endif

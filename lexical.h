/* lexical.h: comparing words: Porter's stemmer, the lexical judge of feature descriptions, and the
 * answer normalisation of the visual-question benchmarks. Floor 1. */
#ifndef REFSAE_LEXICAL_H
#define REFSAE_LEXICAL_H

#include "base.h"

/* Stems `word` (lower-case ASCII letters, 0-terminated) in place: Porter 1980, all five steps. */
void lexical_stem(char *word);

/* True if a content word of `description` (at least three letters or digits, not a function word
 * and not a word that feature descriptions are made of, as "references to") has the stem of a word
 * of `answer`. */
bool lexical_match(const char *description, const char *answer);

/* VQA's answer form: lower case, punctuation removed, number words to digits, articles removed,
 * white space single. out has room for length + 2 bytes. */
void lexical_vqa_form(char *out, const char *text, size_t length);

#endif

/* xml.h: a strict reader of the XML that figures use, for tests. */
#ifndef REFSAE_TESTS_XML_H
#define REFSAE_TESTS_XML_H

#include "base.h"

#include <criterion/criterion.h>
#include <ctype.h>
#include <string.h>

/* Elements nest, attributes are quoted, entities are
 * known, characters are allowed, numbers are finite. Counts elements of one name. */
static int assert_xml(const char *s, const char *name) {
    char open[64][16];
    int depth = 0, count = 0;
    bool root = false;
    cr_assert(utf8_valid(s, strlen(s)));
    cr_assert_null(strstr(s, "nan"), "a number that is none");
    cr_assert_null(strstr(s, "\"inf"), "a number that is none");
    cr_assert_null(strstr(s, "\xEF\xBF\xBE"));
    while (*s != 0) {
        cr_assert((unsigned char)*s >= 0x20 || *s == '\n', "a character that XML does not have");
        if (*s == '&') {
            cr_assert(s[1] == '#' && isdigit((unsigned char)s[2]), "%.20s", s);
            s += 2 + strspn(s + 2, "0123456789");
            cr_assert_eq(*s, ';');
        } else if (*s == '<' && s[1] == '/') {
            size_t length = strcspn(s + 2, ">");
            cr_assert(depth > 0);
            depth--;
            cr_assert(strlen(open[depth]) == length && memcmp(open[depth], s + 2, length) == 0,
                      "%.40s", s);
            s += 2 + length;
        } else if (*s == '<') {
            size_t length = strcspn(s + 1, " />");
            cr_assert(length > 0 && length < 16 && depth < 64, "%.40s", s);
            cr_assert(depth > 0 || !root, "one root");
            root = true;
            memcpy(open[depth], s + 1, length);
            open[depth][length] = 0;
            count += strcmp(open[depth], name) == 0;
            s += 1 + length;
            while (*s == ' ') {
                size_t key = strcspn(s, "=");
                cr_assert_eq(s[key + 1], '"');
                s += key + 2;
                s += strcspn(s, "\"<");
                cr_assert_eq(*s, '"');
                s++;
            }
            bool alone = *s == '/';
            s += alone;
            cr_assert_eq(*s, '>', "%.40s", s);
            depth += !alone;
        } else {
            cr_assert(depth > 0 || *s == '\n', "text outside: %.40s", s);
        }
        s++;
    }
    cr_assert_eq(depth, 0);
    return count;
}

#endif

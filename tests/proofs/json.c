/* Proof: an escape or a number that begins in BYTES bytes, any of them, is parsed or refused without a
 * step outside of them, and takes no more bytes of the parsed text than it has in the file, so that
 * length + 1 are enough for all of them together. */
#include "stubs.h"

#include "../../json.c"

/* Any answer that base.h allows. */
size_t utf8_decode(const char *text, size_t length, uint32_t *code) {
    size_t step;
    (void)text;
    __CPROVER_assume(step <= 4 && step <= length);
    return step;
}

size_t utf8_encode(uint32_t code, char out[4]) {
    size_t size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = 0; i < size; i++) {
        out[i] = 'x';
    }
    return size;
}

static Parser any_parser(void) {
    FileMap map = any_file();
    const char *start = (const char *)map.data;
    char *text = malloc(BYTES + 1);
    __CPROVER_assume(text != NULL);
    return (Parser){.start = start, .at = start, .end = start + BYTES, .text = text};
}

void escape(void) {
    Parser p = any_parser();
    p.at++; /* behind the backslash */
    char *end = parse_escape(&p, p.text);
    assert(p.at <= p.end && end > p.text && end - p.text <= p.at - p.start);
}

void number(void) {
    Parser p = any_parser();
    Json value;
    char *text = p.text;
    parse_number(&p, &value);
    assert(p.at <= p.end && p.text - text == p.at - p.start + 1);
    assert(value.length < (size_t)(p.text - text));
}

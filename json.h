/* json.h: JSON in two forms: a DOM for small files, and a reader of one array element after another
 * for conversation files of a gigabyte. Floor 0. */
#ifndef REFSAE_JSON_H
#define REFSAE_JSON_H

#include "base.h"

typedef enum JsonKind {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
} JsonKind;

/* A value. Children of an array or object are a list in file order:
 * for (c = v->child; c != NULL; c = c->next). */
typedef struct Json {
    const struct Json *child, *next;
    const char *key;  /* member of an object: unescaped, 0-terminated (may hold further 0 bytes) */
    const char *text; /* string: unescaped UTF-8, 0-terminated; number: as written */
    size_t length;    /* string: bytes; array, object: number of children */
    uint32_t key_length;
    JsonKind kind;
} Json;

/* Parses one value and nothing after it but white space (RFC 8259; as Python's json.load, NaN,
 * Infinity and -Infinity are numbers). Lone surrogate escapes become U+FFFD; broken UTF-8, depth
 * above 256 and trailing bytes are errors with file, line and column. A UTF-8 byte order mark is
 * skipped. `name` stands in messages. */
const Json *json_parse(Arena *arena, const char *text, size_t length, const char *name);
const Json *json_read_file(Arena *arena, const char *path);

/* The last member of that name, as Python keeps it; NULL if there is none or `object` is none. */
const Json *json_get(const Json *object, const char *key);
bool json_is(const Json *value, JsonKind kind); /* false for NULL */
bool json_text_is(const Json *value, const char *text);
double json_double(const Json *number); /* correctly rounded, independent of the locale */
/* False if the value is no number, has a fraction, or does not fit. */
bool json_int64(const Json *number, int64_t *out);

/* ---- conversations: a file that is one array; elements are read by index ----
 * Memory: a few words an element and the largest element. A file whose first byte is '{' is taken
 * as JSON lines: objects one after another. */
typedef struct JsonArrayFile {
    Arena *arena; /* the caller's: everything below lives there */
    FILE *stream;
    char *name;
    uint64_t *offset; /* [count + 1]: first byte of each element; last: end of the last */
    size_t count;
    char *buffer;
    size_t capacity;
} JsonArrayFile;

/* Finds every element's place in one pass through a buffer of fixed size. */
void json_array_open(JsonArrayFile *file, Arena *arena, const char *path);
const Json *json_array_read(JsonArrayFile *file, size_t index, Arena *arena);

/* ---- writing ---- */
/* A JSON string with quotes; the bytes must be UTF-8 (others become U+FFFD). */
void json_write_string(FILE *stream, const char *text, size_t length);
/* Shortest decimal that reads back as the same binary32 / binary64; NaN and infinities as null. */
void json_write_float(FILE *stream, float value);
void json_write_double(FILE *stream, double value);
/* The same into a buffer. */
enum {
    JSON_NUMBER_SIZE = 32
};
void json_format_float(char text[JSON_NUMBER_SIZE], float value);
void json_format_double(char text[JSON_NUMBER_SIZE], double value);

#endif

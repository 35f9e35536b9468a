/* json.h: JSON read whole, by line, or one array element after another for conversation files of a
 * gigabyte; settings with a default and a sentence; JSON and CSV written. Floor 3. */
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
    const char *key; /* member of an object: unescaped, 0-terminated (may hold further 0 bytes) */
    /* String: unescaped UTF-8, 0-terminated. Number: as written. Array, object: the name that
     * json_parse was given, for messages. */
    const char *text;
    size_t length; /* string: bytes; array, object: number of children */
    uint32_t key_length;
    JsonKind kind;
} Json;

/* Parses one value and nothing after it but white space (RFC 8259; as Python's json.load, NaN,
 * Infinity and -Infinity are numbers). Lone surrogate escapes become U+FFFD; broken UTF-8, depth
 * above 256 and trailing bytes are errors with file, line and column. A UTF-8 byte order mark is
 * skipped. `name` stands in messages. */
const Json *json_parse(Arena *arena, const char *text, size_t length, const char *name);
/* Bytes of the byte order mark that text begins with: 3, or 0. */
size_t json_mark(const char *text, size_t length);
const Json *json_read_file(Arena *arena, const char *path);

/* The last member of that name, as Python keeps it; NULL if there is none or `object` is none. */
const Json *json_get(const Json *object, const char *key);
const Json *json_below(const Json *value, const char *a, const char *b); /* a's member b */
/* The first child, of an object alone if its members are meant; NULL for none, and of NULL. */
const Json *json_first(const Json *value);
const Json *json_first_member(const Json *value);
const char *json_string(const Json *value);     /* "" if it is no text */
bool json_is(const Json *value, JsonKind kind); /* false for NULL */
bool json_text_is(const Json *value, const char *text);
double json_double(const Json *number); /* correctly rounded, independent of the locale */
/* False if the value is no number, has a fraction, or does not fit. */
bool json_int64(const Json *number, int64_t *out);

/* ---- settings: members of an object, each with what an absent one means ----
 * Of an object that is NULL every member is absent. Where another name counts if the first is not
 * there, or another object, the one stands as the other's default:
 *   json_text(cfg, "hook_name", json_text(cfg, "hook_point", NULL))
 * A sentence names the file, the object where it is itself a member, and the key:
 * "config.json: vision_config: 'hidden_size': expected a whole number from 1 to 9, found null". */

/* A whole number; 12.0 is one. null is refused, here and in json_number. */
size_t json_size(const Json *object, const char *key, size_t absent, size_t least, size_t most);
double json_number(const Json *object, const char *key, double absent, double least, double most);
/* null is as absent, here and below. */
const Json *json_set(const Json *object, const char *key); /* NULL: absent or null */
bool json_bool(const Json *object, const char *key, bool absent);
const char *json_text(const Json *object, const char *key,
                      const char *absent); /* no 0 byte in it */
typedef struct JsonName {
    const char *name;
    int value;
} JsonName;
/* What a text stands for in a table that ends with a NULL name. */
int json_choice(const Json *object, const char *key, int absent, const JsonName *names);
/* The member, which must be of that kind; NULL: absent. */
const Json *json_member(const Json *object, const char *key, JsonKind kind);
/* The same, and it must be there (object is not NULL). */
const Json *json_need(const Json *object, const char *key, JsonKind kind);
/* "FILE: 'key': expected EXPECTED, found ..." and what stands there; object is not NULL. */
REFSAE_NORETURN void json_refuse(const Json *object, const char *key, const char *expected);

/* ---- files of many values: mapped, and read one after another ---- */

typedef struct JsonLines {
    const char *name, *at, *end;
    size_t line; /* that was read last, from 1 */
} JsonLines;

JsonLines json_lines(Arena *arena, const char *path);
/* The object of the next line that is not blank; NULL: the end. Messages begin with "NAME:LINE: ",
 * and the line behind a refused one can be read. */
const Json *json_line(Arena *arena, JsonLines *lines);

/* One array, whose elements are read by index. A file whose first byte is '{' is taken as JSON
 * lines: objects one after another. */
typedef struct JsonArrayFile {
    const char *name, *text;
    const char **element; /* [count + 1]: where each begins; last: the end of the last */
    size_t count;
} JsonArrayFile;

/* Finds every element's place in one pass. */
void json_array_open(JsonArrayFile *file, Arena *arena, const char *path);
const Json *json_array_read(const JsonArrayFile *file, size_t index, Arena *arena);

/* ---- writing ---- */
/* A JSON string with quotes; the bytes must be UTF-8 (others become U+FFFD). */
void json_write_string(FILE *stream, const char *text, size_t length);
/* Shortest decimal that reads back as the same binary64; NaN and infinities as null. */
enum {
    JSON_NUMBER_SIZE = 32
};
char *json_format_double(char text[JSON_NUMBER_SIZE], double value); /* text */
/* It lives as long as the block of code in which it stands. */
#define JSON_DOUBLE(value) json_format_double((char[JSON_NUMBER_SIZE]){0}, value)

/* ---- JSON ----
 * Objects and arrays to `pretty` levels deep are indented, deeper ones stay on their line; 0 gives
 * one line (JSONL: call json_out_start anew for each line). NaN and infinities become null. A
 * newline stands after the outermost value. */
typedef struct JsonOut {
    FILE *stream;
    int depth, pretty;
    uint64_t is_array, has_children; /* a bit for each level, the innermost's lowest */
    bool keyed;                      /* a key stands there, its value does not */
} JsonOut;

JsonOut json_out_start(FILE *stream, int pretty);
/* As it is read: "{ layer %d loss { clean %g } words [ %s". Between spaces stand brackets, keys of
 * objects (%s: brought) and values: true, false, null, %s a text, %d, %zu, %llu, %g a double, %f a
 * float. What a shape leaves open the next goes on with. */
void json_out(JsonOut *json, const char *shape, ...) REFSAE_PRINTF(2, 3);
void json_out_sizes(JsonOut *json, const size_t *sizes, int count); /* elements of an array */
/* `key` is NULL in arrays, here and below. A text that may hold 0 bytes. */
void json_out_bytes(JsonOut *json, const char *key, const char *text, size_t length);
/* What was read, once more; numbers in the shortest form. No value: nothing. */
void json_out_value(JsonOut *json, const char *key, const Json *value);

/* ---- CSV (RFC 4180, lines end in \n): cells one after another, then csv_end ----
 *   Csv csv = csv_start(out->stream, "step,epoch,loss");
 *   csv_double(&csv, step); csv_double(&csv, epoch); csv_double(&csv, loss); csv_end(&csv);  */
typedef struct Csv {
    FILE *stream;
    bool begun; /* the row has a cell */
} Csv;

Csv csv_start(FILE *stream, const char *header);
void csv_text(Csv *csv, const char *text); /* quoted where needed */
void csv_double(Csv *csv, double value);   /* NaN: an empty cell; infinities: inf, -inf */
void csv_end(Csv *csv);

/* Read again, without quotes: the numbers of a column, a row each of the lines that are not blank;
 * NaN: the cell is none. NULL: no column has the name, which may be NULL for the first. */
double *csv_numbers(Arena *arena, const char *text, const char *name, size_t *rows);

#endif

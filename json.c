/* json.c: see json.h. */
#include "json.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
    JSON_DEPTH = 256,
    JSON_NODES_MOST = 4096
};

/* ---- parsing ---- */

/* `text` receives every unescaped string and every number with a 0 byte after it. None needs more
 * bytes than in the file with its quotes or separator, so length + 1 bytes are enough. */
typedef struct Parser {
    Arena *arena;
    const char *start, *at, *end;
    char *text;
    Json *nodes; /* unused nodes of the newest chunk */
    size_t nodes_left, nodes_next;
    const char *name;
} Parser;

REFSAE_NORETURN static void parse_fail(const Parser *p, const char *at, const char *expected) {
    size_t line = 1;
    const char *line_start = p->start;
    for (const char *s = p->start; s < at; s++) {
        if (*s == '\n') {
            line++;
            line_start = s + 1;
        }
    }
    char found[8] = "the end";
    uint32_t code;
    if (at < p->end) {
        size_t step = utf8_decode(at, (size_t)(p->end - at), &code);
        step = step == 0 ? 1 : step;
        found[0] = '\'';
        memcpy(found + 1, at, step);
        found[step + 1] = '\'';
        found[step + 2] = 0;
        if (*at == 0) {
            memcpy(found, "U+0000", 7);
        }
    }
    fail(STATUS_INPUT, "%s: line %zu, column %zu: expected %s, found %s", p->name, line,
         (size_t)(at - line_start) + 1, expected, found);
}

static void skip_space(Parser *p) {
    while (p->at < p->end &&
           (*p->at == ' ' || *p->at == '\n' || *p->at == '\r' || *p->at == '\t')) {
        p->at++;
    }
}

static Json *node_new(Parser *p) {
    if (p->nodes_left == 0) {
        p->nodes = arena_alloc(p->arena, p->nodes_next, sizeof(Json));
        p->nodes_left = p->nodes_next;
        p->nodes_next = p->nodes_next < JSON_NODES_MOST ? 2 * p->nodes_next : JSON_NODES_MOST;
    }
    p->nodes_left--;
    return p->nodes++;
}

/* Four hexadecimal digits at `s`, or -1. */
static int32_t hex4(const char *s, const char *end) {
    int32_t value = 0;
    if (end - s < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) {
            return -1;
        }
        value = value * 16 + digit;
    }
    return value;
}

/* After a backslash: writes what the escape stands for; returns where it ends. */
static char *parse_escape(Parser *p, char *out) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *escape = p->at - 1;
    const char *known = p->at < p->end && *p->at != 0 ? strchr(names, *p->at) : NULL;
    if (known != NULL) {
        *out = values[known - names];
        p->at++;
        return out + 1;
    }
    int32_t unit = p->at < p->end && *p->at == 'u' ? hex4(p->at + 1, p->end) : -1;
    if (unit < 0) {
        parse_fail(p, escape, "an escape such as \\n or \\u00e9");
    }
    p->at += 5;
    uint32_t code = (uint32_t)unit;
    if (code >= 0xD800 && code < 0xDC00 && p->end - p->at >= 6 && p->at[0] == '\\' &&
        p->at[1] == 'u') {
        int32_t low = hex4(p->at + 2, p->end);
        if (low >= 0xDC00 && low < 0xE000) {
            code = 0x10000 + ((code - 0xD800) << 10) + ((uint32_t)low - 0xDC00);
            p->at += 6;
        }
    }
    return out + utf8_encode(code >= 0xD800 && code < 0xE000 ? 0xFFFD : code, out);
}

/* At the opening quote. */
static const char *parse_string(Parser *p, size_t *length) {
    char *text = p->text, *out = text;
    p->at++;
    for (;;) {
        const char *s = p->at;
        while (s < p->end && (unsigned char)*s >= 0x20 && (unsigned char)*s < 0x80 && *s != '"' &&
               *s != '\\') {
            *out++ = *s++;
        }
        p->at = s;
        if (s == p->end) {
            parse_fail(p, s, "'\"' after a string");
        }
        if (*s == '"') {
            p->at++;
            break;
        }
        if (*s == '\\') {
            p->at++;
            out = parse_escape(p, out);
            continue;
        }
        uint32_t code;
        size_t step = utf8_decode(s, (size_t)(p->end - s), &code);
        if (step == 0 || code < 0x20) {
            parse_fail(p, s, step == 0 ? "UTF-8" : "an escape for this control character");
        }
        memcpy(out, s, step);
        out += step;
        p->at += step;
    }
    *length = (size_t)(out - text);
    *out = 0;
    p->text = out + 1;
    return text;
}

static bool skip_char(Parser *p, char c) {
    bool same = p->at < p->end && *p->at == c;
    p->at += same;
    return same;
}

static bool skip_word(Parser *p, const char *word) {
    size_t n = strlen(word);
    bool same = (size_t)(p->end - p->at) >= n && memcmp(p->at, word, n) == 0;
    p->at += same ? n : 0;
    return same;
}

/* One digit or more; `expected`: if there is none. */
static void skip_digits(Parser *p, const char *expected) {
    const char *s = p->at;
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9') {
        p->at++;
    }
    if (p->at == s) {
        parse_fail(p, s, expected);
    }
}

static void parse_number(Parser *p, Json *value) {
    const char *start = p->at;
    bool minus = skip_char(p, '-');
    if (!skip_word(p, "Infinity") && (minus || !skip_word(p, "NaN"))) {
        if (!skip_char(p, '0')) {
            skip_digits(p, minus ? "a digit" : "a value");
        }
        if (skip_char(p, '.')) {
            skip_digits(p, "a digit");
        }
        if (skip_char(p, 'e') || skip_char(p, 'E')) {
            if (!skip_char(p, '+')) {
                skip_char(p, '-');
            }
            skip_digits(p, "a digit");
        }
    }
    value->kind = JSON_NUMBER;
    value->length = (size_t)(p->at - start);
    value->text = p->text;
    memcpy(p->text, start, value->length);
    p->text[value->length] = 0;
    p->text += value->length + 1;
}

static void parse_value(Parser *p, Json *value, int depth);

/* "name": of a member. */
static void parse_key(Parser *p, Json *member) {
    size_t length;
    skip_space(p);
    if (p->at == p->end || *p->at != '"') {
        parse_fail(p, p->at, "a name in double quotes");
    }
    member->key = parse_string(p, &length);
    if (length > UINT32_MAX) {
        fail(STATUS_INPUT, "%s: a name of %zu bytes", p->name, length);
    }
    member->key_length = (uint32_t)length;
    skip_space(p);
    if (!skip_char(p, ':')) {
        parse_fail(p, p->at, "':'");
    }
}

/* At '[' or '{'. */
static void parse_children(Parser *p, Json *parent, int depth) {
    bool object = *p->at == '{';
    char close = object ? '}' : ']';
    parent->kind = object ? JSON_OBJECT : JSON_ARRAY;
    parent->text = p->name;
    if (depth == JSON_DEPTH) {
        parse_fail(p, p->at, "nesting of at most 256 levels");
    }
    p->at++;
    skip_space(p);
    if (skip_char(p, close)) {
        return;
    }
    const Json **place = &parent->child;
    do {
        Json *child = node_new(p);
        *place = child;
        place = &child->next;
        if (object) {
            parse_key(p, child);
        }
        parse_value(p, child, depth + 1);
        parent->length++;
        skip_space(p);
    } while (skip_char(p, ','));
    if (!skip_char(p, close)) {
        parse_fail(p, p->at, object ? "',' or '}'" : "',' or ']'");
    }
}

static void parse_value(Parser *p, Json *value, int depth) {
    skip_space(p);
    if (p->at == p->end) {
        parse_fail(p, p->at, "a value");
    }
    switch (*p->at) {
    case '{':
    case '[':
        parse_children(p, value, depth);
        break;
    case '"':
        value->kind = JSON_STRING;
        value->text = parse_string(p, &value->length);
        break;
    case 't':
    case 'f':
    case 'n':
        value->kind = *p->at == 't' ? JSON_TRUE : *p->at == 'f' ? JSON_FALSE : JSON_NULL;
        if (!skip_word(p, "true") && !skip_word(p, "false") && !skip_word(p, "null")) {
            parse_fail(p, p->at, "a value");
        }
        break;
    default:
        parse_number(p, value);
    }
}

size_t json_mark(const char *text, size_t length) {
    return length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
}

const Json *json_parse(Arena *arena, const char *text, size_t length, const char *name) {
    Parser p = {.arena = arena, .end = text + length, .nodes_next = 16};
    p.name = arena_copy(arena, name, strlen(name));
    p.text = arena_alloc(arena, length + 1, 1);
    p.start = p.at = text + json_mark(text, length);
    Json *root = node_new(&p);
    parse_value(&p, root, 0);
    skip_space(&p);
    if (p.at != p.end) {
        parse_fail(&p, p.at, "nothing after the value");
    }
    return root;
}

const Json *json_read_file(Arena *arena, const char *path) {
    Arena *scratch = arena_new();
    FileMap map = file_map(scratch, path);
    const Json *value = json_parse(arena, (const char *)map.data, map.size, path);
    arena_free(scratch);
    return value;
}

/* ---- reading values ---- */

const Json *json_get(const Json *object, const char *key) {
    const Json *found = NULL;
    if (json_is(object, JSON_OBJECT)) {
        size_t length = strlen(key);
        for (const Json *c = object->child; c != NULL; c = c->next) {
            if (c->key_length == length && memcmp(c->key, key, length) == 0) {
                found = c;
            }
        }
    }
    return found;
}

const Json *json_first(const Json *value) {
    return value == NULL ? NULL : value->child;
}

const Json *json_first_member(const Json *value) {
    return json_is(value, JSON_OBJECT) ? value->child : NULL;
}

const char *json_string(const Json *value) {
    return json_is(value, JSON_STRING) ? value->text : "";
}

const Json *json_below(const Json *value, const char *a, const char *b) {
    return json_get(json_get(value, a), b);
}

bool json_is(const Json *value, JsonKind kind) {
    return value != NULL && value->kind == kind;
}

bool json_text_is(const Json *value, const char *text) {
    return json_is(value, JSON_STRING) && value->length == strlen(text) &&
           memcmp(value->text, text, value->length) == 0;
}

double json_double(const Json *number) {
    return json_is(number, JSON_NUMBER) ? strtod(number->text, NULL) : (double)NAN;
}

bool json_int64(const Json *number, int64_t *out) {
    if (!json_is(number, JSON_NUMBER)) {
        return false;
    }
    if (strpbrk(number->text, ".eEIN") == NULL) {
        errno = 0;
        long long value = strtoll(number->text, NULL, 10);
        *out = value;
        return errno == 0;
    }
    double value = strtod(number->text, NULL); /* 12.0 and 1e3 are whole numbers too */
    if (!(value >= -0x1p63 && value < 0x1p63) || floor(value) < value) {
        return false;
    }
    *out = (int64_t)value;
    return true;
}

/* ---- settings ---- */

static const char *const kind_names[] = {"null",     "false",    "true",     "a number",
                                         "a string", "an array", "an object"};

void json_refuse(const Json *object, const char *key, const char *expected) {
    const Json *value = json_get(object, key);
    bool member = object->key != NULL, text = json_is(value, JSON_STRING);
    bool shown = text || json_is(value, JSON_NUMBER);
    fail(STATUS_INPUT, "%s: %s%s'%s': expected %s, found %s%s%s", object->text,
         member ? object->key : "", member ? ": " : "", key, expected, text ? "'" : "",
         value == NULL ? "nothing"
         : shown       ? value->text
                       : kind_names[value->kind],
         text ? "'" : "");
}

size_t json_size(const Json *object, const char *key, size_t absent, size_t least, size_t most) {
    const Json *value = json_get(object, key);
    int64_t number = 0;
    if (value == NULL) {
        return absent;
    }
    if (!json_int64(value, &number) || number < 0 || (uint64_t)number < least ||
        (uint64_t)number > most) {
        char expected[80];
        snprintf(expected, sizeof expected, "a whole number from %zu to %zu", least, most);
        json_refuse(object, key, expected);
    }
    return (size_t)number;
}

double json_number(const Json *object, const char *key, double absent, double least, double most) {
    const Json *value = json_get(object, key);
    double number = value == NULL ? absent : json_double(value);
    if (value != NULL && !(number >= least && number <= most)) { /* a NaN is neither */
        char expected[80];
        snprintf(expected, sizeof expected, "a number from %g to %g", least, most);
        json_refuse(object, key, expected);
    }
    return number;
}

const Json *json_set(const Json *object, const char *key) {
    const Json *value = json_get(object, key);
    return json_is(value, JSON_NULL) ? NULL : value;
}

bool json_bool(const Json *object, const char *key, bool absent) {
    const Json *value = json_set(object, key);
    if (value != NULL && value->kind != JSON_TRUE && value->kind != JSON_FALSE) {
        json_refuse(object, key, "true or false");
    }
    return value == NULL ? absent : value->kind == JSON_TRUE;
}

const Json *json_member(const Json *object, const char *key, JsonKind kind) {
    const Json *value = json_set(object, key);
    if (value != NULL && value->kind != kind) {
        json_refuse(object, key, kind_names[kind]);
    }
    return value;
}

const Json *json_need(const Json *object, const char *key, JsonKind kind) {
    const Json *value = json_member(object, key, kind);
    if (value == NULL) {
        json_refuse(object, key, kind_names[kind]);
    }
    return value;
}

const char *json_text(const Json *object, const char *key, const char *absent) {
    const Json *value = json_member(object, key, JSON_STRING);
    if (value != NULL && strlen(value->text) != value->length) {
        json_refuse(object, key, "a string without U+0000");
    }
    return value == NULL ? absent : value->text;
}

int json_choice(const Json *object, const char *key, int absent, const JsonName *names) {
    const Json *value = json_set(object, key);
    for (const JsonName *n = names; n->name != NULL; n++) {
        if (value == NULL || json_text_is(value, n->name)) {
            return value == NULL ? absent : n->value;
        }
    }
    MemoryStream *list = memory_open(arena_new()); /* the failure frees it */
    for (const JsonName *n = names; n->name != NULL; n++) {
        fprintf(list->stream, "%s%s", n == names ? "" : n[1].name == NULL ? " or " : ", ", n->name);
    }
    json_refuse(object, key, memory_text(list));
}

/* ---- files of many values ---- */

JsonLines json_lines(Arena *arena, const char *path) {
    FileMap map = file_map(arena, path);
    const char *text = (const char *)map.data;
    return (JsonLines){path, text + json_mark(text, map.size), text + map.size, 0};
}

const Json *json_line(Arena *arena, JsonLines *lines) {
    while (lines->at != lines->end) {
        const char *text = lines->at, *stop = memchr(text, '\n', (size_t)(lines->end - text));
        Parser p = {.at = text, .end = stop != NULL ? stop : lines->end};
        lines->at = p.end + (stop != NULL);
        lines->line++;
        skip_space(&p);
        if (p.at == p.end) {
            continue;
        }
        if (*p.at == '[') {
            fail(STATUS_INPUT, "%s:%zu: is a list: expected JSON lines, an object on each",
                 lines->name, lines->line);
        }
        const char *place = arena_format(arena, "%s:%zu", lines->name, lines->line);
        const Json *value = json_parse(arena, text, (size_t)(p.end - text), place);
        if (value->kind != JSON_OBJECT) {
            fail(STATUS_INPUT, "%s: expected an object", place);
        }
        return value;
    }
    return NULL;
}

REFSAE_NORETURN static void scan_fail(const Parser *p, size_t element, const char *what) {
    fail(STATUS_INPUT, "%s: byte %zu, in element %zu: %s", p->name, (size_t)(p->at - p->start),
         element, p->at == p->end ? "the file ends too early" : what);
}

/* To the byte after an element, whose strings and brackets alone are checked until it is read. */
static void scan_element(Parser *p, size_t element) {
    char open[JSON_DEPTH]; /* the closing bracket that each level waits for */
    int depth = 0;
    bool closed = false;
    do {
        char c = p->at < p->end ? *p->at : '\0';
        if (c == '"') {
            for (p->at++; p->at < p->end && *p->at != '"'; p->at++) {
                p->at += *p->at == '\\' && p->at + 1 < p->end;
            }
        } else if (c == '[' || c == '{') {
            if (depth == JSON_DEPTH) {
                scan_fail(p, element, "nesting of more than 256 levels");
            }
            open[depth++] = c == '[' ? ']' : '}';
        } else if (c == ']' || c == '}') {
            if (depth == 0 || open[--depth] != c) {
                scan_fail(p, element, "a bracket that closes nothing");
            }
            closed = depth == 0;
        }
        if (p->at == p->end) {
            scan_fail(p, element, "");
        }
        p->at++;
    } while (depth > 0 || (!closed && p->at < p->end && strchr(", \n\r\t]", *p->at) == NULL));
}

void json_array_open(JsonArrayFile *file, Arena *arena, const char *path) {
    FileMap map = file_map(arena, path);
    const char *text = (const char *)map.data;
    size_t room = 0;
    *file = (JsonArrayFile){.name = arena_copy(arena, path, strlen(path)), .text = text};
    Parser p = {.name = file->name, .start = text, .end = text + map.size};
    p.at = text + json_mark(text, map.size);
    skip_space(&p);
    bool lines = p.at < p.end && *p.at == '{';
    if (!lines && !skip_char(&p, '[')) {
        scan_fail(&p, 0, "expected '[', the begin of an array");
    }
    skip_space(&p);
    for (bool more = lines || !skip_char(&p, ']'); more;) {
        skip_space(&p);
        if (p.at == p.end || strchr(",]}:", *p.at) != NULL) {
            scan_fail(&p, file->count, "expected a value");
        }
        file->element =
            arena_grow(arena, file->element, &room, file->count + 2, sizeof *file->element);
        file->element[file->count] = p.at;
        scan_element(&p, file->count);
        file->element[++file->count] = p.at;
        skip_space(&p);
        more = lines ? p.at < p.end : skip_char(&p, ',');
        if (!lines && !more && !skip_char(&p, ']')) {
            scan_fail(&p, file->count - 1, "expected ',' or ']'");
        }
    }
    skip_space(&p);
    if (p.at != p.end) {
        scan_fail(&p, file->count, "expected nothing after the array");
    }
}

const Json *json_array_read(const JsonArrayFile *file, size_t index, Arena *arena) {
    if (index >= file->count) {
        fail(STATUS_INPUT, "%s: element %zu of %zu", file->name, index, file->count);
    }
    const char *text = file->element[index], *end = file->element[index + 1];
    while (end > text && memchr(" \n\r\t,", end[-1], 5) != NULL) { /* up to the next one */
        end--;
    }
    const char *name = arena_format(arena, "%s: element %zu (byte %zu)", file->name, index,
                                    (size_t)(text - file->text));
    return json_parse(arena, text, (size_t)(end - text), name);
}

/* ---- writing ---- */

void json_write_string(FILE *stream, const char *text, size_t length) {
    static const char names[] = "\"\\bfnrt", values[] = "\"\\\b\f\n\r\t";
    putc('"', stream);
    for (size_t i = 0; i < length;) {
        uint32_t code = 0;
        size_t step = utf8_decode(text + i, length - i, &code);
        const char *escape = step == 1 && code != 0 ? strchr(values, (int)code) : NULL;
        if (step == 0) {
            fputs("\xEF\xBF\xBD", stream); /* U+FFFD */
            step = 1;
        } else if (escape != NULL) {
            fprintf(stream, "\\%c", names[escape - values]);
        } else if (code < 0x20) {
            fprintf(stream, "\\u%04x", (unsigned)code);
        } else {
            fwrite(text + i, 1, step, stream);
        }
        i += step;
    }
    putc('"', stream);
}

/* The shortest decimal. Any of up to 15 digits (6 for binary32) survives the binary number, and %g
 * drops trailing zeros, so it is found from there on; subnormals keep fewer and start at 1. */
static char *format_number(char text[JSON_NUMBER_SIZE], double value, bool single) {
    int digits = single ? 6 : 15;
    bool same = !isfinite(value);
    memcpy(text, "null", 5);
    if (fabs(value) < (single ? (double)FLT_MIN : DBL_MIN)) {
        digits = 1;
    }
    for (; !same; digits++) {
        snprintf(text, JSON_NUMBER_SIZE, "%.*g", digits, value);
        same = single ? (double)strtof(text, NULL) == value : strtod(text, NULL) == value;
    }
    return text;
}

char *json_format_double(char text[JSON_NUMBER_SIZE], double value) {
    return format_number(text, value, false);
}

JsonOut json_out_start(FILE *stream, int pretty) {
    return (JsonOut){.stream = stream, .pretty = pretty};
}

static void json_indent(const JsonOut *json) {
    fprintf(json->stream, "\n%*s", 2 * json->depth, "");
}

/* Before a value: what stands between it and the last, and its key, unless that is there. */
static void json_next(JsonOut *json, const char *key, size_t length) {
    bool follows = json->keyed;
    json->keyed = false;
    if (json->depth > 0 && !follows) {
        bool first = (json->has_children & 1) == 0;
        fputs(first ? "" : json->depth > json->pretty ? ", " : ",", json->stream);
        if (json->depth <= json->pretty) {
            json_indent(json);
        }
        json->has_children |= 1;
    }
    if (key != NULL) {
        json_write_string(json->stream, key, length);
        fputs(": ", json->stream);
    }
}

static void json_open(JsonOut *json, char bracket) {
    if (json->depth == 63) {
        fail(STATUS_INPUT, "JSON that is to be written again is more than 63 levels deep");
    }
    putc(bracket, json->stream);
    json->depth++;
    json->has_children <<= 1;
    json->is_array = json->is_array << 1 | (bracket == '[');
}

static void json_close(JsonOut *json) {
    bool indent = json->depth <= json->pretty && (json->has_children & 1) != 0;
    json->depth--;
    if (indent) {
        json_indent(json);
    }
    putc((json->is_array & 1) != 0 ? ']' : '}', json->stream);
    json->has_children >>= 1;
    json->is_array >>= 1;
    fputs(json->depth == 0 ? "\n" : "", json->stream);
}

void json_out_bytes(JsonOut *json, const char *key, const char *text, size_t length) {
    json_next(json, key, key == NULL ? 0 : strlen(key));
    json_write_string(json->stream, text, length);
}

void json_out_value(JsonOut *json, const char *key, const Json *value) {
    static const char *const words[] = {"null", "false", "true"};
    bool object = json_is(value, JSON_OBJECT);
    if (value == NULL) {
        return;
    }
    if (value->kind == JSON_STRING) {
        json_out_bytes(json, key, value->text, value->length);
        return;
    }
    json_next(json, key, key == NULL ? 0 : strlen(key));
    if (object || value->kind == JSON_ARRAY) {
        json_open(json, object ? '{' : '[');
        for (const Json *v = value->child; v != NULL; v = v->next) {
            json_out_value(json, v->key, v);
        }
        json_close(json);
    } else if (value->kind != JSON_NUMBER) {
        fputs(words[value->kind], json->stream);
    } else if (strspn(value->text, "-0123456789") == strlen(value->text)) {
        fputs(value->text, json->stream); /* whole numbers as they are, however large */
    } else {
        fputs(JSON_DOUBLE(json_double(value)), json->stream);
    }
}

void json_out(JsonOut *json, const char *shape, ...) {
    char number[JSON_NUMBER_SIZE];
    va_list list;
    va_start(list, shape);
    for (size_t n; (n = strcspn(shape, " ")) > 0; shape += n, shape += strspn(shape, " ")) {
        bool in_object = json->depth > 0 && (json->is_array & 1) == 0;
        char last = shape[n - 1];
        if (last == '}' || last == ']') {
            json_close(json);
            continue;
        }
        if (in_object && !json->keyed) {
            const char *key = *shape == '%' ? va_arg(list, const char *) : shape;
            json_next(json, key, *shape == '%' ? strlen(key) : n);
            json->keyed = true;
            continue;
        }
        json_next(json, NULL, 0);
        if (last == '{' || last == '[') {
            json_open(json, last);
        } else if (*shape != '%') {
            fprintf(json->stream, "%.*s", (int)n, shape);
        } else if (last == 's') {
            const char *text = va_arg(list, const char *);
            json_write_string(json->stream, text, strlen(text));
        } else if (last == 'd') {
            fprintf(json->stream, "%d", va_arg(list, int));
        } else if (n == strlen("%zu") && last == 'u') {
            fprintf(json->stream, "%zu", va_arg(list, size_t));
        } else if (last == 'u') {
            fprintf(json->stream, "%llu", va_arg(list, unsigned long long));
        } else {
            fputs(format_number(number, va_arg(list, double), last == 'f'), json->stream);
        }
    }
    va_end(list);
}

void json_out_sizes(JsonOut *json, const size_t *sizes, int count) {
    for (int i = 0; i < count; i++) {
        json_out(json, "%zu", sizes[i]);
    }
}

/* ---- CSV ---- */

Csv csv_start(FILE *stream, const char *header) {
    fprintf(stream, "%s\n", header);
    return (Csv){.stream = stream, .begun = false};
}

static void csv_next(Csv *csv) {
    if (csv->begun) {
        putc(',', csv->stream);
    }
    csv->begun = true;
}

void csv_text(Csv *csv, const char *text) {
    csv_next(csv);
    if (strpbrk(text, ",\"\r\n") == NULL) {
        fputs(text, csv->stream);
        return;
    }
    putc('"', csv->stream);
    for (; *text != 0; text++) {
        fputs(*text == '"' ? "\"" : "", csv->stream);
        putc(*text, csv->stream);
    }
    putc('"', csv->stream);
}

void csv_double(Csv *csv, double value) {
    csv_next(csv);
    fputs(isfinite(value) ? JSON_DOUBLE(value)
          : isnan(value)  ? ""
          : value > 0     ? "inf"
                          : "-inf",
          csv->stream);
}

void csv_end(Csv *csv) {
    putc('\n', csv->stream);
    csv->begun = false;
}

/* ---- CSV read again ---- */

/* NULL: the line has fewer cells. */
static const char *csv_cell(const char *line, size_t column) {
    for (; column > 0; column--) {
        line += strcspn(line, ",\r\n");
        if (*line++ != ',') {
            return NULL;
        }
    }
    return line;
}

double *csv_numbers(Arena *arena, const char *text, const char *name, size_t *rows) {
    size_t column = 0, room = 0;
    const char *cell = text;
    while (cell != NULL && name != NULL &&
           (strcspn(cell, ",\r\n") != strlen(name) || memcmp(cell, name, strlen(name)) != 0)) {
        cell = csv_cell(text, ++column);
    }
    if (cell == NULL) {
        return NULL;
    }
    double *values = arena_grow(arena, NULL, &room, 1, sizeof *values);
    *rows = 0;
    for (const char *line = text; *(line += strcspn(line, "\n")) != '\0';) {
        line++;
        if (strcspn(line, "\r\n") > 0) {
            char *end = NULL;
            cell = csv_cell(line, column);
            size_t length = cell == NULL ? 0 : strcspn(cell, ",\r\n");
            double number = length == 0 ? (double)NAN : strtod(cell, &end);
            values = arena_grow(arena, values, &room, *rows + 1, sizeof *values);
            values[(*rows)++] = length > 0 && end == cell + length ? number : (double)NAN;
        }
    }
    return values;
}

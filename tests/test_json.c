/* JSON: values as Python's json.load reads them, errors with their place, arrays read by element.
 */
#define _XOPEN_SOURCE 700
#include "json.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const Json *parse(Arena *arena, const char *text) {
    return json_parse(arena, text, strlen(text), "T");
}

/* NULL, and why. */
static const Json *try_parse(Arena *arena, const char *text, size_t length, Error *error) {
    const Json **value = arena_alloc(arena, 1, sizeof *value);
    ATTEMPT(error, *value = json_parse(arena, text, length, "T"));
    return *value;
}

Test(json, values) {
    Arena *arena = arena_new();
    const Json *v = parse(arena, "\xEF\xBB\xBF {\"a\": [1, -2.5e3, true, false, null, \"x\"], "
                                 "\"b\":{}, \"a b\":[], \"b\": 7, \"\": {\"k\": 1}}\r\n");
    cr_assert_eq(v->kind, JSON_OBJECT);
    cr_assert_eq(v->length, 5);
    const Json *a = json_get(v, "a"), *c = a->child;
    cr_assert_eq(a->length, 6);
    cr_assert_eq(json_double(c), 1);
    cr_assert_eq(json_double(c = c->next), -2500);
    cr_assert(json_is(c = c->next, JSON_TRUE));
    cr_assert(json_is(c = c->next, JSON_FALSE));
    cr_assert(json_is(c = c->next, JSON_NULL));
    cr_assert(json_text_is(c = c->next, "x"));
    cr_assert_null(c->next);
    cr_assert_eq(json_double(json_get(v, "b")), 7, "the last of several members of a name");
    cr_assert_eq(json_get(v, "a b")->length, 0);
    cr_assert_not_null(json_get(json_get(v, ""), "k"));
    cr_assert_null(json_get(v, "zzz"));
    cr_assert_null(json_get(a, "a"));
    cr_assert_null(json_get(NULL, "a"));
    cr_assert(!(json_is(NULL, JSON_NULL)));
    cr_assert(isnan(json_double(NULL)));
    cr_assert(isnan(json_double(parse(arena, "NaN"))));
    cr_assert_eq(json_double(parse(arena, "-Infinity")), (double)-INFINITY);
    cr_assert_eq(json_double(parse(arena, "1e999")), (double)INFINITY);
    cr_assert_eq(json_double(parse(arena, "\t1E+2")), 100);
    arena_free(arena);
}

Test(json, strings) {
    Arena *arena = arena_new();
    const Json *v =
        parse(arena, "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u540D\\ud83d\\ude00\xC3\xA9\"");
    cr_assert_str_eq(v->text, "\"\\/\b\f\n\r\té名😀é");
    v = parse(arena, "\"a\\u0000b\"");
    cr_assert_eq(v->length, 3);
    cr_assert_arr_eq(v->text, "a\0b", 4);
    cr_assert(!(json_text_is(v, "a")));
    cr_assert_str_eq(parse(arena, "\"\\ud800\"")->text, "\xEF\xBF\xBD");
    cr_assert_str_eq(parse(arena, "\"\\udc00\\ud800x\"")->text, "\xEF\xBF\xBD\xEF\xBF\xBDx");
    cr_assert_str_eq(parse(arena, "\"\\ud800\\u0041\"")->text, "\xEF\xBF\xBD"
                                                               "A");
    cr_assert_str_eq(parse(arena, "\"\\ud800abcdef\"")->text, "\xEF\xBF\xBD"
                                                              "abcdef");
    cr_assert_str_eq(parse(arena, "\"\\ud800\\nabcd\"")->text, "\xEF\xBF\xBD\nabcd");
    cr_assert_str_eq(parse(arena, "\"\\ud800\\ue000\"")->text, "\xEF\xBF\xBD\xEE\x80\x80");
    v = parse(arena, "{\"k\\u0000\": 1}");
    cr_assert_eq(v->child->key_length, 2);
    arena_free(arena);
}

Test(json, whole_numbers) {
    Arena *arena = arena_new();
    static const struct {
        const char *text;
        bool good;
        int64_t value;
    } cases[] = {{"0", true, 0},
                 {"-0", true, 0},
                 {"9223372036854775807", true, INT64_MAX},
                 {"-9223372036854775808", true, INT64_MIN},
                 {"9223372036854775808", false, 0},
                 {"123456789012345678901234567890", false, 0},
                 {"12.0", true, 12},
                 {"1e3", true, 1000},
                 {"12.5", false, 0},
                 {"1e30", false, 0},
                 {"-9.223372036854775808e18", true, INT64_MIN},
                 {"9.223372036854775808e18", false, 0},
                 {"NaN", false, 0},
                 {"Infinity", false, 0},
                 {"\"5\"", false, 0},
                 {"true", false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t value = 0;
        cr_assert_eq(json_int64(parse(arena, cases[i].text), &value), cases[i].good, "%s",
                     cases[i].text);
        cr_assert(!cases[i].good || value == cases[i].value, "%s", cases[i].text);
    }
    arena_free(arena);
}

Test(json, errors_name_the_place) {
    static const char *const cases[][2] = {
        {"", "line 1, column 1: expected a value, found the end"},
        {"[1,\n  2,]", "line 2, column 5: expected a value, found ']'"},
        {"[1 2]", "line 1, column 4: expected ',' or ']', found '2'"},
        {"{\"a\":1,}", "line 1, column 8: expected a name in double quotes, found '}'"},
        {"{\"a\" 1}", "line 1, column 6: expected ':', found '1'"},
        {"{\"a\":1 \"b\":2}", "line 1, column 8: expected ',' or '}', found '\"'"},
        {"{a:1}", "line 1, column 2: expected a name in double quotes, found 'a'"},
        {"1 2", "line 1, column 3: expected nothing after the value, found '2'"},
        {"01", "line 1, column 2: expected nothing after the value, found '1'"},
        {"-", "line 1, column 2: expected a digit, found the end"},
        {"+1", "line 1, column 1: expected a value, found '+'"},
        {".5", "line 1, column 1: expected a value, found '.'"},
        {"1.", "line 1, column 3: expected a digit, found the end"},
        {"1.e5", "line 1, column 3: expected a digit, found 'e'"},
        {"1e", "line 1, column 3: expected a digit, found the end"},
        {"-NaN", "line 1, column 2: expected a digit, found 'N'"},
        {"tru", "line 1, column 1: expected a value, found 't'"},
        {"truex", "line 1, column 5: expected nothing after the value, found 'x'"},
        {"'a'", "line 1, column 1: expected a value, found '''"},
        {"\"abc", "line 1, column 5: expected '\"' after a string, found the end"},
        {"\"a\\", "line 1, column 3: expected an escape such as \\n or \\u00e9, found '\\'"},
        {"\"\\x41\"", "line 1, column 2: expected an escape such as \\n or \\u00e9, found '\\'"},
        {"\"\\u12G4\"", "line 1, column 2: expected an escape such as \\n or \\u00e9, found '\\'"},
        {"\"a\tb\"",
         "line 1, column 3: expected an escape for this control character, found '\\x09'"},
        {"\"\xC3(\"", "line 1, column 2: expected UTF-8, found '\\xC3'"},
        {"[\xFF]", "line 1, column 2: expected a value, found '\\xFF'"},
        {"/* c */ 1", "line 1, column 1: expected a value, found '/'"},
        {"[1]]", "line 1, column 4: expected nothing after the value, found ']'"}};
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error;
        try_parse(arena, cases[i][0], strlen(cases[i][0]), &error);
        cr_assert_eq(error.status, STATUS_INPUT, "%s", cases[i][0]);
        cr_assert_eq(strncmp(error.text, "T: ", 3), 0);
        cr_assert_str_eq(error.text + 3, cases[i][1], "%s: %s", cases[i][0], error.text);
    }
    Error error;
    try_parse(arena, "\"\\\0\"", 4, &error);
    cr_assert_str_eq(error.text, "T: line 1, column 2: expected an escape such as \\n or \\u00e9, "
                                 "found '\\'");
    arena_free(arena);
}

/* What the statement fails with. */
#define SAYS(statement, sentence)                                                                  \
    do {                                                                                           \
        Error error_;                                                                              \
        ATTEMPT(&error_, (void)(statement));                                                       \
        cr_assert_eq(error_.status, STATUS_INPUT);                                                 \
        cr_assert_str_eq(error_.text, sentence);                                                   \
    } while (0)

Test(json, settings_with_a_default_and_a_sentence) {
    Arena *arena = arena_new();
    static const JsonName acts[] = {{"relu", 3}, {"gelu", 5}, {"silu", 7}, {NULL, 0}};
    const Json *v =
        parse(arena, "{\"n\": 12.0, \"eps\": 1e-5, \"yes\": true, \"no\": false, \"none\": null, "
                     "\"act\": \"gelu\", \"list\": [], \"nul\": \"a\\u0000b\", \"big\": 1e400, "
                     "\"in\": {\"n\": -1, \"x\": NaN}}");
    const Json *in = json_member(v, "in", JSON_OBJECT);
    cr_assert_eq(json_size(v, "n", 7, 12, 12), 12);
    cr_assert_eq(json_size(v, "m", 7, 1, 5), 7, "a default is not judged");
    cr_assert_eq(json_size(NULL, "n", 7, 1, 5), 7);
    SAYS(json_size(v, "n", 7, 1, 11), "T: 'n': expected a whole number from 1 to 11, found 12.0");
    SAYS(json_size(v, "n", 7, 13, 20), "T: 'n': expected a whole number from 13 to 20, found 12.0");
    SAYS(json_size(v, "none", 7, 0, 9),
         "T: 'none': expected a whole number from 0 to 9, found null");
    SAYS(json_size(in, "n", 7, 0, 9), "T: in: 'n': expected a whole number from 0 to 9, found -1");
    cr_assert_eq(json_number(v, "eps", 1, 0, 1), 1e-5);
    cr_assert_eq(json_number(v, "m", 1, 0, 0), 1);
    SAYS(json_number(v, "n", 1, 0, 1), "T: 'n': expected a number from 0 to 1, found 12.0");
    SAYS(json_number(v, "act", 1, 0, 1), "T: 'act': expected a number from 0 to 1, found 'gelu'");
    SAYS(json_number(v, "none", 1, 0, 1), "T: 'none': expected a number from 0 to 1, found null");
    SAYS(json_number(v, "big", 1, 0, 1e30),
         "T: 'big': expected a number from 0 to 1e+30, found 1e400");
    SAYS(json_number(in, "x", 1, -1, 1), "T: in: 'x': expected a number from -1 to 1, found NaN");
    cr_assert(json_bool(v, "yes", false) && !json_bool(v, "no", true));
    cr_assert(json_bool(v, "none", true) && !json_bool(v, "m", false));
    SAYS(json_bool(v, "list", false), "T: 'list': expected true or false, found an array");
    cr_assert_str_eq(json_text(v, "m", json_text(v, "act", NULL)), "gelu");
    cr_assert_null(json_text(v, "none", NULL));
    SAYS(json_text(v, "yes", ""), "T: 'yes': expected a string, found true");
    SAYS(json_text(v, "nul", ""), "T: 'nul': expected a string without U+0000, found 'a'");
    cr_assert_eq(json_choice(v, "act", -1, acts), 5);
    cr_assert_eq(json_choice(v, "none", -1, acts), -1);
    SAYS(json_choice(v, "n", -1, acts), "T: 'n': expected relu, gelu or silu, found 12.0");
    SAYS(json_choice(v, "nul", -1, acts), "T: 'nul': expected relu, gelu or silu, found 'a'");
    cr_assert_null(json_member(v, "none", JSON_ARRAY));
    cr_assert_not_null(json_need(v, "list", JSON_ARRAY));
    SAYS(json_member(v, "list", JSON_OBJECT), "T: 'list': expected an object, found an array");
    SAYS(json_need(v, "none", JSON_ARRAY), "T: 'none': expected an array, found null");
    SAYS(json_need(in, "m", JSON_STRING), "T: in: 'm': expected a string, found nothing");
    arena_free(arena);
}

static void write_file(const char *path, const char *text, size_t length) {
    unlink(path);
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f);
    fwrite(text, 1, length, f);
    fclose(f);
}

static char *file_new(void) {
    static char path[] = "/tmp/refsae-json-XXXXXX";
    int file = mkstemp(path);
    cr_assert(file >= 0);
    close(file);
    return path;
}

Test(json, lines_one_by_one) {
    Arena *arena = arena_new();
    static const char text[] = "\xEF\xBB\xBF\n \r\n{\"a\": 1}\r\n\t\n\"b\"\n{\"a\" 2}\n[3]";
    char *path = file_new();
    write_file(path, text, strlen(text));
    JsonLines lines = json_lines(arena, path);
    lines.name = "F";
    cr_assert_eq(json_double(json_get(json_line(arena, &lines), "a")), 1);
    cr_assert_eq(lines.line, 3);
    SAYS(json_line(arena, &lines), "F:5: expected an object");
    cr_assert_eq(lines.line, 5);
    SAYS(json_line(arena, &lines), "F:6: line 1, column 6: expected ':', found '2'");
    SAYS(json_line(arena, &lines),
         "F:7: is a list: expected JSON lines, an object on each"); /* a torn line may be skipped */
    cr_assert_eq(lines.line, 7);
    cr_assert_null(json_line(arena, &lines));
    arena_free(arena);
    unlink(path);
}

Test(json, depth_is_limited) {
    Arena *arena = arena_new();
    for (int object = 0; object < 2; object++) {
        for (size_t depth = 255; depth < 1000000;
             depth = depth < 258 ? depth + 1 : 999999 + depth) {
            Error error;
            const char *open = object ? "{\"\":" : "[";
            size_t step = strlen(open), length = depth * (step + 1) + 1;
            char *text = malloc(length);
            for (size_t i = 0; i < depth; i++) {
                memcpy(text + i * step, open, step);
                text[depth * step + 1 + i] = object ? '}' : ']';
            }
            text[depth * step] = '1';
            try_parse(arena, text, length, &error);
            cr_assert_eq(error.status, depth <= 256 ? STATUS_OK : STATUS_INPUT, "%zu", depth);
            cr_assert(depth <= 256 || strstr(error.text, "at most 256 levels") != NULL);
            free(text);
        }
    }
    arena_free(arena);
}

static void format_float(char text[JSON_NUMBER_SIZE], float value) {
    FILE *stream = fmemopen(text, JSON_NUMBER_SIZE, "w");
    JsonOut json = json_out_start(stream, 0);
    json_out(&json, "%f", (double)value);
    fclose(stream);
}

Test(json, numbers_read_back_to_the_bit) {
    Random random = random_start(3, RANDOM_TEST);
    static const double known[] = {
        0.1,  1e22,   5e-324, 1.7976931348623157e308, 2.2250738585072014e-308, 123456789012345680.0,
        -0.0, 1.0 / 3};
    static const char *const texts[] = {"0.1",
                                        "1e+22",
                                        "5e-324",
                                        "1.7976931348623157e+308",
                                        "2.2250738585072014e-308",
                                        "1.2345678901234568e+17",
                                        "-0",
                                        "0.3333333333333333"};
    char text[JSON_NUMBER_SIZE];
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        json_format_double(text, known[i]);
        cr_assert_str_eq(text, texts[i]);
    }
    format_float(text, 0.1F);
    cr_assert_str_eq(text, "0.1");
    format_float(text, 1e-45F);
    cr_assert_str_eq(text, "1e-45");
    format_float(text, 16777216.0F);
    cr_assert_str_eq(text, "16777216");
    json_format_double(text, (double)NAN);
    cr_assert_str_eq(text, "null");
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = (uint64_t)random_word(&random) << 32 | random_word(&random);
        double d;
        float f;
        memcpy(&d, &bits, 8);
        memcpy(&f, &bits, 4);
        if (isfinite(d)) {
            json_format_double(text, d);
            double back = strtod(text, NULL);
            cr_assert_arr_eq(&back, &d, 8);
        }
        if (isfinite(f)) {
            format_float(text, f);
            float back = strtof(text, NULL);
            cr_assert_arr_eq(&back, &f, 4);
        }
    }
}

Test(json, written_strings) {
    Arena *arena = arena_new();
    MemoryStream *memory = memory_open(arena);
    json_write_string(memory->stream, "a\"\\\n\t\x01\0é\xFF😀\x7F", 15);
    cr_assert_str_eq(memory_text(memory), "\"a\\\"\\\\\\n\\t\\u0001\\u0000é\xEF\xBF\xBD😀\x7F\"");
    arena_free(arena);
}

/* ---- arrays ---- */

/* A new file each time: file systems that truncate a file wait for the disk. */
/* Opens the file and reads every element; their number. */
static size_t read_elements(Arena *arena, const char *path) {
    JsonArrayFile file;
    json_array_open(&file, arena, path);
    for (size_t i = 0; i < file.count; i++) {
        Arena *element = arena_new();
        json_array_read(&file, i, element);
        arena_free(element);
    }
    return file.count;
}

/* The number of elements, or -1 and why. */
static long read_all(const char *path, Error *error) {
    Arena *arena = arena_new();
    size_t *count = arena_alloc(arena, 1, sizeof *count);
    ATTEMPT(error, *count = read_elements(arena, path));
    cr_assert((error->status != STATUS_OK) == (error->text[0] != 0));
    long result = error->status == STATUS_OK ? (long)*count : -1;
    arena_free(arena);
    return result;
}

Test(json, array_by_element) {
    char *path = file_new();
    Error error;
    JsonArrayFile file;
    Arena *arena = arena_new(), *element = arena_new();
    /* Larger than the buffer, with brackets and escapes inside strings. */
    FILE *f = fopen(path, "wb");
    fputs("\xEF\xBB\xBF [", f);
    for (int i = 0; i < 3000; i++) {
        fprintf(f, "%s{\"id\": %d, \"text\": \"]}\\\\\\\",[%*s\"}", i == 0 ? "" : " ,\n", i,
                i % 100, "");
    }
    fprintf(f, ", 1,\"s\" , [ ] ,null\n, {\"big\": \"%0200000d\"}\n]\n", 7);
    fclose(f);
    json_array_open(&file, arena, path);
    cr_assert_eq(file.count, 3005);
    for (size_t i = 3005; i-- > 0;) {
        arena_reset(element);
        const Json *value = json_array_read(&file, i, element);
        if (i < 3000) {
            cr_assert_eq(json_double(json_get(value, "id")), (double)i);
        }
    }
    cr_assert_eq(json_get(json_array_read(&file, 3004, element), "big")->length, 200000);
    ATTEMPT(&error, json_array_read(&file, 3005, element));
    cr_assert_eq(error.status, STATUS_INPUT);
    arena_free(element);
    arena_free(arena);
    unlink(path);
}

Test(json, array_errors_and_lines) {
    static const struct {
        const char *text, *message; /* message: NULL, it is good */
        long count;
    } cases[] = {{"[]", NULL, 0},
                 {" [ ] ", NULL, 0},
                 {"[1]", NULL, 1},
                 {"{\"a\":1}\n{\"a\":2}\n\n{\"a\":3}", NULL, 3},
                 {"{}{}", NULL, 2},
                 {"", "byte 0, in element 0: the file ends too early", -1},
                 {"[", "byte 1, in element 0: the file ends too early", -1},
                 {"[1,", "byte 3, in element 1: the file ends too early", -1},
                 {"[\"a", "byte 3, in element 0: the file ends too early", -1},
                 {"[\"a\\", "byte 4, in element 0: the file ends too early", -1},
                 {"{\"a\":[1}", "byte 7, in element 0: a bracket that closes nothing", -1},
                 {"[1,]", "byte 3, in element 1: expected a value", -1},
                 {"[,1]", "byte 1, in element 0: expected a value", -1},
                 {"[1 2]", "byte 3, in element 0: expected ',' or ']'", -1},
                 {"[[1}]", "byte 3, in element 0: a bracket that closes nothing", -1},
                 {"[1]x", "byte 3, in element 1: expected nothing after the array", -1},
                 {"hello", "byte 0, in element 0: expected '[', the begin of an array", -1},
                 {"[1, tru]", ": element 1 (byte 4): line 1, column 1: expected a value", -1},
                 {"[{\"a\":}]", ": element 0 (byte 1): line 1, column 6: expected a value", -1}};
    char *path = file_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error;
        write_file(path, cases[i].text, strlen(cases[i].text));
        cr_assert_eq(read_all(path, &error), cases[i].count, "%s: %s", cases[i].text, error.text);
        cr_assert(cases[i].message == NULL || strstr(error.text, cases[i].message) != NULL,
                  "%s: %s", cases[i].text, error.text);
    }
    Error error;
    cr_assert_eq(read_all("/nonexistent", &error), -1);
    cr_assert_eq(read_all("/tmp", &error), -1);
    char *deep = malloc(1000000);
    memset(deep, '[', 1000000);
    write_file(path, deep, 1000000);
    cr_assert_eq(read_all(path, &error), -1);
    cr_assert(strstr(error.text, "nesting of more than 256 levels") != NULL);
    free(deep);
    unlink(path);
}

/* Mutations of an array: reading it whole and reading it by element must agree on whether it is
 * JSON, and neither may read outside its memory (the sanitizers watch). */
Test(json, mutated_arrays_read_alike) {
    static const char seed[] =
        "[{\"id\":\"a1\",\"n\":[1,-2.5e-3,null,true],\"t\":\"x\\n\\u00e9]}\"} , [ ],\n"
        "\"s\\\\\",{\"k\":{\"m\":[[0.5]]}},false,NaN,-Infinity,12 ]";
    static const char letters[] = "[]{},:\"\\ \n0-1.e+tnuNx\x01\xC3\xA9";
    Random random = random_start(4, RANDOM_TEST);
    char *path = file_new();
    Arena *arena = arena_new();
    int good = 0;
    for (int i = 0; i < 6000; i++) {
        char text[sizeof seed + 8];
        size_t length = sizeof seed - 1;
        memcpy(text, seed, length);
        for (uint64_t n = 1 + random_below(&random, 3); n-- > 0;) {
            size_t at = 1 + (size_t)random_below(&random, length - 1);
            switch (random_below(&random, 4)) {
            case 0:
                text[at] = letters[random_below(&random, sizeof letters - 1)];
                break;
            case 1:
                memmove(text + at, text + at + 1, length - at - 1);
                length--;
                break;
            case 2:
                memmove(text + at + 1, text + at, length - at);
                text[at] = letters[random_below(&random, sizeof letters - 1)];
                length++;
                break;
            default:
                length = random_below(&random, 8) == 0 ? at + 1 : length;
            }
        }
        Error error, array_error;
        arena_reset(arena);
        const Json *value = try_parse(arena, text, length, &error);
        write_file(path, text, length);
        long count = read_all(path, &array_error);
        cr_assert_eq(value != NULL, count >= 0, "%.*s\n%s\n%s", (int)length, text, error.text,
                     array_error.text);
        cr_assert(count < 0 || (size_t)count == value->length, "%.*s", (int)length, text);
        good += count >= 0;
    }
    cr_assert(good > 300, "mutations that stay JSON are tried too: %d", good);
    arena_free(arena);
    unlink(path);
}

Test(json, csv_is_read) {
    static const char text[] = "step,loss,lr\r\n1,2.5,x\r\n\r\n2,,3\n1,2";
    Arena *arena = arena_new();
    size_t rows = 0;
    double *step = csv_numbers(arena, text, NULL, &rows),
           *lr = csv_numbers(arena, text, "lr", &rows),
           *loss = csv_numbers(arena, text, "loss", &rows);
    cr_assert_eq(rows, 3);
    cr_assert(step[0] == 1 && step[1] == 2 && step[2] == 1);
    cr_assert(loss[0] == 2.5 && isnan(loss[1]) && loss[2] == 2);
    cr_assert(isnan(lr[0]) && lr[1] == 3 && isnan(lr[2]), "no such cell");
    cr_assert_null(csv_numbers(arena, text, "l", &rows));
    cr_assert_null(csv_numbers(arena, "", "l", &rows));
    arena_free(arena);
}

Test(json, csv_is_written) {
    Arena *arena = arena_new();
    MemoryStream *m = memory_open(arena);
    Csv csv = csv_start(m->stream, "a,b,c,d");
    csv_double(&csv, -9007199254740992);
    csv_double(&csv, 0.1);
    csv_double(&csv, (double)INFINITY);
    csv_text(&csv, "plain");
    csv_end(&csv);
    csv_text(&csv, "");
    csv_text(&csv, "a,\"b\"\n");
    csv_double(&csv, (double)NAN);
    csv_double(&csv, -(double)INFINITY);
    csv_end(&csv);
    cr_assert_str_eq(memory_text(m),
                     "a,b,c,d\n-9007199254740992,0.1,inf,plain\n,\"a,\"\"b\"\"\n\",,-inf\n");
    arena_free(arena);
}

Test(json, is_written) {
    Arena *arena = arena_new();
    MemoryStream *m = memory_open(arena);
    for (int pretty = 0; pretty < 3; pretty += 2) {
        JsonOut json = json_out_start(m->stream, pretty);
        json_out(&json, "{ %s %s list [ { n %d %s %g", "a\"", "x\n", -3, "d", 0.1);
        json_out(&json, "} [ ] %zu %s ]", (size_t)7, "{ %d");
        json_out(&json, "f %f nan %g yes true none null", (double)0.1F, (double)NAN);
        json_out_bytes(&json, "bytes", "a\0b", 3);
        json_out(&json, "}");
    }
    cr_assert_str_eq(
        memory_text(m),
        "{\"a\\\"\": \"x\\n\", \"list\": [{\"n\": -3, \"d\": 0.1}, [], 7, \"{ %d\"], \"f\": 0.1, "
        "\"nan\": "
        "null, \"yes\": true, \"none\": null, \"bytes\": \"a\\u0000b\"}\n"
        "{\n  \"a\\\"\": \"x\\n\",\n  \"list\": [\n    {\"n\": -3, \"d\": 0.1},\n    [],\n    7,\n "
        "   "
        "\"{ %d\"\n  ],\n  \"f\": 0.1,\n  \"nan\": null,\n  \"yes\": true,\n  \"none\": null,\n  "
        "\"bytes\": \"a\\u0000b\"\n}\n");
    arena_free(arena);
}

/* What was read is written as it was, but for numbers that have a shorter form. */
Test(json, is_written_again) {
    static const char text[] = "{\"a\": [1, 0.5, \"x\\u0000\", [], {}], \"b\": {\"c\": null, "
                               "\"d\": false, \"e\": true}, \"f\": -12345678901}\n";
    Arena *arena = arena_new();
    MemoryStream *m = memory_open(arena);
    JsonOut json = json_out_start(m->stream, 0);
    json_out_value(&json, NULL, parse(arena, text));
    json_out_value(&json, NULL, parse(arena, "[1.0, 5e-1]"));
    cr_assert_str_eq(memory_text(m), arena_format(arena, "%s[1, 0.5]\n", text));
    for (int depth = 62; depth < 65; depth++) {
        char deep[160];
        memset(deep, '[', (size_t)depth);
        memset(deep + depth, ']', (size_t)depth);
        deep[2 * depth] = '\0';
        Error error;
        const Json *value = parse(arena, deep);
        json = json_out_start(m->stream, 0);
        ATTEMPT(&error, json_out_value(&json, NULL, value));
        cr_assert_eq(error.status, depth < 64 ? STATUS_OK : STATUS_INPUT, "%d", depth);
    }
    arena_free(arena);
}

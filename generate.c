/* generate.c: generation and tokenizing as commands. */
#include "generate.h"

#include <string.h>

/* ---- generate ---- */

void generate_command(const Compute *compute, const Prompt *prompt, const GenerateOptions *options,
                      bool json, FILE *out) {
    Arena *arena = arena_new();
    Vlm vlm;
    prompt_open(&vlm, arena, compute, prompt);
    Sequence sequence = prompt_sequence(&vlm, prompt, arena);
    float *images = NULL;
    if (prompt->image != NULL) {
        images = arena_floats(arena, sequence.n_image, vlm.llm.config.d_model);
        vlm_image(&vlm, prompt->image, NULL);
        adapter_forward(compute, &vlm.adapter, vlm.features, images, sequence.n_image);
    }
    Tokens tokens = vlm_generate(&vlm, &sequence, images, options, arena);
    size_t length;
    char *text = tokenizer_decode(vlm.tokenizer, tokens.id, tokens.count, true, arena, &length);
    if (json) {
        JsonOut j = json_out_start(out, 0);
        json_out_object(&j, NULL);
        json_out_bytes(&j, "text", text, length);
        json_out_array(&j, "ids");
        for (size_t i = 0; i < tokens.count; i++) {
            json_out_int(&j, NULL, tokens.id[i]);
        }
        json_out_end(&j);
        json_out_end(&j);
    } else {
        fwrite(text, 1, length, out);
        fputc('\n', out);
    }
    arena_free(arena);
}

/* ---- tokenize ---- */

/* All of a stream (line false) or its next line without the newline. *end: nothing was left. */
static char *read_input(Arena *arena, FILE *in, bool line, size_t *length, bool *end) {
    size_t capacity = 0;
    int c = 0;
    char *text = arena_grow(arena, NULL, &capacity, 1, 1);
    *length = 0;
    while ((c = getc_unlocked(in)) != EOF && !(line && c == '\n')) {
        text = arena_grow(arena, text, &capacity, *length + 2, 1);
        text[(*length)++] = (char)c;
    }
    *end = c == EOF && *length == 0;
    if (ferror(in)) {
        fail(STATUS_RESOURCE, "standard input cannot be read");
    }
    return text;
}

/* Separated by a space, or by a comma and a space. fprintf would take a third of the whole
 * tokenizing. */
static void print_ids(FILE *out, const int32_t *ids, size_t count, bool comma) {
    char buffer[4096];
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        char digits[10]; /* from the last to the first */
        size_t n = 0;
        for (uint32_t id = (uint32_t)ids[i]; n == 0 || id > 0; id /= 10) {
            digits[n++] = (char)('0' + id % 10);
        }
        if (i > 0 && comma) {
            buffer[used++] = ',';
        }
        if (i > 0) {
            buffer[used++] = ' ';
        }
        while (n > 0) {
            buffer[used++] = digits[--n];
        }
        if (used + 12 > sizeof buffer || i + 1 == count) {
            fwrite(buffer, 1, used, out);
            used = 0;
        }
    }
}

/* Ids in any of the forms that people paste: separated by white space, commas, brackets. Unlike
 * `tokenizers`, which passes over ids from `size` on. */
static int32_t *ids_from_text(Arena *arena, const char *text, size_t length, int32_t size,
                              size_t *count) {
    int32_t *ids = arena_alloc(arena, length / 2 + 1, sizeof(int32_t));
    *count = 0;
    for (size_t i = 0; i < length;) {
        uint64_t id = 0;
        size_t digits = 0;
        for (; i < length && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
            id = id <= INT32_MAX ? id * 10 + (uint64_t)(text[i] - '0') : id;
        }
        if (digits > 0 && id >= (uint64_t)size) {
            fail(STATUS_INPUT, "standard input: the tokenizer has no id %.*s", (int)digits,
                 text + i - digits);
        }
        if (digits > 0) {
            ids[(*count)++] = (int32_t)id;
        } else if (text[i] == '\0' || strchr(" \t\r\n,[]", text[i]) == NULL) {
            fail(STATUS_INPUT, "standard input: expected token ids");
        } else {
            i++;
        }
    }
    return ids;
}

static void tokenize_unit(const Tokenizer *tokenizer, const char *text, size_t length,
                          const TokenizeOptions *o, size_t number, FILE *out, Arena *arena) {
    size_t count, text_length;
    if (o->jsonl) {
        char name[48];
        snprintf(name, sizeof name, "standard input, line %zu", number);
        const Json *value = json_parse(arena, text, length, name);
        if (!json_is(value, o->decode ? JSON_ARRAY : JSON_STRING)) {
            fail(STATUS_INPUT, "%s: expected a JSON %s", name,
                 o->decode ? "array of ids" : "string");
        }
        text = o->decode ? text : value->text;
        length = o->decode ? length : value->length;
    }
    if (!o->decode) {
        Tokens tokens = tokenizer_encode(tokenizer, text, length, o->special, arena);
        fputs(o->jsonl ? "[" : "", out);
        print_ids(out, tokens.id, tokens.count, o->jsonl);
        fputs(o->jsonl ? "]\n" : "\n", out);
        return;
    }
    int32_t *ids = ids_from_text(arena, text, length, tokenizer_size(tokenizer), &count);
    char *decoded = tokenizer_decode(tokenizer, ids, count, !o->special, arena, &text_length);
    if (o->jsonl) {
        json_write_string(out, decoded, text_length);
        fputc('\n', out);
    } else {
        fwrite(decoded, 1, text_length, out);
    }
}

void tokenize_command(const char *path, const TokenizeOptions *o, FILE *in, FILE *out) {
    Arena *arena = arena_new(), *unit = arena_within(arena);
    Tokenizer *tokenizer = tokenizer_open(arena, path);
    bool end = false;
    for (size_t number = 1; !end && (o->jsonl || number == 1); number++) {
        arena_reset(unit);
        size_t length;
        char *text = read_input(unit, in, o->jsonl, &length, &end);
        bool blank = length == 0 || strspn(text, " \t\r") >= length;
        if (!(o->jsonl && (end || blank))) {
            tokenize_unit(tokenizer, text, length, o, number, out, unit);
        }
    }
    arena_free(arena);
}

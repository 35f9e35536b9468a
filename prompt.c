/* prompt.c: from the words of a command line to token rows; generation and tokenizing as commands.
 */
#include "prompt.h"

#include <stdlib.h>
#include <string.h>

/* ---- chat ---- */

static void trim_turn(Turn *turn) {
    while (turn->length > 0 && strchr(" \t\r\n\f\v", turn->text[0]) != NULL &&
           turn->text[0] != '\0') {
        turn->text++;
        turn->length--;
    }
    while (turn->length > 0 && turn->text[turn->length - 1] != '\0' &&
           strchr(" \t\r\n\f\v", turn->text[turn->length - 1]) != NULL) {
        turn->length--;
    }
}

Turn *chat_turns(Arena *arena, const char *prompt, bool trim, size_t *count) {
    Conversation conversation = {.turns = arena_alloc(arena, 1, sizeof(Turn)), .count = 1};
    conversation.turns[0] = (Turn){prompt, strlen(prompt), false};
    const Json *volatile list = NULL;
    Error not_json; /* then it is what the user says */
    ATTEMPT(&not_json,
            list = prompt[0] == '[' ? json_parse(arena, prompt, strlen(prompt), "--prompt") : NULL);
    if (not_json.status == STATUS_OK && json_is(list, JSON_ARRAY) &&
        json_is(list->child, JSON_OBJECT)) {
        conversation = (Conversation){.id = ""};
        conversation_parse_turns(&conversation, list, "--prompt", arena);
    }
    for (size_t i = 0; trim && i < conversation.count; i++) {
        trim_turn(&conversation.turns[i]);
        if (conversation.turns[i].model != (i % 2 == 1)) {
            fail(STATUS_INPUT,
                 "--prompt: conversation roles must alternate user/model/user/model/...");
        }
    }
    *count = conversation.count;
    return conversation.turns;
}

static void chat_place_image(Turn *turns, size_t count, Arena *arena) {
    Turn *first = NULL;
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k + 7 <= turns[i].length; k++) {
            if (memcmp(turns[i].text + k, "<image>", 7) == 0) {
                return;
            }
        }
        if (first == NULL && !turns[i].model) {
            first = &turns[i];
        }
    }
    if (first != NULL) {
        char *text = arena_alloc(arena, first->length + 9, 1);
        memcpy(text, "<image>\n", 8);
        memcpy(text + 8, first->text, first->length);
        first->text = text;
        first->length += 8;
    }
}

/* ---- sequences ---- */

int32_t *token_ids_parse(Arena *arena, const char *text, const char *option, size_t *count) {
    int32_t *ids = arena_alloc(arena, strlen(text) / 2 + 1, sizeof(int32_t));
    *count = 0;
    for (const char *p = text;; p++) {
        char *end;
        long long id = *p >= '0' && *p <= '9' ? strtoll(p, &end, 10) : -1;
        if (id < 0 || id > INT32_MAX || (*end != ',' && *end != '\0')) {
            fail(STATUS_INPUT, "%s %s: expected token ids separated by commas", option, text);
        }
        ids[(*count)++] = (int32_t)id;
        if (*end == '\0') {
            return ids;
        }
        p = end;
    }
}

/* Text as it stands, with what the post-processor adds, or with --bos exactly that. */
static Sequence prompt_text(const Vlm *vlm, const Prompt *o, const char *text, Arena *arena) {
    if (o->bos == 1 && vlm->llm.config.bos < 0) {
        fail(STATUS_INPUT, "%s: config.json names no bos_token_id", o->llm);
    }
    Tokens tokens = tokenizer_encode(vlm->tokenizer, text, strlen(text), o->bos < 0, arena);
    size_t lead = o->bos == 1 ? 1 : 0;
    Sequence sequence = {.rows = tokens.count + lead};
    sequence.ids = arena_alloc(arena, sequence.rows + 1, sizeof(int32_t));
    sequence.ids[0] = vlm->llm.config.bos;
    for (size_t i = 0; i < tokens.count; i++) {
        sequence.ids[lead + i] = tokens.id[i];
    }
    if (sequence.rows == 0) {
        fail(STATUS_INPUT, "the text has no token");
    }
    return sequence;
}

Sequence prompt_sequence(const Vlm *vlm, const Prompt *o, Arena *arena) {
    if (o->ids != NULL) {
        Sequence sequence = {0};
        sequence.ids = token_ids_parse(arena, o->ids, "--ids", &sequence.rows);
        return sequence;
    }
    if (o->text != NULL || (o->image == NULL && !o->chat)) {
        return prompt_text(vlm, o, o->text != NULL ? o->text : o->prompt, arena);
    }
    size_t count;
    Turn *turns = chat_turns(arena, o->prompt, o->chat, &count);
    if (o->image != NULL) {
        chat_place_image(turns, count, arena);
    }
    return vlm_sequence(vlm, turns, count, o->image != NULL, 0, arena);
}

void prompt_open(Vlm *vlm, Arena *arena, const Compute *compute, const Prompt *o) {
    bool image = o->image != NULL;
    if ((o->ids != NULL) + (o->text != NULL) + (o->prompt != NULL) != 1) {
        fail(STATUS_INPUT, "--llm needs one of --ids, --text and --prompt");
    }
    if (image && (o->prompt == NULL || o->vision == NULL || o->adapter == NULL)) {
        fail(STATUS_INPUT, "--llm with --image needs --prompt, --vision and --adapter");
    }
    VlmPaths paths = {o->llm, image ? o->vision : NULL, image ? o->adapter : NULL, o->ids != NULL};
    vlm_open(vlm, arena, compute, &paths);
    vlm->image_text = o->image_text;
}

/* ---- generate ---- */

static void generate_print(const Vlm *vlm, const Tokens *tokens, bool json, FILE *out) {
    size_t length;
    char *text =
        tokenizer_decode(vlm->tokenizer, tokens->id, tokens->count, true, vlm->arena, &length);
    if (json) {
        JsonOut j = json_out_start(out, 0);
        json_out_object(&j, NULL);
        json_out_bytes(&j, "text", text, length);
        json_out_array(&j, "ids");
        for (size_t i = 0; i < tokens->count; i++) {
            json_out_int(&j, NULL, tokens->id[i]);
        }
        json_out_end(&j);
        json_out_end(&j);
    } else {
        fwrite(text, 1, length, out);
        fputc('\n', out);
    }
}

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
    generate_print(&vlm, &tokens, json, out);
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
static void write_ids(FILE *out, const int32_t *ids, size_t count, bool comma) {
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

static void encode_line(const Tokenizer *tokenizer, const char *text, size_t length, bool special,
                        bool jsonl, FILE *out, Arena *arena) {
    Tokens tokens = tokenizer_encode(tokenizer, text, length, special, arena);
    fputs(jsonl ? "[" : "", out);
    write_ids(out, tokens.id, tokens.count, jsonl);
    fputs(jsonl ? "]\n" : "\n", out);
}

/* Ids in any of the forms that people paste: separated by white space, commas, brackets. */
static int32_t *ids_from_text(Arena *arena, const char *text, size_t length, size_t *count) {
    int32_t *ids = arena_alloc(arena, length / 2 + 1, sizeof(int32_t));
    *count = 0;
    for (size_t i = 0; i < length;) {
        uint64_t id = 0;
        size_t digits = 0;
        for (; i < length && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
            id = id <= INT32_MAX ? id * 10 + (uint64_t)(text[i] - '0') : id;
        }
        if (digits > 0 && id <= INT32_MAX) {
            ids[(*count)++] = (int32_t)id;
        } else if (digits > 0 || text[i] == '\0' || strchr(" \t\r\n,[]", text[i]) == NULL) {
            fail(STATUS_INPUT, "standard input: expected token ids");
        } else {
            i++;
        }
    }
    return ids;
}

static void tokenize_unit(const Tokenizer *tokenizer, const char *text, size_t length,
                          const TokenizeOptions *o, size_t number, FILE *out, Arena *arena) {
    const Json *value = NULL;
    if (!o->jsonl && !o->decode) {
        encode_line(tokenizer, text, length, o->special, false, out, arena);
        return;
    }
    if (o->jsonl) {
        char name[48];
        snprintf(name, sizeof name, "standard input, line %zu", number);
        value = json_parse(arena, text, length, name);
        if (!json_is(value, o->decode ? JSON_ARRAY : JSON_STRING)) {
            fail(STATUS_INPUT, "%s: expected a JSON %s", name,
                 o->decode ? "array of ids" : "string");
        }
    }
    if (!o->decode) {
        encode_line(tokenizer, value->text, value->length, o->special, true, out, arena);
        return;
    }
    size_t count, text_length;
    int32_t *ids = ids_from_text(arena, text, length, &count);
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

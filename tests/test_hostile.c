/* Hostile files (hostile.txt): each is a valid file with something done to it, or a text, and is
 * refused with exactly its sentence. */
#include "fuzz/targets.h"
#include <criterion/criterion.h>

#include <sys/wait.h>

typedef struct Bytes {
    unsigned char *data;
    size_t size;
} Bytes;

static Bytes join(Arena *arena, Bytes a, Bytes b, Bytes c) {
    Bytes all = {arena_alloc(arena, a.size + b.size + c.size, 1), a.size + b.size + c.size};
    memcpy(all.data, a.data, a.size);
    memcpy(all.data + a.size, b.data, b.size);
    memcpy(all.data + a.size + b.size, c.data, c.size);
    return all;
}

/* \n, \t, \\, \xNN, and \{N*TEXT}: TEXT N times. */
static Bytes unescape(Arena *arena, const char *text, size_t length) {
    Bytes out = {arena_alloc(arena, length + 1, 1), 0}, none = {out.data, 0};
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\\' && text[i + 1] == '{') {
            char *star;
            size_t times = strtoul(text + i + 2, &star, 10);
            const char *end = memchr(star, '}', length - (size_t)(star - text));
            Bytes part = unescape(arena, star + 1, (size_t)(end - star) - 1), many = none;
            many.data = arena_alloc(arena, times * part.size, 1);
            for (; times > 0; times--, many.size += part.size) {
                memcpy(many.data + many.size, part.data, part.size);
            }
            Bytes rest = unescape(arena, end + 1, length - (size_t)(end + 1 - text));
            return join(arena, out, many, rest);
        }
        if (c == '\\') {
            c = (unsigned char)text[++i];
            if (c == 'x') {
                char hex[3] = {text[i + 1], text[i + 2], 0};
                c = (unsigned char)strtoul(hex, NULL, 16);
                i += 2;
            } else {
                c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
            }
        }
        out.data[out.size++] = c;
    }
    return out;
}

/* Where the part begins; the test fails if it is not there. */
static size_t place_of(Bytes in, Bytes part, const char *row) {
    for (size_t i = 0; i + part.size <= in.size; i++) {
        if (memcmp(in.data + i, part.data, part.size) == 0) {
            return i;
        }
    }
    cr_assert_fail("not in the valid file: %s", row);
    return 0;
}

/* "OLD --> NEW", "#OFFSET --> NEW" (over what is there; from the end if negative), "... -->|": the
 * end of the file. */
static Bytes edit(Arena *arena, Bytes in, const char *rule, size_t length) {
    const char *arrow = strstr(rule, " -->");
    cr_assert(arrow != NULL && arrow < rule + length, "no rule: %s", rule);
    const char *to = arrow + (arrow[4] == ' ' ? 5 : 4);
    Bytes old = unescape(arena, rule, (size_t)(arrow - rule));
    Bytes new = unescape(arena, to, length - (size_t)(to - rule));
    size_t at;
    if (rule[0] == '#') {
        long offset = strtol(rule + 1, NULL, 10);
        at = offset < 0 ? in.size - (size_t)-offset : (size_t)offset;
        cr_assert(at <= in.size, "%s", rule);
        old.size = new.size < in.size - at ? new.size : in.size - at;
    } else {
        at = place_of(in, old, rule);
    }
    Bytes before = {in.data, at}, after = {in.data + at + old.size, in.size - at - old.size};
    return arrow[4] == '|' ? before : join(arena, before, new, after);
}

/* The file that a row describes: "= TEXT", or edits of the valid one with " && " between. */
static Bytes hostile(Arena *arena, Bytes valid, const char *rule) {
    if (rule[0] == '=') {
        return unescape(arena, rule + 2, strlen(rule + 2));
    }
    for (const char *next; rule != NULL; rule = next != NULL ? next + 4 : NULL) {
        next = strstr(rule, " && ");
        valid = edit(arena, valid, rule, next != NULL ? (size_t)(next - rule) : strlen(rule));
    }
    return valid;
}

/* The text without the folder that the input is in. */
static char *without_folder(Arena *arena, const char *text, const char *target) {
    MemoryStream *out = memory_open(arena);
    const char *folder = arena_format(arena, "%s/%s", targets_folder, target);
    for (const char *hit; (hit = strstr(text, folder)) != NULL;) {
        fwrite(text, 1, (size_t)(hit - text), out->stream);
        text = hit + strlen(folder) + (hit[strlen(folder)] == '/');
    }
    fputs(text, out->stream);
    return memory_text(out);
}

static const Target *target_of(const char *name) {
    for (size_t i = 0; i < TARGETS; i++) {
        if (strcmp(targets[i].name, name) == 0) {
            return &targets[i];
        }
    }
    cr_assert_fail("no target %s", name);
    return NULL;
}

/* What the program says of the file, for readers that only a command reaches. */
static Error command_read(Arena *arena, const char *command, Bytes bytes) {
    static const Target file = {.name = "command", .file = "input.json"};
    Error error = {.status = STATUS_OK};
    const char *path = target_write(&file, arena, bytes.data, bytes.size);
    FILE *said = popen(arena_format(arena, "%s %s%s --out %s/out 2>&1 >/dev/null",
                                    getenv("REFSAE") != NULL ? getenv("REFSAE") : "./refsae",
                                    command, path, targets_folder),
                       "r");
    char line[2048] = "";
    while (fgets(line, sizeof line, said) != NULL) {
        if (strncmp(line, "refsae: ", 8) == 0) {
            line[strcspn(line, "\n")] = 0;
            snprintf(error.text, sizeof error.text, "%.1000s", line + 8);
        }
    }
    error.status = (Status)WEXITSTATUS(pclose(said));
    return error;
}

/* "@ TARGET FILE" or "@ TARGET = TEXT" gives the valid file, "@ COMMAND ... OPTION FILE" a command
 * that is given the input last; then a rule, a tab and the sentence. */
Test(hostile, each_is_refused_with_its_sentence) {
    Arena *arena = arena_new(), *row = arena_within(arena);
    FILE *file = file_open(arena, "tests/hostile.txt");
    const Target *target = NULL;
    const char *command = NULL;
    char *line = NULL;
    size_t room = 0, rows = 0, wrong = 0;
    Bytes valid = {NULL, 0};
    targets_open();
    while (getline(&line, &room, file) > 0) {
        line[strcspn(line, "\n")] = 0;
        char *tab = strchr(line, '\t'), *name = line + 2, *rest = strchr(name, ' ');
        if (line[0] == '#' && tab == NULL) {
            continue;
        }
        if (line[0] == '@') {
            char *base = strrchr(line, ' ') + 1;
            command = strstr(line, " --") != NULL ? arena_copy(arena, name, strlen(name)) : NULL;
            rest[0] = 0;
            target = command == NULL ? target_of(name) : NULL;
            if (rest[1] == '=') {
                valid = unescape(arena, rest + 3, strlen(rest + 3));
            } else {
                FileMap map = file_map(arena, base);
                valid = (Bytes){
                    (unsigned char *)arena_copy(arena, (const char *)map.data, map.size), map.size};
            }
            if (command != NULL) {
                command = arena_copy(arena, command, (size_t)(base - name));
            }
            continue;
        }
        cr_assert_not_null(tab, "no sentence: %s", line);
        *tab = 0;
        arena_reset(row);
        Bytes bytes = hostile(row, valid, line);
        Error error = command != NULL ? command_read(row, command, bytes)
                                      : target_read(target, bytes.data, bytes.size);
        const char *says =
            without_folder(row, error.text, command != NULL ? "command" : target->name);
        Status expected = strncmp(tab + 1, "(3) ", 4) == 0 ? STATUS_RESOURCE : STATUS_INPUT;
        const char *sentence = tab + 1 + (expected == STATUS_RESOURCE ? 4 : 0);
        if (error.status != expected || strcmp(says, sentence) != 0) {
            fprintf(stderr, "%s\t%s%s\n", line, error.status == STATUS_INPUT ? "" : "(other) ",
                    says);
            wrong++;
        }
        rows++;
    }
    free(line);
    cr_assert_eq(wrong, 0, "%zu of %zu rows", wrong, rows);
    cr_assert(rows >= 400, "%zu rows", rows);
    arena_free(arena);
}

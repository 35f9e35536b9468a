/* Hostile files (hostile.txt): each is a valid file with something done to it, or a text, and is
 * refused with exactly its sentence; so is a command, "$ ARGUMENTS". The sentence "read" is that of
 * what is just not refused. */
#include "fuzz/targets.h"
#include <criterion/criterion.h>

#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

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

/* \n, \t, \\, \xNN, and \{N*TEXT\}: TEXT N times. */
static Bytes unescape(Arena *arena, const char *text, size_t length) {
    Bytes out = {arena_alloc(arena, length + 1, 1), 0}, none = {out.data, 0};
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\\' && text[i + 1] == '{') {
            char *star;
            size_t times = strtoul(text + i + 2, &star, 10);
            const char *end = strstr(star, "\\}");
            Bytes part = unescape(arena, star + 1, (size_t)(end - star) - 1), many = none;
            many.data = arena_alloc(arena, times * part.size, 1);
            for (; times > 0; times--, many.size += part.size) {
                memcpy(many.data + many.size, part.data, part.size);
            }
            Bytes rest = unescape(arena, end + 2, length - (size_t)(end + 2 - text));
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
    const Target *target = target_among(targets, TARGETS, name);
    cr_assert_not_null(target, "no target %s", name);
    return target;
}

/* What the program says. */
static Error command_say(Arena *arena, const char *arguments) {
    Error error = {.status = STATUS_OK};
    FILE *said =
        popen(arena_format(arena, "%s %s 2>&1 >/dev/null </dev/null",
                           getenv("REFSAE") != NULL ? getenv("REFSAE") : "./refsae", arguments),
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

/* Of the file, for readers that only a command reaches. */
static Error command_read(Arena *arena, const char *command, Bytes bytes) {
    static const Target file = {.name = "command", .file = "input.json"};
    const char *path = target_write(&file, arena, bytes.data, bytes.size);
    return command_say(arena,
                       arena_format(arena, "%s%s --out %s/out", command, path, targets_folder));
}

typedef struct Row {
    const Target *target; /* NULL: a command */
    const char *command, *rule, *sentence;
    Bytes valid;
} Row;

/* "@ TARGET FILE" or "@ TARGET = TEXT" gives the valid file, "@ COMMAND ... OPTION FILE" a command
 * that is given the input last; then rules, and where `sentences` a tab and the sentence. */
static void each_row(const char *path, bool sentences, void (*see)(Arena *arena, const Row *row)) {
    Arena *arena = arena_new(), *one = arena_within(arena);
    Row row = {.command = NULL};
    size_t length;
    const char *text =
        arena_copy(arena, (const char *)file_map(arena, path).data, file_map(arena, path).size);
    for (; *text != 0; text += length + 1) {
        length = strcspn(text, "\n");
        char *line = arena_copy(arena, text, length), *tab = strchr(line, '\t');
        if (line[0] != '@') {
            cr_assert(!sentences || tab != NULL, "no sentence: %s", line);
            row.rule = line;
            row.sentence = sentences ? tab + 1 : "";
            *(sentences ? tab : line + length) = 0;
            arena_reset(one);
            see(one, &row);
            continue;
        }
        char *base = strrchr(line, ' ') + 1, *name = line + 2, *equals = strstr(name, " = ");
        row.command =
            strstr(line, " --") != NULL ? arena_copy(arena, name, (size_t)(base - name)) : NULL;
        if (equals != NULL) {
            row.valid = unescape(arena, equals + 3, strlen(equals + 3));
        } else {
            FileMap map = file_map(arena, base);
            row.valid.data = (unsigned char *)arena_copy(arena, (const char *)map.data, map.size);
            row.valid.size = map.size;
        }
        name[strcspn(name, " ")] = 0;
        row.target = row.command == NULL ? target_of(name) : NULL;
    }
    arena_free(arena);
}

static size_t rows, wrong;

static void see_sentence(Arena *arena, const Row *row) {
    bool alone = row->rule[0] == '$', read = strcmp(row->sentence, "read") == 0;
    Bytes bytes = alone ? row->valid : hostile(arena, row->valid, row->rule);
    Error error = alone                  ? command_say(arena, row->rule + 2)
                  : row->command != NULL ? command_read(arena, row->command, bytes)
                                         : target_read(row->target, bytes.data, bytes.size);
    const char *folder = row->target != NULL ? row->target->name : "command";
    const char *says =
        error.status == STATUS_OK ? "read" : without_folder(arena, error.text, folder);
    if (error.status != (read ? STATUS_OK : STATUS_INPUT) || strcmp(says, row->sentence) != 0) {
        fprintf(stderr, "%s\t%s%s\n", row->rule, error.status == STATUS_RESOURCE ? "(3) " : "",
                says);
        wrong++;
    }
    rows++;
}

Test(hostile, each_is_refused_with_its_sentence) {
    targets_open();
    setenv("OUT", targets_folder, 1); /* where a command that comes so far may write */
    each_row("tests/hostile.txt", true, see_sentence);
    cr_assert_eq(wrong, 0, "%zu of %zu rows", wrong, rows);
    cr_assert(rows >= 400, "%zu rows", rows);
}

/* ---- limits: memory and time, as the table of fuzz/README.md has them ---- */

/* "| `TARGET` | MiB | times |" */
static void limit_of(Arena *arena, const char *target, unsigned long *mebibytes,
                     unsigned long *times) {
    FileMap map = file_map(arena, "tests/fuzz/README.md");
    const char *line = strstr(arena_copy(arena, (const char *)map.data, map.size),
                              arena_format(arena, "| `%s` |", target));
    cr_assert(line != NULL &&
                  sscanf(line + strlen(target) + 6, "%lu | %lu |", mebibytes, times) == 2,
              "no limit of %s in the table", target);
}

static size_t address_space(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        (void)!fscanf(file, "%lu", &pages);
        fclose(file);
    }
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void see_limit(Arena *arena, const Row *row) {
    struct rlimit before, within;
    unsigned long mebibytes, times;
    Bytes bytes = hostile(arena, row->valid, row->rule);
    limit_of(arena, row->target->name, &mebibytes, &times);
    getrlimit(RLIMIT_AS, &before);
    within = before;
    within.rlim_cur = address_space() + (mebibytes << 20) + times * bytes.size;
    clock_t start = clock();
    setrlimit(RLIMIT_AS, &within);
    Error error = target_read(row->target, bytes.data, bytes.size);
    setrlimit(RLIMIT_AS, &before);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (error.status == STATUS_RESOURCE || seconds > 2) {
        fprintf(stderr, "%s %.60s (%zu bytes): %.2f s %s\n", row->target->name, row->rule,
                bytes.size, seconds, error.text);
        wrong++;
    }
    rows++;
}

Test(hostile, none_takes_more_than_stated) {
    size_t size = address_space();
    if (size == 0 || size > (size_t)1 << 40) {
        cr_skip_test("no address space to measure, or that of a sanitizer");
    }
    targets_open();
    each_row("tests/fuzz/limits.txt", false, see_limit);
    cr_assert_eq(wrong, 0, "%zu of %zu rows", wrong, rows);
}

/* folder.c: one page from the files of folders. See folder.h. */
#include "folder.h"
#include "page_text.h" /* page.txt, by the Makefile */

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- what reports and their page share ---- */

const LayerMetric layer_metrics[METRICS] = {
    {"mse", "Reconstruction error by layer", "MSE (log)"},
    {"sparsity", "SAE sparsity by layer", "share of features active (log)"},
    {"match", "Features that match the answer, by layer", "match rate"}};

char *figure_name(Arena *arena, const char *what, const char *name, size_t attribute) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t length = strlen(name), plain = strspn(name, safe);
    return length == plain && length > 0 && length <= 40
               ? arena_format(arena, "%s_%s.svg", what, name)
               : arena_format(arena, "%s_%.*s.%zu.svg", what, plain < 40 ? (int)plain : 40, name,
                              attribute);
}

const char *untold(const Json *cross, const char *attribute, Arena *arena) {
    bool edits = attribute != NULL;
    double value =
        json_double(edits ? json_below(json_below(cross, "none", "control"), attribute, "none")
                          : json_get(cross, "resolution"));
    if (edits ? value > 0.9 : value < 0.1) {
        return arena_format(arena, "%s %.2g: methods look alike", edits ? "none" : "resolution",
                            value);
    }
    return NULL;
}

char *convergence_text(Arena *arena, const Json *convergence, const char *key) {
    const Json *published = json_get(convergence, "published");
    double layer = json_double(json_get(convergence, key));
    char *text = arena_format(arena, isnan(layer) ? "none" : "%.0f", layer);
    return published == NULL ? text
                             : arena_format(arena, "%s (published: %s)", text,
                                            convergence_text(arena, published, key));
}

char *node_label(Arena *arena, const char *hook, double head) {
    const char *layer = hook + strcspn(hook, "0123456789"), *point = strstr(hook, "hook_");
    return arena_format(arena, "L%.*s%s\xC2\xA0%s", (int)strspn(layer, "0123456789"), layer,
                        isnan(head) ? "" : arena_format(arena, ".H%.0f", head),
                        point == NULL ? hook : point + strlen("hook_"));
}

bool figure_is_interval(const Json *value) {
    size_t length = strlen(value->key);
    return length > 3 && strcmp(value->key + length - 3, "_ci") == 0;
}

/* ---- what lies in a folder ---- */

typedef struct Folder {
    Page *page;
    const char *path;
    Arena *arena;
    const char *name;
    const Json *scores, *layers, *sage; /* NULL: none */
    const Json *view;                   /* what page.txt shows beside them */
} Folder;

/* A file of the folder, or NULL: only what is not there is left out. */
static const char *folder_file(const Folder *f, const char *name) {
    const char *path = path_join(f->arena, f->path, name);
    return path_exists(path) ? path : NULL;
}

/* A file of the folder; one that is missing is as an empty one. */
static const char *folder_text(const Folder *f, const char *name) {
    const char *path = folder_file(f, name);
    if (path == NULL) {
        return "";
    }
    FileMap map = file_map(f->arena, path);
    if (memchr(map.data, 0, map.size) != NULL || !utf8_valid((const char *)map.data, map.size)) {
        fail(STATUS_INPUT, "%s: is not UTF-8 text", path);
    }
    return arena_copy(f->arena, (const char *)map.data, map.size);
}

static const Json *folder_json(const Folder *f, const char *name) {
    const char *path = folder_file(f, name);
    const Json *json = path != NULL ? json_read_file(f->arena, path) : NULL;
    if (json != NULL && !json_is(json, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: expected an object", path);
    }
    return json;
}

/* ---- page.txt: paths and values ---- */

typedef struct Scope { /* a name of page.txt */
    const char *name;
    const Json *value; /* what it stands for */
    size_t place;      /* of that among all for which it does */
    bool file;         /* its members are not names */
    const struct Scope *outer;
} Scope;

typedef struct Match {   /* of a path */
    const char *keys[3]; /* that its * stand for */
    size_t n_keys;
    const Json *value;
} Match;

typedef struct Matches {
    Arena *arena;
    Match *list;
    size_t count, capacity;
} Matches;

static void matches_add(Matches *matches, Match match) {
    matches->list = arena_grow(matches->arena, matches->list, &matches->capacity,
                               matches->count + 1, sizeof match);
    matches->list[matches->count++] = match;
}

static const Json *scope_get(const Scope *scope, const char *name) {
    const Json *found = NULL;
    for (; scope != NULL && found == NULL; scope = scope->outer) {
        found = strcmp(scope->name, name) == 0 ? scope->value
                : scope->file                  ? NULL
                                               : json_get(scope->value, name);
    }
    return found;
}

/* All that a path leads to from `at`; at first, where that is nothing, from the scope. */
static void match_path(Matches *found, const Scope *scope, const char *path, Match at) {
    size_t length = strcspn(path, "/");
    const char *name = arena_copy(found->arena, path, length), *rest = path + length;
    rest += *rest == '/' ? 1 : 0;
    if (*name == '\0') {
        matches_add(found, at);
    } else if (strcmp(name, "*") == 0) {
        for (const Json *v = json_first(at.value); v != NULL; v = v->next) {
            Match next = at;
            next.value = v;
            if (v->key != NULL && next.n_keys < 3) {
                next.keys[next.n_keys++] = v->key;
            }
            match_path(found, scope, rest, next);
        }
    } else {
        at.value = at.value == NULL ? scope_get(scope, name) : json_get(at.value, name);
        if (at.value != NULL) {
            match_path(found, scope, rest, at);
        }
    }
}

static Matches path_matches(Arena *arena, const Scope *scope, const char *path) {
    Matches found = {.arena = arena};
    match_path(&found, scope, path, (Match){.n_keys = 0});
    return found;
}

/* "0.630": digits that do not vary, where a number has room for them. */
static const char *end_text(Arena *arena, double value) {
    double size = fabs(value);
    return size == 0 || (size >= 1e-4 && size < 99)
               ? arena_format(arena, "%s%#.3g", value < 0 ? "−" : "", size)
               : text_number(arena, value, 3);
}

/* " [0.710, 0.830]", which does not break inside; nothing where there is none */
static const char *interval_text(const Json *interval, Arena *arena) {
    const Json *ends = json_first(interval);
    return ends == NULL
               ? ""
               : arena_format(arena, " [%s,\xC2\xA0%s]", end_text(arena, json_double(ends)),
                              end_text(arena, json_double(ends->next)));
}

/* A value in a format of page.txt; NULL: it is missing. */
static const char *value_text(Arena *arena, const Json *value, const char *format) {
    double number = json_double(value);
    if (value == NULL || json_is(value, JSON_NULL)) {
        return NULL;
    } else if (*format == '"') {
        return arena_copy(arena, format + 1, strlen(format) - 2);
    } else if (strcmp(format, "key") == 0) {
        return value->key;
    } else if (strcmp(format, "count") == 0) {
        return arena_format(arena, "%zu", value->length);
    } else if (strcmp(format, "ci") == 0) {
        return interval_text(value, arena);
    } else if (*format == '\0') {
        return isnan(number) && !json_is(value, JSON_STRING) ? NULL : value->text;
    } else if (isnan(number)) {
        return NULL;
    } else if (*format == '<' || *format == '>') {
        bool holds =
            *format == '<' ? number < strtod(format + 1, NULL) : number > strtod(format + 1, NULL);
        return holds ? arena_format(arena, "%.2g", number) : NULL;
    }
    return *format == '%' ? arena_format(arena, "%.1f %%", 100 * number)
                          : arena_format(arena, arena_format(arena, "%%%s", format), number);
}

/* A text of page.txt with its values; NULL: one is missing. */
static const char *text_fill(Arena *arena, const Scope *scope, const char *text) {
    const char *filled = "";
    while (*text != '\0') {
        size_t plain = strcspn(text, "{"), length = strcspn(text + plain, "}");
        filled = arena_format(arena, "%s%.*s", filled, (int)plain, text);
        text += plain;
        if (*text == '{') {
            char *path = arena_copy(arena, text + 1, length - 1), *otherwise = strchr(path, '|'),
                 *format = strchr(path, ':');
            *(otherwise == NULL ? strchr(path, '\0') : otherwise) = '\0';
            *(format == NULL ? strchr(path, '\0') : format) = '\0';
            Matches found = path_matches(arena, scope, path);
            const char *value = value_text(arena, found.count == 0 ? NULL : found.list[0].value,
                                           format == NULL ? "" : format + 1);
            if (value == NULL && otherwise == NULL) {
                return NULL;
            }
            filled = arena_format(arena, "%s%s", filled, value == NULL ? otherwise + 1 : value);
            text += length + 1;
        }
    }
    return filled;
}

/* ---- page.txt: tables ---- */

/* Numbers keep a column's points in line; an edit is its score and (magnitude). */
static const char *cell_text(Arena *arena, const Json *object, const Json *value) {
    const Json *score = json_get(value, "score"),
               *interval = score != NULL
                               ? json_get(value, "score_ci")
                               : json_get(object, arena_format(arena, "%s_ci", value->key));
    const char *ends = interval_text(interval, arena);
    double number = json_double(value), size = fabs(number);
    if (json_is(value, JSON_STRING)) {
        return value->text;
    } else if (score != NULL) {
        return arena_format(arena, "%.2f%s (%.2f)", json_double(score), ends,
                            json_double(json_get(value, "magnitude")));
    } else if (size >= 1e-4 && size < 1e3 && floor(size) != size) {
        return arena_format(arena, "%s%#.4g%s", number < 0 ? "−" : "", size, ends);
    }
    return arena_format(arena, "%s%s", text_number(arena, number, 4), ends);
}

/* Columns are members, and those of an object under both names. Intervals stand by their figure. */
static void add_columns(Matches *columns, const char *outer, const Json *object) {
    for (const Json *v = json_first_member(object); v != NULL; v = v->next) {
        bool cell = !json_is(v, JSON_OBJECT) || json_get(v, "score") != NULL;
        size_t i = 0;
        while (i < columns->count && (strcmp(columns->list[i].keys[0], outer) != 0 ||
                                      strcmp(columns->list[i].keys[1], v->key) != 0)) {
            i++;
        }
        if (!cell && *outer == '\0') {
            add_columns(columns, v->key, v);
        } else if (cell && !figure_is_interval(v) && i == columns->count) {
            matches_add(columns, (Match){{outer, v->key}, 2, v});
        }
    }
}

/* First the keys, with these titles ("attribute|method"), then the columns of all rows in the order
 * in which they come. No rows: no table. */
static void show_table(const Folder *f, const char *caption, const char *keys,
                       const Matches *rows) {
    Matches columns = {.arena = f->arena};
    size_t n_keys = 0;
    for (size_t i = 0; i < rows->count; i++) {
        add_columns(&columns, "", rows->list[i].value);
    }
    if (columns.count == 0) {
        return;
    }
    page_table(f->page, caption);
    page_row(f->page);
    for (; *keys != '\0'; n_keys++) {
        size_t length = strcspn(keys, "|");
        page_cell(f->page, false, arena_copy(f->arena, keys, length));
        keys += length + strspn(keys + length, "|");
    }
    for (const Match *c = columns.list; c < columns.list + columns.count; c++) {
        page_cell(f->page, !json_is(c->value, JSON_STRING),
                  arena_format(f->arena, "%s%s%s", c->keys[0], *c->keys[0] == '\0' ? "" : " ",
                               c->keys[1]));
    }
    for (const Match *row = rows->list; row < rows->list + rows->count; row++) {
        if (!json_is(row->value, JSON_OBJECT)) {
            continue; /* "resolution" beside the methods */
        }
        page_row(f->page);
        for (size_t k = 0; k < n_keys; k++) {
            page_cell(f->page, false, row->keys[k] == NULL ? "" : row->keys[k]);
        }
        for (const Match *c = columns.list; c < columns.list + columns.count; c++) {
            const Json *object =
                           *c->keys[0] == '\0' ? row->value : json_get(row->value, c->keys[0]),
                       *value = json_get(object, c->keys[1]);
            const char *text = value == NULL ? "" : cell_text(f->arena, object, value);
            if (*text != '\0' && strcmp(c->keys[1], "picture") == 0) {
                page_cell_picture(f->page, text);
            } else {
                page_cell(f->page, value != NULL && !json_is(value, JSON_STRING), text);
            }
        }
    }
}

/* ---- page.txt: blocks ---- */

/* The next block as one line. */
static char *block_read(Arena *arena, const char **text) {
    const char *at = *text;
    char *block = "";
    do {
        size_t length = strcspn(at, "\n");
        block = arena_format(arena, "%s%s%.*s", block, *block == '\0' ? "" : " ", (int)length, at);
        at += length + (at[length] == '\n' ? 1 : 0);
        *text = at;
        at += strspn(at, " ");
    } while (at > *text);
    return block;
}

/* Only what refsae drew. "heat_*" is that of a cross-section. */
static void show_figure(const Folder *f, const Scope *scope, const char *name,
                        const char *caption) {
    static const char begin[] = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rf\"";
    if (name[strlen(name) - 1] == '*' && scope->value->key != NULL) {
        name = figure_name(f->arena, arena_copy(f->arena, name, strlen(name) - 2),
                           scope->value->key, scope->place);
    }
    const char *text = folder_text(f, name), *end = strstr(text, "</svg>");
    if (strncmp(text, begin, strlen(begin)) != 0) {
        return;
    }
    if (end == NULL) {
        fail(STATUS_INPUT, "%s: the figure ends too early", path_join(f->arena, f->path, name));
    }
    text = arena_format(f->arena, "%s</svg>\n", arena_copy(f->arena, text, (size_t)(end - text)));
    const char *strange = svg_strange(text);
    if (strange != NULL) {
        fail(STATUS_INPUT, "%s: no figure of refsae has '%.20s'",
             path_join(f->arena, f->path, name), strange);
    }
    page_figure(f->page, caption, text);
}

/* Nothing if one of its values is missing. */
static void show_block(const Folder *f, const Scope *scope, char *block) {
    char mark = block[1] == ' ' && strchr("#=:!+*", *block) != NULL ? *block : ' ';
    const char *parts[3] = {mark == ' ' ? block : block + 2, "", ""}, *texts[3];
    for (size_t i = 0; i < 3; i++) {
        char *bar = mark == ' ' || i == 2 ? NULL : strstr(parts[i], " | ");
        if (bar != NULL) {
            *bar = '\0';
            parts[i + 1] = bar + strlen(" | ");
        }
        texts[i] = text_fill(f->arena, scope, parts[i]);
        if (texts[i] == NULL) {
            return;
        }
    }
    if (mark == '#') {
        page_section(f->page, texts[0]);
    } else if (mark == '!') {
        show_figure(f, scope, texts[0], texts[1]);
    } else if (mark == '+') {
        Matches rows = path_matches(f->arena, scope, parts[0]);
        show_table(f, texts[1], texts[2], &rows);
    } else {
        page_item(f->page, mark, texts[0], texts[1]);
    }
}

/* Blocks up to the end, or that of a repetition; returns what follows it. */
static const char *show_blocks(const Folder *f, const Scope *scope, const char *at, bool shown) {
    while (*at != '\0') {
        char *block = block_read(f->arena, &at);
        if (strcmp(block, "end") == 0) {
            break;
        } else if (strncmp(block, "each ", 5) == 0) {
            const char *name = block + strlen("each "), *inside = at;
            char *colon = strchr(block, ':');
            *colon = '\0';
            Matches found = path_matches(f->arena, scope, colon + 2);
            for (size_t i = 0; i < found.count && shown; i++) {
                Scope inner = {name, found.list[i].value, i, false, scope};
                show_blocks(f, &inner, inside, true);
            }
            at = show_blocks(f, scope, inside, false);
        } else if (shown && *block != '\0' && strncmp(block, "//", 2) != 0) {
            show_block(f, scope, block);
        }
    }
    return at;
}

/* What stands in "each part: part". */
static void show_part(const Folder *f, const char *part) {
    Scope sage = {"sage", f->sage, 0, true, NULL}, layers = {"layers", f->layers, 0, true, &sage},
          scores = {"scores", f->scores, 0, true, &layers},
          root = {part, f->view, 0, false, &scores};
    show_blocks(f, &root, (const char *)page_text[0].text, true);
}

/* ---- manifest.json: what runs read and wrote ---- */

/* Named without a digest: a machine's times; and what shows or is the manifest itself. */
static bool is_undigested(const char *name) {
    return strcmp(name, "timing.csv") == 0 || strcmp(name, "report.html") == 0 ||
           strcmp(name, "manifest.json") == 0;
}

static int compare_notes(const void *a, const void *b) {
    return strcmp((*(const FileNote *const *)a)->at.path, (*(const FileNote *const *)b)->at.path);
}

/* The name of an output: in the folder its last part, elsewhere a path, which has a slash. */
static const char *output_name(const char *out, const char *path, Arena *arena) {
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    return strcmp(path_join(arena, out, name), path) == 0 ? name
           : slash == NULL                                ? path_join(arena, ".", path)
                                                          : path;
}

/* Where it is now. */
static const char *output_path(const Folder *f, const char *name) {
    return strchr(name, '/') == NULL ? path_join(f->arena, f->path, name) : name;
}

/* The run of each command; NULL: none. */
static const Json *manifest_runs(const Folder *f) {
    return json_get(folder_json(f, "manifest.json"), "runs");
}

static void manifest_files(JsonOut *json, const Folder *f, bool written, const FileNote **notes,
                           size_t count, Progress *progress) {
    json_out(json, "%s [", written ? "outputs" : "inputs");
    for (size_t i = 0; i < count; i++) {
        const char *path = notes[i]->at.path;
        if (notes[i]->written == written) {
            const char *name = written ? output_name(f->path, path, f->arena) : path;
            char hex[65];
            json_out(json, "{ path %s", name);
            if (!written || !is_undigested(name)) {
                size_t bytes = (size_t)sha256_file(path, hex);
                json_out(json, "bytes %zu sha256 %s", bytes, hex);
            }
            json_out(json, "}");
            progress_set(progress, progress->done + 1, NULL);
        }
    }
    json_out(json, "]");
}

/* Of a file that was read, by its real path: one has as many names as a manifest likes. */
typedef struct Digest {
    PathNode at;
    char sha256[65];
} Digest;

/* Reads each file once. */
static const char *digest_of(PathNode **digests, const char *path, Arena *arena) {
    const char *real = path_real(arena, path);
    if (real == NULL) {
        fail_errno(errno, path, "cannot look at this path");
    }
    PathNode **at = path_place(digests, real);
    if (*at == NULL) {
        Digest *digest = arena_alloc(arena, 1, sizeof *digest);
        digest->at.path = real;
        sha256_file(path, digest->sha256);
        *at = &digest->at;
    }
    return ((Digest *)*at)->sha256;
}

/* NULL: it is as it was written. */
static const char *file_change(PathNode **digests, const char *path, const Json *file,
                               Arena *arena) {
    const char *sha256 = json_string(json_get(file, "sha256"));
    if (!path_exists(path)) {
        return "is missing";
    }
    bool same = *sha256 == '\0' || strcmp(digest_of(digests, path, arena), sha256) == 0;
    return same ? NULL : "has changed";
}

/* Figures that the last run of this command drew and this one did not would pass for its own. */
static void remove_stale(const Folder *f, const Json *before) {
    PathNode *digests = NULL;
    for (const Json *v = json_first(json_get(before, "outputs")); v != NULL; v = v->next) {
        const char *name = json_string(json_get(v, "path")), *path = output_path(f, name),
                   *ending = strrchr(name, '.');
        const FileNote *note = files_noted();
        while (note != NULL && strcmp(note->at.path, path) != 0) {
            note = note->next;
        }
        if (note == NULL && strchr(name, '/') == NULL && ending != NULL &&
            strcmp(ending, ".svg") == 0 && file_change(&digests, path, v, f->arena) == NULL) {
            remove(path);
        }
    }
}

/* "analyze" */
static const char *run_name(const Console *console, Arena *arena) {
    const char *word = strchr(console->command, ' ') + 1;
    return arena_copy(arena, word, strcspn(word, " "));
}

void manifest_write(const char *out, uint64_t seed, const Console *console) {
    Arena *arena = arena_new();
    Folder f = {.path = out, .arena = arena};
    const Json *volatile before = NULL; /* what cannot be read is replaced */
    Error unread;
    ATTEMPT(&unread, before = manifest_runs(&f));
    fail_for_resources(&unread);
    OutFile *file = out_open(path_join(arena, out, "manifest.json"));
    const char *name = run_name(console, arena);
    size_t count = 0, room = 0;
    const FileNote **notes = NULL;
    for (const FileNote *n = files_noted(); n != NULL; n = n->next) {
        notes = arena_grow(arena, notes, &room, count + 1, sizeof *notes);
        notes[count++] = n;
    }
    if (count > 0) {
        qsort(notes, count, sizeof *notes, compare_notes);
    }
    remove_stale(&f, json_get(before, name));
    Progress progress = progress_start("digests", "files", 0, count, console->quiet);
    JsonOut json = json_out_start(file->stream, 4);
    json_out(&json, "{ runs {");
    for (const Json *run = json_first_member(before); run != NULL; run = run->next) {
        if (strcmp(run->key, name) != 0) {
            json_out_value(&json, run->key, run);
        }
    }
    json_out(&json, "%s { command %s version %s seed %s", name, console->command, REFSAE_VERSION,
             arena_format(arena, "%llu", (unsigned long long)seed));
    manifest_files(&json, &f, false, notes, count, &progress);
    manifest_files(&json, &f, true, notes, count, &progress);
    json_out(&json, "} } }");
    progress_end(&progress);
    out_commit(file);
    arena_free(arena);
}

/* Of files from v up to end, those with a digest, as sha256sum lists them. */
static const char *list_digest(Arena *arena, const Json *v, const Json *end) {
    char hex[65];
    Sha256 sha;
    sha256_start(&sha);
    for (; v != end; v = v->next) {
        const char *path = json_string(json_get(v, "path")), *slash = strrchr(path, '/'),
                   *digest = json_string(json_get(v, "sha256"));
        if (*digest != '\0') {
            const char *line =
                arena_format(arena, "%s  %s\n", digest, slash == NULL ? path : slash + 1);
            sha256_add(&sha, line, strlen(line));
        }
    }
    sha256_end(&sha, hex);
    return arena_copy(arena, hex, 64);
}

/* How many files of a run are not as it read or wrote them. */
static size_t verify_run(const Folder *f, const Json *run, PathNode **digests, JsonOut *json,
                         const Console *console) {
    static const char *const keys[2] = {"inputs", "outputs"}, *const names[2] = {"input", "output"};
    size_t count[2] = {0}, bad[2] = {0};
    json_out(json, "%s { problems [", run->key);
    for (int k = 0; k < 2; k++) {
        if (!json_is(json_get(run, keys[k]), JSON_ARRAY)) {
            fail(STATUS_INPUT, "%s: manifest.json: run '%s': no list of %s", f->path, run->key,
                 keys[k]);
        }
        for (const Json *v = json_first(json_get(run, keys[k])); v != NULL; v = v->next) {
            const char *path = json_string(json_get(v, "path")),
                       *where = k == 0 ? path : output_path(f, path),
                       *change = file_change(digests, where, v, f->arena);
            count[k]++;
            if (change != NULL) {
                const char *problem = arena_format(f->arena, "%s %s %s", names[k], path, change);
                console_result(console, "%s: %s", run->key, problem);
                json_out(json, "%s", problem);
                bad[k]++;
            }
        }
    }
    json_out(json, "] inputs %zu outputs %zu", count[0], count[1]);
    if (bad[0] + bad[1] == 0) {
        console_result(console, "%s: %zu input%s and %zu output%s as written", run->key, count[0],
                       plural(count[0]), count[1], plural(count[1]));
    }
    if (bad[1] == 0) {
        const char *digest = list_digest(f->arena, json_first(json_get(run, "outputs")), NULL);
        console_result(console, "%s: outputs: sha256 %s", run->key, digest);
        json_out(json, "outputs_sha256 %s", digest);
    }
    json_out(json, "}");
    return bad[0] + bad[1];
}

/* What lies in the folder and is no run's. */
static void verify_others(const Folder *f, const Json *runs, JsonOut *json,
                          const Console *console) {
    size_t count;
    char **names = path_list(f->arena, f->path, &count);
    bool *known = arena_alloc(f->arena, count, sizeof *known);
    for (const Json *run = json_first_member(runs); run != NULL; run = run->next) {
        for (const Json *v = json_first(json_get(run, "outputs")); v != NULL; v = v->next) {
            const char *path = json_string(json_get(v, "path"));
            char **name = bsearch(&path, names, count, sizeof *names, compare_names);
            if (name != NULL) {
                known[name - names] = true;
            }
        }
    }
    json_out(json, "others [");
    for (size_t i = 0; i < count; i++) {
        if (!known[i] && !path_is_directory(path_join(f->arena, f->path, names[i]))) {
            console_result(console, "%s: written by none of these runs", names[i]);
            json_out(json, "%s", names[i]);
        }
    }
    json_out(json, "]");
}

void folder_verify(const char *directory, const Console *console) {
    Arena *arena = arena_new();
    Folder f = {.path = directory, .arena = arena};
    MemoryStream *memory = memory_open(arena);
    JsonOut json = json_out_start(memory->stream, 3);
    PathNode *digests = NULL;
    size_t bad = 0;
    path_need_directory(directory);
    const Json *runs = manifest_runs(&f);
    if (json_first_member(runs) == NULL) {
        fail(STATUS_INPUT, "%s: no manifest.json of a run", directory);
    }
    json_out(&json, "{ runs {");
    for (const Json *run = json_first_member(runs); run != NULL; run = run->next) {
        bad += verify_run(&f, run, &digests, &json, console);
    }
    json_out(&json, "}");
    verify_others(&f, runs, &json, console);
    json_out(&json, "}");
    fputs(console->json ? memory_text(memory) : "", stdout);
    if (bad > 0) {
        fail(STATUS_CHECK, "%s: files that are not as the runs left them: %zu", directory, bad);
    }
    arena_free(arena);
}

/* ---- what was found, in words, before all figures ---- */

static bool is_permuted(const Json *scores) {
    return json_text_is(json_get(scores, "image_tokens"), "permuted");
}

static bool same_text(const Json *a, const Json *b, const char *key) {
    return strcmp(json_string(json_get(a, key)), json_string(json_get(b, key))) == 0;
}

/* Of one adapter and as many questions, one with the pictures' own tokens and one without. */
static bool are_partners(const Json *a, const Json *b) {
    return json_get(a, "adapter_sha256") != NULL && same_text(a, b, "adapter_sha256") &&
           !same_text(a, b, "image_tokens") &&
           json_double(json_get(a, "questions")) == json_double(json_get(b, "questions"));
}

static void find_answers(JsonOut *view, const Folder *f, const Folder *all, size_t count) {
    if (f->scores == NULL) {
        return;
    }
    json_out(view, "%s true controls {", is_permuted(f->scores) ? "permuted" : "own");
    for (size_t i = 0; i < count && !is_permuted(f->scores); i++) {
        if (are_partners(f->scores, all[i].scores)) {
            json_out_value(view, all[i].name, all[i].scores);
        }
    }
    json_out(view, "}");
}

/* Does `image` name the picture of a path, or the end of one? */
static bool is_picture(const char *path, const char *image) {
    size_t whole = strlen(path), end = strlen(image);
    return end <= whole && strcmp(path + whole - end, image) == 0 &&
           (end == whole || path[whole - end - 1] == '/');
}

/* "56 the word 'While'; 11 a line break" */
static const char *features_text(const Json *line, Arena *arena) {
    MemoryStream *all = memory_open(arena);
    const char *separator = "";
    for (const Json *v = json_first(json_get(line, "features")); v != NULL; v = v->next) {
        const Json *number = json_get(v, "feature"), *words = json_get(v, "description");
        fprintf(all->stream, "%s%s %s", separator, json_is(number, JSON_NUMBER) ? number->text : "",
                json_string(words));
        separator = "; ";
    }
    return memory_text(all);
}

/* Of JSON; a file that is missing has none. */
static JsonLines folder_lines(const Folder *f, const char *name) {
    const char *path = folder_file(f, name);
    return path == NULL ? (JsonLines){.line = 0} : json_lines(f->arena, path);
}

/* Are the answers of `other` those of the adapter that f was analysed with? */
static bool is_answered_by(const Folder *f, const Folder *other) {
    const char *adapter = json_string(json_get(other->scores, "adapter_sha256"));
    return !is_permuted(other->scores) &&
           (f == other ||
            (*adapter != '\0' && strstr(folder_text(f, "manifest.json"), adapter) != NULL));
}

/* The first answer about a picture; NULL: none. */
static const Json *answer_about(const Folder *f, const char *path) {
    Arena *one = arena_within(f->arena);
    JsonLines answers = folder_lines(f, "answers.jsonl");
    const Json *line;
    while ((line = json_line(one, &answers)) != NULL &&
           !is_picture(path, json_string(json_get(line, "image")))) {
        arena_reset(one);
    }
    return line;
}

/* The first pictures, with their image tokens' features in a layer and the first answer. */
static void find_pictures(JsonOut *view, const Folder *f, const Folder *others, size_t n_others,
                          double layer) {
    const char *shown[3];
    size_t count = 0;
    Arena *one = arena_within(f->arena);
    JsonLines features = folder_lines(f, "features.jsonl");
    const Json *line;
    json_out(view, "pictures [");
    while (count < sizeof shown / sizeof *shown && (line = json_line(one, &features)) != NULL) {
        const char *image = json_string(json_get(line, "image"));
        bool wanted = *image != '\0' && json_double(json_get(line, "layer")) == layer &&
                      json_text_is(json_get(line, "group"), group_names[GROUP_IMG]);
        for (size_t i = 0; i < count && wanted; i++) {
            wanted = !is_picture(shown[i], image);
        }
        if (!wanted) {
            arena_reset(one);
            continue;
        }
        const Json *answer = NULL;
        for (size_t o = 0; o < n_others && answer == NULL; o++) {
            answer = is_answered_by(f, &others[o]) ? answer_about(&others[o], image) : NULL;
        }
        json_out(view, "{ picture %s %s %s", image, "strongest features on its image tokens",
                 features_text(line, f->arena));
        if (answer != NULL) {
            bool exact = json_is(json_get(answer, "exact"), JSON_TRUE);
            json_out(view, "question %s answer %s", json_string(json_get(answer, "prompt")),
                     arena_format(f->arena, "%s (%s)", json_string(json_get(answer, "text")),
                                  exact ? "right" : "wrong"));
        }
        json_out(view, "}");
        shown[count++] = arena_format(f->arena, "%s", image);
    }
    json_out(view, "]");
}

/* Of a group's rows that have a number, the one where it is largest, or the first or last. */
static const Json *layer_pick(const Json *layers, Group g, const char *key, int pick) {
    const Json *found = NULL;
    double best = -INFINITY;
    for (const Json *v = json_first(layers); v != NULL; v = v->next) {
        double value = json_double(json_get(v, key));
        if (json_text_is(json_get(v, "group"), group_names[g]) && !isnan(value) &&
            (found == NULL || pick > 0 || (pick == 0 && value > best))) {
            found = v;
            best = value;
        }
    }
    return found;
}

/* How image tokens' curves run and where they meet the text control's, and their features. */
static void find_layers(JsonOut *view, const Folder *f, const Folder *all, size_t count) {
    const Json *layers = json_get(f->layers, "layers"),
               *convergence = json_get(f->layers, "convergence"),
               *image = layer_pick(layers, GROUP_IMG, "match", 0);
    json_out(view, "layer_count %zu curves [", layers == NULL ? 0 : layers->length / GROUPS);
    for (Metric m = METRIC_MSE; m <= METRIC_SPARSITY; m++) {
        const char *name = layer_metrics[m].name, *key = arena_format(f->arena, "%s_layer", name);
        const Json *begin = layer_pick(layers, GROUP_IMG, name, -1),
                   *end = layer_pick(layers, GROUP_IMG, name, 1),
                   *control = layer_pick(layers, GROUP_TEXT, name, 1);
        json_out(view, "{ title %s first %g begin %g last %g end %g control %g",
                 layer_metrics[m].title, json_double(json_get(begin, "layer")),
                 json_double(json_get(begin, name)), json_double(json_get(end, "layer")),
                 json_double(json_get(end, name)), json_double(json_get(control, name)));
        json_out_value(view, "met", json_get(convergence, key));
        json_out(view, "meeting %s }", convergence_text(f->arena, convergence, key));
    }
    json_out(view, "]");
    json_out_value(view, "image", image);
    json_out_value(view, "text", layer_pick(layers, GROUP_TEXT, "match", 0));
    if (image != NULL) {
        find_pictures(view, f, all, count, json_double(json_get(image, "layer")));
    }
}

typedef struct Position {
    int64_t token;
    size_t order; /* in the file */
    const char *name;
} Position;

static int compare_positions(const void *a, const void *b) {
    const Position *x = a, *y = b;
    return x->token != y->token ? (x->token > y->token) - (x->token < y->token)
                                : (x->order > y->order) - (x->order < y->order);
}

/* "After Alice [IO] and Tom [S1] went …" */
static const char *example_text(const Folder *f) {
    const Json *example = folder_json(f, "example.json");
    MemoryStream *text = memory_open(f->arena);
    Position *positions = NULL;
    size_t count = 0, room = 0, next = 0;
    for (const Json *p = json_first_member(json_get(example, "positions")); p != NULL;
         p = p->next) {
        Position position = {.order = count, .name = p->key};
        if (json_int64(p, &position.token) && position.token >= 0) {
            positions = arena_grow(f->arena, positions, &room, count + 1, sizeof position);
            positions[count++] = position;
        }
    }
    if (count > 0) {
        qsort(positions, count, sizeof *positions, compare_positions);
    }
    int64_t token = 0;
    for (const Json *v = json_first(json_get(example, "tokens")); v != NULL; v = v->next, token++) {
        fputs(json_string(v), text->stream);
        for (; next < count && positions[next].token == token; next++) {
            fprintf(text->stream, " [%s]", positions[next].name);
        }
    }
    return memory_text(text);
}

/* The edit by at most k features that gains most over none, of the attribute that the cross-section
 * was found for, or where it bears no attribute's name, of any: "0.42 (none 0.15, supervised 0.98;
 * S, k = 1)". A dash where edits cannot tell methods apart. */
static const char *best_edit(const Json *cross, Arena *arena) {
    const Json *attributes = json_below(cross, "sae", "control"),
               *own = json_get(attributes, cross->key);
    const char *text = "–";
    double best = -INFINITY;
    for (const Json *a = json_first_member(attributes); a != NULL; a = a->next) {
        if ((own != NULL && a != own) || untold(cross, a->key, arena) != NULL) {
            continue;
        }
        double none = json_double(json_get(a, "none")),
               supervised = json_double(json_below(a, "supervised", "score"));
        for (const Json *k = json_first_member(a); k != NULL; k = k->next) {
            double score = json_double(json_get(k, "score"));
            if (strcmp(k->key, "supervised") != 0 && score - none > best) {
                best = score - none;
                text = arena_format(arena, "%.2f (none %.2f, supervised %.2f; %s, k = %s)", score,
                                    none, supervised, a->key, k->key);
            }
        }
    }
    return text;
}

/* The tests of a folder, if its SAEs can be compared with those of f: one model, one task. */
static const Json *rival_tests(const Folder *f, const Folder *other) {
    bool rivals =
        same_text(f->sage, other->sage, "task") && same_text(f->sage, other->sage, "model");
    return rivals ? json_get(other->sage, "tests") : NULL;
}

static void find_cross_section(JsonOut *view, const Folder *f, const Json *cross) {
    const Json *sae = json_get(cross, "sae"),
               *nodes = json_below(json_get(f->sage, "cross_sections"), cross->key, "nodes");
    const char *strongest = "";
    int n = 0;
    for (const Json *v = json_first(nodes); v != NULL && n < 3; v = v->next, n++) {
        double effect = json_double(json_get(v, "effect")), head = json_double(json_get(v, "head"));
        strongest = arena_format(f->arena, "%s%s%s at %s%s%s", strongest, n == 0 ? "" : "; ",
                                 node_label(f->arena, json_string(json_get(v, "node")), head),
                                 json_string(json_get(v, "position")), isnan(effect) ? "" : " ",
                                 isnan(effect) ? "" : text_number(f->arena, effect, 3));
    }
    json_out(view, "{ cross-section %s folder %s", cross->key, f->name);
    json_out(view, "%s %s %s %s", "strongest nodes by score (effect on m)", strongest,
             "SAE's best edit", best_edit(cross, f->arena));
    for (const Json *v = json_first_member(sae); v != NULL; v = v->next) {
        json_out_value(view, v->key, json_is(v, JSON_OBJECT) ? NULL : v);
    }
    json_out_value(view, "features of F1 ≥ 0.8",
                   json_get(json_below(sae, "f1", "0.8"), "features"));
    json_out(view, "}");
}

/* At the first folder of those of one task and model: each cross-section with its folders below. */
static void find_saes(JsonOut *view, const Folder *f, const Folder *all, size_t count) {
    size_t first = 0;
    while (first < count && json_first_member(rival_tests(f, &all[first])) == NULL) {
        first++;
    }
    if (f != &all[first]) {
        return;
    }
    json_out(view, "compared { prompt %s saes [", example_text(f));
    for (size_t i = first; i < count; i++) {
        for (const Json *c = json_first_member(rival_tests(f, &all[i])); c != NULL; c = c->next) {
            bool taken = false; /* it came with an earlier folder */
            for (size_t j = first; j < count && !taken; j++) {
                const Json *cross = json_get(rival_tests(f, &all[j]), c->key);
                taken = cross != NULL && j < i;
                if (cross != NULL && !taken) {
                    find_cross_section(view, &all[j], cross);
                }
            }
        }
    }
    json_out(view, "] }");
}

/* train.csv: steps, first and last loss. */
static void find_training(JsonOut *view, const Folder *f) {
    const char *path = folder_file(f, "train.csv");
    size_t steps = 0;
    double *loss = csv_numbers(f->arena, folder_text(f, "train.csv"), "loss", &steps);
    if (path != NULL && loss == NULL) {
        fail(STATUS_INPUT, "%s: no column 'loss'", path);
    }
    for (size_t i = 0; i < steps; i++) {
        if (!isfinite(loss[i])) {
            fail(STATUS_INPUT, "%s: step %zu: no loss", path, i + 1);
        }
    }
    if (steps > 0) {
        json_out(view, "training { steps %zu first %g last %g }", steps, loss[0], loss[steps - 1]);
    }
}

/* The best interpretations by F1, equal ones in their order. */
static void find_best(JsonOut *view, const Json *interpretations) {
    const Json *best[31]; /* one more than are shown: the place of what falls out */
    size_t count = 0;
    for (const Json *v = json_first(interpretations); v != NULL; v = v->next) {
        double f1 = json_double(json_get(v, "f1"));
        size_t i = count;
        for (; i > 0 && f1 > json_double(json_get(best[i - 1], "f1")); i--) {
            best[i] = best[i - 1];
        }
        best[i] = v;
        count += count < 30 ? 1 : 0;
    }
    json_out(view, "best [");
    for (size_t i = 0; i < count; i++) {
        json_out_value(view, NULL, best[i]);
    }
    json_out(view, "]");
}

/* Of a folder with more than a reader would look at, one line. */
static void find_inputs(JsonOut *view, const Json *inputs, Arena *arena) {
    const size_t most = 8;
    json_out(view, "inputs [");
    for (const Json *v = json_first(inputs), *next; v != NULL; v = next) {
        const char *path = json_string(json_get(v, "path")), *parent = path_parent(arena, path);
        size_t n = 0;
        for (next = v; next != NULL; next = next->next, n++) {
            const char *other = json_string(json_get(next, "path"));
            if (strcmp(path_parent(arena, other), parent) != 0) {
                break;
            }
        }
        json_out(view, v == json_first(inputs) ? "{ first true" : "{");
        if (n > most) {
            json_out(view, "path %s files %zu sha256 %s }", parent, n, list_digest(arena, v, next));
        } else {
            next = v->next;
            json_out(view, "path %s sha256 %s }", path, json_string(json_get(v, "sha256")));
        }
    }
    json_out(view, "]");
}

/* How the results came about. */
static void find_runs(JsonOut *view, const Folder *f) {
    json_out(view, "runs [");
    for (const Json *run = json_first_member(manifest_runs(f)); run != NULL; run = run->next) {
        json_out(view, "{");
        json_out_value(view, "command", json_get(run, "command"));
        json_out_value(view, "version", json_get(run, "version"));
        json_out_value(view, "seed", json_get(run, "seed"));
        find_inputs(view, json_get(run, "inputs"), f->arena);
        json_out(view, "outputs %s }",
                 list_digest(f->arena, json_first(json_get(run, "outputs")), NULL));
    }
    json_out(view, "]");
}

/* ---- pages ---- */

/* What page.txt says of a folder that stands in none of its files. */
static void folder_look(Folder *f, const Folder *all, size_t count) {
    MemoryStream *memory = memory_open(f->arena);
    JsonOut view = json_out_start(memory->stream, 0);
    json_out(&view, "{ name %s", f->name);
    find_answers(&view, f, all, count);
    find_layers(&view, f, all, count);
    find_saes(&view, f, all, count);
    find_training(&view, f);
    find_best(&view, json_get(f->sage, "interpretations"));
    find_runs(&view, f);
    json_out(&view, "}");
    const char *text = memory_text(memory);
    f->view = json_parse(f->arena, text, memory->length, f->path);
}

static const char nothing[] =
    "holds neither steps in train.csv nor scores.json, layers.json or sage.json";

/* Says on the page, and to whom makes it, which file lacks what every such file has. */
static void show_empty(const Folder *f, const Console *console) {
    const struct {
        const Json *json;
        const char *file, *member;
    } of[] = {{f->scores, "scores.json", "questions"},
              {f->layers, "layers.json", "layers"},
              {f->sage, "sage.json", "task"}};
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        if (of[i].json != NULL && json_get(of[i].json, of[i].member) == NULL) {
            const char *text = arena_format(f->arena, "%s: no %s", of[i].file, of[i].member);
            page_item(f->page, ' ', text, "");
            console_line(console, "%s/%s", f->path, text);
        }
    }
}

static Folder folder_open(Page *page, const char *path) {
    Folder f = {.page = page, .path = path, .arena = page->out->arena};
    const char *real = path_real(f.arena, path);
    if (real == NULL) {
        fail_errno(errno, path, "cannot look at this path");
    }
    const char *name = strrchr(real, '/') + 1; /* "permuted" of "demo/permuted/" */
    f.name = *name != '\0' ? name : real;
    f.scores = folder_json(&f, "scores.json");
    f.layers = folder_json(&f, "layers.json");
    f.sage = folder_json(&f, "sage.json");
    return f;
}

void folders_merge(const char *out, const char *title, char *const *directories, size_t count,
                   const Console *console) {
    Page page;
    page_open(&page, out, title);
    Folder *folders = arena_alloc(page.out->arena, count, sizeof *folders);
    for (size_t i = 0; i < count; i++) {
        path_need_directory(directories[i]);
        folders[i] = folder_open(&page, directories[i]);
    }
    bool any = false;
    page_section(&page, "What was found");
    for (size_t i = 0; i < count; i++) {
        folder_look(&folders[i], folders, count);
        show_part(&folders[i], "found");
    }
    for (size_t i = 0; i < count; i++) {
        if (count > 1) {
            page_chapter(&page, folders[i].name);
        }
        int before = page.sections;
        show_part(&folders[i], "folder");
        any |= page.sections > before;
        if (page.sections == before && count > 1) { /* one alone is refused below */
            page_item(&page, ' ', arena_format(page.out->arena, "This folder %s.", nothing), "");
            console_line(console, "%s: %s", directories[i], nothing);
        }
        show_empty(&folders[i], console);
        show_part(&folders[i], "made");
    }
    if (!any) {
        fail(STATUS_INPUT, "%s: %s", directories[0], nothing);
    }
    files_spare(out);
    page_commit(&page);
}

void folder_page(const char *out, uint64_t seed, const Console *console) {
    Arena *arena = arena_new();
    char *path = path_join(arena, out, "report.html"), *folder = arena_format(arena, "%s", out);
    file_note(path, true);
    manifest_write(out, seed, console);
    folders_merge(path, arena_format(arena, "refsae %s", run_name(console, arena)), &folder, 1,
                  console);
    arena_free(arena);
}

/* One program for every target: built with -fsanitize=fuzzer it is libFuzzer's (make fuzz), alone
 * it reads files again, which is also how AFL++ calls it:
 *
 *   build-fuzz/fuzz -max_total_time=60 tests/fuzz/corpus/TARGET   with FUZZ_TARGET=TARGET
 *   build/replay                   all of tests/fuzz/corpus, each file by the target of its folder
 *   build/replay FILE...           with FUZZ_TARGET=TARGET; afl-fuzz -- build/replay @@
 *                                  (with FUZZ_SAY=1 what is said of each)
 *
 * Whatever a file holds, its reader gives a result or one sentence with exit code 2 or 3. */
#define _FILE_OFFSET_BITS 64
/* These two are part of what they are included from: their readers are called by nobody else. */
#include "run_mapping.c"
#include "run_sage.c"

#include "targets.h"

static void read_cross_file(Arena *arena, const char *path) {
    SageOptions options = {.cross_sections = path};
    SageRun *r = arena_alloc(arena, 1, sizeof *r);
    *r = (SageRun){.options = &options, .task = &induction, .arena = arena};
    r->llm.config.n_layers = 2;
    r->llm.config.n_heads = r->llm.config.n_kv_heads = 4;
    read_cross_sections(r);
}

static void read_verdicts(Arena *arena, const char *path) {
    VlmOptions options = {.judge = path};
    Descriptions descriptions = {.text = arena_alloc(arena, 1, sizeof(char *))};
    LayerResult layer = {.descriptions = descriptions};
    Analysis *a = arena_alloc(arena, 1, sizeof *a);
    *a =
        (Analysis){.options = &options, .arena = arena, .example = arena_within(arena), .first = 4};
    a->result.layers = &layer;
    a->result.n_layers = a->vlm.llm.config.n_layers = 1;
    a->run.of_layer = arena_alloc(arena, 1, sizeof(LayerResult *));
    a->run.of_layer[0] = &layer;
    verdicts_read(a);
}

static void read_checkpoint(Arena *arena, const char *path) {
    Trainer *t = arena_alloc(arena, 1, sizeof *t);
    Adapter part = {arena_floats(arena, 2, 3), arena_floats(arena, 2, 1), 2, 3};
    VlmOptions options = {.steps = 2, .batch = 1, .accumulate = 1};
    *t = (Trainer){.options = &options, .arena = arena, .checkpoint = path};
    t->settings = "--seed 0\n";
    t->vlm.adapter = t->run.m = t->run.v = part;
    t->data.count = 4;
    checkpoint_read(t);
}

/* A frame, wherever its marker stands, is at most 63 each way: `jpeg` spends most of its time on
 * the grey of pictures of random size. */
static void pack_small_jpeg(FILE *file, const unsigned char *data, size_t size) {
    size_t frame = SIZE_MAX / 2;
    for (size_t i = 0; i < size; i++) {
        bool marker = i > 0 && data[i - 1] == 0xFF && data[i] >= 0xC0 && data[i] <= 0xC2;
        frame = marker ? 1 : frame + 1;
        bool high = frame == 5 || frame == 7, low = frame == 6 || frame == 8;
        fputc(high ? 0 : low ? data[i] & 63 : data[i], file);
    }
}

static const Target within[] = {
    {"cross_sections", "cross.json", read_cross_file, NULL, NULL},
    {"judge", "judge.jsonl", read_verdicts, NULL, NULL},
    {"checkpoint", "checkpoint.safetensors", read_checkpoint, pack_safetensors, NULL},
    {"small_jpeg", "x.jpg", read_image, pack_small_jpeg, NULL}, /* from jpeg's corpus */
};

static const Target *target_find(const char *name) {
    name = name != NULL ? name : "";
    const Target *target = target_among(targets, TARGETS, name);
    target = target != NULL ? target : target_among(within, sizeof within / sizeof *within, name);
    if (target == NULL) {
        fail(STATUS_INPUT, "FUZZ_TARGET: no target '%s' in tests/fuzz", name);
    }
    return target;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const Target *target;
    if (target == NULL) {
        target = target_find(getenv("FUZZ_TARGET"));
        targets_open();
    }
    Error error = target_read(target, data, size);
    if (error.status != STATUS_OK && (error.text[0] == 0 || strchr(error.text, '\n') != NULL)) {
        abort(); /* one sentence, which libFuzzer then shows the input of */
    }
    return 0;
}

/* Not by file_map, which refuses what some of them begin with. */
static size_t replay(const Target *target, const char *path) {
    Arena *arena = arena_new();
    FILE *file = fopen(path, "rb");
    unsigned char *data = NULL;
    size_t size = 0, room = 0;
    if (file == NULL) {
        fail_errno(errno, path, "cannot open");
    }
    for (int c; (c = getc(file)) != EOF; size++) {
        data = arena_grow(arena, data, &room, size + 1, 1);
        data[size] = (unsigned char)c;
    }
    fclose(file);
    Error error = target_read(target, data, size);
    if (getenv("FUZZ_SAY") != NULL) {
        printf("%s: %d %s\n", path, (int)error.status, error.text);
    }
    arena_free(arena);
    return 1;
}

/* libFuzzer's own takes its place. */
__attribute__((weak)) int main(int count, char **files) {
    static const char corpus[] = "tests/fuzz/corpus";
    Arena *arena = arena_new();
    size_t folders = 0, names, read = 0;
    targets_open();
    for (int i = 1; i < count; i++) {
        read += replay(target_find(getenv("FUZZ_TARGET")), files[i]);
    }
    char **folder = count > 1 ? NULL : path_list(arena, corpus, &folders);
    for (size_t i = 0; i < folders; i++) {
        const char *directory = path_join(arena, corpus, folder[i]);
        char **name = path_list(arena, directory, &names);
        for (size_t k = 0; k < names; k++) {
            read += replay(target_find(folder[i]), path_join(arena, directory, name[k]));
        }
    }
    printf("%zu inputs of %zu targets read\n", read, folders);
    arena_free(arena);
    return 0;
}

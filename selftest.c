/* selftest.c: whether this machine's bits are right: a world made from random numbers, every
 * command run on it, and the digests that must come out, without files or network. */
#include "selftest.h"

#include "elementary.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "selftest_files.h"

/* ---- the digests ---- */

/* In the order of the stages. An intended change of a result changes its line: `refsae selftest`
 * prints what it found. */
static const struct {
    const char *file, *digest;
} expected[] = {
    {"functions", "a21f002243c742e931ebeeffab162110c330c885abf1db2885b9ccdfe70570d8"},
    {"gemma2.st", "965a84f307b21dcaa47578fd60a9ea5d418b7cb62e26cf926947822645dc4922"},
    {"gpt2.st", "d7f8e46325c1eac7fe01a002c4f4a7fd07e792c444e94987d487b46f65c22420"},
    {"gpt_neox.st", "d31a64310dccb2b16813ef404173ff45818a8945470f5c9314aa44f01e813966"},
    {"clip.st", "82629ddaea092a7dca6c5178f912e752c2c81efb1994d11d67e188e01efd2113"},
    {"png.st", "875812a55e921cd03bf28ce8ef22fa072f2afb509840d4feb9ed2e65f0622353"},
    {"train/adapter.safetensors",
     "15c0fa4cc23dc3c7bbbc7ed8895fbb54882746e645308437ba240e8b110f452e"},
    {"train/checkpoint.safetensors",
     "580b282bdcf1ba393fc610808ca84d5cb033f33a2f2400f6ee238ef7063abee8"},
    {"train/train.csv", "f161707af2994f4d2371aa969a53fa43260e5c029d6fc4a56c1e1b5b3572649e"},
    {"eval/answers.jsonl", "9289f38e3790c30b4c58188536e9546f613be7ccbbe02526bf26b94bad893e64"},
    {"eval/scores.json", "599598c1d31f094bf3e6f73d3fc08fa8024feced325628f9dedf10c87ba7b288"},
    {"analyze/layers.csv", "1a7b65f4340914786f6816e2d0acebc86153de92cf6a074f6cb4204aa1124af1"},
    {"analyze/layers.json", "052af60c1fb0fbc3b11104e9271b6ada8f8d2134f4d92775d53740b6ebb307be"},
    {"analyze/features.jsonl", "441cf24d33ba8797958ca80d806582448e5d11513e5163a4e46e48e61a5bb639"},
    {"sage/prompts.jsonl", "9fc6bc3684382542d30a1c20a80c6c7bc1b484abd8e46ec57020705f0fce9909"},
    {"sage/cross_sections.csv", "c864a433a17b0a7d1a7cc979c94194ccd30ab26dd6cd0fbddf3383f12eb45430"},
    {"sage/sage.csv", "d7e5d66df4b4eb17948ea17a6ba426d57a279d4775b2affc3d0f8cde8188ea7b"},
    {"sage/sage.json", "a92626634e573786ba4c8db91f88357446e8b9f213c5f9c4e74eb639d4e35eae"},
};

enum {
    N_EXPECTED = sizeof expected / sizeof *expected
};

/* ---- files ---- */

/* The files that are no random numbers, as they lie in selftest/. */
static void write_files(void) {
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof selftest_files / sizeof *selftest_files; i++) {
        const char *name = selftest_files[i].name, *slash = strrchr(name, '/');
        if (slash != NULL) {
            path_make_directory(arena_copy(arena, name, (size_t)(slash - name)));
        }
        OutFile *file = out_open(name);
        fwrite(selftest_files[i].text, 1, selftest_files[i].size, file->stream);
        out_commit(file);
    }
    arena_free(arena);
}

void remove_tree(const char *path, int depth) {
    if (depth == 8 || !path_is_directory(path)) {
        (void)unlink(path);
        return;
    }
    Arena *arena = arena_new();
    size_t count;
    char **names = path_list(arena, path, &count);
    for (size_t i = 0; i < count; i++) {
        remove_tree(path_join(arena, path, names[i]), depth + 1);
    }
    (void)rmdir(path);
    arena_free(arena);
}

/* ---- random checkpoints ---- */

/* BF16 and F16 by dropping the low bits; what is too small for an F16 is 0. */
static uint16_t narrow(float x, Dtype dtype) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (dtype == DTYPE_BF16) {
        return (uint16_t)(bits >> 16);
    }
    uint32_t exponent = (bits >> 23) & 0xff;
    uint32_t low = exponent < 113 ? 0 : ((exponent - 112) << 10) | ((bits >> 13) & 0x3ff);
    return (uint16_t)(((bits >> 16) & 0x8000) | low);
}

/* A line of tensors.txt: "NAME MEAN SPREAD SHAPE..."; false: of another kind. */
static bool tensor_line(const char *line, char name[96], float *mean, float *spread, int *rank,
                        size_t shape[4]) {
    int found = line == NULL ? 0
                             : sscanf(line, "%95s %f %f %zu %zu %zu %zu", name, mean, spread, shape,
                                      shape + 1, shape + 2, shape + 3);
    *rank = found - 3;
    return found > 3;
}

/* Draws the tensors below a line "> FILE DTYPE", which are normal numbers from a stream of the
 * file's own; returns the next such line. */
static char **draw_file(Arena *arena, char **lines, uint64_t stream) {
    char path[96], type[8], name[96];
    float mean, spread;
    int rank;
    size_t shape[4];
    sscanf(*lines++, "> %95s %7s", path, type);
    Dtype dtype = type[0] == 'B' ? DTYPE_BF16 : strcmp(type, "F16") == 0 ? DTYPE_F16 : DTYPE_F32;
    Random random = random_start(1, RANDOM_TEST + (stream << 32));
    path_make_directory(path_parent(arena, path));
    TensorWriter *writer = tensor_writer_open(path);
    for (char **line = lines; tensor_line(*line, name, &mean, &spread, &rank, shape); line++) {
        tensor_writer_declare(writer, name, dtype, rank, shape);
    }
    for (; tensor_line(*lines, name, &mean, &spread, &rank, shape); lines++) {
        size_t count = 1;
        float normals[2];
        for (int d = 0; d < rank; d++) {
            count *= shape[d];
        }
        for (size_t k = 0; k < count; k++) {
            if (k % 2 == 0) {
                random_normals(&random, normals);
            }
            float x = mean + spread * normals[k % 2];
            uint16_t half = narrow(x, dtype);
            tensor_writer_data(writer, dtype == DTYPE_F32 ? (void *)&x : (void *)&half,
                               dtype_size(dtype), 1);
        }
    }
    tensor_writer_commit(writer);
    return lines;
}

static void draw_checkpoints(void) {
    Arena *arena = arena_new();
    FileMap map = file_map(arena, "tensors.txt");
    char *text = arena_copy(arena, (const char *)map.data, map.size), **lines = NULL;
    size_t count = 0, capacity = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        lines = arena_grow(arena, lines, &capacity, count + 2, sizeof *lines);
        lines[count++] = line;
    }
    uint64_t stream = 1;
    for (char **line = lines; *line != NULL;) {
        line = draw_file(arena, line, stream++);
    }
    arena_free(arena);
}

/* ---- the stages ---- */

static void run_functions(void) {
    static float (*const functions[])(float) = {exp_f32, log_f32, tanh_f32,
                                                erf_f32, sin_f32, cos_f32};
    Random random = random_start(1, RANDOM_TEST);
    OutFile *file = out_open("functions");
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        for (int i = 0; i < 20000; i++) {
            float x, y;
            uint32_t bits = random_word(&random);
            memcpy(&x, &bits, sizeof x);
            y = functions[f](x);
            if (y == y) { /* the bits of a NaN are its own */
                unsigned char bytes[sizeof y];
                little_copy(bytes, &y, sizeof y, 1);
                fwrite(bytes, sizeof y, 1, file->stream);
            }
        }
    }
    out_commit(file);
}

#define IDS " --ids 2,70,71,261,9,100,33,262,12,250,8 --hooks * --grad 261,262 --out "

static void run_stages(const Compute *compute, CommandRun *run) {
    static const struct {
        const char *words, *paths[3];
    } stages[] = {
        {"dump --llm gemma2" IDS "gemma2.st", {NULL}},
        {"dump --llm gpt2" IDS "gpt2.st", {NULL}},
        {"dump --llm gpt_neox" IDS "gpt_neox.st", {NULL}},
        {"dump --vision clip --image images/c.jpg --hooks * --out clip.st", {NULL}},
        {"dump --image images/d.png --hooks image.rgb --out png.st", {NULL}},
        {SELFTEST_TRAIN, {"gemma2", "clip"}},
        {"eval --llm gemma2 --vision clip --adapter train/adapter.safetensors --out eval "
         "--questions questions.jsonl --images images --max-new-tokens 6 --temperature 0.7 "
         "--top-k 40 --top-p 0.9",
         {NULL}},
        {SELFTEST_ANALYZE, {"gemma2", "clip", "saes_gemma2"}},
        {SELFTEST_SAGE, {"gpt2", "saes_gpt2", "task.json"}},
    };
    run_functions();
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        run(compute, stages[i].words, stages[i].paths);
    }
}

static void compare(bool json, FILE *out) {
    size_t wrong = 0;
    fputs(json ? "[" : "", out);
    for (size_t i = 0; i < N_EXPECTED; i++) {
        char digest[65];
        sha256_file(expected[i].file, digest);
        bool same = strcmp(digest, expected[i].digest) == 0;
        wrong += same ? 0 : 1;
        fprintf(out,
                json ? "%s{\"output\": \"%s\", \"sha256\": \"%s\", \"same\": %s}"
                     : "%s%-28s %s  %s\n",
                json && i > 0 ? ", " : "", expected[i].file, digest,
                json   ? same ? "true" : "false"
                : same ? "ok"
                       : "DIFFERS");
    }
    fputs(json ? "]\n" : "", out);
    if (wrong > 0) {
        fail(STATUS_CHECK, "selftest: %zu of %d outputs have other bytes than they should", wrong,
             (int)N_EXPECTED);
    }
}

void selftest_inside(const char *path, void (*work)(void *user), void *user) {
    char back[4096];
    Error error;
    if (getcwd(back, sizeof back) == NULL || chdir(path) != 0) {
        fail(STATUS_RESOURCE, "%s: %s", path, strerror(errno));
    }
    ATTEMPT(&error, write_files(); draw_checkpoints(); work(user));
    if (chdir(back) != 0 && error.status == STATUS_OK) {
        ATTEMPT(&error, fail(STATUS_RESOURCE, "the way back from %s: %s", path, strerror(errno)));
    }
    if (error.status != STATUS_OK) {
        fail(error.status, "%s", error.text);
    }
}

typedef struct Check {
    const Compute *compute;
    CommandRun *run;
    bool json;
    FILE *out;
} Check;

static void check_stages(void *user) {
    const Check *check = user;
    run_stages(check->compute, check->run);
    compare(check->json, check->out);
}

/* A folder of our own below TMPDIR; its name is `size` bytes at most. */
static void make_world(char *path, size_t size) {
    const char *base = getenv("TMPDIR");
    base = base != NULL && base[0] != '\0' ? base : "/tmp";
    int made = -1;
    errno = EEXIST;
    for (int n = 0; made != 0 && errno == EEXIST && n < 10000; n++) {
        int length = snprintf(path, size, "%s/refsae-selftest-%d", base, n);
        bool fits = length >= 0 && (size_t)length < size;
        errno = fits ? 0 : ENAMETOOLONG;
        made = fits ? mkdir(path, 0700) : -1;
    }
    if (made != 0) {
        fail(STATUS_RESOURCE, "selftest: no folder can be made in %s: %s (see TMPDIR)", base,
             strerror(errno));
    }
}

void selftest_world(void (*work)(void *user), void *user) {
    char path[4096];
    Error error, ignored;
    make_world(path, sizeof path);
    ATTEMPT(&error, selftest_inside(path, work, user));
    ATTEMPT(&ignored, remove_tree(path, 0)); /* must not hide why the work failed */
    if (error.status != STATUS_OK) {
        fail(error.status, "%s", error.text);
    }
}

void selftest_run(const Compute *compute, CommandRun *run, bool json, FILE *out) {
    selftest_world(check_stages, &(Check){compute, run, json, out});
}

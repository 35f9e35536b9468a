/* The readers of files that anybody may have written, in one table for the fuzzers (fuzz.c) and for
 * the hostile files (test_hostile.c): each in a folder of its own beside valid files, so that it is
 * reached as the program reaches it. Run from the root of the repository. */
#ifndef REFSAE_FUZZ_TARGETS_H
#define REFSAE_FUZZ_TARGETS_H

#include "data.h"
#include "image.h"
#include "model_load.h"
#include "sae_load.h"
#include "task.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Target {
    const char *name, *file; /* file: what the input is called in its folder */
    void (*read)(Arena *arena, const char *path);
    void (*pack)(FILE *file, const unsigned char *data, size_t size); /* NULL: as it is */
    const char *beside; /* a folder whose other files stand beside it; NULL: none */
} Target;

/* ---- what no mutation gets through: lengths and checksums, which are made to fit ---- */

static void put_little(FILE *file, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        fputc((int)(i < 8 ? value >> 8 * i & 255 : 0), file);
    }
}

/* The header of a safetensors file up to a 0 byte, then its data. */
static void pack_safetensors(FILE *file, const unsigned char *data, size_t size) {
    size_t header = strnlen((const char *)data, size), rest = header + (header < size);
    put_little(file, header, 8);
    fwrite(data, 1, header, file);
    fwrite(data + rest, 1, size - rest, file);
}

/* A zip of stored members, the first of which is the input, the other 64 bytes. */
static void pack_zip(FILE *file, const char *const names[2], const unsigned char *data,
                     size_t size) {
    static const unsigned char other[64];
    const unsigned char *of[2] = {data, other};
    size_t sizes[2] = {size, sizeof other}, at[3] = {0};
    for (int i = 0; i < 2; i++) {
        size_t name = strlen(names[i]);
        put_little(file, 0x04034B50, 4), put_little(file, 0, 22), put_little(file, name, 4);
        fputs(names[i], file);
        fwrite(of[i], 1, sizes[i], file);
        at[i + 1] = at[i] + 30 + name + sizes[i];
    }
    for (int i = 0; i < 2; i++) {
        put_little(file, 0x02014B50, 4), put_little(file, 0, 12);
        put_little(file, crc32_of(0, of[i], sizes[i]), 4);
        put_little(file, sizes[i], 4), put_little(file, sizes[i], 4);
        put_little(file, strlen(names[i]), 14), put_little(file, at[i], 4);
        fputs(names[i], file);
    }
    put_little(file, 0x06054B50, 8), put_little(file, 2 << 16 | 2, 4);
    put_little(file, 92 + strlen(names[0]) + strlen(names[1]), 4), put_little(file, at[2], 6);
}

static void pack_npz(FILE *file, const unsigned char *data, size_t size) {
    pack_zip(file, (const char *const[2]){"x.npy", "y"}, data, size);
}

static void pack_pickle(FILE *file, const unsigned char *data, size_t size) {
    pack_zip(file, (const char *const[2]){"a/data.pkl", "a/data/0"}, data, size);
}

/* The checksums of whole chunks. */
static void pack_png(FILE *file, const unsigned char *data, size_t size) {
    size_t at = size < 8 ? size : 8;
    fwrite(data, 1, at, file);
    while (size - at >= 12 && big32(data + at) <= size - at - 12) {
        size_t n = big32(data + at);
        uint32_t crc = crc32_of(0, data + at + 4, n + 4);
        fwrite(data + at, 1, n + 8, file);
        for (int i = 24; i >= 0; i -= 8) {
            fputc((int)(crc >> i & 255), file);
        }
        at += n + 12;
    }
    fwrite(data + at, 1, size - at, file);
}

/* ---- readers ---- */

static Tokenizer *tokenizers[3]; /* GPT-2's, GPT-NeoX's and Gemma's, small */
static SageTask induction;

static void read_json(Arena *arena, const char *path) {
    JsonOut out = json_out_start(memory_open(arena)->stream, 0);
    json_out_value(&out, NULL, json_read_file(arena, path));
}

static void read_conversations(Arena *arena, const char *path) {
    JsonArrayFile file;
    Arena *one = arena_within(arena);
    json_array_open(&file, arena, path);
    for (size_t i = 0; i < file.count; i++) {
        arena_reset(one);
        Conversation c = conversation_read(one, &file, i);
        conversation_place_image(one, &c);
        for (size_t t = 0; t < c.count; t++) {
            (void)turn_replace_image(one, &c.turns[t], "x", 1);
        }
    }
}

static void read_questions(Arena *arena, const char *path) {
    JsonLines lines = json_lines(arena, path);
    Scores scores = {0};
    for (const Json *line; (line = json_line(arena, &lines)) != NULL;) {
        Question question = question_parse(arena, line, path, lines.line);
        score_answer(&scores, question.text.text, strlen(question.text.text), &question);
        (void)lexical_match(question.text.text, question.image);
    }
}

static void read_prompt_option(Arena *arena, const char *path) {
    FileMap map = file_map(arena, path);
    const char *text = arena_copy(arena, (const char *)map.data, map.size);
    (void)conversation_prompt(arena, text, false);
    (void)conversation_prompt(arena, text, true);
}

/* "GLOB" or, on two lines, a glob and a name. */
static void read_glob(Arena *arena, const char *path) {
    FileMap map = file_map(arena, path);
    char *text = arena_copy(arena, (const char *)map.data, map.size);
    size_t line = strcspn(text, "\n");
    const char *name = text[line] != 0 ? text + line + 1 : "blocks.0.hook_resid_pre";
    HookKind kind;
    int layer;
    bool vision;
    text[line] = 0;
    (void)hook_parse(text, &kind, &layer, &vision);
    (void)glob_match(*glob_list(arena, text), name);
}

static void read_tensors(Arena *arena, const char *path) {
    TensorStore store;
    tensors_open(&store, arena, path);
    volatile unsigned char sum = 0; /* every byte is there */
    for (size_t i = 0; i < store.count; i++) {
        size_t bytes = store.tensors[i].count * dtype_size(store.tensors[i].dtype);
        for (size_t k = 0; k < bytes; k += 1 + bytes / 4096) {
            sum = (unsigned char)(sum + ((const unsigned char *)store.tensors[i].data)[k]);
        }
    }
}

static void read_inflate(Arena *arena, const char *path) {
    FileMap map = file_map(arena, path);
    size_t room = 1 << 16;
    unsigned char *out = arena_alloc(arena, room, 1);
    if (gzip_is(&map)) {
        (void)gzip_unpack(arena, &map, path);
    } else if (map.size > 0 && (map.data[0] & 15) == 8) {
        (void)inflate_zlib(out, room, map.data, map.size, path);
    } else {
        (void)inflate_raw(out, room, map.data, map.size, NULL, path);
    }
}

static void read_adapter(Arena *arena, const char *path) {
    Adapter adapter = {arena_floats(arena, 2, 3), arena_floats(arena, 2, 1), 2, 3};
    adapter_read(&adapter, path, "the models");
}

static void read_image(Arena *arena, const char *path) {
    (void)image_read(arena, path);
}

static void read_preprocess(Arena *arena, const char *path) {
    size_t height, width;
    Image image = image_new(arena, 5, 4, "PPM", 0);
    Preprocess settings = preprocess_open(path_parent(arena, path), 32);
    (void)preprocess_apply(arena, &height, &width, &settings, &image);
}

static void encode_all(Arena *arena, const Tokenizer *t, const char *text, size_t length) {
    size_t back;
    Tokens tokens = tokenizer_encode_fit(t, text, length, true, arena);
    (void)tokenizer_decode(t, tokens.id, tokens.count, false, arena, &back);
}

static void read_tokenizer(Arena *arena, const char *path) {
    static const char text[] = "The 12 cats' caf\xC3\xA9  e\xCC\x81 <bos>\t<|endoftext|> a\n\n b";
    encode_all(arena, tokenizer_open(arena, path_parent(arena, path)), text, sizeof text - 1);
}

static void read_text(Arena *arena, const char *path) {
    FileMap map = file_map(arena, path);
    for (int i = 0; i < 3; i++) {
        encode_all(arena, tokenizers[i], (const char *)map.data, map.size);
    }
}

static void read_sae(Arena *arena, const char *path) {
    Sae sae;
    sae_open(&sae, arena, path_parent(arena, path), NULL);
}

static void read_llm(Arena *arena, const char *path) {
    Llm llm;
    llm_open(&llm, arena, path_parent(arena, path));
}

static void read_vit(Arena *arena, const char *path) {
    Vit vit;
    vit_open(&vit, arena, path_parent(arena, path));
}

static void read_shards(Arena *arena, const char *path) {
    TensorStore store;
    tensors_open(&store, arena, path_parent(arena, path));
}

static void read_task(Arena *arena, const char *path) {
    SageTask task;
    sage_task_open(&task, arena, path, tokenizers[0]);
    sage_prompts_draw(&task, tokenizers[0], -1, (size_t[]){1, 1}, 0);
    (void)sage_kinds(&task, 0, arena);
}

static void read_prompts(Arena *arena, const char *path) {
    SageTask task = induction; /* what is read is not left in the one that stays */
    task.arena = arena;
    sage_prompts_read(&task, path, tokenizers[0], 1 << 16);
}

static void read_descriptions(Arena *arena, const char *path) {
    (void)descriptions_read(arena, path_parent(arena, path_parent(arena, path)), 3, 8);
}

#define GOLDEN "tests/golden/"
static const Target targets[] = {
    {"json", "input.json", read_json, NULL, NULL},
    {"conversations", "input.json", read_conversations, NULL, NULL},
    {"questions", "input.jsonl", read_questions, NULL, NULL},
    {"prompt_option", "input", read_prompt_option, NULL, NULL},
    {"glob", "input", read_glob, NULL, NULL},
    {"tensors", "input", read_tensors, NULL, NULL},
    {"safetensors", "x.safetensors", read_tensors, pack_safetensors, NULL},
    {"npy", "x.npz", read_tensors, pack_npz, NULL},
    {"pickle", "x.pt", read_tensors, pack_pickle, NULL},
    {"inflate", "input", read_inflate, NULL, NULL},
    {"adapter", "adapter.safetensors", read_adapter, pack_safetensors, NULL},
    {"jpeg", "x.jpg", read_image, NULL, NULL},
    {"png", "x.png", read_image, pack_png, NULL},
    {"pnm", "x.ppm", read_image, NULL, NULL},
    {"preprocess", "preprocessor_config.json", read_preprocess, NULL, NULL},
    {"tokenizer", "tokenizer.json", read_tokenizer, NULL, NULL},
    {"tokenizer_config", "tokenizer_config.json", read_tokenizer, NULL, "vectors/tokenizers/added"},
    {"text", "input.txt", read_text, NULL, NULL},
    {"gpt2", "config.json", read_llm, NULL, GOLDEN "models/gpt2_untied"},
    {"gpt_neox", "config.json", read_llm, NULL, GOLDEN "models/neox_nobias"},
    {"gemma2", "config.json", read_llm, NULL, GOLDEN "models/gemma2_plain"},
    {"clip", "config.json", read_vit, NULL, GOLDEN "models/clip_odd"},
    {"index", "model.safetensors.index.json", read_shards, NULL, GOLDEN "tensor/shards"},
    {"saelens", "cfg.json", read_sae, NULL, GOLDEN "sae/saelens/standard"},
    {"sae_weights", "sae_weights.safetensors", read_sae, pack_safetensors,
     GOLDEN "sae/saelens/jumprelu"},
    {"sparsify", "cfg.json", read_sae, NULL, "weights/saes/gpt_neox/embed_in"},
    {"dictionary", "config.json", read_sae, NULL,
     GOLDEN "sae/dictionary/Standard_pythia-70m-deduped__0108/resid_post_layer_3/trainer_0"},
    {"task", "task.json", read_task, NULL, NULL},
    {"prompts", "prompts.jsonl", read_prompts, NULL, NULL},
    {"descriptions", "3-layer/0-8.json", read_descriptions, NULL, NULL},
};
enum {
    TARGETS = sizeof targets / sizeof *targets
};

static const Target *target_among(const Target *list, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(list[i].name, name) == 0) {
            return &list[i];
        }
    }
    return NULL;
}

/* ---- folders ---- */

static char targets_folder[64];

static void targets_remove(void) {
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", targets_folder);
    (void)!system(command);
}

/* Once, outside of every ATTEMPT: what stays open, and where the folders will be. */
static void targets_open(void) {
    static const char *const files[] = {"flags_gpt2.json", "flags_neox.json", "flags_gemma.json"};
    Arena *arena = arena_new();
    for (int i = 0; i < 3; i++) {
        tokenizers[i] = tokenizer_open(arena, path_join(arena, GOLDEN "tokenizer", files[i]));
    }
    Tokenizer *words = tokenizer_open(arena, "weights/gpt2");
    sage_task_open(&induction, arena, "induction", words);
    tokenizers[0] = words;
    snprintf(targets_folder, sizeof targets_folder, "%s/refsae-fuzz-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(targets_folder) == NULL) {
        fail_errno(errno, targets_folder, "cannot make this directory");
    }
    atexit(targets_remove);
}

/* The input as the target's file; its path, in the arena. */
static const char *target_write(const Target *target, Arena *arena, const unsigned char *data,
                                size_t size) {
    const char *folder = path_join(arena, targets_folder, target->name);
    const char *path = path_join(arena, folder, target->file);
    if (!path_exists(folder)) {
        char here[4096] = "";
        size_t count = 0;
        path_make_directory(path_parent(arena, path));
        char **names = target->beside != NULL ? path_list(arena, target->beside, &count) : NULL;
        for (size_t i = 0; i < count; i++) {
            if (strcmp(names[i], target->file) != 0 &&
                (getcwd(here, sizeof here) == NULL ||
                 symlink(arena_format(arena, "%s/%s/%s", here, target->beside, names[i]),
                         path_join(arena, folder, names[i])) != 0)) {
                fail_errno(errno, folder, "cannot link the files beside the input");
            }
        }
    }
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        fail_errno(errno, path, "cannot write");
    }
    if (target->pack != NULL) {
        target->pack(file, data, size);
    } else {
        fwrite(data, 1, size, file);
    }
    fclose(file);
    return path;
}

/* Why the input is refused; STATUS_OK: it is read. */
static Error target_read(const Target *target, const unsigned char *data, size_t size) {
    Error error;
    Arena *arena = arena_new();
    const char *path = target_write(target, arena, data, size);
    ATTEMPT(&error, target->read(arena_within(arena), path));
    arena_free(arena);
    return error;
}

#endif

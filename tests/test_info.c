/* Behaviour: what `info` says of every kind of file, for people and as JSON. */
#include <criterion/criterion.h>
#include <string.h>

#include "info.h"
#include "json.h"
#include "model_load.h"
#include "scratch.h"

typedef struct Told {
    char *text;
    const Json *value; /* of the first path */
    Error error;
    Arena *arena;
} Told;

static void ask(Told *t, const char *path, bool json) {
    Compute compute;
    char *paths[] = {(char *)(uintptr_t)path};
    *t = (Told){.arena = arena_new()};
    compute_open(&compute, t->arena, 1);
    MemoryStream *memory = memory_open(t->arena);
    ATTEMPT(&t->error, info_run(&compute, paths, 1, json, memory->stream));
    t->text = memory_text(memory);
    if (json) {
        t->value = json_parse(t->arena, t->text, memory->length, path)->child;
    }
}

static void forget(Told *t) {
    arena_free(t->arena);
}

/* Keys are unique and of small letters, digits and underscores, at every level. */
static void keys_are_plain(const Json *value, const char *path) {
    for (const Json *child = value->child; child != NULL; child = child->next) {
        if (value->kind == JSON_OBJECT) {
            cr_assert_eq(strspn(child->key, "abcdefghijklmnopqrstuvwxyz0123456789_"),
                         strlen(child->key), "%s: '%s'", path, child->key);
            cr_assert_eq(json_get(value, child->key), child, "%s: '%s' twice", path, child->key);
        }
        keys_are_plain(child, path);
    }
}

/* Whether a member is as written: a text, or a number or true or false by its JSON text; "a.b" goes
 * down. */
static void member_is(const Told *t, const char *name, const char *expected, const char *path) {
    char key[64];
    const Json *value = t->value;
    for (const char *at = name; value != NULL && at != NULL;) {
        const char *dot = strchr(at, '.');
        snprintf(key, sizeof key, "%.*s", dot != NULL ? (int)(dot - at) : (int)strlen(at), at);
        value = json_get(value, key);
        at = dot != NULL ? dot + 1 : NULL;
    }
    cr_assert_not_null(value, "%s: no '%s'", path, name);
    const char *found = value->kind == JSON_TRUE    ? "true"
                        : value->kind == JSON_FALSE ? "false"
                        : value->kind == JSON_NULL  ? "null"
                                                    : value->text;
    cr_assert(strcmp(expected, "*") == 0 || strcmp(found, expected) == 0, "%s: '%s' is %s", path,
              name, found);
}

#define SAES "tests/golden/sae/"

Test(info, knows_every_kind) {
    static const struct {
        const char *path, *members[10]; /* pairs */
    } cases[] = {
        {"weights/gemma2",
         {"kind", "language model", "model_type", "gemma2", "dtype", "BF16", "tied_head", "true",
          "memory.train", "*"}},
        {"weights/gpt2/config.json",
         {"kind", "language model", "model_type", "gpt2", "positions", "128", "parallel_blocks",
          "false", "memory.generate", "*"}},
        {"tests/golden/models/neox_par",
         {"model_type", "gpt_neox", "parallel_blocks", "true", "tied_head", "false",
          "rotary_dimensions", "4", "memory.dump_grad", "*"}},
        {"tests/golden/models/clip_odd", {"kind", "CLIP vision tower"}},
        {"tests/golden/models/gemma2_odd/model.safetensors.index.json", {"kind", "tensors"}},
        {"weights/clip",
         {"kind", "CLIP vision tower", "image_tokens", "16", "patch_size", "16", "dtype", "F32",
          "memory.dump", "*"}},
        {SAES "saelens/topk_rescale",
         {"kind", "sparse autoencoder", "format", "SAELens", "k", "6", "rescale_by_decoder_norm",
          "true", "hook_point", "blocks.4.hook_resid_post"}},
        {SAES "saelens/old_centred",
         {"format", "SAELens before 6", "stream_centred", "true", "normalization", "none",
          "b_dec_subtracted", "true", "memory.dump_sae", "*"}},
        {SAES "saelens/old_hook_z_folded",
         {"value_biases_folded", "true", "stream_centred", "not said: --centre yes|no", "d_in",
          "21", "d_sae", "40"}},
        {SAES "saelens/expected_average/cfg.json",
         {"normalization", "expected_average_only_in", "normalization_factor",
          "not in the file: give --norm-factor X"}},
        {SAES
         "dictionary/JumpRelu_pythia-70m-deduped__0108/resid_post_layer_3/trainer_3/config.json",
         {"format", "dictionary_learning", "activation", "JumpReLU"}},
        {SAES "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59/params.npz",
         {"format", "GemmaScope", "activation", "JumpReLU", "b_dec_subtracted", "false",
          "average_l0", "59", "hook_point", "blocks.3.hook_resid_post"}},
        {SAES "sparsify/layers.1.mlp",
         {"format", "EleutherAI sparsify", "activation", "top k, then ReLU", "hook_point",
          "blocks.1.hook_mlp_out"}},
        {"weights/saes/gpt2", {"kind", "sparse autoencoders", "count", "5"}},
        {SAES "gemma-scope-2b-pt-res",
         {"kind", "sparse autoencoders", "count", "4"}}, /* two for one layer */
        {"tests/golden/training/toy/adapter_off.safetensors",
         {"kind", "adapter", "d_llm", "80", "d_vit", "64"}},
        {"tests/golden/models/gpt2_odd.safetensors", {"kind", "tensors", "dtype", "F32"}},
        {"weights/train.json",
         {"kind", "conversations", "examples", "2025", "with_image", "2020", "turns", "5164"}},
        {"weights/questions.jsonl", {"kind", "questions", "entries", "240"}},
        {"weights/descriptions",
         {"kind", "feature descriptions", "layer_0", "482", "layer_1", "479"}},
        {"weights/descriptions/1-gemmascope-res-512/",
         {"kind", "feature descriptions", "layer_1", "479"}},
        {"weights/descriptions/0-gemmascope-res-512/0-128.json",
         {"kind", "feature descriptions", "entries", "128"}},
        {"weights/mapping_published.csv", {"kind", "curves by layer", "entries", "26"}},
        {"tasks/ioi.json", {"kind", "task", "entries", "3"}},
        {"tasks/ioi-gpt2-circuit.json", {"kind", "cross-sections", "entries", "5"}},
        {"weights/planted/prompts.jsonl", {"kind", "prompts", "entries", "*"}},
        {"weights/gpt2/tokenizer_config.json", {"kind", "tokenizer", "vocabulary", "1080"}},
        {"weights/gpt2/generation_config.json", {"kind", "language model", "model_type", "gpt2"}},
        {"weights/clip/preprocessor_config.json", {"kind", "CLIP vision tower"}},
        {"weights/gemma2/tokenizer.json", {"kind", "tokenizer", "vocabulary", "1200"}},
        {"weights/images/held_000.png",
         {"kind", "image", "format", "PNG", "width", "77", "height", "77", "memory.dump",
          "20867"}}, /* 3 x 77 x 77 and rows of 1 + 39 */
        {"weights/images/held_001.jpg",
         {"kind", "image", "format", "JPEG", "memory.dump", "74028"}}, /* 300 blocks of 192 */
        {"tests/golden/image/raw.pgm", {"kind", "image"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Told t;
        ask(&t, cases[i].path, true);
        cr_assert_eq(t.error.status, STATUS_OK, "%s", t.error.text);
        keys_are_plain(t.value, cases[i].path);
        member_is(&t, "path", cases[i].path, cases[i].path);
        for (size_t m = 0; m + 1 < 10 && cases[i].members[m] != NULL; m += 2) {
            member_is(&t, cases[i].members[m], cases[i].members[m + 1], cases[i].path);
        }
        forget(&t);
        ask(&t, cases[i].path, false); /* for people: the kind, whatever it is */
        cr_assert_not_null(strstr(t.text, "  kind  "), "%s", t.text);
        forget(&t);
    }
}

/* 640 tokens do not fit where 128 positions were learned. */
Test(info, memory_is_for_no_more_than_all_positions) {
    Told t;
    Llm llm;
    Compute compute;
    LlmPlan plan = {
        .max_rows = 128, .max_sequence = 128, .max_sequences = 1, .max_logits = 1, .cache = true};
    ask(&t, "weights/gpt2", true);
    compute_open(&compute, t.arena, 1);
    llm_open(&llm, t.arena, "weights/gpt2");
    member_is(&t, "memory.generate",
              arena_format(t.arena, "%zu", llm_memory(&llm, &compute, &plan)), "weights/gpt2");
    forget(&t);
}

Test(info, models_beside_saes_are_told) {
    Told t;
    ask(&t, "weights", true);
    cr_assert_eq(t.error.status, STATUS_OK, "%s", t.error.text);
    const Json *models = json_get(t.value, "models");
    cr_assert_eq(models->length, 4);
    cr_assert(json_text_is(json_get(models->child, "model_type"), "clip_vision_model"));
    cr_assert(json_text_is(json_get(models->child, "folder"), "weights/clip"));
    forget(&t);
}

Test(info, what_is_none_is_said) {
    static const char *const bad[] = {"tests/reference", "weights/no_such", "README.md", "Makefile",
                                      "tests/test_info.c"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        Told t;
        ask(&t, bad[i], true);
        cr_assert_eq(t.error.status, STATUS_INPUT, "%s", bad[i]);
        member_is(&t, "error", t.error.text, bad[i]);
        cr_assert_not_null(strstr(t.error.text, bad[i]), "%s", t.error.text);
        forget(&t);
    }
}

static void write_text(const char *path, const char *text) {
    OutFile *out = out_open(path);
    fputs(text, out->stream);
    out_commit(out);
}

/* By the first bytes, whatever the name; of JSON by the first record. */
Test(info, a_file_is_what_it_holds) {
    static const struct {
        const char *name, *text, *says;
    } cases[] = {
        {"none.json", "[]", "\"kind\": \"conversations\""},
        {"number.json", "[3]", "JSON of no kind that refsae reads"},
        {"other.json", "[{\"a\": 1}]", "JSON of no kind that refsae reads"},
        {"object.json", "{\"abcd\":{}}", "JSON of no kind that refsae reads"},
        {"eighth.json", "[1,2,3, {}]", "JSON of no kind that refsae reads"},
        {"two.json", " {\"a\": 1} x", "line 1, column 11: expected nothing after the value"},
        {"mark.json", "\xEF\xBB\xBF{\"a\": 1}", "JSON of no kind that refsae reads"},
        {"layers.csv", "layer,x\n0,1", "\"entries\": 1"}, /* the last line may have no end */
        {"mark.csv", "\xEF\xBB\xBFlayer,x\n0,1\n", "\"kind\": \"curves by layer\""},
        {"picture.jpg", "\xFFxxxxxxxxx", "of no kind that refsae reads"},
        {"sae.npz", "PK\3\4xxxxxxx", "a zip whose end is missing"},
        {"1234567890-a/0-1.json", "[]", "no SAE below it"}, /* too large for a layer */
        {"12x/0-1.json", "[]", "no SAE below it"},
        {"7/0-1.json", "[{\"index\": 1, \"description\": \"a\"}]", "\"layer_7\": 1"},
    };
    folder_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Told t;
        char *name = in(folder, cases[i].name), *slash = strchr(cases[i].name, '/');
        if (slash != NULL) {
            folder_remove();
            path_make_directory(path_parent(arena_new(), name));
        }
        write_text(name, cases[i].text);
        ask(&t, slash != NULL ? folder : name, true);
        cr_assert_not_null(strstr(t.text, cases[i].says), "%s: %s", name, t.text);
        forget(&t);
    }
    cr_assert_eq(setenv("FOLDER", folder, 1), 0);
    cr_assert_eq(system("gzip $FOLDER/7/0-1.json"), 0); /* packed, it is told by its folder */
    Told t;
    ask(&t, in(folder, "7/0-1.json.gz"), true);
    member_is(&t, "layer_7", "1", folder);
    forget(&t);
    folder_remove();
}

/* weight [2, 3], or [6], and `bias` values of this rank (0: none). */
static void write_linear(const char *path, int weight_rank, size_t bias, int bias_rank,
                         bool settings) {
    static const float zeros[6];
    const size_t matrix[] = {2, 3}, six = 6, biases[] = {bias, 1}, one = 1;
    TensorWriter *writer = tensor_writer_open(path);
    tensor_writer_declare(writer, "weight", DTYPE_F32, weight_rank,
                          weight_rank == 2 ? matrix : &six);
    if (bias_rank > 0) {
        tensor_writer_declare(writer, "bias", DTYPE_F32, bias_rank, biases);
    }
    if (settings) {
        tensor_writer_declare(writer, "settings", DTYPE_F32, 1, &one);
    }
    tensor_writer_data(writer, zeros, sizeof *zeros, 6);
    tensor_writer_data(writer, zeros, sizeof *zeros, bias_rank > 0 ? bias : 0);
    tensor_writer_data(writer, zeros, sizeof *zeros, settings ? 1 : 0);
    tensor_writer_commit(writer);
}

Test(info, an_adapter_is_one_linear_map) {
    static const struct {
        int weight_rank, bias_rank;
        size_t bias;
        bool settings;
        const char *kind;
    } cases[] = {{2, 1, 2, false, "adapter"}, {1, 1, 2, false, "tensors"},
                 {2, 0, 0, false, "tensors"}, {2, 2, 2, false, "tensors"},
                 {2, 1, 3, false, "tensors"}, {2, 1, 2, true, "tensors"}}; /* a checkpoint */
    folder_new();
    const char *path = in(folder, "x.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Told t;
        write_linear(path, cases[i].weight_rank, cases[i].bias, cases[i].bias_rank,
                     cases[i].settings);
        ask(&t, path, true);
        member_is(&t, "kind", cases[i].kind, "a linear map");
        forget(&t);
    }
    folder_remove();
}

Test(info, an_sae_may_leave_its_hook_point_unsaid) {
    Told t;
    folder_new();
    cr_assert_eq(setenv("FOLDER", folder, 1), 0);
    cr_assert_eq(
        system("set -e; cd " SAES "saelens/standard; for x in a b; do mkdir $FOLDER/$x\n"
               "cp sae_weights.safetensors $FOLDER/$x\n"
               "sed 's/\"hook_name\": \"[^\"]*\", //' cfg.json >$FOLDER/$x/cfg.json; done"),
        0);
    ask(&t, folder, false);
    cr_assert_eq(count_of(t.text, "hook_point not said, format SAELens"), 2, "%s", t.text);
    forget(&t);
    ask(&t, in(folder, "a"), true);
    member_is(&t, "hook_point", "not said: give --hook NAME", folder);
    forget(&t);
    folder_remove();
}

/* Folders that only have numbers are SAEs by what is in them, not descriptions of layers. */
Test(info, a_damaged_sae_of_a_numbered_folder_is_named) {
    Told t;
    Arena *arena = arena_new();
    folder_new();
    for (int i = 0; i < 2; i++) {
        const char *file = arena_format(arena, "%s/%d/params.npz", folder, i);
        path_make_directory(path_parent(arena, file));
        write_text(file, "PK");
    }
    ask(&t, folder, true);
    cr_assert_eq(t.error.status, STATUS_INPUT);
    cr_assert_str_eq(
        t.error.text,
        arena_format(arena, "%s/0/params.npz: not a safetensors file: 2 bytes", folder));
    member_is(&t, "kind", "sparse autoencoders", folder);
    forget(&t);
    arena_free(arena);
    folder_remove();
}

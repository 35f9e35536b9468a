/* selftest.c: a world made from random numbers, every command run on it, and the digests that must
 * come out. It needs no file and no network, so it says on any machine whether the build computes
 * what it should. */
#include "selftest.h"
#include "elementary.h"

#include "dump.h"
#include "report.h"
#include "run_sage.h"

#include <errno.h>
#include <fcntl.h>
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
     "1b5dee159891b8cc74e4dde939ecd74f4d8d94fe6e2ed4f8a68074f16f98c0fa"},
    {"train/checkpoint.safetensors",
     "99b51a293d6a8b22d6b3931e21a964401e48f08c5ea61ec771c9a7ce7340df56"},
    {"train/train.csv", "49473f797ff497ae68a0b6f34ca14896d94df198134df69064fb9a8919d28b27"},
    {"eval/answers.jsonl", "9289f38e3790c30b4c58188536e9546f613be7ccbbe02526bf26b94bad893e64"},
    {"eval/scores.json", "5f80a0bacc0b2bd5d9803b62e99343f149c3dd63b14b0a7c2c4ec5bbcf7ecd28"},
    {"analyze/layers.csv", "2972c2c5cea4a9e11693a49798cc8f2492d6b5203ac91dadefa2556b823065ee"},
    {"analyze/layers.json", "ebcc286c61774cffe8ca1a62d129a6a9347c5709288d4fc9c2ee6d1b42d39a06"},
    {"analyze/features.jsonl", "cf5cd40cf472528b37547ded2f42d6d40a2fb171f63d5ea104a8866311309957"},
    {"sage/prompts.jsonl", "194d378f37b4d2cfd987c8e2a845f1abbe1e68ea6be02083d91e13beccde7f32"},
    {"sage/cross_sections.csv", "ea74c339a7924f488660e91ea2c1833d1590cac538a442c50766fd4febcf0971"},
    {"sage/sage.csv", "4ad49d8b838eb92749e6902dceb317268bd88805b7281411b13d2cb70df3be97"},
    {"sage/sage.json", "99693cec5e95f68b947707975ad31ad7b62efcba53459606ebd7d2d86c8abda9"},
};

enum {
    N_EXPECTED = sizeof expected / sizeof *expected
};

/* ---- files ---- */

static void write_text(const char *path, const char *text) {
    OutFile *file = out_open(path);
    fputs(text, file->stream);
    out_commit(file);
}

/* The files that are no random numbers, as they lie in selftest/. */
static void write_files(void) {
    for (size_t i = 0; i < sizeof selftest_files / sizeof *selftest_files; i++) {
        char directory[64];
        const char *name = selftest_files[i].name, *slash = strchr(name, '/');
        if (slash != NULL) {
            snprintf(directory, sizeof directory, "%.*s", (int)(slash - name), name);
            path_make_directory(directory);
        }
        OutFile *file = out_open(name);
        fwrite(selftest_files[i].text, 1, selftest_files[i].size, file->stream);
        out_commit(file);
    }
}

static void remove_tree(const char *path, int depth) {
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

typedef struct Drawn {
    char name[96];
    int rank;
    size_t shape[4], count;
    float mean, spread;
} Drawn;

typedef struct Draw {
    Drawn tensors[96];
    size_t count;
    const char *prefix; /* of the names to come */
} Draw;

static void draw(Draw *d, const char *name, size_t a, size_t b, float mean, float spread) {
    Drawn *t = &d->tensors[d->count++];
    *t = (Drawn){.rank = b > 0 ? 2 : 1,
                 .shape = {a, b},
                 .count = b > 0 ? a * b : a,
                 .mean = mean,
                 .spread = spread};
    snprintf(t->name, sizeof t->name, "%s%s", d->prefix, name);
}

static void draw_linear(Draw *d, const char *name, size_t out, size_t in) {
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    draw(d, full, out, in, 0.0f, 0.3f);
}

/* [out, in] with bias[out]; conv1d: [in, out]. */
static void draw_biased(Draw *d, const char *name, size_t out, size_t in, bool conv1d) {
    char full[64];
    draw_linear(d, name, conv1d ? in : out, conv1d ? out : in);
    snprintf(full, sizeof full, "%s.bias", name);
    draw(d, full, out, 0, 0.0f, 0.1f);
}

static void draw_norm(Draw *d, const char *name, size_t n) {
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    draw(d, full, n, 0, 1.0f, 0.2f);
    snprintf(full, sizeof full, "%s.bias", name);
    draw(d, full, n, 0, 0.0f, 0.1f);
}

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

static void draw_write(const Draw *d, const char *path, Dtype dtype, uint64_t stream) {
    Random random = random_start(1, RANDOM_TEST + (stream << 32));
    TensorWriter *writer = tensor_writer_open(path);
    for (size_t i = 0; i < d->count; i++) {
        const Drawn *t = &d->tensors[i];
        tensor_writer_declare(writer, t->name, dtype, t->rank, t->shape);
    }
    for (size_t i = 0; i < d->count; i++) {
        const Drawn *t = &d->tensors[i];
        float normals[2] = {0};
        for (size_t k = 0; k < t->count; k++) {
            if (k % 2 == 0) {
                random_normals(&random, normals);
            }
            float x = t->mean + t->spread * normals[k % 2];
            uint16_t half = narrow(x, dtype);
            tensor_writer_data(writer, dtype == DTYPE_F32 ? (void *)&x : (void *)&half,
                               dtype == DTYPE_F32 ? sizeof x : sizeof half);
        }
    }
    tensor_writer_commit(writer);
}

/* ---- the models: odd shapes, so that edges of blocks are computed too ---- */

enum {
    LAYERS = 3,
    VOCABULARY = 280,
    D_GEMMA = 26,
    D_GPT = 24,
    D_CLIP = 18,
    D_SAE = 70
};

static void make_gemma2(void) {
    static const char *const norms[] = {"input_layernorm.weight", "post_attention_layernorm.weight",
                                        "pre_feedforward_layernorm.weight",
                                        "post_feedforward_layernorm.weight"};
    char layer[32];
    Draw d = {.prefix = "model."};
    draw_linear(&d, "embed_tokens", VOCABULARY, D_GEMMA);
    draw(&d, "norm.weight", D_GEMMA, 0, 0.0f, 0.2f);
    for (int l = 0; l < LAYERS; l++) {
        snprintf(layer, sizeof layer, "model.layers.%d.", l);
        d.prefix = layer;
        draw_linear(&d, "self_attn.q_proj", 40, D_GEMMA);
        draw_linear(&d, "self_attn.k_proj", 20, D_GEMMA);
        draw_linear(&d, "self_attn.v_proj", 20, D_GEMMA);
        draw_linear(&d, "self_attn.o_proj", D_GEMMA, 40);
        draw_linear(&d, "mlp.gate_proj", 37, D_GEMMA);
        draw_linear(&d, "mlp.up_proj", 37, D_GEMMA);
        draw_linear(&d, "mlp.down_proj", D_GEMMA, 37);
        for (size_t i = 0; i < 4; i++) {
            draw(&d, norms[i], D_GEMMA, 0, 0.0f, 0.2f);
        }
    }
    draw_write(&d, "gemma2/model.safetensors", DTYPE_BF16, 1);
}

static void make_gpt2(void) {
    char layer[32];
    Draw d = {.prefix = ""};
    draw_linear(&d, "wte", VOCABULARY, D_GPT);
    draw_linear(&d, "wpe", 64, D_GPT);
    draw_norm(&d, "ln_f", D_GPT);
    for (int l = 0; l < LAYERS; l++) {
        snprintf(layer, sizeof layer, "h.%d.", l);
        d.prefix = layer;
        draw_norm(&d, "ln_1", D_GPT);
        draw_biased(&d, "attn.c_attn", 3 * D_GPT, D_GPT, true);
        draw_biased(&d, "attn.c_proj", D_GPT, D_GPT, true);
        draw_norm(&d, "ln_2", D_GPT);
        draw_biased(&d, "mlp.c_fc", 41, D_GPT, true);
        draw_biased(&d, "mlp.c_proj", D_GPT, 41, true);
    }
    draw_write(&d, "gpt2/model.safetensors", DTYPE_F32, 2);
}

static void make_gpt_neox(void) {
    char layer[48];
    Draw d = {.prefix = ""};
    draw_linear(&d, "gpt_neox.embed_in", VOCABULARY, D_GPT);
    draw_linear(&d, "embed_out", VOCABULARY, D_GPT);
    draw_norm(&d, "gpt_neox.final_layer_norm", D_GPT);
    for (int l = 0; l < LAYERS; l++) {
        snprintf(layer, sizeof layer, "gpt_neox.layers.%d.", l);
        d.prefix = layer;
        draw_norm(&d, "input_layernorm", D_GPT);
        draw_norm(&d, "post_attention_layernorm", D_GPT);
        draw_biased(&d, "attention.query_key_value", 3 * D_GPT, D_GPT, false);
        draw_biased(&d, "attention.dense", D_GPT, D_GPT, false);
        draw_biased(&d, "mlp.dense_h_to_4h", 43, D_GPT, false);
        draw_biased(&d, "mlp.dense_4h_to_h", D_GPT, 43, false);
    }
    draw_write(&d, "gpt_neox/model.safetensors", DTYPE_F16, 3);
}

static void make_clip(void) {
    char layer[64];
    Draw d = {.prefix = "vision_model."};
    draw(&d, "embeddings.class_embedding", D_CLIP, 0, 0.0f, 0.3f);
    draw_linear(&d, "embeddings.patch_embedding", D_CLIP, 3);
    d.tensors[1].rank = 4;
    d.tensors[1].shape[2] = d.tensors[1].shape[3] = 5;
    d.tensors[1].count *= 25;
    draw_linear(&d, "embeddings.position_embedding", 10, D_CLIP);
    draw_norm(&d, "pre_layrnorm", D_CLIP);
    draw_norm(&d, "post_layernorm", D_CLIP);
    for (int l = 0; l < 2; l++) {
        snprintf(layer, sizeof layer, "vision_model.encoder.layers.%d.", l);
        d.prefix = layer;
        draw_norm(&d, "layer_norm1", D_CLIP);
        draw_biased(&d, "self_attn.q_proj", D_CLIP, D_CLIP, false);
        draw_biased(&d, "self_attn.k_proj", D_CLIP, D_CLIP, false);
        draw_biased(&d, "self_attn.v_proj", D_CLIP, D_CLIP, false);
        draw_biased(&d, "self_attn.out_proj", D_CLIP, D_CLIP, false);
        draw_norm(&d, "layer_norm2", D_CLIP);
        draw_biased(&d, "mlp.fc1", 29, D_CLIP, false);
        draw_biased(&d, "mlp.fc2", D_CLIP, 29, false);
    }
    draw_write(&d, "clip/model.safetensors", DTYPE_F32, 4);
}

/* Byte-level BPE: five special tokens, the 256 bytes, " A" to " H". */
static void make_tokenizer(const char *path) {
    static const char *const special[] = {"<pad>", "<eos>", "<bos>", "<start_of_turn>",
                                          "<end_of_turn>"};
    OutFile *file = out_open(path);
    fputs("{\"version\": \"1.0\", \"added_tokens\": [", file->stream);
    for (int i = 0; i < 5; i++) {
        fprintf(file->stream,
                "%s{\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, "
                "\"rstrip\": false,"
                " \"normalized\": false, \"special\": true}",
                i > 0 ? ", " : "", i, special[i]);
    }
    fputs("], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
          "\"add_prefix_space\": false,"
          " \"trim_offsets\": true, \"use_regex\": true}, \"post_processor\": null, \"decoder\": "
          "{\"type\": \"ByteLevel\"},"
          " \"model\": {\"type\": \"BPE\", \"vocab\": {",
          file->stream);
    for (int i = 0; i < 5; i++) {
        fprintf(file->stream, "\"%s\": %d, ", special[i], i);
    }
    for (unsigned byte = 0, more = 256; byte < 256;
         byte++) { /* GPT-2's alphabet: bytes that print are themselves */
        bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        fprintf(file->stream, "\"\\u%04x\": %u, ", prints ? byte : more, 5 + byte);
        more += prints ? 0 : 1;
    }
    for (int i = 0; i < 8; i++) {
        fprintf(file->stream, "\"\\u0120%c\": %d%s", 'A' + i, 261 + i,
                i < 7 ? ", " : "}, \"merges\": [");
    }
    for (int i = 0; i < 8; i++) {
        fprintf(file->stream, "\"\\u0120 %c\"%s", 'A' + i, i < 7 ? ", " : "]}}");
    }
    out_commit(file);
}

/* ---- SAEs, pictures, conversations ---- */

static void make_sae(const char *directory, const char *hook, const char *architecture, size_t d_in,
                     uint64_t stream) {
    char path[128], text[512];
    Draw d = {.prefix = ""};
    draw(&d, "W_enc", d_in, D_SAE, 0.0f, 0.3f);
    draw(&d, "W_dec", D_SAE, d_in, 0.0f, 0.3f);
    draw(&d, "b_dec", d_in, 0, 0.0f, 0.1f);
    if (strcmp(architecture, "gated") == 0) {
        draw(&d, "b_gate", D_SAE, 0, -1.0f, 0.3f);
        draw(&d, "r_mag", D_SAE, 0, 0.0f, 0.3f);
        draw(&d, "b_mag", D_SAE, 0, 0.0f, 0.3f);
    } else {
        draw(&d, "b_enc", D_SAE, 0, -1.0f, 0.3f);
    }
    if (strcmp(architecture, "jumprelu") == 0) {
        draw(&d, "threshold", D_SAE, 0, 0.5f, 0.1f);
    }
    snprintf(path, sizeof path, "%s/%s", directory, hook);
    path_make_directory(path);
    snprintf(text, sizeof text,
             "{\"architecture\": \"%s\", \"d_in\": %zu, \"d_sae\": %d, \"k\": 9, "
             "\"apply_b_dec_to_input\": true,"
             " \"normalize_activations\": \"none\", \"reshape_activations\": \"none\", "
             "\"metadata\": {\"sae_lens_version\":"
             " \"6.0.0\", \"hook_name\": \"%s\", \"model_from_pretrained_kwargs\": "
             "{\"center_writing_weights\": false}}}",
             architecture, d_in, D_SAE, hook);
    snprintf(path, sizeof path, "%s/%s/cfg.json", directory, hook);
    write_text(path, text);
    snprintf(path, sizeof path, "%s/%s/sae_weights.safetensors", directory, hook);
    draw_write(&d, path, DTYPE_F32, stream);
}

static void make_ppm(const char *path, unsigned width, unsigned height) {
    OutFile *file = out_open(path);
    fprintf(file->stream, "P6\n%u %u\n255\n", width, height);
    for (unsigned i = 0; i < 3 * width * height; i++) {
        fputc((int)((i * i / 7 + 13 * i) % 256), file->stream);
    }
    out_commit(file);
}

static void make_world(void) {
    static const char *const models[] = {"gemma2", "gpt2", "gpt_neox"};
    write_files();
    make_gemma2();
    make_gpt2();
    make_gpt_neox();
    make_clip();
    for (size_t i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s/tokenizer.json", models[i]);
        make_tokenizer(path);
    }
    make_sae("saes_gemma2", "blocks.0.hook_resid_post", "jumprelu", D_GEMMA, 5);
    make_sae("saes_gemma2", "blocks.1.hook_resid_post", "gated", D_GEMMA, 6);
    make_sae("saes_gemma2", "blocks.2.hook_resid_post", "standard", D_GEMMA, 7);
    make_sae("saes_gpt2", "blocks.0.hook_resid_pre", "topk", D_GPT, 8);
    make_sae("saes_gpt2", "blocks.1.hook_resid_pre", "topk", D_GPT, 9);
    make_sae("saes_gpt2", "blocks.2.hook_resid_pre", "topk", D_GPT, 10);
    make_sae("saes_gpt2", "blocks.2.hook_resid_post", "topk", D_GPT, 11);
    make_ppm("images/a.ppm", 23, 17);
    make_ppm("images/b.ppm", 12, 31);
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
                fwrite(&y, sizeof y, 1, file->stream);
            }
        }
    }
    out_commit(file);
}

static void run_stages(const Compute *compute) {
    static const char *const llms[] = {"gemma2", "gpt2", "gpt_neox"}, *const dumps[] = {
                                                                          "gemma2.st", "gpt2.st",
                                                                          "gpt_neox.st"};
    const Console console = {true, "refsae selftest"};
    run_functions();
    for (size_t i = 0; i < 3; i++) {
        DumpOptions dump = {
            .prompt = {.llm = llms[i], .ids = "2,70,71,261,9,100,33,262,12,250,8", .bos = -1},
            .hooks = "*",
            .grad = "261,262",
            .out = dumps[i]};
        dump_run(compute, &dump, &console);
    }
    DumpOptions vision = {.prompt = {.vision = "clip", .image = "images/c.jpg", .bos = -1},
                          .hooks = "*",
                          .out = "clip.st"};
    DumpOptions picture = {
        .prompt = {.image = "images/d.png", .bos = -1}, .hooks = "image.rgb", .out = "png.st"};
    dump_run(compute, &vision, &console);
    dump_run(compute, &picture, &console);
    TrainOptions train = {.llm = "gemma2",
                          .vision = "clip",
                          .data = "data.json",
                          .images = "images",
                          .out = "train",
                          .shuffle = true,
                          .lr = 1e-2,
                          .min_lr = 1e-8,
                          .warmup = 0.3,
                          .batch = 2,
                          .accumulate = 2,
                          .epochs = 3,
                          .tokens = 60,
                          .seed = 475};
    Arena *arena = arena_new();
    (void)run_train(arena, compute, &train, &console);
    EvalOptions eval = {.llm = "gemma2",
                        .vision = "clip",
                        .adapter = "train/adapter.safetensors",
                        .questions = "questions.jsonl",
                        .images = "images",
                        .out = "eval",
                        .generate = {.max_new_tokens = 6,
                                     .sampling = {.temperature = 0.7f, .top_k = 40, .top_p = 0.9f},
                                     .seed = 475},
                        .seed = 475};
    run_eval(compute, &eval, &console);
    AnalyzeOptions analyze = {.llm = "gemma2",
                              .vision = "clip",
                              .adapter = "train/adapter.safetensors",
                              .saes = "saes_gemma2",
                              .data = "data.json",
                              .images = "images",
                              .out = "analyze",
                              .examples = 4,
                              .loss_examples = 2,
                              .max_frequency = 1,
                              .max_density = 1,
                              .converge = 1.5,
                              .seed = 475};
    AnalyzeResult layers = run_analyze(arena, compute, &analyze, &console);
    report_analyze(&layers);
    SageOptions sage = {.llm = "gpt2",
                        .saes = "saes_gpt2",
                        .task = "task.json",
                        .out = "sage",
                        .nodes = "q,k,v,z,mlp_out",
                        .projection = "auto",
                        .n = {24, 12},
                        .share = 0.5,
                        .f1 = {0.5},
                        .max_nodes = 8,
                        .n_f1 = 1,
                        .bos = 1,
                        .seed = 475};
    SageResult found = sage_run(arena, compute, &sage, &console);
    report_sage(&found);
    arena_free(arena);
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

static void run_inside(const Compute *compute, const char *path, int back, bool json, FILE *out) {
    if (back < 0 || chdir(path) != 0) {
        fail(STATUS_RESOURCE, "selftest: %s: %s", path, strerror(errno));
    }
    make_world();
    run_stages(compute);
    compare(json, out);
}

void selftest_run(const Compute *compute, bool json, FILE *out) {
    const char *base = getenv("TMPDIR");
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/refsae-selftest-XXXXXX",
                     base != NULL && base[0] != '\0' ? base : "/tmp");
    if (n < 0 || (size_t)n >= sizeof path || mkdtemp(path) == NULL) {
        fail(STATUS_RESOURCE, "selftest: no folder can be made in %s: %s (see TMPDIR)",
             base != NULL ? base : "/tmp", strerror(errno));
    }
    Error error, ignored;
    int back = open(".", O_RDONLY); /* inside the folder every path is the same on every machine */
    ATTEMPT(&error, run_inside(compute, path, back, json, out));
    if (back >= 0 && fchdir(back) != 0 && error.status == STATUS_OK) {
        ATTEMPT(&error, fail(STATUS_RESOURCE, "selftest: the way back: %s", strerror(errno)));
    }
    if (back >= 0) {
        close(back);
    }
    ATTEMPT(&ignored, remove_tree(path, 0)); /* must not hide why the test failed */
    if (error.status != STATUS_OK) {
        fail(error.status, "%s", error.text);
    }
}

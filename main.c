/* main.c: commands, options, help and exit codes. No mathematics: each command fills the options of
 * the module that does it. */
#include "dump.h"
#include "folder.h"
#include "formats.h"
#include "info.h"
#include "json.h"
#include "report.h"
#include "run_sage.h"
#include "selftest.h"
#include "vectors.h"
#include "zip.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- options ---- */

typedef struct Option {
    const char *name;     /* without the dashes */
    const char *argument; /* its value's name in the help; NULL: a flag */
    const char *fallback; /* NULL: not set */
    const char *help;
} Option;

enum {
    OPTIONS_MAX = 48
};

typedef struct Command Command;

typedef struct Arguments {
    const Command *command;
    const char *values[OPTIONS_MAX]; /* by place, as option_at counts */
    char **positional;
    int n_positional;
    Shard *shard; /* NULL: the whole run */
} Arguments;

struct Command {
    const char *name, *form, *summary;
    const Option *options;
    size_t n_options;
    int min_positional, max_positional; /* -1: any number */
    void (*run)(Arguments *arguments, const Compute *compute, const Console *console);
};

static const Option common_options[] = {
    {"threads", "N", "0", "threads; 0: one for each core. Never changes a result"},
    {"seed", "N", "475", "seed of every random stream"},
    {"unpack", "N", "100",
     "most bytes that a byte of a file may unpack to (and MiB, if it is small)"},
    {"quiet", NULL, NULL, "say nothing but errors"},
    {"json", NULL, NULL, "results on standard output as JSON instead of text"},
};

enum {
    N_COMMON = sizeof common_options / sizeof *common_options
};

static const Option *option_at(const Command *command, size_t i) {
    return i < command->n_options ? &command->options[i] : &common_options[i - command->n_options];
}

static int option_find(const Command *command, const char *name, size_t length) {
    for (size_t i = 0; i < command->n_options + N_COMMON; i++) {
        const Option *option = option_at(command, i);
        if (strlen(option->name) == length && memcmp(option->name, name, length) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* An option and one without which it has nothing to work on, in commands that have both. */
static const char *const needs[][2] = {
    {"judge", "descriptions"},
    {"judge-examples", "descriptions"},
    {"max-density", "descriptions"},
    {"write-questions", "descriptions"},
    {"vision", "image"},
    {"adapter", "image"},
    {"chat", "prompt"},
    {"grad", "llm"},
    {"input", "sae"},
    {"tensor", "sae"},
    {"fold-value-biases", "sae"},
};

/* An option, and one that then says what it would have found. */
static const char *const idle[][2] = {
    {"nodes", "cross-sections"}, {"share", "cross-sections"}, {"max-nodes", "cross-sections"}};

/* Each first option with the second missing, or with it there. */
static void check_pairs(const Arguments *a, const char *const (*pairs)[2], size_t n, bool there) {
    for (size_t i = 0; i < n; i++) {
        const char *name = pairs[i][0], *other = pairs[i][1];
        int place = option_find(a->command, name, strlen(name));
        int second = option_find(a->command, other, strlen(other));
        if (place >= 0 && second >= 0 && (a->values[second] != NULL) == there &&
            a->values[place] != option_at(a->command, (size_t)place)->fallback) {
            fail(STATUS_INPUT, "--%s %s --%s (see 'refsae help %s')", name,
                 there ? "has no effect beside" : "needs", other, a->command->name);
        }
    }
}

REFSAE_NORETURN static void refuse_option(const Command *command, const char *word, size_t length) {
    Arena *arena = arena_new();
    Nearest nearest = nearest_start(arena, arena_copy(arena, word, length));
    for (size_t i = 0; i < command->n_options + N_COMMON; i++) {
        nearest_add(&nearest, arena_format(arena, "--%s", option_at(command, i)->name));
    }
    fail(STATUS_INPUT, "%s has no option '%s'%s (see 'refsae help %s')", command->name,
         nearest.text, nearest_hint(&nearest), command->name);
}

static void arguments_parse(Arguments *a, int argc, char **argv) {
    const Command *command = a->command;
    bool only_positional = false;
    for (size_t i = 0; i < command->n_options + N_COMMON; i++) {
        a->values[i] = option_at(command, i)->fallback;
    }
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (only_positional || word[0] != '-' || word[1] == '\0') {
            a->positional[a->n_positional++] = argv[i];
            continue;
        }
        if (strcmp(word, "--") == 0) {
            only_positional = true;
            continue;
        }
        const char *equals = strchr(word, '=');
        size_t length = equals != NULL ? (size_t)(equals - word) : strlen(word);
        int place = strncmp(word, "--", 2) == 0 ? option_find(command, word + 2, length - 2) : -1;
        if (place < 0) {
            refuse_option(command, word, length);
        }
        const Option *option = option_at(command, (size_t)place);
        if (option->argument == NULL && equals != NULL) {
            fail(STATUS_INPUT, "--%s takes no value", option->name);
        }
        if (option->argument != NULL && equals == NULL && i + 1 >= argc) {
            fail(STATUS_INPUT, "--%s needs a value: --%s %s", option->name, option->name,
                 option->argument);
        }
        a->values[place] = option->argument == NULL ? "yes"
                           : equals != NULL         ? equals + 1
                                                    : argv[++i];
    }
    if (command->max_positional >= 0 && a->n_positional > command->max_positional) {
        fail(STATUS_INPUT, "'%s' is a word too many: usage: refsae %s",
             a->positional[command->max_positional], command->form);
    }
    if (a->n_positional < command->min_positional) {
        fail(STATUS_INPUT, "usage: refsae %s", command->form);
    }
    check_pairs(a, needs, sizeof needs / sizeof *needs, false);
    check_pairs(a, idle, sizeof idle / sizeof *idle, true);
}

/* ---- values ---- */

static const char *get(const Arguments *a, const char *name) {
    int place = option_find(a->command, name, strlen(name));
    return place >= 0 ? a->values[place] : NULL;
}

static bool get_flag(const Arguments *a, const char *name) {
    return get(a, name) != NULL;
}

REFSAE_NORETURN static void bad_value(const Arguments *a, const char *name, const char *expected) {
    fail(STATUS_INPUT, "--%s %s: expected %s", name, get(a, name), expected);
}

static uint64_t get_whole(Arguments *a, const char *name, uint64_t most) {
    const char *text = get(a, name);
    char *end;
    if (text == NULL) {
        return 0;
    }
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0') {
        bad_value(a, name, "a whole number, not negative");
    }
    if (errno != 0 || value > most) {
        char expected[40];
        snprintf(expected, sizeof expected, "at most %llu", (unsigned long long)most);
        bad_value(a, name, expected);
    }
    return value;
}

static size_t get_count(Arguments *a, const char *name) {
    return (size_t)get_whole(a, name, SIZE_MAX);
}

static uint64_t get_seed(Arguments *a) {
    return get_whole(a, "seed", UINT64_MAX);
}

static void set_unpack(Arguments *a) {
    uint64_t unpack = get_count(a, "unpack");
    if (unpack < 1) {
        bad_value(a, "unpack", "at least 1");
    }
    inflate_most(unpack);
}

static double get_double(Arguments *a, const char *name) {
    const char *text = get(a, name);
    char *end;
    if (text == NULL) {
        return 0.0;
    }
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value - value == 0.0)) {
        bad_value(a, name, "a number");
    }
    return value;
}

/* One of two words; whether it is the first. The option is set or has a fallback. */
static bool get_first(Arguments *a, const char *name, const char *first, const char *second) {
    const char *text = get(a, name);
    bool is_first = strcmp(text, first) == 0;
    if (!is_first && strcmp(text, second) != 0) {
        fail(STATUS_INPUT, "--%s %s: expected %s or %s", name, text, first, second);
    }
    return is_first;
}

static bool get_yes(Arguments *a, const char *name) {
    return get_first(a, name, "yes", "no");
}

static int get_bos(Arguments *a) {
    return get(a, "bos") == NULL ? -1 : (int)get_yes(a, "bos");
}

static SaeCentre get_centre(Arguments *a, const char *name) {
    return get(a, name) == NULL ? SAE_CENTRE_UNKNOWN
           : get_yes(a, name)   ? SAE_CENTRE_YES
                                : SAE_CENTRE_NO;
}

static const char *need(Arguments *a, const char *name) {
    const char *text = get(a, name);
    if (text == NULL) {
        fail(STATUS_INPUT, "%s needs --%s (see 'refsae help %s')", a->command->name, name,
             a->command->name);
    }
    return text;
}

/* Where the command writes: --out, or there the folder of its shard. */
static const char *need_out(Arguments *a) {
    const char *out = need(a, "out");
    return shard_is_part(a->shard) ? a->shard->folder : out;
}

static ImageText get_image_text(Arguments *a) {
    return get_first(a, "image-text", "keep", "drop") ? IMAGE_TEXT_KEEP : IMAGE_TEXT_DROP;
}

static SaeOptions get_sae_options(Arguments *a) {
    return (SaeOptions){.hook = get(a, "hook"),
                        .norm_factor = get_double(a, "norm-factor"),
                        .centre = get_centre(a, "centre"),
                        .unit_decoder = get_flag(a, "unit-decoder"),
                        .dict_class = get(a, "dict-class"),
                        .pick = get(a, "pick")};
}

#define IMAGE_TEXT_OPTION                                                                          \
    {"image-text", "keep|drop", "keep",                                                            \
     "the literal <image> in what the model reads, as the released code keeps it"}
#define SAE_OPTIONS                                                                                \
    {"hook", "NAME", NULL, "the SAE's hook point, where the file does not say"},                   \
        {"norm-factor", "X", NULL,                                                                 \
         "factor of expected_average_only_in, where it is not in the file"},                       \
        {"centre", "yes|no", NULL, "was the residual stream centred when the SAE was trained"},    \
        {"unit-decoder", NULL, NULL,                                                               \
         "rescale dictionary_learning's AutoEncoder to decoder columns of unit length, as its "    \
         "loader does"},                                                                           \
        {"dict-class", "NAME", NULL,                                                               \
         "class of an ae.pt without config.json: AutoEncoderTopK or BatchTopKSAE"},                \
        {"pick", "GLOB", NULL, "of several SAEs for one layer, those whose path matches"}
#define SHARD_OPTION                                                                               \
    {"shard", "I/N", NULL,                                                                         \
     "do part I of N (from 1) and leave it in --out; refsae merge makes the whole of all N"}
#define SAMPLING_OPTIONS                                                                           \
    {"max-new-tokens", "N", "128", "stop after so many tokens"},                                   \
        {"temperature", "X", "0", "0: greedy"},                                                    \
        {"top-k", "N", "0", "draw among the K most probable; 0: all"},                             \
        {"top-p", "X", "1", "draw among the most probable that together reach P"}

static GenerateOptions get_generate(Arguments *a) {
    GenerateOptions options = {.max_new_tokens = get_count(a, "max-new-tokens"),
                               .sampling = {.temperature = (float)get_double(a, "temperature"),
                                            .top_k = get_count(a, "top-k"),
                                            .top_p = (float)get_double(a, "top-p")},
                               .seed = get_seed(a)};
    if (options.max_new_tokens == 0 || options.max_new_tokens > (1u << 24)) {
        bad_value(a, "max-new-tokens", "a number from 1 to 16777216");
    }
    if (options.sampling.temperature < 0.0f) {
        bad_value(a, "temperature", "0 or more");
    }
    if (!(options.sampling.top_p > 0.0f && options.sampling.top_p <= 1.0f)) {
        bad_value(a, "top-p", "a number in (0, 1]");
    }
    return options;
}

static Prompt get_prompt(Arguments *a) {
    return (Prompt){.llm = get(a, "llm"),
                    .ids = get(a, "ids"),
                    .text = get(a, "text"),
                    .prompt = get(a, "prompt"),
                    .vision = get(a, "vision"),
                    .image = get(a, "image"),
                    .adapter = get(a, "adapter"),
                    .chat = get_flag(a, "chat"),
                    .bos = get_bos(a),
                    .image_text = get_image_text(a)};
}

/* ---- shards ---- */

/* A line for each option that a result may depend on, with digests of the files that it names; but
 * images, of which there may be more than a run looks at, by their folder's name alone. */
static char *shard_settings(Arena *arena, Arguments *a) {
    static const char free_ones[] = " threads quiet json out shard wait resume write-questions ";
    MemoryStream *text = memory_open(arena);
    fprintf(text->stream, "refsae %s %s\n", REFSAE_VERSION, a->command->name);
    for (size_t i = 0; i < a->command->n_options + N_COMMON; i++) {
        const Option *option = option_at(a->command, i);
        const char *name = option->name, *value = a->values[i];
        char hex[65] = "";
        if (strstr(free_ones, arena_format(arena, " %s ", name)) != NULL) {
            continue;
        }
        bool path =
            value != NULL && option->argument != NULL && strcmp(name, "images") != 0 &&
            (strstr(option->argument, "DIR") != NULL || strstr(option->argument, "FILE") != NULL ||
             strstr(option->argument, "ADAPTER") != NULL);
        bool there = path && path_exists(value);
        if (there) {
            path_digest(value, hex);
        }
        fprintf(text->stream, "--%s %s%s%s\n", name, value != NULL ? value : "(not given)",
                there  ? " of SHA-256 "
                : path ? " (no such file)"
                       : "",
                hex);
    }
    return memory_text(text);
}

/* By --shard; the whole run's words are those of the command line without it. */
static Shard *get_shard(Arguments *a, Arena *arena, int argc, char **argv) {
    const char *text = get(a, "shard");
    unsigned index, count;
    int end = 0;
    if (text == NULL) {
        return NULL;
    }
    if (sscanf(text, "%5u/%5u%n", &index, &count, &end) != 2 || text[end] != '\0' || index == 0 ||
        index > count) {
        bad_value(a, "shard", "I/N, part I of N, from 1");
    }
    double wait = get_double(a, "wait");
    if (wait < 0.0) {
        bad_value(a, "wait", "at least 0");
    }
    Shard *shard = shard_open(arena, need_out(a), index, count);
    MemoryStream *words = memory_open(arena);
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--shard") == 0) {
            i++;
        } else if (strncmp(argv[i], "--shard=", 8) != 0) {
            fwrite(argv[i], 1, strlen(argv[i]) + 1, words->stream);
        }
    }
    shard->command = memory_text(words);
    shard->command_size = words->length;
    shard->settings = shard_settings(arena, a);
    shard->wait = wait;
    return shard;
}

static void shard_start(const Arguments *a) {
    if (shard_is_part(a->shard)) {
        shard_write(a->shard, "journal");
    } else if (shard_is_merge(a->shard)) {
        shard_read(a->shard, "journal");
        shard_inputs(a->shard);
    }
}

static void shard_tell(const Arguments *a, const Console *console) {
    if (shard_is_part(a->shard)) {
        shard_inputs(a->shard);
        console_line(console, "shard %zu of %zu is done; after all of them: refsae merge %s",
                     a->shard->index, a->shard->count, a->shard->out);
    }
}

/* ---- train ---- */

static const Option train_options[] = {
    {"llm", "DIR", NULL, "language model, a Hugging Face directory (frozen)"},
    {"vision", "DIR", NULL, "CLIP vision tower, a Hugging Face directory (frozen)"},
    {"data", "FILE.json", NULL, "conversations in LLaVA's form"},
    {"images", "DIR", NULL, "folder of the images"},
    {"out", "DIR", NULL,
     "adapter.safetensors, checkpoint.safetensors, train.csv, timing.csv, loss.svg, manifest.json"},
    {"stage", "pretrain|finetune", "pretrain",
     "preset: lr 1e-3, warm-up 0.03, batch 8, 512 tokens, 1 epoch; or 2e-5, 0, 4, 1024, 3 from "
     "--init"},
    {"init", "ADAPTER", NULL, "start from this adapter (safetensors, or PyTorch's .pth)"},
    {"resume", NULL, NULL, "go on from the checkpoint in --out, if there is one"},
    {"lr", "X", NULL, "learning rate after warm-up (preset)"},
    {"min-lr", "X", "1e-8", "learning rate at the end"},
    {"warmup", "RATIO", NULL, "share of the steps with rising rate (preset)"},
    {"batch", "N", NULL, "examples a batch (preset)"},
    {"accumulate", "N", "16", "batches a step; the released runs stepped after each batch: 1"},
    {"epochs", "N", NULL, "passes over the data (preset)"},
    {"steps", "N", "0", "length of the run in steps instead of epochs; 0: by epochs"},
    {"tokens", "N", NULL, "text tokens of an example, <bos> counted (preset)"},
    {"shuffle", "yes|no", "yes", "a new seeded order each epoch"},
    {"save-every", "N", "100",
     "steps between checkpoints; 0: only at the end. A shard saves each and resumes by itself"},
    {"softcap", "off|model", "off",
     "final soft-cap in the training loss; the released code leaves it out"},
    {"strict", NULL, NULL, "an image that cannot be read ends the run"},
    {"wait", "SECONDS", "3600", "a shard gives up when another is so much later than itself"},
    SHARD_OPTION,
    IMAGE_TEXT_OPTION,
};

/* Where the option is not given. */
static void set_preset(Arguments *a, const char *name, const char *value) {
    const char **at = &a->values[option_find(a->command, name, strlen(name))];
    *at = *at != NULL ? *at : value;
}

/* Every shard has come to the same end, from which the whole run goes on. */
static void merge_train(const Arguments *a) {
    shard_start(a);
    shard_end(a->shard);
    shard_copy(a->shard, "checkpoint.safetensors", true);
    shard_copy(a->shard, "timing.csv", false);
}

static void command_train(Arguments *a, const Compute *compute, const Console *console) {
    bool pretrain = get_first(a, "stage", "pretrain", "finetune");
    set_preset(a, "lr", pretrain ? "1e-3" : "2e-5");
    set_preset(a, "warmup", pretrain ? "0.03" : "0");
    set_preset(a, "batch", pretrain ? "8" : "4");
    set_preset(a, "epochs", pretrain ? "1" : "3");
    set_preset(a, "tokens", pretrain ? "512" : "1024");
    TrainOptions options = {.llm = need(a, "llm"),
                            .vision = need(a, "vision"),
                            .data = need(a, "data"),
                            .images = need(a, "images"),
                            .out = need_out(a),
                            .init = pretrain ? get(a, "init") : need(a, "init"),
                            .resume = get_flag(a, "resume") || a->shard != NULL,
                            .shuffle = get_yes(a, "shuffle"),
                            .strict = get_flag(a, "strict"),
                            .softcap = !get_first(a, "softcap", "off", "model"),
                            .image_text = get_image_text(a),
                            .lr = get_double(a, "lr"),
                            .min_lr = get_double(a, "min-lr"),
                            .warmup = get_double(a, "warmup"),
                            .batch = get_count(a, "batch"),
                            .accumulate = get_count(a, "accumulate"),
                            .epochs = get_count(a, "epochs"),
                            .steps = get_count(a, "steps"),
                            .tokens = get_count(a, "tokens"),
                            .save_every = get_count(a, "save-every"),
                            .seed = get_seed(a),
                            .shard = shard_is_part(a->shard) ? a->shard : NULL};
    Arena *arena = arena_new();
    if (shard_is_merge(a->shard)) {
        merge_train(a);
    }
    TrainResult result = run_train(arena, compute, &options, console);
    report_train(&result);
    if (shard_is_part(a->shard)) {
        shard_start(a);
        shard_end(a->shard);
    } else {
        manifest_write(options.out, options.seed, console);
    }
    shard_tell(a, console);
    arena_free(arena);
}

/* ---- analyze ---- */

static const Option analyze_options[] = {
    {"llm", "DIR", NULL, "language model"},
    {"vision", "DIR", NULL, "CLIP vision tower"},
    {"adapter", "FILE", NULL, "trained adapter (safetensors, or PyTorch's .pth)"},
    {"saes", "DIR", NULL, "SAEs of hook_resid_post, any format, found below DIR"},
    {"data", "FILE.json", NULL, "conversations in LLaVA's form"},
    {"images", "DIR", NULL, "folder of the images"},
    {"out", "DIR", NULL,
     "layers.csv, layers.json, features.jsonl, mse.svg, sparsity.svg, match.svg, manifest.json, "
     "report.html"},
    {"examples", "N", "5000", "the first N examples; what cannot be read is left out"},
    {"layers", "0,4-9", NULL, "layers to analyse; all that have an SAE"},
    {"descriptions", "DIR", NULL, "feature descriptions, DIR/LAYER-.../START-END.json"},
    {"features", "N", "3", "features reported of an example, layer and group, the strongest first"},
    {"judge", "lexical|FILE", "lexical",
     "who says whether descriptions match; FILE: verdicts, JSON lines"},
    {"write-questions", "FILE", NULL, "what to ask a judge outside, as JSON lines"},
    {"judge-examples", "N", "1000", "of the first N examples those that could be read are judged"},
    {"compare", "FILE.csv", NULL,
     "curves to draw behind one's own, as weights/mapping_published.csv"},
    {"loss-examples", "N", "4", "examples for the loss recovered"},
    {"converge", "X", "1.5", "factor of the convergence layer"},
    {"max-frequency", "X", "0.05", "leave out features active in a larger share of the examples"},
    {"max-density", "X", "0.005", "leave out features with a larger frac_nonzero"},
    {"canonical", NULL, NULL, "of a full GemmaScope tree the canonical 16k SAEs"},
    {"strict", NULL, NULL, "an example that cannot be used ends the run"},
    SHARD_OPTION,
    IMAGE_TEXT_OPTION,
    SAE_OPTIONS,
};

static void command_analyze(Arguments *a, const Compute *compute, const Console *console) {
    AnalyzeOptions options = {.llm = need(a, "llm"),
                              .vision = need(a, "vision"),
                              .adapter = need(a, "adapter"),
                              .saes = need(a, "saes"),
                              .data = need(a, "data"),
                              .images = need(a, "images"),
                              .out = need_out(a),
                              .layers = get(a, "layers"),
                              .descriptions = get(a, "descriptions"),
                              .judge = get(a, "judge"),
                              .write_questions = get(a, "write-questions"),
                              .examples = get_count(a, "examples"),
                              .judge_examples = get_count(a, "judge-examples"),
                              .loss_examples = get_count(a, "loss-examples"),
                              .features = get_count(a, "features"),
                              .max_frequency = get_double(a, "max-frequency"),
                              .max_density = get_double(a, "max-density"),
                              .converge = get_double(a, "converge"),
                              .canonical = get_flag(a, "canonical"),
                              .strict = get_flag(a, "strict"),
                              .image_text = get_image_text(a),
                              .sae = get_sae_options(a),
                              .seed = get_seed(a),
                              .shard = a->shard};
    Arena *arena = arena_new();
    LayerTable published = published_read(arena, get(a, "compare"));
    shard_start(a);
    AnalyzeResult result = run_analyze(arena, compute, &options, console);
    if (!shard_is_part(a->shard)) {
        report_analyze(&result, &published);
    }
    shard_tell(a, console);
    arena_free(arena);
}

/* ---- sage ---- */

static const Option sage_options[] = {
    {"llm", "DIR", NULL, "language model"},
    {"saes", "DIR", NULL,
     "SAEs of the residual stream (and of nodes' own hook points), any format, found below DIR"},
    {"task", "ioi|agreement|induction|greater-than|FILE.json", NULL,
     "a task that comes with the program, or one's own"},
    {"out", "DIR", NULL,
     "prompts.jsonl, example.json, cross_sections.csv and .json, sage.json, sage.csv, figures, "
     "manifest.json, report.html"},
    {"train", "N", "500", "training prompts"},
    {"test", "N", "200", "test prompts"},
    {"prompts", "FILE.jsonl", NULL, "run on these prompts, as prompts.jsonl has them"},
    {"cross-sections", "FILE.json", NULL, "test these, as cross_sections.json has them"},
    {"nodes", "q,k,v,z", "q,k,v,z", "components; also attn_out, mlp_out"},
    {"share", "X", "0.5", "walk the nodes until they carry this share of all scores"},
    {"max-nodes", "N", "16", "or number so many"},
    {"projection", "LIST", "auto",
     "how SAEs reach a node: weights for q, k, v; for the rest span (auto) or encoder, whichever "
     "is named first"},
    {"f1", "X[,X...]", "0.8,0.9", "thresholds of interpretability, beside 0, 0.1 .. 1"},
    {"bos", "yes|no", NULL,
     "<bos> before each prompt; Gemma's always, others' if an SAE's cfg says prepend_bos"},
    {"canonical", NULL, NULL, "of a full GemmaScope tree the canonical 16k SAEs"},
    SHARD_OPTION,
    SAE_OPTIONS,
};

static void get_thresholds(Arguments *a, SageOptions *options) {
    const char *text = get(a, "f1");
    for (const char *p = text;;) {
        char *end;
        double value = strtod(p, &end);
        if (end == p || (*end != ',' && *end != '\0') || !(value >= 0.0 && value <= 1.0) ||
            options->n_f1 == sizeof options->f1 / sizeof *options->f1) {
            bad_value(a, "f1", "up to 8 numbers in [0, 1], separated by commas");
        }
        options->f1[options->n_f1++] = value;
        if (*end == '\0') {
            return;
        }
        p = end + 1;
    }
}

static void command_sage(Arguments *a, const Compute *compute, const Console *console) {
    SageOptions options = {.llm = need(a, "llm"),
                           .saes = need(a, "saes"),
                           .task = need(a, "task"),
                           .out = need_out(a),
                           .prompts = get(a, "prompts"),
                           .cross_sections = get(a, "cross-sections"),
                           .nodes = get(a, "nodes"),
                           .projection = get(a, "projection"),
                           .n = {get_count(a, "train"), get_count(a, "test")},
                           .share = get_double(a, "share"),
                           .max_nodes = get_count(a, "max-nodes"),
                           .bos = get_bos(a),
                           .canonical = get_flag(a, "canonical"),
                           .sae = get_sae_options(a),
                           .seed = get_seed(a),
                           .shard = a->shard};
    get_thresholds(a, &options);
    if (options.n[0] > (1u << 20) || options.n[1] > (1u << 20)) {
        bad_value(a, options.n[0] > (1u << 20) ? "train" : "test", "at most 1048576 prompts");
    }
    Arena *arena = arena_new();
    shard_start(a);
    SageResult result = sage_run(arena, compute, &options, console);
    if (!shard_is_part(a->shard)) {
        report_sage(&result);
    }
    shard_tell(a, console);
    arena_free(arena);
}

/* ---- generate ---- */

static const Option generate_options[] = {
    {"llm", "DIR", NULL, "language model"},
    {"prompt", "TEXT", NULL,
     "what to continue; with --chat also a JSON list of {\"role\", \"content\"}"},
    {"chat", NULL, NULL,
     "Gemma's chat form: contents trimmed, roles must alternate, stops at <end_of_turn>"},
    {"vision", "DIR", NULL, "CLIP vision tower, for --image"},
    {"adapter", "FILE", NULL, "trained adapter (safetensors, or PyTorch's .pth), for --image"},
    {"image", "FILE", NULL, "image to ask about; the prompt is then a conversation"},
    {"bos", "yes|no", NULL,
     "<bos> before a plain prompt; otherwise as the tokenizer's post-processor has it"},
    IMAGE_TEXT_OPTION,
    SAMPLING_OPTIONS,
};

static void command_generate(Arguments *a, const Compute *compute, const Console *console) {
    GenerateOptions options = get_generate(a);
    (void)need(a, "prompt");
    Prompt prompt = get_prompt(a);
    options.stop_at_end_of_turn = prompt.chat || prompt.image != NULL;
    generate_command(compute, &prompt, &options, console->json, stdout);
}

/* ---- eval ---- */

static const Option eval_options[] = {
    {"llm", "DIR", NULL, "language model"},
    {"vision", "DIR", NULL, "CLIP vision tower"},
    {"adapter", "FILE", NULL, "trained adapter (safetensors, or PyTorch's .pth)"},
    {"questions", "FILE.jsonl", NULL,
     "a line a question: question_id, image, text, answer or answers"},
    {"images", "DIR", NULL, "folder of the images"},
    {"out", "DIR", NULL, "answers.jsonl, scores.json, manifest.json"},
    {"permute-images", NULL, NULL,
     "control: every image token comes from another question's image"},
    {"strict", NULL, NULL, "an image that cannot be read ends the run"},
    SHARD_OPTION,
    IMAGE_TEXT_OPTION,
    SAMPLING_OPTIONS,
};

static void command_eval(Arguments *a, const Compute *compute, const Console *console) {
    EvalOptions options = {.llm = need(a, "llm"),
                           .vision = need(a, "vision"),
                           .adapter = need(a, "adapter"),
                           .questions = need(a, "questions"),
                           .images = need(a, "images"),
                           .out = need_out(a),
                           .generate = get_generate(a),
                           .permute = get_flag(a, "permute-images"),
                           .strict = get_flag(a, "strict"),
                           .image_text = get_image_text(a),
                           .seed = get_seed(a),
                           .shard = a->shard};
    options.generate.stop_at_end_of_turn = true;
    shard_start(a);
    run_eval(compute, &options, console);
    if (!shard_is_part(a->shard)) {
        manifest_write(options.out, options.seed, console);
    }
    shard_tell(a, console);
}

/* ---- hooks, dump, diff ---- */

static const Option hooks_options[] = {
    {"llm", "DIR", NULL, "language model"},
    {"vision", "DIR", NULL, "CLIP vision tower"},
};

static void command_hooks(Arguments *a, const Compute *compute, const Console *console) {
    (void)compute;
    const char *vision = get(a, "vision");
    const char *llm = vision == NULL ? need(a, "llm") : get(a, "llm");
    hooks_list(llm, vision, console->json, stdout);
}

static const Option dump_options[] = {
    {"llm", "DIR", NULL, "language model"},
    {"ids", "2,15,7", NULL, "token ids, as they are"},
    {"text", "TEXT", NULL, "text, with what the tokenizer's post-processor adds"},
    {"prompt", "TEXT", NULL, "prompt; with --image a conversation with the image in it"},
    {"vision", "DIR", NULL, "CLIP vision tower"},
    {"adapter", "FILE", NULL, "trained adapter (safetensors, or PyTorch's .pth)"},
    {"image", "FILE", NULL, "image"},
    {"hooks", "GLOB,...", NULL,
     "hook points under their TransformerLens names ('refsae hooks' lists them); also image.rgb"},
    {"grad", "A[,B]", NULL, "also d(logits[T-1, A] - logits[T-1, B]) / d NAME as NAME.grad"},
    {"bos", "yes|no", NULL, "<bos> before the text, whatever the post-processor does"},
    {"chat", NULL, NULL, "render --prompt in Gemma's chat form"},
    {"sae", "PATH", NULL, "an SAE to run on --input: pre, acts, recon"},
    {"input", "FILE.safetensors", NULL, "activations for --sae"},
    {"tensor", "NAME", NULL, "which tensor of --input"},
    {"fold-value-biases", "yes|no", NULL,
     "hook_z: was b_V folded away for training; --llm then subtracts it from --input"},
    {"out", "FILE.safetensors", NULL, "what to write; with --trace it may be left out"},
    {"trace", "FILE", NULL,
     "a line for each tensor, in the order of execution: its name, shape and SHA-256"},
    IMAGE_TEXT_OPTION,
    SAE_OPTIONS,
};

static void command_dump(Arguments *a, const Compute *compute, const Console *console) {
    DumpOptions options = {.prompt = get_prompt(a),
                           .sae = get(a, "sae"),
                           .input = get(a, "input"),
                           .tensor = get(a, "tensor"),
                           .hooks = get(a, "hooks"),
                           .grad = get(a, "grad"),
                           .trace = get(a, "trace"),
                           .sae_options = get_sae_options(a),
                           .fold_value_biases = get_centre(a, "fold-value-biases")};
    options.out = options.trace == NULL ? need(a, "out") : get(a, "out");
    if (options.out != NULL && options.trace != NULL && strcmp(options.out, options.trace) == 0) {
        bad_value(a, "trace", "another file than --out");
    }
    if (options.sae == NULL) {
        (void)need(a, "hooks");
    }
    dump_run(compute, &options, console);
}

static const Option diff_options[] = {
    {"ulp", "N", NULL,
     "units in the last place that two values may be apart (0 without it); with a histogram"},
    {"atol", "X", "0", "or |a - b| <= atol + rtol |b|"},
    {"rtol", "X", "0", "see --atol"},
    {"bad-only", NULL, NULL, "only lines of tensors that are not as allowed"},
    {"common", NULL, NULL, "only tensors that both files have"},
};

static void command_diff(Arguments *a, const Compute *compute, const Console *console) {
    (void)compute;
    DiffOptions options = {.a = a->positional[0],
                           .b = a->positional[1],
                           .ulp = get_whole(a, "ulp", UINT64_MAX),
                           .histogram = get_flag(a, "ulp"),
                           .bad_only = get_flag(a, "bad-only"),
                           .common = get_flag(a, "common"),
                           .atol = get_double(a, "atol"),
                           .rtol = get_double(a, "rtol"),
                           .json = console->json};
    diff_run(&options, stdout);
}

/* ---- info ---- */

static void command_info(Arguments *a, const Compute *compute, const Console *console) {
    info_run(compute, a->positional, (size_t)a->n_positional, console->json, stdout);
}

/* ---- report ---- */

static const Option report_options[] = {
    {"out", "FILE.html", NULL, "one page; may be one of the reports that it merges"},
    {"title", "TEXT", "refsae", "its title"},
};

static void command_report(Arguments *a, const Compute *compute, const Console *console) {
    (void)compute;
    const char *out = need(a, "out");
    folders_merge(out, get(a, "title"), a->positional, (size_t)a->n_positional);
    if (console->json) {
        JsonOut json = json_out_start(stdout, 0);
        json_out(&json, "{ out %s folders [", out);
        for (int i = 0; i < a->n_positional; i++) {
            json_out(&json, "%s", a->positional[i]);
        }
        json_out(&json, "] }");
    }
}

/* ---- merge ---- */

static const Command *command_find(const char *name);
static char *command_line(Arena *arena, int argc, char **argv);

/* The command whose shards lie in the folder, once more, from their journals. */
static void command_merge(Arguments *a, const Compute *compute, const Console *console) {
    Arena *arena = arena_new();
    Shard *shard = shard_open(arena, a->positional[0], 0, 0);
    int argc;
    char **argv = shard_command(arena, shard, &argc);
    const Command *command = argc > 1 ? command_find(argv[1]) : NULL;
    int out = command != NULL ? option_find(command, "out", 3) : -1;
    if (out < 0 || option_find(command, "shard", 5) < 0) {
        fail(STATUS_INPUT, "%s: shard 1 is of no command that can be merged", shard->out);
    }
    Arguments whole = {.command = command,
                       .positional = arena_alloc(arena, (size_t)argc, sizeof(char *)),
                       .shard = shard};
    arguments_parse(&whole, argc - 2, argv + 2);
    whole.values[out] = shard->out; /* the folder may have moved */
    for (size_t i = 0; i < N_COMMON; i++) {
        const char *given = a->values[a->command->n_options + i];
        if (given != common_options[i].fallback) {
            whole.values[command->n_options + i] = given;
        }
    }
    set_unpack(&whole);
    shard->settings = shard_settings(arena, &whole);
    Console told = {console->quiet, command_line(arena, argc, argv), console->json};
    command->run(&whole, compute, &told);
    arena_free(arena);
}

/* ---- verify ---- */

static void command_verify(Arguments *a, const Compute *compute, const Console *console) {
    (void)compute;
    folder_verify(a->positional[0], console);
}

/* ---- tokenize ---- */

static const Option tokenize_options[] = {
    {"special", NULL, NULL, "add what the post-processor adds; with --decode: keep special tokens"},
    {"jsonl", NULL, NULL,
     "standard input is a JSON string (--decode: array) a line, so is the output"},
    {"decode", NULL, NULL, "ids to text"},
};

static void command_tokenize(Arguments *a, const Compute *compute, const Console *console) {
    (void)compute;
    TokenizeOptions options = {get_flag(a, "special"), get_flag(a, "jsonl") || console->json,
                               get_flag(a, "decode")};
    tokenize_command(a->positional[0], &options, stdin, stdout);
}

/* ---- bench ---- */

static const Option bench_options[] = {
    {"llm", "DIR", NULL, "language model: commands on it, instead of kernels"},
    {"vision", "DIR", NULL, "CLIP vision tower: train too"},
    {"saes", "DIR", NULL, "SAEs of the residual stream: with --vision, analyze too"},
    {"task", "ioi|agreement|induction|greater-than|FILE.json", NULL, "with --saes, sage too"},
    {"rows", "N", "0", "passes forward and back over 64, 128, 256 and so on up to N rows, too"},
};

static void command_bench(Arguments *a, const Compute *compute, const Console *console) {
    BenchModel model = {get(a, "llm"), get(a, "vision"), get(a, "saes"), get(a, "task"),
                        get_count(a, "rows")};
    if (model.llm != NULL) {
        bench_model(compute, &model, console->json, stdout);
    } else if (model.vision != NULL || model.saes != NULL || model.rows > 0) {
        (void)need(a, "llm");
    } else {
        bench_kernels(compute, console->json, stdout);
    }
}

static const Option vectors_options[] = {
    {"out", "DIR", NULL, "index.json and the files that it names"},
};

static void command_vectors(Arguments *a, const Compute *compute, const Console *console) {
    const char *out = need(a, "out");
    vectors_write(compute, out);
    if (console->json) {
        JsonOut json = json_out_start(stdout, 0);
        json_out(&json, "{ out %s }", out);
    }
}

static void command_selftest(Arguments *a, const Compute *compute, const Console *console) {
    (void)a;
    selftest_run(compute, console->json, stdout);
}

/* ---- the table ---- */

#define COMMAND(name, form, summary, min, max)                                                     \
    {#name, form, summary,       name##_options, sizeof name##_options / sizeof *name##_options,   \
     min,   max,  command_##name}

static const Command commands[] = {
    COMMAND(train,
            "train --llm DIR --vision DIR --data FILE.json --images DIR --out DIR [--stage "
            "pretrain|finetune] "
            "[--init ADAPTER] [--resume]",
            "train the adapter between a frozen vision tower and a frozen language model", 0, 0),
    COMMAND(analyze,
            "analyze --llm DIR --vision DIR --adapter FILE --saes DIR --data FILE.json --images "
            "DIR --out DIR",
            "how far image tokens have become language, layer by layer, through SAEs", 0, 0),
    COMMAND(
        sage,
        "sage --llm DIR --saes DIR --task ioi|agreement|induction|greater-than|FILE.json --out DIR",
        "judge SAEs by the ground-truth features of a task, found and computed automatically", 0,
        0),
    COMMAND(generate,
            "generate --llm DIR --prompt TEXT [--chat] [--vision DIR --adapter FILE --image FILE]",
            "continue a prompt", 0, 0),
    COMMAND(
        eval,
        "eval --llm DIR --vision DIR --adapter FILE --questions FILE.jsonl --images DIR --out DIR",
        "answer visual questions and score the answers", 0, 0),
    COMMAND(dump,
            "dump --llm DIR (--ids 2,15,7 | --text TEXT | --prompt TEXT [--image FILE --vision DIR "
            "--adapter FILE]) "
            "--hooks GLOB,... [--grad A[,B]] --out FILE.safetensors\n"
            "       refsae dump --vision DIR --image FILE --hooks GLOB,... --out FILE.safetensors\n"
            "       refsae dump --image FILE --hooks image.rgb --out FILE.safetensors\n"
            "       refsae dump --sae PATH --input FILE.safetensors [--tensor NAME] --out "
            "FILE.safetensors",
            "write activations and gradients", 0, 0),
    COMMAND(hooks, "hooks --llm DIR [--vision DIR]",
            "hook points with their shapes: T tokens, * any layer; a gradient adds .grad", 0, 0),
    COMMAND(diff,
            "diff A.safetensors B.safetensors [--ulp N] [--atol X] [--rtol X] [--bad-only] "
            "[--common]",
            "compare two files of tensors; exit 1 if they differ by more than allowed", 2, 2),
    COMMAND(report, "report --out FILE.html [--title TEXT] DIR...",
            "one page from what other commands left in folders", 1, -1),
    {"merge", "merge DIR", "the whole run, from the shards that --shard I/N --out DIR left", NULL,
     0, 1, 1, command_merge},
    {"verify", "verify DIR",
     "whether what a run read and wrote is as its manifest.json has it; exit 1 if not. Inputs are "
     "looked for from here",
     NULL, 0, 1, 1, command_verify},
    {"info", "info PATH...",
     "what a checkpoint, SAE, adapter, image, task or file of data is, and what it takes to run",
     NULL, 0, 1, -1, command_info},
    COMMAND(tokenize, "tokenize DIR|tokenizer.json [--special] [--jsonl] [--decode]",
            "text to token ids and back", 1, 1),
    {"selftest", "selftest", "every stage on this machine, against built-in digests", NULL, 0, 0, 0,
     command_selftest},
    COMMAND(vectors, "vectors --out DIR", "conformance vectors, to check other implementations by",
            0, 0),
    COMMAND(bench, "bench [--llm DIR [--vision DIR] [--saes DIR]]",
            "kernels, or commands on a model, against this machine's own limits", 0, 0),
};

enum {
    N_COMMANDS = sizeof commands / sizeof *commands
};

static const Command *command_find(const char *name) {
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

REFSAE_NORETURN static void refuse_command(const char *name) {
    Nearest nearest = nearest_start(arena_new(), name);
    for (size_t i = 0; i < N_COMMANDS; i++) {
        nearest_add(&nearest, commands[i].name);
    }
    fail(STATUS_INPUT, "no command '%s'%s (see 'refsae help')", name, nearest_hint(&nearest));
}

static void flush_output(void) {
    errno = 0; /* stays so if it was an earlier write that failed */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fail(STATUS_RESOURCE, "standard output: %s",
             errno == 0 ? "the disk refused part of it" : strerror(errno));
    }
}

static const char purpose[] =
    "interpretability of vision-language adapters and sparse autoencoders";
static const char exit_codes[] =
    "0 done, 1 a check failed, 2 bad input or usage, 3 out of memory or disk";

static void print_option(const Option *option) {
    char left[64];
    snprintf(left, sizeof left, "--%s%s%s", option->name, option->argument != NULL ? " " : "",
             option->argument != NULL ? option->argument : "");
    printf("  %-26s %s", left, option->help);
    if (option->fallback != NULL) {
        printf(" [%s]", option->fallback);
    }
    putchar('\n');
}

/* ---- formats: the sections of FORMATS.md, each below "## NAME, NAME: what it is" ---- */

/* The section that begins after `text`; NULL: none. */
static const char *next_format(const char *text) {
    static const char mark[] = "\n## ";
    const char *heading = strstr(text, mark);
    return heading != NULL ? heading + sizeof mark - 1 : NULL;
}

static const char *format_find(const char *name) {
    const char *format = (const char *)formats[0].text;
    while ((format = next_format(format)) != NULL) {
        size_t length;
        for (const char *word = format; (length = strcspn(word, ",:\n")) > 0;) {
            if (strlen(name) == length && memcmp(name, word, length) == 0) {
                return format;
            }
            word += length;
            word += strspn(word, ", ");
        }
    }
    return NULL;
}

static void print_format(const char *format) {
    const char *next = next_format(format);
    size_t length = next != NULL ? (size_t)(next - format) - sizeof "\n## " + 1 : strlen(format);
    printf("%.*s", (int)length, format);
}

static void print_help(const Command *command) {
    if (command == NULL) {
        printf("refsae %s: %s\n\nusage: refsae COMMAND ...\n\n", REFSAE_VERSION, purpose);
        for (size_t i = 0; i < N_COMMANDS; i++) {
            printf("  %-10s %s\n", commands[i].name, commands[i].summary);
        }
        printf("\n'refsae help COMMAND' prints a command's options with their defaults,\n"
               "'refsae help NAME' how a file is written or what was printed:\n\n");
        const char *format = (const char *)formats[0].text;
        while ((format = next_format(format)) != NULL) {
            printf("  %.*s\n", (int)strcspn(format, "\n"), format);
        }
        printf("\nExit: %s.\n", exit_codes);
        return;
    }
    printf("usage: refsae %s\n\n%s\n\n", command->form, command->summary);
    for (size_t i = 0; i < command->n_options + N_COMMON; i++) {
        print_option(option_at(command, i));
    }
}

/* ---- man page and completion, from the same tables ---- */

/* Plain text for roff, which would take '-' for a hyphen and '\' for a command. */
static void print_roff(const char *text) {
    for (; *text != '\0'; text++) {
        fputs(*text == '-' || *text == '\\' ? "\\" : "", stdout);
        putchar(*text == '\\' ? 'e' : *text);
    }
}

static void print_roff_option(const Option *option) {
    printf(".TP\n\\fB\\-\\-");
    print_roff(option->name);
    printf("\\fR \\fI");
    print_roff(option->argument != NULL ? option->argument : "");
    printf("\\fR\n\\&");
    print_roff(option->help);
    if (option->fallback != NULL) {
        printf(" [");
        print_roff(option->fallback);
        printf("]");
    }
    putchar('\n');
}

static void print_man(void) {
    printf(".TH REFSAE 1 \"\" \"refsae " REFSAE_VERSION "\"\n.SH NAME\nrefsae \\- ");
    print_roff(purpose);
    printf("\n.SH SYNOPSIS\n\\fBrefsae\\fR \\fICOMMAND\\fR ...\n.SH COMMANDS\n");
    for (size_t i = 0; i < N_COMMANDS; i++) {
        const Command *command = &commands[i];
        printf(".SS %s\n.nf\nrefsae ", command->name);
        print_roff(command->form);
        printf("\n.fi\n.PP\n");
        print_roff(command->summary);
        putchar('\n');
        for (size_t k = 0; k < command->n_options; k++) {
            print_roff_option(&command->options[k]);
        }
    }
    printf(".SH OPTIONS OF EVERY COMMAND\n");
    for (size_t k = 0; k < N_COMMON; k++) {
        print_roff_option(&common_options[k]);
    }
    printf(".SH EXIT STATUS\n");
    print_roff(exit_codes);
    putchar('\n');
}

/* The words among "a|b|FILE" of an option's value, those in lower case, as a case of bash. */
static void print_values(const Option *option) {
    if (option->argument == NULL || strchr(option->argument, '|') == NULL) {
        return;
    }
    printf("    --%s) words=\"", option->name);
    for (const char *at = option->argument; *at != '\0'; at += strspn(at, "|")) {
        size_t length = strcspn(at, "|");
        if (at[0] >= 'a' && at[0] <= 'z') {
            printf("%.*s ", (int)length, at);
        }
        at += length;
    }
    printf("\" ;;\n");
}

/* Where no word fits, -o default completes names of files. */
static void print_completion(void) {
    printf("_refsae() {\n  local words= current=${COMP_WORDS[COMP_CWORD]}\n"
           "  case \"${COMP_WORDS[1]}\" in\n");
    for (size_t i = 0; i < N_COMMANDS; i++) {
        const Command *command = &commands[i];
        printf("  %s)\n    case $current in -*) words=\"", command->name);
        for (size_t k = 0; k < command->n_options + N_COMMON; k++) {
            printf("--%s ", option_at(command, k)->name);
        }
        printf("\" ;; esac\n    case ${COMP_WORDS[COMP_CWORD - 1]} in\n");
        for (size_t k = 0; k < command->n_options; k++) {
            print_values(&command->options[k]);
        }
        printf("    esac ;;\n");
    }
    printf("  esac\n  if [ \"$COMP_CWORD\" = 1 ] || [ \"$COMP_CWORD ${COMP_WORDS[1]}\" = \"2 "
           "help\" ]; "
           "then words=\"help ");
    for (size_t i = 0; i < N_COMMANDS; i++) {
        printf("%s ", commands[i].name);
    }
    printf("\"; fi\n  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n}\n"
           "complete -o default -F _refsae refsae\n");
}

/* False: the help of this name is not one of these. */
static bool print_generated(const char *name) {
    static const struct {
        const char *name;
        void (*print)(void);
    } pages[] = {{"--man", print_man}, {"--bash-completion", print_completion}};
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        if (strcmp(pages[i].name, name) == 0) {
            pages[i].print();
            flush_output();
            return true;
        }
    }
    return false;
}

/* The command line as a shell would take it back. */
static char *command_line(Arena *arena, int argc, char **argv) {
    size_t size = 1;
    for (int i = 0; i < argc; i++) {
        size += 4 * strlen(argv[i]) + 3;
    }
    char *line = arena_alloc(arena, size, 1), *at = line;
    for (int i = 0; i < argc; i++) {
        const char *word = i == 0 ? "refsae" : argv[i];
        bool plain =
            word[0] != '\0' && strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "0123456789_-./,:=@%+") == strlen(word);
        at += sprintf(at, "%s%s", i > 0 ? " " : "", plain ? "" : "'");
        for (const char *p = word; *p != '\0'; p++) {
            at += *p == '\'' ? sprintf(at, "'\\''") : sprintf(at, "%c", *p);
        }
        at += sprintf(at, "%s", plain ? "" : "'");
    }
    return line;
}

static void run_command(const Command *command, int argc, char **argv) {
    Arena *arena = arena_new();
    Arguments arguments = {.command = command,
                           .positional = arena_alloc(arena, (size_t)argc, sizeof(char *))};
    arguments_parse(&arguments, argc - 2, argv + 2);
    Console console = {get_flag(&arguments, "quiet"), command_line(arena, argc, argv),
                       get_flag(&arguments, "json")};
    set_unpack(&arguments);
    Compute compute;
    compute_open(&compute, arena, (int)get_whole(&arguments, "threads", 1024));
    interrupts_catch(option_find(command, "resume", strlen("resume")) >= 0
                         ? "interrupted; the same command with --resume goes on from the last "
                           "checkpoint"
                         : "interrupted; no file is left half-written");
    arguments.shard = get_shard(&arguments, arena, argc, argv);
    files_note(arena);
    command->run(&arguments, &compute, &console);
    flush_output();
    arena_free(arena);
}

static Error attempt_command(const Command *command, int argc, char **argv) {
    Error error;
    ATTEMPT(&error, run_command(command, argc, argv));
    return error;
}

/* OpenMP's threads spin while they wait, which costs a busy machine many times what it gains. How
 * they wait is read from the environment before main begins, so the program starts itself once
 * more; where it cannot, it goes on as it is. */
static void wait_without_spinning(char **argv) {
#ifdef _OPENMP
    if (getenv("OMP_WAIT_POLICY") == NULL && setenv("OMP_WAIT_POLICY", "passive", 1) == 0) {
        (void)execv("/proc/self/exe", argv);
    }
#else
    (void)argv;
#endif
}

int main(int argc, char **argv) {
    secure_standard_streams();
    wait_without_spinning(argv);
    signal(SIGXFSZ, SIG_IGN); /* a limit on files is a write that fails */
    const char *name = argc > 1 ? argv[1] : "help";
    if (argc == 3 && strcmp(name, "help") == 0 && print_generated(argv[2])) {
        return STATUS_OK;
    }
    bool help = strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    const Command *command = command_find(help && argc > 2 ? argv[2] : name);
    const char *format = help && argc > 2 ? format_find(argv[2]) : NULL;
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0 || strcmp(name, "version") == 0) {
        printf("refsae %s\n", REFSAE_VERSION);
        flush_output();
        return STATUS_OK;
    }
    for (int i = 2; i < argc && command != NULL; i++) {
        help = help || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
    }
    if (command == NULL && format == NULL && !(help && argc <= 2)) {
        refuse_command(help ? argv[2] : name);
    }
    if (help) {
        format != NULL ? print_format(format) : print_help(command);
        flush_output();
        return argc > 1 ? STATUS_OK : STATUS_INPUT;
    }
    Error error = attempt_command(command, argc, argv);
    if (error.status != STATUS_OK) {
        fflush(stdout); /* what was said before comes first */
        fprintf(stderr, "refsae: %s\n", error.text);
    }
    return (int)error.status;
}

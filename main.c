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
#include <float.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- options ---- */

/* Its argument's name tells what a value is: N a size_t, X and RATIO a double, words in lower case
 * (yes|no) an int, which of them, everything else a text. */
typedef struct Option {
    const char *name;     /* without the dashes */
    const char *argument; /* its value's name in the help; NULL: a flag */
    const char *fallback; /* NULL: not set; `needed` */
    const char *help;
    size_t place; /* in the options of the command; NOWHERE: read by its name */
} Option;

#define AT(type, field) offsetof(type##Options, field)
#define NOWHERE SIZE_MAX

static const char needed[] = "needed";

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
    uint64_t seed;
    Compute compute;
    Console console;
} Arguments;

struct Command {
    const char *name, *form, *summary;
    const Option *options;
    size_t n_options;
    int min_positional, max_positional; /* -1: any number */
    void (*run)(Arguments *arguments);
};

static const Option common_options[] = {
    {"threads", "N", "0", "threads; 0: one for each core. Never changes a result", NOWHERE},
    {"seed", "N", "475", "seed of every random stream", NOWHERE},
    {"unpack", "N", "100",
     "most bytes that a byte of a file may unpack to (and MiB, if it is small)", NOWHERE},
    {"quiet", NULL, NULL, "say nothing but errors", NOWHERE},
    {"json", NULL, NULL, "results on standard output as JSON instead of text", NOWHERE},
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

static const char *get(const Arguments *a, const char *name) {
    int place = option_find(a->command, name, strlen(name));
    return place >= 0 ? a->values[place] : NULL;
}

static const char *need(const Arguments *a, const char *name) {
    const char *text = get(a, name);
    if (text == NULL || text == needed) {
        fail(STATUS_INPUT, "%s needs --%s (see 'refsae help %s')", a->command->name, name,
             a->command->name);
    }
    return text;
}

/* An option, and one without which it has nothing to work on or (idle) one that then says what it
 * would have found; in commands that have both. */
static const struct Pair {
    const char *name, *other;
    bool idle;
} pairs[] = {
    {"judge", "descriptions", false},
    {"judge-examples", "descriptions", false},
    {"max-density", "descriptions", false},
    {"write-questions", "descriptions", false},
    {"vision", "image", false},
    {"adapter", "image", false},
    {"chat", "prompt", false},
    {"grad", "llm", false},
    {"input", "sae", false},
    {"tensor", "sae", false},
    {"fold-value-biases", "sae", false},
    {"nodes", "cross-sections", true},
    {"share", "cross-sections", true},
    {"max-nodes", "cross-sections", true},
};

static void check_pairs(const Arguments *a) {
    for (const struct Pair *p = pairs; p < pairs + sizeof pairs / sizeof *pairs; p++) {
        int place = option_find(a->command, p->name, strlen(p->name));
        int other = option_find(a->command, p->other, strlen(p->other));
        if (place >= 0 && other >= 0 && (a->values[other] != NULL) == p->idle &&
            a->values[place] != option_at(a->command, (size_t)place)->fallback) {
            fail(STATUS_INPUT, "--%s %s --%s (see 'refsae help %s')", p->name,
                 p->idle ? "has no effect beside" : "needs", p->other, a->command->name);
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

/* argv: the program, the command and what is said to it. */
static void arguments_parse(Arguments *a, Arena *arena, int argc, char **argv) {
    const Command *command = a->command;
    bool only_positional = false;
    a->positional = arena_alloc(arena, (size_t)argc, sizeof(char *));
    for (size_t i = 0; i < command->n_options + N_COMMON; i++) {
        a->values[i] = option_at(command, i)->fallback;
    }
    for (int i = 2; i < argc; i++) {
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
    check_pairs(a);
    for (size_t i = 0; i < command->n_options; i++) {
        (void)(a->values[i] == needed ? need(a, command->options[i].name) : NULL);
    }
}

/* ---- values ---- */

REFSAE_NORETURN static void bad_value(const char *name, const char *text, const char *expected) {
    fail(STATUS_INPUT, "--%s %s: expected %s", name, text, expected);
}

/* What numbers must be, in every command that has them. */
static const struct {
    const char *name;
    double least, most;
    const char *expected;
} ranges[] = {
    {"unpack", 1, DBL_MAX, "at least 1"},
    {"wait", 0, DBL_MAX, "at least 0"},
    {"lr", 0, DBL_MAX, "0 or more"},
    {"min-lr", 0, DBL_MAX, "0 or more"},
    {"warmup", 0, 1, "a number in [0, 1]"},
    {"batch", 1, 4096, "a number from 1 to 4096"},
    {"accumulate", 1, 65536, "a number from 1 to 65536"},
    {"tokens", 2, 1u << 20, "a number from 2 to 1048576"},
    {"train", 0, 1u << 20, "at most 1048576 prompts"},
    {"test", 0, 1u << 20, "at most 1048576 prompts"},
    {"max-new-tokens", 1, 1u << 24, "a number from 1 to 16777216"},
    {"temperature", 0, DBL_MAX, "0 or more"},
    {"top-p", FLT_MIN, 1, "a number in (0, 1]"},
};

static void check_range(const char *name, const char *text, double value) {
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        if (strcmp(ranges[i].name, name) == 0 &&
            !(value >= ranges[i].least && value <= ranges[i].most)) {
            bad_value(name, text, ranges[i].expected);
        }
    }
}

static uint64_t whole_parse(const char *name, const char *text, uint64_t most) {
    char *end, expected[40];
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0') {
        bad_value(name, text, "a whole number, not negative");
    }
    if (errno != 0 || value > most) {
        snprintf(expected, sizeof expected, "at most %llu", (unsigned long long)most);
        bad_value(name, text, expected);
    }
    check_range(name, text, (double)value);
    return value;
}

static double number_parse(const char *name, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value - value == 0.0)) {
        bad_value(name, text, "a number");
    }
    check_range(name, text, value);
    return value;
}

/* Which of the words "a|b" it is; of yes and no 1 and 0. */
static int choice_parse(const char *name, const char *text, const char *words) {
    int i = 0;
    for (const char *word = words;; word++, i++) {
        size_t length = strcspn(word, "|");
        if (strlen(text) == length && memcmp(text, word, length) == 0) {
            return strcmp(words, "yes|no") == 0 ? 1 - i : i;
        }
        word += length;
        if (*word == '\0') {
            bad_value(name, text, words);
        }
    }
}

static void option_store(const Option *option, const char *text, void *place) {
    const char *argument = option->argument;
    if (argument == NULL) {
        *(bool *)place = true;
    } else if (strcmp(argument, "N") == 0) {
        *(size_t *)place = (size_t)whole_parse(option->name, text, SIZE_MAX);
    } else if (strcmp(argument, "X") == 0 || strcmp(argument, "RATIO") == 0) {
        *(double *)place = number_parse(option->name, text);
    } else if (strchr(argument, '|') != NULL && strstr(argument, "FILE") == NULL) {
        *(int *)place = choice_parse(option->name, text, argument);
    } else {
        *(const char **)place = text;
    }
}

/* What is not set stays as it is. */
static void get_options(const Arguments *a, void *options) {
    for (size_t i = 0; i < a->command->n_options; i++) {
        const Option *option = &a->command->options[i];
        if (a->values[i] != NULL && option->place != NOWHERE) {
            option_store(option, a->values[i], (char *)options + option->place);
        }
    }
}

/* yes|no of what a file may say as well. */
static SaeCentre get_centre(const Arguments *a, const char *name) {
    const char *text = get(a, name);
    return text == NULL                         ? SAE_CENTRE_UNKNOWN
           : choice_parse(name, text, "yes|no") ? SAE_CENTRE_YES
                                                : SAE_CENTRE_NO;
}

/* ---- options that several commands have ---- */

#define VLM_OPTIONS(type)                                                                          \
    {"llm", "DIR", needed, "language model, a Hugging Face directory (frozen)", AT(type, llm)},    \
        {"vision", "DIR", needed, "CLIP vision tower, a Hugging Face directory (frozen)",          \
         AT(type, vision)},                                                                        \
        {"images", "DIR", needed, "folder of the images", AT(type, images)},                       \
        {"strict", NULL, NULL, "an image or example that cannot be used ends the run",             \
         AT(type, strict)},                                                                        \
        SHARD_OPTION, IMAGE_TEXT_OPTION(type, image_text)
#define ADAPTER_HELP "trained adapter (safetensors, or PyTorch's .pth)"
#define PROMPT_OPTIONS(type, if_needed)                                                            \
    {"llm", "DIR", if_needed, "language model", AT(type, prompt.llm)},                             \
        {"prompt", "TEXT", if_needed,                                                              \
         "prompt; with --image a conversation with the image in it, with --chat also a JSON list " \
         "of {\"role\", \"content\"}",                                                             \
         AT(type, prompt.prompt)},                                                                 \
        {"chat", NULL, NULL,                                                                       \
         "Gemma's chat form: contents trimmed, roles must alternate, stops at <end_of_turn>",      \
         AT(type, prompt.chat)},                                                                   \
        {"vision", "DIR", NULL, "CLIP vision tower, for --image", AT(type, prompt.vision)},        \
        {"adapter", "FILE", NULL, ADAPTER_HELP ", for --image", AT(type, prompt.adapter)},         \
        {"image", "FILE", NULL, "image", AT(type, prompt.image)},                                  \
        {"bos", "yes|no", NULL,                                                                    \
         "<bos> before text that stands alone; otherwise as the post-processor has it",            \
         AT(type, prompt.bos)},                                                                    \
        IMAGE_TEXT_OPTION(type, prompt.image_text)
#define IMAGE_TEXT_OPTION(type, field)                                                             \
    {"image-text", "keep|drop", "keep",                                                            \
     "the literal <image> in what the model reads, as the released code keeps it",                 \
     AT(type, field)}
#define SAE_OPTIONS(type, sae)                                                                     \
    {"hook", "NAME", NULL, "the SAE's hook point, where the file does not say",                    \
     AT(type, sae.hook)},                                                                          \
        {"norm-factor", "X", NULL,                                                                 \
         "factor of expected_average_only_in, where it is not in the file",                        \
         AT(type, sae.norm_factor)},                                                               \
        {"centre", "yes|no", NULL, "was the residual stream centred when the SAE was trained",     \
         NOWHERE},                                                                                 \
        {"unit-decoder", NULL, NULL,                                                               \
         "rescale dictionary_learning's AutoEncoder to decoder columns of unit length, as its "    \
         "loader does",                                                                            \
         AT(type, sae.unit_decoder)},                                                              \
        {"dict-class", "NAME", NULL,                                                               \
         "class of an ae.pt without config.json: AutoEncoderTopK or BatchTopKSAE",                 \
         AT(type, sae.dict_class)},                                                                \
    {                                                                                              \
        "pick", "GLOB", NULL, "of several SAEs for one layer, those whose path matches",           \
            AT(type, sae.pick)                                                                     \
    }
#define CANONICAL_OPTION(type)                                                                     \
    {"canonical", NULL, NULL, "of a full GemmaScope tree the canonical 16k SAEs",                  \
     AT(type, canonical)}
#define SHARD_OPTION                                                                               \
    {"shard", "I/N", NULL,                                                                         \
     "do part I of N (from 1) and leave it in --out; refsae merge makes the whole of all N",       \
     NOWHERE}
#define SAMPLING_OPTIONS(type)                                                                     \
    {"max-new-tokens", "N", "128", "stop after so many tokens",                                    \
     AT(type, generate.max_new_tokens)},                                                           \
        {"temperature", "X", "0", "0: greedy", AT(type, generate.sampling.temperature)},           \
        {"top-k", "N", "0", "draw among the K most probable; 0: all",                              \
         AT(type, generate.sampling.top_k)},                                                       \
    {                                                                                              \
        "top-p", "X", "1", "draw among the most probable that together reach P",                   \
            AT(type, generate.sampling.top_p)                                                      \
    }

/* ---- shards ---- */

/* A line for each option that a result may depend on, with digests of the files that it names; but
 * images, of which there may be more than a run looks at, by their folder's name alone. */
static char *shard_settings(Arena *arena, const Arguments *a) {
    static const char free_ones[] = " threads quiet json out shard wait resume write-questions ";
    MemoryStream *text = memory_open(arena);
    fprintf(text->stream, "refsae %s %s\n", REFSAE_VERSION, a->command->name);
    for (size_t i = 0; i < a->command->n_options + N_COMMON; i++) {
        const Option *option = option_at(a->command, i);
        const char *name = option->name, *value = a->values[i], *state = "";
        char hex[65] = "";
        if (strstr(free_ones, arena_format(arena, " %s ", name)) != NULL) {
            continue;
        }
        bool path =
            value != NULL && option->argument != NULL && strcmp(name, "images") != 0 &&
            (strstr(option->argument, "DIR") != NULL || strstr(option->argument, "FILE") != NULL ||
             strstr(option->argument, "ADAPTER") != NULL);
        if (path && path_exists(value)) {
            path_digest(value, hex);
            state = " of SHA-256 ";
        } else if (path) {
            state = " (no such file)";
        }
        fprintf(text->stream, "--%s %s%s%s\n", name, value != NULL ? value : "(not given)", state,
                hex);
    }
    return memory_text(text);
}

/* By --shard; the whole run's words are those of the command line without it. The shard writes into
 * its own folder below --out. */
static void get_shard(Arguments *a, Arena *arena, int argc, char **argv) {
    const char *text = get(a, "shard");
    unsigned index, count;
    int end = 0;
    if (text == NULL) {
        return;
    }
    if (sscanf(text, "%5u/%5u%n", &index, &count, &end) != 2 || text[end] != '\0' || index == 0 ||
        index > count) {
        bad_value("shard", text, "I/N, part I of N, from 1");
    }
    const char *wait = get(a, "wait");
    double seconds = wait != NULL ? number_parse("wait", wait) : 0.0;
    Shard *shard = a->shard = shard_open(arena, get(a, "out"), index, count);
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
    shard->wait = seconds;
    a->values[option_find(a->command, "out", 3)] = shard->folder;
}

static void shard_start(const Arguments *a) {
    if (shard_is_part(a->shard)) {
        shard_write(a->shard, "journal");
    } else if (shard_is_merge(a->shard)) {
        shard_read(a->shard, "journal");
        shard_inputs(a->shard);
    }
}

static void shard_tell(const Arguments *a) {
    if (shard_is_part(a->shard)) {
        shard_inputs(a->shard);
        console_line(&a->console, "shard %zu of %zu is done; after all of them: refsae merge %s",
                     a->shard->index, a->shard->count, a->shard->out);
    }
}

/* ---- train ---- */

static const Option train_options[] = {
    VLM_OPTIONS(Train),
    {"data", "FILE.json", needed, "conversations in LLaVA's form", AT(Train, data)},
    {"out", "DIR", needed,
     "adapter.safetensors, checkpoint.safetensors, train.csv, timing.csv, loss.svg, manifest.json",
     AT(Train, out)},
    {"stage", "pretrain|finetune", "pretrain",
     "preset: lr 1e-3, warm-up 0.03, batch 8, 512 tokens, 1 epoch; or 2e-5, 0, 4, 1024, 3 from "
     "--init",
     NOWHERE},
    {"init", "ADAPTER", NULL, "start from this adapter (safetensors, or PyTorch's .pth)",
     AT(Train, init)},
    {"resume", NULL, NULL, "go on from the checkpoint in --out, if there is one",
     AT(Train, resume)},
    {"lr", "X", NULL, "learning rate after warm-up (preset)", AT(Train, lr)},
    {"min-lr", "X", "1e-8", "learning rate at the end", AT(Train, min_lr)},
    {"warmup", "RATIO", NULL, "share of the steps with rising rate (preset)", AT(Train, warmup)},
    {"batch", "N", NULL, "examples a batch (preset)", AT(Train, batch)},
    {"accumulate", "N", "16", "batches a step; the released runs stepped after each batch: 1",
     AT(Train, accumulate)},
    {"epochs", "N", NULL, "passes over the data (preset)", AT(Train, epochs)},
    {"steps", "N", "0", "length of the run in steps instead of epochs; 0: by epochs",
     AT(Train, steps)},
    {"tokens", "N", NULL, "text tokens of an example, <bos> counted (preset)", AT(Train, tokens)},
    {"shuffle", "yes|no", "yes", "a new seeded order each epoch", AT(Train, shuffle)},
    {"save-every", "N", "100",
     "steps between checkpoints; 0: only at the end. A shard saves each and resumes by itself",
     AT(Train, save_every)},
    {"softcap", "off|model", "off",
     "final soft-cap in the training loss; the released code leaves it out", AT(Train, softcap)},
    {"wait", "SECONDS", "3600", "a shard gives up when another is so much later than itself",
     NOWHERE},
};

/* Every shard has come to the same end, from which the whole run goes on. */
static void merge_train(const Arguments *a) {
    shard_start(a);
    shard_end(a->shard);
    shard_copy(a->shard, "checkpoint.safetensors", true);
    shard_copy(a->shard, "timing.csv", false);
}

static void command_train(Arguments *a) {
    static const char *const presets[][3] = {{"lr", "1e-3", "2e-5"},
                                             {"warmup", "0.03", "0"},
                                             {"batch", "8", "4"},
                                             {"epochs", "1", "3"},
                                             {"tokens", "512", "1024"}};
    int finetune = choice_parse("stage", get(a, "stage"), "pretrain|finetune");
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        const char **value =
            &a->values[option_find(a->command, presets[i][0], strlen(presets[i][0]))];
        *value = *value != NULL ? *value : presets[i][1 + finetune];
    }
    if (finetune) {
        (void)need(a, "init");
    }
    bool part = shard_is_part(a->shard);
    TrainOptions options = {.seed = a->seed, .shard = part ? a->shard : NULL};
    get_options(a, &options);
    options.resume |= a->shard != NULL;
    Arena *arena = arena_new();
    if (shard_is_merge(a->shard)) {
        merge_train(a);
    }
    TrainResult result = run_train(arena, &a->compute, &options, &a->console);
    report_train(&result);
    if (part) {
        shard_start(a);
        shard_end(a->shard);
    } else {
        manifest_write(options.out, options.seed, &a->console);
    }
    shard_tell(a);
    arena_free(arena);
}

/* ---- analyze ---- */

static const Option analyze_options[] = {
    VLM_OPTIONS(Analyze),
    {"adapter", "FILE", needed, ADAPTER_HELP, AT(Analyze, adapter)},
    {"saes", "DIR", needed, "SAEs of hook_resid_post, any format, found below DIR",
     AT(Analyze, saes)},
    {"data", "FILE.json", needed, "conversations in LLaVA's form", AT(Analyze, data)},
    {"out", "DIR", needed,
     "layers.csv, layers.json, features.jsonl, mse.svg, sparsity.svg, match.svg, manifest.json, "
     "report.html",
     AT(Analyze, out)},
    {"examples", "N", "5000", "the first N examples; what cannot be read is left out",
     AT(Analyze, examples)},
    {"layers", "0,4-9", NULL, "layers to analyse; all that have an SAE", AT(Analyze, layers)},
    {"descriptions", "DIR", NULL, "feature descriptions, DIR/LAYER-.../START-END.json",
     AT(Analyze, descriptions)},
    {"features", "N", "3", "features reported of an example, layer and group, the strongest first",
     AT(Analyze, features)},
    {"judge", "lexical|FILE", "lexical",
     "who says whether descriptions match; FILE: verdicts, JSON lines", AT(Analyze, judge)},
    {"write-questions", "FILE", NULL, "what to ask a judge outside, as JSON lines",
     AT(Analyze, write_questions)},
    {"judge-examples", "N", "1000", "of the first N examples those that could be read are judged",
     AT(Analyze, judge_examples)},
    {"compare", "FILE.csv", NULL,
     "curves to draw behind one's own, as weights/mapping_published.csv", NOWHERE},
    {"loss-examples", "N", "4", "examples for the loss recovered", AT(Analyze, loss_examples)},
    {"converge", "X", "1.5", "factor of the convergence layer", AT(Analyze, converge)},
    {"max-frequency", "X", "0.05", "leave out features active in a larger share of the examples",
     AT(Analyze, max_frequency)},
    {"max-density", "X", "0.005", "leave out features with a larger frac_nonzero",
     AT(Analyze, max_density)},
    SAE_OPTIONS(Analyze, sae),
    CANONICAL_OPTION(Analyze),
};

static void command_analyze(Arguments *a) {
    AnalyzeOptions options = {
        .sae.centre = get_centre(a, "centre"), .seed = a->seed, .shard = a->shard};
    get_options(a, &options);
    Arena *arena = arena_new();
    LayerTable published = published_read(arena, get(a, "compare"));
    shard_start(a);
    AnalyzeResult result = run_analyze(arena, &a->compute, &options, &a->console);
    if (!shard_is_part(a->shard)) {
        report_analyze(&result, &published);
    }
    shard_tell(a);
    arena_free(arena);
}

/* ---- sage ---- */

static const Option sage_options[] = {
    {"llm", "DIR", needed, "language model", AT(Sage, llm)},
    {"saes", "DIR", needed,
     "SAEs of the residual stream (and of nodes' own hook points), any format, found below DIR",
     AT(Sage, saes)},
    {"task", "ioi|agreement|induction|greater-than|FILE.json", needed,
     "a task that comes with the program, or one's own", AT(Sage, task)},
    {"out", "DIR", needed,
     "prompts.jsonl, example.json, cross_sections.csv and .json, sage.json, sage.csv, figures, "
     "manifest.json, report.html",
     AT(Sage, out)},
    {"train", "N", "500", "training prompts", AT(Sage, n[0])},
    {"test", "N", "200", "test prompts", AT(Sage, n[1])},
    {"prompts", "FILE.jsonl", NULL, "run on these prompts, as prompts.jsonl has them",
     AT(Sage, prompts)},
    {"cross-sections", "FILE.json", NULL, "test these, as cross_sections.json has them",
     AT(Sage, cross_sections)},
    {"nodes", "q,k,v,z", "q,k,v,z", "components; also attn_out, mlp_out", AT(Sage, nodes)},
    {"share", "X", "0.5", "walk the nodes until they carry this share of all scores",
     AT(Sage, share)},
    {"max-nodes", "N", "16", "or number so many", AT(Sage, max_nodes)},
    {"projection", "LIST", "auto",
     "how SAEs reach a node: weights for q, k, v; for the rest span (auto) or encoder, whichever "
     "is named first",
     AT(Sage, projection)},
    {"f1", "X[,X...]", "0.8,0.9", "thresholds of interpretability, beside 0, 0.1 .. 1", NOWHERE},
    {"bos", "yes|no", NULL,
     "<bos> before each prompt; Gemma's always, others' if an SAE's cfg says prepend_bos",
     AT(Sage, bos)},
    SHARD_OPTION,
    SAE_OPTIONS(Sage, sae),
    CANONICAL_OPTION(Sage),
};

static void get_thresholds(const Arguments *a, SageOptions *options) {
    const char *text = get(a, "f1");
    for (const char *p = text;;) {
        char *end;
        double value = strtod(p, &end);
        if (end == p || (*end != ',' && *end != '\0') || !(value >= 0.0 && value <= 1.0) ||
            options->n_f1 == sizeof options->f1 / sizeof *options->f1) {
            bad_value("f1", text, "up to 8 numbers in [0, 1], separated by commas");
        }
        options->f1[options->n_f1++] = value;
        if (*end == '\0') {
            return;
        }
        p = end + 1;
    }
}

static void command_sage(Arguments *a) {
    SageOptions options = {
        .bos = -1, .sae.centre = get_centre(a, "centre"), .seed = a->seed, .shard = a->shard};
    get_options(a, &options);
    get_thresholds(a, &options);
    Arena *arena = arena_new();
    shard_start(a);
    SageResult result = sage_run(arena, &a->compute, &options, &a->console);
    if (!shard_is_part(a->shard)) {
        report_sage(&result);
    }
    shard_tell(a);
    arena_free(arena);
}

/* ---- generate ---- */

typedef struct ContinueOptions {
    Prompt prompt;
    GenerateOptions generate;
} ContinueOptions;

static const Option generate_options[] = {
    PROMPT_OPTIONS(Continue, needed),
    SAMPLING_OPTIONS(Continue),
};

static void command_generate(Arguments *a) {
    ContinueOptions options = {.prompt.bos = -1, .generate.seed = a->seed};
    get_options(a, &options);
    options.generate.stop_at_end_of_turn = options.prompt.chat || options.prompt.image != NULL;
    generate_command(&a->compute, &options.prompt, &options.generate, a->console.json, stdout);
}

/* ---- eval ---- */

static const Option eval_options[] = {
    VLM_OPTIONS(Eval),
    {"adapter", "FILE", needed, ADAPTER_HELP, AT(Eval, adapter)},
    {"questions", "FILE.jsonl", needed,
     "a line a question: question_id, image, text, answer or answers", AT(Eval, questions)},
    {"out", "DIR", needed, "answers.jsonl, scores.json, manifest.json", AT(Eval, out)},
    {"permute-images", NULL, NULL, "control: every image token comes from another question's image",
     AT(Eval, permute_images)},
    SAMPLING_OPTIONS(Eval),
};

static void command_eval(Arguments *a) {
    EvalOptions options = {.generate = {.seed = a->seed, .stop_at_end_of_turn = true},
                           .seed = a->seed,
                           .shard = a->shard};
    get_options(a, &options);
    shard_start(a);
    run_eval(&a->compute, &options, &a->console);
    if (!shard_is_part(a->shard)) {
        manifest_write(options.out, options.seed, &a->console);
    }
    shard_tell(a);
}

/* ---- hooks, dump, diff ---- */

static const Option hooks_options[] = {
    {"llm", "DIR", NULL, "language model", NOWHERE},
    {"vision", "DIR", NULL, "CLIP vision tower", NOWHERE},
};

static void command_hooks(Arguments *a) {
    const char *vision = get(a, "vision");
    const char *llm = vision == NULL ? need(a, "llm") : get(a, "llm");
    hooks_list(llm, vision, a->console.json, stdout);
}

static const Option dump_options[] = {
    PROMPT_OPTIONS(Dump, NULL),
    {"ids", "2,15,7", NULL, "token ids, as they are", AT(Dump, prompt.ids)},
    {"text", "TEXT", NULL, "text, with what the tokenizer's post-processor adds",
     AT(Dump, prompt.text)},
    {"hooks", "GLOB,...", NULL,
     "hook points under their TransformerLens names ('refsae hooks' lists them); also image.rgb",
     AT(Dump, hooks)},
    {"grad", "A[,B]", NULL, "also d(logits[T-1, A] - logits[T-1, B]) / d NAME as NAME.grad",
     AT(Dump, grad)},
    {"sae", "PATH", NULL, "an SAE to run on --input: pre, acts, recon", AT(Dump, sae)},
    {"input", "FILE.safetensors", NULL, "activations for --sae", AT(Dump, input)},
    {"tensor", "NAME", NULL, "which tensor of --input", AT(Dump, tensor)},
    {"fold-value-biases", "yes|no", NULL,
     "hook_z: was b_V folded away for training; --llm then subtracts it from --input", NOWHERE},
    {"out", "FILE.safetensors", NULL, "what to write; with --trace it may be left out",
     AT(Dump, out)},
    {"trace", "FILE", NULL,
     "a line for each tensor, in the order of execution: its name, shape and SHA-256",
     AT(Dump, trace)},
    SAE_OPTIONS(Dump, sae_options),
};

static void command_dump(Arguments *a) {
    DumpOptions options = {.prompt.bos = -1,
                           .sae_options.centre = get_centre(a, "centre"),
                           .fold_value_biases = get_centre(a, "fold-value-biases")};
    get_options(a, &options);
    if (options.trace == NULL) {
        (void)need(a, "out");
    } else if (options.out != NULL && strcmp(options.out, options.trace) == 0) {
        bad_value("trace", options.trace, "another file than --out");
    }
    if (options.sae == NULL) {
        (void)need(a, "hooks");
    }
    dump_run(&a->compute, &options, &a->console);
}

static const Option diff_options[] = {
    {"ulp", "N", NULL,
     "units in the last place that two values may be apart (0 without it); with a histogram",
     NOWHERE},
    {"atol", "X", "0", "or |a - b| <= atol + rtol |b|", AT(Diff, atol)},
    {"rtol", "X", "0", "see --atol", AT(Diff, rtol)},
    {"bad-only", NULL, NULL, "only lines of tensors that are not as allowed", AT(Diff, bad_only)},
    {"common", NULL, NULL, "only tensors that both files have", AT(Diff, common)},
};

static void command_diff(Arguments *a) {
    const char *ulp = get(a, "ulp");
    DiffOptions options = {.a = a->positional[0],
                           .b = a->positional[1],
                           .ulp = ulp != NULL ? whole_parse("ulp", ulp, UINT64_MAX) : 0,
                           .histogram = ulp != NULL,
                           .json = a->console.json};
    get_options(a, &options);
    diff_run(&options, stdout);
}

/* ---- info, report ---- */

static void command_info(Arguments *a) {
    info_run(&a->compute, a->positional, (size_t)a->n_positional, a->console.json, stdout);
}

static const Option report_options[] = {
    {"out", "FILE.html", needed, "one page; may be one of the reports that it merges", NOWHERE},
    {"title", "TEXT", "refsae", "its title", NOWHERE},
};

static void command_report(Arguments *a) {
    const char *out = get(a, "out");
    folders_merge(out, get(a, "title"), a->positional, (size_t)a->n_positional);
    if (a->console.json) {
        JsonOut json = json_out_start(stdout, 0);
        json_out(&json, "{ out %s folders [", out);
        for (int i = 0; i < a->n_positional; i++) {
            json_out(&json, "%s", a->positional[i]);
        }
        json_out(&json, "] }");
    }
}

/* ---- merge, verify ---- */

static const Command *command_find(const char *name);
static void common_start(Arguments *a, Arena *arena, int argc, char **argv);

/* The command whose shards lie in the folder, once more, from their journals; the folder may have
 * moved, and what every command has may be given anew. */
static void command_merge(Arguments *a) {
    Arena *arena = arena_new();
    Shard *shard = shard_open(arena, a->positional[0], 0, 0);
    int argc;
    char **argv = shard_command(arena, shard, &argc);
    const Command *command = argc > 1 ? command_find(argv[1]) : NULL;
    if (command == NULL || option_find(command, "shard", 5) < 0) {
        fail(STATUS_INPUT, "%s: shard 1 is of no command that can be merged", shard->out);
    }
    Arguments whole = {.command = command, .shard = shard};
    arguments_parse(&whole, arena, argc, argv);
    whole.values[option_find(command, "out", 3)] = shard->out;
    for (size_t i = 0; i < N_COMMON; i++) {
        const char *given = a->values[a->command->n_options + i];
        if (given != common_options[i].fallback) {
            whole.values[command->n_options + i] = given;
        }
    }
    common_start(&whole, arena, argc, argv);
    whole.compute = a->compute;
    shard->settings = shard_settings(arena, &whole);
    command->run(&whole);
    arena_free(arena);
}

static void command_verify(Arguments *a) {
    folder_verify(a->positional[0], &a->console);
}

/* ---- tokenize, vectors, bench, selftest ---- */

static const Option tokenize_options[] = {
    {"special", NULL, NULL, "add what the post-processor adds; with --decode: keep special tokens",
     AT(Tokenize, special)},
    {"jsonl", NULL, NULL,
     "standard input is a JSON string (--decode: array) a line, so is the output",
     AT(Tokenize, jsonl)},
    {"decode", NULL, NULL, "ids to text", AT(Tokenize, decode)},
};

static void command_tokenize(Arguments *a) {
    TokenizeOptions options = {.jsonl = a->console.json};
    get_options(a, &options);
    tokenize_command(a->positional[0], &options, stdin, stdout);
}

static const Option vectors_options[] = {
    {"out", "DIR", needed, "index.json and the files that it names", NOWHERE},
};

static void command_vectors(Arguments *a) {
    const char *out = get(a, "out");
    vectors_write(&a->compute, out);
    if (a->console.json) {
        JsonOut json = json_out_start(stdout, 0);
        json_out(&json, "{ out %s }", out);
    }
}

static void command_bench(Arguments *a) {
    bench_kernels(&a->compute, a->console.json, stdout);
}

static void command_selftest(Arguments *a) {
    selftest_run(&a->compute, a->console.json, stdout);
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
    {"bench", "bench", "kernels against this machine's own limits", NULL, 0, 0, 0, command_bench},
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
    if (option->fallback != NULL && option->fallback != needed) {
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
    if (option->fallback != NULL && option->fallback != needed) {
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

static void common_start(Arguments *a, Arena *arena, int argc, char **argv) {
    a->seed = whole_parse("seed", get(a, "seed"), UINT64_MAX);
    a->console.quiet = get(a, "quiet") != NULL;
    a->console.json = get(a, "json") != NULL;
    a->console.command = command_line(arena, argc, argv);
    inflate_most(whole_parse("unpack", get(a, "unpack"), SIZE_MAX));
}

static void run_command(const Command *command, int argc, char **argv) {
    Arena *arena = arena_new();
    Arguments a = {.command = command};
    arguments_parse(&a, arena, argc, argv);
    common_start(&a, arena, argc, argv);
    compute_open(&a.compute, arena, (int)whole_parse("threads", get(&a, "threads"), 1024));
    interrupts_catch(option_find(command, "resume", strlen("resume")) >= 0
                         ? "interrupted; the same command with --resume goes on from the last "
                           "checkpoint"
                         : "interrupted; no file is left half-written");
    get_shard(&a, arena, argc, argv);
    files_note(arena);
    command->run(&a);
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

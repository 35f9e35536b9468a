/* main.c: commands, options, help and exit codes. No mathematics: each command fills the options of
 * the module that does it. */
#include "bench.h"
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

typedef struct Command Command;

enum {
    OPTIONS_MAX = 128
};

typedef struct Arguments {
    const Command *command;
    const char *values[OPTIONS_MAX]; /* by place in the table of options; NULL: not set */
    char **positional;
    int n_positional;
    Compute compute;
    Console console;
    VlmOptions vlm; /* those that several commands have are here */
    SageOptions sage;
    DumpOptions dump;
    DiffOptions diff;
    TokenizeOptions tokenize;
    const char *title, *compare;
    size_t rows;
} Arguments;

struct Command {
    const char *name, *form, *summary;
    const char *options;                /* their names, in brackets those that may be left out */
    int min_positional, max_positional; /* -1: any number */
    void (*run)(Arguments *arguments);
};

/* Its argument's name tells what a value is: N a size_t, X and RATIO a double, words in lower case
 * (yes|no) an int, which of them, everything else a text; without argument a bool. */
typedef struct Option {
    const char *name;     /* without the dashes */
    const char *argument; /* its value's name in the help; NULL: a flag */
    const char *fallback; /* NULL: not set */
    const char *help;
    size_t place; /* in Arguments; NOWHERE: read by its name */
} Option;

#define SAE_OPTIONS " hook norm-factor centre unit-decoder dict-class pick"
#define AT(field) offsetof(Arguments, field)
#define NOWHERE SIZE_MAX

static const Option options[] = {
    {"llm", "DIR", NULL, "language model, a Hugging Face directory (frozen)", AT(vlm.llm)},
    {"vision", "DIR", NULL, "CLIP vision tower, a Hugging Face directory (frozen)", AT(vlm.vision)},
    {"adapter", "FILE", NULL, "trained adapter (safetensors, or PyTorch's .pth)", AT(vlm.adapter)},
    {"saes", "DIR", NULL,
     "SAEs, any format, found below DIR: analyze reads those of hook_resid_post, sage those of the "
     "residual stream and of nodes' own hook points",
     AT(vlm.saes)},
    {"data", "FILE.json", NULL, "conversations in LLaVA's form", AT(vlm.data)},
    {"questions", "FILE.jsonl", NULL,
     "a line a question: question_id, image, text, answer or answers", AT(vlm.questions)},
    {"images", "DIR", NULL, "folder of the images", AT(vlm.images)},
    {"task", "ioi|agreement|induction|greater-than|FILE.json", NULL,
     "a task that comes with the program, or one's own", AT(sage.task)},
    {"stage", "pretrain|finetune", "pretrain",
     "preset: lr 1e-3, warm-up 0.03, batch 8, 512 tokens, 1 epoch; or 2e-5, 0, 4, 1024, 3 from "
     "--init",
     NOWHERE},
    {"init", "ADAPTER", NULL, "start from this adapter (safetensors, or PyTorch's .pth)",
     AT(vlm.init)},
    {"resume", NULL, NULL, "go on from the checkpoint in --out, if there is one", AT(vlm.resume)},
    {"lr", "X", NULL, "learning rate after warm-up (preset)", AT(vlm.lr)},
    {"min-lr", "X", "1e-8", "learning rate at the end", AT(vlm.min_lr)},
    {"warmup", "RATIO", NULL, "share of the steps with rising rate (preset)", AT(vlm.warmup)},
    {"batch", "N", NULL, "examples a batch (preset)", AT(vlm.batch)},
    {"accumulate", "N", "16", "batches a step; the released runs stepped after each batch: 1",
     AT(vlm.accumulate)},
    {"epochs", "N", NULL, "passes over the data (preset)", AT(vlm.epochs)},
    {"steps", "N", "0", "length of the run in steps instead of epochs; 0: by epochs",
     AT(vlm.steps)},
    {"tokens", "N", NULL, "text tokens of an example, <bos> counted (preset)", AT(vlm.tokens)},
    {"shuffle", "yes|no", "yes", "a new seeded order each epoch", AT(vlm.shuffle)},
    {"save-every", "N", "100",
     "steps between checkpoints; 0: only at the end. A shard saves each and resumes by itself",
     AT(vlm.save_every)},
    {"softcap", "off|model", "off",
     "final soft-cap in the training loss; the released code leaves it out", AT(vlm.softcap)},
    {"examples", "N", "5000", "the first N examples; what cannot be read is left out",
     AT(vlm.examples)},
    {"layers", "0,4-9", NULL, "layers to analyse; all that have an SAE", AT(vlm.layers)},
    {"descriptions", "DIR", NULL, "feature descriptions, DIR/LAYER-.../START-END.json",
     AT(vlm.descriptions)},
    {"features", "N", "3", "features reported of an example, layer and group, the strongest first",
     AT(vlm.features)},
    {"judge", "lexical|FILE", "lexical",
     "who says whether descriptions match; FILE: verdicts, JSON lines", AT(vlm.judge)},
    {"write-questions", "FILE", NULL, "what to ask a judge outside, as JSON lines",
     AT(vlm.write_questions)},
    {"judge-examples", "N", "1000", "of the first N examples those that could be read are judged",
     AT(vlm.judge_examples)},
    {"compare", "FILE.csv", NULL,
     "curves to draw behind one's own, as weights/mapping_published.csv", AT(compare)},
    {"loss-examples", "N", "4", "examples for the loss recovered", AT(vlm.loss_examples)},
    {"converge", "X", "1.5", "factor of the convergence layer", AT(vlm.converge)},
    {"max-frequency", "X", "0.05", "leave out features active in a larger share of the examples",
     AT(vlm.max_frequency)},
    {"max-density", "X", "0.005", "leave out features with a larger frac_nonzero",
     AT(vlm.max_density)},
    {"train", "N", "500", "training prompts", AT(sage.n[0])},
    {"test", "N", "200", "test prompts", AT(sage.n[1])},
    {"prompts", "FILE.jsonl", NULL, "run on these prompts, as prompts.jsonl has them",
     AT(sage.prompts)},
    {"cross-sections", "FILE.json", NULL, "test these, as cross_sections.json has them",
     AT(sage.cross_sections)},
    {"nodes", "q,k,v,z", "q,k,v,z", "components; also attn_out, mlp_out", AT(sage.nodes)},
    {"share", "X", "0.5", "walk the nodes until they carry this share of all scores",
     AT(sage.share)},
    {"max-nodes", "N", "16", "or number so many", AT(sage.max_nodes)},
    {"projection", "LIST", "auto",
     "how SAEs reach a node: weights for q, k, v; for the rest span (auto) or encoder, whichever "
     "is named first",
     AT(sage.projection)},
    {"f1", "X[,X...]", "0.8,0.9", "thresholds of interpretability, beside 0, 0.1 .. 1", NOWHERE},
    {"ids", "2,15,7", NULL, "token ids, as they are", AT(vlm.ids)},
    {"text", "TEXT", NULL, "text, with what the tokenizer's post-processor adds", AT(vlm.text)},
    {"prompt", "TEXT", NULL,
     "prompt; with --image a conversation with the image in it, with --chat also a JSON list of "
     "{\"role\", \"content\"}",
     AT(vlm.prompt)},
    {"chat", NULL, NULL,
     "Gemma's chat form: contents trimmed, roles must alternate, stops at <end_of_turn>",
     AT(vlm.chat)},
    {"image", "FILE", NULL, "image; with --prompt the one that is asked about", AT(vlm.image)},
    {"bos", "yes|no", NULL,
     "<bos> before text that stands alone, whatever the post-processor does; sage: before each "
     "prompt, else before Gemma's, and others' if an SAE's cfg says prepend_bos",
     AT(vlm.bos)},
    {"hooks", "GLOB,...", NULL,
     "hook points under their TransformerLens names ('refsae hooks' lists them); also image.rgb",
     AT(dump.hooks)},
    {"grad", "A[,B]", NULL, "also d(logits[T-1, A] - logits[T-1, B]) / d NAME as NAME.grad",
     AT(dump.grad)},
    {"sae", "PATH", NULL, "an SAE to run on --input: pre, acts, recon", AT(dump.sae)},
    {"input", "FILE.safetensors", NULL, "activations for --sae", AT(dump.input)},
    {"tensor", "NAME", NULL, "which tensor of --input", AT(dump.tensor)},
    {"fold-value-biases", "yes|no", NULL,
     "hook_z: was b_V folded away for training; --llm then subtracts it from --input", NOWHERE},
    {"hook", "NAME", NULL, "the SAE's hook point, where the file does not say", AT(vlm.sae.hook)},
    {"norm-factor", "X", NULL, "factor of expected_average_only_in, where it is not in the file",
     AT(vlm.sae.norm_factor)},
    {"centre", "yes|no", NULL, "was the residual stream centred when the SAE was trained", NOWHERE},
    {"unit-decoder", NULL, NULL,
     "rescale dictionary_learning's AutoEncoder to decoder columns of unit length, as its loader "
     "does",
     AT(vlm.sae.unit_decoder)},
    {"dict-class", "NAME", NULL,
     "class of an ae.pt without config.json: AutoEncoderTopK or BatchTopKSAE",
     AT(vlm.sae.dict_class)},
    {"pick", "GLOB", NULL, "of several SAEs for one layer, those whose path matches",
     AT(vlm.sae.pick)},
    {"canonical", NULL, NULL, "of a full GemmaScope tree the canonical 16k SAEs",
     AT(vlm.canonical)},
    {"permute-images", NULL, NULL, "control: every image token comes from another question's image",
     AT(vlm.permute_images)},
    {"max-new-tokens", "N", "128", "stop after so many tokens", AT(vlm.max_new_tokens)},
    {"temperature", "X", "0", "0: greedy", AT(vlm.sampling.temperature)},
    {"top-k", "N", "0", "draw among the K most probable; 0: all", AT(vlm.sampling.top_k)},
    {"top-p", "X", "1", "draw among the most probable that together reach P",
     AT(vlm.sampling.top_p)},
    {"image-text", "keep|drop", "keep",
     "the literal <image> in what the model reads, as the released code keeps it",
     AT(vlm.image_text)},
    {"ulp", "N", NULL,
     "units in the last place that two values may be apart (0 without it); with a histogram",
     NOWHERE},
    {"atol", "X", "0", "or |a - b| <= atol + rtol |b|", AT(diff.atol)},
    {"rtol", "X", "0", "see --atol", AT(diff.rtol)},
    {"bad-only", NULL, NULL, "only lines of tensors that are not as allowed", AT(diff.bad_only)},
    {"common", NULL, NULL, "only tensors that both files have", AT(diff.common)},
    {"special", NULL, NULL, "add what the post-processor adds; with --decode: keep special tokens",
     AT(tokenize.special)},
    {"jsonl", NULL, NULL,
     "standard input is a JSON string (--decode: array) a line, so is the output",
     AT(tokenize.jsonl)},
    {"decode", NULL, NULL, "ids to text", AT(tokenize.decode)},
    {"rows", "N", "0", "passes forward and back over 64, 128, 256 and so on up to N rows, too",
     AT(rows)},
    {"out", "PATH", NULL,
     "folder of the results, or (dump, report) their file; 'refsae help' names what they are",
     AT(vlm.out)},
    {"trace", "FILE", NULL,
     "a line for each tensor, in the order of execution: its name, shape and SHA-256; --out may be "
     "left out",
     AT(dump.trace)},
    {"title", "TEXT", "refsae", "the page's title", AT(title)},
    {"strict", NULL, NULL, "an image or example that cannot be used ends the run", AT(vlm.strict)},
    {"shard", "I/N", NULL,
     "do part I of N (from 1) and leave it in --out; refsae merge makes the whole of all N",
     NOWHERE},
    {"wait", "SECONDS", "3600", "a shard gives up when another is so much later than itself",
     NOWHERE},
    {"threads", "N", "0", "threads; 0: one for each core. Never changes a result", NOWHERE},
    {"seed", "N", "475", "seed of every random stream", NOWHERE},
    {"unpack", "N", "100",
     "most bytes that a byte of a file may unpack to (and MiB, if it is small)", NOWHERE},
    {"quiet", NULL, NULL,
     "no progress, no notes: only what a command prints as its result, and errors",
     AT(console.quiet)},
    {"json", NULL, NULL, "results on standard output as JSON instead of text", AT(console.json)},
};

enum {
    N_OPTIONS = sizeof options / sizeof *options
};

static const char common[] = "[threads seed unpack quiet json]";

/* Whether it stands in a list; *optional: in its brackets. */
static bool listed(const char *list, const Option *option, bool *optional) {
    const char *at = list;
    size_t length = strlen(option->name);
    *optional = false;
    for (size_t n; *at != '\0'; at += n + (at[n] != '\0')) {
        if (*at == '[') {
            *optional = true;
            at++;
        }
        n = strcspn(at, " ]");
        if (n == length && memcmp(at, option->name, n) == 0) {
            return true;
        }
    }
    return false;
}

static bool command_has(const Command *command, size_t i) {
    bool optional;
    return listed(command->options, &options[i], &optional) ||
           listed(common, &options[i], &optional);
}

/* Its place in the table; -1: the command has none of this name. */
static int option_find(const Command *command, const char *name, size_t length) {
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (strlen(options[i].name) == length && memcmp(options[i].name, name, length) == 0) {
            return command_has(command, i) ? (int)i : -1;
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
    if (text == NULL) {
        fail(STATUS_INPUT, "%s needs --%s (see 'refsae help %s')", a->command->name, name,
             a->command->name);
    }
    return text;
}

/* Options, and one without which they have nothing to work on or (idle) beside which nothing reads
 * them; in commands that have both. */
static const struct {
    const char *names, *other;
    bool idle;
} pairs[] = {
    {"judge judge-examples max-density write-questions", "descriptions", false},
    {"vision adapter image-text", "image", false},
    {"chat", "prompt", false},
    {"input tensor fold-value-biases" SAE_OPTIONS, "sae", false},
    {"hooks grad ids text prompt image bos", "sae", true},
    {"adapter ids text prompt grad bos image-text", "llm", false},
    {"task", "saes", false},
    {"nodes share max-nodes", "cross-sections", true},
    {"bos", "prompts", true},
};

static void check_pairs(const Arguments *a) {
    for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
        const char *other = pairs[p].other;
        bool idle = pairs[p].idle, optional;
        if (option_find(a->command, other, strlen(other)) < 0 || (get(a, other) != NULL) != idle) {
            continue;
        }
        for (size_t i = 0; i < N_OPTIONS; i++) {
            const char *value = a->values[i], *unset = options[i].fallback;
            bool given = value != NULL && value != unset;
            /* what a command takes by itself needs nothing */
            given = given && (idle || unset == NULL || strcmp(value, unset) != 0);
            if (given && listed(pairs[p].names, &options[i], &optional)) {
                fail(STATUS_INPUT, "--%s %s --%s (see 'refsae help %s')", options[i].name,
                     idle ? "has no effect beside" : "needs", other, a->command->name);
            }
        }
    }
}

/* What a command leaves in --out. None of it may be a file that an option names: the one would be
 * gone, and only the other there. */
static const struct {
    const char *command, *names;
} outputs[] = {
    {"train", "adapter.safetensors checkpoint.safetensors train.csv timing.csv loss.svg"},
    {"eval", "answers.jsonl scores.json"},
    {"analyze", "features.jsonl layers.json layers.csv mse.svg sparsity.svg match.svg"},
    {"sage",
     "prompts.jsonl cross_sections.json cross_sections.csv example.json sage.json sage.csv"},
    {NULL, "manifest.json report.html"},
};

static bool names_file(const Option *option) {
    return option->argument != NULL && (strstr(option->argument, "FILE") != NULL ||
                                        strstr(option->argument, "ADAPTER") != NULL);
}

static bool names_path(const Option *option) {
    return names_file(option) ||
           (option->argument != NULL &&
            (strstr(option->argument, "DIR") != NULL || strstr(option->argument, "PATH") != NULL));
}

/* Without links and dots, as far as it is there. */
static const char *path_whole(Arena *arena, const char *path) {
    const char *real = path_real(arena, path), *parent = path_parent(arena, path);
    if (real != NULL || strcmp(parent, path) == 0) {
        return real != NULL ? real : path;
    }
    const char *slash = strrchr(path, '/');
    return path_join(arena, path_whole(arena, parent), slash != NULL ? slash + 1 : path);
}

static void check_outputs(const Arguments *a, Arena *arena, const char *list) {
    for (size_t length; (length = strcspn(list, " ")) > 0; list += length + (list[length] == ' ')) {
        char *name = arena_copy(arena, list, length);
        const char *path = path_whole(arena, path_join(arena, get(a, "out"), name));
        for (size_t i = 0; i < N_OPTIONS; i++) {
            if (a->values[i] != NULL && names_file(&options[i]) &&
                strcmp(path_whole(arena, a->values[i]), path) == 0) {
                fail(STATUS_INPUT, "--%s %s: is written by this run, expected another file than %s",
                     options[i].name, a->values[i], name);
            }
        }
    }
}

REFSAE_NORETURN static void refuse_option(const Command *command, const char *word, size_t length) {
    Arena *arena = arena_new();
    Nearest nearest = nearest_start(arena, arena_copy(arena, word, length));
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (command_has(command, i)) {
            nearest_add(&nearest, arena_format(arena, "--%s", options[i].name));
        }
    }
    fail(STATUS_INPUT, "%s has no option '%s'%s (see 'refsae help %s')", command->name,
         nearest.text, nearest_hint(&nearest), command->name);
}

/* argv: the program, the command and what is said to it. */
static void arguments_parse(Arguments *a, Arena *arena, int argc, char **argv) {
    const Command *command = a->command;
    bool only_positional = false;
    a->positional = arena_alloc(arena, (size_t)argc, sizeof(char *));
    for (size_t i = 0; i < N_OPTIONS; i++) {
        a->values[i] = command_has(command, i) ? options[i].fallback : NULL;
    }
    for (int i = 2; i < argc; i++) {
        const char *word = argv[i];
        if (only_positional || word[0] != '-' || word[1] == '\0') {
            a->positional[a->n_positional++] = argv[i];
            if (word[0] == '\0') {
                fail(STATUS_INPUT, "%s '': expected a path", command->name);
            }
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
        const Option *option = &options[place];
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
        if (names_path(option) && a->values[place][0] == '\0') {
            fail(STATUS_INPUT, "--%s '': expected %s", option->name, option->argument);
        }
    }
    if (command->max_positional >= 0 && a->n_positional > command->max_positional) {
        fail(STATUS_INPUT, "'%s' is a word too many: usage: refsae %.*s",
             a->positional[command->max_positional], (int)strcspn(command->form, "\n"),
             command->form);
    }
    if (a->n_positional < command->min_positional) {
        fail(STATUS_INPUT, "usage: refsae %.*s", (int)strcspn(command->form, "\n"), command->form);
    }
    check_pairs(a);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        bool optional;
        if (listed(command->options, &options[i], &optional) && !optional) {
            (void)need(a, options[i].name);
        }
    }
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        const char *of = outputs[i].command;
        if (option_find(command, "shard", 5) >= 0 &&
            (of == NULL || strcmp(of, command->name) == 0)) {
            check_outputs(a, arena, outputs[i].names);
        }
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
    {"norm-factor", FLT_MIN, FLT_MAX, "a number above 0"},
    {"max-frequency", 0, 1, "a share in [0, 1]"},
    {"max-density", 0, 1, "a share in [0, 1]"},
    {"atol", 0, DBL_MAX, "0 or more"},
    {"rtol", 0, DBL_MAX, "0 or more"},
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

static void options_store(Arguments *a) {
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (a->values[i] != NULL && options[i].place != NOWHERE) {
            option_store(&options[i], a->values[i], (char *)a + options[i].place);
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

/* ---- shards ---- */

/* A line for each option that a result may depend on, with digests of the files that it names; but
 * images, of which there may be more than a run looks at, by their folder's name alone. */
static char *shard_settings(Arena *arena, const Arguments *a) {
    static const char free_ones[] = "threads quiet json out shard wait resume write-questions";
    MemoryStream *text = memory_open(arena);
    fprintf(text->stream, "refsae %s %s\n", REFSAE_VERSION, a->command->name);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        const Option *option = &options[i];
        const char *name = option->name, *value = a->values[i], *state = "";
        char hex[65] = "";
        bool optional;
        if (!command_has(a->command, i) || listed(free_ones, option, &optional)) {
            continue;
        }
        bool path = value != NULL && strcmp(name, "images") != 0 && names_path(option);
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
    Shard *shard = a->vlm.shard = shard_open(arena, get(a, "out"), index, count);
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

/* A part says that it is done: false; else the results are to be written. */
static bool shard_done(const Arguments *a) {
    Shard *shard = a->vlm.shard;
    if (!shard_is_part(shard)) {
        return true;
    }
    console_line(&a->console, "shard %zu of %zu is done; after all of them: refsae merge %s",
                 shard->index, shard->count, shard->out);
    return false;
}

/* ---- commands ---- */

/* Every shard has come to the same end, from which the whole run goes on. */
static void merge_train(Shard *shard) {
    shard_start(shard);
    shard_end(shard);
    shard_copy(shard, "checkpoint.safetensors", true);
    shard_copy(shard, "timing.csv", false);
}

static void command_train(Arguments *a) {
    static const char *const presets[][3] = {{"lr", "1e-3", "2e-5"},
                                             {"warmup", "0.03", "0"},
                                             {"batch", "8", "4"},
                                             {"epochs", "1", "3"},
                                             {"tokens", "512", "1024"}};
    int finetune = choice_parse("stage", get(a, "stage"), "pretrain|finetune");
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        int place = option_find(a->command, presets[i][0], strlen(presets[i][0]));
        a->values[place] = a->values[place] != NULL ? a->values[place] : presets[i][1 + finetune];
    }
    if (finetune) {
        (void)need(a, "init");
    }
    options_store(a);
    const char *least = get(a, "min-lr");
    if (a->vlm.min_lr > a->vlm.lr &&
        least != options[option_find(a->command, "min-lr", 6)].fallback) {
        bad_value("min-lr", least, "at most --lr");
    }
    Arena *arena = arena_new();
    Shard *shard = a->vlm.shard;
    VlmOptions run = a->vlm;
    run.resume |= shard != NULL;
    if (shard_is_merge(shard)) {
        merge_train(shard);
        run.shard = NULL;
    }
    TrainResult result = run_train(arena, &a->compute, &run, &a->console);
    report_train(&result);
    if (shard_is_part(shard)) {
        shard_start(shard);
        shard_end(shard);
    }
    if (shard_done(a)) {
        manifest_write(run.out, run.seed, &a->console);
    }
    arena_free(arena);
}

static void command_analyze(Arguments *a) {
    Arena *arena = arena_new();
    LayerTable published = published_read(arena, a->compare);
    shard_start(a->vlm.shard);
    AnalyzeResult result = run_analyze(arena, &a->compute, &a->vlm, &a->console);
    if (shard_done(a)) {
        report_analyze(&result, &published);
    }
    arena_free(arena);
}

static void get_thresholds(const char *text, SageOptions *sage) {
    for (const char *p = text;;) {
        char *end;
        double value = strtod(p, &end);
        if (end == p || (*end != ',' && *end != '\0') || !(value >= 0.0 && value <= 1.0) ||
            sage->n_f1 == sizeof sage->f1 / sizeof *sage->f1) {
            bad_value("f1", text, "up to 8 numbers in [0, 1], separated by commas");
        }
        sage->f1[sage->n_f1++] = value;
        if (*end == '\0') {
            return;
        }
        p = end + 1;
    }
}

static void command_sage(Arguments *a) {
    SageOptions *sage = &a->sage;
    sage->vlm = a->vlm;
    get_thresholds(get(a, "f1"), sage);
    Arena *arena = arena_new();
    shard_start(a->vlm.shard);
    SageResult result = sage_run(arena, &a->compute, sage, &a->console);
    if (shard_done(a)) {
        report_sage(&result);
    }
    arena_free(arena);
}

static void command_generate(Arguments *a) {
    generate_command(&a->compute, &a->vlm, a->console.json, stdout);
}

static void command_eval(Arguments *a) {
    shard_start(a->vlm.shard);
    run_eval(&a->compute, &a->vlm, &a->console);
    if (shard_done(a)) {
        manifest_write(a->vlm.out, a->vlm.seed, &a->console);
    }
}

static void command_hooks(Arguments *a) {
    if (a->vlm.vision == NULL) {
        (void)need(a, "llm");
    }
    hooks_list(a->vlm.llm, a->vlm.vision, a->console.json, stdout);
}

static void command_dump(Arguments *a) {
    DumpOptions *dump = &a->dump;
    Arena *arena = arena_new();
    dump->vlm = a->vlm;
    dump->out = a->vlm.out;
    dump->fold_value_biases = get_centre(a, "fold-value-biases");
    if (dump->trace == NULL) {
        (void)need(a, "out");
    } else if (dump->out != NULL &&
               strcmp(path_whole(arena, dump->out), path_whole(arena, dump->trace)) == 0) {
        bad_value("trace", dump->trace, "another file than --out");
    }
    if (dump->sae == NULL) {
        (void)need(a, "hooks");
    }
    arena_free(arena);
    dump_run(&a->compute, dump, &a->console);
}

static void command_diff(Arguments *a) {
    const char *ulp = get(a, "ulp");
    a->diff.a = a->positional[0];
    a->diff.b = a->positional[1];
    a->diff.histogram = ulp != NULL;
    a->diff.ulp = ulp != NULL ? whole_parse("ulp", ulp, UINT64_MAX) : 0;
    a->diff.json = a->console.json;
    diff_run(&a->diff, stdout);
}

static void command_info(Arguments *a) {
    info_run(&a->compute, a->positional, (size_t)a->n_positional, a->console.json, stdout);
}

static void command_report(Arguments *a) {
    folders_merge(a->vlm.out, a->title, a->positional, (size_t)a->n_positional, &a->console);
    if (a->console.json) {
        JsonOut json = json_out_start(stdout, 0);
        json_out(&json, "{ out %s folders [", a->vlm.out);
        for (int i = 0; i < a->n_positional; i++) {
            json_out(&json, "%s", a->positional[i]);
        }
        json_out(&json, "] }");
    }
}

static const Command *command_find(const char *name);
static void arguments_start(Arguments *a, Arena *arena, int argc, char **argv);

/* The command whose shards lie in the folder, once more, from their journals; the folder may have
 * moved, and what every command has may be given anew. */
static void command_merge(Arguments *a) {
    Arena *arena = arena_new();
    Shard *shard = shard_open(arena, a->positional[0], 0, 0);
    int argc;
    char **argv = shard_command(arena, shard, &argc);
    const Command *command = argc > 1 ? command_find(argv[1]) : NULL;
    if (command == NULL || option_find(command, "shard", strlen("shard")) < 0) {
        fail(STATUS_INPUT, "%s: shard 1 is of no command that can be merged", shard->out);
    }
    Arguments whole = {.command = command, .compute = a->compute, .vlm.shard = shard};
    arguments_parse(&whole, arena, argc, argv);
    whole.values[option_find(command, "out", 3)] = shard->out;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (command_has(a->command, i) && a->values[i] != options[i].fallback) {
            whole.values[i] = a->values[i];
        }
    }
    arguments_start(&whole, arena, argc, argv);
    shard->settings = shard_settings(arena, &whole);
    command->run(&whole);
    arena_free(arena);
}

/* A command within another. */
static void run_words(const Compute *compute, const char *words, const char *const *paths) {
    Arena *arena = arena_new();
    size_t length = strlen(words);
    char *copy = arena_copy(arena, words, length);
    char **argv = arena_alloc(arena, length + 2, sizeof *argv);
    int argc = 1;
    argv[0] = arena_format(arena, "refsae");
    for (char *word = strtok(copy, " "); word != NULL; word = strtok(NULL, " ")) {
        argv[argc++] = strcmp(word, "%") == 0 ? arena_format(arena, "%s", *paths++) : word;
    }
    Arguments a = {
        .command = command_find(argv[1]), .compute = *compute, .console = {.quiet = true}};
    arguments_parse(&a, arena, argc, argv);
    arguments_start(&a, arena, argc, argv);
    a.command->run(&a);
    arena_free(arena);
}

static void command_verify(Arguments *a) {
    folder_verify(a->positional[0], &a->console);
}

static void command_tokenize(Arguments *a) {
    a->tokenize.jsonl |= a->console.json;
    tokenize_command(a->positional[0], &a->tokenize, stdin, stdout);
}

#ifdef REFSAE_SMALL
static void command_left_out(Arguments *a) {
    fail(STATUS_INPUT, "%s: the small build leaves this command out", a->command->name);
}
#define command_vectors command_left_out
#define command_bench command_left_out
#else
static void command_vectors(Arguments *a) {
    vectors_write(&a->compute, need(a, "out"));
    if (a->console.json) {
        JsonOut json = json_out_start(stdout, 0);
        json_out(&json, "{ out %s }", a->vlm.out);
    }
}

static void command_bench(Arguments *a) {
    BenchModel model = {a->vlm.llm, a->vlm.vision, a->vlm.saes, a->sage.task, a->rows, run_words};
    if (model.llm != NULL) {
        bench_model(&a->compute, &model, a->console.json, stdout);
    } else if (model.vision != NULL || model.saes != NULL || model.rows > 0) {
        (void)need(a, "llm");
    } else {
        bench_kernels(&a->compute, a->console.json, stdout);
    }
}
#endif

static void command_selftest(Arguments *a) {
    selftest_run(&a->compute, run_words, a->console.json, stdout);
}

#define SAMPLING " max-new-tokens temperature top-k top-p"

static const Command commands[] = {
    {"train",
     "train --llm DIR --vision DIR --data FILE.json --images DIR --out DIR [--stage "
     "pretrain|finetune] [--init ADAPTER] [--resume]",
     "train the adapter between a frozen vision tower and a frozen language model",
     "llm vision data images out [stage init resume lr min-lr warmup batch accumulate epochs steps "
     "tokens shuffle save-every softcap image-text strict shard wait]",
     0, 0, command_train},
    {"analyze",
     "analyze --llm DIR --vision DIR --adapter FILE --saes DIR --data FILE.json --images DIR --out "
     "DIR",
     "how far image tokens have become language, layer by layer, through SAEs",
     "llm vision adapter saes data images out [examples layers descriptions features judge "
     "write-questions judge-examples compare loss-examples converge max-frequency max-density "
     "canonical image-text strict shard" SAE_OPTIONS "]",
     0, 0, command_analyze},
    {"sage",
     "sage --llm DIR --saes DIR --task ioi|agreement|induction|greater-than|FILE.json --out DIR",
     "judge SAEs by the ground-truth features of a task, found and computed automatically",
     "llm saes task out [train test prompts cross-sections nodes share max-nodes projection f1 bos "
     "canonical shard" SAE_OPTIONS "]",
     0, 0, command_sage},
    {"generate",
     "generate --llm DIR --prompt TEXT [--chat] [--vision DIR --adapter FILE --image FILE]",
     "continue a prompt", "llm prompt [chat vision adapter image bos image-text" SAMPLING "]", 0, 0,
     command_generate},
    {"eval",
     "eval --llm DIR --vision DIR --adapter FILE --questions FILE.jsonl --images DIR --out DIR",
     "answer visual questions and score the answers",
     "llm vision adapter questions images out [permute-images image-text strict shard" SAMPLING "]",
     0, 0, command_eval},
    {"dump",
     "dump --llm DIR (--ids 2,15,7 | --text TEXT | --prompt TEXT [--image FILE --vision DIR "
     "--adapter FILE]) --hooks GLOB,... [--grad A[,B]] --out FILE.safetensors\n"
     "       refsae dump --vision DIR --image FILE --hooks GLOB,... --out FILE.safetensors\n"
     "       refsae dump --image FILE --hooks image.rgb --out FILE.safetensors\n"
     "       refsae dump --sae PATH --input FILE.safetensors [--tensor NAME] --out "
     "FILE.safetensors",
     "write activations and gradients",
     "[llm ids text prompt chat vision adapter image hooks grad bos image-text sae input tensor "
     "fold-value-biases out trace" SAE_OPTIONS "]",
     0, 0, command_dump},
    {"hooks", "hooks --llm DIR [--vision DIR]",
     "hook points with their shapes: T tokens, * any layer; a gradient adds .grad", "[llm vision]",
     0, 0, command_hooks},
    {"diff",
     "diff A.safetensors B.safetensors [--ulp N] [--atol X] [--rtol X] [--bad-only] [--common]",
     "compare two files of tensors; exit 1 if they differ by more than allowed",
     "[ulp atol rtol bad-only common]", 2, 2, command_diff},
    {"report", "report --out FILE.html [--title TEXT] DIR...",
     "one page from what other commands left in folders", "out [title]", 1, -1, command_report},
    {"merge", "merge DIR", "the whole run, from the shards that --shard I/N --out DIR left", "", 1,
     1, command_merge},
    {"verify", "verify DIR",
     "whether what a run read and wrote is as its manifest.json has it; exit 1 if not. Inputs are "
     "looked for from here",
     "", 1, 1, command_verify},
    {"info", "info PATH...",
     "what a checkpoint, SAE, adapter, image, task or file of data is, and what it takes to run",
     "", 1, -1, command_info},
    {"tokenize", "tokenize DIR|tokenizer.json [--special] [--jsonl] [--decode]",
     "text to token ids and back", "[special jsonl decode]", 1, 1, command_tokenize},
    {"selftest", "selftest", "every stage on this machine, against built-in digests", "", 0, 0,
     command_selftest},
    {"vectors", "vectors --out DIR", "conformance vectors, to check other implementations by",
     "[out]", 0, 0, command_vectors},
    {"bench", "bench [--llm DIR [--vision DIR] [--saes DIR]]",
     "kernels, or commands on a model, against this machine's own limits",
     "[llm vision saes task rows]", 0, 0, command_bench},
};

enum {
    N_COMMANDS = sizeof commands / sizeof *commands
};

static const Command *command_find(const char *name) {
    Nearest nearest = nearest_start(arena_new(), name);
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0) {
            arena_free(nearest.arena);
            return &commands[i];
        }
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

static void print_overview(void) {
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
}

static void print_command(const Command *command) {
    printf("usage: refsae %s\n\n%s\n\n", command->form, command->summary);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (command_has(command, i)) {
            print_option(&options[i]);
        }
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

static void print_roff_options(const char *list) {
    bool optional;
    for (const Option *o = options; o < options + N_OPTIONS; o++) {
        if (listed(list, o, &optional)) {
            printf(".TP\n\\fB\\-\\-");
            print_roff(o->name);
            printf("\\fR \\fI");
            print_roff(o->argument != NULL ? o->argument : "");
            printf("\\fR\n\\&");
            print_roff(o->help);
            printf(o->fallback != NULL ? " [" : "");
            print_roff(o->fallback != NULL ? o->fallback : "");
            printf(o->fallback != NULL ? "]\n" : "\n");
        }
    }
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
        print_roff_options(command->options);
    }
    printf(".SH OPTIONS OF EVERY COMMAND\n");
    print_roff_options(common);
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
        for (size_t k = 0; k < N_OPTIONS; k++) {
            if (command_has(command, k)) {
                printf("--%s ", options[k].name);
            }
        }
        printf("\" ;; esac\n    case ${COMP_WORDS[COMP_CWORD - 1]} in\n");
        for (size_t k = 0; k < N_OPTIONS; k++) {
            if (command_has(command, k)) {
                print_values(&options[k]);
            }
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

/* About a command, a format, or (NULL) all of it. */
static void print_help(const char *name) {
    if (name == NULL) {
        print_overview();
    } else if (strcmp(name, "--man") == 0) {
        print_man();
    } else if (strcmp(name, "--bash-completion") == 0) {
        print_completion();
    } else if (format_find(name) != NULL) {
        print_format(format_find(name));
    } else {
        print_command(command_find(name));
    }
    flush_output();
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

static void arguments_start(Arguments *a, Arena *arena, int argc, char **argv) {
    a->vlm.bos = -1;
    a->vlm.sae.centre = get_centre(a, "centre");
    if (get(a, "dict-class") != NULL) {
        (void)choice_parse("dict-class", get(a, "dict-class"), "AutoEncoderTopK|BatchTopKSAE");
    }
    a->vlm.seed = whole_parse("seed", get(a, "seed"), UINT64_MAX);
    a->console.command = command_line(arena, argc, argv);
    inflate_most(whole_parse("unpack", get(a, "unpack"), SIZE_MAX));
    options_store(a);
}

static void run_command(const Command *command, int argc, char **argv) {
    Arena *arena = arena_new();
    Arguments a = {.command = command};
    arguments_parse(&a, arena, argc, argv);
    compute_open(&a.compute, arena, (int)whole_parse("threads", get(&a, "threads"), 1024));
    interrupts_catch(option_find(command, "resume", strlen("resume")) >= 0
                         ? "interrupted; the same command with --resume goes on from the last "
                           "checkpoint"
                         : "interrupted; no file is left half-written");
    get_shard(&a, arena, argc, argv);
    arguments_start(&a, arena, argc, argv);
    files_note(arena);
    command->run(&a);
    flush_output();
    arena_free(arena);
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

static bool is_help(const char *word) {
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

int main(int argc, char **argv) {
    secure_standard_streams();
    wait_without_spinning(argv);
    signal(SIGXFSZ, SIG_IGN); /* a limit on files is a write that fails */
    const char *name = argc > 1 ? argv[1] : "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0 || strcmp(name, "version") == 0) {
        printf("refsae %s\n", REFSAE_VERSION);
        flush_output();
        return STATUS_OK;
    }
    bool help = strcmp(name, "help") == 0 || is_help(name);
    const char *topic = !help ? name : argc > 2 ? argv[2] : NULL;
    for (int i = 2; i < argc; i++) {
        help |= is_help(argv[i]);
    }
    topic = topic != NULL && strcmp(topic, "help") == 0 ? NULL : topic; /* help help */
    if (help && strcmp(name, "help") == 0 && argc > 3) {
        fail(STATUS_INPUT, "'%s' is a word too many: usage: refsae help [NAME]", argv[3]);
    }
    if (help) {
        print_help(topic);
        return argc > 1 ? STATUS_OK : STATUS_INPUT;
    }
    const Command *command = command_find(name);
    Error error;
    ATTEMPT(&error, run_command(command, argc, argv));
    if (error.status != STATUS_OK) {
        fflush(stdout); /* what was said before comes first */
        fprintf(stderr, "refsae: %s\n", error.text);
    }
    return (int)error.status;
}

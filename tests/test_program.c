/* Behaviour: the program as its users call it. Each case runs the built binary (REFSAE, else
 * ./refsae) in a folder of its own. Golden: training against PyTorch (tests/golden/training). */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint.h"
#include "json.h"
#include "scratch.h"

#define TOY                                                                                        \
    "--llm weights/gemma2 --vision weights/clip --data weights/train.json --images weights/images"
#define ODD                                                                                        \
    "--llm tests/golden/training/odd/gemma2 --vision tests/golden/models/clip_odd "                \
    "--data tests/golden/training/odd/data.json --images tests/golden/training/odd/images"

TestSuite(program, .init = folder_new, .fini = folder_remove, .timeout = 600);

/* Runs "refsae ..." ('@' stands for the folder), standard output to @/stdout, errors to @/stderr;
 * the exit code. */
static int run(const char *environment, const char *format, ...) {
    char words[4096], line[8192], *at = line;
    const char *program = getenv("REFSAE");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(words, sizeof words, format, arguments);
    va_end(arguments);
    at += sprintf(at, "%s %s ", environment, program != NULL ? program : "./refsae");
    for (const char *p = words; *p != '\0'; p++) {
        at += *p == '@' ? sprintf(at, "%s", folder) : sprintf(at, "%c", *p);
    }
    sprintf(at, " >%s/stdout 2>%s/stderr", folder, folder);
    int status = system(line);
    cr_assert(WIFEXITED(status), "%s", line);
    return WEXITSTATUS(status);
}

static char *slurp(const char *name, size_t *size) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    cr_assert_not_null(file, "%s", path);
    char *text = calloc(1, 1 << 24);
    *size = fread(text, 1, (1 << 24) - 1, file);
    fclose(file);
    return text;
}

static void shell(const char *format, ...) {
    char command[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    cr_assert_eq(system(command), 0, "%s", command);
}

static bool there(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static bool says(const char *stream, const char *words) {
    size_t size;
    char *text = slurp(stream, &size);
    bool found = strstr(text, words) != NULL;
    free(text);
    return found;
}

static void same_file(const char *a, const char *b) {
    size_t na, nb;
    char *x = slurp(a, &na), *y = slurp(b, &nb);
    cr_assert(na == nb && memcmp(x, y, na) == 0, "%s and %s differ", a, b);
    free(x);
    free(y);
}

/* The sentence on stderr is one line that starts with "refsae: ". */
static void one_sentence(const char *part) {
    size_t size;
    char *text = slurp("stderr", &size);
    cr_assert(strncmp(text, "refsae: ", 8) == 0, "%s", text);
    cr_assert(strchr(text, '\n') == text + size - 1, "more than a line: %s", text);
    cr_assert(strstr(text, part) != NULL, "'%s' is not in: %s", part, text);
    free(text);
}

/* ---- usage ---- */

Test(program, usage) {
    cr_assert_eq(run("", "help"), 0);
    cr_assert_eq(run("", "help train"), 0);
    cr_assert(says("stdout", "--accumulate"));
    cr_assert_eq(run("", "nonsense"), 2);
    one_sentence("nonsense");
    cr_assert_eq(run("", "train --llm x --frobnicate"), 2);
    one_sentence("--frobnicate");
    cr_assert_eq(run("", "train --llm x"), 2);
    one_sentence("--vision");
    cr_assert_eq(run("", "train " TOY " --out @/o --lr 1e-3x"), 2);
    one_sentence("1e-3x");
    cr_assert_eq(run("", "diff onlyone"), 2);
    cr_assert_eq(run("(", "help train >/dev/full)"), 3);
    one_sentence("standard output");
    cr_assert_eq(run("(", "--version >/dev/full)"), 3);
    one_sentence("standard output");
    cr_assert_eq(run("(", "--version >&-)"), 3);
    one_sentence("standard output");
    cr_assert_eq(run("REFSAE_ISA=sse9", "tokenize weights/gpt2 </dev/null"), 2);
    one_sentence("sse9");
}

Test(program, near_misses) {
    static const char *const cases[][2] = {
        {"trian", "no command 'trian': did you mean train? (see 'refsae help')"},
        {"help dupm", "no command 'dupm': did you mean dump?"},
        {"frobnicate", "no command 'frobnicate' (see 'refsae help')"},
        {"sage --trian 3", "sage has no option '--trian': did you mean --train?"},
        {"sage --nodes q k", "'k' is a word too many: usage: refsae sage"},
        {"sage --trian=3", "sage has no option '--trian': did you mean --train?"},
        {"train -resume", "train has no option '-resume': did you mean --resume?"},
        {"train --frobnicate", "train has no option '--frobnicate' (see 'refsae help train')"},
        {"dump --saes x", "dump has no option '--saes': did you mean --sae?"},
        {"info --saes x", "info has no option '--saes' (see 'refsae help info')"},
        {"sage --llm weights/gpt2 --saes weights/saes/gpt2 --out @/o --task agrement",
         "nor a file: did you mean agreement?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(run("", "%s", cases[i][0]), 2, "%s", cases[i][0]);
        one_sentence(cases[i][1]);
    }
}

Test(program, short_options) {
    static const char *const same[][2] = {
        {"-h", "help"}, {"train -h", "help train"}, {"-V", "--version"}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        cr_assert_eq(run("", "%s >@/short && cat @/short", same[i][0]), 0);
        cr_assert_eq(run("", "%s", same[i][1]), 0);
        same_file("stdout", "short");
    }
}

/* A compiler without OpenMP, as Clang often comes; and nothing is asked where the user has said. */
Test(program, makefile_without_openmp) {
    char command[1024];
    snprintf(command, sizeof command,
             "cd %s && printf '#!/bin/sh\\ncase \" $* \" in *\" -fopenmp \"*) exit 1; esac\\n"
             "exec cc \"$@\"\\n' >none && chmod +x none && cd \"$OLDPWD\" || exit 1; unset OPENMP "
             "SMALL MAKEFLAGS; "
             "make -n CC=%s/none BUILD=%s/b PROGRAM=%s/p >%s/probed && "
             "make -n CC=%s/none BUILD=%s/b PROGRAM=%s/p OPENMP=no >%s/told",
             folder, folder, folder, folder, folder, folder, folder, folder, folder);
    cr_assert_eq(system(command), 0);
    cr_assert(says("probed", "none has no OpenMP: building without threads\n"));
    cr_assert(says("probed", " -fopenmp-simd ") && !says("probed", " -fopenmp "));
    cr_assert(says("told", " -fopenmp-simd ") && !says("told", "building without"));
}

/* Printed from the tables of options: each option of each command is in both. */
Test(program, man_page_and_completion) {
    static const char *const commands[] = {"train", "analyze", "sage",   "generate", "eval", "dump",
                                           "hooks", "diff",    "report", "tokenize", "bench"};
    cr_assert_eq(run("(", "help --man >@/man)"), 0);
    cr_assert_eq(run("(", "help --bash-completion >@/bash)"), 0);
    cr_assert(says("man", ".SH EXIT STATUS\n0 done, "));
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        size_t size;
        char word[64] = "--", roff[64];
        cr_assert_eq(run("", "help %s", commands[i]), 0);
        char *help = slurp("stdout", &size);
        for (char *at = help; (at = strstr(at, "\n  --")) != NULL; at += 3) {
            sscanf(at, "\n  %60[a-z0-9-]", word);
            snprintf(roff, sizeof roff, "\n\\fB\\-\\-%.*s", (int)strcspn(word + 2, "-"), word + 2);
            strcat(word, " ");
            cr_assert(says("man", roff) && says("bash", word), "%s %s", commands[i], word);
        }
        free(help);
    }
}

/* As bash would: the words offered for the last one. */
Test(program, completion_in_bash) {
    static const char *const cases[][2] = {
        {"refsae s", "sage selftest"},
        {"refsae help tok", "tokenize"},
        {"refsae sage --ma", "--max-nodes"},
        {"refsae sage --task a", "agreement"},
        {"refsae train --stage \"\"", "pretrain finetune"},
        {"refsae train --llm wei", ""},
        {"refsae diff a b --qu", "--quiet"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char expected[64];
        cr_assert_eq(run("{",
                         "help --bash-completion >@/bash && { ! command -v bash || bash -c '. "
                         "@/bash; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[*]} - 1)); "
                         "_refsae; echo \"offered: ${COMPREPLY[*]}.\"'; }; }",
                         cases[i][0]),
                     0);
        snprintf(expected, sizeof expected, "offered: %s.\n", cases[i][1]);
        cr_assert(says("stdout", expected) || !says("stdout", "bash"), "%s", cases[i][0]);
    }
}

/* What is installed is what is removed. */
Test(program, install_and_uninstall) {
    const char *program = getenv("REFSAE");
    char command[2048];
    program = program != NULL ? program : "./refsae";
    snprintf(
        command, sizeof command,
        "unset MAKEFLAGS; make='make -s -o %s PROGRAM=%s BUILD=%s/b OPENMP=no DESTDIR=%s/d' && "
        "$make install && cd %s/d/usr/local && ls bin/refsae share/man/man1/refsae.1 "
        "share/bash-completion/completions/refsae >/dev/null && cd - >/dev/null && "
        "$make uninstall && test -z \"$(find %s/d -type f)\"",
        program, program, folder, folder, folder, folder);
    cr_assert_eq(system(command), 0);
}

/* Each on stderr alone, in the order of the paths. */
Test(program, info_says_each_error_once) {
    size_t size;
    cr_assert_eq(run("", "info @/none tests/golden/pth/legacy.pth weights/gpt2"), 2);
    char *text = slurp("stderr", &size), *end = strchr(text, '\n');
    cr_assert(strstr(text, "none: ") < end && strstr(text, "legacy.pth: ") > end);
    cr_assert_eq(strchr(end + 1, '\n'), text + size - 1);
    cr_assert(says("stdout", "weights/gpt2") && !says("stdout", "error"));
    free(text);
}

/* What newcomers point at instead: a sentence each, by every command that reads such a thing. */
Test(program, what_is_no_model) {
#define TO_IMAGES "--llm weights/gemma2 --vision weights/clip --out @/out "
    static const char *const cases[][2] = {
        {"hooks --llm @/none", "none: no such folder"},
        {"sage --llm weights/gpt2 --task ioi --out @/out --saes @/none", "none: no such folder"},
        {"eval " TO_IMAGES "--adapter x --questions x --images @/none", "none: no such folder"},
        {"train " TO_IMAGES "--data weights/train.json --images @/none", "none: no such folder"},
        {"analyze " TO_IMAGES "--adapter x --saes x --data x --images @/none",
         "none: no such folder"},
        {"hooks --llm README.md", "README.md: is a file, not a folder"},
        {"hooks --vision README.md", "README.md: is a file, not a folder"},
        {"hooks --llm @/gguf", "gguf: holds no safetensors, and model.gguf is for other programs"},
        {"hooks --llm @/gguf/model.gguf", "model.gguf: is a GGUF file"},
        {"info @/gguf/model.gguf", "model.gguf: is a GGUF file"},
        {"info @/pickle", "pickle: holds no safetensors, and pytorch_model.bin is a pickle"},
        {"hooks --llm @/pickle", "pytorch_model.bin is a pickle"},
        {"info @/page/model.safetensors", "model.safetensors: is a web page"},
        {"hooks --llm @/page", "model.safetensors: is a web page"},
        {"train " TO_IMAGES "--data @/page/model.safetensors --images weights/images",
         "model.safetensors: is a web page"},
        {"info @/pointer", "pointer: is a Git LFS pointer"},
    };
    char command[1024];
    snprintf(command, sizeof command,
             "cd %s && mkdir gguf pickle page && cp \"$OLDPWD\"/weights/gpt2/*.json pickle && "
             "cp pickle/* page && printf 'GGUF\\003' >gguf/model.gguf && "
             ">pickle/pytorch_model.bin && "
             "printf '\\n<!DOCTYPE HTML>\\n' >page/model.safetensors && "
             "echo 'version https://git-lfs.github.com/spec/v1' >pointer",
             folder);
    cr_assert_eq(system(command), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(run("", "%s", cases[i][0]), 2, "%s", cases[i][0]);
        one_sentence(cases[i][1]);
    }
}

/* Before any file is opened: none of these is there. */
Test(program, options_that_cannot_hold) {
    static const char *const cases[][2] = {
        {"analyze --judge x.jsonl", "--judge needs --descriptions"},
        {"analyze --judge-examples 3", "--judge-examples needs --descriptions"},
        {"analyze --max-density 1", "--max-density needs --descriptions"},
        {"analyze --write-questions q", "--write-questions needs --descriptions"},
        {"analyze --llm x --vision x --adapter x --saes x --data x --images x --out @/o --compare "
         "c",
         "c: cannot open"},
        {"analyze --llm x --vision x --adapter x --saes x --data x --images x --out @/o --converge "
         "0.9",
         "--examples, --features and --converge must be at least 1"},
        {"analyze --llm x --vision x --adapter x --saes x --data x --images x --out @/o --examples "
         "0",
         "--examples, --features and --converge must be at least 1"},
        {"sage --cross-sections c --nodes q", "--nodes has no effect beside --cross-sections"},
        {"sage --share 0.5 --cross-sections c", "--share has no effect beside --cross-sections"},
        {"sage --cross-sections c --max-nodes 1", "--max-nodes has no effect beside --cross-sec"},
        {"train --llm x --vision x --data x --images x --init @/there/adapter.safetensors --out "
         "@/there/.",
         "there/adapter.safetensors: is written by this run, expected another file than "
         "adapter.safe"},
        {"train --llm x --vision x --data ./train.csv --images x --out .",
         "--data ./train.csv: is written by this run, expected another file than train.csv"},
        {"eval --llm x --vision x --adapter x --questions @/there/../there/answers.jsonl --images "
         "x "
         "--out @/there",
         "answers.jsonl: is written by this run, expected another file than answers.jsonl"},
        {"analyze --llm x --vision x --adapter x --saes x --data x --images x --descriptions d "
         "--write-questions @/new/layers.csv --out @/new",
         "new/layers.csv: is written by this run, expected another file than layers.csv"},
        {"sage --llm x --saes x --task ioi --prompts manifest.json --out ./",
         "--prompts manifest.json: is written by this run, expected another file than manifest"},
        {"train --llm x --vision x --data x --images x --out x --lr 1e-3 --min-lr 5",
         "--min-lr 5: expected at most --lr"},
        {"sage --llm x --saes x --task ioi --out x --dict-class Foo",
         "--dict-class Foo: expected AutoEncoderTopK|BatchTopKSAE"},
        {"diff a b --atol -1", "--atol -1: expected 0 or more"},
        {"diff a b --rtol -1", "--rtol -1: expected 0 or more"},
        {"analyze --llm x --vision x --adapter x --saes x --data x --images x --out x "
         "--max-frequency -1",
         "--max-frequency -1: expected a share in [0, 1]"},
        {"bench --llm x --task ioi", "--task needs --saes"},
        {"dump --sae x --hooks logits", "--hooks has no effect beside --sae"},
        {"dump --llm x --ids 1 --hooks logits --canonical", "dump has no option '--canonical'"},
        {"dump --llm x --ids 1 --hooks logits --norm-factor 2", "--norm-factor needs --sae"},
        {"info x --unpack 0", "--unpack 0: expected at least 1"},
        {"generate --prompt p", "--prompt needs --llm"},
        {"generate --llm x --prompt p --vision v", "--vision needs --image"},
        {"generate --llm x --prompt p --max-new-tokens 0", "--max-new-tokens 0: expected"},
        {"generate --llm x --prompt p --adapter a", "--adapter needs --image"},
        {"generate --llm x --prompt p --chat --bos no", "--bos is for text that stands alone"},
        {"dump --llm x --out @/o --hooks '*' --ids 1 --bos yes",
         "--bos is for text that stands alone"},
        {"dump --llm x --out @/o --hooks '*' --text t --chat", "--chat needs --prompt"},
        {"dump --vision v --image i --out @/o --hooks '*' --grad 1", "--grad needs --llm"},
        {"dump --llm x --out @/o --hooks '*' --ids 1 --input i", "--input needs --sae"},
        {"dump --llm x --out @/o --hooks '*' --ids 1 --tensor t", "--tensor needs --sae"},
        {"dump --llm x --out @/o --hooks '*' --ids 1 --fold-value-biases yes",
         "--fold-value-biases needs --sae"},
    };
    shell("mkdir %s/there", folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(run("", "%s", cases[i][0]), 2, "%s", cases[i][0]);
        one_sentence(cases[i][1]);
        cr_assert(!there("o"), "%s", cases[i][0]);
    }
}

/* Ten times as many steps as memory has addresses must not become fewer. */
Test(program, numbers_beyond_the_machine) {
    char expected[80];
    cr_assert_eq(run("", "train " TOY " --out @/o --steps %zu0", SIZE_MAX), 2);
    snprintf(expected, sizeof expected, "--steps %zu0: expected at most %zu", SIZE_MAX, SIZE_MAX);
    one_sentence(expected);
    cr_assert_eq(run("", "train " TOY " --out @/o --steps 1 --threads 1025"), 2);
    one_sentence("--threads 1025: expected at most 1024");
}

Test(program, info_and_dump_of_pytorch_files) {
    cr_assert_eq(run("", "info tests/golden/pth/projector_module.pth tests/golden/pth/all_2.pt"),
                 0);
    cr_assert(says("stdout", "adapter") && says("stdout", "nested.list.1.1.deep"));
    cr_assert_eq(run("", "info tests/golden/pth/legacy.pth"), 2);
    one_sentence("torch.save(torch.load(FILE), FILE)");
    const char *sae = "tests/golden/sae/dictionary/Standard_pythia-70m-deduped__0108/"
                      "resid_post_layer_3/trainer_0";
    cr_assert_eq(run("", "info %s/ae.pt", sae), 0);
    cr_assert(says("stdout", "AutoEncoder") && says("stdout", "blocks.3.hook_resid_post"));
    cr_assert_eq(run("",
                     "dump --sae %s --unit-decoder --input %s/expected.safetensors --tensor x "
                     "--out @/o.safetensors",
                     sae, sae),
                 0);
    cr_assert_eq(
        run("", "dump --sae %s --input @/o.safetensors --tensor recon --out @/p.safetensors", sae),
        0);
    cr_assert_eq(run("", "dump --sae tests/golden/pth/all_2.pt --input @/o.safetensors --tensor "
                         "recon --out @/q.safetensors"),
                 2);
    one_sentence("not those of an SAE of dictionary_learning");
    cr_assert(!there("q.safetensors"));
}

/* ---- dump and diff ---- */

Test(program, dump_and_diff) {
    cr_assert_eq(
        run("",
            "dump --llm weights/gpt2 --ids 5,9,100 --hooks '*' --grad 5,7 --out @/a.safetensors"),
        0);
    cr_assert_eq(run("REFSAE_ISA=scalar",
                     "dump --llm weights/gpt2 --ids 5,9,100 --hooks '*' --grad 5,7 --out "
                     "@/b.safetensors --threads 1"),
                 0);
    cr_assert_eq(run("", "diff @/a.safetensors @/b.safetensors"), 0);
    same_file("a.safetensors", "b.safetensors");
    cr_assert_eq(
        run("",
            "dump --llm weights/gpt2 --ids 5,9,101 --hooks '*' --grad 5,7 --out @/c.safetensors"),
        0);
    cr_assert_eq(run("", "diff @/a.safetensors @/c.safetensors"), 1);
    cr_assert_eq(run("", "diff @/a.safetensors @/c.safetensors --atol 1e9"), 0);
    cr_assert_eq(run("", "diff @/a.safetensors @/none.safetensors"), 2);
    one_sentence("none.safetensors");
    cr_assert_eq(
        run("", "dump --llm weights/gpt2 --ids 5 --hooks 'no_such_*' --out @/d.safetensors"), 2);
    static const char *const one_of_several[] = {"'no_such_*,logits'", "logits,no_such_*",
                                                 "'{no_such_*},logits'", "logits,no_such_*,logits"};
    for (size_t i = 0; i < sizeof one_of_several / sizeof *one_of_several; i++) {
        cr_assert_eq(run("", "dump --llm weights/gpt2 --ids 5 --hooks %s --out @/d.safetensors",
                         one_of_several[i]),
                     2);
        one_sentence("no_such_*");
    }
    cr_assert(!there("d.safetensors"));
    cr_assert_eq(run("", "dump --llm weights/gpt2 --text '' --hooks '*' --out @/d.safetensors"), 2);
    one_sentence("the text has no token");
    cr_assert_eq(run("", "dump --sae tests/golden/sae/saelens/topk --input @/a.safetensors "
                         "--tensor nope --out @/d"),
                 2);
    one_sentence("no tensor 'nope'");
    cr_assert_eq(
        run("", "dump --llm weights/gpt2 --ids 5,99999999 --hooks '*' --out @/d.safetensors"), 2);
    one_sentence("99999999");
    cr_assert_eq(
        run("", "dump --llm weights/gpt2 --ids 5 --hooks 'logits,blocks.{0,1}.hook_resid_p*' --out "
                "@/d.safetensors"),
        0);
    Arena *arena = arena_new();
    TensorStore store;
    tensors_open(&store, arena, path_join(arena, folder, "d.safetensors"));
    cr_assert_eq(store.count, 5);
    arena_free(arena);
}

static void write_integers(const char *name, Dtype dtype, uint64_t value) {
    Arena *arena = arena_new();
    const size_t shape[1] = {1};
    TensorWriter *writer = tensor_writer_open(path_join(arena, folder, name));
    tensor_writer_declare(writer, "x", dtype, 1, shape);
    tensor_writer_data(writer, &value, sizeof value, 1);
    tensor_writer_commit(writer);
    arena_free(arena);
}

/* Integers that binary64 cannot tell apart differ by 1, at both ends of their range. */
Test(program, diff_compares_integers_as_integers) {
    static const struct {
        Dtype dtype;
        uint64_t a, b;
        const char *says;
    } cases[] = {
        {DTYPE_I64, UINT64_C(1) << 53, (UINT64_C(1) << 53) + 1,
         "[0] 9007199254740992 9007199254740993: 1 ulp; absolute 1,"},
        {DTYPE_I64, UINT64_C(1) << 63, (UINT64_C(1) << 63) + 1,
         "[0] -9223372036854775808 -9223372036854775807: 1 ulp; absolute 1,"},
        {DTYPE_I64, UINT64_MAX, 0, "[0] -1 0: 1 ulp; absolute 1,"},
        {DTYPE_U64, UINT64_MAX, UINT64_MAX - 1,
         "[0] 18446744073709551615 18446744073709551614: 1 ulp; absolute 1,"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t size;
        write_integers("a.safetensors", cases[i].dtype, cases[i].a);
        write_integers("b.safetensors", cases[i].dtype, cases[i].b);
        cr_assert_eq(run("", "diff @/a.safetensors @/b.safetensors"), 1);
        char *said = slurp("stdout", &size);
        cr_assert_not_null(strstr(said, cases[i].says), "case %zu: %s", i, said);
        free(said);
        cr_assert_eq(run("", "diff @/a.safetensors @/a.safetensors"), 0);
        cr_assert_eq(run("", "diff @/a.safetensors @/b.safetensors --ulp 1"), 0);
    }
}

/* A file of one tensor 'x' [1]. */
static void write_single(const char *name, uint32_t bits) {
    static const char header[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    uint64_t length = sizeof header - 1;
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    fwrite(&length, 8, 1, file);
    fwrite(header, 1, (size_t)length, file);
    fwrite(&bits, 4, 1, file);
    fclose(file);
}

Test(program, diff_of_no_numbers) {
    write_single("nan", 0x7FC00000);
    write_single("other_nan", 0xFFC00001);
    write_single("one", 0x3F800000);
    cr_assert_eq(run("", "diff @/nan @/other_nan"), 0);
    cr_assert_eq(run("", "diff @/nan @/one --atol 1e9"), 1);
    cr_assert(says("stdout", "one of them is no number"));
}

/* z - b_V is what an SAE of hook_z saw under fold_value_biases; b_V comes from the model. */
Test(program, dump_of_an_sae_without_value_biases) {
#define FOLDED "tests/golden/sae/saelens/old_hook_z_folded"
#define UNTIED "tests/golden/models/gpt2_untied"
    cr_assert_eq(run("", "dump --sae " FOLDED " --llm " UNTIED " --input " UNTIED
                         ".safetensors --out @/ours"),
                 0);
    cr_assert_eq(run("", "diff @/ours " FOLDED "/expected.safetensors --atol 1e-6"),
                 1); /* it has x too */
    cr_assert(says("stdout", "3 of 4 tensors as allowed"));
    cr_assert_eq(run("", "dump --sae " FOLDED " --input " UNTIED ".safetensors --out @/seen"), 0);
    cr_assert(says("stderr", "--llm DIR"));
    cr_assert_eq(run("", "diff @/ours @/seen --atol 1e-3"), 1);
    cr_assert_eq(run("", "dump --sae " FOLDED " --llm weights/gpt2 --input " UNTIED
                         ".safetensors --out @/no"),
                 2);
    one_sentence("does not fit weights/gpt2");
    cr_assert_eq(run("", "dump --sae tests/golden/sae/saelens/hook_z --fold-value-biases maybe "
                         "--input x --out @/no"),
                 2);
    one_sentence("--fold-value-biases");
}

/* SAEs of every resid_post of the toy GPT-2 that give back ReLU(Px) - ReLU(-Px) = Px: P takes a
 * row's mean away, or nothing at all. */
static void put_saes(const char *name, bool centred, const char *settings) {
    enum {
        D = 64
    };
    static float w_enc[D][2 * D], w_dec[2 * D][D], b_enc[2 * D], b_dec[D];
    for (size_t i = 0; i < D; i++) {
        for (size_t k = 0; k < D; k++) {
            w_enc[i][k] = (i == k ? 1.0f : 0.0f) - (centred ? 1.0f / (float)D : 0.0f);
            w_enc[i][D + k] = -w_enc[i][k];
            w_dec[k][i] = i == k ? 1.0f : 0.0f;
            w_dec[D + k][i] = -w_dec[k][i];
        }
    }
    for (int layer = 0; layer < 4; layer++) {
        char path[256], file[320];
        snprintf(path, sizeof path, "%s/%s/blocks.%d.hook_resid_post", folder, name, layer);
        path_make_directory(path);
        snprintf(file, sizeof file, "%s/cfg.json", path);
        FILE *cfg = fopen(file, "w");
        cr_assert_not_null(cfg);
        fprintf(cfg,
                "{\"d_in\": 64, \"d_sae\": 128, \"hook_name\": \"blocks.%d.hook_resid_post\"%s}",
                layer, settings);
        fclose(cfg);
        snprintf(file, sizeof file, "%s/sae_weights.safetensors", path);
        TensorWriter *writer = tensor_writer_open(file);
        static const char *const names[] = {"W_enc", "W_dec", "b_enc", "b_dec"};
        const size_t shapes[][2] = {{D, 2 * D}, {2 * D, D}, {2 * D, 1}, {D, 1}};
        const void *data[] = {w_enc, w_dec, b_enc, b_dec};
        for (size_t i = 0; i < 4; i++) {
            tensor_writer_declare(writer, names[i], DTYPE_F32, i < 2 ? 2 : 1, shapes[i]);
        }
        for (size_t i = 0; i < 4; i++) {
            tensor_writer_data(writer, data[i], sizeof(float), shapes[i][0] * shapes[i][1]);
        }
        tensor_writer_commit(writer);
    }
}

Test(program, sage_finds_out_whether_the_stream_was_centred) {
    static const char form[] = "sage --llm weights/gpt2 --task ioi --train 16 --test 8 --nodes z "
                               "--max-nodes 2 --saes @/%s "
                               "--out @/%s %s";
    put_saes("open", true, "");
    put_saes("plain", false, "");
    put_saes("stated", true,
             ", \"model_from_pretrained_kwargs\": {\"center_writing_weights\": true}");
    cr_assert_eq(run("", form, "open", "a", ""), 0);
    cr_assert(says("stderr", "stream centred for its SAE"));
    cr_assert_eq(run("", form, "plain", "b", ""), 0);
    cr_assert(says("stderr", "stream not centred for its SAE"));
    cr_assert_eq(run("", form, "open", "c", "--centre yes"),
                 0); /* given and stated: nothing to try */
    cr_assert(!says("stderr", "centred for its SAE"));
    cr_assert_eq(run("", form, "stated", "d", ""), 0);
    cr_assert(!says("stderr", "centred for its SAE"));
    same_file("a/sage.json", "c/sage.json");
    same_file("a/sage.json", "d/sage.json");
}

Test(program, dump_of_images) {
    cr_assert_eq(run("", "dump --vision weights/clip --image weights/images/held_000.png --hooks "
                         "'vision.pixel_values,vision.blocks.0.hook_resid_post,image.rgb' --out "
                         "@/a.safetensors"),
                 0);
    Arena *arena = arena_new();
    TensorStore store;
    tensors_open(&store, arena, path_join(arena, folder, "a.safetensors"));
    cr_assert_eq(store.count, 3);
    cr_assert_eq(tensors_find(&store, "image.rgb")->dtype, DTYPE_U8);
    arena_free(arena);
    cr_assert_eq(run("", "dump --image README.md --hooks image.rgb --out @/b.safetensors"), 2);
    one_sentence("README.md");
    cr_assert(!there("b.safetensors"));
}

static size_t lines_of(const char *name) {
    size_t size, lines = 0;
    char *text = slurp(name, &size);
    for (size_t i = 0; i < size; i++) {
        lines += text[i] == '\n' ? 1 : 0;
    }
    free(text);
    return lines;
}

/* ---- tokenize ---- */

Test(program, tokenize) {
    cr_assert_eq(run("printf 'a red circle' |", "tokenize weights/gemma2 --special"), 0);
    cr_assert(says("stdout", "2 "));
    cr_assert_eq(run("printf 'a red circle' |", "tokenize weights/gpt2"), 0);
    char command[256];
    snprintf(command, sizeof command, "cp %s/stdout %s/ids && cat %s/ids |", folder, folder,
             folder);
    cr_assert_eq(run(command, "tokenize weights/gpt2 --decode"), 0);
    size_t size;
    char *text = slurp("stdout", &size);
    cr_assert_str_eq(text, "a red circle");
    free(text);
    /* as `tokenizers` has them of this file, which truncates and pads on the left */
    cr_assert_eq(run("printf a |", "tokenize tests/golden/tokenizer/fitted.json"), 0);
    cr_assert(says("stdout", "3 3 3 3 3 3 3 3 3 3 3 65\n"));
    cr_assert_eq(run("printf 'a red circle and a blue square of no size at all' |",
                     "tokenize tests/golden/tokenizer/fitted.json"),
                 0);
    cr_assert(says("stdout", "79 268 73 90 69 221 65 84 221 65 76 76\n"));
    cr_assert_eq(run("echo 5 99999 |", "tokenize weights/gpt2 --decode"), 2);
    one_sentence("standard input: the tokenizer has no id 99999");
    cr_assert_eq(run("echo '[5]\n[5, 4294967301]' |", "tokenize weights/gpt2 --decode --jsonl"), 2);
    one_sentence("no id 4294967301");
    cr_assert_eq(run("printf '\"a\\\\u00e9\"\\n\"b\"\\n' |", "tokenize weights/gpt_neox --jsonl"),
                 0);
    cr_assert(says("stdout", "]\n["));
    cr_assert_eq(run("printf '\\377' |", "tokenize weights/gpt2"), 2);
    static const char *const bad[][3] = {
        {"printf '5 99999999999' |", "--decode", "no id 99999999999"},
        {"printf '5;6' |", "--decode", "standard input: expected token ids"},
        {"printf '5\\0' |", "--decode", "standard input: expected token ids"},
        {"echo 5 |", "--jsonl", "line 1: expected a JSON string"},
        {"echo '\"5\"' |", "--jsonl --decode", "line 1: expected a JSON array of ids"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(run(bad[i][0], "tokenize weights/gpt2 %s", bad[i][1]), 2);
        one_sentence(bad[i][2]);
    }
    cr_assert_eq(run("printf '\"a\"\\n \\t\\n\"b\"' |", "tokenize weights/gpt2 --jsonl"), 0);
    cr_assert_eq(lines_of("stdout"), 2);
    cr_assert_eq(run("printf ' red%.0s' $(seq 3000) |", "tokenize weights/gpt2"), 0);
    cr_assert_eq(run(command, "tokenize weights/gpt2 --decode"), 0);
    free(slurp("stdout", &size));
    cr_assert_eq(size, 12000);
}

/* ---- generate ---- */

Test(program, generate) {
    cr_assert_eq(run("", "generate --llm weights/gpt2 --max-new-tokens 1 --prompt 'Then, Mary and "
                         "John went to the "
                         "store. John gave a ring to'"),
                 0);
    cr_assert(says("stdout", "Mary"));
    cr_assert_eq(
        run("",
            "generate --llm weights/gemma2 --chat --prompt '[{\"role\":\"user\",\"content\":\"a\"},"
            "{\"role\":\"user\",\"content\":\"b\"}]'"),
        2);
    one_sentence("alternate");
    cr_assert_eq(run("", "generate --llm weights/gpt2 --prompt hello --temperature 1 --seed 3 "
                         "--max-new-tokens 8"),
                 0);
    char command[256];
    snprintf(command, sizeof command, "cp %s/stdout %s/first;", folder, folder);
    cr_assert_eq(run(command, "generate --llm weights/gpt2 --prompt hello --temperature 1 --seed 3 "
                              "--max-new-tokens 8"),
                 0);
    same_file("first", "stdout");
    /* no further than the model has positions */
    cr_assert_eq(run("", "generate --llm weights/gpt2 --max-new-tokens 50 --json --prompt "
                         "\"$(printf ' red%%.0s' $(seq 120))\""),
                 0);
    Arena *arena = arena_new();
    const Json *ids = json_get(json_read_file(arena, path_join(arena, folder, "stdout")), "ids");
    cr_assert_eq(ids->length, 8);
    arena_free(arena);
    cr_assert_eq(run("", "dump --llm weights/gpt2 --bos yes --text ' red' --hooks hook_embed "
                         "--json --out @/bos"),
                 0);
    cr_assert(says("stdout", "[2, 64]"));
    cr_assert_eq(run("", "generate --llm weights/gemma2 --chat --prompt red --max-new-tokens 8"),
                 0);
    cr_assert_eq(run(command, "generate --llm weights/gemma2 --chat --max-new-tokens 8 --prompt "
                              "'[{\"role\":\"user\",\"content\":\"red\"}]'"),
                 0);
    same_file("first", "stdout");
    /* a model's turn at the end goes on: behind its own first words the rest is said again */
    snprintf(command, sizeof command, "sed 's/^What color//' %s/first >%s/rest;", folder, folder);
    cr_assert_eq(run(command, "generate --llm weights/gemma2 --chat --max-new-tokens 8 --prompt "
                              "'[{\"role\":\"user\",\"content\":\"red\"},"
                              "{\"role\":\"model\",\"content\":\"What color\"}]'"),
                 0);
    cr_assert(says("first", "What color"));
    same_file("rest", "stdout");
}

/* Of a picture it says what eval has it say. */
Test(program, generate_of_an_image) {
#define SEES                                                                                       \
    "--llm weights/gemma2 --vision weights/clip --max-new-tokens 8 "                               \
    "--adapter tests/golden/training/toy/adapter_off.safetensors"
    char command[256], said[64] = "\"text\": \"";
    snprintf(command, sizeof command, "head -n 1 weights/questions.jsonl >%s/q;", folder);
    cr_assert_eq(run(command, "eval " SEES " --images weights/images --questions @/q --out @/e"),
                 0);
    cr_assert_eq(run("", "generate " SEES " --image weights/images/held_000.png --prompt "
                         "'What color is the triangle?'"),
                 0);
    size_t size;
    char *text = slurp("stdout", &size);
    text[strcspn(text, "\n")] = '"';
    strncat(said, text, 32);
    free(text);
    cr_assert(says("e/answers.jsonl", said), "%s", said);
}

/* ---- training ---- */

static void golden_run(const char *world, const char *data, const char *softcap) {
    char path[256];
    Arena *arena = arena_new();
    snprintf(path, sizeof path, "tests/golden/training/%s/expected.json", world);
    const Json *expected = json_read_file(arena, path);
    const Json *o = json_get(expected, "options");
    cr_assert_eq(run("",
                     "train %s --out @/o --init tests/golden/training/%s/initial.safetensors --lr "
                     "%s --min-lr %s "
                     "--warmup %s --batch %s --accumulate %s --epochs %s --tokens %s --shuffle no "
                     "--softcap %s",
                     data, world, json_get(o, "lr")->text, json_get(o, "min_lr")->text,
                     json_get(o, "warmup")->text, json_get(o, "batch")->text,
                     json_get(o, "accumulate")->text, json_get(o, "epochs")->text,
                     json_get(o, "tokens")->text, softcap),
                 0);
    const Json *step = json_get(json_get(json_get(expected, "runs"), softcap), "steps")->child;
    size_t size, steps = 0;
    char *csv = slurp("o/train.csv", &size);
    cr_assert(strncmp(csv, "step,epoch,loss,lr,tokens\n", 26) == 0);
    for (char *line = strchr(csv, '\n') + 1; *line != '\0';
         line = strchr(line, '\n') + 1, step = step->next, steps++) {
        double loss, lr;
        long number, epoch, tokens;
        cr_assert_not_null(step, "more steps than expected");
        cr_assert_eq(sscanf(line, "%ld,%ld,%lf,%lf,%ld", &number, &epoch, &loss, &lr, &tokens), 5);
        double want = json_double(json_get(step, "loss"));
        /* binary32 sums of other orders: the golden itself lies 4e-7 from its binary64 run */
        cr_assert(fabs(loss - want) <= 1e-5 * fabs(want), "step %ld: loss %.9g, expected %.9g",
                  number, loss, want);
        cr_assert(fabs(lr - json_double(json_get(step, "lr"))) <= 1e-12 * lr);
        int64_t predicted;
        cr_assert(json_int64(json_get(step, "predicted"), &predicted) && predicted == tokens);
    }
    cr_assert(step == NULL && steps >= 6, "%zu steps", steps);
    TensorStore ours, golden;
    snprintf(path, sizeof path, "%s/o/adapter.safetensors", folder);
    tensors_open(&ours, arena, path);
    snprintf(path, sizeof path, "tests/golden/training/%s/adapter_%s.safetensors", world, softcap);
    tensors_open(&golden, arena, path);
    for (size_t i = 0; i < golden.count; i++) {
        const Tensor *t = tensors_find(&ours, golden.tensors[i].name);
        cr_assert(t != NULL && t->count == golden.tensors[i].count);
        for (size_t k = 0; k < t->count; k++) {
            float x, y;
            memcpy(&x, (const char *)t->data + 4 * k, 4);
            memcpy(&y, (const char *)golden.tensors[i].data + 4 * k, 4);
            cr_assert(fabsf(x - y) <= 1e-4f * fmaxf(1.0f, fabsf(y)), "%s[%zu]: %g, expected %g",
                      t->name, k, x, y);
        }
    }
    free(csv);
    arena_free(arena);
}

Test(program, training_follows_pytorch_odd) {
    golden_run("odd", ODD, "off");
}

Test(program, training_follows_pytorch_odd_softcap) {
    golden_run("odd", ODD, "model");
}

Test(program, training_follows_pytorch_toy) {
    golden_run("toy",
               "--llm weights/gemma2 --vision weights/clip --data "
               "tests/golden/training/toy/data.json --images "
               "weights/images",
               "off");
}

Test(program, training_counts_what_it_leaves_out) {
    cr_assert_eq(run("", "train " ODD " --out @/o --batch 2 --accumulate 2 --tokens 55"), 0);
    cr_assert(says("stderr", "2 examples without an image"));
    cr_assert(says("stderr", "1 example whose image cannot be read"));
    cr_assert(says("stderr", "missing.png"));
    cr_assert_eq(run("", "train " ODD " --out @/o --batch 99 --accumulate 1 --steps 2"), 0);
    cr_assert(says("stdout", "2 steps, 2 epochs"));
    cr_assert_eq(run("", "train " ODD " --out @/p --tokens 55 --strict --quiet"), 2);
    one_sentence("missing.png");
    cr_assert(!there("p/adapter.safetensors"));
}

/* With --tokens so low that answers are cut off. */
Test(program, training_needs_tokens_to_predict) {
    static const char *const lengths[] = {"", "--steps 2"};
    for (size_t i = 0; i < 2; i++) {
        const char *many =
            i == 0 ? "21" : "22"; /* with --steps an unread image is one that may be */
        char words[128];
        cr_assert_eq(run("", "train " ODD " --out @/o --tokens 4 %s --quiet", lengths[i]), 2);
        snprintf(words, sizeof words, "0 of %s examples with a token to predict within --tokens 4",
                 many);
        one_sentence(words);
        cr_assert(!there("o/train.csv"));
        cr_assert_eq(run("", "train " ODD " --out @/p --tokens 20 %s", lengths[i]), 0);
        snprintf(words, sizeof words,
                 "3 of %s examples without a token to predict within --tokens 20", many);
        cr_assert(says("stderr", words));
        cr_assert_eq(run("", "train " ODD " --out @/p --tokens 200 %s", lengths[i]), 0);
        cr_assert(!says("stderr", "no token"));
    }
}

static const char long_run[] =
    "train " ODD " --out @/%s --lr 0.01 --batch 2 --accumulate 1 --tokens 55 --steps 40 "
    "--save-every 3 --seed 7 %s";

/* Until its first checkpoint is there. */
static pid_t start_in_background(const char *out) {
    char words[4096], line[8192], *at = line;
    const char *program = getenv("REFSAE");
    snprintf(words, sizeof words, long_run, out, "");
    at += sprintf(at, "exec %s ", program != NULL ? program : "./refsae");
    for (const char *p = words; *p != '\0'; p++) {
        at += *p == '@' ? sprintf(at, "%s", folder) : sprintf(at, "%c", *p);
    }
    pid_t child = fork();
    if (child == 0) {
        char path[128];
        snprintf(path, sizeof path, "%s/stderr", folder);
        dup2(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666), 2);
        signal(SIGINT, SIG_DFL); /* what runs the tests may have them ignored */
        signal(SIGTERM, SIG_DFL);
        signal(SIGHUP, SIG_DFL);
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    char checkpoint[64];
    snprintf(checkpoint, sizeof checkpoint, "%.30s/checkpoint.safetensors", out);
    for (int i = 0; i < 30000 && !there(checkpoint); i++) {
        nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    return child;
}

Test(program, killed_and_resumed_gives_the_same_bytes) {
    cr_assert_eq(run("", long_run, "whole", ""), 0);
    pid_t child = start_in_background("cut");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    cr_assert(there("cut/checkpoint.safetensors"));
    cr_assert(!there("cut/adapter.safetensors"), "the run ended before it could be killed");
    cr_assert_eq(run("", long_run, "cut", "--resume"), 0);
    cr_assert(says("stderr", "resuming after step"));
    same_file("whole/adapter.safetensors", "cut/adapter.safetensors");
    same_file("whole/checkpoint.safetensors", "cut/checkpoint.safetensors");
    same_file("whole/train.csv", "cut/train.csv");
    same_file("whole/loss.svg", "cut/loss.svg");
    cr_assert_eq(run("", "verify @/whole"), 0);
    shell("sed -n 's/.*outputs: //p' %s/stdout >%s/first", folder, folder);
    cr_assert_eq(run("", "verify @/cut"), 0);
    shell("sed -n 's/.*outputs: //p' %s/stdout >%s/second", folder, folder);
    same_file("first", "second");
    cr_assert(says("first", "sha256 "));
    static const char *const others[][2] = {
        {"--lr 0.02", "was written with '--lr 0.01', this run has '--lr 0.02'"},
        {"--shuffle no", "was written with '--shuffle yes', this run has '--shuffle no'"},
        {"--data @/other.json", "was written with '--data of SHA-256 "},
        {"--llm weights/gemma2", "was written with '--llm of "},
    };
    char command[256];
    snprintf(command, sizeof command,
             "{ cat tests/golden/training/odd/data.json; echo; } >%s/other.json", folder);
    cr_assert_eq(system(command), 0);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char words[128];
        snprintf(words, sizeof words, "--resume %s", others[i][0]);
        cr_assert_eq(run("", long_run, "cut", words), 2, "%s", words);
        one_sentence(others[i][1]);
    }
}

static size_t temporaries_in(const char *name) {
    Arena *arena = arena_new();
    size_t count, found = 0;
    char **names = path_list(arena, path_join(arena, folder, name), &count);
    for (size_t i = 0; i < count; i++) {
        found += strstr(names[i], ".tmp") != NULL ? 1 : 0;
    }
    arena_free(arena);
    return found;
}

/* The run ends by the signal, as a shell expects; once what it writes is being written. */
Test(program, interrupted_leaves_nothing_and_says_how_to_go_on) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char out[8];
        int status;
        snprintf(out, sizeof out, "o%zu", i);
        pid_t child = start_in_background(out);
        kill(child, numbers[i]);
        waitpid(child, &status, 0);
        cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == numbers[i]);
        cr_assert(says("stderr", "interrupted; the same command with --resume goes on"));
        cr_assert_eq(temporaries_in(out), 0);
    }
}

/* Its times stay, of every step; and a tower of the same shape but other weights is another run. */
Test(program, resuming_a_finished_run) {
#define TOWER "tests/golden/models/clip_odd/"
    static const char form[] =
        "train --llm tests/golden/training/odd/gemma2 --vision @/tower "
        "--data tests/golden/training/odd/data.json --images tests/golden/training/odd/images "
        "--out @/o --batch 2 --accumulate 1 --tokens 55 --steps 4 %s";
    char command[256], path[256];
    snprintf(command, sizeof command, "cp -r " TOWER " %s/tower && chmod -R u+w %s/tower", folder,
             folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(run("", form, ""), 0);
    cr_assert_eq(lines_of("o/timing.csv"), 5);
    snprintf(command, sizeof command, "cp %s/o/timing.csv %s/before", folder, folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(run("", form, "--resume"), 0);
    cr_assert(says("stderr", "resuming after step 4 of 4"));
    same_file("before", "o/timing.csv");
    shell("rm %s/o/timing.csv", folder);
    cr_assert_eq(run("", form, "--resume"), 0);
    shell("[ \"$(cat %s/o/timing.csv)\" = step,seconds ]", folder);
    snprintf(path, sizeof path, "%s/tower/model.safetensors", folder);
    FILE *file = fopen(path, "r+b");
    cr_assert_not_null(file);
    cr_assert_eq(fseek(file, -1, SEEK_END), 0);
    int last = fgetc(file); /* the last byte of the last weight */
    cr_assert_eq(fseek(file, -1, SEEK_END), 0);
    fputc(last ^ 1, file);
    fclose(file);
    cr_assert_eq(run("", form, "--resume"), 2);
    one_sentence("was written with '--vision of ");
}

typedef enum Change {
    REMOVED,
    OF_DTYPE,
    OF_RANK,
    OF_WIDTH,
    NUMBERED
} Change;

/* o/checkpoint.safetensors as `good` is, but for a change to one of its parts; NUMBERED: number `n`
 * of it is `value`. */
static void checkpoint_change(Arena *arena, const char *part, Change change, size_t n,
                              int64_t value) {
    TensorStore store;
    tensors_open(&store, arena, path_join(arena, folder, "good"));
    TensorWriter *w = tensor_writer_open(path_join(arena, folder, "o/checkpoint.safetensors"));
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < store.count; i++) {
            const Tensor *t = &store.tensors[i];
            size_t shape[3] = {t->shape[0], t->rank > 1 ? t->shape[1] : 1, 1}, count = t->count;
            Dtype dtype = t->dtype;
            int rank = t->rank;
            void *data = arena_copy(arena, t->data, count * dtype_size(dtype));
            if (strcmp(t->name, part) == 0) {
                if (change == REMOVED) {
                    continue;
                }
                dtype = change != OF_DTYPE ? dtype : dtype == DTYPE_I64 ? DTYPE_U64 : DTYPE_I8;
                rank += change == OF_RANK;
                shape[rank - 1] -= change == OF_WIDTH;
                count = shape[0] * (rank > 1 ? shape[1] : 1);
                if (change == NUMBERED) {
                    memcpy((unsigned char *)data + n * sizeof value, &value, sizeof value);
                }
            }
            if (pass == 0) {
                tensor_writer_declare(w, t->name, dtype, rank, shape);
            } else {
                tensor_writer_data(w, data, dtype_size(dtype), count);
            }
        }
    }
    tensor_writer_commit(w);
}

Test(program, a_checkpoint_is_not_believed) {
    static const char form[] = "train " ODD " --out @/o --batch 8 --accumulate 1 --tokens 55 "
                               "--epochs 0 --steps 4 --image-text drop %s";
    static const struct {
        const char *part, *says;
        Change change;
        size_t n;
        int64_t value;
    } bad[] = {{"settings", "not a checkpoint", REMOVED, 0, 0},
               {"settings", "not a checkpoint", OF_DTYPE, 0, 0},
               {"settings", "not a checkpoint", OF_RANK, 0, 0},
               {"numbers", "not a checkpoint", REMOVED, 0, 0},
               {"numbers", "not a checkpoint", OF_DTYPE, 0, 0},
               {"numbers", "not a checkpoint", OF_WIDTH, 0, 0},
               {"rows", "not a checkpoint", REMOVED, 0, 0},
               {"rows", "not a checkpoint", OF_DTYPE, 0, 0},
               {"rows", "not a checkpoint", OF_RANK, 0, 0},
               {"rows", "not a checkpoint", OF_WIDTH, 0, 0},
               {"exp_avg.bias", "tensor 'exp_avg.bias'", REMOVED, 0, 0},
               {"numbers", "contradict each other", NUMBERED, 0, 3},       /* step */
               {"numbers", "contradict each other", NUMBERED, 1, 3},       /* steps: fewer */
               {"numbers", "contradict each other", NUMBERED, 1, 5},       /* steps: more */
               {"numbers", "contradict each other", NUMBERED, 3, 1000000}, /* position */
               {"numbers", "contradict each other", NUMBERED, 4, 1000000}, /* usable */
               {"numbers", "contradict each other", NUMBERED, 5, 1000000}, /* examples */
               {"none", "", REMOVED, 0, 0}};
    char command[256];
    Arena *arena = arena_new();
    cr_assert_eq(run("", form, ""), 0);
    snprintf(command, sizeof command, "mv %s/o/checkpoint.safetensors %s/good", folder, folder);
    cr_assert_eq(system(command), 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        checkpoint_change(arena, bad[i].part, bad[i].change, bad[i].n, bad[i].value);
        int want = bad[i].says[0] != 0 ? 2 : 0;
        cr_assert_eq(run("", form, "--resume"), want, "case %zu", i);
        cr_assert(says("stderr", want == 2 ? bad[i].says : "resuming after step 4 of 4"),
                  "case %zu", i);
    }
    arena_free(arena);
}

Test(program, same_bits_on_one_thread_in_scalar_code_and_in_any_batch) {
    static const char form[] =
        "train " ODD " --out @/%s --lr 0.01 --batch %d --accumulate %d --tokens 55 --steps 4 "
        "--threads %d";
    cr_assert_eq(run("", form, "a", 4, 1, 2), 0);
    cr_assert_eq(run("REFSAE_ISA=scalar", form, "b", 4, 1, 1), 0);
    cr_assert_eq(run("", form, "c", 1, 4, 2),
                 0); /* how many examples run at once changes nothing */
    same_file("a/adapter.safetensors", "b/adapter.safetensors");
    same_file("a/train.csv", "b/train.csv");
    same_file("a/adapter.safetensors", "c/adapter.safetensors");
    same_file("a/train.csv", "c/train.csv");
}

/* ---- evaluation and analysis ---- */

#define ADAPTER "--adapter tests/golden/training/toy/adapter_off.safetensors"

Test(program, eval_writes_answers_and_scores) {
    FILE *file = fopen("weights/questions.jsonl", "rb");
    char name[128], line[4096];
    snprintf(name, sizeof name, "%s/q.jsonl", folder);
    FILE *few = fopen(name, "wb");
    for (int i = 0; i < 12 && fgets(line, sizeof line, file) != NULL; i++) {
        fputs(line, few);
    }
    fclose(file);
    fclose(few);
    static const char form[] =
        "eval --llm weights/gemma2 --vision weights/clip " ADAPTER
        " --questions @/q.jsonl --images weights/images --out @/%s --max-new-tokens 8 %s";
    cr_assert_eq(run("", form, "a", ""), 0);
    cr_assert(says("a/scores.json", "\"questions\": 12"));
    cr_assert_eq(run("", form, "b", "--permute-images"), 0);
    cr_assert_eq(run("", form, "c", "--threads 1"), 0);
    same_file("a/answers.jsonl", "c/answers.jsonl");
    few = fopen(name, "ab");
    fputs("\n{bad\n", few);
    fclose(few);
    cr_assert_eq(run("", form, "d", ""), 2);
    cr_assert(says("stderr", "/q.jsonl:14: line 1, column 2: expected a name"));
    few = fopen(name, "wb");
    fputs("\n  \n\t\n", few);
    fclose(few);
    cr_assert_eq(run("", form, "e", ""), 2);
    one_sentence("no questions");
    cr_assert(!there("e/answers.jsonl"));
}

static void put(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file);
    fputs(text, file);
    cr_assert_eq(fclose(file), 0);
}

static const char asking[] =
    "eval --llm weights/gemma2 --vision weights/clip " ADAPTER
    " --questions @/q.jsonl --images weights/images --out @/%s --max-new-tokens 2";

/* What is skipped or not scored is counted in the end, and nothing at all is no result. */
Test(program, eval_says_what_it_left_out) {
    static const char missing[] = "{\"image\":\"none.png\",\"text\":\"a\",\"answer\":\"b\"}\n",
                      unanswered[] = "{\"image\":\"held_000.png\",\"text\":\"a\"}\n";
    char text[512];
    snprintf(text, sizeof text, "%s%s", missing, missing);
    put("q.jsonl", text);
    cr_assert_eq(run("", asking, "a"), 2);
    cr_assert(says("stderr", "0 questions asked: no image of the 2 can be read: "));
    cr_assert(!there("a/answers.jsonl") && !there("a/scores.json"));
    snprintf(text, sizeof text, "%s%s", missing, unanswered);
    put("q.jsonl", text);
    cr_assert_eq(run("", asking, "b"), 0);
    cr_assert(says("stderr", "not scored: 1 of 1 question, without a reference answer\n"
                             "left out 1 question whose image cannot be read:\n  "
                             "weights/images/none.png: "));
    cr_assert(!says("stderr", "exact match"));
    cr_assert(says("b/scores.json", "\"exact_match\": null"));
}

/* What follows U+0000 is asked too: the answers of two questions that differ only there differ. */
Test(program, eval_asks_the_whole_question) {
    char name[128];
    snprintf(name, sizeof name, "%s/q.jsonl", folder);
    FILE *file = fopen(name, "wb");
    static const char *const ends[] = {"", "what is red", "what is to the left of the red circle"};
    for (int i = 0; i < 3; i++) {
        fprintf(file, "{\"question_id\":%d,\"image\":\"held_000.png\",\"text\":\"\\u0000%s\"}\n", i,
                ends[i]);
    }
    fclose(file);
    cr_assert_eq(run("", "eval --llm weights/gemma2 --vision weights/clip " ADAPTER
                         " --questions @/q.jsonl --images weights/images --out @/o "
                         "--max-new-tokens 8 --temperature 0"),
                 0);
    size_t size;
    char *text = slurp("o/answers.jsonl", &size), *answers[3], *at = text;
    for (int i = 0; i < 3; i++) {
        answers[i] = strstr(at, "\"text\": ");
        cr_assert_not_null(answers[i], "%s", text);
        at = strchr(answers[i], '\n');
        *at++ = '\0';
    }
    cr_assert(strcmp(answers[0], answers[1]) != 0 || strcmp(answers[0], answers[2]) != 0,
              "every answer is %s", answers[0]);
    free(text);
}

Test(program, analyze_writes_its_files) {
    static const char form[] =
        "analyze --llm weights/gemma2 --vision weights/clip " ADAPTER
        " --saes weights/saes/gemma2 --data weights/heldout.json --images weights/images "
        "--descriptions weights/descriptions --examples 5 --loss-examples 1 "
        "--max-frequency 1 --max-density 1 --out @/%s %s";
    static const char *const files[] = {"a/layers.csv", "a/layers.json",  "a/features.jsonl",
                                        "a/mse.svg",    "a/sparsity.svg", "a/match.svg",
                                        "a/report.html"};
    cr_assert_eq(run("", form, "a", "--compare weights/mapping_published.csv"), 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        cr_assert(there(files[i]), "%s", files[i]);
    }
    size_t lines = lines_of("a/layers.csv");
    cr_assert(lines > 4 && lines % 3 == 1, "%zu lines: a header and three groups a layer", lines);
    cr_assert_eq(
        run("REFSAE_ISA=scalar", form, "b", "--compare weights/mapping_published.csv --threads 1"),
        0);
    same_file("a/layers.csv", "b/layers.csv");
    same_file("a/layers.json", "b/layers.json");
    same_file("a/features.jsonl", "b/features.jsonl");
    cr_assert_eq(run("", form, "c", "--layers 99"), 2);
    one_sentence("--layers 99");
    cr_assert(!there("c/layers.csv"));
}

/* One that cannot be used is told before the work: no model of these paths is there. */
Test(program, analyze_reads_the_published_table_first) {
    put("c.csv", "layer,nothing\n0,1\n");
    cr_assert_eq(run("", "analyze --llm x --vision x --adapter x --saes x --data x --images x "
                         "--out @/o --compare @/c.csv"),
                 2);
    one_sentence("c.csv: no column named as mse_vlm_img");
}

#define TELLING                                                                                    \
    "analyze --llm weights/gemma2 --vision weights/clip " ADAPTER                                  \
    " --saes weights/saes/gemma2 --images weights/images --descriptions weights/descriptions "     \
    "--loss-examples 0 --max-frequency 1 --max-density 1 --out @/%s %s"
#define VERDICT(example, layer, group, verdict)                                                    \
    "{\"example\":" example ",\"layer\":" layer ",\"group\":\"" group "\",\"verdict\":" verdict    \
    "}\n"
static const char telling[] = TELLING, analysis[] = TELLING " --quiet";

enum {
    MOST_LINES = 64 /* of a JSONL file */
};

/* How many lines. */
static size_t read_lines(Arena *arena, const char *name, const Json *lines[MOST_LINES]) {
    JsonLines file = json_lines(arena, path_join(arena, folder, name));
    size_t n = 0;
    while (n < MOST_LINES && (lines[n] = json_line(arena, &file)) != NULL) {
        n++;
    }
    return n;
}

static void assert_equal(const Json *a, const Json *b) {
    cr_assert(a != NULL && b != NULL && a->kind == b->kind);
    if (a->kind == JSON_NUMBER || a->kind == JSON_STRING) {
        cr_assert_str_eq(a->text, b->text);
    }
    const Json *x = a->child, *y = b->child;
    for (; x != NULL && y != NULL; x = x->next, y = y->next) {
        assert_equal(x, y);
    }
}

/* The first --features in the walk down all activations: fewer are the head of more. */
Test(program, analyze_features) {
    static const char *const options[] = {
        "--data weights/heldout.json --examples 2 --layers 0,2 --features 1",
        "--data weights/heldout.json --examples 2 --layers 0,2",
        "--data weights/heldout.json --examples 2 --layers 0,2 --features 5"};
    static const size_t most[] = {1, 3, 5};
    const Json *lines[3][MOST_LINES];
    Arena *arena = arena_new();
    bool all[3] = {false};
    for (size_t i = 0; i < 3; i++) {
        char name[] = {'0', '\0'}, path[32];
        name[0] = (char)('0' + i);
        cr_assert_eq(run("", analysis, name, options[i]), 0);
        snprintf(path, sizeof path, "%s/features.jsonl", name);
        cr_assert_eq(read_lines(arena, path, lines[i]), 2 * 2 * 3);
    }
    for (size_t k = 0; k < 12; k++) {
        const Json *longest = json_get(lines[2][k], "features");
        for (size_t i = 0; i < 3; i++) {
            const Json *f = json_get(lines[i][k], "features"), *a = f->child, *b = longest->child;
            size_t expected = longest->length < most[i] ? longest->length : most[i];
            cr_assert_eq(f->length, expected);
            all[i] = all[i] || expected == most[i];
            for (; a != NULL; a = a->next, b = b->next) {
                assert_equal(a, b);
            }
        }
        for (const Json *a = longest->child; a->next != NULL; a = a->next) {
            cr_assert(json_double(json_get(a, "activation")) >=
                      json_double(json_get(a->next, "activation")));
            for (const Json *b = a->next; b != NULL; b = b->next) {
                cr_assert(json_double(json_get(a, "feature")) !=
                          json_double(json_get(b, "feature")));
            }
        }
    }
    cr_assert(all[0] && all[1] && all[2]);
    arena_free(arena);
    cr_assert_eq(run("", analysis, "z", "--data weights/heldout.json --features 0"), 2);
    one_sentence("--features");
}

/* Of five examples, of which the second is left out, the first three are to be judged: two are. */
static const char judging[] = "--data @/five.json --examples 5 --layers 1 %s";

static void five_examples(void) {
    static const char *const images[] = {"held_000.png", "none.png", "held_002.png", "held_003.jpg",
                                         "held_004.jpg"};
    char name[128];
    snprintf(name, sizeof name, "%s/five.json", folder);
    FILE *file = fopen(name, "wb");
    for (int i = 0; i < 5; i++) {
        fprintf(file,
                "%s{\"id\":\"%d\",\"image\":\"%s\",\"conversations\":[{\"from\":\"human\","
                "\"value\":\"<image>\\nIs there a blue square?\"},{\"from\":\"gpt\",\"value\":"
                "\"no\"}]}",
                i == 0 ? "[" : ",", i, images[i]);
    }
    fputs("]", file);
    fclose(file);
}

/* features.jsonl and layers.json of a folder: verdicts stand where they should, and the rates are
 * their means. */
static void assert_judged(Arena *arena, const char *name, size_t judged) {
    const Json *lines[MOST_LINES];
    char path[32];
    snprintf(path, sizeof path, "%s/features.jsonl", name);
    size_t n = read_lines(arena, path, lines);
    cr_assert_eq(n, 4 * 3);
    snprintf(path, sizeof path, "%s/layers.json", name);
    const Json *layers = json_read_file(arena, path_join(arena, folder, path));
    cr_assert_eq(json_double(json_get(layers, "examples")), 4);
    cr_assert_eq(json_double(json_get(layers, "judged")), (double)judged);
    cr_assert_eq(json_get(layers, "layers")->length, 3);
    for (const Json *layer = json_get(layers, "layers")->child; layer != NULL;
         layer = layer->next) {
        size_t verdicts = 0, yes = 0;
        for (size_t i = 0; i < n; i++) {
            const Json *match = json_get(lines[i], "match");
            if (strcmp(json_get(lines[i], "group")->text, json_get(layer, "group")->text) == 0) {
                verdicts += match != NULL;
                yes += json_is(match, JSON_TRUE);
                cr_assert(match == NULL || json_double(json_get(lines[i], "example")) < 3 ||
                          judged == 4);
            }
        }
        cr_assert_eq(verdicts, judged);
        cr_assert_eq(json_double(json_get(layer, "match")), (double)yes / (double)judged);
    }
}

Test(program, analyze_judges_the_first_examples) {
    char options[256];
    const Json *all[MOST_LINES], *some[MOST_LINES];
    Arena *arena = arena_new();
    five_examples();
    snprintf(options, sizeof options, judging, "");
    cr_assert_eq(run("", analysis, "all", options), 0);
    assert_judged(arena, "all", 4);
    snprintf(options, sizeof options, judging, "--judge-examples 3");
    cr_assert_eq(run("", analysis, "some", options), 0);
    assert_judged(arena, "some", 2);
    size_t n = read_lines(arena, "all/features.jsonl", all);
    cr_assert_eq(read_lines(arena, "some/features.jsonl", some), n);
    for (size_t i = 0; i < n; i++) { /* nothing but the verdicts of the others is missing */
        const Json *match = json_get(some[i], "match");
        assert_equal(json_get(all[i], "features"), json_get(some[i], "features"));
        cr_assert(match == NULL || match->kind == json_get(all[i], "match")->kind);
    }
    snprintf(options, sizeof options, judging, "--judge-examples 0");
    cr_assert_eq(run("", analysis, "none", options), 0);
    cr_assert(says("none/layers.json", "\"judged\": 0,"));
    cr_assert(!says("none/features.jsonl", "match"));
    arena_free(arena);
}

/* A judge outside is asked about those alone; what it says of others is not counted. */
Test(program, analyze_asks_about_the_first_examples) {
    char options[256];
    const Json *lines[MOST_LINES];
    Arena *arena = arena_new();
    five_examples();
    snprintf(options, sizeof options, judging, "--write-questions @/./five.json");
    cr_assert_eq(run("", analysis, "o", options), 2);
    one_sentence("/five.json: is read by this run");
    snprintf(options, sizeof options, judging, "--judge-examples 3 --write-questions @/questions");
    cr_assert_eq(run("", analysis, "o", options), 0);
    assert_judged(arena, "o", 2); /* by words all the same */
    size_t n = read_lines(arena, "questions", lines);
    cr_assert_eq(n, 2 * 3);
    for (size_t i = 0; i < n; i++) {
        double example = json_double(json_get(lines[i], "example"));
        cr_assert(example == 0 || example == 2);
    }
    put("verdicts.jsonl", VERDICT("0", "1", "vlm_img", "1") VERDICT("3", "1", "vlm_img", "1"));
    snprintf(options, sizeof options, judging, "--judge-examples 3 --judge @/verdicts.jsonl");
    cr_assert_eq(run("", analysis, "o", options), 0);
    assert_judged(arena, "o", 2);
    cr_assert(says("o/layers.json",
                   "\"verdicts\": {\n    \"given\": 2,\n    \"used\": 1,\n    \"missing\": 5\n"));
    cr_assert(says("o/report.html", "<b>1 of 2</b><span>verdicts used"));
    cr_assert(says("o/report.html", "<b>5</b><span>questions without one: no"));
    const Json *layers = json_read_file(arena, path_join(arena, folder, "o/layers.json"));
    const Json *image = json_get(layers, "layers")->child;
    cr_assert_eq(json_double(json_get(image, "match")), 0.5);
    cr_assert_eq(json_double(json_get(image->next, "match")), 0);
    arena_free(arena);
}

/* What cannot be read is a no; a file of nothing that can be used is refused. */
Test(program, analyze_counts_verdicts) {
    static const struct {
        const char *verdicts, *says; /* NULL: refused */
    } cases[] = {
        {VERDICT("0", "1", "vlm_img", "\"yes\"") VERDICT("0", "1", "llm_text", "false")
             VERDICT("2", "1", "vlm_img", "\"perhaps\"") "{bad\n\n" VERDICT("0", "0", "x", "1"),
         "2 of 5 verdicts used; questions without one, which count as no: 4\n"},
        {VERDICT("0", "1", "vlm_img", "1") VERDICT("0", "1", "vlm_img", "0"),
         "1 of 2 verdicts used"},
        {VERDICT("0", "1", "vlm_img", "1") VERDICT("0", "1", "vlm_img", "\"Yes.\""),
         "1 of 2 verdicts used"},
        {"", NULL},
        {"yes\nno\n", NULL},
        {"[1, 2]\n", NULL},
        {"{\"example\":0,\"layer\":1,\"group\":\"vlm_img\",\"judgement\":\"yes\"}\n", NULL},
        {VERDICT("\"0\"", "1", "vlm_img", "1") VERDICT("-1", "1", "vlm_img", "1"), NULL},
        {VERDICT("0", "1", "image", "1"), NULL},
        {VERDICT("0", "0", "vlm_img", "1") VERDICT("0", "99", "vlm_img", "1"), NULL},
        {VERDICT("3", "1", "vlm_img", "1") VERDICT("99", "1", "vlm_img", "1"), NULL},
        {VERDICT("1", "1", "vlm_img", "1"), NULL}, /* the one that is left out */
    };
    char options[256];
    snprintf(options, sizeof options, "%s %s",
             "--data @/five.json --examples 5 --layers 1 --judge-examples 3",
             "--judge @/verdicts.jsonl");
    five_examples();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put("verdicts.jsonl", cases[i].verdicts);
        bool refused = cases[i].says == NULL;
        cr_assert_eq(run("", refused ? analysis : telling, "o", options), refused ? 2 : 0, "%zu",
                     i);
        if (refused) {
            one_sentence("verdicts.jsonl: 0 of ");
        } else {
            cr_assert(says("stderr", cases[i].says), "%zu", i);
            cr_assert(says("stderr", "left out 1 example that cannot be used:\n  "
                                     "weights/images/none.png: "));
        }
    }
    cr_assert_eq(run("", analysis, "p", "--data @/five.json --judge @/mistyped.jsonl"), 2);
    one_sentence("mistyped.jsonl: cannot open");
}

/* How many features of each layer are described; a layer without is as one analysed without
 * --descriptions, and when that is every layer they are refused. */
Test(program, analyze_counts_descriptions) {
    static const char form[] =
        "analyze --llm weights/gemma2 --vision weights/clip " ADAPTER
        " --saes weights/saes/gemma2 --images weights/images --data weights/heldout.json "
        "--examples 2 --loss-examples 0 --max-frequency 1 --max-density 1 --out @/o "
        "--layers 0,1 --write-questions @/q --descriptions @/d";
    char command[512];
    snprintf(command, sizeof command,
             "mkdir %s/d && cp -r weights/descriptions/1-* weights/descriptions/2-* %s/d", folder,
             folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(run("", form), 0);
    cr_assert(says("stderr", "layer 0: 0 of 512 features described\n"
                             "layer 1: 479 of 512 features described\n"));
    cr_assert(says("o/layers.json", "\"match\": null") && !says("q", "\"layer\": 0"));
    cr_assert(says("q", "\"layer\": 1"));
    snprintf(command, sizeof command, "rm -r %s/d/1-*", folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(run("", form), 2);
    cr_assert(says("stderr", "layer 1: 0 of 512 features described\nrefsae: "));
    cr_assert(
        says("stderr", "/d: describes no feature of the layers analysed: expected LAYER-... "));
    snprintf(command, sizeof command,
             "mkdir %s/d/1-; echo '[{\"index\":\"3\",\"text\":\"x\"}]' >%s/d/1-/0-4.json", folder,
             folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(run("", form), 2);
    cr_assert(says("stderr", "/d/1-: no descriptions of features: expected START-END.json"));
}

/* Where one of its files cannot be put in place, none is left behind unfinished. */
Test(program, analyze_cleans_up_behind_a_failure) {
    char command[512];
    snprintf(command, sizeof command, "mkdir -p %s/o/features.jsonl", folder);
    cr_assert_eq(system(command), 0);
    cr_assert(run("",
                  "analyze --llm weights/gemma2 --vision weights/clip " ADAPTER
                  " --saes weights/saes/gemma2 --data weights/heldout.json --images weights/images "
                  "--descriptions weights/descriptions --write-questions @/o/q --examples 2 "
                  "--loss-examples 0 --layers 0 --max-frequency 1 --max-density 1 --out @/o "
                  "--quiet") != 0);
    one_sentence("features.jsonl");
    snprintf(command, sizeof command, "test \"$(ls -A %s/o)\" = features.jsonl", folder);
    cr_assert_eq(system(command), 0, "a temporary file was left behind");
}

/* ---- what stands where ---- */

/* Results on stdout, in words or as one JSON object; nothing of them on stderr, nor with --quiet.
 */
Test(program, results_on_stdout) {
#define TWO "--llm weights/gemma2 --vision weights/clip --images weights/images "
    static const struct {
        const char *words, *text, *key;
    } cases[] = {
        {"train " TOY " --steps 1 --batch 2 --accumulate 1 --tokens 64 --out @/t",
         "1 step, 1 epoch, last loss ", "loss"},
        {"eval " TWO ADAPTER " --questions @/q --max-new-tokens 1 --out @/e",
         "1 question: exact match ", "exact_match"},
        {"analyze " TWO ADAPTER " --saes weights/saes/gemma2 --data weights/heldout.json "
         "--examples 1 --loss-examples 0 --layers 0 --max-frequency 1 --out @/a "
         "--compare weights/mapping_published.csv",
         "convergence layer: MSE ", "layers"},
        {"sage --llm weights/gpt2 --saes weights/saes/gpt2 --task ioi --train 12 --test 6 --out "
         "@/s",
         ": sufficiency weighted ", "tests"},
        {"report --out @/r.html @/e", "", "folders"},
        {"dump --llm weights/gpt2 --ids 5 --hooks logits --out @/d", "", "tensors"},
    };
    Arena *arena = arena_new();
    char words[1024];
    put("q", "{\"image\":\"held_000.png\",\"text\":\"a\",\"answer\":\"b\"}\n");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(run("", "%s", cases[i].words), 0, "%s", cases[i].words);
        cr_assert(says("stdout", cases[i].text), "%s", cases[i].words);
        cr_assert(!says("stdout", "nan"), "%s", cases[i].words);
        cr_assert(cases[i].text[0] == '\0' || !says("stderr", cases[i].text));
        snprintf(words, sizeof words, "%s --json", cases[i].words);
        cr_assert_eq(run("", "%s", words), 0, "%s", words);
        const Json *json = json_read_file(arena, path_join(arena, folder, "stdout"));
        cr_assert_not_null(json_get(json, cases[i].key), "%s", words);
    }
    cr_assert_eq(run("", "%s --quiet", cases[1].words), 0);
    size_t size;
    free(slurp("stdout", &size));
    cr_assert_eq(size, 0);
    arena_free(arena);
}

/* ---- a disk that takes no more ---- */

/* In scalar code too; and what it makes is gone afterwards. */
Test(program, selftest) {
    cr_expect_eq(run("", "selftest"), 0);
    cr_expect(says("stdout", "sage/sage.json") && !says("stdout", "DIFFERS"));
    cr_expect_eq(run("REFSAE_ISA=scalar", "selftest --json --threads 1"), 0);
    cr_expect(says("stdout", "\"same\": true") && !says("stdout", "false"));
    cr_expect_eq(run("TMPDIR=/dev/null", "selftest"), 3);
    cr_expect(says("stderr", "/dev/null"));
}

#ifdef REFSAE_SMALL
Test(program, small_build_leaves_out) {
    cr_assert_eq(run("", "bench"), 2);
    one_sentence("bench: the small build leaves this command out");
    cr_assert_eq(run("", "vectors"), 2);
    one_sentence("vectors: the small build leaves this command out");
    cr_assert_eq(run("", "help trace"), 0);
    cr_assert(says("stdout", "trace: ") && says("stdout", "see FORMATS.md"));
}
#else
/* Every command's stages; what is measured of their time is within it. */
Test(program, bench_on_a_model) {
    static const char *const stages[] = {"forward", "decoding",    "reading",   "training",
                                         "digests", "reading",     "measuring", "features",
                                         "digests", "attribution", "patching",  "curve",
                                         "testing", "digests",     "forward",   "backward"};
    static const char *const parts[] = {"products", "attention", "sparse",
                                        "elements", "other",     "packing"};
    cr_assert_eq(run("", "bench --llm weights/gemma2 --vision weights/clip --saes "
                         "weights/saes/gemma2 --task induction --rows 64 --json"),
                 0);
    Arena *arena = arena_new();
    const Json *found = json_read_file(arena, path_join(arena, folder, "stdout"));
    const Json *stage = json_get(found, "stages")->child;
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++, stage = stage->next) {
        cr_assert(stage != NULL && json_text_is(json_get(stage, "stage"), stages[i]), "%zu", i);
        cr_assert(json_double(json_get(stage, "seconds")) > 0.0);
        cr_assert(json_double(json_get(stage, "info_mib")) > 1.0);
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            const double part = json_double(json_get(stage, parts[k]));
            cr_assert(part >= -1e-6 && part <= 1.0 + 1e-6, "%s of %s: %g", parts[k], stages[i],
                      part);
        }
        bool computes = i != 2 && strcmp(stages[i], "digests") != 0;
        cr_assert_eq(json_double(json_get(stage, "attention")) > 0.0, computes, "%s", stages[i]);
        cr_assert(i > 0 || json_text_is(json_get(found, "isa"), "scalar") ==
                               (json_double(json_get(stage, "packing")) == 0.0));
        cr_assert_eq(json_double(json_get(stage, "gflops")) > 0.0, computes, "%s", stages[i]);
    }
    cr_assert_null(stage);
    arena_free(arena);
    /* stages of what is there; the limits also where the kernels are those that cannot measure them
     */
    cr_assert_eq(run("REFSAE_ISA=scalar", "bench --llm weights/gpt2 --saes weights/saes/gpt2"), 0);
    cr_assert(says("stdout", "generate   decoding       tokens") && !says("stdout", "sage"));
    cr_assert(says("stdout", ", scalar, threads: ") && !says("stdout", " rows"));
    cr_assert_eq(run("", "bench --llm weights/gpt2 --rows 64"), 0);
    cr_assert(says("stdout", "64 rows    backward       passes"));
    cr_assert_eq(run("", "bench --llm weights/gemma2 --vision weights/clip"), 0);
    cr_assert(says("stdout", "train      training       steps") && !says("stdout", "analyze"));
    cr_assert_eq(run("", "bench --saes weights/saes/gpt2"), 2);
    one_sentence("--llm");
    cr_assert_eq(run("", "bench --llm weights/none"), 2);
    one_sentence("weights/none");
}
#endif

Test(program, full_disk_leaves_nothing_half_written) {
    char command[512];
    cr_assert_eq(/* the profile of `make coverage` would not fit either */
                 run("trap '' XFSZ; ulimit -f 8; LLVM_PROFILE_FILE=/dev/null",
                     "dump --llm weights/gpt2 --ids 5,9,100,7,7,7,7 --hooks '*' --out "
                     "@/a.safetensors"),
                 3);
    one_sentence("a.safetensors");
    cr_assert(!there("a.safetensors"));
    snprintf(command, sizeof command, "test \"$(ls %s | tr '\\n' ' ')\" = 'stderr stdout '",
             folder);
    cr_assert_eq(system(command), 0, "a temporary file was left behind");
}

/* ---- what cannot be looked at is not what is not there ---- */

/* Else the first file opened would be descriptor 2, and what is said would stand in it. */
Test(program, closed_standard_streams) {
    static const char *const closed[] = {"2>&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"};
    static const char form[] = "eval --llm weights/gemma2 --vision weights/clip " ADAPTER
                               " --questions @/q --images weights/images --max-new-tokens 2 "
                               "--out @/%s %s";
    shell("head -n 2 weights/questions.jsonl >%s/q", folder);
    cr_assert_eq(run("", form, "open", ""), 0);
    for (size_t i = 0; i < sizeof closed / sizeof *closed; i++) {
        char words[32];
        snprintf(words, sizeof words, "%s)", closed[i]);
        (void)run("(", form, "closed", words); /* a closed stdout may be an error of its own */
        same_file("open/answers.jsonl", "closed/answers.jsonl");
        same_file("open/scores.json", "closed/scores.json");
    }
}

Test(program, a_folder_that_cannot_be_searched_ends_the_run) {
    shell("cp -r weights/saes/gpt2 %s/saes && chmod -R u+w %s/saes && "
          "ln -s nowhere %s/saes/dangling",
          folder, folder, folder);
    cr_assert_eq(run("", "info @/saes"), 0);
    cr_assert(says("stdout", "5"));
    shell("ln -s loop %s/saes/loop", folder);
    cr_assert_eq(run("", "info @/saes"), 2);
    one_sentence("/saes/loop: cannot look at this path");
}

Test(program, a_damaged_sae_of_a_set_ends_the_run) {
    shell("cp -r weights/saes/gpt2 %s/saes && chmod -R u+w %s/saes && "
          ": >%s/saes/blocks.1.hook_resid_pre/sae_weights.safetensors",
          folder, folder, folder);
    cr_assert_eq(run("", "info --json @/saes"), 2);
    one_sentence("/saes/blocks.1.hook_resid_pre/sae_weights.safetensors");
    cr_assert(says("stdout", "blocks.3.hook_resid_post"), "the others are told");
}

/* A picture that is not there is left out; one that there is no descriptor for is not. */
Test(program, want_of_descriptors_is_no_missing_picture) {
    char limit[64];
    int code = 3, pictures = 0;
    for (int most = 4; code == 3 && most < 64; most++) {
        snprintf(limit, sizeof limit, "(ulimit -n %d;", most);
        code = run(limit, "analyze --llm weights/gemma2 --vision weights/clip " ADAPTER
                          " --saes weights/saes/gemma2 --layers 0 --data weights/heldout.json "
                          "--images weights/images --descriptions weights/descriptions "
                          "--write-questions @/q --examples 2 --quiet --out @/o)");
        pictures += code == 3 && says("stderr", "weights/images/");
    }
    cr_assert_eq(code, 0);
    cr_assert(pictures > 0);
    cr_assert(says("o/layers.json", "\"left_out\": []"));
}

/* Of settings and weights that contradict each other either may be the wrong one. */
Test(program, settings_and_weights_that_contradict_each_other_are_both_named) {
    shell("cp -r weights/gpt2 %s/llm && cp -r weights/clip %s/vit && "
          "cp -r weights/saes/gpt2/blocks.1.hook_resid_pre %s/sae && chmod -R u+w %s/* && "
          "sed -i 's/\"vocab_size\": [0-9]*/\"vocab_size\": 77/' %s/llm/config.json && "
          "sed -i 's/\"patch_size\": 16/\"patch_size\": 8/' %s/vit/config.json && "
          "sed -i 's/\"d_sae\": [0-9]*/\"d_sae\": 77/' %s/sae/cfg.json",
          folder, folder, folder, folder, folder, folder, folder);
    cr_assert_eq(run("", "info @/llm"), 2);
    one_sentence("/llm/model.safetensors: tensor 'transformer.wte.weight': expected [77, ");
    one_sentence("/llm/config.json");
    cr_assert_eq(run("", "info @/vit"), 2);
    one_sentence("/vit/model.safetensors: tensor ");
    one_sentence("/vit/config.json");
    cr_assert_eq(run("", "info @/sae"), 2);
    one_sentence("/sae/sae_weights.safetensors: tensor 'W_enc': expected ");
    one_sentence("/sae/cfg.json");
}

/* ---- manifest.json ---- */

Test(program, verify_says_what_is_not_as_written) {
    static const char form[] = "%s --llm weights/gemma2 --vision weights/clip --adapter @/a --out "
                               "@/%s --images weights/images %s";
    static const char asked[] = "--questions @/q --max-new-tokens 2";
    static const struct {
        const char *command, *says; /* done in the folder; of the line that verify prints */
        int status;
    } cases[] = {
        {"true", "eval: 11 inputs and 3 outputs as written\neval: outputs: sha256 ", 0},
        {"echo >o/notes", "notes: written by none of these runs\n", 0},
        {"cp q kept; echo >>q", "eval: input @/q has changed\neval: outputs: sha256 ", 1},
        {"rm q", "eval: input @/q is missing\neval: outputs: ", 1},
        {"mv kept q; cp o/answers.jsonl kept; echo >>o/answers.jsonl",
         "eval: output answers.jsonl has changed\nnotes: ", 1},
        {"rm o/answers.jsonl", "eval: output answers.jsonl is missing\nnotes: ", 1},
        {"mv kept o/answers.jsonl", "3 outputs as written\n", 0},
    };
    shell("head -n 3 weights/questions.jsonl >%s/q", folder);
    cr_assert_eq(run("", "train " TOY " --out @/t --steps 1 --batch 2 --accumulate 1"), 0);
    shell("cp %s/t/adapter.safetensors %s/a", folder, folder);
    cr_assert_eq(run("", form, "eval", "o", asked), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char expected[256], *at = expected;
        for (const char *p = cases[i].says; *p != '\0'; p++) {
            at += *p == '@' ? sprintf(at, "%s", folder) : sprintf(at, "%c", *p);
        }
        shell("cd %s && %s", folder, cases[i].command);
        cr_assert_eq(run("", "verify @/o"), cases[i].status, "%s", cases[i].command);
        cr_assert(says("stdout", expected), "%s", cases[i].command);
        cr_assert_eq(run("", "verify @/o --json"), cases[i].status);
        cr_assert(says("stdout", cases[i].status == 1 ? "\"problems\": [\"" : "\"problems\": []"));
    }
    cr_assert_eq(run("", "verify @/t/x"), 2);
    shell("mv %s/o/manifest.json %s/kept", folder, folder);
    cr_assert_eq(run("", "verify @/o"), 2);
    one_sentence("/o: no manifest.json of a run");
    /* another command's run in the folder leaves the first one's part; broken ones are replaced */
    shell("echo '{\"eval\": ' >%s/o/manifest.json", folder);
    cr_assert_eq(run("", form, "eval", "o", asked), 0);
    same_file("kept", "o/manifest.json");
    cr_assert_eq(run("", form, "analyze", "o",
                     "--saes weights/saes/gemma2 --data weights/heldout.json --examples 1 "
                     "--layers 0 --write-questions @/questions --descriptions weights/descriptions "
                     "--max-density 1 --max-frequency 1"),
                 0);
    cr_assert(says("o/report.html", "refsae eval") && says("o/report.html", "refsae analyze"));
    cr_assert_eq(run("", "verify @/o"), 0);
    cr_assert(says("stdout", "eval: 11 inputs") && says("stdout", "analyze: 16 inputs and 9 out"));
    shell("echo >>%s/questions", folder);
    cr_assert_eq(run("", "verify @/o"), 1);
    cr_assert(says("stdout", "/questions has changed"));
}

/* However often and by whatever names a manifest has it. */
Test(program, verify_reads_a_file_once) {
    shell("cd %s && mkdir o && truncate -s 16M o/big && printf '{\"runs\": {' >o/manifest.json && "
          "for i in $(seq 50); do printf '\"%%d\": {\"outputs\": [], \"inputs\": [' $i; "
          "for k in $(seq 30); do printf '{\"path\": \"%s/o/%%s\", \"sha256\": \"x\"},' "
          "$(printf './%%.0s' $(seq $k))big; done; printf '{}]},'; done >>o/manifest.json; "
          "printf '\"z\": {\"inputs\": [], \"outputs\": []}}}' >>o/manifest.json",
          folder, folder);
    time_t start = time(NULL);
    cr_assert_eq(run("", "verify @/o"), 1);
    cr_assert(time(NULL) - start < 10);
    one_sentence("/o: files that are not as the runs left them: 1550");
    cr_assert(says("stdout", "50: input") &&
              says("stdout", "z: 0 inputs and 0 outputs as written"));
}

/* Figures of a search do not stand beside cross-sections that were given; what others changed or
 * put there stays. */
Test(program, stale_figures_go) {
    static const char form[] = "sage --llm weights/gpt2 --saes weights/saes/gpt2 --task ioi "
                               "--train 4 --test 4 --out @/o %s";
    cr_assert_eq(run("", form, "--nodes z --max-nodes 1"), 0);
    cr_assert(there("o/nodes.svg") && there("o/heat_IO.svg") && there("o/heat_S.svg"));
    shell("cd %s/o && echo >>heat_S.svg && cp nodes.svg own.svg && cp cross_sections.json ..",
          folder);
    cr_assert_eq(run("", form, "--cross-sections @/cross_sections.json"), 0);
    cr_assert(!there("o/nodes.svg") && !there("o/heat_IO.svg") && !there("o/heat_Pos.svg"));
    cr_assert(there("o/heat_S.svg") && there("o/own.svg") && there("o/edits.svg"));
    cr_assert_eq(run("", "verify @/o"), 0);
    cr_assert(says("stdout", "heat_S.svg: written by none of these runs\nown.svg: written by "));
}

/* Nothing in it depends on the folder's place, on what was there before, or on the machine. */
Test(program, manifest_has_digests_as_sha256sum_prints_them) {
    cr_assert_eq(run("", "train " TOY " --out @/t --steps 1 --batch 2 --accumulate 1"), 0);
    cr_assert_eq(run("", "verify @/t"), 0);
    shell("cd %s/t && sha256sum adapter.safetensors checkpoint.safetensors loss.svg train.csv | "
          "sha256sum | sed 's/ .*//' >../digest && grep -qF \"outputs: sha256 $(cat ../digest)\" "
          "../stdout && cp manifest.json ../first && rm -r ../t",
          folder);
    cr_assert_eq(run("OMP_NUM_THREADS=1 REFSAE_ISA=scalar",
                     "train " TOY " --out @/t --steps 1 --batch 2 --accumulate 1"),
                 0);
    same_file("first", "t/manifest.json");
    shell("mkdir %s/empty", folder);
    cr_assert_eq(run("", "report --out @/page.html @/t @/empty"), 0);
    cr_assert(says("stderr", "/empty: holds neither steps in ") && !says("stderr", "/t: "));
    size_t size;
    char *digest = slurp("digest", &size);
    digest[64] = '\0';
    cr_assert(says("page.html", digest), "the page and verify say the same");
    free(digest);
}

Test(program, two_runs_into_one_folder) {
    static const char form[] = "train " ODD " --out %s/o --batch 2 --accumulate 1 --tokens 55 "
                               "--steps 4 --quiet";
    char other[512];
    snprintf(other, sizeof other, form, folder);
    shell("mkdir %s/o", folder);
    int first = open(folder, O_RDONLY | O_DIRECTORY); /* of another folder: no matter */
    cr_assert_eq(flock(first, LOCK_EX), 0);
    cr_assert_eq(run("", "%s", other), 0);
    close(first);
    char path[128];
    snprintf(path, sizeof path, "%s/o", folder);
    first = open(path, O_RDONLY | O_DIRECTORY);
    cr_assert_eq(flock(first, LOCK_EX), 0);
    cr_assert_eq(run("", "%s", other), 2);
    one_sentence("/o: another run is writing into this folder");
    close(first);
    cr_assert_eq(run("", "%s", other), 0);
}

/* Behaviour: what `hooks` lists is what `dump` writes, and `diff` leads to the bug. Golden: three
 * implementations with one bug each (tests/golden/diff). */
#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint.h"
#include "json.h"
#include "scratch.h"

static char said[1 << 20]; /* by the last command, on standard output */

TestSuite(diff, .init = folder_new, .fini = folder_remove, .timeout = 600);

/* Runs "refsae ...", '@' standing for the folder; the exit code. */
static int run(const char *format, ...) {
    char words[2048], line[4096], *at = line;
    const char *program = getenv("REFSAE");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(words, sizeof words, format, arguments);
    va_end(arguments);
    at += sprintf(at, "%s ", program != NULL ? program : "./refsae");
    for (const char *p = words; *p != '\0'; p++) {
        at += *p == '@' ? sprintf(at, "%s", folder) : sprintf(at, "%c", *p);
    }
    FILE *pipe = popen(line, "r");
    cr_assert_not_null(pipe);
    said[fread(said, 1, sizeof said - 1, pipe)] = '\0';
    int status = pclose(pipe);
    cr_assert(WIFEXITED(status), "%s", line);
    return WEXITSTATUS(status);
}

static void says(const char *part) {
    cr_assert_not_null(strstr(said, part), "'%s' is not in: %s", part, said);
}

static void says_not(const char *part) {
    cr_assert_null(strstr(said, part), "'%s' is in: %s", part, said);
}

static void last_line(const char *expected) {
    size_t length = strlen(said);
    cr_assert(length > 0 && said[length - 1] == '\n', "%s", said);
    said[length - 1] = '\0';
    char *line = strrchr(said, '\n');
    cr_assert_str_eq(line != NULL ? line + 1 : said, expected);
    said[length - 1] = '\n';
}

/* Lines that begin with these names, in this order. */
static void lines_are(const char *const *names, size_t count) {
    const char *at = said;
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(names[i]);
        cr_assert(strncmp(at, names[i], length) == 0 && at[length] == ':', "%s: %s", names[i], at);
        at = strchr(at, '\n') + 1;
    }
}

typedef struct Given {
    const char *name;
    Dtype dtype;
    int rank;
    size_t shape[3];
    const void *data;
} Given;

static void put(const char *name, const Given *given, size_t count) {
    Arena *arena = arena_new();
    TensorWriter *writer = tensor_writer_open(path_join(arena, folder, name));
    for (size_t i = 0; i < count; i++) {
        const Given *g = &given[i];
        tensor_writer_declare(writer, g->name, g->dtype, g->rank, g->shape);
    }
    for (size_t i = 0; i < count; i++) {
        size_t elements = 1;
        for (int k = 0; k < given[i].rank; k++) {
            elements *= given[i].shape[k];
        }
        tensor_writer_data(writer, given[i].data, dtype_size(given[i].dtype), elements);
    }
    tensor_writer_commit(writer);
    arena_free(arena);
}

/* Files of one float each under these names: 0, and 1 in the second. */
static void put_names(const char *const *names, size_t count, size_t same) {
    static const float zero = 0, one = 1;
    Given given[32] = {{0}};
    for (size_t i = 0; i < count; i++) {
        given[i] = (Given){names[i], DTYPE_F32, 1, {1}, &zero};
    }
    put("a", given, count);
    for (size_t i = same; i < count; i++) {
        given[i].data = &one;
    }
    put("b", given, count);
}

/* ---- the bar: an implementation's bug is named by the last line ---- */

Test(diff, leads_to_the_bug) {
    static const struct {
        const char *name, *last, *error;
    } bugs[] = {
        {"interleaved_rope", "first beyond: blocks.0.attn.hook_rot_q; its inputs hook_q agree",
         "first blocks.0.attn.hook_rot_q\n"},
        {"exact_gelu",
         "first beyond: blocks.0.mlp.hook_post; its inputs hook_pre, hook_pre_linear agree",
         "first blocks.0.mlp.hook_post\n"},
        {"no_embed_scale", "first beyond: hook_embed; no hook point comes before it",
         "first hook_embed\n"},
    };
    cr_assert_eq(run("dump --llm weights/gemma2 --ids 2,9,100 --hooks '*' --out @/a"), 0);
    for (size_t i = 0; i < sizeof bugs / sizeof bugs[0]; i++) {
        const char *form = "diff @/a tests/golden/diff/%s.safetensors --atol 1e-5 --rtol 1e-4 "
                           "--common --bad-only %s";
        cr_assert_eq(run(form, bugs[i].name, "2>/dev/null"), 1);
        last_line(bugs[i].last);
        cr_assert_eq(run(form, bugs[i].name, "2>&1 >/dev/null"), 1);
        says(bugs[i].error);
    }
    says_not("first beyond"); /* said once */
}

/* Without the points that are most in question, it says which are missing and goes on to others. */
Test(diff, names_inputs_that_are_missing) {
#define OURS "dump --llm weights/gemma2 --ids 2,9,100 --hooks '%s' --out @/a"
#define BUG                                                                                        \
    "diff @/a tests/golden/diff/interleaved_rope.safetensors --atol 1e-5 --rtol 1e-4 --common "    \
    "2>/dev/null"
    cr_assert_eq(run(OURS, "blocks.0.attn.hook_{q,v,pattern,attn_scores},blocks.0.hook_*"), 0);
    cr_assert_eq(run(BUG), 1);
    last_line("first beyond: blocks.0.attn.hook_attn_scores; its inputs hook_rot_q (only in B), "
              "hook_rot_k (only in B) were not compared; before them hook_resid_pre, hook_q agree");
    cr_assert_eq(run(OURS, "blocks.0.hook_resid_{pre,post}"), 0);
    cr_assert_eq(run(BUG), 1);
    last_line("first beyond: blocks.0.hook_resid_post; its inputs hook_resid_mid (only in B), "
              "hook_mlp_out (only in B) were not compared; before them hook_resid_pre agree");
    says("hook_resid_pre: ");
    cr_assert_eq(run(OURS, "hook_embed"), 0);
    cr_assert_eq(run(BUG), 0);
    last_line("1 of 1 tensor as allowed; 51 in one file only");
}

/* ---- order ---- */

Test(diff, is_in_the_order_of_the_pass) {
    static const char *const names[] = {"vision.blocks.1.hook_resid_post",
                                        "hook_embed",
                                        "blocks.0.hook_resid_pre",
                                        "blocks.2.attn.hook_q",
                                        "blocks.2.attn.hook_z",
                                        "blocks.2.mlp.hook_post",
                                        "blocks.10.attn.hook_q",
                                        "ln_final.hook_scale",
                                        "logits",
                                        "logits.grad",
                                        "blocks.10.attn.hook_q.grad",
                                        "blocks.2.mlp.hook_post.grad",
                                        "blocks.2.attn.hook_q.grad",
                                        "layer.2",
                                        "layer.10",
                                        "other.1"};
    const size_t count = sizeof names / sizeof names[0];
    put_names(names, count, count);
    cr_assert_eq(run("diff @/a @/b"), 0);
    lines_are(names, count);
    last_line("16 of 16 tensors as allowed");
}

/* The points that follow from one another in models that have no rotation, two residual additions
 * at once, or only gradients; and the prompt that takes up a tower's output. */
Test(diff, knows_what_is_computed_from_what) {
    static const struct {
        const char *names[6];
        size_t same;
        const char *last;
    } cases[] = {
        {{"blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "blocks.0.attn.hook_attn_scores"},
         2,
         "first beyond: blocks.0.attn.hook_attn_scores; its inputs hook_q, hook_k agree"},
        {{"blocks.3.hook_resid_pre", "blocks.3.hook_attn_out", "blocks.3.hook_mlp_out",
          "blocks.3.hook_resid_post"},
         3,
         "first beyond: blocks.3.hook_resid_post; its inputs hook_resid_pre, hook_attn_out, "
         "hook_mlp_out agree"},
        {{"blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"},
         1,
         "first beyond: blocks.2.hook_resid_pre; its inputs blocks.1.hook_resid_post agree"},
        {{"blocks.1.hook_resid_post", "ln_final.hook_scale", "ln_final.hook_normalized"},
         2,
         "first beyond: ln_final.hook_normalized; its inputs blocks.1.hook_resid_post, hook_scale "
         "agree"},
        {{"vision.blocks.1.hook_resid_post", "hook_embed", "blocks.0.hook_resid_pre"},
         2,
         "first beyond: blocks.0.hook_resid_pre; its inputs vision.blocks.1.hook_resid_post, "
         "hook_embed agree"},
        {{"vision.hook_embed", "vision.hook_pos_embed", "vision.ln_pre.hook_normalized",
          "vision.blocks.0.hook_resid_pre"},
         3,
         "first beyond: vision.blocks.0.hook_resid_pre; its inputs vision.ln_pre.hook_normalized "
         "agree"},
        {{"blocks.0.attn.hook_rot_k.grad", "blocks.0.attn.hook_rot_q.grad",
          "blocks.0.attn.hook_q.grad"},
         2,
         "first beyond: blocks.0.attn.hook_q.grad; its inputs hook_rot_q.grad agree"},
        {{"blocks.1.hook_resid_pre.grad", "blocks.0.hook_resid_post.grad"},
         1,
         "first beyond: blocks.0.hook_resid_post.grad; its inputs blocks.1.hook_resid_pre.grad "
         "agree"},
        {{"logits.grad", "ln_final.hook_normalized.grad"},
         1,
         "first beyond: ln_final.hook_normalized.grad; its inputs logits.grad agree"},
        {{"blocks.999999999.hook_resid_pre"},
         0,
         "first beyond: blocks.999999999.hook_resid_pre; its inputs blocks.999999998."
         "hook_resid_post (in neither file) were not compared"},
        {{"acts", "recon"}, 1, "first beyond: recon"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t count = 0;
        while (count < 6 && cases[i].names[count] != NULL) {
            count++;
        }
        put_names(cases[i].names, count, cases[i].same);
        cr_assert_eq(run("diff @/a @/b 2>/dev/null"), 1);
        last_line(cases[i].last);
    }
}

/* ---- what is compared with what ---- */

static const float four[] = {1, 2, 3, 4}, others[] = {1, 2, 3.5f, 4};

Test(diff, drops_a_leading_one_and_shows_shapes) {
    put("a", &(Given){"x", DTYPE_F32, 2, {2, 2}, four}, 1);
    put("b", &(Given){"x", DTYPE_F32, 3, {1, 2, 2}, others}, 1);
    cr_assert_eq(run("diff @/a @/b 2>/dev/null"), 1);
    says("x: 1 of 4 differ, 1 beyond what is allowed; first [1, 0] 3 3.5;");
    cr_assert_eq(run("diff @/b @/a --atol 0.5"), 0);
    put("c", &(Given){"x", DTYPE_F32, 3, {2, 1, 2}, four}, 1);
    cr_assert_eq(run("diff @/a @/c 2>/dev/null"), 1);
    says("x: other shape: [2, 2] in A, [2, 1, 2] in B\n");
    last_line("nothing beyond in what could be compared, which x could not");
    cr_assert_eq(run("diff @/a @/c --json 2>/dev/null"), 1);
    says("\"problem\": \"other shape: [2, 2] in A, [2, 1, 2] in B\"");
}

Test(diff, widens_and_says_so) {
    static const double wide[] = {1, 2, 3, 4}, close[] = {1, 2, 3, 4.000000001};
    static const uint16_t brain[] = {0x3F80, 0x4000, 0x4040, 0x4080};
    static const int64_t whole[] = {1, 2, -3, INT64_MAX};
    static const int32_t small[] = {1, 2, -3, 4};
    const Given given[] = {
        {"x", DTYPE_F32, 1, {4}, four},  {"x", DTYPE_F64, 1, {4}, wide},
        {"x", DTYPE_F64, 1, {4}, close}, {"x", DTYPE_BF16, 1, {4}, brain},
        {"x", DTYPE_I64, 1, {4}, whole}, {"x", DTYPE_I32, 1, {4}, small},
    };
    static const struct {
        size_t a, b;
        int code;
        const char *says;
    } cases[] = {
        {0, 1, 0, "x: equal (F32 and F64, compared as F64)"},
        {0, 2, 1,
         "x: 1 of 4 differ (F32 and F64, compared as F64), 1 beyond what is allowed; "
         "first [3] 4 4.0000000010000001;"},
        {3, 0, 0, "x: equal (BF16 and F32, compared as F32)"},
        {4, 5, 1,
         "x: 1 of 4 differ (I64 and I32, compared as integers), 1 beyond what is allowed; "
         "first [3] 9223372036854775807 4;"},
        {5, 0, 1,
         "x: 1 of 4 differ (I32 and F32, compared as F64), 1 beyond what is allowed; "
         "first [2] -3 3;"},
        {1, 1, 0, "x: equal\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put("a", &given[cases[i].a], 1);
        put("b", &given[cases[i].b], 1);
        cr_assert_eq(run("diff @/a @/b 2>/dev/null"), cases[i].code);
        says(cases[i].says);
    }
}

/* The worst exceeds the tolerance most: not the most ulp, near 0, nor the most absolute. */
Test(diff, worst_is_by_excess) {
    static const float a[] = {1e-30f, 1000, 1, 0}, b[] = {-1e-30f, 1001, 1.5f, 0};
    put("a", &(Given){"x", DTYPE_F32, 1, {4}, a}, 1);
    put("b", &(Given){"x", DTYPE_F32, 1, {4}, b}, 1);
    cr_assert_eq(run("diff @/a @/b --rtol 1e-2 2>/dev/null"), 1);
    says("x: 3 of 4 differ, 2 beyond what is allowed; first [0] 1e-30 -1e-30; worst [2] 1 1.5: "
         "4194304 ulp; absolute 0.5, relative 0.333");
    cr_assert_eq(run("diff @/a @/b 2>/dev/null"), 1);
    says("worst [0]");
    cr_assert_eq(run("diff @/a @/b --atol 1 2>/dev/null"), 0);
    says("0 beyond what is allowed; first [0] 1e-30 -1e-30; worst [1] 1000 1001: ");
}

/* An infinity is near nothing, however large --rtol. */
Test(diff, an_infinity_is_near_nothing) {
    const float finite = 1, infinite = -1 / 0.0f;
    put("a", &(Given){"x", DTYPE_F32, 1, {1}, &finite}, 1);
    put("b", &(Given){"x", DTYPE_F32, 1, {1}, &infinite}, 1);
    cr_assert_eq(run("diff @/a @/b --rtol 1 2>/dev/null"), 1);
    cr_assert_eq(run("diff @/b @/b"), 0);
}

/* ---- options ---- */

Test(diff, bad_only_and_common) {
    static const char *const names[] = {"hook_embed", "logits"};
    static const float zero = 0;
    put_names(names, 2, 1);
    cr_assert_eq(run("diff @/a @/b --bad-only 2>/dev/null"), 1);
    says_not("hook_embed: ");
    says("logits: ");
    says("1 of 2 tensors as allowed\n");
    put("c", &(Given){"hook_embed", DTYPE_F32, 1, {1}, &zero}, 1);
    cr_assert_eq(run("diff @/a @/c 2>/dev/null"), 1);
    says("logits: only in A\n");
    last_line("nothing beyond in what could be compared, which logits could not");
    cr_assert_eq(run("diff @/c @/a --common"), 0);
    says_not("logits");
    last_line("1 of 1 tensor as allowed; 1 in one file only");
    put("d", &(Given){"another", DTYPE_F32, 1, {1}, &zero}, 1);
    cr_assert_eq(run("diff @/c @/d --common 2>&1"), 2);
    says("no tensor is in both");
    cr_assert_eq(run("diff @/c @/c --json"), 0);
    says("\"equal\": true");
}

Test(diff, says_what_cannot_be_compared) {
    static const float six[6];
    static const char *const names[] = {
        "a.name.of.more.bytes.than.any.hook.point.that.a.model.could.have.has.in.all.of.its.name."
        "and.then.some.more.so.that.none.can.be.this.long"};
    put("a", &(Given){"x", DTYPE_F32, 2, {2, 3}, six}, 1);
    put("b", &(Given){"x", DTYPE_F32, 2, {3, 2}, six}, 1);
    cr_assert_eq(run("diff @/a @/b 2>/dev/null"), 1);
    says("x: other shape: [2, 3] in A, [3, 2] in B\n");
#define ALL "tests/golden/tensor/all.safetensors"
    cr_assert_eq(run("diff " ALL " " ALL " 2>/dev/null"), 1);
    says("not compared: F8_E4M3 in A, F8_E4M3 in B");
    put("c", &(Given){"F8_E4M3", DTYPE_F32, 1, {4}, six}, 1);
    cr_assert_eq(run("diff @/c " ALL " 2>/dev/null"), 1);
    says("not compared: F32 in A, F8_E4M3 in B");
    put_names(names, 1, 1);
    cr_assert_eq(run("diff @/a @/b"), 0);
    says(names[0]);
}

/* Names and types of files do not drive a terminal, nor make lines. */
Test(diff, shows_what_a_terminal_would_obey) {
    static const char *const names[] = {"a\x1b[31m\xe2\x80\xae\n"};
    static const float zero;
#define SHOWN "a\\x1B[31m\\xE2\\x80\\xAE\\x0A"
    put_names(names, 1, 1);
    cr_assert_eq(run("diff @/a @/b"), 0);
    says(SHOWN ": equal\n");
    cr_assert_eq(run("info @/a"), 0);
    says("name " SHOWN ", dtype F32");
    put_names(names, 1, 0);
    cr_assert_eq(run("diff @/a @/b 2>/dev/null"), 1);
    says(SHOWN ": 1 of 1 differ");
    says("first beyond: " SHOWN "\n");
    put("a", (Given[]){{names[0], DTYPE_F32, 1, {1}, &zero}, {"z", DTYPE_F32, 1, {1}, &zero}}, 2);
    put("b", &(Given){"z", DTYPE_F32, 1, {1}, &zero}, 1);
    cr_assert_eq(run("diff @/a @/b 2>/dev/null"), 1);
    says("which " SHOWN " could not\n");
    static const char header[] =
        "{\"x\":{\"dtype\":\"F\\u001b9\",\"shape\":[0],\"data_offsets\":[0,0]}} ";
    char path[128];
    snprintf(path, sizeof path, "%s/c", folder);
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file);
    fprintf(file, "%c%c%c%c%c%c%c%c%s", (char)strlen(header), 0, 0, 0, 0, 0, 0, 0, header);
    cr_assert_eq(fclose(file), 0);
    cr_assert_eq(run("diff @/c @/c 2>/dev/null"), 1);
    says("x: not compared: F\\x1B9 in A, F\\x1B9 in B\n");
}

Test(diff, counts_and_values_in_json) {
    const float a[] = {1, 1, 1, 1, 0}, b[] = {1, 1.00000012f, 1.00000048f, 1.0000006f, -1 / 0.0f};
    const float none[] = {1, 1, 1, 1, a[4] / a[4]};
    const uint64_t large = UINT64_MAX, less = UINT64_MAX - 1;
    put("a", (Given[]){{"x", DTYPE_F32, 1, {5}, a}, {"y", DTYPE_U64, 1, {1}, &large}}, 2);
    put("b", (Given[]){{"x", DTYPE_F32, 1, {5}, b}, {"y", DTYPE_U64, 1, {1}, &less}}, 2);
    cr_assert_eq(run("diff @/a @/b --json 2>/dev/null"), 1);
    Arena *arena = arena_new();
    const Json *root = json_parse(arena, said, strlen(said), "diff");
    const Json *x = json_get(root, "tensors")->child, *y = x->next;
    cr_assert_eq(json_double(json_get(x, "elements")), 5);
    cr_assert_eq(json_double(json_get(x, "differing")), 4);
    cr_assert_eq(json_double(json_get(x, "beyond")), 4);
    cr_assert_eq(json_double(json_get(x, "first")->child), 1);
    cr_assert_eq(json_double(json_get(x, "first_values")->child), 1);
    cr_assert_eq(json_double(json_get(x, "worst")->child), 4);
    cr_assert(json_is(json_get(x, "worst_values")->child->next, JSON_NULL));
    const Json *histogram = json_get(x, "histogram");
    cr_assert_eq(json_double(json_get(histogram, "0")), 1);
    cr_assert_eq(json_double(json_get(histogram, "1")), 1);
    cr_assert_eq(json_double(json_get(histogram, "4")), 2);
    cr_assert_str_eq(json_get(y, "worst_values")->child->text, "18446744073709551615");
    cr_assert_str_eq(json_get(json_get(root, "first_beyond"), "name")->text, "x");
    cr_assert(json_is(json_get(root, "equal"), JSON_FALSE));
    cr_assert_eq(run("diff @/a @/b --ulp 1 2>/dev/null"), 1);
    says("\n  ulp 0: 1, 1: 1, 4-7: 2, 1073741824-2147483647: 1\n");
    says("\n  ulp 1: 1\n");
    put("c", &(Given){"x", DTYPE_F32, 1, {5}, none}, 1);
    cr_assert_eq(run("diff @/b @/c --common --ulp 9 2>/dev/null"), 1);
    says("  ulp 0: 1, 1: 1, 4-7: 2, no number: 1\n");
    cr_assert_eq(run("diff @/b @/c --common --json 2>/dev/null"), 1);
    says("\"ulp\": null, \"absolute\": null, \"relative\": null");
    arena_free(arena);
}

/* ---- hook points ---- */

/* What is listed, with 5 for T, is what a dump of '*' has: the same names and shapes. */
static void list_is_dump(const char *model, const char *dump, bool vision) {
    Arena *arena = arena_new();
    TensorStore store;
    cr_assert_eq(run("dump %s --hooks '*' --out @/all", dump), 0, "%s", dump);
    tensors_open(&store, arena, path_join(arena, folder, "all"));
    cr_assert_eq(run("hooks %s --json", model), 0);
    const Json *root = json_parse(arena, said, strlen(said), "hooks");
    size_t layers = (size_t)json_double(json_get(root, vision ? "vision_layers" : "layers"));
    size_t listed = vision ? 1 : 0; /* image.rgb is of no model */
    for (const Json *point = json_get(root, "points")->child; point != NULL; point = point->next) {
        char name[128];
        const char *text = json_get(point, "name")->text, *star = strchr(text, '*');
        for (size_t layer = 0; layer < (star != NULL ? layers : 1); layer++) {
            int head = star != NULL ? (int)(star - text) : (int)strlen(text);
            snprintf(name, sizeof name, "%.*s", head, text);
            if (star != NULL) {
                snprintf(name + head, sizeof name - (size_t)head, "%zu%s", layer, star + 1);
            }
            const Tensor *t = tensors_find(&store, name);
            cr_assert_not_null(t, "%s: %s", model, name);
            const Json *size = json_get(point, "shape")->child;
            for (int i = 0; i < t->rank; i++, size = size->next) {
                size_t expected = size->kind == JSON_STRING ? 5 : (size_t)json_double(size);
                cr_assert_eq(t->shape[i], expected, "%s: %s", model, name);
            }
            cr_assert_null(size);
            listed++;
        }
    }
    cr_assert_eq(listed, store.count, "%s", model);
    arena_free(arena);
}

Test(diff, a_trace_holds_digests_in_the_order_of_execution) {
    static const char dump[] =
        "dump --llm weights/gpt2 --ids 5,9 --hooks '*' --grad 5,%d --trace @/%s";
    Arena *arena = arena_new();
    TensorStore store;
    char line[2][256], name[128], digest[65];
    size_t lines = 0;
    cr_assert_eq(run("dump --llm weights/gpt2 --ids 5,9 --hooks '*' --grad 5,7 --trace @/a "
                     "--out @/out"),
                 0);
    cr_assert_eq(run(dump, 7, "b"), 0);
    cr_assert_eq(run(dump, 8, "c"), 0);
    cr_assert_eq(run("dump --llm weights/gpt2 --ids 5,9 --hooks '*' 2>&1"), 2);
    says("dump needs --out");
    tensors_open(&store, arena, path_join(arena, folder, "out"));
    FILE *a = fopen(path_join(arena, folder, "a"), "r");
    FILE *b = fopen(path_join(arena, folder, "b"), "r");
    FILE *c = fopen(path_join(arena, folder, "c"), "r");
    bool same = true;
    for (; fgets(line[0], sizeof line[0], a) != NULL; lines++) {
        cr_assert_eq(sscanf(line[0], "%127s", name), 1);
        const Tensor *t = tensors_find(&store, name);
        Sha256 sha;
        sha256_start(&sha);
        sha256_add(&sha, t->data, t->count * sizeof(float));
        sha256_end(&sha, digest);
        cr_assert_str_eq(strrchr(line[0], ' ') + 1, arena_format(arena, "%s\n", digest));
        cr_assert_not_null(fgets(line[1], sizeof line[1], b));
        cr_assert_str_eq(line[1], line[0], "the same run twice");
        cr_assert_not_null(fgets(line[1], sizeof line[1], c));
        if (same && strcmp(line[1], line[0]) != 0) {
            cr_assert_str_eq(name, "logits.grad", "the first that another metric changes");
            same = false;
        }
    }
    cr_assert_eq(lines, store.count);
    cr_assert(!same);
    fclose(a);
    fclose(b);
    fclose(c);
    arena_free(arena);
}

Test(diff, a_dump_spares_what_it_reads) {
    static const char *const ways[] = {"--out @/x", "--out @/link", "--trace @/./x"};
    const float rows[2][64] = {{1}, {2}};
    Arena *arena = arena_new();
    put("x", &(Given){"x", DTYPE_F32, 2, {2, 64}, rows}, 1);
    put("same", &(Given){"x", DTYPE_F32, 2, {2, 64}, rows}, 1);
    cr_assert_eq(symlink("x", path_join(arena, folder, "link")), 0);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const char *way = arena_format(
            arena, "dump --sae weights/saes/gpt2/blocks.0.hook_resid_pre --input @/x %s 2>&1",
            ways[i]);
        cr_assert_eq(run("%s", way), 2, "%s", way);
        says(": is read by this run");
        cr_assert_eq(run("diff @/x @/same"), 0, "%s", way);
    }
    arena_free(arena);
}

Test(diff, hooks_are_what_dump_writes) {
    static const char *const models[] = {
        "weights/gemma2",
        "weights/gpt2",
        "tests/golden/models/neox_par",
        "tests/golden/models/neox_seq",
        "tests/golden/models/gemma2_odd",
        "tests/golden/models/gpt2_odd",
    };
    char model[128], dump[256];
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        snprintf(model, sizeof model, "--llm %s", models[i]);
        snprintf(dump, sizeof dump, "%s --ids 5,3,4,7,2", model);
        list_is_dump(model, dump, false);
    }
    list_is_dump("--vision weights/clip",
                 "--vision weights/clip --image weights/images/held_000.png", true);
    cr_assert_eq(run("hooks --llm weights/gpt2 --vision weights/clip"), 0);
    says("\nvision.blocks.*.attn.hook_pattern");
    says("\nblocks.*.attn.hook_q                   [T, 4, 16]\n");
    says("\nvision.blocks.*: layers 0 to 2\nblocks.*: layers 0 to 3\n");
    cr_assert_eq(run("hooks --llm weights/gpt2"), 0);
    says_not("vision");
    cr_assert_eq(run("hooks 2>&1"), 2);
    says("--llm");
}

Test(diff, an_unknown_hook_gets_the_nearest) {
    static const struct {
        const char *hooks, *nearest;
    } cases[] = {
        {"blocks.0.attn.hook_qq", "nearest: blocks.0.attn.hook_q\n"},
        {"hook_embed,blocks.1.hook_rezid_post", "hooks blocks.1.hook_rezid_post: "},
        {"blocks.1.hook_rezid_post", "nearest: blocks.1.hook_resid_post\n"},
        {"blocks.*.attn.hook_rotq",
         "nearest: blocks.*.attn.hook_rot_q, blocks.*.attn.hook_rot_k\n"},
        {"blocks.{0,1}.hook_resid_*,logit", "hooks logit: no hook point here has such a name; "
                                            "nearest: logits\n"},
        {"blocks.9.hook_mlp_out", "nearest: blocks.0.hook_mlp_out, blocks.1.hook_mlp_out, "
                                  "blocks.2.hook_mlp_out\n"},
        {"logits.grad", "nearest: logits\n"},
        {"vision.hook_embed", "nearest: hook_embed\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_eq(
            run("dump --llm weights/gemma2 --ids 5 --hooks '%s' --out @/d 2>&1", cases[i].hooks),
            2);
        says(cases[i].nearest);
    }
    cr_assert_eq(run("diff @/d @/d 2>&1"), 2); /* nothing was written */
    cr_assert_eq(
        run("dump --llm weights/gemma2 --ids 5 --hooks logits.grad --grad 5 --out @/d 2>&1"), 0);
    cr_assert_eq(run("dump --image weights/images/held_000.png --hooks image --out @/d 2>&1"), 2);
    says("nearest: image.rgb\n");
}

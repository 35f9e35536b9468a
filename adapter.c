/* adapter.c: how image tokens enter a frozen language model (Mapping, arXiv 2506.11976).
 *
 *   image -> CLIP -> features [P, d_vit] -> adapter -> [P, d_llm]
 *                                                        |
 *   <bos> ------------------------------------------- row 0
 *                                                      rows 1 .. P   (set at
 * blocks.0.hook_resid_pre: <start_of_turn>user\n<image>\n...<end_of_turn>...   rows P + 1 ..  after
 * the embedding scale)
 *
 * Easy to get wrong: the adapter's output is not multiplied by sqrt(d_model); the literal text
 * <image> stays in the human turn; a row is predicted by the row before it; an answer's tokens are
 * those that begin at or after its first byte, its <end_of_turn> included. */
#include "adapter.h"

#include "checkpoint.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

static const char image_literal[] = "<image>";
static const char turn_end[] = "<end_of_turn>\n";
static const char model_start[] = "<start_of_turn>model\n";
static const char user_start[] = "<start_of_turn>user\n";

/* ---- conversations ---- */

/* found: what stands there instead, or NULL. */
REFSAE_NORETURN static void conversation_fail(const Conversation *conversation, const char *name,
                                              const char *what, const char *found) {
    bool known = conversation->id[0] != '\0', is = found != NULL;
    fail(STATUS_INPUT, "%s: %s%s%s%s%s%s%s", name, known ? "example '" : "", conversation->id,
         known ? "': " : "", what, is ? ", found '" : "", is ? found : "", is ? "'" : "");
}

void conversation_parse_turns(Conversation *conversation, const Json *list, const char *name,
                              Arena *arena) {
    if (!json_is(list, JSON_ARRAY)) {
        conversation_fail(conversation, name, "'conversations' is not a list", NULL);
    }
    conversation->turns = arena_alloc(arena, list->length + 1, sizeof(Turn));
    for (const Json *item = list->child; item != NULL; item = item->next) {
        const Json *from = json_get(item, "from");
        const Json *value = json_get(item, "value");
        if (from == NULL) {
            from = json_get(item, "role");
            value = json_get(item, "content");
        }
        bool model = json_text_is(from, "gpt") || json_text_is(from, "model") ||
                     json_text_is(from, "assistant");
        if (!model && !json_text_is(from, "human") && !json_text_is(from, "user")) {
            conversation_fail(conversation, name, "expected a turn from human or gpt",
                              json_is(from, JSON_STRING) ? from->text : "?");
        }
        if (!json_is(value, JSON_STRING)) {
            conversation_fail(conversation, name, "a turn has no text", NULL);
        }
        Turn *turn = &conversation->turns[conversation->count++];
        turn->text = value->text;
        turn->length = value->length;
        turn->model = model;
    }
}

Conversation conversation_parse(Arena *arena, const Json *element, const char *name) {
    Conversation c = {.id = ""};
    if (!json_is(element, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: an example is not an object", name);
    }
    const Json *id = json_get(element, "id");
    if (json_is(id, JSON_STRING) || json_is(id, JSON_NUMBER)) {
        c.id = id->text;
    }
    const Json *image = json_get(element, "image");
    c.n_images = json_is(image, JSON_ARRAY) ? image->length : 1;
    if (json_is(image, JSON_ARRAY)) {
        image = image->child;
    }
    if (image != NULL && !json_is(image, JSON_NULL)) {
        if (!json_is(image, JSON_STRING) || strlen(image->text) != image->length) {
            conversation_fail(&c, name, "'image' is not a file name", NULL);
        }
        c.image = image->length > 0 ? image->text : NULL;
    }
    c.n_images = c.image != NULL ? c.n_images : 0;
    conversation_parse_turns(&c, json_get(element, "conversations"), name, arena);
    return c;
}

/* ---- sequences ---- */

typedef struct Rendered {
    char *text;
    size_t length;
    Span *answers; /* bytes, from the first of a model turn to the end of its <end_of_turn> */
    size_t n_answers;
} Rendered;

static void render_bytes(Rendered *out, const char *text, size_t length) {
    if (out->text != NULL) {
        memcpy(out->text + out->length, text, length);
    }
    out->length += length;
}

static void render_content(Rendered *out, const char *text, size_t length, ImageText image_text) {
    size_t literal = sizeof image_literal - 1, from = 0;
    for (size_t i = 0; image_text == IMAGE_TEXT_DROP && i + literal <= length;) {
        if (memcmp(text + i, image_literal, literal) == 0) {
            render_bytes(out, text + from, i - from);
            i += literal;
            from = i;
        } else {
            i++;
        }
    }
    render_bytes(out, text + from, length - from);
}

/* Gemma's chat form, contents as they stand. Called once to measure (text NULL) and once to write.
 */
static void render_turns(Rendered *out, const Turn *turns, size_t count, ImageText image_text) {
    out->length = out->n_answers = 0;
    for (size_t i = 0; i < count; i++) {
        const Turn *turn = &turns[i];
        render_bytes(out, turn->model ? model_start : user_start,
                     turn->model ? sizeof model_start - 1 : sizeof user_start - 1);
        size_t begin = out->length;
        render_content(out, turn->text, turn->length, image_text);
        render_bytes(out, turn_end, sizeof turn_end - 1);
        if (turn->model) {
            out->answers[out->n_answers++] = (Span){begin, out->length - 1};
        }
    }
    if (count > 0 && !turns[count - 1].model) {
        render_bytes(out, model_start, sizeof model_start - 1);
    }
}

/* Rows of a rendered text: bos, image rows, tokens; answers from bytes to rows. */
static Sequence sequence_build(const Vlm *vlm, const Rendered *rendered, bool bos, bool image,
                               size_t limit, Arena *arena) {
    if (bos && vlm->llm.config.bos < 0) {
        fail(STATUS_INPUT, "%s: config.json names no bos_token_id", vlm->llm.path);
    }
    Arena *scratch = arena_new();
    Tokens tokens =
        tokenizer_encode(vlm->tokenizer, rendered->text, rendered->length, false, scratch);
    size_t count = tokens.count, lead = bos ? 1 : 0;
    if (limit > 0 && count + lead > limit) {
        count = limit - lead;
    }
    Sequence sequence = {.n_image = image ? vlm->vit.config.n_patches : 0};
    size_t first = lead + sequence.n_image;
    sequence.rows = sequence.prompt_rows = first + count;
    sequence.ids = arena_alloc(arena, sequence.rows + 1, sizeof(int32_t));
    sequence.answers = arena_alloc(arena, rendered->n_answers + 1, sizeof(Span));
    for (size_t i = 0; i < first; i++) {
        sequence.ids[i] = i < lead ? vlm->llm.config.bos : -1;
    }
    for (size_t i = 0; i < count; i++) {
        sequence.ids[first + i] = tokens.id[i];
    }
    size_t token = 0;
    for (size_t a = 0; a < rendered->n_answers; a++) {
        while (token < count && tokens.begin[token] < rendered->answers[a].begin) {
            token++;
        }
        size_t begin = token;
        while (token < count && tokens.begin[token] < rendered->answers[a].end) {
            token++;
        }
        if (a == 0) {
            sequence.prompt_rows = first + begin;
        }
        if (token > begin) {
            sequence.answers[sequence.n_answers++] = (Span){first + begin, first + token};
        }
    }
    arena_free(scratch);
    return sequence;
}

Sequence vlm_sequence(const Vlm *vlm, const Turn *turns, size_t count, bool image, size_t limit,
                      Arena *arena) {
    Rendered rendered = {0};
    rendered.answers = arena_alloc(arena, count + 1, sizeof(Span));
    render_turns(&rendered, turns, count, vlm->image_text);
    rendered.text = arena_alloc(arena, rendered.length + 1, 1);
    render_turns(&rendered, turns, count, vlm->image_text);
    return sequence_build(vlm, &rendered, true, image, limit, arena);
}

Sequence vlm_sequence_text(const Vlm *vlm, const char *text, size_t length, bool bos, bool image,
                           Arena *arena) {
    Rendered rendered = {0};
    rendered.text = arena_copy(arena, text, length);
    rendered.length = length;
    return sequence_build(vlm, &rendered, bos, image, 0, arena);
}

/* ---- the adapter ---- */

const char *adapter_prefix(const TensorStore *store) {
    return tensors_find(store, "module.weight") != NULL ? "module." : "";
}

Adapter adapter_read(Arena *arena, const char *path, size_t d_llm, size_t d_vit) {
    Arena *scratch = arena_new();
    TensorStore store;
    tensors_open(&store, scratch, path);
    Adapter adapter = {.d_llm = d_llm,
                       .d_vit = d_vit,
                       .weight = arena_floats(arena, d_llm, d_vit),
                       .bias = arena_floats(arena, d_llm, 1)};
    static const char *const names[] = {"weight", "bias"};
    float *to[] = {adapter.weight, adapter.bias};
    const Tensor *tensors[2];
    for (int p = 0; p < 2; p++) {
        char *name = arena_format(scratch, "%s%s", adapter_prefix(&store), names[p]);
        tensors[p] = tensors_need(&store, name, 2 - p, (size_t[]){d_llm, d_vit});
    }
    for (int p = 0; p < 2; p++) {
        const Tensor *t = tensors[p];
        weight_widen(to[p], (Weight){t->data, t->dtype}, 0, t->count);
        for (size_t i = 0; i < t->count; i++) {
            if (!isfinite(to[p][i])) {
                fail(STATUS_INPUT, "%s: tensor '%s': element %zu is not finite", path, t->name, i);
            }
        }
    }
    arena_free(scratch);
    return adapter;
}

void adapter_write(const Adapter *adapter, const char *path) {
    size_t d_llm = adapter->d_llm, d_vit = adapter->d_vit;
    TensorWriter *writer = tensor_writer_open(path);
    tensor_writer_declare(writer, "weight", DTYPE_F32, 2, (size_t[]){d_llm, d_vit});
    tensor_writer_declare(writer, "bias", DTYPE_F32, 1, (size_t[]){d_llm});
    tensor_writer_data(writer, adapter->weight, d_llm * d_vit * sizeof(float));
    tensor_writer_data(writer, adapter->bias, d_llm * sizeof(float));
    tensor_writer_commit(writer);
}

void adapter_init(Adapter *adapter, uint64_t seed) {
    Random random = random_start(seed, RANDOM_ADAPTER_INIT);
    float bound = 1.0f / sqrtf((float)adapter->d_vit);
    for (size_t i = 0; i < adapter->d_llm * adapter->d_vit; i++) {
        adapter->weight[i] = (2.0f * random_uniform(&random) - 1.0f) * bound;
    }
    for (size_t i = 0; i < adapter->d_llm; i++) {
        adapter->bias[i] = (2.0f * random_uniform(&random) - 1.0f) * bound;
    }
}

void adapter_forward(const Compute *compute, const Adapter *adapter, const float *x, float *y,
                     size_t rows) {
    Matrix w = {{adapter->weight, DTYPE_F32},
                {adapter->bias, DTYPE_F32},
                (ptrdiff_t)adapter->d_vit,
                1,
                adapter->d_llm,
                adapter->d_vit};
    Product product = product_nt(y, x, &w, rows);
    product_run(compute, &product, 1);
}

/* ---- opening ---- */

static void tower_layout(Arena *arena, void *user) {
    Vlm *vlm = user;
    vlm->vit_run = vit_run_layout(&vlm->vit, vlm->compute, arena);
    vlm->features = arena_floats(arena, vlm->vit.config.n_patches, vlm->vit.config.d_model);
}

void vlm_open(Vlm *vlm, Arena *arena, const Compute *compute, const VlmPaths *paths) {
    *vlm = (Vlm){.compute = compute, .arena = arena, .scratch = arena_within(arena)};
    if (paths->llm != NULL) {
        llm_open(&vlm->llm, arena, paths->llm);
    }
    if (paths->llm != NULL && !paths->without_tokenizer) {
        vlm->tokenizer = tokenizer_open(arena, paths->llm);
    }
    if (paths->vision != NULL) {
        vit_open(&vlm->vit, arena, paths->vision);
        vlm->preprocess = preprocess_open(paths->vision, vlm->vit.config.image_size);
        tower_layout(arena, vlm);
        vlm->adapter.d_llm = vlm->llm.config.d_model;
        vlm->adapter.d_vit = vlm->vit.config.d_model;
    }
    if (paths->adapter != NULL) {
        vlm->adapter = adapter_read(arena, paths->adapter, vlm->adapter.d_llm, vlm->adapter.d_vit);
    }
}

void vlm_image(Vlm *vlm, const char *path, const Hooks *hooks) {
    Arena *scratch = arena_new();
    size_t height, width, expected = vlm->vit.config.image_size;
    Image image = image_read(scratch, path);
    float *pixels = preprocess_apply(scratch, &height, &width, &vlm->preprocess, &image);
    if (height != expected || width != expected) {
        fail(STATUS_INPUT,
             "%s: preprocessor_config.json gives %zu x %zu pixels, the tower reads %zu x %zu",
             vlm->vit.path, height, width, expected, expected);
    }
    vit_forward(vlm->vit_run, pixels, vlm->features, hooks);
    arena_free(scratch);
}

/* ---- image pool ---- */

void image_pool_open(ImagePool *pool, Arena *arena, Vlm *vlm) {
    size_t row = size_product(vlm->vit.config.n_patches, vlm->llm.config.d_model);
    *pool = (ImagePool){.vlm = vlm, .arena = arena, .rows = arena_floats(arena, IMAGE_POOL, row)};
}

static float *image_pool_place(const ImagePool *pool, size_t index) {
    return pool->rows +
           (index % IMAGE_POOL) * pool->vlm->vit.config.n_patches * pool->vlm->llm.config.d_model;
}

static void image_pool_hold(ImagePool *pool, size_t index, const char *path) {
    Vlm *vlm = pool->vlm;
    if (pool->held[index % IMAGE_POOL] == index + 1) {
        return;
    }
    vlm_image(vlm, path, NULL);
    pool->held[index % IMAGE_POOL] = index + 1;
    adapter_forward(vlm->compute, &vlm->adapter, vlm->features, image_pool_place(pool, index),
                    vlm->vit.config.n_patches);
}

size_t image_pool_add(ImagePool *pool, const char *path) {
    for (size_t i = pool->count; i-- > 0;) { /* the same image most often stands right before */
        if (strcmp(pool->paths[i], path) == 0) {
            return i;
        }
    }
    pool->paths =
        arena_grow(pool->arena, pool->paths, &pool->capacity, pool->count + 1, sizeof *pool->paths);
    image_pool_hold(pool, pool->count, path);
    pool->paths[pool->count] = arena_copy(pool->arena, path, strlen(path));
    return pool->count++;
}

void image_pool_rows(ImagePool *pool, size_t index, float *out) {
    size_t size = pool->vlm->vit.config.n_patches * pool->vlm->llm.config.d_model;
    image_pool_hold(pool, index, pool->paths[index]);
    memcpy(out, image_pool_place(pool, index), size * sizeof(float));
}

void image_pool_permuted(ImagePool *pool, size_t index, uint64_t seed, float *out) {
    size_t patches = pool->vlm->vit.config.n_patches, d = pool->vlm->llm.config.d_model;
    size_t others = pool->count < IMAGE_POOL ? pool->count - 1 : IMAGE_POOL - 1;
    Random random = random_start(seed, RANDOM_CONTROL + ((uint64_t)index << 32));
    if (pool->count < 2) {
        fail(STATUS_INPUT, "permuting image tokens across images needs at least two images");
    }
    for (size_t k = 0; k < others; k++) { /* image by image: each is computed at most once */
        size_t other = (index + 1 + k) % pool->count;
        image_pool_hold(pool, other, pool->paths[other]);
        Random again = random;
        for (size_t p = 0; p < patches; p++) {
            if (random_below(&again, others) == k) {
                memcpy(out + p * d, image_pool_place(pool, other) + p * d, d * sizeof(float));
            }
        }
    }
}

/* ---- image rows as a hook ---- */

static bool image_hook_is_mine(HookKind kind, int layer) {
    return kind == HOOK_RESID_PRE && layer == 0;
}

static bool image_hook_wants(void *user, HookKind kind, int layer, bool gradient) {
    const ImageHook *hook = user;
    const float *mine = gradient ? hook->gradient : hook->images;
    return (mine != NULL && image_hook_is_mine(kind, layer)) ||
           hooks_want(hook->next, kind, layer, gradient);
}

static void image_hook_call(void *user, const HookPoint *point, float *data) {
    const ImageHook *hook = user;
    size_t block = hook->n_image * hook->d_model;
    if (image_hook_is_mine(point->kind, point->layer)) {
        for (size_t s = 0; s < hook->batch->n_sequences; s++) {
            float *rows = data + (hook->batch->start[s] + 1) * hook->d_model;
            if (point->gradient && hook->gradient != NULL) {
                memcpy(hook->gradient + s * block, rows, block * sizeof(float));
            } else if (!point->gradient && hook->images != NULL) {
                memcpy(rows, hook->images + s * block, block * sizeof(float));
            }
        }
    }
    if (hooks_want(hook->next, point->kind, point->layer, point->gradient)) {
        hook->next->call(hook->next->user, point, data);
    }
}

Hooks image_hooks(ImageHook *hook) {
    return (Hooks){image_hook_call, image_hook_wants, hook};
}

/* ---- generation ---- */

static bool generate_stops(const Vlm *vlm, const GenerateOptions *options, int32_t id) {
    const LlmConfig *config = &vlm->llm.config;
    for (size_t i = 0; i < config->eos_count; i++) {
        if (config->eos[i] == id) {
            return true;
        }
    }
    return options->stop_at_end_of_turn && id == tokenizer_id(vlm->tokenizer, "<end_of_turn>");
}

static Tokens generate_run(Vlm *vlm, LlmRun *run, float *logits, const Sequence *sequence,
                           const float *images, const GenerateOptions *options, Arena *arena) {
    Tokens out = {0};
    Random random = random_start(options->seed, RANDOM_SAMPLE);
    LlmBatch batch = {1, (size_t[]){0, sequence->rows}, sequence->ids, NULL, false};
    ImageHook image = {&batch, sequence->n_image, vlm->llm.config.d_model, images, NULL, NULL};
    Hooks hooks = image_hooks(&image);
    size_t layers = vlm->llm.config.n_layers, last = sequence->rows - 1;
    llm_forward(run, &batch, 0, layers, NULL, images != NULL ? &hooks : NULL);
    for (size_t i = 0; i < options->max_new_tokens; i++) {
        llm_logits(run, &last, 1, true, logits, NULL);
        arena_reset(vlm->scratch);
        int32_t id =
            llm_sample(logits, vlm->llm.config.d_vocab, &options->sampling, &random, vlm->scratch);
        if (generate_stops(vlm, options, id)) {
            break;
        }
        out.id = arena_grow(arena, out.id, &out.capacity, out.count + 1, sizeof *out.id);
        out.id[out.count++] = id;
        if (i + 1 < options->max_new_tokens) {
            LlmBatch next = {1, (size_t[]){0, 1}, &id, NULL, false};
            llm_forward(run, &next, 0, layers, NULL, NULL);
            last = 0;
        }
    }
    return out;
}

typedef struct Generation {
    Vlm *vlm;
    LlmPlan plan;
    LlmRun *run;
    float *logits; /* [d_vocab] */
} Generation;

static void generation_layout(Arena *arena, void *user) {
    Generation *g = user;
    g->run = llm_run_layout(&g->vlm->llm, g->vlm->compute, &g->plan, arena);
    g->logits = arena_floats(arena, g->vlm->llm.config.d_vocab, 1);
}

Tokens vlm_generate(Vlm *vlm, const Sequence *sequence, const float *images,
                    const GenerateOptions *options, Arena *arena) {
    const LlmConfig *config = &vlm->llm.config;
    GenerateOptions bounded = *options;
    if (sequence->rows == 0) {
        fail(STATUS_INPUT, "the text has no token");
    }
    if (config->rotary_dim == 0 && sequence->rows + bounded.max_new_tokens > config->n_ctx) {
        bounded.max_new_tokens =
            sequence->rows < config->n_ctx ? config->n_ctx - sequence->rows : 0;
    }
    Generation g = {.vlm = vlm,
                    .plan = {.max_rows = sequence->rows,
                             .max_sequence = sequence->rows + bounded.max_new_tokens,
                             .max_sequences = 1,
                             .max_logits = 1,
                             .cache = true}};
    Arena *block = arena_plan(generation_layout, &g);
    Tokens out = generate_run(vlm, g.run, g.logits, sequence, images, &bounded, arena);
    arena_free(block);
    return out;
}

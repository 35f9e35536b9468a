/* run_mapping.c: passes over examples, questions and images; checkpoints and resumption. */
#include "run_mapping.h"

#include "checkpoint.h"
#include "model_load.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- models and images ---- */

void vlm_open(Vlm *vlm, Arena *arena, const Compute *compute, const VlmOptions *o) {
    *vlm = (Vlm){.compute = compute, .image_text = o->image_text};
    if (o->llm != NULL) {
        llm_open(&vlm->llm, arena, o->llm);
        vlm->tokenizer = o->ids != NULL ? NULL : tokenizer_open(arena, o->llm);
    }
    if (o->vision != NULL) {
        const VitConfig *vit = &vlm->vit.config;
        vit_open(&vlm->vit, arena, o->vision);
        vlm->preprocess = preprocess_open(o->vision, vit->image_size);
        vlm->vit_run = vit_run_layout(&vlm->vit, compute, arena);
        vlm->features = arena_floats(arena, vit->n_patches, vit->d_model);
    }
    if (o->llm != NULL && o->vision != NULL && o->adapter != NULL) {
        adapter_layout(&vlm->adapter, vlm->llm.config.d_model, vlm->vit.config.d_model, arena);
        adapter_read(&vlm->adapter, o->adapter,
                     arena_format(arena, "%s and %s", o->llm, o->vision));
    }
}

/* What the tower reads of a picture, [3, size, size]. */
static float *vlm_pixels(const Vlm *vlm, Arena *arena, const char *path) {
    size_t height, width, expected = vlm->vit.config.image_size;
    Image image = image_read(arena, path);
    float *pixels = preprocess_apply(arena, &height, &width, &vlm->preprocess, &image);
    if (height != expected || width != expected) {
        fail(STATUS_INPUT,
             "%s: preprocessor_config.json gives %zu x %zu pixels, the tower reads %zu x %zu",
             vlm->vit.path, height, width, expected, expected);
    }
    return pixels;
}

void vlm_image(Vlm *vlm, const char *path, const Hooks *hooks) {
    Arena *scratch = arena_new();
    vit_forward(vlm->vit_run, vlm_pixels(vlm, scratch, path), vlm->features, hooks);
    arena_free(scratch);
}

enum {
    IMAGE_POOL = 16 /* images whose rows are held at once */
};

typedef struct ImagePool { /* the adapter's outputs for a list of images */
    Vlm *vlm;
    char **paths;
    size_t count, capacity;
    size_t held[IMAGE_POOL]; /* index + 1 of the image in each place; 0: none */
    float *rows;             /* [IMAGE_POOL, n_patches, d_llm] */
    Arena *arena;
} ImagePool;

static size_t image_size(const Vlm *vlm) {
    return size_product(vlm->vit.config.n_patches, vlm->llm.config.d_model);
}

static ImagePool image_pool_open(Vlm *vlm, Arena *arena) {
    return (ImagePool){
        .vlm = vlm, .arena = arena, .rows = arena_floats(arena, IMAGE_POOL, image_size(vlm))};
}

/* The rows [n_patches, d_llm] of image `index`, until another takes their place. */
static const float *image_pool_rows(ImagePool *pool, size_t index) {
    Vlm *vlm = pool->vlm;
    size_t place = index % IMAGE_POOL;
    float *rows = pool->rows + place * image_size(vlm);
    if (pool->held[place] != index + 1) {
        vlm_image(vlm, pool->paths[index], NULL);
        adapter_forward(vlm->compute, &vlm->adapter, vlm->features, rows,
                        vlm->vit.config.n_patches);
        pool->held[place] = index + 1;
    }
    return rows;
}

/* The index of `path`, which is decoded on the spot if it is new. An image that cannot be read
 * fails and is not added. */
static size_t image_pool_add(ImagePool *pool, const char *path) {
    for (size_t i = pool->count; i-- > 0;) { /* the same image most often stands right before */
        if (strcmp(pool->paths[i], path) == 0) {
            return i;
        }
    }
    pool->paths =
        arena_grow(pool->arena, pool->paths, &pool->capacity, pool->count + 1, sizeof *pool->paths);
    pool->paths[pool->count] = arena_copy(pool->arena, path, strlen(path));
    (void)image_pool_rows(pool, pool->count);
    return pool->count++;
}

/* The permuted control: each position from one of the next IMAGE_POOL - 1 images of the list
 * (cyclic). With one image alone there is nothing to permute: an error. */
static void image_pool_permuted(ImagePool *pool, size_t index, uint64_t seed, float *out) {
    size_t others = (pool->count < IMAGE_POOL ? pool->count : IMAGE_POOL) - 1;
    Random random = random_start(seed, RANDOM_CONTROL + ((uint64_t)index << 32));
    if (pool->count < 2) {
        fail(STATUS_INPUT, "permuting image tokens across images needs at least two images");
    }
    for (size_t k = 0; k < others; k++) { /* image by image: each is computed at most once */
        size_t other = (index + 1 + k) % pool->count;
        permuted_images(random, others, k, image_pool_rows(pool, other), out,
                        pool->vlm->vit.config.n_patches, pool->vlm->llm.config.d_model);
    }
}

typedef struct LeftOut { /* why examples were left out */
    const char **why;
    size_t count, capacity;
} LeftOut;

/* An input may be left out, unless that is forbidden; what the machine lacks is always told. */
static void may_leave_out(const Error *cause, bool strict) {
    fail_for_resources(cause);
    if (strict && cause->status != STATUS_OK) {
        fail(cause->status, "%s", cause->text);
    }
}

static void leave_out(LeftOut *out, Arena *arena, bool strict, const Error *cause) {
    may_leave_out(cause, strict);
    out->why = arena_grow(arena, out->why, &out->capacity, out->count + 1, sizeof *out->why);
    out->why[out->count++] = arena_copy(arena, cause->text, strlen(cause->text));
}

static void tell_left_out(const Console *console, const LeftOut *out, const char *what,
                          const char *why) {
    if (out->count > 0) {
        console_line(console, "left out %zu %s%s %s:", out->count, what, plural(out->count), why);
    }
    for (size_t i = 0; i < out->count; i++) {
        console_line(console, "  %s", out->why[i]);
    }
}

/* The examples of --data, of which there must be some. */
static void data_open(JsonArrayFile *data, Arena *arena, const char *path) {
    json_array_open(data, arena, path);
    if (data->count == 0) {
        fail(STATUS_INPUT, "%s: holds no example", path);
    }
}

/* ---- training ---- */

typedef struct TrainRow { /* of members of 8 bytes: a checkpoint holds it */
    double loss, lr;
    uint64_t epoch, tokens;
} TrainRow;

typedef struct TrainState { /* numbers of a checkpoint */
    uint64_t step, steps, epoch, position, usable, examples;
} TrainState;

/* What is looked at of an image that is not to be computed with. */
typedef enum TrainLook {
    LOOK_PIXELS, /* whether it can be used */
    LOOK_FILE,   /* whether it can be opened: so it is noted among what the run has read */
    LOOK_NAME
} TrainLook;

typedef struct Trainer {
    const VlmOptions *options;
    const Console *console;
    Vlm vlm;
    TrainRun run;
    JsonArrayFile data;
    Arena *arena, *examples; /* of the whole run; the sequences of one micro-batch */
    TrainState state;
    uint64_t *order;     /* [examples] of the epoch */
    TrainRow *rows;      /* [steps] */
    MemoryStream *times; /* timing.csv so far */
    unsigned char *skip; /* [examples] */
    size_t without_image;
    TrainLook look;
    LeftOut left_out;
    const char *settings;            /* a line each: what is set, its value */
    const char *checkpoint, *timing; /* paths */
} Trainer;

/* The picture of an example; features NULL: what t->look says. */
static void train_image(Trainer *t, const Conversation *conversation, float *features) {
    if (conversation->n_images > 1) {
        fail(STATUS_INPUT, "%s: example '%s': has %zu images, expected one", t->options->data,
             conversation->id, conversation->n_images);
    }
    char *path = path_join(t->examples, t->options->images, conversation->image);
    Arena *scratch = arena_new();
    if (features != NULL) {
        size_t size = t->vlm.vit.config.n_patches * t->vlm.vit.config.d_model;
        vlm_image(&t->vlm, path, NULL);
        memcpy(features, t->vlm.features, size * sizeof(float));
    } else if (t->look == LOOK_PIXELS) {
        (void)vlm_pixels(&t->vlm, scratch, path);
    } else if (t->look == LOOK_FILE) {
        (void)file_map(scratch, path);
    }
    arena_free(scratch);
}

/* Reads example `index` into sequence and its image into features. False: left out (and why is
 * noted). features NULL: t->look. */
static bool train_example(Trainer *t, uint64_t index, Sequence *sequence, float *features) {
    if (t->skip[index]) {
        return false;
    }
    Conversation conversation = conversation_read(t->examples, &t->data, (size_t)index);
    t->skip[index] = 1;
    if (conversation.image == NULL) {
        t->without_image++;
        return false;
    }
    Error cause;
    ATTEMPT(&cause, train_image(t, &conversation, features));
    if (cause.status != STATUS_OK) {
        leave_out(&t->left_out, t->arena, t->options->strict, &cause);
        return false;
    }
    t->skip[index] = 0;
    *sequence = vlm_sequence(&t->vlm, conversation.turns, conversation.count, true,
                             t->options->tokens, t->examples);
    return true;
}

/* The order of the epoch's examples: a seeded permutation, or as the file has them. */
static void train_order(Trainer *t) {
    Random random = random_start(t->options->seed, RANDOM_SHUFFLE + (t->state.epoch << 32));
    if (t->options->shuffle) {
        random_permutation(&random, t->order, t->data.count);
        return;
    }
    for (size_t i = 0; i < t->data.count; i++) {
        t->order[i] = i;
    }
}

/* What example k of `want` in the step came to, where it is known. */
static void train_take(Trainer *t, size_t k, size_t want, TrainLoss *found, TrainLoss *sum) {
    Shard *shard = t->options->shard;
    shard_value(shard, k, want, found, sizeof *found);
    shard_value(shard, k, want, t->run.grad.weight, adapter_size(&t->run.grad) * sizeof(float));
    if (shard_turn(shard, k, want) == SHARD_READ || shard == NULL) {
        train_add(&t->run);
        sum->loss += found->loss;
        sum->tokens += found->tokens;
    }
}

/* The step's journal, which the other shards wait for. */
static char *step_name(const Trainer *t, uint64_t step) {
    return arena_format(t->examples, "step-%" PRIu64, step);
}

/* All examples of the step, from the journals of all shards. That each has come so far says that it
 * has saved the step before, so nobody reads of that any more. */
static void train_gather(Trainer *t, size_t count, size_t want, TrainLoss *sum) {
    Shard *shard = t->options->shard;
    TrainLoss found;
    shard_end(shard);
    shard_read(shard, step_name(t, t->state.step + 1));
    for (size_t k = 0; k < count; k++) {
        train_take(t, k, want, &found, sum);
    }
    shard_end(shard);
    (void)remove(path_join(t->examples, shard->folder, step_name(t, t->state.step)));
}

/* Sums gradients over the next batch x accumulate usable examples of this epoch: how many there
 * were. Those of other shards are only looked at. */
static size_t train_collect(Trainer *t, TrainLoss *sum) {
    Shard *shard = t->options->shard;
    size_t want = t->options->batch * t->options->accumulate, count = 0, mine, end;
    size_t block = t->vlm.vit.config.n_patches * t->vlm.vit.config.d_model;
    shard_range(shard, want, &mine, &end);
    while (count < want && t->state.position < t->data.count) {
        size_t n = 0;
        bool first = count == 0;
        arena_reset(t->examples);
        while (n < t->run.micro && count < want && t->state.position < t->data.count) {
            float *features = t->run.features + n * block;
            bool own = shard_turn(shard, count, want) == SHARD_COMPUTE,
                 used = train_example(t, t->order[t->state.position++], &t->run.sequence[n],
                                      own ? features : NULL);
            n += own && used;
            count += used;
        }
        if (shard != NULL && first && count > 0) {
            shard_write(shard, step_name(t, t->state.step + 1));
        }
        if (n > 0) {
            train_micro(&t->run, n);
        }
        for (size_t e = 0; e < n; e++) {
            train_gradient(&t->run, e);
            train_take(t, mine++, want, &t->run.found[e], sum);
        }
    }
    if (shard != NULL && count > 0) {
        train_gather(t, count, want, sum);
    }
    return count;
}

/* The length of the schedule. */
static size_t train_steps(const VlmOptions *o, size_t usable) {
    size_t per_step = o->batch * o->accumulate;
    return o->steps > 0 ? o->steps : size_product(o->epochs, (usable + per_step - 1) / per_step);
}

REFSAE_NORETURN static void refuse_all(const Trainer *t) {
    fail(STATUS_INPUT, "%s: none of %zu example%s can be used: %s", t->options->data, t->data.count,
         plural(t->data.count),
         t->left_out.count > 0 ? t->left_out.why[0] : "they are without an image to read");
}

/* Looks at each example once: how many can be used, which without --steps is the schedule's length
 * (with it, nothing is opened before its turn), and whether --tokens leaves any to predict. */
static void train_count(Trainer *t) {
    const VlmOptions *o = t->options;
    size_t usable = 0, unanswered = 0;
    Progress progress = progress_start("reading", "examples", 0, t->data.count, t->console->quiet);
    t->look = o->steps > 0 ? LOOK_NAME : LOOK_PIXELS;
    for (size_t i = 0; i < t->data.count; i++) {
        Sequence sequence;
        arena_reset(t->examples);
        if (train_example(t, i, &sequence, NULL)) {
            usable++;
            unanswered += sequence.n_answers == 0;
        }
        progress_set(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    t->look = LOOK_PIXELS;
    if (usable == 0) {
        refuse_all(t);
    }
    if (unanswered == usable) {
        fail(STATUS_INPUT, "%s: 0 of %zu example%s with a token to predict within --tokens %zu",
             o->data, usable, plural(usable), o->tokens);
    }
    if (unanswered > 0) {
        console_line(t->console,
                     "%zu of %zu example%s without a token to predict within --tokens %zu: each "
                     "adds 0 to the mean",
                     unanswered, usable, plural(usable), o->tokens);
    }
    t->state.usable = usable;
    t->state.steps = train_steps(o, usable);
}

/* ---- checkpoints: everything that the rest of the run depends on, in one safetensors file ---- */

enum {
    CHECKPOINT_PARTS = 6,
    CHECKPOINT_NUMBERS = sizeof(TrainState) / sizeof(uint64_t)
};

static const char *const part_names[CHECKPOINT_PARTS] = {
    "weight", "bias", "exp_avg.weight", "exp_avg.bias", "exp_avg_sq.weight", "exp_avg_sq.bias"};

/* The values of a part, which is shaped like the adapter's weight (even) or bias (odd). */
static float *part_data(Trainer *t, int part) {
    const Adapter *all[] = {&t->vlm.adapter, &t->run.m, &t->run.v}, *a = all[part / 2];
    return part % 2 == 0 ? a->weight : a->bias;
}

/* Adapter, moments, the numbers of TrainState, the settings and a row a step. */
static void checkpoint_write(Trainer *t) {
    TensorWriter *w = tensor_writer_open(t->checkpoint);
    size_t shape[2] = {t->vlm.adapter.d_llm, t->vlm.adapter.d_vit}, steps = (size_t)t->state.step;
    for (int i = 0; i < CHECKPOINT_PARTS; i++) {
        tensor_writer_declare(w, part_names[i], DTYPE_F32, 2 - i % 2, shape);
    }
    tensor_writer_declare(w, "numbers", DTYPE_I64, 1, (size_t[]){CHECKPOINT_NUMBERS});
    tensor_writer_declare(w, "settings", DTYPE_U8, 1, (size_t[]){strlen(t->settings)});
    tensor_writer_declare(w, "rows", DTYPE_U8, 2, (size_t[]){steps, sizeof(TrainRow)});
    for (int i = 0; i < CHECKPOINT_PARTS; i++) {
        size_t count = i % 2 == 0 ? shape[0] * shape[1] : shape[0];
        tensor_writer_data(w, part_data(t, i), sizeof(float), count);
    }
    tensor_writer_data(w, &t->state, sizeof(uint64_t), CHECKPOINT_NUMBERS);
    tensor_writer_data(w, t->settings, 1, strlen(t->settings));
    tensor_writer_data(w, t->rows, 8, steps * sizeof(TrainRow) / 8);
    tensor_writer_commit(w);
}

static void checkpoint_read(Trainer *t) {
    Arena *scratch = arena_new();
    TensorStore store;
    tensors_open(&store, scratch, t->checkpoint);
    const Tensor *settings = tensors_find(&store, "settings"), *rows = tensors_find(&store, "rows"),
                 *numbers = tensors_find(&store, "numbers");
    if (settings == NULL || settings->dtype != DTYPE_U8 || settings->rank != 1 || numbers == NULL ||
        numbers->dtype != DTYPE_I64 || numbers->count != CHECKPOINT_NUMBERS || rows == NULL ||
        rows->dtype != DTYPE_U8 || rows->rank != 2 || rows->shape[1] != sizeof(TrainRow)) {
        fail(STATUS_INPUT, "%s: not a checkpoint of this program", store.path);
    }
    const char *then = arena_copy(scratch, settings->data, settings->count), *now = t->settings;
    int a, b;
    if (lines_differ(&then, &now, &a, &b)) {
        fail(STATUS_INPUT,
             "%s: was written with '%.*s', this run has '%.*s': give the same, or another --out to "
             "start anew",
             store.path, a, then, b, now);
    }
    TrainState *s = &t->state;
    memcpy(s, numbers->data, sizeof *s);
    if (s->step != rows->shape[0] || s->step > s->steps || s->position > s->examples ||
        s->examples != t->data.count || s->usable > s->examples ||
        s->steps != train_steps(t->options, (size_t)s->usable)) {
        fail(STATUS_INPUT, "%s: its step numbers contradict each other", store.path);
    }
    size_t shape[2] = {t->vlm.adapter.d_llm, t->vlm.adapter.d_vit};
    for (int i = 0; i < CHECKPOINT_PARTS; i++) {
        const Tensor *tensor = tensors_need(&store, part_names[i], 2 - i % 2, shape);
        weight_widen(part_data(t, i), (Weight){tensor->data, tensor->dtype}, 0, tensor->count);
    }
    t->rows = arena_alloc(t->arena, (size_t)s->steps, sizeof *t->rows);
    little_copy(t->rows, rows->data, 8, rows->count / 8);
    arena_free(scratch);
}

/* Of a language model, whose bytes may be many, sizes and the first bytes of every tensor. */
static void llm_digest(const TensorStore *store, char hex[65]) {
    Arena *scratch = arena_new();
    Sha256 sha;
    sha256_start(&sha);
    for (size_t i = 0; i < store->count; i++) {
        const Tensor *tensor = &store->tensors[i];
        size_t element = dtype_size(tensor->dtype);
        uint64_t size = tensor->count * element;
        size_t head = size < 4096 ? (size_t)size : 4096, count = head / size_larger(element, 1);
        sha256_add(&sha, little_elements(scratch, &size, sizeof size, 1), sizeof size);
        sha256_add(&sha, little_elements(scratch, tensor->data, element, count), head);
    }
    sha256_end(&sha, hex);
    arena_free(scratch);
}

static void vit_digest(const TensorStore *store, char hex[65]) {
    Sha256 sha;
    sha256_start(&sha);
    for (size_t i = 0; i < store->map_count; i++) {
        sha256_add(&sha, store->maps[i].data, store->maps[i].size);
    }
    sha256_end(&sha, hex);
}

/* What must be equal for two runs to be the same run. */
static void train_settings(Trainer *t) {
    const VlmOptions *o = t->options;
    const LlmConfig *llm = &t->vlm.llm.config;
    const VitConfig *vit = &t->vlm.vit.config;
    char data[65], init[65] = "none", llm_hex[65], vit_hex[65];
    llm_digest(&t->vlm.llm.store, llm_hex);
    vit_digest(&t->vlm.vit.store, vit_hex);
    sha256_file(o->data, data);
    if (o->init != NULL) {
        sha256_file(o->init, init);
    }
    t->settings = arena_format(
        t->arena,
        "--lr %s\n--min-lr %s\n--warmup %s\n--batch %zu\n--accumulate %zu\n--epochs %zu\n"
        "--steps %zu\n--tokens %zu\n--shuffle %s\n--softcap %s\n--image-text %s\n--seed %" PRIu64
        "\n--data of SHA-256 %s\n--init of SHA-256 %s\n--llm of %zu layers, %zu tokens, digest %s\n"
        "--vision of %zu layers, %zu patches, SHA-256 %s\n",
        JSON_DOUBLE(o->lr), JSON_DOUBLE(o->min_lr), JSON_DOUBLE(o->warmup), o->batch, o->accumulate,
        o->epochs, o->steps, o->tokens, o->shuffle ? "yes" : "no", o->softcap ? "model" : "off",
        o->image_text == IMAGE_TEXT_DROP ? "drop" : "keep", o->seed, data, init, llm->n_layers,
        llm->d_vocab, llm_hex, vit->n_layers, vit->n_patches, vit_hex);
}

/* Opens the images that were looked at up to the checkpoint, so that the run's inputs are noted
 * though others have read them. */
static void train_recall(Trainer *t) {
    const TrainState *s = &t->state;
    uint64_t count = t->options->steps == 0 || s->epoch > 0 ? s->examples : s->position;
    train_order(t);
    t->look = LOOK_FILE;
    for (uint64_t i = 0; i < count; i++) {
        Sequence sequence;
        arena_reset(t->examples);
        (void)train_example(t, t->order[i], &sequence, NULL);
    }
    t->look = LOOK_PIXELS;
}

static void train_save(Trainer *t) {
    checkpoint_write(t);
    OutFile *out = out_open(path_join(t->examples, t->options->out, "train.csv")),
            *times = out_open(t->timing);
    Csv csv = csv_start(out->stream, "step,epoch,loss,lr,tokens");
    for (size_t i = 0; i < t->state.step; i++) {
        csv_double(&csv, (double)i + 1);
        csv_double(&csv, (double)t->rows[i].epoch + 1);
        csv_double(&csv, t->rows[i].loss);
        csv_double(&csv, t->rows[i].lr);
        csv_double(&csv, (double)t->rows[i].tokens);
        csv_end(&csv);
    }
    fputs(memory_text(t->times), times->stream);
    out_commit(out);
    out_commit(times);
}

/* ---- the run ---- */

static void train_open(Trainer *t, const Compute *compute) {
    const VlmOptions *o = t->options;
    if (o->epochs == 0 && o->steps == 0) {
        fail(STATUS_INPUT, "--epochs or --steps must be at least 1");
    }
    out_folder(t->arena, o->out);
    path_need_directory(o->images);
    vlm_open(&t->vlm, t->arena, compute, o);
    data_open(&t->data, t->arena, o->data);
    t->state.examples = t->data.count;
    t->order = arena_alloc(t->arena, t->data.count + 1, sizeof *t->order);
    t->skip = arena_alloc(t->arena, t->data.count + 1, 1);
    t->checkpoint = path_join(t->arena, o->out, "checkpoint.safetensors");
    t->timing = path_join(t->arena, o->out, "timing.csv");
    t->times = memory_open(t->arena);
}

static void train_begin(Trainer *t) {
    const VlmOptions *o = t->options;
    if (o->init != NULL) {
        adapter_read(&t->vlm.adapter, o->init,
                     arena_format(t->arena, "%s and %s", o->llm, o->vision));
    } else {
        adapter_init(&t->vlm.adapter, o->seed);
    }
    train_settings(t);
    bool resume = o->resume && path_exists(t->checkpoint);
    if (resume && path_exists(t->timing)) { /* of the steps before, as far as they are known */
        FileMap times = file_map(t->examples, t->timing);
        fwrite(times.data, 1, times.size, t->times->stream);
    } else {
        fputs("step,seconds\n", t->times->stream);
    }
    if (resume) {
        checkpoint_read(t);
        train_recall(t);
        console_line(t->console, "resuming after step %" PRIu64 " of %" PRIu64, t->state.step,
                     t->state.steps);
        return;
    }
    train_count(t);
    t->rows = arena_alloc(t->arena, (size_t)t->state.steps, sizeof *t->rows);
}

/* One step and its row; how many examples were left in the epoch for it. */
static size_t train_step(Trainer *t, Progress *progress) {
    TrainState *s = &t->state;
    TrainRow row = {.epoch = s->epoch, .lr = train_lr(t->options, s->step, s->steps)};
    double before = progress_now();
    TrainLoss sum = {0.0, 0};
    size_t count = train_collect(t, &sum);
    if (count == 0) {
        return 0;
    }
    row.loss = sum.loss / (double)count;
    row.tokens = sum.tokens;
    if (!isfinite(row.loss)) {
        fail(STATUS_INPUT, "step %" PRIu64 ": the loss is not finite; lower --lr", s->step + 1);
    }
    train_update(&t->run, count, row.lr, s->step + 1);
    t->rows[s->step] = row;
    s->step++;
    fprintf(t->times->stream, "%" PRIu64 ",%.3f\n", s->step, progress_now() - before);
    char note[32];
    snprintf(note, sizeof note, "loss %.4f", row.loss);
    progress_set(progress, s->step, note);
    return count;
}

/* Steps to the schedule's end; an epoch that is over begins anew with another order. */
static void train_loop(Trainer *t) {
    const VlmOptions *o = t->options;
    TrainState *s = &t->state;
    Progress progress = progress_start("training", "steps", s->step, s->steps, t->console->quiet);
    size_t idle_epochs = 0;
    train_order(t);
    while (s->step < s->steps) {
        size_t count = train_step(t, &progress);
        idle_epochs = count > 0 ? 0 : idle_epochs + 1;
        if (idle_epochs > 1) {
            refuse_all(t);
        }
        if (s->position >= t->data.count) {
            if (o->steps == 0 && s->epoch + 1 >= o->epochs) {
                break;
            }
            s->epoch++;
            s->position = 0;
            train_order(t);
        }
        bool due = o->shard != NULL || (o->save_every > 0 && s->step % o->save_every == 0);
        if (due && count > 0 && s->step < s->steps) {
            train_save(t);
        }
    }
    progress_end(&progress);
}

static void train_tell(const Trainer *t) {
    const TrainState *s = &t->state; /* its epoch may be one that has no step yet */
    double loss = s->step > 0 ? t->rows[s->step - 1].loss : NAN;
    uint64_t epochs = s->step > 0 ? t->rows[s->step - 1].epoch + 1 : 0;
    console_result(t->console, "%" PRIu64 " step%s, %" PRIu64 " epoch%s, last loss %.4f", s->step,
                   plural(s->step), epochs, plural(epochs), loss);
    if (t->console->json) {
        JsonOut json = json_out_start(stdout, 0);
        json_out(&json, "{ steps %zu epochs %zu loss %g }", (size_t)s->step, (size_t)epochs, loss);
    }
    if (t->without_image > 0) {
        console_line(t->console, "left out %zu example%s without an image", t->without_image,
                     plural(t->without_image));
    }
    tell_left_out(t->console, &t->left_out, "example", "whose image cannot be read or is not one");
}

TrainResult run_train(Arena *arena, const Compute *compute, const VlmOptions *options,
                      const Console *console) {
    Trainer t = {
        .options = options, .console = console, .arena = arena, .examples = arena_within(arena)};
    train_open(&t, compute);
    t.run = (TrainRun){.options = options, .vlm = &t.vlm};
    (void)train_plan(&t.run);
    Arena *block = arena_plan(train_layout, &t.run);
    train_begin(&t);
    train_loop(&t);
    train_save(&t);
    adapter_write(&t.vlm.adapter, path_join(arena, options->out, "adapter.safetensors"));
    train_tell(&t);
    size_t steps = (size_t)t.state.step;
    double *loss = arena_alloc(arena, steps, sizeof *loss);
    for (size_t i = 0; i < steps; i++) {
        loss[i] = t.rows[i].loss;
    }
    arena_free(block);
    arena_free(t.examples);
    return (TrainResult){options, loss, steps};
}

/* ---- generation ---- */

static bool generate_stops(const Vlm *vlm, bool chat, int32_t id) {
    const LlmConfig *config = &vlm->llm.config;
    bool stops = chat && id == tokenizer_id(vlm->tokenizer, "<end_of_turn>");
    for (size_t i = 0; i < config->eos_count; i++) {
        stops |= config->eos[i] == id;
    }
    return stops;
}

/* The tokens that continue `sequence` (images as in ImageHook), without the one that stopped it. */
static Tokens vlm_generate(const Vlm *vlm, const Sequence *sequence, const float *images,
                           const VlmOptions *options, bool chat, Arena *arena) {
    const LlmConfig *config = &vlm->llm.config;
    size_t rows = sequence->rows, layers = config->n_layers;
    size_t new_tokens = options->max_new_tokens;
    if (config->rotary_dim == 0 && rows + new_tokens > config->n_ctx) { /* learned positions */
        new_tokens = rows < config->n_ctx ? config->n_ctx - rows : 0;
    }
    Arena *block = arena_new(), *scratch = arena_new();
    LlmPlan plan = {.max_rows = rows,
                    .max_sequence = rows + new_tokens,
                    .max_sequences = 1,
                    .max_logits = 1,
                    .cache = true};
    LlmRun *run = llm_run_layout(&vlm->llm, vlm->compute, &plan, block);
    float *logits = arena_floats(block, config->d_vocab, 1);
    Tokens out = {0};
    size_t room = 0;
    Random random = random_start(options->seed, RANDOM_SAMPLE);
    LlmBatch batch = {.n_sequences = 1,
                      .start = (size_t[]){0, rows},
                      .ids = sequence->ids,
                      .read_from = (size_t[]){rows - 1}};
    ImageHook image = {&batch, sequence->n_image, config->d_model, images, NULL, NULL};
    Hooks hooks = image_hooks(&image);
    llm_forward(run, &batch, 0, layers, NULL, &hooks);
    while (out.count < new_tokens) {
        arena_reset(scratch);
        llm_logits(run, &(size_t){0}, 1, true, logits, NULL);
        int32_t id = token_sample(logits, config->d_vocab, &options->sampling, &random, scratch);
        if (generate_stops(vlm, chat, id)) {
            break;
        }
        out.id = arena_grow(arena, out.id, &room, out.count + 1, sizeof *out.id);
        out.id[out.count++] = id;
        if (out.count < new_tokens) {
            LlmBatch next = {.n_sequences = 1, .start = (size_t[]){0, 1}, .ids = &id};
            llm_forward(run, &next, 0, layers, NULL, NULL);
        }
    }
    arena_free(scratch);
    arena_free(block);
    return out;
}

/* ---- prompts of a command line ---- */

int32_t *token_ids_parse(Arena *arena, const char *text, const char *option, size_t *count) {
    int32_t *ids = arena_alloc(arena, strlen(text) / 2 + 1, sizeof(int32_t));
    *count = 0;
    for (const char *p = text;; p++) {
        char *end;
        long long id = *p >= '0' && *p <= '9' ? strtoll(p, &end, 10) : -1;
        if (id < 0 || id > INT32_MAX || (*end != ',' && *end != '\0')) {
            fail(STATUS_INPUT, "%s %s: expected token ids separated by commas", option, text);
        }
        ids[(*count)++] = (int32_t)id;
        if (*end == '\0') {
            return ids;
        }
        p = end;
    }
}

void prompt_open(Vlm *vlm, Arena *arena, const Compute *compute, const VlmOptions *o) {
    bool image = o->image != NULL;
    if (o->bos >= 0 && (o->ids != NULL || image || o->chat)) {
        fail(STATUS_INPUT,
             "--bos is for text that stands alone, without --ids, --image and --chat");
    }
    if ((o->ids != NULL) + (o->text != NULL) + (o->prompt != NULL) != 1) {
        fail(STATUS_INPUT, "--llm needs one of --ids, --text and --prompt");
    }
    if (image && (o->prompt == NULL || o->vision == NULL || o->adapter == NULL)) {
        fail(STATUS_INPUT, "--llm with --image needs --prompt, --vision and --adapter");
    }
    vlm_open(vlm, arena, compute, o);
    if (o->chat && tokenizer_id(vlm->tokenizer, "<start_of_turn>") < 0) {
        fail(STATUS_INPUT, "%s: --chat is Gemma's form, and its tokenizer has no <start_of_turn>",
             o->llm);
    }
}

/* Text as it stands, with what the post-processor adds, or with --bos exactly that. */
static Sequence prompt_text(const Vlm *vlm, const VlmOptions *o, const char *text, Arena *arena) {
    if (o->bos == 1 && vlm->llm.config.bos < 0) {
        fail(STATUS_INPUT, "%s: config.json names no bos_token_id", o->llm);
    }
    Tokens tokens = tokenizer_encode(vlm->tokenizer, text, strlen(text), o->bos < 0, arena);
    size_t lead = o->bos == 1 ? 1 : 0;
    Sequence sequence = {.rows = tokens.count + lead};
    sequence.ids = arena_alloc(arena, sequence.rows + 1, sizeof(int32_t));
    sequence.ids[0] = vlm->llm.config.bos;
    for (size_t i = 0; i < tokens.count; i++) {
        sequence.ids[lead + i] = tokens.id[i];
    }
    if (sequence.rows == 0) {
        fail(STATUS_INPUT, "the text has no token");
    }
    return sequence;
}

Sequence prompt_sequence(const Vlm *vlm, const VlmOptions *o, Arena *arena) {
    if (o->ids != NULL) {
        Sequence sequence = {0};
        sequence.ids = token_ids_parse(arena, o->ids, "--ids", &sequence.rows);
        return sequence;
    }
    if (o->text != NULL || (o->image == NULL && !o->chat)) {
        return prompt_text(vlm, o, o->text != NULL ? o->text : o->prompt, arena);
    }
    Conversation c = conversation_prompt(arena, o->prompt, o->chat);
    if (o->image != NULL) {
        conversation_place_image(arena, &c);
    }
    return vlm_sequence(vlm, c.turns, c.count, o->image != NULL, 0, arena);
}

/* ---- generate: the command ---- */

void generate_command(const Compute *compute, const VlmOptions *o, bool json, FILE *out) {
    Arena *arena = arena_new();
    Vlm vlm;
    prompt_open(&vlm, arena, compute, o);
    Sequence sequence = prompt_sequence(&vlm, o, arena);
    size_t answers = sequence.n_answers;
    if (answers > 0 && sequence.answers[answers - 1].end + 1 >= sequence.rows) {
        sequence.rows = sequence.answers[answers - 1].end - 1; /* the model's turn goes on */
    }
    bool image = o->image != NULL;
    float *images = NULL;
    if (image) {
        images = arena_floats(arena, sequence.n_image, vlm.llm.config.d_model);
        vlm_image(&vlm, o->image, NULL);
        adapter_forward(compute, &vlm.adapter, vlm.features, images, sequence.n_image);
    }
    Tokens tokens = vlm_generate(&vlm, &sequence, images, o, image || o->chat, arena);
    size_t length;
    char *text = tokenizer_decode(vlm.tokenizer, tokens.id, tokens.count, true, arena, &length);
    if (json) {
        JsonOut j = json_out_start(out, 0);
        json_out(&j, "{");
        json_out_bytes(&j, "text", text, length);
        json_out(&j, "ids [");
        for (size_t i = 0; i < tokens.count; i++) {
            json_out(&j, "%d", (int)tokens.id[i]);
        }
        json_out(&j, "] }");
    } else {
        fwrite(text, 1, length, out);
        fputc('\n', out);
    }
    arena_free(arena);
}

/* ---- visual questions ---- */

typedef struct Evaluation {
    const VlmOptions *options;
    const Console *console;
    Vlm vlm;
    ImagePool pool;
    Arena *arena, *question; /* the whole evaluation; one question */
    float *images;
    LeftOut left_out;
    Scores scores;
} Evaluation;

/* What the model says. */
static char *eval_answer(Evaluation *e, const Question *q, size_t image, size_t *length) {
    const float *images = e->images;
    if (e->options->permute_images) {
        image_pool_permuted(&e->pool, image, e->options->seed, e->images);
    } else {
        images = image_pool_rows(&e->pool, image);
    }
    Turn turn = q->text;
    Conversation c = {.turns = &turn, .count = 1};
    conversation_place_image(e->question, &c);
    Sequence sequence = vlm_sequence(&e->vlm, c.turns, c.count, true, 0, e->question);
    Tokens tokens = vlm_generate(&e->vlm, &sequence, images, e->options, true, e->question);
    return tokenizer_decode(e->vlm.tokenizer, tokens.id, tokens.count, true, e->question, length);
}

static void eval_score(Evaluation *e, const Question *q, const char *text, size_t length,
                       FILE *out) {
    bool exact = score_answer(&e->scores, text, length, q);
    JsonOut json = json_out_start(out, 0);
    json_out(&json, "{ question_id %s image %s", q->id, q->image);
    json_out_bytes(&json, "prompt", q->text.text, q->text.length);
    json_out_bytes(&json, "text", text, length);
    json_out(&json, exact ? "exact true }" : "exact false }");
    e->scores.asked++;
}

/* Which of the pool's images the question is about; *cause: why none. */
static size_t eval_image(Evaluation *e, const Question *q, Error *cause) {
    volatile size_t image = 0;
    char *path = path_join(e->question, e->options->images, q->image);
    ATTEMPT(cause, image = image_pool_add(&e->pool, path));
    may_leave_out(cause, e->options->strict);
    return image;
}

/* Question i of `total`. */
static void eval_question(Evaluation *e, const Question *q, size_t i, size_t total, FILE *out) {
    Shard *shard = e->options->shard;
    ShardTurn turn = shard_turn(shard, i, total);
    Error cause = {.status = STATUS_OK};
    size_t length = 0;
    const char *text = "";
    if (turn == SHARD_SKIP) {
        return;
    }
    if (turn == SHARD_COMPUTE) {
        size_t image = eval_image(e, q, &cause);
        text = cause.status == STATUS_OK ? eval_answer(e, q, image, &length) : text;
    }
    shard_error(shard, i, total, &cause);
    const void *bytes = shard_bytes(shard, i, total, text, &length);
    if (cause.status != STATUS_OK) {
        leave_out(&e->left_out, e->arena, e->options->strict, &cause);
        e->scores.skipped++;
    } else {
        eval_score(e, q, arena_copy(e->question, bytes, length), length, out);
    }
}

/* Visits every question: how many there are. out NULL: only counts them, and with permuted images
 * adds each image to the pool, so that the control knows them all. */
static size_t eval_pass(Evaluation *e, size_t total, FILE *out) {
    const VlmOptions *o = e->options;
    Arena *scratch = arena_new();
    JsonLines lines = json_lines(scratch, o->questions);
    size_t count = 0;
    bool look = out == NULL && o->permute_images && !shard_is_merge(o->shard);
    Progress progress = progress_start(look ? "reading images" : "answering", "questions", 0, total,
                                       e->console->quiet || (out == NULL && !look));
    for (const Json *value; (value = json_line(e->question, &lines)) != NULL;) {
        Question question = question_parse(e->question, value, o->questions, lines.line);
        Error cause;
        if (out != NULL) {
            eval_question(e, &question, count, total, out);
        } else if (look) {
            (void)eval_image(e, &question, &cause);
        }
        progress_set(&progress, ++count, NULL);
        arena_reset(e->question);
    }
    progress_end(&progress);
    arena_free(scratch);
    return count;
}

static void eval_tell(const Evaluation *e) {
    const Scores *s = &e->scores;
    if (s->with_answer > 0) {
        console_result(e->console, "%zu question%s: exact match %.4f%s", s->asked, plural(s->asked),
                       exact_match(s),
                       e->options->permute_images ? " (image tokens permuted)" : "");
    }
    if (s->with_answer < s->asked) {
        console_line(e->console, "not scored: %zu of %zu question%s, without a reference answer",
                     s->asked - s->with_answer, s->asked, plural(s->asked));
    }
    tell_left_out(e->console, &e->left_out, "question", "whose image cannot be read");
}

void run_eval(const Compute *compute, const VlmOptions *o, const Console *console) {
    Arena *arena = arena_new();
    Evaluation e = {
        .options = o, .console = console, .arena = arena, .question = arena_within(arena)};
    out_folder(arena, o->out);
    path_need_directory(o->images);
    vlm_open(&e.vlm, arena, compute, o);
    e.pool = image_pool_open(&e.vlm, arena);
    e.images = arena_floats(arena, image_size(&e.vlm), 1);
    size_t count = eval_pass(&e, 0, NULL);
    if (count == 0) {
        fail(STATUS_INPUT, "%s: no questions", o->questions);
    }
    OutFile *answers = out_open(path_join(arena, o->out, "answers.jsonl"));
    (void)eval_pass(&e, count, answers->stream);
    shard_end(o->shard);
    if (e.scores.asked == 0 && !shard_is_part(o->shard)) {
        fail(STATUS_INPUT, "%s: 0 questions asked: no image of the %zu can be read: %s",
             o->questions, count, e.left_out.why[0]);
    }
    out_commit(answers);
    char adapter[65];
    sha256_file(o->adapter, adapter);
    OutFile *scores = out_open(path_join(arena, o->out, "scores.json"));
    scores_write(scores->stream, &e.scores, o->permute_images, adapter);
    out_commit(scores);
    if (console->json) {
        scores_write(stdout, &e.scores, o->permute_images, adapter);
    }
    eval_tell(&e);
    arena_free(arena);
}

/* ---- the layer analysis ----
 * Three passes over the examples, so that nothing but counts grows with their number:
 *   scan      sizes, which images can be read, mean and variance of image tokens
 *   measure   statistics of each group, of the two controls, and how often each feature is active
 *   features  the strongest features that are rare enough, their descriptions and the verdict
 * and for the first few examples the loss recovered when the SAE's output replaces the stream. */

typedef struct Example {
    const char *id, *image;
    Turn question, answer;
    Sequence prompt, control;           /* up to the model's turn */
    Sequence prompt_full, control_full; /* up to the first answer's <end_of_turn>, for the loss */
} Example;

typedef struct UsedExample { /* one that is not left out */
    size_t index, image;     /* in the file; in the pool */
} UsedExample;

typedef struct Analysis {
    const VlmOptions *options;
    AnalyzeResult result;
    Vlm vlm;
    AnalyzeRun run;
    ImagePool pool;
    JsonArrayFile data;
    Arena *arena, *example; /* the whole analysis; one example */
    UsedExample *used;      /* [result.examples] */
    LeftOut left_out;
    Moments moments;         /* of image tokens */
    float *control;          /* the image rows of a control */
    const float *images;     /* those of the current example, or its control's */
    size_t first;            /* examples of the file among which those are that are judged */
    unsigned char *verdicts; /* [first, layers, groups]: Verdict; NULL: lexical */
    OutFile *questions;      /* for a judge outside, or NULL */
    LayerResult *before;     /* [layers]: the sums without the current example */
    /* what the hook is doing */
    const Sequence *sequence;
    Variant variant;
    const Example *current;
    size_t example_number, pass_size; /* of examples in the pass */
    bool measuring, reading;          /* statistics; what others found */
    FILE *features_out;
} Analysis;

/* It stands in a->example, until the next is read. */
static Example example_read(Analysis *a, size_t index) {
    Arena *arena = a->example;
    arena_reset(arena);
    Conversation c = conversation_read(arena, &a->data, index);
    size_t first = 0;
    while (first < c.count && !c.turns[first].model) {
        first++;
    }
    if (c.n_images != 1 || first == 0 || first == c.count) {
        fail(STATUS_INPUT, "%s: example %zu '%s': %s", a->options->data, index, c.id,
             c.n_images == 0  ? "has no image"
             : c.n_images > 1 ? "has several images"
                              : "is no question followed by an answer");
    }
    Turn answer = c.turns[first], *control = arena_alloc(arena, first + 1, sizeof *control);
    for (size_t i = 0; i < first; i++) {
        control[i] = control_turn(arena, &c.turns[i], &answer);
    }
    control[first] = answer;
    return (Example){.id = c.id,
                     .image = path_join(arena, a->options->images, c.image),
                     .question = c.turns[first - 1],
                     .answer = answer,
                     .prompt = vlm_sequence(&a->vlm, c.turns, first, true, 0, arena),
                     .control = vlm_sequence(&a->vlm, control, first, false, 0, arena),
                     .prompt_full = vlm_sequence(&a->vlm, c.turns, first + 1, true, 0, arena),
                     .control_full = vlm_sequence(&a->vlm, control, first + 1, false, 0, arena)};
}

static void use_example(Analysis *a, size_t index, size_t image) {
    a->used[a->result.examples++] = (UsedExample){index, image};
    a->result.judged += a->options->descriptions != NULL && index < a->options->judge_examples;
}

/* The example's sizes and its image, if they can be read. */
static void scan_example(Analysis *a, size_t index) {
    Example e = example_read(a, index);
    const Sequence *all[] = {&e.prompt, &e.control, &e.prompt_full, &e.control_full};
    size_t image = image_pool_add(&a->pool, e.image);
    for (size_t k = 0; k < 4; k++) {
        a->run.longest = size_larger(all[k]->rows, a->run.longest);
    }
    moments_add(&a->moments, image_pool_rows(&a->pool, image), a->vlm.vit.config.n_patches);
    use_example(a, index, image);
}

/* Every shard scans all: it draws image tokens from other examples' images. */
static void scan_or_leave_out(Analysis *a, size_t index, size_t n, bool merge) {
    Error cause = {.status = STATUS_OK};
    if (!merge) {
        ATTEMPT(&cause, scan_example(a, index));
    }
    shard_error(a->options->shard, index, n, &cause);
    if (cause.status != STATUS_OK) {
        leave_out(&a->left_out, a->arena, a->options->strict, &cause);
    } else if (merge) {
        use_example(a, index, 0);
    }
}

static void scan(Analysis *a) {
    size_t n = a->options->examples < a->data.count ? a->options->examples : a->data.count;
    size_t d = a->vlm.llm.config.d_model;
    bool merge = shard_is_merge(a->options->shard);
    a->used = arena_alloc(a->arena, n + 1, sizeof *a->used);
    a->control = arena_floats(a->arena, image_size(&a->vlm), 1);
    a->moments = (Moments){.sum = arena_alloc(a->arena, d, sizeof(double)),
                           .squares = arena_alloc(a->arena, d, sizeof(double)),
                           .d_model = d};
    Progress progress = progress_start("reading", "examples", 0, n, a->result.console->quiet);
    for (size_t i = 0; i < n; i++) {
        scan_or_leave_out(a, i, n, merge);
        progress_set(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    if (a->result.examples == 0) {
        fail(STATUS_INPUT, "%s: none of %zu example%s can be used: %s", a->options->data, n,
             plural(n), a->left_out.why[0]);
    }
    a->result.failures = a->left_out.why;
    a->result.n_failures = a->left_out.count;
}

/* ---- the hook at hook_resid_post ---- */

static void write_features(Analysis *a, const LayerResult *layer, Group group, size_t first_row,
                           size_t n, bool judged, bool match) {
    JsonOut json = json_out_start(a->features_out, 0);
    json_out(&json, "{ example %zu id %s image %s layer %d group %s features [",
             a->used[a->example_number].index, a->current->id, a->current->image, layer->layer,
             group_names[group]);
    for (size_t i = 0; i < n; i++) {
        const TopFeature *top = &a->run.peaks[i];
        json_out(&json, "{ feature %zu position %zu activation %f", (size_t)top->feature,
                 first_row + (size_t)top->row, (double)top->activation);
        if (layer->descriptions.text != NULL) {
            json_out(&json, "description %s }", layer->descriptions.text[top->feature]);
        } else {
            json_out(&json, "description null }");
        }
    }
    json_out(&json, !judged ? "] }" : match ? "] match true }" : "] match false }");
}

static void write_judge_question(Analysis *a, const LayerResult *layer, Group group, size_t n) {
    const Example *e = a->current;
    JsonOut json = json_out_start(a->questions->stream, 0);
    json_out(&json, "{ example %zu layer %d group %s image %s", a->used[a->example_number].index,
             layer->layer, group_names[group], e->image);
    json_out_bytes(&json, "question", e->question.text, e->question.length);
    json_out_bytes(&json, "answer", e->answer.text, e->answer.length);
    json_out(&json, "descriptions [");
    for (size_t i = 0; i < n; i++) {
        json_out(&json, "%s", layer->descriptions.text[a->run.peaks[i].feature]);
    }
    json_out(&json, "] }");
}

/* Of an example of the file; the first of [n_layers, GROUPS] is that of layer 0 and group 0. */
static unsigned char *verdict_at(const Analysis *a, size_t index, size_t slot, Group group) {
    return &a->verdicts[(index * a->result.n_layers + slot) * GROUPS + (size_t)group];
}

/* What is left of the n peaks, of which a shard knows too little to choose. */
static size_t share_peaks(Analysis *a, const LayerResult *layer, size_t n) {
    TopFeature *peaks = a->run.peaks;
    size_t size = n * sizeof *peaks;
    const void *all = shard_bytes(a->options->shard, a->example_number, a->pass_size, peaks, &size);
    bool fits = size <= layer->sae->d_sae * sizeof *peaks;
    memmove(peaks, all, fits ? size : 0);
    for (n = 0; fits && n < size / sizeof *peaks; n++) {
        fits = peaks[n].feature < layer->sae->d_sae;
    }
    if (!fits) {
        fail(STATUS_INPUT, "%s: a shard has features that layer %d's SAE does not have",
             a->options->out, layer->layer);
    }
    return n;
}

static void find_features(Analysis *a, LayerResult *layer, Group group, size_t first_row,
                          size_t rows) {
    size_t n = a->reading ? 0 : peak_features(&a->run, layer, group, first_row - 1, rows);
    n = share_peaks(a, layer, n);
    if (shard_is_part(a->options->shard)) {
        return;
    }
    n = top_features(&a->run, layer, group, n);
    size_t index = a->used[a->example_number].index, slot = (size_t)(layer - a->result.layers);
    bool judged = a->example_number < a->result.judged && layer->descriptions.text != NULL;
    bool match = judged && a->verdicts != NULL && *verdict_at(a, index, slot, group) == VERDICT_YES;
    for (size_t i = 0; i < n && judged && a->verdicts == NULL; i++) {
        match |= lexical_match(layer->descriptions.text[a->run.peaks[i].feature],
                               a->current->answer.text);
    }
    layer->matched[group] += judged && match;
    layer->judged[group] += judged;
    a->result.verdicts_missing +=
        judged && a->verdicts != NULL && *verdict_at(a, index, slot, group) == VERDICT_NONE;
    write_features(a, layer, group, first_row, n, judged, match);
    if (a->questions != NULL && judged) {
        write_judge_question(a, layer, group, n);
    }
}

static bool analysis_wants(void *user, HookKind kind, int layer, bool gradient) {
    const Analysis *a = user;
    return kind == HOOK_RESID_POST && !gradient && a->run.of_layer[layer] != NULL;
}

/* At blocks.L.hook_resid_post: all rows but <bos> through the layer's SAE, then group by group. */
static void analysis_layer(Analysis *a, LayerResult *layer, const float *data) {
    if (!a->reading) {
        encode_layer(&a->run, layer, data + a->vlm.llm.config.d_model, a->sequence->rows - 1,
                     a->measuring);
    }
    for (Group g = 0; g < GROUPS; g++) {
        Range rows = group_rows(a->sequence, g, a->sequence->rows);
        size_t n = rows.end - rows.begin;
        if (n > 0 && a->measuring) {
            measure_group(&a->run, layer, a->variant, g, rows.begin - 1, n);
        } else if (n > 0) {
            find_features(a, layer, g, rows.begin, n);
        }
    }
}

static void analysis_call(void *user, const HookPoint *point, float *data) {
    Analysis *a = user;
    analysis_layer(a, a->run.of_layer[point->layer], data);
}

/* One forward pass with the current images, where the sequence has room for them. */
static void analysis_forward(Analysis *a, const Sequence *sequence) {
    LlmBatch batch = {
        .n_sequences = 1, .start = (size_t[]){0, sequence->rows}, .ids = sequence->ids};
    Hooks measure = {analysis_call, analysis_wants, a};
    ImageHook image = {&batch, sequence->n_image, a->vlm.llm.config.d_model, a->images,
                       NULL,   &measure};
    Hooks hooks = image_hooks(&image);
    a->sequence = sequence;
    for (size_t i = 0; i < a->result.n_layers && a->reading; i++) {
        analysis_layer(a, &a->result.layers[i], NULL);
    }
    if (!a->reading) {
        llm_forward(a->run.run, &batch, 0, a->vlm.llm.config.n_layers, NULL, &hooks);
    }
}

/* ---- passes ---- */

static void measure_example(Analysis *a) {
    const Example *example = a->current;
    Random noise =
        random_start(a->options->seed, RANDOM_GAUSSIAN + ((uint64_t)a->example_number << 32));
    a->variant = VARIANT_CLEAN;
    analysis_forward(a, &example->prompt);
    analysis_forward(a, &example->control);
    if (a->pool.count > 1) {
        a->variant = VARIANT_PERMUTED;
        image_pool_permuted(&a->pool, a->used[a->example_number].image, a->options->seed,
                            a->control);
        a->images = a->control;
        analysis_forward(a, &example->prompt);
    }
    a->variant = VARIANT_GAUSSIAN;
    gaussian_images(&a->moments, noise, a->control, a->vlm.vit.config.n_patches);
    a->images = a->control;
    analysis_forward(a, &example->prompt);
}

static void loss_example(Analysis *a) {
    loss_sequence(&a->run, &a->current->prompt_full, a->images);
    loss_sequence(&a->run, &a->current->control_full, a->images);
}

static void features_example(Analysis *a) {
    analysis_forward(a, &a->current->prompt);
    analysis_forward(a, &a->current->control);
}

/* Of Sums and LossSums, which are nothing but doubles. */
static void add_doubles(void *to, const void *from, size_t size) {
    double *x = to;
    const double *y = from;
    for (size_t i = 0; i < size / sizeof *x; i++) {
        x[i] += y[i];
    }
}

/* What one example adds to the sums, measured or as another measured it. */
static void measure_one(Analysis *a, void (*visit)(Analysis *a)) {
    Shard *shard = a->options->shard;
    size_t e = a->example_number, n = a->pass_size;
    for (size_t i = 0; i < a->result.n_layers; i++) {
        LayerResult *layer = &a->result.layers[i];
        a->before[i] = *layer;
        memset(layer->sums, 0, sizeof layer->sums);
        memset(layer->loss, 0, sizeof layer->loss);
    }
    if (!a->reading) {
        visit(a);
    }
    for (size_t i = 0; i < a->result.n_layers; i++) {
        LayerResult *layer = &a->result.layers[i];
        shard_value(shard, e, n, layer->sums, sizeof layer->sums);
        shard_value(shard, e, n, layer->loss, sizeof layer->loss);
        add_doubles(layer->sums, a->before[i].sums, sizeof layer->sums);
        add_doubles(layer->loss, a->before[i].loss, sizeof layer->loss);
    }
}

/* visit() sees each of the first n examples with its images in place. */
static void analysis_pass(Analysis *a, const char *what, size_t n, void (*visit)(Analysis *a)) {
    n = n < a->result.examples ? n : a->result.examples;
    Progress progress = progress_start(what, "examples", 0, n, a->result.console->quiet);
    a->pass_size = n;
    for (size_t e = 0; e < n; e++) {
        ShardTurn turn = shard_turn(a->options->shard, e, n);
        if (turn == SHARD_SKIP) {
            continue;
        }
        Example example = example_read(a, a->used[e].index);
        a->example_number = e;
        a->current = &example;
        a->reading = turn == SHARD_READ;
        if (!a->reading) {
            a->images = image_pool_rows(&a->pool, a->used[e].image);
        }
        a->measuring ? measure_one(a, visit) : visit(a);
        progress_set(&progress, e + 1, NULL);
    }
    progress_end(&progress);
}

/* How often features are active, of all shards. */
static void add_active(Analysis *a) {
    Shard *shard = a->options->shard;
    size_t n = shard != NULL ? shard->count : 0;
    Arena *scratch = arena_new();
    uint32_t *counts = arena_alloc(scratch, a->run.widest, sizeof *counts);
    for (size_t i = 0; i < a->result.n_layers * GROUPS * n; i++) {
        const LayerResult *layer = &a->result.layers[i / n / GROUPS];
        uint32_t *active = layer->active[i / n % GROUPS];
        bool reading = shard_turn(shard, i % n, n) == SHARD_READ;
        shard_value(shard, i % n, n, reading ? counts : active, layer->sae->d_sae * sizeof *active);
        for (size_t j = 0; j < layer->sae->d_sae && reading; j++) {
            active[j] += counts[j];
        }
    }
    arena_free(scratch);
}

/* ---- a judge outside ---- */

/* A line of its file, {"example", "layer", "group", "verdict"}. */
static void verdict_apply(Analysis *a, const Json *line) {
    int64_t example, number;
    if (!json_int64(json_get(line, "example"), &example) || example < 0 ||
        example >= (int64_t)a->first || !json_int64(json_get(line, "layer"), &number) ||
        number < 0 || number >= (int64_t)a->vlm.llm.config.n_layers) {
        return;
    }
    const LayerResult *layer = a->run.of_layer[number];
    for (Group g = 0; g < GROUPS && layer != NULL && layer->descriptions.text != NULL; g++) {
        if (json_text_is(json_get(line, "group"), group_names[g])) {
            unsigned char *verdict =
                verdict_at(a, (size_t)example, (size_t)(layer - a->result.layers), g);
            Verdict read = verdict_read(line);
            if (read != VERDICT_NONE) { /* what cannot be read leaves an earlier one as it is */
                *verdict = (unsigned char)read;
            }
        }
    }
}

/* A line that is no JSON is as one that is not there, but for a last one without its end: the file
 * was cut. What has no verdict is a no. */
static void verdicts_read(Analysis *a) {
    Arena *scratch = arena_new();
    JsonLines *lines = arena_alloc(scratch, 1, sizeof *lines); /* across failures */
    *lines = json_lines(scratch, a->options->judge);
    a->verdicts = arena_alloc(a->arena, a->first * a->result.n_layers * GROUPS, 1);
    while (lines->at != lines->end) {
        const Json *volatile line = NULL;
        Error unreadable;
        arena_reset(a->example);
        ATTEMPT(&unreadable, line = json_line(a->example, lines));
        may_leave_out(&unreadable, lines->at == lines->end && lines->at[-1] != '\n');
        a->result.verdicts += line != NULL || unreadable.status != STATUS_OK;
        if (line != NULL) {
            verdict_apply(a, line);
        }
    }
    arena_free(scratch);
}

/* Those of the examples that can be read. */
static void verdicts_count(Analysis *a) {
    for (size_t e = 0; e < a->result.judged; e++) {
        const unsigned char *verdicts = verdict_at(a, a->used[e].index, 0, GROUP_IMG);
        for (size_t i = 0; i < a->result.n_layers * GROUPS; i++) {
            a->result.verdicts_used += verdicts[i] != VERDICT_NONE;
        }
    }
    if (a->result.verdicts_used == 0) {
        fail(STATUS_INPUT,
             "%s: 0 of %zu verdict%s can be used: expected lines of an example, layer and group as "
             "--write-questions has them, with 'verdict' yes or no",
             a->options->judge, a->result.verdicts, plural(a->result.verdicts));
    }
}

static void features_pass(Analysis *a) {
    const VlmOptions *o = a->options;
    OutFile *features = out_open(path_join(a->arena, o->out, "features.jsonl"));
    a->features_out = features->stream;
    analysis_pass(a, "features", a->result.examples, features_example);
    shard_end(o->shard);
    if (shard_is_part(o->shard)) {
        arena_free(features->arena);
        return;
    }
    if (a->questions != NULL) {
        out_commit(a->questions);
    }
    out_commit(features);
}

/* ---- opening ---- */

/* "0,4-9" as flags. */
static void layers_parse(const char *text, bool *wanted, size_t n_layers) {
    for (const char *p = text;;) {
        char *end;
        unsigned long first = strtoul(p, &end, 10), last = first;
        bool bad = *p < '0' || *p > '9';
        if (!bad && *end == '-') {
            p = end + 1;
            bad = *p < '0' || *p > '9';
            last = strtoul(p, &end, 10);
        }
        if (bad || (*end != ',' && *end != '\0') || last < first || last >= n_layers) {
            fail(STATUS_INPUT, "--layers %s: expected rising layers below %zu, as in 0,4-9", text,
                 n_layers);
        }
        for (unsigned long i = first; i <= last; i++) {
            wanted[i] = true;
        }
        if (*end == '\0') {
            return;
        }
        p = end + 1;
    }
}

/* A layer without any is as one analysed without --descriptions. */
static void open_descriptions(Analysis *a, LayerResult *layer) {
    size_t count = 0, d_sae = layer->sae->d_sae;
    Descriptions read = descriptions_read(a->arena, a->options->descriptions, layer->layer, d_sae);
    for (size_t j = 0; j < d_sae; j++) {
        count += read.text[j] != NULL;
    }
    console_line(a->result.console, "layer %d: %zu of %zu feature%s described", layer->layer, count,
                 d_sae, plural(d_sae));
    if (count > 0) {
        layer->descriptions = read;
    }
}

static void layer_open(Analysis *a, const Sae *sae, int layer) {
    const VlmOptions *o = a->options;
    LayerResult *result = a->run.of_layer[layer] = &a->result.layers[a->result.n_layers++];
    *result = (LayerResult){.layer = layer, .sae = sae};
    a->run.widest = size_larger(sae->d_sae, a->run.widest);
    if (sae->d_in != a->vlm.llm.config.d_model) {
        fail(STATUS_INPUT, "%s: reads %zu dimensions, the stream of %s has %zu", sae->path,
             sae->d_in, o->llm, a->vlm.llm.config.d_model);
    }
    if (o->descriptions != NULL) {
        open_descriptions(a, result);
    }
    for (size_t g = 0; g < GROUPS; g++) {
        result->active[g] = arena_alloc(a->arena, sae->d_sae, sizeof(uint32_t));
    }
}

static void open_layers(Analysis *a) {
    const VlmOptions *o = a->options;
    size_t n = a->vlm.llm.config.n_layers;
    bool *wanted = arena_alloc(a->arena, n, sizeof(bool)), described = false;
    SaeSet saes;
    a->run.of_layer = arena_alloc(a->arena, n, sizeof(LayerResult *));
    a->result.layers = arena_alloc(a->arena, n, sizeof(LayerResult));
    if (o->layers != NULL) {
        layers_parse(o->layers, wanted, n);
    }
    sae_set_open(&saes, a->arena, o->saes, HOOK_RESID_POST, o->layers != NULL ? wanted : NULL, n,
                 o->canonical, &o->sae);
    for (size_t layer = 0; layer < n; layer++) {
        const Sae *sae = sae_set_find(&saes, HOOK_RESID_POST, (int)layer);
        if (sae == NULL && wanted[layer]) {
            fail(STATUS_INPUT, "%s: no SAE for blocks.%zu.hook_resid_post", o->saes, layer);
        }
        if (sae != NULL) {
            layer_open(a, sae, (int)layer);
            described |= a->run.of_layer[layer]->descriptions.text != NULL;
        }
    }
    if (a->result.n_layers == 0) {
        fail(STATUS_INPUT, "%s: no SAE for a hook_resid_post of this model", o->saes);
    }
    if (o->descriptions != NULL && !described) {
        fail(STATUS_INPUT,
             "%s: describes no feature of the layers analysed: expected LAYER-... in it",
             o->descriptions);
    }
}

AnalyzeResult run_analyze(Arena *arena, const Compute *compute, const VlmOptions *o,
                          const Console *console) {
    Analysis a = {.options = o,
                  .result = {.options = o, .console = console},
                  .arena = arena,
                  .example = arena_within(arena)};
    if (o->examples == 0 || o->features == 0 || !(o->converge >= 1.0)) {
        fail(STATUS_INPUT, "--examples, --features and --converge must be at least 1");
    }
    out_folder(arena, o->out);
    path_need_directory(o->images);
    vlm_open(&a.vlm, arena, compute, o);
    a.run = (AnalyzeRun){.llm = &a.vlm.llm, .compute = compute, .result = &a.result, .longest = 1};
    open_layers(&a);
    a.before = arena_alloc(arena, a.result.n_layers, sizeof *a.before);
    data_open(&a.data, arena, o->data);
    a.first = o->examples < a.data.count ? o->examples : a.data.count;
    a.first = o->judge_examples < a.first ? o->judge_examples : a.first;
    if (strcmp(o->judge, "lexical") != 0) {
        verdicts_read(&a);
    }
    if (o->write_questions != NULL && !shard_is_part(o->shard)) {
        files_spare(o->write_questions);
        a.questions = out_open(o->write_questions);
    }
    a.pool = image_pool_open(&a.vlm, arena);
    scan(&a);
    if (a.verdicts != NULL) {
        verdicts_count(&a);
    }
    Arena *block = arena_plan(analyze_layout, &a.run);
    a.measuring = true;
    analysis_pass(&a, "measuring", o->examples, measure_example);
    analysis_pass(&a, "loss recovered", o->loss_examples, loss_example);
    a.measuring = false;
    add_active(&a);
    features_pass(&a);
    tell_left_out(console, &a.left_out, "example", "that cannot be used");
    arena_free(block);
    arena_free(a.example);
    return a.result;
}

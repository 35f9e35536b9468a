/* train.c: training the adapter (Mapping, sections on alignment pretraining and instruction tuning;
 * the schedule and loss of the released train.py).
 *
 * A step: the mean over its examples of (the mean over model turns of the mean cross-entropy over
 * the turn's tokens). Only the adapter moves; the language model is run backward to its image rows:
 *   dW[d_llm, d_vit] = sum over image rows, examples in order, of dY^T X    (one chain a step)
 * so that neither threads nor the number of examples run at once changes a bit. */
#include "adapter.h"
#include "checkpoint.h"
#include "report.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Examples that run at once are as many as fit here; results do not depend on it. */
static const size_t micro_bytes = (size_t)1 << 30;

typedef struct TrainRow {
    double loss, lr;
    uint64_t epoch, tokens;
} TrainRow;

typedef struct Trainer {
    const TrainOptions *options;
    const Console *console;
    Vlm vlm;
    JsonArrayFile data;
    Adapter grad, m, v; /* first and second moments beside the gradient, shaped like the adapter */
    double *bias_grad;  /* [d_llm] binary64 sums over the image rows of a step */
    Arena *arena, *examples; /* of the whole run; the sequences of one micro-batch */
    Arena *block;            /* what train_layout takes */
    LlmRun *run;
    size_t micro; /* examples at once */
    size_t max_logits;
    Sequence *sequence;                 /* [micro] */
    float *features, *images, *dimages; /* [micro, P, d_vit], [micro, P, d_llm] twice */
    int32_t *ids;
    size_t *start, *head_rows;
    int32_t *targets;
    float *weights, *logits, *dlogits;
    double *losses;
    /* progress of the run; what a checkpoint holds */
    uint64_t step, steps, epoch, position, usable;
    TrainRow *rows;
    size_t row_capacity;
    /* examples left out */
    unsigned char *skip; /* [data.count] */
    size_t without_image, n_failed;
    struct Failure {
        const char *text;
        struct Failure *next;
    } *failed, **failed_end;
    char settings[65];
} Trainer;

/* ---- examples ---- */

static void train_failure(Trainer *t, uint64_t index, const Error *cause) {
    if (t->options->strict || cause->status == STATUS_RESOURCE) {
        fail(cause->status, "%s", cause->text);
    }
    struct Failure *failure = arena_alloc(t->arena, 1, sizeof *failure);
    failure->text = arena_copy(t->arena, cause->text, strlen(cause->text));
    *t->failed_end = failure;
    t->failed_end = &failure->next;
    t->n_failed++;
    t->skip[index] = 1;
}

/* The picture of an example; features NULL: only whether it can be read. */
static void train_image(Trainer *t, const Conversation *conversation, float *features) {
    if (conversation->n_images > 1) {
        fail(STATUS_INPUT, "%s: example '%s': has %zu images, expected one", t->options->data,
             conversation->id, conversation->n_images);
    }
    char *path = path_join(t->examples, t->options->images, conversation->image);
    if (features == NULL) {
        Arena *scratch = arena_new();
        (void)image_read(scratch, path);
        arena_free(scratch);
        return;
    }
    vlm_image(&t->vlm, path, NULL);
    size_t size = t->vlm.vit.config.n_patches * t->vlm.vit.config.d_model;
    memcpy(features, t->vlm.features, size * sizeof(float));
}

/* Reads example `index` into sequence and its image into features. False: left out (and why is
 * noted). features NULL: only whether it can be used. */
static bool train_example(Trainer *t, uint64_t index, Sequence *sequence, float *features) {
    if (t->skip[index]) {
        return false;
    }
    const Json *element = json_array_read(&t->data, index, t->examples);
    Conversation conversation = conversation_parse(t->examples, element, t->options->data);
    if (conversation.image == NULL) {
        t->without_image++;
        t->skip[index] = 1;
        return false;
    }
    Error cause;
    ATTEMPT(&cause, train_image(t, &conversation, features));
    if (cause.status != STATUS_OK) {
        train_failure(t, index, &cause);
        return false;
    }
    if (features != NULL) {
        *sequence = vlm_sequence(&t->vlm, conversation.turns, conversation.count, true,
                                 t->options->tokens, t->examples);
    }
    return true;
}

/* ---- one micro-batch ---- */

/* Loss of each example and, through the head, the gradient at ln_final. */
static void train_head(Trainer *t, size_t count, double *loss, uint64_t *tokens) {
    size_t n = 0, offset = 0, vocab = t->vlm.llm.config.d_vocab;
    llm_backward_start(t->run);
    for (size_t e = 0; e < count; e++) {
        const Sequence *sequence = &t->sequence[e];
        for (size_t a = 0; a < sequence->n_answers; a++) {
            Span span = sequence->answers[a];
            double share = 1.0 / ((double)sequence->n_answers * (double)(span.end - span.begin));
            for (size_t r = span.begin; r < span.end; r++, n++) {
                t->head_rows[n] = t->start[e] + r - 1;
                t->targets[n] = sequence->ids[r];
                t->weights[n] = (float)share;
            }
        }
    }
    for (size_t from = 0; from < n; from += t->max_logits) {
        size_t rows = n - from < t->max_logits ? n - from : t->max_logits;
        llm_logits(t->run, t->head_rows + from, rows, t->options->softcap, t->logits, NULL);
        cross_entropy_rows(t->vlm.compute, t->losses + from, t->dlogits, t->logits,
                           t->targets + from, t->weights + from, rows, vocab);
        llm_logits_backward(t->run, t->head_rows + from, rows, t->options->softcap, t->logits,
                            t->dlogits, NULL);
    }
    for (size_t e = 0; e < count; e++) {
        const Sequence *sequence = &t->sequence[e];
        double turns = 0.0;
        for (size_t a = 0; a < sequence->n_answers; a++) {
            Span span = sequence->answers[a];
            double sum = 0.0;
            for (size_t r = span.begin; r < span.end; r++) {
                sum += t->losses[offset++];
            }
            turns += sum / (double)(span.end - span.begin);
        }
        *loss += sequence->n_answers > 0 ? turns / (double)sequence->n_answers : 0.0;
    }
    *tokens += n;
}

/* Forward and backward of `count` examples whose sequences and features are in place. */
static void train_micro(Trainer *t, size_t count, double *loss, uint64_t *tokens) {
    const LlmConfig *llm = &t->vlm.llm.config;
    size_t patches = t->vlm.vit.config.n_patches, d_vit = t->vlm.vit.config.d_model, rows = 0,
           predicted = 0;
    for (size_t e = 0; e < count; e++) {
        t->start[e] = rows;
        memcpy(t->ids + rows, t->sequence[e].ids, t->sequence[e].rows * sizeof(int32_t));
        rows += t->sequence[e].rows;
        predicted += t->sequence[e].n_answers;
    }
    t->start[count] = rows;
    if (predicted == 0) {
        return;
    }
    adapter_forward(t->vlm.compute, &t->vlm.adapter, t->features, t->images, count * patches);
    LlmBatch batch = {count, t->start, t->ids, NULL, false};
    ImageHook image = {&batch, patches, llm->d_model, t->images, t->dimages, NULL};
    Hooks hooks = image_hooks(&image);
    llm_forward(t->run, &batch, 0, llm->n_layers, NULL, &hooks);
    train_head(t, count, loss, tokens);
    llm_backward(t->run, 0, &hooks);
    Product product =
        product_tn(t->grad.weight, t->dimages, t->features, count * patches, llm->d_model, d_vit);
    product_run(t->vlm.compute, &product, 1);
    for (size_t r = 0; r < count * patches; r++) {
        for (size_t i = 0; i < llm->d_model; i++) {
            t->bias_grad[i] += (double)t->dimages[r * llm->d_model + i];
        }
    }
}

/* ---- steps ---- */

/* cos(pi t) in binary64 for t in [0, 1], by its series around the nearest of 0, 1/2 and 1: the
 * schedule must not depend on the machine's libm. */
static double cos_pi_f64(double t) {
    bool flip = t > 0.5;
    double u =
        flip ? 1.0 - t : t; /* cos(pi t) = -cos(pi (1 - t)), and for u > 1/4 sin(pi (1/2 - u)) */
    bool sine = u > 0.25;
    double x = 3.14159265358979323846 * (sine ? 0.5 - u : u), sum = 0.0;
    for (int k = sine ? 19 : 18; k >= 2; k -= 2) {
        sum = (1.0 + sum) * (-x * x) / (double)(k * (k - 1));
    }
    sum = sine ? x * (1.0 + sum) : 1.0 + sum;
    return flip ? -sum : sum;
}

/* Linear warm-up over w = floor(ratio S) steps, then half a cosine to min. */
static double train_lr(const TrainOptions *options, uint64_t s, uint64_t steps) {
    double w = floor(options->warmup * (double)steps);
    if ((double)s < w) {
        return options->lr * ((double)s + 1.0) / w;
    }
    double turn = ((double)s - w + 1.0) / ((double)steps - w);
    return options->min_lr + (options->lr - options->min_lr) * (1.0 + cos_pi_f64(turn)) / 2.0;
}

static void train_order(const Trainer *t, uint64_t *order) {
    if (t->options->shuffle) {
        Random random = random_start(t->options->seed, RANDOM_SHUFFLE + (t->epoch << 32));
        random_permutation(&random, order, t->data.count);
        return;
    }
    for (size_t i = 0; i < t->data.count; i++) {
        order[i] = i;
    }
}

/* Sums gradients over the next batch x accumulate usable examples of this epoch: how many there
 * were. */
static size_t train_collect(Trainer *t, const uint64_t *order, double *loss, uint64_t *tokens) {
    size_t want = t->options->batch * t->options->accumulate;
    size_t block = t->vlm.vit.config.n_patches * t->vlm.vit.config.d_model;
    size_t count = 0;
    while (count < want && t->position < t->data.count) {
        size_t n = 0;
        arena_reset(t->examples);
        while (n < t->micro && count + n < want && t->position < t->data.count) {
            n += train_example(t, order[t->position], &t->sequence[n], t->features + n * block);
            t->position++;
        }
        train_micro(t, n, loss, tokens);
        count += n;
    }
    return count;
}

static void train_update(Trainer *t, size_t count, double lr) {
    Adapter *a = &t->vlm.adapter;
    size_t n = a->d_llm * a->d_vit;
    float examples = (float)count;
    for (size_t i = 0; i < n; i++) {
        t->grad.weight[i] /= examples;
    }
    for (size_t i = 0; i < a->d_llm; i++) {
        t->grad.bias[i] = (float)(t->bias_grad[i] / (double)count);
    }
    adamw_step(t->vlm.compute, a->weight, t->grad.weight, t->m.weight, t->v.weight, n, lr, 0.9,
               0.999, 1e-8, 0.01, t->step + 1);
    adamw_step(t->vlm.compute, a->bias, t->grad.bias, t->m.bias, t->v.bias, a->d_llm, lr, 0.9,
               0.999, 1e-8, 0.01, t->step + 1);
}

static void train_keep_row(Trainer *t, TrainRow row) {
    t->rows = arena_grow(t->arena, t->rows, &t->row_capacity, (size_t)t->step + 1, sizeof *t->rows);
    t->rows[t->step++] = row;
}

/* ---- checkpoints: everything that the rest of the run depends on, in one safetensors file ---- */

enum {
    CHECKPOINT_NUMBERS = 6
};

static const char *const checkpoint_names[] = {
    "weight", "bias", "exp_avg.weight", "exp_avg.bias", "exp_avg_sq.weight", "exp_avg_sq.bias"};

static void checkpoint_parts(Trainer *t, float *parts[6]) {
    const Adapter *all[] = {&t->vlm.adapter, &t->m, &t->v};
    for (size_t i = 0; i < 3; i++) {
        parts[2 * i] = all[i]->weight;
        parts[2 * i + 1] = all[i]->bias;
    }
}

static void checkpoint_write(Trainer *t, const char *path) {
    TensorWriter *w = tensor_writer_open(path);
    size_t shape[2] = {t->vlm.adapter.d_llm, t->vlm.adapter.d_vit};
    uint64_t numbers[CHECKPOINT_NUMBERS] = {t->step,     t->steps,  t->epoch,
                                            t->position, t->usable, t->data.count};
    float *parts[6];
    checkpoint_parts(t, parts);
    for (int i = 0; i < 6; i++) {
        tensor_writer_declare(w, checkpoint_names[i], DTYPE_F32, i % 2 == 0 ? 2 : 1, shape);
    }
    tensor_writer_declare(w, "numbers", DTYPE_I64, 1, (size_t[]){CHECKPOINT_NUMBERS});
    tensor_writer_declare(w, "settings", DTYPE_U8, 1, (size_t[]){64});
    tensor_writer_declare(w, "rows", DTYPE_U8, 2, (size_t[]){(size_t)t->step, sizeof(TrainRow)});
    for (int i = 0; i < 6; i++) {
        size_t n = i % 2 == 0 ? shape[0] * shape[1] : shape[0];
        tensor_writer_data(w, parts[i], n * sizeof(float));
    }
    tensor_writer_data(w, numbers, sizeof numbers);
    tensor_writer_data(w, t->settings, 64);
    tensor_writer_data(w, t->rows, (size_t)t->step * sizeof(TrainRow));
    tensor_writer_commit(w);
}

static void checkpoint_load(Trainer *t, const TensorStore *store) {
    size_t shape[2] = {t->vlm.adapter.d_llm, t->vlm.adapter.d_vit};
    uint64_t numbers[CHECKPOINT_NUMBERS];
    float *parts[6];
    checkpoint_parts(t, parts);
    const Tensor *settings = tensors_find(store, "settings"), *rows = tensors_find(store, "rows"),
                 *stored = tensors_find(store, "numbers");
    if (settings == NULL || settings->dtype != DTYPE_U8 || settings->count != 64 ||
        stored == NULL || stored->dtype != DTYPE_I64 || stored->count != CHECKPOINT_NUMBERS ||
        rows == NULL || rows->dtype != DTYPE_U8 || rows->rank != 2 ||
        rows->shape[1] != sizeof(TrainRow)) {
        fail(STATUS_INPUT, "%s: not a checkpoint of this program", store->path);
    }
    if (memcmp(settings->data, t->settings, 64) != 0) {
        fail(STATUS_INPUT,
             "%s: was written by a run with other inputs or options: give the same ones, or leave "
             "--resume out to start anew",
             store->path);
    }
    memcpy(numbers, stored->data, sizeof numbers);
    if (numbers[0] != rows->shape[0] || numbers[0] > numbers[1] || numbers[3] > t->data.count ||
        numbers[5] != t->data.count) {
        fail(STATUS_INPUT, "%s: its step numbers contradict each other", store->path);
    }
    for (int i = 0; i < 6; i++) {
        const Tensor *tensor = tensors_need(store, checkpoint_names[i], i % 2 == 0 ? 2 : 1, shape);
        weight_widen(parts[i], (Weight){tensor->data, tensor->dtype}, 0, tensor->count);
    }
    t->rows = arena_grow(t->arena, NULL, &t->row_capacity, rows->shape[0] + 1, sizeof *t->rows);
    memcpy(t->rows, rows->data, rows->shape[0] * sizeof(TrainRow));
    t->step = numbers[0];
    t->steps = numbers[1];
    t->epoch = numbers[2];
    t->position = numbers[3];
    t->usable = numbers[4];
}

/* What must be equal for two runs to be the same run, as one digest. */
static void train_settings(Trainer *t) {
    const TrainOptions *o = t->options;
    char data[65], init[65] = "";
    sha256_file(o->data, data);
    if (o->init != NULL) {
        sha256_file(o->init, init);
    }
    char text[1024];
    int length = snprintf(text, sizeof text,
                          "%s %s %d %d %d %a %a %a %zu %zu %zu %zu %zu %" PRIu64 " %zu %zu %zu %zu",
                          data, init, o->shuffle, o->softcap, (int)o->image_text, o->lr, o->min_lr,
                          o->warmup, o->batch, o->accumulate, o->epochs, o->steps, o->tokens,
                          o->seed, t->vlm.llm.config.n_layers, t->vlm.llm.config.d_vocab,
                          t->vlm.vit.config.n_layers, t->vlm.vit.config.n_patches);
    Sha256 sha;
    sha256_start(&sha);
    sha256_add(&sha, text, (size_t)length);
    for (size_t i = 0; i < t->vlm.llm.store.map_count;
         i++) { /* sizes stand for the models themselves */
        uint64_t size = t->vlm.llm.store.maps[i].size;
        sha256_add(&sha, &size, sizeof size);
    }
    sha256_end(&sha, t->settings);
}

/* ---- output ---- */

static void train_write_csv(const Trainer *t, const char *path) {
    OutFile *out = out_open(path);
    Csv csv = csv_start(out->stream, "step,epoch,loss,lr,tokens");
    for (size_t i = 0; i < t->step; i++) {
        csv_int(&csv, (int64_t)i + 1);
        csv_int(&csv, (int64_t)t->rows[i].epoch + 1);
        csv_double(&csv, t->rows[i].loss);
        csv_double(&csv, t->rows[i].lr);
        csv_int(&csv, (int64_t)t->rows[i].tokens);
        csv_end(&csv);
    }
    out_commit(out);
}

/* ---- the run ---- */

static void adapter_layout(Adapter *adapter, size_t d_llm, size_t d_vit, Arena *arena) {
    adapter->d_llm = d_llm;
    adapter->d_vit = d_vit;
    adapter->weight = arena_floats(arena, d_llm, d_vit);
    adapter->bias = arena_floats(arena, d_llm, 1);
}

static void train_layout(Arena *arena, void *user) {
    Trainer *t = user;
    const LlmConfig *llm = &t->vlm.llm.config;
    size_t d_llm = llm->d_model, d_vit = t->vlm.vit.config.d_model,
           patches = t->vlm.vit.config.n_patches;
    size_t longest = patches + t->options->tokens, rows = t->micro * longest;
    LlmPlan plan = {.max_rows = rows,
                    .max_sequence = longest,
                    .max_sequences = t->micro,
                    .max_logits = t->max_logits,
                    .backward = true};
    t->run = llm_run_layout(&t->vlm.llm, t->vlm.compute, &plan, arena);
    adapter_layout(&t->vlm.adapter, d_llm, d_vit, arena);
    adapter_layout(&t->grad, d_llm, d_vit, arena);
    adapter_layout(&t->m, d_llm, d_vit, arena);
    adapter_layout(&t->v, d_llm, d_vit, arena);
    t->bias_grad = arena_alloc(arena, d_llm, sizeof(double));
    t->sequence = arena_alloc(arena, t->micro, sizeof(Sequence));
    t->features = arena_alloc(arena, t->micro * patches * d_vit, sizeof(float));
    t->images = arena_alloc(arena, t->micro * patches * d_llm, sizeof(float));
    t->dimages = arena_alloc(arena, t->micro * patches * d_llm, sizeof(float));
    t->ids = arena_alloc(arena, rows, sizeof(int32_t));
    t->start = arena_alloc(arena, t->micro + 1, sizeof(size_t));
    t->head_rows = arena_alloc(arena, rows, sizeof(size_t));
    t->targets = arena_alloc(arena, rows, sizeof(int32_t));
    t->weights = arena_alloc(arena, rows, sizeof(float));
    t->losses = arena_alloc(arena, rows, sizeof(double));
    t->logits = arena_alloc(arena, t->max_logits * llm->d_vocab, sizeof(float));
    t->dlogits = arena_alloc(arena, t->max_logits * llm->d_vocab, sizeof(float));
    t->skip = arena_alloc(arena, t->data.count + 1, 1);
}

/* The largest micro-batch whose memory stays within micro_bytes; at least one example. */
static size_t train_plan(Trainer *t) {
    size_t step = t->options->batch * t->options->accumulate;
    t->max_logits = 16;
    t->micro = t->options->batch < step ? t->options->batch : step;
    for (;; t->micro = (t->micro + 1) / 2) {
        size_t bytes = arena_measure(train_layout, t);
        if (t->micro == 1 || bytes <= micro_bytes) {
            return bytes;
        }
    }
}

size_t train_memory(const Compute *compute, const TrainOptions *options, const Llm *llm,
                    const Vit *vit) {
    Trainer t = {.options = options, .vlm = {.compute = compute, .llm = *llm, .vit = *vit}};
    return train_plan(&t);
}

static void train_open(Trainer *t, const Compute *compute) {
    const TrainOptions *o = t->options;
    if (o->batch == 0 || o->accumulate == 0 || (o->epochs == 0 && o->steps == 0) || o->tokens < 2 ||
        o->batch > 4096 || o->accumulate > 65536 || o->tokens > (1u << 20)) {
        fail(STATUS_INPUT, "--batch, --accumulate and --epochs must be at least 1, --tokens 2");
    }
    if (!(o->warmup >= 0.0 && o->warmup <= 1.0) || !(o->lr >= 0.0) || !(o->min_lr >= 0.0)) {
        fail(STATUS_INPUT, "--warmup must lie in [0, 1], --lr and --min-lr must not be negative");
    }
    path_make_directory(o->out);
    vlm_open(&t->vlm, t->arena, compute, &(VlmPaths){.llm = o->llm, .vision = o->vision});
    t->vlm.image_text = o->image_text;
    json_array_open(&t->data, t->arena, o->data);
    (void)train_plan(t);
    t->block = arena_plan(train_layout, t);
    if (o->init != NULL) {
        arena_reset(t->examples);
        Adapter read =
            adapter_read(t->examples, o->init, t->vlm.adapter.d_llm, t->vlm.adapter.d_vit);
        memcpy(t->vlm.adapter.weight, read.weight, read.d_llm * read.d_vit * sizeof(float));
        memcpy(t->vlm.adapter.bias, read.bias, read.d_llm * sizeof(float));
    } else {
        adapter_init(&t->vlm.adapter, o->seed);
    }
    train_settings(t);
}

/* Without --steps the length of the schedule depends on how many examples can be used: look at each
 * once. */
static void train_count(Trainer *t) {
    Progress progress = progress_start("reading", "examples", 0, t->data.count, t->console->quiet);
    for (size_t i = 0; i < t->data.count; i++) {
        arena_reset(t->examples);
        t->usable += train_example(t, i, NULL, NULL) ? 1 : 0;
        progress_set(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    size_t per_step = t->options->batch * t->options->accumulate;
    t->steps = t->options->epochs * ((t->usable + per_step - 1) / per_step);
}

static void train_save(Trainer *t, const char *checkpoint, const char *csv) {
    checkpoint_write(t, checkpoint);
    train_write_csv(t, csv);
}

static void train_loop(Trainer *t, uint64_t *order, const char *checkpoint, const char *csv,
                       FILE *timing) {
    const TrainOptions *o = t->options;
    Progress progress = progress_start("training", "steps", t->step, t->steps, t->console->quiet);
    size_t idle_epochs = 0;
    train_order(t, order);
    while (t->step < t->steps) {
        double loss = 0.0, before = progress_now();
        TrainRow row = {.epoch = t->epoch};
        memset(t->grad.weight, 0, t->grad.d_llm * t->grad.d_vit * sizeof(float));
        memset(t->bias_grad, 0, t->grad.d_llm * sizeof(double));
        size_t count = train_collect(t, order, &loss, &row.tokens);
        if (count > 0) {
            idle_epochs = 0;
            row.lr = train_lr(o, t->step, t->steps);
            row.loss = loss / (double)count;
            if (!isfinite(row.loss)) {
                fail(STATUS_INPUT, "step %" PRIu64 ": the loss is not finite; lower --lr",
                     t->step + 1);
            }
            train_update(t, count, row.lr);
            train_keep_row(t, row);
            fprintf(timing, "%" PRIu64 ",%.3f\n", t->step, progress_now() - before);
            char note[32];
            snprintf(note, sizeof note, "loss %.4f", row.loss);
            progress_set(&progress, t->step, note);
        } else if (++idle_epochs > 1) {
            fail(STATUS_INPUT, "%s: no example can be used", o->data);
        }
        if (t->position >= t->data.count) {
            if (o->steps == 0 && t->epoch + 1 >= o->epochs) {
                break;
            }
            t->epoch++;
            t->position = 0;
            train_order(t, order);
        }
        if (o->save_every > 0 && t->step % o->save_every == 0 && count > 0 && t->step < t->steps) {
            train_save(t, checkpoint, csv);
        }
    }
    progress_end(&progress);
}

static void train_report(const Trainer *t) {
    double *loss = arena_alloc(t->arena, (size_t)t->step, sizeof(double));
    for (size_t i = 0; i < t->step; i++) {
        loss[i] = t->rows[i].loss;
    }
    report_train(t->options->out, loss, (size_t)t->step);
}

static void train_tell(const Trainer *t) {
    console_line(t->console, "%" PRIu64 " steps, %" PRIu64 " epochs", t->step, t->epoch + 1);
    if (t->without_image > 0) {
        console_line(t->console, "left out %zu examples without an image", t->without_image);
    }
    if (t->n_failed > 0) {
        console_line(t->console, "left out %zu examples whose image cannot be read or is not one:",
                     t->n_failed);
    }
    for (const struct Failure *f = t->failed; f != NULL; f = f->next) {
        console_line(t->console, "  %s", f->text);
    }
}

static void train_run(Trainer *t, const Compute *compute) {
    const TrainOptions *o = t->options;
    train_open(t, compute);
    char *checkpoint = path_join(t->arena, o->out, "checkpoint.safetensors");
    char *csv = path_join(t->arena, o->out, "train.csv");
    char *timing = path_join(t->arena, o->out, "timing.csv");
    char *final = path_join(t->arena, o->out, "adapter.safetensors");
    uint64_t *order = arena_alloc(t->arena, t->data.count + 1, sizeof(uint64_t));
    if (o->resume && path_exists(checkpoint)) {
        Arena *scratch = arena_new();
        TensorStore store;
        tensors_open(&store, scratch, checkpoint);
        checkpoint_load(t, &store);
        arena_free(scratch);
        console_line(t->console, "resuming after step %" PRIu64 " of %" PRIu64, t->step, t->steps);
    } else if (o->steps > 0) {
        t->steps = o->steps;
    } else {
        train_count(t);
    }
    if (t->steps == 0) {
        fail(STATUS_INPUT, "%s: no example can be used", o->data);
    }
    OutFile *times = out_open(timing);
    fprintf(times->stream, "step,seconds\n");
    train_loop(t, order, checkpoint, csv, times->stream);
    out_commit(times);
    train_save(t, checkpoint, csv);
    train_report(t);
    adapter_write(&t->vlm.adapter, final);
    train_tell(t);
}

void adapter_train(const Compute *compute, const TrainOptions *options, const Console *console) {
    Trainer t = {.options = options, .console = console, .arena = arena_new()};
    t.failed_end = &t.failed;
    t.examples = arena_within(t.arena);
    train_run(&t, compute);
    arena_free(t.block);
    arena_free(t.arena);
}

/* adapter.h: the vision-language sequence, the adapter and its training, generation and evaluation.
 * Floor 3 (Mapping, arXiv 2506.11976). */
#ifndef REFSAE_ADAPTER_H
#define REFSAE_ADAPTER_H

#include "image.h"
#include "json.h"
#include "kernels.h"
#include "llm.h"
#include "tokenizer.h"
#include "vit.h"

/* ---- conversations and sequences ---- */

typedef struct Turn {
    const char *text;
    size_t length;
    bool model; /* false: the user's */
} Turn;

typedef struct Conversation { /* one example of LLaVA JSON */
    const char *id, *image;   /* image NULL: none, else the first; id "" : none */
    size_t n_images;          /* more than one: no example for this adapter */
    Turn *turns;
    size_t count;
} Conversation;

typedef struct Span {
    size_t begin, end; /* [begin, end) */
} Span;

/* Rows of one sequence: [bos] [n_image rows of the adapter, id -1] [rest]. */
typedef struct Sequence {
    int32_t *ids;
    size_t rows;
    size_t n_image; /* image rows are 1 .. n_image */
    Span *answers;  /* rows to predict of each model turn that keeps one (a row is predicted by the
                       one before) */
    size_t n_answers;
    size_t prompt_rows; /* rows before the first answer's first token */
} Sequence;

typedef enum ImageText {
    IMAGE_TEXT_KEEP,
    IMAGE_TEXT_DROP
} ImageText;

/* `element` is one member of the array; messages start with `name`. */
Conversation conversation_parse(Arena *arena, const Json *element, const char *name);

/* Its list of turns alone: members with "from" and "value", or "role" and "content". */
void conversation_parse_turns(Conversation *conversation, const Json *list, const char *name,
                              Arena *arena);

/* ---- the adapter: y[n, d_llm] = x[n, d_vit] W^T + b ---- */

typedef struct Adapter {
    float *weight, *bias; /* [d_llm, d_vit], [d_llm] */
    size_t d_llm, d_vit;
} Adapter;

/* What stands before "weight" and "bias" in a file: "module." where the released code trained on
 * several devices, else "". */
const char *adapter_prefix(const TensorStore *store);
Adapter adapter_read(Arena *arena, const char *path, size_t d_llm, size_t d_vit);
void adapter_write(const Adapter *adapter, const char *path);
void adapter_init(Adapter *adapter,
                  uint64_t seed); /* U(-1/sqrt(d_vit), 1/sqrt(d_vit)), weight then bias */
void adapter_forward(const Compute *compute, const Adapter *adapter, const float *x, float *y,
                     size_t rows);

/* ---- what every vision-language command opens ---- */

typedef struct Vlm {
    const Compute *compute;
    Llm llm;
    Vit vit;
    Tokenizer *tokenizer;
    Preprocess preprocess;
    Adapter adapter;
    Arena *arena;   /* the caller's: all that is opened lives there */
    Arena *scratch; /* one image or conversation at a time */
    VitRun *vit_run;
    float *features; /* [n_patches, d_vit] */
    ImageText image_text;
} Vlm;

typedef struct VlmPaths { /* each may be NULL: not opened */
    const char *llm, *vision, *adapter;
    bool without_tokenizer;
} VlmPaths;

void vlm_open(Vlm *vlm, Arena *arena, const Compute *compute, const VlmPaths *paths);

/* Decodes, preprocesses and runs the tower (hooks may be NULL): the adapter's input, [n_patches,
 * d_vit], in vlm->features. */
void vlm_image(Vlm *vlm, const char *path, const Hooks *hooks);

/* Renders turns 0 .. count - 1 in Gemma's chat form and tokenizes the whole. A conversation whose
 * last turn is the user's ends in "<start_of_turn>model\n", ready for an answer. limit: text tokens
 * kept, <bos> counted (0: all). image: room for the image rows after <bos>. */
Sequence vlm_sequence(const Vlm *vlm, const Turn *turns, size_t count, bool image, size_t limit,
                      Arena *arena);
/* The same for text that is used as it stands. */
Sequence vlm_sequence_text(const Vlm *vlm, const char *text, size_t length, bool bos, bool image,
                           Arena *arena);

/* ---- adapter outputs of a list of images, and the control that permutes them ---- */

enum {
    IMAGE_POOL = 16
}; /* images whose rows are held at once */

typedef struct ImagePool {
    Vlm *vlm;
    char **paths;
    size_t count, capacity;
    size_t held[IMAGE_POOL]; /* index + 1 of the image in each place; 0: none */
    float *rows;             /* [IMAGE_POOL, n_patches, d_llm] */
    Arena *arena;
} ImagePool;

void image_pool_open(ImagePool *pool, Arena *arena, Vlm *vlm);
/* The index of `path`, which is decoded on the spot if it is new. An image that cannot be read
 * fails and is not added. */
size_t image_pool_add(ImagePool *pool, const char *path);
/* out[n_patches, d_llm]: the adapter's output for image `index`. */
void image_pool_rows(ImagePool *pool, size_t index, float *out);
/* The control: position p of out holds position p of another image, drawn anew for each position
 * from the next IMAGE_POOL - 1 of the list (cyclic). With one image alone there is nothing to
 * permute: an error. */
void image_pool_permuted(ImagePool *pool, size_t index, uint64_t seed, float *out);

/* A hook that sets the image rows at blocks.0.hook_resid_pre, calls `next` (may be NULL) and, in
 * backward, copies their gradient out. */
typedef struct ImageHook {
    const LlmBatch *batch;
    size_t n_image, d_model;
    const float *images; /* [n_sequences, n_image, d_model]; NULL: none */
    float *gradient;     /* the same shape, or NULL */
    const Hooks *next;
} ImageHook;

Hooks image_hooks(ImageHook *hook);

/* ---- commands ---- */

typedef struct TrainOptions {
    const char *llm, *vision, *data, *images, *out, *init;
    bool resume, shuffle, strict, softcap;
    ImageText image_text;
    double lr, min_lr, warmup;
    size_t batch, accumulate, epochs, steps, tokens, save_every;
    uint64_t seed;
} TrainOptions;

/* Bytes of a run's one block; reads batch, accumulate and tokens, and of vit the sizes in its
 * config. */
size_t train_memory(const Compute *compute, const TrainOptions *options, const Llm *llm,
                    const Vit *vit);
void adapter_train(const Compute *compute, const TrainOptions *options, const Console *console);

typedef struct GenerateOptions {
    size_t max_new_tokens;
    Sampling sampling;
    uint64_t seed;
    bool stop_at_end_of_turn;
} GenerateOptions;

/* Continues `sequence` (images as in ImageHook, or NULL): the new tokens, in the arena, without the
 * one that stopped it. */
Tokens vlm_generate(Vlm *vlm, const Sequence *sequence, const float *images,
                    const GenerateOptions *options, Arena *arena);

typedef struct EvalOptions {
    const char *llm, *vision, *adapter, *questions, *images, *out;
    GenerateOptions generate;
    bool permute; /* control: every image row comes from another question's image */
    bool strict;
    ImageText image_text;
    uint64_t seed;
} EvalOptions;

void adapter_eval(const Compute *compute, const EvalOptions *options, const Console *console);

#endif

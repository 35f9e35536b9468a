/* data.h: what is handed in: options; conversations, questions with their answers and scores,
 * descriptions of features and verdicts on them; and how words are compared. Floor 9. */
#ifndef REFSAE_DATA_H
#define REFSAE_DATA_H

#include "checkpoint.h"
#include "json.h"
#include "sae_load.h"
#include "shard.h"

/* ---- options: what the commands are told about; a name means the same in all of them ---- */

typedef enum ImageText { /* the literal <image> in what the model reads */
    IMAGE_TEXT_KEEP,
    IMAGE_TEXT_DROP
} ImageText;

typedef struct Sampling {
    double temperature; /* 0: greedy (lowest id among equals) */
    size_t top_k;       /* 0: off */
    double top_p;       /* 1: off */
} Sampling;

typedef struct VlmOptions {
    const char *llm, *vision, *adapter, *saes, *data, *images, *questions, *out;
    int image_text; /* ImageText */
    bool strict;    /* what cannot be used ends the run, and is not left out */
    uint64_t seed;
    Shard *shard; /* NULL: the whole run */
    /* train */
    const char *init;
    bool resume;
    int shuffle, softcap; /* 1: yes, model; 0: no, off */
    double lr, min_lr, warmup;
    size_t batch, accumulate, epochs, steps, tokens, save_every;
    /* a prompt: one of ids, text, prompt with llm */
    const char *ids, *text, *prompt, *image;
    int bos; /* 1 yes, 0 no, -1 what the tokenizer's post-processor adds */
    bool chat;
    size_t max_new_tokens;
    Sampling sampling;
    bool permute_images; /* eval's control: every image row comes from another question's image */
    /* analyze */
    const char *layers;          /* "0,4-9"; NULL: every layer that has an SAE */
    const char *descriptions;    /* NULL: features are reported by number */
    const char *judge;           /* "lexical", or a file of verdicts */
    const char *write_questions; /* a file for what a judge is to decide; NULL: none */
    size_t examples, judge_examples, loss_examples;
    size_t features; /* reported of an example, layer and group */
    double max_frequency, max_density, converge;
    bool canonical;
    SaeOptions sae;
} VlmOptions;

/* ---- conversations ---- */

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

/* Turns have "from" and "value", or "role" and "content". */
Conversation conversation_read(Arena *arena, const JsonArrayFile *file, size_t index);
/* Messages of `--prompt`: a JSON list of turns if it begins with '[', else text that is the user's
 * one turn. trim: as Gemma's template, contents trimmed and roles that do not alternate refused. */
Conversation conversation_prompt(Arena *arena, const char *prompt, bool trim);
/* Puts "<image>\n" before the first user's turn if no turn has the literal. */
void conversation_place_image(Arena *arena, Conversation *conversation);
/* The turn with every literal <image> replaced by text[length]. */
Turn turn_replace_image(Arena *arena, const Turn *turn, const char *text, size_t length);

/* ---- questions: {"question_id", "image", "text", "answer" or "answers"} ---- */

typedef struct Question {
    const char *id, *image; /* id "": none */
    Turn text;
    const Json **answers; /* [n_answers] strings, numbers and booleans as Python's str() has them */
    size_t n_answers;
} Question;

typedef struct Scores { /* counts over the questions asked */
    size_t asked, skipped, with_answer;
    size_t exact;
    double vqa; /* sum of VQA accuracies */
    size_t yes_no, true_yes, false_yes, true_no, false_no;
} Scores;

/* `name` and `number`: file and line, for messages. */
Question question_parse(Arena *arena, const Json *line, const char *name, size_t number);
/* Counts the answer given (0-terminated); whether it is a reference answer exactly. */
bool score_answer(Scores *scores, const char *given, size_t length, const Question *question);
double exact_match(const Scores *scores); /* share of those with an answer; NaN of none */
/* permuted: the control, image tokens of other pictures; adapter_sha256 tells runs that belong
 * together. */
void scores_write(FILE *out, const Scores *scores, bool permuted, const char *adapter_sha256);

/* ---- features: what they are said to stand for ---- */

typedef struct Descriptions {
    const char **text; /* [d_sae], NULL where there is none */
    float *density;    /* [d_sae]: Neuronpedia's frac_nonzero */
} Descriptions;

/* Neuronpedia's exports of one layer, in directory/LAYER-.../: START-END.json of features; lists of
 * explanations (*.json) and batch-N.jsonl, one a line; each plain or packed by gzip. Without a
 * folder of the layer there are none. Two of them, features of another layer or outside of the SAE,
 * and a folder in which nothing is understood are STATUS_INPUT. */
Descriptions descriptions_read(Arena *arena, const char *directory, int layer, size_t d_sae);

typedef enum Verdict {
    VERDICT_NONE, /* counts as no */
    VERDICT_NO,
    VERDICT_YES
} Verdict;

/* Of a line of a judge's file; VERDICT_NONE: it cannot be read. */
Verdict verdict_read(const Json *line);

/* The lexical judge: true if a content word of `description` (at least three letters or digits, not
 * a function word and not a word that feature descriptions are made of, as "references to") has the
 * stem of a word of `answer`. */
bool lexical_match(const char *description, const char *answer);

/* ---- the adapter's file ---- */

typedef struct Adapter {
    float *weight, *bias; /* [d_llm, d_vit], [d_llm]; their names in the file */
    size_t d_llm, d_vit;
} Adapter;

size_t adapter_size(const Adapter *adapter); /* numbers of both */

/* What stands before their names: "module." where the released code trained on several devices,
 * else "". */
const char *adapter_prefix(const TensorStore *store);
/* Into an adapter that has its memory, of the size of `models` ("LLM and VISION", for messages).
 * Other shapes and values that are not finite are STATUS_INPUT. */
void adapter_read(Adapter *adapter, const char *path, const char *models);
void adapter_write(const Adapter *adapter, const char *path);

#endif

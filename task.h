/* task.h: tasks as data: from a JSON file to prompts with named positions and counterfactuals, and
 * prompts.jsonl, through which another implementation can be run on the same prompts. Floor 9. */
#ifndef REFSAE_TASK_H
#define REFSAE_TASK_H

#include "base.h"
#include "json.h"
#include "tokenizer.h"

typedef enum SageSplit {
    SAGE_TRAIN,
    SAGE_TEST,
    SAGE_SPLITS
} SageSplit;

typedef struct SageAttribute { /* or a filler: a name for what may stand in a slot */
    const char *name;
    const char **values;
    size_t count;
} SageAttribute;

typedef struct SageForm { /* a prompt, or one of its counterfactuals */
    int32_t *ids;
    size_t rows;
    size_t *positions;       /* [n_positions]: index into ids */
    int32_t *answer, *wrong; /* token ids; the probability of a list is the sum over it */
    size_t n_answer, n_wrong;
} SageForm;

typedef struct SagePrompt {
    const char *text;         /* without <bos> */
    size_t *values, *changed; /* [n_attributes]: place of the value, and of its counterfactual */
    SageForm clean, *counterfactual;
    size_t *places; /* [n_places]: attributes whose slots stand in the text of clean, in its order;
                       none where no template of the split gives the text */
    size_t n_places;
} SagePrompt;

typedef struct SageLabel { /* what the task says of values: "gender" */
    const char *name;
    const char **texts; /* [count]: distinct, in the order in which the file names them */
    size_t count;
    int **of; /* [n_attributes][count of its values]: place in texts; -1: none */
} SageLabel;

typedef struct SageDropped { /* no single token in this tokenizer */
    const char *attribute, *value;
} SageDropped;

typedef struct SageTask {
    const char *name, *file;
    SageAttribute *attributes;
    size_t n_attributes;
    bool *distinct; /* [n_attributes, n_attributes]: never the same value */
    int form;       /* the attribute that picks a template's variant; -1: none */
    const Json *templates[SAGE_SPLITS];  /* texts, or objects by value of the form attribute */
    SageAttribute *fillers[SAGE_SPLITS]; /* [n_fillers] */
    size_t n_fillers;
    const char **positions;
    size_t n_positions;
    SageLabel *labels;
    size_t n_labels;
    SagePrompt *prompts[SAGE_SPLITS];
    size_t n_prompts[SAGE_SPLITS];
    size_t n_unmatched; /* test prompts, read, whose text no template gives: without places */
    SageDropped *dropped;
    size_t n_dropped;
    const Json *json;
    Arena *arena; /* of sage_task_open, for prompts */
} SageTask;

typedef struct SageKind { /* a kind of predicate: "SUBJECT=value ALSO", one for each value */
    const char *subject, *also;
    const char *const *values;
    size_t n;
    uint64_t *holds; /* [n, words]: bit p % 64 of word p / 64: it holds in test prompt p */
} SageKind;

typedef struct SageKinds {
    SageKind *list; /* the first n_attributes: values of attributes */
    size_t count, words;
    uint64_t *order; /* [test prompts]: whose values each has by chance */
} SageKinds;

/* name: ioi, agreement, induction, greater-than, or a file. Drops values that are no single token.
 * All of the task lives in the arena, prompts too. A mistake in the file is STATUS_INPUT. */
void sage_task_open(SageTask *task, Arena *arena, const char *name, const Tokenizer *tokenizer);
/* Draws prompts; bos: id put before each, -1: none. */
void sage_prompts_draw(SageTask *task, const Tokenizer *tokenizer, int32_t bos,
                       const size_t n[SAGE_SPLITS], uint64_t seed);
/* d_vocab: of the model. Refuses ids that are not those of their text. */
void sage_prompts_read(SageTask *task, const char *path, const Tokenizer *tokenizer,
                       size_t d_vocab);
void sage_prompts_write(const SageTask *task, const char *path);
/* Kinds of predicates and where each holds; the seed is of `order`. */
SageKinds *sage_kinds(const SageTask *task, uint64_t seed, Arena *arena);

#endif

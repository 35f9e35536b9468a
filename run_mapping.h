/* run_mapping.h: what the Mapping commands open and pass over: training, visual questions, the
 * layer analysis; and prompts of a command line, with or without an image. Floor 11. */
#ifndef REFSAE_RUN_MAPPING_H
#define REFSAE_RUN_MAPPING_H

#include "adapter.h"

/* ---- models ---- */

/* What is named of llm, vision and, with both, adapter. All that it opens lives in the arena. */
void vlm_open(Vlm *vlm, Arena *arena, const Compute *compute, const VlmOptions *options);
/* Decodes, preprocesses and runs the tower (hooks may be NULL): the adapter's input, [n_patches,
 * d_vit], in vlm->features. */
void vlm_image(Vlm *vlm, const char *path, const Hooks *hooks);

/* ---- prompts of a command line ---- */

/* "2,15,7"; option stands in messages. */
int32_t *token_ids_parse(Arena *arena, const char *text, const char *option, size_t *count);
/* Opens what the prompt names; then its rows (at least one). With an image the prompt is a
 * conversation, and "<image>\n" is put before the first user's turn if no turn has the literal. */
void prompt_open(Vlm *vlm, Arena *arena, const Compute *compute, const VlmOptions *options);
Sequence prompt_sequence(const Vlm *vlm, const VlmOptions *options, Arena *arena);

/* ---- commands: results in the arena, for report.h ---- */

/* Prints what continues the prompt; json: {"text", "ids"}. */
void generate_command(const Compute *compute, const VlmOptions *options, bool json, FILE *out);
/* adapter.safetensors, checkpoint.safetensors, train.csv and timing.csv in options->out. */
TrainResult run_train(Arena *arena, const Compute *compute, const VlmOptions *options,
                      const Console *console);
/* answers.jsonl and scores.json in options->out. */
void run_eval(const Compute *compute, const VlmOptions *options, const Console *console);
/* features.jsonl in options->out and, if they are asked for, the questions for a judge. */
AnalyzeResult run_analyze(Arena *arena, const Compute *compute, const VlmOptions *options,
                          const Console *console);

#endif

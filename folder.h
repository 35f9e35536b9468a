/* folder.h: one page from the files of folders, and what it shares with those who write them. It is
 * made from files alone, so that one of several folders is made as that of one. Floor 13. */
#ifndef REFSAE_FOLDER_H
#define REFSAE_FOLDER_H

#include "adapter.h"
#include "figure.h"
#include "json.h"

typedef struct LayerMetric {
    const char *name, *title, *label;
} LayerMetric;
extern const LayerMetric layer_metrics[METRICS];

/* "heat_IO.svg"; a name that no file should bear is made safe and gets its number. */
char *figure_name(Arena *arena, const char *what, const char *name, size_t attribute);
/* "L3.H1 z" (head NaN: "L3 mlp_out"), with a space that does not break, of a hook point's name. */
char *node_label(Arena *arena, const char *hook, double head);
/* "X_ci" stands beside the figure X. */
bool figure_is_interval(const Json *value);
/* Why sufficiency and necessity in a cross-section, or (attribute not NULL) edits of an attribute
 * there, cannot tell methods apart; NULL if they can. */
const char *untold(const Json *cross, const char *attribute, Arena *arena);
/* "3", or with a published table "none (published: 22)". */
char *convergence_text(Arena *arena, const Json *convergence, const char *key);

/* manifest.json of the folder `out`: the command, and the digests of all that files_noted says it
 * read and wrote. Runs of other commands keep their parts; figures that only an earlier run of the
 * same command drew are removed. Nothing in it depends on time or machine. */
void manifest_write(const char *out, uint64_t seed, const Console *console);
/* The same, and report.html. */
void folder_page(const char *out, uint64_t seed, const Console *console);
/* Says which files are not as manifest.json has them (then STATUS_CHECK), or that all are, and a
 * digest of each run's outputs. */
void folder_verify(const char *directory, const Console *console);
/* One page of what lies in `directories`: of each train.csv, scores.json, layers.json and sage.json
 * with their figures, whichever are there, and from its manifest.json how it was made. `out` may
 * lie in one of them; merging once more gives the same page. Nothing in any of them is an error. */
void folders_merge(const char *out, const char *title, char *const *directories, size_t count,
                   const Console *console);

#endif

/* folder.h: one page from the files of folders, and what it shares with those who write them. A
 * page is made from files alone, so that one of several folders is made as that of one. Floor 13.
 */
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
/* "X_ci" stands beside the figure X. */
bool figure_is_interval(const Json *value);
/* Why sufficiency and necessity in a cross-section, or (attribute not NULL) edits of an attribute
 * there, cannot tell methods apart; NULL if they can. */
const char *untold(const Json *cross, const char *attribute, Arena *arena);
/* "3", or with a published table "none (published: 22)". */
char *convergence_text(Arena *arena, const Json *convergence, const char *key);

/* report.html of the folder `out`, up to how it came about: that follows, up to this mark. */
#define FOLDER_MADE_END "<!--/refsae made-->\n"
Page folder_page(const char *out, const char *title, const char *command, Arena *arena);
/* One page of what lies in `directories`: of each train.csv, scores.json, layers.json and sage.json
 * with their figures, whichever are there, and from its report.html how it was made. `out` may be
 * one of these reports; merging once more gives the same page. */
void folders_merge(const char *out, const char *title, char *const *directories, size_t count);

#endif

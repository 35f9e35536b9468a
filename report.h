/* report.h: results as files: CSV and JSON for programs, SVG figures and, by folder.h, one HTML
 * page for people. Floor 14.
 *
 * Files appear whole or not at all; the same results give the same bytes. */
#ifndef REFSAE_REPORT_H
#define REFSAE_REPORT_H

#include "adapter.h"
#include "sage.h"

/* loss.svg in options->out: the loss of each step. */
void report_train(const TrainResult *result);
/* A table like weights/mapping_published.csv, with all layers that it has; path NULL: none. */
LayerTable published_read(Arena *arena, const char *path);
/* layers.csv, layers.json, mse.svg, sparsity.svg, match.svg and report.html in options->out. */
void report_analyze(const AnalyzeResult *result, const LayerTable *published);
/* cross_sections.csv, sage.csv, sage.json, figures and report.html in options->out. */
void report_sage(const SageResult *result);
/* What of these follows from sage.json in `out`: sage.csv and all figures but the heat maps.
 * t: from which F1 on a feature stands for something. */
void report_sage_figures(const char *out, double t);

#endif

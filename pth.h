/* pth.h: what torch.save writes since PyTorch 1.6: a zip with one pickle and a member for each
 * storage. The pickle is read, never executed. Floor 0. */
#ifndef REFSAE_PTH_H
#define REFSAE_PTH_H

#include "tensor_parts.h"
#include "zip.h"

/* Whether the zip holds a data.pkl where torch.save puts it. */
bool pth_is(const Zip *zip);

/* Adds every tensor that is reachable from the pickled object through dicts, lists and tuples. Its
 * name is its path of keys and indices, joined with dots; of a checkpoint, the state_dict or
 * model_state_dict of the outermost dict keeps its own names. Data stays in the map; where strides
 * leave gaps, repeat or reorder, it is a row-major copy in the arena. */
void pth_read(const Zip *zip, const FileMap *map, const char *path, Arena *arena, Arena *scratch,
              TensorList *list);

/* Fails if the file begins like a pickle: torch.save's form before zip files, or any other. */
void pth_refuse_legacy(const FileMap *map, const char *path);

#endif

/* pickle.h: what torch.save writes since PyTorch 1.6, to a list of tensors: a zip with one pickle
 * and a member for each storage. The pickle is read, never executed. Floor 5. */
#ifndef REFSAE_PICKLE_H
#define REFSAE_PICKLE_H

#include "tensor.h"

/* Whether the zip holds a data.pkl where torch.save puts it. */
bool pickle_is(const Zip *zip);

/* Adds every tensor that is reachable from the pickled object through dicts, lists and tuples. Its
 * name is its path of keys and indices, joined with dots; of a checkpoint, the state_dict or
 * model_state_dict of the outermost dict keeps its own names. Data stays in the map; where strides
 * leave gaps, repeat or reorder, it is a row-major copy in the arena. */
void pickle_read(TensorStore *store, const Zip *zip, size_t file_size, const char *path);

/* Fails if the file begins like a pickle: torch.save's form before zip files, or any other. */
void pickle_refuse(const FileMap *map, const char *path);

#endif

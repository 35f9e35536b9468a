/* shard.h: one run's work shared out among several. Floor 2.
 *
 * Shard I of N computes the I-th part of each list of units of work and writes what it finds, unit
 * after unit, into a journal in OUT/shard-I-of-N; where journals are read, they stand in place of
 * computing. So the rest of a run is the same, from memory or from any number of journals.
 *
 * Where a function takes a Shard, NULL is a whole run: it computes all, and nothing is written. */
#ifndef REFSAE_SHARD_H
#define REFSAE_SHARD_H

#include "base.h"

typedef struct Shard {
    Arena *arena;
    const char *out, *folder; /* of the whole run; OUT/shard-I-of-N */
    size_t index, count;      /* index from 1; 0: a merge of all of them */
    const char *settings;     /* a line each of what must be equal in all of them */
    const char *command;      /* the whole run's words, each with a 0 byte after it */
    size_t command_size;
    double wait; /* seconds until a journal that is not there is given up */
    bool whole;  /* what is written or read is the run's journal, not a step's */
    OutFile *own;
    Sha256 sha;               /* of what was written into it */
    Arena *reading;           /* holds the journals */
    struct Journal *journals; /* [count]; NULL: none is being read */
} Shard;

typedef enum ShardTurn {
    SHARD_COMPUTE,
    SHARD_SKIP, /* another one does */
    SHARD_READ
} ShardTurn;

/* index 0: of those in `out`, whose number is found there. */
Shard *shard_open(Arena *arena, const char *out, size_t index, size_t count);
/* The words of the run that the shards in a folder are parts of. */
char **shard_command(Arena *arena, const Shard *shard, int *count);
bool shard_is_part(const Shard *shard);
bool shard_is_merge(const Shard *shard);
/* Begins the run's journal, or the reading of all of them. */
void shard_start(Shard *shard);
/* Of writing, or of reading: all was read. A run's journal ends with the names of the inputs that
 * were noted, for the merge, which does not open all that the shards did. */
void shard_end(Shard *shard);
void shard_write(Shard *shard, const char *name); /* begins a step's journal */
/* Begins to read the journals of this name of all shards. One that is not there within shard->wait
 * seconds, or has other settings, is an error. */
void shard_read(Shard *shard, const char *name);
/* Who computes unit i of n. */
ShardTurn shard_turn(const Shard *shard, size_t i, size_t n);
/* What unit i of n came to: written, or read into data[size]. */
void shard_value(Shard *shard, size_t i, size_t n, void *data, size_t size);
/* The same where the size varies: data, or what stands in the journal (not aligned). */
const void *shard_bytes(Shard *shard, size_t i, size_t n, const void *data, size_t *size);
void shard_error(Shard *shard, size_t i, size_t n, Error *error); /* the same */
/* The units [*begin, *end) of n that are computed here. */
void shard_range(const Shard *shard, size_t n, size_t *begin, size_t *end);
/* shard_value of each of n rows[n, size]. */
void shard_rows(Shard *shard, void *rows, size_t n, size_t size);
/* Copies a file that all shards have alike (same: else an error), or the first's, to `out`. */
void shard_copy(const Shard *shard, const char *name, bool same);

/* SHA-256 of a file; of a folder: names, sizes and last 4096 bytes of all files below it. */
void path_digest(const char *path, char hex[65]);
/* Two texts with the same lines in the same order: the first line in which they differ; false: none
 * does. On return *a and *b begin with it. */
bool lines_differ(const char **a, const char **b, int *a_length, int *b_length);

#endif

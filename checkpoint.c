/* checkpoint.c: see checkpoint.h. An index is JSON {"weight_map": {name of a tensor: shard}}. */
#include "checkpoint.h"

#include "hooks.h"
#include "json.h"
#include "pickle.h"

#include <stdlib.h>
#include <string.h>

static const FileMap *add_map(TensorStore *store, FileMap map) {
    store->maps = arena_grow(store->arena, store->maps, &store->map_room, store->map_count + 1,
                             sizeof *store->maps);
    store->maps[store->map_count] = map;
    return &store->maps[store->map_count++];
}

/* ---- index and shards ---- */

static int compare_shards(const void *a, const void *b) {
    return strcmp((*(const Json *const *)a)->text, (*(const Json *const *)b)->text);
}

/* A shard lies beside its index; a name that leads elsewhere is not followed. */
static bool shard_name_is_plain(const Json *value) {
    return json_is(value, JSON_STRING) && value->length != 0 &&
           strlen(value->text) == value->length && strpbrk(value->text, "/\\") == NULL &&
           strcmp(value->text, ".") != 0 && strcmp(value->text, "..") != 0;
}

/* Takes from each shard the tensors that the index places there. */
static void index_read(TensorStore *store, const FileMap *map, const char *path) {
    Arena *scratch = arena_new();
    const Json *root = json_parse(scratch, (const char *)map->data, map->size, path);
    const Json *weights = json_get(root, "weight_map");
    if (!json_is(weights, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: neither safetensors nor an index with a weight_map", path);
    }
    const Json **places = arena_alloc(scratch, weights->length, sizeof(const Json *));
    size_t count = 0;
    for (const Json *c = weights->child; c != NULL; c = c->next) {
        if (!shard_name_is_plain(c) || strlen(c->key) != c->key_length) {
            fail(STATUS_INPUT, "%s: tensor '%s': '%s' is no name of a shard beside it", path,
                 c->key, json_is(c, JSON_STRING) ? c->text : "");
        }
        places[count++] = c;
    }
    qsort(places, count, sizeof *places, compare_shards);
    const char *slash = strrchr(path, '/');
    int directory = slash == NULL ? 0 : (int)(slash - path) + 1;
    TensorStore shard = {.arena = store->arena};
    for (size_t i = 0; i < count; i++) {
        const char *name = places[i]->text;
        if (i == 0 || strcmp(places[i - 1]->text, name) != 0) {
            const char *file = arena_format(store->arena, "%.*s%s", directory, path, name);
            shard.count = 0;
            safetensors_read(&shard, add_map(store, file_map(store->arena, file)), file);
        }
        const Tensor *tensor = tensors_find(&shard, places[i]->key);
        if (tensor == NULL) {
            fail(STATUS_INPUT, "%s: tensor '%s': is not in its shard %s", path, places[i]->key,
                 name);
        }
        tensors_add(store, tensor);
    }
    arena_free(scratch);
}

/* ---- opening ---- */

/* A text that begins with '{', after a byte order mark and white space. */
static bool is_object(const FileMap *map) {
    size_t at = 0;
    while (at < map->size && at < 64 && map->data[at] != 0 &&
           strchr(" \n\r\t\xEF\xBB\xBF", map->data[at]) != NULL) {
        at++;
    }
    return at < map->size && map->data[at] == '{' && memchr(map->data, 0, map->size) == NULL;
}

void checkpoint_refuse(const char *directory) {
    static const char *const kinds[][2] = {
        {"*.gguf", "is for other programs: take the safetensors files it was made from"},
        {"pytorch_model*.bin", "is a pickle: load it with transformers and save it anew with "
                               "save_pretrained(DIR, safe_serialization=True)"},
    };
    Arena *arena = arena_new();
    size_t count;
    char **names = path_list(arena, directory, &count);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            if (glob_match(kinds[k][0], names[i])) {
                fail(STATUS_INPUT, "%s: holds no safetensors, and %s %s", directory, names[i],
                     kinds[k][1]);
            }
        }
    }
    arena_free(arena);
}

/* The file itself, or what a directory holds. */
static const char *resolve(Arena *arena, const char *path) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    if (!path_is_directory(path)) {
        return arena_copy(arena, path, strlen(path));
    }
    for (int i = 0; i < 2; i++) {
        const char *file = path_join(arena, path, names[i]);
        if (path_exists(file)) {
            return file;
        }
    }
    checkpoint_refuse(path);
    fail(STATUS_INPUT, "%s: holds neither %s nor %s", path, names[0], names[1]);
}

void tensors_open(TensorStore *store, Arena *arena, const char *path) {
    *store = (TensorStore){.arena = arena, .path = resolve(arena, path)};
    path = store->path;
    FileMap map = file_map(arena, path);
    /* The length of a safetensors header may begin with any bytes, so it is asked for before "PK"
     * (a zip) and '{'. */
    if (safetensors_is(&map)) {
        safetensors_read(store, add_map(store, map), path);
    } else if (zip_is(&map)) {
        Arena *scratch = arena_new();
        Zip zip = zip_open(scratch, add_map(store, map), path);
        if (pickle_is(&zip)) {
            pickle_read(store, &zip, map.size, path);
        } else {
            npz_read(store, &zip, path);
        }
        arena_free(scratch);
    } else if (is_object(&map)) {
        index_read(store, &map, path);
    } else {
        pickle_refuse(&map, path);
        safetensors_read(store, &map, path); /* says what is wrong with it */
    }
    tensors_sort(store);
}

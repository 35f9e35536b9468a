/* hooks.c: names of the hook points, what each is computed from, and patterns that choose them. */
#include "hooks.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

/* Which models have a point: language models, the vision tower, both. */
typedef enum Owner {
    LM,
    VISION,
    BOTH
} Owner;

#define IN(kind) (UINT64_C(1) << HOOK_##kind)

/* In the order of HookKind; those from HOOK_RESID_PRE to HOOK_RESID_POST are in every block. */
static const struct {
    const char *name;
    Owner owner;
    bool absent;       /* in some models or most dumps: then its inputs stand for it */
    const char *shape; /* a letter of HookModel for each dimension */
    uint64_t inputs;   /* the kinds from which it is computed */
} points[HOOK_KINDS] = {
    {"pixel_values", VISION, false, "css", 0},
    {"hook_embed", BOTH, false, "Td", IN(PIXEL_VALUES)},
    {"hook_pos_embed", BOTH, true, "Td", 0},
    {"ln_pre.hook_scale", VISION, false, "T1", IN(EMBED) | IN(POS_EMBED)},
    {"ln_pre.hook_normalized", VISION, false, "Td", IN(EMBED) | IN(POS_EMBED) | IN(LN_PRE_SCALE)},
    {"hook_resid_pre", BOTH, false, "Td",
     IN(EMBED) | IN(POS_EMBED) | IN(LN_PRE_NORMALIZED) | IN(RESID_POST)},
    {"ln1.hook_scale", BOTH, false, "T1", IN(RESID_PRE)},
    {"ln1.hook_normalized", BOTH, false, "Td", IN(RESID_PRE) | IN(LN1_SCALE)},
    {"attn.hook_q", BOTH, false, "Thk", IN(LN1_NORMALIZED)},
    {"attn.hook_k", BOTH, false, "Tgk", IN(LN1_NORMALIZED)},
    {"attn.hook_v", BOTH, false, "Tgk", IN(LN1_NORMALIZED)},
    {"attn.hook_rot_q", LM, true, "Thk", IN(Q)},
    {"attn.hook_rot_k", LM, true, "Tgk", IN(K)},
    {"attn.hook_attn_scores", BOTH, false, "hTT", IN(ROT_Q) | IN(ROT_K)},
    {"attn.hook_pattern", BOTH, false, "hTT", IN(ATTN_SCORES)},
    {"attn.hook_z", BOTH, false, "Thk", IN(V) | IN(PATTERN)},
    {"attn.hook_result", BOTH, true, "Thd", IN(Z)},
    {"ln1_post.hook_scale", LM, true, "T1", IN(RESULT)},
    {"ln1_post.hook_normalized", LM, true, "Td", IN(RESULT) | IN(LN1_POST_SCALE)},
    {"hook_attn_out", BOTH, false, "Td", IN(LN1_POST_NORMALIZED)},
    {"hook_resid_mid", BOTH, true, "Td", IN(RESID_PRE) | IN(ATTN_OUT)},
    {"ln2.hook_scale", BOTH, false, "T1", IN(RESID_MID)},
    {"ln2.hook_normalized", BOTH, false, "Td", IN(RESID_MID) | IN(LN2_SCALE)},
    {"mlp.hook_pre", BOTH, false, "Tm", IN(LN2_NORMALIZED)},
    {"mlp.hook_pre_linear", LM, true, "Tm", IN(LN2_NORMALIZED)},
    {"mlp.hook_post", BOTH, false, "Tm", IN(PRE) | IN(PRE_LINEAR)},
    {"ln2_post.hook_scale", LM, true, "T1", IN(POST)},
    {"ln2_post.hook_normalized", LM, true, "Td", IN(POST) | IN(LN2_POST_SCALE)},
    {"hook_mlp_out", BOTH, false, "Td", IN(LN2_POST_NORMALIZED)},
    {"hook_resid_post", BOTH, false, "Td", IN(RESID_MID) | IN(MLP_OUT)},
    {"ln_final.hook_scale", LM, false, "T1", IN(RESID_POST)},
    {"ln_final.hook_normalized", LM, false, "Td", IN(RESID_POST) | IN(LN_FINAL_SCALE)},
    {"logits", LM, false, "Tv", IN(LN_FINAL_NORMALIZED)},
};

bool hooks_want(const Hooks *hooks, HookKind kind, int layer, bool gradient) {
    return hooks != NULL && hooks->call != NULL && hooks->wants != NULL &&
           hooks->wants(hooks->user, kind, layer, gradient);
}

void hooks_show(const Hooks *hooks, HookPoint point, float *data) {
    if (hooks_want(hooks, point.kind, point.layer, point.gradient)) {
        hooks->call(hooks->user, &point, data);
    }
}

/* FNV-1a over the words of a buffer: no change of a single word goes unseen. */
static uint64_t fingerprint(const float *x, size_t n) {
    uint64_t hash = 14695981039346656037U;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = 0;
        memcpy(&bits, x + i, sizeof bits);
        hash = (hash ^ bits) * 1099511628211U;
    }
    return hash;
}

bool hooks_change(const Hooks *hooks, HookPoint point, float *data) {
    size_t size = point.shape[0] * point.shape[1] * point.shape[2];
    uint64_t before = fingerprint(data, size);
    hooks_show(hooks, point, data);
    return fingerprint(data, size) != before;
}

static bool in_block(HookKind kind) {
    return kind >= HOOK_RESID_PRE && kind <= HOOK_RESID_POST;
}

static bool has_point(bool vision, HookKind kind) {
    return points[kind].owner == BOTH || (points[kind].owner == VISION) == vision;
}

char *hook_name(char name[HOOK_NAME_MAX], HookKind kind, int layer, bool vision, bool gradient) {
    char block[32] = "";
    if (in_block(kind)) {
        snprintf(block, sizeof block, layer < 0 ? "blocks.*." : "blocks.%d.", layer);
    }
    snprintf(name, HOOK_NAME_MAX, "%s%s%s%s", vision ? "vision." : "", block, points[kind].name,
             gradient ? ".grad" : "");
    return name;
}

bool hook_parse(const char *name, HookKind *kind, int *layer, bool *vision) {
    static const char tower[] = "vision.", block[] = "blocks.";
    char again[HOOK_NAME_MAX];
    *vision = strncmp(name, tower, strlen(tower)) == 0;
    const char *rest = name + (*vision ? strlen(tower) : 0);
    *layer = -1;
    if (strncmp(rest, block, strlen(block)) == 0) {
        char *end;
        long number = strtol(rest + strlen(block), &end, 10);
        *layer = number < 1000000000 ? (int)number : -1;
        rest = end + (*end == '.' ? 1 : 0);
    }
    for (int k = 0; k < HOOK_KINDS; k++) {
        if (strcmp(points[k].name, rest) == 0 && has_point(*vision, (HookKind)k)) {
            *kind = (HookKind)k;
            hook_name(again, *kind, *layer, *vision, false);
            return strcmp(again, name) == 0; /* no sign, no 0 before the number */
        }
    }
    return false;
}

/* ---- the order of a pass, and what is computed from what ---- */

/* The block that a point is in; -1 before the first, n_layers behind the last. */
static int depth_of(const HookPoint *point, int n_layers) {
    return in_block(point->kind) ? point->layer : point->kind < HOOK_RESID_PRE ? -1 : n_layers;
}

int64_t hook_place(const HookPoint *point) {
    const int64_t behind = INT64_C(1) << 40; /* every place within one model */
    int64_t place = (int64_t)depth_of(point, INT32_MAX) * HOOK_KINDS + (int64_t)point->kind;
    place += point->vision ? 0 : behind;
    return point->gradient ? 4 * behind - place : place;
}

bool hook_optional(HookKind kind) {
    return points[kind].absent;
}

/* Whether, forward, `to` is computed from `from` with no other point between them. */
static bool feeds(const HookPoint *from, const HookPoint *to, const int n_layers[2]) {
    if ((points[to->kind].inputs >> from->kind & 1) == 0) {
        return false;
    }
    int depth = depth_of(from, n_layers[from->vision]), next = depth_of(to, n_layers[to->vision]);
    bool tower_end = from->vision && from->kind == HOOK_RESID_POST && depth == n_layers[1] - 1;
    if (from->vision != to->vision) { /* through the adapter, into the prompt */
        return tower_end && to->kind == HOOK_RESID_PRE && next == 0;
    }
    if (to->vision && to->kind == HOOK_RESID_PRE && from->kind < HOOK_LN_PRE_SCALE) {
        return false; /* embeddings enter the tower through ln_pre */
    }
    bool enters = to->kind == HOOK_RESID_PRE || from->kind == HOOK_RESID_POST;
    return depth + (enters ? 1 : 0) == next;
}

size_t hook_inputs(const HookPoint *of, const int n_layers[2], HookPoint inputs[HOOK_INPUTS_MAX]) {
    size_t count = 0;
    for (int k = 0; k < 2 * HOOK_KINDS; k++) {
        HookPoint p = {.kind = (HookKind)(k % HOOK_KINDS), .vision = k < HOOK_KINDS};
        int last = n_layers[p.vision] - 1;
        int near = p.vision == of->vision ? depth_of(of, last + 1) : last, end = near + 1;
        p.gradient = of->gradient;
        p.layer = !in_block(p.kind) ? -1 : near > 0 ? near - 1 : 0;
        end = !in_block(p.kind) ? -1 : end < last ? end : last;
        for (; has_point(p.vision, p.kind) && p.layer <= end && count < HOOK_INPUTS_MAX;
             p.layer++) {
            if (of->gradient ? feeds(of, &p, n_layers) : feeds(&p, of, n_layers)) {
                inputs[count++] = p;
            }
        }
    }
    return count;
}

size_t hook_points(Arena *arena, const HookModel *model, HookPoint **list) {
    size_t count = 0;
    int n_layers = (int)model->n_layers;
    *list = arena_alloc(arena, model->n_layers + 2, HOOK_KINDS * sizeof **list);
    for (int depth = -1; n_layers > 0 && depth <= n_layers; depth++) {
        for (int k = 0; k < HOOK_KINDS; k++) {
            HookPoint p = {.kind = (HookKind)k, .layer = depth, .vision = model->vision};
            bool here =
                in_block(p.kind) ? depth >= 0 && depth < n_layers : depth_of(&p, n_layers) == depth;
            if (!here || model->absent[k] || !has_point(p.vision, p.kind)) {
                continue;
            }
            for (const char *dim = points[k].shape; *dim != '\0'; dim++) {
                p.shape[p.rank++] = model->size[(unsigned char)*dim];
            }
            p.layer = in_block(p.kind) ? depth : -1;
            (*list)[count++] = p;
        }
    }
    return count;
}

/* ---- globs: the shell's braces, *, ? and sets; time grows with pattern times name ---- */

/* The ']' of the set that opens at pattern[at]; `at` if it does not close. */
static size_t set_end(const char *pattern, size_t at) {
    size_t i = at + 1;
    i += pattern[i] == '!' || pattern[i] == '^';
    i += pattern[i] == ']';
    for (; pattern[i] != 0 && pattern[i] != ']'; i++) {
        if (pattern[i] == '[' && pattern[i + 1] == ':') { /* [[:alpha:]] */
            size_t close = i + 2 + strspn(pattern + i + 2, "abcdefghijklmnopqrstuvwxyz");
            i = strncmp(pattern + close, ":]", 2) == 0 ? close + 1 : i;
        }
    }
    return pattern[i] == ']' ? i : at;
}

/* Of each '{' and ',' of a group of alternatives the next ',' or '}' of it, of the '}' what follows
 * it, of a set's '[' its ']'; 0: the byte stands for itself. */
static size_t *glob_links(Arena *arena, const char *pattern) {
    size_t length = strlen(pattern), depth = 0;
    size_t *next = arena_alloc(arena, length + 1, sizeof *next);
    size_t *open = arena_alloc(arena, length + 1, sizeof *open);
    size_t *last = arena_alloc(arena, length + 1, sizeof *last);
    bool sets = true; /* behind one that does not close none does */
    for (size_t i = 0; i < length; i++) {
        if (pattern[i] == '\\') {
            i++;
        } else if (pattern[i] == '[' && sets) {
            size_t end = set_end(pattern, i);
            sets = end > i;
            next[i] = sets ? end : 0;
            i = end;
        } else if (pattern[i] == '{') {
            open[depth] = last[depth] = i;
            depth++;
        } else if (depth > 0 && (pattern[i] == ',' || pattern[i] == '}')) {
            next[last[depth - 1]] = i;
            last[depth - 1] = i;
            next[i] = pattern[i] == '}' ? i + 1 : 0;
            depth -= pattern[i] == '}' ? 1 : 0;
        }
    }
    while (depth > 0) { /* groups that do not close */
        for (size_t i = open[--depth], after; (after = next[i]) > 0; i = after) {
            next[i] = 0;
        }
    }
    return next;
}

const char **glob_list(Arena *arena, const char *globs) {
    const size_t *next = glob_links(arena, globs), length = strlen(globs);
    const char **list = arena_alloc(arena, length + 2, sizeof *list);
    for (size_t begin = 0, i = 0, count = 0; i <= length; i++) {
        if (i == length || (globs[i] == ',' && next[i] == 0)) {
            list[count++] = arena_copy(arena, globs + begin, i - begin);
            begin = i + 1;
        }
        i = globs[i] == '[' && next[i] > 0 ? next[i] : i;
    }
    return list;
}

bool glob_match(const char *pattern, const char *name) {
    Arena *arena = arena_new();
    const size_t *next = glob_links(arena, pattern), length = strlen(pattern);
    bool *at = arena_alloc(arena, length + 2, 1), *then = arena_alloc(arena, length + 2, 1);
    char *piece = arena_copy(arena, pattern, length + 1);
    at[0] = true; /* at[i]: what was read so far can end before pattern[i] */
    for (;; name++) {
        for (size_t i = 0; i < length; i++) {
            char c = pattern[i];
            for (size_t k = i; at[i] && c == '{' && next[k] > k && pattern[k] != '}'; k = next[k]) {
                at[k + 1] = true;
            }
            if (at[i] && (c == '*' || (next[i] > 0 && (c == ',' || c == '}')))) {
                at[c == '*' ? i + 1 : next[i]] = true;
            }
        }
        if (*name == '\0') {
            break;
        }
        memset(then, 0, length + 1);
        for (size_t i = 0; i < length; i++) {
            char c = pattern[i];
            size_t after = c == '[' && next[i] > 0 ? next[i] + 1 : i + 1 + (c == '\\');
            if (at[i] && c == '*') {
                then[i] = true;
            } else if (at[i] && next[i] == 0 && strchr("?[\\", c) == NULL) {
                then[after] |= c == *name;
            } else if (at[i] && (next[i] == 0 || c == '[')) {
                const char one[2] = {*name, '\0'}, kept = piece[after];
                piece[after] = '\0';
                then[after] |= fnmatch(piece + i, one, 0) == 0;
                piece[after] = kept;
            }
        }
        memcpy(at, then, length + 1);
    }
    bool matches = at[length];
    arena_free(arena);
    return matches;
}

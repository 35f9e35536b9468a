/* hooks.c: names of the hook points, what each is computed from, and the patterns that choose among
 * them. */
#include "hooks.h"

#include <fnmatch.h>
#include <string.h>

/* Which models have a point: language models, the vision tower, both. */
typedef enum Owner {
    LM,
    VISION,
    BOTH
} Owner;

enum {
    GLOB_DEPTH = 16,
    GLOB_LONGEST = 1 << 14
};
#define IN(kind) (UINT64_C(1) << HOOK_##kind)

/* In the order of HookKind. */
static const struct {
    const char *name;
    bool block;
    Owner owner;
    bool absent;     /* in some models or most dumps: then its inputs stand for it */
    uint64_t inputs; /* the kinds from which it is computed */
} points[HOOK_KINDS] = {
    {"pixel_values", false, VISION, false, 0},
    {"hook_embed", false, BOTH, false, IN(PIXEL_VALUES)},
    {"hook_pos_embed", false, BOTH, true, 0},
    {"ln_pre.hook_scale", false, VISION, false, IN(EMBED) | IN(POS_EMBED)},
    {"ln_pre.hook_normalized", false, VISION, false, IN(EMBED) | IN(POS_EMBED) | IN(LN_PRE_SCALE)},
    {"hook_resid_pre", true, BOTH, false,
     IN(EMBED) | IN(POS_EMBED) | IN(LN_PRE_NORMALIZED) | IN(RESID_POST)},
    {"ln1.hook_scale", true, BOTH, false, IN(RESID_PRE)},
    {"ln1.hook_normalized", true, BOTH, false, IN(RESID_PRE) | IN(LN1_SCALE)},
    {"attn.hook_q", true, BOTH, false, IN(LN1_NORMALIZED)},
    {"attn.hook_k", true, BOTH, false, IN(LN1_NORMALIZED)},
    {"attn.hook_v", true, BOTH, false, IN(LN1_NORMALIZED)},
    {"attn.hook_rot_q", true, LM, true, IN(Q)},
    {"attn.hook_rot_k", true, LM, true, IN(K)},
    {"attn.hook_attn_scores", true, BOTH, false, IN(ROT_Q) | IN(ROT_K)},
    {"attn.hook_pattern", true, BOTH, false, IN(ATTN_SCORES)},
    {"attn.hook_z", true, BOTH, false, IN(V) | IN(PATTERN)},
    {"attn.hook_result", true, BOTH, true, IN(Z)},
    {"ln1_post.hook_scale", true, LM, true, IN(RESULT)},
    {"ln1_post.hook_normalized", true, LM, true, IN(RESULT) | IN(LN1_POST_SCALE)},
    {"hook_attn_out", true, BOTH, false, IN(LN1_POST_NORMALIZED)},
    {"hook_resid_mid", true, BOTH, true, IN(RESID_PRE) | IN(ATTN_OUT)},
    {"ln2.hook_scale", true, BOTH, false, IN(RESID_MID)},
    {"ln2.hook_normalized", true, BOTH, false, IN(RESID_MID) | IN(LN2_SCALE)},
    {"mlp.hook_pre", true, BOTH, false, IN(LN2_NORMALIZED)},
    {"mlp.hook_pre_linear", true, LM, true, IN(LN2_NORMALIZED)},
    {"mlp.hook_post", true, BOTH, false, IN(PRE) | IN(PRE_LINEAR)},
    {"ln2_post.hook_scale", true, LM, true, IN(POST)},
    {"ln2_post.hook_normalized", true, LM, true, IN(POST) | IN(LN2_POST_SCALE)},
    {"hook_mlp_out", true, BOTH, false, IN(LN2_POST_NORMALIZED)},
    {"hook_resid_post", true, BOTH, false, IN(RESID_MID) | IN(MLP_OUT)},
    {"ln_final.hook_scale", false, LM, false, IN(RESID_POST)},
    {"ln_final.hook_normalized", false, LM, false, IN(RESID_POST) | IN(LN_FINAL_SCALE)},
    {"logits", false, LM, false, IN(LN_FINAL_NORMALIZED)},
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

void hook_name(char name[HOOK_NAME_MAX], HookKind kind, int layer, bool vision, bool gradient) {
    char block[32] = "";
    if (points[kind].block) {
        snprintf(block, sizeof block, "blocks.%d.", layer);
    }
    snprintf(name, HOOK_NAME_MAX, "%s%s%s%s", vision ? "vision." : "", block, points[kind].name,
             gradient ? ".grad" : "");
}

/* What follows `prefix` in `text`; NULL if it does not begin so. */
static const char *after(const char *text, const char *prefix) {
    size_t length = strlen(prefix);
    return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

bool hook_parse(const char *name, HookKind *kind, int *layer, bool *vision) {
    const char *rest = after(name, "vision.");
    *vision = rest != NULL;
    name = rest != NULL ? rest : name;

    *layer = -1;
    rest = after(name, "blocks.");
    if (rest != NULL) {
        int value = 0, digits = 0;
        while (*rest >= '0' && *rest <= '9' && digits < 9) {
            value = value * 10 + (*rest++ - '0');
            digits++;
        }
        bool leading_zero = digits > 1 && rest[-digits] == '0';
        if (digits == 0 || leading_zero || *rest != '.') {
            return false;
        }
        *layer = value;
        name = rest + 1;
    }
    for (int k = 0; k < HOOK_KINDS; k++) {
        if (strcmp(points[k].name, name) == 0 && points[k].block == (*layer >= 0)) {
            *kind = (HookKind)k;
            return points[k].owner == BOTH || (points[k].owner == VISION) == *vision;
        }
    }
    return false;
}

/* ---- the order of a pass, and what is computed from what ---- */

/* The block that a point is in; -1 before the first, n_layers behind the last. */
static int depth_of(const HookPoint *point, int n_layers) {
    return points[point->kind].block ? point->layer : point->kind < HOOK_RESID_PRE ? -1 : n_layers;
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
        int most = n_layers[p.vision] - 1;
        int near = p.vision == of->vision ? depth_of(of, most + 1) : most, end = near + 1;
        bool there = points[p.kind].owner == BOTH || (points[p.kind].owner == VISION) == p.vision;
        p.gradient = of->gradient;
        p.layer = !points[p.kind].block ? -1 : near > 0 ? near - 1 : 0;
        end = !points[p.kind].block ? -1 : end < most ? end : most;
        for (; there && p.layer <= end && count < HOOK_INPUTS_MAX; p.layer++) {
            if (of->gradient ? feeds(of, &p, n_layers) : feeds(&p, of, n_layers)) {
                inputs[count++] = p;
            }
        }
    }
    return count;
}

/* ---- globs: the shell's braces, *, ? and sets; time grows with pattern times name ---- */

/* Behind the set that opens at pattern[at]; at + 1 if it does not close. */
static size_t set_end(const char *pattern, size_t at) {
    size_t i = at + 1;
    i += pattern[i] == '!' || pattern[i] == '^';
    i += pattern[i] == ']';
    for (; pattern[i] != 0 && pattern[i] != ']'; i++) {
        const char *close = pattern[i] == '[' && pattern[i + 1] == ':' /* [[:alpha:]] */
                                ? strstr(pattern + i + 2, ":]")
                                : NULL;
        i = close != NULL ? (size_t)(close + 1 - pattern) : i;
    }
    return pattern[i] == ']' ? i + 1 : at + 1;
}

typedef struct Glob {
    const char *pattern, *name;
    size_t n;      /* of the name */
    size_t *close; /* of each '{' and '[' of the pattern its end; 0: it stands for itself */
    Arena *arena;
} Glob;

static Glob glob_open(Arena *arena, const char *pattern, const char *name) {
    size_t length = strlen(pattern), depth = 0;
    Glob g = {pattern, name, strlen(name), arena_alloc(arena, length + 1, sizeof(size_t)), arena};
    size_t *open = arena_alloc(arena, length + 1, sizeof *open);
    if (length > GLOB_LONGEST) {
        fail(STATUS_INPUT, "glob '%.100s': %zu bytes, at most %d", pattern, length, GLOB_LONGEST);
    }
    for (size_t i = 0; i < length; i++) {
        if (pattern[i] == '[' && set_end(pattern, i) > i + 1) {
            g.close[i] = set_end(pattern, i) - 1;
            i = g.close[i];
        } else if (pattern[i] == '{') {
            open[depth++] = i;
        } else if (pattern[i] == '}' && depth > 0) {
            g.close[open[--depth]] = i;
        }
    }
    return g;
}

/* The next comma from `at` on in no inner group and no set, or `end`. */
static size_t glob_comma(const Glob *g, size_t at, size_t end) {
    while (at < end && g->pattern[at] != ',') {
        at = g->close[at] > 0 ? g->close[at] + 1 : at + 1;
    }
    return at;
}

/* ends[i]: what was matched so far can end before name[i]. Matches pattern[at, end) more. */
static void match_part(const Glob *g, size_t at, size_t end, bool *ends, int depth) {
    if (depth > GLOB_DEPTH) {
        fail(STATUS_INPUT, "glob '%.100s': braces within more than %d others", g->pattern,
             GLOB_DEPTH);
    }
    while (at < end) {
        size_t close = g->close[at], next = close > 0 ? close + 1 : at + 1;
        char c = g->pattern[at];
        if (c == '{' && close > 0) {
            bool *any = arena_alloc(g->arena, g->n + 1, sizeof *any);
            bool *one = arena_alloc(g->arena, g->n + 1, sizeof *one);
            for (size_t comma; at < close; at = comma) {
                comma = glob_comma(g, at + 1, close);
                memcpy(one, ends, g->n + 1);
                match_part(g, at + 1, comma, one, depth + 1);
                for (size_t i = 0; i <= g->n; i++) {
                    any[i] |= one[i];
                }
            }
            memcpy(ends, any, g->n + 1);
            at = next;
            continue;
        }
        next += c == '\\' && next < end;
        const char *piece = arena_copy(g->arena, g->pattern + at, next - at);
        for (size_t k = 0; k <= g->n; k++) {
            size_t i = c == '*' ? k : g->n - k; /* a run from the left, one from the right */
            const char one[2] = {i > 0 ? g->name[i - 1] : '\0', '\0'};
            ends[i] = c == '*' ? ends[i] || (i > 0 && ends[i - 1])
                               : i > 0 && ends[i - 1] && fnmatch(piece, one, 0) == 0;
        }
        at = next;
    }
}

size_t glob_length(const char *globs) {
    Arena *arena = arena_new();
    Glob g = glob_open(arena, globs, "");
    size_t length = glob_comma(&g, 0, strlen(globs));
    arena_free(arena);
    return length;
}

bool glob_match(const char *pattern, const char *name) {
    Arena *arena = arena_new();
    Glob g = glob_open(arena, pattern, name);
    bool *ends = arena_alloc(arena, g.n + 1, sizeof *ends);
    ends[0] = true;
    match_part(&g, 0, strlen(pattern), ends, 0);
    bool matches = ends[g.n];
    arena_free(arena);
    return matches;
}

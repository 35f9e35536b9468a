/* hooks.c: names of the hook points, and the patterns that choose among them. */
#include "hooks.h"

#include <fnmatch.h>
#include <string.h>

/* Which models have a point: language models, the vision tower, both. */
typedef enum Owner {
    LM,
    VISION,
    BOTH
} Owner;

/* In the order of HookKind. */
static const struct {
    const char *name;
    bool block;
    Owner owner;
} points[HOOK_KINDS] = {
    {"pixel_values", false, VISION},
    {"hook_embed", false, BOTH},
    {"hook_pos_embed", false, BOTH},
    {"ln_pre.hook_scale", false, VISION},
    {"ln_pre.hook_normalized", false, VISION},
    {"hook_resid_pre", true, BOTH},
    {"ln1.hook_scale", true, BOTH},
    {"ln1.hook_normalized", true, BOTH},
    {"attn.hook_q", true, BOTH},
    {"attn.hook_k", true, BOTH},
    {"attn.hook_v", true, BOTH},
    {"attn.hook_rot_q", true, LM},
    {"attn.hook_rot_k", true, LM},
    {"attn.hook_attn_scores", true, BOTH},
    {"attn.hook_pattern", true, BOTH},
    {"attn.hook_z", true, BOTH},
    {"attn.hook_result", true, BOTH},
    {"ln1_post.hook_scale", true, LM},
    {"ln1_post.hook_normalized", true, LM},
    {"hook_attn_out", true, BOTH},
    {"hook_resid_mid", true, BOTH},
    {"ln2.hook_scale", true, BOTH},
    {"ln2.hook_normalized", true, BOTH},
    {"mlp.hook_pre", true, BOTH},
    {"mlp.hook_pre_linear", true, LM},
    {"mlp.hook_post", true, BOTH},
    {"ln2_post.hook_scale", true, LM},
    {"ln2_post.hook_normalized", true, LM},
    {"hook_mlp_out", true, BOTH},
    {"hook_resid_post", true, BOTH},
    {"ln_final.hook_scale", false, LM},
    {"ln_final.hook_normalized", false, LM},
    {"logits", false, LM},
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

/* ---- globs: the shell's braces, and within them what fnmatch knows ---- */

size_t brace_next(const char *pattern, size_t at, const char *stops) {
    size_t depth = 0, i = at + 1;
    for (; pattern[i] != '\0'; i++) {
        const char *set =
            pattern[i] == '[' && pattern[i + 1] != 0 ? strchr(pattern + i + 2, ']') : NULL;
        if (set != NULL) {
            i = (size_t)(set - pattern);
        } else if (depth == 0 && strchr(stops, pattern[i]) != NULL) {
            break;
        } else if (pattern[i] == '{') {
            depth++;
        } else if (pattern[i] == '}' && depth > 0) {
            depth--;
        }
    }
    return i;
}

/* The first group that closes becomes each of its alternatives in turn. */
static bool match_expanded(Arena *arena, const char *pattern, const char *name) {
    size_t length = strlen(pattern);
    size_t open = length == 0 || pattern[0] == '{' ? 0 : brace_next(pattern, 0, "{");
    size_t close = open < length ? brace_next(pattern, open, "}") : length;
    while (open < length && close == length) {
        open = brace_next(pattern, open, "{");
        close = open < length ? brace_next(pattern, open, "}") : length;
    }
    if (close == length) {
        return fnmatch(pattern, name, 0) == 0;
    }
    for (size_t at = open, next; at < close; at = next) {
        next = brace_next(pattern, at, ",}");
        if (match_expanded(arena,
                           arena_format(arena, "%.*s%.*s%s", (int)open, pattern,
                                        (int)(next - at - 1), pattern + at + 1,
                                        pattern + close + 1),
                           name)) {
            return true;
        }
    }
    return false;
}

bool glob_match(const char *pattern, const char *name) {
    Arena *arena = arena_new();
    bool matches = match_expanded(arena, pattern, name);
    arena_free(arena);
    return matches;
}

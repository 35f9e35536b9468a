/* vit.h: the CLIP vision tower, forward. Floor 2. */
#ifndef REFSAE_VIT_H
#define REFSAE_VIT_H

#include "base.h"
#include "hooks.h"
#include "kernels.h"
#include "tensor.h"

typedef struct VitConfig {
    size_t n_layers, d_model, n_heads, d_head, d_mlp, image_size, patch_size, n_patches, n_channels;
    float norm_eps;
    Activation activation;
} VitConfig;

typedef struct Vit {
    VitConfig config;
    struct VitLayer *layers;
    Weight class_embed, patch, pos_embed, pre_w, pre_b;
    TensorStore store;
    Arena *arena;
    const char *path;
} Vit;

/* model_type clip_vision_model, or clip (its vision_config; the text tower's tensors are ignored). */
void vit_open(Vit *vit, Arena *arena, const char *directory);

typedef struct VitRun VitRun;
VitRun *vit_run_layout(const Vit *vit, const Compute *compute, Arena *arena); /* NULL while measuring */

/* pixel_values [3, image_size, image_size] -> features [n_patches, d_model]: the last encoder layer's
 * output before post_layernorm, class token dropped (what the adapter reads). features may be NULL. */
void vit_forward(VitRun *run, const float *pixel_values, float *features, const Hooks *hooks);

#endif

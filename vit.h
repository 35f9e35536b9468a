/* vit.h: the CLIP vision tower, forward. model_load.h opens one. Floor 7. */
#ifndef REFSAE_VIT_H
#define REFSAE_VIT_H

#include "base.h"
#include "hooks.h"
#include "kernels.h"
#include "tensor.h"

enum {
    VIT_CHANNELS = 3
};

typedef struct VitConfig {
    size_t n_layers, d_model, n_heads, d_head, d_mlp, image_size, patch_size, n_patches;
    float norm_eps;
    Activation activation;
} VitConfig;

typedef struct VitLayer {
    Norm ln1, ln2;
    Matrix q, k, v, o, in, out; /* [d, d] four times, [d_mlp, d], [d, d_mlp] */
} VitLayer;

typedef struct Vit {
    VitConfig config;
    VitLayer *layers;
    Weight class_embed, pos_embed; /* [d], [1 + n_patches, d] */
    Matrix patch;                  /* [d, 3 * patch_size * patch_size] */
    Norm ln_pre;
    TensorStore store;
    const char *path;
} Vit;

typedef struct VitRun VitRun;
/* NULL while measuring. */
VitRun *vit_run_layout(const Vit *vit, const Compute *compute, Arena *arena);

/* pixel_values [3, image_size, image_size] -> features [n_patches, d_model]: the last encoder
 * layer's output before post_layernorm, class token dropped (what the adapter reads). features may
 * be NULL. Fails where they are not finite. */
void vit_forward(VitRun *run, const float *pixel_values, float *features, const Hooks *hooks);

#endif

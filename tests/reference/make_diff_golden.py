"""Three implementations of Gemma-2 with one bug each, as `refsae diff` meets them.

The toy Gemma-2 of weights/ is run through transformers with hf_hooks.py's hook points, each time
with one operation replaced:

  interleaved_rope  rotary pairs are neighbours (2i, 2i + 1) instead of halves (i, i + d_head / 2)
  exact_gelu        the MLP's GELU by erf instead of its tanh form
  no_embed_scale    embeddings without the factor sqrt(hidden_size)

Every hook point of the first and the last block (but hook_result) of three tokens goes into
tests/golden/diff/NAME.safetensors, with the leading batch dimension as PyTorch has it;
exact_gelu was computed and is written in float64.

Written for torch 2.13.0, transformers 5.23.0, safetensors 0.8.0.

    python3 tests/reference/make_diff_golden.py
"""

import os

import hf_hooks
import torch
from safetensors.torch import save_file
from transformers.models.gemma2 import modeling_gemma2

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
IDS = [2, 9, 100]
rotate_halves, load = modeling_gemma2.apply_rotary_pos_emb, hf_hooks.load


def rotate_neighbours(q, k, cos, sin, unsqueeze_dim=1):
    half = cos.shape[-1] // 2
    cos, sin = cos[..., :half].unsqueeze(unsqueeze_dim), sin[..., :half].unsqueeze(unsqueeze_dim)

    def rotate(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)

    return rotate(q), rotate(k)


def load_exact_gelu(directory, dtype):
    model = load(directory, dtype)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    return model


def load_no_embed_scale(directory, dtype):
    model = load(directory, dtype)
    model.model.embed_tokens.embed_scale.fill_(1.0)
    return model


def run(name, dtype=torch.float32):
    tensors, _ = hf_hooks.run_language(os.path.join(ROOT, "weights", "gemma2"), IDS, dtype=dtype)
    kept = {
        key: tensor[None].contiguous()
        for key, tensor in tensors.items()
        if not key.startswith(("blocks.1.", "blocks.2.")) and not key.endswith("hook_result")
    }
    folder = os.path.join(ROOT, "tests", "golden", "diff")
    os.makedirs(folder, exist_ok=True)
    save_file(kept, os.path.join(folder, name + ".safetensors"), metadata=hf_hooks.versions())
    print(name, len(kept), sum(t.numel() * t.element_size() for t in kept.values()), "bytes")


def main():
    modeling_gemma2.apply_rotary_pos_emb = rotate_neighbours
    run("interleaved_rope")
    modeling_gemma2.apply_rotary_pos_emb = rotate_halves
    hf_hooks.load = load_exact_gelu
    run("exact_gelu", torch.float64)
    hf_hooks.load = load_no_embed_scale
    run("no_embed_scale")


if __name__ == "__main__":
    main()

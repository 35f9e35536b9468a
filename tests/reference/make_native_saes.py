"""SAEs of random weights for the golden case `native` of SAGE: of the toy GPT-2's stream and of its
nodes' own hook points, and the cross-sections that it is tested in.

    python3 tests/reference/make_native_saes.py tests/golden/sage/native

Written for torch 2.13.0, safetensors 0.8.0.
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file

D_IN, D_SAE, K = 64, 48, 12
HOOKS = ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre",
         "blocks.1.attn.hook_q", "blocks.1.attn.hook_z", "blocks.2.attn.hook_z",
         "blocks.2.hook_attn_out"]
NODES = {"moved": [("blocks.2.attn.hook_z", 0, "END"), ("blocks.1.attn.hook_z", 2, "S2")],
         "mixed": [("blocks.2.hook_attn_out", None, "END"), ("blocks.1.attn.hook_q", 1, "END")],
         "partly": [("blocks.2.attn.hook_z", 1, "END"), ("blocks.2.attn.hook_v", 0, "IO")]}


def main():
    folder = sys.argv[1]
    torch.manual_seed(0)
    for hook in HOOKS:
        directory = os.path.join(folder, "saes", hook)
        os.makedirs(directory, exist_ok=True)
        rows = torch.randn(D_SAE, D_IN)
        rows /= rows.norm(dim=1, keepdim=True)
        save_file({"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(D_SAE),
                   "b_dec": torch.randn(D_IN) * 0.1}, os.path.join(directory, "sae_weights.safetensors"))
        with open(os.path.join(directory, "cfg.json"), "w", encoding="utf-8") as file:
            json.dump({"architecture": "topk", "k": K, "d_in": D_IN, "d_sae": D_SAE,
                       "apply_b_dec_to_input": True, "normalize_activations": "none",
                       "reshape_activations": "none",
                       "metadata": {"sae_lens_version": "6.54.12", "hook_name": hook,
                                    "prepend_bos": True, "model_from_pretrained_kwargs":
                                    {"center_writing_weights": False, "fold_value_biases": False}}}, file)
    with open(os.path.join(folder, "cross_sections.json"), "w", encoding="utf-8") as file:
        json.dump({name: {"nodes": [dict(zip(("node", "head", "position"), n)) for n in nodes]}
                   for name, nodes in NODES.items()}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()

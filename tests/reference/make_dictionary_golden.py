"""SAEs of dictionary_learning as its trainers save them, with what the library computes on them.

Writes tests/golden/sae/dictionary/: in the layout of SAEBench's sets (NAME/resid_post_layer_L/trainer_N)
and of the library's first one (resid_out_layer3/10_32768, without config.json). Beside each ae.pt lies
`expected.safetensors` with x [T, d_in], pre, acts [T, d_sae] and recon [T, d_in]; for AutoEncoder also
`expected_unit.safetensors`: what from_pretrained gives by default, its decoder columns rescaled.
pre is what enters the activation: the encoder's output, for GatedAutoEncoder the magnitude's.

Weights are drawn so that no step can be left out unnoticed (unlike norms, large biases), and drawn again
if an activation lies so near a threshold that rounding could switch it.

Written for dictionary-learning 0.1.0, torch 2.13.0, safetensors 0.8.0. The library imports nnsight and
others only to collect activations: empty stand-ins do.

    python3 tests/reference/make_dictionary_golden.py
"""

import importlib.machinery
import json
import os
import shutil
import sys
import types

import torch
from safetensors.torch import save_file


class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for module in ("nnsight", "zstandard", "circuitsvis", "umap", "plotly", "wandb", "pandas", "datasets"):
    if module not in sys.modules:
        sys.modules[module] = StandIn(module)
        sys.modules[module].__spec__ = importlib.machinery.ModuleSpec(module, None)

from dictionary_learning.dictionary import AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

OUT = os.path.join("tests", "golden", "sae", "dictionary")
D_IN, D_SAE, ROWS, K, MARGIN = 12, 40, 7, 5, 1e-4
torch.set_num_threads(1)


def fill(ae, generator):
    """Every parameter of an SAE, in place; a transposed one stays transposed in memory, as trained."""
    r = lambda *shape: torch.randn(*shape, generator=generator)
    with torch.no_grad():
        for name, p in ae.named_parameters():
            if name in ("encoder.weight", "W_dec"):
                p.copy_(r(*p.shape) / D_IN**0.5 * torch.exp(0.3 * r(D_SAE))[:, None])
            elif name in ("decoder.weight", "W_enc"):
                p.copy_(r(*p.shape) / D_IN**0.5 * torch.exp(0.3 * r(D_SAE)))
            elif name == "threshold":
                p.copy_(0.3 + 0.3 * r(*p.shape).abs())
            else:
                p.copy_(0.5 * r(*p.shape))
        if hasattr(ae, "threshold") and ae.threshold.ndim == 0:
            ae.threshold.fill_(0.55)


def run(ae, x):
    with torch.no_grad():
        if isinstance(ae, AutoEncoder):
            pre, hangs = ae.encoder(x - ae.bias), [ae.encoder(x - ae.bias)]
        elif isinstance(ae, GatedAutoEncoder):
            u = ae.encoder(x - ae.decoder_bias)
            pre = ae.r_mag.exp() * u + ae.mag_bias
            hangs = [pre, u + ae.gate_bias]
        elif isinstance(ae, JumpReluAutoEncoder):
            _, pre = ae.encode(x, output_pre_jump=True)
            hangs = [pre, pre - ae.threshold]
        else:
            pre = ae.encoder(x - ae.b_dec)
            top = pre.sort(-1, descending=True).values
            hangs = [pre, pre - ae.threshold if isinstance(ae, BatchTopKSAE) else top[:, K - 1] - top[:, K]]
        acts = ae.encode(x)
        assert acts.count_nonzero() > 3
        near = any(h.abs().min() < MARGIN for h in hangs)
        return {"x": x, "pre": pre, "acts": acts, "recon": ae.decode(acts)}, near


def save(directory, name, tensors):
    versions = {"dictionary-learning": "0.1.0", "torch": torch.__version__}
    tensors = {k: v.detach().float().contiguous() for k, v in tensors.items()}
    save_file(tensors, os.path.join(directory, name), metadata=versions)


def case(place, ae, load, seed, config=None, dtype=None, drop=()):
    """load: how the library reads the file back. drop: buffers that older versions did not have."""
    directory = os.path.join(OUT, place)
    os.makedirs(directory)
    for attempt in range(100):
        generator = torch.Generator().manual_seed(1000 * seed + attempt)
        fill(ae, generator)
        if dtype is not None:
            ae.to(dtype)
        state = {k: v.cpu() for k, v in ae.state_dict().items() if k not in drop}
        torch.save(state, os.path.join(directory, "ae.pt"))
        x = 1.5 * torch.randn(ROWS, D_IN, generator=generator) + 0.3
        loaded = load(os.path.join(directory, "ae.pt"), ae)
        expected, near = run(loaded, x)
        if not near:
            break
    else:
        raise AssertionError(place)
    save(directory, "expected.safetensors", expected)
    if isinstance(ae, AutoEncoder) and config is not None:
        unit, near = run(AutoEncoder.from_pretrained(os.path.join(directory, "ae.pt")), x)
        assert not near and (unit["acts"] - expected["acts"]).abs().max() > 0.01
        save(directory, "expected_unit.safetensors", unit)
    if config is not None:
        with open(os.path.join(directory, "config.json"), "w") as file:
            json.dump(config, file, indent=4)


def trained(trainer, module):
    """What trainSAE writes, with the buffer's settings beside."""
    assert trainer.config["submodule_name"] == module
    buffer = {"d_submodule": D_IN, "io": "out", "n_ctxs": 244, "ctx_len": 128, "refresh_batch_size": 32,
              "out_batch_size": 2048, "device": "cpu"}
    return {"trainer": trainer.config, "buffer": buffer}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    model = "EleutherAI/pythia-70m-deduped"
    sizes = dict(steps=10000, activation_dim=D_IN, dict_size=D_SAE, lm_name=model, seed=0, device="cpu")
    plain = lambda path, ae: AutoEncoder.from_pretrained(path, normalize_decoder=False)

    module = "resid_post_layer_3"
    t = StandardTrainer(**sizes, layer=3, submodule_name=module)
    case(f"Standard_pythia-70m-deduped__0108/{module}/trainer_0", t.ae, plain, 1, trained(t, module))
    t = TopKTrainer(**sizes, layer=3, submodule_name=module, k=K)
    case(f"TopK_pythia-70m-deduped__0108/{module}/trainer_1", t.ae,
         lambda path, ae: AutoEncoderTopK.from_pretrained(path, k=K), 2, trained(t, module))
    t = BatchTopKTrainer(**sizes, layer=3, submodule_name=module, k=K)
    case(f"BatchTopK_pythia-70m-deduped__0108/{module}/trainer_2", t.ae,
         lambda path, ae: BatchTopKSAE.from_pretrained(path, k=K), 3, trained(t, module))
    t = JumpReluTrainer(**sizes, layer=3, submodule_name=module)
    case(f"JumpRelu_pythia-70m-deduped__0108/{module}/trainer_3", t.ae,
         lambda path, ae: JumpReluAutoEncoder.from_pretrained(path), 4, trained(t, module))
    module = "mlp_out_layer_4"
    t = GatedSAETrainer(**sizes, layer=4, submodule_name=module)
    case(f"Gated_pythia-70m-deduped__0108/{module}/trainer_4", t.ae,
         lambda path, ae: GatedAutoEncoder.from_pretrained(path), 5, trained(t, module))

    # The library's first set, without config.json; one as half-precision; a TopK from before thresholds.
    old = "pythia-70m-deduped"
    case(f"{old}/resid_out_layer3/10_32768", AutoEncoder(D_IN, D_SAE), plain, 6)
    case(f"{old}/attn_out_layer0/10_32768", AutoEncoder(D_IN, D_SAE), plain, 7, dtype=torch.float16)
    case(f"{old}/embed/10_32768", AutoEncoder(D_IN, D_SAE), plain, 8)

    def load_old(path, ae):
        state = torch.load(path)
        made = AutoEncoderTopK(D_IN, D_SAE, K)
        made.load_state_dict(state, strict=False)
        return made

    config = {"trainer": {"dict_class": "AutoEncoderTopK", "k": K, "layer": 2, "lm_name": model}}
    case("topk_ctx128_0730/resid_post_layer_2/trainer_0", AutoEncoderTopK(D_IN, D_SAE, K), load_old, 9, config,
         drop=("k", "threshold"))


if __name__ == "__main__":
    main()

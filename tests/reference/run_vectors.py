"""The conformance vectors of vectors/ run against the libraries that they concern.

Prints a table, a line a vector: what each library does with it. "pass"; "reads: X", it gives what the
vector's misreading X gives; "off by D" of the largest expected number; or the error that it raises.
Below, what is known about each that does not pass: whether it is a bug of the library, a choice, or
something that it does not claim to do; each was found by reading the library's source.

Written for transformers 5.23.0, transformer-lens 3.9.0, sae-lens 6.54.12, eai-sparsify 1.3.3,
dictionary-learning 0.1.0, tokenizers 0.23.3, Pillow 13.0.0, torch 2.13.0. transformers and
TransformerLens run as hf_hooks.py and compare_transformerlens.py have them (TransformerLens without
processing of weights); the last column is no library but this project's second route to SAGE.

    python3 tests/reference/run_vectors.py [--vectors DIR] [--only GLOB]

A library that is not installed is left out. Exits with 1 where the table and what is known differ.
"""

import argparse
import contextlib
import fnmatch
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np
import torch
from safetensors.torch import load_file

# (vector, library): kind, and why. Kinds: bug, choice, limit (it does not claim to).
TRANSPOSED = (
    "bug",
    "sparsify_disk_loader (sae_lens/loading/pretrained_sae_loaders.py) takes state_dict['W_dec'].T, but sparsify's W_dec "
    "(sparsify/sparse_coder.py: a copy of encoder.weight) is [latents, d_in] as SAELens wants it; real SAEs are not square, "
    "so that loading them fails.",
)
KNOWN = {
    ("sae-topk-ties", "SAELens"): ("choice", "torch.topk, which leaves the order of equal numbers open."),
    ("sparsify", "SAELens"): TRANSPOSED,
    ("sparsify-decode", "SAELens"): TRANSPOSED,
    ("sparsify-b-dec", "SAELens"): (
        "bug",
        "get_sparsify_config_from_disk sets apply_b_dec_to_input to not normalize_decoder (which is true by default), but "
        "SparseCoder.encode takes b_dec away unless it is a transcoder.",
    ),
    ("sparsify-width", "SAELens"): (
        "bug",
        "get_sparsify_config_from_disk takes expansion_factor only where num_latents is absent; sparsify writes it always, "
        "0 by default, and takes the factor then.",
    ),
    ("dictionary-autoencoder", "dictionary_learning"): (
        "choice",
        "AutoEncoder.from_pretrained has normalize_decoder=True.",
    ),
    ("dictionary-unit-decoder", "SAELens"): ("choice", "it loads decoder columns as they are stored."),
}


def ids_of(inputs):
    return [int(i) for i in inputs["ids"].split(",")]


def chosen(tensors, vector):
    """Of all hook points those that the vector has."""
    return {name: tensors[name] for name in vector["expected"]}


# ---- models ----


def grad_of(inputs):
    return tuple(int(i) for i in inputs["grad"].split(",")) if "grad" in inputs else None


def fast_tokenizer(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"), bos_token="<bos>")


def run_transformers(vector):
    import hf_hooks
    import train_adapter

    inputs = vector["inputs"]
    if vector["kind"] == "train":
        return run_training(inputs)
    if vector["kind"] != "dump" or "hooks" not in inputs or inputs["hooks"] == "image.rgb":
        return None
    if "llm" not in inputs:
        pixels = hf_hooks.pixels_of(inputs["vision"], inputs["image"], hf_hooks.vision_size(inputs["vision"]))
        return chosen(hf_hooks.run_vision(inputs["vision"], pixels)[0], vector)
    if "image" not in inputs:
        return chosen(hf_hooks.run_language(inputs["llm"], ids_of(inputs), grad_of(inputs))[0], vector)
    turns = [("user", "<image>\n" + inputs["prompt"])]
    text = train_adapter.render(turns)[0] + "<start_of_turn>model\n"
    tokenizer = fast_tokenizer(inputs["llm"])
    ids = [tokenizer.bos_token_id] + tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = hf_hooks.vision_language(inputs["llm"], ids, inputs["vision"], inputs["adapter"], inputs["image"])
    return chosen(hf_hooks.run_language(inputs["llm"], ids, None, torch.float32, stream)[0], vector)


def run_training(inputs):
    import hf_hooks
    import train_adapter

    model, tower = (hf_hooks.load(inputs[key]) for key in ("llm", "vision"))
    tokenizer, size = fast_tokenizer(inputs["llm"]), hf_hooks.vision_size(inputs["vision"])
    start = load_file(inputs["adapter"])
    weight, bias = (start[key].clone().requires_grad_() for key in ("weight", "bias"))
    optimizer = torch.optim.AdamW([weight, bias], lr=inputs["lr"], weight_decay=0.01)
    with open(inputs["data"]) as file:
        rows = json.load(file)
    losses = []
    for step in range(inputs["steps"]):
        row = rows[step % len(rows)]
        pixels = hf_hooks.pixels_of(inputs["vision"], os.path.join(inputs["images"], row["image"]), size)
        with torch.no_grad():
            features = tower(pixels[None]).last_hidden_state[0, 1:]
        example = train_adapter.tokenize_example(tokenizer, row, 64)
        loss = train_adapter.batch_loss(model, [example], [features @ weight.T + bias])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = train_adapter.rate_at(step, inputs["steps"], inputs["lr"], inputs["min_lr"], 0)
        optimizer.step()
    return {"loss": torch.tensor(losses, dtype=torch.float64), "weight": weight.detach()}


def run_transformer_lens(vector):
    import compare_transformerlens

    inputs = vector["inputs"]
    if vector["kind"] != "dump" or "ids" not in inputs:
        return None
    tensors = compare_transformerlens.run_transformerlens(inputs["llm"], ids_of(inputs), grad_of(inputs))
    return chosen(tensors, vector)


def run_torch(vector):
    if vector["kind"] != "adamw":
        return None
    inputs = vector["inputs"]
    p = torch.tensor(inputs["p"], dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.AdamW([p], lr=inputs["lr"], weight_decay=inputs["weight_decay"])
    for _ in range(inputs["steps"]):
        p.grad = torch.tensor(inputs["g"], dtype=torch.float32)
        optimizer.step()
    return {"p": p.detach()}


def run_sage_reference(vector, done={}):
    """Not a library: SAGE from its formulas, on transformers' models. One run serves all vectors."""
    inputs = vector["inputs"]
    if vector["kind"] != "sage":
        return None
    if not done:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sage_reference.py")
        options = ("llm", "saes", "task", "prompts", "nodes", "share", "max_nodes", "projection", "seed")
        words = [word for key in options for word in ("--" + key.replace("_", "-"), str(inputs[key]))]
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, script, *words, "--out", folder], check=True, capture_output=True)
            with open(os.path.join(folder, "expected.json")) as file:
                done["figures"] = json.load(file)
    return {"figures": np.array(list(below(done["figures"], inputs["path"])), dtype=float)}


def below(value, path):
    """Numbers below a path of keys, which passes through lists; null is NaN."""
    if isinstance(value, list):
        for item in value:
            yield from below(item, path)
    elif path:
        yield from below((value or {}).get(path[0]), path[1:])
    else:
        yield value


# ---- SAEs ----


def rows_of(inputs):
    return next(iter(load_file(inputs["input"]).values()))


def run_sae_lens(vector):
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class

    inputs = vector["inputs"]
    if "sae" not in inputs:
        return None
    path, x = inputs["sae"], rows_of(inputs)
    loaders.hf_hub_download = lambda repo_id, filename, subfolder="", **_: os.path.join(repo_id, subfolder, filename)
    if path.startswith("sae/"):
        sae = SAE.load_from_disk(path, device="cpu")
        if "norm_factor" in inputs:
            sae.fold_activation_norm_scaling_factor(inputs["norm_factor"])
    else:
        first, rest = path.split("/", 1)
        if first == "sparsify":
            cfg, state = loaders.sparsify_disk_loader(path, cfg_overrides={"dtype": "float32"})
        elif first == "dictionary":
            cfg, state, _ = loaders.dictionary_learning_sae_huggingface_loader_1(first, rest)
        else:
            sizes = {"d_in": 6, "d_sae": 10}
            cfg, state, _ = loaders.gemma_2_sae_huggingface_loader(first, rest, cfg_overrides=sizes)
        cfg = loaders.handle_config_defaulting(cfg)
        kind, config = get_sae_class(cfg["architecture"])
        sae = kind(config.from_dict(cfg))
        sae.process_state_dict_for_loading(state)
        sae.load_state_dict(state)
    with torch.no_grad():
        acts = sae.encode(x)
        return {"acts": acts, "recon": sae.decode(acts)}


def run_sparsify(vector):
    from sparsify import SparseCoder

    inputs = vector["inputs"]
    if not inputs.get("sae", "").startswith("sparsify/"):
        return None
    sae, x = SparseCoder.load_from_disk(inputs["sae"]), rows_of(inputs)
    with torch.no_grad():
        top, places, _ = sae.encode(x)
        acts = torch.zeros(len(x), sae.num_latents).scatter(1, places, top)
        return {"acts": acts, "recon": sae.decode(top, places)}


def run_dictionary_learning(vector):
    inputs = vector["inputs"]
    if not inputs.get("sae", "").startswith("dictionary/"):
        return None
    import make_dictionary_golden

    name, path = os.path.basename(inputs["sae"]), os.path.join(inputs["sae"], "ae.pt")
    load = getattr(make_dictionary_golden, name).from_pretrained
    with torch.no_grad():
        sae = load(path, k=3) if "TopK" in name else load(path)
        acts = sae.encode(rows_of(inputs))
        return {"acts": acts, "recon": sae.decode(acts)}


# ---- texts and pictures ----


def run_tokenizers(vector):
    from tokenizers import Tokenizer

    if vector["kind"] != "tokenize":
        return None
    inputs = vector["inputs"]
    tokenizer = Tokenizer.from_file(os.path.join(inputs["tokenizer"], "tokenizer.json"))
    if "text" in inputs:
        return {"ids": np.array(tokenizer.encode(inputs["text"], add_special_tokens="special" in inputs).ids)}
    return {"utf8": np.frombuffer(tokenizer.decode(ids_of(inputs)).encode(), dtype=np.uint8)}


def run_pillow(vector):
    from PIL import Image

    inputs = vector["inputs"]
    if inputs.get("hooks") not in ("image.rgb", "vision.pixel_values"):
        return None
    picture = Image.open(inputs["image"]).convert("RGB")
    if inputs["hooks"] == "image.rgb":
        return {"image.rgb": np.asarray(picture)}
    with open(os.path.join(inputs["vision"], "preprocessor_config.json")) as file:
        size = json.load(file)["crop_size"]
    short, long = min(picture.size), max(picture.size)
    scale = lambda side: size if side == short else int(size * long / short)
    picture = picture.resize((scale(picture.width), scale(picture.height)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    mean = np.float32([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = np.float32([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return {"vision.pixel_values": ((pixels * (1 / 255)).astype(np.float32) - mean) / std}


LIBRARIES = {
    "transformers": ("transformers", run_transformers),
    "TransformerLens": ("transformer-lens", run_transformer_lens),
    "SAELens": ("sae-lens", run_sae_lens),
    "sparsify": ("eai-sparsify", run_sparsify),
    "dictionary_learning": ("dictionary-learning", run_dictionary_learning),
    "tokenizers": ("tokenizers", run_tokenizers),
    "Pillow": ("pillow", run_pillow),
    "torch": ("torch", run_torch),
    "sage_reference.py on transformers": ("transformers", run_sage_reference),
}


# ---- verdicts ----


def distance(found, expected):
    """Over the largest expected number; infinite for other shapes."""
    largest = most = 0.0
    for name, tensor in expected.items():
        a, b = np.asarray(found[name], dtype=np.float64).ravel(), np.array(tensor["values"], dtype=np.float64)
        if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
            return np.inf
        largest, most = max(largest, np.nanmax(np.abs(b))), max(most, np.nanmax(np.abs(a - b)))
    return most / largest


def verdict(vector, run):
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the table is all that is printed
            found = run(vector)
    except Exception as error:  # whatever a library raises is its answer
        return f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"
    if found is None:
        return None
    apart = distance(found, vector["expected"])
    if apart <= vector["tolerance"]:
        return "pass"
    for wrong in vector["wrong"]:
        if distance(found, wrong["expected"]) <= vector["tolerance"]:
            return "reads: " + wrong["reading"]
    return "other ids" if vector["tolerance"] == 0 and np.isinf(apart) else f"off by {apart:.1g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vectors", default=os.path.join(os.path.dirname(__file__), "..", "..", "vectors"))
    parser.add_argument("--only", default="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.chdir(args.vectors)
    with open("index.json") as file:
        vectors = [v for v in json.load(file) if fnmatch.fnmatchcase(v["name"], args.only)]
    versions = {}
    for library, (package, _) in LIBRARIES.items():
        try:
            versions[library] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{library} is not installed", file=sys.stderr)
    print("| vector | " + " | ".join(f"{library} {version}" for library, version in versions.items()) + " |")
    print("|---" * (len(versions) + 1) + "|")
    counts, found, alone = {library: [0, 0] for library in versions}, {}, []
    for vector in vectors:
        cells = {library: verdict(vector, LIBRARIES[library][1]) for library in versions}
        for library, cell in cells.items():
            if cell is not None:
                counts[library][0] += cell == "pass"
                counts[library][1] += 1
            if cell not in (None, "pass"):
                found[vector["name"], library] = cell
        if any(cells.values()):
            print(f"| {vector['name']} | " + " | ".join(cell or "" for cell in cells.values()) + " |", flush=True)
        else:
            alone.append(vector["name"])
    print("| passes | " + " | ".join(f"{a} of {b}" for a, b in counts.values()) + " |\n")
    print("No library computes: " + ", ".join(alone) + ".\n")
    for (name, library), cell in found.items():
        kind, why = KNOWN.get((name, library), ("unknown", "not explained yet"))
        print(f"* {name}, {library} ({cell}). {kind.capitalize()}: {why}")
    known = {key for key in KNOWN if key[1] in versions and any(v["name"] == key[0] for v in vectors)}
    sys.exit(0 if known == set(found) else 1)


if __name__ == "__main__":
    main()

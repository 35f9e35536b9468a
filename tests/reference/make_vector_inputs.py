"""Inputs of the conformance vectors that refsae does not draw itself: what other programs write.

Writes into selftest/: dictionary/ (ae.pt and config.json as dictionary_learning saves them),
gemma-scope-2b-pt-res/ (params.npz), tokenizers/gemma (a BPE with byte fallback), and into images/
pictures by Pillow. Weights vary widely, so that no step can be left out unnoticed.

Written for dictionary-learning 0.1.0, torch 2.13.0, numpy 2.4.6, Pillow 13.0.0.

    python3 tests/reference/make_vector_inputs.py
"""

import json
import os
import shutil

import numpy as np
import torch
from make_dictionary_golden import AutoEncoder, AutoEncoderTopK, BatchTopKSAE, GatedAutoEncoder, JumpReluAutoEncoder
from PIL import Image

D_IN, D_SAE, K = 6, 10, 3


def dictionaries(generator):
    for sae in (
        AutoEncoder(D_IN, D_SAE),
        AutoEncoderTopK(D_IN, D_SAE, K),
        BatchTopKSAE(D_IN, D_SAE, K),
        JumpReluAutoEncoder(D_IN, D_SAE),
        GatedAutoEncoder(D_IN, D_SAE),
    ):
        name = type(sae).__name__
        folder = os.path.join("selftest", "dictionary", name)
        os.makedirs(folder, exist_ok=True)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            if name == "JumpReluAutoEncoder":
                sae.threshold.copy_(sae.threshold.abs())
            if name in ("AutoEncoderTopK", "BatchTopKSAE"):
                sae.threshold.fill_(0.7)
        torch.save(sae.state_dict(), os.path.join(folder, "ae.pt"))
        trainer = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": 1}
        trainer |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_1"}
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump({"trainer": trainer, "buffer": {"ctx_len": 128}}, f, indent=1)


def gemmascope(generator):
    folder = "selftest/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_4"
    os.makedirs(folder, exist_ok=True)
    draw = lambda *shape: (0.5 * torch.randn(shape, generator=generator)).numpy()
    np.savez(
        os.path.join(folder, "params.npz"),
        W_enc=draw(D_IN, D_SAE),
        W_dec=draw(D_SAE, D_IN),
        b_enc=draw(D_SAE),
        b_dec=draw(D_IN),
        threshold=np.abs(draw(D_SAE)),
    )


def tokenizer():
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    words = special + [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581"] + list("aehlot")
    merges = ["h e", "l l", "\u2581 t", "he ll", "hell o"]
    vocab = {word: i for i, word in enumerate(words + [merge.replace(" ", "") for merge in merges])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    settings = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags, "special": True} for i, t in enumerate(special)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    os.makedirs("selftest/tokenizers/gemma", exist_ok=True)
    with open("selftest/tokenizers/gemma/tokenizer.json", "w") as f:
        json.dump(settings, f)


def pictures():
    random = np.random.default_rng(1)
    colours = random.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    smooth = Image.fromarray(colours).resize((18, 14), Image.Resampling.BICUBIC)
    save = lambda picture, name, **how: picture.save(os.path.join("selftest", "images", name), **how)
    save(smooth.crop((0, 0, 9, 7)), "chroma_420.jpg", quality=90, subsampling="4:2:0")
    save(smooth.crop((0, 0, 9, 7)), "chroma_422.jpg", quality=90, subsampling="4:2:2")
    save(smooth.crop((0, 0, 9, 7)), "progressive.jpg", quality=70, progressive=True)
    save(Image.fromarray(random.integers(0, 256, (4, 5, 4), dtype=np.uint8), "CMYK"), "cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(Image.fromarray(colours[:4, :6]), "exif.jpg", quality=90, exif=exif)
    save(Image.fromarray(random.integers(0, 256, (4, 5, 4), dtype=np.uint8), "RGBA"), "alpha.png")
    save(Image.fromarray(random.integers(0, 700, (4, 5), dtype=np.uint16)), "gray16.png")
    shutil.copy("tests/golden/image/c2_16.png", "selftest/images/colour16.png")
    save(Image.fromarray(random.integers(0, 256, (31, 17, 3), dtype=np.uint8)), "tall.png")
    save(Image.fromarray(random.integers(0, 256, (17, 31, 3), dtype=np.uint8)), "wide.png")


if __name__ == "__main__":
    numbers = torch.Generator().manual_seed(1)
    dictionaries(numbers)
    gemmascope(numbers)
    tokenizer()
    pictures()

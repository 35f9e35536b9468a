"""Writes tests/golden/tokenizer_config.json: what transformers makes of added tokens that only
tokenizer_config.json declares, or declares with other flags than tokenizer.json.

    python3 tests/reference/make_tokenizer_config_golden.py

A list of {"model", "config", "text", "ids"}: config is put over weights/MODEL/tokenizer_config.json,
ids are without special tokens. Needs transformers 5.23.0.
"""
import json
import os
import shutil
import tempfile

from transformers import AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
WEIGHTS = os.path.join(HERE, "..", "..", "weights")
OUT = os.path.join(HERE, "..", "golden", "tokenizer_config.json")
TEXT = "a<new>b <two> zz<|endoftext|>x <|endoftext|> b y<|endoftext|>z  <new>  q<bos>c <bos> d"


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
            "special": True} | flags


def configs(model):
    root = json.load(open(os.path.join(WEIGHTS, model, "tokenizer.json")))
    added = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in root["added_tokens"]}
    size = max([*root["model"]["vocab"].values(), *map(int, added)]) + 1
    first = "<bos>" if model == "gemma2" else "<|endoftext|>"
    place = next(i for i, t in added.items() if t["content"] == first)

    def decoder(more):
        return {"added_tokens_decoder": added | more}

    yield {}
    yield decoder({str(size): token("<new>")})
    yield decoder({str(size + 70): token("<two>"), str(size + 9): token("<new>")})  # the order counts
    yield decoder({str(size): token("<new>", lstrip=True, special=False)})
    yield decoder({str(size): token("<new>", rstrip=True)})
    yield decoder({str(size): {"content": "zz"}})
    yield {"bos_token": "<new>"}
    yield {"bos_token": token("<new>", lstrip=True) | {"__type": "AddedToken"}}
    yield decoder({str(size): token("<two>")}) | {"pad_token": "<new>"}
    yield decoder({}) | {"extra_special_tokens": ["<new>", "zz"]}
    yield {"extra_special_tokens": {"image": "<new>", "other": "<two>"}}
    yield {"mask_token": "<new>", "additional_special_tokens": ["zz", "<two>"]}
    for flag in ("lstrip", "rstrip", "single_word", "normalized"):
        yield decoder({place: added[place] | {flag: not added[place][flag]}})


def main():
    cases = []
    for model in ("gpt2", "gpt_neox", "gemma2"):
        for config in configs(model):
            with tempfile.TemporaryDirectory() as folder:
                for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
                    shutil.copy(os.path.join(WEIGHTS, model, name), folder)
                path = os.path.join(folder, "tokenizer_config.json")
                config = json.load(open(path)) | config
                json.dump(config, open(path, "w"))
                tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
            cases.append({"model": model, "config": json.dumps(config), "text": TEXT, "ids": ids})
    with open(OUT, "w") as out:
        out.write("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


main()

"""Writes weights/planted: a GPT-2 whose weights follow from the description of its circuit, SAEs of
its residual stream that hold just the circuit's features, and the same SAEs spoiled.

Nothing is trained. Every vector of the residual stream is a sum of known features with known
coefficients, so that for SAGE (SPEC 7) the true cross-sections, dictionaries and codes are known.

The task is IOI with eight names: "Then Ann and Bob met. Bob gave a ring to" -> " Ann".

The stream (48 dimensions). Features are cosine waves, which are orthonormal and have mean 0; each
token and each position writes one, and each head of the circuit some:

  constant   R times, by every position: it is b_dec of the SAEs. The norm of a LayerNorm is then
             R's, to 2 in R^2, and its gradient next to nothing along all else (what makes scores
             of attribution patching linear)
  name:v     by the token of a name (eight)         word, to   by all other tokens, by " to"
  sink, first, second, else   by positions 0, 2 and 4 (where names stand), and the others
  duplicate, found   by head 0.0 at S2: +- P as S stood first or second before; P
  inhibit            by head 1.0 at END: the same, +- 1
  before:v           by head 1.1 at END: the first name (eight; nothing reads them)
  said               seven dimensions, in which the eight directions said:v are the corners of a
                     simplex (their sum is 0), by heads 2.0 and 2.1 at END: +1 IO's, -1 S's

The circuit (layer.head; attention is one-hot but where P is named):

  0.0 at S2    duplicate token. Query: the name; key: the name, at first and second alone.
               P = 0.9 on S1, the rest on the sink. Value: first - second, first + second.
  1.0 at END   S-inhibition. Query: to; key: found. Value: duplicate.
  2.0 at END   name mover. Query: inhibit; key: first - second. P on IO, 1 - P on S1. Value: the
               name's corner; writes said.
  2.1 at END   the opposite: P on S1, 1 - P on IO, and writes -said.
  1.1 at END   a decoy. Query: to; key: first. Value: the name; writes before.

MLPs are 0. The model's head reads said:v for a name: the logits are 2 for IO, -2 for S, 0 for other
names. All other tokens read the constant: -4, and 1 for " it", so that without an answer there is no
tie. A head that has nothing to do attends to the sink, whose value is 0.

The truth of an attribute: nodes that change with it and on which m depends (truth.json, in the form
of --cross-sections). roles.json: the same nodes by what they do in the circuit.

SAEs of resid_pre 0, 1, 2 and resid_post 2, one dictionary for all, JumpReLU: 43 features, one each
for what is above, two for what has two signs (duplicate, inhibit), and for said:v two, as IO's and
as S's. Thresholds stand at half of the coefficient, so that codes are exact.

  perfect   as described
  merged    names in pairs: one feature instead of two, along their sum
  split     at END "IO is v" in two, by whether S is of the first four names or not
  missing   the last four names are not known
  noisy     decoder rows with a random vector of half their length added
  rotated   +- the features' space's own axes, turned: reconstructs as well, means nothing

prompts.jsonl: every pair of names in both forms once a split, so that all values are balanced.
truth.safetensors: for every node of the truth "NODE.HEAD.POSITION" + ".base" [16] and ".ATTRIBUTE"
[values, 16]: the activation of a prompt is base + the sum of its values' rows.

    python3 tests/reference/make_planted.py [--check | --tables PROGRAM]

Written for numpy 2.4.6 and safetensors 0.8.0. --check (torch 2.13.0, transformers 5.23.0) compares
with what transformers computes; --tables prints what `refsae sage` makes of it: precision and recall
of the walk, and the figures of each SAE.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import tempfile

import numpy as np
from safetensors.numpy import save_file

OUT = os.path.join("weights", "planted")
D, HEADS, D_HEAD, LAYERS, POSITIONS = 48, 3, 16, 3, 20
R, P, EPS = 16.0, 0.9, 1e-5
SURE = 40.0  # a score that leaves nothing to others: e^-40
METRIC = 4.0  # m of every prompt
NAMES = ["Ann", "Bob", "Dan", "Eve", "Kim", "Max", "Sue", "Tom"]
N = len(NAMES)
FORMS = ["ABB", "BAB"]
TASK = {
    "name": "planted",
    "attributes": {"IO": NAMES, "S": NAMES, "Pos": FORMS},
    "form": "Pos",
    "distinct": [["IO", "S"]],
    "fillers": {"OBJ": {"train": ["ring", "book"], "test": ["cup", "map"]}},
    "templates": {
        "train": ["Then {A} and {B} met. {S} gave it to", "When {A} and {B} met, {S} sent a {OBJ} to",
                  "After {A} and {B} met, {S} gave the {OBJ} to"],
        "test": ["While {A} and {B} met, {S} sent it to", "Once {A} and {B} met. {S} gave a {OBJ} to"]},
    "answer": "IO",
    "wrong": "S",
    "positions": {"IO": "IO#1", "S1": "S#1", "S2": "S#2", "END": "end"},
}
for split, templates in TASK["templates"].items():
    TASK["templates"][split] = [
        {"ABB": t.replace("{A}", "{IO}").replace("{B}", "{S}"),
         "BAB": t.replace("{A}", "{S}").replace("{B}", "{IO}")} for t in templates]


# ---- features of the stream ----

def wave(k):
    return math.sqrt(2 / D) * np.cos(math.pi * k * (np.arange(D) + 0.5) / D)


def simplex():
    """[N, N - 1]: unit vectors from the centre of a simplex to its corners."""
    helmert = np.array([[1.0] * k + [-k] + [0.0] * (N - 1 - k) for k in range(1, N)])
    corners = (helmert / np.linalg.norm(helmert, axis=1, keepdims=True)).T
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)


CORNER = simplex()
SINGLE = ["constant", "word", "to", "sink", "first", "second", "else", "duplicate", "found", "inhibit"]
F = {name: wave(1 + i) for i, name in enumerate(SINGLE)}
NAME = np.array([wave(1 + len(SINGLE) + v) for v in range(N)])
BEFORE = np.array([wave(1 + len(SINGLE) + N + v) for v in range(N)])
SAID = CORNER @ np.array([wave(1 + len(SINGLE) + 2 * N + k) for k in range(N - 1)])


def scale(square):
    """Of a LayerNorm that reads a vector of this square beside the constant's."""
    return math.sqrt((R * R + square) / D + EPS)


SCALE = scale(2)  # nothing but a token and a position
SCALE_S2 = scale(2 + 2 * P * P)  # and head 0.0's
SCALE_END = scale(4)  # and 1.0's and 1.1's
SCALE_LAST = scale(4 + 2 * (1 + 1 / (N - 1)))  # and 2.0's and 2.1's

# ---- the circuit ----

ODDS = math.log(P / (1 - P))  # the difference of two scores for P and 1 - P
MATCH = 17.0  # of a name with itself; with another one -1 / 7 of it
OUTPUT = 1 / (2 * P - 1)  # of 2.0 and 2.1: what is said has the coefficient 1
ROOT = math.sqrt(D_HEAD)  # scores are divided by it


class Weights:
    """Per layer: q, k, v [heads, d_head, d] with biases, and o [heads, d_head, d]."""

    def __init__(self):
        self.w = {c: np.zeros((LAYERS, HEADS, D_HEAD, D)) for c in "qkvo"}
        self.b = {c: np.zeros((LAYERS, HEADS, D_HEAD)) for c in "qkv"}

    def read(self, part, layer, head, dim, direction, gain=1.0, at=SCALE):
        """Dimension `dim` is gain times the coefficient of `direction`, at a norm of this scale."""
        self.w[part][layer, head, dim] += gain * at * direction

    def write(self, layer, head, dim, direction, gain=1.0):
        self.w["o"][layer, head, dim] += gain * direction

    def score(self, layer, head, dim, key, score):
        """Every query gives the keys that hold `key` this score more."""
        self.b["q"][layer, head, dim] = ROOT * SURE
        self.read("k", layer, head, dim, key, score / SURE)


def circuit():
    w = Weights()
    # 0.0: seven dimensions compare names, the eighth keeps to first and second, the ninth sends to
    # the sink whoever stands there himself
    for k in range(N - 1):
        for part in "qk":
            w.read(part, 0, 0, k, CORNER[:, k] @ NAME, math.sqrt(MATCH * ROOT))
    w.score(0, 0, 7, F["first"] + F["second"], ODDS - MATCH)
    w.score(0, 0, 7, F["else"], -MATCH - SURE)
    w.read("q", 0, 0, 8, F["first"] + F["second"], math.sqrt(SURE * ROOT))
    w.read("k", 0, 0, 8, F["sink"], math.sqrt(SURE * ROOT))
    w.read("v", 0, 0, 0, F["first"] - F["second"])
    w.read("v", 0, 0, 1, F["first"] + F["second"])
    w.write(0, 0, 0, F["duplicate"])
    w.write(0, 0, 1, F["found"])
    # 1.0, 1.1: the sink, unless the query is " to"
    for head, key, at in ((0, F["found"] / P, SCALE_S2), (1, F["first"], SCALE)):
        w.score(1, head, 0, F["sink"], SURE)
        w.read("q", 1, head, 1, F["to"], ROOT)
        w.read("k", 1, head, 1, key, 2 * SURE, at)
    w.read("v", 1, 0, 0, F["duplicate"], 1 / P, SCALE_S2)
    w.write(1, 0, 0, F["inhibit"])
    for v in range(N):
        w.read("v", 1, 1, v, NAME[v])
        w.write(1, 1, v, BEFORE[v])
    # 2.0, 2.1
    for head, sign in ((0, 1), (1, -1)):
        w.score(2, head, 0, F["first"] + F["second"], SURE)
        w.read("q", 2, head, 1, F["inhibit"], math.sqrt(ODDS / 2 * ROOT), SCALE_END)
        w.read("k", 2, head, 1, F["second"] - F["first"], sign * math.sqrt(ODDS / 2 * ROOT))
        for k in range(N - 1):
            w.read("v", 2, head, k, CORNER[:, k] @ NAME)
            w.write(2, head, k, np.linalg.pinv(CORNER)[k] @ SAID, sign * OUTPUT)
    return w


def truth():
    """{node: {"base", attribute: features}}, node (layer, component, head, position)."""
    form = np.array([[-1.0], [1.0]])  # ABB, BAB: where S stood first, +
    corners = np.pad(CORNER, ((0, 0), (0, D_HEAD - N + 1)))

    def row(**dims):
        out = np.zeros(D_HEAD)
        for dim, x in dims.items():
            out[int(dim[1:])] = x
        return out

    match = math.sqrt(MATCH * ROOT) * corners
    steer = math.sqrt(ODDS / 2 * ROOT)
    nodes = {
        (0, "q", 0, "S2"): {"base": row(d7=ROOT * SURE), "S": match},
        (0, "k", 0, "S1"): {"base": row(d7=(ODDS - MATCH) / SURE), "S": match},
        (0, "v", 0, "S1"): {"base": row(d1=1), "Pos": form * row(d0=1)},
        (0, "z", 0, "S2"): {"base": row(d1=P), "Pos": form * row(d0=P)},
        (1, "v", 0, "S2"): {"base": row(), "Pos": form * row(d0=1)},
        (1, "z", 0, "END"): {"base": row(), "Pos": form * row(d0=1)},
    }
    for head, sign, io in ((0, 1, P), (1, -1, 1 - P)):
        nodes[2, "q", head, "END"] = {"base": row(d0=ROOT * SURE), "Pos": form * row(d1=steer)}
        for position, place in (("IO", 1), ("S1", -1)):  # IO stands first where S stands second
            nodes[2, "k", head, position] = {"base": row(d0=1),
                                             "Pos": sign * place * form * row(d1=steer)}
        nodes[2, "v", head, "IO"] = {"base": row(), "IO": corners}
        nodes[2, "v", head, "S1"] = {"base": row(), "S": corners}
        nodes[2, "z", head, "END"] = {"base": row(), "IO": io * corners, "S": (1 - io) * corners}
    return nodes


ROLES = {
    "duplicate queries": [(0, "q", 0, "S2")],
    "duplicate outputs": [(0, "z", 0, "S2")],
    "inhibition values": [(1, "v", 0, "S2")],
    "inhibition outputs": [(1, "z", 0, "END")],
    "mover queries": [(2, "q", 0, "END"), (2, "q", 1, "END")],
    "mover values": [(2, "v", h, p) for h in (0, 1) for p in ("IO", "S1")],
    "mover outputs": [(2, "z", 0, "END"), (2, "z", 1, "END")],
}


def section(nodes):
    return {"nodes": [{"node": "blocks.%d.attn.hook_%s" % (layer, part), "head": head, "position": position}
                      for layer, part, head, position in nodes]}


# ---- tokenizer ----

def split_words(text):
    return re.findall(r" ?[A-Za-z]+|[.,]", text)


def byte_alphabet():
    """GPT-2's letter for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def tokenizer():
    """Byte-level BPE whose merges build each word of the task from its front."""
    letters = byte_alphabet()
    words = [" " + name for name in NAMES]
    for split, templates in TASK["templates"].items():
        words += [" " + w for w in TASK["fillers"]["OBJ"][split]]
        words += [w for t in templates for w in split_words(re.sub("{.*?}", "|", t["ABB"]))]
    vocab = {letter: i for i, letter in enumerate(letters[b] for b in sorted(letters))}
    merges = []
    for word in dict.fromkeys(words):
        pieces = [letters[b] for b in word.encode()]
        for k in range(1, len(pieces)):
            pair = ["".join(pieces[:k]), pieces[k]]
            if "".join(pair) not in vocab:
                merges.append(pair)
                vocab["".join(pair)] = len(vocab)
    end = len(vocab)
    vocab["<|endoftext|>"] = end
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": end, "content": "<|endoftext|>", "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": True, "special": True}],
        "normalizer": None, "pre_tokenizer": level, "post_processor": dict(level, trim_offsets=False),
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False, "vocab": vocab, "merges": merges}}


# ---- the checkpoint ----

def checkpoint(vocab):
    w = circuit()
    ids = {word: vocab["\u0120" + word] for word in [*NAMES, "to", "it"]}
    wte = np.tile(F["word"], (len(vocab), 1))
    wpe = np.tile(R * F["constant"] + F["else"], (POSITIONS, 1))
    head = np.tile(-METRIC * SCALE_LAST / R * F["constant"], (len(vocab), 1))
    wte[ids["to"]] = F["to"]
    head[ids["it"]] *= -1 / 4
    for v, name in enumerate(NAMES):
        wte[ids[name]] = NAME[v]
        head[ids[name]] = METRIC * SCALE_LAST / (2 * (1 + 1 / (N - 1))) * SAID[v]
    for position, feature in ((0, "sink"), (2, "first"), (4, "second")):
        wpe[position] = R * F["constant"] + F[feature]
    tensors = {"transformer.wte.weight": wte, "transformer.wpe.weight": wpe, "lm_head.weight": head}
    for layer in range(LAYERS):
        h = "transformer.h.%d." % layer
        columns = [w.w[c][layer].reshape(HEADS * D_HEAD, D).T for c in "qkv"]
        tensors[h + "attn.c_attn.weight"] = np.concatenate(columns, axis=1)
        tensors[h + "attn.c_attn.bias"] = np.concatenate([w.b[c][layer].reshape(-1) for c in "qkv"])
        tensors[h + "attn.c_proj.weight"] = w.w["o"][layer].reshape(HEADS * D_HEAD, D)
        tensors[h + "attn.c_proj.bias"] = np.zeros(D)
        for name, rows, columns in (("mlp.c_fc", D, 1), ("mlp.c_proj", 1, D)):
            tensors[h + name + ".weight"] = np.zeros((rows, columns))
            tensors[h + name + ".bias"] = np.zeros(columns)
    for norm in [*("transformer.h.%d.ln_%d" % (i, k) for i in range(LAYERS) for k in (1, 2)),
                 "transformer.ln_f"]:
        tensors[norm + ".weight"] = np.ones(D)
        tensors[norm + ".bias"] = np.zeros(D)
    return tensors


def config(n_vocab):
    return {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.0,
            "bos_token_id": n_vocab - 1, "dtype": "float32", "embd_pdrop": 0.0, "eos_token_id": n_vocab - 1,
            "layer_norm_epsilon": EPS, "model_type": "gpt2", "n_embd": D, "n_head": HEADS, "n_inner": 1,
            "n_layer": LAYERS, "n_positions": POSITIONS, "resid_pdrop": 0.0, "tie_word_embeddings": False,
            "vocab_size": n_vocab}


# ---- prompts ----

def fill(template, values):
    """Words, and the places of the slots' occurrences among them."""
    words, places = [], {}
    for word in split_words(re.sub(r"{(\w+)}", r"\1", template)):
        slot = word.strip()
        if slot in values:
            places.setdefault(slot, []).append(len(words))
            word = word.replace(slot, values[slot])
        words.append(word)
    return words, places


def prompt(vocab, split, number, values):
    """A row of prompts.jsonl without its counterfactuals."""
    templates, objects = TASK["templates"][split], TASK["fillers"]["OBJ"][split]
    template = templates[number % len(templates)][values["Pos"]]
    words, places = fill(template, dict(values, OBJ=objects[number % len(objects)]))
    ids = [vocab["<|endoftext|>"]] + [vocab[w.replace(" ", "\u0120")] for w in words]
    return {"text": "".join(words), "ids": ids,
            "positions": {"IO": 1 + places["IO"][0], "S1": 1 + places["S"][0], "S2": 1 + places["S"][1],
                          "END": len(ids) - 1},
            "answer": [vocab["\u0120" + values["IO"]]], "wrong": [vocab["\u0120" + values["S"]]]}


def prompts(vocab):
    """Of each split every pair of names in both forms; counterfactual values drawn."""
    rng = random.Random(7)
    rows = []
    for split in ("train", "test"):
        number = 0
        for io in NAMES:
            for s in NAMES:
                for form in FORMS if io != s else ():
                    values = {"IO": io, "S": s, "Pos": form}
                    clean = prompt(vocab, split, number, values)
                    row = {"split": split, "text": clean["text"], "ids": clean["ids"], "values": values,
                           "positions": clean["positions"], "answer": clean["answer"],
                           "wrong": clean["wrong"], "counterfactual": {}}
                    for attribute, all_values in TASK["attributes"].items():
                        taken = (io, s) if attribute != "Pos" else (form,)
                        value = rng.choice([v for v in all_values if v not in taken])
                        other = prompt(vocab, split, number, dict(values, **{attribute: value}))
                        del other["text"]
                        row["counterfactual"][attribute] = {"value": value, **other}
                    rows.append(row)
                    number += 1
    return rows


# ---- SAEs ----

class Dictionary:
    """Features (decoder row, encoder column, bias, threshold) over the stream less the constant."""

    def __init__(self):
        self.features = []

    def add(self, row, column=None, code=1.0, bias=0.0):
        """`code` is the coefficient that the feature has where it is active."""
        self.features.append((row, row if column is None else column, bias, code / 2))

    def arrays(self):
        return [np.array(x) for x in zip(*self.features)]


def dictionary(pairs=False, split=False, known=N):
    """The perfect one; or with names in pairs, IO's split, or only the first `known` names."""
    out = Dictionary()
    for name in SINGLE[1:]:
        code = P if name in ("duplicate", "found") else 1.0
        out.add(F[name], code=code)
        if name in ("duplicate", "inhibit"):
            out.add(-F[name], code=code)
    groups = [(v, v + 1) for v in range(0, N, 2)] if pairs else [(v,) for v in range(known)]
    for group in groups:
        group = list(group)
        for family, unit in ((NAME, 1.0), (BEFORE, 1.0), (SAID, 1 - 1 / N), (-SAID, 1 - 1 / N)):
            total = family[group].sum(axis=0)
            length = np.linalg.norm(total)
            code = 1.0 if not pairs else length / 2  # of two: that of the nearest along their sum
            if split and family is SAID:
                # half . x is 1 if IO is of the first four, less 1 if S is: the features then read 1
                # where they are to be active and at most -1 elsewhere
                half = unit * SAID[:N // 2].sum(axis=0)
                bias = -3.0 if group[0] < N // 2 else -5.0
                out.add(total, 4 * unit * total - 2 * half, bias=bias)
                out.add(total, 4 * unit * total + 2 * half, bias=-8.0 - bias)
                continue
            out.add(total / length, unit * total * code, code=code)
    return out.arrays()


def spoiled():
    """{name: (W_dec, W_enc, b_enc, threshold)}"""
    rng = np.random.default_rng(11)
    perfect = row, column, bias, threshold = dictionary()
    noise = rng.standard_normal(row.shape)
    noise *= 0.5 / np.linalg.norm(noise, axis=1, keepdims=True)
    noise -= noise.mean(axis=1, keepdims=True)
    axes = np.array([wave(2 + i) for i in range(len(SINGLE) - 2 + 3 * N)])  # all but the constant
    turned = np.linalg.qr(rng.standard_normal((len(axes), len(axes))))[0] @ axes
    turned = np.concatenate([turned, -turned])
    zeros = np.zeros(len(turned))
    return {"perfect": perfect, "merged": dictionary(pairs=True), "split": dictionary(split=True),
            "missing": dictionary(known=N // 2), "noisy": (row + noise, column, bias, threshold),
            "rotated": (turned, turned, zeros, zeros)}


HOOKS = ["blocks.%d.hook_resid_pre" % i for i in range(LAYERS)] + ["blocks.%d.hook_resid_post" % (LAYERS - 1)]


def sae_config(hook, d_sae):
    return {"architecture": "jumprelu", "d_in": D, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
            "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2-planted", "hook_name": hook,
                         "hook_head_index": None, "prepend_bos": True, "context_size": POSITIONS,
                         "model_from_pretrained_kwargs": {"center_writing_weights": False}}}


# ---- files ----

def save(tensors, *path):
    path = os.path.join(OUT, *path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in tensors.items()}, path,
              metadata={"format": "pt"})


def dump(value, *path, indent=1):
    path = os.path.join(OUT, *path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=indent, ensure_ascii=False)
        f.write("\n")


def write():
    tok = tokenizer()
    vocab = tok["model"]["vocab"]
    nodes = truth()
    dump(tok, "gpt2", "tokenizer.json", indent=None)
    dump({"backend": "tokenizers", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
          "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast",
          "unk_token": "<|endoftext|>"}, "gpt2", "tokenizer_config.json")
    dump(config(len(vocab)), "gpt2", "config.json")
    dump({"bos_token_id": len(vocab) - 1, "eos_token_id": len(vocab) - 1}, "gpt2", "generation_config.json")
    save(checkpoint(vocab), "gpt2", "model.safetensors")
    dump(TASK, "task.json")
    dump({a: section([n for n in nodes if a in nodes[n]]) for a in TASK["attributes"]}, "truth.json")
    dump({role: section(of) for role, of in ROLES.items()}, "roles.json")
    save({"blocks.%d.attn.hook_%s.%d.%s.%s" % (*node, key): x
          for node, parts in nodes.items() for key, x in parts.items()}, "truth.safetensors")
    for name, (row, column, bias, threshold) in spoiled().items():
        for hook in HOOKS:
            dump(sae_config(hook, len(row)), "saes", name, hook, "cfg.json")
            save({"W_enc": column.T, "W_dec": row, "b_enc": bias, "b_dec": R * F["constant"],
                  "threshold": threshold}, "saes", name, hook, "sae_weights.safetensors")
    with open(os.path.join(OUT, "prompts.jsonl"), "w", encoding="utf-8") as f:
        for r in prompts(vocab):
            f.write(json.dumps(r, separators=(",", ":")) + "\n")


# ---- what transformers says ----

def stream(values, hook, position):
    """What is planted in the stream at a hook and a named position."""
    io, s = NAMES.index(values["IO"]), NAMES.index(values["S"])
    first = {"ABB": "IO", "BAB": "S1"}[values["Pos"]]
    sign = -1.0 if first == "IO" else 1.0
    x = R * F["constant"]
    x = x + (F["to"] if position == "END" else NAME[io if position == "IO" else s])
    x = x + F["first" if position == first else "second" if position in ("IO", "S1") else "else"]
    if position == "S2" and hook > 0:
        x = x + P * (sign * F["duplicate"] + F["found"])
    if position == "END" and hook > 1:
        x = x + sign * F["inhibit"] + BEFORE[io if first == "IO" else s]
    if position == "END" and hook > 2:
        x = x + SAID[io] - SAID[s]
    return x


def check():
    import torch
    import transformers
    from safetensors.numpy import load_file

    model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(OUT, "gpt2")).eval()
    tok = transformers.AutoTokenizer.from_pretrained(os.path.join(OUT, "gpt2"))
    rows = [json.loads(line) for line in open(os.path.join(OUT, "prompts.jsonl"), encoding="utf-8")]
    planted = load_file(os.path.join(OUT, "truth.safetensors"))
    saes = {(name, hook): load_file(os.path.join(OUT, "saes", name, hook, "sae_weights.safetensors"))
            for name in os.listdir(os.path.join(OUT, "saes")) for hook in HOOKS}
    got = {}

    def keep(key):
        def hook(_, args, out=None):
            got[key] = (args[0] if out is None else out)[0].numpy()
        return hook

    for i, block in enumerate(model.transformer.h):
        block.register_forward_pre_hook(keep(("resid", i)))
        block.attn.c_attn.register_forward_hook(keep(("qkv", i)))
        block.attn.c_proj.register_forward_pre_hook(keep(("z", i)))
    model.transformer.ln_f.register_forward_pre_hook(keep(("resid", LAYERS)))

    right, margins, stream_off, node_off = 0, [], 0.0, 0.0
    off = {name: [] for name, _ in saes}
    for r in rows:
        assert [tok.bos_token_id] + tok(r["text"])["input_ids"] == r["ids"], r["text"]
        with torch.no_grad():
            logits = model(torch.tensor([r["ids"]])).logits[0, -1].numpy()
        right += logits.argmax() == r["answer"][0]
        margins.append(logits[r["answer"][0]] - logits[r["wrong"][0]])
        for k, hook in enumerate(HOOKS):
            for position, at in r["positions"].items():
                x = got["resid", k][at]
                stream_off = max(stream_off, abs(x - stream(r["values"], k, position)).max())
                for name in off:
                    sae = saes[name, hook]
                    z = (x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
                    f = np.where(z > sae["threshold"], np.maximum(z, 0), 0)
                    off[name].append(np.linalg.norm(x - f @ sae["W_dec"] - sae["b_dec"]))
        for layer, part, head, position in truth():
            key = "blocks.%d.attn.hook_%s.%d.%s" % (layer, part, head, position)
            a = got["z" if part == "z" else "qkv", layer][r["positions"][position]]
            a = a.reshape(-1, HEADS, D_HEAD)["qkv".index(part) if part != "z" else 0, head]
            expected = planted[key + ".base"].astype(float)
            for attribute, values in TASK["attributes"].items():
                if key + "." + attribute in planted:
                    expected = expected + planted[key + "." + attribute][values.index(r["values"][attribute])]
            node_off = max(node_off, abs(a - expected).max())
    print("| %d prompts | |" % len(rows))
    print("|---|---|")
    print("| right answers | %.1f %% |" % (100 * right / len(rows)))
    print("| m | %.6f to %.6f |" % (min(margins), max(margins)))
    print("| stream and planted sum, greatest difference | %.1e |" % stream_off)
    print("| node and planted sum, greatest difference | %.1e |" % node_off)
    for name in ["perfect"] + sorted(set(off) - {"perfect"}):
        print("| SAE `%s`: length of x - x^, greatest and mean | %.1e, %.1e |" %
              (name, max(off[name]), np.mean(off[name])))
    assert right == len(rows) and max(stream_off, node_off, max(off["perfect"])) < 1e-5


# ---- what refsae says ----

def sage(program, saes, *options):
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([program, "sage", "--quiet", "--llm", os.path.join(OUT, "gpt2"), "--saes",
                        os.path.join(OUT, "saes", saes), "--task", os.path.join(OUT, "task.json"),
                        "--prompts", os.path.join(OUT, "prompts.jsonl"), "--out", out, *options], check=True)
        with open(os.path.join(out, "sage.json"), encoding="utf-8") as f:
            return json.load(f)


def tables(program):
    with open(os.path.join(OUT, "truth.json"), encoding="utf-8") as f:
        planted = {a: {tuple(n.values()) for n in part["nodes"]} for a, part in json.load(f).items()}
    print("| precision and recall at --share | " + " | ".join(planted) + " |")
    print("|---|" + "---|" * len(planted))
    for share in ("0.3", "0.5", "0.7", "0.8", "0.9", "0.95", "0.99", "0.999", "0.9999"):
        cells = []
        sections = sage(program, "perfect", "--share", share, "--max-nodes", "100")["cross_sections"]
        for attribute, truth_of in planted.items():
            found = {(n["node"], n["head"], n["position"]) for n in sections[attribute]["nodes"]}
            right = len(found & truth_of)
            cells.append("%.2f %.2f" % (right / len(found), right / len(truth_of)))
        print("| %s | %s |" % (share, " | ".join(cells)))
    print("\n| SAE, section 'mover outputs' | sufficiency | necessity | control of IO by 2, 8 | F1 of 0.8 |")
    print("|---|---|---|---|---|")
    for name in spoiled():
        of = sage(program, name, "--cross-sections", os.path.join(OUT, "roles.json"))["tests"]["mover outputs"]["sae"]
        scores = ["%.2f" % of["control"]["IO"][k]["score"] for k in ("2", "8")]
        print("| %s | %.3f | %.3f | %s | %d of %d |" % (
            name, of["sufficiency"], of["necessity"], " ".join(scores), of["f1"]["0.8"]["features"],
            of["f1"]["0"]["features"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tables", metavar="PROGRAM")
    args = parser.parse_args()
    check() if args.check else tables(args.tables) if args.tables else write()

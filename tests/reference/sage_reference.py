"""SAGE from its formulas alone, with PyTorch and Hugging Face transformers.

The second route to every number of `refsae sage`. It shares with the program only prompts.jsonl,
the weights, the list of nodes drawn for `others` and the list of dropped values. The model is
transformers' own, read and patched through hooks on its modules, in float32 (--double: float64, to
know the noise floor); all linear algebra is numpy's, in float64.

    python3 tests/reference/sage_reference.py --llm DIR --saes DIR --prompts prompts.jsonl \\
        --task TASKFILE --sage sage.json --cross cross_sections.csv [--double]
    python3 tests/reference/sage_reference.py ... --out DIR [--all-effects]
    python3 tests/reference/sage_reference.py --llm DIR --prompts prompts.jsonl --gradients

The first form compares each number of sage.json and cross_sections.csv with its own, prints the
worst difference of each kind and exits with 1 beyond the tolerance. --out writes what was found
here, expected.json in sage.json's form and expected.csv (cross_sections.csv without effects).
--all-effects patches every node of every attribute and prints how well the scores found the nodes
with the largest effects. --gradients holds autograd to central differences. --cross-sections FILE
takes them by name, as the program does.

Differences are relative, |a - b| / max(|a|, |b|, floor). The floor is 0.01, of scores and effects
of nodes 1 % of the largest of their attribute or 0.1 % of the mean |m|, whichever is more: a sum
that cancels has no relative accuracy, and a difference of two m of binary32 logits knows 1e-7 of
m. 'plain' is printed beside it: the same with floor 1e-12. Counts and shares of prompts are
compared exactly, but for near-ties: a score may differ by as many prompts as have, for it, two
largest logits within 1e-4 or a greedy choice that rounding decides (`near_choice`); these are
counted and printed, and do not fail.

Readings of what the description leaves open:

* m = logsumexp(logits of answer) - logsumexp(logits of wrong) at the last position, after the
  model's own final soft-cap.
* Score of a node: sum over its dimensions, x' read at its named position, x at its own. Ties of the
  walk: layer, component, head, then the task's order of names. Every walked node screens, whether
  or not it is itself screened off.
* Values as in the task file without those dropped; one without prompts has zero features.
* SAE of q, k, v of layer L: blocks.L.hook_resid_pre, else blocks.(L-1).hook_resid_post (of layer
  0 without learned positions: hook_embed). Of z and attn_out: blocks.L.hook_resid_mid (not in a
  parallel block), blocks.L.hook_resid_post, blocks.(L+1).hook_resid_pre, the first that exists. Of
  mlp_out: the latter two. `native`: the SAE of the node's own hook, its codes those of the whole
  row [heads * d_head], its rows the part of the node's head.
* Decoder rows are those that the SAE's library uses: of a TopK that rescales by the decoder norm,
  rows divided by their norm; of an SAE that normalises, rows times that row's factor. The encoder's
  column w_j is taken as it acts on the raw stream (divided by that factor; of a TopK that rescales,
  times the decoder norm), so that (w_j . x) d_j has no scale of its own.
* o of a z node: z W_O of that head; in Gemma-2 (1 + w) (z W_O) / scale, scale that prompt's own
  of the norm after attention. o of attn_out and mlp_out is the node itself. Of an SAE whose stream
  is centred, o loses its mean over dimensions. z from o by the pseudo-inverse of that linear map,
  singular values below 1e-6 of the largest being zero, as in span's least squares. r2_stream holds
  o(a) against o(rebuilt a), both by the prompt's own map; its mean is the training prompts'.
* Patches are binary32, computed from clean activations, all of a cross-section at once; where two
  names are one token the later name wins.
* Where resolution is below 0.1, recovered and necessity are null for every method but `none`, which
  is 1, 1 and 0 by definition; figures that are not finite are null. Rescaled figures are null where
  no intervention agrees in more than 0.9 of the prompts, or the denominator is at most 1e-9.
* "supervised" beside an SAE's control is the mean dictionary's edit.
* Magnitudes: of greedily chosen features c_j(x).s / |s|^2 with s the sum of all c_j(x), 0 if s is
  0; of the interpretation-aware edit that of the removed; supervised u.(rebuilt a - mean a) /
  |rebuilt a - mean a|^2, 0 if the denominator is at most 1e-10 of the sum of |u|^2 over the
  attributes.
* Intervals: resample b draws its n prompts one after another from one stream (random_below, purpose
  10), the same resamples for every figure; linear interpolation between order statistics; null if
  any resample's figure is not finite.
* Predicates, in the order that settles ties: values of each attribute; of each other attribute with
  each form value; of each set of slots with the same values ("IO/S") at the first, the second, any
  of its places in the text; labels of each attribute's values. All single values come before all
  unions; a union's values stand in falling F1.
* By chance: activation of test prompt i against the predicates of prompt order[i], a permutation
  drawn for purpose 9.
* `random` keeps the encoder; decoder rows are redrawn (`redraw`).

Written for torch 2.13.0, transformers 5.23.0, safetensors 0.8.0, numpy 2.
"""

import argparse
import csv
import json
import math
import os
import re
import sys
from dataclasses import dataclass

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file as load_tensors

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

COMPONENTS = ["q", "k", "v", "z", "attn_out", "mlp_out"]
KS = [1, 2, 4, 8, 16, 32]
SUPERVISED = ["mean", "mse", "weighted"]
SMALL_SINGULAR, SMALL_EIGEN = 1e-6, 1e-10
RESAMPLES, LOW_RESOLUTION, ALREADY_AGREES = 1000, 0.1, 0.9
STREAM_DECODER, STREAM_PERMUTE, STREAM_RESAMPLE = 7, 9, 10
BATCH = 128


# ---- the model ----


class Model:
    """A Hugging Face causal model whose head activations and block outputs can be read and set."""

    def __init__(self, directory, double=False):
        dtype = torch.float64 if double else torch.float32
        if double:
            _keep_doubles()
        self.net = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager"
        )
        self.net.eval().requires_grad_(False)
        c = self.net.config
        self.kind, self.dtype = c.model_type, dtype
        self.parallel = self.kind == "gpt_neox" and c.use_parallel_residual
        if self.kind == "gemma2":
            self.blocks, self.embed = self.net.model.layers, self.net.model.embed_tokens
            self.heads, self.kv_heads, self.d_head = (
                c.num_attention_heads, c.num_key_value_heads, c.head_dim)
        elif self.kind == "gpt2":
            self.blocks, self.embed = self.net.transformer.h, self.net.transformer.wte
            self.heads = self.kv_heads = c.n_head
            self.d_head = c.n_embd // c.n_head
        elif self.kind == "gpt_neox":
            self.blocks, self.embed = self.net.gpt_neox.layers, self.net.gpt_neox.embed_in
            self.heads = self.kv_heads = c.num_attention_heads
            self.d_head = c.hidden_size // c.num_attention_heads
        else:
            raise SystemExit("unknown model_type " + self.kind)
        self.d_model = self.embed.weight.shape[1]
        self.layers = len(self.blocks)
        self.reads, self.patches, self.seen, self.grad = (), {}, {}, False
        self.embed.register_forward_hook(self._embedded)
        for L, block in enumerate(self.blocks):
            self._attach(L, block)

    def _embedded(self, module, args, out):
        return out.requires_grad_(True) if self.grad else None

    def _attach(self, L, block):
        def on_out(module, fix):
            module.register_forward_hook(lambda m, a, out: fix(out))

        def on_in(module, fix):
            def hook(m, args, kwargs):
                if args:
                    new = fix(args[0])
                    return None if new is None else ((new,) + args[1:], kwargs)
                new = fix(kwargs["hidden_states"])
                return None if new is None else (args, {**kwargs, "hidden_states": new})

            module.register_forward_pre_hook(hook, with_kwargs=True)

        def site(name, heads=None):
            shape = None if heads is None else (heads, self.d_head)
            return lambda x: self._visit((name, L), x, shape)

        on_in(block, site("resid_pre"))
        block.register_forward_hook(
            lambda m, a, out: self._visit_only(("resid_post", L), out))
        if self.kind == "gemma2":
            a = block.self_attn
            on_out(a.q_proj, site("q", self.heads))
            on_out(a.k_proj, site("k", self.kv_heads))
            on_out(a.v_proj, site("v", self.kv_heads))
            on_in(a.o_proj, site("z", self.heads))
            on_in(block.post_attention_layernorm, site("attn_raw"))
            on_out(block.post_attention_layernorm, site("attn_out"))
            on_in(block.pre_feedforward_layernorm, site("resid_mid"))
            on_out(block.post_feedforward_layernorm, site("mlp_out"))
        elif self.kind == "gpt2":
            on_out(block.attn.c_attn, lambda x: self._fused(L, x, False))
            on_in(block.attn.c_proj, site("z", self.heads))
            on_out(block.attn.c_proj, site("attn_out"))
            on_in(block.ln_2, site("resid_mid"))
            on_out(block.mlp.c_proj, site("mlp_out"))
        else:
            on_out(block.attention.query_key_value, lambda x: self._fused(L, x, True))
            on_in(block.attention.dense, site("z", self.heads))
            on_out(block.attention.dense, site("attn_out"))
            if not self.parallel:
                on_in(block.post_attention_layernorm, site("resid_mid"))
            on_out(block.mlp.dense_4h_to_h, site("mlp_out"))

    def _visit_only(self, key, out):
        self._visit(key, out[0] if isinstance(out, tuple) else out, None)

    def _visit(self, key, x, shape):
        """Patches x, notes it if it is read; x keeps its place in autograd's graph."""
        patched = self.patches.get(key)
        if patched:
            x = x.clone()
            view = x if shape is None else x.view(*x.shape[:2], *shape)
            for head, where, value in patched:
                rows = torch.arange(len(where))
                if head is None:
                    view[rows, where] = value
                else:
                    view[rows, where, head] = value
        if key in self.reads:
            self.seen[key] = (x, shape)
        return x if patched else None

    def _fused(self, L, x, interleaved):
        """gpt2: [3, heads, d_head]; gpt_neox: [heads, 3, d_head]."""
        B, T = x.shape[:2]
        order = (self.heads, 3) if interleaved else (3, self.heads)

        def part(i):
            view = x.view(B, T, *order, self.d_head)
            return view[:, :, :, i] if interleaved else view[:, :, i]

        if any((n, L) in self.patches for n in "qkv"):
            x = x.clone()
            for i, name in enumerate("qkv"):
                for head, where, value in self.patches.get((name, L), ()):
                    part(i)[torch.arange(B), where, head] = value
        for i, name in enumerate("qkv"):
            if (name, L) in self.reads:
                self.seen[name, L] = (x, (order, i))
        return x

    def _unpack(self, x, shape):
        """Module layout -> [B, T, heads, d_head] or [B, T, d]."""
        if shape is None:
            return x
        if isinstance(shape[0], tuple):
            order, i = shape
            view = x.view(*x.shape[:2], *order, self.d_head)
            return view[:, :, :, i] if self.kind == "gpt_neox" else view[:, :, i]
        return x.view(*x.shape[:2], *shape)

    def run(self, ids, reads=(), patches=(), metric=None):
        """ids [B, T]; patches: (node, positions [B], values [B, d]) in the order of writing.

        Returns last logits [B, vocab], {site: [B, T, ...]}, and with metric(logits) -> scalar also
        {site: gradient}."""
        self.reads, self.seen, self.patches = set(reads), {}, {}
        self.grad = metric is not None
        for node, where, value in patches:
            at = (node.head, torch.as_tensor(np.asarray(where)),
                  torch.as_tensor(np.asarray(value)).to(self.dtype))
            self.patches.setdefault((node.component, node.layer), []).append(at)
        with torch.set_grad_enabled(self.grad):
            logits = self.net(input_ids=torch.as_tensor(ids), use_cache=False).logits[:, -1]
            seen, gradients = self.seen, None
            missing = self.reads - set(seen)
            assert not missing, missing
            if self.grad:
                found = torch.autograd.grad(metric(logits), [x for x, _ in seen.values()],
                                            allow_unused=True)
                gradients = {}
                for (key, (x, shape)), g in zip(seen.items(), found):
                    g = torch.zeros_like(x) if g is None else g
                    gradients[key] = self._unpack(g, shape).numpy()
        values = {key: self._unpack(x.detach(), shape).numpy()
                  for key, (x, shape) in seen.items()}
        self.seen, self.patches, self.grad = {}, {}, False
        return logits.detach(), values, gradients

    # Weights in float64.

    def norm1(self, L):
        """(weight, bias, eps, centred) of the norm before attention."""
        block = self.blocks[L]
        if self.kind == "gemma2":
            n = block.input_layernorm
            return 1 + n.weight.double().numpy(), 0.0, n.eps, False
        n = block.ln_1 if self.kind == "gpt2" else block.input_layernorm
        return n.weight.double().numpy(), n.bias.double().numpy(), n.eps, True

    def w_in(self, component, L, head):
        """W [d_model, d_head], b [d_head] of a head's q, k or v."""
        block, i, d = self.blocks[L], "qkv".index(component), self.d_head
        if self.kind == "gemma2":
            proj = [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj][i]
            rows = slice(head * d, (head + 1) * d)
            bias = 0.0 if proj.bias is None else proj.bias.double().numpy()[rows]
            return proj.weight.double().numpy()[rows].T, bias
        if self.kind == "gpt2":
            at = i * self.d_model + head * d
            w = block.attn.c_attn
            return w.weight.double().numpy()[:, at:at + d], w.bias.double().numpy()[at:at + d]
        at = (head * 3 + i) * d
        w = block.attention.query_key_value
        bias = 0.0 if w.bias is None else w.bias.double().numpy()[at:at + d]
        return w.weight.double().numpy()[at:at + d].T, bias

    def w_out(self, L, head):
        """W_O [d_head, d_model] of a head."""
        rows = slice(head * self.d_head, (head + 1) * self.d_head)
        block = self.blocks[L]
        if self.kind == "gpt2":
            return block.attn.c_proj.weight.double().numpy()[rows]
        dense = block.self_attn.o_proj if self.kind == "gemma2" else block.attention.dense
        return dense.weight.double().numpy()[:, rows].T

    def post_norm(self, L):
        """(1 + w, eps) of Gemma-2's norm after attention; None elsewhere."""
        if self.kind != "gemma2":
            return None
        n = self.blocks[L].post_attention_layernorm
        return 1 + n.weight.double().numpy(), n.eps


def _keep_doubles():
    """transformers casts norms and softmax to float32; in a double model that is the only noise."""
    from transformers.models.gemma2 import modeling_gemma2

    def forward(self, x):
        return self._norm(x) * (1.0 + self.weight)

    modeling_gemma2.Gemma2RMSNorm.forward = forward
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None, **k: softmax(x, dim=dim)


@dataclass(frozen=True)
class Node:
    component: str
    layer: int
    head: int | None
    position: int  # of the task's named ones

    @property
    def hook(self):
        where = "attn." if self.component in "qkvz" else ""
        return f"blocks.{self.layer}.{where}hook_{self.component}"

    def key(self, names):
        return self.hook, self.head, names[self.position]


def all_nodes(model, components, n_positions):
    """In the order that settles ties."""
    nodes = []
    for L in range(model.layers):
        for c in COMPONENTS:
            if c not in components:
                continue
            heads = [None]
            if c in "qkvz":
                heads = range(model.kv_heads if c in "kv" else model.heads)
            nodes += [Node(c, L, h, p) for h in heads for p in range(n_positions)]
    return nodes


def given_nodes(path, names):
    """{cross-section: nodes} of a file."""
    with open(path, encoding="utf-8") as file:
        root = json.load(file)
    found = {}
    for name, part in root.get("cross_sections", root).items():
        found[name] = []
        for row in part["nodes"]:
            layer, component = re.fullmatch(
                r"blocks\.(\d+)\.(?:attn\.)?hook_(\w+)", row["node"]).groups()
            found[name].append(Node(component, int(layer), row.get("head"),
                                    names.index(row["position"])))
    return found


# ---- prompts ----


class Form:
    """A prompt or one of its counterfactuals."""

    def __init__(self, row, names):
        self.ids, self.answer, self.wrong = row["ids"], row["answer"], row["wrong"]
        self.positions = [row["positions"][n] for n in names]


class Prompts:
    def __init__(self, task, path, dropped):
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        self.names = list(task["positions"])
        self.form, self.labels = task.get("form"), task.get("labels", {})
        self.attributes = {
            a: [v for v in values if v not in dropped and f"{a}={v}" not in dropped]
            for a, values in task["attributes"].items()
        }
        self.clean, self.values, self.other, self.other_value = {}, {}, {}, {}
        for split in ("train", "test"):
            part = [r for r in rows if r["split"] == split]
            self.clean[split] = [Form(r, self.names) for r in part]
            self.values[split] = [r["values"] for r in part]
            for a in self.attributes:
                self.other[split, a] = [Form(r["counterfactual"][a], self.names) for r in part]
                self.other_value[split, a] = [r["counterfactual"][a]["value"] for r in part]
            for r in part:
                self._check(r)
        # The attributes that stand in each test prompt's text, place by place.
        self.slots = [self._slots(task, r) for r in rows if r["split"] == "test"]

    def _slots(self, task, row):
        for template in task["templates"][row["split"]]:
            if self.form is not None:
                template = template[row["values"][self.form]]
            parts, seen = re.split(r"\{(.*?)\}", template), set()
            pattern = ""
            for i, part in enumerate(parts):
                if i % 2 == 0 or part in self.attributes:
                    pattern += re.escape(row["values"][part] if i % 2 else part)
                elif part in seen:
                    pattern += f"(?P={part})"
                else:
                    values = task["fillers"][part][row["split"]]
                    pattern += f"(?P<{part}>{'|'.join(map(re.escape, values))})"
                    seen.add(part)
            if re.fullmatch(pattern, row["text"]):
                return [p for p in parts[1::2] if p in self.attributes]
        raise SystemExit(f"no template of the task gives {row['text']!r}")

    def _check(self, row):
        """The counterfactual changes its own attribute and no other."""
        for a, values in self.attributes.items():
            assert row["values"][a] in values, row
            assert row["counterfactual"][a]["value"] in values, row
            assert row["counterfactual"][a]["value"] != row["values"][a], row


def groups(forms, *more):
    """Index lists of at most BATCH forms of one length (and of one length of `more`)."""
    by = {}
    for i, f in enumerate(forms):
        by.setdefault((len(f.ids),) + tuple(len(m[i].ids) for m in more), []).append(i)
    return [part[i:i + BATCH] for part in by.values() for i in range(0, len(part), BATCH)]


def metric(logits, forms):
    """m of each row, [B]."""
    return torch.stack([
        torch.logsumexp(row[f.answer], 0) - torch.logsumexp(row[f.wrong], 0)
        for row, f in zip(logits.double(), forms)
    ])


def gather(model, forms, sites, gradient=False):
    """{site: [n, positions, ...]} (and the gradients of m), m [n], predicted token [n]."""
    n, values, grads = len(forms), {}, {}
    m, predicted = np.zeros(n), np.zeros(n, int)
    for part in groups(forms):
        chosen = [forms[i] for i in part]
        measure = (lambda logits: metric(logits, chosen).sum()) if gradient else None
        logits, seen, g = model.run([f.ids for f in chosen], sites, (), measure)
        rows = np.arange(len(part))[:, None]
        where = np.array([f.positions for f in chosen])
        for store, got in ((values, seen), (grads, g or {})):
            for key, x in got.items():
                if key not in store:
                    store[key] = np.zeros((n, where.shape[1]) + x.shape[2:])
                store[key][part] = x[rows, where]
        m[part] = metric(logits, chosen).numpy()
        predicted[part] = logits.argmax(-1).numpy()
    return values, grads, m, predicted


def patched(model, forms, nodes, edits):
    """m, predicted token and distance of the two largest logits, [n] each, with node i set to
    edits[i] [n, d] at its position."""
    n = len(forms)
    m, predicted, margin = np.zeros(n), np.zeros(n, int), np.zeros(n)
    order = sorted(range(len(nodes)), key=lambda i: nodes[i].position)
    for part in groups(forms):
        chosen = [forms[i] for i in part]
        patches = [(nodes[i], [f.positions[nodes[i].position] for f in chosen], edits[i][part])
                   for i in order]
        logits, _, _ = model.run([f.ids for f in chosen], (), patches)
        m[part] = metric(logits, chosen).numpy()
        predicted[part] = logits.argmax(-1).numpy()
        top = torch.topk(logits, 2).values
        margin[part] = (top[:, 0] - top[:, 1]).numpy()
    return m, predicted, margin


def at_node(values, node):
    x = values[node.component, node.layer][:, node.position]
    return x if node.head is None else x[:, node.head]


# ---- step 1: cross-sections ----


def scores_of(model, prompts, attribute, nodes):
    """Attribution of each node, training mean."""
    sites = {(n.component, n.layer) for n in nodes}
    clean, other = prompts.clean["train"], prompts.other["train", attribute]
    total, done = np.zeros(len(nodes)), 0
    for start in range(0, len(clean), 256):
        part = slice(start, start + 256)
        a, g, _, _ = gather(model, clean[part], sites, gradient=True)
        b, _, _, _ = gather(model, other[part], sites)
        for i, node in enumerate(nodes):
            total[i] += ((at_node(b, node) - at_node(a, node)) * at_node(g, node)).sum()
        done += len(clean[part])
    return total / done


def falling(scores):
    return np.argsort(-np.abs(scores), kind="stable")


def walk(scores, share, max_nodes):
    """Indices of the walked nodes and the share that they carry."""
    total, carried, walked = np.abs(scores).sum(), 0.0, []
    for i in falling(scores):
        if carried >= share * total or len(walked) == max_nodes:
            break
        walked.append(int(i))
        carried += abs(scores[i])
    return walked, carried / total if total > 0 else 0.0


def screen(nodes, walked):
    there = {(nodes[i].component, nodes[i].layer, nodes[i].head, nodes[i].position)
             for i in walked}
    kept = []
    for i in walked:
        n = nodes[i]
        by_z = n.component == "q" and ("z", n.layer, n.head, n.position) in there
        by_out = n.component in ("q", "z") and ("attn_out", n.layer, None, n.position) in there
        if not by_z and not by_out:
            kept.append(i)
    return kept


def effects_of(model, prompts, attribute, nodes):
    """True effect of each node, training mean."""
    sites = {(n.component, n.layer) for n in nodes}
    clean, other = prompts.clean["train"], prompts.other["train", attribute]
    _, _, m, _ = gather(model, clean, ())
    values, _, _, _ = gather(model, other, sites)
    return [float((patched(model, clean, [n], [at_node(values, n)])[0] - m).mean())
            for n in nodes]


def curve_of(model, prompts, nodes, scores, clean, other):
    """Share of what patching all nodes does to the test prompts that the first of the walk do."""
    counts = [2**i for i in range(len(nodes).bit_length()) if 2**i < len(nodes)] + [len(nodes)]
    first = [nodes[i] for i in falling(scores)]
    m = [patched(model, prompts.clean["test"], first[:n],
                 [at_node(other, x) for x in first[:n]])[0].mean() for n in counts]
    whole = m[-1] - clean.mean()
    moves = abs(whole) >= LOW_RESOLUTION * abs(clean.mean())
    return [{"nodes": n, "share": float((x - clean.mean()) / whole) if moves else None}
            for n, x in zip(counts, m)]


def spearman(a, b):
    def ranks(x):
        x = np.asarray(x)
        return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])

    if len(a) < 2:
        return 0.0
    a, b = ranks(a) - (len(a) + 1) / 2, ranks(b) - (len(a) + 1) / 2
    norm = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else 0.0


# ---- step 2: supervised dictionaries ----


class Supervised:
    """u[attribute][value] [d] for the three dictionaries of one node."""

    def __init__(self, prompts, acts):
        """acts [n, d] of the training prompts."""
        self.prompts, values = prompts, prompts.values["train"]
        self.mean = acts.mean(0)
        centred = acts - self.mean
        pairs = [(a, v) for a, vs in prompts.attributes.items() for v in vs]
        hot = np.array([[float(row[a] == v) for a, v in pairs] for row in values])
        count = hot.sum(0)
        mean = np.where(count[:, None] > 0, (hot.T @ centred) / np.maximum(count, 1)[:, None], 0)
        self.u = {"mean": dict(zip(pairs, mean))}
        mse = _symmetric_pinv(hot.T @ hot) @ (hot.T @ centred)
        self.u["mse"] = dict(zip(pairs, mse))

        names = list(prompts.attributes)
        parts = np.array([[self.u["mean"][a, row[a]] for row in values] for a in names])
        gram = np.einsum("ipd,jpd->ij", parts, parts)
        w = _symmetric_pinv(gram) @ np.einsum("ipd,pd->i", parts, centred)
        self.weights = dict(zip(names, w.tolist()))
        self.u["weighted"] = {(a, v): self.weights[a] * u
                              for (a, v), u in self.u["mean"].items()}

    def rebuild(self, method, values):
        """â [n, d]."""
        u = self.u[method]
        return self.mean + np.array([sum(u[a, row[a]] for a in self.prompts.attributes)
                                     for row in values])

    def edit(self, method, attribute, acts):
        """Of the test prompts' acts towards the counterfactual: edits [n, d], magnitudes [n]."""
        u, values = self.u[method], self.prompts.values["test"]
        old = np.array([u[attribute, row[attribute]] for row in values])
        new = np.array([u[attribute, v] for v in self.prompts.other_value["test", attribute]])
        off = self.rebuild(method, values) - self.mean
        size = (off * off).sum(1)
        parts = np.array([sum((u[a, row[a]] ** 2).sum() for a in self.prompts.attributes)
                          for row in values])
        known = size > SMALL_EIGEN * parts
        magnitude = np.where(known, (old * off).sum(1) / np.where(known, size, 1), 0)
        return acts - old + new, magnitude


def _symmetric_pinv(matrix):
    values, vectors = np.linalg.eigh(matrix)
    keep = values > SMALL_EIGEN * values.max()
    return (vectors[:, keep] / values[keep]) @ vectors[:, keep].T


def r_squared(acts, rebuilt, mean):
    return float(1 - ((acts - rebuilt) ** 2).sum() / ((acts - mean) ** 2).sum())


# ---- step 3: residual SAEs at sublayers ----


class Sae:
    """One SAE, read by the conventions of its format."""

    def __init__(self, hook, weights, act, k=0, subtract=True, norm="none", factor=1.0,
                 rescale=False, centre=False, dtype=np.float32):
        self.hook, self.act, self.k, self.subtract = hook, act, k, subtract
        self.norm, self.factor, self.rescale, self.centre = norm, factor, rescale, centre
        self.w = {n: np.asarray(x, dtype) for n, x in weights.items()}
        self.dtype = dtype
        self.layer = 0 if hook == "hook_embed" else int(hook.split(".")[1])

    def encode(self, x):
        """x [n, d_in] -> codes [n, d_sae], decoder scale [n], decoder shift [n]; with both,
        recon = scale * (codes D + b_dec) + shift."""
        w = self.w
        x = np.asarray(x, self.dtype)
        if self.centre:
            x = x - x.mean(-1, keepdims=True)
        scale, shift = np.ones((len(x), 1)), np.zeros((len(x), 1))
        if self.norm == "layer_norm":
            shift = x.mean(-1, keepdims=True)
            scale = (x - shift).std(-1, ddof=1, keepdims=True)
            y = (x - shift) / (scale + 1e-5)
        elif self.norm == "constant_norm_rescale":
            scale = np.linalg.norm(x, axis=-1, keepdims=True) / math.sqrt(x.shape[1])
            y = x / scale
        else:
            y = x * np.asarray(self.factor, self.dtype)
            scale = scale / self.factor
        if self.subtract:
            y = y - w["b_dec"]
        if self.act == "gated":
            gate = y @ w["W_enc"] + w["b_gate"] > 0
            f = gate * np.maximum(y @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
        else:
            z = y @ w["W_enc"] + w["b_enc"]
            f = np.maximum(z, 0)
            if self.act == "jumprelu":
                f = f * (z > w["threshold"])
            elif self.act == "topk":
                if self.rescale:
                    z = z * np.linalg.norm(w["W_dec"], axis=1)
                best = np.argsort(-z, axis=1, kind="stable")[:, :self.k]
                f = np.zeros_like(z)
                np.put_along_axis(f, best, np.maximum(np.take_along_axis(z, best, 1), 0), 1)
        return (np.asarray(f, np.float64), np.asarray(scale, np.float64)[:, 0],
                np.asarray(shift, np.float64)[:, 0])

    def encoder_columns(self, active):
        """[active, d_in], as they act on the normalised input."""
        w = self.w["W_enc"].astype(np.float64)[:, active]
        if self.act == "gated":
            w = w * np.exp(self.w["r_mag"].astype(np.float64)[active])
        if self.rescale:
            w = w * np.linalg.norm(self.w["W_dec"].astype(np.float64)[active], axis=1)
        return w.T

    def decoder(self, stored):
        """Rows that reconstruct, from the stored ones (or from others of equal norms)."""
        rows = stored.astype(np.float64)
        if self.rescale:
            rows = rows / np.linalg.norm(self.w["W_dec"].astype(np.float64), axis=1)[:, None]
        return rows


def philox(seed, stream, count):
    """The first `count` words of a stream: Philox4x32-10 (Salmon et al. 2011)."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    c = [blocks & low, blocks >> np.uint64(32),
         np.full_like(blocks, stream & 0xFFFFFFFF), np.full_like(blocks, stream >> 32)]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a = c[0] * np.uint64(0xD2511F53)
        b = c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), b & low,
             (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), a & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1).reshape(-1)[:count]


class Random:
    """Whole numbers from a stream, one after another."""

    def __init__(self, seed, stream):
        self.seed, self.stream, self.words, self.at = seed, stream, [], 0

    def below(self, bound):
        """Two words, the low one first; the lowest 2^64 mod bound values are rejected."""
        while True:
            if self.at + 2 > len(self.words):
                count = 2 * len(self.words) + 4096
                self.words = philox(self.seed, self.stream, count).tolist()
            value = self.words[self.at] | self.words[self.at + 1] << 32
            self.at += 2
            if value >= 2**64 % bound:
                return value % bound

    def permutation(self, n):
        """Fisher-Yates from the end."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def redraw(sae, seed):
    """The control's decoder [d_sae, d_in]: Gaussian rows of the stored rows' norms."""
    rows = sae.w["W_dec"].astype(np.float32)
    n = rows.size + rows.size % 2
    u = (philox(seed, STREAM_DECODER + (sae.layer << 32), n) >> np.uint64(8)).astype(np.float32)
    u = u * np.float32(2.0**-24)
    u1, u2 = np.float32(1) - u[0::2], u[1::2]
    log = np.log(u1.astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * log)
    angle = (np.float32(2 * math.pi) * u2).astype(np.float64)
    g = np.empty(n, np.float32)
    g[0::2] = radius * np.cos(angle).astype(np.float32)
    g[1::2] = radius * np.sin(angle).astype(np.float32)
    g = g[:rows.size].reshape(rows.shape)
    norms = [np.linalg.norm(x.astype(np.float64), axis=1) for x in (rows, g)]
    return (g * (norms[0] / norms[1])[:, None]).astype(np.float32)


def load_saes(directory, dtype, norm_factor):
    """{hook: Sae} of all GemmaScope, SAELens and sparsify SAEs below the directory."""
    found = {}
    for folder, _, files in sorted(os.walk(directory)):
        sae = None
        if "params.npz" in files:
            layer = [p[6:] for p in folder.split(os.sep) if p.startswith("layer_")]
            w = dict(np.load(os.path.join(folder, "params.npz")))
            w = {n.replace("w_", "W_"): x for n, x in w.items()}
            if not layer:  # of the embedding before it is scaled by sqrt(d)
                root = np.float32(math.sqrt(w["W_enc"].shape[0]))
                w["W_enc"], w["W_dec"] = w["W_enc"] / root, w["W_dec"] * root
            hook = f"blocks.{layer[-1]}.hook_resid_post" if layer else "hook_embed"
            sae = Sae(hook, w, "jumprelu", subtract=False, dtype=dtype)
        elif "sae_weights.safetensors" in files:
            with open(os.path.join(folder, "cfg.json"), encoding="utf-8") as file:
                cfg = json.load(file)
            meta = cfg.get("metadata") or {}
            kwargs = (meta.get("model_from_pretrained_kwargs")
                      or cfg.get("model_from_pretrained_kwargs") or {})
            arch = cfg.get("architecture", "standard")
            act = cfg.get("activation_fn_str", cfg.get("activation_fn"))
            k = cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k", 0))
            norm = cfg.get("normalize_activations", "none")
            norm = {True: "expected_average_only_in", False: "none"}.get(norm, norm)
            hook = meta.get("hook_name") or cfg.get("hook_name") or cfg.get("hook_point")
            w = load_file(os.path.join(folder, "sae_weights.safetensors"))
            sae = Sae(hook, w, "topk" if act == "topk" else {"standard": "relu"}.get(arch, arch),
                      k, cfg.get("apply_b_dec_to_input", True), norm,
                      norm_factor if norm == "expected_average_only_in" else 1.0,
                      cfg.get("rescale_acts_by_decoder_norm", False),
                      bool(kwargs.get("center_writing_weights")) and ".attn." not in hook, dtype)
        elif "sae.safetensors" in files:
            with open(os.path.join(folder, "cfg.json"), encoding="utf-8") as file:
                cfg = json.load(file)
            layer = [p[7:] for p in folder.split(os.sep) if p.startswith("layers.")]
            w = load_file(os.path.join(folder, "sae.safetensors"))
            w = {"W_enc": w["encoder.weight"].T, "b_enc": w["encoder.bias"],
                 "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
            hook = f"blocks.{layer[-1]}.hook_resid_post" if layer else "hook_embed"
            sae = Sae(hook, w, "topk", cfg["k"], dtype=dtype)
        if sae is not None:
            assert sae.hook not in found, sae.hook
            found[sae.hook] = sae
    return found


def load_file(path):
    return {n: t.float().numpy() for n, t in load_tensors(path).items()}


def sae_for(model, saes, node):
    L = node.layer
    if node.component in "qkv":
        names = [f"blocks.{L}.hook_resid_pre", f"blocks.{L - 1}.hook_resid_post"]
        if L == 0 and model.kind != "gpt2":  # no learned positions
            names[1] = "hook_embed"
    else:
        names = [f"blocks.{L}.hook_resid_post", f"blocks.{L + 1}.hook_resid_pre"]
        if node.component != "mlp_out" and not model.parallel:
            names.insert(0, f"blocks.{L}.hook_resid_mid")
    for name in names:
        if name in saes:
            return saes[name]
    raise SystemExit(f"no SAE for {node.hook}: wanted one of {names}")


def site_of(hook):
    """(site, layer) of a hook point."""
    if hook == "hook_embed":
        return "resid_pre", 0
    _, layer, *_, name = hook.split(".")
    return name[len("hook_"):], int(layer)


class Rows:
    """What the projections need of one list of prompts at one node; [n, ...] each."""

    def __init__(self, model, node, sae, values):
        self.acts = at_node(values, node)
        stream = values[site_of(sae.hook)][:, node.position]
        self.codes, self.scale, self.shift = sae.encode(stream)
        L = node.layer
        if node.component in "qkv":
            x = values["resid_pre", L][:, node.position]
            _, _, eps, centred = model.norm1(L)
            x = x - x.mean(-1, keepdims=True) if centred else x
            self.norm_scale = np.sqrt((x * x).mean(-1) + eps)
            return
        eye = np.eye(model.d_model)
        self.to_stream = (eye - (1 / model.d_model if sae.centre else 0))[None]
        self.back = eye[None]
        if node.component == "z":
            write, post = model.w_out(L, node.head)[None], model.post_norm(L)
            if post is not None:
                raw = values["attn_raw", L][:, node.position]
                write = write * post[0] / np.sqrt((raw * raw).mean(-1) + post[1])[:, None, None]
            self.to_stream = write @ self.to_stream
            self.back = np.linalg.pinv(self.to_stream, rcond=SMALL_SINGULAR)
        self.written = self.write(self.acts)

    def write(self, acts):
        """o of a node [n, d] that stands for this one."""
        return (acts[:, None] @ self.to_stream)[:, 0]


class Projection:
    """A residual SAE carried to a node: constants [n, d] and contributions of active features."""

    def __init__(self, model, node, sae, stored_rows, method, written_mean=None):
        self.model, self.node, self.sae, self.method = model, node, sae, method
        self.rows_of = sae.decoder(stored_rows)
        self.written_mean = written_mean

    def __call__(self, rows):
        """[(constants [d], active [k], contributions [k, d]) per prompt]."""
        if self.method == "weights":
            return self._affine(rows)
        out = []
        for p in range(len(rows.acts)):
            active = np.flatnonzero(rows.codes[p] > 0)
            d = self.rows_of[active] * rows.scale[p]
            off = rows.written[p] - self.written_mean
            if self.method == "span":
                # Minimum norm: off = d^T beta.
                beta = np.linalg.pinv(d.T, rcond=SMALL_SINGULAR) @ off if len(active) else off[:0]
            else:
                beta = self.sae.encoder_columns(active) @ off / rows.scale[p]
            back = rows.back[p % len(rows.back)]
            out.append((self.written_mean @ back, active, (beta[:, None] * d) @ back))
        return out

    def _affine(self, rows):
        node = self.node
        W, b = self.model.w_in(node.component, node.layer, node.head)
        weight, bias, _, centred = self.model.norm1(node.layer)

        def linear(x, scale):
            x = x - x.mean(-1, keepdims=True) if centred else x
            return (x / scale * weight) @ W

        constant = bias @ W + b if centred else b
        out = []
        for p in range(len(rows.acts)):
            active = np.flatnonzero(rows.codes[p] > 0)
            f, s = rows.codes[p][active], rows.norm_scale[p]
            c = f[:, None] * linear(self.rows_of[active] * rows.scale[p], s)
            b_dec = self.sae.w["b_dec"].astype(np.float64)[None] * rows.scale[p] + rows.shift[p]
            out.append((linear(b_dec, s)[0] + constant, active, c))
        return out


def native_parts(sae, node, values):
    """The same of an SAE of the node's own hook."""
    row = values[node.component, node.layer][:, node.position]
    width = row.shape[-1]
    part = slice(None) if node.head is None else slice(node.head * width, (node.head + 1) * width)
    codes, scale, shift = sae.encode(row.reshape(len(row), -1))
    rows = sae.decoder(sae.w["W_dec"])[:, part]
    b_dec = sae.w["b_dec"].astype(np.float64)[part]
    out = []
    for p in range(len(row)):
        active = np.flatnonzero(codes[p] > 0)
        out.append((b_dec * scale[p] + shift[p], active,
                    codes[p][active][:, None] * rows[active] * scale[p]))
    return out


def rebuilt(projected):
    """â [n, d] from (constants, active, contributions)."""
    return np.array([const + c.sum(0) for const, _, c in projected])


# ---- interpretations ----


def kinds_of(prompts):
    """[(name, suffix, values, holds [values, n])] of predicates "name=value suffix" over the test
    prompts, in the order that settles ties."""
    rows, attributes, kinds = prompts.values["test"], prompts.attributes, []

    def kind(name, values, true, suffix=""):
        holds = np.array([[true(i, v) for i in range(len(rows))] for v in values], bool)
        kinds.append((name, suffix, values, holds))

    for a, values in attributes.items():
        kind(a, values, lambda i, v: rows[i][a] == v)
    for a, values in attributes.items():
        if prompts.form is None or a == prompts.form:
            continue
        for form in attributes[prompts.form]:
            kind(a, values, lambda i, v: rows[i][a] == v and rows[i][prompts.form] == form,
                 f" & {prompts.form}={form}")
    sets = {}
    for a, values in attributes.items():
        if any(a in slots for slots in prompts.slots):
            sets.setdefault(frozenset(values), []).append(a)
    for names in sets.values():
        there = [[row[a] for a in slots if a in names] for row, slots in zip(rows, prompts.slots)]
        for place, part in (("1", slice(0, 1)), ("2", slice(1, 2)), ("any", slice(None))):
            kind("/".join(names) + "#" + place, attributes[names[0]],
                 lambda i, v: v in there[i][part])
    for label, of in prompts.labels.items():
        for a, values in attributes.items():
            if any(v in of for v in values):
                kind(f"{label}({a})", list(dict.fromkeys(of.values())),
                     lambda i, v: of.get(rows[i][a]) == v)
    return kinds


def f1_of(both, active, holds):
    return 2 * both / np.maximum(active + holds, 1)


def interpret(kinds, active):
    """active [n, features]: best F1, its predicate and in how many prompts that holds [features],
    and F1 of each value of a kind {(name + suffix, value): [features]}."""
    size, each = active.sum(0), {}
    best, text = np.full(active.shape[1], -1.0), [""] * active.shape[1]
    support = np.zeros(active.shape[1], int)

    def offer(f1, hold, words):
        hold = np.broadcast_to(hold, f1.shape)
        for j in np.flatnonzero(f1 > best):
            best[j], support[j], text[j] = f1[j], hold[j], words(j)

    for name, suffix, values, holds in kinds:
        for v, held in zip(values, holds):
            f1 = each[name + suffix, v] = f1_of(held.astype(float) @ active, size, held.sum())
            offer(f1, held.sum(), lambda j: f"{name}={v}{suffix}")
    for name, suffix, values, holds in kinds:
        order = np.argsort([-each[name + suffix, v] for v in values], axis=0, kind="stable")
        held = np.zeros(active.T.shape, bool)
        for n in range(1, min(10, len(values) // 4) + 1):
            held |= holds[order[n - 1]]
            if n > 1:
                both, hold = (held * active.T).sum(1), held.sum(1)
                offer(f1_of(both, size, hold), hold, lambda j: "%s in {%s}%s" % (
                    name, ", ".join(values[i] for i in order[:n, j]), suffix))
    return best, text, support, each


class Place:
    """What the features of an SAE at a named position stand for in the test prompts."""

    def __init__(self, kinds, codes, order):
        """order: the permutation of prompts that shows what chance gives."""
        active = (codes > 0).astype(np.float64)
        self.active, self.width = np.flatnonzero(active.any(0)), codes.shape[1]
        best, text, support, self.each = interpret(kinds, active[:, self.active])
        self.f1, self.text = self._spread(best), dict(zip(self.active.tolist(), text))
        self.support = dict(zip(self.active.tolist(), support.tolist()))
        shuffled = [(*kind, holds[:, order]) for *kind, holds in kinds]
        self.chance = self._spread(interpret(shuffled, active[:, self.active])[0])

    def _spread(self, f1):
        """Features that no test prompt activates have F1 0."""
        out = np.zeros(self.width)
        out[self.active] = f1
        return out

    def value_f1(self, attribute, value):
        return self._spread(self.each[attribute, value])


# ---- step 4: tests ----


def near_choice(change, best):
    """Whether rounding decides: another candidate lowers the distance as much, to 1e-6."""
    rest = np.delete(change, best)
    return len(rest) > 0 and rest.min() - change[best] < 1e-6 * abs(change[best])


def greedy(start, target, moves, weights):
    """One choice moves one feature: edited activation, weight of the chosen and whether a near-tie
    was met, after each number of choices in KS."""
    gap, chosen, near = start - target, [], False
    lengths, left = (moves * moves).sum(1), np.ones(len(moves), bool)
    states = [(start, 0.0, False)]
    for _ in range(max(KS)):
        change = np.where(left, lengths + 2 * moves @ gap, np.inf)
        best = int(change.argmin()) if left.any() else None
        if best is None or -change[best] <= 1e-10 * (start @ start):
            break
        near = near or near_choice(change, best)
        left[best] = False
        gap = gap + moves[best]
        chosen.append(best)
        states.append((target + gap, weights[chosen].sum(), near))
    return [states[min(k, len(states) - 1)] for k in KS]


class Way:
    """Features that make up a node: where they are read, and their contributions."""

    def __init__(self, subject, place, clean, other):
        """clean, other[A]: (constants, active, contributions) of each test prompt."""
        self.subject, self.place, self.clean, self.other = subject, place, clean, other
        self.memory = {}

    def weights(self, p):
        """Share of each contribution in the sum of the prompt's own."""
        c = self.clean[p][2]
        s = c.sum(0)
        return c @ s / (s @ s) if s @ s > 0 else np.zeros(len(c))

    def moves(self, kind, attribute):
        """Edits [KS, n, d], their magnitudes [KS, n] and whether near a tie [KS, n]."""
        if (kind, attribute) not in self.memory:
            edit = {"control": self._greedy, "control_aware": self._aware}[kind]
            each = [edit(attribute, p) for p in range(len(self.clean))]
            self.memory[kind, attribute] = [
                np.array([[state[i] for state in states] for states in each]).swapaxes(0, 1)
                for i in range(3)]
        return self.memory[kind, attribute]

    def _greedy(self, attribute, p):
        (_, mine, c), (_, theirs, c_other) = self.clean[p], self.other[attribute][p]
        features = np.union1d(mine, theirs)
        moves, weights = np.zeros((len(features), c.shape[1])), np.zeros(len(features))
        moves[np.searchsorted(features, theirs)] += c_other
        moves[np.searchsorted(features, mine)] -= c
        weights[np.searchsorted(features, mine)] = self.weights(p)
        return greedy(self.subject.clean[p], self.subject.other[attribute][p], moves, weights)

    def _aware(self, attribute, p):
        prompts = self.subject.prompts
        values = (prompts.values["test"][p][attribute], prompts.other_value["test", attribute][p])
        sorted_parts = []
        for value, (_, active, c) in zip(values, (self.clean[p], self.other[attribute][p])):
            f1 = self.place.value_f1(attribute, value)[active]
            order = np.argsort(-f1, kind="stable")
            sorted_parts.append((order, c[order]))
        (order, removed), (_, added) = sorted_parts
        weights = self.weights(p)[order]
        return [(self.subject.clean[p] - removed[:k].sum(0) + added[:k].sum(0), weights[:k].sum(),
                 False) for k in KS]

    def without(self, drop):
        """The activation without the contributions of the features in drop [d_sae]."""
        return np.array([a - c[drop[active]].sum(0)
                         for a, (_, active, c) in zip(self.subject.clean, self.clean)])


class Resamples:
    """Figures of means over the test prompts, with their intervals."""

    def __init__(self, seed, n):
        random = Random(seed, STREAM_RESAMPLE)
        self.drawn = np.array([[random.below(n) for _ in range(n)] for _ in range(RESAMPLES)])

    def put(self, out, name, formula, *parts):
        with np.errstate(all="ignore"):
            value = float(formula(*(x.mean() for x in parts)))
            each = formula(*(x[self.drawn].mean(1) for x in parts))
        known = math.isfinite(value)
        out[name] = value if known else None
        out[name + "_ci"] = (np.percentile(each, [2.5, 97.5]).tolist()
                             if known and np.isfinite(each).all() else None)


class Tests:
    """Step 4 on one cross-section."""

    def __init__(self, model, prompts, subjects, clean, resamples, thresholds, asked):
        """clean: m, predicted token and distance of the two largest logits, as nothing is done."""
        self.model, self.prompts, self.subjects = model, prompts, subjects
        self.forms, self.known, self.near = prompts.clean["test"], {}, {}
        self.resamples, self.clean = resamples, clean
        self.thresholds, self.asked = thresholds, asked
        self.m = clean[0]
        self.ablated = self.run([np.broadcast_to(s.supervised.mean, s.clean.shape)
                                 for s in subjects])[0]
        self.target = {a: self.run([s.other[a] for s in subjects]) for a in prompts.attributes}
        scale = abs(self.m.mean())
        self.resolution = (
            float(abs(self.m.mean() - self.ablated.mean()) / scale) if scale > 0 else None)
        self.resolved = self.resolution is None or self.resolution >= LOW_RESOLUTION

    def run(self, edits):
        """edits [node][..., n, d]: m, predicted token and distance of the two largest logits,
        [..., n]. Equal patches of a prompt run once."""
        shape, n = edits[0].shape[:-1], len(self.forms)
        edits = [np.asarray(e, np.float32).reshape(-1, e.shape[-1]) for e in edits]
        keys = [(i % n, b"".join(e[i].tobytes() for e in edits)) for i in range(len(edits[0]))]
        fresh = {key: i for i, key in enumerate(keys) if key not in self.known}
        if fresh:
            rows = list(fresh.values())
            found = patched(self.model, [self.forms[i % n] for i in rows],
                            [s.node for s in self.subjects], [e[rows] for e in edits])
            self.known.update(zip(fresh, zip(*found)))
        return [np.array(x).reshape(shape) for x in zip(*(self.known[key] for key in keys))]

    def all(self):
        out = {"resolution": self.resolution}
        self.resamples.put(out, "m_ablated", lambda x: x, self.ablated)
        self.unchanged = {a: self._score(a, *self.clean[1:]) for a in self.prompts.attributes}
        edits = {m: {a: self._supervised(m, a) for a in self.prompts.attributes}
                 for m in SUPERVISED}
        self.best = edits["mean"]
        out["none"] = self._none()
        for method in SUPERVISED:
            guess = [s.supervised.rebuild(method, self.prompts.values["test"])
                     for s in self.subjects]
            out[method] = self._approximation(guess)
            out[method]["control"] = {a: self._control(method, "control", a, edits[method][a])
                                      for a in self.prompts.attributes}
        for method in ("sae", "native", "random"):
            if all(method in s.ways for s in self.subjects):
                out[method] = self._sae(method, [s.ways[method] for s in self.subjects])
        return out

    def _figures(self, out, changed, spoilt, names):
        """What changed activations do to m; necessity's are the `spoilt` ones."""
        def put(name, formula, x):
            if name not in names:
                return
            if name == "sufficiency" or self.resolved:
                self.resamples.put(out, name, formula, x, self.ablated, self.m)
            else:
                out[name] = out[name + "_ci"] = None

        put("sufficiency", lambda x, low, high: x / high, changed)
        put("recovered", lambda x, low, high: (x - low) / (high - low), changed)
        put("necessity", lambda x, low, high: 1 - abs(low - x) / abs(low - high), spoilt)

    def _approximation(self, guess):
        rest = [s.supervised.mean + (s.clean - g) for s, g in zip(self.subjects, guess)]
        out = {}
        self._figures(out, self.run(guess)[0], self.run(rest)[0],
                      ("sufficiency", "recovered", "necessity"))
        return out

    def _score(self, attribute, predicted, margin, near=False):
        """The score with its interval, and the number of prompts near a tie."""
        _, wanted, wanted_margin = self.target[attribute]
        out = {}
        self.resamples.put(out, "score", lambda x: x, (predicted == wanted).astype(float))
        near = near | (margin < 1e-4) | (wanted_margin < 1e-4)
        return out, int(np.sum(near))

    def _supervised(self, method, attribute):
        edits, sizes = zip(*(s.supervised.edit(method, attribute, s.clean) for s in self.subjects))
        out, near = self._score(attribute, *self.run(edits)[1:])
        out["magnitude"] = float(np.mean(sizes))
        return out, near

    def _control(self, method, kind, attribute, supervised, steps=None):
        """steps {k: (score and magnitude, near)}."""
        out, near = {}, {"none": self.unchanged[attribute][1], "supervised": supervised[1]}
        none, best = self.unchanged[attribute][0], self.best[attribute][0]
        if kind == "control":
            out = {"none": none["score"], "none_ci": none["score_ci"],
                   "supervised": supervised[0]}
        for k, (entry, close) in (steps or {}).items():
            for name, low, high in (("score", none["score"], best["score"]),
                                    ("magnitude", best["magnitude"], 1.0)):
                known = none["score"] <= ALREADY_AGREES and abs(high - low) > 1e-9
                entry[name + "_rescaled"] = (entry[name] - low) / (high - low) if known else None
            out[k], near[k] = entry, close
        self.near |= {f"{method} {kind} {attribute} {k}": n for k, n in near.items() if n}
        return out

    def _none(self):
        out = {}
        for name, value in (("sufficiency", 1.0), ("recovered", 1.0), ("necessity", 0.0)):
            out[name], out[name + "_ci"] = value, [value, value]
        out["control"] = {
            a: self._control("none", "control", a, self.best[a], {
                str(k): ({**self.unchanged[a][0], "magnitude": 0.0}, self.unchanged[a][1])
                for k in KS}) for a in self.prompts.attributes}
        return out

    def _sae(self, method, ways):
        out = self._approximation([rebuilt(w.clean) for w in ways])
        for kind in ("control", "control_aware"):
            out[kind] = {}
            for a in self.prompts.attributes:
                states, sizes, near = zip(*(w.moves(kind, a) for w in ways))
                _, predicted, margin = self.run(states)
                near, sizes, steps = np.any(near, axis=0), np.mean(sizes, axis=(0, 2)), {}
                for i, k in enumerate(KS):
                    entry, close = self._score(a, predicted[i], margin[i], near[i])
                    steps[str(k)] = {**entry, "magnitude": float(sizes[i])}, close
                out[kind][a] = self._control(method, kind, a, self.best[a], steps)
        out["f1"] = {}
        for t in self.asked if method == "random" else self.thresholds:
            m_keep, m_drop = (self.run([w.without(f(w.place.f1)) for w in ways])[0]
                              for f in (lambda f1: f1 < t, lambda f1: f1 >= t))
            entry = out["f1"][shortest(t)] = {}
            self._figures(entry, m_keep, m_drop, ("sufficiency", "necessity"))
            entry["features"] = sum(int((p.f1[p.active] >= t).sum())
                                    for p in {id(w.place): w.place for w in ways}.values())
        return out


def shortest(t):
    """"0", "0.85", "1"."""
    return repr(float(t)).removesuffix(".0")


# ---- all of it ----


def methods_of(node, choice):
    """Every projection that fits, and the one that the tests use."""
    if node.component in "qkv":
        return ["weights"], "weights"
    named = [name for name in choice.split(",") if name in ("span", "encoder")]
    return ["span", "encoder"], (named + ["span"])[0]


class Subject:
    """A node with all that the tests need of it, in whatever cross-section it stands."""

    def __init__(self, model, prompts, node, saes, random_rows, place_of, values, projection):
        """values["train" or "test" or an attribute] as gather() finds them."""
        self.node, self.prompts = node, prompts
        self.clean = at_node(values["test"], node)
        self.other = {a: at_node(values[a], node) for a in prompts.attributes}
        self.supervised = Supervised(prompts, at_node(values["train"], node))
        self.ways = {}
        sae, native = sae_for(model, saes, node), saes.get(node.hook)
        rows = {key: Rows(model, node, sae, v) for key, v in values.items()}
        mean = None if node.component in "qkv" else rows["train"].written.mean(0)
        guesses = {m: self.supervised.rebuild(m, prompts.values["test"]) for m in SUPERVISED}

        def way(name, place, project):
            clean = project("test")
            self.ways[name] = Way(self, place, clean, {a: project(a) for a in self.other})
            guesses[name] = rebuilt(clean)

        methods, use = methods_of(node, projection)
        for method in methods:
            proj = Projection(model, node, sae, sae.w["W_dec"], method, mean)
            guesses[method] = rebuilt(proj(rows["test"]))
            if method == use:
                way("sae", place_of(sae, node), lambda side: proj(rows[side]))
        if native is not None:
            way("native", place_of(native, node),
                lambda side: native_parts(native, node, values[side]))
        self.r2 = {m: r_squared(self.clean, g, self.supervised.mean) for m, g in guesses.items()}
        self.r2_stream = None if mean is None else {
            m: r_squared(rows["test"].written, rows["test"].write(g), mean)
            for m, g in guesses.items()}
        proj = Projection(model, node, sae, random_rows(sae), use, mean)
        way("random", place_of(sae, node), lambda side: proj(rows[side]))

    def record(self):
        name, head, position = self.node.key(self.prompts.names)
        out = {"node": name, "head": head, "position": position, "r2": self.r2}
        if self.r2_stream is not None:
            out["r2_stream"] = self.r2_stream
        return out | {"weights": self.supervised.weights}


def once(make):
    """make(key, ...), remembered by its key."""
    memory = {}

    def recall(key, *rest):
        if key not in memory:
            memory[key] = make(key, *rest)
        return memory[key]

    recall.memory = memory
    return recall


def find(args, model, prompts, others, clean, doc):
    """{cross-section: (all nodes, their scores, indices of the chosen)}; fills doc."""
    nodes, table = all_nodes(model, args.nodes.split(","), len(prompts.names)), {}
    by_key = {n.key(prompts.names): i for i, n in enumerate(nodes)}
    for attribute in prompts.attributes:
        scores = scores_of(model, prompts, attribute, nodes)
        walked, share = walk(scores, args.share, args.max_nodes)
        chosen = screen(nodes, walked)
        table[attribute] = (nodes, scores, chosen)
        theirs = [by_key[k] for k in others.get(attribute, ())]
        effects = effects_of(model, prompts, attribute, [nodes[i] for i in chosen + theirs])

        def rows(indices, effects):
            return [dict(zip(("node", "head", "position"), nodes[i].key(prompts.names)),
                         score=float(scores[i]), effect=e) for i, e in zip(indices, effects)]

        other = gather(model, prompts.other["test", attribute],
                       {(n.component, n.layer) for n in nodes})[0]
        doc[attribute] = {
            "nodes": rows(chosen, effects[:len(chosen)]),
            "others": rows(theirs, effects[len(chosen):]), "share": share,
            "spearman": spearman([scores[i] for i in chosen + theirs], effects),
            "curve": curve_of(model, prompts, nodes, scores, clean[0], other)}
        say(f"{attribute}: {len(chosen)} of {len(walked)} walked nodes, share {share:.3f}")
    return table


def given(args, prompts, doc):
    """The same of a file, where nothing is searched."""
    table, crosses = {}, given_nodes(args.cross_sections, prompts.names)
    every = list(dict.fromkeys(n for nodes in crosses.values() for n in nodes))
    for name, nodes in crosses.items():
        table[name] = (every, None, [every.index(n) for n in nodes])
        doc[name] = {
            "nodes": [dict(zip(("node", "head", "position"), n.key(prompts.names)),
                           score=None, effect=None) for n in nodes],
            "others": [], "share": None, "spearman": None, "curve": []}
    return table


def reference(args, model, prompts, others, dropped):
    """sage.json's form, {cross-section: (nodes, scores, chosen)}, and the mean |m|."""
    saes = load_saes(args.saes, np.float64 if args.double else np.float32, args.norm_factor)
    forms = prompts.clean["test"]
    resamples = Resamples(args.seed, len(forms))
    clean = patched(model, forms, [], [])
    baseline = {"accuracy": float(np.mean([p in f.answer for p, f in zip(clean[1], forms)])),
                "m_positive": float((clean[0] > 0).mean())}
    resamples.put(baseline, "m_clean", lambda x: x, clean[0])
    doc = {"prompts": {s: len(prompts.clean[s]) for s in ("train", "test")} | {"dropped": dropped},
           "baseline": baseline, "cross_sections": {}, "dictionaries": {}, "tests": {}}
    table = (given(args, prompts, doc["cross_sections"]) if args.cross_sections else
             find(args, model, prompts, others, clean, doc["cross_sections"]))
    chosen = {name: [nodes[i] for i in part] for name, (nodes, _, part) in table.items()}

    every = list(dict.fromkeys(n for part in chosen.values() for n in part))
    sites = {(n.component, n.layer) for n in every}
    sites |= {("resid_pre", n.layer) for n in every if n.component in "qkv"}
    sites |= {site_of(sae_for(model, saes, n).hook) for n in every}
    if model.kind == "gemma2":
        sites |= {("attn_raw", n.layer) for n in every if n.component == "z"}
    values = {s: gather(model, prompts.clean[s], sites)[0] for s in ("train", "test")}
    values |= {a: gather(model, prompts.other["test", a], sites)[0] for a in prompts.attributes}

    kinds = kinds_of(prompts)
    order = Random(args.seed, STREAM_PERMUTE).permutation(len(forms))
    random_rows = once(lambda hook, sae: redraw(sae, args.seed))

    def make_place(key, sae):
        hook, position = key
        row = values["test"][site_of(hook)][:, position]
        return Place(kinds, sae.encode(row.reshape(len(row), -1))[0], order)

    places = once(make_place)
    subjects = {
        n: Subject(model, prompts, n, saes, lambda sae: random_rows(sae.hook, sae),
                   lambda sae, node: places((sae.hook, node.position), sae), values,
                   args.projection) for n in every}
    asked = sorted({float(t) for t in args.f1.split(",")})
    thresholds = sorted({i / 10 for i in range(11)} | set(asked))
    near = {}
    for name, part in chosen.items():
        doc["dictionaries"][name] = [subjects[n].record() for n in part]
        tests = Tests(model, prompts, [subjects[n] for n in part], clean, resamples, thresholds,
                      asked)
        found = doc["tests"][name] = tests.all()
        near |= {f"{name} {key}": n for key, n in tests.near.items()}
        say(f"{name}: {len(tests.known)} patched passes, " + ", ".join(
            f"{k} {v['sufficiency']:.3f}" for k, v in found.items() if isinstance(v, dict)))

    listed = {(hook, prompts.names[position]): p for (hook, position), p in places.memory.items()}
    doc["interpretations"] = [
        {"hook": hook, "position": position, "feature": j, "f1": float(p.f1[j]),
         "support": p.support[j], "predicate": p.text[j]}
        for (hook, position), p in listed.items() for j in p.active.tolist()]
    doc["interpretations_by_chance"] = {
        shortest(t): {name: sum(int((getattr(p, f1)[p.active] >= t).sum())
                                for p in listed.values())
                      for name, f1 in (("features", "f1"), ("permuted", "chance"))}
        for t in thresholds}
    doc["near_ties"] = near
    return doc, table, float(abs(clean[0]).mean())


def all_effects(model, prompts, table):
    """How well the scores find the nodes whose real effect is the largest."""
    for attribute, (nodes, scores, chosen) in table.items():
        effects = np.array(effects_of(model, prompts, attribute, nodes))
        by_score, by_effect = np.argsort(-abs(scores))[:10], np.argsort(-abs(effects))[:10]
        print(f"{attribute}: precision at 10 {len(set(by_score) & set(by_effect)) / 10:.1f}, "
              f"Spearman over all {len(nodes)} nodes {spearman(scores, effects):.3f}, of sizes "
              f"{spearman(abs(scores), abs(effects)):.3f}")
        for i in by_effect:
            print("   effect %9.4f score %9.4f  %s head %s at %s%s" % (
                effects[i], scores[i], nodes[i].hook, nodes[i].head,
                prompts.names[nodes[i].position], "  chosen" if i in chosen else ""))


def write(directory, doc, table, prompts):
    """Ten digits: far below any difference that matters, and goldens stay small."""
    def short(x):
        if isinstance(x, dict):
            return {k: short(v) for k, v in x.items()}
        if isinstance(x, list):
            return [short(v) for v in x]
        return float(f"{x:.10g}") if isinstance(x, float) else x

    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(short({k: v for k, v in doc.items() if k != "near_ties"}), file, separators=(",", ":"), allow_nan=False)
        file.write("\n")
    with open(os.path.join(directory, "expected.csv"), "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["cross_section", "node", "head", "position", "score", "chosen"])
        for name, (nodes, scores, chosen) in table.items():
            for i, node in enumerate(nodes):
                hook, head, position = node.key(prompts.names)
                rows.writerow([name, hook, "" if head is None else head, position,
                               "" if scores is None else f"{scores[i]:.10g}", int(i in chosen)])


# ---- comparison ----


class Comparison:
    def __init__(self, tolerance):
        self.tolerance, self.worst, self.problems, self.tied = tolerance, {}, [], []

    def number(self, kind, label, mine, theirs, floor=0.01, exact=False, ties=None):
        """ties: None, or up to what difference a near-tie excuses."""
        if mine is None or theirs is None:
            self.same(f"{kind}: {label}", mine, theirs)
            return
        if not isinstance(theirs, (int, float)) or isinstance(theirs, bool):
            self.problem(f"{kind}: {label}: expected a number, found {theirs!r}")
            return
        gap = abs(mine - theirs)
        size = max(abs(mine), abs(theirs))
        rel, plain = gap / max(size, floor), gap / max(size, 1e-12)
        if not gap <= 1e300:
            rel = plain = math.inf
        bad = gap > 1e-9 if exact else not rel <= self.tolerance
        if bad and ties is not None and gap <= ties + 1e-9:
            self.tied.append(f"{kind}: {label}: {mine!r} here, {theirs!r} there")
            return
        entry = self.worst.setdefault(kind, [0, -1.0, "", 0.0, 0])
        entry[0] += 1
        entry[3] = max(entry[3], plain)
        if rel > entry[1]:
            entry[1], entry[2] = rel, f"{label}: {mine!r} here, {theirs!r} there"
        entry[4] += bad
        if bad and entry[4] <= 5:
            self.problem(f"{kind}: {label}: {mine!r} here, {theirs!r} there")

    def problem(self, text):
        self.problems.append(text)

    def same(self, label, mine, theirs):
        if mine != theirs:
            self.problem(f"{label}: {mine!r} here, {theirs!r} there")

    def tree(self, kind, label, mine, theirs, **how):
        """Objects and lists of numbers: each is one of `kind` and of its member's name."""
        if isinstance(mine, dict):
            if not isinstance(theirs, dict):
                self.problem(f"{kind}: {label}: missing")
                return
            self.same(f"{kind}: {label}: members", sorted(mine), sorted(theirs))
            for key in mine:
                if key in theirs:
                    self.tree(f"{kind} {key}", label, mine[key], theirs[key], **how)
        elif isinstance(mine, list):
            if not isinstance(theirs, list) or len(mine) != len(theirs):
                self.problem(f"{kind}: {label}: {mine!r} here, {theirs!r} there")
                return
            for i, (a, b) in enumerate(zip(mine, theirs)):
                self.tree(kind, f"{label}[{i}]", a, b, **how)
        else:
            self.number(kind, label, mine, theirs, **how)

    def report(self):
        print(f"{'kind':40} {'count':>6} {'worst':>9} {'plain':>9}  where")
        for kind, (n, rel, label, plain, _) in self.worst.items():
            print(f"{kind:40} {n:6d} {rel:9.2e} {plain:9.2e}  {label}")
        scores = [t for t in self.tied if t.split(":")[0].endswith(" score")]
        print(f"{len(scores)} scores differ by near-ties, and with them "
              f"{len(self.tied) - len(scores)} other figures")
        for text in self.tied:
            print("NEAR-TIE", text)
        for text in self.problems[:60]:
            print("DIFFERS", text)
        bad = sum(e[4] for e in self.worst.values())
        print(f"{sum(e[0] for e in self.worst.values())} numbers, {bad} beyond tolerance, "
              f"{len(self.problems)} problems listed")
        return 1 if self.problems else 0


def node_key(row):
    return row["node"], row["head"], row["position"]


def compare(args, doc, table, sage, prompts, least):
    c = Comparison(args.tolerance)
    c.same("prompts", doc["prompts"], sage["prompts"])
    c.tree("baseline", "", doc["baseline"], sage["baseline"])
    for kind in ("cross_sections", "dictionaries", "tests"):
        c.same(f"names of {kind}", list(doc[kind]), list(sage[kind]))
    for name, mine in doc["cross_sections"].items():
        theirs = sage["cross_sections"].get(name)
        if theirs is None:
            continue
        c.same(f"cross-section {name}", [node_key(r) for r in mine["nodes"]],
               [node_key(r) for r in theirs["nodes"]])
        floors = floors_of(table[name][1], mine, least)
        for group in ("nodes", "others"):
            there = {node_key(r): r for r in theirs[group]}
            for row in mine[group]:
                for figure in ("score", "effect"):
                    if node_key(row) in there:
                        c.number(f"{figure} (json)", f"{name} {node_key(row)}", row[figure],
                                 there[node_key(row)][figure], floors[figure])
        for figure in ("share", "spearman", "curve"):
            c.tree(figure, name, mine[figure], theirs[figure])
        there = {node_key(r): r for r in sage["dictionaries"][name]}
        for row in doc["dictionaries"][name]:
            if node_key(row) in there:
                other, label = there[node_key(row)], f"{name} {node_key(row)}"
                for figure in ("r2", "r2_stream"):
                    c.tree(figure, label, row.get(figure, {}), other.get(figure, {}))
                c.same(f"weights of {label}", list(row["weights"]), list(other["weights"]))
                for a, w in row["weights"].items():
                    c.number("weights", f"{label} {a}", w, other["weights"].get(a))
        mine, theirs = doc["tests"][name], sage["tests"][name]
        c.same(f"members of tests {name}", sorted(mine), sorted(theirs))
        for method, found in mine.items():
            compare_method(c, name, method, found, theirs.get(method), doc)
    compare_interpretations(c, doc, sage)
    compare_table(c, args.cross, table, doc, prompts, least)
    return c.report()


def floors_of(scores, section, least):
    effects = [abs(r["effect"] or 0) for r in section["nodes"] + section["others"]]
    return {"score": max(0 if scores is None else abs(scores).max() / 100, least),
            "effect": max([e / 100 for e in effects] + [least])}


def compare_method(c, name, method, mine, theirs, doc):
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        c.tree("tests " + method, name, mine, theirs)
        return
    c.same(f"{name} {method}: members", sorted(mine), sorted(theirs))
    n = doc["prompts"]["test"]
    for part, entry in mine.items():
        other, kind = theirs.get(part), f"{method} {part}"
        if part == "f1":
            c.same(f"{name} {kind}: thresholds", sorted(entry), sorted(other))
            for t in entry:
                c.tree(kind, f"{name} {t}", entry[t], other.get(t))
        elif part.startswith("control"):
            c.same(f"{name} {kind}: attributes", list(entry), list(other))
            for a in entry:
                compare_control(c, f"{name} {method} {part} {a}", kind, entry[a],
                                other.get(a, {}), doc["near_ties"], n)
        else:
            c.tree(kind, name, entry, other)


def compare_control(c, label, kind, mine, theirs, near, n):
    """A score differs by no more prompts than are near a tie; what rests on it is excused then."""
    c.same(f"{label}: members", sorted(mine), sorted(theirs))

    def ties(key):
        return near.get(f"{label} {key}", 0)

    for key, entry in mine.items():
        if key not in theirs:
            continue
        if not isinstance(entry, dict):  # none and its interval
            excuse = ties("none") / n if key == "none" else math.inf
            c.tree(f"{kind} {key}", label, entry, theirs[key], exact=key == "none",
                   ties=excuse if ties("none") else None)
            continue
        at = kind + (" supervised" if key == "supervised" else "")
        c.same(f"{label} {key}: members", sorted(entry), sorted(theirs[key]))
        for figure, value in entry.items():
            near_here = ties(key) + (
                ties("none") + ties("supervised") if figure.endswith("rescaled") else 0)
            excuse = ties(key) / n if figure == "score" else math.inf
            c.tree(f"{at} {figure}", f"{label} {key}", value, theirs[key].get(figure),
                   exact=figure == "score", ties=excuse if near_here else None)


def compare_interpretations(c, doc, sage):
    key = lambda r: (r["hook"], r["position"], r["feature"])
    here = {key(r): r for r in doc["interpretations"]}
    c.same("interpretations: count", len(here), len(sage["interpretations"]))
    for row in sage["interpretations"]:
        if key(row) not in here:
            c.problem(f"interpretation {key(row)} does not exist here")
            continue
        c.number("f1", str(key(row)), here[key(row)]["f1"], row["f1"])
        for name in ("predicate", "support"):
            c.same(f"{name} of {key(row)}", here[key(row)][name], row[name])
    mine, theirs = (x["interpretations_by_chance"] for x in (doc, sage))
    c.same("by chance: thresholds", sorted(mine), sorted(theirs))
    for t in mine:
        c.tree("by chance", t, mine[t], theirs.get(t), exact=True)


def compare_table(c, path, table, doc, prompts, least):
    if path is None:
        return
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    c.same("columns of cross_sections.csv", list(rows[0]),
           ["cross_section", "node", "head", "position", "score", "chosen", "effect"])
    there = {(r["cross_section"], r["node"], int(r["head"]) if r["head"] else None,
              r["position"]): r for r in rows}
    c.same("rows of cross_sections.csv", len(rows), sum(len(t[0]) for t in table.values()))
    for name, (nodes, scores, chosen) in table.items():
        section = doc["cross_sections"][name]
        floors = floors_of(scores, section, least)
        effects = {node_key(r): r["effect"] for g in ("nodes", "others") for r in section[g]}
        for i, node in enumerate(nodes):
            key = node.key(prompts.names)
            row = there.get((name,) + key)
            if row is None:
                c.problem(f"cross_sections.csv: no row for {name} {key}")
                continue
            c.same(f"chosen {name} {key}", str(int(i in chosen)), row["chosen"])
            mine = {"score": None if scores is None else float(scores[i]),
                    "effect": effects.get(key)}
            for figure, value in mine.items():
                c.number(f"{figure} (csv)", f"{name} {key}", value,
                         float(row[figure]) if row[figure] else None, floors[figure])


# ---- gradients ----


def gradients(args, model):
    """Autograd's dm/da against central differences, in float64."""
    with open(args.prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    rng, worst = np.random.default_rng(7), {}
    step = 1e-4
    for row in rows[:args.examples]:
        names = list(row["positions"])
        form = Form(row, names)
        nodes = all_nodes(model, COMPONENTS, len(names))
        sites = {(n.component, n.layer) for n in nodes}
        values, grads, _, _ = gather(model, [form], sites, gradient=True)
        for component in COMPONENTS:
            some = [n for n in nodes if n.component == component]
            largest = max(abs(at_node(grads, n)).max() for n in some)
            for i in rng.choice(len(some), min(args.count, len(some)), replace=False):
                node = some[i]
                a, g = at_node(values, node), at_node(grads, node)
                for direction in (rng.standard_normal(a.shape),
                                  np.eye(a.shape[1])[rng.integers(a.shape[1])][None]):
                    h = step * max(abs(a).max(), 1e-3)
                    up, down = (patched(model, [form], [node], [a + s * h * direction])[0][0]
                                for s in (1, -1))
                    numeric, exact = (up - down) / (2 * h), float((g * direction).sum())
                    size = largest * np.linalg.norm(direction)
                    rel = abs(numeric - exact) / size
                    worst[component] = max(worst.get(component, 0.0), rel)
    for component in COMPONENTS:
        print(f"{model.kind:9} {component:9} worst |central - autograd| / largest gradient "
              f"{worst[component]:.2e}")
    return 1 if max(worst.values()) > 1e-6 else 0


def say(text):
    print(text, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--llm", "--prompts"):
        parser.add_argument(name, required=True)
    for name in ("--saes", "--task", "--sage", "--cross", "--cross-sections", "--out"):
        parser.add_argument(name)
    parser.add_argument("--nodes", default="q,k,v,z")
    parser.add_argument("--projection", default="auto")
    parser.add_argument("--f1", default="0.8,0.9")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--max-nodes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=475)
    parser.add_argument("--norm-factor", type=float, default=1.0)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--all-effects", action="store_true")
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--examples", type=int, default=3, help="prompts for --gradients")
    parser.add_argument("--count", type=int, default=12, help="nodes of a kind for --gradients")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Model(args.llm, args.double or args.gradients)
    if args.gradients:
        return gradients(args, model)
    with open(args.task, encoding="utf-8") as file:
        task = json.load(file)
    sage, others, dropped = None, {}, []
    if args.sage:
        with open(args.sage, encoding="utf-8") as file:
            sage = json.load(file)
        dropped = sage["prompts"]["dropped"]
        others = {a: [node_key(r) for r in part["others"]]
                  for a, part in sage["cross_sections"].items()}
    prompts = Prompts(task, args.prompts, dropped)
    doc, table, size = reference(args, model, prompts, others, dropped)
    doc = {"task": task["name"], "model": args.llm, **doc}
    if args.all_effects and not args.cross_sections:
        all_effects(model, prompts, table)
    if args.out:
        write(args.out, doc, table, prompts)
    return compare(args, doc, table, sage, prompts, size / 1000) if sage else 0


if __name__ == "__main__":
    sys.exit(main())

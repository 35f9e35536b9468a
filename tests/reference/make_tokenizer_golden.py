#!/usr/bin/env python3
"""Goldens for tests/test_tokenizer.c, by the installed tokenizers (its version goes into VERSION).

Trains three small tokenizers (GPT-2's kind, GPT-NeoX's, Gemma's) and a row of odd ones, all written
to tests/golden/tokenizer/NAME.json, and writes NAME.sha256: a line for every 100 strings of the
generator below with SHA-256 of ids, of begins, and of decoded text. The C test draws the same strings
from the same generator.

Run from the repository root: python3 tests/reference/make_tokenizer_golden.py
"""
import hashlib
import json
import os
import struct

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

FOLDER = "tests/golden/tokenizer"
SEED, STREAM = 475, 100


class Random:
    """Philox4x32-10 as base.h specifies it."""

    def __init__(self, seed, stream):
        self.seed, self.stream, self.position, self.block = seed, stream, 0, None

    def word(self):
        if self.position % 4 == 0:
            n, s, k = self.position // 4, self.stream, self.seed
            c = [n & 0xFFFFFFFF, n >> 32, s & 0xFFFFFFFF, s >> 32]
            k0, k1 = k & 0xFFFFFFFF, k >> 32
            for _ in range(10):
                p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
                c = [(q >> 32) ^ c[1] ^ k0, q & 0xFFFFFFFF, (p >> 32) ^ c[3] ^ k1, p & 0xFFFFFFFF]
                k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
            self.block = c
        self.position += 1
        return self.block[(self.position - 1) % 4]

    def below(self, n):
        return self.word() % n


# One draw: a range of code points and how many of them at most, or the words below.
RANGES = [
    (0x20, 0x7F, 12), (0x61, 0x7B, 10), (0x30, 0x3A, 6), (0x00, 0x20, 3), (0x80, 0x100, 4),
    (0x100, 0x250, 4), (0x300, 0x370, 4), (0x370, 0x600, 6), (0x600, 0x780, 6), (0x900, 0xE00, 6),
    (0xE00, 0x1000, 5), (0x1100, 0x1200, 6), (0x1E00, 0x2000, 4), (0x2000, 0x2070, 4),
    (0x2100, 0x2200, 3), (0x3000, 0x3100, 5), (0x4E00, 0xA000, 6), (0xAC00, 0xD7A4, 6),
    (0xE000, 0xF900, 2), (0xF900, 0xFB00, 3), (0xFB00, 0x10000, 4), (0x10000, 0x20000, 4),
    (0x1D100, 0x1D200, 4), (0x1F300, 0x1FA00, 3), (0x20000, 0x30000, 3), (0x30000, 0x110000, 3),
    (0x0, 0x110000, 3), (0x0, 0x10000, 3), (0x1AB0, 0x1B00, 3), (0x11000, 0x12000, 4),
]
WORDS = [
    " ", " ", "  ", "   ", "    ", "                ", "                                     ", "\n",
    "\r\n", "\t", "\n\n", "\n\n\n", " \n", "\u00a0", "\u3000", "the", " red", " circle", "hello",
    " world", "It's", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", " '", "\u2581", "\u2581the",
    "<bos>", "<eos>", "<pad>", "<unk>", "<|endoftext|>", "<|endoftext", "<start_of_turn>",
    "<end_of_turn>", "<start_of_turn>user\n", "<mask>", "<0x41>", "<0x0A>", "[TOK]", "[TOKEN]", "[T",
    "\u200d", "\ufe0f", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301", "q\u0323\u0307",
    "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0344", "\u0f73\u0f71", "\u212b", "\u1fbb", "12345",
    "\u00bd", "\u0967\u0968", "\ufffd", "\ufeff",
]


def strings(stream, count):
    r = Random(SEED, stream)
    for _ in range(count):
        out = []
        for _ in range(r.below(16)):
            kind = r.below(2 * len(RANGES))
            if kind >= len(RANGES):
                out.append(WORDS[r.below(len(WORDS))])
                continue
            first, last, most = RANGES[kind]
            for _ in range(1 + r.below(most)):
                code = first + r.below(last - first)
                out.append(chr(0xFFFD if 0xD800 <= code < 0xE000 else code))
        yield "".join(out)


def id_lists(stream, count, size):
    r = Random(SEED, stream)
    for _ in range(count):
        yield [r.below(size + 3) for _ in range(r.below(24))]


def byte_offsets(text):
    offsets = [0]
    for c in text:
        offsets.append(offsets[-1] + len(c.encode()))
    return offsets


def begins(encoding, text):
    at = byte_offsets(text)
    return [at[a] for a, _ in encoding.offsets]


def size_of(tokenizer):
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def corpus():
    for i, s in enumerate(strings(STREAM + 50, 3000)):
        yield s
        yield "the red circle is left of the blue square and it's not far from the green star" * (i % 3)
        yield "def f(x):\n    return x + 12  # \u00e9t\u00e9 na\u00efve \u4f60\u597d \ud55c\uad6d\uc5b4\r\n"


def byte_level(normalizer, size):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        ),
    )
    return t


def gpt2(size):
    return finish(byte_level(None, size), True)


def neox(size):
    t = byte_level(normalizers.NFC(), size)
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    t.add_special_tokens([AddedToken("<pad>", special=True)])
    return finish(t, False)


GEMMA_DECODER = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]


def gemma(size, alphabet):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    t.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")  # for training alone
    t.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=size,
            limit_alphabet=alphabet,
            special_tokens=specials + [f"<0x{b:02X}>" for b in range(256)],
            show_progress=False,
        ),
    )
    d = json.loads(t.to_str())
    d["added_tokens"] = d["added_tokens"][: len(specials)]
    d["pre_tokenizer"] = None
    # runs of newlines and of marks, as Gemma has them; merges over the spaces between words
    vocab, merges = d["model"]["vocab"], d["model"]["merges"]
    for mark in ("\n", "\u2581"):
        for n in range(2, 9):
            if mark * n not in vocab:
                vocab[mark * n] = len(vocab)
                merges.append([mark * (n - 1), mark])
    for a, b in (("e\u2581", "\u2581"), ("e", "\u2581"), ("s", "\u2581the")):
        if a in vocab and b in vocab and a + b not in vocab:
            vocab[a + b] = len(vocab)
            merges.insert(len(merges) // 2, [a, b])
    for n in range(2, 6):
        d["added_tokens"].append(
            dict(id=vocab["\n" * n], content="\n" * n, single_word=False, lstrip=False,
                 rstrip=False, normalized=False, special=False))
    t = Tokenizer.from_str(json.dumps(d))
    t.decoder = decoders.Sequence(GEMMA_DECODER)
    t.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)])
    return finish(t, False)


def finish(tokenizer, merges_as_text):
    d = json.loads(tokenizer.to_str())
    if merges_as_text:
        d["model"]["merges"] = [" ".join(m) for m in d["model"]["merges"]]
    return d


def odd(base, **changes):
    """A copy of a tokenizer with other settings."""
    return dict(json.loads(json.dumps(base)), **changes)


def flagged(base, texts):
    """Added tokens with every combination of flags, in the normalizer's form where they are normalized."""
    flags = ["", "w", "l", "r", "lr", "wl", "wr", "wlr", "n", "nw", "nl", "nr", "nlr", "nwlr"]
    normalizer = Tokenizer.from_str(json.dumps(repaired(odd(base)))).normalizer
    vocab, tokens = base["model"]["vocab"], []
    size = len(vocab)
    for i, (text, f) in enumerate(zip(texts, flags)):
        text = normalizer.normalize_str(text) if normalizer and "n" in f else text
        size += text not in vocab
        tokens.append(dict(id=vocab.get(text, size - 1), content=text, single_word="w" in f, lstrip="l" in f,
                           rstrip="r" in f, normalized="n" in f, special=i % 3 == 0))
    return odd(base, added_tokens=tokens)


def odd_ones(gpt2_json, neox_json, gemma_json):
    # White space must not be stripped on its left: where a neighbour's rstrip ate it, tokenizers panics.
    texts = ["the", "\n", "[TOKEN]", "e\u0301", "\u212b", " red", "world", "<mask>", "  ", "[TOK]",
             "q\u0323\u0307", "[T", "12", "\u200d"]
    turned = texts[7:] + texts[:7]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "y", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": [7, 8], "tokens": ["a", "b"]},
                           "y": {"id": "y", "ids": [9], "tokens": ["c"]}},
    }
    yield "flags_gpt2", flagged(gpt2_json, texts)
    yield "flags_neox", flagged(neox_json, turned)
    yield "flags_gemma", flagged(gemma_json, texts)
    yield "flags_gemma2", flagged(gemma_json, turned)
    yield "split", odd(gemma_json, pre_tokenizer={"type": "Split", "pattern": {"String": "\u2581"},
                                                  "behavior": "MergedWithPrevious", "invert": False})
    names = {"<0x09>": "\t", "\t": "[unused]"}  # Gemma has the tab in the place of its byte
    tab = odd(gemma_json)
    tab["model"]["vocab"] = {names.get(k, k): v for k, v in tab["model"]["vocab"].items()}
    yield "template", odd(gpt2_json, post_processor={"type": "Sequence", "processors": [
        gpt2_json["post_processor"], template]})
    yield "tab", tab
    yield "prefix", odd(flagged(gpt2_json, texts[:4]), pre_tokenizer={
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})
    yield "fitted", odd(neox_json, post_processor=template, truncation={
        "direction": "Left", "max_length": 12, "strategy": "LongestFirst", "stride": 2}, padding={
        "strategy": {"Fixed": 10}, "direction": "Left", "pad_to_multiple_of": 4, "pad_id": 3, "pad_type_id": 0,
        "pad_token": "x"})


def repaired(d):
    """Merges whose tokens the vocabulary lacks are left out, so that the file loads."""
    vocab = d["model"]["vocab"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in d["model"]["merges"]]
    keep = [i for i, (a, b) in enumerate(pairs) if a in vocab and b in vocab and a + b in vocab]
    d["model"]["merges"] = [d["model"]["merges"][i] for i in keep]
    return d


def digest_lines(tokenizer, stream, count):
    """For every 100 strings: SHA-256 of ids, of begins, of texts decoded from random ids."""
    size = size_of(tokenizer)
    lists = id_lists(stream + 1, count, size)
    hashes, lines = [hashlib.sha256() for _ in range(3)], []
    for n, text in enumerate(strings(stream, count)):
        for special in (False, True):
            e = tokenizer.encode(text, add_special_tokens=special)
            hashes[0].update(struct.pack(f"<{len(e.ids) + 1}i", len(e.ids), *e.ids))
            hashes[1].update(struct.pack(f"<{len(e.ids) + 1}I", len(e.ids), *begins(e, text)))
        for ids in (e.ids, next(lists)):
            for skip in (False, True):
                out = tokenizer.decode(ids, skip_special_tokens=skip).encode()
                hashes[2].update(struct.pack("<I", len(out)) + out)
        if n % 100 == 99:
            lines.append(" ".join(h.hexdigest() for h in hashes))
            hashes = [hashlib.sha256() for _ in range(3)]
    return lines


def write(name, d, stream, count):
    path = f"{FOLDER}/{name}.json"
    d = repaired(d)
    with open(path, "w") as f:
        json.dump(d, f, ensure_ascii=False, separators=(",", ":"))
    tokenizer = Tokenizer.from_file(path)
    with open(f"{FOLDER}/{name}.sha256", "w") as f:
        f.write("\n".join(digest_lines(tokenizer, stream, count)) + "\n")


def main():
    os.makedirs(FOLDER, exist_ok=True)
    kinds = gpt2(700), neox(700), gemma(1000, 400)
    for i, (name, d) in enumerate(zip(("gpt2", "neox", "gemma"), kinds)):
        write(name, d, STREAM + 2 * i, 10000)
    small = gpt2(340), neox(340), gemma(480, 120)
    for i, (name, d) in enumerate(odd_ones(*small)):
        write(name, d, STREAM + 10 + 2 * i, 500)
    with open(f"{FOLDER}/VERSION", "w") as f:
        f.write(f"tokenizers {tokenizers.__version__}\n")


if __name__ == "__main__":
    main()

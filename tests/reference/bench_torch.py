"""Whole steps at real size, refsae beside PyTorch (eager, float32, as the released code runs).

A random Gemma-2-2B (BF16; --layers fewer than 26, which leaves the ratio nearly as it is) and a random
CLIP ViT-L/14 are written into --dir. Then, in turn, --rounds times: one adapter step of refsae (CLIP,
forward, backward, AdamW; timing.csv's last step of three) and the same step here, on one example of 256
image tokens and about as many text tokens. Prints each pair, the medians and their ratio, and the
processor. Both use --threads threads.

Written for torch 2.13.0, transformers 5.23.0.

    python3 tests/reference/bench_torch.py --dir DIR [--program ./refsae] [--layers 26] [--threads 2]
"""
import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import time

import torch
from PIL import Image

import compare_full_size as full_size
import train_adapter

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZER = os.path.join(HERE, "../../weights/gemma2/tokenizer.json")
WORDS = 235  # with the chat's own tokens 256 after <bos> and the image


def write_world(folder, layers):
    """Checkpoints, one picture, and conversations about it."""
    gemma = dict(full_size.GEMMA2, num_hidden_layers=layers)
    for name, config, dtype in ((f"gemma2-{layers}", gemma, torch.bfloat16),
                                ("clip", full_size.CLIP, torch.float32)):
        directory = os.path.join(folder, name)
        if not os.path.exists(os.path.join(directory, "config.json")):
            full_size.build(directory, config, dtype)
            full_size.write_json(directory, "config.json", config)
            shutil.copy(TOKENIZER, directory)
    y, x = torch.meshgrid(torch.arange(300), torch.arange(411), indexing="ij")
    pixels = torch.stack([x, y, x * y // 97], -1) % 256
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(os.path.join(folder, "picture.png"))
    row = {"id": "0", "image": "picture.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat is it?"},
        {"from": "gpt", "value": " ".join(["a", "red", "circle"][i % 3] for i in range(WORDS))}]}
    with open(os.path.join(folder, "data.json"), "w", encoding="utf-8") as file:
        json.dump([row] * 3, file)
    return os.path.join(folder, f"gemma2-{layers}"), os.path.join(folder, "clip"), row


def refsae_step(program, llm, vision, folder, threads):
    """Seconds of the third step; the first two touch fresh pages of the mapped weights."""
    out = os.path.join(folder, "out")
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([program, "train", "--llm", llm, "--vision", vision, "--images", folder, "--data",
                    os.path.join(folder, "data.json"), "--batch", "1", "--accumulate", "1", "--steps",
                    "3", "--tokens", "512", "--threads", str(threads), "--quiet", "--out", out],
                   check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(out, "timing.csv"), encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


class TorchStep:
    def __init__(self, llm, vision, folder, row):
        self.model, tokenizer, self.tower, self.processor = train_adapter.load(llm, vision)
        self.example = train_adapter.tokenize_example(tokenizer, row, 512)
        self.folder, self.name = folder, row["image"]
        self.adapter = torch.nn.Linear(self.tower.config.hidden_size, self.model.config.hidden_size)
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=1e-3)

    def run(self):
        start = time.perf_counter()
        features = train_adapter.image_features(self.tower, self.processor, self.folder, [self.name])
        image = self.adapter(features[self.name])
        loss = train_adapter.batch_loss(self.model, [self.example], [image])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - start


def processor_name():
    with open("/proc/cpuinfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    return f"{fields.get('model name')}, family {fields.get('cpu family')}, model {fields.get('model')}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", required=True, help="where the checkpoints are written and kept")
    parser.add_argument("--program", default="./refsae")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.dir, exist_ok=True)
    llm, vision, row = write_world(args.dir, args.layers)
    step = TorchStep(llm, vision, args.dir, row)
    step.run()
    print(f"{processor_name()}; {args.layers} layers, {args.threads} threads, "
          f"{256 + len(step.example[0])} rows")
    pairs = []
    for _ in range(args.rounds):
        pairs.append((refsae_step(args.program, llm, vision, args.dir, args.threads), step.run()))
        print("refsae %.2f s, PyTorch %.2f s" % pairs[-1], flush=True)
    ours, theirs = (statistics.median(side) for side in zip(*pairs))
    print(f"medians: refsae {ours:.2f} s, PyTorch {theirs:.2f} s: {theirs / ours:.2f} times as fast")


if __name__ == "__main__":
    main()

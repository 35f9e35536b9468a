"""Products, SAEs, a training step and an analysed example at real size, refsae beside PyTorch (eager, float32).

Writes into --dir, unless it is there, a random Gemma-2-2B (BF16; --layers fewer than 26, which leaves the ratios
nearly as they are), a random CLIP ViT-L/14, and for each layer a random SAE of 16,384 features of which some 1,000 are
active. Then, in turn, --rounds times: `refsae bench`, the same products, encoding and decoding here, `refsae bench
--llm`, the same step (CLIP, forward, backward, AdamW) and the same example (four passes, every layer's SAE on each
group of rows) here. Prints a table of medians, for the README, and the processor. Both use --threads threads.

--write ends before anything is measured (`make bench-full`). Written for torch 2.13.0, transformers 5.23.0.

    python3 tests/reference/bench_torch.py --dir DIR [--program ./refsae] [--layers 26] [--threads 2]
"""
import argparse
import glob
import json
import os
import re
import shutil
import statistics
import subprocess
import time

import torch
from PIL import Image
from safetensors.torch import save_file

import compare_full_size as full_size
import train_adapter

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZER = os.path.join(HERE, "../../weights/gemma2/tokenizer.json")
D_SAE, THRESHOLD = 16384, 1.55  # of numbers that are nearly standard normal 6 % are above
ANSWER = "a red circle " * 160  # as `refsae bench --llm` has it
QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}


def write_world(folder, layers):
    """Checkpoints, SAEs and one picture: their paths."""
    llm, vision, saes = (os.path.join(folder, name) for name in (f"gemma2-{layers}", "clip", f"saes-{layers}"))
    gemma = dict(full_size.GEMMA2, num_hidden_layers=layers)
    for directory, config, dtype in ((llm, gemma, torch.bfloat16), (vision, full_size.CLIP, torch.float32)):
        if not os.path.exists(os.path.join(directory, "tokenizer.json")):
            full_size.build(directory, config, dtype)
            full_size.write_json(directory, "config.json", config)
            shutil.copy(TOKENIZER, directory)
    if not os.path.exists(saes):
        d = gemma["hidden_size"]
        w_dec = torch.randn(D_SAE, d, generator=torch.Generator().manual_seed(475)) / d**0.5
        tensors = {"W_enc": w_dec.T.contiguous(), "W_dec": w_dec, "b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(d),
                   "threshold": torch.full((D_SAE,), THRESHOLD)}
        for layer in range(layers):
            directory = os.path.join(saes, f"layer_{layer}")
            os.makedirs(directory)
            save_file(tensors, os.path.join(directory, "sae_weights.safetensors"))
            full_size.write_json(directory, "cfg.json", {
                "architecture": "jumprelu", "d_in": d, "d_sae": D_SAE, "apply_b_dec_to_input": False,
                "normalize_activations": "constant_norm_rescale", "reshape_activations": "none",
                "metadata": {"sae_lens_version": "6.5.0", "hook_name": f"blocks.{layer}.hook_resid_post"}})
    y, x = torch.meshgrid(torch.arange(300), torch.arange(411), indexing="ij")
    pixels = torch.stack([x, y, x * y // 97], -1) % 256
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(os.path.join(folder, "picture.png"))
    return llm, vision, saes


def leave_memory(folder):
    """Its files, of which PyTorch has copies: read anew they come in the large pages that refsae asks for."""
    for path in glob.glob(os.path.join(folder, "*", "**", "*.safetensors"), recursive=True):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def refsae(program, threads, *arguments):
    command = [program, "bench", "--json", "--quiet", "--threads", str(threads), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def seconds_of(work, best=10):
    """The fastest of ten, as `refsae bench` counts."""
    taken = []
    for _ in range(best):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def kernel_pairs(kernels, threads):
    """{name: (seconds of refsae, of PyTorch)} of its products and of an SAE's decoding (dense here)."""
    pairs = {}
    for kernel in kernels:
        shape = re.search(r"(\d+)x(\d+) by (\d+)x\d+, (\w+), \[(\w+), ", kernel["name"])
        sparse = re.search(r"decoding, (\d+) rows of (\d+)", kernel["name"])
        if kernel["threads"] != threads or not (shape or sparse):
            continue
        if shape:
            rows, inputs, outputs = (int(n) for n in shape.groups()[:3])
            operations = 2 * rows * inputs * outputs
            w = torch.rand(outputs, inputs) if shape[5] == "out" else torch.rand(inputs, outputs).T
        else:
            rows, inputs, outputs = int(sparse[1]), D_SAE, full_size.GEMMA2["hidden_size"]
            operations = 2 * rows * int(sparse[2]) * outputs
            w = torch.rand(inputs, outputs).T
        x = torch.rand(rows, inputs)
        pairs[kernel["name"]] = operations / kernel["best"] / 1e9, seconds_of(lambda: torch.nn.functional.linear(x, w))
    return pairs


class TorchMapping:
    """What `refsae bench --llm` runs as train and analyze."""

    def __init__(self, llm, vision, saes, folder):
        self.model, self.tokenizer, self.tower, self.processor = train_adapter.load(llm, vision)
        self.folder = folder
        self.adapter = torch.nn.Linear(self.tower.config.hidden_size, self.model.config.hidden_size)
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=1e-3)
        row = {"conversations": [QUESTION, {"from": "gpt", "value": ANSWER}]}
        self.example = train_adapter.tokenize_example(self.tokenizer, row, 512)
        self.prompt = self.ids_of(QUESTION["value"])
        self.control = self.ids_of(QUESTION["value"].replace(
            "<image>", f"Consider the following information: {ANSWER} "))
        self.saes = [{k: v for k, v in full_size.load_file(
            os.path.join(saes, f"layer_{layer}", "sae_weights.safetensors")).items() if k.startswith("W_")}
            for layer in range(self.model.config.num_hidden_layers)]
        with torch.no_grad():
            self.features = self.image()
        self.step()
        self.analyze()

    def ids_of(self, text):
        """A prompt that ends where the answer is to begin."""
        document = train_adapter.render([("user", text)])[0] + "<start_of_turn>model\n"
        return [self.tokenizer.bos_token_id] + self.tokenizer(document, add_special_tokens=False)["input_ids"]

    def image(self):
        features = train_adapter.image_features(self.tower, self.processor, self.folder, ["picture.png"])
        return self.adapter(features["picture.png"])

    def step(self):
        loss = train_adapter.batch_loss(self.model, [self.example], [self.image()])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def measure(self, layer, x):
        """The layer's SAE on rows of the stream: encoded, decoded, compared."""
        z = (x * (x.shape[1]**0.5 / x.norm(dim=1, keepdim=True))) @ self.saes[layer]["W_enc"]
        f = z * (z > THRESHOLD)
        y = f @ self.saes[layer]["W_dec"] * (x.norm(dim=1, keepdim=True) / x.shape[1]**0.5)
        return (torch.nn.functional.mse_loss(y, x), (f != 0).sum() / len(x), (f > 0).any(0),
                torch.nn.functional.cosine_similarity(x, y).mean())

    def forward(self, rows, begins):
        """One pass; the groups of rows begin at `begins`."""
        ends = begins[1:] + [len(rows)]
        hooks = [layer.register_forward_hook(
            lambda _, __, out, i=i: [self.measure(i, (out[0] if isinstance(out, tuple) else out)[0, a:b])
                                     for a, b in zip(begins, ends)] and None)
                 for i, layer in enumerate(self.model.model.layers)]
        self.model.model(inputs_embeds=rows[None])
        for hook in hooks:
            hook.remove()

    def analyze(self):
        with torch.no_grad():
            image = self.features
            for variant in (image, image[torch.randperm(len(image))], torch.randn_like(image)):
                self.forward(train_adapter.sequence(self.model, self.prompt, variant), [1, 1 + len(image)])
            self.forward(self.model.get_input_embeddings()(torch.tensor(self.control)), [1])


def stage(found, what):
    return next(s for s in found["stages"] if s["stage"] == what)


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
    parser.add_argument("--write", action="store_true", help="write the checkpoints and end")
    parser.add_argument("--kernels", choices=("yes", "no", "only"), default="yes",
                        help="products and an SAE's decoding, too or alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.dir, exist_ok=True)
    if args.kernels != "only":
        llm, vision, saes = write_world(args.dir, args.layers)
    if args.write:
        return
    if args.kernels != "only":
        torch_side = TorchMapping(llm, vision, saes, args.dir)
        leave_memory(args.dir)
    pairs = {}
    for _ in range(args.rounds):
        one = {}
        if args.kernels != "no":
            one = kernel_pairs(refsae(args.program, args.threads)["kernels"], args.threads)
        if args.kernels != "only":
            found = refsae(args.program, args.threads, "--llm", llm, "--vision", vision, "--saes", saes)
            one["a training step"] = stage(found, "training")["seconds"], seconds_of(torch_side.step, 1)
            one["an analysed example"] = stage(found, "measuring")["seconds"], seconds_of(torch_side.analyze, 1)
        for name, pair in one.items():
            pairs.setdefault(name, []).append(pair)
            if name.startswith("a"):
                print("%s: refsae %.2f s, PyTorch %.2f s" % (name, *pair), flush=True)
    print(f"\n{processor_name()}; {args.threads} threads, {args.layers} layers, PyTorch {torch.__version__} (f32, "
          f"eager), medians of {args.rounds}\n\n| what | refsae | PyTorch | ratio |\n|---|---|---|---|")
    for name, rounds in pairs.items():
        ours, theirs = (statistics.median(side) for side in zip(*rounds))
        ratio = statistics.median(b / a for a, b in rounds)
        form = (lambda s: f"{s:.2f} s") if ours > 1 else lambda s: f"{1e3 * s:.1f} ms"
        print(f"| {name} | {form(ours)} | {form(theirs)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

"""Pictures of every kind that refsae reads, and what Pillow and transformers make of them.

    python3 tests/reference/make_image_golden.py        (from the root; needs cjpeg and jpegtran)

Writes tests/golden/image/: the files; manifest.txt, a line a file: name, width, height, SHA-256 of the
bytes of convert("RGB"); resize.txt: name, width, height, SHA-256 of resize((width, height), BICUBIC);
settings/NAME/: preprocessor_config.json and for each file in the case pixel_values as float32,
NAME/FILE.f32 [3, H, W], with a line in settings.txt. Made with Pillow 13.0.0 (libjpeg-turbo 3.2.0),
transformers 5.23.0 (CLIPImageProcessorPil), numpy 2.4.6, cjpeg and jpegtran of libjpeg-turbo 2.1.5.
"""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

OUT = "tests/golden/image"


def picture(width, height, channels, seed, noise=18.0):
    """Waves, an edge and noise: energy at every frequency, and corners that clip."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for _ in range(channels):
        fx, fy, phase = rng.uniform(0.05, 0.7, 3)
        wave = 128 + 110 * np.sin(x * fx + y * fy + phase * 9)
        planes.append(np.where(x * 2 > y + rng.integers(0, width), wave, 255 - wave))
    return np.clip(np.stack(planes, -1) + rng.normal(0, noise, (height, width, channels)), 0, 255).astype(np.uint8)


def run(args, data):
    return subprocess.run(args, input=data, capture_output=True, check=True).stdout


def pnm(a):
    return b"P%d %d %d 255\n" % (6 if a.shape[2] == 3 else 5, a.shape[1], a.shape[0]) + a.tobytes()


def cjpeg(a, *args, quality=80):
    return run(["cjpeg", "-quality", str(quality), *args], pnm(a))


def pillow(a, mode, form, **options):
    out = io.BytesIO()
    Image.fromarray(a[..., 0] if a.shape[2] == 1 else a, mode).save(out, form, **options)
    return out.getvalue()


def segment(data, marker):
    """Offset of the marker's FF and of what follows its segment."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return at, at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


def without(data, marker):
    begin, end = segment(data, marker)
    return data[:begin] + data[end:]


def with_adobe(data, transform):
    return data[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + data[2:]


def scans(text):
    path = os.path.join(tempfile.gettempdir(), "make_image_golden.scans")
    with open(path, "w") as f:
        f.write(text)
    return ["-scans", path]


def jpegs():
    files = {}
    gray, rgb = picture(21, 13, 1, 1), picture(35, 27, 3, 2)
    files["gray"] = cjpeg(gray)
    files["gray_progressive"] = cjpeg(gray, "-progressive")
    files["gray_one"] = cjpeg(picture(1, 1, 1, 3))
    for sample in ("1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4", "3x1", "1x3", "3x2"):
        files["sample_" + sample] = cjpeg(rgb, "-sample", sample)
    files["sample_mixed"] = cjpeg(rgb, "-sample", "2x2,2x1,1x2")
    files["sample_blue_large"] = cjpeg(rgb, "-sample", "1x1,1x1,2x2")
    for width, height in ((1, 1), (2, 2), (3, 3), (4, 5), (5, 4), (16, 16), (17, 33), (1, 40), (40, 1)):
        files["odd_%dx%d" % (width, height)] = cjpeg(picture(width, height, 3, width + height), "-sample", "2x2")
    files["narrow_422"] = cjpeg(picture(4, 9, 3, 5), "-sample", "2x1")
    files["progressive_420"] = cjpeg(rgb, "-progressive")
    files["progressive_444_restart"] = cjpeg(rgb, "-progressive", "-sample", "1x1", "-restart", "3B")
    files["restart_blocks"] = cjpeg(rgb, "-restart", "2B")
    files["restart_rows"] = cjpeg(rgb, "-restart", "1", "-optimize")
    files["quality_1"] = cjpeg(rgb, "-baseline", quality=1)
    files["quality_1_16bit_tables"] = cjpeg(rgb, quality=1)
    files["quality_100"] = cjpeg(picture(16, 16, 3, 7, 60), quality=100)
    files["separate_scans"] = cjpeg(rgb, *scans("0;\n2;\n1;\n"))
    files["pair_and_one"] = cjpeg(rgb, *scans("0 1;\n2;\n"))
    dc_only = "0,1,2: 0-0, 0, 1;\n"
    rest = "0: 1-5, 0, 2;\n2: 1-63, 0, 1;\n1: 1-63, 0, 1;\n0: 6-63, 0, 2;\n0: 1-63, 2, 1;\n0,1,2: 0-0, 1, 0;\n"
    whole = cjpeg(rgb, *scans(dc_only + rest + "2: 1-63, 1, 0;\n1: 1-63, 1, 0;\n0: 1-63, 1, 0;\n"))
    files["progressive_script"] = whole
    files["rgb_ids"] = without(cjpeg(rgb, "-rgb"), 0xEE) if b"Adobe" in cjpeg(rgb, "-rgb") else cjpeg(rgb, "-rgb")
    files["rgb_adobe"] = pillow(rgb, "RGB", "JPEG", keep_rgb=True)
    files["adobe_ycc"] = with_adobe(without(cjpeg(rgb), 0xE0), 1)
    files["no_markers"] = without(cjpeg(rgb), 0xE0)
    cmyk = pillow(picture(18, 11, 4, 9), "CMYK", "JPEG", quality=85)
    files["cmyk_adobe"] = cmyk
    files["cmyk_plain"] = without(cmyk, 0xEE)
    at = cmyk.index(b"Adobe")
    files["ycck"] = cmyk[: at + 11] + b"\x02" + cmyk[at + 12 :]
    files["exif_rotated"] = pillow(rgb, "RGB", "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    whole = cjpeg(rgb, "-restart", "2B")
    _, data = segment(whole, 0xDA)
    files["damaged"] = whole[: data + 90] + bytes(7) + whole[data + 97 :]
    files["ended_early"] = whole[: len(whole) // 2 + 150] + b"\xff\xd9"
    return {name + ".jpg": data for name, data in files.items()}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def stored(raw, more=0):
    """The rows as one stored block that says to hold `more` bytes than it does."""
    size = len(raw) + more
    return b"\x78\x01\1" + struct.pack("<HH", size, size ^ 0xFFFF) + raw


def flushed(raw):
    """The rows in blocks of which none is the last."""
    out = zlib.compressobj(9)
    return out.compress(raw) + out.flush(zlib.Z_SYNC_FLUSH)


def png(
    width, height, depth, colour, seed, interlaced=False, extra=b"", pieces=1, top=256, pack=lambda r: zlib.compress(r, 9)
):
    """Random filters over random bytes: the rows need not come from a picture."""
    rng = np.random.default_rng(seed)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    raw = b""
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        n, rows = max(0, -(-(width - x) // dx)), max(0, -(-(height - y) // dy))
        size = (n * channels * depth + 7) // 8
        for _ in range(rows if n else 0):
            raw += bytes([rng.integers(0, 5)]) + rng.integers(0, top, size).astype(np.uint8).tobytes()
    stream = pack(raw)
    cut = [len(stream) * i // pieces for i in range(pieces + 1)]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
        + extra
        + b"".join(chunk(b"IDAT", stream[a:b]) for a, b in zip(cut, cut[1:]))
        + chunk(b"IEND", b"")
    )


def pngs():
    files = {}
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))):
        for depth in depths:
            seed = colour * 20 + depth
            palette = np.random.default_rng(seed).integers(0, 256, 3 * 2**depth).astype(np.uint8).tobytes()
            extra = chunk(b"PLTE", palette) if colour == 3 else b""
            top = 3 if depth == 16 and colour == 0 else 256  # so that some samples are below 256
            files["c%d_%02d" % (colour, depth)] = png(9, 6, depth, colour, seed, False, extra, top=top)
            files["c%d_%02d_interlaced" % (colour, depth)] = png(11, 7, depth, colour, seed, True, extra, 3, top)
    files["palette_short"] = png(9, 4, 8, 3, 1, False, chunk(b"PLTE", bytes(range(40, 46))), top=4)
    files["palette_transparent"] = png(5, 4, 2, 3, 2, False, chunk(b"PLTE", bytes(range(12))) + chunk(b"tRNS", b"\0\x80"))
    files["gray_key"] = png(5, 4, 8, 0, 3, False, chunk(b"tRNS", b"\0\x01"))
    files["rgb_key"] = png(5, 4, 8, 2, 4, False, chunk(b"tRNS", b"\0\1\0\2\0\3") + chunk(b"tEXt", b"a\0b"))
    files["interlaced_1x1"] = png(1, 1, 8, 2, 5, True)
    files["interlaced_3x2"] = png(3, 2, 16, 6, 6, True)
    files["many_pieces"] = png(12, 9, 8, 6, 7, pieces=40)
    smooth = picture(40, 30, 3, 10, 2)
    files["filters"] = pillow(smooth, "RGB", "PNG", optimize=True)
    files["tall"] = pillow(picture(19, 41, 3, 8), "RGB", "PNG")
    # Pillow asks no more of a stream than the rows.
    for name, pack in {
        "no_checksum": lambda raw: zlib.compress(raw, 9)[:-4],
        "half_a_checksum": lambda raw: zlib.compress(raw, 9)[:-2],
        "flushed": flushed,
        "half_a_block_head": lambda raw: flushed(raw) + b"\5\xe0",
        "stored_no_checksum": stored,
        "stored_too_long": lambda raw: stored(raw, 100),
        "stored_too_much": lambda raw: stored(raw + bytes(100)),
        "rows_too_many": lambda raw: zlib.compress(raw + bytes(70000), 9),
        "distance_too_far": lambda raw: flushed(raw) + b"\x03\xde\xff\x0f",
    }.items():
        files["end_" + name] = png(7, 5, 8, 2, 9, pack=pack)
        files["end_" + name + "_interlaced"] = png(7, 5, 8, 2, 10, True, pieces=3, pack=pack)
    return {name + ".png": data for name, data in files.items()}


def pnms():
    rng = np.random.default_rng(11)
    byte = lambda n, top: rng.integers(0, top, n).astype(np.uint8).tobytes()
    return {
        "raw.pgm": b"P5 #a\r5#b\n 3 255\n" + byte(15, 256),
        "raw_100.pgm": b"P5 5 3 100\n" + byte(15, 120),
        "raw_300.pgm": b"P5 5 3 300\n" + b"".join(struct.pack(">H", v) for v in rng.integers(0, 302, 15)),
        "raw_65535.pgm": b"P5 5 3 65535\n" + b"".join(struct.pack(">H", v) for v in rng.integers(0, 400, 15)),
        "raw.ppm": b"P6\t4 3\n255\n" + byte(36, 256) + b"more",
        "raw_7.ppm": b"P6 4 3 7\n" + byte(36, 8),
        "raw_1000.ppm": b"P6 4 3 1000\n" + b"".join(struct.pack(">H", v) for v in rng.integers(0, 1001, 36)),
    }


RESIZES = (
    ("filters.png", ((20, 15), (13, 7), (80, 60), (97, 31), (1, 1), (40, 11), (7, 30), (40, 30))),
    ("progressive_420.jpg", ((224, 200), (5, 60), (34, 26))),
    ("gray_one.jpg", ((3, 2),)),
    ("sample_2x2.jpg", ((34, 24), (34, 25), (36, 3), (30, 9), (17, 1))),
    ("tall.png", ((8, 17), (15, 32), (15, 33), (15, 34), (40, 40))),
)

SETTINGS = {  # case: settings, files
    "plain": ({"size": 14, "crop_size": 14}, ["filters.png", "progressive_420.jpg", "odd_1x40.jpg", "gray.jpg", "tall.png"]),
    "objects": (
        {"size": {"shortest_edge": 15}, "crop_size": {"height": 11, "width": 18}, "do_resize": True, "resample": 3,
         "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"},
        ["filters.png", "odd_17x33.jpg", "c4_16.png"],
    ),
    "exact": (
        {"size": {"height": 9, "width": 14}, "do_center_crop": False, "image_mean": [0.5, 0.4, 0.3], "image_std": 0.25,
         "feature_extractor_type": "CLIPFeatureExtractor"},
        ["filters.png", "odd_40x1.jpg"],
    ),
    "padded": ({"do_resize": False, "crop_size": 20}, ["cmyk_adobe.jpg", "c0_16.png", "filters.png"]),
    "raw": ({"size": 8, "crop_size": 9, "do_rescale": False, "do_normalize": False}, ["rgb_ids.jpg"]),
    "unscaled": ({"size": 8, "crop_size": 8, "do_rescale": False}, ["ycck.jpg"]),
    "factor": ({"size": 9, "crop_size": 7, "rescale_factor": 0.01, "do_normalize": False}, ["filters.png"]),
}


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT + "/settings")
    files = {**jpegs(), **pngs(), **pnms()}
    images = {}
    with open(OUT + "/manifest.txt", "w") as manifest:
        for name, data in files.items():
            with open(OUT + "/" + name, "wb") as f:
                f.write(data)
            images[name] = Image.open(OUT + "/" + name).convert("RGB")
            manifest.write("%s %d %d %s\n" % (name, *images[name].size, digest(images[name])))
    with open(OUT + "/resize.txt", "w") as lines:
        for name, sizes in RESIZES:
            for size in sizes:
                resized = images[name].resize(size, Image.Resampling.BICUBIC)
                lines.write("%s %d %d %s\n" % (name, *size, digest(resized)))
    with open(OUT + "/settings.txt", "w") as lines:
        for case, (settings, names) in SETTINGS.items():
            os.makedirs(OUT + "/settings/" + case)
            with open(OUT + "/settings/" + case + "/preprocessor_config.json", "w") as f:
                json.dump(settings, f, indent=1)
            keep = {k: v for k, v in settings.items() if not k.endswith("_type") and k != "processor_class"}
            processor = CLIPImageProcessorPil(**keep)
            for name in names:
                values = processor(images=images[name], return_tensors="np")["pixel_values"][0].astype(np.float32)
                values.tofile("%s/settings/%s/%s.f32" % (OUT, case, name))
                lines.write("%s %s %d %d\n" % (case, name, *values.shape[1:]))


if __name__ == "__main__":
    main()

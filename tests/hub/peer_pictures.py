"""Tiny image models of transformers, and what it computes with them. Run by a Python that has torch and transformers.

    python tests/hub/peer_pictures.py make FOLDER [--seed N] [--count K]   fixed and random cases, one folder each
    python tests/hub/peer_pictures.py store                                tests/hub/stored_pictures.json

`make test-peers` runs the first. Weights and pictures are functions of names and shapes: stored logits need none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
HERE = Path(__file__).parent
ROWS = 3

LABELS = {"id2label": {"0": "crane", "1": "dent", "2": "crane", "3": "scratch, deep"}}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "image_size": 12,
       "patch_size": 4, **LABELS}  # fmt: skip
RESNET = {"embedding_size": 4, "hidden_sizes": [16, 24, 40], "depths": [2, 1, 1], **LABELS}
HALF = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}  # fmt: skip
IMAGENET = {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
            "crop_pct": 0.875, "resample": 3, "do_resize": True}  # fmt: skip
GREY = {"do_normalize": True, "do_rescale": False, "image_mean": [90.0], "image_std": [70.0]}

FIXED = {
    "vit": ("vit", VIT, {**HALF, "size": {"height": 12, "width": 12}}),
    "vit-one-layer-grey": (
        "vit",
        {**VIT, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 5, "image_size": [10, 15],
         "num_channels": 1, "layer_norm_eps": 1e-6},
        {**GREY, "size": {"height": 10, "width": 15}},
    ),
    "resnet-basic": (
        "resnet",
        {**RESNET, "layer_type": "basic", "hidden_sizes": [4, 8], "depths": [1, 2]},
        {**IMAGENET, "size": 33},
    ),
    "resnet-bottleneck": ("resnet", RESNET, {**IMAGENET, "size": {"shortest_edge": 40}}),
    "resnet-bottleneck-early-grey": (
        "resnet",
        {**RESNET, "num_channels": 1, "downsample_in_bottleneck": True},
        {**GREY, "size": {"height": 37, "width": 22}},
    ),
}  # fmt: skip


def random_cases(seed, count):
    """Cases of both families with random shapes and options."""
    rng = np.random.default_rng(seed)

    def one_of(*values):
        return values[int(rng.integers(len(values)))]

    for number in range(count):
        heads, patch = one_of(1, 2, 3), one_of(1, 2, 3, 7)
        sides = [patch * one_of(1, 2, 3), patch * one_of(1, 2, 3)]
        vit = {**VIT, "hidden_size": heads * one_of(4, 6), "num_attention_heads": heads, "patch_size": patch,
               "num_hidden_layers": one_of(1, 2, 3), "intermediate_size": one_of(5, 20), "image_size": sides,
               "layer_norm_eps": one_of(1e-12, 1e-6)}  # fmt: skip
        means = {"image_mean": rng.uniform(size=3).tolist(), "image_std": rng.uniform(0.2, 1.0, 3).tolist()}
        preprocessor = {**one_of(HALF, IMAGENET), **means}
        yield (
            f"random-vit-{seed}-{number}",
            ("vit", vit, {**preprocessor, "size": {"height": sides[0], "width": sides[1]}}),
        )
        is_basic, stages = one_of(True, False), one_of(1, 2, 3)
        widths = [one_of(2, 4, 6) for _ in range(stages)]
        resnet = {**RESNET, "layer_type": "basic" if is_basic else "bottleneck", "embedding_size": widths[0],
                  "hidden_sizes": [width * (1 if is_basic else 4) for width in widths],
                  "depths": [one_of(1, 2, 3) for _ in range(stages)],
                  "downsample_in_bottleneck": one_of(True, False)}  # fmt: skip
        size = {"height": one_of(17, 32, 45), "width": one_of(17, 32, 45)}
        yield f"random-resnet-{seed}-{number}", ("resnet", resnet, {**preprocessor, "size": size})


def values_of(key, shape):
    """The values of a tensor. Norms and their statistics are far from those that change nothing."""
    if key.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    noise = np.random.default_rng(zlib.crc32(key.encode())).normal(scale=0.3, size=shape)
    if key.endswith("running_var"):
        return np.exp(noise).astype(np.float32)
    if len(shape) in (2, 4):
        return (4 * noise / np.prod(shape[1:]) ** 0.5).astype(np.float32)
    is_norm = "norm" in key and key.endswith("weight")
    return (noise + (1.0 if is_norm else 0.0)).astype(np.float32)


def pictures(config, preprocessor):
    """uint8 `[rows, height, width, channels]` of the size that the preprocessor makes."""
    size = preprocessor["size"]
    sides = (size, size) if isinstance(size, int) else tuple(size.values()) * (2 // len(size))
    shape = ROWS, *sides, config.get("num_channels", 3)
    return np.random.default_rng(5).integers(0, 256, shape, np.uint8)


def pixels_of(images, preprocessor):
    """float32 `[rows, channels, height, width]`, as transformers' image processors compute it."""
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    mean, std = (np.array(preprocessor[key]) for key in ("image_mean", "image_std"))
    return ((images * factor - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)


def write_model(folder, kind, config, preprocessor):
    """The folder of a model, with weights by the names that its file has. Returns their shapes."""
    import transformers
    from safetensors.numpy import load_file, save_file

    made = transformers.AutoConfig.for_model(kind, **config)
    transformers.AutoModelForImageClassification.from_config(made).save_pretrained(folder)
    shapes = {key: list(value.shape) for key, value in load_file(folder / "model.safetensors").items()}
    save_file({key: values_of(key, shape) for key, shape in shapes.items()}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return shapes


def logits(folder, config, preprocessor):
    """`[rows, classes]`, of `pictures`."""
    import torch
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(torch.from_numpy(pixels_of(pictures(config, preprocessor), preprocessor))).logits.numpy()


def make(folder, cases):
    for name, (kind, config, preprocessor) in cases.items():
        write_model(folder / name, kind, config, preprocessor)
        images = pictures(config, preprocessor)
        np.savez(folder / name / "logits.npz", inputs=images, logits=logits(folder / name, config, preprocessor))
    sys.stdout.write(f"{len(cases)} models in {folder}\n")


def store():
    import torch
    import transformers

    origin = f"transformers {transformers.__version__}, torch {torch.__version__}, CPU, float32"
    stored = {"origin": origin, "command": "python tests/hub/peer_pictures.py store", "cases": {}}
    for name, (kind, config, preprocessor) in FIXED.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            shapes = write_model(folder, kind, config, preprocessor)
            stored["cases"][name] = {
                "config": json.loads((folder / "config.json").read_text()),
                "shapes": shapes,
                "logits": logits(folder, config, preprocessor).tolist(),
            }
    (HERE / "stored_pictures.json").write_text(json.dumps(stored) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "store"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=4)
    args = parser.parse_args()
    if args.what == "store":
        store()
    else:
        make(args.folder, FIXED | dict(random_cases(args.seed, args.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Predictions of `aifx plan` for this machine against what `aifx train` then needs: step time and peak memory.

    python benchmarks/plan.py [--seed N] [--rounds 5] [--steps 12] [--json]

Draws three language models from a seed, which it prints. `aifx bench hardware` measures the machine's rates first, into
a folder of this benchmark, and `aifx plan` predicts each model. Then the models are trained in turn, each round in
processes of their own, which compile as a new run does: compiling adds to a process's memory. A model's step time is
the median over rounds of the median over steps, without the first; its peak memory is the median of the peaks. Prints a
Markdown table. The machine should do nothing else: the load is printed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from side_by_side import AIFX

SENTENCE = "It was the whiteness of the whale that above all things appalled me. "
DRAWN: Mapping[str, tuple[int, ...]] = {
    "model.num_layers": (2, 3, 4, 6, 8),
    "model.embed_dim": (128, 192, 256, 384, 512),
    "data.seq_len": (128, 256, 512),
    "train.global_batch_size": (4, 8, 16),
    "data.vocab_size": (512, 2048, 8192),
}
STYLES = (
    {"model.activation": "swiglu", "model.norm": "rms_norm", "model.positions": "rotary", "model.bias": False},
    {"model.activation": "gelu_tanh", "model.norm": "layer_norm", "model.positions": "learned", "model.bias": True},
)
FIXED = {"train.validate_every": 0, "checkpoint.every": 5, "data.train": ["data.txt"], "model.num_heads": 4}
MAX_TOKENS = 4096
"""Most tokens of a batch, so that a step takes seconds at most."""


def main() -> None:
    arguments = read_arguments()
    models = draw(arguments.seed)
    sys.stderr.write(f"seed {arguments.seed}; load {os.getloadavg()[0]:.1f} at the start\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if not arguments.skip_hardware:
            aifx(root, root, "bench", "hardware", "--quick", "--json")
        projects = [make_project(root, index, model, arguments.steps) for index, model in enumerate(models)]
        plans = [json.loads(aifx(root, project, "plan", "--json"))["plans"][0] for project in projects]
        measured: list[list[dict[str, float]]] = [[] for _ in models]
        for number in range(arguments.rounds):
            for index, project in enumerate(projects):
                measured[index].append(train(root, project, f"round-{number}"))
                sys.stderr.write(f"round {number + 1}, model {index + 1}: {measured[index][-1]}\n")
    rows = [compare(*one) for one in zip(models, plans, measured, strict=True)]
    load = os.getloadavg()[0]
    if arguments.json:
        sys.stdout.write(json.dumps({"seed": arguments.seed, "load": load, "rows": rows}) + "\n")
        return
    sys.stdout.write(
        table(rows) + f"\n\nSeed {arguments.seed}, {arguments.rounds} rounds, load {load:.1f} at the end.\n"
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip-hardware", action="store_true", help="predict without aifx bench hardware")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def draw(seed: int) -> list[dict[str, Any]]:
    """Three models with their batches."""
    chosen, numbers = list[dict[str, Any]](), random.Random(seed)
    while len(chosen) < 3:
        model: dict[str, Any] = {key: numbers.choice(values) for key, values in DRAWN.items()}
        model |= numbers.choice(STYLES)
        if model["data.seq_len"] * model["train.global_batch_size"] <= MAX_TOKENS:
            chosen.append(model)
    return chosen


def make_project(root: Path, index: int, model: Mapping[str, Any], steps: int) -> Path:
    project = root / f"model-{index + 1}"
    project.mkdir()
    words = random.Random(0)
    text = " ".join(words.choice(SENTENCE.split()) for _ in range(200_000))
    (project / "data.txt").write_text(text)
    sections: dict[str, list[str]] = {}
    for key, value in {**FIXED, "train.num_steps": steps, **model}.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    (project / "aifx.toml").write_text("\n".join(f"[{name}]\n" + "\n".join(keys) for name, keys in sections.items()))
    return project


def aifx(root: Path, folder: Path, *arguments: str) -> str:
    caches = tempfile.mkdtemp(prefix="cache-", dir=root)
    environ = {**os.environ, "AIFX_CACHE_DIR": caches, "AIFX_STATE_DIR": str(root / "state")}
    done = subprocess.run([*AIFX, *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"aifx {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def train(root: Path, project: Path, run: str) -> dict[str, float]:
    """Seconds of a step and the peak of memory of one training."""
    end = json.loads(aifx(root, project, "train", "--run", run, "--json"))
    records = [json.loads(line) for line in (project / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    step_s = statistics.median(record["step_time_s"] for record in records[1:])
    return {"step_s": step_s, "memory_bytes": end["peak_memory_bytes"]}


def compare(model: Mapping[str, Any], plan: Mapping[str, Any], measured: list[dict[str, float]]) -> dict[str, Any]:
    layers, width, seq, batch, vocab = (model[key] for key in DRAWN)
    style = "Llama" if model["model.activation"] == "swiglu" else "GPT-2"
    row: dict[str, Any] = {"what": f"{style}, {layers} x {width}, {batch} x {seq} tokens, vocabulary {vocab}"}
    predicted = {"step_s": plan["time"]["step_s"]["value"], "memory_bytes": plan["memory"]["total"]["value"]}
    for name, value in predicted.items():
        median = statistics.median(one[name] for one in measured)
        row[name] = {"predicted": value, "measured": median, "error": value / median - 1}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | step, predicted | measured | error | memory, predicted | measured | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        step, memory = row["step_s"], row["memory_bytes"]
        cells = [
            row["what"],
            *(f"{step[side]:.3g} s" for side in ("predicted", "measured")),
            f"{step['error']:+.0%}",
            *(f"{memory[side] / 1e6:,.0f} MB" for side in ("predicted", "measured")),
            f"{memory['error']:+.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

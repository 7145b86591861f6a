"""A training step of aifx on the CPU against PyTorch eager: the same GPT-2-style model, data and first values.

    python benchmarks/train_vs_pytorch.py --torch-python PATH [--rounds 5] [--steps 10] [--gelu tanh|erf] [--mkl-avx512]

6 layers, 6 heads, width 384, sequence 256, batch 8, float32, vocabulary 65, tied embeddings, AdamW, clipping, all
cores. Ours is the step that `aifx train` compiles, fed as the loop feeds it; theirs is nanoGPT's model with PyTorch's
own scaled_dot_product_attention and its fused AdamW. The GELU is GPT-2's on both sides (tanh), or nanoGPT's (erf).
Each timing is a process of its own, the two alternating; PyTorch may live in another Python (--torch-python). Both
start from one set of weights, so their losses must agree, and are shown.

PyTorch multiplies with Intel's MKL, which gives another maker's processor its AVX2 path, half as fast where there is
AVX-512. --mkl-avx512 compiles a library (with `cc`) that tells MKL the processor is Intel's, so that PyTorch's best
is measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, LAYERS, HEADS, WIDTH, SEQ, BATCH = 65, 6, 6, 384, 256, 8
LEARNING_RATE, BETAS, EPSILON, DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
WARM_UP = 3
MOBY_DICK = Path(__file__).parent.parent / "templates" / "language-model" / "data" / "moby_dick.txt"
GOAL = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON", sys.executable))
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a process")
    parser.add_argument("--gelu", choices=("tanh", "erf"), default="tanh")
    parser.add_argument("--mkl-avx512", action="store_true", help="PyTorch's fastest path on any processor")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = SIDES[arguments.side](arguments.gelu, arguments.weights)
        sys.stdout.write(json.dumps(run(characters(arguments.steps + WARM_UP))) + "\n")
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for side, runs in found.items():
                runs.append(in_process(side, arguments, Path(folder) / "weights.npz"))
                speed = runs[-1]["tokens_per_s"]
                sys.stdout.write(f"{number + 1}  {side:8} {speed:8.0f} tokens/s  ({runs[-1]['versions']})\n")
                sys.stdout.flush()
    report(found)


def in_process(side: str, arguments: argparse.Namespace, weights: Path) -> dict[str, Any]:
    python = arguments.torch_python if side == "pytorch" else sys.executable
    options = ["--side", side, "--weights", str(weights), "--gelu", arguments.gelu, "--steps", str(arguments.steps)]
    from aifx.host_memory import with_huge_pages

    # Both sides get the memory that `aifx train` asks for; PyTorch, which keeps its own blocks, is as fast without.
    environ = with_huge_pages(os.environ) or dict(os.environ)
    if side == "pytorch" and arguments.mkl_avx512:
        environ["LD_PRELOAD"] = str(mkl_library(weights.parent))
    done = subprocess.run([python, __file__, *options], capture_output=True, text=True, env=environ)
    if done.returncode:
        raise SystemExit(f"{side}: {python} ended with {done.returncode}\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def mkl_library(folder: Path) -> Path:
    """A shared library whose answers MKL takes for the processor's maker."""
    source, library = folder / "intel.c", folder / "intel.so"
    if not library.exists():
        functions = ("mkl_serv_intel_cpu_true", "mkl_serv_intel_cpu")
        source.write_text("".join(f"int {function}(void) {{ return 1; }}\n" for function in functions))
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    speeds = {side: [run["tokens_per_s"] for run in runs] for side, runs in found.items()}
    pairs = [ours / theirs for ours, theirs in zip(speeds["aifx"], speeds["pytorch"], strict=True)]
    ratio = statistics.median(speeds["aifx"]) / statistics.median(speeds["pytorch"])
    for side, runs in found.items():
        cpu = statistics.median(run["cpu_s_per_step"] for run in runs)
        losses = "  ".join(f"{loss:.5f}" for loss in runs[0]["losses"][:5])
        speed = statistics.median(speeds[side])
        sys.stdout.write(f"{side:8} {speed:8.0f} tokens/s (median), {cpu:.3f} s of CPU a step, losses {losses}\n")
    apart = max(abs(a - b) for a, b in zip(*(runs[0]["losses"] for runs in found.values()), strict=True))
    sys.stdout.write(f"losses agree to {apart:.1e}\n")
    sys.stdout.write(f"ratio    {ratio:.3f}   (pairs {min(pairs):.3f} to {max(pairs):.3f}; goal {GOAL})\n")


def characters(steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets `[batch, seq]` int32 of each step: pieces of Moby-Dick over its 64 commonest characters."""
    text = MOBY_DICK.read_text(encoding="utf-8")
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    values, counts = np.unique(codes, return_counts=True)
    common = np.sort(values[np.argsort(-counts, kind="stable")[: VOCAB - 1]])
    places = np.minimum(np.searchsorted(common, codes), len(common) - 1)
    tokens = np.where(common[places] == codes, places, VOCAB - 1).astype(np.int32)
    starts = np.random.RandomState(0).randint(0, len(tokens) - SEQ, (steps, BATCH))
    windows = tokens[starts[..., None] + np.arange(SEQ + 1)]
    return [(w[:, :-1].copy(), w[:, 1:].copy()) for w in windows]


def timed(step: Any, steps: list[Any], versions: str) -> dict[str, Any]:
    """Runs every step; times those after the warm-up. `step` returns a loss that `float` waits for."""
    losses = [step(s) for s in steps[:WARM_UP]]
    losses = [float(loss) for loss in losses]
    started, cpu = time.perf_counter(), time.process_time()
    timed_losses = [step(s) for s in steps[WARM_UP:]]
    losses += [float(loss) for loss in timed_losses]
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    count = len(timed_losses)
    return {
        "tokens_per_s": count * BATCH * SEQ / seconds,
        "cpu_s_per_step": cpu / count,
        "losses": losses,
        "versions": versions,
    }


def aifx_side(gelu: str, weights: Path) -> Any:
    """The compiled step of `aifx train`; writes its first values to `weights` if they are not there."""
    import jax

    from aifx.config import load_config
    from aifx.models.decoder import Decoder
    from aifx.parallel import make_mesh, place_batch
    from aifx.project import Project
    from aifx.tasks.language import LanguageTask
    from aifx.train.beginning import initialize
    from aifx.train.state import abstract_state
    from aifx.train.step import lower_step, make_recipe

    class Characters(LanguageTask):
        """The language task with batches from here."""

        def __init__(self, model: Decoder, config: Any) -> None:
            self.model, self.config = model, config

    def run(steps: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        settings = {
            "model.preset": "gpt2-10m",
            "model.activation": {"tanh": "gelu_tanh", "erf": "gelu"}[gelu],
            "train.global_batch_size": BATCH,
            "data.seq_len": SEQ,
            "optimizer.learning_rate": LEARNING_RATE,
            "optimizer.weight_decay": DECAY,
            "schedule.kind": "constant",
            "schedule.warmup_steps": 0,
        }
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "aifx.toml").touch()
            config = load_config(Project(Path(folder)), [f"{k}={v}" for k, v in settings.items()], {})
        mesh = make_mesh()
        task = Characters(Decoder(config.model, vocab_size=VOCAB, max_seq_len=SEQ), config)
        recipe = make_recipe(config, task, mesh)
        abstract = abstract_state(recipe.specs, recipe.optimizer, mesh)
        state = initialize(recipe, abstract)
        if not weights.exists():
            named = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in _leaves(state.params)}
            np.savez(weights, **{name: np.asarray(x) for name, x in named.items()})
        ones = np.ones((BATCH, SEQ), np.float32)
        batches = [{"inputs": x, "targets": y, "weights": ones} for x, y in steps]
        compiled = lower_step(recipe, abstract, batches[0]).compile()

        def step(batch: dict[str, np.ndarray]) -> jax.Array:
            nonlocal state
            state, numbers = compiled(state, place_batch(batch, mesh))
            return numbers[0]

        return timed(step, batches, f"jax {jax.__version__}, Python {sys.version.split()[0]}")

    def _leaves(tree: Any) -> Any:
        return jax.tree_util.tree_leaves_with_path(tree)

    return run


def pytorch_side(gelu: str, weights: Path) -> Any:
    """nanoGPT's model, from the same first values."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pieces = self.qkv(self.attention_norm(x)).split(WIDTH, dim=2)
            q, k, v = (y.view(BATCH, SEQ, HEADS, WIDTH // HEADS).transpose(1, 2) for y in pieces)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.output(y.transpose(1, 2).contiguous().view(BATCH, SEQ, WIDTH))
            hidden = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh" if gelu == "tanh" else "none")
            return x + self.down(hidden)

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(VOCAB, WIDTH), nn.Embedding(SEQ, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.final_norm = nn.LayerNorm(WIDTH)

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.token(inputs) + self.position(torch.arange(SEQ))
            for block in self.blocks:
                x = block(x)
            logits = self.final_norm(x) @ self.token.weight.T
            return F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))

    def run(steps: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        model = GPT()
        load_weights(model, dict(np.load(weights)), torch)
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)
        tensors = [(torch.from_numpy(x).long(), torch.from_numpy(y).long()) for x, y in steps]

        def step(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = model(*batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            return loss.detach()

        return timed(step, tensors, f"torch {torch.__version__}, {torch.get_num_threads()} threads")

    return run


def load_weights(model: Any, arrays: dict[str, np.ndarray], torch: Any) -> None:
    """aifx's weights, by its names, into PyTorch's model."""

    def put(parameter: Any, array: np.ndarray) -> None:
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(parameter.shape))

    put(model.token.weight, arrays["embedding/token"])
    put(model.position.weight, arrays["embedding/position"])
    for norm, name in [(model.final_norm, "final_norm")] + [
        (getattr(block, part), f"layers/{i}/{part}")
        for i, block in enumerate(model.blocks)
        for part in ("attention_norm", "mlp_norm")
    ]:
        put(norm.weight, arrays[f"{name}/scale"])
        put(norm.bias, arrays[f"{name}/bias"])
    for i, block in enumerate(model.blocks):
        attention, mlp = f"layers/{i}/attention", f"layers/{i}/mlp"
        names = [f"{attention}/{part}" for part in ("query", "key", "value")]
        put(block.qkv.weight, np.concatenate([arrays[n].reshape(WIDTH, WIDTH).T for n in names]))
        put(block.qkv.bias, np.concatenate([arrays[f"{n}_bias"].reshape(-1) for n in names]))
        put(block.output.weight, arrays[f"{attention}/output"].reshape(WIDTH, WIDTH).T)
        put(block.output.bias, arrays[f"{attention}/output_bias"])
        for part in ("up", "down"):
            put(getattr(block, part).weight, arrays[f"{mlp}/{part}"].T)
            put(getattr(block, part).bias, arrays[f"{mlp}/{part}_bias"])


SIDES = {"aifx": aifx_side, "pytorch": pytorch_side}

if __name__ == "__main__":
    main()

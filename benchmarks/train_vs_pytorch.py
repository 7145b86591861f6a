"""A training step of aifx on the CPU against PyTorch, eager and compiled: one GPT-2-style model, data and first values.

    python benchmarks/train_vs_pytorch.py --torch-python PATH [--rounds 5] [--steps 10] [--model gpt2-10m,gpt2-124m]
                                          [--precision float32,bfloat16] [--gelu tanh|erf] [--mkl-avx512]

gpt2-10m: 6 layers, 6 heads, width 384, 8 x 256 tokens, vocabulary 65; gpt2-124m: 12, 12, 768, 1 x 1,024, 50,257. Tied
embeddings, AdamW, clipping, all cores. Ours is the step that `aifx train` compiles, fed as the loop feeds it; theirs is
nanoGPT's model with PyTorch's own scaled_dot_product_attention and its fused AdamW, eager and through
`torch.compile`; in bfloat16 under `torch.autocast`. The GELU is GPT-2's on all sides (tanh), or nanoGPT's (erf).
PyTorch may live in another Python (--torch-python, or $TORCH_PYTHON). All start from one set of weights, so their
losses must agree. Compilation is not within: the first steps are not timed. A row names the processor's maker and what
multiplies matrices in it, since the ratio depends on that more than on anything else.

PyTorch multiplies float32 with Intel's MKL, which gives another maker's processor its AVX2 path, half as fast where
there is AVX-512. --mkl-avx512 compiles a library (with `cc`) with which MKL takes the processor for Intel's, so
that PyTorch's best is measured too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from side_by_side import Runs, Side, Told, Work

LEARNING_RATE, BETAS, EPSILON, DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
WARM_UP = 3
MOBY_DICK = Path(__file__).parent.parent / "templates" / "language-model" / "data" / "moby_dick.txt"
CHARACTERS = 65
MKL = "with MKL's AVX-512 path"
LOSSES_AGREE = {"float32": (13, 1e-3), "bfloat16": (7, 1e-2)}
"""For so many steps, by so much. Without a warm-up the rounding of bfloat16 grows soon: at the twelfth step PyTorch's
loss was once 3.67, where float32 has 2.88 and aifx 2.92."""


@dataclass(frozen=True)
class Model:
    """A GPT-2 and the batch that it is trained on."""

    words: str
    layers: int
    heads: int
    width: int
    vocab: int
    batch: int
    seq: int


MODELS = {
    "gpt2-10m": Model("GPT-2 of 10M", 6, 6, 384, CHARACTERS, 8, 256),
    "gpt2-124m": Model("GPT-2 of 124M", 12, 12, 768, 50257, 1, 1024),
}


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=5, quick_rounds=1)
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON", sys.executable))
    parser.add_argument("--steps", type=int, help="timed steps of a process (10; quick: 4)")
    parser.add_argument("--model", type=partial(some_of, MODELS), default=["gpt2-10m"], help=", ".join(MODELS))
    parser.add_argument("--precision", type=partial(some_of, LOSSES_AGREE), default=list(LOSSES_AGREE))
    parser.add_argument("--gelu", choices=("tanh", "erf"), default="tanh")
    parser.add_argument("--mkl-avx512", action="store_true", help="also measure PyTorch's fastest path in float32")
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (4 if arguments.quick else 10)
    if arguments.side:
        (name,), (precision,) = arguments.model, arguments.precision
        batches = characters(MODELS[name], arguments.steps + WARM_UP)
        job = Job(name, precision, arguments.gelu, arguments.weights)
        side_by_side.tell(lambda: SIDES[arguments.side](job, batches), peers=("torch",))
        return
    every, rows, notes = [], [], []
    for name, precision in product(arguments.model, arguments.precision):
        with tempfile.TemporaryDirectory() as folder:
            asked = sides(arguments, name, precision, Path(folder))
            runs = side_by_side.alternate(list(asked), side_by_side.rounds_of(arguments))
        every.append(runs)
        rows += rows_of(runs, MODELS[name], precision)
        if runs.peers:
            apart = check_losses(runs, *LOSSES_AGREE[precision])
            notes.append(f"{name}, {precision}: the sides' losses agree to {apart:.0e} over the first steps.")
    side_by_side.report(side_by_side.document("training", rows, arguments, *every, notes=notes), arguments)


def some_of(known: Iterable[str], text: str) -> list[str]:
    """Names with commas between them."""
    names = text.split(",")
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there is {', '.join(known)}")
    return names


@dataclass(frozen=True)
class Job:
    """The work of a side's process."""

    name: str
    precision: str
    gelu: str
    weights: Path

    @property
    def model(self) -> Model:
        return MODELS[self.name]


def rows_of(runs: Runs, model: Model, precision: str) -> list[dict[str, Any]]:
    what = f"{model.words}, {model.batch} x {model.seq}, {precision}, {processor()}"
    return [
        side_by_side.versus(runs, Work("step", what, goal_of(peer, precision), model.batch * model.seq, "tokens"), peer)
        for peer in runs.peers
    ]


def goal_of(peer: str, precision: str) -> float:
    """On a processor with matrix units, and against PyTorch at its best, par within the noise of a machine."""
    from aifx.machine.cpu import matrix_units

    return 0.95 if MKL in peer or precision == "bfloat16" or matrix_units() == "AMX" else 1.0


def processor() -> str:
    from aifx.machine.cpu import cpu_vendor, matrix_units

    return f"{cpu_vendor()} ({matrix_units()})"


def sides(arguments: argparse.Namespace, name: str, precision: str, folder: Path) -> Iterator[Side]:
    """Ours first, which writes the weights that the others read."""
    options = ["--weights", str(folder / "weights.npz"), "--gelu", arguments.gelu, "--steps", str(arguments.steps)]
    options += ["--model", name, "--precision", precision]
    environ = side_by_side.training_environment()
    yield Side("aifx", side_by_side.process(side_by_side.own(__file__, "aifx", *options), environ))
    # What the first process of a side compiles, the others find.
    environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    paths = {"": environ}
    if arguments.mkl_avx512 and precision == "float32":
        paths[f" {MKL}"] = {**environ, "LD_PRELOAD": str(mkl_library(folder))}
    for words, given in paths.items():
        for side in ("PyTorch eager", "torch.compile"):
            command = [arguments.torch_python, *side_by_side.own(__file__, side, *options)[1:]]
            yield Side(side + words, side_by_side.process(command, given))


def mkl_library(folder: Path) -> Path:
    """A shared library whose answers MKL takes for the processor's maker."""
    source, library = folder / "intel.c", folder / "intel.so"
    functions = ("mkl_serv_intel_cpu_true", "mkl_serv_intel_cpu")
    source.write_text("".join(f"int {function}(void) {{ return 1; }}\n" for function in functions))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def check_losses(runs: Runs, steps: int, limit: float) -> float:
    """The distance of the sides' losses. Raises SystemExit if it is so large that they did different work."""
    losses = np.array([told[0]["losses"][:steps] for told in runs.told.values()])
    apart = float(np.ptp(losses, axis=0).max())
    if not apart <= limit:
        raise SystemExit(f"the sides' losses differ by {apart:.1e}: they do not do the same work")
    return apart


def characters(model: Model, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets `[batch, seq]` int32 of each step: pieces of Moby-Dick over its 64 commonest characters."""
    text = MOBY_DICK.read_text(encoding="utf-8")
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    values, counts = np.unique(codes, return_counts=True)
    common = np.sort(values[np.argsort(-counts, kind="stable")[: CHARACTERS - 1]])
    places = np.minimum(np.searchsorted(common, codes), len(common) - 1)
    tokens = np.where(common[places] == codes, places, CHARACTERS - 1).astype(np.int32)
    starts = np.random.RandomState(0).randint(0, len(tokens) - model.seq, (steps, model.batch))
    windows = tokens[starts[..., None] + np.arange(model.seq + 1)]
    return [(w[:, :-1].copy(), w[:, 1:].copy()) for w in windows]


def timed(step: Any, steps: list[Any], versions: dict[str, str]) -> Told:
    """Runs every step; times those after the warm-up. `step` returns a loss that `float` waits for."""
    losses = [step(s) for s in steps[:WARM_UP]]
    losses = [float(loss) for loss in losses]
    started, cpu = time.perf_counter(), time.process_time()
    timed_losses = [step(s) for s in steps[WARM_UP:]]
    losses += [float(loss) for loss in timed_losses]
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    count = len(timed_losses)
    return {
        "seconds": {"step": [seconds / count]},
        "cpu_s_per_step": cpu / count,
        "losses": losses,
        "versions": versions,
    }


def aifx_side(job: Job, steps: list[tuple[np.ndarray, np.ndarray]]) -> Told:
    """The compiled step of `aifx train`; writes its first values to `job.weights` if they are not there."""
    import jax

    from aifx.core.project import Project
    from aifx.kinds import load_config
    from aifx.parallel.layout import local_layout
    from aifx.programs.build import build
    from aifx.tasks.registry import describe_task

    model = job.model
    settings = {
        "model.preset": job.name,
        "model.activation": {"tanh": "gelu_tanh", "erf": "gelu"}[job.gelu],
        "train.global_batch_size": model.batch,
        "train.precision": job.precision,
        "model.vocab_size": model.vocab,
        "data.vocab_size": model.vocab,
        "data.seq_len": model.seq,
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.weight_decay": DECAY,
        "schedule.kind": "constant",
        "schedule.warmup_steps": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "aifx.toml").touch()
        project = Project(Path(folder))
        config = load_config(project, [f"{k}={v}" for k, v in settings.items()], {})
        programs = build(config, describe_task(config, project), local_layout())
    state, frozen = programs.init()
    if not job.weights.exists():
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}
        np.savez(job.weights, **named)
    ones = np.ones((model.batch, model.seq), np.float32)
    batches = [{"inputs": x, "targets": y, "weights": ones} for x, y in steps]
    compiled = programs.train_step.lower().compile()

    def step(batch: dict[str, np.ndarray]) -> jax.Array:
        nonlocal state
        state, numbers = compiled(state, frozen, programs.place(batch))
        return numbers[0]

    return timed(step, batches, {"jax": jax.__version__})


def pytorch_side(job: Job, steps: list[tuple[np.ndarray, np.ndarray]], *, compiled: bool = False) -> Told:
    """nanoGPT's model, from the same first values."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = job.model
    width, head_shape = model.width, (model.batch, model.seq, model.heads, model.width // model.heads)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pieces = self.qkv(self.attention_norm(x)).split(width, dim=2)
            q, k, v = (y.view(*head_shape).transpose(1, 2) for y in pieces)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.output(y.transpose(1, 2).contiguous().view(x.shape))
            hidden = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh" if job.gelu == "tanh" else "none")
            return x + self.down(hidden)

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(model.vocab, width), nn.Embedding(model.seq, width)
            self.blocks = nn.ModuleList(Block() for _ in range(model.layers))
            self.final_norm = nn.LayerNorm(width)

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.token(inputs) + self.position(torch.arange(model.seq))
            for block in self.blocks:
                x = block(x)
            logits = self.final_norm(x) @ self.token.weight.T
            return F.cross_entropy(logits.view(-1, model.vocab), targets.view(-1))

    network = GPT()
    load_weights(network, dict(np.load(job.weights)), torch)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)
    tensors = [(torch.from_numpy(x).long(), torch.from_numpy(y).long()) for x, y in steps]
    forward = torch.compile(network) if compiled else network

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bfloat16"):
            loss = forward(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        return loss.detach()

    return timed(step, tensors, {"torch": torch.__version__})


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
    width = model.token.weight.shape[1]
    for i, block in enumerate(model.blocks):
        attention, mlp = f"layers/{i}/attention", f"layers/{i}/mlp"
        names = [f"{attention}/{part}" for part in ("query", "key", "value")]
        put(block.qkv.weight, np.concatenate([arrays[n].reshape(width, width).T for n in names]))
        put(block.qkv.bias, np.concatenate([arrays[f"{n}_bias"].reshape(-1) for n in names]))
        put(block.output.weight, arrays[f"{attention}/output"].reshape(width, width).T)
        put(block.output.bias, arrays[f"{attention}/output_bias"])
        for part in ("up", "down"):
            put(getattr(block, part).weight, arrays[f"{mlp}/{part}"].T)
            put(getattr(block, part).bias, arrays[f"{mlp}/{part}_bias"])


SIDES = {
    "aifx": aifx_side,
    "PyTorch eager": pytorch_side,
    "torch.compile": partial(pytorch_side, compiled=True),
}

if __name__ == "__main__":
    main()

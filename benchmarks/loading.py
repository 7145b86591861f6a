"""A text corpus as batches, against grain alone over the same token store.

    python benchmarks/loading.py [--rounds 5] [--batches 1000]

Both read the same windows of one memory-mapped array in the same order, which the first batches of each process are
held to, byte for byte. Ours is the source and the read-ahead that the loop has. The other is what one writes with
grain: a random-access source of windows, shuffled, put together by grain's `batch`, and read ahead with grain's own
options (16 threads) and with ours (one thread, two batches). Timed from the first batch on, so that no start of a
thread is within.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from side_by_side import Side, Told, Work

MOBY_DICK = Path(__file__).parent.parent / "templates" / "language-model" / "data" / "moby_dick.txt"
COPIES, SEQ, ROWS, SEED, VOCAB = 16, 256, 16, 0, 1024
COMPARED, PASSES = 20, 3
PEERS = {"grain alone": {}, "grain alone, one thread": {"num_threads": 1, "prefetch_buffer_size": 2}}


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=5, quick_rounds=2)
    parser.add_argument("--batches", type=int, default=1000, help=f"of {ROWS} x {SEQ} tokens, in a pass")
    arguments = parser.parse_args()
    if arguments.side:
        side_by_side.tell(lambda: measure(arguments.side, Path(arguments.folder), arguments.batches))
        return
    with tempfile.TemporaryDirectory() as folder:
        for copy in range(COPIES):
            (Path(folder) / f"{copy:04}.txt").write_bytes(MOBY_DICK.read_bytes())
        environ = {**side_by_side.training_environment(), "AIFX_CACHE_DIR": str(Path(folder) / "cache")}
        options = ("--folder", folder, "--batches", str(arguments.batches))
        commands = {name: side_by_side.own(__file__, name, *options) for name in ("aifx", *PEERS)}
        sides = [Side(name, side_by_side.process(command, environ)) for name, command in commands.items()]
        runs = side_by_side.alternate(sides, side_by_side.rounds_of(arguments))
    digests = {told["digest"] for side in runs.told.values() for told in side}
    if len(digests) != 1:
        raise SystemExit("the sides did not read the same batches")
    work = Work("batch", f"batches of {ROWS} x {SEQ} tokens", amount=ROWS * SEQ, unit="tokens")
    rows = [side_by_side.versus(runs, work, peer) for peer in runs.peers]
    notes = ["The sides' batches are the same, byte for byte."]
    side_by_side.report(side_by_side.document("loading", rows, arguments, runs, notes=notes), arguments)


@dataclass(frozen=True)
class Windows:
    """The windows of a ring of tokens from a place on, as grain's random-access sources are written.

    Attributes:
        is_cut: the last document goes on in another split, so that the ring's first token does not follow its last.
    """

    tokens: np.ndarray
    ring: int
    phase: int
    is_cut: bool

    def __len__(self) -> int:
        return self.ring // SEQ

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        start = (self.phase + int(index) * SEQ) % self.ring
        stop = start + SEQ + 1
        window = self.tokens[start : min(stop, self.ring)]
        if stop > self.ring:
            window = np.concatenate([window, self.tokens[: stop - self.ring]])
        window, weights = window.astype(np.int32), np.ones(SEQ, np.float32)
        if self.is_cut and stop > self.ring:
            weights[self.ring - start - 1] = 0
        return {"inputs": window[:-1], "targets": window[1:], "weights": weights}


def measure(side: str, folder: Path, count: int) -> Told:
    from aifx.core.project import Project
    from aifx.data.sections import TextSection
    from aifx.data.text import TextFormat

    section = TextSection(train=("*.txt",), seq_len=SEQ, vocab_size=VOCAB)
    _, text = TextFormat.open(section, Project(folder), folder / "assets")
    compared = hashlib.sha256()
    for batch in itertools.islice(batches_of(side, text), COMPARED):
        compared.update(b"".join(batch[name].tobytes() for name in sorted(batch)))
    seconds = [pass_s(batches_of(side, text), count) for _ in range(PASSES)]
    versions = side_by_side.installed("grain", "numpy")
    return {"seconds": {"batch": seconds}, "digest": compared.hexdigest(), "versions": versions}


def pass_s(batches: Iterator[Any], count: int) -> float:
    """Seconds a batch, from the first on."""
    next(batches)
    started = time.perf_counter()
    taken = sum(1 for _ in itertools.islice(batches, count))
    seconds = time.perf_counter() - started
    if taken != count:
        raise SystemExit(f"{taken} batches are an epoch, and --batches {count}")
    return seconds / count


def batches_of(side: str, text: Any) -> Iterator[dict[str, np.ndarray]]:
    return aifx_batches(text) if side == "aifx" else grain_batches(text, PEERS[side])


def aifx_batches(text: Any) -> Iterator[dict[str, np.ndarray]]:
    from aifx.data.order import prefetch

    source = text.source("train", batch_size=ROWS, seed=SEED)
    return prefetch(source, range(10**9), slice(0, ROWS))


def grain_batches(text: Any, options: dict[str, int]) -> Iterator[dict[str, np.ndarray]]:
    import grain

    from aifx.core.digests import hash32

    split = text.store.splits["train"]
    ring = len(split.tokens) - bool(split.closed)
    windows = Windows(split.tokens.values, ring, hash32("phase", SEED, 0) * ring >> 32, not split.closed)
    dataset = grain.MapDataset.source(windows).shuffle(seed=hash32("shuffle", SEED, 0))
    return iter(dataset.batch(ROWS).to_iter_dataset(grain.ReadOptions(**options)))


if __name__ == "__main__":
    main()

"""Times of exact searches by `aifx data search` and by faiss, and the speed of its n-grams.

    python benchmarks/search.py [--rows 100000] [--dims 256] [--queries 1000] [--rounds 5]

Vectors have random directions, the hardest case. Both sides find the same 10 rows, which is checked. Times are medians
of the rounds: of the clock, and of the processor, which does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aifx.search.embedders import HashedNgrams, normalized
from aifx.search.kinds import make_index, search_index

BOOK = Path(__file__).parents[1] / "templates/language-model/data"
TOP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 100_000), ("dims", 256), ("queries", 1000), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    source = np.random.default_rng(0)
    vectors = normalized(source.standard_normal((given.rows, given.dims), np.float32))
    queries = normalized(source.standard_normal((given.queries, given.dims), np.float32))
    index = make_index("exact", vectors, np.arange(given.rows), len(os.sched_getaffinity(0)), 1.0).index
    ours, theirs = search_index(index, queries, TOP)[1], index.search(queries, TOP)[1]
    same = float((np.sort(ours, 1) == np.sort(theirs, 1)).mean())
    print(f"{given.rows:,} x {given.dims}, {given.queries:,} queries at a time, top {TOP}: {same:.2%} the same rows")
    sides = {"aifx": lambda: search_index(index, queries, TOP), "faiss": lambda: index.search(queries, TOP)}
    for name, times in alternate(sides, given.rounds).items():
        clock, processor = (1e3 * statistics.median(column) / given.queries for column in zip(*times, strict=True))
        print(f"{name}: {clock:.2f} ms per query, {processor:.2f} ms of the processor")
    texts = pa.array([part for path in sorted(BOOK.glob("*.txt")) for part in path.read_text().split("\n\n")] * 4)
    size = texts.nbytes / 1e6
    for dims in (given.dims, 512):
        times = alternate({"": partial(HashedNgrams(dims).embed, texts)}, given.rounds)[""]
        seconds = statistics.median(processor for _, processor in times)
        print(f"n-grams, {dims} numbers: {size / seconds:.1f} MB and {len(texts) / seconds:,.0f} texts per CPU-second")


def alternate(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the clock and of the processor of each side in each round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            began, processor = time.perf_counter(), time.process_time()
            work()
            found[name].append((time.perf_counter() - began, time.process_time() - processor))
    return found


if __name__ == "__main__":
    main()

"""Work of the steps of `aifx data` per second of processor time, beside datasketch, datatrove and DuckDB alone.

    python benchmarks/data.py [--rounds 5] [--megabytes 100] [--peers-python PATH] [--parts add,clean,exact,near,…]

The text is drawn word by word from Moby-Dick, so that documents share words and phrases, with planted copies: 5 % of
the documents stand there twice, 5 % again with a few words replaced. All sides get the same text. Seconds are those of
the processor, of all processes of a command together, so that they do not depend on how many cores there are. Those of
the same command for a single row, about a second, are subtracted.

datasketch and datatrove are peers for near-duplicates (shingles of 5 words, Jaccard 0.8); DuckDB alone is one for
exact ones. datatrove's Python is --peers-python, or $PEERS_PYTHON.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from side_by_side import AIFX, Side, Told, Work

BOOK = Path(__file__).parents[1] / "templates/language-model/data"
WORDS_PER_DOCUMENT = (60, 900)
FORMATS = ("txt", "jsonl", "csv", "parquet")
GOALS = {"add .txt": 250, "add .parquet": 250, "add .jsonl": 60, "add .csv": 60, "clean": 1.4, "exact": 180, "near": 20,
         "decontaminate": 18, "one pass": 7}  # fmt: skip
"""MB per second of processor time."""
STEPS = "{ clean = {} }, { dedupe = {} }, { pii = { mask = true } }, { split = { validation = 0.0, test = 0.0 } }"
"""Of the recipe of the part `one pass`, after `add`."""

PARTS = ("add", "clean", "exact", "near", "decontaminate", "one pass")


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=5, quick_rounds=1)
    parser.add_argument("--megabytes", type=int, default=100, help="of text (100)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"what to measure ({','.join(PARTS)})")
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON"), help="a Python that has datatrove")
    arguments = parser.parse_args()
    if arguments.side:
        folder = Path(arguments.folder)
        side_by_side.tell(lambda: PEERS[arguments.side](folder), peers=("datasketch", "datatrove"))
        return
    parts = arguments.parts.split(",")
    with tempfile.TemporaryDirectory(prefix="aifx-data-") as name:
        folder = Path(name)
        size = write_text(folder, arguments.megabytes)
        rows: list[dict[str, Any]] = []
        runs = []
        for part in parts:
            found = measured(part, folder, size, arguments)
            runs.append(found)
            rows += rows_of(part, size, found)
        document = side_by_side.document(
            "data", rows, arguments, *runs, versions=side_by_side.installed("duckdb", "pyarrow", "rensa", "datasketch"),
            notes=[f"{size:,.0f} MB of text. Seconds are of the processor, without those of the command for one row."],
        )  # fmt: skip
        side_by_side.report(document, arguments)


def measured(part: str, folder: Path, size: float, arguments: Any) -> side_by_side.Runs:
    sides = [Side("aifx", partial(OURS[part], folder))]
    if part == "exact":
        sides.append(
            Side("DuckDB", side_by_side.process(side_by_side.own(__file__, "DuckDB", "--folder", str(folder))))
        )
    if part == "near":
        own = side_by_side.own(__file__, "datasketch", "--folder", str(folder))
        sides.append(Side("datasketch", side_by_side.process(own)))
        if arguments.peers_python:
            there = [arguments.peers_python, __file__, "--side", "datatrove", "--folder", str(folder)]
            sides.append(Side("datatrove", side_by_side.process(there)))
    return side_by_side.alternate(sides, side_by_side.rounds_of(arguments), label=f"{part}: ")


def rows_of(part: str, size: float, runs: side_by_side.Runs) -> list[dict[str, Any]]:
    """The rates of ours, each against the rate that is asked for; and ours against each peer."""
    rows = []
    for thing in runs.told["aifx"][0]["seconds"]:
        work = Work(thing, thing, 1.0, size, "MB")
        ours = runs.seconds("aifx", thing)
        goal = [[size / GOALS[thing]] for _ in ours]
        rows.append(side_by_side.row(work, ours, goal, "the goal"))
        for peer in runs.peers:
            against = Work(thing, thing, 4.0 if peer == "datasketch" else None, size, "MB")
            rows.append(side_by_side.versus(runs, against, peer))
    return rows


def write_text(folder: Path, megabytes: int) -> float:
    """Write the same documents in each format, and one row in each. Returns the MB of their text."""
    texts = documents(megabytes)
    write_formats(folder, "text", texts)
    write_formats(folder, "row", texts[:1])
    fragments = [" ".join(text.split()[20:60]) for text in texts[::97]]
    (folder / "test.txt").write_text("\n".join(fragments))
    return sum(len(text.encode()) for text in texts) / 1e6


def write_formats(folder: Path, name: str, texts: list[str]) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = pa.table({"text": texts})
    parquet.write_table(table, folder / f"{name}.parquet", compression="snappy")
    csv.write_csv(table, folder / f"{name}.csv")
    with (folder / f"{name}.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    steps = f'{{ add = {{ sources = ["{folder}/{name}.parquet"], license = "unknown" }} }}, {STEPS}'
    (folder / f"{name}.toml").write_text(f"[corpus]\nsteps = [{steps}]\n")
    (folder / name).mkdir()
    per_file = max(1, len(texts) // 40)
    for index in range(0, len(texts), per_file):
        (folder / name / f"{index:06d}.txt").write_text("\n\n".join(texts[index : index + per_file]))


def documents(megabytes: int, seed: int = 0) -> list[str]:
    """Each word follows the one before it as somewhere in the book."""
    source = np.random.default_rng(seed)
    words = np.array(" ".join(path.read_text() for path in sorted(BOOK.glob("*.txt"))).split())
    _, ids = np.unique(words, return_inverse=True)
    order = np.argsort(ids, kind="stable")
    starts = np.searchsorted(ids[order], np.arange(ids.max() + 1))
    counts = np.bincount(ids)
    count = int(megabytes * 1e6 / (5.6 * sum(WORDS_PER_DOCUMENT) / 2) / 1.1)
    lengths = source.integers(*WORDS_PER_DOCUMENT, count)
    place = source.integers(0, len(words) - 1, count)
    columns = []
    for _ in range(lengths.max()):
        columns.append(place)
        word = ids[place]
        place = (order[starts[word] + (source.random(count) * counts[word]).astype(np.int64)] + 1) % len(words)
    drawn = np.stack(columns, 1)
    split = [words[row[:length]].tolist() for row, length in zip(drawn, lengths, strict=True)]
    twice, edited = source.choice(count, (2, count // 20), replace=False)
    copies = [list(split[index]) for index in (*twice, *edited)]
    for copy in copies[len(twice) :]:
        for index in source.integers(0, len(copy), max(1, len(copy) // 100)):
            copy[index] = "changed"
    everything = [" ".join(found) for found in (*split, *copies)]
    return [everything[index] for index in source.permutation(len(everything))]


def command(folder: Path, *arguments: str) -> float:
    """Seconds of the processor that `aifx data` takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*AIFX, "data", *arguments, "--root", str(folder / "datasets")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"aifx data {' '.join(arguments)}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beyond_one_row(folder: Path, prepare: Callable[[Path, str], None], *arguments: str) -> float:
    """Seconds of the processor that a command takes for the text beyond what it takes for one row."""
    seconds = []
    for text in ("text", "row"):
        shutil.rmtree(folder / "datasets", ignore_errors=True)
        prepare(folder, text)
        given = (argument.format(folder=folder, text=text) for argument in arguments)
        seconds.append(command(folder, *given))
    return max(seconds[0] - seconds[1], 1e-3)


def add(folder: Path) -> Told:
    def seconds(name: str) -> float:
        source = "{folder}/{text}" + ("" if name == "txt" else f".{name}")
        return beyond_one_row(folder, lambda *_: None, "add", "corpus", source, "--license", "unknown")

    return {"seconds": {f"add .{name}": [seconds(name)] for name in FORMATS}}


def added(folder: Path, text: str) -> None:
    command(folder, "add", "corpus", str(folder / f"{text}.parquet"), "--license", "unknown")


def step(thing: str, *arguments: str) -> Callable[[Path], Told]:
    return lambda folder: {"seconds": {thing: [beyond_one_row(folder, added, *arguments)]}}


OURS: dict[str, Callable[[Path], Told]] = {
    "add": add,
    "clean": step("clean", "clean", "corpus"),
    "exact": step("exact", "dedupe", "corpus", "--memory", "512MB"),
    "near": step("near", "dedupe", "corpus", "--near", "0.8"),
    "one pass": step("one pass", "make", "--recipe", "{folder}/{text}.toml"),
    "decontaminate": step("decontaminate", "decontaminate", "corpus", "--against", "{folder}/test.txt", "--drop"),
}


def timed(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def duckdb_alone(folder: Path) -> Told:
    import duckdb

    def distinct() -> None:
        numbered = f"select row_number() over () as row, text from '{folder}/text.parquet'"
        query = f"select min(row) from ({numbered}) group by text"
        duckdb.connect().execute(query).fetchall()

    return {"seconds": {"exact": [timed(distinct)]}, "versions": {"duckdb": duckdb.__version__}}


def texts_of(folder: Path) -> list[str]:
    with (folder / "text.jsonl").open() as file:
        return [json.loads(line)["text"] for line in file]


def datasketch_near(folder: Path) -> Told:
    from datasketch import MinHash, MinHashLSH

    def find() -> None:
        index = MinHashLSH(threshold=0.8, num_perm=128)
        for row, text in enumerate(texts_of(folder)):
            words = text.split()
            sketch = MinHash(num_perm=128)
            sketch.update_batch([" ".join(words[at : at + 5]).encode() for at in range(max(1, len(words) - 4))])
            index.query(sketch)
            index.insert(row, sketch)

    return {"seconds": {"near": [timed(find)]}}


def datatrove_near(folder: Path) -> Told:
    """Signatures and buckets; its clusters and its filter take little beside them."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig(n_grams=5, num_buckets=9, hashes_per_bucket=13)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "in").mkdir()
        (Path(name) / "in/text.jsonl").symlink_to(folder / "text.jsonl")
        reader = JsonlReader(f"{name}/in")
        stages: list[list[Any]] = [
            [reader, MinhashDedupSignature(output_folder=f"{name}/sig", config=config)],
            [MinhashDedupBuckets(input_folder=f"{name}/sig", output_folder=f"{name}/buckets", config=config)],
            [MinhashDedupCluster(input_folder=f"{name}/buckets", output_folder=f"{name}/ids", config=config)],
            [reader, MinhashDedupFilter(input_folder=f"{name}/ids"), JsonlWriter(f"{name}/out")],
        ]

        def run() -> None:
            for number, stage in enumerate(stages):
                tasks = config.num_buckets if number == 1 else 1
                LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=f"{name}/log{number}").run()

        return {"seconds": {"near": [timed(run)]}}


PEERS: dict[str, Callable[[Path], Told]] = {
    "DuckDB": duckdb_alone,
    "datasketch": datasketch_near,
    "datatrove": datatrove_near,
}

if __name__ == "__main__":
    sys.exit(main())

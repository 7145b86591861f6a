"""How fast a corpus becomes a token store, against what `tokenizers` itself reaches on all cores.

    python benchmarks/tokenizing.py [--file TEXT] [--megabytes 32] [--rounds 7]

The baseline is one call of `encode_batch_fast` on the same text, cut into the same pieces, held in memory, ids never
looked at. Ours is all that `build_store` does: hashing, reading and decoding the files, dividing them into splits,
encoding, taking the ids, writing and syncing the arrays. Each timing is a process of its own, as a run builds its
store once; the two alternate, and the ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from aifx.config.sections import LanguageDataSection
from aifx.data.corpus import Corpus, open_corpus
from aifx.data.store import build_store
from aifx.data.tokenizer import Tokenizer, train_tokenizer
from aifx.project import Project

MOBY_DICK = Path(__file__).parent.parent / "templates" / "language-model" / "data" / "moby_dick.txt"
GOAL = 0.90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=MOBY_DICK, help="text that is repeated to the size")
    parser.add_argument("--megabytes", type=float, default=32.0, help="size of the corpus")
    parser.add_argument("--rounds", type=int, default=7, help="processes of each side")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        sys.stdout.write(f"{seconds(arguments.side, arguments.project)}\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        megabytes = write_project(Path(folder), arguments)
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side, found in times.items():
                command = [sys.executable, __file__, "--side", side, "--project", folder]
                found.append(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    for side, found in times.items():
        sys.stdout.write(f"{side:10} {megabytes / statistics.median(found):6.2f} MB/s (median)\n")
    pairs = [theirs / ours for theirs, ours in zip(*times.values(), strict=True)]
    ratio = statistics.median(times["tokenizers"]) / statistics.median(times["aifx"])
    sys.stdout.write(f"ratio      {ratio:.3f}   (pairs {min(pairs):.3f} to {max(pairs):.3f}; goal {GOAL})\n")


def write_project(folder: Path, arguments: argparse.Namespace) -> float:
    """Copies of the text as the files of a project, and a tokenizer trained on it. Returns their size in MB."""
    text = arguments.file.read_bytes()
    copies = max(1, round(arguments.megabytes * 1e6 / len(text)))
    for copy in range(copies):
        (folder / f"{copy:04}.txt").write_bytes(text)
    (folder / "tokenizer.json").write_bytes(train_tokenizer([text.decode()], arguments.vocab_size))
    return float(copies * len(text) / 1e6)


def seconds(side: str, folder: Path) -> float:
    project = Project(folder)
    corpus = open_corpus(LanguageDataSection(train=("*.txt",)), project)
    work = SIDES[side](project, corpus, Tokenizer.load(folder / "tokenizer.json"))
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def tokenizers_side(project: Project, corpus: Corpus, tokenizer: Tokenizer) -> Callable[[], object]:
    pieces = [piece.text for _, piece in corpus.pieces()]
    return lambda: tokenizer.encode_batch(pieces)


def aifx_side(project: Project, corpus: Corpus, tokenizer: Tokenizer) -> Callable[[], object]:
    with tempfile.TemporaryDirectory(dir=project.root) as folder:
        pass
    return lambda: build_store(Path(folder), corpus, tokenizer)


SIDES = {"tokenizers": tokenizers_side, "aifx": aifx_side}

if __name__ == "__main__":
    main()

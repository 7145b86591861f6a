"""How fast a corpus becomes a token store, against what `tokenizers` itself reaches on all cores.

    python benchmarks/tokenizing.py [--file TEXT] [--megabytes 32] [--rounds 5]

The baseline is one call of `encode_batch_fast` on the same text, cut into the same pieces, held in memory, ids never
looked at. Ours is all that `build_store` does: hashing, reading and decoding the files, dividing them into splits,
encoding, taking the ids, writing and syncing the arrays. Runs alternate; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from aifx.config.sections import LanguageDataSection
from aifx.data.corpus import open_corpus
from aifx.data.store import build_store
from aifx.data.tokenizer import Tokenizer, train_tokenizer
from aifx.project import Project

MOBY_DICK = Path(__file__).parent.parent / "templates" / "language-model" / "data" / "moby_dick.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=MOBY_DICK, help="text that is repeated to the size")
    parser.add_argument("--megabytes", type=float, default=32.0, help="size of the corpus")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each")
    parser.add_argument("--vocab-size", type=int, default=1024)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        text = arguments.file.read_bytes()
        copies = max(1, round(arguments.megabytes * 1e6 / len(text)))
        for copy in range(copies):
            (project.root / f"{copy:04}.txt").write_bytes(text)
        corpus = open_corpus(LanguageDataSection(train=("*.txt",), vocab_size=arguments.vocab_size), project)
        tokenizer = Tokenizer(train_tokenizer([text.decode()], arguments.vocab_size), "trained")
        pieces = [piece.text for _, piece in corpus.pieces()]
        megabytes = copies * len(text) / 1e6

        baseline, ours = [], []
        for number in range(arguments.rounds):
            baseline.append(_timed(lambda: tokenizer.encode_batch(pieces)))
            store = project.root / f"store-{number}"
            ours.append(_timed(lambda store=store: build_store(store, corpus, tokenizer)))
    report = {
        "megabytes": megabytes,
        "tokenizers_mb_s": megabytes / statistics.median(baseline),
        "aifx_mb_s": megabytes / statistics.median(ours),
        "ratio": statistics.median(baseline) / statistics.median(ours),
        "ratios": [theirs / own for theirs, own in zip(baseline, ours, strict=True)],
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

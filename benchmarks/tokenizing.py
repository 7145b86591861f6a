"""Rate at which a corpus becomes a token store, against that of `tokenizers` itself on all cores.

    python benchmarks/tokenizing.py [--file TEXT] [--megabytes 32] [--rounds 7]

The baseline is one call of `encode_batch_fast` on the same text, cut into the same pieces, held in memory, ids never
looked at. Ours is all that `stored_tokens` does: hashing, reading and decoding the files, dividing them into splits,
encoding, taking the ids, writing and syncing the arrays. Each timing is a process of its own, as a run builds its
store once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import side_by_side
from side_by_side import Side, Told, Work

from aifx.core.project import Project
from aifx.data.corpus import Corpus, open_corpora, stored_tokens
from aifx.data.sections import TextSection
from aifx.data.tokenizer import Tokenizer, train_tokenizer

MOBY_DICK = Path(__file__).parent.parent / "templates" / "language-model" / "data" / "moby_dick.txt"
GOAL = 0.90
NOTES = ("`tokenizers` reads no file, looks at no id and writes nothing: its text lies in memory.",)


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=7, quick_rounds=2)
    parser.add_argument("--file", type=Path, default=MOBY_DICK, help="text that is repeated to the size")
    parser.add_argument("--megabytes", type=float, help="size of the corpus (32; quick: 16)")
    parser.add_argument("--vocab-size", type=int, default=1024)
    arguments = parser.parse_args()
    if arguments.side:
        side_by_side.tell(lambda: measure(arguments.side, Path(arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        megabytes = write_project(Path(folder), arguments)
        commands = {name: side_by_side.own(__file__, name, "--folder", folder) for name in SIDES}
        sides = [Side(name, side_by_side.process(command)) for name, command in commands.items()]
        runs = side_by_side.alternate(sides, side_by_side.rounds_of(arguments))
    work = Work("corpus", "text to token store", GOAL, megabytes, "MB")
    rows = [side_by_side.versus(runs, work, peer) for peer in runs.peers]
    notes = (f"{megabytes:.0f} MB, a vocabulary of {arguments.vocab_size:,}.", *NOTES)
    side_by_side.report(side_by_side.document("tokenizing", rows, arguments, runs, notes=notes), arguments)


def write_project(folder: Path, arguments: argparse.Namespace) -> float:
    """Copies of the text as the files of a project, and a tokenizer trained on it. Returns their size in MB."""
    text = arguments.file.read_bytes()
    megabytes = arguments.megabytes or (16.0 if arguments.quick else 32.0)
    copies = max(1, round(megabytes * 1e6 / len(text)))
    for copy in range(copies):
        (folder / f"{copy:04}.txt").write_bytes(text)
    (folder / "tokenizer.json").write_bytes(train_tokenizer([text.decode()], arguments.vocab_size))
    return float(copies * len(text) / 1e6)


def measure(side: str, folder: Path) -> Told:
    project = Project(folder)
    (corpus,) = open_corpora(TextSection(train=("*.txt",)), project)
    work = SIDES[side](project, corpus, Tokenizer.load(folder / "tokenizer.json"))
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {"seconds": {"corpus": [seconds]}, "versions": side_by_side.installed("tokenizers", "numpy")}


def tokenizers_side(project: Project, corpus: Corpus, tokenizer: Tokenizer) -> Callable[[], object]:
    pieces = [piece.text for _, piece in corpus.pieces()]
    return lambda: tokenizer.encode_batch(pieces)


def aifx_side(project: Project, corpus: Corpus, tokenizer: Tokenizer) -> Callable[[], object]:
    with tempfile.TemporaryDirectory(dir=project.root) as folder:
        pass
    return lambda: stored_tokens(Path(folder), corpus, tokenizer)


SIDES = {"aifx": aifx_side, "tokenizers": tokenizers_side}

if __name__ == "__main__":
    main()

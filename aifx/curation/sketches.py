"""Sketches of texts: MinHash signatures of their runs of words. They are kept, so that a text is sketched once.

`<data set>/sketches/` has a file for each shard, by the shard's SHA-256, and `algorithm.json`. Signatures of two
versions of the algorithm have nothing in common, so aifx refuses to compare them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aifx.core.errors import DataError
from aifx.core.files import read_file, replacing
from aifx.core.json_files import write_json
from aifx.core.parsing import parse_json
from aifx.curation.shards import read_shard
from aifx.curation.words import HASHES, find_words, word_runs
from aifx.data.versions import ShardFile

SHINGLE_WORDS = 5
PERMUTATIONS = 96
SEED = 1
NO_WORDS = 0xFFFFFFFF  # each value of the signature of a text without words
BATCH_BYTES = 4 << 20


class SketchesOutdated(DataError):
    """Sketches of another version of the algorithm."""


def algorithm() -> Mapping[str, Any]:
    """The settings that signatures depend on in addition to the text."""
    return {
        "method": "R-MinHash",
        "version": int(_rensa().ALGORITHM_VERSION),
        "permutations": PERMUTATIONS,
        "seed": SEED,
        "shingle_words": SHINGLE_WORDS,
        "word_hashes": HASHES,
    }


def open_sketches(folder: Path, rebuild_command: str) -> None:
    """Make the folder of sketches. Raises SketchesOutdated if it holds those of another version of the algorithm."""
    path = folder / "algorithm.json"
    try:
        found = parse_json(read_file(path))
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, algorithm())
        return
    except ValueError:
        found = {}
    ours = algorithm()
    if found != ours:
        theirs = found if isinstance(found, dict) else {}
        differ = [name for name in ours if theirs.get(name) != ours[name]]
        why = "; ".join(f"{name} is {theirs.get(name)}, and this aifx has {ours[name]}" for name in differ)
        raise SketchesOutdated(f"the sketches in {folder} are of another algorithm", why, rebuild_command)


def sketch_path(folder: Path, shard: ShardFile) -> Path:
    """The file with the sketches of a shard."""
    return folder / f"{shard.sha256}.npy"


def find_sketch(folder: Path, shard: ShardFile) -> NDArray[np.uint32] | None:
    """Signatures of the rows of a shard, [rows, permutations], mapped; None if they must be made."""
    try:
        found = np.load(sketch_path(folder, shard), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (shard.rows, PERMUTATIONS) and found.dtype == np.uint32 else None


def make_sketch(folder: Path, path: Path, shard: ShardFile) -> NDArray[np.uint32]:
    """Sketch the texts of the shard at `path`, or read the sketch that is there."""
    if (found := find_sketch(folder, shard)) is not None:
        return found
    texts = read_shard(path, ["text"])["text"]
    parts = [sketch_texts(batch) for batch in text_batches(texts)]
    signatures = np.concatenate(parts) if parts else np.zeros((0, PERMUTATIONS), np.uint32)
    with replacing(sketch_path(folder, shard)) as file:
        np.save(file, signatures)
    return signatures


def sketch_texts(texts: Any) -> NDArray[np.uint32]:
    """Signatures of texts, [texts, permutations]."""
    runs = word_runs(find_words(texts), SHINGLE_WORDS, whole=True)
    matrix = _rensa().digest_matrix_from_flat_token_hashes(
        runs.hashes, runs.firsts.astype(np.uint64), PERMUTATIONS, SEED
    )
    # Arrays convert lists of integers twice as fast as NumPy does.
    rows = b"".join([array("I", row).tobytes() for row in matrix.to_rows()])
    return np.frombuffer(rows, np.uint32).reshape(len(texts), PERMUTATIONS)


def text_batches(texts: Any) -> Iterator[Any]:
    """The texts of a column, in parts of a few megabytes and at least one text."""
    for chunk in texts.chunks:
        begin = 0
        per_text = max(chunk.nbytes // max(len(chunk), 1), 1)
        step = max(BATCH_BYTES // per_text, 1)
        while begin < len(chunk):
            yield chunk.slice(begin, step)
            begin += step


def _rensa() -> Any:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # processes sketch shards, each with one thread
    import rensa

    return rensa.RMinHash

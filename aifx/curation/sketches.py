"""Sketches of texts: MinHash signatures of their runs of words. They are kept, so that a text is sketched once.

`<data set>/sketches/` has a file for each shard, by the shard's SHA-256, and `algorithm.json`. Signatures of two
versions of the algorithm have nothing in common, so aifx refuses to compare them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aifx.core.errors import DataError
from aifx.core.files import read_file, replacing
from aifx.core.json_files import write_json
from aifx.core.parsing import parse_json
from aifx.curation.words import HASHES, find_words, word_runs
from aifx.data.versions.manifest import ShardFile

SHINGLE_WORDS = 5
PERMUTATIONS = 96
SEED = 1
NO_WORDS = 0xFFFFFFFF  # each value of the signature of a text without words
ROWS_AT_A_TIME = 4096
"""Whose signatures are lists of Python's integers at a time: of 4 kB each."""


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


@contextmanager
def sketching(folder: Path, shard: ShardFile) -> Iterator[Callable[[Any], NDArray[np.uint32]]]:
    """A function for the texts of a shard, some at a time and all of them in order: it returns their signatures.

    It reads them from the shard's sketch; if there is none, it makes them, and the sketch is there when the block ends.
    """
    path = folder / f"{shard.sha256}.npy"
    if (begin := _begin_of(path, shard)) is not None:
        with open(path, "rb") as found:
            found.seek(begin)
            yield lambda texts: _signatures(found.read(4 * PERMUTATIONS * len(texts)))
        return
    with replacing(path) as file:
        header = {"descr": "<u4", "fortran_order": False, "shape": (shard.rows, PERMUTATIONS)}
        np.lib.format.write_array_header_1_0(file, header)

        def make(texts: Any) -> NDArray[np.uint32]:
            signatures = sketch_texts(texts)
            file.write(signatures.data)
            return signatures

        yield make


def _begin_of(path: Path, shard: ShardFile) -> int | None:
    """The place of the first signature in a sketch of NumPy's format; None if the sketch is missing or damaged."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    is_whole = found.shape == (shard.rows, PERMUTATIONS) and found.dtype == np.uint32
    return int(found.offset) if is_whole and isinstance(found, np.memmap) else None


def sketch_texts(texts: Any) -> NDArray[np.uint32]:
    """Signatures of texts, [texts, permutations]."""
    runs = word_runs(find_words(texts), SHINGLE_WORDS, whole=True)
    firsts = runs.firsts.astype(np.uint64)
    parts = []
    for begin in range(0, len(texts), ROWS_AT_A_TIME):
        places = firsts[begin : begin + ROWS_AT_A_TIME + 1]
        hashes = runs.hashes[int(places[0]) : int(places[-1])]
        matrix = _rensa().digest_matrix_from_flat_token_hashes(hashes, places - places[0], PERMUTATIONS, SEED)
        # Arrays convert lists of integers twice as fast as NumPy does.
        parts += [array("I", row).tobytes() for row in matrix.to_rows()]
    return _signatures(b"".join(parts))


def _signatures(data: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(data, np.uint32).reshape(-1, PERMUTATIONS)


def hash_bytes(values: Sequence[bytes]) -> list[int]:
    """64-bit hashes of values, which another version of rensa may hash differently."""
    hashes: list[int] = _rensa().hash_token_sets([values])[0]
    return hashes


def _rensa() -> Any:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # processes sketch shards, each with one thread
    import rensa

    return rensa.RMinHash

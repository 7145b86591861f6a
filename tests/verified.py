"""Sources that passed every case of their tests, of which a sample is enough until they change.

    python tests/verified.py    record in TABLE that the sources passed under this JAX, as they are now

`make test-every` does so. While TABLE holds the digest of SOURCES, a test marked `sampled(n)` runs one case in n, and
of the other tests of FOLDERS one in n runs; which ones, the commit's hash decides. All of them run if a source changed
or another JAX is installed, on hardware other than the CPU, with EVERY=1 or LONG=1, and with `-k`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import io
import json
import os
import tokenize
from collections.abc import Sequence
from typing import TypeVar

import pytest
from effort import IS_LONG, ROOT, seed_of_commit

T = TypeVar("T")

TABLE = ROOT / "tests" / "verified.json"
SOURCES = (
    "jax_kernels/**/*.py",
    "aifx/models/**/*.py",
    "aifx/nn/*.py",
    "aifx/specs.py",
    "aifx/generation/*.py",
    "aifx/programs/decoding.py",
    "aifx/programs/sampling.py",
    "jax_kernels/tables/*.json",
    "tests/jax_kernels/*.py",
    "tests/models/*.py",
    "tests/nn/*.py",
    "tests/generation/*.py",
)
FOLDERS = {"jax_kernels": 3, "models": 2, "nn": 2, "generation": 2}
"""Folders whose tests read little but SOURCES: one test in n is enough."""
READS_OTHER_FILES = ("test_compiled_programs.py",)
IS_EVERY = IS_LONG or os.environ.get("EVERY") == "1"


def sampled_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests and cases that this commit leaves out; none if the sources are not in TABLE."""
    if not is_sample():
        return []
    groups: dict[tuple[str, int], dict[str, list[pytest.Item]]] = {}
    for item in items:
        test, folder = item.nodeid.partition("[")[0], item.path.parent.name
        if (marker := item.get_closest_marker("sampled")) is not None:
            groups.setdefault((test, marker.args[0]), {})[item.nodeid] = [item]
        elif folder in FOLDERS and not _is_whole(item):
            groups.setdefault((folder, FOLDERS[folder]), {}).setdefault(test, []).append(item)
    seed = seed_of_commit()
    return [
        item
        for (_, step), units in groups.items()
        for unit in left_out(list(units.values()), step, seed)
        for item in unit
    ]


def _is_whole(item: pytest.Item) -> bool:
    has_own_run = any(item.get_closest_marker(name) for name in ("slow", "long", "compilers"))
    return has_own_run or item.path.name in READS_OTHER_FILES


def left_out(cases: Sequence[T], step: int, seed: int) -> list[T]:
    """All but one case in `step`, or but one if there are fewer."""
    step = min(step, len(cases))
    return [case for i, case in enumerate(cases) if (i + seed) % step]


def is_sample() -> bool:
    """Whether a sample is enough: every case passed on the CPU from the sources as they are."""
    is_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    return is_cpu and not IS_EVERY and read_table().get(_versions()) == digest()


def read_table() -> dict[str, str]:
    """The digest that passed, by versions of JAX."""
    table: dict[str, str] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    return table


def _versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))


def digest() -> str:
    """Of the code in SOURCES."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        found.update(f"{path.relative_to(ROOT)}\n{code_of(path.read_text(encoding='utf-8'))}\n".encode())
    return found.hexdigest()[:16]


def code_of(source: str) -> str:
    """A module's source without comments, docstrings and blank lines; the same under every Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone is a docstring, or documents the name above it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def record() -> None:
    table = {**read_table(), _versions(): digest()}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()

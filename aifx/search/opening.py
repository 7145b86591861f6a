"""Opening an embedder by the name that the command line gives it."""

from __future__ import annotations

from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.search.embedders import NGRAMS, Embedder
from aifx.search.hashed_ngrams import HashedNgrams


def open_embedder(name: str, dims: int | None, project: Project | None) -> Embedder:
    """The embedder that `--embedder` and `--dims` name. Raises UsageError."""
    if name == NGRAMS:
        return HashedNgrams() if dims is None else HashedNgrams(dims)
    raise UsageError(f"no embedder {name!r}", "embedders are ngrams", "--embedder ngrams")

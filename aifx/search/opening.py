"""Opening an embedder by the name that the command line gives it."""

from __future__ import annotations

from pathlib import Path

from aifx.core.errors import UsageError
from aifx.core.project import RUN_NAME, Project
from aifx.search.embedders import NGRAMS, Embedder, HashedNgrams


def open_embedder(name: str, dims: int | None, project: Project | None) -> Embedder:
    """The embedder that `--embedder` and `--dims` name: n-grams, a run, or the folder of a sentence encoder.

    Raises UsageError, CheckpointError, DataError for an encoder that cannot be used.
    """
    if name == NGRAMS:
        return HashedNgrams() if dims is None else HashedNgrams(dims)
    found = _model(name, project)
    if dims not in (None, found.record.dims):
        why = f"the vectors of {name} have {found.record.dims} numbers"
        raise UsageError(f"--dims {dims} does not fit --embedder {name}", why, "leave --dims out")
    return found


def _model(name: str, project: Project | None) -> Embedder:
    """A run of the project if there is one of this name, otherwise a folder."""
    run = name.partition("@")[0]
    if project is not None and RUN_NAME.fullmatch(run) and project.run(run).exists():
        from aifx.search.model_embedders import RunEmbedder

        return RunEmbedder(name, project)
    if "/" in name or Path(name).is_dir():
        from aifx.search.model_embedders import SentenceEmbedder

        return SentenceEmbedder(name)
    why = "an embedder is ngrams, a run of this project, or the folder of a sentence encoder"
    raise UsageError(f"no embedder {name!r}", why, "aifx runs ls" if project is not None else "--embedder ngrams")

"""Embedders: they turn texts into vectors whose inner product is the cosine of their angle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

F32: TypeAlias = NDArray[np.float32]
EmbedderKind: TypeAlias = Literal["ngrams", "run", "encoder"]

NGRAMS: EmbedderKind = "ngrams"
RUN: EmbedderKind = "run"
ENCODER: EmbedderKind = "encoder"


@dataclass(frozen=True)
class EmbedderRecord:
    """An embedder in the manifest of an index.

    Attributes:
        name: what `--embedder` names.
        settings: all that a vector depends on, with the digests of the files that are read.
    """

    kind: EmbedderKind
    name: str
    dims: int
    settings: Mapping[str, Any]


class Embedder(ABC):
    """Embeds texts. A pickle of it goes to other processes if `uses_processes`."""

    uses_processes: ClassVar[bool] = False

    @property
    @abstractmethod
    def record(self) -> EmbedderRecord: ...

    @abstractmethod
    def embed(self, texts: Any) -> F32:
        """Vectors `[texts, dims]` of length 1 of an Arrow array of strings; of length 0 for a text without content."""


def normalized(vectors: NDArray[Any]) -> F32:
    """The rows of a matrix at length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)

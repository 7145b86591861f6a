"""Targets of predictions: what has been scored, and commits of predictions, position and request together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from pyarrow import RecordBatch

from aifx.core.json_values import encode_json
from aifx.core.requests import Request


def scoring_of(model: str, source: str, key: str) -> str:
    """What a position is of: another model, or another key, has scored none of the rows before it.

    Args:
        model: the version's digest.
        key: the column.
    """
    return encode_json([model, source, key], ensure_ascii=False)


class Target(ABC):
    """A target that this call reads, and writes in commits, each of which is whole or not there."""

    @abstractmethod
    def outcome(self, request: Request) -> Mapping[str, Any] | None:
        """The document of a request that was done; None if it was not. Raises UsageError if its id did another act."""

    def begun(self, request: Request) -> Mapping[str, Any] | None:
        """The `model` and the number of predictions (`scored`) of a request of which a part was committed."""
        return None

    @abstractmethod
    def position(self, scoring: str) -> Any:
        """The position up to which a source was scored, by `scoring_of`; None if it never was."""

    @abstractmethod
    def known(self, ids: Collection[str]) -> set[str]:
        """Those of the ids whose predictions the target has."""

    @abstractmethod
    def add(self, batch: RecordBatch, scoring: str, position: Any, request: Request | None, model: str) -> int:
        """Add the predictions that the target lacks, and a position. Returns their number.

        Args:
            model: digest of the model version that the request began with.

        Raises DataError, UsageError for a target that does not take them, EnvironmentFault.
        """

    @abstractmethod
    def finish(self, scoring: str, position: Any, request: Request | None, outcome: Mapping[str, Any]) -> None:
        """Keep the last position, and that a request was done."""

"""Tokens and rows that servers answered with, by their records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError
from aifx.serving.records import read_records


@dataclass(frozen=True)
class Served:
    """What servers of a run answered with.

    Attributes:
        answers: that were recorded.
        tokens: of answers of models that write text.
        rows: of answers of models that predict.
        uncounted: answers whose payload was erased or lost, or that were not recorded: their size is not known.
    """

    answers: int = 0
    tokens: int = 0
    rows: int = 0
    uncounted: int = 0


def read_served(folder: Path, is_counted: Callable[[float], bool]) -> Served | None:
    """Count the answers whose time is counted; None without records. Raises DataError for records that are damaged."""
    if not any(folder.glob("*/*.chain")):
        return None
    answers = tokens = rows = uncounted = 0
    try:
        for record in read_records(folder):
            if is_counted(record.time):
                answers += 1
                size = _size(record.answer, record.request) if record.state == "whole" else None
                tokens += size[0] if size else 0
                rows += size[1] if size else 0
                uncounted += record.lost + (size is None)
    except DataError as error:
        if not answers and error.what.endswith("has no record"):
            return Served()
        raise
    return Served(answers, tokens, rows, uncounted)


def _size(answer: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[int, int] | None:
    """The tokens and the rows of an answer; None for a payload that no server writes."""
    try:
        if "tokens" in answer:
            return int(answer["tokens"]["shape"][0]), 0
        rows = request["rows"]  # none of pictures
        return 0, len(rows) if rows else int(next(iter(answer["outputs"].values()))["shape"][0])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration):
        return None

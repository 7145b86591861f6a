"""The kinds of data sets, the columns that aifx adds to their rows, and the keys that name files instead."""

from __future__ import annotations

from typing import Literal, TypeAlias

FILE_KEYS = ("data.train", "data.validation", "data.test", "data.path")
"""The keys of `[data]` that name files."""

ROW, SOURCE, SPLIT, CLUSTER, PREDICTION = "_row", "_source", "_split", "_cluster", "_prediction"
"""Columns that aifx adds: the row's id; the source that it came from; the split and the duplicate cluster it is in; the
prediction whose outcome `aifx data feedback` found."""

RESERVED = (ROW, SOURCE, SPLIT, CLUSTER, PREDICTION)

CHAT = "chat"
"""The one column of a version of kind "chat": the JSON of a conversation or a preference, unchanged.

Columns of Arrow's structs would give each tool call the keys of all others, with null."""

Kind: TypeAlias = Literal["text", "table", "images", "chat"]


def joined_row_column(features: str, prefix: str | None) -> str:
    """The column of a version that `aifx data join` made with the `_row` of the joined row.

    Args:
        features: the name of the data set.
    """
    return f"{features}_row" if prefix is None else f"{prefix}row"

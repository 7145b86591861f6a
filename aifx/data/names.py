"""The kinds of data sets, the columns that aifx adds to their rows, and the keys that name files instead."""

from __future__ import annotations

from typing import Literal, TypeAlias

FILE_KEYS = ("data.train", "data.validation", "data.test", "data.path")
"""The keys of `[data]` that name files."""

ROW, SOURCE, SPLIT, CLUSTER = "_row", "_source", "_split", "_cluster"
"""Columns that aifx adds: the row's id; the source that it came from; the split and the duplicate cluster it is in."""

RESERVED = (ROW, SOURCE, SPLIT, CLUSTER)

CHAT = "chat"
"""The one column of a version of kind "chat": the JSON of a conversation or a preference, unchanged.

Columns of Arrow's structs would give each tool call the keys of all others, with null."""

Kind: TypeAlias = Literal["text", "table", "images", "chat"]

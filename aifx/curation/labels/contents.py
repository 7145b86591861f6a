"""The rows that are labelled, and what of them people see."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from aifx.core.errors import UsageError
from aifx.curation.labels.store import LabelKind
from aifx.data.chat.lines import messages_of
from aifx.data.names import CHAT, RESERVED, ROW, SOURCE
from aifx.data.versions.manifest import TEXT_TYPES, Version
from aifx.data.versions.shards import read_shard, records_of

IMAGE_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
"""Media types by the beginning of a file."""


@dataclass(frozen=True)
class Shown:
    """The columns of a row that labellers see.

    Attributes:
        columns: one for texts, images and chats, two for pairs, in the order of the command line.
        context: further columns of a pair, such as the question that both texts answer.
    """

    kind: LabelKind
    columns: tuple[str, ...]
    context: tuple[str, ...] = ()


def shown_of(version: Version, column: str, pair: str | None = None) -> Shown:
    """The columns to show of a version whose labels become `column`.

    Args:
        pair: two columns with texts, as "A,B", of which labellers choose the better.

    Raises UsageError for columns that the version does not have.
    """
    manifest = version.manifest
    if pair is not None:
        names = tuple(name.strip() for name in pair.split(","))
        known = [name for name, kind in manifest.columns.items() if kind in TEXT_TYPES]
        if len(set(names)) != 2 or not set(names) <= set(known):
            why = f"{version.reference} has the texts {', '.join(name for name in known if name not in RESERVED)}"
            raise UsageError(
                f"--pair {pair} names no two columns of text", why, f"aifx data profile {version.reference}"
            )
        others = (name for name in known if name not in (*names, *RESERVED, column))
        return Shown("pairs", names, tuple(others))
    if manifest.kind != "table":
        return Shown(manifest.kind, ({"text": "text", "images": "image", "chat": CHAT}[manifest.kind],))
    columns = tuple(name for name in manifest.columns if name not in RESERVED and name != column)
    if not columns:
        what = f"{version.reference} has no column to show"
        raise UsageError(what, f"a mix has none, and {column} is left out", "label the data sets that it mixes")
    return Shown("table", columns)


class ShownRow(NamedTuple):
    """A row as labellers see it.

    Attributes:
        content: the shown columns; of a chat, its messages as people read them.
    """

    row: str
    source: str
    content: Mapping[str, Any]


def shown_rows(version: Version, shown: Shown, rows: Collection[str] | None = None) -> Iterator[ShownRow]:
    """The rows with these ids, by default all, in the order of the version."""
    import pyarrow as pa
    import pyarrow.compute as pc

    own = [name for name in (ROW, SOURCE) if name in version.manifest.columns]
    columns = [*shown.columns, *shown.context]
    wanted = None if rows is None else pa.array(list(rows), pa.string())
    for shard in version.shards:
        table = read_shard(shard, [*own, *columns])
        for record in records_of(table if wanted is None else table.filter(pc.is_in(table[ROW], value_set=wanted))):
            if CHAT in columns and shown.kind == "chat":
                record[CHAT] = "\n\n".join(messages_of(record[CHAT]))
            yield ShownRow(record[ROW], record.get(SOURCE) or "", {name: record[name] for name in columns})


def has_row(version: Version, row: str) -> bool:
    """Whether a version has a row of this id."""
    try:
        return any(read_shard(shard, [ROW])[ROW].index(row).as_py() >= 0 for shard in version.shards)
    except UnicodeEncodeError:  # a lone surrogate, which no id has
        return False


def image_type(data: bytes) -> str:
    """The media type of an image file."""
    known = (kind for beginning, kind in IMAGE_TYPES.items() if data.startswith(beginning))
    return next(known, "application/octet-stream")

"""The rows that are labelled, and what of them people see."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aifx.core.digests import Sha256
from aifx.core.errors import UsageError
from aifx.curation.labels.store import LabelKind
from aifx.data.chat.lines import messages_of
from aifx.data.names import CHAT, RESERVED, ROW, SOURCE
from aifx.data.versions.manifest import TEXT_TYPES, Version
from aifx.data.versions.shards import read_shard, records_of

if TYPE_CHECKING:
    from pyarrow import Table

IMAGE_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
"""Media types by the beginning of a file."""

BY_ID: tuple[LabelKind, ...] = ("table", "chat")
"""Kinds whose rows are found by their ids alone, for labels that other programs kept."""


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


def select_rows(version: Version, shown: Shown, rows: Collection[str]) -> Iterator[Table]:
    """The given rows, in the order of the version, with `_row`, `_source` and the shown columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(list(rows), pa.string())
    for table in read_columns(version, (*shown.columns, *shown.context)):
        yield table.filter(pc.is_in(table[ROW], value_set=wanted))


def read_columns(version: Version, columns: Sequence[str]) -> Iterator[Table]:
    """The rows of each shard, with `_row`, `_source` if the version has it, and the given columns."""
    own = [name for name in (ROW, SOURCE) if name in version.manifest.columns]
    for shard in version.shards:
        yield read_shard(shard, [*own, *columns])


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


def data_url(data: bytes) -> str:
    return f"data:{image_type(data)};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class FileLabel:
    """A label in a file, before its row is found.

    Attributes:
        place: the file and the line or task.
        row: id of the row, if the file has it.
        content: values among which is the row's content, to find it by; empty if it can be found by its id alone.
        label: None for a row that the labeller skipped, or if there is a fault.
        fault: why it cannot be used; "" if it can.
    """

    place: str
    row: object
    content: tuple[object, ...]
    label: str | None
    fault: str
    labeller: str | None
    time: str | None
    note: str = ""


class RowFinder:
    """Finds rows of a version by their ids or by their content, for labels that other programs kept."""

    def __init__(self, version: Version, shown: Shown) -> None:
        self._shown = shown
        self._rows: set[str] = set()
        self._by_content: dict[bytes, tuple[str, bool]] = {}
        self._by_name: dict[str, str | None] = {}
        for table in read_columns(version, () if shown.kind in BY_ID else shown.columns):
            self._add(table)

    def _add(self, table: Table) -> None:
        ids = table[ROW].to_pylist()
        self._rows.update(ids)
        if self._shown.kind in BY_ID:
            return
        contents = zip(*(table[name].to_pylist() for name in self._shown.columns), strict=True)
        for row, content in zip(ids, contents, strict=True):
            self._by_content.setdefault(_digest(content), (row, False))
            if self._shown.kind == "pairs":
                self._by_content.setdefault(_digest(content[::-1]), (row, True))
        if self._shown.kind == "images" and SOURCE in table.column_names:
            for row, source in zip(ids, table[SOURCE].to_pylist(), strict=True):
                name = str(source).rpartition("/")[2]
                self._by_name[name] = None if name in self._by_name else row

    def find(self, row: object) -> str | None:
        """The row with an id."""
        return row if isinstance(row, str) and row in self._rows else None

    def find_content(self, values: Sequence[object]) -> tuple[str, bool] | None:
        """The first row whose content is among the values of a task, and whether a pair of it is the other way round.

        An image is found by its bytes in a data: URL, or by the name of its file.
        """
        texts = [value for value in values if isinstance(value, str)]
        if self._shown.kind == "pairs":
            candidates = [_digest((one, two)) for at, one in enumerate(texts) for two in texts[at + 1 :]]
        elif self._shown.kind == "images":
            candidates = [_digest((_url_data(text),)) for text in texts if text.startswith("data:")]
        else:
            candidates = [_digest((text,)) for text in texts]
        found = next((self._by_content[one] for one in candidates if one in self._by_content), None)
        if found is None and self._shown.kind == "images":
            names = (text.rpartition("/")[2] for text in texts if not text.startswith("data:"))
            row = next((row for name in names if (row := self._by_file(name)) is not None), None)
            return None if row is None else (row, False)
        return found

    def _by_file(self, name: str) -> str | None:
        """Label Studio puts 8 hexadecimal digits before the names of uploaded files."""
        uploaded = len(name) > 9 and name[8] == "-" and all(digit in "0123456789abcdef" for digit in name[:8])
        return self._by_name.get(name) or (self._by_name.get(name[9:]) if uploaded else None)


def _url_data(url: str) -> bytes:
    head, _, data = url.partition(",")
    try:
        return base64.b64decode(data, validate=True) if head.endswith(";base64") else b""
    except ValueError:
        return b""


def _digest(values: Sequence[Any]) -> bytes:
    digest = Sha256()
    for value in values:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value or b""
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()[:16]


def contents_of(table: Table, shown: Shown) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The id, the source and the shown columns of each row; of a chat, its messages as people read them."""
    columns = [*shown.columns, *(name for name in shown.context if name in table.column_names)]
    for record in records_of(table):
        if shown.kind == "chat" and CHAT in columns:
            record[CHAT] = "\n\n".join(messages_of(record[CHAT]))
        yield record[ROW], record.get(SOURCE) or "", {name: record[name] for name in columns}

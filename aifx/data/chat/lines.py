"""Chats as versions of data sets keep them: each row is an unchanged line of JSON.

`CHAT_READERS` read source files for `aifx data add`. The other functions reach the texts in a row.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from aifx.core.errors import DataError
from aifx.core.json_values import encode_json
from aifx.core.parsing import parse_json
from aifx.data.chat.rows import FIELDS, Message, Preference, content_text, parse_row
from aifx.data.names import CHAT, RESERVED
from aifx.data.readers.arrow import pa
from aifx.data.readers.base import BadRow, Batch, ReadOptions
from aifx.data.readers.columnar import READERS, Reader
from aifx.data.readers.rows import Row
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import line_blocks, open_utf8
from aifx.data.versions.shards import records_of


def _find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    return pa.schema([(CHAT, pa.string())])


def _read_lines(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The lines of a file of JSON lines."""
    first_row, first_line = 0, 1
    with open_utf8(file, options) as stream:
        for block in line_blocks(stream):
            lines = block.removesuffix(b"\n").split(b"\n")
            given = [(line, text) for line, each in enumerate(lines, first_line) if (text := each.strip())]
            yield _batch((row, *each) for row, each in enumerate(given, first_row))
            first_row += len(given)
            first_line += len(lines)


def _of_columns(reader: Reader) -> Reader:
    """Reads a format with columns: each row becomes a line of JSON."""

    def read(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
        as_table = replace(options, kind="table")
        columns = reader.find_schema(file, as_table, is_whole=False)
        for batch in reader.read(file, columns, as_table):
            lines = (encode_json(record, ensure_ascii=False).encode() for record in records_of(batch.rows))
            numbers = batch.numbers.to_pylist()
            found = _batch((row, row + 1, line) for row, line in zip(numbers, lines, strict=True))
            yield replace(found, bad=sorted([*batch.bad, *found.bad], key=lambda bad: bad.line or 0))

    return Reader(_find_schema, read)


CHAT_READERS: Mapping[str, Reader] = {
    "jsonl": Reader(_find_schema, _read_lines),
    "parquet": _of_columns(READERS["parquet"]),
    "query": _of_columns(READERS["query"]),
}


def has_messages(schema: pa.Schema) -> bool:
    """Whether a table has a field of chats that is a list of messages: columns would change what is in them."""
    columns = (field.type for field in schema if field.name in FIELDS)
    items = [kind.value_type for kind in columns if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)]
    return any(item.get_field_index(name) >= 0 for item in items for name in ("role", "from"))


def _batch(rows: Iterable[tuple[int, int, bytes]]) -> Batch:
    """Rows by number and line. One that is no conversation and no preference is bad."""
    chats, numbers, bad = [], [], []
    for number, line, content in rows:
        if reason := _fault(content):
            bad.append(BadRow(line, reason, content))
        else:
            chats.append(content.decode())
            numbers.append(number)
    return Batch(pa.table({CHAT: pa.array(chats, pa.string())}), pa.array(numbers, pa.int64()), bad)


def _fault(content: bytes) -> str:
    """The reason why a line is no chat; "" if it is one."""
    try:
        text = content.decode()
        value = parse_json(text, _object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return f"byte 0x{content[error.start]:02x} is not UTF-8"
    except UnicodeEncodeError:
        return "not Unicode text: half a surrogate pair"
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(value, dict):
        return "not a JSON object"
    if reserved := sorted(set(RESERVED) & value.keys()):
        return f"it has a field {reserved[0]}, and aifx adds columns of this name"
    try:
        parse_row(Row("", 1, "row", value))
    except DataError as error:
        return f"{error.what.removeprefix('row: ')}: {error.why}"
    return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Raises ValueError for a key that comes twice: the steps would not see the first of its values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def texts_of(chat: str) -> list[tuple[str, str]]:
    """Each text in a row with its place, such as "messages[1].content". Names of fields are none."""
    found: list[tuple[str, str]] = []

    def keep(place: str, text: str) -> str:
        found.append((place, text))
        return text

    _changed(parse_json(chat), "", keep)
    return found


def with_texts(chat: str, texts: Mapping[int, str]) -> str:
    """The row with other texts, by their number in `texts_of`."""
    numbers = itertools.count()
    value = _changed(parse_json(chat), "", lambda _, text: texts.get(next(numbers), text))
    return json.dumps(value, ensure_ascii=False)


def _changed(value: Any, place: str, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return change(place, value)
    if isinstance(value, list):
        return [_changed(item, f"{place}[{index}]", change) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _changed(item, f"{place}.{key}" if place else key, change) for key, item in value.items()}
    return value


def equal_content(chat: str) -> str:
    """A text that two rows share if their JSON has the same values, in whatever order and spacing."""
    return json.dumps(parse_json(chat), sort_keys=True)


def messages_of(chat: str) -> list[str]:
    """The messages of a row as people read them: "user: Where is it?". The line itself if it is no chat."""
    try:
        found = parse_row(Row("", 1, "row", parse_json(chat)))
    except (ValueError, DataError):
        return [chat]
    if not isinstance(found, Preference):
        return [*map(_as_read, found.messages)]
    prompt = map(_as_read, found.chosen.messages[: found.chosen.prompt_length])
    answers = (
        f"{name}: {_as_read(message)}"
        for name, answer in zip(Preference._fields, found, strict=True)
        for message in answer.messages[answer.prompt_length :]
    )
    return [*prompt, *answers]


def _as_read(message: Message) -> str:
    others = {name: value for name, value in message.items() if name not in ("role", "content")}
    text = f"{message['role']}: {content_text(message)}"
    return text + (f"\n{json.dumps(others, ensure_ascii=False)}" if others else "")

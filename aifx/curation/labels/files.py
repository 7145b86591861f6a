"""Labels in files: out of a data set and into it, as Label Studio's JSON, JSON Lines or CSV."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError, UsageError
from aifx.core.files import RECORDS_LIMIT, read_input, replacing
from aifx.core.json_files import encode
from aifx.core.os_errors import naming
from aifx.core.parsing import parse_json
from aifx.curation.labels.contents import FileLabel, RowFinder, Shown, contents_of, select_rows
from aifx.curation.labels.label_studio import read_tasks, task_of
from aifx.curation.labels.store import Entry, LabelLog, LabelState, now
from aifx.data.names import ROW
from aifx.data.readers.csv_rows import CsvText, NotCsv, csv_rows, escape_formula, unescape_formula
from aifx.data.readers.lines import read_lines
from aifx.data.readers.sources import local_file
from aifx.data.versions.manifest import Version

LabelFormat: TypeAlias = Literal["label-studio", "jsonl", "csv"]
SUFFIXES: Mapping[str, LabelFormat] = {".json": "label-studio", ".jsonl": "jsonl", ".csv": "csv"}
LabelledRow: TypeAlias = tuple[str, str, Mapping[str, Any], list[Entry]]
"""The id, the source and the shown columns of a row, and its labels."""

_JSON = json.JSONEncoder(ensure_ascii=False)

FIELDS = ("row", "label", "labeller", "time", "note")


@dataclass(frozen=True)
class ExportedLabels:
    """The document of `aifx data label export --json`.

    Attributes:
        rows: with a label or a skip.
        labels: without skips.
        absent: labels and skips that were left out because the version does not have their rows.
    """

    reference: str
    column: str
    output: str
    format: LabelFormat
    rows: int
    labels: int
    absent: int


@dataclass(frozen=True)
class ImportedLabels:
    """The document of `aifx data label import --json`.

    Attributes:
        added: labels and skips that are new.
        known: that were imported before.
        unused: number of labels that could not be used, by the reason.
        examples: places of some of them, each with the reason.
    """

    reference: str
    column: str
    added: int
    known: int
    unused: Mapping[str, int]
    examples: tuple[str, ...]


def format_of(path: Path, format: LabelFormat | None) -> LabelFormat:
    """The format that is given, or that of a file's name. Raises UsageError."""
    if format is not None or (format := SUFFIXES.get(path.suffix.lower())) is not None:
        return format
    why = f"{', '.join(SUFFIXES)} do, and {path.suffix or 'no suffix'} does not"
    raise UsageError(f"the name of {path} has no known format", why, f"--format {'|'.join(get_args(LabelFormat))}")


def export_labels(
    version: Version, shown: Shown, column: str, state: LabelState, path: Path, format: LabelFormat
) -> ExportedLabels:
    """Write the labels that count of the rows of a version. Raises EnvironmentFault if the file cannot be written."""
    absent = {row: len(of_row) for row, of_row in state.by_row.items()}
    needed = shown if format == "label-studio" else replace(shown, columns=())

    def tasks() -> Iterator[LabelledRow]:
        for table in select_rows(version, needed, set(absent)):
            for row, source, content in contents_of(table, needed):
                del absent[row]
                yield row, source, content, list(state.by_row[row].values())

    with naming(path), replacing(path) as file:
        for text in _ENCODERS[format](tasks(), shown, column):
            file.write(encode(text))
    found = [of_row for row, of_row in state.by_row.items() if row not in absent]
    labels = sum(entry.label is not None for of_row in found for entry in of_row.values())
    return ExportedLabels(version.reference, column, str(path), format, len(found), labels, sum(absent.values()))


def _tasks(rows: Iterable[LabelledRow], shown: Shown, column: str) -> Iterator[str]:
    before = "[\n"
    for row, source, content, entries in rows:
        yield before + _JSON.encode(task_of(row, source, content, shown, column, entries))
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _lines(rows: Iterable[LabelledRow], shown: Shown, column: str) -> Iterator[str]:
    for *_, entries in rows:
        for entry in entries:
            yield _JSON.encode(_record(entry)) + "\n"


def _cells(rows: Iterable[LabelledRow], shown: Shown, column: str) -> Iterator[str]:
    text = CsvText()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    for *_, entries in rows:
        writer.writerows({name: escape_formula(value) for name, value in _record(entry).items()} for entry in entries)
    yield text.getvalue()


def _record(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in FIELDS}


_ENCODERS: Mapping[LabelFormat, Callable[[Iterable[LabelledRow], Shown, str], Iterator[str]]]
_ENCODERS = {"label-studio": _tasks, "jsonl": _lines, "csv": _cells}


def read_labels(
    path: Path, format: LabelFormat, shown: Shown, column: str, *, predictions: bool = False
) -> Iterator[FileLabel]:
    """The labels of a file. Raises DataError for one that cannot be read, or not in the format."""
    try:
        if format == "label-studio":
            data = read_input(path, limit=RECORDS_LIMIT)
            yield from read_tasks(parse_json(data), str(path), shown, column, predictions=predictions)
            return
        lines = read_lines(local_file(path))
        if format == "jsonl":
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _from_record(parse_json(line), f"{path}:{number}")
        else:
            rows = csv_rows(lines)
            _, names = next(rows, (0, []))
            for number, cells in filter(itemgetter(1), rows):
                yield _from_record(dict(zip(names, map(unescape_formula, cells), strict=False)), f"{path}:{number}")
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or str(error), f"ls -l {path}") from None
    except NotCsv as e:
        raise DataError(f"{path}:{e.line}: not CSV", str(e), f"sed -n {e.line}p {path}") from None
    except ValueError as e:
        raise DataError(
            f"{path} is not {_NAMES[format]}", str(e), f"--format {'|'.join(get_args(LabelFormat))}"
        ) from None


_NAMES = {"label-studio": "JSON", "jsonl": "JSON Lines", "csv": "CSV"}


def _from_record(record: Any, place: str) -> FileLabel:
    if not isinstance(record, Mapping) or not (record.get("row") or record.get(ROW)):
        hint = 'give each label its row: {"row": ..., "label": ...}'
        raise DataError(f"{place} names no row", f'a label has the fields "row" (or "{ROW}") and "label"', hint)
    given = {name: record.get(name) or None for name in ("label", "labeller", "time", "note")}
    wrong = next((name for name, value in given.items() if not isinstance(value, str | None)), None)
    return FileLabel(
        place=place,
        row=record.get("row") or record.get(ROW),
        content=(),
        label=given["label"] if wrong is None else None,
        fault="" if wrong is None else f"its {wrong} is not a text",
        labeller=given["labeller"] if wrong is None else None,
        time=given["time"] if wrong is None else None,
        note=(given["note"] or "") if wrong is None else "",
    )


MOST_EXAMPLES = 20


def import_labels(
    log: LabelLog, version: Version, shown: Shown, column: str, labels: Iterable[FileLabel], labeller: str
) -> ImportedLabels:
    """Append the labels of a file. The same label again adds nothing.

    Args:
        labeller: of labels without one.
    """
    finder = RowFinder(version, shown)
    unused: Counter[str] = Counter()
    examples: list[str] = []
    entries: list[Entry] = []
    time = now()
    for label in labels:
        found = _entry(label, finder, version, shown, labeller, time)
        if isinstance(found, Entry):
            entries.append(found)
        else:
            unused[found] += 1
            examples += [f"{label.place}: {found}"][: MOST_EXAMPLES - len(examples)]
    added = log.append(entries)
    return ImportedLabels(version.reference, column, added, len(entries) - added, dict(unused), tuple(examples))


def _entry(
    label: FileLabel, finder: RowFinder, version: Version, shown: Shown, labeller: str, time: str
) -> Entry | str:
    """A label with its row, or why it cannot be used."""
    if label.fault:
        return label.fault
    row, is_swapped = finder.find(label.row), False
    if row is None and label.row is None:
        row, is_swapped = finder.find_content(label.content) or (None, False)
    if row is None:
        return "no row of the version has its id" if label.row is not None else "no row of the version has its content"
    value = label.label
    if is_swapped and value in shown.columns:
        value = shown.columns[value == shown.columns[0]]
    who = label.labeller or labeller
    name = json.dumps([row, value, who, label.time, label.note])
    entry = Entry(
        id=sha256_of(name)[:32],
        row=row,
        action="label" if value is not None else "skip",
        label=value,
        labeller=who,
        time=label.time or time,
        kind=shown.kind,
        version=version.manifest.whole_reference,
        note=label.note,
    )
    try:
        entry.check()
    except ValueError as e:
        return str(e)
    return entry

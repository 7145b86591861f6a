"""Labels in files: out of a data set and into it, as JSON of Label Studio, JSON Lines or CSV.

The tasks of Label Studio hold choices of one value, and pairs: https://labelstud.io/guide/task_format.
"""

from __future__ import annotations

import base64
import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args
from xml.sax.saxutils import quoteattr

from aifx.core.digests import Sha256, sha256_of
from aifx.core.errors import DataError, UsageError
from aifx.core.files import RECORDS_LIMIT, read_input, replacing
from aifx.core.json_files import encode
from aifx.core.os_errors import naming
from aifx.core.parsing import fault_in, parse_json
from aifx.core.results import Result
from aifx.curation.labels.rows import View, VisibleRow, image_type, visible_rows
from aifx.curation.labels.store import Entry, LabelLog, LabelState, now
from aifx.data.names import ROW, SOURCE
from aifx.data.readers.rows import read_rows
from aifx.data.readers.sources import local_file
from aifx.data.row_writers import CsvText, escape_formula, unescape_formula
from aifx.data.versions.manifest import Version

LabelFormat: TypeAlias = Literal["label-studio", "jsonl", "csv"]
SUFFIXES: Mapping[str, LabelFormat] = {".json": "label-studio", ".jsonl": "jsonl", ".csv": "csv"}
FIELDS = ("row", "label", "labeller", "time", "note")
MOST_EXAMPLES = 20

LabelledRow: TypeAlias = tuple[VisibleRow, list[Entry]]
"""A row and its labels."""

_JSON = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True)
class ExportedLabels(Result):
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
class ImportedLabels(Result):
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
    version: Version, view: View, column: str, state: LabelState, path: Path, format: LabelFormat
) -> ExportedLabels:
    """Write the labels that count of the rows of a version. Raises EnvironmentFault if the file cannot be written."""
    absent = {row: len(of_row) for row, of_row in state.by_row.items()}
    needed = view if format == "label-studio" else View(view.kind, ())

    def labelled() -> Iterator[LabelledRow]:
        for row in visible_rows(version, needed, set(absent)):
            del absent[row.row]
            yield row, list(state.by_row[row.row].values())

    with naming(path), replacing(path) as file:
        for text in _ENCODERS[format](labelled(), view, column):
            file.write(encode(text))
    found = [of_row for row, of_row in state.by_row.items() if row not in absent]
    labels = sum(entry.label is not None for of_row in found for entry in of_row.values())
    return ExportedLabels(version.reference, column, str(path), format, len(found), labels, sum(absent.values()))


def _tasks(rows: Iterable[LabelledRow], view: View, column: str) -> Iterator[str]:
    before = "[\n"
    for row, entries in rows:
        data = {name: _as_json(value) for name, value in row.content.items()} | {ROW: row.row, SOURCE: row.source}
        annotations = [_annotation(entry, view, column) for entry in entries]
        yield before + _JSON.encode({"data": data, "annotations": annotations})
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"data:{image_type(value)};base64,{base64.b64encode(value).decode()}"
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def _annotation(entry: Entry, view: View, column: str) -> dict[str, Any]:
    meta = {"labeller": entry.labeller, **({"text": [entry.note]} if entry.note else {})}
    annotation: dict[str, Any] = {"was_cancelled": entry.label is None, "created_at": entry.time, "result": []}
    if "@" in entry.labeller:  # it knows annotators by their address
        annotation["completed_by"] = {"email": entry.labeller}
    if entry.label is None:
        return {**annotation, "meta": meta}
    value: dict[str, Any] = {"choices": [entry.label]}
    kind, to_name = "choices", view.columns[0]
    if view.kind == "pairs" and entry.label in view.columns:
        kind, value = "pairwise", {"selected": "left" if entry.label == view.columns[0] else "right"}
        to_name = ",".join(view.columns)
    result = {"id": entry.id[:10], "from_name": column, "to_name": to_name, "type": kind, "value": value, "meta": meta}
    return {**annotation, "result": [result]}


def labeling_config(view: View, column: str, labels: Iterable[str]) -> str:
    """The configuration of a project of Label Studio into which exported tasks can be imported."""
    tag = "Image" if view.kind == "images" else "Text"
    objects = "".join(f"<{tag} name={quoteattr(name)} value={quoteattr(f'${name}')}/>" for name in view.columns)
    if view.kind == "pairs":
        return f"<View><Pairwise name={quoteattr(column)} toName={quoteattr(','.join(view.columns))}/>{objects}</View>"
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    to_name = quoteattr(view.columns[0])
    return (
        f'<View>{objects}<Choices name={quoteattr(column)} toName={to_name} choice="single">{choices}</Choices></View>'
    )


def _lines(rows: Iterable[LabelledRow], view: View, column: str) -> Iterator[str]:
    for record in _records(rows):
        yield _JSON.encode(record) + "\n"


def _cells(rows: Iterable[LabelledRow], view: View, column: str) -> Iterator[str]:
    text = CsvText()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows({name: escape_formula(value) for name, value in record.items()} for record in _records(rows))
    yield text.getvalue()


def _records(rows: Iterable[LabelledRow]) -> Iterator[dict[str, Any]]:
    return ({name: getattr(entry, name) for name in FIELDS} for _, entries in rows for entry in entries)


_ENCODERS: Mapping[LabelFormat, Callable[[Iterable[LabelledRow], View, str], Iterator[str]]]
_ENCODERS = {"label-studio": _tasks, "jsonl": _lines, "csv": _cells}


class FileLabel(NamedTuple):
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
    content: tuple[object, ...] = ()
    label: str | None = None
    fault: str = ""
    labeller: str | None = None
    time: str | None = None
    note: str = ""


def read_labels(
    path: Path, format: LabelFormat, view: View, column: str, *, predictions: bool = False
) -> Iterator[FileLabel]:
    """The labels of a file. Raises DataError for one that cannot be read, or not in the format."""
    if format != "label-studio":
        for row in read_rows(local_file(path, format=format)):
            values = row.values
            if format == "csv":
                values = {name: unescape_formula(cell) for name, cell in values.items()}
            yield _from_record(values, row.place)
        return
    try:
        document = parse_json(read_input(path, limit=RECORDS_LIMIT))
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or str(error), f"ls -l {path}") from None
    except ValueError as e:
        raise DataError(f"{path} is not JSON", str(e), f"--format {'|'.join(get_args(LabelFormat))}") from None
    yield from _read_tasks(document, str(path), view, column, predictions=predictions)


def _from_record(record: Mapping[str, Any], place: str) -> FileLabel:
    row = record.get("row") or record.get(ROW)
    if not row:
        hint = 'give each label its row: {"row": ..., "label": ...}'
        raise DataError(f"{place} names no row", f'a label has the fields "row" (or "{ROW}") and "label"', hint)
    label, labeller, time, note = (record.get(name) or None for name in FIELDS[1:])
    for name, value in zip(FIELDS[1:], (label, labeller, time, note), strict=True):
        if not isinstance(value, str | None):
            return FileLabel(place, row, fault=f"its {name} is not a text")
    return FileLabel(place, row, label=label, labeller=labeller, time=time, note=note or "")


def _read_tasks(document: Any, place: str, view: View, column: str, *, predictions: bool) -> Iterator[FileLabel]:
    """The labels of tasks.

    Args:
        document: a task, or a list of tasks.
        predictions: also take those of models, as labels by "model:" and the model's version.

    Raises DataError if the document has something else.
    """
    for number, task in enumerate(document if isinstance(document, list) else [document], 1):
        where = f"{place}: task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict):
            why = 'a task is an object with "data"; the export format is JSON, not JSON-MIN or CSV'
            raise DataError(f"{where} is no task of Label Studio", why, "export the project as JSON")
        for annotation in _objects(task.get("annotations", task.get("completions"))):
            yield _from_annotation(annotation, None, where, data, view, column)
        for prediction in _objects(task.get("predictions")) if predictions else ():
            model = f"model:{prediction.get('model_version') or 'unknown'}"
            yield _from_annotation(prediction, model, where, data, view, column)


def _from_annotation(
    annotation: Mapping[str, Any], model: str | None, where: str, data: Mapping[str, Any], view: View, column: str
) -> FileLabel:
    results = [one for one in _objects(annotation.get("result")) if one.get("type") in ("choices", "pairwise")]
    # That of another control only if there is none of ours.
    results.sort(key=lambda one: one.get("from_name") != column)
    result = results[0] if results else {}
    meta = next((one for one in (result.get("meta"), annotation.get("meta")) if isinstance(one, dict)), {})
    text = meta.get("text")
    time = annotation.get("created_at")
    label, fault = _value(result, view)
    is_skipped = annotation.get("was_cancelled") is True or annotation.get("skipped") is True
    return FileLabel(
        place=where,
        row=data.get(ROW),
        content=tuple(data.values()),
        label=None if is_skipped else label,
        fault="" if is_skipped else fault,
        labeller=model or meta.get("labeller") or _annotator(annotation.get("completed_by")),
        time=time if isinstance(time, str) else None,
        note=" ".join(map(str, text)) if isinstance(text, list) else "",
    )


def _value(result: Mapping[str, Any], view: View) -> tuple[str | None, str]:
    """The label of a result, and why it has none."""
    value = result.get("value")
    if not isinstance(value, dict):
        return None, "it has no choice" + (" of one of two" if view.kind == "pairs" else "")
    if result["type"] == "pairwise":
        selected = value.get("selected")
        if view.kind != "pairs":
            return None, "it compares a pair: --pair A,B names the columns"
        if selected not in ("left", "right"):
            return None, f"it selects {selected!r}"
        return view.columns[selected == "right"], ""
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], str):
        return None, f"it has {len(choices) if isinstance(choices, list) else 'no'} choices instead of one"
    return choices[0], ""


def _annotator(completed_by: Any) -> str | None:
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    if isinstance(completed_by, int):
        return f"annotator-{completed_by}"
    return completed_by if isinstance(completed_by, str) else None


def _objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


class RowFinder:
    """Finds rows of a version by their ids or, of other kinds than tables and chats, by their content."""

    def __init__(self, version: Version, view: View) -> None:
        self._kind = view.kind
        self._rows: set[str] = set()
        self._by_content: dict[bytes, tuple[str, bool]] = {}
        self._by_name: dict[str, str | None] = {}
        columns = () if view.kind in ("table", "chat") else view.columns
        for row, source, content in visible_rows(version, View(view.kind, columns)):
            self._rows.add(row)
            if columns:
                values = tuple(content.values())
                self._by_content.setdefault(_digest(values), (row, False))
                if view.kind == "pairs":
                    self._by_content.setdefault(_digest(values[::-1]), (row, True))
            if view.kind == "images" and source:
                name = source.rpartition("/")[2]
                self._by_name[name] = None if name in self._by_name else row

    def find(self, label: FileLabel) -> tuple[str, bool] | None:
        """The row with the id of a label or, if it has none, the first whose content is among its values.

        And whether a pair of it is the other way round. An image is found by its bytes in a data: URL, or by the name
        of its file.
        """
        if label.row is not None:
            return (label.row, False) if isinstance(label.row, str) and label.row in self._rows else None
        texts = [value for value in label.content if isinstance(value, str)]
        if self._kind == "pairs":
            candidates = [_digest((one, two)) for at, one in enumerate(texts) for two in texts[at + 1 :]]
        elif self._kind == "images":
            candidates = [_digest((_url_data(text),)) for text in texts if text.startswith("data:")]
        else:
            candidates = [_digest((text,)) for text in texts]
        found = next((self._by_content[one] for one in candidates if one in self._by_content), None)
        if found is None and self._kind == "images":
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


def import_labels(
    log: LabelLog, version: Version, view: View, column: str, labels: Iterable[FileLabel], labeller: str
) -> ImportedLabels:
    """Append the labels of a file. The same label again adds nothing.

    Args:
        labeller: of labels without one.
    """
    finder = RowFinder(version, view)
    unused: Counter[str] = Counter()
    examples: list[str] = []
    entries: list[Entry] = []
    time = now()
    for label in labels:
        found = _entry(label, finder, version, view, labeller, time)
        if isinstance(found, Entry):
            entries.append(found)
        else:
            unused[found] += 1
            examples += [f"{label.place}: {found}"][: MOST_EXAMPLES - len(examples)]
    added = log.append(entries)
    return ImportedLabels(version.reference, column, added, len(entries) - added, dict(unused), tuple(examples))


def _entry(label: FileLabel, finder: RowFinder, version: Version, view: View, labeller: str, time: str) -> Entry | str:
    """A label with its row, or why it cannot be used."""
    if label.fault:
        return label.fault
    found = finder.find(label)
    if found is None:
        return f"no row of the version has its {'content' if label.row is None else 'id'}"
    row, is_swapped = found
    value, who = label.label, label.labeller or labeller
    if is_swapped and value in view.columns:
        value = view.columns[value == view.columns[0]]
    name = json.dumps([row, value, who, label.time, label.note])
    try:
        return Entry(
            id=sha256_of(name)[:32],
            row=row,
            action="label" if value is not None else "skip",
            label=value,
            labeller=who,
            time=label.time or time,
            kind=view.kind,
            version=version.manifest.whole_reference,
            note=label.note,
        )
    except ValueError as e:
        return fault_in(e)

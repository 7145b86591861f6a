"""The labels of a data set: one file of JSON lines for each labelled column, which only grows.

    datasets/<name>/labels/<column>.jsonl

A line is one action of a labeller on a row. The last line of a row and labeller counts. Row ids are the same in all
versions of a data set, so its labels belong to all of them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from aifx.core.errors import DataError, UsageError
from aifx.core.files import RECORDS_LIMIT, holding, open_file, read_file
from aifx.core.json_files import JsonLines, parse_line, sync_directory
from aifx.core.json_values import plain
from aifx.core.parsing import fault_in
from aifx.core.sanitize import escape_controls
from aifx.data.names import RESERVED
from aifx.data.versions.catalog import DATASET_NAME, Catalog

STEP = "label"
"""The step that writes labels into a column."""

FOLDER = "labels"

Action: TypeAlias = Literal["label", "skip", "undo"]
LabelKind: TypeAlias = Literal["text", "images", "table", "chat", "pairs"]

MOST_CHARACTERS = 200
"""Length of a label, of a labeller's name, of a line's id and of its time, at most."""

MOST_NOTE = 2000


def is_name(text: str) -> bool:
    """Whether a text can be a label or the name of a labeller."""
    return len(text) <= MOST_CHARACTERS and escape_controls(text, keep="") == text


def _checked(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"it has at most {MOST_CHARACTERS} characters, and no control characters")
    return text


Text = Annotated[str, Field(min_length=1)]
Name = Annotated[Text, AfterValidator(_checked)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Entry:
    """A line: what a labeller did to a row. Raises ValueError for values that the file may not have.

    Attributes:
        id: of the line, chosen by its sender; a second line with the same id is ignored.
        action: "undo" takes back what the labeller did to the row before.
        label: None unless `action` is "label".
        time: in UTC, such as "2026-11-28T06:30:00.123Z".
        kind: of the shown row.
        version: that was shown, as "name@<64 digits>".
    """

    id: Name
    row: Text
    action: Action
    label: Name | None
    labeller: Name
    time: Name
    kind: LabelKind
    version: Text
    note: Annotated[str, Field(max_length=MOST_NOTE)] = ""

    @model_validator(mode="after")
    def _check_label(self) -> Entry:
        if (self.label is not None) != (self.action == "label"):
            raise ValueError('label is given with the action "label" alone')
        return self


_ENTRY = TypeAdapter(Entry)


def now() -> str:
    """The time of a line."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LabelState:
    """The entries of a sequence that count: the last of each row and labeller, unless it was taken back."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.ids: dict[str, int] = {}  # the place of each entry
        self.by_row: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        self.ids[entry.id] = len(self.ids)
        of_row = self.by_row[entry.row]
        of_row.pop(entry.labeller, None)  # so that the latest is last
        if entry.action != "undo":
            of_row[entry.labeller] = entry
        if not of_row:
            del self.by_row[entry.row]

    def labels(self) -> dict[str, dict[str, str]]:
        """Label by labeller, by row."""
        labels = {
            row: {labeller: entry.label for labeller, entry in of_row.items() if entry.label is not None}
            for row, of_row in self.by_row.items()
        }
        return {row: of_row for row, of_row in labels.items() if of_row}


def label_file(catalog: Catalog, name: str, column: str) -> Path:
    """The file of a column's labels. Raises UsageError for a remote root and a name that no column can have."""
    if not DATASET_NAME.fullmatch(column) or column in RESERVED:
        why = "a column's name is letters, digits, '.', '_' and '-', and begins with a letter or digit"
        raise UsageError(f"--column {column!r} cannot name a column of labels", why, "--column label")
    if catalog.local is None:
        why = f"each label is appended to a file, and nothing can be appended in {catalog.store.url}"
        raise UsageError("labels need data sets in a folder of this machine", why, "--root FOLDER")
    return catalog.local / name / FOLDER / f"{column}.jsonl"


def read_state(catalog: Catalog, name: str, column: str) -> LabelState:
    """The labels of a column of a data set. Raises UsageError, DataError."""
    return LabelState(read_entries(label_file(catalog, name, column)))


def read_entries(path: Path) -> list[Entry]:
    """The lines of a file; none if there is no file. A torn last line is ignored.

    Raises DataError for a line that is no entry.
    """
    try:
        data = read_file(path, limit=RECORDS_LIMIT)
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")
    if parse_line(lines[-1]) is None:
        lines.pop()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_ENTRY.validate_json(line))
        except ValueError as e:
            what = f"{path}:{number} is not a line of labels"
            raise DataError(what, fault_in(e), "restore the file from a copy, or remove this line") from None
    return entries


class LabelLog:
    """The file of a column's labels, open for appending. From one thread at a time."""

    def __init__(self, path: Path, lines: JsonLines) -> None:
        self.path, self._lines = path, lines
        self.state = LabelState(read_entries(path))

    def append(self, entries: Sequence[Entry]) -> int:
        """Add entries whose ids are new. When it returns, they survive a loss of power. Returns how many are new.

        Raises EnvironmentFault if the disk refuses one; those before it count.
        """
        count = 0
        for entry in entries:
            if entry.id not in self.state.ids:
                self._lines.append(plain(entry))
                self.state.add(entry)
                count += 1
        self._lines.sync()
        return count


@contextmanager
def open_log(catalog: Catalog, name: str, column: str) -> Iterator[LabelLog]:
    """The log of a column, which no other process writes meanwhile. Raises FolderBusy, UsageError, DataError."""
    path = label_file(catalog, name, column)
    with holding(path.parent, f"the label file of {name}", "writes it"):
        with suppress(FileNotFoundError):
            data = read_file(path, limit=RECORDS_LIMIT)
            if parse_line(data[data.rfind(b"\n") + 1 :]) is not None:  # an editor may leave out the last line's end
                with open(open_file(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
                    file.write(b"\n")
        with closing(JsonLines(path)) as lines:  # cuts a line without end, which a killed process left
            sync_directory(path.parent)
            yield LabelLog(path, lines)

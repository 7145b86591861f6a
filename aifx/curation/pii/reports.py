"""The report of `aifx data pii`: number and places of each kind. The data itself is never written."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from aifx.core.errors import ExitCode
from aifx.core.files import replacing
from aifx.core.json_values import encode_json
from aifx.core.progress import report_progress
from aifx.core.results import Result
from aifx.curation.execution import DONE, OUT, Made, MadeVersion, in_processes, made_version
from aifx.curation.pii.finders import SEARCHES
from aifx.curation.pii.steps import FindPii, text_columns, unsearched_columns
from aifx.curation.profile import most_frequent
from aifx.curation.step import Limits
from aifx.curation.task_results import TaskResult
from aifx.data.versions.catalog import check_shards
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_shard

SHAPES = 3
"""Shapes of values that a report has of each kind."""


@dataclass(frozen=True)
class PiiSpan:
    """The place of personal data. The data itself is never written.

    Attributes:
        row: its `_row`.
        column: of a chat, the place of a text in it, such as "messages[1].content".
        start, end: in characters of the text.
        check: why it is taken for this kind.
    """

    row: str
    column: str
    kind: str
    start: int
    end: int
    check: str


@dataclass(frozen=True)
class PiiKind:
    """The findings of one kind.

    Attributes:
        checks: number of spans by what was checked.
        shapes: of values, the most frequent first: letters are "a" or "A", digits "0".
    """

    kind: str
    spans: int
    rows: int
    checks: Mapping[str, int]
    shapes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PiiReport(Result):
    """The document of `aifx data pii --json`.

    Attributes:
        reference: the version that was searched.
        columns: that were searched.
        unsearched: columns that may hold texts but are of another type.
        rows_found: rows with something found.
        spans: the first ones.
        made: the version that was made with --mask or --drop.
    """

    reference: str
    rows: int
    columns: tuple[str, ...]
    unsearched: tuple[str, ...]
    rows_found: int
    kinds: tuple[PiiKind, ...]
    spans: tuple[PiiSpan, ...] = ()
    made: MadeVersion | None = None

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.made is None and self.rows_found else ExitCode.OK


def search(step: FindPii, limits: Limits, most_spans: int = 0, output: Path | None = None) -> PiiReport:
    """Find all that a step looks for.

    Args:
        most_spans: of the report.
        output: a file for all spans, one JSON object per line.

    Raises DataError if a shard is damaged, OSError.
    """
    version = step.parents[0]
    check_shards(version)
    tasks = step.tasks()
    results: dict[int, TaskResult] = {}
    facts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="aifx-pii-") as folder:
        work = Path(folder)
        (work / DONE).mkdir()
        with report_progress(f"searching {version.reference}", sum(size for _, size in tasks), "bytes") as progress:
            for task, result in in_processes(step, list(range(len(tasks))), work, limits):
                results[task] = result
                facts.update(result.facts)
                progress.advance(tasks[task][1])
        shards = [work / OUT / shard.name for task in sorted(results) for shard in results[task].shards]
        with replacing(output) if output is not None else nullcontext() as file:
            spans, shapes = _read_spans(shards, most_spans, file)
    return replace(_report(version, facts, shapes), spans=tuple(spans))


def _read_spans(
    shards: Sequence[Path], most: int, file: IO[bytes] | None
) -> tuple[list[PiiSpan], dict[str, Counter[str]]]:
    """The first spans, and the rows by shape and kind. All spans are written to the file."""
    spans: list[PiiSpan] = []
    shapes: dict[str, Counter[str]] = {}
    for one in (one for shard in shards for one in read_shard(shard).to_pylist()):
        shapes.setdefault(one["kind"], Counter())[one.pop("shape")] += 1
        if file is not None:
            file.write(f"{encode_json(one)}\n".encode())
        if len(spans) < most:
            spans.append(PiiSpan(**one))
    return spans, shapes


def report_made(version: Version, made: Made) -> PiiReport:
    """The report of a step that removed personal data."""
    return replace(_report(version, made.version.manifest.facts, {}), made=made_version(made))


def _report(version: Version, facts: Mapping[str, int], shapes: Mapping[str, Counter[str]]) -> PiiReport:
    """The report of facts that a step counted, without spans."""
    kinds = []
    for kind in (search.kind for search in SEARCHES):
        begin = f"found.{kind}."
        checks = {name.removeprefix(begin): count for name, count in facts.items() if name.startswith(begin)}
        if checks:
            most = tuple(most_frequent(shapes.get(kind, {}), SHAPES))
            rows = facts[f"rows_found.{kind}"]
            kinds.append(PiiKind(kind, sum(checks.values()), rows, dict(sorted(checks.items())), most))
    manifest, rows_found = version.manifest, facts.get("rows_found", 0)
    columns = text_columns(manifest), unsearched_columns(manifest)
    return PiiReport(version.reference, manifest.rows, *columns, rows_found, tuple(kinds))

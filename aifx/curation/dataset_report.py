"""The report of a version, as a page that can be mailed: steps, licences, personal data, duplicates and drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FixedLocator, MaxNLocator

from aifx.core.errors import DataError, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.pages import render
from aifx.core.pages.canvas import CARD, Picture, canvas, ticks
from aifx.core.plurals import counted
from aifx.core.results import Result
from aifx.curation.column_drift import LEAST_ROWS, ColumnDrift, compare_columns
from aifx.curation.column_samples import sample_columns
from aifx.curation.history import ancestors, settings_text
from aifx.curation.profile import EDGES, Histogram, Lengths, Profile, most_frequent, read_profile
from aifx.data.names import CLUSTER, RESERVED, ROW, SOURCE, Kind
from aifx.data.versions.catalog import Catalog, check_own_rows
from aifx.data.versions.made_steps import MAKE, made_steps
from aifx.data.versions.manifest import Manifest, Version
from aifx.data.versions.sql import RowTable, identifier, open_tables, quoted

EXAMPLES = 3
EXAMPLE_CHARACTERS = 300
MOST_RULES = 20
REMOVES_PERSONAL_DATA = ("pii", "erase")
"""Steps that take out what must not be shown."""


@dataclass(frozen=True)
class DroppedRow:
    """An example of what a rule dropped.

    Attributes:
        text: the beginning of its text, or of its columns.
        twin: the id of the row that it duplicates, and the beginning of that row's text.
    """

    row: str
    source: str | None
    text: str
    twin: str | None
    twin_text: str | None


@dataclass(frozen=True)
class ReportedStep:
    """A step on the way to the version.

    Attributes:
        rows: of the version that it made.
        examples: of dropped rows, by rule.
    """

    reference: str
    step: str
    settings: Mapping[str, Any]
    rows: int
    dropped_by: Mapping[str, int]
    facts: Mapping[str, Any]
    examples: Mapping[str, Sequence[DroppedRow]]


@dataclass(frozen=True)
class LicensedRows:
    """Rows by licence of their sources."""

    license: str
    sources: int
    rows: int


@dataclass(frozen=True)
class Duplicates:
    """The duplicates that steps dropped, and those that are left.

    Attributes:
        dropped: rows that a step dropped because they resemble another.
        clusters: of more than one row that the version still has; None without the column `_cluster`.
        clustered_rows: rows in these clusters.
        distinct_texts: None if they were not counted.
        is_estimate: whether that has a standard error of 2.2 %.
    """

    dropped: int
    clusters: int | None
    clustered_rows: int | None
    distinct_texts: int | None
    is_estimate: bool


@dataclass(frozen=True)
class DatasetReport(Result):
    """The document of `aifx data report --json`.

    Attributes:
        steps: from the sources to the version.
        personal: rows in which a step found personal data, by kind.
        examples_hidden_by: the step because of which no example is shown.
        against: the version that drift is measured against; None if there is none.
    """

    reference: str
    kind: Kind
    rows: int
    size_bytes: int
    num_sources: int
    quarantined: int
    profile: Profile
    parent_profile: Profile | None
    steps: tuple[ReportedStep, ...]
    licenses: tuple[LicensedRows, ...]
    personal: Mapping[str, int]
    duplicates: Duplicates
    examples_hidden_by: str | None
    against: str | None
    drift: tuple[ColumnDrift, ...]

    @property
    def page_name(self) -> str:
        """The name of the file with the report, unless another is given."""
        return f"{self.reference.replace('@', '-')}.html"


def read_report(catalog: Catalog, reference: str, examples: int | None, against: str | None) -> DatasetReport:
    """Gather the report of a version, which is no mix.

    Args:
        examples: dropped rows to show by rule. None shows some, unless a step removed personal data.
        against: another version than the parent to measure drift against.

    Raises UsageError, DataError if a file is damaged.
    """
    version = catalog.open(reference)
    manifest = version.manifest
    check_own_rows(manifest, "aifx data report")
    steps = [step for one in ancestors(catalog, manifest.whole_reference) for step in enumerate(made_steps(one))]
    chain = [one for _, one in steps]
    hidden_by = next((one.step.name for one in chain if one.step.name in REMOVES_PERSONAL_DATA), None)
    if examples is not None:
        hidden_by = None
    count = examples if examples is not None else 0 if hidden_by else EXAMPLES
    profile = read_profile(catalog, version.reference).profile
    other = _other(catalog, manifest, against)
    other_profile = read_profile(catalog, other.reference).profile if other is not None else None
    with open_tables({"data": RowTable(version)}) as connection:
        licenses, duplicates = _licenses(manifest, connection), _duplicates(manifest, chain, profile, connection)
    return DatasetReport(
        reference=version.reference,
        kind=manifest.kind,
        rows=manifest.rows,
        size_bytes=manifest.bytes,
        num_sources=len(manifest.sources),
        quarantined=manifest.quarantined_rows,
        profile=profile,
        parent_profile=other_profile,
        steps=tuple(_step(catalog, one, number, count) for number, one in steps),
        licenses=licenses,
        personal=_personal(chain),
        duplicates=duplicates,
        examples_hidden_by=hidden_by,
        against=other.reference if other is not None else None,
        drift=measure_drift(other, version) if other is not None else (),
    )


def _other(catalog: Catalog, manifest: Manifest, against: str | None) -> Version | None:
    if against is not None:
        return catalog.open(against)
    return _found(catalog, manifest.parents[0]) if manifest.parents else None


def _found(catalog: Catalog, reference: str) -> Version | None:
    try:
        return catalog.open(reference)
    except (UsageError, DataError):  # it was deleted
        return None


def _step(catalog: Catalog, manifest: Manifest, number: int, examples: int) -> ReportedStep:
    """A step, which has this number among those that made its version together."""
    found: dict[str, list[DroppedRow]] = {}
    parents = manifest.row_parents
    if examples and manifest.dropped and len(parents) == 1 and (parent := _found(catalog, *parents)):
        made = catalog.open(manifest.whole_reference)
        which = f"step = {number}" if made.manifest.step.name == MAKE else "true"
        found = _examples(made, parent, which, examples)
    return ReportedStep(
        reference=manifest.reference,
        step=manifest.step.name,
        settings=manifest.step.settings,
        rows=manifest.rows,
        dropped_by=most_frequent(manifest.dropped_by),
        facts=manifest.facts,
        examples=found,
    )


def _examples(made: Version, parent: Version, which: str, count: int) -> dict[str, list[DroppedRow]]:
    """The first dropped rows of each rule, as they were in the parent, of those that the condition `which` chooses."""
    tables = {"dropped": RowTable(made, "dropped"), "before": RowTable(parent)}
    with open_tables(tables) as connection:
        connection.execute(
            f"""CREATE TABLE chosen AS SELECT {ROW}, rule, twin FROM dropped WHERE rule IS NOT NULL AND {which}
            QUALIFY row_number() OVER (PARTITION BY rule ORDER BY {ROW}) <= {count}"""
        )
        text, twin_text = (_beginning(parent.manifest, table) for table in ("before", "twins"))
        source = f"before.{SOURCE}" if SOURCE in parent.manifest.columns else "NULL"
        rows = connection.execute(
            f"""SELECT chosen.rule, chosen.{ROW}, {source}, {text}, chosen.twin, {twin_text}
            FROM chosen JOIN before USING ({ROW}) LEFT JOIN before AS twins ON twins.{ROW} = chosen.twin
            ORDER BY 1, 2"""
        ).fetchall()
    found: dict[str, list[DroppedRow]] = {}
    for rule, row, origin, beginning, twin, of_twin in rows:
        found.setdefault(rule, []).append(DroppedRow(row, origin, beginning or "", twin, of_twin if twin else None))
    return dict(sorted(found.items(), key=lambda item: -made.manifest.dropped_by.get(item[0], 0))[:MOST_RULES])


def _beginning(manifest: Manifest, table: str) -> str:
    """SQL for the beginning of a row's text, or of its columns."""
    if "text" in manifest.columns:
        return f"left({table}.text, {EXAMPLE_CHARACTERS})"
    names = [name for name, kind in manifest.columns.items() if name not in RESERVED and "binary" not in kind]
    parts = [f"{quoted(f'{name}=')} || {table}.{identifier(name)}::VARCHAR" for name in names[:20]]
    return f"left(concat_ws(', ', {', '.join(parts) or 'NULL'}), {EXAMPLE_CHARACTERS})"


def _licenses(manifest: Manifest, connection: Any) -> tuple[LicensedRows, ...]:
    files = Counter(source.license for source in manifest.sources)
    rows: Counter[str] = Counter()
    if SOURCE in manifest.columns:
        licenses = {source.name: source.license for source in manifest.sources}
        for source, count in connection.execute(f"SELECT {SOURCE}, count(*) FROM data GROUP BY 1").fetchall():
            rows[licenses.get(source, "unknown")] += count
    names = sorted({*files, *rows}, key=lambda name: (-rows[name], name))
    return tuple(LicensedRows(name, files[name], rows[name]) for name in names)


def _personal(chain: Sequence[Manifest]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for manifest in chain:
        if manifest.step.name == "pii":
            prefix = "rows_found."
            found |= Counter({k.removeprefix(prefix): v for k, v in manifest.facts.items() if k.startswith(prefix)})
    return dict(found.most_common())


def _duplicates(manifest: Manifest, chain: Sequence[Manifest], profile: Profile, connection: Any) -> Duplicates:
    clusters = clustered = None
    if CLUSTER in manifest.columns:
        sizes = f"SELECT count(*) AS n FROM data WHERE {CLUSTER} IS NOT NULL GROUP BY {CLUSTER} HAVING n > 1"
        counted = f"SELECT count(*), coalesce(sum(n), 0)::BIGINT FROM ({sizes})"
        clusters, clustered = connection.execute(counted).fetchone()
    text = profile.columns.get("text")
    return Duplicates(
        dropped=sum(sum(one.dropped_by.values()) for one in chain if one.step.name == "dedupe"),
        clusters=clusters,
        clustered_rows=clustered,
        distinct_texts=text.distinct if text is not None else None,
        is_estimate=text is not None and text.is_estimate,
    )


def measure_drift(before: Version, after: Version) -> tuple[ColumnDrift, ...]:
    """The drift of each column that both versions have, none if one has fewer than 100 rows."""
    both = [name for name, kind in before.manifest.columns.items() if after.manifest.columns.get(name) == kind]
    if min(before.manifest.rows, after.manifest.rows) < LEAST_ROWS:
        return ()
    (old, new), lengths = sample_columns((before, after), both)
    return compare_columns(old, new, lengths=lengths)


BAR_HEIGHT = 22
MOST_BARS = 12
MOST_COLUMNS = 6
UNITS = {
    "characters": ("Length of the texts", "in characters"),
    "words": ("Words of the texts", "in words"),
    "messages": ("Length of the chats", "in messages"),
    "bytes": ("Size of the pictures", "in bytes"),
}


def dataset_page(report: DatasetReport) -> str:
    """The page of a version."""
    return render(
        "aifx.curation",
        "dataset.html",
        title=report.reference,
        command=f"aifx data report {report.reference}",
        report=report,
        tiles=dict(_tiles(report)),
        pictures=list(_pictures(report)),
        settings=settings_text,
        size=readable_bytes,
        cut=lambda text: text if len(text) < EXAMPLE_CHARACTERS else f"{text}…",
    )


def _tiles(report: DatasetReport) -> Iterator[tuple[str, str]]:
    yield "rows", f"{report.rows:,}"
    yield "on disk", readable_bytes(report.size_bytes)
    yield "sources" if report.num_sources != 1 else "source", f"{report.num_sources:,}"
    dropped = sum(sum(step.dropped_by.values()) for step in report.steps)
    yield "rows dropped by all steps", f"{dropped:,}"
    if report.quarantined:
        yield "rows that could not be read", f"{report.quarantined:,}"
    if report.duplicates.distinct_texts is not None:
        about = "about " if report.duplicates.is_estimate else ""
        yield "distinct texts", f"{about}{report.duplicates.distinct_texts:,}"
    if report.personal:
        yield "kinds of personal data found", f"{len(report.personal):,}"


def _pictures(report: DatasetReport) -> Iterator[Picture]:
    if len(report.steps) > 1:
        rows = {f"{step.step} {step.reference.partition('@')[2][:4]}": step.rows for step in report.steps}
        yield _bars("steps", rows, "Rows after each step", "from the sources to this version")
    for unit, lengths in report.profile.lengths.items():
        title, caption = UNITS[unit]
        before = report.parent_profile.lengths.get(unit) if report.parent_profile is not None else None
        if lengths.rows:
            yield _lengths(unit, lengths, before, title, f"{caption}, of {counted(lengths.rows, 'row')}")
    rules = sum((Counter(step.dropped_by) for step in report.steps), Counter[str]())
    if rules:
        yield _bars("rules", most_frequent(rules, MOST_BARS), "Dropped rows", f"by rule{_rest(rules)}")
    for name, title in (("language", "Languages"), ("label", "Labels"), ("_split", "Splits"), ("_source", "Sources")):
        column = report.profile.columns.get(name)
        if column is not None and column.values:
            bars = most_frequent(column.values, MOST_BARS)
            yield _bars(name, bars, title, f"rows{_rest(column.values, column.distinct)}")
    numbers = [(name, one.histogram) for name, one in report.profile.columns.items() if one.histogram is not None]
    for name, histogram in numbers[:MOST_COLUMNS]:
        yield _histogram(name, histogram)


def _rest(values: Mapping[str, int], distinct: int | None = None) -> str:
    more = (distinct if distinct is not None else len(values)) - MOST_BARS
    return f"; {more:,} more are not drawn" if more > 0 else ""


def _bars(name: str, values: Mapping[str, int], title: str, caption: str) -> Picture:
    """A row for each value."""
    right = max([*values.values(), 1])
    with canvas(f"bars-{name}", height=34 + BAR_HEIGHT * len(values)) as on:
        for row, (value, count) in enumerate(values.items()):
            on.bar(row, 0, count, right, "C0", f"{count:,}", f"{value}: {count:,}")
        on.rows([value or "(empty)" for value in values])
        on.axes.set_ylim(len(values) - 0.4, -0.6)
        on.axes.set_xlim(0, right)
        ticks(on.axes.xaxis, MaxNLocator(4, integer=True), short)
        return on.picture(title, caption)


def _lengths(name: str, lengths: Lengths, before: Lengths | None, title: str, caption: str) -> Picture:
    """Shares of rows by length, on an axis of doublings."""
    every = [*lengths.bins, *(before.bins if before is not None else ())]
    edges = [edge for edge in EDGES if min(every) <= edge <= max(every)]
    with canvas(f"lengths-{name}") as on:
        shares = [lengths.bins.get(edge, 0) / lengths.rows for edge in edges]
        for at, (edge, share) in enumerate(zip(edges, shares, strict=True)):
            (bar,) = on.axes.bar(at, share, width=1, color="C0", edgecolor=CARD, linewidth=0.5)
            on.tip(bar, f"from {edge:,}: {share:.1%}")
        on.key("this version", 0)
        if before is not None and before.rows:
            old = [before.bins.get(edge, 0) / before.rows for edge in edges]
            on.axes.step(range(len(edges)), old, where="mid", color="C1", lw=1.4)
            on.key("the version before", 1)
        step = -(-len(edges) // 6)
        ticks(on.axes.xaxis, FixedLocator(list(range(0, len(edges), step))), lambda at: short(edges[round(at)]))
        ticks(on.axes.yaxis, MaxNLocator(4), lambda value: f"{value:.0%}")
        on.axes.grid(visible=False, axis="x")
        return on.picture(title, caption)


def _histogram(name: str, histogram: Histogram) -> Picture:
    with canvas(f"histogram-{name}") as on:
        for left, right, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
            (bar,) = on.axes.bar(
                left, count, width=right - left, align="edge", color="C0", edgecolor=CARD, linewidth=0.5
            )
            on.tip(bar, f"{left:.4g} to {right:.4g}: {count:,}")
        ticks(on.axes.xaxis, MaxNLocator(5), lambda value: f"{value:g}")
        ticks(on.axes.yaxis, MaxNLocator(4, integer=True), short)
        on.axes.grid(visible=False, axis="x")
        return on.picture(name, f"rows by value, of {counted(histogram.rows, 'row')}")


def short(value: float) -> str:
    """1,200 as 1.2k."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"

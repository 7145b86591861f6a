"""The step that gives rows the outcomes of their predictions: a version to train on, and what is known about outcomes.

Each outcome belongs to the newest prediction of its key that is not later than it, which the join of `aifx data join`
finds, or to the prediction whose id it has:

    rows          of a data set, by the column that they were scored by
    predictions   of `aifx score`: each has the key of a row
    outcomes      each has the key of a row, or the id of a prediction, and the time at which it was known
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from pyarrow import Table

from aifx.core.errors import DataError, UsageError
from aifx.core.plurals import counted
from aifx.curation.joining import FOUND, Join, TimeColumn, kind_of, row_number, schema_of
from aifx.curation.step import DECISIONS, DecidedStep, Limits, Outcome, set_column, write_decisions
from aifx.data.names import PREDICTION, ROW
from aifx.data.readers.arrow import pa, pq
from aifx.data.versions.catalog import FEEDBACK
from aifx.data.versions.manifest import Manifest, ShardFile, Source, StepRecord, Version
from aifx.data.versions.shards import dropped_rows
from aifx.data.versions.sql import RowTable, batches_of, check_told_apart, identifier, open_tables, quoted
from aifx.feedback.outcomes.inputs import Input, Predictions, table_version
from aifx.feedback.outcomes.measures import has_value, measure, metrics_sql
from aifx.feedback.scoring.predictions import ID, OWN

PART_ROWS = 1 << 17
MISSING, CONFLICT = "missing", "conflict"
"""The rules that leave rows out: no outcome is known, or two that contradict each other."""

AGES_S = {"1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
"""Bounds of the ages by which missing outcomes are counted."""

KEY_KINDS = ("text", "whole number", "date", "truth value")
OLDER = "older"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
LAST_TIME = "9999-12-31"
"""The time of outcomes without one, which belong to a prediction by its id, whenever they were known."""


@dataclass(frozen=True)
class Feedback(DecidedStep):
    """Keeps the rows of its first parent whose outcome is known, with it and the prediction.

    Attributes:
        predictions, outcomes: what is joined. A version among them is a parent, too.
        key: the column of the outcomes: one that the rows have, too, or `prediction_id`.
        rows_key: the column of the rows with the keys of the predictions.
        time: the column with the times of the outcomes; None if they are joined by id.
        zone: of times without a zone, such as "Europe/Berlin".
        label: the column with the outcome, which the version gets.
        license: of predictions and outcomes that are no version.
        now: later times are a mistake.
    """

    predictions: Predictions
    outcomes: Input
    key: str
    rows_key: str
    time: str | None
    zone: str | None
    label: str
    license: str
    now: datetime

    name = FEEDBACK
    dropped_columns: ClassVar[Mapping[str, str]] = {}

    @property
    def rows(self) -> Version:
        return self.parents[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "predictions": self.predictions.name,
            "predictions_sha256": self.predictions.digest,
            "outcomes": self.outcomes.name,
            "outcomes_sha256": self.outcomes.digest,
            "key": self.key,
            "rows_key": self.rows_key,
            "time": self.time,
            "zone": self.zone,
            "label": self.label,
        }

    @property
    def task_settings(self) -> Mapping[str, Any]:
        return {"label": self.label}

    @property
    def added_columns(self) -> Mapping[str, str]:
        return {self.label: self.outcomes.version.manifest.columns[self.label], PREDICTION: "struct"}

    @property
    def sources(self) -> tuple[Source, ...]:
        own = [one.source(self.license) for one in (self.predictions, self.outcomes) if not one.is_stored]
        return (*super().sources, *own)

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        inputs = {"rows": self.rows, "predictions": self.predictions.version, "outcomes": self.outcomes.version}
        tables = {name: RowTable(version, is_numbered=name == "rows") for name, version in inputs.items()}
        with open_tables(tables, limits.spare_bytes // 2) as connection:
            self._check_rows(connection)
            keyed = _written(connection, self._keyed_sql(), "predictions", work)
            self._check_keyed(keyed, limits)
            known = _written(connection, self._known_sql(connection), "outcomes", work)
        if not known.manifest.rows:
            why = f"{self.key!r} and {self.label!r} are empty in all {self.outcomes.version.manifest.rows:,} rows"
            raise DataError(f"{self.outcomes.name} has no outcome", why, "--label COLUMN, --key COLUMN")
        self._check_known(known, limits)
        join = Join((known, keyed), ("key",), "time", "time", ())
        (work / "join").mkdir()
        join.prepare(work / "join", limits)
        found = work / "join" / DECISIONS / FOUND
        tables = {"predictions": tables["predictions"], "keyed": RowTable(keyed), "known": RowTable(known)}
        tables["found"] = RowTable(_version_of(found))
        with open_tables(tables, limits.spare_bytes // 2) as connection:
            connection.execute(_MATCHED.format(time=f"nullif(known.time, TIMESTAMPTZ '{LAST_TIME}')"))
            facts = self._facts(connection)
            if not facts["joined"]:
                raise self._no_match(connection)
            metrics = metrics_sql(self.predictions.version.manifest.columns, "p", "o.label")
            connection.execute(_judged_sql(metrics))
            facts |= measure(connection, list(metrics))
            reader = connection.sql(self._decisions_sql()).to_arrow_reader(PART_ROWS)
            for part, batch in enumerate(batches_of(reader)):
                write_decisions(work, pa.Table.from_batches([batch]), part)
        return facts

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        is_dropped = decisions["rule"].is_valid()
        dropped, kept = decisions.filter(is_dropped), decisions.filter(pa.compute.invert(is_dropped))
        found = rows.take(kept["row"])
        for name, column in ((self.label, "label"), (PREDICTION, "prediction")):
            found = set_column(found, name, kept[column].combine_chunks())
        return Outcome(found, dropped_rows(rows[ROW].take(dropped["row"]), dropped["rule"]))

    def _check_rows(self, connection: Any) -> None:
        """Raise UsageError for columns that are not there or hold no keys, DataError for rows with the same key."""
        keys_of_rows = dict.fromkeys(one for one in (self.rows_key, self.key) if one in self.rows.manifest.columns)
        for version, keys in ((self.rows, [*keys_of_rows]), (self.outcomes.version, [self.key])):
            columns = version.manifest.columns
            named = filter(None, (*keys, self.time, self.label))
            check_told_apart([one for one in named if one in columns], version.manifest)
            for name in keys:
                if kind_of(schema_of(version).field(name).type) not in KEY_KINDS:
                    what = f"{name!r} of {version.manifest.name} holds {columns[name]}"
                    raise UsageError(what, "keys are texts, whole numbers, dates or truth values", "--key COLUMN")
        if self.rows_key == ROW:
            return
        key = identifier(self.rows_key)
        same = f"SELECT {key}, min({ROW}), max({ROW}) FROM rows WHERE {key} IS NOT NULL GROUP BY 1 HAVING count(*) > 1"
        if (twice := connection.execute(f"{same} LIMIT 1").fetchone()) is not None:
            what = f"{self.rows_key!r} does not tell the rows of {self.rows.reference} apart"
            why = f"{twice[0]!r} is that of {twice[1]} and {twice[2]}, and predictions have it as their key"
            raise DataError(what, why, "--rows NAME@VERSION with unique values there, or --rows-key COLUMN")

    def _keyed_sql(self) -> str:
        """SQL for the predictions of rows that are there: the id, the number of the row, the key and the time."""
        rows = self.rows.manifest.columns
        key = f"rows.{identifier(self.key)}" if self.key in rows else "predictions.key"
        key = f"predictions.{ID}" if self.key == ID else key
        return f"""
            SELECT predictions.{ID} AS {ROW}, {row_number(self.rows)} AS n, {key}::VARCHAR AS key,
                predictions.scored_at::TIMESTAMPTZ AS time
            FROM predictions JOIN rows ON predictions.key = rows.{identifier(self.rows_key)}::VARCHAR"""

    def _known_sql(self, connection: Any) -> str:
        """SQL for the outcomes that have a key and a value."""
        key, label = identifier(self.key), identifier(self.label)
        time = f"TIMESTAMPTZ '{LAST_TIME}'"
        if self.time is not None:
            time = self._times(connection)
        return f"""
            SELECT {key}::VARCHAR AS key, {time} AS time, {label} AS label
            FROM outcomes WHERE {key} IS NOT NULL AND {has_value(label)}"""

    def _times(self, connection: Any) -> str:
        """SQL for the times of the outcomes. Raises UsageError for those that cannot be compared with others."""
        assert self.time is not None
        found = TimeColumn.find(connection, "outcomes", self.outcomes.version, self.time)
        if found.kind == "time with a zone":
            return f"{found.sql}::TIMESTAMPTZ"
        if found.kind not in ("time", "date"):
            held = found.held_by(self.outcomes.version)
            what = f"{self.outcomes.name} holds {held} in {self.time!r}"
            raise UsageError(what, "an outcome has the time at which it was known", "--time COLUMN")
        if self.zone is None:
            what = f"the times in {self.time!r} of {self.outcomes.name} have no zone"
            why = "predictions have one, and without it aifx cannot know which of two times is later"
            raise UsageError(what, why, "--zone UTC, or --zone Europe/Berlin")
        time = found.sql if found.kind == "time" else f"({found.sql} + 1)::TIMESTAMP"  # known at the end of the day
        return f"timezone({quoted(self.zone)}, {time})"

    def _check_keyed(self, keyed: Version, limits: Limits) -> None:
        """Raise DataError if no prediction is of a row, if one is of the future, or if two of a key are as new."""
        name = self.predictions.name
        if not keyed.manifest.rows:
            why = f"no key of a prediction is in its column {self.rows_key!r}"
            if self.predictions.scored:
                why += f"; what was scored is {', '.join(source for source, _ in self.predictions.scored)}"
            hint = "--rows NAME of the rows that were scored, --rows-key COLUMN of the key"
            raise DataError(f"{name} has no prediction of a row of {self.rows.reference}", why, hint)
        with open_tables({"keyed": RowTable(keyed)}, limits.spare_bytes // 2) as connection:
            newest, id = connection.execute(f"SELECT max(time), arg_max({ROW}, time) FROM keyed").fetchone()
            if newest > self.now:
                why = f"it was made at {newest:%Y-%m-%d %H:%M:%S}, and now is {self.now:%Y-%m-%d %H:%M:%S} UTC"
                raise DataError(f"prediction {id} of {name} is of the future", why, "correct the clock: date -u")
            same = "SELECT key, time, min(n), max(n) FROM keyed GROUP BY 1, 2 HAVING count(DISTINCT n) > 1 LIMIT 1"
            if (twice := connection.execute(same).fetchone()) is not None:
                what = f"--key {self.key} does not tell predictions apart"
                why = f"two rows with {twice[0]!r} were scored at {twice[1]:%Y-%m-%d %H:%M:%S}"
                raise DataError(what, why, f"--key COLUMN with a value for each row, or --key {ID}")

    def _check_known(self, known: Version, limits: Limits) -> None:
        """Raise DataError for an outcome of the future."""
        with open_tables({"known": RowTable(known)}, limits.spare_bytes // 2) as connection:
            sql = f"SELECT max(time), arg_max(key, time) FROM known WHERE time < TIMESTAMPTZ '{LAST_TIME}'"
            newest, key = connection.execute(sql).fetchone()
        if newest is not None and newest > self.now:
            why = f"its {self.time!r} is {newest:%Y-%m-%d %H:%M:%S}, and now is {self.now:%Y-%m-%d %H:%M:%S} UTC"
            what = f"the outcome of {self.key} {key!r} in {self.outcomes.name} is of the future"
            raise DataError(what, why, "correct the row, name another --time, or give the zone of its times: --zone")

    def _no_match(self, connection: Any) -> DataError:
        """No outcome is one of a prediction."""
        key, other = (connection.execute(f"SELECT min(key) FROM {name}").fetchone()[0] for name in ("known", "keyed"))
        early = connection.execute("SELECT count(*) FROM known WHERE key IN (SELECT key FROM keyed)").fetchone()[0]
        why = f"an outcome has the {self.key} {key!r}, and a prediction has {other!r}"
        if early:
            why = f"{counted(early, 'outcome')} with the key of a prediction were known before it was made"
        hint = "--key COLUMN, --time COLUMN, or --rows NAME of the rows that were scored"
        return DataError(f"no outcome of {self.outcomes.name} belongs to one of {self.predictions.name}", why, hint)

    def _facts(self, connection: Any) -> dict[str, Any]:
        """What is known about outcomes. Ages are those at the newest time of an outcome or a prediction."""

        def row(sql: str) -> Any:
            return connection.execute(sql).fetchone()

        lateness = ", ".join(f"round(quantile_cont(epoch(time - scored), {share}), 3)" for share in QUANTILES.values())
        joined, conflicts, doubles = row(
            "SELECT count(*) FILTER (labels = 1), count(*) FILTER (labels > 1), "
            "coalesce(sum(copies - 1) FILTER (labels = 1), 0)::BIGINT FROM outcomes_of"
        )
        late = row(
            f"SELECT {lateness} FROM first_outcome SEMI JOIN outcomes_of AS o ON o.id = first_outcome.id "
            "AND o.labels = 1"
        )
        newest = "SELECT max(time) FROM (SELECT time FROM keyed UNION ALL SELECT time FROM matched)"
        bounds = " ".join(f"WHEN age <= {bound} THEN {quoted(name)}" for name, bound in AGES_S.items())
        ages = dict(
            connection.execute(
                f"SELECT CASE {bounds} ELSE {quoted(OLDER)} END, count(*) FROM "
                f"(SELECT epoch(({newest}) - max(time)) AS age FROM keyed "
                "WHERE n NOT IN (SELECT n FROM outcomes_of) GROUP BY n) GROUP BY 1"
            ).fetchall()
        )
        early, strange = row(
            "SELECT count(*) FILTER (key IN (SELECT key FROM keyed)), count(*) FROM known "
            "SEMI JOIN (SELECT row FROM found WHERE predictions_row IS NULL) AS f ON f.row = known._row::BIGINT"
        )
        predictions, outcomes = self.predictions.version.manifest.rows, self.outcomes.version.manifest.rows
        kept = row("SELECT count(*), count(DISTINCT n) FROM keyed")
        known = row("SELECT count(*) FROM known")[0]
        return {
            "predictions": predictions,
            "predictions_without_row": predictions - kept[0],
            "records_left_out": self.predictions.left_out,
            "scored_rows": kept[1],
            "joined": joined,
            "missing": sum(ages.values()),
            "missing_by_age": {name: ages.get(name, 0) for name in (*AGES_S, OLDER)},
            "conflicts": conflicts,
            "outcomes": outcomes,
            "outcomes_empty": outcomes - known,
            "outcomes_doubled": doubles,
            "outcomes_early": early,
            "outcomes_unknown": strange - early,
            "late_s": None if late[0] is None else dict(zip(QUANTILES, late, strict=True)),
        }

    def _decisions_sql(self) -> str:
        own = {"id": ID, "model": "model", "request": "request", "scored_at": "scored_at"}
        fields = [f"{name} := p.{column}" for name, column in own.items()]
        fields.append("known_at := first_outcome.time")
        others = [name for name in self.predictions.version.manifest.columns if name not in (*OWN.names, ROW)]
        fields += [f"{identifier(name)} := p.{identifier(name)}" for name in others]
        return f"""
            SELECT newest.n AS row, o.label, struct_pack({", ".join(fields)}) AS prediction,
                CASE WHEN o.labels IS NULL THEN '{MISSING}' WHEN o.labels > 1 THEN '{CONFLICT}' END AS rule
            {_CHOSEN} LEFT JOIN first_outcome ON first_outcome.id = o.id
            ORDER BY newest.n"""


# Each scored row with its prediction that has an outcome, otherwise the newest one.
_CHOSEN = f"""
    FROM (SELECT n, arg_max({ROW}, time) AS id FROM keyed GROUP BY n) AS newest
    LEFT JOIN outcomes_of AS o ON o.n = newest.n
    JOIN predictions AS p ON p.{ID} = coalesce(o.id, newest.id)"""

_MATCHED = """
    CREATE TEMP TABLE matched AS
    SELECT keyed._row AS id, keyed.n, keyed.time AS scored, known.label, {time} AS time
    FROM found JOIN known ON found.row = known._row::BIGINT JOIN keyed ON keyed._row = found.predictions_row;
    CREATE TEMP TABLE outcomes_of AS
    SELECT n, count(DISTINCT label) AS labels, count(*) - count(DISTINCT id) + 1 AS copies,
        arg_max(id, scored) AS id, min(label) AS label
    FROM matched GROUP BY n;
    CREATE TEMP TABLE first_outcome AS SELECT id, min(scored) AS scored, min(time) AS time FROM matched GROUP BY id;
"""


def _judged_sql(metrics: Mapping[str, str]) -> str:
    """SQL that makes the table that `measure` reads."""
    found = "".join(f", CASE WHEN o.labels = 1 THEN {sql} END AS {name}" for name, sql in metrics.items())
    return f"""
        CREATE TEMP TABLE judged AS
        SELECT p.scored_at::TIMESTAMPTZ AS scored, p.model, coalesce(o.labels = 1, false) AS is_known{found}
        {_CHOSEN}"""


def _written(connection: Any, sql: str, name: str, work: Path) -> Version:
    """The rows of a query as a version in a folder of its own."""
    reader = connection.sql(sql).to_arrow_reader(PART_ROWS)
    parts: Iterator[Table] = (pa.Table.from_batches([batch]) for batch in batches_of(reader))
    (work / name).mkdir()
    return table_version(name, parts, work / name)


def _version_of(path: Path) -> Version:
    """The rows of a Parquet file as a version."""
    metadata = pq.read_metadata(path)
    file = ShardFile(path.name, "", metadata.num_rows, path.stat().st_size)
    columns = {field.name: str(field.type) for field in metadata.schema.to_arrow_schema()}
    manifest = Manifest(
        path.stem, "table", columns, file.rows, file.bytes, (file,), (), {}, (), StepRecord(FEEDBACK, {}), ()
    )
    return Version(path.parent, manifest)

"""Predictions of a model for the rows of a source that a target has none of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.requests import RequestDone, find_request
from aifx.verbs.arguments import Settings, Step, StrPath, overrides
from aifx.verbs.catalogs import row_files
from aifx.verbs.models import is_reference
from aifx.verbs.prediction import load

if TYPE_CHECKING:
    from aifx.feedback.scoring.database_source import Selection
    from aifx.feedback.scoring.database_target import DatabaseTable
    from aifx.feedback.scoring.file_target import Folder
    from aifx.feedback.scoring.scoring import Scored
    from aifx.feedback.scoring.sources import FileSource


def score(
    model: StrPath,
    source: str,
    target: str,
    *,
    key: str | None = None,
    query: str | None = None,
    since_last: bool = False,
    growing: str | None = None,
    request: str | None = None,
    step: Step = None,
    settings: Settings = None,
    trust_code: str | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> Scored:
    """Add the predictions of a model for each row of a source that a target has none of.

    A prediction has an id, which is a function of the model version, the key and the row. A target has each id once,
    however often calls are repeated, killed or made at the same time.

    Args:
        model: the run's folder, or a model version: "fraud@production".
        source: a file of rows, a version of a data set, or a table: "postgresql://HOST/DATABASE/TABLE",
            "sqlite:///PATH/TABLE" or "duckdb:///PATH/TABLE". With `query`, the database alone.
        target: a folder, to which a file is added, or a table.
        key: column with a different value in each row; by default "_row" of a data set.
        query: SQL whose rows are scored.
        since_last: read only the rows of a table that came after the last scoring, and those of transactions that had
            not ended then.
        growing: column by which `since_last` finds them: it only grows, in the order of commits.
        request: an id. A second call with it returns what the first one did, and writes nothing.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.score("runs/main", "texts/moby.txt", "scores", key="text").scored
        1
    """
    from aifx.feedback.scoring.scoring import Scored
    from aifx.feedback.scoring.scoring import score as score_rows
    from aifx.feedback.scoring.targets import scoring_of

    found = _source(source, key, query, growing, since_last, root, project)
    into = _target(target)
    options = {"step": step, "set": overrides(settings), "growing": growing, "since-last": since_last}
    how = "".join(f", {name} {value}" for name, value in options.items() if value)
    asked = find_request(request, f"score {model} {found.name} {into.name} by {found.key}{how}")
    with into.open() as opened:
        begun = None
        if asked is not None:
            if (outcome := opened.outcome(asked)) is not None:
                return RequestDone(outcome).repeated(Scored)
            if (begun := opened.begun(asked)) is not None and is_reference(model):
                model = f"{os.fspath(model).partition('@')[0]}@{begun['model']}"  # the alias may have moved
        loaded = load(model, step=step, settings=settings, trust_code=trust_code)
        digest = loaded.trained.run.model_digest or loaded.trained.manifest.state_digest
        if begun is not None and digest != begun["model"]:
            why = f"it began with {begun['model'][:12]}, and this is {digest[:12]}"
            what = f"--request {request} belongs to another model"
            raise UsageError(what, why, "give it the step that it began with, or use another id")
        with found.open(opened.position(scoring_of(digest, found.name, found.key))) as rows:
            return score_rows(loaded, digest, rows, opened, into.name, asked)


def _source(
    name: str,
    key: str | None,
    query: str | None,
    growing: str | None,
    since_last: bool,
    root: str | None,
    project: StrPath,
) -> FileSource | Selection:
    """The source that an argument names: a database, a file if there is one, otherwise a version of a data set."""
    from aifx.data.readers.sources import STDIN
    from aifx.feedback.scoring.connections import is_database
    from aifx.feedback.scoring.sources import FileSource, default_key

    if is_database(name):
        from aifx.feedback.scoring.database_source import select

        return select(name, default_key(key, name.rpartition("@")[2]), query, growing, since_last)
    for option, given in (("--query", query), ("--growing", growing), ("--since-last", since_last)):
        if given:
            why = f"{name} is no database, so it is read as a whole; rows with predictions are left out"
            raise UsageError(f"{option} is for databases", why, f"aifx score MODEL {name} TARGET --key COLUMN")
    if name == STDIN:
        raise UsageError("- cannot be scored", "its rows are read more than once", "cat > rows.jsonl")
    found = row_files(name, "aifx score", root, project)
    return FileSource(found.name, default_key(key, name, is_version=found.is_version), found.files)


def _target(name: str) -> Folder | DatabaseTable:
    """The target that an argument names. Raises UsageError for one that cannot be written."""
    from aifx.feedback.scoring.connections import is_database

    if is_database(name):
        from aifx.feedback.scoring.database_target import DatabaseTable

        return DatabaseTable.of(name)
    from aifx.feedback.scoring.file_target import Folder

    if "://" in name:
        why = "a target is a folder of this machine, or a table of PostgreSQL, SQLite or DuckDB"
        raise UsageError(f"aifx cannot score into {name.partition('://')[0]}", why, "postgresql://HOST/DATABASE/TABLE")
    return Folder(Path(name))

"""Predictions of a model for the rows of a source that a target has none of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.requests import RequestDone, find_request
from aifx.verbs.arguments import Settings, Step, StrPath
from aifx.verbs.catalogs import find_catalog
from aifx.verbs.prediction import load

if TYPE_CHECKING:
    from aifx.scoring.file_target import Folder
    from aifx.scoring.scoring import Scored
    from aifx.scoring.sources import Source


def score(
    model: StrPath,
    source: str,
    target: str,
    *,
    key: str | None = None,
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
        source: a file of rows, or a version of a data set.
        target: a folder, to which a file is added.
        key: column whose value tells rows apart; by default "_row" of a data set.
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
    from aifx.scoring.scoring import Scored
    from aifx.scoring.scoring import score as score_rows

    found, into = _source(source, key, root, project), _target(target)
    asked = find_request(request, f"score {model} {found.name} {into.name} by {found.key}")
    with into.open() as opened:
        if asked is not None and (outcome := opened.outcome(asked)) is not None:
            return RequestDone(outcome).repeated(Scored)
        loaded = load(model, step=step, settings=settings, trust_code=trust_code)
        digest = loaded.trained.run.model_digest or loaded.trained.manifest.state_digest
        return score_rows(loaded, digest, found, opened, into.name, asked)


def _source(name: str, key: str | None, root: str | None, project: StrPath) -> Source:
    """The source that an argument names: a file if there is one, otherwise a version of a data set."""
    from aifx.data.readers.rows import FORMATS, input_file
    from aifx.data.readers.sources import STDIN, local_file
    from aifx.data.versions.catalog import check_own_rows, check_shards
    from aifx.scoring.sources import FileSource, default_key

    if name == STDIN:
        raise UsageError("- cannot be scored", "its rows are read more than once", "cat > rows.jsonl")
    file = input_file(name) if "://" in name else local_file(Path(name))
    if file.is_remote or file.path.exists() or file.format in FORMATS:
        return FileSource(file.name, default_key(key, file.name), [file])
    catalog, _ = find_catalog(root, project)
    version = catalog.open(name)
    check_own_rows(version.manifest, "aifx score")
    check_shards(version)
    reference = version.manifest.whole_reference
    files = [local_file(path, f"{version.reference}/{path.name}") for path in version.shards]
    return FileSource(reference, default_key(key, name, is_version=True), files)


def _target(name: str) -> Folder:
    """The target that an argument names. Raises UsageError for one that cannot be written."""
    from aifx.scoring.file_target import Folder

    if "://" in name:
        raise UsageError(f"aifx cannot score into {name.partition('://')[0]}", "a target is a folder", "scores/")
    return Folder(Path(name))

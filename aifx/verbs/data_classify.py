"""A run of the project as a filter of rows."""

from __future__ import annotations

import math
from typing import Unpack

from aifx.core.errors import UsageError
from aifx.core.steps import parse_step
from aifx.curation.execution import MadeVersion, made_version
from aifx.verbs.arguments import Step
from aifx.verbs.catalogs import StepOptions, open_place, project_around


def data_classify(
    name: str,
    *,
    run: str,
    keep: float | None = None,
    at_least: float | None = None,
    label: str | None = None,
    column: str = "score",
    step: Step = None,
    **options: Unpack[StepOptions],
) -> MadeVersion:
    """Score each row with the model of a run, and keep the rows with the best scores.

    The score is the probability of a class, the number that the model predicts, or minus the bits per byte of a text
    for a language model. The larger it is, the better.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        run: a run of the project.
        keep: share of the rows to keep, such as 0.3; either this or `at_least`.
        at_least: the least score to keep.
        label: class whose probability is the score; required if the run predicts classes.
        column: that gets the score.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.

    Example:
        >>> made = aifx.data_classify("poems", run="main", keep=0.25, set_name=False)
        >>> (made.rows, made.dropped)
        (10, 30)
    """
    from aifx.curation.classify import Classify, check_column, open_model

    if (keep is None) == (at_least is None):
        why = "one of them says which rows are kept"
        raise UsageError("classify takes either --keep or --at-least", why, f"aifx data classify {name} --keep 0.3")
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(f"--keep {keep:g} is no share", "it is above 0 and at most 1", "--keep 0.3")
    if at_least is not None and not math.isfinite(at_least):
        raise UsageError(f"--at-least {at_least:g} is no score", "scores are finite numbers", "--at-least 0.5")
    place = open_place(**options)
    project = place.project or project_around(options.get("project", "."))
    if project is None:
        raise UsageError(f"no run {run!r}", "a run is in a project, and there is none here", "aifx init my-project")
    version = place.open(name)
    check_column(version, column)
    model = open_model(project.existing_run(run).path, parse_step(step), label, version)
    return made_version(place.execute(Classify((version,), model, keep, at_least, column), version.manifest.name))

"""Comparing two models on the same rows: which is better, by an interval of the difference of a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np

from aifx.config.best_by import BestBy, Direction, best_by_of
from aifx.config.project_errors import project_errors
from aifx.config.toml import literal
from aifx.core.digests import sha256_of_json
from aifx.core.errors import DataError, ExitCode, UsageError, did_you_mean
from aifx.core.plurals import counted
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.core.steps import StepChoice
from aifx.data.base import Dataset, Labels, undefined
from aifx.data.splits import Split
from aifx.evaluation.dataset import digest_of, display_name
from aifx.evaluation.held_out import data_reference, opener, reports_of_step
from aifx.evaluation.resampling import LEAST_GROUPS, Interval, difference_interval
from aifx.evaluation.scores import Groups, Sums, check_groups, groups_of, score_rows
from aifx.evaluation.settings import (
    DATASET_READING,
    SAFE_OVERRIDES,
    changed_settings,
    check_overrides,
    measuring_settings,
)
from aifx.evaluation.slices import MISSING, labels_of_slices
from aifx.loading.references import with_references
from aifx.loading.restore import RestoredRun, restore_run
from aifx.objectives.base import Ratio
from aifx.programs.build import Programs
from aifx.registry.versions import ModelDirectory
from aifx.tasks.base import dataset_of

ALPHA = 0.05
"""Largest probability that any look at an evaluation version finds a difference that is none, two-sided."""

MOST_LOOKS = 100

Verdict: TypeAlias = Literal["better", "not worse", "worse", "inconclusive"]


def alpha_of_look(look: int) -> float:
    """The share of ALPHA that a look at an evaluation version may spend, from 1.

    Each look has a chance of its own to be fooled, so that all of them at 5 % would be far more likely to be (Armitage,
    McPherson and Rowe, Repeated significance tests on accumulating data, Journal of the Royal Statistical Society A
    132, 1969). The shares 6 / (pi k)^2 add up to 1 over all looks there will ever be, so by Bonferroni's inequality the
    chance of any false finding is at most ALPHA. That is an alpha-spending rule (Foster and Stine, Alpha-investing,
    Journal of the Royal Statistical Society B 70, 2008). Boundaries as those of Lan and DeMets (Biometrika 70, 1983)
    spend less, but take one hypothesis on growing data, where here each look may be at another model on the same rows.
    """
    return ALPHA * 6 / (math.pi * look) ** 2


@dataclass(frozen=True)
class Side:
    """A model of a comparison, and how it was measured.

    Attributes:
        digest: of its checkpoint's arrays, or of the model version.
        settings: that its figures depend on (`measuring_settings`); empty for recorded answers.
    """

    run: str
    step: int
    digest: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class SliceDifference(TypedDict):
    """How much better the first is on the rows with one value of a column. `low` and `high` end its 95 % interval."""

    groups: int
    value: float
    against_value: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison(Result):
    """Two models on the same rows, as `aifx eval --against --json` prints it.

    Attributes:
        data: the versions of data sets that the rows are of; "" if they are of files.
        data_digest: SHA-256 of the evaluation version: which rows, whatever a model makes of them.
        split: that the rows are; "" if they are of a file.
        against: digest of the second model's checkpoint.
        group: what a group is: "document", "row", or a column.
        value, against_value: the metric of both.
        difference: how much better the first is: positive if so, whatever the direction of the metric.
        low, high: ends of its interval, whose level is 1 - alpha; null if the groups do not bound it.
        margin: the loss up to which the first is not worse; null if none is accepted.
        more_groups: how many more would decide if the estimates stay; null if decided, or if none would.
        look: which look at this evaluation version it is, from 1.
        alpha: what this look may spend.
        settings_digest: SHA-256 of the settings of the first.
        different_settings: those that the two were measured with differently: both values.
        slices: by column of `eval.slices` and value, with 30 groups at least. They decide nothing.
    """

    subject: Side
    incumbent: Side
    against: str
    data: str
    data_name: str
    data_digest: str
    split: Split | Literal[""]
    metric: str
    direction: Direction
    group: str
    groups: int
    value: float
    against_value: float
    difference: float
    standard_error: float
    low: float
    high: float
    margin: float | None
    verdict: Verdict
    more_groups: int | None
    explanation: str
    look: int
    alpha: float
    settings_digest: str
    different_settings: Mapping[str, tuple[Any, Any]]
    slices: Mapping[str, Mapping[str, SliceDifference]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.verdict in ("better", "not worse")

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.passed else ExitCode.VERDICT


@dataclass(frozen=True)
class FirstModel(Result):
    """A model with none to compare it with yet, as `aifx eval --against NAME@ALIAS --allow-first --json` prints it.

    Attributes:
        wanted: the alias that means no version yet, "NAME@ALIAS".
    """

    subject: Side
    wanted: str
    explanation: str
    verdict: Literal["first"] = "first"


def first_model(run: RunDirectory, project: Project, wanted: str, step: StepChoice | None = None) -> FirstModel:
    """Note that a checkpoint has nothing to be compared with; the run keeps that in eval/<step>.json."""
    trained = restore_run(run, project, step=step)
    side = Side(run.name, trained.step, run.model_digest or trained.manifest.state_digest)
    found = FirstModel(side, wanted, f"{wanted} means no version yet, so there is nothing to compare with")
    with reports_of_step(run, trained.step) as reports:
        reports["comparisons"].append(found.document())
    return found


def compare_runs(
    run: RunDirectory,
    project: Project,
    other: tuple[RunDirectory, Project],
    *,
    split: Split | None = None,
    data: Path | None = None,
    metric: BestBy | None = None,
    margin: float | None = None,
    look: int = 1,
    earlier_looks: Callable[[str, str], int] = lambda _digest, _split: 0,
    step: StepChoice | None = None,
    against_step: StepChoice | None = None,
    overrides: Sequence[str] = (),
) -> Comparison:
    """Compare the checkpoints of two runs on a split, or on a file; the first run keeps it in eval/<step>.json.

    Args:
        split: None takes `eval.split`. Both runs must hold out the same rows in it. A model version reads that
            version of a data set which the first run was trained on.
        data: a file or folder that both read instead.
        metric: what decides; None takes `checkpoint.best_by` of the first run.
        margin: None takes `eval.margin`.
        look: how many comparisons there were on this data, with this one, at least.
        earlier_looks: how many are known to have been before, of the digest of the data and the split.
        step, against_step: the checkpoints, as `restore_run` takes them.
        overrides: `--set` strings over the configuration of both runs.

    Raises UsageError for a metric that is no ratio of sums over rows, DataError for rows that are not the same, and for
    too few groups.
    """
    _check_look(look)
    safe = SAFE_OVERRIDES if data is None else DATASET_READING
    for one, of in ((run, project), other):
        check_overrides(one, of, overrides, safe)
    first = Answers.of(run, project, split, data, step, overrides)
    rows = [] if data is not None else _rows_of(first.trained, other[0])
    sides = [first, second := Answers.of(*other, split, data, against_step, [*rows, *overrides])]
    _check_same_rows(first, second)
    best_by = metric or best_by_of(first.trained.config)
    sums = [side.sums(best_by.metric) for side in sides]
    kept = (sums[0][:, 1] > 0) | (sums[1][:, 1] > 0)
    totals = [one[kept] for one in sums]
    config = first.trained.config.eval
    check_groups(int(kept.sum()), first.groups, config.group)
    comparison = compare_sums(
        (totals[0], totals[1]),
        best_by,
        (first.side, second.side),
        data=data_reference(first.trained.config.data, project) if data is None else "",
        data_name=first.name,
        data_digest=first.digest,
        split=first.split,
        group=first.groups.what,
        margin=config.margin if margin is None else margin,
        look=max(look, earlier_looks(first.digest, first.split) + 1),
    )
    comparison = replace(comparison, slices=_slices(first, second, best_by))
    with reports_of_step(run, first.side.step) as reports:
        reports["comparisons"].append(comparison.document())
    return comparison


def compare_sums(
    totals: tuple[Sums, Sums],
    metric: BestBy,
    sides: tuple[Side, Side],
    *,
    data: str = "",
    data_name: str,
    data_digest: str,
    split: Split | Literal[""] = "",
    group: str,
    margin: float | None,
    look: int,
) -> Comparison:
    """Decide whether the first of two models is better, by the sums of both over the same groups.

    Raises UsageError for a look beyond MOST_LOOKS.
    """
    _check_look(look)
    alpha, groups = alpha_of_look(look), len(totals[0])
    found = benefit(*totals, metric.direction, alpha)
    verdict, more = decide(found, groups, margin)
    values = [float(np.divide(*one.sum(axis=0))) for one in totals]
    return Comparison(
        subject=sides[0],
        incumbent=sides[1],
        against=sides[1].digest,
        data=data,
        data_name=data_name,
        data_digest=data_digest,
        split=split,
        metric=metric.metric,
        direction=metric.direction,
        group=group,
        groups=groups,
        value=values[0],
        against_value=values[1],
        difference=found.value,
        standard_error=found.error,
        low=found.low,
        high=found.high,
        margin=margin,
        verdict=verdict,
        more_groups=more,
        explanation=_explained(verdict, more, margin),
        look=look,
        alpha=alpha,
        settings_digest=sha256_of_json(sides[0].settings),
        different_settings=changed_settings(sides[0].settings, sides[1].settings),
    )


def _check_look(look: int) -> None:
    if not 1 <= look <= MOST_LOOKS:
        why = f"an evaluation version is looked at 1 to {MOST_LOOKS} times; after that, it says nothing new"
        raise UsageError(f"--look {look} cannot be used", why, "collect new rows, and measure those")


@dataclass(frozen=True)
class Answers:
    """What a model scores on the rows. `digest` is that of the rows, of a `split` or of a file."""

    trained: RestoredRun
    side: Side
    name: str
    digest: str
    split: Split | Literal[""]
    groups: Groups
    ratios: Mapping[str, Ratio]
    slices: Mapping[str, Labels]

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        project: Project,
        split: Split | None,
        data: Path | None,
        step: StepChoice | None,
        overrides: Sequence[str],
    ) -> Answers:
        opened = {} if data is not None else {"open_task": opener(run, split)}
        trained = restore_run(run, project, step=step, overrides=overrides, **opened)
        with project_errors(trained.config.parts, project):
            programs, params, frozen = trained.programs(trained.config.eval.quantize)
            form = programs.task.format
            chosen: Split = "test" if data is not None else split or trained.config.eval.split
            if data is not None:
                if form is None:
                    raise undefined(type(programs.task), "format", "measure other data")
                digest = None if data.is_dir() else digest_of(data)
                dataset = form.open_file(data)
                name, digest = display_name(data, project), digest or dataset.digest
                programs = _with_dataset(programs, dataset)
            else:
                dataset = dataset_of(programs.task)
                name = f"{chosen} split"
                digest = dataset.digest if form is None else form.split_digest(dataset, chosen)
            programs = with_references(programs, frozen, run)
            groups = groups_of(programs, chosen, trained.config.eval.group)
            slices = labels_of_slices(programs, chosen)
            ratios = score_rows(programs, params, frozen, chosen)
        settings = measuring_settings(trained)
        side = Side(run.name, trained.step, run.model_digest or trained.manifest.state_digest, settings)
        return cls(trained, side, name, digest, "" if data is not None else chosen, groups, ratios, slices)

    def sums(self, metric: str, which: np.ndarray | None = None) -> Sums:
        """The sums of the groups, of the rows `which`. Raises UsageError for a metric that is no ratio of sums."""
        if metric in self.ratios:
            return self.groups.sums(self.ratios[metric], which)
        near = did_you_mean(metric, self.ratios)
        what = f"run {self.side.run}: {metric!r} cannot decide between two models"
        why = f"it is no ratio of sums over rows, or there is none such; {near}"
        raise UsageError(what, why, f'aifx eval --against RUN --metric "min {next(iter(self.ratios))}"')


def _rows_of(first: RestoredRun, other: RunDirectory) -> list[str]:
    """The setting by which a model version, which names no data, reads the version of a data set that a run did."""
    reference = getattr(first.config.data, "dataset", None)
    is_named = reference is not None and not isinstance(first.run, ModelDirectory)
    return [f"data.dataset={literal(reference)}"] if is_named and isinstance(other, ModelDirectory) else []


def _with_dataset(programs: Programs, dataset: Dataset) -> Programs:
    return replace(programs, task=replace(programs.task, dataset=dataset))


def _check_same_rows(first: Answers, second: Answers) -> None:
    """Raise DataError unless both answered the same rows, in the same groups."""
    names = f"runs {first.side.run} and {second.side.run}"
    hint = f"aifx eval --run {first.side.run} --against {second.side.run} --data FILE"
    if first.digest != second.digest:
        why = f"the {first.name} of one has other examples than that of the other: their data or its division differ"
        raise DataError(f"{names} did not answer the same rows", why, hint)
    shapes = [{len(side.groups.sums(ratio)) for ratio in side.ratios.values()} for side in (first, second)]
    if first.groups.keys != second.groups.keys or (first.groups.codes is None and shapes[0] != shapes[1]):
        why = (
            f"one reads {len(first.groups.keys):,} groups of {first.groups.what}, the other {len(second.groups.keys):,}"
        )
        raise DataError(f"{names} did not answer the same rows", why, hint)


def _slices(first: Answers, second: Answers, metric: BestBy) -> dict[str, dict[str, SliceDifference]]:
    """The difference on each slice of the first run's columns, with 95 % intervals, where they have enough groups."""
    found: dict[str, dict[str, SliceDifference]] = {}
    for column, labels in first.slices.items():
        found[column] = {}
        for number, value in enumerate(labels.names):
            both = [side.sums(metric.metric, labels.codes == number) for side in (first, second)]
            kept = (both[0][:, 1] > 0) & (both[1][:, 1] > 0)
            if int(kept.sum()) < LEAST_GROUPS:
                continue
            one, other = (sums[kept] for sums in both)
            moved = benefit(one, other, metric.direction, ALPHA)
            values = [float(np.divide(*sums.sum(axis=0))) for sums in (one, other)]
            found[column][value or MISSING] = {
                "groups": len(one),
                "value": values[0],
                "against_value": values[1],
                "difference": moved.value,
                "low": moved.low,
                "high": moved.high,
            }
    return found


def benefit(first: Sums, second: Sums, direction: Direction, alpha: float) -> Interval:
    """How much better the first is, with the 1 - alpha interval: the difference, turned if less is better."""
    found = difference_interval(first, second, alpha)
    if direction == "max":
        return found
    return Interval(-found.value, -found.high, -found.low, found.error)


def decide(found: Interval, groups: int, margin: float | None) -> tuple[Verdict, int | None]:
    """The verdict on an interval of the benefit, and how many more groups would decide if it is inconclusive.

    An interval shrinks with the square root of the number of groups. The number is that at which its lower end would
    reach the margin, or its upper end 0, if the estimate stays where it is; None if it is there already.
    """
    if found.low > 0:
        return "better", None
    if margin is not None and found.low >= -margin:
        return "not worse", None
    if found.high < 0:
        return "worse", None
    bound = -(margin or 0.0)
    gap, half = (found.value - bound, found.value - found.low)
    if gap < 0 or (margin is None and gap == 0):
        gap, half = -found.value, found.high - found.value
    if gap <= 0 or not math.isfinite(half):
        return "inconclusive", None
    return "inconclusive", max(math.ceil(groups * (half / gap) ** 2) - groups, 1)


def _explained(verdict: Verdict, more: int | None, margin: float | None) -> str:
    if verdict == "not worse":
        return f"not worse than {margin:g}"
    if verdict != "inconclusive":
        return verdict
    return f"inconclusive, {counted(more, 'group')} more would decide" if more else "inconclusive"

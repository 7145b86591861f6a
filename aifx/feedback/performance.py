"""How good predictions are: measured by outcomes, and before these arrive estimated from calibrated confidences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit, logit, ndtri, stdtrit

from aifx.config.gates import Gate, scalars
from aifx.data.columns import as_text, is_missing
from aifx.data.spec import DataSpec
from aifx.evaluation.resampling import LEAST_GROUPS, ratio_interval
from aifx.evaluation.scores import Groups
from aifx.objectives.base import Objective, Rows, RowSums

OUTCOME, ESTIMATE = "outcome.", "estimate."
"""Before the name of a metric in `monitor.limits`."""

RESAMPLES = 200

LEAST_TO_CALIBRATE, LEAST_OF_CLASS = 100, 50
"""Held-out rows that calibrate confidences, and those with predictions of a class that calibrate it for itself."""

ASSUMPTION = (
    "the rows may have changed, within what the reference has, but the same inputs lead to the same outcomes as there"
)


@dataclass(frozen=True)
class Metric:
    """A metric of the rows of now.

    Attributes:
        of: "measured" by outcomes, or "estimated" without.
        low, high: ends of its 95 % interval; None of one whose chance is not known, such as a calibration error.
        reference: the metric of the reference's rows that the model was not trained on; None if it is not known.
    """

    metric: str
    of: Literal["measured", "estimated"]
    value: float
    low: float | None
    high: float | None
    reference: float | None


@dataclass(frozen=True)
class MetricLimit:
    """A condition on a metric.

    Attributes:
        passed: whether the value is within it.
        breached: whether the whole interval is outside, so that the number of rows makes no alarm.
    """

    expr: str
    of: Literal["measured", "estimated"]
    value: float
    passed: bool
    breached: bool


@dataclass(frozen=True)
class CalibrationBin:
    """Rows of similar confidence: their mean confidence, the share of them that is right, and their number."""

    confidence: float
    accuracy: float
    weight: float


@dataclass(frozen=True)
class Performance:
    """The metrics of the rows of now.

    Attributes:
        outcomes: rows with an outcome, which the measured metrics are of.
        pending: rows without one so far.
        unknown: rows whose outcome is a class that the model does not know: in no metric.
        calibration: bins of equally many rows with outcomes; empty if the objective has none.
        precision: estimated share of right ones among the predictions of each class.
        assumes: what the estimate assumes; "" without one.
    """

    outcomes: int
    pending: int
    unknown: int
    metrics: tuple[Metric, ...]
    limits: tuple[MetricLimit, ...]
    calibration: tuple[CalibrationBin, ...]
    precision: Mapping[str, float]
    assumes: str

    @property
    def breached(self) -> tuple[str, ...]:
        return tuple(one.expr for one in self.limits if one.breached)


@dataclass(frozen=True)
class Predicted:
    """Predictions of rows, and what then happened.

    Attributes:
        predictions: as `Objective.decode` makes them.
        outcomes: None for a row without one so far.
        groups: what rows have in common, such as a customer; None if each row is for itself.
    """

    predictions: Sequence[Mapping[str, Any]]
    outcomes: Sequence[Any]
    groups: Sequence[Any] | None = None

    @property
    def known(self) -> Predicted:
        """The rows with an outcome."""
        kept = [index for index, value in enumerate(self.outcomes) if not is_missing(value)]
        groups = self.groups
        return Predicted(
            [self.predictions[index] for index in kept],
            [self.outcomes[index] for index in kept],
            None if groups is None else [groups[index] for index in kept],
        )


def measure_performance(
    objective: Objective,
    data: DataSpec,
    now: Predicted,
    reference: Predicted | None,
    *,
    gates: Sequence[Gate] = (),
    limits: Sequence[Gate] = (),
) -> tuple[Performance | None, dict[str, str]]:
    """The metrics of predictions, and why some are missing; None if there are none.

    Args:
        reference: rows that the model was not trained on.
        gates: conditions on metrics that outcomes measure.
        limits: the same, named "outcome.METRIC", and of estimates, named "estimate.METRIC".
    """
    left_out: dict[str, str] = {}
    conditions = [(gate, gate.name) for gate in gates if not gate.is_of_slices]
    conditions += [(gate, gate.name.removeprefix(OUTCOME)) for gate in limits if gate.name.startswith(OUTCOME)]
    for gate in gates:
        if gate.is_of_slices:
            left_out[gate.expr] = "slices are measured by aifx eval --data"
    known, before = now.known, reference.known if reference is not None else None
    metrics, bins, counted = list[Metric](), tuple[CalibrationBin, ...](), 0
    found = _sums(objective, data, known)
    if found is None:
        left_out["outcomes"] = f"{type(objective).__name__} compares no predictions with outcomes: define outcome_sums"
    else:
        counted = int(_weights(found).sum()) if known.outcomes else 0
        groups = _groups(known)
        count = len(groups.keys) if groups.codes is not None else counted
        if not known.outcomes:
            left_out["outcomes"] = "no row has one so far"
        elif count < LEAST_GROUPS:
            of = f" in {count} groups" if groups.codes is not None else ""
            left_out["outcomes"] = (
                f"{counted:,} rows{of} have outcomes that can be used, and metrics need {LEAST_GROUPS}"
            )
        else:
            metrics, bins = _measured(objective, data, found, groups, before, [name for _, name in conditions])
    estimate, precision = _estimated(data, now, before, left_out)
    every = [*metrics, *estimate]
    checked = [_checked(gate, name, metrics) for gate, name in conditions]
    of_estimates = [gate for gate in limits if gate.name.startswith(ESTIMATE)]
    checked += [_checked(gate, gate.name.removeprefix(ESTIMATE), estimate) for gate in of_estimates]
    for gate, result in zip([*(gate for gate, _ in conditions), *of_estimates], checked, strict=True):
        if result is None:
            left_out.setdefault(gate.expr, "there is no such metric, or no outcome to measure it")
    if not every:
        return None, left_out
    return Performance(
        outcomes=counted if metrics else 0,
        pending=len(now.outcomes) - len(known.outcomes),
        unknown=len(known.outcomes) - counted,
        metrics=tuple(every),
        limits=tuple(one for one in checked if one is not None),
        calibration=bins,
        precision=precision,
        assumes=ASSUMPTION if estimate else "",
    ), left_out


def _sums(objective: Objective, data: DataSpec, rows: Predicted) -> RowSums | None:
    return objective.outcome_sums(rows.predictions, rows.outcomes, data) if rows.outcomes else {}


def _weights(sums: RowSums) -> Any:
    return next(iter(sums.values()))[1]


def _groups(rows: Predicted) -> Groups:
    if rows.groups is None:
        return Groups("row", (), None)
    names, codes = np.unique([str(one) for one in rows.groups], return_inverse=True)
    return Groups("group", tuple(names.tolist()), codes)


def _measured(
    objective: Objective,
    data: DataSpec,
    sums: RowSums,
    groups: Groups,
    reference: Predicted | None,
    named: Iterable[str],
) -> tuple[list[Metric], tuple[CalibrationBin, ...]]:
    """The metrics that are ratios of sums, those that gates name, and the calibration."""
    report = objective.metrics(_totals(sums), data)
    values, before = scalars(report), dict[str, float]()
    if reference is not None and reference.outcomes:
        beside = _sums(objective, data, reference)
        if beside and _weights(beside).sum() > 0:
            before = scalars(objective.metrics(_totals(beside), data))
    found = []
    for name, ratio in objective.ratios(sums, data).items():
        of_groups = groups.sums(ratio)
        of_groups = of_groups[of_groups[:, 1] > 0]
        one = ratio_interval(of_groups[:, 0], of_groups[:, 1])
        found.append(Metric(name, "measured", one.value, one.low, one.high, before.get(name)))
    there = {one.metric for one in found}
    if asked := [name for name in dict.fromkeys(named) if name in values and name not in there]:
        drawn = [scalars(objective.metrics(totals, data)) for totals in _resampled(sums, groups)]
        for name in asked:
            resampled = np.array([one.get(name, np.nan) for one in drawn])
            half = float(np.nanstd(resampled, ddof=1) * stdtrit(len(_weights(sums)) - 1, 0.975))
            value = values[name]
            found.append(Metric(name, "measured", value, value - half, value + half, before.get(name)))
    if "ece" in values and "ece" not in there | set(asked):
        found.append(Metric("ece", "measured", values["ece"], None, None, before.get("ece")))
    return found, tuple(CalibrationBin(**one) for one in report.get("calibration", ()))


def _totals(sums: RowSums, times: Any = 1.0) -> dict[str, tuple[Any, Any]]:
    """What metrics are formed of, if row n is there `times[n]` times."""
    return {
        name: Rows(pair[0], pair[1] * times)
        if isinstance(pair, Rows)
        else (float(np.sum(pair[0] * times)), float(np.sum(pair[1] * times)))
        for name, pair in sums.items()
    } | {"examples": (float(np.sum(_weights(sums) * times)), 1.0)}


def _resampled(sums: RowSums, groups: Groups) -> Iterator[dict[str, tuple[Any, Any]]]:
    draw, rows = np.random.default_rng(0), len(_weights(sums))
    codes = np.arange(rows) if groups.codes is None else groups.codes
    count = int(np.max(codes)) + 1
    for _ in range(RESAMPLES):
        yield _totals(sums, np.bincount(draw.integers(count, size=count), minlength=count)[codes].astype(float))


def _checked(gate: Gate, name: str, metrics: Iterable[Metric]) -> MetricLimit | None:
    one = next((one for one in metrics if one.metric == name), None)
    if one is None:
        return None
    ends = [one.value, *(end for end in (one.low, one.high) if end is not None)]
    breached = not gate.passes(min(ends)) and not gate.passes(max(ends)) and not gate.passes(one.value)
    # An interval that holds the only value of a gate such as "per_class.a.recall == 1" is not outside of it.
    breached = breached and not min(ends) < gate.bound < max(ends)
    return MetricLimit(gate.expr, one.of, one.value, gate.passes(one.value), breached)


# Accuracy is estimated as NannyML's CBPE does (confidence-based performance estimation): a calibrated confidence is the
# probability that the prediction is right, so that their mean is the expected accuracy. Confidences are calibrated on
# the reference's rows, for each predicted class by itself: if thresholds decide, 0.4 says different things of different
# classes. Calibration is Platt's, a logistic regression of "right" on the logit of the confidence, with targets that a
# few rows cannot drive to 0 or 1 (Platt, Probabilistic outputs for support vector machines, 1999). Isotonic regression
# does drive them there, which makes its intervals too narrow. The interval is that of the accuracy which outcomes will
# show: for each calibration, rows of the reference are drawn again, and with it the outcomes of the rows of now.


def _estimated(
    data: DataSpec, now: Predicted, reference: Predicted | None, left_out: dict[str, str]
) -> tuple[list[Metric], Mapping[str, float]]:
    """The accuracy before outcomes are known, and the precision of each predicted class. Says in `left_out` why not."""
    if not now.predictions or not {"label", "probability"} <= now.predictions[0].keys():
        left_out["estimate"] = "only a classifier's confidences say how often it is right: outcomes will measure it"
        return [], {}
    classes = {name: number for number, name in enumerate(data.classes)}
    usable = [] if reference is None else [n for n, one in enumerate(reference.outcomes) if as_text(one) in classes]
    if reference is None or len(usable) < LEAST_TO_CALIBRATE:
        left_out["estimate"] = f"confidences are calibrated on {LEAST_TO_CALIBRATE} held-out rows with outcomes or more"
        return [], {}
    label, sure = _confidences([reference.predictions[n] for n in usable], classes)
    is_right = label == np.array([classes[as_text(reference.outcomes[n])] for n in usable])
    new_label, new_sure = _confidences(now.predictions, classes)
    counts = np.bincount(new_label, minlength=len(classes))
    # Predictions that the reference has seldom are calibrated with all others.
    own = np.bincount(label, minlength=len(classes)) >= LEAST_OF_CLASS
    pairs = [(label == one if own[one] else slice(None), new_label == one) for one in np.flatnonzero(counts)]
    draw, rows = np.random.default_rng(0), len(sure)

    def probabilities(times: Any) -> Any:
        found = np.empty(len(new_sure))
        for old, new in pairs:
            slope, offset = platt(sure[old], is_right[old], times[old])
            found[new] = expit(slope * new_sure[new] + offset)
        return found

    right = probabilities(np.ones(rows))
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(draw.integers(rows, size=rows), minlength=rows).astype(float)
        drawn.append((draw.random(len(right)) < probabilities(times)).mean())
    half = float(np.std(drawn, ddof=1)) * float(ndtri(0.975))
    value = float(right.mean())
    precision = np.bincount(new_label, right, len(classes))
    metric = Metric(
        "accuracy", "estimated", value, max(0.0, value - half), min(1.0, value + half), float(is_right.mean())
    )
    return [metric], {name: float(precision[n] / counts[n]) for name, n in classes.items() if counts[n]}


def _confidences(predictions: Sequence[Mapping[str, Any]], classes: Mapping[str, int]) -> tuple[Any, Any]:
    """The number of each predicted class, and the logit of its probability."""
    label = np.array([classes[one["label"]] for one in predictions])
    sure = np.clip(np.array([one["probability"] for one in predictions], np.float64), 1e-6, 1 - 1e-6)
    return label, logit(sure)


def platt(scores: Any, is_right: Any, weights: Any) -> tuple[float, float]:
    """Slope and offset of the logistic regression of `is_right` on scores, `[rows]` each, by Newton's method."""
    mean = float(np.average(scores, weights=weights)) if weights.sum() else 0.0
    scale = float(scores.std()) or 1.0
    right = float((weights * is_right).sum())
    target = np.where(is_right, (right + 1) / (right + 2), 1 / (weights.sum() - right + 2))
    inputs, found = np.stack([(scores - mean) / scale, np.ones(len(scores))], 1), np.zeros(2)
    damping = 1e-3 * np.eye(2)  # of scores that are all equal
    for _ in range(25):
        probability = expit(inputs @ found)
        slope = inputs.T @ (weights * (target - probability)) - damping @ found
        curvature = (inputs * (weights * probability * (1 - probability))[:, None]).T @ inputs + damping
        step = np.linalg.solve(curvature, slope)
        found = found + step
        if np.abs(step).max() < 1e-4:
            break
    return float(found[0] / scale), float(found[1] - found[0] * mean / scale)

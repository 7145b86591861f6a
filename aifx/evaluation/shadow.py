"""Comparing the answers of two models to the same requests, as `aifx serve --shadow` recorded them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from aifx.config.best_by import BestBy, Direction
from aifx.core.digests import sha256_of_json
from aifx.core.errors import DataError, ExitCode, UsageError, did_you_mean
from aifx.core.json_files import parse_line
from aifx.core.json_values import number
from aifx.core.plurals import counted
from aifx.core.results import Result
from aifx.data.readers.rows import read_rows
from aifx.data.readers.sources import named_file
from aifx.evaluation.against import Comparison, Side, compare_sums
from aifx.evaluation.resampling import LEAST_GROUPS, ratio_interval
from aifx.evaluation.scores import Sums
from aifx.serving.record import SHADOW_FILE, SHADOW_VERSION

MOST_REASONS = 5

PREDICTIONS = ("prediction", "label", "labels", "value")
"""Keys of a predicted row that have its prediction, the first that is there."""

LOSS, ACCURACY, ERROR = "loss", "accuracy", "mean_absolute_error"
DIRECTIONS: Mapping[str, Direction] = {ACCURACY: "max", LOSS: "min", ERROR: "min"}
"""The metrics of answers whose outcome is known, in the order in which one decides by default."""

Labels: TypeAlias = Mapping[tuple[str, int], Any]
"""The outcome by request id and row, from 1."""


@dataclass(frozen=True)
class Answered:
    """A model of a recording.

    Attributes:
        tokens: mean of an answer; null for predictions.
        p50_s, p90_s, p99_s: seconds of an answer.
    """

    model: str
    step: int
    digest: str
    tokens: float | None
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True)
class Agreement:
    """The share of answers that are the same, with its 95 % interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelledMetric:
    """A metric of the answers whose outcome is known. `difference` is the shadow's less that of the served model."""

    served: float
    shadow: float
    difference: float


@dataclass(frozen=True)
class ShadowReport(Result):
    """Two models on the same requests, as `aifx eval --shadow --json` prints it.

    Attributes:
        requests: that both models answered; `answers` are their choices or rows.
        failed: requests that the second model did not answer, and `reasons` how often for what.
        others: records of other pairs of models, which are left out.
        same_beginning: mean share of a text that is the same from its beginning; null for predictions.
        mean_difference, largest_difference: absolute, of predicted numbers; null for other answers.
        labelled: answers whose outcome is known.
        metrics: of these, by name.
        comparison: by the metric that decides, as `aifx eval --against` makes it; null without 30 labelled requests.
        explanation: why there is no comparison; its verdict otherwise.
    """

    files: tuple[str, ...]
    served: Answered
    shadow: Answered
    requests: int
    answers: int
    failed: int
    reasons: Mapping[str, int]
    others: int
    agreement: Agreement
    same_beginning: float | None
    mean_difference: float | None
    largest_difference: float | None
    labelled: int
    metrics: Mapping[str, LabelledMetric]
    comparison: Comparison | None
    explanation: str

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.comparison is None else self.comparison.exit_code


@dataclass(frozen=True)
class _Pair:
    """The answers of both models to one choice or row of a request. `row` is from 1."""

    request: str
    row: int
    served: Mapping[str, Any]
    shadow: Mapping[str, Any]
    asked: Mapping[str, Any]  # the row; empty for text


def compare_shadow(
    path: Path,
    *,
    labels: Path | None = None,
    target: str = "target",
    metric: BestBy | None = None,
    margin: float | None = None,
    look: int = 1,
) -> ShadowReport:
    """Compare what two models answered. The pair is that of the last record; others are counted.

    Args:
        path: a file of records, or a folder with files of them.
        labels: rows with `id`, the id of a request, `row` if it has several, from 1, and the outcome.
        target: the column of the outcome in `labels`, or in the recorded rows themselves.
        metric: what decides; None takes the first of DIRECTIONS that is there.
        margin: loss of the metric up to which the second model is not worse.
        look: how many comparisons there were of this recording, with this one.

    Raises DataError for what is no record, or no label of one; UsageError for a metric that is not there.
    """
    files = _files(path)
    records = sorted((record for file in files for record in _records(file)), key=lambda record: record["time"])
    if not records:
        raise DataError(f"{path} has no record", "it is empty", "aifx serve --shadow NAME@ALIAS")
    last = _digests(records[-1])
    own = [record for record in records if _digests(record) == last]
    both = [record for record in own if record["shadow"]["error"] is None]
    if not both:
        why = f"{records[-1]['shadow']['model']} failed: {records[-1]['shadow']['error']}"
        raise DataError(f"{path} has no request that both models answered", why, "aifx serve --shadow NAME@ALIAS")
    pairs = [pair for record in both for pair in _pairs(record)]
    outcomes = _outcomes(pairs, None if labels is None else _labels(labels, target), target)
    if labels is not None and not outcomes:
        why = f"none of its ids is that of one of {counted(len(both), 'request')}"
        raise DataError(f"{labels} labels no recorded request", why, "`id` is the X-Request-Id of an answer")
    scores = _scores(outcomes)
    metrics = {name: _metric(sums) for name, sums in scores.items()}
    groups = len(next(iter(scores.values()))[0]) if scores else 0
    comparison = None
    explanation = f"{counted(groups, 'labelled request')}: a comparison needs {LEAST_GROUPS}"
    if metric is not None and metric.metric not in scores:
        why = did_you_mean(metric.metric, scores) if scores else "no answer has a known outcome"
        raise UsageError(f"{metric.metric!r} cannot decide between two models", why, "aifx eval --shadow --labels FILE")
    if groups >= LEAST_GROUPS:
        chosen = metric or _default(scores)
        facts = [own[0]["time"], own[0]["id"], *last, target]
        sides = [
            Side(own[-1][key]["model"], own[-1][key]["step"], own[-1][key]["digest"]) for key in ("shadow", "served")
        ]
        comparison = compare_sums(
            (scores[chosen.metric][1], scores[chosen.metric][0]),
            chosen,
            (sides[0], sides[1]),
            data_name=str(path),
            data_digest=sha256_of_json(facts),
            group="request",
            margin=margin,
            look=look,
        )
        explanation = comparison.explanation
    same = np.array([_is_same(pair) for pair in pairs], np.float64)
    share = ratio_interval(same, np.ones(len(same)))
    gaps = [gap for pair in pairs if (gap := _gap(pair)) is not None]
    beginnings = [_beginning(pair) for pair in pairs if "text" in pair.served]
    failures = [record["shadow"]["error"] for record in own if record["shadow"]["error"] is not None]
    return ShadowReport(
        files=tuple(map(str, files)),
        served=_answered(both, "served"),
        shadow=_answered(both, "shadow"),
        requests=len(both),
        answers=len(pairs),
        failed=len(failures),
        reasons=dict(Counter(failures).most_common(MOST_REASONS)),
        others=len(records) - len(own),
        agreement=Agreement(share.value, share.low, share.high),
        same_beginning=float(np.mean(beginnings)) if beginnings else None,
        mean_difference=float(np.mean(gaps)) if gaps else None,
        largest_difference=max(gaps) if gaps else None,
        labelled=len(outcomes),
        metrics=metrics,
        comparison=comparison,
        explanation=explanation,
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    stem, suffix = Path(SHADOW_FILE).stem, Path(SHADOW_FILE).suffix
    if not (found := sorted(path.rglob(f"{stem}*{suffix}"))):
        raise DataError(f"{path} has no {stem}*{suffix}", "aifx serve writes it", "aifx serve --shadow NAME@ALIAS")
    return found


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    hint = "aifx serve --shadow NAME@ALIAS"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or str(error), hint) from None
    for place, line in enumerate(lines, 1):
        record = parse_line(line)
        if record is None and place == len(lines):
            return  # the server was killed while it wrote this one
        if record is None or not _is_record(record):
            why = f"expected schema_version {SHADOW_VERSION}, time, id, request, served and shadow"
            raise DataError(f"{path}:{place}: not a record of aifx serve --shadow", why, "docs/serve.md")
        yield record


def _is_record(record: Mapping[str, Any]) -> bool:
    served, shadow = record.get("served"), record.get("shadow")
    if not (isinstance(served, dict) and isinstance(shadow, dict) and isinstance(served.get("answer"), dict)):
        return False
    keys = {"model", "step", "digest", "seconds", "completion_tokens"}
    has_answer = "error" in shadow and isinstance(shadow.get("answer"), dict if shadow["error"] is None else object)
    is_known = record.get("schema_version") == SHADOW_VERSION and isinstance(record.get("request"), dict)
    is_numbered = number(record.get("time")) is not None and isinstance(record.get("id"), str)
    return is_known and is_numbered and has_answer and keys <= set(served) and keys <= set(shadow)


def _digests(record: Mapping[str, Any]) -> tuple[str, str]:
    return str(record["served"]["digest"]), str(record["shadow"]["digest"])


def _pairs(record: Mapping[str, Any]) -> Iterator[_Pair]:
    """The answers to each choice or row."""
    served, shadow = (record[key]["answer"] for key in ("served", "shadow"))
    kind = "choices" if "choices" in served else "predictions"
    given = record["request"].get("rows", ())
    rows: Sequence[Any] = [given] if isinstance(given, dict) else given
    answers = zip(served.get(kind, ()), shadow.get(kind, ()), strict=False)
    for place, (one, other) in enumerate(answers):
        asked = rows[place] if kind == "predictions" and place < len(rows) else {}
        yield _Pair(record["id"], place + 1, one, other, asked)


def _prediction(answer: Mapping[str, Any]) -> Any:
    """The text or the prediction of an answer."""
    if "text" in answer:
        return answer["text"], answer.get("tool_calls")
    key = next((key for key in PREDICTIONS if key in answer), None)
    return answer[key] if key else {name: answer[name] for name in sorted(answer) if name not in ("file", "row")}


def _is_same(pair: _Pair) -> bool:
    return bool(_prediction(pair.served) == _prediction(pair.shadow))


def _gap(pair: _Pair) -> float | None:
    """How far two predicted numbers are apart; None for other answers."""
    values = [number(_prediction(answer)) for answer in (pair.served, pair.shadow)]
    return None if values[0] is None or values[1] is None else abs(values[0] - values[1])


def _beginning(pair: _Pair) -> float:
    """The share of the longer text that is the same from the beginning of both."""
    one, other = pair.served["text"], str(pair.shadow.get("text", ""))
    longest = max(len(one), len(other))
    same = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return same / longest if longest else 1.0


def _labels(path: Path, target: str) -> Labels:
    """The outcomes of a file by request and row. Raises DataError."""
    found: dict[tuple[str, int], Any] = {}
    for row in read_rows(named_file(str(path), Path())):
        if lacking := [column for column in ("id", target) if column not in row.values]:
            why = f"it has {', '.join(map(str, row.values))}"
            raise DataError(f"{row.place}: no column {lacking[0]!r}", why, "aifx eval --shadow --target COLUMN")
        given = str(row.values.get("row") or 1)
        if not given.isdecimal():
            raise DataError(
                f"{row.place}: row = {given}", "it is the number of a row in its request, from 1", "row = 1"
            )
        found[str(row.values["id"]), int(given)] = row.values[target]
    return found


def _outcomes(pairs: Iterable[_Pair], labels: Labels | None, target: str) -> list[tuple[_Pair, Any]]:
    """The pairs whose outcome is known, with it."""

    def outcome(pair: _Pair) -> Any:
        return pair.asked.get(target) if labels is None else labels.get((pair.request, pair.row))

    return [(pair, found) for pair in pairs if (found := outcome(pair)) is not None]


def _scores(outcomes: Sequence[tuple[_Pair, Any]]) -> dict[str, tuple[Sums, Sums]]:
    """Total and weight of each request by metric: of the served model, and of the shadow."""
    requests = list(dict.fromkeys(pair.request for pair, _ in outcomes))
    place = {request: index for index, request in enumerate(requests)}
    found: dict[str, tuple[Sums, Sums]] = {}
    for pair, outcome in outcomes:
        both = [_row_scores(answer, outcome) for answer in (pair.served, pair.shadow)]
        for name in both[0].keys() & both[1].keys():
            sums = found.setdefault(name, (np.zeros((len(requests), 2)), np.zeros((len(requests), 2))))
            for side, scores in zip(sums, both, strict=True):
                side[place[pair.request]] += scores[name], 1.0
    # A request without a score of the metric is none of its groups.
    return {name: _with_weight(*found[name]) for name in DIRECTIONS if name in found}


def _with_weight(served: Sums, shadow: Sums) -> tuple[Sums, Sums]:
    kept = served[:, 1] > 0
    return served[kept], shadow[kept]


def _row_scores(answer: Mapping[str, Any], outcome: Any) -> dict[str, float]:
    """The metrics of one answer whose outcome is known."""
    if "text" in answer:
        return {ACCURACY: float(answer["text"].strip() == str(outcome).strip())}
    predicted = _prediction(answer)
    if isinstance(predicted, str):
        probabilities = answer.get("prediction.probabilities") or answer.get("probabilities") or {}
        scores = {ACCURACY: float(predicted == str(outcome))}
        if (share := number(probabilities.get(str(outcome)))) is not None:
            scores[LOSS] = -math.log(max(share, float(np.finfo(np.float32).tiny)))
        return scores
    if isinstance(predicted, list) and isinstance(outcome, list):
        return {ACCURACY: float(sorted(map(str, predicted)) == sorted(map(str, outcome)))}
    try:
        wanted, value = float(outcome), number(predicted)
    except (TypeError, ValueError):
        return {}
    return {} if value is None else {ERROR: abs(value - wanted)}


def _metric(sums: tuple[Sums, Sums]) -> LabelledMetric:
    served, shadow = (float(np.divide(*one.sum(axis=0))) for one in sums)
    return LabelledMetric(served, shadow, shadow - served)


def _default(scores: Mapping[str, object]) -> BestBy:
    name = next(iter(scores))
    return BestBy(name, DIRECTIONS[name])


def _answered(records: Sequence[Mapping[str, Any]], key: str) -> Answered:
    sides = [record[key] for record in records]
    tokens = [side["completion_tokens"] for side in sides if side["completion_tokens"] is not None]
    p50, p90, p99 = np.quantile([side["seconds"] for side in sides], [0.5, 0.9, 0.99]).tolist()
    last = sides[-1]
    return Answered(
        last["model"], last["step"], last["digest"], float(np.mean(tokens)) if tokens else None, p50, p90, p99
    )

"""`aifx.data_feedback`: each outcome belongs to the newest prediction of its key that is not later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from feedback_rows import rows_of
from stored_versions import make_version

import aifx
from aifx.core.project import Project
from aifx.data.readers.rows import Row
from aifx.feedback.scoring.file_target import Folder
from aifx.feedback.scoring.predictions import keyed, prediction_batch
from aifx.feedback.scoring.targets import scoring_of

DAY = datetime(2026, 5, 1, 12, tzinfo=UTC)
MODEL = "a" * 64


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the rows o0 to o9 as the data set `orders`."""
    (tmp_path / "aifx.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    found = Project(tmp_path)
    orders = [f"o{n}" for n in range(10)]
    make_version(found, "orders", {"order": orders, "x": list(range(10)), "sold": [None] * 10}, "table", 3)
    return found


def predict(
    folder: str,
    days: Mapping[str, float],
    label: str = "up",
    key: str = "order",
    model: str = MODEL,
    value: Mapping[str, Any] | None = None,
) -> None:
    """Add predictions of rows, by key, that many days after the first."""
    with Folder(Path(folder)).open() as target:
        for order, day in days.items():
            row = keyed(Row("", 1, "", {key: order, "day": day}), key, model)
            time = DAY + timedelta(days=day)
            target.add(
                prediction_batch([(row, value or {"label": label, "probability": 0.75})], model, None, time),
                "",
                None,
                None,
                model,
            )
        target.finish(scoring_of(model, "orders@" + "0" * 64, key), None, None, {})


def know(outcomes: list[tuple[str, float, Any]], name: str = "known.jsonl") -> str:
    """Outcomes by key, day and value, as a file."""
    lines = [{"order": o, "at": (DAY + timedelta(days=day)).isoformat(), "sold": sold} for o, day, sold in outcomes]
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def feed(**given: Any) -> Any:
    return aifx.data_feedback(
        "judged", **{"predictions": "scores", "outcomes": "known.jsonl", "key": "order", "time": "at"} | given
    )


def test_rows_have_the_outcome_of_the_newest_prediction_before_it(project: Project) -> None:
    predict("scores", {"o1": 0, "o2": 0, "o5": 0, "o6": 0, "o7": 0})
    predict("scores", {"o1": 3, "o8": 3}, label="down")
    know(
        [
            ("o1", 2, "yes"),
            ("o2", 5, "no"),
            ("o5", 1, "yes"),
            ("o5", 2, "yes"),  # the same once more
            ("o6", 1, "yes"),
            ("o6", 2, "no"),  # a contradiction
            ("o8", 2, "yes"),  # known before it was predicted
            ("o9", 2, "yes"),  # never predicted
            ("o2", 6, None),
        ]
    )
    made = feed()
    found = rows_of(project, made.reference)
    assert {order: row["sold"] for order, row in found.items()} == {"o1": "yes", "o2": "no", "o5": "yes"}
    assert found["o2"]["_prediction"]["scored_at"] == DAY
    assert found["o1"]["_prediction"]["label"] == "up"
    assert found["o1"]["_prediction"]["known_at"] == DAY + timedelta(days=2)
    assert made.dropped_by == {"conflict": 1, "missing": 2}
    facts = {name: made.facts[name] for name in made.facts if name.startswith("outcomes") and made.facts[name]}
    counted = {"outcomes_doubled": 1, "outcomes_early": 1, "outcomes_empty": 1, "outcomes_unknown": 1}
    assert facts == {"outcomes": 9, **counted}
    assert made.facts["missing_by_age"] == {"1d": 0, "7d": 2, "30d": 0, "older": 0}
    assert made.facts["late_s"]["max"] == 5 * 86_400


def test_metrics_have_intervals_over_time_and_by_model(project: Project) -> None:
    make_version(project, "many", {"order": [f"o{n}" for n in range(400)], "x": list(range(400))}, "table", 3)
    for week, model in enumerate(["a" * 64, "a" * 64, "b" * 64, "b" * 64]):
        orders = [f"o{n}" for n in range(week * 100, week * 100 + 100)]
        predict("scores", dict.fromkeys(orders, week * 7.0), model=model)
    wrong = {0: 10, 1: 10, 2: 40}
    know([(f"o{n}", 60, "down" if n % 100 < wrong[n // 100] else "up") for n in range(300)])
    facts = feed(rows="many").facts
    (whole,) = facts["metrics"]
    assert (whole["metric"], whole["rows"], whole["value"]) == ("accuracy", 300, 0.8)
    wilson = 0.7511, 0.8413  # of 240 of 300: R's binom::binom.confint(240, 300, methods = "wilson")
    assert (whole["low"], whole["high"]) == pytest.approx(wilson, abs=1e-4)
    assert facts["period"] == "day"
    parts = [(part["start"], part["scored"], part["joined"]) for part in facts["periods"]]
    days = ["2026-05-01T00:00:00Z", "2026-05-08T00:00:00Z", "2026-05-15T00:00:00Z", "2026-05-22T00:00:00Z"]
    assert parts == [(day, 100, joined) for day, joined in zip(days, [100, 100, 100, 0], strict=True)]
    assert [[one["value"] for one in part["metrics"]] for part in facts["periods"]] == [[0.9], [0.9], [0.6], []]
    found = {one["model"][0]: (one["rows"], one["metrics"][0]["value"]) for one in facts["models"]}
    assert found == {"a": (200, 0.9), "b": (100, 0.6)}


def test_errors_of_numbers_have_an_interval_of_the_mean(project: Project) -> None:
    make_version(project, "many", {"order": [f"o{n}" for n in range(50)], "x": list(range(50))}, "table", 3)
    predict("scores", {f"o{n}": 0 for n in range(50)}, value={"value": 10.0})
    know([(f"o{n}", 1, 10 + n % 5) for n in range(50)])
    (found,) = feed(rows="many").facts["metrics"]
    assert (found["metric"], found["value"]) == ("mean_absolute_error", 2.0)
    half = 2.0096 * 1.42857 / 50**0.5  # Student's t of 49 degrees of freedom, and the sample's deviation
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half), abs=1e-4)


def test_a_brier_score_leaves_out_what_the_model_does_not_know(project: Project) -> None:
    sure = {"label": "up", "probabilities": {"up": 0.75, "down": 0.25}}
    predict("scores", {"o1": 0, "o2": 0, "o3": 0}, value=sure)
    know([("o1", 1, "up"), ("o2", 1, "down"), ("o3", 1, "sideways")])
    found = {one["metric"]: (one["rows"], one["value"]) for one in feed().facts["metrics"]}
    assert found == {"accuracy": (2, 0.5), "brier": (2, (0.125 + 1.125) / 2)}

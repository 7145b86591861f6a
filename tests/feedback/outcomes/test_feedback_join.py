"""`aifx.data_feedback`: each outcome belongs to the newest prediction of its key that is not later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
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


def predict(folder: str, days: Mapping[str, float], label: str = "up", key: str = "order", model: str = MODEL) -> None:
    """Add predictions of rows, by key, that many days after the first."""
    with Folder(Path(folder)).open() as target:
        for order, day in days.items():
            row = keyed(Row("", 1, "", {key: order, "day": day}), key, model)
            time = DAY + timedelta(days=day)
            target.add(
                prediction_batch([(row, {"label": label, "probability": 0.75})], model, None, time),
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


def rows_of(project: Project, reference: str) -> dict[str, dict[str, Any]]:
    paths = sorted((project.root / "datasets" / reference.replace("@", "/") / "shards").glob("*.parquet"))
    return {row["order"]: row for path in paths for row in parquet.read_table(path).to_pylist()}


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

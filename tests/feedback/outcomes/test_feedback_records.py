"""`aifx.data_feedback` with records of `aifx serve`: a real server answers, outcomes come, rows become a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from feedback_rows import rows_of
from stored_versions import make_version

import aifx
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.serving.records import RecordWriter, encoded


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    found = Project(tmp_path)
    make_version(found, "orders", {"order": [f"o{n}" for n in range(6)], "x": list(range(6))}, "table", 3)
    lines = [json.dumps({"order": f"o{n}", "at": "2026-05-02", "sold": "up"}) + "\n" for n in range(6)]
    (tmp_path / "known.jsonl").write_text("".join(lines))
    return found


def record(writer: RecordWriter, id: str, rows: list[dict[str, Any]], labels: list[str], model: str = "m") -> None:
    answer = {"outputs": {}, "predictions": [{"label": label, "probability": 0.75} for label in labels]}
    writer.append(id, 1777636800.0, model, "fp", encoded({"rows": rows, "batch": {}}), encoded(answer))


def feed(**given: Any) -> Any:
    how = {"outcomes": "known.jsonl", "key": "order", "time": "at", "zone": "UTC", "rows": "orders"}
    return aifx.data_feedback("judged", **{"predictions": "records", **how, **given})


def test_rows_of_requests_are_predictions(project: Project) -> None:
    writer = RecordWriter(project.root / "records")
    record(writer, "a", [{"order": "o0", "x": 0}], ["up"])
    record(writer, "b", [{"order": "o1", "x": 1}, {"order": "o2", "x": 2}, {"x": 3}], ["up", "down", "up"])
    record(writer, "a", [{"order": "o0", "x": 0}], ["up"])  # a client sent it again
    record(writer, "c", [{"order": "o3", "x": 3}], ["up"], model="n")
    record(writer, "d", [], [])
    record(writer, "e", [{"order": "o4", "x": 4}], ["up"])
    writer.close()
    aifx.data_erase("./records", where="contains(input, 'o4')", purge=True)
    made = feed()
    found = rows_of(project, made.reference)
    assert {order: row["_prediction"]["id"] for order, row in found.items()} == {
        "o0": "a",
        "o1": "b.0",
        "o2": "b.1",
        "o3": "c",
    }
    assert [row["_prediction"]["model"] for row in found.values()] == ["m", "m", "m", "n"]
    assert made.facts["records_left_out"] == {"without key": 1, "repeated": 1, "without rows": 1, "erased": 1}
    assert [(one["metric"], one["value"]) for one in made.facts["metrics"]] == [("accuracy", 0.75)]
    Path("by-id.csv").write_text("prediction_id,sold\nb.1,down\n")
    by_id = feed(outcomes="by-id.csv", key="prediction_id", time=None, rows_key="order")
    assert [*rows_of(project, by_id.reference)] == ["o2"]


def test_records_that_cannot_be_joined(project: Project) -> None:
    writer = RecordWriter(project.root / "records")
    record(writer, "a", [{"order": "o0", "x": 0}], ["up"])
    writer.close()
    with pytest.raises(UsageError, match="--rows-key is missing"):
        feed(key="prediction_id", time=None)
    with pytest.raises(UsageError, match="no prediction of a row with 'x1'"):
        feed(rows_key="x1")
    with pytest.raises(UsageError, match="in no data set"):
        feed(rows=None)
    (payload,) = Path("records").rglob("*.payload")
    payload.write_bytes(payload.read_bytes().replace(b'"o0"', b'"o1"'))
    with pytest.raises(DataError, match="payload was changed"):
        feed()
    assert not (project.root / "datasets" / "judged").exists()

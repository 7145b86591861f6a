"""The loop of docs/explanation/active-learning.md, by its benchmark: label, train, predict, label the least certain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import active_learning

    project, truth = active_learning.collect(tmp_path, 3, 160)
    assert len(truth) == 160
    asked: list[dict[str, str]] = []
    label, certainties = project.label, project.certainties
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(project, "label", lambda labels: (asked.append(labels), label(labels)))
    monkeypatch.setattr(project, "certainties", lambda run: seen.append(certainties(run)) or seen[-1])
    labelled, accuracy = active_learning.begin(project, truth, 0, 120)
    found = dict(active_learning.rounds(project, truth, labelled, "least certain", 0, 10, 1))
    assert (len(labelled), list(found)) == (120, [130])
    assert 0 <= accuracy <= 1
    assert set(seen[0]) == set(truth)
    left = sorted(set(truth) - set(asked[0]), key=lambda row: seen[0][row])
    assert list(asked[1]) == left[:10]
    shards = sorted(project.version.glob("shards/*.parquet"))
    rows = [row for shard in shards for row in parquet.read_table(shard, columns=["_row", "label"]).to_pylist()]
    assert {row["_row"]: row["label"] for row in rows if row["label"] is not None} == asked[0] | asked[1]
    provenance = json.loads((tmp_path / "runs/round-1/provenance.json").read_text())
    assert provenance["dataset"]["reference"].startswith(f"fashion@{project.version.name}")
    history = project.aifx("data", "why", next(iter(asked[1])))["histories"][0]
    steps = [(step["step"], step["outcome"]) for step in history["steps"]]
    assert steps == [("add", "added"), ("label", "kept"), ("label", "changed")]

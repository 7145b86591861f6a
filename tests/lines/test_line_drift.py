"""A line that monitors a model: drift begins a training, and is an event that is sent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inprocess import run
from table_project import train_table_project
from webhook_receiver import SECRET, receiver

LINE = """\
[[station]]
name = "monitor"
run = "aifx monitor main now.jsonl"

[[station]]
name = "train"
run = "aifx train --run again"
after = ["monitor"]
when = "verdict:monitor"

[[notify]]
name = "ops"
url_from = "OPS_URL"
allow = ["127.0.0.0/8"]
"""


def write_rows(project: Path, mean: float) -> None:
    draw = np.random.default_rng(1).normal(size=(300, 2))
    rows = [{"x": x + mean, "y": y} for x, y in draw.tolist()]
    (project / "now.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def states(project: Path) -> dict[str, Any]:
    done = run(["line", "run", "--json"], project, os.environ)
    assert done.stdout, done.stderr
    return {one["station"]: one["state"] for one in json.loads(done.stdout)["stations"]}


@pytest.mark.slow
def test_drift_begins_a_training_and_is_sent_once(tmp_path: Path) -> None:
    train_table_project(tmp_path)
    project = tmp_path / "project"
    (project / "line.toml").write_text(LINE)
    write_rows(project, 0)
    assert states(project)["monitor"] == "done"
    assert not (project / "runs/again").exists()
    write_rows(project, 2)
    assert states(project) == {"monitor": "verdict", "train": "done"}
    assert (project / "runs/again").exists()
    with receiver() as at:
        environ = {**os.environ, "OPS_URL": at.url, "OPS_URL_SECRET": SECRET}
        for _ in range(2):
            sent = run(["notify", "run"], project, environ)
            assert sent.returncode == 0, sent.stdout + sent.stderr
        (event,) = [one for one in at.accepted if one["type"] == "aifx.drift"]
    assert (event["subject"], event["data"]["drifted"][0]) == ("main", "x")

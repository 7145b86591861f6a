"""The forecasts of the template `series` on its own data beat simple ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import inprocess
import numpy as np
import pytest


def percentage_error(births: np.ndarray, lag: int) -> float:
    """Mean error in percent over the last 365 days, if each is predicted by the number `lag` days before."""
    return float(100 * np.mean(np.abs(births[-365:] - births[-365 - lag : -lag]) / births[-365:]))


@pytest.mark.slow
def test_the_forecast_of_a_day_ahead_beats_a_week_and_a_year_before(tmp_path: Path) -> None:
    assert inprocess.run(["init", "p", "--template", "series", "--yes"], tmp_path, os.environ).returncode == 0
    project = tmp_path / "p"
    with open(project / "data/births.csv", newline="") as file:
        births = np.array([float(row["births"]) for row in csv.DictReader(file)])
    found = []
    for seed in range(3):
        run = ["--run", f"seed-{seed}"]
        assert inprocess.run(["train", *run, "--set", f"train.seed={seed}"], project, os.environ).returncode == 0
        evaluated = inprocess.run(["eval", *run, "--json"], project, os.environ)
        assert evaluated.returncode == 0, evaluated.stdout  # its gate
        metrics = json.loads(evaluated.stdout)["metrics"]
        assert metrics["examples"] == 365
        assert 0.7 < metrics["coverage"] < 0.9
        found.append(metrics["mape"])
    assert np.mean(found) <= 2.0
    assert np.mean(found) < 0.6 * percentage_error(births, 7) < 0.6 * percentage_error(births, 364)

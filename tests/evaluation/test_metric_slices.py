"""`eval.slices`: metrics by the values of a column, gates on them, and the page with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from trained_project import aifx, document

CONFIG = """\
[task]
kind = "tabular"
[data]
path = "rows.csv"
target = "label"
ignore = ["region", "patient"]
test_fraction = 0.4
[data.columns]
label = "categorical"
[train]
num_steps = 60
global_batch_size = 32
[optimizer]
learning_rate = 0.01
[eval]
slices = ["region"]
gates = ["slices.region.gap.accuracy <= 0.1"]
"""
ROWS = 1500


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of rows of two regions, in one of which labels are noise; a third has few rows."""
    random = np.random.default_rng(0)
    x = random.normal(size=ROWS)
    region = np.where(np.arange(ROWS) < 20, "islands", np.where(random.uniform(size=ROWS) < 0.5, "north", "south"))
    label = np.where(region == "south", random.integers(0, 2, ROWS), (x > 0).astype(int))
    rows = zip(x, region, np.arange(ROWS) // 3, label, strict=True)
    project = tmp_path_factory.mktemp("slices") / "project"
    project.mkdir()
    lines = [f"{a:.4f},{b},p{c},{d}" for a, b, c, d in rows]
    (project / "rows.csv").write_text("\n".join(["x,region,patient,label", *lines]) + "\n")
    (project / "aifx.toml").write_text(CONFIG)
    document(aifx(project, "train", "--json"))
    return project


@pytest.mark.representative("an evaluation")
def test_a_slice_that_is_worse_fails_its_gate(sliced: Path) -> None:
    report = document(aifx(sliced, "eval", "--json"), code=1)
    region = report["slices"]["region"]
    north, south = (region["values"][name]["metrics"]["accuracy"] for name in ("north", "south"))
    assert set(region["too_few"]) == {"islands"}
    assert south["low"] < south["value"] < 0.65 < 0.9 < north["low"] <= north["value"] <= north["high"]
    assert region["worst"]["accuracy"] == south["value"]
    assert region["gap"]["accuracy"] == pytest.approx(north["value"] - south["value"])
    assert report["gates"][0]["value"] == region["gap"]["accuracy"]
    groups = [one["groups"] for one in region["values"].values()]
    shares = [one["metrics"]["accuracy"]["value"] for one in region["values"].values()]
    few = region["too_few"]["islands"]
    whole = report["metrics"]["accuracy"] * report["metrics"]["examples"]
    assert 0 <= whole - np.dot(groups, shares) <= few
    assert sum(groups) + few == report["metrics"]["examples"]
    assert report["metrics"]["ece"] < 0.2
    kept = json.loads((sliced / "runs/main/eval/60.json").read_text())
    assert kept["splits"]["test"]["slices"] == report["slices"]


@pytest.mark.slow
def test_a_comparison_has_the_difference_of_each_slice(sliced: Path, tmp_path: Path) -> None:
    sliced = shutil.copytree(sliced, tmp_path / "project")  # whose newest run others take
    document(aifx(sliced, "train", "--run", "short", "--set", "train.num_steps=2", "--json"))
    asked = ["eval", "--run", "main", "--against", "short", "--metric", "max accuracy"]
    found = document(aifx(sliced, *asked, "--json"))
    region = found["slices"]["region"]
    assert set(region) == {"north", "south"}
    of = document(aifx(sliced, "eval", "--run", "main", "--json"), code=1)["slices"]["region"]["values"]
    for name, one in region.items():
        assert one["value"] == pytest.approx(of[name]["metrics"]["accuracy"]["value"])
        assert one["groups"] == of[name]["groups"]
        assert one["difference"] == pytest.approx(one["value"] - one["against_value"])
        assert one["low"] <= one["difference"] <= one["high"]
    assert region["north"]["low"] > region["south"]["difference"]
    few = found["groups"] - sum(one["groups"] for one in region.values())
    gained = sum(one["groups"] * one["difference"] for one in region.values())
    assert abs(found["groups"] * found["difference"] - gained) <= few + 1e-6
    lines = aifx(sliced, *asked).stdout.splitlines()
    assert sum(line.startswith(("north", "south")) for line in lines) == 2


@pytest.mark.slow
def test_slices_in_the_terminal_and_the_page(sliced: Path) -> None:
    done = aifx(sliced, "eval", "--html", "report.html", "--gate", "slices.region.worst.accuracy >= 0.99")
    assert done.returncode == 1
    assert "slices.region.worst.accuracy >= 0.99" in done.stdout
    assert "region: too few for an interval: islands" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    page = (sliced / "report.html").read_text()
    assert "<h2>By region</h2>" in page
    assert "Reliability" in page
    assert "<svg" in page


@pytest.mark.slow
def test_groups_widen_the_interval_and_are_drawn_whole(sliced: Path) -> None:
    by_row, by_patient = (
        document(aifx(sliced, "eval", "--json", "--set", f"eval.group={group}"), code=1)["slices"]["region"]["values"]
        for group in ("_row", "patient")
    )
    assert by_patient["south"]["groups"] < by_row["south"]["groups"]
    assert by_patient["south"]["metrics"]["accuracy"]["value"] == by_row["south"]["metrics"]["accuracy"]["value"]


@pytest.mark.slow
def test_a_table_is_compared_by_its_group_column(sliced: Path) -> None:
    found = document(aifx(sliced, "eval", "--against", "main", "--set", "eval.group=patient", "--json"), code=1)
    assert (found["group"], found["verdict"], found["difference"]) == ("patient", "inconclusive", 0)
    assert found["groups"] < 500


@pytest.mark.slow
def test_mistakes_are_named(sliced: Path) -> None:
    for setting, text in {
        'eval.slices=["regoin"]': "no column 'regoin' to group or slice by",
        'eval.slices=["patient"]': "at most 200 are slices",
        "eval.slices=[]": "there are no slices of 'region'",
        'eval.gates=["slices.region.worst.acc > 0"]': "there is no metric 'slices.region.worst.acc'",
    }.items():
        kept = [] if "gates" in setting or "[]" in setting else ["--set", "eval.gates=[]"]
        done = aifx(sliced, "eval", "--set", setting, *kept)
        assert done.returncode == 2, done.stdout
        assert text in done.stderr

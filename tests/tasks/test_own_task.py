"""A task of a project's own: the one of docs/tasks.md through the real command, and those that are wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import inprocess
import numpy as np
import pytest

from aifx.config import load_config
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.tasks import create_task

DOCUMENT = Path(__file__).parents[2] / "docs/tasks.md"


def documented_task() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return str(code)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    readings = np.sin(np.arange(4000) / 7) + 0.1 * rng.normal(size=4000)
    np.savetxt(tmp_path / "data/readings.csv", readings)
    (tmp_path / "forecast.py").write_text(documented_task())
    (tmp_path / "aifx.toml").write_text(
        "[task]\nkind = 'forecast:Forecast'\n[model]\nhidden = 8\n[data]\nwindow = 12\n"
        "[train]\nnum_steps = 300\nglobal_batch_size = 64\nvalidate_every = 100\n[optimizer]\nlearning_rate = 0.02\n"
        "[eval]\ngates = ['mean_absolute_error <= 0.2']\n"
    )
    return tmp_path


def aifx(project: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return inprocess.run(args, project, os.environ, stdin=stdin)


def test_the_documented_task_trains_and_passes_its_gate(project: Path) -> None:
    trained = aifx(project, "train", "--json")
    assert trained.returncode == 0, trained.stderr
    evaluated = aifx(project, "eval", "--json")
    assert evaluated.returncode == 0, evaluated.stderr + evaluated.stdout
    document = json.loads(evaluated.stdout)
    assert document["gates"][0]["passed"] is True
    assert 0.05 < document["metrics"]["mean_absolute_error"] < 0.2  # noise of 0.1 leaves 0.08
    assert json.loads(aifx(project, "eval", "--split", "train", "--json").stdout)["gates"][0]["passed"] is True
    for args, word in (
        (["generate"], "cannot write text"),
        (["eval", "--gate", "mean_abs_error < 1"], "mean_absolute_error"),
        (["train", "--run", "b", "--set", "model.hiden=3"], "hidden"),
    ):
        failed = aifx(project, *args)
        assert failed.returncode == 2
        assert word in failed.stderr
        assert "Traceback" not in failed.stderr

    check_new_data(project)


def check_new_data(project: Path) -> None:
    """The trained task makes predictions and measures other data without what it was trained on."""
    readings = np.loadtxt(project / "data/readings.csv")
    (project / "data/readings.csv").rename(project / "june.csv")
    windows = np.lib.stride_tricks.sliding_window_view(readings, 12)[:-1]
    rows = "".join(json.dumps({"readings": window.tolist()}) + "\n" for window in windows)
    predicted = aifx(project, "predict", "-", stdin=rows)
    assert predicted.returncode == 0, predicted.stderr
    values = np.array([json.loads(line)["value"] for line in predicted.stdout.splitlines()])
    measured = aifx(project, "eval", "--data", "june.csv", "--json")
    assert measured.returncode == 0, measured.stderr + measured.stdout
    (report,) = json.loads(measured.stdout)["datasets"]
    assert report["metrics"]["mean_absolute_error"] == pytest.approx(np.abs(values - readings[12:]).mean(), rel=1e-4)
    for row, words in (
        ('{"readings": [1, 2]}', ["-:1: the row cannot be used", "holds 2 numbers, not 12"]),
        ('{"reading": []}', ["-:1", "no field 'readings'"]),
        ('{"readings": {}}', ["-:1", "TypeError"]),
    ):
        failed = aifx(project, "predict", "-", stdin=row)
        assert failed.returncode == 2, failed.stderr
        for word in words:
            assert word in failed.stderr
    code = documented_task()
    chatty, places = re.subn(r"(    def encode\(.*\n)", r'\1        print("reading a row")\n', code)
    assert places == 1
    (project / "forecast.py").write_text(chatty)
    again = aifx(project, "predict", "-", stdin=rows)
    assert (again.stdout, again.returncode) == (predicted.stdout, 0)
    assert "reading a row" in again.stderr
    for old, new, args, words in (
        ("def encode(", "def code(", ["predict", "-"], ["does not define encode", "docs/tasks.md"]),
        ('batch["windows"])}', 'batch["window"])}', ["predict", "-"], ["Forecast.predictions failed", "forecast.py:"]),
        ("def with_data(", "def data(", ["eval", "--data", "june.csv"], ["does not define with_data"]),
    ):
        assert old in code
        (project / "forecast.py").write_text(code.replace(old, new))
        failed = aifx(project, *args, stdin=rows)
        assert failed.returncode == 2, failed.stderr
        for word in words:
            assert word in failed.stderr


def open_task(project: Path) -> None:
    found = Project(project)
    create_task(load_config(found, [], {}), found, project / "assets")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("import hashlib", "import hashlibb", ["hashlibb", "forecast.py"]),
        ("import hashlib", "import hashlib\n1 / 0", ["ZeroDivisionError", "forecast.py"]),
        ("import hashlib", "import hashlib\nraise SystemExit(3)", ["SystemExit", "forecast.py"]),
        ("import hashlib", "import hashlib\ndef f(:", ["SyntaxError", "forecast.py"]),
        ("class Forecast(Task)", "class Forcast(Task)", ["Forcast"]),
        ("    model_section = ForecastModel\n", "", ["model_section"]),
        ("    def metrics(", "    def metric(", ["lacks metrics"]),
        ("    def create(", "    def crate(", ["lacks create"]),
        ('    unit = "windows"\n', "", ["lacks unit"]),
        ("path = project.root / config.data.path", "path = {}['no']", ["KeyError", "forecast.py:"]),
    ],
)
def test_a_task_that_is_wrong_is_a_configuration_error(project: Path, old: str, new: str, words: list[str]) -> None:
    code = documented_task()
    assert old in code
    (project / "forecast.py").write_text(code.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        open_task(project)
    assert "forecast:Forecast" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('batch["following"]', 'batch["folowing"]', ["Forecast.objective", "KeyError", "forecast.py:"]),
        ("totals.items()", "totals.itms()", ["Forecast.metrics", "AttributeError", "forecast.py:"]),
    ],
)
def test_a_task_that_fails_later_is_no_bug_of_ours(project: Path, old: str, new: str, words: list[str]) -> None:
    (project / "forecast.py").write_text(documented_task().replace(old, new))
    failed = aifx(project, "train", "--set", "train.num_steps=2", "--set", "train.validate_every=1")
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    for word in words:
        assert word in failed.stderr


def test_a_source_without_end_is_not_measured(project: Path) -> None:
    own = "    def evaluation_source(self, split):\n        return replace(self.source(split), seed=None)\n"
    assert own in documented_task()
    (project / "forecast.py").write_text(documented_task().replace(own, ""))
    assert aifx(project, "train", "--set", "train.num_steps=2").returncode == 0
    failed = aifx(project, "eval", "--split", "train")
    assert failed.returncode == 2
    assert "the train split cannot be measured" in failed.stderr
    assert "hint: aifx eval --split test" in failed.stderr
    assert aifx(project, "eval", "--set", "eval.gates=[]").returncode == 0


@pytest.mark.parametrize("kind", ["nowhere:Task", "forecast:Nothing", "forecast", "forecast:np", "a b:C", ":C"])
def test_a_kind_that_names_no_task(project: Path, kind: str) -> None:
    text = (project / "aifx.toml").read_text().replace("forecast:Forecast", kind)
    (project / "aifx.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"task\.kind"):
        open_task(project)


def test_two_projects_with_modules_of_one_name(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    open_task(project)
    other = tmp_path_factory.mktemp("other")
    (other / "aifx.toml").write_text((project / "aifx.toml").read_text().replace("hidden = 8", "hidden = 8\nwidth = 2"))
    (other / "data").mkdir()
    (other / "data/readings.csv").write_text((project / "data/readings.csv").read_text())
    code = documented_task().replace(
        "class ForecastModel(Section):", "class ForecastModel(Section):\n    width: int = 1\n"
    )
    (other / "forecast.py").write_text(code)
    open_task(other)
    open_task(project)

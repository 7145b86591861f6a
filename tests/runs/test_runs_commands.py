"""`aifx runs` and `aifx ckpt` as processes, on run directories made by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import inprocess
import jax.numpy as jnp
import pytest
from published_schemas import check_answer

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import state_digest
from aifx.commands.main import run as run_command
from aifx.config.best_by import LOSS, score_of
from aifx.config.sections import CheckpointSection
from aifx.core.json_files import read_jsonl
from aifx.core.project import Project, RunDirectory
from aifx.runs.lock import hold_run
from aifx.runs.records import Ledger, MetricsWriter
from aifx.verbs import runs as run_verbs

CONFIG = "[task]\nkind = 'language'  # default\n\n[train]\nnum_steps = 40  # aifx.toml:2\nseed = {seed}  # --set\n"


def state_of(step: int) -> dict[str, Any]:
    return {"params": {"w": jnp.full((300, 50), step, jnp.float32)}, "step": jnp.int32(step)}


def make_run(project: Project, name: str, seed: int, *, ended: bool = True) -> RunDirectory:
    run = project.run(name)
    run.path.mkdir(parents=True)
    run.config.write_text(CONFIG.format(seed=seed))
    ledger, metrics = Ledger(run.events), MetricsWriter(run.metrics, 0)
    ledger.write("start", step=0)
    checkpoints = Checkpoints(run.checkpoints, CheckpointSection(asynchronous=False))
    for step in (10, 20, 30, 40):
        loss = 5.0 - step / 10 + seed
        record = {"step": step, "loss": loss, "unit": "tokens", "units_per_s": 1000.0, "step_time_s": 0.1}
        metrics.write({**record, "validation": {"loss": loss + 1}} if step % 20 == 0 else record)
        if step % 20 == 0:
            checkpoints.save(
                step, state_of(step), host={}, validation_loss=loss + 1, score=score_of(LOSS, {"loss": loss + 1})
            )
            ledger.write("checkpoint", step=step)
    if ended:
        ledger.write("stop", status="completed", step=40)
    return run


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    return Project(tmp_path)


def aifx(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return inprocess.run(arguments, project.root, os.environ)


class Here:
    """The same commands in this process, where jax is loaded already."""

    def __init__(self, project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(project.root)
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        assert run_command(list(arguments)) == code, self._capsys.readouterr().err
        out = self._capsys.readouterr().out
        check_answer(arguments, out)
        return out

    def answer(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        doc: dict[str, Any] = json.loads(self(*arguments, "--json", code=code))
        return doc


@pytest.fixture
def here(project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(project, capsys, monkeypatch)


def answer(project: Project, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = aifx(project, *arguments, "--json")
    assert done.returncode == code, done.stderr
    doc: dict[str, Any] = json.loads(done.stdout)
    assert doc["schema_version"] == 1
    return doc


def test_ls(project: Project) -> None:
    assert answer(project, "runs", "ls") == {"schema_version": 1, "runs": []}
    assert aifx(project, "runs", "ls").returncode == 0
    make_run(project, "a", 0)
    make_run(project, "b", 1, ended=False)
    runs = answer(project, "runs", "ls")["runs"]
    assert [(r["run"], r["status"], r["step"], r["num_steps"], r["loss"]) for r in runs] == [
        ("a", "completed", 40, 40, 1.0),
        ("b", "killed", 40, 40, 2.0),
    ]
    people = aifx(project, "runs", "ls").stdout
    assert "completed" in people
    assert "1,000 tokens/s" in people


def test_show(project: Project) -> None:
    make_run(project, "a", 3)
    doc = answer(project, "runs", "show")
    assert doc["config"] == [
        {"key": "train.num_steps", "value": 40, "origin": "aifx.toml:2"},
        {"key": "train.seed", "value": 3, "origin": "--set"},
    ]
    assert [c["step"] for c in doc["checkpoints"]] == [20, 40]
    assert doc["last"]["step"] == 40
    people = aifx(project, "runs", "show", "a").stdout
    assert re.search("run a: completed .*40.*40", people)
    assert "┤" in people


def test_show_reads_the_metrics_once(project: Project, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are long, and a run that trains adds to them: the chart and the last loss are of one reading."""
    run = make_run(project, "a", 3)
    read: list[Path] = []
    monkeypatch.setattr(run_verbs, "read_jsonl", lambda path: (read.append(path), read_jsonl(path))[1])
    assert "┤" in here("runs", "show")
    assert read.count(run.metrics) == 1


def test_show_tells_where_the_time_went(project: Project) -> None:
    run = make_run(project, "a", 3)
    run.events.unlink()
    ledger = Ledger(run.events)
    spent = {"joules": 7.2e6, "seconds": 1400.0, "basis": "nameplate"}
    ledger.write("start", step=0, account={"elapsed_s": 100.0, "seconds": {"setup": 100.0}})
    account = {"elapsed_s": 1600.0, "seconds": {"step": 1440.0, "checkpoint": 60.0}, "steps": [0, 40], "energy": spent}
    ledger.write("checkpoint", step=40, account=account)
    for step in (41, 42):
        ledger.write("checkpoint", step=step)
    ledger.write("stop", status="completed")
    (project.root / "aifx.toml").write_text("[costs]\nprice_per_hour = 9\npue = 1.2\ngco2e_per_kwh = 250\n")
    bill = answer(project, "runs", "show")["bill"]
    assert bill["goodput"] == pytest.approx(0.9)
    assert bill["seconds"]["checkpoint"] == 60.0
    assert bill["cost"]["step"] == pytest.approx(3.6)
    assert bill["energy"]["operational_gco2e"] == pytest.approx(600.0)
    assert bill["advice"]["mtbf_source"] == "assumed"
    people = aifx(project, "runs", "show", "a").stdout
    lines = people[people.index("goodput") : people.index("setting ")].splitlines()
    assert re.match("goodput 90.0% .*26 min 40 s", lines[0])
    assert lines[2].split()[:6] == ["steps", "24", "min", "00", "s", "90.0%"]
    assert any(re.match(r"cost 4\.00 .*\b9\b.*0\.40", line) for line in lines)
    assert "energy 2 kWh, nameplate" in lines
    assert any("88%" in line for line in lines)
    assert "emissions 600 gCO2e" in lines
    assert any(re.search(r"250 g/kWh .*PUE.* 1\.2", line) for line in lines)
    assert max(map(len, lines)) <= 80


def test_compare(project: Project) -> None:
    make_run(project, "a", 0)
    make_run(project, "b", 1)
    doc = answer(project, "runs", "compare", "a", "b")
    assert doc["config"] == [{"key": "train.seed", "values": [0, 1]}]
    assert doc["rows"][-1] == {
        "step": 40,
        "loss": [1.0, 2.0],
        "smoothed_loss": [1.0, 2.0],
        "validation_loss": [2.0, 3.0],
    }
    assert "+1.0000" in aifx(project, "runs", "compare", "a", "b").stdout
    assert aifx(project, "runs", "compare", "a", "a").returncode == 2


def test_an_unknown_run_is_answered_with_the_nearest(project: Project) -> None:
    make_run(project, "main", 0)
    done = aifx(project, "runs", "show", "mian")
    assert done.returncode == 2
    assert "did you mean 'main'?" in done.stderr


def test_watch_once(project: Project) -> None:
    make_run(project, "a", 0)
    picture = aifx(project, "runs", "watch", "--once").stdout
    assert "run a" in picture
    assert "completed" in picture
    assert "step 40 / 40" in picture
    assert answer(project, "runs", "watch", "a", "--once")["status"] == "completed"


def test_watch_ends_with_the_run(project: Project) -> None:
    run = make_run(project, "a", 0, ended=False)
    code = "from aifx.commands.main import main; main()"
    command = [sys.executable, "-c", code, "runs", "watch", "--interval", "0.1"]
    with hold_run(run):
        watch = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, text=True)
        assert watch.stdout is not None
        assert "running" in watch.stdout.readline()
        time.sleep(0.3)
        assert watch.poll() is None
        MetricsWriter(run.metrics, 40).write({"step": 41, "loss": 0.5})
        Ledger(run.events).write("stop", status="completed", step=41)
    rest = watch.communicate(timeout=120)[0]
    assert watch.returncode == 0
    assert rest.splitlines()[-1].split()[:6] == ["a:", "completed", "step", "41/40", "loss", "0.5000"]


def test_ckpt(project: Project, here: Here) -> None:
    run = make_run(project, "a", 0)
    doc = here.answer("ckpt", "ls")
    assert [(c["step"], c["is_best"]) for c in doc["checkpoints"]] == [(20, False), (40, True)]
    doc = here.answer("ckpt", "show", "--arrays")
    assert (doc["step"], doc["num_parameters"], doc["size_bytes"]) == (40, 15_000, 60_004)
    assert doc["state_digest"] == state_digest(state_of(40))
    assert {a["name"] for a in doc["arrays"]} == {"params/w", "step"}
    assert here.answer("ckpt", "show", "20")["state_digest"] == state_digest(state_of(20))
    assert here.answer("ckpt", "show", "best", "--run", "a")["step"] == 40
    doc = here.answer("ckpt", "verify", "20")
    assert (doc["state_digest"], doc["damaged_files"], doc["damaged_arrays"]) == (state_digest(state_of(20)), [], [])
    assert "every byte" in here("ckpt", "verify")
    assert here.answer("ckpt", "show", "30", code=2)["error"]["why"] == "it has 20, 40"
    assert here("ckpt", "show", "newest", code=2) == ""

    stray = run.checkpoints / "50.unfinished"
    stray.mkdir()
    here.answer("ckpt", "ls")
    here.answer("ckpt", "verify")
    assert stray.exists()  # a trainer may be writing it


def test_a_damaged_checkpoint_is_a_verdict(project: Project, here: Here) -> None:
    run = make_run(project, "a", 0)
    largest = max((p for p in (run.checkpoints / "40").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    doc = here.answer("ckpt", "verify", code=1)
    name = largest.relative_to(run.checkpoints / "40").as_posix()
    (damaged,) = doc["damaged_files"]
    assert damaged.startswith(f"{name} ")
    assert doc["damaged_arrays"] == ["params/w"]
    assert doc["state_digest"] != state_digest(state_of(40))
    page = here("ckpt", "verify", code=1)
    assert f"damaged file: {name}" in page
    assert "damaged array: params/w" in page
    assert here.answer("ckpt", "show")["state_digest"] == state_digest(state_of(40))  # which reads no array
    (run.checkpoints / "20" / "manifest.json").write_text("{}")
    assert here.answer("ckpt", "show", "20", code=1)["state_digest"] is None
    assert "manifest.json" in here.answer("ckpt", "verify", "20", code=1)["damaged_files"][0]
    assert "damaged" in here("ckpt", "ls")

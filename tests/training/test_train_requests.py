"""`aifx train --request ID`: one run per id, which is reported again as it was reported first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_files import kill_at_each_change

from aifx.core.errors import DataError, RunBusy, UsageError
from aifx.core.json_files import write_text
from aifx.core.project import Project
from aifx.core.requests import Request
from aifx.runs.lock import hold_run
from aifx.runs.requests import find_asked, finish_request, keep_request

HERE = Path(__file__).parent
ONCE = Request("tick-7.train", "train")


def ask(tiny: Any, *args: str, id: str = "r1", code: int = 0) -> dict[str, Any]:
    got, out, err = tiny.command("train", "--json", "--request", id, *args)
    assert got == code, err + out
    document: dict[str, Any] = json.loads(out)
    return document


def names(tiny: Any) -> list[str]:
    return sorted(run.name for run in tiny.project.runs())


def test_a_finished_run_is_reported_again_whatever_its_name_and_settings(ended: Path, tiny_type: Any) -> None:
    """The run was trained before without an id, so nothing is trained here at all."""
    tiny = tiny_type(Project(Path(shutil.copytree(ended, ended.parent / "asked"))))
    first = ask(tiny, "--run", "main")
    assert (first["run"], first["request"], first["is_repeated"], first["status"]) == ("main", "r1", False, "completed")
    before = len(tiny.events())
    assert ask(tiny, "--run", "x-2026-12-03") == first | {"is_repeated": True}
    assert ask(tiny, "--set", "train.num_steps=99") == first | {"is_repeated": True}
    tiny.project.config_path.write_text("no TOML")
    assert ask(tiny) == first | {"is_repeated": True}
    assert (names(tiny), len(tiny.events())) == (["main"], before)
    assert "already completed at step 12" in tiny.command("train", "--request", "r1")[1]
    error = ask(tiny, "--fork", "other", code=2)["error"]
    assert "belongs to another act" in error["what"]
    assert "63 at most" in ask(tiny, id="a/b", code=2)["error"]["why"]


def test_an_unfinished_run_goes_on_under_its_first_name_and_a_diverged_one_does_not(tiny: Any) -> None:
    run, short = tiny.run("x-1"), ["--set", "train.num_steps=3", "--set", "train.validate_every=0"]
    with hold_run(run):
        keep_request(tiny.project, run, Request("r1", "train"))  # as if it had been killed then
    bad = ask(tiny, "--run", "x-2", *short, "--set", "guards.non_finite=stop", "--set", "data.poison_steps=[1]", code=1)
    assert (bad["run"], bad["status"], bad["error"]["exit_code"]) == ("x-1", "diverged", 1)
    assert ask(tiny, "--run", "x-3", *short, code=1) == bad | {"is_repeated": True}
    assert names(tiny) == ["x-1"]


def test_a_kept_id_is_of_one_run_and_moves_with_it(tmp_path: Path) -> None:
    project = Project(tmp_path)
    one, two = project.run("one"), project.run("two")
    with hold_run(one), hold_run(two):
        keep_request(project, one, ONCE)
        keep_request(project, one, ONCE)
        with pytest.raises(RunBusy, match="began run 'one'") as busy:
            keep_request(project, two, ONCE)
        assert busy.value.transient
        keep_request(project, one, replace(ONCE, id="another"))
    one.path.rename(tmp_path / "runs" / "moved")
    found = find_asked(project, ONCE)
    assert found is not None
    assert (found[0].name, found[1].outcome) == ("moved", None)
    with pytest.raises(UsageError, match="another act"):
        find_asked(project, replace(ONCE, act="train --run one --fork"))
    project.run("moved").path.rename(tmp_path / "runs" / ".removed-moved-1")
    assert find_asked(project, ONCE) is None
    project.run("two").requests.mkdir()
    for path in (tmp_path / "runs" / ".removed-moved-1" / "requests").iterdir():
        (project.run("two").requests / path.name).write_text("{}")
    with pytest.raises(DataError, match="is damaged"):
        find_asked(project, ONCE)


def train_in_short(root: Path, name: str) -> str:
    """What a training does with its request, without the training."""
    project = Project(root)
    found = find_asked(project, ONCE)
    if found is not None and found[1].outcome is not None:
        return str(found[1].outcome["run"])
    run = project.run(name) if found is None else found[0]
    with hold_run(run):
        keep_request(project, run, ONCE)
        write_text(run.config, "")
        finish_request(run, ONCE, {"run": run.name})
    return run.name


@pytest.mark.representative("a killed request to train")
def test_a_kill_at_each_change_of_a_request_leaves_one_run(tmp_path: Path) -> None:
    """The same command comes again under the name of another day."""
    script = f"import test_train_requests as t; t.kill_each({str(tmp_path)!r})"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8


def kill_each(folder: str) -> None:
    def check(root: Path, calm: Path) -> None:
        project = Project(root)
        name = train_in_short(root, "x-2")
        assert [run.name for run in project.runs()] == [name]
        assert train_in_short(root, "x-3") == name
        assert [run.name for run in project.runs()] == [name]

    kills = kill_at_each_change(
        Path(folder), lambda root: root.mkdir(), lambda root: void(train_in_short(root, "x-1")), check
    )
    sys.stdout.write(str(kills))


def void(_: object) -> None: ...


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["train", "fork"])
def test_a_kill_at_each_change_of_a_training(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "killed_training.py"), kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    record_property("kills", int(done.stdout))
    assert int(done.stdout) > 30

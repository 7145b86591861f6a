from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aifx.core.json_files import read_jsonl
from aifx.drills.record import DRILLS
from aifx.verbs.completion import complete_drill

KILL = ("kill", "--phase", "step")
PREEMPT = ("preempt", "--phase", "step")


def left(root: Path) -> list[Path]:
    return list((root / "runs").glob(".drill-*"))


def test_a_run_that_recovers_passes(drilled) -> None:
    code, results = drilled.results("kill", "preempt", "corrupt-ckpt", "--phase", "step", "--phase", "flip")
    assert code == 0
    assert [(r["drill"], r["phase"], r["verdict"]) for r in results] == [
        ("kill", "step", "passed"),
        ("preempt", "step", "passed"),
        ("corrupt-ckpt", "flip", "passed"),
    ]
    kill, preempt, corrupt = (r["measured"] for r in results)
    assert (kill["end"], kill["resumed_from"], preempt["resumed_from"]) == ("signal 9", 6, 9)
    assert 1 <= kill["steps_lost"] <= 6
    assert (preempt["end"], preempt["steps_lost"]) == ("exit 75", 0)
    assert corrupt["steps_lost"] > 6
    assert all(measured["state"] == "equal" and measured["next_step_s"] > 0 for measured in (kill, preempt, corrupt))
    assert not left(drilled.root)
    (record,) = read_jsonl(drilled.root / "runs" / DRILLS)
    assert (record["passed"], record["drills"]) == (True, ["kill", "preempt", "corrupt-ckpt"])


@pytest.mark.parametrize(
    ("behaviour", "drill", "reason"),
    [
        ({"drifts": True}, KILL, "state.*different"),
        ({"forgets": True}, KILL, "nothing.*step 6"),
        ({"forgets_records": 1}, KILL, r"metrics\.jsonl.*step 6"),
        ({"stop_code": 1}, PREEMPT, "exit 1.*exit 75"),
        ({"loses": True}, PREEMPT, "3 steps.*lost"),
        ({}, ("io-error", "--phase", "step"), "exit 1.*exit 2"),
        ({"trusts": True}, ("corrupt-ckpt", "--phase", "cut"), r"12\.damaged"),
    ],
)
def test_a_broken_guarantee_exits_1_and_is_named(
    drilled, behave: Callable[..., None], behaviour: dict[str, object], drill: tuple[str, ...], reason: str
) -> None:
    behave(**behaviour)
    code, out, _ = drilled.command(*drill)
    assert code == 1
    assert f"{drill[0]}, {drill[2]}, broken: " in out
    assert re.search(reason, " ".join(out.split()))
    assert max(map(len, out.splitlines()[:2])) <= 80


def test_a_fault_waits_for_a_complete_checkpoint(drilled, behave: Callable[..., None]) -> None:
    behave(saves_slowly=True)  # the first checkpoint is complete when the second is due
    phases = ("start", "data", "step", "evaluation")
    code, results = drilled.results("kill", *(word for phase in phases for word in ("--phase", phase)))
    assert [(r["phase"], r["verdict"], r["reasons"]) for r in results] == [(phase, "passed", []) for phase in phases]
    assert code == 0
    start, *others = (r["measured"]["resumed_from"] for r in results)
    assert start > 6  # a run that was interrupted, and so saved
    assert others == [6, 6, 6]


def test_a_run_that_resumed_from_nothing_shows_nothing(drilled, behave: Callable[..., None]) -> None:
    behave(fails_at=3)  # before the first checkpoint
    code, (result,) = drilled.results("loader-death", "--phase", "data")
    assert code == 1
    assert (result["verdict"], result["measured"]["resumed_from"]) == ("not shown", 0)
    assert result["measured"]["state"] == "equal"


def test_what_cannot_be_injected_is_not_run_and_not_passed(drilled) -> None:
    code, results = drilled.results("kill", "--phase", "evaluation", "--set", "train.validate_every=0")
    assert code == 2
    (result,) = results
    assert result["verdict"] == "not run"
    (reason,) = result["reasons"]
    assert "train.validate_every = 0" in reason
    assert result["measured"] is None


def test_data_that_cannot_have_the_fault_is_not_run(drilled) -> None:
    code, results = drilled.results("nan")  # the trainer reads no batch, as if none had a number that can be NaN
    assert code == 2
    assert (results[0]["verdict"], results[0]["phase"]) == ("not run", "data")
    assert "whole numbers" in results[0]["reasons"][0]


def test_a_run_that_ends_before_the_fault_is_not_run(drilled, behave: Callable[..., None]) -> None:
    behave(error="no data")
    _, results = drilled.results("nan")
    assert results[0]["verdict"] == "not run"
    assert "exit 2" in results[0]["reasons"][0]


def test_the_moment_that_does_not_come_is_not_run(drilled) -> None:
    _, results = drilled.results("kill", "--phase", "compilation")  # which the trainer does not report
    assert results[0]["verdict"] == "not run"
    assert "before the phase compilation" in results[0]["reasons"][0]


def test_without_an_undisturbed_run_there_is_nothing_to_compare_with(drilled, behave: Callable[..., None]) -> None:
    behave(error="no data")
    code, out, _ = drilled.command(*KILL, "--json")
    assert code == 2
    assert json.loads(out)["error"]["why"] == "no data"
    assert not left(drilled.root)


def test_keep_leaves_the_copy_and_says_where(drilled) -> None:
    (drilled.root / "runs" / "main").mkdir(parents=True)
    (drilled.root / "runs" / "main" / "config.toml").touch()
    code, out, _ = drilled.command(*KILL, "--keep", "--every", "4")
    assert code == 0
    (folder,) = left(drilled.root)
    assert f"kept in {folder}" in out
    assert "16 steps" in out
    assert "every 4" in out
    assert (folder / "runs" / "kill-step" / "metrics.jsonl").exists()
    assert (folder / "runs" / "main").is_symlink()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("kil",), "did you mean 'kill'?"),
        (("kill", "--phase", "stp"), "did you mean 'step'?"),
        (("kill", "--phase", "silent"), "is not a phase of these drills"),
    ],
)
def test_names_are_checked_before_anything_is_copied(drilled, args: tuple[str, ...], said: str) -> None:
    code, _, err = drilled.command(*args)
    assert code == 2
    assert said in err
    assert not (drilled.root / "runs").exists()


def test_names_are_completed() -> None:
    assert complete_drill("lo") == ["loader-death", "lost-host"]
    assert complete_drill("a") == ["all"]


def test_a_disk_that_cannot_be_mounted_is_not_run(drilled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(drilled.root))  # which has no mount
    code, results = drilled.results("disk-full", "--phase", "lasting")
    assert code == 2
    assert results[0]["verdict"] == "not run"
    assert "mount" in results[0]["reasons"][0]
    code, results = drilled.results("all", "--phase", "lasting", "--phase", "cut")
    assert (code, [r["verdict"] for r in results]) == (0, ["not run", "passed"])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_leaves_the_results_so_far(
    drilled, behave: Callable[..., None], number: signal.Signals, code: int
) -> None:
    behave(stays="corrupt-ckpt-flip")
    phases = ("--phase", "step", "--phase", "flip", "--phase", "cut")
    with drilled.start("kill", "corrupt-ckpt", *phases, "--json") as drill:
        assert drill.stderr is not None
        assert any("2 of 3" in line for line in drill.stderr)
        drill.send_signal(number)
        out, _ = drill.communicate()
    document = json.loads(out)
    assert drill.returncode == code
    assert (document["passed"], document["interrupted"]) == (False, number.name)
    assert [r["verdict"] for r in document["results"]] == ["passed", "not run", "not run"]
    (reason,) = document["results"][1]["reasons"]
    assert number.name in reason
    assert not left(drilled.root)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_drills_of_real_trainings(tiny_project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.drills.session.PACE_S", 0.2)  # no run is over before its fault
    code, results = tiny_project.results(
        "nan", "corrupt-ckpt", "lost-host", "--phase", "evaluation", "--phase", "flip", "--phase", "data"
    )
    assert [(r["drill"], r["phase"], r["verdict"], r["reasons"]) for r in results] == [
        ("nan", "data", "passed", []),
        ("corrupt-ckpt", "flip", "passed", []),
        ("lost-host", "evaluation", "passed", []),
    ]
    assert code == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_drills_of_a_run_with_a_quick_disk(tiny_project, tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.drills.session.PACE_S", 0.2)
    local = tmp_path_factory.mktemp("local")
    settings = ("--set", f"checkpoint.local_dir={local}", "--set", "checkpoint.local_every=1")
    code, results = tiny_project.results("kill", "corrupt-ckpt", "--phase", "data", "--phase", "flip", *settings)
    assert [(r["verdict"], r["reasons"]) for r in results] == [("passed", [])] * 2
    assert code == 0
    assert not list(local.iterdir())

"""Each drill fails if aifx breaks the promise that the drill is about. Trainings are real, and so is what breaks."""

from __future__ import annotations

import re

import pytest
import sabotage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def sabotaged(tiny_project, monkeypatch: pytest.MonkeyPatch):
    """`sabotaged(name, "kill", ...)`: the exit code and the results of drills of a sabotaged aifx."""

    def drill(name: str, *args: str):
        monkeypatch.setattr("aifx.core.processes.PROGRAM", sabotage.program(name))
        monkeypatch.setattr("aifx.drills.session.PACE_S", 0.2)  # no run is over before its fault
        return tiny_project.results(*args)

    return drill


@pytest.mark.parametrize(
    ("name", "drill", "phase", "reason"),
    [
        ("scaled_state", "kill", "step", "state is different"),
        ("lost_record", "kill", "data", r"metrics\.jsonl"),
        ("repeated_batch", "kill", "evaluation", "state is different"),
        ("unsaved_stop", "preempt", "data", "steps were lost"),
        ("unseen_hang", "hang", "data", "no report"),
        ("applied_nan", "nan", "data", "exit 1"),
        ("left_out_rollback", "spike", "data", "nothing.*step 12"),
        ("dropped_records", "disk-full", "passing", r"metrics\.jsonl"),
        ("other_exit_code", "io-error", "step", "exit 70"),
        ("taken_damage", "corrupt-ckpt", "flip", r"\.damaged"),
        ("impatient_watchdog", "slow-step", "step", "exit 75"),
        ("reread_batch", "loader-death", "data", "exit 0"),
        ("fresh_start", "lost-host", "evaluation", "nothing.*step"),
    ],
)
def test_a_broken_promise_fails_its_drill(sabotaged, name: str, drill: str, phase: str, reason: str) -> None:
    code, (result,) = sabotaged(name, drill, "--phase", phase)
    if result["verdict"] == "not run" and "mount" in " ".join(result["reasons"]):
        pytest.skip(result["reasons"][0])
    assert (code, result["verdict"]) == (1, "broken"), result
    assert re.search(reason, " ".join(result["reasons"])), result


def test_a_fault_waits_for_a_checkpoint_of_a_slow_disk(sabotaged) -> None:
    phases = ("start", "data", "step", "evaluation")
    code, results = sabotaged("slow_disk", "kill", *(f"--phase={phase}" for phase in phases))
    assert [(r["verdict"], r["reasons"]) for r in results] == [("passed", [])] * 4
    assert code == 0
    assert all(r["measured"]["resumed_from"] == r["expected"]["resumed_from"] >= 6 for r in results)

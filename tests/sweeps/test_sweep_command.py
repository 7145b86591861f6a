"""`aifx sweep`: which trials run, what is recorded, and how it ends and continues."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from stored_models import push_empty

from aifx.core.errors import RunBusy, UsageError
from aifx.core.processes import aifx_command
from aifx.core.project import RunDirectory
from aifx.kinds import load_config
from aifx.registry.versions import pinned_name
from aifx.runs.lock import hold_run, holder
from aifx.runs.manage import read_tags
from aifx.runs.status import run_status
from aifx.sweeps.record import hold_sweep
from aifx.sweeps.running import slots
from aifx.verbs.completion import complete_sweep

Behave = Callable[..., None]
END_S = 300
RATES = ("--set", "optimizer.learning_rate=3,1,2")


def ends(swept: Any, name: str = "sweep") -> list[tuple[int, str]]:
    return [(line["number"], line["status"]) for line in swept.lines(name) if line["event"] == "ended"]


def test_each_trial_is_a_run_and_the_settings_are_ranked(swept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = swept.command(*RATES, "--set", "train.seed=0,1", "--set", "train.gradient_accumulation=1")
    assert code == 0, err
    assert [line["event"] for line in swept.lines()] == ["sweep", *["trial", "ended"] * 6]
    assert [start[0] for start in swept.starts()] == [f"sweep-{n:03}" for n in range(1, 7)]
    first = {"optimizer.learning_rate": "3.0", "train.seed": "0", "train.gradient_accumulation": "1"}
    assert swept.starts()[0][1] == first
    assert [row.split()[1] for row in out.splitlines()[2:5]] == ["1.0", "2.0", "3.0"]
    assert "\n[train]\ngradient_accumulation = 1\n" in out
    assert re.search(r"sweep-006: completed.*2\.0000.*12", err)
    assert read_tags(swept.project.run("sweep-001")) == ("sweep",)
    code, printed, _ = swept.command("show", "--json")
    assert code == 0
    document = json.loads(printed)
    assert document["best"].startswith("[train]\ngradient_accumulation = 1\n\n[optimizer]\nlearning_rate = 1.0\n")
    assert [trial["run"] for trial in document["settings"][0]["trials"]] == ["sweep-003", "sweep-004"]
    monkeypatch.chdir(swept.root)
    assert complete_sweep("sw") == ["sweep"]
    # Nothing is left to do.
    assert swept.command()[0] == 0
    assert len(swept.starts()) == 6


def test_all_trials_begin_with_the_version_that_an_alias_meant_at_the_start(swept: Any) -> None:
    push_empty(swept.project, "fox", "production")
    first = pinned_name("fox@production", swept.project)
    assert swept.command(*RATES, "--set", "finetune.base=fox@production", "--trials", "1")[0] == 0
    push_empty(swept.project, "fox", "production")
    assert pinned_name("fox@production", swept.project) != first
    assert swept.command("--trials", "3")[0] == 0
    assert [start[1]["finetune.base"].strip('"') for start in swept.starts()] == [first] * 3
    swept.command("--name", "two", "--set", "finetune.base=fox@v1,fox@production", "--trials", "2")
    bases = {start[1]["finetune.base"].strip('"') for start in swept.starts()[3:]}
    assert bases == {first, pinned_name("fox@v2", swept.project)}
    code, _, err = swept.command("--name", "none", *RATES, "--set", "finetune.base=fox@v9")
    assert code == 2
    assert "aifx registry show fox" in err


def test_a_dry_run_lists_the_trials_and_writes_nothing(swept: Any) -> None:
    code, out, _ = swept.command(*RATES, "--dry-run", "--name", "lr")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["run", "lr-001", "lr-002", "lr-003"]
    assert not swept.project.runs_path.exists()
    ranged = ("--sampler", "tpe", "--trials", "13", "--set", "optimizer.learning_rate=0.1..1")
    out = swept.command(*ranged, "--dry-run")[1]
    assert out.splitlines()[-1].startswith("3 more")
    document = json.loads(swept.command(*ranged, "--dry-run", "--json")[1])
    assert [trial["status"] for trial in document["trials"]] == [None] * 10


def test_the_trials_of_tpe_follow_from_the_results(swept: Any) -> None:
    ranged = ("--sampler", "tpe", "--trials", "12", "--no-prune", "--set", "optimizer.learning_rate=0.1..1")
    assert swept.command(*ranged)[0] == 0
    rates = [start[1]["optimizer.learning_rate"] for start in swept.starts()]
    assert len(set(rates)) == 12
    path = swept.project.runs_path / "sweep" / "sweep.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))  # as if the last one was never begun
    shutil.rmtree(swept.project.run("sweep-012").path)
    assert swept.command()[0] == 0
    assert swept.starts()[-1][1]["optimizer.learning_rate"] == rates[-1]


def test_a_trial_that_failed_is_started_again_with_the_sweep(swept: Any, behave: Behave) -> None:
    behave(**{"sweep-002": {"error": "the data is missing"}, "sweep-003": {"exit": 1, "status": "diverged"}})
    code, out, err = swept.command(*RATES)
    assert code == 2
    assert ends(swept) == [(1, "completed"), (2, "failed"), (3, "diverged")]
    assert re.search("sweep-002: failed.*the data is missing.*a reason", err)
    assert re.search(r"hint: aifx sweep --name sweep +\(", err)
    assert [row.split()[0] for row in out.splitlines()[2:5]] == ["1", "-", "-"]
    behave()
    code, _, err = swept.command()
    assert code == 0, err
    assert [start[0] for start in swept.starts()] == ["sweep-001", "sweep-002", "sweep-003", "sweep-002"]
    assert ends(swept)[-1] == (2, "completed")


@pytest.mark.parametrize("behaviour", [{"signal": 9}, {"exit": 75}])
def test_a_trial_that_was_stopped_goes_on_with_the_sweep(swept: Any, behave: Behave, behaviour: dict[str, int]) -> None:
    behave(**{"sweep-001": behaviour})
    assert swept.command(*RATES)[0] == 75
    assert ends(swept) == [(2, "completed"), (3, "completed")]
    behave()
    assert swept.command(*RATES)[0] == 0
    assert [start[0] for start in swept.starts()] == ["sweep-001", "sweep-002", "sweep-003", "sweep-001"]


def test_a_poor_trial_is_pruned(swept: Any, behave: Behave) -> None:
    behave(**{"sweep-006": {"lingers": True, "loss": 9.0}})
    code, _, err = swept.command("--set", "optimizer.learning_rate=1,2,3,4,5,6")
    assert code == 0, err
    assert swept.lines()[-2] == {"event": "pruned", "number": 6, "step": 4, "value": 9.0, "median": 3.0}
    assert ends(swept)[-1] == (6, "pruned")
    assert re.search(r"sweep-006: pruned.*9\.0000.*step 4.*3\.0000", err)
    assert read_tags(swept.project.run("sweep-006")) == ("pruned", "sweep")


def test_a_sweep_is_continued_with_what_was_not_recorded_as_ended(swept: Any) -> None:
    """As a kill leaves it: a trial without its end, a pruned one whose end was not seen, half a line."""
    assert swept.command(*RATES, "--trials", "2")[0] == 0
    path = swept.project.runs_path / "sweep" / "sweep.jsonl"
    *kept, _ = path.read_text().splitlines()
    path.write_text("\n".join([*kept, '{"time": 1.0, "event": "tri']))
    assert swept.command("--trials", "3")[0] == 0
    assert [start[0] for start in swept.starts()] == ["sweep-001", "sweep-002", "sweep-002", "sweep-003"]
    assert [line["number"] for line in swept.lines() if line["event"] == "trial"] == [1, 2, 3]
    *kept, _ = path.read_text().splitlines()
    line = {"time": 1.0, "event": "pruned", "number": 3, "step": 4, "value": 9.0, "median": 1.0}
    path.write_text("\n".join([*kept, json.dumps(line), ""]))
    assert swept.command()[0] == 0
    assert len(swept.starts()) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_trials(swept: Any, behave: Behave, number: signal.Signals, code: int) -> None:
    behave(**{"sweep-001": {"waits": True}})

    def stop() -> None:
        while not (swept.root / "waits").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    ended, out, err = swept.command(*RATES)
    assert ended == code, err
    assert [line["event"] for line in swept.lines()] == ["sweep", "trial"]
    assert "0 of 3 trials" in out
    assert err.endswith("aifx sweep --name sweep\n")


def test_only_comparable_trials_are_added(swept: Any) -> None:
    assert swept.command(*RATES, "--trials", "1")[0] == 0
    for args, says in (
        (("--set", "optimizer.learning_rate=4,5"), "other settings"),
        ((*RATES, "--sampler", "random"), "--sampler grid"),
        ((*RATES, "--seed", "3"), "--seed 0"),
    ):
        code, _, err = swept.command(*args)
        assert code == 2
        assert says in err
    (swept.root / "aifx.toml").write_text(
        (swept.root / "aifx.toml").read_text() + "\n[optimizer]\nweight_decay = 0.7\n"
    )
    code, _, err = swept.command()
    assert code == 2
    assert "optimizer.weight_decay = " in err
    assert "-> 0.7" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "no sweep 'sweep'"),
        (("show",), "no sweeps in"),
        (("--set", "optimizer.learning_rate=0.1..1"), "--sampler grid"),
        ((*RATES, "--sampler", "random"), "--trials"),
        ((*RATES, "--sampler", "bayes"), "no sampler 'bayes'"),
        ((*RATES, "--set", "train.validate_every=0"), "validations"),
        ((*RATES, "--name", "a/b"), "a/b"),
        ((*RATES, "--name", "main"), "'main'"),
        ((*RATES, "--name", "mine"), "run 'mine-001' exists"),
        (("--set", "train.global_batch_size=8,12", "--set", "train.gradient_accumulation=8"), "gradient_accumulation"),
    ],
)
def test_what_is_refused_before_anything_starts(swept: Any, args: tuple[str, ...], says: str) -> None:
    for name in ("main", "mine-001"):
        swept.project.run(name).path.mkdir(parents=True)
        swept.project.run(name).config.touch()
    code, _, err = swept.command(*args)
    assert code == 2
    assert says in err
    assert "hint: " in err
    assert not (swept.root / "starts").exists()
    assert not list(swept.project.runs_path.glob("*/sweep.jsonl"))


def test_one_process_at_a_time_goes_on_with_a_sweep(swept: Any) -> None:
    folder = swept.project.run("sweep")
    with hold_sweep(folder):
        code, _, err = swept.command(*RATES)
        assert code == 2
        assert "another process" in err
        with pytest.raises(RunBusy), hold_sweep(folder):
            pass


def test_a_trial_whose_process_still_saves_is_awaited(
    swept: Any, behave: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(**{"sweep-001": {"exit": 75}})
    assert swept.command(*RATES)[0] == 75
    behave()
    run = swept.project.run("sweep-001")
    held, awaited = threading.Event(), threading.Event()

    def look(run: RunDirectory) -> str | None:
        awaited.set()
        return holder(run)

    monkeypatch.setattr("aifx.sweeps.running.holder", look)

    def save() -> None:
        with hold_run(run):
            held.set()
            awaited.wait(END_S)
            (swept.root / "saved").write_text(str(len(swept.starts())))

    threading.Thread(target=save, daemon=True).start()
    assert held.wait(END_S)
    code, _, err = swept.command()
    assert code == 0, err
    assert "sweep-001: waiting for process" in err
    assert (swept.root / "saved").read_text() == "3"
    assert [start[0] for start in swept.starts()][3:] == ["sweep-001"]


def test_names_of_sweeps_and_of_their_trials_stay_apart(swept: Any) -> None:
    assert swept.command(*RATES, "--name", "x-001", "--trials", "1")[0] == 0
    code, _, err = swept.command(*RATES, "--name", "x")
    assert code == 2
    assert "run 'x-001' exists" in err
    swept.project.run("x-001").config.touch()  # `aifx train --run x-001`: the sweep can go on all the same
    assert swept.command("--name", "x-001", "--trials", "2")[0] == 0


def test_a_file_that_is_no_sweep(swept: Any) -> None:
    path = swept.project.runs_path / "sweep" / "sweep.jsonl"
    path.parent.mkdir(parents=True)
    for line in ('{"event": "trial", "time": 1.0, "number": 1, "run": "x", "values": {}}', '{"event": "other"}'):
        path.write_text(line + "\n")
        code, _, err = swept.command("show", "sweep")
        assert code == 2
        assert "record 1" in err
    shutil.rmtree(path.parent)
    assert swept.command(*RATES)[0] == 0
    path.write_text(path.read_text().replace('"values": {"optimizer.learning_rate": 1.0}', '"values": {}'))
    code, _, err = swept.command("show")
    assert code == 2
    assert "record 4" in err
    assert "trial 2" in err


def test_each_trial_has_gpus_of_its_own(swept: Any) -> None:
    assert slots(None, {"CUDA_VISIBLE_DEVICES": ""}) == [{}]
    assert slots(3, {"CUDA_VISIBLE_DEVICES": ""}) == [{}] * 3
    gpus = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert [one["CUDA_VISIBLE_DEVICES"] for one in slots(None, gpus)] == ["4", "5", "6", "7"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in slots(2, gpus)] == ["4,5", "6,7"]
    with pytest.raises(UsageError, match="--parallel 5"):
        slots(5, gpus)
    code, _, err = swept.command(*RATES, CUDA_VISIBLE_DEVICES="1,0")
    assert code == 0, err
    assert {start[2] for start in swept.starts()} == {"1", "0"}


@pytest.mark.representative("a sweep")
def test_a_trial_trains_in_earnest(tiny_sweep: Any) -> None:
    code, _, err = tiny_sweep.command("--set", "optimizer.learning_rate=2e-2,1e-4", "--trials", "1")
    assert code == 0, err
    document = json.loads(tiny_sweep.command("show", "--json")[1])
    ((trial,),) = [setting["trials"] for setting in document["settings"]]
    status = run_status(tiny_sweep.project.run("sweep-001"))
    assert (trial["status"], trial["value"], trial["step"]) == (status.status, status.best_value, status.best_step)
    assert status.status == "completed"


@pytest.mark.slow
def test_a_sweep_that_was_killed_continues_and_ends_in_the_same_states(tiny_sweep: Any, tmp_path: Any) -> None:
    """SIGKILL to the sweep and, by the kernel, SIGTERM to its trials: the same trials, none twice, bit for bit."""
    from aifx.training.run import train

    args = ["sweep", "--set", "optimizer.learning_rate=1e-2,2e-2", "--parallel", "2"]
    held = tiny_sweep.root / "held"
    held.write_text("6")  # so that no trial is over before the sweep is killed
    program = aifx_command(*args)
    killed = subprocess.Popen(program, cwd=tiny_sweep.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = [tiny_sweep.project.run(f"sweep-{n:03}") for n in (1, 2)]
    while not all(run.metrics.exists() and run.metrics.read_text().count("\n") >= 2 for run in runs):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    held.unlink()
    code, _, err = tiny_sweep.command()
    assert code == 0, err
    assert [line["number"] for line in tiny_sweep.lines() if line["event"] == "trial"] == [1, 2]
    assert sorted(ends(tiny_sweep)) == [(1, "completed"), (2, "completed")]
    for run, rate in zip(runs, ("1e-2", "2e-2"), strict=True):
        events = [json.loads(line) for line in run.events.read_text().splitlines()]
        stops = [event for event in events if event["event"] == "stop"]
        assert [stop["status"] for stop in stops] == ["preempted", "completed"]
        config = load_config(tiny_sweep.project, [f"optimizer.learning_rate={rate}"], {})
        whole = train(tiny_sweep.project, config, f"whole-{run.name}")
        assert stops[-1]["state_digest"] == whole.state_digest

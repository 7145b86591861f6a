"""Several real processes train one run: as one process does, through kills, and not at all if they differ."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import warm
from effort import parts, seed_of_commit
from held_run import held_at
from process_status import catches, is_stopped
from small_language import write_project

from aifx.core.json_files import read_jsonl
from aifx.core.project import Project
from aifx.kernels.choice import project_calls
from aifx.kinds import load_config
from aifx.parallel.connections import free_port
from aifx.runs.goodput import read_goodput
from jax_kernels.implementations import current_device
from jax_kernels.ops import ATTENTION
from jax_kernels.tuning import TuningCache

TOML = """\
[task]
kind = "tiny:TinyTask"

[train]
num_steps = 20
global_batch_size = 12
validate_every = 5

[optimizer]
learning_rate = 0.02

[checkpoint]
every = 5

[log]
every = 1
"""
TINY = Path(__file__).parents[1] / "training" / "tiny.py"
TIMES = {"time", "step_time_s", "units_per_s", "mfu", "ceiling_fraction", "data_wait_s"}
DEVICES = "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0"
GLOO = re.compile(r"\[Gloo\] Rank .*\n")
"""Gloo announces each group that it connects, past Python."""

ONE_DEVICE = {"XLA_FLAGS": DEVICES.format(1)}

END_S = 500.0
"""Ends a test that hangs."""

PATIENT = ("--set", "processes.silent_timeout_s=1000", "--set", "processes.stuck_timeout_s=1000")
"""Limits that no busy machine reaches. `WATCH` shortens them."""

WATCH = """

from dataclasses import replace
from types import SimpleNamespace

from aifx.parallel import group as processes
from aifx.parallel import joined_group

ahead_s, looks, look = 0.0, 0, joined_group.JoinedGroup._beat
clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s)
joined_group.time = processes.time = clock


def is_behind(group, index):
    positions = [progress.position for _, (_, progress) in sorted(group.everyone().items())]
    return group.is_first and positions[index] < positions[1 - index]


def look_with_limits(group, now):
    global looks
    if Path("silent").exists():
        group._limits = replace(group._limits, silence_s=2.0)
    if Path("stuck").exists() and is_behind(group, {stuck}):
        group._limits = replace(group._limits, stuck_s=2.0)
    look(group, now)
    looks += 1


joined_group.JoinedGroup._beat = look_with_limits
"""
"""A project's code that shortens the limits once only the process that is silent or stuck can exceed them.

The file `silent` says that a process is stopped, and `stuck` that process {stuck} hangs.
"""

HELD_SAVE = """

from aifx.checkpoint import folders

commit = folders.commit


def commit_later(place):
    while Path("held-save").exists():
        time.sleep(0.01)
    commit(place)


folders.commit = commit_later
"""
"""A project's code that lets no checkpoint appear while there is the file `held-save`."""


class Trainer:
    """A project, and jobs that train in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        (root / "aifx.toml").write_text(TOML)
        shutil.copy(TINY, root)
        self.started: list[warm.Process] = []

    def add_code(self, code: str) -> None:
        with (self.root / "tiny.py").open("a") as file:
            file.write(code)

    def start(
        self,
        run: str,
        size: int,
        *args: str,
        own: dict[int, list[str]] | None = None,
        own_env: dict[int, dict[str, str]] | None = None,
        command: str = "train",
        **env: str,
    ) -> Job:
        """`aifx train` as `size` processes. `own`, `own_env`: arguments and variables of one process alone."""
        place = f"127.0.0.1:{free_port('127.0.0.1')}"
        job = {"AIFX_COORDINATOR": place, "AIFX_NUM_PROCESSES": str(size)} if size > 1 else {}
        found = []
        for index in range(size):
            more = {**env, **job, **({"AIFX_PROCESS_ID": str(index)} if size > 1 else {})} | (own_env or {}).get(
                index, {}
            )
            arguments = [command, "--run", run, "--json", *args, *(own or {}).get(index, [])]
            found.append(warm.Process(arguments, self.root, {**os.environ, **more}))
        self.started += found
        return Job(self.root / "runs" / run, found)

    def start_at(self, roots: Sequence[Path], flags: Sequence[str]) -> Job:
        """`aifx train` as one process per folder, each with XLA_FLAGS of its own."""
        job = {"AIFX_COORDINATOR": f"127.0.0.1:{free_port('127.0.0.1')}", "AIFX_NUM_PROCESSES": str(len(roots))}
        found = [
            warm.Process(
                ["train", "--json"], root, {**os.environ, **job, "AIFX_PROCESS_ID": str(index), "XLA_FLAGS": flag}
            )
            for index, (root, flag) in enumerate(zip(roots, flags, strict=True))
        ]
        self.started += found
        return Job(self.root / "runs" / "main", found)

    def train(self, run: str, size: int, *args: str, command: str = "train", **env: str) -> dict[str, Any]:
        """The document of a job that ends well."""
        job = self.start(run, size, *args, command=command, **env)
        ended = job.wait()
        assert [code for code, _, _ in ended] == [0] * size, ended
        assert [out for _, out, _ in ended[1:]] == [""] * (size - 1)
        document: dict[str, Any] = json.loads(ended[0][1])
        return document

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def records(self, run: str) -> list[dict[str, Any]]:
        lines = read_jsonl(self.root / "runs" / run / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


class Job:
    """The processes of a job, and the run that they train."""

    def __init__(self, run: Path, processes: list[warm.Process]) -> None:
        self.run, self.processes = run, processes

    def wait(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each process."""
        for process in self.processes:
            process.wait(END_S)
        return [(process.wait(), *process.communicate()) for process in self.processes]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that happens while all processes run."""
        deadline = time.monotonic() + END_S
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.wait()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: max((r["step"] for r in read_jsonl(self.run / "metrics.jsonl")), default=0) >= step)

    def wait_for_checkpoint(self, step: int) -> None:
        self.wait_until((self.run / "checkpoints" / str(step)).exists)

    def count_events(self) -> int:
        events = self.run / "events.jsonl"
        return len(events.read_bytes().splitlines()) if events.exists() else 0

    def strike(self, victim: int, how: signal.Signals = signal.SIGKILL, *, has_met: bool = True) -> list[int]:
        """Send a signal to one process. Returns the exit codes of the others.

        Args:
            has_met: whether the processes know of each other; otherwise the others get SIGTERM, as from a launcher.
        """
        self.processes[victim].send_signal(how)
        if how == signal.SIGSTOP:
            (self.run.parents[1] / "silent").touch()
        others = [process for index, process in enumerate(self.processes) if index != victim]
        for process in others:
            if not has_met:
                process.send_signal(signal.SIGTERM)
        return [process.wait(END_S) for process in others]


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    trainer = Trainer(tmp_path / "project")
    yield trainer
    trainer.end()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trainer, dict[str, Any]]]:
    """A project with the run "alone" of one process with two devices, and its document."""
    trainer = Trainer(tmp_path_factory.mktemp("whole") / "project")
    yield trainer, trainer.train("alone", 1, XLA_FLAGS=DEVICES.format(2))
    trainer.end()


@pytest.mark.representative("two processes")
def test_two_processes_equal_one(whole: tuple[Trainer, dict[str, Any]]) -> None:
    """Two processes, each of which is killed once on the way, against one process with the same mesh: bit for bit."""
    trainer, alone = whole
    with held_at(trainer.root, 9):
        job = trainer.start("pair", 2, **ONE_DEVICE)
        job.wait_for_step(7)
        job.wait_for_checkpoint(5)
        assert job.strike(1) == [75]
    events = [json.loads(line) for line in (job.run / "events.jsonl").read_text().splitlines()]
    assert events[-1]["status"] == "preempted"
    assert "process 1" in events[-1]["why"]
    assert "hint: " in job.wait()[0][2]
    with held_at(trainer.root, 14):
        job = trainer.start("pair", 2, **ONE_DEVICE)
        job.wait_for_step(12)
        job.wait_for_checkpoint(10)
        assert job.strike(0) == [75], job.wait()
    pair = trainer.train("pair", 2, **ONE_DEVICE)
    assert pair["resumed_from"] == 10
    assert pair["state_digest"] == alone["state_digest"]
    assert trainer.records("pair") == trainer.records("alone")
    events = read_jsonl(job.run / "events.jsonl")
    goodput = read_goodput(events)
    assert (goodput.num_starts, goodput.num_failures) == (3, 2)
    assert len(events[0]["hosts"]) == 2
    stored = Path(os.environ["JAX_COMPILATION_CACHE_DIR"], "process-1")
    assert list(stored.glob("jit_train_step-*-cache"))


@pytest.mark.representative("two processes")
def test_two_processes_find_that_a_run_has_ended(whole: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, alone = whole
    again = trainer.train("alone", 2, **ONE_DEVICE)
    assert again["state_digest"] == alone["state_digest"]


@pytest.mark.slow
def test_two_processes_fork_a_run(whole: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, _ = whole
    longer = ("--set", "train.num_steps=24")
    forked = trainer.train("alone", 2, "--fork", "forked", *longer, **ONE_DEVICE)
    assert (forked["step"], forked["resumed_from"]) == (24, 20)
    again = trainer.train("forked", 2, *longer, **ONE_DEVICE)
    assert again["state_digest"] == forked["state_digest"]


@pytest.mark.slow
def test_eval_by_two_processes(whole: tuple[Trainer, dict[str, Any]]) -> None:
    """The numbers of one process on the same mesh, and of one device, for batches that two devices cannot share."""
    trainer, _ = whole
    options = ("--gate", "loss < 1e-9", "--set", "eval.batch_size=5")
    found = {}
    for size, devices in ((1, 1), (1, 2), (2, 1)):
        job = trainer.start("alone", size, *options, command="eval", XLA_FLAGS=DEVICES.format(devices))
        ended = job.wait()
        assert [code for code, _, _ in ended] == [1] * size, ended
        assert [(out, GLOO.sub("", err)) for _, out, err in ended[1:]] == [("", "")] * (size - 1)
        found[size, devices] = json.loads(ended[0][1])
    assert found[2, 1] == found[1, 2]
    assert found[2, 1]["metrics"]["loss"] == pytest.approx(found[1, 1]["metrics"]["loss"], rel=1e-6)
    kept = json.loads((job.run / "eval" / "20.json").read_text())
    assert kept["splits"]["test"]["metrics"] == found[2, 1]["metrics"]


@pytest.mark.slow
def test_an_eval_that_is_asked_for_something_else(whole: tuple[Trainer, dict[str, Any]]) -> None:
    """It stops all processes before anything is measured."""
    trainer, _ = whole
    job = trainer.start("alone", 2, own={1: ["--split", "validation"]}, command="eval", **ONE_DEVICE)
    ended = job.wait()
    assert [code for code, _, _ in ended] == [2, 2]
    assert "'validation' in process 1" in json.loads(ended[0][1])["error"]["why"]


@pytest.mark.slow
def test_eval_takes_the_kernels_of_process_0(trainer: Trainer, tmp_path: Path) -> None:
    """Not those that were measured on the machine of each process."""
    write_project(trainer.root, num_steps=2)
    trainer.train("main", 1, **ONE_DEVICE)
    project = Project(trainer.root)
    for found in project_calls(project, load_config(project)):
        if found.op is ATTENTION and found.choice.implementation != "reference":
            measured = ATTENTION.choice("reference", (), "measured")
            TuningCache(tmp_path / "cache 1/kernels", current_device()).put(ATTENTION, found.call, measured)
    caches = {index: {"AIFX_CACHE_DIR": str(tmp_path / f"cache {index}")} for index in range(2)}
    options = ("--set", "eval.batch_size=6")
    first = trainer.train("main", 2, *options, command="eval", own_env={0: caches[0], 1: caches[0]}, **ONE_DEVICE)
    both = trainer.train("main", 2, *options, command="eval", own_env=caches, **ONE_DEVICE)
    assert both == first


@pytest.mark.slow
def test_a_fork_by_two_processes_takes_the_tokenizer_of_its_origin(trainer: Trainer, tmp_path: Path) -> None:
    """Also in the process that did not copy it, though the text would now give another one. They train as one does."""
    write_project(trainer.root, num_steps=2)
    trainer.train("main", 1, **ONE_DEVICE)
    (trainer.root / "text.txt").write_text("a bird sang in a tree while a fox ran through the snow\n" * 300)
    options = ("--set", "train.num_steps=4", "--set", "train.validate_every=2")
    alone = trainer.train("main", 1, "--fork", "alone", *options, XLA_FLAGS=DEVICES.format(2))
    caches = {index: {"AIFX_CACHE_DIR": str(tmp_path / f"cache {index}")} for index in range(2)}
    pair = trainer.train("main", 2, "--fork", "pair", *options, own_env=caches, **ONE_DEVICE)
    assert pair["state_digest"] == alone["state_digest"]
    main, forked = (trainer.root / "runs" / run / "assets/tokenizer.json" for run in ("main", "pair"))
    assert forked.read_bytes() == main.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["runs", "runs/pair/checkpoints"])
def test_a_disk_that_cannot_be_written(trainer: Trainer, place: str) -> None:
    """All processes end with 2, and process 0 says why."""
    folder = trainer.root / place
    folder.mkdir(parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        ended = trainer.start("pair", 2, "--set", "checkpoint.disk_timeout_s=2", **ONE_DEVICE).wait()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert [code for code, _, _ in ended] == [2, 2], ended
    error = json.loads(ended[0][1])["error"]
    assert "Read-only file system" in f"{error['what']} {error['why']}"
    assert error["hint"]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_one_step(trainer: Trainer) -> None:
    job = trainer.start("pair", 2, "--set", "data.read_s=0.03", "--set", "train.num_steps=100000", **ONE_DEVICE)
    job.wait_for_step(3)
    job.processes[1].send_signal(signal.SIGTERM)
    ended = job.wait()
    assert [code for code, _, _ in ended] == [75, 75]
    document = json.loads(ended[0][1])
    assert document["status"] == "preempted"
    assert document["step"] == trainer.records("pair")[-1]["step"]
    assert (job.run / "checkpoints" / str(document["step"])).is_dir()


STOPS = """\
import os

from aifx.extend import Hook, Stop


class Stops(Hook):
    all_processes = True

    def pauses(self, step):
        return step == 7

    def at_pause(self, state, record):
        return Stop("as asked") if (record.step, os.environ["AIFX_PROCESS_ID"]) == (7, "1") else None
"""


@pytest.mark.slow
def test_a_hook_of_one_process_stops_all(trainer: Trainer) -> None:
    (trainer.root / "stops.py").write_text(STOPS)
    document = trainer.train("main", 2, "--set", "train.hooks=['stops:Stops']", **ONE_DEVICE)
    assert (document["status"], document["step"]) == ("early_stopped", 7)
    assert (trainer.root / "runs/main/checkpoints/7").is_dir()


CALLER = """\
import json, os, sys
import aifx
from aifx.core.errors import AifxError
from aifx.extend import Hook, Stop


class Stops(Hook):
    def pauses(self, step):
        return step == 7

    def at_pause(self, state, record):
        return Stop("as asked") if record.step == 7 else None


has_hook = os.environ["AIFX_PROCESS_ID"] in sys.argv[1]
try:
    result = aifx.train(hooks=[Stops()] if has_hook else [])
except AifxError as error:
    print(json.dumps([error.why]))
else:
    print(json.dumps([result.status, result.step]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("with_hook", "expected"), [("01", ["early_stopped", 7]), ("0", ["the processes of this job"])]
)
def test_a_hook_of_a_caller_stops_all_or_the_processes_do_not_begin(
    trainer: Trainer, with_hook: str, expected: list[Any]
) -> None:
    (trainer.root / "caller.py").write_text(CALLER)
    place = f"127.0.0.1:{free_port('127.0.0.1')}"
    environ = {**os.environ, **ONE_DEVICE, "AIFX_COORDINATOR": place, "AIFX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "caller.py", with_hook],
            cwd=trainer.root,
            env={**environ, "AIFX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    found = [json.loads(process.communicate(timeout=END_S)[0].splitlines()[-1]) for process in processes]
    assert found[0] == found[1]
    if with_hook == "01":
        assert found[0] == ["early_stopped", 7]
    else:
        assert "hooks: [] in process 1" in found[0][0]
        assert not (trainer.root / "runs/main/metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "named"),
    [
        (["--set", "optimizer.learning_rate=0.03"], "optimizer.learning_rate: 0.03 in process 1"),
        pytest.param(
            ["--set", "kernels.attention=reference"], "kernels.attention: 'reference'", marks=pytest.mark.slow
        ),
    ],
)
def test_a_process_with_another_setting(trainer: Trainer, own: list[str], named: str) -> None:
    job = trainer.start("pair", 2, own={1: own}, **ONE_DEVICE)
    ended = job.wait()
    assert [code for code, _, _ in ended] == [2, 2]
    error = json.loads(ended[0][1])["error"]
    assert named in error["why"]
    assert not (job.run / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_process_with_another_flag(trainer: Trainer) -> None:
    flags = (DEVICES.format(1), f"{DEVICES.format(1)} --xla_cpu_enable_fast_min_max=true")
    ended = trainer.start_at([trainer.root] * 2, flags).wait()
    assert [code for code, _, _ in ended] == [2, 2]
    why = json.loads(ended[0][1])["error"]["why"]
    assert "XLA_FLAGS" in why
    assert "fast_min_max=true' in process 1" in why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "named"),
    [("data.txt", "digest of the data"), ("tiny.py", "code of the project")],
)
def test_a_process_with_another_file(trainer: Trainer, tmp_path: Path, file: str, named: str) -> None:
    """The project of process 1 lies elsewhere, and one file of it differs by one character."""
    (trainer.root / "data.txt").write_text("numbers 7")
    other = Path(shutil.copytree(trainer.root, tmp_path / "other"))
    (other / file).write_text((other / file).read_text() + " ")
    (trainer.root / "runs").mkdir()
    (other / "runs").symlink_to(trainer.root / "runs")
    ended = trainer.start_at([trainer.root, other], [DEVICES.format(1)] * 2).wait()
    assert [code for code, _, _ in ended] == [2, 2]
    why = json.loads(ended[0][1])["error"]["why"]
    assert f"{named}: " in why
    assert "in process 1" in why
    assert why.count("\n") == 0  # nothing else differs
    assert not (trainer.root / "runs" / "main" / "metrics.jsonl").exists()


def kill_and_compare(trainer: Trainer, seed: int, kills: int) -> dict[str, int]:
    """Kill random processes of a job at random moments, start it again each time, and let it end at last.

    Returns how often which process was killed.
    """
    dice, victims = random.Random(seed), Counter[str]()
    size, steps = dice.choice([2, 3, 4]), ("--set", "train.num_steps=800")
    slow_steps = (*steps, "--set", "data.read_s=0.03")
    whole = trainer.train("whole", size, *steps, **ONE_DEVICE)
    with held_at(trainer.root, 790):
        for _ in range(kills):
            job = trainer.start("killed", size, *slow_steps, **ONE_DEVICE)
            before = job.count_events()
            job.wait_until(lambda job=job: all(catches(one.pid, signal.SIGTERM) for one in job.processes))
            time.sleep(dice.uniform(0.0, 7.0))  # strike anywhere: before the first step, in it, in a validation, a save
            victim = dice.randrange(size)
            has_met = job.count_events() > before
            codes = job.strike(victim, has_met=has_met)
            assert codes == [75] * (size - 1), f"seed {seed}: {codes}, {job.wait()}"
            victims[f"process {victim} of {size}"] += 1
    ended = trainer.start("killed", size, *slow_steps, **ONE_DEVICE).wait()
    assert [code for code, _, _ in ended] == [0] * size, f"seed {seed}: {ended}"
    assert json.loads(ended[0][1])["state_digest"] == whole["state_digest"], f"seed {seed}"
    assert trainer.records("killed") == trainer.records("whole"), f"seed {seed}"
    return dict(victims)


@pytest.mark.slow
@pytest.mark.parametrize("part", parts(6))
def test_five_kills(trainer: Trainer, part: int, record_property: Callable[[str, object], None]) -> None:
    victims = kill_and_compare(trainer, seed_of_commit() + part, 5)
    record_property("kills of processes of a job", sum(victims.values()))


@pytest.mark.slow
def test_a_launched_job_goes_on_after_a_kill(whole: tuple[Trainer, dict[str, Any]]) -> None:
    """`aifx launch local --restarts` starts the processes again, and the run ends as one that nothing disturbed."""
    trainer, alone = whole
    launch = ["launch", "local", "-n", "2", "--restarts", "1", "train", "--run", "launched", "--json"]
    with held_at(trainer.root, 12):
        launcher = warm.Process(launch, trainer.root, {**os.environ, **ONE_DEVICE})
        trainer.started.append(launcher)
        job = Job(trainer.root / "runs" / "launched", [launcher])
        job.wait_for_checkpoint(5)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[0]), signal.SIGKILL)
    ((code, out, err),) = job.wait()
    assert code == 0, err
    assert "process 0 failed first" in err
    assert "restart 1 of 1" in err
    document = json.loads(out)
    assert document["resumed_from"] is not None
    assert document["state_digest"] == alone["state_digest"]
    assert trainer.records("launched") == trainer.records("alone")


@pytest.mark.slow
def test_a_launched_job_with_a_stopped_process_hears_a_signal(trainer: Trainer) -> None:
    """All stop after the same step, and the stopped one is not missed."""
    steps = ("--set", "data.read_s=0.03", "--set", "train.num_steps=100000")
    launch = ["launch", "local", "-n", "2", "train", "--json", *steps, *PATIENT]
    launcher = warm.Process(launch, trainer.root, {**os.environ, **ONE_DEVICE})
    trainer.started.append(launcher)
    job = Job(trainer.root / "runs" / "main", [launcher])
    job.wait_for_step(3)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGSTOP)
    job.wait_until(lambda: is_stopped(int(children[1])))
    launcher.send_signal(signal.SIGTERM)
    ((code, out, err),) = job.wait()
    assert code == 75, err
    document = json.loads(out)
    assert document["status"] == "preempted"
    assert (job.run / "checkpoints" / str(document["step"])).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "moment"), [(0, "compile"), (1, "compile"), (0, "save"), (1, "save")])
def test_a_kill_while_compiling_or_saving(trainer: Trainer, victim: int, moment: str) -> None:
    trainer.add_code(HELD_SAVE)
    (trainer.root / "held-save").touch()
    with held_at(trainer.root, 5):
        compile_s = 600 if moment == "compile" else 0
        options = ("--set", "checkpoint.every=1", "--set", f"data.compile_s={compile_s}")
        job = trainer.start("pair", 2, *options, **ONE_DEVICE)
        reached: dict[str, Callable[[], bool]] = {
            "compile": lambda: "compile" in [event["event"] for event in read_jsonl(job.run / "events.jsonl")],
            "save": lambda: any((job.run / "checkpoints").glob("*.unfinished")),
        }
        job.wait_until(reached[moment])
        assert job.strike(victim) == [75], job.wait()
    (trainer.root / "held-save").unlink()
    assert trainer.train("pair", 2, "--set", "checkpoint.every=1", **ONE_DEVICE)["status"] == "completed"


@pytest.mark.slow
def test_a_process_that_is_stopped(trainer: Trainer) -> None:
    trainer.add_code(WATCH.format(stuck=1))
    with held_at(trainer.root, 5):
        job = trainer.start("pair", 2, *PATIENT, **ONE_DEVICE)
        job.wait_for_step(3)
        assert job.strike(1, signal.SIGSTOP) == [75]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_process_that_is_stuck_in_its_data(trainer: Trainer, split: str) -> None:
    source = (trainer.root / "tiny.py").read_text()
    stuck = 'self.split == "train" and step == self.section.stuck_step'
    assert stuck in source
    where = f'self.split == "{split}" and step == self.section.stuck_step and rows.start > 0'
    (trainer.root / "tiny.py").write_text(source.replace(stuck, where) + WATCH.format(stuck=1))
    ended = trainer.start("pair", 2, "--set", "data.stuck_step=1", *PATIENT, **ONE_DEVICE).wait()
    assert [code for code, _, _ in ended] == [75, 75]
    phase = "batch of step 2" if split == "train" else "batch 0 of the validation"
    assert re.search(f"process 1 on .* {phase}.* 2 s", ended[0][2])


OPENING = """
        import os
        from aifx.core.progress import report_progress
        if os.environ["AIFX_PROCESS_ID"] == "0":
            Path("{file}").touch()
            with report_progress("reading", None, "rows") as progress:
                for _ in range({parts}):
                    work_for_long()
                    progress.advance(1)
            time.sleep({pause_s})
"""
WORK = """

def work_for_long():
    \"\"\"Most of the time after which this process would be stuck.\"\"\"
    global ahead_s
    from aifx.parallel.joining import current_group
    while not is_behind(current_group(), 0):
        time.sleep(0.01)
    ahead_s += 700
    before = looks
    while looks < before + 2:
        time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "is stopped", "works"])
def test_process_0_while_it_opens_the_data_alone(trainer: Trainer, how: str) -> None:
    """The others end if it hangs, and wait if it goes on."""
    source = (trainer.root / "tiny.py").read_text()
    opened = "        self.config = config\n"
    assert opened in source
    works = how == "works"
    opening = OPENING.format(
        file="stuck" if how == "hangs" else "opening", parts=4 if works else 0, pause_s=0 if works else 600
    )
    (trainer.root / "tiny.py").write_text(source.replace(opened, opened + opening) + WATCH.format(stuck=0) + WORK)
    job = trainer.start("pair", 2, *PATIENT, **ONE_DEVICE)
    if how == "is stopped":
        job.wait_until((trainer.root / "opening").exists)
        assert job.strike(0, signal.SIGSTOP) == [75]
        return
    ended = job.wait()
    assert [code for code, _, _ in ended] == ([0, 0] if works else [75, 75]), ended
    stuck = re.search("process 0 on .* stuck in the data.* 2 s", ended[0][2])
    assert bool(stuck) == (how == "hangs")


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["rows.start > 0", "True"])
def test_devices_with_too_little_memory(trainer: Trainer, condition: str) -> None:
    """In process 1 or in both: all end with 2, and process 0 names settings that need less."""
    source = (trainer.root / "tiny.py").read_text()
    stuck = "step == self.section.stuck_step:"
    assert stuck in source
    raises = "raise MemoryError('RESOURCE_EXHAUSTED: Out of memory')"
    short = f"{stuck[:-1]} and {condition}:\n            {raises}\n        if False:"
    (trainer.root / "tiny.py").write_text(source.replace(stuck, short))
    settings = ("--set", "data.stuck_step=2", "--set", "train.global_batch_size=1200", "--set", "model.width=32")
    ended = trainer.start("pair", 2, *settings, AIFX_LAUNCHER="", **ONE_DEVICE).wait()
    assert [code for code, _, _ in ended] == [2, 2], ended
    error = json.loads(ended[0][1])["error"]
    assert "RESOURCE_EXHAUSTED" in error["why"] + error["what"]
    assert error["hint"].startswith("aifx launch local -n 2 train --run pair --set "), ended[0][2]
    assert "--set train.gradient_accumulation=" in error["hint"]
    assert ended[1][1] == ""


@pytest.mark.slow
def test_all_processes_skip_and_go_back_alike(trainer: Trainer) -> None:
    """The row that is not finite is read by process 0 alone."""
    settings = ("data.poison_steps=[3,8,9]", "guards.non_finite=roll_back", "guards.max_in_a_row=2")
    options = [part for setting in settings for part in ("--set", setting)]
    alone = trainer.train("alone", 1, *options, XLA_FLAGS=DEVICES.format(2))
    pair = trainer.train("pair", 2, *options, "--set", "guards.verify_every=4", **ONE_DEVICE)
    assert (pair["status"], pair["state_digest"]) == ("completed", alone["state_digest"])
    found = {}
    for run in ("alone", "pair"):
        events = read_jsonl(trainer.root / "runs" / run / "events.jsonl")
        found[run] = [e for e in events if e["event"] in ("skip", "rollback")]
    assert [e["event"] for e in found["pair"]] == ["skip", "skip", "skip", "rollback"]
    assert [e["rows"] for e in found["pair"][:3]] == [[[0, 6], [6, 12]]] * 3
    assert [e["rows"] for e in found["alone"][:3]] == [[[0, 12]]] * 3
    rollbacks = [{key: found[run][3][key] for key in ("from_step", "to_step", "reason", "batches")} for run in found]
    assert rollbacks == [{"from_step": 10, "to_step": 5, "reason": "non_finite", "batches": [8, 9]}] * 2

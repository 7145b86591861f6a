"""A process that hangs: it is noticed, it writes down what it was doing, it exits 75, and the next one goes on."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import warm
from process_status import is_stopped

from aifx.config.sections import GuardsSection
from aifx.core.errors import DataError
from aifx.core.progress import publish
from aifx.data.order import prefetch
from aifx.parallel.group import Group
from aifx.training.hooks.watchdog import SLOWER, Hang, Watchdog
from aifx.training.records import Record

Start = Callable[..., warm.Process]
END_S = 300


class Clock:
    """A clock that goes when the test says so, and counts the looks of the watchdog at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self._looks, self._looked = 1000.0, 0, threading.Condition()
        for module in ("aifx.parallel.group", "aifx.training.hooks.watchdog"):
            monkeypatch.setattr(f"{module}.time", self)
        monkeypatch.setattr("aifx.training.hooks.watchdog.TICK_S", 0.01)

    def monotonic(self) -> float:
        with self._looked:
            if threading.current_thread().name == "aifx-watchdog":
                self._looks += 1
                self._looked.notify_all()
            return self.seconds

    def go(self, seconds: float) -> None:
        """Advance, and return once the watchdog has acted on the new time."""
        with self._looked:
            self.seconds += seconds
            after = self._looks + 2  # it has acted on one look when it takes the next one
            self._looked.wait_for(lambda: self._looks >= after, END_S)


class Watched:
    """A group under a watchdog, with the hang that it found."""

    def __init__(self, **limits: float) -> None:
        self.group, self.found, self._has_hung = Group(), list[Hang](), threading.Event()
        self.dog = Watchdog(GuardsSection(**limits), self.group, self._hung)

    def _hung(self, hang: Hang) -> None:
        self.found.append(hang)
        self._has_hung.set()

    def take_step(self, seconds: float) -> None:
        record = Record(1, 1.0, 1.0, 0.01, "rows", 8, 8 / seconds, seconds, None, None, 0.0, 0.0)
        self.dog.after_step(record, {})

    def has_hung(self) -> bool:
        return self._has_hung.wait(END_S)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_phase_without_progress_hangs(clock: Clock) -> None:
    watched = Watched(hang_timeout_s=0.6)
    with watched.dog:
        clock.go(0.5)
        watched.group.mark("compilation", "compilation")
        clock.go(0.5)
        assert not watched.found
        clock.seconds += 0.2
        assert watched.has_hung()
    (hang,) = watched.found
    assert (hang.phase, hang.setting, hang.limit_s) == ("compilation", "guards.hang_timeout_s", 0.6)
    assert hang.idle_s == pytest.approx(0.7)


@pytest.mark.parametrize(
    "go_on", [Group.work_on, lambda _: publish(None), lambda group: group.mark("the next", "data")]
)
def test_what_goes_on_does_not_hang(clock: Clock, go_on: Callable[[Group], object]) -> None:
    watched = Watched(hang_timeout_s=0.8)
    with watched.dog:
        for _ in range(12):
            go_on(watched.group)
            clock.go(0.5)
        assert not watched.found
        clock.seconds += 0.5
        assert watched.has_hung(), "and hangs once it does not"


def test_the_first_step_does_not_count_as_usual() -> None:
    watched = Watched(step_timeout_s=5.0, hang_timeout_s=70.0)
    watched.group.mark("step 1", "step")
    watched.take_step(60.0)
    assert watched.dog.limit()[0] == SLOWER * 60.0, "nothing else is known yet"
    watched.take_step(0.1)
    assert watched.dog.limit()[0] == 5.0


def test_the_limit_of_a_step_follows_its_time() -> None:
    watched = Watched(step_timeout_s=5.0, hang_timeout_s=70.0)
    dog, group = watched.dog, watched.group
    group.mark("step 1", "step")
    assert dog.limit() == (70.0, "guards.hang_timeout_s"), "the first step of a process loads and tunes"
    watched.take_step(0.1)
    assert dog.limit() == (5.0, "guards.step_timeout_s")
    for _ in range(200):
        watched.take_step(2.0)
    assert dog.limit()[0] == pytest.approx(SLOWER * 2.0, rel=0.01)
    group.mark("the checkpoint of step 1", "checkpoint")
    assert dog.limit()[0] == 70.0
    unlimited = Watched(step_timeout_s=0, hang_timeout_s=0)
    assert unlimited.dog.limit()[0] == float("inf")
    unlimited.group.mark("step 2", "step")
    unlimited.take_step(1.0)
    assert unlimited.dog.limit()[0] == float("inf")


def test_each_phase_of_a_run_is_marked(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[tuple[str, Any]] = []
    mark = Group.mark

    def recorded(group: Group, phase: str, kind: Any = None) -> None:
        mark(group, phase, kind)
        marked.append((phase, group.progress.kind))

    monkeypatch.setattr(Group, "mark", recorded)
    tiny.train("train.num_steps=2", "train.validate_every=2", "checkpoint.every=2")
    kinds = [kind for n, (_, kind) in enumerate(marked) if n == 0 or kind != marked[n - 1][1]]
    steps = ["data", "step"] * 2
    assert kinds == ["start", "compilation", "start", *steps, "evaluation", "checkpoint"]
    assert [phase for phase, kind in marked if kind == "step"] == ["step 1", "step 2"]
    batches = [phase for phase, kind in marked if kind == "evaluation"][1:]
    assert [(phase[:7], "validation" in phase) for phase in batches] == [("batch 0", True), ("batch 1", True)]


LONG = ("train", "--set", "train.num_steps=60", "--set", "data.read_s=0.02", "--set", "train.validate_every=0",
        "--set", "checkpoint.every=2", "--set", "checkpoint.asynchronous=false",
        "--set", "guards.step_timeout_s=1.5", "--set", "data.stuck_step=8")  # fmt: skip

PATIENT = """
from aifx.training.hooks import watchdog
from aifx.training.hooks.watchdog import Watchdog

watchdog.PART_S = watchdog.WRITE_S = 60.0
limit = Watchdog.limit


def patient_limit(watchdog):
    limit_s, setting = limit(watchdog)
    return (limit_s if is_hanging(watchdog._group.progress) else float("inf")), setting


Watchdog.limit = patient_limit


def is_hanging(progress):
"""
"""For the project's module: a slow machine is no hang. The limits hold where the rest of the last function says."""


@pytest.fixture(autouse=True)
def _stuck_once(tiny) -> None:
    """The data of the project is read at once if it has been stuck before."""
    place, wait = tiny.root / "tiny.py", "number == self.section.stuck_step:"
    source = place.read_text()
    assert wait in source
    place.write_text(source.replace(wait, wait.replace(":", ' and not Path("stuck").exists():')))


@pytest.fixture
def patient(tiny) -> Callable[[str], None]:
    """Have the limits hold only where this expression is true."""

    def write(where: str) -> None:
        with (tiny.root / "tiny.py").open("a") as file:
            file.write(f"{PATIENT}    return {where}\n")

    return write


@pytest.mark.slow
def test_a_run_that_hangs_ends_with_a_report_and_resumes(tiny, start: Start, patient: Callable[[str], None]) -> None:
    patient("progress.phase == 'the batch of step 9'")
    process = start(*LONG)
    _, err = process.communicate(timeout=END_S)
    assert process.returncode == 75, err
    (report,) = tiny.run().path.glob("hang-*.txt")
    assert report.name in err
    text = report.read_text()
    head, *_ = text.splitlines()
    assert "batch of step 9" in head
    assert "guards.step_timeout_s" in head
    threads, events, rest = (text.split(f"== {title}\n")[1] for title in ("Threads", "Last events", "Devices"))
    source = [line for line in threads.splitlines() if "tiny.py" in line]
    assert any(line.endswith(" in read") for line in source), "the source that sleeps"
    assert "MainThread" in threads
    assert "loop.py" in threads
    assert '"event": "compiled"' in events.split("==")[0]
    assert "cpu" in rest.lower()
    stop = tiny.events()[-1]
    assert (stop["event"], stop["status"]) == ("stop", "preempted")
    assert "batch of step 9" in stop["why"]
    assert max(int(p.name) for p in tiny.run().checkpoints.iterdir() if p.name.isdigit()) == 8
    process = start(*LONG, "--json")
    out, err = process.communicate(timeout=END_S)
    assert process.returncode == 0, out + err
    assert (json.loads(out)["resumed_from"], json.loads(out)["status"]) == (8, "completed")


@pytest.mark.slow
def test_a_process_that_was_stopped_itself_has_not_hung(tiny, start: Start, patient: Callable[[str], None]) -> None:
    patient("Path('stopped').exists() and not Path('stopped').unlink()")  # at the first look after the stop
    (tiny.root / "stuck").touch()
    (tiny.root / "held").write_text("20")  # so that it is not over before it is stopped
    process = start(*LONG)
    metrics, deadline = tiny.run().metrics, time.monotonic() + END_S
    while not (metrics.exists() and metrics.read_text().count("\n") > 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    while not is_stopped(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tiny.root / "stopped").touch()
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    while (tiny.root / "stopped").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tiny.root / "held").unlink()
    _, err = process.communicate(timeout=END_S)
    assert process.returncode == 0, err


@pytest.mark.parametrize("error", [SystemExit, StopIteration, OSError])
def test_a_reader_that_dies_is_an_error(error: type[BaseException]) -> None:
    class Source:
        batch_size, num_batches = 4, None

        def read(self, number: int, rows: slice) -> Any:
            if number == 3:
                raise error("the reader is gone")
            return {"x": number}

    found = []
    with pytest.raises((DataError, OSError)) as raised:
        found.extend(prefetch(Source(), range(8), slice(0, 4)))
    assert [batch["x"] for batch in found] == [0, 1, 2]
    assert "the reader is gone" in str(raised.value) or "training batch 3" in str(raised.value)

"""Bad input of a line: reported once, with its place and a way out, while the rest goes on."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from effort import seed_of_commit
from faulty_files import failing
from inprocess import run
from ticking import Ticking, station
from webhook_receiver import SECRET, receiver

from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.lines import delivery
from aifx.lines.journal import JOURNAL
from aifx.lines.runner import TickRun, held
from aifx.lines.running import Exit, Try
from aifx.verbs.line_ticks import _Sender, line_watch

YEAR_S = 366 * 86400.0


@pytest.fixture
def ticking(tmp_path: Path) -> Ticking:
    return Ticking(tmp_path)


CIRCLE = '[[station]]\nname = "{0}"\nrun = "aifx doctor"\nafter = ["{1}"]\n'
FILES = [
    (CIRCLE.format("a", "c") + CIRCLE.format("b", "a") + CIRCLE.format("c", "b"), 1, "a -> c -> b -> a"),
    (CIRCLE.format("a", "a"), 1, "a -> a"),
    (station("a") + station("b") + station("a"), 9, "two stations 'a': the first is in line 1"),
    (station("a") + station("b", when="verdict:c and changed:x"), 9, "no station 'c'"),
    (station("a", when="changd:x"), 5, "no term 'changd': did you mean 'changed'?"),
    (station("a", "sh {stations.b.run}"), 3, "no station 'b'"),
    (station("a", "sh {dat}"), 3, "no name {dat}: did you mean 'date'?"),
    ('[[notify]]\nurl_from = "X"\non = ["drft"]\n' + station("a"), 3, "'drift'"),
]


@pytest.mark.parametrize(("text", "row", "fact"), FILES)
@pytest.mark.parametrize("command", ["check", "run", "status"])
def test_a_mistake_of_the_file_has_its_row_and_nothing_runs(
    ticking: Ticking, command: str, text: str, row: int, fact: str
) -> None:
    ticking.write(text)
    done = run(["line", command], ticking.root, dict(os.environ))
    assert done.returncode == (1 if command == "check" else 2)
    (found,) = [line for line in (done.stdout + done.stderr).splitlines() if fact in line]
    assert f"line.toml:{row}: " in found
    assert "hint: docs/line.md" in done.stdout + done.stderr
    assert not (ticking.root / "line").exists()


def reported(ticking: Ticking, name: str) -> str:
    """The one line for people about a station that failed, after two ticks; the other station goes on."""
    for _ in range(2):
        assert ticking.tick() == {name: "failed", "other": "done"}
    (found,) = [line for line in ticking.lines if line.startswith(f"{name}: failed")]
    assert ticking.count("other") == 1
    return found


@pytest.mark.parametrize(
    ("bad", "fact", "hint"),
    [
        (station("bad", "sh {data.nope}"), "{data.nope} means nothing", "aifx data ls"),
        (station("bad", "sh {models.lm.production}"), "{models.lm.production} means nothing", "aifx registry ls"),
        (station("bad", "sh {stations.other.run}"), "{stations.other.run} is not in the output", "logs other"),
        (station("bad", environment=["UNSET"]), "the environment variable UNSET is not set", "export UNSET="),
        (station("bad", environment=["file:no.env"]), "could not read", "environment"),
        (station("bad", "no-such-program x"), "no-such-program", "aifx line logs bad"),
        ('[[station]]\nname = "bad"\nrun = "aifx frobnicate"\n', "aifx has no command 'frobnicate'", "aifx --help"),
    ],
)
def test_a_station_that_cannot_run_is_reported_once_and_others_go_on(
    ticking: Ticking, bad: str, fact: str, hint: str
) -> None:
    ticking.write(bad + station("other"))
    assert fact in reported(ticking, "bad")
    assert ticking.count("bad") == 0
    assert hint in ticking.decisions()["bad"].hint


def test_a_condition_on_a_name_that_means_nothing_is_reported_once(ticking: Ticking) -> None:
    """A name that a station of the line makes is none: it is only not made yet."""
    make = '[[station]]\nname = "make"\nrun = "aifx data add corpus texts --license MIT"\nask = "approval"\n'
    bad = station("bad", when="changed:nope or changed:lm@production")
    ticking.write(bad + station("early", when="changed:corpus") + make + station("other"))
    for _ in range(2):
        made = ticking.decisions()
        assert [made[name].state for name in ("bad", "early", "other")] == ["skipped", "skipped", "done"]
    (line,) = [line for line in ticking.lines if "skipped" in line]
    assert line.startswith(
        "bad: skipped: not: changed:nope or changed:lm@production; there is no nope and no lm@production"
    )
    assert (made["bad"].hint, made["early"].hint) == ("aifx line check", "")


@pytest.mark.slow
def test_a_database_that_cannot_be_reached_is_tried_again_and_reported_once(ticking: Ticking) -> None:
    source = "postgresql://reader@127.0.0.1:1/plant --query 'SELECT 1' --license CC0-1.0"
    bad = f'[[station]]\nname = "bad"\nrun = "aifx data add rows {source}"\nretries = 1\n'
    ticking.write('[line]\nevery = "366d"\n' + bad + station("other"))
    found = reported(ticking, "bad")
    assert "postgresql://127.0.0.1:1/plant" in found
    assert "Connection refused" in found
    assert [one.kind for one in ticking.records(station="bad")] == ["started", "repeated", "ended"]
    assert "again when the server answers" in ticking.decisions()["bad"].hint


class Clock:
    """The time of this process, which can jump."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset_s, real = 0.0, time.time
        to_noon = 43200.0 - real() % 86400  # so that no day ends during a test
        monkeypatch.setattr(time, "time", lambda: real() + to_noon + self.offset_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("jumps", [(YEAR_S, 7200.0), (-YEAR_S, 7200.0)])
def test_a_clock_that_jumps_and_comes_back_repeats_nothing_and_lets_nothing_wait(
    ticking: Ticking, clock: Clock, jumps: tuple[float, ...]
) -> None:
    """`daily` and `trained` have new work in each tick, and only time holds them back."""
    tables = (
        '[line]\nevery = "1h"\n'
        + station("once")
        + station("daily", "sh -c 'echo {tick} >>daily.count'", when="every:1d")
        + station("trained", "sh -c 'echo {tick} >>trained.count'", cooldown="3h", budget_per_day=2)
    )
    ticking.write(tables)
    assert set(ticking.tick().values()) == {"done"}
    for jump in jumps:
        clock.offset_s = jump
        for _ in range(2):
            ticking.tick()
        assert [ticking.count(name) for name in ("once", "daily", "trained")] == [1, 2, 2]  # one for each day
    clock.offset_s = 86400.0
    assert ticking.tick()["daily"] == "done"
    assert ticking.tick()["trained"] == "done"
    assert len(set((ticking.root / "trained.count").read_text().split())) == ticking.count("trained")


def test_a_watch_ticks_once_for_what_it_missed_and_not_at_each_jump(
    ticking: Ticking, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day's sleep after hour 3, and from hour 6 on a clock that jumps two hours forth or back at each look."""
    ticking.write('[line]\nevery = "1h"\n' + station("a"))
    stop, ticks, looks, begin = list[int](), list[float](), [0], time.time()

    def sleep(seconds: float) -> None:
        looks[0] += 1
        hours = looks[0] / 60  # instead of half a second, a minute passes
        jump = 86400.0 if hours > 3 else 0.0
        clock.offset_s = looks[0] * 60.0 + jump + (7200.0 if hours > 6 and looks[0] % 2 else 0.0)
        if hours > 8:
            stop.append(signal.SIGTERM)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(TickRun, "run", lambda run: ticks.append(time.time() - begin))
    line_watch(stop=stop, on_line=lambda text: None, project=ticking.root)
    hours = [round(tick / 3600, 1) for tick in ticks]
    assert hours == [0.0, 1.0, 2.0, 3.0, 27.0, 28.0, 29.0, 30.0, 32.0, 31.0, 33.0]


@pytest.mark.parametrize("jump", [-YEAR_S, YEAR_S])
def test_a_pause_before_another_try_does_not_outlast_a_jump_of_the_clock(
    ticking: Ticking, clock: Clock, jump: float
) -> None:
    ticking.write(station("fetch", "sh -c 'echo x >>fetch.count; [ $(wc -l <fetch.count) = 2 ] || exit 75'"))

    def jumps() -> None:
        if ticking.records("repeated"):  # the pause is written by the clock before the jump
            clock.offset_s = jump

    assert ticking.tick(pause_s=3600.0, while_waiting=jumps) == {"fetch": "done"}
    assert ticking.count("fetch") == 2


def stopped_after(calls: int, stop: list[int]) -> Callable[[], None]:
    """A function that asks a watch to stop when it was called so often."""
    left = [calls]

    def called() -> None:
        left[0] -= 1
        if left[0] <= 0:
            stop.append(signal.SIGTERM)

    return called


def test_a_full_disk_ends_the_tick_with_its_place_and_a_watch_goes_on(
    ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking.write('[line]\nevery = "1s"\n' + station("a", "sh -c 'echo x >>a.count'"))
    stop, lines = list[int](), list[str]()
    waited = stopped_after(3, stop)
    monkeypatch.setattr("aifx.verbs.line_ticks._wait", lambda *args: waited())
    with failing(ticking.root / "line" / JOURNAL, number=errno.ENOSPC, at=0, lasting=True):
        line_watch(allow_shell=True, stop=stop, on_line=lines.append, project=ticking.root)
    assert len(stop) == 1
    (line,) = lines  # once for three ticks
    assert "no room to write" in line
    assert "df -h" in line
    assert ticking.tick() == {"a": "done"}
    assert ticking.count("a") == 1


FULL_LINE = station("a") + station("b", after=["a"])


def writes_of_a_tick(root: Path) -> int:
    ticking = Ticking(root)
    ticking.write(FULL_LINE)
    run = ticking.run()
    with failing(root / "line", only_changes=True) as calls, held(run.line):
        run.run()
    return len(calls.made)


@pytest.mark.parametrize(
    ("share", "lasting"),
    [(12, True), *(pytest.param(1, lasting, marks=pytest.mark.slow) for lasting in (True, False))],
)
def test_a_full_disk_at_each_write_of_a_line_ends_the_tick_with_its_place_and_repeats_nothing(
    tmp_path: Path, share: int, lasting: bool
) -> None:
    (tmp_path / "whole").mkdir()
    writes = writes_of_a_tick(tmp_path / "whole")
    assert writes > 40
    errors, full = list[AifxError](), {"number": errno.ENOSPC, "lasting": lasting, "only_changes": True}
    for number in range(seed_of_commit() % share, writes, share):
        root = tmp_path / str(number)
        root.mkdir()
        ticking = Ticking(root)
        ticking.write(FULL_LINE)
        try:
            run = ticking.run()
            with failing(root / "line", number, **full) as calls, held(run.line):  # type: ignore[arg-type]
                run.run()
        except AifxError as e:
            errors.append(e)
        assert calls.failed is not None
        assert ticking.tick() == {"a": "done", "b": "done"}
        assert (ticking.count("a"), ticking.count("b")) == (1, 1), calls.failed
        assert [one.facts["outcome"] for one in ticking.records("ended")] == ["done", "done"]
    assert len(errors) > 2
    for error in errors:
        assert error.what.startswith(f"no room to write {tmp_path}/")
        assert error.hint.startswith("df -h ")
        assert error.transient


def test_a_watch_reports_a_fault_of_each_place_once(ticking: Ticking, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that is left on a full disk changes from tick to tick. The place does not."""
    ticking.write('[line]\nevery = "1s"\n' + station("a"))
    places = [("1.2 GB", "x"), ("1.3 GB", "x"), ("1 B", "x"), ("1 B", "y"), ("2.0 kB", "y")]
    faults = [AifxError("no room", f"{free} free", f"df -h /{place}", transient=True) for free, place in places]

    def failed(run: TickRun) -> None:
        raise faults.pop(0)

    stop, lines = list[int](), list[str]()
    waited = stopped_after(len(faults), stop)
    monkeypatch.setattr("aifx.verbs.line_ticks._wait", lambda *args: waited())
    monkeypatch.setattr(TickRun, "run", failed)
    line_watch(stop=stop, on_line=lines.append, project=ticking.root)
    assert [line.split()[-1] for line in lines] == ["/x", "/y"]


def test_the_end_of_a_command_is_known_although_the_disk_is_full(tmp_path: Path) -> None:
    """The room of `exit` is taken before the command begins. A folder `.room` stands for a disk without room."""
    one = Try(tmp_path, "a", 1)
    child = one.start([["sh", "-c", f"mkdir {one.path}/.room; exit 2"]], dict(os.environ), tmp_path)
    assert child is not None
    child.wait()
    assert one.look() == Exit(1, 2, was_full=True)
    assert one.path.joinpath("exit").stat().st_size == 64  # written in place, behind which there is only room


def test_a_command_that_met_a_full_disk_is_tried_again_under_its_id(ticking: Ticking) -> None:
    """Its first try leaves no room for the file that shows that there is some."""
    fail = "{{ cd line/attempts/a-*/1; mkdir .room; exit 2; }}"
    ticking.write(station("a", f"sh -c 'echo $AIFX_REQUEST >>a.count; [ $(wc -l <a.count) = 2 ] || {fail}'"))
    assert ticking.tick() == {"a": "done"}
    assert len(set((ticking.root / "a.count").read_text().split())) == 1
    (repeated,) = ticking.records("repeated")
    assert repeated.facts["why"].endswith("the disk was full")


def test_a_receiver_that_answers_500_for_a_day_is_reported_once(
    ticking: Ticking, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking.write(station("bad", "false") + '[[notify]]\nurl_from = "OPS_URL"\nname = "ops"\nallow = ["127.0.0.0/8"]\n')
    ticking.tick()
    lines = list[str]()
    with receiver() as at:
        monkeypatch.setenv("OPS_URL", at.url)
        monkeypatch.setenv("OPS_URL_SECRET", SECRET)
        at.answer = lambda event: 500
        monkeypatch.setattr(delivery, "deliver", partial(delivery.deliver, clock=lambda: time.time()))
        sender = _Sender(Project(ticking.root), ticking.root / "line.toml", lines.append)
        for minute in range(0, 24 * 60, 60):
            clock.offset_s = minute * 60.0
            sender.send()
        assert len(at.attempts) > 3
        at.answer = lambda event: 204
        clock.offset_s += 86400
        sender.send()
        assert at.accepted[0]["subject"] == "bad"
    (line,) = lines
    assert "ops: 500 Internal Server Error" in line
    assert "aifx notify ls" in line

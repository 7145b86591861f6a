"""Child processes as they are: real ones that answer, hang, flood, leave others behind, or lose their parent."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing, suppress
from types import SimpleNamespace

import psutil
import pytest

from aifx.core import processes
from aifx.core.errors import Terminated
from aifx.core.lifecycle import on_signals
from aifx.core.processes import Child, aifx_command, pump, run, run_many

EVENTS = "import json, os, signal, subprocess, sys, time\ndef emit(**e): print(json.dumps(e), flush=True)\n"
SLEEPER = 'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])'


def python(body: str) -> list[str]:
    return [sys.executable, "-S", "-c", EVENTS + textwrap.dedent(body)]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A process that is killed may wait for a processor until it dies."""
    monkeypatch.setattr(processes, "REAP_S", 120)


@pytest.fixture
def skip(monkeypatch):
    """Move the clock of the limits forward, so that no test waits for one or comes near it by being slow."""
    skipped = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(skipped))
    monkeypatch.setattr(processes, "time", clock)
    return skipped.append


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("body", "code", "number", "why"),
    [
        ("pass", 0, None, "exit 0"),
        ("sys.exit('no device')", 1, None, "exit 1: no device"),
        ("os.kill(os.getpid(), 9)", None, 9, "signal 9 (Killed)"),
        ("sys.exit('token=ghp_0123456789abcdefghijABCDEFGHIJ012345 is wrong')", 1, None, "exit 1: token=[removed]"),
    ],
)
def test_events_and_the_end(body, code, number, why):
    with Child(python(f"emit(number=1)\nemit(number=2)\n{body}")) as child:
        assert list(child.events()) == [{"number": 1}, {"number": 2}]
    assert (child.ended.code, child.ended.signal) == (code, number)
    assert child.ended.why.startswith(why)
    assert child.ended.succeeded == (code == 0)


def test_a_torn_line_is_no_event_and_neither_is_what_is_not_an_object():
    body = 'emit(number=1); print("hello"); print(7); sys.stdout.write(\'{"number": 2}\'); sys.stdout.flush()'
    with Child(python(body)) as child:
        assert list(child.events()) == [{"number": 1}]


def test_a_program_that_answers():
    ended = run(python("print('out'); print('a line'); print('first', file=sys.stderr); sys.exit('last')"))
    assert (ended.output, ended.code, ended.last_lines) == (b"out\na line\n", 1, ("first", "last"))
    assert run(["/bin/sh", "-c", "cat; echo $NAME; pwd"], env={"NAME": "n"}, cwd="/").output == b"n\n/\n"  # no stdin
    with pytest.raises(FileNotFoundError):
        run(["/no/such/program"])


def test_silence_ends_it_and_keeps_what_it_said(tmp_path, skip):
    """Each sign of life begins the wait again."""
    body = f"""
        print("stuck", file=sys.stderr)
        for n in range(6):
            emit(n=n)
            while not os.path.exists(f"{tmp_path}/{{n}}"):
                time.sleep(0.01)
        time.sleep(600)
        """
    with Child(python(body), silence_s=1000) as child:
        for number, event in enumerate(child.events()):
            assert event == {"n": number}
            skip(600 if number < 5 else 1000)
            (tmp_path / str(number)).touch()
    assert number == 5
    assert (child.ended.cut, child.ended.last_line, child.ended.succeeded) == ("silence", "stuck", False)


def test_a_limit_ends_it_and_keeps_what_it_said(skip):
    with Child(["/bin/sh", "-c", "echo half; exec sleep 600"], limit_s=1000) as child:
        while not child._out:
            pump([child])
        skip(1000)
        ended = child.wait()
    assert (ended.cut, ended.output, ended.signal) == ("limit", b"half\n", 9)


def test_a_limit_ends_what_it_started_too(skip):
    """The child's child has a session of its own in no case, and ignores SIGTERM."""
    with Child(
        python(f"signal.signal(15, signal.SIG_IGN)\nemit(pid={SLEEPER}.pid)\ntime.sleep(600)"), limit_s=1000
    ) as child:
        event = next(child.events())
        skip(1000)
        ended = child.wait()
    assert (ended.cut, ended.signal) == ("limit", signal.SIGKILL)
    assert is_gone(event["pid"])


def test_output_has_a_limit(monkeypatch):
    monkeypatch.setattr(processes, "MAX_BYTES", 1 << 20)
    ended = run(python("while True: print('x' * 4096)"))
    assert ended.cut == "output"
    assert len(ended.output) <= (1 << 20) + (1 << 16)
    ended = run(python("for n in range(40): sys.stderr.write(f'{n} ' + 'x' * (1 << 16) + chr(10))"))
    assert ended.succeeded  # of stderr, the end is kept
    assert ended.last_lines[-1].startswith("39 ")
    assert sum(map(len, ended.last_lines)) <= 1 << 20


def test_a_line_without_end_is_cut():
    lines = []
    with Child(python("print('a' * 300_000); print('b')")) as child:
        while child.ended is None:
            pump([child], 1.0)
            lines += child.take_lines(10)
    assert lines + child.take_lines(10) == [b"a" * 10, b"b"]


@pytest.mark.parametrize("end", ["time.sleep(600)", "signal.signal(15, signal.SIG_IGN); emit(); time.sleep(600)"])
def test_what_it_started_ends_with_it(end):
    """Also if it ignores SIGTERM."""
    body = f"child = {SLEEPER}\nemit(pid=child.pid)\n{end}"
    with Child(python(body), grace_s=0.1) as child:
        event = next(child.events())
    assert child.ended.cut == "stopped"
    assert is_gone(event["pid"])


def test_what_it_leaves_in_its_group_ends_with_it():
    """Its open output is no reason to wait."""
    with Child(python(f"emit(pid={SLEEPER}.pid)")) as child:
        (event,) = child.events()
    assert child.ended.succeeded
    assert is_gone(event["pid"])


def test_it_is_asked_before_it_is_killed(tmp_path):
    """The output of that time is kept, also if it is more than a pipe holds."""
    body = f"""
        def leave(*_):
            os.write(1, b"x" * 300_000)  # print is not reentrant, and the signal may interrupt that of emit
            open({str(tmp_path / "left")!r}, "w").close()
            sys.exit("left")
        signal.signal(signal.SIGTERM, leave)
        emit()
        time.sleep(600)
        """
    with Child(python(body), grace_s=120) as child:
        next(child.events())
    assert (tmp_path / "left").exists()
    assert (child.ended.code, child.ended.last_line, child.ended.cut) == (1, "left", "stopped")
    assert len(child.ended.output) == 300_000


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Terminated])
def test_an_interrupt_ends_it(interrupt):
    with suppress(interrupt), Child(python("emit(pid=os.getpid())\ntime.sleep(600)"), grace_s=120) as child:
        event = next(child.events())
        raise interrupt
    assert child.ended.signal == signal.SIGTERM
    assert is_gone(event["pid"])


def test_a_signal_that_comes_while_it_ends_kills_it_although_nothing_is_raised():
    """This one sends it itself when it is asked to end, and would end by itself within the grace."""
    body = "signal.signal(15, lambda *_: os.kill(os.getppid(), signal.SIGINT)); emit(); time.sleep(60)"
    came = []
    with on_signals(came.append), Child(python(body), grace_s=600) as child:
        next(child.events())
    assert (child.ended.cut, child.ended.signal, came) == ("stopped", signal.SIGKILL, [signal.SIGINT])


def test_ctrl_c_reaches_only_the_parent(tmp_path):
    """Which hears it while it waits."""
    body = f"""
        while not os.path.exists({str(tmp_path / "waits")!r}):
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(600)
        """
    with suppress(KeyboardInterrupt), Child(python(body)) as child:
        (tmp_path / "waits").touch()
        child.wait()
    assert child.ended.cut == "stopped"


def test_many_at_once():
    """No more than are allowed, each as it ends; one that hangs does not delay others."""
    started = []

    def children():
        for name in ("hangs", *"abcdef"):
            body = "time.sleep(600)" if name == "hangs" else "emit(); time.sleep(0.05)"
            started.append(Child(python(body), name=name, limit_s=1 if name == "hangs" else 120))
            assert sum(child.ended is None for child in started) <= 3
            yield started[-1]

    with closing(run_many(children(), 3)) as running:
        ended = [child for child in running if child is not None]
    assert sorted(child.name for child in ended) == sorted(["hangs", *"abcdef"])
    assert {child.name: child.ended.cut for child in ended} == dict.fromkeys("abcdef", "") | {"hangs": "limit"}


def test_one_that_will_not_end_does_not_delay_others(tmp_path, skip):
    """It is killed when its grace is over; meanwhile the others are read."""
    asked = tmp_path / "asked"
    deaf = Child(["/bin/sh", "-c", "trap '' TERM; echo; sleep 600; sleep 600"], limit_s=1000, grace_s=1000)
    short = Child(["/bin/sh", "-c", f"until [ -e {asked} ]; do sleep 0.02; done"])
    ended = []
    with closing(run_many([deaf, short], 2)) as running:
        for child in running:
            if child is not None:
                ended.append(child)
                skip(1000)  # the grace
            elif deaf.take_lines():
                skip(1000)  # the limit
            elif deaf._cut:
                asked.touch()
    assert ended == [short, deaf]
    assert [(child.ended.cut, child.ended.signal) for child in ended] == [("", None), ("limit", signal.SIGKILL)]


def test_many_end_with_the_block():
    children = (Child(python("emit()\ntime.sleep(600)"), grace_s=0.1) for _ in range(3))
    seen = []
    with closing(run_many(children, 3, wait_s=0.01)) as running:
        seen += [next(running) for _ in range(2)]
    assert seen == [None, None]


CHILD = """
import signal, sys, time
from aifx.core import lifecycle, processes

emit = processes.connect()
lifecycle.FOLLOW_S = 0.5 if "deaf" in sys.argv else 120
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("of a library")
try:
    with processes.Child(["sleep", "600"]) as sleeper:
        emit({"pid": sleeper._process.pid})
        time.sleep(600 if len(sys.argv) > 2 else 0)
finally:
    open(sys.argv[1], "w").close()
    emit({"left": True})
"""
PARENT = """
import os, sys
from aifx.core.processes import Child

with Child.of_module("child_of_a_test", *sys.argv[1:]) as child:
    for event in child.events():
        print(event["pid"], child._process.pid, flush=True)
"""


@pytest.mark.parametrize("kind", ["sleeps", "deaf"])
def test_a_child_of_ours_ends_with_a_parent_that_is_killed(tmp_path, monkeypatch, kind):
    (tmp_path / "child_of_a_test.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-c", PARENT, tmp_path / "left", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert all(map(is_gone, pids))
    assert (tmp_path / "left").exists() == (kind == "sleeps")


def test_what_libraries_print_is_no_event(tmp_path, monkeypatch):
    (tmp_path / "child_of_a_test.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child.of_module("child_of_a_test", str(tmp_path / "left")) as child:
        events = list(child.events())
    assert [list(event) for event in events] == [["pid"], ["left"]]
    assert child.ended.last_line == "of a library"
    done = subprocess.run(  # by hand, at a terminal or without stdin
        [sys.executable, "-m", "child_of_a_test", tmp_path / "left"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [["pid"], ["left"]]


def test_a_command_of_ours_runs_beside_modules_of_any_name_and_ends_with_its_parent(tmp_path, monkeypatch):
    (tmp_path / "aifx.py").write_text("raise SystemExit('the wrong aifx')")
    monkeypatch.chdir(tmp_path)
    ended = run(aifx_command("--version"))
    assert ended.succeeded, ended.why
    assert ended.output.startswith(b"aifx ")
    ended = run(aifx_command("--version", ends_with=1))  # which is not its parent: that one has ended
    assert ended.signal == signal.SIGTERM

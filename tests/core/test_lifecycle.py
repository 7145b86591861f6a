"""Signals and exits of real processes: wherever the main thread is, and whatever a library does to signals."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from aifx.core import lifecycle

TIMEOUT_S = 120
BEGIN = "import os, signal, sys, time\nfrom aifx.core import lifecycle\ndef ready(): print('ready', flush=True)\n"
STUCK = """
    import ctypes
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    ready()
    lock(mutex)  # nothing of Python's runs in this thread any more
"""


def ended(body: str, *signals: int) -> subprocess.CompletedProcess[str]:
    """A program that gets these signals, each when it says that it is ready."""
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for number in signals:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n", process.communicate()
                process.send_signal(number)
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_while_a_module_is_imported(number, code, tmp_path):
    """Nothing is unwound: imports turn interrupts into other errors."""
    (tmp_path / "slow.py").write_text(
        "import time\nprint('ready', flush=True)\ntry:\n    time.sleep(600)\nexcept BaseException: print('caught')\n"
    )
    body = f"""
        def answer(number):
            os.write(1, b"answered\\n")
            return lifecycle.exit_code_of(number)
        lifecycle.enter(lambda: answer)
        sys.path.insert(0, {str(tmp_path)!r})
        import slow
        """
    done = ended(body, number)
    assert (done.returncode, done.stdout, done.stderr) == (code, "answered\n", "")


@pytest.mark.parametrize(("last", "code"), [("pass", 75), ("time.sleep(600)", -signal.SIGALRM)])
def test_it_ends_although_no_thread_can_start(last, code):
    """With its answer, also if the reader of that has stalled."""
    body = f"""
        import resource, threading
        def answer(number):
            os.write(1, b"answered\\n")
            {last}
            return lifecycle.exit_code_of(number)
        lifecycle.enter(lambda: answer)
        threading.stack_size(256 << 20)
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        ready()
        time.sleep(600)
        """
    done = ended(body, signal.SIGTERM)
    assert (done.returncode, done.stdout) == (code, "answered\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_acted_on_although_the_main_thread_is_stuck(number):
    done = ended(f"with lifecycle.on_signals(lifecycle.exit_now, lifecycle.STOPS):{STUCK}", number)
    assert done.returncode == number, done.stderr


def test_a_signal_is_acted_on_although_a_library_has_taken_the_descriptor():
    body = """
        import asyncio, threading
        async def library():
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
        acted = threading.Event()
        with lifecycle.on_signals(lambda number: acted.set()):
            asyncio.run(library())
            ready()
            while not acted.wait(0.01):  # the handler alone announces it, between two bytecodes
                pass
        """
    done = ended(body, signal.SIGTERM)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_signal_is_acted_on_once_although_it_is_announced_twice():
    """The listener's word of SIGTERM may come after the handler's word of the SIGINT that followed it."""
    acted: list[int] = []
    both = threading.Event()

    def act(number: int) -> None:
        acted.append(number)
        if len(acted) == 2:
            both.set()

    announced = lifecycle._Announced(act)
    announced.by_listener(signal.SIGTERM)
    announced.by_handler(signal.SIGINT, None)
    assert both.wait(TIMEOUT_S)
    announced.by_handler(signal.SIGTERM, None)
    announced.by_listener(signal.SIGINT)
    assert acted == [signal.SIGTERM, signal.SIGINT]


def test_an_act_that_fails_is_reported_and_the_next_signal_is_acted_on():
    body = f"""
    import threading
    def act(number):
        if number == signal.SIGINT:
            raise OSError("failed")
        lifecycle.exit_now(7)
    def reported(*what):
        os.write(2, b"reported")
        ready()
    sys.excepthook = threading.excepthook = sys.unraisablehook = reported  # the last: of a thread that a handler began
    with lifecycle.on_signals(act):{STUCK.replace("    ", "        ")}"""
    done = ended(body, signal.SIGINT, signal.SIGTERM)
    assert (done.returncode, done.stderr) == (7, "reported")


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, lifecycle.Terminated)]
)
def test_a_signal_interrupts_except_the_first_one_while_a_loop_polls(number, error):
    with lifecycle.interrupt_or_request() as stop:
        with lifecycle.polling(stop):
            signal.raise_signal(number)
            assert stop == [number]
            with pytest.raises(error):
                signal.raise_signal(number)
        with pytest.raises(error):
            signal.raise_signal(number)
    with lifecycle.interrupt_or_request() as stop, pytest.raises(error):
        signal.raise_signal(number)
    assert stop == [number]


def test_what_was_there_before_is_there_again():
    before = {number: signal.getsignal(number) for number in lifecycle.STOPS}
    with lifecycle.collect_signals() as came, lifecycle.collect_signals() as inner:
        os.kill(os.getpid(), signal.SIGTERM)
        while not inner:
            threading.Event().wait(0.01)
    assert (came, inner) == ([], [signal.SIGTERM])
    assert {number: signal.getsignal(number) for number in lifecycle.STOPS} == before
    assert signal.set_wakeup_fd(-1) == -1


EXITS = {
    "without unwinding": ("try:\n    lifecycle.exit_now(7)\nfinally:\n    print('unwound')", 7),
    "at its limit": (f"with lifecycle.exit_after(0.01, 124, 'too late'):{STUCK}", 124),
    "within its limit": ("with lifecycle.exit_after(600, 124, 'too late'):\n    pass", 0),
    "killed at its limit": (f"with lifecycle.killed_after(0.01):{STUCK}", -signal.SIGALRM),
    "when C aborts": ("lifecycle.on_abort(lambda: 75)\nos.abort()", 75),
    "aborted": ("lifecycle.on_abort(lambda: None)\nos.abort()", -signal.SIGABRT),
    "on SIGTERM": ("lifecycle.leave_on_sigterm()\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(600)", 75),
    "without its parent": ("lifecycle.end_with(os.getpid())\ntime.sleep(600)", -signal.SIGTERM),  # nobody's own parent
}


@pytest.mark.parametrize("case", EXITS)
def test_exits_keep_their_codes(case):
    body, code = EXITS[case]
    done = ended(body)
    assert done.returncode == code, done
    assert "ready\n".startswith(done.stdout)  # the limit may come before it, or while it is written
    assert done.stderr.strip() == ("too late" if case == "at its limit" else "")

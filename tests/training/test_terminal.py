"""`aifx train` at a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
from collections.abc import Callable

import pytest
import warm

END_S = 300


def at_a_terminal(tiny, *args: str, strike: Callable[[bytes], bool] | None = None) -> tuple[int, str]:
    """Exit code and what the terminal got; SIGINT once `strike` holds for what it got so far."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    process = warm.Process(args, tiny.root, environ, terminal=os.ttyname(slave))
    assert select.select([master], [], [], END_S)[0], "nothing was drawn"
    got = os.read(master, 65536)
    os.close(slave)  # the process has it open by now
    struck = strike is None
    try:
        while data := os.read(master, 65536):
            got += data
            if not struck and strike is not None and strike(got):
                struck = True
                process.send_signal(signal.SIGINT)
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(master)
        code = process.wait(END_S)
    return code, got.decode(errors="replace")


@pytest.mark.slow
def test_the_panel_is_drawn_and_leaves_the_cursor(tiny) -> None:
    code, got = at_a_terminal(tiny, "train", "--set", "train.num_steps=100", "--set", "data.read_s=0.01")
    assert code == 0, got
    assert "100 / 100" in got
    assert "rows/s" in got
    assert "MFU = " in got
    assert got.rfind("\x1b[?25h") > got.rfind("\x1b[?25l") > -1
    assert "completed at step 100" in got


def test_an_interrupt_leaves_the_cursor_too(tiny) -> None:
    long = ["train", "--set", "train.num_steps=100000", "--set", "data.read_s=0.01"]
    code, got = at_a_terminal(tiny, *long, strike=lambda got: b"rows/s" in got)
    assert code == 130, got
    assert got.rfind("\x1b[?25h") > got.rfind("\x1b[?25l") > -1
    assert "resume with: aifx train" in got


def test_an_interrupt_while_compiling_leaves_the_cursor_too(tiny) -> None:
    code, got = at_a_terminal(tiny, "train", "--set", "data.compile_s=600", strike=lambda got: b"compiling" in got)
    assert code == 130, got
    assert got.rfind("\x1b[?25h") > got.rfind("\x1b[?25l") > -1
    assert "nothing was saved yet" in got

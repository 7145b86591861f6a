"""The log of aifx: what reaches a command's stderr and a run's train.log, and what does not."""

from __future__ import annotations

import logging
import warnings

import pytest

from aifx.commands.console.terminal import terminal
from aifx.core.logs import log_lines, python_warnings

logger = logging.getLogger("aifx.a.module")


def test_lines_are_messages_and_a_warning_says_so(logged: list[str]) -> None:
    logger.debug("too much")
    logger.info("100% of it")
    logger.warning("odd")
    assert logged == ["100% of it", "warning: odd"]


def test_other_packages_do_not_log_through_aifx(logged: list[str]) -> None:
    logging.getLogger("jax").warning("theirs")
    logging.getLogger("orbax").error("theirs")
    logging.warning("anybody's")
    assert logged == []


def test_listeners_may_be_nested_and_leave_nothing() -> None:
    outer: list[str] = []
    inner: list[str] = []
    for _ in range(2):  # the second time, too: loggers cache whether a level is enabled
        with log_lines(outer.append):
            with log_lines(inner.append):
                logger.info("both")
            logger.info("outer")
        logger.info("nobody")
    assert (outer, inner) == (["both", "outer"] * 2, ["both"] * 2)


@pytest.mark.parametrize(("level", "messages"), [("INFO", ["note", "odd"]), ("WARNING", ["odd"])])
def test_a_program_that_uses_the_library_gets_what_it_asks_for(
    caplog: pytest.LogCaptureFixture, level: str, messages: list[str]
) -> None:
    """A run's log file takes more, and changes nothing for others."""
    caplog.set_level(level, "aifx")
    with log_lines([].append), log_lines([].append):
        logger.info("note")
        logger.warning("odd")
    assert caplog.messages == messages
    caplog.clear()
    with log_lines([].append, propagate=False):
        logger.warning("odd")
    assert caplog.messages == []


def test_a_command_shows_the_log_and_pythons_warnings_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal(json=True) as out:
        out.document({"answer": 1})
        logger.info("reading \x1b]0;a file\x07")
        warnings.warn("old", UserWarning, stacklevel=1)
    printed = capsys.readouterr()
    assert '"answer": 1' in printed.out
    assert printed.err.startswith("reading \\x1b]0;a file\\x07\n")
    assert "UserWarning: old" in printed.err
    logger.info("after the command")
    assert capsys.readouterr().err == ""


def test_pythons_warnings_go_where_they_went_before(recwarn: pytest.WarningsRecorder) -> None:
    lines: list[str] = []
    with python_warnings(lines.append):
        warnings.warn("inside", UserWarning, stacklevel=1)
    warnings.warn("outside", UserWarning, stacklevel=1)
    assert len(lines) == 1
    assert "UserWarning: inside" in lines[0]
    assert [str(w.message) for w in recwarn if w.category is UserWarning] == ["outside"]

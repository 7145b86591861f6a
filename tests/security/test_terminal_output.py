"""Attacks on the terminal by names and texts of strangers: escape sequences, titles, clipboard, reading direction."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import inprocess
import pytest
from rich.text import Text

from aifx.commands.console.consoles import make_console
from aifx.commands.console.output import Output
from aifx.commands.console.writing import to_json
from aifx.config.toml import literal
from aifx.core.errors import ConfigError
from aifx.core.sanitize import escape_controls, one_line
from aifx.verbs.completion import complete_run

ATTACK = "\x1b]52;c;Y3VybA==\x07\x1b[2J\x9b31m\x9d0;title\x9c\u202egnp.exe\x08\x00"
HARMLESS = {"\n", "\t"}


def steering(text: str) -> set[str]:
    """The characters of `text` that a terminal would obey."""
    return {c for c in text if (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c == "\u202e") and c not in HARMLESS}


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_controls_are_escaped_and_writing_systems_stay() -> None:
    assert escape_controls("a\x1b[31m\x9bb\u2028\ud800") == "a\\x1b[31m\\x9bb\\u2028\\ud800"
    assert escape_controls("two\nlines\tand\xa0a \u202f space, می\u200cخواهم") == (
        "two\nlines\tand\xa0a \u202f space, می\u200cخواهم"
    )
    assert one_line("a\r\nb\tc") == "a\\r b\\tc"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("use", ["print", "text", "row", "table", "log", "report", "write", "panel", "status"])
def test_no_text_steers_a_terminal(monkeypatch: pytest.MonkeyPatch, stream: Any, use: str) -> None:
    from rich.panel import Panel

    monkeypatch.setattr("sys.stdout", stream())
    monkeypatch.setattr("sys.stderr", stream())
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    out = Output()
    text = f"begin{ATTACK}end"
    uses = {
        "print": lambda: out.print(text),
        "text": lambda: out.print(Text(text, "bold")),
        "row": lambda: out.row(Text(text), Text(text)),
        "table": lambda: out.table([text, "b"], [(text, 1), ("c", None)], right=[text]),
        "log": lambda: out.log(text),
        "report": lambda: out.report([ConfigError(text, text, text)]),
        "write": lambda: out.write(text),
        "panel": lambda: out.print(Panel(Text(text), title=text)),
        "status": lambda: out.err.print(Panel(text, title=text)),
    }
    uses[use]()
    import sys

    written = sys.stdout.getvalue() + sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "begin" in written
    assert steering(written) == set()


def test_a_table_keeps_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", stream := io.StringIO())
    Output().table(["a", "b"], [("\x1b", 1), ("two\nlines", 2)])
    assert stream.getvalue() == "a          b\n\\x1b       1\ntwo lines  2\n"


def test_colours_and_the_cursor_of_ours_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    console = make_console(stderr=True)
    console.print(Text("red", "red"))
    console.show_cursor(False)
    assert "\x1b[31mred\x1b[0m" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[?25l")


def test_json_and_toml_hold_the_text_without_its_controls() -> None:
    text = to_json({ATTACK: [ATTACK]})
    assert steering(text) == set()
    assert json.loads(text) == {ATTACK: [ATTACK]}
    import tomli

    line = literal("a\x9b31m\u202e")
    assert steering(line) == set()
    assert tomli.loads(f"x = {line}")["x"] == "a\x9b31m\u202e"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with runs of hostile names."""
    (tmp_path / "aifx.toml").write_text("")
    for name in ("main", "a;touch X;", "$(id)", f"m{ATTACK.replace(chr(0), '')}"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.toml").write_text("[train]\nnum_steps = 3\n")
        event = {"time": 0, "event": "stop", "status": ATTACK, "step": 1}
        (run / "events.jsonl").write_text(json.dumps(event, ensure_ascii=False) + "\n")
        record = {"step": 1, "loss": 1.0, "unit": ATTACK, "units_per_s": 2.0}
        (run / "metrics.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n")
        (run / "provenance.json").write_text(json.dumps({"command": [ATTACK], "git": {"commit": ATTACK}}))
    return tmp_path


def test_completion_offers_only_names_that_a_run_can_have(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert complete_run("") == ["main"]


@pytest.mark.parametrize(
    "args",
    [["runs", "ls"], ["runs", "ls", "--json"], ["runs", "show", "main"], ["runs", "watch", "main", "--once"],
     ["runs", "show", "main", "--json"], ["ckpt", "ls", "main"],
     ["config", "show", "--set", f"data.path={ATTACK[:30]}"]],
)  # fmt: skip
def test_a_hostile_run_is_shown_and_steers_nothing(project: Path, args: list[str]) -> None:
    done = inprocess.run([arg.replace("\0", "") for arg in args], project, os.environ)
    assert steering(done.stdout + done.stderr) == set()
    assert done.stdout or done.stderr

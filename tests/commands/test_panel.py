"""The panel and the lines: what they show, and that it fits."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from aifx.commands.train.panel import Curve, Lines, Panel
from aifx.core.progress import Progress
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.machine.catalogue import Peak
from aifx.training.records import Record, RunInfo


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    (tmp_path / "aifx.toml").write_text("")
    project = Project(tmp_path)
    config = load_config(project, [], {})
    run = project.run("main")
    return RunInfo(run, config, 0, 0, 700, "tokens", 1_000_000, 10**10, Peak(1e12, "a peak"), "1 x cpu", "float32")


def record(step: int, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "step": step,
        "loss": 7.0 - step / 200,
        "grad_norm": 0.5,
        "learning_rate": 0.02,
        "unit": "tokens",
        "units": 2048 * step,
        "units_per_s": 20_000.0,
        "step_time_s": 0.1,
        "data_wait_s": 0.0001,
        "mfu": 0.31,
        "ceiling_fraction": None,
        "time": time.time(),
    }
    return Record(**{**values, **changes})


def frame(panel: Panel, width: int, encoding: str = "utf-8") -> list[str]:
    class File(io.StringIO):
        pass

    File.encoding = encoding  # type: ignore[misc]
    console = Console(file=File(), width=width, force_terminal=True, color_system=None)
    panel._console = console
    console.print(panel.render())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def filled(info: RunInfo) -> Panel:
    panel = Panel(Console(file=io.StringIO(), width=80))
    panel.on_event("compile", {})
    panel.start(info)
    for step in range(1, 421):
        panel.on_record(record(step))
    panel.on_event("validation", {"step": 400, "loss": 5.1234, "improved": True, "duration_s": 1.0})
    panel.on_event("sample", {"step": 400, "prompt": "Call me", "text": " Ahab,\x1b[31m\nsaid 鲸 " + "the whale " * 40})
    panel.on_event("checkpoint", {"step": 400, "validation_loss": 5.1234, "size_bytes": 12})
    return panel


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_it_fits(info: RunInfo, width: int) -> None:
    lines = frame(filled(info), width)
    assert max(cell_len(line) for line in lines) <= min(width, 100)
    assert len(lines) < 20


def test_it_shows_what_matters(info: RunInfo) -> None:
    text = "\n".join(frame(filled(info), 80))
    for word in ("run main", "420 / 700", "60%", "ETA", "4.9000", "5.1234", "step 400", "20,000 tokens/s", "31.0%"):
        assert word in text, word
    assert "100 ms/step" in text
    assert "checkpoint of step 400" in text
    assert "Call me Ahab,\\x1b[31m said" in text


def test_a_terminal_without_unicode(info: RunInfo) -> None:
    text = "\n".join(frame(filled(info), 80, encoding="ascii"))
    assert text.isascii()
    assert "420 / 700" in text


def test_before_the_first_step(info: RunInfo) -> None:
    panel = Panel(Console(file=io.StringIO(), width=80))
    assert "starting" in "".join(frame(panel, 80))
    panel.on_event("compile", {})
    assert "compiling" in "".join(frame(panel, 80))
    panel._console = Console(file=io.StringIO(), width=80)
    panel.start(info)
    assert "--:--" in "".join(frame(panel, 80))


def test_a_record_costs_little(info: RunInfo) -> None:
    panel = filled(info)
    one = record(500)
    calls = []
    sys.setprofile(lambda _, event, function: calls.append(function) if event.endswith("call") else None)
    try:
        panel.on_record(one)
    finally:
        sys.setprofile(None)
    assert len(calls) < 20, "nothing is drawn"


def test_the_curve_is_bounded_and_keeps_its_shape() -> None:
    curve = Curve(capacity=64)
    for i in range(100_000):
        curve.add(float(i))
    assert 32 <= len(curve.points) <= 64
    assert curve.points == sorted(curve.points)
    assert curve.points[0] < 5_000
    assert curve.points[-1] > 90_000


class Said:
    """In place of a command's output: what it was told to say."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def test_lines_come_now_and_then(info: RunInfo) -> None:
    said = Said()
    lines = Lines(said)  # type: ignore[arg-type]
    lines.EVERY_S = 1e9  # type: ignore[misc]
    lines.start(info)
    assert any("MFU = " in line and "a peak" in line for line in said.lines)
    before = len(said.lines)
    for step in range(1, 701):
        lines.on_record(record(step, validation={"loss": 5.0} if step == 400 else None))
    steps = [line.split()[1] for line in said.lines[before:]]
    assert steps == ["1", "2", "3", "400", "700"]
    assert "validation 5.0000" in said.lines[before + 3]
    lines.on_event("sample", {"step": 400, "prompt": "Call me", "text": " Ahab,\nsaid"})
    assert said.lines[-1].endswith(" 400: Call me Ahab, said")


def test_an_activity_before_the_panel_is_shown_without_it():
    shown: list[Progress | None] = []
    panel = Panel(Console(file=io.StringIO(), width=80), shown.append)
    planning = Progress("planning", 0, None, "", 2.0)
    panel.activity(planning)
    panel.on_event("start", {})
    panel.activity(planning)
    panel.stop(None)
    assert shown == [planning, None]

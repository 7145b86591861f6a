"""Progress is reported where a while is spent, and shown as the terminal allows."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from aifx.commands.console.output import Output
from aifx.commands.console.progress import ProgressDisplay, progress_line
from aifx.commands.train.panel import Panel
from aifx.core import progress as module
from aifx.core.progress import Progress, listen, report_progress
from aifx.core.project import Project
from aifx.data.sections import TextSection
from aifx.data.text import TextFormat


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Progress | None]:
    """All that is reported, whatever the clock says."""
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    return []


def test_the_last_listener_hears(reported: list[Progress | None]) -> None:
    outer: list[Progress | None] = []
    with listen(outer.append):
        with listen(reported.append), report_progress("counting", 4, "batches") as report:
            report.advance(1)
            report.advance(1)
            report.enter("adding up")
        with pytest.raises(ValueError, match="x"), report_progress("failing", None, "bytes"):
            raise ValueError("x")
    with report_progress("alone", None, "bytes") as report:
        report.advance(1)
    *reports, last = reported
    assert [(p.activity, p.done, p.total, p.unit) for p in reports if p] == [
        ("counting", 1, 4, "batches"),
        ("counting", 2, 4, "batches"),
        ("adding up", 0, None, "batches"),
    ]
    assert (len(reports), last) == (3, None)
    assert outer == [None]


@pytest.mark.parametrize(
    ("done", "total", "elapsed_s", "text"),
    [
        (10**6, 4 * 10**6, 0.5, "reading: 25% of 4.0 MB"),
        (10**6, 4 * 10**6, 2.0, "reading: 25% of 4.0 MB, 500.0 kB/s, 6 s left"),
        (10**6, 100 * 10**6, 2.0, "reading: 1% of 100.0 MB, 500.0 kB/s, 3 min left"),
        (10**6, 10**10, 2.0, "reading: 0% of 10.0 GB, 500.0 kB/s, 5.6 h left"),
        (10**6, None, 2.0, "reading: 1.0 MB, 500.0 kB/s"),
        (10**6, 10**6, 2.0, "reading: 100% of 1.0 MB, 500.0 kB/s"),
        (0, 10**6, 2.0, "reading: 0% of 1.0 MB"),
    ],
)
def test_rate_and_remaining_time(done: int, total: int | None, elapsed_s: float, text: str) -> None:
    assert str(Progress("reading", done, total, "bytes", elapsed_s)) == text


@pytest.mark.parametrize(("done", "rate"), [(3, "1.5"), (246, "123"), (116_091, "58,000"), (2_469_999, "1,230,000")])
def test_rates_have_no_exponent(done: int, rate: str) -> None:
    assert str(Progress("reading", done, None, "rows", 2.0)).endswith(f", {rate} rows/s")


def test_a_narrow_line_keeps_the_time_left_and_the_end_of_the_name() -> None:
    name = "postgresql://scorer.example.com:5432/shop/sales.orders"
    long = Progress(f"scoring {name}", 116_091, 1_000_000, "rows", 2.0)
    line = progress_line(long, 80, is_ascii=False).plain
    assert len(line) == 80
    assert re.search(r"─ scoring ….*orders: 12% of 1,000,000 rows, 58,000 rows/s, 15 s left$", line)
    assert progress_line(long, 160, is_ascii=True).plain.endswith(str(long))


def test_tokenizing_and_training_the_tokenizer_report_to_the_end(
    reported: list[Progress | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    text = "one two three four five six seven\n" * 3000
    (tmp_path / "data/a.txt").write_text(text)
    (tmp_path / "data/b.jsonl").write_text(json.dumps({"text": text}) + "\n")
    section = TextSection(seq_len=16, vocab_size=300, train=("data/*",))
    with listen(reported.append):
        TextFormat.open(section, Project(tmp_path), tmp_path / "assets")
    shares: dict[str, float] = {}
    for progress in reported:
        if progress and progress.share is not None:
            activity = progress.activity.split(" data/")[0]
            assert progress.share >= shares.get(activity, 0)
            shares[activity] = progress.share
    assert shares == pytest.approx({"training the tokenizer on": 1, "tokenizing": 1}, abs=0.05)
    assert [p.activity for p in reported if p][-1].startswith("tokenizing")
    assert "merging pairs of tokens" in [p.activity for p in reported if p]
    assert reported[-1] is None


def display(*, terminal: bool) -> tuple[ProgressDisplay, io.StringIO]:
    stream = io.StringIO()
    out = Output()
    out.err = Console(file=stream, force_terminal=terminal, width=80, color_system=None)
    return ProgressDisplay(out), stream


def test_off_a_terminal_a_line_comes_now_and_then() -> None:
    show, stream = display(terminal=False)
    for second in range(25):
        show(Progress("tokenizing data/a.txt", second * 10**6, 25 * 10**6, "bytes", float(second)))
    show(None)
    assert stream.getvalue().splitlines() == [
        "tokenizing data/a.txt: 40% of 25.0 MB, 1.0 MB/s, 15 s left",
        "tokenizing data/a.txt: 80% of 25.0 MB, 1.0 MB/s, 5 s left",
    ]


def test_on_a_terminal_a_line_moves_and_the_cursor_comes_back() -> None:
    show, stream = display(terminal=True)
    show(Progress("tokenizing \x1b]0;x\x07", 1, 4, "batches", 0.5))
    assert not stream.getvalue(), "what is soon over is not shown"
    show(Progress("tokenizing \x1b]0;x\x07", 2, 4, "batches", 2.0))
    show(None)
    written = stream.getvalue()
    assert "50% of 4 batches" in written
    assert "\x1b]0" not in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_the_panel_of_a_run_shows_it_before_the_first_step() -> None:
    stream = io.StringIO()
    panel = Panel(Console(file=stream, width=80, color_system=None))
    panel.activity(Progress("tokenizing data/a.txt", 1, 2, "bytes", 3.0))
    Console(file=stream, width=80).print(panel.render())
    assert re.search(r"data/a.txt.* 50%", stream.getvalue())
    panel.activity(None)
    Console(file=stream, width=80).print(panel.render())
    assert "starting" in stream.getvalue()

"""Output of `aifx runs watch`: a panel on a terminal, lines elsewhere."""

from __future__ import annotations

import functools
import textwrap
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from aifx.commands.console.chart import line_chart
from aifx.commands.console.format import age, best, clock, count, figure, rate
from aifx.commands.console.live import LiveDisplay
from aifx.commands.console.output import Output
from aifx.commands.train.panel import loss_row, progress_bar, run_frame, speed_row

if TYPE_CHECKING:
    from aifx.verbs.runs import RunStatus, WatchedRun

CHART_HEIGHT = 8
EVERY_S = 10.0
"""Between two lines."""


def follow(out: Output, watched: WatchedRun, interval_s: float) -> None:
    """Show the run until it ends; with --json nothing is shown. The last picture of a panel stays."""
    reported_at, step = float("-inf"), -1
    is_panel = out.animated and not out.json
    with LiveDisplay(out.err, lambda: picture(out.err, watched)) if is_panel else nullcontext() as display:
        while True:
            alive = watched.look()
            now = time.monotonic()
            if display is not None:
                display.refresh()
            elif not out.json and (not alive or (watched.status.step != step and now - reported_at >= EVERY_S)):
                out.write(_line(watched.status) + "\n")
                reported_at, step = now, watched.status.step
            if not alive:
                return
            time.sleep(interval_s)


def picture(console: Console, watched: WatchedRun) -> RenderableType:
    """The run in a frame."""
    return run_frame(console, watched.status.run, functools.partial(_rows, watched))


def _line(s: RunStatus) -> str:
    parts = [f"{s.run}: {s.status}", f"step {count(s.step)}/{count(s.num_steps)}"]
    values = (("loss", figure(s.loss)), ("validation", figure(s.validation_loss)), ("", rate(s.units_per_s, s.unit)))
    parts += [f"{name} {value}".strip() for name, value in values if value is not None]
    return "  ".join([*parts, *([f"no checkpoint can be saved {s.refused}"] if s.refused else [])])


def _rows(watched: WatchedRun, width: int, ascii_only: bool) -> Iterator[Text]:
    s = watched.status
    if s.num_steps:
        to_go = "--:--" if watched.time_to_go_s is None else clock(watched.time_to_go_s)
        yield progress_bar(s.step, s.num_steps, f"ETA {to_go}" if s.alive else s.status, width, ascii_only)
    else:
        yield Text(f"step {s.step:,}   {s.status}")
    best_so_far = best(s.best_by, s.best_value, s.best_step, s.best_over)
    yield loss_row(figure(s.loss) or "-", figure(s.validation_loss), best_so_far)
    yield speed_row(rate(s.units_per_s, s.unit) or "", watched.utilization)
    for line in line_chart(watched.losses, width, CHART_HEIGHT, ascii_only=ascii_only):
        yield Text(line, style="cyan")
    saved = "no checkpoint yet" if watched.saved_step is None else f"checkpoint of step {watched.saved_step}"
    yield Text(f"{saved}, written {age(s.updated) or 'never'}", style="dim")
    if s.refused:
        for line in textwrap.wrap(f"no checkpoint can be saved {s.refused}", width):
            yield Text(line, style="yellow")

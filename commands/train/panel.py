"""Progress of a run for people: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import chop_cells
from rich.console import Console, RenderableType
from rich.panel import Panel as Frame
from rich.text import Text

from aifx.commands.console.chart import line_chart
from aifx.commands.console.format import clock
from aifx.commands.console.live import LiveDisplay
from aifx.commands.console.output import Output
from aifx.commands.console.progress import ProgressDisplay, progress_line
from aifx.core.sanitize import one_line
from aifx.verbs.training import Hook

if TYPE_CHECKING:
    from aifx.core.progress import Progress as Activity
    from aifx.verbs.training import Record, RunInfo, TrainResult

REFRESH_PER_SECOND = 2  # a frame takes a few milliseconds of the processor that trains
CURVE_POINTS = 1024
CHART_HEIGHT = 6
MAX_WIDTH = 100
SAMPLE_LINES = 2


class Lines(Hook):
    """Plain lines on stderr: the first steps, then one every ten seconds, validations, checkpoints and the end."""

    FIRST = 3
    EVERY_S = 10.0

    def __init__(self, out: Output) -> None:
        self._out = out
        self.activity = ProgressDisplay(out)
        self._last = 0.0
        self._first_step = 0
        self._num_steps = 0

    def start(self, info: RunInfo) -> None:
        self._first_step, self._num_steps = info.first_step, info.num_steps
        at = f", from step {info.first_step}" if info.first_step else ""
        self._out.log(f"run {info.run.name}: {info.num_parameters:,} parameters, {info.num_steps} steps{at}")
        self._out.log(f"{info.devices}, {info.dtype} computation")
        self._out.log(info.mfu_formula)

    def on_record(self, record: Record) -> None:
        now = time.monotonic()
        is_early = record.step - self._first_step <= self.FIRST
        is_due = now - self._last >= self.EVERY_S
        if is_early or is_due or record.validation is not None or record.step == self._num_steps:
            self._last = now
            self._out.log(record.line)

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "sample":
            self._out.log(f"sample at step {fields['step']}: {one_line(fields['prompt'] + fields['text'])}")
        elif name == "checkpoint" and time.monotonic() - self._last >= 1.0:
            self._out.log(f"checkpoint of step {fields['step']} saved")

    def abandon(self) -> None: ...


class Curve:
    """A whole run's losses in a bounded list: when it is full, neighbours are averaged."""

    def __init__(self, capacity: int = CURVE_POINTS) -> None:
        self.points: list[float] = []
        self._capacity = capacity
        self._stride = 1
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        self._pending.append(value)
        if len(self._pending) < self._stride:
            return
        self.points.append(sum(self._pending) / self._stride)
        self._pending.clear()
        if len(self.points) >= self._capacity:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=False)]
            self._stride *= 2


class Panel(Hook):
    """A panel on a terminal that a thread of rich's redraws; the training thread only leaves its latest record here."""

    def __init__(self, console: Console, before_live: Callable[[Activity | None], None] = lambda _: None) -> None:
        """`before_live` shows activities while there is no panel yet."""
        self._console = console
        self._before_live = before_live
        self._live: LiveDisplay | None = None
        self._phase = "starting"
        self._began = time.monotonic()
        self._info: RunInfo | None = None
        self._latest: Record | None = None
        self._units_per_s = 0.0
        self._curve = Curve()
        self._validation: float | None = None
        self._best: tuple[float, int] | None = None
        self._checkpoint: tuple[int, float] | None = None
        self._sample = ""
        self._activity: Activity | None = None
        self._resumed_at = 0.0

    def start(self, info: RunInfo) -> None:
        self._info = info
        self._phase = ""
        self._resumed_at = time.monotonic()
        for line in (f"{info.devices}, {info.dtype} computation, {info.num_parameters:,} parameters", info.mfu_formula):
            self._console.print(line, style="dim", soft_wrap=True)

    def on_record(self, record: Record) -> None:
        if math.isfinite(record.loss):
            self._curve.add(record.loss)
        before = self._units_per_s
        self._units_per_s = 0.9 * before + 0.1 * record.units_per_s if before else record.units_per_s
        self._latest = record

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name in ("start", "resume"):
            self._before_live(None)
            self._live = LiveDisplay(self._console, self.render, REFRESH_PER_SECOND)
            self._live.start()
        elif name == "compile":
            self._phase = "compiling"
        elif name == "validation":
            self._validation = fields["loss"]
            self._best = (fields["loss"], fields["step"]) if fields["improved"] else self._best
        elif name == "sample":
            self._sample = one_line(fields["prompt"] + fields["text"])
        elif name == "checkpoint":
            self._checkpoint = (fields["step"], time.monotonic())

    def stop(self, result: TrainResult | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def abandon(self) -> None:
        """Leave the terminal usable: the process ends where it stands."""
        if self._live is not None or self._activity is not None:
            with suppress(OSError):
                os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # the cursor; rich's own locks may be held

    def activity(self, progress: Activity | None) -> None:
        """A listener of `aifx.core.progress`."""
        self._activity = progress
        if self._live is None:
            self._before_live(progress)

    def render(self) -> RenderableType:
        """The frame as it stands."""
        if (info := self._info) is not None:
            return run_frame(self._console, info.run.name, functools.partial(self._rows, info))
        if (activity := self._activity) is not None:
            return progress_line(activity, self._console.width, is_ascii=_is_ascii(self._console))
        return Text(f"{self._phase} ... {time.monotonic() - self._began:.0f} s", style="dim")

    def _rows(self, info: RunInfo, width: int, ascii_only: bool) -> Iterator[Text]:
        latest = self._latest
        step = latest.step if latest else info.first_step
        yield progress_bar(step, info.num_steps, f"ETA {self._eta(info)}", width, ascii_only)
        if latest is None:
            yield Text("the first step is on its way", style="dim")
            return
        best = None if self._best is None else f"{self._best[0]:.4f} at step {self._best[1]}"
        yield loss_row(f"{latest.loss:.4f}", None if self._validation is None else f"{self._validation:.4f}", best)
        yield speed_row(
            f"{self._units_per_s:,.0f} {latest.unit}/s",
            f"{latest.step_time_s * 1e3:.0f} ms/step",
            latest.utilization,
            f"lr {latest.learning_rate:.2e}",
            f"grad {latest.grad_norm:.2f}",
        )
        for line in line_chart(self._curve.points, width, CHART_HEIGHT, ascii_only=ascii_only):
            yield Text(line, style="cyan")
        sample = self._sample.encode("ascii", "replace").decode() if ascii_only else self._sample
        for line in chop_cells(sample, width)[:SAMPLE_LINES]:
            yield Text(line, style="italic")
        if (activity := self._activity) is not None:
            yield progress_line(activity, width, is_ascii=ascii_only)
        else:
            yield Text(self._whereabouts(info), style="dim", overflow="ellipsis", no_wrap=True)

    def _eta(self, info: RunInfo) -> str:
        """Time to go, from the mean of this process's steps with everything between them."""
        latest = self._latest
        if latest is None or latest.step <= info.first_step:
            return "--:--"
        per_step_s = (time.monotonic() - self._resumed_at) / (latest.step - info.first_step)
        return clock(per_step_s * (info.num_steps - latest.step))

    def _whereabouts(self, info: RunInfo) -> str:
        if self._checkpoint is None:
            return "no checkpoint yet in this session; Ctrl-C saves one"
        step, at = self._checkpoint
        folder = os.path.relpath(info.run.checkpoints)
        return f"checkpoint of step {step}, {clock(time.monotonic() - at)} ago, in {folder}"


def run_frame(console: Console, name: str, rows: Callable[[int, bool], Iterable[Text]]) -> RenderableType:
    """A run in a frame; `rows` are made for a width, and of ASCII characters alone where the terminal has no others."""
    width, ascii_only = min(console.width, MAX_WIDTH), _is_ascii(console)
    body = Text("\n").join(rows(width - 4, ascii_only))
    edge = box.ASCII if ascii_only else box.ROUNDED
    return Frame(body, title=f"run {name}", title_align="left", width=width, box=edge)


def loss_row(loss: str, validation: str | None, best: str | None) -> Text:
    row = Text("loss ").append(loss, style="bold cyan")
    if validation is not None:
        row.append("   validation ").append(validation, style="bold magenta")
    return row.append(f"   best {best}" if best else "")


def speed_row(speed: str, *details: str) -> Text:
    texts = "".join(f"   {detail}" for detail in details if detail)
    return Text(speed, style="bold green").append(texts, style="not bold default")


def progress_bar(step: int, num_steps: int, label: str, width: int, ascii_only: bool) -> Text:
    """Draw the progress of a run in one line of `width` characters."""
    share = min(step / num_steps, 1.0)
    left, right = f"step {step:,} / {num_steps:,} ", f" {share:4.0%}  {label}"
    length = max(width - len(left) - len(right), 4)
    done = round(share * length)
    full, rest = ("#", ".") if ascii_only else ("━", "─")
    return Text(left) + Text(full * done, style="bold green") + Text(rest * (length - done), style="dim") + Text(right)


def _is_ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")

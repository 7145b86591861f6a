"""A run as another process sees it: what `aifx runs watch` shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aifx.checkpoint.manifest import step_directories
from aifx.commands.console.chart import line_chart
from aifx.commands.console.format import age, best, clock, count, figure, rate
from aifx.commands.console.output import Output
from aifx.commands.train.panel import progress_bar
from aifx.core.project import RunDirectory
from aifx.machine.catalogue import utilization
from aifx.runs import run_status
from aifx.runs.reading import MetricsTail
from aifx.runs.status import number

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

MAX_WIDTH = 100
CHART_HEIGHT = 8
EVERY_S = 10.0


class Watcher:
    """Looks at a run again and again."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.status = run_status(run)
        self._tail = MetricsTail(run.metrics)
        self._losses: list[float | None] = []
        self._last: dict[str, Any] = {}
        self.look()

    def look(self) -> bool:
        """See what is new. Whether the run is alive."""
        # The status first: once it says that the run has ended, its last record is there to be read.
        self.status = run_status(self.run)
        records, restart = self._tail.read()
        if restart:
            self._losses.clear()
        self._losses += [number(r.get("loss")) for r in records]
        self._last = records[-1] if records else self._last
        return self.status.alive

    def live(self, console: Console, interval_s: float) -> None:
        """A panel on a terminal until the run ends; its last picture stays."""
        from aifx.commands.console.live import LiveDisplay

        ascii_only = not console.encoding.lower().startswith("utf")
        with LiveDisplay(console, lambda: self.picture(console.width, ascii_only=ascii_only)) as display:
            while True:
                alive = self.look()
                display.refresh()
                if not alive:
                    return
                time.sleep(interval_s)

    def lines(self, out: Output, interval_s: float) -> None:
        """A line every ten seconds, and the last one when the run ends."""
        reported_at, step = float("-inf"), -1
        while True:
            alive = self.look()
            if not alive or (self.status.step != step and time.monotonic() - reported_at >= EVERY_S):
                out.write(self.line() + "\n")
                reported_at, step = time.monotonic(), self.status.step
            if not alive:
                return
            time.sleep(interval_s)

    def line(self) -> str:
        """The run in one line."""
        s = self.status
        parts = [f"{s.run}: {s.status}", f"step {count(s.step)}/{count(s.num_steps)}"]
        shown = (("loss", figure(s.loss)), ("validation", figure(s.validation_loss)), ("", rate(s.units_per_s, s.unit)))
        return "  ".join(parts + [f"{name} {value}".strip() for name, value in shown if value is not None])

    def picture(self, width: int, *, ascii_only: bool = False) -> RenderableType:
        """The run in a frame."""
        from rich import box
        from rich.panel import Panel
        from rich.text import Text

        width = min(width, MAX_WIDTH)
        body = Text("\n").join(self._rows(width - 4, ascii_only))
        frame = box.ASCII if ascii_only else box.ROUNDED
        return Panel(body, title=f"run {self.status.run}", title_align="left", width=width, box=frame)

    def _rows(self, width: int, ascii_only: bool) -> Iterator[Text]:
        from rich.text import Text

        s = self.status
        if s.num_steps:
            yield progress_bar(s.step, s.num_steps, self._time_to_go() if s.alive else s.status, width, ascii_only)
        else:
            yield Text(f"step {s.step:,}   {s.status}")
        row = Text("loss ").append(figure(s.loss) or "-", style="bold cyan")
        if s.validation_loss is not None:
            row.append("   validation ").append(figure(s.validation_loss) or "", style="bold magenta")
        record = best(s.best_by, s.best_value, s.best_step)
        yield row.append(f"   best {record}" if record else "")
        row = Text(rate(s.units_per_s, s.unit) or "", style="bold green")
        if used := utilization(number(self._last.get("mfu")), number(self._last.get("ceiling_fraction"))):
            row.append(f"   {used}", style="not bold default")
        yield row
        for line in line_chart(self._losses, width, CHART_HEIGHT, ascii_only=ascii_only):
            yield Text(line, style="cyan")
        steps = step_directories(self.run.checkpoints)
        saved = f"checkpoint of step {max(steps)}" if steps else "no checkpoint yet"
        yield Text(f"{saved}, written {age(s.updated) or 'never'}", style="dim")

    def _time_to_go(self) -> str:
        s, step_s = self.status, number(self._last.get("step_time_s"))
        return f"ETA {clock(step_s * (s.num_steps - s.step))}" if step_s and s.num_steps else "ETA --:--"

"""A display on a terminal that is redrawn in place, also after Ctrl-C was echoed or the terminal was resized.

The only code that depends on private parts of rich, as they are in rich 15 (test_typer_internals.py).
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.live_render import LiveRender, VerticalOverflowMethod
from rich.text import Text


class LiveDisplay(Live):
    """Draws what `render` returns; its last picture stays.

    While it runs, the cursor waits on an empty line below. Behind a line that is as wide as the terminal, the ^C that
    a terminal echoes would begin another line, and the next picture would start one line too low.

    Args:
        refresh_per_second: how often a thread redraws; None redraws on `refresh` alone.
    """

    def __init__(self, console: Console, render: Callable[[], RenderableType], refresh_per_second: float | None = None):
        self._render = render
        super().__init__(
            console=console,
            get_renderable=self._picture,
            auto_refresh=refresh_per_second is not None,
            refresh_per_second=refresh_per_second or 1,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live_render = _ReflowingRender(console, Text(""), vertical_overflow=self.vertical_overflow)

    def _picture(self) -> RenderableType:
        return Group(self._render(), Text("")) if self.is_started else self._render()


class _ReflowingRender(LiveRender):
    """Knows that lines wider than a terminal that was made narrower take several of its rows."""

    def __init__(self, console: Console, renderable: RenderableType, *, vertical_overflow: VerticalOverflowMethod):
        super().__init__(renderable, vertical_overflow=vertical_overflow)
        self._console = console

    def position_cursor(self) -> Control:
        if self._shape is not None:
            width, height = self._shape
            if (now := self._console.width) < width:
                # The last line is the empty one. The others are as wide as the frame.
                self._shape = (now, (height - 1) * -(-width // now) + 1)
        return super().position_cursor()

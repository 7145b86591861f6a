"""Progress of an activity on stderr: a line that moves on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from aifx.commands.console.live import LiveDisplay
    from aifx.commands.console.output import Output
    from aifx.core.progress import Progress

REFRESH_PER_SECOND = 4
SHOWN_AFTER_S = 1.0
EVERY_S = 10.0
BAR_WIDTH = 24


class ProgressDisplay:
    """Shows progress on stderr; a listener of `aifx.core.progress`."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live: LiveDisplay | None = None
        self._latest: Progress | None = None
        self._written_s = 0.0  # of the activity

    def __call__(self, progress: Progress | None) -> None:
        if progress is None:
            self._written_s = 0.0
            if self._live is not None:
                self._live.stop()
                self._live = None
            return
        self._latest = progress
        if progress.elapsed_s < SHOWN_AFTER_S:
            return
        if not self._out.animated:
            if progress.elapsed_s - self._written_s >= EVERY_S:
                self._written_s = progress.elapsed_s
                self._out.log(str(progress))
        elif self._live is None:
            from aifx.commands.console.live import LiveDisplay

            self._live = LiveDisplay(self._out.err, self._picture, REFRESH_PER_SECOND)
            self._live.start()

    def _picture(self) -> Text:
        assert self._latest is not None
        err = self._out.err
        return progress_line(self._latest, err.width, is_ascii=not err.encoding.lower().startswith("utf"))


def progress_line(progress: Progress, width: int, *, is_ascii: bool) -> Text:
    """The activity in one line, with a bar if its total is known.

    Args:
        width: of the line, in characters. The bar, then the activity's name are shortened to it.
    """
    from rich.text import Text

    from aifx.core.sanitize import one_line

    line = Text(overflow="ellipsis", no_wrap=True)
    if progress.share is not None:
        full, rest = ("#", ".") if is_ascii else ("━", "─")
        bar_width = min(BAR_WIDTH, width // 8)
        done = round(progress.share * bar_width)
        line.append(full * done, style="green").append(rest * (bar_width - done) + " ", style="dim")
    amount = f": {progress.amount}"
    activity = _shortened(one_line(progress.activity), width - len(line) - len(amount), "..." if is_ascii else "…")
    return line.append(activity + amount, style="dim")


def _shortened(activity: str, room: int, mark: str) -> str:
    """An activity of at most `room` characters: what is done, and the end of the name to which it is done."""
    verb, _, name = activity.partition(" ")
    kept = room - len(verb) - len(mark) - 1
    return activity if len(activity) <= room or kept <= 0 else f"{verb} {mark}{name[-kept:]}"

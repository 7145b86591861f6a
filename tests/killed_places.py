"""Acts that are killed at places which they pass: before and after calls of functions, or before changes of files."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from faulty_files import forked


class Places:
    """Places before and after calls.

    Attributes:
        made: how many were passed.
    """

    def __init__(self, at: int | None) -> None:
        self.at, self.made = at, 0

    def pass_by(self) -> None:
        if self.made == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.made += 1

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.pass_by()
            result = real(*args, **kwargs)
            self.pass_by()
            return result

        return call


@contextmanager
def killed_at_calls(functions: Sequence[tuple[Any, str]], at: int | None) -> Iterator[Places]:
    """Count the places before and after calls of functions, and kill this process at one of them.

    Args:
        functions: each as its owner and its name.
    """
    places = Places(at)
    with ExitStack() as patches:
        for owner, name in functions:
            patches.enter_context(mock.patch.object(owner, name, places.around(getattr(owner, name))))
        yield places


def kill_at_places(
    clear: Callable[[], None], act: Callable[[int | None], int], check: Callable[[], None], last: str
) -> int:
    """Kill an act at each place, one after the other. Returns the number of kills.

    Each of the functions runs in a process of its own. This process must not have a thread.

    Args:
        clear: makes the state before the act.
        act: is killed at the place of this number, and returns how many places it passed.
        check: raises if a kill did harm.
        last: the number of last places, or "all".
    """
    count = mmap.mmap(-1, 8)  # shared with the processes

    def undisturbed() -> None:
        count[:] = act(None).to_bytes(8)

    assert forked(clear) == 0
    assert forked(undisturbed) == 0
    places = int.from_bytes(count[:])
    kills = range(0 if last == "all" else places - int(last), places)
    for at in kills:
        assert forked(clear) == 0
        assert forked(lambda at=at: act(at)) == -signal.SIGKILL, at
        assert forked(check) == 0, f"killed at place {at} of {places}"
    return len(kills)

"""A factory whose line, stations, or both with its server are killed, and run again until each of its ticks has ended.

    python killed_factory.py line|effects|random FOLDER SEED EVERY

It ends as an undisturbed one: no attempt, version, run, entry, event or row is more or less. The program prints the
number of kills.

line: before and after each change that the line makes, and after each start of a process, one after the other.
effects: each command before one of its changes, the next one EVERY changes later.
random: the line alone or with its stations at random moments, and the server.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import warm_aifx
from factory import BATCHES, Factory
from faulty_files import forked, killed
from held_port import held_port
from postgresql_server import PASSWORD, postgresql_server
from randomly_killed_line import killed_after

from aifx.lines import running

HERE = Path(__file__).parent
Disturb = Callable[[Factory, Callable[[], bool]], int]
"""Runs a tick until it has ended, and returns the number of kills."""


def tick(factory: Factory) -> None:
    """A tick, or the rest of one. The start of a process is followed by a change: so there is a kill between."""

    def start(*args: Any, **kwargs: Any) -> running.Apart:
        child = real(*args, **kwargs)
        os.close(os.open(factory.root / "line" / "begun", os.O_CREAT | os.O_WRONLY))
        return child

    real = running.start_apart
    with mock.patch.object(running, "start_apart", start):
        factory.tick()


def undisturbed(factory: Factory, has_ended: Callable[[], bool]) -> int:
    assert forked(lambda: tick(factory)) == 0
    assert has_ended()
    return 0


def killed_at_each_change(factory: Factory, has_ended: Callable[[], bool]) -> int:
    """Kill the line before its first change, its second one and so on, from each record of the journal on."""

    def disturbed(at: int) -> None:
        with killed(factory.root / "line", at):
            tick(factory)

    path, kills, at, size = factory.root / "line" / "journal.jsonl", 0, 0, 0
    while not has_ended():
        code = forked(lambda at=at: disturbed(at))
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        now = path.stat().st_size if path.exists() else 0
        at, size = (0 if now > size else at + 1), now
    return kills


@dataclass
class AtRandom:
    """Kills the line alone or with its stations, and at the end of a tick the server, which may adopt a version."""

    dice: random.Random
    duration_s: float
    port: int

    def __call__(self, factory: Factory, has_ended: Callable[[], bool]) -> int:
        with factory.served(self.port) if factory.ticks() else nullcontext():
            kills = self._kill_line(factory, has_ended)
            time.sleep(self.dice.uniform(0, 2))
        return kills + 1

    def _kill_line(self, factory: Factory, has_ended: Callable[[], bool]) -> int:
        kills = 0
        for number in range(8):  # with its stations four times, since a sixth failure of one would be the last
            if has_ended():
                break
            pause_s, with_stations = self.dice.uniform(0, self.duration_s / 4), number % 2 == 1
            kills += killed_after(factory.root, pause_s, with_stations, lambda: tick(factory))
        while not has_ended():
            assert forked(lambda: tick(factory)) == 0
        return kills

    def check_server(self, factory: Factory) -> None:
        with factory.served(self.port) as served:
            served.wait_for(factory.promoted())


def run(factory: Factory, words: Sequence[str], disturb: Disturb) -> int:
    """All ticks, for the rows of each batch."""
    kills = 0
    with mock.patch("aifx.lines.runner.AIFX", tuple(words)):
        for number, (ids, shuffled) in enumerate(BATCHES, 1):
            factory.arrive(ids, shuffled=shuffled)
            kills += disturb(factory, lambda number=number: factory.ticks() == number)
    return kills


def main() -> None:
    kind, folder, seed, every = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    os.environ["PGPASSWORD"] = PASSWORD
    root, kills = folder / "root", 0
    with postgresql_server() as server, warm_aifx.serving(folder) as words:
        factory = Factory(root, server)
        factory.make_policy()
        began = time.monotonic()
        run(factory, words, undisturbed)
        duration_s = (time.monotonic() - began) / len(BATCHES)
        expected = factory.said()
        root.rename(folder / "calm")
        factory = Factory(root, server)
        factory.make_policy()
        if kind == "line":
            kills = run(factory, words, killed_at_each_change)
        elif kind == "effects":
            plan = folder / "plan"
            plan.mkdir()
            (plan / "first").write_text(f"{seed % every} {every}")
            (plan / "kills").write_text("")
            client = [sys.executable, "-I", "-S", str(HERE / "killed_command.py"), str(plan), words[-1]]
            run(factory, client, undisturbed)
            kills = len((plan / "kills").read_text().splitlines())
        else:
            with held_port() as port:
                disturb = AtRandom(random.Random(seed), duration_s, port)
                kills = run(factory, words, disturb)
                disturb.check_server(factory)
        found = factory.said()
        differing = {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}
        assert not differing, differing
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main()

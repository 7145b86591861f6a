"""The project's step as `aifx train` would run it, part by part; docs/bench-train.md says how each is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from aifx.bench.results import Measured
from aifx.bench.suites import Bench
from aifx.bench.train.growth import grow
from aifx.bench.train.rounds import Rounds
from aifx.bench.train.subject import Subject, uncached


def measure(bench: Bench) -> Iterator[Measured]:
    """What is done once, then the step, its parts and its loop, then how the step grows."""
    with tempfile.TemporaryDirectory(prefix="aifx-bench-") as name, uncached():
        bench.say("compiling the step")
        subject = Subject(bench, bench.config, Path(name) / "own")
        for thing, seconds in (("trace", subject.trace_s), ("compile", subject.compile_s)):
            yield Measured(name=bench.name(thing), samples_s=[seconds])
        subject.begin()
        rounds = Rounds(bench, subject)
        try:
            rounds.run()
        except Exception:  # a device that is lost: what was seen until then is told
            yield from rounds.results()
            raise
        yield from rounds.results()
        yield rounds.overhead()
        step = rounds.step()
        del rounds
        subject.end()
        yield from grow(bench, step, Path(name))

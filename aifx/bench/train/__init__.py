"""The project's step as `aifx train` would run it, part by part; docs/bench-train.md says how each is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from aifx.bench.results import Measured
from aifx.bench.suites import Bench
from aifx.bench.timing import Effort, sample
from aifx.bench.train.growth import grow
from aifx.bench.train.rounds import Rounds
from aifx.bench.train.subject import Subject, uncached
from aifx.parallel import place_batch

TRANSFER_SHARE = 0.1
"""Of the time for a result."""


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
        yield _transfer(bench, subject)
        step = rounds.step()
        del rounds
        subject.end()
        yield from grow(bench, step, Path(name))


def _transfer(bench: Bench, subject: Subject) -> Measured:
    """A batch from the host to where the step reads it."""
    mesh = subject.recipe.mesh
    effort = Effort(TRANSFER_SHARE * bench.effort.slice_s)
    samples = sample(lambda batch: place_batch(batch, mesh), effort, inputs=[(batch,) for batch in subject.batches])
    num_bytes = sum(array.nbytes for array in subject.batches[0].values())
    return bench.measured("transfer", samples, num_bytes=num_bytes)

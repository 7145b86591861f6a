"""The project's step as `aifx train` would run it, part by part; docs/bench-train.md says how each is measured."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.train.growth import grow
from aifx.benchmarking.train.rounds import Rounds
from aifx.benchmarking.train.subject import Subject, uncached
from aifx.core.errors import EnvironmentFault
from aifx.machine.device_memory import is_out_of_memory

logger = logging.getLogger(__name__)


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure tracing and compilation, then the step, its parts and its loop, then its growth."""
    with tempfile.TemporaryDirectory(prefix="aifx-bench-") as name, uncached():
        logger.info("compiling the step")
        with _told_of_memory():
            subject = Subject(bench, bench.config, Path(name) / "own")
        yield Measured(name=bench.name("trace"), samples_s=[subject.trace_s])
        yield Measured(name=bench.name("compile"), samples_s=[subject.compile_s])
        with _told_of_memory():
            subject.begin()
        rounds = Rounds(bench, subject)
        try:
            with _told_of_memory():
                rounds.run()
        except Exception:  # a lost device: the results until then are kept
            yield from rounds.results()
            raise
        yield from rounds.results()
        yield rounds.overhead()
        step = rounds.step()
        del rounds
        subject.end()
        yield from grow(bench, step, Path(name))


@contextmanager
def _told_of_memory() -> Iterator[None]:
    """Report a lack of memory in the block, of the device or the host, as EnvironmentFault."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = (str(error).splitlines() or ["the host's memory is full"])[0]
        hint = "aifx bench train --set train.gradient_accumulation=2    (or a smaller train.global_batch_size)"
        raise EnvironmentFault("the project's step does not fit into memory", why, hint) from error

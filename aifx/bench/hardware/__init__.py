"""What this machine's silicon reaches."""

from __future__ import annotations

from collections.abc import Iterator

from aifx.bench.hardware import dispatch
from aifx.bench.results import Measured
from aifx.bench.suites import Bench


def measure(bench: Bench) -> Iterator[Measured]:
    yield from dispatch.measure(bench)

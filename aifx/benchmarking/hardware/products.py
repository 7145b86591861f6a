"""Matrix products by dtype and size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from statistics import median
from typing import Any

from aifx.benchmarking.hardware.faults import WrongResult
from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Samples, sample_in_turn
from aifx.machine.catalogue import peak_of
from aifx.machine.microbenchmarks import EIGEN, USUAL_PRODUCT, Product, dtypes_of, name_of

logger = logging.getLogger(__name__)

CPU_SIZES = (512, 1024, 2048)
SIZES = (2048, 4096, 8192, 16384)
"""Rows. On the largest accelerators products rise up to there (stas00/ml-engineering, maximum achievable matmul)."""

CHAINED_ROWS = 8192 * 4
"""Of all products of a call on an accelerator: smaller ones are more of them, so that calls cost nothing."""

BY_EIGEN = ("float32", "float16")
"""Types whose products YNNPACK does no better."""

FASTER = 1.05


def measure(bench: Bench, device: Any) -> Iterator[Measured]:
    for dtype in dtypes_of(device):
        for size in _sizes(bench, device):
            logger.info(f"products of {size} rows, {dtype}")
            chain = 1 if device.platform == "cpu" else max(CHAINED_ROWS // size, 1)
            try:
                yield _measured(bench, device, dtype, size, chain)
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                words = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
                logger.warning(f"left out: products of {size} rows in {dtype}: {words}")


def _sizes(bench: Bench, device: Any) -> tuple[int, ...]:
    usual = USUAL_PRODUCT["cpu" if device.platform == "cpu" else "accelerator"]
    return (usual[0],) if bench.quick else CPU_SIZES if device.platform == "cpu" else SIZES


def _measured(bench: Bench, device: Any, dtype: str, size: int, chain: int) -> Measured:
    """By the library that XLA takes, on a CPU in turn with its other one: the faster is what the silicon reaches."""
    libraries = {"default": Product(device, dtype, size, chain)}
    if device.platform == "cpu" and dtype in BY_EIGEN:
        libraries["Eigen"] = Product(device, dtype, size, chain, EIGEN)
    timed = sample_in_turn(libraries, bench.effort)
    flops = libraries["default"].flops
    best = min(timed, key=lambda library: median(timed[library].seconds))
    if not libraries[best].is_right():
        raise WrongResult(name_of(device), f"products in {dtype}")
    figures: dict[str, float | None] = {}
    if len(libraries) > 1:
        figures = {f"{name.lower()}_flops_per_s": flops / median(one.seconds) for name, one in timed.items()}
        _note(bench, dtype, size, timed)
    # No vendor prints a CPU's peak: its products are their own ceiling.
    peak = None if device.platform == "cpu" else peak_of(device.device_kind, device.platform, 1, dtype)
    bound_s = flops / peak.flops if peak else None
    params = {"dtype": dtype, "size": size}
    return bench.measured("matmul", timed[best], params=params, flops=flops, bound_s=bound_s, figures=figures)


def _note(bench: Bench, dtype: str, size: int, timed: dict[str, Samples]) -> None:
    gain = median(timed["default"].seconds) / median(timed["Eigen"].seconds)
    if gain > FASTER:
        (option,) = EIGEN
        logger.warning(
            f"{dtype} products of {size} rows are more than {FASTER - 1:.0%} faster by Eigen than by what XLA takes "
            f"by itself (XLA_FLAGS=--{option}= takes Eigen, for products of all types)"
        )

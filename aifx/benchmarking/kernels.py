"""Each implementation of each op of jax_kernels, and its peers: forward and backward, as training runs them.

The implementations and peers of a case are timed in turn. Their operands are taken from as many sets as the caches
cannot hold: an implementation that finds in them what a training step would have to fetch is flattered.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aifx.benchmarking.kernel_peers import BOUNDS, PEERS, has_tokamax
from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Effort, sample_in_turn
from aifx.core.errors import UsageError, did_you_mean
from aifx.machine.catalogue import find_accelerator, peak_of
from aifx.machine.device_memory import cache_bytes, extra_bytes, program_bytes, room
from aifx.machine.measured_peaks import find_ceilings, measured_peak
from jax_kernels.implementations import Config, Device, current_device
from jax_kernels.op import Op, Work
from jax_kernels.ops import OPS, Case, benchmark_cases, dtypes

logger = logging.getLogger(__name__)

Refused = dict[str, dict[str, None]]
"""The ops that an implementation does not support, by the implementation and its reason."""

MOST_SETS = 8
LEAST_SAMPLES = 3
"""The largest cases take seconds a call."""


def measure(bench: Bench) -> Iterator[Measured]:
    device = current_device()
    cases = list(_chosen(bench, device))
    refused: Refused = {}
    if not has_tokamax():
        logger.warning("tokamax is not installed: the kernels are compared with jax.nn alone")
    for op, case in cases:
        dtype = _dtype(bench, op, device)
        logger.info(f"{op.name}, {case.name}, {dtype}")
        yield from _measure(bench, op, case, dtype, device, refused)
    for why, names in refused.items():
        logger.warning(f"left out: {why} ({', '.join(names)})")


def _chosen(bench: Bench, device: Device) -> Iterator[tuple[Op, Case]]:
    """The ops and cases that were asked for; in a quick bench the smallest of each op. Raises UsageError."""
    asked = set(bench.options.get("cases") or ())
    for name in bench.options.get("ops") or ():
        if name not in OPS:
            raise UsageError(f"no op {name!r}", did_you_mean(name, OPS), f"aifx bench kernels --op {next(iter(OPS))}")
    ops = [OPS[name] for name in bench.options.get("ops") or OPS]
    every = {op.name: benchmark_cases(op, device.platform) for op in ops}
    known = {case.name for cases in every.values() for case in cases}
    if unknown := sorted(asked - known):
        raise UsageError(f"no case {unknown[0]!r}", did_you_mean(unknown[0], known), "aifx bench kernels --op OP")
    for op in ops:
        cases = [case for case in every[op.name] if not asked or case.name in asked]
        if bench.quick and not asked:
            cases = sorted(cases, key=lambda case: _size(bench, op, case, device))[:1]
        for case in cases:
            yield op, case


def _size(bench: Bench, op: Op, case: Case, device: Device) -> tuple[int, int]:
    work = op.work(case.call(_dtype(bench, op, device)))
    return work.flops, work.num_bytes


def _dtype(bench: Bench, op: Op, device: Device) -> str:
    """Choose the type to measure an op in. Raises UsageError for a requested type without kernels."""
    asked: str | None = bench.options.get("dtype")
    known = dtypes(op)
    if asked and asked not in known:
        if len(bench.options.get("ops") or ()) == 1:
            raise UsageError(f"{op.name} in {asked}", f"it takes {', '.join(known)}", f"--dtype {known[0]}")
        logger.warning(f"{op.name} takes no {asked}: measured in {known[0]}")
    usual = "float32" if device.platform == "cpu" else "bfloat16"
    return next((dtype for dtype in (asked, usual) if dtype in known), known[0])


def _measure(bench: Bench, op: Op, case: Case, dtype: str, device: Device, refused: Refused) -> Iterator[Measured]:
    call = case.call(dtype)
    programs, arguments = _compile(op, case, call, device, refused)
    if not programs:
        return
    sets = _sets(arguments, device)
    taken = sample_in_turn(programs, Effort(bench.effort.slice_s, least=LEAST_SAMPLES), inputs=sets)
    work, elementwise = op.work(call), {}
    if not work.flops and "reference" in programs:  # no products: what XLA counts in the reference
        elementwise = {"elementwise_flops": (programs["reference"].cost_analysis() or {}).get("flops")}
    for implementation, samples in taken.items():
        yield bench.measured(
            op.name,
            samples,
            params={"case": case.name, "implementation": implementation, "dtype": dtype},
            flops=work.flops or None,
            num_bytes=work.num_bytes,
            bound_s=least_seconds(work, dtype, device),
            figures={"peak_memory_bytes": program_bytes(programs[implementation]), **elementwise},
        )


def least_seconds(work: Work, dtype: str, device: Device) -> float | None:
    """The larger of the work's operations over the peak and its bytes over the memory's bandwidth: the catalogue's, for
    a device that it lacks what `aifx bench hardware` measured here. None where neither is known."""
    accelerator = find_accelerator(device.kind)
    peak = None if accelerator else measured_peak(device.kind, device.platform, 1, dtype)
    peak = peak or peak_of(device.kind, device.platform, 1, dtype)
    bounds = [work.flops / peak.flops] if peak and work.flops else []
    if accelerator:
        bounds.append(work.num_bytes / (accelerator.memory_gb_s * 1e9 / accelerator.devices_per_chip))
    elif rate := find_ceilings(device.kind, device.platform).rate("memory"):
        bounds.append(work.num_bytes / rate)
    return max(bounds, default=None)


def _compile(op: Op, case: Case, call: Any, device: Device, refused: Refused) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The programs by implementation, peer and bound, and their operands. What cannot run is noted with its reason."""
    bounds = BOUNDS.get(op.name, {})
    programs: dict[str, Any] = {}
    arguments: tuple[Any, ...] = ()
    for name, contender in (dict(op.implementations) | PEERS[op.name](call) | bounds).items():
        run: Any = contender
        config: Config = ()
        if implementation := op.implementations.get(name):
            if refusal := implementation.unsupported_reason(call, device):
                refused.setdefault(f"{name}: {refusal}", {})[op.name] = None
                continue
            run, config = implementation.run, implementation.configs(call, device)[0]
        program, make = op.workload(call, run, config)
        program = bounds[name](call) if name in bounds else program
        arguments = arguments or make()
        try:
            compiled = jax.jit(program).lower(*arguments).compile()
        except Exception as error:  # the compilers' own types
            logger.warning(f"{op.name}, {name}, {case.name}: {str(error).strip().splitlines()[0][:160]}")
            continue
        free, needed = room(jax.local_devices()[:1]), extra_bytes(compiled)
        if free is not None and needed is not None and needed > free:
            why = f"it needs {needed:,} bytes beside its operands, and {free:,} are free"
            logger.warning(f"left out: {op.name}, {name}, {case.name}: {why}")
            continue
        programs[name] = compiled
    return programs, arguments


def _sets(arguments: tuple[Any, ...], device: Device) -> list[tuple[Any, ...]]:
    """The operands in as many copies as do not fit into the caches together."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments))
    count = min(MOST_SETS, 1 + 2 * cache_bytes(device.platform) // max(size, 1))
    copies = [jax.tree.map(partial(jnp.array, copy=True), arguments) for _ in range(count - 1)]
    return [arguments, *copies]

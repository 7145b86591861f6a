"""Each implementation of each op of jax_kernels, and its peers: forward and backward, as training runs them.

The implementations and peers of a case are timed in turn. Their operands are taken from as many sets as the caches
cannot hold: an implementation that finds in them what a training step would have to fetch is flattered.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Effort, sample_in_turn
from aifx.core.errors import UsageError, did_you_mean
from aifx.machine.catalogue import find_accelerator, peak_of
from aifx.machine.device_memory import cache_bytes, extra_bytes, program_bytes, room
from aifx.machine.measured_peaks import find_ceilings, measured_peak
from jax_kernels._ops.decode_attention import gather_pages
from jax_kernels.implementations import Config, Device, current_device
from jax_kernels.op import Op, Work
from jax_kernels.ops import OPS, Case, benchmark_cases, dtypes


def has_tokamax() -> bool:
    return importlib.util.find_spec("tokamax") is not None


def attention_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's and tokamax's attention, where they can say the same."""

    def peer(attention: Any, **options: Any) -> Callable[..., Any]:
        def run(call: Any, config: Any, q: Any, k: Any, v: Any, offset: Any, ids: Any) -> Any:
            mask = None if ids is None else (ids[:, None, :, None] == ids[:, None, None, :])
            return attention(q, k, v, mask=mask, scale=call.scale, is_causal=call.causal, **options), None

        return run

    if call.logit_softcap is not None or call.q_offset != 0:
        return {}
    window = None if call.window is None else (call.window - 1, 0 if call.causal else call.kv_len)
    peers = {"jax.nn": peer(jax.nn.dot_product_attention, local_window_size=window)}
    if has_tokamax() and call.window is None:
        peers["tokamax"] = peer(importlib.import_module("tokamax").dot_product_attention)
    return peers


def decode_attention_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's attention over rows that are put together first, where it can say the same."""

    def jax_nn(call: Any, config: Any, q: Any, k_pages: Any, v_pages: Any, page_table: Any, lengths: Any) -> Any:
        k, v = gather_pages(k_pages, page_table), gather_pages(v_pages, page_table)
        out = jax.nn.dot_product_attention(q[:, None], k, v, scale=call.scale, key_value_seq_lengths=lengths)
        return out[:, 0], None

    return {"jax.nn": jax_nn} if call.logit_softcap is None and call.window is None else {}


def norm_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """RMS norm as one writes it with jax.nn, which has none, and tokamax's."""

    def added(x: Any, residual: Any) -> tuple[Any, Any]:
        return (x, None) if residual is None else (x + residual, x + residual)

    def jax_nn(call: Any, config: Any, x: Any, scale: Any, bias: Any, residual: Any) -> Any:
        kept, total = added(x, residual)
        out = jax.nn.standardize(kept.astype("float32"), epsilon=call.epsilon) * scale
        return (out if bias is None else out + bias).astype(x.dtype), total

    def tokamax_norm(call: Any, config: Any, x: Any, scale: Any, bias: Any, residual: Any) -> Any:
        tokamax: Any = importlib.import_module("tokamax")
        kept, total = added(x, residual)
        out = tokamax.layer_norm(kept, scale, bias, epsilon=call.epsilon, subtract_mean=call.kind == "layer_norm")
        return out, total

    peers = {"jax.nn": jax_nn} if call.kind == "layer_norm" else {}
    return peers | {"tokamax": tokamax_norm} if has_tokamax() else peers


def quantized_matmul_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's, which takes scales along k alone: those of the weight are repeated for each column."""

    def jax_nn(call: Any, config: Any, x: Any, weight: Any, x_scale: Any, weight_scale: Any) -> Any:
        columns = weight_scale.repeat(call.n // call.column_blocks, axis=1).T
        batch = (y[None] for y in (x, weight.T, x_scale, columns))
        scaled_matmul: Any = jax.nn.scaled_matmul
        return scaled_matmul(*batch, preferred_element_type=jax.numpy.dtype(call.out_dtype))[0]

    return {"jax.nn": jax_nn}


def three_products(call: Any) -> Callable[..., Any]:
    """The products that a loss and its gradients need: the logits, the gradients of x and of the weight.

    The vocabulary is rounded up to a multiple of 128, since rows of an odd length are multiplied slowly.
    """

    def program(primals: tuple[Any, Any], constants: Any, cotangents: Any) -> tuple[Any, Any]:
        x, weight = primals
        weight = jnp.pad(weight, ((0, 0), (0, -call.vocab % 128)))
        logits = x @ weight
        return logits @ weight.T, x.T @ logits

    return program


BOUNDS: dict[str, dict[str, Callable[[Any], Callable[..., Any]]]] = {
    "linear_cross_entropy": {"products": three_products}
}
"""Programs by op and name that take the arguments of the op's workload and do the part of it that nothing can avoid."""

PEERS: dict[str, Callable[[Any], dict[str, Callable[..., Any]]]] = {
    "attention": attention_peers,
    "decode_attention": decode_attention_peers,
    "linear_cross_entropy": lambda call: {},
    "rms_norm": norm_peers,
    "layer_norm": norm_peers,
    "quantized_matmul": quantized_matmul_peers,
    "swiglu": lambda call: {"jax.nn": lambda call, config, x, gate, up: jax.nn.silu(x @ gate) * (x @ up)},
    "rotary": lambda call: {},
}


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

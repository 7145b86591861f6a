"""The forms of each op against one another, jax.nn and tokamax: forward and backward, as training runs them.

    python benchmarks/kernels.py [--op attention] [--case NAME] [--dtype bfloat16] [--rounds 9]

Timings alternate between the forms, so that a machine that drifts tells on all. The table gives medians, the rate of
the products and of the least traffic that the call can do with, the temporary memory, the ratio of XLA's time to each,
and the share of the roofline. A form that refuses a case is listed with its reason, a peer that is missing is named.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from aifx.hardware import find_accelerator, peak_of
from jax_kernels.decode_attention import gather_pages
from jax_kernels.forms import current_device
from jax_kernels.op import Op
from jax_kernels.ops import OPS, benchmark_cases, dtypes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=OPS, action="append", help="all of them when not given")
    parser.add_argument("--case", action="append", help="by name; all of this platform when not given")
    parser.add_argument("--dtype", help="bfloat16 on accelerators, float32 on a CPU when not given")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device = current_device()
    for name in arguments.op or OPS:
        asked = arguments.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
        dtype = asked if asked in dtypes(OPS[name]) else dtypes(OPS[name])[0]
        peak = peak_of(device.kind, device.platform, 1, dtype)
        formula = peak.formula if peak else "not known"
        sys.stdout.write(f"\n{device.kind}, jax {jax.__version__}, {dtype}; peak: {formula}\n")
        for case in benchmark_cases(OPS[name], device.platform):
            if not arguments.case or case.name in arguments.case:
                measure(OPS[name], case.name, case.call(dtype), arguments.rounds, peak.flops if peak else None)


def measure(op: Op, name: str, call: Any, rounds: int, peak_flops: float | None) -> None:
    sys.stdout.write(f"\n{op.name}: {name} ({call})\n")
    device, programs, arguments = current_device(), {}, None
    contenders = {form: (f.run, f) for form, f in op.forms.items()} | {
        peer: (run, None) for peer, run in PEERS[op.name](call).items()
    }
    for contender, (run, form) in contenders.items():
        if form is not None and (refusal := form.refuses(call, device)):
            sys.stdout.write(f"  {contender:18} refuses: {refusal}\n")
            continue
        for config in form.configs(call, device)[:1] if form is not None else ((),):
            program, make = op.workload(call, run, config)
            arguments = make() if arguments is None else arguments
            try:
                compiled = jax.jit(program).lower(*arguments).compile()
                jax.block_until_ready(compiled(*arguments))
            except Exception as error:  # the compilers' own types
                sys.stdout.write(f"  {contender:18} fails: {str(error).splitlines()[0][:100]}\n")
                continue
            programs[contender] = compiled
    seconds: dict[str, list[float]] = {contender: [] for contender in programs}
    for _ in range(rounds):
        for contender, compiled in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds[contender].append(time.perf_counter() - started)
    print_rows(op, call, programs, {c: statistics.median(s) for c, s in seconds.items()}, peak_flops)


def print_rows(op: Op, call: Any, programs: Any, medians: dict[str, float], peak_flops: float | None) -> None:
    work = op.work(call)
    accelerator = find_accelerator(current_device().kind)
    least = work.flops / peak_flops if peak_flops else 0.0
    if accelerator:
        least = max(least, work.num_bytes / (accelerator.memory_gb_s * 1e9))
    for contender, median in medians.items():
        columns = (
            f"{contender:18} {median * 1e3:9.3f} ms",
            f"{work.flops / median / 1e12:7.3f} TFLOP/s",
            f"{work.num_bytes / median / 1e9:7.1f} GB/s",
            f"{programs[contender].memory_analysis().temp_size_in_bytes / 1e6:8.1f} MB",
            f"{medians['xla'] / median:5.2f} x xla",
            f"{least / median:6.1%} of the roofline" if least else "",
        )
        sys.stdout.write("  " + "  ".join(columns).rstrip() + "\n")


def attention_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's and tokamax's attention, where they can say the same."""

    def jax_nn(call: Any, config: Any, q: Any, k: Any, v: Any, offset: Any, ids: Any) -> Any:
        mask = None if ids is None else (ids[:, None, :, None] == ids[:, None, None, :])
        window = None if call.window is None else (call.window - 1, 0 if call.causal else call.kv_len)
        out = jax.nn.dot_product_attention(
            q, k, v, mask=mask, scale=call.scale, is_causal=call.causal, local_window_size=window
        )
        return out, None

    def tokamax_attention(call: Any, config: Any, q: Any, k: Any, v: Any, offset: Any, ids: Any) -> Any:
        tokamax: Any = importlib.import_module("tokamax")
        mask = None if ids is None else (ids[:, None, :, None] == ids[:, None, None, :])
        return tokamax.dot_product_attention(q, k, v, mask=mask, scale=call.scale, is_causal=call.causal), None

    peers: dict[str, Callable[..., Any]] = {}
    if call.logit_softcap is None and call.q_offset == 0:
        peers["jax.nn"] = jax_nn
        if importlib.util.find_spec("tokamax") is None:
            sys.stdout.write("  tokamax            is not installed\n")
        elif call.window is None:
            peers["tokamax"] = tokamax_attention
    return peers


def decode_attention_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's attention over rows that are put together first, where it can say the same."""

    def jax_nn(call: Any, config: Any, q: Any, k_pages: Any, v_pages: Any, page_table: Any, lengths: Any) -> Any:
        k, v = gather_pages(k_pages, page_table), gather_pages(v_pages, page_table)
        out = jax.nn.dot_product_attention(q[:, None], k, v, scale=call.scale, key_value_seq_lengths=lengths)
        return out[:, 0], None

    return {"jax.nn": jax_nn} if call.logit_softcap is None and call.window is None else {}


def norm_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """What one writes with jax.nn (which has no RMS norm), and tokamax's."""

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
    if importlib.util.find_spec("tokamax") is None:
        sys.stdout.write("  tokamax            is not installed\n")
        return peers
    return peers | {"tokamax": tokamax_norm}


PEERS: dict[str, Callable[[Any], dict[str, Callable[..., Any]]]] = {
    "attention": attention_peers,
    "decode_attention": decode_attention_peers,
    "linear_cross_entropy": lambda call: {},
    "rms_norm": norm_peers,
    "layer_norm": norm_peers,
    "quantized_matmul": lambda call: {},
    "swiglu": lambda call: {"jax.nn": lambda call, config, x, gate, up: jax.nn.silu(x @ gate) * (x @ up)},
    "rotary": lambda call: {},
}

if __name__ == "__main__":
    main()

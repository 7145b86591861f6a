"""Forward products of a layer of SmolLM2-135M over its int8 matrices: `finetune.base_quantize = "int8"` on a CPU.

    python benchmarks/int8_base.py

2,048 tokens in float32. In turn: the products that aifx makes, which keep 15 bits of the activations as two int8 terms;
the same with each matrix converted to float32; and float32 matrices. Prints the median times of all seven products.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax

from aifx.nn.layers import linear
from aifx.nn.quantized import Int8Table
from jax_kernels._ops.quantized_matmul import quantize

TOKENS, ROUNDS = 2048, 15
PRODUCTS = {(576, 576): 2, (576, 192): 2, (576, 1536): 2, (1536, 576): 1}
"""Number of products in a layer, by inputs and outputs."""


def main() -> None:
    totals: dict[str, float] = {}
    for (inputs, outputs), count in PRODUCTS.items():
        of_x, of_weight = jax.random.split(jax.random.key(0))
        x = jax.random.normal(of_x, (TOKENS, inputs))
        weight = jax.random.normal(of_weight, (outputs, inputs))
        values, scale = quantize(weight, "int8", (1, None))
        table = Int8Table(values, scale[:, 0])
        ways: dict[str, tuple[Callable[..., jax.Array], object]] = {
            "two int8 terms": (jax.jit(linear), table),
            "converted to float32": (jax.jit(lambda x, t: x @ t.values.T.astype(x.dtype) * t.scale), table),
            "float32": (jax.jit(linear), weight.T),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (product, matrix) in ways.items():
                started = time.perf_counter()
                product(x, matrix).block_until_ready()
                seconds[name].append(time.perf_counter() - started)
        for name, found in seconds.items():
            totals[name] = totals.get(name, 0.0) + count * statistics.median(found)
    for name, total in totals.items():
        print(f"{name:22} {1e3 * total:6.1f} ms")


if __name__ == "__main__":
    main()

"""The projection and its loss on NVIDIA GPUs, as Pallas kernels that Triton compiles.

A program forms one block of logits, `[tokens, columns of the weight]`, walking over the embedding. Forward, it leaves
for each token the log-sum-exp of its columns, which XLA combines over the blocks: no two programs write to the same
place, so that the result is the same each time. On the way back, the loss's gradient is applied before it is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels._ops.linear_cross_entropy import fused
from jax_kernels._ops.linear_cross_entropy.call import Call
from jax_kernels.implementations import Config, Device, is_interpreting

Ref: TypeAlias = Any

LOG2_E = math.log2(math.e)  # exponentials are powers of 2, which the GPU computes itself
SMALLEST_BLOCK = 16  # the smallest side of a product that tensor cores take
ALIGNED = 8  # columns of a weight whose rows can be read 16 bytes at a time
GROUP = 8  # blocks of tokens that share columns of the weight
SHORT_EMBED = 2048
NAMES = ("block_tokens", "block_vocab", "block_embed", "num_warps", "num_stages", "chunks")


def linear_cross_entropy(call: Call, config: Config, x: Array, weight: Array, labels: Array) -> Array:
    """The loss of each token `[tokens]` float32, or their sum."""
    return fused.linear_cross_entropy(Kernels(call, config, is_interpreting()), x, weight, labels)


class Kernels(fused.Kernels):
    """Each runs a program for each block of logits."""

    def statistics(self, x: Array, weight: Array, labels: Array) -> tuple[Array, Array, Array | None]:
        tokens, vocab = self.call.tokens, self.call.vocab
        each = jax.ShapeDtypeStruct((tokens,), jnp.float32)
        some = jax.ShapeDtypeStruct((pl.cdiv(vocab, self.option("block_vocab")), tokens), jnp.float32)
        outputs = (some, each, some) if self.call.label_smoothing else (some, each)
        operands = (x, fused.columns(weight, fused.Chunk(0, vocab), ALIGNED), labels)
        lse, label_logit, *sums = self._run(_statistics_kernel, vocab, operands, outputs)
        return jax.nn.logsumexp(lse, axis=0), label_logit, jnp.sum(sums[0], axis=0) if sums else None

    def d_logits(self, x: Array, weight: Array, labels: Array, lse: Array, d_loss: Array, chunk: fused.Chunk) -> Array:
        columns = fused.columns(weight, chunk)
        operands = (x, columns, labels - chunk.start, lse, d_loss)
        output = jax.ShapeDtypeStruct((self.call.tokens, columns.shape[1]), x.dtype)
        return self._run(_d_logits_kernel, chunk.size, operands, (output,))[0]

    def _run(self, kernel: Any, vocab: int, operands: tuple[Array, ...], outputs: tuple[Any, ...]) -> Sequence[Array]:
        """`operands` are x, columns of the weight of which `vocab` are of the vocabulary, and numbers of each token."""
        tokens, columns = operands[0].shape[0], operands[1].shape[1]
        whole = [pl.BlockSpec(x.shape, partial(_origin, len(x.shape))) for x in (*operands, *outputs)]
        results: Sequence[Array] = pl.pallas_call(
            lambda *refs: kernel(Block(self, vocab, columns), *refs),
            grid=(pl.cdiv(tokens, self.option("block_tokens")) * pl.cdiv(columns, self.option("block_vocab")),),
            in_specs=whole[: len(operands)],
            out_specs=tuple(whole[len(operands) :]),
            out_shape=outputs,
            # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
            compiler_params=plgpu.CompilerParams(
                num_warps=self.option("num_warps"), num_stages=self.option("num_stages")
            ),
            interpret=self.interpret,
            name=f"linear_cross_entropy{kernel.__name__}",
        )(*operands)
        return results


def _origin(ndim: int, program: Any) -> tuple[int, ...]:
    return (0,) * ndim


@dataclass(frozen=True)
class BlockRange:
    """Where a block lies along one axis of an array: `size` from `start` on, of `length`."""

    start: Any
    size: int
    length: int

    @property
    def inside(self) -> Array | None:
        """Which of them the array has; None where it has all, because blocks divide it."""
        return None if self.length % self.size == 0 else self.indices < self.length

    @property
    def indices(self) -> Array:
        start: Array = self.start
        return start + lax.iota(jnp.int32, self.size)


class Block:
    """Inside a kernel: the program's block of logits.

    Attributes:
        vocab: columns of those that are given that are of the vocabulary; the others fill up what is given.
        rows, columns: where the block lies.
        number: of the block among those of all columns.
    """

    def __init__(self, kernels: Kernels, vocab: int, width: int) -> None:
        self.call, self.vocab, self.depth = kernels.call, vocab, kernels.option("block_embed")
        block_tokens, block_vocab = kernels.option("block_tokens"), kernels.option("block_vocab")
        row_blocks, column_blocks = pl.cdiv(self.call.tokens, block_tokens), pl.cdiv(width, block_vocab)
        # GROUP blocks of tokens take the same columns one after another, while these are in the cache.
        group, within = (f(pl.program_id(0), GROUP * column_blocks) for f in (lax.div, lax.rem))
        size = jnp.minimum(row_blocks - group * GROUP, GROUP)
        self.number = lax.div(within, size)
        self.rows = BlockRange((group * GROUP + lax.rem(within, size)) * block_tokens, block_tokens, self.call.tokens)
        self.columns = BlockRange(self.number * block_vocab, block_vocab, width)

    def logits(self, x: Ref, weight: Ref) -> tuple[Array, Array | None]:
        """Capped, and the slope of the soft-cap at each."""

        def step(i: Array, products: Array) -> Array:
            depth = BlockRange(i * self.depth, self.depth, self.call.embed)
            return products + _dot(_load(x, self.rows, depth), _load(weight, depth, self.columns))

        products = jnp.zeros((self.rows.size, self.columns.size), jnp.float32)
        products = lax.fori_loop(0, pl.cdiv(self.call.embed, self.depth), step, products)
        if self.call.logit_softcap is None:
            return products, None
        capped = jnp.tanh(products / self.call.logit_softcap)
        return self.call.logit_softcap * capped, 1.0 - capped * capped

    def seen(self, logits: Array, other: float) -> Array:
        """Logits of the vocabulary, `other` in the columns beyond it."""
        if self.columns.length == self.vocab and self.vocab % self.columns.size == 0:
            return logits
        return jnp.where((self.columns.indices < self.vocab)[None, :], logits, other)

    def at_label(self, labels: Array, values: Array) -> Array:
        """`values` where a column is the row's label, else 0."""
        return jnp.where(labels[:, None] == self.columns.indices[None, :], values, 0.0)


def _statistics_kernel(block: Block, x: Ref, weight: Ref, labels: Ref, lse: Ref, label_logit: Ref, *sums: Ref) -> None:
    logits, _ = block.logits(x, weight)
    number = BlockRange(block.number, 1, 1)
    if sums:
        _store(sums[0], jnp.sum(block.seen(logits, 0.0), axis=1)[None, :], number, block.rows)
    scores = LOG2_E * block.seen(logits, -jnp.inf)
    top = jnp.max(scores, axis=1)
    total = jnp.sum(jnp.exp2(scores - top[:, None]), axis=1)
    _store(lse, (top / LOG2_E + jnp.log(total))[None, :], number, block.rows)
    # Of all blocks with a token's row, one has its label.
    expected = _load(labels, block.rows)
    here = (expected >= block.columns.start) & (expected < block.columns.start + block.columns.size)
    _store(label_logit, jnp.sum(block.at_label(expected, logits), axis=1), block.rows, mask=here)


def _d_logits_kernel(block: Block, x: Ref, weight: Ref, labels: Ref, lse: Ref, d_loss: Ref, d_logits: Ref) -> None:
    call = block.call
    logits, slope = block.logits(x, weight)
    expected, sums, asked = (_load(ref, block.rows) for ref in (labels, lse, d_loss))
    asked = asked[:, None]
    p = jnp.exp2(LOG2_E * (logits - sums[:, None]))
    gradient = asked * (p * (1.0 + 2.0 * call.z_loss * sums[:, None]) if call.z_loss else p)
    if call.label_smoothing:
        gradient -= asked * (call.label_smoothing / call.vocab)
    gradient -= block.at_label(expected, asked * (1.0 - call.label_smoothing))
    gradient = block.seen(gradient if slope is None else gradient * slope, 0.0)
    _store(d_logits, gradient.astype(d_logits.dtype), block.rows, block.columns)


def _dot(a: Array, b: Array) -> Array:
    # Without a word on precision, Triton rounds float32 to TF32.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _reach(*ranges: BlockRange, mask: Array | None = None) -> Array | None:
    """Which elements of a block its array has, and the mask besides; None where it has all."""
    masks = [mask]
    for axis, block in enumerate(ranges):
        if (inside := block.inside) is not None:
            masks.append(lax.broadcast_in_dim(inside, tuple(s.size for s in ranges), (axis,)))
    known = [m for m in masks if m is not None]
    return reduce(jnp.logical_and, known) if known else None


def _load(ref: Ref, *ranges: BlockRange) -> Array:
    """A block of an array, zero beyond the array's end."""
    reach = _reach(*ranges)
    at = tuple(pl.ds(s.start, s.size) for s in ranges)
    return plgpu.load(ref.at[at], mask=reach, other=None if reach is None else 0)


def _store(ref: Ref, value: Array, *ranges: BlockRange, mask: Array | None = None) -> None:
    plgpu.store(ref.at[tuple(pl.ds(s.start, s.size) for s in ranges)], value, mask=_reach(*ranges, mask=mask))


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    if call.dtype not in ("float16", "bfloat16", "float32"):
        return call.dtype
    if 0 in (call.tokens, call.embed, call.vocab):
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Block sizes to try, the best guess first, with blocks no longer than what they divide.

    The products over few columns of a short embedding would leave a GPU idle: fewer chunks then, and blocks of which a
    processor holds two, one at work while the other writes.
    """
    assert device.compute_capability is not None
    hopper = (9, 0) <= device.compute_capability < (12, 0)
    kind = "float32" if call.dtype == "float32" else "hopper" if hopper else "ampere"
    rows = list(BLOCKS[kind])
    if not hopper and device.compute_capability != (8, 0):
        rows = rows[1:]  # for what has 99 KiB of shared memory rather than 163 or 227
    chunks = 8
    if call.embed < SHORT_EMBED:
        chunks, rows[:2] = 4, rows[1::-1]
    longest = [max(SMALLEST_BLOCK, pl.next_power_of_2(size)) for size in (call.tokens, call.vocab, call.embed)]
    fitted = [(*map(min, row[:3], longest), *row[3:], chunks) for row in rows]
    return list(dict.fromkeys(tuple(zip(NAMES, row, strict=True)) for row in fitted))


# NAMES but for the chunks: what fits shared memory as compiled and spills no registers, by reasoning, not timed.
BLOCKS = {
    "hopper": ((128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (256, 128, 64, 8, 3)),
    "ampere": ((128, 256, 32, 8, 3), (128, 128, 32, 8, 3), (128, 128, 32, 4, 3), (64, 128, 32, 4, 3)),
    "float32": ((128, 64, 16, 8, 2), (64, 64, 32, 8, 2), (64, 64, 16, 4, 2)),
}

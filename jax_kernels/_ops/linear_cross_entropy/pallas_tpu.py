"""The projection and its loss on TPUs: Pallas kernels that hold a block of tokens against one block of the vocabulary
after another.

A block of tokens has the whole embedding in VMEM. Forward, a token's maximum and sum so far are kept for each of the
128 lanes of a register apart, and brought together after the last block: no number crosses lanes before. On the way
back, the gradient of the loss is applied to a block of logits before it is written. A block is computed in pieces, so
that the matrix units begin the products of one while the vector units work on those of the one before.

Numbers of each token are columns `[tokens, 1]`, which spread over the lanes of a block of logits. Blocks may reach
beyond the arrays: what is computed there, of values that are not defined, is cut off or masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels._ops.linear_cross_entropy import fused
from jax_kernels._ops.linear_cross_entropy.call import Call
from jax_kernels._ops.linear_cross_entropy.fused import LANES
from jax_kernels.implementations import Config, Device, is_interpreting

Ref: TypeAlias = Any

SUBLANES = 16  # rows of a vector register of bfloat16
PIECE = 256  # columns of a block that are worked on at once
DEPTH = 1024  # of the embedding, multiplied at once: a longer product would be a program of minutes to compile
# The maximum of no logits: finite, so that what is masked, -inf, less any maximum is -inf and never NaN.
FLOOR = float(np.finfo(np.float32).min) / 2


def linear_cross_entropy(call: Call, config: Config, x: Array, weight: Array, labels: Array) -> Array:
    """The loss of each token `[tokens]` float32, or their sum."""
    if call.dtype == "float16":  # which the matrix units do not have, and bfloat16 would lose three of its bits
        x, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
    return fused.linear_cross_entropy(Kernels(call, config, is_interpreting()), x, weight, labels)


class Kernels(fused.Kernels):
    """Each takes a step for each block of logits, those of a block of tokens one after another."""

    def statistics(self, x: Array, weight: Array, labels: Array) -> tuple[Array, Array, Array | None]:
        num_sums = 3 if self.call.label_smoothing else 2
        outputs = [jax.ShapeDtypeStruct((self.call.tokens, 1), jnp.float32)] * num_sums
        scratch = [pltpu.VMEM((self.option("block_tokens"), LANES), jnp.float32)] * (num_sums + 1)
        whole = fused.Chunk(0, self.call.vocab)
        found = self._run(_statistics_kernel, whole, (x, weight, labels), outputs, scratch)
        lse, label_logit, *sums = (column[:, 0] for column in found)
        return lse, label_logit, sums[0] if sums else None

    def d_logits(self, x: Array, weight: Array, labels: Array, lse: Array, d_loss: Array, chunk: fused.Chunk) -> Array:
        width = pl.cdiv(chunk.size, LANES) * LANES
        output = jax.ShapeDtypeStruct((self.call.tokens, width), x.dtype)
        return self._run(_d_logits_kernel, chunk, (x, weight, labels, lse, d_loss), [output])[0]

    def _run(
        self,
        kernel: Any,
        chunk: fused.Chunk,
        operands: tuple[Array, ...],
        outputs: Sequence[jax.ShapeDtypeStruct],
        scratch: Sequence[Any] = (),
    ) -> Sequence[Array]:
        """`operands` are x, the weight and numbers of each token."""
        x, weight, *numbers = operands
        rows, columns = self.option("block_tokens"), self.option("block_vocab")
        number = pl.BlockSpec((rows, 1), lambda i, j, first: (i, 0))
        block = pl.BlockSpec((rows, columns), lambda i, j, first: (i, j))
        results: Sequence[Array] = pl.pallas_call(
            lambda first, *refs: kernel(Block(self.call, first[0] * columns, columns, refs[-1]), *refs[:-1]),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(pl.cdiv(self.call.tokens, rows), pl.cdiv(chunk.size, columns)),
                in_specs=[
                    pl.BlockSpec((rows, self.call.embed), lambda i, j, first: (i, 0)),
                    pl.BlockSpec((self.call.embed, columns), lambda i, j, first: (0, first[0] + j)),
                    *(number for _ in numbers),
                ],
                out_specs=[number if output.shape[1] == 1 else block for output in outputs],
                scratch_shapes=[*scratch, pltpu.VMEM((2, rows, min(columns, PIECE)), jnp.float32)],
            ),
            out_shape=list(outputs),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_vmem_bytes(self.call, rows, columns)
            ),
            interpret=pltpu.InterpretParams(detect_races=True) if self.interpret else False,
            name=f"linear_cross_entropy{kernel.__name__}",
        )(jnp.full(1, chunk.start // columns, jnp.int32), x, weight, *(n[:, None] for n in numbers))
        return results


class Block:
    """Inside a kernel: the step's block of logits, of `size` columns of the weight."""

    def __init__(self, call: Call, first: Any, size: int, products: Ref) -> None:
        self.call, self.size, self.products = call, size, products
        self.start = first + pl.program_id(1) * size
        self.is_first, self.is_last = pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1

    def each_piece(self, x: Ref, weight: Ref, work: Callable[[slice, Array], None]) -> None:
        """`work` is given the columns of a piece and their products."""
        depths = [(at, min(DEPTH, self.call.embed - at)) for at in range(0, self.call.embed, DEPTH)]
        whole = [depth for depth in depths[1:] if depth[1] == DEPTH]
        waiting = None
        for number, at in enumerate(range(0, self.size, PIECE)):
            piece = slice(at, min(at + PIECE, self.size))
            held = self.products.at[number % 2, :, : piece.stop - piece.start]

            def product(start: Any, size: int, piece: slice = piece) -> Array:
                return _dot(x[:, pl.ds(start, size)], weight[pl.ds(start, size), piece])

            held[...] = product(*depths[0])
            # With nothing to wait for, these products and that work share the processor.
            if waiting is not None:
                work(waiting[0], waiting[1][...])
            waiting = piece, held

            @pl.loop(1, 1 + len(whole))
            def add(i: Any, held: Ref = held, product: Any = product) -> None:
                held[...] += product(pl.multiple_of(i * DEPTH, DEPTH), DEPTH)

            for depth in depths[1 + len(whole) :]:
                held[...] += product(*depth)
        assert waiting is not None
        work(waiting[0], waiting[1][...])

    def logits(self, products: Array) -> tuple[Array, Array | None]:
        """Capped, and the slope of the soft-cap at each."""
        if self.call.logit_softcap is None:
            return products, None
        capped = jnp.tanh(products * (1.0 / self.call.logit_softcap))
        return self.call.logit_softcap * capped, 1.0 - capped * capped

    def indices(self, like: Array, piece: slice) -> Array:
        """Positions in the vocabulary of a piece's logits."""
        first: Array = self.start + piece.start
        return first + lax.broadcasted_iota(jnp.int32, like.shape, 1)

    def at_label(self, labels: Ref, values: Array, piece: slice, like: Array) -> Array:
        """`values` where a column is the row's label, else 0."""
        return jnp.where(self.indices(like, piece) == labels[...], values, 0.0)

    def seen(self, logits: Array, piece: slice, other: float) -> Array:
        """Logits of the vocabulary, `other` in the columns beyond it."""
        if self.call.vocab % self.size == 0:
            return logits
        return jnp.where(self.indices(logits, piece) < self.call.vocab, logits, other)


def _statistics_kernel(block: Block, x: Ref, weight: Ref, labels: Ref, *refs: Ref) -> None:
    """`top` and the sums `[block_tokens, LANES]`: of the logits so far in each lane the maximum, the sum of the
    exponentials relative to it, the label's and, for smoothing, the sum."""
    count = (len(refs) - 1) // 2
    outputs, (top, *sums) = refs[:count], refs[count:]

    @pl.when(block.is_first)
    def start() -> None:
        top[...] = jnp.full_like(top, FLOOR)
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

    def work(piece: slice, products: Array) -> None:
        logits, _ = block.logits(products)
        scores = block.seen(logits, piece, -jnp.inf)
        before = top[...]
        now = _fold(jnp.maximum, scores, before)
        top[...] = now
        sums[0][...] = _fold(jnp.add, jnp.exp(scores - _across(now, scores)), sums[0][...] * jnp.exp(before - now))
        sums[1][...] = _fold(jnp.add, block.at_label(labels, logits, piece, logits), sums[1][...])
        for ref in sums[2:]:
            ref[...] = _fold(jnp.add, block.seen(logits, piece, 0.0), ref[...])

    block.each_piece(x, weight, work)

    @pl.when(block.is_last)
    def finish() -> None:
        highest = jnp.max(top[...], axis=1, keepdims=True)
        total = jnp.sum(sums[0][...] * jnp.exp(top[...] - highest), axis=1, keepdims=True)
        outputs[0][...] = highest + jnp.log(total)
        for output, ref in zip(outputs[1:], sums[1:], strict=True):
            output[...] = jnp.sum(ref[...], axis=1, keepdims=True)


def _d_logits_kernel(block: Block, x: Ref, weight: Ref, labels: Ref, lse: Ref, d_loss: Ref, d_logits: Ref) -> None:
    call = block.call

    def work(piece: slice, products: Array) -> None:
        logits, slope = block.logits(products)
        asked, total = d_loss[...], lse[...]
        softmax = asked * (1.0 + 2.0 * call.z_loss * total) if call.z_loss else asked
        gradient = softmax * jnp.exp(logits - total)
        if call.label_smoothing:
            gradient -= asked * (call.label_smoothing / call.vocab)
        gradient -= block.at_label(labels, asked * (1.0 - call.label_smoothing), piece, logits)
        gradient = block.seen(gradient if slope is None else gradient * slope, piece, 0.0)
        d_logits[:, piece] = gradient.astype(d_logits.dtype)

    block.each_piece(x, weight, work)


def _dot(a: Array, b: Array) -> Array:
    # Unless told, the units round float32 operands to bfloat16.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _fold(combine: Any, x: Array, start: Array) -> Array:
    """The lanes of all registers of a row in one register, which begins as `start`."""
    for at in range(0, x.shape[1], LANES):
        start = combine(start, x[:, at : at + LANES])
    return start


def _across(x: Array, like: Array) -> Array:
    return jnp.tile(x, (1, like.shape[1] // LANES))


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float16", "float32"):
        return call.dtype
    if 0 in (call.tokens, call.embed, call.vocab):
        return "an empty array"
    return None if configs(call, device) else f"an embedding of {call.embed} does not fit VMEM"


def configs(call: Call, device: Device) -> Sequence[Config]:
    """The weight is read once for each block of tokens, which must be long for its products to take longer than that;
    a step costs some hundred cycles beyond its work, which a wide block makes few. Nothing was measured."""
    sizes = [(1024, 1024), (1024, 2048), (1024, 512), (512, 1024), (512, 512), (256, 512), (128, 256), (64, 128)]
    if call.dtype != "bfloat16":  # products of float32 are six of bfloat16, in the program too
        sizes = sizes[4:]
    blocks = dict.fromkeys((_fit(call.tokens, t, SUBLANES), _fit(call.vocab, v, LANES)) for t, v in sizes)
    # A core of a v5e or v6e, which JAX calls "lite", has 128 MiB, others 64; some is left to the program around.
    most = (100 if "lite" in device.kind else 50) * 2**20
    fitting = [(t, v) for t, v in blocks if _vmem_bytes(call, t, v) <= most]
    return [(("block_tokens", t), ("block_vocab", v), ("chunks", 8)) for t, v in fitting[:4]]


def _fit(length: int, most: int, multiple: int) -> int:
    """The multiple, up to `most`, that covers the length in as few blocks with the least padding."""
    return pl.cdiv(pl.cdiv(length, pl.cdiv(length, most)), multiple) * multiple


def _vmem_bytes(call: Call, tokens: int, vocab: int) -> int:
    """Bytes of VMEM that a kernel needs: its blocks, each twice, the numbers of each token, and a piece at work."""
    size = 2 if call.dtype == "bfloat16" else 4
    # Products of float32 hold their operands as three of bfloat16.
    parts = 0 if size == 2 else 3 * 2 * min(call.embed, DEPTH) * (tokens + min(vocab, PIECE))
    blocks = 2 * size * (tokens * call.embed + call.embed * vocab + tokens * vocab)
    columns = 16 * 4 * LANES * tokens
    pieces = 10 * 4 * tokens * min(vocab, PIECE)
    return blocks + parts + columns + pieces + 2**20

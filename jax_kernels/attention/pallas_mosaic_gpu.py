"""Attention for Hopper in Pallas's Mosaic GPU: warpgroup products, bulk copies, and warpgroups that do one thing each.

A block of threads is one memory warpgroup and two that compute. The memory warpgroup fills shared memory by bulk copies
(TMA), which put zeros where they read past the end of an array and drop what they would write there, so no length has
to fit a block. What a tile needs throughout is loaded once, what it walks through goes into rings, whose slots have two
barriers: `filled` by the copies, `empty` once both computing warpgroups have read it.

The forward pass is FlashAttention-3's (arXiv 2407.08608): a computing warpgroup owns `block_q` queries, whose scores
and output stay in its registers, and the two take turns at the tensor cores: one multiplies, the other exponentiates.

The backward pass recomputes the probabilities from the log-sum-exp, in one kernel over tiles of queries for dq and one
over tiles of keys for dk and dv, which walks through all query heads that share its keys: seven products where five
would do if dq were added up in memory, whose order of addition, and so its bits, would change from run to run. Both are
one function: a tile's rows are the rows of its scores, so that the left sides of the later products are in registers
already. Where head_dim is over 128, those sums of 64 rows would not fit a warpgroup's registers: then both have the
same rows, and each sums half of the columns.

Blocks that a causal mask or a window hides are skipped, and only those that its edges cross are masked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from importlib import metadata
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jax_kernels import forms
from jax_kernels.attention.call import Call
from jax_kernels.forms import Config, Device

plgpu: Any
try:
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:  # under JAX 0.10 it imports absl, which JAX does not install
    plgpu = None
try:  # the package whose ptxas JAX takes; JAX's own attention for Hopper knows of the fault that `refuses` names
    NVCC = tuple(map(int, metadata.version("nvidia-cuda-nvcc-cu12").split(".")[:3]))
except metadata.PackageNotFoundError:
    NVCC = ()

MaybeArray: TypeAlias = jax.Array | None
Ref: TypeAlias = Any
Scalar: TypeAlias = Any  # an int, or an int32 that is known when the program runs
Span: TypeAlias = tuple[Scalar, Scalar, Scalar, Scalar]  # start, whole_start, whole_stop, stop: see `_span`

HAS_INTERPRETER = hasattr(plgpu, "InterpretGPUParams")  # not under JAX 0.10
WARPGROUPS = 2  # that compute
ROWS = 64  # of a warpgroup product
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # the maximum of no scores yet: finite, as a difference of infinities is no number
FAR = 2**30  # positions away: no limit


def refuses(call: Call, device: Device) -> str | None:
    if plgpu is None:
        return "JAX 0.10's Mosaic GPU needs absl-py, which is not installed"
    if device.platform != "gpu" or device.compute_capability is None or device.compute_capability[0] != 9:
        return "needs compute capability 9.x"
    if call.dtype not in ("bfloat16", "float16"):
        return f"{call.dtype} is not bfloat16 or float16"
    if call.head_dim > 256:
        return f"head_dim {call.head_dim} is over 256"
    if call.scale <= 0.0:
        return "scale is not positive"  # the maximum is taken before scaling
    return "ptxas of CUDA 12.8 to 12.9.0 miscompiles masks" if (12, 8) <= NVCC < (12, 9, 86) else None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """All fit shared memory, and registers but for a few that ptxas spills; more where masks meet the largest."""
    if call.head_dim <= 64:
        sizes = [(64, 128, 3, 128, 64, 3), (64, 128, 2, 64, 64, 2), (64, 256, 2, 128, 64, 2)]
    elif call.head_dim <= 128:
        sizes = [(64, 128, 2, 64, 64, 2), (64, 64, 4, 64, 64, 3), (64, 128, 2, 128, 64, 2)]
    else:
        sizes = [(64, 64, 2, 64, 64, 2)]
    names = ("block_q", "block_k", "stages", "block_k_dq", "block_q_dkv", "stages_backward")
    return [tuple(zip(names, chosen, strict=True)) for chosen in sizes]


def attention(
    call: Call, config: Config, q: jax.Array, k: jax.Array, v: jax.Array, q_offset: MaybeArray, segment_ids: MaybeArray
) -> tuple[jax.Array, jax.Array]:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32."""
    # Bulk copies cut arrays into tiles of 8 rows and of 16 columns or more, all of which belong to one warpgroup.
    columns = -call.head_dim % (16 if call.head_dim <= 128 else 16 * WARPGROUPS)
    padded = [jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, columns))) for x in (q, k, v)]
    offset = None if q_offset is None else q_offset.astype(jnp.int32).reshape(1)
    given = [] if segment_ids is None else [segment_ids.astype(jnp.int32)[:, None]]
    ids = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, -call.q_len % 8))) for x in given)
    out, lse = _attention(call, config, *padded, offset, ids)
    return out[:, : call.q_len, :, : call.head_dim], lse[:, :, : call.q_len]


def _forward(call: Call, config: Config, *operands: Any) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    """Of padded q, k and v, an offset `[1]` or None, and segment ids `[batch, 1, len]` if any."""
    q, k, v, offset, ids = operands
    size = dict(config)
    sizes = size["block_q"], size["block_k"], size["stages"], 1
    types = q, jax.ShapeDtypeStruct((call.batch, call.num_heads, q.shape[1]), jnp.float32)
    sides = Side((q,), ids), (Side((k,), ids), Side((v,), ()))
    out, lse = _run(call, "attention", _attend, types, offset, *sides, sizes, of_keys=False)
    return (out, lse), (*operands, out, lse)


def _backward(
    call: Call, config: Config, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    q, k, v, offset, ids, out, lse = residuals
    d_out, d_lse = cotangents
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1).transpose(0, 2, 1) - d_lse
    # In units of exp2; rows that see nothing get probabilities of zero.
    lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    queries, keys, size = Side((q, d_out), (lse, delta, *ids)), Side((k, v), ids), dict(config)
    rest = size["stages_backward"], 1 if q.shape[-1] <= 128 else WARPGROUPS
    sum_d_q, sum_d_kv = (partial(_gradients, of_keys=x) for x in (False, True))
    sizes = ROWS, size["block_k_dq"], *rest
    (d_q,) = _run(call, "attention_d_q", sum_d_q, (q,), offset, queries, (keys,), sizes, of_keys=False)
    sizes = ROWS, size["block_q_dkv"], *rest
    d_k, d_v = _run(call, "attention_d_kv", sum_d_kv, (k, v), offset, keys, (queries,), sizes, of_keys=True)
    return d_q, d_k, d_v, None, None


_attention: Any = jax.custom_vjp(lambda *operands: _forward(*operands)[0], nondiff_argnums=(0, 1))
_attention.defvjp(_forward, _backward)


class Side(NamedTuple):
    """What lies along queries, or along keys. In shared memory each has an axis of tiles or slots instead of batches
    and heads, and matrices one of parts, which share out the columns; slots have two barriers, `filled` and `empty`."""

    matrices: tuple[Any, ...]  # [batch, len, heads, head_dim]
    vectors: tuple[Any, ...]  # [batch, heads, len]; segment ids, of one head, are the last
    barriers: tuple[Any, ...] = ()

    def at(self, index: Scalar) -> Side:
        return Side(*(tuple(x.at[index] for x in refs) for refs in self))


def _buffers(side: Side, count: int, rows: int, parts: int) -> Side:
    """Types of as many slots in shared memory."""

    def matrix(x: jax.Array) -> Any:
        width = x.shape[-1] // parts
        swizzle = next(s for s in (128, 64, 32) if width * x.dtype.itemsize % s == 0)
        layout = plgpu.TilingTransform((8, swizzle // x.dtype.itemsize)), plgpu.SwizzleTransform(swizzle)
        return plgpu.SMEM((count, parts, rows, width), x.dtype, transforms=layout)

    vectors = tuple(plgpu.SMEM((count, rows), x.dtype) for x in side.vectors)
    arrivals = len(side.matrices) * parts + len(vectors), WARPGROUPS
    barriers = tuple(plgpu.Barrier(num_arrivals=x, num_barriers=count) for x in arrivals)
    return Side(tuple(map(matrix, side.matrices)), vectors, barriers)


def _copy(source: Side, target: Side, batch: Scalar, start: Scalar, head: Scalar) -> None:
    """The rows from `start`, into a slot."""
    filled, _ = target.barriers
    for x, buffer in zip(source.matrices, target.matrices, strict=True):
        parts, rows, width = buffer.shape
        for i in range(parts):
            columns = pl.ds(i * width, width)
            plgpu.copy_gmem_to_smem(x.at[batch, pl.ds(start, rows), head, columns], buffer.at[i], filled)
    for x, buffer in zip(source.vectors, target.vectors, strict=True):
        row = x.at[batch, head if x.shape[1] > 1 else 0, pl.ds(start, buffer.shape[0])]
        plgpu.copy_gmem_to_smem(row, buffer, filled)


def _store(values: Any, buffers: Any, results: Any, batch: Scalar, start: Scalar, head: Scalar, part: Scalar) -> None:
    """Values of the rows from `start`, by way of buffers whose contents are not needed any more."""
    for x, buffer, result in zip(values, buffers, results, strict=False):
        rows, columns = pl.ds(start, x.shape[0]), pl.ds(part * x.shape[-1], x.shape[-1])
        buffer[...] = x.astype(buffer.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffer, result.at[(batch, rows, head, columns) if x.ndim == 2 else (batch, head, rows)])
    plgpu.wait_smem_to_gmem(0)


def _run(
    call: Call, name: str, compute: Any, types: Any, offset: Any, mine: Side, others: Any, sizes: Any, of_keys: bool
) -> list[jax.Array]:
    """Arrays of `types` from what `compute` gives for the rows of `mine` that each warpgroup has."""
    rows, block, stages, parts = sizes
    groups = WARPGROUPS // parts
    length, repeats = (call.kv_len, call.group) if of_keys else (call.q_len, 1)
    tiles = pl.cdiv(length, groups * rows)

    def body(offset: Ref, mine: Side, others: tuple[Side, ...], *rest: Any) -> None:
        *results, tile, rings, vectors, meeting = rest
        batch, i, head, me = map(lax.axis_index, ("batch", "tile", "head", "warpgroup"))
        start = (i if of_keys else tiles - 1 - i) * (groups * rows)  # under a causal mask the longest begin first
        position = call.q_offset if offset is None else offset[0]
        span = _span(call, start, jnp.minimum(start + groups * rows, length) - 1, position, block, of_keys)
        each = span[-1] - span[0]

        def load() -> None:
            plgpu.set_max_registers(40, action="decrease")
            for i in range(groups):
                _copy(mine, tile.at(i), batch, start + i * rows, head)

            def fill(step: Scalar, _: None) -> None:
                slot = lax.rem(step, jnp.int32(stages))
                turn, index = lax.div(step, jnp.maximum(each, 1)), lax.rem(step, jnp.maximum(each, 1))
                at = (span[0] + index) * block
                of = head * repeats + turn if of_keys else lax.div(head, jnp.int32(call.group))
                for side, ring in zip(others, rings, strict=True):
                    pl.when(step >= stages)(partial(plgpu.barrier_wait, ring.at(slot).barriers[1]))
                    pl.when(step < each * repeats)(partial(_copy, side, ring.at(slot), batch, at, of))

            # Some more than there are to fill: no phase of a barrier must pass unseen.
            lax.fori_loop(jnp.int32(0), each * repeats + stages, fill, None)

        def work() -> None:
            plgpu.set_max_registers(232, action="increase")
            group, part = (me, 0) if parts == 1 else (0, me)
            at, my = start + group * rows, tile.at(group)
            plgpu.barrier_wait(my.barriers[0])
            values = compute(call, my, rings, meeting, span, at, position)
            if parts > 1:
                _meet(meeting)  # the other may still read what the results overwrite
            buffers = [*(x.at[part] for x in my.matrices), vectors.at[me]]
            _store(values, buffers, results, batch, at, head, part)

        lax.cond(me < WARPGROUPS, work, load)

    scratch = (
        _buffers(mine, groups, rows, parts),
        tuple(_buffers(side, stages, block, parts) for side in others),
        plgpu.SMEM((WARPGROUPS, rows), jnp.float32),
        plgpu.Barrier(num_arrivals=WARPGROUPS),
    )
    grid = call.batch, tiles, call.num_kv_heads if of_keys else call.num_heads  # heads that share keys run together
    return list(_kernel(body, name, grid, types, scratch)(offset, mine, others))


def _kernel(body: Callable[..., None], name: str, grid: tuple[int, int, int], types: Any, scratch: Any) -> Any:
    return plgpu.kernel(
        body,
        out_type=types,
        scratch_types=scratch,
        grid=grid,
        grid_names=("batch", "tile", "head"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if forms.is_interpreting() else None,
        kernel_name=name,
    )


def _span(call: Call, first: Scalar, last: Scalar, offset: Scalar, block: int, of_keys: bool) -> Span:
    """Blocks `start` to `stop` of the queries that see keys `first` to `last`, or of the keys that queries `first` to
    `last` see; all see all of those from `whole_start` to `whole_stop`."""
    window = FAR if call.window is None else call.window
    if of_keys:  # queries past the end need no mask, as they have no gradient
        length, whole = call.q_len, call.q_len + block
        low, high = -offset if call.causal else -FAR, window - offset
    else:
        length, whole = call.kv_len, call.kv_len
        low, high = offset + 1 - window, offset + 1 if call.causal else FAR

    def blocks(row: Scalar, limit: int, more: int = 0) -> Scalar:
        return lax.div(jnp.clip(jnp.int32(row), 0, limit) + more, jnp.int32(block))

    start = blocks(first + low, length)
    stop = jnp.maximum(blocks(last + high, length, block - 1), start)
    whole_start = jnp.clip(blocks(last + low, whole, block - 1), start, stop)
    return start, whole_start, jnp.clip(blocks(first + high, whole), whole_start, stop), stop


def _walk(call: Call, span: Span, step: Callable[..., Any], carry: Any, block: int, of_keys: bool) -> Any:
    """Runs carry = step(index, carry, masked=...) over the blocks of a span."""
    start, whole_start, whole_stop, stop = span
    masked, whole = partial(step, masked=True), partial(step, masked=False)
    if call.has_segments:
        return lax.fori_loop(start, stop, masked, carry)
    edges = call.window is not None, call.causal or call.kv_len % block > 0
    before, after = (call.causal, edges[0]) if of_keys else edges
    carry = lax.fori_loop(start, whole_start, masked, carry) if before else carry
    carry = lax.fori_loop(whole_start, whole_stop, whole, carry)
    return lax.fori_loop(whole_stop, stop, masked, carry) if after else carry


def _mask(
    call: Call, x: jax.Array, starts: tuple[Scalar, Scalar], offset: Scalar, sides: tuple[Side, Side], q_axis: int
) -> jax.Array:
    """-inf where a query does not see a key. `starts` and `sides` are those of the rows and of the columns."""
    iota = partial(plgpu.broadcasted_iota, jnp.int32, x.shape, layout=plgpu.Layout.WGMMA)
    key, k_start = iota(1 - q_axis), starts[1 - q_axis]
    position = iota(q_axis) + (starts[q_axis] + offset - k_start)  # of a query, from the block's first key on
    seen = []
    if q_axis == 0 and call.kv_len % x.shape[1]:
        seen.append(key < call.kv_len - k_start)
    if call.causal:
        seen.append(key <= position)
    if call.window is not None:
        seen.append(key > position - call.window)
    if call.has_segments:
        seen.append(_load(sides[0].vectors[-1], x.shape, 0) == _load(sides[1].vectors[-1], x.shape, 1))
    return jnp.where(reduce(operator.and_, seen), x, -jnp.inf)


def _scores(call: Call, products: jax.Array) -> tuple[jax.Array, float]:
    """(x, factor) of products of q and k, with exp(score) = exp2(x factor); under a soft-cap x is the tanh."""
    if call.logit_softcap is None:
        return products, call.scale * LOG2_E
    # By exp2, whose approximation is closer than that of the GPU's tanh.
    power = jnp.exp2(products * (2.0 * LOG2_E * call.scale / call.logit_softcap))
    return 1.0 - 2.0 / (power + 1.0), call.logit_softcap * LOG2_E


def _accumulate(*sums: tuple[jax.Array, jax.Array, Ref, Any], meanwhile: Callable[[], None] = lambda: None) -> Any:
    """acc + a @ b[index] of each (acc, a, b, index), acc and a in registers; all that, and `meanwhile`, at once."""
    if forms.is_interpreting():  # the interpreter knows neither a left side in registers nor a sum to begin with
        meanwhile()
        return tuple(acc + jnp.dot(a, b[index], preferred_element_type=jnp.float32) for acc, a, b, index in sums)

    def multiply(accs: tuple[Ref, ...]) -> None:
        for acc, (_, a, b, index) in zip(accs, sums, strict=True):
            plgpu.wgmma(acc, a, b.at[index])
        meanwhile()

    return pl.run_state(multiply)(tuple(plgpu.ACC.init(acc) for acc, *_ in sums))


def _load(ref: Ref, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A vector from shared memory, along axis `axis` of a product of that shape."""
    index = () if HAS_INTERPRETER else ((),)  # which JAX 0.10 asks for
    return lax.broadcast_in_dim(plgpu.load(ref, *index, layout=plgpu.Layout.WGMMA.reduce(1 - axis)), shape, [axis])


def _meet(barrier: Ref) -> None:
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


def _release(slot: Side) -> None:
    if slot.vectors or forms.is_interpreting():
        plgpu.commit_smem()  # bulk copies keep their order with products, but not with ordinary loads
    plgpu.barrier_arrive(slot.barriers[1])


def _attend(
    call: Call, mine: Side, rings: Sequence[Side], meeting: Ref, span: Span, first: Scalar, offset: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Out `[rows, head_dim]` and log-sum-exp `[rows]` of a warpgroup's queries, `mine`, from `first` on."""
    k_ring, v_ring = rings
    queries, (keys,), (values,) = mine.matrices[0].at[0], k_ring.matrices, v_ring.matrices
    (rows, width), (stages, _, block, _) = queries.shape, keys.shape
    start, *_, stop = span
    along = partial(lax.broadcast_in_dim, broadcast_dimensions=[0])

    def step(index: Scalar, carry: Any, masked: bool) -> Any:
        acc, top, total = carry
        slot = lax.rem(index - start, jnp.int32(stages))
        k_slot, v_slot = k_ring.at(slot), v_ring.at(slot)

        def multiply(products: Ref) -> Any:
            plgpu.wgmma(products, queries, keys.at[slot, 0].transpose((1, 0)))
            _meet(meeting)
            return products[...]

        x, factor = _scores(call, pl.run_scoped(multiply, plgpu.ACC((rows, block), jnp.float32)))
        if masked:
            x = _mask(call, x, (first, index * block), offset, (mine, k_slot), q_axis=0)
        _release(k_slot)
        new_top = jnp.maximum(top, jnp.max(x, axis=1) * factor)
        p = jnp.exp2(x * factor - along(new_top, x.shape))
        decay = jnp.exp2(top - new_top)
        total = total * decay + jnp.sum(p, axis=1)
        carry = acc * along(decay, acc.shape), p.astype(values.dtype), new_top, total
        acc, p, top, total = lax.optimization_barrier(carry)  # all that before it is the other's turn
        plgpu.barrier_arrive(meeting)
        plgpu.barrier_wait(v_slot.barriers[0])
        plgpu.barrier_wait(meeting)

        def await_next() -> None:
            following = lax.rem(index + 1 - start, jnp.int32(stages))
            pl.when(index + 1 < stop)(partial(plgpu.barrier_wait, k_ring.at(following).barriers[0]))

        (acc,) = _accumulate((acc, p, values, (slot, 0)), meanwhile=await_next)
        _release(v_slot)
        return acc, top, total

    me = lax.axis_index("warpgroup")
    pl.when(start < stop)(partial(plgpu.barrier_wait, k_ring.at(0).barriers[0]))
    pl.when(me == 1)(partial(_meet, meeting))  # half a step behind the other
    zeros = plgpu.layout_cast(jnp.zeros((rows, width), jnp.float32), plgpu.Layout.WGMMA)
    zero = plgpu.layout_cast(jnp.zeros(rows, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    acc, top, total = _walk(call, span, step, (zeros, zero + LOWEST, zero), block, of_keys=False)
    pl.when(me == 0)(partial(_meet, meeting))
    acc = acc * along(1.0 / jnp.where(total == 0.0, 1.0, total), acc.shape)  # 0: a row that sees nothing
    return acc, top / LOG2_E + jnp.log(total)


def _gradients(
    call: Call, mine: Side, rings: Sequence[Side], meeting: Ref, span: Span, first: Any, offset: Any, of_keys: bool
) -> tuple[jax.Array, ...]:
    """d_q, or d_k and d_v, `[64, width]` of a warpgroup's rows, `mine`, from `first` on. Matrices are q and d_out, or k
    and v; vectors of queries are the log-sum-exp for exp2, and delta."""
    (ring,), (start, *_, stop) = rings, span
    (parts, rows, width), (stages, _, block, _) = mine.matrices[0].shape, ring.matrices[0].shape
    shape, q_axis = (rows, block), 1 if of_keys else 0
    part = 0 if parts == 1 else lax.axis_index("warpgroup")

    def step(head: Scalar, index: Scalar, sums: Any, masked: bool) -> Any:
        slot = lax.rem(head * (stop - start) + index - start, jnp.int32(stages))
        others = ring.at(slot)
        lse, delta, *_ = (others if of_keys else mine).vectors
        plgpu.barrier_wait(others.barriers[0])

        def multiply(*products: Ref) -> tuple[jax.Array, jax.Array]:
            for acc, a, b in zip(products, mine.matrices, others.matrices, strict=True):
                for i in range(parts):
                    plgpu.wgmma(acc, a.at[i], b.at[i].transpose((1, 0)))
            x, factor = _scores(call, plgpu.wgmma_accumulator_load(products[0], wait_n=parts))
            slope = 1.0 if call.logit_softcap is None else 1.0 - x * x
            if masked:
                x = _mask(call, x, (first, index * block), offset, (mine, others), q_axis)
            p = jnp.exp2(x * factor - _load(lse, shape, q_axis))
            return p * slope * (products[1][...] - _load(delta, shape, q_axis)), p

        factors = pl.run_scoped(multiply, *[plgpu.ACC(shape, jnp.float32)] * 2)  # of the rows of others.matrices
        matrices = zip(sums, factors, ring.matrices, strict=False)  # of which d_q has only the first
        sums = _accumulate(*[(acc, x.astype(b.dtype), b, (slot, part)) for acc, x, b in matrices])
        _release(others)
        return sums

    def of_head(head: Scalar, sums: Any) -> Any:
        return _walk(call, span, partial(step, head), sums, block, of_keys)

    zeros = plgpu.layout_cast(jnp.zeros((rows, width), jnp.float32), plgpu.Layout.WGMMA)
    sums = lax.fori_loop(0, call.group if of_keys else 1, of_head, (zeros, zeros) if of_keys else (zeros,))
    return sums[0] * call.scale, *sums[1:]

"""Which blocks of scores the kernels visit, and which of them without a mask, against what their queries see."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import jit
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.pallas_mosaic_gpu.tiling import Tiling
from jax_kernels._ops.attention.pallas_tpu.plan import WHOLE, Plan
from jax_kernels._ops.attention.pallas_triton.block_iteration import keys_seen, queries_seeing, walk

LENGTHS = st.integers(1, 48)
CALLS = st.builds(
    lambda q_len, kv_len, causal, window, q_offset: Call(
        1,
        q_len,
        kv_len,
        1,
        1,
        8,
        "bfloat16",
        causal,
        window,
        q_offset,
        has_segments=False,
        scale=1.0,
        logit_softcap=None,
    ),
    LENGTHS,
    LENGTHS,
    st.booleans(),
    st.none() | LENGTHS,
    st.integers(-40, 40),
)


def seen_by_block(call: Call, block_q: int, block_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether in each block of scores a query sees a key, and whether all see all; what lies past an end sees all."""
    at, key = np.arange(call.q_len)[:, None] + call.q_offset, np.arange(call.kv_len)
    seen = (key <= at) if call.causal else np.ones((call.q_len, call.kv_len), bool)
    if call.window is not None:
        seen = seen & (key > at - call.window)
    past = ((0, -call.q_len % block_q), (0, -call.kv_len % block_k))
    some, every = (np.pad(seen, past, constant_values=value) for value in (False, True))
    shape = (some.shape[0] // block_q, block_q, some.shape[1] // block_k, block_k)
    return some.reshape(shape).any(axis=(1, 3)), every.reshape(shape).all(axis=(1, 3))


def by_tile(call: Call, of_keys: bool, size: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of tiles of `size` queries and their blocks of keys, or of tiles of keys and their blocks of queries."""
    return (x.T for x in seen_by_block(call, block, size)) if of_keys else seen_by_block(call, size, block)


def check(visited: np.ndarray, some: np.ndarray) -> None:
    """Assert that seen blocks are visited once, and no others, but that a tile which sees nothing may look at one."""
    sees = some.any(axis=1)
    np.testing.assert_array_equal(visited[sees], some[sees])
    assert np.all(visited.sum(axis=1)[~sees] <= 1)


@settings(max_examples=200)
@given(CALLS, st.sampled_from([8, 16]), st.sampled_from([8, 16]))
def test_the_tpu_kernels(call, block_q, block_k):
    some, every = seen_by_block(call, block_q, block_k)
    every[:, -1] &= call.kv_len % block_k == 0  # keys past the end are masked
    (sight,) = Plan(call, block_q, block_k).sight(call.q_offset, None)
    np.testing.assert_array_equal(sight != 0, some)
    np.testing.assert_array_equal(sight == WHOLE, some & every)


@pytest.mark.covering(1)
@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 20), (False, 20), (False, None)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(48, 48), (33, 47), (7, 40)])
def test_the_triton_kernels(q_len, kv_len, causal, window, of_keys):
    """At every offset: the walk is a program, compiled once for all of them."""
    size, block, offsets = 16, 8, np.arange(-50, 50)
    call = Call(1, q_len, kv_len, 1, 1, 8, "bfloat16", causal, window, None, False, scale=1.0, logit_softcap=None)
    rows, length = (kv_len, q_len) if of_keys else (q_len, kv_len)
    first = np.arange(0, rows, size)

    def visits(offset, row):
        seeing = queries_seeing(call, row - offset, size) if of_keys else keys_seen(call, row + offset, size)

        def step(start, counts, masked):
            return counts.at[start // block].add(jnp.array([1, not masked]))

        return walk(call, step, jnp.zeros((-(-length // block), 2), "int32"), seeing, length, block)

    every_tile = jax.vmap(jax.vmap(visits, (None, 0)), (0, None))
    for offset, counts in zip(offsets, np.asarray(jit(every_tile)(offsets, first)), strict=True):
        # A tile that reaches past the end visits what it would if there were more.
        longer = {"kv_len" if of_keys else "q_len": len(first) * size}
        some, every = by_tile(replace(call, q_offset=int(offset), **longer), of_keys, size, block)
        every[:, -1] &= length % block == 0  # rows past the end are masked as they are loaded
        visited, whole = counts[..., 0], counts[..., 1]
        check(visited, some)
        np.testing.assert_array_equal(whole, some & every if window is None else 0)


@pytest.mark.slow
@settings(max_examples=200)
@given(CALLS, st.booleans())
def test_the_mosaic_gpu_kernels(call, of_keys):
    tiling = Tiling(call, of_keys, rows=8, block=8, stages=2)
    size = tiling.groups * tiling.rows
    some, every = by_tile(call, of_keys, size, tiling.block)
    if not of_keys:
        every[:, -1] &= call.kv_len % tiling.block == 0
    first = np.arange(0, tiling.length, size)
    last = np.minimum(first + size, tiling.length) - 1
    block = np.arange(some.shape[1])
    start, whole_start, whole_stop, stop = (np.asarray(x)[:, None] for x in tiling.span(first, last, call.q_offset))
    whole = (whole_start <= block) & (block < whole_stop)
    check((start <= block) & (block < stop), some)
    np.testing.assert_array_equal(whole[:, :-1], (some & every)[:, :-1])
    assert not np.any(whole & ~every)  # the block that the array ends in may have a mask that it could do without


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(CALLS)
def test_pairs_that_see_each_other_are_those_of_the_mask(call: Call) -> None:
    """The work that kernels declare."""
    mask = call.mask(None, None).block(0, call.q_len, 0, call.kv_len)
    everyone = call.q_len * call.kv_len
    assert call.seen_pairs() == (everyone if mask is None else int(np.asarray(mask).sum()))
    last = replace(call, q_offset=call.kv_len - call.q_len)
    assert replace(call, q_offset=None).seen_pairs() == last.seen_pairs()

"""Each implementation of decode_attention against the definition in float64 NumPy, with NaN wherever no query looks."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from harness import EVERYWHERE, TOLERANCE, jit, relative_error, running
from hypothesis import given
from hypothesis import strategies as st

from jax_kernels._ops.attention import attention, attention_with_lse
from jax_kernels._ops.decode_attention import (
    DECODE_ATTENTION,
    decode_attention,
    decode_attention_with_lse,
    gather_pages,
    write_pages,
)
from jax_kernels._ops.decode_attention.cases import SMALL_CASES, Case

KERNELS = ("pallas_triton", "pallas_tpu")
SLOW_KERNELS = [pytest.param(name, marks=pytest.mark.slow) for name in KERNELS]
SPARE_PAGES = 2


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def named(name):
    return next(case for case in SMALL_CASES if case.name == name)


def capacity(case):
    return case.page_size * case.pages_per_row


def seen_by(case, length):
    """Positions that the query of a row of this length sees."""
    return range(0 if case.window is None else max(0, length - case.window), length)


def arrays(case, lengths=None, seed=0, dtype="float64", garbage=True):
    """q, k_pages, v_pages, page_table and lengths. What no query sees is NaN in pages, and anything in the table."""
    rng = np.random.default_rng(seed)
    num_pages = case.batch * case.pages_per_row + SPARE_PAGES
    if lengths is None:
        lengths = [capacity(case), *rng.integers(1, capacity(case) + 1, case.batch - 1)]
    table = rng.permutation(num_pages)[: case.batch * case.pages_per_row].reshape(case.batch, -1)
    q = rng.normal(size=(case.batch, case.num_heads, case.head_dim))
    pages = (case.num_kv_heads, num_pages, case.page_size, case.head_dim)
    k, v = (rng.normal(size=pages) for _ in range(2))
    if garbage:
        used = np.zeros(pages[1:3], bool)
        wrong = rng.choice([-(2**31), -1, num_pages, 2**31 - 1], size=table.shape)
        for row, length in enumerate(lengths):
            for position in seen_by(case, length):
                page, place = divmod(position, case.page_size)
                used[table[row, page], place] = True
                wrong[row, page] = table[row, page]
        k, v, table = np.where(used[..., None], k, np.nan), np.where(used[..., None], v, np.nan), wrong
    rounded = [jnp.asarray(x, dtype) for x in (q, k, v)]
    return *rounded, jnp.asarray(table, jnp.int32), jnp.asarray(lengths, jnp.int32)


def defined(case, q, k_pages, v_pages, page_table, lengths):
    """The output and the log-sum-exp, one row and head at a time, as the definition reads."""
    q, k_pages, v_pages, page_table = (np.asarray(x) for x in (q, k_pages, v_pages, page_table))
    q, k_pages, v_pages = (x.astype(np.float64) for x in (q, k_pages, v_pages))
    out, lse = np.zeros(q.shape), np.full(q.shape[:2], -np.inf)
    for row, head in np.ndindex(*lse.shape):
        positions = [divmod(p, case.page_size) for p in seen_by(case, int(lengths[row]))]
        if not positions:
            continue
        kv_head = head // (case.num_heads // case.num_kv_heads)
        keys, values = (
            np.stack([x[kv_head, page_table[row, page], place] for page, place in positions])
            for x in (k_pages, v_pages)
        )
        scores = keys @ q[row, head] / math.sqrt(case.head_dim)
        if case.logit_softcap:
            scores = case.logit_softcap * np.tanh(scores / case.logit_softcap)
        weights = np.exp(scores - scores.max())
        lse[row, head] = scores.max() + np.log(weights.sum())
        out[row, head] = weights @ values / weights.sum()
    return out, lse


def run(case, implementation, operands):
    options = {"window": case.window, "logit_softcap": case.logit_softcap}
    return jit(lambda *a: decode_attention_with_lse(*a, implementation=implementation, **options))(*operands)


def call_of(case, operands):
    q, k_pages, *_ = operands
    return dataclasses.replace(case.call(q.dtype.name), num_pages=k_pages.shape[1], return_lse=True)


def agree(got, want, dtype):
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < TOLERANCE[dtype]


@pytest.mark.covering(1)
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_every_form_is_the_definition(float64, implementation, case):
    operands = arrays(case)
    for a, b in zip(run(case, implementation, operands), defined(case, *operands), strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("name", ["grouped heads", "pages of 128, window, capped"])
def test_precision(name, implementation, dtype):
    operands = arrays(named(name), dtype=dtype)
    got = run(named(name), implementation, operands)
    assert [x.dtype for x in got] == [jnp.dtype(dtype), jnp.float32]
    agree(got, defined(named(name), *operands), dtype)


@pytest.mark.covering(1, "implementation")
@pytest.mark.filterwarnings("error:decode_attention")
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("implementation", KERNELS)
def test_a_kernel(implementation, case):
    operands = arrays(case, dtype="float32")
    with running(DECODE_ATTENTION, implementation, call_of(case, operands)):
        agree(run(case, implementation, operands), defined(case, *operands), "float32")


@pytest.mark.slow
@pytest.mark.filterwarnings("error:decode_attention")
@pytest.mark.parametrize(("implementation", "dtype"), [(f, d) for f in KERNELS for d in ("float16", "bfloat16")])
def test_a_kernel_in_half_precision(implementation, dtype):
    case = named("grouped heads")
    operands = arrays(case, dtype=dtype)
    with running(DECODE_ATTENTION, implementation, call_of(case, operands)):
        got = run(case, implementation, operands)
    assert [x.dtype for x in got] == [jnp.dtype(dtype), jnp.float32]
    agree(got, defined(case, *operands), dtype)


def triton(block_k, parts):
    return "pallas_triton", (("block_k", block_k), ("parts", parts), ("num_warps", 4), ("num_stages", 2))


def tpu(heads, pages):
    return "pallas_tpu", (("heads", heads), ("pages", pages))


PIECES = [("xla", (("piece", 32),)), triton(16, 1), triton(32, 3), tpu(1, 2), tpu(2, 4)]


@pytest.mark.slow
@pytest.mark.parametrize(("implementation", "config"), PIECES)
@pytest.mark.parametrize("name", ["window over pages", "long rows"])
def test_however_rows_are_cut(name, implementation, config):
    """Blocks that no row's length divides, parts of rows that are left empty, a last block that is cut short."""
    case = dataclasses.replace(named(name), batch=4)
    operands = arrays(case, lengths=[0, 1, capacity(case) - 5, 33], dtype="float32")
    call = call_of(case, operands)
    with running(DECODE_ATTENTION, implementation, call):
        got = jit(lambda *a: DECODE_ATTENTION.implementations[implementation].run(call, config, *a))(*operands)
    agree(got, defined(case, *operands), "float32")


drawn = given(
    lengths=st.lists(st.integers(0, 64), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    page=st.sampled_from([(16, 4), (32, 2)]),
    window=st.none() | st.integers(1, 70),
    cap=st.none() | st.floats(0.5, 20.0),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)


@pytest.mark.slow
@examples(4)
@drawn
def test_any_call(lengths, heads, page, window, cap, dtype):
    check_drawn("xla", lengths, heads, page, window, cap, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", KERNELS)
@examples(2)
@drawn
def test_any_call_of_a_kernel(implementation, lengths, heads, page, window, cap, dtype):
    check_drawn(implementation, lengths, heads, page, window, cap, dtype)


def check_drawn(implementation, lengths, heads, page, window, cap, dtype):
    case = Case("drawn", len(lengths), *heads, 16, *page, window, cap)
    operands = arrays(case, lengths, dtype=dtype)
    with running(DECODE_ATTENTION, implementation, call_of(case, operands)):
        agree(run(case, implementation, operands), defined(case, *operands), dtype)


@pytest.mark.parametrize(
    "implementation",
    [
        pytest.param(name, marks=pytest.mark.representative("an answer in company")) if name == "pallas_tpu" else name
        for name in (*EVERYWHERE, *KERNELS)
    ],
)
def test_what_no_query_sees_changes_no_bit(implementation):
    case = named("window over pages")
    lengths = [capacity(case) - 20, 0]
    clean = arrays(case, lengths, dtype="float32", garbage=False)
    with running(DECODE_ATTENTION, implementation, call_of(case, clean)):
        results = [run(case, implementation, operands) for operands in (clean, arrays(case, lengths, dtype="float32"))]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(results[0][0][1])
    assert np.all(np.isneginf(results[0][1][1]))


@pytest.mark.parametrize("implementation", [*EVERYWHERE, *SLOW_KERNELS])
def test_a_length_that_no_table_holds_counts_as_the_nearest_one(implementation):
    case = named("window shorter than a page")
    operands = arrays(case, [capacity(case), 0], dtype="float32")
    beyond = (*operands[:4], jnp.asarray([capacity(case) + 40, -3], jnp.int32))
    with running(DECODE_ATTENTION, implementation, call_of(case, operands)):
        agree(run(case, implementation, beyond), defined(case, *operands), "float32")


@pytest.mark.parametrize("implementation", [*EVERYWHERE, *SLOW_KERNELS])
def test_gradients_are_those_of_attention(implementation):
    case = named("grouped heads")
    *given_arrays, table, lengths = arrays(case, [capacity(case)] * 2, dtype="float32", garbage=False)
    weight, lse_weight = (jnp.asarray(np.random.default_rng(1).normal(size=n), jnp.float32) for n in ((2, 8, 16), 8))

    def scalar(out, lse):
        return jnp.sum(out * weight) + jnp.sum(lse * lse_weight)

    def by_form(*arrays):
        return scalar(*decode_attention_with_lse(*arrays, table, lengths, implementation=implementation))

    def by_attention(q, k_pages, v_pages):
        out, lse = attention_with_lse(q[:, None], gather_pages(k_pages, table), gather_pages(v_pages, table))
        return scalar(out[:, 0], lse[..., 0])

    want = jit(jax.grad(by_attention, (0, 1, 2)))(*given_arrays)
    with running(DECODE_ATTENTION, implementation, call_of(case, (*given_arrays, table, lengths))):
        agree(jit(jax.grad(by_form, (0, 1, 2)))(*given_arrays), want, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("window", [np.int64(20), np.int32(200), 2**40])
def test_a_window_that_attention_takes(window):
    case = dataclasses.replace(named("window over pages"), window=int(window))
    operands = arrays(case, dtype="float32")
    q = operands[0][:, None]
    attention(q, q, q, window=window)
    agree([decode_attention(*operands, window=window)], defined(case, *operands)[:1], "float32")


@pytest.mark.slow
def test_gradients_of_what_no_query_sees_are_zeros():
    case = named("window over pages")
    *given_arrays, table, lengths = arrays(case, [30, 0], dtype="float32")
    scalar = lambda *a: jnp.sum(decode_attention(*a, table, lengths, window=20))  # noqa: E731
    gradients = jit(jax.grad(scalar, (0, 1, 2)))(*given_arrays)
    for gradient, array in zip(gradients, given_arrays, strict=True):
        assert np.all(np.isfinite(gradient))
        assert not np.any(gradient[np.isnan(array)])


@pytest.mark.slow
def test_partial_results_combine_by_their_log_sum_exp():
    q, k_pages, v_pages, table, lengths = arrays(named("head_dim of Llama"), [70, 45], dtype="float32")
    part = jit(lambda table, lengths: decode_attention_with_lse(q, k_pages, v_pages, table, lengths))
    parts = [part(table[:, :3], lengths), part(table[:, 3:], jnp.clip(lengths - 48, 0))]
    total = jnp.logaddexp(parts[0][1], parts[1][1])
    combined = sum(out * jnp.exp(lse - total)[..., None] for out, lse in parts)
    assert relative_error(combined, part(table, lengths)[0]) < 1e-6


@pytest.mark.slow
def test_a_prompt_and_steps_after_it_are_attention():
    """As generation goes: a prompt is written and read at once, then a token at a time is written and attends."""
    rng = np.random.default_rng(0)
    batch, length, prompt, heads, kv_heads, head_dim, page_size = 2, 37, 20, 4, 2, 16, 16
    q = jnp.asarray(rng.normal(size=(batch, length, heads, head_dim)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(batch, length, kv_heads, head_dim)), jnp.float32) for _ in range(2))
    want = attention(q, k, v, causal=True, window=18)
    table = jnp.asarray(rng.permutation(6).reshape(batch, 3), jnp.int32)
    pages = [jnp.full((kv_heads, 6, page_size, head_dim), jnp.nan)] * 2

    @jit
    def step(pages, q, k, v, start):
        written = [write_pages(x, table, start, new) for x, new in zip(pages, (k, v), strict=True)]
        return written, decode_attention(q[:, 0], *written, table, start + 1, window=18)

    start = jnp.zeros(batch, jnp.int32)
    pages = [jit(write_pages)(x, table, start, new[:, :prompt]) for x, new in zip(pages, (k, v), strict=True)]
    for x, new in zip(pages, (k, v), strict=True):
        np.testing.assert_array_equal(gather_pages(x, table)[:, :prompt], new[:, :prompt])
    for at in range(prompt, length):
        token = slice(at, at + 1)
        pages, out = step(pages, q[:, token], k[:, token], v[:, token], jnp.full(batch, at, jnp.int32))
        assert relative_error(out, want[:, at]) < 1e-6


@examples(12)
@given(
    start=st.lists(st.integers(-9, 60) | st.sampled_from([-(2**31), 2**31 - 1]), min_size=2, max_size=2),
    seq=st.sampled_from([1, 7, 40]),
    missing=st.sets(st.integers(0, 5)),
)
def test_pages_are_written_where_the_table_says_and_nowhere_else(start, seq, missing):
    rng = np.random.default_rng(0)
    pages = rng.normal(size=(2, 7, 16, 4)).astype(np.float32)
    values = rng.normal(size=(2, seq, 2, 4)).astype(np.float32)
    table = rng.permutation(7)[:6].reshape(2, 3)
    table.flat[sorted(missing)] = [(-1, 7, 2**31 - 1, -(2**31))[i % 4] for i in sorted(missing)]
    want = pages.copy()
    for row, i in np.ndindex(2, seq):
        page, place = divmod(start[row] + i, 16)
        if 0 <= page < 3 and 0 <= table[row, page] < 7:
            want[:, table[row, page], place] = values[row, i]
    table, start = (jnp.asarray(x, jnp.int32) for x in (table, start))
    np.testing.assert_array_equal(jit(write_pages)(jnp.asarray(pages), table, start, jnp.asarray(values)), want)


@pytest.mark.parametrize("seq", [1, 40])
def test_donated_pages_are_written_in_place(seq):
    """The compiled program copies pages where it must leave the caller's as they are, and not otherwise."""
    shapes = {
        "pages": jax.ShapeDtypeStruct((4, 512, 16, 32), jnp.float32),
        "page_table": jax.ShapeDtypeStruct((2, 8), jnp.int32),
        "start": jax.ShapeDtypeStruct((2,), jnp.int32),
        "values": jax.ShapeDtypeStruct((2, seq, 4, 32), jnp.float32),
    }
    copies = []
    for donated in ((), ("pages",)):
        compiled = jax.jit(write_pages, donate_argnames=donated).lower(**shapes).compile()
        arrays_of_pages = re.findall(r"f32\[4,(?:512,16|8192),32\]\S* (\w+)\(", compiled.as_text())
        copies.append(arrays_of_pages.count("copy"))
    assert copies == [1, 0]
    assert compiled.memory_analysis().temp_size_in_bytes < math.prod(shapes["pages"].shape)  # a quarter of their bytes


GOOD = {
    "q": ((2, 4, 16), "float32"),
    "k_pages": ((2, 6, 16, 16), "float32"),
    "v_pages": ((2, 6, 16, 16), "float32"),
    "page_table": ((2, 3), "int32"),
    "lengths": ((2,), "int32"),
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"q": ((2, 1, 4, 16), "float32")}, "q:"),
        ({"q": ((2, 4, 16), "int32")}, "q:"),
        ({"k_pages": ((2, 6, 16), "float32")}, "k_pages:"),
        ({"k_pages": ((2, 0, 16, 16), "float32")}, "k_pages:"),
        ({"k_pages": ((2, 6, 16, 8), "float32")}, "k_pages:"),
        ({"k_pages": ((2, 6, 16, 16), "bfloat16")}, "k_pages:"),
        ({"k_pages": ((3, 6, 16, 16), "float32")}, "k_pages:"),
        ({"v_pages": ((2, 7, 16, 16), "float32")}, "v_pages:"),
        ({"v_pages": ((2, 6, 16, 16), "bfloat16")}, "v_pages:"),
        ({"page_table": ((3, 3), "int32")}, "page_table:"),
        ({"page_table": ((2,), "int32")}, "page_table:"),
        ({"page_table": ((2, 0), "int32")}, "page_table:"),
        ({"page_table": ((2, 3), "float32")}, "page_table:"),
        ({"lengths": ((3,), "int32")}, "lengths:"),
        ({"lengths": ((2,), "float32")}, "lengths:"),
        ({"window": 0}, "window:"),
        ({"window": 2.5}, "window:"),
        ({"scale": math.nan}, "scale:"),
        ({"logit_softcap": -1.0}, "logit_softcap:"),
        ({"implementation": "fastest"}, "implementation:"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    values = {**GOOD, **changes}
    operands = [jnp.zeros(*values.pop(name)) for name in GOOD]
    with pytest.raises(ValueError, match=f"^{named} expected"):
        decode_attention(*operands, **values)


WRITTEN = {
    "pages": ((2, 6, 16, 4), "float32"),
    "page_table": ((2, 3), "int32"),
    "start": ((2,), "int32"),
    "values": ((2, 1, 2, 4), "float32"),
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pages": ((2, 6, 16), "float32")}, "pages:"),
        ({"pages": ((2, 6, 16, 4), "int32")}, "pages:"),
        ({"page_table": ((6,), "int32")}, "page_table:"),
        ({"page_table": ((), "int32")}, "page_table:"),
        ({"start": ((), "int32")}, "start:"),
        ({"start": ((2,), "float32")}, "start:"),
        ({"values": ((2, 2, 4), "float32")}, "values:"),
        ({"values": ((2, 1, 4, 2), "float32")}, "values:"),
        ({"values": ((2, 1, 2, 4), "bfloat16")}, "values:"),
    ],
)
def test_what_cannot_be_written_is_named(changes, named):
    operands = [jnp.zeros(*value) for value in {**WRITTEN, **changes}.values()]
    with pytest.raises(ValueError, match=f"^{named} expected"):
        write_pages(*operands)


def test_rows_that_cannot_be_gathered_are_named():
    with pytest.raises(ValueError, match=r"^pages: expected"):
        gather_pages(jnp.zeros((2, 3)), jnp.zeros((1, 1), jnp.int32))
    with pytest.raises(ValueError, match=r"^page_table: expected"):
        gather_pages(jnp.zeros((2, 3, 16, 4)), jnp.zeros(3, jnp.int32))

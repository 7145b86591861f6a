"""Each implementation of attention against its definition in float64 NumPy: values and gradients."""

import ast
import contextlib
import math
import random
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from harness import EVERYWHERE, TOLERANCE, in_another_process, jit, kernel_device, relative_error, runnable, running
from hypothesis import Phase, given
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

import jax_kernels
from jax_kernels._ops.attention import ATTENTION, attention, attention_with_lse
from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.cases import SMALL_CASES
from jax_kernels.dispatch import Choices, using
from jax_kernels.implementations import Device, current_device
from jax_kernels.versions import limit_of

BLOCK = {"xla": 16, "pallas_triton": 16, "pallas_mosaic_gpu": 64, "pallas_tpu": 128}
"""The shortest block of each implementation: so that few rows make many blocks."""

OFFSETS = {"xla": 16, "pallas_triton": 16, "pallas_mosaic_gpu": 1, "pallas_tpu": 1}
"""At how many a program is run that traces them: all that a block can be cut at, where that takes no time."""

HALF = ("bfloat16", "float16")
AS_DRAWN = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without a search for a smaller example, which would compile many more."""

CPU = Device("cpu", "cpu")
JAX_ATTENTION = jax.nn.dot_product_attention
KERNELS = runnable("pallas_triton", "pallas_mosaic_gpu", "pallas_tpu")


def arrays(call, seed=0):
    """q, k, v, segment ids if any, and gradients of the output and of the log-sum-exp."""
    rng = np.random.default_rng(seed)
    q_shape = (call.batch, call.q_len, call.num_heads, call.head_dim)
    k_shape = (call.batch, call.kv_len, call.num_kv_heads, call.head_dim)
    q, k, v, d_out = (rng.normal(size=shape).astype(call.dtype) for shape in (q_shape, k_shape, k_shape, q_shape))
    ids = np.sort(rng.integers(0, 4, (call.batch, call.q_len)), axis=1).astype(np.int32)
    # As large as what it is added to, which is a sum over head_dim, so that the two seldom cancel.
    d_lse = math.sqrt(call.head_dim) * rng.normal(size=(call.batch, call.num_heads, call.q_len))
    wide = "float64" if call.dtype == "float64" else "float32"
    return q, k, v, ids if call.has_segments else None, d_out, d_lse.astype(wide)


def defined(call, q, k, v, ids, d_out, d_lse):
    """Output, log-sum-exp, and the gradients of q, k and v."""
    q, k, v, d_out = (x.astype(np.float64) for x in (q, k, v, d_out))
    keys, values = (np.repeat(x, call.group, axis=2) for x in (k, v))
    at, key = np.arange(call.q_len)[:, None] + call.q_offset, np.arange(call.kv_len)
    seen = np.ones((call.batch, 1, call.q_len, call.kv_len), bool)
    if call.causal:
        seen &= key <= at
    if call.window is not None:
        seen &= key > at - call.window
    if ids is not None:
        seen &= (ids[:, :, None] == ids[:, None, :])[:, None]
    scores, slope = call.scale * np.einsum("bqhd,bkhd->bhqk", q, keys), call.scale
    if call.logit_softcap is not None:
        capped = np.tanh(scores / call.logit_softcap)
        scores, slope = call.logit_softcap * capped, call.scale * (1.0 - capped**2)
    weights = np.where(seen, np.exp(scores), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    p = weights / np.where(total == 0.0, 1.0, total)
    d_p = np.einsum("bqhd,bkhd->bhqk", d_out, values)
    d_scores = p * (d_p - (p * d_p).sum(axis=-1, keepdims=True) + d_lse[..., None]) * slope
    shared = (np.einsum("bhqk,bqhd->bkhd", *pair) for pair in ((d_scores, q), (p, d_out)))
    d_k, d_v = (x.reshape(*k.shape[:3], call.group, call.head_dim).sum(axis=3) for x in shared)
    with np.errstate(divide="ignore"):
        lse = np.log(total[..., 0])
    return np.einsum("bhqk,bkhd->bqhd", p, values), lse, np.einsum("bhqk,bkhd->bqhd", d_scores, keys), d_k, d_v


def computed(implementation, call, offset, block, q, k, v, ids, d_out, d_lse):
    config = ATTENTION.implementations[implementation].configs(call, kernel_device(implementation))[0]
    config = tuple((name, block if block and "block" in name else size) for name, size in config)
    out, pull = jax.vjp(
        lambda *x: ATTENTION.implementations[implementation].run(call, config, *x, offset, ids), q, k, v
    )
    return *out, *pull((d_out, d_lse))


def check(implementation, call, *, traced=(), block=None, tolerance=None):
    """An implementation's results in its own blocks, or of `block` rows; at `traced` offsets, or at the call's."""
    given_arrays = arrays(call)
    dtypes = [call.dtype, given_arrays[-1].dtype.name, *[call.dtype] * 3]
    as_run = replace(call, return_lse=True, q_offset=None if traced else call.q_offset)
    program = jit(partial(computed, implementation, as_run), static_argnums=1)
    # The kernels ask for the highest precision themselves.
    highest = jax.default_matmul_precision("highest")
    with (
        jax.enable_x64(call.dtype == "float64"),
        highest if implementation in EVERYWHERE else running(ATTENTION, implementation, as_run),
    ):
        for offset in traced or (call.q_offset,):
            results = program(jnp.int32(offset) if traced else None, block, *given_arrays)
            assert [x.dtype.name for x in results] == dtypes
            wanted = defined(replace(call, q_offset=offset), *given_arrays)
            for name, got, want in zip(("out", "lse", "d_q", "d_k", "d_v"), results, wanted, strict=True):
                assert relative_error(got, want) < (tolerance or TOLERANCE[call.dtype]), (name, offset)


def case(name, dtype):
    return next(case for case in SMALL_CASES if case.name == name).call(dtype)


def calls(implementation, dtypes):
    """Calls with enough blocks for masks to hide some, show others whole and cut through the rest; and traced offsets.

    Drawn by way of a seed: left to itself, Hypothesis has a few dozen examples small and much like each other.
    """

    def draw(seed):
        rng, block = random.Random(seed), BLOCK[implementation]
        has_segments, is_traced, q_len = rng.random() < 0.3, rng.random() < 0.5, rng.randint(1, 3 * block)
        num_heads, num_kv_heads = rng.choice([(1, 1), (4, 2), (3, 1)])
        call = Call(
            batch=rng.randint(1, 2),
            q_len=q_len,
            kv_len=q_len if has_segments else rng.randint(1, 3 * block),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=rng.choice([8, 16, 24]),
            dtype=rng.choice(dtypes),
            causal=rng.random() < 0.6,
            window=rng.choice([None, rng.randint(1, 2 * block)]),
            q_offset=rng.choice([0, rng.randint(-block, 2 * block)]),
            has_segments=has_segments,
            scale=rng.choice([0.5, 0.2] if implementation == "pallas_mosaic_gpu" else [0.5, -0.5]),
            logit_softcap=rng.choice([None, 1.0, 4.0]),
        )
        return call, range(call.q_offset, call.q_offset + OFFSETS[implementation]) if is_traced else ()

    return st.integers(0, 2**32 - 1).map(draw)


# Together each mask and offset, grouped heads, and a short last block. Rows that see nothing have a test of their own.
CORNERS = ("window without a causal mask", "packed, windowed, capped", "a later piece of a long row")


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize(
    "small",
    [case if case.name in CORNERS else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_CASES],
    ids=[case.name for case in SMALL_CASES],
)
def test_every_case(implementation, small):
    call = small.call("float64")
    check(implementation, call, traced=[call.q_offset] if call.q_offset else (), tolerance=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_precision_of_the_reference(dtype):
    check("reference", case("packed, windowed, capped", dtype))


@pytest.mark.slow
@examples(5, phases=AS_DRAWN)
@given(calls("xla", (*TOLERANCE, "float64")))
def test_any_call(drawn):
    call, traced = drawn
    check("xla", call, traced=traced, block=BLOCK["xla"], tolerance=1e-12 if call.dtype == "float64" else None)


@pytest.mark.covering(1, "implementation")
@pytest.mark.parametrize("name", ["packed, windowed, capped", "one query against a cache", "head_dim of Gemma"])
@pytest.mark.parametrize(
    "implementation",
    [
        pytest.param(name, marks=pytest.mark.representative("a kernel")) if name == "pallas_tpu" else name
        for name in KERNELS
    ],
)
def test_a_kernel(implementation, name):
    check(implementation, case(name, HALF[0] if implementation == "pallas_mosaic_gpu" else "float32"))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", KERNELS)
@examples(2, phases=AS_DRAWN)
@given(st.data())
def test_any_call_of_a_kernel(implementation, data):
    call, traced = data.draw(calls(implementation, HALF if implementation == "pallas_mosaic_gpu" else tuple(TOLERANCE)))
    check(implementation, call, traced=traced, block=BLOCK[implementation])


@pytest.mark.slow
@pytest.mark.skipif("pallas_mosaic_gpu" in KERNELS, reason="this process runs them")
@pytest.mark.skipif(
    limit_of("attention", "pallas_mosaic_gpu", interpreting=True) is not None,
    reason=str(limit_of("attention", "pallas_mosaic_gpu", interpreting=True)),
)
def test_mosaic_gpu():
    in_another_process(__file__, "pallas_mosaic_gpu")


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_rows_that_see_nothing(implementation):
    """Zeros and no gradient, whatever is asked of their log-sum-exp, which is -inf."""
    check(implementation, replace(case("one block", "float32"), q_offset=-20))


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("empty", ["batch", "q_len", "kv_len", "num_heads"])
def test_empty_arrays(implementation, empty):
    q, k, v, _, d_out, d_lse = arrays(replace(case("grouped heads", "float32"), **{empty: 0}))

    def program(q, k, v, d_out, d_lse):
        results, pull = jax.vjp(lambda *x: attention_with_lse(*x, implementation=implementation), q, k, v)
        return *results, *pull((d_out, d_lse))

    out, lse, *gradients = jit(program)(q, k, v, d_out, d_lse)
    assert np.all(np.isneginf(lse))
    for x, result in zip((q, q, k, v), (out, *gradients), strict=True):
        assert result.shape == x.shape
        assert not np.any(result)


@pytest.mark.parametrize("implementation", [*EVERYWHERE, *KERNELS])
def test_the_function(implementation):
    """Each option reaches each implementation."""
    call = replace(case("packed, windowed, capped", "bfloat16"), q_len=20, kv_len=20, window=7, q_offset=1, scale=0.4)
    given_arrays = arrays(call)
    q, k, v, ids, *_ = map(jnp.asarray, given_arrays)
    options = {"causal": True, "window": 7, "segment_ids": ids, "scale": 0.4, "logit_softcap": 3.0, "q_offset": 1}
    with contextlib.nullcontext() if implementation in EVERYWHERE else running(ATTENTION, implementation, call):
        results = jit(partial(attention_with_lse, **options, implementation=implementation))(q, k, v)
    for got, want in zip(results, defined(call, *given_arrays), strict=False):
        assert relative_error(got, want) < TOLERANCE["bfloat16"]


def call_of(q_len=8, kv_len=8, heads=2, **options):
    """The call that an implementation is chosen for."""
    q, k = (jax.ShapeDtypeStruct((1, length, heads, 8), "float32") for length in (q_len, kv_len))
    with using(Choices()) as choices:
        jax.eval_shape(partial(attention, **options), q, k, k)
    ((_, call),) = choices.seen_calls.values()
    return call


def test_a_mask_that_hides_nothing_is_none():
    assert call_of(causal=True, window=8) == call_of(causal=True, window=2**70) == call_of(causal=True)
    assert call_of(causal=True, window=7).window == 7
    assert call_of(q_len=1, causal=True, q_offset=7) == call_of(q_len=1)
    assert call_of(q_len=1, causal=True, q_offset=6).causal
    assert call_of(window=10, q_offset=jnp.int32(2)).window == 10
    assert call_of(q_offset=jnp.int32(2)) == call_of()


def test_partial_results_combine_by_their_log_sum_exp():
    def combined(q, k, v):
        parts = [attention_with_lse(q, k[:, s], v[:, s]) for s in (slice(0, 30), slice(30, None))]
        total = jnp.logaddexp(parts[0][1], parts[1][1])
        return sum(out * jnp.exp(lse - total).transpose(0, 2, 1)[..., None] for out, lse in parts)

    call = case("everything seen", "float32")
    given_arrays = arrays(call)
    out, *_ = defined(call, *given_arrays)
    assert relative_error(jit(combined)(*given_arrays[:3]), out) < 1e-6


@pytest.mark.slow
def test_the_hidden_half_is_not_computed():
    """A causal mask costs about half of the products (62 % in 4 blocks, 53 % in 16)."""
    q = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.float32)

    def flops(causal):
        compiled = jit(lambda q, k, v: attention(q, k, v, causal=causal)).lower(q, q, q).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(True) < 0.65 * flops(False)


@pytest.mark.slow
@pytest.mark.skipif(
    jax.__version_info__ < (0, 11),
    reason="XLA's CPU backend of JAX 0.10.2 removes the barrier before it merges products",
)
def test_memory_does_not_hold_the_scores_of_all_layers():
    """Were they kept for the backward pass, each layer would add as much as its scores take."""
    x = jax.ShapeDtypeStruct((1, 1024, 8, 16), jnp.float32)
    (config,) = {
        config[1:]
        for config in ATTENTION.implementations["xla"].configs(call_of(1024, 1024, heads=8, causal=True), CPU)
    }
    assert config == (("keep_scores", 0),)

    def temporary(layers):
        def network(x):
            for _ in range(layers):
                x = x + attention(x, x, x, causal=True, implementation="xla")
            return jnp.sum(x)

        return jit(jax.grad(network)).lower(x).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 8 * 1024 * 1024 / 2
    assert temporary(3) - temporary(1) < scores


def test_small_scores_are_kept():
    """They take little memory, and forming them takes time."""
    call = call_of(256, 256, causal=True)
    assert dict(ATTENTION.implementations["xla"].configs(call, CPU)[0])["keep_scores"] == 1


PACKED = Call(2, 16, 16, 4, 2, 16, "bfloat16", True, None, 0, True, 0.3, None)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"window": 5}, {"causal": False}], ids=str)
def test_cudnn_with_a_mask_is_asked_for_what_packed_rows_mean(changes, monkeypatch):
    """No GPU is here, so JAX's XLA implementation answers. A segment has two pieces."""
    call = replace(PACKED, **changes)
    q, k, v, _, d_out, _ = arrays(call)
    ids = np.array([[0] * 5 + [1] * 6 + [0] * 5, [-3] * 16], np.int32)
    asked = []

    def dot_product_attention(*operands, implementation, **options):
        asked.append(implementation)
        return JAX_ATTENTION(*operands, **options, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
    found = [
        jit(program)((q, k, v), (None, ids), d_out)
        for implementation in (ATTENTION.implementations["cudnn_masked"], ATTENTION.implementations["reference"])
        for program, _ in [ATTENTION.workload(call, implementation.run, ())]
    ]
    assert set(asked) == {"cudnn"}
    for got, want in zip(*map(jax.tree.leaves, found), strict=True):
        assert relative_error(got, want) < 2 * TOLERANCE["bfloat16"]


def test_cudnn_with_a_mask_lowers_for_gpus(monkeypatch):
    """Forward and backward are one call of cuDNN each, with the mask as its bias."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91300)
    call = replace(PACKED, q_len=128, kv_len=128, head_dim=64)
    program, make = ATTENTION.workload(call, ATTENTION.implementations["cudnn_masked"].run, ())
    text = jax.jit(program).trace(*jax.eval_shape(make)).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\S+?)\(", text)
    assert calls == ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]


def test_users_of_triton_are_not_warned():
    """JAX 0.12 calls it deprecated, in a warning that Python does not show."""
    gpu = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("device",), axis_types=(AxisType.Auto,), abstract_device=gpu)
    implementation, call = ATTENTION.implementations["pallas_triton"], case("one block", "bfloat16")
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="jax")
        program, make = ATTENTION.workload(call, implementation.run, implementation.configs(call, current_device())[0])
        lowered = jax.jit(program).trace(*jax.eval_shape(make)).lower(lowering_platforms=("cuda",))
    assert "triton" in lowered.as_text()


GOOD = {"q": (2, 8, 4, 16), "k": (2, 8, 2, 16), "v": (2, 8, 2, 16)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"q": (8, 4, 16)}, "q:"),
        ({"q": (2, 8, 4, 0)}, "q:"),
        ({"k": (3, 8, 2, 16)}, "k:"),
        ({"k": (2, 8, 2, 8)}, "k:"),
        ({"k": (2, 8, 3, 16), "v": (2, 8, 3, 16)}, "k:"),
        ({"v": (2, 9, 2, 16)}, "v:"),
        ({"window": 0}, "window:"),
        ({"window": -3}, "window:"),
        ({"window": 2.0}, "window:"),
        ({"scale": float("nan")}, "scale:"),
        ({"logit_softcap": -1.0}, "logit_softcap:"),
        ({"q_offset": 1.5}, "q_offset:"),
        ({"q_offset": 2**31}, "q_offset:"),
        ({"q_offset": np.zeros(2, np.int32)}, "q_offset:"),
        ({"segment_ids": np.zeros((2, 7), np.int32)}, "segment_ids:"),
        ({"segment_ids": np.zeros((2, 8), np.float32)}, "segment_ids:"),
        ({"segment_ids": np.zeros((2, 8), np.int32), "k": (2, 9, 2, 16), "v": (2, 9, 2, 16)}, "segment_ids:"),
        ({"segment_ids": np.zeros((2, 2, 8), np.int32)}, "segment_ids:"),
        ({"implementation": "fastest"}, "implementation:"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    values = {**GOOD, **changes}
    q, k, v = (jnp.zeros(values.pop(name), jnp.float32) for name in ("q", "k", "v"))
    if "segment_ids" in values:
        ids = jnp.asarray(values["segment_ids"])
        values["segment_ids"] = tuple(ids) if ids.ndim == 3 else ids
    with pytest.raises(ValueError, match=f"^{named} expected"):
        attention(q, k, v, **values)


@pytest.mark.covering(1)
@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("is_traced", [True, False])
@pytest.mark.slow
def test_a_piece_of_packed_rows_is_that_of_the_whole_rows(implementation, is_traced):
    """Queries have segment ids of their own where they are fewer than the keys."""
    call = replace(case("packed documents", "float32"), q_len=60, kv_len=60)
    q, k, v, ids, d_out, _ = map(jnp.asarray, arrays(call))
    start = jnp.int32(20) if is_traced else 20

    def piece(q, k, v):
        own, pair = q[:, 20:40], (ids[:, 20:40], ids)
        return attention(own, k, v, causal=True, segment_ids=pair, q_offset=start, implementation=implementation)

    def of_whole(q, k, v):
        return attention(q, k, v, causal=True, segment_ids=ids, implementation=implementation)[:, 20:40]

    found = [jit(lambda *x, run=run: jax.vjp(run, *x)[1](d_out[:, 20:40]))(q, k, v) for run in (piece, of_whole)]
    found[0], found[1] = ((*pulled, jit(run)(q, k, v)) for pulled, run in zip(found, (piece, of_whole), strict=True))
    for got, want in zip(*found, strict=True):
        assert relative_error(got, want) < TOLERANCE["float32"]


def test_kernels_do_not_take_segment_ids_of_queries_and_others_of_keys():
    call = replace(case("packed documents", "bfloat16"), q_len=20)
    for name in ("pallas_triton", "pallas_mosaic_gpu", "pallas_tpu"):
        reason = ATTENTION.implementations[name].unsupported_reason(call, kernel_device(name))
        assert "segment ids" in str(reason)


def test_dtypes_are_named():
    x = jnp.zeros((1, 4, 2, 8))
    for dtype in (jnp.int32, jnp.float8_e4m3fn):
        with pytest.raises(ValueError, match=r"^q: .*float16"):
            attention(x.astype(dtype), x, x)
    with pytest.raises(ValueError, match=r"^v: .*float32"):
        attention(x, x, x.astype(jnp.bfloat16))


@pytest.mark.slow
def test_the_package_imports_jax_alone():
    root = Path(jax_kernels.__file__).parent
    modules = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    foreign = modules - sys.stdlib_module_names - {"jax", "jax_kernels"}
    assert foreign <= {"numpy"}  # jax's own dependency
    script = "import sys, jax_kernels._ops.attention; sys.exit(any(m.split('.')[0] == 'aifx' for m in sys.modules))"
    subprocess.run([sys.executable, "-c", script], check=True)

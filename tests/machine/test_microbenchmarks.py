"""Programs that load the hardware: each does what it is counted for, and reports a wrong result."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from aifx.machine.microbenchmarks import ARRAYS, CPU_DTYPES, EIGEN, Product, Stream, Transfer

CPU = jax.devices("cpu")[0]

FOUR = """
import json
import jax
import numpy as np
from aifx.machine.microbenchmarks import KINDS, Collective, name_of

devices, told = jax.devices(), {}
for kind in KINDS:
    one = Collective(devices, kind, 1024)
    parts = {name_of(s.device): np.asarray(s.data).tolist() for s in one().addressable_shards}
    told[kind] = {"wrong": one.wrong(), "size": one.size, "bus": one.bus_bytes, "parts": parts}
    one._run = lambda x, run=one._run: run(x).at[70].add(1.0)
    told[kind]["after"] = one.wrong()
    told[kind]["length"] = len(parts["cpu:0"])
print(json.dumps(told))
"""


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", CPU_DTYPES)
@pytest.mark.parametrize(("chain", "options"), [(1, None), (1, EIGEN), (3, None)])
def test_a_product_is_what_numpy_says(dtype, chain, options):
    product = Product(CPU, dtype, 64, chain, options)
    assert product.flops == chain * 2 * 64**3
    a = np.asarray(product._a).astype(np.float64)
    expected = a
    for _ in range(chain):
        expected = a @ expected
        if dtype == "int8":
            expected = expected.astype(np.int64)
    for _ in range(2):  # the second call takes the place of the first
        found = np.asarray(product()).astype(np.float64)
        if dtype == "int8" and chain > 1:
            expected = expected.astype(np.int8)
        np.testing.assert_allclose(found, expected, atol=0.0 if dtype == "int8" else 0.02)
    assert product.is_right()


def test_a_chain_of_small_types_does_not_end_as_zeros():
    """Zeros take less power than numbers: a GPU that its power cap holds down would be too fast on them."""
    last = np.asarray(Product(CPU, "float8_e4m3fn", 256, 16)()).astype(np.float32)
    assert (last != 0).mean() > 0.9
    assert np.isfinite(last).all()


def test_a_wrong_product_is_found(monkeypatch):
    monkeypatch.setattr(Product, "_product", lambda self, a, b: (a @ b).at[3, 5].add(1))
    assert not Product(CPU, "float32", 64).is_right()


@pytest.mark.parametrize("op", ARRAYS)
def test_a_stream_changes_each_element_as_often_as_it_is_counted(op):
    stream = Stream(CPU, op, 1 << 12, 1 << 14)
    assert stream.rounds % 2
    assert stream.num_bytes == stream.rounds * (1 << 12) * ARRAYS[op] // 2
    assert stream.num_bytes >= 1 << 14
    was, y = np.array(stream._x), np.array(stream._y)[: stream._count]
    assert stream.num_wrong() == 0
    changed = {"copy": y, "scale": -was, "add": y - was, "triad": y - was}[op]
    np.testing.assert_array_equal(np.asarray(stream()), changed)
    assert stream.num_wrong() == 0
    stream()
    assert stream.num_wrong() == 0
    stream._x = stream._x.at[17].add(1.0)
    assert stream.num_wrong() == 1
    stream()
    assert stream.num_wrong() == (0 if op == "copy" else 1)  # what was wrong stays so where it is an operand


@pytest.mark.parametrize("is_barred", [True, False])
@pytest.mark.parametrize("op", ["scale", "add", "triad"])
def test_a_stream_counts_no_bytes_that_xla_has_merged_away(op, is_barred, monkeypatch):
    """XLA of JAX 0.10.2 removes barriers before it fuses on a CPU: rounds that would become one are a loop."""
    if not is_barred:
        monkeypatch.setattr("aifx.machine.microbenchmarks.lax.optimization_barrier", lambda x: x)
    stream = Stream(CPU, op, 1 << 14, 1 << 18)
    assert stream.num_bytes == stream.rounds * (1 << 14) * ARRAYS[op] // 2 >= 1 << 18
    if is_loop := "while(" in stream._step.as_text():
        assert not is_barred or jax.__version_info__ < (0, 12)
    else:
        assert is_barred
        assert stream._step.cost_analysis()["bytes accessed"] == pytest.approx(stream.num_bytes, rel=0.01)
    assert is_loop == (not stream._is_written_out)
    stream()
    assert stream.num_wrong() == 0


def test_a_stream_takes_no_new_memory():
    stream = Stream(CPU, "triad", 1 << 22, 1 << 22)
    stream()
    at = stream._x.unsafe_buffer_pointer()
    stream()
    assert stream._x.unsafe_buffer_pointer() == at


def test_what_comes_back_from_a_device_is_held_against_what_went():
    transfer = Transfer(CPU, 1 << 12)
    assert not transfer.is_pinned
    np.testing.assert_array_equal(transfer.to_host(), np.asarray(transfer.to_device()))
    assert transfer.is_right()
    transfer._there = transfer._there.at[9].add(1)
    assert not transfer.is_right()


@pytest.fixture(scope="module")
def exchanged():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}

    done = subprocess.run(
        [sys.executable, "-c", FOUR], env={**os.environ, **flags}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_collectives_among_four_devices_give_what_they_must(exchanged):
    whole = np.arange(256) % 61  # 1024 bytes of float32; rank r gives it r + 1 times
    for rank in range(4):
        parts = {kind: np.array(told["parts"][f"cpu:{rank}"]) for kind, told in exchanged.items()}
        mine = slice(64 * rank, 64 * rank + 64)
        np.testing.assert_array_equal(parts["all_reduce"], whole * 10)
        np.testing.assert_array_equal(
            parts["all_gather"], np.concatenate([(np.arange(64) % 61) * r for r in (1, 2, 3, 4)])
        )
        np.testing.assert_array_equal(parts["reduce_scatter"], whole[mine] * 10)
        np.testing.assert_array_equal(parts["all_to_all"], np.concatenate([whole[mine] * r for r in (1, 2, 3, 4)]))
        np.testing.assert_array_equal(parts["ppermute"], whole * ((rank - 1) % 4 + 1))
    assert all(told["wrong"] == [] for told in exchanged.values())


@pytest.mark.slow
def test_a_wrong_element_names_its_device(exchanged):
    for told in exchanged.values():
        assert told["after"] == [f"cpu:{70 // told['length']}"]


@pytest.mark.slow
def test_the_bus_carries_what_nccl_tests_counts(exchanged):
    """doc/PERFORMANCE.md of nccl-tests: with 4 ranks, sizes of the larger buffer times 2 * 3/4, 3/4 and 1."""
    factors = {"all_reduce": 1.5, "all_gather": 0.75, "reduce_scatter": 0.75, "all_to_all": 0.75, "ppermute": 1.0}
    for kind, factor in factors.items():
        assert (exchanged[kind]["size"], exchanged[kind]["bus"]) == (1024, 1024 * factor)

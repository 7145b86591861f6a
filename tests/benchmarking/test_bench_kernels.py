"""`aifx bench kernels`: each implementation and peer of an op, in turn."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from aifx.benchmarking import kernels
from aifx.benchmarking.kernels import BOUNDS, PEERS
from aifx.benchmarking.suites import SUITES, Bench
from aifx.core.errors import UsageError
from aifx.machine.device_memory import cache_bytes
from jax_kernels.implementations import current_device, make_device
from jax_kernels.op import Work
from jax_kernels.ops import OPS, benchmark_cases, dtypes


def bench(**options):
    return Bench(SUITES["kernels"], True, options)


@pytest.mark.slow
def test_each_form_and_peer_of_a_case_is_measured_with_what_it_does(caplog):
    asked = bench(ops=["decode_attention"], cases=["gpt2-10m"])
    found = {measured.params["implementation"]: measured for measured in kernels.measure(asked)}
    assert set(found) == {"reference", "xla", "jax.nn"}
    for measured in found.values():
        assert measured.name == "kernels.decode_attention"
        assert measured.params["dtype"] == "float32"
        assert len(measured.samples_s) >= kernels.LEAST_SAMPLES
        assert measured.flops > 0
        assert measured.figures["peak_memory_bytes"] > measured.num_bytes / 2
    assert len({len(measured.samples_s) for measured in found.values()}) == 1, "in turn"
    notes = caplog.messages
    assert any(re.match("left out: pallas_triton: .*NVIDIA.*decode_attention", note) for note in notes)


@pytest.mark.slow
def test_a_form_that_memory_does_not_hold_is_left_out_with_a_word(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "room", lambda devices: 1)
    monkeypatch.setattr(kernels, "extra_bytes", lambda program: 2)
    asked = bench(ops=["rotary"], cases=[benchmark_cases(OPS["rotary"], "cpu")[0].name])
    assert list(kernels.measure(asked)) == []
    notes = caplog.messages
    assert any("rotary, reference" in note and re.search(r"\b2 bytes.*\b1 \w+ free", note) for note in notes)


@pytest.mark.slow
def test_what_xla_does_not_tell_of_a_program_is_not_told(monkeypatch):
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    monkeypatch.setattr(jax.stages.Compiled, "cost_analysis", lambda self: None)
    asked = bench(ops=["rotary"], cases=[benchmark_cases(OPS["rotary"], "cpu")[0].name])
    for measured in kernels.measure(asked):
        assert measured.figures["peak_memory_bytes"] is None
        assert measured.figures["elementwise_flops"] is None


@pytest.mark.slow
def test_the_products_that_a_loss_cannot_avoid_are_measured_beside_it():
    asked = bench(ops=["linear_cross_entropy"], cases=["gpt2-10m"])
    found = {measured.params["implementation"]: measured for measured in kernels.measure(asked)}
    assert set(found) == {"reference", "xla", "products"}
    call = next(c for c in benchmark_cases(OPS["linear_cross_entropy"], "cpu") if c.name == "gpt2-10m").call("float32")
    _, make = OPS["linear_cross_entropy"].workload(call, OPS["linear_cross_entropy"].implementations["xla"].run, ())
    compiled = jax.jit(BOUNDS["linear_cross_entropy"]["products"](call)).lower(*jax.eval_shape(make)).compile()
    assert compiled.cost_analysis()["flops"] == pytest.approx(OPS["linear_cross_entropy"].work(call).flops, rel=0.01)


SEEN = ({}, {"window": 7}, {"causal": False}, {"causal": False, "window": 7}, {"has_segments": True}, {"q_len": 32})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"), [*(("attention", seen) for seen in SEEN), *((name, {}) for name in OPS if name != "attention")]
)
def test_a_peer_computes_what_the_op_does(name, changes):
    """A function that does other work is no peer: its time says nothing."""
    if name == "quantized_matmul" and jax.__version_info__ < (0, 11):
        pytest.skip("jax.nn.scaled_matmul has no CPU implementation in JAX 0.10")
    op = OPS[name]
    dtype = "float32" if "float32" in dtypes(op) else dtypes(op)[0]
    calls = [case.call(dtype) for case in benchmark_cases(op, "cpu")]
    call = min(calls, key=lambda call: (op.work(call).flops, op.work(call).num_bytes))
    if name == "attention":
        call = replace(call, **{"batch": 1, "q_len": 64, "kv_len": 64} | changes)
    for run in PEERS[name](call).values():
        program, make = op.workload(call, run, ())
        reference, _ = op.workload(call, op.implementations["reference"].run, ())
        given = make()
        found, expected = (jax.tree.leaves(jax.jit(p)(*given)) for p in (program, reference))
        for one, other in zip(found, expected, strict=True):
            one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
            # jax.nn.scaled_matmul rounds to bfloat16 on its way.
            bound = 2e-2 if name == "quantized_matmul" else 1e-5
            np.testing.assert_allclose(one, other, rtol=0, atol=bound * np.abs(other).max())


def test_a_quick_bench_takes_the_smallest_case_of_each_op():
    asked = bench()
    device = current_device()
    chosen = list(kernels._chosen(asked, device))
    assert [op.name for op, _ in chosen] == list(OPS)
    assert all(
        kernels._size(asked, op, case, device)
        == min(kernels._size(asked, op, c, device) for c in benchmark_cases(op, "cpu"))
        for op, case in chosen
    )


@pytest.mark.parametrize(
    ("options", "what", "why"),
    [
        ({"ops": ["atention"]}, "no op 'atention'", "attention"),
        ({"ops": ["attention"], "cases": ["gpt2-10n"]}, "no case 'gpt2-10n'", "gpt2-10m"),
        ({"ops": ["quantized_matmul"], "dtype": "float32"}, "quantized_matmul in float32", "int8"),
    ],
)
def test_what_is_not_known_is_answered_with_the_nearest(options, what, why):
    asked = bench(**options)
    with pytest.raises(UsageError, match=what) as raised:
        list(kernels.measure(asked))
    assert why in raised.value.why


def test_the_caches_of_all_groups_of_cores_count(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    for cpu in range(6):
        pair = cpu // 2 * 2
        for level, size, shared in ((1, "32K", f"{cpu}"), (2, "1024K", f"{cpu}"), (3, "32M", f"{pair}-{pair + 1}")):
            index = tmp_path / f"cpu{cpu}" / "cache" / f"index{level}"
            index.mkdir(parents=True)
            for name, text in (("size", size), ("level", level), ("shared_cpu_list", shared)):
                (index / name).write_text(f"{text}\n")
    assert cache_bytes("cpu", tmp_path) == 2 * (32 << 20), "of the three, the two that may be used"
    assert cache_bytes("cpu", tmp_path / "nothing") > 0


def test_operands_are_taken_from_more_memory_than_the_caches_hold(monkeypatch):
    import jax.numpy as jnp

    caches = 1 << 20  # not this machine's: eight copies of a large one's cost seconds
    monkeypatch.setattr(kernels, "cache_bytes", lambda platform: caches)
    device = current_device()
    operands = (jnp.zeros(caches // 4, jnp.uint8),)
    sets = kernels._sets(operands, device)
    assert len(sets) == kernels.MOST_SETS, "a ninth would say no more"
    large = (jnp.zeros(3 * caches, jnp.uint8),)
    assert len(kernels._sets(large, device)) == 1
    pointers = {one[0].unsafe_buffer_pointer() for one in sets}
    assert len(pointers) == len(sets)


def test_the_roofline_is_the_slower_of_products_and_memory():
    h100 = make_device("gpu", "NVIDIA H100 80GB HBM3")
    assert kernels.least_seconds(Work(flops=989_400 * 10**9, num_bytes=1), "bfloat16", h100) == pytest.approx(1.0)
    assert kernels.least_seconds(Work(flops=1, num_bytes=3350 * 10**9), "bfloat16", h100) == pytest.approx(1.0)
    assert (
        kernels.least_seconds(Work(flops=1, num_bytes=1), "bfloat16", make_device("gpu", "a card of tomorrow")) is None
    )


@pytest.mark.slow
def test_an_op_without_products_has_a_place_on_the_roofline():
    asked = bench(ops=["rotary"], cases=[benchmark_cases(OPS["rotary"], "cpu")[0].name])
    for measured in kernels.measure(asked):
        assert measured.flops is None
        assert 0 < measured.figures["elementwise_flops"] < measured.num_bytes

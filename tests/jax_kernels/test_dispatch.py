"""Which implementation runs: what was asked for, what the run remembers, what was measured, the best guess, in that
order."""

import json
import re
import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from jax_kernels._ops.attention import ATTENTION, attention
from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.swiglu import swiglu
from jax_kernels.dispatch import Choices, choose, choose_unmeasured, free_axes, using
from jax_kernels.implementations import Device, Implementation, current_device, interpreting, make_device
from jax_kernels.op import Choice, Op, call_key
from jax_kernels.ops import OPS
from jax_kernels.versions import LIMITS, limit_of

CALL = Call(1, 64, 64, 2, 2, 16, "float32", True, None, 0, False, 0.25, None)
CPU = Device("cpu", "cpu")


def op(**implementations: str | None) -> Op:
    """An op whose implementations refuse for the reasons given."""
    made = {
        name: Implementation(
            name, lambda *a, name=name: name, lambda call, device, why=why: why, lambda call, device: [(("n", 1),)]
        )
        for name, why in implementations.items()
    }
    order = dict.fromkeys(("cpu", "gpu", "tpu"), tuple(implementations))
    return replace(ATTENTION, name="toy", implementations=made, preference=order)


def test_the_first_that_takes_the_call():
    assert choose_unmeasured(op(a="too odd", b=None, c=None), CALL, CPU) == Choice("b", (("n", 1),), "not a: too odd")


def test_what_is_asked_for_and_cannot_gives_way_with_a_warning(caplog):
    choice = choose(op(a="too odd", b=None), CALL, "a")
    (message,) = caplog.messages
    assert re.search(r"^toy: a .*\(too odd\).* b$", message)
    assert choice.implementation == "b"
    assert re.search("^a .*too odd$", choice.reason)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match=r"^implementation: .*auto, a, b, .*'c'"):
        choose(op(a=None, b=None), CALL, "c")


def test_what_was_measured_counts_unless_it_is_refused():
    toy = op(a=None, b=None)
    measured = toy.choice("b", (("n", 8),), "measured")
    assert Choices(measured=lambda *_: measured).choose(toy, CALL, CPU) == measured
    of_before = replace(measured, source="of last year")
    assert Choices(measured=lambda *_: of_before).choose(toy, CALL, CPU).implementation == "a"
    refusing = op(a=None, b="gone")
    assert Choices(measured=lambda *_: measured).choose(refusing, CALL, CPU).implementation == "a"
    assert Choices(measured=lambda *_: Choice("of another version")).choose(toy, CALL, CPU).implementation == "a"


def test_a_choice_that_was_made_stays():
    toy = op(a=None, b=None)
    choices = Choices(asked={"toy": "b"})
    with using(choices):
        first = choose(toy, CALL, "auto")
    assert first.implementation == "b"
    assert list(choices.made.values()) == [first]
    again = Choices(made=dict(choices.made), measured=lambda *_: Choice("a"))
    with using(again):
        assert choose(toy, CALL, "auto") == first
    assert again.made == choices.made


def test_a_kernel_takes_nothing_that_the_compiler_would_have_to_divide():
    tpu = make_device("tpu", "TPU v5 lite")
    kernel = ATTENTION.implementations["pallas_tpu"]
    assert kernel.unsupported_reason(CALL, tpu) is None
    assert "divide" in str(kernel.unsupported_reason(CALL, replace(tpu, is_partitioned=True)))


@pytest.mark.parametrize("check_vma", [False, True])
def test_a_kernel_inside_the_users_shard_map(check_vma, caplog):
    """The share is one device's already: nothing is left to divide. Pallas does not say how its results vary."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))

    def mapped(x, weight):
        specs = {"in_specs": (PartitionSpec("data"), PartitionSpec()), "out_specs": PartitionSpec("data")}
        share = partial(swiglu, implementation="pallas_triton")
        return jax.shard_map(lambda x, w: share(x, w, w), mesh=mesh, check_vma=check_vma, **specs)(x, weight)

    with interpreting(make_device("gpu", "NVIDIA H100 80GB HBM3")):
        operands = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((32, 16), (16, 64))]
        jaxpr = str(jax.make_jaxpr(mapped)(*operands))
    assert ("pallas_call" in jaxpr) == (not check_vma)
    facts = r"^swiglu: pallas_triton .*check_vma=False.* xla$"
    assert [bool(re.search(facts, message)) for message in caplog.messages] == [True] * check_vma


def test_a_map_over_one_axis_leaves_the_others():
    mesh = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    found = []

    def share(x):
        found.append(free_axes())
        return x

    assert free_axes() == []
    for axis in ("model", "data"):
        spec = PartitionSpec(axis)
        mapped = jax.shard_map(share, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={axis})
        jax.eval_shape(mapped, jax.ShapeDtypeStruct((8,), "float32"))
    assert found == [["data"], ["model"]]


def test_a_choice_of_before_that_cannot_any_more_is_made_again_with_a_warning(caplog):
    made = {call_key("toy", CALL): Choice("a"), call_key("gone", CALL): Choice("never was")}
    choices = Choices(made=made)
    assert choices.choose(op(a="no longer", b=None), CALL, CPU).implementation == "b"
    assert choices.choose(replace(op(b=None), name="gone"), CALL, CPU).implementation == "b"
    first, second = caplog.messages
    assert re.search(r"^toy: a, .*\(no longer\).* b$", first)
    assert re.search(r"^gone: never was, .* b$", second)


def test_a_choice_survives_json():
    choice = Choice("b", (("block_q", 128), ("num_warps", 4)), "measured")
    assert Choice.from_document(json.loads(json.dumps(choice.document()))) == choice


def test_calls_that_differ_have_keys_that_differ():
    keys = {call_key("attention", call) for call in (CALL, Call(**{**vars(CALL), "causal": False}))}
    assert len(keys) == 2
    assert call_key("attention", CALL) == call_key("attention", Call(**vars(CALL)))


def test_a_call_is_recorded_as_it_is_traced():
    choices = Choices(asked={"attention": "reference"})
    x = jax.ShapeDtypeStruct((1, 64, 2, 16), jnp.float32)
    with using(choices):
        jax.eval_shape(lambda q: attention(q, q, q, causal=True), x)
    assert choices.made == {call_key("attention", CALL): Choice("reference", (), "asked for")}


def test_cudnn_is_not_asked_for_what_it_cannot():
    h100 = make_device("cuda", "NVIDIA H100 80GB HBM3")
    assert h100 == Device("gpu", "NVIDIA H100 80GB HBM3", (9, 0))
    unsupported_reason = ATTENTION.implementations["cudnn"].unsupported_reason
    assert str(unsupported_reason(CALL, h100)).startswith("float32 ")
    half = {**vars(CALL), "dtype": "bfloat16"}
    assert unsupported_reason(Call(**half), h100) is None
    for changes in (
        {"has_segments": True},
        {"logit_softcap": 3.0},
        {"q_offset": 1},
        {"q_offset": None},
        {"causal": False, "window": 3},
        {"kv_len": 65},
        {"return_lse": True},
        {"head_dim": 100},
    ):
        assert unsupported_reason(Call(**{**half, **changes}), h100), changes
    assert unsupported_reason(Call(**half), make_device("gpu", "Tesla T4"))
    assert unsupported_reason(Call(**half), CPU)


def test_cudnn_takes_packed_rows_with_a_mask():
    h100 = make_device("cuda", "NVIDIA H100 80GB HBM3")
    unsupported_reason = ATTENTION.implementations["cudnn_masked"].unsupported_reason
    packed = replace(CALL, dtype="bfloat16", has_segments=True)
    for changes in ({}, {"window": 7}, {"causal": False}):
        assert unsupported_reason(replace(packed, **changes), h100) is None, changes
    for changes in (
        {"has_segments": False},
        {"dtype": "float16"},
        {"q_len": 63, "kv_len": 63},
        {"logit_softcap": 3.0},
        {"return_lse": True},
    ):
        assert unsupported_reason(replace(packed, **changes), h100), changes
    assert unsupported_reason(packed, make_device("gpu", "Tesla T4"))
    assert Choices().choose(ATTENTION, packed, h100).implementation == "xla", "it is taken after it was verified"


def test_the_device_here():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current_device().platform == jax.devices()[0].platform.replace("cuda", "gpu")


def test_what_a_version_cannot_express():
    for version, missing in (((0, 10, 2), True), ((0, 12, 0), False)):
        reason = limit_of("attention", "pallas_mosaic_gpu", interpreting=True, version=version)
        assert (reason is not None) == missing
        assert limit_of("attention", "pallas_mosaic_gpu", interpreting=False, version=version) is None
        assert limit_of("attention", "pallas_tpu", interpreting=True, version=version) is None
    for limit in LIMITS:
        assert all(limit.implementation in op.implementations for op in OPS.values() if op.name == limit.op)
        assert any(limit.implementation in op.implementations for op in OPS.values())

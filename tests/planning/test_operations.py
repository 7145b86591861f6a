"""Operations counted from traced programs, and bytes counted from compiled ones."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from aifx.planning.counting import count_operations
from aifx.planning.hlo import count_traffic
from aifx.planning.network import Collective
from jax_kernels._ops.attention import ATTENTION, attention
from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.pallas_mosaic_gpu.warpgroup import HAS_INTERPRETER
from jax_kernels.implementations import Device

X = jax.ShapeDtypeStruct((64, 32), jnp.float32)
W = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
PRODUCT = 2 * 64 * 32 * 32


def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, own: (jnp.tanh(x @ own), None), x, w)[0].sum()


def unrolled(x: jax.Array, w: jax.Array) -> jax.Array:
    for own in w:
        x = jnp.tanh(x @ own)
    return x.sum()


@pytest.mark.parametrize("function", [scanned, unrolled])
def test_a_loop_counts_as_often_as_it_turns(function: object) -> None:
    found = count_operations(jax.make_jaxpr(function)(X, W))
    assert found.flops == 5 * PRODUCT
    assert found.product_flops == {"float32": 5 * PRODUCT}
    assert found.transcendentals == 5 * 64 * 32


def test_a_loop_with_traced_bounds_counts_once_and_is_reported() -> None:
    def repeated(x: jax.Array, own: jax.Array, times: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda _, x: jnp.tanh(x @ own), x)

    found = count_operations(jax.make_jaxpr(repeated)(X, jax.ShapeDtypeStruct((32, 32), jnp.float32), 5))
    assert (found.flops, dict(found.uncounted)) == (PRODUCT, {"while": 1})


CALL = Call(1, 512, 512, 4, 2, 64, "bfloat16", True, None, 0, False, 0.125, None)
HOPPER = Device("gpu", "NVIDIA H100 80GB HBM3", (9, 0))


@pytest.mark.parametrize(
    ("implementation", "device", "call"),
    [
        ("pallas_triton", HOPPER, CALL),
        ("pallas_triton", HOPPER, replace(CALL, window=100)),
        ("pallas_tpu", Device("tpu", "TPU v5"), CALL),
        pytest.param(
            *("pallas_mosaic_gpu", HOPPER, CALL),
            marks=pytest.mark.skipif(not HAS_INTERPRETER, reason="it declares nothing under JAX 0.10"),
        ),
    ],
)
def test_kernels_count_as_their_op_says(implementation: str, device: Device, call: Call) -> None:
    """Their loops run over the blocks that the mask leaves, which only the device knows."""
    kernel = ATTENTION.implementations[implementation]
    program, arguments = ATTENTION.workload(call, kernel.run, kernel.configs(call, device)[0])
    found = count_operations(jax.make_jaxpr(program)(*jax.eval_shape(arguments)))
    assert found.flops == found.attention_flops == ATTENTION.work(call).flops
    assert dict(found.uncounted) == {}


@pytest.mark.parametrize("window", [None, 100])
def test_cudnn_counts_as_its_op_says(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be traced where cuDNN is installed only, so its version is made up here."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    call = replace(CALL, window=window)
    program, arguments = ATTENTION.workload(call, ATTENTION.implementations["cudnn"].run, ())
    found = count_operations(jax.make_jaxpr(program)(*jax.eval_shape(arguments)))
    assert found.flops == found.attention_flops == ATTENTION.work(call).flops


def test_attention_is_told_from_other_products() -> None:
    def layer(x: jax.Array, own: jax.Array) -> jax.Array:
        heads = (x @ own).reshape(1, 64, 4, 8)
        return attention(heads, heads, heads, implementation="xla")

    found = count_operations(jax.make_jaxpr(layer)(X, jax.ShapeDtypeStruct((32, 32), jnp.float32)))
    assert found.flops - found.attention_flops == PRODUCT
    assert found.attention_flops == 2 * 2 * 64 * 64 * 32


def test_recomputation_counts() -> None:
    def block(x: jax.Array, own: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ own) @ own)

    def loss(w: jax.Array, x: jax.Array, remat: bool) -> jax.Array:
        return (jax.checkpoint(block) if remat else block)(x, w).sum()

    w = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    without, with_remat = (
        count_operations(jax.make_jaxpr(jax.grad(loss), static_argnums=2)(w, X, remat)).flops for remat in (False, True)
    )
    assert with_remat >= without + PRODUCT


def test_logits_are_the_largest_array_of_outputs_that_is_no_weight() -> None:
    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.log(jax.nn.softmax(x @ w)).sum()

    w = jax.ShapeDtypeStruct((32, 1000), jnp.float32)
    assert count_operations(jax.make_jaxpr(jax.grad(loss, 1))(X, w), outputs=1000, embed=32).largest == 64 * 1000 * 4


def test_a_convolution_counts_its_kernel_for_each_output() -> None:
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 16))

    def conv(x: jax.Array, k: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert count_operations(jax.make_jaxpr(conv)(image, kernel)).flops == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)


def test_a_compiled_loop_moves_what_its_turns_move() -> None:
    """A scan over slices of a stack reads each slice once per turn, not the whole stack."""
    loop, flat = (count_traffic(jax.jit(one).lower(X, W).compile().as_text()) for one in (scanned, unrolled))
    assert loop.unknown_loops == 0
    assert flat.bytes / 2 < loop.bytes < 3 * flat.bytes


TPU = """
HloModule jit_step

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]{1,0:T(8,128)}) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %n = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %y = f32[4,8]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%n, %y)
}

%fused (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %e = f32[4,8]{1,0} exponential(%p)
}

%condition (arg.1: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %arg.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[4,8], w: f32[8,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %w = f32[8,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body
  %b = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %sum = f32[4,8]{1,0} all-reduce(%b), replica_groups={}, to_apply=%add
  ROOT %d = f32[4,8]{1,0} dot(%sum, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_a_loop_without_a_trip_count_takes_the_limit_of_its_condition() -> None:
    found = count_traffic(TPU)
    array, weight, condition = 4 * 8 * 4, 8 * 8 * 4, 1 + 2 * 4
    assert found.other_bytes == 7 * (2 * array + condition)
    assert found.product_bytes == 2 * array + weight
    assert found.collectives == [Collective("all-reduce", array, ())]
    assert found.unknown_loops == 0


def test_an_unknown_loop_is_reported() -> None:
    assert count_traffic(TPU.replace("constant(7)", "parameter(1)")).unknown_loops == 1


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", (0, 4)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", (0, 1, 2, 3)),
        ("mesh['data'=2,'fsdp'=4] {'data'}", (0, 4)),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", tuple(range(8))),
        ("mesh['data'=2,'fsdp'=4] {'fsdp':(1)2}", (0, 2)),
        ("mesh['data'=2,'fsdp'=4] {'fsdp':(2)2}", (0, 1)),
        ("{}", ()),
    ],
)
def test_groups_of_devices_are_read_in_each_way_that_xla_writes_them(groups: str, first: tuple[int, ...]) -> None:
    text = TPU.replace("replica_groups={}", f"channel_id=1, replica_groups={groups}, use_global_device_ids=true")
    (found,) = count_traffic(text).collectives
    assert found.group == first


ASYNC = """
HloModule jit_step

%start (p: bf16[1,512]) -> (bf16[1,512], bf16[4,512]) {
  %p = bf16[1,512]{1,0} parameter(0)
  %g = bf16[4,512]{1,0} all-gather(%p), channel_id=3, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[1,512]{1,0}, bf16[4,512]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p.1: bf16[1,512], q.1: bf16[4,512], x.1: bf16[8,8], w.1: bf16[8,8]) -> (bf16[8,8], bf16[4,512]) {
  %p.1 = bf16[1,512]{1,0} parameter(0)
  %q.1 = bf16[4,512]{1,0} parameter(1)
  %x.1 = bf16[8,8]{1,0} parameter(2)
  %w.1 = bf16[8,8]{1,0} parameter(3)
  %g.1 = bf16[4,512]{1,0} all-gather(%p.1), channel_id=3, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  %d.1 = bf16[8,8]{1,0} convolution(%x.1, %w.1), dim_labels=bf_io->bf
  ROOT %t.1 = (bf16[8,8]{1,0}, bf16[4,512]{1,0}) tuple(%d.1, %g.1)
}

%scatter (p.2: bf16[8,64]) -> bf16[3,64] {
  %p.2 = bf16[8,64]{1,0} parameter(0)
  %z.2 = bf16[] constant(0)
  %a.2 = bf16[12,64]{1,0} pad(%p.2, %z.2), padding=0_4x0_0
  %r.2 = bf16[12,64]{1,0} all-reduce(%a.2), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  %i.2 = u32[] constant(0)
  ROOT %s.2 = bf16[3,64]{1,0} dynamic-slice(%r.2, %i.2, %i.2), dynamic_slice_sizes={3,64}
}

ENTRY %main (a: bf16[1,512], x: bf16[8,8], w: bf16[8,8], y: bf16[8,64]) -> bf16[8,8] {
  %a = bf16[1,512]{1,0} parameter(0)
  %x = bf16[8,8]{1,0} parameter(1)
  %w = bf16[8,8]{1,0} parameter(2)
  %y = bf16[8,64]{1,0} parameter(3)
  %s = (bf16[1,512]{1,0}, bf16[4,512]{1,0}) fusion(%a), kind=kCustom, calls=%start
  %s0 = bf16[1,512]{1,0} get-tuple-element(%s), index=0
  %s1 = bf16[4,512]{1,0} get-tuple-element(%s), index=1
  %m = (bf16[8,8]{1,0}, bf16[4,512]{1,0}) fusion(%s0, %s1, %x, %w), kind=kCustom, calls=%meanwhile
  %r = bf16[3,64]{1,0} fusion(%y), kind=kCustom, calls=%scatter
  ROOT %o = bf16[8,8]{1,0} get-tuple-element(%m), index=0
}
"""


def test_a_collective_beside_a_product_counts_once_and_a_fused_scatter_is_one() -> None:
    """As libtpu 0.0.52 writes them for a v5e."""
    found = count_traffic(ASYNC)
    assert found.collectives == [
        Collective("all-gather", 4 * 512 * 2, (0, 1, 2, 3)),
        Collective("reduce-scatter", 8 * 64 * 2, (0, 1, 2, 3)),
    ]
    assert found.product_bytes == 3 * 8 * 8 * 2
    assert found.other_bytes == 0


ON_CHIP = """
HloModule jit_step

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0:T(8,128)} parameter(0)
  %near = f32[8,8]{1,0:T(8,128)S(1)} fusion(%a), kind=kLoop, calls=%square
  %kept = ((f32[8,8]{1,0:T(8,128)S(1)}), f32[2,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%near), slice={[0:2]}
  %fetched = ((f32[8,8]{1,0:T(8,128)}), f32[2,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2]}
  %back = (f32[8,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%near)
  ROOT %done = f32[8,8]{1,0:T(8,128)} copy-done(%back)
}

%square (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0:T(8,128)} parameter(0)
  ROOT %m = f32[8,8]{1,0:T(8,128)S(1)} multiply(%p, %p)
}
"""


def test_what_a_tpu_keeps_on_the_chip_is_no_traffic() -> None:
    """The fusion reads, one slice reads a quarter, and the copy writes."""
    assert count_traffic(ON_CHIP).other_bytes == (1 + 1 / 4 + 1) * 8 * 8 * 4

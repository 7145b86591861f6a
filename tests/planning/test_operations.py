"""Operations counted from traced programs, and bytes counted from compiled ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from aifx.planning.hlo import count_traffic
from aifx.planning.operations import count_operations

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
    assert found.collective_bytes == {"all-reduce": array}
    assert found.unknown_loops == 0


def test_an_unknown_loop_is_reported() -> None:
    assert count_traffic(TPU.replace("constant(7)", "parameter(1)")).unknown_loops == 1

"""The reader of PTX finds stores that run into another head's row, and no others."""

from __future__ import annotations

import re

import pytest
from ptx import bulk_stores, overlapping_stores

OUTPUT = """
.visible .entry attention_mosaic_gpu_kernel(
	.param .u64 .ptr .align 256 attention_mosaic_gpu_kernel_param_0
)
{{
	mov.u32 	%r4, %ctaid.x;
	mov.u32 	%r3, %ctaid.y;
	shl.b32 	%r7, %r3, 7;
	sub.s32 	%r8, {last_tile}, %r7;
	mov.u32 	%r1, %tid.x;
	shr.u32 	%r5, %r1, 7;
	shfl.sync.idx.b32	%r6|%p1, %r5, 0, 31, -1;
	shl.b32 	%r15, %r6, 6;
	add.s32 	%r16, %r15, %r8;
	ld.param::entry.b64 	%rd14, [attention_mosaic_gpu_kernel_param_0];
	@%p118 cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%rd15, {{%r1068, %r1068, %r1069, %r4}} ], [%r1067];
	cvt.s64.s32 	%rd103, %r16;
	mul.wide.u32 	%rd108, %r4, {row};
	add.s64 	%rd109, %rd103, %rd108;
	shl.b64 	%rd110, %rd109, 2;
	add.s64 	%rd96, %rd110, %rd14;
	max.u64 	%rd111, %rd109, {total};
	sub.s64 	%rd112, %rd111, %rd109;
	shl.b64 	%rd113, %rd112, 2;
	min.u64 	%rd114, %rd113, 256;
	cvt.u32.u64 	%r1070, %rd114;
	// begin inline asm

          @%p118 cp.async.bulk.global.shared::cta.bulk_group [%rd96], [%rd97], {size};

	// end inline asm
}}

define void @attention_mosaic_gpu(ptr %0, ptr %1) {{
  %2 = alloca {{ ptr, i64 }}, align 8
  call void @mosaic_gpu_build_kernel_spec(ptr %0, i32 4, i32 {tiles}, i32 1, i32 0, i32 0, i32 0, i32 384, i32 1, i32 1)
}}
"""
"""The end of attention's forward pass over 4 heads, and its launch, as Mosaic GPU of JAX 0.12 wrote them."""


def output(row: int, tiles: int, size: str = "%r1070") -> str:
    return OUTPUT.format(row=row, total=4 * row, tiles=tiles, last_tile=128 * (tiles - 1), size=size)


@pytest.mark.parametrize(("row", "tiles", "heads_over"), [(1000, 8, 3), (576, 5, 3), (64, 1, 3), (1024, 8, 0)])
def test_stores_into_the_next_row_are_found(row: int, tiles: int, heads_over: int) -> None:
    """Stores of each head overlap the next, but for the last, whose store is cut off where the array ends."""
    found = overlapping_stores(output(row, tiles))
    stores = 4 * tiles * 2 - (row % 128 == 64)  # of 64 rows the last store is cut off to nothing
    expected = f"attention_mosaic_gpu: {heads_over} of {stores} stores run into the bytes of another"
    assert found == ([expected] if heads_over else [])
    assert bulk_stores(output(row, tiles)) == 2


def test_a_store_that_cannot_be_followed_is_found() -> None:
    (found,) = overlapping_stores(output(1024, 8, size="%r2"))
    assert re.search(r"attention_mosaic_gpu: .*%r2 .* 0 ", found)

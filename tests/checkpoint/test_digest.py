from __future__ import annotations

import hashlib
import itertools
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import _on_device, state_digest
from aifx.checkpoint.lanes import add, as_hex, host_lanes
from aifx.checkpoint.naming import to_named
from aifx.config.sections import CheckpointSection

MASK = 0xFFFFFFFF


def by_the_book(data: bytes, word_bytes: int) -> str:
    """docs/checkpoints.md, word for word, with nothing of the implementation."""
    first = second = 0
    for i in range(len(data) // word_bytes):
        word = int.from_bytes(data[i * word_bytes : (i + 1) * word_bytes], "little")
        key = i * 0x9E3779B1 & MASK
        x = word ^ key
        x = (x ^ x >> 16) * 0x21F0AAAD & MASK
        x = (x ^ x >> 15) * 0x735A2D97 & MASK
        x ^= x >> 15
        y = x * (2 * key + 1) & MASK
        first, second = first + x, second + (y ^ y >> 16)
    return f"{first & MASK:08x}{second & MASK:08x}"


def test_the_states_digest_is_as_the_document_says() -> None:
    w = struct.pack("<fff", 1.0, -2.5, 0.0)
    state = {"step": jnp.int32(7), "params": {"w": jnp.array([[1.0, -2.5, 0.0]], jnp.float32), "b": jnp.zeros((0, 4))}}
    expected = hashlib.sha256(
        b"params/b\0float32\0" + b"0,4\0" + b"0000000000000000\n"
        + b"params/w\0float32\0" + b"1,3\0" + by_the_book(w, 4).encode() + b"\n"
        + b"step\0int32\0\0" + by_the_book(struct.pack("<i", 7), 4).encode() + b"\n"
    )  # fmt: skip
    assert state_digest(state) == expected.hexdigest()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e4m3fn", "bool", "int8", "float64", "complex64"])
def test_a_digest_of_each_width_is_as_the_document_says(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    array = bits_of((3, 70), dtype, seed=1)
    assert as_hex(host_lanes(array)) == by_the_book(array.tobytes(), min(dtype.itemsize, 4))


def bits_of(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> np.ndarray[Any, Any]:
    """An array of random bits."""
    data = np.random.default_rng(seed).integers(0, 2 if dtype.kind == "b" else 256, (*shape, dtype.itemsize), np.uint8)
    return data.view(dtype).reshape(shape)


@pytest.mark.parametrize("shape", [(), (7,), (4, 6), (3, 1, 8, 5), (300, 400), (150_001,), (2, 70_000)])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "bool", "complex64"])
def test_the_devices_and_the_hosts_digest_agree(shape: tuple[int, ...], name: str) -> None:
    array = bits_of(shape, np.dtype(getattr(ml_dtypes, name, None) or name), seed=2)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    on_device = _on_device()(jnp.asarray(array), np.zeros(len(shape), np.uint32), np.array(strides, np.uint32))
    assert tuple(map(int, on_device)) == host_lanes(array)


@given(st.data())
def test_parts_add_up_however_an_array_is_cut(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    dtype = np.dtype(data.draw(st.sampled_from(["float32", "float64", "uint8", "float16"])))
    array = bits_of(tuple(shape), dtype, data.draw(st.integers(0, 99)))
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    spans = [list(itertools.pairwise(cut)) for cut in cuts]
    found = []
    for part in itertools.product(*spans):
        starts = tuple(start for start, _ in part)
        found.append(host_lanes(array[tuple(slice(*span) for span in part)], starts, shape))
    assert add(found) == host_lanes(array)


def test_accidents_change_the_digest() -> None:
    """Flipped bits and signs, exchanged and moved parts, zeros in their place."""
    rng = np.random.default_rng(3)
    array = rng.standard_normal((64, 64)).astype(np.float32)
    damaged = [-array, array.T.copy(), np.zeros_like(array), np.roll(array, 1), np.roll(array, 32, axis=0), array[::-1]]
    for bit in range(32):
        flipped = array.copy()
        flipped.view(np.uint32)[5, 7] ^= np.uint32(1 << bit)
        damaged.append(flipped)
        flipped = flipped.copy()
        flipped.view(np.uint32)[50, 3] ^= np.uint32(1 << bit)
        damaged.append(flipped)
    for _ in range(200):
        exchanged = array.copy().reshape(-1)
        a, b = rng.choice(exchanged.size, 2, replace=False)
        exchanged[[a, b]] = exchanged[[b, a]]
        damaged.append(exchanged.reshape(array.shape))
    digests = {host_lanes(a) for a in [array, *damaged]}
    assert len(digests) == 1 + len(damaged)
    for lane in (0, 1):
        assert len({digest[lane] for digest in digests}) == len(digests)


def test_a_position_beyond_32_bits_is_taken_modulo_their_range() -> None:
    part = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert host_lanes(part, (1 << 30, 0), (3 << 30, 4)) == host_lanes(part)
    assert host_lanes(part, ((1 << 30) + 1, 0), (3 << 30, 4)) == host_lanes(part, (1, 0), (2, 4)) != host_lanes(part)


def test_order_is_that_of_bytes() -> None:
    layers = {"layers": {str(i): np.int32(i) for i in (2, 10, 1)}}
    expected = hashlib.sha256()
    for i in (1, 10, 2):
        expected.update(f"layers/{i}\0int32\0\0{by_the_book(struct.pack('<i', i), 4)}\n".encode())
    assert state_digest(layers) == expected.hexdigest()


def test_what_holds_the_arrays_does_not_matter() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"x": (a, [a.T])}
    assert state_digest(tree) == state_digest(to_named(tree)) == state_digest(jax.tree.map(jnp.asarray, tree))


def test_memory_layout_does_not_matter() -> None:
    a = np.arange(12, dtype=np.int32).reshape(3, 4)
    forms = [a, np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2], a.astype(">i4")]
    assert len({host_lanes(form) for form in forms}) == 1


def test_shape_dtype_and_name_matter() -> None:
    a = np.zeros(4, np.float32)
    others = [{"a": a.reshape(2, 2)}, {"a": a.view(np.int32)}, {"b": a}, {"a": a[:3]}, {"a": -a}]
    assert len({state_digest(t) for t in [{"a": a}, *others]}) == 6


def test_narrow_floats_and_keys() -> None:
    bf16 = np.array([1.0, -3.0], ml_dtypes.bfloat16)
    assert host_lanes(bf16) == host_lanes(np.array([0x3F80, 0xC040], np.uint16))
    key = jax.random.key(3)
    assert state_digest({"k": key}) == state_digest({"k": jax.random.key_data(key)})


@pytest.mark.slow
def test_the_documented_program_agrees(tmp_path: Path) -> None:
    """The code block of docs/checkpoints.md, run on a checkpoint of ours."""
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text("utf-8")
    program = tmp_path / "program.py"
    program.write_text(text.split("```python\n")[1].split("```")[0])
    state = {
        "step": jnp.int32(7),
        "params": {"layers": {"2": jnp.ones((2, 3), jnp.bfloat16), "10": jnp.zeros(3)}, "none": jnp.zeros((0, 2))},
    }
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(asynchronous=False))
    checkpoints.save(7, state, host={})
    command = [sys.executable, str(program), str(checkpoints.directory / "7")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == checkpoints.verify(7).state_digest == state_digest(state)

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import array_bytes, array_digest, state_digest
from aifx.checkpoint.naming import to_named
from aifx.config.sections import CheckpointSection


def test_bytes_are_as_the_document_says() -> None:
    """docs/checkpoints.md, byte for byte, with nothing of the implementation."""
    state = {"step": jnp.int32(7), "params": {"w": jnp.array([[1.0, -2.5, 0.0]], jnp.float32), "b": jnp.zeros((0, 4))}}
    expected = hashlib.sha256(
        b"params/b\0float32\0" + b"0,4\0" + b"params/w\0float32\0" + b"1,3\0" + struct.pack("<fff", 1.0, -2.5, 0.0)
        + b"step\0int32\0\0" + struct.pack("<i", 7)
    )  # fmt: skip
    assert state_digest(state) == expected.hexdigest()


def test_order_is_that_of_bytes() -> None:
    layers = {"layers": {str(i): np.int32(i) for i in (2, 10, 1)}}
    expected = hashlib.sha256()
    for i in (1, 10, 2):
        expected.update(f"layers/{i}\0int32\0\0".encode() + struct.pack("<i", i))
    assert state_digest(layers) == expected.hexdigest()


def test_what_holds_the_arrays_does_not_matter() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"x": (a, [a.T])}
    assert state_digest(tree) == state_digest(to_named(tree)) == state_digest(jax.tree.map(jnp.asarray, tree))


def test_memory_layout_does_not_matter() -> None:
    a = np.arange(12, dtype=np.int32).reshape(3, 4)
    forms = [a, np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2], a.astype(">i4")]
    assert len({array_digest(form) for form in forms}) == 1


def test_shape_dtype_and_name_matter() -> None:
    a = np.zeros(4, np.float32)
    others = [{"a": a.reshape(2, 2)}, {"a": a.view(np.int32)}, {"b": a}, {"a": a[:3]}, {"a": -a}]
    assert len({state_digest(t) for t in [{"a": a}, *others]}) == 6


def test_narrow_floats_and_keys() -> None:
    bf16 = np.array([1.0, -3.0], ml_dtypes.bfloat16)
    assert bytes(array_bytes(bf16)) == struct.pack("<HH", 0x3F80, 0xC040)
    key = jax.random.key(3)
    assert state_digest({"k": key}) == state_digest({"k": jax.random.key_data(key)})


def test_the_documented_program_agrees(tmp_path: Path) -> None:
    """The code block of docs/checkpoints.md, run on a checkpoint of ours."""
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text("utf-8")
    program = tmp_path / "program.py"
    program.write_text(text.split("```python\n")[1].split("```")[0])
    state = {"step": jnp.int32(7), "params": {"layers": {"2": jnp.ones((2, 3), jnp.bfloat16), "10": jnp.zeros(3)}}}
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(asynchronous=False))
    checkpoints.save(7, state, host={})
    command = [sys.executable, str(program), str(checkpoints.directory / "7" / "state")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == checkpoints.verify(7).state_digest == state_digest(state)

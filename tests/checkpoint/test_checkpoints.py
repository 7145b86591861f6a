from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import state_digest
from aifx.checkpoint.manifest import CheckpointInfo, list_checkpoints
from aifx.config.best_by import LOSS, BestBy, score_of
from aifx.config.sections import CheckpointSection
from aifx.core.errors import CheckpointError


def section(**values: Any) -> CheckpointSection:
    return CheckpointSection(**values)


def state_of(step: int) -> dict[str, Any]:
    params = {"layers": {"0": {"w": jnp.full((4, 8), step, jnp.float32)}}, "scale": jnp.float32(step)}
    return {"step": jnp.int32(step), "params": params, "opt_state": optax.adamw(1e-3).init(params)}


def abstract_of(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dtypes = [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        np.int8,
        np.int32,
        np.uint32,
        np.bool_,
    ]
    params = {np.dtype(d).name: jnp.asarray(rng.integers(0, 2, (3, 5)).astype(d)) for d in dtypes}
    params |= {
        "scalar": jnp.float32(np.nextafter(np.float32(1), np.float32(2))),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
    }
    params |= {"nan": jnp.array([np.nan, -0.0, np.inf], jnp.float32)}
    state = {"params": params, "host_scalar": np.float64(0.1)}
    checkpoints = Checkpoints(tmp_path, section())
    checkpoints.save(1, state, host={"best": 0.1 + 0.2, "nested": {"list": [1, None]}})
    checkpoints.wait()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    restored, host = checkpoints.restore(1, {"params": abstract})
    assert bits(restored["params"]) == bits(params)
    assert {k: v.dtype for k, v in restored["params"].items()} == {k: v.dtype for k, v in params.items()}
    assert host == {"best": 0.1 + 0.2, "nested": {"list": [1, None]}}
    assert checkpoints.verify(1).state_digest == state_digest(state)
    (info,) = checkpoints.infos()
    assert info.size_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_come_back_typed(tmp_path: Path, impl: str) -> None:
    state = {"params": {"key": jax.random.split(jax.random.key(3, impl=impl), 2)}}
    checkpoints = Checkpoints(tmp_path, section(asynchronous=False))
    checkpoints.save(1, state, host={})
    restored, _ = checkpoints.restore(1, abstract_of(state))
    assert restored["params"]["key"].dtype == state["params"]["key"].dtype
    assert bits(jax.random.key_data(restored["params"]["key"])) == bits(jax.random.key_data(state["params"]["key"]))
    assert checkpoints.verify(1).state_digest == state_digest(state)


def test_arrays_may_be_donated_at_once(tmp_path: Path) -> None:
    """Steps that overwrite their state in place go on while it is written."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"params": {"w": jnp.zeros((512, 1024), jnp.float32)}, "step": jnp.int32(0)}
    abstract = abstract_of(state)
    checkpoints = Checkpoints(tmp_path, section(keep_last=6))
    digests = {}
    for i in range(1, 6):
        for _ in range(7):
            state = step(state)
        digests[i] = state_digest(state)
        checkpoints.save(i, state, host={})
        state = step(state)
    checkpoints.wait()
    assert {i: checkpoints.verify(i).state_digest for i in digests} == digests
    restored, _ = checkpoints.restore(5, abstract)
    assert int(restored["step"]) == 39
    assert int(step(restored)["step"]) == 40  # and what was restored may be donated, too


def test_a_checkpoint_without_a_score_is_not_the_best(tmp_path: Path) -> None:
    """As one whose metric of `checkpoint.best_by` is not finite, though its loss is."""
    checkpoints = Checkpoints(tmp_path, section(keep_last=3, keep_best=1))
    best_by = BestBy("auc", "max")
    for step, auc in {1: 0.7, 2: 0.6, 3: float("nan")}.items():
        score = score_of(best_by, {"auc": auc})
        checkpoints.save(step, state_of(step), host={}, validation_loss=0.001, score=score)
    checkpoints.wait()
    assert checkpoints.best() == 1


def test_kept_by_age_and_by_merit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, section(keep_last=2, keep_best=1))
    losses = {1: 3.0, 2: 1.5, 3: None, 4: 2.0, 5: 1.5, 6: 1.75}
    for step, loss in losses.items():
        checkpoints.save(step, state_of(step), host={}, validation_loss=loss, score=score_of(LOSS, {"loss": loss}))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best() == 2
    assert checkpoints.latest() == 6
    infos = list_checkpoints(tmp_path)
    assert [(i.step, i.validation_loss, i.is_best) for i in infos] == [
        (2, 1.5, True),
        (5, 1.5, False),
        (6, 1.75, False),
    ]
    assert infos[0].num_parameters == 33
    assert infos[0].size_bytes == 33 * 4 * 3 + 4 + 4  # parameters, two moments, Adam's count, step
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5", "6"]


def test_a_step_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, section())
    checkpoints.save(1, state_of(1), host={})
    checkpoints.save(1, state_of(2), host={})
    checkpoints.wait()
    assert checkpoints.verify(1).state_digest == state_digest(state_of(1))
    checkpoints.save(1, state_of(3), host={}, force=True)
    checkpoints.wait()
    assert checkpoints.verify(1).state_digest == state_digest(state_of(3))
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_parameters_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, section(asynchronous=False))
    state = state_of(4)
    checkpoints.save(4, state, host={})
    restored, _ = checkpoints.restore(4, {"params": abstract_of(state["params"])})
    assert restored.keys() == {"params"}
    assert bits(restored) == bits(state["params"])


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    gate = threading.Event()
    commits: list[int] = []

    def on_commit(info: CheckpointInfo) -> None:
        commits.append(info.step)

    checkpoints = Checkpoints(
        tmp_path, section(), before_commit=lambda: assert_true(gate.wait(300)), on_commit=on_commit
    )
    checkpoints.save(1, state_of(1), host={})
    assert not checkpoints.wait(0.05)
    assert checkpoints.steps() == []
    gate.set()
    checkpoints.save(2, state_of(2), host={})
    assert commits[:1] == [1]
    checkpoints.wait()
    assert commits == [1, 2]


def assert_true(value: bool) -> None:
    assert value


def test_a_failure_in_the_background_is_raised_once(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no")

    checkpoints = Checkpoints(tmp_path, section(), before_commit=fail)
    checkpoints.save(1, state_of(1), host={})
    with pytest.raises(ValueError, match="no"):
        checkpoints.wait()
    assert checkpoints.wait()
    assert list(tmp_path.iterdir()) == []


def test_readers_leave_what_is_being_written(tmp_path: Path) -> None:
    stray = tmp_path / "7.unfinished"
    stray.mkdir(parents=True)
    (stray / "file").write_text("half")
    reader = Checkpoints(tmp_path, section())
    assert reader.steps() == []
    assert reader.infos() == []
    assert stray.exists()
    assert reader.latest_good(abstract_of(state_of(1))) is None  # the holder's first call cleans
    assert not stray.exists()


def test_an_interrupted_replacement_is_put_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, section(asynchronous=False))
    checkpoints.save(1, state_of(1), host={})
    stray = tmp_path / "1.unfinished"
    stray.mkdir()
    (tmp_path / "1").rename(stray / "replaced")  # where a kill between the two renames of a commit leaves it
    found = Checkpoints(tmp_path, section()).latest_good(abstract_of(state_of(1)))
    assert found is not None
    assert bits(found.state) == bits(state_of(1))
    assert not stray.exists()


def test_another_model_is_told_apart(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, section(asynchronous=False))
    checkpoints.save(1, state_of(1), host={})
    other = {"params": {"layers": {"0": {"w": jnp.zeros((4, 9))}}, "bias": jnp.zeros(3)}}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest_good(abstract_of(other))
    assert "does not fit" in caught.value.what
    for fact in ("params/layers/0/w", "float32[4, 8]", "float32[4, 9]", "params/bias"):
        assert fact in caught.value.why
    assert checkpoints.steps() == [1]  # not taken for damaged


def test_absent_steps_are_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, section(asynchronous=False))
    with pytest.raises(CheckpointError, match="step 3"):
        checkpoints.restore(3, {})
    checkpoints.save(1, state_of(1), host={})
    with pytest.raises(CheckpointError) as caught:
        checkpoints.verify(3)
    assert caught.value.why.endswith(" 1")


def test_shardings_of_the_reader(tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    place = NamedSharding(mesh, PartitionSpec("data"))
    checkpoints = Checkpoints(tmp_path, section(asynchronous=False))
    w = jax.device_put(jnp.arange(8.0 * len(jax.devices())), place)
    checkpoints.save(1, {"params": {"w": w}}, host={})
    struct = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=place)
    restored, _ = checkpoints.restore(1, {"params": {"w": struct}})
    assert restored["params"]["w"].sharding == place
    assert bits(restored) == bits(w)


OTHER_DEVICES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import state_digest
from aifx.config.sections import CheckpointSection
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
places = {"w": PartitionSpec("data", "model"), "v": PartitionSpec(None, "model"), "b": PartitionSpec()}
structs = {n: jax.ShapeDtypeStruct((8, 12), jnp.float32, sharding=NamedSharding(mesh, p)) for n, p in places.items()}
checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointSection())
tree, _ = checkpoints.restore(1, {"params": structs})
assert all(tree["params"][n].sharding == structs[n].sharding for n in structs)
assert state_digest(tree) == checkpoints.verify(1).state_digest
step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
checkpoints.save(2, tree, host={})
tree = step(tree)
checkpoints.save(3, tree, host={})
tree = step(tree)
checkpoints.wait()
"""


@pytest.mark.slow
def test_another_number_of_devices(tmp_path: Path) -> None:
    """Restore from one device to four, sharded and replicated, and back."""
    checkpoints = Checkpoints(tmp_path, section(asynchronous=False, keep_last=3))
    params = {n: jnp.arange(96.0).reshape(8, 12) + i for i, n in enumerate(("w", "v", "b"))}
    checkpoints.save(1, {"params": params}, host={})
    environ = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", OTHER_DEVICES, str(tmp_path)], env=environ, check=True)
    restored, _ = checkpoints.restore(2, abstract_of({"params": params}))
    assert bits(restored["params"]) == bits(params)
    restored, _ = checkpoints.restore(3, abstract_of({"params": params}))
    assert bits(restored["params"]) == bits(jax.tree.map(lambda x: x + 1, params))

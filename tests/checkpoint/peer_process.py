"""Run by test_peers.py: one of several processes that save, restore, fail or die together."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aifx.checkpoint import folders, storage
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import state_digest
from aifx.checkpoint.peers import JaxPeers
from aifx.config.sections import CheckpointSection
from aifx.core import artifact
from aifx.core.errors import AifxError
from aifx.core.logs import log_lines

SHAPES = {"w": (24, 192), "both": (24, 12), "whole": (6, 5), "scalar": (), "narrow": (12,)}
SPECS = {"w": ("x",), "both": (None, "x"), "whole": (), "scalar": (), "narrow": ("x",)}
OTHER_SPECS = {"w": (None, "x"), "both": ("x",), "whole": (), "scalar": (), "narrow": ()}

LIMIT_S = 300
GONE_S = 1
"""For a process that is known to be gone."""

SIGNS = Path(os.environ.get("SIGNS", ""))
"""A folder in which the processes show each other how far they are."""


def wait_for(sign: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (SIGNS / sign).exists():
        assert time.monotonic() < deadline, sign
        time.sleep(0.01)


def values_of(step: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(step)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def state_of(step: int) -> dict[str, Any]:
    """Divided and replicated arrays, and a counter that each process has to itself."""
    places = shardings(SPECS)
    params = {
        name: jax.make_array_from_callback(value.shape, places[name], lambda index, value=value: value[index])
        for name, value in values_of(step).items()
    }
    return {"params": params, "step": jax.numpy.int32(step)}


def shardings(specs: dict[str, tuple[Any, ...]]) -> dict[str, NamedSharding]:
    mesh = Mesh(np.array(jax.devices()), ("x",))
    return {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}


def abstract(specs: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    params = {n: jax.ShapeDtypeStruct(SHAPES[n], np.float32, sharding=s) for n, s in shardings(specs).items()}
    return {"params": params, "step": jax.ShapeDtypeStruct((), np.int32)}


def check(found: dict[str, Any], step: int) -> None:
    """Every shard on every device of this process is what was saved."""
    assert int(found["step"]) == step
    for name, value in values_of(step).items():
        for shard in found["params"][name].addressable_shards:
            assert np.asarray(shard.data).tobytes() == value[shard.index].tobytes(), name


def save(checkpoints: Checkpoints, index: int, step: int) -> None:
    checkpoints.save(step, state_of(step), host={"step": step}, validation_loss=1.0 / step)
    checkpoints.wait()


def restore(checkpoints: Checkpoints, index: int, step: int) -> int:
    """The newest that is good, in both ways of dividing it."""
    for specs in (SPECS, OTHER_SPECS):
        found = checkpoints.latest_good(abstract(specs))
        assert found is not None
        check(found.state, found.step)
        assert found.host == {"step": found.step}
    verification = checkpoints.verify(found.step)
    assert verification.damaged == ()
    assert state_digest(found.state) == verification.state_digest
    return found.step


def busy_disk(checkpoints: Checkpoints, index: int, step: int) -> None:
    """A write of process 1 fails once."""
    real, calls = storage.write_arrays, []

    def write(folder: Path, arrays: Any) -> None:
        calls.append(folder)
        if index == 1 and len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
        real(folder, arrays)

    patch("write_arrays", write)
    save(checkpoints, index, step)
    assert len(calls) == 2


def full_disk(checkpoints: Checkpoints, index: int, step: int) -> None:
    """Process 1 has no room."""

    def write(folder: Path, arrays: Any) -> None:
        if index == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        storage.write_arrays(folder, arrays)

    patch("write_arrays", write)
    save(checkpoints, index, step)


def killed_writing(checkpoints: Checkpoints, index: int, step: int) -> None:
    """Process 1 is killed once its arrays are on the disk."""
    real, peers = artifact.seal_files, checkpoints._peers
    assert isinstance(peers, JaxPeers)

    def seal(folder: Path, paths: Any) -> Any:
        if index == 1:
            (SIGNS / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for("killed")
        peers._wait_s = GONE_S
        return real(folder, paths)

    patch("seal_files", seal)
    save(checkpoints, index, step)


def killed_committing(checkpoints: Checkpoints, index: int, step: int) -> None:
    """Process 0 is killed before the rename."""

    def commit(place: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    folders.commit = commit
    save(checkpoints, index, step)


def patch(name: str, replacement: Callable[..., Any]) -> None:
    from aifx.checkpoint import writing

    setattr(writing, name, replacement)


ACTIONS = {f.__name__: f for f in (save, restore, busy_disk, full_disk, killed_writing, killed_committing)}


def main(directory: Path, address: str, count: int, index: int, steps: list[str]) -> None:
    storage.CHUNK_BYTES = 2304  # type: ignore[misc]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index, initialization_timeout=LIMIT_S)
    section = CheckpointSection(asynchronous=True, keep_last=5, disk_timeout_s=0)
    commits: list[int] = []
    lines: list[str] = []
    checkpoints = Checkpoints(
        directory,
        section,
        on_commit=lambda info: commits.append(info.step),
        warn=lines.append,
        peers=JaxPeers("test", wait_s=LIMIT_S),
    )
    document: dict[str, Any] = {"index": index, "commits": commits, "logged": lines, "error": None}
    try:
        with log_lines(lines.append):
            for step in steps:
                name, _, number = step.partition("=")
                document[name] = ACTIONS[name](checkpoints, index, int(number or 0))
    except AifxError as e:
        document["error"] = e.document()
    except BaseException:
        document["error"] = traceback.format_exc()
    sys.stdout.write(json.dumps(document))
    sys.stdout.flush()
    if document["error"] is not None:
        (SIGNS / f"reported-{index}").touch()
        if index == 0 and not (SIGNS / "killed").exists():
            for other in range(1, count):  # JAX aborts the others, amid what they say, once process 0 is gone
                wait_for(f"reported-{other}")
        os._exit(3)  # without the barrier at the end, which the others may never reach


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])

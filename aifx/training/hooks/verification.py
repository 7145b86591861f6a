"""Silent corruption: a step computed twice from the same state and batch, and compared bit for bit."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from aifx.checkpoint.digest import key_data, shard_lanes
from aifx.checkpoint.lanes import Lanes, starts_of
from aifx.checkpoint.naming import flat_names
from aifx.core.errors import AifxError, ExitCode
from aifx.data.base import Batch
from aifx.parallel.group import Group
from aifx.programs.state import TrainState
from aifx.training.hook import Hook, TakeStep

Digests: TypeAlias = dict[str, dict[str, Lanes]]
"""The digest of each shard on this process's devices, by device and array."""


class Corrupted(AifxError):
    """A step gave other bits when it was computed again, or devices that hold the same array hold other bits."""

    exit_code = ExitCode.PREEMPTED


class Verification(Hook):
    """Computes each `every`th step twice, and compares the digests of each device's shards.

    The first result is given up, so the devices need memory for one more state meanwhile. With `every` 0, no step is
    computed twice.
    """

    all_processes = True

    def __init__(self, group: Group, every: int) -> None:
        self._group = group
        self._every = every
        self._copier: Any = None

    def around_step(self, take_step: TakeStep) -> TakeStep:
        def verified(step: int, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
            return take_step(step, state, batch) if step % self._every else self._verify(take_step, step, state, batch)

        return verified if self._every else take_step

    def _verify(self, take_step: TakeStep, step: int, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        """The next state and STEP_METRICS. Raises Corrupted in all processes if one finds it."""
        first = device_digests(*take_step(step, self._copy(state), batch))
        state, numbers = take_step(step, state, batch)
        second = device_digests(state, numbers)
        host = socket.gethostname()
        own = {
            "differing": {f"{name} on {host}": _differing(first[name], second[name]) for name in first},
            "replicas": {f"{name} on {host}": lanes for name, lanes in _replicas(state, second).items()},
        }
        everyone = self._group.gather(own)
        found = self._group.broadcast(judge(everyone) if self._group.is_first else None)
        if found is not None:
            what, why = found
            hint = "aifx doctor --stress    (on the hosts named; the last checkpoint is from before)"
            raise Corrupted(f"step {step} {what}", why, hint)
        return state, numbers

    def _copy(self, state: TrainState) -> TrainState:
        """The state in memory of its own, since the step takes that of its argument."""
        if self._copier is None:
            places = jax.tree.map(lambda x: x.sharding, state)
            self._copier = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places)
        copied: TrainState = self._copier(state)
        return copied


def device_digests(state: TrainState, numbers: jax.Array) -> Digests:
    """The digests of all shards on this process's devices, also of arrays that other devices hold too."""
    leaves = {name: key_data(leaf) for name, leaf in flat_names(state).items()} | {"numbers": numbers}
    queued: list[tuple[str, str, Future[Lanes]]] = []
    for name, leaf in leaves.items():
        for shard in leaf.addressable_shards:
            lanes = shard_lanes(shard.data, starts_of(shard.index, leaf.ndim), leaf.shape)
            queued.append((str(shard.device), name, lanes))
    found: Digests = {}
    for device, name, lanes in queued:
        found.setdefault(device, {})[name] = lanes.result()
    return found


def _differing(first: Mapping[str, Lanes], second: Mapping[str, Lanes]) -> list[str]:
    return [name for name, lanes in first.items() if lanes != second[name]]


def _replicas(state: TrainState, digests: Digests) -> dict[str, list[list[int]]]:
    """By device, the digests of the arrays that all devices hold whole."""
    whole = [name for name, leaf in flat_names(state).items() if key_data(leaf).sharding.is_fully_replicated]
    return {device: [list(of_device[name]) for name in whole] for device, of_device in digests.items()}


def judge(found: list[dict[str, Any]]) -> tuple[str, str] | None:
    """The fault and its place, from the findings of each process; None if all agree."""
    differing = {device: arrays for own in found for device, arrays in own["differing"].items()}
    wrong = {device: arrays for device, arrays in differing.items() if arrays}
    if wrong:
        return "gave other bits when it was computed again", "\n".join(_places(wrong, len(differing)))
    replicas = {device: repr(lanes) for own in found for device, lanes in own["replicas"].items()}
    counts = Counter(replicas.values())
    if len(counts) <= 1:
        return None
    usual, of_usual = counts.most_common(1)[0]
    odd = [device for device, lanes in replicas.items() if lanes != usual]
    if 2 * of_usual <= len(replicas):
        return "left other bits on devices that hold the same arrays", f"no majority among {', '.join(replicas)}"
    return "left other bits on devices that hold the same arrays", f"those of {', '.join(odd)} differ from the others"


def _places(wrong: Mapping[str, list[str]], num_devices: int) -> Iterator[str]:
    for device, arrays in wrong.items():
        more = f" and {len(arrays) - 3} more" if len(arrays) > 3 else ""
        yield f"{device}: {', '.join(arrays[:3])}{more}"
    if len(wrong) == num_devices > 1:
        yield "all devices differ: sums over devices carry a fault of one to the others"

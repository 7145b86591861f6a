"""The processes that save and restore one checkpoint together, and how they agree on what failed."""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import jax
from jax._src.distributed import global_state  # jax.process_index() opens the device, and has no store of keys

from aifx.checkpoint.faults import may_pass
from aifx.checkpoint.manifest import Damaged
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode
from aifx.core.os_errors import first_line
from aifx.parallel.group import Group

WAIT_S = 1800.0
"""Limit of the wait for another process: the slowest may be writing a large share to a slow disk."""

Result = TypeVar("Result")


class JaxPeers(Group):
    """The processes that `jax.distributed` connected, through the key-value store of its coordination service.

    Calls about one folder have an order of their own: a checkpoint is saved in a thread beside the job's other calls.

    Raises EnvironmentFault (exit code 75) if a process doesn't answer within `wait_s`.
    """

    _rounds: ClassVar[defaultdict[str, Iterator[int]]] = defaultdict(itertools.count)
    """By scope, for the whole process: two objects for one folder must not read each other's old values."""

    def __init__(self, scope: str, wait_s: float = WAIT_S) -> None:
        self.index, self.size = int(global_state.process_id), int(global_state.num_processes)
        assert global_state.client is not None, "jax.distributed connects several processes"
        self._client, self._scope, self._wait_s = global_state.client, scope, wait_s
        self._read_by_all: list[str] = []

    def gather(self, value: Any) -> list[Any]:
        key = self._key()
        if not self.is_first:
            self._client.key_value_set(f"{key}/{self.index}", json.dumps(value))
            return []
        until = time.monotonic() + self._wait_s
        found = [value, *(self._get(f"{key}/{index}", index, until) for index in range(1, self.size))]
        for old in [key, *self._read_by_all]:  # whoever took part in this call has read the values before it
            self._client.key_value_delete(old)
        self._read_by_all.clear()
        return found

    def broadcast(self, value: Any = None) -> Any:
        key = self._key()
        if not self.is_first:
            return self._get(key, 0, time.monotonic() + self._wait_s)
        self._client.key_value_set(key, json.dumps(value))
        self._read_by_all.append(key)
        return value

    def _key(self) -> str:
        return f"aifx/{self._scope}/{next(self._rounds[self._scope])}"

    def _get(self, key: str, index: int, until: float) -> Any:
        left_ms = max(int(1000 * (until - time.monotonic())), 1)
        try:
            return json.loads(self._client.blocking_key_value_get(key, left_ms))
        except jax.errors.JaxRuntimeError as e:
            what = f"process {index} did not take part in a checkpoint within {self._wait_s:g} s"
            hint = "run the same command again: it resumes from the checkpoint before"
            raise EnvironmentFault(what, first_line(e), hint, exit_code=ExitCode.PREEMPTED) from e


def peers_of(scope: str) -> Group:
    """All processes that JAX knows, for calls about `scope`, a name that is the same in all of them.

    Opens no device: that would wait for the other processes, which may be waiting for this one.
    """
    is_joined = jax.distributed.is_initialized() and global_state.num_processes > 1
    return JaxPeers(scope) if is_joined else Group()


class Failed(Exception):
    """An action failed in one of the processes.

    Attributes:
        error: of this process, or an error that names the one that failed.
        may_pass: whether all of them may succeed if the action is repeated.
    """

    def __init__(self, error: BaseException, may_pass: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.may_pass = may_pass


def together(peers: Group, action: Callable[[], Result]) -> Result:
    """Run `action` in all processes and wait for all of them. Raises Failed in each if it failed in one.

    If several failed, the errors in `Failed` are all `Damaged` or none is, so that all processes go on alike.
    """
    error: BaseException | None = None
    result: Result
    try:
        result = action()
    except BaseException as e:
        error = e
    failures = [failure for failure in peers.gather(_failure(peers.index, error)) if failure]
    failures = peers.broadcast(failures)
    if failures:
        worst = min(failures, key=lambda failure: bool(failure["is_damage"]))  # damage is handled; the rest ends a run
        is_like_own = error is not None and isinstance(error, Damaged) == worst["is_damage"]
        shared = error if error is not None and is_like_own else _error_of_peer(**worst)
        raise Failed(shared, all(failure["may_pass"] for failure in failures)) from error
    return result


def first(peers: Group, action: Callable[[], None]) -> None:
    """Run `action` in process 0 while the others wait. Raises Failed in each if it failed."""
    together(peers, action if peers.is_first else lambda: None)


def _failure(index: int, error: BaseException | None) -> dict[str, Any] | None:
    if error is None:
        return None
    what, why = (error.what, error.why) if isinstance(error, AifxError) else ("", first_line(error))
    return {
        "index": index,
        "what": what,
        "why": why,
        "is_damage": isinstance(error, Damaged),
        "may_pass": may_pass(error),
    }


def _error_of_peer(index: int, what: str, why: str, is_damage: bool, may_pass: bool) -> AifxError:
    if is_damage:
        return Damaged(what, why)
    where = what or f"process {index} failed with a part of a checkpoint"
    return EnvironmentFault(where, f"process {index}: {why}", f"read the log of process {index}")

"""A failure of one process is one of all, and the same in each. The processes are threads here."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest

from aifx.checkpoint.manifest import Damaged
from aifx.checkpoint.peers import Failed, first, together
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.parallel.group import Group

END_S = 300


class ThreadPeers(Group):
    def __init__(self, index: int, up: list[Queue[Any]], down: list[Queue[Any]]) -> None:
        self.index, self.size, self._up, self._down = index, len(up), up, down

    def gather(self, value: Any) -> list[Any]:
        if not self.is_first:
            self._up[self.index].put(value)
            return []
        return [value, *(queue.get(timeout=END_S) for queue in self._up[1:])]

    def broadcast(self, value: Any) -> Any:
        if not self.is_first:
            return self._down[self.index].get(timeout=END_S)
        for queue in self._down[1:]:
            queue.put(value)
        return value


def run(count: int, act: Callable[[ThreadPeers], Any]) -> list[Any]:
    """The result of `act` in each process, or what Failed holds."""
    up: list[Queue[Any]] = [Queue() for _ in range(count)]
    down: list[Queue[Any]] = [Queue() for _ in range(count)]

    def one(index: int) -> Any:
        try:
            return act(ThreadPeers(index, up, down))
        except Failed as failed:
            return failed

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def raising(errors: dict[int, Exception]) -> Callable[[ThreadPeers], Any]:
    def act(peers: ThreadPeers) -> int:
        def action() -> int:
            if error := errors.get(peers.index):
                raise error
            return peers.index

        return together(peers, action)

    return act


IO = OSError(errno.EIO, "Input/output error", "/disk/file")
FULL = EnvironmentFault("no room", "the disk is full")
DAMAGED = Damaged("checkpoint 3 is damaged", "bytes differ")


def test_each_gets_its_own_result() -> None:
    assert run(3, raising({})) == [0, 1, 2]


def test_the_others_name_the_process_that_failed() -> None:
    found = run(3, raising({1: FULL}))
    assert found[1].error is FULL
    for other in (found[0], found[2]):
        assert isinstance(other.error, EnvironmentFault)
        assert "process 1" in other.error.why
        assert FULL.why in other.error.why
    assert not any(failed.may_pass for failed in found)


@pytest.mark.parametrize(("errors", "again"), [({2: IO}, True), ({0: IO, 2: IO}, True), ({1: FULL, 2: IO}, False)])
def test_all_or_none_try_again(errors: dict[int, Exception], again: bool) -> None:
    assert [failed.may_pass for failed in run(3, raising(errors))] == [again] * 3


@pytest.mark.parametrize(("errors", "is_damage"), [({1: DAMAGED}, True), ({0: DAMAGED, 1: IO}, False)])
def test_all_or_none_find_damage(errors: dict[int, Exception], is_damage: bool) -> None:
    for failed in run(3, raising(errors)):
        assert isinstance(failed.error, AifxError | OSError)
        assert isinstance(failed.error, Damaged) == is_damage


def test_only_process_0_does_what_is_done_once() -> None:
    done: list[int] = []
    run(3, lambda peers: first(peers, lambda: done.append(peers.index)))
    assert done == [0]

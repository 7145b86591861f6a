"""A watcher that cannot load a model at the moment tries it again: a fault of the store says nothing of the model."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from aifx.core.errors import AifxError, CheckpointError, EnvironmentFault
from aifx.serving.swap import Candidate, Watcher


class Serving:
    """An engine that only swaps."""

    def __init__(self) -> None:
        self.weights: Any = SimpleNamespace(fingerprint="v2")

    @property
    def fingerprint(self) -> str:
        return str(self.weights.fingerprint)

    def swap(self, weights: Any) -> None:
        self.weights = weights


class RolledBack:
    """Names the version before, whose loading fails with each of some errors, and then succeeds."""

    first = "v2"

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.noted = list(errors), list[str]()

    def restore(self) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return SimpleNamespace(run=SimpleNamespace(name="fraud@v1"), step=1, digest="1" * 64)

    def newest(self) -> Candidate:
        return Candidate("v1", "entry 3", "fraud@production (v1)", self.restore, (), is_way_back=True)

    def adopted(self, candidate: Candidate) -> None:
        self.noted.append(str(candidate.id))

    def left(self) -> None: ...


def watcher_of(source: RolledBack) -> Watcher[Any]:
    def load(restored: Any) -> Any:
        return SimpleNamespace(fingerprint="v1")

    return Watcher(Serving(), source, load, lambda *_: (check for check in ()), every_s=3600.0)  # type: ignore[arg-type]


def unreachable() -> EnvironmentFault:
    error = EnvironmentFault("could not read s3://bucket/models")
    error.__cause__ = TimeoutError()
    return error


@pytest.mark.parametrize("fault", [unreachable(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_rollback_is_tried_again_after_a_fault_that_passes(fault: Exception) -> None:
    source = RolledBack(fault)
    watcher = watcher_of(source)
    with pytest.raises(type(fault)):
        watcher.look()  # the watcher's thread reports it, and looks again
    assert (watcher.counts.refused, watcher.current) == (0, "v2")
    assert watcher.look()
    assert (watcher.counts.taken, watcher.current, source.noted) == (1, "v1", ["v1"])


@pytest.mark.parametrize("fault", [CheckpointError("weights are damaged"), AifxError("another tokenizer")])
def test_what_is_wrong_with_a_model_refuses_it_once(fault: Exception) -> None:
    watcher = watcher_of(RolledBack(fault))
    assert not watcher.look()
    assert not watcher.look()
    assert (watcher.counts.refused, watcher.current) == (1, "v2")

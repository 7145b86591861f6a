"""Training in a process that is not the first of its job. The other process is a stand-in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.stop_signals import StopSignals
from aifx.parallel.group import Group, PeerLost
from aifx.planning import planner
from aifx.training import run as run_module
from aifx.training.restore import begin


class Second(Group):
    """Process 1 of 2, where process 0 says the same, or `first_sees` for what this process cannot know."""

    index, size = 1, 2

    def __init__(self, first_sees: Any = None) -> None:
        self.first_sees = first_sees

    def gather(self, value: Any) -> list[Any]:
        return []

    def broadcast(self, value: Any = None) -> Any:
        return self.first_sees if value is None else value


def test_a_checkpoint_that_one_process_does_not_see_yet(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained.run()
    checkpoints = Checkpoints(run.checkpoints, trained.config().checkpoint, peers=Second(first_sees=12))
    monkeypatch.setattr(checkpoints, "latest", lambda: None)
    assert begin(trained.programs(), checkpoints, run).step == 12


@pytest.mark.slow
def test_process_0_alone_writes_the_configuration_of_a_fork(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def joined(*_: Any) -> Iterator[Group]:
        yield Second()

    monkeypatch.setattr(run_module, "joined", joined)
    fork = trained.run("fork")
    shutil.copytree(trained.run().assets, fork.assets)  # as process 0 does
    trained.train("train.num_steps=13", run="fork", fork_from="main")
    assert Checkpoints(fork.checkpoints, trained.config().checkpoint).latest() == 13
    assert not fork.config.exists()


def test_a_process_ends_although_the_advice_on_memory_failed(
    trained: Any, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a defect of the planner")

    ended = []
    stop = StopSignals()
    monkeypatch.setattr(planner, "out_of_memory", fail)
    monkeypatch.setattr(stop, "leave", lambda *words: ended.append(words))
    run_module._leave(PeerLost("RESOURCE_EXHAUSTED"), stop, trained.project, trained.config(), trained.run())
    assert len(ended) == 1
    assert "the planner" in "\n".join(logged)

"""Withdrawn versions: what is refused about them, and acts that run while one is withdrawn."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from killed_acts import attest_eval, push_text

from aifx.core.errors import UsageError
from aifx.core.stores import Store, open_store
from aifx.registry import acts
from aifx.registry.acts import Act, Caller, approve, attest_file, copy_version, promote, remove, tag
from aifx.registry.ledger import Ledger
from aifx.registry.reports import pull_version, verify_root
from aifx.registry.roots import Root

ANN, BOB = Caller("ann"), Caller("bob")


def withdraw(root: Root) -> Act:
    return remove(root, "fraud@v1", lambda state, version: [], ANN)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    return Root(open_store(str(tmp_path / "registry")))


def test_nothing_is_added_to_a_withdrawn_version(root: Root, tmp_path: Path) -> None:
    push_text(root, "a")
    attested = attest_file(root, "fraud@v1", "CARD.md", b"a card", None, Caller("ann", "card"))
    withdraw(root)
    kept = root.store.files("objects")
    refused: tuple[Callable[[Caller], object], ...] = (
        lambda caller: attest_file(root, "fraud@v1", "CARD.md", b"another", None, caller),
        lambda caller: approve(root, "fraud@v1", "production", None, caller),
        lambda caller: promote(root, "fraud@v1", "production", caller),
        lambda caller: tag(root, "fraud@v1", {"team": "risk"}, (), caller),
        lambda caller: copy_version(root, "fraud@v1", Root(open_store(str(tmp_path / "other"))), caller),
        lambda _: pull_version(root, "fraud@v1", tmp_path / "pulled"),
        lambda _: root.fetch(*root.find("fraud@v1")),
    )
    for act, is_dry in itertools.product(refused, (False, True)):
        with pytest.raises(UsageError, match="fraud@v1 was withdrawn") as error:
            act(Caller("bob", dry_run=is_dry))
        assert error.value.hint.startswith("aifx registry push RUN fraud")
    assert root.store.files("objects") == kept
    assert len(root.state("fraud").entries) == 3
    again = attest_file(root, "fraud@v1", "CARD.md", b"a card", None, Caller("ann", "card"))
    assert (again.entry, again.is_repeated) == (attested.entry, True)
    push_text(root, "a")
    assert tag(root, "fraud@v1", {"team": "risk"}, (), ANN).entry == 5
    assert verify_root(root, (), ()).problems == ()


def test_files_of_each_withdrawal_are_deleted(root: Root) -> None:
    for _ in range(3):
        push_text(root, "a")
        assert len(root.store.folders("models/fraud/versions")) == 1
        withdraw(root)
        assert root.store.folders("models/fraud/versions") == []


class Actor:
    """An act in a thread, which stops before each call that reads the ledger or changes the root."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.stops, self._turn, self._stopped = 0, SimpleQueue[None](), SimpleQueue[bool]()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self._thread.start()
        self.has_ended = self._stopped.get()

    def _run(self, act: Callable[[], object]) -> None:
        ACTORS.actor = self
        try:
            self.stop()
            act()
        except Exception as e:
            self.error = e
        self._stopped.put(True)

    def stop(self) -> None:
        self._stopped.put(False)
        self._turn.get()

    def step(self, count: int) -> bool:
        """Go on past `count` stops. Returns whether there were as many."""
        for _ in range(count):
            if self.has_ended:
                return False
            self._turn.put(None)
            self.has_ended = self._stopped.get()
        return True

    def finish(self) -> None:
        while self.step(1):
            pass
        self._thread.join()


ACTORS = threading.local()


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let acts of actors stop at each call that another act could come before."""

    def stop_before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if (actor := getattr(ACTORS, "actor", None)) is not None:
                actor.stop()
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    stop_before(Ledger, "entries")
    for name in ("create", "remove"):
        stop_before(Store, name)
    for name in ("publish", "copy_artifact", "damaged_in_store"):
        stop_before(acts, name)


@pytest.mark.parametrize(
    ("name", "are_all"),
    [
        pytest.param("push", False, marks=pytest.mark.representative("a push while the version is withdrawn")),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("push", "copy", "rm")),
    ],
)
@pytest.mark.usefixtures("stopping")
def test_each_order_of_an_act_and_a_withdrawal(root: Root, tmp_path: Path, name: str, are_all: bool) -> None:
    """One act runs to one of its stops, then the other to one of its own; then the first ends, and the second.

    Unless all orders are tried, the other act runs to its end.
    """
    source = Root(open_store(str(tmp_path / "source")))
    push_text(source, "a")
    orders = 0

    def race(target: Root, is_withdrawn: bool, is_first: bool, one: int, other: int) -> tuple[bool, bool]:
        push_text(target, "a")
        attest_eval(target, "fraud@v1")
        if is_withdrawn:
            withdraw(target)
        act = {
            "push": lambda: push_text(target, "a"),
            "copy": lambda: copy_version(source, "fraud@v1", target, BOB),
            "rm": lambda: withdraw(target),
        }[name]
        pair = (act, lambda: withdraw(target))
        first, second = (Actor(each) for each in (pair if is_first else pair[::-1]))
        were_there = first.step(one), second.step(other) if are_all else False
        if not are_all:
            second.finish()
        first.finish()
        second.finish()
        assert (first.error, second.error) == (None, None)
        assert verify_root(target, (), ()).problems == ()
        version = target.state("fraud").versions[target.find("fraud@v1")[1].digest]
        assert len(target.store.folders("models/fraud/versions")) == (0 if version.is_withdrawn else 1)
        return were_there

    for is_withdrawn, is_first in itertools.product((False, True), repeat=2):
        for one in itertools.count():
            for other in itertools.count():
                target = Root(open_store(str(tmp_path / f"target-{orders}")))
                were_there = race(target, is_withdrawn, is_first, one, other)
                orders += were_there[0]
                if not all(were_there):
                    break
            if not were_there[0]:
                break
    assert orders > (100 if are_all else 20)

"""A ledger of 10,000 entries: what commands read of it, counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from killed_acts import ACTS, fill

from aifx.core.stores import Store, open_store
from aifx.registry import ledger as ledger_module
from aifx.registry.ledger import Entry, Ledger
from aifx.registry.reports import history_of
from aifx.registry.roots import Root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    return Root(open_store(str(tmp_path / "registry")))


@pytest.mark.parametrize(
    "act", ["push", "push_back", "tag", "attest", "approve", "promote", "rollback", "copy", "remove", "history"]
)
def test_a_command_reads_each_entry_once(root: Root, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, act)
    count = len(root.state("fraud").entries)
    asked, real = list[str](), Store.read_many

    def read_many(store: Store, names: list[str]) -> object:
        if store.url == root.ledger("fraud").store.url:
            asked.extend(names)
        return real(store, names)

    monkeypatch.setattr(Store, "read_many", read_many)
    if act == "history":
        history_of(root, "fraud")
    else:
        ACTS[act](root)
    assert len(asked) == len(set(asked)) == count


def test_entries_are_read_with_one_call_each_and_nothing_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, entries = Ledger(open_store(str(tmp_path)), "the ledger"), tuple[Entry, ...]()
    for number in range(20):
        entries = (*entries, ledger.append(entries, Entry("push", "ann", version=f"{number:064x}")))
    opened, real = list[str](), os.open

    def open_(path: object, *args: int, **kwargs: int) -> int:
        opened.append(os.fspath(path))  # type: ignore[call-overload]
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(ledger_module, "encode_json", None)
    assert ledger.entries() == entries
    assert len(opened) == 1 + len(entries)
    opened.clear()
    assert ledger.entries(entries) == entries
    assert len(opened) <= 1

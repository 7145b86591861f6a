"""The chain of a ledger: what was changed, removed or reordered is found, and only one writer gets each number."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifx.core.errors import UsageError
from aifx.core.stores import open_store
from aifx.registry.ledger import DamagedLedger, Entry, Ledger, LostRace, file_name
from aifx.registry.roots import Outcome, Root, check_alias, find_version
from aifx.registry.state import ModelState

V1, V2, V3 = (character * 64 for character in "123")


def push(version: str) -> Entry:
    return Entry("push", "ann", version=version)


def move(version: str, alias: str, action: str = "promote") -> Entry:
    return Entry(action, "ann", version=version, alias=alias)


def write(root: Root, *entries: Entry) -> ModelState:
    for entry in entries:
        root.act("fraud", None, lambda _, entry=entry: entry, again=True)  # type: ignore[misc]
    return root.state("fraud")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(open_store(str(tmp_path / "registry")))


def ledger_folder(root: Root) -> Path:
    folder = root.ledger("fraud").store.folder
    assert folder is not None
    return folder


def test_a_state_is_what_the_entries_say(root: Root) -> None:
    state = write(
        root,
        push(V1),
        push(V2),
        move(V1, "production"),
        push(V1),
        move(V2, "production"),
        move(V1, "canary"),
        Entry("refuse", "ann", version=V3, alias="production"),
        move(V1, "production", "rollback"),
        Entry("tag", "ann", version=V2, facts={"set": {"team": "risk", "tier": "1"}}),
        Entry("tag", "ann", version=V2, facts={"removed": ["tier"]}),
        Entry("withdraw", "ann", version=V2),
    )
    assert [version.label for version in state.versions.values()] == ["v1", "v2"]
    assert {alias: entry.version for alias, entry in state.aliases.items()} == {"canary": V1, "production": V1}
    assert state.before("production") is None
    assert ModelState("fraud", state.entries[:5]).before("production") == V1
    assert state.tags == {V2: {"team": "risk"}}
    assert state.versions[V2].is_withdrawn
    assert not state.versions[V1].is_withdrawn
    assert find_version(state, "fraud@production").digest == V1
    assert find_version(state, "fraud@2222").number == 2
    with pytest.raises(UsageError) as error:
        find_version(state, "fraud@prodction")
    assert error.value.why == "did you mean 'production'?"


def test_time_goes_by_the_order_of_the_chain() -> None:
    times = ["2026-01-01T00:00:00+00:00", "2026-01-03T00:00:00+00:00", "2026-01-02T00:00:00+00:00"]
    entries = [
        Entry("promote", "ann", version=version, alias="a", number=number, time=time)
        for number, (version, time) in enumerate(zip((V1, V2, V3), times, strict=True), 1)
    ]
    state = ModelState("fraud", entries)
    meant = [
        state.at(datetime.fromisoformat(f"2026-01-0{day}T12:00:00+00:00")).aliases["a"].version for day in (1, 2, 3)
    ]
    assert meant == [V1, V1, V3]
    assert not state.at(datetime.fromisoformat("2025-12-31T00:00:00+00:00")).aliases


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_each_change_of_the_files_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = Root(open_store(str(tmp_path_factory.mktemp("registry"))))
    write(root, *(push(f"{number:064x}") for number in range(5)))
    ledger, folder = root.ledger("fraud"), ledger_folder(root)
    number = data.draw(st.integers(1, 5))
    path = folder / file_name(number)
    act = data.draw(st.sampled_from(["flip", "remove", "swap", "cut"]))
    if act == "flip":
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(content))
    elif act == "cut":
        path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, 40))])
    elif act == "remove":
        head = ledger.entries()[-1].digest
        path.unlink()
        if number == 5:  # nothing in the ledger says that there was a fifth entry
            assert head not in [entry.digest for entry in ledger.entries()]
            return
    else:
        other = folder / file_name(number % 5 + 1)
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
    with pytest.raises(DamagedLedger):
        ledger.entries()


def test_an_entry_rewritten_with_its_digests_is_found(root: Root) -> None:
    write(root, push(V1), push(V2), push(V3))
    ledger, second = root.ledger("fraud"), root.ledger("fraud").entries()[1]
    forged = Entry("push", "eve", second.request, V2).sealed(2, second.previous, second.time)
    (ledger_folder(root) / file_name(2)).write_bytes(forged.encode())
    with pytest.raises(DamagedLedger, match="is damaged"):
        ledger.entries()


def test_a_request_makes_one_entry(root: Root) -> None:
    def ask() -> Outcome:
        return root.act("fraud", "job-7", lambda _: push(V1), again=True)

    first, second = ask(), ask()
    assert (first.is_repeated, second.is_repeated) == (False, True)
    assert first.entry == second.entry
    assert len(second.state.entries) == 1


def test_a_decision_that_another_entry_overtakes_is_refused(root: Root) -> None:
    write(root, push(V1))

    def decide(state: ModelState) -> Entry:
        if len(state.entries) == 1:
            write(root, push(V2))
        return move(V1, "production")

    with pytest.raises(LostRace) as error:
        root.act("fraud", None, decide, again=False)
    assert error.value.exit_code == 75
    assert root.act("fraud", None, decide, again=True).entry.number == 3


@pytest.mark.parametrize("alias", ["3", "v3", "3f2a", "dead", "Production", "", "a@b", "a/b", "a" * 51, "é"])
def test_a_word_that_could_be_a_version_is_no_alias(alias: str) -> None:
    with pytest.raises(UsageError):
        check_alias(alias)


RACER = """
import sys
from aifx.core.stores import open_store
from aifx.registry.ledger import Entry, Ledger, LostRace
ledger = Ledger(open_store(sys.argv[1]), "ledger")
for line in sys.stdin:
    entries = ledger.entries()
    print("read", flush=True)
    sys.stdin.readline()
    try:
        ledger.append(entries, Entry("promote", sys.argv[2]))
        print("won", flush=True)
    except LostRace:
        print("lost", flush=True)
"""


@pytest.mark.parametrize("races", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_of_two_writers_one_wins_each_race(tmp_path: Path, races: int) -> None:
    url = str(tmp_path / "ledger")
    command = [sys.executable, "-c", RACER, url]
    racers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for name in ("ann", "bob")
    ]

    def both(line: str) -> list[str]:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(line)
            racer.stdin.flush()
        return [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]

    winners = []
    for _ in range(races):
        assert both("read\n") == ["read", "read"]
        results = both("append\n")
        assert sorted(results) == ["lost", "won"]
        winners.append(("ann", "bob")[results.index("won")])
    for racer in racers:
        racer.communicate()
    entries = Ledger(open_store(url), "ledger").entries()
    assert [entry.actor for entry in entries] == winners

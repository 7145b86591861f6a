"""Acts of the registry that are killed at each change of the disk, and two writers that race on a store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from s3_server import s3_server

from aifx.core.stores import open_store
from aifx.registry.ledger import Entry, LostRace
from aifx.registry.roots import Root
from aifx.registry.state import ModelState

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])
NAMES = ("push", "push_again", "attest", "attest_file", "approve", "promote", "rollback", "remove", "policy")
LEDGER = 25
"""Races in one ledger: each reads all of its entries."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "act",
    [
        pytest.param("promote", marks=pytest.mark.representative("a killed act of the registry")),
        *(pytest.param(act, marks=pytest.mark.slow) for act in NAMES if act != "promote"),
    ],
)
def test_a_kill_at_each_change(tmp_path: Path, act: str, record_property: Callable[[str, object], None]) -> None:
    (tmp_path / "root").mkdir()
    environ = {**os.environ, "PYTHONPATH": PATHS, "AIFX_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(HERE / "killed_acts.py"), act, str(tmp_path / "root")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    record_property("kills of an act of the registry", int(done.stdout))
    assert int(done.stdout) >= (0 if act == "push_again" else 5)


@pytest.mark.parametrize("races", [pytest.param(200, marks=pytest.mark.slow)])
def test_of_two_promoters_on_s3_one_wins_each_race(monkeypatch: pytest.MonkeyPatch, races: int) -> None:
    with s3_server(monkeypatch):
        roots = [Root(open_store("s3://bucket/registry")) for _ in range(2)]
        barrier, wins = Barrier(2), list[str]()

        def promote(who: int) -> bool:
            def decide(state: ModelState) -> Entry:
                if len(state.entries) == len(wins) % LEDGER:
                    barrier.wait(30)
                return Entry("promote", f"promoter {who}", version=str(who) * 64, alias="production")

            try:
                roots[who].act(f"fraud-{len(wins) // LEDGER}", None, decide, again=False)
            except LostRace:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            for _ in range(races):
                results = list(pool.map(promote, (0, 1)))
                assert sorted(results) == [False, True]
                wins.append(f"promoter {results.index(True)}")
        entries = [entry for name in roots[0].names() for entry in roots[0].state(name).entries]
    assert [entry.actor for entry in entries] == wins

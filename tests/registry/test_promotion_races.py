"""Two people who promote at the same time, on a file system and on S3."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from effort import sample
from killed_acts import fill
from s3_server import s3_server

from aifx.core.errors import ExitCode
from aifx.core.stores import open_store
from aifx.registry import acts
from aifx.registry.acts import Caller, promote
from aifx.registry.judge import Case, Finding
from aifx.registry.ledger import LostRace
from aifx.registry.reports import verify_root
from aifx.registry.roots import Root

RACES_OF_A_ROOT = 20
"""A race reads all entries of the model, so after some the next ones are in another root."""

LOST = f"exit {ExitCode.PREEMPTED.value}: another entry of the ledger of fraud came first"


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder, or a URL of a store."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    if request.param == "disk":
        yield str(tmp_path / "root")
        return
    with s3_server(monkeypatch):
        yield "s3://bucket/root"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("place", "races"),
    [
        ("disk", RACES_OF_A_ROOT),
        pytest.param("disk", 200, marks=pytest.mark.slow),
        pytest.param("s3", sample(200, 0.2), marks=pytest.mark.slow),
    ],
    indirect=["place"],
)
def test_of_two_promoters_one_wins_each_race(monkeypatch: pytest.MonkeyPatch, place: str, races: int) -> None:
    both_judged, judge = Barrier(2), acts.judge

    def judge_together(case: Case) -> tuple[Finding, ...]:
        findings = judge(case)
        both_judged.wait(60)
        return findings

    def act(root: Root, who: str, version: str) -> str:
        try:
            made = promote(root, f"fraud@{version}", "production", Caller(who))
        except LostRace as e:
            return f"exit {e.exit_code.value}: {e.what}"
        assert all(finding.passed for finding in made.findings)
        return made.action

    for number in range(races // RACES_OF_A_ROOT):
        promoters = [Root(open_store(f"{place}-{number}")) for _ in range(2)]
        fill(promoters[0])
        before = promoters[0].state("fraud").entries
        winners = list[str]()
        with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setattr(acts, "judge", judge_together)
            for _ in range(RACES_OF_A_ROOT):
                results = list(pool.map(act, promoters, ("ann", "bob"), ("v2", "v3")))
                assert sorted(results) == [LOST, "promote"]
                winners.append(("ann", "bob")[results.index("promote")])
        made = promoters[0].state("fraud").entries[len(before) :]
        assert [entry.actor for entry in made] == winners
        live = ["v2", *({"ann": "v2", "bob": "v3"}[winner] for winner in winners)]
        assert [entry.facts["previous"] for entry in made] == live[:-1]
        assert verify_root(promoters[1], (), ()).problems == ()

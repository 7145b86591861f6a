"""A factory: rows of a real PostgreSQL become a promoted model, or a refused one, by ticks of a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm_aifx
from effort import IS_LONG, seed_of_commit
from factory import BATCHES, PROMOTED, REFUSED, SETTINGS, STATIONS, Factory, events
from postgresql_server import PASSWORD, postgresql_server
from webhook_receiver import Answer, receiver

EVENTS = Counter({("promoted", "readings"): 2, ("gate.failed", "judge"): 1, ("gate.failed", "readings"): 1})
PAGE = Path(__file__).parents[2] / "docs/line.md"


def documented_line(url: str) -> str:
    """The line of the documentation for a database, without what keeps ticks apart in time."""
    section = PAGE.read_text().partition("### From a database to a model")[2]
    text = section.partition("```toml\n")[2].partition("```")[0]
    changes = {"postgresql://reader@db.example/plant": url, 'every = "1h"': "", '"6h"': '"1s"', "day = 2": "day = 20"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.representative("a factory")
def test_a_tick_makes_a_version_trains_judges_and_promotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with postgresql_server() as server, warm_aifx.serving(tmp_path) as words:
        monkeypatch.setattr("aifx.lines.runner.AIFX", tuple(words))
        factory = Factory(tmp_path / "root", server)
        factory.make_policy()
        factory.arrive(range(200))
        assert set(factory.tick().values()) == {"done"}
        assert [action for action, _ in factory.history()] == list(PROMOTED)
        found = factory.said()
        assert len(found["runs"]) == 1
        assert {name: len(versions) for name, versions in found["versions"].items()} == {"readings": 2}
        assert found["rows"] == server.rows("SELECT * FROM readings ORDER BY id")
        assert found["requests"] == [(1,)]
        assert found["events"] == {("promoted", "readings"): 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_adopts_what_is_promoted_and_business_systems_hear_of_it(tmp_path: Path) -> None:
    with postgresql_server() as server, receiver() as at:
        factory = Factory(tmp_path, server, at.url)
        factory.make_policy()
        lost = set[str]()

        def answer(event: dict[str, Any]) -> Answer:
            """Take each event, and lose the first answer."""
            is_new = event["id"] not in lost
            lost.add(event["id"])
            return "lost" if is_new else 204

        at.answer = answer
        assert factory.aifx("line", "check")["findings"] == []
        first, worse, better = BATCHES
        factory.arrive(*first)
        assert set(factory.states().values()) == {"done"}
        factory.aifx("notify", "run", code=None)
        (one,) = dict.fromkeys(version for _, version in factory.history())
        with factory.served() as served:
            answers = served.answers()
            factory.arrive(*worse)
            for _ in range(2):  # the second time there is nothing new
                states = factory.states(code=1)
                assert {name for name, state in states.items() if state == "verdict"} == {"judge", "promote"}
                factory.aifx("notify", "run", code=None)
            assert served.answers() == answers
            assert served.adoptions() == [("adopt", one)]
            factory.arrive(*better)
            assert set(factory.states().values()) == {"done"}
            _, two, three = dict.fromkeys(version for _, version in factory.history())
            served.wait_for([one, three])
            assert served.answers() != answers
            served.stop()
            assert served.adoptions() == [("adopt", one), ("adopt", three), ("leave", three)]
        while factory.aifx("notify", "run", code=None)["targets"][0]["waiting"]:
            time.sleep(1)
        assert set(factory.states().values()) == {"done"}  # with nothing to do
        assert factory.history() == [
            *((act, one) for act in PROMOTED), *((act, two) for act in REFUSED), *((act, three) for act in PROMOTED)
        ]  # fmt: skip
        assert Counter(events(at)) == EVENTS
        assert len(at.ids) == 2 * EVENTS.total()
        assert factory.aifx("registry", "verify", "readings")["problems"] == []
        found = factory.said()
        rows = server.rows("SELECT * FROM readings ORDER BY id")
        assert found["rows"] == rows
        assert len(rows) == 1600
        assert found["requests"] == [(3,)]
        assert len(found["runs"]) == 3
        assert {name: len(versions) for name, versions in found["versions"].items()} == {"readings": 6}
        attempts = {name: 5 if name == "data" else 3 for name in STATIONS}
        assert Counter(record.station for record in factory.records("started")) == attempts
        assert Counter(record.station for record in factory.records("ended")) == attempts
        assert len(list((tmp_path / "line" / "attempts").iterdir())) == sum(attempts.values())


@pytest.mark.slow
def test_worse_rows_are_refused_and_the_better_ones_after_them_are_promoted(tmp_path: Path) -> None:
    with postgresql_server() as server:
        settings = SETTINGS + '[eval]\ngates = ["accuracy >= 0.7"]\n'
        factory = Factory(tmp_path, server, settings=settings, line=documented_line(server.url))
        factory.make_policy("[aliases.production]\neval = {}\n")
        factory.arrive(range(400))
        factory.aifx("line", "check")
        assert set(factory.states().values()) == {"done"}
        first = factory.history()
        assert [action for action, _ in first] == ["push", "attest", "promote"]
        factory.arrive(range(400, 1600), shuffled=1.0)
        for _ in range(2):  # the second time there is nothing new to judge
            states = factory.states(code=1)
            assert (states["judge"], states["push"], states["promote"]) == ("verdict", "blocked", "blocked")
            assert factory.history() == first
        assert len(factory.records("ended", "judge")) == 2
        assert len(list((tmp_path / "runs").glob("readings-*"))) == 2
        factory.arrive(range(400, 1600))
        assert set(factory.states().values()) == {"done"}
        later = factory.history()
        assert later[:3] == first
        assert [action for action, _ in later[3:]] == ["push", "attest", "promote"]
        assert {version for _, version in first}.isdisjoint(version for _, version in later[3:])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("kind", "least"), [("line", 100), ("effects", 20), ("random", 5)])
def test_a_killed_factory_ends_as_an_undisturbed_one(
    tmp_path: Path, kind: str, least: int, record_property: Callable[[str, object], None]
) -> None:
    here = Path(__file__).parent
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    seed, every = seed_of_commit(), 3 if IS_LONG else 12
    program = [sys.executable, str(here / "killed_factory.py"), kind, str(tmp_path), str(seed), str(every)]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-4000:]}"
    record_property(f"kills of a factory: {kind}", kills := int(done.stdout))
    assert kills >= least


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("tick", "least"), [(0, 400), (1, 50), (2, 400)])
def test_each_command_that_is_killed_at_any_of_its_changes_ends_as_an_undisturbed_one(
    tmp_path: Path, tick: int, least: int, record_property: Callable[[str, object], None]
) -> None:
    here = Path(__file__).parent
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    program = [sys.executable, str(here / "killed_effects.py"), str(tmp_path), str(tick), "1" if IS_LONG else "24"]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    kills = json.loads(done.stdout)
    record_property(f"kills of commands in tick {tick}", kills)
    assert sum(kills.values()) >= least

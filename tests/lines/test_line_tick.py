"""A tick of a line: order, reuse, verdicts, conditions, approvals, repeats and what is reported once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ticking import Ticking, station

from aifx.core.errors import ExitCode
from aifx.core.files import FolderBusy
from aifx.core.requests import find_request
from aifx.lines.journal import Journal, Kind, Record
from aifx.lines.runner import held
from aifx.verbs.line_decisions import line_skip


def exits(name: str, code: int, document: str = '{{"rows": 3}}', **keys: object) -> str:
    return station(name, f"sh -c 'echo x >>{name}.count; echo \"$0\"; exit {code}' '{document}'", **keys)


@pytest.fixture
def ticking(tmp_path: Path) -> Ticking:
    return Ticking(tmp_path)


def test_stations_run_after_their_parents_and_once_per_key(ticking: Ticking) -> None:
    ticking.write(
        station("last", "sh -c 'cat log >seen; echo last >>log'", after=["b", "a"])
        + station("b", "sh -c 'echo b >>log'", after=["a"])
        + station("a", "sh -c 'echo a >>log'")
    )
    assert ticking.tick() == {"a": "done", "b": "done", "last": "done"}
    assert (ticking.root / "log").read_text().split() == ["a", "b", "last"]
    size = len(ticking.records())
    assert ticking.tick() == {"a": "done", "b": "done", "last": "done"}
    assert len(ticking.records()) == size  # a tick with nothing to do writes nothing


def test_independent_stations_run_side_by_side_within_jobs(ticking: Ticking) -> None:
    meet = "sh -c 'touch {0}; n=0; while [ ! -e {1} ] && [ $n -lt 500 ]; do n=$((n+1)); sleep 0.01; done; [ -e {1} ]'"
    stations = station("a", meet.format("a", "b")) + station("b", meet.format("b", "a"))
    ticking.write("[line]\njobs = 2\n" + stations)
    assert ticking.tick() == {"a": "done", "b": "done"}
    for name in "ab":
        (ticking.root / name).unlink()
    alone = "sh -c '[ ! -e running ] || touch both; touch running; sleep 0.05; rm running'"
    ticking.write(station("c", alone) + station("d", alone))
    assert ticking.tick() == {"c": "done", "d": "done"}
    assert not (ticking.root / "both").exists()


def test_outputs_of_a_station_are_values_of_the_next_one_and_count_in_its_key(ticking: Ticking) -> None:
    first = station("first", "sh -c 'cat answer'") + station(
        "next", "sh -c 'echo $0 >>next.count' {stations.first.run}"
    )
    (ticking.root / "answer").write_text('{"run": "a-1"}')
    ticking.write(first)
    assert ticking.tick() == {"first": "done", "next": "done"}
    (ticking.root / "answer").write_text('{"run": "a-2"}')
    ticking.write(first.replace("cat answer", "cat  answer"))  # another command: it runs again
    ticking.tick()
    assert (ticking.root / "next.count").read_text().split() == ["a-1", "a-2"]
    ticking.write(first.replace("cat answer", "cat   answer"))  # the same output: what follows is reused
    ticking.tick()
    assert (ticking.root / "next.count").read_text().split() == ["a-1", "a-2"]


def test_a_bad_verdict_blocks_what_follows_and_is_reported_once(ticking: Ticking) -> None:
    ticking.write(
        exits("gate", 1) + station("after", after=["gate"]) + station("react", after=["gate"], when="verdict:gate")
    )
    for _ in range(2):
        assert ticking.tick() == {"gate": "verdict", "after": "blocked", "react": "done"}
    assert [ticking.count(name) for name in ("gate", "after", "react")] == [1, 0, 1]
    assert len([line for line in ticking.lines if line.startswith("gate: verdict")]) == 1


def test_a_program_that_crashes_has_no_verdict(ticking: Ticking) -> None:
    ticking.write(station("gate", "sh -c 'exit 1'"))
    assert ticking.tick() == {"gate": "failed"}


def test_a_failure_is_reported_once_and_what_can_go_on_goes_on(ticking: Ticking) -> None:
    ticking.write(
        station("bad", "sh -c 'echo x >>bad.count; echo broken pipe of water >&2; exit 2'")
        + station("after", after=["bad"])
        + station("other")
        + station("react", after=["bad"], when="failed:bad")
    )
    for _ in range(2):
        states = ticking.tick()
        assert states == {"bad": "failed", "after": "blocked", "other": "done", "react": "done"}
    assert [ticking.count(name) for name in ("bad", "after", "other", "react")] == [1, 0, 1, 1]
    (ended,) = ticking.records("ended", "bad")
    assert ended.facts["error"]["why"] == "broken pipe of water"
    assert len([line for line in ticking.lines if line.startswith("bad: failed")]) == 1


def test_a_transient_failure_is_tried_again_with_the_same_attempt_and_growing_pauses(ticking: Ticking) -> None:
    document = '{{"error": {{"what": "no route", "why": "to host", "transient": true}}}}'
    ticking.write(exits("fetch", 2, document, retries=2))
    assert ticking.tick() == {"fetch": "failed"}
    assert ticking.count("fetch") == 3
    pauses = [one.facts["not_before"] - one.time for one in ticking.records("repeated")]
    assert pauses[1] > 1.5 * pauses[0]
    assert len({one.attempt for one in ticking.records(station="fetch")}) == 1
    (ended,) = ticking.records("ended")
    assert (ended.facts["tries"], ended.facts["error"]["why"]) == (3, "no route: to host")


def test_another_failure_is_not_tried_again(ticking: Ticking) -> None:
    ticking.write(exits("fetch", 2, '{{"error": {{"what": "x", "transient": false}}}}', retries=5))
    assert ticking.tick() == {"fetch": "failed"}
    assert ticking.count("fetch") == 1


def test_a_preempted_attempt_is_repeated_and_bounded(ticking: Ticking) -> None:
    again = "sh -c 'echo $AIFX_REQUEST >>log; [ $(wc -l <log) -ge 3 ] || exit 75'"
    ticking.write(station("train", again))
    assert ticking.tick() == {"train": "done"}
    assert len(set((ticking.root / "log").read_text().split())) == 1
    ticking.write(exits("train", 75))
    assert ticking.tick() == {"train": "failed"}
    assert ticking.count("train") == 6


def test_a_condition_that_does_not_hold_skips_and_a_former_verdict_stays(ticking: Ticking) -> None:
    ticking.write(
        exits("monitor", 1) + exits("gate", 1, after=["monitor"], when="verdict:monitor") + station("x", after=["gate"])
    )
    assert ticking.tick() == {"monitor": "verdict", "gate": "verdict", "x": "blocked"}
    ticking.write(
        exits("monitor", 0) + exits("gate", 1, after=["monitor"], when="verdict:monitor") + station("x", after=["gate"])
    )
    assert ticking.tick() == {"monitor": "done", "gate": "verdict", "x": "blocked"}
    ticking.write(station("a", when="failed:b") + station("b"))
    assert ticking.tick()["a"] == "skipped"


def test_work_that_is_skipped_lets_no_earlier_verdict_pass(ticking: Ticking) -> None:
    """What has a bad verdict passes only if a person skips just that work."""

    def judge(model: int, code: int) -> None:
        push = "sh -c 'echo $0 >>push.count' {stations.gate.model}"
        judged = exits("gate", code, f'{{{{"model": {model}}}}}')
        ticking.write(judged + station("push", push, after=["gate"]))

    def pushed() -> list[str]:
        return (ticking.root / "push.count").read_text().split()

    judge(1, 0)
    assert ticking.tick() == {"gate": "done", "push": "done"}
    judge(2, 1)
    assert ticking.tick() == {"gate": "verdict", "push": "blocked"}
    bad = ticking.records("ended", "gate")[-1].key
    judge(3, 0)
    line_skip("gate", project=ticking.root)
    assert ticking.tick() == {"gate": "skipped", "push": "done"}
    assert pushed() == ["1"]
    judge(2, 1)
    assert ticking.tick() == {"gate": "verdict", "push": "blocked"}
    assert line_skip("gate", project=ticking.root).key == bad
    assert ticking.tick() == {"gate": "skipped", "push": "done"}
    assert pushed() == ["1", "2"]


def test_a_verdict_of_an_earlier_period_that_passes_delays_no_work(ticking: Ticking) -> None:
    ticking.write(exits("gate", 1, '{{"at": "{tick}"}}', when="every:7d") + station("x", after=["gate"]))
    assert ticking.tick() == {"gate": "verdict", "x": "blocked"}
    before = ticking.run().state.of("gate")
    assert line_skip("gate", project=ticking.root).kind == "skip"
    after = ticking.run().state.of("gate")
    assert (after.begins, after.seen) == (before.begins, before.seen)
    assert ticking.tick() == {"gate": "skipped", "x": "done"}
    assert ticking.tick(now=time.time() + 7 * 86400) == {"gate": "verdict", "x": "blocked"}


def test_an_approval_is_asked_for_once_and_others_go_on(ticking: Ticking) -> None:
    ticking.write(station("promote", ask="approval") + station("after", after=["promote"]) + station("other"))
    for _ in range(2):
        assert ticking.tick() == {"promote": "waiting", "after": "blocked", "other": "done"}
    (asked,) = ticking.records("reported")
    ticking.run().journal.append("approved", "promote", asked.key, by="me")
    assert ticking.tick() == {"promote": "done", "after": "done", "other": "done"}


def test_a_missing_variable_is_reported_once_and_judged_again_when_it_is_there(ticking: Ticking) -> None:
    ticking.write(station("ask", "sh -c 'echo $PGPASSWORD >>ask.count'", environment=["PGPASSWORD"]) + station("other"))
    for _ in range(2):
        assert ticking.tick() == {"ask": "failed", "other": "done"}
    (reported,) = ticking.records("reported")
    assert "PGPASSWORD is not set" in reported.facts["error"]["what"]
    assert ticking.tick(environ={**os.environ, "PGPASSWORD": "swordfish"}) == {"ask": "done", "other": "done"}
    assert "swordfish" not in (ticking.root / "line" / "journal.jsonl").read_text()


def test_a_secret_in_an_output_is_not_in_the_journal(ticking: Ticking) -> None:
    ticking.write(exits("ask", 0, '{{"answer": "swordfish is it"}}', environment=["MINE"]))
    ticking.tick(environ={**os.environ, "MINE": "swordfish"})
    assert ticking.records("ended")[0].facts["outputs"] == {"answer": "[removed] is it"}


def test_cooldown_and_budget_let_a_station_wait(ticking: Ticking) -> None:
    ticking.write(station("train", cooldown="1h"))
    ticking.tick()
    ticking.write(station("train", "sh -c true", cooldown="1h"))
    assert ticking.tick() == {"train": "waiting"}
    ticking.write(station("train", "sh -c true", budget_per_day=1))
    assert ticking.tick() == {"train": "waiting"}
    ticking.write(station("train", "sh -c true", budget_per_day=2))
    assert ticking.tick() == {"train": "done"}


def test_the_attempt_of_the_longest_name_is_the_id_of_a_request(ticking: Ticking) -> None:
    ticking.write(station("a" * 50, "true"))
    ticking.tick()
    (started,) = ticking.records("started")
    assert find_request(f"{started.attempt}-20", "train") is not None  # that of the last of 20 commands


def test_a_program_runs_only_if_the_person_allows_it(ticking: Ticking) -> None:
    ticking.write(station("a"))
    assert ticking.tick(allows_shell=False) == {"a": "blocked"}
    assert ticking.count("a") == 0


def test_a_station_beyond_its_time_limit_is_ended(ticking: Ticking) -> None:
    ticking.write(station("slow", "sleep 60", time_limit="1s"))
    assert ticking.tick() == {"slow": "failed"}
    assert "time_limit of 1 s" in ticking.records("ended")[0].facts["error"]["why"]


def test_a_second_tick_is_refused_and_names_the_process(ticking: Ticking) -> None:
    ticking.write(station("a"))
    one = ticking.run()
    with held(one.line), pytest.raises(FolderBusy, match="is in use") as raised, held(one.line):
        pass
    assert raised.value.exit_code == ExitCode.PREEMPTED
    assert f"process {os.getpid()}" in raised.value.why


LINE = "import sys; from ticking import Ticking; from pathlib import Path; print(Ticking(Path(sys.argv[1])).tick())"


def line_process(root: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, "-c", LINE, str(root)], env=environ, stdout=subprocess.PIPE)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_attempt_outlives_a_killed_line_and_is_adopted(ticking: Ticking) -> None:
    words = "sh -c 'echo x >>slow.count; n=0; while [ ! -e go ] && [ $n -lt 2000 ]; do n=$((n+1)); sleep 0.01; done'"
    ticking.write(station("slow", words) + station("after", after=["slow"]))
    line = line_process(ticking.root)
    wait_for(ticking.root / "slow.count")
    os.kill(line.pid, signal.SIGKILL)
    line.wait()
    adopter = line_process(ticking.root)
    time.sleep(0.5)
    assert adopter.poll() is None
    (ticking.root / "go").touch()
    out, _ = adopter.communicate(timeout=20)
    assert out.decode().strip() == "{'slow': 'done', 'after': 'done'}"
    assert ticking.count("slow") == 1
    assert len({one.attempt for one in ticking.records(station="slow")}) == 1


def test_an_attempt_killed_with_its_shell_is_started_again_under_its_id(ticking: Ticking) -> None:
    words = "sh -c 'echo $AIFX_REQUEST >>slow.count; [ $(wc -l <slow.count) = 2 ] || kill -9 0'"
    ticking.write(station("slow", words))
    assert ticking.tick() == {"slow": "done"}
    first, second = (ticking.root / "slow.count").read_text().split()
    assert first == second


def test_an_attempt_whose_command_alone_is_killed_is_tried_again_and_bounded(ticking: Ticking) -> None:
    ticking.write(station("slow", "sh -c 'echo $AIFX_REQUEST >>log; [ $(wc -l <log) = 2 ] || kill -9 $$'"))
    assert ticking.tick() == {"slow": "done"}
    assert len(set((ticking.root / "log").read_text().split())) == 1
    ticking.write(station("slow", "sh -c 'echo x >>slow.count; kill -9 $$'"))
    assert ticking.tick() == {"slow": "failed"}
    assert ticking.count("slow") == 6


def test_a_folder_of_an_attempt_that_was_killed_before_its_record_is_removed(ticking: Ticking) -> None:
    ticking.write(station("a"))
    real = Journal.append

    def append(journal: Journal, kind: Kind, *args: Any, **facts: Any) -> Record:
        if kind == "started":
            raise KeyboardInterrupt
        return real(journal, kind, *args, **facts)

    with pytest.raises(KeyboardInterrupt), mock.patch.object(Journal, "append", append):
        ticking.tick()
    folders = ticking.root / "line" / "attempts"
    assert len(list(folders.iterdir())) == 1
    assert ticking.tick() == {"a": "done"}
    (started,) = ticking.records("started")
    assert [one.name for one in folders.iterdir()] == [started.attempt]

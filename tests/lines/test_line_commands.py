"""`aifx line` in a terminal and with --json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inprocess
import pytest
from ticking import Ticking, station
from webhook_receiver import SECRET, Answer, receiver

import aifx


class Terminal(Ticking):
    """A project with a line, and its commands."""

    def aifx(self, *words: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        found = inprocess.run(["line", *words], self.root, {**os.environ, **environ})
        assert found.returncode == code, found.stdout + found.stderr
        return found

    def document(self, *words: str, code: int = 0, **environ: str) -> dict[str, Any]:
        doc: dict[str, Any] = json.loads(self.aifx(*words, "--json", code=code, **environ).stdout)
        return doc

    def states(self, *words: str, code: int = 0) -> dict[str, str]:
        return {one["station"]: one["state"] for one in self.document(*words, code=code)["stations"]}


@pytest.fixture
def line(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def test_a_tick_answers_with_the_state_of_each_station(line: Terminal) -> None:
    line.write(station("a") + station("b", "sh -c 'exit 3'") + station("c", after=["b"]))
    found = line.aifx("run", "--allow-shell", code=2)
    assert [row.split()[:2] for row in found.stdout.splitlines()[1:4]] == [
        ["a", "done"], ["b", "failed"], ["c", "blocked"]
    ]  # fmt: skip
    assert "aifx line retry b" in found.stdout
    assert "a: started" in found.stderr
    assert line.states("run", "--allow-shell", code=2) == {"a": "done", "b": "failed", "c": "blocked"}
    assert line.count("a") == 1


def test_a_bad_verdict_exits_1(line: Terminal) -> None:
    line.write(station("gate", "sh -c 'echo \"$0\"; exit 1' '{{\"passed\": false}}'"))
    assert line.states("run", "--allow-shell", code=1) == {"gate": "verdict"}


def test_the_reason_of_a_bad_verdict_is_beside_it(line: Terminal) -> None:
    gates = [
        {"expr": "loss <= 2", "value": 3.14159, "passed": False},
        {"expr": "bytes > 1", "value": 9, "passed": True},
    ]
    document = json.dumps({"gates": gates, "findings": [{"rule": "eval", "found": "none", "passed": False}, 5]})
    (line.root / "document.json").write_text(document)
    line.write(station("gate", f"sh -c 'cat {line.root}/document.json; exit 1'"))
    (ticked,) = line.document("run", "--allow-shell", code=1)["stations"]
    (status,) = line.document("status")["stations"]
    assert ticked["why"] == status["why"] == "loss <= 2: 3.142; eval: none"


def test_a_program_needs_the_permission_of_the_person(line: Terminal) -> None:
    line.write(station("a"))
    (found,) = line.document("run")["stations"]
    assert (found["state"], found["hint"]) == ("blocked", "aifx line run --allow-shell")
    assert line.count("a") == 0


def test_a_dry_run_says_what_would_start_and_writes_nothing(line: Terminal) -> None:
    line.write(station("a", "echo --api-key swordfish") + station("b", after=["a"]))
    first, second = line.document("run", "--dry-run", "--allow-shell")["stations"]
    assert (first["state"], first["why"], second["state"]) == ("ready", "new", "pending")
    assert first["commands"][0][0] == "echo"
    assert not (line.root / "line").exists()
    assert "would start: echo" in line.aifx("run", "--dry-run", "--allow-shell").stdout


def test_a_tick_says_when_the_next_one_reads_again_and_a_command_can_be_pasted(line: Terminal) -> None:
    line.write('[line]\nevery = "1h"\n[[station]]\nname = "a"\nrun = "aifx doctor --list"\n')
    assert "next tick: " in (text := line.aifx("run", "--dry-run").stdout)
    assert "a: would start: aifx doctor --list" in text
    assert line.document("run", "--dry-run")["next"] % 3600 == 0


def test_select_runs_a_station_and_what_follows_it(line: Terminal) -> None:
    line.write(station("a") + station("b", after=["a"]) + station("c"))
    line.aifx("run", "--allow-shell")
    line.write(station("a", "sh -c true") + station("b", "sh -c true", after=["a"]) + station("c", "sh -c true"))
    assert line.states("run", "--allow-shell", "--select", "b+") == {"a": "left out", "b": "done", "c": "left out"}
    found = line.aifx("run", "--select", "bb", code=2)
    assert "no station 'bb'" in found.stderr
    assert "did you mean 'b'?" in found.stderr


def test_the_status_starts_nothing_and_says_what_each_station_waits_for(line: Terminal) -> None:
    line.write(
        '[line]\nevery = "1h"\n' + station("a") + station("b", "sh -c 'exit 3'", after=["a"])
        + station("c", ask="approval", environment=["MISSING"]) + station("d", environment=["MISSING"])
        + station("e", when="every:7d and failed:a")
    )  # fmt: skip
    assert line.states("status") == {"a": "ready", "b": "pending", "c": "waiting", "d": "ready", "e": "skipped"}
    assert not (line.root / "line").exists()
    line.aifx("run", "--allow-shell", code=2)
    size = len(line.records())
    found = line.document("status")
    a, b, c, d, e = found["stations"]
    assert [one["state"] for one in (a, b, c, d, e)] == ["done", "failed", "waiting", "failed", "skipped"]
    assert (a["verdict"], b["verdict"], c["verdict"]) == ("done", "failed", "")
    assert a["since"] <= found["next"] <= e["next"]
    assert a["attempt"] == line.records("ended", "a")[0].attempt
    assert c["hint"] == "aifx line approve c"
    assert "MISSING is not set" in d["what"]
    assert (len(line.records()), line.count("a")) == (size, 1)
    assert "next tick: " in line.aifx("status").stdout


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_missing_or_wrong_file_is_named(line: Terminal, command: str) -> None:
    error = line.document(command, code=2)["error"]
    assert "line.toml cannot be read" in error["what"]
    assert "--file" in error["hint"]
    line.write(station("a") + station("a"))
    assert f"{line.root}/line.toml:5: two stations 'a'" in line.document(command, code=2)["error"]["what"]
    (line.root / "other.toml").write_text(station("b"))
    assert "b" in line.aifx(command, "--file", "other.toml").stdout


def test_a_program_on_a_cluster_is_refused_with_its_place(line: Terminal) -> None:
    line.write(station("a", on="slurm"))
    what = line.document("run", code=2)["error"]["what"]
    assert what.startswith(f"{line.root}/line.toml:5: ")
    assert "shell = true" in what


def test_an_approval_starts_what_was_asked_for(line: Terminal) -> None:
    line.write(station("a", ask="approval") + station("b"))
    assert "waits for no approval" in line.document("approve", "a", code=2)["error"]["what"]
    line.aifx("run", "--allow-shell")
    found = line.document("approve", "a", "--reason", "read it")
    assert (found["kind"], found["key"]) == ("approved", line.records("reported")[0].key)
    assert line.states("run", "--allow-shell") == {"a": "done", "b": "done"}
    (record,) = line.records("approved")
    assert record.facts["reason"] == "read it"
    assert "waits for no approval" in line.document("approve", "b", code=2)["error"]["what"]


def test_a_retry_goes_on_under_the_same_id(line: Terminal) -> None:
    line.write(station("a", "sh -c 'echo x >>a.count; [ -e ready ]'") + station("b"))
    line.aifx("run", "--allow-shell", code=2)
    (line.root / "ready").touch()
    line.aifx("run", "--allow-shell", code=2)
    assert line.count("a") == 1
    line.aifx("retry", "a")
    assert line.states("run", "--allow-shell") == {"a": "done", "b": "done"}
    assert len({one.attempt for one in line.records("started", "a")}) == 1
    for name in ("a", "b"):
        assert "nothing to retry" in line.document("retry", name, code=2)["error"]["what"]


def test_a_skipped_station_does_not_keep_others_back(line: Terminal) -> None:
    line.write(station("a", "sh -c 'exit 3'") + station("b", after=["a"]))
    line.aifx("run", "--allow-shell", code=2)
    assert "nothing to skip" not in line.aifx("skip", "a", "--reason", "late").stderr
    assert line.states("run", "--allow-shell") == {"a": "skipped", "b": "done"}
    assert "nothing to skip" in line.document("skip", "b", code=2)["error"]["what"]


def test_a_pause_holds_until_it_is_ended(line: Terminal) -> None:
    line.write(station("a") + station("b"))
    line.aifx("pause", "--reason", "maintenance")
    assert line.states("run", "--allow-shell") == {"a": "paused", "b": "paused"}
    assert line.document("status")["is_paused"]
    assert "paused already" in line.document("pause", code=2)["error"]["what"]
    line.aifx("resume")
    line.aifx("pause", "b")
    assert line.states("run", "--allow-shell") == {"a": "done", "b": "paused"}
    line.aifx("resume", "b")
    assert line.states("run", "--allow-shell") == {"a": "done", "b": "done"}
    assert "not paused" in line.document("resume", "b", code=2)["error"]["what"]


def test_history_and_logs_say_what_happened(line: Terminal) -> None:
    line.write(station("a", "sh -c 'echo out; echo err >&2; exit 3'") + station("b"))
    assert "has never run" in line.document("logs", "a", code=2)["error"]["what"]
    assert line.document("history")["records"] == []
    line.aifx("run", "--allow-shell", code=2)
    logs = line.document("logs", "a")
    (command,) = logs["commands"]
    assert (command["stdout"], command["stderr"], logs["code"]) == ("out\n", "err\n", 3)
    ended, started = line.document("history", "a")["records"]
    assert (ended["kind"], ended["outcome"], ended["code"], started["kind"]) == ("ended", "failed", 3, "started")
    assert len(line.document("history", "--limit", "3")["records"]) == 3
    for command in ("logs", "history", "retry", "skip", "approve", "pause"):
        assert "did you mean 'a'?" in line.document(command, "aa", code=2)["error"]["why"]


def test_a_backfill_has_a_tick_per_period(line: Terminal) -> None:
    line.write('[line]\nevery = "1d"\n' + station("a", "sh -c 'echo {date} >>a.count'"))
    period = ("--from", "2026-10-24", "--to", "2026-10-26")
    assert len(line.document("backfill", *period, "--dry-run")["times"]) == 3
    assert line.count("a") == 0
    for _ in range(2):  # the second time nothing is left to do
        assert len(line.document("backfill", *period, "--allow-shell")["ticks"]) == 3
        assert (line.root / "a.count").read_text().split() == ["2026-10-24", "2026-10-25", "2026-10-26"]
    for wrong in (("2026-10-26", "2026-10-24"), ("x", "2026-10-24"), ("2026-10-24", "2999-01-01")):
        line.aifx("backfill", "--from", wrong[0], "--to", wrong[1], code=2)
    line.write(station("a"))
    assert "no period" in line.document("backfill", *period, code=2)["error"]["what"]


def watching(line: Terminal) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aifx.commands.main", "line", "watch", "--allow-shell"]
    return subprocess.Popen(command, cwd=line.root, stderr=subprocess.PIPE, text=True)


def until(process: subprocess.Popen[str], holds: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_watch_sends_events_and_acts_on_a_decision_that_comes_meanwhile(
    line: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify = '[[notify]]\nurl_from = "OPS_URL"\nallow = ["127.0.0.0/8"]\n'
    asks = station("asks", "sh -c 'exit 4'", ask="approval")
    line.write('[line]\nevery = "1d"\n' + station("bad", "sh -c 'exit 3'") + asks + notify)
    stop = list[int]()
    give_up = threading.Timer(30, stop.append, [signal.SIGTERM])
    give_up.start()
    with receiver() as at:

        def answer(event: dict[str, Any]) -> Answer:
            if event["subject"] == "bad":
                aifx.line_approve("asks", project=line.root)
            else:
                stop.append(signal.SIGTERM)
            return 204

        at.answer = answer
        monkeypatch.setenv("OPS_URL", at.url)
        monkeypatch.setenv("OPS_URL_SECRET", SECRET)
        aifx.line_watch(allow_shell=True, stop=stop, project=line.root)
    give_up.cancel()
    assert [(event["type"], event["subject"]) for event in at.accepted] == [
        ("aifx.station.failed", "bad"), ("aifx.station.failed", "asks")
    ]  # fmt: skip


@pytest.mark.slow
def test_a_watch_acts_on_decisions_and_ends_at_sigterm_leaving_what_runs(line: Terminal) -> None:
    wait = "sh -c 'echo x >>b.count; n=0; while [ ! -e go ] && [ $n -lt 2000 ]; do n=$((n+1)); sleep 0.02; done'"
    line.write('[line]\nevery = "1d"\n' + station("a", ask="approval") + station("b", wait, after=["a"]))
    watch = watching(line)
    until(watch, lambda: line.records("reported"))
    line.aifx("approve", "a")
    until(watch, lambda: line.count("b"))
    watch.send_signal(signal.SIGTERM)
    assert watch.wait(60) == 0
    (line.root / "go").touch()
    assert line.states("run", "--allow-shell") == {"a": "done", "b": "done"}
    assert line.count("b") == 1


def test_hints_name_the_file_that_was_given(line: Terminal) -> None:
    (line.root / "my line.toml").write_text(station("a", "sh -c 'exit 3'") + station("b", ask="approval"))
    option, given = "--file=my line.toml", "--file 'my line.toml'"
    for command in ("run", "status"):
        found = line.document(
            command, *(["--allow-shell"] if command == "run" else []), option, code=2 * (command == "run")
        )
        hints = {one["station"]: one["hint"] for one in found["stations"]}
        assert hints == {
            "a": f"aifx line logs {given} a; then: aifx line retry {given} a", "b": f"aifx line approve {given} b"
        }  # fmt: skip
    assert f"hint: aifx line status {given}\n" in line.aifx("logs", "c", option, code=2).stderr
    assert f"aifx line run {given}\n" in line.aifx("retry", "a", option).stdout
    assert f"aifx line resume {given}\n" in line.aifx("pause", option).stdout
    assert f"hint: aifx line status {given}\n" in line.aifx("pause", option, code=2).stderr

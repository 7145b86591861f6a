"""Events, derived from the journal, the registry and runs: what they are, and that they come once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import aifx
from aifx.core.project import Project
from aifx.core.stores import open_store
from aifx.lines.events import MOST_DATA_BYTES, Event, Reading, read_events
from aifx.lines.journal import Journal
from aifx.registry.ledger import Entry
from aifx.registry.roots import Root

GATE = {"expr": "accuracy >= 0.9", "value": 0.4, "passed": False}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "forecast"
    root.mkdir()
    (root / "aifx.toml").write_text("")
    return Project(root)


def registry(project: Project) -> Root:
    return Root(open_store(str(project.root / "registry")))


def read(project: Project, positions: object = None) -> Reading:
    return read_events(project, registry(project), positions or {})  # type: ignore[arg-type]


def shown(reading: Reading) -> list[tuple[str, str]]:
    return [(event.type, event.subject) for event in reading.events]


def write_journal(project: Project) -> Journal:
    journal = Journal(project.root / "line")
    journal.append("tick", bindings={})
    journal.append("ended", "make", "k", "make-1", outcome="done", code=0, command="data make", outputs={})
    error = {"what": "could not reach db", "why": "password=hunter2 refused", "hint": ""}
    journal.append("ended", "load", "k", "load-1", outcome="failed", code=2, command="data add", error=error)
    journal.append("ended", "judge", "k", "j-1", outcome="verdict", code=1, command="eval", outputs={"gates": [GATE]})
    return journal


def append_run(project: Project, run: str, *records: dict[str, object]) -> None:
    folder = project.runs_path / run
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


DIVERGED = {"time": 1.7e9, "event": "stop", "status": "diverged", "step": 7, "loss": None}


def add_entries(project: Project, *actions: str) -> None:
    ledger = registry(project).ledger("fraud")
    for action in actions:
        facts = {"findings": [{"rule": "eval", "found": "0.4", "passed": False}]} if action == "refuse" else {}
        alias = "" if action == "push" else "production"
        ledger.append(ledger.entries(), Entry(action, "ann", version="a" * 64, alias=alias, facts=facts))


def test_an_alias_that_already_means_the_version_is_no_event(project: Project) -> None:
    add_entries(project, "push", "promote")
    ledger = registry(project).ledger("fraud")
    for action in ("promote", "rollback", "refuse"):
        again = Entry(action, "ann", version="a" * 64, alias="production", facts={"previous": "v1"})
        ledger.append(ledger.entries(), again)
    assert shown(read(project)) == [("promoted", "fraud"), ("gate.failed", "fraud")]


def test_each_source_gives_its_events(project: Project) -> None:
    write_journal(project)
    append_run(project, "main", {"time": 1.7e9, "event": "start", "step": 0, "pid": 1, "hosts": []}, DIVERGED)
    add_entries(project, "push", "promote", "refuse", "rollback")
    reading = read(project)
    assert shown(reading) == [
        ("station.failed", "load"), ("gate.failed", "judge"), ("run.diverged", "main"),
        ("promoted", "fraud"), ("gate.failed", "fraud"), ("rolled_back", "fraud"),
    ]  # fmt: skip
    failed, judged, diverged, promoted, refused, _ = reading.events
    assert failed.data["what"] == "could not reach db"
    assert "hunter2" not in json.dumps(failed.data)
    assert judged.data["gates"] == [GATE]
    assert diverged.data["step"] == 7
    assert (promoted.data["version"], promoted.data["alias"], promoted.data["actor"]) == (
        "fraud@v1", "production", "ann",
    )  # fmt: skip
    assert refused.data["failed_rules"] == [{"rule": "eval", "found": "0.4", "hint": None}]
    assert not reading.problems


def test_the_same_records_give_the_same_ids_and_positions_leave_them_behind(project: Project, tmp_path: Path) -> None:
    write_journal(project)
    append_run(project, "main", DIVERGED)
    add_entries(project, "push", "promote")
    first = read(project)
    assert [event.id for event in read(project).events] == [event.id for event in first.events]
    assert len({event.id for event in first.events}) == 4
    moved = tmp_path / "elsewhere"
    project.root.rename(moved / project.root.name if moved.exists() else moved)
    elsewhere = read_events(Project(moved), registry(Project(moved)), {})
    assert [event.id for event in elsewhere.events] == [event.id for event in first.events]
    again = read_events(Project(moved), registry(Project(moved)), first.positions)
    assert (again.events, again.positions) == ((), {})


def test_only_what_is_new_comes_and_a_torn_line_comes_when_it_is_whole(project: Project) -> None:
    journal = write_journal(project)
    append_run(project, "main", DIVERGED)
    add_entries(project, "push")
    positions = dict(read(project).positions)
    journal.append("ended", "load", "k", "load-2", outcome="failed", code=2, command="data add")
    with (project.runs_path / "main" / "events.jsonl").open("a") as file:
        file.write(json.dumps(DIVERGED)[:20])
    add_entries(project, "promote")
    reading = read(project, positions)
    assert shown(reading) == [("station.failed", "load"), ("promoted", "fraud")]
    assert "run:main" not in reading.positions
    with (project.runs_path / "main" / "events.jsonl").open("a") as file:
        file.write(json.dumps({**DIVERGED, "step": 9})[20:] + "\n")
    assert shown(read(project, {**positions, **reading.positions})) == [("run.diverged", "main")]


def test_another_run_of_the_same_name_is_read_from_its_beginning(project: Project) -> None:
    append_run(project, "main", {"time": 1.0, "event": "start"}, DIVERGED)
    positions = read(project).positions
    (project.runs_path / "main" / "events.jsonl").unlink()
    append_run(project, "main", {"time": 2.0, "event": "start"}, {**DIVERGED, "step": 1}, {**DIVERGED, "step": 2})
    assert shown(read(project, positions)) == [("run.diverged", "main")] * 2


@pytest.mark.parametrize(
    "outputs",
    [
        {"host": "n1", "status": "unhealthy", "findings": [{"severity": "critical", "summary": "GPU 3 is gone"}]},
        {"status": "unhealthy", "nodes": [{"node": "n0", "status": "healthy"},
          {"node": "n1", "status": "unhealthy", "findings": [{"severity": "critical", "summary": "GPU 3 is gone"}]}]},
        {"status": "unhealthy", "nodes": [{"node": "n0", "status": "healthy", "findings": []}], "findings": [
          {"severity": "warning", "device": "n0", "summary": "slow"},
          {"severity": "critical", "device": "n1", "summary": "GPU 3 is gone"}]},
    ],
)  # fmt: skip
def test_an_unhealthy_node_is_named_with_its_findings(project: Project, outputs: dict[str, object]) -> None:
    journal = Journal(project.root / "line")
    journal.append("ended", "nodes", "k", "n-1", outcome="verdict", code=1, command="doctor", outputs=outputs)
    (event,) = read(project).events
    assert (event.type, event.subject, event.data["findings"]) == ("node.unhealthy", "n1", ["GPU 3 is gone"])


def test_a_call_of_doctor_by_a_person_leaves_an_event_when_findings_change(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, counts = project.root / "tree", project.root / "tree/sys/devices/system/edac/mc/mc0"
    counts.mkdir(parents=True)
    (tree / "proc/sys/kernel").mkdir(parents=True)
    (tree / "proc/sys/kernel/hostname").write_text("n7\n")
    (tree / "proc/meminfo").write_text("MemTotal: 1024 kB\nMemAvailable: 512 kB\n")
    monkeypatch.chdir(project.root)

    def check(errors: int) -> int:
        (counts / "ue_count").write_text(f"{errors}\n")
        aifx.doctor(root="tree", only=["memory"])
        return len(read(project).events)

    assert check(1) == 0  # there is no line
    assert not (project.root / "line").exists()
    (project.root / "line.toml").write_text("")
    assert [check(errors) for errors in (0, 1, 1, 0, 1)] == [0, 1, 1, 1, 2]
    monkeypatch.setenv("AIFX_LINE_STATION", "nodes")  # its report is in the journal
    assert [check(errors) for errors in (0, 1)] == [2, 2]
    event = read(project).events[0]
    assert (event.type, event.subject, event.data["command"]) == ("node.unhealthy", "n7", "doctor node")
    assert "memory controller mc0" in event.data["findings"][0]


def test_a_report_that_cannot_be_kept_counts(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    (project.root / "line.toml").write_text("")
    (project.root / "line").write_text("no folder")
    agents = ["http://127.0.0.1:1"]  # nobody listens
    assert aifx.doctor_fleet(agents=agents).exit_code == 1
    (project.root / "line").unlink()
    assert aifx.doctor_fleet(agents=agents).exit_code == 1
    assert shown(read(project)) == [("node.unhealthy", "http://127.0.0.1:1")]


def test_a_verdict_of_doctor_without_a_node_is_a_failed_gate(project: Project) -> None:
    journal = Journal(project.root / "line")
    journal.append("ended", "diff", "k", "d-1", outcome="verdict", code=1, command="doctor", outputs={"findings": []})
    assert shown(read(project)) == [("gate.failed", "diff")]


def test_a_verdict_that_another_source_tells_of_is_one_event(project: Project) -> None:
    journal = Journal(project.root / "line")
    for command in ("train", "registry promote"):
        journal.append("ended", "a", "k", "a-1", outcome="verdict", code=1, command=command, outputs={})
    assert read(project).events == ()


def test_a_station_that_cannot_go_on_is_an_event_and_one_that_waits_is_none(project: Project) -> None:
    journal = Journal(project.root / "line")
    error = {"what": "the binding {stations.a.x} is not there", "why": "", "hint": ""}
    journal.append("reported", "train", "k", state="failed", error=error, report="d")
    journal.append("reported", "promote", "k", state="waiting", error=error, report="d")
    (event,) = read(project).events
    assert (event.type, event.data["what"]) == ("station.failed", error["what"])


def test_a_damaged_ledger_is_a_problem_and_other_sources_go_on(project: Project) -> None:
    add_entries(project, "push", "promote")
    (project.root / "registry" / "models" / "fraud" / "ledger" / "00000001.json").write_text("{}")
    append_run(project, "main", DIVERGED)
    reading = read(project)
    assert shown(reading) == [("run.diverged", "main")]
    assert ["fraud" in problem.what for problem in reading.problems] == [True]
    assert "model:fraud" not in reading.positions


def test_data_that_no_receiver_would_take_are_left_out_by_name(project: Project) -> None:
    journal = Journal(project.root / "line")
    outputs = {"run": "main", "gates": [GATE], "metrics": {f"m{number}": 0.5 for number in range(10_000)}}
    journal.append("ended", "judge", "k", "j-1", outcome="verdict", code=1, command="eval", outputs=outputs)
    (event,) = read(project).events
    assert (event.data["run"], event.data["gates"], event.data["left_out"]) == ("main", [GATE], ["metrics"])
    assert len(json.dumps(event.cloud_event())) < MOST_DATA_BYTES + 2000


def test_an_event_is_a_cloud_event(project: Project) -> None:
    event = Event("1" * 64, "promoted", "registry/models/fraud", "fraud", 1.7e9, {"alias": "production"})
    assert event.cloud_event() == {
        "specversion": "1.0", "id": "1" * 64, "source": "registry/models/fraud", "type": "aifx.promoted",
        "subject": "fraud", "time": "2023-11-14T22:13:20.000000Z", "datacontenttype": "application/json",
        "data": {"alias": "production"},
    }  # fmt: skip
    assert replace(event, time=0.0).cloud_event()["time"] == "1970-01-01T00:00:00.000000Z"

"""`aifx notify` as a person calls it: what is sent, what waits, what is sent again, and its errors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from inprocess import run
from webhook_receiver import SECRET, Receiver, receiver

from aifx.lines.journal import Journal
from aifx.lines.outbox import Outbox

LINE = '[[notify]]\nname = "ops"\nurl_from = "OPS_URL"\nallow = ["127.0.0.0/8"]\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "aifx.toml").write_text("")
    (tmp_path / "line.toml").write_text(LINE)
    return tmp_path


def fail(project: Path, *stations: str) -> None:
    journal = Journal(project / "line")
    for station in stations:
        journal.append("ended", station, "k", f"{station}-1", outcome="failed", code=2, command="train")


def notify(project: Path, at: Receiver | None, *args: str, code: int = 0, **environ: str) -> dict[str, Any]:
    known = {"OPS_URL": at.url, "OPS_URL_SECRET": SECRET} if at else {}
    done = run(["notify", *args, "--json"], project, {**os.environ, **known, **environ})
    assert done.returncode == code, done.stdout + done.stderr
    assert "secret-part" not in done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_events_are_sent_listed_and_sent_again(project: Path) -> None:
    fail(project, "train", "judge")
    with receiver() as at:
        planned = notify(project, at, "run", "--dry-run")
        assert [one["subject"] for one in planned["targets"][0]["sent"]] == ["train", "judge"]
        assert (at.ids, (project / "line" / "notify").exists()) == ([], False)
        at.answer = lambda event: 503 if event["subject"] == "judge" else 204
        done = notify(project, at, "run", code=1)["targets"][0]
        assert [one["subject"] for one in done["sent"]] == ["train"]
        assert [one["reason"] for one in done["failed"]] == ["503 Service Unavailable"]
        listed = notify(project, at, "ls")["targets"][0]
        assert [one["attempts"] for one in listed["waiting"]] == [1]
        assert listed["positions"]["journal"]["bytes"] > 0
        at.answer = lambda event: 204
        first = at.ids[0]
        planned = notify(project, at, "replay", first[:8], "--dry-run")
        assert [one["id"] for one in planned["targets"][0]["sent"]] == [first]
        notify(project, at, "replay", first[:8])
        assert at.ids == [first, first]
        notify(project, at, "replay", "--since", "2020-01-01", "--target", "ops")
        assert [event["subject"] for event in at.accepted] == ["train", "train", "train", "judge"]
        notify(project, at, "replay", "--since", "2100-01-01")
        assert len(at.ids) == 4


def test_people_read_what_was_sent_and_why_not(project: Path) -> None:
    fail(project, "train", "judge")
    with receiver() as at:
        at.answer = lambda event: 500 if event["subject"] == "judge" else 204
        environ = {**os.environ, "OPS_URL": at.url, "OPS_URL_SECRET": SECRET}
        sent = run(["notify", "run"], project, environ)
        assert "ops: 1 sent, 1 failed, 0 dead, 1 waiting" in sent.stdout
        assert "station.failed judge: 500 Internal Server Error; next attempt" in sent.stdout
        assert "500 Internal Server Error" in run(["notify", "ls"], project, environ).stdout
        assert "accepted event" in run(["notify", "test", "ops"], project, environ).stdout


def test_a_test_event_says_what_came_back(project: Path) -> None:
    with receiver() as at:
        assert notify(project, at, "test", "ops", "--dry-run")["is_planned"]
        assert at.ids == []
        assert notify(project, at, "test", "ops")["status"] == 204
        at.answer = lambda event: 401
        assert notify(project, at, "test", "ops", code=1)["reason"] == "401 Unauthorized"
        (project / "line.toml").write_text(LINE.replace('allow = ["127.0.0.0/8"]', ""))
        assert "allow = [" in notify(project, at, "test", "ops", code=1)["reason"]


def test_an_unset_variable_is_named_and_another_target_is_sent_to(project: Path) -> None:
    (project / "line.toml").write_text(LINE + LINE.replace("ops", "other").replace("OPS_URL", "OTHER_URL"))
    fail(project, "train")
    with receiver() as at:
        ops, other = notify(project, at, "run", code=2)["targets"]
        assert [event["subject"] for event in ops["sent"]] == ["train"]
        assert "OTHER_URL is not set" in other["problem"]["what"]
        assert "export OTHER_URL=" in other["problem"]["hint"]
        assert notify(project, at, "ls")["targets"][1]["problem"] == other["problem"]
        assert "OTHER_URL" in notify(project, at, "test", "other", code=2)["error"]["what"]


@pytest.mark.parametrize(
    ("line", "args", "what"),
    [
        ("[line]\n", ["run"], "has no target of events"),
        (None, ["ls"], "line.toml cannot be read"),
        (LINE, ["run", "--target", "opps"], "no target 'opps'"),
        (LINE, ["replay", "abcd"], "'abcd' names no event"),
        (LINE, ["replay", "--since", "soon"], "--since soon is no time"),
        (LINE.replace("OPS_URL", "https://x"), ["run"], "line.toml:3: notify 1: url_from"),
        (LINE.replace("allow", "alow"), ["run"], "line.toml:4: notify 1: alow"),
    ],
)
def test_a_mistake_is_named(project: Path, line: str | None, args: list[str], what: str) -> None:
    if line is None:
        (project / "line.toml").unlink()
    else:
        (project / "line.toml").write_text(line)
    error = notify(project, None, *args, code=2)["error"]
    assert what in error["what"], error
    assert error["hint"] or error["why"]


def test_hints_name_the_file_of_the_targets(project: Path) -> None:
    (project / "line.toml").rename(project / "other.toml")
    box = Outbox(project / "line" / "notify" / "ops")
    box.folder.mkdir(parents=True)
    box.path.write_text('{"is": "event"}\n')
    wrong = run(["notify", "test", "op", "--file", "other.toml"], project, dict(os.environ))
    environ = {**os.environ, "OPS_URL": "https://ops.example", "OPS_URL_SECRET": SECRET}
    reported = run(["notify", "run", "--file", "other.toml"], project, environ)
    assert "hint: aifx notify ls --file other.toml" in wrong.stderr
    assert "is damaged" in reported.stderr
    for done in (wrong, reported):
        for hint in done.stderr.splitlines():
            assert "aifx notify" not in hint or "--file other.toml" in hint, hint

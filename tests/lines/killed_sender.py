"""A sender of events that is killed before and after each of its writes and requests. Prints the number of kills.

The receiver is a thread of the sender and writes down what it accepts below the same folder: so a kill before that
write is one after a request was sent, and a kill after it is one before the answer arrived.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from faulty_files import kill_at_each_change
from webhook_receiver import LOOPBACK, SECRET, Answer, receiver

from aifx.core.project import Project
from aifx.lines import delivery, outbox
from aifx.lines.delivery import deliver, find_again, outbox_of
from aifx.lines.events import read_events
from aifx.lines.file import EVENT_TYPES, Target
from aifx.lines.journal import Journal
from aifx.registry.roots import open_root

TARGET = Target("ops", EVENT_TYPES, "OPS_URL", "OPS_URL_SECRET", LOOPBACK)
BEGIN = 4e9
ACCEPTED = "accepted.jsonl"


def prepare(root: Path) -> None:
    root.mkdir()
    (root / "aifx.toml").write_text("")
    journal = Journal(root / "line")
    for station in ("a", "b", "a", "b"):
        journal.append("ended", station, "k", "k-1", outcome="failed", code=2, command="train")


def send(root: Path, at_s: float, refused: str = "", *, replays: bool = False) -> delivery.Deliveries:
    project = Project(root)

    def answer(event: dict[str, Any]) -> Answer:
        if event["subject"] == refused:
            return 500
        handle = os.open(root / ACCEPTED, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(handle, json.dumps([event["id"], event["subject"]]).encode() + b"\n")
        os.close(handle)
        return 204

    with receiver() as at:
        at.answer = answer
        again = find_again(project, [TARGET], []) if replays else None
        environ = {"OPS_URL": at.url, "OPS_URL_SECRET": SECRET}
        return deliver(project, [TARGET], environ, clock=lambda: BEGIN + at_s, again=again)


def write(root: Path) -> None:
    """Events that are accepted, refused, dead, sent again, and an outbox that becomes a short one."""
    delivery.FIRST_S = BEGIN  # the records are of now, which is long before BEGIN
    delivery.PAUSES_S, outbox.KEPT_RECORDS = (5.0,), 3
    send(root, 0, "b")
    send(root, 6, "b")  # the first one of b is dead
    send(root, 12, replays=True)
    send(root, 30)


def check(root: Path, calm: Path) -> None:
    del calm
    write(root)
    box = outbox_of(Project(root), TARGET).read()
    assert not box.waiting
    assert not box.dead
    events = read_events(Project(root), open_root(None, Project(root)), {}).events
    expected = [(event.id, event.subject) for event in events]
    assert len(expected) == 4
    lines = (root / ACCEPTED).read_text().splitlines()
    first = list(dict.fromkeys(tuple(json.loads(line)) for line in lines))
    assert set(first) == set(expected)
    assert [one for one in first if one[1] == "a"] == [one for one in expected if one[1] == "a"]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.stdout.write(str(kill_at_each_change(folder, prepare, write, check)))

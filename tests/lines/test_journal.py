"""The journal of a line: torn ends, damage, full disks, several writers, and kills at each change."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_files import failing

from aifx.core.errors import AifxError
from aifx.lines.journal import DamagedJournal, Journal

WRITER = """
import sys
from pathlib import Path
from aifx.lines.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    journal.append("approved", sys.argv[2], facts_of=number)
"""


def test_records_come_back_and_form_a_chain(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "line")
    assert journal.records() == ()
    first = journal.append("started", "train", "k" * 64, "train-1", words=[["train"]])
    second = journal.append("ended", "train", "k" * 64, "train-1", code=0)
    assert Journal(tmp_path / "line").records() == (first, second) == journal.records()
    assert (first.number, second.number, second.previous) == (1, 2, first.digest)


@pytest.mark.parametrize("torn", [b'{"torn', b"\0" * 100])
def test_a_torn_last_record_is_ignored_and_then_cut(tmp_path: Path, torn: bytes) -> None:
    journal = Journal(tmp_path)
    journal.append("tick")
    with journal.path.open("ab") as file:
        file.write(torn)
    assert len(Journal(tmp_path).records()) == 1
    Journal(tmp_path).append("paused")
    assert [record.kind for record in journal.records()] == ["tick", "paused"]
    assert torn not in journal.path.read_bytes()


@pytest.mark.parametrize("change", ["other", "moved", "missing", "text"])
def test_damage_is_named_with_its_line(tmp_path: Path, change: str) -> None:
    journal = Journal(tmp_path)
    for station in "abc":
        journal.append("retry", station)
    lines = journal.path.read_text().splitlines(keepends=True)
    if change == "other":
        lines[1] = json.dumps({**json.loads(lines[1]), "station": "x"}) + "\n"
    elif change == "moved":
        lines[1:] = reversed(lines[1:])
    elif change == "missing":
        del lines[1]
    else:
        lines[1] = "[]\n"
    journal.path.write_text("".join(lines))
    with pytest.raises(DamagedJournal, match=r"journal\.jsonl:2 is damaged"):
        Journal(tmp_path).records()
    with pytest.raises(DamagedJournal):
        Journal(tmp_path).append("tick")


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_no_part_of_a_record(tmp_path: Path, call: str) -> None:
    journal = Journal(tmp_path)
    journal.append("tick")
    before = journal.path.read_bytes()
    with failing(tmp_path) as calls:
        Journal(tmp_path).append("tick")
    at = next(number for number, made in enumerate(calls.made) if made.startswith(f"{call} "))
    journal.path.write_bytes(before)
    with failing(tmp_path, at, number=errno.ENOSPC), pytest.raises(AifxError, match="disk"):
        Journal(tmp_path).append("tick")
    assert journal.path.read_bytes() == before


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name, "40"], env=dict(os.environ)) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    records = Journal(tmp_path).records()
    for name in "abc":
        assert [one.facts["facts_of"] for one in records if one.station == name] == list(range(40))

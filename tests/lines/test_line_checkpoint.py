"""The checkpoint of a line: equal to the whole journal, ignored when it is not of it, whatever is killed meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_files import failing, kill_at_each_change
from ticking import Ticking, station

from aifx.lines import checkpoint
from aifx.lines.checkpoint import CHECKPOINT, Replay
from aifx.lines.journal import JOURNAL, DamagedJournal, Journal
from aifx.lines.state import LineState, fold


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line that has run, with a checkpoint and a record after it."""
    monkeypatch.setattr(checkpoint, "RECORDS_AFTER", 4)
    ticking = Ticking(tmp_path)
    ticking.write(station("good") + station("bad", "sh -c 'exit 2'") + station("asks", ask="approval"))
    ticking.tick()
    ticking.run().journal.append("paused", "good", reason="because")
    return tmp_path / "line"


def whole(line: Path) -> LineState:
    return fold(Journal(line).records())


def test_a_tick_reads_only_the_records_after_the_checkpoint(line: Path) -> None:
    replay = Replay(line)
    assert [one.kind for one in replay.journal.records()] == ["paused"]
    assert replay.state == whole(line)
    replay.journal.append("approved", "asks", "k" * 64)
    assert replay.update()
    assert not replay.update()
    assert replay.state == whole(line) == Replay(line).state


def test_a_change_before_the_checkpoint_is_found_by_a_reader_of_the_whole_journal(line: Path) -> None:
    path = line / JOURNAL
    path.write_bytes(path.read_bytes().replace(b'"good"', b'"gone"', 1))
    Replay(line)
    with pytest.raises(DamagedJournal, match="the record was changed"):
        Journal(line).records()


def test_a_state_keeps_the_times_that_a_budget_or_a_condition_can_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aifx.lines.state.KEPT_TIMES", 3)
    journal = Journal(tmp_path)
    for number in range(5):
        journal.append("started", "a", str(number), f"a-{number}", number=1)
        journal.append("ended", "a", str(number), f"a-{number}", outcome="done")
    journal.append("skip", "a", "9")
    own = fold(journal.records()).of("a")
    starts = [one.time for one in journal.records() if one.kind == "started"]
    assert own.starts == starts[-3:]
    assert own.begins == [*starts[-2:], journal.records()[-1].time]


def change(line: Path) -> None:
    path = line / CHECKPOINT
    path.write_bytes(path.read_bytes().replace(b"failed", b"closed", 1))


def of_another_version(line: Path) -> None:
    replay = Replay(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "__version__", "0")
        patch.setattr(checkpoint, "RECORDS_AFTER", 0)
        replay.state.stations.clear()
        replay.save()


def of_another_journal(line: Path) -> None:
    (line / JOURNAL).unlink()
    for number in range(20):
        Journal(line).append("paused", "good", reason=str(number))


def of_an_older_journal(line: Path) -> None:
    path = line / JOURNAL
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))


@pytest.mark.parametrize("spoil", [change, of_another_version, of_another_journal, of_an_older_journal])
def test_a_checkpoint_that_does_not_match_is_ignored(line: Path, spoil: Callable[[Path], None]) -> None:
    spoil(line)
    replay = Replay(line)
    assert replay.journal.records()[0].number == 1
    assert replay.state == whole(line)


def test_an_older_journal_put_in_place_meanwhile_is_read_from_its_beginning(line: Path) -> None:
    replay = Replay(line)
    of_an_older_journal(line)
    assert replay.update()
    assert replay.state == whole(line)


def save_one(line: Path) -> None:
    Replay(line).save()


def check_saved(line: Path, calm: Path) -> None:
    assert Replay(line).state == whole(line) == whole(calm)
    save_one(line)
    assert sorted(os.listdir(line)) == sorted(os.listdir(calm))
    assert Replay(line).journal.records() == ()


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_a_checkpoint_that_counts(
    line: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "RECORDS_AFTER", 1)
    folder = tmp_path_factory.mktemp("kills")
    assert kill_at_each_change(folder, lambda base: shutil.copytree(line, base), save_one, check_saved) >= 4


def test_a_full_disk_keeps_the_checkpoint_before(line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "RECORDS_AFTER", 1)
    before = (line / CHECKPOINT).read_bytes()
    replay = Replay(line)
    with failing(line) as calls:
        replay.save()
    at = next(number for number, made in enumerate(calls.made) if made.startswith("write "))
    (line / CHECKPOINT).write_bytes(before)
    with failing(line, at, number=errno.ENOSPC):
        replay.save()
    assert (line / CHECKPOINT).read_bytes() == before

"""Records of a server: a chain that shows each change, payloads that can be erased, and answers that wait for them."""

from __future__ import annotations

import os
import queue
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_files import failing, kill_at_each_change

from aifx.core.errors import DataError
from aifx.serving.record import Recorder
from aifx.serving.records import Record, RecordWriter, encoded, erase_payloads, read_records
from aifx.serving.requests import Delta, GenerationRequest, NotRecorded

HERE = Path(__file__).parent
ACKNOWLEDGED, FLUSHED = "acknowledged", "flushed"


def write(writer: RecordWriter, number: int, text: str = "") -> None:
    request = encoded({"rows": [{"customer": number, "text": text or "x" * 100}]})
    writer.append(f"id-{number}", 1e9 + number, "m" * 64, "fp_1", request, encoded({"outputs": {}}))


def write_all(folder: Path, count: int, segment_bytes: int = 1 << 20) -> Path:
    writer = RecordWriter(folder, segment_bytes)
    for number in range(count):
        write(writer, number)
    writer.close()
    return writer.folder


def erase_all(folder: Path) -> list[str]:
    return erase_payloads(folder, lambda records: {record.place for record in records}, dry_run=False)


def test_a_chain_shows_what_was_changed_removed_or_put_elsewhere(tmp_path: Path) -> None:
    folder = write_all(tmp_path, 10, segment_bytes=3000)
    chains = sorted(folder.glob("*.chain"))
    assert len(chains) > 2
    for file in folder.iterdir():
        assert file.stat().st_size < 3000
    assert [record.id for record in read_records(tmp_path)] == [f"id-{number}" for number in range(10)]
    chain, payload = chains[1], chains[1].with_suffix(".payload")
    lines, contents = chain.read_bytes().splitlines(keepends=True), payload.read_bytes()
    for damaged in (
        [lines[0].replace(b'"id":"id-', b'"id":"ie-'), *lines[1:]],
        lines[1:],
        [lines[1], lines[0], *lines[2:]],
        [b"{}\n", *lines[1:]],
    ):
        chain.write_bytes(b"".join(damaged))
        with pytest.raises(DataError, match=rf"{chain.name}:\d"):
            list(read_records(tmp_path))
    chain.write_bytes(b"".join(lines))
    for changed in (contents.replace(b'"customer":', b'"custimer":', 1), b"", b"{}" + contents[2:]):
        payload.write_bytes(changed)
        with pytest.raises(DataError, match=rf"{chain.name}:1: .*"):
            list(read_records(tmp_path))
    payload.write_bytes(contents)
    for file in (chains[0], chains[0].with_suffix(".payload")):  # who keeps records for a while deletes old segments
        file.unlink()
    assert [record.id for record in read_records(tmp_path)][-1] == "id-9"
    chain.unlink()
    chains[2].unlink()
    (chains[2].with_name("000000.chain")).write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"000000\.chain:1"):
        list(read_records(tmp_path))


def test_an_erased_payload_is_gone_and_the_chain_is_whole(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, 3000)
    for number in range(8):
        write(writer, number, "A. Smith" if number in (2, 7) else "")

    def of_smith(records: Any) -> set[str]:
        return {record.place for record in records if "Smith" in record.request["rows"][0]["text"]}

    before = {file: file.stat().st_size for file in writer.folder.iterdir()}
    planned = erase_payloads(writer.folder, of_smith, dry_run=True)
    assert len(planned) == 2
    assert len(list(read_records(tmp_path))) == 8
    assert erase_payloads(writer.folder, of_smith, dry_run=False) == planned
    write(writer, 8)  # the server goes on
    writer.close()
    content = b"".join(file.read_bytes() for file in writer.folder.iterdir())
    assert b"Smith" not in content
    assert all(file.stat().st_size >= size for file, size in before.items())
    states = [record.state for record in read_records(tmp_path)]
    assert [number for number, state in enumerate(states) if state == "erased"] == [2, 7]
    assert len(states) == 9
    erase_all(writer.folder)
    assert {record.state for record in read_records(tmp_path)} == {"erased"}


def test_what_a_power_cut_took_is_missing_and_not_damage(tmp_path: Path) -> None:
    folder = write_all(tmp_path, 4)
    payload, chain = folder / "000000.payload", folder / "000000.chain"
    content = payload.read_bytes()
    payload.write_bytes(content[:-20])
    assert [record.state for record in read_records(tmp_path)] == ["whole"] * 3 + ["missing"]
    payload.write_bytes(content + b'{"cut')
    chain.write_bytes(chain.read_bytes() + bytes(100))
    assert [record.state for record in read_records(tmp_path)] == ["whole"] * 4
    erase_all(folder)
    assert not payload.read_bytes().replace(b"null", b"").strip()


@pytest.mark.representative("records of a killed server")
@pytest.mark.parametrize(
    ("flush", "loses_power"),
    [(3600.0, False), pytest.param("each", True, marks=pytest.mark.slow), (3600.0, True)],
)
def test_a_kill_at_each_change_loses_no_acknowledged_record(
    tmp_path: Path, flush: float | str, loses_power: bool
) -> None:
    """With a loss of power, files keep what was flushed: each acknowledged record with "each", others up to a flush."""
    script = f"import test_answer_records as t; t.kill_each({str(tmp_path)!r}, {flush!r}, {loses_power})"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 35


def kill_each(folder: str, flush: Any, loses_power: bool) -> None:
    def serve(root: Path) -> None:
        """A server that answers eight requests, one after the other."""
        recorder = Recorder(root / "records", flush, is_open=False, segment_bytes=1500)
        with (root / ACKNOWLEDGED).open("a") as acknowledged, (root / FLUSHED).open("a") as flushed:
            for number in range(8):
                assert ask(recorder, f"id-{number}").finish_reason == "length"
                files = [acknowledged]
                if flush == "each":
                    files.append(flushed)
                elif number % 3 == 2:
                    recorder._writer.sync()  # as its thread does
                    flushed.write((root / ACKNOWLEDGED).read_text().removeprefix((root / FLUSHED).read_text()))
                    files = [acknowledged, flushed]
                for file in files:
                    file.write(f"id-{number}\n")
                    file.flush()
        if not loses_power:
            erase_payloads(recorder.folder, lambda records: {records[0].place} if records else set(), dry_run=False)
        recorder.close()

    def check(root: Path, calm: Path) -> None:
        kept = root / (FLUSHED if loses_power else ACKNOWLEDGED)
        kept_ids = kept.read_text().split() if kept.exists() else []
        found = records_of(root)
        assert [record.id for record in found][: len(kept_ids)] == kept_ids
        if loses_power:
            assert {record.state for record in found[: len(kept_ids)]} <= {"whole"}
        else:
            assert len(found) <= len(kept_ids) + 1
            assert "missing" not in {record.state for record in found}
        write_all(root / "records", 2)  # the next server
        assert len(records_of(root)) == len(found) + 2
        for folder in (root / "records").iterdir():
            if list(folder.glob("*.chain")):
                erase_all(folder)
        assert all(b"prompt_ids" not in file.read_bytes() for file in (root / "records").rglob("*.payload"))
        assert len(records_of(calm)) == 8

    def records_of(root: Path) -> list[Record]:
        if not any(file.read_bytes().count(b"\n") for file in (root / "records").rglob("*.chain")):
            return []
        return list(read_records(root / "records"))

    sys.stdout.write(
        str(kill_at_each_change(Path(folder), Path.mkdir, serve, check, below="records", loses_power=loses_power))
    )


def test_a_segment_is_flushed_before_the_next_one_begins(tmp_path: Path) -> None:
    """Otherwise a loss of power could leave the next one alone, and the chain would look as if records were removed."""
    with failing(tmp_path) as calls:
        writer = RecordWriter(tmp_path, 3000)
        for number in range(10):
            write(writer, number)
        files = sorted(writer.folder.iterdir())
        assert len(files) > 4
        for file in files[:-2]:
            assert calls.durable[file.stat().st_ino] == file.stat().st_size
    writer.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def ask(recorder: Recorder, identity: str) -> Delta:
    found = queue.Queue[Delta]()
    _, take = recorder.recorded(GenerationRequest([1] * 50, 2, id=identity), found.put, "fp_1", "m")
    take(Delta("a", (1,)))
    assert found.get(timeout=60).finish_reason is None
    take(Delta("b", (2,), finish_reason="length"))
    return found.get(timeout=60)


def test_answers_go_on_without_records_or_end_if_these_cannot_be_written(tmp_path: Path, logged: list[str]) -> None:
    for failure in ("open", "closed"):
        recorder = Recorder(tmp_path / failure, 60.0, is_open=failure == "open")
        assert ask(recorder, "first").finish_reason == "length"
        with files_of_at_most(1000):  # the kernel takes a part of the record
            assert ask(recorder, "lost").finish_reason == ("length" if failure == "open" else "error")
            if failure == "closed":
                with pytest.raises(NotRecorded):
                    ask(recorder, "refused")
        recorder._failed_at = 0.0  # a second later
        assert ask(recorder, "later").finish_reason == "length"
        recorder.close()
        assert [(record.id, record.lost) for record in read_records(tmp_path / failure)] == [("first", 0), ("later", 1)]
    assert sum("answers are not recorded" in line for line in logged) == 2


def test_each_answer_waits_for_the_disk(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "each", is_open=False)
    ended = threading.Event()
    arrays = {"x": np.arange(3)}
    results: list[Exception | None] = []

    def done(error: Exception | None) -> None:
        results.append(error)
        ended.set()

    with failing(recorder.folder) as calls:
        recorder.record_prediction(("a", 1.0, "m", "fp"), [], arrays, arrays, [], done)
        assert ended.wait(60)
    names = [call.split()[0] for call in calls.made]
    assert names[:4] == ["write", "write", "fsync", "fsync"]
    with failing(recorder.folder, at=2, lasting=True):
        ended.clear()
        recorder.record_prediction(("b", 1.0, "m", "fp"), [], arrays, arrays, [], done)
        assert ended.wait(60)
    assert results[0] is None
    assert results[1] is not None
    recorder.close()

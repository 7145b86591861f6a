from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifx.core.errors import EnvironmentFault
from aifx.core.files import UnsafeFile
from aifx.core.json_files import JsonLines, read_jsonl, write_json
from aifx.runs.reading import MetricsTail
from aifx.runs.records import Ledger, MetricsWriter


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_jsonl(path)]


def write_steps(path: Path, *numbers: int, resume_at: int = 0) -> None:
    writer = MetricsWriter(path, resume_at)
    for n in numbers:
        writer.write({"step": n, "loss": n / 10})
    writer.close()


def test_later_records_are_cut_at_resumption(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 2, 3, 4, 5)
    write_steps(path, 4, 5, 6, resume_at=3)
    assert steps(path) == [1, 2, 3, 4, 5, 6]
    write_steps(path, 5, 10, resume_at=4)
    assert steps(path) == [1, 2, 3, 4, 5, 10]
    write_steps(path, resume_at=7)  # between two records
    assert steps(path) == [1, 2, 3, 4, 5]
    write_steps(path, 1, resume_at=0)
    assert steps(path) == [1]


def test_a_step_that_is_written_again_is_replaced(tmp_path: Path) -> None:
    """A validation that a signal put off is made up after the step's record may have reached the file."""
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 2, 3)
    write_steps(path, 3, 4, resume_at=3)
    assert steps(path) == [1, 2, 3, 4]
    write_steps(path, 2, 2, 3, resume_at=4)
    assert steps(path) == [1, 2, 3]


def test_a_file_that_was_deleted_is_not_whole(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    lines.sync()
    lines.path.unlink()
    with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl is gone"):
        lines.sync()


def test_syncing_and_closing_from_two_threads(tmp_path: Path) -> None:
    for _ in range(20):
        writer = MetricsWriter(tmp_path / "metrics.jsonl", 0)
        failures: list[BaseException] = []

        def sync(writer: MetricsWriter = writer, failures: list[BaseException] = failures) -> None:
            try:
                for _ in range(20):
                    writer.sync()
            except BaseException as e:
                failures.append(e)

        thread = threading.Thread(target=sync)
        thread.start()
        writer.write({"step": 1})
        writer.close()
        writer.close()
        thread.join()
        assert not failures


@given(st.integers(0, 6), st.data())
def test_a_torn_file_is_continued(
    tmp_path_factory: pytest.TempPathFactory, resume_at: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    write_steps(path, 1, 2, 3, 4, 5)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    there = steps(path)
    assert there == list(range(1, whole[:cut].count(b"\n") + 1))
    write_steps(path, resume_at + 1, resume_at=resume_at)
    assert steps(path) == [s for s in there if s <= resume_at] + [resume_at + 1]


@pytest.mark.parametrize("torn", [b'{"step": 6', b'{"step": 6}', b"\0\0\0\0", b'{"step": 6, "loss": "\xff'])
def test_a_torn_line_is_no_record(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 2)
    with path.open("ab") as file:
        file.write(torn)
    assert steps(path) == [1, 2]
    write_steps(path, 3, resume_at=2)
    assert steps(path) == [1, 2, 3]


def test_zeroed_lines_of_a_lost_node_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n\0\0\0\0\n{"event": "stop"}\n[1]\n')
    assert [e["event"] for e in read_jsonl(path)] == ["start", "stop"]


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = [np.float32(0.1), np.float32(1e-45), np.float32(3.4e38), float(np.nextafter(1.0, 2.0)), -0.0]
    writer = MetricsWriter(path, 0)
    for i, value in enumerate(values):
        writer.write({"step": 2 * i + 1, "loss": float(value)})
        writer.write({"step": 2 * i + 2, "loss": value})
    back = [record["loss"] for record in read_jsonl(path)]
    assert [struct.pack("<d", v) for v in back] == [struct.pack("<d", float(v)) for v in values for _ in range(2)]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.jsonl")
    ledger.write("nan", loss=float("nan"), array=np.array([1.0, np.inf]), nested={"a": [float("-inf"), Path("x")]})
    text = ledger.path.read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    event = json.loads(text)
    assert (event["loss"], event["array"], event["nested"]) == (None, [1.0, None], {"a": [None, "x"]})


def test_a_line_is_there_when_the_call_returns(tmp_path: Path) -> None:
    ledger, began = Ledger(tmp_path / "new" / "events.jsonl"), time.time()
    ledger.write("start", step=0)
    again = Ledger(ledger.path)  # another process, later
    again.write("stop")
    assert [e["event"] for e in read_jsonl(ledger.path)] == ["start", "stop"]
    assert all(began - 60 < e["time"] < time.time() + 60 for e in read_jsonl(ledger.path))


def test_lines_of_several_threads_stay_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.jsonl")
    threads = [
        threading.Thread(target=lambda: [ledger.write("tick", text="x" * 500) for _ in range(100)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_jsonl(ledger.path)) == 400


WRITE = """
import sys
from pathlib import Path
from aifx.core.json_files import read_jsonl
from aifx.runs.records import MetricsWriter
path = Path(sys.argv[1])
last = max((r["step"] for r in read_jsonl(path)), default=0)
resume_at = max(last - 3, 0)
writer = MetricsWriter(path, resume_at)
print("ready", flush=True)
step = resume_at
while True:
    step += 1
    writer.write({"step": step, "loss": 1 / step, "text": "x" * 3000})
    if step == resume_at + 2:
        print("writing", flush=True)
"""


@pytest.mark.slow
def test_kills_in_the_middle_of_writing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    dice = random.Random(0)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "writing\n"]
            time.sleep(dice.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
    found = steps(path)
    assert found == list(range(1, len(found) + 1))
    assert len(found) > 8


def test_write_json_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "doc.json"
    write_json(path, {"a": float("nan"), "name": os.fsdecode(b"\xff"), "ü": 1})
    assert json.loads(path.read_text("utf-8")) == {"a": None, "name": "\udcff", "ü": 1}
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["doc.json"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnsafeFile, match="folder is a folder"):
        write_json(tmp_path / "folder", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["doc.json", "folder"]


def test_a_tail_follows_and_notices_resumption(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == ([], False)
    write_steps(path, 1, 2, 3)
    records, void = tail.read()
    assert ([r["step"] for r in records], void) == ([1, 2, 3], False)
    with path.open("ab") as file:
        file.write(b'{"step": 4')
    assert tail.read() == ([], False)
    write_steps(path, 3, 4, 5, 6, resume_at=2)
    records, void = tail.read()
    # The cut and rewritten part looks the same here, byte for byte: a resumed run repeats itself.
    assert [r["step"] for r in records] == [4, 5, 6]
    writer = MetricsWriter(path, 2)
    writer.write({"step": 3, "loss": 9.0, "text": "x" * 500})
    records, void = tail.read()
    assert ([r["step"] for r in records], void) == ([1, 2, 3], True)

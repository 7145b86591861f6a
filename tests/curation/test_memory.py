"""`--memory` bounds the processes of a command together, the interpreter and its packages included."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inprocess import run

MEGABYTES = 150


def write_texts(path: Path) -> None:
    """Texts of some hundred words of which a tenth are copies, some of them edited."""
    import pyarrow as pa
    from pyarrow import parquet

    draw = random.Random(1)
    words = [f"{draw.getrandbits(40):x}"[: draw.randrange(2, 10)] for _ in range(20_000)]
    schema = pa.schema([("text", pa.string())])
    with parquet.ParquetWriter(path, schema) as file:
        for _ in range(MEGABYTES // 5):
            texts = [" ".join(draw.choices(words, k=draw.randrange(50, 700))) for _ in range(2000)]
            texts += [text.replace(" a", " b", index % 3) for index, text in enumerate(texts[::10])]
            file.write_table(pa.table({"text": texts}, schema))


def resident(pid: int, parent: bytes = b"") -> list[tuple[int, int]]:
    """Bytes in memory of a process and of those below it: its own, and those of mapped files.

    Args:
        parent: command line of its parent. A process that still has it has just been forked, and shares its memory.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if command == parent:
            return [(0, 0)]
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        own, files = (int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
        found = [(own, files)]
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [each for child in file.read().split() for each in resident(int(child), command)]
    except (OSError, KeyError):  # it ended
        return [(0, 0)]
    return found


def peak_bytes(folder: Path, *command: str, code: int = 0) -> int:
    """The most memory that a command and its processes used. Files that all of them map, such as libraries, are one."""
    aifx = [sys.executable, "-P", "-m", "aifx.commands.main", "data"]
    peak = 0
    with subprocess.Popen([*aifx, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            found = resident(process.pid)
            peak = max(peak, sum(own for own, _ in found) + max(files for _, files in found))
            time.sleep(0.02)
        assert process.stderr is not None
        assert process.returncode == code, process.stderr.read().decode()
    return peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_data_set_larger_than_the_memory(tmp_path: Path) -> None:
    write_texts(tmp_path / "text.parquet")
    root = ("--root", str(tmp_path / "datasets"))
    small = ("--memory", "256MiB", *root)
    assert peak_bytes(tmp_path, "add", "corpus", "text.parquet", "--license", "CC0-1.0", *small) <= 256 << 20
    version = f"corpus@{(tmp_path / 'datasets/corpus/latest').read_text().strip()}"
    assert peak_bytes(tmp_path, "dedupe", version, *small) <= 256 << 20
    assert peak_bytes(tmp_path, "dedupe", version, "--near", "0.8", *small) <= 256 << 20
    several = ("--memory", "768MiB", "--workers", "2", *root)
    assert peak_bytes(tmp_path, "dedupe", version, "--near", "0.7", *several) <= 768 << 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("output", [(), ("--output", "rows.csv"), ("--output", "rows.parquet")])
def test_a_query_that_needs_more_than_the_memory(tmp_path: Path, output: tuple[str, ...]) -> None:
    """Also memory that DuckDB does not count: of functions, and of results."""
    (tmp_path / "a.txt").write_text("a")
    files = ("--root", "datasets", "--memory", "256MiB")
    assert peak_bytes(tmp_path, "add", "corpus", "a.txt", "--license", "CC0-1.0", *files) <= 256 << 20
    for sql in ("SELECT repeat('x', 1000000) AS t FROM range(1000)", "SELECT length(repeat('x', 1000000000)) AS n"):
        assert peak_bytes(tmp_path, "query", "corpus", sql, "--rows", "1000", *output, *files, code=2) <= 256 << 20
    assert peak_bytes(tmp_path, "query", "corpus", "SELECT count(*) FROM range(10000000)", *files) <= 256 << 20


def test_too_little_memory(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\none\n")
    for size, least in (("100MB", "256MiB"), ("300MB", "400MiB")):
        found = run(
            ["data", "add", "corpus", "rows.csv", "--license", "CC0-1.0", "--memory", size, "--root", "datasets"],
            tmp_path,
            dict(os.environ),
        )
        assert found.returncode == 2
        assert f"hint: --memory {least}" in found.stderr

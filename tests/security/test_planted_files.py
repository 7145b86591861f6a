"""Attacks on opening and writing: links, FIFOs, devices and huge files under the names that aifx uses."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from aifx.core.files import (
    UnsafeFile,
    check_tree,
    make_folders,
    open_file,
    open_output,
    read_file,
    replace_file,
    write_output,
)
from aifx.core.json_files import read_jsonl, write_json
from aifx.runs.records import Ledger, MetricsWriter

PRECIOUS = b"what the link points to\n"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file outside of the run, which must stay as it is."""
    path = tmp_path / "precious"
    path.write_bytes(PRECIOUS)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
def test_a_link_is_not_opened(run: Path, precious: Path, flags: int) -> None:
    (run / "file").symlink_to(precious)
    with pytest.raises(UnsafeFile, match=r"link .*precious"):
        open_file(run / "file", flags)
    assert precious.read_bytes() == PRECIOUS


def test_a_link_that_leads_nowhere_creates_nothing(run: Path, tmp_path: Path) -> None:
    (run / "file").symlink_to(tmp_path / "created")
    with pytest.raises(UnsafeFile):
        open_file(run / "file", os.O_WRONLY | os.O_CREAT)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("act", [read_file, lambda p, below: replace_file(p, b"x", below=below)])
def test_no_folder_below_the_run_is_a_link(run: Path, tmp_path: Path, act: Callable[..., object]) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/report.json").write_bytes(PRECIOUS)
    (run / "eval").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFile, match="eval is a link"):
        act(run / "eval/report.json", below=run)
    with pytest.raises(UnsafeFile, match="eval is a link"):
        make_folders(run / "eval/deeper", below=run)
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["report.json"]
    assert (tmp_path / "outside/report.json").read_bytes() == PRECIOUS


def test_the_run_itself_may_be_reached_through_links(run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(run)
    folder = tmp_path / "runs"
    make_folders(folder / "eval/deeper", below=folder)
    replace_file(folder / "eval/deeper/report.json", b"{}", below=folder)
    assert read_file(run / "eval/deeper/report.json", below=run) == b"{}"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT])
def test_a_fifo_does_not_hang(run: Path, flags: int) -> None:
    os.mkfifo(run / "file")
    with pytest.raises(UnsafeFile, match="is a FIFO"):
        open_file(run / "file", flags)


def test_a_device_is_not_read(run: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    try:
        os.mknod(run / "file", 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("this container makes no devices")
    with pytest.raises(UnsafeFile, match="is a device"):
        read_file(run / "file")


def test_a_huge_file_is_not_read(run: Path) -> None:
    with (run / "file").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnsafeFile, match="too large"):
        read_file(run / "file")


def test_reading_takes_the_memory_of_the_file(run: Path) -> None:
    """Not that of the limit. A file without a size, as in /proc, is read to its end."""
    (run / "file").write_bytes(PRECIOUS)
    tracemalloc.start()
    try:
        assert read_file(run / "file") == PRECIOUS
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    status = Path("/proc/self/status")
    assert status.stat().st_size == 0
    assert read_file(status).startswith(b"Name:")
    assert len(read_file(status)) > 500
    with pytest.raises(UnsafeFile, match="too large"):
        read_file(status, limit=500)


def test_a_file_is_replaced_and_not_written_through(run: Path, precious: Path) -> None:
    (run / "kernels.json").symlink_to(precious)
    for pid in (os.getpid(), os.getpid() + 1):
        (run / f".kernels.json.{pid}.tmp").symlink_to(precious)  # where aifx once wrote first
    write_json(run / "kernels.json", {"a": 1})
    assert precious.read_bytes() == PRECIOUS
    assert (run / "kernels.json").read_bytes() == b'{\n  "a": 1\n}\n'
    assert not (run / "kernels.json").is_symlink()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT])
def test_a_folder_in_place_of_a_file_is_named(run: Path, flags: int) -> None:
    (run / "events.jsonl").mkdir()
    with pytest.raises(UnsafeFile, match="is a folder"):
        open_file(run / "events.jsonl", flags)


def test_a_folder_is_not_replaced_by_a_file(run: Path) -> None:
    (run / "tags.json").mkdir()
    with pytest.raises(UnsafeFile, match="is a folder"):
        replace_file(run / "tags.json", b"{}")
    assert [path.name for path in run.iterdir()] == ["tags.json"], "no temporary file stays"


def test_permissions_follow_the_umask(run: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(run / "public", b"")
    finally:
        os.umask(before)
    assert (run / "public").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "opened",
    [lambda path: Ledger(path), lambda path: MetricsWriter(path, 0), read_jsonl],
    ids=["events", "metrics", "read"],
)
def test_the_records_of_a_run_are_no_links(run: Path, precious: Path, opened: Callable[[Path], object]) -> None:
    (run / "records.jsonl").symlink_to(precious)
    with pytest.raises(UnsafeFile):
        opened(run / "records.jsonl")
    assert precious.read_bytes() == PRECIOUS


def test_a_named_output_is_not_written_through_a_link(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "report.html").symlink_to(precious)
    for attempt in (lambda path: write_output(path, b"x"), open_output):
        with pytest.raises(UnsafeFile, match="is a link"):
            attempt(tmp_path / "report.html")
    assert precious.read_bytes() == PRECIOUS


def test_streams_are_written_to(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_output(Path("/dev/stdout"), b"one\n")
    write_output(Path("/dev/null"), b"two\n")
    handle = open_output(Path("/dev/fd/1"))
    os.write(handle, b"three\n")
    os.close(handle)
    assert capfdbinary.readouterr().out.endswith(b"three\n")


def test_a_tree_with_a_link_or_a_fifo_is_refused(run: Path, precious: Path) -> None:
    (run / "state/arrays").mkdir(parents=True)
    (run / "state/arrays/0").write_bytes(b"")
    check_tree(run)
    os.mkfifo(run / "state/arrays/1")
    with pytest.raises(UnsafeFile, match="arrays/1 is a FIFO"):
        check_tree(run)
    (run / "state/arrays/1").unlink()
    (run / "state/arrays/1").symlink_to(precious)
    with pytest.raises(UnsafeFile, match="arrays/1 is a link"):
        check_tree(run)

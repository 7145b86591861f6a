"""Attacks by names that somebody planted where aifx writes a report, a table or a crash report."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aifx.benchmarking.results import read_report
from aifx.commands.console.failures import as_error
from aifx.core.errors import ExitCode
from aifx.core.files import UnsafeFile
from aifx.core.pages import write_page
from aifx.health.fleet.record import Recorder, is_record, read_record
from aifx.health.snapshot import Snapshot, read, write
from jax_kernels._ops.swiglu import SWIGLU
from jax_kernels.implementations import current_device
from jax_kernels.op import Choice
from jax_kernels.ops import small_cases
from jax_kernels.tuning import TuningCache

PRECIOUS = "what the link points to\n"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text(PRECIOUS)
    return path


@pytest.mark.parametrize(
    "attempt",
    [
        lambda path: write(Snapshot("node", 0.0, {}), path),
        lambda path: Recorder(path, ["node"]),
        lambda path: write_page("<html>", path),
    ],
    ids=["record", "record of a fleet", "html"],
)
@pytest.mark.parametrize("plant", [Path.symlink_to, lambda path, _: os.mkfifo(path)], ids=["link", "fifo"])
def test_a_report_is_not_written_through_a_planted_name(
    tmp_path: Path, precious: Path, attempt: Callable[[Path], object], plant: Callable[[Path, Path], None]
) -> None:
    plant(tmp_path / "report", precious)
    before = (tmp_path / "report").lstat()
    with pytest.raises(UnsafeFile):
        attempt(tmp_path / "report")
    assert precious.read_text() == PRECIOUS
    assert (tmp_path / "report").lstat().st_ino == before.st_ino


def test_the_name_that_was_written_first_can_be_planted_in_vain(tmp_path: Path, precious: Path) -> None:
    (tmp_path / f".node.json.{os.getpid()}.new").symlink_to(precious)
    write(Snapshot("node", 0.0, {}), tmp_path / "node.json")
    assert precious.read_text() == PRECIOUS
    assert read(tmp_path / "node.json").host == "node"


@pytest.mark.parametrize("attempt", [read, read_record, is_record, read_report])
def test_a_capture_that_is_a_fifo_or_huge_is_refused(tmp_path: Path, attempt: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "capture")
    with pytest.raises(UnsafeFile, match="is a FIFO"):
        attempt(tmp_path / "capture")
    if attempt is not is_record:
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(UnsafeFile, match="too large"):
            attempt(tmp_path / "huge")


def test_a_crash_report_is_private_and_its_name_is_not_known(
    tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda *_: "20260101-000000")
    for folder in (tmp_path / "cache", tmp_path / "none"):
        monkeypatch.setenv("AIFX_CACHE_DIR", str(folder))
        reports = folder / "reports" if folder.name == "cache" else tmp_path / "tmp"
        reports.mkdir(mode=0o700, parents=True)
        (reports / f"aifx-report-20260101-000000-{os.getpid()}.txt").symlink_to(precious)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        if folder.name == "none":
            folder.touch()  # no folder can be made there
        else:
            folder.chmod(0o700)
        before = os.umask(0)
        try:
            error = as_error(LookupError("nobody foresaw this"))
        finally:
            os.umask(before)
        assert error.exit_code == ExitCode.BUG
        (report,) = (p for p in reports.iterdir() if not p.is_symlink())
        assert str(report) in error.why
        assert stat.S_IMODE(report.stat().st_mode) == 0o600
        assert "nobody foresaw this" in report.read_text()
    assert precious.read_text() == PRECIOUS


def test_a_kernel_table_is_not_written_through_a_planted_name(tmp_path: Path, precious: Path) -> None:
    table = TuningCache(tmp_path / "kernels", current_device())
    table.path.parent.mkdir()
    table.path.with_suffix(f".{os.getpid()}.tmp").symlink_to(precious)
    table.put(SWIGLU, small_cases(SWIGLU)[0].call("float32"), Choice("xla"))
    assert precious.read_text() == PRECIOUS
    assert len(table.choices()) == 1

"""The processes of a job look whether they see one run directory."""

from __future__ import annotations

import itertools
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from held_port import held_port

from aifx.parallel.group import Disagreement, Group, Limits
from aifx.parallel.joined_group import JoinedGroup
from aifx.parallel.processes import Membership
from aifx.runs import agreement
from aifx.runs.agreement import check_shared


def outcomes(folders: list[Path], *, is_needed: bool = True) -> list[Exception | None]:
    """The end of the check in each process of a job, whose run directories are these."""

    def check(index: int, port: int) -> Exception | None:
        me = Membership("a test", f"127.0.0.1:{port}", len(folders), index)
        group = JoinedGroup(me, "127.0.0.1", Limits(connect_s=120.0, silence_s=120.0))
        try:
            check_shared(group, folders[index], "the run directory", "share it", is_needed=is_needed)
        except Disagreement as error:
            return error
        finally:
            group.finish()
        return None

    with held_port() as port, ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(check, range(len(folders)), itertools.repeat(port)))


def test_one_directory(tmp_path: Path) -> None:
    assert outcomes([tmp_path] * 3) == [None] * 3
    assert list(tmp_path.iterdir()) == []


def test_the_node_with_another_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "SEEN_S", 0.3)
    (tmp_path / "copy").mkdir()
    found = outcomes([tmp_path, tmp_path, tmp_path / "copy"])
    for error in found:
        assert isinstance(error, Disagreement)
        assert error.what.startswith(f"process 2 on {socket.gethostname()} ")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_process_that_trains_alone_looks_for_nothing(tmp_path: Path) -> None:
    check_shared(Group(), tmp_path / "absent", "the run directory", "share it")
    assert not (tmp_path / "absent").exists()


def test_a_folder_that_is_not_needed_may_be_missing(tmp_path: Path) -> None:
    assert outcomes([tmp_path / "absent"] * 2, is_needed=False) == [None] * 2
    assert not (tmp_path / "absent").exists()


def test_a_folder_of_each_host_is_refused_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "SEEN_S", 0.3)
    (tmp_path / "other").mkdir()
    found = outcomes([tmp_path, tmp_path / "other"], is_needed=False)
    assert [isinstance(error, Disagreement) for error in found] == [True, True]

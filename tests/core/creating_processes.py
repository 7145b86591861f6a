"""Processes that create the same files of a store on a disk.

    python creating_processes.py kills FOLDER    # kill one at each of its changes; prints the changes
    python creating_processes.py race FOLDER     # let 8 compete; prints which of them created each file

It starts processes by fork, so it runs outside of pytest, which may have threads.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

from faulty_files import kill_at_each_change, killed

from aifx.core.files import remove_temporary
from aifx.core.stores import open_store

DATA = bytes(range(256)) * 1024
PROCESSES, FILES = 8, 10
LIMIT_S = 120


def create(root: Path) -> None:
    open_store(str(root)).create("entries/new", DATA)


def check(root: Path, _: Path) -> None:
    """The file is whole or absent, a repeated call leaves it whole, and a sweep leaves nothing else."""
    store = open_store(str(root))
    before = store.read("entries/new")
    assert before in (None, DATA)
    assert store.create("entries/new", DATA) is (before is None)
    assert store.read("entries/new") == DATA
    assert not store.create("entries/new", b"of another")
    remove_temporary(root / "entries")
    assert store.read("entries/new") == DATA
    assert [path.name for path in root.rglob("*")] == ["entries", "new"]
    assert (root / "entries" / "new").stat().st_nlink == 1


def kills(folder: Path) -> list[str]:
    calm = folder / "calls"
    calm.mkdir()
    with killed(calm) as calls:
        create(calm)
    changes = [call.partition(" ")[0] for call in calls.made]
    (folder / "kills").mkdir()
    assert kill_at_each_change(folder / "kills", Path.mkdir, create, check) == len(changes)
    return changes


def compete(number: int, barrier: Barrier, folder: Path) -> None:
    store = open_store(str(folder))
    mine = bytes([number]) * len(DATA)
    answers = []
    try:
        for at in range(FILES):
            barrier.wait(LIMIT_S)
            is_mine = store.create(f"entries/{at}", mine)
            data = store.read(f"entries/{at}")
            assert data is not None
            assert (len(data), len(set(data)), data == mine) == (len(DATA), 1, is_mine)
            answers.append(is_mine)
    except BaseException:
        barrier.abort()
        raise
    (folder / f"{number}.json").write_text(json.dumps(answers))


def race(folder: Path) -> list[list[int]]:
    """For each file, the processes to which `create` answered True. All read the same whole bytes."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    processes = [context.Process(target=compete, args=(number, barrier, folder)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    answers = [json.loads((folder / f"{number}.json").read_text()) for number in range(PROCESSES)]
    return [[number for number, answer in enumerate(answers) if answer[at]] for at in range(FILES)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"kills": kills, "race": race}[sys.argv[1]](Path(sys.argv[2]))))

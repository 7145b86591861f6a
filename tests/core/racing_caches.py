"""Processes that make and damage one artefact of a cache at the same time, and are killed at random.

    python racing_caches.py FOLDER SEED KILLS

None of them gets anything but the content that was made, or an error about its damage while another one damages it. In
the end there is a whole artefact, and nothing else. The program prints the number of kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from aifx.core.artifact import MANIFEST, Artifact, DamagedArtifact, Files, cached, read_sealed, seal_files, sweep
from aifx.core.errors import EnvironmentFault

KIND, VERSION = "toy", 1
WORKERS = 3
CONTENT = b"good" * 5000


def make(folder: Path) -> tuple[dict[str, Any], Files]:
    (folder / "values").write_bytes(CONTENT)
    return {}, seal_files(folder, [folder / "values"], blocks=True)


def opened(folder: Path, artifact: Artifact) -> bytes:
    return read_sealed(folder, artifact, "values")


def ask(place: Path) -> bytes:
    return cached(place, KIND, VERSION, make, opened, lambda _: None)


def work(place: Path, dice: random.Random) -> None:
    while True:
        # FileNotFoundError: another process damages what this one has made, and a third takes it away.
        with suppress(DamagedArtifact, FileNotFoundError):
            try:
                assert ask(place) == CONTENT
            except EnvironmentFault as fault:  # another process damages it between its rename and the first reading
                if not isinstance(fault.__cause__, DamagedArtifact):
                    raise
        if dice.random() < 0.3:
            with suppress(OSError):
                dice.choice([(place / MANIFEST).unlink, lambda: os.truncate(place / "values", 3)])()


def start(place: Path, seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work(place, random.Random(seed))
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return pid


def kill(pid: int) -> int:
    """Kill a worker. Returns how it ended, which may have been earlier, by an error."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, seed: int, kills: int) -> None:
    dice, place = random.Random(seed), folder / "folder" / "it"
    workers = [start(place, dice.getrandbits(32)) for _ in range(WORKERS)]
    try:
        for _ in range(kills):
            time.sleep(dice.uniform(0, 0.03))
            at = dice.randrange(WORKERS)
            pid, workers[at] = workers[at], 0
            assert kill(pid) == -signal.SIGKILL
            workers[at] = start(place, dice.getrandbits(32))
    finally:  # one that goes on would hold this program's output open, for which the test waits
        ends = [kill(pid) for pid in workers if pid]
    assert ends == [-signal.SIGKILL] * WORKERS
    assert ask(place) == CONTENT
    sweep(place.parent)
    assert os.listdir(place.parent) == ["it"]
    sys.stdout.write(str(kills + WORKERS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

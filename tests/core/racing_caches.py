"""Processes that make and damage one artefact of a cache at the same time, and are killed at random.

    python racing_caches.py FOLDER SEED KILLS

None of them gets anything but the content that was made, or a DamagedArtifact while another one damages it. In the end
there is a whole artefact, and nothing else. The program prints the number of kills.
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
            assert ask(place) == CONTENT
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


def main(folder: Path, seed: int, kills: int) -> None:
    dice, place = random.Random(seed), folder / "folder" / "it"
    workers = [start(place, dice.getrandbits(32)) for _ in range(WORKERS)]
    for _ in range(kills):
        time.sleep(dice.uniform(0, 0.03))
        at = dice.randrange(WORKERS)
        os.kill(workers[at], signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(workers[at], 0)[1]) == -signal.SIGKILL
        workers[at] = start(place, dice.getrandbits(32))
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert ask(place) == CONTENT
    sweep(place.parent)
    assert os.listdir(place.parent) == ["it"]
    sys.stdout.write(str(kills + WORKERS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

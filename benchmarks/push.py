"""`aifx registry push` of a run, against a plain copy of the same bytes with SHA-256.

    python benchmarks/push.py PROJECT RUN [--rounds 5]

Both are timed as commands, from the start of a process to its end, in turn, on the file system of the project, with
their source in the page cache and nothing of an earlier one left to be written. The peer reads the weights of the
pushed version in one pass of blocks of 4 MiB, digests them with hashlib, writes them to a new file, and flushes the
file and its folder. A push of the same weights also compares each array with its digest, and reads the run's settings.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import side_by_side
from side_by_side import AIFX, Side, Told, Work

PEER = "a copy with SHA-256 and fsync"
COPY = """\
import hashlib, os, sys
digest, block = hashlib.sha256(), memoryview(bytearray(4 << 20))
os.mkdir(sys.argv[2])
with open(sys.argv[1], "rb", buffering=0) as source, open(sys.argv[2] + "/copy", "xb", buffering=0) as target:
    while count := source.readinto(block):
        digest.update(block[:count])
        target.write(block[:count])
    os.fsync(target.fileno())
folder = os.open(sys.argv[2], os.O_RDONLY)
os.fsync(folder)
print(digest.hexdigest())
"""


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=5, quick_rounds=1)
    parser.add_argument("project", type=Path)
    parser.add_argument("run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.project, prefix=".push-") as folder:
        root, copied = Path(folder, "registry"), Path(folder, "copied")
        push = [*AIFX, "registry", "push", arguments.run, "model", "--root", str(root)]
        where = {"cwd": arguments.project, "env": {**os.environ, "AIFX_CACHE_DIR": str(Path(folder, "cache"))}}
        side_by_side.command_of(push, **where)()
        weights = Path(folder, "weights")
        next(root.rglob("weights.safetensors")).rename(weights)
        checkpoints = arguments.project / "runs" / arguments.run / "checkpoints"
        copy = [sys.executable, "-I", "-S", "-c", COPY, str(weights), str(copied)]

        def timed(command: list[str]) -> Told:
            for made in (root, copied):
                shutil.rmtree(made, ignore_errors=True)
            for path in (weights, *checkpoints.rglob("*")):
                if path.is_file():
                    path.read_bytes()
            os.sync()
            time.sleep(1)
            return side_by_side.command_of(command, **where)()

        sides = [Side("aifx", lambda: timed(push)), Side(PEER, lambda: timed(copy))]
        runs = side_by_side.alternate(sides, side_by_side.rounds_of(arguments))
        size = weights.stat().st_size / 1e6
    work = Work("command", f"aifx registry push, {size:,.0f} MB", goal=0.8, amount=size, unit="MB")
    side_by_side.report(
        side_by_side.document("push", [side_by_side.versus(runs, work, PEER)], arguments, runs), arguments
    )


if __name__ == "__main__":
    main()

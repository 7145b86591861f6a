"""`aifx` in a station, forked from a warm process and killed before one of its changes: one further at each start.

    python killed_command.py PLAN SOCKET ARGUMENTS...

Every second time its shell is killed with it. PLAN is a folder with a file per command, which has the number of the
next change, and is empty once the command made fewer changes. Each start that is killed is a line of PLAN/kills.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from warm_aifx import KILLED_AT, ask

MOST_KILLS = 5
"""Of an attempt of a station: one that is killed more often has failed."""


def main() -> None:
    plan, path, args = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    command = "-".join(word for word in args[:6] if re.fullmatch("(--)?[a-z]+", word))
    with open(plan / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kills = (plan / "kills").read_text().splitlines()
        own = [line for line in kills if line.startswith(os.environ["AIFX_REQUEST"] + " ")]
        first, every = (plan / "first").read_text().split()
        text = (plan / command).read_text() if (plan / command).exists() else first
        is_killed = bool(text) and len(own) < MOST_KILLS
        if is_killed:
            os.environ[KILLED_AT] = text
            (plan / command).write_text(str(int(text) + int(every)))
            with open(plan / "kills", "a") as file:
                file.write(f"{os.environ['AIFX_REQUEST']} {command} {text}\n")
    code = ask(path, args)
    if code == -signal.SIGKILL:
        os.kill(0 if len(kills) % 2 else os.getpid(), signal.SIGKILL)
    if is_killed:
        (plan / command).write_text("")
    sys.exit(code)


main()

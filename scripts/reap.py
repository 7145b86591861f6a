"""Run a command, and wait for whatever it leaves behind: its CPU time is then that of this process's children.

    scripts/reap.py COMMAND [ARGUMENT ...]

Without this, init waits for processes whose parent has ended (servers of a test, processes of a fork server), and
their CPU time is in no count.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(command: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.posix_spawnp(command[0], command, os.environ)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

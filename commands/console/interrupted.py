"""The answer of a command that a signal ends before it has one.

This module imports little, since signals are heard from the entry point on.
"""

from __future__ import annotations

import os
import signal

from aifx.core.lifecycle import exit_code_of


def write_interrupted(signum: int, *, json: bool) -> None:
    """Write it past Python's buffers, and import nothing, since the main thread may be anywhere."""
    why = "SIGTERM" if signum == signal.SIGTERM else ""
    if json:
        code = int(exit_code_of(signum))
        lines = ('"what": "interrupted"', f'"why": "{why}"', '"hint": ""', f'"exit_code": {code}', '"transient": false')
        body = ",\n".join(f"    {line}" for line in lines)
        os.write(1, f'{{\n  "schema_version": 1,\n  "error": {{\n{body}\n  }}\n}}\n'.encode())
    else:
        os.write(2, f"error: interrupted\n{why and f'  {why}{chr(10)}'}".encode())

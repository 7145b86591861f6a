"""Time that the command line takes to start, against a bare typer program of one command.

    python benchmarks/cli_start.py [--rounds 21]

From the start of a process to its end, its output thrown away. `--help` stands against the program's own `--help`, and
`aifx runs ls` in a project that has no runs yet against the program's one command, which prints a line.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import side_by_side
from side_by_side import AIFX, Side, Work

BARE = '''\
import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    """Greet."""
    print(f"hello, {name}")


app()
'''
CASES = {"aifx --help": (["--help"], ["--help"]), "aifx runs ls": (["runs", "ls"], [])}
PEER = "a bare typer program"


def main() -> None:
    arguments = side_by_side.arguments_of(__doc__, rounds=21, quick_rounds=5).parse_args()
    rows, all_runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        (Path(folder) / "aifx.toml").touch()
        where = {"cwd": folder, "env": {**os.environ, "AIFX_CACHE_DIR": str(Path(folder) / "cache")}}
        for what, (ours, theirs) in CASES.items():
            commands = {"aifx": [*AIFX, *ours], PEER: [sys.executable, "-P", str(bare), *theirs]}
            sides = [Side(name, side_by_side.command_of(command, **where)) for name, command in commands.items()]
            for side in sides:
                side.measure()  # compiles its modules to bytecode, where that was not done
            runs = side_by_side.alternate(sides, side_by_side.rounds_of(arguments), label=f"{what}: ")
            rows.append(side_by_side.versus(runs, Work("command", what), PEER))
            all_runs.append(runs)
    versions = side_by_side.installed("typer", "rich")
    side_by_side.report(side_by_side.document("cli_start", rows, arguments, *all_runs, versions=versions), arguments)


if __name__ == "__main__":
    main()

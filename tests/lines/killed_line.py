"""`aifx line run` that is killed before and after each change it makes, and after each start of a process.

    python killed_line.py programs|effects FOLDER FIRST EVERY

After each kill the line is run again. It ends as the undisturbed one: each station was started once, and no version,
run or entry is more or less. The program prints the number of kills.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import warm_aifx
from faulty_files import kill_at_each_change
from ticking import station

from aifx.core.project import Project
from aifx.core.stores import open_store
from aifx.data.versions.catalog import open_catalog
from aifx.lines import running
from aifx.lines.journal import Journal
from aifx.registry.roots import Root
from aifx.verbs.line_ticks import line_run

COUNT = "sh -c 'echo $AIFX_REQUEST >>starts'"
PROGRAMS = (
    '[line]\nevery = "366d"\njobs = 2\n' + station("a", COUNT) + station("b", COUNT) + station("c", COUNT, after=["b"])
)
EFFECTS = f"""
[line]
every = "366d"
jobs = 2
[[station]]
name = "add"
run = "aifx data add notes raw --license MIT"
[[station]]
name = "train"
run = "aifx train --run x-{{key}}"
cooldown = "1s"
budget_per_day = 9
[[station]]
name = "push"
run = "aifx registry push {{stations.train.run}} fraud"
[[station]]
name = "promote"
run = "aifx registry promote {{stations.push.reference}} production"
{station("tell", COUNT, after=["promote", "add"])}
"""
TOML = """
[task]
kind = "tabular"
[model]
embed_dim = 8
num_layers = 1
[data]
path = "table.csv"
[train]
global_batch_size = 8
num_steps = 2
validate_every = 0
"""


def prepare(root: Path, line: str) -> None:
    (root / "raw").mkdir(parents=True)
    (root / "aifx.toml").write_text(TOML)
    rows = (f"{number % 7},{'xyz'[number % 3]},{'no' if number % 2 else 'yes'}" for number in range(60))
    (root / "table.csv").write_text("\n".join(["amount,colour,target", *rows, ""]))
    (root / "raw" / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (root / "line.toml").write_text(line)


def write(root: Path) -> None:
    """One tick, to its end. The start of a process is followed by a change: so there is a kill between it and more."""

    def start(*args: Any, **kwargs: Any) -> running.Apart:
        child = real(*args, **kwargs)
        os.close(os.open(root / "line" / "begun", os.O_CREAT | os.O_WRONLY))
        return child

    real = running.start_apart
    with mock.patch.object(running, "start_apart", start):
        ticked = line_run(file=root / "line.toml", allow_shell=True, project=root)
    assert {one.state for one in ticked.stations} == {"done"}, ticked


def said(root: Path) -> dict[str, Any]:
    """What there is after a line, without times and random ids."""
    records, project = Journal(root / "line").records(), Project(root)
    registry, catalog = Root(open_store(str(root / "registry"))), open_catalog(str(root / "datasets"))
    facts = ("is_over", "number", "outcome", "code", "identity", "tries")
    starts = (root / "starts").read_text().split()
    return {
        "journal": sorted(
            (one.station, one.kind, one.key, [one.facts.get(name) for name in facts]) for one in records if one.station
        ),
        "ticks": [one.facts.get("is_over") for one in records if one.kind == "tick"],
        "attempts": len({one.attempt for one in records if one.attempt}),
        "folders": len(list((root / "line" / "attempts").iterdir())),
        "starts": (len(starts), len(set(starts))),
        "runs": sorted(run.name for run in project.runs()),
        "versions": {name: sorted(catalog.versions(name)) for name in catalog.names()},
        "entries": [
            (one.number, one.action, one.version, one.alias)
            for name in registry.names()
            for one in registry.state(name).entries
        ],
    }


def check(root: Path, calm: Path) -> None:
    write(root)
    expected = said(calm)
    found = said(root)
    assert found == expected, f"{found}\n{expected}"


@contextmanager
def commands(kind: str, folder: Path) -> Iterator[None]:
    """Let stations start commands in a process that has imported them."""
    if kind == "programs":
        yield
        return
    with warm_aifx.serving(folder) as words, mock.patch("aifx.lines.runner.AIFX", tuple(words)):
        yield


def main() -> None:
    kind, folder, first, every = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    line = PROGRAMS if kind == "programs" else EFFECTS
    with commands(kind, folder):
        (folder / "kills").mkdir()
        kills = kill_at_each_change(
            folder / "kills", lambda root: prepare(root, line), write, check, below="line", first=first, every=every
        )
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main()

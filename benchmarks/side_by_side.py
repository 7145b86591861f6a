"""The parts that comparisons share: sides that run in turn in processes of their own, and their report.

A benchmark names its sides, ours first. Each round runs every side once, every other round in the opposite order, so
that a machine that drifts tells on all. A side answers with seconds by thing; a row sets ours against a peer's:

    ratio = the peer's median / our median      how many times as fast ours is; above 1 ours is the faster
    interval                                    95 % of it, by bootstrap over processes and their samples
    pairs                                       the least and the greatest of the rounds, each by itself

A peer that is not installed or fails is `absent`, with the reason. `--json` ends with the document in one line, which
`benchmarks/all.py` puts into the tables of docs/performance.md.

Imports nothing but the standard library at its head: a side may live in a Python without aifx.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Told = dict[str, Any]
"""The answer of a side's process: {"seconds": {thing: [...]}, "versions": {...}} and what the benchmark adds, or
{"absent": why}."""

AIFX = [sys.executable, "-P", "-c", "import sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"]


def aifx(folder: Path, *args: str) -> dict[str, Any]:
    """The document that a command of aifx prints."""
    done = subprocess.run([*AIFX, *args], cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):  # 1: a gate failed
        sys.exit(f"aifx {' '.join(args)} ended with {done.returncode}: {done.stdout}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@dataclass(frozen=True)
class Side:
    """One of those compared: `measure` runs one process of it."""

    name: str
    measure: Callable[[], Told]


@dataclass
class Runs:
    """The answers of all processes.

    Attributes:
        told: by side, a dict a round.
        absent: peers that could not run, and why.
        notes: what disturbed: other load, a quota, other clocks.
    """

    told: dict[str, list[Told]]
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def seconds(self, side: str, thing: str) -> list[list[float]]:
        return [told["seconds"][thing] for told in self.told[side]]

    @property
    def peers(self) -> list[str]:
        """Those that ran."""
        return list(self.told)[1:]

    def versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for side in self.told.values():
            for told in side:
                found |= told.get("versions", {})
        return found

    def samples(self) -> dict[str, list[dict[str, list[float]]]]:
        return {side: [told["seconds"] for told in runs] for side, runs in self.told.items()}


@dataclass(frozen=True)
class Work:
    """One thing that the sides do.

    Attributes:
        thing: its name in what the sides tell.
        what: for people, as the table has it: what the row is found by when it is measured again.
        goal: the ratio to reach; None where none is set.
        amount, unit: of the work done once, for rates: 2048 and "tokens".
    """

    thing: str
    what: str
    goal: float | None = None
    amount: float | None = None
    unit: str = ""

    def speed(self, seconds: float) -> str:
        from aifx.core.units import duration

        if self.amount is None:
            return duration(seconds)
        rate = self.amount / seconds
        return f"{rate:,.0f} {self.unit}/s" if rate >= 1000 else f"{rate:.3g} {self.unit}/s"


def arguments_of(document: str | None, *, rounds: int, quick_rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has. `--side` and `--folder` are for its own processes."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=_positive, help=f"processes of each side ({rounds}; quick: {quick_rounds})")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON; all else goes to stderr")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.set_defaults(usual_rounds=(rounds, quick_rounds))
    return parser


def rounds_of(arguments: argparse.Namespace) -> int:
    usual, quick = arguments.usual_rounds
    return int(arguments.rounds or (quick if arguments.quick else usual))


def process(command: Sequence[str], environ: Mapping[str, str] | None = None) -> Callable[[], Told]:
    """A side's `measure`: a process whose last line is what `tell` writes."""

    def measure() -> Told:
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)
        except OSError as error:
            return {"absent": f"{command[0]}: {error.strerror}"}
        if done.returncode:
            words = done.stderr.strip().splitlines() or ["it said nothing"]
            return {"absent": f"it ended with {done.returncode}: {words[-1][:300]}", "stderr": done.stderr}
        told: Told = json.loads(done.stdout.splitlines()[-1])
        return told

    return measure


def command_of(command: Sequence[str], **options: Any) -> Callable[[], Told]:
    """A side's `measure`: how long a command takes from its start to its end."""

    def measure() -> Told:
        started = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, **options)
        return {"seconds": {"command": [time.perf_counter() - started]}}

    return measure


def tell(work: Callable[[], Told], peers: Sequence[str] = ()) -> None:
    """In a side's process: write what `work` found, or that one of `peers` (packages) is not installed."""
    try:
        told = work()
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in peers:
            raise
        told = {"absent": f"{error.name} is not installed"}
    sys.stdout.write("\n" + json.dumps(told) + "\n")


def alternate(sides: Sequence[Side], rounds: int, *, label: str = "") -> Runs:
    """All sides in turn, `rounds` times. Ours, the first, has to run; a peer that does not is absent."""
    from aifx.benchmarking.watch import watch_machine
    from aifx.core.logs import LineHandler, log_to

    runs = Runs({side.name: [] for side in sides})
    going = list(sides)
    with log_to(LineHandler(runs.notes.append)), watch_machine():
        for number in range(rounds):
            for side in list(going if number % 2 == 0 else reversed(going)):
                told = side.measure()
                if why := told.get("absent"):
                    if side is sides[0]:
                        raise SystemExit(f"{label}{side.name}: {why}\n{told.get('stderr', '')}")
                    going.remove(side)
                    del runs.told[side.name]
                    runs.absent[side.name] = why
                    say(f"{label}{side.name}: {why}")
                    continue
                runs.told[side.name].append(told)
                taken = (f"{thing} {statistics.median(found):.4g} s" for thing, found in told["seconds"].items())
                say(f"{label}{number + 1} of {rounds}: {side.name}: {', '.join(taken)}")
    return runs


def versus(runs: Runs, work: Work, peer: str, *, thing: str = "", against: str = "") -> dict[str, Any]:
    """The row of one thing against one peer.

    Args:
        thing: the peer's name for it, where that is another.
        against: the peer's name in the table, where it has more words.
    """
    ours = next(iter(runs.told))
    return row(work, runs.seconds(ours, work.thing), runs.seconds(peer, thing or work.thing), against or peer)


def row(work: Work, ours: list[list[float]], theirs: list[list[float]], against: str) -> dict[str, Any]:
    """Args:
    ours, theirs: seconds of the same work, a list a process, in order of the rounds.
    """
    from aifx.benchmarking.estimate import MIDDLE, change, estimate

    found = change(ours, theirs, MIDDLE)
    pairs = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs, strict=True)]
    return {
        "what": work.what,
        "against": against,
        "goal": work.goal,
        "ratio": found.ratio,
        "interval": [found.low, found.high],
        "pairs": [min(pairs), max(pairs)],
        "ours": work.speed(estimate(ours).median),
        "peer": work.speed(estimate(theirs).median),
    }


def document(
    table: str,
    rows: list[dict[str, Any]],
    arguments: argparse.Namespace,
    *runs: Runs,
    versions: Mapping[str, str] | None = None,
    absent: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The document of `--json`: the rows, what they were formed of, and when and where.

    Args:
        table: of docs/performance.md, that these rows go to.
        versions, absent: besides those that the runs know of.
        notes: what a reader must know of the sides: what one of them does not do.
    """
    told = {name: version for run in runs for name, version in run.versions().items()}
    return {
        "schema_version": 1,
        "table": table,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {"Python": sys.version.split()[0], **told, **(versions or {})},
        "rounds": rounds_of(arguments),
        "quick": arguments.quick,
        "rows": rows,
        "absent": {peer: why for run in runs for peer, why in run.absent.items()} | dict(absent or {}),
        "notes": list(notes),
        "disturbed": _once([note for run in runs for note in run.notes]),
        "samples_s": [run.samples() for run in runs],
    }


def report(found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """For people, and as a line of JSON where that was asked for."""
    for one in found["rows"]:
        low, high = one["interval"]
        least, most = one["pairs"]
        goal = "" if one["goal"] is None else f"; goal {one['goal']:g}"
        say(f"{one['what']}: {one['ours']}; {one['against']}: {one['peer']}", arguments)
        interval = f"{low:.3f} to {high:.3f}; pairs {least:.3f} to {most:.3f}"
        say(f"    {one['ratio']:.3f} times as fast ({interval}{goal})", arguments)
    for peer, why in found["absent"].items():
        say(f"{peer}: not measured, {why}", arguments)
    for note in (*found["notes"], *found["disturbed"]):
        say(note, arguments)
    said = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    say(f"{found['date']}, {found['machine']}; {said}", arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")


def say(text: str, arguments: argparse.Namespace | None = None) -> None:
    """Print progress to stderr; with the arguments, print the answer to stdout, unless that is for JSON."""
    stream = sys.stderr if arguments is None or arguments.json else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def machine() -> str:
    """ "2 cores of AMD EPYC 9B45, 24 GiB"."""
    from aifx.runs.provenance import hardware

    found = hardware([])
    return f"{found['cores']} cores of {found['cpu']}, {found['memory_bytes'] / (1 << 30):.0f} GiB"


def installed(*packages: str) -> dict[str, str]:
    """Versions of those that are installed here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def own(file: str, side: str, *options: str) -> list[str]:
    """The command of a side that a benchmark's own script runs."""
    return [sys.executable, file, "--side", side, *options]


def training_environment() -> dict[str, str]:
    """That in which `aifx train` runs; PyTorch, which keeps its own blocks of memory, is as fast without."""
    from aifx.machine.huge_pages import with_huge_pages

    return with_huge_pages(os.environ) or dict(os.environ)


def _once(notes: Sequence[str]) -> list[str]:
    """The first of the notes that differ in their figures alone."""
    found: dict[str, str] = {}
    for note in notes:
        found.setdefault(re.sub(r"\d+", "", note), note)
    return list(found.values())


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return number

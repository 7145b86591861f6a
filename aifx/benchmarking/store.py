"""Reports that are kept by name: each saving is a file more, so that a name has a history.

bench/NAME/20261125T141502-3f2a9c1d.json      in a project, to be committed with it
~/.local/share/aifx/bench/NAME/...            outside of one (XDG_DATA_HOME)
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aifx.benchmarking.estimate import LEAST_LAUNCHES
from aifx.benchmarking.results import Report, Result, read_report, write_report
from aifx.core.errors import AifxError, EnvironmentFault, UsageError, did_you_mean
from aifx.core.files import make_private
from aifx.core.plurals import counted
from aifx.core.project import RUN_NAME, cache_path, find_project
from aifx.core.units import listed

MAX_NOISE = 0.04
"""Half the interval of the launches' lower deciles, over their median. Of five launches that scatter by 2.5 % most lie
within that, and the gate then finds a slowdown of 10 % in 98 of 100 cases; with 3 % in 94, with 4 % in 78 (simulated
with normal launches)."""

NOISY_SHARE = 0.25
"""Share of results that may be noisier. A noisy machine affects most results; one of a microsecond is noisy itself."""


def last_path() -> Path:
    """Where each bench leaves its report, whole or not."""
    return cache_path("bench") / "last.json"


@dataclass(frozen=True)
class Store:
    """The folder of the saved reports."""

    folder: Path

    def names(self) -> list[str]:
        return sorted({path.parent.name for path in self.folder.glob("*/*.json")})

    def history(self, name: str) -> list[Path]:
        """The files of a name, the oldest first. Raises UsageError where there are none."""
        check_name(name)
        if not (found := sorted((self.folder / name).glob("*.json"))):
            why = did_you_mean(name, self.names()) or "no baseline is saved there yet"
            raise UsageError(f"no baseline {name!r} in {self.folder}", why, to_save(name))
        return found

    def find(self, what: str) -> Report:
        """A report by its file, its name (the newest) or its name and commit, NAME@COMMIT.

        Raises UsageError where there is none, and what `read_report` raises.
        """
        if what.endswith(".json") or os.sep in what:
            return read_report(Path(what))
        name, _, commit = what.partition("@")
        history = self.history(name)
        number, dash, dirty = commit.replace("+", "-dirty").partition("-")  # in short, in full or as lists show it
        reports = [p for p in history if p.stem.partition("-")[2].startswith(f"{number[:8]}{dash}{dirty}")]
        if not reports:
            why = f"its newest report is of {history[-1].stem.partition('-')[2]}"
            raise UsageError(f"{name} was not saved at commit {commit}", why, f"aifx bench history {name}")
        return read_report(reports[-1])

    def save(self, report: Report, name: str, max_noise: float = MAX_NOISE) -> Path:
        """Keep a report as the newest of its name; returns its file.

        Raises UsageError for a report that can be no baseline: not whole, of too few launches, too noisy.
        """
        check_name(name)
        if why := unfit(report, max_noise):
            hint = "close other programs and measure again, or with more --launches; --max-noise 10% lets more pass"
            raise UsageError(f"{name} is not saved", why, hint)
        commit = (report.fingerprint.commit or "none").replace("+", "-dirty")
        at = datetime.fromtimestamp(report.time, UTC).strftime("%Y%m%dT%H%M%S")
        path = self.folder / name / f"{at}-{commit}.json"
        write_report(report, path)
        return path


def check_name(name: str) -> None:
    """Check the name of a baseline. Raises UsageError."""
    if not RUN_NAME.fullmatch(name):
        rule = "letters, digits, '.', '_' and '-', 100 at most, the first a letter or digit"
        raise UsageError(f"{name!r} cannot name a baseline", rule, to_save("main"))


def keep_last(report: Report) -> str:
    """Leave a copy of what was measured; a line that says where, or why nowhere."""
    count = counted(len(report.results), "result")
    try:
        make_private(last_path().parent)
        write_report(report, last_path())
        return f"what was measured ({count}) is kept: aifx bench show"
    except EnvironmentFault as error:
        reason = f"{error.what}: {error.why}"
    except OSError as error:
        reason = f"{last_path().parent} cannot be written: {error.strerror or error}"
    try:
        elsewhere = Path(tempfile.mkdtemp(prefix="aifx-bench-")) / "last.json"
        write_report(report, elsewhere)
    except (OSError, EnvironmentFault):
        return f"no copy of what was measured ({count}) could be kept: {reason}"
    return f"what was measured ({count}) is kept: aifx bench show {elsewhere}"


def unfit(report: Report, max_noise: float) -> str:
    """The reason why a report cannot be a baseline; empty if it can."""
    if report.failure:
        return f"it did not come to its end: {report.failure.what}"
    few = [result for result in report.results if len(result.samples_s) < LEAST_LAUNCHES]
    if few or not report.results:
        return f"a baseline holds {LEAST_LAUNCHES} launches or more of everything"
    if noisy := too_noisy(report, max_noise):
        return f"too noisy to show a regression: {describe_noisy(noisy)} (at most ±{max_noise:.1%})"
    return ""


def noisy_results(report: Report, max_noise: float) -> list[Result]:
    """Those that scatter more than that, the worst first."""
    return sorted((r for r in report.results if r.scatter > max_noise), key=lambda r: -r.scatter)


def too_noisy(report: Report, max_noise: float) -> list[Result]:
    """Those, where they are so many that the report can be no baseline; else none."""
    noisy = noisy_results(report, max_noise)
    return noisy if len(noisy) > NOISY_SHARE * len(report.results) else []


def describe_noisy(noisy: list[Result]) -> str:
    return listed([f"{result.title} ±{result.scatter:.1%}" for result in noisy])


def to_save(name: str, folder: Path | None = None) -> str:
    """Return the command that saves a baseline here, or in `folder`."""
    return f"aifx bench {'train' if is_in_project(folder) else 'hardware'} --save {name}"  # hardware needs no project


def is_in_project(folder: Path | None = None) -> bool:
    try:
        find_project(folder)
    except AifxError:
        return False
    return True


def open_store(folder: Path | None = None) -> Store:
    """Open the store of the project around `folder`, or the user's outside of a project."""
    if is_in_project(folder):
        return Store(find_project(folder).root / "bench")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Store(Path(data) / "aifx" / "bench")

"""The results of `make test-all` on this commit, from its journal.

PYTHONPATH=tests python scripts/reliability.py print build/test-all.jsonl
PYTHONPATH=tests python scripts/reliability.py write build/test-all.jsonl    into docs/reliability.md
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from effort import commit
from tiers import read_journal

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
START, END = "<!-- results: scripts/reliability.py -->\n", "<!-- end of results -->"


def processor() -> str:
    """The processor's name, as Linux has it."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def results(journal: Path) -> str:
    """A row per Python and folder of tests, the counts of trials, and tests that failed once and passed again."""
    entries = [entry for entry in read_journal(journal) if entry["commit"] == commit()]
    if not entries:
        return f"No test of commit {commit()} has ended.\n"
    # A test that was run again counts once, by its last run.
    newest = {(entry["python"], entry["test"]): entry for entry in entries}
    failed = {(entry["python"], entry["test"]) for entry in entries if entry["outcome"] == "failed"}
    quarantined = sorted(key for key in failed if newest[key]["outcome"] == "passed")
    rows: dict[tuple[str, str], Counter[str]] = {}
    trials: dict[tuple[str, str], Any] = Counter()
    for (python, test), entry in newest.items():
        row = rows.setdefault((python, test.split("/")[1].partition("::")[0]), Counter())
        row[entry["outcome"]] += 1
        row["cpu_s"] += entry["cpu_s"]
        for unit, count in entry["properties"].items():
            if isinstance(count, int):
                trials[python, unit] += count
    lines = [
        f"Commit {commit()}, {entries[-1]['date']}, {os.cpu_count()} cores of {processor()}.",
        "",
        "| Python | folder | passed | failed | skipped | CPU time, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for python in sorted({python for python, _ in rows}, reverse=True):
        of_python = {folder: row for (one, folder), row in sorted(rows.items()) if one == python}
        of_python["all"] = sum(of_python.values(), Counter())
        lines += [
            f"| {python} | {folder} | {row['passed']} | {row['failed']} | {row['skipped']} | {row['cpu_s']:.0f} |"
            for folder, row in of_python.items()
        ]
    lines += ["", "| Python | trials | count |", "| --- | --- | --- |"]
    lines += [f"| {python} | {unit} | {count} |" for (python, unit), count in sorted(trials.items())]
    lines += ["", *(f"- `{test}` failed once and passed again, with Python {python}" for python, test in quarantined)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    match sys.argv[1:]:
        case ["print", journal]:
            print(results(Path(journal)))
        case ["write", journal]:
            before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
            _, _, after = rest.partition(END)
            PAGE.write_text(f"{before}{START}{results(Path(journal))}{END}{after}", encoding="utf-8")
            print(f"wrote {PAGE}")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

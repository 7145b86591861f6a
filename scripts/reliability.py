"""Write the last results of `make test-all` into docs/reliability.md, from its journal.

scripts/reliability.py build/test-all.jsonl
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
START, END = "<!-- results: scripts/reliability.py -->\n", "<!-- end of results -->"


def processor() -> str:
    """The processor's name, as Linux has it."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def results(journal: Path) -> str:
    """The results of the journal's last commit: a row per Python and folder of tests, and the counts of trials."""
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    last = entries[-1]
    # A test that was run again counts once, by its last run.
    newest = {(e["python"], e["test"]): e for e in entries if e["commit"] == last["commit"]}
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
        f"Commit {last['commit']}, {last['date']}, {os.cpu_count()} cores of {processor()}.",
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
    return "\n".join(lines) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}{results(Path(sys.argv[1]))}{END}{after}", encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()

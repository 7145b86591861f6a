"""Write the last results of `make test-long` into docs/reliability.md, from the journal of the long tests.

scripts/reliability.py build/test-long.jsonl
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
START, END = "<!-- results: scripts/reliability.py -->\n", "<!-- end of results -->"


def processor() -> str:
    """The processor's name, as Linux has it."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def table(journal: Path) -> str:
    """The results of the journal's last commit, one row per test."""
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    entries = [entry for entry in entries if entry["commit"] == entries[-1]["commit"]]
    rows = defaultdict(list)
    for entry in entries:
        rows[entry["test"].partition("[")[0]].append(entry)
    lines = [
        f"Commit {entries[-1]['commit']}, {entries[-1]['date']}, {os.cpu_count()} cores of {processor()}, "
        f"Python {platform.python_version()}.",
        "",
        "| test | runs that passed | trials | aims hit |",
        "| --- | --- | --- | --- |",
    ]
    for test, passed in sorted(rows.items()):
        aims: dict[str, int] = defaultdict(int)
        for entry in passed:
            for aim, count in entry["details"].items():
                aims[aim] += count
        hit = ", ".join(f"{aim} {count}" for aim, count in sorted(aims.items()))
        lines.append(f"| `{test}` | {len(passed)} | {sum(e['trials'] for e in passed)} {passed[0]['unit']} | {hit} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}{table(Path(sys.argv[1]))}{END}{after}", encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()

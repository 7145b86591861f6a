"""What `aifx import --json` and `aifx export --json` print."""

from __future__ import annotations

from dataclasses import dataclass

from aifx.hub.comparison import LogitComparison
from aifx.hub.importing import ImportedRun


@dataclass(frozen=True)
class ImportDocument:
    """What `aifx import --json` prints.

    Attributes:
        started_project: the `aifx.toml` that it wrote, outside of a project.
        check: with --check, otherwise null.
    """

    imported: ImportedRun
    started_project: str | None
    check: LogitComparison | None

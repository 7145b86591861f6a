"""Where the model of a run came from, if it was imported or began with an imported one."""

from __future__ import annotations

from typing import Any

from aifx.core.errors import AifxError
from aifx.core.files import read_file
from aifx.core.parsing import parse_json
from aifx.core.project import Project, RunDirectory
from aifx.runs.provenance import read_provenance

MOST_RUNS = 32
"""Runs that began with one another: more are not followed."""


def read_imported(run: RunDirectory) -> dict[str, Any] | None:
    """`import.json` of the run; None if there is none that can be read."""
    try:
        found = parse_json(read_file(run.imported))
    except (OSError, ValueError, AifxError):
        return None
    return found if isinstance(found, dict) else {}


def read_origin(run: RunDirectory, project: Project) -> dict[str, Any]:
    """`import.json` of the run, or of the one that its weights go back to; empty if there is none."""
    for _ in range(MOST_RUNS):
        if (found := read_imported(run)) is not None:
            return found
        name = (read_provenance(run).get("finetuned_from") or {}).get("run")
        if not isinstance(name, str):
            return {}
        run = project.run(name)
    return {}

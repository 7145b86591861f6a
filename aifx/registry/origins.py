"""The imported model that the weights of a run go back to, if there is one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from aifx.core.errors import AifxError
from aifx.core.files import read_file
from aifx.core.parsing import parse_json
from aifx.core.project import Project, RunDirectory
from aifx.registry.versions import ModelDirectory, open_base
from aifx.runs.binding import BaseRun
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
        if isinstance(run, ModelDirectory):
            return run.origin
        if (found := read_imported(run)) is not None:
            return found
        named = read_provenance(run).get("finetuned_from") or {}
        if not isinstance(name := named.get("run"), str):
            return {}
        if "@" in name:  # a version of the registry
            with suppress(AifxError):  # it is not to be had any more, like a run that was removed
                return open_base(run, BaseRun(**named)).origin
            return {}
        run = project.run(name)
    return {}

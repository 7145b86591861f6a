"""`aifx data run-tasks`: what an element of the array job of `--on slurm` runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError


def run_tasks(work: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder in which the step works.")]) -> None:
    """Run this element's share of the tasks of a step."""
    with terminal():
        from aifx.verbs.data_versions import run_data_tasks

        element, elements = (os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "COUNT"))
        if not element.isdecimal() or not elements.isdecimal():
            why = "it reads its share from SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT"
            raise UsageError(
                "aifx data run-tasks runs in an array job of Slurm only", why, "aifx data dedupe --on slurm"
            )
        run_data_tasks(work, int(element), int(elements))

"""The record of drills: when they ran, and whether their guarantees held.

runs/drills.jsonl    {"time": ..., "passed": true, "drills": ["kill", "hang"], "num_drills": 7}
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from aifx.core.errors import AifxError
from aifx.core.json_files import JsonLines
from aifx.drills.guarantees import DrillReport

DRILLS = "drills.jsonl"
"""In the folder with a project's runs."""

logger = logging.getLogger(__name__)


def leave_drills(report: DrillReport, runs_path: Path) -> None:
    """Write down that drills ran to their end. A failure is only logged."""
    if report.interrupted is not None:
        return
    names = list(dict.fromkeys(one.drill for one in report.results))
    try:
        file = JsonLines(runs_path / DRILLS)
        file.append({"time": time.time(), "passed": report.passed, "drills": names, "num_drills": len(report.results)})
        file.close()
    except (AifxError, OSError) as error:
        logger.warning("no record of this drill was left: %s", error)

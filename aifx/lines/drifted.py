"""Drift: a record of what a person's call of `aifx monitor` found.

    line/monitor.jsonl    {"time": ..., "model": ..., "source": ..., "reference": ..., "drifted": [], "breached": []}

A station's report is in the journal. Another call, of a person or a timer, leaves a record if its project has a
line.toml, and only if other columns drifted, or other limits of metrics were breached, than in the last comparison of
the model's rows with the same reference: a comparison in each hour is one event.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifx.core.errors import AifxError
from aifx.core.json_files import JsonLines, read_jsonl

MONITOR = "monitor.jsonl"
FACTS = ("model", "source", "reference", "drifted", "breached")

logger = logging.getLogger(__name__)


def leave_drift(report: Mapping[str, Any], root: Path) -> None:
    """Write down for events which columns drifted, outside of a station. A failure is only logged."""
    from aifx.lines.file import LINE  # it costs time that a comparison outside of a line need not take

    if "AIFX_LINE_STATION" in os.environ or not (root / LINE).is_file():
        return
    facts, path = {key: report[key] for key in FACTS}, root / "line" / MONITOR
    try:
        before = {_compared(one): _found(one) for one in read_jsonl(path)}
        if _found(facts) != before.get(_compared(facts), [[], []]):
            file = JsonLines(path)
            file.append({"time": time.time(), **facts})
            file.close()
    except (AifxError, OSError) as e:
        logger.warning("no event will tell of this report: %s", e)


def _compared(record: Mapping[str, Any]) -> str:
    """What was compared with what, also of a damaged record, which is that of nothing."""
    return repr([record.get(key) for key in ("model", "source", "reference")])


def _found(record: Mapping[str, Any]) -> list[Any]:
    return [record.get(key) or [] for key in ("drifted", "breached")]

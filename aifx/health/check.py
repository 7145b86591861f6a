"""The check of one machine, from its probes to its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from aifx.errors import AifxError
from aifx.health.host import Host
from aifx.health.judge import judge
from aifx.health.probes import all_probes
from aifx.health.report import Report
from aifx.health.rules import Rule, Site
from aifx.health.snapshot import Snapshot, read, take, write
from aifx.project import cache_path

Level = Literal["quick", "full"]


def collect(
    host: Host,
    rules: Iterable[Rule],
    sample_s: float = 0.0,
    level: Level | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Snapshot:
    """What the rules need of a machine, with rates since an earlier reading, over `sample_s` seconds, or over a stress.

    Args:
        level: how hard to work the devices in between; None for not at all.
        tell: told what the stress begins.
    """
    needed = {path.split(".", 1)[0] for rule in rules for path in rule.paths()}
    probes = [probe for probe in all_probes() if probe.for_peers or needed.intersection(probe.gives)]
    earlier = None
    stress = {}
    if sample_s or level:
        earlier = take(host, probes)
        if level:
            from aifx.health.stress import budget_of
            from aifx.health.stress import collect as work

            gpus = earlier.facts.get("gpus")
            budget_s = budget_of(level, len(gpus) if isinstance(gpus, list) else 1)
            stress = {"stress": work(level, budget_s, tell)}
        time.sleep(sample_s)
    elif host.is_live:
        with suppress(AifxError):
            earlier = read(last_path())
    snapshot = take(host, probes)
    snapshot = replace(snapshot, facts=snapshot.facts | stress).since(earlier)
    if host.is_live:
        with suppress(OSError):  # rates then need --sample
            write(replace(snapshot, before=None), last_path())
    return snapshot


def check(snapshot: Snapshot, rules: Iterable[Rule], site: Site, began: float) -> Report:
    """The report; `began` is what `time.monotonic` said when the check began."""
    return replace(judge(rules, snapshot, site), duration_s=round(time.monotonic() - began, 3))


def last_path() -> Path:
    """Where the last reading of this machine is kept, for rates."""
    return cache_path() / "health" / "last.json"

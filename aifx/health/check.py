"""The check of one machine, from its probes to its report."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aifx.errors import AifxError
from aifx.health.host import Host
from aifx.health.judge import judge
from aifx.health.probes import all_probes
from aifx.health.report import Report
from aifx.health.rules import Rule, Site
from aifx.health.snapshot import Snapshot, read, take, write
from aifx.project import cache_path


def collect(host: Host, rules: Iterable[Rule], sample_s: float = 0.0) -> Snapshot:
    """What the rules need of a machine, with rates since an earlier reading, or over `sample_s` seconds."""
    needed = {path.split(".", 1)[0] for rule in rules for path in rule.paths()}
    probes = [probe for probe in all_probes() if needed.intersection(probe.gives)]
    earlier = None
    if sample_s:
        earlier = take(host, probes)
        time.sleep(sample_s)
    elif host.is_live:
        with suppress(AifxError):
            earlier = read(last_path())
    snapshot = take(host, probes).since(earlier)
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

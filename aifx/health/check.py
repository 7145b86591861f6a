"""The check of one machine, from its probes to its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.files import make_private
from aifx.core.project import cache_path
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.host import Host
from aifx.health.probes import all_probes
from aifx.health.probing import Probe
from aifx.health.report import SCHEMA_VERSION, Report
from aifx.health.rules import Rule, Site, load_rules, read_site, select
from aifx.health.snapshot import Snapshot, read, take, write

Level = Literal["quick", "full"]

LEAST_WINDOW_S = 60.0
"""Our estimate. A rate over a shorter time says little: one error in a second would be sixty a minute."""


def collect(host: Host, rules: Iterable[Rule], sample_s: float = 0.0, level: Level | None = None) -> Snapshot:
    """Return what the rules need, with rates since the last reading, over `sample_s` seconds, or over a stress test.

    Args:
        level: the stress test between the two readings; None for no test.
    """
    needed = {path.split(".", 1)[0] for rule in rules for path in rule.paths()}
    if level is not None:
        needed |= {"gpus", "tpu", "jax"}  # their number determines the time limit
    probes = [probe for probe in all_probes() if probe.for_peers or needed.intersection(probe.gives)]
    if not sample_s and level is None:
        return _since_last(take(host, probes), probes) if host.is_live else take(host, probes)
    earlier = take(host, probes)
    stress = {} if level is None else {"stress": _stress(level, earlier)}
    time.sleep(sample_s)
    snapshot = take(host, probes)
    return replace(snapshot, facts=snapshot.facts | stress).since(earlier)


def _stress(level: Level, snapshot: Snapshot) -> dict[str, Any]:
    from aifx.health.stress import budget_of, collect

    counts = [snapshot.scope().look_up(path) for path in ("jax.num_devices", "tpu.count")]
    gpus = snapshot.facts.get("gpus")
    devices = max([1, len(gpus) if isinstance(gpus, list) else 1, *(n for n in counts if isinstance(n, int))])
    return collect(level, budget_of(level, devices))


def _since_last(snapshot: Snapshot, probes: Iterable[Probe]) -> Snapshot:
    """Return the snapshot with rates since the last reading by the same probes, and keep it as the last reading."""
    earlier = None
    try:
        path = last_path(probes)
        make_private(path.parent)
        earlier = read(path)
    except EnvironmentFault:  # other users can write there; rates then need --sample
        return snapshot
    except (AifxError, OSError):
        pass
    since = snapshot.since(earlier)
    if since.before is not None and since.time - since.before_time < LEAST_WINDOW_S:
        return snapshot  # the next reading then has a longer window
    with suppress(OSError):  # rates then need --sample
        write(snapshot, path)
    return since


def check(snapshot: Snapshot, rules: Iterable[Rule], site: Site, began: float) -> Report:
    """Return the report; `began` is the check's start by `time.monotonic`."""
    return replace(evaluate_rules(rules, snapshot, site), duration_s=round(time.monotonic() - began, 3))


def repeatable_check(only: Iterable[str], skip: Iterable[str], site: Path | None) -> Callable[[], dict[str, Any]]:
    """Return a function that checks this machine and returns the report's document, with the snapshot.

    It reads the site's file each time, so that a change of that file counts at once. Raises UsageError and ConfigError
    for a pattern and a file that cannot be used, here and not at the first check.
    """
    only, skip = tuple(only), tuple(skip)
    select(load_rules(read_site(site)).values(), only, skip)

    def run() -> dict[str, Any]:
        began, sites = time.monotonic(), read_site(site)
        rules = select(load_rules(sites).values(), only, skip)
        snapshot = collect(Host(), rules)
        report = check(snapshot, rules, sites, began)
        return {"schema_version": SCHEMA_VERSION, **report.document(), "snapshot": snapshot.document()}

    return run


def last_path(probes: Iterable[Probe]) -> Path:
    """Return the path of the last reading by these probes, for rates."""
    names = sha256_of(" ".join(sorted(probe.name for probe in probes)))[:12]
    return cache_path("health") / f"last-{names}.json"

"""Run the check in its own process, so that one that hangs, crashes or cannot be imported does not affect the caller.

python -m aifx.health.isolated_check '{"only": ["nvidia"], ...}'

prints {"report": ..., "rules": [...]} or {"error": ...}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.processes import Child, connect


@dataclass(frozen=True)
class Asked:
    """The options of a check, as those of `aifx doctor`, and families that are evaluated only if `only` names them."""

    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    leave_out: Sequence[str] = ()
    site: str | None = None
    root: str | None = None
    replay: str | None = None


def run_isolated_check(asked: Asked, limit_s: float) -> tuple[dict[str, Any], list[str]]:
    """Return the report's document and the ids of the evaluated rules.

    Raises EnvironmentFault if there is no report within the limit.
    """
    with Child.of_module("aifx.health.isolated_check", json.dumps(asdict(asked)), limit_s=max(limit_s, 0.0)) as child:
        answers = list(child.events())
    ended = child.wait()
    if ended.cut:
        raise EnvironmentFault(f"the check took more than {limit_s:g} s", "look for a device that hangs")
    if not answers:
        raise EnvironmentFault(f"the check ended with {ended.how}", ended.last_line or "it printed nothing")
    if "error" in answers[-1]:
        raise EnvironmentFault("the check failed", answers[-1]["error"])
    return answers[-1]["report"], answers[-1]["rules"]


def check_here(asked: Asked) -> dict[str, Any]:
    """Return the report and the evaluated rules. Raises AifxError."""
    from aifx.health.check import check, collect
    from aifx.health.host import Host
    from aifx.health.rules import load_rules, read_site, select
    from aifx.health.snapshot import read

    began = time.monotonic()
    site = read_site(Path(asked.site) if asked.site else None)
    every = load_rules(site)
    families = {rule.family for rule in every.values()}
    left_out = () if asked.only else [family for family in asked.leave_out if family in families]
    rules = select(every.values(), asked.only, [*asked.skip, *left_out])
    snapshot = read(Path(asked.replay)) if asked.replay else collect(Host(Path(asked.root or "/")), rules)
    report = check(snapshot, rules, site, began)
    return {"report": report.document(), "rules": [rule.id for rule in rules]}


def main(text: str) -> None:
    emit = connect()
    asked = Asked(**json.loads(text))
    try:
        answer = check_here(asked)
    except AifxError as error:
        answer = {"error": f"{error.what}: {error.why}" if error.why else error.what}
    emit(answer)


if __name__ == "__main__":
    main(sys.argv[1])

"""The steps that made a version: one, or those of a recipe that wrote its rows once for all of them.

Such a version has the step "make". Its settings list the steps, and its facts have those of each, with the step's
number and a dot before their names: "1.rows_changed" is of the second step. `rows` of each, and "1.dropped.exact", the
rows that a rule dropped, are among them. Its dropped/*.parquet has a column `step` with these numbers. A row there
without a rule was changed by the step.
"""

from __future__ import annotations

from dataclasses import replace

from aifx.data.versions.manifest import Manifest, StepRecord

MAKE = "make"
"""The step of a version that several steps of a recipe made together."""

DROPPED_BY = "dropped."
ROWS = "rows"


def fact_of(number: int, name: str) -> str:
    """The name of a fact of a step in the facts of the version."""
    return f"{number}.{name}"


def made_steps(manifest: Manifest) -> tuple[Manifest, ...]:
    """A manifest for each step that made a version: its settings, its facts, and the rows that it kept and dropped."""
    if manifest.step.name != MAKE:
        return (manifest,)
    found = []
    for number, step in enumerate(manifest.step.settings["steps"]):
        prefix = fact_of(number, "")
        facts = {name.removeprefix(prefix): fact for name, fact in manifest.facts.items() if name.startswith(prefix)}
        rules = {name.removeprefix(DROPPED_BY): facts.pop(name) for name in list(facts) if name.startswith(DROPPED_BY)}
        record = StepRecord(step["name"], step["settings"])
        found.append(replace(manifest, step=record, dropped_by=rules, rows=facts.pop(ROWS, 0), facts=facts))
    return tuple(found)

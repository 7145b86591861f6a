"""Machines as trees of files, read by the probes that read the live one, and evaluated."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import shutil
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import health_cases
import health_machines

from aifx.core.redaction import redact
from aifx.health import host, snapshot
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.host import Host
from aifx.health.probes import all_probes
from aifx.health.report import Report
from aifx.health.rules import Rule, Site, load_rules
from aifx.health.snapshot import Snapshot, take

Tree: TypeAlias = dict[str, str]
"""Text by path without the leading slash. A text that begins with "-> " is a symbolic link."""

Changes: TypeAlias = Mapping[str, str | None] | Callable[[Tree], None]
"""Files to write, or with None to remove (a folder as well); or a function that edits the tree."""

NOW = 1_795_600_000.0

redact_once = cache(redact)
"""The trees of hundreds of cases hold the same texts; searching each for secrets takes a quarter of all time."""


@dataclass(frozen=True)
class Case:
    """Attributes:
    rule: the one that fires and is the first finding.
    machine: a healthy one, by name.
    changes: what goes wrong there.
    before: what the reading before differed in, for rates; None where there was none.
    minutes: between the two.
    site: the content of the site's file.
    """

    rule: str
    machine: str
    changes: Changes
    before: Changes | None = None
    minutes: float = 10.0
    site: dict[str, Any] = field(default_factory=dict)


def machines() -> dict[str, Callable[[], Tree]]:
    """Every healthy machine, by name."""
    return {name: make for module in _modules(health_machines) for name, make in module.MACHINES.items()}


def cases() -> list[Case]:
    return [case for module in _modules(health_cases) for case in module.CASES]


def _modules(package: types.ModuleType) -> list[Any]:
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    found = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return [m for m in found if hasattr(m, "MACHINES") or hasattr(m, "CASES")]


def changed(tree: Tree, changes: Changes) -> Tree:
    tree = dict(tree)
    if callable(changes):
        changes(tree)
        return tree
    for path, text in changes.items():
        if text is None:
            gone = [p for p in tree if p == path or p.startswith(f"{path}/")]
            assert gone, f"{path} was not there"
            for p in gone:
                del tree[p]
        else:
            tree[path] = text
    return tree


@dataclass(frozen=True)
class MachineFolder:
    """A folder that holds one tree after another. Only files that differ from those of the last tree are written."""

    path: Path
    tree: Tree = field(default_factory=dict)

    def write(self, tree: Tree) -> None:
        for path in [path for path, text in self.tree.items() if tree.get(path) != text]:
            del self.tree[path]
            target = self.path / path
            target.unlink()
            for folder in target.parents:
                if folder == self.path or any(folder.iterdir()):
                    break
                folder.rmdir()
        for path in [path for path in tree if path not in self.tree]:
            target = self.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if tree[path].startswith("-> "):
                target.symlink_to(tree[path].removeprefix("-> "))
            else:
                target.write_text(tree[path])
            self.tree[path] = tree[path]

    def snapshot(self, tree: Tree, time: float = NOW) -> Snapshot:
        """Read a tree with the probes."""
        self.write(tree)
        probes = [replace(probe, limit_s=10 * probe.limit_s) for probe in all_probes()]  # the machine may be busy
        with patch.object(host, "redact", redact_once), patch.object(snapshot, "redact", redact_once):
            return replace(take(Host(self.path), probes), time=time)


def snapshot_of(tree: Tree, folder: Path, time: float = NOW) -> Snapshot:
    """Read a tree with the probes, in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    return MachineFolder(folder).snapshot(tree, time)


def report_of(snapshot: Snapshot, site: dict[str, Any] | None = None) -> Report:
    asked = Site.model_validate(site or {})
    rules = load_rules(asked) if asked.rules or asked.rule else _rules()
    return evaluate_rules(rules.values(), snapshot, asked)


@cache
def _rules() -> dict[str, Rule]:
    return load_rules()


def snapshot_of_case(case: Case, now: MachineFolder, before: MachineFolder) -> Snapshot:
    healthy = machines()[case.machine]()
    snapshot = now.snapshot(changed(healthy, case.changes))
    if case.before is not None:
        snapshot = snapshot.since(before.snapshot(changed(healthy, case.before), NOW - 60 * case.minutes))
    return snapshot


def mutated(value: Any, path: tuple[str | int, ...], word: Any) -> Any:
    """A copy in which what stands at `path` is gone (`...`) or has become `word`; what is not on the way is shared."""
    value, (key, *rest) = copy.copy(value), path
    if rest:
        value[key] = mutated(value[key], rest, word)
    elif word is ...:
        del value[key]
    else:
        value[key] = word
    return value

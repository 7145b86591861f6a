"""Contracts of data sets: rules that a version must keep, a first file of them, and their history."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from aifx.core.errors import UsageError
from aifx.core.results import Result
from aifx.curation.contracts import FACT, RuleOutcome, load_contract, outcomes_of, refusing
from aifx.curation.execution import MadeVersion, made_version
from aifx.verbs.arguments import StrPath, check_number
from aifx.verbs.catalogs import StepOptions, find_catalog, open_place, project_around

if TYPE_CHECKING:
    from aifx.curation.contract_history import ContractHistory
    from aifx.data.versions.manifest import Manifest

log = logging.getLogger(__name__)

RULES = "rules.toml"


@dataclass(frozen=True)
class ExpectedVersion(MadeVersion):
    """The document of `aifx data expect --json`.

    Attributes:
        reference: "name@version", without the rows that broke a rule of the level "error".
        parents: the version that was judged.
        rows, size_bytes: of the version.
        dropped: rows that were left out.
        dropped_by: the same by rule; a row is counted at the first rule that it broke.
        facts: what the step found in addition.
        is_new: False if the same version was judged by the same rules before. Then no row is read.
        is_accepted: False if a rule about the whole was broken: the name alone still means the version before.
        rules: the outcome of each rule.
    """

    rules: tuple[RuleOutcome, ...]


@dataclass(frozen=True)
class InferredContract(Result):
    """The document of `aifx data expect --infer --json`.

    Attributes:
        path: file that was written.
        rules: ids of the rules in it.
    """

    reference: str
    path: str
    rules: tuple[str, ...]


def data_expect(
    name: str,
    rules: StrPath | Sequence[Mapping[str, Any]] | None = None,
    *,
    max_dropped: float = 0.5,
    **options: Unpack[StepOptions],
) -> ExpectedVersion:
    """Judge a version by the rules of a contract, and make a version without the rows that break one.

    If a rule about the whole version is broken, or more rows break rules than allowed, the result is not accepted, and
    the name still means the version before.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        rules: file, or the rules as it has them; by default rules.toml in the project.
        max_dropped: most rows that may be dropped, as a share.

    Example:
        >>> expected = aifx.data_expect("poems", "rules.toml")
        >>> [(rule.id, rule.outcome) for rule in expected.rules]
        [('text.length', 'kept')]
    """
    from aifx.curation.cleaning import dropped_share
    from aifx.curation.contract_checks import expect

    check_number("--max-dropped", max_dropped, 1)
    given = _path(rules, options) if rules is None or isinstance(rules, str | os.PathLike) else rules
    if isinstance(given, Path) and not given.exists():
        raise UsageError(f"no file {given}", "it has the rules", f"aifx data expect {name} --infer writes a first one")
    contract = load_contract(given)
    place = open_place(**options)
    parent = place.open(name)
    now = datetime.now(UTC)

    def accepts(manifest: Manifest) -> bool:
        return not refusing(manifest, now) and dropped_share(manifest) <= max_dropped

    step = expect(parent, contract, place.catalog, str(given) if isinstance(given, Path) else "rules")
    made = place.execute(step, parent.manifest.name, accepts)
    manifest = made.version.manifest
    for one in refusing(manifest, now):
        log.info("%s is broken", one.id)
    if (share := dropped_share(manifest)) > max_dropped:
        log.info("%s of the rows are dropped, more than --max-dropped %g", f"{share:.1%}", max_dropped)
    if not made.is_accepted:
        log.info("%s still means the version before", manifest.name)
    document = made_version(made)
    facts = {key: value for key, value in document.facts.items() if key != FACT}
    return ExpectedVersion(**{**vars(document), "facts": facts}, rules=tuple(outcomes_of(manifest, now)))


def data_expect_infer(
    name: str, rules: StrPath | None = None, *, root: str | None = None, project: StrPath = "."
) -> InferredContract:
    """Write a first contract from what a version holds. A person should read and change it.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        rules: file to write, which must not exist; by default rules.toml in the project.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_expect_infer("poems", "poems.toml").rules[:2]
        ('rows', 'text.type')
    """
    from aifx.core.files import create_file
    from aifx.curation.contract_inference import infer_contract

    path = _path(rules, {"project": project})
    catalog, _ = find_catalog(root, project)
    reference, text, ids = infer_contract(catalog, name)
    if not create_file(path, text.encode()):
        raise UsageError(f"{path} exists", "--infer replaces no file", f"aifx data expect {name} other.toml --infer")
    return InferredContract(reference, str(path), tuple(ids))


def data_expect_history(name: str, *, root: str | None = None, project: StrPath = ".") -> ContractHistory:
    """Find the outcomes of each rule in all versions of a data set that were judged, the oldest first.

    Args:
        name: data set.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> [rule.id for rule in aifx.data_expect_history("poems").rules]
        ['text.length']
    """
    from aifx.curation.contract_history import contract_history

    catalog, _ = find_catalog(root, project)
    return contract_history(catalog, name)


def _path(rules: StrPath | None, options: Mapping[str, object]) -> Path:
    if rules is not None:
        return Path(rules)
    project = project_around(str(options.get("project", ".")))
    return (project.root if project else Path.cwd()) / RULES

"""What the commands of `aifx registry` that change nothing print."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aifx.config.gates import scalars
from aifx.core.artifact import MANIFEST, Artifact, damage, files_below
from aifx.core.artifact_copies import copy_artifact, damaged_in_store
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode, UsageError, did_you_mean
from aifx.core.files import UnsafeFile, is_temporary
from aifx.core.json_files import encode
from aifx.core.json_values import flat
from aifx.core.results import Result
from aifx.core.stores import open_store
from aifx.registry.evidence import attestation_about, attestations_of
from aifx.registry.ledger import Entry, Ledger
from aifx.registry.policy import CurrentPolicy, check_policies, parse_policy, policy_text, read_policy
from aifx.registry.roots import Root, check_alias, repairable
from aifx.registry.state import MOVES, ModelState, NumberedVersion


@dataclass(frozen=True)
class ShownEntry:
    """An entry of a ledger, for people.

    Attributes:
        version: "v3", or empty.
        digest: of the entry.
        version_digest: of the model version.
    """

    number: int
    time: str
    action: str
    version: str
    alias: str
    actor: str
    reason: str
    evidence: tuple[str, ...]
    request: str
    facts: Mapping[str, Any]
    version_digest: str
    digest: str


@dataclass(frozen=True)
class ShownVersion:
    """A version of a model in lists.

    Attributes:
        reference: "fraud@v3".
        run, step: that it was pushed from.
    """

    reference: str
    digest: str
    pushed_at: str
    pushed_by: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run: str | None
    step: int | None
    is_withdrawn: bool


@dataclass(frozen=True)
class ShownAlias:
    """An alias, and the entry that gave it its version."""

    alias: str
    version: str
    since: str
    by: str
    entry: int


@dataclass(frozen=True)
class ModelSummary:
    name: str
    versions: int
    latest: str | None
    aliases: Mapping[str, str]
    changed_at: str


@dataclass(frozen=True)
class ModelList(Result):
    """The document of `aifx registry ls`."""

    root: str
    models: tuple[ModelSummary, ...]


@dataclass(frozen=True)
class FoundVersions(Result):
    """The document of `aifx registry search`."""

    root: str
    words: tuple[str, ...]
    versions: tuple[ShownVersion, ...]


@dataclass(frozen=True)
class ModelPage(Result):
    """The document of `aifx registry show NAME`."""

    name: str
    root: str
    versions: tuple[ShownVersion, ...]
    aliases: tuple[ShownAlias, ...]


@dataclass(frozen=True)
class ShownEvidence:
    """An attestation about a version.

    Attributes:
        signed: whether the envelope has a signature.
    """

    kind: str
    digest: str
    made_by: str
    time: str
    signed: bool
    content: Mapping[str, Any]


@dataclass(frozen=True)
class VersionPage(Result):
    """The document of `aifx registry show NAME@VERSION`.

    Attributes:
        content: of the artefact's manifest; null if its files are gone.
    """

    version: ShownVersion
    root: str
    size_bytes: int
    content: Mapping[str, Any] | None
    evidence: tuple[ShownEvidence, ...]
    entries: tuple[ShownEntry, ...]


@dataclass(frozen=True)
class ModelHistory(Result):
    """The document of `aifx registry history`."""

    name: str
    root: str
    entries: tuple[ShownEntry, ...]


@dataclass(frozen=True)
class Adopted:
    """The version that a server answered with.

    Attributes:
        until: when the server ended, or adopted what another alias means; null if it has not, or was killed.
    """

    server: str
    version: str
    digest: str
    since: str
    until: str | None


@dataclass(frozen=True)
class AliasMeaning(Result):
    """The document of `aifx registry at`.

    Attributes:
        time: that was asked for.
        version: null if the alias meant none.
        entry: the one that gave the alias its version.
        servers: what each server that follows the alias had adopted.
    """

    name: str
    alias: str
    time: str
    version: str | None
    digest: str | None
    entry: ShownEntry | None
    servers: tuple[Adopted, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.version else ExitCode.VERDICT


@dataclass(frozen=True)
class Head:
    """The last entry of a ledger. Who keeps the digest elsewhere notices if an entry is removed."""

    name: str
    number: int
    digest: str


@dataclass(frozen=True)
class Heads(Result):
    """The document of `aifx registry head`."""

    root: str
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class ChangedValue:
    """A value that two versions have differently; null if one has none."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class ComparedVersions(Result):
    """The document of `aifx registry diff`.

    Attributes:
        metrics: of the newest evaluation of each that is attested.
        settings: of these evaluations: metrics that were measured otherwise may not be comparable.
        data: versions of data sets that one has and the other has not.
        config: settings that change answers.
        content: parameters, bytes, inputs, outputs, code.
    """

    first: ShownVersion
    second: ShownVersion
    metrics: tuple[ChangedValue, ...]
    settings: tuple[ChangedValue, ...]
    data: tuple[ChangedValue, ...]
    config: tuple[ChangedValue, ...]
    content: tuple[ChangedValue, ...]

    @property
    def is_different(self) -> bool:
        return self.first.digest != self.second.digest


@dataclass(frozen=True)
class PulledVersion(Result):
    """The document of `aifx registry pull`."""

    reference: str
    digest: str
    folder: str
    size_bytes: int


@dataclass(frozen=True)
class PolicyPage(Result):
    """The document of `aifx registry policy` and `aifx registry init`.

    Attributes:
        text: of policy.toml; empty without a policy.
        is_open: whether everyone may change it.
        entry: that made it the policy.
        is_repeated: whether an earlier call with the same request id made it the policy.
        dry_run: whether nothing was changed, since --dry-run was given.
    """

    root: str
    text: str
    digest: str
    is_open: bool
    entry: ShownEntry | None
    is_repeated: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Problem:
    """A file or entry that is damaged, missing or in the wrong place."""

    place: str
    why: str


@dataclass(frozen=True)
class VerifiedRegistry(Result):
    """The document of `aifx registry verify`.

    Attributes:
        files: of versions, whose bytes were compared with their SHA-256.
    """

    root: str
    models: int
    entries: int
    files: int
    evidence: int
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.problems else ExitCode.OK


def show_entry(state: ModelState, entry: Entry) -> ShownEntry:
    return ShownEntry(
        entry.number,
        entry.time,
        entry.action,
        state.label(entry.version) if entry.version else "",
        entry.alias,
        entry.actor,
        entry.reason,
        entry.evidence,
        entry.request,
        entry.facts,
        entry.version,
        entry.digest,
    )


def show_version(state: ModelState, version: NumberedVersion) -> ShownVersion:
    facts = version.pushed.facts
    return ShownVersion(
        f"{state.name}@{version.label}",
        version.digest,
        version.pushed.time,
        version.pushed.actor,
        tuple(state.aliases_of(version.digest)),
        state.tags.get(version.digest, {}),
        facts.get("run"),
        facts.get("step"),
        version.is_withdrawn,
    )


def list_models(root: Root) -> ModelList:
    models = []
    for name in root.names():
        state = root.state(name)
        aliases = {alias: state.label(entry.version) for alias, entry in state.aliases.items()}
        latest = next((one.label for one in reversed(list(state.versions.values())) if not one.is_withdrawn), None)
        models.append(ModelSummary(name, len(state.versions), latest, aliases, state.entries[-1].time))
    return ModelList(root.store.url, tuple(models))


def show_model(root: Root, name: str) -> ModelPage:
    state = root.state(name)
    aliases = (
        ShownAlias(alias, state.label(entry.version), entry.time, entry.actor, entry.number)
        for alias, entry in state.aliases.items()
    )
    versions = tuple(show_version(state, version) for version in state.versions.values())
    return ModelPage(name, root.store.url, versions, tuple(aliases))


def show_version_page(root: Root, reference: str) -> VersionPage:
    state, version = root.find(reference)
    artifact = root.artifact(state, version.digest)
    attested = attestations_of(root, state, version.digest)
    evidence = tuple(
        ShownEvidence(one.kind, one.digest, one.made_by, one.time, bool(one.envelope.signatures), one.content)
        for one in attested
    )
    entries = tuple(show_entry(state, entry) for entry in state.about(version.digest))
    size, content = (artifact.size_bytes, artifact.content) if artifact else (0, None)
    return VersionPage(show_version(state, version), root.store.url, size, content, evidence, entries)


def compare_versions(root: Root, first: str, second: str) -> ComparedVersions:
    """Compare two versions by what they are and by their evidence. No weight is read."""
    sides = [root.find(reference) for reference in (first, second)]
    metrics, settings, configs, contents, data = [], [], [], [], []
    for state, version in sides:
        attested = [one.content for one in attestations_of(root, state, version.digest) if one.kind == "eval"]
        newest = attested[-1] if attested else {}
        metrics.append(scalars(newest.get("metrics", {})))  # no tables, such as that of the calibration
        settings.append(newest.get("settings", {}))
        artifact = root.artifact(state, version.digest)
        configs.append(root.settings(state, artifact) if artifact else {})
        content = artifact.content if artifact else {}
        levels = content.get("levels", ())
        sizes = [math.prod(array["shape"]) for level in levels for array in level["arrays"].values()]
        named = {key: value for key, value in content.items() if key in ("task", "step", "inputs", "outputs", "code")}
        sized = {"parameters": sum(sizes), "bytes": artifact.size_bytes if artifact else 0}
        contents.append({**dict(flat(named)), **sized})
        data.append(dict.fromkeys(version.pushed.facts.get("data", ()), True))
    one, other = (show_version(state, version) for state, version in sides)
    parts = [_changes(*pair) for pair in (metrics, settings, data, configs, contents)]
    return ComparedVersions(one, other, *parts)


def _changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[ChangedValue, ...]:
    keys = dict.fromkeys([*first, *second])
    return tuple(
        ChangedValue(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)
    )


def pull_version(root: Root, reference: str, folder: Path) -> PulledVersion:
    """Copy a version to a folder of this machine, and compare what arrives. What a killed call left is used.

    Raises UsageError for a folder with anything else, even under a name that the version has.
    """
    state, version = root.find(reference)
    artifact = root.available(state, version)
    target = open_store(str(folder.absolute()))
    manifest = target.read(MANIFEST)
    if manifest != artifact.encode() and (manifest is not None or _holds_others(folder, artifact)):
        why = f"it holds other files than those of {reference}, and aifx adds none to them"
        raise UsageError(f"{folder} is not empty", why, f"aifx registry pull {reference} NEW-FOLDER")
    with repairable(state.name):
        copy_artifact(root.version_store(state, version.digest), artifact, target)
    return PulledVersion(f"{state.name}@{version.label}", version.digest, str(folder), artifact.size_bytes)


def _holds_others(folder: Path, artifact: Artifact) -> bool:
    """Whether something is there that a killed copy of an artefact would not have left."""
    if not folder.is_dir():
        return os.path.lexists(folder)
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        file = artifact.own_files.get(name)
        if not is_temporary(path.name) and (file is None or damage(folder, name, file) is not None):
            return True
    return False


def search_versions(root: Root, words: tuple[str, ...]) -> FoundVersions:
    """The versions that have each word, in any case: in their name, tags ("key=value"), aliases, people or facts."""
    found = []
    for name in root.names():
        state = root.state(name)
        for version in state.versions.values():
            shown = show_version(state, version)
            reasons = (entry.reason for entry in state.about(version.digest))
            tags = (f"{key}={value}" for key, value in shown.tags.items())
            data = (str(value) for value in version.pushed.facts.values())
            texts = [shown.reference, version.digest, shown.pushed_by, *shown.aliases, *tags, *reasons, *data]
            text = "\n".join(texts).casefold()
            if all(word.casefold() in text for word in words):
                found.append(shown)
    return FoundVersions(root.store.url, words, tuple(found))


def history_of(root: Root, name: str, alias: str | None = None) -> ModelHistory:
    """The entries of a model, or those about one alias, in order. Raises UsageError for an alias that never was."""
    state = root.state(name)
    if alias is not None:
        _check_known(state, alias)
    entries = (entry for entry in state.entries if alias is None or entry.alias == alias)
    return ModelHistory(name, root.store.url, tuple(show_entry(state, entry) for entry in entries))


def _check_known(state: ModelState, alias: str) -> None:
    """Raise UsageError for an alias of which the ledger has no entry."""
    known = {entry.alias for entry in state.entries if entry.alias}
    if check_alias(alias) not in known:
        hint = f"aifx registry show {state.name}"
        raise UsageError(f"{state.name} has no alias {alias!r}", did_you_mean(alias, known), hint)


def meaning_at(root: Root, name: str, alias: str, time: datetime) -> AliasMeaning:
    """What an alias meant at a time, and what servers had adopted. Raises UsageError for an alias that never was."""
    whole = root.state(name)
    _check_known(whole, alias)
    entry = whole.at(time).aliases.get(alias)
    servers = []
    for server in root.servers(name):
        entries = ModelState(name, root.server_ledger(name, server).entries()).at(time).entries
        following: Entry | None = None
        for one in reversed(entries):
            if one.action == "adopt" and one.alias == alias:
                until = following.time if following else None
                servers.append(Adopted(server, whole.label(one.version), one.version, one.time, until))
                break
            following = one
    version, digest = (whole.label(entry.version), entry.version) if entry else (None, None)
    shown = show_entry(whole, entry) if entry else None
    return AliasMeaning(name, alias, time.isoformat(), version, digest, shown, tuple(servers))


def heads_of(root: Root, names: tuple[str, ...]) -> Heads:
    ledgers = [(name, root.state(name).entries) for name in names or root.names()]
    if not names:
        ledgers.append(("(policy)", root.policy.entries()))
    heads = (Head(name, len(entries), entries[-1].digest) for name, entries in ledgers if entries)
    return Heads(root.store.url, tuple(heads))


def show_policy(root: Root) -> PolicyPage:
    current = read_policy(root)
    return policy_page(root, current.text, current.entries[-1] if current.entries else None)


def policy_page(root: Root, text: str, entry: Entry | None) -> PolicyPage:
    """The page of a policy, and of the entry of the root's ledger that names it if there is one."""
    digest = sha256_of(encode(text)) if text else ""
    shown = show_entry(ModelState("", ()), entry) if entry else None
    return PolicyPage(root.store.url, text, digest, parse_policy(text, "the policy").is_open, shown)


def verify_root(root: Root, names: tuple[str, ...], heads: tuple[str, ...]) -> VerifiedRegistry:
    """Compare every entry, file and piece of evidence with its digest.

    Args:
        names: of models; by default all.
        heads: digests of entries that must be there, as `heads_of` gave them before.

    Raises EnvironmentFault if the store or the disk fails.
    """
    problems, entries, files, evidence = list[Problem](), 0, 0, dict[str, None]()
    known: set[str] = set()

    def inspect(ledger: Ledger) -> tuple[Entry, ...]:
        nonlocal entries
        found, why = ledger.inspect()
        problems.extend(Problem(ledger.name, one) for one in why)
        entries += len(found)
        known.update(entry.digest for entry in found)
        evidence.update(dict.fromkeys(digest for entry in found for digest in entry.evidence))
        return found

    inspect(root.policy)
    policies: CurrentPolicy | None = None
    with _listed(problems):
        policies = read_policy(root)
    checked = names or tuple(root.names())
    for name in checked:
        before = len(problems)
        state = ModelState(name, inspect(root.ledger(name)))
        is_whole = len(problems) == before
        if names and not state.entries:
            root.state(name)  # raises for a name that nothing has
        if policies is not None:
            with _listed(problems):
                check_policies(root, state, policies)
        digests = {entry.digest for entry in state.entries}
        for server in root.servers(name):
            for adopted in inspect(root.server_ledger(name, server)):
                if (head := str(adopted.facts.get("head"))) not in digests:
                    why = f"server {server} has seen the entry {head[:12]}, which is gone"
                    problems.append(Problem(f"the ledger of {name}", why))
        _verify_entries(root, state, problems, evidence, policies, is_whole=is_whole)
        for version in state.versions.values():
            if not version.is_withdrawn:
                files += _verify_version(root, state, version, problems)
    for digest in evidence:
        with _listed(problems):
            root.get(digest)
    for head in heads:
        if not any(len(head) >= 8 and digest.startswith(head) for digest in known):
            why = "no entry has this digest: entries were removed, or it is of another registry"
            problems.append(Problem(f"head {head}", why))
    return VerifiedRegistry(root.store.url, len(checked), entries, files, len(evidence), tuple(dict.fromkeys(problems)))


@contextmanager
def _listed(problems: list[Problem]) -> Iterator[None]:
    """Add an error to the problems. That of a store or a disk which fails is raised: it says nothing about the root."""
    try:
        yield
    except UnsafeFile as e:  # a link or a FIFO in the place of a file is damage
        problems.append(Problem(e.what, e.why))
    except EnvironmentFault:
        raise
    except AifxError as e:
        problems.append(Problem(e.what, e.why))


def _verify_entries(
    root: Root,
    state: ModelState,
    problems: list[Problem],
    evidence: dict[str, None],
    policies: CurrentPolicy | None,
    *,
    is_whole: bool,
) -> None:
    """Add what entries say that cannot be, such as that a version is live which was not pushed, judged or live before.

    Args:
        evidence: gets the digests of what evidence the entries name.
        is_whole: whether no entry is damaged. Otherwise that may be the push or the promotion of a version.
    """
    pushed, meant = set[str](), set[tuple[str, str]]()
    for entry in state.entries:
        found: list[str] = []
        if entry.action == "push":
            pushed.add(entry.version)
        if is_whole and entry.version not in pushed:
            found.append(f"the version {entry.version[:12]} was not pushed before")
        if is_whole and entry.action == "rollback" and (entry.alias, entry.version) not in meant:
            found.append(f"{entry.alias} had not meant the version {entry.version[:12]} before")
        if entry.action == "promote":
            if not all(finding.get("passed") for finding in entry.facts.get("findings", ())):
                found.append("a rule of the policy had refused it")
            if rules := _unjudged(root, entry, policies):
                found.append(f"the policy has rules that were not judged: {', '.join(rules)}")
        if entry.action in MOVES:
            meant.add((entry.alias, entry.version))
        problems.extend(Problem(f"entry {entry.number} of {state.name}", why) for why in found)
        for digest in entry.evidence if entry.action in ("attest", "approve", "promote", "refuse") else ():
            with _listed(problems):
                evidence.update(dict.fromkeys(attestation_about(root, digest, entry.version).objects))


def _unjudged(root: Root, entry: Entry, policies: CurrentPolicy | None) -> list[str]:
    """The rules of the policy that a promotion names of which it has no finding."""
    digest = entry.facts.get("policy")
    if policies is None or not any(one.facts.get("policy") == digest for one in policies.entries):
        return []  # which is a problem of its own
    rules = parse_policy(policy_text(root, str(digest)), "the policy").rules_of(entry.alias)
    judged = {finding.get("rule") for finding in entry.facts.get("findings", ())}
    return [name for name, rule in rules if rule is not None and name not in judged]


def _verify_version(root: Root, state: ModelState, version: NumberedVersion, problems: list[Problem]) -> int:
    """Add what is damaged of a version's files. Returns how many were read."""
    store = root.version_store(state, version.digest)
    artifact, before = None, len(problems)
    with _listed(problems):
        artifact = root.artifact(state, version.digest)
    if len(problems) > before:
        return 0
    if artifact is None:
        problems.append(Problem(store.url, f"{MANIFEST} is missing"))
        return 0
    problems.extend(Problem(store.url, why) for why in damaged_in_store(store, artifact.every_file))
    return len(artifact.every_file)

"""What changes a registry. Each act is one entry of a ledger, under a request id, and is finished if asked again."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.artifact import Artifact, publish, short, unfinished
from aifx.core.artifact_copies import copy_artifact, damaged_in_store
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, DataError, EnvironmentFault, ExitCode, UsageError, did_you_mean
from aifx.core.json_files import cannot_write
from aifx.core.json_values import number
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.core.requests import check_act, check_id
from aifx.core.results import Result
from aifx.core.stores import Store, open_store
from aifx.registry.evidence import Kind, attest, attestations_of, read_attestation
from aifx.registry.judge import Case, Finding, judge
from aifx.registry.ledger import Entry, LostRace, find_request, new_request
from aifx.registry.policy import (
    FIRST,
    change_policy,
    check_change,
    check_policies,
    policy_text,
    read_policy,
    read_policy_file,
)
from aifx.registry.roots import (
    Outcome,
    Root,
    check_alias,
    check_in_service,
    current_actor,
    done_before,
    find_version,
    is_link,
    names_always,
    repairable,
)
from aifx.registry.signing import public_pem, read_private_key, sign
from aifx.registry.state import MOVES, ModelState, NumberedVersion, looks_at
from aifx.registry.swappable import swap_obstacles

if TYPE_CHECKING:
    from aifx.registry.reports import PolicyPage  # what a promotion need not import

logger = logging.getLogger(__name__)

Write = Callable[[Path], Artifact]
"""Writes a model version into an empty folder, and seals it."""


@dataclass(frozen=True)
class Caller:
    """Who asks, and how it can be asked again.

    Attributes:
        request: an id: a call with one that has made an entry reports that entry.
        reason: for the ledger.
        dry_run: judge and report, and change nothing.
    """

    actor: str = ""
    request: str | None = None
    reason: str = ""
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.request is not None:
            check_id(self.request)

    @property
    def name(self) -> str:
        return self.actor or current_actor()


@dataclass(frozen=True)
class _Asked:
    """What a call asks for, by which a second call with its request id is known.

    Attributes:
        actions: that its entry may have.
        version: as the caller named it. What an alias means may have changed since the first call.
        facts: that its entry has.
        file: the content of its evidence, if that is a file.
    """

    actions: tuple[str, ...]
    alias: str = ""
    version: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    file: Mapping[str, Any] | None = None

    def check(self, root: Root, done: Outcome) -> Outcome:
        """`done`. Raises UsageError if it was another act."""
        made, state = done.entry, done.state
        same = made.action in self.actions and self.alias in ("", made.alias)
        word = self.version.partition("@")[2] if names_always(self.version) else ""
        same = same and (word == state.label(made.version) or made.version.startswith(word))
        same = same and all(made.facts.get(key) == value for key, value in self.facts.items())
        if same and self.file is not None:
            same = read_attestation(root, made.evidence[0]).content == self.file
        what = " ".join(filter(None, [made.action, f"{state.name}@{state.label(made.version)}", made.alias]))
        check_act(made.request, same, f"entry {made.number} has it: {what}")
        return done


@dataclass(frozen=True)
class Act(Result):
    """The document of the commands of `aifx registry` that change something.

    Attributes:
        action: "promote", or "refuse" if a rule of the policy did.
        reference: "fraud@v3".
        digest: of the version.
        entry: its number in the model's ledger; null with --dry-run, and if there was nothing to do.
        previous: what the alias meant before.
        findings: of the policy's rules.
        is_repeated: whether an earlier call with the same request id did it.
        dry_run: whether nothing was changed, since --dry-run was given.
        repaired: the damage that a push found in files of the version below the root, which it wrote again.
    """

    action: str
    name: str
    reference: str
    digest: str
    alias: str | None = None
    entry: int | None = None
    head: str | None = None
    request: str | None = None
    previous: str | None = None
    evidence: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    is_repeated: bool = False
    dry_run: bool = False
    repaired: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.action == "refuse" else ExitCode.OK


def _act(outcome: Outcome) -> Act:
    """The document of an entry. What was judged is in the entry, so that asking again reports the same."""
    entry, state = outcome.entry, outcome.state
    findings = tuple(
        Finding(one["rule"], one["passed"], one.get("found", ""), one.get("hint", ""), tuple(one.get("evidence", ())))
        for one in entry.facts.get("findings", ())
    )
    return Act(
        entry.action,
        state.name,
        f"{state.name}@{state.label(entry.version)}",
        entry.version,
        entry.alias or None,
        entry.number,
        entry.digest,
        entry.request,
        entry.facts.get("previous"),
        entry.evidence,
        findings,
        outcome.is_repeated,
    )


def _planned(state: ModelState, entry: Entry) -> Act:
    """The document of an entry that is not written."""
    return replace(_act(Outcome(state, entry)), entry=None, head=None, request=None, dry_run=True)


def _done_before(root: Root, state: ModelState, caller: Caller, asked: _Asked) -> Act | None:
    """What the caller's request did before, if it did. Raises UsageError if that was another act."""
    found = done_before(state, caller.request)
    return None if found is None else _act(asked.check(root, found))


def _write(
    root: Root,
    state: ModelState,
    request: str | None,
    asked: _Asked,
    decide: Callable[[ModelState], Entry],
    *,
    again: bool,
) -> Outcome:
    """As `Root.act`. Raises UsageError if another call with the same id has just done another act."""
    outcome = root.act(state.name, request, decide, again=again, known=state.entries)
    return asked.check(root, outcome) if outcome.is_repeated else outcome


def push(root: Root, name: str, write: Write, facts: Mapping[str, Any], caller: Caller, key: Path | None = None) -> Act:
    """Make a version of a model. One that was pushed before keeps its number, and no entry is added.

    With a key, the push is signed: its owner is an author. That of a version that was pushed before is one from now on.

    The artefact is in its place before the entry names it, so that a kill in between leaves no entry without files.
    """
    state = root.now(ModelState(name, ()))
    asked, author = _Asked(("push",), facts={"run": facts.get("run")}), _Asked(("attest",), facts={"kind": "author"})
    if (made := done_before(state, caller.request)) is not None:
        return _act((author if made.entry.action == "attest" else asked).check(root, made))
    if key is not None:
        read_private_key(key)  # what cannot be signed is not stored
    digest, folder, repaired = _store(root, state, write, dry_run=caller.dry_run)
    state = root.now(state)
    entry = Entry("push", caller.name, version=digest, reason=caller.reason, facts=facts)
    if (known := state.versions.get(digest)) is not None and not known.is_withdrawn:
        if not caller.dry_run:
            _delete_withdrawn(root, state, digest)
        if key is not None and not _has_author(root, state, digest, key):
            signed = attest_version(root, f"{name}@{digest}", "author", {}, key, caller)
            return replace(signed, repaired=repaired)
        return Act("push", name, f"{name}@{known.label}", digest, dry_run=caller.dry_run, repaired=repaired)
    if caller.dry_run:
        return replace(_planned(ModelState(name, (*state.entries, entry)), entry), repaired=repaired)
    if key is not None:
        entry = replace(entry, evidence=(attest(root, "author", digest, caller.name, {}, key).digest,))

    def decide(state: ModelState) -> Entry:
        nonlocal folder
        if folder != state.folders(digest)[-1]:  # it was withdrawn meanwhile, and its files belong elsewhere
            _, folder, _ = _store(root, state, write, dry_run=False)
        return entry

    outcome = _write(root, state, caller.request, asked, decide, again=True)
    _delete_withdrawn(root, outcome.state, digest)  # where this call may have written while `rm` deleted
    return replace(_act(outcome), repaired=repaired)


def _has_author(root: Root, state: ModelState, digest: str, key: Path) -> bool:
    """Whether a key signed a push of a version."""
    keys = {"": public_pem(read_private_key(key))}
    attested = attestations_of(root, state, digest)
    return any(one.kind == "author" and one.envelope.signers(keys) for one in attested)


def _store(root: Root, state: ModelState, write: Write, *, dry_run: bool) -> tuple[str, str, tuple[str, ...]]:
    """Write a version, and put it in its place below the root unless it is a dry run.

    One that is there is read, and what is damaged is written again. Returns its digest, the name of its folder, and
    the damage.
    """
    local = root.versions(state.name).folder
    folder = local if local and not dry_run else cache_path("pushes")
    with unfinished(folder / "push") as written:
        try:
            artifact = write(written)
        except OSError as e:
            raise cannot_write(written, e) from e
        state = root.now(state)
        store, place = root.version_store(state, artifact.digest), state.folders(artifact.digest)[-1]
        damage = _damage(root, state, artifact)
        if dry_run or damage == ():
            return artifact.digest, place, damage or ()
        _remove_link(store)
        if not _published(written, store):
            copy_artifact(open_store(str(written)), artifact, store)
    return artifact.digest, place, damage or ()


def _remove_link(store: Store) -> None:
    """Make place for a version: what a link leads to is not changed."""
    if is_link(store):
        store.remove("")


def _published(written: Path, store: Store) -> bool:
    """Rename a version to its place, if that is on this disk and free."""
    if store.folder is None or os.path.lexists(store.folder):
        return False
    try:
        publish(written, store.folder)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False  # another push was first
    return True


def _damage(root: Root, state: ModelState, artifact: Artifact) -> tuple[str, ...] | None:
    """The damage of a version in its place below the root, all of which is read; None if it is not there."""
    try:
        if root.artifact(state, artifact.digest) is None:
            return None
    except EnvironmentFault:
        raise
    except AifxError as e:
        return (e.why,)
    store = root.version_store(state, artifact.digest)
    with report_progress(f"verifying {store.url}", artifact.size_bytes, "bytes") as progress:
        return tuple(damaged_in_store(store, artifact.own_files, progress))


def tag(root: Root, reference: str, given: Mapping[str, str], removed: tuple[str, ...], caller: Caller) -> Act:
    """Set and remove tags of a version."""
    state, version = root.find(reference)
    facts = {"set": dict(given), "removed": list(removed)}
    asked = _Asked(("tag",), "", reference, facts)
    if (done := _done_before(root, state, caller, asked)) is not None:
        return done

    def decide(state: ModelState) -> Entry:
        check_in_service(state, version.digest)
        tags = state.tags.get(version.digest, {})
        for key in removed:
            if key not in tags:
                name = f"{state.name}@{version.label}"
                raise UsageError(f"{name} has no tag {key!r}", did_you_mean(key, tags), f"aifx registry show {name}")
        return Entry("tag", caller.name, version=version.digest, reason=caller.reason, facts=facts)

    if caller.dry_run:
        return _planned(state, decide(state))
    return _act(_write(root, state, caller.request, asked, decide, again=True))


def attest_version(
    root: Root,
    reference: str,
    kind: Kind,
    content: Mapping[str, Any],
    key: Path | None,
    caller: Caller,
    data: bytes | None = None,
) -> Act:
    """Add evidence about a version, and keep the bytes of a file, if that is the evidence."""
    state, version = root.find(reference)
    asked = _Asked(("attest",), "", reference, {"kind": kind}, content if kind == "file" else None)
    if (done := _done_before(root, state, caller, asked)) is not None:
        return done

    def entry(state: ModelState, evidence: tuple[str, ...] = ()) -> Entry:
        check_in_service(state, version.digest)
        facts = {"kind": kind, **(_look(state, content) if kind == "comparison" else {})}
        return Entry("attest", caller.name, "", version.digest, "", evidence, caller.reason, facts)

    if caller.dry_run:
        return _planned(state, entry(state))
    entry(state)  # what is refused leaves no evidence behind
    if content.get("config_digest"):
        version = _with_config_digest(root, state, version)
    _check_subject(f"{state.name}@{version.label}", version, content)
    if data is not None:
        root.put(data)
    made = attest(root, kind, version.digest, caller.name, content, key)
    return _act(_write(root, state, caller.request, asked, lambda state: entry(state, (made.digest,)), again=True))


def _with_config_digest(root: Root, state: ModelState, version: NumberedVersion) -> NumberedVersion:
    """The version with the digest of its configuration: pushes of an older aifx kept it in the manifest alone."""
    if version.config_digest is not None:
        return version
    file = root.available(state, version).files.get("config.toml")
    facts = {**version.pushed.facts, "config_digest": file.sha256 if file else None}
    return replace(version, pushed=replace(version.pushed, facts=facts))


def _check_subject(name: str, version: NumberedVersion, content: Mapping[str, Any]) -> None:
    """Raise DataError for a document that says itself that it is about another model."""
    if not version.is_subject_of(content):
        found = (content.get("subject") or {}).get("digest") or content.get("model")
        why = f"it is about {str(found)[:12]}, and {name} is {short(version.digest)}"
        if found in (None, version.digest, version.checkpoint):
            why = f"it is about another configuration than that of {name}: other settings that answers depend on"
        raise DataError(f"the evidence is not about {name}", why, f"aifx registry show {name}")


def _look(state: ModelState, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The number of this look at the rows. Raises UsageError if the comparison spent what an earlier look had spent.

    Who looks again and again at the same rows finds a difference sooner or later, so each look must be made with a
    smaller alpha than the one before (`aifx.evaluation.against.alpha_of_look`).
    """
    if comparison.get("verdict") == "first":  # there was nothing to compare with, so it looked at no rows
        return {}
    digest, split = str(comparison.get("data_digest")), str(comparison.get("split", ""))
    taken, look = looks_at(state, digest, split), int(number(comparison.get("look")) or 1)
    if look <= taken:
        what = f"the comparison is look {look} at these rows, and the ledger has look {taken}"
        hint = f"aifx eval --against RUN --look {taken + 1}, or compare on fresh rows"
        raise UsageError(what, "each look must spend less alpha than the one before", hint)
    return {"data_digest": digest, "split": split, "look": look}


def attest_file(root: Root, reference: str, name: str, data: bytes, key: Path | None, caller: Caller) -> Act:
    """Add a file as evidence, with its bytes."""
    content = {"name": name, "bytes": len(data), "sha256": sha256_of(data)}
    return attest_version(root, reference, "file", content, key, caller, data)


def case_of(root: Root, state: ModelState, version: NumberedVersion, alias: str) -> Case:
    """What is judged if a version is to get an alias."""
    current = read_policy(root)
    check_policies(root, state, current)
    held = state.aliases.get(alias)
    if held is not None and held.version not in state.versions:
        what, why = f"{state.name}@{alias} means a version that was never pushed", f"entry {held.number} is not of aifx"
        raise DataError(what, why, f"aifx registry verify {state.name}")
    incumbent = state.versions[held.version] if held else None
    attested = attestations_of(root, state, version.digest)
    made = current.entries[-1].digest if current.entries else ""
    if current.policy.rules_of(alias).drill is not None:
        version = _with_config_digest(root, state, version)
    return Case(state, version, alias, attested, incumbent, current.policy, current.digest, datetime.now(UTC), made)


def approve(root: Root, reference: str, alias: str, key: Path | None, caller: Caller) -> Act:
    """Approve that an alias may mean a version, with the evidence that there is now.

    Raises UsageError if the policy would not count it: by the version's author, or without a key that it knows.
    """
    state, version = root.find(reference)
    check_alias(alias)
    asked = _Asked(("approve",), alias, reference)
    if (done := _done_before(root, state, caller, asked)) is not None:
        return done
    check_in_service(state, version.digest)
    case = case_of(root, state, version, alias)
    rule = case.policy.rules_of(alias).approval
    if caller.name in version.pushers:
        why = f"{caller.name} pushed it, and an approval is of somebody else"
        raise UsageError(f"{caller.name} cannot approve {case.reference}", why, "ask somebody else")
    if rule is not None and case.policy.keys and key is None:
        what, why = "an approval must be signed", "the policy has the keys of those who may approve"
        raise UsageError(what, why, f"aifx registry approve {reference} {alias} --key KEY.pem")
    facts = {"kind": "approval"}
    entry = Entry("approve", caller.name, version=version.digest, alias=alias, reason=caller.reason, facts=facts)
    if caller.dry_run:
        return _planned(state, entry)
    known = case.policy.keys_of(rule.role) if rule is not None and rule.role else case.policy.keys
    people = set(sign({}, key).signers(known))
    if people and people <= case.authors:
        why = f"{', '.join(people)} signed its push, and an approval is of somebody else"
        raise UsageError(f"the key {key} is of an author of {case.reference}", why, "ask somebody else")
    if known and not people:
        why = f"the policy counts approvals of {', '.join(known)}"
        raise UsageError(f"the key {key} is of nobody who may approve", why, "ask one of them")
    made = attest(root, "approval", version.digest, caller.name, case.approval(), key)

    def decide(state: ModelState) -> Entry:
        check_in_service(state, version.digest)
        return replace(entry, evidence=(made.digest,))

    return _act(_write(root, state, caller.request, asked, decide, again=True))


def promote(root: Root, reference: str, alias: str, caller: Caller, *, serve_check: bool = False) -> Act:
    """Let an alias mean a version, if the policy finds the evidence. The verdict is bad, and written, if it does not.

    Args:
        serve_check: refuse a version to which servers of the present one cannot swap.

    Raises LostRace if another entry came first: evidence and incumbent may have changed.
    """
    check_alias(alias)
    state, _ = root.find(reference)
    asked = _Asked(("promote", "refuse"), alias, reference)
    if (done := _done_before(root, state, caller, asked)) is not None:
        return done

    def decide(state: ModelState) -> Entry:
        version = _available(root, state, reference)
        case = case_of(root, state, version, alias)
        _warn_if_open(case, root)
        findings = judge(case)
        if serve_check:
            findings = (*findings, _serve_check(root, case))
        action = "promote" if all(finding.passed for finding in findings) else "refuse"
        evidence = tuple(dict.fromkeys(digest for finding in findings for digest in finding.evidence))
        previous = case.incumbent.label if case.incumbent else None
        judged = [{**vars(finding), "evidence": list(finding.evidence)} for finding in findings]
        facts = {"previous": previous, "policy": case.policy_digest, "findings": judged}
        return Entry(action, caller.name, "", version.digest, alias, evidence, caller.reason, facts)

    if caller.dry_run:
        return _planned(state, decide(state))
    return _act(_write(root, state, caller.request, asked, decide, again=False))


def _serve_check(root: Root, case: Case) -> Finding:
    """Whether servers that follow the alias can swap to the version."""
    if case.incumbent is None:
        return Finding("serve-check", True, f"{case.alias} means no other version yet")
    name, incumbent = case.state.name, case.incumbent
    if obstacles := swap_obstacles(root, case.state, incumbent.digest, case.version.digest):
        hint = f"aifx serve --model {case.reference}, as another server with another alias"
        return Finding(
            "serve-check", False, f"compared with {name}@{incumbent.label}: {'; '.join(obstacles[:3])}", hint
        )
    return Finding("serve-check", True, f"servers of {name}@{incumbent.label} can swap to it")


def rollback(root: Root, name: str, alias: str, to: str | None, caller: Caller) -> Act:
    """Let an alias mean a version that it meant before; by default the one before the present one.

    The policy is not asked: it is an emergency, and that version was live. Raises UsageError, and LostRace if another
    act moved the alias meanwhile. Other entries, such as evidence that a line attests, do not stop it.
    """
    check_alias(alias)
    state = root.state(name)
    asked = _Asked(("rollback",), alias, f"{name}@{to.partition('@')[2] or to}" if to else "")
    if (done := _done_before(root, state, caller, asked)) is not None:
        return done
    first = state.aliases.get(alias)

    def decide(state: ModelState) -> Entry:
        held = state.aliases.get(alias)
        if held != first:
            what, why = f"another entry moved {name}@{alias} first", "somebody may have rolled back already"
            raise LostRace(what, why, f"aifx registry show {name}")
        if held is None:
            what = f"{name} has no alias {alias!r}"
            raise UsageError(what, "nothing was promoted to it", f"aifx registry show {name}")
        meant = {entry.version for entry in state.entries if entry.alias == alias and entry.action in MOVES}
        if to is None:
            before = state.before(alias)
            if before is None:
                why = f"it has meant {state.label(held.version)} alone"
                if len(meant) > 1:
                    why = "the other versions that it meant were rolled back or withdrawn"
                raise UsageError(f"{name}@{alias} has no version before", why, f"aifx registry history {name}")
            reference = f"{name}@{before}"
        else:
            reference = asked.version
        version = _available(root, state, reference)
        if version.digest not in meant:
            why = f"{name}@{alias} has never meant {version.label}; only promote judges its evidence"
            raise UsageError(f"--to {to} is no way back", why, f"aifx registry promote {name}@{version.label} {alias}")
        facts = {"previous": state.label(held.version)}
        return Entry("rollback", caller.name, "", version.digest, alias, (), caller.reason, facts)

    if caller.dry_run:
        return _planned(state, decide(state))
    return _act(_write(root, state, caller.request, asked, decide, again=True))


def remove(
    root: Root, reference: str, users: Callable[[ModelState, NumberedVersion], list[str]], caller: Caller
) -> Act:
    """Withdraw a version, and delete its files. Its entries and evidence stay.

    Raises UsageError naming what refers to it: an alias, a version that is tuned from it, a line.
    """
    state, version = root.find(reference)

    def decide(state: ModelState) -> Entry:
        found = find_version(state, f"{state.name}@{version.digest}")
        if named := [*(f"{state.name}@{alias}" for alias in state.aliases_of(found.digest)), *users(state, found)]:
            what = f"{state.name}@{found.label} is in use"
            raise UsageError(what, f"{', '.join(named)} refers to it", f"aifx registry show {state.name}")
        return Entry("withdraw", caller.name, version=found.digest, reason=caller.reason)

    asked = _Asked(("withdraw",), "", reference)
    done = _done_before(root, state, caller, asked)
    if done is None and version.is_withdrawn:
        done = Act("withdraw", state.name, f"{state.name}@{version.label}", version.digest, dry_run=caller.dry_run)
    if caller.dry_run:
        return done or _planned(state, decide(state))
    if done is None:
        outcome = _write(root, state, caller.request, asked, decide, again=True)
        done, state = _act(outcome), outcome.state
    _delete_withdrawn(root, state, version.digest)  # also what a killed call left
    return done


def _delete_withdrawn(root: Root, state: ModelState, digest: str) -> None:
    """Delete the files of a version that were withdrawn. A push since then has put its files into another folder."""
    for folder in state.folders(digest)[:-1]:
        root.versions(state.name).remove(folder)


def _available(root: Root, state: ModelState, reference: str) -> NumberedVersion:
    """A version whose files are there. Raises UsageError, DamagedArtifact."""
    version = find_version(state, reference)
    root.available(state, version)
    return version


def _warn_if_open(case: Case, root: Root) -> None:
    if not case.policy_digest:
        logger.warning(f"{root.store.url} has no policy, so no evidence is asked for: aifx registry init")
    elif case.policy.is_open:
        logger.warning("no admin of the policy has a key, so everyone may do everything: aifx registry keygen")


def set_policy(root: Root, file: Path | None, key: Path | None, caller: Caller) -> PolicyPage:
    """Let a file be the policy of a root. Without one, a root that has no policy gets `FIRST`."""
    from aifx.registry.reports import policy_page, show_policy

    if file is None and key is not None:
        what, why = "--key requires --policy", "it signs the change to another policy"
        raise UsageError(what, why, f"aifx registry init --policy policy.toml --key {key}")
    entries = root.policy.entries()
    made = find_request(entries, caller.request or "")
    if made is None and file is None and entries:
        return replace(show_policy(root), dry_run=caller.dry_run)
    if made is not None:
        if file is not None:
            check_change(made, read_policy_file(file))
        return replace(policy_page(root, policy_text(root, str(made.facts.get("policy"))), made), is_repeated=True)
    text, place = (FIRST, "the first policy") if file is None else (read_policy_file(file), str(file))
    entry = change_policy(
        root, text, place, caller.name, key, caller.request, reason=caller.reason, dry_run=caller.dry_run
    )
    return replace(policy_page(root, text, entry if entry.number else None), dry_run=caller.dry_run)


def copy_version(source: Root, reference: str, target: Root, caller: Caller) -> Act:
    """Copy a version with its evidence to another root, under the same name, and compare what arrives.

    The target's ledger gets an entry of its own for the push and for each piece of evidence. Aliases are not copied,
    nor are comparisons whose look at their rows the target's ledger has: they would spend its alpha twice.
    """
    state, version = source.find(reference)
    asked = _Asked(("push",), "", f"{state.name}@{version.digest}" if names_always(reference) else "")
    there = target.now(ModelState(state.name, ()))
    before = _done_before(target, there, caller, asked)  # perhaps by one that was killed: its evidence follows
    artifact = source.available(state, version)
    pushed, request = version.pushed, caller.request or new_request()
    origin = {"root": source.store.url, "entry": pushed.digest, "actor": pushed.actor}
    earlier = {key: value for key, value in pushed.facts.items() if key == "copied_from"}
    facts = {**pushed.facts, "copied_from": {**origin, **earlier}}
    entry = Entry("push", caller.name, "", version.digest, "", pushed.evidence, caller.reason, facts)
    if caller.dry_run:
        return before or _planned(ModelState(state.name, (*there.entries, entry)), entry)
    for evidence in pushed.evidence:
        target.put(source.get(evidence))
    folder = _copy_files(source, state, artifact, target, there)
    there = target.now(there)
    known = there.versions.get(version.digest)
    done = Act("push", state.name, f"{state.name}@{known.label}", version.digest) if known else None
    if known is None or known.is_withdrawn:

        def decide(there: ModelState) -> Entry:
            nonlocal folder
            if folder != there.folders(version.digest)[-1]:  # it was withdrawn meanwhile
                folder = _copy_files(source, state, artifact, target, there)
            return entry

        outcome = _write(target, there, request, asked, decide, again=True)
        done, there = _act(outcome), outcome.state
    _delete_withdrawn(target, there, version.digest)
    for attested in state.about(version.digest, "attest", "approve"):
        pieces = [read_attestation(source, evidence) for evidence in attested.evidence]
        for digest in (digest for piece in pieces for digest in piece.objects):
            target.put(source.get(digest))
        # The id follows from the entry, so that evidence is copied once, however often and from however many calls.
        again = replace(attested, alias="", number=0, previous="", time="", request=f"copy of {attested.digest}")
        looks = [piece.content for piece in pieces if piece.kind == "comparison"]

        def add(there: ModelState, again: Entry = again, looks: list[Mapping[str, Any]] = looks) -> Entry:
            for comparison in looks:
                _look(there, comparison)
            return again

        try:
            there = target.act(state.name, again.request, add, again=True, known=there.entries).state
        except UsageError as e:
            if not looks:
                raise
            logger.warning(f"a comparison is not copied: {e.what}")
    assert done is not None
    return before or done


def _copy_files(source: Root, state: ModelState, artifact: Artifact, target: Root, there: ModelState) -> str:
    """Copy the files of a version to another root, in which its model is `there`. Returns the name of their folder."""
    digest = artifact.digest
    _remove_link(target.version_store(there, digest))
    with repairable(state.name):
        copy_artifact(source.version_store(state, digest), artifact, target.version_store(there, digest))
    return there.folders(digest)[-1]

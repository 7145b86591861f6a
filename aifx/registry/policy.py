"""The policy of a root: which evidence a version needs before an alias may mean it, and who may approve it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aifx.config.gates import parse_gate
from aifx.core.artifact import short
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, ConfigError, DataError, UsageError, did_you_mean
from aifx.core.json_files import encode
from aifx.core.json_values import flat
from aifx.core.parsing import fault_in, parse_toml
from aifx.core.requests import check_act
from aifx.registry.ledger import Entry, find_request, new_request
from aifx.registry.roots import OBJECTS, Root, check_alias
from aifx.registry.signing import parse_envelope, read_given, read_public_key, sign
from aifx.registry.state import ModelState

logger = logging.getLogger(__name__)

ANY = "*"
"""The alias whose rules hold for those that have none of their own."""

ADMIN = "admin"
"""The role that may change the policy."""

Gate = Annotated[str, Field(max_length=200)]


def _named_version(text: str) -> str:
    if text and not re.fullmatch(r"[^@]+@[0-9a-f]{4,64}", text):
        raise ValueError(f"{text!r} names no version: NAME@DIGITS, with at least 4 digits")
    return text


DataVersion = Annotated[str, AfterValidator(_named_version)]
"""A version of a data set, "NAME@DIGITS", or any if empty. A name alone may mean other rows tomorrow."""


NamedSplit = Literal["train", "validation", "test", ""]


class _Rule(BaseModel):
    # Each schema is built when it is first used: a promotion uses that of Policy alone, which has the others in it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class GatesRule(_Rule):
    """Attributes:
    gates: conditions on the numbers of the report, such as "accuracy >= 0.9".
    """

    gates: tuple[Gate, ...] = ()

    @field_validator("gates")
    @classmethod
    def _are_gates(cls, gates: tuple[str, ...]) -> tuple[str, ...]:
        for gate in gates:
            try:
                parse_gate(gate)
            except AifxError as e:
                raise ValueError(f"{e.what}: {e.why}") from e
        return gates


class MeasuredRule(_Rule):
    """Attributes:
    settings: of the measurement, by key, which the report must have; those that are not named may be any.
    """

    settings: Mapping[str, Any] = {}

    @field_validator("settings", mode="before")
    @classmethod
    def _by_keys(cls, settings: Any) -> Any:
        """The keys with dots: `data.seq_len = 64` in TOML is a table in a table."""
        return dict(flat(settings)) if isinstance(settings, Mapping) else settings


class EvalRule(GatesRule, MeasuredRule):
    """An evaluation whose own gates, and these, pass.

    Attributes:
        data: version of the data set that it must be measured on, "NAME@DIGITS"; any if empty.
        split: of it; any if empty.
    """

    data: DataVersion = ""
    split: NamedSplit = ""


class BetterRule(MeasuredRule):
    """A comparison with the version that the alias means, both with these settings.

    Attributes:
        metric: that must be compared, "max accuracy", or "accuracy" in either direction; any if empty.
        margin: by which the version may be worse; without it, it must be better.
        data, split: as of `EvalRule`.
    """

    metric: str = ""
    margin: float | None = Field(None, ge=0)
    data: DataVersion = ""
    split: NamedSplit = ""

    @property
    def of_metric(self) -> tuple[str, str]:
        """The direction, empty if any will do, and the name of the metric."""
        direction, _, name = self.metric.partition(" ")
        return (direction, name.strip()) if direction in ("min", "max") and name else ("", self.metric)


class BenchRule(GatesRule):
    """A report of a benchmark.

    Attributes:
        days: since it began, at most; any if not given.
    """

    days: float | None = Field(None, gt=0)


class SlicesRule(GatesRule, MeasuredRule):
    """An evaluation with slices.

    Attributes:
        columns: that it must be sliced by.
    """

    columns: tuple[str, ...] = Field(min_length=1)


class LicencesRule(_Rule):
    """The licences that the data of the version, and of what it was tuned from, may have (SPDX)."""

    allow: tuple[str, ...] = Field(min_length=1)


class ContaminationRule(_Rule):
    """No row of the evaluation in the training data of the version, nor of the one that the alias means."""

    data: DataVersion = ""


class ApprovalRule(_Rule):
    """Approvals of people other than the one who pushed the version.

    Attributes:
        role: that they must have; any if empty.
        author: what says who made the version: the name that pushed it, or the key that signed the push.
    """

    people: int = Field(1, ge=1)
    role: str = ""
    author: Literal["name", "key"] = "name"


class SignatureRule(_Rule):
    """A signature of the version by a key of a role."""

    role: str


class DrillRule(_Rule):
    """Drills that passed, at most so many days ago."""

    days: float = Field(30, gt=0)


class FileRule(_Rule):
    """Attested files, by their names."""

    names: tuple[str, ...] = Field(min_length=1)


class AliasRules(_Rule):
    """The rules of an alias. One that is not given is not asked for."""

    eval: EvalRule | None = None
    better: BetterRule | None = None
    contamination: ContaminationRule | None = None
    licences: LicencesRule | None = None
    slices: SlicesRule | None = None
    signature: SignatureRule | None = None
    bench: BenchRule | None = None
    drill: DrillRule | None = None
    file: FileRule | None = None
    approval: ApprovalRule | None = None  # last: other evidence that follows an approval ends it


class Policy(_Rule):
    """The content of policy.toml.

    Attributes:
        keys: PEM of each person's public key.
        roles: the people of each role.
        aliases: rules by alias, or by "*".
    """

    keys: Mapping[str, str] = {}
    roles: Mapping[str, tuple[str, ...]] = {}
    aliases: Mapping[str, AliasRules] = {}

    @model_validator(mode="after")
    def _is_consistent(self) -> Policy:
        if len({pem.strip() for pem in self.keys.values()}) < len(self.keys):
            raise ValueError("keys: two people have the same key")
        for name, pem in self.keys.items():
            try:
                read_public_key(pem, name)
            except AifxError as e:
                raise ValueError(f"{e.what}: {e.why}") from e
        for alias, rules in self.aliases.items():
            if alias != ANY:
                check_alias(alias)
            if rules.approval and rules.approval.author == "key" and not self.keys:
                raise ValueError(f'aliases.{alias}.approval: author = "key" needs [keys]')
            for role in (rules.approval and rules.approval.role, rules.signature and rules.signature.role):
                if role and role not in self.roles:
                    raise ValueError(f"aliases.{alias}: no role {role!r}: {did_you_mean(role, self.roles)}")
        for role, people in self.roles.items():
            for person in people:
                if self.keys and person not in self.keys:
                    raise ValueError(f"roles.{role}: no key of {person!r}: {did_you_mean(person, self.keys)}")
        return self

    def rules_of(self, alias: str) -> AliasRules:
        return self.aliases.get(alias) or self.aliases.get(ANY) or AliasRules.model_construct()

    def keys_of(self, role: str) -> dict[str, str]:
        """The public keys of the people of a role."""
        return {name: self.keys[name] for name in self.roles.get(role, ()) if name in self.keys}

    @property
    def is_open(self) -> bool:
        """Whether everyone may change it."""
        return not self.keys_of(ADMIN)


FIRST = """\
# Which evidence a version needs before an alias may mean it: docs/registry.md.
# Nobody has a key yet, so everyone may do everything, also change this.

[aliases.production]
eval = { gates = [] }

[aliases."*"]
"""


@dataclass(frozen=True)
class CurrentPolicy:
    """The policy of a root.

    Attributes:
        digest: of its text; empty without one.
        text: as its author wrote it.
        entries: of the root's ledger.
    """

    policy: Policy
    digest: str = ""
    text: str = ""
    entries: tuple[Entry, ...] = ()


def parse_policy(text: str, place: str) -> Policy:
    """The policy that a text in TOML has. Raises ConfigError naming the place and the key."""
    try:
        return Policy.model_validate(parse_toml(text))
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = did_you_mean(str(first["loc"][-1]), _keys_beside(first["loc"]))
        why = f"{key}: {message}".removeprefix(": ")
        raise ConfigError(f"{place} is no policy", why, "docs/registry.md has the rules") from e
    except (ValueError, AifxError) as e:
        why = e.what if isinstance(e, AifxError) else fault_in(e)
        raise ConfigError(f"{place} is no policy", why, "docs/registry.md has the rules") from e


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    """The keys that a table may have in which an unknown key stands."""
    kind: type[BaseModel] = Policy
    if len(place) >= 3 and place[0] == "aliases":
        kind = AliasRules
        if len(place) >= 4:
            rules = {name: field.annotation for name, field in AliasRules.model_fields.items()}
            kind = next(one for one in _parts(rules[str(place[2])]) if isinstance(one, type))
    return list(kind.model_fields)


def _parts(annotation: Any) -> tuple[Any, ...]:
    return tuple(one for one in getattr(annotation, "__args__", (annotation,)) if one is not type(None))


def read_policy(root: Root) -> CurrentPolicy:
    """The policy that the root's ledger names last; an empty one if there is none. Raises DamagedLedger, DataError."""
    current = CurrentPolicy(Policy.model_construct())
    for entry in root.policy.entries():
        digest = str(entry.facts.get("policy"))
        if not current.policy.is_open and not _is_signed(root, entry, digest, current.policy):
            what = f"the policy of {root.store.url} was changed without a signature"
            why = f"entry {entry.number}, by {entry.actor}, is not signed by the role {ADMIN!r}"
            raise DataError(what, why, f"ask {entry.actor}, or: aifx registry verify")
        text = policy_text(root, digest)
        policy = parse_policy(text, f"the policy of entry {entry.number}")
        current = CurrentPolicy(policy, digest, text, (*current.entries, entry))
    return current


def policy_text(root: Root, digest: str) -> str:
    """The text of a policy that an entry names. Raises DataError if it is missing, damaged or no text."""
    try:
        return root.get(digest).decode()
    except UnicodeDecodeError as e:
        what, why = f"{root.store.url}/{OBJECTS}/{digest} is no policy", f"it is no text in UTF-8: {e}"
        raise DataError(what, why, "aifx registry verify") from e


def read_policy_file(file: Path) -> str:
    """The text of a file that the user named. Raises UsageError if it cannot be read, ConfigError if it is no text."""
    try:
        return read_given(file).decode()
    except UnicodeDecodeError as e:
        raise ConfigError(
            f"{file} is no policy", f"it is no text in UTF-8: {e}", "docs/registry.md has the rules"
        ) from e


def change_policy(
    root: Root,
    text: str,
    place: str,
    actor: str,
    key: Path | None,
    request: str | None,
    *,
    reason: str = "",
    dry_run: bool = False,
) -> Entry:
    """Let a text be the policy of a root. Returns the entry, or that of the same text or request.

    Args:
        dry_run: check, and write nothing: the entry that is returned has the number 0.

    Raises ConfigError for a text that is no policy, UsageError unless the key is one of the role ADMIN of the policy
    that holds, LostRace.
    """
    new, current = parse_policy(text, place), read_policy(root)
    if (made := find_request(current.entries, request or "")) is not None:
        return check_change(made, text)
    digest = sha256_of(encode(text))
    if digest == current.digest:
        return current.entries[-1]
    previous = current.entries[-1].digest if current.entries else ""
    signed = sign(_change(digest, previous), key)
    if not current.policy.is_open and not signed.signers(current.policy.keys_of(ADMIN)):
        people = ", ".join(current.policy.keys_of(ADMIN))
        why = "the key is of nobody with that role" if key else "its change must be signed"
        what = f"the policy can only be changed by the role {ADMIN!r}: {people}"
        raise UsageError(what, why, f"aifx registry init --policy {place} --key KEY.pem")
    if new.keys and new.is_open:
        logger.warning(f"nobody has the role {ADMIN!r} with a key, so everyone may change the policy")
    facts = {"policy": digest}
    entry = Entry("policy", actor, request or new_request(), evidence=(digest,), reason=reason, facts=facts)
    if dry_run:
        return entry
    root.put(encode(text))
    if key:
        entry = replace(entry, evidence=(digest, root.put(signed.encode())))
    return root.policy.append(current.entries, entry)


def check_change(made: Entry, text: str) -> Entry:
    """The entry that a request made before. Raises UsageError if it has another text."""
    check_act(
        made.request, made.facts.get("policy") == sha256_of(encode(text)), f"entry {made.number} has another policy"
    )
    return made


def _is_signed(root: Root, entry: Entry, digest: str, policy: Policy) -> bool:
    """Whether an admin of a policy signed that another one follows it. Raises DataError for a damaged signature."""
    if not entry.evidence:
        return False
    signed = parse_envelope(root.get(entry.evidence[-1]), f"the signature of entry {entry.number}")
    return signed.content == _change(digest, entry.previous) and bool(signed.signers(policy.keys_of(ADMIN)))


def check_policies(root: Root, state: ModelState, current: CurrentPolicy) -> None:
    """Raise DataError if an entry of a model was judged by a policy that the root's ledger does not have any more.

    Nor may it be one that was replaced before an earlier entry was judged: each act reads the ledger of its model
    first, and the policy then.
    """
    made = ["", *(str(entry.facts.get("policy")) for entry in current.entries)]
    reached = 0
    for entry in (entry for entry in state.entries if entry.action in ("promote", "refuse")):
        if (digest := str(entry.facts.get("policy", ""))) in made[reached:]:
            reached = made.index(digest, reached)
            continue
        what, why = (
            f"entry {entry.number} of {state.name} was judged by a policy that",
            f"it names {digest[:12] or 'none'}",
        )
        if digest in made:
            why += f", and an earlier entry {short(made[reached])}, which replaced it"
            raise DataError(f"{what} held no more", why, f"aifx registry history {state.name}")
        why = f"no entry of {root.policy.store.url} has {digest[:12]}: entries were removed"
        raise DataError(f"{what} is gone", why, "restore them, and: aifx registry verify")


def _change(digest: str, previous: str) -> dict[str, str]:
    """The statement that is signed: the policy, and the entry that it follows, so that it cannot be used again."""
    return {"policy": digest, "previous": previous}

"""What a model's ledger says: its versions, aliases, tags and evidence, as folds over the entries."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from aifx.core.artifact import short
from aifx.core.json_values import number
from aifx.registry.ledger import Entry

Action = Literal["push", "attest", "approve", "promote", "refuse", "rollback", "tag", "withdraw"]

MOVES = frozenset({"promote", "rollback"})
"""The actions that let an alias mean a version."""


@dataclass(frozen=True)
class NumberedVersion:
    """A version of a model.

    Attributes:
        number: of its first push among the model's: people write "v3".
        digest: of its artefact.
        pushed: the entry of its first push.
        withdrawals: how often it was withdrawn.
        is_withdrawn: whether that was after its last push, so that its files may be gone.
    """

    number: int
    digest: str
    pushed: Entry
    withdrawals: int = 0
    is_withdrawn: bool = False

    @property
    def label(self) -> str:
        return f"v{self.number}"

    @property
    def pushers(self) -> tuple[str, ...]:
        """Who pushed it: here, and to each registry that it was copied from."""
        names, copied = [self.pushed.actor], self.pushed.facts.get("copied_from")
        while isinstance(copied, Mapping):
            names.append(str(copied.get("actor")))
            copied = copied.get("copied_from")
        return tuple(names)

    @property
    def checkpoint(self) -> str | None:
        """The digest of the state of the checkpoint that it was pushed from."""
        return self.pushed.facts.get("checkpoint")

    @property
    def config_digest(self) -> str | None:
        """The SHA-256 of its `config.toml`."""
        return self.pushed.facts.get("config_digest")

    def is_subject_of(self, content: Mapping[str, Any]) -> bool:
        """Whether a document may be about it: it names this model, its checkpoint or its configuration, or none."""
        found = (content.get("subject") or {}).get("digest") or content.get("model")
        is_its_model = found in (None, self.digest, self.checkpoint)
        return is_its_model and content.get("config_digest") in (None, "", self.config_digest)

    @property
    def data(self) -> tuple[str, ...]:
        """The versions of data sets that it, and what it was tuned from, was trained on, "name@<64 digits>"."""
        return tuple(self.pushed.facts.get("data", ()))


@dataclass(frozen=True)
class ModelState:
    """A model after the entries of its ledger."""

    name: str
    entries: Sequence[Entry] = field(default=(), repr=False)

    @cached_property
    def versions(self) -> Mapping[str, NumberedVersion]:
        """The versions by digest, in the order of their numbers."""
        first: dict[str, Entry] = {}
        withdrawals: Counter[str] = Counter()
        withdrawn: set[str] = set()
        for entry in self.entries:
            if entry.action == "push":
                first.setdefault(entry.version, entry)
                withdrawn.discard(entry.version)
            elif entry.action == "withdraw" and entry.version not in withdrawn:
                withdrawals[entry.version] += 1
                withdrawn.add(entry.version)
        return {
            digest: NumberedVersion(number, digest, entry, withdrawals[digest], digest in withdrawn)
            for number, (digest, entry) in enumerate(first.items(), 1)
        }

    @cached_property
    def aliases(self) -> Mapping[str, Entry]:
        """The entry that gave each alias its version, by alias."""
        return dict(sorted({entry.alias: entry for entry in self.entries if entry.action in MOVES}.items()))

    @cached_property
    def tags(self) -> Mapping[str, Mapping[str, str]]:
        """The tags of each version that has any, by digest."""
        tags: dict[str, dict[str, str]] = {}
        for entry in self.entries:
            if entry.action == "tag":
                own = tags.setdefault(entry.version, {})
                own.update(entry.facts.get("set", {}))
                for key in entry.facts.get("removed", ()):
                    own.pop(key, None)
        return {digest: dict(sorted(own.items())) for digest, own in tags.items() if own}

    def label(self, digest: str) -> str:
        """ "v3", or the beginning of the digest of an unknown version."""
        found = self.versions.get(digest)
        return found.label if found else digest[:12]

    def folders(self, digest: str) -> list[str]:
        """The names of the folders of a version: those that `rm` deletes or has deleted, and that of the present one.

        A version that is pushed after it was withdrawn gets another folder than before, so that an `rm` that still
        runs cannot delete the new files.
        """
        version = self.versions.get(digest)
        again = range(1, version.withdrawals + 1) if version else ()
        return [short(digest), *(f"{short(digest)}-{number}" for number in again)]

    def aliases_of(self, digest: str) -> list[str]:
        return sorted(alias for alias, entry in self.aliases.items() if entry.version == digest)

    def about(self, digest: str, *actions: Action) -> Iterator[Entry]:
        """The entries about a version, of some kinds if they are given."""
        return (entry for entry in self.entries if entry.version == digest and (not actions or entry.action in actions))

    def before(self, alias: str) -> str | None:
        """The version that an alias meant before the present one, by digest; None if there was none.

        A rollback takes back what came after its version, so that a second one goes further back. Withdrawn versions
        are passed over.
        """
        meant: list[str] = []
        for entry in self.entries:
            if entry.alias != alias or entry.action not in MOVES:
                continue
            if entry.action == "rollback" and entry.version in meant:
                while meant[-1] != entry.version:
                    meant.pop()
            elif not meant or meant[-1] != entry.version:
                meant.append(entry.version)
        earlier = (digest for digest in reversed(meant[:-1]) if digest != meant[-1])
        known = (digest for digest in earlier if digest in self.versions)  # not those of forged entries
        return next((digest for digest in known if not self.versions[digest].is_withdrawn), None)

    def at(self, time: datetime) -> ModelState:
        """The model as it was at a time.

        The order of the entries is the chain's. A clock that ran backwards moves no entry before an earlier one.
        """
        times = itertools.accumulate((datetime.fromisoformat(entry.time) for entry in self.entries), max)
        count = sum(1 for _ in itertools.takewhile(lambda reached: reached <= time, times))
        return ModelState(self.name, self.entries[:count])


def looks_at(state: ModelState, data_digest: str, split: str) -> int:
    """The highest look at a split of an evaluation version that the ledger has, whatever version it is about.

    One that was attested before its split was kept counts for each.
    """
    attested = (entry.facts for entry in state.entries if entry.action == "attest")
    looks = (facts for facts in attested if facts.get("kind") == "comparison")
    taken = (facts for facts in looks if facts.get("data_digest") == data_digest and facts.get("split", split) == split)
    return max((int(number(facts.get("look")) or 1) for facts in taken), default=0)

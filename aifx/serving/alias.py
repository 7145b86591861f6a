"""The version that an alias of a registry means, as what a server should answer with."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Sequence
from functools import partial

import jax

from aifx.core.errors import AifxError, UsageError
from aifx.core.project import Project
from aifx.loading.restore import RestoredRun, restore_run
from aifx.registry.ledger import DamagedLedger, Entry, new_request
from aifx.registry.roots import Root
from aifx.registry.state import ModelState, NumberedVersion
from aifx.registry.swappable import swap_obstacles
from aifx.registry.versions import open_stored
from aifx.serving.swap import Candidate, check_memory

logger = logging.getLogger(__name__)


class VersionOfAlias:
    """Follows an alias. What the server adopts becomes an entry of a ledger of its own in the root.

    It refuses a ledger that is shorter than what it has seen, or another one: somebody removed entries.
    """

    def __init__(
        self,
        root: Root,
        reference: str,
        serving: str,
        project: Project,
        overrides: Sequence[str],
        *,
        server: str,
        trust_code: str | None = None,
    ) -> None:
        """
        Args:
            reference: "fraud@production".
            serving: digest of the version that serves when the watch begins.
            project: in which versions are opened, and measured if they have gates.
            server: the name of the server in the root.
            trust_code: digest of a version whose own code may run.

        Raises UsageError for a reference that always means the same version.
        """
        self._root, self._project, self._overrides, self._trust = root, project, overrides, trust_code
        self._name, _, self._alias = reference.partition("@")
        if self._alias not in root.state(self._name).aliases:
            why = "it is no alias, so it always means the same version"
            raise UsageError(f"--watch with --model {reference}", why, f"aifx serve --model {self._name}@ALIAS --watch")
        self.reference, self.first, self._server = reference, serving, server
        self._seen, self._adopted = self._seen_before(), ""
        self._entries: tuple[Entry, ...] = ()

    def _seen_before(self) -> tuple[int, str]:
        """The number and the digest of the last entry that a server of this name has seen."""
        entries = self._root.server_ledger(self._name, self._server).entries()
        facts = entries[-1].facts if entries else {}
        return int(facts.get("head_number", 0)), str(facts.get("head", ""))

    def newest(self) -> Candidate:
        """The version that the alias means. Raises DamagedLedger, EnvironmentFault if the root does not answer."""
        state = self._read()
        entry = state.aliases.get(self._alias)
        if entry is None:
            raise AifxError(f"{self.reference} means no version any more", "", f"aifx registry history {self._name}")
        version = state.versions[entry.version]
        return Candidate(
            version.digest,
            entry.digest,
            f"{self.reference} ({version.label})",
            partial(self._restore, state, version),
            ("--model", f"{self._name}@{version.digest}"),
            is_way_back=entry.action == "rollback",
        )

    def _read(self) -> ModelState:
        # The last entry is read again at each look: it has the digest of the one before, and so of all.
        entries = self._root.ledger(self._name).entries(self._entries[:-1])
        number, digest = self._seen
        if len(entries) < number or (number and entries[number - 1].digest != digest):
            what = f"the ledger of {self._name} is not the one that this server has seen"
            why = f"entry {number} was {digest}, and it is gone or another one"
            raise DamagedLedger(what, why, f"aifx registry verify {self._name} --head {digest}")
        self._seen, self._entries = (len(entries), entries[-1].digest if entries else ""), entries
        return ModelState(self._name, entries)

    def _restore(self, state: ModelState, version: NumberedVersion) -> RestoredRun:
        """Open a version. Raises UsageError for one that needs another server, or more memory than there is."""
        if obstacles := swap_obstacles(self._root, state, self.first, version.digest):
            what = f"{self._name}@{version.label} needs another server: {obstacles[0]}"
            why = "a swap keeps the programs of text, and the columns and classes of predictions"
            raise UsageError(what, why, f"aifx serve --model {self.reference}, and aifx registry promote --serve-check")
        label = f"{self._name}@{version.label}"
        directory, project = open_stored(self._root, state, version, label, self._project, self._trust)
        num_bytes = sum(entry.num_bytes for level in directory.content.levels for entry in level.arrays.values())
        check_memory(num_bytes, jax.default_backend())
        return restore_run(directory, project, overrides=self._overrides)

    def adopted(self, candidate: Candidate) -> None:
        """Write into the root what serves, once for each entry of the alias. Raises EnvironmentFault."""
        if self._adopted == candidate.state:
            return
        ledger = self._root.server_ledger(self._name, self._server)
        entries = ledger.entries()
        if not entries or entries[-1].facts.get("alias_entry") != candidate.state:
            facts = {"alias_entry": candidate.state, **self._head()}
            entry = Entry("adopt", self._server, new_request(), str(candidate.id), self._alias, facts=facts)
            ledger.append(entries, entry)
        self._adopted, (number, head) = str(candidate.state), self._seen
        logger.info(f"{candidate.label} is adopted; the ledger has {number} entries, the last is {head}")

    def left(self) -> None:
        """Write into the root that the server has ended. Raises AifxError."""
        ledger = self._root.server_ledger(self._name, self._server)
        entries = ledger.entries()
        if entries and (last := entries[-1]).action == "adopt":  # perhaps of another alias, by a server that was killed
            entry = Entry("leave", self._server, new_request(), last.version, last.alias, facts=self._head())
            ledger.append(entries, entry)

    def _head(self) -> dict[str, int | str]:
        """The last entry that the server has seen."""
        number, digest = self._seen
        return {"head": digest, "head_number": number}


def server_name(port: int) -> str:
    """The name of this server in a root: the machine and the port."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{port}")[:100]

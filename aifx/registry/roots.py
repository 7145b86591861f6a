"""The root of a registry: a folder or a store, with models by name.

<root>/
    policy/<number>.json                 the ledger of the root: what is decided for all models
    objects/<SHA-256>                    attestations and other evidence, each named by its bytes
    models/<name>/
        ledger/<number>.json
        versions/<12 digits>/            the artefact of each version; `<12 digits>-1` after it was withdrawn once
        servers/<server>/<number>.json   what each server adopted
"""

from __future__ import annotations

import math
import os
import pwd
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from aifx.core.artifact import MANIFEST, Artifact, DamagedArtifact, other_size, short
from aifx.core.artifact_copies import fetch_artifact, stored_artifact
from aifx.core.digests import sha256_of
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.files import DOCUMENT_LIMIT, UnsafeFile
from aifx.core.json_values import flat
from aifx.core.parsing import fault_in, parse_toml
from aifx.core.project import RUN_NAME, Project, cache_path
from aifx.core.stores import Store, open_store
from aifx.registry.ledger import Entry, Ledger, LostRace, find_request, new_request
from aifx.registry.state import ModelState, NumberedVersion

KIND, VERSION = "model", 1
"""Of the artefacts of versions."""

CODE = "code"
"""The folder of a version that has the project's own modules."""

SETTINGS = "config.toml"
"""The file of a version with the settings that change its answers."""

MODELS, OBJECTS, POLICY = "models", "objects", "policy"

ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,49}")
LEAST_DIGITS = 4
_LABEL = re.compile(r"v[0-9]+")
_DIGITS = re.compile(r"[0-9a-f]{4,64}")

MOST_TRIES = 100
"""Entries of others that a writer lets pass before it gives up."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        state: the model with the entry.
        entry: the one that the request made.
        is_repeated: whether an earlier call with the same id made it.
    """

    state: ModelState
    entry: Entry
    is_repeated: bool = False


@dataclass(frozen=True)
class Root:
    """The models below one root.

    Attributes:
        store: the root, which need not exist.
    """

    store: Store

    @property
    def policy(self) -> Ledger:
        return Ledger(self.store.below(POLICY), f"the policy of {self.store.url}")

    def ledger(self, name: str) -> Ledger:
        return Ledger(self.store.below(f"{MODELS}/{check_model_name(name)}/ledger"), f"the ledger of {name}")

    def server_ledger(self, name: str, server: str) -> Ledger:
        """What a server adopted of a model."""
        place = f"{MODELS}/{check_model_name(name)}/servers/{server}"
        return Ledger(self.store.below(place), f"the ledger of {name} on {server}")

    def servers(self, name: str) -> list[str]:
        return sorted(self.store.folders(f"{MODELS}/{check_model_name(name)}/servers"))

    def versions(self, name: str) -> Store:
        """The folder with the artefacts of a model, each in a folder that its digest names."""
        return self.store.below(f"{MODELS}/{name}/versions")

    def version_store(self, state: ModelState, digest: str) -> Store:
        """The folder of a version's artefact."""
        return self.versions(state.name).below(state.folders(digest)[-1])

    def artifact(self, state: ModelState, digest: str) -> Artifact | None:
        """The artefact of a version, of which only the manifest is read; None if it is not there.

        Raises DamagedArtifact, also for a link or another version in its place, AifxError for another kind of artefact,
        EnvironmentFault if the store fails.
        """
        store = self.version_store(state, digest)
        with repairable(state.name):
            if is_link(store):
                raise DamagedArtifact(store.url, "it is a symbolic link")
            artifact = stored_artifact(store, KIND, VERSION)
            if artifact is not None and artifact.digest != digest:
                raise DamagedArtifact(store.url, f"it holds the version {short(artifact.digest)}")
            if artifact is not None:
                check_manifest(artifact, store.url)
            return artifact

    def settings(self, state: ModelState, artifact: Artifact) -> dict[str, Any]:
        """The settings of a version by their keys, "model.embed_dim"; empty if it has none. Raises as `artifact`."""
        if (file := artifact.files.get(SETTINGS)) is None:
            return {}
        store = self.version_store(state, artifact.digest)
        with repairable(state.name):
            try:
                size = store.size(SETTINGS)
                if size is not None and size != file.bytes:
                    raise DamagedArtifact(store.url, other_size(SETTINGS, size, file))
                if file.bytes > DOCUMENT_LIMIT:
                    why = f"{SETTINGS} has {file.bytes >> 20} MiB, and aifx reads {DOCUMENT_LIMIT >> 20} MiB"
                    raise DamagedArtifact(store.url, why)
                data = store.read(SETTINGS)
                if data is None or sha256_of(data) != file.sha256:
                    why = "is missing" if data is None else "has other bytes than were written"
                    raise DamagedArtifact(store.url, f"{SETTINGS} {why}")
                return dict(flat(parse_toml(data.decode())))
            except UnsafeFile as e:
                raise DamagedArtifact(store.url, f"{SETTINGS} is not a regular file") from e
            except ValueError as e:
                raise DamagedArtifact(store.url, f"{SETTINGS}: {fault_in(e)}") from e

    def available(self, state: ModelState, version: NumberedVersion) -> Artifact:
        """The artefact of a version. Raises UsageError if it was withdrawn or is missing, and as `artifact`."""
        check_in_service(state, version.digest)
        artifact = self.artifact(state, version.digest)
        if artifact is None:
            what = f"{state.name}@{version.label} is not in {self.store.url}"
            raise UsageError(what, "its manifest is missing", f"aifx registry verify {state.name}")
        return artifact

    def fetch(self, state: ModelState, version: NumberedVersion) -> Path:
        """The folder of a version in the cache, compared with its digests. Raises as `available`."""
        artifact, folder = self.available(state, version), cache_path("models") / version.digest
        with repairable(state.name):
            return fetch_artifact(self.version_store(state, version.digest), artifact, folder)

    def names(self) -> list[str]:
        """The models that have an entry."""
        folders = (name for name in self.store.folders(MODELS) if RUN_NAME.fullmatch(name))
        return sorted(name for name in folders if self.store.files(f"{MODELS}/{name}/ledger"))

    def state(self, name: str) -> ModelState:
        """A model by its ledger. Raises UsageError if there is none of this name, DamagedLedger."""
        state = self.now(ModelState(name, ()))
        if not state.entries:
            why, hint = did_you_mean(name, self.names()), "aifx registry ls"
            if not why:
                why, hint = "nothing was pushed yet", f"aifx registry push RUN {name}"
            raise UsageError(f"no model {name!r} in {self.store.url}", why, hint)
        return state

    def find(self, reference: str) -> tuple[ModelState, NumberedVersion]:
        """The model and the version that "fraud@v3", "fraud@production" or "fraud@3f2a91" means. Raises UsageError."""
        name, at, _ = reference.partition("@")
        check_model_name(name)
        if not at:
            what, why = f"{reference!r} names no version", "a model is named with an alias or a version"
            raise UsageError(what, why, f"{name}@v1, or: aifx registry show {name}")
        state = self.state(name)
        return state, find_version(state, reference)

    def now(self, state: ModelState) -> ModelState:
        """A model as it is now. The entries that `state` has are not read again. Raises as `Ledger.entries`."""
        return ModelState(state.name, self.ledger(state.name).entries(state.entries))

    def act(
        self,
        name: str,
        request: str | None,
        decide: Callable[[ModelState], Entry],
        *,
        again: bool,
        known: Sequence[Entry] = (),
    ) -> Outcome:
        """Add an entry to a model's ledger.

        Args:
            request: an id; a call with one that has made an entry already returns that entry.
            decide: returns the entry from the model as it is.
            again: decide again if another entry came first. Otherwise LostRace is raised: the decision rests on
                evidence that may be stale.
            known: the first entries, as of `Ledger.entries`.

        Raises LostRace, and as `Ledger.entries` and `Ledger.append`.
        """
        state, request = ModelState(name, tuple(known)), request or new_request()
        for attempt in range(MOST_TRIES):
            state = self.now(state)
            if (done := done_before(state, request)) is not None:
                return done
            entry = decide(state)
            try:
                made = self.ledger(name).append(state.entries, entry.requested(request))
                return Outcome(ModelState(name, (*state.entries, made)), made)
            except LostRace:
                # The same request may have come twice at once: then the other call made its entry.
                if (not again and done_before(self.now(state), request) is None) or attempt == MOST_TRIES - 1:
                    raise
            time.sleep(random.uniform(0, 0.01 * min(attempt, 10)))
        raise AssertionError

    def put(self, data: bytes) -> str:
        """Keep evidence. Returns its digest, by which it is found again. One that is there and damaged is repaired."""
        digest = sha256_of(data)
        name = f"{OBJECTS}/{digest}"
        if not self.store.create(name, data) and self.store.read(name) != data:
            self.store.write(name, iter([data]))
        return digest

    def get(self, digest: str) -> bytes:
        """Evidence by its digest. Raises DataError if it is missing or damaged."""
        data = self.store.read(f"{OBJECTS}/{digest}")
        if data is None or sha256_of(data) != digest:
            why = "it is missing" if data is None else "its SHA-256 is another one"
            raise DataError(f"{self.store.url}/{OBJECTS}/{digest} is damaged", why, "aifx registry verify")
        return data


def done_before(state: ModelState, request: str | None) -> Outcome | None:
    """What a request did before; None if it did nothing."""
    made = find_request(state.entries, request) if request else None
    return None if made is None else Outcome(state, made, is_repeated=True)


def is_link(store: Store) -> bool:
    """Whether the folder of a version is a link. What it leads to can be another version tomorrow, or be deleted."""
    return store.folder is not None and store.folder.is_symlink()


@contextmanager
def repairable(name: str = "NAME") -> Iterator[None]:
    """Add the way out to the error about a damaged version of a model."""
    try:
        yield
    except DamagedArtifact as e:
        e.hint = e.hint or f"aifx registry push RUN {name}, of the run that it was pushed from, writes its files again"
        raise


def open_root(root: str | None, project: Project | None = None) -> Root:
    """The registry at a URL or folder, or that of a project. Raises UsageError for a URL that cannot be opened.

    Args:
        root: relative to the working directory.
        project: with the root that its configuration names.
    """
    if root is None:
        assert project is not None
        root = (
            project.registry if "://" in project.registry else str(project.root / Path(project.registry).expanduser())
        )
    place = root if "://" in root else str(Path(root).expanduser().absolute())
    return Root(open_store(place, has_digests=True))


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)


def _some_elements(shape: list[int]) -> list[int]:
    if math.prod(shape) >= 2**63:
        raise ValueError("it has too many elements")
    return shape


class _Array(_Part):
    dtype: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=64), AfterValidator(_some_elements)]
    digest: str


class _Level(_Part):
    arrays: dict[str, _Array]


class _Notes(_Part):
    layout: dict[str, str | int | float | bool | list[str | int | float | bool]] = {}
    files: list[str] = []
    source: str | None = None
    imported_from: str | None = None


class _Manifest(_Part):
    """What commands read of a manifest that do not open the model: `versions` compares the content with all of it."""

    levels: Annotated[list[_Level], Field(max_length=64)] = []
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    notes: _Notes


def check_manifest(artifact: Artifact, place: object) -> None:
    """Raise DamagedArtifact for values that no version has, and for files that a version's digest does not cover, that
    are not in its folder, or that are code without its source.

    No version is written with any. Code among them would run under a digest that was trusted, or that was read.
    """
    try:
        _Manifest.model_validate({**artifact.content, "notes": artifact.notes})
    except ValidationError as e:
        raise DamagedArtifact(place, f"{MANIFEST}: {fault_in(e)}") from e
    for name in artifact.descriptions:
        raise DamagedArtifact(place, f"{MANIFEST}: its digest does not cover {name!r}")
    for name in artifact.elsewhere:
        raise DamagedArtifact(place, f"{MANIFEST}: {name!r} is not in its folder")
    for name in artifact.files:
        if name.startswith(f"{CODE}/") and not name.endswith(".py"):
            raise DamagedArtifact(place, f"{MANIFEST}: {name!r} is code without its source")


def check_in_service(state: ModelState, digest: str) -> None:
    """Raise UsageError for a version that was withdrawn."""
    if state.versions[digest].is_withdrawn:
        what = f"{state.name}@{state.label(digest)} was withdrawn"
        raise UsageError(what, "its files are gone", f"aifx registry push RUN {state.name}, which brings it back")


def find_version(state: ModelState, reference: str) -> NumberedVersion:
    """The version that a reference means to a model as it is, or was. Raises UsageError naming the nearest."""
    _, _, word = reference.partition("@")
    versions = list(state.versions.values())
    if _LABEL.fullmatch(word):
        matching = [version for version in versions if version.label == word]
    elif word in state.aliases:
        digest = state.aliases[word].version
        matching = [version for version in versions if version.digest == digest]
    else:
        is_digits = bool(_DIGITS.fullmatch(word))
        matching = [version for version in versions if is_digits and version.digest.startswith(word)]
    if len(matching) == 1:
        return matching[0]
    if _LABEL.fullmatch(word):
        why = f"the newest is {versions[-1].label}" if versions else "no version was pushed"
    else:
        known = [*state.aliases, *(version.label for version in versions[-5:])]
        why = f"{len(matching)} versions begin with {word!r}" if matching else did_you_mean(word, known)
    raise UsageError(f"{reference!r} names no version", why, f"aifx registry show {state.name}")


def names_always(reference: str) -> bool:
    """Whether a reference means the same version at any time: by its number or digest, not by an alias."""
    word = reference.partition("@")[2]
    return bool(_LABEL.fullmatch(word) or _DIGITS.fullmatch(word))


def check_model_name(name: str) -> str:
    """`name`. Raises UsageError for what is not a plain folder name."""
    if not RUN_NAME.fullmatch(name):
        why = "a model's name is letters, digits, '.', '_' and '-', 100 at most, and begins with a letter or digit"
        raise UsageError(f"{name!r} cannot name a model", why, "aifx registry ls")
    return name


def is_alias(word: str) -> bool:
    """Whether a word can be an alias, and no version."""
    return bool(ALIAS.fullmatch(word)) and not _LABEL.fullmatch(word) and not _DIGITS.fullmatch(word)


def check_alias(alias: str) -> str:
    """`alias`. Raises UsageError for a word that could also be a version."""
    if not is_alias(alias):
        why = "an alias is lower-case letters, digits, '_' and '-', begins with a letter, and is no version or digest"
        raise UsageError(f"{alias!r} cannot be an alias", why, "such as production, staging or canary")
    return alias


def current_actor() -> str:
    """Who acts: `AIFX_ACTOR`, otherwise user and machine."""
    if own := os.environ.get("AIFX_ACTOR"):
        return own
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container without a passwd entry
        user = f"uid {os.geteuid()}"
    return f"{user}@{socket.gethostname()}"

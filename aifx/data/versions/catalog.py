"""The data sets below a root, by name and version."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aifx.core.artifact import (
    MANIFEST,
    Artifact,
    DamagedArtifact,
    check_once,
    mark_checked,
    short,
)
from aifx.core.artifact_copies import copy_artifact
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.os_errors import could_not
from aifx.core.project import Project, cache_path
from aifx.core.stores import Store, open_store
from aifx.data.names import FILE_KEYS
from aifx.data.versions.manifest import LATEST, SUMS, Manifest, Version, read_version, sums_of

DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LEAST_DIGITS = 4
_VERSION = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class Catalog:
    """The data sets below one root.

    Attributes:
        store: the root, which need not exist.
    """

    store: Store

    @property
    def local(self) -> Path | None:
        """The root, if it is a folder on this machine."""
        return self.store.folder

    def names(self) -> list[str]:
        """The data sets that have a version."""
        return sorted(name for name in self.store.folders("") if _can_name(name) and self.latest(name))

    def versions(self, name: str) -> list[str]:
        """The complete versions of a data set, by name."""
        found = [folder for folder in self.store.folders(name) if _VERSION.fullmatch(folder)]
        return sorted(version for version in found if self.store.size(f"{name}/{version}/{MANIFEST}") is not None)

    def incomplete_versions(self, name: str) -> list[str]:
        """The folders of a data set that would be versions if they had a manifest."""
        found = {folder for folder in self.store.folders(name) if _VERSION.fullmatch(folder)}
        return sorted(found.difference(self.versions(name)))

    def latest(self, name: str) -> str | None:
        """The version that was made last; None if there is none."""
        data = self.store.read(f"{check_dataset_name(name)}/{LATEST}")
        return data.decode(errors="replace").strip() if data is not None else None

    def set_latest(self, name: str, version: str) -> None:
        """Let the name alone mean a version."""
        self.store.write(f"{name}/{LATEST}", iter([f"{version}\n".encode()]))

    def find(self, reference: str) -> tuple[str, str]:
        """The name and the folder that "name" or "name@3f2a" means, with 4 to 64 digits. Raises UsageError.

        Digits beyond those of the folder's name are compared with the manifest. Raises DataError if that is damaged.
        """
        name, version, digits = self._find_folder(reference)
        if len(digits) > len(version):
            self._read(name, version, digits)
        return name, version

    def _find_folder(self, reference: str) -> tuple[str, str, str]:
        """The name and the folder, and the digits that are given. Raises UsageError."""
        name, at, beginning = reference.partition("@")
        check_dataset_name(name)
        if not at:
            version = self.latest(name)
            if version is None:
                raise self._unknown(name)
            if not _VERSION.fullmatch(version) or self.store.size(f"{name}/{version}/{MANIFEST}") is None:
                what, why = f"{self.store.url}/{name}/{LATEST} is damaged", f"there is no version {version[:20]!r}"
                raise DataError(what, why, f"aifx data ls {name}, and write the version that you want into that file")
            return name, version, ""
        known, digits = self.versions(name), short(beginning)
        if not known:
            raise self._unknown(name)
        if len(beginning) < LEAST_DIGITS:
            raise self._no_version(name, digits, f"a version is named by {LEAST_DIGITS} hexadecimal digits or more")
        matching = [version for version in known if version.startswith(digits)]
        if len(matching) != 1:
            why = f"{len(matching)} versions begin with {digits!r}" if matching else did_you_mean(digits, known)
            raise self._no_version(name, digits, why)
        return name, matching[0], beginning

    def _no_version(self, name: str, digits: str, why: str) -> UsageError:
        reference = f"{name}@{digits}"
        return UsageError(f"{reference!r} names no version in {self.store.url}", why, f"aifx data ls {name}")

    def _unknown(self, name: str) -> UsageError:
        why, hint = "there is no data set yet", f"aifx data add {name} FILES --license SPDX"
        if name in FILE_KEYS:
            why, hint = "it is a key of aifx.toml, and its files are no data set", f"aifx data show {name}"
        elif names := self.names():
            why, hint = did_you_mean(name, names), "aifx data ls"
        return UsageError(f"no data set {name!r} in {self.store.url}", why, hint)

    def manifest(self, reference: str) -> Manifest:
        """Of the version that `reference` means. Raises UsageError, DataError if it is damaged."""
        return self._read(*self._find_folder(reference))[1]

    def open(self, reference: str) -> Version:
        """The version that `reference` means, copied into the cache if the root is remote.

        A copied file is compared with its SHA-256; `verification.check_files` compares those of a local root.
        Raises UsageError, DataError if it is damaged, EnvironmentFault if the store fails.
        """
        name, version, digits = self._find_folder(reference)
        artifact, manifest = self._read(name, version, digits)
        if self.local is not None:
            return Version(self.local / name / version, manifest)
        folder = cache_path("datasets") / artifact.digest
        return Version(fetch(self.store.below(f"{name}/{version}"), artifact, folder), manifest)

    def _read(self, name: str, version: str, digits: str) -> tuple[Artifact, Manifest]:
        """The version in a folder. Raises UsageError if its digest does not begin with these digits, DataError."""
        store = self.store.below(f"{name}/{version}")
        found = read_version(store, version)
        if found is None:
            raise DataError(f"no {store.url}/{MANIFEST}", "the version is not complete", f"aifx data ls {name}")
        artifact, manifest = found
        if not manifest.sha256.startswith(digits):
            raise self._no_version(name, digits, f"{manifest.reference} is {manifest.whole_reference}")
        return artifact, manifest

    def publish(self, version: Version) -> None:
        """Copy a version from a folder of this machine to a remote root; its manifest goes last."""
        source, target = open_store(str(version.path)), self.store.below(version.reference.replace("@", "/"))
        found = read_version(source, version.manifest.version)
        assert found is not None
        artifact, _ = found
        target.write(SUMS, iter([sums_of(artifact)]))
        with _damaged_data():
            copy_artifact(source, artifact, target)


def fetch(store: Store, artifact: Artifact, folder: Path) -> Path:
    """`folder` of the cache with the artefact of a store, of which only what is missing or damaged is copied.

    Raises DataError if it is damaged in the store, EnvironmentFault if the store fails.
    """
    with _damaged_data():
        try:
            check_once(folder, artifact, artifact.every_file)
        except DamagedArtifact:  # or not there yet
            copy_artifact(store, artifact, open_store(str(folder)))
            mark_checked(folder, artifact, artifact.every_file)
        except OSError as e:
            raise could_not(f"could not read {folder}", e, e.errno or errno.EIO, str(folder)) from e
    return folder


def open_catalog(root: str, project: Project | None = None) -> Catalog:
    """The data sets at a URL or folder, relative to the project. Raises UsageError for a URL that cannot be opened."""
    if "://" in root:
        return Catalog(open_store(root))
    folder = (project.root if project else Path.cwd()) / Path(root).expanduser()
    return Catalog(open_store(str(folder)))


@contextmanager
def _damaged_data() -> Iterator[None]:
    """Raise DataError for an artefact that is damaged."""
    try:
        yield
    except DamagedArtifact as e:
        raise DataError(e.what, e.why, "aifx data verify") from e


def check_dataset_name(name: str) -> str:
    """`name`. Raises UsageError for what is not a plain folder name."""
    if not _can_name(name):
        why = "a data set's name is letters, digits, '.', '_' and '-', 100 at most, and begins with a letter or digit"
        raise UsageError(f"{name!r} cannot name a data set", why, "aifx data ls")
    return name


def _can_name(name: str) -> bool:
    return bool(DATASET_NAME.fullmatch(name)) and name != LATEST

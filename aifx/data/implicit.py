"""Implicit versions: the files that a key of `[data]` names, such as `data.train`, as a version without a copy of them.

Training reads the files. What names their content, for provenance and for `aifx data verify`, is the SHA-256 of each as
the index of the project has it (`aifx.data.file_index`). A data set has the versions of the files that it was made of
(`file_versions`): files may change while it is made, and provenance names what was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aifx.config.sections import Section
from aifx.core.artifact import short
from aifx.core.digests import sha256_of_json
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.data.file_index import changed_file, scans_of
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.sources import SourceFile, named_file
from aifx.data.sections import DatasetSection, DocumentSection, ImagesSection, TextSection
from aifx.data.splits import SPLITS

_DIGITS = re.compile("[0-9a-f]{1,64}")

KEYS = (*(f"data.{split}" for split in SPLITS), "data.path")
"""The keys of `[data]` that name files."""

ROWS_FOLDER = "named-files"
"""The folder of the cache for the rows of such files, while a command looks at them."""


@dataclass(frozen=True)
class ImplicitVersion:
    """The files that a key names, and what reading found in each.

    Attributes:
        key: such as "data.train".
    """

    key: str
    files: Mapping[SourceFile, FileScan]

    @cached_property
    def sha256(self) -> str:
        """Over the name and the digest of each file that is not empty: those of text decompressed, as `FileScan` has
        them, others as they are on disk. Of each file in a store it is that of what the store records with it."""
        filled = ((file, scan) for file, scan in self.files.items() if file.is_remote or scan.num_bytes)
        return sha256_of_json([[file.name, file.stamp or scan.digest] for file, scan in filled])

    @property
    def reference(self) -> str:
        """ "data.train@<12 digits>"."""
        return f"{self.key}@{short(self.sha256)}"

    def check_unchanged(self) -> None:
        """Raises DataError for a file of this machine, not read as text, that no longer has the content it had."""
        local = {file: scan for file, scan in self.files.items() if not file.is_remote}
        if (file := changed_file(local, None)) is not None:
            raise DataError(f"{file.name} changed while it was read", "", "run it again when it is written")

    def record(self) -> dict[str, Any]:
        """Its record in provenance.json."""
        return {"sha256": self.sha256, "files": len(self.files)}


def named_files(section: Section, project: Project) -> dict[str, list[SourceFile]]:
    """The files that the keys of `[data]` name, by key: none if `data.dataset` is set or the data is files of pictures.

    Raises DataError.
    """
    is_pictures = isinstance(section, ImagesSection) and not section.is_archive
    if not isinstance(section, DatasetSection) or section.dataset is not None or is_pictures:
        return {}
    if isinstance(section, DocumentSection):
        found = {f"data.{split}": section.find(split, project) for split in SPLITS}
        return {key: files for key, files in found.items() if files}
    path = getattr(section, "path", None)
    return {"data.path": [named_file(path, project.root)]} if path else {}


def version_of_path(file: SourceFile, project: Project) -> dict[str, ImplicitVersion]:
    """The file of `data.path` by its key, before it is read; none if it is a stream, which can be read only once.

    Raises DataError if it cannot be read.
    """
    if not file.is_remote and not file.path.is_file():
        return {}  # reading it gives the error if it is not there
    return {"data.path": _version("data.path", [file], None, project)}


def split_reference(reference: str) -> tuple[str, str]:
    """The key and the digits of "data.train@3f2a"; "" for the digits of "data.train". Raises UsageError for others."""
    key, at, digits = reference.partition("@")
    if at and not _DIGITS.fullmatch(digits):
        why = "after @ is the beginning of a SHA-256, of 64 hexadecimal digits at most"
        raise UsageError(f"{reference!r} names no version", why, f"aifx data verify {key}")
    return key, digits


def find_implicit(reference: str, section: Section, project: Project, *, again: bool = False) -> ImplicitVersion:
    """The version that "data.train" means, or "data.train@3f2a".

    Args:
        again: read all files.

    Raises UsageError if the key names no files or others, DataError.
    """
    key, digits = split_reference(reference)
    named = named_files(section, project)
    if key not in named:
        if isinstance(section, ImagesSection) and section.dataset is None and not named:
            why, hint = "they have no rows until they are a data set", f"aifx data add pictures {section.path}"
            raise UsageError(f"{key} names files of pictures", why, hint)
        why = f"files are named by {', '.join(named)}" if named else "it names data.dataset"
        raise UsageError(f"the configuration has no files of {key}", why, "aifx config show")
    text_field = section.text_field if isinstance(section, TextSection) else None
    version = _version(key, named[key], text_field, project, again=again)
    if not version.sha256.startswith(digits):
        what, why = f"the files are not {key}@{short(digits)}", f"they are {version.reference} now"
        raise UsageError(what, why, "restore them from a copy")
    return version


def _version(
    key: str, files: list[SourceFile], text_field: str | None, project: Project, *, again: bool = False
) -> ImplicitVersion:
    scans = scans_of((file for file in files if not file.is_remote), text_field, project, again=again)
    return ImplicitVersion(key, {file: scans.get(file) or FileScan(file.stamp, file.bytes) for file in files})

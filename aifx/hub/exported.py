"""The folder that `aifx export` makes: an artefact, which is recognized when asked for again and verified by import."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from aifx.core.artifact import (
    MANIFEST,
    Artifact,
    DamagedArtifact,
    damaged_files,
    files_below,
    parse_artifact,
    publish,
    read_artifact,
    seal,
    seal_files,
    unfinished,
)
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, DataError, ExitCode, UsageError
from aifx.core.files import LOCK, UnsafeFile, read_input
from aifx.core.licensing import LicenseConflict
from aifx.core.progress import report_progress
from aifx.core.results import Result
from aifx.hub.card import CARD
from aifx.hub.comparison import LogitComparison
from aifx.hub.folder import ModelFolder
from aifx.hub.weights import file_digest

KIND, VERSION = "export", 1

_MARKS = (f'"kind": "{KIND}"'.encode(), b'"binding_digest"')
"""One of them is in the manifest of an export, whatever byte of it was changed. Other programs' files have neither."""


@dataclass(frozen=True)
class ExportedFile:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportedModel(Result):
    """The document that `aifx export --json` prints.

    Attributes:
        rounded: whether the weights were rounded to a narrower type than the run has.
        files: all of the folder.
        merged: with --merge, the folder's logits compared with those of the run's base with its adapters.
        is_new: False if the folder was there already, made of the same checkpoint with the same settings.
        license_conflicts: among the sources of the run's data and of that of the runs before it.
    """

    path: str
    run: str
    step: int
    architecture: str
    parameters: int
    dtype: str
    rounded: bool
    files: list[ExportedFile]
    merged: LogitComparison | None
    is_new: bool
    license_conflicts: tuple[LicenseConflict, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.merged is None or self.merged.passed else ExitCode.VERDICT


@dataclass(frozen=True)
class ExportContent:
    """The `content` of manifest.json in a folder of `aifx export`: what it was made of, by which the same command
    recognizes it.

    Attributes:
        aifx: version of aifx.
        state_digest: of the checkpoint, as `aifx ckpt show` prints it.
        binding_digest: SHA-256 of what the checkpoint names of its run: its id, settings, assets and base.
        shard_bytes: with the format hf.
        scan_layers: with the format orbax.
        merged: how far merging moved the logits.
    """

    aifx: str
    format: Literal["hf", "peft", "orbax"]
    run: str
    step: int
    state_digest: str
    binding_digest: str
    dtype: str
    shard_bytes: int | None
    scan_layers: bool | None
    merge: bool
    merged: LogitComparison | None = None


def folder_path(dest: Path) -> Path:
    """The absolute path of `dest` without `..`. Raises UsageError for a link, or if the folder above is missing."""
    is_link, dest = dest.expanduser().is_symlink(), dest.expanduser().resolve()
    if is_link:
        raise _exists(dest, "a link leads there")
    if not dest.parent.is_dir():
        raise UsageError(f"no folder {dest.parent}", f"{dest.name} is to be in it", f"mkdir -p {dest.parent}")
    return dest


def make_folder(
    made: ExportedModel, content: ExportContent, write: Callable[[Path], LogitComparison | None]
) -> ExportedModel:
    """Make the folder `made.path` of what `write` writes, unless it is there already and has the same content.

    The folder is removed if `write` raises.

    Args:
        made: without the folder's files.
        content: without the comparison of merged logits.
        write: writes files into the folder that it is given, and returns the comparison of merged logits.

    Raises UsageError if anything else is there.
    """
    dest = Path(made.path)
    artifact = None if os.path.lexists(dest) else _make(dest, content, write)
    is_new = artifact is not None
    artifact = artifact or _made_before(dest, content)
    manifest = artifact.encode()
    files = [ExportedFile(name, file.bytes, file.sha256) for name, file in artifact.every_file.items()]
    files.append(ExportedFile(MANIFEST, len(manifest), sha256_of(manifest)))
    files.sort(key=lambda file: file.name)
    return replace(made, files=files, merged=_content(artifact).merged, is_new=is_new)


def check_export(folder: ModelFolder) -> None:
    """Compare a folder that `aifx export` made with its manifest. Any other passes.

    Files may be links, as in the Hub's cache, and the model card may differ. Raises DataError for a file that is
    missing or changed.
    """
    root = folder.sealed
    try:
        data = read_input(root / MANIFEST)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return
    if not any(mark in data for mark in _MARKS):
        return
    hint = f"copy or export it again    (or, to import it as it is: rm {root / MANIFEST})"
    try:
        artifact = parse_artifact(data, root, KIND, VERSION)
    except DamagedArtifact as e:
        raise DataError(e.what, e.why, hint) from e
    with report_progress(f"verifying {folder.source}", artifact.size_bytes, "bytes") as progress:
        for name, file in artifact.files.items():
            try:
                is_same = file_digest(root / name) == (file.bytes, file.sha256)
            except (FileNotFoundError, NotADirectoryError):
                raise DataError(f"{root} is damaged", f"{name} is missing", hint) from None
            except (IsADirectoryError, UnsafeFile):
                raise DataError(f"{root} is damaged", f"{name} is not a regular file", hint) from None
            if not is_same:
                raise DataError(f"{root} is damaged", f"{name} has other bytes than were written", hint)
            progress.advance(file.bytes)


def _make(dest: Path, content: ExportContent, write: Callable[[Path], LogitComparison | None]) -> Artifact | None:
    """None if another process made the folder meanwhile."""
    with unfinished(dest) as folder:
        content = replace(content, merged=write(folder))
        card, paths = folder / CARD, files_below(folder)
        for path in paths:  # safetensors writes files that their owner alone can read
            path.chmod(stat.S_IMODE(card.stat().st_mode))
        files = seal_files(folder, [path for path in paths if path != card])
        artifact = Artifact(KIND, VERSION, asdict(content), files, seal_files(folder, [card]))
        seal(folder, artifact)
        try:
            publish(folder, dest)
        except OSError:
            if not os.path.lexists(dest):
                raise
            return None
    return artifact


def _made_before(dest: Path, content: ExportContent) -> Artifact:
    """The artefact in a folder that was made before of the same. Raises UsageError for any other."""
    try:
        artifact = read_artifact(dest, KIND, VERSION)
        found = _content(artifact)
    except (OSError, ValueError, AifxError) as e:
        raise _exists(dest, f"it has no whole {MANIFEST} of aifx export") from e
    wanted = asdict(replace(content, merged=found.merged))
    if others := [key for key, value in asdict(found).items() if value != wanted[key]]:
        raise _exists(dest, f"its {MANIFEST} has another {' and another '.join(others)}")
    with report_progress(f"comparing {dest}", artifact.size_bytes, "bytes") as progress:
        if damaged := damaged_files(dest, artifact, progress=progress):
            raise _exists(dest, damaged[0])
    with suppress(OSError):  # such as on a disk that can only be read
        (dest / LOCK).unlink()  # of a process that was killed just after it published the folder
    return artifact


def _content(artifact: Artifact) -> ExportContent:
    """The content of a folder's manifest: the sources that it was made of. Raises ValueError."""
    return TypeAdapter(ExportContent).validate_python(artifact.content)


def _exists(dest: Path, why: str) -> UsageError:
    return UsageError(f"{dest} exists already", f"{why}; aifx replaces no folder", f"aifx export {dest}-2")

"""The folder that `aifx export` makes: written aside, renamed when it is whole, and recognized when asked for again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from aifx.checkpoint.inventory import files_below, seal_files, sync_folders
from aifx.core.digests import size_and_sha256
from aifx.core.errors import UsageError
from aifx.core.files import UnsafeFile, open_file, read_file
from aifx.core.json_files import sync_directory, write_json
from aifx.hub.comparison import LogitComparison

RECORD = "export.json"


@dataclass(frozen=True)
class ExportedFile:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportedModel:
    """What `aifx export --json` prints.

    Attributes:
        rounded: whether the weights were rounded to a narrower type than the run has.
        files: all of the folder.
        merged: with --merge, the folder's logits compared with those of the run's base with its adapters.
        is_new: False if the folder was there already, made of the same checkpoint with the same settings.
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


@dataclass(frozen=True)
class ExportFile:
    """export.json in a folder of `aifx export`: what it was made of, by which the same command recognizes it.

    Attributes:
        aifx: version of aifx.
        state_digest: of the checkpoint, as `aifx ckpt show` prints it.
        binding_digest: SHA-256 of what the checkpoint names of its run: its id, settings, assets and base.
        shard_bytes: with the format hf.
        scan_layers: with the format orbax.
        merged: how far merging moved the logits.
        files: all others of the folder.
    """

    schema_version: Literal[1]
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
    files: tuple[ExportedFile, ...] = ()


def folder_path(dest: Path) -> Path:
    """The absolute path of `dest` without `..`. Raises UsageError for a link, or if the folder above is missing."""
    is_link, dest = dest.expanduser().is_symlink(), dest.expanduser().resolve()
    if is_link:
        raise _exists(dest, "a link leads there")
    if not dest.parent.is_dir():
        raise UsageError(f"no folder {dest.parent}", f"{dest.name} is to be in it", f"mkdir -p {dest.parent}")
    return dest


def make_folder(
    made: ExportedModel, record: ExportFile, write: Callable[[Path], LogitComparison | None]
) -> ExportedModel:
    """Make the folder `made.path` of what `write` writes, unless it is there already and has the same record.

    The folder is removed if `write` raises.

    Args:
        made: without the folder's files.
        record: without the folder's files.
        write: writes files into the folder that it is given, and returns the comparison of merged logits.

    Raises UsageError if anything else is there.
    """
    dest = Path(made.path)
    if os.path.lexists(dest):
        record, is_new = _made_before(dest, record), False
    else:
        record, is_new = _make(dest, record, write), True
    files = sorted([*record.files, _exported_file(dest, RECORD)], key=lambda file: file.name)
    return replace(made, files=files, merged=record.merged, is_new=is_new)


def _make(dest: Path, record: ExportFile, write: Callable[[Path], LogitComparison | None]) -> ExportFile:
    staged = dest.parent / f".{dest.name}.exporting"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        merged = write(staged)
        sealed = seal_files(staged, sorted(files_below(staged)))
        files = tuple(ExportedFile(name, size, sha) for name, (size, sha) in sealed.items())
        record = replace(record, merged=merged, files=files)
        write_json(staged / RECORD, asdict(record))
        sync_folders(staged)
        staged.rename(dest)
        sync_directory(dest.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return record


def _made_before(dest: Path, record: ExportFile) -> ExportFile:
    """The record in a folder that was made before of the same. Raises UsageError for any other."""
    try:
        found = TypeAdapter(ExportFile).validate_json(read_file(dest / RECORD))
    except (OSError, ValueError, UnsafeFile):
        raise _exists(dest, f"it has no {RECORD} of aifx export") from None
    wanted = asdict(replace(record, merged=found.merged, files=found.files))
    if others := [key for key, value in asdict(found).items() if value != wanted[key]]:
        raise _exists(dest, f"its {RECORD} has another {' and another '.join(others)}")
    for file in found.files:
        try:
            is_same = _exported_file(dest, file.name) == file
        except (OSError, ValueError, UnsafeFile):
            is_same = False
        if not is_same:
            raise _exists(dest, f"{file.name} is not what aifx wrote")
    return found


def _exported_file(folder: Path, name: str) -> ExportedFile:
    with open(open_file(folder / name, below=folder), "rb") as file:
        return ExportedFile(name, *size_and_sha256(file))


def _exists(dest: Path, why: str) -> UsageError:
    return UsageError(f"{dest} exists already", f"{why}; aifx replaces no folder", f"aifx export {dest}-2")

"""An artefact: a folder that is sealed when it is whole, and never changes afterwards.

    <folder>/
        manifest.json    what the artefact is, each file with its size and SHA-256, and the digest of all that
        ...              the files
        <file>.blocks    SHA-256 of each 64 KiB of a file that is read in parts, one after the other; a file, too

It is written in a folder beside its place (`unfinished`), also by several processes. Each process seals what it wrote
(`seal_files`), one writes the manifest (`seal`), and a rename puts the folder in its place (`publish`). A folder
without a manifest is no artefact. `aifx.core.artifact_copies` takes artefacts to stores and back.

References between artefacts are whole digests. Twelve digits (`short`) are for people and for names of folders.

A file may be in the folder of another artefact instead: the notes name its place, so that it can move without changing
the digest.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NoReturn, TypedDict, TypeVar

from aifx.core.digests import (
    READ_BYTES,
    BlockDigests,
    Sha256,
    sha256_of,
    sha256_of_file,
    sha256_of_json,
    sha256_of_values,
)
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.files import (
    DOCUMENT_LIMIT,
    LOCK,
    REMOVED,
    FolderBusy,
    UnsafeFile,
    holding,
    make_private,
    open_file,
    read_file,
    remove_folder,
    remove_temporary,
    replace_file,
)
from aifx.core.json_files import encode, sync_directory
from aifx.core.json_values import plain
from aifx.core.os_errors import PASSING, TRANSIENT, UNREADABLE, naming
from aifx.core.parsing import parse_json
from aifx.core.progress import Reporter
from aifx.core.project import cache_location, cache_path

MANIFEST = "manifest.json"
BLOCKS = ".blocks"
"""The file `X.blocks` has the digests of the blocks of the file `X`."""

FORMAT = 1
SHORT_DIGITS = 12
THREADS = 4
UNFINISHED = ".tmp-"
"""Mark in the name of a folder that is being written, between the name that it gets and 16 digits."""

_STRAY = re.compile(rf".+{re.escape(UNFINISHED)}[0-9a-f]{{16}}|{re.escape(REMOVED)}[0-9a-f]{{12}}", re.DOTALL)
"""Names of folders that killed writers leave."""

ELSEWHERE = "elsewhere"
"""The note that has the places of files in folders of other artefacts: "<its digest>/<name there>", by file."""

_DIGEST = re.compile("[0-9a-f]{64}")
_MOST_BYTES = 2**63 - 1
"""Of a file, as file systems have it."""

T = TypeVar("T")


class DamagedArtifact(AifxError):
    """A file of an artefact is missing or differs from its digest. `why` names the file and the difference."""

    def __init__(self, place: object, why: str, hint: str = "") -> None:
        super().__init__(f"{place} is damaged", why, hint)
        self.why: str = why


@dataclass(frozen=True)
class SealedFile:
    """A file of an artefact.

    Attributes:
        sha256: of all its bytes, 64 hexadecimal digits.
    """

    bytes: int
    sha256: str


Files = Mapping[str, SealedFile]
"""Files by their path within the artefact, with "/" between its parts."""


@dataclass(frozen=True)
class Artifact:
    """The content of a manifest.

    Attributes:
        kind: "checkpoint", "dataset".
        version: of the kind's content.
        content: what the artefact is, as JSON has it.
        descriptions: files that say the same in other forms, and can be made again: not part of the digest.
        notes: what is not part of the digest, such as a name.
        digest: SHA-256 of kind, version, content and files.
    """

    kind: str
    version: int
    content: Mapping[str, Any]
    files: Files
    descriptions: Files = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return sha256_of_json(self._identity)

    @cached_property
    def every_file(self) -> Files:
        """All files but the manifest."""
        return {**self.files, **self.descriptions}

    @cached_property
    def elsewhere(self) -> dict[str, tuple[str, str]]:
        """The files in folders of other artefacts: the digest of the artefact, and the name of the file there."""
        places = self.notes.get(ELSEWHERE, {})
        return {name: (place.partition("/")[0], place.partition("/")[2]) for name, place in places.items()}

    @cached_property
    def own_files(self) -> Files:
        """All files in its own folder but the manifest."""
        return {name: file for name, file in self.every_file.items() if name not in self.elsewhere}

    @cached_property
    def files_elsewhere(self) -> dict[str, dict[str, SealedFile]]:
        """The files in the folders of other artefacts, by digest, and by their names there."""
        found: dict[str, dict[str, SealedFile]] = {}
        for own, (other, name) in self.elsewhere.items():
            found.setdefault(other, {})[name] = self.files[own]
        return found

    @property
    def size_bytes(self) -> int:
        """Bytes of all files in its own folder but the manifest."""
        return sum(file.bytes for file in self.own_files.values())

    def encode(self) -> bytes:
        """The bytes of the manifest: always the same for the same artefact."""
        rest = {"digest": self.digest, "descriptions": _entries(self.descriptions), "notes": plain(self.notes)}
        document = {**self._identity, **rest, "checksum": sha256_of_json(rest)}
        return encode(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @cached_property
    def _identity(self) -> dict[str, Any]:
        named = {"format": FORMAT, "kind": self.kind, "version": self.version}
        return {**named, "content": plain(self.content), "files": _entries(self.files)}


class ManifestFile(TypedDict):
    """manifest.json as JSON has it; that of a kind also has `kind`, `version`, `content` and `notes` (docs/schemas)."""

    format: Literal[1]
    files: dict[str, SealedFile]
    digest: str
    descriptions: dict[str, SealedFile]
    checksum: str


def short(digest: str) -> str:
    """The beginning of a digest, for people."""
    return digest[:SHORT_DIGITS]


def short_reference(reference: str) -> str:
    """ "name@digest" with the beginning of its digest, for people."""
    name, at, digest = reference.partition("@")
    return f"{name}{at}{short(digest)}"


def parse_artifact(data: bytes, place: object, kind: str, version: int) -> Artifact:
    """The artefact whose manifest has these bytes.

    Args:
        place: for messages.
        version: of the kind's content that the caller reads.

    Raises DamagedArtifact for one that is not as it was written, AifxError for another kind or version.
    """
    try:
        doc = parse_json(data)
        if "checksum" not in doc:
            named = f"format {doc['format']!r}" if "format" in doc else "an unknown format"
            raise ValueError(f"it is in {named} without a checksum; this aifx reads format {FORMAT} with a checksum")
        checksum, rest = doc.pop("checksum"), {name: doc.pop(name) for name in ("digest", "descriptions", "notes")}
        if checksum != sha256_of_json(rest):
            raise ValueError("its checksum does not match its content")
        found = (doc["format"], doc["kind"], doc["version"])
        # A flipped bit must not pass for another format.
        if found != (FORMAT, kind, version) and rest["digest"] == sha256_of_json(doc):
            hint = "use the aifx that made it, or make it again"
            what = f"{place} is of another format"
            read = f"this aifx reads version {version} in format {FORMAT}"
            why = f"it is version {found[2]!r} in format {found[0]!r}; {read}"
            if found[1] != kind:
                what, why = f"{place} is of another kind", f"its {MANIFEST} has the kind {found[1]!r} and not {kind!r}"
            raise AifxError(what, why, hint)
        files, descriptions = parse_files(doc["files"]), parse_files(rest["descriptions"])
        if both := sorted(files.keys() & descriptions.keys()):
            raise ValueError(f"it has {both[0]!r} twice")  # one of them is not in the digest
        if not isinstance(doc["content"], dict) or not isinstance(rest["notes"], dict):
            raise ValueError("its content or its notes are not an object")
        _check_elsewhere(files, rest["notes"].get(ELSEWHERE, {}))
        artifact = Artifact(kind, version, doc["content"], files, descriptions, rest["notes"])
        if data != artifact.encode():
            raise ValueError("its bytes are not those that were written")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DamagedArtifact(place, f"{MANIFEST}: {e}") from e
    return artifact


def read_artifact(folder: Path, kind: str, version: int) -> Artifact:
    """The artefact in a folder of this machine, of which only the manifest is read.

    Raises FileNotFoundError if there is no manifest, OSError if the machine refuses to read it, and as
    `parse_artifact`.
    """
    try:
        with naming(folder / MANIFEST):
            data = read_file(folder / MANIFEST, below=folder)
    except UnsafeFile as e:
        raise DamagedArtifact(folder, unsafe_file(folder, e)) from e
    except NotADirectoryError as e:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / MANIFEST)) from e
    except OSError as e:
        if isinstance(e, FileNotFoundError) or e.errno in UNREADABLE:
            raise
        raise DamagedArtifact(folder, f"{MANIFEST}: {e}") from e
    return parse_artifact(data, folder, kind, version)


# Writing
#
# After a kill or a loss of power, the place has the whole artefact or none. That needs an order, since a file system
# may put renames and data on the disk in any other (Pillai et al. 2014, "All File Systems Are Not Created Equal",
# OSDI):
#
# 1. the files, in a folder beside the place, with fsync (`seal_files`);
# 2. fsync of the folders: that of a file does not make its name durable (man 2 fsync);
# 3. the manifest last, as a new file, with fsync and a rename: a folder without one is no artefact (`seal`);
# 4. one rename of the folder to its place, which is atomic, and fsync of the folder above (`publish`).


@contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, or one beside data that others may share. Its name survives a loss of power.

    Raises EnvironmentFault if it cannot be written.
    """
    is_cache = folder.is_relative_to(cache_location())
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        if is_cache:
            make_private(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        hint = "AIFX_CACHE_DIR=/path/to/write/to aifx train" if is_cache else f"ls -ld {folder}"
        raise EnvironmentFault(f"{folder} cannot be written", error.strerror or "", hint) from error


@contextmanager
def unfinished(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, to be renamed to it. It is deleted when the block ends, unless it was renamed.

    This process holds it, so that others know it from what killed ones left. What those left of the same place is
    deleted first; what is beside it can be the user's. Its mode is that of any new folder. Raises as `writable_folder`
    does, OSError.
    """
    held = ExitStack()
    with writable_folder(place.parent):
        _remove_strays(place.parent, re.compile(f"{re.escape(place.name + UNFINISHED)}[0-9a-f]{{16}}"))
        folder = _held_folder(place, held)
    try:
        yield folder
    finally:
        held.close()
        shutil.rmtree(folder, ignore_errors=True)


def _held_folder(place: Path, held: ExitStack) -> Path:
    while True:
        folder = place.with_name(f"{place.name}{UNFINISHED}{secrets.token_hex(8)}")
        folder.mkdir()
        try:
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXU)  # whatever the umask
            held.enter_context(holding(folder, str(folder), "builds it", makes=False))
        except (FolderBusy, FileNotFoundError):
            continue  # another process sweeps it, or has done so
        except OSError as e:
            if e.errno in PASSING | UNREADABLE:  # a full disk, too many open files
                shutil.rmtree(folder, ignore_errors=True)
                raise
            # otherwise a file system without locks, on which nobody sweeps
        return folder


def is_unfinished(name: str) -> bool:
    """Whether a folder of this name is one that `unfinished` makes, or that was being deleted."""
    return _STRAY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Delete what killed writers left in a folder of aifx's own, such as one of caches, as far as the disk allows."""
    _remove_strays(folder, _STRAY)
    remove_temporary(folder)


def _remove_strays(folder: Path, names: re.Pattern[str]) -> None:
    with suppress(OSError):
        for entry in [entry for entry in os.scandir(folder) if names.fullmatch(entry.name)]:
            with suppress(OSError, FolderBusy):
                if entry.is_dir(follow_symlinks=False):
                    # With other digits it is still of the same place, whose next writer deletes it if this is killed.
                    hidden = Path(folder, f"{entry.name[:-16]}{secrets.token_hex(8)}")
                    remove_folder(Path(entry.path), entry.path, hidden)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in its folders, in order, but its manifest and locks. Raises OSError.

    A link to a folder is among them, so that `seal_files` refuses it.
    """
    found = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        found += [Path(parent, name) for name in names]
        found += [path for name in folders if (path := Path(parent, name)).is_symlink()]
    return sorted(path for path in found if path != folder / MANIFEST and path.name != LOCK)


def seal_files(folder: Path, paths: Iterable[Path], *, blocks: bool = False) -> dict[str, SealedFile]:
    """Make files of the artefact in `folder` survive a loss of power. Returns them with their sizes and SHA-256.

    While the disk takes one file, the processor digests another.

    Args:
        blocks: write the digests of its blocks beside each file, as `<file>.blocks`, for readers of parts of it.

    Raises UnsafeFile for a link, a FIFO or a device, OSError.
    """

    def seal_one(path: Path) -> list[tuple[str, SealedFile]]:
        name = path.relative_to(folder).as_posix()
        digests = BlockDigests() if blocks else None
        with naming(path), open(open_file(path, below=folder), "rb") as file:
            os.fsync(file.fileno())
            sealed = [(name, _summary(file, digests))]
        if digests is not None:
            beside, data = path.with_name(f"{path.name}{BLOCKS}"), digests.finish()
            with naming(beside):
                beside.write_bytes(data)
                sync_file(beside)
            sealed.append((f"{name}{BLOCKS}", SealedFile(len(data), sha256_of(data))))
        return sealed

    with ThreadPoolExecutor(THREADS) as pool:
        return {name: file for found in pool.map(seal_one, paths) for name, file in found}


def seal(folder: Path, artifact: Artifact, *, limit: int | None = None) -> None:
    """Write the manifest of the artefact in `folder`, after which nothing in it may change. It survives a loss of power
    if its files do (`seal_files`).

    Args:
        limit: bytes of a manifest that the readers of this kind take; by default DOCUMENT_LIMIT, as `read_artifact`.

    Raises DamagedArtifact if a file has another size than when it was sealed, AifxError for more files than a manifest
    can name, OSError.
    """
    if why := missing_file(folder, artifact.own_files):
        raise DamagedArtifact(folder, why)
    data, limit = artifact.encode(), DOCUMENT_LIMIT if limit is None else limit
    if len(data) > limit:
        why = f"its {MANIFEST} would have {len(data) >> 20} MiB, and aifx reads {limit >> 20} MiB"
        raise AifxError(f"{folder} has too many files: {len(artifact.every_file):,}", why, "make fewer and larger ones")
    sync_folders(folder)
    replace_file(folder / MANIFEST, data)


def publish(folder: Path, place: Path) -> None:
    """Put a sealed folder in its place, without its lock. Raises OSError if something is there but an empty folder."""
    os.rename(folder, place)
    with suppress(OSError):
        (place / LOCK).unlink()  # not before: nobody may sweep it
    sync_directory(place.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file survive a loss of power."""
    with naming(path), open(open_file(path), "rb") as file:
        os.fsync(file.fileno())


def sync_folders(folder: Path) -> None:
    """Make the names of all files in a folder and in its folders survive a loss of power."""
    for parent, _, _ in os.walk(folder, onerror=_raise):
        sync_directory(Path(parent))


def _raise(error: OSError) -> NoReturn:
    raise error


def cached(
    place: Path,
    kind: str,
    version: int,
    make: Callable[[Path], tuple[Mapping[str, Any], Files]],
    open_it: Callable[[Path, Artifact], T],
    warn: Callable[[str], None],
) -> T:
    """The artefact at `place`, as `open_it` returns it; it is made first if it is missing or damaged.

    Several processes may make it at the same time; the first one's stays.

    Args:
        make: writes the files into the folder that it is given; returns the content, and what `seal_files` returned.
        open_it: raises DamagedArtifact for files that it finds damaged.
        warn: called with a sentence if it is there and damaged.

    Raises EnvironmentFault if it cannot be put in place, and what `make` raises.
    """
    found = _opened(place, kind, version, open_it, warn)
    if found is not None:
        return found
    sweep(place.parent)
    with unfinished(place) as folder:
        content, files = make(folder)
        seal(folder, Artifact(kind, version, content, files))
        folder.chmod(stat.S_IMODE(place.parent.stat().st_mode) & ~stat.S_ISVTX)  # beside shared data it is shared, too
        why = "something else writes there"
        for _ in range(10):
            in_the_way = _identity(place)
            try:
                publish(folder, place)
            except OSError as e:  # another process was first, or something damaged is in the way
                why = str(e)
            else:
                try:
                    return open_it(place, read_artifact(place, kind, version))
                except DamagedArtifact as e:
                    what = f"{place} is damaged at once: {e.why}"
                    raise EnvironmentFault(what, "aifx reads back other bytes than it wrote", "aifx doctor") from e
            if (found := _opened(place, kind, version, open_it, lambda _: None)) is not None:
                return found
            _remove(place, in_the_way)
        raise EnvironmentFault(f"{place} cannot be put in place", why, f"rm -r {place}")


def _opened(
    place: Path, kind: str, version: int, open_it: Callable[[Path, Artifact], T], warn: Callable[[str], None]
) -> T | None:
    """The artefact at `place`, as `open_it` returns it; None if there is none that can be used."""
    try:
        try:
            artifact = read_artifact(place, kind, version)
        except FileNotFoundError as e:
            if not os.path.lexists(place):
                return None
            raise DamagedArtifact(place, f"it has no {MANIFEST}") from e
        except AifxError as e:  # also one of another format
            raise DamagedArtifact(place, e.why) from e
        if missing := missing_file(place, artifact.every_file):
            raise DamagedArtifact(place, missing)
        return open_it(place, artifact)
    except DamagedArtifact as e:
        why = e.why
    except OSError as e:
        if e.errno in UNREADABLE - TRANSIENT:  # says nothing about the artefact
            raise
        why = str(e)
    warn(f"the {kind} {place} is damaged ({why}); making it again")
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _remove(place: Path, found: tuple[int, int] | None) -> None:
    """Delete what is at `place`, unless another process has put something else there since it was `found`."""
    hidden = place.with_name(f"{REMOVED}{secrets.token_hex(6)}")
    with suppress(OSError):
        if not stat.S_ISDIR(place.lstat().st_mode):
            place.unlink()
            return
        os.rename(place, hidden)
        if _identity(hidden) == found:
            shutil.rmtree(hidden)
        else:
            os.rename(hidden, place)


# Verifying


def missing_file(folder: Path, files: Files) -> str | None:
    """The first file that is missing or has another size, found without reading any; None if there is none."""
    for name, file in files.items():
        try:
            found = (folder / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        if not stat.S_ISREG(found.st_mode):
            return f"{name} is not a regular file"
        if found.st_size != file.bytes:
            return other_size(name, found.st_size, file)
    return None


def stray_files(folder: Path, artifact: Artifact) -> list[Path]:
    """The files below `folder` that its manifest does not name. Raises OSError."""
    return [path for path in files_below(folder) if path.relative_to(folder).as_posix() not in artifact.every_file]


def damaged_files(
    folder: Path, artifact: Artifact, names: Iterable[str] | None = None, progress: Reporter | None = None
) -> list[str]:
    """The damage of the files of the artefact in `folder`, one line per file. Reads all of them.

    Args:
        names: of the files to read; by default all.

    Raises OSError if the machine refuses to read one.
    """

    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(
            lambda name: damage(folder, name, artifact.every_file[name], progress),
            artifact.every_file if names is None else names,
        )
        return [why for why in found if why]


def damage(folder: Path, name: str, file: SealedFile, progress: Reporter | None = None) -> str | None:
    """The damage of a file of the artefact in `folder`; None if its bytes have its digest. Reads all of it.

    Raises OSError if the machine refuses to read it.
    """
    path = folder / name
    try:
        with naming(path), open(open_file(path, below=folder), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != file.bytes:
                return other_size(name, size, file)
            is_same = sha256_of_file(stream, progress) == file.sha256
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except UnsafeFile as e:
        return unsafe_file(folder, e)
    return None if is_same else f"{name} has other bytes than were written"


def check_once(folder: Path, artifact: Artifact, names: Iterable[str], progress: Reporter | None = None) -> None:
    """Compare files with their digests, unless they are as they were when they were last compared or written.

    That is: their sizes, inodes, mtimes, and ctimes, which no program can set. A change of the same size is not seen
    that leaves the ctime: bits that decay on the disk, writes to the device or through an open mapping of the file, a
    write within the same few milliseconds as the one before, a clock that was set back. `damaged_files` sees all.

    Raises DamagedArtifact.
    """
    names = list(names)
    mark = _mark(folder, artifact, names)
    if mark is not None and mark.exists():
        return
    if damaged := damaged_files(folder, artifact, names, progress):
        raise DamagedArtifact(folder, damaged[0])
    _touch(mark)  # of the files as they were before they were read


def mark_checked(folder: Path, artifact: Artifact, names: Iterable[str]) -> None:
    """Record in the cache that files, as they are now, are those of the manifest."""
    _touch(_mark(folder, artifact, names))


def _touch(mark: Path | None) -> None:
    if mark is not None:
        with suppress(OSError, EnvironmentFault), writable_folder(mark.parent):
            mark.touch()


def _mark(folder: Path, artifact: Artifact, names: Iterable[str]) -> Path | None:
    """The file that records a comparison, named by the size and times of each file; None if one is missing."""
    try:
        found = [(name, (folder / name).lstat()) for name in names]
    except OSError:
        return None
    state = [(name, one.st_size, one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for name, one in found]
    return cache_path("verified") / sha256_of_values(artifact.digest, str(folder), state)


def read_sealed(folder: Path, artifact: Artifact, name: str, *, limit: int = DOCUMENT_LIMIT) -> bytes:
    """The content of a file, compared with its digest. Raises DamagedArtifact, also for more than `limit` bytes, and
    OSError."""
    try:
        with naming(folder / name):
            data = read_file(folder / name, below=folder, limit=limit)
    except (FileNotFoundError, NotADirectoryError, UnsafeFile) as e:
        why = unsafe_file(folder, e) if isinstance(e, UnsafeFile) else f"{name} is missing"
        raise DamagedArtifact(folder, why) from e
    if sha256_of(data) != artifact.every_file[name].sha256:
        raise DamagedArtifact(folder, f"{name} has other bytes than were written")
    return data


def unsafe_file(folder: Path, error: UnsafeFile) -> str:
    """The damage of a file that is a link or a FIFO, or is below a link, with its name in the artefact."""
    return error.what.removeprefix(f"{folder}/")


def other_size(name: str, found: int, file: SealedFile) -> str:
    return f"{name} has {found:,} bytes and had {file.bytes:,}"


def _summary(file: IO[bytes], blocks: BlockDigests | None) -> SealedFile:
    digest, size = Sha256(), 0
    for data in iter(partial(file.read, READ_BYTES), b""):
        digest.update(data)
        size += len(data)
        if blocks is not None:
            blocks.update(data)
    return SealedFile(size, digest.hexdigest())


def _entries(files: Files) -> dict[str, Any]:
    return {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in sorted(files.items())}


def parse_files(entries: Mapping[str, Any]) -> dict[str, SealedFile]:
    """The files in a list, which may be a stranger's. Raises ValueError for names outside of the artefact."""
    files = {}
    for name, entry in entries.items():
        _check_name(name)
        size, sha256 = (entry.get(key) for key in ("bytes", "sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or not 0 <= size <= _MOST_BYTES:
            raise ValueError(f"the size of {name!r} is no number of bytes from 0 to {_MOST_BYTES}")
        if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
            raise ValueError(f"the SHA-256 of {name!r} is not 64 hexadecimal digits")
        files[name] = SealedFile(size, sha256)
    return files


def _check_elsewhere(files: Files, places: Mapping[str, str]) -> None:
    """Raise ValueError for places of files that are none of the artefact's, or outside of other artefacts."""
    for name, place in places.items():
        digest, _, there = place.partition("/")
        if name not in files or not _DIGEST.fullmatch(digest):
            raise ValueError(f"it has {name!r} in {place!r}, which is no place of a file in another artefact")
        _check_name(there)


def _check_name(name: str) -> None:
    """Raise ValueError for a name outside of the folder of an artefact."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or name in ("", ".", MANIFEST) or str(path) != name:
        raise ValueError(f"it names {name!r}, which is not a path of a file in the folder")

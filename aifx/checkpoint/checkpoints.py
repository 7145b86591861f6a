"""The checkpoints of a run: saved in the background, verified when read, kept by age and by score."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aifx.checkpoint import folders
from aifx.checkpoint.capture import HostCopies
from aifx.checkpoint.digest import array_digest, array_digests, digest_in_order, in_order
from aifx.checkpoint.faults import check_room, is_transient, while_reading, while_writing
from aifx.checkpoint.listing import CheckpointInfo, checkpoint_info, kept, list_checkpoints
from aifx.checkpoint.manifest import ArrayEntry, Damaged, Manifest, read_manifest, step_directories
from aifx.checkpoint.naming import Tree, flat_names, from_named, nest
from aifx.checkpoint.placing import check_fit, place
from aifx.checkpoint.storage import read_arrays, write_checkpoint
from aifx.config.best_by import Score
from aifx.config.sections import CheckpointSection
from aifx.core.errors import CheckpointError
from aifx.core.files import UnsafeFile, check_tree

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Restored:
    """A state as it was saved."""

    step: int
    state: Tree
    host: dict[str, Any]


@dataclass(frozen=True)
class Verification:
    """The result of reading a checkpoint and comparing it with its digests."""

    state_digest: str
    damaged: tuple[str, ...]  # names of arrays whose bytes are not those that were saved


class _Background:
    """Runs one job at a time in a thread of its own. The next call raises what a job raised."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` once the one before is done. Raises what that one raised."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as e:
                self._failure = e

        # A daemon: a process that must end at once does not wait for it; what it leaves, the next start cleans.
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the job is done, waiting up to `timeout_s` for it. Raises what it raised, once."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True


class Checkpoints:
    """The checkpoints in one folder.

    Any process may read while another trains. Only the process that holds the run may save, or set damaged
    checkpoints aside; its first such call removes what a killed process left.

    Args:
        before_commit: called in the saving thread before a checkpoint counts, to write what it relies on (metrics).
        on_commit: called in the saving thread once it does.
        warn: called in the saving thread with what went wrong and did not prevent the checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        section: CheckpointSection,
        *,
        before_commit: Callable[[], None] = lambda: None,
        on_commit: Callable[[CheckpointInfo], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.directory = directory
        self.section = section
        self._before_commit = before_commit
        self._on_commit = on_commit
        self._warn = warn
        self._binding: Callable[[], Mapping[str, Any]] = dict
        self._background = _Background()
        self._copies = HostCopies()
        self._cleaned = False

    def bind(self, binding: Callable[[], Mapping[str, Any]]) -> None:
        """Call `binding` at each save for the manifest's entry on the run (see `aifx.runs.binding`)."""
        self._binding = binding

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return list(step_directories(self.directory))

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step of the checkpoint with the best score; None if none was validated."""
        return next((i.step for i in self.infos() if i.is_best), None)

    def infos(self) -> list[CheckpointInfo]:
        """The manifests' summaries by step; reads no array."""
        return list_checkpoints(self.directory)

    def save(
        self,
        step: int,
        state: Tree,
        *,
        host: Mapping[str, Any],
        validation_loss: float | None = None,
        score: Score | None = None,
        force: bool = False,
    ) -> None:
        """Save `state` as the checkpoint of `step`; the arrays may be donated when this returns.

        Writing continues in the background unless the configuration forbids it. This first waits for the previous save
        and raises what that raised, such as EnvironmentFault for a full disk. A step that already has a checkpoint
        keeps it, unless `force` is set. Without a `score` it cannot be the best one.
        """
        self._own()
        self._background.wait()
        if not force and step in step_directories(self.directory):
            return
        arrays = self._copies.take(flat_names(state))
        size = sum(array.nbytes for array in arrays.values())
        run = dict(self._binding())
        manifest = Manifest(step, time.time(), validation_loss, size, {}, dict(host), score, run)
        self._background.start(partial(self._write, manifest, arrays))
        if not self.section.asynchronous:
            self._background.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait up to `timeout_s` and return whether everything is saved. Raises what a save raised."""
        return self._background.wait(timeout_s)

    def restore(self, step: int, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
        """The state in the structure, shapes and shardings of `abstract`, and the host's part of the checkpoint.

        If `abstract` holds only some of the top-level parts ({"params": ...}), only those are read. The digest of every
        array is verified. Raises CheckpointError if the checkpoint is missing, damaged (`Damaged`) or does not fit.
        """
        folder, manifest = self._open(step)
        wanted = flat_names(abstract)
        check_fit(folder, manifest, wanted)
        return from_named(nest(self.read(step, wanted)), abstract), dict(manifest.host)

    def read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Some arrays of a checkpoint by name, in the shapes and shardings of `wanted`. Their digests are verified."""
        folder, manifest = self._open(step)
        arrays = _read(folder, manifest, list(wanted))
        found = array_digests(arrays, workers=4)
        if damaged := [name for name, digest in found.items() if digest != manifest.arrays[name].sha256]:
            more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            why = f"bytes differ from what was saved: {', '.join(damaged[:3])}{more}"
            raise Damaged(f"checkpoint {folder} is damaged", why)
        return place(arrays, wanted)

    def latest_good(self, abstract: Tree) -> Restored | None:
        """The newest checkpoint that is whole, or None. Damaged ones newer than it are set aside, with a warning."""
        self._own()
        for step in reversed(self.steps()):
            try:
                state, host = self.restore(step, abstract)
            except Damaged as e:
                aside = folders.set_aside(self.directory, step)
                logger.warning(f"the checkpoint of step {step} is damaged ({e.why}); it was set aside as {aside.name}")
                continue
            return Restored(step, state, host)
        return None

    def verify(self, step: int) -> Verification:
        """Read every array and compare it with its digest. Raises `Damaged` if something cannot be read at all."""
        folder, manifest = self._open(step)
        damaged: list[str] = []

        def read() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
            for names in _batches(manifest):
                for name, array in _read(folder, manifest, names).items():
                    if array_digest(array) != manifest.arrays[name].sha256:
                        damaged.append(name)
                    yield name, array

        return Verification(digest_in_order(read()), tuple(damaged))

    def _open(self, step: int) -> tuple[Path, Manifest]:
        """The folder of a checkpoint and its manifest. Raises CheckpointError."""
        there = step_directories(self.directory)
        if step not in there:
            have = f"there is {', '.join(map(str, there))}" if there else "there is none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}", have, "aifx ckpt ls")
        try:
            return there[step], read_manifest(there[step])
        except OSError as e:
            raise while_reading(e, there[step]) from e

    def _own(self) -> None:
        if not self._cleaned:
            folders.clean(self.directory)
            self._cleaned = True

    def _write(self, manifest: Manifest, arrays: Arrays, attempt: int = 0) -> None:
        """Write the checkpoint. `manifest` has everything but the arrays."""
        step, size = manifest.step, manifest.size_bytes
        place = folders.temporary_place(self.directory, step, attempt)
        try:
            folders.prepare(place)
            check_room(self.directory, size)
            digests = array_digests(arrays)
            entries = {n: ArrayEntry(a.dtype.name, a.shape, digests[n]) for n, a in arrays.items()}
            manifest = replace(manifest, arrays=entries)
            write_checkpoint(place, arrays, manifest)
            self._before_commit()
            folders.commit(place)
        except BaseException as e:
            folders.discard(place)
            num_checkpoints = self.section.keep_last + self.section.keep_best + 1
            fault = while_writing(e, self.directory, step, size, num_checkpoints)
            if attempt or not is_transient(e):
                raise fault from e
            self._warn(f"{' '.join(str(fault).splitlines()[:2])}; writing it again")
            self._write(manifest, arrays, attempt + 1)
        else:
            self._retain()
            self._on_commit(checkpoint_info(manifest))

    def _retain(self) -> None:
        """Remove the checkpoints that the configuration does not keep. A failure is only a warning."""
        try:
            costs = {i.step: i.cost for i in self.infos()}
            for old in costs.keys() - kept(costs, self.section.keep_last, self.section.keep_best):
                folders.remove(self.directory, old)
        except OSError as e:
            self._warn(f"could not remove old checkpoints in {self.directory}: {e}")


def _read(folder: Path, manifest: Manifest, names: list[str]) -> Arrays:
    try:
        check_tree(folder)
        return read_arrays(folder, manifest, names)
    except UnsafeFile as e:
        raise Damaged(f"checkpoint {folder} is damaged", e.what) from e
    except Exception as e:
        if not folder.exists():
            what = f"checkpoint {folder} was removed while it was read"
            raise CheckpointError(what, "newer ones took its place") from e
        raise while_reading(e, folder) from e


def _batches(manifest: Manifest, limit_bytes: int = 1 << 30) -> Iterator[list[str]]:
    """The names in order, in groups that need about `limit_bytes` of memory."""
    group: list[str] = []
    size = 0
    for name in in_order(manifest.arrays):
        entry = manifest.arrays[name]
        group.append(name)
        size += entry.size * np.dtype(entry.dtype).itemsize
        if size >= limit_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group

"""The checkpoints of a run: saved in the background, verified when read, kept by age and by score."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import jax

from aifx.checkpoint import folders
from aifx.checkpoint.capture import HostArray, HostCopies
from aifx.checkpoint.faults import WriteRetries, check_room, while_reading, while_writing
from aifx.checkpoint.manifest import (
    ArrayEntry,
    CheckpointInfo,
    Damaged,
    Manifest,
    checkpoint_info,
    kept,
    list_checkpoints,
    read_manifest,
    step_directories,
)
from aifx.checkpoint.naming import Tree, flat_names, from_named, nest
from aifx.checkpoint.peers import Failed, first, peers_of, together
from aifx.checkpoint.storage import check_fit, read_placed, with_keys
from aifx.checkpoint.stored import StoredArrays
from aifx.checkpoint.verification import DeviceDigests, Verification, verify_stored
from aifx.checkpoint.writing import complete, write_part
from aifx.config.best_by import Score
from aifx.config.sections import CheckpointSection
from aifx.core.errors import CheckpointError
from aifx.core.files import UnsafeFile, check_tree
from aifx.core.json_files import cannot_write
from aifx.parallel.group import Group

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Restored:
    """A state as it was saved."""

    step: int
    state: Tree
    host: dict[str, Any]


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

    If a job has several processes, all of them make the same calls of `save`, `wait`, `restore`, `read` and
    `latest_good`: each saves the shards that it holds, and reads what its devices need. Process 0 does what is done
    once: it removes, renames, and writes the manifest.

    Args:
        peers: the processes of the job; by default those that JAX knows.
        before_commit: called in process 0's saving thread before a checkpoint counts, to write what it relies on
            (metrics).
        on_commit: called in the saving thread once it does.
        on_refusal: called in the saving thread of process 0 with the step and the error if the disk keeps refusing a
            checkpoint: once for each reason.
        warn: called in the saving thread with what went wrong and did not prevent the checkpoint.
        beside: other checkpoints of the same run, one of which is written at a time.
    """

    def __init__(
        self,
        directory: Path,
        section: CheckpointSection,
        *,
        before_commit: Callable[[], None] = lambda: None,
        on_commit: Callable[[CheckpointInfo], None] = lambda _: None,
        on_refusal: Callable[[int, BaseException], None] = lambda *_: None,
        warn: Callable[[str], None] = lambda _: None,
        peers: Group | None = None,
        beside: Checkpoints | None = None,
    ) -> None:
        self.directory = directory
        self.section = section
        self.local: NewerCheckpoints | None = None  # of the same run, which are newer
        self._before_commit = before_commit
        self._on_commit = on_commit
        self._warn = warn
        self._binding: Callable[[], Mapping[str, Any]] = dict
        self._peers = peers or peers_of("/".join(directory.parts[-2:]))
        self._background = _Background()
        self._retries = WriteRetries(section.disk_timeout_s, warn, on_refusal)
        self._copies = HostCopies()
        self._cleaned = False
        if beside is not None:
            self._peers, self._background, self._copies = beside._peers, beside._background, beside._copies
            self._before_commit, self._binding = beside._before_commit, beside._binding

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

    def info(self, step: int) -> CheckpointInfo | None:
        """The summary of the checkpoint of `step`, if there is one."""
        return next((info for info in self.infos() if info.step == step), None)

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
        and raises what that raised. If a disk that is full or fails keeps refusing the previous one, that is given up.
        A step that already has a checkpoint keeps it, unless `force` is set. Without a `score` it cannot be the best.
        """
        self._retries.supersede()
        self._background.wait()
        self._retries.begin()
        self._own()
        if not force and self._in_first(lambda: step in step_directories(self.directory)):
            return
        leaves = flat_names(state)
        arrays = self._copies.take(leaves, is_first=self._peers.is_first)
        entries = {name: ArrayEntry(array.dtype.name, array.shape, "") for name, array in arrays.items()}
        run = dict(self._binding())
        manifest = Manifest(step, time.time(), validation_loss, entries, dict(host), score, run)
        self._background.start(partial(self._write, manifest, arrays))
        if not self.section.asynchronous:
            self.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait up to `timeout_s` and return whether everything is saved. Raises what a save raised.

        A disk that is full or fails is waited for, up to `checkpoint.disk_timeout_s`; then its error is raised.
        """
        self._retries.limit()
        return self._background.wait(timeout_s)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being saved. Raises what a save raised."""
        return self._background.wait(0)

    def restore(self, step: int, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
        """The state in the structure, shapes and shardings of `abstract`, and the host's part of the checkpoint.

        If `abstract` holds only some of the top-level parts ({"params": ...}), only those are read. The digest of every
        array is verified. Raises CheckpointError if the checkpoint is missing, damaged (`Damaged`) or does not fit.
        """
        wanted = flat_names(abstract)
        arrays, manifest = self._read(step, wanted, must_fit=True)
        return from_named(nest(arrays), abstract), dict(manifest.host)

    def read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Some arrays of a checkpoint by name, in the shapes and shardings of `wanted`. Their digests are verified."""
        return self._read(step, wanted, must_fit=False)[0]

    def latest_good(self, abstract: Tree) -> Restored | None:
        """The newest checkpoint that is whole, or None. Damaged ones newer than it are set aside, with a warning."""
        self._own()
        while True:
            step = self._peers.broadcast(self.latest())
            if self.local is not None and (found := self.local.latest_good_after(step, abstract)) is not None:
                return found
            if step is None:
                return None
            try:
                state, host = self.restore(step, abstract)
            except Damaged as e:
                self._in_first(partial(self._set_aside, step, e.why))
                continue
            return Restored(step, state, host)

    def remove_from(self, step: int) -> None:
        """Remove the checkpoints of `step` and of later ones, the newest first, once everything is saved."""
        self._own()
        self.wait()

        def remove() -> None:
            for later in reversed(self.steps()):
                if later >= step:
                    try:
                        folders.remove(self.directory, later)
                    except OSError as e:
                        raise cannot_write(self.directory / str(later), e) from e

        self._in_first(remove)
        if self.local is not None:
            self.local.remove_from(step)

    def verify(self, step: int) -> Verification:
        """Read every byte and compare it with its digests. Raises `Damaged` if the manifest cannot be read.

        In one process, whatever number of them saved the checkpoint.
        """
        return verify_stored(self._folder(step))

    def _read(self, step: int, wanted: Mapping[str, Any], *, must_fit: bool) -> tuple[dict[str, Any], Manifest]:
        """Arrays of a checkpoint by name, verified, in all processes together."""

        digests = DeviceDigests()

        def read() -> tuple[dict[str, jax.Array], Path, Manifest]:
            folder, manifest = self._open(step)
            if must_fit:
                check_fit(folder, manifest, wanted)
            return _placed(folder, manifest, wanted, digests), folder, manifest

        arrays, folder, manifest = self._together(read)
        if damaged := digests.damaged(manifest.arrays, self._peers):
            more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            why = f"bytes differ from what was saved: {', '.join(damaged[:3])}{more}"
            raise Damaged(f"checkpoint {folder} is damaged", why)
        return with_keys(arrays, wanted), manifest

    def _open(self, step: int) -> tuple[Path, Manifest]:
        """The folder of a checkpoint and its manifest. Raises CheckpointError."""
        folder = self._folder(step)
        try:
            return folder, read_manifest(folder)
        except OSError as e:
            raise while_reading(e, folder) from e

    def _folder(self, step: int) -> Path:
        there = step_directories(self.directory)
        if step not in there:
            have = f"there is {', '.join(map(str, there))}" if there else "there is none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}", have, "aifx ckpt ls")
        return there[step]

    def _together(self, run: Callable[[], Result]) -> Result:
        """The result of `run` in this process. Raises in all processes what it raises in one."""
        try:
            return together(self._peers, run)
        except Failed as failed:
            raise failed.error from failed.error.__cause__

    def _in_first(self, run: Callable[[], Result]) -> Result:
        """The result (JSON) of `run` in process 0, in all processes. Raises in all of them what it raises there."""
        result = self._together(run if self._peers.is_first else lambda: None)
        return cast(Result, self._peers.broadcast(result))

    def _own(self) -> None:
        if not self._cleaned:
            self._in_first(self._clean)
        self._cleaned = True

    def _clean(self) -> None:
        folders.clean(self.directory)

    def _set_aside(self, step: int, why: str) -> None:
        aside = folders.set_aside(self.directory, step)
        logger.warning(f"the checkpoint of step {step} is damaged ({why}); it was set aside as {aside.name}")

    def _write(self, manifest: Manifest, arrays: dict[str, HostArray]) -> None:
        """Write the checkpoint in all processes together. `manifest` has everything but the digests.

        What the disk refuses is written again to a new folder: once at once, then with growing pauses.
        """
        for attempt in itertools.count():
            fault, may_pass = self._attempt(manifest, arrays, attempt)
            if fault is None:
                self._retries.written(manifest.step)
                if self._peers.is_first:
                    self._retain()
                self._on_commit(checkpoint_info(manifest))
                return
            if not may_pass:
                raise fault
            decision = self._retries.decide(manifest.step, fault, attempt) if self._peers.is_first else None
            decision = self._peers.broadcast(decision)
            if decision == "fail":
                raise fault
            if decision == "drop":
                return

    # When a checkpoint is promised. `save` returns as soon as the arrays are copied to the host: the next step may
    # overwrite them on the device, but nothing is promised yet. The saving threads of all processes then commit in two
    # phases (Gray, "Notes on Data Base Operating Systems", 1978). First each process writes its shards to
    # `100.unfinished/100` and flushes them; `together` returns only if all of them could. Then process 0 writes the
    # manifest, flushes it, and renames the folder to `100`. That rename is the commit: a process that is killed before
    # it leaves the older checkpoint, one that is killed after it the new one, and no reader sees half of one. The run
    # reports a checkpoint (`on_commit`) after the rename, so what it has reported survives a loss of power.
    def _attempt(
        self, manifest: Manifest, arrays: dict[str, HostArray], attempt: int
    ) -> tuple[BaseException | None, bool]:
        """Write once. Returns the error, if it failed, and whether another attempt may succeed."""
        step, size, peers = manifest.step, manifest.size_bytes, self._peers
        place = folders.temporary_place(self.directory, step, attempt)
        try:
            first(peers, partial(self._prepare, place, size))
            together(peers, partial(write_part, place, arrays, peers))
            first(peers, partial(self._commit, place, manifest))
        except BaseException as e:
            error, passing = (e.error, e.may_pass) if isinstance(e, Failed) else (e, False)
            if peers.is_first:
                folders.discard(place)
            num_checkpoints = self.section.keep_last + self.section.keep_best + 1
            fault = while_writing(error, self.directory, step, size, num_checkpoints)
            if fault is not error:
                fault.__cause__ = error
            return fault, passing
        return None, False

    def _prepare(self, place: Path, size: int) -> None:
        folders.prepare(place)
        check_room(self.directory, size)

    def _commit(self, place: Path, manifest: Manifest) -> None:
        complete(place, manifest, self._peers)
        self._before_commit()
        folders.commit(place)

    def _retain(self) -> None:
        """Remove the checkpoints that the configuration does not keep. A failure is only a warning."""
        try:
            costs = {i.step: i.cost for i in self.infos()}
            for old in costs.keys() - kept(costs, self.section.keep_last, self.section.keep_best):
                folders.remove(self.directory, old)
        except OSError as e:
            self._warn(f"could not remove old checkpoints in {self.directory}: {e}")


class NewerCheckpoints(Checkpoints, ABC):
    """Checkpoints beside those of a run that are newer than they, and that the run can do without."""

    @abstractmethod
    def latest_good_after(self, after: int | None, abstract: Tree) -> Restored | None:
        """The newest one after the step `after` that is whole and of this run. Newer ones that are not are removed."""

    @abstractmethod
    def remove_all(self) -> None:
        """Remove them, and their folder: the run has ended."""


def _placed(
    folder: Path, manifest: Manifest, wanted: Mapping[str, Any], digests: DeviceDigests
) -> dict[str, jax.Array]:
    try:
        check_tree(folder)
        entries = {name: manifest.arrays[name] for name in wanted}
        return read_placed(StoredArrays(folder, entries), entries, wanted, digests.add)
    except UnsafeFile as e:
        raise Damaged(f"checkpoint {folder} is damaged", e.what) from e
    except Exception as e:
        if not folder.exists():
            what = f"checkpoint {folder} was removed while it was read"
            raise CheckpointError(what, "newer ones took its place") from e
        raise while_reading(e, folder) from e

"""The checkpoints of a run: saved in the background, verified when read, kept by age and by score."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aifx.checkpoint import folders
from aifx.checkpoint.background import Background
from aifx.checkpoint.capture import HostCopies
from aifx.checkpoint.digest import array_digest, array_digests, digest_in_order, in_order
from aifx.checkpoint.faults import check_room, is_transient, while_reading, while_writing
from aifx.checkpoint.listing import CheckpointInfo, checkpoint_info, list_checkpoints
from aifx.checkpoint.manifest import ArrayEntry, Damaged, Manifest, read_manifest, step_directories
from aifx.checkpoint.naming import Tree, flat_names, from_named, nest
from aifx.checkpoint.placing import check_fit, place
from aifx.checkpoint.retention import kept, ranked
from aifx.checkpoint.storage import read_arrays, write_checkpoint
from aifx.config.best_by import LOSS, Score, score_of
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


@dataclass(frozen=True)
class _Save:
    """What a manifest says in addition to the arrays."""

    step: int
    host: dict[str, Any]
    validation_loss: float | None
    score: Score | None
    run: dict[str, Any]


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
        self._background = Background("checkpoint")
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
        return next(iter(ranked({i.step: i.cost for i in self.infos()})), None)

    def infos(self) -> list[CheckpointInfo]:
        """The manifests' summaries by step; reads no array."""
        return list_checkpoints(self.directory)

    def info(self, step: int) -> CheckpointInfo:
        """Raises CheckpointError if there is no such checkpoint."""
        self._folder(step)
        return next(i for i in self.infos() if i.step == step)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written now."""
        return self._background.busy

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
        keeps it, unless `force` is set. Without a `score` the validation loss ranks it.
        """
        self._own()
        self._background.wait()
        if not force and step in step_directories(self.directory):
            return
        arrays = self._copies.take(flat_names(state))
        if score is None and validation_loss is not None:
            score = score_of(LOSS, {"loss": validation_loss})
        save = _Save(step, dict(host), validation_loss, score, dict(self._binding()))
        self._background.start(partial(self._write, save, arrays))
        if not self.section.asynchronous:
            self._background.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait up to `timeout_s` and return whether everything is saved. Raises what a save raised."""
        return self._background.wait(timeout_s)

    def close(self) -> None:
        """Wait for the save in progress. Raises what it raised."""
        self._background.wait()

    def restore(self, step: int, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
        """The state in the structure, shapes and shardings of `abstract`, and the host's part of the checkpoint.

        If `abstract` holds only some of the top-level parts ({"params": ...}), only those are read. The digest of every
        array is verified. Raises CheckpointError if the checkpoint is missing, damaged (`Damaged`) or does not fit.
        """
        folder = self._folder(step)
        manifest = _read_manifest(folder)
        wanted = flat_names(abstract)
        check_fit(folder, manifest, wanted)
        arrays = _read(folder, manifest, list(wanted))
        found = array_digests(arrays, workers=4)
        _raise_if_damaged(folder, [name for name, digest in found.items() if digest != manifest.arrays[name].sha256])
        return from_named(nest(place(arrays, wanted)), abstract), dict(manifest.host)

    def restore_params(self, step: int, abstract_params: Tree) -> Tree:
        """The parameters alone; the optimizer's state is not read."""
        return self.restore(step, {"params": abstract_params})[0]["params"]

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
        folder = self._folder(step)
        manifest = _read_manifest(folder)
        damaged: list[str] = []

        def read() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
            for names in _batches(manifest):
                for name, array in _read(folder, manifest, names).items():
                    if array_digest(array) != manifest.arrays[name].sha256:
                        damaged.append(name)
                    yield name, array

        return Verification(digest_in_order(read()), tuple(damaged))

    def digest(self, step: int) -> str:
        """The state's digest, computed from the disk. Raises `Damaged` if the disk does not hold what was saved."""
        verification = self.verify(step)
        _raise_if_damaged(self._folder(step), list(verification.damaged))
        return verification.state_digest

    def _folder(self, step: int) -> Path:
        there = step_directories(self.directory)
        if step not in there:
            have = f"there is {', '.join(map(str, there))}" if there else "there is none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}", have, "aifx ckpt ls")
        return there[step]

    def _own(self) -> None:
        if not self._cleaned:
            folders.clean(self.directory)
            self._cleaned = True

    def _write(self, save: _Save, arrays: Arrays, attempt: int = 0) -> None:
        step = save.step
        size = sum(a.nbytes for a in arrays.values())
        place = folders.temporary_place(self.directory, step, attempt)
        try:
            folders.prepare(place)
            check_room(self.directory, size)
            digests = array_digests(arrays)
            entries = {n: ArrayEntry(a.dtype.name, a.shape, digests[n]) for n, a in arrays.items()}
            manifest = Manifest(step, time.time(), save.validation_loss, size, entries, save.host, save.score, save.run)
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
            self._write(save, arrays, attempt + 1)
        else:
            self._retain()
            self._on_commit(checkpoint_info(step, manifest))

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
            raise CheckpointError(
                f"checkpoint {folder} was removed while it was read", "newer ones took its place"
            ) from e
        raise while_reading(e, folder) from e


def _read_manifest(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except OSError as e:
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


def _raise_if_damaged(folder: Path, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise Damaged(
            f"checkpoint {folder} is damaged", f"bytes differ from what was saved: {', '.join(names[:3])}{more}"
        )

"""The checkpoints of a run on a disk of its host, which is quick and may be lost: beside those on the run's disk."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from aifx.checkpoint import folders
from aifx.checkpoint.capture import HostArray
from aifx.checkpoint.checkpoints import Checkpoints, NewerCheckpoints, Restored
from aifx.checkpoint.folders import check_owner, remove_local
from aifx.checkpoint.manifest import CheckpointInfo, Manifest, checkpoint_info
from aifx.config.best_by import Score
from aifx.core.errors import AifxError, CheckpointError
from aifx.core.os_errors import first_line

NUM_KEPT = 2

Recorded = Callable[[int], list[Any] | None]
"""The step and the time of the last record up to a step in the run's metrics, or None."""

_RECORDED = "recorded"  # in the host's part of a local checkpoint


class LocalCheckpoints(NewerCheckpoints):
    """Checkpoints that a run can do without: whatever is wrong with them is a warning of process 0.

    They are written by the thread of the run's own checkpoints and through the same memory. So one exists only if all
    that was saved before it is on the run's disk. All processes of a job write to one folder.

    Args:
        main: the run's own checkpoints.
        recorded: the last record up to a step. A checkpoint is used only if the metrics up to it are
            the same as when it was saved: another host may have gone on with the run meanwhile.
    """

    def __init__(
        self,
        directory: Path,
        main: Checkpoints,
        *,
        recorded: Recorded,
        on_commit: Callable[[CheckpointInfo], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        section = main.section.model_copy(update={"keep_last": NUM_KEPT, "keep_best": 0})
        super().__init__(directory, section, on_commit=on_commit, warn=warn, beside=main)
        self._recorded = recorded
        self._refusal: str | None = None  # the last one of which aifx warned

    def save(
        self,
        step: int,
        state: Any,
        *,
        host: Mapping[str, Any],
        validation_loss: float | None = None,
        score: Score | None = None,
        force: bool = False,
    ) -> None:
        """As `Checkpoints.save`; if the disk refuses, the run goes on without. Raises what the save before raised."""
        self._background.wait()
        host = {**host, _RECORDED: self._recorded(step) if self._peers.is_first else None}  # process 0 writes it
        try:
            super().save(step, state, host=host, validation_loss=validation_loss, score=score, force=force)
        except (OSError, AifxError) as e:
            self._refused(e)

    def latest_good_after(self, after: int | None, abstract: Any) -> Restored | None:
        try:
            self._own()
            steps = self._in_first(lambda: [step for step in self.steps() if after is None or step > after])
        except (OSError, AifxError) as e:
            self._report(f"the local checkpoints in {self.directory} are not used: {_brief(e)}")
            return None
        for step in reversed(steps):
            try:
                self._in_first(partial(self._check_of_run, step))
                state, host = self.restore(step, abstract)
            except (OSError, AifxError) as e:
                self._report(f"the local checkpoint of step {step} is not used: {_brief(e)}")
                if self._peers.is_first:
                    with suppress(OSError):
                        folders.remove(self.directory, step)
                continue
            return Restored(step, state, host)
        return None

    def remove_all(self) -> None:
        if self._peers.is_first:
            remove_local(self.directory)

    def _clean(self) -> None:
        check_owner(self.directory)
        super()._clean()

    def _write(self, manifest: Manifest, arrays: dict[str, HostArray]) -> None:
        fault, _ = self._attempt(manifest, arrays, 0)
        if fault is None:
            self._refusal = None
            if self._peers.is_first:
                self._retain()
            self._on_commit(checkpoint_info(manifest))
        elif isinstance(fault, Exception):
            self._refused(fault)
        else:
            raise fault

    def _prepare(self, place: Path, size: int) -> None:
        root = self.directory.parent
        if not root.is_dir():  # to make it could fill the disk that it should be mounted on
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
        self.directory.mkdir(0o700, exist_ok=True)
        check_owner(self.directory)
        super()._prepare(place, size)

    def _check_of_run(self, step: int) -> None:
        """Raise CheckpointError unless this run saved the checkpoint, and its metrics go on from there."""
        folder, manifest = self._open(step)
        bound, now = manifest.run, self._binding()
        if any(bound.get(key) != now[key] for key in ("id", "settings", "assets", "base")):
            raise CheckpointError(f"{folder} is of another run, or its run has changed", "its manifest names others")
        if manifest.host.get(_RECORDED) != self._recorded(step):
            why = "the run's metrics up to it have changed since it was saved"
            raise CheckpointError(f"{folder} is from steps that the run has done again since", why)

    def _refused(self, error: Exception) -> None:
        why = _brief(error)
        kind = re.sub(r"\d+", "", why)
        if kind != self._refusal:  # once for each reason, not for each step
            self._report(f"no local checkpoint: {why}; the run goes on, with those on its own disk")
        self._refusal = kind

    def _report(self, text: str) -> None:
        if self._peers.is_first:
            self._warn(text)


def _brief(error: Exception) -> str:
    return f"{error.what}: {error.why}" if isinstance(error, AifxError) and error.why else first_line(error)

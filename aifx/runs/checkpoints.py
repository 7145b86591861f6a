"""Checkpoints of a run: deleting them by a policy, and copying one back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from aifx.checkpoint.copying import CopiedCheckpoint, Stored, copy_checkpoint
from aifx.checkpoint.folders import clean, remove
from aifx.checkpoint.manifest import CheckpointInfo, list_bindings, list_checkpoints, ranked
from aifx.core.errors import AifxError, CheckpointError
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.core.stores import open_store
from aifx.runs.binding import read_digests
from aifx.runs.lock import hold_run
from aifx.runs.provenance import read_provenance


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that stays, and why."""

    step: int
    reasons: list[str]


@dataclass(frozen=True)
class PrunedCheckpoint:
    """A checkpoint that is deleted."""

    step: int
    size_bytes: int


@dataclass(frozen=True)
class PrunedCheckpoints(Result):
    """The document that `aifx ckpt prune --json` prints."""

    run: str
    removed: list[PrunedCheckpoint]
    kept: list[KeptCheckpoint]
    dry_run: bool


@dataclass(frozen=True)
class Policy:
    """The checkpoints that stay: the newest, the best, and those whose step is a multiple of `keep_every` (0: none)."""

    keep_last: int
    keep_best: int
    keep_every: int = 0

    def reasons(self, infos: list[CheckpointInfo]) -> dict[int, list[str]]:
        """By step, why a checkpoint stays. A damaged one is not counted and stays: aifx never deletes it."""
        whole = [info for info in infos if not info.damaged]
        newest = {info.step for info in whole[-self.keep_last :]} if self.keep_last else set()
        best = set(ranked({info.step: info.cost for info in whole})[: self.keep_best])
        found = {}
        for info in infos:
            every = self.keep_every and info.step % self.keep_every == 0
            checks = {
                "damaged": bool(info.damaged),
                "newest": info.step in newest,
                "best": info.step in best,
                f"every {self.keep_every}": bool(every),
            }
            found[info.step] = [reason for reason, holds in checks.items() if holds]
        return found


def plan_pruning(project: Project, run: RunDirectory, policy: Policy) -> PrunedCheckpoints:
    """The checkpoints that `prune` would remove and keep."""
    infos = list_checkpoints(run.checkpoints)
    reasons = policy.reasons(infos)
    for step, user in _needed(project, run):
        if step in reasons:
            reasons[step].append(f"run {user} needs it")
    removed = [PrunedCheckpoint(info.step, info.size_bytes) for info in infos if not reasons[info.step]]
    kept = [KeptCheckpoint(step, list(dict.fromkeys(why))) for step, why in reasons.items() if why]
    return PrunedCheckpoints(run.name, removed, kept, dry_run=True)


def prune(project: Project, run: RunDirectory, policy: Policy) -> PrunedCheckpoints:
    """Delete the checkpoints that `policy` does not keep. Raises RunBusy if a process trains the run."""
    with hold_run(run):
        clean(run.checkpoints)
        plan = plan_pruning(project, run, policy)
        for checkpoint in plan.removed:
            remove(run.checkpoints, checkpoint.step)
    return PrunedCheckpoints(run.name, plan.removed, plan.kept, dry_run=False)


def _needed(project: Project, run: RunDirectory) -> Iterator[tuple[int, str]]:
    """Steps of `run` whose weights other runs of the project need, each with the name of such a run."""
    for other in project.runs():
        bases = [binding.get("base") for binding in list_bindings(other.checkpoints).values()]
        bases.append(read_provenance(other).get("finetuned_from"))
        with suppress(AifxError):
            bases.append(read_digests(other).base)
        for base in bases:
            if base and base.get("run") == run.name:
                yield int(base["step"]), other.name


def copy_into_run(source: Stored, run: RunDirectory) -> CopiedCheckpoint:
    """Copy a checkpoint of `run` back into it. Raises RunBusy, CheckpointError for one of another run."""
    if read_digests(run).run_id != source.manifest.run.get("id"):
        why = f"its manifest and {run.digests} name different runs"
        raise CheckpointError(f"checkpoint {source.store.url} was saved by another run", why, "aifx runs ls")
    with hold_run(run):
        return copy_checkpoint(source, open_store(str(run.checkpoints)))

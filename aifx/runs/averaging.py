"""The mean of the weights of several checkpoints of a run, as a run of its own."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from aifx.checkpoint.faults import while_reading
from aifx.checkpoint.lanes import as_hex, host_lanes
from aifx.checkpoint.manifest import ArrayEntry, Damaged, Manifest, read_manifest
from aifx.checkpoint.stored import StoredArrays
from aifx.checkpoint.writing import write_checkpoint
from aifx.core.errors import CheckpointError, UsageError
from aifx.core.files import check_tree
from aifx.core.json_files import JsonLines, write_json
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.kinds import read_config
from aifx.runs.binding import binding_errors, read_digests, record_digests
from aifx.runs.formats import AveragedFrom, RunEnd
from aifx.runs.provenance import read_provenance
from aifx.runs.staging import run_made_before, staged_run

PARTS = ("params", "ema")
"""The weights of a state; the rest belongs to the training of one checkpoint."""


@dataclass(frozen=True)
class AveragedRun(Result):
    """The document that `aifx ckpt average --json` prints.

    Attributes:
        step: of the new run's checkpoint, the newest of `steps`.
        is_new: False if the run was there already, made of the same checkpoints.
    """

    run: str
    path: str
    averaged_run: str
    steps: list[int]
    step: int
    parameters: int
    size_bytes: int
    state_digest: str
    is_new: bool


def average_checkpoints(project: Project, run: RunDirectory, steps: Sequence[int], name: str) -> AveragedRun:
    """Make the run `name` of the mean weights of checkpoints of `run`, with its configuration and assets.

    Sums are float32, or wider if the weights are. Memory holds two arrays at a time. Every array is compared with its
    digest. Nothing is written if anything is refused, or if the run is there already and was made of the same.

    Raises UsageError, CheckpointError, EnvironmentFault.
    """
    steps = sorted(set(steps))
    if len(steps) < 2:
        what, why = "an average needs two checkpoints or more", f"{', '.join(map(str, steps)) or 'none'} was given"
        raise UsageError(what, why, f"aifx ckpt ls --run {run.name}")
    target = project.run(name)
    manifests = [read_manifest(run.checkpoints / str(step)) for step in steps]
    _check(project, run, manifests)
    newest = manifests[-1]
    origin = AveragedFrom(run=run.name, steps=steps, state_digests=[manifest.state_digest for manifest in manifests])
    hint = f"aifx ckpt average {' '.join(map(str, steps))} --run {run.name} --name ANOTHER"
    found = run_made_before(project, target, newest.step, _differences(target, origin), hint)
    manifest = found or _write(project, run, manifests, target, origin)
    return AveragedRun(
        run=target.name,
        path=str(target.path),
        averaged_run=run.name,
        steps=steps,
        step=newest.step,
        parameters=manifest.num_parameters,
        size_bytes=manifest.size_bytes,
        state_digest=manifest.state_digest,
        is_new=found is None,
    )


def _differences(target: RunDirectory, origin: AveragedFrom) -> Iterator[str]:
    found = read_provenance(target).get("averaged_from")
    if found is None:
        yield "it is not an average"
    elif found != origin:
        yield "it is the average of other checkpoints"


def _write(
    project: Project, run: RunDirectory, manifests: Sequence[Manifest], target: RunDirectory, origin: AveragedFrom
) -> Manifest:
    newest = manifests[-1]
    entries = {n: replace(e, digest="") for n, e in newest.arrays.items() if n.partition("/")[0] in PARTS}
    digests = replace(read_digests(run), run_id=secrets.token_hex(16), kernels=newest.run["kernels"])
    thresholds = (newest.host.get("progress") or {}).get("thresholds") or {}
    host = {"frozen_digest": newest.host.get("frozen_digest"), "progress": {"thresholds": thresholds}}
    with staged_run(project, target) as staged:
        for file in (run.config, run.kernels):
            if file.exists():
                shutil.copyfile(file, staged.path / file.name)
        check_tree(run.assets)
        shutil.copytree(run.assets, staged.assets)
        write_json(staged.provenance, {**read_provenance(run), "time": time.time(), "averaged_from": origin})
        digests = replace(digests, records=record_digests(staged))
        digests.write(staged)
        staged.checkpoints.mkdir()
        manifest = write_checkpoint(
            staged.checkpoints, newest.step, entries, _means(run, manifests, entries), run=digests.binding(), host=host
        )
        ended = RunEnd(status="completed", step=newest.step, state_digest=manifest.state_digest)
        JsonLines(staged.events).append({"time": time.time(), "event": "stop", **asdict(ended)})
    return manifest


def _check(project: Project, run: RunDirectory, manifests: Sequence[Manifest]) -> None:
    """Raise CheckpointError unless the checkpoints hold the same arrays and the run's files fit them."""
    config = read_config(run.config, project)
    newest = manifests[-1]
    for manifest in manifests:
        for error in binding_errors(run, config, manifest.step, manifest.run):
            raise error
        there, wanted = (
            {n: (e.dtype, e.shape) for n, e in m.arrays.items() if n.partition("/")[0] in PARTS}
            for m in (manifest, newest)
        )
        if there != wanted:
            name = min(there.items() ^ wanted.items())[0]
            what = f"the checkpoints of steps {manifest.step} and {newest.step} hold other arrays"
            raise CheckpointError(what, f"such as {name}", "aifx ckpt diff")


def _means(
    run: RunDirectory, manifests: Sequence[Manifest], entries: dict[str, ArrayEntry]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    folders = [run.checkpoints / str(m.step) for m in manifests]
    for folder in folders:
        check_tree(folder)
    stored = [StoredArrays(folder, m.arrays) for folder, m in zip(folders, manifests, strict=True)]
    total = len(manifests) * sum(e.num_bytes for e in entries.values())
    with report_progress(f"averaging {len(manifests)} checkpoints of run {run.name}", total, "bytes") as progress:
        for name, entry in entries.items():
            mean: np.ndarray[Any, Any] | None = None
            for arrays, manifest, folder in zip(stored, manifests, folders, strict=True):
                try:
                    found = arrays.read(name, tuple(slice(0, size) for size in entry.shape)).result()
                except Exception as e:
                    raise while_reading(e, folder) from e
                if as_hex(host_lanes(found)) != manifest.arrays[name].digest:
                    why = f"bytes differ from what was saved: {name}"
                    raise Damaged(f"checkpoint {folder} is damaged", why, f"aifx ckpt verify --run {run.name}")
                mean = _added(mean, found, name)
                progress.advance(found.nbytes)
            assert mean is not None
            if np.dtype(entry.dtype).kind not in "iub":
                mean /= len(manifests)
            yield name, mean.astype(entry.dtype, copy=False)


def _added(total: np.ndarray[Any, Any] | None, found: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """The sum so far with one array more. Raises CheckpointError for whole numbers that differ."""
    if found.dtype.kind in "iub":
        if total is not None and not np.array_equal(total, found):
            why = f"{name} has whole numbers, which differ between the checkpoints"
            raise CheckpointError("the checkpoints have no average", why)
        return found
    if total is None:
        return found.astype(np.result_type(found.dtype, np.float32))
    total += found
    return total

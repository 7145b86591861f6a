"""The checkpoint of another run that a run begins with, or trains adapters for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aifx.checkpoint.manifest import ArrayEntry, Manifest, digest_of, read_manifest, step_directories
from aifx.core.digests import sha256_of_json
from aifx.core.errors import AifxError, CheckpointError
from aifx.core.project import RunDirectory


@dataclass(frozen=True)
class BaseRun:
    """A checkpoint, and the digest of its weights, which stays the same if the model is imported again."""

    run: str
    step: int
    digest: str

    def document(self) -> dict[str, Any]:
        return asdict(self)


def weights_of(manifest: Manifest) -> dict[str, ArrayEntry]:
    """The weights that evaluation uses, by name without "params/" or "ema/"."""
    names = {name.partition("/")[0] for name in manifest.arrays}
    part = "ema" if "ema" in names else "params"
    return {name.partition("/")[2]: e for name, e in manifest.arrays.items() if name.startswith(f"{part}/")}


def weights_digest(manifest: Manifest) -> str:
    """SHA-256 over the weights of a checkpoint, and those of its own base if they are adapters."""
    own = digest_of((name, e.dtype, e.shape, e.digest) for name, e in weights_of(manifest).items())
    base = manifest.run.get("base")
    return sha256_of_json([own, base["digest"]]) if base else own


def base_manifest(run: RunDirectory, base: BaseRun) -> Manifest:
    """The manifest of the base's checkpoint. Raises CheckpointError if it is missing or its weights have changed.

    Args:
        run: the run whose weights need it.
    """
    what = f"run {run.name} needs the checkpoint of step {base.step} of run {base.run}, its finetune.base_run"
    origin = run.sibling(base.run)
    folder = step_directories(origin.checkpoints).get(base.step)
    if folder is None:
        why = "that run has no such checkpoint now" if origin.exists() else f"there is no run at {origin.path}"
        raise CheckpointError(what, why, f"restore {origin.checkpoints / str(base.step)}, or import the model again")
    manifest = read_manifest(folder)
    if weights_digest(manifest) != base.digest:
        why = f"its weights have changed: their digest was {base.digest[:12]}..."
        raise CheckpointError(what, why, f"restore {folder}, or: aifx train --run ANOTHER-NAME")
    if own := manifest.run.get("base"):
        base_manifest(origin, BaseRun(**own))
    return manifest


def base_error(run: RunDirectory, bound: Mapping[str, Any]) -> CheckpointError | None:
    """The error if the base that a checkpoint of `run` names is missing or has changed."""
    try:
        if named := bound.get("base"):
            base_manifest(run, BaseRun(**named))
    except CheckpointError as error:
        return error
    except (AifxError, TypeError) as error:
        return CheckpointError(
            f"run {run.name} names no usable base run", f"{error}", f"aifx ckpt verify --run {run.name}"
        )
    return None

"""A checkpoint brought back into its run."""

from __future__ import annotations

from aifx.checkpoint.copying import CopiedCheckpoint, Stored, copy_checkpoint
from aifx.core.errors import CheckpointError
from aifx.core.project import RunDirectory
from aifx.core.stores import open_store
from aifx.runs.binding import read_digests
from aifx.runs.lock import hold_run


def copy_into_run(source: Stored, run: RunDirectory) -> CopiedCheckpoint:
    """Copy a checkpoint of `run` back into it. Raises RunBusy, CheckpointError for one of another run."""
    if read_digests(run).run_id != source.manifest.run.get("id"):
        why = f"its manifest and {run.digests} name different runs"
        raise CheckpointError(f"checkpoint {source.store.url} was saved by another run", why, "aifx runs ls")
    with hold_run(run):
        return copy_checkpoint(source, open_store(str(run.checkpoints)))

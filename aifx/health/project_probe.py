"""Print a project's requirements as JSON: `python -m aifx.health.project_probe`, in a project.

This is its own process, because it imports JAX, to count the optimizer's state, and with `--project` the project's own
task. It uses no device: JAX runs on the CPU.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import AifxError
from aifx.core.facts import Absent, to_document
from aifx.core.processes import connect
from aifx.core.project import Project, find_project
from aifx.core.redaction import redact

if TYPE_CHECKING:
    from aifx.config import Config

MOST_FILES = 64
"""Data files that are opened: the first megabyte of each."""

IMPORT_TASK = "--import-task"
"""The argument that lets this process import the project's own task."""

STEP_BYTES = 4
"""A checkpoint also contains the step counter."""


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    emit = connect()
    emit(to_document(look_at(find_project(), imports_task=IMPORT_TASK in sys.argv[1:])))


def look_at(project: Project, *, imports_task: bool = False) -> dict[str, Any] | Absent:
    from aifx.config import load_config, own_task_kind

    try:
        if not imports_task and (kind := own_task_kind(project.config_path)):
            return Absent(f"its task {kind} is code of the project, which aifx imports only with --project")
        config = load_config(project)
    except AifxError as error:
        unknown = Absent("the configuration is invalid")
        rest = dict.fromkeys(("data", "plan", "disk"), unknown)
        return {"name": project.root.name, "config": {"is_valid": False, "why": _told(error)}, **rest}
    plan = _plan(project, config)
    return {
        "name": config.project.name,
        "config": {"is_valid": True, "why": ""},
        "data": _data(project, config),
        "plan": plan,
        "disk": _disk(project, config, plan),
    }


def _told(error: AifxError) -> str:
    return redact("; ".join(filter(None, (error.what, error.why.replace("\n", "; ")))))[:400]


def _data(project: Project, config: Config) -> dict[str, Any] | Absent:
    """Return whether the files of the configuration exist and have the right format."""
    from aifx.config.sections import LanguageDataSection, VisionDataSection

    try:
        if isinstance(config.data, LanguageDataSection):
            return {"is_readable": True, "why": "", "files": _read_text(project, config.data)}
        if isinstance(config.data, VisionDataSection):
            _read_archive(project.root / config.data.path)
            return {"is_readable": True, "why": "", "files": 1}
    except AifxError as error:
        return {"is_readable": False, "why": _told(error), "files": 0}
    except (OSError, ValueError) as error:
        return {"is_readable": False, "why": redact(str(error))[:400], "files": 0}
    return Absent("the project's own task reads its data")


def _read_text(project: Project, section: Any) -> int:
    from aifx.data.files import find_files, read_documents

    files = []
    for key in ("train", "validation", "test"):
        if patterns := getattr(section, key):
            files += find_files(patterns, project, f"data.{key}")
    for file in files[:MOST_FILES]:
        for _ in islice(read_documents(file, section.text_field, errors=section.errors), 1):
            pass
    return len(files)


def _read_archive(path: Path) -> None:
    """Open the file and its directory. Training reads the arrays."""
    import numpy as np

    if not path.is_file():
        raise OSError(f"no file {path}, which data.path names")
    with np.load(path, allow_pickle=False) as archive:
        wanted = {f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")}
        if missing := wanted - set(archive.files):
            raise ValueError(f"{path} has no {', '.join(sorted(missing))}")


def _plan(project: Project, config: Config) -> dict[str, Any] | Absent:
    """Return the bytes that the run needs at least: parameters, optimizer state, and gradients of the weights.
    Activations come in addition, and depend on the batch."""
    try:
        specs = _specs(project, config)
    except AifxError as error:
        return Absent(f"the model cannot be built: {_told(error)}")
    if specs is None:
        return Absent("the size of this model depends on its data: train it, and look at its checkpoint")
    import jax

    from aifx.specs import map_specs
    from aifx.training.optimizers import make_optimizer, select_weights

    params = map_specs(lambda spec: spec.struct, specs)
    weights = select_weights(params, specs)
    state = jax.eval_shape(make_optimizer(config.optimizer, specs).init, weights)
    kept = _bytes(params) + _bytes(state) + STEP_BYTES
    devices = config.train.devices
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "checkpoint_bytes": kept,
        "training_bytes": kept + _bytes(weights),
        "devices": devices if devices != "all" else Absent("train.devices is all"),
    }


def _specs(project: Project, config: Config) -> Any:
    from aifx.config.sections import LanguageDataSection, LanguageModelSection

    if not isinstance(config.data, LanguageDataSection) or not isinstance(config.model, LanguageModelSection):
        return None
    from aifx.data.tokenizer import Tokenizer
    from aifx.models.decoder.model import Decoder

    vocab_size = config.model.vocab_size or config.data.vocab_size
    if not config.model.vocab_size and config.data.tokenizer != "bpe":
        vocab_size = Tokenizer.load(project.root / config.data.tokenizer).vocab_size
    max_seq_len = config.model.max_seq_len or config.data.seq_len
    return Decoder(config.model, vocab_size=vocab_size, max_seq_len=max_seq_len).specs()


def _bytes(tree: Any) -> int:
    import jax

    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _disk(project: Project, config: Config, plan: dict[str, Any] | Absent) -> dict[str, Any]:
    """Return the space for checkpoints: those that are kept, and the one that is being written."""
    from aifx.checkpoint.listing import list_checkpoints

    folder = next(p for p in (project.runs_path, *project.runs_path.parents) if p.exists())
    written = [info for run in project.runs()[-1:] for info in list_checkpoints(run.checkpoints) if not info.damaged]
    size: Any = plan["checkpoint_bytes"] if isinstance(plan, dict) else plan
    if written:
        size = written[-1].size_bytes
    count = config.checkpoint.keep_last + config.checkpoint.keep_best + 1
    return {
        "folder": str(project.runs_path),
        "free_bytes": shutil.disk_usage(folder).free,
        "checkpoints": count,
        "checkpoint_bytes": size,
        "needed_bytes": size * count if isinstance(size, int) else size,
        "is_writable": os.access(folder, os.W_OK),
    }


if __name__ == "__main__":
    main()

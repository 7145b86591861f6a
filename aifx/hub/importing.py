"""A model's folder becomes a run: its configuration, its assets, and a checkpoint of step 0."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from aifx.checkpoint.manifest import ArrayEntry
from aifx.checkpoint.streaming import write_checkpoint
from aifx.config import Config
from aifx.config.kinds import resolve
from aifx.config.load import make_config
from aifx.config.sections import ModelSection
from aifx.core.errors import DataError
from aifx.core.files import replace_file
from aifx.core.json_files import JsonLines, write_json, write_text
from aifx.core.json_values import plain
from aifx.core.progress import Reporter, report_progress
from aifx.core.project import Project, RunDirectory
from aifx.data.spec import keep_spec
from aifx.hub.architectures import TensorMap, architecture_of, check_keys, map_tensors, read_arrays
from aifx.hub.assets import HubAssets, read_text_assets
from aifx.hub.folder import CONFIG, ModelFolder, open_folder
from aifx.hub.picture_assets import read_picture_assets
from aifx.hub.weights import DTYPES, StoredWeights
from aifx.machine.host import versions
from aifx.models.hub import Architecture, Array, HubConfig
from aifx.runs.binding import open_digests
from aifx.runs.formats import RunEnd
from aifx.runs.staging import check_name_is_free, staged_run
from aifx.specs import with_weight_dtype

_ASSETS: Mapping[str, Callable[[ModelFolder, HubConfig, Mapping[str, Any]], HubAssets]] = {
    "language": read_text_assets,
    "vision": read_picture_assets,
}
"""Reads what a model needs beside its arrays, by the task of its architecture."""

ParameterType = Literal["float32", "bfloat16"]


class SourceFile(TypedDict):
    name: str
    bytes: int
    sha256: str


class SourceTensor(TypedDict):
    file: str
    dtype: str
    arrays: list[str]


class ImportFile(TypedDict):
    """import.json: where a run's model came from."""

    schema_version: Literal[1]
    time: float
    source: str
    architecture: str
    versions: dict[str, str]
    config: dict[str, Any]
    files: list[SourceFile]
    tensors: dict[str, SourceTensor]
    ignored: list[str]


@dataclass(frozen=True)
class ImportedRun:
    """A run that `aifx import` made.

    Attributes:
        task: `task.kind` of what it was trained for.
        rounded: whether the weights were rounded to a narrower type than the source has.
    """

    run: str
    path: str
    source: str
    architecture: str
    task: str
    parameters: int
    dtype: str
    rounded: bool
    size_bytes: int


@dataclass(frozen=True)
class _Model:
    """All that was read and checked before anything is written."""

    folder: ModelFolder
    document: Mapping[str, Any]  # config.json
    architecture: Architecture
    weights: StoredWeights
    assets: HubAssets
    config: Config
    tensors: TensorMap


def default_name(source: str) -> str:
    """The name of the run of a model: the last part of its path or repository."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(source)))  # of `.` and `..` as well
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")[:100]
    return plain or "imported"


def import_model(
    source: str,
    project: Project,
    name: str | None = None,
    *,
    dtype: ParameterType | None = None,
    ignored: Sequence[str] = (),
) -> ImportedRun:
    """Make a run of the model in a folder, or in the Hub's cache. Nothing is written if anything is refused.

    Args:
        dtype: of the parameters; by default bfloat16 if all of the source's are, otherwise float32, which holds them
            exactly.
        ignored: keys of `config.json` that change nothing, says the caller.

    Raises UsageError, ConfigError, DataError, EnvironmentFault.
    """
    folder = open_folder(source)
    run = project.run(name or default_name(source))
    check_name_is_free(run, f"aifx import {source} --name ANOTHER    (or: aifx runs rm {run.name})")
    model = _read(folder, project, dtype, tuple(ignored))
    with staged_run(project, run) as staged:
        return _write(model, staged, run)


def _read(folder: ModelFolder, project: Project, dtype: ParameterType | None, ignored: tuple[str, ...]) -> _Model:
    document = folder.document(CONFIG)
    family, architecture = architecture_of(folder, document)
    if architecture.task not in _ASSETS:
        why = f"{architecture.name} embeds texts, and aifx trains none"
        raise DataError(f"{folder.path} cannot be a run", why, f"aifx data index NAME --embedder {folder.source}")
    hub_config = HubConfig(document, str(folder.path / CONFIG), f"aifx import {folder.source} --ignore", ignored)
    try:
        values = architecture.read(hub_config)
        assets = _ASSETS[architecture.task](folder, hub_config, values)
    except (ArithmeticError, TypeError, ValueError) as error:  # numbers that no model has
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{folder.path / CONFIG} cannot be used", why, "download the model again") from None
    hub_config.finish()
    weights = StoredWeights(folder)
    stored: ParameterType = "bfloat16" if weights.dtypes == {"BF16"} else "float32"
    sections = {"task": {"kind": architecture.task}, "train": {"parameter_dtype": dtype or stored}, **assets.sections}
    sections["model"] = {"family": family.name, **values, **assets.sections.get("model", {})}
    config = make_config(plain(sections), project, CONFIG)
    assert isinstance(config.model, ModelSection)
    check_keys(weights, architecture, config.model)
    specs = resolve(family.make)(config.model, assets.data_spec(config)).specs()
    typed = with_weight_dtype(specs, config.train.parameter_dtype)  # statistics keep their type
    tensors = map_tensors(weights, architecture, config.model, typed)
    return _Model(folder, document, architecture, weights, assets, config, tensors)


def _write(model: _Model, staged: RunDirectory, run: RunDirectory) -> ImportedRun:
    staged.assets.mkdir()
    for name, data in model.assets.files.items():
        replace_file(staged.assets / name, data)
    keep_spec(staged.assets, model.assets.data_spec(model.config))
    digests = open_digests(staged, model.config, is_fresh=True)
    write_text(staged.config, model.config.to_toml())
    dtype = np.dtype(model.config.train.parameter_dtype)
    entries = {
        f"params/{name}": ArrayEntry(np.dtype(spec.dtype).name, spec.shape, "")
        for name, spec in model.tensors.specs.items()
    }
    staged.checkpoints.mkdir()
    activity, total = f"importing {model.folder.source}", 2 * model.weights.num_bytes
    with report_progress(activity, total, "bytes") as progress:
        arrays = _arrays(model, progress)
        manifest = write_checkpoint(staged.checkpoints, 0, entries, arrays, run=digests.binding())
        files = []
        for name, size, sha256 in model.weights.file_digests():
            files.append(SourceFile(name=name, bytes=size, sha256=sha256))
            progress.advance(size)
    write_json(staged.imported, dict(_record(model, files)))
    ended = RunEnd(status="completed", step=0, state_digest=manifest.state_digest)
    JsonLines(staged.events).append({"time": time.time(), "event": "stop", **asdict(ended)})
    is_rounded = dtype == DTYPES["BF16"] and model.weights.dtypes != {"BF16"}
    return ImportedRun(
        run=run.name,
        path=str(run.path),
        source=model.folder.source,
        architecture=model.architecture.name,
        task=model.architecture.task,
        parameters=manifest.num_parameters,
        dtype=dtype.name,
        rounded=is_rounded,
        size_bytes=manifest.size_bytes,
    )


def _arrays(model: _Model, progress: Reporter) -> Iterator[tuple[str, Array]]:
    seen = 0
    for name, array, done in read_arrays(model.weights, model.tensors):
        progress.advance(done - seen)
        seen = done
        yield f"params/{name}", array.astype(model.tensors.specs[name].dtype, copy=False)


def _record(model: _Model, weight_files: Sequence[SourceFile]) -> ImportFile:
    folder, names = model.folder, [CONFIG, *(name for name in model.assets.files if model.folder.has(name))]
    documents = {name: folder.read(name) for name in names}
    others = [
        SourceFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in documents.items()
    ]
    stored = model.weights.tensors
    return ImportFile(
        schema_version=1,
        time=time.time(),
        source=folder.source,
        architecture=model.architecture.name,
        versions=versions(),
        config=dict(model.document),
        files=[*others, *weight_files],
        tensors={
            key: SourceTensor(
                file=stored[key].file,
                dtype=stored[key].dtype,
                arrays=[f"params/{name}" for name in (tensors.arrays if tensors else ())],
            )
            for key, tensors in ((key, model.tensors.tensors.get(key)) for key in model.tensors.keys)
        },
        ignored=list(model.tensors.ignored),
    )

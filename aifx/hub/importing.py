"""A model's folder becomes a run: its configuration, its assets, a checkpoint of step 0, and a record of its origin."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from aifx.checkpoint.manifest import ArrayEntry, Manifest
from aifx.checkpoint.writing import write_checkpoint
from aifx.config import Config
from aifx.config.config import compare
from aifx.config.parts import resolve
from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.files import replace_file
from aifx.core.json_files import JsonLines, write_json, write_text
from aifx.core.json_values import plain
from aifx.core.progress import Reporter, report_progress
from aifx.core.project import Project, RunDirectory
from aifx.data.spec import keep_spec
from aifx.hub.architectures import TensorMap, architecture_of, check_keys, map_tensors, read_arrays
from aifx.hub.assets import HubAssets, read_picture_assets, read_text_assets
from aifx.hub.exported import check_export
from aifx.hub.folder import CONFIG, ModelFolder, open_folder
from aifx.hub.orbax import OrbaxFolder, OrbaxWeights, in_maxtext
from aifx.hub.weights import DTYPES, StoredWeights, Weights, types_of
from aifx.kinds import make_config, read_config
from aifx.machine.host import versions
from aifx.models.hub import Architecture, Array, HubConfig
from aifx.registry.origins import read_imported
from aifx.runs.binding import open_digests
from aifx.runs.formats import RunEnd
from aifx.runs.staging import run_made_before, staged_run
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
        is_new: False if the run was there already, made of the same files with the same settings.
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
    is_new: bool


@dataclass(frozen=True)
class _Model:
    """All that was read and checked before anything is written."""

    folder: ModelFolder
    document: Mapping[str, Any]  # config.json
    architecture: Architecture
    weights: Weights
    assets: HubAssets
    config: Config
    tensors: TensorMap


def default_name(source: str) -> str:
    """The name of the run of a model: the last part of its path or repository."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(source)))  # of `.` and `..` as well
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")[:100]
    return plain or "imported"


def import_model(
    source: str | ModelFolder,
    project: Project,
    name: str | None = None,
    *,
    dtype: ParameterType | None = None,
    ignored: Sequence[str] = (),
) -> ImportedRun:
    """Make a run of the model in a folder, or in the Hub's cache.

    Nothing is written if anything is refused, or if the run is there already and was made of the same. A folder that
    `aifx export` made is compared with its manifest first.

    Args:
        source: a path or repository, as `open_folder` takes it, or a folder that is open already.
        dtype: of the parameters; by default bfloat16 if all of the source's are, otherwise float32, which holds them
            exactly.
        ignored: keys of `config.json` that change nothing, says the caller.

    Raises UsageError, ConfigError, DataError, EnvironmentFault.
    """
    folder = open_folder(source) if isinstance(source, str) else source
    run = project.run(name or default_name(folder.source))
    check_export(folder)
    model = _read(folder, project, dtype, tuple(ignored))
    hint = f"{folder.command} --name ANOTHER    (or: aifx runs rm {run.name})"
    found = manifest = run_made_before(project, run, 0, _differences(model, project, run), hint)
    if manifest is None:
        with staged_run(project, run) as staged:
            manifest = _write(model, staged)
    kind = np.dtype(model.config.train.parameter_dtype)
    return ImportedRun(
        run=run.name,
        path=str(run.path),
        source=folder.source,
        architecture=model.architecture.name,
        task=model.architecture.task,
        parameters=manifest.num_parameters,
        dtype=kind.name,
        rounded=kind == DTYPES["BF16"] and types_of(model.weights) != {"BF16"},
        size_bytes=manifest.size_bytes,
        is_new=found is None,
    )


def _differences(model: _Model, project: Project, run: RunDirectory) -> Iterator[str]:
    """The differences of a run from the one that would be made of the model. Reads the model's files whole."""
    found = read_imported(run)
    if found is None:
        yield "it was not imported"
        return
    activity = f"comparing {model.folder.source} with run {run.name}"
    with report_progress(activity, model.weights.num_bytes, "bytes") as progress:
        files = _source_files(model, progress)
    if (recorded := found.get("files")) != files:
        others = [file["name"] for file in files if not isinstance(recorded, list) or file not in recorded]
        yield f"it was imported from other files{f', such as another {others[0]}' if others else ''}"
    for difference in compare(read_config(run.config, project, environ={}), model.config):
        yield f"its {difference}"


def _read(folder: ModelFolder, project: Project, dtype: ParameterType | None, ignored: tuple[str, ...]) -> _Model:
    document = folder.document(CONFIG)
    family, architecture = architecture_of(folder, document)
    if architecture.task not in _ASSETS:
        why = f"{architecture.name} embeds texts, and aifx trains none"
        raise DataError(f"{folder.path} cannot be a run", why, f"aifx data index NAME --embedder {folder.source}")
    hub_config = HubConfig(document, str(folder.place(CONFIG)), f"{folder.command} --ignore", ignored)
    try:
        values = architecture.read(hub_config)
        assets = _ASSETS[architecture.task](folder, hub_config, values)
    except (ArithmeticError, TypeError, ValueError) as error:  # numbers that no model has
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{folder.place(CONFIG)} cannot be used", why, "download the model again") from None
    hub_config.finish()
    weights: Weights
    if isinstance(folder, OrbaxFolder):
        weights = opened = OrbaxWeights(folder)
        architecture = in_maxtext(architecture, is_scanned=opened.is_scanned)
    else:
        weights = StoredWeights(folder)
    stored: ParameterType = "bfloat16" if types_of(weights) == {"BF16"} else "float32"
    sections = {"task": {"kind": architecture.task}, "train": {"parameter_dtype": dtype or stored}, **assets.sections}
    sections["model"] = {"family": family.name, **values, **assets.sections.get("model", {})}
    config = make_config(plain(sections), project, CONFIG)
    check_keys(weights, architecture, config.model)
    specs = resolve(family.make)(config.model, assets.data_spec(config.data)).specs()
    typed = with_weight_dtype(specs, config.train.parameter_dtype)  # statistics keep their type
    tensors = map_tensors(weights, architecture, config.model, typed)
    return _Model(folder, document, architecture, weights, assets, config, tensors)


def _write(model: _Model, staged: RunDirectory) -> Manifest:
    staged.assets.mkdir()
    for name, data in model.assets.files.items():
        replace_file(staged.assets / name, data)
    keep_spec(staged.assets, model.assets.data_spec(model.config.data))
    write_text(staged.config, model.config.to_toml())
    entries = {
        f"params/{name}": ArrayEntry(np.dtype(spec.dtype).name, spec.shape, "")
        for name, spec in model.tensors.specs.items()
    }
    staged.checkpoints.mkdir()
    activity, total = f"importing {model.folder.source}", 2 * model.weights.num_bytes
    with report_progress(activity, total, "bytes") as progress:
        write_json(staged.imported, dict(_record(model, _source_files(model, progress))))
        digests = open_digests(staged, model.config, is_fresh=True)
        arrays = _arrays(model, progress)
        manifest = write_checkpoint(staged.checkpoints, 0, entries, arrays, run=digests.binding())
    ended = RunEnd(status="completed", step=0, state_digest=manifest.state_digest)
    JsonLines(staged.events).append({"time": time.time(), "event": "stop", **asdict(ended)})
    return manifest


def _arrays(model: _Model, progress: Reporter) -> Iterator[tuple[str, Array]]:
    seen = 0
    for name, array, done in read_arrays(model.weights, model.tensors):
        progress.advance(done - seen)
        seen = done
        yield f"params/{name}", array.astype(model.tensors.specs[name].dtype, copy=False)


def _source_files(model: _Model, progress: Reporter) -> list[SourceFile]:
    """The files that a run is made of."""
    files = []
    for name in (CONFIG, *(name for name in model.assets.files if model.folder.has(name))):
        data = model.folder.read(name)
        files.append(SourceFile(name=name, bytes=len(data), sha256=sha256_of(data)))
    for name, size, sha256 in model.weights.file_digests():
        files.append(SourceFile(name=name, bytes=size, sha256=sha256))
        progress.advance(size)
    return files


def _record(model: _Model, files: list[SourceFile]) -> ImportFile:
    stored = model.weights.tensors
    return ImportFile(
        schema_version=1,
        time=time.time(),
        source=model.folder.source,
        architecture=model.architecture.name,
        versions=versions(),
        config=dict(model.document),
        files=files,
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

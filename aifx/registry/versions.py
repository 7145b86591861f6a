"""A model version: a sealed folder with all that a model's answers depend on, made from a checkpoint of a run.

<folder>/
    manifest.json          what the model is: its task, arrays, data, and the schema of its inputs and outputs
    config.toml            the settings that change its answers
    weights.safetensors    its arrays as `params/<name>`, and as `base1/<name>` those that its adapters change
    assets/...             a tokenizer, the description of its data
    kernels.json           the implementations of ops that the run had chosen
    code/...               the project's own modules, if its task has any

It holds no time, no path, no machine and no report, so the same checkpoint is the same version wherever it is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from aifx.checkpoint.manifest import ArrayEntry, Manifest, read_manifest
from aifx.checkpoint.storage import StoredArrays
from aifx.config import Config
from aifx.config.config import number_settings
from aifx.config.toml import to_toml
from aifx.core.artifact import Artifact, DamagedArtifact, files_below, seal, seal_files
from aifx.core.code_digest import modules_below
from aifx.core.errors import CheckpointError
from aifx.core.files import check_tree, make_folders, open_file
from aifx.core.json_files import write_text
from aifx.core.json_values import plain
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory
from aifx.data.sections import OWN_TOKENIZERS
from aifx.data.spec import Column, DataSpec, need_spec
from aifx.kernels.choices_file import read_kernel_choices, write_kernel_choices
from aifx.kinds import read_config
from aifx.registry.roots import KIND, VERSION
from aifx.registry.weight_file import StoredArray, write_weights
from aifx.runs.binding import BaseRun, base_manifest, binding_errors, read_digests, weights_of
from aifx.runs.provenance import read_provenance

WEIGHTS = "weights.safetensors"
CODE = "code"
PARAMS = "params"

ANSWERING = {
    "task": (),
    "model": (),
    "objective": (),
    "data": (),
    "kernels": (),
    "lora": (),
    "finetune": ("adapter", "base_quantize"),
    "train": ("precision", "parameter_dtype", "global_batch_size", "seed", "folds"),
    "optimizer": ("ema_decay",),
    "eval": ("batch_size", "quantize"),
    "generate": ("max_tokens", "temperature", "top_k", "top_p", "quantize"),
}
"""The settings of a run that its answers depend on: the keys of each section; all that change numbers if it is empty.

Batch sizes are among them: a program for other shapes may round otherwise.
"""

FILES = ("path", "train", "validation", "test", "dataset")
"""Keys of `[data]` that name the data itself. `content["data"]` has its digest and versions instead."""

LAYOUT = ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.context", "mesh.context_method", "train.devices")
"""Settings of the arrangement on devices: notes of the artefact, since they change the rounding alone."""


@dataclass(frozen=True)
class BaseLevel:
    """The arrays that adapters change. If these are adapters themselves, there is another level below.

    Attributes:
        lora: `[lora]` of the adapters at this level; None if its arrays are those of a whole model.
        quantize: `finetune.base_quantize` of these adapters.
        arrays: by name; the file has them as `base<level>/<name>`.
    """

    lora: Mapping[str, Any] | None
    quantize: str
    arrays: Mapping[str, ArrayEntry]


@dataclass(frozen=True)
class ModelContent:
    """What a model is.

    Attributes:
        task: `task.kind`.
        step: of the checkpoint.
        arrays: the weights that evaluation uses and the buffers, by name; the file has them as `params/<name>`.
        bases: the arrays that adapters change, from the nearest.
        tuned_from: digest of the weights, or of the model version, that training began with.
        frozen_digest: of arrays that no checkpoint has because they follow from the model and the seed.
        thresholds: of a classification, as its last validation found them.
        data: digest of the training data, and each version of a data set ("name@<64 digits>").
        inputs: name, kind and categories of each column, or shape and type of each array.
        outputs: classes, or the number of predicted values or tokens.
        example: a row that the model takes; None if its kind of data has no rows that can be made up.
        code: the project's own modules that the configuration names.
    """

    task: str
    step: int
    arrays: Mapping[str, ArrayEntry]
    bases: tuple[BaseLevel, ...]
    tuned_from: str | None
    frozen_digest: str | None
    thresholds: Mapping[str, Any]
    data: Mapping[str, Any] | None
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    example: Mapping[str, Any] | None
    code: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """Elements of all arrays, those of bases too."""
        groups = (self.arrays, *(base.arrays for base in self.bases))
        return sum(entry.size for arrays in groups for entry in arrays.values())


_CONTENT = TypeAdapter(ModelContent)


def content_of(artifact: Artifact, place: object) -> ModelContent:
    """The content of a model version at `place`. Raises DamagedArtifact."""
    try:
        found: ModelContent = _CONTENT.validate_python(artifact.content)
    except ValueError as e:
        raise DamagedArtifact(place, f"its content is not that of a model: {str(e).splitlines()[0]}") from e
    return found


@dataclass(frozen=True)
class _Source:
    """A checkpoint whose arrays the version takes."""

    run: RunDirectory
    manifest: Manifest

    @property
    def folder(self) -> Path:
        return self.run.checkpoints / str(self.manifest.step)

    def stored(self, prefix: str) -> Iterator[StoredArray]:
        """The weights that evaluation uses, each to be stored as `<prefix>/<name>`."""
        part = "ema" if any(name.startswith("ema/") for name in self.manifest.arrays) else "params"
        stored = StoredArrays(self.folder, {n: e for n, e in self.manifest.arrays.items() if n.startswith(f"{part}/")})
        for name, entry in weights_of(self.manifest).items():
            yield StoredArray(f"{prefix}/{name}", f"{part}/{name}", entry, stored, self.folder)


def write_version(run: RunDirectory, project: Project, step: int, folder: Path) -> Artifact:
    """Write the model of a checkpoint into an empty folder, and seal it. The run and what it is based on are verified.

    Raises CheckpointError if there is no such checkpoint, it is damaged, or a file of the run is not what it names;
    DataError, UsageError, OSError.

    Args:
        folder: as `unfinished` makes it: the digest, which names its place, is known at the end.
    """
    check_tree(run.assets)
    manifest = read_manifest(run.checkpoints / str(step))
    config = read_config(run.config, project, environ={})
    for error in binding_errors(run, config, step, manifest.run):
        raise error
    sources = list(_sources(run, manifest))
    arrays = [array for level, source in enumerate(sources) for array in source.stored(_prefix(level))]
    total = sum(array.entry.num_bytes for array in arrays)
    with report_progress(f"writing the model of {run.name}", total, "bytes") as progress:
        weights = write_weights(folder / WEIGHTS, arrays, progress)
    write_text(folder / "config.toml", to_toml(_answering(config), None))
    _copy(run.assets, manifest.run.get("assets", {}), folder / "assets")
    _write_kernels(run, manifest, RunDirectory(folder))
    named = (config.task.kind, *config.parts.names.values())
    modules = sorted({name.partition(":")[0] for name in named if ":" in name})
    own = {path.relative_to(project.root).as_posix() for name in modules for path in modules_below(name, project.root)}
    _copy(project.root, sorted(own), folder / CODE)
    rest = seal_files(folder, [path for path in files_below(folder) if path != folder / WEIGHTS])
    content = _content(config, run, sources, modules)
    artifact = Artifact(KIND, VERSION, plain(content), {WEIGHTS: weights, **rest}, notes={"layout": _layout(config)})
    seal(folder, artifact)
    return artifact


def _prefix(level: int) -> str:
    """The beginning of the names of a level's arrays: 0 is the model, 1 the arrays that its adapters change."""
    return f"base{level}" if level else PARAMS


def _sources(run: RunDirectory, manifest: Manifest) -> Iterator[_Source]:
    yield _Source(run, manifest)
    while named := manifest.run.get("base"):
        base = BaseRun(**named)
        manifest, run = base_manifest(run, base), run.sibling(base.run)
        yield _Source(run, manifest)


def _content(config: Config, run: RunDirectory, sources: list[_Source], modules: list[str]) -> ModelContent:
    manifest, spec = sources[0].manifest, need_spec(run.assets)
    host = manifest.host
    inputs, example = _inputs(config, spec)
    return ModelContent(
        task=config.task.kind,
        step=manifest.step,
        arrays=weights_of(manifest),
        bases=tuple(map(_base_level, sources[1:])),
        tuned_from=(read_provenance(run).get("finetuned_from") or {}).get("digest"),
        frozen_digest=host.get("frozen_digest"),
        thresholds=(host.get("progress") or {}).get("thresholds") or {},
        data=manifest.run.get("data"),
        inputs=inputs,
        outputs={"classes": list(spec.classes)} if spec.classes else _numbers(spec),
        example=example,
        code=tuple(modules),
    )


def _numbers(spec: DataSpec) -> dict[str, Any]:
    return {"values": spec.target_size} if spec.vocab_size is None else {"tokens": spec.vocab_size}


def _base_level(source: _Source) -> BaseLevel:
    lora, quantize = None, "none"
    if source.manifest.run.get("base"):
        settings = read_digests(source.run).settings
        lora = {key.removeprefix("lora."): value for key, value in settings.items() if key.startswith("lora.")}
        quantize = settings.get("finetune.base_quantize", "none")
    return BaseLevel(lora, quantize, weights_of(source.manifest))


def _inputs(config: Config, spec: DataSpec) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The columns or arrays that the model takes, and a row of them that is made up."""
    if spec.columns:
        columns = {column.name: column for column in spec.columns}  # a date has several parts
        kinds = {n: {"kind": c.kind, "categories": list(c.categories)} for n, c in columns.items()}
        return kinds, {n: _value(column) for n, column in columns.items()}
    fields = {name: {"shape": list(field.shape), "dtype": field.dtype} for name, field in spec.fields.items()}
    text = getattr(config.data, "text_field", None)
    return fields, {text: "Hello"} if text else None


def _value(column: Column) -> Any:
    """A value that the column of a table may have."""
    if column.kind in ("numeric", "date"):
        return column.mean if column.kind == "numeric" else "2026-01-31"
    return next(iter(column.categories), None)


def _answering(config: Config) -> dict[str, dict[str, Any]]:
    """The settings of ANSWERING by section and key, without those that name files."""
    values, numbers = config.values(), number_settings(config)
    found: dict[str, dict[str, Any]] = {}
    for section, keys in ANSWERING.items():
        own = keys or [name.partition(".")[2] for name in numbers if name.startswith(f"{section}.")]
        found[section] = {key: values[section][key] for key in own}
    fields, data = type(config.data).model_fields, found["data"]
    for key in FILES:
        if key in data and not fields[key].is_required():
            del data[key]
    if data.get("tokenizer", OWN_TOKENIZERS[0]) not in OWN_TOKENIZERS:
        data["tokenizer"] = "assets/tokenizer.json"  # where the run keeps it, whatever file it was
    return found


def _layout(config: Config) -> dict[str, Any]:
    values = config.values()
    return {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in LAYOUT}


def _write_kernels(run: RunDirectory, manifest: Manifest, version: RunDirectory) -> None:
    """Write the choices of kernels that the checkpoint names: a run may have made others since."""
    bound = manifest.run.get("kernels", {})
    choices = read_kernel_choices(run)
    if kept := {kind: choices[kind][: bound[kind]["count"]] for kind in sorted(bound) if bound[kind]["count"]}:
        write_kernel_choices(version, kept)


def _copy(source: Path, names: Iterable[str], target: Path) -> None:
    """Copy files by their paths below a folder."""
    for name in names:
        path = target / name
        make_folders(path.parent, below=target.parent)
        try:
            with open(open_file(source / name, below=source), "rb") as file, open(path, "xb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        except FileNotFoundError as e:
            raise CheckpointError(f"{source / name} is missing", "it was there a moment ago", "run again") from e

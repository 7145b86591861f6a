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

import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from aifx.checkpoint.manifest import ArrayEntry, Manifest, read_manifest, step_directories
from aifx.config.sections import RESUME_SAFE, ROUNDING, Section, is_marked
from aifx.config.toml import literal, to_toml
from aifx.core.artifact import (
    MANIFEST,
    Artifact,
    DamagedArtifact,
    check_once,
    files_below,
    read_artifact,
    seal,
    seal_files,
    short,
    short_reference,
    stray_files,
)
from aifx.core.code_digest import modules_below
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, CheckpointError, UsageError
from aifx.core.files import check_tree, make_folders, open_file
from aifx.core.json_files import encode, write_text
from aifx.core.json_values import plain
from aifx.core.parsing import fault_in
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory, cache_path
from aifx.data.sections import OWN_TOKENIZERS
from aifx.data.spec import Column, DataSpec, need_spec
from aifx.kernels.choices_file import read_kernel_choices, write_kernel_choices
from aifx.kinds import read_config
from aifx.registry.evidence import trusted_signer
from aifx.registry.roots import CODE, KIND, VERSION, Root, check_manifest, open_root, repairable
from aifx.registry.state import ModelState, NumberedVersion
from aifx.runs.binding import BaseRun, base_manifest, binding_errors, read_digests, weights_digest, weights_of
from aifx.runs.provenance import read_provenance

if TYPE_CHECKING:
    from aifx.registry.weight_file import StoredArray  # imports jax

WEIGHTS = "weights.safetensors"
PARAMS, BASE = "params", "base"

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

TRUSTED_DIGITS = 12
"""Fewest digits of a digest by which a user trusts the code of a version."""

LAYOUT = ("model", "mesh", "train.devices")
"""Settings of the arrangement of the computation: those of a key, or of a section, that change the rounding alone.

Notes of the artefact have them, since training may go on with others.
"""


@dataclass(frozen=True)
class Level:
    """The arrays of a whole model, or adapters. Those change the arrays of the next level.

    Attributes:
        lora: `[lora]` of the adapters; None for a whole model.
        quantize: `finetune.base_quantize` of the adapters.
        arrays: the weights that evaluation uses and the buffers, by name. The file has them as `params/<name>`, those
            of further levels as `base<level>/<name>`.
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
        levels: the model, and what its adapters change, from the nearest.
        tuned_from: digest of the weights, or of the model version, that training began with.
        frozen_digest: of arrays that no checkpoint has because they follow from the model and the seed.
        thresholds: of a classification, as its last validation found them.
        data: digest of the training data, and each version of a data set ("name@<64 digits>").
        inputs: name, kind and categories of each column, or shape and type of each array.
        outputs: classes, or the number of predicted values or tokens.
        example: a row that the model takes; None if its kind of data has no rows that can be made up.
        code: the project's own modules that the configuration names.
        imported: what exports take from the `import.json` behind the weights: its architecture and `pad_token_id`.
    """

    task: str
    step: int
    levels: tuple[Level, ...]
    tuned_from: str | None
    frozen_digest: str | None
    thresholds: Mapping[str, Any]
    data: Mapping[str, Any] | None
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    example: Mapping[str, Any] | None
    code: tuple[str, ...]
    imported: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Elements of all arrays."""
        return sum(entry.size for level in self.levels for entry in level.arrays.values())

    def manifest(self, level: int = 0) -> Manifest:
        """The manifest of a checkpoint with the arrays of a level, as evaluation uses them."""
        base = None
        if level + 1 < len(self.levels):
            base = BaseRun(f"{BASE}{level + 1}", self.step, weights_digest(self.manifest(level + 1))).document()
        named = {f"{PARAMS}/{name}": entry for name, entry in self.levels[level].arrays.items()}
        host = {"frozen_digest": self.frozen_digest, "progress": {"thresholds": dict(self.thresholds)}}
        return Manifest(self.step, 0.0, None, named, host, None, {"base": base})


_CONTENT = TypeAdapter(ModelContent)


class UntrustedCode(UsageError):
    """A model version has code of its own, and the user did not say that it may run."""


@dataclass(frozen=True)
class ModelDirectory(RunDirectory):
    """The paths of a model version on this machine. They are those of a run that has neither checkpoints nor records.

    Attributes:
        label: as the user named it, such as "fraud@production".
        project: around the command; None if it is a base alone.
    """

    label: str
    artifact: Artifact = field(repr=False)
    content: ModelContent = field(repr=False)
    project: Project | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.label

    @property
    def model_digest(self) -> str:
        return self.artifact.digest

    @property
    def title(self) -> str:
        return f"model {short_reference(self.label)}"

    @property
    def option(self) -> str:
        return f"--model {self.label}"

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def origin(self) -> dict[str, Any]:
        """The part of the `import.json` behind its weights that exports take; empty if they were not imported."""
        found = dict(self.content.imported)
        if not found:
            return {}
        config = {"pad_token_id": found.pop("pad_token_id", None)}
        return {**found, "config": config, "source": self.artifact.notes.get("source")}

    @property
    def imported_from(self) -> str | None:
        """The source of the imported model whose weights its last level has; None if that was trained."""
        return self.artifact.notes.get("imported_from")

    @property
    def layout(self) -> list[str]:
        """Its arrangement on devices, as `--set` takes it."""
        return [f"{key}={literal(value)}" for key, value in self.artifact.notes.get("layout", {}).items()]

    @property
    def files(self) -> list[str]:
        """The keys that name files of data, such as "data.path": a version has none, and a project may."""
        return [f"data.{key}" for key in self.artifact.notes.get("files", ())]


def open_version(
    folder: Path, label: str, project: Project, *, trust_code: str | None = None
) -> tuple[ModelDirectory, Project]:
    """The model version in a folder of this machine, and the project with the code that it may run.

    All its bytes are compared with their digests (`check_once`).

    Args:
        label: for messages and reports.
        trust_code: the digest of a version whose own code may run, or its first TRUSTED_DIGITS or more.

    Raises DamagedArtifact, UntrustedCode, OSError.
    """
    version = replace(read_version(folder, label), project=project)
    artifact, content = version.artifact, version.content
    if content.code:
        _check_code(folder, artifact)
        if len(trust_code or "") < TRUSTED_DIGITS or not artifact.digest.startswith(str(trust_code)):
            own = ", ".join(name for name in artifact.files if name.startswith(f"{CODE}/"))
            why = f"it would run with your rights, and you have not trusted it: {own}"
            hint = f"read {folder / CODE}, then: --trust-code {short(artifact.digest)}"
            raise UntrustedCode(f"the model {label} has code of its own", why, hint)
        project = replace(project, code=folder / CODE)
    return version, project


def _check_code(folder: Path, artifact: Artifact) -> None:
    """Raise DamagedArtifact for files beside the code of a version that its digest does not cover.

    Python would run a compiled module instead of its source, and import any other by its name.
    """
    strays = [path for path in stray_files(folder, artifact) if path.is_relative_to(folder / CODE)]
    if strays:
        why = f"{strays[0].relative_to(folder)} is not in {MANIFEST}, and Python could run it"
        error = DamagedArtifact(folder, why)
        error.hint = f"rm {shlex.join(map(str, strays))}"
        raise error


def read_version(folder: Path, label: str) -> ModelDirectory:
    """The model version in a folder of this machine, whose own code does not run.

    All its bytes are compared with their digests (`check_once`). Raises DamagedArtifact, OSError.
    """
    with repairable():
        artifact = read_artifact(folder, KIND, VERSION)
        check_manifest(artifact, folder)
        content = content_of(artifact, folder)
        check_once(folder, artifact, artifact.files)
    return ModelDirectory(folder, label, artifact, content)


def pinned_name(reference: str, project: Project) -> str:
    """The version of the project's registry that "fraud@production" means now, by its whole digest.

    Raises UsageError for a name of none, EnvironmentFault.
    """
    state, version = open_root(None, project).find(reference)
    return f"{state.name}@{version.digest}"


def open_named_base(reference: str, project: Project) -> tuple[ModelDirectory, BaseRun]:
    """The version of the project's registry that training begins with. Its label has the whole digest.

    Raises UsageError for a name of none, DamagedArtifact, EnvironmentFault.
    """
    root = open_root(None, project)
    state, version = root.find(reference)
    label = f"{state.name}@{version.digest}"
    found = read_version(root.fetch(state, version), label)
    digest = weights_digest(found.content.manifest())
    return found, BaseRun(label, found.content.step, digest, version.data)


def open_base(run: RunDirectory, base: BaseRun) -> ModelDirectory:
    """The model version that a run began with, from the cache or the registry of the run's project.

    Raises CheckpointError if it is not to be had, DamagedArtifact.
    """
    folder = cache_path("models") / str(base.version)
    try:
        if not folder.is_dir():
            around = Project(run.path.parents[1])
            return open_named_base(base.run, read_config(run.config, around).apply_to(around))[0]
        return read_version(folder, base.run)
    except UsageError as e:
        what = f"run {run.name} needs the model {base.run}, its finetune.base"
        raise CheckpointError(what, f"{e.what}: {e.why}".rstrip(": "), e.hint) from e


def find_first_weights(version: ModelDirectory) -> tuple[RunDirectory, Manifest]:
    """The run or the model version with the weights that the training of a version began with, and their manifest.

    They are known by their digest. Runs of the project are searched, then the versions of its registry.
    Raises CheckpointError if none has them.
    """
    digest, project = version.content.tuned_from, version.project
    if project is not None:
        for run in project.runs():
            for step in step_directories(run.checkpoints):
                with suppress(AifxError, OSError):
                    manifest = read_manifest(run.checkpoints / str(step))
                    if weights_digest(manifest) == digest:
                        return run, manifest
        with suppress(AifxError, OSError):
            root = open_root(None, project)
            for name in root.names():
                state = root.state(name)
                for numbered in state.versions.values():
                    with suppress(AifxError, OSError):
                        artifact = root.artifact(state, numbered.digest)
                        if artifact and weights_digest(content_of(artifact, name).manifest()) == digest:
                            found = read_version(root.fetch(state, numbered), f"{name}@{numbered.label}")
                            return found, found.content.manifest()
    what = f"the weights that {version.title} was tuned from are not found"
    why = f"no run of this project and no version of its registry has them: their digest is {str(digest)[:12]}..."
    raise CheckpointError(what, why, "aifx registry push RUN NAME, for the run that it was tuned from")


def open_stored(
    root: Root, state: ModelState, version: NumberedVersion, label: str, project: Project, trust_code: str | None
) -> tuple[ModelDirectory, Project]:
    """A version of a registry, fetched into the cache, and the project with the code that it may run.

    Its own code may also run if a key signed it that the project trusts. Raises as `open_version`, UsageError.
    """
    folder = root.fetch(state, version)
    if trust_code is None and trusted_signer(root, state, version.digest, project) is not None:
        trust_code = version.digest
    return open_version(folder, label, project, trust_code=trust_code)


def content_of(artifact: Artifact, place: object) -> ModelContent:
    """The content of a model version at `place`. Raises DamagedArtifact."""
    try:
        found: ModelContent = _CONTENT.validate_python(artifact.content)
    except ValueError as e:
        raise DamagedArtifact(place, f"{MANIFEST}: its content is not that of a model: {fault_in(e)}") from e
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
        from aifx.checkpoint.stored import StoredArrays
        from aifx.registry.weight_file import StoredArray

        part = "ema" if any(name.startswith("ema/") for name in self.manifest.arrays) else "params"
        stored = StoredArrays(self.folder, {n: e for n, e in self.manifest.arrays.items() if n.startswith(f"{part}/")})
        for name, entry in weights_of(self.manifest).items():
            yield StoredArray(f"{prefix}/{name}", f"{part}/{name}", entry, stored, self.folder)

    @property
    def level(self) -> Level:
        lora, quantize = None, "none"
        if self.manifest.run.get("base"):
            settings = read_digests(self.run).settings
            lora = {key.removeprefix("lora."): value for key, value in settings.items() if key.startswith("lora.")}
            quantize = settings.get("finetune.base_quantize", "none")
        return Level(lora, quantize, weights_of(self.manifest))


@dataclass(frozen=True)
class _StoredLevel:
    """A level of a model version, which the version of a model that was tuned from it takes."""

    version: ModelDirectory
    number: int

    def stored(self, prefix: str) -> Iterator[StoredArray]:
        """Its arrays, each to be stored as `<prefix>/<name>`."""
        from aifx.registry.weight_file import StoredArray, StoredWeights, WeightFile

        file = StoredWeights(WeightFile(self.version.weights))
        for name, entry in self.level.arrays.items():
            yield StoredArray(f"{prefix}/{name}", f"{prefix_of(self.number)}/{name}", entry, file, self.version.path)

    @property
    def level(self) -> Level:
        return self.version.content.levels[self.number]


def write_version(
    run: RunDirectory, project: Project, step: int, folder: Path, origin: Mapping[str, Any] | None = None
) -> Artifact:
    """Write the model of a checkpoint into an empty folder, and seal it. The run and what it is based on are verified.

    Raises CheckpointError if there is no such checkpoint, it is damaged, or a file of the run is not what it names;
    DataError, UsageError, OSError.

    Args:
        folder: as `unfinished` makes it: the digest, which names its place, is known at the end.
        origin: the `import.json` that the weights of the run go back to, if there is one.
    """
    from aifx.registry.weight_file import write_weights

    check_tree(run.assets)
    manifest = read_manifest(run.checkpoints / str(step))
    config = read_config(run.config, project, environ={})
    for error in binding_errors(run, config, step, manifest.run):
        raise error
    sources = list(_sources(run, manifest))
    arrays = [array for level, source in enumerate(sources) for array in source.stored(prefix_of(level))]
    total = sum(array.entry.num_bytes for array in arrays)
    sections = dict(config.sections())
    answering, files = _answering(sections)
    with report_progress(f"writing the model of {run.name}", total, "bytes") as progress:
        weights = write_weights(folder / WEIGHTS, arrays, progress)
    write_text(folder / "config.toml", to_toml(answering, None))
    _copy(run.assets, manifest.run.get("assets", {}), folder / "assets")
    _write_kernels(run, manifest, RunDirectory(folder))
    named = (config.task.kind, *config.parts.names.values())
    modules = sorted({name.partition(":")[0] for name in named if ":" in name})
    own = {path.relative_to(project.root).as_posix() for name in modules for path in modules_below(name, project.root)}
    _copy(project.root, sorted(own), folder / CODE)
    rest = seal_files(folder, [path for path in files_below(folder) if path != folder / WEIGHTS])
    text = getattr(config.data, "text_field", None)
    levels = (source.level for source in sources)
    content = _content(config.task.kind, run, manifest, levels, modules, text)
    notes: dict[str, Any] = {"layout": _layout(sections), "files": files}
    if origin:
        pad = (origin.get("config") or {}).get("pad_token_id")
        content = replace(content, imported={"architecture": origin.get("architecture"), "pad_token_id": pad})
        notes["source"] = _source_name(origin.get("source"))
        if isinstance(last := sources[-1], _StoredLevel):
            notes["imported_from"] = last.version.imported_from
        elif last.run.imported.exists():
            notes["imported_from"] = notes["source"]
    artifact = Artifact(KIND, VERSION, plain(content), {WEIGHTS: weights, **rest}, notes=notes)
    seal(folder, artifact)
    return artifact


def _source_name(source: Any) -> str | None:
    """The name of a repository, or a folder's name alone: paths of a machine stay on it."""
    if not isinstance(source, str):
        return None
    is_repository = source.count("/") == 1 and source[0] not in "./~"
    return source if is_repository else f"./{Path(source).name}"


def level_of(base: BaseRun) -> int:
    """The level of a model version that `ModelContent.manifest` calls a base run."""
    return int(base.run.removeprefix(BASE))


def prefix_of(level: int) -> str:
    """The beginning of the names of a level's arrays: 0 is the model, 1 the arrays that its adapters change."""
    return f"{BASE}{level}" if level else PARAMS


def _sources(run: RunDirectory, manifest: Manifest) -> Iterator[_Source | _StoredLevel]:
    yield _Source(run, manifest)
    while named := manifest.run.get("base"):
        base = BaseRun(**named)
        if base.version is not None:
            version = open_base(run, base)
            yield from (_StoredLevel(version, number) for number in range(len(version.content.levels)))
            return
        manifest, run = base_manifest(run, base), run.sibling(base.run)
        yield _Source(run, manifest)


def _content(
    task: str,
    run: RunDirectory,
    manifest: Manifest,
    levels: Iterable[Level],
    modules: list[str],
    text_field: str | None,
) -> ModelContent:
    spec = need_spec(run.assets)
    host = manifest.host
    inputs, example = _inputs(spec, text_field)
    return ModelContent(
        task=task,
        step=manifest.step,
        levels=tuple(levels),
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


def _inputs(spec: DataSpec, text_field: str | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The columns or arrays that the model takes, and a row of them that is made up."""
    if spec.columns:
        columns = {column.name: column for column in spec.columns}  # a date has several parts
        kinds = {n: {"kind": c.kind, "categories": list(c.categories)} for n, c in columns.items()}
        return kinds, {n: _value(column) for n, column in columns.items()}
    fields = {name: {"shape": list(field.shape), "dtype": field.dtype} for name, field in spec.fields.items()}
    return fields, {text_field: "Hello"} if text_field else None


def _value(column: Column) -> Any:
    """A value that the column of a table may have."""
    if column.kind in ("numeric", "date"):
        return column.mean if column.kind == "numeric" else "2026-01-31"
    return next(iter(column.categories), None)


def digest_of_settings(sections: Mapping[str, Section]) -> str:
    """The SHA-256 of `config.toml` of the version that a run with this configuration is pushed as."""
    return sha256_of(encode(to_toml(_answering(sections)[0], None)))


def _answering(sections: Mapping[str, Section]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The settings of ANSWERING by section and key, and the keys of `[data]` that are left out: they name files."""
    found: dict[str, dict[str, Any]] = {}
    for name, keys in ANSWERING.items():
        values, fields = sections[name].model_dump(mode="json"), type(sections[name]).model_fields
        own = keys or [key for key, info in fields.items() if not is_marked(info.json_schema_extra, RESUME_SAFE)]
        found[name] = {key: values[key] for key in own}
    fields, data = type(sections["data"]).model_fields, found["data"]
    files = [key for key in FILES if key in data and not fields[key].is_required()]
    for key in files:
        del data[key]
    if data.get("tokenizer", OWN_TOKENIZERS[0]) not in OWN_TOKENIZERS:
        data["tokenizer"] = "assets/tokenizer.json"  # where the run keeps it, whatever file it was
    return found, files


def _layout(sections: Mapping[str, Section]) -> dict[str, Any]:
    """The settings of LAYOUT that are not the default."""
    found: dict[str, Any] = {}
    for name in LAYOUT:
        section, _, only = name.partition(".")
        kind = type(sections[section])
        values, defaults = sections[section].model_dump(mode="json"), kind.model_construct().model_dump(mode="json")
        for key, info in kind.model_fields.items():
            is_asked = is_marked(info.json_schema_extra, ROUNDING) and only in ("", key) and key != "auto"
            if is_asked and values[key] != defaults[key]:
                found[f"{section}.{key}"] = values[key]
    return found


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

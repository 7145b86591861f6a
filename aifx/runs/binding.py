"""SHA-256 digests of the files, other than its checkpoints, that a run's numbers depend on, and of its data.

`digests.json` of a run holds them, and the manifest of each checkpoint names them. Training, evaluation and generation
compare the files with the manifest, so that a file that has changed is found before it changes a number
(`binding_errors`). `aifx ckpt verify` also compares what only says where the run came from (`record_errors`).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aifx.checkpoint.manifest import ArrayEntry, Manifest, digest_of, read_manifest, step_directories
from aifx.config import Config
from aifx.config.config import number_settings
from aifx.core.digests import sha256_of, sha256_of_file, sha256_of_json
from aifx.core.errors import AifxError, CheckpointError, DataError, EnvironmentFault, UsageError
from aifx.core.files import UnsafeFile, open_file, read_file
from aifx.core.json_files import write_json
from aifx.core.parsing import parse_json
from aifx.core.project import Project, RunDirectory
from aifx.kernels.choices_file import read_kernel_choices
from aifx.runs.provenance import read_provenance


@dataclass
class RunDigests:
    """The content of `digests.json`."""

    run_id: str  # made when the run begins; a checkpoint of another run has another one
    settings: Mapping[str, Any]  # the values that change numbers, by key (`model.rope_theta`)
    assets: Mapping[str, str]  # SHA-256 of each file in `assets/`, by its path in there
    kernels: Mapping[str, Mapping[str, Any]]  # digest of the kernel choices in `kernels.json` by kind of device
    base: Mapping[str, Any] | None  # with adapters, the document of their BaseRun
    records: Mapping[str, str]  # SHA-256 of provenance.json or import.json, by name
    data: Mapping[str, Any] | None  # digest of the batches, and each version of a data set, "name@<64 digits>"

    def binding(self) -> dict[str, Any]:
        """The entries by which the manifest of a checkpoint that is saved now names these digests."""
        return {
            "id": self.run_id,
            "settings": sha256_of_json(self.settings),
            "assets": self.assets,
            "kernels": self.kernels,
            "base": self.base,
            "records": self.records,
            "data": self.data,
        }

    def write(self, run: RunDirectory) -> None:
        settings = {"sha256": sha256_of_json(self.settings), "values": self.settings}
        write_json(run.digests, {"schema_version": 2, **vars(self), "settings": settings})


def open_digests(
    run: RunDirectory, config: Config, *, is_fresh: bool, base: Mapping[str, Any] | None = None
) -> RunDigests:
    """The digests of a run. Those of a new run are written, under a new id.

    Its assets must be complete, and the record of where it came from be written.

    Raises CheckpointError.
    """
    # From kernels.json itself, since a process that was killed may have written that alone. If all checkpoints are
    # damaged, the run begins with the choices that it has.
    kernels = {kind: kernel_digest(choices) for kind, choices in read_kernel_choices(run).items()}
    if is_fresh:
        new_id, settings, assets = secrets.token_hex(16), number_settings(config), _asset_digests(run.assets)
        digests = RunDigests(new_id, settings, assets, kernels, base, record_digests(run), _data_of(run))
        digests.write(run)
        return digests
    return replace(read_digests(run), kernels=kernels)


def read_digests(run: RunDirectory) -> RunDigests:
    """The digests of a run. Raises CheckpointError if they are missing or cannot be read."""
    try:
        doc = parse_json(read_file(run.digests))
        values, assets, kernels = doc["settings"]["values"], dict(doc["assets"]), dict(doc["kernels"])
        records, data = dict(doc["records"]), doc["data"]
        return RunDigests(str(doc["run_id"]), dict(values), assets, kernels, doc["base"], records, data)
    except (OSError, UnsafeFile, ValueError, KeyError, TypeError) as e:
        found = e.what if isinstance(e, UnsafeFile) else e
        why = "it is missing" if isinstance(e, FileNotFoundError) else f"it cannot be read: {found}"
        what = f"run {run.name!r} has checkpoints and no usable {run.digests.name}"
        raise CheckpointError(what, why, _way_out(run, run.digests)) from e


def binding_errors(run: RunDirectory, config: Config, step: int, bound: Mapping[str, Any]) -> Iterator[CheckpointError]:
    """An error for each file of a run that differs from what the checkpoint of `step` names.

    Args:
        config: of the run's `config.toml` alone.
        bound: the `run` entry of the checkpoint's manifest.
    """
    try:
        digests = read_digests(run)
    except CheckpointError as e:
        yield e
        return
    if digests.run_id != bound.get("id"):
        yield foreign_checkpoint(run, step)
        return
    if sha256_of_json(digests.settings) != bound.get("settings"):
        yield _changed(run, run.digests, step, "its settings are not those that the checkpoint names")
    elif changes := list(_changed_settings(digests.settings, config)):
        more = f"; {len(changes) - 3} more" if len(changes) > 3 else ""
        yield _changed(run, run.config, step, "; ".join(changes[:3]) + more)
    if digests.base != bound.get("base"):
        yield _changed(run, run.digests, step, "its base run is not the one that the checkpoint names")
    elif (error := base_error(run, bound)) is not None:
        yield error
    for key, named in (("records", digests.records), ("data", digests.data)):
        if named != bound.get(key):
            yield _changed(run, run.digests, step, f"its {key} are not those that the checkpoint names")
    found = _asset_digests(run.assets)
    for name, digest in bound.get("assets", {}).items():
        if found.get(name) != digest:
            yield _changed(run, run.assets / name, step, "its SHA-256 differs" if name in found else "it is missing")
    choices = read_kernel_choices(run)
    for kind, named in bound.get("kernels", {}).items():
        if kernel_digest(choices.get(kind, [])[: named["count"]]) != named:
            yield _changed(run, run.kernels, step, f"its choices for {kind} have changed")


def record_errors(run: RunDirectory, project: Project, step: int, bound: Mapping[str, Any]) -> Iterator[AifxError]:
    """An error for each record of a run's origin, and for each version of its data, that is not as a checkpoint names.

    A version that is not there, or whose store does not answer, is left out.

    Args:
        project: with the folder of data sets that the run's configuration names.
        bound: the `run` entry of the checkpoint's manifest.
    """
    from aifx.data.versions.catalog import open_catalog  # reads parquet

    for name, digest in bound.get("records", {}).items():
        if (why := _record_change(run.path / name, digest)) is not None:
            what = f"{run.path / name} is not what the checkpoint of step {step} names"
            yield CheckpointError(what, why, f"restore {run.path / name}")
    for reference in (bound.get("data") or {}).get("versions", ()):
        try:
            open_catalog(project.datasets, project).manifest(reference)
        except (DataError, UnsafeFile) as error:
            yield error
        except (UsageError, EnvironmentFault):
            continue


def _record_change(path: Path, digest: str) -> str | None:
    """The difference of the file at `path` from the one with this SHA-256; None if it is that one."""
    try:
        return None if sha256_of(read_file(path)) == digest else "its SHA-256 differs"
    except FileNotFoundError:
        return "it is missing"
    except UnsafeFile as e:
        return e.what
    except OSError as e:
        return str(e)


def foreign_checkpoint(run: RunDirectory, step: int) -> CheckpointError:
    """The error for a checkpoint that another run saved."""
    folder = run.checkpoints / str(step)
    why = f"its manifest and {run.digests} name different runs"
    return CheckpointError(f"checkpoint {folder} was saved by another run", why, f"mv {folder} {folder}.foreign")


def _changed(run: RunDirectory, path: Path, step: int, why: str) -> CheckpointError:
    what = f"{path} is not what the checkpoint of step {step} was trained with"
    return CheckpointError(what, why, _way_out(run, path))


def _way_out(run: RunDirectory, path: Path) -> str:
    return f"restore {path}, or: aifx train --run {run.name} --fork NAME"


def kernel_digest(choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Digest of the kernel choices for one kind of device, in the order in which they were made.

    Later choices are added at the end, so the first `count` of them are what an earlier checkpoint names.
    """
    rows = [[c.get("call"), c.get("implementation"), c.get("config")] for c in choices]
    return {"count": len(rows), "sha256": sha256_of_json(rows)}


def _changed_settings(recorded: Mapping[str, Any], config: Config) -> Iterator[str]:
    """The settings of `config` that differ from the recorded ones. One that aifx did not have yet must be default."""
    defaults = {name: type(section).model_construct().model_dump(mode="json") for name, section in config.sections()}
    for key, value in number_settings(config).items():
        section, _, name = key.partition(".")
        before = recorded.get(key, defaults[section].get(name))
        if value != before:
            yield f"{key} = {json.dumps(value)}, and was {json.dumps(before)}"


def record_digests(run: RunDirectory) -> dict[str, str]:
    """SHA-256 of the files that say where a run came from, by name. Raises UnsafeFile for a link, FIFO or device."""
    return {path.name: sha256_of(read_file(path)) for path in (run.provenance, run.imported) if path.exists()}


def _data_of(run: RunDirectory) -> dict[str, Any] | None:
    """The data that a run's provenance names; None if it names none."""
    record = read_provenance(run)
    if "data_digest" not in record:
        return None
    dataset = record.get("dataset")
    versions = [dataset, *dataset.get("parts", ())] if dataset else []
    return {"digest": record["data_digest"], "versions": [one["reference"] for one in versions]}


def _asset_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder`, temporary files left out. Raises UnsafeFile for a link, FIFO or device."""
    found: dict[str, str] = {}
    for root, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
            with open(open_file(path, below=folder), "rb") as file:
                found[path.relative_to(folder).as_posix()] = sha256_of_file(file)
    return found


@dataclass(frozen=True)
class BaseRun:
    """A checkpoint, and the digest of its weights, which stays the same if the model is imported again.

    Attributes:
        run: its name; "fraud@<64 digits>" for a version of a registry's model.
        data: the versions of data sets behind a model version. A run says it itself.
    """

    run: str
    step: int
    digest: str
    data: Sequence[str] = ()

    @property
    def version(self) -> str | None:
        """The digest of the model version; None for a run."""
        return self.run.partition("@")[2] or None

    @property
    def title(self) -> str:
        return f"run {self.run}" if self.version is None else f"model {self.run}"

    def document(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value != ()}


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
    what = f"run {run.name} needs the checkpoint of step {base.step} of run {base.run}, its finetune.base"
    origin = run.sibling(base.run)
    folder = step_directories(origin.checkpoints).get(base.step)
    if folder is None:
        why = "that run has no such checkpoint now" if origin.exists() else f"there is no run at {origin.path}"
        raise CheckpointError(what, why, f"restore {origin.checkpoints / str(base.step)}, or import the model again")
    manifest = read_manifest(folder)
    if weights_digest(manifest) != base.digest:
        why = f"its weights have changed: their digest was {base.digest[:12]}..."
        raise CheckpointError(what, why, f"restore {folder}, or: aifx train --run ANOTHER-NAME")
    if error := base_error(origin, manifest.run):
        raise error
    return manifest


def base_error(run: RunDirectory, bound: Mapping[str, Any]) -> CheckpointError | None:
    """The error if the base run that a checkpoint of `run` names is missing or has changed.

    A model version is named by its bytes, which are compared when it is opened.
    """
    try:
        if (named := bound.get("base")) and (base := BaseRun(**named)).version is None:
            base_manifest(run, base)
    except CheckpointError as error:
        return error
    except (AifxError, TypeError) as error:
        return CheckpointError(
            f"run {run.name} names no usable base run", f"{error}", f"aifx ckpt verify --run {run.name}"
        )
    return None

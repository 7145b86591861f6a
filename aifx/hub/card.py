"""The model card of an exported model: what is known of it, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifx.checkpoint.manifest import Manifest
from aifx.core.json_files import read_jsonl, write_text
from aifx.core.project import RunDirectory
from aifx.core.version import __version__
from aifx.runs.goodput import read_goodput
from aifx.runs.provenance import read_provenance
from aifx.runs.reading import read_evaluations
from aifx.runs.status import read_settings

CARD = "README.md"
UNKNOWN = "unknown"


def write_card(
    folder: Path,
    run: RunDirectory,
    manifest: Manifest,
    *,
    architecture: str,
    parameters: int,
    dtype: str,
    origin: Mapping[str, Any],
    library: str | None = None,
) -> None:
    """Write `README.md` with the metadata that the Hub reads. What a run does not record stays unknown.

    Args:
        parameters: number of them in the folder. The checkpoint has fewer if the run trained adapters or a head.
    """
    from huggingface_hub import ModelCard, ModelCardData

    source, step = origin.get("source"), manifest.step
    is_repository = isinstance(source, str) and source.count("/") == 1 and source[0] not in "./~"
    place = "nowhere: aifx trained it from random first values"
    if isinstance(source, str):
        place = source if is_repository else f"a folder, {Path(source).name}"  # paths of a machine stay on it
    base = source if is_repository else None
    data = ModelCardData(base_model=base, library_name=library, pipeline_tag="text-generation", tags=["aifx"])
    tables = (
        ("Model", _model(run, architecture, parameters, dtype, manifest, place)),
        ("Training", _training(run, step)),
        ("Evaluation", _evaluation(run, step)),
    )
    parts = [f"# {run.name}", f"Exported by aifx {__version__}."]
    for title, rows in tables:
        lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
        parts.append("\n".join([f"## {title}", "", "| | |", "| --- | --- |", *lines]))
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    write_text(folder / CARD, str(ModelCard(text)))


def _cell(value: Any) -> str:
    text = UNKNOWN if value in (None, "") else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _model(
    run: RunDirectory, architecture: str, parameters: int, dtype: str, manifest: Manifest, origin: str
) -> list[tuple[str, Any]]:
    return [
        ("architecture", architecture),
        ("parameters", f"{parameters:,}"),
        ("type of the weights", dtype),
        ("run and step", f"{run.name}, {manifest.step}"),
        ("digest of the state", manifest.state_digest),
        ("imported from", origin),
        ("license", None),
    ]


def _training(run: RunDirectory, step: int) -> list[tuple[str, Any]]:
    provenance, settings = read_provenance(run), read_settings(run)
    hardware, versions = provenance.get("hardware") or {}, provenance.get("versions") or {}
    packages = ", ".join(f"{name} {versions[name]}" for name in ("aifx", "jax", "python") if name in versions)
    rows = settings.get("train.global_batch_size"), settings.get("data.seq_len")
    dataset = (provenance.get("dataset") or {}).get("reference")
    return [
        ("steps", step if step else "none"),
        ("rows and tokens of a step", f"{rows[0]} x {rows[1]}" if step and None not in rows else None),
        ("data set", dataset),
        ("files", ", ".join(settings.get("data.train") or ()) if step and dataset is None else None),
        ("digest of the data", provenance.get("data_digest")),
        ("fine-tuned from", (provenance.get("finetuned_from") or {}).get("run")),
        ("device", hardware.get("device_kind")),
        ("processor", hardware.get("cpu")),
        ("versions", packages),
        ("energy", _energy(run)),
    ]


def _energy(run: RunDirectory) -> str | None:
    found = read_goodput(read_jsonl(run.events))
    return None if found.joules is None else f"{found.joules / 3.6e6:.4g} kWh, {' and '.join(found.energy_bases)}"


def _evaluation(run: RunDirectory, step: int) -> list[tuple[str, Any]]:
    found = [one for one in read_evaluations(run) if one.step == step]
    rows = [
        (f"{one.split}: {name}", f"{value:.4g}")
        for one in found
        for name, value in one.metrics.items()
        if isinstance(value, float)
    ]
    return rows or [("held-out metrics", None)]

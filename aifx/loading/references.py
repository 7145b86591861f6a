"""Log-probabilities of pairs of answers under the model that training starts from, computed once."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import replace

import numpy as np

from aifx.config.config import number_settings
from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of_json
from aifx.core.errors import CheckpointError
from aifx.core.progress import report_progress
from aifx.core.project import RunDirectory, cache_path
from aifx.data.chat.format import PreferenceData, References
from aifx.data.row_cache import read_cached
from aifx.data.splits import SPLITS
from aifx.loading.base_weights import with_base_params
from aifx.models.adapted import AdaptedModel
from aifx.parallel.joining import current_group
from aifx.programs.build import Programs
from aifx.programs.state import first_average
from aifx.registry.versions import ModelDirectory
from aifx.runs.agreement import agree, facts_of_program, share_choices
from aifx.runs.binding import BaseRun
from aifx.runs.provenance import read_provenance
from aifx.specs import Params


def with_references(programs: Programs, frozen: Params, run: RunDirectory) -> Programs:
    """The programs with references in their data, or unchanged if the data is not pairs of answers.

    aifx takes the references from the run, otherwise from the cache, by a digest of the data, the base run's weights
    and the model's settings. If neither has them, the processes of a job compute them together.

    Args:
        frozen: as the programs take them.

    Raises CheckpointError if they have to be computed and the base run is missing, has changed, or gives no finite
    log-probability.
    """
    dataset = programs.task.dataset
    if not isinstance(dataset, PreferenceData):
        return programs
    key, group = _key(programs, dataset, run), current_group()
    found = _find(key, run) if group.is_first else None
    # Process 0 sends its values: a cache may be that of one machine.
    sent = group.broadcast(None if found is None else b64encode(found.values.tobytes()).decode())
    if sent is None:
        found = References(key, _compute(programs, frozen, dataset, run))
        if group.is_first:
            path = cache_path("references") / key
            with writable_folder(path.parent):
                found.write(path)
    elif found is None:
        found = References(key, np.frombuffer(b64decode(sent), np.float32).reshape(-1, 2))
    return replace(programs, task=replace(programs.task, dataset=replace(dataset, references=found)))


def _key(programs: Programs, dataset: PreferenceData, run: RunDirectory) -> str:
    if isinstance(run, ModelDirectory):
        base = run.content.tuned_from
    else:
        base = (read_provenance(run).get("finetuned_from") or {}).get("digest")
    if base is None:
        what = f"{run.provenance} does not name the base run of run {run.name}"
        why = "a preference is measured from the weights that training started from"
        raise CheckpointError(what, why, f"restore {run.provenance}, or: aifx train --run {run.name} --fork NAME")
    others = ("train.precision", "train.parameter_dtype", "finetune.base_quantize")
    values = number_settings(programs.config)
    settings = {key: value for key, value in values.items() if key.startswith("model.") or key in others}
    return sha256_of_json([dataset.digest, base, settings])


def _find(key: str, run: RunDirectory) -> References | None:
    for path, what in ((run.reference, "references"), (cache_path("references") / key, "cached references")):
        found = read_cached(References.read, path, what)
        if found is not None and found.key == key:
            return found
    return None


def _compute(programs: Programs, frozen: Params, dataset: PreferenceData, run: RunDirectory) -> np.ndarray:
    params, step, group = _params_before_training(programs, run), programs.reference_step, current_group()
    if programs.kernels is not None:
        share_choices(group, programs.kernels, step.trace)
    agree(group, lambda: facts_of_program(step.lower(), programs.kernels))
    values = np.zeros((dataset.num_pairs, 2), np.float32)
    rows = programs.eval_rows
    sources = [dataset.source(s, rows, seed=None) for s in SPLITS if any(map(len, dataset.splits[s]))]
    with report_progress("computing the reference", sum(s.num_batches or 0 for s in sources), "batches") as progress:
        for source in sources:
            for number in range(source.num_batches or 0):
                group.mark(f"batch {number} of the reference")
                batch = programs.place(source.read(number, programs.layout.local_rows(rows)), rows)
                found = np.asarray(step(params, frozen, batch)["reference"])
                pairs = {row: source.pair(number * rows + row) for row in range(rows)}
                for row, pair in pairs.items():
                    if pair is not None:
                        values[pair] = found[row]
                progress.advance(1)
    _check_finite(values, dataset, run)
    return values


def _check_finite(values: np.ndarray, dataset: PreferenceData, run: RunDirectory) -> None:
    """Raise CheckpointError if the model before training gives an answer a log-probability that is not a number."""
    if not len(odd := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        return
    what = f"the answers of {len(odd):,} of {len(values):,} pairs have no finite log-probability before training"
    chosen, rejected = values[odd[0]]
    where = f"{dataset.place_of(int(odd[0]))}: {chosen}, {rejected} by"
    if isinstance(run, ModelDirectory):
        raise CheckpointError(what, f"{where} the weights that {run.title} was tuned from", "remove the pair")
    base = BaseRun(**read_provenance(run)["finetuned_from"])
    why = f"{where} {base.title}, step {base.step}"
    check = f"registry verify {base.run.partition('@')[0]}" if base.version else f"ckpt verify --run {base.run}"
    raise CheckpointError(what, why, f"aifx {check}")


def _params_before_training(programs: Programs, run: RunDirectory) -> Params:
    params: Params = programs.init_params()
    if not isinstance(programs.model, AdaptedModel):  # adapters begin with zeros, beside the base's matrices
        params = with_base_params(params, programs, run)
    return first_average(params) if programs.has_ema else params

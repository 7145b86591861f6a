"""Log-probabilities of pairs of answers under the model that training starts from, computed once."""

from __future__ import annotations

import logging
from dataclasses import replace

import jax
import numpy as np

from aifx.checkpoint.manifest import json_digest
from aifx.config.config import number_settings
from aifx.core.errors import ConfigError
from aifx.core.progress import report_progress
from aifx.core.project import RunDirectory, cache_path
from aifx.data.blocks import read_cached
from aifx.data.cache import cache_folder
from aifx.data.chat.preferences import PreferenceData, References
from aifx.data.chat.store import SPLITS
from aifx.loading.base_weights import frozen_arrays
from aifx.models.adapted import AdaptedModel
from aifx.programs.build import Programs
from aifx.runs.provenance import read_provenance
from aifx.specs import Params
from aifx.training.finetuning import with_base_weights

logger = logging.getLogger(__name__)


def with_references(programs: Programs, run: RunDirectory) -> Programs:
    """The programs with references in their data, or unchanged if the data is not pairs of answers.

    aifx reads the references from the run, otherwise from the cache, by a digest of the data, the base run's weights
    and the model's settings. If neither has them, it computes them with the model before its first step.

    Raises ConfigError if several processes would have to compute them.
    """
    dataset = programs.task.dataset
    if not isinstance(dataset, PreferenceData):
        return programs
    key = _key(programs, dataset, run)
    if dataset.references is None or dataset.references.key != key:
        path = cache_path("references") / key
        found = read_cached(References.read, path, "cached references")
        if found is None:
            found = References(key, _computed(programs, dataset, run))
            with cache_folder(path.parent):
                found.write(path)
        found.write(run.reference)
        dataset = replace(dataset, references=found)
    return replace(programs, task=replace(programs.task, dataset=dataset))


def _key(programs: Programs, dataset: PreferenceData, run: RunDirectory) -> str:
    base = read_provenance(run).get("finetuned_from") or {}
    others = ("train.precision", "train.parameter_dtype", "finetune.base_quantize")
    values = number_settings(programs.config)
    settings = {key: value for key, value in values.items() if key.startswith("model.") or key in others}
    return json_digest([dataset.digest, base.get("digest"), settings])


def _computed(programs: Programs, dataset: PreferenceData, run: RunDirectory) -> np.ndarray:
    if jax.process_count() > 1:
        why = "each process would compute the reference of its own rows alone"
        hint = "aifx train, once, as one process: the cache keeps what it computes"
        raise ConfigError("preferences are not trained by several processes yet", why, hint)
    params, frozen = _before_training(programs, run)
    values = np.zeros((dataset.num_pairs, 2), np.float32)
    rows = programs.eval_rows
    sources = [dataset.source(s, rows, seed=None) for s in SPLITS if any(map(len, dataset.splits[s]))]
    with report_progress("computing the reference", sum(s.num_batches or 0 for s in sources), "batches") as progress:
        for source in sources:
            for step in range(source.num_batches or 0):
                batch = programs.place(source.read(step, slice(0, rows)), rows)
                found = np.asarray(programs.reference_step(params, frozen, batch)["reference"])
                for row in range(rows):
                    if (pair := source.pair(step * rows + row)) is not None:
                        values[pair] = found[row]
                progress.advance(1)
    return values


def _before_training(programs: Programs, run: RunDirectory) -> tuple[Params, Params]:
    if isinstance(programs.model, AdaptedModel):
        return programs.init_state().evaluated, frozen_arrays(programs, run)
    state, frozen = programs.init()
    return with_base_weights(state, programs, run).evaluated, frozen

"""The settings of an evaluation: those that it takes, and those that its figures depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aifx.config import compare
from aifx.core.errors import UsageError
from aifx.core.project import Project, RunDirectory
from aifx.kinds import read_config
from aifx.loading.restore import RestoredRun, read_current
from aifx.registry.versions import ModelDirectory

SAFE_OVERRIDES = ("data.eval_stride", "data.seq_len", "data.packing")
"""Settings of how a split is read; nothing moves from one split to another by these."""

DATASET_READING = (*SAFE_OVERRIDES, "data.text_field", "data.errors")
"""Settings of how a file is read. The model was not trained on it, so none moves text from one split to another."""

MEASURING = (*DATASET_READING, "eval.group", "eval.quantize")
"""Settings that an evaluation chooses and that its figures depend on."""

ROUNDING_ALONE = ("eval.batch_size", "train.global_batch_size", "kernels.")
"""Beginnings of settings that change at most the rounding of the figures."""


def check_overrides(
    run: RunDirectory, project: Project, overrides: Sequence[str], safe: Sequence[str] = SAFE_OVERRIDES
) -> None:
    """Raise UsageError if overrides could put into the chosen split what the run was trained on."""
    if not overrides:
        return
    changed = compare(read_config(run.config, project), read_config(run.config, project, overrides))
    for d in changed:
        if d.key.startswith(("task.", "data.")) and d.key not in safe:
            raise UsageError(
                f"{d.key} is not to be changed for an evaluation",
                f"{run.title} was trained with {d.old!r}: with {d.new!r} it may be measured on what it learnt from",
                f"aifx eval {run.option}    (--set takes eval.*, {', '.join(safe)} and the like)",
            )


def measuring_settings(trained: RestoredRun) -> dict[str, Any]:
    """The settings that the figures of an evaluation depend on, by key: those of MEASURING, and other overrides.

    The digest of the model covers its other settings.
    """
    values = trained.config.values()
    found = {}
    for name in MEASURING:
        section, _, key = name.partition(".")
        if key in values[section]:
            found[name] = values[section][key]
    overridden = {one.key: one.new for one in compare(read_current(trained.run, trained.project), trained.config)}
    places = trained.run.files if isinstance(trained.run, ModelDirectory) else ()  # which data_digest covers
    others = {k: v for k, v in overridden.items() if not k.startswith(ROUNDING_ALONE) and k not in places}
    return dict(sorted({**found, **others}.items()))


def changed_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that two evaluations had differently, with both values; None if one has none."""
    keys = sorted({*first, *second})
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}

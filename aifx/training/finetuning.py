"""A run that begins with the weights of an earlier one: `[finetune] base_run`."""

from __future__ import annotations

from dataclasses import replace

from aifx.checkpoint.manifest import read_manifest
from aifx.config import Config
from aifx.config.sections import FinetuneSection
from aifx.core.digests import sha256_of
from aifx.core.errors import ConfigError
from aifx.core.files import read_file
from aifx.core.project import Project, RunDirectory
from aifx.data.text import TOKENIZER_FILE
from aifx.loading.base_weights import with_base_params
from aifx.programs.build import Programs
from aifx.programs.state import TrainState, first_average
from aifx.runs.base_run import BaseRun, weights_digest
from aifx.runs.provenance import read_provenance
from aifx.tasks.preflight import check_model
from aifx.training.resume_checks import Fork


def find_base(config: Config, project: Project, run: RunDirectory) -> RunDirectory | None:
    """The run that `[finetune]` names, or None. Raises UsageError, and ConfigError for another `[model]` than its own.

    Reads its configuration alone.
    """
    name = config.finetune.base_run
    if name is None:
        return None
    if name == run.name:
        why = "a run cannot begin with its own weights"
        raise ConfigError(f"finetune.base_run = {name!r} is this run", why, "aifx train --run ANOTHER-NAME")
    base = project.base_run(name)
    check_model(config, base, project)
    return base


def choose_base(config: Config, project: Project, run: RunDirectory) -> BaseRun | None:
    """The checkpoint that `[finetune]` names, or None. Raises UsageError, CheckpointError, ConfigError."""
    from aifx.loading.restore import choose_step

    base = find_base(config, project, run)
    if base is None:
        return None
    step = choose_step(base, config, config.finetune.base_step)
    manifest = read_manifest(base.checkpoints / str(step))
    _check_tokenizer(run, base, manifest.run.get("assets", {}).get(TOKENIZER_FILE))
    return BaseRun(base.name, step, weights_digest(manifest))


def base_of_fork(fork: Fork, finetune: FinetuneSection) -> BaseRun | None:
    """The base of a fork, which is that of its origin. Raises ConfigError for another, if it is still needed."""
    named = read_provenance(fork.run).get("finetuned_from")
    if not named:
        return None
    changed = [d for d in fork.changes if d.key in ("finetune.base_run", "finetune.base_step")]
    if changed and finetune.adapter != "none":
        what = f"a fork of run {fork.run.name!r} cannot have another base run"
        why = "\n".join([*map(str, changed), "its adapters were trained beside the weights of that one"])
        raise ConfigError(what, why, "aifx train --run NAME    (a new run, from its first step)")
    return BaseRun(**named)


def with_base_weights(state: TrainState, programs: Programs, run: RunDirectory) -> TrainState:
    """The state with the weights of the base run, as `with_base_params` takes them."""
    params = with_base_params(state.params, programs, run)
    return replace(state, params=params, ema=first_average(params) if programs.has_ema else None)


def _check_tokenizer(run: RunDirectory, base: RunDirectory, theirs: str | None) -> None:
    """Raise ConfigError if the token tables of the two runs number different tokens. `theirs`: SHA-256."""
    ours = run.assets / TOKENIZER_FILE
    if theirs is None or not ours.exists():
        return
    if sha256_of(read_file(ours, below=run.path)) != theirs:
        raise ConfigError(
            f"the tokenizer is not that of run {base.name}, which finetune.base_run names",
            "its weights know other tokens",
            f'tokenizer = "runs/{base.name}/assets/{TOKENIZER_FILE}"    (below [data])',
        )

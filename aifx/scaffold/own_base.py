"""The model that a project of the template fine-tune begins with: `aifx init --answer base=...`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifx.core.errors import UsageError
from aifx.core.project import Project, RunDirectory
from aifx.core.stores import open_store

TEMPLATE, QUESTION, BASE_RUN = "fine-tune", "base", "base"
"""The template, its question, and the name of the run that its projects begin with."""

BASE_CONFIG = f"{BASE_RUN}.toml"
"""The configuration of that run in projects that get no model."""

SEQ_LEN = 512
"""Tokens of a sequence, unless the base has fewer: conversations of the template are shorter."""

RATES = ((20e6, 1e-3), (200e6, 5e-4), (float("inf"), 2e-4))
"""Peak learning rates of adapters by the number of parameters up to which they fit."""

STEPS = 100


def make_base_run(template: str, answers: Mapping[str, Any], staging: Path) -> dict[str, Any]:
    """Make a run of the model that the answers name, in `staging`. Returns the template's variables; {} without a base.

    Raises UsageError for a run that does not write text, and the errors of `aifx.hub.importing.import_model`.
    """
    source = answers.get(QUESTION)
    if template != TEMPLATE or not source:
        return {}
    from aifx.hub.importing import import_model

    project, given = Project(staging / BASE_RUN), Path(source).expanduser()
    run = project.run(BASE_RUN)
    if (runs := list(Project(given).runs_path.glob("*/config.toml"))) and (given / "aifx.toml").is_file():
        hint = f"--answer {QUESTION}={sorted(runs)[0].parent}"
        raise UsageError(f"--answer {QUESTION}={source} is a project", "the base is one of its runs", hint)
    if RunDirectory(given).exists():
        run.path.parent.mkdir(parents=True)
        _copy(RunDirectory(given.resolve()), run)
    else:
        project.root.mkdir()
        import_model(source, project, BASE_RUN)
    return _answers(source, run, project)


def move_base_run(staging: Path, rendered: Path) -> None:
    """Put the run that `make_base_run` made, if it made one, among the files of the project."""
    if (runs := Project(staging / BASE_RUN).runs_path).is_dir():
        runs.rename(rendered / "runs")


def _copy(origin: RunDirectory, run: RunDirectory) -> None:
    """Copy the files of a run that generation and fine-tuning need, with its best checkpoint alone.

    Raises Damaged if a byte of the checkpoint has changed since it was saved.
    """
    from aifx.checkpoint.copying import copy_checkpoint, open_stored
    from aifx.kinds import read_config
    from aifx.loading.restore import choose_step

    config = read_config(origin.config, Project(origin.path.parent.parent), environ={})
    step = choose_step(origin, config, "best")
    run.path.mkdir()
    for path in (origin.config, origin.digests, origin.provenance, origin.imported, origin.kernels):
        if path.exists():
            shutil.copyfile(path, run.path / path.name)
    shutil.copytree(origin.assets, run.assets)
    copy_checkpoint(open_stored(str(origin.checkpoints / str(step))), open_store(str(run.checkpoints)))


def _answers(source: str, run: RunDirectory, project: Project) -> dict[str, Any]:
    from aifx.checkpoint.manifest import list_checkpoints, read_manifest
    from aifx.config.toml import to_toml
    from aifx.data.sections import OWN_TOKENIZERS, TokenSection
    from aifx.data.spec import need_spec
    from aifx.data.text import TOKENIZER_FILE
    from aifx.hub.starting import changed_values
    from aifx.kinds import read_config
    from aifx.models.decoder.section import DecoderSection

    config = read_config(run.config, project, environ={})
    data = config.data
    if not isinstance(data, TokenSection):
        why = f"its data is {config.parts.kinds['data'].name if config.parts.kinds else 'its own'}, not text"
        raise UsageError(f"--answer {QUESTION}={source} cannot be fine-tuned to answer", why, "--answer base=RUN")
    (checkpoint,) = list_checkpoints(run.checkpoints)
    parameters = read_manifest(run.checkpoints / str(checkpoint.step)).num_parameters
    is_own = data.tokenizer in OWN_TOKENIZERS
    values = {
        "tokenizer": f"runs/{BASE_RUN}/assets/{TOKENIZER_FILE}",
        "vocab_size": need_spec(run.assets).vocab_size,
        "end_tokens": None if is_own or not data.end_tokens else list(data.end_tokens),
        "begin_token": data.begin_token,
    }
    section = config.model
    has_table = isinstance(section, DecoderSection) and section.positions == "learned" and section.max_seq_len is None
    return {
        "base_source": str(source),
        "model_toml": _lines(to_toml({"model": changed_values(config.model)}, None)),
        "data_toml": _lines(to_toml({"data": {k: v for k, v in values.items() if v is not None}}, None)),
        "seq_len": data.seq_len if has_table else min(SEQ_LEN, data.seq_len),
        "learning_rate": next(rate for most, rate in RATES if parameters <= most),
        "num_steps": STEPS,
    }


def _lines(toml: str) -> str:
    """The keys of a section, without its header."""
    return toml.strip().partition("\n")[2]

"""From a run whose model predicts to a predictor that is ready."""

from __future__ import annotations

import logging
import time

from aifx.checkpoint.manifest import read_manifest
from aifx.config.serve_section import ServeSection
from aifx.core.digests import sha256_of, sha256_of_json
from aifx.core.errors import CheckpointError, UsageError
from aifx.data.base import DataFormat, undefined
from aifx.loading.restore import RestoredRun
from aifx.runs.base_run import weights_digest
from aifx.serving.energy import PowerMeter, Shares
from aifx.serving.predictor import Predictor, PredictorWeights, fields_of_spec, lower_prediction
from aifx.tasks.project_errors import project_errors

logger = logging.getLogger(__name__)


def start_predictor(trained: RestoredRun, serve: ServeSection) -> Predictor:
    """A predictor whose program is compiled, and which has predicted.

    Raises UsageError for a task that does not predict, or settings of `[serve]` that are for text.
    """
    started = time.monotonic()
    check_settings(serve)
    form = trained.task.format
    if form is None:
        raise undefined(type(trained.task), "format", "make predictions")
    if type(form).encode is DataFormat.encode:
        raise undefined(type(form), "encode", "make predictions")
    with project_errors(trained.config.parts, trained.project):
        programs, _, _ = trained.programs("none")
        fields = fields_of_spec(programs.task.data)
        program_digest = sha256_of(lower_prediction(programs, fields).as_text())
        weights = load_weights(trained, program_digest)
        shares = Shares(PowerMeter(programs.layout.devices, serve.power_w), serve.price_per_hour)
        predictor = Predictor(programs, weights, program_digest, queue=serve.queue, shares=shares)
    if (why := predictor.probe(weights)) is not None:
        raise CheckpointError("the model cannot predict", why, "aifx eval, for a first look")
    logger.info(
        f"{predictor.rows_per_batch} rows in one call of the program; ready in {time.monotonic() - started:.1f} s"
    )
    predictor.start()
    return predictor


def load_weights(trained: RestoredRun, program_digest: str) -> PredictorWeights:
    """A run's arrays, with the fingerprint of what they predict by a program."""
    objective = trained.task.objective
    manifest = read_manifest(trained.run.checkpoints / str(trained.step))
    known = [weights_digest(manifest), program_digest, objective.decides_by(trained.task.data)]
    return PredictorWeights(trained.params, trained.frozen, objective, f"fp_{sha256_of_json(known)[:32]}")


def check_settings(serve: ServeSection) -> None:
    """Raises UsageError for what only a model that writes text has."""
    given = {
        "adapters": serve.adapters,
        "quantize": serve.quantize != "none",
        "memory": serve.memory,
        "max_model_len": serve.max_model_len,
        "log_requests": serve.log_requests,
    }
    if wrong := next((key for key, value in given.items() if value), None):
        why = "it is for models that write text, and this run predicts"
        raise UsageError(f"serve.{wrong} cannot be used", why, f"aifx serve, without serve.{wrong}")

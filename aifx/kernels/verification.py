"""Kernels that were never tried on this kind of device are verified before a run opens the device and uses them."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import count
from typing import Any

import jax
from jax._src.distributed import global_state  # jax.process_index() opens the device, and has no store of keys

from aifx.config import Config
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.files import make_private
from aifx.core.project import Project, RunDirectory
from aifx.kernels.choice import project_calls_isolated, winners_path
from jax_kernels.dispatch import AUTO
from jax_kernels.implementations import Device
from jax_kernels.trials import LIMIT_S, START_S, TrialProcess
from jax_kernels.tuning import TuningCache, check_or_time, verify

logger = logging.getLogger(__name__)

TRACE_LIMIT_S = 600.0
"""The other processes wait so long for process 0 to trace the project's programs."""


def verify_kernels(project: Project, config: Config, run: RunDirectory) -> None:
    """Try kernels of ours that were never tried on this kind of device, before this process opens it.

    If a kernel computes what XLA does, every run on such a device uses it from then on. If it does not, or crashes or
    hangs, no run uses it, and this run reports that. A run that has begun keeps its choices, and nothing is tried.

    Of the processes of `jax.distributed`, process 0 does this. The others wait for its verdict and keep it.

    Raises EnvironmentFault in the others if process 0 fails or takes too long.
    """
    if not may_have_accelerator():
        return
    if not jax.distributed.is_initialized() or global_state.num_processes == 1:
        _verify(project, config, run, on_limit=lambda limit_s: None)
    elif global_state.process_id == 0:
        _verify_for_all(project, config, run)
    else:
        _receive()


def may_have_accelerator() -> bool:
    """Whether JAX can find another device than the CPU, judged by the plugins that are installed."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return set(asked.split(",")) != {"cpu"}
    return bool(entry_points(group="jax_plugins")) or find_spec("jax_plugins") is not None or bool(find_spec("libtpu"))


def _verify(
    project: Project, config: Config, run: RunDirectory, on_limit: Callable[[float], None]
) -> tuple[Device, TuningCache] | None:
    """The device and what is now known of its kernels; None if the run does not need that.

    `on_limit` is called with the seconds that trying the kernels takes at most.
    """
    if run.kernels.exists():
        return None
    folder = winners_path()
    try:
        make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logger.warning(f"kernels are not verified, since no verdict can be kept: {folder}: {error.strerror}")
        return None
    try:
        device, calls, _ = project_calls_isolated(project, config)
    except AifxError:
        return None  # the run comes to it as well, and reports it
    tuning_cache = TuningCache(folder, device)
    asked = config.kernels.model_dump()
    open_calls = [found for found in calls if asked.get(found.op.name, AUTO) == AUTO]
    on_limit(sum(len(found.op.preference[device.platform]) for found in open_calls) * (START_S + LIMIT_S))
    try:
        with TrialProcess(check_or_time) as trials:
            for found in open_calls:
                verify(found.op, found.call, device, tuning_cache, trials)
    except ChildProcessError as error:
        logger.warning(f"not all kernels are verified: {error}")
    return device, tuning_cache


def _verify_for_all(project: Project, config: Config, run: RunDirectory) -> None:
    client, keys = global_state.client, _keys()
    assert client is not None

    def publish(**message: Any) -> None:
        client.key_value_set(next(keys), json.dumps(message))

    try:
        found = _verify(project, config, run, on_limit=lambda limit_s: publish(limit_s=limit_s))
    except BaseException as error:
        publish(error=str(error) or type(error).__name__)
        raise
    if found is None:
        publish()
    else:
        publish(kind=found[0].kind, platform=found[0].platform, known=found[1].document())


def _receive() -> None:
    client = global_state.client
    assert client is not None
    limit_s, what = TRACE_LIMIT_S, "process 0 did not verify the kernels of this run"
    for key in _keys():
        try:
            text = client.blocking_key_value_get(key, round(1000 * limit_s))
        except jax.errors.JaxRuntimeError as error:
            why = f"no verdict came: {str(error).splitlines()[0]}"
            raise EnvironmentFault(what, why, "read the log of process 0") from None
        message = json.loads(text)
        if "error" in message:
            raise EnvironmentFault(what, message["error"], "read the log of process 0")
        if "limit_s" not in message:
            break
        limit_s = START_S + message["limit_s"]
    if message:
        make_private(winners_path())
        TuningCache(winners_path(), Device(message["platform"], message["kind"])).merge(message["known"])


_verifications = count()
"""All processes count them alike. A run may be verified twice in one process, and no key can be set twice."""


def _keys() -> Iterator[str]:
    """Keys of the messages of process 0, in their order."""
    verification = next(_verifications)
    return (f"aifx/kernels/choice/{verification}/{number}" for number in count())

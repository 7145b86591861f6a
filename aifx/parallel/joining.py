"""Joining a job's processes with JAX's own multi-process runtime, and leaving it again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import jax

from aifx.core.errors import AifxError, ConfigError, EnvironmentFault, ExitCode
from aifx.core.lifecycle import end_with, on_abort
from aifx.core.os_errors import refusal_in
from aifx.core.progress import overhear
from aifx.machine.compilation_cache import store_in_each_process
from aifx.machine.device_memory import is_out_of_memory
from aifx.parallel.connections import free_port
from aifx.parallel.group import Disagreement, Group, Limits, PeerLost
from aifx.parallel.joined_group import JoinedGroup
from aifx.parallel.processes import AGAIN, Membership, detect_here, resolve

RESOLVE_S = 60.0
"""A cluster's name service may not know a pod yet that has just started."""

SHUTDOWN_S = 30
CLOSES_S = 5.0
"""The kernel closes the sockets of a process that was killed one after another, on a busy machine with long pauses."""

_current: Group = Group()


def current_group() -> Group:
    """The processes of the job that this process has joined; a job of one process if it has not joined any."""
    return _current


@contextmanager
def joined(limits: Limits, on_loss: Callable[[PeerLost], None] = lambda _: None) -> Iterator[Group]:
    """Join the job that this process is one of (`aifx.parallel.processes`), until the block ends.

    If the block raises, the other processes end as well. After that, this process cannot end as Python does: JAX would
    wait for the others, and abort. `aifx.commands.main` ends it by `exit_now`.

    Args:
        on_loss: called in another thread when another process is gone.

    Raises ConfigError, EnvironmentFault; PeerLost if another process is gone.
    """
    global _current
    me = detect_here()
    if me is None:
        yield _current
        return
    _check_untouched()
    if (launcher := os.environ.get("AIFX_LAUNCHER", "")).isdecimal():
        end_with(int(launcher))
    address = resolve(me.host, min(RESOLVE_S, limits.connect_s))
    group = JoinedGroup(me, address, limits, on_loss)
    _exit_on_lost_coordinator(group)
    _current = group
    try:
        with stdout_for_answers(), overhear(lambda _: group.work_on()):
            _initialize(me, group, address, limits)
            yield group
            group.finish()
        jax.distributed.shutdown()
        _current = Group()
    except BaseException as error:
        raise failure_for_others(group, error) from error


_stdout = -1
"""A copy of the file of stdout while `stdout_for_answers` has put that of stderr in its place."""


@contextmanager
def stdout_for_answers() -> Iterator[None]:
    """Send to stderr what libraries print to stdout: Gloo announces there, past Python, each group that it connects."""
    global _stdout
    with suppress(OSError):  # one of them is closed
        _stdout = os.dup(1)
        os.dup2(2, 1)
    try:
        yield
    finally:
        restore_stdout()


def restore_stdout(*_: object) -> None:
    """End `stdout_for_answers`, also before a process ends where it stands."""
    global _stdout
    if _stdout >= 0:
        os.dup2(_stdout, 1)
        _stdout = -1


def _check_untouched() -> None:
    from jax._src import xla_bridge  # there is no public way to ask

    if jax.distributed.is_initialized() or xla_bridge.backends_are_initialized():
        what = "JAX was used before aifx could connect the processes of this job"
        why = "the devices of the others must be known before the first computation"
        raise ConfigError(what, why, "call aifx.train first, and leave jax.distributed.initialize to it")


def _initialize(me: Membership, group: JoinedGroup, address: str, limits: Limits) -> None:
    port = group.broadcast(free_port(address) if group.is_first else None)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM before Python sees it
    store_in_each_process(me.process_id)
    host = f"[{address}]" if ":" in address else address
    try:
        jax.distributed.initialize(
            f"{host}:{port}",
            me.num_processes,
            me.process_id,
            local_device_ids=me.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=round(limits.connect_s),
            shutdown_timeout_seconds=SHUTDOWN_S,
        )
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0]
        raise EnvironmentFault("JAX did not connect the processes", why, AGAIN) from error


def failure_for_others(group: JoinedGroup, error: BaseException) -> BaseException:
    """Let the other processes know of an error. Returns the error that this process ends for."""
    if (lost := group.loss_behind(error)) is not None:
        group.await_end()
        return lost
    if isinstance(error, Disagreement):
        group.finish()
    elif isinstance(error, AifxError):
        group.fail(error)
    else:
        code = ExitCode.BUG if isinstance(error, Exception) else ExitCode.PREEMPTED
        code = ExitCode.UNABLE if is_out_of_memory(error) or refusal_in(error) is not None else code
        group.fail(AifxError(f"{type(error).__name__}: {error}", exit_code=code))
    return error


def _exit_on_lost_coordinator(group: JoinedGroup) -> None:
    """Exit when JAX aborts this process because process 0, which holds its coordination service, is gone.

    JAX notices as soon as the group does, and calls abort() in a thread of its own.
    """

    def code_if_lost() -> int | None:
        deadline = time.monotonic() + CLOSES_S
        while time.monotonic() < deadline:
            if not group.reaches_first():
                return group.exit_code
            time.sleep(0.005)
        return None

    on_abort(code_if_lost)

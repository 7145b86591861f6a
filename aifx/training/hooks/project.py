"""Hooks of a project's own, which `train.hooks` names, and of a caller of `aifx.train`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any

import jax

from aifx.config.parts import import_object
from aifx.config.project_errors import project_errors
from aifx.core.errors import ConfigError
from aifx.core.project import CONFIG_NAME, Project
from aifx.data.base import Batch
from aifx.parallel.group import Group
from aifx.programs.state import TrainState
from aifx.training.hook import Hook, Stop, TakeStep
from aifx.training.records import Record, RunInfo, TrainResult

logger = logging.getLogger(__name__)

KEY = "train.hooks"


def find_hook(name: str, project: Project) -> type[Hook]:
    """The class that `train.hooks` names. Raises ConfigError."""
    found = import_object(KEY, name, project)
    if not (isinstance(found, type) and issubclass(found, Hook)):
        raise _unusable(name, "it is not a class that derives from aifx.extend.Hook")
    return found


def open_hooks(names: Sequence[str], project: Project, group: Group) -> list[ProjectHook]:
    """The hooks that `train.hooks` names. Raises ConfigError for one that cannot be imported or made."""
    return [ProjectHook(name, project, group) for name in names]


def shared_hooks(hooks: Sequence[Hook], group: Group) -> list[Hook]:
    """The hooks of a caller. In a job of several processes, those that may pause or end the run do so in all alike."""
    return [SharedHook(_name_of(hook), hook, group) if group.size > 1 and _steers(hook) else hook for hook in hooks]


def steering_hooks(hooks: Sequence[Hook]) -> list[str]:
    """The names of those that may pause or end a run, which all processes of a job must have."""
    return [_name_of(hook) for hook in hooks if _steers(hook)]


def _steers(hook: Hook) -> bool:
    return type(hook).pauses is not Hook.pauses or type(hook).at_pause is not Hook.at_pause


def _name_of(hook: Hook) -> str:
    return f"{type(hook).__module__}:{type(hook).__qualname__}"


class SharedHook(Hook):
    """Calls a hook in the processes that it is for. All processes stop if `at_pause` returns Stop in any.

    Each process has it, since all of them pause after the same steps and agree on what `at_pause` decided in any.
    """

    all_processes = True

    def __init__(self, name: str, hook: Hook, group: Group) -> None:
        self._name, self._hook, self._group = name, hook, group
        self._is_called = group.is_first or hook.all_processes

    def start(self, info: RunInfo) -> None:
        self._call("start", info)

    def pauses(self, step: int) -> bool:
        with self._errors("pauses"):
            return bool(self._hook.pauses(step))

    def around_step(self, take_step: TakeStep) -> TakeStep:
        return self._call("around_step", take_step) or take_step

    def after_step(self, record: Record, batch: Batch) -> None:
        self._call("after_step", record, batch)

    def at_pause(self, state: TrainState, record: Record) -> Record | Stop | None:
        if type(self._hook).at_pause is Hook.at_pause:
            return None
        found: Record | Stop | None = self._call("at_pause", state, record)
        self._check_answer(found, record)
        reasons = self._group.gather(found.why if isinstance(found, Stop) else None)
        why = self._group.broadcast(next((reason for reason in reasons if reason is not None), None))
        if why is not None:
            logger.info(f"{self._name} ends the run after step {record.step}" + (f": {why}" if why else ""))
            return Stop(why)
        return found

    def on_record(self, record: Record) -> None:
        self._call("on_record", record)

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        self._call("on_event", name, fields)

    def stop(self, result: TrainResult | None) -> None:
        self._call("stop", result)

    def _call(self, method: str, *arguments: Any) -> Any:
        if not self._is_called:
            return None
        with self._errors(method):
            return getattr(self._hook, method)(*arguments)

    def _errors(self, method: str) -> AbstractContextManager[None]:
        return nullcontext()

    def _check_answer(self, found: Any, record: Record) -> None:
        """Raise if `at_pause` must not return this."""


class ProjectHook(SharedHook):
    """A hook of the project: turns what it raises into a ConfigError."""

    def __init__(self, name: str, project: Project, group: Group) -> None:
        self._project = project
        self._type = find_hook(name, project)
        self._name = name
        with self._errors("__init__"):
            hook = self._type()
        super().__init__(name, hook, group)

    def around_step(self, take_step: TakeStep) -> TakeStep:
        below: list[tuple[Exception, TracebackType | None]] = []

        def inner(step: int, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
            try:
                return take_step(step, state, batch)
            except Exception as error:
                below.append((error, error.__traceback__))
                raise

        def outer(step: int, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
            below.clear()
            try:
                with self._errors("around_step"):
                    taken: tuple[TrainState, jax.Array] = around(step, state, batch)
                    return taken
            except Exception:
                if below:  # the step failed, and the hook is not to blame: without its frames in the traceback
                    error, where = below[-1]
                    raise error.with_traceback(where) from error.__cause__
                raise

        around = self._call("around_step", inner)
        if around is None or around is inner:
            return take_step
        if not callable(around):
            raise _unusable(
                self._name, f"around_step returned {type(around).__name__}, not a function that takes a step"
            )
        return outer

    def _errors(self, method: str) -> AbstractContextManager[None]:
        return project_errors(f"{KEY} = {self._name!r}", self._project, f"{self._type.__name__}.{method}")

    def _check_answer(self, found: Any, record: Record) -> None:
        """Raise ConfigError unless `found` is None, Stop, `record`, or that with more numbers in its validation."""
        if not isinstance(found, Record | Stop | None):
            raise _unusable(self._name, f"at_pause returned {type(found).__name__}, not a Record, Stop or None")
        if not isinstance(found, Record):
            return
        before, after = record.validation, found.validation
        more = {} if after is None else {key: value for key, value in after.items() if key not in (before or {})}
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in more.values())
        is_kept = replace(found, validation=before) == record and (before is None) == (after is None)
        if not (is_kept and numbers and {**(after or {}), **(before or {})} == (after or {})):
            why = "at_pause returned a record that differs in more than new numbers in its validation"
            raise _unusable(self._name, why)


def _unusable(name: str, why: str) -> ConfigError:
    return ConfigError(f"{CONFIG_NAME}: {KEY} = {name!r} cannot be used", why, "docs/hooks.md has an example")

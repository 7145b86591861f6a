"""The step's parts as programs of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from aifx.benchmarking.train.subject import Subject
from aifx.machine.device_memory import extra_bytes
from aifx.programs.build import Programs

STILL = 1e-6
"""Of the learning rate, for updates by the same gradients over and over, which would lead away from any model."""


class Parts:
    """Forward, forward with backward, and the update, each a program. They begin from their subject's state.

    Attributes:
        num_bytes: what they need on the devices in addition to the state and the batches; None if XLA does not say.
    """

    def __init__(self, subject: Subject) -> None:
        parts = _still(subject.programs).parts
        self._subject = subject
        self._gradients: Any = None
        self._forward, self._forward_backward, self._update = (
            parts[name].lower().compile() for name in ("forward", "forward_backward", "update")
        )

    @property
    def num_bytes(self) -> int | None:
        own = [extra_bytes(program) for program in (self._forward_backward, self._update)]
        known = [count for count in own if count is not None]
        return 2 * max(known) if known else None  # of one call, and of the next one that is dispatched already

    def forward(self) -> jax.Array:
        state = self._subject.state
        loss: jax.Array = self._forward(state, self._subject.frozen, self._subject.next_batch())
        return loss

    def forward_backward(self) -> jax.Array:
        state = self._subject.state
        loss: jax.Array
        loss, self._gradients = self._forward_backward(state, self._subject.frozen, self._subject.next_batch())
        return loss

    def optimizer(self) -> jax.Array:
        """Clipping and update, with the gradients that were formed last."""
        if self._gradients is None:
            self.forward_backward()
        norm: jax.Array
        self._subject.state, norm = self._update(self._subject.state, self._gradients)
        return norm


def _still(programs: Programs) -> Programs:
    """The same programs at a learning rate that changes next to nothing."""
    section = programs.config.optimizer
    rates = {"learning_rate": section.learning_rate * STILL}
    if section.adam_learning_rate is not None:
        rates["adam_learning_rate"] = section.adam_learning_rate * STILL
    return replace(programs, config=replace(programs.config, optimizer=section.model_copy(update=rates)))

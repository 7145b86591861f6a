"""The step's parts as programs of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import optax

from aifx.benchmarking.train.subject import Subject
from aifx.machine.device_memory import extra_bytes
from aifx.parallel import replicated
from aifx.training.optimizers import select_weights
from aifx.training.state import TrainState
from aifx.training.step import abstract_batch, apply_gradients, mean_gradients, mean_loss, step_key

STILL = 1e-6
"""Of the learning rate, for updates by the same gradients over and over, which would lead away from any model."""


class Parts:
    """Forward, forward with backward, and the update, each a program. They begin from their subject's state.

    Attributes:
        num_bytes: what they need on the devices besides the state and the batches; None where XLA does not tell.
    """

    def __init__(self, subject: Subject) -> None:
        step_spec, state = subject.step_spec, subject.abstract
        still = replace(step_spec, schedule=optax.constant_schedule(STILL))
        batch = abstract_batch(step_spec, subject.batches[0])
        everywhere = replicated(step_spec.mesh)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        of_gradients = select_weights(shardings.params, step_spec.specs)
        weights = select_weights(state.params, step_spec.specs)

        def forward(params: Any, step: jax.Array, batch: Any) -> jax.Array:
            return mean_loss(step_spec, params, batch, step_key(step_spec, step))

        def forward_backward(params: Any, step: jax.Array, batch: Any) -> tuple[jax.Array, Any]:
            return mean_gradients(step_spec, params, batch, step_key(step_spec, step))

        def update(state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array]:
            state, norm, _ = apply_gradients(still, state, gradients)
            return state, norm

        given = state.params, state.step, batch
        self._subject = subject
        self._gradients: Any = None
        with subject.using_kernels():
            jitted = jax.jit(forward, out_shardings=everywhere)
            self._forward = jitted.lower(*given).compile()
            jitted = jax.jit(forward_backward, out_shardings=(everywhere, of_gradients))
            self._forward_backward = jitted.lower(*given).compile()
            jitted = jax.jit(update, donate_argnums=0, out_shardings=(shardings, everywhere))
            self._update = jitted.lower(state, weights).compile()

    @property
    def num_bytes(self) -> int | None:
        own = [extra_bytes(program) for program in (self._forward_backward, self._update)]
        known = [count for count in own if count is not None]
        return 2 * max(known) if known else None  # of one call, and of the next one that is dispatched already

    def forward(self) -> jax.Array:
        state = self._subject.state
        loss: jax.Array = self._forward(state.params, state.step, self._subject.next_batch())
        return loss

    def forward_backward(self) -> jax.Array:
        state = self._subject.state
        loss: jax.Array
        loss, self._gradients = self._forward_backward(state.params, state.step, self._subject.next_batch())
        return loss

    def optimizer(self) -> jax.Array:
        """Clipping and update, with the gradients that were formed last."""
        if self._gradients is None:
            self.forward_backward()
        norm: jax.Array
        self._subject.state, norm = self._update(self._subject.state, self._gradients)
        return norm

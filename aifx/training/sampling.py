"""Text of a language model while it trains."""

from __future__ import annotations

from itertools import takewhile

import jax

from aifx.core.project import RunDirectory
from aifx.generation.generator import continue_prompt
from aifx.kernels.choice import run_choices
from aifx.parallel.layout import local_layout
from aifx.programs.build import Programs, build
from aifx.specs import Params
from aifx.training.signals import StopSignals


class TextSampler:
    """Continues `log.sample`, with the same random numbers each time. It changes no number of the training."""

    def __init__(self, run: RunDirectory, programs: Programs, stop: StopSignals) -> None:
        config = programs.config
        kernels = run_choices(run, config, keep=False)
        self._programs = build(config, programs.task, local_layout(1), kernels=kernels)
        self.prompt = config.log.sample or ""
        update = {"prompt": self.prompt, "max_tokens": config.log.sample_tokens}
        self._settings = config.generate.model_copy(update=update)
        self._stop = stop

    def __call__(self, params: Params, frozen: Params) -> str:
        """The text that follows the prompt; cut short if a stop is requested meanwhile."""
        params, frozen = jax.device_put((params, frozen), self._programs.layout.devices[0])
        seed = self._programs.config.train.seed
        pieces = continue_prompt(self._programs, params, frozen, self._settings, seed=seed)
        return "".join(takewhile(lambda _: not self._stop.requested, pieces))

"""Text of a language model while it trains."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import takewhile

import jax

from aifx.core.errors import CheckpointError
from aifx.core.project import RunDirectory
from aifx.data.text import TokenFormat
from aifx.kernels.choice import run_choices
from aifx.programs.build import Programs
from aifx.serving.generate import continue_prompt
from aifx.specs import Params
from aifx.training.signals import StopSignals

logger = logging.getLogger(__name__)


class TextSampler:
    """Continues `log.sample`, or answers it in a chat, with the same random numbers each time.

    It changes no number of the training.
    """

    def __init__(self, run: RunDirectory, programs: Programs, stop: StopSignals) -> None:
        config = programs.config
        self._programs = replace(programs, kernels=run_choices(run, config.kernels, keep=False))
        self.prompt = config.log.sample or ""
        update = {"prompt": self.prompt, "max_tokens": config.log.sample_tokens}
        self._settings = config.generate.model_copy(update=update)
        self._stop = stop

    def __call__(self, params: Params, frozen: Params) -> str:
        """The text that follows the prompt, cut short if a stop is requested meanwhile.

        Several processes write it together: none of them may leave.
        """
        programs = self._programs
        form, seed = programs.task.format, programs.config.train.seed
        assert isinstance(form, TokenFormat)
        prompt = form.sample_prompt(self.prompt)
        pieces = continue_prompt(programs, params, frozen, self._settings, seed=seed, prompt_ids=prompt)
        try:
            return "".join(takewhile(lambda _: jax.process_count() > 1 or not self._stop.requested, pieces))
        except CheckpointError as error:  # what to do about it is for `[guards]`
            logger.warning(f"no sample: {error.why}")
            return ""

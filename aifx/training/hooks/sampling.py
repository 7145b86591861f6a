"""Text of a language model while it trains."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import takewhile

from aifx.core.errors import CheckpointError
from aifx.core.project import RunDirectory
from aifx.core.stop_signals import StopSignals
from aifx.data.text import TokenFormat
from aifx.kernels.choice import run_choices
from aifx.programs.build import Programs
from aifx.programs.state import TrainState
from aifx.serving.generate import continue_prompt
from aifx.specs import Params
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.records import Record

logger = logging.getLogger(__name__)


class Sampling(Hook):
    """Continues `log.sample`, or answers it in a chat, after each validation, with the same random numbers each time.

    It changes no number of the training.
    """

    def __init__(
        self, run: RunDirectory, programs: Programs, frozen: Params, signals: StopSignals, dispatcher: EventDispatcher
    ) -> None:
        config = programs.config
        self._programs = replace(programs, kernels=run_choices(run, config.kernels, keep=False))
        self._frozen = frozen
        self._prompt = config.log.sample or ""
        update = {"prompt": self._prompt, "max_tokens": config.log.sample_tokens}
        self._settings = config.generate.model_copy(update=update)
        self._signals = signals
        self._dispatcher = dispatcher

    def at_pause(self, state: TrainState, record: Record) -> None:
        if record.validation is not None:
            with self._dispatcher.account.spending("evaluation"):
                text = self._sample(state.evaluated)
                self._dispatcher.event("sample", step=record.step, prompt=self._prompt, text=text)

    def _sample(self, params: Params) -> str:
        """The text that follows the prompt, cut short if a stop is requested meanwhile."""
        programs = self._programs
        token_format, seed = programs.task.format, programs.config.train.seed
        assert isinstance(token_format, TokenFormat)
        prompt = token_format.sample_prompt(self._prompt)
        pieces = continue_prompt(programs, params, self._frozen, self._settings, seed=seed, prompt_ids=prompt)
        try:
            return "".join(takewhile(lambda _: not self._signals.requested, pieces))
        except CheckpointError as error:  # what to do about it is for `[guards]`
            logger.warning(f"no sample: {error.why}")
            return ""

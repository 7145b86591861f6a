"""Text from a run's language model, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from aifx.config.sections import GenerateSection, Quantization
from aifx.generation.generator import generate
from aifx.kernels.choice import run_choices
from aifx.nn.precision import cast_floating, compute_dtype
from aifx.nn.quantized import quantize_matrices
from aifx.tasks.language import stream_text
from jax_kernels.dispatch import using

if TYPE_CHECKING:
    from aifx.tasks import LoadedGenerator


@dataclass(frozen=True)
class GeneratedText:
    """What `aifx generate --json` prints. `text` is what follows the prompt."""

    run: str
    step: int
    prompt: str
    text: str
    seed: int
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    quantize: Quantization

    @classmethod
    def of(cls, generator: LoadedGenerator, settings: GenerateSection, seed: int, text: str) -> GeneratedText:
        return cls(run=generator.run.name, step=generator.step, text=text, seed=seed, **settings.model_dump())


def write(generator: LoadedGenerator, settings: GenerateSection, seed: int) -> Iterator[str]:
    """The text after `settings.prompt`, in pieces of whole characters as they are generated."""
    config, model, tokenizer = generator.config, generator.model, generator.tokenizer
    params = cast_floating(generator.params, compute_dtype(config.train.precision, jax.default_backend()))
    prompt_ids = tokenizer.encode(settings.prompt) or [tokenizer.eos_id]
    ids = generate(
        model,
        quantize_matrices(params, model.specs(), settings.quantize),
        prompt_ids,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=seed,
        eos_id=tokenizer.eos_id,
    )
    with using(run_choices(generator.run, config, keep=False)):
        yield from stream_text(tokenizer, prompt_ids, ids)

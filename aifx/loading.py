"""A run's model, ready to use: what `aifx.load` returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.config.sections import GenerateSection, Quantization
from aifx.core.errors import UsageError
from aifx.core.project import Project, RunDirectory
from aifx.data.rows import InputFile, Row, input_file

if TYPE_CHECKING:
    from aifx.tasks import LoadedGenerator
    from aifx.tasks.trained import RestoredRun, Which


@dataclass(frozen=True)
class LoadedModel:
    """A trained model without the data that it was trained on."""

    trained: RestoredRun

    @property
    def run(self) -> str:
        return self.trained.run.name

    @property
    def step(self) -> int:
        return self.trained.step

    def predict(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """A prediction for each row, in order; a batch at a time, so that memory does not grow with the rows.

        Args:
            rows: mappings with the fields that the task reads, such as {"text": "Call me Ishmael."}.

        Raises DataError for a row that cannot be used.
        """
        numbered = (Row("rows", number, f"row {number}", values) for number, values in enumerate(rows, 1))
        return (prediction for _, prediction in self.predict_rows(numbered))

    def predict_files(self, *paths: str | Path) -> Iterator[dict[str, Any]]:
        """A prediction for each row or image of the files, in order."""
        rows = self.read([input_file(str(path)) for path in paths])
        return (prediction for _, prediction in self.predict_rows(rows))

    def read(self, files: Iterable[InputFile]) -> Iterator[Row]:
        """The rows of files as the task reads them. Raises DataError naming the file and the line."""
        for file in files:
            yield from self.trained.task.read_rows(file)

    def predict_rows(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Each row with its prediction, in order."""
        from aifx.evaluation.prediction import predict_rows

        return predict_rows(self.trained, rows)


def load_model(
    run: RunDirectory,
    project: Project,
    *,
    step: int | None = None,
    which: Which | None = None,
    overrides: tuple[str, ...] = (),
) -> LoadedModel:
    """Open a run's model. Takes and raises what `aifx.tasks.restore_run` does."""
    from aifx.tasks.trained import restore_run

    trained = restore_run(run, project, step=step, which=which, overrides=overrides, with_data=False)
    return LoadedModel(trained)


def load(run: str | PathLike[str], *, step: int | str | None = None) -> LoadedModel:
    """Implement `aifx.load`, which documents it."""
    directory = RunDirectory(Path(run).absolute())
    if not directory.exists():
        raise UsageError(f"no run at {run}", "it has no config.toml", "aifx runs ls")
    parent = directory.path.parent
    project = Project(parent.parent if parent.name == "runs" else parent)
    if isinstance(step, str):
        if step not in ("best", "last"):
            raise UsageError(f"step {step!r} is not a step", "a number, 'best' or 'last'", "aifx ckpt ls")
        which: Which = "best" if step == "best" else "last"
        return load_model(directory, project, which=which)
    return load_model(directory, project, step=step)


def _ignore(_: str) -> None:
    """A library prints nothing."""


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


def write_text(generator: LoadedGenerator, settings: GenerateSection, seed: int) -> Iterator[str]:
    """The text after `settings.prompt`, in pieces of whole characters as they are generated."""
    import jax

    from aifx.generation.generator import generate
    from aifx.kernels.choice import run_choices
    from aifx.nn.precision import cast_floating, compute_dtype
    from aifx.nn.quantized import quantize_matrices
    from aifx.tasks.language import stream_text
    from jax_kernels.dispatch import using

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

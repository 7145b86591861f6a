"""Measure a language model on questions as lm-evaluation-harness does, with intervals of a seeded bootstrap.

Questions are rows with the fields that the tasks of lm-evaluation-harness have. A row has a text, and either choices,
of which some are right, or a target that the model is to write:

    query, question, ctx, prompt, text, doc_to_text, question_stem, goal        the text
    choices, endings, doc_to_choice             texts, or {"text": [...], "label": [...]}; sol1, sol2
    gold, gold_index, label, answer, answerKey, target, doc_to_target     a place from 0, a label, or a choice's text
    target, answer, answers, doc_to_target      without choices: the text, or several of which any is right
    target_delimiter                            between text and choice; a space if not given
    until                                       texts at which what the model writes ends; a line end if not given
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from aifx.config.gates import check_names, evaluate_gates, parse_gate
from aifx.config.project_errors import project_errors
from aifx.core.digests import sha256_of_json
from aifx.core.errors import CheckpointError, DataError, UsageError
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import StepChoice
from aifx.data.base import TEXT_BYTES, Batch
from aifx.data.chat.rendering import COMPLETION, ChatRenderer
from aifx.data.readers.rows import Row, read_rows
from aifx.data.readers.sources import check_regular, local_file
from aifx.data.text import TokenFormat
from aifx.data.tokenizer import Tokenizer
from aifx.evaluation.dataset import DatasetReport, DatasetReports, digest_of, display_name, keep_report
from aifx.evaluation.held_out import Part
from aifx.evaluation.settings import DATASET_READING, check_overrides, measuring_settings
from aifx.loading.prediction import in_batches
from aifx.loading.restore import restore_run
from aifx.objectives.next_token import NextToken
from aifx.parallel.joining import current_group
from aifx.programs.build import Programs
from aifx.serving.generate import chat_renderer, one_row_engine, unable_to_write, write
from aifx.serving.requests import GenerationRequest, SamplingSettings
from aifx.specs import Params

TEXTS = ("query", "question", "ctx", "prompt", "text", "doc_to_text", "question_stem", "goal")
CHOICES = ("choices", "endings", "doc_to_choice")
GOLDS = ("gold", "gold_index", "label", "answer", "answerKey", "target", "doc_to_target")
TARGETS = ("target", "answer", "answers", "doc_to_target", "label", "gold")


@dataclass(frozen=True)
class Question:
    """A row of a benchmark.

    Attributes:
        place: its file and line.
        context: the text that the model reads.
        delimiter: text between the context and a choice; None if the row has none.
        choices: possible continuations; empty if the model writes its answer.
        right: indices of the right choices.
        targets: texts, one of which the model is to write.
        until: texts that end the model's answer.
    """

    place: str
    context: str
    delimiter: str | None
    choices: tuple[str, ...]
    right: frozenset[int]
    targets: tuple[str, ...]
    until: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """The questions of a .jsonl or .parquet file. Raises DataError that names the file and the line."""
    name = str(path)
    check_regular(path, name, "a benchmark is a file", "aifx eval --benchmark FILE.jsonl")
    file = local_file(path)
    if file.format not in ("jsonl", "parquet"):
        raise DataError(
            f"{name}: no reader for questions", "they are rows of .jsonl or .parquet", "write a .jsonl file"
        )
    questions = [_question(row) for row in read_rows(file)]
    if not questions:
        raise DataError(f"{name} has no question", "it is empty", "put rows into it")
    if len({bool(question.choices) for question in questions}) > 1:
        odd = next(q for q in questions if bool(q.choices) != bool(questions[0].choices))
        why = "the questions before it have choices" if questions[0].choices else "those before it have none"
        raise DataError(f"{odd.place}: another kind of question", why, "measure each kind as a file of its own")
    return questions


def _question(row: Row) -> Question:
    values, place = row.values, row.place
    context = _first(values, TEXTS, place, "text")
    if not isinstance(context, str):
        raise DataError(f"{place}: the text is not text", f"it is {type(context).__name__}", "docs/eval.md")
    delimiter, until = values.get("target_delimiter"), values.get("until", ["\n"])
    until = [until] if isinstance(until, str) else until
    choices, labels = _choices(values, place)
    try:
        "".join([context, str(delimiter), *choices]).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: not Unicode text", f"half a surrogate pair: {error}", "docs/eval.md") from None
    if choices:
        gold = _first(values, GOLDS, place, "right choice")
        right = frozenset(_right(gold, choices, labels, place))
        return Question(place, context, None if delimiter is None else str(delimiter), choices, right, (), ())
    found = _first(values, TARGETS, place, "target")
    targets = tuple(map(str, found if isinstance(found, list) else [found]))
    return Question(place, context, None, (), frozenset(), targets, tuple(map(str, until)))


def _first(values: Mapping[str, Any], names: tuple[str, ...], place: str, what: str) -> Any:
    for name in names:
        if values.get(name) is not None:
            return values[name]
    raise DataError(f"{place}: no {what}", f"it is a field such as {', '.join(names[:4])}", "docs/eval.md")


def _choices(values: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices and their labels: by default A, B, C."""
    found = next((values[name] for name in CHOICES if values.get(name) is not None), None)
    if found is None and "sol1" in values and "sol2" in values:
        found = [values["sol1"], values["sol2"]]
    if found is None:
        return (), ()
    labels: Any = list(string.ascii_uppercase)
    if isinstance(found, Mapping):
        labels = found.get("label", labels)
        found = found.get("text")
    if not (isinstance(found, list) and len(found) > 1 and all(isinstance(text, str) and text for text in found)):
        raise DataError(f"{place}: its choices are not texts", "they are a list of two texts or more", "docs/eval.md")
    return tuple(found), tuple(map(str, labels))


def _right(gold: Any, choices: tuple[str, ...], labels: tuple[str, ...], place: str) -> Iterator[int]:
    """Indices of the choices that `gold` names: it is an index, a label or a text, or a list of them."""
    for one in gold if isinstance(gold, list) else [gold]:
        text = str(one)
        if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(choices):
            yield one
        elif text in labels[: len(choices)]:
            yield labels.index(text)
        elif text in choices:
            yield choices.index(text)
        elif text.isdecimal() and int(text) < len(choices):
            yield int(text)
        else:
            why = f"its {len(choices)} choices have the labels {', '.join(labels[: len(choices)])}"
            raise DataError(f"{place}: no choice is {text!r}", why, "docs/eval.md")


RESAMPLES, CONFIDENCE = 10_000, 0.95

Encode: TypeAlias = Callable[[Question, str | None], tuple[int, list[int]]]
"""Encodes a question and one of its choices, or None: the number of tokens before the choice, and all tokens."""

MOST_TOKENS = 256
"""Limit of tokens that a model writes for a question."""


def measure_benchmarks(
    run: RunDirectory,
    project: Project,
    paths: Sequence[Path],
    *,
    chat: bool = False,
    gates: Sequence[str] = (),
    step: StepChoice | None = None,
    overrides: Sequence[str] = (),
) -> tuple[DatasetReports, tuple[Part, ...]]:
    """Measure a run's checkpoint on each file of questions; the run keeps the reports in eval/<step>.json.

    Args:
        chat: whether the text of a question becomes a user's message, and the answer the assistant's.
        gates: conditions on the metrics; those of `eval.gates` are about splits.

    Raises UsageError if the model is not a language model, and DataError that names a file and a line.
    """
    asked = [parse_gate(expr) for expr in gates]
    if current_group().size > 1:
        raise UsageError("--benchmark in a job of several processes", "one process measures", "aifx eval --benchmark")
    check_overrides(run, project, overrides, DATASET_READING)
    questions = {path: read_questions(path) for path in {path.resolve(): path for path in paths}.values()}
    for found in questions.values():
        check_names(asked, _names(found))
    trained = restore_run(run, project, step=step, overrides=overrides)
    quantize = trained.config.eval.quantize
    asking = {"benchmark.chat": chat, "benchmark.max_tokens": MOST_TOKENS}
    settings = {**measuring_settings(trained), **asking}
    reports, parts = [], []
    with project_errors(trained.config.parts, project):
        programs, params, frozen = trained.programs(quantize)
        task = programs.task
        if not (isinstance(task.format, TokenFormat) and isinstance(task.objective, NextToken)):
            what = f"{run.title} cannot answer questions"
            raise UsageError(what, "it is not a language model", f"aifx eval {run.option}")
        encode = _in_chats(chat_renderer(trained)) if chat else _in_text(task.format.tokenizer)
        for path, found in questions.items():
            name, digest = display_name(path, project), digest_of(path, "--benchmark")
            name = f"{name} (chat)" if chat else name
            metrics, chance = _measure(found, path, encode, programs, params, frozen)
            results = evaluate_gates(asked, metrics)
            baselines = {"chance": chance} if chance else {}
            digest_of_settings = sha256_of_json(settings)
            report = DatasetReport(name, digest, metrics, results, baselines, {}, settings, digest_of_settings)
            keep_report(run, trained.step, quantize, report)
            reports.append(report)
            data = f"{name} ({digest[:12]})"
            parts.append(Part(data, "test", metrics, results, report.baselines, programs, {}))
    return DatasetReports(run.name, trained.step, quantize, tuple(reports), run.model_digest), tuple(parts)


def interval(right: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The bootstrap's percentile interval, with CONFIDENCE, of the mean of `right`: 0 or 1 `[questions]`.

    If n results are drawn with replacement, the number of right ones is binomial: no resample needs to be drawn itself.
    """
    count = len(right)
    drawn = np.random.default_rng(seed).binomial(count, right.mean(), RESAMPLES) / count
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _names(questions: Sequence[Question]) -> list[str]:
    metrics = ("acc", "acc_norm") if questions[0].choices else ("exact_match",)
    return [*(f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")), "questions"]


def _measure(
    questions: Sequence[Question], path: Path, encode: Encode, programs: Programs, params: Params, frozen: Params
) -> tuple[dict[str, Any], dict[str, float]]:
    """The metrics with their intervals, and the mean that guessing reaches."""
    with report_progress(f"measuring {path.name}", len(questions), "questions") as progress:
        if questions[0].choices:
            scored = _choices_scored(questions, encode, programs, params, frozen)
        else:
            scored = _texts_compared(questions, encode, programs, params, frozen)
        results: dict[str, list[bool]] = {}
        for of_question in scored:
            for metric, is_right in of_question.items():
                results.setdefault(metric, []).append(is_right)
            progress.advance(1)
    metrics: dict[str, Any] = {}
    for metric, found in results.items():
        right = np.array(found, np.float64)
        low, high = interval(right)
        metrics |= {metric: float(right.mean()), f"{metric}_low": low, f"{metric}_high": high}
    chance = float(np.mean([len(q.right) / len(q.choices) for q in questions])) if questions[0].choices else 0.0
    return {**metrics, "questions": len(questions)}, {"acc": chance, "acc_norm": chance} if chance else {}


def _choices_scored(
    questions: Sequence[Question], encode: Encode, programs: Programs, params: Params, frozen: Params
) -> Iterator[dict[str, bool]]:
    """Whether the likeliest choice is a right one: by its log-likelihood (acc), and per character of it (acc_norm)."""

    def predict(batch: Batch) -> Mapping[str, np.ndarray]:
        predicted: Mapping[str, np.ndarray] = jax.device_get(
            programs.predict_step(params, frozen, programs.place(batch))
        )
        return predicted

    rows = (
        (Row(question.place, number, question.place, {}), _examples(question, encode, programs))
        for number, question in enumerate(questions)
    )
    for row, outputs in in_batches(rows, predict, programs.eval_rows):
        question = questions[row.number]
        likelihoods = -outputs["nats"].astype(np.float64)
        lengths = np.array([len(choice) for choice in question.choices])
        yield {
            "acc": int(np.argmax(likelihoods)) in question.right,
            "acc_norm": int(np.argmax(likelihoods / lengths)) in question.right,
        }


def _examples(question: Question, encode: Encode, programs: Programs) -> Batch:
    """A batch with a row per choice, whose tokens alone count. A text that is too long loses its beginning."""
    fields = programs.task.data.fields
    (seq_len,) = fields["inputs"].shape
    shape = (len(question.choices), seq_len)
    batch: Batch = {name: np.zeros((shape[0], *field.shape), field.dtype) for name, field in fields.items()}
    for row, choice in enumerate(question.choices):
        context, ids = encode(question, choice)
        scored = min(len(ids) - context, seq_len)
        ids = ids[-(seq_len + 1) :]
        length = len(ids) - 1
        batch["inputs"][row, :length], batch["targets"][row, :length] = ids[:-1], ids[1:]
        batch["weights"][row, length - scored : length] = 1
        for name, value in (("segment_ids", 1), ("writers", COMPLETION), ("positions", np.arange(length))):
            if name in batch:
                batch[name][row, :length] = value
    return {**batch, TEXT_BYTES: np.zeros(shape[0], np.int32)}


def _in_text(tokenizer: Tokenizer) -> Encode:
    """Encode text and choice together, after at least one token.

    Space at the end of the text belongs to the choice, since tokens begin with space.
    """

    def encode(question: Question, choice: str | None) -> tuple[int, list[int]]:
        if choice is None:
            prompt = tokenizer.encode_prompt(question.context)
            return len(prompt), prompt
        bare = question.context.rstrip()
        delimiter = " " if question.delimiter is None else question.delimiter
        before = [*tokenizer.begin_ids] or ([] if bare else [tokenizer.eos_id])
        whole = tokenizer.encode(question.context + delimiter + choice)
        return len(before) + len(tokenizer.encode(bare)), [*before, *whole]

    return encode


def _in_chats(renderer: ChatRenderer) -> Encode:
    """Encode the text as a user's message, and the choice as the beginning of the answer."""

    def encode(question: Question, choice: str | None) -> tuple[int, list[int]]:
        prompt = renderer.prompt([{"role": "user", "content": question.context}], question.place)
        return len(prompt), [*prompt, *renderer.tokenizer.encode((question.delimiter or "") + (choice or ""))]

    return encode


def _texts_compared(
    questions: Sequence[Question], encode: Encode, programs: Programs, params: Params, frozen: Params
) -> Iterator[dict[str, bool]]:
    """Whether the model's text, without space around it, is a target. It takes the likeliest token each time.

    Where the model's scores are not numbers, it has no answer, which is wrong.
    """
    if (why := unable_to_write(programs)) is not None:
        raise UsageError("the model cannot answer in text", why, "aifx eval")
    asked = [(question, encode(question, None)[1]) for question in questions]
    form, longest = programs.task.format, max(len(prompt) for _, prompt in asked)
    assert isinstance(form, TokenFormat)
    decoding, params = programs.as_decoding(params, frozen)
    engine = one_row_engine(decoding, params, form.tokenizer, longest, MOST_TOKENS)
    likeliest = SamplingSettings(temperature=0)
    for question, prompt in asked:
        request = GenerationRequest(prompt, MOST_TOKENS, likeliest, stop=tuple(question.until), forgets=True)
        try:
            written = "".join(write(engine, request)).strip()
        except CheckpointError:
            yield {"exact_match": False}
        else:
            yield {"exact_match": written in {target.strip() for target in question.targets}}

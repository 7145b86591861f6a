"""Questions of benchmarks, in the fields that the tasks of lm-evaluation-harness have.

A row has a text, and either choices, of which some are right, or a target that the model is to write:

    query, question, ctx, prompt, text, doc_to_text, question_stem, goal        the text
    choices, endings, doc_to_choice             texts, or {"text": [...], "label": [...]}; sol1, sol2
    gold, gold_index, label, answer, answerKey, target, doc_to_target     a place from 0, a label, or a choice's text
    target, answer, answers, doc_to_target      without choices: the text, or several of which any is right
    target_delimiter                            between text and choice; a space if not given
    until                                       texts at which what the model writes ends; a line end if not given
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError
from aifx.data.readers.rows import Row, read_rows
from aifx.data.readers.sources import check_regular, local_file

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

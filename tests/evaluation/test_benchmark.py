"""`aifx eval --benchmark`: questions with choices, and questions whose answer the model writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from forward import outputs_of
from trained_project import SENTENCE, aifx, document

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.evaluation import benchmark
from aifx.evaluation.benchmark import interval, read_questions
from aifx.loading.restore import restore_run

ARC = {
    "question": "It was the whiteness",
    "choices": {"text": ["of the whale", "zzz qqq xxx", "17"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(tmp_path: Path, row: dict[str, Any]):
    (question,) = read_questions(written(tmp_path / "q.jsonl", row))
    return question


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "choices": ["a", "b", "c"], "gold": 1},
        {"query": "q", "choices": ["a", "b", "c"], "gold_index": [1]},
        {"ctx": "q", "endings": ["a", "b", "c"], "label": "1"},
        {"question": "q", "choices": {"text": ["a", "b", "c"], "label": ["X", "Y", "Z"]}, "answerKey": "Y"},
        {"question": "q", "choices": ["a", "b", "c"], "answer": "B"},
        {"doc_to_text": "q", "doc_to_choice": ["a", "b", "c"], "doc_to_target": "b"},
    ],
)
def test_the_fields_of_common_tasks(tmp_path: Path, row: dict[str, Any]) -> None:
    question = asked(tmp_path, row)
    assert (question.context, question.choices, question.right) == ("q", ("a", "b", "c"), {1})
    assert question.delimiter is None


def test_other_fields(tmp_path: Path) -> None:
    piqa = asked(tmp_path, {"goal": "q", "sol1": "a", "sol2": "b", "label": 0, "target_delimiter": ""})
    assert (piqa.choices, piqa.right, piqa.delimiter) == (("a", "b"), {0}, "")
    exact = asked(tmp_path, {"question": "q", "answer": ["4", "four"], "until": "."})
    assert (exact.choices, exact.targets, exact.until) == ((), ("4", "four"), (".",))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"choices": ["a", "b"], "gold": 0}, "no text"),
        ({"query": "q", "choices": ["a", "b"]}, "no right choice"),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "no choice is '2'"),
        ({"query": "q", "choices": ["a"], "gold": 0}, "choices are not texts"),
        ({"query": "q"}, "no target"),
        ({"query": 3, "target": "x"}, "the text is not text"),
        ({"query": "q\ud800", "target": "x"}, "not Unicode text"),
        ({"query": "q", "choices": ["a", "b\ud800"], "gold": 0}, "not Unicode text"),
    ],
)
def test_rows_that_are_no_questions(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "q.jsonl", row)
    with pytest.raises(DataError) as refused:
        read_questions(path)
    assert refused.value.what.startswith(f"{path}:1: ")
    assert words in refused.value.what


def test_two_kinds_in_a_file(tmp_path: Path) -> None:
    path = written(
        tmp_path / "q.jsonl", {"query": "q", "choices": ["a", "b"], "gold": 0}, {"query": "q", "target": "x"}
    )
    with pytest.raises(DataError, match=":2: another kind"):
        read_questions(path)


def test_the_interval_is_the_bootstraps() -> None:
    right = np.array([1.0] * 30 + [0.0] * 70)
    rng = np.random.default_rng(5)
    means = np.array([rng.choice(right, 100).mean() for _ in range(4000)])
    assert interval(right) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)
    assert interval(right) == interval(right)
    assert interval(np.ones(5)) == (1.0, 1.0)


def reference(project: Path, context: str, choices: list[str]) -> list[float]:
    """Log-likelihoods from the whole model's logits."""
    trained = restore_run(Project(project).run("main"), Project(project))
    tokenizer = trained.task.format.tokenizer
    forward, found = jax.jit(outputs_of(trained.task.model)), []
    for choice in choices:
        before, whole = tokenizer.encode(context), tokenizer.encode(f"{context} {choice}")
        count = len(whole) - len(before)
        if not before:
            whole = [tokenizer.eos_id, *whole]
        whole = whole[-33:]  # data.seq_len is 32
        inputs = np.zeros((1, 32), np.int32)
        inputs[0, : len(whole) - 1] = whole[:-1]
        logits = np.asarray(forward(trained.params, inputs), np.float64)[0, : len(whole) - 1]
        likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found.append(sum(likely[place, whole[place + 1]] for place in range(len(whole) - 1 - count, len(whole) - 1)))
    return found


@pytest.mark.slow
def test_choices_are_scored_as_the_model_scores_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = ["of the whale that above", "x", "qq qq qq qq qq qq qq"]
    contexts = ["It was the whiteness", "", SENTENCE * 3, "appalled me. "]
    scores = {context: reference(project, context.rstrip(), choices) for context in contexts}
    by_total = [int(np.argmax(scores[context])) for context in contexts]
    by_length = [int(np.argmax([s / len(c) for s, c in zip(scores[x], choices, strict=True)])) for x in contexts]
    rows = [{"query": x, "choices": choices, "gold": gold} for x, gold in zip(contexts[:3], by_total, strict=False)]
    found = document(aifx(project, "eval", "--benchmark", str(written(project / "a.jsonl", *rows)), "--json"))
    (report,) = found["datasets"]
    assert report["metrics"]["acc"] == 1.0
    assert report["metrics"]["questions"] == 3
    assert report["baselines"]["chance"]["acc"] == pytest.approx(1 / 3)
    rows = [{**row, "gold": gold} for row, gold in zip(rows, by_length, strict=False)]
    (report,) = document(aifx(project, "eval", "--benchmark", str(written(project / "b.jsonl", *rows)), "--json"))[
        "datasets"
    ]
    assert report["metrics"]["acc_norm"] == 1.0
    kept = json.loads((project / "runs/main/eval/12.json").read_text())["datasets"]
    assert [entry["name"] for entry in kept] == ["a.jsonl", "b.jsonl"]
    assert all(math.isfinite(score) for of in scores.values() for score in of)


@pytest.mark.slow
def test_answers_that_the_model_writes(project: Path) -> None:
    said = document(aifx(project, "generate", "--temperature", "0", "--prompt", "The", "--max-tokens", "40", "--json"))
    answer = said["text"].partition("e")[0]
    rows = [{"query": "The", "target": ["no", f" {answer} "], "until": ["e"]}, {"query": "The", "answer": "no"}]
    path = written(project / "q.jsonl", *rows)
    done = aifx(
        project, "eval", "--benchmark", str(path), "--gate", "exact_match >= 0.5", "--gate", "exact_match_low > 0.4"
    )
    assert done.returncode == 1
    assert "exact_match" in done.stdout
    assert "FAILED" in done.stdout
    failed = aifx(project, "eval", "--benchmark", str(path), "--gate", "acc >= 0.5")
    assert failed.returncode == 2
    assert "no metric 'acc'" in failed.stderr


@pytest.mark.slow
def test_scores_that_are_not_numbers_are_wrong_answers(project: Path, tmp_path: Path) -> None:
    """A run that diverged fails its gates. An empty answer would be the target of some questions."""
    trained = restore_run(Project(project).run("main"), Project(project))
    programs, params, frozen = trained.programs("none")
    params = jax.tree.map(lambda leaf: leaf * math.nan, params)
    path = written(tmp_path / "q.jsonl", {"query": "The", "target": "x"}, {"query": "A", "target": ""})
    encode = benchmark._in_text(trained.task.format.tokenizer)
    metrics, _ = benchmark._measure(read_questions(path), path, encode, programs, params, frozen)
    assert (metrics["exact_match"], metrics["questions"]) == (0.0, 2)


@pytest.mark.slow
def test_what_cannot_be_asked(project: Path, classified: Path) -> None:
    path = str(written(project / "q.jsonl", ARC))
    for where, args, words in (
        (project, ["--split", "test"], "--split cannot be used"),
        (project, ["--html", "x.html"], "--html cannot be used"),
        (classified, [], "not a language model"),
    ):
        done = aifx(where, "eval", "--benchmark", path, *args)
        assert done.returncode == 2
        assert words in done.stderr

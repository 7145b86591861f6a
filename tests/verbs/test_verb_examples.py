"""The examples of docs/api.md, in one project: those of one function after those of another."""

from __future__ import annotations

import doctest
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import aifx

TINY = """
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
[data]
train = ["data/*.txt"]
vocab_size = 300
seq_len = 16
[train]
num_steps = 3
global_batch_size = 2
validate_every = 3
validation_batches = 1
"""
FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
NAMES = [name for name in aifx.__all__ if name != "__version__"]
LAST = ("runs_rename", "runs_rm")
ORDER = [*sorted(NAMES, key=lambda name: name.startswith(("registry_", "runs_", "ckpt_")))]
ORDER = [*(name for name in ORDER if name not in LAST), *LAST]
"""Runs are trained first, pushed next, and deleted last."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "aifx.toml").write_text(TINY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.txt").write_text(
        "Call me Ishmael. Some years ago, never mind how long precisely.\n" * 400
    )
    (tmp_path / "texts").mkdir()
    moby = (
        "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and "
        "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of "
        "the world. It is a way I have of driving off the spleen and regulating the circulation."
    )
    (tmp_path / "texts" / "moby.txt").write_text(moby)
    (tmp_path / "texts" / "copy.txt").write_text(moby)
    (tmp_path / "texts" / "notes.txt").write_text("Write to ann@example.com about the white whale of the book.")
    words = "it was the best of times and it was the worst of times it was the age of wisdom"
    (tmp_path / "texts" / "times.txt").write_text(words)
    (tmp_path / "benchmark.jsonl").write_text(f'{{"text": "{words}"}}\n')
    questions = ['{"question": "2 + 2 =", "choices": ["4", "5"], "answer": 0}\n'] * 2
    (tmp_path / "questions.jsonl").write_text("".join(questions))
    (tmp_path / "poems").mkdir()
    for poem in range(40):
        (tmp_path / "poems" / f"{poem}.txt").write_text(" ".join(f"word{poem * 41 + word}" for word in range(20)))
    (tmp_path / "recipe.toml").write_text(
        '[notes]\nsteps = [{ add = { sources = ["texts/*.txt"], license = "MIT" } }, { dedupe = {} }]\n'
    )
    stations = '[[station]]\nname = "keys"\nrun = "config keys"\n[[station]]\nname = "release"\nrun = "config keys"\n'
    (tmp_path / "line.toml").write_text(f'[line]\nevery = "1d"\n{stations}after = ["keys"]\nask = "approval"\n')
    (tmp_path / "orders.csv").write_text(
        "product,time\ntea,2024-05-01 09:00:00\ntea,2024-05-03 09:00:00\ncake,2024-05-03 09:00:00\n"
    )
    (tmp_path / "prices.csv").write_text(
        "product,time,price\ntea,2024-05-01 09:00:00,2\ntea,2024-05-02 09:00:00,3\ncake,2024-05-04 09:00:00,4\n"
    )
    rule = '[[rule]]\ncolumn = "text"\ncheck = "length"\nat_least = 1\n'
    (tmp_path / "rules.toml").write_text(rule)
    (tmp_path / "notify.toml").write_text('[[notify]]\nname = "ops"\nurl_from = "OPS_URL"\n')
    (tmp_path / "letter.txt").write_text("Dear Mrs Smith, the parcel came.")
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))  # data_gc deletes what other tests leave in theirs
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    os.chdir("/")


@pytest.mark.slow
@pytest.mark.representative("examples of Python")
def test_every_example_is_true(project: Path) -> None:
    aifx.data_add("letters", "letter.txt", license="CC0-1.0")
    aifx.data_add("poems", "poems", license="CC0-1.0")
    aifx.data_add("orders", "orders.csv", license="CC0-1.0")
    aifx.data_add("prices", "prices.csv", license="CC0-1.0")
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failures: list[str] = []
    for name in ORDER:
        example = inspect.getdoc(getattr(aifx, name)) or ""
        found = doctest.DocTestParser().get_doctest(example, {"aifx": aifx}, f"aifx.{name}", None, 0)
        assert found.examples, name
        runner.run(found, out=failures.append)
    assert not failures, "\n".join(failures)

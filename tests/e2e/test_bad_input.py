"""Bad configurations and bad data by the dozen: each a clear error with exit code 2, none a traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest
from real_command import TINY, Command, settings

CONFIGURATIONS: dict[str, tuple[str, list[str]]] = {
    "unknown key": ("[train]\nnum_step = 3\n", ["num_step", "num_steps", "aifx.toml:2"]),
    "unknown section": ("[trian]\nnum_steps = 3\n", ["trian", "train", "aifx.toml:1"]),
    "wrong type": ('[train]\nnum_steps = "many"\n', ["train.num_steps", "aifx.toml:2"]),
    "out of range": ("[train]\n\nnum_steps = 0\n", ["train.num_steps", "aifx.toml:3"]),
    "unknown choice": ('[optimizer]\nkind = "sgd"\n', ["optimizer.kind", "adamw"]),
    "syntax": ("[train\nnum_steps = 3\n", ["aifx.toml", "line 1"]),
    "a key twice": ("[train]\nseed = 1\nseed = 2\n", ["aifx.toml"]),
    "not a number": ("[optimizer]\nlearning_rate = nan\n", ["optimizer.learning_rate"]),
    "a section that is a value": ("train = 3\n", ["train", "aifx.toml:1"]),
    "unknown preset": ('[model]\npreset = "gpt2-124"\n', ["gpt2-124m"]),
    "unknown task": ('[task]\nkind = "languge"\n', ["language"]),
    "task module that is absent": ('[task]\nkind = "nowhere:Task"\n', ["nowhere"]),
    "task class that is absent": ('[task]\nkind = "json:Task"\n', ["json", "Task"]),
    "key of another task": ("[model]\nchannels = [8]\n", ["channels", "aifx.toml:2"]),
    "heads that do not divide": ("[model]\nnum_heads = 3\nembed_dim = 32\n", ["num_heads"]),
    "key-value heads that do not divide": ("[model]\nnum_heads = 4\nnum_kv_heads = 3\n", ["num_kv_heads"]),
    "accumulation that does not divide": (
        "[train]\nglobal_batch_size = 8\ngradient_accumulation = 3\n",
        ["gradient_accumulation"],
    ),
    "more devices than there are": ("[train]\ndevices = 64\n", ["devices"]),
    "everything held out": ("[data]\nvalidation_fraction = 0.5\ntest_fraction = 0.5\n", ["test_fraction"]),
    "gate that is no condition": ('[eval]\ngates = ["accuracy"]\n', ["accuracy"]),
    "unknown tracker": ('[log]\ntrackers = ["tensorbord"]\n', ["tensorboard"]),
    "empty list of files": ("[data]\ntrain = []\n", ["data.train"]),
    "no such file": ('[data]\ntrain = ["data/none.txt"]\n', ["none.txt"]),
    "tokenizer that is absent": ('[data]\ntokenizer = "none.json"\n', ["none.json"]),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_bad_configuration(aifx: Command, case: str) -> None:
    text, words = CONFIGURATIONS[case]
    (aifx.cwd / "aifx.toml").write_text(text)
    (aifx.cwd / "data").mkdir()
    (aifx.cwd / "data/a.txt").write_text("It was a dark and stormy night. " * 400)
    aifx("train").assert_clear_error(*words)


def test_configuration_that_is_not_text(aifx: Command) -> None:
    (aifx.cwd / "aifx.toml").write_bytes(b"[train]\n# \xff\xfe\n")
    aifx("config", "check").assert_clear_error("aifx.toml", "UTF-8")


def test_outside_a_project(aifx: Command) -> None:
    for command in (["train"], ["eval"], ["generate"], ["config", "show"], ["runs", "ls"], ["ckpt", "ls"]):
        aifx(*command).assert_clear_error("aifx.toml", "aifx init")


def test_usage(project: Command) -> None:
    project("trian").assert_clear_error("train")
    project("train", "--stes", "3").assert_clear_error("--stes")
    project("train", "--set", "train.num_steps").assert_clear_error("train.num_steps")
    project("train", "--set", "train.num_stps=3").assert_clear_error("num_steps")
    project("train", "--run", "../elsewhere").assert_clear_error("../elsewhere")
    project("eval").assert_clear_error("aifx train")
    project("eval", "--run", "none").assert_clear_error("none")
    project("init", "x", "--template", "langage-model", "--yes").assert_clear_error("language-model")
    failed = project("train", "--set", "train.num_stps=3", "--json")
    assert failed.returncode == 2
    assert failed.json()["error"]["exit_code"] == 2


LONG = b"It was a dark and stormy night. " * 400
TEXTS: dict[str, tuple[str, bytes, list[str]]] = {
    "empty": ("a.txt", b"", ["a.txt"]),
    "white space only": ("a.txt", b" \n\n", ["a.txt"]),
    "invalid UTF-8": ("a.txt", LONG + b"\xff" + LONG, ["a.txt", "UTF-8"]),
    "shorter than a sequence": ("a.txt", b"It was a dark night.", ["a.txt", "seq_len"]),
    "not JSON": ("a.jsonl", b'{"text": "one"}\nnot json\n', ["a.jsonl", "2"]),
    "no such field": ("a.jsonl", b'{"body": "one"}\n', ["a.jsonl", "text"]),
    "field that is no text": ("a.jsonl", b'{"text": 3}\n', ["a.jsonl"]),
    "not parquet": ("a.parquet", b"PAR0", ["a.parquet"]),
    "unknown kind of file": ("a.docx", b"PK", ["a.docx"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_text(aifx: Command, case: str) -> None:
    name, content, words = TEXTS[case]
    (aifx.cwd / "aifx.toml").write_text(f'[data]\ntrain = ["data/{name}"]\n')
    (aifx.cwd / "data").mkdir()
    (aifx.cwd / "data" / name).write_bytes(content)
    aifx("train", *settings(TINY)).assert_clear_error(*words)


def images(**changes: object) -> dict[str, np.ndarray]:
    arrays: dict[str, object] = {
        "train_images": np.zeros((20, 28, 28), np.uint8),
        "train_labels": np.zeros(20, np.uint8),
        "test_images": np.zeros((10, 28, 28), np.uint8),
        "test_labels": np.zeros(10, np.uint8),
    } | changes
    return {k: np.asarray(v) for k, v in arrays.items() if v is not None}


IMAGES: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {
    "wrong shape": (images(train_images=np.zeros((20, 32, 32), np.uint8)), ["images.npz", "train_images", "32"]),
    "not pictures": (images(test_images=np.zeros((10, 784), np.uint8)), ["images.npz", "test_images"]),
    "missing array": (images(test_labels=None), ["images.npz", "test_labels"]),
    "fewer labels than images": (images(train_labels=np.zeros(19, np.uint8)), ["images.npz", "train_labels"]),
    "fractions as labels": (images(train_labels=np.zeros(20, np.float32)), ["images.npz", "train_labels"]),
    "none at all": (
        images(train_images=np.zeros((0, 28, 28), np.uint8), train_labels=np.zeros(0, np.uint8)),
        ["images.npz"],
    ),
    "pickled objects": (images(train_labels=np.array([None] * 20, object)), ["images.npz", "train_labels"]),
}


@pytest.mark.parametrize("case", IMAGES)
def test_bad_images(aifx: Command, case: str) -> None:
    arrays, words = IMAGES[case]
    (aifx.cwd / "aifx.toml").write_text('[task]\nkind = "vision"\n')
    (aifx.cwd / "data").mkdir()
    np.savez(aifx.cwd / "data/images.npz", **arrays)
    aifx("train").assert_clear_error(*words)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04torn"])
def test_damaged_archive(aifx: Command, content: bytes) -> None:
    (aifx.cwd / "aifx.toml").write_text('[task]\nkind = "vision"\n')
    (aifx.cwd / "data").mkdir()
    (aifx.cwd / "data/images.npz").write_bytes(content)
    aifx("train").assert_clear_error("images.npz")


def test_error_document_is_all_of_stdout(aifx: Command) -> None:
    (aifx.cwd / "aifx.toml").write_text("[train]\nnum_step = 3\n")
    failed = aifx("train", "--json")
    assert failed.returncode == 2
    error = json.loads(failed.stdout)["error"]
    assert {"what", "why", "hint", "exit_code"} <= set(error)

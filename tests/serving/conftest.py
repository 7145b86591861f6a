"""A small trained-like decoder with a byte-level tokenizer, and engines over it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inprocess
import jax
import jax.numpy as jnp
import pytest
from faulty_files import damage_arrays
from made_once import made_once

from aifx.core.project import Project
from aifx.data.tokenizer import Tokenizer, train_tokenizer
from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection
from aifx.parallel.layout import local_layout
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.serving import ServingPrograms
from aifx.serving.device import Device
from aifx.serving.engine import Engine
from aifx.serving.rows import Weights
from aifx.specs import init_params

MAX_LEN = 256

CONFIG = """
[data]
seq_len = 32
tokenizer = "byte"
[model]
num_layers = 1
embed_dim = 32
num_heads = 2
max_seq_len = 128
[train]
global_batch_size = 4
num_steps = 3
[optimizer]
learning_rate = 0.05
[schedule]
warmup_steps = 0
[checkpoint]
every = 1
keep_last = 10
[eval]
checkpoint = "last"
[serve]
slots = [4]
watch_every_s = 0.05
"""


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer([], 257), "tokenizer.json")


@pytest.fixture(scope="session")
def decoding(tokenizer: Tokenizer) -> DecodingPrograms:
    values = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": MAX_LEN}
    section = DecoderSection.model_validate(values)
    model = Decoder(section, vocab_size=tokenizer.vocab_size, seq_len=MAX_LEN)
    return DecodingPrograms(model, model.specs(), local_layout(1), jnp.float32)


@pytest.fixture(scope="session")
def params(decoding: Any) -> Any:
    """With an output that is far from uniform, so that texts differ."""
    params = init_params(decoding.model.specs(), jax.random.key(1))
    return decoding.prepare(jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, params))


@pytest.fixture(scope="session")
def devices(decoding: DecodingPrograms, params: Any) -> Callable[..., Device]:
    """Programs are compiled once for each size; a pool is never empty again, and nothing may depend on that."""
    made: dict[Any, Device] = {}

    def device(slots: tuple[int, ...] = (2, 4), pages: int = 24) -> Device:
        if (slots, pages) not in made:
            made[slots, pages] = Device(ServingPrograms(decoding, params, pages, MAX_LEN), slots, 64)
            made[slots, pages].compile()
        return made[slots, pages]

    return device


@pytest.fixture
def engines(devices: Callable[..., Device], params: Any, tokenizer: Tokenizer) -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def engine(slots: tuple[int, ...] = (2, 4), pages: int = 24, **options: Any) -> Engine:
        weights = Weights(params, "weights", b"weights")
        made = Engine(devices(slots, pages), weights, tokenizer, **{"queue": 1000, **options})
        made.start()
        started.append(made)
        return made

    yield engine
    for made in started:
        made.stop()


def train_text(root: Path) -> None:
    (root / "data").mkdir()
    (root / "data/text.txt").write_text("".join(f"{i} whales, said Ishmael.\n" for i in range(400)))
    (root / "aifx.toml").write_text(CONFIG)
    ended = inprocess.run(["train", "--run", "main"], root, dict(os.environ))
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(made_once(tmp_path_factory, "swap", train_text))


@pytest.fixture
def project(trained: Project, tmp_path: Path) -> Project:
    """Only the checkpoint of step 1 is there; `arrive` brings another."""
    shutil.copytree(trained.root, tmp_path / "project")
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"project/runs/main/checkpoints/{step}")
    return Project(tmp_path / "project")


@pytest.fixture
def arrive(trained: Project, project: Project, tmp_path: Path) -> Callable[..., None]:
    def arrive(step: int, *, damaged: bool = False) -> None:
        new = tmp_path / "new"
        shutil.copytree(trained.root / f"runs/main/checkpoints/{step}", new)
        if damaged:
            damage_arrays(new)
        new.rename(project.root / f"runs/main/checkpoints/{step}")

    return arrive

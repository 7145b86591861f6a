"""The capabilities of a model are declared in its protocol, with defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import aifx
from aifx.models.base import Decodes, Head, Model
from aifx.parallel.context import ForwardContext
from aifx.specs import Params, Specs


class Least(Model):
    def specs(self) -> Specs:
        return {}

    def hidden(self, params: Params, batch: Any, ctx: ForwardContext) -> jax.Array:
        return jnp.asarray(batch)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(jnp.ones((1, 1)))

    def flops(self, rows: int) -> int:
        return rows


def test_a_model_that_declares_nothing_has_no_capability() -> None:
    model = Least()
    assert (model.gathers, model.divides, model.adapts) == ((), (), ())
    assert isinstance(model, Model)
    assert not isinstance(model, Decodes)


def test_no_code_asks_a_model_for_what_it_does_not_declare() -> None:
    asked = re.compile(r"(?:get|has)attr\((?:\w+\.)*(?:model|plain_model\(\w+\))[,)]")
    sources = {path: path.read_text() for path in Path(aifx.__file__).parent.rglob("*.py")}
    found = {str(path) for path, text in sources.items() if asked.search(text)}
    # The model in a tokenizer of the package tokenizers is not one of aifx.
    assert {path for path in found if not path.endswith("data/tokenizer.py")} == set()

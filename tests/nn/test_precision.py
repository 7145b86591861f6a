"""The speed of a processor's bfloat16, by its flags and by measurement."""

import re

import jax
import pytest

from aifx.nn import precision


@pytest.mark.parametrize("flag", ["amx_bf16", "bf16"])
def test_products_are_measured_where_there_are_units_for_them(flag, monkeypatch):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({flag}))
    seconds = iter([0.006, 0.002])
    measured = precision._product_s
    assert measured("bfloat16") > 0.0
    monkeypatch.setattr(precision, "_product_s", lambda dtype: next(seconds))
    assert precision.bfloat16_gain() == pytest.approx(3.0)


def test_no_product_is_measured_without_them(monkeypatch):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx512f", "avx512_bf16"}))
    monkeypatch.setattr(precision, "_product_s", lambda dtype: pytest.fail("measured"))
    assert precision.bfloat16_gain() == 1.0


def test_the_product_that_is_measured_is_one_of_bfloat16(monkeypatch):
    """JAX 0.10.2 widens the operands of `jnp.dot` on a CPU, so that it would be one of float32."""
    compiled, compile_ = [], jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda given: compiled.append(compile_(given)) or compiled[-1])
    precision._product_s("bfloat16")
    assert " dot(" in compiled[-1].as_text()
    assert not re.search(r"= f32\S+ convert\(", compiled[-1].as_text())

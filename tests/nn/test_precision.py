"""How a processor's bfloat16 is judged."""

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

"""The line of each key, in every way that TOML lets one write it."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from aifx.config.load import key_lines

CASES: dict[str, tuple[str, dict[tuple[str, ...], int]]] = {
    "tables": ("[a]\nx = 1\n\n[b]\n\ny = 2\n", {("a",): 1, ("a", "x"): 2, ("b",): 4, ("b", "y"): 6}),
    "dotted keys": ("a.x = 1\na.b.y = 2\n", {("a",): 1, ("a", "x"): 1, ("a", "b"): 2, ("a", "b", "y"): 2}),
    "dotted table": ("# one\n[a . b]\nx = 1", {("a",): 2, ("a", "b"): 2, ("a", "b", "x"): 3}),
    "array of tables": ("[[a]]\nx = 1\n[[a]]\nx = 2\n", {("a",): 1, ("a", "x"): 2}),
    "quoted keys": ('["a.b"]\n\'x y\' = 1\n"\\u00e9" = 2\n', {("a.b",): 1, ("a.b", "x y"): 2, ("a.b", "é"): 3}),
    "list on lines": ("x = [ # no ] here\n  1,\n  [2, 3],\n]\ny = 1\n", {("x",): 1, ("y",): 5}),
    "string on lines": ('x = """\n[no]\ny = 1\n"""\ny = 2\n', {("x",): 1, ("y",): 5}),
    "literal string on lines": ("x = '''\n'' = \\\n'''\ny = 2\n", {("x",): 1, ("y",): 4}),
    "quotes before the end": ('x = """a"""""\ny = 2\n', {("x",): 1, ("y",): 2}),
    "escaped quotes": ('x = "\\"]\\\\"\ny = "#" # z = 1\n', {("x",): 1, ("y",): 2}),
    "inline table": ("a = {x = 1, b.y = [{z = 2}]}\nc = 1\n", {("a",): 1, ("c",): 2}),
    "scalars": (
        "a = 1979-05-27 07:32:00 # b = 1\nb = -inf\nc = 0x_f".replace("_", ""),
        {("a",): 1, ("b",): 2, ("c",): 3},
    ),
    "nothing": ("\n# x = 1\n  \t\n", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_lines(case: str) -> None:
    text, expected = CASES[case]
    tomli.loads(text)
    found = key_lines(text)
    assert {path: found.get(path) for path in expected} == expected
    assert {path[0] for path in found} == {path[0] for path in expected}


VALUES = st.recursive(
    st.one_of(st.integers(-(2**60), 2**60), st.booleans(), st.text(), st.floats(allow_nan=False), st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(min_size=1), inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(min_size=1), st.dictionaries(st.text(min_size=1), VALUES, max_size=4), max_size=4))
def test_every_key_of_any_document_has_the_line_that_it_stands_on(document: dict[str, Any]) -> None:
    text = tomlkit.dumps(document)
    try:
        read = tomli.loads(text.replace("\r\n", "\n"))
    except tomli.TOMLDecodeError:
        return  # tomlkit writes some strings that no reader takes
    text = text.replace("\r\n", "\n")
    lines = key_lines(text)
    rows = text.split("\n")
    for section, values in read.items():
        assert 1 <= lines[(section,)] <= len(rows)
        for key in values:
            row = rows[lines[(section, key)] - 1]
            assert "=" in row or row.startswith("["), row

"""Rules of `aifx data clean`: each measure has the value that counting by hand gives."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifx.core.errors import ConfigError, UsageError
from aifx.curation import rules
from aifx.curation.rules import MEASURES, Texts, load_rules, parse_rules, rule_sets


def measured(measure: str, option: Any, *texts: str) -> list[float]:
    return [round(float(value), 6) for value in MEASURES[measure].of(Texts(pa.array(texts, pa.string())), option)]


def test_known_answers() -> None:
    """Worked out on paper. Several texts at a time: none may see another."""
    twice = "a b c d e x a b c d e"  # its last five words repeat its first five
    cases: list[tuple[str, Any, dict[str, float]]] = [
        ("words", None, {"": 0, " one\ttwo\u00a0three\n": 3, "x": 1}),
        ("word_length", None, {"a bbb": 2, "": 0, "äöü": 3}),
        ("characters", None, {"äöü": 3, "": 0, "a b\n": 4}),
        ("occurrences", ["Ab", "{"], {"abABab {{": 5, "": 0, "b a": 0}),
        ("phrases_per_word", ["#"], {"# a #b c": 0.5, "": 0, "##": 2}),
        ("distinct_words", ["the", "of", "to"], {"The art of the deal": 2, "other often": 0, "(to)": 1, "of_the": 0}),
        ("alphabetic_words", None, {"a 1 2 b3": 0.5, "": 0, "é -": 0.5}),
        ("lines_starting_with", ["- ", "•"], {"- a\n • b\nc - d\n\n-e": 0.5, "": 0}),
        ("lines_ending_with", [".", "…"], {"a.\nb. \nc\n\n": 2 / 3, "": 0, "x…": 1}),
        ("short_lines", 3, {"ab\nabc\n\n a ": 2 / 3, "": 0}),
        ("duplicate_lines", None, {"a\nb\n a\na": 0.5, "a\nb": 0, "": 0}),
        ("duplicate_line_characters", None, {"aaa\nb\naaa": 3 / 7, "a\nb": 0}),
        ("duplicate_paragraphs", None, {"a\nb\n\nc\n \na\nb": 1 / 3, "a\na": 0}),
        ("duplicate_paragraph_characters", None, {"aaa\n\nb\n\n\naaa\n": 3 / 7, "": 0}),
        ("top_ngram_characters", 2, {"a b c a b d": 4 / 6, "a b c": 0, "a a a a": 1, "aa bb c aa bb c d": 8 / 11}),
        ("top_ngram_characters", 3, {"a b c d a b c": 6 / 7, "a b c d": 0}),
        ("duplicate_ngram_characters", 5, {twice: 5 / 11, "a b c d e": 0, "x x x x x x": 5 / 6, "": 0}),
        ("duplicate_ngram_characters", 6, {twice: 0}),
        ("sentences", None, {'One. Two! "Three?" v1.2 four': 3, "": 0, "End.": 1, "Wait...": 1, "好。吗？": 2}),
    ]
    for measure, option, answers in cases:
        assert measured(measure, option, *answers) == [round(value, 6) for value in answers.values()], measure
    assert {measure for measure, *_ in cases} == MEASURES.keys()


words = st.lists(st.sampled_from(["ab", "c", "dd", "eee", "f"]), max_size=30)


@given(st.lists(words, min_size=1, max_size=5), st.integers(2, 6), st.sampled_from([0, rules.MOST_BITS]))
def test_repeated_sequences_are_those_of_a_plain_search(rows: list[list[str]], n: int, bits: int) -> None:
    """Against loops over every place of one text alone. With few bits, as for very long texts."""
    with patch.object(rules, "MOST_BITS", bits):
        found = measured("duplicate_ngram_characters", n, *map(" ".join, rows))
        top = measured("top_ngram_characters", n, *map(" ".join, rows))
    for row, share, top_share in zip(rows, found, top, strict=True):
        grams = [tuple(row[place : place + n]) for place in range(len(row) - n + 1)]
        total = sum(map(len, row)) or 1
        again = [place for place, gram in enumerate(grams) if gram in grams[:place]]
        assert share == round(covered(row, again, n) / total, 6)
        most = max(map(grams.count, grams), default=0)
        tops = [gram for gram in dict.fromkeys(grams) if grams.count(gram) == most > 1]
        size = max((len("".join(gram)) for gram in tops), default=0)
        first = next((gram for gram in tops if len("".join(gram)) == size), None)
        places = [place for place, gram in enumerate(grams) if gram == first]
        assert top_share == round(covered(row, places, n) / total, 6)


def covered(row: list[str], places: list[int], n: int) -> int:
    inside = set(itertools.chain.from_iterable(range(place, place + n) for place in places))
    return sum(len(row[place]) for place in inside)


def test_the_sets_are_those_of_the_papers() -> None:
    assert rule_sets() == ["c4", "fineweb", "gopher"]
    bounds = {rule.id: rule.bound for rule in load_rules(rule_sets(), Path())}
    assert bounds["gopher.words"] == "at least 50, at most 100000"
    assert [bounds[f"gopher.top-{n}-gram"] for n in (2, 3, 4)] == ["at most 0.2", "at most 0.18", "at most 0.16"]
    assert [bounds[f"gopher.duplicate-{n}-grams"] for n in range(5, 11)] == [
        f"at most {bound:g}" for bound in (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)
    ]
    assert (bounds["fineweb.punctuated-lines"], bounds["fineweb.short-lines"]) == ("above 0.12", "below 0.67")
    assert (bounds["c4.line-words"], bounds["c4.sentences"]) == ("at least 5", "at least 3")


def test_bounds_include_what_they_name() -> None:
    parsed = parse_rules(
        "\n".join(
            f'[[rule]]\nid = "{bound}"\nmeasure = "words"\nsource = "us"\n{bound} = 2\n'
            for bound in ("at_least", "at_most", "above", "below")
        ),
        "ours",
    )
    texts = Texts(pa.array(["a", "a b", "a b c"]))
    assert [rule.keeps(texts).tolist() for rule in parsed] == [
        [False, True, True],
        [True, True, False],
        [False, False, True],
        [True, False, False],
    ]


def test_rules_about_words_keep_texts_without_spaces() -> None:
    """Chinese has one word for each clause, and would be dropped as too short."""
    (rule,) = (rule for rule in load_rules(["gopher"], Path()) if rule.id == "gopher.words")
    chinese, thai, mixed = "我们今天去公园散步。" * 20, "สวัสดีครับ" * 20, "a text about 東京"
    assert rule.keeps(Texts(pa.array([chinese, thai, mixed, "short"]))).tolist() == [True, True, False, False]


GOOD = '[[rule]]\nid = "a"\nmeasure = "words"\nat_least = 1\nsource = "s"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[rule]", ["is not TOML"]),
        ("", ["no [[rule]]"]),
        (GOOD + "[other]\n", ["'other' is not [[rule]]"]),
        (GOOD.replace("words", "word"), ["rule a", "'word' is not one", "did you mean 'words'?"]),
        (GOOD.replace("at_least = 1\n", ""), ["requires a bound"]),
        (GOOD.replace("at_least = 1", "at_least = 'x'"), ["at_least", "number"]),
        (GOOD.replace("source", "sauce"), ["source", "sauce"]),
        (GOOD.replace('"words"', '"short_lines"'), ["short_lines requires 'length'"]),
        (GOOD + "n = 3\n", ["words does not take 'n'"]),
        (GOOD + 'unit = "line"\nlanguages = ["en"]\n', ["all languages"]),
        (GOOD + GOOD, ["two rules have the id 'a'"]),
    ],
)
def test_a_bad_file_is_an_error(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_rules(["mine.toml"], tmp_path)
    for word in words:
        assert word in str(raised.value)
    assert "mine.toml" in str(raised.value)
    assert raised.value.hint


def test_sets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'gofer'"):
        load_rules(["gofer"], tmp_path)
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        load_rules(["none.toml"], tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_rules(["latin.toml"], tmp_path)


def test_the_page_has_all_rules_and_measures() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-clean.md").read_text()
    for rule in load_rules(rule_sets(), Path()):
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{rule.id}`"))
        assert line.endswith(f"| {rule.bound} | {rule.source} |"), "the table of rules"
    for name, measure in MEASURES.items():
        assert f"| `{name}` | {measure.summary} |" in page, "the table of measures"

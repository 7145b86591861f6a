"""Rules that a text must satisfy, as TOML: what each measures, the bound, and where the bound is from.

Measures are of many texts at a time, but the value of a text depends on it alone. Words are separated by whitespace,
lines by line feeds, paragraphs by blank lines. Lines and paragraphs count without the whitespace around them, and not
at all if they are blank. Characters are Unicode code points; those of a share are the characters of the words, lines or
paragraphs. A text without words (lines, paragraphs) has the share 0.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from aifx.core.errors import ConfigError, UsageError, did_you_mean
from aifx.core.files import read_input
from aifx.core.parsing import parse_toml
from aifx.curation.words import group_starts

Ints: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[Any]
R = TypeVar("R", bound=BaseModel)

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
"""Characters of scripts that do not put spaces between words."""

UNSPACED_SHARE = 0.2
"""A text is written without spaces if more of its characters are of these scripts."""

SENTENCE_END = r"""[.!?…]+["'”’»)\]]*(?:\s|$)|[。！？]"""

MOST_BITS = 63
"""Of numbers that are sorted as one."""


class Parts:
    """The words, lines or paragraphs of texts.

    Attributes:
        values: Arrow array of strings, text by text.
        text: the number of the text of each part.
    """

    def __init__(self, values: Any, text: Ints, num_texts: int) -> None:
        self.values, self.text, self._num_texts = values, text, num_texts
        self._repeats: dict[int, tuple[Ints, Ints]] = {}

    @classmethod
    def split(cls, lists: Any, trim: bool) -> Parts:
        """The parts of texts from an Arrow array of their lists, without the empty ones."""
        values = lists.flatten()
        text = np.repeat(np.arange(len(lists)), _numbers(lists.value_lengths()))
        if trim:
            values = pc.utf8_trim_whitespace(values)
        filled = _numbers(pc.greater(pc.binary_length(values), 0))
        if not filled.all():
            values, text = values.filter(pa.array(filled)), text[filled]
        return cls(values, text, len(lists))

    def kept(self, keep: NDArray[np.bool_]) -> Parts:
        """The parts of some of the texts."""
        chosen = keep[self.text]
        numbers = np.cumsum(keep) - 1
        found = Parts(self.values.filter(pa.array(chosen)), numbers[self.text[chosen]], int(keep.sum()))
        for name in self.__dict__.keys() & {"lengths", "ids", "is_repeated"}:
            found.__dict__[name] = self.__dict__[name][chosen]
        if "encoded" in self.__dict__:
            found.__dict__["encoded"] = self.encoded.filter(pa.array(chosen))
        return found

    @cached_property
    def lengths(self) -> Values:
        """Characters of each part."""
        return _numbers(pc.utf8_length(self.values))

    @cached_property
    def ids(self) -> Values:
        """A number of each part, the same for equal parts."""
        ids: Values = _numbers(self.encoded.indices).astype(np.int64)
        return ids

    @cached_property
    def encoded(self) -> Any:
        """The parts as an Arrow array of their ids, with the distinct parts by id as its dictionary."""
        return self.values.dictionary_encode()

    @cached_property
    def counts(self) -> Values:
        return np.bincount(self.text, minlength=self._num_texts)

    @cached_property
    def characters(self) -> Values:
        """Characters of the parts of each text."""
        return self.sums(self.lengths)

    @cached_property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Whether the same part is earlier in the text."""
        starts, groups = self._repeated(1)
        repeated = np.zeros(len(self.text), bool)
        repeated[starts[~group_starts(groups)]] = True
        return repeated

    def sums(self, values: Values) -> Values:
        """The sum of values of parts, by text."""
        return np.bincount(self.text, values, self._num_texts)

    def share(self, values: Values) -> Values:
        """The mean of values of parts, by text."""
        return _ratio(self.sums(values), self.counts)

    def character_share(self, chosen: NDArray[np.bool_]) -> Values:
        """The share of the characters of each text's parts that are in the chosen parts."""
        places = np.flatnonzero(chosen)
        characters = np.bincount(self.text[places], self.lengths[places], self._num_texts)
        return _ratio(characters, self.characters)

    def in_later_ngram(self, n: int) -> NDArray[np.bool_]:
        """Whether each part is in an n-gram that occurs earlier in its text."""
        starts, groups = self._repeated(n)
        return self._covered(starts[~group_starts(groups)], n)

    def in_top_ngram(self, n: int) -> NDArray[np.bool_]:
        """Whether each part is in the most frequent n-gram of its text.

        Of equally frequent ones, that with the most characters; of these, the first. An n-gram that occurs once is not
        frequent.
        """
        starts, groups = self._repeated(n)
        first = np.flatnonzero(group_starts(groups))
        counts = np.diff(np.append(first, len(starts)))
        place = starts[first]
        text = self.text[place]
        characters = np.zeros(len(place), np.int64)
        for part in range(n):
            characters += self.lengths[place + part]
        chosen = np.arange(len(place))
        for value in (counts, characters, -place):
            most = np.full(self._num_texts, np.iinfo(np.int64).min)
            np.maximum.at(most, text[chosen], value[chosen])
            chosen = chosen[value[chosen] == most[text[chosen]]]
        is_chosen = np.zeros(len(place), bool)
        is_chosen[chosen] = True
        return self._covered(starts[np.repeat(is_chosen, counts)], n)

    def _repeated(self, n: int) -> tuple[Ints, Ints]:
        """Where repeated n-grams begin, sorted by n-gram and place, and a number of each n-gram and text.

        An n-gram occurs twice only if its first n - 1 parts do, so each n looks at the places that are left by n - 1.
        """
        if n not in self._repeats:
            if n == 1:
                starts, groups, last = np.arange(len(self.ids)), self.text, self.ids
            else:
                starts, groups = self._repeated(n - 1)
                inside = starts + n <= len(self.ids)
                inside[inside] = self.text[starts[inside] + n - 1] == self.text[starts[inside]]
                starts, groups = starts[inside], groups[inside]
                last = self.ids[starts + n - 1]
            starts, is_start = _grouped(groups, last, starts)
            ends = np.append(is_start, True)
            is_repeated = ~(ends[1:] & ends[:-1])
            self._repeats[n] = starts[is_repeated], np.cumsum(is_start[is_repeated])
        return self._repeats[n]

    def _covered(self, starts: Ints, n: int) -> NDArray[np.bool_]:
        """Whether each part is one of the n parts from a start on."""
        covered = np.zeros(len(self.ids), bool)
        for part in range(n):
            covered[starts + part] = True
        return covered


def _grouped(groups: Ints, last: Ints, places: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Places sorted by group, last part and place, and whether each differs from the one before in the first two.

    The three numbers are sorted as one, if they have 63 bits: that is ten times as fast as to sort an order.
    """
    if not len(places):
        return places, np.zeros(0, bool)
    width, bits = int(np.max(last)).bit_length(), int(np.max(places)).bit_length()
    if int(np.max(groups)).bit_length() + width + bits <= MOST_BITS:
        keys = np.sort((((groups << width) | last) << bits) | places)
        return keys & ((1 << bits) - 1), group_starts(keys >> bits)
    order = np.lexsort((places, last, groups))
    return places[order], group_starts(groups[order]) | group_starts(last[order])


class Texts:
    """Some texts, and the views of them that measures share.

    Args:
        values: Arrow array of strings, none of them null.
    """

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def kept(self, keep: NDArray[np.bool_]) -> Texts:
        """Some of the texts, with the views that are there."""
        found = Texts(self.values.filter(pa.array(keep)))
        for name in self.__dict__.keys() & {"words", "lines", "paragraphs"}:
            found.__dict__[name] = self.__dict__[name].kept(keep)
        if "is_unspaced" in self.__dict__:
            found.__dict__["is_unspaced"] = self.is_unspaced[keep]
        return found

    @cached_property
    def words(self) -> Parts:
        return Parts.split(pc.utf8_split_whitespace(self.values), trim=False)

    @cached_property
    def lines(self) -> Parts:
        return Parts.split(pc.split_pattern(self.values, "\n"), trim=True)

    @cached_property
    def paragraphs(self) -> Parts:
        return Parts.split(pc.split_pattern_regex(self.values, r"\n\s*\n"), trim=True)

    @cached_property
    def is_unspaced(self) -> NDArray[np.bool_]:
        """Whether each text is written without spaces between words."""
        unspaced = np.zeros(len(self), bool)
        others = np.flatnonzero(~_numbers(pc.string_is_ascii(self.values)))
        if len(others):
            chosen = self.values.take(others)
            count = _numbers(pc.count_substring_regex(chosen, UNSPACED))
            unspaced[others] = count > UNSPACED_SHARE * _numbers(pc.utf8_length(chosen))
        return unspaced


@dataclass(frozen=True)
class Measure:
    """A number that describes a text.

    Attributes:
        of: gives the value of each text; it takes the texts and the option.
        summary: for docs.
        option: the key of a rule that it needs: "phrases", "n", "length", or "" for none.
        counts_words: whether it makes no sense for texts that are written without spaces between words.
    """

    of: Callable[[Texts, Any], Values]
    summary: str
    option: str = ""
    counts_words: bool = False


def _occurrences(texts: Texts, phrases: Sequence[str]) -> Values:
    counts = (pc.count_substring(texts.values, phrase, ignore_case=True) for phrase in phrases)
    return np.sum([_numbers(count) for count in counts], axis=0)


def _distinct_words(texts: Texts, phrases: Sequence[str]) -> Values:
    patterns = (rf"(?i)(?:^|[^\pL\pN_]){re.escape(phrase)}(?:$|[^\pL\pN_])" for phrase in phrases)
    found = (pc.match_substring_regex(texts.values, pattern) for pattern in patterns)
    return np.sum([_numbers(has) for has in found], axis=0)


def _alphabetic_words(texts: Texts, _: None) -> Values:
    words = texts.words
    return words.share(_numbers(pc.match_substring_regex(words.encoded.dictionary, r"\pL"))[words.ids])


def _share_of_lines(texts: Texts, has: Callable[[Any, str], Any], phrases: Sequence[str]) -> Values:
    found = [_numbers(has(texts.lines.values, phrase)) for phrase in phrases]
    return texts.lines.share(np.any(found, axis=0))


MEASURES: Mapping[str, Measure] = {
    "words": Measure(lambda texts, _: texts.words.counts, "number of words", counts_words=True),
    "word_length": Measure(
        lambda texts, _: texts.words.share(texts.words.lengths), "mean characters per word", counts_words=True
    ),
    "characters": Measure(lambda texts, _: _numbers(pc.utf8_length(texts.values)), "number of characters"),
    "occurrences": Measure(_occurrences, "occurrences of `phrases`, in upper or lower case", "phrases"),
    "phrases_per_word": Measure(
        lambda texts, phrases: _ratio(_occurrences(texts, phrases), texts.words.counts),
        "occurrences of `phrases` per word",
        "phrases",
        counts_words=True,
    ),
    "distinct_words": Measure(
        _distinct_words,
        "how many of `phrases` occur as a word, in upper or lower case",
        "phrases",
        counts_words=True,
    ),
    "alphabetic_words": Measure(_alphabetic_words, "share of words with a letter", counts_words=True),
    "lines_starting_with": Measure(
        lambda texts, phrases: _share_of_lines(texts, pc.starts_with, phrases),
        "share of lines that begin with one of `phrases`",
        "phrases",
    ),
    "lines_ending_with": Measure(
        lambda texts, phrases: _share_of_lines(texts, pc.ends_with, phrases),
        "share of lines that end with one of `phrases`",
        "phrases",
    ),
    "short_lines": Measure(
        lambda texts, length: texts.lines.share(texts.lines.lengths < length),
        "share of lines with fewer than `length` characters",
        "length",
    ),
    "duplicate_lines": Measure(
        lambda texts, _: texts.lines.share(texts.lines.is_repeated), "share of lines that repeat an earlier line"
    ),
    "duplicate_line_characters": Measure(
        lambda texts, _: texts.lines.character_share(texts.lines.is_repeated), "share of characters in such lines"
    ),
    "duplicate_paragraphs": Measure(
        lambda texts, _: texts.paragraphs.share(texts.paragraphs.is_repeated),
        "share of paragraphs that repeat an earlier one",
    ),
    "duplicate_paragraph_characters": Measure(
        lambda texts, _: texts.paragraphs.character_share(texts.paragraphs.is_repeated),
        "share of characters in such paragraphs",
    ),
    "top_ngram_characters": Measure(
        lambda texts, n: texts.words.character_share(texts.words.in_top_ngram(n)),
        "share of characters in the most frequent sequence of `n` words",
        "n",
        counts_words=True,
    ),
    "duplicate_ngram_characters": Measure(
        lambda texts, n: texts.words.character_share(texts.words.in_later_ngram(n)),
        "share of characters in sequences of `n` words that repeat an earlier sequence",
        "n",
        counts_words=True,
    ),
    "sentences": Measure(
        lambda texts, _: _numbers(pc.count_substring_regex(texts.values, SENTENCE_END)), "number of ends of sentences"
    ),
}


def _ratio(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def _numbers(values: Any) -> Values:
    """The values of an Arrow array without nulls."""
    found: Values = values.to_numpy(zero_copy_only=False)
    return found


BOUNDS = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt, "below": operator.lt}
OPTIONS = ("phrases", "n", "length")
REFERENCE = "docs/data-clean.md lists the measures and the keys of a rule"


class Rule(BaseModel):
    """Keeps what is within all of its bounds.

    Attributes:
        measure: a name in `MEASURES`.
        unit: what the rule judges: each text, or each line of it that is not blank.
        languages: of the texts that it judges; by default of any language.
        phrases, n, length: options of the measure.
        source: of the bound.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"[a-z0-9][a-z0-9._-]*")
    measure: str
    unit: Literal["text", "line"] = "text"
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    phrases: tuple[str, ...] = ()
    n: int | None = Field(default=None, ge=2, le=100)
    length: int | None = Field(default=None, ge=1)
    languages: tuple[str, ...] = ()
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if self.measure not in MEASURES:
            raise ValueError(f"measure: {self.measure!r} is not one; {did_you_mean(self.measure, MEASURES)}")
        option = MEASURES[self.measure].option
        if option and not getattr(self, option):
            raise ValueError(f"{self.measure} requires {option!r}")
        if unused := [name for name in OPTIONS if name != option and getattr(self, name)]:
            raise ValueError(f"{self.measure} does not take {unused[0]!r}")
        if all(getattr(self, bound) is None for bound in BOUNDS):
            raise ValueError(f"a rule requires a bound: one of {', '.join(BOUNDS)}")
        if "" in self.phrases:
            raise ValueError("phrases: a phrase is empty")
        if self.languages and self.unit == "line":
            raise ValueError("languages: a rule for lines judges all languages")
        return self

    @property
    def bound(self) -> str:
        """ "at least 50, at most 100000"."""
        given = [(bound.replace("_", " "), getattr(self, bound)) for bound in BOUNDS]
        return ", ".join(f"{bound} {value:g}" for bound, value in given if value is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that its verdicts depend on: all but the source."""
        return self.model_dump(exclude={"source"}, exclude_defaults=True)

    def keeps(self, texts: Texts) -> NDArray[np.bool_]:
        """Whether it keeps each text, of any language. A text is here what `unit` names.

        A measure that counts words keeps all texts that are written without spaces.
        """
        measure = MEASURES[self.measure]
        values = measure.of(texts, getattr(self, measure.option) if measure.option else None)
        kept = np.ones(len(values), bool)
        for bound, keeps in BOUNDS.items():
            if (limit := getattr(self, bound)) is not None:
                kept &= keeps(values, limit)
        return kept | texts.is_unspaced if measure.counts_words else kept


def rule_sets() -> list[str]:
    """The names of the sets that aifx has."""
    folder = resources.files("aifx.curation").joinpath("rules")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_rules(sets: Sequence[str], root: Path) -> tuple[Rule, ...]:
    """The rules of sets, in order: each a name in `rule_sets()`, or a path that ends with .toml, relative to `root`.

    Raises UsageError for a name that is not a set, ConfigError for a file that cannot be used.
    """
    rules: dict[str, Rule] = {}
    for name in dict.fromkeys(sets):
        for rule in _read_set(name, root):
            if rule.id in rules:
                raise ConfigError(
                    f"two rules have the id {rule.id!r}", f"the second is in {name}", "rename one of them"
                )
            rules[rule.id] = rule
    return tuple(rules.values())


def _read_set(name: str, root: Path) -> list[Rule]:
    if not name.endswith(".toml"):
        if name not in (known := rule_sets()):
            is_none = name == "none"
            why = (
                "no rules are an empty list in a recipe and in Python"
                if is_none
                else did_you_mean(name, [*known, "none"])
            )
            raise UsageError(f"no set of rules {name!r}", why, f"--rules {','.join(known)}, or a path to a .toml file")
        text = resources.files("aifx.curation").joinpath("rules", f"{name}.toml").read_text("utf-8")
        return parse_rules(text, name)
    return read_rule_tables(root / os.path.expanduser(name), Rule, REFERENCE)


def read_rule_tables(path: Path, model: type[R], reference: str) -> list[R]:
    """The rules of a file, in order. Raises ConfigError, which names the file, the rule and the key."""
    try:
        return parse_rule_tables(read_input(path).decode("utf-8-sig"), str(path), model, reference)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", error.strerror or str(error), f"ls -l {path}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML", f"it is not UTF-8: {error.reason}", reference) from None


def parse_rules(text: str, name: str) -> list[Rule]:
    """The rules in the text of a file. Raises ConfigError, which names the file, the rule and the key."""
    return parse_rule_tables(text, name, Rule, REFERENCE)


def parse_rule_tables(text: str, name: str, model: type[R], reference: str) -> list[R]:
    """The tables [[rule]] in the text of a file. Raises ConfigError, which names the file, the rule and the key."""
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not TOML", str(error), reference) from None
    tables = document.get("rule")
    if not isinstance(tables, list) or not tables or document.keys() != {"rule"}:
        more = sorted(document.keys() - {"rule"})
        why = f"{more[0]!r} is not [[rule]]" if more else "it has no [[rule]]"
        raise ConfigError(f"{name} has other contents than rules", why, reference)
    return check_rules(tables, name, model, reference)


def check_rules(tables: Sequence[Any], name: str, model: type[R], reference: str) -> list[R]:
    """The rules in tables of TOML. Raises ConfigError, which names where they are, the rule and the key."""
    return [_parse_rule(table, number, name, model, reference) for number, table in enumerate(tables, 1)]


def _parse_rule(table: Any, number: int, name: str, model: type[R], reference: str) -> R:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        which = table["id"] if isinstance(table, dict) and isinstance(table.get("id"), str) else number
        why = "; ".join(dict.fromkeys(_fault(e, model) for e in error.errors()))
        raise ConfigError(f"{name}: rule {which} cannot be used", why, reference) from None


def _fault(error: ErrorDetails, model: type[BaseModel]) -> str:
    """The fault of a rule in a line, with its key."""
    key = ".".join(str(part) for part in error["loc"] if part not in ("int", "float", "str", "bool"))  # of a union
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key; {did_you_mean(key, model.model_fields)}"
    if len(error["loc"]) > 1 and error["loc"][-1] in ("int", "float", "str", "bool"):
        return f"{key}: {error['input']!r} cannot be used"
    what = error["msg"].removeprefix("Value error, ")
    return f"{key}: {what}" if key else what

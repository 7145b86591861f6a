"""`aifx data clean`: repair texts, leave out lines and texts by rules, and keep the texts of some languages.

A repaired text has one Unicode form, and the characters that were meant where it was decoded wrongly.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import ftfy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ftfy.badness import is_bad
from ftfy.fixes import fix_line_breaks
from pyarrow import Table

from aifx.core.errors import UsageError
from aifx.curation.languages import identify
from aifx.curation.rules import Rule, Texts
from aifx.curation.step import Outcome, ShardStep, set_column
from aifx.data.names import ROW
from aifx.data.versions.catalog import check_own_rows
from aifx.data.versions.manifest import TEXT_TYPES, Manifest
from aifx.data.versions.shards import dropped_rows

UnicodeForm: TypeAlias = Literal["NFC", "NFKC", "none"]

TEXT, LANGUAGE, PROBABILITY = "text", "language", "language_probability"

EMPTY = "empty"
"""The rule that drops a text with no character but whitespace."""

NOT_BLANK = r"[^\s\p{Z}]"

MOST_DROPPED = 8
"""Dropped rows are judged by the rules that follow, for nothing, until they are one of so many."""


@dataclass(frozen=True)
class Clean(ShardStep):
    """Repairs and judges each row alone, so neither the order of the rows nor the size of the shards matters.

    Attributes:
        rules: in the order in which they judge; those for some languages judge last.
        languages: to keep; empty to keep all, None to identify none. Then rules for some languages judge no row.
        unicode: the form of the texts.
        encoding: whether to repair mojibake and leave out control characters: `repair` of the command.
    """

    rules: tuple[Rule, ...]
    languages: tuple[str, ...] | None = ()
    unicode: UnicodeForm = "NFC"
    encoding: bool = True

    name = "clean"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "unicode": self.unicode,
            "encoding": self.encoding,
            "languages": None if self.languages is None else sorted(self.languages),
            "rules": [rule.settings for rule in self.rules],
        }

    @property
    def worker_bytes(self) -> int:
        return 8 << 20

    @property
    def added_columns(self) -> Mapping[str, str]:
        return {} if self.languages is None else {LANGUAGE: "string", PROBABILITY: "float"}

    def apply(self, rows: Table, work: Path) -> Outcome:
        return _Batch(rows).clean(self)


def check_text(manifest: Manifest) -> None:
    """Raise UsageError if a version has no column of texts."""
    check_own_rows(manifest, "aifx data clean")
    if manifest.kind == "chat":
        why = "rules judge one text per row, and a chat has several"
        hint = f"aifx data pii {manifest.name} --mask    (reaches the texts in chats)"
        raise UsageError(f"{manifest.reference} holds chats, which aifx data clean does not read", why, hint)
    found = manifest.columns.get(TEXT)
    if found not in TEXT_TYPES:
        why = f"its column 'text' is {found}" if found else f"its columns are {', '.join(manifest.columns)}"
        raise UsageError(f"{manifest.reference} has no texts", why, "aifx data ls")


def dropped_share(manifest: Manifest) -> float:
    """The share of the rows of its parent that a version leaves out."""
    dropped = sum(manifest.dropped_by.values())
    return dropped / (manifest.rows + dropped) if dropped else 0.0


class _Batch:
    """Some rows, as they are cleaned.

    Attributes:
        rows: that no rule has dropped so far.
        dropped: tables of dropped rows.
        facts: what is counted, by name.
    """

    def __init__(self, rows: Table) -> None:
        self.rows = rows
        self.dropped: list[Table] = [dropped_rows([], [])]
        self.facts: Counter[str] = Counter({"rows_changed": 0})
        self._before = pc.fill_null(rows[TEXT].combine_chunks(), "")
        self._texts = Texts(self._before)
        self._is_left = np.ones(len(rows), bool)

    def clean(self, step: Clean) -> Outcome:
        """Do all that the step does."""
        self._texts = Texts(repaired(self._texts.values, step.unicode, step.encoding))
        self._leave_out_lines([rule for rule in step.rules if rule.unit == "line"])
        self._keep(pc.match_substring_regex(self._texts.values, NOT_BLANK), EMPTY)
        rules = [rule for rule in step.rules if rule.unit == "text"]
        for rule in rules:
            if not rule.languages:
                self._keep(rule.keeps(self._texts), rule.id)
        self._leave_out_rows()
        if step.languages is not None:
            self._identify(step.languages, {name for rule in rules for name in rule.languages}.union(step.languages))
            for rule in rules:
                if rule.languages:
                    languages = self.rows[LANGUAGE].combine_chunks()
                    others = pc.invert(pc.is_in(languages, pa.array(rule.languages, pa.string())))
                    self._keep(rule.keeps(self._texts) | others.to_numpy(zero_copy_only=False), rule.id)
            self._leave_out_rows()
            self.facts.update(f"language.{name}" for name in self.rows[LANGUAGE].to_pylist())
        self.facts["rows_changed"] += pc.sum(pc.not_equal(self._before, self._texts.values)).as_py() or 0
        rows = set_column(self.rows, TEXT, self._texts.values)
        return Outcome(rows, pa.concat_tables(self.dropped), dict(sorted(self.facts.items())))

    def _leave_out_lines(self, rules: list[Rule]) -> None:
        if not rules or not len(self._texts):
            return
        lists = pc.split_pattern(self._texts.values, "\n")
        lines, lengths = lists.flatten(), lists.value_lengths().to_numpy(zero_copy_only=False)
        kept = np.ones(len(lines), bool)
        texts, blank = Texts(lines), ~pc.match_substring_regex(lines, NOT_BLANK).to_numpy(zero_copy_only=False)
        for rule in rules:
            keeps = rule.keeps(texts) | blank
            self.facts[f"lines_dropped.{rule.id}"] += int((kept & ~keeps).sum())
            kept &= keeps
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(numbers[kept], minlength=len(lengths)))])
        left = type(lists).from_arrays(pa.array(offsets, lists.offsets.type), lines.filter(pa.array(kept)))
        self._texts = Texts(pc.binary_join(left, "\n"))

    def _identify(self, keep: tuple[str, ...], asked: set[str]) -> None:
        names, probabilities = identify(self._texts.values.to_pylist(), asked)
        found = {LANGUAGE: pa.array(names, pa.string()), PROBABILITY: pa.array(probabilities, pa.float32())}
        self.rows = self.rows.drop_columns([name for name in found if name in self.rows.column_names])
        for name, values in found.items():
            self.rows = self.rows.append_column(name, values)
        if keep:
            self._keep(pc.is_in(self.rows[LANGUAGE].combine_chunks(), pa.array(keep, pa.string())), LANGUAGE)

    def _keep(self, kept: Any, rule: str) -> None:
        """Drop the other rows."""
        mask = kept.to_numpy(zero_copy_only=False) if isinstance(kept, pa.Array) else kept
        left_out = self._is_left & ~mask
        if count := int(left_out.sum()):
            self.dropped.append(dropped_rows(self.rows[ROW].filter(pa.array(left_out)), [rule] * count))
            self._is_left &= mask
            if len(mask) > MOST_DROPPED * (len(mask) - self._is_left.sum()):
                return
            self._leave_out_rows()

    def _leave_out_rows(self) -> None:
        """Forget the rows that are dropped."""
        left = self._is_left
        if not left.all():
            mask = pa.array(left)
            self.rows, self._before = self.rows.filter(mask), self._before.filter(mask)
            self._texts, self._is_left = self._texts.kept(left), left[left]


MOST_ROUNDS = 8
"""Texts decoded wrongly more often than this stay as they are."""

# [^\x00-\x7f]{2}|[\xc0-\xff][ ?]|[\x00-\x08\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ufffd], written so that Python skips
# plain text in one loop: the first character is of one set, and what it is of is asked afterwards.
SUSPECT = re.compile(
    r"[^\t\n\x20-\x7e]"
    r"(?:(?<=[^\x00-\x7f])[^\x00-\x7f]|(?<=[\xc0-\xff])[ ?]|(?<=[\x00-\x08\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ufffd]))"
)
"""In lines that ftfy repairs: mojibake is two such characters together, or an accented letter before a space."""

REMOVED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u206a-\u206f\ud800-\udfff\ufeff\ufff9-\ufffc]")
"""Characters that ftfy removes or replaces wherever they are."""

TOGETHER = re.compile(r"[^\x00-\x7f](?:(?<=[ŒœÂÃ])|[^\x00-\x7f])[^\x00-\x7f]*")
"""In all that ftfy's expression for mojibake matches, with at most two characters before and six after. That expression
tries each of its alternatives at each character."""

_REPAIRS = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    normalization=None,
    explain=False,
)
"""Repairs alone: typographic quotes, ligatures, wide characters and HTML entities stay."""

_ODD = r"[\x00-\x08\x0b-\x1f\x7f]|[^\x00-\x7f]"  # all that a repair may change
_ODD_IN_NFC = (
    r"[^\t\n\x20-\x7e\x{a1}-\x{2ff}\x{2002}-\x{2027}\x{202a}-\x{2069}\x{2070}-\x{20cf}]"
    r"|[^\x00-\x7f]{2}|[\x{c0}-\x{ff}][ ?]"
)
"""All that a repair may change if the form is NFC: `SUSPECT`, and characters that the form may change."""


def repaired(values: Any, form: UnicodeForm, encoding: bool) -> Any:
    """Texts in a Unicode form, and without mojibake and control characters if `encoding`.

    Repairing them again changes nothing.

    Args:
        values: Arrow array of strings.
    """
    if form == "none" and not encoding:
        return values
    odd = pc.match_substring_regex(values, _ODD_IN_NFC if form == "NFC" else _ODD)
    if not pc.any(odd, min_count=0).as_py():
        return values
    old = values.filter(odd).to_pylist()
    new = [_repaired_text(text, form, encoding) for text in old]
    if old == new:
        return values
    return pc.replace_with_mask(values, odd, pa.array(new, values.type))


def _repaired_text(text: str, form: UnicodeForm, encoding: bool) -> str:
    if not encoding or not SUSPECT.search(text):
        return _normal(text, form)
    if not _may_change(text) and _normal(text, form) == text:
        return text
    found = text
    for _ in range(MOST_ROUNDS):
        before = found
        # ftfy decides line by line: breaks first, so that the next look at the text finds the same lines.
        found = "\n".join(_repaired_line(line, form) for line in fix_line_breaks(found).split("\n"))
        if found == before:
            return found
    return _normal(text, form)


def _repaired_line(line: str, form: UnicodeForm) -> str:
    is_changed = SUSPECT.search(line) is not None and _may_change(line)
    return _normal(ftfy.fix_text(line, _REPAIRS) if is_changed else line, form)


def _may_change(text: str) -> bool:
    """Whether ftfy may change a line of a text: most that are suspect have quotes beside dashes only."""
    if len(text) >= _REPAIRS.max_decode_length or REMOVED.search(text) is not None:
        return True
    found = [text[max(0, match.start() - 2) : match.end() + 6] for match in TOGETHER.finditer(text)]
    return is_bad("\n".join(found))


def _normal(text: str, form: UnicodeForm) -> str:
    return text if form == "none" else unicodedata.normalize(form, text)

"""`when` of a station: terms such as "changed:payments", combined with and, or, not and parentheses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from aifx.core.errors import ConfigError, did_you_mean
from aifx.lines.schedule import parse_duration

TermKind = Literal["changed", "verdict", "failed", "every"]
KINDS: tuple[TermKind, ...] = get_args(TermKind)
MAX_LEVELS = 32
REFERENCE = "docs/line.md has the conditions"

_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")


@dataclass(frozen=True)
class Term:
    """A term of a condition.

    Attributes:
        subject: data set, model with alias ("fraud@production"), station or duration.
    """

    kind: TermKind
    subject: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.subject}"


@dataclass(frozen=True)
class Condition:
    """A condition: `parts` are combined with `op`, of which "not" has one."""

    op: Literal["and", "or", "not"]
    parts: tuple[Condition | Term, ...]

    def terms(self) -> Iterator[Term]:
        """The terms in their order."""
        for part in self.parts:
            if isinstance(part, Term):
                yield part
            else:
                yield from part.terms()

    def judge(self, holds: Callable[[Term], bool]) -> bool:
        """Whether the condition holds, by whether each term does."""
        found = (holds(part) if isinstance(part, Term) else part.judge(holds) for part in self.parts)
        return not next(found) if self.op == "not" else all(found) if self.op == "and" else any(found)


def parse_condition(text: str) -> Condition:
    """The condition that a text is; an empty one always holds. Raises ConfigError."""
    tokens = _TOKEN.findall(text)
    if not tokens:
        return Condition("and", ())
    parser = _Parser(text, tokens)
    found = parser.either(0)
    if parser.tokens:
        raise parser.fault(f"unexpected {parser.tokens[0]!r}")
    return found if isinstance(found, Condition) else Condition("and", (found,))


class _Parser:
    """Recursive descent: `not` binds more than `and`, and that more than `or`."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.text, self.tokens = text, tokens

    def fault(self, why: str) -> ConfigError:
        return ConfigError(f"when = {self.text!r} is no condition", why, REFERENCE)

    def either(self, level: int) -> Condition | Term:
        return self._joined("or", lambda: self._joined("and", lambda: self._one(level)))

    def _joined(self, op: Literal["and", "or"], read: Callable[[], Condition | Term]) -> Condition | Term:
        parts = [read()]
        while self.tokens and self.tokens[0] == op:
            self.tokens.pop(0)
            parts.append(read())
        return parts[0] if len(parts) == 1 else Condition(op, tuple(parts))

    def _one(self, level: int) -> Condition | Term:
        if level > MAX_LEVELS:
            raise self.fault(f"it is nested more than {MAX_LEVELS} levels deep")
        if not self.tokens:
            raise self.fault("a term is missing at its end")
        token = self.tokens.pop(0)
        if token == "not":
            return Condition("not", (self._one(level + 1),))
        if token == "(":
            found = self.either(level + 1)
            if not self.tokens or self.tokens.pop(0) != ")":
                raise self.fault("a parenthesis is not closed")
            return found
        return self._term(token)

    def _term(self, token: str) -> Term:
        kind, colon, subject = token.partition(":")
        if not colon or not subject:
            raise self.fault(f"{token!r} is no term: {', '.join(f'{kind}:...' for kind in KINDS)}")
        if kind not in KINDS:
            raise self.fault(f"no term {kind!r}: {did_you_mean(kind, KINDS)}")
        if kind == "every":
            try:
                parse_duration(subject)
            except ValueError as e:
                raise self.fault(str(e)) from None
        return Term(kind, subject)

"""Grammars that hold an answer to a JSON schema or to calls of tools, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np

from aifx.data.tokenizer import Tokenizer

# At most eight spaces or newlines between two parts: a small model could write them for ever.
WHITESPACE = r"[ \n]{0,8}"
OPTIONS: Any = {"whitespace_pattern": WHITESPACE, "lenient": False}
MAX_COMPILED = 64
"""Grammars that are kept compiled."""

ANY_OBJECT = {"type": "object"}


class GrammarError(ValueError):
    """A schema that no grammar can be made of."""


class TokenGrammar:
    """The state of one answer's grammar. Implements `Grammar`."""

    def __init__(self, matcher: llguidance.LLMatcher, words: int, source: str) -> None:
        self._matcher, self._words, self.source = matcher, words, source

    def mask(self) -> np.ndarray:
        """uint32 [words]. Raises GrammarError if the grammar became too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]
        self._check()
        return bits

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_first_line(self._matcher.get_error()))


class Grammars:
    """Grammars over the tokens of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: of the model. Raises GrammarError for a tokenizer that llguidance does not know."""
        size = max(vocab_size, tokenizer.vocab_size)
        try:
            self._tokens = llguidance.LLTokenizer(
                tokenizer.data.decode(), n_vocab=size, eos_token=sorted(tokenizer.end_ids)
            )
        except Exception as error:  # llguidance raises ValueError and bare Exception
            raise GrammarError(_first_line(str(error))) from None
        self._special = {tokenizer.token(index) for index in tokenizer.special_ids}
        self._words = -(-vocab_size // 32)
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._compiled = lru_cache(MAX_COMPILED)(self._compile)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token writes; the name of a special one."""
        return self._tokens.decode_bytes([token])

    def schema(self, schema: Mapping[str, Any]) -> TokenGrammar:
        """Texts that are JSON of this schema. Raises GrammarError."""
        try:
            source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=OPTIONS)
        except ValueError as error:
            raise GrammarError(_first_line(str(error))) from None
        return self.new(source)

    def wrapped(self, schemas: Sequence[Mapping[str, Any]], begin: str, end: str, *, repeated: bool) -> TokenGrammar:
        """Texts that are `begin`, JSON of one of the schemas, `end`; once, or also several times. Raises GrammarError.

        A special token in `begin` or `end` is matched as a token.
        """
        rules = [f"value{n}: %json {json.dumps({**schema, 'x-guidance': OPTIONS})}" for n, schema in enumerate(schemas)]
        one = " ".join((*self._literal(begin), "value", *self._literal(end)))
        more = f' ("\\n" {one})*' if repeated else ""
        choice = " | ".join(f"value{n}" for n in range(len(schemas)))
        lark = "\n".join([f"start: {one}{more}", f"value: {choice}", *rules])
        return self.new(llguidance.LLMatcher.grammar_from_lark(lark))

    def _literal(self, text: str) -> list[str]:
        """A text as parts of a rule."""
        special = next((name for name in self._special if name and name in text and name[0] == "<"), None)
        if special is None:
            return [json.dumps(text)] if text else []
        before, _, after = text.partition(special)
        return [*self._literal(before), special, *self._literal(after)]

    def new(self, source: str) -> TokenGrammar:
        """A grammar from the source of another. Raises GrammarError."""
        return TokenGrammar(self._compiled(source).deep_copy(), self._words, source)

    def _compile(self, source: str) -> llguidance.LLMatcher:
        is_wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            source, self._tokens, limits=self._limits
        )
        if is_wrong:
            raise GrammarError(_first_line(messages[0]))
        matcher = llguidance.LLMatcher(self._tokens, source, log_level=0, limits=self._limits)
        matcher.compute_bitmask()  # a grammar may be too large for its first token already
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        return matcher


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it cannot be used")

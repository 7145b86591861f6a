"""Plain data as YAML that every reader reads back the same."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_WORDS = frozenset(("y", "yes", "n", "no", "true", "false", "on", "off", "null"))
"""Words that a reader of YAML 1.1 or 1.2 takes for a boolean or nothing, in lower case."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Quotes each text that is not a plain word. PyYAML alone would write 1e3 and 08, which others read as numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _text)


def to_yaml(data: Any) -> str:
    """A document of dicts, lists, texts, numbers and booleans, in the order in which they are."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return text

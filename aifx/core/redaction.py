"""Removal of secrets from text that is kept or sent: records, provenance, locks, reports of crashes.

It recognizes a secret by the name before it (`password=`), by its place in a URL or header, and by its shape. In doubt
it removes the text.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

REMOVED = "[removed]"

_WORD = (
    r"(?:passw(?:or)?d|passphrase|secret|credential|(?:api|access|account|private|shared|signing|encryption)[_-]?key"
    r"|(?<![A-Za-z])(?:token|pwd|pat|auth|authorization|cookie|sig|signature)(?![A-Za-z])"
    r"|(?-i:(?<=[a-z])(?:Token|Pwd)(?![a-z])|(?<![A-Za-z])token(?=[A-Z])))"
)
_NAME = rf"[\w.-]{{0,64}}{_WORD}[\w.-]{{0,64}}"
_VALUE = (
    r"(?P<value>(?:(?:basic|bearer|token|digest)\s+)?"
    r"""(?:\\"(?:[^"\\\n]|\\[^"\n])*(?:\\")?"""  # quoted within a quoted text
    r"""|"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[^\s,;"'&]+))"""
)

_NAMED = re.compile(
    rf"""(?P<keep>(?<![\w.-]){_NAME}(?:\\?["'])?\s{{0,8}}(?:=|:(?!//))\s{{0,8}}|(?<![\w-])--?{_NAME}\s{{1,8}}){_VALUE}""",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(rf"(?P<keep>(?:--?[\w-]+=)?{_NAME}\s*=).+", re.IGNORECASE | re.DOTALL)
_OPTION = re.compile(rf"--?{_NAME}", re.IGNORECASE)
_URL_LOGIN = re.compile(r"""(?<=://)(?:[^\s"'<>/:@]+|(?!\[)[^\s"'<>/:@]*:(?:(?!://)[^\s"'<>])*)@""")
_SCHEME = re.compile(r"\b(?P<keep>(?P<scheme>Bearer|Basic)\s+)(?P<value>[\w.~+/-]{6,}={0,2})", re.IGNORECASE)
_SHAPE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:gh[opsru]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|xapp-|nvapi-|npm_|pypi-|dckr_pat_)[\w-]{16,}"
    r"|AIza[\w-]{30,}|A[KS]IA[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w.-]{10,})"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
"""Tokens known by their shape: of GitHub, GitLab, Hugging Face, OpenAI, Slack, NVIDIA, npm, PyPI, Docker, Google and
Amazon; a JSON Web Token; a private key."""

_CREDENTIALS = re.compile(r"(?<![\w-])[A-Za-z]*credentials?[A-Za-z]*:\s+", re.IGNORECASE)
"""The end of a clause, not the name of a value: `Invalid credentials: `, `google.auth.DefaultCredentialsError: `."""
_ORDINARY = re.compile(r"\(?(?:token\s+)?[^\W\d_]{1,15}(?:-[a-z]{1,15})*[.!?):]{0,3}", re.IGNORECASE)

_SECRET_VARIABLE = re.compile(
    r"token|secret|jwt|passw|passphrase|credential|private|auth|cookie|_pwd$|(?:^|_)key(?:_|$)|(?:api|access|account)_?key",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without the secrets in it."""
    text = _URL_LOGIN.sub(f"{REMOVED}@", text)  # before shapes: one that is removed from a login hides the rest of it
    text = _SHAPE.sub(REMOVED, text)
    text = _NAMED.sub(_without_value, text)
    return _SCHEME.sub(_without_login, text)


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without the secrets in it: `--set tracker.api_key=...`, `--token ...`."""
    redacted: list[str] = []
    is_value = False
    for argument in arguments:
        if is_value and not _OPTION.fullmatch(argument):
            redacted.append(REMOVED)
        elif match := _ASSIGNMENT.fullmatch(argument):
            redacted.append(f"{match['keep']}{REMOVED}")  # to its end: a password may hold spaces
        else:
            redacted.append(redact(argument))
        is_value = _OPTION.fullmatch(argument) is not None
    return redacted


def redact_values(value: Any) -> Any:
    """A JSON document whose strings are redacted, each by itself: the names of keys do not count."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_values(item) for key, item in value.items()}
    return [redact_values(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name may hold a secret."""
    return _SECRET_VARIABLE.search(name) is not None


def _without_value(match: re.Match[str]) -> str:
    """The name and, around what was removed, the quotes: text that was JSON stays JSON."""
    value = match["value"]
    if value == "..." or _is_prose(match["keep"], value):  # a hint says: export API_KEY=...
        return match[0]
    quote = next((mark for mark in ('\\"', '"', "'") if value.startswith(mark) and value.endswith(mark)), "")
    return f"{match['keep']}{quote}{REMOVED}{quote}"


def _is_prose(name: str, value: str) -> bool:
    """Whether a sentence goes on after `credentials: `; a value in capitals, or with digits, may be a secret."""
    if _CREDENTIALS.fullmatch(name.rpartition(".")[2]) is None or _ORDINARY.fullmatch(value) is None:
        return False
    word = value.split()[-1].strip("(.!?):")
    return word[1:].islower() or len(word) <= 4


def _without_login(match: re.Match[str]) -> str:
    """A header's value; `Basic` is also a word, so what follows must decode to `user:password`."""
    if match["scheme"].lower() == "basic":
        value = match["value"]
        try:
            if b":" not in base64.b64decode(value + "=" * (-len(value) % 4), validate=True):
                return match[0]
        except ValueError:
            return match[0]
    return f"{match['keep']}{REMOVED}"

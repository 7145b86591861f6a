"""The commands of aifx as a line knows them: effects, answers from outside, training, and the identity of outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Command:
    """A command of aifx.

    Attributes:
        name: its words, such as "data add".
        identity: keys of its JSON document whose values the keys of later stations depend on. Never a time.
        makes: artefacts that its document names and that can be removed later.
        is_source: its answer depends on what no key can name.
        trains: it costs accelerators' time, and asks for cooldown and budget_per_day.
        reads_code: it runs the project's own modules.
        takes_request: it keeps the id of a request beside its effect.
        has_document: it takes --json.
    """

    name: str
    identity: tuple[str, ...] = ()
    makes: Literal["", "run", "data", "model"] = ""
    is_source: bool = False
    trains: bool = False
    reads_code: bool = False
    takes_request: bool = False
    has_document: bool = True


_STEP = ("reference", "is_accepted")
_ACT = ("reference", "digest", "alias")

COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command("train", ("run", "state_digest", "best_step", "best_value"), "run", trains=True, reads_code=True,
                takes_request=True),
        Command("sweep", ("sweep", "best"), trains=True, reads_code=True),
        Command("eval", ("run", "step", "model", "metrics", "gates", "verdict", "data"), reads_code=True),
        Command("predict", ("run", "step", "output", "predictions"), reads_code=True),
        Command("score", ("target", "digest", "rows", "position"), is_source=True, reads_code=True, takes_request=True),
        Command("monitor", ("digest", "reference", "drifted", "breached"), is_source=True, reads_code=True),
        Command("generate", reads_code=True),
        Command("export", ("path", "run", "step", "files"), reads_code=True),
        Command("bench", is_source=True, reads_code=True),
        Command("plan", reads_code=True),
        Command("drill", ("passed",), reads_code=True),
        Command("doctor", ("status",), is_source=True),
        Command("launch slurm", reads_code=True, takes_request=True, has_document=False),
        Command("launch k8s", reads_code=True, takes_request=True, has_document=False),
        Command("data add", _STEP, "data", is_source=True, takes_request=True),
        Command("data make", ("data_sets",), "data", is_source=True, takes_request=True),
        *(Command(f"data {step}", _STEP, "data")
          for step in ("clean", "dedupe", "classify", "pii", "join", "mix", "split", "decontaminate", "expect")),
        Command("data label apply", _STEP, "data"),
        Command("data push", ("reference", "table"), takes_request=True),
        Command("data index", ("reference",)),
        Command("data verify", is_source=True),
        Command("registry push", _ACT, "model", takes_request=True),
        Command("registry attest", _ACT, takes_request=True),
        Command("registry promote", _ACT, takes_request=True),
        Command("registry rollback", _ACT, is_source=True, takes_request=True),
        Command("registry verify", is_source=True),
        Command("registry pull", is_source=True),
    )
}  # fmt: skip
"""The commands that a line knows more of than their name."""

_PARTS = {
    "data_sets": ("name", "version", "reference", "is_accepted"),
    "gates": ("gate", "passed"),
    "files": ("name", "sha256"),
}
"""Keys that count of the items of a list."""


def find_command(words: Sequence[str]) -> Command:
    """The command that words begin with; one of which nothing is known if the table does not have it."""
    for count in (3, 2, 1):
        if (found := COMMANDS.get(" ".join(words[:count]))) is not None:
            return found
    return Command(" ".join(words[:1]), has_document=False)


def identity_of(
    words: Sequence[str], document: Mapping[str, Any], code: int, fields: Sequence[tuple[str, ...]] = ()
) -> dict[str, Any]:
    """The part of a command's outcome that the keys of later stations depend on.

    Args:
        fields: keys that lead to further values that count, because commands name them.
    """
    own = find_command(words).identity
    found: dict[str, Any] = {"code": code}
    found |= {key: _without_times(key, document[key]) for key in own if document.get(key) is not None}
    named = {".".join(path): value for path in fields if (value := value_at(document, path)) is not None}
    return found | {"named": named} if named else found


def _without_times(key: str, value: Any) -> Any:
    if key not in _PARTS or not isinstance(value, list):
        return value
    return [
        {part: item[part] for part in _PARTS[key] if part in item} if isinstance(item, Mapping) else item
        for item in value
    ]


def value_at(document: Any, path: Sequence[str]) -> Any:
    """The value that keys, and numbers in lists, lead to; None if there is none."""
    for key in path:
        if isinstance(document, Mapping):
            document = document.get(key)
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document

"""A damaged `aifx.toml` is refused with a way out, or means what it says: no traceback, no hang, no other value.

`make test` tries 20 fresh ones of each template, with a seed that follows the commit, and `make test-all` 500, with
LONG=1 10,000.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import tomli
from effort import parts, seed_of_commit

from aifx.config import Config
from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.scaffold.projects import scaffold

TEMPLATES = ("language-model", "tabular", "series", "vision-inspection")
FEW, MANY, PARTS = 20, 10_000, 20
PIECES = [
    "=",
    "[",
    "]",
    '"',
    "'",
    "#",
    "\n",
    ".",
    ",",
    "-",
    "_",
    "0",
    "9",
    "1e9",
    "nan",
    "true",
    "\\",
    "\x00",
    "é",
    "{",
]
VALUES = ["0", "-1", "1", "1e-3", "3.5", "1e999", "nan", "true", '"auto"', '""', "[]", "[1]", "{}", "2026-11-28", "07"]


def damaged(text: str, dice: random.Random) -> str:
    """One to three things of a file changed: a character, a line, a value, a key."""
    for _ in range(dice.randint(1, 3)):
        lines = text.split("\n")
        place, line = dice.randrange(len(text)), dice.randrange(len(lines))
        match dice.randrange(8):
            case 0:
                text = text[:place] + text[place + 1 :]
            case 1:
                text = text[:place] + dice.choice(PIECES) + text[place:]
            case 2:
                text = text[:place] + dice.choice(PIECES) + text[place + 1 :]
            case 3:
                text = text[:place]
            case 4:
                text = "\n".join(lines[:line] + lines[line + 1 :])
            case 5:
                text = "\n".join([*lines[:line], lines[line], *lines[line:]])
            case 6:
                key, equals, _ = lines[line].partition("=")
                changed = f"{key}= {dice.choice(VALUES)}" if equals else lines[line]
                text = "\n".join([*lines[:line], changed, *lines[line + 1 :]])
            case _:
                other = dice.randrange(len(lines))
                lines[line], lines[other] = lines[other], lines[line]
                text = "\n".join(lines)
        text = text or "\n"
    return text


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check(project: Project, text: str) -> bool:
    """Whether a configuration is loaded; it is refused otherwise."""
    project.config_path.write_bytes(text.encode())
    config, error = load(project)
    if config is None:
        assert error is not None
        assert error.exit_code == 2, text
        assert "aifx.toml" in str(error), text
        assert error.hint, (text, error)
        return False
    read = dict(flat(read_values(config)))
    for key, value in flat(tomli.loads(text)):
        assert key in read or value == {}, f"{key} is not in the configuration:\n{text}"
        assert key not in read or same(read[key], value), f"{key} = {value!r} was read as {read[key]!r}:\n{text}"
    return True


def load(project: Project) -> tuple[Config | None, AifxError | None]:
    try:
        return load_config(project, (), {}), None
    except AifxError as error:
        return None, error


def read_values(config: Config) -> dict[str, Any]:
    """As `aifx config show` writes it, and reads it again."""
    return tomli.loads(config.to_toml())


def same(read: Any, value: Any) -> bool:
    if isinstance(value, list) or isinstance(read, list):
        read, value = (x if isinstance(x, list) else [x] for x in (read, value))
        return len(read) == len(value) and all(map(same, read, value))
    return bool(read == value) and isinstance(read, bool) == isinstance(value, bool)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Project, str]]:
    """A project of each template, with its aifx.toml."""
    folder = tmp_path_factory.mktemp("projects")
    made = []
    for name in TEMPLATES:
        scaffold(folder / name, name, data={}, ask=False)
        made.append((Project(folder / name), (folder / name / "aifx.toml").read_text(encoding="utf-8")))
    return made


def test_some(projects: list[tuple[Project, str]]) -> None:
    dice = random.Random(seed_of_commit())
    found = [check(project, damaged(text, dice)) for project, text in projects for _ in range(FEW)]
    assert set(found) == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("part", parts(PARTS))
def test_many(projects: list[tuple[Project, str]], part: int, record_property: Callable[[str, object], None]) -> None:
    dice = random.Random(f"{seed_of_commit()} {part}")
    for number in range(MANY // PARTS):
        project, text = projects[number % len(projects)]
        check(project, damaged(text, dice))
    record_property("damaged configurations", MANY // PARTS)

"""Completions of a shell when Tab is pressed. One that fails offers nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

from aifx.core.errors import AifxError


def complete_run(incomplete: str) -> list[str]:
    """Names of runs in the project around the working directory."""
    from aifx.core.project import RUN_NAME, find_project

    with suppress(AifxError, OSError):
        names = sorted(run.name for run in find_project().runs() if run.name.startswith(incomplete))
        return [name for name in names if RUN_NAME.fullmatch(name)]  # a shell would run a folder called `a;touch X`
    return []


def complete_checkpoint(incomplete: str) -> list[str]:
    """Checkpoints of the run written last by their steps, and those of the run before the colon of `RUN:`."""
    from aifx.checkpoint.manifest import step_directories
    from aifx.core.project import RUN_NAME, find_project

    with suppress(AifxError, OSError):
        name, colon, _ = incomplete.rpartition(":")
        run = find_project().existing_run(name if colon else None)
        steps = [*map(str, step_directories(run.checkpoints)), "best", "last"]
        found = [f"{name}{colon}{step}" for step in steps]
        return [text for text in found if text.startswith(incomplete) and (not name or RUN_NAME.fullmatch(name))]
    return []


def complete_sweep(incomplete: str) -> list[str]:
    """Names of sweeps in the project around the working directory."""
    from aifx.core.project import RUN_NAME, find_project

    with suppress(AifxError, OSError):
        found = sorted(path.parent.name for path in find_project().runs_path.glob("*/sweep.jsonl"))
        return [name for name in found if name.startswith(incomplete) and RUN_NAME.fullmatch(name)]
    return []


def complete_launch(incomplete: str) -> list[str]:
    """Ids of launches in the project around the working directory."""
    from aifx.cluster.launched import read_records
    from aifx.core.project import find_project

    with suppress(AifxError, OSError):
        return [record.id for record in read_records(find_project()) if record.id.startswith(incomplete)]
    return []


def complete_drill(incomplete: str) -> list[str]:
    """Names of drills."""
    from aifx.drills.guarantees import ALL, DRILL_NAMES

    return [name for name in (*DRILL_NAMES, ALL) if name.startswith(incomplete)]


def complete_template(incomplete: str) -> list[tuple[str, str]]:
    """Templates that come with aifx; for others a shell offers files."""
    from aifx.scaffold.projects import bundled_templates

    return [(t.name, t.summary) for t in bundled_templates() if t.name.startswith(incomplete)]


def complete_section(incomplete: str) -> list[tuple[str, str]]:
    """Sections of the configuration."""
    from aifx.config.config import SECTION_NAMES
    from aifx.kinds import KINDS

    found = {name: (KINDS.section_models(name)[0].__doc__ or "").partition("\n")[0] for name in SECTION_NAMES}
    return [(name, summary) for name, summary in found.items() if name.startswith(incomplete)]


def complete_tag(incomplete: str) -> list[str]:
    """Tags that runs of the project have."""
    from aifx.core.project import find_project
    from aifx.runs.manage import read_tags

    with suppress(AifxError, OSError):
        tags = {tag for run in find_project().runs() for tag in read_tags(run)}
        return sorted(tag for tag in tags if tag.startswith(incomplete))
    return []


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Keys of the configuration as `--set` takes them; of one key alone also its values.

    Shells put a space behind a candidate that is alone, and none behind `train.num_steps=` beside
    `train.num_steps=1000`.
    """
    from aifx.kinds import settings

    found = {f"{s.section}.{s.key}=": s.description for s in settings()}
    if "=" in incomplete:
        key = incomplete.partition("=")[0] + "="
        return [(value, found[key]) for value in _values(key) if value.startswith(incomplete)] if key in found else []
    names = [name for name in found if name.startswith(incomplete)]
    values = _values(names[0]) if len(names) == 1 else []
    return [(name, found[name.partition("=")[0] + "="]) for name in (*names, *values)]


def _values(name: str) -> list[str]:
    """`section.key=value` for the values that a key can have, or for its default. None that a shell would interpret."""
    from aifx.config.diagnostics import choices
    from aifx.config.schema import properties
    from aifx.kinds import KINDS

    section, _, key = name.removesuffix("=").partition(".")
    schemas = [s for model in KINDS.section_models(section) if (s := properties(model).get(key)) is not None]
    words = [word for schema in schemas if schema.get("type") != "array" for word in choices(schema)]
    defaults = [schema.get("default") for schema in schemas]
    if any(isinstance(default, bool) for default in defaults):
        words += ["true", "false"]
    elif not words:
        words = [str(default) for default in defaults if isinstance(default, int | float | str)]
    return [f"{name}{word}" for word in dict.fromkeys(words) if re.fullmatch(r"[A-Za-z0-9._-]+", word)]


def settings_named(word: str) -> list[str]:
    """The settings that a word may mean, which other programs have as an option: "lr"."""
    from aifx.kinds import KINDS

    return list(KINDS.settings_named(word))


def settings_meant(word: str, keys: Sequence[str]) -> str:
    """The suggestion to use one of these settings instead of a word."""
    from aifx.config.foreign_keys import suggestion

    return suggestion(word, " or ".join(keys))

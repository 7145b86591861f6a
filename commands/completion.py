"""What a shell offers when Tab is pressed. A completion that fails offers nothing."""

from __future__ import annotations

from contextlib import suppress

from aifx.errors import AifxError


def complete_run(incomplete: str) -> list[str]:
    """Names of runs in the project around the working directory."""
    from aifx.project import RUN_NAME, find_project

    with suppress(AifxError, OSError):
        names = sorted(run.name for run in find_project().runs() if run.name.startswith(incomplete))
        return [name for name in names if RUN_NAME.fullmatch(name)]  # a shell would run a folder called `a;touch X`
    return []


def complete_template(incomplete: str) -> list[tuple[str, str]]:
    """Templates that come with aifx; for others a shell offers files."""
    from aifx.scaffold import bundled_templates

    return [(t.name, t.summary) for t in bundled_templates() if t.name.startswith(incomplete)]


def complete_section(incomplete: str) -> list[tuple[str, str]]:
    """Sections of the configuration."""
    from aifx.config.resolved import SECTION_NAMES, section_models

    found = {name: (section_models(name)[0].__doc__ or "").partition("\n")[0] for name in SECTION_NAMES}
    return [(name, summary) for name, summary in found.items() if name.startswith(incomplete)]


def complete_tag(incomplete: str) -> list[str]:
    """Tags that runs of the project have."""
    from aifx.project import find_project
    from aifx.runs.manage import read_tags

    with suppress(AifxError, OSError):
        tags = {tag for run in find_project().runs() for tag in read_tags(run)}
        return sorted(tag for tag in tags if tag.startswith(incomplete))
    return []


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Keys of the configuration as `--set` takes them."""
    from aifx.config.schema import settings

    found = {f"{s.section}.{s.key}=": s.description for s in settings()}
    return [(name, description) for name, description in found.items() if name.startswith(incomplete)]

"""New projects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.scaffold.projects import BundledTemplate, Scaffolded, TemplateList


def init(
    folder: StrPath,
    template: str | None = None,
    *,
    answers: Mapping[str, Any] | Sequence[str] = (),
    force: bool = False,
    vcs_ref: str | None = None,
    dry_run: bool = False,
    ask: bool = False,
    choose: Callable[[Sequence[BundledTemplate], str], str] | None = None,
) -> Scaffolded:
    """Start a project from a template.

    Args:
        folder: of the project.
        template: a bundled one by name, or a path or git URL of a copier template; by default "language-model".
        answers: to the template's questions, by key, or as "KEY=VALUE"; the defaults answer the others.
        force: also write into a folder that is not empty. Files that exist stay; new ones of the same name get `.new`.
        vcs_ref: tag, branch or commit of a template in git; by default the newest version tag.
        dry_run: write nothing.
        ask: ask the other questions on the terminal.
        choose: called with the bundled templates and the name of the default if no template is named.

    Example:
        >>> "aifx.toml" in aifx.init("my-model", "language-model", dry_run=True).files
        True
    """
    from aifx.scaffold.projects import DEFAULT_TEMPLATE, bundled_templates, check_destination, parse_answers, scaffold

    path = Path(folder)
    data = answers if isinstance(answers, Mapping) else parse_answers(answers)
    if template is None:
        check_destination(path, force=force)  # before anything is asked
        template = DEFAULT_TEMPLATE if choose is None else choose(bundled_templates(), DEFAULT_TEMPLATE)
    return scaffold(path, template, data=data, ask=ask, force=force, vcs_ref=vcs_ref, dry_run=dry_run)


def init_templates() -> TemplateList:
    """List the templates that come with aifx.

    Example:
        >>> "language-model" in [template.name for template in aifx.init_templates().templates]
        True
    """
    from aifx.scaffold.projects import TemplateList, bundled_templates

    return TemplateList(bundled_templates())

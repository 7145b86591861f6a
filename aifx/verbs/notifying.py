"""Events for business systems: what is due, what waits, and what is sent again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.project import Project, find_project
from aifx.verbs.arguments import StrPath, time_of

if TYPE_CHECKING:
    from aifx.lines.delivery import Deliveries, EventState, TargetList, TargetTest
    from aifx.lines.file import Target


def _targets(project: StrPath, file: StrPath | None, names: Sequence[str] = ()) -> tuple[Project, tuple[Target, ...]]:
    """The project with the root of its registry, and targets of its line file. Raises ConfigError, UsageError."""
    from aifx.kinds import load_config
    from aifx.lines.delivery import choose_targets
    from aifx.lines.file import LINE, read_targets

    found = find_project(Path(project))
    path = found.root / LINE if file is None else Path(file)
    targets = choose_targets(path, read_targets(path), names)
    return load_config(found).apply_to(found), targets


def notify_run(*targets: str, dry_run: bool = False, file: StrPath | None = None, project: StrPath = ".") -> Deliveries:
    """Send the events that are due, once. The verdict is bad if a receiver refused one.

    Args:
        targets: names of targets; by default all.
        dry_run: report what would be sent, and neither send nor write anything.
        file: with the targets; by default `line.toml` of the project.
        project: a folder in the project whose events are meant.

    Example:
        >>> aifx.notify_run(dry_run=True, file="notify.toml").targets[0].sent
        ()
    """
    from aifx.lines.delivery import deliver, plan_delivery

    home, found = _targets(project, file, targets)
    return (plan_delivery if dry_run else deliver)(home, found, os.environ)


def notify_ls(*, file: StrPath | None = None, project: StrPath = ".") -> TargetList:
    """List the targets of events, with what waits for them and their dead letters.

    Args:
        file: with the targets; by default `line.toml` of the project.
        project: a folder in the project whose events are meant.

    Example:
        >>> [(target.name, len(target.waiting)) for target in aifx.notify_ls(file="notify.toml").targets]
        [('ops', 0)]
    """
    from aifx.lines.delivery import list_targets

    return list_targets(*_targets(project, file), os.environ)


def notify_replay(
    *ids: str,
    targets: Sequence[str] = (),
    since: str | datetime | None = None,
    dry_run: bool = False,
    file: StrPath | None = None,
    project: StrPath = ".",
) -> Deliveries:
    """Send events again: dead letters, or events by their ids or from a time. They keep their ids.

    Args:
        ids: of events, or the beginnings of ids; by default the dead letters.
        targets: names of targets; by default all.
        since: such as "2026-11-30T14:00:00+01:00", in UTC if it has no zone: all events from then on.
        dry_run: report what would be sent, and neither send nor write anything.
        file: with the targets; by default `line.toml` of the project.
        project: a folder in the project whose events are meant.

    Example:
        >>> aifx.notify_replay(dry_run=True, file="notify.toml").targets[0].sent
        ()
    """
    from aifx.lines.delivery import deliver, find_again, plan_again

    begin = None if since is None else time_of("--since", since).timestamp()
    home, found = _targets(project, file, targets)
    again = find_again(home, found, ids, begin)
    return plan_again(found, again, os.environ) if dry_run else deliver(home, found, os.environ, again=again)


def notify_test(
    target: str, *, dry_run: bool = False, file: StrPath | None = None, project: StrPath = "."
) -> TargetTest:
    """Send one event of the type "aifx.test" to a target. The verdict is bad if it was not accepted.

    Args:
        target: name of the target.
        dry_run: check the target's URL and secret, and send nothing.
        file: with the targets; by default `line.toml` of the project.
        project: a folder in the project whose targets are meant.

    Example:
        >>> aifx.notify_test("ops", dry_run=True, file="notify.toml").place
        Traceback (most recent call last):
        aifx.core.errors.ConfigError: the environment variable OPS_URL is not set
    """
    from aifx.lines.delivery import send_test

    return send_test(_targets(project, file, [target])[1][0], os.environ, dry_run=dry_run)

"""Files that start a line by themselves: units of systemd, and a CronJob or a Deployment of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aifx.cluster.kubernetes import pod_of, to_yaml
from aifx.config.launch_section import KubernetesSection, LaunchSection
from aifx.core.errors import ConfigError, UsageError
from aifx.core.project import Project
from aifx.lines.commands import find_command
from aifx.lines.file import LINE, Line, Target
from aifx.lines.schedule import UNITS

DAY_S, WEEK_S = UNITS["d"], UNITS["w"]
STOP_S = 60
"""Time that a line has to write down what it does. Its attempts go on without it."""
MAX_CRON_NAME = 52
"""Kubernetes adds eleven characters to the name of a CronJob's Job, and a label has 63."""


def variables_of(line: Line, targets: Sequence[Target]) -> list[str]:
    """The names of the variables that a line needs."""
    found = [name for station in line.stations.values() for name in station.environment if not name.startswith("file:")]
    found += [name for target in targets for name in (target.url_from, target.secret_from)]
    return list(dict.fromkeys(found))


def _every(line: Line) -> int:
    if line.every_s is None:
        raise ConfigError(f"{line.path}: [line] has no every", "a timer needs it", 'every = "1h", or: --watch')
    return int(line.every_s)


def calendar_of(line: Line) -> str:
    """The times of a line's ticks as systemd writes them, with its time zone; empty if it cannot say them."""
    every = _every(line)
    if every < 60 and 60 % every == 0:
        text = f"*-*-* *:*:00/{every}"
    elif every % 60 == 0 and 3600 % every == 0:
        text = "*-*-* *:00:00" if every == 3600 else f"*-*-* *:00/{every // 60}:00"
    elif every % 3600 == 0 and DAY_S % every == 0:
        text = "*-*-* 00:00:00" if every == DAY_S else f"*-*-* 00/{every // 3600}:00:00"
    elif every == WEEK_S:
        text = "Mon *-*-* 00:00:00"
    else:
        return ""
    return f"{text} {line.timezone}"


def cron_of(line: Line) -> str:
    """The times of a line's ticks as cron writes them. Raises UsageError if it cannot say them."""
    every = _every(line)
    if every % 60 == 0 and 3600 % every == 0:
        return "0 * * * *" if every == 3600 else f"*/{every // 60} * * * *"
    if every % 3600 == 0 and DAY_S % every == 0:
        return "0 0 * * *" if every == DAY_S else f"0 */{every // 3600} * * *"
    if every == WEEK_S:
        return "0 0 * * 1"
    why = "cron knows whole parts of an hour or a day, a day and a week"
    raise UsageError(f"every = {every} s cannot be a CronJob", why, "aifx line k8s --watch")


def units(
    line: Line,
    targets: Sequence[Target],
    project: Project,
    program: Sequence[str],
    *,
    name: str,
    watch: bool,
    environment_file: Path | None,
) -> dict[str, str]:
    """The units of systemd that run a line, by the names of their files. Raises UsageError, ConfigError.

    Args:
        program: argv of aifx.
        watch: a service that runs for ever, instead of a timer.
        environment_file: of NAME=VALUE lines, which only its owner should be able to read.
    """  # fmt: skip
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise UsageError(f"a unit cannot be named {name!r}", "letters, digits, -, _ and .", "--name NAME")
    command = [*program, "line", "watch" if watch else "run", f"--file={line.path.absolute()}"]
    names = variables_of(line, targets)
    if names and environment_file is None:
        hint = f"--environment-file FILE, with the lines {', '.join(f'{one}=...' for one in names)}"
        raise UsageError("the line needs variables", ", ".join(names), hint)
    service = [
        "[Unit]",
        f"Description={_literal(f'aifx line of {project.root.name}')}",
        "",
        "[Service]",
        f"Type={'exec' if watch else 'oneshot'}",
        f"WorkingDirectory={_literal(str(project.root))}",
        f"ExecStart={' '.join(map(_word, command))}",
        *([f"EnvironmentFile={_literal(str(environment_file.absolute()))}"] if environment_file else []),
        "# A bad verdict is no fault of the service, nor is a line that another process holds.",
        "SuccessExitStatus=1 75",
        "# What a station has begun goes on if the service stops, and the next tick adopts it.",
        "KillMode=process",
        f"TimeoutStopSec={STOP_S}",
        *(["Restart=always", "RestartSec=30"] if watch else ["TimeoutStartSec=infinity"]),
        "NoNewPrivileges=yes",
        *(["", "[Install]", "WantedBy=default.target"] if watch else []),
    ]
    made = {f"{name}.service": "\n".join(service) + "\n"}
    if not watch:
        calendar = calendar_of(line)
        when = [f"OnCalendar={calendar}", "Persistent=true"] if calendar else [
            "OnActiveSec=0", f"OnUnitActiveSec={_every(line)}"
        ]  # fmt: skip
        description = f"Description={_literal(f'Ticks of the aifx line of {project.root.name}')}"
        timer = ["[Unit]", description, "", "[Timer]", *when, "AccuracySec=1s", "", "[Install]"]
        made[f"{name}.timer"] = "\n".join([*timer, "WantedBy=timers.target"]) + "\n"
    return made


def _literal(text: str) -> str:
    """A text in which systemd expands nothing. Raises UsageError for what would end or continue a line."""
    if re.search(r"[\x00-\x1f\x7f]|\\$", text):
        why = "it has a control character, or a backslash at its end"
        raise UsageError(f"{text!r} cannot be in a unit", why, "rename the folder")
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """A word of a command that systemd neither splits nor expands."""
    quoted = _literal(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return quoted if re.fullmatch(r"[\w./=,:@%+-]+", quoted) else f'"{quoted}"'


def manifest(
    line: Line,
    targets: Sequence[Target],
    project: Project,
    launch: LaunchSection,
    k8s: KubernetesSection,
    *,
    name: str,
    watch: bool,
    stop_timeout_s: float,
) -> str:
    """The CronJob that runs a line, or the Deployment that watches it. Raises UsageError, ConfigError.

    Its variables have to be in `k8s.secrets` or `launch.environment`. If a station submits jobs to Kubernetes, its pod
    gets an account that may do so.
    """  # fmt: skip
    longest = 63 if watch else MAX_CRON_NAME
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > longest:
        why = f"a label of RFC 1123 that begins with a letter, of at most {longest} characters"
        raise UsageError(f"the line cannot be named {name!r}", why, "--name NAME")
    path = line.path.absolute()
    if not path.is_relative_to(project.root):
        raise UsageError(f"{line.path} is not in the project", f"its image has {project.root}", f"move it to {LINE}")
    given = {one.partition("=")[0] for one in launch.environment} | k8s.secrets.keys()
    if missing := [one for one in variables_of(line, targets) if one not in given]:
        hint = f'secrets = {{ {missing[0]} = "SECRET/KEY" }} in [k8s] of aifx.toml'
        raise ConfigError("the line needs variables that its pod does not have", ", ".join(missing), hint)
    words = ["line", "watch" if watch else "run", f"--file={path.relative_to(project.root)}"]
    folders = {str(path.relative_to(project.root).with_suffix("")): ".line"}
    for folder in (project.datasets, project.registry):
        if "://" not in folder and not Path(folder).expanduser().is_absolute():
            folders[folder] = f".{Path(folder).name}"
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "aifx"}
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if k8s.namespace is not None:
        metadata["namespace"] = k8s.namespace
    rights = list(_rights(metadata, k8s.service_account)) if _submits_jobs(line) else []
    account = k8s.service_account or (name if rights else None)
    pod = pod_of(launch, k8s.model_copy(update={"service_account": account}), stop_timeout_s, words, folders)
    kind, api, spec = ("Deployment", "apps/v1", _deployment) if watch else ("CronJob", "batch/v1", _cronjob)
    made = {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec(line, pod, labels)}
    return "---\n".join(map(to_yaml, [*rights, made]))


def _submits_jobs(line: Line) -> bool:
    stations = line.stations.values()
    return any(
        one.on == "k8s" or any(find_command(words).name == "launch k8s" for words in one.written) for one in stations
    )


def _rights(metadata: Mapping[str, Any], account: str | None) -> Iterator[dict[str, Any]]:
    """What lets an account, by default one of its own, do with JobSets what `aifx.cluster.kubernetes` asks kubectl."""
    if account is None:
        yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    api, name = "rbac.authorization.k8s.io", metadata["name"]
    rules = (
        ("jobset.x-k8s.io", "jobsets", ["get", "list", "create", "patch", "delete"]),
        ("", "pods", ["get", "list", "delete"]),
        ("", "pods/log", ["get"]),
    )
    given = [{"apiGroups": [group], "resources": [resource], "verbs": verbs} for group, resource, verbs in rules]
    yield {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": given}
    yield {
        "apiVersion": f"{api}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "subjects": [{"kind": "ServiceAccount", "name": account or name}],  # of the binding's own namespace
        "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
    }


def _cronjob(line: Line, pod: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    template = {"metadata": {"labels": dict(labels)}, "spec": {**pod, "restartPolicy": "Never"}}
    return {
        "schedule": cron_of(line),
        "timeZone": line.timezone,
        "concurrencyPolicy": "Forbid",  # a line has one process
        "startingDeadlineSeconds": max(60, _every(line)),  # missed ticks become one
        "jobTemplate": {"spec": {"backoffLimit": 0, "template": template}},  # the next tick tries again
    }


def _deployment(line: Line, pod: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # two pods would wait for the same line
        "selector": {"matchLabels": {"app.kubernetes.io/name": labels["app.kubernetes.io/name"]}},
        "template": {"metadata": {"labels": dict(labels)}, "spec": {**pod, "restartPolicy": "Always"}},
    }

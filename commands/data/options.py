"""Options and output that the commands of `aifx data` share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.core import parsing
from aifx.core.errors import UsageError
from aifx.core.plurals import counted
from aifx.core.project import CONFIG_NAME, Project, find_project

if TYPE_CHECKING:
    from aifx.config.sections import DataSection
    from aifx.curation.execution import Made, Runner
    from aifx.curation.step import Limits
    from aifx.data.versions.catalog import Catalog

DatasetArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Data set: NAME for its latest version, or NAME@VERSION.")
]

FILES_HELP = "Also data.train, data.validation, data.test or data.path: the files that aifx.toml names."

RootOption = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="FOLDER|URL",
        help="Where the data sets are. By default datasets.root of aifx.toml.",
    ),
]

MemoryOption = Annotated[
    str, typer.Option("--memory", metavar="SIZE", help="Most memory to use, such as 4GB. What exceeds it goes to disk.")
]

WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Number of processes. By default one per core.")
]

DEFAULT_MEMORY = "2GB"
LEAST_MEMORY = 256 << 20


@dataclass(frozen=True)
class StepOptions:
    """Options of the commands that run a step: where the data sets are, what the step may use, and where it runs."""

    root: RootOption = None
    memory: MemoryOption = DEFAULT_MEMORY
    workers: WorkersOption = None
    on: Annotated[
        Literal["local", "slurm", "ray"],
        typer.Option(
            "--on", metavar="local|slurm|ray", help="Run tasks in local processes, as a job of Slurm, or by Ray."
        ),
    ] = "local"
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Elements of Slurm's array job. By default one per 256 MB."),
    ] = None
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT|auto",
            help="Running cluster of Ray. By default RAY_ADDRESS; without it, Ray starts on this machine.",
        ),
    ] = None
    json: JsonOption = False

    @property
    def limits(self) -> Limits:
        """Raises UsageError for a size that cannot be read or is too small."""
        return limits_of(self.memory, self.workers)

    def runner(self, catalog: Catalog) -> Runner | None:
        """The runner of the tasks; None for processes of this machine.

        Raises UsageError for options of another runner, and for a remote root if other machines run tasks.
        """
        if self.jobs is not None and self.on != "slurm":
            why = "it is the size of an array job"
            raise UsageError("--jobs can only be used with --on slurm", why, "--workers N")
        if self.ray_address is not None and self.on != "ray":
            raise UsageError("--ray-address can only be used with --on ray", f"this is --on {self.on}", "--on ray")
        if self.on == "local":
            return None
        ray_address = self.ray_address or os.environ.get("RAY_ADDRESS") or "local"
        if catalog.local is None and (self.on == "slurm" or ray_address != "local"):
            why = f"its nodes work in a folder that all of them see, and {catalog.store.url} is none"
            raise UsageError(f"--on {self.on} needs a root on a shared disk", why, "--root /shared/datasets")
        if self.on == "ray":
            from aifx.curation.on_ray import OnRay

            return OnRay(ray_address, self.workers)
        from aifx.curation.on_slurm import OnSlurm
        from aifx.kinds import load_config

        project = find_project()
        config = load_config(project)
        return OnSlurm(config.launch, config.slurm, project.root, self.jobs)


def find_catalog(root: str | None) -> tuple[Catalog, Project | None]:
    """The data sets below `root`, or those of the project around the working directory, and that project."""
    from aifx.data.versions.catalog import open_catalog

    if root is not None:
        return open_catalog(root), None
    from aifx.kinds import load_config  # takes a quarter of a second

    if (project := project_around()) is None:
        why = f"no {CONFIG_NAME} in {os.getcwd()} or above it names their folder"
        raise UsageError("the data sets' folder is not known", why, "--root FOLDER, or aifx init my-project")
    return open_catalog(load_config(project).datasets.root, project), project


def implicit_section(reference: str | None, catalog: Catalog, project: Project | None) -> DataSection | None:
    """`[data]` of the project if `reference` is a key of it that names files, such as "data.train"; otherwise None.

    A data set of that name is meant first.
    """
    from aifx.data.implicit import KEYS
    from aifx.kinds import load_config

    name = (reference or "").partition("@")[0]
    if project is None or name not in KEYS or catalog.latest(name) is not None:
        return None
    return load_config(project).data


@contextmanager
def opened_rows(reference: str, root: str | None) -> Iterator[tuple[str, Catalog]]:
    """The data set that `reference` names, or one of the files that a key of aifx.toml names; and its catalog.

    Of files, both are there as long as the context is open.
    """
    catalog, project = find_catalog(root)
    section = implicit_section(reference, catalog, project)
    if section is None or project is None:
        yield reference, catalog
        return
    from aifx.curation.named_files import named_rows

    with named_rows(reference, section, project) as found:
        yield found


def project_around() -> Project | None:
    """The project around the working directory, if there is one."""
    try:
        return find_project()
    except UsageError:
        return None


def limits_of(memory: str, workers: int | None) -> Limits:
    """Raises UsageError for a size that cannot be read or is too small."""
    from aifx.curation.step import Limits

    size = parse_size(memory, "--memory")
    if size < LEAST_MEMORY:
        raise UsageError(f"--memory {memory} is too little", "a process needs 256 MiB", "--memory 256MiB")
    count = workers or len(os.sched_getaffinity(0))
    # Several processes have a parent beside them; one worker runs in the parent itself.
    return Limits(size, max(1, min(count, size // LEAST_MEMORY - 1)))


def parse_size(text: str, option: str) -> int:
    """Bytes of "4GB", "512MiB" or "1000000". Raises UsageError."""
    try:
        return parsing.parse_size(text)
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a size", "sizes are numbers with KB, MB, GB or TB", f"{option} 4GB"
        ) from None


def names_of(text: str, option: str, hint: str) -> list[str]:
    """The names of a list with commas between. Raises UsageError if there are none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{option} {text!r} names nothing", "it takes names with commas between", hint)
    return names


def print_made(out: Output, made: Made) -> None:
    """Print what a step made, and the document of --json."""
    from aifx.core.json_files import readable_bytes
    from aifx.curation.reports import made_version

    found = made_version(made)
    out.document(found)
    there = "" if found.is_new else ", which was there already"
    out.print(f"{found.reference}: {counted(found.rows, 'row')}, {readable_bytes(found.size_bytes)}{there}")
    if found.dropped:
        counts = [(rule, f"{count:,}") for rule, count in found.dropped_by.items()]
        out.table(["dropped by", "rows"], counts, right=["rows"])

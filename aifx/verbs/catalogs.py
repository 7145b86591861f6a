"""The data sets that the arguments of a verb name, and what its step may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from aifx.core import parsing
from aifx.core.errors import UsageError, nearest
from aifx.core.project import CONFIG_NAME, Project, find_project
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.config.sections import DataSection
    from aifx.curation.execution import Asked, Made, Runner
    from aifx.curation.step import Limits, Step
    from aifx.data.readers.sources import SourceFile
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Manifest, Version

DEFAULT_MEMORY = "2GB"
LEAST_MEMORY = 256 << 20


class StepOptions(TypedDict, total=False):
    """Arguments of the verbs that run a step on a data set.

    Attributes:
        project: a folder in the project whose data sets are meant.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        memory: most memory to use, such as "4GB". What exceeds it goes to disk.
        workers: number of processes; by default one per core.
        on: run tasks in local processes, as a job of Slurm, or by Ray.
        jobs: elements of Slurm's array job.
        ray_address: a running cluster of Ray; by default RAY_ADDRESS, and without it Ray starts on this machine.
        set_name: let the name alone mean the new version.
        dry_run: raise NotMade instead of running a step whose version is not there.
        chain: takes the step, to make one version of it and those after it.
        check: raise ArgumentsChecked when the arguments have been checked, and open nothing.
    """

    project: StrPath
    root: str | None
    memory: str
    workers: int | None
    on: Literal["local", "slurm", "ray"]
    jobs: int | None
    ray_address: str | None
    set_name: bool
    dry_run: bool
    chain: StepChain | None
    check: bool


class ArgumentsChecked(Exception):
    """The arguments of a verb can be used, as far as that is known without its data set."""


@dataclass(frozen=True)
class StepChain:
    """Takes the steps of verbs that make one version together.

    Attributes:
        version: the rows that the steps before leave, which may not be there yet. Its whole reference names it.
        take: makes the version of all steps, and returns what became of the one that it is given.
    """

    version: Version
    take: Callable[[StepPlace, Step, Callable[[Manifest], bool]], Made]


@dataclass(frozen=True)
class StepPlace:
    """Where a step finds its data sets, and what it may use.

    Attributes:
        meant: the version that a name alone meant when it was opened, by name.
    """

    catalog: Catalog
    project: Project | None
    limits: Limits
    runner: Runner | None
    set_name: bool = True
    dry_run: bool = False
    chain: StepChain | None = None
    meant: dict[str, str] = field(default_factory=dict)

    def open(self, reference: str) -> Version:
        """The version that a step reads, of which a chain may only know the columns."""
        if self.chain is not None and reference == self.chain.version.manifest.whole_reference:
            return self.chain.version
        version = self.catalog.open(reference)
        if "@" not in reference:
            self.meant[reference] = version.manifest.version
        return version

    def execute(
        self, step: Step, name: str, accepts: Callable[[Manifest], bool] = lambda _: True, asked: Asked | None = None
    ) -> Made:
        """Make the version of the data set `name` that `step` describes, for a request if one asked for it."""
        from aifx.curation.execution import execute

        if self.chain is not None:
            return self.chain.take(self, step, accepts)
        run = partial(execute, step, name, self.catalog, self.limits, self.runner, accepts, meant=self.meant.get(name))
        return run(set_name=self.set_name, dry_run=self.dry_run, asked=asked)


def open_place(**options: Unpack[StepOptions]) -> StepPlace:
    """The place that a verb's options name. Raises UsageError, ArgumentsChecked."""
    if options.get("check"):
        raise ArgumentsChecked
    folder = options.get("project", ".")
    catalog, project = find_catalog(options.get("root"), folder)
    limits = limits_of(options.get("memory", DEFAULT_MEMORY), options.get("workers"))
    runner = _runner(catalog, options)
    how = options.get("set_name", True), options.get("dry_run", False), options.get("chain")
    return StepPlace(catalog, project, limits, runner, *how)


def _runner(catalog: Catalog, options: StepOptions) -> Runner | None:
    """The runner of the tasks; None for processes of this machine.

    Raises UsageError for options of another runner, and for a remote root if other machines run tasks.
    """
    on, jobs, address = options.get("on", "local"), options.get("jobs"), options.get("ray_address")
    if jobs is not None and on != "slurm":
        raise UsageError("--jobs can only be used with --on slurm", "it is the size of an array job", "--workers N")
    if address is not None and on != "ray":
        raise UsageError("--ray-address can only be used with --on ray", f"this is --on {on}", "--on ray")
    if on == "local":
        return None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if catalog.local is None and (on == "slurm" or address != "local"):
        why = f"its nodes work in a folder that all of them see, and {catalog.store.url} is none"
        raise UsageError(f"--on {on} needs a root on a shared disk", why, "--root /shared/datasets")
    if on == "ray":
        from aifx.curation.on_ray import OnRay

        return OnRay(address, options.get("workers"))
    from aifx.curation.on_slurm import OnSlurm
    from aifx.kinds import load_config

    project = find_project(Path(options.get("project", ".")))
    config = load_config(project)
    return OnSlurm(config.launch, config.slurm, project.root, jobs)


@dataclass(frozen=True)
class RowFiles:
    """Files with rows.

    Attributes:
        name: the file's, or the version's whole reference.
        is_version: whether they are the shards of a version.
    """

    name: str
    files: Sequence[SourceFile]
    is_version: bool


def row_files(name: str, command: str, root: str | None, project: StrPath) -> RowFiles:
    """The file that an argument names if there is one, otherwise a version of a data set, whose shards are compared.

    A folder, such as one of pictures, is meant if no data set has that name.

    Args:
        command: to use instead with one part of a mix.
        root: of the data sets.

    Raises UsageError, DataError for a damaged version.
    """
    from aifx.data.readers.rows import FORMATS, input_file
    from aifx.data.readers.sources import STDIN, local_file
    from aifx.data.versions.catalog import check_own_rows, check_shards

    file = input_file(name) if "://" in name or name == STDIN else local_file(Path(name))
    is_folder = not file.is_remote and file.path.is_dir()
    one = RowFiles(file.name, [file], is_version=False)
    if file.is_remote or name == STDIN or file.format in FORMATS or (file.path.exists() and not is_folder):
        return one
    if is_folder and root is None and project_around(project) is None:
        return one
    catalog, _ = find_catalog(root, project)
    if is_folder and name.partition("@")[0] not in catalog.names():
        return one
    version = catalog.open(name)
    check_own_rows(version.manifest, command)
    check_shards(version)
    files = [local_file(path, f"{version.reference}/{path.name}") for path in version.shards]
    return RowFiles(version.manifest.whole_reference, files, is_version=True)


def find_catalog(root: str | None, folder: StrPath = ".") -> tuple[Catalog, Project | None]:
    """The data sets below `root`, or those of the project around a folder, and that project."""
    from aifx.data.versions.catalog import open_catalog

    if root is not None:
        return open_catalog(root), None
    from aifx.kinds import load_config  # takes a quarter of a second

    if (project := project_around(folder)) is None:
        why = f"no {CONFIG_NAME} in {os.path.abspath(folder)} or above it names their folder"
        raise UsageError("the data sets' folder is not known", why, "--root FOLDER, or aifx init my-project")
    project = load_config(project).apply_to(project)
    return open_catalog(project.datasets, project), project


def licensing_project(found: Project | None, folder: StrPath = ".") -> Project | None:
    """The project that allows licences: the one around a folder, also if a root is given.

    Args:
        found: what `find_catalog` gave.
    """
    if found is None and (found := project_around(folder)) is not None:
        from aifx.kinds import load_config

        return load_config(found).apply_to(found)
    return found


def project_around(folder: StrPath = ".") -> Project | None:
    """The project around a folder, if there is one."""
    try:
        return find_project(Path(folder))
    except UsageError:
        return None


def implicit_section(reference: str | None, catalog: Catalog, project: Project | None) -> DataSection | None:
    """`[data]` of the project if `reference` is a key of it that names files, such as "data.train"; otherwise None.

    A data set of that name is meant first. Raises UsageError if the name is none, and a key is nearest to it.
    """
    from aifx.data.names import FILE_KEYS
    from aifx.kinds import load_config

    name = (reference or "").partition("@")[0]
    key = nearest(name, FILE_KEYS)
    if project is None or key is None or catalog.latest(name) is not None:
        return None
    if key == name:
        return load_config(project).data
    if nearest(name, [*FILE_KEYS, *catalog.names()]) == key:
        raise UsageError(
            f"no data set {name!r} in {catalog.store.url}", f"did you mean {key!r}?", f"aifx data show {key}"
        )
    return None


@contextmanager
def opened_rows(reference: str, root: str | None, folder: StrPath) -> Iterator[tuple[str, Catalog]]:
    """The data set that `reference` names, or one of the files that a key of aifx.toml names; and its catalog.

    Of files, both are there as long as the context is open.
    """
    catalog, project = find_catalog(root, folder)
    section = implicit_section(reference, catalog, project)
    if section is None or project is None:
        yield reference, catalog
        return
    from aifx.curation.named_files import named_rows

    with named_rows(reference, section, project) as found:
        yield found


def limits_of(memory: str, workers: int | None) -> Limits:
    """Parse a size. Raises UsageError if it cannot be read or is too small."""
    from aifx.curation.step import Limits

    size = memory_of(memory)
    count = workers or len(os.sched_getaffinity(0))
    # Several processes have a parent beside them; one worker runs in the parent itself.
    return Limits(size, max(1, min(count, size // LEAST_MEMORY - 1)))


def memory_of(memory: str) -> int:
    """The bytes of --memory. Parse a size. Raises UsageError if it cannot be read or is too small."""
    try:
        size = parsing.parse_size(memory)
    except ValueError:
        why = "sizes are numbers with KB, MB, GB or TB"
        raise UsageError(f"--memory {memory!r} is not a size", why, "--memory 4GB") from None
    if size < LEAST_MEMORY:
        raise UsageError(f"--memory {memory} is too little", "a process needs 256 MiB", "--memory 256MiB")
    return size

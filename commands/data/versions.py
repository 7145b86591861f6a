"""`aifx data ls` and `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import FILES_HELP, RootOption, find_catalog, implicit_section
from aifx.core.errors import ExitCode, UsageError
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.curation.reports import VerifiedVersion


def ls(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="List the versions of this data set. By default of all.")
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """List data sets and their versions.

    Examples:
        aifx data ls
        aifx data ls corpus --json
    """
    with terminal(json) as out:
        from aifx.core.json_files import readable_bytes
        from aifx.curation.reports import list_versions

        catalog, _ = find_catalog(root)
        found = list_versions(catalog, name)
        out.document(found)
        for one in found.unreadable:
            out.log(f"{one.reference} cannot be read: {one.why}")
        for hint in dict.fromkeys(one.hint for one in found.unreadable):
            out.log(f"hint: {hint}")
        if not found.versions:
            if not found.unreadable:
                out.log(f"no data set in {found.root}: aifx data add NAME FILES makes one")
            return
        rows = [
            (
                f"{version.reference}{' *' if version.is_latest else ''}",
                f"{version.rows:,}",
                readable_bytes(version.size_bytes),
                version.step,
                ", ".join(version.licenses),
            )
            for version in found.versions
        ]
        out.table(["version", "rows", "size", "made by", "licences"], rows, right=["rows", "size"])


def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", help=f"Versions to verify. By default the latest of each. {FILES_HELP}"),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Verify every version of every data set.")] = False,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Compare each file of a version with its SHA-256.

    Examples:
        aifx data verify corpus
        aifx data verify corpus@3f2a --json
        aifx data verify --all
        aifx data verify data.train     read the files that training reads, except those of stores

    Exits 1 if a file is damaged or missing.
    """
    with terminal(json) as out:
        from aifx.core.json_files import readable_bytes
        from aifx.curation.reports import Verification, verify_files, verify_version

        if all_ and names:
            raise UsageError("--all cannot be used with a name", "it verifies all data sets", "aifx data verify --all")
        catalog, project = find_catalog(root)
        references = names or catalog.names()
        if all_:
            references = [f"{name}@{version}" for name in catalog.names() for version in catalog.versions(name)]

        def verified(reference: str) -> VerifiedVersion:
            section = implicit_section(reference, catalog, project)
            if section is None or project is None:
                return verify_version(catalog, reference)
            return verify_files(reference, section, project)

        found = Verification(tuple(map(verified, references)))
        out.document(found)
        if not found.versions:
            out.log(f"no data set in {catalog.store.url}: aifx data add NAME FILES makes one")
        for version in found.versions:
            state = "damaged" if version.damages else "whole"
            out.print(
                f"{version.reference}: {state}: {counted(version.files, 'file')}, {readable_bytes(version.size_bytes)}"
            )
            for damage in version.damages:
                out.print(f"  {damage}")
            if version.unread:
                out.print(f"  {counted(version.unread, 'file')} of a store: compared by ETag or time, not read")
        if not found.is_whole:
            raise SystemExit(ExitCode.VERDICT)

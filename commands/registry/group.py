"""`aifx registry`: models by name, their versions, and what an alias means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.options import JsonOption, StepOption, YesOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.registry.options import (
    ActOptions,
    AliasArgument,
    KeyOption,
    RootOption,
    VersionArgument,
    ending,
    hint_at,
    print_act,
    print_row,
)
from aifx.core.errors import UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.verbs.registry import ModelPage, ShownEntry, ShownVersion, VersionPage
    from aifx.verbs.registry_acts import Act

app = typer.Typer(
    help="""Name models, keep their versions, and let an alias mean one of them on evidence.

    Examples:
        aifx registry push main fraud            make a version of a run's model
        aifx registry promote fraud@v3 production
        aifx registry rollback fraud production
        aifx registry at fraud production --time 2026-11-30T14:00
        aifx registry verify                     compare all with their digests
    """,
    no_args_is_help=True,
)

MOST_LETTERS = 24
"""Of a value that `diff` prints."""

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]


def _time(text: str) -> str:
    return text[:19].replace("T", " ")


@app.command()
def ls(root: RootOption = None, json: JsonOption = False) -> None:
    """List models, with what their aliases mean.

    Examples:
        aifx registry ls
        aifx registry ls --root s3://bucket/models --json
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_ls

        found = registry_ls(root=root)
        out.result(found)
        if not found.models:
            out.log(f"no model in {found.root}: {hint_at(root, 'aifx registry push RUN NAME')} makes one")
            return
        rows = [
            (
                one.name,
                one.versions,
                one.latest,
                ", ".join(f"{alias}={version}" for alias, version in one.aliases.items()) or None,
                _time(one.changed_at),
            )
            for one in found.models
        ]
        out.table(["model", "versions", "latest", "aliases", "changed (UTC)"], rows, right=["versions"])


@app.command()
def show(
    reference: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="Model, or one of its versions: @v3, @ALIAS or @DIGITS.")
    ],
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Describe a model, or one of its versions with its evidence.

    Examples:
        aifx registry show fraud
        aifx registry show fraud@production --json
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_show, registry_show_version

        if "@" in reference:
            version = registry_show_version(reference, root=root)
            out.result(version)
            _print_version(out, version)
        else:
            page = registry_show(reference, root=root)
            out.result(page)
            _print_model(out, page)


def _print_model(out: Output, page: ModelPage) -> None:
    out.print(f"{page.name}: {counted(len(page.versions), 'version')} in {page.root}")
    _print_versions(out, page.versions)
    if page.aliases:
        out.print("")
        rows = [(one.alias, one.version, _time(one.since), one.by, one.entry) for one in page.aliases]
        out.table(["alias", "version", "since (UTC)", "by", "entry"], rows, right=["entry"])


def _print_versions(out: Output, versions: tuple[ShownVersion, ...]) -> None:
    rows = [
        (
            one.reference,
            one.digest[:12],
            ", ".join(one.aliases) or ("withdrawn" if one.is_withdrawn else None),
            ", ".join(f"{key}={value}" for key, value in one.tags.items()) or None,
            f"{one.run}:{one.step}" if one.run else None,
            _time(one.pushed_at),
        )
        for one in versions
    ]
    out.table(["version", "digest", "aliases", "tags", "run", "pushed (UTC)"], rows)


def _print_version(out: Output, page: VersionPage) -> None:
    version = page.version
    state = "its files were deleted" if version.is_withdrawn else readable_bytes(page.size_bytes)
    out.print(f"{version.reference}: {state}")
    print_row(out, "digest", version.digest)
    print_row(out, "pushed", f"{_time(version.pushed_at)} UTC by {version.pushed_by}")
    print_row(out, "from", f"run {version.run}, step {version.step}")
    if version.aliases:
        print_row(out, "aliases", ", ".join(version.aliases))
    for key, value in version.tags.items():
        print_row(out, "tag", f"{key}={value}")
    if page.evidence:
        out.print("")
        rows = [(one.kind, one.digest[:12], one.made_by, one.signed, _time(one.time)) for one in page.evidence]
        out.table(["evidence", "digest", "by", "signed", "made (UTC)"], [_with_words(row) for row in rows])


def _with_words(row: tuple[object, ...]) -> tuple[object, ...]:
    return tuple({True: "yes", False: "no"}.get(cell, cell) if isinstance(cell, bool) else cell for cell in row)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORD…", help="Words, or tags as KEY=VALUE. All must match.")],
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """List the versions that have each word in their name, tags, aliases, people, reasons or data.

    Examples:
        aifx registry search team=risk
        aifx registry search reviews@3f2a --json
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_search

        found = registry_search(*words, root=root)
        out.result(found)
        if found.versions:
            _print_versions(out, found.versions)
        else:
            out.log(f"no version in {found.root} has {' and '.join(words)}")


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Version: NAME@v3, NAME@ALIAS or NAME@DIGITS.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Version to compare it with.")],
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two versions: metrics, data, configuration and size.

    Examples:
        aifx registry diff fraud@v2 fraud@v3
        aifx registry diff fraud@production fraud@v3 --json
    """
    with terminal(json) as out:
        from aifx.core.artifact import short_reference
        from aifx.verbs.registry import registry_diff

        found = registry_diff(first, second, root=root)
        out.result(found)
        if not found.is_different:
            out.print(f"{first} and {second} are the same version")
        parts = {"metrics": found.metrics, "settings of the evaluation": found.settings, "data": found.data}
        parts |= {"config": found.config, "content": found.content}
        rows = [
            (part, short_reference(one.key) if part == "data" else one.key, _brief(one.first), _brief(one.second))
            for part, changes in parts.items()
            for one in changes
        ]
        if rows:
            out.table(["of", "key", found.first.reference, found.second.reference], rows)


def _brief(value: object) -> object:
    """A value in a column; --json has all of it."""
    text = f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


@app.command()
def pull(
    version: VersionArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make.")],
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a version to a folder, and compare what arrives with its digests.

    Examples:
        aifx registry pull fraud@production fraud
        aifx registry pull fraud@v3 fraud --root s3://bucket/models
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_pull

        found = registry_pull(version, folder, root=root)
        out.result(found)
        out.print(f"{found.reference} is in {found.folder}: {found.digest[:12]}, {readable_bytes(found.size_bytes)}")


@app.command()
@option_group
def copy(
    version: VersionArgument,
    target: Annotated[str, typer.Argument(metavar="ROOT", help="Folder or URL of the other registry.")],
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Copy a version with its evidence to another registry, and compare what arrives.

    Examples:
        aifx registry copy fraud@v3 s3://bucket/models
        aifx registry copy fraud@production /mnt/models --root registry

    Aliases are not copied: the policy of the other registry decides what they mean.
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_copy

        done = registry_copy(version, target, **vars(options))
        numbered = f" as {done.reference}" if done.reference != version else ""
        print_act(out, done, f"{version} is in {target}{numbered}: {done.digest[:12]}")


@app.command()
def history(
    name: NameArgument,
    alias: Annotated[
        str | None, typer.Option("--alias", metavar="ALIAS", help="List the entries about this alias alone.")
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """List who did what with a model, when and why.

    Examples:
        aifx registry history fraud
        aifx registry history fraud --alias production --json
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_history

        found = registry_history(name, alias, root=root)
        out.result(found)
        rows = [_entry_row(one) for one in found.entries]
        out.table(["entry", "time (UTC)", "action", "version", "alias", "by", "reason"], rows, right=["entry"])


def _entry_row(one: ShownEntry) -> tuple[object, ...]:
    rest = (one.version or None, one.alias or None, one.actor, one.reason or None)
    return (one.number, _time(one.time), one.action, *rest)


@app.command()
def at(
    name: NameArgument,
    alias: AliasArgument,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="TIME", help="Time, such as 2026-11-30T14:00+01:00; UTC without a zone."),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Say which version an alias meant at a time, and what servers had adopted.

    Examples:
        aifx registry at fraud production --time 2026-11-30T14:00
        aifx registry at fraud production --json

    Exits 1 if the alias meant no version then.
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_at

        found = registry_at(name, alias, time, root=root)
        out.result(found)
        if (entry := found.entry) is None:
            out.print(f"{name}@{alias} meant no version at {found.time}")
        else:
            out.print(f"{name}@{alias} meant {found.version} at {found.time}")
            print_row(out, "digest", str(found.digest))
            print_row(out, "since", f"{_time(entry.time)} UTC, entry {entry.number}: {entry.action} by {entry.actor}")
            if entry.reason:
                print_row(out, "reason", entry.reason)
        for one in found.servers:
            until = "" if one.until is None else f", ended {_time(one.until)} UTC"
            print_row(out, "server", f"{one.server}: {one.version} since {_time(one.since)} UTC{until}")


@app.command()
def head(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME…]", help="Models. By default all.")] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Print the digest of the last entry of each ledger, to be kept elsewhere.

    Examples:
        aifx registry head fraud
        aifx registry verify --head $(aifx registry head fraud --json | jq -r .heads[0].digest)
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_head

        found = registry_head(*(names or ()), root=root)
        out.result(found)
        out.table(["model", "entry", "digest"], [(one.name, one.number, one.digest) for one in found.heads])


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME…]", help="Models. By default all.")] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="DIGEST", help="An entry that must be there. Can be repeated."),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Compare every entry, file and piece of evidence with its digest.

    Examples:
        aifx registry verify
        aifx registry verify fraud --head 3f2a91c07be4

    Exits 1 if one is changed, missing or in another place. Only --head shows that last entries were removed.
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_verify

        found = registry_verify(*(names or ()), heads=heads or (), root=root)
        out.result(found)
        counts = (
            counted(found.models, "model"),
            f"{found.entries:,} entries",
            counted(found.files, "file"),
            f"{counted(found.evidence, 'piece')} of evidence",
        )
        for problem in found.problems:
            out.print(one_line(f"{problem.place}: {problem.why}"))
        out.print(f"{', '.join(counts)}: {'damaged' if found.problems else 'whole'}")


@app.command()
@option_group
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run of the project.")],
    name: NameArgument,
    step: StepOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Make a version of a model from a checkpoint. The same checkpoint is the same version.

    Examples:
        aifx registry push main fraud
        aifx registry push main fraud --step best --reason "more rows" --request job-17
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_push

        done = registry_push(run, name, step=step, key=key, **vars(options))
        print_act(out, done, f"{done.reference} is {done.digest}")


@app.command()
@option_group
def tag(
    version: VersionArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE…]", help="Tags to set.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="KEY", help="Remove a tag. Can be repeated.")
    ] = None,
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Set or remove tags of a version.

    Examples:
        aifx registry tag fraud@v3 team=risk tier=1
        aifx registry tag fraud@v3 --remove tier
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_tag

        given = {}
        for text in tags or ():
            key, separator, value = text.partition("=")
            if not separator or not key:
                hint = f"aifx registry tag {version} team=risk"
                raise UsageError(f"{text!r} is no tag", "a tag is KEY=VALUE", hint)
            given[key] = value
        done = registry_tag(version, given, remove=remove or (), **vars(options))
        print_act(out, done, f"{done.reference} is tagged")


@app.command()
@option_group
def attest(
    version: VersionArgument,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The evidence.")] = None,
    eval_: Annotated[
        bool, typer.Option("--eval", help="An evaluation. Without FILE, that of the run which was pushed.")
    ] = False,
    comparison: Annotated[
        bool, typer.Option("--comparison", help="A document of aifx eval --against. Without FILE, the last of the run.")
    ] = False,
    contamination: Annotated[
        bool, typer.Option("--contamination", help="A document of aifx data decontaminate.")
    ] = False,
    bench: Annotated[bool, typer.Option("--bench", help="A document of aifx bench.")] = False,
    drill: Annotated[bool, typer.Option("--drill", help="A document of aifx drill.")] = False,
    sign: Annotated[bool, typer.Option("--sign", help="No file: --key signs that the version is good.")] = False,
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code", help="No file: --key signs that the version's own code may run where it is trusted."
        ),
    ] = False,
    key: KeyOption = None,
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Add evidence about a version. The policy judges it when an alias is to mean the version.

    Examples:
        aifx registry attest fraud@v3 --eval
        aifx registry attest fraud@v3 bench.json --bench
        aifx registry attest fraud@v3 CARD.md --key ann.pem
        aifx registry attest fraud@v3 --sign --key ann.pem
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_attest

        kinds = {"eval": eval_, "comparison": comparison, "contamination": contamination}
        kinds |= {"bench": bench, "drill": drill, "signature": sign, "trust-code": trust_code}
        chosen = [kind for kind, is_given in kinds.items() if is_given] or ["file"]
        if len(chosen) > 1:
            flags = [f"--{one.replace('signature', 'sign')}" for one in chosen]
            hint = hint_at(options.root, f"aifx registry attest {version} {flags[0]}")
            raise UsageError(f"{flags[0]} cannot be used with {flags[1]}", "evidence has one kind", hint)
        done = registry_attest(version, file, chosen[0], key=key, **vars(options))
        print_act(out, done, f"{done.reference} has evidence of the kind {chosen[0]!r}")


@app.command()
@option_group
def approve(
    version: VersionArgument,
    alias: AliasArgument,
    key: KeyOption = None,
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Approve that an alias may mean a version, on the evidence that there is now.

    Examples:
        aifx registry approve fraud@v3 production --key ann.pem
        AIFX_ACTOR=ann aifx registry approve fraud@v3 production

    New evidence, another policy or another version in service end an approval.
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_approve

        done = registry_approve(version, alias, key=key, **vars(options))
        print_act(out, done, f"{done.reference} is approved for {alias}")


@app.command()
@option_group
def promote(
    version: VersionArgument,
    alias: AliasArgument,
    serve_check: Annotated[
        bool, typer.Option("--serve-check", help="Also refuse a version to which running servers cannot swap.")
    ] = False,
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Let an alias mean a version, if the policy of the root finds the evidence.

    Examples:
        aifx registry promote fraud@v3 production --dry-run
        aifx registry promote fraud@v3 production --reason "fewer missed cases" --request job-18

    Exits 1 if a rule refuses, which the ledger has too; 75 if another entry came first.
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_promote

        done = registry_promote(version, alias, serve_check=serve_check, **vars(options))
        print_act(out, done, _moved(done))


@app.command()
@option_group
def rollback(
    name: NameArgument,
    alias: AliasArgument,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="VERSION", help="Version that it meant before. By default the one before."),
    ] = None,
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Let an alias mean the version before, without asking the policy.

    Examples:
        aifx registry rollback fraud production --reason "answers are late"
        aifx registry rollback fraud production --to v2
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_rollback

        done = registry_rollback(name, alias, to=to, **vars(options))
        print_act(out, done, _moved(done))


def _moved(done: Act) -> str:
    if done.action == "refuse":
        refused = "it" if done.reference == f"{done.name}@{done.previous}" else done.reference
        return f"{done.name}@{done.alias} stays {done.previous or 'without a version'}: {refused} is refused"
    version = done.reference.partition("@")[2]
    if done.previous == version:
        return f"{done.name}@{done.alias} already means {version}"
    before = f", and meant {done.previous} before" if done.previous else ""
    return f"{done.name}@{done.alias} means {version}{before}"


@app.command()
@option_group
def rm(version: VersionArgument, yes: YesOption = False, json: JsonOption = False, *, options: ActOptions) -> None:
    """Withdraw a version and delete its files. Its entries and evidence stay.

    Examples:
        aifx registry rm fraud@v1 --dry-run
        aifx registry rm fraud@v1 --yes

    A version that an alias names is refused.
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_show_version
        from aifx.verbs.registry_acts import registry_rm

        if not yes and not options.dry_run:
            size = readable_bytes(registry_show_version(version, root=options.root).size_bytes)
            hint = hint_at(options.root, f"aifx registry rm {version} --yes")
            confirm_deletion(out, version, size, hint)
        done = registry_rm(version, **vars(options))
        print_act(out, done, f"{done.reference} is withdrawn")


@app.command()
@option_group
def init(
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Policy to begin with, or to change to.")
    ] = None,
    key: KeyOption = None,
    json: JsonOption = False,
    *,
    options: ActOptions,
) -> None:
    """Give a registry its policy: which evidence a version needs, and who may approve it.

    Examples:
        aifx registry init
        aifx registry init --policy policy.toml --key admin.pem --dry-run
        aifx registry init --policy policy.toml --key admin.pem --reason "two reviewers"

    If the policy that holds has admins with keys, one of these must sign the change.
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_init

        page = registry_init(policy, key=key, **vars(options))
        out.result(page)
        number = page.entry.number if page.entry else None
        out.print(f"the policy of {page.root} is {page.digest[:12]}{ending(page, number, f' (entry {number})')}")
        if page.is_open:
            out.log("no admin has a key, so everyone may do everything, and change the policy")


@app.command()
def policy(root: RootOption = None, json: JsonOption = False) -> None:
    """Print the policy of a registry.

    Examples:
        aifx registry policy > policy.toml
    """
    with terminal(json) as out:
        from aifx.verbs.registry import registry_policy

        page = registry_policy(root=root)
        out.result(page)
        if not page.text:
            hint = hint_at(root, "aifx registry init")
            out.log(f"{page.root} has no policy, so no evidence is asked for: {hint}")
        elif not json:
            out.write(page.text)


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Private key to write. The public one is FILE.pub.")],
    curve: Annotated[str, typer.Option("--curve", metavar="CURVE", help="P-256, P-384 or P-521.")] = "P-256",
    json: JsonOption = False,
) -> None:
    """Write a new key pair for signatures.

    Examples:
        aifx registry keygen ann.pem
    """
    with terminal(json) as out:
        from aifx.verbs.registry_acts import registry_keygen

        made = registry_keygen(path, curve=curve)
        out.result(made)
        out.print(f"{made.private}: keep it; {made.public}: for [keys] of policy.toml; id {made.id}")

"""What changes models by name: versions, evidence, and which of them an alias means."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import ConfigError, UsageError
from aifx.core.files import read_file
from aifx.core.json_values import flat
from aifx.core.os_errors import in_brief
from aifx.core.parsing import fault_in, parse_toml
from aifx.core.project import Project, RunDirectory, find_project
from aifx.core.steps import parse_step
from aifx.verbs.arguments import Step, StrPath
from aifx.verbs.registry import configured, find_root, hints_name_root

if TYPE_CHECKING:
    from aifx.registry.acts import Act, Caller
    from aifx.registry.reports import PolicyPage
    from aifx.registry.roots import Root
    from aifx.registry.signing import NewKey
    from aifx.registry.state import ModelState, NumberedVersion

log = logging.getLogger(__name__)


def _caller(request: str | None, reason: str, dry_run: bool) -> Caller:
    from aifx.registry.acts import Caller

    return Caller("", request, reason, dry_run)


@hints_name_root
def registry_copy(
    reference: str,
    target: str,
    *,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Copy a version with its evidence to another registry, and compare what arrives.

    Args:
        reference: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        target: folder or URL of the other registry.
        reason: for the ledger of the other registry.
        request: an id: a second call with it reports what the first one did.
        dry_run: report the entry, and change nothing.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_copy("tiny@production", "other-registry").reference
        'tiny@v1'
    """
    from aifx.registry.acts import copy_version
    from aifx.registry.roots import open_root

    return copy_version(find_root(root, project)[0], reference, open_root(target), _caller(request, reason, dry_run))


@hints_name_root
def registry_push(
    run: str,
    name: str,
    *,
    step: Step = None,
    key: StrPath | None = None,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Make a version of a model from a checkpoint. The same checkpoint is the same version.

    Args:
        run: the name of a run of the project.
        name: of the model.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        key: PEM file of the private key of the author, which signs the push.
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: report the version, and change nothing.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project with the run.

    Example:
        >>> aifx.registry_push("main", "tiny").reference
        'tiny@v1'
    """
    from aifx.checkpoint.manifest import read_manifest
    from aifx.kinds import read_config
    from aifx.loading.steps import choose_step
    from aifx.registry.acts import push
    from aifx.registry.origins import read_origin
    from aifx.registry.versions import digest_of_settings, write_version

    found, _ = find_root(root, project)
    home = find_project(Path(project))
    directory = home.existing_run(run)
    config = read_config(directory.config, home, environ={})
    at = choose_step(directory, config, parse_step(step))
    checkpoint = read_manifest(directory.checkpoints / str(at)).state_digest
    digests = {"checkpoint": checkpoint, "config_digest": digest_of_settings(dict(config.sections()))}
    facts = {"run": directory.name, "step": at, **digests, **_data_facts(directory, home)}
    caller = _caller(request, reason, dry_run)
    signer = None if key is None else Path(key)
    origin = read_origin(directory, home)
    return push(found, name, lambda folder: write_version(directory, home, at, folder, origin), facts, caller, signer)


def _data_facts(run: RunDirectory, project: Project) -> dict[str, list[str]]:
    """The versions of data sets behind a run, those of runs that it began with too, and their licences.

    The ledger keeps them. So DataError is raised for a damaged version, and EnvironmentFault if its store does not
    answer.
    """
    from aifx.data.versions.catalog import open_catalog
    from aifx.runs.provenance import data_behind

    references = data_behind(run, project)
    project = configured(project)
    catalog, licenses = open_catalog(project.datasets, project), set[str]()
    for reference in references:
        try:
            licenses.update(source.license for source in catalog.manifest(reference).sources)
        except UsageError as e:  # it was deleted
            log.warning("the licences of %s are not known: %s", reference, in_brief(e))
            licenses.add("unknown")
    return {"data": list(references), "licenses": sorted(licenses)}


@hints_name_root
def registry_tag(
    reference: str,
    tags: Mapping[str, str] | None = None,
    *,
    remove: Sequence[str] = (),
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Set or remove tags of a version.

    Args:
        reference: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        tags: to set.
        remove: keys of tags to remove.
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: report the entry, and write none.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_tag("tiny@v1", {"team": "risk"}).action
        'tag'
    """
    from aifx.registry.acts import tag

    if not tags and not remove:
        raise UsageError("no tag is given", "KEY=VALUE sets one, --remove KEY removes one", f"{reference} team=risk")
    return tag(find_root(root, project)[0], reference, tags or {}, tuple(remove), _caller(request, reason, dry_run))


@hints_name_root
def registry_attest(
    reference: str,
    file: StrPath | None = None,
    kind: str = "file",
    *,
    key: StrPath | None = None,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Add evidence about a version.

    Args:
        reference: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        file: the evidence; a document of `--json` unless the kind is "file".
        kind: "eval", "comparison", "contamination", "bench", "drill", "signature", "trust-code" or "file". The first
            two without a file take the report of the run and step that the version was pushed from; signatures take
            no file.
        key: PEM file of the private key that signs it.
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: report the entry, and write none.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_attest("tiny@v1", "aifx.toml").action
        'attest'
    """
    from aifx.registry.acts import attest_file, attest_version
    from aifx.registry.documents import parse_evidence, report_of_run
    from aifx.registry.signing import read_given

    found, home = find_root(root, project)
    caller, signer = _caller(request, reason, dry_run), None if key is None else Path(key)
    if kind in ("signature", "trust-code"):
        option = kind.replace("signature", "sign")
        if signer is None:
            raise UsageError(
                f"--{option} requires --key",
                "a signature is of a key",
                f"aifx registry attest {reference} --{option} --key KEY.pem",
            )
        return attest_version(found, reference, "signature" if option == "sign" else "trust-code", {}, signer, caller)
    if file is None:
        if kind in ("eval", "comparison"):
            return attest_version(found, reference, *report_of_run(found, reference, kind, home), signer, caller)
        raise UsageError(
            "no file is given", f"evidence of the kind {kind!r} is a file", f"aifx registry attest {reference} FILE"
        )
    data = read_given(Path(file))
    if kind == "file":
        return attest_file(found, reference, Path(file).name, data, signer, caller)
    return attest_version(found, reference, *parse_evidence(data, kind, str(file)), signer, caller)


@hints_name_root
def registry_approve(
    reference: str,
    alias: str,
    *,
    key: StrPath | None = None,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Approve that an alias may mean a version, on the evidence that there is now.

    Args:
        reference: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        alias: such as "production".
        key: PEM file of the private key that signs it.
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: report the entry, and write none.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_approve("tiny@v1", "production")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.registry.acts import approve

    signer = None if key is None else Path(key)
    return approve(find_root(root, project)[0], reference, alias, signer, _caller(request, reason, dry_run))


@hints_name_root
def registry_promote(
    reference: str,
    alias: str,
    *,
    serve_check: bool = False,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Let an alias mean a version, if the policy finds the evidence. The verdict is bad if it does not.

    Args:
        reference: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        alias: such as "production".
        serve_check: also refuse a version to which a server of the present one cannot swap.
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: judge, and change nothing.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_promote("tiny@v1", "production").action
        'promote'
    """
    from aifx.registry.acts import promote

    found, _ = find_root(root, project)
    return promote(found, reference, alias, _caller(request, reason, dry_run), serve_check=serve_check)


@hints_name_root
def registry_rollback(
    name: str,
    alias: str,
    *,
    to: str | None = None,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Let an alias mean the version before, without asking the policy.

    Args:
        name: of the model.
        alias: such as "production".
        to: "v2": a version that the alias meant before.
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: report the entry, and write none.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_rollback("tiny", "production")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.registry.acts import rollback

    return rollback(find_root(root, project)[0], name, alias, to, _caller(request, reason, dry_run))


@hints_name_root
def registry_rm(
    reference: str,
    *,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> Act:
    """Withdraw a version and delete its files. Its entries and evidence stay.

    Args:
        reference: "NAME@v3" or "NAME@DIGITS".
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: report the entry, and delete nothing.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_rm("tiny@v1")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.registry.acts import remove

    found, home = find_root(root, project)
    caller = _caller(request, reason, dry_run)
    return remove(found, reference, lambda state, version: _users(found, state, version, home), caller)


def _users(root: Root, state: ModelState, version: NumberedVersion, project: Project | None) -> list[str]:
    """What of a project refers to a version: runs that were tuned from it, and settings and stations that name it."""
    from aifx.lines.file import LINE
    from aifx.runs.provenance import read_provenance

    if project is None:
        return []
    found = [(run.name, str((read_provenance(run).get("finetuned_from") or {}).get("run"))) for run in project.runs()]
    users = [f"run {run}" for run, base in found if base.partition("@")[2] == version.digest]
    if root.store.url == find_root(None, project.root)[0].store.url:  # in another registry, names mean other versions
        files = (file for file in (project.config_path, project.root / LINE) if file.exists())
        users += [file.name for file in files if _names(file, state, version)]
    return users


def _names(file: Path, state: ModelState, version: NumberedVersion) -> bool:
    """Whether a value in a file of settings has the name of a version. Raises ConfigError for a file that is none."""
    from aifx.registry.roots import find_version

    try:
        values = " ".join(str(value) for _, value in flat(parse_toml(read_file(file).decode())))
    except (OSError, ValueError) as e:
        why = f"it could name {state.name}@{version.label}, which must stay then: {fault_in(e)}"
        raise ConfigError(f"could not read {file}", why, "repair it, and run the same command again") from e
    for named in re.findall(rf"(?<![\w.-]){re.escape(state.name)}@[a-z0-9_-]+", values):
        with suppress(UsageError):  # it names no version
            if find_version(state, named).digest == version.digest:
                return True
    return False


@hints_name_root
def registry_init(
    policy: StrPath | None = None,
    *,
    key: StrPath | None = None,
    reason: str = "",
    request: str | None = None,
    dry_run: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> PolicyPage:
    """Give a registry its first policy, or another one.

    Args:
        policy: policy.toml; by default one without keys, with which everyone may do everything.
        key: PEM file of the private key of an admin, if the policy that holds has one.
        reason: for the ledger.
        request: an id: a second call with it reports what the first one did.
        dry_run: check the policy and the key, and change nothing.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_init().is_open
        True
    """
    from aifx.registry.acts import set_policy

    found, _ = find_root(root, project)
    file, signer = (None if path is None else Path(path) for path in (policy, key))
    return set_policy(found, file, signer, _caller(request, reason, dry_run))


def registry_keygen(path: StrPath, *, curve: str = "P-256") -> NewKey:
    """Write a new private key, and the public one for a policy beside it.

    Args:
        path: of the private key; the public one gets ".pub" after it.
        curve: "P-256", "P-384" or "P-521".

    Example:
        >>> aifx.registry_keygen("ann.pem").public
        'ann.pem.pub'
    """
    from aifx.registry.signing import NewKey, write_key

    file = Path(path)
    return NewKey(str(file), f"{file}.pub", curve, write_key(file, curve))

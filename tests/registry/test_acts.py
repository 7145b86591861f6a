"""Acts of a registry: what each writes, refuses, and says when it is asked again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aifx.core.artifact import Artifact, DamagedArtifact, seal, seal_files
from aifx.core.errors import AifxError, DataError, UsageError
from aifx.core.project import Project
from aifx.core.stores import Store, open_store
from aifx.registry import acts
from aifx.registry.acts import (
    Act,
    Caller,
    approve,
    attest_file,
    attest_version,
    copy_version,
    promote,
    push,
    remove,
    rollback,
    set_policy,
    tag,
)
from aifx.registry.documents import parse_evidence
from aifx.registry.evidence import Kind, attestations_of
from aifx.registry.judge import Finding
from aifx.registry.ledger import Entry, LostRace, file_name
from aifx.registry.reports import (
    compare_versions,
    heads_of,
    history_of,
    list_models,
    meaning_at,
    pull_version,
    search_versions,
    show_version_page,
    verify_root,
)
from aifx.registry.roots import KIND, VERSION, Root
from aifx.registry.signing import Envelope, write_key
from aifx.serving.alias import VersionOfAlias

ANN, BOB = Caller("ann"), Caller("bob")
PASSED = {"metrics": {"accuracy": 0.9}, "gates": [{"expr": "accuracy >= 0.8", "value": 0.9, "passed": True}]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    return Root(open_store(str(tmp_path / "registry")))


def push_text(root: Root, text: str, caller: Caller = ANN, key: Path | None = None, **facts: object) -> Act:
    """Push a version whose weights are a text."""

    def write(folder: Path) -> Artifact:
        (folder / "weights").write_text(text)
        (folder / "config.toml").write_text(f'[model]\nname = "{text}"\n')
        files = seal_files(folder, [folder / "config.toml", folder / "weights"])
        array = {"dtype": "float32", "shape": [2, len(text)], "digest": "7" * 16}
        artifact = Artifact(KIND, VERSION, {"levels": [{"arrays": {"w": array}}]}, files)
        seal(folder, artifact)
        return artifact

    return push(root, "fraud", write, facts, caller, key)


def promoted(root: Root, *texts: str) -> None:
    for number, text in enumerate(texts, 1):
        push_text(root, text)
        promote(root, f"fraud@v{number}", "production", ANN)


def meant(root: Root, alias: str = "production") -> str:
    state = root.state("fraud")
    return state.label(state.aliases[alias].version)


def test_the_same_content_is_one_version(root: Root) -> None:
    first, second, third = (push_text(root, text, run=text) for text in "aba")
    assert [done.reference for done in (first, second, third)] == ["fraud@v1", "fraud@v2", "fraud@v1"]
    assert (third.entry, third.digest) == (None, first.digest)
    versions = root.versions("fraud").folder
    assert versions is not None
    assert sorted(os.listdir(versions)) == sorted(done.digest[:12] for done in (first, second))
    (folder,) = [path for path in versions.iterdir() if first.digest.startswith(path.name)]
    (folder / "weights").write_text("x")
    assert [problem.why for problem in verify_root(root, (), ()).problems] == [
        "weights has other bytes than were written"
    ]


def test_a_trial_changes_nothing(root: Root) -> None:
    trial = Caller("ann", dry_run=True)
    assert push_text(root, "a", trial).dry_run
    assert root.names() == []
    promoted(root, "a", "b")
    before = root.state("fraud").entries
    for done in (
        push_text(root, "c", trial),
        promote(root, "fraud@v1", "production", trial),
        rollback(root, "fraud", "production", None, trial),
        tag(root, "fraud@v1", {"a": "b"}, (), trial),
        attest_version(root, "fraud@v1", "eval", PASSED, None, trial),
        attest_file(root, "fraud@v1", "CARD.md", b"x", None, trial),
        approve(root, "fraud@v1", "production", None, Caller("bob", dry_run=True)),
        remove(root, "fraud@v1", lambda state, version: [], trial),
    ):
        assert done.dry_run
        assert done.entry is None
    assert root.state("fraud").entries == before
    assert root.store.files("objects") == []


def test_a_refusal_names_the_rule_and_the_way_and_is_written(root: Root, tmp_path: Path) -> None:
    push_text(root, "a")
    set_policy(root, None, None, ANN)
    refused = promote(root, "fraud@v1", "production", Caller("ann", "job-1", "why not"))
    evaluate = "aifx eval --model fraud@v1 --json > report.json"
    hint = f"{evaluate}, and: aifx registry attest fraud@v1 report.json --eval"
    assert (refused.action, refused.exit_code) == ("refuse", 1)
    assert refused.findings == (Finding("eval", False, "no evaluation is attested", hint),)
    attest_version(root, "fraud@v1", "eval", PASSED, None, ANN)
    again = promote(root, "fraud@v1", "production", Caller("ann", "job-1", "why not"))
    assert (again.is_repeated, again.action, again.findings) == (True, "refuse", refused.findings)
    done = promote(root, "fraud@v1", "production", ANN)
    assert (done.action, done.exit_code, done.evidence) == ("promote", 0, done.findings[0].evidence)
    actions = [(entry.action, entry.reason) for entry in history_of(root, "fraud", "production").entries]
    assert actions == [("refuse", "why not"), ("promote", "")]


def test_the_way_back_goes_to_what_was_live(root: Root) -> None:
    promoted(root, "a", "b")
    push_text(root, "c")
    assert rollback(root, "fraud", "production", None, ANN).previous == "v2"
    assert meant(root) == "v1"
    assert rollback(root, "fraud", "production", "v2", ANN).reference == "fraud@v2"
    with pytest.raises(UsageError) as error:
        rollback(root, "fraud", "production", "v3", ANN)
    assert error.value.hint == "aifx registry promote fraud@v3 production"
    with pytest.raises(UsageError, match="no alias 'canary'"):
        rollback(root, "fraud", "canary", None, ANN)
    promote(root, "fraud@v3", "canary", ANN)
    with pytest.raises(UsageError, match="no version before"):
        rollback(root, "fraud", "canary", None, ANN)


def test_a_second_way_back_goes_further(root: Root) -> None:
    promoted(root, "a", "b", "c")
    assert [rollback(root, "fraud", "production", None, ANN).reference for _ in range(2)] == ["fraud@v2", "fraud@v1"]
    with pytest.raises(UsageError, match="no version before"):
        rollback(root, "fraud", "production", None, ANN)
    promote(root, "fraud@v3", "production", ANN)
    assert rollback(root, "fraud", "production", None, ANN).reference == "fraud@v1"


def test_a_server_that_follows_another_alias_has_left_the_first(root: Root, tmp_path: Path) -> None:
    for alias, text in (("production", "a"), ("staging", "b")):
        promote(root, push_text(root, text).reference, alias, ANN)

    def start(alias: str) -> VersionOfAlias:
        return VersionOfAlias(root, f"fraud@{alias}", "", Project(tmp_path), (), server="host-8000")

    def adopted(alias: str) -> list[tuple[str, bool]]:
        servers = meaning_at(root, "fraud", alias, datetime.now(UTC)).servers
        return [(one.version, one.until is not None) for one in servers]

    first = start("production")
    first.adopted(first.newest())  # and is killed
    start("staging").left()  # before it has looked
    assert (adopted("production"), adopted("staging")) == ([("v1", True)], [])
    first.adopted(first.newest())
    third = start("production")
    third.adopted(third.newest())  # and is killed
    assert adopted("production") == [("v1", False)]
    second = start("staging")
    second.adopted(second.newest())
    assert (adopted("production"), adopted("staging")) == ([("v1", True)], [("v2", False)])


def test_a_server_reads_each_entry_once_and_the_last_one_again(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each look, a ledger of 10,000 entries in a store would be as many requests."""
    promoted(root, "a", "b")
    asked, real = list[str](), Store.read_many

    def read_many(store: Store, names: list[str]) -> Iterator[tuple[str, bytes]]:
        if store.url.endswith("fraud/ledger"):
            asked.extend(sorted(names))
        return real(store, names)

    monkeypatch.setattr(Store, "read_many", read_many)
    source = VersionOfAlias(root, "fraud@production", "", Project(tmp_path), (), server="host-8000")

    def looked() -> tuple[str, list[str]]:
        asked.clear()
        return source.newest().label, [name.removesuffix(".json").lstrip("0") for name in asked]

    count = len(root.state("fraud").entries)
    assert looked() == ("fraud@production (v2)", [str(number + 1) for number in range(count)])
    assert looked() == ("fraud@production (v2)", [str(count)])
    rollback(root, "fraud", "production", None, ANN)
    assert looked() == ("fraud@production (v1)", [str(count), str(count + 1)])
    file = Path(root.store.path) / "models/fraud/ledger" / file_name(count + 1)
    last = root.state("fraud").entries[-1]
    file.write_bytes(replace(last, actor="eve").sealed(last.number, last.previous, last.time).encode())
    with pytest.raises(AifxError, match="not the one that this server has seen"):
        source.newest()
    file.write_bytes(last.sealed(last.number, "5" * 64, last.time).encode())
    with pytest.raises(AifxError, match="is damaged"):
        source.newest()
    file.unlink()
    with pytest.raises(AifxError, match="not the one that this server has seen"):
        source.newest()


@pytest.mark.parametrize("moves", [False, True])
def test_a_rollback_loses_to_another_move_of_its_alias_alone(
    root: Root, monkeypatch: pytest.MonkeyPatch, moves: bool
) -> None:
    for number, text in enumerate("abc", 1):
        push_text(root, text)
        promote(root, f"fraud@v{number}", "production", ANN)
    real = acts._available

    def late(*asked: Any) -> Any:
        """Another entry comes while the rollback is decided: of another rollback, or of evidence."""
        monkeypatch.undo()
        if moves:
            rollback(root, "fraud", "production", None, BOB)
        else:
            tag(root, "fraud@v3", {"team": "risk"}, (), BOB)
        return real(*asked)

    monkeypatch.setattr(acts, "_available", late)
    if moves:
        with pytest.raises(LostRace):
            rollback(root, "fraud", "production", None, ANN)
    else:
        assert rollback(root, "fraud", "production", None, ANN).reference == "fraud@v2"
    assert root.find("fraud@production")[1].label == "v2"


def test_an_approval_is_no_way_to_an_alias(root: Root) -> None:
    promoted(root, "a")
    push_text(root, "b")
    set_policy(root, None, None, ANN)
    assert promote(root, "fraud@v2", "production", ANN).action == "refuse"
    approve(root, "fraud@v2", "production", None, BOB)
    with pytest.raises(UsageError, match="is no way back"):
        rollback(root, "fraud", "production", "v2", ANN)
    assert meant(root) == "v1"


def test_evidence_counts_for_the_version_that_it_is_about(root: Root) -> None:
    push_text(root, "a")
    push_text(root, "b")
    set_policy(root, None, None, ANN)
    attested = attest_version(root, "fraud@v2", "eval", PASSED, None, ANN)
    first = root.find("fraud@v1")[1].digest
    forged = Entry("attest", "eve", version=first, evidence=attested.evidence, facts={"kind": "eval"})
    root.act("fraud", None, lambda _: forged, again=True)
    with pytest.raises(DataError, match="is not about that version"):
        promote(root, "fraud@v1", "production", ANN)
    assert any("is not about that version" in problem.place for problem in verify_root(root, (), ()).problems)


def test_a_signed_push_names_its_authors_by_their_keys(root: Root, tmp_path: Path) -> None:
    keys = [tmp_path / "ann.pem", tmp_path / "bob.pem"]
    public = {key.name: Path(f"{key}.pub").read_text() for key in keys if write_key(key, "P-256")}

    def authors(of: Root) -> list[str]:
        state, version = of.find("fraud@v1")
        made = attestations_of(of, state, version.digest)
        return [name for one in made if one.kind == "author" for name in one.envelope.signers(public)]

    with pytest.raises(UsageError):
        push_text(root, "a", key=tmp_path / "none.pem")
    assert root.names() == []
    assert not list(tmp_path.rglob("weights"))  # what cannot be signed is not stored
    push_text(root, "a", key=keys[0])
    push_text(root, "a", BOB, keys[0])  # nothing is new
    assert (authors(root), len(root.state("fraud").entries)) == (["ann.pem"], 1)
    caller = Caller("bob", request="r1")
    first, again = (push_text(root, "a", caller, keys[1]) for _ in range(2))
    assert (first.entry, again.entry, again.is_repeated) == (2, 2, True)
    assert authors(root) == ["ann.pem", "bob.pem"]
    target = Root(open_store(str(tmp_path / "other")))
    copy_version(root, "fraud@v1", target, ANN)
    assert authors(target) == ["ann.pem", "bob.pem"]
    assert verify_root(target, (), ()).problems == ()


def test_the_folder_of_another_version_is_not_taken(root: Root, tmp_path: Path) -> None:
    first, second = (push_text(root, text).digest for text in "ab")
    versions = root.versions("fraud").folder
    assert versions is not None
    (versions / first[:12]).rename(tmp_path / "away")
    (versions / second[:12]).rename(versions / first[:12])
    acts: tuple[Callable[[], object], ...] = (
        lambda: pull_version(root, "fraud@v1", tmp_path / "pulled"),
        lambda: copy_version(root, "fraud@v1", Root(open_store(str(tmp_path / "other"))), ANN),
        lambda: promote(root, "fraud@v1", "production", ANN),
    )
    for act in acts:
        with pytest.raises(DamagedArtifact):
            act()
    assert len(verify_root(root, (), ()).problems) == 2


def test_a_version_that_is_a_link_is_damage(root: Root, tmp_path: Path) -> None:
    first, second = (push_text(root, text).digest for text in "ab")
    versions, away = root.versions("fraud").folder, tmp_path / "away"
    assert versions is not None
    place = versions / first[:12]
    place.rename(away)
    place.symlink_to(away)
    assert [one.why for one in verify_root(root, (), ()).problems] == ["it is a symbolic link"]
    for act in (lambda: root.fetch(*root.find("fraud@v1")), lambda: promote(root, "fraud@v1", "production", ANN)):
        with pytest.raises(DamagedArtifact, match="is damaged"):
            act()
    assert push_text(root, "a").repaired == ("it is a symbolic link",)
    assert verify_root(root, (), ()).problems == ()
    assert (away / "weights").read_text() == "a"
    shutil.rmtree(away)
    (versions / second[:12]).rename(away)
    (versions / second[:12]).symlink_to(away)
    remove(root, "fraud@v2", lambda state, version: [], ANN)
    assert (sorted(versions.iterdir()), (away / "weights").read_text()) == ([place], "b")


def test_a_policy_that_was_removed_is_missed(root: Root) -> None:
    push_text(root, "a")
    set_policy(root, None, None, ANN)
    attest_version(root, "fraud@v1", "eval", PASSED, None, ANN)
    promote(root, "fraud@v1", "production", ANN)
    (head,) = (one for one in heads_of(root, ()).heads if one.name == "(policy)")
    assert verify_root(root, (), (head.digest,)).problems == ()
    for path in (Path(root.store.path) / "policy").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="judged by a policy that is gone"):
        promote(root, "fraud@v1", "production", ANN)
    assert [problem.place for problem in verify_root(root, (), (head.digest,)).problems] == [
        "entry 3 of fraud was judged by a policy that is gone",
        f"head {head.digest}",
    ]


def test_forged_entries_are_problems_and_no_crash(root: Root) -> None:
    push_text(root, "a")
    for entry in (
        Entry("attest", "eve", version=root.find("fraud@v1")[1].digest, facts={"kind": "file"}),
        Entry("promote", "eve", version="9" * 64, alias="production"),
    ):
        root.act("fraud", None, lambda _, entry=entry: entry, again=True)  # type: ignore[misc]
    root.policy.append((), Entry("policy", "eve", facts={}))
    problems = verify_root(root, (), ()).problems
    assert any("was not pushed before" in problem.why for problem in problems)
    with pytest.raises(UsageError, match="names no version"):
        root.find("fraud@production")
    (root.policy.store.folder or Path()).joinpath("00000001.json").unlink()
    with pytest.raises(DataError, match="means a version that was never pushed"):
        promote(root, "fraud@v1", "production", ANN)
    with pytest.raises(UsageError, match="no version before"):
        rollback(root, "fraud", "production", None, ANN)


def test_a_rollback_to_what_was_never_live_is_found(root: Root) -> None:
    promoted(root, "a", "b")
    push_text(root, "c")
    promote(root, "fraud@v3", "canary", ANN)
    rollback(root, "fraud", "production", None, ANN)
    assert verify_root(root, (), ()).problems == ()
    forged = Entry("rollback", "eve", version=root.find("fraud@v3")[1].digest, alias="production")
    made = root.act("fraud", None, lambda _: forged, again=True).entry
    (problem,) = verify_root(root, (), ()).problems
    assert problem.place == f"entry {made.number} of fraud"
    assert "production had not meant" in problem.why


def test_a_request_id_belongs_to_one_act(root: Root) -> None:
    once = Caller("ann", "job")
    push_text(root, "a", once)
    acts: tuple[Callable[[], object], ...] = (
        lambda: promote(root, "fraud@v1", "production", once),
        lambda: rollback(root, "fraud", "production", None, once),
        lambda: tag(root, "fraud@v1", {"a": "b"}, (), once),
        lambda: attest_version(root, "fraud@v1", "eval", PASSED, None, once),
    )
    for act in acts:
        with pytest.raises(UsageError, match="--request job belongs to another act"):
            act()
    promote(root, "fraud@v1", "production", Caller("ann", "move"))
    with pytest.raises(UsageError, match="belongs to another act"):
        promote(root, "fraud@v1", "canary", Caller("ann", "move"))


def test_a_request_id_belongs_to_its_arguments(root: Root, tmp_path: Path) -> None:
    """Asked again with other arguments, an act does not pass for done."""
    promoted(root, "a", "b")
    target = Root(open_store(str(tmp_path / "other")))
    policies = [tmp_path / name for name in ("one.toml", "two.toml")]
    for path in policies:
        path.write_text(f"# {path.name}")
    acts: tuple[tuple[Callable[..., object], tuple[object, ...], tuple[object, ...]], ...] = (
        (lambda text, run, who: push_text(root, text, who, run=run), ("c", "c"), ("d", "d")),
        (lambda of, who: promote(root, of, "canary", who), ("fraud@v1",), ("fraud@v2",)),
        (lambda of, who: approve(root, of, "canary", None, replace(who, actor="bob")), ("fraud@v1",), ("fraud@v2",)),
        (lambda to, who: rollback(root, "fraud", "production", to, who), ("v1",), ("v2",)),
        (lambda of, key, who: tag(root, of, {key: "b"}, (), who), ("fraud@v1", "a"), ("fraud@v2", "a")),
        (lambda of, key, who: tag(root, of, {key: "b"}, (), who), ("fraud@v1", "a"), ("fraud@v1", "c")),
        (lambda of, data, who: attest_file(root, of, "f", data, None, who), ("fraud@v1", b"a"), ("fraud@v2", b"a")),
        (lambda of, data, who: attest_file(root, of, "f", data, None, who), ("fraud@v1", b"a"), ("fraud@v1", b"b")),
        (lambda of, who: copy_version(root, of, target, who), ("fraud@v1",), ("fraud@v2",)),
        (lambda of, who: remove(root, of, lambda *_: [], who), ("fraud@v3",), ("fraud@v2",)),
        (lambda path, who: set_policy(root, path, None, who), (policies[0],), (policies[1],)),
    )
    for number, (act, args, others) in enumerate(acts):
        caller = Caller("ann", f"job-{number}")
        act(*args, caller)
        with pytest.raises(UsageError, match=f"--request job-{number} belongs to another act"):
            act(*others, caller)
        act(*args, caller)
    with pytest.raises(UsageError, match="belongs to another act"):
        push_text(root, "a", Caller("ann", "job-6"))  # which made an entry of evidence
    for id in ("", "a b", "copy of 1", "a\n"):
        with pytest.raises(UsageError, match="is no id"):
            Caller("ann", id)


def test_what_is_in_use_stays(root: Root) -> None:
    promoted(root, "a", "b")
    push_text(root, "c")
    with pytest.raises(UsageError) as error:
        remove(root, "fraud@v2", lambda state, version: [], ANN)
    assert error.value.why == "fraud@production refers to it"
    with pytest.raises(UsageError) as error:
        remove(root, "fraud@v3", lambda state, version: ["run next"], ANN)
    assert error.value.why == "run next refers to it"
    remove(root, "fraud@v1", lambda state, version: [], ANN)
    assert root.artifact(root.state("fraud"), root.find("fraud@v1")[1].digest) is None
    assert verify_root(root, (), ()).problems == ()
    with pytest.raises(UsageError, match="no version before"):
        rollback(root, "fraud", "production", None, ANN)
    with pytest.raises(UsageError, match="was withdrawn"):
        rollback(root, "fraud", "production", "v1", ANN)
    with pytest.raises(UsageError, match="was withdrawn"):
        promote(root, "fraud@v1", "production", ANN)
    assert push_text(root, "a").reference == "fraud@v1"
    assert rollback(root, "fraud", "production", None, ANN).reference == "fraud@v1"


@pytest.mark.parametrize(
    "facts",
    [
        {"facts": {"set": 3}},
        {"facts": {"findings": 5}},
        {"facts": {"data": 5}},
        {"time": ""},
        {"time": "2026-12-02"},
    ],
)
def test_an_entry_with_values_that_cannot_be_read_is_named(root: Root, facts: dict[str, Any]) -> None:
    promoted(root, "a")
    made = replace(root.state("fraud").entries[1], **facts)
    assert root.ledger("fraud").store.folder is not None
    Path(str(root.ledger("fraud").store.folder), "00000002.json").write_bytes(made.encode())
    (problem,) = verify_root(root, (), ()).problems
    assert "00000002.json is no entry: " in problem.why
    with pytest.raises(DataError, match="the ledger of fraud is damaged"):
        promote(root, "fraud@v1", "production", ANN)


def test_a_link_in_the_place_of_evidence_stops_no_verify(root: Root, tmp_path: Path) -> None:
    push_text(root, "a")
    attest_version(root, "fraud@v1", "eval", PASSED, None, ANN)
    assert verify_root(root, (), ()).problems == ()
    assert root.store.folder is not None
    (place,) = Path(root.store.folder, "objects").iterdir()
    place.rename(tmp_path / "away")
    place.symlink_to(tmp_path / "away")
    problems = verify_root(root, (), ()).problems
    assert ["is a link to" in one.place for one in problems] == [True]


def test_findings_with_more_keys_of_a_newer_aifx_are_read(root: Root) -> None:
    promoted(root, "a")
    version, more = root.find("fraud@v1")[1].digest, {"rule": "eval", "passed": True, "severity": "high"}
    made = Entry("promote", "ann", "", version, "production", facts={"findings": [more]})
    root.act("fraud", "job-9", lambda _: made, again=True)
    again = promote(root, "fraud@v1", "production", Caller("ann", "job-9"))
    assert (again.is_repeated, again.findings) == (True, (Finding("eval", True, ""),))


def test_a_damaged_push_is_one_problem(root: Root) -> None:
    """And not also each later entry, for the version that it should have."""
    promoted(root, "a", "b")
    Path(str(root.ledger("fraud").store.folder), "00000001.json").unlink()
    assert len(verify_root(root, (), ()).problems) == 1


def test_a_promotion_that_no_policy_judged_is_found(root: Root, tmp_path: Path) -> None:
    """An entry whose chain is whole, with the policy before, or with findings of other rules."""
    push_text(root, "a")
    for text in ("", '[aliases.production]\neval = {}\nfile = { names = ["CARD.md"] }'):
        (tmp_path / "policy.toml").write_text(f"# A policy\n{text}")
        set_policy(root, tmp_path / "policy.toml", None, ANN)
        promote(root, "fraud@v1", "production", ANN)
    assert verify_root(root, (), ()).problems == ()
    old, new = (entry.facts["policy"] for entry in root.state("fraud").entries[1:])
    forged = {"findings": [{"rule": "eval", "passed": True}], "policy": new}
    version = root.find("fraud@v1")[1].digest
    root.act("fraud", None, lambda _: Entry("promote", "eve", "", version, "production", facts=forged), again=True)
    (problem,) = verify_root(root, (), ()).problems
    assert (problem.place, problem.why.endswith("not judged: file")) == ("entry 4 of fraud", True)
    forged = {"findings": [], "policy": old}
    root.act("fraud", None, lambda _: Entry("promote", "eve", "", version, "production", facts=forged), again=True)
    assert "entry 5 of fraud was judged by a policy that held no more" in str(verify_root(root, (), ()).problems)
    with pytest.raises(DataError, match="held no more"):
        promote(root, "fraud@v1", "production", ANN)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("eval", {"gates": 4}),
        ("eval", {"gates": [{}]}),
        ("eval", {"metrics": 3}),
        ("eval", {"slices": 5}),
        ("eval", {"settings": [1]}),
        ("eval", {"subject": "x"}),
        ("comparison", {"against": []}),
        ("comparison", {"incumbent": 3}),
        ("comparison", {"subject": {"settings": [3]}}),
        ("comparison", {"different_settings": 4}),
        ("contamination", {"against": [3]}),
        ("contamination", {"overlapping": "x"}),
        ("bench", {"results": [3]}),
        ("bench", {"results": [{"figures": 3}]}),
        ("drill", {"passed": "no"}),
    ],
)
def test_evidence_that_rules_cannot_read_is_refused(
    root: Root, tmp_path: Path, kind: Kind, changed: dict[str, Any]
) -> None:
    """Also if it is in a registry already, since another aifx wrote it or someone by hand."""
    whole: dict[str, dict[str, Any]] = {
        "eval": PASSED,
        "comparison": {"metric": "a", "verdict": "b", "against": "c", "data_digest": "d", "look": 1, "alpha": 0.05},
        "contamination": {"reference": "a@0123", "overlapping": 0, "against": []},
        "bench": {"results": []},
        "drill": {"passed": True},
    }
    assert parse_evidence(json.dumps(whole[kind]).encode(), kind, "file") == (kind, whole[kind])
    wrong = {**whole[kind], **changed}
    with pytest.raises(DataError, match=f"file is no evidence of the kind '{kind}'") as error:
        parse_evidence(json.dumps(wrong).encode(), kind, "file")
    assert next(iter(changed)) in error.value.why
    digest = push_text(root, "a").digest
    values = {"kind": kind, "subject": digest, "made_by": "eve", "time": "2026-12-02T00:00:00+00:00", "content": wrong}
    entry = Entry("attest", "eve", version=digest, evidence=(root.put(Envelope(values).encode()),))
    root.act("fraud", None, lambda _: entry, again=True)
    for act in (promote, lambda *args: copy_version(root, args[1], Root(open_store(str(tmp_path / "b"))), ANN)):
        with pytest.raises(DataError, match="is no attestation"):
            act(root, "fraud@v1", "production", ANN)


def test_a_drill_is_of_a_version_whose_push_kept_no_digest_of_its_configuration(root: Root, tmp_path: Path) -> None:
    pushed = push_text(root, "a")
    artifact = root.artifact(root.state("fraud"), pushed.digest)
    assert artifact is not None
    (tmp_path / "policy.toml").write_text("[aliases.production]\ndrill = { days = 1 }\n")
    set_policy(root, tmp_path / "policy.toml", None, ANN)
    drill = {"passed": True, "ended": datetime.now(UTC).isoformat()}
    with pytest.raises(DataError, match="not about fraud@v1"):
        attest_version(root, "fraud@v1", "drill", {**drill, "config_digest": "0" * 64}, None, ANN)
    own = {**drill, "config_digest": artifact.files["config.toml"].sha256}
    attest_version(root, "fraud@v1", "drill", own, None, ANN)
    assert promote(root, "fraud@v1", "production", ANN).action == "promote"


def test_a_push_that_another_one_overtakes_ends_well(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    real = acts.publish

    def late(folder: Path, place: Path) -> None:
        monkeypatch.undo()
        push_text(root, "a", BOB)
        real(folder, place)

    monkeypatch.setattr(acts, "publish", late)
    assert push_text(root, "a").reference == "fraud@v1"
    assert [entry.actor for entry in root.state("fraud").entries] == ["bob"]
    assert verify_root(root, (), ()).problems == ()


def test_an_approval_is_of_one_name_in_one_root(root: Root, tmp_path: Path) -> None:
    """With the same policy, evidence and version, one of elsewhere does not count; a copy does not hide its author."""
    other, third = (Root(open_store(str(tmp_path / name))) for name in ("other", "third"))
    write_key(tmp_path / "bob.pem", "P-256")
    public = (tmp_path / "bob.pem.pub").read_text()
    (tmp_path / "policy.toml").write_text(f'[keys]\nbob = """{public}"""\n[aliases.production]\napproval = {{}}\n')
    for one in (root, other):
        set_policy(one, tmp_path / "policy.toml", None, ANN)
    push_text(root, "a")
    approve(root, "fraud@v1", "production", tmp_path / "bob.pem", BOB)
    (made,) = attestations_of(root, root.state("fraud"), root.find("fraud@v1")[1].digest)
    for entry in (
        Entry("push", "eve", version=made.subject),
        Entry("approve", "eve", version=made.subject, evidence=(made.digest,)),
    ):
        root.act("abuse", None, lambda _, entry=entry: entry, again=True)  # type: ignore[misc]
    shutil.copytree(Path(root.store.path, "models/fraud/versions"), Path(root.store.path, "models/abuse/versions"))
    assert promote(root, "fraud@v1", "production", ANN).action == "promote"
    assert promote(root, "abuse@v1", "production", ANN).action == "refuse"
    copy_version(root, "fraud@v1", other, Caller("cid"))
    assert promote(other, "fraud@v1", "production", Caller("cid")).action == "refuse"
    copy_version(other, "fraud@v1", third, Caller("dan"))
    for author in ("ann", "cid", "dan"):
        with pytest.raises(UsageError, match=f"{author} cannot approve"):
            approve(third, "fraud@v1", "production", None, Caller(author))
    approve(other, "fraud@v1", "production", tmp_path / "bob.pem", BOB)
    assert promote(other, "fraud@v1", "production", Caller("cid")).action == "promote"


def test_nobody_approves_their_own_version(root: Root) -> None:
    push_text(root, "a")
    with pytest.raises(UsageError, match="ann cannot approve"):
        approve(root, "fraud@v1", "production", None, ANN)
    assert approve(root, "fraud@v1", "production", None, BOB).action == "approve"


def test_each_look_at_the_same_rows_is_counted(root: Root) -> None:
    promoted(root, "a")
    push_text(root, "b")
    incumbent = root.find("fraud@v1")[1].digest

    def compare(look: int, rows: str, caller: Caller = ANN, **of: str) -> Act:
        content = {"metric": "loss", "verdict": "better", "against": incumbent, "data_digest": rows, "look": look, **of}
        return attest_version(root, "fraud@v2", "comparison", content, None, caller)

    compare(1, "rows")
    other = {"metric": "loss", "verdict": "better", "against": incumbent, "data_digest": "others"}
    for about in ({"subject": {"digest": "5" * 64}}, {"model": "5" * 64}, {"config_digest": "5" * 64}):
        with pytest.raises(DataError, match="is not about fraud@v2"):
            attest_version(root, "fraud@v2", "comparison", {**other, **about}, None, ANN)
    kept = root.store.files("objects")
    with pytest.raises(UsageError, match="is look 1 at these rows, and the ledger has look 1") as error:
        compare(1, "rows")
    assert error.value.hint.startswith("aifx eval --against RUN --look 2")
    assert root.store.files("objects") == kept
    compare(2, "rows")
    compare(1, "fresh rows", split="test")
    compare(1, "fresh rows", split="validation")
    with pytest.raises(UsageError, match="is look 1 at these rows, and the ledger has look 1"):
        compare(1, "fresh rows", split="test")
    assert compare(9, "rows", Caller("ann", "r")).entry == compare(9, "rows", Caller("ann", "r")).entry
    with pytest.raises(UsageError, match="and the ledger has look 9"):
        compare(9, "rows")  # each look counts once, also if some were left out


def test_a_copied_comparison_is_a_look_in_the_other_registry(root: Root, tmp_path: Path) -> None:
    other = Root(open_store(str(tmp_path / "other")))
    content = {"metric": "loss", "verdict": "better", "against": "1" * 64, "data_digest": "rows", "look": 1}
    for place, text in ((root, "a"), (other, "b")):
        push_text(place, text)
        attest_version(place, "fraud@v1", "comparison", content, None, ANN)
    attest_version(root, "fraud@v1", "comparison", {**content, "data_digest": "other rows"}, None, ANN)
    attest_version(root, "fraud@v1", "eval", PASSED, None, ANN)
    for _ in range(2):
        copy_version(root, "fraud@v1", other, BOB)
        evidence = show_version_page(other, "fraud@v2").evidence
        assert [one.content.get("data_digest") for one in evidence] == ["other rows", None]


def test_past_meanings_heads_and_searches(root: Root) -> None:
    promoted(root, "a")
    between = datetime.now(UTC)
    head = heads_of(root, ("fraud",)).heads[0]
    push_text(root, "b", run="night")
    promote(root, "fraud@v2", "production", Caller("ann", reason="Fewer missed cases"))
    tag(root, "fraud@v2", {"team": "risk"}, (), ANN)
    assert meaning_at(root, "fraud", "production", between).version == "v1"
    assert meaning_at(root, "fraud", "production", datetime.now(UTC)).version == "v2"
    assert meaning_at(root, "fraud", "production", datetime(2020, 1, 1, tzinfo=UTC)).exit_code == 1
    with pytest.raises(UsageError) as error:
        meaning_at(root, "fraud", "producton", between)
    assert error.value.why == "did you mean 'production'?"
    for words in (["night"], ["team=risk"], ["missed", "FRAUD"], ["v2"]):
        assert [one.reference for one in search_versions(root, tuple(words)).versions] == ["fraud@v2"]
    assert search_versions(root, ("team=risk", "day")).versions == ()
    assert verify_root(root, (), (head.digest, head.digest[:12])).problems == ()
    ledger = root.ledger("fraud").store.folder
    assert ledger is not None
    for number in range(6, 1, -1):
        (ledger / f"{number:08}.json").unlink(missing_ok=True)
    assert verify_root(root, (), ()).problems == ()
    assert len(verify_root(root, (), (head.digest,)).problems) == 1


def test_a_copy_brings_its_evidence_and_is_made_once(root: Root, tmp_path: Path) -> None:
    push_text(root, "a", run="main")
    attest_version(root, "fraud@v1", "eval", PASSED, None, ANN)
    attest_file(root, "fraud@v1", "CARD.md", b"card", None, ANN)
    promote(root, "fraud@v1", "production", ANN)
    other = Root(open_store(str(tmp_path / "other")))
    for _ in range(2):
        done = copy_version(root, "fraud@production", other, BOB)
        assert (done.reference, done.digest) == ("fraud@v1", root.find("fraud@v1")[1].digest)
    page = show_version_page(other, "fraud@v1")
    assert [one.kind for one in page.evidence] == ["eval", "file"]
    assert [entry.action for entry in page.entries] == ["push", "attest", "attest"]
    assert page.entries[0].facts["copied_from"]["actor"] == "ann"
    assert other.get(page.evidence[1].content["sha256"]) == b"card"
    assert list_models(other).models[0].aliases == {}
    assert verify_root(other, (), ()).problems == ()
    (Path(other.store.path) / "objects" / page.evidence[1].content["sha256"]).unlink()
    assert len(verify_root(other, (), ()).problems) == 1


def test_a_pulled_folder_is_whole(root: Root, tmp_path: Path) -> None:
    push_text(root, "a")
    folder = tmp_path / "pulled"
    pull_version(root, "fraud@v1", folder)
    (folder / "weights").write_text("torn")
    pull_version(root, "fraud@v1", folder)
    assert (folder / "weights").read_text() == "a"
    push_text(root, "b")
    with pytest.raises(UsageError, match="is not empty"):
        pull_version(root, "fraud@v2", folder)
    for name in ("mine", "weights", "manifest.json"):
        own = tmp_path / f"with {name}" / name
        own.parent.mkdir()
        own.write_text("{}")
        for place in (own.parent, own):
            with pytest.raises(UsageError, match="is not empty"):
                pull_version(root, "fraud@v1", place)
        assert own.read_text() == "{}"


@pytest.mark.parametrize("word", ["v0", "v01", "v\uff11", "v" + "9" * 5000])
def test_a_version_has_one_label(root: Root, word: str) -> None:
    push_text(root, "a")
    with pytest.raises(UsageError, match="names no version"):
        root.find(f"fraud@{word}")


def test_a_stray_entry_of_any_number_is_one_problem_per_gap(root: Root) -> None:
    push_text(root, "a")
    (Path(root.store.path) / "models" / "fraud" / "ledger" / "99999999.json").write_text("{}")
    missing, stray = verify_root(root, (), ()).problems
    assert missing.why.endswith("00000002.json is missing, and so are the 99999996 after it")
    assert "99999999.json is no entry" in stray.why


def test_two_versions_are_compared(root: Root) -> None:
    push_text(root, "a", data=["x@1"])
    push_text(root, "bc", data=["y@1"])
    attest_version(root, "fraud@v2", "eval", PASSED, None, ANN)
    found = compare_versions(root, "fraud@v1", "fraud@v2")

    def values(part: str) -> Mapping[str, tuple[object, object]]:
        return {one.key: (one.first, one.second) for one in getattr(found, part)}

    assert values("metrics") == {"accuracy": (None, 0.9)}
    assert values("data") == {"x@1": (True, None), "y@1": (None, True)}
    assert values("config") == {"model.name": ("a", "bc")}
    assert values("content")["parameters"] == (2, 4)
    assert not compare_versions(root, "fraud@v1", "fraud@v1").is_different

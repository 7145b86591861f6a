"""Values that no field has, below right digests: an error with place and way out, or an answer, and never a bug."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from effort import sample
from hostile_roots import VALUES, HostileRoot, paths_in, with_value, without

import aifx
from aifx.core.artifact import Artifact, seal, seal_files
from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.registry.acts import (
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
from aifx.registry.roots import KIND, VERSION, Root, open_root
from aifx.serving.alias import VersionOfAlias

ANN, BOB = Caller("ann"), Caller("bob")
TRIED = Caller("ann", dry_run=True)
POLICY = """
[roles]
admin = ["ann"]
reviewer = ["bob"]
[aliases.production]
eval = { split = "test", data = "table@0123", gates = ["accuracy >= 0.1"], settings = { data.seq_len = 64 } }
better = { metric = "max accuracy", margin = 0.01, data = "table@0123", split = "test" }
contamination = { data = "tests@0123" }
licences = { allow = ["MIT"] }
slices = { columns = ["colour"], gates = ["slices.colour.worst.accuracy >= 0"] }
signature = { role = "reviewer" }
bench = { gates = ["serve.ttft.median_s < 1"], days = 1 }
drill = { days = 1 }
file = { names = ["CARD.md"] }
approval = { role = "reviewer", people = 1, author = "name" }
[aliases."*"]
"""
MEASURED = {"data_digest": "7" * 64, "split": "test", "data": "table@0123abcd"}


def push_model(root: Root, width: int) -> None:
    """Push a version with settings, notes and data, but no arrays that could be read."""
    array = {"dtype": "float32", "shape": [2, width], "digest": "7" * 16}
    level = {"arrays": {"w": array}, "lora": None, "quantize": "none"}

    def write(folder: Path) -> Artifact:
        (folder / "config.toml").write_text(f"[model]\nembed_dim = {width}\n[data]\nseq_len = 64\n")
        (folder / "weights.safetensors").write_bytes(b"\0" * width)
        files = seal_files(folder, [folder / "config.toml", folder / "weights.safetensors"])
        content = {"task": "tabular", "step": 1, "levels": [level], "inputs": {"amount": {"kind": "numeric"}}}
        notes = {"layout": {"mesh.data": 2}, "files": ["path"], "source": "org/model"}
        artifact = Artifact(KIND, VERSION, content, files, notes=notes)
        seal(folder, artifact)
        return artifact

    facts = {"run": "main", "step": 1, "checkpoint": str(width % 10) * 64, "config_digest": "c" * 64}
    facts |= {"data": [f"people@{'3' * 64}"], "licenses": ["MIT"]}
    push(root, "fraud", write, {**facts, "copied_from": {"root": "s3://a", "entry": "e" * 64, "actor": "cid"}}, ANN)


def documents(first: str, second: str) -> dict[str, dict[str, Any]]:
    """A document of each kind of evidence."""
    gate = {"expr": "accuracy >= 0.8", "value": 0.9, "passed": True}
    settings = {"data.seq_len": 64}
    sides = {"subject": {"digest": second, "settings": settings}, "incumbent": {"digest": first, "settings": settings}}
    compared = {"metric": "accuracy", "direction": "max", "verdict": "better", "against": first, "look": 1}
    return {
        "eval": {
            **MEASURED,
            "metrics": {"accuracy": 0.9, "calibration": {"bins": [1, 2]}},
            "gates": [gate],
            "settings": settings,
            "slices": {"colour": {"worst": {"accuracy": 0.5}}},
            "model": second,
        },
        "comparison": {**MEASURED, **compared, **sides, "alpha": 0.03, "margin": 0.001, "different_settings": {"a": 1}},
        "contamination": {"reference": "people@333333333333", "overlapping": 0, "against": [{"name": "tests@0123ab"}]},
        "bench": {"model": second, "time": 1.8e9, "results": [{"name": "serve.ttft", "figures": {"median_s": 1}}]},
        "drill": {"config_digest": "c" * 64, "passed": True, "ended": "2026-12-03T00:00:00+00:00"},
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> HostileRoot:
    """A root with each kind of document: fraud@production is v1, and v2 has evidence for each rule."""
    folder = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIFX_CACHE_DIR", str(folder / "cache"))
        root = open_root(str(folder / "registry"))
        for width in (8, 16):
            push_model(root, width)
        for version in ("v1", "v2", "v1"):
            promote(root, f"fraud@{version}", "production", ANN)
        (folder / "policy.toml").write_text(POLICY)
        set_policy(root, folder / "policy.toml", None, ANN)
        first, second = root.state("fraud").versions
        for kind, document in documents(first, second).items():
            attest_version(root, "fraud@v2", kind, document, None, ANN)  # type: ignore[arg-type]
        attest_file(root, "fraud@v2", "CARD.md", b"card", None, ANN)
        tag(root, "fraud@v1", {"team": "risk", "tier": "1"}, (), ANN)
        tag(root, "fraud@v1", {}, ("tier",), Caller("ann", "asked"))
        approve(root, "fraud@v2", "production", None, BOB)
        assert promote(root, "fraud@v2", "production", Caller("ann", "judged")).action == "refuse"
        source = watching(root)
        for act in (lambda: source.adopted(source.newest()), source.left):
            act()
    return HostileRoot(folder / "registry")


def watching(root: Root) -> VersionOfAlias:
    return VersionOfAlias(root, "fraud@production", "", Project(Path.cwd()), (), server="host-8000")


def calls(root: Root, folder: Path) -> dict[str, Callable[[], object]]:
    """What can be asked of a root, and what can be done in it."""
    other, place = open_root(str(folder / "other")), str(root.store.url)
    versions = ("fraud@v1", "fraud@v2", "fraud@production")
    named = {f"show {one}": (lambda one=one: aifx.registry_show_version(one, root=place)) for one in versions}
    moves = {
        f"promote {version} {alias}": (
            lambda version=version, alias=alias: promote(root, f"fraud@{version}", alias, TRIED, serve_check=True)
        )
        for version in ("v1", "v2")
        for alias in ("production", "canary")
    }
    return {
        **named,
        **moves,
        "ls": lambda: aifx.registry_ls(root=place),
        "show": lambda: aifx.registry_show("fraud", root=place),
        "search": lambda: aifx.registry_search("v", root=place),
        "history": lambda: aifx.registry_history("fraud", "production", root=place),
        "at": lambda: aifx.registry_at("fraud", "production", "2030-01-01", root=place),
        "head": lambda: aifx.registry_head(root=place),
        "diff": lambda: aifx.registry_diff("fraud@v1", "fraud@v2", root=place),
        "policy": lambda: aifx.registry_policy(root=place),
        "pull": lambda: aifx.registry_pull("fraud@v2", folder / "pulled", root=place),
        "asked": lambda: tag(root, "fraud@v1", {}, ("tier",), Caller("ann", "asked")),
        "judged": lambda: promote(root, "fraud@v2", "production", Caller("ann", "judged")),
        "tag": lambda: tag(root, "fraud@v2", {"a": "b"}, (), TRIED),
        "attest": lambda: attest_version(root, "fraud@v2", "comparison", {**MEASURED, "look": 2}, None, ANN),
        "approve": lambda: approve(root, "fraud@v2", "production", None, BOB),
        "rollback": lambda: rollback(root, "fraud", "production", None, TRIED),
        "copy": lambda: copy_version(root, "fraud@v2", other, ANN),
        "push": lambda: push_model(root, 8),
        "init": lambda: set_policy(root, None, None, TRIED),
        "watch": lambda: watching(root).adopted(watching(root).newest()),
        "verify": lambda: aifx.registry_verify(root=place),
        "rm": lambda: remove(root, "fraud@v2", lambda state, version: [], ANN),
    }


def try_calls(
    hostile: HostileRoot, folder: Path, name: str, document: Any, beginning: str | tuple[str, ...] = ""
) -> dict[str, AifxError]:
    """The errors of the calls with a beginning in a root with another document. Each has a way out."""
    shutil.rmtree(folder, ignore_errors=True)
    hostile.write(folder / "registry", name, document)
    errors = {}
    for what, call in calls(open_root(str(folder / "registry")), folder).items():
        if not what.startswith(beginning):
            continue
        try:
            call()
        except AifxError as error:
            errors[what] = error
    assert [str(error) for error in errors.values() if not error.hint] == []
    return errors


def changes(hostile: HostileRoot, rng: random.Random) -> Iterator[tuple[str, Any]]:
    """Documents of a root, one after the other, with another value, without one, or with other bytes."""
    while True:
        for name in sorted(hostile.files):
            document, data = hostile.documents.get(name), hostile.files[name]
            cut, way = rng.randrange(len(data) + 1), rng.random()
            if document is None or way < 0.1:
                junk = (b"", data[:cut], data[cut:], b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 99999, b"9" * 5000)
                yield name, rng.choice(junk)
                continue
            path = rng.choice(list(paths_in(document)))
            value = rng.choice(VALUES)
            yield name, without(document, path) if way < 0.2 else with_value(document, path, value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hostile"


def find(hostile: HostileRoot, ending: str) -> str:
    """The first file whose path has an ending, or whose document has this kind."""
    evidence = {name for name in hostile.files if name.startswith("objects/")}
    return next(
        name
        for name in sorted(hostile.files)
        if name.endswith(ending) or (name in evidence and f"'kind': '{ending}'" in str(hostile.documents.get(name)))
    )


@pytest.mark.parametrize(
    ("ending", "path", "value", "call", "named"),
    [
        ("manifest.json", "notes.layout", 5, "show", "notes.layout"),
        ("manifest.json", "notes.layout", {"mesh.data": {}}, "show", "notes.layout"),
        ("manifest.json", "notes.files", [1], "show", "notes.files"),
        ("manifest.json", "files.config.bytes", 10**400, "show", "the size of 'config.toml'"),
        ("manifest.json", "files.config.bytes", 2**63, "diff", "the size of 'config.toml'"),
        ("manifest.json", "files.config", 3, "diff", "the size of 'config.toml'"),
        ("manifest.json", "content.levels", 3, "diff", "levels"),
        ("manifest.json", "content.levels.0.arrays.w", None, "diff", "levels.0.arrays.w"),
        ("manifest.json", "content.levels.0.arrays.w.shape", [2**62, 2], "diff", "too many elements"),
        ("00000001.json", "facts.step", "one", "ls", "00000001.json is no entry: step"),
        ("00000001.json", "version", "../../x", "ls", "'../../x' is no SHA-256"),
        ("host-8000/00000001.json", "facts.head_number", "one", "watch", "head_number"),
        ("eval", "payload.content.metrics", [], "show", "metrics"),
        ("eval", "payload.kind", "strange", "show", "kind"),
    ],
    ids=str,
)
def test_a_value_that_no_field_has_is_named(
    hostile: HostileRoot, folder: Path, ending: str, path: str, value: Any, call: str, named: str
) -> None:
    name = find(hostile, ending)
    keys = [int(key) if key.isdigit() else key.replace("config", "config.toml") for key in path.split(".")]
    errors = try_calls(hostile, folder, name, with_value(hostile.documents[name], tuple(keys), value), call)
    assert named in "".join(map(str, errors.values()))


@pytest.mark.parametrize("data", [b"\xff", b"[model"])
def test_settings_that_cannot_be_read_are_named(hostile: HostileRoot, folder: Path, data: bytes) -> None:
    errors = try_calls(hostile, folder, find(hostile, "config.toml"), data, ("diff", "promote"))
    assert "config.toml: " in str(errors["diff"])
    assert any("config.toml: " in str(error) for what, error in errors.items() if what.startswith("promote"))


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(10, marks=pytest.mark.representative("a hostile root of the registry")),
        pytest.param(sample(3000, 0.1), marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(1200)
def test_no_value_of_a_root_is_a_bug(hostile: HostileRoot, folder: Path, count: int) -> None:
    rng = random.Random(count)
    for _, (name, document) in zip(range(count), changes(hostile, rng), strict=False):
        try:
            try_calls(hostile, folder, name, document)
        except Exception as error:
            error.add_note(f"{name}: {str(document)[:2000]}")
            raise

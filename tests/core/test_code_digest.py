"""The digest of code: of a module and all that it imports, by what it does and not by how it is explained."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from aifx.core import code_digest as subject
from aifx.core import file_states
from aifx.core.code_digest import Code, code_digest
from aifx.core.errors import UsageError
from aifx.core.project import cache_path

Write = Callable[[str, str], None]

MODULES = {
    "own/__init__.py": '"""All of it."""\n\nfrom own import unrelated\n',
    "own/version.py": '__version__ = "1"\n',
    "own/unrelated.py": "x = 1\n",
    "own/start.py": '''"""Where it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from own.parts.near import near  # the next one

if TYPE_CHECKING:
    from own import for_types

LIMIT = 3
"""How many."""

TEXT = """
# no comment

the end
"""


def run() -> str:
    """Run it."""
    # twice
    from own.late import late

    return f"{near()} {late()} {LIMIT}"
''',
    "own/for_types.py": "y = 1\n",
    "own/late.py": 'late = str\nRULES = "rules.toml"\nTABLES = "tables"\n',
    "own/rules.toml": "a = 1\n",
    "own/other.toml": "b = 1\n",
    "own/tables/first.json": "{}\n",
    "own/parts/__init__.py": "",
    "own/parts/near.py": """import toylib.inner
from toyimage import Image
from own.version import __version__

KINDS = {"a": "own.parts.named:KIND"}


def near() -> str:
    from own.parts.far import far

    return far
""",
    "own/parts/far.py": 'far = "far"\n',
    "own/parts/named.py": "KIND = 1\n",
}


@pytest.fixture
def write(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of a package that is to the digest what aifx is. Its libraries are toylib and toyimage."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(subject, "AIFX", tmp_path)
    monkeypatch.setattr(subject, "PACKAGES", ("own",))
    monkeypatch.setattr(subject, "UNCOUNTED", ("own", "own.version"))
    monkeypatch.setitem(sys.modules, "own.start", _module(tmp_path / "own/start.py"))
    (tmp_path / "site/toylib-1.2.dist-info").mkdir(parents=True)
    (tmp_path / "site/toy_pictures-5.dist-info").mkdir()
    (tmp_path / "site/toy_pictures-5.dist-info/RECORD").write_text("toyimage/__init__.py,sha256=,1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    for name, text in MODULES.items():
        write(name, text)
    return write


def _module(path: Path) -> ModuleType:
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    return module


def forget() -> None:
    """Forget what this process has found, as another process would not know it."""
    subject._found.clear()
    subject._read_modules.clear()


def found(module: str = "own.start") -> Code:
    forget()
    return code_digest(module)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("own/start.py", '"""Run it."""', '"""Run it again,\n\n    and again.\n    """'),
        ("own/start.py", '"""How many."""', ""),
        ("own/start.py", "    # twice\n", "\n\n    # once\n\n"),
        ("own/start.py", "  # the next one", "   # the first one"),
        ("own/parts/far.py", '"far"\n', '"far"  # far away'),
        ("own/version.py", "1", "2"),
        ("own/__init__.py", "unrelated", "unrelated, start"),
        ("own/unrelated.py", "1", "2"),
        ("own/for_types.py", "1", "2"),
        ("own/other.toml", "1", "2"),
    ],
)
def test_what_does_not_count(write: Write, name: str, old: str, new: str) -> None:
    before = found()
    assert old in MODULES[name]
    write(name, MODULES[name].replace(old, new))
    assert found() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("own/start.py", "LIMIT = 3", "LIMIT = 4"),
        ("own/start.py", "# no comment", "# a comment"),
        ("own/start.py", "comment\n\nthe", "comment\n\n\nthe"),
        ("own/parts/far.py", '"far"', '"near"'),  # two imports away
        ("own/parts/named.py", "1", "2"),  # named by a string
        ("own/parts/__init__.py", "", "z = 1\n"),
        ("own/late.py", "str", "repr"),  # imported in a function
        ("own/rules.toml", "1", "2"),
        ("own/tables/first.json", "{}", "[]"),
    ],
)
def test_what_counts(write: Write, name: str, old: str, new: str) -> None:
    before = found()
    write(name, MODULES[name].replace(old, new))
    assert found().sha256 != before.sha256
    write(name, MODULES[name])
    assert found() == before


def test_the_versions_of_libraries_count(write: Write, tmp_path: Path) -> None:
    before = found()
    assert before.libraries == {"toylib": "1.2", "toy-pictures": "5"}
    (tmp_path / "site/toylib-1.2.dist-info").rename(tmp_path / "site/toylib-1.3.dist-info")
    (tmp_path / "site/unrelated-1.dist-info").mkdir()
    assert found() == Code(before.sha256, {"toylib": "1.3", "toy-pictures": "5"})


def test_a_module_of_a_project_counts_with_the_files_beside_it(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("project/mine.py", "import helper\nfrom own.parts import far\nimport toylib\n")
    write("project/helper.py", "x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    before = found("mine")
    assert before.libraries == {"toylib": "1.2"}
    for name in ("project/helper.py", "own/parts/far.py"):
        write(name, "x = 2\n")
        assert found("mine").sha256 != before.sha256
        before = found("mine")


def test_a_module_on_the_path_of_python_counts(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("project/mine.py", "import shared.deep\nimport single\nimport spread.part\nimport toylib\n")
    write("team/shared/__init__.py", "")
    write("team/shared/deep.py", "from shared import far\n")
    write("team/shared/far.py", "x = 1\n")
    write("team/spread/part.py", "x = 1\n")
    write("others/single.py", "x = 1\n")
    write("others/unrelated.py", "x = 1\n")
    for folder in ("site", "others", "team", "project"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    monkeypatch.setattr(file_states, "SETTLED_NS", -(10**15))
    before = found("mine")
    assert before.libraries == {"toylib": "1.2"}
    write("others/unrelated.py", "x = 2\n")
    assert found("mine") == before
    for name in ("team/shared/far.py", "team/spread/part.py", "others/single.py", "team/single.py"):
        write(name, f"x = {name!r}\n")
        assert found("mine").sha256 != before.sha256, name
        before = found("mine")


def test_relative_imports(write: Write) -> None:
    write("own/start.py", "from . import late\nfrom .parts import near\n")
    before = found()
    for name in ("own/late.py", "own/parts/far.py"):
        write(name, "x = 2\n")
        assert found() != before
        before = found()


def test_a_digest_is_kept_until_a_file_or_a_library_changes(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    real = subject._Search
    monkeypatch.setattr(subject, "_Search", lambda *args: searched.append(args) or real(*args))
    before = found()
    assert (found(), len(searched)) == (before, 2), "files that were written just now may change again unseen"
    monkeypatch.setattr(file_states, "SETTLED_NS", -(10**15))
    assert [found(), found(), len(searched)] == [before, before, 3]
    for change in (
        lambda: write("own/parts/far.py", 'far = "for"\n'),
        lambda: write("own/tables/second.json", "{}\n"),
        lambda: (tmp_path / "site/more-1.dist-info").mkdir(),
        lambda: next(cache_path("code").iterdir()).write_text("{"),
    ):
        change()
        searched.clear()
        assert (found(), len(searched)) == (found(), 1)


def test_a_process_keeps_no_digest_of_files_that_have_changed_since_it_read_them(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = found()
    monkeypatch.setattr(file_states, "SETTLED_NS", -(10**15))
    write("own/parts/far.py", 'far = "for"\n')
    subject._found.clear()
    assert code_digest("own.start") == before, "what this process has imported"
    assert found() != before


def test_a_module_that_was_imported_again_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "edited_step.py").write_text("import edited_part\n")
    (tmp_path / "edited_part.py").write_text("x = 1\n")
    for name in ("edited_part", "edited_step"):
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    before = code_digest("edited_step")
    (tmp_path / "edited_part.py").write_text("x = 22\n")
    assert code_digest("edited_step") == before, "it still runs the code that it has imported"
    importlib.reload(sys.modules["edited_part"])
    after = code_digest("edited_step")
    assert after != before
    (tmp_path / "edited_step.py").write_text("import edited_part, json\n")
    assert code_digest("edited_step") == after


def test_modules_can_be_left_out(write: Write) -> None:
    forget()
    whole, part = code_digest("own.start"), code_digest("own.start", ("own.parts.",))
    assert part.sha256 != whole.sha256
    write("own/parts/far.py", 'far = "for"\n')
    forget()
    assert code_digest("own.start", ("own.parts.",)) == part
    assert code_digest("own.start") != whole


def test_code_without_a_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typed_in", ModuleType("typed_in"))
    with pytest.raises(UsageError, match="typed_in"):
        found("typed_in")


STEPS = ("adding", "cleaning", "decontaminate", "duplicates", "erase", "labels.agreement", "mix", "pii.steps")


@pytest.mark.parametrize("step", STEPS)
def test_the_steps_of_aifx(step: str) -> None:
    """A step does not import what runs it, reports it or trains on it, so that changes of that remake nothing."""
    module = f"aifx.curation.{step}"
    search = subject._Search(module, Path(str(importlib.import_module(module).__file__)))
    assert {"aifx.curation.step", "aifx.data.versions.shards"} <= search.digests.keys()
    others = ("aifx.curation.execution", "aifx.data.versions.lineage", "aifx.core.version", "aifx.runs", "aifx.tasks")
    assert not [name for name in search.digests if name.startswith(others)]
    assert "pyarrow" in search.libraries()
    if step == "erase":
        assert "aifx.data.readers.sources" not in search.digests, "it reads shards and no files of a user"
    if step == "pii.steps":
        assert {"aifx.curation.pii:api_keys.toml", "aifx.curation.pii:national_ids.toml"} <= search.digests.keys()
        assert {"phonenumbers", "python-stdnum"} <= search.libraries().keys()

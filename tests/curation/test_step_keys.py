"""A step runs again if its code has changed, and not because aifx has another version."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from toy_steps import Rows, WithoutLetter

from aifx.core import code_digest as codes
from aifx.core import version
from aifx.core.code_digest import code_digest
from aifx.core.stores import open_store
from aifx.curation import execution, history
from aifx.curation.execution import execute, step_key, work_folder
from aifx.curation.step import Limits
from aifx.data.versions import lineage
from aifx.data.versions.catalog import Catalog, check_files, open_catalog
from aifx.data.versions.lineage import STEP_FACET

LIMITS = Limits(1 << 30, 1)
STEP = """
from dataclasses import dataclass
from aifx.curation.step import Outcome, ShardStep
import upper_words

@dataclass(frozen=True)
class Upper(ShardStep):
    name = "upper"
    settings = property(lambda self: {})

    def apply(self, rows, work):
        return Outcome(upper_words.upper(rows))
"""
UPPER = """
import pyarrow.compute as pc

def upper(rows):
    return rows.set_column(rows.column_names.index("text"), "text", pc.utf8_upper(rows["text"]))
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def upper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a step whose work is done by code in another module."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "upper_step.py").write_text(STEP)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported(code: str) -> ModuleType:
        (folder / "upper_words.py").write_text(code)
        for name in ("upper_step", "upper_words"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        codes._found.clear()
        codes._read_modules.clear()
        return importlib.import_module("upper_step")

    return imported


def test_another_version_of_aifx_remakes_nothing(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = execute(Rows((), (("a cat", "a dog"),)), "pets", catalog, LIMITS).version
    step = WithoutLetter((parent,), "d")
    key, made = step_key(step), execute(step, "pets", catalog, LIMITS)
    for module in (version, execution, lineage):
        monkeypatch.setattr(module, "__version__", "99.0")
    codes._found.clear()
    assert step_key(step) == key
    again = execute(step, "pets", catalog, LIMITS)
    assert (again.version.path, again.is_new) == (made.version.path, False)


@pytest.mark.parametrize("root", ["datasets", pytest.param("memory://step-keys", marks=pytest.mark.slow)])
def test_other_code_runs_again_and_makes_the_same_version_of_the_same_rows(
    root: str, tmp_path: Path, upper: Callable[[str], ModuleType]
) -> None:
    """Versions made of the version are not made again. A third time, the code is known to have made these rows."""
    catalog = open_catalog(root if "://" in root else str(tmp_path / root))
    parent = execute(Rows((), (("a cat", "a dog"),)), "pets", catalog, LIMITS).version
    step = upper(UPPER).Upper((parent,))
    key = step_key(step)
    first = execute(step, "pets", catalog, LIMITS)
    child = execute(WithoutLetter((first.version,), "D"), "pets", catalog, LIMITS)
    assert not execute(upper(UPPER + "# faster\n").Upper((parent,)), "pets", catalog, LIMITS).is_new

    other = upper(UPPER.replace("pc.utf8_upper(", "pc.ascii_upper(")).Upper((parent,))
    assert step_key(other) != key
    again = execute(other, "pets", catalog, LIMITS)
    assert (again.version.manifest, again.is_new) == (first.version.manifest, True)
    assert not execute(other, "pets", catalog, LIMITS).is_new
    assert not execute(WithoutLetter((again.version,), "D"), "pets", catalog, LIMITS).is_new
    events = lineage.read_lineage(catalog, again.version.manifest.whole_reference)
    itself = execute(type(other)((again.version,)), "pets", catalog, LIMITS)
    assert (itself.version.manifest, itself.is_new) == (again.version.manifest, False)
    assert lineage.read_lineage(catalog, again.version.manifest.whole_reference) == events, "nothing is made of itself"
    store = open_store(f"{catalog.store.url}/{again.version.reference.replace('@', '/')}")
    assert check_files(store, "pets", again.version.manifest.version).damages == ()

    wrong = execute(upper(UPPER.replace("utf8_upper", "utf8_reverse")).Upper((parent,)), "pets", catalog, LIMITS)
    assert wrong.is_new
    assert wrong.version.reference not in (first.version.reference, child.version.reference)


def test_documents_have_the_code_and_the_whole_key(catalog: Catalog, tmp_path: Path) -> None:
    step = Rows((), (("a cat", "a dog"),))
    key, code = step_key(step), code_digest("toy_steps")
    assert len(key) == len(code.sha256) == 64
    assert work_folder(step, "pets", catalog) == tmp_path / f"datasets/pets/.work-{key}"
    made = execute(step, "pets", catalog, LIMITS).version
    document = json.loads((made.path / "manifest.json").read_text())
    assert document["content"]["step"] == {"name": "rows", "settings": {"texts": [["a cat", "a dog"]]}}
    notes = {
        "name": "pets",
        "aifx": version.__version__,
        "code": {"sha256": code.sha256, "libraries": dict(code.libraries)},
        "elsewhere": {},
    }
    assert document["notes"] == notes
    (event,) = lineage.read_lineage(catalog, made.manifest.whole_reference)
    facet = event["job"]["facets"][STEP_FACET]
    assert (facet["key"], facet["code"], facet["aifx"]) == (key, notes["code"], version.__version__)
    (listed,) = history.lineage_of(catalog, "pets", None).versions
    assert (listed.code, listed.aifx) == (code.sha256, version.__version__)

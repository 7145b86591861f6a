"""Every command has a page, and the reference on it is generated. `make docs` checks links and the navigation."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_command_is_on_one_page(site: ModuleType) -> None:
    documented = [name for page in PAGES for name in site.MARKER.findall(page.read_text())]
    assert sorted(documented) == sorted(name for name, _ in site.commands())


def test_the_page_of_interfaces_has_each_of_them(site: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    names = importlib.import_module("interfaces").interface_names(ROOT)
    page = (ROOT / "docs/interfaces.md").read_text()
    assert sorted(site.INTERFACE_MARKER.findall(page)) == sorted(names)
    assert re.findall(r"^### (\w+)\n\n<!-- interface: (\w+) -->$", page, re.M) == [
        (name, name) for name in site.INTERFACE_MARKER.findall(page)
    ]


@pytest.mark.slow
def test_the_reference_of_an_interface_comes_from_the_code(site: ModuleType) -> None:
    page = site.with_references("<!-- interface: Hook -->\n")
    assert "Class in `aifx.training.hook`." in page
    assert "| `pauses(step: int) -> bool` | Whether the run pauses after `step`. |  |" in page
    implemented, called = (re.findall(r"`(.*?)`", line) for line in page.splitlines() if line.startswith("**"))
    assert "aifx.training.hooks.validation.Validation" in implemented, "it derives from the class"
    assert "aifx.training.loop" in called
    protocol = site.with_references("<!-- interface: Sequences -->\n")
    assert re.search(r"^\| `write\(.*\) -> None` \| .* \| yes \|$", protocol, re.M)
    assert "`aifx.data.text.StreamSequences`" in protocol, "it has the method"
    with pytest.raises(KeyError):
        site.with_references("<!-- interface: Nothing -->")


@pytest.mark.slow
def test_each_page_is_generated_with_the_options_of_its_commands(site: ModuleType) -> None:
    known = dict(site.commands())
    for page in PAGES:
        source = page.read_text()
        generated = site.with_references(source)
        assert not re.search("<!-- (reference|interface):", generated), page.name
        for name in site.MARKER.findall(source):
            assert f"$ {name}" in generated
            for parameter in known[name].params:
                if not getattr(parameter, "hidden", False) and parameter.opts[0].startswith("--"):
                    assert re.search(rf"^\| `(?:-\w, )?{parameter.opts[0]}\b", generated, re.MULTILINE), (
                        name,
                        parameter,
                    )


def test_a_reference_shows_defaults_and_escapes_the_table(site: ModuleType) -> None:
    page = site.with_references("<!-- reference: aifx bench gate -->\n")
    assert "| `--max-regression SHARE` |" in page
    assert "| 5% |" in page
    assert site.table(("a", "b"), [("x|y", "<p> *")]).splitlines()[-1] == r"| `x\|y` | &lt;p> \* |"
    with pytest.raises(KeyError):
        site.with_references("<!-- reference: aifx nothing -->")


def test_each_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(nav)))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES} <= listed


@pytest.mark.parametrize(
    ("text", "external"),
    [
        ('<script src="https://cdn.example/x.js">', True),
        ("<img src=//cdn.example/x.png>", True),
        ('<link rel="stylesheet" href="https://fonts.example/css">', True),
        ("@font-face{src:url(https://fonts.example/a.woff2)}", True),
        ('<a href="https://example.com">', False),
        ('<script src="assets/x.js">', False),
    ],
)
def test_what_a_page_would_load_from_a_network_is_found(site: ModuleType, text: str, external: bool) -> None:
    assert bool(site.EXTERNAL.search(text)) is external

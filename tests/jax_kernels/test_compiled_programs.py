"""A program is due if its source or a compiler changed since it compiled."""

from __future__ import annotations

from typing import Any

import compiled_programs
import pytest
from compiled_programs import (
    HERE,
    ROOT,
    all_programs,
    code_of,
    due_programs,
    record,
    source_files,
    sources_digest,
    versions,
)

NOW = "3.13.5"
SOURCE = '''"""What it does."""

from math import pi

LIMIT = 3
"""Of rows."""


def area(r: float) -> float:
    """Of a circle."""
    text = "# not a comment"
    return pi * r * r if text else 0.0  # squared
'''


def entry(program: str, *, outcome: str = "passed", python: str = NOW) -> dict[str, Any]:
    """A line of the journal."""
    sources = sources_digest(*program.partition(" for ")[0].split(", "))
    test = f"tests/jax_kernels/test_absent_hardware.py::test_a_kernel_compiles[{program}]"
    return {"test": test, "python": python, "outcome": outcome, "properties": {"sources": sources}}


def test_sources_are_an_implementation_and_what_it_imports() -> None:
    attention = ROOT / "jax_kernels" / "_ops" / "attention"
    mosaic = source_files("attention", "pallas_mosaic_gpu")
    for path in (
        *attention.glob("pallas_mosaic_gpu/*.py"),
        attention / "__init__.py",
        attention / "cases.py",
        attention / "call.py",
        attention / "mask.py",  # which only `call` imports
        ROOT / "jax_kernels" / "implementations.py",
        ROOT / "jax_kernels" / "versions.py",  # which only `implementations` imports
        HERE / "ptx.py",
    ):
        assert path in mosaic, path
    others = [path for path in mosaic if {"pallas_triton", "pallas_tpu", "cudnn.py", "tuning.py"} & set(path.parts)]
    assert others == []
    for op, implementation in {(x.op, x.implementation) for x in all_programs(NOW)}:
        assert any(implementation in path.as_posix() for path in source_files(op, implementation))


def test_a_changed_source_makes_its_programs_due(monkeypatch: pytest.MonkeyPatch) -> None:
    programs, here = all_programs(NOW, every=False), versions(NOW)
    fine, failed = [x for x in programs if x.group == "swiglu, pallas_tpu"][:2]
    table = record(
        [entry(fine.name), entry(failed.name, outcome="failed"), entry("swiglu, pallas_tpu for v5e, gone")], {}
    )
    assert set(programs) - set(due_programs(programs, here, table)) == {fine}
    assert due_programs(programs, "jax 2", table) == programs
    monkeypatch.setattr(compiled_programs, "sources_digest", lambda op, implementation: "another")
    assert due_programs(programs, here, table) == programs


def test_a_record_keeps_what_still_holds() -> None:
    first, second = [x for x in all_programs(NOW, every=False) if x.group == "swiglu, pallas_tpu"][:2]
    newest, oldest = versions(NOW), versions("3.11.7")
    stale = {"sources": "old", "programs": [second.name]}
    before = {"jax 0": {}, newest: {first.group: stale, "an op, that is gone": stale}}
    assert due_programs([first, second], newest, before) == [first, second]
    table = record([entry(first.name, python="3.11.7")], before)
    assert table.keys() == {newest, oldest}
    assert table[newest].keys() == {first.group}
    table = record([entry(second.name, python="3.11.7")], table)
    assert table[oldest][first.group]["programs"] == sorted([first.name, second.name])
    table = record([entry(first.name)], table)
    assert table[newest][first.group]["programs"] == [first.name]


def test_versions_are_those_of_the_locks() -> None:
    oldest, newest = versions("3.11"), versions(NOW)
    assert "jax 0.10.2, jaxlib 0.10.2" in oldest
    assert newest != oldest
    assert newest == versions("3.12.1")


def test_prose_does_not_count_as_source() -> None:
    code = code_of(SOURCE)
    assert code.splitlines() == [
        "from math import pi",
        "LIMIT = 3",
        "def area(r: float) -> float:",
        '    text = "# not a comment"',
        "    return pi * r * r if text else 0.0",
    ]
    assert code_of(SOURCE.replace("Of a circle", "Of\n    a disc").replace("  # squared", "")) == code
    assert code_of(SOURCE.replace("LIMIT = 3", "LIMIT = 4")) != code

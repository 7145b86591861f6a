"""A program is compiled again if its source or a compiler changed, and otherwise in one commit of eight."""

from __future__ import annotations

from pathlib import Path

import compiled_programs
import pytest
from compiled_programs import (
    HERE,
    ROOT,
    TARGETS,
    all_programs,
    due_programs,
    in_sample,
    record,
    source_files,
    sources_digest,
    versions,
)

HERE_AND_NOW = "jax 1"


def report(path: Path, *cases: str) -> Path:
    """A report as pytest writes it; cases that begin with "-" failed."""
    lines = []
    for case in cases:
        program = case.removeprefix("-")
        digest = sources_digest(*program.partition(" for ")[0].split(", "))
        outcome = '<failure message="no"/>' if case.startswith("-") else ""
        properties = f'<properties><property name="sources" value="{digest}"/></properties>'
        lines.append(f'<testcase name="test_a_kernel_compiles[{program}]">{properties}{outcome}</testcase>')
    path.write_text(f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>")
    return path


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
    for op, implementation in {(x.op, x.implementation) for x in all_programs()}:
        assert any(implementation in path.as_posix() for path in source_files(op, implementation))


def test_a_changed_source_makes_its_programs_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = all_programs(every=False, fewer=False)
    fine, failed = [x for x in programs if x.group == "swiglu, pallas_tpu"][:2]
    table = record(
        [report(tmp_path / "report.xml", fine.name, f"-{failed.name}", "swiglu, pallas_tpu for v5e, gone")],
        {},
        HERE_AND_NOW,
    )
    assert set(programs) - set(due_programs(programs, HERE_AND_NOW, table)) == {fine}
    assert due_programs(programs, "jax 2", table) == programs
    monkeypatch.setattr(compiled_programs, "sources_digest", lambda op, implementation: "another")
    assert due_programs(programs, HERE_AND_NOW, table) == programs


def test_a_record_keeps_what_still_holds(tmp_path: Path) -> None:
    first, second = [x for x in all_programs(every=False, fewer=False) if x.group == "swiglu, pallas_tpu"][:2]
    stale = {"sources": "old", "programs": [second.name]}
    newest = versions("3.13.0")
    before = {"jax 0": {}, newest: {first.group: stale, "an op, that is gone": stale}}
    assert due_programs([first, second], newest, before) == [first, second]
    table = record([report(tmp_path / "1.xml", first.name)], before, HERE_AND_NOW)
    assert table.keys() == {newest, HERE_AND_NOW}
    assert table[newest].keys() == {first.group}
    table = record([report(tmp_path / "2.xml", second.name)], table, HERE_AND_NOW)
    assert table[HERE_AND_NOW][first.group]["programs"] == sorted([first.name, second.name])
    table = record([report(tmp_path / "3.xml", first.name)], table, newest)
    assert table[newest][first.group]["programs"] == [first.name]


def test_versions_are_those_of_the_locks() -> None:
    oldest, newest = versions("3.11"), versions("3.13.5")
    assert "jax 0.10.2, jaxlib 0.10.2" in oldest
    assert newest != oldest
    assert newest == versions("3.12.1")


def test_a_sample_is_an_eighth_of_the_programs() -> None:
    programs = all_programs(every=False, fewer=False)
    samples = [{x for x in programs if in_sample(x, f"{commit:040x}")} for commit in range(100)]
    assert all(len(programs) / 16 < len(sample) < len(programs) / 4 for sample in samples)
    assert set.union(*samples) == set(programs)
    assert {x.implementation for x in programs} == set(TARGETS)

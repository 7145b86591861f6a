"""Each rule fires where it should, and is then the finding that a person wants first; a healthy machine has none.

What a rule cannot read is unknown, and not healthy.
"""

import operator
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from documented import blocks
from health_trees import (
    Case,
    MachineFolder,
    cases,
    changed,
    machines,
    mutated,
    report_of,
    snapshot_of,
    snapshot_of_case,
)

from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.rules import Site, load_rules, read_site
from aifx.health.snapshot import Snapshot

RULES = load_rules()


def _cases() -> Iterator[Any]:
    """All cases; slow are all but the first of each family of rules on each machine."""
    seen = set[tuple[str, str]]()
    for case in cases():
        family = case.rule.partition(".")[0], case.machine
        name = f"{case.rule} on {case.machine}"
        yield pytest.param(case, id=name, marks=[pytest.mark.slow] if family in seen else [])
        seen.add(family)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[MachineFolder, MachineFolder]]:
    """For each machine one for now and one for the earlier reading: its cases differ in few files."""
    folder = tmp_path_factory.mktemp("machines")
    return {
        name: (MachineFolder(folder / name / "now"), MachineFolder(folder / name / "before")) for name in machines()
    }


@pytest.fixture(scope="module", params=_cases())
def broken(
    request: pytest.FixtureRequest, folders: dict[str, tuple[MachineFolder, MachineFolder]]
) -> tuple[Case, Snapshot]:
    """A case, and the snapshot of a machine on which it went wrong."""
    case: Case = request.param
    return case, snapshot_of_case(case, *folders[case.machine])


def test_a_rule_fires_and_comes_first(broken):
    case, snapshot = broken
    report = report_of(snapshot, case.site)
    assert report.findings, f"nothing was found; skipped: {report.skipped}"
    first = report.findings[0]
    assert first.id == case.rule, [(f.id, f.severity, f.summary) for f in report.findings]
    assert first.severity == RULES[case.rule].severity
    for text in (first.summary, first.evidence, first.threshold, first.source, first.action):
        assert text
        assert "?" not in text
    for command in re.findall("`[^`]*`", first.action):
        assert not re.search(r"\d,\d{3}\b", command), "what is to be typed has no separators of thousands"


def test_what_is_gone_or_nonsense_is_unknown(broken):
    """Each signal that a rule reads, where it fires: what it looks at, what makes it apply, what it compares with."""
    case, snapshot = broken
    site = Site.model_validate(case.site)
    rule = load_rules(site)[case.rule]
    (fired, *_) = evaluate_rules([rule], snapshot, site).findings
    limits = [limit["signal"] for limit in rule.fails_if.values() if isinstance(limit, dict)]
    device = next(way for way, name in devices(snapshot.facts, rule.for_each) if name == fired.device)
    for signal in (rule.signal, *rule.applies_if, *limits):
        if "expected." in signal:  # the site's own word
            continue
        for word in (..., None, {"a": 1}, [], "\x00 nonsense", float("nan"), -1e300):
            if word == [] and "lacks" in rule.applies_if.get(signal, {}):  # it does lack it
                continue
            damaged = mutated(snapshot.facts, _way(device, signal), word)
            found = evaluate_rules([rule], replace(snapshot, facts=damaged), site).findings
            # What a site's file names may be any text, and another text is another.
            answers = {"unknown", rule.severity} if case.rule == "nvidia.driver.expected" else {"unknown"}
            assert answers & {f.severity for f in found if f.device == fired.device}, (signal, word)


def devices(facts, for_each):
    """The way to each device of a list, and its name in findings; lists on the way are gone through as well."""
    found = [((), "")]
    for key in for_each.split(".") if for_each else ():
        inner = [((*way, key), name, _at(facts, way)[key]) for way, name in found]
        lists = [(way, name, value) for way, name, value in inner if isinstance(value, list)]
        found = [(way, name) for way, name, value in inner if isinstance(value, dict)]
        found += [((*w, i), f"{n} {item['device']}".strip()) for w, n, v in lists for i, item in enumerate(v)]
    return found


def _at(facts, way):
    return reduce(operator.getitem, way, facts)


def _way(device, signal):
    """To a signal of a device."""
    signal = signal.removesuffix("_per_min") if signal != "pcie.replays_allowed_per_min" else signal
    if signal.startswith("node."):
        return tuple(signal.removeprefix("node.").split("."))
    # What a device is part of is one list and one place in it up.
    up = signal.startswith("^.")
    return (*(device[:-2] if up else device), *signal.removeprefix("^.").split("."))


def test_a_folder_that_held_other_trees_holds_no_more_than_a_new_one(tmp_path: Path):
    """Else a case could be found by what the one before left behind."""
    healthy = machines()["server"]()
    kept, new = MachineFolder(tmp_path / "kept"), MachineFolder(tmp_path / "new")
    for case in [case for case in cases() if case.machine == "server"][::15]:
        kept.write(changed(healthy, case.changes))
    for folder in (kept, new):
        folder.write(healthy)
    found, expected = ({p.relative_to(f.path): p for p in f.path.rglob("*")} for f in (kept, new))
    assert found.keys() == expected.keys()
    assert all(p.is_symlink() == expected[name].is_symlink() for name, p in found.items())
    assert all(p.read_text() == expected[name].read_text() for name, p in found.items() if p.is_file())


def test_each_rule_has_a_case():
    assert {case.rule for case in cases()} == set(RULES)


@pytest.mark.parametrize("name", machines())
def test_a_healthy_machine_has_no_finding(name: str, tmp_path):
    """Also not where rates are formed, between two readings that are alike."""
    tree = machines()[name]()
    snapshot = snapshot_of(tree, tmp_path)
    assert report_of(snapshot).findings == ()
    later = snapshot_of(tree, tmp_path, snapshot.time + 600).since(snapshot)
    assert later.before is not None
    assert report_of(later).findings == ()


def test_every_expected_figure_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "doctor-rules.md").read_text()
    asked = {path.removeprefix("expected.") for rule in RULES.values() for path in rule.paths() if "expected." in path}
    assert asked
    assert not {name for name in asked if f"`{name}`" not in page}


def test_the_documented_rule(tmp_path: Path):
    own, _ = blocks("own-rule", "toml")
    (tmp_path / "health.toml").write_text(own)
    site = read_site(tmp_path / "health.toml")
    assert load_rules(site)["cpu.governor.slow"].severity == "info"
    name, make = next(iter(machines().items()))
    snapshot = snapshot_of(make(), tmp_path / name)
    release = snapshot.facts["kernel"]["release"]
    other = mutated(snapshot.facts, ("kernel", "release"), f"{release}-other")
    (finding,) = evaluate_rules(load_rules(site).values(), replace(snapshot, facts=other), site).findings
    assert (finding.id, finding.severity) == ("site.kernel.release", "warning")
    assert f"{release}-other" in finding.summary


ASK_A_DEVICE = ("mlxlink", "ibstat", "perfquery", "sminfo", "ethtool", "smartctl", "nvme", "e2fsck", "setpci")


def test_a_command_names_the_device():
    commands = [(r.id, c) for r in RULES.values() if r.for_each for c in re.findall("`([^`]*)`", r.action)]
    assert len(commands) > 40
    assert not [(rule, c) for rule, c in commands if c.split()[0] in ASK_A_DEVICE and "{" not in c]
    assert not [(rule, c) for rule, c in commands if re.search(r"\b(DEVICE|BRIDGE|cpuN|nvmeX)\b", c)]


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_words_that_a_signal_can_be_are_listed(rule):
    """Else nonsense would pass for healthy where a word is compared."""
    limits = [limit for name, limit in rule.fails_if.items() if name not in ("matches", "not_empty")]
    compared = [w for limit in limits for w in (limit if isinstance(limit, list) else [limit]) if isinstance(w, str)]
    assert not compared or rule.known is not None
    assert set(compared) <= set(rule.known or ())

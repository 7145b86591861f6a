"""Each rule fires where it should, and is then the finding that a person wants first; a healthy machine has none."""

import re
from pathlib import Path

import pytest
from health_trees import Case, cases, machines, report_of, report_of_case, snapshot_of

from aifx.health.rules import load_rules

RULES = load_rules()


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.rule} on {case.machine}")
def test_a_rule_fires_and_comes_first(case: Case, tmp_path):
    report = report_of_case(case, tmp_path)
    assert report.findings, f"nothing was found; skipped: {report.skipped}"
    first = report.findings[0]
    assert first.id == case.rule, [(f.id, f.severity, f.summary) for f in report.findings]
    assert first.severity == RULES[case.rule].severity
    for text in (first.summary, first.evidence, first.threshold, first.source, first.action):
        assert text
        assert "?" not in text
    for command in re.findall("`[^`]*`", first.action):
        assert not re.search(r"\d,\d{3}\b", command), "what is to be typed has no thousands set apart"


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
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    asked = {path.removeprefix("expected.") for rule in RULES.values() for path in rule.paths() if "expected." in path}
    assert asked
    assert not {name for name in asked if f"`{name}`" not in page}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_words_that_a_signal_can_be_are_listed(rule):
    """Else nonsense would pass for healthy where a word is compared."""
    limits = [limit for name, limit in rule.fails_if.items() if name not in ("matches", "not_empty")]
    compared = [w for limit in limits for w in (limit if isinstance(limit, list) else [limit]) if isinstance(w, str)]
    assert not compared or rule.known is not None
    assert set(compared) <= set(rule.known or ())

"""Licences that exclude each other, as SPDX expressions; the table, compared with what its sources say."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from license_expression import get_spdx_licensing

from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data.versions.licenses import check_allowed, choices, find_conflict, rules

CC_ELEMENTS = ("BY", "BY-SA", "BY-NC", "BY-ND", "BY-NC-SA", "BY-NC-ND")


def excludes(one: str, other: str) -> bool:
    found = find_conflict(one, other)
    assert (found is None) == (find_conflict(other, one) is None)
    return found is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("GPL-2.0-only", "GPL-3.0-only"),
        ("GPL-2.0-only", "GPL-3.0-or-later"),
        ("GPL-2.0-only", "LGPL-3.0-or-later"),
        ("GPL-2.0-only", "AGPL-3.0-only"),
        ("GPL-2.0-only", "Apache-2.0"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-3.0-only"),
        ("GPL-3.0-or-later", "CDDL-1.0"),
        ("GPL-3.0-only", "ODbL-1.0"),
        ("GPL-2.0-or-later", "CC-BY-SA-3.0-DE"),
        ("CC-BY-SA-4.0", "GPL-2.0-only"),
        ("CC-BY-SA-4.0", "ODbL-1.0"),
        ("CC-BY-SA-1.0", "CC-BY-SA-3.0"),
        ("CDLA-Sharing-1.0", "ODbL-1.0"),
        ("CC-BY-NC-4.0", "ODbL-1.0"),
        ("MIT", "CC-BY-ND-4.0"),
        ("MIT AND GPL-2.0-only", "BSD-3-Clause AND GPL-3.0-only"),
        ("GPL-2.0-only OR CDDL-1.0", "GPL-3.0-only"),
        ("GPL-2.0-only AND CDDL-1.1", "GPL-3.0-only OR AGPL-3.0-only"),
    ],
)
def test_licences_exclude_each_other(one: str, other: str) -> None:
    assert excludes(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("BSD-3-Clause", "GPL-2.0-only"),
        ("BSD-3-Clause", "GPL-3.0-only"),
        ("GPL-2.0-or-later", "GPL-3.0-only"),
        ("GPL-2.0-or-later", "GPL-2.0-only"),
        ("GPL-2.0-or-later", "Apache-2.0"),
        ("LGPL-2.1-or-later", "GPL-3.0-only"),
        ("GPL-3.0-only", "AGPL-3.0-only"),
        ("GPL-3.0-only", "Apache-2.0"),
        ("GPL-2.0-only", "Apache-2.0 WITH LLVM-exception"),
        ("GPL-2.0-only OR MIT", "GPL-3.0-only"),
        ("GPL-2.0-only", "MIT OR GPL-3.0-only"),
        ("CC-BY-SA-4.0 OR GFDL-1.3-or-later", "CC-BY-SA-3.0"),
        ("CC-BY-4.0", "GPL-2.0-only"),
        ("CC-BY-SA-4.0", "GPL-3.0-only"),
        ("CC-BY-SA-2.0", "CC-BY-SA-4.0"),
        ("CC0-1.0", "CC-BY-NC-SA-4.0"),
        ("ODbL-1.0", "CC0-1.0"),
        ("CC-BY-ND-4.0", "CC-BY-ND-4.0"),
        ("LicenseRef-ours", "GPL-2.0-only"),
        ("MPL-2.0", "GPL-2.0-only"),
    ],
)
def test_licences_that_go_together(one: str, other: str) -> None:
    assert not excludes(one, other)


def test_the_creative_commons_are_as_their_chart_has_them() -> None:
    """The chart of the FAQ: https://creativecommons.org/faq/."""
    for one in CC_ELEMENTS:
        for other in CC_ELEMENTS:
            is_remix = "ND" not in f"{one}-{other}" and not ({one, other} > {"BY-SA"} and "NC" in f"{one}-{other}")
            if one != other:
                assert excludes(f"CC-{one}-4.0", f"CC-{other}-4.0") != is_remix, (one, other)


def test_a_choice_is_of_whole_sets() -> None:
    assert set(choices("(MIT OR GPL-2.0-or-later) AND Zlib")) == {
        frozenset({"MIT", "Zlib"}),
        frozenset({"GPL-2.0-only", "Zlib"}),
        frozenset({"GPL-3.0-only", "Zlib"}),
    }
    many = " AND ".join(f"(LicenseRef-a{n} OR LicenseRef-b{n})" for n in range(40))
    assert not excludes(many, "GPL-2.0-only")


def test_each_rule_is_of_licences_that_spdx_lists_and_has_a_source() -> None:
    known = set(get_spdx_licensing().known_symbols)
    for rule in rules():
        assert rule.source.startswith("https://"), rule
        assert rule.why
        for name in (*rule.licenses, *rule.others, *rule.unless):
            if not set(name) & set("*["):
                assert name in known, name
            else:
                assert any(fnmatchcase(license, name) for license in known), name


def test_a_project_allows_what_it_names(tmp_path: Path) -> None:
    project = Project(tmp_path, license_allow=("MIT", "GPL-2.0-or-later", "CC-BY-4.0"))
    for license in ("MIT", "GPL-2.0-or-later", "GPL-3.0-only", "MIT AND CC-BY-4.0", "Zlib OR MIT", "MIT WITH x"):
        check_allowed({license: ["a.txt"]}, project)
    for license in ("Apache-2.0", "MIT AND Zlib", "GPL-1.0-only", "unknown", "LicenseRef-x"):
        with pytest.raises(DataError, match=r"a\.txt is not allowed"):
            check_allowed({license: ["a.txt"]}, project)
    check_allowed({"unknown": ["a.txt"]}, Project(project.root, license_allow=("unknown",)))
    check_allowed({"unknown": ["a.txt"]}, Project(project.root))
    with pytest.raises(ConfigError, match="license_allow has 'MITT'"):
        check_allowed({"MIT": ["a.txt"]}, Project(project.root, license_allow=("MITT",)))

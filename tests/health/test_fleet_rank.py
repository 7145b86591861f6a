"""The expected cost of bad nodes, and the report of a fleet. Pure."""

import json
import math
import random

import pytest
from fleets import facts_of_a_node, finding, node

from aifx.core.errors import ConfigError, DataError
from aifx.health.fleet.assess import assess, named
from aifx.health.fleet.rank import interrupts, load_table, rank
from aifx.health.fleet.report import Node, grouped, node_of
from aifx.health.fleet.transports import _receive
from aifx.health.report import Report
from aifx.health.rules import FleetSite, Site, fits, load_rules, read_site

GPUS = {"gpus": [{"device": f"gpu{i}"} for i in range(8)]}


def test_the_formula():
    site = FleetSite(job_gpus=1024, hours_to_recover=2.0, probability={"a": 0.5, "b": 0.2})
    nodes = [node("n1", GPUS, finding("a.x.y"), finding("a.x.z"), finding("b.x.y"))]
    (suspect,) = rank(nodes, [], site)
    assert suspect.probability == pytest.approx(1 - (1 - 0.5) * (1 - 0.2))  # of the family a one counts
    assert suspect.lost_gpu_hours == pytest.approx(suspect.probability * 1024 * 2.0)
    assert [cause.id for cause in suspect.causes] == ["a.x.y", "b.x.y"]
    assert suspect.action == "fix a.x.y"
    assert {cause.source for cause in suspect.causes} == {"the site's file"}


def test_a_longer_horizon_makes_an_interruption_likelier():
    day, week = (interrupts(finding("a.b"), FleetSite(horizon_h=h))[0] for h in (24.0, 168.0))
    assert week == pytest.approx(1 - (1 - day) ** 7)


def test_the_most_expensive_comes_first_and_the_healthy_not_at_all():
    silent = finding("fleet.node.silent", device="n3")
    nodes = [
        node("n1", GPUS, finding("a.b", "warning")),
        node("n2", GPUS),
        Node("n3", why="no answer", is_silent=True),
        node("n4", GPUS, finding("stress.consistency.differs")),
        node("n5", GPUS, finding("a.b", "info")),
    ]
    assert [suspect.node for suspect in rank(nodes, [silent])] == ["n4", "n3", "n1"]


def test_a_job_holds_all_gpus_unless_the_site_says_otherwise():
    nodes = [node("n1", GPUS, finding("a.b")), node("n2", GPUS)]
    assert rank(nodes, [])[0].job_gpus == 16
    assert rank([node("n1", None, finding("a.b"))], [])[0].job_gpus == 1
    assert rank(nodes, [], FleetSite(job_gpus=4096))[0].job_gpus == 4096


def test_the_narrowest_entry_counts():
    site = FleetSite(probability={"nvidia": 0.1, "nvidia.rows.failed": 0.9, "nvidia.rows": 0.4})
    assert interrupts(finding("nvidia.rows.failed"), site)[0] == pytest.approx(0.9)
    assert interrupts(finding("nvidia.rows.pending"), site)[0] == pytest.approx(0.4)
    assert interrupts(finding("nvidia.gpu.lost"), site)[0] == pytest.approx(0.1)


def test_each_entry_of_the_table_is_of_a_rule_and_has_a_source():
    ids = [*load_rules(), *(f.id for f in _across())]
    for entry in load_table().finding:
        assert entry.source
        assert any(fits(name, entry.id) for name in ids), entry.id


def _across():
    from aifx.health.tables import across_ids

    return [finding(name) for name in across_ids()]


def test_a_sites_file_can_say_it(tmp_path):
    file = tmp_path / "health.toml"
    file.write_text('[fleet]\njob_gpus = 2048\n[fleet.probability]\n"nvidia.rows.failed" = 0.7\n')
    site = read_site(file)
    assert site.fleet.job_gpus == 2048
    assert interrupts(finding("nvidia.rows.failed"), site.fleet)[0] == pytest.approx(0.7)
    file.write_text("[fleet.probability]\nnvidia = 7\n")
    with pytest.raises(ConfigError, match=r"health\.toml") as error:
        read_site(file)
    assert "fleet.probability.nvidia" in error.value.why


def test_a_fleets_status_is_that_of_its_worst():
    assert assess([node("n1"), node("n2")]).status == "healthy"
    assert assess([node("n1"), node("n2", None, finding("a.b", "warning"))]).status == "warning"
    assert assess([node("n1"), Node("n2", why="no JSON")]).status == "unknown"
    assert assess([node("n1"), Node("n2", why="no answer", is_silent=True)]).status == "unhealthy"
    assert assess([node("n1")], unanswered=["n2"]).status == "unknown"
    assert assess([]).status == "unknown"


def test_a_node_without_a_report_is_listed_and_found():
    report = assess([node("n1"), Node("n2", why="no answer in 5 s", is_silent=True), Node("n3", why="no JSON")])
    assert [(f.id, f.severity, f.device) for f in report.findings] == [
        ("fleet.node.silent", "critical", "n2"),
        ("fleet.node.no_report", "unknown", "n3"),
    ]
    document = report.document()["nodes"][1]
    assert document["status"] == "unknown"
    assert document["skipped"] == [{"id": "*", "why": "no answer in 5 s"}]


def test_only_and_skip_hold_for_nodes_and_across_them():
    nodes = [node("n1", None, finding("cpu.a.b"), finding("memory.a.b")), Node("n2", why="x", is_silent=True)]
    assert [f.id for f in assess(nodes, only=["cpu"]).nodes[0].report.findings] == ["cpu.a.b"]
    assert [f.id for f in assess(nodes, skip=["cpu"]).nodes[0].report.findings] == ["memory.a.b"]
    skipping = Site.model_validate({"skip": [{"id": "memory", "reason": "known"}]})
    assert [f.id for f in assess(nodes, skipping).nodes[0].report.findings] == ["cpu.a.b"]
    assert assess(nodes, only=["cpu"]).findings[0].id == "fleet.node.silent"


def test_agents_nodes_are_called_as_they_call_themselves():
    urls = [Node(f"http://10.0.0.{i}:9470", Report(host, (), ())) for i, host in enumerate(("a", "b", "b", "c"))]
    others = [node("c"), Node("http://10.0.0.9:9470", why="no answer", is_silent=True)]
    names = [one.name for one in named([*urls, *others])]
    assert names == ["a", *(f"http://10.0.0.{i}:9470" for i in (1, 2, 3)), "c", "http://10.0.0.9:9470"]


GOOD = {"schema_version": 1, "host": "n1", "status": "healthy", "findings": [], "skipped": [], "duration_s": 0.1}


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        7,
        "text",
        {},
        GOOD | {"schema_version": 2},
        GOOD | {"findings": None},
        GOOD | {"snapshot": []},
        GOOD | {"snapshot": {"facts": {}}},
        {"schema_version": 1, "error": {"what": "no such file", "why": ""}},
    ],
)
def test_what_is_no_report_is_refused(document):
    with pytest.raises(DataError):
        node_of("n1", document)


NONSENSE = (
    None,
    True,
    0,
    -1,
    10**400,
    1e308,
    math.nan,
    math.inf,
    "",
    "x\x1b[2J",
    [],
    {},
    [[1]],
    [{"a": None}],
    {"a": [1]},
)


def mutated(rng, value):
    """A copy of a document in which something is replaced."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        where = rng.choice(keys)
        changed = mutated(rng, value[where])
        return value | {where: changed} if isinstance(value, dict) else [*value[:where], changed, *value[where + 1 :]]
    return rng.choice(NONSENSE)


@pytest.mark.slow
def test_nonsense_from_a_node_takes_nobody_with_it():
    """Documents with up to five things replaced go all the way from a node's bytes to the page and the table."""
    rng = random.Random(0)
    sent = [{"id": "a.b", "severity": "warning", "device": "", "summary": "s", "evidence": "e"}]
    for _ in range(300):
        nodes: list[Node] = []
        for number in range(6):
            snapshot = {"schema_version": 1, "facts": facts_of_a_node(rng)}
            document = GOOD | {"host": f"n{number}", "findings": sent, "snapshot": snapshot}
            for _ in range(rng.randint(0, 5) if number < 2 else 0):
                document = mutated(rng, document)
            _receive(f"n{number}", json.dumps(document).encode(), 0.1, lambda node, _, nodes=nodes: nodes.append(node))
        assert len(nodes) == 6
        report = assess(nodes)
        assert {node.status for node in report.nodes[2:]} == {"warning"}
        json.dumps(report.document())
        grouped(report)


def test_a_severity_that_is_not_known_is_unknown():
    sent = GOOD | {"findings": [{"id": "a.b", "severity": "catastrophe"}, "nonsense"]}
    (only,) = node_of("n1", sent).report.findings
    assert only.severity == "unknown"


def test_a_nodes_document_is_read_back():
    one = node("n1", None, finding("a.b", "warning", "gpu 3"))
    document = {"schema_version": 1, **one.report.document()}
    assert node_of("n1", document).report == one.report
    assert math.isclose(node_of("n1", document, 1.5).took_s, 1.5)

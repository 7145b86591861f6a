"""The page that is mailed: one file, nothing loaded, nothing run, everything escaped, the worst first."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from aifx.commands.main import run
from aifx.core.errors import EnvironmentFault
from aifx.core.pages import write_page
from aifx.health import page
from aifx.health.fleet.report import Cause, FleetReport, Node, Suspect
from aifx.health.report import Finding, Report, Skipped

NASTY = (
    '</style><script>alert("1")</script><img src="http://evil.example/x.png" onerror=alert(1)>'
    "&amp;{{ 7 * 7 }}\u202e\x1b[31m"
)
IDS = ("cpu.a.b", "tpu.a.b", "tpu.c.d")
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Attributes:
    tags: each element's name and attributes, in order.
    text: what is read.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def finding(severity: str, device: str = "", **texts: str) -> Finding:
    words = {name: f"{severity} {name}" for name in ("summary", "evidence", "threshold", "source", "action")}
    return Finding(f"test.{severity}.rule", severity, device, **(words | texts))


def node(name: str, *findings: Finding) -> Node:
    return Node(name, Report(name, findings, (Skipped("tpu.*", "no TPU here"),)))


def fleet() -> FleetReport:
    bad = node("n2", finding("critical", "gpu3"), finding("info"))
    causes = tuple(Cause(f"c{i}", "gpu3", f"cause {i}", 0.5, "source") for i in range(5))
    return FleetReport(
        (node("n1"), bad, node("n3", finding("warning")), Node("n4", why="no answer in 10 s", is_silent=True)),
        (finding("warning", "n3", summary="another kernel than its peers"),),
        (Suspect("n2", 12.5, 0.75, 8, 2, causes, "drain it"),),
        duration_s=1.5,
    )


def checked(text: str) -> Page:
    """No page may load, run or send anything."""
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    for tag, attributes in found.tags:
        assert tag not in {
            "script",
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "form",
            "video",
            "audio",
            "base",
            "svg",
        }
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset", "action")
        ]
        assert (attributes.get("href") or "#").startswith("#")
    styles = text.partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in styles
    assert "url(" not in styles
    policy = [
        a["content"] for tag, a in found.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"] for _, a in found.tags if "href" in a} <= {f"#{name}" for name in ids}
    return found


def test_a_node_tells_everything_worst_first():
    report = Report("n7", (finding("critical", "gpu3"), finding("warning")), (Skipped("tpu.*", "no TPU here"),), 1.0)
    found = checked(page.node_page(report, IDS, 1_795_600_000.0))
    for one in report.findings:
        for text in (one.id, one.summary, one.evidence, one.threshold, one.source, one.action, one.severity):
            assert text in found.text
    assert found.text.index("critical summary") < found.text.index("warning summary")
    assert "gpu3" in found.text
    assert "2026-11-25" in found.text
    assert [tag for tag, _ in found.tags if tag == "details"] == ["details"]
    assert "no TPU here" in found.text
    assert "3 rules, 2 skipped" in found.text


def test_a_healthy_node_says_so():
    found = checked(page.node_page(Report("n7", (), ()), IDS, 0.0))
    assert "healthy" in found.text
    assert not [tag for tag, _ in found.tags if tag in ("article", "details")]


def test_a_reason_that_keeps_many_rules_from_being_evaluated_is_one_finding():
    many = [finding("unknown", summary=f"r{i} could not be evaluated: NVML hangs") for i in range(30)]
    found = checked(
        page.node_page(Report("n7", tuple(replace(f, id=f"r.{i}.x") for i, f in enumerate(many)), ()), IDS, 0)
    )
    assert found.text.count("NVML hangs") == 1
    assert "r.29.x" in found.text


@pytest.mark.parametrize("where", ["id", "device", "summary", "evidence", "threshold", "source", "action"])
def test_what_a_node_says_is_text_and_nothing_else(where):
    report = Report(NASTY, (replace(finding("critical"), **{where: NASTY}),), (Skipped(NASTY, NASTY),))
    bad = Node(NASTY, report)
    suspect = Suspect(NASTY, 1, 1, 1, 1, (Cause(NASTY, NASTY, NASTY, 1, NASTY),), NASTY)
    silent = Node(f"{NASTY}2", why=NASTY)
    whole = FleetReport((bad, silent), report.findings, (suspect,), (NASTY,))
    for text in (page.node_page(report, IDS, 0), page.fleet_page(whole, 0)):
        found = checked(text)
        assert "<script" not in text
        assert NASTY.rstrip("\u202e\x1b[31m") in found.text
        assert "49" not in found.text
        assert not {"\u202e", "\x1b"} & set(text)


def test_a_fleet_shows_suspects_nodes_and_what_was_found():
    found = checked(page.fleet_page(fleet(), 0))
    for text in (
        "12.5",
        "75 %",
        "drain it",
        "cause 0",
        "another kernel than its peers",
        "no answer in 10 s",
        "1 unhealthy",
    ):
        assert text in found.text
    assert "and 2 more" in found.text
    names = found.text[found.text.index("Nodes\n") :]
    places = [names.index(name) for name in ("n2", "n4", "n3", "n1")]
    assert places == sorted(places)
    opened = [a for tag, a in found.tags if tag == "details" and "open" in a]
    assert [a["id"] for a in opened] == ["node-0", "node-1", "node-2"]
    assert "4 nodes" not in found.text.partition("Skipped")[2]
    assert "(3 nodes)" in found.text


def test_a_fleet_of_one_and_of_none():
    assert "1 node " in checked(page.fleet_page(FleetReport((node("n1"),)), 0)).text
    assert "none answered" in checked(page.fleet_page(FleetReport(()), 0)).text


@pytest.mark.slow
def test_a_large_fleet_makes_a_page_that_can_be_mailed():
    findings = [finding("critical", f"gpu{i}", evidence="x" * 300) for i in range(10)]
    nodes = tuple(node(f"n{i}", *findings[: 10 if i % 2 else 1]) for i in range(1000))
    text = page.fleet_page(FleetReport(nodes), 0)
    assert len(text) < 4e6
    found = checked(text)
    assert f"The findings of {1000 - page.MAX_NODES} more nodes" in found.text
    assert all(f"n{i}" in found.text for i in range(1000))
    assert found.text.count("gpu9") == page.MAX_NODES


def test_the_command_saves_it(tmp_path, capsys):
    record, target = str(tmp_path / "n.json"), tmp_path / "page.html"
    code = run(["doctor", "--only", "cpu", "--record", record])
    printed = capsys.readouterr().out
    assert run(["doctor", "--only", "cpu", "--replay", record, "--html", str(target)]) == code
    found = checked(target.read_text())
    assert printed.partition(":")[0] in found.text
    assert run(["doctor", "--only", "cpu", "--replay", record, "--html", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(EnvironmentFault):
        write_page("", tmp_path / "no" / "folder")

"""`aifx doctor diff` shows what came and went, and leaves out what changes by itself."""

import copy
import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import health_trees
import pytest
from health_trees import Case, cases, machines, report_of, snapshot_of
from test_health_mutations import mutated, paths

from aifx.commands.main import run
from aifx.health.diff import LIMIT, MOMENT, diff, is_nothing
from aifx.health.rules import load_rules
from aifx.health.scope import is_number
from aifx.health.snapshot import parse, write

RULES = load_rules()
COUNTERS = {p.removesuffix("_per_min") for rule in RULES.values() for p in rule.paths() if p.endswith("_per_min")}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return snapshot_of(machines()["server"](), tmp_path_factory.mktemp("diff"))


def one_of_each_family() -> list[Case]:
    plain = [case for case in cases() if case.before is None and not case.site]
    return list({case.rule.partition(".")[0]: case for case in plain}.values())


def changed(snapshot, **facts):
    """The snapshot with other values, by path with `__` for the dot."""
    document = copy.deepcopy(snapshot.document())
    for path, value in facts.items():
        *way, last = path.split("__")
        inner = document["facts"]
        for key in way:
            inner = inner[key]
        inner[last] = value
    return parse(document, "changed")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if n % 3 else c for n, c in enumerate(one_of_each_family())],
    ids=[case.rule for case in one_of_each_family()],
)
def test_a_fault_came_and_after_its_repair_went(case, tmp_path):
    healthy = machines()[case.machine]()
    good = snapshot_of(healthy, tmp_path / "good")
    bad = snapshot_of(health_trees.changed(healthy, case.changes), tmp_path / "bad")
    first = report_of(bad, case.site).findings[0]
    found = diff(good, bad, RULES.values())
    assert found.came[0] == first
    assert found.new_critical == (first.severity == "critical")
    assert found.worse
    back = diff(bad, good, RULES.values())
    assert (back.went[0], back.came, back.worse) == (first, (), False)


@pytest.mark.parametrize("name", machines())
def test_each_fact_is_listed_or_is_noise(name, tmp_path):
    """Every number of every machine made another: one change each, and noise exactly where its name says so."""
    document = snapshot_of(machines()[name](), tmp_path).document()
    before = parse(document, name)
    assert diff(before, before, []).facts == ()
    other, ways, seen = document["facts"], [], set()
    for way in paths(document["facts"]):
        value = value_at(document["facts"], way)
        if not is_number(value) or isinstance(way[-1], int) or any(str(key).startswith("$") for key in way):
            continue
        kind = tuple(key for key in way if isinstance(key, str))
        if kind not in seen:  # otherwise the like of another device
            seen.add(kind)
            ways.append(way)
            other = mutated(other, way, value * 2 + 7)
    kinds = set()
    for way, found in zip(ways, diff(before, replace(before, facts=other), []).facts, strict=True):
        value = value_at(document["facts"], way)
        assert (found.before, found.after) == (value, value * 2 + 7)
        named = next(key for key in reversed(way) if isinstance(key, str))
        assert found.fact.endswith(named)
        moves = not LIMIT.search(named) and any(re.search(pattern, named) for pattern in MOMENT.values())
        kinds.add(bool(found.noise))
        assert found.noise or not moves, found
    assert kinds == {True, False}


def value_at(facts, way):
    return functools.reduce(lambda inner, key: inner[key], way, facts)


def test_what_matters_is_listed_and_what_passes_is_not(server):
    later = changed(
        server, kernel__release="6.8.0-90", cpu__load_1min=99.0, cpu__package_throttles=7, memory__total_gib=943.2
    )
    found = diff(server, later, RULES.values())
    changes = {f.fact: (f.before, f.after) for f in found.facts if not f.noise}
    assert changes["kernel.release"][1] == "6.8.0-90"
    assert changes["memory.total_gib"][1] == 943.2
    assert set(changes) == {"kernel.release", "memory.total_gib"}
    assert {f.fact for f in found.facts if f.noise} == {"cpu.load_1min", "cpu.package_throttles"}
    assert found.rebooted is False
    assert diff(server, changed(server, boot_id="another"), []).rebooted is True
    nearly = changed(server, memory__total_gib=server.facts["memory"]["total_gib"] * 1.001)
    assert diff(server, nearly, []).facts == ()


MATTERS = [
    "nvidia.count",
    "gpu_count.pci",
    "gpus.0.nvlink.count",
    "gpus.0.links.0.speed_mb_s",
    "gpus.0.power.limit_w",
    "gpus.0.power.enforced_w",
    "gpus.0.clocks.application_mhz",
    "gpus.0.memory.total_mib",
    "gpus.0.pcie.width",
    "gpus.0.rows.uncorrectable",
    "infiniband.port_count",
    "infiniband.active_ports",
    "infiniband.ports.0.rate_gbit",
    "cpu.online",
    "limits.open_files",
    "memory.total_gib",
    "memory.swappiness",
    "network.interfaces.0.mtu",
]
PASSES = [
    "gpus.0.power.draw_w",
    "gpus.0.clocks.sm_mhz",
    "gpus.0.temperature.gpu_c",
    "gpus.0.temperature.margin_c",
    "gpus.0.pcie.generation",
    "gpus.0.memory.used_mib",
    "gpus.0.utilization.gpu_percent",
    "gpus.0.ecc.corrected_volatile",
    "gpus.0.pcie.replays",
    "gpus.0.links.0.crc_errors",
    "gpus.0.num_processes",
    "infiniband.ports.0.symbol_errors",
    "network.interfaces.0.carrier_changes",
    "clock.offset_ms",
    "disk.fsync_ms",
    "disk.places.0.free_gib",
    "limits.tasks",
    "memory.available_gib",
    "memory.controllers.0.corrected",
]


def test_on_a_machine_with_gpus(tmp_path):
    document = snapshot_of(machines()["8xH100 SXM with InfiniBand"](), tmp_path).document()
    before = parse(document, "")
    facts = document["facts"]
    for name in (*MATTERS, *PASSES):
        *way, last = [int(key) if key.isdigit() else key for key in name.split(".")]
        inner = facts
        for key in way:
            inner = inner[key]
        assert is_number(inner[last]), name
        inner[last] = inner[last] * 2 + 7
    found = diff(before, parse(document, ""), []).facts

    def plain(path):
        """`gpus[GPU0 (...)].power` as `gpus.0.power`: only the first of each was changed."""
        return re.sub(r"\[.*?\]", ".0", path)

    assert {plain(f.fact) for f in found if not f.noise} == set(MATTERS)
    assert {plain(f.fact) for f in found if f.noise} == set(PASSES)


def test_devices_are_known_by_their_names(server):
    disks = [{"device": f"nvme{i}", "firmware": "1.0", "temperature_c": 30 + i} for i in range(3)]
    before = changed(server, disks=disks)
    other = [{**disks[2], "firmware": "2.0", "temperature_c": 50}, disks[0], {**disks[1], "device": "nvme7"}]
    facts = diff(before, changed(server, disks=other), []).facts
    assert [(f.fact, f.noise != "") for f in facts] == [
        ("disks[nvme1]", False),
        ("disks[nvme2].firmware", False),
        ("disks[nvme2].temperature_c", True),
        ("disks[nvme7]", False),
    ]
    assert facts[0].after is None
    assert facts[3].before is None


def test_a_part_that_can_be_read_no_more_is_listed(server):
    gone = {"$absent": "there is no such file"}
    found = diff(server, changed(server, cpu__load_1min=gone, kernel__release=gone), RULES.values())
    changes = {f.fact: f.after for f in found.facts if not f.noise}
    assert set(changes) == {"cpu.load_1min", "kernel.release"}
    assert all(is_nothing(after) for after in changes.values())
    other = {"$absent": "another reason"}
    assert diff(changed(server, cpu__model=gone), changed(server, cpu__model=other), []).facts == ()


def test_a_snapshot_of_fewer_parts_is_not_a_machine_of_fewer(server):
    less = replace(server, facts={k: v for k, v in server.facts.items() if k != "kernel"})
    for pair in ((server, less), (less, server)):
        found = diff(*pair, RULES.values())
        assert "kernel" in found.not_compared
        assert not found.facts
        assert not found.came
        assert not found.went


def test_a_finding_that_changed_and_one_whose_figures_moved(server):
    slow = changed(server, cpu__governors=["powersave"])
    mixed = changed(server, cpu__governors=["ondemand"])
    (pair,) = diff(slow, mixed, RULES.values()).changed
    assert (pair.before.id, "ondemand" in pair.after.evidence) == ("cpu.governor.slow", True)
    half, more = (changed(server, cpu__online=n) for n in (8, 7))
    found = diff(half, more, RULES.values())
    assert not found.changed
    assert [pair.after.id for pair in found.figures] == ["cpu.cores.offline"]
    assert not found.worse


SITE = """
[[rule]]
id = "site.machine.check"
signal = "kernel.machine_check"
fails_if = { equals = true }
severity = "critical"
summary = "a machine check"
action = "look at it"
source = "this test"
"""


@pytest.fixture
def files(server, tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    snapshots = {
        "a": server,
        "warning": changed(server, cpu__governors=["powersave"]),
        "critical": changed(server, kernel__machine_check=True),
        "later": changed(server, cpu__load_1min=9.0, kernel__release="6.8.0-90"),
    }
    for name, snapshot in snapshots.items():
        write(snapshot, tmp_path / name)
    return lambda name: str(tmp_path / name)


@pytest.mark.parametrize(
    ("b", "strict", "code"),
    [
        ("a", False, 0),
        ("later", True, 0),
        ("warning", False, 0),
        ("warning", True, 1),
        ("critical", False, 1),
        ("no such file", False, 2),
    ],
)
def test_the_exit_code(files, capsys, b, strict, code):
    options = ["--site", files("site.toml"), *(["--strict"] if strict else [])]
    assert run(["doctor", "diff", files("a"), files(b), *options]) == code
    assert (capsys.readouterr().out == "") == (code == 2)


@pytest.mark.parametrize("time", ["1e300", "-1e18", "NaN", "1" + "0" * 400])
def test_a_time_that_is_no_date(files, capsys, time):
    path = Path(files("a"))
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "time": "when", "before": None}).replace('"when"', time))
    assert run(["doctor", "diff", str(path), str(path)]) == 0
    assert run(["doctor", "--replay", str(path), "--only", "cpu"]) == 0


def test_the_words(files, capsys):
    assert run(["doctor", "diff", files("a"), files("later")]) == 0
    printed = capsys.readouterr()
    assert "6.8.0-90" in printed.out
    assert "load_1min" not in printed.out
    assert "--all" in printed.err
    assert run(["doctor", "diff", files("a"), files("later"), "--all"]) == 0
    assert "load_1min" in capsys.readouterr().out
    assert run(["doctor", "diff", files("a"), files("warning"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert [document[side]["status"] for side in "ab"] == ["healthy", "warning"]
    assert [f["id"] for f in document["came"]] == ["cpu.governor.slow"]
    assert document["worse"] is True
    assert set(document) == {
        *(
            "schema_version",
            "a",
            "b",
            "came",
            "went",
            "changed",
            "figures",
            "facts",
            "not_compared",
            "rebooted",
            "worse",
        )
    }

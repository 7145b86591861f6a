"""Nodes compared with each other: planted outliers are found, healthy fleets are quiet. Pure."""

import copy
import random
import re

import pytest
from fleets import facts_of_a_node, node
from health_trees import machines, snapshot_of

from aifx.core.facts import from_document
from aifx.health.fleet.compare import (
    MIN_Z,
    Fact,
    compare,
    light,
    load_facts,
    middle_and_spread,
    stands_out,
    values_at,
    z_limit,
)
from aifx.health.fleet.report import Node
from aifx.health.scope import is_number
from aifx.health.snapshot import Snapshot


def fleet(count: int, seed: int = 0):
    rng = random.Random(seed)
    return {f"n{i:03}": facts_of_a_node(rng) for i in range(count)}


def found(fleet, facts=None):
    return compare([node(name, facts) for name, facts in fleet.items()], facts)


def majority(**more):
    texts = {"summary": "{value}, most {usual}", "action": "fix it to {usual}", "source": "a test"}
    return [Fact(id="fleet.a.b", path="a", kind="majority", **texts, **more)]


@pytest.mark.parametrize(("spread", "allowed"), [(5.0, 0), (30.0, 6)])
def test_healthy_fleets_are_quiet(spread, allowed):
    """200 fleets of 5 to 100 nodes. Where figures spread widely the limit lets one fleet of a hundred have a finding;
    3.5 alone would let some 30 of these have one."""
    rng = random.Random(1)
    figure = Fact(id="fleet.rate.low", path="rate", kind="figure", summary="{value}", action="a", source="s")
    alarms = 0
    for _ in range(200):
        nodes = [node(f"n{i}", {"rate": rng.gauss(1000, spread)}) for i in range(rng.randint(5, 100))]
        alarms += bool(compare(nodes, [figure]))
    assert alarms <= allowed


@pytest.mark.parametrize("count", [3, 5, 8, 40])
def test_a_healthy_fleet_has_no_finding(count):
    for seed in range(3):
        assert found(fleet(count, seed)) == []


PLANTED = {
    "fleet.kernel.release": lambda f: f["kernel"].update(release="6.5.0"),
    "fleet.kernel.command_line": lambda f: f["kernel"].update(command_line="root=UUID=1 ro"),
    "fleet.nvidia.driver": lambda f: f["nvidia"].update(driver="550.90.07"),
    "fleet.nvidia.vbios": lambda f: f["gpus"][3].update(vbios="96.00.30.00.01"),
    "fleet.nvidia.power_limit": lambda f: f["gpus"][0]["power"].update(limit_w=500.0),
    "fleet.gpus.count": lambda f: f["gpus"].pop(),
    "fleet.infiniband.ports": lambda f: f["infiniband"].update(active_ports=7),
    "fleet.memory.total": lambda f: f["memory"].update(total_gib=1952.0),
    "fleet.nvidia.temperature": lambda f: f["gpus"][5]["temperature"].update(gpu_c=93),
    "fleet.system.mounts": lambda f: f["system"].update(mounts=["/ ext4", "/home nfs4", "/data1 xfs"]),
    "fleet.jax.packages": lambda f: f["jax"]["packages"].update({"nvidia-nccl-cu13": "2.27.7"}),
    "fleet.stress.consistency": lambda f: f["stress"]["consistency"][11].update(digest="0123456789abcdef"),
    "fleet.stress.matmul": lambda f: f["stress"]["devices"][2].update(
        matmul=[{"device": "bfloat16", "tflops": 700.0}, {"device": "float32", "tflops": 45.0}]
    ),
}


@pytest.mark.parametrize("rule", PLANTED)
@pytest.mark.parametrize("count", [6, 30])
def test_a_planted_outlier_is_found_and_nothing_else(rule, count):
    machines = fleet(count)
    PLANTED[rule](machines["n004"])
    (only,) = found(machines)
    assert (only.id, only.device) == (rule, "n004")
    assert all([only.summary, only.evidence, only.threshold, only.source, only.action])
    assert "{" not in only.summary + only.action


def test_a_node_without_a_part_is_reported_once():
    machines = fleet(6)
    machines["n002"]["gpus"] = {"$absent": "there is no NVIDIA GPU"}
    machines["n002"]["nvidia"] = {"$absent": "there is no NVIDIA GPU"}
    ids = [f.id for f in found(machines)]
    assert ids == ["fleet.gpus.count", "fleet.nvidia.driver"]


def test_what_could_not_be_read_is_no_finding_here():
    """It is one of the node's own."""
    machines = fleet(6)
    machines["n002"]["nvidia"]["driver"] = {"$unknown": "NVML hangs"}
    assert found(machines) == []


def test_a_part_that_few_have_is_no_finding():
    machines = fleet(6)
    machines["n002"]["system"]["product"] = "PowerEdge"
    assert found(machines) == []


def test_half_and_half_is_reported_but_blames_nobody():
    machines = {f"n{i}": {"a": "x" if i < 3 else "y"} for i in range(6)}
    (only,) = found(machines, majority())
    assert (only.severity, only.device) == ("info", "")
    assert re.search(r"\b3\b.* x\b.*\b3\b.* y\b", only.summary)


def test_too_few_nodes_are_not_compared():
    assert found({"n1": {"a": "x"}, "n2": {"a": "y"}}, majority()) == []
    figure = Fact(id="fleet.a.b", path="a", kind="figure", summary="s", action="a", source="s")
    assert found({f"n{i}": {"a": 1.0 if i else 9.0} for i in range(4)}, [figure]) == []
    assert len(found({f"n{i}": {"a": 1.0 if i else 9.0} for i in range(5)}, [figure])) == 1


def test_only_like_nodes_are_compared():
    machines = {f"n{i}": {"a": "old" if i < 3 else "new", "kind": "A" if i < 3 else "B"} for i in range(9)}
    assert len(found(machines, majority())) == 3
    assert found(machines, majority(among="kind")) == []


def with_consistency(digests, made_by="1 x H100; jax 0.9.0"):
    """Nodes of one device, by what it gives cold and hot."""
    rows = ({"device": "gpu:0 cold", "digest": digests[0]}, {"device": "gpu:0 hot", "digest": digests[-1]})
    return {"stress": {"consistency": [row | ({"made_by": made_by} if made_by else {}) for row in rows]}}


def test_whoever_computes_otherwise_than_like_nodes_is_named():
    machines = {f"n{i}": with_consistency(["a"]) for i in range(4)} | {"hot": with_consistency(["a", "b"])}
    (only,) = found(machines)
    assert (only.id, only.severity, only.device) == ("fleet.stress.consistency", "critical", "hot")
    assert only.summary.endswith(": gpu:0 hot")
    assert re.search(r"stress\.consistency\.digest.*gpu:0 hot b\b.*\ba$", only.evidence)


def test_bits_are_compared_only_where_they_must_be_equal():
    """Other versions give other bits, and a node that does not say what it ran is compared with nobody."""
    like = {f"n{i}": with_consistency(["a"]) for i in range(4)}
    for made_by in ("1 x H100; jax 0.8.0", "1 x A100; jax 0.9.0", None):
        others = {f"m{i}": with_consistency([str(i) if made_by is None else "b"], made_by) for i in range(3)}
        assert found(like | others) == []


@pytest.mark.parametrize("digests", ["ab", "aabb"])
def test_bits_without_a_majority_are_a_finding_that_blames_nobody(digests):
    (only,) = found({f"n{i}": with_consistency([digest]) for i, digest in enumerate(digests)})
    assert (only.id, only.severity, only.device) == ("fleet.stress.consistency", "warning", "")
    assert "n0, n1" in only.action


def test_order_of_devices_does_not_matter():
    ports = [{"device": "a", "rate": 400}, {"device": "b", "rate": 200}]
    machines = {f"n{i}": {"a": ports if i else ports[::-1]} for i in range(5)}
    facts = [majority()[0].model_copy(update={"path": "a.rate"})]
    assert found(machines, facts) == []


def test_each_package_has_its_own_majority():
    """Where all differ in one, who differs in another is found all the same."""
    machines = {f"n{i}": {"a": {"jax": "0.9.0", "numpy": f"2.{i}"}} for i in range(5)}
    machines["n3"]["a"]["jax"] = "0.8.0"
    (only,) = found(machines, majority(of="items"))
    assert (only.device, only.summary) == ("n3", "jax 0.9.0, most jax 0.9.0")


def test_the_words_that_differ_are_named():
    machines = {f"n{i}": {"a": "ro iommu=pt quiet"} for i in range(5)}
    machines["n3"]["a"] = "quiet ro nosmt"
    (only,) = found(machines, majority(of="words"))
    assert only.summary.startswith("+nosmt -iommu=pt")


def test_the_direction_counts():
    rates = dict.fromkeys("abcde", 100.0) | {"f": 150.0}
    fact = Fact(id="fleet.a.b", path="a", kind="figure", worse="low", summary="s", action="a", source="s")
    machines = {name: {"a": rate} for name, rate in rates.items()}
    assert found(machines, [fact]) == []
    assert [f.device for f in found(machines, [fact.model_copy(update={"worse": "high"})])] == ["f"]


def test_a_gap_alone_or_a_distance_alone_is_not_enough():
    assert not stands_out(2.0, 100.0, 0.1, 20, 0.03)  # 20 deviations, but two in a hundred
    assert not stands_out(10.0, 100.0, 5.0, 20, 0.03)  # ten in a hundred, but two deviations
    assert stands_out(10.0, 100.0, 1.0, 20, 0.03)


def test_where_the_others_are_equal_the_gap_decides():
    assert middle_and_spread([100.0, 100.0, 100.0, 100.0, 90.0]) == (100.0, 0.0)
    assert stands_out(-10.0, 100.0, 0.0, 5, 0.03)
    assert not stands_out(-2.0, 100.0, 0.0, 5, 0.03)
    assert not stands_out(0.0, 0.0, 0.0, 5, 0.03)


def test_the_limit_is_never_below_the_usual_one():
    limits = [z_limit(count) for count in (5, 8, 20, 100, 1000, 100_000)]
    assert min(limits) >= MIN_Z
    assert limits[0] > limits[1] > limits[2] > limits[3]
    assert limits[-1] > limits[-2]


def test_the_spread_is_that_of_a_normal_distribution():
    rng = random.Random(3)
    middle, spread = middle_and_spread([rng.gauss(50, 2) for _ in range(20_000)])
    assert middle == pytest.approx(50, abs=0.1)
    assert spread == pytest.approx(2, rel=0.03)


def test_values_name_their_devices():
    facts = from_document({"gpus": [{"device": "g0", "links": [{"device": "link 1", "mb_s": 5}]}, "nonsense"]})
    assert values_at(facts, "gpus.links.mb_s") == [("g0 link 1", 5)]
    assert values_at(facts, "gpus.missing.mb_s") == []
    assert values_at({"a": None}, "a") == []


def test_what_is_kept_of_a_snapshot_is_what_is_compared():
    machines = fleet(6)
    for plant, name in zip(PLANTED.values(), machines, strict=False):
        plant(machines[name])
    machines["n005"]["gpus"][0]["vbios"] = {"$absent": "not shown"}
    whole = [
        {"snapshot": {"facts": facts | {"processes": [1, 2]}, "before": {"facts": facts}}}
        for facts in machines.values()
    ]
    kept = [light(document)["snapshot"] for document in whole]
    assert all("processes" not in snapshot["facts"] and snapshot["before"] is None for snapshot in kept)
    again = dict(zip(machines, (snapshot["facts"] for snapshot in kept), strict=True))
    assert found(again) == found(machines) != []
    for strange in (None, [], {"snapshot": 3}, {"snapshot": {"facts": []}}):
        assert light(strange) == strange


@pytest.mark.slow
def test_nonsense_in_a_snapshot_breaks_nothing():
    """Each node's facts replaced, part by part, by what no probe gives."""
    for fact in load_facts():
        for wrong in (None, "x", 7, -1.5, True, [], {}, [1, "a", None], [[]], {"device": {}}):
            machines = copy.deepcopy(fleet(6))
            *head, last = fact.path.split(".")
            where = machines["n001"]
            for key in head:
                where = where.setdefault(key, {}) if isinstance(where, dict) else {}
            if isinstance(where, dict):
                where[last] = wrong
            for finding in found(machines):
                assert finding.summary


def test_each_fact_has_its_own_id():
    ids = [fact.id for fact in load_facts()]
    assert len(set(ids)) == len(ids)
    for fact in load_facts():
        words = {"value": "v", "usual": "u"} | ({"gap": "g"} if fact.kind == "figure" else {})
        assert fact.summary.format(**words) != fact.summary
        assert fact.action.format(**words)
        assert fact.id.startswith("fleet.")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """The facts of each healthy machine, as the probes read them."""
    folder = tmp_path_factory.mktemp("trees")
    return {name: snapshot_of(make(), folder / "tree").facts for name, make in machines().items()}


@pytest.mark.slow
def test_machines_of_one_kind_are_alike(healthy):
    for facts in healthy.values():
        assert compare([Node(f"n{i}", None, Snapshot(f"n{i}", 0.0, facts)) for i in range(6)]) == []


def test_each_fact_is_one_that_probes_give(healthy):
    for fact in load_facts():
        for path in filter(None, (fact.path, fact.among)):
            assert any(values_at(facts, path) for facts in healthy.values()), path
        if fact.kind == "figure":
            figures = [value for facts in healthy.values() for _, value in values_at(facts, fact.path)]
            assert any(is_number(value) for value in figures), fact.path

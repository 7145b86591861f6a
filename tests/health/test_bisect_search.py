"""The search for a bad node or link, on simulated clusters of every size, with noise."""

import itertools
import random

import pytest

from aifx.health import bisect as library
from aifx.health.bisect import Verdict, bisect


class Cluster:
    """Args:
    num_nodes: how many.
    slow: bad nodes ("n3",) and links ("n1", "n5").
    factor: how many times slower a group is that holds one.
    noise: relative, one sigma.
    """

    def __init__(self, num_nodes, slow=(), *, factor=3.0, noise=0.0, seed=0, test_s=1.0):
        self.nodes = [f"n{i}" for i in range(num_nodes)]
        self.slow = [frozenset(one) for one in slow]
        self.factor, self.noise, self.test_s = factor, noise, test_s
        self.random = random.Random(seed)
        self.now = 0.0
        self.num_tests = 0

    def test(self, group, limit_s):
        assert len(group) == len(set(group)) >= 2
        assert limit_s > 0
        self.now += self.test_s
        self.num_tests += 1
        rate = 100 / (1 + 0.1 * len(group)) * max(self.random.gauss(1, self.noise), 0.01)
        return Verdict(rate / self.factor if any(one <= set(group) for one in self.slow) else rate)

    def bisect(self, budget_s=1e9, **options):
        return bisect(self.nodes, self.test, budget_s, clock=lambda: self.now, **options)


def found(result):
    return {frozenset(culprit.nodes) for culprit in result.culprits}


@pytest.mark.parametrize("num_nodes", [3, 4, 5, 6, 7, 8, 13, 32, 61])
def test_one_bad_node_or_link_is_found_wherever_it_is(num_nodes):
    nodes = Cluster(num_nodes).nodes
    links = list(itertools.combinations(nodes, 2))
    for slow in [*((node,) for node in nodes[:24]), *random.Random(0).sample(links, min(len(links), 20))]:
        cluster = Cluster(num_nodes, [slow])
        result = cluster.bisect()
        assert found(result) == {frozenset(slow)}, (slow, result)
        assert (result.ended, result.suspects) == ("done", ())
        assert result.num_tests == cluster.num_tests <= 30 + 9 * num_nodes.bit_length()


def test_with_noise_nothing_good_is_blamed():
    """400 clusters with up to two faults: what is blamed is bad, and what is bad is found."""
    chance = random.Random(1)
    missed = blamed = faults = 0
    for seed in range(400):
        num_nodes = chance.randint(3, 64)
        kinds = chance.choice([(), (1,), (2,), (1, 1), (1, 2), (2, 2)])
        nodes = [f"n{i}" for i in range(num_nodes)]
        slow = [tuple(chance.sample(nodes, kind)) for kind in kinds]
        cluster = Cluster(num_nodes, slow, factor=chance.uniform(2, 20), noise=0.05, seed=seed)
        result = cluster.bisect()
        # A bad node makes its links slow: one of them is no fault of its own.
        real = {frozenset(s) for s in slow if len(s) == 1 or not any((node,) in slow for node in s)}
        enough = num_nodes >= 2 * len(slow) + 2
        if enough:
            faults += len(real)
            missed += len(real - found(result)) if result.ended == "done" else 0
            blamed += len(found(result) - real)
        for culprit in found(result):
            assert any(culprit & frozenset(s) for s in slow) or not enough, (slow, result)
    assert faults > 300
    assert blamed <= 5
    assert missed <= 0.01 * faults


@pytest.mark.parametrize("num_nodes", [3, 5, 8, 27, 64])
def test_where_nothing_is_slow_nothing_is_found_and_little_is_tested(num_nodes):
    for seed in range(10):
        cluster = Cluster(num_nodes, noise=0.03, seed=seed)
        result = cluster.bisect()
        assert (result.culprits, result.ended, result.suspects) == ((), "done", ())
        assert result.num_tests <= 18
    cluster = Cluster(num_nodes)
    assert cluster.bisect(expected_gb_s=20 if num_nodes < 60 else 13).num_tests == 1


@pytest.mark.parametrize("num_bad", [3, 5, 8])
def test_many_bad_nodes_are_all_found_with_an_expected_bandwidth(num_bad):
    chance = random.Random(num_bad)
    for _ in range(4):
        slow = [(f"n{i}",) for i in chance.sample(range(64), num_bad)]
        result = Cluster(64, slow).bisect(expected_gb_s=100 / 7.4)
        assert found(result) == set(map(frozenset, slow)), result.why


def test_all_slow_alike_is_unclear_where_more_is_expected():
    result = Cluster(16).bisect(expected_gb_s=1000)
    assert (result.culprits, result.ended, len(result.suspects)) == ((), "unclear", 16)
    assert [f.severity for f in result.findings()] == ["unknown"]


def test_of_two_nodes_either_may_be_bad():
    result = Cluster(2, [("n0",)]).bisect()
    assert (result.ended, result.suspects) == ("unclear", ("n0", "n1"))


@pytest.mark.parametrize("slow", [("n13",), ("n3", "n29")])
def test_the_budget_is_kept_and_what_remains_is_reported(slow):
    whole = Cluster(32, [slow], test_s=10).bisect()
    for budget_s in range(5, 10 * whole.num_tests, 10):
        cluster = Cluster(32, [slow], test_s=10)
        result = cluster.bisect(budget_s)
        assert cluster.now <= budget_s + (10 if result.num_tests <= 1 else 0)
        assert result.ended == "budget"
        assert found(result) <= {frozenset(slow)}
        if not result.culprits:
            assert set(slow) <= set(result.suspects)
    narrowed = Cluster(32, [slow], test_s=10).bisect(10 * whole.num_tests * 0.6)
    assert len(narrowed.suspects) < 32 or narrowed.culprits


def test_slow_only_when_many_are_together_is_not_pinned_on_anyone():
    """A switch with too little for all, say: groups that hold more than ten of one rack."""
    cluster = Cluster(32)

    def test(group, limit_s):
        rack = sum(int(node[1:]) < 16 for node in group)
        return Verdict(10.0 if rack > 10 else 30.0)

    result = bisect(cluster.nodes, test, 1e9)
    assert (result.culprits, result.ended) == ((), "unclear")
    assert result.suspects
    assert "together" in result.why


def test_a_test_that_fails_is_slow_and_says_why(logged):
    def test(group, limit_s):
        return Verdict(0.0, "n5 did not come") if "n5" in group else Verdict(10.0)

    result = bisect([f"n{i}" for i in range(8)], test, 1e9)
    assert [(c.kind, c.nodes, c.why) for c in result.culprits] == [("node", ("n5",), "n5 did not come")]
    assert any("found" in line and "n5" in line for line in logged)
    (finding,) = result.findings()
    assert (finding.id, finding.severity, finding.device) == ("fleet.bisect.node", "critical", "n5")
    assert "n5 did not come" in finding.evidence
    document = result.document()
    assert document["num_tests"] == result.num_tests == sum(len(t["gb_s"]) for t in document["tests"])
    assert document["culprits"][0]["kind"] == "node"


@pytest.mark.parametrize("num_nodes", [8, 64])
def test_a_node_that_hangs_does_not_eat_the_budget(num_nodes):
    cluster = Cluster(num_nodes)
    hung = 0

    def test(group, limit_s):
        nonlocal hung
        if "n5" not in group:
            return cluster.test(group, limit_s)
        hung += 1
        cluster.now += min(limit_s, 120.0)
        return Verdict(0.0, "no answer in 120 s")

    result = bisect(cluster.nodes, test, 1e9, clock=lambda: cluster.now)
    assert found(result) == {frozenset({"n5"})}
    assert hung <= 6 + 2 * num_nodes.bit_length()
    for budget_s in (100, 150, 500, 1000):  # what fails because the time is up blames nobody
        cluster.now = 0.0
        cut = bisect(cluster.nodes, test, budget_s, clock=lambda: cluster.now)
        assert cluster.now <= budget_s
        assert found(cut) <= {frozenset({"n5"})}
        assert "n5" in cut.suspects or cut.culprits


def test_if_no_test_works_the_result_is_unclear():
    result = bisect(["a", "b", "c", "d"], lambda group, limit_s: Verdict(0.0, "no route"), 1e9)
    assert (result.culprits, result.ended) == ((), "unclear")


def test_ctrl_c_leaves_a_result():
    cluster = Cluster(16, [("n3",)])

    def test(group, limit_s):
        if cluster.num_tests == 9:
            raise KeyboardInterrupt
        return cluster.test(group, limit_s)

    result = bisect(cluster.nodes, test, 1e9, clock=lambda: cluster.now)
    assert (result.ended, result.why, result.num_tests) == ("budget", "interrupted", 9)


@pytest.mark.parametrize("num_nodes", range(2, 65))
def test_groups_are_of_one_size_and_hold_each_pair(num_nodes):
    nodes = tuple(f"n{i}" for i in range(num_nodes))
    groups = library._groups(nodes, 4)
    assert len({len(group) for group in groups}) == 1
    assert all(len(set(group)) == len(group) for group in groups)
    pairs = {frozenset(pair) for group in groups for pair in itertools.combinations(group, 2)}
    assert len(pairs) == num_nodes * (num_nodes - 1) // 2
    assert len(groups) <= 6
    assert num_nodes < 3 or all(any(node not in group for group in groups) for node in nodes)
    for num_parts in (8, 16):
        smaller = library._groups(nodes, num_parts)
        assert len({len(group) for group in smaller}) == 1
        assert {node for group in smaller for node in group} == set(nodes)

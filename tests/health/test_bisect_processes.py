"""A planted slow node and a planted bad link are found among real processes that talk over loopback."""

import asyncio
import gc
import json
import math
import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from contextlib import closing, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import rank_clock
from held_port import held_port

from aifx.commands.main import run
from aifx.health import collective_launch as launch
from aifx.health.bisect import Verdict, bisect
from aifx.health.collective_tcp import CollectiveError, Mesh, RankRequest, _accepted, _listening
from aifx.health.collective_worker import bus_gb_s
from aifx.health.collective_worker import main as run_rank

NODES = [f"127.0.0.{i}" for i in range(1, 9)]
LIMIT_S = 600.0
"""Only ends a hang."""
WORKER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
from aifx.health import collective_tcp, collective_worker

exchange = collective_tcp.Mesh._exchange

def flipped(self, to, sent, source, received):
    sent = np.array(sent)
    sent[-1] ^= 1 << 20
    return exchange(self, to, sent, source, received)

for line in sys.stdin:
    asked = json.loads(line)
    collective_tcp.Mesh._exchange = flipped if asked["flips_a_bit"] else exchange
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = collective_worker.main(asked["request"])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""
"""One rank after another in a process that has imported what they need: starting one for each would be most of the
time here."""


def options(**changes):
    return launch.Options(**{"over": "tcp", "num_bytes": 1 << 16, "repeats": 4, "limit_s": LIMIT_S} | changes)


@pytest.fixture(scope="module")
def ranks():
    """Runs ranks of a group, one process per node, and returns their output."""
    workers: dict[str, subprocess.Popen[str]] = {}

    def begin(node, request, flips_a_bit=False):
        if node not in workers:
            pipe = subprocess.PIPE
            workers[node] = subprocess.Popen(
                [sys.executable, "-c", rank_clock.INSTALL + WORKER], stdin=pipe, stdout=pipe, text=True
            )
        asked = {"request": request, "flips_a_bit": flips_a_bit}
        workers[node].stdin.write(json.dumps(asked) + "\n")
        workers[node].stdin.flush()

    def run_all(group, asked, limit_s=LIMIT_S, damaged="", absent=()):
        here = [node for node in group if node not in absent]
        with held_port() as port:
            for node in here:
                command = launch.rank_command(group.index(node), group, port, "a word", limit_s, asked)
                begin(node, command[-1], node == damaged)
            return [json.loads(workers[node].stdout.readline()) for node in here]

    yield run_all
    for worker in workers.values():
        worker.stdin.close()
        worker.stdout.close()
        worker.wait()


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        (8, ("127.0.0.3", "127.0.0.6")),
        (7, ("127.0.0.7",)),
        (6, NODES[:2]),
        pytest.param(8, ("127.0.0.4",), marks=pytest.mark.slow),
    ],
)
def test_what_was_planted_is_found(ranks, size, fault, logged):
    asked = options(faults={tuple(fault): 0.015})

    def test(group, limit_s):
        (_, out, _), *_ = ranks(group, asked)
        answer = json.loads(out)
        return Verdict(answer["gb_s"], answer["why"])

    result = bisect(NODES[:size], test, math.inf)
    assert [set(culprit.nodes) for culprit in result.culprits] == [set(fault)], logged
    assert result.ended == "done"
    assert result.culprits[0].gb_s < result.culprits[0].usual_gb_s / 10


@pytest.mark.parametrize("size", [2, 3, 5])
def test_results_are_checked_and_the_rate_is_that_of_nccl_tests(ranks, size):
    (first, *others) = ranks(NODES[:size], options(num_bytes=40_000))
    answer = json.loads(first[1])
    assert (first[0], answer["ok"], answer["devices"], answer["why"]) == (0, True, size, "")
    assert answer["gb_s"] == pytest.approx(bus_gb_s(40_000, answer["time_s"], size))
    assert answer["time_s"] <= answer["median_s"]
    assert all(said == [0, "", ""] for said in others)
    # nccl-tests, doc/PERFORMANCE.md: (n-1)/n of size over time
    assert bus_gb_s(8e9, 1.0, 4) == pytest.approx(6.0)


def test_a_wrong_result_is_no_rate(ranks):
    (code, out, _), *_ = ranks(NODES[:3], options(), damaged=NODES[1])
    answer = json.loads(out)
    assert (code, answer["ok"], answer["gb_s"]) == (1, False, 0.0)
    assert "wrong results" in answer["why"]


def test_a_rank_that_does_not_come_is_named(ranks):
    (code, out, _), (other, _, said) = ranks(NODES[:3], options(), 0.4, absent=NODES[1:2])
    assert (code, other) == (1, 1)
    assert "rank 1" in json.loads(out)["why"]
    assert said


def test_strangers_are_sent_away(ranks):
    """Who calls and does not know the word is no rank, whatever it says."""
    hellos = [b"GET / HTTP/1.1\r\n\r\n", b'\0\0\0\x1b{"rank": 1, "word": "guess"}', b"\0\0\0\x02[]"]
    hellos.append((200_000).to_bytes(4, "big") + b"[" * 200_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        strangers = [socket.create_connection(listener.getsockname()) for _ in hellos]
        for stranger, hello in zip(strangers, hellos, strict=True):
            stranger.sendall(hello)
            stranger.shutdown(socket.SHUT_WR)
        listener.setblocking(False)
        request = RankRequest(0, 2, "127.0.0.1", 1, "a word", "tcp", 1 << 16, 4, LIMIT_S, [])
        hello = json.dumps({"word": "a word", "rank": 1}).encode()
        with socket.create_connection(listener.getsockname()) as rank:
            rank.sendall(len(hello).to_bytes(4, "big") + hello)
            ((number, (connection, _)),) = asyncio.run(_accepted(listener, request, 1)).items()
        connection.close()
        assert number == 1
        for stranger in strangers:
            with stranger, suppress(ConnectionResetError):
                assert stranger.recv(1) == b""


@pytest.mark.slow
def test_a_dead_rank_is_named_at_once(caplog):
    """Rank 1 dies with unread data, while rank 2 sends nothing."""
    mesh = Mesh(RankRequest(0, 3, "127.0.0.1", 1, "a word", "tcp", 1 << 16, 4, LIMIT_S, []))
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    for rank, (here, _) in pairs.items():
        here.setblocking(False)
        mesh._peers[rank] = here
    buffer = np.zeros(1 << 20, np.uint32)

    def die() -> None:
        pairs[1][1].recv(1)
        pairs[1][1].close()

    threading.Thread(target=die).start()
    with closing(mesh), pairs[2][1], pytest.raises(CollectiveError, match="rank 1 went away"):
        asyncio.run(mesh._exchange(1, buffer, 2, np.empty_like(buffer)))
    gc.collect()
    assert not caplog.messages


@pytest.mark.slow
def test_a_request_of_another_version_is_an_error(capsys):
    for text in ("[", "[]", '{"rank": 0, "coordinator": "n1:1"}'):
        assert run_rank(text) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.slow
def test_a_name_that_means_another_address_at_home(ranks):
    """Debian's /etc/hosts gives a host's own name 127.0.1.1; "localhost" stands for such a name here."""
    with _listening("localhost", by_name=True) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "127.0.1.1"):
            socket.create_connection((address, port), timeout=LIMIT_S).close()
    (code, _, _), *_ = ranks(["localhost", *NODES[1:3]], options())
    assert code == 0


@pytest.mark.slow
def test_commands_of_ranks():
    asked = launch.Options(faults={("n3",): 0.5, ("a@n1", "n2"): 0.25})
    group = ["a@n1", "n2", "n3"]
    commands = [launch.rank_command(rank, group, 29_000, "w", 60, asked) for rank in range(3)]
    assert all(command[:3] == ["aifx", "doctor", "collective-worker"] for command in commands)
    requests = [RankRequest(**json.loads(command[-1])) for command in commands]
    assert [(request.rank, request.size, request.host, request.port) for request in requests] == [
        (0, 3, "n1", 29_000),
        (1, 3, "n1", 29_000),
        (2, 3, "n1", 29_000),
    ]
    assert [request.delays_s for request in requests] == [[[1, 0.25]], [[0, 0.25]], [[0, 0.5], [1, 0.5]]]


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


RANK = """
import sys
from aifx.health.collective_worker import main
assert sys.argv[1:3] == ["doctor", "collective-worker"]
sys.exit(main(sys.argv[3]))
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder of programs that stand for others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(launch, "GRACE_S", 0.2)
    script(tmp_path, "aifx", RANK)
    script(
        tmp_path,
        "ssh",
        """
        import os, sys
        where = sys.argv.index("--")
        host, command = sys.argv[where + 1 :]
        if host == "127.0.0.9":
            sys.exit("ssh: connect to host 127.0.0.9 port 22: Connection refused")
        os.execvp("sh", ["sh", "-c", command])
        """,
    )
    script(
        tmp_path,
        "srun",
        """
        import os, subprocess, sys
        (nodes,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--nodelist=")]
        hosts = sorted(nodes.split(","))
        command = sys.argv[sys.argv.index("aifx") :]
        common = os.environ | {"SLURM_STEP_NODELIST": ",".join(hosts), "SLURM_NTASKS": str(len(hosts))}
        tasks = [subprocess.Popen(command, env=common | {"SLURM_PROCID": str(i)}) for i in range(len(hosts))]
        sys.exit(max(task.wait() for task in tasks))
        """,
    )
    return tmp_path


@pytest.mark.slow
def test_over_ssh(path):
    verdict = launch.run_test(NODES[:2], LIMIT_S, options(faults={(NODES[0],): 0.1}))
    assert 0 < verdict.gb_s < 2 * bus_gb_s(1 << 16, 0.1, 2)
    assert verdict.why == ""
    verdict = launch.run_test(["127.0.0.1", "127.0.0.9"], LIMIT_S, options())
    assert verdict.gb_s == 0.0
    assert verdict.why.startswith("127.0.0.9: ")
    assert "Connection refused" in verdict.why


@pytest.mark.slow
def test_over_srun_in_whatever_order_its_tasks_stand(path):
    assert launch.run_test(["127.0.0.3", "127.0.0.1", "127.0.0.2"], LIMIT_S, options(over_slurm=True)).gb_s > 0


@pytest.mark.slow
def test_a_host_that_hangs_is_given_up(path):
    script(path, "aifx", "import time; time.sleep(600)")
    verdict = launch.run_test(NODES[:2], 1.0, options())
    assert verdict.gb_s == 0.0
    assert verdict.why.startswith("127.0.0.1: ")
    assert verdict.why.endswith(" 1 s")


@pytest.mark.slow
@pytest.mark.parametrize("gb_s", ["NaN", "Infinity", "-1", "[" * 100_000])
def test_an_answer_that_is_no_bandwidth_is_a_failed_test(path, gb_s):
    (path / "answer").write_text(f'{{"gb_s": {gb_s}, "why": ""}}')
    script(path, "aifx", f"print(open({str(path / 'answer')!r}).read())")
    assert launch.run_test(NODES[:2], LIMIT_S, options()).gb_s == 0.0


@pytest.mark.slow
def test_jax_gets_an_ipv6_address_in_brackets(monkeypatch):
    from aifx.health import collective_jax

    initialize = mock.Mock(side_effect=RuntimeError)
    monkeypatch.setattr(collective_jax, "jax", mock.Mock(distributed=mock.Mock(initialize=initialize)))
    with pytest.raises(RuntimeError):
        collective_jax.measure(RankRequest(0, 2, "fd00::1", 29_000, "w", "jax", 1 << 16, 4, 60.0, []))
    assert initialize.call_args.args == ("[fd00::1]:29000", 2, 0)


@pytest.mark.slow
def test_over_jax(path):
    """Gloo on CPUs stands for NCCL on GPUs: the same program, another library below."""
    verdict = launch.run_test(NODES[:2], LIMIT_S, options(over="jax", repeats=2))
    assert verdict.why == ""
    assert verdict.gb_s > 0


@pytest.mark.slow
def test_the_command(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("aifx.health.bisect.REPEATS", 1)
    script(path, "aifx", rank_clock.INSTALL + RANK)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.[1-3]\n")
    small = ["--over", "tcp", "--bytes", "65536", "--margin", "90", "--limit", "600", "--hosts", str(hosts)]
    assert run(["doctor", "bisect", *small, "--budget", "7200", "--rehearse", "127.0.0.2=0.03", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [(c["kind"], c["nodes"]) for c in document["culprits"]] == [("node", ["127.0.0.2"])]
    assert document["status"] == "unhealthy"
    assert [f["id"] for f in document["findings"]] == ["fleet.bisect.node"]
    assert run(["doctor", "bisect", *small, "--budget", "0.001"]) == 2
    assert "127.0.0.1" in capsys.readouterr().out
    for wrong in (["--rehearse", "n77=1"], ["--rehearse", "127.0.0.1"], ["--slurm"]):
        assert run(["doctor", "bisect", *small, *wrong]) == 2
    assert run(["doctor", "bisect"]) == 2

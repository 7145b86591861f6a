"""Attacks of one node on the asking of a fleet: each may cost the report of that node, and no other."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from aifx.cluster.hosts import expand, read_hosts
from aifx.core.errors import UsageError
from aifx.health.agent_token import read_token
from aifx.health.fleet import transports
from aifx.health.fleet.record import Recorder, read_record
from aifx.health.fleet.report import Node
from aifx.health.fleet.transports import Inquiry, ask_agents, ask_slurm

REPORT = {"schema_version": 1, "host": "n", "status": "healthy", "findings": [], "skipped": [], "duration_s": 0.1}
BODY = json.dumps(REPORT).encode()
END_S = 300.0
BOMB = gzip.compress(b" " * (transports.MAX_BYTES + 2), 9)

SRUN = """\
#!/bin/bash
# srun ... --nodelist=A,B ... sh -c COMMAND: a labelled task for each node, which sends what FOLDER/NODE holds.
while [ "$1" != sh ]; do case $1 in --nodelist=*) nodes=${1#*=};; esac; shift; done
number=0
for node in ${nodes//,/ }; do
  cat "$FOLDER/$node.err" >&2
  sed "s/^/$number: /" "$FOLDER/$node"
  number=$((number + 1))
done
"""


class Fleet:
    """Nodes by name, as `heard` is told of them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def heard(self, node: Node, document: Any) -> None:
        self.nodes[node.name] = node


def sent(node: str, packed: bytes, *more: str) -> str:
    import base64

    return "\n".join([f"node {node}", *more, base64.encodebytes(packed).decode().rstrip(), "end", ""])


def test_over_slurm_one_node_costs_its_own_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = gzip.compress(BODY)
    attacks = {
        "line": sent("line", good, "x" * 300_000),
        "bomb": sent("bomb", BOMB),
        "twice": sent("twice", gzip.compress(good)),
        "torn": sent("torn", good[:-4]),
        "deep": sent("deep", gzip.compress(b"[" * 200_000)),
        "flood": sent("flood", good) + "unlabelled\n" * 10,
        "good": sent("good", good),
    }
    for node, text in attacks.items():
        (tmp_path / node).write_text(text)
        (tmp_path / f"{node}.err").write_text("\x1b[2J" * 1000 if node == "flood" else "")
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    fleet = Fleet()
    asyncio.run(ask_slurm(list(attacks), Inquiry(timeout_s=END_S), fleet.heard))
    assert {name for name, node in fleet.nodes.items() if node.report is not None} == {"flood", "good"}
    why = {name: node.why for name, node in fleet.nodes.items()}
    assert why["bomb"].endswith(" 32 MiB")
    assert "truncated" in why["torn"]
    assert "did not send JSON" in why["twice"]
    assert not any(node.is_silent for node in fleet.nodes.values())


def test_agents_send_one_layer_of_gzip_up_to_a_limit() -> None:
    good = gzip.compress(BODY)
    answers = {
        "plain": ("identity", BODY),
        "good": ("gzip", good),
        "bomb": ("gzip", BOMB),
        "twice": ("gzip, gzip", gzip.compress(good)),
        "hidden": ("gzip", gzip.compress(good)),
        "deflate": ("deflate", good),
        "none": ("gzip", BODY),
    }

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        encoding, body = answers[path.split("/")[1]]
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def ask() -> dict[str, Node]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fleet = Fleet()
        async with server:
            await ask_agents(
                [f"http://127.0.0.1:{port}/{name}" for name in answers], Inquiry(timeout_s=END_S), fleet.heard
            )
        return {url.rpartition("/")[2]: node for url, node in fleet.nodes.items()}

    nodes = asyncio.run(ask())
    assert {name for name, node in nodes.items() if node.report is not None} == {"plain", "good"}
    assert nodes["bomb"].why.endswith(" 32 MiB")
    assert "'gzip, gzip'" in nodes["twice"].why


def test_a_record_survives_a_report_that_is_too_deep(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    recorder = Recorder(tmp_path / "fleet.jsonl", ["deep", "good"])
    good = transports.node_of("good", REPORT)
    recorder.take(good, REPORT | {"more": deep})
    recorder.take(good, REPORT)
    recorder.close()
    nodes, _ = read_record(tmp_path / "fleet.jsonl")
    assert [node.name for node in nodes] == ["good"]
    while deep:  # by hand: freeing it is recursive
        deep = deep.pop()


@pytest.mark.parametrize(
    "url", ["http://n1:9470", "http://10.0.0.1:9470", "http://127.0.0.1@n1", "http://n1#@localhost"]
)
def test_the_token_is_sent_to_nobody_on_the_way(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_DOCTOR_TOKEN", "planted")
    with pytest.raises(UsageError, match="unencrypted") as caught:
        Inquiry(token=read_token(None)).check_agents([url])
    assert "planted" not in str(caught.value)
    assert "--insecure-token" in caught.value.hint
    Inquiry(token=read_token(None), insecure_token=True).check_agents([url])


@pytest.mark.parametrize("url", ["https://n1:9470", "http://127.0.0.1:9470", "http://localhost:1", "http://[::1]:9470"])
def test_the_token_is_sent_over_tls_and_to_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_DOCTOR_TOKEN", "planted")
    Inquiry(token=read_token(None)).check_agents([url])
    monkeypatch.delenv("AIFX_DOCTOR_TOKEN")
    assert read_token(None) == ""
    Inquiry().check_agents(["http://n1"])


@pytest.mark.parametrize(
    "word",
    [
        "n[1-100000][1-100000]",
        "n[0-100000]",
        "n[1-99999,1-99999]",
        "[1-99999]" * 500,
        "n[1-" + "9" * 5000 + "]",
        "n[1-99999999,99999999-1]",
        "n[1-99999999",
    ],
)
def test_more_nodes_than_aifx_asks_are_refused_at_once(word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"more than 100,000 nodes|limit"):
        expand(word)
    (tmp_path / "hosts").write_text(f"a\n{word}\n")
    with pytest.raises(UsageError, match="line 2"):
        read_hosts(tmp_path / "hosts")


def test_a_long_list_takes_no_quadratic_time() -> None:
    """The names have several dimensions, and ClusterShell would compare them with each other for minutes."""
    names = [f"rack{number % 7}-n{number}" for number in range(50_000)]
    assert expand(",".join(names)) == names


def test_ranges_that_are_too_many_together_are_refused(tmp_path: Path) -> None:
    assert len(expand("n[1-10]x[001-100]")) == 1000
    with pytest.raises(ValueError, match="more than 100,000"):
        expand("n[1-60000],m[1-60000]")
    (tmp_path / "hosts").write_text("n[1-60000]\nm[1-60000]\n")
    with pytest.raises(UsageError, match="line 2") as caught:
        read_hosts(tmp_path / "hosts")
    assert "more than 100,000" in caught.value.why

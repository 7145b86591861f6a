"""Ask nodes for their reports, many at a time: over ssh, with one srun, or through their agents over HTTP.

`on_answer` gets each answer at once, so that a signal loses no answer that has arrived. No node raises an exception:
one without a report is a `Node` with the reason.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shlex
import ssl
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import httpx

from aifx.cluster.hosts import srun_command, ssh_command
from aifx.core.errors import AifxError, EnvironmentFault, UsageError
from aifx.core.parsing import parse_json
from aifx.core.processes import MAX_BYTES, Child, Ended, pump, run_many
from aifx.health.agent_token import is_private
from aifx.health.fleet.compare import light
from aifx.health.fleet.report import Node, node_of

LIMITS_S = {None: 30.0, "quick": 300.0, "full": 1800.0}
"""Time for a node, by its stress test."""
AT_ONCE, AGENTS_AT_ONCE = 64, 256
MAX_LINE = 4096
"""Bytes of a line of srun's output; a line of a report has 76, after its label."""
MAX_BEGINS = 10
SET_UP = (
    "permission denied", "host key", "too many authentication", "certificate", "not resolve", "name resolution",
    "name or service", "no address associated", "nodename nor servname",
)  # fmt: skip
"""Messages of ssh, TLS and name resolution that do not concern the health of a node."""
AGENT_PATH = "/v1/report"
SRUN = ("--kill-on-bad-exit=0", "--no-kill", "--wait=0", "--label")
START_S = 15.0
"""The time for Slurm to start a step, in addition to the time of a node."""

POLL_S = 0.02
GRACE_S = 2.0
"""srun ends its step on SIGTERM."""

TOO_LARGE = f"it sent more than {MAX_BYTES >> 20} MiB"

OnAnswer = Callable[[Node, Any], None]
"""Takes a node and its document; None if it sent none."""


class NoReport(Exception):
    """A node sent no report. It is silent if nothing arrived, rather than something that is not a report."""

    def __init__(self, why: str, *, is_silent: bool = False) -> None:
        super().__init__(why)
        self.is_silent = is_silent


@dataclass(frozen=True)
class Inquiry:
    """The question to nodes, and the way in which it is asked.

    Attributes:
        timeout_s: for a node, from the moment that it is asked; None for the usual time.
        at_once: the number of nodes asked at a time; None for the usual number.
        remote: the words of the command that runs aifx on a node.
        token: what agents are shown; empty for none.
        tls: the authorities that must have signed agents' certificates; None for the system's.
    """

    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    sample_s: float = 0.0
    stress: Literal["quick", "full"] | None = None
    timeout_s: float | None = None
    at_once: int | None = None
    remote: Sequence[str] = ("aifx",)
    token: str = ""
    insecure_token: bool = False
    tls: ssl.SSLContext | None = None

    @property
    def limit_s(self) -> float:
        return (LIMITS_S[self.stress] + self.sample_s) if self.timeout_s is None else self.timeout_s

    def command(self) -> list[str]:
        """Return the command that a node runs. The comparison across nodes is not among its checks."""
        words = [*self.remote, "doctor", "node", "--json", "--with-snapshot"]
        for option, patterns in (("--only", self.only), ("--skip", self.skip)):
            words += [word for pattern in patterns if pattern.split(".")[0] != "fleet" for word in (option, pattern)]
        words += ["--sample", f"{self.sample_s:g}"] if self.sample_s else []
        return words + (["--stress", self.stress] if self.stress else [])

    def check_agents(self, agents: Sequence[str]) -> None:
        """Check that agents can be asked and the token stays secret. Raises UsageError."""
        if agents and (self.stress or self.sample_s):
            option = "--stress" if self.stress else "--sample"
            why = "an agent sends its last report and runs nothing"
            raise UsageError(f"{option} cannot be used with agents", why, "ask over ssh: --hosts FILE")
        open_ = next((url for url in agents if not is_private(url)), None)
        if open_ and self.token and not self.insecure_token:
            why = "anybody on the way could read it, and show it to every agent"
            hint = f"--agents {open_.replace('http', 'https', 1)}, or --insecure-token"
            raise UsageError(f"the token would go to {open_} unencrypted", why, hint)


async def ask_agents(addresses: Sequence[str], inquiry: Inquiry, on_answer: OnAnswer) -> None:
    """Ask agents over HTTP. An address may have a path: `http://n1:9470/path`."""
    headers = {"Accept-Encoding": "gzip"} | ({"Authorization": f"Bearer {inquiry.token}"} if inquiry.token else {})
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    verify = inquiry.tls or any(address.startswith("https") for address in addresses)
    places = asyncio.Semaphore(inquiry.at_once or AGENTS_AT_ONCE)
    # httpx follows no redirect, which would take the token along.
    client = httpx.AsyncClient(headers=headers, limits=limits, verify=verify, timeout=None, trust_env=False)
    async with client, asyncio.TaskGroup() as group:
        for address in addresses:
            group.create_task(_ask_agent(client, places, address, inquiry, on_answer))


async def _ask_agent(
    client: httpx.AsyncClient, places: asyncio.Semaphore, address: str, inquiry: Inquiry, on_answer: OnAnswer
) -> None:
    answer: bytes | NoReport
    async with places:
        began = time.monotonic()
        try:
            async with asyncio.timeout(inquiry.limit_s):
                answer = await _fetched(client, address.rstrip("/") + AGENT_PATH)
        except TimeoutError:
            answer = NoReport(f"no answer in {inquiry.limit_s:g} s", is_silent=True)
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            answer = NoReport(why, is_silent=not _is_set_up_wrong(why))
        except httpx.InvalidURL as error:
            answer = NoReport(str(error))
        except NoReport as why:
            answer = why
    _receive(address, answer, time.monotonic() - began, on_answer)


async def _fetched(client: httpx.AsyncClient, url: str) -> bytes:
    async with client.stream("GET", url) as answer:
        received = bytearray()
        async for part in answer.aiter_raw():  # httpx would decompress any number of layers, without a limit
            received += part
            if len(received) > MAX_BYTES:
                raise NoReport(TOO_LARGE)
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise NoReport(f"its encoding {encoding[:40]!r} is not gzip")
    body = bytes(received) if encoding == "identity" else _unpacked(bytes(received))
    if answer.status_code != 200:
        message = _last_line(body)
        with suppress(ValueError, AttributeError):
            message = str(parse_json(body).get("error", message))
        raise NoReport(f"it answered {answer.status_code} {answer.reason_phrase}: {message}")
    return body


def _unpacked(packed: bytes) -> bytes:
    """Decompress one layer of gzip, up to MAX_BYTES. Raises NoReport for more, and for invalid gzip."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        body = unpacker.decompress(packed, MAX_BYTES + 1)
    except zlib.error as error:
        raise NoReport(f"it sent invalid gzip: {error}") from None
    if len(body) > MAX_BYTES:
        raise NoReport(TOO_LARGE)
    if not unpacker.eof:
        raise NoReport("its report is truncated")
    return body


async def ask_ssh(hosts: Sequence[str], inquiry: Inquiry, on_answer: OnAnswer) -> None:
    """Ask with one `ssh` per node; keys, ports and jump hosts come from ~/.ssh/config."""

    def asked(host: str) -> Child:
        command = ssh_command(host, inquiry.command(), connect_s=inquiry.limit_s)
        return Child(command, name=host, limit_s=inquiry.limit_s, grace_s=GRACE_S)

    with closing(run_many(map(asked, hosts), inquiry.at_once or AT_ONCE, 0.0)) as ended:
        for child in ended:
            if child is None:
                await asyncio.sleep(POLL_S)
            else:
                _receive(child.name, partial(_sent, child.wait(), inquiry.limit_s), child.wait().duration_s, on_answer)


def _sent(ended: Ended, limit_s: float) -> bytes:
    """Return what a node sent over ssh. Raises NoReport."""
    if ended.cut == "output":
        raise NoReport(TOO_LARGE)
    if ended.cut:
        raise NoReport(f"no answer in {limit_s:g} s", is_silent=True)
    if ended.code == 255 or not ended.output.strip():
        # 255 is an error of ssh itself: it did not reach the node, or was not let in.
        why = ended.last_line[:200] or f"{ended.how}, and it printed nothing"
        raise NoReport(why, is_silent=ended.code == 255 and not _is_set_up_wrong(why))
    return ended.output


def _is_set_up_wrong(why: str) -> bool:
    """Return whether the connection is misconfigured, so that nothing is known of the node's health."""
    return any(words in why.lower() for words in SET_UP)


async def ask_slurm(hosts: Sequence[str], inquiry: Inquiry, on_answer: OnAnswer) -> None:
    """Ask with one `srun` over the nodes of this allocation. Raises EnvironmentFault if no step can start.

    Tasks share one stream, in which slurmstepd breaks lines after 1,024 bytes (SLURM_IO_MAX_MSG_LEN). A task therefore
    sends the name of its node, its report compressed in lines of 76 bytes, and an end mark.
    """
    command = srun_command(hosts, ["sh", "-c", _packed(inquiry)], *SRUN)
    waiting, tasks = dict.fromkeys(hosts), dict[str, _Task]()
    limit_s = inquiry.limit_s + START_S
    began = time.monotonic()
    with Child(command, limit_s=limit_s, grace_s=GRACE_S) as srun:
        while srun.ended is None:
            pump([srun], 0.0)
            lines = srun.take_lines(MAX_LINE)
            for line in lines:
                label, _, text = line.decode("utf-8", "replace").partition(": ")
                if not label.strip().isdigit():
                    continue  # not from a task
                task = tasks.setdefault(label.strip(), _Task())
                if task.takes(text) and task.node in waiting:
                    del waiting[task.node]
                    _receive(task.node, task.unpacked, time.monotonic() - began, on_answer)
            await asyncio.sleep(0 if lines else POLL_S)  # meanwhile other nodes are asked
    ended = srun.wait()
    if ended.last_lines and not tasks and not ended.cut and ended.code != 0:
        raise EnvironmentFault("srun could not start a step", ended.last_line, "squeue --me --steps")
    for host in waiting:
        why = next((line for line in ended.last_lines if host in line), f"no answer in {limit_s:g} s")
        on_answer(Node(host, why=why, is_silent=True, took_s=round(ended.duration_s, 3)), None)


def _packed(inquiry: Inquiry) -> str:
    """Return a line of shell that sends a node's report. `timeout` ends a check that nobody waits for any more."""
    check = f"timeout -k 2 {inquiry.limit_s:g} {shlex.join(inquiry.command())}"
    return f'echo "node $SLURMD_NODENAME"; {{ {check} 2>&1; }} | gzip -c | base64; echo end'


class _Task:
    """The output of one task of srun."""

    def __init__(self) -> None:
        self.node = ""
        self._lines: list[str] = []
        self._num_bytes = 0

    def takes(self, line: str) -> bool:
        """Take a line, and return whether it was the last one."""
        if line.startswith("node "):
            self.node = line.removeprefix("node ").strip()
        elif line != "end":
            self._num_bytes += len(line) + 1
            if self._num_bytes <= MAX_BYTES:
                self._lines.append(line)
        return line == "end"

    def unpacked(self) -> bytes:
        if self._num_bytes > MAX_BYTES:
            raise NoReport(TOO_LARGE)
        try:
            packed = base64.b64decode("".join(self._lines))
        except ValueError:
            packed = b""
        if not packed.startswith(b"\x1f\x8b"):  # a message of the shell instead of a report
            raise NoReport(_last_line("\n".join(self._lines).encode()) or "it printed nothing")
        report = _unpacked(packed)
        if not report:
            raise NoReport("the check did not finish there in time", is_silent=True)
        return report


def _receive(name: str, answer: bytes | NoReport | Callable[[], bytes], took_s: float, on_answer: OnAnswer) -> None:
    took_s = round(took_s, 3)
    document: Any
    try:
        if isinstance(answer, NoReport):
            raise answer
        body = answer if isinstance(answer, bytes) else answer()
        document = _document(body)
        node = node_of(name, light(document), took_s)
    except NoReport as why:
        document, node = None, Node(name, why=" ".join(str(why).split()), is_silent=why.is_silent, took_s=took_s)
    except AifxError as error:
        document, node = None, Node(name, why=f"{error.what.removeprefix(name).strip()}: {error.why}", took_s=took_s)
    except Exception as error:  # a node that sends nonsense must not affect the others
        document, node = None, Node(name, why=f"its report is nonsense ({type(error).__name__})", took_s=took_s)
    on_answer(node, document)


def _document(body: bytes) -> Any:
    """Return the document in a node's output, which a login script may have written to as well. Raises NoReport."""
    text = body.decode("utf-8", "replace")
    begins = [0, *(match.end() - 1 for match in re.finditer(r"\n\{", text))]
    for begin in begins[:MAX_BEGINS]:
        with suppress(ValueError):
            return parse_json(text[begin:])
    raise NoReport(f"it did not send JSON: {_last_line(body) or 'nothing'}")


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""

"""Nodes asked for their report, many at a time: over ssh, with one srun, or through their agents over HTTP.

Whatever comes of a node is handed to `heard` at once, so that nothing which has arrived is lost when the rest is given
up. No node raises: one that says nothing, or something else, is a `Node` that says so.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from aifx.errors import AifxError, EnvironmentFault
from aifx.health.fleet.compare import light
from aifx.health.fleet.report import Node, node_of

MAX_BYTES = 32 << 20
MAX_BEGINS = 10
SET_UP = (
    "permission denied", "host key", "too many authentication", "certificate", "not resolve", "name resolution",
    "name or service", "no address associated", "nodename nor servname",
)  # fmt: skip
"""What ssh, TLS and name resolution say where a node is not to blame."""
AGENT_PATH = "/v1/report"
SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout={seconds}", "-o", "LogLevel=ERROR", "--")
SRUN = ("srun", "--overlap", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--no-kill", "--wait=0", "--label")
START_S = 15.0
"""What Slurm may take to start a step, besides the time that a node has."""

Heard = Callable[[Node, Any], None]
"""Takes a node and the document that it sent; None where it sent none."""


class NoReport(Exception):
    """Args:
    why: one line.
    is_silent: whether nothing came, rather than something that is no report.
    """

    def __init__(self, why: str, *, is_silent: bool = False) -> None:
        super().__init__(why)
        self.is_silent = is_silent


@dataclass(frozen=True)
class Question:
    """What the nodes are asked.

    Attributes:
        timeout_s: how long a node may take, from the moment that it is asked.
        at_once: how many are asked at a time.
        command: what is run on a node; agents know by themselves.
        token: what agents are shown; empty for none.
        tls: whom agents must be signed by; None for the system's authorities.
    """

    timeout_s: float = 30.0
    at_once: int = 64
    command: tuple[str, ...] = ("aifx", "doctor", "--json", "--with-snapshot")
    token: str = ""
    tls: ssl.SSLContext | None = None


async def ask_agents(addresses: Sequence[str], question: Question, heard: Heard) -> None:
    """Over HTTP. An address is that of an agent (`http://n1:9470`); what stands behind the host is kept."""
    headers = {"Authorization": f"Bearer {question.token}"} if question.token else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    verify = question.tls or any(address.startswith("https") for address in addresses)
    # Proxies are for the world outside, and a redirect would take the token along.
    async with httpx.AsyncClient(
        headers=headers, limits=limits, verify=verify, timeout=None, trust_env=False, follow_redirects=False
    ) as client:

        async def ask(address: str) -> bytes:
            try:
                return await _fetched(client, address.rstrip("/") + AGENT_PATH)
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
                raise NoReport(why, is_silent=not _is_set_up_wrong(why)) from None
            except httpx.InvalidURL as error:
                raise NoReport(str(error)) from None

        await _each(addresses, ask, question, heard)


async def _fetched(client: httpx.AsyncClient, url: str) -> bytes:
    async with client.stream("GET", url) as answer:
        body = bytearray()
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > MAX_BYTES:
                raise NoReport(f"it sends more than {MAX_BYTES >> 20} MiB")
    if answer.status_code != 200:
        said = _last_line(bytes(body))
        with suppress(ValueError, AttributeError, RecursionError):
            said = str(json.loads(body).get("error", said))
        raise NoReport(f"it answers {answer.status_code} {answer.reason_phrase}: {said}")
    return bytes(body)


async def ask_ssh(hosts: Sequence[str], question: Question, heard: Heard) -> None:
    """With one `ssh` a node; keys, ports and jumps are those of ~/.ssh/config."""
    seconds = str(max(int(question.timeout_s), 1))
    words = [word.format(seconds=seconds) for word in SSH]
    _need(words[0])

    async def ask(host: str) -> bytes:
        async with _Process([*words, host, shlex.join(question.command)]) as process:
            out, err = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            await process.wait()
        if process.returncode == 255 or not out.strip():
            # 255 is ssh's own word. It could not come in, or found nothing there.
            why = _last_line(err) or f"exit {process.returncode}, and it said nothing"
            raise NoReport(why, is_silent=process.returncode == 255 and not _is_set_up_wrong(why))
        return out

    await _each(hosts, ask, question, heard)


def _is_set_up_wrong(why: str) -> bool:
    """Whether the way to the node is what fails, so that nothing is known of its health."""
    return any(words in why.lower() for words in SET_UP)


async def ask_slurm(hosts: Sequence[str], question: Question, heard: Heard) -> None:
    """With one `srun` over the nodes of this allocation. Raises EnvironmentFault where no step can be started.

    Tasks share one stream, in which slurmstepd breaks lines behind 1,024 bytes (SLURM_IO_MAX_MSG_LEN): what they send
    is packed in lines of 76, behind the name of the node and between two marks.
    """
    command = [*SRUN, f"--nodes={len(hosts)}", f"--nodelist={','.join(hosts)}", "sh", "-c", _packed(question)]
    _need(command[0])
    began = time.monotonic()
    waiting, tasks, said = dict.fromkeys(hosts), dict[str, _Task](), bytearray()
    limit_s = question.timeout_s + START_S
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s), _Process(command) as process, asyncio.TaskGroup() as group:
            group.create_task(_read(process.stderr, said))
            assert process.stdout is not None
            async for line in process.stdout:
                label, _, text = line.decode("utf-8", "replace").rstrip("\n").partition(": ")
                task = tasks.setdefault(label.strip(), _Task())
                if task.takes(text) and task.node in waiting:
                    del waiting[task.node]
                    _hear(task.node, task.unpacked, time.monotonic() - began, heard)
            await process.wait()
    words = said.decode("utf-8", "replace").strip().splitlines()
    if words and not tasks and process.returncode:
        raise EnvironmentFault("srun could not start a step", words[-1], "squeue --me --steps")
    for host in waiting:
        why = next((line for line in words if host in line), f"no answer in {limit_s:g} s")
        heard(Node(host, why=why, is_silent=True, took_s=round(time.monotonic() - began, 3)), None)


def _packed(question: Question) -> str:
    """A line of shell that sends a node's report. `timeout` ends a check there that nobody waits for any more."""
    check = f"timeout -k 2 {question.timeout_s:g} {shlex.join(question.command)}"
    return f'echo "node $SLURMD_NODENAME"; {{ {check} 2>&1; }} | gzip -c | base64; echo end'


class _Task:
    """What one task of srun's has sent."""

    def __init__(self) -> None:
        self.node = ""
        self._lines: list[str] = []

    def takes(self, line: str) -> bool:
        """Whether this was its last line."""
        if line.startswith("node "):
            self.node = line.removeprefix("node ").strip()
        elif line != "end":
            self._lines.append(line)
        return line == "end"

    def unpacked(self) -> bytes:
        try:
            report = zlib.decompress(base64.b64decode("".join(self._lines)), wbits=31)
        except (ValueError, zlib.error):
            raise NoReport(_last_line("\n".join(self._lines).encode()) or "it said nothing") from None
        if not report:
            raise NoReport("the check did not end there in time", is_silent=True)
        return report


async def _each(
    targets: Sequence[str], ask: Callable[[str], Awaitable[bytes]], question: Question, heard: Heard
) -> None:
    places = asyncio.Semaphore(question.at_once)

    async def one(target: str) -> None:
        async with places:
            began = time.monotonic()
            answer: bytes | NoReport
            try:
                async with asyncio.timeout(question.timeout_s):
                    answer = await ask(target)
            except TimeoutError:
                answer = NoReport(f"no answer in {question.timeout_s:g} s", is_silent=True)
            except NoReport as why:
                answer = why
        _hear(target, answer, time.monotonic() - began, heard)

    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(one(target))


def _hear(name: str, answer: bytes | NoReport | Callable[[], bytes], took_s: float, heard: Heard) -> None:
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
    except Exception as error:  # a node that sends nonsense must not take the others with it
        document, node = None, Node(name, why=f"its report is nonsense ({type(error).__name__})", took_s=took_s)
    heard(node, document)


def _document(body: bytes) -> Any:
    """What a node sent. A login script may have said something before it. Raises NoReport."""
    text = body.decode("utf-8", "replace")
    begins = [0, *(match.end() - 1 for match in re.finditer(r"\n\{", text))]
    for begin in begins[:MAX_BEGINS]:
        with suppress(ValueError):
            return json.loads(text[begin:])
    raise NoReport(f"it sent no JSON: {_last_line(body) or 'nothing'}")


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""


async def _read(stream: asyncio.StreamReader | None, into: bytearray | None = None) -> bytes:
    assert stream is not None
    said = bytearray() if into is None else into
    while part := await stream.read(1 << 16):
        said += part
        if len(said) > MAX_BYTES:
            raise NoReport(f"it sends more than {MAX_BYTES >> 20} MiB")
    return bytes(said)


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise EnvironmentFault(f"there is no {program} here", "the nodes are asked through it", f"install {program}")


class _Process:
    """A command in a session of its own, which ends with the block, however that ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def __aenter__(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
        return self._process

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            # srun ends its step on SIGTERM; what does not end is killed.
            for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), patience_s)
                    return

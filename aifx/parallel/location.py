"""This process's place in its job, from this machine: variables, metadata, name services. Imports no jax."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from aifx.core.errors import EnvironmentFault
from aifx.core.executables import find_program
from aifx.core.processes import run
from aifx.machine.present import nvidia_gpus, tpu_generations
from aifx.parallel.processes import Membership, detect

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
METADATA_S = 2.0


def detect_here() -> Membership | None:
    """`detect` for this process on this machine."""
    fqdn = socket.getfqdn() if "JOB_COMPLETION_INDEX" in os.environ else ""  # it may ask the name service
    metadata = _metadata if tpu_generations() else lambda _: None
    return detect(os.environ, fqdn=fqdn, num_gpus=nvidia_gpus(), metadata=metadata)


def resolve(host: str, limit_s: float) -> str:
    """The IP address of a host, asked for until it is known. Raises EnvironmentFault.

    The name of a Slurm node need not be one that the name service knows; Slurm itself has the address.
    """
    deadline = time.monotonic() + limit_s
    why = f"the name service does not answer within {limit_s:g} s"
    while True:
        found: list[Any] = []
        asking = threading.Thread(target=_ask, args=(host, found), daemon=True)  # it has no limit of its own
        asking.start()
        asking.join(max(deadline - time.monotonic(), 0.1))
        if found and isinstance(found[0], str):
            return found[0]
        if found:
            why = str(found[0])
        if (address := _slurm_address(host)) is not None:
            return address
        if time.monotonic() + 1 > deadline:
            hint = "export AIFX_COORDINATOR=ADDRESS:PORT names process 0 by its address"
            raise EnvironmentFault(f"the address of process 0, {host}, is not known", why, hint)
        time.sleep(1.0)


def _ask(host: str, found: list[Any]) -> None:
    try:
        families = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found.append(min(families, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    except (OSError, UnicodeError) as error:
        found.append(error)


def _slurm_address(node: str) -> str | None:
    if "SLURM_JOB_ID" not in os.environ or (program := find_program("scontrol")) is None:
        return None
    ended = run([program, "show", "node", node, "--oneliner"], limit_s=10)
    fields = dict(part.split("=", 1) for part in ended.output.decode("utf-8", "replace").split() if "=" in part)
    address = fields.get("NodeAddr", "")
    try:
        return str(socket.getaddrinfo(address, None)[0][4][0]) if address not in ("", node) else None
    except OSError:
        return None


def _metadata(name: str) -> str | None:
    import httpx

    try:
        answer = httpx.get(METADATA + name, headers={"Metadata-Flavor": "Google"}, timeout=METADATA_S)
    except httpx.HTTPError:
        return None
    return answer.text if answer.status_code == httpx.codes.OK else None

"""Addresses, ports and streams of a process that joins a job."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from aifx.core.errors import EnvironmentFault
from aifx.parallel.connections import free_port
from aifx.parallel.joining import restore_stdout, stdout_for_answers
from aifx.parallel.processes import PORTS, resolve

END_S = 120.0


def test_addresses_of_hosts() -> None:
    assert resolve("127.0.0.1", END_S) == "127.0.0.1"
    assert resolve("localhost", END_S) in ("127.0.0.1", "::1")


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(EnvironmentFault, match=r"process 0, node-1\.invalid") as raised:
        resolve("node-1.invalid", 0.2)
    assert "AIFX_COORDINATOR" in raised.value.hint


def test_a_name_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    has_failed = threading.Event()

    def hang(*_: object, **__: object) -> None:
        has_failed.wait(END_S)
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(EnvironmentFault, match="is not known") as raised:
        resolve("node-1", 0.2)
    has_failed.set()
    assert "does not answer" in raised.value.why


def test_slurm_knows_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho NodeName=$3 NodeAddr=127.0.0.9 NodeHostName=here\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert resolve("n1.invalid", END_S) == "127.0.0.9"


def test_a_free_port() -> None:
    port = free_port("127.0.0.1")
    assert port in PORTS
    socket.create_server(("127.0.0.1", port)).close()


def test_stdout_is_for_answers(capfd: pytest.CaptureFixture[str]) -> None:
    with stdout_for_answers():
        os.write(1, b"noise\n")
        restore_stdout()
        os.write(1, b"an answer before the end\n")
    os.write(1, b"an answer\n")
    out, err = capfd.readouterr()
    assert out == "an answer before the end\nan answer\n"
    assert err == "noise\n"

"""A local S3 server, for tests of remote stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import httpx
import pytest

TIMEOUT_S = 120

Application: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Any]
"""A web application as WSGI has it: from a request and the function that begins an answer to the answer's body."""


@contextmanager
def s3_server(
    monkeypatch: pytest.MonkeyPatch, wrapped: Callable[[Application], Application] = lambda moto: moto
) -> Iterator[Any]:
    """The file system of a server that runs meanwhile, which has the bucket `bucket`.

    Args:
        wrapped: makes the application that the server runs of moto's, such as one that ignores a header.
    """
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    server._server.app = wrapped(server._server.app)  # type: ignore[union-attr]
    host, port = server.get_host_and_port()
    httpx.post(f"http://{host}:{port}/moto-api/reset", timeout=TIMEOUT_S)  # servers of one process share their buckets
    credentials = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**credentials, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    for name in ("connect_timeout", "read_timeout"):
        monkeypatch.setattr(s3fs.S3FileSystem, name, TIMEOUT_S)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    try:
        yield files
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()

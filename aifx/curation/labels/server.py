"""The life of the server of the page: from a port to Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from aifx.core.files import read_file
from aifx.core.private_folders import make_private
from aifx.core.project import cache_path
from aifx.core.web.connections import Limits, connection_class
from aifx.core.web.errors import WebError
from aifx.core.web.sockets import quiet_uvicorn, uvicorn_server
from aifx.curation.labels.app import Labelling, make_app

TOKEN_FILES = "label-tokens"


def token_of(label_file: Path) -> str:
    """The token of a label file's server: the same each time, so that an open page goes on after a restart."""
    folder = cache_path(TOKEN_FILES)
    make_private(folder)
    path = folder / hashlib.sha256(str(label_file.resolve()).encode()).hexdigest()[:32]
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(24))
    token = read_file(path).decode().strip()
    if not token:  # a process was killed as it wrote
        path.unlink()
        return token_of(label_file)
    return token


class LabelServer:
    """Answers the page at a socket until Ctrl-C, SIGTERM or `stop`."""

    def __init__(self, labelling: Labelling, bound: socket.socket, token: str) -> None:
        self._socket = bound
        self._uvicorn = uvicorn_server(make_app(labelling, token), connection_class(Limits(), None, WebError))

    def run(self, on_listening: Callable[[], None] = lambda: None) -> None:
        """Serve. In the main thread, SIGTERM ends it, and Ctrl-C raises KeyboardInterrupt, after the last answer."""
        with quiet_uvicorn():
            ended_by = asyncio.run(self._serve(on_listening))
        if ended_by == signal.SIGINT:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """From any thread."""
        self._uvicorn.should_exit = True

    async def _serve(self, on_listening: Callable[[], None]) -> int | None:
        ended_by: list[int] = []

        def end(number: int) -> None:
            ended_by.append(number)
            self.stop()

        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, end, number)
        serving = loop.create_task(self._uvicorn.serve([self._socket]))
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(0.005)
        on_listening()
        await serving
        return ended_by[0] if ended_by else None

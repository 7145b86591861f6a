"""A receiver of webhooks on loopback, which verifies each request with the reference library, or misbehaves."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from standardwebhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOOPBACK = ("127.0.0.0/8",)

Answer = int | Literal["reset", "hang", "lost"]
"""A status; a connection that is reset before an answer; none at all; one that is lost after the event was taken."""


class Receiver:
    """What arrived, in order.

    Attributes:
        answer: decides what the receiver does with an event.
        accepted: events, as often as they were accepted.
        attempts: (webhook-id, webhook-timestamp, webhook-signature) of each request that could be verified.
    """

    def __init__(self, port: int) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda event: 204
        self.accepted: list[dict[str, Any]] = []
        self.attempts: list[tuple[str, str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{port}/hook/secret-part"

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.accepted]


@contextmanager
def receiver(certificate: tuple[Path, Path] | None = None) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            # What cannot be verified raises: the connection ends without an answer.
            event = Webhook(SECRET).verify(body, headers)
            state.headers.append(headers)
            state.attempts.append((headers["webhook-id"], headers["webhook-timestamp"], headers["webhook-signature"]))
            answer = state.answer(event)
            if answer == "lost" or (isinstance(answer, int) and 200 <= answer < 300):
                state.accepted.append(event)
            if answer == "hang":  # until the sender gives up
                with suppress(OSError):
                    self.connection.settimeout(60)
                    self.connection.recv(1)
            if isinstance(answer, str):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer)
            if 300 <= answer < 400:
                self.send_header("Location", f"{state.url}/elsewhere")
            self.send_header("Content-Length", "0" if answer == 204 else "2")
            self.end_headers()
            self.wfile.write(b"" if answer == 204 else b"ok")

        def finish(self) -> None:
            with suppress(OSError, ValueError):  # of a connection that was reset
                super().finish()

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *args: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        state = Receiver(server.server_address[1])
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*certificate)
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            state.url = state.url.replace("http://", "https://")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()

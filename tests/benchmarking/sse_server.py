"""A server with OpenAI's streaming completions, in a thread: what it answers is the test's."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Awaitable, Callable
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

Write = Callable[[Any], Awaitable[None]]
Answer = Callable[[dict[str, Any], Write], Awaitable[None]]


class Refusal(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class SseServer:
    """Attributes:
    tokens: answers of /tokenize; 404 if None.
    digests: of the model, by /ready, one after the other; 404 if there is none.
    bodies: of the requests that were sent.
    at_once: the largest number of requests that ran together.
    closes_reused: whether a connection takes one request, which its client cannot know.
    resets: whether it closes such a connection with a reset, as the system does if bytes of a request were not read.
    """

    def __init__(self, answer: Answer, tokens: list[int] | None = None) -> None:
        self.answer, self.tokens = answer, tokens
        self.digests: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.running = self.at_once = 0
        self.closes_reused = self.resets = False
        self._used = set[asyncio.StreamWriter]()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(120)

    async def _serve(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(120)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if self.closes_reused and writer in self._used:
                    if self.resets:
                        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                    return
                self._used.add(writer)
                path = head.split()[1].decode()
                fields = dict(_field(line) for line in head.split(b"\r\n")[1:] if b": " in line)
                body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                key = fields.get(b"authorization")
                await self._respond(path, json.loads(body or b"{}"), key.decode() if key else None, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(self, path: str, body: dict[str, Any], key: str | None, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            return _whole(writer, 200, {"data": [{"id": "toy"}]})
        if path == "/ready":
            digest = self.digests.pop(0) if self.digests else None
            return _whole(writer, 200 if digest else 404, {"served": {"digest": digest}} if digest else {})
        if path == "/tokenize":
            return _whole(writer, 404 if self.tokens is None else 200, {"tokens": self.tokens or []})
        self.bodies.append(body)
        self.keys.append(key)
        self.running += 1
        self.at_once = max(self.at_once, self.running)
        started = False

        async def write(event: Any) -> None:
            nonlocal started
            if not started:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                started = True
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()

        try:
            await self.answer(body, write)
            writer.write(b"0\r\n\r\n")
        except Refusal as refusal:
            _whole(writer, refusal.status, {"error": {"message": refusal.message}})
        finally:
            self.running -= 1


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, value = line.split(b": ", 1)
    return name.lower(), value


def _whole(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    writer.write(
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    )
    writer.write(data)


def text(part: str, finish_reason: str | None = None) -> dict[str, Any]:
    """A part of a completion."""
    return {"choices": [{"index": 0, "text": part, "finish_reason": finish_reason}]}


def usage(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    """The last part, with the server's counts."""
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}}

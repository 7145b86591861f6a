"""Chat templates in a process of their own: nothing can interrupt a template that loops in a thread of the server.

The process sets an alarm for each conversation. If the template is not done by then, the kernel ends the process,
whatever it does, and the next conversation starts another one. The kernel also refuses it memory: a template may double
a text again and again.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aifx.core.errors import AifxError, DataError
from aifx.core.lifecycle import killed_after
from aifx.core.limits import limit_memory
from aifx.data.chat.rendering import PromptWriter
from aifx.data.chat.rows import Message

MEMORY_BYTES = 1 << 30
"""Of the process; a conversation of 4 MiB takes at most 300 MB."""


class TemplateProcess:
    """Writes the text of conversations, one at a time: the caller sees to that."""

    def __init__(self, writer: PromptWriter, limit_s: float) -> None:
        """`limit_s`: that the template may take for a conversation."""
        self._writer, self._limit_s = writer, limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process if none runs. It is ready some tenths of a second later; requests wait for that."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        # -P, since the working directory may hold a module of the same name.
        argv = [sys.executable, "-P", "-m", "aifx.serving.template_process"]
        # A session of its own, so that Ctrl-C reaches only the server, which drains.
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        _send(self._process.stdin, (self._writer, self._limit_s, MEMORY_BYTES))

    def prompt_text(self, messages: Sequence[Message], place: str, tools: Sequence[Any]) -> str:
        """As `PromptWriter.prompt_text`. Also raises DataError if the template takes more time or memory."""
        self.start()
        assert self._process is not None
        try:
            _send(self._process.stdin, (messages, place, tools))
            assert self._process.stdout is not None
            found: str | AifxError = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._failure(place) from None
        if isinstance(found, AifxError):
            raise found
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # of what it no longer reads
                stream.close()
        self._process = None

    def _failure(self, place: str) -> DataError:
        assert self._process is not None
        ended = self._process.wait()
        self.close()
        name = self._writer.template.name
        if ended == -signal.SIGALRM:
            what, why = "takes too long", f"longer than serve.template_s = {self._limit_s:g}"
        else:
            what, why = "fails", f"its process ended with {ended}"
        return DataError(f"{place}: the chat template {what}", f"{why}; template: {name}", "shorten the conversation")


def _send(stream: Any, value: Any) -> None:
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def main() -> None:
    """Write the conversations that come from stdin to stdout, until stdin ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    writer, limit_s, memory_bytes = pickle.load(requests)
    limit_memory(memory_bytes)
    while True:
        try:
            messages, place, tools = pickle.load(requests)
        except EOFError:
            return
        found: str | AifxError
        try:
            with killed_after(limit_s):
                found = writer.prompt_text(messages, place, tools=tools)
        except AifxError as error:
            found = error
        except MemoryError:
            what = f"{place}: the chat template takes too much memory"
            why = f"more than {memory_bytes >> 20} MiB; template: {writer.template.name}"
            found = DataError(what, why, "shorten the conversation")
        _send(answers, found)


if __name__ == "__main__":
    main()

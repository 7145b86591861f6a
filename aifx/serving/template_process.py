"""Chat templates in a process of their own: nothing can interrupt a template that loops in a thread of the server.

The process sets an alarm for each conversation. If the template is not done by then, the kernel ends the process,
whatever it does, and the next conversation starts another one. The kernel also refuses it memory: a template may double
a text again and again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from aifx.core.calls import CallProcess
from aifx.core.errors import AifxError, DataError, EnvironmentFault
from aifx.core.lifecycle import killed_after
from aifx.core.limits import limit_memory
from aifx.core.processes import pump
from aifx.data.chat.rendering import PromptWriter
from aifx.data.chat.rows import Message

MEMORY_BYTES = 1 << 30
"""Most memory of the process. A conversation of 4 MiB takes at most 300 MB."""


class TemplateProcess:
    """Writes the text of conversations, one at a time: the caller sees to that."""

    def __init__(self, writer: PromptWriter, limit_s: float) -> None:
        """`limit_s`: that the template may take for a conversation."""
        self._writer, self._limit_s = writer, limit_s
        self._process: CallProcess[str] | None = None

    def start(self) -> CallProcess[str]:
        """Start the process if none runs. It is ready some tenths of a second later; requests wait for that."""
        if self._process is not None:
            pump([self._process.child], 0.0)
            if self._process.child.ended is None:
                return self._process
        self.close()
        write = partial(_write, self._writer, self._limit_s, MEMORY_BYTES)
        self._process = CallProcess(write, partial(limit_memory, MEMORY_BYTES))
        return self._process

    def prompt_text(self, messages: Sequence[Message], place: str, tools: Sequence[Any]) -> str:
        """The text of `PromptWriter.prompt_text`. Also raises DataError if the template takes more time or memory."""
        process = self.start()
        try:
            (text,) = process.values(messages, place, tools)
        except EnvironmentFault:
            if (ended := process.child.ended) is None:  # what the template raised
                raise
            if ended.signal == signal.SIGALRM:
                what, why = "takes too long", f"longer than serve.template_s = {self._limit_s:g}"
            else:
                what, why = "fails", f"its process ended with {ended.how}"
            raise self._failure(place, what, why) from None
        except AifxError:
            raise
        except Exception as error:
            raise self._failure(place, "fails", f"{type(error).__name__}: {error}") from error
        return text

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _failure(self, place: str, what: str, why: str) -> DataError:
        why = f"{why}; template: {self._writer.template.name}"
        return DataError(f"{place}: the chat template {what}", why, "shorten the conversation")


def _write(
    writer: PromptWriter,
    limit_s: float,
    memory_bytes: int,
    messages: Sequence[Message],
    place: str,
    tools: Sequence[Any],
) -> Iterator[str]:
    """The text of a conversation. Runs in the process."""
    try:
        with killed_after(limit_s):
            text = writer.prompt_text(messages, place, tools=tools)
    except MemoryError:
        what = f"{place}: the chat template takes too much memory"
        why = f"more than {memory_bytes >> 20} MiB; template: {writer.template.name}"
        raise DataError(what, why, "shorten the conversation") from None
    yield text

"""Answers that are failures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Self


class WebError(Exception):
    """An answer that is a failure: `{"error": message}`, unless a subclass has another form.

    Args:
        code: a word for programs, for subclasses that have one.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = dict(headers or {})

    @classmethod
    def stopping(cls) -> Self:
        """The failure of a request that comes to a server that is draining."""
        headers = {"Retry-After": "5", "Connection": "close"}
        return cls(503, "the server is stopping", code="stopping", headers=headers)

    def body(self) -> bytes:
        """The answer's JSON."""
        return json.dumps({"error": self.message}).encode() + b"\n"


class ClientGone(Exception):
    """The client went away: nobody reads the answer."""

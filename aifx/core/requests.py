"""Requests: the id under which a caller asks for an effect, which happens once, however often it is asked for.

A command keeps the id and the outcome beside its effect, in one commit. Asked again with the same id, it reports that
outcome and does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter

from aifx.core.errors import UsageError

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""What the value of a label of Kubernetes may be, since a job has the id in one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """An act that is asked for.

    Attributes:
        id: the caller's.
        act: "data add corpus".
    """

    id: str
    act: str


class RequestDone(Exception):
    """A request was done before, and nothing is done for it again.

    Attributes:
        document: its outcome.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__()
        self.document = document

    def repeated(self, kind: type[T]) -> T:
        """The outcome as it was reported first, marked as repeated."""
        outcome: T = TypeAdapter(kind).validate_python({**self.document, "is_repeated": True})
        return outcome


def find_request(id: str | None, act: str) -> Request | None:
    """The request with an id, if one is given. Raises UsageError for what cannot be an id."""
    return None if id is None else Request(check_id(id), act)


def check_id(id: str) -> str:
    """`id`. Raises UsageError for what cannot be an id."""
    if not _ID.fullmatch(id):
        why = "an id is letters, digits, '.', '_' and '-', 63 at most, and begins and ends with a letter or digit"
        raise UsageError(f"--request {id!r} is no id", why, "--request 2026-12-02.1")
    return id


def check_act(id: str, is_same: bool, act: str) -> None:
    """Raise UsageError unless the act with an id is the one that is asked for."""
    if not is_same:
        raise UsageError(f"--request {id} belongs to another act", act, "give each act an id of its own")

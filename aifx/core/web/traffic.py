"""The requests of a server at this moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from aifx.core.web.access_log import AccessRecord


@dataclass(kw_only=True)
class Traffic:
    """The requests of a server at this moment. A server that logs them, or drains an engine, has a subclass.

    Attributes:
        is_draining: no more requests are taken.
        unfinished: requests by the network of their client.
    """

    is_draining: bool = False
    in_flight: int = 0
    unfinished: Counter[str] = field(default_factory=Counter)

    def record(self, id: str, client: str, method: str, path: str) -> AccessRecord:
        """The record of a request that begins."""
        return AccessRecord(id, client, method, path)

    def ended(self, record: AccessRecord, headers: Mapping[bytes, bytes]) -> None:
        """Log and count a request that has ended."""

    def drain(self) -> None:
        """Take no more requests."""
        self.is_draining = True

    def stop(self) -> None:
        """End what answers the requests that still run. In a thread."""

    def close(self) -> None:
        """Release what the server has opened, after its last answer."""

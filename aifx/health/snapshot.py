"""The facts of a machine at one time, as JSON that can be saved, sent and evaluated elsewhere."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError
from aifx.core.facts import Absent, Facts, Unknown, from_document, to_document
from aifx.core.files import read_input, write_output
from aifx.core.json_values import encode_json
from aifx.core.parsing import parse_json
from aifx.core.redaction import redact
from aifx.core.version import __version__
from aifx.health.host import Host, within
from aifx.health.probing import Probe
from aifx.health.scope import Scope

SCHEMA_VERSION = 1
HINT = "aifx doctor --record FILE writes one"
LATEST_S = 1 << 37  # beyond it, Unix time is no date


@dataclass(frozen=True)
class Snapshot:
    """Facts read of a machine at a Unix time, and at an earlier one of the same boot, if any, to compute rates."""

    host: str
    time: float
    facts: Facts
    before: Facts | None = None
    before_time: float = 0.0
    version: str = __version__

    def document(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "aifx": self.version,
            "host": self.host,
            "time": self.time,
            "facts": to_document(self.facts),
            "before": None if self.before is None else {"time": self.before_time, "facts": to_document(self.before)},
        }

    def scope(self) -> Scope:
        """Return the node, to evaluate rules on it."""
        return Scope(self.facts, self.before, (self.time - self.before_time) / 60 if self.before is not None else 0.0)

    def since(self, earlier: Snapshot | None) -> Snapshot:
        """Return this snapshot with rates since `earlier`, if that is of the same boot of the same machine."""
        if earlier is None or earlier.host != self.host or earlier.time >= self.time:
            return self
        boot = self.facts.get("boot_id")
        if not isinstance(boot, str) or boot != earlier.facts.get("boot_id"):
            return self
        return replace(self, before=earlier.facts, before_time=earlier.time)


def take(host: Host, probes: Iterable[Probe]) -> Snapshot:
    """Run all probes at once. The facts of a probe that fails or hangs are `Unknown`."""
    probes = list(probes)
    facts: Facts = {}
    with ThreadPoolExecutor(max_workers=max(len(probes), 1)) as pool:
        for found in pool.map(lambda probe: _collect(host, probe), probes):
            facts |= found
    facts["boot_id"] = host.read("/proc/sys/kernel/random/boot_id")
    return Snapshot(_host_name(host), time.time(), _clean(facts))


def _host_name(host: Host) -> str:
    """Return the machine's name. A copied tree without a host name has the name of its folder."""
    for path in ("/proc/sys/kernel/hostname", "/etc/hostname"):
        text = host.read(path)
        lines = [line.strip() for line in text.splitlines()] if isinstance(text, str) else []
        if name := next((line for line in lines if line and not line.startswith("#")), ""):
            return name
    return platform.node() if host.is_live else host.root.resolve().name


def _clean(value: Any) -> Any:
    """Remove secrets from all facts: a probe may read other sources than the host's files."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, (Absent, Unknown)):
        return replace(value, why=redact(value.why))
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def _collect(host: Host, probe: Probe) -> Facts:
    bug = "report this as a bug, with the file of --record"
    missing = Unknown(f"the {probe.name} probe returned nothing", bug)
    found: Facts = {}
    try:
        found = within(probe.limit_s, lambda: probe.collect(host), f"the {probe.name} probe")
    except TimeoutError as error:
        missing = Unknown(str(error), "look for a device or file system that hangs")
    except Exception as error:
        missing = Unknown(f"the {probe.name} probe failed: {type(error).__name__}: {error}", bug)
    return dict.fromkeys(probe.gives, missing) | found


def write(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot. Raises UnsafeFile, OSError."""
    text = encode_json(snapshot.document(), indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, text.encode())


def read(path: Path) -> Snapshot:
    """Read a snapshot. Raises DataError for any other file."""
    try:
        document = parse_json(read_input(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or str(error), HINT) from None
    except ValueError as error:
        raise DataError(f"{path} is not a snapshot", f"it is not JSON: {error}", HINT) from None
    return parse(document, str(path))


def parse(document: Any, where: str) -> Snapshot:
    """Return the snapshot of a document. Raises DataError that names `where`."""
    if not _has_facts(document):
        raise DataError(f"{where} is not a snapshot", "it has no facts", HINT)
    if (version := document.get("schema_version")) != SCHEMA_VERSION:
        raise DataError(f"{where} has another version", f"schema_version is {version!r}, not {SCHEMA_VERSION}", HINT)
    before = document["before"] if _has_facts(document.get("before")) else None
    return Snapshot(
        str(document.get("host", "")),
        _time(document.get("time")),
        from_document(document["facts"]),
        from_document(before["facts"]) if before else None,
        _time(before.get("time")) if before else 0.0,
        str(document.get("aifx", "")),
    )


def _has_facts(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("facts"), dict)


def _time(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < LATEST_S else 0.0

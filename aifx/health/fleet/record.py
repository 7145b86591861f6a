"""Record nodes' answers as JSON lines when they arrive, so that none is lost however the command ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aifx.core.errors import AifxError, DataError
from aifx.core.files import RECORDS_LIMIT, is_stream, open_file, open_output, read_input
from aifx.core.json_values import encode_json
from aifx.core.parsing import parse_json
from aifx.core.redaction import redact_values
from aifx.core.version import __version__
from aifx.health.fleet.compare import light
from aifx.health.fleet.report import Node, node_of

VERSION = 1


class Recorder:
    """Replaces the file `path` by the record of the nodes that are asked. Raises UnsafeFile, OSError."""

    def __init__(self, path: Path, asked: Sequence[str]) -> None:
        self._file = open(open_output(path), "w", encoding="utf-8")  # noqa: SIM115 - close does it
        self._write({"aifx_fleet": VERSION, "aifx": __version__, "asked": list(asked)})

    def take(self, node: Node, document: Any) -> None:
        answer = {"node": node.name, "took_s": node.took_s}
        content = {"why": node.why, "is_silent": node.is_silent} if node.report is None else {"document": document}
        try:
            self._write(answer | content)
        except RecursionError:
            self._write(answer | {"why": "its report is nested too deeply to be recorded", "is_silent": False})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(encode_json(redact_values(line)) + "\n")
        self._file.flush()


def is_record(path: Path) -> bool:
    """Return whether a file is the record of a fleet, and not the snapshot of a node."""
    try:
        if is_stream(path):  # reading would consume it
            return False
        with open(open_file(path, follow=True), "rb") as file:
            return file.read(16).startswith(b'{"aifx_fleet":')
    except OSError:
        return False


def read_record(path: Path) -> tuple[list[Node], list[str]]:
    """Return the nodes, and those that were not heard. A truncated last line is ignored. Raises DataError."""
    try:
        first, *lines = read_input(path, limit=RECORDS_LIMIT).decode().splitlines()
        head = parse_json(first)
        asked = [str(name) for name in head["asked"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not the record of a fleet", str(error), "aifx doctor fleet --hosts FILE --record FILE"
        ) from None
    if head.get("aifx_fleet") != VERSION:
        raise DataError(f"{path} has another version", f"aifx_fleet is {head.get('aifx_fleet')!r}, not {VERSION}")
    found: dict[str, Node] = {}
    for number, line in enumerate(lines):
        try:
            node = _node(parse_json(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines) - 1:
                break
            raise DataError(f"{path}, line {number + 2} is not the answer of a node", str(error)) from None
        found[node.name] = node
    return [found[name] for name in asked if name in found], [name for name in asked if name not in found]


def _node(line: dict[str, Any]) -> Node:
    name, took_s = str(line["node"]), float(line["took_s"])
    if "document" not in line:
        return Node(name, why=str(line["why"]), is_silent=bool(line["is_silent"]), took_s=took_s)
    try:
        return node_of(name, light(line["document"]), took_s)
    except AifxError as error:
        return Node(name, why=f"{error.what}: {error.why}", took_s=took_s)

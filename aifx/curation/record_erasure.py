"""Erasing the payloads of records of `aifx serve` that meet a condition in SQL. The chain of the records stays whole.

The condition sees a table `data`: `id`, `time`, `model` and `fingerprint` of a record; `input`, the prompt or a row
of the request as JSON; and `output`, the text of the answer. A request of several rows has a line for each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from aifx.core.errors import DataError
from aifx.core.files import read_file
from aifx.curation.erasure import Erasure, check_condition
from aifx.data.text import TOKENIZER_FILE
from aifx.data.tokenizer import Tokenizer
from aifx.data.versions.sql import check_selection, sql_error, stopped_by_signals
from aifx.serving.record import unpacked
from aifx.serving.records import Record, erase_payloads, record_folders

_SCHEMA = pa.schema(
    [("place", pa.string()), ("id", pa.string()), ("time", pa.timestamp("us", "UTC"))]
    + [(name, pa.string()) for name in ("model", "fingerprint", "input", "output")]
)


def erase_records(path: Path, where: str, *, dry_run: bool) -> Erasure:
    """Erase the requests and answers of the records below a folder that meet a condition, or find them.

    Raises UsageError for a condition that is empty or cannot be evaluated, DataError for damaged records.
    """
    check_condition(where, str(path))
    found: list[str] = []
    config: dict[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(":memory:", config=config) as connection, stopped_by_signals(connection):
        for setting in ("enable_progress_bar", "python_enable_replacements", "enable_external_access"):
            connection.execute(f"SET {setting} = false")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        for folder in record_folders(path):
            decode = _decoder(folder)

            def meeting(records: Sequence[Record], decode: Any = decode) -> set[str]:
                lines = [line for record in records for line in _lines(record, decode)]
                connection.register("data", pa.Table.from_pylist(lines, _SCHEMA))
                return _places(connection, where, path)

            found += erase_payloads(folder, meeting, dry_run=dry_run)
    return Erasure(
        reference=str(path),
        rows=len(found),
        held_by=(),
        unsearched=(),
        runs=(),
        made=None,
        purged=(),
        remaining=(),
        dry_run=dry_run,
        records=tuple(found),
    )


def _places(connection: Any, where: str, path: Path) -> set[str]:
    sql, hint = f"SELECT place FROM data WHERE ({where}\n)", f"aifx data erase {path} --where \"contains(input, 'x')\""
    try:
        check_selection(connection, sql, hint)
        return {place for (place,) in connection.execute(sql).fetchall()}
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.Error as error:
        raise sql_error(error, hint, hides_values=True) from None


def _decoder(folder: Path) -> Any:
    """Decodes tokens by the tokenizer of the run that the records are in, which is read when the first ones come."""

    @cache
    def tokenizer() -> Tokenizer:
        file = folder.parent.parent / "assets" / TOKENIZER_FILE
        try:
            return Tokenizer(read_file(file), str(file))
        except OSError as error:
            what, why = f"the texts of {folder} cannot be read", f"{file}: {error.strerror or error}"
            raise DataError(what, why, "move the records back into the folder of their run") from None

    return lambda ids: tokenizer().decode(ids)


def _lines(record: Record, decode: Any) -> Iterator[dict[str, Any]]:
    """The lines of a record as the condition sees them."""
    time = datetime.fromtimestamp(record.time, UTC)
    known = {"place": record.place, "id": record.id, "time": time, "model": record.model}
    known["fingerprint"] = record.fingerprint
    request, answer = record.request, record.answer
    try:
        if "prompt_ids" in request:
            output = decode(unpacked(answer["tokens"]))
            yield {**known, "input": decode(unpacked(request["prompt_ids"])), "output": output}
        else:
            for row in request["rows"] or [None]:
                yield {**known, "input": None if row is None else json.dumps(row, ensure_ascii=False), "output": None}
    except (KeyError, TypeError, ValueError) as error:
        why = f"its request cannot be read: {error}"
        raise DataError(f"{record.place}: not a record of aifx serve", why, "docs/serve.md") from None

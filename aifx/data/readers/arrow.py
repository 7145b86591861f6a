"""pyarrow and its modules, imported when one is first used: that takes 0.3 s, which few commands need to pay."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import compute as pc
    from pyarrow import csv as arrow_csv
    from pyarrow import json as arrow_json
    from pyarrow import parquet as pq
else:

    class _Late:
        """A module that is imported when one of its names is first read."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            import pyarrow  # noqa: F401 - so that `core.code_digest` sees the library

            found = getattr(importlib.import_module(self._name), name)
            setattr(self, name, found)
            return found

    pa, pc, arrow_csv, arrow_json, pq = (
        _Late(f"pyarrow{module}") for module in ("", ".compute", ".csv", ".json", ".parquet")
    )

__all__ = ["arrow_csv", "arrow_json", "pa", "pc", "pq"]

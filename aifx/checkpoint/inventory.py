"""Which files a checkpoint consists of, and their sizes: damage that listing finds without reading arrays."""

from __future__ import annotations

import json
import os
from pathlib import Path

from aifx.checkpoint.manifest import ITEM
from aifx.core.files import UnsafeFile, read_file
from aifx.core.parsing import parse_json

FILE = "files.json"


def write_inventory(folder: Path) -> None:
    """List the files of the checkpoint in `folder`. Nothing may be written to it afterwards."""
    sizes = {
        str(Path(parent, name).relative_to(folder)): os.stat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(folder)
        for name in names
    }
    (folder / ITEM / FILE).write_text(json.dumps({"files": dict(sorted(sizes.items()))}, indent=1))


def missing_files(folder: Path) -> str | None:
    """Return what is missing from the checkpoint in `folder`, or None. Does not find changed bytes."""
    try:
        sizes = parse_json(read_file(folder / ITEM / FILE, below=folder))["files"]
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (found := path.stat().st_size) != size:
                return f"{name} has {found:,} bytes and had {size:,}"
    except (FileNotFoundError, NotADirectoryError):
        return f"{FILE} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, UnsafeFile):
        return f"{FILE} cannot be read"
    return None

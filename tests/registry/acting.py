"""A program that does one act of the registry at a root that its second argument names.

python acting.py ACT URL
"""

from __future__ import annotations

import sys

from killed_acts import ACTS

from aifx.core.stores import open_store
from aifx.registry.roots import Root

if __name__ == "__main__":
    ACTS[sys.argv[1]](Root(open_store(sys.argv[2])))

"""aifx: the toolkit of people who operate AI factories.

A library with no terminal in it; `aifx.commands` is the terminal.
"""

__version__ = "0.1.0"

DISTRIBUTION = "aifx-toolkit"
"""Name of the package that pip installs. `aifx` in package indexes is another project with the same import name."""

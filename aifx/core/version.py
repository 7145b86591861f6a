"""The version and the name of the package. Modules take them from here: `aifx` itself imports the whole library."""

__version__ = "0.1.0"

DISTRIBUTION = "aifx-toolkit"
"""Name of the package that pip installs. `aifx` in package indexes is another project with the same import name."""

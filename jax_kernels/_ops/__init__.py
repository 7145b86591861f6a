"""One package per op, one file per implementation."""

"""Numbers and names of things, in words."""

from collections.abc import Sequence


def counted(count: int, noun: str, plural: str = "s") -> str:
    """ "1 row", "3,000 rows"; "2 launches" with `plural` "es"."""
    return f"{count:,} {noun}{plural * (count != 1)}"


def some_names(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are: "a, b, c and 9 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")

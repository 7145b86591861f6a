"""Numbers and names of things, in words."""

from collections.abc import Sequence


def counted(count: int, noun: str, plural: str = "s") -> str:
    """ "1 row", "3,000 rows"; "2 launches" with `plural` "es"."""
    return f"{count:,} {noun}{plural * (count != 1)}"


def some_names(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are: "a, b, c and 9 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def either(names: Sequence[str]) -> str:
    """A choice: "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def mean_of(best_over: int | None) -> str:
    """The words after a value that is the mean over so many validations; none after that of one."""
    return f" (mean of {best_over})" if best_over is not None and best_over > 1 else ""

"""Numbers of things, in words."""


def counted(count: int, noun: str, plural: str = "s") -> str:
    """ "1 row", "3,000 rows"; "2 launches" with `plural` "es"."""
    return f"{count:,} {noun}{plural * (count != 1)}"

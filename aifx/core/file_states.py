"""Size, inode and times of files, by which aifx knows without reading it again that a file has not changed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

SETTLED_NS = 2 * 10**9
"""Age of a change after which the next one has another time: kernels count time in ticks of up to 10 ms, FAT in 2 s."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What the file system says of a file, read before the file itself is.

    A change of the same size is not seen that leaves the ctime, which no program can set: bits that decay on the disk,
    writes to the device or through an open mapping of the file, a clock that was set back.

    Attributes:
        seen_ns: the clock before the file system was asked.
    """

    bytes: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    seen_ns: int = field(compare=False)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileState:
        """The state of the file at `path` now. Raises OSError if it cannot be opened.

        It is opened because a network file system then asks its server, and else may answer from memory.
        """
        seen_ns = time.time_ns()
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            found = os.fstat(handle)
        finally:
            os.close(handle)
        return cls(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, seen_ns)

    @property
    def is_settled(self) -> bool:
        """Whether any later change gives the file another time. What is not settled must be read again (as Git does
        with "racily clean" files: https://git-scm.com/docs/racy-git).

        A ctime of whole seconds is none that a kernel made: images (squashfs, ISO 9660) and stores that are mounted
        give the time that somebody set, which other content can have, too.
        """
        is_real = self.ctime_ns % 10**9 != 0
        return is_real and max(self.mtime_ns, self.ctime_ns) + SETTLED_NS <= self.seen_ns

    def is_still(self, now: FileState) -> bool:
        """Whether a file with the state `now` has the content that it had in this state."""
        return self == now and self.is_settled

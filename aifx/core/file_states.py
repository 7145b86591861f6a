"""Size, inode and times of files, by which aifx knows without reading it again that a file has not changed."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

SETTLED_NS = 2 * 10**9
"""Age of a change after which the next one has another time: kernels count time in ticks of up to 10 ms, FAT in 2 s."""

COUNTS_SECONDS = ("lustre", "beegfs", "ext2", "ext3", "ext4")
"""File systems whose kernel or servers set the ctime, and that may keep whole seconds of it (ext4 in inodes of 128
bytes)."""


@dataclass(frozen=True, slots=True)
class FileState:
    """A file's size, inode and times, read before the file itself is.

    A change of the same size is not seen that leaves the ctime, which no program can set: bits that decay on the disk,
    writes to the device or through an open mapping of the file, a clock that was set back.

    Attributes:
        is_ctime_real: whether the ctime is known to be one that a kernel or a server made. Images (squashfs, ISO 9660)
            and stores that are mounted give whole seconds that somebody set, which other content can have, too.
        seen_ns: the clock before the file system was asked.
    """

    bytes: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    seen_ns: int = field(compare=False)
    is_ctime_real: bool = True

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
        is_ctime_real = found.st_ctime_ns % 10**9 != 0 or _file_system(found.st_dev) in COUNTS_SECONDS
        return cls(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, seen_ns, is_ctime_real)

    @property
    def is_settled(self) -> bool:
        """Whether any later change gives the file another time. What is not settled must be read again (as Git does
        with "racily clean" files: https://git-scm.com/docs/racy-git)."""
        return self.is_ctime_real and max(self.mtime_ns, self.ctime_ns) + SETTLED_NS <= self.seen_ns

    def is_still(self, now: FileState, *, trusts_images: bool = False) -> bool:
        """Whether a file with the state `now` has the content that it had in this state.

        Args:
            trusts_images: believe times that somebody set.
        """
        return self == now and (replace(self, is_ctime_real=True) if trusts_images else self).is_settled


@cache
def _file_system(device: int) -> str:
    """The type of a mounted file system, as /proc/self/mountinfo names it; "" if it is not there."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split()[2] == number:
                return source.split()[0]
    return ""

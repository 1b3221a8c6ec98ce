"""Files mapped into memory, as long as they are those that were opened."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import NamedTuple

from moe_probe.errors import DamagedFile

# Python names the flag from 3.13 on
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class FileState(NamedTuple):
    """What changes when a file is written to or replaced."""

    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of the file now.

        Raises:
            DamagedFile: the file is gone.
        """
        try:
            status = os.stat(path)
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read any more ({error.strerror}); load the model again.") from error
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def check(self, path: Path) -> None:
        """Refuse a file that is not the one that was opened.

        Raises:
            DamagedFile: the file was written to or replaced.
        """
        if FileState.of(path) != self:
            raise DamagedFile(f"{path} changed after it was opened; load the model again.")


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, read as they are used.

    Whoever writes into them has copies of the pages for himself: the file never changes. Memory for that is not set
    aside beforehand, so files larger than memory open. Windows has no such flags: there it counts the copies that could
    be made against memory and page file, and the file cannot be replaced while it is mapped.
    """
    with open(path, "rb") as file:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=prot)

"""Maps files into memory, and refuses files that changed after they were opened."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import NamedTuple

from moe_probe.errors import DamagedFile

# Python defines this flag from 3.13 on
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class FileState(NamedTuple):
    """Size, modification time and inode of a file; at least one changes when the file is written to or replaced."""

    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Returns the current state of a file.

        Raises:
            DamagedFile: the file cannot be accessed any more.
        """
        try:
            status = os.stat(path)
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read any more ({error.strerror}); load the model again.") from error
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def check(self, path: Path) -> None:
        """Raises DamagedFile if the file is not the one that was opened.

        Raises:
            DamagedFile: the file was written to or replaced.
        """
        if FileState.of(path) != self:
            raise DamagedFile(f"{path} changed after it was opened; load the model again.")


def map_file(path: Path) -> mmap.mmap:
    """Returns a private memory map of a file, whose pages are read on use.

    A write goes to a private copy of the page; the file never changes. No memory is reserved for such copies, so files
    larger than memory can be opened. Windows lacks these flags: it counts the possible copies against memory and page
    file, and the file cannot be replaced while it is mapped.
    """
    with open(path, "rb") as file:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=prot)

"""Files mapped into memory."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

# Python names the flag from 3.13 on
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, read as they are used.

    Whoever writes into them has copies of the pages for himself: the file never changes. Memory for that is not set
    aside beforehand, so files larger than memory open.
    """
    with open(path, "rb") as file:
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=prot)

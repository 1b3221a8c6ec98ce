"""Files of arrays that detect truncation and edits: a checksum verifies every byte before anything is used.

The format is NumPy's `.npz`, so that `numpy.load` opens it too; the checksum is the comment of the archive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moe_probe.errors import Damaged, NothingToRead
from moe_probe.files import whole_file
from moe_probe.shown import brief

MARK = b"moe-probe "
SEAL_BYTES = len(MARK) + 64
ABOUT = "about"


@dataclass(frozen=True)
class Arrays:
    """The content that `load_arrays` read.

    Attributes:
        about: description of the file; values that JSON holds.
        arrays: by name.
    """

    about: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def digest(values: np.ndarray | bytes | str) -> str:
    """Returns a checksum of an array's dtype, shape and values, or of bytes, or of text; 32 hexadecimal digits."""
    check = hashlib.blake2b(digest_size=16)
    if isinstance(values, np.ndarray):
        check.update(f"{values.dtype.str} {values.shape} ".encode())
        values = np.ascontiguousarray(values).tobytes()
    check.update(values.encode("utf-8", "surrogatepass") if isinstance(values, str) else values)
    return check.hexdigest()


def file_digest(path: str | Path) -> str:
    """Returns a checksum of a file's bytes; 32 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)


def save_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray], *, kind: str, schema: int, about: Mapping[str, Any]
) -> None:
    """Writes arrays to one file, which is replaced as a whole.

    Args:
        path: the file.
        arrays: by name; none of Python objects.
        kind: the file's kind, such as "saved progress"; `load_arrays` refuses another kind.
        schema: number of the format; `load_arrays` refuses another one.
        about: further description of the file; values that JSON holds.
    """
    said = json.dumps({"kind": kind, "schema": schema, **about})
    with whole_file(path) as partial:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{ABOUT: np.asarray(said)}, **{f"/{k}": v for k, v in arrays.items()})
        with partial.open("r+b") as file:
            _seal(file)


def load_arrays(path: str | Path, *, kind: str, schema: int, remedy: str) -> Arrays:
    """Reads what `save_arrays` wrote.

    Args:
        path: the file.
        kind: the kind that the file must have.
        schema: number of the format that it must have.
        remedy: the end of an error's sentence, such as "delete it to start over".

    Raises:
        NothingToRead: the file does not exist.
        Damaged: the file is cut off, edited, of another kind or of another format.
    """
    try:
        with Path(path).open("rb") as file:
            if not _is_sealed(file):
                raise Damaged(f"{brief(path)} is cut off or edited and no longer valid {kind}; {remedy}.")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                content = dict(archive)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NothingToRead(f"{brief(path)} is not a file; it should be {kind}.") from error
    except OSError as error:
        raise Damaged(f"{brief(path)} cannot be read ({error.strerror or error}); {remedy}.") from error
    about = json.loads(str(content.pop(ABOUT)))
    if about.get("kind") != kind or about.get("schema") != schema:
        what = f"{about.get('kind')} of format {about.get('schema')}"
        raise Damaged(f"{brief(path)} is {what}, not {kind} of format {schema}; {remedy}.")
    return Arrays(about, {name.removeprefix("/"): value for name, value in content.items()})


def seal(content: bytes | memoryview) -> bytes:
    """Returns the seal to append to a file's content; `unsealed` detects changes by it, most readers ignore it."""
    return MARK + hashlib.blake2b(content, digest_size=32).hexdigest().encode()


def unsealed(content: bytes) -> bytes:
    """Returns the content without its seal; the whole content if it has none.

    Raises:
        ValueError: the content changed after it was sealed.
    """
    if content[-SEAL_BYTES:-64] != MARK:
        return content
    if seal(memoryview(content)[:-SEAL_BYTES]) != content[-SEAL_BYTES:]:
        raise ValueError("its bytes are not those that were written")
    return content[:-SEAL_BYTES]


def _seal(file: BinaryIO) -> None:
    """Appends the checksum of a zip archive as its comment; the last two bytes of an archive give its length."""
    file.seek(-2, 2)
    file.write(SEAL_BYTES.to_bytes(2, "little"))
    file.write(MARK + _checksum(file, file.tell()))


def _is_sealed(file: BinaryIO) -> bool:
    size = file.seek(0, 2)
    if size < SEAL_BYTES:
        return False
    file.seek(size - SEAL_BYTES)
    seal = file.read()
    return seal == MARK + _checksum(file, size - SEAL_BYTES)


def _checksum(file: BinaryIO, size: int) -> bytes:
    """Returns a checksum of the first `size` bytes, 64 hexadecimal digits; the file's position does not change."""
    place, check = file.tell(), hashlib.blake2b(digest_size=32)
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        check.update(block)
        size -= len(block)
    file.seek(place)
    return check.hexdigest().encode()

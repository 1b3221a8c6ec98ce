"""Writes files and folders completely or not at all, one writer at a time, without touching files of others."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType

from moe_probe.errors import AlreadyThere, InputError, MachineError, MoEProbeError, OutOfRange, WrongType, reason
from moe_probe.shown import brief

LOCK = ".moe-probe.lock"
NAME_BYTES = 200  # of a file's name; file systems take 255
PARTIAL = re.compile(r"^\..*\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}\.partial$")
WRAPPED = re.compile(r"(?:os error|errno)[ =]+(\d+)")  # how Rust, Arrow and HDF5 name an error of the system
REMEDIES = {
    errno.ENOSPC: "free some space, or choose a place on another disk",
    errno.EDQUOT: "free some of your quota, or choose a place on another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or ask for less",
    errno.EIO: "check the disk, or choose another one",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close some programs, and run again",
    errno.ENOMEM: "free some memory, and run again",
    errno.ENOENT: "choose a place that can be written to",
}
# whatever file it was that met them
MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_HELD: dict[Path, tuple[int, int]] = {}  # folders that are held: the process and the thread that do
_GUARD = threading.Lock()


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM like KeyboardInterrupt on Ctrl-C, so that the same cleanup runs."""


def as_path(path: object) -> Path:
    """Returns a passed path as a `Path`.

    Raises:
        WrongType: the value is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise WrongType(f"The path is {path!r}; pass a string or a Path.")
    return Path(os.fsdecode(path))


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`; it is renamed to `path` at the end, and deleted after an error or Ctrl-C.

    Missing parent folders are created. If `path` is a link, the file that it points to is replaced and the link stays.
    Partial files that killed runs of this machine left in the folder are deleted.

    Raises:
        AlreadyThere: `path` is a folder, a pipe or a device, or a parent of it is a file.
        MachineError: the disk is full or not writable.

    Examples:
        >>> with whole_file("out/note.txt") as partial:
        ...     _ = partial.write_text("complete")
        >>> Path("out/note.txt").read_text()
        'complete'
    """
    target = _target(Path(path))
    partial = _partial(target)
    try:
        sweep(target.parent)
        yield partial
        partial.replace(target)
    except Exception as error:
        failure = _failure(path, error, partial)
        if failure is None:
            raise
        raise failure from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder next to `path`; it is renamed at the end, and deleted after an error or Ctrl-C.

    Missing parent folders are created. Partial folders that killed runs of this machine left behind are deleted.

    Raises:
        AlreadyThere: `path` exists, from the beginning or because another run made it meanwhile.
        MachineError: the disk is full or not writable.
    """
    refuse_existing(path)
    target = make_folder(Path(path).parent) / Path(path).name
    partial = _partial(target)
    try:
        sweep(target.parent)
        partial.mkdir()
        yield partial
        refuse_existing(path)
        partial.rename(target)
    except Exception as error:
        failure = _failure(path, error, partial, target)
        if failure is None:
            raise
        raise failure from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _failure(path: str | Path, error: BaseException, *ours: Path) -> MoEProbeError | None:
    """The operating system's error behind an error, whichever library wrapped it; None if there is none."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, MoEProbeError):
        if isinstance(link, OSError) and link.errno is not None:
            mine = link.filename is None or str(link.filename).startswith(tuple(map(str, ours)))
            if mine and link.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return AlreadyThere(f"{brief(path)} was made by another run meanwhile; use it, or choose another.")
            if link.errno in MACHINE or (mine and link.errno in {*REMEDIES, errno.ENAMETOOLONG}):
                return _unusable(path, link)
        elif (number := WRAPPED.search(str(link))) and int(number[1]) in MACHINE:
            return cannot_write(path, OSError(int(number[1]), os.strerror(int(number[1]))))
        link = link.__cause__ or link.__context__
    return None


def refuse_existing(path: str | Path) -> None:
    """Raises an error if a path exists.

    Raises:
        AlreadyThere: the path exists.
        InputError: the path is not valid.
    """
    try:
        os.lstat(Path(path).expanduser())
    except (FileNotFoundError, NotADirectoryError):
        return
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{brief(path)} is not a path ({reason(error)}); choose another place.") from error
    except OSError as error:
        raise _unusable(path, error) from error
    raise AlreadyThere(f"{brief(path)} exists already; pass a path that does not.")


def _partial(target: Path) -> Path:
    """The path at which a file or folder is written until it is complete; no other run uses it."""
    return target.with_name(f"{_beginning('.' + target.name)}{_owner()}.{uuid.uuid4().hex[:8]}.partial")


def cannot_write(path: str | Path, error: OSError) -> MachineError:
    """Returns the error for a failure of the operating system while writing `path`."""
    remedy = REMEDIES.get(error.errno or 0, "choose another place")
    return MachineError(f"{brief(path)} cannot be written ({error.strerror or error}); {remedy}.")


def make_folder(path: str | Path) -> Path:
    """Creates a folder and its parents if they are missing, and returns it; links are followed.

    Raises:
        AlreadyThere: the path, or a parent of it, is a file.
        OutOfRange: the path is longer than the file system takes.
        MachineError: the folder cannot be made.
    """
    try:
        folder = Path(path).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise AlreadyThere(f"{brief(path)} cannot be a folder: a file is in the way; choose another place.") from error
    except (ValueError, RuntimeError) as error:  # NUL bytes, links in a circle
        raise InputError(f"{brief(path)} is not a path ({reason(error)}); choose another place.") from error
    except OSError as error:
        raise _unusable(path, error) from error
    return folder


def _target(path: Path) -> Path:
    """The file to replace: `path`, or the file that it links to."""
    folder = make_folder(path.parent)
    try:
        target = (folder / path.name).resolve()
        mode = target.stat().st_mode
    except FileNotFoundError:
        target = (folder / path.name).resolve()
        return target if target.parent == folder else make_folder(target.parent) / target.name
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{brief(path)} is not a path ({reason(error)}); choose another place.") from error
    except OSError as error:
        raise _unusable(path, error) from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise AlreadyThere(f"{brief(path)} is {kind}, not a file to replace; choose the name of a file.")
    return target


def _unusable(path: str | Path, error: OSError) -> MoEProbeError:
    if error.errno == errno.ENAMETOOLONG:
        return OutOfRange(
            f"{brief(path)} is longer than the file system takes: 255 bytes a name, 4,096 in all; choose a shorter one."
        )
    if error.errno == errno.ELOOP:
        return InputError(f"{brief(path)} is a link that leads in a circle; choose another place.")
    return cannot_write(path, error)


@cache
def _host() -> str:
    """This machine and its namespace of process ids (containers have their own)."""
    space = Path("/proc/self/ns/pid")
    world = os.readlink(space) if space.is_symlink() else ""
    return hashlib.blake2b(f"{socket.gethostname()} {world}".encode(), digest_size=4).hexdigest()


def _owner() -> str:
    return f".{_host()}.{os.getpid()}"


def _beginning(name: str, size: int = NAME_BYTES) -> str:
    """The first characters of a name, at most `size` bytes."""
    return os.fsencode(name)[:size].decode(errors="ignore")


def sweep(folder: Path) -> None:
    """Deletes partial files and folders whose writers were killed on this machine."""
    import psutil

    with suppress(OSError), os.scandir(folder) as entries:
        partials = [(entry.path, match) for entry in entries if (match := PARTIAL.search(entry.name))]
        for path, match in partials:
            if match["host"] == _host() and not psutil.pid_exists(int(match["pid"])):
                shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


@contextmanager
def owned_folder(path: str | Path) -> Iterator[Path]:
    """Locks a folder for writing, and creates it if it is missing; a second writer is refused until this one ends.

    The lock of a killed process is released. One thread can lock a folder more than once; worker processes write under
    the lock of the process that started them.

    Raises:
        AlreadyThere: another run is writing to the folder.

    Examples:
        >>> with owned_folder("out/trace") as folder:
        ...     folder.is_dir()
        True
    """
    from filelock import FileLock, Timeout

    folder, holder = make_folder(path), (os.getpid(), threading.get_ident())
    with _GUARD:
        nested = _HELD.get(folder) == holder
    if nested:
        yield folder
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise AlreadyThere(
            f"{brief(path)} is being written to by another run; wait for its end, or choose another folder."
        ) from error
    except OSError as error:
        raise _unusable(path, error) from error
    with _GUARD:
        _HELD[folder] = holder
    try:
        sweep(folder)
        yield folder
    finally:
        with _GUARD:
            _HELD.pop(folder, None)
        lock.release()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """A context in which SIGTERM raises `Terminated`, a KeyboardInterrupt, so that partial files are deleted.

    A handler that another program installed stays; outside the main thread nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated

"""One writer a folder: a lock that says who holds it and ends with its process."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from scott.errors import UserError

PREFIX = ".lock-"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP)
"""What file systems say that have no locks; there, one writer a folder is up to the user."""


def is_passing(name: str) -> bool:
    """Whether a file of that name is there only while a command writes its folder, or was left by one that was killed,
    and is in nobody's way."""
    return name.startswith(PREFIX) or name.endswith(".partial")


@contextmanager
def locked(folder: Path, part: str = "0-of-1") -> Iterator[None]:
    """Hold a folder, or its part `<rank>-of-<world>`. The system lets go of a killed process's lock.

    Raises:
        UserError: another process holds that part, or one of a launch of another number of processes.
    """
    mine, world = folder / f"{PREFIX}{part}", part.partition("-of-")[2]
    with _lock(mine):  # before others are looked for: of two that begin at once one sees the other at least
        for other in sorted(folder.glob(f"{PREFIX}*")):
            if not other.name.endswith(f"-of-{world}"):
                with _lock(other):  # a killed process left it
                    pass
        mine.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = ""
        with suppress(OSError):  # it has just ended
            holder = file.read_text(encoding="utf-8", errors="backslashreplace")
        raise UserError(
            f"{file.parent} is being written by another command ({holder or 'which has just begun'}); wait "
            "for its end, stop it, or give another --out"
        ) from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()

"""One writer a folder: a lock that says who holds it and ends with its process."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scott.errors import UserError

PREFIX = ".lock-"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that have no locks; there, one writer a folder is up to the user."""


@contextmanager
def locked(folder: Path, part: str) -> Iterator[None]:
    """Hold the part `<rank>-of-<world>` of a folder. The system lets go of a killed process's lock.

    Raises:
        UserError: another process holds that part, or one of a launch of another number of processes.
    """
    mine = folder / f"{PREFIX}{part}"
    world = part.partition("-of-")[2]
    for other in sorted(folder.glob(f"{PREFIX}*")):
        if not other.name.endswith(f"-of-{world}") and (descriptor := _acquired(other)):
            other.unlink(missing_ok=True)  # a killed process left it
            os.close(descriptor)
    descriptor = _acquired(mine)
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        mine.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(file: Path) -> int:
    """A descriptor of the file that holds its lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                f"{file.parent} is being written by another command ({_named(holder)}); wait for its end, stop it, or "
                "give another --out"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder has just removed it


def _named(holder: str) -> str:
    try:
        found = json.loads(holder)
        return f"process {found['process']} on {found['host']}"
    except (ValueError, TypeError, KeyError):
        return "which has just begun"

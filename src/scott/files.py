"""Files that are whole or absent."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from scott.errors import UserError, printable

_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(https?://[^\s?'\"`]*)\?[^\s'\"`]*")


def without_secrets(text: str) -> str:
    """A text whose URLs have lost their user, with a password, and of the web's their query, which may be a key."""
    return _QUERY.sub(r"\1", _USER.sub("", text))


def read_object(file: Path, way_out: str = "copy or download it again") -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` where it cannot be read or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read, or is not valid JSON ({error}); {way_out}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; {way_out}")
    return content


@contextmanager
def replacing(path: Path, partial: Path | None = None, *, durable: bool = False) -> Iterator[Path]:
    """Where to write what takes the place of `path` when the block ends, and is gone where it fails.

    Args:
        partial: that place, where the next process is to write over what a killed one left. By default it has this
            process's number, so that several may write one file at once.
        durable: it is on the disk before the name is, and the name when the block has ended.

    Raises:
        NoRoom: as `room`.
    """
    partial = partial or path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with room(path.parent):
            yield partial
            if durable:
                sync(partial)
            os.replace(partial, path)
            if durable:
                sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


class NoRoom(UserError):
    """A disk is full, or a quota or the largest size of a file is reached."""


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turn a full disk, quota or size limit into `NoRoom`, which names the file's folder, or `folder` where the error
    names no file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if isinstance(error, SafetensorError) and (said := re.search(r"\(os error (\d+)\)", str(error))):
            number = int(said[1])
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        named = getattr(error, "filename", None)
        place = Path(named).parent if named else folder
        free = shutil.disk_usage(place if place.is_dir() else folder).free
        raise NoRoom(
            f"no room at {place} ({os.strerror(number)}; {free:,} bytes free); make some, and the same command goes "
            "on where it stopped"
        ) from None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which is gone where there is no room for all (`NoRoom`), or where the block fails before it
    has written anything."""
    try:
        with room(folder.parent):
            folder.mkdir()
            yield folder
    except NoRoom:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # of one that has something the system refuses it
        raise


def write_atomically(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write UTF-8 text, what it cannot hold `printable`: a reader never sees half a file.

    A path that is no file, such as /dev/null, is written to and not replaced.
    """
    path, text = Path(path), printable(text)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with replacing(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Reading what others named: pictures by path or URL, data files here or behind any protocol fsspec knows."""

import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import fsspec

from scott.data.captions import read_captions
from scott.data.records import MAX_PICTURE_BYTES, Skip
from scott.errors import UserError, first_line

TIMEOUT = 20.0
"""Seconds that one picture may take."""
_BUCKETS = ("s3://", "gs://", "hf://")
_REMOTE_ERRORS = ("aiohttp", "botocore", "fsspec", "gcsfs", "google", "huggingface_hub", "s3fs")


def unsafe(name: str) -> bool:
    """Whether a name leads out of the folder, or the archive, that it stands in."""
    windows = PureWindowsPath(name)  # splits at both kinds of slash
    return (
        not name or "\0" in name or bool(windows.anchor) or ".." in windows.parts or PurePosixPath(name).is_absolute()
    )


def spellings(name: str, folder: Path) -> Iterator[str]:
    """What a table in `folder` may mean by a path: that, with slashes for backslashes, and without the folder's own
    name (and those above it) in front."""
    yield name
    path = PurePosixPath(name.replace("\\", "/"))
    if "\\" in name:
        yield str(path)
    above = folder.resolve().parts
    for count in range(1, len(path.parts)):
        if above[-count:] == path.parts[:count]:
            yield str(PurePosixPath(*path.parts[count:]))


def read_file(path: Path, limit: int) -> bytes:
    """The first `limit` + 1 bytes. Raises OSError where there is no regular file: reading a pipe would wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        return file.read(limit + 1)


def read_picture(name: object, folder: Path | None, absolute: bool = False) -> bytes:
    """The bytes of a picture named by a URL or by a path in `folder` (None: by a URL alone).

    `absolute` allows absolute paths too, for tables that the user may have made of them.

    Raises:
        Skip: no such file, a name that leads elsewhere, a server that does not give it in time, too large.
        UserError: a protocol whose package is not installed.
    """
    if not isinstance(name, str) or not name:
        raise Skip("no-picture", type(name).__name__)
    if name.startswith(("http://", "https://")):
        return _fetch(name)
    if name.startswith(_BUCKETS) and "::" not in name:
        return _from_bucket(name)
    if folder is None or "://" in name or unsafe(name.lstrip("/") if absolute else name):
        raise Skip("unsafe-name", name[:200])
    try:
        places = (folder / spelling for spelling in spellings(name, folder))
        return read_file(next(filter(Path.exists, places), folder / name), MAX_PICTURE_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Skip("missing-file", first_line(error)) from None
    except (OSError, ValueError) as error:
        raise Skip("unreadable-file", first_line(error)) from None


def _from_bucket(name: str) -> bytes:
    try:
        with fsspec.open(name) as file:
            return file.read(MAX_PICTURE_BYTES + 1)
    except ImportError as error:
        raise UserError(f"{name} needs a package: {first_line(error)}") from None
    except Exception as error:  # of files, credentials, servers: each protocol has its own
        raise Skip("unreachable", f"{name}: {first_line(error)}") from None


def _fetch(url: str) -> bytes:
    deadline = time.monotonic() + TIMEOUT
    parts: list[bytes] = []
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "scott"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            while sum(map(len, parts)) <= MAX_PICTURE_BYTES and (part := answer.read(1 << 20)):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
    except urllib.error.HTTPError as error:
        raise Skip(f"http-{error.code}", url) from None
    except TimeoutError:
        raise Skip("timeout", url) from None
    except Exception as error:  # of sockets, TLS, names, the protocol: urllib has no common one
        reason = "timeout" if isinstance(getattr(error, "reason", None), TimeoutError) else "unreachable"
        raise Skip(reason, f"{url}: {first_line(error)}") from None
    return b"".join(parts)


def caption_of(columns: dict[str, Any], names: Sequence[str]) -> object:
    """The value of one caption column, or of several as a list."""
    values = [columns.get(name) for name in names]
    return values[0] if len(values) == 1 else [text for value in values for text in _listed(value)]


def _listed(value: object) -> list[str]:
    try:
        return read_captions(value)
    except Skip as skip:
        if skip.reason == "empty-caption":
            return []
        raise


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """A data file, local or remote, as a stream of bytes.

    Raises:
        UserError: it cannot be read, now or midway, or its protocol needs a package that is not installed.
    """
    if "://" not in name and Path(name).exists() and not Path(name).is_file():
        raise UserError(f"{name} cannot be read: it is no regular file")
    try:
        file = fsspec.open(name, "rb")
    except ImportError as error:
        raise UserError(f"{name} needs a package ({first_line(error)}); pip install 'scott-diffusion[data]'") from None
    except ValueError as error:
        raise UserError(f"{name} cannot be read: {first_line(error)}; expected a path, http://, s3://, ...") from None
    try:
        with file as stream:
            yield stream
    except Exception as error:  # every protocol has its own
        if isinstance(error, OSError) or type(error).__module__.startswith(_REMOTE_ERRORS):
            raise UserError(f"{name} cannot be read: {first_line(error)}; the same command goes on later") from None
        raise


def state_of(files: Sequence[str]) -> list[tuple[str, object]]:
    """Names below their common folder with size and time of change; of remote files the name alone."""
    local = [os.path.realpath(name) for name in files if "://" not in name]
    root = os.path.dirname(os.path.commonpath([os.path.dirname(name) + "/x" for name in local])) if local else ""
    states: list[tuple[str, object]] = []
    for name in files:
        if "://" in name:
            states.append((name, None))
        else:
            state = os.stat(name)
            states.append((os.path.relpath(os.path.realpath(name), root), (state.st_size, state.st_mtime_ns)))
    return states

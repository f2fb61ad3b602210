"""Reading what others named: pictures by path or URL, data files here or behind any protocol fsspec knows."""

import hashlib
import os
import re
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scott.data.records import LFS_POINTER, MAX_PICTURE_BYTES, Skip
from scott.errors import UserError, first_line

TIMEOUT = 20.0
"""Seconds that one picture may take."""
PATH_MAX = 4096
"""Characters a name can have, as Linux counts them."""
_BUCKETS = ("s3://", "gs://", "hf://")
_REMOTE_ERRORS = ("aiohttp", "botocore", "fsspec", "gcsfs", "google", "huggingface_hub", "s3fs")

_COMPRESSIONS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}
_COMPRESSIONS |= {b"\x1f\x9d": "compress", b"PK\3\4": "zip, or a table of Excel"}
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def unsafe(name: str) -> bool:
    """Whether a name leads out of the folder, or the archive, that it stands in."""
    windows = PureWindowsPath(name)  # splits at both kinds of slash
    leads_out = bool(windows.anchor) or ".." in windows.parts or PurePosixPath(name).is_absolute()
    return leads_out or not name or "\0" in name


def spellings(name: str, folder: Path) -> Iterator[str]:
    """What a table in `folder` may mean by a path: that; without spaces around it, and with slashes for backslashes;
    without a URL's escapes, or Flickr8k's number of a caption; and of each what follows the folder's own name, behind
    names that are above the folder too, or behind any in an absolute path."""
    plain = name.removeprefix("file://").strip().replace("\\", "/")
    own = _resolved(folder.absolute()).parts
    for way in dict.fromkeys((name.removeprefix("file://"), plain, unquote(plain), re.sub(r"#\d+$", "", plain))):
        yield way
        parts, absolute = PurePosixPath(way).parts, PureWindowsPath(way).anchor
        for count in range(1, len(parts)):
            if own[-1:] == parts[count - 1 : count] and (absolute or own[-count:] == parts[:count]):
                yield str(PurePosixPath(*parts[count:]))


@cache
def _resolved(folder: Path) -> Path:
    return folder.resolve()


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
    if folder is None:
        raise Skip("unsafe-name", name[:200])
    return read_local(_place(name, folder, absolute))


def _place(name: str, folder: Path, absolute: bool) -> Path:
    """Where the picture is that a table in `folder` names so. Raises `Skip` for a name that leads elsewhere."""
    inside = "://" not in name.removeprefix("file://")
    spelled = spellings(name, folder) if inside else ()
    ways = [way for way in spelled if not unsafe(way.lstrip("/") if absolute else way)]
    if not ways:
        raise Skip("unsafe-name", name[:200])
    try:
        return next((folder / way for way in ways if (folder / way).exists()), folder / ways[0])
    except (OSError, ValueError) as error:
        raise Skip("unreadable-file", first_line(error)) from None


def read_local(path: Path, limit: int = MAX_PICTURE_BYTES) -> bytes:
    """The first `limit` + 1 bytes of a regular file; a pipe would be waited for. Raises `Skip` where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is no regular file")
            return file.read(limit + 1)
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
        raise Skip("unreachable", f"{name}: {cause(error)}") from None


def cause(error: Exception) -> str:
    """What led to an error: fsspec's own say no more than the name that was asked for."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)


def _fetch(url: str) -> bytes:
    deadline, content = time.monotonic() + TIMEOUT, bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "scott"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            # `read` would wait for as many bytes, however slowly they come
            while len(content) <= MAX_PICTURE_BYTES and (part := answer.read1(1 << 20)):
                content += part
                if time.monotonic() > deadline:
                    raise TimeoutError
    except urllib.error.HTTPError as error:
        raise Skip(f"http-{error.code}", url) from None
    except TimeoutError:
        raise Skip("timeout", url) from None
    except Exception as error:  # of sockets, TLS, names, the protocol: urllib has no common one
        reason = "timeout" if isinstance(getattr(error, "reason", None), TimeoutError) else "unreachable"
        raise Skip(reason, f"{url}: {first_line(error)}") from None
    return bytes(content)


@contextmanager
def opened(name: str, compression: str | None = None) -> Iterator[BinaryIO]:
    """A data file, local or remote, as a stream of bytes; `compression` ("gzip", ...) is that of a local one.

    Raises:
        UserError: it cannot be read, now or midway, or its protocol needs a package that is not installed.
    """
    try:
        if "://" in name:
            file = fsspec.open(name, "rb")
        elif os.path.exists(name) and not os.path.isfile(name):
            raise OSError("it is no regular file")
        else:
            file = LocalFileSystem().open(name, "rb", compression=compression)
    except ImportError as error:
        raise UserError(f"{name} needs a package: {first_line(error)} (http: pip install 'fsspec[http]')") from None
    except Exception as error:  # each protocol has its own
        raise UserError(f"{name} cannot be read: {cause(error)}; expected a file, http://, s3://, ...") from None
    try:
        with file as stream:
            yield stream
    except Exception as error:  # every protocol has its own
        if isinstance(error, OSError) or type(error).__module__.startswith(_REMOTE_ERRORS):
            raise UserError(f"{name} cannot be read: {cause(error)}; the same command goes on later") from None
        raise


def kind_of(name: str) -> tuple[str, str] | None:
    """The reason why a data file is not read, and what to do, where its first bytes are another kind's."""
    with opened(name) as file:
        return kind_of_start(file.read(len(LFS_POINTER)))


def kind_of_start(start: bytes) -> tuple[str, str] | None:
    """`kind_of` by a file's first bytes."""
    if start.startswith(LFS_POINTER):
        return "git-lfs-pointer", "run git lfs pull"
    if start.lstrip().lower().startswith(_PAGES):
        return "web-page", "what a server says where it does not give the file; download it again"
    packed = next((kind for magic, kind in _COMPRESSIONS.items() if start.startswith(magic)), None)
    return ("unsupported-compression", f"{packed}; unpack it first") if packed else None


def places_of(names: Iterable[object], folder: Path, absolute: bool = False) -> Iterator[str]:
    """Where `read_picture` looks for what is named so in a folder; nothing of names that it does not take."""
    for name in names:
        # a longer one is a picture in base64, and a URL has no place
        if isinstance(name, str) and len(name) <= PATH_MAX and "://" not in name.removeprefix("file://"):
            with suppress(Skip):
                yield str(_place(name, folder, absolute))


def digest_of(names: Iterable[str], root: Path | None = None) -> str:
    """Of paths below `root`, or else below their common folder, with size and time of change where there is a file; of
    remote files the name alone."""
    if root is None:
        names = [name if "://" in name else os.path.realpath(name) for name in names]
        folders = [os.path.dirname(name) for name in names if "://" not in name]
        root = Path(os.path.commonpath(folders)) if folders else Path()
    digest = hashlib.sha256()
    for name in names:
        state: tuple[str, int | None, int | None] = name, None, None
        if "://" not in name:
            path = os.path.join(root, name)
            state = os.path.relpath(path, root), None, None
            with suppress(OSError, ValueError):
                found = os.stat(path)
                state = state[0], found.st_size, found.st_mtime_ns
        digest.update(repr(state).encode())
    return digest.hexdigest()

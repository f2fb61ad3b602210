"""A tar as a stream of members: unpacked, to its last byte, and within bounds that no member can exceed."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, Self

from scott.data.records import MAX_TEXT_BYTES

_LARGEST = 1 << 36
"""Bytes of a member; one that says more ends the tar, which a few bytes of a compressed one could do for hours."""
_BEHIND = 1 << 11
"""Blocks behind an end mark, a MiB, in which another archive is looked for."""
_READERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\0\0": lzma.open,
}
"""First bytes → what reads it all: `tarfile` would end with the first of several that were joined."""


def unpacked(file: Any) -> Any:
    """What reads a file's content, whatever packed it."""
    whole = io.BufferedReader(file, 1 << 16)
    start = whole.peek(6)
    reader = next((reader for magic, reader in _READERS.items() if start.startswith(magic)), None)
    return reader(whole) if reader else whole


class _Member(tarfile.TarInfo):
    """Where a header is missing or broken `tarfile` would take the archive to end; only its end mark does that, and
    another archive may follow it. Long names and extended headers, which are read into memory whole, are bounded."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Self:
        try:
            member = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if not archive.blocks and not isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise tarfile.ReadError(str(error)) from None
            archive.blocks += 1
            archive.ignore_zeros = archive.blocks < _BEHIND
            raise
        archive.blocks = 0
        return member

    def _proc_member(self, archive: Any) -> tarfile.TarInfo:
        """What follows the header; `frombuf`, which is public, is not what newer Pythons make members by."""
        if self.type not in tarfile.REGULAR_TYPES and self.size > MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


class Archive(tarfile.TarFile):
    """Opened as a stream; `members` reads it."""

    tarinfo = _Member
    blocks = 0
    """Behind an end mark, so far."""


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Those of a stream, each read to its end: `tarfile` goes on seeking where one says 2^40 bytes."""
    for member in archive:
        if member.size > _LARGEST:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        yield member
        stream: Any = archive.fileobj
        while (left := archive.offset - stream.tell()) > 0:
            if not stream.read(min(left, 1 << 20)):
                raise tarfile.ReadError("unexpected end of data")

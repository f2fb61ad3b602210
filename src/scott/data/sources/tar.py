"""The records of a tar: members whose names agree up to the first dot, read once from its beginning to its end."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Self

from scott.data.pictures import named_as_picture, starts_as_picture
from scott.data.records import MAX_PICTURE_BYTES, MAX_TEXT_BYTES, Rejected, Skip
from scott.data.sources.files import unsafe
from scott.data.sources.survey import hidden

TEXTS = (".txt", ".caption", ".text")
WAITING = 128 << 20
"""Bytes of records that lack a part so far; beyond, the oldest is given as it is."""
_LARGEST = 1 << 36
"""Bytes of a member; one that says more ends the tar, which a few bytes of a compressed one could do for hours."""
Parts = dict[str, bytes | Skip]
"""Suffix → content, of the parts of a record that are of use."""
_ERRORS = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, MemoryError)
_COMPRESSIONS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"PK\3\4": "zip", b"7z\xbc\xaf": "7z"}
_COMPRESSIONS |= {b"Rar!": "rar", b"\x1f\x9d": "compress"}


def grouped(file: BinaryIO, tar: str) -> Iterator[tuple[str, Parts] | Rejected]:
    """(key, parts) of each record of a tar, and what had to be left out.

    A record is given when the next begins. One that has no picture or no text by then waits for it to the end of the
    tar; one whose key comes again with a part it has is two. Where `a.1.png` has a text `a.1.txt` of its own, they are
    the record `a.1`; else both are parts of `a`.
    """
    waiting: dict[str, Parts] = {}
    dotted: set[str] = set()
    key, held = "", 0
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
            for member in _members(archive):
                path = PurePosixPath(member.name)
                if unsafe(member.name):
                    yield Rejected(member.name[:200], "unsafe-name")
                    continue
                if member.isdir() or not path.name or any(map(hidden, path.parts)):
                    continue
                if not member.isfile():
                    yield Rejected(member.name[:200], "not-a-file", "a link or a device")
                    continue
                stem, dot, rest = path.name.partition(".")
                this, suffix = str(path.with_name(stem)), (dot + rest).lower()
                if this != key:
                    yield from _settled(waiting, key, dotted)
                    key = this
                parts = waiting.setdefault(this, {})
                if suffix in parts:
                    yield this, waiting.pop(this)
                    parts = waiting.setdefault(this, {})
                elif (before := _infix(next(reversed(parts), ""))) != _infix(suffix) and _whole(
                    own := _of(parts, before)
                ):
                    yield from _split_off(parts, this, before, own, dotted)
                parts[suffix] = _content(archive, member, suffix)
                held += _size(parts[suffix])
                if held > WAITING:
                    yield from _overdue(waiting, dotted)
                    held = sum(_size(part) for parts in waiting.values() for part in parts.values())
    except _ERRORS as error:
        waiting.pop(key, None)  # the record it broke off in may be short of a part
        yield from waiting.items()
        yield Rejected(tar, "corrupt-tar", f"after {key or 'its beginning'}: {error}")
        return
    for last in list(waiting):
        yield from _settled(waiting, last, dotted, at_end=True)


def compression(start: bytes) -> str | None:
    """The name of a compression that is not read, of a file that begins so."""
    return next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)


def _settled(
    waiting: dict[str, Parts], key: str, dotted: set[str], at_end: bool = False
) -> Iterator[tuple[str, Parts]]:
    """What is whole of the record `key`, or all of it at the end, taken out of what waits."""
    if key not in waiting:
        return
    parts = waiting[key]
    for infix in dict.fromkeys(map(_infix, parts)):
        if infix and (_whole(own := _of(parts, infix)) or (at_end and key in dotted)):
            yield from _split_off(parts, key, infix, own, dotted)
    if not parts or at_end or _whole(parts):
        del waiting[key]
        if parts:
            yield key, parts


def _split_off(parts: Parts, key: str, infix: str, own: Parts, dotted: set[str]) -> Iterator[tuple[str, Parts]]:
    """The record `key.infix`, of its own."""
    if not infix:
        return
    dotted.add(key)
    for suffix in own:
        del parts[suffix]
    yield key + infix, {suffix.removeprefix(infix): content for suffix, content in own.items()}


def _infix(suffix: str) -> str:
    """What stands between the first dot and the last: ".1" of ".1.png"."""
    return suffix.rpartition(".")[0]


def _of(parts: Parts, infix: str) -> Parts:
    return {suffix: content for suffix, content in parts.items() if _infix(suffix) == infix}


def _whole(parts: Parts) -> bool:
    endings = [f".{suffix.rpartition('.')[2]}" for suffix in parts]
    return any(map(is_picture, parts)) and any(ending in (*TEXTS, ".json") for ending in endings)


def is_picture(suffix: str) -> bool:
    return not suffix or named_as_picture(suffix)


def _overdue(waiting: dict[str, Parts], dotted: set[str]) -> Iterator[tuple[str, Parts]]:
    """The oldest of what waits, all but half of `WAITING`; of a single key, each of its dotted records."""
    held = sum(_size(part) for parts in waiting.values() for part in parts.values())
    while len(waiting) > 1 and held > WAITING // 2:
        oldest = next(iter(waiting))
        held -= sum(map(_size, waiting[oldest].values()))
        yield oldest, waiting.pop(oldest)
    if held > WAITING:
        (key,) = waiting
        dotted.add(key)
        yield from _settled(waiting, key, dotted, at_end=True)


def _size(part: bytes | Skip) -> int:
    return len(part) if isinstance(part, bytes) else 0


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Those of a stream, each read to its end: `tarfile` goes on seeking where one says 2^40 bytes."""
    for member in archive:
        if member.size > _LARGEST:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        yield member
        stream: Any = archive.fileobj
        while (left := archive.offset - stream.tell()) > 0:
            if not stream.read(min(left, 1 << 20)):
                raise tarfile.ReadError("unexpected end of data")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> bytes | Skip:
    text = suffix == ".json" or suffix.endswith((*TEXTS, ".json"))
    if not text and not is_picture(suffix):
        return Skip("not-a-picture", member.name)  # of no use here
    if member.size > (MAX_TEXT_BYTES if text else MAX_PICTURE_BYTES):
        return Skip("too-large", f"{member.name}, {member.size} bytes")
    content = archive.extractfile(member)
    data = content.read() if content else b""
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data if suffix or starts_as_picture(data[:16]) else Skip("not-a-picture", member.name)


class _Member(tarfile.TarInfo):
    """Where a header is missing or broken `tarfile` would take the archive to end; only its end mark does that. Long
    names and extended headers, which it reads into memory whole, are bounded."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    @classmethod
    def frombuf(cls, buffer: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buffer, encoding, errors)
        if member.type not in tarfile.REGULAR_TYPES and member.size > MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

"""The records of a tar: members of one name but for its ending, read once from its beginning to its end."""

import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO
from unicodedata import normalize

from scott.data.pictures import named_as_picture, starts_as_picture
from scott.data.records import MAX_PICTURE_BYTES, MAX_TEXT_BYTES, Rejected, Skip
from scott.data.sources.archive import Archive, members, unpacked
from scott.data.sources.files import unsafe
from scott.data.sources.survey import hidden

TEXTS = (".txt", ".caption", ".text")
_TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
WAITING = 128 << 20
"""Bytes of records that lack a part so far; beyond, those of the oldest are let go."""


@dataclass
class Part:
    """A member of a tar, as a part of a record."""

    content: bytes | Skip | Callable[[], bytes]
    """Its bytes, why there are none, or what reads them where they were let go."""
    again: Callable[[], bytes] | None = None
    """Reads it once more, in a local tar that is not packed."""

    @property
    def held(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else 0

    def let_go(self) -> None:
        """Its bytes, if they are held."""
        if isinstance(self.content, bytes):
            far = f"beyond {WAITING >> 20} MiB that wait; sort the tar by name, or have it here and not packed"
            self.content = self.again or Skip("parts-too-far-apart", far)

    def read(self) -> bytes:
        """Raises `Skip` where it cannot be had."""
        if isinstance(self.content, Skip):
            raise self.content
        return self.content if isinstance(self.content, bytes) else self.content()


Parts = dict[str, Part]
"""Ending → content, of the parts of a record that are of use."""
_ERRORS = (
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    MemoryError,
)


def grouped(file: BinaryIO, tar: str, local: bool = False) -> Iterator[tuple[str, Parts] | Rejected]:
    """(key, parts) of each record of a tar, `local` or behind a protocol, and what had to be left out.

    `a.1.png` and `a.1.txt` are the record `a.1`; where an ending is all that a picture and its text share (`a.img.png`,
    `a.txt`), they are parts of `a`. A record is given when one of another name begins. One that has no picture or no
    text by then waits for it to the end of the tar; one whose part comes again is two. Parts are to be read before the
    next record is asked for.
    """
    waiting, key = _Waiting(), ""
    try:
        stream = unpacked(file)
        descriptor = file.fileno() if local and isinstance(stream, io.BufferedReader) else None
        with Archive.open(fileobj=stream, mode="r|", ignore_zeros=True) as archive:
            for member in members(archive):
                path = PurePosixPath(normalize("NFC", member.name))
                if unsafe(member.name):
                    yield Rejected(member.name[:200], "unsafe-name")
                elif member.isdir() or not path.name or any(map(hidden, path.parts)):
                    continue
                elif path.name.lower().endswith(_TABLES):
                    yield Rejected(member.name[:200], "table-in-tar", "unpack the tar, and name the folder")
                elif not member.isfile():
                    yield Rejected(member.name[:200], "not-a-file", "a link or a device")
                else:
                    stem, dot, rest = path.name.partition(".")
                    before, key = key, str(path.with_name(stem))
                    if key != before:
                        yield from waiting.settled(before)
                    infix, dot, ending = (dot + rest).lower().rpartition(".")
                    content = _content(archive, member, infix + dot + ending)
                    yield from waiting.add(key, infix, dot + ending, Part(content, _again(member, descriptor)))
    except (*_ERRORS, OSError) as error:
        if not isinstance(error, _ERRORS) and (type(error) is not OSError or error.errno is not None):
            raise  # of a server or a disk; bz2 says "Invalid data stream" without a number
        waiting.records.pop(key, None)  # the record it broke off in may be short of a part
        yield from waiting.rest()
        yield Rejected(tar, "corrupt-tar", f"after {key or 'its beginning'}: {error}")
        return
    yield from waiting.rest()


class _Waiting:
    """Records that lack a part so far, or may get another."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Parts]] = {}
        """Path up to the first dot of the name → what stands between that dot and the last → ending → part."""
        self._held = 0

    def add(self, key: str, infix: str, ending: str, part: Part) -> Iterator[tuple[str, Parts]]:
        """Takes a part; gives the record that has one of that name, and what whole ones there is no more room for."""
        records = self.records.setdefault(key, {})
        if ending in records.get(infix, {}):
            yield from self._given([(key + infix, records.pop(infix))])
        records.setdefault(infix, {})[ending] = part
        self._held += part.held
        if self._held > WAITING:
            yield from self._given([(key + one, records.pop(one)) for one in _dotted(records) if one != infix])
            self._let_go()

    def settled(self, key: str, at_end: bool = False) -> Iterator[tuple[str, Parts]]:
        """The whole records of a key, or at the end all, taken out of what waits."""
        records = self.records.pop(key, {})
        found = [(key + infix, records.pop(infix)) for infix in _dotted(records)]
        together = {infix + ending: part for infix, parts in records.items() for ending, part in parts.items()}
        if _whole(together):
            found.append((key, together))
        elif at_end:
            found += [(key + infix, parts) for infix, parts in records.items()]
        elif records:
            self.records[key] = records
        yield from self._given(found)

    def rest(self) -> Iterator[tuple[str, Parts]]:
        for key in list(self.records):
            yield from self.settled(key, at_end=True)

    def _given(self, found: list[tuple[str, Parts]]) -> list[tuple[str, Parts]]:
        self._held -= sum(part.held for _, parts in found for part in parts.values())
        return found

    def _let_go(self) -> None:
        """Bytes of the oldest, until half of `WAITING` is held."""
        everything = (parts for records in self.records.values() for parts in records.values())
        for part in (part for parts in everything for part in parts.values()):
            if self._held <= WAITING // 2:
                break
            self._held -= part.held
            part.let_go()


def _dotted(records: dict[str, Parts]) -> list[str]:
    """What stands between the dots of the records that are whole by themselves."""
    return [infix for infix, parts in records.items() if infix and _whole(parts)]


def _again(member: tarfile.TarInfo, descriptor: int | None) -> Callable[[], bytes] | None:
    """What reads a member once more, where it stands in the file as it is."""
    if descriptor is None or member.issparse():
        return None
    return partial(os.pread, descriptor, member.size, member.offset_data)


def _whole(parts: Parts) -> bool:
    texts = (*TEXTS, ".json")
    return any(map(is_picture, parts)) and any(ending.endswith(texts) for ending in parts)


def is_picture(suffix: str) -> bool:
    return not suffix or named_as_picture(suffix)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> bytes | Skip:
    text = suffix.endswith((*TEXTS, ".json"))
    if not text and not is_picture(suffix):
        return Skip("not-a-picture", member.name)  # of no use here
    if member.size > (MAX_TEXT_BYTES if text else MAX_PICTURE_BYTES):
        return Skip("too-large", f"{member.name}, {member.size} bytes")
    content = archive.extractfile(member)
    data = content.read() if content else b""
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data if suffix or starts_as_picture(data[:16]) else Skip("not-a-picture", member.name)

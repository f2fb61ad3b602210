"""WebDataset tars, local or remote, each read once from its beginning and never unpacked to disk."""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Self

from scott.data.captions import read_columns
from scott.data.pictures import SUFFIXES
from scott.data.records import MAX_PICTURE_BYTES, MAX_TEXT_BYTES, Columns, Record, Rejected, Skip, Unit
from scott.data.sources.files import caption_of, opened, state_of, unsafe
from scott.data.sources.tables import CAPTIONS

TEXTS = (".txt", ".caption", ".text")


class WebDataset:
    """Consecutive members whose names agree up to the first dot are one record: a picture, a text, a .json.

    The caption is the text, or the entry of the .json that is named (or has a usual name).
    """

    kind = "webdataset"

    def __init__(self, tars: Sequence[str], wanted: Columns) -> None:
        self.tars, self.wanted = tars, wanted

    @cached_property
    def columns(self) -> list[str]:
        """Those of the first record, which is read for them."""
        for record in self._records(self.tars[0]):
            if isinstance(record, Record):
                return list(record.columns)
        return []

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(repr(state_of(self.tars)).encode()).hexdigest()

    def units(self, size: int) -> list[Unit]:
        """One a tar, whatever `size` is."""
        return [Unit(name.rsplit("/", 1)[-1], None, partial(self._records, name)) for name in self.tars]

    def _records(self, name: str) -> Iterator[Record | Rejected]:
        with opened(name) as file:
            for entry in grouped(file, name.rsplit("/", 1)[-1]):
                yield self._record(*entry) if isinstance(entry, tuple) else entry

    def _record(self, key: str, parts: dict[str, bytes | Skip]) -> Record | Rejected:
        try:
            pictures = [suffix for suffix in parts if _ending(suffix) in SUFFIXES]
            if self.wanted.image:
                pictures = [suffix for suffix in pictures if suffix == f".{self.wanted.image.lstrip('.')}"]
            if not pictures:
                raise Skip("no-picture", ", ".join(parts))
            picture = _read(parts[pictures[0]])
            columns = read_columns(_read(parts[".json"])) if ".json" in parts else {}
            return Record(key, lambda: picture, self._captions(parts, columns), columns)
        except Skip as skip:
            return Rejected(key, skip.reason, skip.detail)

    def _captions(self, parts: dict[str, bytes | Skip], columns: dict[str, Any]) -> object:
        texts: dict[str, Any] = columns | {suffix[1:]: _read(parts[suffix]) for suffix in parts if suffix in TEXTS}
        usual = (*(suffix[1:] for suffix in TEXTS), *CAPTIONS, *map(str.upper, CAPTIONS))
        names = self.wanted.captions or next(((name,) for name in usual if name in texts), ())
        if not any(name in texts for name in names):
            raise Skip("no-caption", ", ".join(texts))
        return caption_of(texts, names)


class _Member(tarfile.TarInfo):
    """Where a header is missing or broken `tarfile` would take the archive to end; only its end mark does that."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def grouped(file: BinaryIO, tar: str) -> Iterator[tuple[str, dict[str, bytes | Skip]] | Rejected]:
    """(key, suffix → content) of each record of a tar, and what had to be left out."""
    key = ""
    parts: dict[str, bytes | Skip] = {}
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                if unsafe(member.name):
                    yield Rejected(member.name[:200], "unsafe-name")
                    continue
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, dot, rest = path.name.partition(".")
                this, suffix = str(path.with_name(stem or "_")), (dot + rest).lower()
                if this != key:
                    if parts:
                        yield key, parts
                    key, parts = this, {}
                if suffix not in parts and (limit := _limit(suffix)):
                    parts[suffix] = _content(archive, member, limit)
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError) as error:
        yield Rejected(tar, "corrupt-tar", f"after {key or 'its beginning'}: {error}")
        return  # the record it broke off in may be short of a part
    if parts:
        yield key, parts


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | Skip:
    if member.size > limit:
        return Skip("too-large", f"{member.name}, {member.size} bytes")
    content = archive.extractfile(member)
    data = content.read() if content else b""
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _limit(suffix: str) -> int:
    """How many bytes of a part are read at most; 0 for one of no use here."""
    if _ending(suffix) in SUFFIXES:
        return MAX_PICTURE_BYTES
    return MAX_TEXT_BYTES if suffix == ".json" or suffix in TEXTS else 0


def _ending(suffix: str) -> str:
    return f".{suffix.rpartition('.')[2]}"


def _read(part: bytes | Skip) -> bytes:
    if isinstance(part, Skip):
        raise part
    return part

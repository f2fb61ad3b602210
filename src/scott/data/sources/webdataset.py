"""WebDataset tars, local or remote, each read once from its beginning and never unpacked to disk."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from scott.data.captions import read_columns
from scott.data.records import Columns, Record, Rejected, Skip, Unit, with_left_out
from scott.data.sources.files import caption_of, opened, state_of
from scott.data.sources.tables import usual_captions
from scott.data.sources.tar import TEXTS, Parts, compression, grouped, is_picture

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVES = (".tar.zst", ".tzst", ".tar.lz4", ".tar.z", ".zip", ".7z", ".rar")
"""Endings of archives that are not read."""


class WebDataset:
    """Tars of pictures, each with a text and a .json of its name (see `tar.grouped`).

    The caption is the text, or the entry of the .json that is named (or has a usual name).
    """

    kind = "webdataset"

    def __init__(self, tars: Sequence[str], wanted: Columns, left_out: Sequence[Rejected] = ()) -> None:
        self.tars, self.wanted, self.left_out = tars, wanted, left_out

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
        units = [Unit(name.rsplit("/", 1)[-1], None, partial(self._records, name)) for name in self.tars]
        return with_left_out(units, self.left_out)

    def _records(self, name: str) -> Iterator[Record | Rejected]:
        with opened(name) as file:
            for entry in grouped(file, name.rsplit("/", 1)[-1]):
                if isinstance(entry, tuple):
                    yield self._record(*entry)
                elif entry.reason == "corrupt-tar" and (packed := _compression(name)):
                    yield Rejected(entry.key, "unsupported-compression", f"{packed}; unpack it first")
                else:
                    yield entry

    def _record(self, key: str, parts: Parts) -> Record | Rejected:
        try:
            pictures = [suffix for suffix in parts if is_picture(suffix)]
            if self.wanted.image:
                pictures = [suffix for suffix in pictures if suffix == f".{self.wanted.image.lstrip('.')}"]
            if not pictures:
                raise Skip("no-picture", ", ".join(parts))
            picture = _read(parts[pictures[0]])
            columns = read_columns(_read(parts[".json"])) if ".json" in parts else {}
            return Record(key, lambda: picture, self._captions(parts, columns), columns, len(picture))
        except Skip as skip:
            return Rejected(key, skip.reason, skip.detail)

    def _captions(self, parts: Parts, columns: dict[str, Any]) -> object:
        texts: dict[str, Any] = columns | {suffix[1:]: _read(parts[suffix]) for suffix in parts if suffix in TEXTS}
        beside = next(((suffix[1:],) for suffix in TEXTS if suffix in parts), ())
        names = self.wanted.captions or beside or usual_captions(texts)
        if not any(name in texts for name in names):
            raise Skip("no-caption", ", ".join(texts))
        return caption_of(texts, names)


def _compression(name: str) -> str | None:
    with opened(name) as file:
        return compression(file.read(6))


def _read(part: bytes | Skip) -> bytes:
    if isinstance(part, Skip):
        raise part
    return part

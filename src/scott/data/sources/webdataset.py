"""WebDataset tars, local or remote, each read once from its beginning and never unpacked to disk."""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

from scott.data.captions import read_columns
from scott.data.records import ASKED, Columns, Record, Rejected, Skip, Unit, attempt, with_left_out
from scott.data.sources.files import digest_of, kind_of, opened
from scott.data.sources.tables import IMAGES, caption_names, captions_of, usual_column
from scott.data.sources.tar import TEXTS, Parts, grouped, is_picture

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVES = (".zst", ".tzst", ".lz4", ".z", ".zip", ".7z", ".rar")
"""Endings of what is packed in a way that is not read: tars, and tables too."""


class WebDataset:
    """Tars of pictures, each with a text and a .json of its name (see `tar.grouped`).

    The caption is the text, or the entry of the .json that is named (or has a usual name). For the picture see `_one`.
    """

    kind = "webdataset"

    def __init__(self, tars: Sequence[str], wanted: Columns, left_out: Sequence[Rejected] = ()) -> None:
        self.tars, self.wanted, self.left_out = tars, wanted, left_out

    @cached_property
    def columns(self) -> list[str]:
        """Those of the first `ASKED` records of the first tar, which are read for them: any may lack some."""
        records = (record for record in self._records(self.tars[0]) if isinstance(record, Record))
        return list(dict.fromkeys(column for record in islice(records, ASKED) for column in record.columns))

    @cached_property
    def version(self) -> str:
        return digest_of(self.tars)

    def units(self, size: int) -> list[Unit]:
        """One a tar, whatever `size` is."""
        units = [Unit(name.rsplit("/", 1)[-1], None, partial(self._records, name)) for name in self.tars]
        return with_left_out(units, self.left_out)

    def _records(self, name: str) -> Iterator[Record | Rejected]:
        with opened(name) as file:
            for entry in grouped(file, name.rsplit("/", 1)[-1], local="://" not in name):
                if isinstance(entry, tuple):
                    yield attempt(entry[0], partial(self._record, *entry))
                elif entry.reason == "corrupt-tar" and (kind := kind_of(name)):
                    yield Rejected(entry.key, *kind)
                else:
                    yield entry

    def _record(self, key: str, parts: Parts) -> Record:
        pictures = [suffix for suffix in parts if is_picture(suffix)]
        if self.wanted.image:
            pictures = [suffix for suffix in pictures if suffix == f".{self.wanted.image.lstrip('.')}"]
        if not pictures:
            raise Skip("no-picture", ", ".join(parts))
        chosen = parts[_one(pictures)]
        columns = read_columns(parts[".json"].read()) if ".json" in parts else {}
        of_text = [suffix for ending in TEXTS for suffix in parts if suffix.endswith(ending)]
        texts: dict[str, Any] = columns | {suffix[1:]: parts[suffix].read() for suffix in of_text}
        beside = tuple(suffix[1:] for suffix in of_text[:1])
        names = caption_names(texts, self.wanted.captions or beside)
        captions, picture = captions_of(texts, names), chosen.read()  # one without a caption lacks that, let go or not
        return Record(key, lambda: picture, captions, columns, len(picture))


def _one(pictures: Sequence[str]) -> str:
    """Of a record's pictures, by their suffixes, the one that has no word in front of its ending (`.png` beside
    `.mask.png`), or where none is so, a usual one (`.image.png`). Raises `Skip` where it is not one alone."""
    plain = [suffix for suffix in pictures if "." not in suffix[1:]]
    usual = [suffix for suffix in pictures if usual_column([suffix.rpartition(".")[0]], IMAGES)]
    found = pictures if len(pictures) == 1 else plain or usual
    if len(found) != 1:
        raise Skip("several-pictures", f"{', '.join(pictures)}; name one with --image-column")
    return found[0]

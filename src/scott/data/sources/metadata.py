"""Tables of paths and captions in text: metadata.jsonl or .csv, as Hugging Face's `imagefolder` has them, or others."""

import ast
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from scott.data.records import Columns, Record, Rejected, Skip, Unit, attempt, units_of_rows
from scott.data.sources.files import digest_of, places_of, read_local, read_picture, spellings
from scott.data.sources.rows import OF_TEXT, Row, read_table
from scott.data.sources.survey import folded
from scott.data.sources.tables import IMAGES, caption_columns, caption_names, captions_of, image_column, picture_in

METADATA = re.compile(r"(?:.*/)?metadata\.(?:jsonl|csv)(?:\.gz)?", re.IGNORECASE | re.DOTALL)
_WAYS = (
    "path",
    "path in other case or composition",
    "path without its ending",
    "file alone",
    "file without its ending",
)
"""How a row may call a picture of the table's folder, where one alone is called so; a file alone may lie anywhere
below it."""


class MetadataFolder:
    """The rows of one file or several, each naming its picture by a path in the file's folder, or by a URL.

    Args:
        root: a folder.
        files: paths in it.
        pictures: those in it; one that no row names is counted.
        search: gives those of a file that the user named: its paths may be absolute, and pictures that are not where
            they say are looked for. None that no row names is counted.

    Raises `UserError` when a file cannot be read, has no rows, or lacks a column.
    """

    kind = "imagefolder"

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        wanted: Columns,
        left_out: Sequence[Rejected] = (),
        pictures: Sequence[str] = (),
        search: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self.root, self.files, self.wanted, self.pictures, self.search = root, files, wanted, pictures, search
        self.columns: list[str] = []
        self._read_from: dict[str, None] = {}
        self.records = [record for name in files for record in self._read(name)]
        self.left_out = [*left_out, *(Rejected(n, "not-in-metadata") for n in pictures if n not in self._read_from)]

    @cached_property
    def version(self) -> str:
        return digest_of([*self.files, *self._read_from], self.root)

    def units(self, size: int) -> list[Unit]:
        return units_of_rows(len(self.records), size, self._records, self.left_out)

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        return iter(self.records[rows.start : rows.stop])

    def _read(self, name: str) -> Iterator[Record | Rejected]:
        file = self.root / name
        header, rows = read_table(file)
        image = image_column(str(file), header, self.wanted.image, ("file_name", *IMAGES))
        caption_columns(str(file), header, self.wanted.captions)
        self.columns += [column for column in header if column not in self.columns]
        of_text = name.lower().removesuffix(".gz").endswith(OF_TEXT)
        prefix = f"{name}:" if len(self.files) > 1 else ""
        for number, row in enumerate(rows):
            key = f"{prefix}row {number}"
            if isinstance(row, Skip):
                yield Rejected(key, row.reason, row.detail)
                continue
            if isinstance(cell := row.pop(image, None), str) and len(cell) < 1000:
                key = cell
            yield attempt(key, partial(self._record, key, image, cell, row, file.parent, of_text))

    def _record(self, key: str, image: str, cell: object, row: Row, folder: Path, of_text: bool) -> Record:
        picture = picture_in(cell)
        place = self._place(picture, folder) if isinstance(picture, str) else None
        if isinstance(picture, str):
            self._read_from[place or picture] = None
        names = caption_names(row, self.wanted.captions)
        captions = _entries(captions_of(row, names)) if of_text else captions_of(row, names)
        columns = {n: _number(value) if of_text and n not in names else value for n, value in row.items()}
        if isinstance(picture, bytes):
            return Record(key, lambda: picture, captions, columns, len(picture), names)
        if isinstance(picture, str):
            columns[image] = picture
        of_user = self.search is not None
        read = partial(read_local, self.root / place) if place else partial(read_picture, picture, folder, of_user)
        return Record(key, read, captions, columns, repeated=(*names, image))

    @cached_property
    def _names(self) -> dict[tuple[str, str], str | None]:
        """What a row may call a picture, by `_WAYS` → the picture; None of what several may be called."""
        names: dict[tuple[str, str], str | None] = {}
        for picture in self.search() if self.search else self.pictures:
            name = folded(picture)
            file = name.rpartition("/")[2]
            ways = (picture, name, name.rpartition(".")[0], file, file.rpartition(".")[0])
            for key in zip(_WAYS, ways, strict=True):
                names[key] = None if key in names else picture
        return names

    def _place(self, name: str, folder: Path) -> str | None:
        """The picture of those seen that a row means."""
        if self.search and all(map(os.path.exists, places_of([name], folder, True))):
            return None  # where it says, or at a URL
        inside = PurePosixPath(folder.relative_to(self.root))
        for spelling in spellings(name, folder) if self._names else ():
            path = str(inside / spelling)
            for key in zip(_WAYS[:3], (path, folded(path), folded(path)), strict=True):
                if place := self._names.get(key):
                    return place
            for way in _WAYS[3:]:
                place = self._names.get((way, folded(spelling)))
                if place and PurePosixPath(place).is_relative_to(inside):
                    return place
        return None


def _entries(cell: object) -> object:
    """A list that a cell of text holds, as JSON or as pandas writes it; any other cell as it is."""
    if isinstance(cell, str) and cell.startswith(('["', "['")):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(cell)
    return cell


def _number(cell: Any) -> Any:
    """What a cell of text says, where it says a number; any other cell as it is."""
    try:
        value = json.loads(cell)
    except (TypeError, ValueError, RecursionError):
        return cell
    return value if isinstance(value, int | float) and not isinstance(value, bool) else cell

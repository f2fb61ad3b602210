"""Tables of paths and captions in text: metadata.jsonl or .csv, as Hugging Face's `imagefolder` has them, or others."""

import csv
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from scott.data.captions import read_columns
from scott.data.records import MAX_TEXT_BYTES, Columns, Record, Rejected, Skip, Unit, slices, with_left_out
from scott.data.sources.files import caption_of, opened, read_picture, spellings
from scott.data.sources.folder import state_digest
from scott.data.sources.tables import IMAGES, caption_columns, image_column, number
from scott.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


def is_table(name: str) -> bool:
    return name.lower().endswith(_TABLES)


class _Table(NamedTuple):
    folder: Path
    """That the file is in."""
    image: str
    captions: list[str]
    of_text: bool
    """Whether every cell is its text, numbers too."""


class _Row(NamedTuple):
    table: _Table
    key: str
    columns: dict[str, Any] | Skip


class MetadataFolder:
    """The rows of one file or several, each naming its picture by a path in the file's folder, or by a URL.

    Args:
        root: a folder.
        files: paths in it.
        pictures: those in it; one that no row names is counted.
        of_user: the user named the file: its paths may be absolute.

    Raises `UserError` when a file cannot be read, or lacks a column.
    """

    kind = "imagefolder"

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        wanted: Columns,
        left_out: Sequence[Rejected] = (),
        pictures: Sequence[str] = (),
        of_user: bool = False,
    ) -> None:
        self.root, self.files, self.wanted, self.of_user = root, files, wanted, of_user
        self.rows = [row for name in files for row in self._rows(name)]
        columns = (row.columns for row in self.rows)
        self.columns = list(dict.fromkeys(name for row in columns if isinstance(row, dict) for name in row))
        self.left_out = [*left_out, *self._unnamed(pictures)]

    def _rows(self, name: str) -> Iterator[_Row]:
        file = self.root / name
        rows = _read(file)
        columns = list(dict.fromkeys(column for row in rows if isinstance(row, dict) for column in row))
        image = image_column(str(file), columns, self.wanted.image, ("file_name", *IMAGES))
        captions = caption_columns(str(file), columns, self.wanted.captions)
        table = _Table(file.parent, image, captions, _of_text(file))
        prefix = f"{name}:" if len(self.files) > 1 else ""
        return (_Row(table, f"{prefix}row {number}", row) for number, row in enumerate(rows))

    def _named(self) -> Iterator[tuple[_Table, str]]:
        """What each row calls its picture."""
        for table, _, columns in self.rows:
            if isinstance(columns, dict) and isinstance(name := columns.get(table.image), str):
                yield table, name

    def _unnamed(self, pictures: Sequence[str]) -> Iterator[Rejected]:
        rest = set(pictures)
        for table, name in self._named() if rest else ():
            inside = table.folder.relative_to(self.root)
            rest -= {str(PurePosixPath(inside, spelling)) for spelling in spellings(name, table.folder)}
        return (Rejected(name, "not-in-metadata") for name in pictures if name in rest)

    @cached_property
    def version(self) -> str:
        return state_digest(self.root, [*self.files, *(name for _, name in self._named())])

    def units(self, size: int) -> list[Unit]:
        rows = slices(len(self.rows), size)
        units = [Unit(f"rows {r.start} to {r.stop - 1}", len(r), partial(self._records, r)) for r in rows]
        return with_left_out(units, self.left_out)

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for table, key, columns in self.rows[rows.start : rows.stop]:
            if isinstance(columns, Skip):
                yield Rejected(key, columns.reason, columns.detail)
                continue
            name = columns.get(table.image)
            rest = {key: cell for key, cell in columns.items() if key not in (table.image, *table.captions)}
            if table.of_text:
                rest = {key: number(cell) for key, cell in rest.items()}
            try:
                captions = caption_of(columns, table.captions)
            except Skip as skip:
                yield Rejected(str(name), skip.reason, skip.detail)
            else:
                yield Record(str(name), partial(read_picture, name, table.folder, self.of_user), captions, rest)


def _of_text(file: Path) -> bool:
    return file.suffix.lower() in (".csv", ".tsv")


def _read(file: Path) -> list[dict[str, Any] | Skip]:
    """Rows end at \\n or \\r\\n alone: a caption may hold what else ends a line somewhere."""
    try:
        with opened(str(file)) as stream:
            lines = stream.read().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        return list(_csv_rows(lines, file.suffix) if _of_text(file) else _json_rows(lines))
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); expected UTF-8, one row a picture") from None


def _json_rows(lines: Sequence[str]) -> Iterator[dict[str, Any] | Skip]:
    for line in lines:
        if line.strip():
            try:
                yield read_columns(line.encode())
            except Skip as skip:
                yield skip


def _csv_rows(lines: Sequence[str], suffix: str) -> Iterator[dict[str, Any] | Skip]:
    """Every cell as its text."""
    csv.field_size_limit(MAX_TEXT_BYTES)
    whole = (re.sub("[\r\0]", " ", f"{line}\n") for line in lines)  # csv takes a \r for the end of a row
    for row in csv.DictReader(whole, delimiter="\t" if suffix.lower() == ".tsv" else ","):
        more: Any = row.pop(None, [])  # cells beyond the header's
        if any(more):
            yield Skip("more-cells-than-columns", "quote a caption that holds the separator")
        else:
            yield {name: cell for name, cell in row.items() if name}

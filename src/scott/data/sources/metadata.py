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


class _Row(NamedTuple):
    folder: Path
    """That the file of the row is in."""
    key: str
    columns: dict[str, Any] | Skip
    of_text: bool
    """Whether every cell is its text, numbers too."""


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
        self.root, self.files, self.of_user = root, files, of_user
        self.rows = [row for name in files for row in _rows(root / name, f"{name}:" if len(files) > 1 else "")]
        columns = (row.columns for row in self.rows)
        self.columns = list(dict.fromkeys(name for row in columns if isinstance(row, dict) for name in row))
        table = str(root / files[0])
        self.image = image_column(table, self.columns, wanted.image, ("file_name", *IMAGES))
        self.captions = caption_columns(table, self.columns, wanted.captions)
        self.left_out = [*left_out, *self._unnamed(pictures)]

    def _unnamed(self, pictures: Sequence[str]) -> Iterator[Rejected]:
        rest = set(pictures)
        for row in self.rows:
            if isinstance(row.columns, dict) and isinstance(name := row.columns.get(self.image), str):
                inside = row.folder.relative_to(self.root)
                rest -= {str(PurePosixPath(inside, spelling)) for spelling in spellings(name, row.folder)}
        return (Rejected(name, "not-in-metadata") for name in pictures if name in rest)

    @cached_property
    def version(self) -> str:
        cells = (row.columns.get(self.image) for row in self.rows if isinstance(row.columns, dict))
        return state_digest(self.root, [*self.files, *(cell for cell in cells if isinstance(cell, str))])

    def units(self, size: int) -> list[Unit]:
        rows = slices(len(self.rows), size)
        units = [Unit(f"rows {r.start} to {r.stop - 1}", len(r), partial(self._records, r)) for r in rows]
        return with_left_out(units, self.left_out)

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for row in self.rows[rows.start : rows.stop]:
            if isinstance(row.columns, Skip):
                yield Rejected(row.key, row.columns.reason, row.columns.detail)
                continue
            name = row.columns.get(self.image)
            taken = (self.image, *self.captions)
            rest = {key: cell for key, cell in row.columns.items() if key not in taken}
            if row.of_text:
                rest = {key: number(cell) for key, cell in rest.items()}
            try:
                captions = caption_of(row.columns, self.captions)
            except Skip as skip:
                yield Rejected(str(name), skip.reason, skip.detail)
            else:
                yield Record(str(name), partial(read_picture, name, row.folder, self.of_user), captions, rest)


def _rows(file: Path, prefix: str) -> Iterator[_Row]:
    """Rows end at \\n or \\r\\n alone: a caption may hold what else ends a line somewhere."""
    try:
        with opened(str(file)) as stream:
            lines = stream.read().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        of_text = file.suffix.lower() in (".csv", ".tsv")
        for index, columns in enumerate(_csv_rows(lines, file.suffix) if of_text else _json_rows(lines)):
            yield _Row(file.parent, f"{prefix}row {index}", columns, of_text)
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
    for row in csv.DictReader(whole, restkey="", delimiter="\t" if suffix.lower() == ".tsv" else ","):
        yield {name: cell for name, cell in row.items() if name}

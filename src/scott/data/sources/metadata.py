"""Tables of paths and captions in text: metadata.jsonl or .csv, as Hugging Face's `imagefolder` has them, or others."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from scott.data.captions import read_columns
from scott.data.records import (
    LFS_POINTER,
    MAX_TEXT_BYTES,
    Columns,
    Record,
    Rejected,
    Skip,
    Unit,
    attempt,
    units_of_rows,
)
from scott.data.sources.files import digest_of, opened, read_local, read_picture, spellings
from scott.data.sources.survey import folded
from scott.data.sources.tables import IMAGES, caption_columns, captions_of, image_column
from scott.errors import UserError

METADATA = re.compile(r"(?:.*/)?metadata\.(?:jsonl|csv)(?:\.gz)?", re.IGNORECASE | re.DOTALL)
_OF_TEXT = (".csv", ".tsv")
_ENDINGS = (*_OF_TEXT, ".jsonl", ".ndjson")
_SEPARATORS = ",;\t|"
_WAYS = ("path", "path in other case or composition", "path without its ending", "file alone")
"""How a row may call a picture of the table's folder, where one alone is called so; a file alone may lie anywhere
below it."""


def is_table(file: Path) -> bool:
    """By its ending, also with .gz behind it; a .json is one where it is a list."""
    if file.suffix.lower() != ".json":
        return file.name.lower().removesuffix(".gz").endswith(_ENDINGS)
    try:
        return read_local(file, 64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except Skip:
        return False


class MetadataFolder:
    """The rows of one file or several, each naming its picture by a path in the file's folder, or by a URL.

    Args:
        root: a folder.
        files: paths in it.
        pictures: those in it; one that no row names is counted.
        of_user: the user named the file: its paths may be absolute.

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
        of_user: bool = False,
    ) -> None:
        self.root, self.files, self.wanted, self.of_user = root, files, wanted, of_user
        self.columns: list[str] = []
        self._names: dict[tuple[str, str], str | None] = {}
        for picture in pictures:
            name = folded(picture)
            ways = (name.rpartition(".")[0], name.rpartition("/")[2])
            for key in zip(_WAYS, (picture, name, *ways), strict=True):
                self._names[key] = None if key in self._names else picture
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
        header, rows = _read_table(file)
        if not rows:
            listed = ", ".join(header)[:200] or "none"
            raise UserError(f"{file} has no rows below its header ({listed}); expected one a picture")
        image = image_column(str(file), header, self.wanted.image, ("file_name", *IMAGES))
        captions = caption_columns(str(file), header, self.wanted.captions)
        self.columns += [column for column in header if column not in self.columns]
        of_text = name.lower().removesuffix(".gz").endswith(_OF_TEXT)
        prefix = f"{name}:" if len(self.files) > 1 else ""
        for number, row in enumerate(rows):
            if isinstance(row, Skip):
                yield Rejected(f"{prefix}row {number}", row.reason, row.detail)
            else:
                yield attempt(str(row.get(image)), partial(self._record, row, file.parent, image, captions, of_text))

    def _record(self, row: dict[str, Any], folder: Path, image: str, captions: Sequence[str], of_text: bool) -> Record:
        name = row.pop(image, None)
        place = self._place(name, folder) if isinstance(name, str) else None
        if isinstance(name, str):
            self._read_from[place or name] = None
        read = partial(read_local, self.root / place) if place else partial(read_picture, name, folder, self.of_user)
        rest = {key: cell for key, cell in row.items() if key not in captions}
        if of_text:
            rest = {key: _number(cell) for key, cell in rest.items()}
        return Record(str(name), read, captions_of(row, captions), rest)

    def _place(self, name: str, folder: Path) -> str | None:
        """The picture of those seen that a row means."""
        inside = PurePosixPath(folder.relative_to(self.root))
        for spelling in spellings(name, folder) if self._names else ():
            path = str(inside / spelling)
            for key in zip(_WAYS[:3], (path, folded(path), folded(path)), strict=True):
                if place := self._names.get(key):
                    return place
        place = self._names.get((_WAYS[3], folded(name)))
        return place if place and PurePosixPath(place).is_relative_to(inside) else None


def _read_table(file: Path) -> tuple[list[str], list[dict[str, Any] | Skip]]:
    """Names of columns, and rows or why they cannot be read. Rows end at \\n or \\r\\n alone: a caption may hold what
    else ends a line somewhere."""
    name = file.name.lower().removesuffix(".gz")
    try:
        with opened(str(file), "gzip" if file.suffix.lower() == ".gz" else None) as stream:
            content = stream.read().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        if content.startswith(LFS_POINTER):
            raise ValueError("it is a pointer of Git LFS: run git lfs pull")
        if name.endswith(_OF_TEXT):
            return _csv_rows(content.decode(), name)
        rows = list(_json_rows(content))
    except (ValueError, RecursionError, EOFError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); expected UTF-8, one row a picture") from None
    if rows and not any(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} has no row that is a JSON object; expected one a line, or a list of them")
    return list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)), rows


def _json_rows(content: bytes) -> Iterator[dict[str, Any] | Skip]:
    """Those of a line each, or the entries of one list."""
    try:
        rows = json.loads(content) if content.lstrip().startswith(b"[") else None
    except (ValueError, RecursionError):
        rows = None
    if isinstance(rows, list):
        yield from (row if isinstance(row, dict) else Skip("metadata-not-json", type(row).__name__) for row in rows)
        return
    for line in content.split(b"\n"):
        if line.strip():
            try:
                yield read_columns(line)
            except Skip as skip:
                yield skip


def _csv_rows(text: str, name: str) -> tuple[list[str], list[dict[str, Any] | Skip]]:
    """Every cell as its text; the separator is the one that the header has most of."""
    csv.field_size_limit(MAX_TEXT_BYTES)
    lines = text.lstrip("\n").split("\n")
    separator = "\t" if name.endswith(".tsv") else max(_SEPARATORS, key=lines[0].count)
    whole = (re.sub("[\r\0]", " ", f"{line}\n") for line in lines)  # csv takes a \r for the end of a row
    reader = csv.DictReader(whole, delimiter=separator, skipinitialspace=True, strict=True)
    header = [column for column in reader.fieldnames or () if column]
    rows: list[dict[str, Any] | Skip] = []
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            rows.append(Skip("broken-row", f"line {reader.line_num}: {error}"))
            continue
        if row is None:
            return header, rows
        more: Any = row.pop(None, [])  # cells beyond the header's
        if any(more):
            rows.append(Skip("more-cells-than-columns", "quote a caption that holds the separator"))
        else:
            rows.append({column: cell for column, cell in row.items() if column})


def _number(cell: Any) -> Any:
    """What a cell of text says, where it says a number; any other cell as it is."""
    try:
        value = json.loads(cell)
    except (TypeError, ValueError, RecursionError):
        return cell
    return value if isinstance(value, int | float) and not isinstance(value, bool) else cell

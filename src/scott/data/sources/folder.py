"""A folder of pictures: a .txt beside each, or metadata.jsonl or .csv as Hugging Face's `imagefolder` has it."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from scott.data.captions import read_columns
from scott.data.pictures import SUFFIXES
from scott.data.records import MAX_TEXT_BYTES, Columns, Record, Rejected, Skip, Unit, slices
from scott.data.sources.files import caption_of, read_picture
from scott.data.sources.tables import caption_columns, image_column
from scott.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")


class Folder:
    """Pictures of a folder and the folders in it, in the order of their paths, each with the .txt of its name.

    Raises `UserError` when it holds no pictures.
    """

    kind = "folder"
    columns: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        self.names = sorted(name.as_posix() for name in names)
        if not self.names:
            raise UserError(f"{folder} holds no pictures; expected files ending in {', '.join(sorted(SUFFIXES))}")

    @cached_property
    def version(self) -> str:
        return _version(self.folder, [*self.names, *(str(Path(name).with_suffix(".txt")) for name in self.names)])

    def units(self, size: int) -> list[Unit]:
        rows = slices(len(self.names), size)
        return [Unit(f"pictures {r.start} to {r.stop - 1}", len(r), partial(self._records, r)) for r in rows]

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for name in self.names[rows.start : rows.stop]:
            try:
                with (self.folder / name).with_suffix(".txt").open("rb") as file:
                    caption = file.read(MAX_TEXT_BYTES + 1)
            except OSError:
                yield Rejected(name, "no-caption", "no .txt beside it")
            else:
                yield Record(name, partial(read_picture, name, self.folder), caption)


class MetadataFolder:
    """The rows of a metadata file, each naming its picture by a path in the folder.

    Raises `UserError` when the file cannot be read, or lacks a column.
    """

    kind = "imagefolder"

    def __init__(self, file: Path, wanted: Columns) -> None:
        self.file = file
        try:
            text = file.read_text(encoding="utf-8-sig")
            self.rows = _csv_rows(text) if file.suffix == ".csv" else _json_rows(text)
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{file} cannot be read ({error}); expected UTF-8, one row a picture") from None
        self.columns = list(dict.fromkeys(name for row in self.rows if isinstance(row, dict) for name in row))
        self.image = image_column(str(file), self.columns, wanted.image or "file_name")
        self.captions = caption_columns(str(file), self.columns, wanted.captions)

    @cached_property
    def version(self) -> str:
        names = (row.get(self.image) for row in self.rows if isinstance(row, dict))
        return _version(self.file.parent, [self.file.name, *(name for name in names if isinstance(name, str))])

    def units(self, size: int) -> list[Unit]:
        rows = slices(len(self.rows), size)
        return [Unit(f"rows {r.start} to {r.stop - 1}", len(r), partial(self._records, r)) for r in rows]

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for number in rows:
            row = self.rows[number]
            if isinstance(row, Skip):
                yield Rejected(f"row {number}", row.reason, row.detail)
                continue
            name = row.get(self.image)
            rest = {key: value for key, value in row.items() if key not in (self.image, *self.captions)}
            try:
                captions = caption_of(row, self.captions)
            except Skip as skip:
                yield Rejected(str(name), skip.reason, skip.detail)
            else:
                yield Record(str(name), partial(read_picture, name, self.file.parent), captions, rest)


def _json_rows(text: str) -> list[dict[str, Any] | Skip]:
    rows: list[dict[str, Any] | Skip] = []
    for line in text.splitlines():
        if line.strip():
            try:
                rows.append(read_columns(line.encode()))
            except Skip as skip:
                rows.append(skip)
    return rows


def _csv_rows(text: str) -> list[dict[str, Any] | Skip]:
    csv.field_size_limit(MAX_TEXT_BYTES)
    rows = csv.DictReader(text.splitlines(keepends=True), restkey="")
    return [{name: _number(value) for name, value in row.items() if name} for row in rows]


def _number(cell: Any) -> Any:
    """What a cell says, where it says a number."""
    try:
        value = json.loads(cell)
    except (TypeError, ValueError, RecursionError):
        return cell
    return value if isinstance(value, int | float) and not isinstance(value, bool) else cell


def _version(folder: Path, names: Sequence[str]) -> str:
    """Of names, sizes and times of change; a file that is not there counts as such."""
    digest = hashlib.sha256()
    for name in names:
        try:
            stat = (folder / name).stat()
            digest.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode())
        except (OSError, ValueError):
            digest.update(repr((name, None)).encode())
    return digest.hexdigest()

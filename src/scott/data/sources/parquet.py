"""Parquet files: pictures as bytes, as paths or as URLs, with captions and whatever else in columns."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from scott.data.records import Columns, Record, Rejected, Skip, Unit, slices
from scott.data.sources.files import caption_of, opened, read_picture, state_of
from scott.data.sources.tables import caption_columns, image_column
from scott.errors import UserError, first_line


class Parquet:
    """One file or several of the same columns, in their order.

    Raises `UserError` when pyarrow is missing, a file is none of parquet, or a column is not there.
    """

    kind = "parquet"

    def __init__(self, files: Sequence[str], wanted: Columns) -> None:
        self.files = files
        with opened(files[0]) as file:
            self.columns = _parquet_file(file, files[0]).schema_arrow.names
        self.image = image_column(files[0], self.columns, wanted.image)
        self.captions = caption_columns(files[0], self.columns, wanted.captions)

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(repr(state_of(self.files)).encode()).hexdigest()

    def units(self, size: int) -> list[Unit]:
        found: list[Unit] = []
        for name in self.files:
            with opened(name) as file:
                count = _parquet_file(file, name).metadata.num_rows
            for rows in slices(count, size):
                title = f"{Path(name).name}, rows {rows.start} to {rows.stop - 1}"
                found.append(Unit(title, len(rows), partial(self._records, name, rows)))
        return found

    def _records(self, name: str, rows: range) -> Iterator[Record | Rejected]:
        with opened(name) as file:
            parquet = _parquet_file(file, name)
            start = 0
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                if start < rows.stop and start + count > rows.start:
                    yield from self._group(parquet, group, start, rows, name)
                start += count

    def _group(self, parquet: Any, group: int, start: int, rows: range, name: str) -> Iterator[Record | Rejected]:
        try:
            for batch in parquet.iter_batches(batch_size=256, row_groups=[group]):
                for number in range(max(start, rows.start), min(start + len(batch), rows.stop)):
                    row = batch.slice(number - start, 1).to_pylist()[0]
                    yield table_record(f"{Path(name).name}:{number}", row, self.image, self.captions, _folder(name))
                start += len(batch)
        except _arrow_errors() as error:
            raise UserError(f"{name} is corrupt ({first_line(error)}); mend it or leave it out") from None


def table_record(
    key: str, row: dict[str, Any], image: str, captions: Sequence[str], folder: Path | None
) -> Record | Rejected:
    """A row of a table, whose picture is bytes, a path in `folder`, a URL, or Hugging Face's {bytes, path}."""
    picture = row.get(image)
    if isinstance(picture, dict):
        picture = picture.get("bytes") if picture.get("bytes") is not None else picture.get("path")
    rest = {name: value for name, value in row.items() if name not in (image, *captions)}
    if isinstance(picture, str):
        rest[image] = picture
    try:
        texts = caption_of(row, captions)
    except Skip as skip:
        return Rejected(key, skip.reason, skip.detail)
    if isinstance(picture, bytes):
        return Record(key, lambda: picture, texts, rest)
    return Record(key, partial(read_picture, picture, folder, absolute=True), texts, rest)


def _folder(name: str) -> Path | None:
    return None if "://" in name else Path(name).parent


def _parquet_file(file: Any, name: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("parquet files need pyarrow; pip install 'scott-diffusion[data]'") from None
    try:
        return parquet.ParquetFile(file)
    except _arrow_errors() as error:
        raise UserError(f"{name} is no parquet file ({first_line(error)}); copy or download it again") from None


def _arrow_errors() -> tuple[type[Exception], ...]:
    from pyarrow import ArrowException

    return ArrowException, OSError

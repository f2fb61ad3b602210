"""Parquet files: pictures as bytes, as paths or as URLs, with captions and whatever else in columns."""

from bisect import bisect
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from scott.data.records import Columns, Record, Rejected, Unit, attempt, slices, with_left_out
from scott.data.sources.files import digest_of, kind_of, opened
from scott.data.sources.tables import caption_columns, image_column, kept_columns, named_places, of_names, table_record
from scott.errors import UserError, first_line, require

_BATCH_BYTES = 32 << 20


class Parquet:
    """One file or several of the same columns, in their order.

    Read of it are pictures, captions, and columns of numbers or text, one batch of rows at a time. A unit goes on where
    one before it in its row group stopped: that cannot be entered in its middle, and would be decoded once a unit.

    Raises `UserError` when pyarrow is missing, a file is none of parquet, or a column is not there.
    """

    kind = "parquet"

    def __init__(self, files: Sequence[str], wanted: Columns, left_out: Sequence[Rejected] = ()) -> None:
        self.files, self.left_out = files, left_out
        with opened(files[0]) as file:
            schema = _parquet_file(file, files[0]).schema_arrow
        self.image = image_column(files[0], schema.names, wanted.image)
        self._by_name = of_names(schema, self.image)
        self.captions = caption_columns(files[0], schema.names, wanted.captions)
        self.columns = kept_columns(schema, self.image, self.captions)
        self._at = "", 0
        self._group_ends: dict[str, list[int]] = {}
        self._rows: Iterator[Record | Rejected] = iter(())

    @cached_property
    def version(self) -> str:
        return digest_of([*self.files, *dict.fromkeys(self._places() if self._by_name else ())])

    def _places(self) -> Iterator[str]:
        """Of the pictures that local files name, which may change where those do not."""
        for name in self.files:
            if "://" not in name:
                with opened(name) as file:
                    parquet = _parquet_file(file, name)
                    if parquet.schema_arrow.names.count(self.image) == 1:
                        for batch in _batches(parquet, None, [self.image], 1 << 16, name):
                            yield from named_places(batch.column(0), Path(name).parent)

    def units(self, size: int) -> list[Unit]:
        found: list[Unit] = []
        for name in self.files:
            with opened(name) as file:
                parquet = _parquet_file(file, name)
                names, groups = parquet.schema_arrow.names, range(parquet.num_row_groups)
                ends = list(accumulate(parquet.metadata.row_group(group).num_rows for group in groups))
            if lacking := [column for column in (self.image, *self.captions) if names.count(column) != 1]:
                raise UserError(f"{name} has the columns {', '.join(names)}, and not {lacking[0]!r} as {self.files[0]}")
            self._group_ends[name] = ends
            for rows in slices(parquet.metadata.num_rows, size):
                title = f"{Path(name).name}, rows {rows.start} to {rows.stop - 1}"
                found.append(Unit(title, len(rows), partial(self._records, name, rows)))
        return with_left_out(found, self.left_out)

    def _records(self, name: str, rows: range) -> Iterator[Record | Rejected]:
        (before, stopped), self._at = self._at, ("", 0)
        ends = self._group_ends[name]
        if before == name and stopped <= rows.start and bisect(ends, stopped) == bisect(ends, rows.start):
            deque(islice(self._rows, rows.start - stopped), maxlen=0)
        else:
            self._rows = self._rows_from(name, rows.start)
        yield from islice(self._rows, len(rows))
        self._at = name, rows.stop

    def _rows_from(self, name: str, first: int) -> Generator[Record | Rejected]:
        folder = None if "://" in name else Path(name).parent
        with opened(name) as file:
            parquet = _parquet_file(file, name)
            wanted = [column for column in self.columns if column in parquet.schema_arrow.names]
            start = 0
            for group in range(parquet.num_row_groups):
                metadata = parquet.metadata.row_group(group)
                if start + metadata.num_rows <= first:
                    start += metadata.num_rows
                    continue
                a_row = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
                size = max(1, min(256, _BATCH_BYTES // a_row))
                for batch in _batches(parquet, [group], wanted, size, name):
                    for index in range(max(0, first - start), len(batch)):
                        key = f"{Path(name).name}:{start + index}"
                        row = (batch, index, self.image, self.captions, folder)
                        yield attempt(key, partial(table_record, key, *row))
                    start += len(batch)


def _batches(parquet: Any, groups: list[int] | None, columns: list[str], size: int, name: str) -> Iterator[Any]:
    from pyarrow import ArrowException

    try:
        yield from parquet.iter_batches(batch_size=size, row_groups=groups, columns=columns)
    except (OSError, ArrowException) as error:
        raise UserError(f"{name} is corrupt ({first_line(error)}); mend it or leave it out") from None


def _parquet_file(file: Any, name: str) -> Any:
    require("pyarrow", "a parquet file")
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)
    except (OSError, ArrowException) as error:
        found, way_out = kind_of(name) or (first_line(error), "copy or download it again")
        raise UserError(f"{name} is no parquet file ({found}); {way_out}") from None

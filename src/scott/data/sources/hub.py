"""A Hugging Face dataset: a name on the hub, or what `save_to_disk` wrote."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from scott.data.records import Columns, Record, Rejected, Unit, slices
from scott.data.sources.parquet import table_record
from scott.data.sources.tables import caption_columns, image_column
from scott.errors import UserError, first_line

SAVED = ("dataset_dict.json", "state.json")
"""What a folder that `save_to_disk` wrote holds, of several splits or of one."""


class HubDataset:
    """One split of a dataset; pictures are left undecoded.

    Raises `UserError` when `datasets` is missing, there is no such data set or split, or a column is not there.
    """

    kind = "dataset"

    def __init__(self, name: str, split: str, wanted: Columns) -> None:
        self.data = _load(name, split)
        self.version: str = self.data._fingerprint
        self.columns = self.data.column_names
        self.image = image_column(name, self.columns, wanted.image)
        self.captions = caption_columns(name, self.columns, wanted.captions)
        from datasets import Image

        for column, feature in self.data.features.items():
            if isinstance(feature, Image):
                self.data = self.data.cast_column(column, Image(decode=False))

    def units(self, size: int) -> list[Unit]:
        rows = slices(len(self.data), size)
        return [Unit(f"rows {r.start} to {r.stop - 1}", len(r), partial(self._records, r)) for r in rows]

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for number in rows:
            yield table_record(f"row {number}", self.data[number], self.image, self.captions, Path())


def _load(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name} is a Hugging Face dataset; pip install 'scott-diffusion[data]' to read it") from None
    datasets.disable_progress_bars()
    local = Path(name)
    try:
        if not local.is_dir():
            return datasets.load_dataset(name, split=split)
        data = datasets.load_from_disk(name)
    except Exception as error:  # of the hub, of files, of the data set's own: there is no common one
        raise UserError(f"the dataset {name} ({split}) cannot be had: {first_line(error)}") from None
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        there = ", ".join(data)
        raise UserError(
            f"{name} has the splits {there}, and not {split!r}; name one with --split (scott evaluate: --data-split)"
        )
    return data[split]

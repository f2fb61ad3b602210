"""A Hugging Face dataset: a name on the hub, or what `save_to_disk` wrote."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from scott.data.records import Columns, Record, Rejected, Unit, slices
from scott.data.sources.arrow import described, table_record
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
        data = _load(name, split)
        self.version: str = data._fingerprint
        self.image = image_column(name, data.column_names, wanted.image)
        self.captions = caption_columns(name, data.column_names, wanted.captions)
        self.columns = described(data.features.arrow_schema, self.image, self.captions)
        self.data = data.select_columns(self.columns).with_format("arrow")

    def units(self, size: int) -> list[Unit]:
        rows = slices(len(self.data), size)
        return [Unit(f"rows {r.start} to {r.stop - 1}", len(r), partial(self._records, r)) for r in rows]

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for number in rows:
            yield table_record(f"row {number}", self.data[number], 0, self.image, self.captions, Path())


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
        raise UserError(
            f"there is no {name} here, and the dataset {name} ({split}) cannot be had: {first_line(error)}"
            if not local.is_dir()
            else f"the dataset {name} ({split}) cannot be had: {first_line(error)}"
        ) from None
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        there = ", ".join(data)
        raise UserError(
            f"{name} has the splits {there}, and not {split!r}; name one with --split (scott evaluate: --data-split)"
        )
    return data[split]

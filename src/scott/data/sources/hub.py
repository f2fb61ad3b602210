"""A Hugging Face dataset: a name on the hub, what `save_to_disk` wrote, or one .arrow file."""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from scott.data.records import Columns, Record, Rejected, Unit, attempt, units_of_rows
from scott.data.sources.files import digest_of
from scott.data.sources.survey import no_split
from scott.data.sources.tables import caption_columns, image_column, kept_columns, named_places, of_names, table_record
from scott.errors import UserError, first_line, require


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it, of several splits or of one."""
    one = (folder / "state.json", folder / "dataset_info.json")
    return (folder / "dataset_dict.json").is_file() or all(file.is_file() for file in one)


class HubDataset:
    """One split of a dataset; pictures are left undecoded.

    Raises `UserError` when `datasets` is missing, there is no such data set or split, or a column is not there.
    """

    kind = "dataset"

    def __init__(self, name: str, split: str, wanted: Columns) -> None:
        data = _load(name, split)
        self.image = image_column(name, data.column_names, wanted.image)
        self.captions = caption_columns(name, data.column_names, wanted.captions)
        self.columns = kept_columns(data.features.arrow_schema, self.image, self.captions)
        self.data = data.select_columns(self.columns).with_format("arrow")
        self._fingerprint: str = data._fingerprint
        self._by_name = Path(name).exists() and of_names(data.features.arrow_schema, self.image)

    @cached_property
    def version(self) -> str:
        """With the state of the pictures that a local one names, which may change where it does not."""
        pieces = self.data.select_columns([self.image]).iter(1 << 16) if self._by_name else ()
        places = dict.fromkeys(place for piece in pieces for place in named_places(piece.column(0), Path()))
        return self._fingerprint + (digest_of(places) if places else "")

    def units(self, size: int) -> list[Unit]:
        return units_of_rows(len(self.data), size, self._records)

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for number in rows:
            key, row = f"row {number}", self.data[number]
            yield attempt(key, partial(table_record, key, row, 0, self.image, self.captions, Path()))


def _load(name: str, split: str) -> Any:
    absent = "" if Path(name).exists() else f"there is no {name} here, and "
    datasets = require("datasets", f"{absent}{name}, a Hugging Face dataset,")
    datasets.disable_progress_bars()
    try:
        if Path(name).is_file():
            return datasets.Dataset.from_file(name)
        if not Path(name).is_dir():
            return datasets.load_dataset(name, split=split)
        data = datasets.load_from_disk(name)
    except Exception as error:  # of the hub, of files, of the data set's own: there is no common one
        raise UserError(f"{absent}the dataset {name} ({split}) cannot be had: {first_line(error)}") from None
    single = not isinstance(data, datasets.DatasetDict)
    if single and (split == "train" or data.split is None or split == data.split):
        return data
    if single or split not in data:
        raise no_split(name, [str(data.split)] if single else data, split)
    return data[split]

"""MJHQ-30K as it is published: one JSON of prompts, with the pictures in folders of their categories."""

import json
import os
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

from scott.data.records import Record, Unit, units_of_rows
from scott.data.sources.files import digest_of, places_of, read_picture
from scott.errors import UserError


class Mjhq:
    """MJHQ-30K: `meta_data.json` and, beside it or in `mjhq30k_imgs`, CATEGORY/ID.jpg."""

    kind = "mjhq"
    columns = ("category",)

    def __init__(self, file: str, *_: object) -> None:
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            self.rows = [(f"{row['category']}/{name}.jpg", str(row["prompt"])) for name, row in content.items()]
            first = self.rows[0][0]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} is not MJHQ-30K's meta_data.json ({error!r})") from None
        beside = Path(file).parent
        self.folder = next((f for f in (beside / "mjhq30k_imgs", beside) if os.path.isfile(f / first)), beside)
        self.file = file

    @cached_property
    def version(self) -> str:
        return digest_of([self.file, *places_of((name for name, _ in self.rows), self.folder)])

    def units(self, size: int) -> list[Unit]:
        return units_of_rows(len(self.rows), size, self._records)

    def _records(self, rows: range) -> Iterator[Record]:
        for name, prompt in self.rows[rows.start : rows.stop]:
            yield Record(name, partial(read_picture, name, self.folder), prompt, {"category": name.partition("/")[0]})

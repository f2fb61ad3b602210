"""COCO captions: published annotation files, with the pictures in a folder beside them or at the URLs they name."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from scott.data.pictures import named_as_picture
from scott.data.records import Columns, Record, Rejected, Skip, Unit, attempt, units_of_rows
from scott.data.sources.files import digest_of, opened, places_of, read_picture, unsafe
from scott.data.sources.survey import survey
from scott.errors import UserError


class Coco:
    """The pictures of one `captions_*.json` or several, in their order, each with all its captions.

    They are looked for in the folder `train2017` near a `captions_train2017.json` (see `_folder_of`); where there is
    none, they are fetched. A picture in that folder that the file does not name is counted. Raises `UserError` when a
    file is not of this kind, or a column is named.
    """

    kind = "coco"
    columns = ("id", "file_name", "width", "height", "license")

    def __init__(self, files: Sequence[str], wanted: Columns, left_out: Sequence[Rejected] = ()) -> None:
        wanted.refuse(f"{files[0]} holds pictures and captions as COCO has them")
        self.files, self.left_out = files, list(left_out)
        self.rows: list[tuple[dict[str, Any], list[Any], Path | None]] = []
        for file in files:
            self._read(file)

    def _read(self, file: str) -> None:
        captions: dict[str, list[Any]] = defaultdict(list)
        try:
            with opened(file) as stream:
                content = json.load(stream)
            pictures = [dict(picture) for picture in content["images"]]
            for annotation in content["annotations"]:
                captions[_key(annotation["image_id"])].append(annotation["caption"])
            folder = _folder_of(file, pictures)
            numbers = [_key(picture["id"]) for picture in pictures]  # of which one may stand there twice
            self.rows += [(picture, captions.get(n, []), folder) for n, picture in zip(numbers, pictures, strict=True)]
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{file} is no COCO caption file ({error!r}); expected images and annotations, or a list of rows"
            ) from None
        alone = sorted(captions.keys() - {*numbers})
        self.left_out += [Rejected(f"image {number}", "no-picture", "has captions alone") for number in alone]
        if folder and folder.name == Path(file).stem.removeprefix("captions_"):
            named = {str(picture.get("file_name")).rpartition("/")[2] for picture in pictures}
            there = [name for name in survey(folder).files if named_as_picture(name)]
            self.left_out += [Rejected(n, "not-in-metadata") for n in there if n.rpartition("/")[2] not in named]

    @cached_property
    def version(self) -> str:
        pictures = (places_of([picture.get("file_name")], folder) for picture, _, folder in self.rows if folder)
        return digest_of([*self.files, *chain.from_iterable(pictures)])

    def units(self, size: int) -> list[Unit]:
        return units_of_rows(len(self.rows), size, self._records, self.left_out)

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for row in self.rows[rows.start : rows.stop]:
            yield attempt(str(row[0].get("file_name")), partial(self._record, *row))

    def _record(self, picture: dict[str, Any], captions: list[Any], folder: Path | None) -> Record:
        if not captions:
            raise Skip("no-caption")
        name = picture.get("coco_url" if folder is None else "file_name")
        columns = {column: picture.get(column) for column in self.columns}
        return Record(str(picture.get("file_name")), partial(read_picture, name, folder or Path()), captions, columns)


def _key(number: object) -> str:
    if not isinstance(number, int | str):
        raise TypeError(f"the id {number!r}")
    return str(number)


def _folder_of(file: str, pictures: Sequence[dict[str, Any]]) -> Path | None:
    """`train2017` or `images/train2017` near the file; or `images` or its folder, if the first picture is there."""
    path, first = Path(file), str(pictures[0].get("file_name")) if pictures else ""
    if "://" in file or unsafe(first):
        return None
    name = path.stem.removeprefix("captions_")
    near = (path.parent, path.parent.parent)
    of_its_name = (folder / part for folder in near for part in (name, f"images/{name}"))
    others = (folder / part for folder in near for part in ("images", "") if os.path.isfile(folder / part / first))
    return next((place for place in (*of_its_name, *others) if place.is_dir()), None)

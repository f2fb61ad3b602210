"""COCO captions: the published annotation file, with the pictures in a folder beside it or at the URLs it names."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from scott.data.records import Record, Rejected, Unit, slices
from scott.data.sources.files import opened, read_picture, state_of, unsafe
from scott.errors import UserError


class Coco:
    """The pictures of a `captions_*.json`, in its order, each with all its captions.

    Pictures are looked for in `pictures`; by default in the folder `train2017` near a `captions_train2017.json`. Where
    there is none, they are fetched. Raises `UserError` when the file is not of this kind.
    """

    kind = "coco"
    columns = ("id", "file_name", "width", "height", "license")

    def __init__(self, file: str, pictures: Path | None = None) -> None:
        self.file = file
        try:
            with opened(file) as stream:
                content = json.load(stream)
            self.pictures: list[dict[str, Any]] = content["images"]
            self.captions: dict[int, list[str]] = {picture["id"]: [] for picture in self.pictures}
            for annotation in content["annotations"]:
                self.captions[annotation["image_id"]].append(annotation["caption"])
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} is no COCO caption file ({error!r}); expected images and annotations") from None
        self.folder = pictures or _folder_of(file)

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(repr((state_of([self.file]), self.folder is not None)).encode()).hexdigest()

    def units(self, size: int) -> list[Unit]:
        rows = slices(len(self.pictures), size)
        return [Unit(f"pictures {r.start} to {r.stop - 1}", len(r), partial(self._records, r)) for r in rows]

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for picture in self.pictures[rows.start : rows.stop]:
            name = str(picture.get("file_name"))
            columns = {column: picture.get(column) for column in self.columns}
            yield Record(name, partial(self._read, picture), self.captions[picture["id"]], columns)

    def _read(self, picture: dict[str, Any]) -> bytes:
        return read_picture(picture.get("coco_url" if self.folder is None else "file_name"), self.folder or Path())


def _folder_of(file: str) -> Path | None:
    """`train2017` or `images/train2017`, beside the file or its folder."""
    path = Path(file)
    name = path.stem.removeprefix("captions_")
    if "://" in file or unsafe(name):
        return None
    places = (parent / part for parent in (path.parent, path.parent.parent) for part in (name, f"images/{name}"))
    return next((place for place in places if place.is_dir()), None)

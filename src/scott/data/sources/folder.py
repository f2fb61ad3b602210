"""A folder of pictures, each with its caption in a file beside it."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import groupby, islice
from pathlib import Path, PurePosixPath

from scott.data.captions import read_columns
from scott.data.records import (
    ASKED,
    MAX_TEXT_BYTES,
    Columns,
    Record,
    Rejected,
    Skip,
    Unit,
    attempt,
    slices,
    with_left_out,
)
from scott.data.sources.files import digest_of, read_local
from scott.data.sources.survey import Survey, endings_of, folded
from scott.data.sources.tables import caption_names, captions_of
from scott.errors import UserError

TEXTS = (".txt", ".caption", ".text", ".json")
"""Endings of captions beside pictures, in upper or lower case, the first of several counts."""
_REPEATED = re.compile(r"([1-9]\d{0,2})_(.+)")
"""A folder's name in which each picture is visited up to 999 times an epoch; longer numbers are dates."""
_PAGES = ("readme", "license", "licence", "citation")
_ABOUT = re.compile(r"\d+\.parquet|\d+_stats\.json|dataset_infos?\.json")
"""What img2dataset and `datasets` write of pictures that are there themselves."""
_TREES = {"images", "image", "imgs", "img", "pictures", "photos", "data", "jpg", "png"}
_TEXT_TREES = {"captions", "caption", "texts", "text", "txt", "prompts", "labels", "annotations", "tags"}
"""Names of folders: `images/x/a.png` has its text beside it or in `captions/x/a.txt`."""
_BOX = re.compile(rb"\d+(?: [\d.e-]+){4,}")
"""A line of YOLO's labels: a class, and a box in four numbers or a polygon in more."""


def texts_beside(pictures: Sequence[str], files: Sequence[str], prefer_json: bool) -> dict[str, str]:
    """Picture → the file with its caption: `a.b.txt` of `a.b.png`, or else `a.b.png.txt`, or else, of texts that are no
    other picture's, one whose name differs in upper and lower case or in Unicode's composition alone; or else that of a
    tree of texts beside the tree of pictures."""
    named: dict[str, str] = {}
    for ending in reversed((".json", *TEXTS) if prefer_json else TEXTS):
        named |= {name[: -len(ending)]: name for name in files if name.lower().endswith(ending)}
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in pictures}
    found = {name: text for name, stem in stems.items() if (text := named.get(stem) or named.get(name))}
    taken = set(found.values())
    alike = {folded(stem): text for stem, text in named.items() if text not in taken}
    mirrored = {within: text for stem, text in alike.items() if (within := _within(stem, _TEXT_TREES))}
    for name, stem in stems.items():
        own, within = folded(stem), _within(folded(stem), _TREES)
        if name not in found and (text := alike.get(own) or mirrored.get(within) or mirrored.get(own)):
            found[name] = text
    return found


def _within(path: str, trees: Collection[str]) -> str:
    """A path without the innermost of its folders that is called like a tree, or "" where none is."""
    parts = path.split("/")
    depth = next((i for i in reversed(range(len(parts) - 1)) if parts[i] in trees), None)
    return "" if depth is None else "/".join(parts[:depth] + parts[depth + 1 :])


class Folder:
    """Pictures of a folder and the folders in it, in the order of their paths, each with the text of its name.

    Where all of them lie in folders named `10_cat`, an epoch visits each of those ten times, and the caption of one
    without a text is "cat", as kohya's sd-scripts have it.

    Raises `UserError` when it holds no pictures.
    """

    kind = "folder"

    def __init__(
        self, found: Survey, names: Sequence[str], texts: Mapping[str, str], wanted: Columns, left_out: list[Rejected]
    ) -> None:
        self.folder, self.names, self.texts, self.wanted = found.root, names, texts, wanted
        if not names:
            held = f"pictures, but {endings_of(found.files)}" if found.files else "files that are read"
            way_out = "expected pictures with captions, a table or tars (docs/data.md)"
            raise UserError(f"{found.root} holds no {held}; {way_out}")
        if wanted.image or not any(text.lower().endswith(".json") for text in texts.values()):
            wanted.refuse(f"{found.root} holds pictures with texts beside them")
        repeated = [_repeated(name) for name in names]
        self.repeats = repeated if all(repeated) else [None] * len(names)
        read = {*names, *texts.values(), *(entry.key for entry in left_out)}
        stems = {folded(str(PurePosixPath(name).with_suffix(""))) for name in texts}
        rest = (_unread(name, stems) for name in found.files if name not in read)
        self.left_out = left_out + list(filter(None, rest))

    @cached_property
    def columns(self) -> Sequence[str]:
        """Those of the first `ASKED` .json that hold captions: any may lack some."""
        found: dict[str, None] = {}
        for name in islice((name for name in self.texts.values() if name.lower().endswith(".json")), ASKED):
            with suppress(Skip):
                found |= dict.fromkeys(read_columns(read_local(self.folder / name, MAX_TEXT_BYTES)))
        return list(found)

    @cached_property
    def version(self) -> str:
        texts = [self.texts.get(name, str(Path(name).with_suffix(".txt"))) for name in self.names]
        return digest_of([*self.names, *texts], self.folder)

    def units(self, size: int) -> list[Unit]:
        units: list[Unit] = []
        for repeated, group in groupby(range(len(self.names)), key=lambda i: self.repeats[i]):
            rows = list(group)
            for part in slices(len(rows), size):
                r = range(rows[part.start], rows[part.start] + len(part))
                title = f"pictures {r.start} to {r.stop - 1}"
                units.append(Unit(title, len(r), partial(self._records, r), repeated[0] if repeated else 1))
        return with_left_out(units, self.left_out)

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for i in rows:
            yield attempt(self.names[i], partial(self._record, i))

    def _record(self, i: int) -> Record:
        name, repeated = self.names[i], self.repeats[i]
        image = partial(read_local, self.folder / name)
        if (text := self.texts.get(name)) is None:
            if repeated:
                return Record(name, image, repeated[1])
            raise Skip("no-caption", f"no {', '.join(TEXTS)} beside it")
        try:
            content = read_local(self.folder / text, MAX_TEXT_BYTES)
        except Skip as skip:
            raise Skip("unreadable-caption", skip.detail) from None
        if not text.lower().endswith(".json"):
            lines = [*filter(None, map(bytes.strip, content.split(b"\n")))]
            if lines and all(map(_BOX.fullmatch, lines)):
                raise Skip("caption-not-text", "boxes, as YOLO labels pictures")
            return Record(name, image, content)
        columns = read_columns(content)
        captions = captions_of(columns, caption_names(columns, self.wanted.captions))
        return Record(name, image, captions, columns)


def _repeated(name: str) -> tuple[int, str] | None:
    """(visits an epoch, caption) that the innermost folder named like `10_cat` says of a picture."""
    for part in reversed(PurePosixPath(name).parts[:-1]):
        if found := _REPEATED.fullmatch(part):
            return int(found[1]), found[2]
    return None


def is_page(name: str) -> bool:
    """Whether a file is there for people, or to say of a data set what is not of one picture."""
    path = PurePosixPath(name.lower())
    return path.name.startswith(_PAGES) or path.suffix in (".md", ".py") or _ABOUT.fullmatch(path.name) is not None


def _unread(name: str, stems: set[str]) -> Rejected | None:
    of_picture, ending = folded(name.rpartition(".")[0]) in stems, name[name.rfind(".") :].lower()
    if is_page(name) or (of_picture and ending == ".json"):  # img2dataset writes one beside each text
        return None
    if of_picture and ending in TEXTS:
        return Rejected(name, "other-file", "its picture has another text")
    return Rejected(name, "no-picture" if ending in TEXTS[:-1] else "other-file")

"""What a source of captioned pictures gives: units of records, in an order that never changes."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from PIL import Image

from scott.errors import UserError

T = TypeVar("T")

MAX_PICTURE_BYTES = 64 << 20
LFS_POINTER = b"version https://git-lfs"
"""How a file begins that git-lfs has not fetched."""
MAX_TEXT_BYTES = 1 << 20
ASKED = 1000
"""Records, of which each has columns of its own, that are read to know which there are."""


class Skip(Exception):
    """A record that is left out: a reason that is counted (a few words, always the same) and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Record:
    """One picture, not yet decoded."""

    key: str
    """What the source calls it."""
    image: Callable[[], bytes | Image.Image]
    """Reads it; raises `Skip`. Called after the columns were found to pass, from any thread."""
    captions: object
    """A text or several, as they were found (see `captions.read_captions`)."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What else is known of it: filters see these, and they are kept."""
    held: int = 0
    """Bytes of the picture that are in memory already."""
    repeated: Sequence[str] = ()
    """Columns that say no more than captions and key do: filters see them, and they are not kept a second time."""


@dataclass(frozen=True)
class Rejected:
    """A record that was left out."""

    key: str
    reason: str
    detail: str = ""


def reasons(skipped: Counter[str]) -> str:
    """Why records were left out, and how many: "empty-caption 3, where 2"; nothing where none were."""
    return ", ".join(f"{reason} {count:,}" for reason, count in skipped.most_common())


@dataclass(frozen=True)
class Unit:
    """A part of a source that becomes one shard."""

    name: str
    count: int | None
    """Records in it, where that is known before it is read."""
    records: Callable[[], Iterator[Record | Rejected]]
    repeats: int = 1
    """How often an epoch visits each of its pictures."""
    left_out: tuple[Rejected, ...] = ()
    """What was seen besides and is not read: files of other splits, folders that cannot be listed, ..."""

    def entries(self) -> Iterator[Record | Rejected]:
        """All of it, which `total` counts."""
        yield from self.left_out
        yield from self.records()

    @property
    def total(self) -> int | None:
        return None if self.count is None else self.count + len(self.left_out)


def attempt(key: str, make: Callable[[], Record]) -> Record | Rejected:
    """The record, or why there is none."""
    try:
        return make()
    except Skip as skip:
        return Rejected(key, skip.reason, skip.detail)


def with_left_out(units: list[Unit], left_out: Sequence[Rejected]) -> list[Unit]:
    """The units of a source, the first of which counts what the source leaves out."""
    return [replace(units[0], left_out=tuple(left_out)), *units[1:]] if units else units


def units_of_rows(
    count: int, size: int, records: Callable[[range], Iterator[Record | Rejected]], left_out: Sequence[Rejected] = ()
) -> list[Unit]:
    """Units of `size` of a source's `count` rows, of which `records` gives any."""
    pieces = slices(count, size)
    units = [Unit(f"rows {rows.start} to {rows.stop - 1}", len(rows), partial(records, rows)) for rows in pieces]
    return with_left_out(units, left_out)


class Source(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def columns(self) -> Sequence[str]:
        """Names that a filter may use."""

    @property
    def version(self) -> str:
        """Differs when the source is known to hold something else."""

    def units(self, size: int) -> list[Unit]:
        """About `size` records each, where the source does not say otherwise. Reads no picture."""


@dataclass(frozen=True)
class Columns:
    """Where a table keeps what is needed; None and () choose the usual names."""

    image: str | None = None
    captions: tuple[str, ...] = ()

    def refuse(self, holder: str) -> None:
        """Raise `UserError` where one is named of what has none: `holder` says what that holds instead."""
        if named := ", ".join(filter(None, (self.image, *self.captions))):
            raise UserError(f"{holder}, and no columns; got {named}; leave out --image-column and --caption-column")


def slices(count: int, size: int) -> list[range]:
    """The rows 0, ..., count − 1 in pieces of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last of what is left."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk

"""From a record to pixels and captions, or why it is left out: in threads that work ahead, in bounded memory."""

import ctypes
import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from threading import Condition
from typing import Any

from PIL import Image
from torch import Tensor

from scott.data.captions import read_captions
from scott.data.filters import Where, check_size
from scott.data.pictures import Size, aspect_buckets, cropped, decode, quietly, to_rgb
from scott.data.records import Record, Rejected, Skip, Source
from scott.data.settings import Settings

LISTED = 1000
THREADS = 16  # pictures that come by URL are waited for
READ_AT_ONCE = 256  # records a unit, where they are read to be measured
DECODED_BYTES = {"WEBP": 20, "AVIF": 20}
"""Of a pixel while it is decoded, at the most, where it is not 12: Pillow holds RGB and RGBA in four, in up to two
copies beside the decoder's own; libwebp has three, libavif one and its planes."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Sample:
    """A picture that is kept, decoded: pixels (3, H, W) uint8."""

    pixels: Tensor
    captions: list[str]
    info: dict[str, Any]


@dataclass
class Tally:
    """How many records were left out for which reason; the first of each reason, and the first `LISTED` of all."""

    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, Rejected] = field(default_factory=dict)
    listed: list[Rejected] = field(default_factory=list)

    def leave_out(self, entry: Rejected) -> None:
        self.skipped[entry.reason] += 1
        self.first.setdefault(entry.reason, entry)
        if len(self.listed) < LISTED:
            self.listed.append(entry)

    def kept(self, found: Iterable[Sample | Rejected], count: Callable[[int], None]) -> Iterator[Sample]:
        """The samples; `count` is called with 1 for each entry."""
        for entry in found:
            count(1)
            if isinstance(entry, Rejected):
                self.leave_out(entry)
            else:
                yield entry


Load = Callable[[Iterable[Record | Rejected]], Generator[Sample | Rejected]]
CROPPED_BYTES = 9
"""A pixel of what is cropped: as Pillow resizes it, as an array, and as a tensor."""


class Budget:
    """Bytes that decoding may hold at once, over all threads.

    A thread's free memory, which glibc keeps for it, counts: one that holds more than one of `THREADS` parts of the
    limit gives it back.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._held, self._changed = limit, 0, Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Waits until there is room. Raises `Skip` for more than there ever is."""
        if count > self.limit:
            raise Skip("beyond-decode-memory", f"{count:,} bytes, of {self.limit:,}")
        if count > self.limit // THREADS:
            _free_to_the_system()
        with self._changed:
            self._changed.wait_for(lambda: self._held + count <= self.limit)
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()


@cache
def _free_to_the_system() -> None:
    """From now on, have blocks of 4 MiB or more mapped and unmapped; and no thread keep more than 8 MiB free."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        mallopt(_M_TRIM_THRESHOLD, 8 << 20)


def loader(source: Source, settings: Settings, resolution: int, least: int) -> Load:
    """`loaded` as settings have it of a source, for sides of multiples of `least` pixels. Raises `UserError` where a
    column of `where` is missing."""
    where = Where(settings.where, source.columns) if settings.where else None
    sizes = aspect_buckets(resolution, least) if settings.aspect_buckets else [(resolution, resolution)]
    return partial(loaded, settings=settings, sizes=sizes, where=where)


def entries_of(source: Source) -> Iterator[Record | Rejected]:
    """All of a source, to be measured."""
    return (entry for unit in source.units(READ_AT_ONCE) for entry in unit.entries())


def loaded(
    records: Iterable[Record | Rejected], settings: Settings, sizes: Sequence[Size], where: Where | None = None
) -> Generator[Sample | Rejected]:
    """Records in their order, pictures cropped to the nearest of `sizes`, or why they are left out."""
    budget = Budget(settings.decode_memory << 20)
    load = partial(_load, settings=settings, sizes=sizes, where=where, budget=budget)
    made = 3 * max(height * width for height, width in sizes)
    with quietly(), closing(_ahead(load, records, budget.limit // 4, made)) as found:
        yield from found


def _load(
    entry: Record | Rejected, settings: Settings, sizes: Sequence[Size], where: Where | None, budget: Budget
) -> Sample | Rejected:
    if isinstance(entry, Rejected):
        return entry
    try:
        if where is not None and not where(entry.columns):
            raise Skip("where")
        captions = read_captions(entry.captions)
        with ExitStack() as held:
            crop = CROPPED_BYTES * max(height * width for height, width in sizes)
            picture = _picture(entry, settings, lambda count: held.enter_context(budget.hold(count + crop)))
            info = {"key": entry.key, "captions": captions, "width": picture.width, "height": picture.height}
            pixels = cropped(picture, sizes)
            del picture  # before its room is given to another
        kept = {name: value for name, value in entry.columns.items() if name not in entry.repeated}
        return Sample(pixels, captions, info | {"columns": _plain(kept)})
    except Skip as skip:
        return Rejected(entry.key, skip.reason, skip.detail[:200])


def _picture(record: Record, settings: Settings, hold: Callable[[int], None]) -> Image.Image:
    """The picture, upright and not yet cropped; `hold` is called with what its decoding takes."""
    found = record.image()
    if isinstance(found, Image.Image):
        check_size(*found.size, settings.min_size, settings.max_aspect)
        return to_rgb(found)

    def accept(image: Image.Image) -> None:
        check_size(*image.size, settings.min_size, settings.max_aspect)
        hold(image.width * image.height * DECODED_BYTES.get(image.format or "", 12) + len(found))

    return decode(found, accept)


def _plain(columns: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a record's columns, and is short."""
    kept = {name: value for name, value in columns.items() if isinstance(value, str | int | float | None)}
    finite = {name: value for name, value in kept.items() if not isinstance(value, float) or math.isfinite(value)}
    return {name: value for name, value in finite.items() if not isinstance(value, str) or len(value) <= 1000}


def _ahead(
    function: Callable[[Any], Any], entries: Iterable[Record | Rejected], limit: int, made: int
) -> Generator[Sample | Rejected]:
    """`map` with threads that work ahead, in order, on entries that hold up to `limit` bytes and make `made` each."""
    waiting: deque[tuple[Future[Any], int]] = deque()
    pool = ThreadPoolExecutor(THREADS)
    held = 0
    try:
        for entry in entries:
            size = entry.held + made if isinstance(entry, Record) else 0
            waiting.append((pool.submit(function, entry), size))
            held += size
            del entry  # its picture is held by the task alone
            while len(waiting) >= 4 * THREADS or (held > limit and waiting):
                done, size = waiting.popleft()
                yield done.result()
                held -= size
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)

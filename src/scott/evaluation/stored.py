"""Pictures that were drawn elsewhere, as they are measured: in their order, with what they say of their cost."""

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from scott.data.captions import read_captions
from scott.data.loading import entries_of, loaded
from scott.data.records import Record, Rejected, Skip, Source, slices
from scott.data.settings import Settings
from scott.errors import UserError
from scott.evaluation.pictures import CALLS, SECONDS, how_made


class StoredPictures:
    """The pictures of a source, each with its name and its first caption. Raises `UserError` for one without."""

    def __init__(self, name: str, source: Source) -> None:
        self.name, self.source = name, source
        self.size: int | None = None
        """Pixels a side that they are cropped to."""
        self.network_calls = 0
        """What each says that it took, once they were read; 0 where they do not, or differ."""
        self.names: list[str] = []
        self.prompts: list[str] = []
        for entry in entries_of(source):
            try:
                if isinstance(entry, Rejected):
                    raise Skip(entry.reason)
                self.prompts.append(read_captions(entry.captions)[0])
            except Skip as skip:
                raise UserError(f"{entry.key} of the pictures to measure cannot be used: {skip.reason}") from None
            self.names.append(entry.key)

    def batches(self, count: int, size: int) -> Iterator[tuple[Tensor, float | None]]:
        """The first `count`, up to `size` at a time, (B, 3, H, W) in [0, 1], and the seconds that drawing them took:
        None where one does not say."""
        assert self.size is not None
        costs: list[dict[str, Any]] = [{} for _ in range(count)]
        entries = (_noting(entry, cost) for entry, cost in zip(entries_of(self.source), costs, strict=False))
        found = loaded(entries, Settings(), [(self.size, self.size)])
        for rows in slices(count, size):
            pixels = []
            for one in islice(found, len(rows)):
                if isinstance(one, Rejected):
                    raise UserError(f"{one.key} of the pictures to measure cannot be read: {one.reason}")
                pixels.append(one.pixels)
            seconds = [costs[row].get(SECONDS, math.nan) for row in rows]
            yield torch.stack(pixels).float() / 255, None if math.isnan(sum(seconds)) else sum(seconds)
        calls = {cost.get(CALLS) for cost in costs}
        self.network_calls = round(calls.pop() or 0) if len(calls) == 1 else 0


def _noting(entry: Record | Rejected, cost: dict[str, Any]) -> Record | Rejected:
    """The record; when its picture is read, what that says of its cost is added to `cost`."""
    return replace(entry, image=partial(_read, entry, cost)) if isinstance(entry, Record) else entry


def _read(record: Record, cost: dict[str, Any]) -> bytes | Image.Image:
    found = record.image()
    made = how_made(io.BytesIO(found)) if isinstance(found, bytes) else None
    for name in (SECONDS, CALLS):
        value = made.get(name) if isinstance(made, dict) else None
        if isinstance(value, int | float) and 0 <= value < math.inf:
            cost[name] = value
    return found

"""Pictures that were drawn before, as they are measured: in their order, with what they say of their making."""

import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from scott.data.captions import read_captions
from scott.data.loading import entries_of, loaded
from scott.data.records import Record, Rejected, Skip, Source, slices
from scott.data.settings import Settings
from scott.errors import UserError
from scott.evaluation.pictures import BATCH_SEED, CALLS, CAPTIONS, GUIDANCE, SECONDS, STEPS, batch_seed, how_made

KEPT = re.compile(r"seed-(\d+)")
"""The folders in which `evaluate` keeps pictures."""


class StoredPictures:
    """The pictures of a source in a folder, each with its name and its first caption. Those of a seed that its table
    does not list, as fewer were drawn the last time, are passed over.

    Raises `UserError` for one without, and for pictures of several samplers or seeds of `scott evaluate --images`,
    which are rows of their own.
    """

    def __init__(self, folder: Path, source: Source) -> None:
        self.source = source
        self.size: int | None = None
        """Pixels a side that they are cropped to."""
        self.names: list[str] = []
        self.prompts: list[str] = []
        rows = sorted(file.parent for file in folder.rglob(CAPTIONS) if KEPT.fullmatch(file.parent.name))
        if len(rows) > 1:
            some = " and ".join(str(row.relative_to(folder)) for row in rows[:2])
            raise UserError(f"got {folder}, which has pictures of {len(rows)} rows or seeds, {some}; name one of them")
        place = (rows or [folder])[0].resolve()
        kept = KEPT.fullmatch(place.name)
        self.name = (place.parent.name if kept else folder.stem if folder.is_file() else folder.name) or "pictures"
        self.seed = int(kept[1]) if kept else None
        for entry in self._entries():
            try:
                if isinstance(entry, Rejected):
                    raise Skip(entry.reason)
                self.prompts.append(read_captions(entry.captions)[0])
            except Skip as skip:
                raise UserError(f"{entry.key} of the pictures to measure cannot be used: {skip.reason}") from None
            self.names.append(entry.key)
        self.drawn: dict[str, Any] = {}
        """What of a row all of them say, once they were read."""

    def _entries(self) -> Iterator[Record | Rejected]:
        for entry in entries_of(self.source):
            if self.seed is None or not isinstance(entry, Rejected) or entry.reason != "not-in-metadata":
                yield entry

    def batches(self, count: int, size: int) -> Iterator[tuple[Tensor, float | None]]:
        """The first `count`, up to `size` at a time, (B, 3, H, W) in [0, 1], and the seconds that drawing them took:
        None where one does not say."""
        assert self.size is not None
        costs: list[dict[str, Any]] = [{} for _ in range(count)]
        entries = (_noting(entry, cost) for entry, cost in zip(self._entries(), costs, strict=False))
        found = loaded(entries, Settings(), [(self.size, self.size)])
        for rows in slices(count, size):
            pixels = []
            for one in islice(found, len(rows)):
                if isinstance(one, Rejected):
                    raise UserError(f"{one.key} of the pictures to measure cannot be read: {one.reason}")
                pixels.append(one.pixels)
            seconds = [costs[row].get(SECONDS, math.nan) for row in rows]
            yield torch.stack(pixels).float() / 255, None if math.isnan(sum(seconds)) else sum(seconds)
        said = {key: {cost.get(key) for cost in costs} for key in (STEPS, CALLS, GUIDANCE)}
        alike = {key: values.pop() for key, values in said.items() if len(values) == 1}
        self.drawn = {"steps": round(alike.get(STEPS) or 0), "network_calls": round(alike.get(CALLS) or 0)}
        self.drawn["guidance"] = alike.get(GUIDANCE)
        if self.seed is not None and costs[0].get(BATCH_SEED) == batch_seed(self.seed, 0):
            self.drawn["seeds"] = (self.seed,)


def _noting(entry: Record | Rejected, cost: dict[str, Any]) -> Record | Rejected:
    """The record; when its picture is read, what that says of its cost and making is added to `cost`."""
    return replace(entry, image=partial(_read, entry, cost)) if isinstance(entry, Record) else entry


def _read(record: Record, cost: dict[str, Any]) -> bytes | Image.Image:
    found = record.image()
    made = how_made(io.BytesIO(found)) if isinstance(found, bytes) else None
    for name in (SECONDS, CALLS, STEPS, GUIDANCE, BATCH_SEED):
        value = made.get(name) if isinstance(made, dict) else None
        if isinstance(value, int | float) and 0 <= value < math.inf:
            cost[name] = value
    return found

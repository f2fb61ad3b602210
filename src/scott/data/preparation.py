"""Does once what training would do at every step: read, decode, crop, encode picture and captions; writes shards.

A shard is a function of the source's unit and the settings alone: what is there already is kept, whichever process
made it and however often the work was stopped.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from scott.data.filters import Where
from scott.data.loading import loader
from scott.data.locks import locked
from scott.data.manifest import Manifest, assemble, begin, claim, is_intact
from scott.data.records import Source, Unit
from scott.data.settings import Settings
from scott.data.writing import Encoders, write_shard
from scott.files import without_secrets

Report = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Outcome:
    """What a call did: the manifest (None while other processes are at work), and its own records and seconds."""

    manifest: Manifest | None
    records: int
    seconds: float


def full_settings(
    name: str, source: Source, settings: Settings, encoders: Encoders, teacher: dict[str, Any]
) -> dict[str, Any]:
    """All that the shards depend on, as JSON. `teacher` says whose VAE and text encoders encode.

    Raises:
        UserError: a resolution that the teacher cannot take, or a column of `where` is missing.
    """
    if settings.where:
        Where(settings.where, source.columns)
    resolution = settings.resolution or encoders.resolution
    encoders.check_resolution(resolution)
    made_from = {"name": without_secrets(name), "kind": source.kind, "version": source.version}
    given = replace(settings, resolution=resolution).as_json()
    return json.loads(json.dumps({"source": made_from, "teacher": teacher} | given))


def prepare_shards(
    source: Source,
    encoders: Encoders,
    settings: Settings,
    full: dict[str, Any],
    out: Path,
    report: Report,
    rank: int = 0,
    world: int = 1,
) -> Outcome:
    """Write the shards of a source that `out` lacks: of `world` processes, those of the units rank, rank + world, ...

    Whoever finds all shards there writes the manifest. `full` is `full_settings`' answer.

    Raises:
        UserError: `out` holds something else, a column is missing, nothing was kept, the disk is full, or the source
            cannot be read.
    """
    load = loader(source, settings, full["resolution"], encoders.least_side)
    units = limited(source, settings)
    names = [f"{i:06d}" for i in range(len(units))]
    mine = range(rank, len(units), world)
    claim(out)
    with locked(out, f"{rank}-of-{world}"):
        begin(out, full)
        progress = _Progress(report, [units[i] for i in mine])
        for i in mine:
            if not (intact := is_intact(out, names[i])):
                write_shard(out, names[i], units[i], load, encoders, settings, progress.add)
            progress.end(units[i], intact)
        return Outcome(assemble(out, full, names), progress.records, progress.seconds)


def limited(source: Source, settings: Settings) -> list[Unit]:
    """Units of a source's first `limit` records; where one does not know how many it has, none beyond that one."""
    units, limit = source.units(settings.shard_size), settings.limit
    if limit is None:
        return units
    kept: list[Unit] = []
    for unit in units:
        count = limit if unit.count is None else min(limit, unit.count)
        if count:
            records = partial(lambda unit, count: islice(unit.records(), count), unit, count)
            kept.append(replace(unit, count=unit.count and count, records=records))
        limit -= count
    return kept


class _Progress:
    """Counts what was read, or units where that is not known beforehand, and the rate of this call."""

    def __init__(self, report: Report, units: Sequence[Unit]) -> None:
        self._report, self._by_record = report, all(unit.total is not None for unit in units)
        self._total = sum(map(self._size, units))
        self._done, self.records, self._began = 0, 0, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def _size(self, unit: Unit) -> int:
        return (unit.total or 0) if self._by_record else 1

    def add(self, records: int) -> None:
        self.records += records
        self._advance(records if self._by_record else 0)

    def end(self, unit: Unit, was_there: bool) -> None:
        self._advance(self._size(unit) if was_there or not self._by_record else 0)

    def _advance(self, by: int) -> None:
        self._done += by
        self._report("prepare", self._done, self._total, {"rate": self.records / max(self.seconds, 1e-9)})

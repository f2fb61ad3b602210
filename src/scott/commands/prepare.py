"""Data as the commands name them: a source, a preset or prepared shards."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Column, Table

from scott.commands.presets import Preset
from scott.data.manifest import MANIFEST, SETTINGS, TOUCHED, Manifest, differences
from scott.data.mixture import Mixture, Prepared
from scott.data.preparation import Outcome, Report, full_settings, prepare_shards
from scott.data.records import Source, reasons
from scott.data.settings import Reading, Settings
from scott.data.shard_source import ShardSource
from scott.data.sources import open_source
from scott.device import best_device, processes
from scott.errors import UserError
from scott.mini import embedded
from scott.teachers.fingerprint import differing, fingerprints, label

if TYPE_CHECKING:
    from scott.teachers import LatentBackbone

MINI_SCENES, ALL_SCENES = 8192, 2**20
"""Of the embedded data, which are drawn as they are read: how many there are unless --limit says more, and at most."""
USUAL = Reading()
Warn = Callable[[str], None]


def prepare_source(
    name: str,
    backbone: "LatentBackbone",
    out: Path,
    settings: Settings,
    report: Report,
    rank: int = 0,
    world: int = 1,
    preset: Preset | None = None,
) -> Outcome:
    """Shards of a source in `out`, those of this process out of `world`; a preset fills in what settings leave open.
    Raises `UserError` as `open_source` and `prepare_shards` do."""
    source, settings = open_with(name, settings, preset)
    backbone.place_encoders(best_device())
    full = full_settings(name, source, settings, backbone, _made_for(backbone))
    return prepare_shards(source, backbone, settings, full, out, report, rank, world)


def open_with(name: str, settings: Settings, preset: Preset | None = None) -> tuple[Source, Settings]:
    """Embedded data by their name, or what `open_source` recognises; and the settings with what a preset fills in.
    Raises `UserError` as `open_source` does, and for a column or a split of embedded data."""
    if preset is not None:
        unnamed = {name: value for name, value in preset.settings.items() if not getattr(settings, name)}
        settings = replace(settings, **unnamed)
    _check_embedded(name, settings)
    scenes = embedded.SOURCES.get(name)
    count = min(settings.limit or MINI_SCENES, ALL_SCENES)
    source = scenes(count) if scenes else open_source(name, settings.columns, settings.split)
    if preset is not None and preset.scores:
        score = next((column for column in preset.scores if column in source.columns), preset.scores[0])
        where = f"({settings.where}) and {score} >= 6" if settings.where else f"{score} >= 6"
        settings = replace(settings, where=where)
    return source, settings


def _check_embedded(name: str, reading: Reading) -> None:
    """Raise `UserError` for a column or a split of embedded data."""
    if name in embedded.SOURCES:
        reading.columns.refuse(f"{name} holds pictures and captions that are drawn")
        if reading.split != USUAL.split:
            raise UserError(f"{name} has no splits; got {reading.split}; leave out --split")


def wait_for_manifest(folder: Path) -> Manifest:
    """That of all processes' shards, when they are there; if one of them fails, the launcher ends this one."""
    while not (folder / MANIFEST).is_file():
        time.sleep(0.5)
    return Manifest.load(folder)


def _made_for(backbone: "LatentBackbone") -> dict[str, Any]:
    name = str(backbone.pipeline.config.get("_name_or_path") or type(backbone.pipeline).__name__)
    return {"name": embedded.teacher_name(name), **fingerprints(backbone)}


def open_data(
    names: Sequence[str],
    backbone: "LatentBackbone",
    cache: Path,
    seed: int,
    report: Report,
    *,
    reading: Reading = USUAL,
    weights: Sequence[float] = (),
    warn: Warn = lambda message: None,
    begun_on: str | None = None,
) -> Prepared:
    """Training batches of one source or several, each of prepared shards or prepared into a folder of `cache` first.

    That folder is named after all that the shards depend on, so other data or another teacher gets another. Processes
    that a launcher started divide the work, and each returns when all of it is done. `warn` gets what was left out of a
    source that is prepared here. A run that has begun on the shards of version `begun_on`, which are in `cache`, goes
    on with these where the source's files have been touched.

    Raises:
        UserError: shards are unfinished, or were made for another VAE or text encoder, or a source is to be read in
            another way than those of a run that has begun; see `prepare_shards`, `Mixture`.
    """
    sources = []
    begun_on = begun_on if len(names) == 1 else None  # of several it is of all together
    for number, name in enumerate(names, 1):
        phase = f"prepare {number} of {len(names)}" if len(names) > 1 else "prepare"
        part = partial(lambda phase, _, *progress: report(phase, *progress), phase)
        sources.append(_open_one(name, backbone, cache, seed, part, reading, warn, begun_on))
    return sources[0] if len(sources) == 1 else Mixture(sources, weights or [1.0] * len(sources), seed)


def _open_one(
    name: str,
    backbone: "LatentBackbone",
    cache: Path,
    seed: int,
    report: Report,
    reading: Reading,
    warn: Warn,
    begun_on: str | None,
) -> ShardSource:
    folder = Path(name)
    if _is_prepared(name):
        source = ShardSource(folder, seed)
        check_made_for(source.manifest, backbone, name)
        return source
    opened, settings = open_with(name, Settings(**_given(reading)))
    full = full_settings(name, opened, settings, backbone, _made_for(backbone))
    made_from = {key: value for key, value in full["source"].items() if key != "name"}
    identity = full | {"source": made_from, "teacher": fingerprints(backbone)}
    folder = cache / sha256(dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    if not (folder / MANIFEST).is_file():
        if begun_on and (kept := _of_version(cache, seed, begun_on)):
            changes = set(differences(kept.manifest.settings, full)) - {TOUCHED}
            if changes:
                raise UserError(
                    f"the run has begun on {name} read otherwise ({'; '.join(sorted(changes))}); give it as it was, or "
                    "choose another --out"
                )
            warn(f"of {name}, {TOUCHED} than when the run began, which goes on with what it read then: {kept.folder}")
            return kept
        backbone.place_encoders(best_device())
        prepare_shards(opened, backbone, settings, full, folder, report, *processes())
    manifest = wait_for_manifest(folder)
    if skipped := Counter(manifest.skipped):
        warn(f"{name}: kept {manifest.samples:,}, left out {skipped.total():,} ({reasons(skipped)})")
    return ShardSource(folder, seed)


def _of_version(cache: Path, seed: int, version: str) -> ShardSource | None:
    """The whole shards of a cache that have a version, if any do."""
    for file in sorted(cache.glob(f"*/{MANIFEST}")):
        with suppress(UserError):  # of shards that are not whole
            source = ShardSource(file.parent, seed)
            if source.version == version:
                return source
    return None


def resolution_of(names: Sequence[str], backbone: "LatentBackbone", reading: Reading = USUAL) -> int:
    """Side in pixels of the squares that a run on these data trains on: that of prepared shards, --resolution, or the
    teacher's own. Raises `UserError` where the sources differ, and for what is asked of prepared or
    embedded ones that they do not read."""
    own = reading.resolution or backbone.resolution
    sides = dict.fromkeys(names, own)
    for name in names:
        _check_embedded(name, reading)
        if _is_prepared(name):
            sides[name] = Manifest.load(Path(name)).settings.get("resolution", backbone.resolution)
    if len(set(sides.values())) > 1:
        listed = ", ".join(f"{name} of {side}" for name, side in sides.items())
        raise UserError(f"got data of several sizes, {listed}; prepare them with one --resolution")
    return sides[names[0]]


def check_data(names: Sequence[str], backbone: "LatentBackbone", reading: Reading = USUAL) -> None:
    """Raise `UserError` where there is nothing that `open_data` could open for this teacher; writes nothing."""
    for name in names:
        if not _is_prepared(name):
            full_settings(name, *open_with(name, Settings(**_given(reading))), backbone, {})
            continue
        check_made_for(Manifest.load(Path(name)), backbone, name)
    check_reading(names, reading)


def check_reading(names: Sequence[str], reading: Reading) -> None:
    """Raise `UserError` for what is asked of data that are prepared."""
    given = ", ".join(f"--{name.replace('_', '-')}" for name in _given(reading))
    for name in filter(_is_prepared, names if given else ()):
        raise UserError(f"got {given} for {name}, which is prepared; give it to `scott prepare`")


def _is_prepared(name: str) -> bool:
    """Raises `UserError` for shards that are not finished."""
    if (Path(name) / MANIFEST).is_file():
        return True
    if (Path(name) / SETTINGS).is_file():
        raise UserError(f"{name} holds unfinished shards; run the `scott prepare` that began them to its end")
    return False


def _given(reading: Reading) -> dict[str, Any]:
    """What is not left at its default."""
    return {field.name: value for field in fields(Reading) if (value := getattr(reading, field.name)) != field.default}


def check_made_for(manifest: Manifest, backbone: "LatentBackbone", name: str) -> None:
    """Raise `UserError` when shards were made with another VAE or text encoder than this teacher's."""
    made_for: Any = manifest.settings.get("teacher")
    here = _made_for(backbone)
    try:
        found = [(part, made_for.get(part), here.get(part)) for part in here | made_for if part != "name"]
        different = [(part, label(before), label(now)) for part, before, now in found if differing(before, now)]
        teacher = made_for["name"]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{name} does not say whose VAE and text encoders made it; prepare the data again") from None
    for part, before, now in different:
        raise UserError(
            f"{name} was made with the {part} {before} of {teacher}, and {here['name']} has {now}; prepare the data "
            "again with this teacher"
        )


def summary(outcome: Outcome, out: Path) -> Table:
    """What was kept and what was left out, and the rate of this call."""
    table = Table("", Column(justify="right"), title=escape(str(out)), title_justify="left", show_header=False)
    if outcome.manifest is None:
        table.add_row("records of this process", f"{outcome.records:,}")
        return table
    manifest = outcome.manifest
    table.add_row("[bold]kept", f"[bold]{manifest.samples:,}")
    for reason, count in Counter(manifest.skipped).most_common():
        table.add_row(f"skipped, {reason}", f"{count:,}")
    if repeated := sorted({shard.repeats for shard in manifest.shards} - {1}):
        table.add_row("visits an epoch", ", ".join(map(str, repeated)))
    table.add_section()
    table.add_row("shards", f"{len(manifest.shards):,}")
    table.add_row("MB", f"{manifest.bytes / 1e6:,.1f}")
    if outcome.records:
        table.add_row("pictures/s", f"{outcome.records / outcome.seconds:,.1f}")
    return table

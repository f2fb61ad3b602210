"""`scott evaluate`: the figures of whatever draws, a student, a pipeline or pictures, and of a teacher beside it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from scott.commands.distill import Report, best_device
from scott.commands.diversity import Diversity
from scott.commands.measure import (
    Instruments,
    MiniReference,
    SourceReference,
    Tick,
    check_samples,
    mini_reference,
    reasons,
    source_reference,
)
from scott.commands.measured import Measured
from scott.commands.prepare import processes, use_own_device
from scott.commands.sample import is_run
from scott.commands.targets import StoredPictures, Target, identity, target_of
from scott.data.manifest import MANIFEST
from scott.data.records import Columns, Source
from scott.data.sources import open_source
from scott.errors import UserError
from scott.evaluation import Reference, Results, evaluate
from scott.evaluation.measures import FEATURES, METRICS, SHOWN, check_metrics, instruments_of
from scott.evaluation.networks import CLIPS, NETWORKS, load
from scott.evaluation.pictures import write_captions
from scott.evaluation.protocols import PROTOCOLS, Mjhq, names_in, write_list
from scott.export.card import write_cards
from scott.mini import embedded, reading
from scott.mini.scenes import RESOLUTION
from scott.training.config import DistillConfig

SPREAD_CAPTIONS = 50


def evaluate_target(
    name: str, steps: Sequence[int], measured: Measured, *, out: Path | None, report: Report
) -> tuple[Results, Path]:
    """Rows of the target, of a teacher if asked for, and of the real-against-real floor where it is known.

    Returns them and the file they were written to. Of several processes each draws its share, and the first measures;
    what the others return is empty. Raises `UserError` as `target_of` and `source_reference` do, and for data, features
    and metrics that do not go together, before anything is drawn.
    """
    protocol = measured.protocol or ("mini" if measured.data in embedded.SOURCES else "custom")
    check(measured, steps, protocol)
    file = out or (Path(name) if is_run(Path(name)) else Path()) / _file_name(measured.data, protocol)
    Results.check_path(file)
    use_own_device()
    target = target_of(name, steps, measured)

    def tick(row: str, done: int, total: int) -> None:
        report(f"evaluate {row}", done, total, {})

    if target.prompts is not None and measured.diversity:
        raise UserError(f"got --diversity for {name}, whose pictures are there already; name what draws them")
    first = processes()[0] == 0
    instruments = instruments_for(measured, protocol) if first else {}
    reference = reference_of(measured, protocol, target, instruments, tick)
    rows = [reference.floor()] if reference.floors else []
    diversity = diversity_of(measured, reference) if measured.diversity and first else None
    for row, sampler in target.samplers.items():
        found = evaluate(
            sampler,
            reference,
            name=row,
            batch_size=measured.batch_size,
            seeds=measured.seeds,
            images=measured.images,
            made=identity(sampler, measured),
            process=processes(),
            progress=partial(tick, row),
        )
        if not first:
            continue
        if diversity is not None:
            found = replace(found, metrics=found.metrics | diversity.of(sampler))
        if measured.images is not None:
            for seed in measured.seeds:
                write_captions(measured.images / row / f"seed-{seed}", reference.prompts)
        rows.append(found)
    if not first:
        return Results(), file
    results = Results(rows, conditions(name, measured, protocol, reference))
    results.save(file)
    if isinstance(reference, SourceReference):
        write_list(file.with_suffix(".prompts.csv"), reference.names, reference.prompts)
    if is_run(Path(name)):
        write_cards(Path(name), DistillConfig.load(Path(name) / "config.json"))
    return results, file


def check(measured: Measured, steps: Sequence[int], protocol: str) -> None:
    """Raise `UserError` for what can be known to be wrong before anything is loaded."""
    if not steps or min((*steps, *measured.teacher_steps)) < 1:
        given = " ".join(map(str, (*steps, *measured.teacher_steps)))
        raise UserError(f"got steps {given}; expected 1 or more of each")
    check_samples(samples_of(measured, protocol))
    check_metrics(measured.metrics)
    if measured.teacher is not None and not measured.teacher_steps:
        raise UserError(f"got --teacher {measured.teacher} without --teacher-steps; say in how many steps it draws")
    if processes()[1] > 1 and measured.images is None:
        raise UserError(f"got {processes()[1]} processes without --images, through which they share the work")
    if measured.batch_size < 1 or measured.diversity == 1:
        raise UserError("got a batch of none, or --diversity 1; expected 1 or more, and 2 or more pictures a caption")
    mini = measured.data in embedded.SOURCES
    if (protocol == "mini") != mini:
        raise UserError(f"got the protocol {protocol} with --data {measured.data}; {_wanted(protocol)}")
    if not mini and (shown := [name for name in measured.metrics if name in SHOWN]):
        raise UserError(f"got the metric {shown[0]}, which is read off pictures of mini alone; leave it out")
    if unknown := set(measured.models) - {*NETWORKS, *CLIPS}:
        raise UserError(f"got --models {' '.join(sorted(unknown))}; expected {', '.join([*NETWORKS, *CLIPS])}")
    if (Path(measured.data) / MANIFEST).is_file():
        raise UserError(f"{measured.data} holds encoded pictures; name the pictures that they were made of")


def _wanted(protocol: str) -> str:
    return "give --data mini" if protocol == "mini" else f"give {PROTOCOLS[protocol].data}"


def samples_of(measured: Measured, protocol: str) -> int:
    return PROTOCOLS.get(protocol, PROTOCOLS["custom"]).samples if measured.samples is None else measured.samples


def instruments_for(measured: Measured, protocol: str) -> Instruments:
    """The networks that the metrics read; one that two names stand for is loaded once."""
    features = measured.features or ("mini" if protocol == "mini" else "inception")
    is_clip = features not in NETWORKS
    clip = measured.models.get("clip") or (features if is_clip else "mini" if protocol == "mini" else None)
    made: dict[tuple[str, str | None], Any] = {}
    found = {}
    for name in instruments_of(measured.metrics) | {FEATURES}:
        kind, path = name, measured.models.get(name)
        if name == FEATURES:
            kind, path = ("clip", features) if is_clip else (features, measured.models.get(features))
        elif name == "clip":
            path = clip
        elif name == "inception-clean":
            path = path or measured.models.get("inception")
        path = str(embedded.clip_folder(path)) if path else None
        if (kind, path) not in made:
            made[kind, path] = load(kind, path, best_device())
        found[name] = made[kind, path]
    return found


def reference_of(measured: Measured, protocol: str, target: Target, instruments: Instruments, tick: Tick) -> Reference:
    samples = samples_of(measured, protocol)
    if target.prompts is not None:
        samples = min(samples, len(target.prompts))
    if protocol == "mini":
        if target.size not in (None, RESOLUTION):
            raise UserError(
                f"the target draws {target.size} px pictures and the embedded data has {RESOLUTION}; "
                "name pictures to measure it on with --data"
            )
        reference: Reference = (made := mini_reference(samples, measured.split, instruments))
        if wanted := [name for name in measured.metrics if name in SHOWN]:
            asked = made.scenes

            def read(images: Tensor, start: int) -> dict[str, Tensor]:
                return reading.shown(images, asked[start : start + len(images)], wanted)

            reference.reading = read
    else:
        size = measured.size or PROTOCOLS[protocol].size or target.size
        if size is None:
            raise UserError(
                "got pictures of no known size; say with --size at how many pixels a side they are measured"
            )
        names = names_in(measured.names) if measured.names else None
        floor = source_of(measured.floor_data, measured, protocol) if measured.floor_data else None
        reference = source_reference(
            source_of(measured.data, measured, protocol),
            samples,
            size,
            instruments,
            tick,
            protocol=protocol,
            names=names,
            floor=floor,
            cache=str({name: one.description for name, one in instruments.items()}) if instruments else None,
        )
        reference.size = size
    reference.metrics = [name for name in measured.metrics if name in METRICS]
    reference.replicates = measured.bootstrap
    if target.prompts is not None:
        reference.prompts = target.prompts[: len(reference.prompts)]
        for sampler in target.samplers.values():
            assert isinstance(sampler, StoredPictures)
            sampler.size = reference.size or RESOLUTION
    return reference


def diversity_of(measured: Measured, reference: Reference) -> Diversity:
    prompts = reference.prompts[:SPREAD_CAPTIONS]
    scenes = reference.scenes[: len(prompts)] if isinstance(reference, MiniReference) else []
    features = reference.instruments[FEATURES]
    return Diversity(prompts, features, measured.diversity, measured.seeds[0], measured.bootstrap, scenes)


def source_of(name: str, measured: Measured, protocol: str) -> Source:
    if protocol.startswith("mjhq"):
        return Mjhq(name)
    return open_source(name, Columns(measured.image_column, measured.caption_column), measured.data_split)


def conditions(name: str, measured: Measured, protocol: str, reference: Reference) -> dict[str, Any]:
    """What figures were measured under, for their file."""
    meta: dict[str, Any] = {"target": name, "protocol": protocol, "samples": len(reference.prompts)}
    meta["seeds"] = list(measured.seeds)
    if isinstance(reference, SourceReference):
        meta |= {"data": measured.data, "size": reference.size}
        if reference.skipped:
            meta["left out"] = reasons(reference.skipped)
    else:
        meta["split"] = measured.split
    return meta | {"networks": {key: one.description for key, one in sorted(reference.instruments.items())}}


def _file_name(data: str, protocol: str) -> str:
    """`evaluation.json`, or of other data one with their name, so that one table does not replace another."""
    if protocol not in ("mini", "custom"):
        return f"evaluation-{protocol}.json"
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(data.split("::")[0]).stem).strip("-")
    return "evaluation.json" if data in embedded.SOURCES else f"evaluation-{name}.json"

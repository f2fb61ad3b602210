"""`scott evaluate`: the figures of whatever draws, a student, a pipeline or pictures, and of a teacher beside it."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from scott import __version__
from scott.choices import check_gamma
from scott.data.preparation import Report
from scott.data.sources import check_there
from scott.device import best_device, processes, use_own_device
from scott.diffusion.tensors import DTYPES
from scott.errors import UserError
from scott.evaluation import Instruments, Reference, Results, table
from scott.evaluation.evaluating import evaluate_all, evaluate_stored
from scott.evaluation.measures import METRICS
from scott.evaluation.networks import instruments
from scott.evaluation.protocols import PROTOCOLS, Protocol, write_list
from scott.evaluation.references import Tick
from scott.evaluation.results import FLOOR, network_of
from scott.export.card import FOLDERS, write_cards
from scott.export.info import StudentInfo
from scott.measured import Measured
from scott.mini import embedded
from scott.mini.protocol import MINI
from scott.progress import console
from scott.students import is_run
from scott.targets import Target, made_by, target_of
from scott.training.config import DistillConfig

MOST_STEPS = 1000
"""Of times as networks of noise are trained at; of flows, far more than change a picture."""
KNOWN: Mapping[str, Protocol] = PROTOCOLS | {MINI.name: MINI}


def evaluate_target(
    name: str,
    steps: Sequence[int],
    measured: Measured,
    *,
    out: Path | None,
    report: Report,
    warn: Callable[[str], None] = lambda message: None,
) -> tuple[Results, Path]:
    """Rows of the target, of a teacher if asked for, and of the real-against-real floor where it is known.

    Returns them and the file they were written to. Of several processes each draws its share, and the first measures;
    what the others return is empty. Raises `UserError` as `target_of` and `Protocol.reference` do, and for data,
    features and metrics that do not go together, before anything is drawn.
    """
    protocol = protocol_of(measured)
    protocol.check(measured)
    _check_drawn(steps, measured)
    for data in (measured.data if protocol is KNOWN["custom"] else None, measured.floor_data):
        if data is not None:  # before a student and its teacher are read
            check_there(data)
    run = Path(name) if is_run(Path(name)) else None
    file = out or (run or Path()) / _file_name(measured.data, protocol)
    Results.check_path(file)
    use_own_device()
    target = target_of(name, steps, measured, DTYPES[measured.precision], warn)

    def tick(row: str, done: int, total: int) -> None:
        report(f"evaluate {row}", done, total, {})

    reference = reference_of(target, measured, protocol, tick)
    meta = conditions(name, target, reference, measured, protocol)
    if run is not None and (info := StudentInfo.read(run / FOLDERS["diffusers"])):
        meta["updates"] = info.updates
    if out is None and file.exists() and processes()[0] == 0:
        check_replaced(file, meta, in_run=run is not None)
        check_kept(file, target)
    made = partial(made_by, measured=measured)
    results, stored = Results([], meta), target.stored
    try:
        for row in evaluate_all(target.samplers, reference, measured, made=made, process=processes(), tick=tick):
            results.rows.append(replace(row, method=target.methods.get(row.name, "")))
        if processes()[0] > 0:
            return Results(), file
        if stored:
            progress = partial(tick, stored.name)
            results.rows.append(evaluate_stored(stored, reference, batch_size=measured.batch_size, progress=progress))
        results.save(file)
    except BaseException:  # of one sampler, or of Ctrl-C: what took hours is said at least
        if any(row.name != FLOOR for row in results.rows):
            console.print(table(results))
        raise
    if names := stored.names if stored else reference.names:
        write_list(file.with_name(file.name.removesuffix(".json") + ".prompts.csv"), names, reference.prompts)
    if run is not None and file.resolve().parent == run.resolve():  # where the cards find it
        write_cards(run, DistillConfig.load(run / "config.json"))
    return results, file


def conditions(
    name: str, target: Target, reference: Reference, measured: Measured, protocol: Protocol
) -> dict[str, Any]:
    """What figures depend on beside what each row says of itself; what does not apply, or is not known of pictures that
    are there already, is left out."""
    of_source = {
        "data version": reference.version[:12],
        "data split": measured.data_split,
        "floor data": measured.floor_data or "what follows",
        "image column": measured.image_column,
        "caption columns": list(measured.caption_column),
        "names": measured.names and str(measured.names),
    }
    found: dict[str, Any] = {
        "target": name,
        "protocol": protocol.name,
        "samples": len(reference.prompts),
        "seeds": list(measured.seeds),
        "metrics": list(measured.metrics),
        "bootstrap": measured.bootstrap,
        "diversity": measured.diversity,
        "data": measured.data,
        **({} if protocol.embedded else of_source),
        **protocol.conditions(measured, reference),
        "prompts": _digest(reference.prompts),
        "real pictures": reference.names and _digest(reference.names),
        "precision": measured.precision,
        "batch size": measured.batch_size,
        "scheduler": target.scheduler,
        "lora": measured.lora,
        "teacher": measured.teacher,
        "models": measured.models,
        "networks": {key: one.description for key, one in sorted(reference.instruments.items())},
        "scott": __version__,
    }
    unknown = ("seeds", "precision", "batch size") if target.stored else ()
    return {key: value for key, value in found.items() if value not in (None, "", [], {}) and key not in unknown}


def check_replaced(file: Path, meta: Mapping[str, Any], *, in_run: bool) -> None:
    """Raise `UserError` where the results of a file, which would be replaced, were measured under other conditions.

    A run's own may name it otherwise, and be of fewer updates. What a file does not say is unknown, if it does not say
    which scott wrote it.
    """
    old, new = ({**one, **(one.get("networks") or {}), "networks": None} for one in (Results.load(file).meta, meta))
    keys = dict.fromkeys((*old, *new) if "scott" in old else old)
    unsaid = {"scott", "target", "updates"} if in_run else {"scott"}
    differing = (key for key in keys if network_of(old.get(key)) != network_of(new.get(key)))
    if other := next((key for key in differing if key not in unsaid), None):
        values = [" ".join(map(str, one)) if isinstance(one, list) else one for one in (old.get(other), new.get(other))]
        raise UserError(
            f"{file} has figures of {other} {values[0]}, and these would be of {values[1]}; "
            "write them elsewhere with --out, or move that file"
        )


def check_kept(file: Path, target: Target) -> None:
    """Raise `UserError` where the results of a file have rows that would be lost, or of another ω."""
    drawn = {name: sampler.guidance for name, sampler in target.samplers.items()}
    new = drawn | ({target.stored.name: None} if target.stored else {}) | {FLOOR: None}
    for row in Results.load(file).rows:
        if row.name not in new:
            raise UserError(f"{file} has figures of {row.name}, which would be lost; write elsewhere with --out")
        if row.name in drawn and row.guidance not in (None, drawn[row.name]):
            raise UserError(
                f"{file} has figures of {row.name} at guidance {row.guidance}, and these would be at "
                f"{drawn[row.name]}; write elsewhere with --out"
            )


def protocol_of(measured: Measured) -> Protocol:
    """The one that is named, or that the data have. Raises `UserError` where the two do not go together."""
    own = next((one for one in KNOWN.values() if measured.data in one.embedded), None)
    protocol = KNOWN[measured.protocol] if measured.protocol else own or KNOWN["custom"]
    if own is not protocol and (own or protocol.embedded):
        raise UserError(f"got the protocol {protocol.name} with --data {measured.data}; give {protocol.data}")
    return protocol


def _check_drawn(steps: Sequence[int], measured: Measured) -> None:
    asked = (*steps, *measured.teacher_steps)
    if not steps or not all(1 <= count <= MOST_STEPS for count in asked):
        raise UserError(f"got steps {' '.join(map(str, asked))}; expected 1 to {MOST_STEPS:,} of each")
    if measured.guidance is not None and not math.isfinite(measured.guidance):
        raise UserError(f"got guidance {measured.guidance}; expected a finite number")
    check_gamma(measured.gamma)
    if measured.teacher_solvers != Measured().teacher_solvers and not measured.teacher_steps:
        given = " ".join(measured.teacher_solvers)
        raise UserError(f"got --teacher-solvers {given} without --teacher-steps; say in how many steps they draw")
    if measured.teacher is not None and not measured.teacher_steps:
        raise UserError(f"got --teacher {measured.teacher} without --teacher-steps; say in how many steps it draws")
    if processes()[1] > 1 and measured.images is None:
        raise UserError(f"got {processes()[1]} processes without --images, through which they share the work")


def reference_of(target: Target, measured: Measured, protocol: Protocol, tick: Tick) -> Reference:
    """What the target is measured on: the protocol's, or of stored pictures their own captions."""
    features, samples = measured.features or protocol.features, protocol.samples_of(measured)
    read: Instruments = {}
    if processes()[0] == 0:
        clip = protocol.clip, measured.models, best_device(), embedded.clip_folder
        read = instruments(measured.metrics, features, *clip, diversity=measured.diversity > 0)
    if stored := target.stored:
        every = measured.samples is None and measured.names is None and not protocol.whole
        samples = len(stored.prompts) if every else min(samples, len(stored.prompts))
    reference = protocol.reference(measured, samples, target.size, read, tick)
    if stored:
        own, stored.size = stored.prompts[: len(reference.prompts)], reference.size
        protocol.check_captions(own, reference.prompts)
        reference.prompts = own
    reference.metrics = [name for name in measured.metrics if name in METRICS]
    reference.replicates = measured.bootstrap
    return reference


def _digest(texts: Sequence[str]) -> str:
    return sha256(json.dumps(texts).encode()).hexdigest()[:12]


def _file_name(data: str, protocol: Protocol) -> str:
    """`evaluation.json`, or of other data one with their name, so that one table does not replace another."""
    if protocol.embedded:
        return "evaluation.json"
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(data.split("::")[0]).stem).strip("-")
    return f"evaluation-{name if protocol is KNOWN['custom'] else protocol.name}.json"

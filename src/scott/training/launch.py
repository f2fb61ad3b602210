"""Around the steps: the processes that were launched, the run's folder, its tracker, and the signal to stop."""

import importlib.util
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object

from scott.data.locks import is_passing, locked
from scott.device import best_device
from scott.diffusion import NoiseSchedule
from scott.errors import UserError, first_line
from scott.files import write_atomically
from scott.training.checkpoint import checkpoint_state, checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.metrics import read_metrics
from scott.training.parallel import rows_of_pass

STUDENT = ("train", "lora_rank", "alpha", "lora_variant")
"""What a run has to have alike with one whose student it starts as."""
BACK = "put them back, or give the command another --out"
CONTINUED = (*STUDENT, "critic", "critic_rank", "adversarial_weight", "adversarial_share", "optimizer", "precision")
"""And with one that it continues from."""


def not_alike(one: DistillConfig, other: DistillConfig, names: Sequence[str]) -> list[str]:
    """`name MINE and not THEIRS` for what two configs have not alike, of some names."""
    values = ((name, getattr(one, name), getattr(other, name)) for name in names)
    return [f"{name} {mine} and not {theirs}" for name, mine, theirs in values if mine != theirs]


def start_processes(config: DistillConfig) -> Accelerator:
    """This process among those that `accelerate launch` or `torchrun` started, or by itself.

    Raises `UserError` when the tracker is not installed, the batch does not divide among the processes, one process is
    to split something, the launch asks for an engine that takes one loss a network, or its environment is none.
    """
    for engine in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise UserError(f"got a launch with {engine}; launch without, and split with --shard full (FSDP2)")
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise UserError(f"got tracker {config.tracker}, which is not installed; pip install {config.tracker}")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", config.precision):
        raise UserError(
            f"got a launch with mixed precision {asked} and --precision {config.precision}; give --precision {asked}, "
            "or launch with --mixed_precision no"
        )
    try:
        accelerator = Accelerator(
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=config.out,
            cpu=not torch.cuda.is_available() and best_device().type == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],  # others wait while data are prepared
        )
    except ValueError as error:  # of RANK, WORLD_SIZE and the like
        raise UserError(
            f"the processes cannot be joined ({first_line(error)}); start them by torchrun or accelerate launch"
        ) from None
    rows_of_pass(config, accelerator.process_index, accelerator.num_processes)
    if config.shard != "none" and accelerator.num_processes == 1:
        raise UserError(f"got --shard {config.shard} in one process; launch several with torchrun, or leave it out")
    if config.shard != "none" and config.optimizer == "adamw8bit":
        raise UserError("got --shard full with adamw8bit, which takes whole parameters only; use adamw")
    return accelerator


def open_run(config: DistillConfig, teacher: str, schedule: NoiseSchedule, *, write: bool = True) -> int:
    """Prepare `config.out` and return the step to start from: 0, or that of its newest checkpoint.

    `teacher` is the version of its network: a run goes on with the same one, whatever the path or name it has, and with
    the same schedule, by which the network's output is read.
    Raises `UserError` when the folder is in the way, or holds a run of another config, teacher or schedule.
    """
    out, file = config.out, config.out / "config.json"
    latest = latest_checkpoint(out / "checkpoints")
    if file.is_file():
        before = DistillConfig.load(file)
        differences = before.differences(config)
        if differences and (latest or read_metrics(out / "metrics.jsonl")):  # else it was refused before its first step
            more = f"; to go on from it under other settings: --continue-from {out} --out ANOTHER"
            alike = before.teacher == config.teacher and not not_alike(before, config, CONTINUED)
            way_on = more if latest and alike and not config.init else ""
            raise UserError(f"{out} holds another run ({'; '.join(differences)}); choose another --out{way_on}")
    elif out.exists() and (not out.is_dir() or not all(is_passing(path.name) for path in out.iterdir())):
        raise UserError(f"{out} exists and is not a run of scott; choose another --out, nothing was changed")
    if latest is None and file.is_file():
        made = max((record["step"] for record in read_metrics(out / "metrics.jsonl")), default=0)
        # at the first one's own step it may have been stopped as it was saved
        if made > DistillConfig.load(file).checkpoint_every or (out / "student").is_dir():
            raise UserError(f"{out} has made {made:.0f} steps, and its checkpoints are gone; {BACK}")
    start = checkpoint_step(latest) if latest else 0
    state = checkpoint_state(latest) if latest else {}
    if state.get("teacher", teacher) != teacher:
        raise UserError(f"{out} holds another run (its teacher is not {config.teacher}); choose another --out")
    if state.get("schedule", repr(schedule)) != repr(schedule):
        raise UserError(
            f"{out} holds another run (its teacher's schedule or prediction is not {config.teacher}'s, which predicts "
            f"{schedule.prediction_type}); choose another --out"
        )
    if start > config.max_steps:
        raise UserError(f"{out} has made {start} steps, more than max_steps {config.max_steps}; choose another --out")
    if write:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(file, config.to_json())  # first: what is killed here is a run, which the same command takes up
        for name in ("samples", "checkpoints"):
            (out / name).mkdir(exist_ok=True)
    return start


def check_same_start(out: Path, start: int) -> None:
    """Raise `UserError` in every process where one found another newest step: its student would not be the others'."""
    found = gather_object([start])
    if others := {*found} - {found[0]}:
        raise UserError(
            f"got an --out, {out}, whose newest step is {found[0]} to the first of {len(found)} processes and "
            f"{others.pop()} to another; give one folder that all machines share"
        )


@contextmanager
def opened_run(
    config: DistillConfig, teacher: str, schedule: NoiseSchedule, accelerator: Accelerator
) -> Iterator[None]:
    """`open_run` of all processes of a command, whose own the folder is until the block ends.

    Nothing is written before it is: of several runs begun at once in one folder, one alone goes on. Of a begun run that
    is refused before it has gone on, by its data say, the config stays what it was.
    Raises `UserError` as `open_run` does, and where another command writes the folder.
    """
    with ExitStack() as held:
        with accelerator.main_process_first():
            open_run(config, teacher, schedule, write=False)
            if accelerator.is_main_process:
                try:
                    config.out.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(f"{config.out} cannot be made: {first_line(error)}; give another --out") from None
                held.enter_context(locked(config.out))
                held.enter_context(_config_kept(config.out))
                open_run(config, teacher, schedule)  # another may have come between
        yield


@contextmanager
def _config_kept(out: Path) -> Iterator[None]:
    """Write back the config that a begun run had, where the block is refused without a checkpoint more."""
    file, begun = out / "config.json", latest_checkpoint(out / "checkpoints")
    before = file.read_text() if begun and file.is_file() else None
    try:
        yield
    except UserError:
        if before is not None and latest_checkpoint(out / "checkpoints") == begun:
            write_atomically(file, before)
        raise


def init_tracker(accelerator: Accelerator, config: DistillConfig) -> None:
    """Open the run of `config.tracker`; a folder's run is the same one when it is resumed, wherever the folder is."""
    name = config.tracker
    if name == "tensorboard":
        accelerator.init_trackers("tensorboard")
    elif name != "none":
        run = _tracked_as(config.out) if accelerator.is_main_process else ""
        options: dict[str, Any] = {"name": config.out.name, "resume": "allow"}
        options |= {"id": run} if name == "wandb" else {"name": f"{config.out.name}-{run}"}
        accelerator.init_trackers("scott", config=json.loads(config.to_json()), init_kwargs={name: options})


def _tracked_as(out: Path) -> str:
    """What a run is called by a tracker, which takes runs of one name for one."""
    file = out / "tracked_as.txt"
    if not file.is_file():
        write_atomically(file, uuid4().hex[:8])
    return file.read_text(encoding="utf-8")


@contextmanager
def sigterm_kept() -> Iterator[list[int]]:
    """Collects SIGTERM instead of dying of it, so that the step it interrupts can be finished and saved."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)

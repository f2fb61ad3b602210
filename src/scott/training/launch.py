"""Before the loop: the processes that were launched, what the launch asks for, and the run's folder."""

import importlib.util
import os
from dataclasses import replace
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from scott.errors import UserError
from scott.files import write_atomically
from scott.training.checkpoint import checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.spread import rows_of_pass


def start_processes(config: DistillConfig) -> Accelerator:
    """This process among those that `accelerate launch` or `torchrun` started, or by itself.

    Raises `UserError` when the tracker is not installed, the batch does not divide among the processes, or one process
    is to split something.
    """
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise UserError(f"got tracker {config.tracker}, which is not installed; pip install {config.tracker}")
    accelerator = Accelerator(
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=config.out,
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],  # others wait while data are prepared
    )
    rows_of_pass(config, accelerator.process_index, accelerator.num_processes)
    if config.shard != "none" and accelerator.num_processes == 1:
        raise UserError(f"got --shard {config.shard} in one process; launch several with torchrun, or leave it out")
    return accelerator


def as_launched(config: DistillConfig) -> DistillConfig:
    """The config with what the launch asks to be split: accelerate's FSDP2 is `--shard network`, its ZeRO `optimizers`.

    Both engines take one loss a network, and here two models are trained through one graph. So they are told apart here
    and not started.

    Raises:
        UserError: the first FSDP, or a stage of ZeRO that splits more.
    """
    network, optimizers = config.shards_network, config.shards_optimizers
    if _asked("ACCELERATE_USE_FSDP"):
        if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
            raise UserError(f"got a launch with FSDP {version}; set fsdp_version: 2, as configs/accelerate/fsdp2.yaml")
        network = True
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        if (stage := os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")) not in ("1", "2"):
            raise UserError(f"got a launch with ZeRO {stage}; use stage 2, and --shard both to split the network too")
        optimizers = True
    if network:
        return replace(config, shard="both" if optimizers else "network")
    return replace(config, shard="optimizers" if optimizers else "none")


def _asked(variable: str) -> bool:
    """Whether a launcher has set it; it is taken away, so that accelerate does not see it."""
    return os.environ.pop(variable, "false").lower() == "true"


def open_run(config: DistillConfig, *, write: bool = True) -> int:
    """Prepare `config.out` and return the step to start from: 0, or that of its newest checkpoint.

    Raises `UserError` when the folder is in the way, or holds a run of another config.
    """
    out, file = config.out, config.out / "config.json"
    if file.is_file():
        if differences := DistillConfig.load(file).differences(config):
            raise UserError(f"{out} holds another run ({'; '.join(differences)}); choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a run of scott; choose another --out, nothing was changed")
    latest = latest_checkpoint(out / "checkpoints")
    start = checkpoint_step(latest) if latest else 0
    if start > config.max_steps:
        raise UserError(f"{out} has made {start} steps, more than max_steps {config.max_steps}; choose another --out")
    if write:
        (out / "samples").mkdir(parents=True, exist_ok=True)
        write_atomically(file, config.to_json())
    return start

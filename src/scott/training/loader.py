"""A process's rows of each step's batch and draws, made ahead by workers and checked against the teacher."""

import signal
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from scott.data.batch import Batch
from scott.errors import UserError
from scott.teachers import Cond, LatentBackbone
from scott.training.config import DistillConfig
from scott.training.draws import Draws


class Data(Protocol):
    """What a run trains on: batch n is a pure function of the data and n, so a run resumes anywhere."""

    @property
    def version(self) -> str:
        """What tells them from others; a run that goes on is refused other data."""

    @property
    def varied(self) -> bool:
        """Whether batches differ in the shape of their latents."""

    def batch(self, step: int, size: int, part: slice = ...) -> Batch:
        """Of batch `step`, which is of `size` samples, the rows `part`, all by default; on the CPU, where workers read
        ahead."""


def batches(
    data: Data,
    backbone: LatentBackbone,
    uncond: Cond,
    config: DistillConfig,
    rows: slice,
    steps: range,
    numbers: Callable[[int], int],
    draws: Callable[[int, torch.Size], Draws],
) -> Iterator[tuple[Batch, Draws]]:
    """Rows of the batch of each step, on the backbone's device, and of its draws, on the CPU.

    Args:
        numbers: step → the number of its batch.
        draws: (step, shape of the whole batch's latents) → the draws of all of it: of many samples a part of a
            second, and so made beside the step before.

    Raises:
        UserError: the first batch does not fit the teacher.
    """
    loader: DataLoader[tuple[Batch, Draws] | UserError] = DataLoader(
        _Steps(data, config.batch_size, rows, numbers, draws),
        batch_size=None,
        sampler=steps,
        num_workers=config.loader_workers,
        worker_init_fn=_ignore_sigterm,
    )
    for index, made in enumerate(loader):
        if isinstance(made, UserError):
            raise made
        batch, drawn = made
        if index == 0:
            check_batch(batch, backbone, uncond, varied=data.varied)
        yield batch.to(backbone.device), drawn


def check_batch(batch: Batch, backbone: LatentBackbone, uncond: Cond, *, varied: bool) -> None:
    """Raise `UserError` unless latents and conditioning have the shapes that the teacher takes; of data of several
    shapes, latents have its channels."""
    expected = {"latents": backbone.latent_shape} | {name: tuple(value.shape[1:]) for name, value in uncond.items()}
    got = {"latents": tuple(batch.mean.shape[1:])} | {n: tuple(value.shape[1:]) for n, value in batch.cond.items()}
    if varied:
        got["latents"], expected["latents"] = got["latents"][:1], expected["latents"][:1]
    if got != expected:
        raise UserError(f"the data have {got}, the teacher takes {expected}; prepare them for this teacher")


class _Steps(Dataset["tuple[Batch, Draws] | UserError"]):
    """Item n is this process's rows of step n's batch and draws, or why there are none: raised in a process that reads
    ahead, an error would come with its traceback as its message."""

    def __init__(
        self,
        data: Data,
        size: int,
        rows: slice,
        numbers: Callable[[int], int],
        draws: Callable[[int, torch.Size], Draws],
    ) -> None:
        self.data, self.size, self.rows, self.numbers, self.draws = data, size, rows, numbers, draws

    def __getitem__(self, step: int) -> tuple[Batch, Draws] | UserError:
        try:
            batch = self.data.batch(self.numbers(step), self.size, self.rows)
        except UserError as error:
            return error
        drawn = self.draws(step, torch.Size((self.size, *batch.mean.shape[1:])))
        return batch, drawn[self.rows].map(torch.clone)  # a part of a tensor is sent with all that it is a part of


def _ignore_sigterm(worker: int) -> None:
    """A scheduler sends it to all processes; who reads ahead is needed until the step is saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

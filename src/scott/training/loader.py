"""A process's rows of each step's batch, read ahead by workers and checked against the teacher."""

import signal
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Dataset

from scott.data.batch import Batch
from scott.data.mixture import Mixture
from scott.data.shard_source import ShardSource
from scott.errors import UserError
from scott.teachers import Cond, LatentBackbone
from scott.training.config import DistillConfig

Data = ShardSource | Mixture
"""Batch n is a pure function of the source and n, so a run resumes anywhere."""


def batches(
    data: Data,
    backbone: LatentBackbone,
    uncond: Cond,
    config: DistillConfig,
    rows: slice,
    numbers: Sequence[int],
) -> Iterator[Batch]:
    """Rows of the batches of these numbers. Raises `UserError` where the first does not fit the teacher."""
    loader: DataLoader[Batch | UserError] = DataLoader(
        _Steps(data, config.batch_size, rows),
        batch_size=None,
        sampler=numbers,
        num_workers=config.loader_workers,
        worker_init_fn=_ignore_sigterm,
    )
    for index, batch in enumerate(loader):
        if isinstance(batch, UserError):
            raise batch
        if index == 0:
            check_batch(batch, backbone, uncond, varied=data.varied)
        yield batch.to(backbone.device)


def check_batch(batch: Batch, backbone: LatentBackbone, uncond: Cond, *, varied: bool) -> None:
    """Raise `UserError` unless latents and conditioning have the shapes that the teacher takes; of data of several
    shapes, latents have its channels."""
    expected = {"latents": backbone.latent_shape} | {name: tuple(value.shape[1:]) for name, value in uncond.items()}
    got = {"latents": tuple(batch.mean.shape[1:])} | {n: tuple(value.shape[1:]) for n, value in batch.cond.items()}
    if varied:
        got["latents"], expected["latents"] = got["latents"][:1], expected["latents"][:1]
    if got != expected:
        raise UserError(f"the data have {got}, the teacher takes {expected}; prepare them for this teacher")


class _Steps(Dataset["Batch | UserError"]):
    """Item n is this process's rows of batch n, or why there are none: raised in a process that reads
    ahead, an error would come with its traceback as its message."""

    def __init__(self, data: Data, size: int, rows: slice) -> None:
        self.data, self.size, self.rows = data, size, rows

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self.data.batch(step, self.size, self.rows)
        except UserError as error:
            return error


def _ignore_sigterm(worker: int) -> None:
    """A scheduler sends it to all processes; who reads ahead is needed until the step is saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

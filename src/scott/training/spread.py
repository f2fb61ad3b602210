"""A step's batch spread over processes and passes, and its gradients brought together again."""

from dataclasses import replace

import torch
from torch import Tensor

from scott.errors import UserError
from scott.training.config import DistillConfig
from scott.training.step import Gradients

BUCKET = 2**26
"""Elements that are averaged over the processes in one exchange."""


def rows_of_pass(config: DistillConfig, process: int, processes: int) -> list[slice]:
    """Which rows of a step's batch a process takes in each of its passes. Raises `UserError` unless all get as many."""
    passes = config.gradient_accumulation
    size, rest = divmod(config.batch_size, processes * passes)
    if rest or not size:
        raise UserError(
            f"got batch size {config.batch_size}; expected a multiple of {processes * passes}, as it is the batch of "
            f"all processes ({processes}) and their passes (gradient_accumulation {passes})"
        )
    first = process * passes
    return [slice((first + k) * size, (first + k + 1) * size) for k in range(passes)]


def average_over_processes(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in place, in few exchanges."""
    bucket: list[Tensor] = []
    for index, tensor in enumerate(tensors):
        bucket.append(tensor)
        if index + 1 == len(tensors) or sum(t.numel() for t in bucket) + tensors[index + 1].numel() > BUCKET:
            flat = torch.cat([t.flatten() for t in bucket])
            torch.distributed.all_reduce(flat)
            flat /= torch.distributed.get_world_size()
            for mine, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                mine.copy_(mean.view_as(mine))
            bucket = []


def add(sum_so_far: Gradients | None, made: Gradients) -> Gradients:
    """The sum of two passes' gradients and terms, in place of the first."""
    if sum_so_far is None:
        return made
    torch._foreach_add_([*sum_so_far.student, *sum_so_far.critic], [*made.student, *made.critic])
    return replace(sum_so_far, terms={name: value + made.terms[name] for name, value in sum_so_far.terms.items()})

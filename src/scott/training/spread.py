"""A step spread over processes and passes: its batch, its gradients' sum, and who updates which parameter."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from scott.errors import UserError
from scott.training.config import DistillConfig
from scott.training.step import Gradients

BUCKET = 2**26
"""Elements that are exchanged at a time."""


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
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        _copy_back(flat / dist.get_world_size(), bucket)


def owners(tensors: Sequence[Tensor], processes: int) -> list[int]:
    """Which process keeps each tensor: the largest ones first, each by whoever has least."""
    kept, owner = [0] * processes, [0] * len(tensors)
    for index in sorted(range(len(tensors)), key=lambda i: -tensors[i].numel()):
        owner[index] = kept.index(min(kept))
        kept[owner[index]] += tensors[index].numel()
    return owner


@torch.no_grad()
def share(tensors: Sequence[Tensor], owner: Sequence[int]) -> None:
    """Give each tensor, in all processes, the value that it has in its owner's, in few exchanges."""
    for process in range(dist.get_world_size()):
        for bucket in _buckets([tensor for tensor, kept_by in zip(tensors, owner, strict=True) if kept_by == process]):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(flat, process)
            _copy_back(flat, bucket)


def collect(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors of all processes, under names that no two of them share: in the first one, on the CPU.

    They travel one by one over `device`, since all of them need not fit there. The others get an empty dict.
    """
    known: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(known, {name: (value.shape, value.dtype) for name, value in tensors.items()})
    if dist.get_rank() != 0:
        for value in tensors.values():
            dist.send(value.to(device).contiguous(), 0)
        return {}
    collected = {name: value.cpu() for name, value in tensors.items()}
    for process, theirs in enumerate(known[1:], 1):
        for name, (shape, dtype) in theirs.items():
            received = torch.empty(shape, dtype=dtype, device=device)
            dist.recv(received, process)
            collected[name] = received.cpu()
    return collected


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in turn, as many at a time as make up to `BUCKET` elements, or one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _copy_back(flat: Tensor, tensors: list[Tensor]) -> None:
    for tensor, value in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(value.view_as(tensor))


def add(sum_so_far: Gradients | None, made: Gradients) -> Gradients:
    """The sum of two passes' gradients and terms, in place of the first."""
    if sum_so_far is None:
        return made
    torch._foreach_add_([*sum_so_far.student, *sum_so_far.critic], [*made.student, *made.critic])
    return replace(sum_so_far, terms={name: value + made.terms[name] for name, value in sum_so_far.terms.items()})

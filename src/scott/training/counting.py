"""What a step runs and what its processes would send, counted by hooks while it is made."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from scott.teachers import LatentBackbone


@dataclass(frozen=True)
class Calls:
    """How often a step runs one model, forward and backward, on how many samples a call."""

    model: str
    forward: int
    backward: int
    samples: int


@dataclass
class Counts:
    """Calls of blocks, (model, block's number, samples) → how often; of a split network (FSDP2), whose blocks are
    gathered as often, the bytes; and those of the gradients as they arrive, each time that they do."""

    last: int
    """The decoder's last block; the encoder's first one is 0."""
    forward: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    backward: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    gathered: int = 0
    reduced: int = 0
    paused: bool = False
    """Nothing is counted meanwhile."""

    def calls(self, passes: int = 1) -> tuple[Calls, ...]:
        """By model; in two rows where its encoder and its decoder differ. Backward passes are counted where they
        arrive, each time they do."""
        rows = list[Calls]()
        for model, samples in dict.fromkeys((model, samples) for model, _, samples in self.forward):
            keys = [(model, block, samples) for block in (0, self.last)]
            parts = [(passes * self.forward[key], passes * self.backward[key]) for key in keys]
            names = [model] if parts[0] == parts[1] else [f"{model} encoder", f"{model} decoder"]
            rows += [Calls(name, *part, samples) for name, part in zip(names, parts, strict=False) if part[0]]
        return tuple(rows)


@contextmanager
def counted(backbone: LatentBackbone) -> Iterator[Counts]:
    """The counts of a step that is made within."""
    decoder = [k for k, name in enumerate(backbone.block_names) if f"{name}.".startswith(backbone.decoder_prefixes)]
    counts, handles = Counts(decoder[-1]), list[Any]()

    def ran(copy: str, block: int | None, size: int, module: nn.Module, given: Any, output: Any) -> None:
        tensors = tensors_in(output)
        key = None if block is None else (copy or backbone.adapters.active or "teacher", block, len(tensors[0]))

        def add(counter: Counter[Any], *gradient: Any) -> None:
            if counts.paused:
                return
            counts.gathered += size
            counter.update([key] if key else [])

        if torch._C._current_graph_task_id() < 0:  # else it is computed again, in a backward pass that has gathered it
            add(counts.forward)
        if differentiable := [value for value in tensors if value.requires_grad]:
            register_multi_grad_hook(differentiable, partial(add, counts.backward), mode="any")

    for copy, network in {"": backbone.network, **backbone.copies}.items():
        for index, block in enumerate(backbone.blocks(network)):
            handles.append(block.register_forward_hook(partial(ran, copy, index, parameter_bytes(block))))
    for head in backbone.heads:
        handles.append(head.register_forward_hook(partial(ran, "critic", None, parameter_bytes(head))))

    def arrived(parameter: Tensor) -> None:
        counts.reduced += 0 if counts.paused else parameter.nbytes

    for parameter in (*backbone.student_parameters().values(), *backbone.critic_parameters().values()):
        handles.append(parameter.register_post_accumulate_grad_hook(arrived))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(tree: Any) -> list[Tensor]:
    """Those of what an operation or a module is given, or gives: of its lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for branch in branches for tensor in tensors_in(branch)]


def parameter_bytes(module: nn.Module) -> int:
    return storage_bytes(module.parameters())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages below some tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

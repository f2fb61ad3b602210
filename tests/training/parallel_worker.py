"""One of several processes, all split or averaged: `main()` under `several`, with CASES.

Before that the first one makes two steps by itself, on the whole batch. It writes how far losses, weights and
optimizers' states are from those, what part of them a process holds, and the bytes that went between the processes in a
step, beside those that the budget has.
"""

import dataclasses
import json
import os
import sys
from functools import partialmethod
from unittest.mock import patch

import torch
from tests.training.by_hand import Step, make_config
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scott.teachers import load_backbone
from scott.teachers.skeleton import skeleton
from scott.training.budget import budget_of
from scott.training.optimization import Optimization
from scott.training.parallel import local, rows_of_pass, shard

SETTINGS = {"batch_size": 4, "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "warmup_steps": 0}
SETTINGS |= {"jump": 8, "substeps": 1}


class Traffic(TorchDispatchMode):
    """Bytes of what is gathered, as it comes out, and of gradients that are scattered or averaged, as they go in."""

    bytes = 0

    @classmethod
    def ignore_compile_internals(cls):
        return True  # under another mode dynamo compiles nothing

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith(("c10d::_allgather_base_", "c10d::_reduce_scatter_base_")):
            whole = args[0 if "allgather" in name else 1]
            self.bytes += sum(t.untyped_storage().nbytes() for t in tree_leaves(whole) if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def equipped(backbone, train, critic_rank, critic):
    if backbone.resolution > 256:  # Qwen-Image's, whose attention over 1024 px would take most of the time
        backbone.resize(64)
    torch.manual_seed(0)
    backbone.add_student(train, rank=4, alpha=4.0)
    backbone.add_critic(critic_rank, critic)
    return backbone


def train(folder, config, *, split, checkpointing):
    """(losses and norms of each step, whole tensors by name, part of all parameters that this process holds, bytes,
    number of compiled graphs)

    `split`: of the batch this process's rows, and with the config's `shard` its part of the networks.
    """

    graphs = []

    def make_backbone(train, critic_rank, family, critic):
        backbone = equipped(load_backbone(folder, config.dtype), train, critic_rank, critic)
        if checkpointing:
            backbone.checkpoint_activations()
        if config.compile and split:  # dynamo's trace without a compiler
            compiled = partialmethod(nn.Module.compile, backend=lambda graph, _: graphs.append(graph) or graph.forward)
            with patch.object(nn.Module, "compile", compiled):
                backbone.compile()
        return backbone

    @torch.no_grad()
    def perturb(parameters, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    step = Step(make_backbone, perturb, config)
    sharded = split and config.shard == "full"
    if sharded:
        shard(step.backbone)
    config = dataclasses.replace(config, shard="full" if sharded else "none")
    optimization, distillation = (
        Optimization(step.backbone, config),
        dataclasses.replace(step.distillation, config=config),
    )
    losses, norms, traffic = [], [], Traffic()
    processes = torch.distributed.get_world_size() if split else 1
    passes = rows_of_pass(config, torch.distributed.get_rank() if split else 0, processes)
    for number in range(2):
        values = torch.zeros(3)
        for rows in passes:
            with traffic:
                made = distillation.step(step.batch[rows], step.draws[rows], optimization.engine(number))
            values += torch.stack([made[name] for name in ("consistency", "adversarial", "critic")]) / len(passes)
        if split:
            torch.distributed.all_reduce(values)
        losses.append(values / processes)
        norms.append(torch.stack([*optimization.update(number).values()]))
    tensors = {f"{part}.{name}": v for part, values in optimization.parts().items() for name, v in values.items()}
    parameters = [*step.backbone.network.parameters(), *optimization.models["student"].parameters()]
    assert all(isinstance(p, DTensor) for p in parameters) == sharded
    held = sum(local(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
    return torch.stack(losses), torch.stack(norms), tensors, held, traffic.bytes / 2, len(graphs)


def compare(one, folder, config, checkpointing):
    """What `test_processes` asks for. All processes call it."""
    losses, norms, tensors, held, traffic, graphs = train(folder, config, split=True, checkpointing=checkpointing)
    if one is None:
        return None
    whole_losses, whole_norms, whole_tensors, *_ = one
    assert tensors.keys() == whole_tensors.keys()
    moved = [
        ((tensors[name] - value).norm() / value.norm().clamp(min=1e-9)).item()
        for name, value in whole_tensors.items()
        if name.startswith(("student.", "target.", "critic."))
    ]
    bones = equipped(skeleton(folder, config.dtype), config.train, 4, config.critic)
    budget = budget_of(bones, dataclasses.replace(config, shard="full"), torch.distributed.get_world_size())
    return {
        "losses": ((losses - whole_losses).abs() / whole_losses.abs()).max().item(),
        "norms": ((norms - whole_norms).abs() / whole_norms).max().item(),
        "weights": torch.tensor(moved).max().item(),
        "held": held,
        "graphs": graphs,
        "traffic": traffic,
        "exchanged": budget.exchanged,
    }


def main():
    cases, ones = {}, {}
    for case, (folder, changes) in json.loads(sys.argv[1]).items():
        checkpointing = changes.pop("checkpointing", False)
        cases[case] = (folder, make_config(**(SETTINGS | {"shard": "full"} | changes)), checkpointing)
        if os.environ["RANK"] == "0":
            ones[case] = train(*cases[case][:2], split=False, checkpointing=checkpointing)
    torch.distributed.init_process_group("gloo")
    for case, given in cases.items():
        if found := compare(ones.get(case), *given):
            sys.stdout.write(json.dumps({"case": case, **found}) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

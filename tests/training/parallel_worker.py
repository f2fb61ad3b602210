"""One of several processes that train with all split: `torchrun … -m tests.training.parallel_worker FOLDER CHANGES`.

Each makes two steps by itself first, on the whole batch. Writes, from the first process, how far losses, weights and
optimizers' states are from those, and what share of them a process holds.
"""

import dataclasses
import json
import sys

import torch
from tests.training.by_hand import Step, make_config
from torch.distributed.tensor import DTensor

from scott.teachers import load_backbone
from scott.training.optimization import Optimization
from scott.training.parallel import local, rows_of_pass, shard
from scott.training.step import distillation_step

SETTINGS = {"batch_size": 4, "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "warmup_steps": 0}


def train(folder, config, *, split, checkpointing):
    """(losses and norms of each step, whole tensors by name, share of all parameters that this process holds)"""

    def make_backbone(train, critic_rank, family, critic):
        torch.manual_seed(0)
        backbone = load_backbone(folder, config.dtype)
        backbone.add_student(train, rank=4, alpha=4.0)
        backbone.add_critic(critic_rank, critic)
        if checkpointing:
            backbone.checkpoint_activations()
        return backbone

    @torch.no_grad()
    def perturb(parameters, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    step = Step(make_backbone, perturb, config)
    if split:
        shard(step.backbone)
    # the whole one is in every process alike, so that averaging its gradients changes nothing
    optimization = Optimization(step.backbone, dataclasses.replace(config, shard="full" if split else "none"))
    losses, norms = [], []
    processes = torch.distributed.get_world_size() if split else 1
    rows = rows_of_pass(config, torch.distributed.get_rank() if split else 0, processes)[0]
    for number in range(2):
        made = distillation_step(
            step.backbone,
            step.solver,
            step.grid,
            step.batch[rows],
            step.uncond,
            step.draws[rows],
            config,
            **optimization.calls,
            scale=optimization.scaler.scale,
        )
        values = torch.stack([made[name] for name in ("consistency", "adversarial", "critic")])
        if split:
            torch.distributed.all_reduce(values)
        losses.append(values / processes)
        norms.append(torch.stack([*optimization.update(number).values()]))
    tensors = {f"{part}.{name}": v for part, values in optimization.parts().items() for name, v in values.items()}
    parameters = [*step.backbone.network.parameters(), *optimization.models["student"].parameters()]
    assert all(isinstance(p, DTensor) for p in parameters) == split
    held = sum(local(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
    return torch.stack(losses), torch.stack(norms), tensors, held


def main():
    folder, changes = sys.argv[1], json.loads(sys.argv[2])
    checkpointing = changes.pop("checkpointing", False)
    config = make_config(**SETTINGS, **changes)
    torch.distributed.init_process_group("gloo")
    losses, norms, tensors, _ = train(folder, config, split=False, checkpointing=checkpointing)
    split_losses, split_norms, split_tensors, held = train(folder, config, split=True, checkpointing=checkpointing)
    if torch.distributed.get_rank() == 0:
        assert tensors.keys() == split_tensors.keys()
        moved = {
            part: max(
                ((split_tensors[name] - value).norm() / value.norm().clamp(min=1e-9)).item()
                for name, value in tensors.items()
                if name.startswith(part)
            )
            for part in ("student.", "target.", "critic.")
        }
        errors = {
            "losses": ((split_losses - losses).abs() / losses.abs()).max().item(),
            "norms": ((split_norms - norms).abs() / norms).max().item(),
            "weights": max(moved.values()),
        }
        sys.stdout.write(json.dumps(errors | {"held": held}) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

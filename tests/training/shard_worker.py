"""One of several processes that make a step with the frozen network split over them: `torchrun … shard_worker.py`.

Writes, from the first process, how far its gradients are from those of a whole network, and what it holds of it.
"""

import json
import sys

import torch
from tests.training.by_hand import Step, make_config
from torch.distributed.tensor import DTensor

from scott.teachers import load_backbone


def gradients(folder, train, checkpointing, shard):
    def make_backbone(train, critic_rank, family, critic):
        torch.manual_seed(0)
        backbone = load_backbone(folder)
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

    step = Step(make_backbone, perturb, make_config(train=train))
    if shard:
        step.backbone.shard_network()
    made = step.run()
    return step.backbone, [*made.student, *made.critic]


def main():
    folder, train, checkpointing = sys.argv[1], sys.argv[2], sys.argv[3] == "checkpointing"
    torch.distributed.init_process_group("gloo")
    _, whole = gradients(folder, train, checkpointing, shard=False)
    backbone, split = gradients(folder, train, checkpointing, shard=True)
    frozen = [p for name, p in backbone.network.named_parameters() if ".lora_" not in name]
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)
    error = max((a - b).abs().max().item() / max(a.abs().max().item(), 1e-6) for a, b in zip(whole, split, strict=True))
    if torch.distributed.get_rank() == 0:
        sys.stdout.write(json.dumps({"error": error, "held": held / sum(p.numel() for p in frozen)}) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

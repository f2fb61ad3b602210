"""What a run will train, call and hold, before any weight is read.

Resident parts are counted from the tensors themselves. What a step holds besides (its graph, above all) is found by
carrying the step out on the meta device, where tensors have a size and no content, at the run's own batch size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from scott.errors import UserError
from scott.teachers import LatentBackbone
from scott.teachers.quantize import FLAGS, saved_bytes
from scott.training.config import DistillConfig
from scott.training.counting import Calls, Counts, parameter_bytes, storage_bytes
from scott.training.jumps import jumps_kept, jumps_of_steps
from scott.training.meta_step import step_cost
from scott.training.parallel import blocks_of, rows_of_pass

SMALL = 4096  # bitsandbytes' 8-bit Adam keeps fp32 states for tensors with fewer elements
BLOCK = 256  # elements that share one of its scales


@dataclass(frozen=True)
class Budget:
    """Parameters as counts, memory as bytes by part, of one process.

    `training` is what a step needs at its highest, all at once: CUDA's context, cuDNN's workspaces and gaps in the
    allocator come on top. `preparing` is what is there while data are encoded, before the
    network is; the VAE also while samples are decoded.
    """

    teacher: str
    network: str
    parameters: int
    student: int
    critic: int
    calls: tuple[Calls, ...]
    flops: int
    """Of a step that walks its jumps and has the critic, over all processes."""
    run_flops: int
    """Of all steps: with `--jump-reuse` not each walks new jumps, and before `--critic-start` none has a critic."""
    sample_bytes: int
    """Of one prepared picture with one caption: latents' mean and deviation and the text's embeddings, in fp16."""
    exchanged: int
    """Bytes that a process averages or gathers each step: the gradients; with `--shard full`, which holds no whole
    gradients, once a pass, and the weights, a block at each call and backward pass, the rest once a step."""
    training: dict[str, int]
    preparing: dict[str, int]
    savings: dict[str, int]
    """Flags that are not given and could be → bytes of `total` that each saves."""
    start_savings: dict[str, int]
    """The same of `start`."""

    @property
    def start(self) -> int:
        """Before the first step, while data are prepared and the network waits on the CPU."""
        return sum(self.preparing.values())

    @property
    def total(self) -> int:
        return sum(self.training.values())


def budget_of(backbone: LatentBackbone, config: DistillConfig, processes: int = 1) -> Budget:
    """The budget of a run of `config` on a skeleton that has its student and critic already.

    Raises `UserError` when the batch does not divide among the processes.
    """
    rows = rows_of_pass(config, 0, processes)[0]
    a_pass = replace(config, batch_size=rows.stop - rows.start)
    base = _base(backbone.network)
    parts = processes if config.shard == "full" else 1
    student, target, critic = (
        tuple(parameters.values())
        for parameters in (backbone.student_parameters(), backbone.target_parameters(), backbone.critic_parameters())
    )
    trained = (*student, *critic)
    gradients, apart = storage_bytes(trained), config.has_critic and config.adversarial_share > 0
    # of several processes gradients lie in DDP's buckets, or are split: none come and go whole beside the graph
    stay = config.gradient_accumulation > 1 or processes > 1
    cost, counts = step_cost(backbone, a_pass, gradients_stay=stay)
    steps, spread = config.max_steps, config.gradient_accumulation * processes
    walks = len({jump for jump, _ in islice(jumps_of_steps(config), steps)})
    early = config.first_with_critic if config.has_critic else 0
    alone = step_cost(backbone, replace(a_pass, adversarial_weight=0.0))[0] if early else cost
    kept = min(jumps_kept(config), walks) * (rows.stop - rows.start) * config.gradient_accumulation
    copies = {name: [*copy.buffers()] for name, copy in backbone.copies.items()}
    preparing, start_savings = _preparing(backbone, config)
    shapes = [backbone.latent_shape] * 2 + [value.shape[1:] for value in backbone.unconditional().values()]
    return Budget(
        teacher=type(backbone.pipeline).__name__,
        network=type(backbone.network).__name__,
        parameters=sum(tensor.numel() for tensor in base if isinstance(tensor, nn.Parameter)),
        student=_count(student),
        critic=_count(critic),
        calls=counts.calls(config.gradient_accumulation),
        flops=cost.flops * spread,
        run_flops=(cost.flops * (steps - early) + alone.flops * early - cost.walk_flops * (steps - walks)) * spread,
        sample_bytes=sum(2 * math.prod(shape) for shape in shapes),
        exchanged=_exchanged(backbone, config, counts) if processes > 1 else 0,
        training={
            "frozen network": (storage_bytes(base) - _quantized_away(backbone, config)) // parts,
            "student": storage_bytes([*student, *copies.get("student", ())]) // parts,
            "EMA target": storage_bytes([*target, *copies.get("target", ())]) // parts,
            "critic": storage_bytes([*critic, *copies.get("critic", ())]) // parts,
            "optimizers": optimizer_bytes(trained, config.optimizer) // parts,
            "gradients": (gradients + storage_bytes(student) * apart) // parts,
            "activations": cost.peak - gradients,
            **({"kept jumps": 4 * kept * math.prod(backbone.latent_shape)} if config.jump_reuse > 1 else {}),
        },
        preparing=preparing,
        savings=_savings(backbone, config)
        | ({} if config.low_memory else {"--low-memory": cost.peak - cost.peak_apart}),
        start_savings=start_savings,
    )


def _preparing(backbone: LatentBackbone, config: DistillConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part while data are encoded, and what --low-memory would save of them."""
    encoders = [storage_bytes(_tensors(part)) for part in backbone.text_encoders]
    at_once = max(encoders) if config.low_memory else sum(encoders)
    saved = {"--low-memory": at_once - max(encoders)} if at_once > max(encoders) else {}
    return {"VAE": storage_bytes(_tensors(backbone.vae)), "text encoders": at_once}, saved


def _savings(backbone: LatentBackbone, config: DistillConfig) -> dict[str, int]:
    """Bytes that each --quantize saves which goes with the config."""
    found = {}
    for kind in FLAGS if config.quantize == "none" else ():
        try:
            changes: dict[str, Any] = {"quantize": kind}
            found[f"--quantize {kind}"] = _quantized_away(backbone, replace(config, **changes))
        except UserError:  # a copy of the network is trained, say
            continue
    return found


def _quantized_away(backbone: LatentBackbone, config: DistillConfig) -> int:
    return saved_bytes(backbone.blocks, config.quantize) if config.quantize != "none" else 0


def _exchanged(backbone: LatentBackbone, config: DistillConfig, counts: Counts) -> int:
    """Bytes that each of several processes averages or gathers in a step."""
    if config.shard == "none":
        return counts.reduced
    return (counts.reduced + counts.gathered) * config.gradient_accumulation + _outside_blocks(backbone)


def _outside_blocks(backbone: LatentBackbone) -> int:
    """Bytes of the weights that are gathered once a step."""
    networks = (backbone.network, *backbone.copies.values())
    return sum(
        parameter_bytes(network) - sum(map(parameter_bytes, blocks_of(backbone, network))) for network in networks
    )


def optimizer_bytes(parameters: Iterable[Tensor], optimizer: str) -> int:
    """AdamW keeps two fp32 moments of each parameter; adamw8bit two bytes, and two scales a block of 256."""
    if optimizer == "adamw":
        return sum(8 * p.numel() for p in parameters)
    sizes = [p.numel() for p in parameters]
    return sum(8 * n if n < SMALL else 2 * n + 8 * -(-n // BLOCK) for n in sizes)


def _base(network: nn.Module) -> list[Tensor]:
    """The frozen tensors of a network or a block, without the adapters that stand on them."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return [tensor for name, tensor in tensors if ".lora_" not in name]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)

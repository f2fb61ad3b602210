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

from scott.data.settings import Settings
from scott.errors import UserError
from scott.teachers import LatentBackbone
from scott.teachers.quantize import FLAGS, saved_bytes
from scott.training.config import DistillConfig
from scott.training.counting import Calls, Counts, parameter_bytes, storage_bytes
from scott.training.jumps import jumps_kept, jumps_of_steps
from scott.training.meta_step import drawing_peak, encoding_peak, step_cost
from scott.training.parallel import rows_of_pass

SMALL = 4096  # bitsandbytes' 8-bit Adam keeps fp32 states for tensors with fewer elements
MACHINE = 8  # processes on one machine, of more
BLOCK = 256  # elements that share one of its scales


@dataclass(frozen=True)
class Budget:
    """Parameters as counts, memory as bytes by part, of one process.

    `training` is what a step needs at its highest, all at once: CUDA's context, cuDNN's workspaces and gaps in the
    allocator come on top. `preparing` is what is there while data are encoded, before the network is; of the text
    encoders' own passes nothing is counted.
    """

    teacher: str
    network: str
    parameters: int
    student: int
    critic: int
    calls: tuple[Calls, ...]
    flops: int
    """Of a step that walks its jumps and has the critic, over all processes; where not each measures gradients for
    `adversarial_share`, of one that does not."""
    run_flops: int
    """Of all steps: with `--jump-reuse` not each walks new jumps, and before `--critic-start` none has a critic."""
    sample_bytes: int
    """Of one prepared picture with one caption: latents' mean and deviation and the text's embeddings, in fp16."""
    exchanged: int
    """Bytes that a process averages or gathers each step: the gradients; with `--shard full`, which holds no whole
    gradients, once a pass, and the weights, a block at each call and backward pass, the rest once a step. What
    several machines average between them, each of which has all of a split network, comes on top."""
    training: dict[str, int]
    preparing: dict[str, int]
    drawing: int
    """The most while samples are drawn: all that stays between steps, and the teacher's calls for them or the VAE. What
    `--validate-every` draws and measures is not counted."""
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
        """In a step."""
        return sum(self.training.values())

    @property
    def peak(self) -> int:
        """The most of a run: before it, in a step and between steps."""
        return max(self.total, self.drawing, self.start)

    @property
    def totals(self) -> dict[str, int]:
        return {"total": self.total, "start": self.start, "peak": self.peak}


def budget_of(backbone: LatentBackbone, config: DistillConfig, processes: int = 1) -> Budget:
    """The budget of a run of `config` on a skeleton that has its student and critic already, on machines of `MACHINE`
    processes, within each of which `shard` splits.

    Raises `UserError` when the batch does not divide among the processes.
    """
    rows = rows_of_pass(config, 0, processes)[0]
    a_pass = replace(config, batch_size=rows.stop - rows.start)
    parts = min(processes, MACHINE) if config.shard == "full" else 1
    student, critic = ([*p.values()] for p in (backbone.student_parameters(), backbone.critic_parameters()))
    gradients, apart = storage_bytes([*student, *critic]), config.has_critic and config.adversarial_share > 0
    # of several processes gradients lie in DDP's buckets, or are split: none come and go whole beside the graph
    stay = config.gradient_accumulation > 1 or processes > 1
    uncond = backbone.unconditional()
    cost, counts = step_cost(backbone, a_pass, uncond, gradients_stay=stay)
    steps, spread = config.max_steps, config.gradient_accumulation * processes
    walks = len({jump for jump, _ in islice(jumps_of_steps(config), steps)})
    early = config.first_with_critic if config.has_critic else 0
    measured = sum(map(config.measures_share, range(early, steps))) if config.has_critic else 0
    alone = step_cost(backbone, replace(a_pass, adversarial_weight=0.0), uncond)[0] if early else cost
    plain = cost.flops - cost.measuring_flops
    of_critic = plain * (steps - early) + cost.measuring_flops * measured
    resident = _resident(backbone, config, parts)
    if config.shard == "full":
        resident["gathered"] = _gathered(backbone)
    if config.jump_reuse > 1:
        kept = min(jumps_kept(config), walks) * a_pass.batch_size * config.gradient_accumulation
        resident["kept jumps"] = 4 * kept * math.prod(backbone.latent_shape)
    buckets = gradients // parts if processes > 1 else 0
    # beside both losses' of the passes before, DDP's buckets hold those of this one
    in_turn = processes > 1 and config.shard == "none" and config.gradient_accumulation > 1
    preparing, start_savings = _preparing(backbone, config)
    shapes = [backbone.latent_shape] * 2 + [value.shape[1:] for value in uncond.values()]
    return Budget(
        teacher=type(backbone.pipeline).__name__,
        network=type(backbone.network).__name__,
        parameters=_count(tensor for tensor in _base(backbone.network) if isinstance(tensor, nn.Parameter)),
        student=_count(student),
        critic=_count(critic),
        calls=counts.calls(config.gradient_accumulation),
        flops=(plain if config.measures_seldom else cost.flops) * spread,
        run_flops=(of_critic + alone.flops * early - cost.walk_flops * (steps - walks)) * spread,
        sample_bytes=sum(2 * math.prod(shape) for shape in shapes),
        exchanged=_exchanged(backbone, config, counts) if processes > 1 else 0,
        training=resident
        | {
            "gradients": (gradients + storage_bytes(student) * apart * (2 if in_turn else 1)) // parts,
            "activations": cost.peak - gradients,
        },
        preparing=preparing,
        drawing=sum(resident.values()) + buckets + drawing_peak(backbone, config, uncond),
        savings=_savings(backbone, config)
        | ({} if config.low_memory else {"--low-memory": cost.peak - cost.peak_apart}),
        start_savings=start_savings,
    )


def _resident(backbone: LatentBackbone, config: DistillConfig, parts: int) -> dict[str, int]:
    """Bytes by part that stay from step to step, of a run whose networks are split into so many parts."""
    trained = {"student": backbone.student_parameters(), "critic": backbone.critic_parameters()}
    held = {"student": trained["student"], "target": backbone.target_parameters(), "critic": trained["critic"]}
    copies = {name: [*copy.buffers()] for name, copy in backbone.copies.items()}
    sizes = {"frozen network": storage_bytes(_base(backbone.network)) - _quantized_away(backbone, config)}
    for name, parameters in held.items():
        title = "EMA target" if name == "target" else name
        sizes[title] = storage_bytes([*parameters.values(), *copies.get(name, ())])
    sizes["optimizers"] = optimizer_bytes([p for of in trained.values() for p in of.values()], config.optimizer)
    return {name: size // parts for name, size in sizes.items()}


def _preparing(backbone: LatentBackbone, config: DistillConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part while data are encoded, and what --low-memory would save of them."""
    encoders = [storage_bytes(_tensors(part)) for part in backbone.text_encoders]
    at_once = max(encoders) if config.low_memory else sum(encoders)
    saved = {"--low-memory": at_once - max(encoders)} if at_once > max(encoders) else {}
    vae = {"VAE": storage_bytes(_tensors(backbone.vae)), "encoding": encoding_peak(backbone, Settings.batch_size)}
    return vae | {"text encoders": at_once}, saved


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
    return saved_bytes(backbone.blocks(), config.quantize) if config.quantize != "none" else 0


def _exchanged(backbone: LatentBackbone, config: DistillConfig, counts: Counts) -> int:
    """Bytes that each of several processes averages or gathers in a step."""
    if config.shard == "none":
        return counts.reduced
    return (counts.reduced + counts.gathered) * config.gradient_accumulation + _outside_blocks(backbone)


def _gathered(backbone: LatentBackbone) -> int:
    """Bytes that a process has whole of a split network: what lies outside the blocks, two blocks, of which one is
    gathered while the other computes, and the gradients of one."""
    networks = (backbone.network, *backbone.copies.values())
    blocks = [block for network in networks for block in backbone.blocks(network)]
    trained = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
    return _outside_blocks(backbone) + 2 * max(map(parameter_bytes, blocks)) + max(map(storage_bytes, trained))


def _outside_blocks(backbone: LatentBackbone) -> int:
    """Bytes of the weights that are gathered once a step."""
    networks = (backbone.network, *backbone.copies.values())
    return sum(parameter_bytes(network) - sum(map(parameter_bytes, backbone.blocks(network))) for network in networks)


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

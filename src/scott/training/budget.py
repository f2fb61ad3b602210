"""What a run will train, call and hold, before any weight is read.

Resident parts are counted from the tensors themselves. What a step holds besides (its graph, above all) is found by
carrying the step out on the meta device, where tensors have a size and no content, at the run's own batch size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from scott.errors import UserError
from scott.teachers import LatentBackbone
from scott.teachers.quantize import FLAGS, saved_bytes
from scott.training.config import DistillConfig
from scott.training.meta_step import step_cost
from scott.training.parallel import rows_of_pass

SMALL = 4096  # bitsandbytes' 8-bit Adam keeps fp32 states for tensors with fewer elements
BLOCK = 256  # elements that share one of its scales


@dataclass(frozen=True)
class Calls:
    """How often a step runs one model, forward and backward, on how many samples a call."""

    model: str
    forward: int
    backward: int
    samples: int


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
    """Of a step, over all processes."""
    sample_bytes: int
    """Of one prepared picture with one caption: latents' mean and deviation and the text's embeddings, in fp16."""
    exchanged: int
    """Bytes that a process averages or gathers each step: the gradients; with `--shard full`, which holds no whole
    gradients, once a pass, and the weights, a block at each call and backward pass, the rest once a step."""
    training: dict[str, int]
    preparing: dict[str, int]
    savings: dict[str, int]
    """Flags that are not given and could be → bytes of `total` that each saves."""

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
    calls = calls_of(a_pass, config.gradient_accumulation, backbone.teacher_calls)
    student, target, critic = (
        tuple(parameters.values())
        for parameters in (backbone.student_parameters(), backbone.target_parameters(), backbone.critic_parameters())
    )
    trained = (*student, *critic)
    gradients, apart = storage_bytes(trained), config.has_critic and config.adversarial_share > 0
    cost = step_cost(backbone, a_pass)
    exchanged = gradients
    if config.shard == "full":
        exchanged += storage_bytes(student) * (config.draws_fakes or apart)  # whose fakes have a backward pass
        exchanged = exchanged * config.gradient_accumulation + _gathered(backbone, calls)
    copies = {name: [*copy.buffers()] for name, copy in backbone.copies.items()}
    encoders = [part for name, part in backbone.pipeline.components.items() if name.startswith("text_encoder")]
    shapes = [backbone.latent_shape] * 2 + [value.shape[1:] for value in backbone.unconditional().values()]
    return Budget(
        teacher=type(backbone.pipeline).__name__,
        network=type(backbone.network).__name__,
        parameters=sum(tensor.numel() for tensor in base if isinstance(tensor, nn.Parameter)),
        student=_count(student),
        critic=_count(critic),
        calls=calls,
        flops=cost.flops * config.gradient_accumulation * processes,
        sample_bytes=sum(2 * math.prod(shape) for shape in shapes),
        exchanged=exchanged if processes > 1 else 0,
        training={
            "frozen network": (storage_bytes(base) - _quantized_away(backbone, config)) // parts,
            "student": storage_bytes([*student, *copies.get("student", ())]) // parts,
            "EMA target": storage_bytes([*target, *copies.get("target", ())]) // parts,
            "critic": storage_bytes([*critic, *copies.get("critic", ())]) // parts,
            "optimizers": optimizer_bytes(trained, config.optimizer) // parts,
            "gradients": (gradients + storage_bytes(student) * apart) // parts,
            "activations": cost.peak - gradients,
        },
        preparing={
            "VAE": storage_bytes(_tensors(backbone.vae)),
            "text encoders": storage_bytes(t for part in encoders if part for t in _tensors(part)),
        },
        savings=_savings(backbone, config)
        | ({} if config.low_memory else {"--low-memory": cost.peak - cost.peak_apart}),
    )


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


def calls_of(config: DistillConfig, passes: int = 1, teacher_calls: int = 2) -> tuple[Calls, ...]:
    """Network calls of one step that walks its jumps, by model; backward passes are counted where they arrive, each
    time they do.

    `config.batch_size` is that of a pass; `teacher_calls` the guided teacher's for a sample.
    """
    batch = config.batch_size
    guided = config.guidance_max > 1 and teacher_calls > 1
    apart = 2 if guided and config.low_memory else 1
    calls = [
        Calls("teacher", apart * config.substeps, 0, batch * (2 if guided else 1) // apart),
        Calls("target", 1, 0, batch),
        Calls("student", 1, 1, batch),
    ]
    fakes, r1 = batch, int(config.critic_r1 > 0)
    if config.draws_fakes:
        fakes = config.drawn_rows(batch)
        calls.append(Calls("student", 2, 1, fakes))
    elif config.has_critic and config.adversarial_share:
        calls.append(Calls("student", 1, 1, fakes))
    if config.has_critic:
        # a fake's logits are walked once for each of the two updates, and but where networks are split, the critic's
        # own as far as something is trained, like those of the data
        encoder = 3 + r1 if config.critic == "full" else 1 if config.shard == "none" else 2
        calls.append(Calls("critic encoder", 2 + r1, encoder, fakes))
        if config.critic != "heads":
            calls.append(Calls("critic decoder", 2 + r1, 3 + r1, fakes))
    return tuple(replace(call, forward=passes * call.forward, backward=passes * call.backward) for call in calls)


def _gathered(backbone: LatentBackbone, calls: tuple[Calls, ...]) -> int:
    """Bytes of the weights that a process with its part of them gets from the others in a step."""
    names = [name for name, module in backbone.network.named_modules() if module in {*backbone.blocks}]
    decoder = [name for name in names if f"{name}.".startswith(backbone.decoder_prefixes)]
    layers = {"": names, "decoder": decoder, "encoder": [name for name in names if name not in decoder]}
    networks = (backbone.network, *backbone.copies.values())
    blocks = sum(_module_bytes(network.get_submodule(name)) for network in networks for name in names)
    total = sum(map(_module_bytes, networks)) - blocks
    for call in calls:
        model, _, part = call.model.partition(" ")
        network = backbone.copies.get(model, backbone.network)
        size = sum(_module_bytes(network.get_submodule(name)) for name in layers[part])
        total += (call.forward + call.backward) * size
    return total


def _module_bytes(module: nn.Module) -> int:
    return storage_bytes(module.parameters())


def optimizer_bytes(parameters: Iterable[Tensor], optimizer: str) -> int:
    """AdamW keeps two fp32 moments of each parameter; adamw8bit two bytes, and two scales a block of 256."""
    if optimizer == "adamw":
        return sum(8 * p.numel() for p in parameters)
    sizes = [p.numel() for p in parameters]
    return sum(8 * n if n < SMALL else 2 * n + 8 * -(-n // BLOCK) for n in sizes)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages below some tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _base(network: nn.Module) -> list[Tensor]:
    """The frozen tensors of a network or a block, without the adapters that stand on them."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return [tensor for name, tensor in tensors if ".lora_" not in name]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)

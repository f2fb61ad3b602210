"""One frozen network of a diffusers pipeline, and the four models that stand on it.

The teacher is the plain network. With `train="lora"` the student and its EMA target are adapters on it, with
`train="full"` copies of their own; the critic is an adapter, a copy or the plain network's first layers, with heads
(`teachers.critic`).

A family of networks is a subclass (`teachers.family`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from scott.choices import unknown
from scott.diffusion import Denoiser, to_x0
from scott.errors import UserError
from scott.guidance import GuidedDenoiser
from scott.teachers import Cond
from scott.teachers.critic import Critic
from scott.teachers.family import Family
from scott.teachers.lora import Adapters, lora_targets
from scott.teachers.quantize import follow, quantize

GRAPHS = 64
"""That torch.compile may make of a network."""


class LatentBackbone(Family):
    """A diffusers pipeline as scott sees it."""

    version: str = ""
    """Of the frozen network's weights, where it was loaded (`fingerprint.network_version`)."""
    signs: str = ""
    """Of their signs (`fingerprint.network_signs`)."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        self.adapters = Adapters(self.network)
        self.train_mode: str | None = None
        self.copies: dict[str, ModelMixin] = {}
        self.cut: dict[str, ModelMixin] = {}
        """Of models that need the plain network's first layers alone: those, as a network."""
        self.critic_model: Critic | None = None

    def to(self, device: torch.device | str) -> Self:
        self.place_encoders(device)
        self.place_network(device)
        return self

    def place_network(self, device: torch.device | str) -> None:
        """Move the network and the models on it, and not text encoders and VAE."""
        for module in (self.network, *self.copies.values(), self.critic_model):
            if module is not None:
                module.to(device)
        follow(self.network)

    def guided_teacher(self, uncond: Cond, omega: float | Tensor, low_memory: bool = False) -> Denoiser:
        """The teacher under guidance ω, a number or (B,): classifier-free guidance."""
        return GuidedDenoiser(self.teacher, uncond, omega, low_memory, self.rescale_guided)

    def rescale_guided(self, x_t: Tensor, guided: Tensor, conditional: Tensor) -> Tensor:
        """What the pipeline makes of the guided x̂0 (`GuidedDenoiser.rescale`): nothing else."""
        return guided

    def student_copy(self) -> ModelMixin:
        """A trainable fp32 copy of the network, which takes ω where the family can."""
        return self.copy_network(self.student_config)

    # --- the four models -------------------------------------------------------------------------------------

    def teacher(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x̂0 (B, C, H, W) of the frozen network at x_t and times t (B,), unguided."""
        return self._x0(None, x_t, t, cond)

    def student(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x̂0 of the student's network; the boundary is not applied."""
        return self._x0("student", x_t, t, cond)

    def target(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x̂0 of the student's EMA."""
        return self._x0("target", x_t, t, cond)

    def critic(self, x0: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Logits (B, ...) of clean latents, given a time and a text."""
        assert self.critic_model is not None, "add_critic comes first"
        return self.critic_model(x0, t, cond)

    def output(self, model: str | None, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's prediction as "student", "target" or "critic", or as the teacher (None)."""
        if model in self.copies:
            with self._autocast():
                return self._output(self.copies[model], x_t, t, cond)
        with self.adapters.use(model):
            return self._output(self.cut.get(model or "", self.network), x_t, t, cond)

    def _output(self, network: ModelMixin, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype, timestep = _dtype(network), self.network_time(t).to(x_t.device)
        output = self.predict(network, x_t.to(dtype), timestep, _cast(cond, dtype))
        return self.unpack(output, x_t).to(x_t.dtype)

    def _x0(self, model: str | None, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        output = self.output(model, x_t, t, cond)
        return to_x0(self.prediction, output, x_t, self.schedule.alpha(t), self.schedule.sigma(t))

    def _autocast(self) -> torch.autocast:
        """Trained copies keep fp32 weights and compute in the frozen network's precision."""
        dtype = _dtype(self.network)
        device = "cpu" if self.device.type == "meta" else self.device.type  # torch has no autocast for meta
        return torch.autocast(device, dtype, enabled=dtype != torch.float32)

    # --- what is trained -------------------------------------------------------------------------------------

    def add_student(self, train: str, *, rank: int = 64, alpha: float = 64.0, variant: str = "lora") -> None:
        """Make the student and its EMA target, equal to the teacher: adapters ("lora") or copies ("full").

        Raises `UserError` where there is a student, and for another `train` or `variant`.
        """
        if self.train_mode is not None:
            raise UserError(f"got {train}, and the backbone has a {self.train_mode} student; load the teacher anew")
        if train == "full":
            self.copies |= {name: self.student_copy() for name in ("student", "target")}
            self.copies["target"].requires_grad_(False)
        elif train == "lora":
            layers = self.student_targets
            for name in ("student", "target"):
                self.adapters.add(name, layers, rank, alpha, variant)
            # LoRA's A is random: the target has to start from the student's own
            pairs = zip(self.target_parameters().values(), self.student_parameters().values(), strict=True)
            for mine, theirs in pairs:
                mine.data.copy_(theirs)
        else:
            raise unknown("train", train, ("lora", "full"))
        self.train_mode = train

    @property
    def student_targets(self) -> list[str]:
        """Names of the layers that a LoRA student adapts."""
        return lora_targets(self.network, ("",), self.student_layers)

    def add_critic(self, rank: int, kind: str = "lora") -> None:
        """Make the critic (see `Critic`)."""
        self.critic_model = Critic(self, rank, kind)

    def copy_network(self, changes: dict[str, Any], new: str = "") -> ModelMixin:
        """A trainable fp32 copy with changes to its config; parameters whose name starts with `new` keep their init."""
        made = self._built(changes, self.device)
        missing, unexpected = made.load_state_dict(self.adapters.plain_state(), strict=False)
        lacking = [key for key in missing if not (new and key.startswith(new))]
        if lacking or unexpected:
            raise RuntimeError(f"copy of the teacher lacks {lacking} and has {unexpected} too many")
        return made

    def _built(self, changes: dict[str, Any], device: torch.device | str) -> ModelMixin:
        """A network of the teacher's class and config, but for changes to it; its weights are still to come."""
        # `_use_default_values` names what the teacher's file leaves out, and would keep the changes from being made
        config = {key: value for key, value in self.network.config.items() if key != "_use_default_values"}
        with torch.device(device):
            return type(self.network).from_config({**config, **changes}).eval()

    def full_student(self) -> ModelMixin:
        """The network of a full student, without weights."""
        return self._built(self.student_config, "meta")

    def become(self, student: Mapping[str, Tensor]) -> None:
        """Put a full student's weights in the place of the teacher's, so that no second network is held.

        Raises `UserError` unless they are those of a full student of this teacher.
        """
        network = self.full_student()
        shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        if shapes != {name: value.shape for name, value in student.items()}:
            raise UserError("the checkpoint's target does not fit this teacher and config; use those it was made with")
        network.load_state_dict(student, strict=False, assign=True)
        for name, buffer in self.network.named_buffers():
            path, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(path), leaf, buffer)
        self.network = network.requires_grad_(False)
        setattr(self.pipeline, self.part, network)
        self.adapters = Adapters(network)

    def parameters(self, model: str) -> dict[str, nn.Parameter]:
        """Those of the adapter or the copy of a model, by name."""
        if model in self.copies:
            return dict(self.copies[model].named_parameters())
        return self.adapters.parameters(model)

    def student_parameters(self) -> dict[str, nn.Parameter]:
        return self.parameters("student")

    def target_parameters(self) -> dict[str, nn.Parameter]:
        return self.parameters("target")

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        return self.critic_model.trained() if self.critic_model is not None else {}

    def critic_statistics(self) -> dict[str, Tensor]:
        """What the critic's heads know of the data and do not train, by name."""
        return {} if self.critic_model is None else dict(self.critic_model.heads.named_buffers())

    @property
    def heads(self) -> list[nn.Module]:
        """The critic's, which stand beside the network."""
        return [] if self.critic_model is None else list(self.critic_model.heads)

    # --- how they compute ------------------------------------------------------------------------------------

    def quantize(self, kind: str) -> None:
        """The frozen network's blocks in 8 ("int8") or 4 ("nf4") bits; adapters come after."""
        quantize(self.network, self.blocks(), kind)

    def compile(self) -> None:
        """torch.compile the forward passes in which all four models run.

        They share dynamo's limit, which is 8 by default and behind which nothing is compiled: each has a graph of its
        own, with and without gradients, and another one for batches and sizes that vary. Their backward passes may be
        made twice, as both losses go back through what the critic made of the fakes: buffers are not donated to them.
        """
        functorch_config.donated_buffer = False
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        for network in (self.network, *self.copies.values(), *self.cut.values()):
            network.compile()

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        for network in (self.network, *self.cut.values()):
            network.enable_gradient_checkpointing(self._checkpointing(self.adapters.checkpointed))
        for network in self.copies.values():
            network.enable_gradient_checkpointing(self._checkpointing(Adapters(network).checkpointed))

    def _checkpointing(self, checkpointed: Callable[..., Any]) -> Callable[..., Any]:
        """What the network calls instead of a block, as (block, *inputs)."""
        return checkpointed


def _dtype(network: nn.Module) -> torch.dtype:
    # diffusers' own `dtype` walks through all modules on every call; the first parameter is never an adapter's
    return next(network.parameters()).dtype


def _cast(cond: Cond, dtype: torch.dtype) -> Cond:
    return {name: value if name == "guidance" else value.to(dtype) for name, value in cond.items()}

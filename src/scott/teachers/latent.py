"""What every latent diffusion pipeline of diffusers has in common: one frozen network, and the models that stand on it.

The teacher is the plain network; the critic is the LoRA "critic" on its decoder with a head. With `train="lora"` the
student and its EMA are two more adapters; with `train="full"` they are two copies of their own. A family adds how its
network is called, cut in halves, and told about the text.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler, LCMScheduler, ModelMixin
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from scott.choices import unknown
from scott.diffusion import FlowSchedule, JumpGrid, schedule_from_config, to_x0
from scott.diffusion.schedule import FEW_STEP_SHIFT
from scott.errors import UserError
from scott.guidance import expand_cond
from scott.teachers.base import Cond
from scott.teachers.critic import Critic
from scott.teachers.lora import Adapters, lora_targets
from scott.teachers.quantize import quantize

CRITICS = ("lora", "full", "unconditional")


class LatentBackbone(ABC):
    """A diffusers pipeline as scott sees it (see `teachers.base.Backbone`).

    Raises:
        UserError: the VAE normalises its latents channel by channel, or the network takes more than latents (as for
            inpainting), which is not supported.
    """

    part: ClassVar[str]
    """The pipeline's component that is distilled: unet or transformer."""
    student_layers: ClassVar[tuple[str, ...]]
    critic_layers: ClassVar[tuple[str, ...]]
    output_layer: ClassVar[str]
    """The network's last layer, which turns features into its output."""
    size_names: ClassVar[tuple[str, ...]] = ()
    takes_guidance: ClassVar[bool] = False
    """Whether a full student of this family is told ω."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.network: ModelMixin = getattr(pipeline, self.part)
        self.vae = pipeline.vae
        if getattr(self.vae.config, "latents_mean", None) is not None:
            raise UserError("the VAE has latents_mean; expected one with a scaling factor alone")
        takes, has = self.network.config.in_channels, self.vae.config.latent_channels
        if takes != has:
            raise UserError(f"the network takes {takes} channels and the VAE has {has}; inpainting is not supported")
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
        self.adapters = Adapters(self.network)
        scheduler = pipeline.scheduler
        self.schedule = schedule_from_config({"_class_name": type(scheduler).__name__, **scheduler.config})
        self.prediction = self.schedule.prediction_type
        size = self.network.config.sample_size
        self.latent_shape = (self.network.config.in_channels, size, size)
        self.resolution = size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.original_inference_steps: int | None = scheduler.config.get("original_inference_steps")
        if isinstance(scheduler, FlowMatchLCMScheduler):  # its times depend on no grid
            self.original_inference_steps = JumpGrid(self.schedule).original_inference_steps
        self.train_mode: str | None = None
        self.critic_kind: str | None = None
        self.copies: dict[str, ModelMixin] = {}
        self.critic_head: nn.Linear | None = None
        self.critic_model: Critic | None = None
        self._no_text: Cond = {}

    @property
    def device(self) -> torch.device:
        return self.network.device

    def to(self, device: torch.device | str) -> Self:
        self.pipeline.to(device)
        for module in (*self.copies.values(), self.critic_head):
            if module is not None:
                module.to(device)
        return self

    # --- text and images -------------------------------------------------------------------------------------

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond: ...

    def size_cond(self, height: int, width: int) -> Cond:
        """Most families are told nothing of a picture's size."""
        return {}

    def unconditional(self) -> Cond:
        """The condition guidance pushes away from, with batch 1: the empty prompt."""
        return self.encode_prompts([""])

    def park_encoders(self) -> None:
        """Move text encoders and VAE to the CPU: training on cached latents needs none.

        Prompts are still encoded there; the VAE is moved back for as long as it decodes.
        """
        self.vae.to("cpu")
        for name, component in self.pipeline.components.items():
            if name.startswith("text_encoder") and component is not None:
                component.to("cpu")

    def _check_length(self, prompts: Sequence[str], tokenizer: Any, limit: int, *, special: int) -> None:
        for prompt, ids in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True):
            if len(ids) > limit:
                raise UserError(
                    f"got a prompt of {len(ids) - special} tokens, expected at most {limit - special}; "
                    f"shorten it: {prompt[:80]!r}"
                )

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode((2 * pixels - 1).to(self.vae.device, self.vae.dtype)).latent_dist
        scale, shift = self.vae.config.scaling_factor, getattr(self.vae.config, "shift_factor", None) or 0.0
        return (posterior.mean - shift) * scale, posterior.std * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        scale, shift = self.vae.config.scaling_factor, getattr(self.vae.config, "shift_factor", None) or 0.0
        with _lent(self.vae, latents.device):
            pixels = self.vae.decode(latents.to(self.vae.dtype) / scale + shift).sample
        return (pixels / 2 + 0.5).clamp(0, 1)

    # --- the network of the family ---------------------------------------------------------------------------

    @abstractmethod
    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        """The network's own output, in its `prediction`, for x_t (B, C, H, W) in the network's dtype."""

    @abstractmethod
    def encode(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Any:
        """The first half of the network: what `decode_features` needs."""

    @abstractmethod
    def decode_features(self, network: ModelMixin, features: Any) -> Tensor:
        """The second half up to the output layer: (B, .., channels)."""

    @property
    @abstractmethod
    def decoder_prefixes(self) -> tuple[str, ...]:
        """How the names of the second half's layers begin."""

    @property
    @abstractmethod
    def feature_channels(self) -> int: ...

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of the network that hold nearly all of it."""
        return list(self.network.transformer_blocks)

    # --- the four models -------------------------------------------------------------------------------------

    def teacher(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self._x0(None, x_t, t, cond)

    def student(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self._x0("student", x_t, t, cond)

    def target(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self._x0("target", x_t, t, cond)

    def critic(self, x0: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Logits (B, ...) of clean latents, told a time and a text."""
        assert self.critic_model is not None, "add_critic comes first"
        return self.critic_model(x0, t, cond)

    def output(self, model: str | None, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output as a model ("student", "target", "critic"), or as the teacher (None)."""
        if model in self.copies:
            with self._autocast():
                return self._output(self.copies[model], x_t, t, cond)
        with self.adapters.use(model):
            return self._output(self.network, x_t, t, cond)

    def _output(self, network: ModelMixin, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype, timestep = _dtype(network), self.schedule.timestep(t).to(x_t.device)
        return self.predict(network, x_t.to(dtype), timestep, _cast(cond, dtype)).to(x_t.dtype)

    def _x0(self, model: str | None, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        output = self.output(model, x_t, t, cond)
        return to_x0(self.prediction, output, x_t, self.schedule.alpha(t), self.schedule.sigma(t))

    def _autocast(self) -> torch.autocast:
        """Trained copies keep fp32 weights and compute in the frozen network's precision."""
        dtype = _dtype(self.network)
        device = "cpu" if self.device.type == "meta" else self.device.type  # torch has no autocast for meta
        return torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def critic_features(self, x0: Tensor, t: Tensor, cond: Cond) -> Any:
        if self.critic_kind == "unconditional":
            t = torch.full_like(t, self.schedule.t_data)
            cond = expand_cond({name: value.to(x0.device) for name, value in self._no_text.items()}, len(x0))
        network = self.copies.get("critic", self.network)
        with self._autocast() if "critic" in self.copies else self.adapters.use(None):
            dtype, timestep = _dtype(network), self.schedule.timestep(t).to(x0.device)
            return self.encode(network, x0.to(dtype), timestep, _cast(cond, dtype))

    def critic_logits(self, features: Any) -> Tensor:
        assert self.critic_head is not None, "add_critic comes first"
        if "critic" in self.copies:
            with self._autocast():
                decoded = self.decode_features(self.copies["critic"], features)
        else:
            with self.adapters.use("critic"):
                decoded = self.decode_features(self.network, features)
        return self.critic_head(decoded.float()).squeeze(-1)

    # --- what is trained -------------------------------------------------------------------------------------

    def add_student(self, train: str, *, rank: int = 64, alpha: float = 64.0, variant: str = "lora") -> None:
        """Make the student and its EMA target, equal to the teacher: adapters ("lora") or copies ("full")."""
        if train == "full":
            self.copies |= {name: self.student_copy() for name in ("student", "target")}
            self.copies["target"].requires_grad_(False)
        elif train == "lora":
            layers = lora_targets(self.network, ("",), self.student_layers)
            for name in ("student", "target"):
                self.adapters.add(name, layers, rank, alpha, variant)
            # LoRA's A is random: the target has to start from the student's own
            pairs = zip(self.target_parameters().values(), self.student_parameters().values(), strict=True)
            for mine, theirs in pairs:
                mine.data.copy_(theirs)
        else:
            raise unknown("train", train, ("lora", "full"))
        self.train_mode = train

    def student_copy(self) -> ModelMixin:
        """A trainable fp32 copy of the network."""
        return self.copy_network({})

    def copy_network(self, changes: dict[str, Any], new: str = "") -> ModelMixin:
        """A trainable fp32 copy with changes to its config; parameters whose name starts with `new` keep their init."""
        # `_use_default_values` names what the teacher's file leaves out, and would keep the changes from being made
        config = {key: value for key, value in self.network.config.items() if key != "_use_default_values"}
        with torch.device(self.device):
            copy = type(self.network).from_config({**config, **changes}).eval()
        missing, unexpected = copy.load_state_dict(self.adapters.plain_state(), strict=False)
        lacking = [key for key in missing if not (new and key.startswith(new))]
        if lacking or unexpected:
            raise RuntimeError(f"copy of the teacher lacks {lacking} and has {unexpected} too many")
        return copy

    def add_critic(self, rank: int, kind: str = "lora") -> None:
        """Make the critic, and a head that starts at zero.

        "lora" adapts the decoder (the paper's), "unconditional" does so without time and text, "full" trains a copy of
        the whole network (Table 7 of the paper).
        """
        if kind not in CRITICS:
            raise unknown("critic", kind, CRITICS)
        if kind == "full":
            self.copies["critic"] = self.copy_network({})
            delattr(self.copies["critic"], self.output_layer)  # its features end before it
        else:
            layers = lora_targets(self.network, self.decoder_prefixes, self.critic_layers)
            self.adapters.add("critic", layers, rank, float(rank))
        if kind == "unconditional":
            self._no_text = self.unconditional()
        self.critic_kind = kind
        self.critic_head = nn.Linear(self.feature_channels, 1, device=self.device)
        for parameter in self.critic_head.parameters():
            nn.init.zeros_(parameter)

    def quantize(self, kind: str) -> None:
        """The blocks' linear layers of the frozen network in 8 ("int8") or 4 ("nf4") bits; adapters come after."""
        quantize(self.network, self.blocks, kind)

    def student_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters("student")

    def target_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters("target")

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        if self.critic_head is None:
            return {}
        head = {f"head.{name}": parameter for name, parameter in self.critic_head.named_parameters()}
        return self._parameters("critic") | head

    def _parameters(self, name: str) -> dict[str, nn.Parameter]:
        return dict(self.copies[name].named_parameters()) if name in self.copies else self.adapters.parameters(name)

    parameters = _parameters

    def compile(self) -> None:
        """torch.compile the forward pass of the network and of its copies; the critic's halves run as they are."""
        for network in (self.network, *self.copies.values()):
            network.compile()

    def shard_network(self) -> None:
        """Split the frozen network's blocks over the processes (FSDP2), each gathered only while it computes.

        Adapters, copies and the layers outside the blocks stay whole in every process.
        """
        for block in self.blocks:
            adapters = {parameter for name, parameter in block.named_parameters() if ".lora_" in name}
            fully_shard(block, ignored_params=adapters)

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.network.enable_gradient_checkpointing(self.adapters.checkpointed)
        for copy in self.copies.values():
            copy.enable_gradient_checkpointing(Adapters(copy).checkpointed)

    # --- the student as a stock pipeline ---------------------------------------------------------------------

    def save_student(self, folder: Path, grid: JumpGrid) -> None:
        """Write the EMA student as a folder of the teacher's own pipeline class with a few-step scheduler."""
        changed = {self.part: self._target_network(), "scheduler": self.few_step_scheduler(grid)}
        parts = {**self.pipeline.components, **changed}
        options = {name: self.pipeline.config[name] for name in _PIPELINE_OPTIONS if name in self.pipeline.config}
        type(self.pipeline)(**parts, **options).save_pretrained(folder)

    def _target_network(self) -> ModelMixin:
        if "target" in self.copies:
            return self.copies["target"]
        with torch.device(self.device):
            network = type(self.network).from_config(self.network.config).to(self.network.dtype)
        network.load_state_dict(self.adapters.merged_state("target"))
        return network

    def few_step_scheduler(self, grid: JumpGrid) -> LCMScheduler | FlowMatchLCMScheduler:
        """The stock scheduler whose times are those the student of this grid is drawn at."""
        if isinstance(self.schedule, FlowSchedule):
            return FlowMatchLCMScheduler(shift=FEW_STEP_SHIFT)
        config: dict[str, Any] = dict(self.pipeline.scheduler.config)
        shared = {key: config[key] for key in LCMScheduler().config if key in config and not key.startswith("_")}
        return LCMScheduler.from_config(
            shared,
            original_inference_steps=grid.original_inference_steps,
            set_alpha_to_one=True,
            clip_sample=False,
            thresholding=False,
        )


_PIPELINE_OPTIONS = ("requires_safety_checker", "force_zeros_for_empty_prompt")


@contextmanager
def _lent(module: ModelMixin, device: torch.device) -> Iterator[None]:
    """A module on another device for a while."""
    home = module.device
    if home == device:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def _dtype(network: nn.Module) -> torch.dtype:
    # diffusers' own `dtype` walks through all modules on every call; the first parameter is never an adapter's
    return next(network.parameters()).dtype


def _cast(cond: Cond, dtype: torch.dtype) -> Cond:
    return {name: value if name == "guidance" else value.to(dtype) for name, value in cond.items()}

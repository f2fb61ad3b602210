"""What a family of networks is: which layers are adapted and read, and how the network is called.

A family is a subclass of `LatentBackbone`. Where they are not the usual ones it fills four hooks: latents (`packed`,
`token_side`, `unpack`, `from_pipeline`, and `LatentNormaliser`), time (`network_time`, `size_shift`), guidance
(`teacher_calls`, `LatentBackbone.guided_teacher` or `rescale_guided`, `guidance_input`, `guidance_options`), and text
(`teachers.encoders`).
"""

import copy
import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, FlowMatchLCMScheduler, ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from scott.diffusion import FlowSchedule, JumpGrid, NoiseSchedule, normal_like, schedule_from_config
from scott.errors import UserError
from scott.teachers import Cond
from scott.teachers.encoders import Encoders

DEFAULT_SIZE = 128
"""Places a side of the VAE's latents, where a network's config has no size: what its pipeline draws (1024 pixels)."""


class Family(Encoders):
    """A diffusers pipeline and the network of it that is distilled.

    Raises:
        UserError: the network takes more than latents (as for inpainting), which is not supported.
    """

    part: ClassVar[str] = "transformer"
    """The pipeline's component that is distilled: unet or transformer."""
    student_layers: ClassVar[tuple[str, ...]]
    """How the names of the layers end that a LoRA student adapts."""
    critic_layers: ClassVar[tuple[str, ...]] = ()
    """Those of a LoRA critic; the student's, where empty."""
    output_layer: ClassVar[str] = "proj_out"
    """The network's last layer, which turns features into its output."""
    has_unused_parameters: ClassVar[bool] = False
    """Whether the network has layers that its output does not depend on, so that they get no gradients."""
    takes_guidance: ClassVar[bool] = False
    """Whether a full student of this family takes ω; one that does not is trained for a single ω."""
    teacher_calls: ClassVar[int] = 2
    """How often the guided teacher calls the network for a sample: twice for classifier-free guidance."""
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """The network's lists of blocks, in the order in which they run."""
    token_side: ClassVar[int] = 1
    """Places of the latents a side that one token of the network holds, where the size of pictures has to fit it."""
    packed: ClassVar[bool] = False
    """Whether the pipeline makes tokens of the latents, (B, N, C), before the network and its scheduler see them."""
    shifts_evenly: ClassVar[bool] = False
    """Whether its pipeline hands the scheduler σ = 1, 1 − 1/n, .., to be shifted; others let it space them."""
    shifts_by_steps: ClassVar[bool] = False
    """Whether its pipeline makes the shift a function of the number of steps too."""
    own_size: ClassVar[bool] = False
    """Whether its pipeline draws at a size of its own unless given one, whatever its network was made for."""
    fixed_size: ClassVar[bool] = False
    """Whether its network draws at the size in its config alone."""
    exports_onnx: ClassVar[bool] = True
    """Whether torch can export its parts to ONNX. It does not follow language models, networks that branch on values,
    and networks that are given places of tokens without a batch."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        if isinstance(self.vae, AutoencoderTiny):
            raise UserError(
                "the VAE is an AutoencoderTiny, for previews, which has no spread; expected the one that the teacher "
                "was trained with"
            )
        self.network: ModelMixin = getattr(pipeline, self.part)
        channels, own = self.network.config.in_channels, self.latent_channels * self.normaliser.patch**2
        if channels != (has := own * (self.token_side**2 if self.packed else 1)):
            raise UserError(
                f"the network takes {channels} channels and the VAE has {has}; expected as many (networks for "
                "inpainting, which take more, are not supported)"
            )
        size = self.network.config.get("sample_size") or DEFAULT_SIZE // self.normaliser.patch
        self.latent_shape = (own, size, size)
        self.resolution = size * self.factor
        self.schedule = self._schedule()
        self.prediction = self.schedule.prediction_type
        if self.prediction == "epsilon" and self.schedule.alpha(self.schedule.last_time) == 0:
            raise UserError("the teacher predicts ε and has zero terminal SNR, where ε fixes no x0; expected one of v")
        scheduler = pipeline.scheduler
        self.original_inference_steps: int | None = scheduler.config.get("original_inference_steps")
        """Of a consistency student, how many steps its training grid has; None for a teacher."""
        if isinstance(scheduler, FlowMatchLCMScheduler):  # its times depend on no grid
            self.original_inference_steps = JumpGrid(self.schedule).original_inference_steps

    def _schedule(self) -> NoiseSchedule:
        """The pipeline's, with the shift that it gives latents of this size where it shifts by size."""
        scheduler = self.pipeline.scheduler
        config = {"_class_name": type(scheduler).__name__, **scheduler.config}
        if config.get("use_dynamic_shifting"):
            mu = self.size_shift((self.resolution // self.least_side) ** 2)
            exponential = config.get("time_shift_type", "exponential") == "exponential"
            config |= {"use_dynamic_shifting": False, "shift": math.exp(mu) if exponential else mu}
        schedule = schedule_from_config(config)
        return replace(schedule, evenly=True) if isinstance(schedule, FlowSchedule) and self.shifts_evenly else schedule

    def size_shift(self, tokens: int) -> float:
        """μ of a picture of so many tokens: linear in their number, between two points of the scheduler's config."""
        config = self.pipeline.scheduler.config
        low, high = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (high - low)
        return config.base_shift + slope * (tokens - low)

    @staticmethod
    def guidance_options(omega: float) -> dict[str, Any]:
        """How its pipeline's call is asked for ω, in the form uncond + ω (cond − uncond)."""
        return {"guidance_scale": omega}

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device  # diffusers' own looks for hooks in every module

    @property
    def least_side(self) -> int:
        """Pixels that a picture's sides are multiples of: a place of the latents, or of the network's patches."""
        return self.factor * max(self.token_side, getattr(self.network.config, "patch_size", None) or 1)

    @property
    def width(self) -> int:
        """Channels of what a transformer's blocks give out."""
        return self.network.config.num_attention_heads * self.network.config.attention_head_dim

    @property
    def block_names(self) -> list[str]:
        return [f"{name}.{index}" for name in self.block_lists for index in range(len(getattr(self.network, name)))]

    def blocks(self, network: nn.Module | None = None) -> list[nn.Module]:
        """The parts of the network, or of a copy, that hold nearly all of it, in the order in which they run."""
        return [(network or self.network).get_submodule(name) for name in self.block_names]

    @property
    def decoder_prefixes(self) -> tuple[str, ...]:
        """How the names of the decoder's layers begin: of a transformer, those of the second half of its blocks."""
        return tuple(f"{name}." for name in self.block_names[len(self.block_names) // 2 :])

    @property
    def feature_layers(self) -> dict[str, int]:
        """The layers that a critic of heads alone reads, in the order in which they run → channels of their output."""
        names = self.block_names
        return {names[k * len(names) // 4 - 1]: self.width for k in (1, 2, 3)}

    def check_resolution(self, resolution: int) -> None:
        """Raise `UserError` for a size that is no multiple of `least_side`, or larger than the network's positions."""
        least, places = self.least_side, self.network.config.get("pos_embed_max_size")
        if resolution % least:
            raise UserError(f"got resolution {resolution}, expected a multiple of {least}, as VAE and network need")
        if places and resolution > (most := places * least):
            raise UserError(f"got resolution {resolution}; this teacher has positions for {most} pixels at most")

    def resize(self, resolution: int) -> None:
        """Train and draw at another size, of squares of that many pixels a side; the student is saved with it.

        Raises `UserError` for a size that the VAE or the network does not allow.
        """
        self.check_resolution(resolution)
        side = resolution // self.factor
        self.latent_shape, self.resolution = (self.latent_shape[0], side, side), resolution
        self.schedule = self._schedule()
        if "sample_size" in self.network.config:
            self.network.register_to_config(sample_size=side)

    @abstractmethod
    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        """The network's own output for latents x_t (B, C, H, W), which it takes as `pack` makes them, in its dtype."""

    def pack(self, x_t: Tensor) -> Tensor:
        """Latents (B, C, H, W) as the network takes them: where they are `packed`, with p = `token_side`,
        (B, H/p · W/p, C p²)."""
        return F.pixel_unshuffle(x_t, self.token_side).flatten(2).transpose(1, 2) if self.packed else x_t

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The network's output as the schedule's prediction, in the shape and with the sign that it has of x_t.

        The learned variance of PixArt, and of some editions of Sana, is dropped: channels behind those of x_t.
        """
        if not self.packed:
            return output[:, : x_t.shape[1]]
        rows = x_t.shape[-2] // self.token_side
        return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, (rows, -1)), self.token_side)

    def noise_like(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """N(0, I) like x, each place's draw the one that it has in the pipeline's scheduler, which sees packed ones."""
        return self.unpack(normal_like(self.pack(x), generator), x) if self.packed else normal_like(x, generator)

    def from_pipeline(self, latents: Tensor) -> Tensor:
        """What the pipeline returns as `output_type="latent"`, as (B, C, H, W) in the scale that the network sees."""
        if not self.packed:
            return latents
        side = round(latents.shape[1] ** 0.5) * self.token_side
        return self.unpack(latents, latents.new_empty(1, 1, side, side))

    def image_part(self, features: Tensor, x_t: Tensor) -> Tensor:
        """What a layer gives out or is fed, without tokens that are not those of the latents x_t."""
        return features

    def network_time(self, t: Tensor) -> Tensor:
        """The schedule's time (B,) as the network is fed it."""
        return self.schedule.timestep(t)

    def guidance_input(self, network: ModelMixin, cond: Cond) -> Tensor | None:
        """ω as a network that takes it is fed it, in the form in which its pipeline writes it; None for another."""
        return None

    @property
    def student_config(self) -> dict[str, Any]:
        """What a full student's config has besides the teacher's."""
        return {}

    def cut_network(self) -> ModelMixin:
        """The network without the layers behind `feature_layers`: a network of its own, with the same layers."""
        last, left = [*self.feature_layers][-1], self.block_names
        left = left[: left.index(last) + 1]
        lists = {name: getattr(self.network, name) for name in self.block_lists}
        counts = {name: sum(kept.startswith(f"{name}.") for kept in left) for name in lists}
        return shortened(self.network, **{name: blocks[: counts[name]] for name, blocks in lists.items()})


def shortened(network: ModelMixin, **modules: nn.Module | None) -> ModelMixin:
    """A shallow copy of a network with some modules replaced: all others are the network's own, hooks included."""
    part = copy.copy(network)  # and not as it is compiled, which would call the whole network
    part._modules = network._modules | modules
    return part

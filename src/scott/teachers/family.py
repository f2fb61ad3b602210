"""What a family of networks is: which layers are adapted and read, and how the network is called.

A family is a subclass of `LatentBackbone`. Where they are not the usual ones it fills four hooks: latents (`pack`,
`unpack`, and `LatentNormaliser`), time (`network_time`), guidance (`LatentBackbone.guided_teacher`, `guidance_input`),
and text (`teachers.encoders`).
"""

import copy
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler, ModelMixin
from torch import Tensor, nn

from scott.diffusion import JumpGrid, schedule_from_config
from scott.errors import UserError
from scott.teachers import Cond
from scott.teachers.encoders import Encoders


class Family(Encoders):
    """A diffusers pipeline and the network of it that is distilled.

    Raises:
        UserError: the network takes more than latents (as for inpainting), which is not supported.
    """

    part: ClassVar[str]
    """The pipeline's component that is distilled: unet or transformer."""
    student_layers: ClassVar[tuple[str, ...]]
    """How the names of the layers end that a LoRA student adapts, and likewise a LoRA critic."""
    critic_layers: ClassVar[tuple[str, ...]]
    output_layer: ClassVar[str]
    """The network's last layer, which turns features into its output."""
    takes_guidance: ClassVar[bool] = False
    """Whether a full student of this family takes ω; one that does not is trained for a single ω."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        self.network: ModelMixin = getattr(pipeline, self.part)
        channels, has = self.network.config.in_channels, self.vae.config.latent_channels * self.normaliser.patch**2
        if channels != has:
            raise UserError(f"the network takes {channels} channels and the VAE has {has}; inpainting is not supported")
        scheduler = pipeline.scheduler
        self.schedule = schedule_from_config({"_class_name": type(scheduler).__name__, **scheduler.config})
        self.prediction = self.schedule.prediction_type
        size = self.network.config.sample_size
        self.latent_shape = (channels, size, size)
        self.resolution = size * 2 ** (len(self.vae.config.block_out_channels) - 1) * self.normaliser.patch
        self.original_inference_steps: int | None = scheduler.config.get("original_inference_steps")
        """Of a consistency student, how many steps its training grid has; None for a teacher."""
        if isinstance(scheduler, FlowMatchLCMScheduler):  # its times depend on no grid
            self.original_inference_steps = JumpGrid(self.schedule).original_inference_steps

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of the network that hold nearly all of it."""
        return list(self.network.transformer_blocks)

    @property
    def decoder_prefixes(self) -> tuple[str, ...]:
        """How the names of the decoder's layers begin: of a transformer, those of the second half of its blocks."""
        count = len(self.network.transformer_blocks)
        return tuple(f"transformer_blocks.{index}." for index in range(count // 2, count))

    @property
    def feature_layers(self) -> dict[str, int]:
        """The layers that a critic of heads alone reads, in the order in which they run → channels of their output."""
        count = len(self.network.transformer_blocks)
        return {f"transformer_blocks.{k * count // 4 - 1}": self.network.inner_dim for k in (1, 2, 3)}

    def resize(self, resolution: int) -> None:
        """Train and draw at another size, of squares of that many pixels a side; the student is saved with it.

        Raises `UserError` for a size that the VAE or the network's positions do not allow.
        """
        factor = self.resolution // self.latent_shape[-1]
        if resolution % factor:
            raise UserError(f"got resolution {resolution}, expected a multiple of {factor}, as the VAE needs")
        side, places = resolution // factor, self.network.config.get("pos_embed_max_size")
        if places and side > places * self.network.config.patch_size:
            most = places * self.network.config.patch_size * factor
            raise UserError(f"got resolution {resolution}; this teacher has positions for {most} pixels at most")
        self.latent_shape, self.resolution = (self.latent_shape[0], side, side), resolution
        self.network.register_to_config(sample_size=side)

    @abstractmethod
    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        """The network's own output for what `pack` made of the latents, in the network's dtype."""

    def pack(self, x_t: Tensor) -> Tensor:
        """Latents (B, C, H, W) as the network takes them."""
        return x_t

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The network's output as the schedule's prediction, in the shape and with the sign that it has of x_t."""
        return output

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
        last = max(int(name.removeprefix("transformer_blocks.")) for name in self.feature_layers)
        return shortened(self.network, transformer_blocks=self.network.transformer_blocks[: last + 1])


def shortened(network: ModelMixin, **modules: nn.Module | None) -> ModelMixin:
    """A shallow copy of a network with some modules replaced: all others are the network's own, hooks included."""
    part = copy.copy(network)  # and not as it is compiled, which would call the whole network
    part._modules = network._modules | modules
    return part

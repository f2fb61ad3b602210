"""The U-Net family (`StableDiffusionPipeline`): SD1.x, SD2.x and their fine-tunes.

One frozen `UNet2DConditionModel` is the teacher and, with the LoRA "critic" on its decoder, the discriminator. With
`train="lora"` the student and its EMA are two more adapters on it; with `train="full"` they are two copies of their
own, which take ω through `time_cond_proj_dim` as stock pipelines feed it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from scott.backbones import adapters, unet_halves
from scott.backbones.adapters import adapter
from scott.backbones.base import Cond
from scott.diffusion import JumpGrid, schedule_from_config, to_x0
from scott.errors import UserError

GUIDANCE_EMBEDDING = 256  # width of the ω embedding, as in LCM
STUDENT_LAYERS = adapters.ATTENTION + adapters.CONVOLUTIONS + adapters.FEED_FORWARD
CRITIC_LAYERS = adapters.ATTENTION + adapters.CONVOLUTIONS


class UNetBackbone:
    """A `StableDiffusionPipeline` as scott sees it (see `backbones.base.Backbone`)."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.unet: UNet2DConditionModel = pipeline.unet
        self.vae, self.text_encoder, self.tokenizer = pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
        for part in (self.unet, self.vae, self.text_encoder):
            part.requires_grad_(False).eval()
        self.schedule = schedule_from_config(pipeline.scheduler.config)
        self.prediction = pipeline.scheduler.config.prediction_type
        size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.original_inference_steps: int | None = pipeline.scheduler.config.get("original_inference_steps")
        self.train_mode: str | None = None
        self.student_unet: UNet2DConditionModel | None = None
        self.target_unet: UNet2DConditionModel | None = None
        self.critic_head: nn.Conv2d | None = None

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: torch.device | str) -> "UNetBackbone":
        self.pipeline.to(device)
        for module in (self.student_unet, self.target_unet, self.critic_head):
            if module is not None:
                module.to(device)
        return self

    # --- text and images -------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond:
        """{"text": (B, L, D)}: the last hidden state, as the stock pipeline takes it."""
        limit = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        if not truncate:
            self._check_length(prompts, limit)
        return {"text": self.text_encoder(tokens.input_ids.to(self.device))[0]}

    def _check_length(self, prompts: Sequence[str], limit: int) -> None:
        for prompt, ids in zip(prompts, self.tokenizer(list(prompts)).input_ids, strict=True):
            if len(ids) > limit:
                raise UserError(
                    f"got a prompt of {len(ids) - 2} tokens, expected at most {limit - 2}; shorten it: {prompt[:80]!r}"
                )

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode((2 * pixels - 1).to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return posterior.mean * scale, posterior.std * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pixels / 2 + 0.5).clamp(0, 1)

    # --- the four models -------------------------------------------------------------------------------------

    def teacher(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self._x0(self.unet, x_t, t, cond)

    def student(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self._trained_x0("student", self.student_unet, x_t, t, cond)

    def target(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self._trained_x0("target", self.target_unet, x_t, t, cond)

    def _trained_x0(self, name: str, copy: UNet2DConditionModel | None, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert self.train_mode is not None, "add_student comes first"
        if copy is not None:
            return self._x0(copy, x_t, t, cond)
        with adapter(self.unet, name):
            return self._x0(self.unet, x_t, t, cond)

    def critic_features(self, x0: Tensor, t: Tensor, cond: Cond) -> unet_halves.Features:
        return unet_halves.encode(self.unet, x0, self.schedule.timestep(t), cond["text"])

    def critic_logits(self, features: unet_halves.Features) -> Tensor:
        assert self.critic_head is not None, "add_critic comes first"
        with adapter(self.unet, "critic"):
            return self.critic_head(unet_halves.decode(self.unet, features)).squeeze(1)

    def _x0(self, unet: UNet2DConditionModel, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        width = unet.config.time_cond_proj_dim
        omega = self._guidance_embedding(cond["guidance"], width) if width else None
        output = unet(x_t, self.schedule.timestep(t), cond["text"], timestep_cond=omega).sample
        return to_x0(self.prediction, output, x_t, self.schedule.alpha(t), self.schedule.sigma(t))

    def _guidance_embedding(self, omega: Tensor, width: int) -> Tensor:
        # stock pipelines embed ω − 1 ("cond + w (cond − uncond)", w = ω − 1): this line is where the forms meet.
        # They do it on the CPU and in float32, whatever the network's.
        embedding = self.pipeline.get_guidance_scale_embedding(omega.cpu() - 1, width)
        return embedding.to(self.device, self.unet.dtype)

    # --- what is trained -------------------------------------------------------------------------------------

    def add_student(self, train: str, *, rank: int = 64, alpha: float = 64.0) -> None:
        """Make the student and its EMA target, equal to the teacher: adapters ("lora") or copies ("full")."""
        if train == "full":
            self.student_unet, self.target_unet = (_with_guidance(self.unet) for _ in range(2))
            self.target_unet.requires_grad_(False)
        elif train == "lora":
            layers = adapters.lora_targets(self.unet, "", STUDENT_LAYERS)
            for name in ("student", "target"):
                adapters.add_adapter(self.unet, name, layers, rank, alpha)
            # LoRA's A is random: the target has to start from the student's own
            for mine, theirs in zip(self._lora("target").values(), self._lora("student").values(), strict=True):
                mine.data.copy_(theirs)
        else:
            raise UserError(f"got train {train!r}; expected lora or full")
        self.train_mode = train

    def add_critic(self, rank: int) -> None:
        """Make the critic: LoRA on the decoder's attention and convolutions, and a 1x1 head that starts at zero."""
        layers = adapters.lora_targets(self.unet, "up_blocks", CRITIC_LAYERS)
        adapters.add_adapter(self.unet, "critic", layers, rank, float(rank))
        self.critic_head = nn.Conv2d(self.unet.config.block_out_channels[0], 1, 1).to(self.device)
        for parameter in self.critic_head.parameters():
            nn.init.zeros_(parameter)

    def student_parameters(self) -> dict[str, nn.Parameter]:
        return self._lora("student") if self.student_unet is None else dict(self.student_unet.named_parameters())

    def target_parameters(self) -> dict[str, nn.Parameter]:
        return self._lora("target") if self.target_unet is None else dict(self.target_unet.named_parameters())

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        if self.critic_head is None:
            return {}
        head = {f"head.{name}": parameter for name, parameter in self.critic_head.named_parameters()}
        return adapters.adapter_parameters(self.unet, "critic") | head

    def _lora(self, name: str) -> dict[str, nn.Parameter]:
        return adapters.adapter_parameters(self.unet, name)

    # --- the student as a stock pipeline ---------------------------------------------------------------------

    def save_student(self, folder: Path, grid: JumpGrid) -> None:
        """Write the EMA student as a `StableDiffusionPipeline` folder with an `LCMScheduler` on the training grid."""
        config: dict[str, Any] = dict(self.pipeline.scheduler.config)
        shared = {key: config[key] for key in LCMScheduler().config if key in config and not key.startswith("_")}
        scheduler = LCMScheduler.from_config(
            shared,
            original_inference_steps=grid.original_inference_steps,
            set_alpha_to_one=True,
            clip_sample=False,
            thresholding=False,
        )
        parts = {**self.pipeline.components, "unet": self._target_network(), "scheduler": scheduler}
        StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)

    def _target_network(self) -> UNet2DConditionModel:
        if self.target_unet is not None:
            return self.target_unet
        unet = UNet2DConditionModel.from_config(self.unet.config)
        unet.load_state_dict(adapters.merged_state(self.unet, "target"))
        return unet


def _with_guidance(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of `unet` that takes an ω embedding; its projection starts at zero, so ω changes nothing yet."""
    config = {**unet.config, "time_cond_proj_dim": GUIDANCE_EMBEDDING}
    copy = UNet2DConditionModel.from_config(config).to(unet.device).eval()
    missing, unexpected = copy.load_state_dict(unet.state_dict(), strict=False)
    new = [key for key in missing if not key.startswith("time_embedding.cond_proj")]
    if new or unexpected:
        raise RuntimeError(f"copy of the teacher lacks {new} and has {unexpected} too many")
    if unet.config.time_cond_proj_dim is None:
        nn.init.zeros_(copy.time_embedding.cond_proj.weight)
    return copy

"""Latent consistency distillation as the open training scripts write it, for comparison: three whole networks.

A frozen teacher, a student that is trained whole and its EMA each have their own weights; the teacher is called for
the caption and for the empty prompt apart; images and captions are encoded inside the loop.
"""

import copy

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from scott.training.config import DistillConfig
from scott.training.draws import Draws


class PlainLCM:
    """Takes over a pipeline with an ε-predicting U-Net. The guidance ω is a single one, so no network takes it."""

    def __init__(self, pipeline: StableDiffusionPipeline, config: DistillConfig) -> None:
        self.pipeline, self.config = pipeline, config
        self.vae, self.text_encoder, self.tokenizer = pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
        self.teacher = pipeline.unet.requires_grad_(False)
        self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        self.target = copy.deepcopy(self.teacher)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.double()
        self.empty = self.encode_text([""])

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids)[0]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor, noise: Tensor) -> Tensor:
        posterior = self.vae.encode(2 * pixels - 1).latent_dist
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def loss(self, pixels: Tensor, prompts: list[str], draws: Draws) -> Tensor:
        """The mean squared distance of the student at t_n to its EMA where one DDIM step of the teacher leads."""
        text = self.encode_text(prompts)
        latents = self.encode_images(pixels, draws.latent)
        t_n, t_m = draws.t_n, draws.t_n - self.config.jump
        alpha_n, sigma_n = self.levels(t_n)
        alpha_m, sigma_m = self.levels(t_m)
        x_n = alpha_n * latents + sigma_n * draws.noise
        prediction = self.consistent(self.student, x_n, t_n, text)
        with torch.no_grad():
            conditional = self.teacher(x_n, t_n, encoder_hidden_states=text).sample
            empty = self.empty.expand(len(text), -1, -1)
            unconditional = self.teacher(x_n, t_n, encoder_hidden_states=empty).sample
            omega = draws.omega[:, None, None, None]
            epsilon = unconditional + omega * (conditional - unconditional)
            x_0 = (x_n - sigma_n * epsilon) / alpha_n
            x_m = alpha_m * x_0 + sigma_m * epsilon
            target = self.consistent(self.target, x_m, t_m, text)
        return F.mse_loss(prediction, target)

    def step(self, pixels: Tensor, prompts: list[str], draws: Draws) -> None:
        loss = self.loss(pixels, prompts, draws)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = self.config.ema_decay
        with torch.no_grad():
            for mine, theirs in zip(self.target.parameters(), self.student.parameters(), strict=True):
                mine.mul_(decay).add_(theirs, alpha=1 - decay)

    def consistent(self, unet: torch.nn.Module, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """c_skip x_t + c_out x̂0: the network with the boundary condition."""
        alpha_t, sigma_t = self.levels(t)
        epsilon = unet(x_t, t.clamp(min=0), encoder_hidden_states=text).sample
        x_0 = (x_t - sigma_t * epsilon) / alpha_t
        scaled = 10.0 * t.clamp(min=0)[:, None, None, None]
        c_skip = 0.25 / (scaled**2 + 0.25)
        c_out = scaled / (scaled**2 + 0.25) ** 0.5
        return c_skip * x_t + c_out * x_0

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t, (B, 1, 1, 1); clean data before time 0."""
        alpha_bar = torch.where(t < 0, torch.ones((), dtype=torch.float64), self.alphas_cumprod[t.clamp(min=0)])
        alpha_bar = alpha_bar[:, None, None, None]
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

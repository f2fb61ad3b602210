"""A step off its start, and the same written out by hand, one network call at a time."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch

from scott.data.batch import Batch
from scott.diffusion import ConsistencyFunction
from scott.training.config import DistillConfig
from scott.training.draws import Draws
from scott.training.step import Distillation, Engine

B = 4


def make_config(**changes):
    base = {"teacher": "t", "data": "d", "out": Path("x"), "train": "full", "guidance_min": 2.0, "guidance_max": 8.0}
    if changes.get("train") == "lora":
        base |= {"guidance_min": 4.0, "guidance_max": 4.0}
    return DistillConfig(**(base | changes))


class Made(NamedTuple):
    """The gradients that a step left, in the order of the parameters, and its terms."""

    student: tuple
    critic: tuple
    terms: dict


def gradients(parameters):
    """What `parameters` have in `grad`, which is taken away."""
    made = tuple(p.grad for p in parameters.values())
    for parameter in parameters.values():
        parameter.grad = None
    return made


class Step:
    """A backbone off its start, a batch and draws."""

    def __init__(self, make_backbone, perturb, config, family="sd1"):
        self.config = config
        critic = "lora" if config.critic == "none" else config.critic
        self.backbone = make_backbone(config.train, critic_rank=4, family=family, critic=critic)
        for seed, parameters in enumerate(
            (self.backbone.student_parameters(), self.backbone.target_parameters(), self.backbone.critic_parameters())
        ):
            perturb(parameters, seed)
        generator = torch.Generator().manual_seed(0)
        shape = (B, *self.backbone.latent_shape)
        mean, std = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
        self.batch = Batch(mean, std, self.backbone.encode_prompts(["a cat", "dog", "", "cat"]))
        self.distillation = Distillation.of(self.backbone, config)
        self.solver, self.grid = self.distillation.solver, self.distillation.grid
        self.uncond = self.distillation.uncond
        self.draws = Draws.make(mean.shape, self.grid, config, torch.Generator().manual_seed(1))

    def run(self, loss_scale=1.0, mark=lambda part: None, **changes):
        config, backbone = dataclasses.replace(self.config, **changes), self.backbone
        terms = self.add(config, scale=lambda loss: loss_scale * loss, mark=mark)
        critic = gradients(backbone.critic_parameters()) if config.has_critic else ()
        return Made(gradients(backbone.student_parameters()), critic, terms)

    def add(self, config=None, **options):
        """One step's gradients, added to what is there; its terms."""
        distillation = dataclasses.replace(self.distillation, config=config or self.config)
        return distillation.step(self.batch, self.draws, Engine(**options))

    # --- the same, by hand ---

    @property
    def cond(self):
        return self.batch.cond | {"guidance": self.draws.omega}

    @property
    def x0(self):
        return self.batch.mean + self.batch.std * self.draws.latent

    def at(self, values, t):
        return values[t + 1].float().view(-1, 1, 1, 1)

    def noised(self, x0, noise, t):
        alpha, sigma = ladder(self.backbone)
        return self.at(alpha, t) * x0 + self.at(sigma, t) * noise

    def student(self):
        f = ConsistencyFunction(self.backbone.student, self.backbone.schedule)
        return f(self.noised(self.x0, self.draws.noise, self.draws.t_n), self.draws.t_n, self.cond)

    @torch.no_grad()
    def target(self):
        """Two teacher calls a sub-step instead of one of twice the batch."""

        def guided(x, t, cond):
            uncond = {"text": self.uncond["text"].expand(B, -1, -1)}
            nothing = self.backbone.teacher(x, t, uncond)
            omega = self.draws.omega.view(-1, 1, 1, 1)
            return nothing + omega * (self.backbone.teacher(x, t, cond) - nothing)

        t_n = self.draws.t_n
        t_m = t_n - self.config.jump
        x_n = self.noised(self.x0, self.draws.noise, t_n)
        h = self.config.substeps
        x_m = self.solver.jump(guided, x_n, t_n, t_m, h, self.batch.cond, noises=self.draws.walk)
        f = ConsistencyFunction(self.backbone.target, self.backbone.schedule)
        return f(x_m, t_m, self.cond)

    def weight(self):
        if self.config.weighting == "uniform":
            return torch.ones(B, 1, 1, 1)
        sigma = ladder(self.backbone)[1]
        every = 1 / sigma[self.config.jump // self.config.substeps :: self.config.jump // self.config.substeps] ** 2
        return 1 / self.at(sigma, self.draws.t_n) ** 2 / every.mean()

    def logits(self, x0, t):
        """The critic as one whole U-Net with its adapter on: what conv_out would be given, through the head."""
        seen, unet, text = [], self.backbone.network, self.batch.cond["text"]
        if self.config.critic == "unconditional":
            t, text = torch.full_like(t, -1), self.uncond["text"].expand(B, -1, -1)
        hook = unet.conv_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with self.backbone.adapters.use("critic"):
            unet(x0, t.clamp(min=0), text)
        hook.remove()
        return self.backbone.heads[0](seen[0]).squeeze(1)

    def critic_inputs(self, fake):
        t_fake = self.draws.t_n
        t_real = t_fake if self.config.critic_input == "matched" else torch.full_like(t_fake, -1)
        if self.config.critic_input == "clean":
            return fake, t_real, self.x0, t_real
        if self.config.critic_input != "renoised":
            return fake, t_fake, self.x0, t_real
        t = self.draws.critic_t
        noise = self.draws.critic_noise
        return self.noised(fake, noise[0], t), t, self.noised(self.x0, noise[1], t), t


def ladder(backbone):
    """α and σ from clean data (index 0) to t = 999, by SD's betas written out."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])
    return bar.sqrt(), (1 - bar).sqrt()

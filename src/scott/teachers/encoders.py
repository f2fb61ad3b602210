"""What stands before and behind the network: text encoders, the VAE, and how its latents are normalised."""

import gc
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.training_utils import offload_models
from torch import Tensor, nn
from torch.nn import functional as F

from scott.errors import UserError
from scott.teachers import Cond


@dataclass(frozen=True)
class LatentNormaliser:
    """x = (z − mean) · scale of a VAE's latents z (B, C, H, W), each for all channels or (1, C, 1, 1).

    With `patch` p, z is folded first, p x p places into channels: (B, C p², H / p, W / p). The VAEs of
    the families here have one mean and scale; means by channel, and folded latents under a batch norm (FLUX.2), are
    read as diffusers' pipelines read them, also for a fine-tune's VAE.
    """

    mean: float | Tensor
    scale: float | Tensor
    patch: int = 1

    @classmethod
    def of(cls, vae: ModelMixin) -> "LatentNormaliser":
        """What a VAE's config says (a scaling and a shift factor, or means and deviations by channel), or, of one that
        has it (FLUX.2), the statistics of its batch norm. Raises ValueError where a scale is none."""
        config, norm = vae.config, getattr(vae, "bn", None)
        if norm is not None:
            mean, std = norm.running_mean, (norm.running_var + norm.eps).sqrt()
            return cls(mean.view(1, -1, 1, 1), 1 / std.view(1, -1, 1, 1), config.patch_size[0])
        scale = float(config.get("scaling_factor", 1) or 0)  # not every class has one
        if not 0 < scale < math.inf:
            raise ValueError(f"the VAE has scaling_factor {config.scaling_factor}; expected one above 0")
        if getattr(config, "latents_mean", None) is not None:
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
            if not bool(mean.isfinite().all() & (std > 0).all() & std.isfinite().all()):
                raise ValueError("the VAE has latents_mean or latents_std that are none; expected deviations above 0")
            return cls(mean, scale / std)
        return cls(float(getattr(config, "shift_factor", None) or 0), scale)

    def normalise(self, z: Tensor) -> Tensor:
        return (self._fold(z) - _like(self.mean, z)) * _like(self.scale, z)

    def deviation(self, std: Tensor) -> Tensor:
        """That of x, given that of z."""
        return self._fold(std) * _like(self.scale, std)

    def restore(self, x: Tensor) -> Tensor:
        """z of x."""
        z = x / _like(self.scale, x) + _like(self.mean, x)
        return z if self.patch == 1 else F.pixel_shuffle(z, self.patch)

    def _fold(self, z: Tensor) -> Tensor:
        return z if self.patch == 1 else F.pixel_unshuffle(z, self.patch)


class Encoders(ABC):
    """The text encoders and the VAE of a pipeline.

    A family says what its text conditioning is: `_encode_prompts`, and where they are not the usual ones
    `_unconditional` and `size_cond`.
    """

    pixels_at_once: ClassVar[int] = 2**18
    """Of pictures in one pass of the VAE, which holds about a gigabyte for so many: one of 512 px or more, 64 of 64."""
    size_names: ClassVar[tuple[str, ...]] = ()
    """Which of a condition's values tell the network the picture's size."""
    in_turn: bool = False
    """Whether a device holds one text encoder at a time."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.vae = pipeline.vae
        self.normaliser = LatentNormaliser.of(self.vae)
        self._turns: list[UserCpuOffloadHook] = []
        self._kept: Mapping[str, Callable[[], Cond]] = {}
        self._nothing: Cond | None = None  # until `keep_prompts`
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()

    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond:
        """Text conditioning of B prompts.

        Raises `UserError` for none, for a text in the place of a list, and, unless they are to be cut, for one that is
        longer than the text encoder takes.
        """
        if isinstance(prompts, str) or len(prompts) == 0:
            raise UserError(f"got prompts {prompts!r:.40}; expected a list of one or more")
        if self._nothing is None:
            return self._encode_prompts(prompts, truncate)
        conds = [self._kept[prompt]() for prompt in prompts]
        cond = {name: torch.cat([cond[name] for cond in conds]).to(self.device) for name in conds[0]}
        sizes = {name: self._nothing[name].repeat(len(prompts), 1).to(self.device) for name in self.size_names}
        return cond | sizes

    @abstractmethod
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond: ...

    def _encoded(self, prompts: Sequence[str], tokens: int, **options: Any) -> tuple[Any, ...]:
        """What the pipeline makes of prompts of at most so many tokens, without guidance."""
        options |= {"do_classifier_free_guidance": False, "max_sequence_length": tokens}
        return self.pipeline.encode_prompt(list(prompts), device=self.encoding_device, **options)

    def blank(self, batch: int, **shapes: tuple[int, ...]) -> Cond:
        """Conditions of these shapes and no content, for a backbone on the meta device."""
        dtype = self.pipeline.text_encoder.dtype
        return {name: torch.empty(batch, *shape, dtype=dtype, device="meta") for name, shape in shapes.items()}

    def unconditional(self, prompt: str | None = None) -> Cond:
        """The condition guidance pushes away from, with batch 1: a negative prompt, or the empty one."""
        if self._nothing is None:
            return self._unconditional(prompt)
        return {name: value.to(self.device) for name, value in self._nothing.items()}

    def _unconditional(self, prompt: str | None) -> Cond:
        return self._encode_prompts([prompt or ""], truncate=False)

    def size_cond(self, height: int, width: int) -> Cond:
        """The values of `size_names` for an uncropped picture of that many pixels, with batch 1."""
        return {}

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network computes."""

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def factor(self) -> int:
        """Pixels a side of one place of the latents."""
        return self.pipeline.vae_scale_factor * self.normaliser.patch

    def place_encoders(self, device: torch.device | str) -> None:
        """Move text encoders and VAE, and not the network.

        Text encoders that are held `in_turn` come when they are used, and go back to the CPU when the next one is.
        """
        while self._turns:
            self._turns.pop().remove()
        self.vae.to(device)
        encoders = self.text_encoders
        if not self.in_turn or len(encoders) < 2 or torch.device(device).type == "cpu":
            for encoder in encoders:
                encoder.to(device)
            return
        for encoder in encoders:
            last = self._turns[-1] if self._turns else None
            self._turns.append(cpu_offload_with_hook(encoder, torch.device(device), last)[1])
        self._turns[0].hook.prev_module_hook = self._turns[-1]  # the next batch begins with the first

    def keep_prompts(self, conditions: Mapping[str, Callable[[], Cond]]) -> None:
        """Give the text encoders' memory back: from now on only these prompts have a condition.

        It is read each time, with batch 1; the size in it is the backbone's. `unconditional()` stays, without a prompt.
        """
        self._kept, self._nothing = conditions, self.unconditional()
        self._turns.clear()
        for name in self.pipeline.components:
            if name.startswith("text_encoder"):
                setattr(self.pipeline, name, None)
        gc.collect()  # one that took turns refers to itself, by the forward pass that its hook put back

    @property
    def encoding_device(self) -> torch.device:
        """Where the text encoders compute."""
        if self._turns:
            return torch.device(self._turns[0].hook.execution_device)
        return next(self.text_encoders[0].parameters()).device

    @property
    def text_encoders(self) -> list[nn.Module]:
        parts = self.pipeline.components.items()
        return [part for name, part in parts if name.startswith("text_encoder") and part is not None]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the normalised latents (B, C, H, W) of pixels (B, 3, H', W') in [0, 1].

        Raises `UserError` for pixels in whole numbers.
        """
        if not pixels.is_floating_point():
            raise UserError(f"got pixels in {pixels.dtype}; expected floating point in [0, 1]")
        parts = (2 * pixels - 1).to(self.vae.device, self.vae.dtype).split(self._at_once(*pixels.shape[-2:]))
        mean, std = map(torch.cat, zip(*map(self._encode, parts), strict=True))
        return self.normaliser.normalise(mean), self.normaliser.deviation(std)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H', W') in [0, 1] of normalised latents, on whose device the VAE is for as long."""
        with offload_models(self.vae, device=latents.device, offload=self.vae.device != latents.device):
            parts = latents.to(self.vae.dtype).split(
                self._at_once(*(self.factor * side for side in latents.shape[-2:]))
            )
            pixels = torch.cat([self._decode(self.normaliser.restore(part)) for part in parts])
        return (pixels / 2 + 0.5).clamp(0, 1)

    def _at_once(self, height: int, width: int) -> int:
        """Pictures of a size that go through the VAE together."""
        return max(1, self.pixels_at_once // (height * width))

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's own latents of pixels in [-1, 1]."""
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean, posterior.std

    def _decode(self, z: Tensor) -> Tensor:
        """Pixels in [-1, 1] of the VAE's own latents."""
        return self.vae.decode(z).sample

    def _check_length(
        self,
        prompts: Sequence[str],
        tokenizer: Any,
        limit: int,
        *,
        special: int,
        written: Sequence[str] | None = None,
    ) -> None:
        """Raise `UserError` for a prompt of more than `limit` tokens, `special` of them not its own; of prompts in a
        template, as they are `written` there."""
        for prompt, ids in zip(prompts, tokenizer(list(written or prompts)).input_ids, strict=True):
            if len(ids) > limit:
                raise UserError(
                    f"got a prompt of {len(ids) - special} tokens, expected at most {limit - special}; "
                    f"shorten it: {prompt[:80]!r}"
                )

    def _check_chat(self, prompts: Sequence[str], limit: int, *, thinking: bool) -> None:
        """`_check_length` of prompts in a language model's own template, as pipelines put them."""
        tokenizer = self.pipeline.tokenizer
        chats = [[{"role": "user", "content": prompt}] for prompt in ("", *prompts)]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinking}
        empty, *written = [tokenizer.apply_chat_template(chat, **options) for chat in chats]
        self._check_length(prompts, tokenizer, limit, special=len(tokenizer(empty).input_ids), written=written)


def _like(value: float | Tensor, x: Tensor) -> float | Tensor:
    return value.to(x) if isinstance(value, Tensor) else value

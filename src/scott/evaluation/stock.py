"""Any text-to-image pipeline of diffusers as a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scott.errors import UserError, first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass
class PipelineSampler:
    """A stock pipeline's own call; the network's evaluations an image are counted while it draws."""

    pipeline: DiffusionPipeline
    steps: int
    guidance: float | None
    """What the pipeline calls `guidance_scale`; None leaves it the pipeline's default."""
    network_calls: int = field(default=0, init=False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        rows = 0

        def count(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            nonlocal rows
            rows += len(output[0])

        hook = self.network.register_forward_hook(count, with_kwargs=True)
        scale = {} if self.guidance is None else {"guidance_scale": self.guidance}
        try:
            images = self.pipeline(
                list(prompts),
                num_inference_steps=self.steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
                **scale,
            ).images
        finally:
            hook.remove()
        self.network_calls = round(rows / len(prompts))
        return images.float()

    @property
    def network(self) -> Any:
        return getattr(self.pipeline, "unet", None) or self.pipeline.transformer

    @property
    def resolution(self) -> int:
        """Pixels a side, as the pipeline draws by default."""
        return self.network.config.sample_size * self.pipeline.vae_scale_factor


def load_pipeline(
    name: str, scheduler: str | None, lora: str | None, dtype: torch.dtype, device: torch.device
) -> DiffusionPipeline:
    """A folder or hub id, with another scheduler of diffusers' and a LoRA.

    Raises `UserError` where one of them is not there.
    """
    import diffusers

    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(name, dtype=dtype)
        if lora is not None:
            pipeline.load_lora_weights(lora)
    except (OSError, ValueError, AttributeError) as error:
        what = f"{name} with {lora}" if lora else name
        raise UserError(f"{what} does not open as a pipeline: {first_line(error)}") from None
    if scheduler is not None:
        made: Any = getattr(diffusers, scheduler, None)
        if not hasattr(made, "from_config"):
            raise UserError(f"diffusers has no scheduler {scheduler}; expected one such as DPMSolverMultistepScheduler")
        pipeline.scheduler = made.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)

"""Any text-to-image pipeline of diffusers as a sampler."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scott.errors import UserError, first_line
from scott.teachers.family import DEFAULT_SIZE, Family
from scott.teachers.layout import family_class

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass
class PipelineSampler:
    """A stock pipeline's own call; the network's evaluations an image are counted while it draws."""

    pipeline: DiffusionPipeline
    steps: int
    guidance: float | None
    """ω, in the form uncond + ω (cond − uncond), or as the network takes it; None leaves the pipeline's default."""
    network_calls: int = field(default=0, init=False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        rows = 0

        def count(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            nonlocal rows
            rows += len(output[0])

        hook = self.network.register_forward_hook(count, with_kwargs=True)
        try:
            with seeded(seed, self.pipeline.device) as generator:
                images = self.pipeline(
                    prompt=list(prompts),
                    num_inference_steps=self.steps,
                    generator=generator,
                    output_type="pt",
                    height=self.resolution,
                    width=self.resolution,
                    **stock_options(self.pipeline, self.guidance),
                ).images
        finally:
            hook.remove()
        self.network_calls = round(rows / len(prompts))
        return images.float()

    @property
    def network(self) -> Any:
        return network_of(self.pipeline)

    @property
    def resolution(self) -> int:
        """Pixels a side: what the network's config says it is for, else those of `DEFAULT_SIZE` places, as pipelines
        have it."""
        size = self.network.config.get("sample_size") or DEFAULT_SIZE
        return (size if isinstance(size, int) else size[0]) * self.pipeline.vae_scale_factor


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """torch's own generators, of the CPU and the device, at a seed, and as they were when the block ends; the CPU's.

    Pipelines of most flows hand their scheduler no generator, which then draws its noise from the device's own.
    """
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        yield torch.manual_seed(seed)


def network_of(pipeline: DiffusionPipeline) -> Any:
    """Its U-Net or transformer; None where it has neither."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def stock_options(pipeline: DiffusionPipeline, omega: float | None) -> dict[str, Any]:
    """How a pipeline is asked for ω, and for no other size than the one it is given."""
    binned = "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters
    options = {"use_resolution_binning": False} if binned else {}
    return options | ({} if omega is None else family_class(type(pipeline).__name__).guidance_options(omega))


def default_guidance(pipeline: DiffusionPipeline) -> float | None:
    """ω of the pipeline's own call; None where it has another form."""
    scale = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
    is_usual = family_class(type(pipeline).__name__).guidance_options is Family.guidance_options
    return scale.default if scale and is_usual else None


def takes_omega(pipeline: DiffusionPipeline) -> bool:
    """Whether the network has an input for ω, as FLUX's and a few-step U-Net's may."""
    config = network_of(pipeline).config
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def drawn_guidance(pipeline: DiffusionPipeline, omega: float) -> float:
    """What a pipeline makes of ω: where the network does not take it, guidance of 1 or less is none, which is ω = 1."""
    return omega if takes_omega(pipeline) else max(omega, 1.0)


def load_pipeline(
    name: str, scheduler: str | None, lora: str | None, dtype: torch.dtype, device: torch.device
) -> DiffusionPipeline:
    """A folder or hub id, with another scheduler of diffusers' and a LoRA.

    Raises `UserError` where one of them is not there, or the scheduler, made of the pipeline's config, is for networks
    of another kind.
    """
    import diffusers

    if lora is not None and lora.endswith(".safetensors") and not Path(lora).is_file():
        raise UserError(f"there is no file {lora}; give --lora a file, or the hub id of a LoRA")
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(name, dtype=dtype)
        if lora is not None:
            pipeline.load_lora_weights(lora)
    except (OSError, ValueError, AttributeError) as error:
        what = f"{name} with {lora}" if lora else name
        raise UserError(f"{what} does not open as a pipeline: {first_line(error)}") from None
    accepted = inspect.signature(pipeline.__call__).parameters
    if network_of(pipeline) is None or "prompt" not in accepted or "num_frames" in accepted:
        raise UserError(f"{name} is a {type(pipeline).__name__}; expected a pipeline that draws pictures of prompts")
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it draws black what it takes offence at, and is not what is measured
    if scheduler is not None:
        made: Any = getattr(diffusers, scheduler, None)
        is_one = isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)
        if not is_one:
            raise UserError(f"diffusers has no scheduler {scheduler}; expected one such as DPMSolverMultistepScheduler")
        own, pipeline.scheduler = pipeline.scheduler, made.from_config(pipeline.scheduler.config)
        if _is_of_flows(own) != _is_of_flows(pipeline.scheduler):
            kinds = "flow", "diffusion"
            kind, other = kinds if _is_of_flows(own) else kinds[::-1]
            raise UserError(
                f"{name} is a {kind}, and {scheduler}, by its config, is for a {other}; expected one for a {kind}"
            )
    vae: Any = getattr(pipeline, "vae", None)
    if hasattr(vae, "enable_slicing"):
        vae.enable_slicing()  # which decodes one picture at a time: 64 of 1024 px would hold 200 GB
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _is_of_flows(scheduler: Any) -> bool:
    """Whether a scheduler draws with networks of flows: those of one kind give networks of the other no such times."""
    has = "use_flow_sigmas" in inspect.signature(type(scheduler).__init__).parameters
    return type(scheduler).__name__.startswith("FlowMatch") or (has and bool(scheduler.config.get("use_flow_sigmas")))

"""Any text-to-image pipeline of diffusers as a sampler."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scott.errors import UserError, first_line
from scott.files import read_object
from scott.sampling import check_finite
from scott.teachers.family import DEFAULT_SIZE, Family
from scott.teachers.layout import family_class
from scott.teachers.load import complaining_of
from scott.teachers.lora_files import held_layers, load_lora, lora_path, network_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

OF_SCHEDULERS = (ValueError, TypeError, AttributeError, LookupError)
"""What those of diffusers raise that a pipeline cannot use, or that cannot make so many steps."""


@dataclass
class PipelineSampler:
    """A stock pipeline's own call; the network's evaluations an image are counted while it draws."""

    pipeline: DiffusionPipeline
    steps: int
    guidance: float | None
    """ω, in the form uncond + ω (cond − uncond), or as the network takes it; None leaves the pipeline's default."""
    side: int | None = None
    """Of the pictures, in pixels; what the network's config says it is for, if left out."""
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
        except OF_SCHEDULERS as error:
            scheduler = type(self.pipeline.scheduler).__name__
            steps = f"{self.steps} step{'s'[: self.steps - 1]}"
            what = f"{type(self.pipeline).__name__} does not draw in {steps} by {scheduler}"
            raise UserError(f"{what}: {first_line(error)}") from None
        finally:
            hook.remove()
        self.network_calls = round(rows / len(prompts))
        return check_finite(images.float())

    @property
    def network(self) -> Any:
        return network_of(self.pipeline)[1]

    @property
    def resolution(self) -> int:
        """Pixels a side: `side`, what the network's config says it is for, or the pipeline, or else those of
        `DEFAULT_SIZE` places, as most pipelines have it."""
        if self.side:
            return self.side
        own = getattr(self.pipeline, "default_sample_size", None)
        size = self.network.config.get("sample_size") or own or DEFAULT_SIZE
        return (size if isinstance(size, int) else size[0]) * self.pipeline.vae_scale_factor


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """torch's own generators, of the CPU and the device, at a seed, and as they were when the block ends; the CPU's.

    Pipelines of most flows hand their scheduler no generator, which then draws its noise from the device's own.
    """
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        yield torch.manual_seed(seed)


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
    config = network_of(pipeline)[1].config
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def drawn_guidance(pipeline: DiffusionPipeline, omega: float) -> float:
    """What a pipeline makes of ω: where the network does not take it, guidance of 1 or less is none, which is ω = 1."""
    return omega if takes_omega(pipeline) else max(omega, 1.0)


def load_pipeline(
    name: str, scheduler: str | None, lora: str | None, dtype: torch.dtype, device: torch.device
) -> DiffusionPipeline:
    """A folder or hub id, with a LoRA and the scheduler that lies beside it, and with another one of diffusers'.

    Raises `UserError` where one of them is not there, the LoRA is of another kind of pipeline, or the scheduler, made
    of the config of the one before, is for networks of another kind.
    """
    import diffusers

    file = None if lora is None or _is_on_hub(lora) else lora_path(Path(lora))
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{name} does not open as a pipeline: {first_line(error)}") from None
    accepted = inspect.signature(pipeline.__call__).parameters
    draws = network_of(pipeline)[1] is not None and hasattr(pipeline, "vae_scale_factor")
    if not draws or "prompt" not in accepted or "num_frames" in accepted:
        raise UserError(
            f"{name} is a {type(pipeline).__name__}; expected a pipeline that draws pictures of prompts by a VAE"
        )
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it draws black what it takes offence at, and is not what is measured
    if lora is not None:
        _put(pipeline, lora, file)
    if scheduler is not None:
        made: Any = getattr(diffusers, scheduler, None)
        is_one = isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)
        if not is_one:
            raise UserError(f"diffusers has no scheduler {scheduler}; expected one such as DPMSolverMultistepScheduler")
        own: Any = pipeline.scheduler
        with complaining_of(f"{scheduler} of {name}", "made"):
            pipeline.scheduler = made.from_config(own.config, **_shift(own.config, made))
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


def folder_of(lora: str) -> Path:
    """That a LoRA file lies in, or that is named itself."""
    return Path(lora) if Path(lora).is_dir() else Path(lora).parent


def scheduler_beside(lora: str) -> Path | None:
    """The folder of the scheduler that an export has beside its LoRA; None of a LoRA without."""
    folder = folder_of(lora)
    found = folder / "scheduler"
    is_there = (found / "scheduler_config.json").is_file() and not (folder / "model_index.json").is_file()
    return found if is_there else None


def _is_on_hub(lora: str) -> bool:
    return not Path(lora).exists() and not lora.endswith(".safetensors")


def _put(pipeline: Any, lora: str, file: Path | None) -> None:
    """A LoRA on a pipeline, of a file or of the hub, with the scheduler beside it.

    Raises `UserError` as `load_lora`, and where diffusers takes nothing of what is on the hub.
    """
    import diffusers

    if file is not None:
        load_lora(pipeline, file)
    else:
        with complaining_of(lora):
            pipeline.load_lora_weights(lora)
        if not held_layers(pipeline):
            raise UserError(
                f"{lora} is a LoRA of another kind of pipeline; nothing of it goes into {type(pipeline).__name__}"
            )
    if beside := scheduler_beside(lora):
        with complaining_of(beside):
            kind = read_object(beside / "scheduler_config.json")["_class_name"]
            pipeline.scheduler = getattr(diffusers, kind).from_pretrained(beside)


def _shift(config: Mapping[str, Any], made: type) -> dict[str, float]:
    """What a flow's time is shifted by, as another scheduler's config calls it."""
    accepted = inspect.signature(made).parameters
    names = ("flow_shift", "shift"), ("shift", "flow_shift")
    return {new: config[old] for old, new in names if old in config and new in accepted and new not in config}


def _is_of_flows(scheduler: Any) -> bool:
    """Whether a scheduler draws with networks of flows: those of one kind give networks of the other no such times."""
    has = "use_flow_sigmas" in inspect.signature(type(scheduler).__init__).parameters
    return type(scheduler).__name__.startswith("FlowMatch") or (has and bool(scheduler.config.get("use_flow_sigmas")))

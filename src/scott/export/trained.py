"""What is exported: a trained student in memory, what it has to draw, and the folder an export appears in."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchLCMScheduler, LCMScheduler
from peft.tuners.lora import LoraLayer
from torch import Tensor

from scott.data.locks import locked
from scott.diffusion import FlowSchedule, JumpGrid, NoiseSchedule
from scott.diffusion.flow import FEW_STEP_SHIFT
from scott.errors import UserError
from scott.export.info import StudentInfo
from scott.files import new_folder
from scott.mini import embedded
from scott.samplers import StudentSampler
from scott.solvers.base import LAM_NOISE
from scott.teacher_source import TeacherSource
from scott.teachers import LatentBackbone
from scott.teachers.fingerprint import network_fingerprint
from scott.training.config import FEW_STEPS, DistillConfig

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 0.2}
"""Largest difference between a latent of the student in memory and of the one read back, over the latent's standard
deviation; both drawn on the CPU in fp32. Of a file in fp16 (11 bits) or bf16 (8) it is that of a LoRA's factors, or of
an ω built into a bias: whole networks in memory are rounded too (`round_student`)."""
PROMPT = "a cat"
"""What an export is compared on."""
SEED = 0


@dataclass(frozen=True)
class Trained:
    """A run's student: the target of an fp32 backbone on the CPU."""

    backbone: LatentBackbone
    config: DistillConfig
    updates: int
    teacher_network: dict[str, str] | None = None
    """Fingerprint of the network that was distilled, where `backbone` has it no more."""

    @cached_property
    def grid(self) -> JumpGrid:
        return self.config.make_grid(self.backbone.schedule)

    @cached_property
    def info(self) -> StudentInfo:
        config, count = self.config, self.grid.original_inference_steps
        backbone, is_lora = self.backbone, config.train == "lora"
        return StudentInfo(
            pipeline=type(backbone.pipeline).__name__,
            scheduler=type(few_step_scheduler(self.backbone, self.grid)).__name__,
            train=config.train,
            updates=self.updates,
            guidance_min=config.guidance_min,
            guidance_max=config.guidance_max,
            takes_guidance=backbone.takes_guidance and (backbone.teacher_calls == 1 or not is_lora),
            original_inference_steps=count,
            times={str(steps): network_times(self.grid, steps) for steps in FEW_STEPS if steps <= count},
            lora_rank=config.lora_rank if is_lora else None,
            lora_alpha=config.alpha if is_lora else None,
            lora_variant=config.lora_variant,
            only_these_steps=config.times == "needed",
            drawn_guidance=config.drawn_guidance,
            resolution=backbone.resolution if backbone.own_size else config.resolution,
            prediction=backbone.schedule.prediction_type,
            base=self.teacher_network or network_fingerprint(self.backbone.network),
        )

    def latents(self) -> Tensor:
        """The student's own 2-step latent of `PROMPT`, which every export has to draw again."""
        return draw_latents(self.backbone, self.grid, self.info.guidance)

    def expected(self) -> "Expected":
        """Raises `UserError` where the student draws what is not finite, which no reader can draw again."""
        backbone, layers = self.backbone, self.backbone.adapters.layers.items()
        if not bool((latents := self.latents()).isfinite().all()):
            raise UserError(
                f"the student of step {self.updates} draws what is not finite: its training diverged; begin anew in "
                "another --out with a lower --learning-rate"
            )
        return Expected(
            info=self.info,
            teacher=embedded.teacher_source(self.config),
            scheduler=few_step_scheduler(backbone, self.grid),
            part=backbone.part,
            resolution=backbone.resolution,
            latents=latents,
            updates={name: Factors.of(layer, "target") for name, layer in layers if "target" in layer.lora_A},
            amplification=amplification(backbone),
        )


@dataclass(frozen=True)
class Expected:
    """What an export is held against once it is read back, when the student itself is out of memory."""

    info: StudentInfo
    teacher: TeacherSource
    scheduler: LCMScheduler | FlowMatchLCMScheduler
    part: str
    resolution: int
    latents: Tensor
    updates: "dict[str, Factors]"
    """Of a LoRA student: adapted layer → its update."""
    amplification: float = 1.0

    def tolerance(self, dtype: torch.dtype = torch.float32) -> float:
        """`TOLERANCE` of a file's dtype on this student's schedule."""
        return min(0.5, TOLERANCE[dtype] * self.amplification)


def amplification(backbone: LatentBackbone) -> float:
    """How much more the network's rounding counts in x0 than on Stable Diffusion's schedule, 1 at least.

    x0 = (x − σ ε) / α has λ times that of ε: 157 at PixArt's last time, 14.6 there. Of v, x0 and flow it has no more.
    """
    if backbone.prediction != "epsilon":
        return 1.0
    return max(1.0, backbone.schedule.lam(backbone.schedule.last_time).item() / LAM_NOISE)


@dataclass(frozen=True)
class Factors:
    """s B A, the update of a layer's weight: A (r, in, ...), B (out, r, ...)."""

    a: Tensor
    b: Tensor
    scale: float

    @classmethod
    def of(cls, layer: LoraLayer, adapter: str) -> "Factors":
        return cls(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])

    @torch.no_grad()
    def product(self) -> Tensor:
        """(out, in · kernel)"""
        return self.scale * (self.b.flatten(1) @ self.a.flatten(1))


def few_step_scheduler(backbone: LatentBackbone, grid: JumpGrid) -> LCMScheduler | FlowMatchLCMScheduler:
    """The stock scheduler whose times are those the student of this grid is drawn at."""
    if isinstance(schedule := backbone.schedule, FlowSchedule):
        if schedule.evenly:
            return FlowMatchLCMScheduler(shift=schedule.shift)
        return FlowMatchLCMScheduler(shift=FEW_STEP_SHIFT, use_exponential_sigmas=True)
    config: dict[str, Any] = dict(backbone.pipeline.scheduler.config)
    shared = {key: config[key] for key in LCMScheduler().config if key in config and not key.startswith("_")}
    return LCMScheduler.from_config(
        shared,
        original_inference_steps=grid.original_inference_steps,
        set_alpha_to_one=True,
        clip_sample=False,
        thresholding=False,
    )


def draw_latents(backbone: LatentBackbone, grid: JumpGrid, guidance: float) -> Tensor:
    """scott's 2-step latent of `PROMPT`, from the backbone's target or, where it has none, from its plain network."""
    network = backbone.target if backbone.train_mode else backbone.teacher
    return StudentSampler(backbone, network, grid, 2, guidance).latents([PROMPT], SEED)


def student_grid(schedule: NoiseSchedule, original_inference_steps: int) -> JumpGrid:
    """A grid with the inference times of the one a student was trained on.

    Raises `UserError` for what is no number, or one that no grid of even spacing has.
    """
    if type(original_inference_steps) is not int or not 1 <= original_inference_steps <= schedule.training_steps:
        raise UserError(
            f"got original_inference_steps {original_inference_steps!r:.40}; expected a number from 1 to "
            f"{schedule.training_steps}, as the student's scheduler or scott.json has it"
        )
    spacing = schedule.training_steps // original_inference_steps
    if (times := schedule.training_steps // spacing) != original_inference_steps:
        raise UserError(
            f"got original_inference_steps {original_inference_steps}, which no grid over {schedule.training_steps} "
            f"training steps has; expected such as {times}. Draw this student with its own pipeline."
        )
    return JumpGrid(schedule, jump=spacing, substeps=1)


def difference(expected: Tensor, got: Tensor) -> float:
    """The largest difference over the standard deviation of what was expected."""
    return ((expected - got).abs().max() / expected.std()).item()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write an export to, which takes `folder`'s name when the block ends without an error.

    Otherwise an older `folder` stays as it is, and what was written stays beside it, for inspection, but for what
    `new_folder` removes.

    Raises:
        UserError: another process writes that folder.
        NoRoom: as `room`.
    """
    partial, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("partial", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent, f"{folder.name}-0-of-1"):
        shutil.rmtree(partial, ignore_errors=True)
        with new_folder(partial):
            yield partial
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def network_times(grid: JumpGrid, steps: int) -> list[float]:
    """Where a student of this grid calls its network in so many steps: training times, of a flow σ."""
    times = torch.tensor(grid.inference_times(steps), dtype=grid.schedule.time_dtype)
    if isinstance(grid.schedule, FlowSchedule):
        return [round(sigma, 4) for sigma in grid.schedule.sigma(times).tolist()]
    return times.tolist()

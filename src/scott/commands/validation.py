"""What a run draws and measures on its way: its student beside its teacher, and FID, CLIP score and coverage."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from scott.data.mixture import Prepared
from scott.diffusion import JumpGrid
from scott.errors import NotFinite, UserError
from scott.evaluation import Features, Reference, evaluate, image_grid
from scott.evaluation.neighbours import NEAREST
from scott.evaluation.networks import clip
from scott.mini import embedded
from scott.samplers import StudentSampler, TeacherSampler
from scott.teachers import Cond, LatentBackbone
from scott.training.config import FEW_STEPS, PROMPTS, DistillConfig

TEACHER_STEPS = 25
MEASURED_STEPS = 2
"""One of FEW_STEPS."""
BATCH = 16
SAME = 1e-3
"""A student whose latents are this close to the untrained ones, relative to them, is taken for untrained."""


class Validation:
    """Draws the captions of a run's first samples with fixed seeds; the real pictures are those samples, decoded.

    Every process calls it alike, since a network that is split over them computes in all of them or in none.
    """

    def __init__(
        self,
        backbone: LatentBackbone,
        grid: JumpGrid,
        config: DistillConfig,
        data: Prepared,
        warn: Callable[[str], None],
    ) -> None:
        self.backbone, self.grid, self.config, self.data, self.warn = backbone, grid, config, data, warn
        self.prompts = data.examples(PROMPTS)[1]
        self.guidance = config.drawn_guidance

    def make_ready(self) -> None:
        """Load what `measure` needs, so that what is missing is found before the first step.

        Raises:
            UserError: no such CLIP, or too few samples for coverage.
        """
        wanted, available, least = self.config.validation_samples, self.data.alike, NEAREST + 1
        if min(wanted, available) < least:
            raise UserError(f"got {wanted} validation samples of {available} there are; expected {least} or more")
        if available < wanted:
            self.warn(f"validation measures on the {available} samples there are, not on {wanted}")
        self._real  # noqa: B018 (it is kept)

    @property
    def conditions(self) -> Mapping[str, Callable[[], Cond]]:
        """Of all captions that pictures are drawn for."""
        return self.data.conditions(max(PROMPTS, self.config.validation_samples if self.config.validate_every else 0))

    def draw(self, step: int) -> tuple[Image.Image, dict[str, float]]:
        """The student in 1, 2, 4 and 8 steps and the teacher in 25, from one noise; and how far the student has come.

        `student_change` is ‖student − untrained‖ / ‖untrained‖ of latents drawn in two steps. Close to 0, what was
        trained is not what draws, and a warning says so.
        """
        steps = [n for n in FEW_STEPS if n <= self.grid.original_inference_steps]
        latents = {n: self._student(n).latents(self.prompts, self.config.seed) for n in steps}
        rows = {f"student, {n} step{'s'[: n - 1]}": list(self.backbone.decode(drawn)) for n, drawn in latents.items()}
        rows[f"teacher, {TEACHER_STEPS} steps"] = self._teacher_row
        change = ((latents[MEASURED_STEPS] - self._untrained).norm() / self._untrained.norm()).item()
        if change < SAME and step > self.config.warmup_steps:
            self.warn(f"step {step}: the student draws in {MEASURED_STEPS} steps what an untrained one draws")
        return image_grid(list(rows.values()), list(rows), self.prompts), {"student_change": change}

    def measure(self) -> dict[str, float]:
        """FID, CLIP score and coverage of `validation_samples` pictures in two steps; nothing, and a warning, of
        pictures that are not finite."""
        real, captions = self._real
        sampler = self._student(MEASURED_STEPS)
        reference = Reference(captions, dict.fromkeys(("features", "clip"), self._features), {"features": real})
        try:
            row = evaluate(sampler, reference, name="student", batch_size=BATCH, seeds=(self.config.seed,))
        except NotFinite as error:
            self.warn(f"validation has no figures: {error}")
            return {}
        values = {"fid": row.fid, "clip_score": row.clip_score, "coverage": row.coverage}
        return {name: value for name, value in values.items() if value is not None}

    def _student(self, steps: int) -> StudentSampler:
        return StudentSampler(self.backbone, self.backbone.target, self.grid, steps, self.guidance, truncate=True)

    @cached_property
    def _teacher_row(self) -> list[Tensor]:
        teacher = TeacherSampler(self.backbone, TEACHER_STEPS, self.guidance, truncate=True)
        return list(teacher(self.prompts, self.config.seed))

    @cached_property
    def _untrained(self) -> Tensor:
        """What a student draws that is its teacher still."""
        untrained = replace(self._student(MEASURED_STEPS), network=self.backbone.teacher)
        return untrained.latents(self.prompts, self.config.seed)

    @cached_property
    def _features(self) -> Features:
        return clip(embedded.clip_folder(self.config.validation_features), self.backbone.device)

    @cached_property
    def _real(self) -> tuple[Tensor, list[str]]:
        latents, captions = self.data.examples(self.config.validation_samples)
        chunks = latents.to(self.backbone.device).float().split(BATCH)
        return torch.cat([self._features.images(self.backbone.decode(chunk)) for chunk in chunks]), captions

"""Students of the embedded teacher measured: FID, coverage, CLIP score, and the spread of what they draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from experiments.runs import Report
from torch import Tensor

from scott.data.records import chunks
from scott.device import best_device
from scott.evaluation import Row, evaluate
from scott.evaluation.measures import USUAL
from scott.evaluation.networks import instruments
from scott.evaluation.references import BATCH
from scott.mini import embedded
from scott.mini.protocol import ASKED, REAL, MiniReference, mini_reference
from scott.mini.scenes import Split, pictures
from scott.samplers import StudentSampler, TeacherSampler
from scott.teachers import LatentBackbone


@dataclass(frozen=True)
class Kept:
    """A sampler that keeps the latents it drew."""

    sampler: StudentSampler | TeacherSampler
    latents: list[Tensor] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.sampler.steps

    @property
    def network_calls(self) -> int:
        return self.sampler.network_calls

    @property
    def guidance(self) -> float:
        return self.sampler.guidance

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        self.latents.append(self.sampler.latents(prompts, seed))
        return self.sampler.backbone.decode(self.latents[-1])


def reference_by(
    features: str, samples: int, split: Split = "held-out", seeds: tuple[int, int] = (REAL, ASKED)
) -> MiniReference:
    """Real pictures and captions of a split, by their seeds, by the network called `features`."""
    by = instruments(USUAL, features, embedded.NAME, {}, best_device(), embedded.clip_folder)
    return mini_reference(samples, split, by, seeds)


def measured(
    samplers: Mapping[int, StudentSampler], reference: MiniReference, report: Report
) -> dict[str, dict[str, float | None]]:
    """Steps → FID, coverage, CLIP score, and the spread of the latents drawn over real ones'."""
    figures, real = {}, None
    for steps, drawn_by in samplers.items():
        real = real_latents(drawn_by.backbone, reference) if real is None else real
        sampler, name = Kept(drawn_by), f"{steps} steps"
        row = evaluate(sampler, reference, name=name, progress=partial(progress, report, name))
        figures[str(steps)] = figures_of(row) | {"spread": spread(torch.cat(sampler.latents), real)}
    return figures


def measured_by_all(
    samplers: Mapping[int, StudentSampler], references: Mapping[str, MiniReference], report: Report
) -> dict[str, dict[str, float | None]]:
    """`measured` by the first of the networks that references are of, and `fid_NAME` and `coverage_NAME` by others."""
    (_, first), *others = references.items()
    figures = measured(samplers, first, report)
    for name, reference in others:
        for steps, by in measured(samplers, reference, report).items():
            figures[steps] |= {f"{metric}_{name}": by[metric] for metric in ("fid", "coverage")}
    return figures


def progress(report: Report, name: str, done: int, total: int) -> None:
    report(name, done, total, {})


def real_latents(backbone: LatentBackbone, reference: MiniReference) -> Tensor:
    """Of the pictures that the reference's captions were written for, (N, C, H, W): the VAE's means, which have
    .4 % less spread than the latents drawn about them that students learn from."""
    return torch.cat([backbone.encode_images(pictures(some))[0] for some in chunks(iter(reference.scenes), BATCH)])


def figures_of(row: Row) -> dict[str, float | None]:
    return {"fid": row.fid, "coverage": row.coverage, "clip_score": row.clip_score}


def spread(drawn: Tensor, real: Tensor) -> float:
    """sqrt of the variance over samples of `drawn` over that of `real`, each (N, C, H, W): a mean over elements."""
    return (drawn.var(0).mean() / real.var(0).mean()).sqrt().item()


def cell(figures: Mapping[str, Any]) -> str:
    """Of a table: FID, coverage and spread."""
    return f"{figures['fid']:.2f}, {figures['coverage']:.3f}, {figures['spread']:.3f}"

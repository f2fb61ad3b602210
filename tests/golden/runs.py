"""Short runs of the embedded teacher, one of each form of training, and the text files that hold what they logged.

A run starts off the teacher (LoRA's B and the critic's head are moved), so that every term and gradient counts from the
first step on. Its random starts are set by layer and seed: they depend on no library's own order of draws.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scott.data.batch import Batch
from scott.mini.embedded import load_teacher
from scott.rng import generator_for
from scott.training.config import LCM_SETTINGS, DistillConfig
from scott.training.metrics import read_metrics
from scott.training.trainer import distill

FOLDER = Path(__file__).parent
STEPS = 20
HALF_STEPS = 6
"""Of half precision, which a CPU computes at a tenth of its speed."""
TERMS = ("consistency", "student_gradient_norm", "adversarial", "critic", "critic_gradient_norm", "adversarial_ratio")
FULL = {"train": "full", "guidance_min": 2.0, "guidance_max": 4.0, "learning_rate": 1e-4}
DRAWN = {"critic_fakes": "drawn", "adversarial_weighting": "uniform"}
RUNS = {
    "scott-lora": {},
    "scott-full": FULL,
    "lcm-lora": LCM_SETTINGS,
    "lcm-full": LCM_SETTINGS | FULL,
    "critic-full": {"critic": "full", "critic_learning_rate": 3e-4},
    "critic-unconditional": {"critic": "unconditional"},
    "critic-matched": {"critic_input": "matched"},
    "critic-renoised": FULL | {"critic_input": "renoised", "solver": "dpmpp-sde", "weighting": "snr+1"},
    "critic-heads": DRAWN | {"critic": "heads", "critic_input": "clean", "critic_r1": 0.01},
    "critic-drawn": FULL | DRAWN | {"critic_input": "matched", "adversarial_share": 0.3, "jump_reuse": 2},
    "fp16-lora": {"precision": "fp16"},
    "bf16-full": FULL | {"precision": "bf16"},
}
"""Name of a file → what the run has besides `config_of`'s."""
PROMPTS = ("a red apple", "two green cats", "", "a blue car on a yellow background", "a cat")


def config_of(name: str, out: Path) -> DistillConfig:
    """Rates are large and the gradients are clipped, so that few steps tell a change of either."""
    settings = {
        "teacher": "mini",
        "data": "golden",
        "out": out,
        "max_steps": HALF_STEPS if "precision" in RUNS[name] else STEPS,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "warmup_steps": 5,
        "decay": 0.25,
        "weight_decay": 0.1,
        "clip_norm": 0.05,
        "lora_rank": 4,
        "critic_rank": 4,
        "tracker": "none",
        "log_every": 1,
        "loader_workers": 0,
    }
    return DistillConfig(**(settings | RUNS[name]))


class Repeated:
    """The same five samples over and over."""

    version, varied = "golden", False

    def __init__(self, samples: Batch) -> None:
        self.samples = samples

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        return self.samples[torch.arange(step * size, (step + 1) * size)[part] % len(PROMPTS)]


def run(name: str, **changes: Any) -> list[dict[str, float]]:
    """The terms of each step of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config_of(name, Path(folder) / "run"), **changes)
        backbone = load_teacher(dtype=config.dtype)
        backbone.add_student(config.train, rank=config.lora_rank, alpha=config.alpha)
        if config.has_critic:
            backbone.add_critic(config.critic_rank, config.critic)
            move(backbone.critic_parameters(), 1)
        if config.train == "lora":
            move(backbone.student_parameters(), 0)
            move(backbone.target_parameters(), 0)
        mean = torch.randn(len(PROMPTS), *backbone.latent_shape, generator=generator_for(0, 0))
        samples = Batch(mean, torch.full_like(mean, 0.1), backbone.encode_prompts(PROMPTS))
        distill(backbone, Repeated(samples), config)
        records = read_metrics(config.out / "metrics.jsonl")
    return [{term: record[term] for term in TERMS if term in record} for record in records]


@torch.no_grad()
def move(parameters: dict[str, torch.nn.Parameter], seed: int) -> None:
    """Draw LoRA's A and B and the critic's head anew, in the order of their layers' names."""
    for name in sorted(name for name in parameters if "lora_" in name or name.startswith("head")):
        layer, second = name.split(".lora_")[0], ".lora_B" in name or "bias" in name
        if "lora_" not in name:
            layer = "head"
        position = sum(ord(letter) * 31**place for place, letter in enumerate(f"{layer}{second}")) % 2**32
        drawn = torch.randn(parameters[name].shape, generator=generator_for(seed, position))
        parameters[name].copy_(drawn * (0.02 if second or layer == "head" else 0.1))


def as_text(records: list[dict[str, float]]) -> str:
    """One line a step, the terms by name in the first; a step that fp16's loss scale skips has no norms."""
    names = [term for term in TERMS if any(term in record for record in records)]
    lines = [" ".join(["step", *names])]
    for step, record in enumerate(records, 1):
        lines.append(" ".join([str(step), *(f"{record[n]:.7e}" if n in record else "-" for n in names)]))
    return "\n".join(lines) + "\n"


def from_text(text: str) -> list[dict[str, float]]:
    """Inverse of `as_text`, to its eight digits."""
    (_, *names), *rows = (line.split() for line in text.splitlines())
    return [{name: float(v) for name, v in zip(names, row[1:], strict=True) if v != "-"} for row in rows]

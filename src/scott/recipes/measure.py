"""The figures of a run on the embedded teacher's held-out captions: teacher, student, real against real."""

from collections.abc import Callable, Sequence
from pathlib import Path

from scott.backbones import Backbone
from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.evaluation import ClipFeatures, Results, Row, evaluate, real_against_real
from scott.evaluation.features import Matrix
from scott.generators import StudentSampler, TeacherSampler
from scott.mini import embedded
from scott.mini.scenes import Scenes

SEED = 1
BATCH = 64
Tick = Callable[[str, int, int], None]


class HeldOut:
    """Held-out captions and the features of as many real held-out pictures, which every row is measured against."""

    def __init__(self, samples: int, features: ClipFeatures | None = None) -> None:
        if samples < 10:
            raise UserError(f"got {samples} samples; expected 10 or more, 1,000 for a figure worth reading")
        self.features = features or embedded.load_features()
        self.prompts: list[str] = Scenes(samples, "held-out", seed=0).captions()
        self.real: Matrix = embedded.real_features(self.features, samples, seed=0)

    def floor(self) -> Row:
        """Other pictures of the same captions' distribution against the reference."""
        return real_against_real(self.real, embedded.real_features(self.features, len(self.prompts), seed=1))

    def row(self, name: str, sampler: TeacherSampler | StudentSampler, tick: Tick) -> Row:
        return evaluate(
            sampler,
            self.prompts,
            self.real,
            self.features,
            seed=SEED,
            batch_size=BATCH,
            name=name,
            steps=sampler.steps,
            network_calls=sampler.network_calls,
            progress=lambda done, total: tick(name, done, total),
        )


def student_rows(
    held_out: HeldOut,
    backbone: Backbone,
    grid: JumpGrid,
    steps: Sequence[int],
    *,
    name: str,
    guidance: float,
    network: str,
    tick: Tick,
) -> list[Row]:
    """`name-1`, `name-2`, ...: the student at each number of steps."""
    return [held_out.row(f"{name}-{n}", StudentSampler(backbone, grid, n, guidance, network), tick) for n in steps]


def recorded_teacher_rows(samples: int, file: Path = embedded.RECORDED) -> list[Row]:
    """The teacher's rows of the recorded run at this sample size, marked as recorded; empty when there are none."""
    if not file.is_file():
        return []
    rows = Results.load(file).rows
    return [row for row in rows if row.name.startswith("teacher") and row.samples == samples]

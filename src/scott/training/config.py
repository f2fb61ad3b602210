"""One run, as data: everything that decides what `scott distill` does, complete, printable and reloadable."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scott.data.settings import Reading
from scott.errors import UserError
from scott.teacher_source import TeacherSource
from scott.training.adversary import Adversary
from scott.training.checks import check_grid, check_together, check_values, without_effect
from scott.training.pace import Pace
from scott.training.step_schedule import StepSchedule

if TYPE_CHECKING:  # torch is imported where it is needed, since the command line reads this file to show its help
    import torch

    from scott.diffusion import JumpGrid, NoiseSchedule
    from scott.solvers import Solver


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Reading, Pace, StepSchedule, TeacherSource):
    """The defaults are the paper's where it speaks (SCott, AAAI 2025); a recipe replaces what its teacher needs.

    Raises `UserError` when a value is out of range or contradicts another.
    """

    data: str | tuple[str, ...]
    """Shards of `scott prepare`, or a source as it takes them (a folder, parquet, a data set's name, tars, `mini`); or
    several of either."""
    weights: tuple[float, ...] = ()
    """Of several sources: how many of the samples come from each, in proportion; as many from each, if left out."""
    out: Path
    """The run folder. The same command on a folder that holds the run resumes it."""
    method: Literal["scott", "paper", "lcm"] = "scott"
    """Which settings the recipe starts from: its own, the paper's form, or latent consistency distillation; a flag that
    is given still wins."""
    seed: int = 0

    max_steps: int = 40_000
    batch_size: int = 40
    """Of a step, over all processes."""
    learning_rate: float = 8e-6
    warmup_steps: int = 500
    """The first steps of a run, over which both rates rise from 0: a critic that comes later (--critic-start) begins at
    its full rate."""
    decay: float = 0.0
    """Fraction of the steps, the last ones, over which both rates fall to 0."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Largest norm of the student's and of the critic's gradient, each."""
    ema_decay: float = 0.95
    """Decay of the target, which is also what is saved."""

    solver: Literal["ddim", "er-sde", "dpmpp-sde"] = "er-sde"
    eta: float = 0.2
    """Noise of ddim and dpmpp-sde; 0 is the ODE."""
    phi: Literal["ode", "1", "2", "3", "4", "5"] = "5"
    """Noise function of er-sde."""
    order: Literal[1, 2, 3] = 2
    """Order of er-sde (1 to 3) and dpmpp-sde (1 or 2)."""
    jump: int = 24
    """t_n − t_m, in training steps."""
    substeps: int = 3
    """h: solver steps a jump."""
    times: Literal["all", "needed"] = "all"
    """Which t_n are trained: all of the grid, or only those that drawing in 1, 2, 4 or 8 steps stops at, with the
    targets on their way to clean data."""
    jump_reuse: int = 1
    """How many steps train on each batch of the teacher's jumps: the teacher is called the less."""
    jump_store: int = 4096
    """How many jumps are kept for the steps that use one again, which choose a batch of them at random."""

    loss: Literal["l2", "l1", "huber"] = "l2"
    weighting: Literal["uniform", "snr+1"] = "uniform"
    """w(t_n), the weight of L_CD at t_n: 1, or α²/σ² + 1 over its mean, as an L2 loss of v has it of a
    variance-preserving teacher."""
    guidance_min: float = 3.0
    """ω, as in uncond + ω (cond − uncond), is uniform in [guidance_min, guidance_max]. Only full
    students of U-Nets and of FLUX.1-dev take ω; others are trained for a single one."""
    guidance_max: float = 3.0
    guidance: float | None = None
    """ω that the student is drawn at, in validation and where none is asked for: the recipe's, or else the middle of
    the range."""

    init: str | None = None
    """What the student starts as, not as the teacher: a run, a LoRA file of any program, or a full student's
    folder."""
    continue_from: str | None = None
    """A run whose student, EMA, critic and optimizers a new one starts with, under its own rates."""
    train: Literal["lora", "full"] = "lora"
    """LoRA keeps one network in memory; full trains a copy, beside one more for the EMA."""
    lora_rank: int = 64
    lora_alpha: float | None = None
    """α of LoRA, whose update counts α / rank; the rank by default."""
    lora_variant: Literal["lora", "rslora", "dora"] = "lora"
    """LoRA; rsLoRA, whose update counts α / √rank; or DoRA, which trains the norms of the weights' rows besides."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the frozen network; what is trained is fp32 always, and so is its optimizer but for adamw8bit."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """The frozen network's linear layers in 8 or 4 bits (bitsandbytes), under a LoRA student."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    low_memory: bool = False
    """The teacher's conditional and unconditional calls one after the other, not as one batch; text encoders one at a
    time on the device while data are prepared."""
    compile: bool = False
    """torch.compile the networks: a minute or more at the start."""
    gradient_accumulation: int = 1
    """Passes in which a process takes its rows of the batch."""
    shard: Literal["none", "full"] = "none"
    """What several processes split, where each would hold all of it: nothing, or the frozen network and all that is
    trained, with its gradients and optimizers' states (FSDP2)."""
    loader_workers: int = 2
    """Processes that read batches ahead; 0 reads in the training process."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit needs bitsandbytes (and a GPU) and keeps a quarter of the optimizer's memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))  # a library's caller may have a str
        check_values(self)
        Reading.__post_init__(self)
        check_together(self, LCM_SETTINGS)

    @property
    def sources(self) -> tuple[str, ...]:
        """`data`, as several."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @property
    def drawn_guidance(self) -> float:
        """ω that the student is drawn at."""
        return (self.guidance_min + self.guidance_max) / 2 if self.guidance is None else self.guidance

    @property
    def alpha(self) -> float:
        """α of LoRA."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def dtype(self) -> "torch.dtype":
        """Of the frozen network."""
        from scott.diffusion.tensors import DTYPES

        return DTYPES[self.precision]

    def make_solver(self, schedule: "NoiseSchedule") -> "Solver":
        """The teacher's solver; only the options that it has are passed on."""
        from scott import solvers

        options: dict[str, dict[str, Any]] = {
            "ddim": {"eta": self.eta},
            "er-sde": {"phi": self.phi, "order": self.order},
            "dpmpp-sde": {"eta": self.eta, "order": self.order},
        }
        return solvers.make(self.solver, schedule, **options[self.solver])

    def make_grid(self, schedule: "NoiseSchedule") -> "JumpGrid":
        """Raises `UserError` as `JumpGrid` and `check_grid` do."""
        from scott.diffusion import JumpGrid

        steps = FEW_STEPS if self.times == "needed" else ()
        grid = JumpGrid(schedule, jump=self.jump, substeps=self.substeps, few_steps=steps)
        check_grid(self, grid, schedule)
        return grid

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self) | {"out": str(self.out)}, indent=2)

    @classmethod
    def load(cls, file: Path) -> "DistillConfig":
        """The config of a run folder's `config.json`; `UserError` when it is not one."""
        try:
            values = json.loads(file.read_text())
            lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            return cls(**(values | lists))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} is not the config of a scott run ({error}); choose another folder") from None

    def decisive(self) -> dict[str, Any]:
        """What decides the weights, beside teacher and data (the folder's own name and the log's pace do not)."""
        pace = {"guidance", *(field.name for field in dataclasses.fields(Pace))}
        # the same numbers, up to rounding
        means = {"gradient_checkpointing", "low_memory", "compile", "gradient_accumulation", "shard", "loader_workers"}
        # teacher and data have versions of their own, which are those of their content, however it is named
        named = {field.name for base in (TeacherSource, Reading) for field in dataclasses.fields(base)}
        named |= {"out", "data", "weights"}
        is_fraction = self.decay or (self.has_critic and self.critic_start)  # of all steps
        free = named | pace | means | (set() if is_fraction else {"max_steps"})
        meant = {"lora_alpha": self.lora_rank, "critic_head_rate": self.critic_learning_rate}  # by None
        left_out: dict[str, Any] = {name: None for name, value in meant.items() if getattr(self, name) == value}
        values = vars(self) | left_out | without_effect(dataclasses.replace(self, **left_out))
        return {name: value for name, value in values.items() if name not in free}

    def differences(self, other: "DistillConfig") -> list[str]:
        """`name: mine → theirs` for what decides the weights."""
        own, others = self.decisive(), vars(other) | other.decisive()
        values = {name: (getattr(self, name), getattr(other, name)) for name in own if own[name] != others[name]}
        for name in ("init", "continue_from"):  # a place, however it is spelt
            if name in values and all(values[name]) and len({*map(os.path.realpath, values[name])}) == 1:
                del values[name]
        return [f"{name}: {mine} → {theirs}" for name, (mine, theirs) in values.items() if mine != theirs]


LCM_SETTINGS: dict[str, Any] = {
    "method": "lcm",
    "solver": "ddim",
    "eta": 0.0,
    "jump": 20,
    "substeps": 1,
    "adversarial_weight": 0.0,
}
"""Latent consistency distillation (Luo et al. 2023, k = 20) as a point of the same space: an ODE teacher that makes one
step a jump, and no critic."""

FEW_STEPS = (1, 2, 4, 8)
"""What students are drawn in."""
PROMPTS = 8
"""Samples that a run draws on its way."""

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DistillConfig)}
_OF_THE_TEACHER = ("critic_learning_rate", "critic_rank")
_METHOD = {field.name for field in dataclasses.fields(Adversary)} - {*_OF_THE_TEACHER}
_METHOD |= {"solver", "eta", "phi", "order", "jump", "substeps", "jump_reuse", "loss", "weighting"}
PAPER_SETTINGS: dict[str, Any] = {name: _DEFAULTS[name] for name in sorted(_METHOD)} | {"method": "paper"}
"""SCott as its paper has it, which the defaults are, but for what depends on the teacher: rates, ranks, guidance."""

"""What a student was made for, as its exports say it."""

import builtins
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from scott.errors import UserError
from scott.teachers.layout import FAMILIES

STUDENT_INFO = "scott.json"
METADATA = "scott"
"""Key of `StudentInfo` in a file's header."""


def _is(value: object, kind: Any) -> bool:
    """Whether what JSON held is of a field's type; numbers are finite."""
    of = get_args(kind)
    match get_origin(kind):
        case builtins.dict:
            return isinstance(value, dict) and all(_is(entry, of[1]) for entry in value.values())
        case builtins.list:
            return isinstance(value, list) and all(_is(entry, of[0]) for entry in value)
        case None:
            number = kind is float and type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
            return number or (kind is not float and type(value) is kind)
    return any(_is(value, one) for one in of)


@dataclass(frozen=True)
class StudentInfo:
    """What a student was made for, as every export carries it in `scott.json` and a LoRA file in its metadata."""

    pipeline: str
    """Class name of the stock pipeline."""
    scheduler: str
    train: str
    updates: int
    guidance_min: float
    guidance_max: float
    takes_guidance: bool
    """Whether the network takes ω as an input; one that does not has its ω built in."""
    original_inference_steps: int
    times: dict[str, list[float]]
    """Number of steps → the network's times (σ for a flow), descending."""
    lora_rank: int | None
    lora_alpha: float | None
    lora_variant: str = "lora"
    only_these_steps: bool = False
    """Whether it was trained at the times of those numbers of steps alone (`--times needed`)."""
    drawn_guidance: float | None = None
    """ω of its recipe."""
    resolution: int | None = None
    """Side of the pictures it was trained for, in pixels, where that is not its teacher's or the pipeline has none."""
    prediction: str | None = None
    """What the network predicts, by diffusers' name."""
    base: dict[str, str] | None = None
    """`network_fingerprint` of the teacher."""

    def check_steps(self, steps: int) -> None:
        """Raise `UserError` for a number of steps that stops at times it was not trained at."""
        if self.only_these_steps and str(steps) not in self.times:
            raise UserError(f"got {steps} steps; the student was trained for {', '.join(self.times)} (--times needed)")

    @property
    def is_flow(self) -> bool:
        """Whether its times are σ."""
        return self.scheduler == "FlowMatchLCMScheduler"

    @property
    def guidance(self) -> float:
        """ω to draw with where none is asked for: its own, or the middle of what it was trained for."""
        return (self.guidance_min + self.guidance_max) / 2 if self.drawn_guidance is None else self.drawn_guidance

    @property
    def guidance_scale(self) -> float:
        """What a stock pipeline is called with: ω, or 1 (no guidance) where ω is built in."""
        return self.guidance if self.takes_guidance else 1.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, source: Path) -> "StudentInfo":
        """Inverse of `to_json`, without what a later version says besides; `UserError`, which names the source, where
        the text is something else."""
        try:
            known = {field.name for field in dataclasses.fields(cls)}
            info = cls(**{name: value for name, value in json.loads(text).items() if name in known})
            for name, kind in get_type_hints(cls).items():
                if not _is(getattr(info, name), kind):
                    raise ValueError(f"{name} {getattr(info, name)!r:.40}")
            if info.pipeline not in FAMILIES:
                raise ValueError(f"pipeline {info.pipeline!r:.40}")
            if info.resolution is not None and info.resolution < 1:
                raise ValueError(f"resolution {info.resolution}")
        except (AttributeError, RecursionError, ValueError, TypeError) as error:
            raise UserError(f"{source} does not say what its student is ({error}); export it again") from None
        return info

    @classmethod
    def read(cls, folder: Path) -> "StudentInfo | None":
        """Of an export's folder; None where there is no such file."""
        file = folder / STUDENT_INFO
        return cls.from_json(file.read_bytes(), file) if file.is_file() else None

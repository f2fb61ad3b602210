"""How a picture is drawn: the options of `scott sample` that are not of files."""

from dataclasses import dataclass
from pathlib import Path

from scott.choices import check_gamma
from scott.data.settings import MAX_RESOLUTION
from scott.errors import UserError

DEFAULT_STEPS = 2
MAX_STEPS = 8
"""Most steps `scott sample` draws in; a student is made for few."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Raises `UserError` for a value out of range."""

    steps: int = DEFAULT_STEPS
    """1 to 8."""
    timesteps: tuple[float, ...] = ()
    """What the network is fed in each step, descending from about 999, in the place of the student's own times for as
    many steps: 999 599."""
    gamma: float = 1.0
    """γ: how much of a later step's noise is new, from 1, as the LCM sampler of other programs has it, to 0, as their
    Euler's."""
    guidance: float | None = None
    """ω, in the form uncond + ω (cond − uncond); by default the one that the student's recipe draws at."""
    negative_prompt: str | None = None
    """What guidance pushes away from. Of students of ω = 1 alone, with --guidance above 1: two calls a step."""
    height: int | None = None
    """In pixels, 8,192 at most; those it was trained at, if left out."""
    width: int | None = None
    """As the height."""
    image: Path | None = None
    """A picture to start from, resized and cropped to the height and width, in the place of noise alone."""
    strength: float | None = None
    """With --image: what fraction of the steps is made, the last ones; .6 if left out."""

    def __post_init__(self) -> None:
        if self.timesteps:
            if self.steps not in (DEFAULT_STEPS, len(self.timesteps)):
                raise UserError(f"got {self.steps} steps and {len(self.timesteps)} timesteps; leave out --steps")
            object.__setattr__(self, "steps", len(self.timesteps))
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"got {self.steps} steps; expected 1 to {MAX_STEPS}")
        check_gamma(self.gamma)
        if self.gamma != 1 and self.steps == 1:
            raise UserError(f"got --gamma {self.gamma:g} with one step, which has no later noise; leave it out")
        for name, size in (("height", self.height), ("width", self.width)):
            if size is not None and size < 1:
                raise UserError(f"got --{name} {size}; expected a number of pixels, 1 or more")
            if size is not None and size > MAX_RESOLUTION:
                raise UserError(f"got --{name} {size}; expected {MAX_RESOLUTION:,} pixels at most")
        if self.strength is not None and self.image is None:
            raise UserError(f"got --strength {self.strength} without --image; give the picture to start from")
        if not 0 < self.fraction <= 1:
            raise UserError(f"got --strength {self.fraction}; expected more than 0, and 1 at most")

    @property
    def fraction(self) -> float:
        """`strength`, or what it is by default: enough for a step of two."""
        return 0.6 if self.strength is None else self.strength

    @property
    def given(self) -> dict[str, object]:
        """What is asked for besides steps and guidance, as a picture's metadata has it."""
        values: dict[str, object] = {
            "timesteps": [*self.timesteps] or None,
            "gamma": None if self.gamma == 1 else self.gamma,
            "height": self.height,
            "width": self.width,
            "negative_prompt": self.negative_prompt,
        }
        values |= {"image": str(self.image), "strength": self.fraction} if self.image else {}
        return {name: value for name, value in values.items() if value is not None}

"""What options of a baseline may be."""

import math
from dataclasses import asdict
from typing import Any

from scott.errors import UserError

LEAST = {"steps": 1, "batch_size": 1, "warmup": 0, "scenes": 1, "validation": 0}
LEAST |= {"pairs": 0, "pair_steps": 1, "flow_steps": 1, "seed": 0, "snr_floor": 0}
POSITIVE = ("cpu_minutes", "slower", "learning_rate")
"""Those that are more than 0, and finite."""


def check_ranges(options: Any) -> None:
    """Raises `UserError` for a field of a dataclass that is out of its range; None is one that is not given."""
    for name, value in asdict(options).items():
        expected = None
        if name in POSITIVE and value is not None and not 0 < value < math.inf:
            expected = "a finite number above 0"
        elif name in LEAST and value is not None and value < LEAST[name]:
            expected = f"{LEAST[name]} or more"
        elif name == "ema_decay" and not 0 <= value < 1:
            expected = "at least 0 and less than 1"
        if expected:
            raise UserError(f"got --{name.replace('_', '-')} {value:g}; expected {expected}")

"""GPUs by their makers' data sheets, and the hours that a run would take on them."""

from typing import NamedTuple

REACHED = 0.3
"""What a run reaches of a GPU's peak: an assumption."""


class Card(NamedTuple):
    """Bytes of memory, and the peaks of dense fp16 with sums in fp32 and of fp32, as torch computes it by default,
    without TF32; FLOP/s."""

    memory: float
    peak: float
    peak_fp32: float

    def hours(self, flops: float, precision: str, reached: float = REACHED, count: int = 1) -> float:
        """Of so many operations, on as many cards."""
        return flops / (count * reached * (self.peak_fp32 if precision == "fp32" else self.peak)) / 3600


CARDS = {
    "RTX 3090": Card(24e9, 71e12, 36e12),
    "RTX 4090": Card(24e9, 165e12, 83e12),
    "L4": Card(24e9, 121e12, 30e12),
    "A100 80 GB": Card(80e9, 312e12, 19.5e12),
    "H100 SXM": Card(80e9, 989e12, 67e12),
}

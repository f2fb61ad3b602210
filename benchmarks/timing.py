"""Timing by turns: every call once a round, so that whatever else the machine does falls on all of them alike."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Call = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """name → seconds of each round."""

    seconds: dict[str, list[float]]

    def ratio(self, name: str, over: str) -> float:
        """The median over rounds of one call's time over another's in the same round."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[over], strict=True))

    def medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in self.seconds.items()}


def interleaved(calls: dict[str, Call], repeats: int) -> Times:
    """`repeats` rounds of all calls, every other one backwards, after a round that is not counted."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(repeats):
        gc.collect()
        for name in names:
            began = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - began)
        names.reverse()
    return Times(seconds)

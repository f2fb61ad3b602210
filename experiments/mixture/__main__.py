"""What students of each solver converge to, exactly and trained: `python -m experiments.mixture --help`.

Each part writes its rows into results/ beside this file as they are made, and its table into README.md. Rows that are
there are not made again: delete a part's file to have it anew.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from experiments.mixture import exact, tables, trained
from experiments.mixture.methods import METHODS
from experiments.results import insert

from scott.files import write_atomically

HERE = Path(__file__).parent
Part = Literal["gaussian", "jumps", "orders", "fixed-points", "2-d", "64-d"]


@dataclass
class Run:
    """Compute some parts and write their tables; without --parts, only the tables of the rows there are."""

    parts: tuple[Part, ...] = ()
    seeds: int = 10
    samples: int = 50_000
    """Of a fixed point, a divisor of 100,000."""
    methods: tuple[str, ...] = tuple(METHODS)
    """That are trained, in 2-d and 64-d."""
    updates: int = trained.UPDATES
    """Of each trained student."""
    folder: Path = HERE

    def run(self) -> None:
        for part in self.parts:
            made = self._made(part)
            began, before, there = time.process_time(), made["cpu_seconds"], list(made["rows"])
            for row in self._rows(part, there):
                made["rows"].append(row)
                made["cpu_seconds"] = round(before + time.process_time() - began, 1)
                write_atomically(self._file(part), json.dumps(made, indent=1, ensure_ascii=False) + "\n")
        for part, table in tables.TABLES.items():
            if (made := self._made(part))["rows"]:
                insert(self.folder / "README.md", part, table(made))

    def _made(self, part: str) -> dict[str, Any]:
        """What a part has: the rows that a stopped command had made stay."""
        file = self._file(part)
        return json.loads(file.read_text()) if file.is_file() else {"cpu_seconds": 0.0, "seeds": self.seeds, "rows": []}

    def _file(self, part: str) -> Path:
        return self.folder / "results" / f"{part}.json"

    def _rows(self, part: Part, there: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        match part:
            case "fixed-points":
                return exact.fixed_points(self.seeds, self.samples, there)
            case "2-d" | "64-d":
                return trained.compared(part, self.methods, self.seeds, self.updates, there)
        whole = {
            "gaussian": exact.gaussian,
            "orders": exact.orders,
            "jumps": partial(exact.jumps, self.seeds, self.samples),
        }
        return iter(()) if there else whole[part]()


if __name__ == "__main__":
    tyro.cli(Run, description=__doc__).run()

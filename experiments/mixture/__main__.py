"""What students of each solver converge to, exactly and trained: `python -m experiments.mixture --help`.

Each part writes its rows into results/ beside this file, fixed points and trained students as they are made, and its
table into README.md. Rows that are there are not made again: delete a part's file to have it anew.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from experiments.mixture import exact, tables, trained
from experiments.mixture.methods import METHODS
from experiments.results import insert
from experiments.runs import exit_code, one_thread

from scott.choices import unknown
from scott.errors import UserError
from scott.files import write_atomically

HERE = Path(__file__).parent
Part = Literal["gaussian", "jumps", "orders", "fixed-points", "kept", "2-d", "64-d"]
SAMPLED = ("jumps", "fixed-points", "kept")
SAMPLES = 50_000
"""Of a fixed point, where a part's file does not say."""


@dataclass
class Run:
    """Compute some parts and write their tables; without --parts, only the tables of the rows there are."""

    parts: tuple[Part, ...] = ()
    seeds: int = 10
    samples: int = SAMPLES
    """Of a fixed point, a divisor of 100,000."""
    methods: tuple[str, ...] = tuple(METHODS)
    """That are trained, in 2-d and 64-d."""
    updates: int = trained.UPDATES
    """Of each trained student."""
    folder: Path = HERE

    def run(self) -> None:
        """Raises `UserError` for a method or a number that cannot be, or for rows of another number of updates or
        seeds."""
        for method in self.methods:
            if method not in METHODS:
                raise unknown("method", method, METHODS)
        if min(self.seeds, self.updates // 4, self.samples) < 1 or 100_000 % self.samples:
            got = f"{self.seeds} seeds, {self.updates} updates and {self.samples} samples"
            raise UserError(f"got {got}; expected 1 or more seeds, 4 or more updates and a divisor of 100,000 samples")
        if not (self.folder / "README.md").is_file():  # before anything is made
            raise UserError(f"{self.folder} has no README.md to write tables into; copy that of experiments/mixture")
        self.show()
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        with one_thread():
            self.make()
        self.show()

    def make(self) -> None:
        """What the parts lack."""
        for part in self.parts:
            made = self._made(part)
            self._check(part, made)
            began, before, there = time.process_time(), made["cpu_seconds"], list(made["rows"])
            for rows in self._rows(part, there):
                made["rows"] += rows
                made["cpu_seconds"] = round(before + time.process_time() - began, 1)
                write_atomically(self._file(part), json.dumps(made, indent=1, ensure_ascii=False) + "\n")

    def show(self) -> None:
        """Write the tables of the rows that there are."""
        for name, table in tables.TABLES.items():
            if (made := self._made(name))["rows"]:
                insert(self.folder / "README.md", name, table(made))

    def _check(self, part: str, made: dict[str, Any]) -> None:
        """That a part's rows are of what is asked for."""
        lengths = {row["quarters"][-1]["updates"] for row in made["rows"] if "quarters" in row}
        samples = {made.get("samples", SAMPLES)} if part in SAMPLED else set[int]()
        if made["seeds"] != self.seeds or lengths - {self.updates} or samples - {self.samples}:
            counts = [f"{length} updates" for length in sorted(lengths)] + [f"{count} samples" for count in samples]
            of = ", ".join([f"{made['seeds']} seeds", *counts])
            raise UserError(f"{self._file(part)} is of {of}; ask for as many, or move it away")

    def _made(self, part: str) -> dict[str, Any]:
        """What a part has: the rows that a stopped command had made stay."""
        file = self._file(part)
        new = {"cpu_seconds": 0.0, "seeds": self.seeds, "samples": self.samples, "rows": list[dict[str, Any]]()}
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else new
        except ValueError as error:
            raise UserError(f"{file} has no rows of a part ({error}); delete it to have them anew") from None

    def _file(self, part: str) -> Path:
        return self.folder / "results" / f"{part}.json"

    def _rows(self, part: Part, there: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """What is to be written at once."""
        match part:
            case "fixed-points":
                return ([row] for row in exact.fixed_points(self.seeds, self.samples, there))
            case "2-d" | "64-d":
                return ([row] for row in trained.compared(part, self.methods, self.seeds, self.updates, there))
        whole: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "gaussian": exact.gaussian,
            "orders": exact.orders,
            "jumps": partial(exact.jumps, self.seeds, self.samples),
            "kept": partial(exact.kept, self.seeds, self.samples),
        }
        return iter(() if there else [[*whole[part]()]])


if __name__ == "__main__":
    asked = tyro.cli(Run, description=__doc__)
    sys.exit(exit_code(lambda report: asked.run()))

"""What a run of each recipe needs: `python -m tests.recipes.needs [RECIPE ...]` writes the rows of docs/teachers.md.

Real sizes, from the published pipelines' config files; nothing is downloaded or held.
"""

import dataclasses
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.teachers.published import write_configs

from scott.commands.distill import add_models
from scott.commands.plan import gpu_hours
from scott.export.trained import network_times
from scott.recipes import RECIPES
from scott.teachers.skeleton import skeleton
from scott.training.budget import budget_of

TABLE = Path("docs/teachers.md")
PUBLISHED = {name: name for name in RECIPES if name != "mini"} | {"realistic-vision": "sd15"}
"""Recipe → the config files in tests/teachers/configs; Realistic Vision is a fine-tune of SD1.5."""


def equipped(recipe, folder, **settings):
    """A run's config, and its models on the meta device."""
    config = RECIPES[recipe](teacher=str(folder), data="none", **settings)
    backbone = skeleton(folder, config.dtype)
    add_models(backbone, dataclasses.replace(config, compile=False))
    return config, backbone


def row(recipe, config, backbone, budget):
    """The recipe's row: memory in training and before it, disk, operations, time, and the times of 2 and 4 steps."""
    grid = config.make_grid(backbone.schedule)
    cells = [f"{budget.total / 1e9:.1f}", f"{budget.start / 1e9:.1f}", f"{budget.sample_bytes / 1e6:.2f}"]
    cells += [f"{budget.flops / 1e12:.0f}", f"{gpu_hours(config, budget):.0f}"]
    cells += [", ".join(f"{time:.3g}" for time in network_times(grid, steps)) for steps in (2, 4)]
    return " | ".join([f"| `{recipe}`", *cells]) + " |"


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(PUBLISHED.keys() - {"realistic-vision"}):
        with TemporaryDirectory() as place:
            made = equipped(name, write_configs(PUBLISHED[name], Path(place)))
            needs = row(name, *made, budget_of(made[1], made[0]))
        TABLE.write_text(re.sub(rf"^\| `{name}` \| [\d.]+ .*$", needs, TABLE.read_text(), flags=re.MULTILINE))

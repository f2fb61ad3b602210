"""What a run of each recipe needs, and how its student is drawn: `python -m tests.recipes.needs [RECIPE ...]` writes
the rows of docs/teachers.md, and of each family's page in docs/teachers/ its rows and what stands between two marks.

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
from scott.export.elsewhere import elsewhere
from scott.export.pipeline import call_options
from scott.export.trained import Trained, network_times
from scott.recipes import RECIPES
from scott.teachers.skeleton import skeleton
from scott.training.budget import budget_of

TABLE = Path("docs/teachers.md")
PUBLISHED = {name: name for name in RECIPES if name != "mini"} | {"realistic-vision": "sd15"}
"""Recipe → the config files in tests/teachers/configs; Realistic Vision is a fine-tune of SD1.5."""
_PAGES = {"sd15": "sd", "sd35-medium": "sd3", "sd35-large": "sd3", "flux2-klein": "flux2"}
BEGIN, END = "<!-- python -m tests.recipes.needs -->", "<!-- end -->"


def page_of(recipe):
    return TABLE.with_suffix("") / f"{_PAGES.get(recipe, recipe)}.md"


def equipped(recipe, folder, **settings):
    """A run's config, and its models on the meta device."""
    config = RECIPES[recipe](teacher=str(folder), data="none", **settings)
    backbone = skeleton(folder, config.dtype)
    add_models(backbone, dataclasses.replace(config, compile=False))
    return config, backbone


def row(recipe, config, backbone, budget):
    """The recipe's row of the overview: `needs`, and the times of 2 and 4 steps."""
    grid = config.make_grid(backbone.schedule)
    times = [", ".join(f"{time:.3g}" for time in network_times(grid, steps)) for steps in (2, 4)]
    return f"{needs(recipe, config, budget)} {' | '.join(times)} |"


def needs(recipe, config, budget):
    """Memory in training and before it, disk, operations and time, as the beginning of a row."""
    cells = [
        f"{max(budget.total, budget.drawing) / 1e9:.1f}",
        f"{budget.start / 1e9:.1f}",
        f"{budget.sample_bytes / 1e6:.2f}",
    ]
    cells += [f"{budget.flops / 1e12:.0f}", f"{gpu_hours(config, budget):.0f}"]
    return f"| `{recipe}` | {' | '.join(cells)} |"


def smaller(config):
    """The flags that make a run hold least, on its family's page, and its config with them."""
    changes = {"quantize": "nf4", "low_memory": True, "gradient_accumulation": config.batch_size}
    flags = f"--quantize nf4 --low-memory --gradient-accumulation {config.batch_size}"
    return flags, dataclasses.replace(config, **changes)


def page_row(recipe, config, backbone, budget):
    """The recipe's row of its family's page: `needs`, and the memory of `smaller`."""
    small = budget_of(backbone, smaller(config)[1])
    return f"{needs(recipe, config, budget)} {max(small.total, small.drawing) / 1e9:.1f} | {small.start / 1e9:.1f} |"


def drawing(recipe, config, backbone):
    """How the recipe's LoRA student is drawn: the call of its pipeline, its times, and the card's part on programs."""
    info = Trained(backbone, config, 0, {"sha256": ""}).info  # weights, whose fingerprint it is, there are none
    call = {"num_inference_steps": 2, "guidance_scale": info.guidance_scale} | call_options(info.pipeline)
    call |= {"height": info.resolution, "width": info.resolution} if backbone.own_size else {}
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.items())
    times = [f"| {steps} | {', '.join(f'{time:g}' for time in stops)} |" for steps, stops in info.times.items()]
    _, *parts = elsewhere(config, info, "lora")
    parts[0] = f"**ComfyUI and A1111**. {parts[0]}"
    scott = "**scott**: `scott sample RUN --prompts prompts.txt --steps 4`."
    diffusers = (
        f"**diffusers**: `pipe(prompt, {arguments})`, with the `{info.scheduler}` that is saved beside the student."
    )
    tables = parts[1:] or ["\n".join(["| steps | times |", "| --- | --- |", *times])]
    return "\n\n".join([scott, diffusers, parts[0], *tables])


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(PUBLISHED.keys() - {"realistic-vision"}):
        with TemporaryDirectory() as place:
            made = equipped(name, write_configs(PUBLISHED[name], Path(place)))
            budget = budget_of(made[1], made[0])
            page, start = page_of(name), rf"^\| `{name}` \| [\d.]+ .*$"
            for file, line in ((TABLE, row(name, *made, budget)), (page, page_row(name, *made, budget))):
                file.write_text(re.sub(start, line, file.read_text(), flags=re.MULTILINE))
            before, _, rest = page.read_text().partition(BEGIN)
            after = rest.partition(END)[2]
            page.write_text(f"{before}{BEGIN}\n\n{drawing(name, *made)}\n\n{END}{after}")

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A student in diffusers
#
# A run's student is a stock pipeline: nothing of scott is needed to draw with it. Here is one of `scott demo` if there is
# one in `runs/demo`, or else one of a few updates, whose pictures show it.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import DiffusionPipeline, LCMScheduler

from scott.commands.distill import run
from scott.mini.embedded import GUIDANCE, TEACHER
from scott.mini.scenes import Scenes
from scott.recipes.configs import mini

plt.rcParams |= {"figure.dpi": 60, "image.interpolation": "nearest"}
UPDATES = 30
SCENES = 64
places = [folder / "runs" / "demo" for folder in (Path.cwd(), *Path.cwd().parents)]
folder = next((place for place in places if (place / "student").is_dir()), None)
work = Path(tempfile.mkdtemp())

# %% [markdown]
# Captioned pictures in a folder, a `.txt` beside each `.png`, are data as they are.

# %%
scenes = Scenes(SCENES, "train")
data = work / "pictures"
data.mkdir()
for index in range(len(scenes)):
    picture, caption = scenes[index]
    picture.save(data / f"{index}.png")
    (data / f"{index}.txt").write_text(caption)


def distilled(name, **settings):
    config = mini(out=work / name, data=str(data), max_steps=UPDATES, batch_size=8, **settings)
    run(config, lambda *progress: None)
    return config.out


if folder is None:
    folder = distilled("full")
print("a student of", "scott demo" if folder.name == "demo" else f"{UPDATES} updates")

# %% [markdown]
# ## As a pipeline
#
# The scheduler is saved with it and stops at the times it was trained for. A full student of a U-Net takes the guidance
# scale as an input: one network call a step, whatever the scale.

# %%
PROMPTS = Scenes(17 * 5, "held-out").captions()[::17]


def draw(pipeline, steps, guidance=GUIDANCE, **more):
    generator = torch.Generator().manual_seed(0)
    made = pipeline(PROMPTS, num_inference_steps=steps, guidance_scale=guidance, generator=generator, **more)
    return made.images


def show(rows):
    _, axes = plt.subplots(len(rows), len(PROMPTS), figsize=(10, 2.1 * len(rows)), squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name)
    plt.tight_layout()
    plt.show()


student = DiffusionPipeline.from_pretrained(folder / "student")
student.set_progress_bar_config(disable=True)
teacher = DiffusionPipeline.from_pretrained(TEACHER, torch_dtype=torch.float32)
teacher.set_progress_bar_config(disable=True)
print("\n".join(PROMPTS))
show({f"student, {n}": draw(student, n) for n in (1, 2, 4)} | {"teacher, 25 steps": draw(teacher, 25, GUIDANCE)})

# %%
student.scheduler.set_timesteps(4)
print(type(student.scheduler).__name__, student.scheduler.timesteps.tolist())

# %% [markdown]
# ## As a LoRA
#
# With `--train lora` the run writes a LoRA file too. On the teacher's pipeline it needs the saved scheduler, and a guidance
# scale of 1: its ω is trained in.

# %%
lora = distilled("lora", train="lora", guidance_min=GUIDANCE, guidance_max=GUIDANCE)
teacher.scheduler = LCMScheduler.from_pretrained(lora / "lora" / "scheduler")
teacher.load_lora_weights(lora / "lora")
show({"LoRA, 4 steps": draw(teacher, 4, 1.0)})

# %% [markdown]
# `set_adapters` turns it down or puts others beside it; `unload_lora_weights` gives the teacher back.

# %%
[adapter] = teacher.get_active_adapters()
teacher.set_adapters([adapter], [0.5])
show({"at half": draw(teacher, 4, 1.0)})

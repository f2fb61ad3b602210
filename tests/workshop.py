"""A folder that has what the pages name: tiny teachers under their hub ids, pictures, finished runs."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from tests.evaluation.conftest import coco

from scott.cli import main
from scott.export.single_file import original_tensors
from scott.mini import embedded
from scott.mini.scenes import Scenes
from scott.recipes.configs import RECIPES
from scott.teachers import load_backbone

VAE = "first_stage_model."
SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"
NAMED = ("my-fine-tune", "my-pipeline-folder", "SG161222/Realistic_Vision_V5.1_noVAE", SD)
DEMO = "distill mini --out runs/demo --max-steps 300 --batch-size 8"
MINE = "distill sd15 --teacher ./my-fine-tune --data ./pictures --out runs/mine"
FEWER = {
    "distill": "--max-steps 1 --batch-size 2 --gradient-accumulation 1 --tracker none "
    "--precision fp32 --no-gradient-checkpointing --loader-workers 0",
    "evaluate": "--samples 10 --bootstrap 0",
}
"""What a command is given besides, so that it takes a second: later flags win."""


def scott(*words):
    """The exit code of a command line, run in this process."""
    sys.argv = ["scott", *words]
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


def small(words):
    return [*words, *FEWER.get(words[0], "").split()]


def furnish(teacher_folders, style_lora):
    """Fill the working directory. The runs are those of the pages' own first commands."""
    for name in NAMED:
        _link(teacher_folders["sd1"], name)
    _link(teacher_folders["sdxl"], "my-sdxl")
    for recipe, make in RECIPES.items():
        _link_teacher(recipe, Path(make(data="x").teacher), teacher_folders)
    pipeline = DiffusionPipeline.from_pretrained(teacher_folders["sd1"])
    pipeline.save_pretrained("my-folder", variant="fp16")
    for name in ("style.safetensors", "lcm-lora.safetensors"):
        _link(style_lora("sd1"), name)
    _link(embedded.CLIP, "openai/clip-vit-large-patch14")
    _pictures()
    shards = f"prepare ./pictures --teacher {SD} --out data/laion"
    for line in (
        shards,
        DEMO,
        MINE,
        "export runs/mine --to checkpoint",
        "evaluate runs/demo --out runs/demo/results.json",
    ):
        assert scott(*small(line.split())) == 0, line
    inside = load_file("runs/mine/checkpoint/student.safetensors")
    for name in ("my-merge", "odd"):
        save_file(inside, f"{name}.safetensors")  # whose header does not say that it is a student
    torch.save({"state_dict": inside}, "my-merge.ckpt")
    _, tensors = original_tensors(load_backbone("my-sdxl"), 1.0)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors}, "my-sdxl.safetensors")
    vae = {name.removeprefix(VAE): value for name, value in inside.items() if name.startswith(VAE)}
    save_file(vae, "vae-ft-mse.safetensors")
    for copy in ("mini", "lcm", "a", "b", "other"):
        shutil.copytree("runs/demo", f"runs/{copy}")
    for copy in ("a", "b"):
        shutil.copy("runs/demo/results.json", f"runs/{copy}/evaluation.json")
    for copy in ("first", "sd15-scott", "sd15-lcm", "rv51-scott", "rv51-lcm"):
        shutil.copytree("runs/mine", f"runs/{copy}")
    shutil.move("runs", "made")


def fresh():
    """The runs as they were made, and nothing that another page's commands left."""
    for left in ("runs", "shards", "samples", "comparison", "tables", "pictures"):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree("held-out", "pictures")  # which pages draw into, too
    shutil.copytree("made", "runs", copy_function=_weights_linked)


def _weights_linked(source, to):
    return os.link(source, to) if source.endswith(".safetensors") else shutil.copy(source, to)


def _link(folder, name):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    if not Path(name).exists():
        Path(name).symlink_to(folder)


def _link_teacher(recipe, place, teacher_folders):
    family = {"sd15": "sd1", "realistic-vision": "sd1", "sd35-medium": "sd35"}.get(recipe, recipe)
    if recipe != "mini":
        _link(teacher_folders[family], place)


def _pictures():
    scenes = Scenes(12, "held-out")
    for folder in ("pictures", "held-out"):
        Path(folder).mkdir()
        for index in range(12):
            picture, caption = scenes[index]
            picture.save(f"{folder}/{index}.png")
            Path(folder, f"{index}.txt").write_text(caption)
    _layouts()
    scenes[0][0].save("sketch.png")
    Path("prompts.txt").write_text("a cat\na dog\n")
    for split in ("val2017", "train2017", "val2014", "train2014"):
        coco(Path(), split, 12)
    Path("MJHQ-30K/mjhq30k_imgs/animals").mkdir(parents=True)
    names = {f"{index}": {"category": "animals", "prompt": scenes[index][1]} for index in range(12)}
    for index in range(12):
        scenes[index][0].save(f"MJHQ-30K/mjhq30k_imgs/animals/{index}.jpg")
    Path("MJHQ-30K/meta_data.json").write_text(json.dumps(names))


def _layouts():
    """The same pictures as data.md shows them: beside a table, in parquet, in tars."""
    captions = {file.stem: file.read_text() for file in Path("pictures").glob("*.txt")}
    for folder in ("with-metadata", "laion", "tars"):
        Path(folder).mkdir()
    rows = [{"file_name": f"{name}.png", "text": caption} for name, caption in captions.items()]
    Path("with-metadata/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in captions:
        shutil.copy(f"pictures/{name}.png", "with-metadata")
    pictures = [Path(f"pictures/{name}.png").read_bytes() for name in captions]
    parquet.write_table(pa.table({"URL": pictures, "TEXT": list(captions.values())}), "laion/0.parquet")
    for number in range(2):
        with tarfile.open(f"tars/{number:05}.tar", "w") as tar:
            for name in list(captions)[number::2]:
                for ending in ("png", "txt"):
                    tar.add(f"pictures/{name}.{ending}", f"{name}.{ending}")

"""Python that loads a teacher as diffusers reads it: a folder or a single file, with its VAE and its LoRAs."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import diffusers

from scott.export.merging import merging, quoted
from scott.mini import embedded
from scott.teacher_source import SINGLE_FILE, TeacherSource
from scott.teachers.layout import family_class, model_index, variants
from scott.teachers.single_file import known_configs, lacking_parts


def shown(path: str | Path) -> str:
    """A path as a card shows it: of an absolute one the last part, as a path of this machine helps nobody."""
    return Path(path).name if Path(path).is_absolute() else str(path)


def teacher_lines(
    teacher: TeacherSource, pipeline: str, place: Callable[[str | Path], str] = shown
) -> tuple[list[str], list[str]]:
    """What to import from diffusers, and the lines that make a `pipe` of a teacher."""
    part = family_class(pipeline).part
    # parts stored in half precision would stay so, and not go together with the others
    given = f"{named(teacher.teacher, place)}, torch_dtype=torch.float32"
    if is_file(teacher):
        names, parts, lines = _parts_of_file(teacher, pipeline, place)
        lines += [f"pipe = {pipeline}.from_single_file({', '.join([given, *parts])})"]
    else:
        there = (Path(teacher.teacher) / part).is_dir()
        found = teacher.variant or (variants(teacher, part)[0] if there else None)
        variant = f", variant={quoted(found)}" if found else ""
        names, lines = ["DiffusionPipeline"], [f"pipe = DiffusionPipeline.from_pretrained({given}{variant})"]
        layout = named(teacher.teacher, place)
        lines += [f"pipe.vae = {_vae('type(pipe.vae)', teacher.vae, place, layout)}"] if teacher.vae else []
    for file, scale in teacher.loras:
        lines += merging(file, scale, part, _fused(pipeline), place)
    return names, lines


def _fused(pipeline: str) -> str:
    """What `fuse_lora` has to be given where it leaves out, by default, a part that the pipeline loads LoRAs into."""
    kind = getattr(diffusers, pipeline)
    parts = kind._lora_loadable_modules
    default = inspect.signature(kind.fuse_lora).parameters["components"].default
    return "" if parts == default else f"components={json.dumps(parts)}, "


def _parts_of_file(
    teacher: TeacherSource, pipeline: str, place: Callable[[str | Path], str]
) -> tuple[list[str], list[str], list[str]]:
    """Of a single file: what to import, what its reader is given besides, and the lines that make that."""
    names, options = [pipeline], []
    lines: list[str] = []
    index = model_index(teacher) if Path(teacher.teacher).is_file() else {}
    others = lacking_parts(teacher, index) if index else []
    if teacher.vae:
        names += ["AutoencoderKL"]
        layout = named(teacher.teacher_config, place) if teacher.teacher_config else _published_as(teacher)
        options = [f"vae={_vae('AutoencoderKL', teacher.vae, place, layout)}"]
        others = [name for name in others if name != "vae"]
    if teacher.teacher_config:
        layout = named(teacher.teacher_config, place)
        options = [f"config={layout}", *options, *(f"{name}=parts.{name}" for name in others)]
        if others:
            names += ["DiffusionPipeline"]
            left = f"{family_class(pipeline).part}=None, torch_dtype=torch.float32"
            lines = [f"parts = DiffusionPipeline.from_pretrained({layout}, {left})"]
    return names, options, lines


def _published_as(teacher: TeacherSource) -> str:
    """The hub id, in Python, of the pipeline that a file is laid out as; nothing where it is not there any more."""
    file = Path(teacher.teacher)
    return quoted(known_configs(file, teacher.prediction)["source"].split()[1]) if file.is_file() else ""


def size_of_file(teacher: TeacherSource) -> int | None:
    """What a pipeline has to be asked for of a file of SD2's base edition, in pixels: diffusers takes each of SD2 for
    one of 768. None of others, and where the file is not there any more."""
    file = Path(teacher.teacher)
    if not is_file(teacher) or teacher.teacher_config or not file.is_file():
        return None
    configs = known_configs(file, teacher.prediction)
    is_base = configs["name"] == "sd21" and configs["scheduler/scheduler_config.json"]["prediction_type"] == "epsilon"
    return 8 * int(configs["unet/config.json"]["sample_size"]) if is_base else None


def _vae(kind: str, vae: str, place: Callable[[str | Path], str], layout: str) -> str:
    """A VAE of its own place; of a file, with the config of the teacher's, which is in `layout`."""
    if Path(vae).suffix in SINGLE_FILE:  # which does not say its scale, and is taken for SD1.5's
        config = f', config={layout}, subfolder="vae"' if layout else ""
        return f"{kind}.from_single_file({quoted(place(vae))}{config})"
    part = ', subfolder="vae"' if (Path(vae) / "vae").is_dir() else ""
    return f"{kind}.from_pretrained({quoted(place(vae))}{part})"


def is_file(teacher: TeacherSource) -> bool:
    """Whether a teacher is a single file, which need not be there any more."""
    return Path(teacher.teacher).suffix in SINGLE_FILE


def named(teacher: str, place: Callable[[str | Path], str] = shown) -> str:
    """A teacher in Python; an embedded one is where scott is installed."""
    return "TEACHER" if import_of(teacher) else quoted(place(teacher))


def import_of(teacher: str) -> list[str]:
    return ["from scott.mini.embedded import TEACHER"] if teacher in embedded.TEACHERS else []

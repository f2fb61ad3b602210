"""`scott export`: a run's student in the forms that others read, each read back and compared before it is done.

Writing and reading back come one after the other, so that one network is in memory at a time.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from scott.choices import unknown
from scott.diffusion.tensors import DTYPES
from scott.errors import UserError
from scott.export.card import FOLDERS, with_paths, write_cards
from scott.export.info import STUDENT_INFO, StudentInfo
from scott.export.lora import read_lora, require_lora, save_lora
from scott.export.onnx import require_exportable, write_onnx
from scott.export.onnx_runtime import require_onnx
from scott.export.pipeline import read_student, round_student, save_student
from scott.export.single_file import read_checkpoint, require_unet, save_checkpoint
from scott.export.trained import Expected, Trained, replacing_folder
from scott.files import write_atomically
from scott.mini import embedded
from scott.teachers import LatentBackbone, load_backbone
from scott.teachers.fingerprint import differing, identity, network_fingerprint, network_signs, network_version
from scott.teachers.layout import model_index
from scott.training.checkpoint import (
    best_checkpoint,
    checkpoint_part,
    checkpoint_state,
    checkpoint_step,
    latest_checkpoint,
)
from scott.training.config import DistillConfig
from scott.training.launch import BACK
from scott.training.parallel import load_parameters

Identity = dict[str, dict[str, Any]]
"""Of a teacher: part → fingerprint."""
BEST = "best"
"""Folder of a run's exports of its best checkpoint."""


def export(
    run: Path,
    kind: str,
    *,
    best: bool = False,
    precision: str = "fp32",
    place: str | None = None,
    teacher: Identity | None = None,
) -> Path:
    """Export the student of a run's newest checkpoint as a kind of `FOLDERS`, or that of its best below `best`; where.

    `place` is where the run's teacher is now, if not where it was; the run has it there from then on.

    Raises `UserError` when there is no such run or checkpoint, its student has no such form, or what is read back
    differs; an older export of the kind then stays.
    """
    if kind not in FOLDERS:
        raise unknown("export", kind, FOLDERS)
    config, where = run_config(run, place), run / BEST if best else run
    if kind in ("lora", "kohya"):
        require_lora(config)
    if kind in ("checkpoint", "onnx"):
        with _found(config, run):
            pipeline = str(model_index(embedded.teacher_source(config)).get("_class_name"))
        (require_unet if kind == "checkpoint" else require_exportable)(pipeline)
    if kind == "onnx":
        require_onnx()
    _checkpoint(run, best)  # is there, before a folder is made for what comes of it
    folder, dtype = where / FOLDERS[kind], DTYPES[precision]
    load = partial(load_run, run, best=best, place=place, teacher=teacher)
    with replacing_folder(folder) as new:
        if kind == "onnx":  # which is made of a stock pipeline
            with TemporaryDirectory(dir=new) as pipeline:
                _write_and_read(load, "diffusers", Path(pipeline), dtype)
                info = write_onnx(Path(pipeline), new, dtype)
            (new / STUDENT_INFO).write_text(info.to_json(), encoding="utf-8")
        else:
            _write_and_read(load, kind, new, dtype)
    if place:
        write_atomically(run / "config.json", config.to_json())
    write_cards(where, config)
    return folder


def _write_and_read(load: Callable[[], Trained], kind: str, folder: Path, dtype: torch.dtype) -> None:
    trained = load()
    info, expected, form = _write(trained, kind, folder, dtype)
    del trained
    gc.collect()
    if form:
        read_lora(folder, kind, form, expected, dtype)
    elif kind == "checkpoint":
        read_checkpoint(folder, expected, dtype)
    else:
        read_student(folder, expected)
    (folder / STUDENT_INFO).write_text(info.to_json(), encoding="utf-8")


def _write(trained: Trained, kind: str, folder: Path, dtype: torch.dtype) -> tuple[StudentInfo, Expected, str]:
    """Write the files of an export: what it is, what it has to draw, and a LoRA's form."""
    expected = trained.expected()
    if kind in ("lora", "kohya"):
        return trained.info, expected, save_lora(trained, folder, kind, dtype)
    info = trained.info
    if kind == "checkpoint":
        info = save_checkpoint(trained, folder, dtype)
    else:
        save_student(trained.backbone, folder, trained.grid, dtype)
    if dtype != torch.float32:
        round_student(trained.backbone, dtype)
        expected = replace(expected, latents=trained.latents())
    return info, expected, ""


def is_exported(config: DistillConfig) -> bool:
    """Whether `export_finished` has been here since the last step, and for the ω that the student is drawn at."""
    made = (config.max_steps, config.drawn_guidance)
    infos = [StudentInfo.read(config.out / FOLDERS[kind]) for kind in _finished(config)]
    return all(info is not None and (info.updates, info.guidance) == made for info in infos)


def export_finished(config: DistillConfig, teacher: Identity) -> None:
    """What every run ends with: the stock pipeline, and for a LoRA student the LoRA file too. Raises as `load_run`."""
    for kind in _finished(config):
        export(config.out, kind, teacher=teacher)


def _finished(config: DistillConfig) -> tuple[str, ...]:
    return ("diffusers", "lora") if config.train == "lora" else ("diffusers",)


def _checkpoint(run: Path, best: bool) -> Path:
    """The newest of a run, or its best. Raises `UserError` where there is none."""
    found = best_checkpoint(run / "checkpoints") if best else latest_checkpoint(run / "checkpoints")
    if found is None:
        if not best and (run / FOLDERS["diffusers"]).is_dir():
            raise UserError(f"{run} has been trained, and its checkpoints are gone, of which exports are made; {BACK}")
        way_out = "train with --validate-every and --best-metric" if best else "go on with the command that started it"
        raise UserError(f"{run} has no {'best ' if best else ''}checkpoint yet; {way_out}")
    return found


def load_run(run: Path, *, best: bool = False, place: str | None = None, teacher: Identity | None = None) -> Trained:
    """The student of a run's newest checkpoint, or of its best, in fp32 on the CPU.

    A full student takes the teacher's place, so that one network is held. Raises `UserError` when there is no run, no
    checkpoint, or one that does not fit the run's config, or where the teacher's folder (`place`, if it was moved)
    holds another than the run's, or than the one whose identity is given: fp32 weights on a CPU are mapped from their
    file, and change in memory when that is rewritten.
    """
    config = run_config(run, place)
    newest = _checkpoint(run, best)
    with _found(config, run):
        backbone = load_backbone(embedded.teacher_source(config))
    now = identity(backbone) if teacher else {}
    if teacher and (changed := [name for name, was in teacher.items() if differing(was, now.get(name))]):
        raise UserError(
            f"{config.teacher} has another {', '.join(changed)} than when the run began; put back what it was, and "
            "give the same command again to export the student"
        )
    if config.resolution:
        backbone.resize(config.resolution)
    _check_teacher(backbone, config, run, newest)
    base = network_fingerprint(backbone.network)
    tensors = checkpoint_part(newest, "target")
    if config.train == "full":
        backbone.become(tensors)
    else:
        layers = backbone.student_targets
        backbone.adapters.add("target", layers, config.lora_rank, config.alpha, config.lora_variant)
        backbone.train_mode = "lora"  # without the student that learns, which takes as long to add
        load_parameters(backbone.target_parameters(), tensors, "target")
    return Trained(backbone, config, checkpoint_step(newest), base)


@contextmanager
def _found(config: DistillConfig, run: Path) -> Iterator[None]:
    """Says the way out where a run's teacher is not at its place."""
    try:
        yield
    except UserError as error:
        if Path(embedded.teacher_source(config).teacher).exists():
            raise
        raise UserError(f"{error}; if the teacher of {run} was moved, give --teacher with its place") from None


def _check_teacher(backbone: LatentBackbone, config: DistillConfig, run: Path, checkpoint: Path) -> None:
    """Raise `UserError` where a network is not the one that a run distilled, or would be read in another way; one with
    LoRAs merged in may differ by rounding."""
    state = checkpoint_state(checkpoint)
    if config.loras:
        was, now = state.get("signs"), network_signs(backbone.network)
    else:
        was, now = state.get("teacher"), network_version(backbone.network, config.dtype)
    if was and was != now:
        raise UserError(f"{config.teacher} is not the teacher that {run} distilled; name that one by --teacher")
    if state.get("schedule", repr(backbone.schedule)) != repr(backbone.schedule):
        raise UserError(
            f"{config.teacher} has another schedule or prediction than the teacher that {run} distilled; name that "
            "one by --teacher"
        )


def run_config(run: Path, place: str | None = None) -> DistillConfig:
    """A run's, with the place that its teacher has now, if it has moved. Raises `UserError` where there is none."""
    if not (run / "config.json").is_file():
        what = f"{run} has no config.json" if run.is_dir() else f"no run at {run}"
        raise UserError(f"{what}; expected the run folder of a `scott distill`")
    config = DistillConfig.load(run / "config.json")
    return with_paths(replace(config, teacher=place)) if place else config

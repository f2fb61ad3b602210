"""`scott export`: a run's student in the forms that others read, each read back and compared before it is done."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from scott.choices import unknown
from scott.errors import UserError
from scott.export.card import FOLDERS, write_cards
from scott.export.lora import lora_form, require_lora, write_lora
from scott.export.onnx import require_onnx, write_onnx
from scott.export.pipeline import write_student
from scott.export.trained import STUDENT_INFO, StudentInfo, Trained, replacing, student_grid, teacher_source
from scott.teachers import LatentBackbone, load_backbone
from scott.training.checkpoint import best_checkpoint, checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.parallel import load_parameters

BEST = "best"
"""Folder of a run's exports of its best checkpoint."""


def export(run: Path, kind: str, *, best: bool = False) -> Path:
    """Export the student of a run's newest checkpoint as a kind of `FOLDERS`, or that of its best below `best`; where.

    Raises `UserError` when there is no such run or checkpoint, its student has no such form, or what is read back
    differs; an older export of the kind then stays.
    """
    if kind not in FOLDERS:
        raise unknown("export", kind, FOLDERS)
    config = _config(run)
    if kind in ("lora", "kohya"):
        require_lora(config)
    if kind == "onnx":
        require_onnx()
    return export_trained(load_run(run, best=best), run / BEST if best else run, kind)


def is_exported(config: DistillConfig) -> bool:
    """Whether `export_finished` has been here since the last step."""
    info = StudentInfo.read(config.out / FOLDERS["lora" if config.train == "lora" else "diffusers"])
    return info is not None and info.updates == config.max_steps


def export_finished(backbone: LatentBackbone, config: DistillConfig) -> None:
    """What every run ends with: the stock pipeline, and for a LoRA student the LoRA file too.

    A backbone that computes in fewer bits, is compiled or split over processes is read again from the run, in fp32.
    """
    whole = config.precision == "fp32" and config.quantize == "none"
    plain = whole and not config.compile and config.shard == "none"
    trained = Trained(backbone.to("cpu"), config, config.max_steps) if plain else load_run(config.out)
    export_trained(trained, config.out, "diffusers")
    if config.train == "lora":
        export_trained(trained, config.out, "lora")


def export_trained(trained: Trained, run: Path, kind: str) -> Path:
    """Export a student into the folder `run`, and write its cards. Raises as `export` does."""
    folder = run / FOLDERS[kind]
    form = lora_form(trained, kohya=kind == "kohya") if kind in ("lora", "kohya") else ""
    # ONNX is made of the stock pipeline
    student = export_trained(trained, run, "diffusers") if kind == "onnx" else None
    with replacing(folder) as partial:
        if form:
            write_lora(trained, partial, form)
        elif student:
            there = load_backbone(student)
            grid = student_grid(there.schedule, trained.info.original_inference_steps)
            write_onnx(student, there, grid, trained.info, partial)
        else:
            write_student(trained, partial)
        (partial / STUDENT_INFO).write_text(trained.info.to_json(), encoding="utf-8")
    write_cards(run, trained.config)
    return folder


def load_run(run: Path, *, best: bool = False) -> Trained:
    """The student of a run's newest checkpoint, or of its best, in fp32 on the CPU.

    Raises `UserError` when there is no run, no checkpoint, or one that does not fit the run's config.
    """
    config = _config(run)
    newest = best_checkpoint(run / "checkpoints") if best else latest_checkpoint(run / "checkpoints")
    if newest is None:
        way_out = "train with --validate-every and --best-metric" if best else "go on with the command that started it"
        raise UserError(f"{run} has no {'best ' if best else ''}checkpoint yet; {way_out}")
    backbone = load_backbone(teacher_source(config))
    if config.resolution:
        backbone.resize(config.resolution)
    backbone.add_student(config.train, rank=config.lora_rank, alpha=config.alpha, variant=config.lora_variant)
    file = newest / "target.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); delete {newest} to use the one before") from None
    load_parameters(backbone.target_parameters(), tensors, "target")
    return Trained(backbone, config, checkpoint_step(newest))


def _config(run: Path) -> DistillConfig:
    if not (run / "config.json").is_file():
        raise UserError(f"{run} has no config.json; expected the run folder of a `scott distill`")
    return DistillConfig.load(run / "config.json")

"""A config, carried out: load teacher and data, distil, save the student and compare it with what was saved."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.commands.export import export_finished, is_exported
from scott.commands.initial import check_start, doubt_of_seed, initial_lora, start_as
from scott.commands.options import has_data
from scott.commands.prepare import Warn, check_data, open_data, resolution_of
from scott.commands.validation import Validation
from scott.data.mixture import Prepared
from scott.data.preparation import Report
from scott.data.sources import check_there
from scott.device import best_device
from scott.errors import UserError, printable
from scott.export.card import with_paths
from scott.export.info import METADATA
from scott.files import replacing
from scott.mini import embedded
from scott.recipes.configs import RECIPES, passes_of
from scott.recipes.families import FAMILIES, recipes_of
from scott.teacher_source import TeacherSource, few_step_word
from scott.teachers import LatentBackbone, load_backbone
from scott.teachers.fingerprint import identity
from scott.teachers.layout import model_index, read_json
from scott.teachers.load import doubt_of_prediction
from scott.teachers.single_file import metadata_of
from scott.training.checkpoint import checkpoint_state, latest_checkpoint
from scott.training.checks import check_given, doubt_of_critic
from scott.training.config import DistillConfig
from scott.training.launch import opened_run, start_processes
from scott.training.metrics import WARNINGS
from scott.training.optimization import optimizer_class
from scott.training.parallel import shard
from scott.training.trainer import Hooks, distill


def config_of(recipe: str | None, given: Mapping[str, Any], processes: int = 1) -> tuple[str, DistillConfig]:
    """A recipe, or the one that its teacher's family has; and its config with what was given, for so many processes.

    Raises `UserError` where a named recipe is of another family than the teacher, and as `DistillConfig` does.
    """
    if (teacher := given.get("teacher")) is not None:
        files = {field.name: given[field.name] for field in fields(TeacherSource) if field.name in given}
        source = embedded.teacher_source(TeacherSource(**files))
        pipeline = str(model_index(source).get("_class_name"))
        if pipeline not in FAMILIES:
            raise UserError(f"{teacher} is a {pipeline}; expected {', '.join(FAMILIES)}")
        network = read_json(source, "transformer/config.json") if pipeline == "StableDiffusion3Pipeline" else {}
        suiting = recipes_of(teacher, pipeline, network)
        if recipe is None:
            recipe = suiting[0]
        elif recipe not in suiting:
            raise UserError(f"{teacher} is a {pipeline}, which the recipe {recipe} is not for; use {suiting[0]}")
    if recipe is None:
        raise UserError(f"got neither a recipe nor --teacher; expected one of {', '.join(RECIPES)}, or the teacher")
    if "data" not in given and not has_data(recipe):
        raise UserError(f"got no --data, and the recipe {recipe} has none of its own; name pictures or shards")
    config = RECIPES[recipe](**given)
    if not all(config.sources):
        raise UserError(f"got data {', '.join(map(repr, config.sources))}; expected the name of a source")
    check_given(config, given)
    if processes > 1 and "gradient_accumulation" not in given:
        config = replace(config, gradient_accumulation=passes_of(recipe, config.batch_size, processes))
    return recipe, config


def check_config(backbone: LatentBackbone, config: DistillConfig) -> None:
    """Raise `UserError` where a config does not suit its teacher."""
    named = few_step_word(config.teacher)
    ours = Path(config.teacher).is_file() and METADATA in metadata_of(Path(config.teacher))
    if backbone.original_inference_steps is not None or named or ours:
        by = f" by its name ({named}; if it is none, give it as a folder or file of another name)" if named else ""
        raise UserError(f"{config.teacher} is a few-step student already{by}; distil from the teacher it was made from")
    if not backbone.takes_guidance and config.guidance_min != config.guidance_max:
        raise UserError(
            f"got guidance from {config.guidance_min} to {config.guidance_max} for {config.teacher}, whose student "
            "takes no ω; set guidance_min = guidance_max"
        )
    schedule = backbone.schedule
    if config.solver == "ddim" and config.eta == 1 and bool(schedule.lam(schedule.last_time).isinf()):
        raise UserError("got eta 1 with ddim, whose first jump would forget the pure noise it starts from; use less")
    config.make_solver(schedule)
    config.make_grid(schedule)


def add_models(backbone: LatentBackbone, config: DistillConfig) -> None:
    """Student, EMA target and critic as the config has them, from its seed."""
    torch.manual_seed(config.seed)  # LoRA's A is random
    backbone.add_student(config.train, rank=config.lora_rank, alpha=config.alpha, variant=config.lora_variant)
    if config.has_critic:
        backbone.add_critic(config.critic_rank, config.critic)
    if config.gradient_checkpointing:
        backbone.checkpoint_activations()
    if config.compile:
        backbone.compile()


def run(config: DistillConfig, report: Report, warn: Warn = lambda message: None) -> None:
    """Distil as `config` says into `config.out`, resuming what is there, and write `config.out/student`.

    Each of several processes calls it alike; the first reports and writes. Everything that can be wrong with the input
    is found before the first step (see `DistillConfig`, `load_backbone`, `opened_run`, `open_data`).
    """
    accelerator = start_processes(config)
    first = accelerator.is_main_process
    report, warn = (report, warn) if first else (lambda *_: None, lambda message: None)
    for name in config.sources:  # before a teacher is downloaded and read
        check_there(name)
    optimizer_class(config.optimizer)
    backbone = load_backbone(embedded.teacher_source(config), config.dtype, config.quantize)
    check_config(backbone, config)
    backbone.in_turn = config.low_memory
    teacher = identity(backbone)
    check_data(config.sources, backbone, config)
    if (resolution := resolution_of(config.sources, backbone, config)) != backbone.resolution:
        backbone.resize(resolution)
        config = replace(config, resolution=resolution)
    check_start(backbone, config)
    lora, config = initial_lora(backbone, config, warn), with_paths(config)
    with opened_run(config, backbone.version, backbone.schedule, accelerator):
        if first:
            warn = _kept(warn, config.out / WARNINGS)
            for doubt in filter(None, (doubt_of_prediction(backbone), doubt_of_critic(config), doubt_of_seed(config))):
                warn(doubt)
        data = data_and_models(backbone, config, lora, config.out / "data", report, warn)
        if config.shard == "full":
            shard(backbone)
        validation = Validation(backbone, config.make_grid(backbone.schedule), config, data, warn)
        if config.validate_every:
            validation.make_ready()
        backbone.keep_prompts(validation.conditions)
        hooks = _hooks(config, validation, report, warn, first)
        made = distill(backbone, data, config, hooks, accelerator, opened=True)
        del backbone, data, validation, hooks  # the export holds a network of its own
        if first and (made or not is_exported(config)):
            report("export", 0, 1, {})
            export_finished(config, teacher)
            report("export", 1, 1, {})


def data_and_models(
    backbone: LatentBackbone, config: DistillConfig, lora: dict[str, Tensor], cache: Path, report: Report, warn: Warn
) -> Prepared:
    """The data, prepared in `cache` where they are not; then the student, which starts as `init` says (`lora`: what
    `initial_lora` read of that), and the critic."""
    latest = latest_checkpoint(config.out / "checkpoints")
    begun_on = checkpoint_state(latest).get("data") if latest else None
    how: dict[str, Any] = {"reading": config, "weights": config.weights, "warn": warn, "begun_on": begun_on}
    data = open_data(config.sources, backbone, cache, config.seed, report, **how)
    backbone.place_encoders("cpu")  # a device holds them or the network, never both
    if config.shard == "none":  # or `shard` sends parts there: a device need not have room for the whole
        backbone.place_network(best_device())
    add_models(backbone, config)
    start_as(backbone, config, lora)
    return data


def _kept(warn: Warn, file: Path) -> Warn:
    """Also adds a line to the file for each warning."""

    def both(message: str) -> None:
        warn(message)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(f"{printable(message)}\n")

    return both


def _hooks(config: DistillConfig, validation: Validation, report: Report, warn: Warn, first: bool) -> Hooks:
    def sample(step: int) -> dict[str, float]:
        picture, figures = validation.draw(step)
        if first:
            file = config.out / "samples" / f"step-{step:08d}.png"
            with replacing(file, file.with_suffix(".partial")) as partial:  # who watches may read it
                picture.save(partial, "PNG")
        return figures

    return Hooks(
        progress=lambda done, terms: report("distil", done, config.max_steps, terms),
        sample=sample,
        validate=lambda step: validation.measure(),
        warn=warn,
    )

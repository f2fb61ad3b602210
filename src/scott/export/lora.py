"""The student as a LoRA file for the original teacher, and back.

    kohya       U-Nets: keys and metadata of `kohya.py`, α as a tensor a layer: for diffusers, ComfyUI and A1111 alike
    diffusers   SD3, and DoRA: keys `unet.<layer>.lora_A.weight`, for `pipe.load_lora_weights`
    peft        adapter_model.safetensors and adapter_config.json, for pipelines without `load_lora_weights`:
                `PeftModel.from_pretrained`

A form without α as a tensor has s = α / r folded into B and α = r in its metadata, so that readers who skip the
metadata draw the same. A DoRA has `lora_magnitude_vector` besides A and B. A file whose keys a reader does not know
loads without an error and changes nothing, so what counts is what the reader's network then holds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scott.errors import UserError, first_line
from scott.export.info import METADATA, StudentInfo
from scott.export.kohya import kohya_keys, kohya_metadata
from scott.export.pipeline import check_latents, stock_latents
from scott.export.trained import TOLERANCE, Expected, Factors, Trained, few_step_scheduler
from scott.teachers import LatentBackbone, load_backbone
from scott.teachers.fingerprint import differing, is_fingerprint, is_quantised, label, network_fingerprint
from scott.teachers.lora_files import load_lora, lora_path, misfitting
from scott.teachers.lora_names import header
from scott.training.config import DistillConfig
from scott.training.parallel import load_parameters

FILES = {"lora": "pytorch_lora_weights.safetensors", "kohya": "lora.safetensors"}
"""Kind of export → its file; peft's is `PEFT`."""
PEFT = "adapter_model.safetensors"
_DORA = ".lora_magnitude_vector"


def require_lora(config: DistillConfig) -> None:
    """Raise `UserError` unless the run's student is a LoRA."""
    if config.train != "lora":
        raise UserError("the run trained a full student, which no LoRA file can hold; use --to diffusers")


def lora_form(backbone: LatentBackbone, variant: str, kind: str) -> str:
    """The form of a LoRA student's file as `--to lora` or `--to kohya`. Raises `UserError` where there is none."""
    name = type(backbone.pipeline).__name__
    if kind == "kohya" and backbone.part != "unet":
        raise UserError(f"kohya's keys are known for U-Nets only, and {name} has a transformer; use --to lora")
    if kind == "kohya" and variant == "dora":
        raise UserError("kohya's programs read DoRA each in its own way; use --to lora or --to diffusers")
    if backbone.part == "unet" and variant != "dora":
        return "kohya"
    return "diffusers" if hasattr(backbone.pipeline, "load_lora_weights") else "peft"


def lora_file(kind: str, form: str) -> str:
    """The name of the file."""
    return PEFT if form == "peft" else FILES[kind]


def save_lora(trained: Trained, folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> str:
    """Write the EMA student's LoRA, and beside it the scheduler to draw with; its form."""
    backbone, config = trained.backbone, trained.config
    form = lora_form(backbone, config.lora_variant, kind)
    scale, rank = backbone.adapters.scaling("target"), config.lora_rank
    parameters = backbone.target_parameters()
    metadata = {"format": "pt", METADATA: trained.info.to_json()}
    tensors = {key: parameters[name].detach() for key, name in _keys(backbone, form, config.lora_variant).items()}
    if form == "kohya":
        keys = kohya_keys(backbone, backbone.student_targets).values()
        tensors |= {f"{key}.alpha": torch.tensor(scale * rank) for key in keys}
        metadata |= kohya_metadata(backbone, rank, scale * rank, f"{config.out.name} ({trained.info.updates} updates)")
    else:
        tensors |= {key: scale * value for key, value in tensors.items() if key.endswith("lora_B.weight")}
        # α is folded in; this is all that any version of peft and diffusers asks for
        adapter: dict[str, Any] = {
            "r": rank,
            "lora_alpha": rank,
            "target_modules": backbone.student_targets,
            "rank_pattern": {},
            "alpha_pattern": {},
            "lora_bias": False,
            "use_rslora": False,
            "use_dora": config.lora_variant == "dora",
        }
        if form == "peft":
            LoraConfig(**adapter).save_pretrained(folder)
        metadata["lora_adapter_metadata"] = json.dumps({f"{backbone.part}.{k}": v for k, v in adapter.items()})
    rounded = {key: value.to(dtype).contiguous() for key, value in tensors.items()}
    save_file(rounded, folder / lora_file(kind, form), metadata)
    few_step_scheduler(backbone, trained.grid).save_pretrained(folder / "scheduler")
    return form


def read_lora(folder: Path, kind: str, form: str, expected: Expected, dtype: torch.dtype = torch.float32) -> None:
    """Have the file's reader put it on a fresh copy of the original teacher.

    Raises `UserError` when other layers are changed there than the student changes, or in another way, or when the
    2-step latent is off.
    """
    backbone = load_backbone(expected.teacher)
    pipeline, part = backbone.pipeline, expected.part
    pipeline.scheduler = expected.scheduler
    if form == "peft":
        setattr(pipeline, part, PeftModel.from_pretrained(getattr(pipeline, part), str(folder)).eval())
    else:
        pipeline.load_lora_weights(str(folder), weight_name=lora_file(kind, form))
    _check_updates(getattr(pipeline, part), expected.updates, folder, dtype)
    got = backbone.from_pipeline(stock_latents(pipeline, expected.info.guidance_scale, expected.resolution))
    check_latents("the stock pipeline", folder, expected.latents, got, expected.tolerance(dtype))


def apply_lora(backbone: LatentBackbone, path: Path, warn: Callable[[str], None] = lambda message: None) -> StudentInfo:
    """Make a file that `save_lora` wrote, or a folder with one, the `target` of a teacher.

    Raises `UserError` when there is no such file, or its layers are not this teacher's.
    """
    info, alpha, tensors = read_lora_file(path)
    assert info.lora_rank is not None
    variant = "dora" if info.lora_variant == "dora" else "lora"
    backbone.adapters.add("target", backbone.student_targets, info.lora_rank, alpha, variant)
    backbone.train_mode = "lora"
    load_parameters(backbone.target_parameters(), lora_parameters(backbone, path, variant, tensors), "LoRA")
    warn_of_base(backbone.network, path, info, warn)
    return info


def read_lora_file(path: Path) -> tuple[StudentInfo, float, dict[str, Tensor]]:
    """What a file that `save_lora` wrote, or a folder with one, was made for; its α; its tensors. Raises `UserError`
    when there is no such file."""
    file = lora_path(path)
    if (info := lora_info(file)) is None:
        raise UserError(f"{file} was not written by `scott export`, so its steps are unknown; draw it with diffusers")
    if info.lora_rank is None or not is_fingerprint(info.base):
        raise UserError(f"{file} does not say its rank and its base; export it again")
    tensors = {key: value.float() for key, value in load_file(file).items()}
    ranks = {value.shape[:1] for key, value in tensors.items() if key.endswith(("lora_A.weight", "lora_down.weight"))}
    alphas = [value for key, value in tensors.items() if key.endswith(".alpha")]
    finite = all(bool(value.isfinite().all()) for value in tensors.values())
    if ranks != {(info.lora_rank,)} or not finite or any(alpha.numel() != 1 for alpha in alphas):
        raise UserError(
            f"{file} is not as it was written: not of rank {info.lora_rank}, or not finite; export it again"
        )
    alpha = alphas[0].item() if alphas else float(info.lora_rank)
    return info, alpha, {key: value for key, value in tensors.items() if not key.endswith(".alpha")}


def warn_of_base(network: nn.Module, path: Path, info: StudentInfo, warn: Callable[[str], None]) -> None:
    """Warn where a LoRA was made for another base: it fits any network of its shapes, and people use it on fine-tunes
    of its base on purpose. What is quantised cannot be told."""
    if not is_quantised(network) and differing(info.base, here := network_fingerprint(network)):
        made, file = label(info.base), lora_path(path)
        warn(f"{file} was made for {made}, not for {label(here)}; a LoRA draws best on its own base")


def lora_info(file: Path) -> StudentInfo | None:
    """What a LoRA file of `save_lora` was made for; None of another's. Raises `UserError` where it cannot be read."""
    _, metadata = header(file)
    return StudentInfo.from_json(metadata[METADATA], file) if METADATA in metadata else None


def foreign_factors(backbone: LatentBackbone, file: Path) -> dict[str, Factors]:
    """Layer → update of a LoRA file by another program, in any names that diffusers reads: kohya's, peft's, its own.
    Raises `UserError` where it is not one of this network."""
    pipeline, network = backbone.pipeline, backbone.network
    try:
        load_lora(pipeline, file, text=False)
        layers = {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}
        found = {name: Factors.of(layer, layer.active_adapters[0]) for name, layer in layers.items()}
        pipeline.unload_lora_weights()
    except UserError:
        raise
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a LoRA of this teacher: {first_line(error)}") from None
    return found


def lora_parameters(
    backbone: LatentBackbone, path: Path, variant: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The file's tensors by the names of a student's parameters. Raises `UserError` where they are of other layers, or
    other sizes."""
    named = [_keys(backbone, form, variant) for form in ("kohya", "diffusers", "peft")]
    keys = max(named, key=lambda keys: len(keys.keys() & tensors))
    given = set(tensors)
    if given != (wanted := set(keys)):
        raise UserError(
            f"{path} is a LoRA of another kind of teacher: {len(wanted - given)} keys are missing and "
            f"{len(given - wanted)} are unknown; give the --teacher it was made for"
        )
    found = {keys[key]: tensors[key] for key in given}
    sizes = {name: tuple(value.shape) for name, value in found.items()}
    if misfits := misfitting(backbone.network, backbone.student_targets, sizes):
        raise UserError(
            f"{path} is a LoRA of another kind of teacher: {len(misfits)} layers have other sizes here, such as "
            f"{misfits[0]}; give the --teacher it was made for"
        )
    return found


def _check_updates(network: nn.Module, ours: dict[str, Factors], folder: Path, dtype: torch.dtype) -> None:
    """Raise `UserError` unless peft's layers on `network` hold the student's updates, each and no other."""
    loaded = {
        name.removeprefix("base_model.model."): module
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }
    if loaded.keys() != ours.keys():
        raise UserError(
            f"the LoRA read back from {folder} changes {len(loaded)} layers, {len(loaded.keys() & ours.keys())} of the "
            f"student's {len(ours)}; nothing was exported"
        )
    for name, module in loaded.items():
        want, got = ours[name].product(), Factors.of(module, module.active_adapters[0]).product()
        if not (want - got).abs().max() <= TOLERANCE[dtype] * want.abs().max():
            half = "" if dtype == torch.float32 else "; it may be too small for half precision: leave that out"
            raise UserError(f"the LoRA read back from {folder} differs on layer {name}, nothing was exported{half}")


def _keys(backbone: LatentBackbone, form: str, variant: str) -> dict[str, str]:
    """Key in the file → name of a student's parameter."""
    if form == "kohya":
        if backbone.part != "unet" or variant == "dora":
            return {}
        ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
        keys = kohya_keys(backbone, backbone.student_targets)
        return {f"{key}.{end}": f"{layer}.{name}" for layer, key in keys.items() for end, name in ends.items()}
    prefix = backbone.part if form == "diffusers" else "base_model.model"
    # a DoRA's norms are a module within the network, and a tensor in all files
    parts = ("lora_A", "lora_B", *(["lora_magnitude_vector"] if variant == "dora" else []))
    names = [f"{layer}.{part}.weight" for layer in backbone.student_targets for part in parts]
    return {f"{prefix}.{name.replace(f'{_DORA}.weight', _DORA)}": name for name in names}

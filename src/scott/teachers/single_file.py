"""A whole pipeline in one file, in the names of its original code, as model sites offer it; read by diffusers' readers.

What such a file does not hold is how its networks are built, and its tokenizers. Configs of the published pipelines are
in `configs/`; CLIP's tokenizer comes from open_clip's package, where that is installed, or from the hub. Files of FLUX
and SD3.5 often hold the network alone, and some files no VAE: other parts are those of --teacher-config and --vae.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders.single_file_utils import (
    CHECKPOINT_KEY_NAMES,
    infer_diffusers_model_type,
    is_t5_in_single_file,
)
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from scott.errors import UserError
from scott.teacher_source import TeacherSource
from scott.teachers.single_file_tensors import UNET, read_tensors
from scott.teachers.tokenizers import KINDS, tokenizer_of

CONFIGS = Path(__file__).parent / "configs"
_VAE = ("first_stage_model.", "vae.")
_SD1_TEXT = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
_CLIPS = {
    "text_encoder": ("clip", "clip_sdxl", "clip_sd3", "open_clip"),
    "text_encoder_2": ("open_clip_sdxl", "open_clip_sd3"),
}
"""Part → diffusers' names of a weight that a file has with it."""
_OTHERWISE = {"text_encoder": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")}
"""How names begin in files that diffusers' scripts make under transformers 5; no reader takes them."""
PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon"}


@cache
def known_configs(file: Path, prediction: str | None = None) -> dict[str, Any]:
    """Path → content of the configs of a checkpoint's kind, of the prediction that is given or else the file's own.

    Raises `UserError` for one that is not known.
    """
    tensors = read_tensors(file)
    name = kind_of(tensors)
    if name is None:
        _check_names(file, "text_encoder", tensors)
        raise UserError(
            f"{file} is none of {', '.join(KINDS.values())}, whose configs are known; give --teacher-config a "
            "diffusers folder or hub id of its kind"
        )
    configs = published(name)
    index, scheduler = configs["model_index.json"], configs["scheduler/scheduler_config.json"]
    if name.startswith("sd3") and not is_t5_in_single_file(tensors):
        index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    kind, _, zero = (prediction or predicted(file)).partition("-")
    if kind and "prediction_type" in scheduler:
        scheduler |= {"prediction_type": PREDICTIONS[kind], "rescale_betas_zero_snr": bool(zero)}
    if (name, kind) == ("sd21", "epsilon"):  # SD2's base edition, whose networks are 2.1's, of 512 pixels
        configs["unet/config.json"]["sample_size"] = 64
    return configs | {"name": name}


def predicted(file: Path) -> str:
    """What a file says that it predicts: epsilon, v or v-ztsnr; or nothing."""
    tensors = read_tensors(file)
    if "v_pred" in tensors:  # how fine-tunes of SDXL mark it, for ComfyUI and A1111
        return "v-ztsnr" if "ztsnr" in tensors else "v"
    said = metadata_of(file)
    if said.get("modelspec.architecture", "").startswith("stable-diffusion-v2-512"):
        return "epsilon"
    return kind if (kind := said.get("modelspec.prediction_type", "")) in PREDICTIONS else ""


def check_network(file: Path, kind: type[ModelMixin], config: dict[str, Any]) -> None:
    """Raise `UserError` where a file's U-Net has another number of weights than that of a class and its config."""
    if kind.__name__ != "UNet2DConditionModel":
        return
    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
    found = sum(value.numel() for name, value in read_tensors(file).items() if name.startswith(UNET))
    if found != expected:
        raise UserError(
            f"the network of {file} has {found:,} weights and that of its configs {expected:,}; give "
            "--teacher-config a diffusers folder or hub id of its kind"
        )


def published(name: str, *folders: Path) -> dict[str, Any]:
    """Path → content of the config files of one published pipeline, of `CONFIGS` or other folders.

    A file that is another pipeline's but for a few values names that pipeline as `like`, and which file as `like_file`.
    """
    (file,) = (folder / f"{name}.json" for folder in (CONFIGS, *folders) if (folder / f"{name}.json").is_file())
    files: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for path, config in files.items():
        if "like" in config and path != "source":
            other = published(config.pop("like"), *folders)[config.pop("like_file", path)]
            files[path] = other | config
    return files


def lacking_parts(source: TeacherSource, index: Mapping[str, Any]) -> list[str]:
    """Text encoders and VAE that a checkpoint has not. Raises `UserError` where no other place is named for one."""
    assert source.file is not None
    tensors, lacking = read_tensors(source.file), []
    for part, (_, kind) in ((name, entry) for name, entry in index.items() if isinstance(entry, list)):
        if part == "vae":
            found = any(name.startswith(_VAE) for name in tensors)
        elif part.startswith("text_encoder") and kind is not None:
            clips = [CHECKPOINT_KEY_NAMES[name] for name in _CLIPS.get(part, ()) if kind.startswith("CLIP")]
            found = not tensors.keys().isdisjoint(clips) or (kind[0] == "T" and is_t5_in_single_file(tensors))
        else:
            continue
        if not found:
            _check_names(source.file, part, tensors)
            lacking.append(part)
            if source.teacher_config is None and (part != "vae" or source.vae is None):
                also = ", or --vae" if part == "vae" else ""
                raise UserError(
                    f"{source.file} has no {part}; give --teacher-config a diffusers folder or hub id that has it{also}"
                )
    return lacking


def _check_names(file: Path, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise `UserError` where a file has a part under names that no reader takes."""
    others = _OTHERWISE.get(part, ())
    own = (name for name in tensors if name.startswith(others) and ".transformer.text_model." not in name)
    if name := next(own, None):
        raise UserError(
            f"{file} has a {part} under names that are not read, such as {name}; write it again with "
            "`.transformer.text_model.` for `.transformer.`"
        )


def metadata_of(file: Path) -> dict[str, str]:
    """What the header of a checkpoint says; nothing of a .ckpt."""
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def kind_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The published pipeline, of `KINDS`, that a checkpoint's tensors are laid out as."""
    kind = infer_diffusers_model_type(tensors)
    if kind == "v1":  # diffusers' answer for all that it does not know
        conv_in, text = (tensors.get(name) for name in ("model.diffusion_model.input_blocks.0.0.weight", _SD1_TEXT))
        if conv_in is None or text is None or (conv_in.shape[0], text.shape[1]) != (320, 768):
            return None
    return KINDS.get(kind)


def load_single_file(
    source: TeacherSource,
    kind: type[DiffusionPipeline],
    part: str,
    network: type[ModelMixin],
    dtype: torch.dtype,
    options: dict[str, Any],
) -> DiffusionPipeline:
    """The pipeline of a checkpoint, its VAE in fp32 and all else in `dtype`; its `part` is the network.

    Raises ValueError where the file lacks weights, and `UserError` where there is no tokenizer for it.
    """
    with config_folder(source) as folder:
        # a pipeline's reader takes one dtype for all parts, without one fp32: twice what a network's file is
        options[part] = read_single_file(network, source.file, config=folder, subfolder=part, torch_dtype=dtype)
        pipeline = read_single_file(kind, source.file, config=folder, **options)
    for name, model in pipeline.components.items():
        if isinstance(model, PreTrainedModel) and not model.get_input_embeddings().weight.is_meta:
            model.tie_weights()  # a T5's two names of one embedding, of which a file may have one, or both
        if isinstance(model, nn.Module):
            if lacking := [key for key, value in model.state_dict().items() if value.is_meta]:
                raise ValueError(f"it lacks {len(lacking)} weights of {name}, such as {lacking[0]}")
            cast(model, torch.float32 if name == "vae" else dtype)
    return pipeline


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what `from_pretrained` casts: weights, not the buffers that are made anew, nor what overflows in fp16."""
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype if kept.isdisjoint(name.split(".")) else torch.float32)


def read_single_file(kind: Any, file: Path | str | None, **options: Any) -> Any:
    """`from_single_file` of a model's or a pipeline's class. Raises ValueError where the file lacks weights."""
    try:
        return kind.from_single_file(str(file), **options)
    except NotImplementedError:  # what has no value cannot be moved
        raise ValueError("it lacks weights that its configs ask for") from None


@contextmanager
def config_folder(source: TeacherSource) -> Iterator[str]:
    """What diffusers' readers take configs and tokenizers from."""
    if source.teacher_config or not source.file:
        yield source.teacher_config or source.teacher
        return
    configs = known_configs(source.file, source.prediction)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in configs.items():
            if path.endswith(".json"):
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_text(json.dumps(content), encoding="utf-8")
        for part, entry in configs["model_index.json"].items():
            if part.startswith("tokenizer") and entry[0]:
                tokenizer_of(configs["name"], part, entry[1]).save_pretrained(folder / part)
        yield name

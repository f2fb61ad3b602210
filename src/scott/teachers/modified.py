"""What takes the place of a part of a teacher before it is distilled: another VAE, another prediction."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, ModelMixin
from safetensors import SafetensorError, safe_open

from scott.diffusion import is_flow
from scott.errors import UserError, first_line
from scott.files import read_object
from scott.teacher_source import SINGLE_FILE, TeacherSource
from scott.teachers.lora_files import lora_path
from scott.teachers.single_file import PREDICTIONS, config_folder, predicted, read_single_file


def check_parts(source: TeacherSource) -> None:
    """Raise `UserError` where a file or folder that a source names is not there, is no such thing, or is not read."""
    if source.teacher_config and not source.file:
        raise UserError(
            f"got --teacher-config {source.teacher_config} for {source.teacher}, which has configs of its own; "
            "leave it out, or give the teacher as a file"
        )
    for file, scale in source.loras:
        if not math.isfinite(scale):
            raise UserError(f"got --teacher-lora {file}:{scale}; expected a finite scale")
        _check_readable(lora_path(file), "--teacher-lora")
    place = Path(source.vae or "")
    if source.vae is None:
        return
    if place.suffix in SINGLE_FILE or place.is_file():
        _check_readable(place, "--vae")
    elif place.is_dir() and not any((place / part / "config.json").is_file() for part in ("", "vae")):
        raise UserError(f"{place} has no config.json of a VAE, and no vae/config.json; expected --vae with one of them")
    elif not place.is_dir() and (place.is_absolute() or len(place.parts) != 2):
        raise UserError(f"no VAE at {place}; expected --vae with a folder, a file or a hub id (owner/name)")


def _check_readable(file: Path, flag: str) -> None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                return
        file.open("rb").close()
    except (OSError, SafetensorError) as error:
        raise UserError(f"got {flag} {file}, which cannot be read: {first_line(error)}") from None


def load_vae(source: TeacherSource, kind: type[ModelMixin]) -> ModelMixin:
    """The VAE that takes the place of a teacher's, in fp32; of a file, laid out as the teacher's own.

    Raises OSError where there is none, ValueError where weights are missing.
    """
    place = Path(str(source.vae))
    if place.is_file():
        with config_folder(source) as folder:
            return read_single_file(kind, place, config=folder, subfolder="vae").float()
    read = partial(kind.from_pretrained, str(place), output_loading_info=True, torch_dtype=torch.float32)
    try:
        return complete(read(subfolder="vae"), "the VAE")
    except OSError:
        return complete(read(), "the VAE")


def complete(loaded: tuple[Any, dict[str, Any]], name: str) -> Any:
    """A model of `from_pretrained(..., output_loading_info=True)`.

    Raises ValueError where its files lack some of its weights: the libraries would leave those random and only warn.
    """
    model, found = loaded
    if lacking := sorted(found["missing_keys"]):
        raise ValueError(f"the files of {name} lack {len(lacking)} of its weights, such as {lacking[0]}")
    return model


def vae_config(source: TeacherSource, own: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the VAE that a source names, where it is a folder here; or else the teacher's `own`."""
    place = Path(source.vae or "")
    files = (place / part / "config.json" for part in ("vae", ""))
    found = next((file for file in files if source.vae and file.is_file()), None)
    return read_object(found) if found else dict(own)


def predicting(scheduler: Any, source: TeacherSource) -> Any:
    """A teacher's scheduler, with the prediction that is given (`TeacherParts.prediction`), or else that a file says
    beside configs that are not its own.

    Raises `UserError` where one is given for a flow, whose networks predict nothing else.
    """
    if is_flow({"_class_name": type(scheduler).__name__, **scheduler.config}):
        if source.prediction:
            raise UserError(
                f"got --prediction {source.prediction} for a flow, which predicts its velocity; leave it out"
            )
        return scheduler
    marked = predicted(source.file) if source.file and source.teacher_config else ""
    kind, _, zero = (source.prediction or marked).partition("-")
    if not kind:
        return scheduler
    said = {"prediction_type": PREDICTIONS[kind], "rescale_betas_zero_snr": bool(zero)}
    # not every scheduler has zero terminal SNR; a value within the config would be dropped where it was a default there
    return DDIMScheduler.from_config(scheduler.config, **said)

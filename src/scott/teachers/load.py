"""From a folder, a hub id or a file to a backbone, or one line that says what is wrong there."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from scott.errors import UserError, first_line, require
from scott.teacher_source import TeacherSource
from scott.teachers.fingerprint import network_signs, network_version
from scott.teachers.layout import check_plain, check_sample_size, family_of, model_index, read_json, variants
from scott.teachers.lora_files import lora_path, merge_lora
from scott.teachers.modified import check_parts, complete, load_vae, predicting
from scott.teachers.network import LatentBackbone
from scott.teachers.single_file import cast, check_network, lacking_parts, load_single_file


def load_backbone(
    teacher: str | Path | TeacherSource, dtype: torch.dtype = torch.float32, quantized: str = "none"
) -> LatentBackbone:
    """The backbone of a diffusers pipeline: of a local folder, a hub id, or as a `TeacherSource` says.

    The frozen network and the text encoders are held in `dtype`, the VAE in fp32. The network's blocks may be
    quantised to "int8" or "nf4".

    Raises:
        UserError: no pipeline there, a file missing or corrupt, a family scott does not know, or there is no
            bitsandbytes to quantise by.
    """
    if quantized != "none":
        require("bitsandbytes", "--quantize")
    source = TeacherSource.of(teacher)
    check_parts(source)
    index = model_index(source)
    pipeline_class, network, family = family_of(source.teacher, index)
    options = _left_out(index)
    # LoRAs are merged before anything is rounded: the same teacher comes of it in any dtype
    first = torch.float32 if source.loras else dtype
    if source.vae is not None:
        with complaining_of(source.vae):
            options["vae"] = load_vae(source, getattr(diffusers, index["vae"][1]))
    with complaining_of(source.teacher):
        if source.file:
            loader = getattr(diffusers, network)
            check_network(source.file, loader, read_json(source, f"{family.part}/config.json"))
            for name in lacking_parts(source, index):
                if name not in options:
                    where = TeacherSource(teacher=str(source.teacher_config), variant=source.variant)
                    options[name] = _whole(where, name, index[name][1], torch.float32 if name == "vae" else first)
            pipeline = load_single_file(source, pipeline_class, family.part, loader, first, options)
        else:
            for name, entry in index.items():
                if name not in options and name.startswith(("unet", "transformer", "vae", "text_encoder")):
                    kind = network if name in ("unet", "transformer") else entry[1]
                    options[name] = _whole(source, name, kind, torch.float32 if name == "vae" else first)
            pipeline = pipeline_class.from_pretrained(source.teacher, **options)
        _check_text_parts(pipeline)
    _modify(pipeline, source, dtype)
    with complaining_of(source.teacher):  # of what its configs say
        backbone = family(pipeline)
    _check_prediction(backbone)
    backbone.version, backbone.signs = network_version(backbone.network), network_signs(backbone.network)
    if quantized != "none":
        backbone.quantize(quantized)
    return backbone


def _left_out(index: dict[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` is given to leave parts out: those scott does not use, which may be large, and text parts
    that are not there, which have to be named."""
    options: dict[str, Any] = {
        name: None for name in ("safety_checker", "feature_extractor", "image_encoder") if name in index
    }
    text = [name for name in index if name.startswith(("text_encoder", "tokenizer"))]
    options |= {name: None for name in text if index[name] in (None, [None, None])}
    return options | ({"requires_safety_checker": False} if "safety_checker" in options else {})


def _modify(pipeline: DiffusionPipeline, source: TeacherSource, dtype: torch.dtype) -> None:
    """Give a pipeline the prediction that its source names, and merge its LoRAs into it."""
    pipeline.scheduler = predicting(pipeline.scheduler, source)
    for file, scale in source.loras:
        with complaining_of(file):
            merge_lora(pipeline, lora_path(file), scale)
    for name, part in pipeline.components.items():
        if source.loras and isinstance(part, nn.Module) and name != "vae":
            cast(part, dtype)


def _check_prediction(backbone: LatentBackbone) -> None:
    """Raise `UserError` where a network that is to predict v answers noise with that noise, as one of ε does."""
    if backbone.prediction == "v_prediction" and _noise_in_answer(backbone) > 0.7:
        raise UserError(
            "the teacher is said to predict v, and its network predicts the noise; give --prediction epsilon "
            "(files of SD2's base edition are taken for 2.1's without)"
        )


def doubt_of_prediction(backbone: LatentBackbone) -> str | None:
    """What speaks against a network that is to predict ε and does not answer noise with that noise, as one of v, or one
    that is not trained, does not."""
    if backbone.prediction != "epsilon" or (found := _noise_in_answer(backbone)) > 0.5:
        return None
    return (
        f"the teacher is said to predict the noise, and its answer to noise has little of it (cosine {found:.2f}); "
        "if its network predicts v, give --prediction v, or v-ztsnr"
    )


@torch.no_grad()
def _noise_in_answer(backbone: LatentBackbone) -> float:
    """Cosine of noise and the network's answer to it at the last time.

    Where σ is 1 or nearly, ε is the noise, and v = α ε − σ x0 has little of it.
    """
    x = torch.randn(1, backbone.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
    cond = backbone.unconditional() | {"guidance": torch.ones(1)}
    output = backbone.output(None, x, backbone.schedule.last_time, cond)
    return torch.cosine_similarity(x.flatten(), output.flatten(), dim=0).item()


@contextmanager
def complaining_of(what: str | Path, done: str = "loaded") -> Iterator[None]:
    """Makes a `UserError` of what the libraries raise within the block, where files of a pipeline are missing, corrupt,
    or say what cannot be: the error's first line, and a way out, which that of an absent package names."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each library, and each reader of a config, has its own
        way_out = "" if isinstance(error, ImportError) else ". Copy or download it again"
        raise UserError(f"{what} cannot be {done}: {first_line(error)}{way_out}") from None


def _whole(source: TeacherSource, name: str, kind: str, dtype: torch.dtype) -> Any:
    """A pipeline's model by the name of its class, of the variant that is asked for or is the only one."""
    loader = getattr(diffusers if hasattr(diffusers, kind) else transformers, kind)
    if hasattr(loader, "load_config"):
        config = loader.load_config(source.teacher, subfolder=name)
    else:
        config, _ = loader.config_class.get_config_dict(source.teacher, subfolder=name)
    check_plain(source.teacher, name, config)
    if name in ("unet", "transformer"):
        check_sample_size(source.teacher, name, loader, config)
    read = partial(loader.from_pretrained, source.teacher, subfolder=name, dtype=dtype, output_loading_info=True)
    errors = []
    for variant in variants(source, name):
        try:
            return complete(read(variant=variant), name)
        except OSError as error:
            errors.append(error)
    raise errors[0]


def _check_text_parts(pipeline: DiffusionPipeline) -> None:
    """Raises ValueError for what the pipeline's class would only miss when it meets a prompt.

    A tokenizer that does not say how many tokens its encoder takes is given the number.
    """
    parts = pipeline.components
    for encoder in [name for name in parts if name.startswith("text_encoder")]:
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        if parts[encoder] is None and encoder == "text_encoder_3":
            continue  # SD3 does without its T5
        if absent := [name for name in (tokenizer, encoder) if parts[name] is None]:
            raise ValueError(f"it has no {' and no '.join(absent)}")
        # transformers makes an empty tokenizer of a missing file, which encodes every prompt alike
        if parts[tokenizer]("a cat").input_ids == parts[tokenizer]("a dog").input_ids:
            raise ValueError(f"{tokenizer} knows no words; a file of it is missing")
        if parts[tokenizer].pad_token is None:
            raise ValueError(f"{tokenizer} has no pad_token; put one into its tokenizer_config.json")
        if (most := getattr(parts[encoder].config, "max_position_embeddings", None)) is not None:
            parts[tokenizer].model_max_length = min(most, parts[tokenizer].model_max_length)
    if hasattr(pipeline, "tokenizer_max_length"):  # SD3's own copy of it
        pipeline.tokenizer_max_length = parts["tokenizer"].model_max_length


def hide_loading_bars() -> None:
    """Keep diffusers and transformers from drawing bars of their own between a command's."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()

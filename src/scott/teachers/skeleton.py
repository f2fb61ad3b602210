"""A backbone without weights: a teacher's networks on the meta device, made from its config files alone.

Tensors there have a shape and a dtype and nothing in them, so a model of any size can be built, counted and run
through in seconds. Tokenizers are blank: every prompt gets ids of the right shape.
"""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.modeling_outputs import BaseModelOutput

from scott.teacher_source import TeacherSource
from scott.teachers.layout import check_plain, check_sample_size, family_of, model_index, read_json, variants
from scott.teachers.load import complaining_of
from scott.teachers.lora_files import check_lora, lora_path
from scott.teachers.modified import check_parts, predicting, vae_config
from scott.teachers.network import LatentBackbone
from scott.teachers.single_file import cast, check_network, config_folder, lacking_parts


class ShapeOnlyT5(T5EncoderModel):
    """T5 looks into its attention mask, which no meta tensor can answer: this one says the shape of its output."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> BaseModelOutput:
        shape = (*input_ids.shape, self.config.d_model)
        return BaseModelOutput(torch.empty(shape, dtype=self.dtype, device=input_ids.device))


def skeleton(teacher: str | Path | TeacherSource, dtype: torch.dtype = torch.float32) -> LatentBackbone:
    """What `load_backbone` would make of a teacher, on the meta device, of config files, and LoRAs' names and sizes.

    Raises:
        UserError: no pipeline there, a config missing or corrupt, or a family scott does not know.
    """
    source = TeacherSource.of(teacher)
    check_parts(source)
    index = model_index(source)
    pipeline_class, network, backbone = family_of(source.teacher, index)
    if source.file:
        lacking_parts(source, index)
        check_network(source.file, getattr(diffusers, network), read_json(source, f"{backbone.part}/config.json"))
    encoders = [name for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if any(index.get(name) or ())]
    if not source.file:
        for name in (backbone.part, *encoders, *(() if source.vae else ("vae",))):
            variants(source, name)
    elif source.teacher_config is None:
        with config_folder(source):  # makes the tokenizers
            pass
    configs = {name: read_json(source, f"{name}/config.json") for name in (backbone.part, "vae", *encoders)}
    check_sample_size(source.teacher, backbone.part, getattr(diffusers, network), configs[backbone.part])
    for name, config in configs.items():
        check_plain(source.teacher, name, config)
    configs["vae"] = vae_config(source, configs["vae"])
    scheduler = read_json(source, "scheduler/scheduler_config.json")
    known = inspect.signature(pipeline_class).parameters
    options = {name: value for name, value in index.items() if name in known and not isinstance(value, list)}
    parts: dict[str, Any] = dict.fromkeys(index.keys() & known.keys() - options.keys())
    if "safety_checker" in known:
        options["requires_safety_checker"] = False
    with complaining_of(source.teacher, "built"):
        parts["scheduler"] = predicting(getattr(diffusers, index["scheduler"][1]).from_config(scheduler), source)
        with torch.device("meta"):
            for name, class_name in ((backbone.part, network), ("vae", index["vae"][1])):
                parts[name] = getattr(diffusers, class_name).from_config(configs[name])
            for name in encoders:
                kind = index[name][1]
                encoder = ShapeOnlyT5 if kind == "T5EncoderModel" else getattr(transformers, kind)
                parts[name] = encoder(encoder.config_class.from_dict(configs[name]))
                parts[name.replace("text_encoder", "tokenizer")] = _blank_tokenizer(parts[name])
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                cast(part, torch.float32 if name == "vae" else dtype)
        pipeline = pipeline_class(**parts, **options)
        for file, _ in source.loras:
            check_lora(pipeline, lora_path(file))
        return backbone(pipeline)


def _blank_tokenizer(encoder: PreTrainedModel) -> CLIPTokenizer | T5Tokenizer | None:
    """None for a language model: its family makes conditions of the right shape without (`Encoders.blank`)."""
    if isinstance(encoder, T5EncoderModel):
        return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0)
    if not isinstance(encoder, CLIPTextModel | CLIPTextModelWithProjection):
        return None
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=encoder.config.max_position_embeddings)

"""Files of random weights as the networks of `scott evaluate` are published, for `benchmarks.metrics`."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIPS = {
    "clip": ("ViT-g/14", 224, 14, (1408, 6144, 16), (1024, 4096, 16), 1024, "gelu"),
    "clip-b": ("ViT-B/32", 224, 32, (768, 3072, 12), (512, 2048, 8), 512, "quick_gelu"),
    "clip-l": ("ViT-L/14 at 336", 336, 14, (1024, 4096, 16), (768, 3072, 12), 768, "quick_gelu"),
    "pickscore": ("ViT-H/14", 224, 14, (1280, 5120, 16), (1024, 4096, 16), 1024, "gelu"),
}
"""Instrument → architecture, pixels a side, patch, (width, MLP, heads) of the pictures' and the captions' tower,
projection and activation."""


def towers(vision: tuple[int, ...], text: tuple[int, ...], layers: int, small: bool) -> list[dict[str, int]]:
    """The settings of both towers, as transformers has them."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    sizes = [(64, 128, 2)] * 2 if small else [vision, text]
    return [dict(zip(names, size, strict=True)) | {"num_hidden_layers": layers} for size in sizes]


def write_clip(
    folder: Path, side: int, patch: int, vision: Any, text: Any, projection: int, act: str, layers: int, small: bool
) -> Path:
    """A CLIPModel's folder with CLIP's own tokenizer; in half precision, which both ways read alike."""
    of_pictures, of_captions = towers(vision, text, layers, small)
    ids = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    config = CLIPConfig(
        text_config=of_captions | ids | {"hidden_act": act, "projection_dim": projection},
        vision_config=of_pictures | {"hidden_act": act, "image_size": side, "patch_size": patch},
        projection_dim=projection,
    )
    CLIPModel(config).half().save_pretrained(folder)
    merges = open_clip.tokenizer.SimpleTokenizer()
    pairs = [tuple(pair) for pair in sorted(merges.bpe_ranks, key=merges.bpe_ranks.get)]
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(token, token): number for token, number in merges.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessorPil(**sizes, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


def write_dinov2(folder: Path, layers: int, small: bool) -> Path:
    size = {"hidden_size": 64, "num_attention_heads": 2} if small else {}
    wide = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14, "image_size": 518}
    Dinov2Model(Dinov2Config(**wide | size, num_hidden_layers=layers)).save_pretrained(folder)
    return folder


def write_inception(file: Path) -> Path:
    """Weights as torch-fidelity's file has them, by name, shape and dtype."""
    torch.save({}, file)
    keep = fidelity.FeatureExtractorInceptionV3.load_state_dict
    fidelity.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    network = inception(file)
    fidelity.FeatureExtractorInceptionV3.load_state_dict = keep
    for weight in network.parameters():
        if weight.ndim == 4:  # or nothing of the picture is left after a hundred layers
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    torch.save(network.state_dict(), file)
    return file


def write_open_clip(folder: Path, layers: int, small: bool) -> str:
    """ViT-g-14 of open_clip, of `layers`."""
    config = open_clip.get_model_config("ViT-g-14")
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = layers
        if small:
            config[tower] |= {"width": 64, "head_width": 32} if tower == "vision_cfg" else {"width": 64, "heads": 2}
    (folder / "ViT-g-14.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "ViT-g-14.json")
    torch.save(open_clip.create_model("ViT-g-14").half().state_dict(), folder / "g.pth")
    return f"open_clip:ViT-g-14@{folder / 'g.pth'}"


def inception(file: Path) -> fidelity.FeatureExtractorInceptionV3:
    return fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
    )

